"""DOTA: labelTxt/a.txt beside images/a.png, one quadrilateral a line, in pixels.

    imagesource:GoogleEarth
    gsd:0.14
    x1 y1 x2 y2 x3 y3 x4 y4 class difficult

The box is the one around the quadrilateral, and masks are cut to it. The same with fractions and the class number in
front (YOLO-OBB) is read by `yolo`.
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


_HEADERS = ("imagesource", "gsd", "acquisition dates")


def _is_line(line: str) -> bool:
    words = line.split()
    named = len(words) in (9, 10) and as_numbers(words[8:9]) is None
    return named and as_numbers(words[:8]) is not None


def looks_like(path: str) -> bool:
    """Whether a txt file has lines of eight numbers and a class name, or a folder has files of such lines."""
    if os.path.isdir(fs_path(path)):
        return _label_folder(path, None) is not None
    return path.lower().endswith(".txt") and _has_lines(path)


def _has_lines(path: str) -> bool:
    return any(_is_line(line) for line in read_head(path, 8000).split("\n")[:4])


def _label_folder(path: str, split: str | None) -> str | None:
    """The folder of the txt files: itself, labelTxt (or labelTxt-v1.5, ...), or one in the folder of a split."""
    bases = [f"{path}/{name}" for name in names_of_split(split)] if split is not None else [path, f"{path}/train"]
    for base in bases:
        if not os.path.isdir(fs_path(base)):
            continue
        named = sorted(item.name for item in os.scandir(fs_path(base)) if item.is_dir())
        named = [name for name in named if name.lower().startswith(("labeltxt", "annfiles", "labels"))]
        for folder in [*(f"{base}/{name}" for name in named), base]:
            names = [name for _, name in zip(range(MAX_LOOKS), walk_files(folder, (".txt",), deep=False))]
            is_named = os.path.basename(folder).lower().startswith("labeltxt")
            if (names and is_named) or any(_has_lines(f"{folder}/{name}") for name in names):
                return folder
    return None


def read(path: str, split: str | None = None) -> ToolFile:
    """The images of a folder of txt files, or of one of them.

    Raises:
        FileNotFoundError: no label files there.
    """
    found = None if os.path.isfile(fs_path(path)) else _label_folder(path, split)
    missing = f"no DOTA label files in {path}" + (f" of the split {split!r}" if split else "")
    _, content = read_label_files(path, found, missing, _read_image)
    return content


def _read_image(path: str, name: str) -> ToolImage:
    image = ToolImage(os.path.splitext(name)[0], name)
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip() or line.strip().lower().startswith(_HEADERS):
            continue
        place = f"{name}: line {number}"
        if not _is_line(line):
            image.lose("invalid_line", f"{place} {line.strip()[:60]!r} ({len(line.split())} columns)")
            continue
        words = line.split()
        outline = as_numbers(words[:8]) or []
        hard = words[9:10] not in ([], ["0"])
        image.objects.append(
            ToolObject(class_name(words[8]), place, outlines=[outline], is_region=True, difficult=hard)
        )
    return image
