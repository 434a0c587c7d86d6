"""Boxes in a table: CSV with named columns, one box a line.

    ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,...   Open Images (fractions; no suffix)
    filename,width,height,class,xmin,ymin,xmax,ymax               TensorFlow Object Detection, Roboflow
    image_path,xmin,ymin,xmax,ymax,label                          DeepForest
    label_name,bbox_x,bbox_y,bbox_width,bbox_height,image_name,image_width,image_height    makesense.ai
    Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId      GTSRB (traffic signs)
    path/a.jpg,10,8,30,24,cat                                     RetinaNet, without a line of names
    a.jpg,10,8,30,24,object,60,40                                 SKU-110K: with the image's width and height

Columns are found by name, in any order and case; separators are comma, semicolon and tab. Numbers are fractions if
none of the file is above 1, else pixels. A line whose box is empty, or 0,0,0,0, stands for an image without objects.

Open Images' classes are ids (/m/01g317); a file *class-descriptions*.csv (id,name) in the folder or beside the table
gives them names, or metadata/classes.csv (FiftyOne) there or in the folder above. The classes of a RetinaNet table are
those of classes.csv (name,number from 0) beside it, in the order of their numbers.
"""

import csv
import os
import re
from collections.abc import Iterator, Sequence
from io import StringIO

from lpg_hf._files import fs_path, read_head, read_text, walk_files
from lpg_hf.data._formats.tool_image import (
    ToolFile,
    ToolImage,
    ToolObject,
    as_numbers,
    class_name,
    find_files,
    folder_below,
    places_of_images,
)
from lpg_hf.data.records import stated_size


_SUFFIXES = (".csv", ".tsv")
# What a column is -> its names, in lower case with letters and digits only; the first that is there counts.
_COLUMNS = {
    "image": (
        "imageid",
        "filename",
        "imagepath",
        "imagename",
        "imagefilename",
        "imagefile",
        "filepath",
        "image",
        "path",
    ),
    "class": (
        "labelname",
        "classname",
        "class",
        "label",
        "category",
        "categoryname",
        "classid",
        "categoryid",
        "labelid",
    ),
    "x1": ("xmin", "x1", "left", "bboxxmin", "xtl", "roix1"),
    "y1": ("ymin", "y1", "top", "bboxymin", "ytl", "roiy1"),
    "x2": ("xmax", "x2", "right", "bboxxmax", "xbr", "roix2"),
    "y2": ("ymax", "y2", "bottom", "bboxymax", "ybr", "roiy2"),
    "x": ("bboxx", "x"),
    "y": ("bboxy", "y"),
    "w": ("bboxwidth", "bboxw", "w"),
    "h": ("bboxheight", "bboxh", "h"),
    "width": ("imagewidth", "imgwidth", "width"),
    "height": ("imageheight", "imgheight", "height"),
    "group": ("isgroupof",),
}
_CORNERS = ("x1", "y1", "x2", "y2")
_CORNER_AND_SIZE = ("x", "y", "w", "h")
_RETINANET = {"image": 0, "x1": 1, "y1": 2, "x2": 3, "y2": 4, "class": 5}
_SKU110K = _RETINANET | {"width": 6, "height": 7}


def _separator(line: str) -> str:
    return max(",;\t", key=line.count)


def _columns(line: str) -> dict[str, int] | None:
    """What each column of a table is, by its first line; None if the line names no image and box."""
    words = [word.strip('"') for word in line.split(_separator(line))]
    names = [re.sub(r"[^a-z0-9]", "", word.lower()) for word in words]
    columns = {}
    for key, choices in _COLUMNS.items():
        position = next((names.index(choice) for choice in choices if choice in names), None)
        if position is not None:
            columns[key] = position
    if "w" not in columns and _has(columns, ("x", "y")) and not _has(columns, _CORNERS):
        columns |= {key[0]: names.index(key) for key in ("width", "height") if key in names}
        for key in ("width", "height"):  # The image's, only where they have columns of their own.
            if columns.get(key) == columns.get(key[0]):
                columns.pop(key, None)
    if "image" in columns and (_has(columns, _CORNERS) or _has(columns, _CORNER_AND_SIZE)):
        return columns
    if len(words) == 6 and words[0] and (as_numbers(words[1:5]) or not any(words[1:])):
        return _RETINANET
    if len(words) == 8 and words[0] and as_numbers([*words[1:5], *words[6:]]):
        return _SKU110K
    return None


def _has(columns: dict[str, int], keys: Sequence[str]) -> bool:
    return all(key in columns for key in keys)


def looks_like(path: str) -> bool:
    """Whether the first line of a file names the columns of images and boxes, or is one of RetinaNet or SKU-110K."""
    if not path.lower().endswith(_SUFFIXES):
        return False
    return _columns(read_head(path, 10_000).partition("\n")[0].strip()) is not None


def read(path: str, split: str | None = None) -> ToolFile:
    """The images of a file, or of the files of a folder, with their boxes.

    Raises:
        ValueError: no text.
    """
    files = find_files(path, _SUFFIXES, looks_like, split)
    images: dict[str, ToolImage] = {}
    problems: list[tuple[str, str]] = []
    for file in files:
        _read_file(file, folder_below(path, file), images, problems)
    values = [value for image in images.values() for item in image.objects for value in item.box or ()]
    fractions = bool(values) and max(values) <= 1
    names, used = _class_descriptions(path, files)
    classes = _class_list(path, used, problems) if any(_is_retinanet(file) for file in files) else None
    for image in images.values():
        image.fractions = fractions
        image.objects = [item for item in image.objects if any(item.box or ())]
        for item in image.objects:
            item.name = class_name(names.get(item.name or "", item.name))
    return ToolFile(list(images.values()), classes, [*files, *used], places_of_images(path), problems)


def _read_file(file: str, folder: str, images: dict[str, ToolImage], problems: list[tuple[str, str]]) -> None:
    text = read_text(file)
    first = text.split("\n", 1)[0].strip()
    columns = _columns(first) or {}
    base = os.path.basename(file)
    for number, row in _rows(text, first, file, skip=columns is not _RETINANET and columns is not _SKU110K):
        place = f"{base}: line {number}"
        cells = {key: row[column].strip() if column < len(row) else "" for key, column in columns.items()}
        if not cells["image"]:
            problems.append(("invalid_annotation", f"{place} names no image"))
            continue
        key = f"{folder}/{cells['image']}"
        image = images.setdefault(key, ToolImage(cells["image"], base, folder=folder))
        image.size = image.size or stated_size(cells.get("height"), cells.get("width"))
        keys = _CORNERS if _has(columns, _CORNERS) else _CORNER_AND_SIZE
        if not any(cells[key] for key in keys):
            continue
        numbers = as_numbers(cells[key] for key in keys)
        if numbers is None:
            image.lose("invalid_box", f"{place} {[cells[key] for key in keys]}"[:200])
            continue
        if keys is _CORNER_AND_SIZE:
            numbers = [numbers[0], numbers[1], numbers[0] + numbers[2], numbers[1] + numbers[3]]
        image.objects.append(
            ToolObject(class_name(cells.get("class")), place, numbers, iscrowd=cells.get("group") in ("1", "True"))
        )


def _rows(text: str, first: str, file: str, skip: bool) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of the lines that hold something; `skip`: without the line of names.

    Raises:
        ValueError: a cell without an end.
    """
    reader = csv.reader(StringIO(text), delimiter=_separator(first))
    try:
        for row in reader:
            if any(cell.strip() for cell in row) and not (skip and reader.line_num == 1):
                yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"{file} is not a valid table: {error} at line {reader.line_num}") from error


def _class_descriptions(path: str, tables: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Names by class id, of Open Images' list in the folder or beside a table, and the file they are from."""
    places = [path] if os.path.isdir(fs_path(path)) else []
    folders = list(dict.fromkeys([*places, *map(os.path.dirname, tables)]))
    files = (f"{folder}/{name}" for folder in folders for name in walk_files(folder, (".csv",), deep=False))
    lists = [file for file in files if "class-descriptions" in os.path.basename(file)]  # "oidv7-" may stand before it.
    lists += [f"{place}/metadata/classes.csv" for folder in folders for place in (folder, os.path.dirname(folder))]
    found = next((file for file in lists if os.path.isfile(fs_path(file))), None)
    if found is None:
        return {}, []
    lines = (line.split(",", 1) for line in read_text(found).splitlines() if "," in line)
    return {key.strip(): value.strip().strip('"') for key, value in lines}, [found]


def _is_retinanet(file: str) -> bool:
    return _columns(read_head(file, 10_000).partition("\n")[0].strip()) is _RETINANET


def _class_list(path: str, used: list[str], problems: list[tuple[str, str]]) -> list[str] | None:
    """The classes of keras-retinanet's classes.csv in the order of their numbers; None: none can be used.

    Args:
        path: of the table, or its folder.
        used: takes the file.
        problems: takes what is wrong with it.
    """
    file = f"{path if os.path.isdir(fs_path(path)) else os.path.dirname(path)}/classes.csv"
    if not os.path.isfile(fs_path(file)):
        return None
    try:
        rows = [row for _, row in _rows(read_text(file), ",", file, skip=False)]
        numbered = {int(row[1]): class_name(row[0]) for row in rows if len(row) == 2}
        names = [name for _, name in sorted(numbered.items()) if name is not None]
        if sorted(numbered) != list(range(len(rows))) or len(set(names)) != len(rows):
            raise ValueError("its lines are not a name and a number each, from 0 and all different")
    except ValueError as error:
        problems.append(("unreadable_class_list", f"{os.path.basename(file)}: {error}"))
        return None
    used.append(file)
    return names
