"""Labels of one format -> another: `lpg-hf convert-labels`.

    coco    OUT.json, or OUT/annotations.json
    voc     OUT/Annotations/NAME.xml, OUT/ImageSets/Main/all.txt, train.txt, ..., OUT/classes.txt,
            OUT/SegmentationClass/NAME.png
    yolo    OUT/labels/NAME.txt, OUT/images/NAME.jpg, OUT/data.yaml, OUT/train.txt, ..., OUT/classes.txt

YOLO gets the images too, linked file by file (`formats.yolo_dataset`), so that it trains as it lies there. For VOC put
the images, or a link to them, in OUT/JPEGImages, or pass their folder when the labels are read. What the new format
cannot hold is named in `Conversion.lost`.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from lpg_hf._class_lists import BACKGROUND_NAMES, CLASSES_FILE, COLOURS_FILE, listed_name, own_class_list
from lpg_hf._files import fs_path, place_output, resolve_inside, unfinished_folder
from lpg_hf.data._formats import coco, voc, yolo, yolo_dataset, yolo_layout
from lpg_hf.data._formats.rle import class_in_box_to_rle
from lpg_hf.data._formats.yolo_dataset import YoloOptions
from lpg_hf.data._painting import paint_label_map
from lpg_hf.data._recognise import recognise_format, voc_folders
from lpg_hf.data._upright import upright_size
from lpg_hf.data.options import SOURCE_OPTIONS, ReadOptions
from lpg_hf.data.records import NO_CLASS, BoxObject, Record
from lpg_hf.data.report import Report
from lpg_hf.data.sources import Source, open_source
from lpg_hf.label_maps import clashing_names, no_class_message, read_label_map, write_label_map
from lpg_hf.labels import IGNORE_INDEX


TARGETS = ("coco", "voc", "yolo")
_LAST_FILES = {"coco": "annotations.json", "voc": CLASSES_FILE, "yolo": yolo_layout.CLASS_FILES[0]}
BOX_TOLERANCE = 1e-3
WITH_MASKS = replace(SOURCE_OPTIONS, masks=True)


@dataclass
class Conversion:
    """What was written.

    Attributes:
        out: file or folder.
        report: of the images and objects that were read.
        lost: one line for each thing that the new format does not hold, or holds differently.
        remedy: where the images must be to be found.
        is_new: False: `out` held all this already.
    """

    out: str
    report: Report
    lost: list[str] = field(default_factory=list)
    remedy: str = ""
    is_new: bool = True

    def summary(self) -> str:
        out = self.out if self.is_new else f"{self.out} (finished already, nothing was written)"
        lines = [f"{out}: {self.report.summary()}", *(f"lost: {line}" for line in self.lost), self.remedy]
        return "\n".join(line for line in lines if line)


def convert_labels(
    annotations: str | os.PathLike,
    out: str | os.PathLike,
    to: str,
    *,
    images: str | os.PathLike | None = None,
    options: ReadOptions = WITH_MASKS,
    format: str = "auto",
    yolo_options: YoloOptions = YoloOptions(),
) -> Conversion:
    """Write the labels of a source in another format; `out` is written completely or not at all.

    Args:
        annotations: see `sources.open_source`, as for `images` and `format`.
        out: new folder; for COCO a json file or a folder. It must not exist, or be empty.
        to: "coco", "voc" or "yolo".
        images: folder of the images.
        options: how they are read. `split` is also the name of the list that VOC gets; `masks` writes the masks that
            there are.
        format: of `annotations`.
        yolo_options: images and outlines of a YOLO dataset.

    Raises:
        FileNotFoundError: annotations or all images are missing.
        FileExistsError: `out` is there already, and holds something else.
        ValueError: unknown format, annotations that are not valid, no image that can be used, or class masks without a
            pixel of any class.
    """
    if to not in TARGETS:
        raise ValueError(f"unknown format {to!r} to write; choose one of {', '.join(TARGETS)} (--to)")
    options.check_no_rendering()
    if yolo_options.simplify and (to != "yolo" or not options.masks):
        raise ValueError(f"simplify={yolo_options.simplify:g} (--simplify) is for outlines of YOLO. Leave it out")
    target = Path(fs_path(os.path.abspath(fs_path(out))))
    if target.is_dir() and any(target.iterdir()) and not (target / _LAST_FILES[to]).is_file():
        raise FileExistsError(f"{out} exists already and is not empty; choose another place or remove it")
    report = Report()
    masks = options.masks
    format = recognise_format(annotations, options.split) if format == "auto" else format
    if format == "voc":  # Class masks are looked for image by image, as few images may have one.
        options = replace(options, masks=False)
    split = options.split
    if format == "coco" and os.path.isfile(fs_path(annotations)):  # Of one file, it is the name of the list alone.
        options = replace(options, split=None)
    source = _opened(annotations, images, options, format, report)
    reading = _Reading(source, to, masks, report, yolo_options)
    with unfinished_folder(target) as unfinished:
        written = unfinished / "out"
        written.mkdir()
        _WRITERS[to](written, reading, split or "all")
        if report.images == 0:
            raise ValueError(f"no image of {source.path} can be used:\n{report.summary()}")
        if reading.num_class_masks and report.counts.get("mask_without_object") == reading.num_class_masks:
            raise ValueError(no_class_message(f"the class masks of {source.path}"))
        if to == "coco" and target.suffix.lower() == ".json":
            written = written / "annotations.json"
        is_new = place_output(written, target)
    if reading.masks and report.counts.pop("no_mask", 0):
        report.places.pop("no_mask")  # Boxes without a mask are normal here; `lost` has their number.
    return Conversion(os.fspath(out), report, reading.lost(), _remedy(to, yolo_options.with_images), is_new)


def _opened(
    annotations: str | os.PathLike, images: str | os.PathLike | None, options: ReadOptions, format: str, report: Report
) -> Source:
    """The source; a dataset whose rows have no masks is opened without them."""
    if format != "dataset" or not options.masks:
        return open_source(annotations, images, options, format=format, report=report)
    from lpg_hf.data.load import _NoMasks  # `datasets` takes a second to import, and only this needs it

    found = Report()
    try:
        source = open_source(annotations, images, options, format=format, report=found)
    except _NoMasks:
        return _opened(annotations, images, replace(options, masks=False), format, report)
    report.merge(found)
    return source


def _remedy(to: str, with_images: str) -> str:
    if to == "yolo" and with_images != "none":
        return ""
    folder = {"voc": voc.IMAGES_FOLDER, "yolo": yolo_layout.IMAGES_FOLDER}.get(to)
    if folder is None:
        return "images are not copied: pass their folder (--images) with the json file"
    return f"images are not copied: put them, or a link to their folder, in {folder}/, or pass their folder (--images)"


class _Reading:
    """The records of a source as the new format can hold them; counts what it cannot."""

    def __init__(self, source: Source, to: str, masks: bool, report: Report, yolo: YoloOptions = YoloOptions()):
        self.source, self.to, self.report = source, to, report
        self.names = [name for _, name in source.classes]
        self.asked_for_masks, self.yolo = masks, yolo
        self.class_masks = _voc_masks_folder(source) if masks and source.format == "voc" else None
        self.masks = source.options.masks or self.class_masks is not None
        self.counts: dict[str, int] = {}
        self.num_class_masks = 0
        self.has_mask = False  # of any record, once it was read
        if to == "voc" and set(self.names) & set(BACKGROUND_NAMES):
            self.names = [listed_name(name) for name in self.names]
            self.count('names of classes that mean "no object" in VOC: written with " class" behind')
        if to == "voc" and self.masks and len(self.names) >= IGNORE_INDEX:
            self.masks = False
            self.count(f"masks: {len(self.names)} classes do not fit in an 8-bit class mask")

    def count(self, what: str, number: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + number

    def finds_a_mask(self) -> bool:
        """Whether an object that is written has a mask; reads until there is one, and counts nothing."""
        look = _Reading(self.source, self.to, self.asked_for_masks, Report())
        return any(item.rle is not None and not item.iscrowd for record in look for item in record.objects)

    def __iter__(self) -> Iterator[Record]:
        files_of, holds_name = _NAMES[self.to]
        taken = clashing_names(self.source.file_names, files_of)
        for index, name in enumerate(self.source.file_names):
            if not holds_name(name):
                self.report.add("unwritable_name", repr(name))
                continue
            if index in taken:
                self.report.add("label_name_taken", f"{name}: {taken[index]}")
                continue
            record = self.source.record(index, self.report)
            if record is not None and record.has_unusable and not self._marks_regions(record):
                self.report.add("unmarked_region", name)
                self.report.images -= 1
                self.report.objects -= record.num_objects
            elif record is not None:
                yield self._adapted(record)

    def _marks_regions(self, record: Record) -> bool:
        """Whether the new files of an image say of a region that it is not background."""
        has_mask = self.class_masks is not None or any(item.rle is not None for item in record.objects)
        return self.to == "coco" or (self.to == "voc" and self.masks and has_mask)

    def _adapted(self, record: Record) -> Record:
        if self.class_masks is not None:
            self._read_class_mask(record, self.class_masks)
        objects = record.objects
        if self.source.has_class_masks or (record.mask_path is not None and self.to != "voc"):
            self.count("class masks: each object gets the pixels of its class in its box; 255 is background")
        crowd = sum(item.iscrowd for item in objects)
        if crowd and self.to != "coco":
            is_ignored = self.to == "voc" and self.masks
            what = f"skipped, {'ignored (255) in class masks' if is_ignored else 'their pixels become background'}"
            self.count(f"crowd regions: {what}", crowd)
        if self.to == "voc":
            # Crowd regions are skipped, so their boxes are not written.
            thin = sum(voc.is_thin(item.box) for item in objects if not item.iscrowd)
            self.count("boxes thinner than a pixel: widened to one", thin)
        else:
            self.count("difficult flags: kept as ordinary objects", sum(item.difficult for item in objects))
        self.count("rotated boxes: the box around each", sum(item.region is not None for item in objects))
        has_mask = [item.rle is not None for item in objects]
        self.has_mask = self.has_mask or any(has_mask)
        if self.masks and not all(has_mask):
            what = "the outline of their box, if any has a mask" if self.to == "yolo" else "boxes only"
            self.count(f"objects without a mask: written as {what}", len(objects) - sum(has_mask))
        if self.to == "coco" and self.source.options.split is None:
            is_lost = record.file_name in self.source.splits and not yolo_dataset.split_of_name(record.file_name)
            self.count("splits: one file holds all images; write one for each (--split)", is_lost)
        if self.to == "yolo" and self.masks:
            self.count(
                "boxes that differ from the extent of their mask: the extent counts", sum(map(_is_loose, objects))
            )
        if self.to != "coco":
            # A stated area says something of its own only if it is not the mask's and not the box's.
            self.count("areas: recomputed from mask or box", sum(map(_has_own_area, objects)))
            self.count("licences of images", bool(record.license))
        return record

    def _read_class_mask(self, record: Record, folder: str) -> None:
        """Give each object the pixels of its class in its box."""
        try:
            path = resolve_inside(folder, f"{record.image_id}.png")
        except ValueError as error:
            self.report.add("unsafe_path", f"{record.image_id}.png {error}")
            return
        if not os.path.isfile(fs_path(path)):
            return
        try:
            size = upright_size((record.height, record.width), record.mask_orientation)
            colours = record.colours if isinstance(record, voc.ColouredRecord) else None
            if not voc.check_mask(path, record.file_name, size, len(self.names), self.source.options, colours):
                self.report.add("mask_without_object", os.path.basename(path))
            self.num_class_masks += 1
        except ValueError as error:
            self.report.add("invalid_class_mask", f"{record.file_name}: {error}")
            return
        record.mask_path = path
        changed = record.changed_mask(self.source.options.object_value)
        labels = read_label_map(path) if changed is None else changed
        for item in record.objects:
            is_object = item.category != NO_CLASS
            rle = class_in_box_to_rle(labels, item.category + 1, item.box) if is_object else None
            if rle is not None:
                item.rle, item.area = rle, float(coco_mask.area(rle))

    def lost(self) -> list[str]:
        """What is lost, with numbers where they say something."""
        source, lines = self.source, []
        if self.to != "coco":
            ids = [category_id for category_id, _ in source.classes]
            first = 0 if self.to == "yolo" else 1
            if source.format in ("coco", "yolo") and ids != list(range(first, first + len(ids))):
                lines.append(
                    f"category ids {ids[:10]}{'...' if len(ids) > 10 else ''}: classes are numbered from {first}"
                )
            if source.format in ("coco", "dataset"):
                lines.append("ids of images and annotations")
            header = [key for key in ("info", "licenses") if source.coco_header.get(key)]
            if any("supercategory" in item for item in source.coco_header.get("categories", [])):
                header.append("supercategories")
            if header:
                lines.append(", ".join(header))
        if self.to == "coco":
            if source.format not in ("coco", "dataset"):
                lines.append("ids of annotations: numbered from 1")
            if source.format == "dataset":
                what = "categories" if source.has_coco_ids else "images and categories"
                lines.append(f"ids of {what}, if the dataset was made of a COCO file: numbered from 1")
            if source.format == "coco":
                lines.append("fields of images and annotations that are not COCO's own for detection")
        if self.masks and self.has_mask and self.to == "voc" and source.format != "voc":
            lines.append("instances in masks: a class mask holds classes, the smaller object on top")
        if self.masks and self.has_mask and source.format in ("coco", "yolo") and self.to != "coco":
            form = {"yolo": "follow the edges of the pixels, holes and parts joined in one"}
            lines.append(f"outlines between pixels: masks {form.get(self.to, 'become pixels')}")
        if not self.asked_for_masks:
            lines.append("masks, if there are any: not asked for")
        return [*lines, *(f"{what} ({number})" for what, number in self.counts.items() if number)]


def _voc_masks_folder(source: Source) -> str | None:
    """The class masks of a VOC source, or None if it has none.

    Raises:
        ValueError: there are masks, but nothing says what their values mean.
    """
    root = voc_folders(source.path).root
    folder = f"{root}/{voc.MASKS_FOLDER}"
    if not os.path.isdir(fs_path(folder)):
        return None
    own = own_class_list(root)
    if [name for _, name in source.classes][: len(own)] != own:
        raise ValueError(
            f"{folder} holds class masks, but no {CLASSES_FILE} (or {COLOURS_FILE}) in {root} says which "
            "value is which class. Write it, in the order of the values, or leave the masks out (--no-masks)"
        )
    return folder


def _is_loose(item: BoxObject) -> bool:
    if item.rle is None:
        return False
    x, y, width, height = coco_mask.toBbox(item.rle).tolist()
    return max(abs(a - b) for a, b in zip(item.box, (x, y, x + width, y + height))) > BOX_TOLERANCE


def _has_own_area(item: BoxObject) -> bool:
    x1, y1, x2, y2 = item.box
    return item.rle is None and abs(item.area - (x2 - x1) * (y2 - y1)) > 1e-2 * max(item.area, 1)


def _write_coco(out: Path, reading: _Reading, split: str) -> None:
    def numbered() -> Iterator[Record]:
        for number, record in enumerate(reading, start=1):
            # COCO tools need a number as the id of an image.
            yield record if reading.source.has_coco_ids else replace(record, image_id=str(number))

    coco.write_coco(
        out / "annotations.json",
        numbered(),
        reading.source.coco_classes,
        header=reading.source.coco_header,
        keep_ids=reading.source.format in ("coco", "dataset"),
    )


def _write_voc(out: Path, reading: _Reading, split: str) -> None:
    names, lists, empty, num_masks = [], {}, [], 0
    for record in reading:
        stem = os.path.splitext(record.file_name)[0]
        names.append(stem)
        of_image = reading.source.splits.get(record.file_name) or yolo_dataset.split_of_name(record.file_name)
        if of_image is not None and split not in yolo_layout.SPLITS:
            lists.setdefault(of_image, []).append(stem)
        has_mask = record.mask_path is not None or any(item.rle is not None for item in record.objects)
        if reading.masks and has_mask:
            place = _place(out, voc.MASKS_FOLDER, f"{stem}.png")
            _write_class_mask(place, record, reading.source.options.object_value)
            num_masks += 1
        elif reading.masks and not record.objects:
            empty.append((stem, record.height, record.width))
        kept = replace(record, objects=record.single_objects)
        voc.write_voc(_place(out, voc.ANNOTATIONS_FOLDER, f"{stem}.xml"), kept, reading.names)
    for stem, height, width in (
        empty if num_masks else []
    ):  # Where there are masks, no object is background everywhere.
        write_label_map(_place(out, voc.MASKS_FOLDER, f"{stem}.png"), np.zeros((height, width), dtype=np.uint8))
    for name, stems in {**lists, split.replace("/", "_"): names}.items():
        _write_lines(_place(out, voc.SPLIT_FOLDERS[1], f"{name}.txt"), stems)
    _write_lines(out / CLASSES_FILE, reading.names)


def _write_class_mask(path: Path, record: Record, object_value: int | None) -> None:
    labels = record.changed_mask(object_value)
    if labels is not None:
        write_label_map(path, labels)
        return
    if record.mask_path is not None:
        shutil.copyfile(fs_path(record.mask_path), path)
        return
    write_label_map(path, paint_label_map(record.objects, record.height, record.width))


def _write_yolo(out: Path, reading: _Reading, split: str) -> None:
    # Trainers drop all outlines of a dataset that holds boxes too, so one mask decides for all files.
    outlines = reading.masks and reading.finds_a_mask()
    (out / yolo_layout.LABELS_FOLDER).mkdir()
    names = []
    for record in reading:
        kept = replace(record, objects=record.single_objects)
        path = _place(out, ".", yolo_dataset.label_place(record.file_name))
        yolo.write_yolo(path, kept, masks=outlines, only_outlines=outlines, simplify=reading.yolo.simplify)
        image = out / yolo_dataset.image_place(record.file_name)
        reading.source.place_image(record, image, reading.yolo.with_images)
        names.append(record.file_name)
    for name, text in yolo_dataset.dataset_files(reading.names, names, reading.source.splits).items():
        (out / name).write_text(text, encoding="utf-8", errors="surrogateescape", newline="\n")
    _write_lines(out / yolo_layout.CLASS_FILES[0], reading.names)


def _place(out: Path, folder: str, name: str) -> Path:
    """The path of a new file, its folders made."""
    path = Path(fs_path(out / folder / name))
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{' '.join(line.splitlines())}\n" for line in lines), encoding="utf-8", newline="\n")


# The files of an image, as far as those of another may have their names, and whether the new files hold its name.
_NAMES: dict[str, tuple[Callable[[str], tuple[str, ...]], Callable[[str], bool]]] = {
    "coco": (lambda name: (), yolo_dataset.is_relative),
    "voc": (lambda name: tuple(f"{os.path.splitext(name)[0]}{end}" for end in (".xml", ".png")), voc.holds_name),
    "yolo": (lambda name: (yolo_dataset.image_place(name), yolo_dataset.label_place(name)), yolo_dataset.holds_name),
}
_WRITERS = {"coco": _write_coco, "voc": _write_voc, "yolo": _write_yolo}
