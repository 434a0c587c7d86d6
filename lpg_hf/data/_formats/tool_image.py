"""What the readers of labelling tools' files share: an image and its objects as the file states them, not yet checked.

A reader is a pair of functions, `looks_like(path)` and `read(path)`; `tools` holds the table of them and makes records
of what they read. A reader converts to this package's frame (pixels from 0, end exclusive) and drops nothing in
silence: what it cannot use stands in `problems`.
"""

import math
import os
from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import TypeVar
from xml.etree import ElementTree

import numpy as np
from defusedxml import ElementTree as SafeElementTree
from defusedxml.common import DefusedXmlException

from lpg_hf._files import fs_path, read_bytes, walk_files
from lpg_hf._rle import Rle, Window, encode_window
from lpg_hf.labels import clean_name


# Run lengths of a mask, column by column, of which a few rows make many: in all, and for each character of the text.
_MOST_RUNS = 100_000
_RUNS_PER_CHARACTER = 16
# Files of a folder that are looked at to tell its format.
MAX_LOOKS = 20
_IMAGE_FOLDERS = ("images", "image", "img", "imgs", "data", "JPEGImages")
# What the folders, files and keys of a split are called.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_Id = TypeVar("_Id", bound=int | str)


@dataclass(slots=True)
class ToolObject:
    """One object of a file.

    Attributes:
        name: of the class; None: the file states none.
        place: "file: object 3", for the report.
        box: xyxy, pixels, 0-based, end exclusive, or fractions (see `ToolImage`); None: the extent of outlines or
            mask.
        outlines: x, y, x, y, ... in the same unit.
        rle: COCO mask of the whole image, compressed or not.
        mask: makes the COCO mask of the whole image from its stated size (height, width), once that is known to be
            true; None: it cannot be used. Only beside `box`.
        is_region: the outline is a rotated box or the like: the object lies in it, but it is not the object's outline.
        iscrowd: a region of many objects.
        difficult: flag of the tool.
    """

    name: str | None
    place: str
    box: Sequence[float] | None = None
    outlines: list[list[float]] = field(default_factory=list)
    rle: dict | None = None
    mask: Callable[[tuple[int, int]], Rle | None] | None = None
    is_region: bool = False
    iscrowd: bool = False
    difficult: bool = False


@dataclass(slots=True)
class ToolImage:
    """One image of a file.

    Attributes:
        file_name: as the file states it, with or without suffix and folders.
        place: the annotation file, for messages.
        size: (height, width) as stated, or None.
        objects: those that could be read.
        problems: (kind of `PROBLEMS`, place) of what could not.
        lost: (class name, xyxy) of the objects that could not; None: not known.
        other_names: under which the image may lie too, such as the name before an upload.
        folder: of the annotation file below the folder that was opened, "" for itself; the image may lie there.
        subset: what the tool calls the split of the image, "" if it names none.
        fractions: numbers are fractions of width and height, not pixels.
    """

    file_name: str
    place: str
    size: tuple[int, int] | None = None
    objects: list[ToolObject] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    lost: list[tuple[str | None, Sequence[float] | None]] = field(default_factory=list)
    other_names: tuple[str, ...] = ()
    folder: str = ""
    subset: str = ""
    fractions: bool = False

    def lose(self, kind: str, place: str, name: str | None = None, region: Sequence[float] | None = None) -> None:
        """Count an object that cannot be used; its class and the box around it, where they are known."""
        self.problems.append((kind, place))
        self.lost.append((name, region))


@dataclass
class ToolFile:
    """What a reader made of a file or a folder.

    Attributes:
        images: in the order of the file; one image may occur several times.
        classes: in the order of the labels, if the file states them.
        files: absolute paths of the files that were read.
        image_folders: absolute; where the tool puts images, the likeliest first.
        problems: (kind of `PROBLEMS`, place) of what belongs to no image.
    """

    images: list[ToolImage]
    classes: list[str] | None = None
    files: list[str] = field(default_factory=list)
    image_folders: list[str] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)


def as_numbers(values: Iterable[object]) -> list[float] | None:
    """Numbers, or texts of numbers, as finite floats; None if one of them is none."""
    numbers = []
    for value in values:
        try:
            number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
        except ValueError:
            return None
        if not math.isfinite(number) or abs(number) > 1e12:
            return None
        numbers.append(number)
    return numbers


def class_name(value: object) -> str | None:
    """The name of a class as text; None if there is none."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return None
    return clean_name(str(value)) or None


def free_name(name: str, key: object, taken: Container[str]) -> str:
    """A class name unlike all that are taken: with its id in brackets behind it, as often as needed."""
    while name in taken:
        name += f" ({key})"
    return name


def tell_apart(classes: Sequence[tuple[_Id, str]]) -> list[tuple[_Id, str]]:
    """Classes (id, name) with the id behind each name that several have, so that all names differ."""
    used = Counter(name for _, name in classes)
    taken = set(used)
    told = []
    for key, name in classes:
        if used[name] > 1:
            name = free_name(name, key, taken)
            taken.add(name)
        told.append((key, name))
    return told


def extent(outlines: Iterable[Sequence[float]]) -> tuple[float, float, float, float] | None:
    """xyxy around outlines (x, y, x, y, ...); None if they hold no point."""
    points = [list(outline) for outline in outlines if len(outline) >= 2]
    if not points:
        return None
    x = [value for outline in points for value in outline[0::2]]
    y = [value for outline in points for value in outline[1::2]]
    return min(x), min(y), max(x), max(y)


def fills_box(outline: Sequence[float], box: Sequence[float]) -> bool:
    """Whether a quadrilateral is a box that was not turned: its area is that of the box (xyxy) around it."""
    x, y = outline[0::2], outline[1::2]
    area = abs(sum(x[i - 1] * y[i] - x[i] * y[i - 1] for i in range(len(x)))) / 2
    return area > 0.999 * (box[2] - box[0]) * (box[3] - box[1])


def rotated_outline(box: Sequence[float], degrees: float, pivot: tuple[float, float]) -> list[float]:
    """The corners of a box (xyxy, pixels) that was turned clockwise, as seen on the screen, around a point."""
    x1, y1, x2, y2 = box
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    outline = []
    for x, y in ((x1, y1), (x2, y1), (x2, y2), (x1, y2)):
        x, y = x - pivot[0], y - pivot[1]
        outline += [pivot[0] + x * cosine - y * sine, pivot[1] + x * sine + y * cosine]
    return outline


def ellipse_outline(centre: tuple[float, float], radii: tuple[float, float], degrees: float = 0.0) -> list[float]:
    """36 points on an ellipse that was turned clockwise, as seen on the screen, around its centre; pixels."""
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    outline = []
    for step in range(36):
        x, y = radii[0] * math.cos(step * math.pi / 18), radii[1] * math.sin(step * math.pi / 18)
        outline += [centre[0] + x * cosine - y * sine, centre[1] + x * sine + y * cosine]
    return outline


def is_inside(window: Window, size: tuple[int, int]) -> bool:
    """Whether a window lies in an image of (height, width), so that it can be painted."""
    return all(0 <= part.start <= part.stop <= side for part, side in zip(window, size))


def window_rle(mask: np.ndarray, window: Window, size: tuple[int, int], num_characters: int) -> Rle | None:
    """Run lengths of a mask that is empty outside a window.

    Args:
        mask: (rows, columns) bool, the window.
        window: inside the image.
        size: (height, width) of the image.
        num_characters: of the text that states the mask.

    Returns:
        None if it has far more run lengths than its text can mean.
    """
    num_runs = np.count_nonzero(mask[1:] != mask[:-1]) + 2 * mask.shape[1]
    if num_runs > max(_MOST_RUNS, _RUNS_PER_CHARACTER * num_characters):
        return None
    return encode_window(mask, window, size)


def parse_xml(path: str) -> ElementTree.Element:
    """The top element of an xml file.

    Raises:
        ValueError: not xml, not complete, or with entities.
    """
    data = read_bytes(path)
    try:
        root = SafeElementTree.parse(BytesIO(data)).getroot()
    except (ElementTree.ParseError, DefusedXmlException, LookupError, ValueError) as error:
        raise ValueError(f"{path} is no valid xml: {error}") from error
    if root is None:
        raise ValueError(f"{path} is no valid xml: it holds no element")
    return root


def names_of_split(split: str) -> tuple[str, ...]:
    """What the folders and files of a split are called, the one asked for first: "val" is also "valid"."""
    others = next((names for names in SPLIT_NAMES.values() if split.lower() in names), ())
    return tuple(dict.fromkeys((split, *others)))


def folder_of_split(path: str, split: str) -> str | None:
    """The folder of a split in `path`: of the name asked for, else of another one of the split; None if not there."""
    folders = (f"{path}/{name}" for name in names_of_split(split))
    return next((folder for folder in folders if os.path.isdir(fs_path(folder))), None)


def find_files(
    path: str,
    suffixes: Sequence[str],
    looks_like: Callable[[str], bool],
    split: str | None = None,
    *,
    deep: bool = False,
    every: bool = False,
) -> list[str]:
    """The files of a format: the file itself, those in a folder, or else those in the folders in it.

    Some files of each folder are looked at. If one of them is of the format, all files are.

    Args:
        path: absolute, forward slashes.
        suffixes: lower case.
        looks_like: whether a file is of the format.
        split: only the files that have this name, or whose folder has it; None: all.
        deep: those in all folders below, too.
        every: where one file is of the format, all of these suffixes, for a reader that tells the others itself.

    Returns:
        Absolute paths, sorted.
    """
    if os.path.isfile(fs_path(path)):
        return [path]
    if not os.path.isdir(fs_path(path)):
        return []
    inner = [] if deep else sorted(f"{path}/{item.name}" for item in os.scandir(fs_path(path)) if item.is_dir())
    found: list[str] = []
    for folders in ([path], inner):
        names = [f"{folder}/{name}" for folder in folders for name in walk_files(folder, suffixes, deep=deep)]
        if _has_one(names, looks_like):
            found = [name for name in names if every or looks_like(name)]
            break
    if split is None:
        return found
    wanted = names_of_split(split)
    # The files of a deep tree are often one an image, whose own name says nothing of its split.
    in_folder = [file for file in found if deep and not set(wanted).isdisjoint(folder_below(path, file).split("/"))]
    return in_folder or [file for file in found if is_of_split(file[len(path) + 1 :], wanted)]


def _has_one(files: Iterable[str], looks_like: Callable[[str], bool]) -> bool:
    """Whether one of the first files of some folder is of a format."""
    looks: Counter[str] = Counter()
    for file in files:
        folder = os.path.dirname(file)
        looks[folder] += 1
        if looks[folder] <= MAX_LOOKS and looks_like(file):
            return True
    return False


def is_of_split(name: str, wanted: Sequence[str]) -> bool:
    """Whether one of the names of a split (`names_of_split`) is a word of a file name or of its folders."""
    words = name.lower().replace("-", "_").replace("/", "_").replace(".", "_").split("_")
    return any(split.lower() in words for split in wanted)


def folder_below(path: str, file: str) -> str:
    """The folder of a file below `path` (a folder, or the file itself): "" for that folder."""
    return "" if path == file else os.path.dirname(file[len(path) + 1 :])


def read_label_files(
    path: str, found: str | None, missing: str, read_image: Callable[[str, str], ToolImage]
) -> tuple[str, ToolFile]:
    """The images of a folder with one txt file per image, or of one such file.

    Args:
        path: what was passed.
        found: the folder of the txt files; None: there is none. Not needed if `path` is a file.
        missing: the error where there is none.
        read_image: of (path, name) of a txt file; raises ValueError if it cannot be read, which is counted.

    Returns:
        The folder of the files, and what was read.

    Raises:
        FileNotFoundError: no label files there.
    """
    if os.path.isfile(fs_path(path)):
        folder, names = os.path.dirname(path), [os.path.basename(path)]
    elif found is None:
        raise FileNotFoundError(missing)
    else:
        folder, names = found, list(walk_files(found, (".txt",), deep=False))
    images, problems = [], []
    for name in names:
        try:
            images.append(read_image(f"{folder}/{name}", name))
        except ValueError as error:
            problems.append(("unreadable_annotation", f"{name}: {error}"))
    files = [f"{folder}/{name}" for name in names]
    return folder, ToolFile(images, None, files, places_of_images(folder), problems)


def places_of_images(path: str) -> list[str]:
    """The folders where images of an annotation file or folder usually lie: beside it, or in one of a usual name."""
    base = path if os.path.isdir(fs_path(path)) else os.path.dirname(path)
    above = os.path.dirname(base)
    folders = [base, *(f"{base}/{name}" for name in _IMAGE_FOLDERS), *(f"{above}/{name}" for name in _IMAGE_FOLDERS)]
    return [folder for folder in folders if os.path.isdir(fs_path(folder))]
