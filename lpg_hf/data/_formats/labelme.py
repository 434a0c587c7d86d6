"""LabelMe, AnyLabeling and X-AnyLabeling (one json beside each image) <-> records.

    {"imagePath": "a.png", "imageHeight": 40, "imageWidth": 60,
     "shapes": [{"label": "red", "shape_type": "rectangle", "points": [[10, 8], [30, 24]], "group_id": null}]}

A rectangle (two or four points) is a box, a polygon and a mask are a box and a mask, a circle is a box and a mask of
36 corners, a rotated box (X-AnyLabeling) is the box around it. Points and lines have no area and are counted.
Polygons, circles and masks of one label and one group_id are one object in several parts, with the box around all.
A shape "__ignore__" is a region in which nothing was labelled, as LabelMe's own tools make it 255: a crowd region of
no class.
"""

import base64
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from lpg_hf._files import fs_path, walk_files
from lpg_hf._rle import Rle, decode_window, mask_window
from lpg_hf.data._formats.coco_forms import rle_to_polygons
from lpg_hf.data._formats.json_files import json_content, json_sample
from lpg_hf.data._formats.rle import segmentation_to_rle
from lpg_hf.data._formats.tool_image import (
    ToolFile,
    ToolImage,
    ToolObject,
    class_name,
    ellipse_outline,
    extent,
    folder_of_split,
    is_inside,
    places_of_images,
    window_rle,
)
from lpg_hf.data.records import BoxObject, Geometry, Record, finite_numbers, stated_size
from lpg_hf.data.report import Report
from lpg_hf.images import ImageProblem, load_pixels, open_image


# Of LabelMe, whose files have these keys.
_WRITTEN_VERSION = "5.4.1"
_MaskMaker = Callable[[tuple[int, int]], Rle | None]  # As `ToolObject.mask`.
_IGNORED = "__ignore__"
# Shapes with an area.
_KINDS = ("rectangle", "polygon", "circle", "mask", "rotation", "quadrilateral")


def looks_like(path: str) -> bool:
    """Whether a json file holds "shapes" and names an image."""
    content = json_sample(path) if path.lower().endswith(".json") else None
    return _is_labelme(content)


def _is_labelme(content: object) -> bool:
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def read(path: str, split: str | None = None) -> ToolFile:
    """The images of a json file, or of all json files in and below a folder; `split` is a folder in it.

    Raises:
        FileNotFoundError: no such split.
        ValueError: the only file is not valid json.
    """
    folder = path if os.path.isdir(fs_path(path)) else None
    if folder is not None and split is not None:
        folder = folder_of_split(path, split)
        if folder is None:
            raise FileNotFoundError(f"no folder {split!r} in {path}. Pass split=None for every json file")
    if folder is None:
        image = _read_image(json_content(path), os.path.basename(path), "")
        return ToolFile([image], None, [path], places_of_images(path))
    images, files, problems = [], [], []
    for name in walk_files(folder, (".json",)):
        try:
            content = json_content(f"{folder}/{name}")
        except ValueError as error:
            problems.append(("unreadable_annotation", f"{name}: {error}"))
            continue
        if _is_labelme(content):  # Other json files of the folder are not the tool's.
            images.append(_read_image(content, name, os.path.dirname(name)))
            files.append(f"{folder}/{name}")
    return ToolFile(images, None, files, places_of_images(folder), problems)


def _read_image(content: dict | list, name: str, folder: str) -> ToolImage:
    if not isinstance(content, dict):
        raise ValueError(f"{name} is no LabelMe file: its top level is a list")
    size = stated_size(content.get("imageHeight"), content.get("imageWidth"))
    stated = content.get("imagePath")
    beside = os.path.splitext(os.path.basename(name))[0]
    image = ToolImage(str(stated) if stated else beside, name, size, other_names=(beside,), folder=folder)
    parts: list[list[ToolObject]] = []
    grouped: dict[tuple, list[ToolObject]] = {}
    for number, shape in enumerate(content.get("shapes") or [], start=1):
        place = f"{name}: shape {number}"
        made = _read_shape(shape, place, size, image)
        if made is None:
            continue
        group = shape.get("group_id")
        has_mask = (made.outlines or made.mask is not None) and not made.is_region
        if isinstance(group, (int, str)) and has_mask:
            same = grouped.setdefault((made.name, group), [])
            same.append(made)
            if len(same) == 1:
                parts.append(same)
        else:
            parts.append([made])
    image.objects = [_joined(same) for same in parts]
    return image


def _joined(parts: list[ToolObject]) -> ToolObject:
    """One object of several parts with outlines or masks."""
    first = parts[0]
    if len(parts) == 1:
        return first
    outlines = [outline for part in parts for outline in part.outlines]
    joined = replace(first, outlines=outlines, difficult=any(part.difficult for part in parts))
    boxes = [part.box for part in parts if part.box is not None]
    if boxes:
        joined.box = extent([*boxes, *(outline for part in parts if part.box is None for outline in part.outlines)])
    masks = [part.mask for part in parts if part.mask is not None]
    if masks:
        joined.mask = partial(_union, masks, outlines)
    return joined


def _union(masks: list[_MaskMaker], outlines: list[list[float]], size: tuple[int, int]) -> Rle | None:
    """The masks and outlines of an object as one mask; None if one of them cannot be used."""
    rles = [mask(size) for mask in masks]
    if outlines:
        report = Report()
        rles.append(segmentation_to_rle(outlines, Geometry(size), "", report))
        if report.counts:
            return None
    if any(rle is None for rle in rles):
        return None
    merged: Any = coco_mask.merge(rles)  # type: ignore[arg-type]
    return merged


def _read_shape(shape: object, place: str, size: tuple[int, int] | None, image: ToolImage) -> ToolObject | None:
    points = shape.get("points") if isinstance(shape, dict) else None
    pairs = [finite_numbers(point, 2) for point in points] if isinstance(points, list) else []
    if not isinstance(shape, dict) or not pairs or None in pairs:
        image.lose("invalid_annotation", f"{place} has no points")
        return None
    outline = [value for pair in pairs if pair for value in pair]
    kind = shape.get("shape_type") or "polygon"  # LabelMe before version 4 knew polygons only.
    difficult = shape.get("difficult") is True
    name = class_name(shape.get("label"))
    crowd = name == _IGNORED
    made = ToolObject(None if crowd else name, place, difficult=difficult, iscrowd=crowd)
    if kind == "rectangle" and len(pairs) in (2, 4):
        made.box = extent([outline])
    elif kind in ("rotation", "quadrilateral") and len(pairs) == 4:
        made.outlines, made.is_region = [outline], True
    elif kind == "circle" and len(pairs) == 2:
        x, y, edge_x, edge_y = outline
        radius = float(np.hypot(edge_x - x, edge_y - y))
        made.box = (x - radius, y - radius, x + radius, y + radius)
        made.outlines = [ellipse_outline((x, y), (radius, radius))]
    elif kind == "mask" and len(pairs) == 2:
        # From the first to the last pixel, both of which it covers.
        x, y = round(min(outline[0::2])), round(min(outline[1::2]))
        made.box = (float(x), float(y), max(outline[0::2]) + 1, max(outline[1::2]) + 1)
        made.mask = partial(_rle_of_png, shape.get("mask"), x, y)
    elif kind == "polygon" and len(pairs) >= 3:
        made.outlines = [outline]
    else:
        region = None if kind in _KINDS else extent([outline])  # Of too few points, the place is not known.
        image.lose("unsupported_shape", f"{place} is a {kind} of {len(pairs)} points", made.name, region)
        return None
    return made


def _rle_of_png(text: object, left: int, top: int, size: tuple[int, int]) -> Rle | None:
    """The mask of a window that is a PNG in base64."""
    if not isinstance(text, str):
        return None
    try:
        with open_image(BytesIO(base64.b64decode(text, validate=True)), "mask", size[0] * size[1]) as png:
            window = slice(top, top + png.height), slice(left, left + png.width)
            if not is_inside(window, size):
                return None
            load_pixels(png, "mask")
            mask = np.asarray(png.convert("L") if png.mode not in ("1", "L", "P") else png) != 0
    except (ValueError, ImageProblem):  # No base64, no image.
        return None
    return window_rle(mask, window, size, len(text))


def labelme_content(record: Record, classes: Sequence[str], image_path: str, simplify: float = 0.0) -> dict:
    """A record as the content of a LabelMe json.

    A mask is a polygon along the edges of its pixels; several parts are polygons of one group_id (the id of the
    object); a mask with a hole, which a polygon cannot show, is LabelMe's own kind of mask. An object without a mask
    is a rectangle.

    Args:
        record: crowd regions are skipped.
        classes: names in the order of the labels.
        image_path: of the image, relative to the folder of the json; forward slashes.
        simplify: pixels, see `mask_to_polygons`.
    """
    shapes = [shape for item in record.single_objects for shape in _shapes_of(item, classes[item.category], simplify)]
    return {
        "version": _WRITTEN_VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": record.height,
        "imageWidth": record.width,
    }


def _shapes_of(item: BoxObject, name: str, simplify: float) -> list[dict]:
    base = {"label": name, "points": [], "group_id": None, "description": "", "shape_type": "polygon", "flags": {}}
    polygons = rle_to_polygons(item.rle, simplify) if item.rle is not None else []
    x1, y1, x2, y2 = item.box
    if item.rle is None:
        return [{**base, "points": [[x1, y1], [x2, y2]], "shape_type": "rectangle"}]
    if len(polygons) == 1 and _has_a_hole(polygons[0]):
        return [{**base, **_mask_shape(item.rle)}]
    group = {"group_id": item.id if len(polygons) > 1 else None}
    return [{**base, **group, "points": [list(pair) for pair in zip(p[0::2], p[1::2])]} for p in polygons]


def _has_a_hole(polygon: list[float]) -> bool:
    """Whether the joined outline of a mask passes a point twice, as it does on its way to a hole."""
    points = list(zip(polygon[0::2], polygon[1::2]))
    return len(set(points)) < len(points)


def _mask_shape(rle: Rle) -> dict:
    """LabelMe's own mask: a PNG of the window from the first to the last pixel, both inclusive."""
    rows, columns = window = mask_window(rle)
    buffer = BytesIO()
    Image.fromarray(decode_window(rle, window).astype(bool)).save(buffer, "PNG")
    text = base64.b64encode(buffer.getvalue()).decode("ascii")
    points = [[float(columns.start), float(rows.start)], [float(columns.stop - 1), float(rows.stop - 1)]]
    return {"points": points, "shape_type": "mask", "mask": text}
