"""BDD100K and Scalabel json: one list for all images, or one json per image.

    [{"name": "a.jpg", "labels": [{"category": "car", "box2d": {"x1": 10, "y1": 8, "x2": 29, "y2": 23}}]}]
    {"name": "a", "frames": [{"objects": [{"category": "car", "box2d": {...}}]}]}        labels/100k/train/a.json
    {"frames": [...as the list...], "config": {"imageSize": {...}, "categories": [...]}}

Objects with a box, with a closed outline (poly2d) or with run lengths (rle) are read; lanes and other open lines are
counted.

x2 and y2 of a box are its last pixel, so its width is x2 - x1 + 1 (the data set's "Label Format", Scalabel's
`box2d_to_bbox`). In the files of 2018, one an image with "objects" in the place of "labels", they are its end: the
data set's own tools of that time take x2 - x1.
"""

import os

from lpg_hf._files import fs_path
from lpg_hf.data._formats.json_files import json_contents, json_sample
from lpg_hf.data._formats.tool_image import (
    ToolFile,
    ToolImage,
    ToolObject,
    class_name,
    find_files,
    folder_below,
    places_of_images,
)
from lpg_hf.data.records import finite_numbers, stated_size


_OBJECT_KEYS = ("labels", "objects")
_SHAPES = ("box2d", "poly2d", "rle")
_FRAME_KEYS = (*_OBJECT_KEYS, "timestamp")


def _looks_like_frame(frame: object) -> bool:
    if not isinstance(frame, dict):
        return False
    objects = next((frame[key] for key in _OBJECT_KEYS if isinstance(frame.get(key), list)), [])
    return any(isinstance(item, dict) and "category" in item and any(s in item for s in _SHAPES) for item in objects)


def _may_be_frames(content: dict | list) -> bool:
    """Whether a file may be of the tool, though none of its images has an object."""
    if isinstance(content, dict):
        return isinstance(content.get("frames"), list)
    return any(isinstance(frame, dict) and not set(frame).isdisjoint(_FRAME_KEYS) for frame in content)


def looks_like(path: str) -> bool:
    """Whether a json file holds objects with box2d, poly2d or rle."""
    content = json_sample(path) if path.lower().endswith(".json") else None
    frames = content.get("frames") if isinstance(content, dict) else content
    return isinstance(frames, list) and any(_looks_like_frame(frame) for frame in frames)


def read(path: str, split: str | None = None) -> ToolFile:
    """The images of a json file, of those of a folder, or of a folder with one json per image.

    Raises:
        ValueError: the only file is not valid json.
    """
    found = find_files(path, (".json",), looks_like, split, deep=True, every=True)
    images: list[ToolImage] = []
    files: list[str] = []
    problems: list[tuple[str, str]] = []
    classes: dict[str, None] = {}
    for file, content in json_contents(found, _may_be_frames, problems):
        files.append(file)
        frames, config = content, {}
        if isinstance(content, dict):
            frames, config = content.get("frames"), content.get("config")
        size = _image_size(config)
        classes.update(dict.fromkeys(_categories(config)))
        for number, frame in enumerate(frames if isinstance(frames, list) else [], start=1):
            place = f"{os.path.basename(file)}: frame {number}"
            stated = frame.get("name") if isinstance(frame, dict) else None
            name = stated or (content.get("name") if isinstance(content, dict) else None)
            if not isinstance(frame, dict) or not isinstance(name, str):
                problems.append(("invalid_image_entry", place))
                continue
            images.append(_read_frame(frame, name, size, folder_below(path, file)))
    return ToolFile(images, list(classes) or None, files, [*_official_places(path), *places_of_images(path)], problems)


def _image_size(config: object) -> tuple[int, int] | None:
    size = config.get("imageSize") if isinstance(config, dict) else None
    return stated_size(size.get("height"), size.get("width")) if isinstance(size, dict) else None


def _categories(config: object) -> list[str]:
    """The leaves of the tree of categories in a Scalabel config."""
    listed = config.get("categories") if isinstance(config, dict) else None
    names = []
    for item in listed if isinstance(listed, list) else []:
        inner = _categories({"categories": item.get("subcategories")}) if isinstance(item, dict) else []
        name = class_name(item.get("name")) if isinstance(item, dict) else None
        names += inner or ([name] if name else [])
    return names


def _official_places(path: str) -> list[str]:
    """images/100k/train for labels/100k/train (or labels/det_20)."""
    parts = path.split("/")
    if "labels" not in parts:
        return []
    at = len(parts) - 1 - parts[::-1].index("labels")
    folder = "/".join([*parts[:at], "images", *parts[at + 1 :]])
    return [place for place in (folder, "/".join([*parts[:at], "images"])) if os.path.isdir(fs_path(place))]


def _read_frame(frame: dict, name: str, size: tuple[int, int] | None, folder: str) -> ToolImage:
    image = ToolImage(name, name, _image_size({"imageSize": frame.get("size")}) or size, folder=folder)
    key = next((key for key in _OBJECT_KEYS if isinstance(frame.get(key), list)), None)
    last = 0 if key == "objects" else 1  # The last pixel, to its end.
    for number, item in enumerate(frame[key] if key is not None else [], start=1):
        place = f"{name}: label {number}"
        if not isinstance(item, dict):
            image.lose("invalid_annotation", place)
            continue
        attributes = item.get("attributes")
        crowd = isinstance(attributes, dict) and attributes.get("crowd") is True
        made = ToolObject(class_name(item.get("category")), place, iscrowd=crowd)
        box = item.get("box2d")
        if isinstance(box, dict):
            corners = finite_numbers([box.get(corner) for corner in ("x1", "y1", "x2", "y2")], 4)
            if corners is None:
                image.lose("invalid_box", f"{place} {box}"[:200], made.name)
                continue
            made.box = (*corners[:2], corners[2] + last, corners[3] + last)
        made.outlines = _outlines(item.get("poly2d"))
        made.rle = item["rle"] if isinstance(item.get("rle"), dict) else None
        if made.box is None and not made.outlines and made.rle is None:
            image.lose("unsupported_shape", f"{place} ({made.name}) has neither a box nor a closed outline", made.name)
        else:
            image.objects.append(made)
    return image


def _outlines(polygons: object) -> list[list[float]]:
    """The closed outlines of "poly2d" as x, y, x, y, ...; vertices of curves are taken as corners."""
    outlines = []
    for polygon in polygons if isinstance(polygons, list) else []:
        vertices = polygon.get("vertices") if isinstance(polygon, dict) and polygon.get("closed") else None
        pairs = [finite_numbers(point, 2) for point in vertices] if isinstance(vertices, list) else []
        if len(pairs) >= 3 and None not in pairs:
            outlines.append([number for pair in pairs if pair for number in pair])
    return outlines
