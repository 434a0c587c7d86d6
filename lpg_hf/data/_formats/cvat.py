"""CVAT for images 1.1: one xml for all images, which lie in images/ beside it.

    <annotations><version>1.1</version><meta>...<labels><label><name>red</name></label></labels></meta>
      <image id="0" name="a.png" width="60" height="40">
        <box label="red" xtl="10.00" ytl="8.00" xbr="30.00" ybr="24.00" rotation="0.0"/>
        <polygon label="red" points="1.0,2.0;3.0,4.0;..."/>
      </image></annotations>

A box is a box, a rotated one the box around it; polygons, ellipses (36 corners) and masks are boxes and masks. Points,
polylines, cuboids and skeletons have no area and are counted; the box around them is ignored, but for a skeleton,
whose object is larger, the whole image is left out. Tags are of the image and are not read.

The images of a project have a subset="Train", which is their split, and lie in images/Train/.
"""

import math
import os
from functools import partial
from xml.etree import ElementTree

import numpy as np

from lpg_hf._files import read_head
from lpg_hf._rle import Rle
from lpg_hf.data._formats.tool_image import (
    ToolFile,
    ToolImage,
    ToolObject,
    as_numbers,
    class_name,
    ellipse_outline,
    extent,
    find_files,
    folder_below,
    is_inside,
    names_of_split,
    parse_xml,
    places_of_images,
    rotated_outline,
    window_rle,
)
from lpg_hf.data.records import stated_size


def looks_like(path: str) -> bool:
    """Whether the top element of an xml file is `<annotations>` and it lists images."""
    if not path.lower().endswith(".xml"):
        return False
    head = read_head(path)
    return "<annotations" in head and ("<image " in head or "<version>1.1" in head) and "<track " not in head


def read(path: str, split: str | None = None) -> ToolFile:
    """The images of an xml file, or of those of a folder; `split` is in a file's name, else the subset of images.

    Raises:
        ValueError: not valid xml.
    """
    images, problems, names = [], [], {}
    files = find_files(path, (".xml",), looks_like, split)
    by_subset = split is not None and files in ([], [path])  # No file's name says it: the images themselves may.
    files = find_files(path, (".xml",), looks_like) if by_subset else files
    for file in files:
        root = parse_xml(file)
        base = os.path.basename(file)
        names.update(dict.fromkeys(_class_names(root)))
        for number, element in enumerate(root.iter("image"), start=1):
            if not element.get("name"):
                problems.append(("invalid_image_entry", f"{base}: image number {number}"))
                continue
            images.append(_read_image(element, base, folder_below(path, file)))
    if split is not None and by_subset and (files != [path] or any(image.subset for image in images)):
        images = [image for image in images if image.subset.lower() in names_of_split(split)]
        problems = problems if images else []
    return ToolFile(images, list(names) or None, files, places_of_images(path), problems)


def _class_names(root: ElementTree.Element) -> list[str]:
    """The labels of a task, job or project; the parts of a skeleton are none."""
    names = []
    for labels in root.iter("labels"):
        for label in labels.findall("label"):
            name = class_name(label.findtext("name"))
            if name is not None and label.find("parent") is None:
                names.append(name)
    return names


def _read_image(element: ElementTree.Element, base: str, folder: str) -> ToolImage:
    file_name = element.get("name") or ""
    subset = element.get("subset") or ""
    size = stated_size(element.get("height"), element.get("width"))
    image = ToolImage(file_name, base, size, folder=folder or subset, subset=subset)
    for number, shape in enumerate((child for child in element if child.tag != "tag"), start=1):
        place, name = f"{base}: {file_name}: object {number}", class_name(shape.get("label"))
        if shape.tag not in _SHAPES:
            image.lose("unsupported_shape", f"{place} is a {shape.tag}", name, _region(shape))
            continue
        made = ToolObject(name, place)
        if _SHAPES[shape.tag](shape, made, image):
            image.objects.append(made)
        else:
            image.lose("invalid_annotation", f"{place} is a {shape.tag} whose numbers cannot be used", name)
    return image


def _region(shape: ElementTree.Element) -> tuple[float, float, float, float] | None:
    """The box around points, a line or a cuboid; None: not known, as a skeleton ends inside its object."""
    corners = _numbers(shape, *_CUBOID) if shape.tag == "cuboid" else None
    points = corners or as_numbers((shape.get("points") or "").replace(";", ",").split(",")) or []
    return extent([points]) if len(points) % 2 == 0 else None


def _numbers(shape: ElementTree.Element, *keys: str) -> list[float] | None:
    return as_numbers(shape.get(key) for key in keys)


def _box(shape: ElementTree.Element, made: ToolObject, image: ToolImage) -> bool:
    box = _numbers(shape, "xtl", "ytl", "xbr", "ybr")
    turn = as_numbers([shape.get("rotation", "0")])
    if box is None or turn is None:
        return False
    if turn[0] % 360:
        centre = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        made.outlines, made.is_region = [rotated_outline(box, turn[0], centre)], True
    else:
        made.box = box
    return True


def _polygon(shape: ElementTree.Element, made: ToolObject, image: ToolImage) -> bool:
    numbers = as_numbers((shape.get("points") or "").replace(";", ",").split(","))
    if numbers is None or len(numbers) < 6 or len(numbers) % 2:
        return False
    made.outlines = [numbers]
    return True


def _ellipse(shape: ElementTree.Element, made: ToolObject, image: ToolImage) -> bool:
    numbers, turn = _numbers(shape, "cx", "cy", "rx", "ry"), as_numbers([shape.get("rotation", "0")])
    if numbers is None or turn is None:
        return False
    x, y, radius_x, radius_y = numbers
    made.outlines = [ellipse_outline((x, y), (radius_x, radius_y), turn[0])]
    sine, cosine = math.sin(math.radians(turn[0])), math.cos(math.radians(turn[0]))
    half = math.hypot(radius_x * cosine, radius_y * sine), math.hypot(radius_x * sine, radius_y * cosine)
    made.box = x - half[0], y - half[1], x + half[0], y + half[1]
    return True


def _mask(shape: ElementTree.Element, made: ToolObject, image: ToolImage) -> bool:
    """Run lengths, row by row and background first, of the window left, top, width, height."""
    window = _numbers(shape, "left", "top", "width", "height")
    if window is None or min(window) < 0:
        return False
    left, top, width, height = (int(value) for value in window)
    made.box = (left, top, left + width, top + height)
    made.mask = partial(_rle_of_runs, shape.get("rle") or "", left, top, width, height)
    return True


def _rle_of_runs(text: str, left: int, top: int, width: int, height: int, size: tuple[int, int]) -> Rle | None:
    window, runs = (slice(top, top + height), slice(left, left + width)), as_numbers(text.split(","))
    if not is_inside(window, size) or not runs or sum(runs) != width * height:
        return None
    if any(run < 0 or not run.is_integer() for run in runs):
        return None
    values = np.repeat(np.arange(len(runs)) % 2 == 1, np.asarray(runs, dtype=np.int64))
    return window_rle(values.reshape(height, width), window, size, len(text))


# The corners of a cuboid's front and back: top or bottom, left or right.
_CUBOID = [f"{axis}{corner}{face}" for face in "12" for corner in ("tl", "bl", "tr", "br") for axis in "xy"]
_SHAPES = {"box": _box, "polygon": _polygon, "ellipse": _ellipse, "mask": _mask}
