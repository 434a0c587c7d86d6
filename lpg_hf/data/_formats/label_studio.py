"""Label Studio's own json (JSON and JSON-MIN): a list of tasks, regions in percent of the image.

    [{"data": {"image": "/data/upload/1/0a1b2c3d-a.png"},
      "annotations": [{"result": [{"type": "rectanglelabels", "original_width": 60, "original_height": 40,
        "value": {"x": 16.7, "y": 20, "width": 33.3, "height": 40, "rotation": 0, "rectanglelabels": ["red"]}}]}]}]

A rectangle is a box, a rotated one (around its first corner) the box around it; a polygon and an ellipse are a box and
a mask. Brush masks are in an encoding of the tool's own and are counted, as key points are. The image is looked for
under its name in the file, and under the one before the upload (without "0a1b2c3d-").

Where a project has one control for shapes and another for labels (the template for OCR), a region is several results
of one "id" (in JSON-MIN: of one geometry), each with the geometry: they are one object, with the first class name.

Of a task that several people have annotated the first annotation that was not cancelled is used, and the others are
counted. A task without one is not labelled: its image is counted and left out. An annotation without a result is an
image without objects.

A task may show several images. Regions are of the image whose field in "data" has the name of their tag ("to_name");
where the names differ and the task has several images, it cannot be told which one is meant, and the task is left out.
"""

import json
import os
import re
from collections import Counter
from dataclasses import dataclass, field

from lpg_hf.data._formats.image_finder import name_in_address
from lpg_hf.data._formats.json_files import json_contents, json_sample
from lpg_hf.data._formats.tool_image import (
    MAX_LOOKS,
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
from lpg_hf.images import IMAGE_SUFFIXES


_IMAGE_KEYS = ("image", "img", "image_url", "url", "photo", "picture")
_GEOMETRY = ("x", "y", "width", "height", "radiusX", "radiusY", "rotation", "points", "rle")
_TASK_KEYS = ("annotations", "completions", "predictions")
# Kinds of results that are no region: they are of the image, or of another region.
_NO_REGIONS = ("choices", "textarea", "rating", "number", "taxonomy", "datetime", "pairwise", "relation")


@dataclass(slots=True)
class _Region:
    """The results of one region.

    Attributes:
        number: of the result with the geometry, from 1.
        shape: that result; None: it is no mapping with values.
        values: of all results.
    """

    number: int
    shape: dict | None
    values: list[dict] = field(default_factory=list)

    @property
    def target(self) -> str | None:
        """The name of the tag of the image."""
        name = self.shape.get("to_name") if self.shape is not None else None
        return name if isinstance(name, str) else None


def looks_like(path: str) -> bool:
    """Whether a json file is a list of tasks, or of rows with regions in percent."""
    return path.lower().endswith(".json") and _are_tasks(json_sample(path))


def _are_tasks(content: object) -> bool:
    return isinstance(content, list) and any(isinstance(item, dict) and _is_task(item) for item in content[:MAX_LOOKS])


def _is_task(item: dict) -> bool:
    return (isinstance(item.get("data"), dict) and any(key in item for key in _TASK_KEYS)) or bool(_min_rows(item))


def _min_rows(task: dict) -> list[list]:
    """The lists of regions of a row of JSON-MIN, which have the names of the project's controls."""
    lists = [value for value in task.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
    return [value for value in lists if "original_width" in value[0]]


def read(path: str, split: str | None = None) -> ToolFile:
    """The images of a json file, or of those of a folder.

    Raises:
        ValueError: the only file is not valid json.
    """
    images, files, problems = [], [], []
    found = find_files(path, (".json",), looks_like, split, every=True)
    for file, content in json_contents(found, _are_tasks, problems):
        images += _read_tasks(content, os.path.basename(file), folder_below(path, file), problems)
        files.append(file)
    return ToolFile(images, None, files, places_of_images(path), problems)


def _read_tasks(content: dict | list, base: str, folder: str, problems: list[tuple[str, str]]) -> list[ToolImage]:
    """The images of the tasks of a file, in their order."""
    tasks = []
    for number, task in enumerate(content, start=1):
        place = f"{base}: task {number}"
        data = task.get("data", task) if isinstance(task, dict) else None
        fields = _image_fields(data) if isinstance(data, dict) else {}
        if not isinstance(task, dict) or not fields:
            problems.append(("invalid_image_entry", place))
            continue
        results, num_others = _results(task)
        problems += [("other_annotation", place)] * num_others
        if results is None:
            problems.append(("image_without_annotation", f"{place}: {', '.join(fields.values())}"))
        else:
            tasks.append((place, fields, _group(results)))
    targets = {region.target for _, _, regions in tasks for region in regions if region.shape is not None}
    images = []
    for place, fields, regions in tasks:
        of_field = {target: _field_of(target, fields, targets) for target in targets}
        unknown = [region.target for region in regions if region.shape is not None and not of_field[region.target]]
        if unknown:
            where = f"{place}: {len(unknown)} regions of {unknown[0]!r}, which is the name of none of"
            problems.append(("invalid_image_entry", f"{where} its images {', '.join(fields)}"))
            continue
        shown = [key for key in fields if key in of_field.values()] or list(fields)[:1]
        made = {key: _new_image(fields[key], place, folder) for key in shown}
        for region in regions:
            key = of_field[region.target] if region.shape is not None else shown[0]
            _read_region(region, f"{place}: region {region.number}", made[key or ""])
        images += made.values()
    return images


def _image_fields(data: dict) -> dict[str, str]:
    """The addresses of the images of a task by their fields, those of the usual names first."""
    texts = {key: data[key] for key in (*_IMAGE_KEYS, *data) if isinstance(data.get(key), str) and data[key].strip()}
    likely = {
        key: text
        for key, text in texts.items()
        if key in _IMAGE_KEYS or name_in_address(text).lower().endswith(IMAGE_SUFFIXES)
    }
    return likely or dict(list(texts.items())[:1])


def _field_of(target: str | None, fields: dict[str, str], targets: set[str | None]) -> str | None:
    """The field of the image that regions are drawn on; None: it cannot be told.

    Args:
        target: the name of the tag, which the tool's templates give the name of the field.
        fields: of the images of the task.
        targets: all names of tags in the file: if there is only one, it is the one image that is labelled.
    """
    if target in fields:
        return target
    first = next(iter(fields))
    return first if len(targets - {None}) <= 1 and (len(fields) == 1 or first in _IMAGE_KEYS) else None


def _new_image(address: str, place: str, folder: str) -> ToolImage:
    name = name_in_address(address)
    shorter = re.sub(r"^[0-9a-f]{4,}-", "", os.path.basename(name))
    return ToolImage(name, place, other_names=(shorter,), folder=folder, fractions=True)


def _results(task: dict) -> tuple[list | None, int]:
    """(results of the annotation of a task that is used, number of others); None: nobody has labelled it."""
    made = next((task[key] for key in ("annotations", "completions") if isinstance(task.get(key), list)), None)
    if made is None:
        # JSON-MIN has rows of finished tasks only; where no control has a list, nothing was drawn.
        return (None if isinstance(task.get("data"), dict) else _min_results(task)), 0
    valid = [item for item in made if isinstance(item, dict) and isinstance(item.get("result"), list)]
    valid = [item for item in valid if not item.get("was_cancelled") and not item.get("skipped")]
    return (valid[0]["result"] if valid else None), max(len(valid) - 1, 0)


def _min_results(task: dict) -> list:
    """The rows of JSON-MIN, with an "id" for those of several controls that are one region: of equal geometry."""
    results = []
    for rows in _min_rows(task):
        seen: Counter[str] = Counter()
        for row in rows:
            if isinstance(row, dict) and "id" not in row:
                geometry = json.dumps([row.get(key) for key in _GEOMETRY])
                seen[geometry] += 1
                row = {**row, "id": f"{geometry} {seen[geometry]}"}
            results.append(row)
    return results


def _group(results: list) -> list[_Region]:
    """The regions of an annotation, each from all its results; what is of no region is left out."""
    grouped: dict[object, list[tuple[int, dict]]] = {}
    for number, item in enumerate(results, start=1):
        key = item.get("id") if isinstance(item, dict) else None
        grouped.setdefault(key if isinstance(key, (int, str)) else (number,), []).append((number, item))
    regions = []
    for items in grouped.values():
        usable = [pair for pair in items if _values(pair[1]) is not None]
        regions += [_Region(number, None) for number, item in items if _values(item) is None]
        drawn = [pair for pair in usable if _is_drawn(pair[1])]
        if drawn:
            number, shape = next((pair for pair in drawn if _kind(pair[1]) in _SHAPES), drawn[0])
            regions.append(_Region(number, shape, [_values(item) or {} for _, item in usable]))
    return regions


def _values(item: object) -> dict | None:
    """The values of a result, which in JSON-MIN is all of them."""
    value = item.get("value", item) if isinstance(item, dict) else None
    return value if isinstance(value, dict) else None


def _type(item: dict) -> str:
    keys = (key for key in _values(item) or {} if key.endswith("labels"))
    return str(item.get("type") or next(keys, "")).lower()


def _kind(item: dict) -> str:
    return _type(item).removesuffix("labels")


def _is_drawn(item: dict) -> bool:
    """Whether a result has the geometry of a region; "labels" of a text have none."""
    place = {"x", "points", "rle"} & (_values(item) or {}).keys()
    return _type(item) not in _NO_REGIONS and (_type(item) != "labels" or bool(place))


def _read_region(region: _Region, place: str, image: ToolImage) -> None:
    item = region.shape
    if item is None:
        image.lose("invalid_annotation", place)
        return
    value = _values(item) or {}
    size = stated_size(item.get("original_height"), item.get("original_width"))
    image.size = image.size or size
    lists = [listed for values in region.values for key, listed in values.items() if key.endswith("labels")]
    names = dict.fromkeys(class_name(name) for listed in lists if isinstance(listed, list) for name in listed)
    named = [name for name in names if name is not None]
    if len(named) > 1:
        image.problems.append(("repeated_element", f"{place} is of the classes {', '.join(named)}"[:200]))
    made = ToolObject(named[0] if named else None, place)
    shape = _SHAPES.get(_kind(item))
    if shape is None and "points" not in value and finite_numbers([value.get(key) for key in ("width", "height")], 2):
        shape = _rectangle  # JSON-MIN names no type, and labels may have any name.
    elif shape is None and _kind(item) == "" and "points" in value:
        shape = _polygon
    if shape is None:
        image.lose("unsupported_shape", f"{place} is a {_type(item) or 'region of no known type'}", made.name)
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


_SHAPES = {"rectangle": _rectangle, "polygon": _polygon, "ellipse": _ellipse}
