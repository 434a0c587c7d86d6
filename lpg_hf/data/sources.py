"""Any annotations as one kind of source: images with boxes, opened one at a time.

    source = open_source("instances.json", "photos", report=report)
    for index in range(len(source)):
        record = source.record(index, report)
        if record is not None:
            image = source.image(record)

What comes from a source is meant for masks, which know no class: objects of a class that no list names are kept, their class is
appended to the list, and counted. Images without boxes are listed.

Memory: a source holds its boxes, no image and, unless `masks`, no outline: about 0.4 GB for a COCO file of 1 million
boxes.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, Image
from pycocotools import mask as coco_mask

from lpg_hf.data.examples import decode_image, label_map
from lpg_hf.data.formats import coco, voc, yolo, yolo_layout
from lpg_hf.data.formats.rle import class_in_box_to_rle, segmentation_to_rle
from lpg_hf.data.load import class_names, load_boxes
from lpg_hf.data.options import SIZE_MISMATCH_CHOICES
from lpg_hf.data.records import (
    BoxObject,
    Geometry,
    ImageChecks,
    Record,
    checked_box,
    finite_numbers,
)
from lpg_hf.data.report import Report
from lpg_hf.files import fs_path, relative_name, unicode_name, unicode_path, walk_files
from lpg_hf.images import IMAGE_SUFFIXES, MAX_PIXELS, ImageProblem


FORMATS = ("coco", "voc", "yolo", "dataset")
ARCHIVE_SUFFIXES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")


@dataclass
class Source:
    """Images with boxes, from any format; several threads may use it at the same time.

    Attributes:
        format: "coco", "voc", "yolo" or "dataset".
        path: what was opened.
        classes: (category id, name) in the order of the labels; the id is COCO's category id, YOLO's class number, else the
            label.
        file_names: of the images, relative, forward slashes; known before any image is opened.
        coco_header: "info", "licenses" and "categories" of a COCO file, as they are in the file.
        masks: whether records hold masks.
        max_pixels: an image with more is refused.
        rows: of a dataset, else None.
        annotation_files: absolute paths of the files that were read; none for a dataset of the Hub.
        options: what the records depend on besides these files, fit for json: zero_based, size_mismatch, max_pixels, images
            (absolute path or None), split, classes, and for a dataset of the Hub its fingerprint.
        image_folder: that the file names are relative to; None for a dataset.
        has_coco_ids: whether the ids of the images can stay what they are in a COCO file: of COCO, and of a dataset in which
            all are different numbers.
    """

    format: str
    path: str
    classes: list[tuple[int | str, str]]
    file_names: list[str]
    make_record: Callable[[int, Report], Record | None]
    coco_header: dict = field(default_factory=dict)
    masks: bool = False
    max_pixels: int = MAX_PIXELS
    rows: Dataset | None = None
    annotation_files: Sequence[str] = ()
    options: dict = field(default_factory=dict)
    image_folder: str | None = None
    has_coco_ids: bool = False

    @property
    def has_class_masks(self) -> bool:
        """Whether it is a dataset whose masks hold classes, not objects."""
        return self.masks and self.rows is not None and "mask" in self.rows.features

    @property
    def coco_classes(self) -> list[tuple[int | str, str]]:
        """`classes` with ids for a COCO file: YOLO counts from 0, COCO's categories begin with 1."""
        return [(number + 1, name) for number, name in self.classes] if self.format == "yolo" else self.classes

    def files(self) -> Iterator[str]:
        """Absolute paths of the annotation files that were read: the lists of classes and images, and every file of labels."""
        return iter(self.annotation_files)

    def __len__(self) -> int:
        return len(self.file_names)

    def record(self, index: int, report: Report) -> Record | None:
        """The record of an image; None if it was left out, which the report counts.

        Raises:
            ValueError: the stated size is not the image's and `size_mismatch` is "error", or a class mask does not fit.
        """
        return self.make_record(index, report)

    def image(self, record: Record) -> np.ndarray:
        """(H, W, 3) uint8 RGB, upright.

        Raises:
            OSError: cannot be opened or is cut off.
            ValueError: a kind of image that is refused, or another size than the record's.
        """
        row = {"file_name": record.file_name, "height": record.height, "width": record.width}
        row["image"] = self.rows[record.row]["image"] if isinstance(record, RowRecord) else {"path": record.path}
        return decode_image(row, self.max_pixels)

    def decode(self, record: Record, report: Report) -> np.ndarray | None:
        """As `image`; None if the image cannot be decoded, which is counted and takes it out of the report's totals."""
        try:
            return self.image(record)
        except (OSError, ValueError) as error:
            kind = error.kind if isinstance(error, ImageProblem) else "unreadable_image"
            report.add(kind, f"{record.file_name}: {error}")
            report.images -= 1
            report.objects -= len(record.objects)
            return None


@dataclass
class RowRecord(Record):
    """A record of a dataset: the image is in its row."""

    row: int = 0


def open_source(
    annotations: str | os.PathLike,
    images: str | os.PathLike | None = None,
    *,
    format: str = "auto",
    split: str | None = None,
    classes: str | Sequence[str | int] | None = None,
    masks: bool = False,
    allow_missing: bool = True,
    zero_based: bool = False,
    size_mismatch: str = "skip",
    max_pixels: int = MAX_PIXELS,
    keep_missing: bool = False,
    report: Report,
) -> Source:
    """Open annotations of any format.

    Args:
        annotations: a COCO json (or a folder in which `coco.find_annotations` finds one); a VOC folder, its Annotations, or one
            xml file, whose images are in JPEGImages beside its folder Annotations, or beside it; a YOLO folder, its labels,
            or data.yaml; a folder or Hub id that `datasets.load_dataset` reads, as `lpg_hf.data.export` writes it.
        images: folder of the images, where the usual place is not meant.
        format: one of `FORMATS`, or "auto": by what is there.
        split: see the formats.
        classes: None: all, and those that no list names; else only these, the others are left out and counted.
        masks: read the masks too (VOC: `Record.mask_path`; a dataset with class masks: the pixels of an object's class in
            its box).
        allow_missing: go on (and count) when some files do not exist.
        zero_based: VOC: corners are 0-based and end exclusive.
        size_mismatch: COCO and VOC: stated size is not the image's: "skip", "error" or "rescale".
        max_pixels: an image with more pixels is left out.
        keep_missing: annotation files: images and class masks that do not exist are counted, and their records kept, so that
            the annotations can be checked: `Record.path` is None, and the size is the stated one.
        report: counts problems.

    Raises:
        FileNotFoundError: nothing there, or no format is recognised.
        ValueError: several formats are recognised; a file is not valid, or (unless `keep_missing`) all lines of a YOLO folder
            hold pixels; an argument does not fit.
    """
    if format not in ("auto", *FORMATS):
        raise ValueError(f"unknown format {format!r}; choose one of auto, {', '.join(FORMATS)} (--format)")
    if size_mismatch not in SIZE_MISMATCH_CHOICES:
        raise ValueError(f"size_mismatch must be one of {', '.join(SIZE_MISMATCH_CHOICES)}, got {size_mismatch!r}")
    if format == "auto":
        format = recognise_format(annotations, split)
    if zero_based and format != "voc":
        raise ValueError(f"zero_based (--zero-based) is for VOC xml files; {annotations} is read as {format}")
    if size_mismatch != "skip" and format in ("dataset", "yolo"):
        why = "whose sizes were checked when it was written" if format == "dataset" else "whose files state no sizes"
        raise ValueError(
            f"size_mismatch={size_mismatch!r} (--size-mismatch) is for COCO and VOC; {annotations} is read as {format}, {why}. "
            "Leave it out"
        )
    if format != "dataset" and images is not None and not os.path.isdir(fs_path(images)):
        raise FileNotFoundError(
            f"image folder not found: {images}. Pass the folder that the file names are relative to"
        )
    path = unicode_path(annotations)
    checks = ImageChecks(size_mismatch=size_mismatch, max_pixels=max_pixels)
    reading = {"masks": masks, "keep_empty": True, "allow_missing": allow_missing, "keep_unknown": True}
    reading["keep_missing"] = keep_missing
    if format == "dataset":
        source = _open_dataset(annotations, images, split, classes, masks, allow_missing, max_pixels, report)
    elif format == "coco":
        source = _open_coco(path, images, split, classes, reading, checks, report)
    elif format == "voc":
        source = _open_voc(path, images, split, classes, reading, checks, zero_based, report)
    else:
        source = _open_yolo(path, images, split, classes, reading, checks, report)
    source.options |= {
        "zero_based": zero_based,
        "size_mismatch": size_mismatch,
        "max_pixels": max_pixels,
        "images": None if images is None else unicode_path(images),
        "split": split,
        "classes": list(classes) if classes is not None and not isinstance(classes, str) else classes,
    }
    return source


def _is_hub_id(text: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", text) is not None and not text.startswith((".", "~"))


def recognise_format(annotations: str | os.PathLike, split: str | None = None) -> str:
    """The format of a file, a folder or a Hub id, by what is there.

    Raises:
        FileNotFoundError: nothing there, or nothing that is known.
        ValueError: more than one format; an archive.
    """
    text = os.fspath(annotations)
    local = fs_path(annotations)
    suffix = os.path.splitext(text)[1].lower()
    if suffix in ARCHIVE_SUFFIXES and not os.path.isdir(local):
        raise ValueError(f"{text} is an archive; archives are not read. Unpack it and pass the folder")
    if os.path.isfile(local):
        by_suffix = {".json": "coco", ".xml": "voc", ".yaml": "yolo", ".yml": "yolo"}
        if suffix in by_suffix:
            return by_suffix[suffix]
        raise ValueError(
            f"{text} is no annotation file that is known by its suffix (.json COCO, .xml VOC, .yaml YOLO). "
            "Pass the folder for YOLO txt files, or the format (--format)"
        )
    if not os.path.isdir(local):
        if _is_hub_id(text) and suffix not in (".json", ".yaml", ".yml", ".xml", ".txt"):
            return "dataset"
        raise FileNotFoundError(f"annotations not found: {text}. Pass a COCO json, a folder, or a Hub id (owner/name)")
    found = [name for name, holds in _FOLDER_CHECKS.items() if holds(unicode_path(text), split)]
    if len(found) > 1:
        raise ValueError(
            f"{text} holds annotations of more than one format: {', '.join(found)}. "
            f"Choose one with format=... (--format {' or --format '.join(found)})"
        )
    if not found and _has_coco_file(unicode_path(text)):
        return "coco"  # which of the files is meant will be asked when it is opened
    if not found:
        raise FileNotFoundError(
            f"no annotations recognised in {text}: no COCO json, no Annotations folder with xml files, no labels folder or "
            "txt file beside an image or data.yaml, no Parquet file. Pass another folder, or the format (--format)"
        )
    return found[0]


def _holds(folder: str, suffixes: tuple[str, ...], deep: bool = True) -> bool:
    return next(walk_files(folder, suffixes, deep), None) is not None


def _folders(root: str) -> list[str]:
    return [unicode_name(item.name) for item in os.scandir(fs_path(root)) if item.is_dir()]


def _voc_folder(root: str) -> str | None:
    """The folder of the xml files of a VOC root."""
    names = sorted(name for name in _folders(root) if name.lower() == voc.ANNOTATIONS_FOLDER.lower())
    folders = [f"{root}/{name}" for name in names]
    return next((folder for folder in folders if _holds(folder, (".xml",))), None)


def _looks_like_voc(root: str, split: str | None) -> bool:
    return _voc_folder(root) is not None or _holds(root, (".xml",), deep=False)


def _looks_like_yolo(root: str, split: str | None) -> bool:
    if yolo_layout.find_yaml(root) is not None:
        return True
    inner = [root, *(f"{root}/{name}" for name in _folders(root))]
    if any(
        os.path.isdir(fs_path(f"{f}/{yolo_layout.LABELS_FOLDER}"))
        and _holds(f"{f}/{yolo_layout.LABELS_FOLDER}", (".txt",))
        for f in inner
    ):
        return True
    if yolo_layout.LABELS_FOLDER in root.split("/")[-2:] and _holds(root, (".txt",), deep=False):
        return True
    for folder in inner:
        images = {os.path.splitext(name)[0] for name in walk_files(folder, IMAGE_SUFFIXES, deep=False)}
        if any(os.path.splitext(name)[0] in images for name in walk_files(folder, (".txt",), deep=False)):
            return True
    return False


def _looks_like_coco(root: str, split: str | None) -> bool:
    try:
        coco.find_annotations(root, None, split)
    except FileNotFoundError:
        return False
    return True


def _has_coco_file(root: str) -> bool:
    """Whether there is a json file named as COCO's are, though not in a default place."""
    names = [name for folder in (root, f"{root}/annotations") for name in walk_files(folder, (".json",), deep=False)]
    return any(re.match(r"_?(annotations|instances)", name) for name in names)


def _looks_like_dataset(root: str, split: str | None) -> bool:
    return _holds(root, (".parquet",))


_FOLDER_CHECKS = {
    "coco": _looks_like_coco,
    "voc": _looks_like_voc,
    "yolo": _looks_like_yolo,
    "dataset": _looks_like_dataset,
}


def _open_coco(path, images, split, classes, options: dict, checks: ImageChecks, report: Report) -> Source:
    is_folder = os.path.isdir(fs_path(path))
    file = coco.find_annotations(path, None, split) if is_folder else path
    folder = coco.find_images(path if is_folder else None, images, split, file)
    index = coco.read_index(file, folder, classes, report=report, **options)
    entries, masks = index.entries, options["masks"]

    def make(number: int, to: Report) -> Record | None:
        return coco.make_record(entries[number], checks, to, masks=masks, keep_empty=True)

    names = [entry.file_name for entry in entries]
    limit = checks.max_pixels
    return Source(
        "coco",
        file,
        index.classes,
        names,
        make,
        index.header,
        masks,
        limit,
        annotation_files=[file],
        image_folder=folder,
        has_coco_ids=True,
    )


def voc_places(path: str, images: str | None) -> tuple[str, str, str]:
    """(root, annotation folder, image folder) of a VOC root, of its Annotations, of xml files beside images, or of an xml."""
    if os.path.isfile(fs_path(path)):
        folders = [os.path.dirname(path)]
        while os.path.dirname(folders[-1]) != folders[-1]:
            folders.append(os.path.dirname(folders[-1]))
        named = (f for f in folders if os.path.basename(f).lower() == voc.ANNOTATIONS_FOLDER.lower())
        path = next(named, folders[0])
        inner = None
    else:
        inner = _voc_folder(path)
    if inner is not None:
        root, annotations = path, inner
    else:
        named = os.path.basename(path).lower() == voc.ANNOTATIONS_FOLDER.lower()
        root, annotations = os.path.dirname(path) if named else path, path
    if images is None:
        known = (voc.IMAGES_FOLDER.lower(), yolo_layout.IMAGES_FOLDER)
        names = sorted((n for n in _folders(root) if n.lower() in known), key=lambda n: known.index(n.lower()))
        images = f"{root}/{names[0]}" if names else annotations
    return root, annotations, unicode_path(images)


def _open_voc(path, images, split, classes, options: dict, checks: ImageChecks, zero_based: bool, report) -> Source:
    if not os.path.exists(fs_path(path)):
        raise FileNotFoundError(f"VOC folder not found: {path}. Pass the folder with Annotations/ and JPEGImages/")
    root, annotations, images = voc_places(path, images)
    if os.path.isfile(fs_path(path)):
        if split is not None:
            raise ValueError(f"split={split!r} (--split) is for a folder; {path} is one annotation file. Leave it out")
        options = {**options, "only": os.path.splitext(os.path.relpath(path, annotations).replace(os.sep, "/"))[0]}
    index = voc.read_index(root, split, classes, annotations=annotations, images=images, report=report, **options)
    entries = index.entries

    def make(number: int, to: Report) -> Record | None:
        return voc.make_record(
            entries[number], checks, to, num_classes=len(index.classes), zero_based=zero_based, keep_empty=True
        )

    names = [entry.file_name for entry in entries]
    pairs = list(enumerate(index.classes, start=1))
    masks, limit, files = options["masks"], checks.max_pixels, index.files
    return Source(
        "voc", path, pairs, names, make, masks=masks, max_pixels=limit, annotation_files=files, image_folder=images
    )


def _open_yolo(path, images, split, classes, options: dict, checks: ImageChecks, report: Report) -> Source:
    index = yolo.read_index(path, split, classes, images=images, report=report, **options)
    entries, masks, limit, files = index.entries, options["masks"], checks.max_pixels, index.files
    if report.errors and not options["keep_missing"] and not any(entry.objects for entry in entries):
        raise ValueError("\n".join([f"no object of {path} can be used:", *report.errors[:5]]))

    def make(number: int, to: Report) -> Record | None:
        return yolo.make_record(entries[number], checks, to, masks=masks, keep_empty=True)

    names = [entry.file_name for entry in entries]
    return Source(
        "yolo",
        path,
        index.classes,
        names,
        make,
        {},
        masks,
        limit,
        annotation_files=files,
        image_folder=index.image_folder,
    )


def _open_dataset(
    annotations, images, split, classes, masks: bool, allow_missing: bool, max_pixels: int, report: Report
) -> Source:
    try:
        dataset = load_boxes(
            "parquet",
            root=annotations,
            images=images,
            split=split,
            masks=masks,
            allow_missing=allow_missing,
            report=report,
        )
    except ValueError:
        raise
    except Exception as error:  # `datasets` and the Hub client raise many types for what is not there.
        raise FileNotFoundError(
            f"{annotations} is no folder or Hub id that datasets.load_dataset reads: {error}. "
            "Pass a COCO json, a VOC or YOLO folder, or the format (--format)"
        ) from error
    wanted = ("file_name", "height", "width", "objects")
    absent = [name for name in wanted if name not in dataset.features]
    absent += [f"objects.{name}" for name in ("bbox", "category") if name not in dataset.features.get("objects", {})]
    if absent or not hasattr(dataset.features["objects"]["category"].feature, "names"):
        raise ValueError(
            f"the dataset {annotations} has no column {', '.join(absent) or 'objects.category with class names'}; "
            "its rows must be as lpg_hf.data.export writes them"
        )
    names = class_names(dataset)
    chosen = names
    if isinstance(classes, str) and classes != "all":
        raise ValueError(f"classes must be a list of names, 'all' or None for a dataset, got {classes!r}")
    if classes is not None and classes != "all":
        unknown = [name for name in classes if name not in names]
        if unknown:
            raise ValueError(f"classes {unknown} are not in {annotations}; it holds: {', '.join(names)}")
        chosen = [name for name in names if name in classes]
    position = {names.index(name): index for index, name in enumerate(chosen)}
    report.classes = [f"{label} {name}" for label, name in enumerate(chosen, start=1)]

    file_names, numbers = [], []
    for number, name in enumerate(dataset["file_name"]):
        try:
            file_names.append(relative_name(name))
            numbers.append(number)
        except ValueError as error:
            report.add("unsafe_path", f"{name!r}: row {number} {error}", image=str(name))
    image_columns = [name for name in ("image", "mask") if name in dataset.features]
    rows = dataset
    for name in image_columns:
        rows = rows.cast_column(name, Image(decode=False))
    label_maps = rows.select_columns(["mask"]) if masks and "mask" in image_columns else None
    light = dataset.remove_columns(image_columns)
    first_ids = None if "id" in dataset.features["objects"] else _first_ids(light)

    def make(index: int, to: Report) -> Record | None:
        number = numbers[index]
        row = light[number]
        if first_ids is not None:
            row["objects"]["id"] = list(range(first_ids[number], first_ids[number + 1]))
        if label_maps is not None:
            row["mask"] = label_maps[number]["mask"]
        record = _row_record(row, number, file_names[index], names, position, masks, to)
        if record.height * record.width > max_pixels:
            to.add("image_too_large", f"{record.file_name}: {record.width} x {record.height}")
            return None
        to.images += 1
        to.objects += len(record.objects)
        return record

    path = os.fspath(annotations)
    files, options = [], {}
    if os.path.isdir(fs_path(annotations)):
        path = unicode_path(annotations)
        files = [f"{path}/{name}" for name in walk_files(path, (".parquet",))]
    else:
        options["fingerprint"] = dataset._fingerprint  # Tells the revision; `datasets` has no public name for it.
    pairs = list(enumerate(chosen, start=1))
    ids = {coco.id_of(str(image_id)) for image_id in dataset["image_id"]} if "image_id" in dataset.features else ()
    has_ids = len(ids) == len(dataset) and all(isinstance(image_id, int) for image_id in ids)
    return Source(
        "dataset", path, pairs, file_names, make, {}, masks, max_pixels, rows, files, options, has_coco_ids=has_ids
    )


def _first_ids(dataset: Dataset) -> list[int]:
    """Ids from 1 through all rows: that of the first object of each row, and one more at the end."""
    boxes = pc.struct_field(dataset.select_columns(["objects"]).with_format("arrow")[:]["objects"], "bbox")
    return (1 + np.cumsum([0, *pc.list_value_length(boxes).to_pylist()])).tolist()


def _row_record(
    row: dict, number: int, file_name: str, names: list[str], position: dict[int, int], masks: bool, report: Report
) -> RowRecord:
    columns, height, width = row["objects"], row["height"], row["width"]
    labels = label_map(row) if row.get("mask") is not None else None
    if labels is not None:
        voc.check_mask_values(labels, f"of {file_name}", len(names))
    objects = []
    for i, (bbox, category) in enumerate(zip(columns["bbox"], columns["category"])):
        object_id = columns["id"][i]
        place = f"{file_name}: annotation {object_id}"
        if category not in position:
            report.add("other_class", place, names[category])
            continue
        numbers = finite_numbers(bbox, 4)
        if numbers is None:
            report.add("invalid_box", f"{place} {bbox}")
            continue
        x, y, w, h = numbers
        box = checked_box((x, y, x + w, y + h), height, width, place, report)
        if box is None:
            continue
        segmentation = columns["segmentation"][i] if masks and "segmentation" in columns else None
        rle = None
        if "mask" in row:
            rle = None if labels is None else class_in_box_to_rle(labels, category + 1, box)
            if rle is None:
                report.add("no_mask", place)
        elif segmentation and segmentation["counts"]:
            rle = segmentation_to_rle(segmentation, Geometry(height, width), place, report)
        if labels is not None and rle is not None:
            area = float(coco_mask.area(rle))
        else:
            area = columns["area"][i] if "area" in columns else (box[2] - box[0]) * (box[3] - box[1])
        flags = [bool(columns[name][i]) if name in columns else False for name in ("iscrowd", "difficult")]
        objects.append(BoxObject(box, position[category], area, *flags, object_id, rle))
    if not objects:
        report.add("empty_image", file_name)
    image_id = row.get("image_id")
    image_id = Path(file_name).with_suffix("").as_posix() if image_id in (None, "") else str(image_id)
    return RowRecord("", file_name, image_id, height, width, objects, license=row.get("license") or "", row=number)
