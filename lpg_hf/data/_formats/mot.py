"""MOT Challenge: SEQUENCE/gt/gt.txt, frames in SEQUENCE/img1, sizes in SEQUENCE/seqinfo.ini.

    frame, id, left, top, width, height, considered, class, visibility

Frames and pixels are counted from 1, so a box begins at left - 1, top - 1. A line that is not to be considered (0) is
a crowd region: its pixels are ignored. In the files of 2015 there is no class (-1): pedestrian.

CVAT's "MOT 1.1" has the names of its classes, one a line, in gt/labels.txt beside gt.txt, and counts pixels from 0. It
names the frames of a video frame_000000 and on, the first of which is frame 1.
"""

import configparser
import os
import re

from lpg_hf._files import fs_path, read_list, read_text, relative_name, resolve_inside, walk_files
from lpg_hf.data._formats.tool_image import ToolFile, ToolImage, ToolObject, as_numbers, class_name, folder_of_split
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
_CLASS_LIST = "gt/labels.txt"


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
        images += _read_sequence(sequence, folder, info, frames, problems)
    lists = [f"{sequence}/{_CLASS_LIST}" for sequence in sequences]
    files += [path for path in lists if os.path.isfile(fs_path(path))]
    classes = dict.fromkeys(name for sequence in sequences for name in _class_names(sequence) or _CLASSES)
    return ToolFile(images, list(classes), files, places, problems)


def _class_names(sequence: str) -> list[str] | None:
    """The classes of gt/labels.txt in the order of their numbers; None: there is no such file.

    Raises:
        ValueError: it is no text.
    """
    path = f"{sequence}/{_CLASS_LIST}"
    if not os.path.isfile(fs_path(path)):
        return None
    return [class_name(line) or f"class {number}" for number, line in enumerate(read_list(path), start=1)]


def _video_frames(folder: str) -> dict[int, str]:
    """The images of a video by number of the frame, as CVAT names them; empty if some have other names."""
    names = list(walk_files(folder, IMAGE_SUFFIXES, deep=False))
    is_video = all(re.fullmatch(r"frame_\d+", os.path.splitext(name)[0]) for name in names)
    return dict(enumerate(names, start=1)) if is_video else {}


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
    sequence: str, folder: str, info: dict[str, str], frame_folder: str, problems: list[tuple[str, str]]
) -> list[ToolImage]:
    """The frames of a sequence, whose `folder` is "" if it is the only one; `frame_folder` is below it."""
    size = stated_size(info.get("imheight"), info.get("imwidth"))
    listed = _class_names(sequence)
    names, first = (_CLASSES, 1) if listed is None else (listed, 0)
    of_video = {} if listed is None else _video_frames(f"{sequence}/{frame_folder}".rstrip("/"))
    base = f"{folder}/{_LABELS}".lstrip("/")
    prefix = f"{folder}/{frame_folder}/" if folder else ""
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
        label = int(values[7]) if len(values) >= 9 and values[7] >= 1 else 1 if listed is None else None
        name = None if label is None else names[label - 1] if label <= len(names) else f"class {label}"
        left, top = left - first, top - first
        made = ToolObject(name, place, (left, top, left + width, top + height))
        made.iscrowd = len(values) > 6 and values[6] == 0
        key = int(frame)
        if key not in frames:
            file_name = of_video.get(key, f"{key:06d}{info.get('imext', '')}")
            frames[key] = ToolImage(f"{prefix}{file_name}", base, size)
        frames[key].objects.append(made)
    return [frames[key] for key in sorted(frames)]
