"""VOC 2012 with SBD's masks: the target dataset of the paper's main experiment."""

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from lpg_hf._files import fs_path, read_text, write_atomically
from lpg_hf.data._prepare import archives
from lpg_hf.data._prepare.archives import below, convert_entry, find_archives, open_archive, write_entry
from lpg_hf.data._prepare.progress import PrepareOptions, Progress
from lpg_hf.data._prepare.resized import smaller_mask, smaller_xml, write_smaller_jpeg
from lpg_hf.data.sources import evenly
from lpg_hf.label_maps import write_label_map
from lpg_hf.labels import VOC_CLASSES


NUM_TRAIN_AUG = 10_582
VOC_INNER = "VOCdevkit/VOC2012/"
SBD_INNER = "benchmark_RELEASE/dataset/"
LISTS = "ImageSets/Segmentation"
# A list of the user's, in the folder of the archives: one name a line, or an image and a mask path as DeepLab's lists
# have.
TRAIN_AUG_FILES = ("train_aug.txt", "trainaug.txt")


def prepare_voc_aug(options: PrepareOptions) -> None:
    """VOC 2012 with SBD's masks and the list train_aug. See `prepare`.

    The list is `train_aug.txt` beside the archives, else SBD's train and val and VOC's train, without VOC's val.
    A subset takes images of train_aug, VOC's train at its share, and as many of val.
    """
    try:
        import scipy.io  # noqa: F401  # said before any work
    except ImportError:
        raise ImportError("SBD's masks are .mat files, which SciPy reads: pip install 'lpg_hf[prepare]'.") from None
    wanted = [archives.VOC, archives.SBD]
    voc, sbd = find_archives(options.archive_folder, wanted)
    progress = Progress(options.root / "voc", options)
    for path, archive in zip((voc, sbd), wanted, strict=True):
        progress.check(path, archive)

    lists = _voc_lists(voc, sbd, progress)
    chosen = None if options.limit is None else set(lists["train_aug"]) | set(lists["val"])
    _write_voc(voc, progress, chosen)
    if not progress.is_finished("SegmentationClassAug"):
        _write_masks(sbd, progress, lists)
        progress.finish("SegmentationClassAug")


def _voc_lists(voc: Path, sbd: Path, progress: Progress) -> dict[str, list[str]]:
    """The names of train, val and train_aug; writes them unless they are there."""
    options, folder = progress.options, progress.folder / LISTS
    if progress.is_finished(LISTS):
        return {name: read_text(folder / f"{name}.txt").split() for name in ("train", "val", "train_aug")}
    lists = _read_lists(voc, f"{VOC_INNER}{LISTS}/", ("train", "val"))
    given = [path for path in map(options.archive_folder.__truediv__, TRAIN_AUG_FILES) if path.is_file()]
    if given:
        names = [Path(line.split()[0]).stem for line in read_text(given[0]).splitlines() if line.strip()]
        options.log(f"train_aug: {len(names):,} names of {given[0].name}")
        twice = len(names) - len(set(names))
        held_out = sorted(set(names) & set(lists["val"]))
        if twice or held_out:
            raise ValueError(
                f"{given[0]} names {twice} images twice and {len(held_out)} images of VOC's val "
                f"({', '.join(held_out[:3])}), which is measured on. "
                "Correct it, or delete it: the list is then made from SBD's."
            )
    else:
        of_sbd = _read_lists(sbd, SBD_INNER, ("train", "val"))
        names = sorted({*of_sbd["train"], *of_sbd["val"], *lists["train"]} - set(lists["val"]))
        options.log(f"train_aug: {len(names):,} names = SBD's train and val and VOC's train, without VOC's val")
    if len(names) != NUM_TRAIN_AUG and options.check:
        options.log(f"warning: train_aug has {len(names):,} names, but the published list has {NUM_TRAIN_AUG:,}")
    lists["train_aug"] = names
    if options.limit is not None:
        lists = _smaller_lists(lists, options.limit)
    for name, members in lists.items():
        write_atomically(folder / f"{name}.txt", "".join(f"{member}\n" for member in members).encode())
    progress.finish(LISTS)
    return lists


def _smaller_lists(lists: dict[str, list[str]], number: int) -> dict[str, list[str]]:
    """A subset keeps train inside train_aug, at its share and with at least one image."""
    in_train, names = set(lists["train"]), lists["train_aug"]
    precise = [name for name in names if name in in_train]
    others = [name for name in names if name not in in_train]
    train = evenly(precise, max(1, round(number * len(precise) / len(names))))
    train_aug = sorted(train + evenly(others, number - len(train)))
    return {"train": list(train), "val": list(evenly(lists["val"], number)), "train_aug": train_aug}


def _read_lists(path: Path, prefix: str, names: tuple[str, ...]) -> dict[str, list[str]]:
    """Lists of an archive; reads it only until all are found."""
    found: dict[str, list[str]] = {}
    with open_archive(path) as entries:
        for entry in below(entries, prefix, {f"{name}.txt" for name in names}):
            with entry.open() as file:
                found[Path(entry.name).stem] = file.read().decode("ascii").split()
            if len(found) == len(names):
                return found
    missing = [f"{prefix}{name}.txt" for name in names if name not in found]
    raise ValueError(f"{path} holds no {' and no '.join(missing)}. Download it again.")


def _write_voc(voc: Path, progress: Progress, chosen: set[str] | None) -> None:
    """Images, xml files and class masks of VOC 2012; `chosen`: only of these images."""
    long_side = progress.options.long_side
    writers = {
        "JPEGImages": lambda path, data: write_smaller_jpeg(path, data, long_side),
        "Annotations": lambda path, data: write_atomically(path, smaller_xml(data, long_side)),
        "SegmentationClass": lambda path, data: write_label_map(path, smaller_mask(_voc_mask(data), long_side)),
    }
    waiting = [piece for piece in writers if not progress.is_finished(piece)]
    if not waiting:
        return
    with open_archive(voc) as entries:
        for entry in tqdm(entries, desc="writing VOC 2012", unit="file", disable=None, leave=False):
            piece, _, name = entry.name.removeprefix(VOC_INNER).partition("/")
            if not entry.name.startswith(VOC_INNER) or piece not in waiting or "/" in name:
                continue
            if chosen is not None and Path(name).stem not in chosen:
                continue
            if long_side is None:
                write_entry(entry, progress.folder / piece, name)
            else:
                convert_entry(entry, progress.folder / piece, name, writers[piece])
    for piece in waiting:
        progress.finish(piece)


def _write_masks(sbd: Path, progress: Progress, lists: dict[str, list[str]]) -> None:
    """SegmentationClassAug: VOC's own masks of train and val, SBD's of the other names in train_aug."""
    long_side, folder = progress.options.long_side, progress.folder / "SegmentationClassAug"
    for name in dict.fromkeys([*lists["train"], *lists["val"]]):
        source = progress.folder / "SegmentationClass" / f"{name}.png"
        if os.path.isfile(fs_path(source)):
            write_atomically(folder / source.name, source.read_bytes())

    def write(path: Path, data: bytes) -> None:
        write_label_map(path, smaller_mask(_sbd_mask(data), long_side))

    wanted = {f"{name}.mat" for name in lists["train_aug"]} - {f"{name}.mat" for name in lists["train"]}
    with open_archive(sbd) as entries:
        masks = below(entries, f"{SBD_INNER}cls/", wanted)
        for entry in tqdm(masks, desc="converting SBD's masks", total=len(wanted), disable=None, leave=False):
            convert_entry(entry, folder, f"{Path(entry.name).stem}.png", write)
    _drop_incomplete(progress, lists)


def _drop_incomplete(progress: Progress, lists: dict[str, list[str]]) -> None:
    """Takes the names that lack an image, an xml file or a mask out of the lists, and says which."""
    needed = {"JPEGImages": ".jpg", "Annotations": ".xml", "SegmentationClassAug": ".png"}
    there = {piece: set(os.listdir(fs_path(progress.folder / piece))) for piece in needed}
    for list_name, names in lists.items():
        lacking = {
            name: [piece for piece, suffix in needed.items() if f"{name}{suffix}" not in there[piece]]
            for name in names
        }
        skipped = [f"{name} (no {', no '.join(pieces)})" for name, pieces in lacking.items() if pieces]
        if skipped:
            kept = "".join(f"{name}\n" for name in names if not lacking[name])
            write_atomically(progress.folder / LISTS / f"{list_name}.txt", kept.encode())
            more = ", ..." if len(skipped) > 5 else ""
            progress.options.log(f"{list_name}: skipped {len(skipped):,} names: {', '.join(skipped[:5])}{more}")


def _voc_mask(data: bytes) -> np.ndarray:
    """A class mask of VOC, a palette PNG -> (H, W) uint8, 255 ignored."""
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        if image.mode not in ("P", "L"):
            raise ValueError(f"a class mask of mode {image.mode}")
        return np.array(image, dtype=np.uint8)


def _sbd_mask(data: bytes) -> np.ndarray:
    """A class mask of SBD, `GTcls.Segmentation` of a .mat file -> (H, W) uint8; SBD marks no pixel as ignored.

    Raises:
        ValueError: the file holds no such array, or values that are no classes of VOC.
    """
    from scipy.io import loadmat

    try:
        mask = loadmat(io.BytesIO(data), variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
    except Exception as error:  # SciPy's parser raises many types on a damaged file
        raise ValueError(f"no GTcls.Segmentation ({type(error).__name__}: {error})") from error
    if mask.ndim != 2 or mask.dtype.kind not in "iu" or mask.size == 0 or mask.max() > len(VOC_CLASSES):
        raise ValueError(f"GTcls.Segmentation of shape {mask.shape} and type {mask.dtype} is no mask of VOC's classes")
    return mask.astype(np.uint8)
