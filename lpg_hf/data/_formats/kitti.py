"""KITTI object labels: label_2/000000.txt beside image_2/000000.png, or labels/ beside data/ (FiftyOne).

    type truncated occluded alpha left top right bottom height width length x y z rotation_y [score]

Boxes are pixels from 0, as they are written. A "DontCare" line is a region in which nothing was labelled: a crowd
region, which belongs to no class, and whose pixels are ignored.
"""

import os

from lpg_hf._files import fs_path, read_head, read_text, walk_files
from lpg_hf.data._formats.tool_image import (
    MAX_LOOKS,
    ToolFile,
    ToolImage,
    ToolObject,
    as_numbers,
    class_name,
    names_of_split,
    read_label_files,
)


_LABEL_FOLDERS = ("label_2", "label_02")
_IMAGE_FOLDERS = ("image_2", "image_02")
_DONT_CARE = "DontCare"


def _is_line(line: str) -> bool:
    words = line.split()
    return len(words) in (15, 16) and not words[0].isdigit() and as_numbers(words[1:]) is not None


def looks_like(path: str) -> bool:
    """Whether a txt file has lines of 15 or 16 columns that begin with a class name, or a folder has such files."""
    if os.path.isdir(fs_path(path)):
        return _label_folder(path, None) is not None
    return path.lower().endswith(".txt") and _has_lines(path)


def _has_lines(path: str) -> bool:
    return _is_line(read_head(path, 2000).partition("\n")[0])


def _label_folder(path: str, split: str | None) -> str | None:
    """The folder of the txt files: itself, label_2, training/label_2, CVAT's default/label_2, or FiftyOne's labels."""
    above = names_of_split(split) if split is not None else ("training", "train", "object/training", "default")
    folders = [*(f"{path}/{name}" for name in _LABEL_FOLDERS), path, f"{path}/labels"] if split is None else []
    folders += [f"{path}/{part}/{name}" for part in above for name in _LABEL_FOLDERS]
    for folder in folders:
        if os.path.isdir(fs_path(folder)):
            names = [name for _, name in zip(range(MAX_LOOKS), walk_files(folder, (".txt",), deep=False))]
            is_named = os.path.basename(folder) in _LABEL_FOLDERS
            if (names and is_named) or any(_has_lines(f"{folder}/{name}") for name in names):
                return folder
    return None


def read(path: str, split: str | None = None) -> ToolFile:
    """The images of a folder of txt files, or of one of them.

    Raises:
        FileNotFoundError: no label files there.
    """
    found = None if os.path.isfile(fs_path(path)) else _label_folder(path, split)
    missing = f"no KITTI label files in {path}" + (f" of the split {split!r}" if split else "")
    folder, content = read_label_files(path, found, missing, _read_image)
    above = os.path.dirname(folder)
    places = [f"{above}/{name}" for name in _IMAGE_FOLDERS if os.path.isdir(fs_path(f"{above}/{name}"))]
    content.image_folders = [*places, *content.image_folders]
    return content


def _read_image(path: str, name: str) -> ToolImage:
    image = ToolImage(os.path.splitext(name)[0], name)
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        place = f"{name}: line {number}"
        if not _is_line(line):
            image.lose("invalid_line", f"{place} {line.strip()[:60]!r} ({len(words)} columns)")
            continue
        box = as_numbers(words[4:8])
        crowd = words[0] == _DONT_CARE
        image.objects.append(ToolObject(None if crowd else class_name(words[0]), place, box, iscrowd=crowd))
    return image
