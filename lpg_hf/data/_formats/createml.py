"""Apple's CreateML json: one list for all images, boxes by centre and size in pixels.

A file is `[{"image": "a.png", "annotations": [{"label": "red", "coordinates": {"x": 20, "y": 16, "width": 20,
"height": 16}}]}]`; x and y are the centre of the box.
"""

import os

from lpg_hf.data._formats.json_files import json_content, json_sample
from lpg_hf.data._formats.tool_image import (
    ToolFile,
    ToolImage,
    ToolObject,
    class_name,
    find_files,
    folder_below,
    places_of_images,
)
from lpg_hf.data.records import finite_numbers


_IMAGE_KEYS = ("image", "imagefilename", "filename")
_LIST_KEYS = ("annotations", "annotation")


def _first(entry: dict, keys: tuple[str, ...]) -> object:
    return next((entry[key] for key in keys if key in entry), None)


def looks_like(path: str) -> bool:
    """Whether a json file is a list of images whose annotations have "coordinates"."""
    content = json_sample(path) if path.lower().endswith(".json") else None
    entries = content if isinstance(content, list) else []
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(_first(entry, _IMAGE_KEYS), str):
            return False
        annotations = _first(entry, _LIST_KEYS)
        if not isinstance(annotations, list):
            return False
        if annotations:
            return isinstance(annotations[0], dict) and "coordinates" in annotations[0]
    return False


def read(path: str, split: str | None = None) -> ToolFile:
    """The images of a json file, or of those of a folder and of its folders (train, valid, test).

    Raises:
        ValueError: not valid json.
    """
    images, problems = [], []
    files = find_files(path, (".json",), looks_like, split)
    for file in files:
        base = os.path.basename(file)
        for number, entry in enumerate(json_content(file), start=1):
            name = _first(entry, _IMAGE_KEYS) if isinstance(entry, dict) else None
            annotations = _first(entry, _LIST_KEYS) if isinstance(entry, dict) else None
            if not isinstance(name, str) or not isinstance(annotations, list):
                problems.append(("invalid_image_entry", f"{base}: image number {number}"))
                continue
            image = ToolImage(name, base, folder=folder_below(path, file))
            for position, item in enumerate(annotations, start=1):
                _read_object(item, f"{base}: {name}: annotation {position}", image)
            images.append(image)
    return ToolFile(images, None, files, places_of_images(path), problems)


def _read_object(item: object, place: str, image: ToolImage) -> None:
    box = item.get("coordinates") if isinstance(item, dict) else None
    keys = ("x", "y", "width", "height")
    numbers = finite_numbers([box.get(key) for key in keys], 4) if isinstance(box, dict) else None
    if not isinstance(item, dict) or numbers is None:
        name = class_name(item.get("label")) if isinstance(item, dict) else None
        image.lose("invalid_box", f"{place} {box}"[:200], name)
        return
    x, y, width, height = numbers
    corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    image.objects.append(ToolObject(class_name(item.get("label")), place, corners))
