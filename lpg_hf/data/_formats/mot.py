"""MOT Challenge: SEQUENCE/gt/gt.txt, frames in SEQUENCE/img1, sizes in SEQUENCE/seqinfo.ini.

    frame, id, left, top, width, height, considered, class, visibility

Frames and pixels are counted from 1, so a box begins at left - 1, top - 1. A line that is not to be considered (0) is
a crowd region: its pixels are ignored. In the files of 2015 there is no class (-1): pedestrian.
"""

import configparser
import os

from lpg_hf._files import fs_path, read_text, relative_name, resolve_inside
from lpg_hf.data._formats.tool_image import ToolFile, ToolImage, ToolObject, as_numbers, folder_of_split
from lpg_hf.data.records import stated_size
from lpg_hf.images import IMAGE_SUFFIXES


_CLASSES = (
    "pedestrian",
    "person on vehicle",
    "car",
    "bicycle",
    "motorbike",
    "non motorized vehicle",
    "static person",
    "distractor",
    "occluder",
    "occluder on the ground",
    "occluder full",
    "reflection",
)
_LABELS = "gt/gt.txt"


def _sequences(path: str, split: str | None = None) -> list[str]:
    """The sequences of a file gt.txt, of its folder, of a sequence, or of a folder (or of a split) of sequences."""
    if os.path.isfile(fs_path(path)):
        return [os.path.dirname(os.path.dirname(path))] if path.endswith(f"/{_LABELS}") else []
    if os.path.basename(path) == "gt":
        path = os.path.dirname(path)
    if split is not None:
        path = folder_of_split(path, split) or f"{path}/{split}-is-not-there"
    if os.path.isfile(fs_path(f"{path}/{_LABELS}")):
        return [path]
    if not os.path.isdir(fs_path(path)):
        return []
    folders = sorted(item.path for item in os.scandir(fs_path(path)) if item.is_dir())
    found = [folder for folder in folders if os.path.isfile(f"{folder}/{_LABELS}")]
    if not found and split is None and os.path.isdir(fs_path(f"{path}/train")):
        return _sequences(path, "train")
    return found


def looks_like(path: str) -> bool:
    """Whether it is a gt/gt.txt, or a folder that holds one or sequences with one."""
    return bool(_sequences(path))


def read(path: str, split: str | None = None) -> ToolFile:
    """The frames of one sequence, or of all sequences of a folder.

    Raises:
        FileNotFoundError: no gt/gt.txt there.
        ValueError: gt.txt is no text.
    """
    sequences = _sequences(path, split)
    if not sequences:
        raise FileNotFoundError(f"no {_LABELS} in {path}" + (f" of the split {split!r}" if split else ""))
    images, files, problems = [], [], []
    several = len(sequences) > 1
    root = os.path.dirname(sequences[0]) if several else sequences[0]
    places = [root]
    for sequence in sequences:
        folder = os.path.relpath(sequence, root).replace(os.sep, "/") if several else ""
        info = _info(sequence)
        files.append(f"{sequence}/{_LABELS}")
        try:
            frames = _frame_folder(sequence, info)
        except ValueError as error:
            problems.append(("unsafe_path", f"{folder}/seqinfo.ini: {error}".lstrip("/")))
            continue
        if not several and os.path.isdir(fs_path(f"{sequence}/{frames}")):
            places.insert(0, f"{sequence}/{frames}".rstrip("/"))
        images += _read_sequence(sequence, folder, info, f"{folder}/{frames}/" if several else "", problems)
    return ToolFile(images, list(_CLASSES), files, places, problems)


def _info(sequence: str) -> dict[str, str]:
    """The section [Sequence] of seqinfo.ini, keys in lower case; empty if there is none."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(read_text(f"{sequence}/seqinfo.ini"))
    except (OSError, ValueError, configparser.Error):
        return {}
    return {key: value for section in parser.sections() for key, value in parser[section].items()}


def _frame_folder(sequence: str, info: dict[str, str]) -> str:
    """The folder of the frames in that of a sequence, "" for that folder itself.

    Raises:
        ValueError: imDir leads outside the sequence, or imExt is no suffix of images.
    """
    stated, suffix = info.get("imdir", "img1"), info.get("imext", "")
    if suffix and suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError(f"imExt={suffix!r} is none of {', '.join(IMAGE_SUFFIXES)}")
    if stated in ("", "."):
        return ""
    try:
        name = relative_name(stated)
        resolve_inside(sequence, name)
    except ValueError as error:
        raise ValueError(f"imDir={stated!r} {error}") from error
    return name


def _read_sequence(
    sequence: str, folder: str, info: dict[str, str], inner: str, problems: list[tuple[str, str]]
) -> list[ToolImage]:
    """The frames of a sequence; `inner` is before their numbers in the names of the images."""
    size = stated_size(info.get("imheight"), info.get("imwidth"))
    base = f"{folder}/{_LABELS}".lstrip("/")
    frames: dict[int, ToolImage] = {}
    for number, line in enumerate(read_text(f"{sequence}/{_LABELS}").splitlines(), start=1):
        if not line.strip():
            continue
        place = f"{base}: line {number}"
        values = as_numbers(line.rstrip(", ").split(","))
        if values is None or len(values) < 6 or values[0] < 1 or values[0] > 1e8:
            problems.append(("invalid_line", f"{place} {line.strip()[:60]!r}"))
            continue
        frame, _, left, top, width, height = (*values[:2], *values[2:6])
        label = int(values[7]) if len(values) >= 9 and values[7] >= 1 else 1
        name = _CLASSES[label - 1] if label <= len(_CLASSES) else f"class {label}"
        made = ToolObject(name, place, (left - 1, top - 1, left - 1 + width, top - 1 + height))
        made.iscrowd = len(values) > 6 and values[6] == 0
        key = int(frame)
        if key not in frames:
            frames[key] = ToolImage(f"{inner}{key:06d}{info.get('imext', '')}", base, size)
        frames[key].objects.append(made)
    return [frames[key] for key in sorted(frames)]
