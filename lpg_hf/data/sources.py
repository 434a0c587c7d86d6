"""Any annotations as one kind of source: images with boxes, opened one at a time.

    source = open_source("instances.json", "photos", report=report)
    for index in range(len(source)):
        record = source.record(index, report)
        if record is not None:
            image = source.image(record)

What comes from a source is meant for masks, which know no class: objects of a class that no list names are kept, their
class is appended to the list, and counted. Images without boxes are listed.

Memory: a source holds its boxes, no image and, unless `masks`, no outline: about 0.4 GB for a COCO file of 1 million
boxes.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from pycocotools import mask as coco_mask

from lpg_hf._files import fs_path, reading_as, relative_name, unicode_path, walk_files, write_atomically
from lpg_hf.data._examples import check_size, column_source, mask_column
from lpg_hf.data._formats import coco, coco_parts, tools, voc, yolo, yolo_layout
from lpg_hf.data._formats.rle import class_in_box_to_rle, segmentation_to_rle
from lpg_hf.data._formats.yolo_dataset import place_image, split_of_name
from lpg_hf.data._recognise import DATASET_FILES, recognise_format, voc_folders
from lpg_hf.data.options import SOURCE_OPTIONS, Classes, ReadOptions
from lpg_hf.data.records import (
    NO_CLASS,
    BoxObject,
    Geometry,
    Record,
    box_area,
    checked_box,
    finish_record,
    finite_numbers,
    note_corners,
    stated_size,
)
from lpg_hf.data.report import NothingUsable, Report
from lpg_hf.images import ImageProblem, read_rgb


if TYPE_CHECKING:
    from datasets import Dataset  # takes a second to import, and only one of the formats needs it

FORMATS = ("coco", "voc", "yolo", "dataset", *tools.TOOL_FORMATS)
Folder = str | os.PathLike | None
_Item = TypeVar("_Item")


@dataclass
class Source:
    """Images with boxes, from any format; several threads may use it at the same time.

    Attributes:
        format: "coco", "voc", "yolo" or "dataset".
        path: what was opened.
        classes: (category id, name) in the order of the labels; the id is COCO's category id, YOLO's class number,
            else the label.
        file_names: of the images, relative, forward slashes; known before any image is opened.
        make_record: what `record` calls.
        options: how it is read.
        coco_header: "info", "licenses" and "categories" of a COCO file, as they are in the file.
        rows: of a dataset, else None.
        annotation_files: absolute paths of the annotation files that were read: the lists of classes and images, and
            every file of labels; none for a dataset of the Hub.
        image_folder: that the file names are relative to; None for a dataset.
        has_coco_ids: whether the ids of the images can stay what they are in a COCO file: of COCO, and of a dataset in
            which all are different numbers.
        fingerprint: of a dataset of the Hub: its revision.
        images: folder of the images that was passed, absolute.
        splits: file name -> "train", "val" or "test", where lists or data.yaml say it; folders may say it too
            (`yolo_dataset.split_of_name`).
    """

    format: str
    path: str
    classes: list[tuple[int | str, str]]
    file_names: list[str]
    make_record: Callable[[int, Report], Record | None]
    options: ReadOptions
    coco_header: dict = field(default_factory=dict)
    rows: "Dataset | None" = None
    annotation_files: Sequence[str] = ()
    image_folder: str | None = None
    has_coco_ids: bool = False
    fingerprint: str | None = None
    images: str | None = None
    splits: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_class_masks(self) -> bool:
        """Whether it is a dataset whose masks hold classes, not objects."""
        return self.options.masks and self.rows is not None and "mask" in self.rows.features

    @property
    def coco_classes(self) -> list[tuple[int | str, str]]:
        """`classes` with ids for a COCO file: YOLO counts from 0, COCO's categories begin with 1."""
        if self.format != "yolo":
            return self.classes
        return [(int(number) + 1, name) for number, name in self.classes]

    @property
    def identity(self) -> dict:
        """What the records depend on besides `annotation_files`, fit for json."""
        options = self.options
        classes = list(options.classes) if isinstance(options.classes, tuple) else options.classes
        return {
            "zero_based": options.zero_based,
            "size_mismatch": options.size_mismatch,
            "max_pixels": options.max_pixels,
            "images": self.images,
            "split": options.split,
            "classes": classes,
            "box_format": options.box_format,
            "stored_frame": options.stored_frame,
            "bands": None if options.bands is None else list(options.bands),
            "stretch": options.stretch,
        } | ({} if self.fingerprint is None else {"fingerprint": self.fingerprint})

    def __len__(self) -> int:
        return len(self.file_names)

    def limited(self, count: int | None) -> "Source":
        """A source of at most `count` of the images, evenly over this one; None: all."""
        if count is None or count >= len(self):
            return self
        chosen = evenly(range(len(self)), count)
        names = [self.file_names[index] for index in chosen]
        return replace(
            self, file_names=names, make_record=lambda index, report: self.make_record(chosen[index], report)
        )

    def record(self, index: int, report: Report) -> Record | None:
        """The record of an image; None if it was skipped, which the report counts.

        Raises:
            ValueError: the stated size is not the image's and `size_mismatch` is "error", or a class mask does not
                fit.
        """
        return self.make_record(index, report)

    def image(self, record: Record, report: Report | None = None) -> np.ndarray:
        """(H, W, 3) uint8 RGB, upright; the report counts what is assumed of its bands and values.

        Raises:
            OSError: cannot be opened or is cut off.
            ValueError: a kind of image that is refused, or another size than the record's.
        """
        if record.path is not None:
            source, name = record.path, record.path
        elif self.rows is not None and record.row is not None:
            source, name = column_source(self.rows[record.row], "image")
        else:
            raise FileNotFoundError(f"the image {record.file_name} does not exist")
        notes = []
        pixels = read_rgb(source, name, self.options.max_pixels, self.options.rendering, notes)
        check_size(pixels, record.size, name)
        if report is not None:
            for kind, text in notes:
                report.add(kind, f"{record.file_name}: {text}")
        return pixels

    def place_image(self, record: Record, place: str | os.PathLike, how: str, scratch: Folder = None) -> None:
        """Put the image of a record at another place, as its file is.

        Args:
            place: of the new file; its folder is created.
            how: one of `yolo_dataset.WITH_IMAGES`; an image that is in a row of a dataset is always a copy.
            scratch: as of `files.atomic_file`.

        Raises:
            OSError: it cannot be written.
        """
        if how == "none" or not record.has_image:
            return
        if record.path is not None:
            place_image(record.path, place, how, scratch)
            return
        assert self.rows is not None and record.row is not None
        source, _ = column_source(self.rows[record.row], "image")
        if isinstance(source, str):
            place_image(source, place, how, scratch)
        elif isinstance(source, BytesIO):
            write_atomically(place, source.getvalue(), scratch)

    def decode(self, record: Record, report: Report) -> np.ndarray | None:
        """As `image`; None if it cannot be decoded, which is counted and takes it out of the report's totals."""
        try:
            return self.image(record, report)
        except (OSError, ValueError) as error:
            kind = error.kind if isinstance(error, ImageProblem) else "unreadable_image"
            report.add(kind, f"{record.file_name}: {error}")
            report.images -= 1
            report.objects -= record.num_objects
            return None


def open_source(
    annotations: str | os.PathLike,
    images: str | os.PathLike | None = None,
    options: ReadOptions = SOURCE_OPTIONS,
    *,
    format: str = "auto",
    report: Report,
) -> Source:
    """Open annotations of any format.

    Args:
        annotations: a COCO json (or a folder in which `coco.find_annotations` finds one); a VOC folder, its
            Annotations, or one xml file, whose images are in JPEGImages beside its folder Annotations, or beside it; a
            YOLO folder, its labels, or data.yaml; a folder or Hub id that `datasets.load_dataset` reads, as
            `lpg_hf.data.export` writes it.
        images: folder of the images, where the usual place is not meant.
        options: how they are read; `dataclasses.replace(SOURCE_OPTIONS, ...)` changes some. Masks come as
            `Record.mask_path` (VOC), or as the pixels of an object's class in its box (a dataset with class masks).
        format: one of `FORMATS`, or "auto": by what is there.
        report: counts problems.

    Raises:
        FileNotFoundError: nothing there, or no format is recognised.
        ValueError: several formats are recognised; a file is not valid, or (unless `keep_missing`) all lines of a YOLO
            folder hold pixels; an argument does not fit.
    """
    if format not in ("auto", *FORMATS):
        raise ValueError(f"unknown format {format!r}; choose one of auto, {', '.join(FORMATS)} (--format)")
    if format == "auto":
        format = recognise_format(annotations, options.split)
    options.check_format(format)
    options = coco.with_class_names(options, format)
    if format != "dataset" and images is not None and not os.path.isdir(fs_path(images)):
        raise FileNotFoundError(
            f"image folder not found: {images}. Pass the folder that the file names are relative to"
        )
    try:
        with reading_as(options.encoding):
            source = _OPENERS[format](os.fspath(annotations), images, options, report)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError) as error:
        raise ValueError(
            f"{annotations} cannot be read as {format}: a value in it has an unexpected type "
            f"({type(error).__name__}: {error})"
        ) from error
    except NothingUsable as error:
        raise ValueError(f"{error}\n{tools.likeness(error.path)}".rstrip()) from error
    source.images = None if images is None else unicode_path(images)
    return source


def evenly(items: Sequence[_Item], count: int) -> tuple[_Item, ...]:
    """At most `count` of the items, evenly spaced, the first among them."""
    step = max(1.0, len(items) / count) if count else np.inf
    return tuple(items[int(i * step)] for i in range(min(count, len(items))))


def _open_coco(annotations: str, images: Folder, options: ReadOptions, report: Report) -> Source:
    path = unicode_path(annotations)
    root = path if os.path.isdir(fs_path(path)) else None
    files = [path] if root is None else coco_parts.files_of(root, options.split)
    coco_parts.check_split(files, root, options.split)
    if images is not None:
        images = coco.find_images(root, images, options.split, files[0])
    if root is not None and len(files) > 1:
        index = coco_parts.read_parts(files, root, images, options, report)
    else:
        index = coco.read_index(files[0], images, options, report, root)
    return Source(
        "coco",
        files[0] if len(files) == 1 else path,
        index.classes,
        [entry.file_name for entry in index.entries],
        lambda number, to: coco.make_record(index.entries[number], options, to),
        options,
        index.header,
        annotation_files=files,
        image_folder=index.image_folder,
        has_coco_ids=True,
    )


def _open_voc(annotations: str, images: Folder, options: ReadOptions, report: Report) -> Source:
    path, only = unicode_path(annotations), None
    if not os.path.exists(fs_path(path)):
        raise FileNotFoundError(f"VOC folder not found: {path}. Pass the folder with Annotations/ and JPEGImages/")
    folders = voc_folders(path, images)
    if os.path.isfile(fs_path(path)):
        if options.split is not None:
            raise ValueError(
                f"split={options.split!r} (--split) is for a folder; {path} is one annotation file. Leave it out"
            )
        only = os.path.splitext(os.path.relpath(path, folders.annotations).replace(os.sep, "/"))[0]
    index = voc.read_index(folders, options, report, only)
    return Source(
        "voc",
        path,
        list(enumerate(index.classes, start=1)),
        [entry.file_name for entry in index.entries],
        lambda number, to: voc.make_record(index.entries[number], options, to),
        options,
        annotation_files=index.files,
        image_folder=folders.images,
        splits=_voc_splits(folders, index.entries),
    )


def _voc_splits(folders: voc.VocFolders, entries: Sequence[voc.VocEntry]) -> dict[str, str]:
    """The splits of the images that the lists train, val and test name; the first list counts."""
    lists = {name: split for split in reversed(yolo_layout.SPLITS) for name in voc.names_in_list(folders, split)}
    return {entry.file_name: lists[entry.name] for entry in entries if entry.name in lists}


def _open_yolo(annotations: str, images: Folder, options: ReadOptions, report: Report) -> Source:
    path = unicode_path(annotations)
    index = yolo.read_index(path, options, report, images)
    if report.errors and not any(item.category != NO_CLASS for entry in index.entries for item in entry.objects):
        raise NothingUsable(path, report)
    return Source(
        "yolo",
        path,
        list(index.classes),
        [entry.file_name for entry in index.entries],
        lambda number, to: yolo.make_record(index.entries[number], options, to),
        options,
        annotation_files=index.files,
        image_folder=index.image_folder,
        splits=index.splits,
    )


def _open_dataset(annotations: str, images: Folder, options: ReadOptions, report: Report) -> Source:
    from lpg_hf.data.load import class_names

    dataset = _load_rows(annotations, images, options, report)
    names = class_names(dataset)
    chosen = _chosen_classes(names, options.classes, annotations)
    report.classes = [f"{label} {name}" for label, name in enumerate(chosen, start=1)]
    numbers_of = {name: number for number, name in enumerate(names)}
    rows = _Rows(dataset, {numbers_of[name]: index for index, name in enumerate(chosen)}, options, report)
    file_names, numbers = [], []
    for number, name in enumerate(dataset["file_name"]):
        try:
            file_names.append(relative_name(name))
            numbers.append(number)
        except ValueError as error:
            report.add("unsafe_path", f"{name!r}: row {number} {error}", image=str(name))
    ids = {coco.id_of(str(image_id)) for image_id in dataset["image_id"]} if "image_id" in dataset.features else ()
    is_folder = os.path.isdir(fs_path(annotations))
    path = unicode_path(annotations) if is_folder else annotations
    return Source(
        "dataset",
        path,
        list(enumerate(chosen, start=1)),
        file_names,
        lambda index, to: rows.make_record(numbers[index], file_names[index], to),
        options,
        rows=rows.undecoded,
        annotation_files=[f"{path}/{name}" for name in walk_files(path, DATASET_FILES)] if is_folder else [],
        has_coco_ids=len(ids) == len(dataset) and all(isinstance(image_id, int) for image_id in ids),
        # It tells the revision; `datasets` has no public name for it.
        fingerprint=None if is_folder else dataset._fingerprint,
    )


def _open_tool(format: str, annotations: str, images: Folder, options: ReadOptions, report: Report) -> Source:
    """One of `tools.TOOL_FORMATS`."""
    path = unicode_path(annotations)
    if not os.path.exists(fs_path(path)):
        raise FileNotFoundError(f"annotations not found: {path}. Pass the file or the folder of the export")
    index = tools.read_index(format, path, None if images is None else unicode_path(images), options, report)
    return Source(
        format,
        path,
        list(enumerate(index.classes, start=1)),
        [entry.file_name for entry in index.entries],
        lambda number, to: tools.make_record(index.entries[number], options, to),
        options,
        annotation_files=index.files,
        image_folder=index.image_folder,
        splits={entry.file_name: split for entry in index.entries if (split := _split_of(entry))},
    )


def _split_of(entry: tools.ToolEntry) -> str | None:
    """The split that the subset of an image is."""
    return next(filter(None, (split_of_name(f"{image.subset}/") for image in entry.images)), None)


_OPENERS = {
    "coco": _open_coco,
    "voc": _open_voc,
    "yolo": _open_yolo,
    "dataset": _open_dataset,
    **{name: partial(_open_tool, name) for name in tools.TOOL_FORMATS},
}


def _load_rows(annotations: str, images: Folder, options: ReadOptions, report: Report) -> "Dataset":
    """The rows of a dataset, checked to have the columns that are needed."""
    from lpg_hf.data.load import load_parquet

    try:
        dataset = load_parquet(annotations, images, options, report)
    except ValueError:
        raise
    except Exception as error:  # `datasets` and the Hub client raise many types for what is not there.
        raise FileNotFoundError(
            f"{annotations} is neither a folder nor a Hub id that datasets.load_dataset reads: {error}. "
            "Pass a COCO json, a VOC or YOLO folder, or the format (--format)"
        ) from error
    objects = dataset.features.get("objects", {})
    absent = [name for name in ("file_name", "height", "width", "objects") if name not in dataset.features]
    absent += [f"objects.{name}" for name in ("bbox", "category") if name not in objects]
    if absent or not hasattr(objects["category"].feature, "names"):
        raise ValueError(
            f"the dataset {annotations} has no column {', '.join(absent) or 'objects.category with class names'}; "
            "its rows must be as lpg_hf.data.export writes them"
        )
    return dataset


def _chosen_classes(names: list[str], classes: Classes, annotations: str) -> list[str]:
    if classes is None or classes == "all":
        return names
    if isinstance(classes, str):
        raise ValueError(f"classes must be a list of names, 'all' or None for a dataset, got {classes!r}")
    unknown = [name for name in classes if name not in names]
    if unknown:
        raise ValueError(f"classes {unknown} are not in {annotations}; it holds: {', '.join(names)}")
    return [name for name in names if name in classes]


# Columns with a value for each object of a row.
_OF_OBJECTS = {"bbox", "category", "area", "iscrowd", "difficult", "id", "segmentation"}


class _Rows:
    """The rows of a dataset as records; `position` maps the category of a row to that of a record.

    Objects keep their ids if no two of the dataset have one id; else all get new ones, and the report counts the ids
    that were used before.
    """

    def __init__(self, dataset: "Dataset", position: dict[int, int], options: ReadOptions, report: Report):
        from datasets import Image

        from lpg_hf.data.load import class_names

        self.names, self.position, self.options = class_names(dataset), position, options
        image_columns = [name for name in ("image", "mask") if name in dataset.features]
        self.undecoded = dataset
        for name in image_columns:
            self.undecoded = self.undecoded.cast_column(name, Image(decode=False))
        with_masks = options.masks and "mask" in image_columns
        self.label_maps = self.undecoded.select_columns(["mask"]) if with_masks else None
        self.light = dataset.remove_columns(image_columns)
        self.first_ids = _first_ids(self.light, report)

    def make_record(self, number: int, file_name: str, report: Report) -> Record | None:
        """The record of a row; None (and counted) if it is skipped."""
        row = self.light[number]
        row["objects"] = row["objects"] or {"bbox": [], "category": []}
        if self.first_ids is not None:
            _give_ids(row["objects"], range(self.first_ids[number], self.first_ids[number + 1]))
        size = stated_size(row["height"], row["width"])
        if size is None:
            report.add("invalid_image_entry", f"{file_name}: height {row['height']}, width {row['width']}")
            return None
        labels = None
        if self.label_maps is not None:
            row["mask"] = self.label_maps[number]["mask"]
            labels = None if row["mask"] is None else mask_column(row)
        if labels is not None:
            voc.check_mask_values(labels, f"of {file_name}", len(self.names))
        if size[0] * size[1] > self.options.max_pixels:
            report.add("image_too_large", f"{file_name}: {size[1]} x {size[0]}")
            return None
        columns, objects, num_lost = row["objects"], [], 0
        if len({-1 if columns[name] is None else len(columns[name]) for name in _OF_OBJECTS & columns.keys()}) > 1:
            report.add("invalid_annotation", f"{file_name}: columns of objects of different lengths")
            columns, num_lost = {"category": []}, 1
        for i, category in enumerate(columns["category"]):
            where = f"{file_name}: annotation {columns['id'][i]}"
            if category is not None and 0 <= category < len(self.names) and category not in self.position:
                report.add("other_class", where, self.names[category])
                continue
            numbers = finite_numbers(columns["bbox"][i], 4)
            if numbers is None or columns["id"][i] is None:
                report.add("invalid_box", f"{where} {columns['bbox'][i]}")
                num_lost += 1
                continue
            made = self._make_object(row, i, numbers, labels, where, report)
            if made is not None:
                objects.append(made)
        image_id = row.get("image_id")
        image_id = Path(file_name).with_suffix("").as_posix() if image_id in (None, "") else str(image_id)
        record = Record(None, file_name, image_id, size, objects, license=row.get("license") or "", row=number)
        return finish_record(record, file_name, num_lost, self.options, report)

    def _make_object(
        self, row: dict, i: int, numbers: list[float], labels: np.ndarray | None, where: str, report: Report
    ) -> BoxObject | None:
        """Object number `i` of a row, whose box is `numbers`; None (and counted) if it is skipped."""
        columns, size = row["objects"], (row["height"], row["width"])
        category = columns["category"][i]
        iscrowd, difficult = (name in columns and bool(columns[name][i]) for name in ("iscrowd", "difficult"))
        is_none = category is None or category < 0  # `datasets` writes -1 for no class.
        if category is None or (is_none and not iscrowd) or category >= len(self.names):
            report.add("unknown_class", where, "none" if is_none else str(category))
            category, iscrowd = NO_CLASS, True
        x, y, w, h = numbers
        note_corners(numbers, size, where, report)
        box = checked_box((x, y, x + w, y + h), size, where, report)
        if box is None:
            return None
        has_segmentation = self.options.masks and "segmentation" in columns
        segmentation = columns["segmentation"][i] if has_segmentation else None
        rle = None
        if "mask" in row:
            is_known = category != NO_CLASS
            rle = class_in_box_to_rle(labels, category + 1, box) if labels is not None and is_known else None
            if rle is None and category != NO_CLASS:
                report.add("no_mask", where)
        elif segmentation and segmentation["counts"]:
            rle = segmentation_to_rle(segmentation, Geometry(size), where, report)
        if labels is not None and rle is not None:
            area = float(coco_mask.area(rle))
        else:
            stated = finite_numbers([columns["area"][i]], 1) if "area" in columns else None
            area = stated[0] if stated else box_area(box)
        position = self.position.get(category, NO_CLASS)
        return BoxObject(box, position, area, iscrowd, difficult, columns["id"][i], rle)


def _first_ids(dataset: "Dataset", report: Report) -> list[int] | None:
    """Ids from 1 through all rows: that of the first object of each row, and one more at the end.

    Returns:
        None if the objects have ids that are all different; the report counts those that are not.
    """
    from pyarrow.compute import call_function

    from lpg_hf.data.load import objects_per_row

    if "id" not in dataset.features["objects"]:
        lengths = objects_per_row(dataset)
    else:
        table: Any = dataset.select_columns(["objects"]).with_format("arrow")[:]
        lists = table.flatten().column("objects.id")
        lengths = call_function("list_value_length", [lists]).fill_null(0).to_numpy()
        ids = call_function("list_flatten", [lists])
        repeated = _repeated(ids, np.repeat(np.arange(len(lengths)), lengths))
        names = list(dataset["file_name"]) if repeated else []
        for row, used in repeated:
            report.add("duplicate_annotation_id", f"{names[row]}: annotation {used}")
        if not repeated:
            return None
    return [1, *(1 + np.cumsum(lengths)).tolist()]


def _repeated(ids: Any, rows: np.ndarray) -> list[tuple[int, int]]:
    """(row, id) of each object whose id an earlier one has; `ids` is an Arrow array, in which a null is no id."""
    is_id = ids.is_valid().to_numpy()
    ids, rows = ids.drop_null().to_numpy(), rows[is_id]
    is_repeated = np.ones(len(ids), dtype=bool)
    is_repeated[np.unique(ids, return_index=True)[1]] = False
    return list(zip(rows[is_repeated].tolist(), ids[is_repeated].tolist()))


def _give_ids(objects: dict, ids: Sequence[int]) -> None:
    """Give the objects of a row their ids, but for those that lack one where the others have one."""
    if "id" not in objects:
        objects["id"] = list(ids)
    elif objects["id"] is not None:
        objects["id"] = [None if own is None else new for own, new in zip(objects["id"], ids)]
