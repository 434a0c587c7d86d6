"""Official archives: what is published about them, and reading them without trusting a name in them.

A zip or tar file names its own entries, so nothing is written before a name is checked: an entry that is absolute,
climbs with ".." or is a link stops everything, by its name. Every file is complete or absent, and one that is there
already is not written again.
"""

import hashlib
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tqdm import tqdm

from lpg_hf._files import atomic_file, fs_path, relative_name, resolve_inside


CHUNK = 1 << 20


@dataclass(frozen=True)
class Archive:
    """One file that its publisher gives away.

    Attributes:
        name: of the file.
        page: where the publisher offers it.
        size: bytes; None: not published.
        digest: "md5:..." or "sha256:..."; the first digits are enough. None: not published.
        source: who states size and digest.
    """

    name: str
    page: str
    size: int | None = None
    digest: str | None = None
    source: str | None = None


# COCO, VOC and SBD publish no checksums themselves; those of the two libraries that download them are used.
TFDS = "tensorflow_datasets/url_checksums/coco.txt"
TORCHVISION = "torchvision.datasets"
# torch.hub: the name of a weight file ends in the first digits of its SHA-256.
TORCH_HUB = "the file's own name"
COCO_PAGE = "https://cocodataset.org/#download"
VOC_PAGE = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"
SBD_PAGE = "http://home.bharathh.info/pubs/codes/SBD/download.html"
WEIGHTS_PAGE = "https://download.pytorch.org/models/"

COCO_TRAIN = Archive(
    "train2017.zip",
    COCO_PAGE,
    19_336_861_798,
    "sha256:69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
    TFDS,
)
COCO_VAL = Archive(
    "val2017.zip",
    COCO_PAGE,
    815_585_330,
    "sha256:4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
    TFDS,
)
COCO_ANNOTATIONS = Archive(
    "annotations_trainval2017.zip",
    COCO_PAGE,
    252_907_541,
    "sha256:113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
    TFDS,
)
VOC = Archive(
    "VOCtrainval_11-May-2012.tar", VOC_PAGE, digest="md5:6cd6e144f989b92b3379bac3b3de84fd", source=TORCHVISION
)
SBD = Archive("benchmark.tgz", SBD_PAGE, digest="md5:82b4d87ceb2ed10f6038a1cba92111cb", source=TORCHVISION)
VGG16 = Archive("vgg16-397923af.pth", WEIGHTS_PAGE, digest="sha256:397923af", source=TORCH_HUB)
RESNET101 = Archive("resnet101-63fe2227.pth", WEIGHTS_PAGE, digest="sha256:63fe2227", source=TORCH_HUB)


@dataclass(frozen=True)
class Entry:
    """One regular file of an archive: its name, its size in bytes, and what opens it while the archive is read."""

    name: str
    size: int
    open: Callable[[], IO[bytes]]


def find_archives(folder: Path, wanted: list[Archive]) -> list[Path]:
    """The paths of archives in a folder.

    Raises:
        FileNotFoundError: some are missing; the message names all of them, and says where each comes from and goes.
    """
    paths = [folder / archive.name for archive in wanted]
    missing = [archive for archive, path in zip(wanted, paths, strict=True) if not os.path.isfile(fs_path(path))]
    if missing:
        listed = "\n".join(f"  {archive.name}  from {archive.page}" for archive in missing)
        raise FileNotFoundError(
            f"{len(missing)} of {len(wanted)} archives are not in {folder}:\n{listed}\n"
            f"Download them from the pages of their publishers into {folder}, or pass --archives DIR."
        )
    return paths


def check_archive(path: Path, archive: Archive) -> str:
    """Compares a file with what is published about it; reads all of it if a checksum is published.

    Returns:
        What was checked, for the log.

    Raises:
        ValueError: the size or the checksum differs.
    """
    size = os.path.getsize(fs_path(path))
    remedy = "Download it again, or pass --no-check if you packed it yourself."
    if archive.size not in (None, size):
        raise ValueError(
            f"{path} has {size:,} bytes, but {archive.source} states {archive.size:,}: it is incomplete or "
            f"another file. {remedy}"
        )
    if archive.digest is None:
        return f"{archive.name}: {size:,} bytes; no checksum is published, so none was checked"
    kind, _, wanted = archive.digest.partition(":")
    found = _file_digest(path, kind)
    if not found.startswith(wanted):
        raise ValueError(f"{path} has the {kind} {found}, but {archive.source} states {wanted}. {remedy}")
    return f"{archive.name}: {size:,} bytes, {kind} {wanted} as {archive.source} states"


def _file_digest(path: Path, kind: str) -> str:
    """The hexadecimal digest of a file, with a progress bar; `kind` is a name of hashlib."""
    digest = hashlib.new(kind, usedforsecurity=False)
    with open(fs_path(path), "rb") as file, _bar(f"checking {path.name}", os.path.getsize(file.name)) as bar:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def _bar(what: str, total: int) -> tqdm:
    return tqdm(desc=what, total=total, unit="B", unit_scale=True, disable=None, leave=False)


@contextmanager
def open_archive(path: Path) -> Iterator[Iterator[Entry]]:
    """The regular files of a zip or tar file, in its order; folders are passed over.

    Each entry must be opened before the next one is asked for. A compressed tar is read once, from its start to its
    end.

    Raises:
        ValueError: the file is no zip or tar or is cut off; or an entry leads outside the folder, or is no regular
        file.
    """
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(fs_path(path)) as archive:
                yield _zip_entries(archive, path.name)
        else:
            # "r|*" streams: a compressed archive cannot be sought in, and a list of 60,000 members is never built.
            with tarfile.open(fs_path(path), "r:" if path.suffix == ".tar" else "r|*") as archive:
                yield _tar_entries(archive, path.name)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's, such as "no space left"
            raise
        raise ValueError(f"{path} cannot be read: {error}. Download it again.") from error


def _zip_entries(archive: zipfile.ZipFile, archive_name: str) -> Iterator[Entry]:
    infos = archive.infolist()
    names = [
        _safe_name(info.filename, archive_name, is_link=stat.S_ISLNK(info.external_attr >> 16)) for info in infos
    ]  # all of them, before the first is written
    for info, name in zip(infos, names, strict=True):
        if not info.is_dir():
            yield Entry(name, info.file_size, lambda info=info: archive.open(info))


def _tar_entries(archive: tarfile.TarFile, archive_name: str) -> Iterator[Entry]:
    for member in archive:
        is_other = not (member.isfile() or member.isdir())
        name = _safe_name(member.name, archive_name, is_link=is_other)
        if member.isfile():
            yield Entry(name, member.size, lambda member=member: _opened(archive, member))


def _opened(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = archive.extractfile(member)
    assert file is not None  # only members without content have none
    return file


def _safe_name(name: str, archive_name: str, is_link: bool = False) -> str:
    """The name of an entry as a relative path.

    Raises:
        ValueError: it is absolute, climbs with "..", or the entry is a link or device; names the entry.
    """
    try:
        relative = relative_name(name.rstrip("/") or ".") if name.strip("./") else "."
    except ValueError as error:
        raise ValueError(
            f"{archive_name} holds the entry {name!r}, which {error}. Download the archive again."
        ) from None
    if is_link:
        raise ValueError(
            f"{archive_name} holds the entry {name!r}, which is a link or device, not a file. "
            "Download the archive again."
        )
    return relative


def write_entry(entry: Entry, folder: Path, name: str) -> bool:
    """Copies an entry to folder/name, unless that is there with the entry's size.

    Returns:
        Whether it was written.

    Raises:
        ValueError: `name` leads outside the folder, also by a link that is there.
    """
    path = destination(folder, name)
    if os.path.isfile(fs_path(path)) and os.path.getsize(fs_path(path)) == entry.size:
        return False
    with entry.open() as source, atomic_file(path) as target:
        shutil.copyfileobj(source, target, CHUNK)
    return True


def destination(folder: Path, name: str) -> Path:
    """The path of a file to be written below a folder, which `name` cannot leave.

    Raises:
        ValueError: `name` leads outside; names it.
    """
    try:
        return Path(resolve_inside(str(folder), relative_name(name)))
    except ValueError as error:
        raise ValueError(f"{name!r} {error}: {folder}. Nothing was written there.") from None


def below(entries: Iterable[Entry], prefix: str, names: set[str] | None = None) -> Iterator[Entry]:
    """The entries of one folder, by their names in it; `names`: only these."""
    for entry in entries:
        name = entry.name.removeprefix(prefix)
        if entry.name.startswith(prefix) and (name in names if names is not None else "/" not in name):
            yield Entry(name, entry.size, entry.open)


def convert_entry(entry: Entry, folder: Path, name: str, write: Callable[[Path, bytes], None]) -> None:
    """Lets `write` make folder/name of an entry's bytes, unless that file is there.

    Raises:
        ValueError: `name` leads outside the folder, or the entry cannot be read; names it.
    """
    path = destination(folder, name)
    if os.path.isfile(fs_path(path)):
        return
    with entry.open() as file:
        data = file.read()
    try:
        write(path, data)
    except (OSError, SyntaxError, ValueError, KeyError, IndexError) as error:  # SyntaxError: xml that cannot be parsed
        if isinstance(error, OSError) and error.errno is not None:  # the disk's, not the entry's
            raise
        raise ValueError(f"the entry {entry.name} cannot be used: {error}. Download its archive again.") from error
