"""YOLO labels (one txt per image) <-> records.

    ROOT/images/a.jpg  ROOT/labels/a.txt               also with splits: images/train/a.jpg, labels/train/a.txt
    ROOT/train/images/a.jpg  ROOT/train/labels/a.txt   splits outside
    ROOT/a.jpg  ROOT/a.txt                             side by side
    ROOT/data.yaml      path; train, val, test: a folder, a list of folders, or a txt list of images; names; nc
    ROOT/classes.txt    class names, one a line (or obj.names; or in labels/), if data.yaml states none

A line is `class cx cy width height` (a box) or `class x1 y1 x2 y2 x3 y3 ...` (an outline, whose extent is the box), numbers as
fractions of the image shown upright. An empty txt is an image without objects; an image without a txt is unlabelled.
"""

import math
import os
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from lpg_hf.data.formats.rle import segmentation_to_rle
from lpg_hf.data.formats.yolo_layout import (
    IMAGES_FOLDER,
    LABELS_FOLDER,
    LARGEST_CLASS,
    OTHER_TXT_FILES,
    YoloLayout,
    find_layout,
    swap_last,
    txt_names,
    without_folders,
)
from lpg_hf.data.records import BoxObject, Geometry, ImageChecks, Record, checked_box
from lpg_hf.data.report import Report, check_missing
from lpg_hf.files import fs_path, read_text, resolve_inside, unicode_name, unicode_path
from lpg_hf.images import ImageProblem, image_size


# A fraction beyond this is a number of pixels; a box may be somewhat larger than its image.
LARGEST_FRACTION = 2.0
CENTRE_TOLERANCE = 1e-3
# Labels without their image are checked as if it had this size, in pixels: YOLO states none.
SIZE_WITHOUT_IMAGE = (640, 640)


@dataclass(slots=True)
class YoloObject:
    """One line of a label file.

    Attributes:
        line: its number, from 1.
        category: 0-based position in the class list.
        box: x1, y1, x2, y2 as fractions; not yet checked.
        polygon: x, y, x, y, ... as fractions, if the line is an outline and masks were asked for.
    """

    line: int
    category: int
    box: array
    polygon: array | None


@dataclass
class YoloEntry:
    """One image of the dataset, not yet checked.

    Attributes:
        file_name: of the image, relative to the image folder.
        path: of the image; None: it does not exist.
        label_name: of the label file, for messages.
        first_id: id of the first object; the others follow.
        objects: lines of the wanted classes.
    """

    file_name: str
    path: str | None
    label_name: str
    first_id: int = 1
    objects: list[YoloObject] = field(default_factory=list)


@dataclass
class YoloIndex:
    """A split: `classes` are (number in the label files, name) in the order of the labels; `files` were read for it."""

    classes: list[tuple[int, str]]
    entries: list[YoloEntry]
    files: list[str] = field(default_factory=list)
    image_folder: str = ""


class _LabelFiles:
    """The txt files of the folders that were looked into."""

    def __init__(self, layout: YoloLayout):
        self.layout = layout
        self.folders: dict[str, dict[str, str]] = {}
        self.used: set[str] = set()

    def _listing(self, folder: str) -> dict[str, str]:
        if folder not in self.folders:
            local = fs_path(folder)
            names = [unicode_name(name) for name in os.listdir(local)] if os.path.isdir(local) else []
            self.folders[folder] = {
                os.path.splitext(name)[0]: name for name in sorted(names) if name.lower().endswith(".txt")
            }
        return self.folders[folder]

    def places(self, image: str) -> list[tuple[str, str]]:
        """(root, name without suffix) of the places where the label file of an image may be."""
        stem = os.path.splitext(image)[0]
        swapped = swap_last(stem, IMAGES_FOLDER, LABELS_FOLDER)
        places = [(folder, stem) for folder in self.layout.label_roots]
        return [*places, *([(self.layout.image_folder, swapped)] if swapped else []), (self.layout.image_folder, stem)]

    def find(self, image: str) -> str | None:
        """The label file of an image, or None.

        Raises:
            ValueError: it is a link that leads outside.
        """
        for root, stem in self.places(image):
            folder, _, base = f"{root}/{stem}".rpartition("/")
            name = self._listing(folder).get(base)
            if name is not None:
                path = resolve_inside(root, f"{folder}/{name}"[len(root) + 1 :])
                self.used.add(path)
                return path
        return None

    def unused(self, everywhere: bool) -> list[str]:
        """The txt files that belong to no image, in the folders looked into, or `everywhere` in those of labels."""
        if not self.layout.complete:
            return []
        paths = {f"{folder}/{name}" for folder, names in self.folders.items() for name in names.values()}
        if everywhere:
            paths.update(f"{folder}/{name}" for folder in self.layout.label_roots for name in txt_names(folder))
        return [p for p in sorted(paths - self.used) if without_folders(p).lower() not in OTHER_TXT_FILES]


def read_label_lines(path: str, name: str, keypoints: int, report: Report) -> list[tuple[int, int, list[float]]]:
    """The usable lines of a label file: (line number, class number, four or more numbers).

    Args:
        path: of the txt file.
        name: for messages.
        keypoints: numbers after the box that are not read.
        report: counts lines that are no label, hold pixels, or occur twice.

    Raises:
        ValueError: no text.
    """
    lines = []
    seen: set[tuple] = set()
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        place = f"{name}: line {number}"
        try:
            values = [float(word) for word in words]
        except ValueError:
            values = []
        if keypoints and len(values) == 5 + keypoints:
            values = values[:5]
        valid = len(values) == 5 or (len(values) >= 7 and len(values) % 2 == 1)
        if not valid or not all(map(math.isfinite, values)) or values[0] < 0 or not values[0].is_integer():
            report.add("invalid_line", f"{place} {line.strip()[:60]!r} ({len(words)} columns)")
            continue
        if values[0] >= LARGEST_CLASS:
            report.add("invalid_line", f"{place} {line.strip()[:60]!r} ({words[0][:30]} is no class number)")
            continue
        if max(map(abs, values[1:])) > LARGEST_FRACTION:
            report.add("pixel_values", f"{place} {line.strip()[:60]!r}")
            report.add_error(
                f"{path}: line {number} holds pixels, not fractions of the image: {line.strip()[:60]!r}. "
                "Divide x and width by the image's width, y and height by its height"
            )
            continue
        if tuple(values) in seen:
            report.add("duplicate_line", place)
            continue
        seen.add(tuple(values))
        lines.append((number, int(values[0]), values[1:]))
    return lines


def _select_classes(
    layout: YoloLayout, classes: str | Sequence[str | int] | None, report: Report
) -> tuple[list[tuple[int, str]], dict[int, str]]:
    """The wanted classes, and every class by its number."""
    names = layout.names
    if classes is not None and not isinstance(classes, str) and not names:
        names, classes = [str(name) for name in classes], None
    pairs = list(enumerate(names or []))
    if names and len(set(names)) < len(names):
        twice = {name for name in names if names.count(name) > 1}
        for number, name in pairs:
            if name in twice:
                report.add("duplicate_category_name", f"{name} (class {number})")
        pairs = [(number, f"{name} ({number})" if name in twice else name) for number, name in pairs]
    if classes is None or classes == "all":
        return pairs, dict(pairs)
    if isinstance(classes, str):
        raise ValueError(f"classes must be a list of names or numbers, 'all' or None, got {classes!r}")
    keys = {name: number for number, name in pairs}
    chosen = {keys.get(item, item if item in dict(pairs) else None) for item in classes}
    unknown = [item for item in classes if item not in keys and item not in dict(pairs)]
    if unknown or not chosen:
        raise ValueError(f"classes {unknown} are not in the class list: {', '.join(names or [])}")
    return [pair for pair in pairs if pair[0] in chosen], dict(pairs)


def read_index(
    root: str | os.PathLike,
    split: str | None = None,
    classes: str | Sequence[str | int] | None = None,
    *,
    images: str | os.PathLike | None = None,
    masks: bool = False,
    keep_empty: bool = False,
    allow_missing: bool = False,
    keep_unknown: bool = False,
    keep_missing: bool = False,
    report: Report,
) -> YoloIndex:
    """Find the images of a split and read their label files.

    Args:
        root: folder of the dataset, its folder of labels, or data.yaml.
        split: see `find_layout`; None takes every image.
        classes: None or "all" (the class list of the dataset), or names and numbers of it; without a class list, its names.
        images: another folder of the images than the usual one.
        masks: keep outlines.
        keep_empty: keep images whose label file holds no object of the classes.
        allow_missing: go on (and count) when images of a list do not exist.
        keep_unknown: class numbers beyond the list are appended to it and counted; off, they are an error of the report.
        keep_missing: images that do not exist are counted, and their entries kept, to check the annotations; without any
            image there is one to each label file.
        report: counts problems; `report.errors` names each line with pixels or an unknown class.

    Returns:
        The classes and one entry per image that has a label file.

    Raises:
        FileNotFoundError: no such folder or split; no image, or none with a label file; listed images are missing.
        ValueError: data.yaml, class list or list of images not valid; no class list; no object of the classes at all.
    """
    layout = find_layout(root, split, images, keep_missing=keep_missing, report=report)
    selected, named = _select_classes(layout, classes, report)
    if not selected and not keep_unknown:
        stated = f"{layout.sources[-1]} holds no class names" if layout.names is not None else "there is no class list"
        raise ValueError(
            f"{stated} for the YOLO labels of {unicode_path(root)}. "
            'Write classes.txt or data.yaml with "names", or pass classes=[...] in the order of the class numbers'
        )
    present, refused = _find_images(layout, allow_missing, keep_missing, report)
    labels = _LabelFiles(layout)
    everything = classes is None or classes == "all"
    wanted = _ClassNumbers(selected, named, everything, keep_unknown)
    entries: list[YoloEntry] = []
    next_id = 1
    labelled = _find_labels(present, labels, report)
    if present and not labels.used:
        looked = " and ".join(f"{folder}/{stem}.txt" for folder, stem in labels.places(present[0][0]))
        raise FileNotFoundError(
            f"none of the {len(present)} images in {layout.image_folder} has a label file (looked for {looked}). "
            "Pass the folder that holds images/ and labels/"
        )
    for name, path, label_path in labelled:
        label_name = f"{os.path.splitext(name)[0]}{os.path.splitext(label_path)[1]}"
        try:
            lines = read_label_lines(label_path, label_name, layout.keypoints, report)
        except ValueError as error:
            report.add("unreadable_annotation", f"{label_name}: {error}", image=name)
            continue
        objects = _read_objects(lines, wanted, label_path, label_name, masks, report)
        entry = YoloEntry(name, path, label_name, next_id, objects)
        next_id += len(objects)
        if objects or keep_empty:
            entries.append(entry)
        else:
            report.add("image_without_object", name, image=name)
    selected = wanted.complete()
    report.classes = [f"{label} {name} (class {number})" for label, (number, name) in enumerate(selected, start=1)]
    for name in refused:  # Counted already; their label files are not without an image.
        with suppress(ValueError):
            labels.find(name)
    for path in labels.unused(everywhere=split is None):
        report.add("label_without_image", os.path.relpath(path, unicode_path(root)))
    if not keep_empty and not any(entry.objects for entry in entries) and not report.errors:
        chosen = ", ".join(name for _, name in selected[:5]) + (", ..." if len(selected) > 5 else "")
        raise ValueError(f"no image of {layout.image_folder} has an object of the classes {chosen}.\n{report.summary()}")
    files = [*layout.sources, *(label_path for _, _, label_path in labelled)]
    return YoloIndex(selected, entries, files, layout.image_folder)


def _find_images(
    layout: YoloLayout, allow_missing: bool, keep_missing: bool, report: Report
) -> tuple[list[tuple[str, str | None]], list[str]]:
    """(name, path) of the images that exist (and that do not, path None), and the names of those that lead outside."""
    present, missing, refused = [], [], []
    for name in layout.images:
        try:
            path = resolve_inside(layout.image_folder, name)
        except ValueError as error:
            report.add("unsafe_path", f"{name} {error}", image=name)
            refused.append(name)
            continue
        (present if layout.complete or os.path.isfile(fs_path(path)) else missing).append((name, path))
    names = [name for name, _ in missing]
    check_missing(
        "missing_image",
        names,
        len(layout.images),
        layout.image_folder,
        "images",
        allow_missing,
        report,
        keep=keep_missing,
    )
    return [*present, *((name, None) for name in names if keep_missing)], refused


def _find_labels(
    present: list[tuple[str, str | None]], labels: _LabelFiles, report: Report
) -> list[tuple[str, str | None, str]]:
    """(name, path, path of the label file) of the images that have a label file of their own."""
    stems: dict[str, list[str]] = {}
    for name, _ in present:
        stems.setdefault(os.path.splitext(name)[0], []).append(name)
    labelled = []
    for name, path in present:
        try:
            label_path = labels.find(name)
        except ValueError as error:
            report.add("unsafe_path", f"label file of {name} {error}", image=name)
            continue
        if label_path is None:
            report.add("image_without_annotation", name)
            continue
        same_name = stems[os.path.splitext(name)[0]]
        if len(same_name) == 1:
            labelled.append((name, path, label_path))
        elif name == same_name[0]:
            report.add("ambiguous_image", f"{without_folders(label_path)}: {', '.join(same_name)}")
            report.left_out.extend((image, "ambiguous_image") for image in same_name)
    return labelled


@dataclass
class _ClassNumbers:
    """Class number in the label files -> position in the class list.

    Attributes:
        selected: (number, name) of the wanted classes.
        named: name of every class that the dataset names.
        everything: no class was asked for in particular.
        keep_unknown: numbers without a name are kept.
        unknown: their objects, which get a position at the end.
    """

    selected: list[tuple[int, str]]
    named: dict[int, str]
    everything: bool
    keep_unknown: bool
    unknown: dict[int, list[YoloObject]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.position = {number: index for index, (number, _) in enumerate(self.selected)}

    def complete(self) -> list[tuple[int, str]]:
        """The wanted classes and after them, by number, those that no list names."""
        selected = list(self.selected)
        for category in sorted(self.unknown):
            for made in self.unknown[category]:
                made.category = len(selected)
            selected.append((category, f"class {category}"))
        return selected


def _read_objects(
    lines: list[tuple[int, int, list[float]]],
    wanted: _ClassNumbers,
    label_path: str,
    label_name: str,
    masks: bool,
    report: Report,
) -> list[YoloObject]:
    """The lines of a label file whose class is wanted; the others are counted."""
    objects = []
    for number, category, values in lines:
        place = f"{label_name}: line {number}"
        if category not in wanted.position and category in wanted.named:
            report.add("other_class", place, wanted.named[category])
            continue
        if category not in wanted.position and not (wanted.keep_unknown and wanted.everything):
            report.add("unknown_class", place, f"class {category}")
            if wanted.everything and not wanted.keep_unknown:
                report.add_error(
                    f"{label_path}: line {number} has the class number {category}, but the class list holds "
                    f"{len(wanted.named)} names (numbers 0 to {len(wanted.named) - 1}). Correct the line or complete the list"
                )
            continue
        made = _read_object(number, wanted.position.get(category, -1), values, masks)
        if made.category < 0:
            report.add("unlisted_class", place, f"class {category}")
            wanted.unknown.setdefault(category, []).append(made)
        objects.append(made)
    return objects


def _read_object(line: int, category: int, values: list[float], masks: bool) -> YoloObject:
    if len(values) == 4:
        x, y, width, height = values
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        return YoloObject(line, category, array("d", box), None)
    x, y = values[0::2], values[1::2]
    polygon = array("d", values) if masks else None
    return YoloObject(line, category, array("d", (min(x), min(y), max(x), max(y))), polygon)


def make_record(
    entry: YoloEntry, checks: ImageChecks, report: Report, *, masks: bool = False, keep_empty: bool = False
) -> Record | None:
    """Check one image and its objects.

    Args:
        entry: from `read_index`.
        checks: how to check the image; its header is always read, as fractions need its size.
        report: counts problems.
        masks: turn outlines into RLE.
        keep_empty: keep the image if no object is left.

    Returns:
        The record, or None (and counted) if the image cannot be used.
    """
    height, width = SIZE_WITHOUT_IMAGE
    if entry.path is not None:
        try:
            height, width = image_size(entry.path, entry.file_name, checks.max_pixels)
        except ImageProblem as problem:
            report.add(problem.kind, str(problem))
            return None
    objects = []
    for number, item in enumerate(entry.objects):
        place = f"{entry.label_name}: line {item.line}"
        made = _make_object(item, place, height, width, masks, report)
        if made is not None:
            made.id = entry.first_id + number
            objects.append(made)
    if not objects:
        report.add("empty_image" if keep_empty else "image_without_object", entry.file_name)
        if not keep_empty:
            return None
    report.images += 1
    report.objects += len(objects)
    image_id = os.path.splitext(entry.file_name)[0]
    return Record(entry.path, entry.file_name, image_id, height, width, objects)


def _make_object(
    item: YoloObject, place: str, height: int, width: int, masks: bool, report: Report
) -> BoxObject | None:
    x1, y1, x2, y2 = item.box
    centre = (x1 + x2) / 2, (y1 + y2) / 2
    if min(centre) < -CENTRE_TOLERANCE or max(centre) > 1 + CENTRE_TOLERANCE:
        report.add("centre_outside", f"{place}: centre ({centre[0]:g}, {centre[1]:g})")
        return None
    box = checked_box((x1 * width, y1 * height, x2 * width, y2 * height), height, width, place, report)
    if box is None:
        return None
    rle, stated = None, {}
    if masks and item.polygon is None:
        report.add("no_mask", place)
    elif masks:
        points = (np.asarray(item.polygon).reshape(-1, 2) * (width, height)).ravel().tolist()
        rle = segmentation_to_rle([points], Geometry(height, width), place, report)
        stated = {"segmentation": [points]} if rle is not None else {}
    area = float(coco_mask.area(rle)) if rle is not None else (box[2] - box[0]) * (box[3] - box[1])
    return BoxObject(box, item.category, area, rle=rle, stated=stated)


def read_yolo(
    root: str | os.PathLike,
    split: str | None = None,
    classes: str | Sequence[str | int] | None = None,
    *,
    images: str | os.PathLike | None = None,
    masks: bool = False,
    keep_empty: bool = False,
    allow_missing: bool = False,
    keep_unknown: bool = False,
    checks: ImageChecks | None = None,
    report: Report | None = None,
) -> Iterator[Record]:
    """All records of a YOLO split, one at a time; arguments as in `read_index` and `make_record`.

    Lines with pixels or an unknown class are left out and named in `report.errors`; `builders.YoloBoxes` refuses such data.
    """
    report = Report() if report is None else report
    index = read_index(
        root,
        split,
        classes,
        images=images,
        masks=masks,
        keep_empty=keep_empty,
        allow_missing=allow_missing,
        keep_unknown=keep_unknown,
        report=report,
    )
    for entry in index.entries:
        record = make_record(entry, checks or ImageChecks(), report, masks=masks, keep_empty=keep_empty)
        if record is not None:
            yield record


def mask_to_polygons(mask: np.ndarray) -> list[list[float]]:
    """The outlines of a mask along the edges of its pixels: filled by the even-odd rule they give the mask again.

    Args:
        mask: (H, W) bool or integer, nonzero is the object.

    Returns:
        x, y, x, y, ... in pixels, 0-based, (0, 0) the corner of the image; one for each connected part, and one for each
        hole, which turns the other way round.
    """
    doubled = np.repeat(np.repeat(np.asarray(mask, dtype=bool).astype(np.uint8), 2, axis=0), 2, axis=1)
    contours, _ = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    polygons = []
    for contour in contours:
        # Half pixels 2i and 2i + 1 belong to pixel i, whose edges are i and i + 1: the outer half pixel is the edge's.
        points = (contour[:, 0] + 1) // 2
        points = points[(points != np.roll(points, 1, axis=0)).any(axis=1)]
        before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
        points = points[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]  # No corner, no point.
        polygons.append(points.ravel().astype(float).tolist())
    return polygons


def _outline(rle: dict) -> list[float]:
    """The outline of a mask of any number of parts: looked for only in the part of the image that it covers."""
    x, y, width, height = coco_mask.toBbox(rle).astype(int).tolist()
    window = coco_mask.decode(rle)[y : y + height, x : x + width]
    points = np.asarray(join_polygons(mask_to_polygons(window))).reshape(-1, 2) + (x, y)
    return points.ravel().tolist()


def join_polygons(polygons: Sequence[Sequence[float]]) -> list[float]:
    """Several outlines as one, joined by lines that run there and back and so enclose nothing: a YOLO line holds only one."""
    first, *others = polygons
    joined = list(first)
    for other in others:
        joined += [*first[:2], *other, *other[:2]]
    return joined


def yolo_text(record: Record, *, masks: bool = False, only_outlines: bool = False) -> str:
    """The lines of a label file; the class number is the position in the class list.

    Args:
        record: its image's size makes fractions of the numbers (12 digits).
        masks: write outlines. A file holds boxes or outlines, as readers tell them by the file: an object without a mask is
            written as the outline of its box if another one has a mask.
        only_outlines: write those of the boxes also if none has a mask: trainers want one kind of line in all files.
    """
    with_outlines = masks and (only_outlines or any(item.rle is not None for item in record.objects))
    lines = []
    for item in record.objects:
        x1, y1, x2, y2 = item.box
        if not with_outlines:
            values = [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
        elif item.rle is None:
            values = [x1, y1, x2, y1, x2, y2, x1, y2]
        else:
            values = _outline(item.rle)
        fractions = (
            f"{value / size:.12g}" for value, size in zip(values, (record.width, record.height) * len(values))
        )
        lines.append(" ".join([str(item.category), *fractions]))
    return "".join(f"{line}\n" for line in lines)


def write_yolo(path: str | os.PathLike, record: Record, *, masks: bool = False, only_outlines: bool = False) -> None:
    """Write one record as a label file; arguments as of `yolo_text`."""
    text = yolo_text(record, masks=masks, only_outlines=only_outlines)
    Path(fs_path(path)).write_text(text, encoding="utf-8", newline="\n")
