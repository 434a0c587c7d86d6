"""Label Studio's own json (JSON and JSON-MIN): a list of tasks, regions in percent of the image.

    [{"data": {"image": "/data/upload/1/0a1b2c3d-a.png"},
      "annotations": [{"result": [{"type": "rectanglelabels", "original_width": 60, "original_height": 40,
        "value": {"x": 16.7, "y": 20, "width": 33.3, "height": 40, "rotation": 0, "rectanglelabels": ["red"]}}]}]}]

A rectangle is a box, a rotated one (around its first corner) the box around it; a polygon and an ellipse are a box and
a mask. Brush masks are in an encoding of the tool's own and are counted, as key points are. Of a task that several
people have annotated the first annotation that was not cancelled is used, and the others are counted. The image is
looked for under its name in the file, and under the one before the upload (without "0a1b2c3d-").
"""

import os
import re

from lpg_hf.data._formats.image_finder import name_in_address
from lpg_hf.data._formats.json_files import json_content, json_sample
from lpg_hf.data._formats.tool_image import (
    ToolFile,
    ToolImage,
    ToolObject,
    class_name,
    ellipse_outline,
    find_files,
    folder_below,
    places_of_images,
    rotated_outline,
)
from lpg_hf.data.records import finite_numbers, stated_size


_IMAGE_KEYS = ("image", "img", "image_url", "url", "photo", "picture")
_TASK_KEYS = ("annotations", "completions", "predictions")
# Kinds of results that are no region: they are of the image, or of another region.
_NO_REGIONS = ("choices", "textarea", "rating", "number", "taxonomy", "datetime", "pairwise", "relation")


def looks_like(path: str) -> bool:
    """Whether a json file is a list of tasks, or of rows with regions in percent."""
    content = json_sample(path) if path.lower().endswith(".json") else None
    first = content[0] if isinstance(content, list) and content else None
    if not isinstance(first, dict):
        return False
    return (isinstance(first.get("data"), dict) and any(key in first for key in _TASK_KEYS)) or bool(_min_rows(first))


def _min_rows(task: dict) -> list[list]:
    """The lists of regions of a row of JSON-MIN, which have the names of the project's fields."""
    lists = [value for value in task.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
    return [value for value in lists if "original_width" in value[0]]


def read(path: str, split: str | None = None) -> ToolFile:
    """The images of a json file, or of those of a folder.

    Raises:
        ValueError: not valid json.
    """
    images, problems = [], []
    files = find_files(path, (".json",), looks_like, split)
    for file in files:
        base = os.path.basename(file)
        for number, task in enumerate(json_content(file), start=1):
            image = _read_task(task, f"{base}: task {number}", folder_below(path, file))
            if image is None:
                problems.append(("invalid_image_entry", f"{base}: task {number}"))
            else:
                images.append(image)
    return ToolFile(images, None, files, places_of_images(path), problems)


def _read_task(task: object, place: str, folder: str) -> ToolImage | None:
    data = task.get("data", task) if isinstance(task, dict) else None
    if not isinstance(task, dict) or not isinstance(data, dict):
        return None
    texts = [data.get(key) for key in _IMAGE_KEYS] + list(data.values())
    stated = next((text for text in texts if isinstance(text, str) and text.strip()), None)
    if stated is None:
        return None
    name = name_in_address(stated)
    shorter = re.sub(r"^[0-9a-f]{4,}-", "", os.path.basename(name))
    image = ToolImage(name, place, other_names=(shorter,), folder=folder, fractions=True)
    for number, item in enumerate(_results(task, image), start=1):
        _read_region(item, f"{place}: region {number}", image)
    return image


def _results(task: dict, image: ToolImage) -> list:
    made = next((task[key] for key in ("annotations", "completions") if isinstance(task.get(key), list)), None)
    if made is None:
        return [item for rows in _min_rows(task) for item in rows]
    valid = [item for item in made if isinstance(item, dict) and not item.get("was_cancelled")]
    valid = [item for item in valid if isinstance(item.get("result"), list)]
    for _ in valid[1:]:
        image.problems.append(("other_annotation", image.place))
    return valid[0]["result"] if valid else []


def _read_region(item: object, place: str, image: ToolImage) -> None:
    value = item.get("value", item) if isinstance(item, dict) else None
    if not isinstance(item, dict) or not isinstance(value, dict):
        image.lose("invalid_annotation", place)
        return
    kind = str(item.get("type") or next((key for key in value if key.endswith("labels")), ""))
    if kind in _NO_REGIONS or (kind == "labels" and "x" not in value and "points" not in value):
        return
    size = stated_size(item.get("original_height"), item.get("original_width"))
    image.size = image.size or size
    names = next((value[key] for key in value if key.endswith("labels") and isinstance(value[key], list)), None)
    made = ToolObject(class_name(names[0]) if names else None, place)
    kinds = {"rectangle": _rectangle, "polygon": _polygon, "ellipse": _ellipse}
    shape = kinds.get(kind.removesuffix("labels"))
    if shape is None and "points" not in value and finite_numbers([value.get(key) for key in ("width", "height")], 2):
        shape = _rectangle  # JSON-MIN names no type, and labels may have any name.
    if shape is None:
        image.lose("unsupported_shape", f"{place} is a {kind or 'region of no known type'}", made.name)
    elif shape(value, size, made):
        image.objects.append(made)
    else:
        image.lose("invalid_box", f"{place} {value}"[:200], made.name)


def _fractions(value: dict, *keys: str) -> list[float] | None:
    numbers = finite_numbers([value.get(key) for key in keys], len(keys))
    return None if numbers is None else [number / 100 for number in numbers]


def _rectangle(value: dict, size: tuple[int, int] | None, made: ToolObject) -> bool:
    numbers = _fractions(value, "x", "y", "width", "height")
    if numbers is None:
        return False
    x, y, width, height = numbers
    box = (x, y, x + width, y + height)
    turn = finite_numbers([value.get("rotation") or 0], 1)
    if not turn or not turn[0] % 360:
        made.box = box
        return True
    if size is None:  # Percent of width and height: only with the size of the image is a turn a turn.
        return False
    scale = (size[1], size[0], size[1], size[0])
    pixels = [number * side for number, side in zip(box, scale)]
    outline = rotated_outline(pixels, turn[0], (pixels[0], pixels[1]))
    made.outlines = [[number / (size[1], size[0])[i % 2] for i, number in enumerate(outline)]]
    made.is_region = True
    return True


def _polygon(value: dict, size: tuple[int, int] | None, made: ToolObject) -> bool:
    points = value.get("points")
    pairs = [finite_numbers(point, 2) for point in points] if isinstance(points, list) else []
    if len(pairs) < 3 or None in pairs:
        return False
    made.outlines = [[number / 100 for pair in pairs if pair for number in pair]]
    return True


def _ellipse(value: dict, size: tuple[int, int] | None, made: ToolObject) -> bool:
    numbers = _fractions(value, "x", "y", "radiusX", "radiusY")
    turn = finite_numbers([value.get("rotation") or 0], 1)
    if numbers is None or turn is None or (turn[0] % 360 and size is None):
        return False
    height, width = size or (1, 1)
    x, y, radius_x, radius_y = (number * side for number, side in zip(numbers, (width, height, width, height)))
    outline = ellipse_outline((x, y), (radius_x, radius_y), turn[0])
    made.outlines = [[number / (width, height)[i % 2] for i, number in enumerate(outline)]]
    return True
