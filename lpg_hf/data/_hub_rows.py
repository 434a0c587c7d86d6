"""Detection datasets of the Hub and imagefolders -> rows with the columns of `builders`.

Known layouts: an image column; a column of objects (a dict of lists, or a list of dicts, under any name), or columns
of boxes and classes beside each other. Boxes are in `bbox`, `bboxes`, `boxes` or `box`; classes in `category`,
`categories`, `label`, ... as `ClassLabel`, text, or numbers. Sizes that no column states are the images' own; names
that no column states are those of the image files, or the numbers of the rows.
"""

import os
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, List, Value, concatenate_datasets

from lpg_hf._files import unicode_path
from lpg_hf.boxes import convert_boxes
from lpg_hf.data.options import ReadOptions
from lpg_hf.data.records import UNNAMED, finite_numbers, stated_size
from lpg_hf.data.report import Report
from lpg_hf.images import ImageProblem, image_size


_BOX_KEYS = ("bbox", "bboxes", "boxes", "box")
_CLASS_KEYS = ("category", "categories", "label", "labels", "category_id", "class", "classes", "name", "names", "type")
_CROWD_KEYS = ("iscrowd", "is_crowd")
_NAME_KEYS = ("file_name", "filename", "image_name")
_LARGEST_SIDE = 2**31 - 1  # as the rows hold it
_NO_BOX = [float("nan")] * 4  # counted as "invalid_box" when the row is read


def _key(features: Any, keys: Sequence[str]) -> str | None:
    return next((key for key in keys if key in features), None)


def _inner(feature: Any) -> dict | None:
    """The fields of a column of objects, a dict of lists or a list of dicts; None if it is no such column."""
    fields = feature.feature if isinstance(feature, List) else feature
    return fields if isinstance(fields, dict) and _key(fields, _BOX_KEYS) else None


def has_usual_columns(dataset: Dataset) -> bool:
    """Whether the rows are as `builders` make them, but for what `load_parquet` itself adds or asks for."""
    objects = dataset.features.get("objects")
    if not isinstance(objects, dict) or not {"file_name", "height", "width"} <= set(dataset.features):
        return False
    return {"bbox", "category"} <= objects.keys() and hasattr(getattr(objects["category"], "feature", None), "names")


def with_usual_columns(dataset: Dataset, root: str, options: ReadOptions, report: Report) -> Dataset:
    """The rows of a dataset of another layout with the columns `image`, `file_name`, `height`, `width`, `objects`, ...

    Args:
        dataset: one split.
        root: folder or Hub id, for messages and for the names of an imagefolder.
        options: box_format.
        report: counts rows whose image cannot be opened.

    Raises:
        ValueError: no image, or no boxes; the message names the columns.
    """
    features = dataset.features
    images = [name for name, feature in features.items() if isinstance(feature, Image) and name != "mask"]
    image = "image" if "image" in images else next(iter(images), None)
    column = next((name for name, feature in features.items() if _inner(feature) is not None), None)
    fields = _inner(features[column]) if column is not None else dict(features)
    if image is None or fields is None or _key(fields, _BOX_KEYS) is None:
        raise ValueError(
            f"the dataset {root} has {'no image column' if image is None else 'no column of boxes'}; its columns are "
            f"{', '.join(features)}. Boxes are read from a column such as objects, with bbox and category in it"
        )
    box_key, class_key = _key(fields, _BOX_KEYS), _key(fields, _CLASS_KEYS)
    light: Any = dataset.remove_columns([name for name, feature in features.items() if isinstance(feature, Image)])
    undecoded: Any = (
        dataset.select_columns([image])
        .cast_column(image, Image(decode=False))
        .rename_columns({} if image == "image" else {image: "image"})
    )
    values = _Values(column, fields, box_key or "", class_key, light)
    states_size = {"height", "width"} <= set(features)
    kept, rows = [], []
    taken: set[str] = set()
    for number, row in enumerate(light):
        entry = undecoded[number]["image"] or {}
        name = _file_name(row, entry, number, root, taken)
        size = stated_size(row["height"], row["width"]) if states_size else _size(entry, name, options, report)
        if size is None or max(size) > _LARGEST_SIDE:
            if states_size:
                report.add("invalid_image_entry", f"{name}: height {row['height']}, width {row['width']}", image=name)
            continue
        kept.append(number)
        rows.append(values.row(row, name, size, options.box_format or "xywh"))
    if not rows:
        raise ValueError(f"no image of the dataset {root} can be used.\n{report.summary()}")
    made = Dataset.from_list(rows, features=values.features())
    images = undecoded if len(kept) == len(undecoded) else undecoded.select(kept)
    result = concatenate_datasets([images.cast_column("image", Image()), made], axis=1)
    result.info.builder_name = dataset.info.builder_name
    return result


def _size(image: dict, name: str, options: ReadOptions, report: Report) -> tuple[int, int] | None:
    """(height, width) of an undecoded image; None (and counted) if it cannot be opened."""
    source = BytesIO(image["bytes"]) if image.get("bytes") else image.get("path")
    try:
        if source is None:
            raise ImageProblem("unreadable_image", f"the row of {name} holds no image")
        return image_size(source, name, options.max_pixels)
    except ImageProblem as problem:
        report.add(problem.kind, str(problem), image=name)
        return None


def _file_name(row: dict, image: dict, number: int, root: str, taken: set[str]) -> str:
    """The name of an image: as stated, else of its file, else the number of the row; each is given once."""
    stated = next((row[key] for key in _NAME_KEYS if isinstance(row.get(key), str) and row[key]), None)
    path = image.get("path")
    if stated is None and path:
        folder = f"{unicode_path(root)}/"
        path = path.replace("\\", "/")
        stated = path.removeprefix(folder) if path.startswith(folder) else os.path.basename(path)
    if stated is None or stated in taken:
        suffix = {b"\xff\xd8": ".jpg", b"\x89P": ".png"}.get((image.get("bytes") or b"")[:2], ".png")
        stated = f"{number:06d}{os.path.splitext(stated)[1] if stated else suffix}"
    taken.add(stated)
    return stated


class _Values:
    """The objects of a row in one layout.

    Args:
        column: of the objects; None: boxes and classes are columns themselves.
        fields: name -> feature of the objects' fields.
    """

    def __init__(self, column: str | None, fields: dict, box_key: str, class_key: str | None, light: Any):
        self.column, self.box_key, self.class_key = column, box_key, class_key
        self.crowd_key = _key(fields, _CROWD_KEYS)
        feature = fields.get(class_key) if class_key is not None else None
        feature = getattr(feature, "feature", feature)
        if isinstance(feature, ClassLabel):
            self.names = list(feature.names)
            self.index: dict[Any, int] = {number: number for number in range(len(self.names))}
            return
        holder = column or class_key
        wanted = light.select_columns([holder]) if holder is not None else []
        found = {value for row in wanted for value in self._field(row, class_key)} - {None}
        ordered = sorted(found, key=lambda value: (isinstance(value, str), value))
        self.names = [value if isinstance(value, str) else f"class {value}" for value in ordered] or [UNNAMED]
        self.index = {value: number for number, value in enumerate(ordered)}

    def _field(self, row: dict, key: str | None) -> list:
        """The values of a field, one for each object."""
        if key is None:
            return []
        objects = row if self.column is None else row[self.column]
        if isinstance(objects, list):
            return [item.get(key) for item in objects]
        value = None if objects is None else objects.get(key)
        return value if isinstance(value, list) else []

    def row(self, row: dict, name: str, size: tuple[int, int], box_format: str) -> dict:
        """One row with the usual columns."""
        stated = [finite_numbers(box, 4) for box in self._field(row, self.box_key)]
        boxes = [
            _NO_BOX if box is None else convert_boxes(np.asarray(box), box_format, "xywh", *size).tolist()
            for box in stated
        ]
        classes = self._field(row, self.class_key)
        if self.class_key is None:
            categories = [0] * len(boxes)
        else:
            padded = [*classes, *[None] * len(boxes)][: len(boxes)]
            categories = [-1 if value is None else self.index.get(value, -1) for value in padded]
        crowds = [*map(bool, self._field(row, self.crowd_key)), *[False] * len(boxes)][: len(boxes)]
        return {
            "image_id": str(row["image_id"]) if row.get("image_id") is not None else os.path.splitext(name)[0],
            "file_name": name,
            "width": size[1],
            "height": size[0],
            "objects": {
                "bbox": boxes,
                "category": categories,
                "area": [float(np.prod(box[2:])) for box in boxes],
                "iscrowd": crowds,
                "difficult": [False] * len(boxes),
            },
        }

    def features(self) -> Features:
        """Of the rows."""
        return Features(
            {
                "image_id": Value("string"),
                "file_name": Value("string"),
                "width": Value("int32"),
                "height": Value("int32"),
                "objects": {
                    "bbox": List(List(Value("float32"), length=4)),
                    "category": List(ClassLabel(names=self.names)),
                    "area": List(Value("float32")),
                    "iscrowd": List(Value("bool")),
                    "difficult": List(Value("bool")),
                },
            }
        )
