"""YOLO labels (one txt per image) <-> records.

    ROOT/images/a.jpg  ROOT/labels/a.txt               also with splits: images/train/a.jpg, labels/train/a.txt
    ROOT/train/images/a.jpg  ROOT/train/labels/a.txt   splits outside
    ROOT/a.jpg  ROOT/a.txt                             side by side
    ROOT/data.yaml      path; train, val, test: a folder, a list of folders, or a txt list of images; names; nc
    ROOT/classes.txt    class names, one a line (or obj.names; or in labels/), if data.yaml states none

A line is `class cx cy width height` (a box; a sixth column, as detectors write it, is their confidence or a track) or
`class x1 y1 x2 y2 x3 y3 ...` (an outline, whose extent is the box), numbers as fractions of the image shown upright.
A line of eight numbers may also be a rotated box (YOLO-OBB), see `_find_rotated`: the box around it is used, and masks
are cut to it. An empty txt is an image without objects; an image without a txt is unlabelled.
"""

import math
import os
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from lpg_hf._files import fs_path, read_text, resolve_inside, unicode_name, unicode_path
from lpg_hf._rle import Rle, decode_window, mask_window
from lpg_hf.data._formats.rle import segmentation_to_rle
from lpg_hf.data._formats.tool_image import fills_box, free_name, tell_apart
from lpg_hf.data._formats.yolo_layout import (
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
from lpg_hf.data._upright import upright_size
from lpg_hf.data.options import ROTATED_BOXES, Classes, ReadOptions
from lpg_hf.data.records import NO_CLASS, BoxObject, Geometry, Record, box_area, checked_box, finish_record
from lpg_hf.data.report import MissingFiles, NothingUsable, Report, check_missing
from lpg_hf.images import ImageProblem, image_orientation, image_size


# A fraction beyond this is a number of pixels; a box may be somewhat larger than its image.
LARGEST_FRACTION = 2.0
CENTRE_TOLERANCE = 1e-3
# Labels without their image are checked as if it had this size, in pixels: YOLO states none.
SIZE_WITHOUT_IMAGE = (640, 640)
# Outlines with fewer points: how far at most from the pixel edges, as a share of the root of the area; and below
# how many pixels all points are kept.
_SMALL_SHARE = 0.02
_LEAST_TOLERANCE = 0.25
Category = tuple[int, str]  # (class number, name)
_LabelLine = tuple[int, int, list[float]]  # (line number, class number, four or more numbers)


@dataclass(slots=True)
class _YoloObject:
    """One line of a label file.

    Attributes:
        line: its number, from 1.
        category: 0-based position in the class list; `NO_CLASS`: it is not one that is known.
        box: x1, y1, x2, y2 as fractions; not yet checked.
        polygon: x, y, x, y, ... as fractions, if masks were asked for or there are four points.
        is_region: the four points are a rotated box.
        is_outline: the polygon is the outline of the object.
    """

    line: int
    category: int
    box: array
    polygon: array | None
    is_region: bool = False
    is_outline: bool = True


@dataclass
class YoloEntry:
    """One image of the dataset, not yet checked.

    Attributes:
        file_name: of the image, relative to the image folder.
        path: of the image; None: it does not exist.
        label_path: of the label file, once it is found.
        label_name: the same for messages, relative to the folder of labels.
        first_id: id of the first object; the others follow.
        objects: lines of the wanted classes, and of unknown ones.
        num_lost: lines that cannot be used.
    """

    file_name: str
    path: str | None
    label_path: str = ""
    label_name: str = ""
    first_id: int = 1
    objects: list[_YoloObject] = field(default_factory=list)
    num_lost: int = 0


@dataclass
class YoloIndex:
    """A split: `classes` are (number in the label files, name) in the order of the labels; `files` were read for it.

    `splits` are of `YoloLayout`.
    """

    classes: list[Category]
    entries: list[YoloEntry]
    files: list[str] = field(default_factory=list)
    image_folder: str = ""
    splits: dict[str, str] = field(default_factory=dict)


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

    def candidates(self, image: str) -> list[tuple[str, str]]:
        """Where the label file of an image may be: (root, name without suffix)."""
        stem = os.path.splitext(image)[0]
        swapped = swap_last(stem, IMAGES_FOLDER, LABELS_FOLDER)
        mirrored = [(folder, stem) for folder in self.layout.label_roots]
        return [
            *mirrored,
            *([(self.layout.image_folder, swapped)] if swapped else []),
            (self.layout.image_folder, stem),
        ]

    def find(self, image: str) -> str | None:
        """The label file of an image, or None.

        Raises:
            ValueError: it is a link that leads outside.
        """
        for root, stem in self.candidates(image):
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


def _read_label_lines(path: str, name: str, keypoints: int, report: Report) -> tuple[list[_LabelLine], int]:
    """The usable lines of a label file, and the number of those that cannot be used.

    Args:
        path: of the txt file.
        name: for messages.
        keypoints: numbers after the box that are not read.
        report: counts lines that are not a label, hold pixels, occur twice, or have a sixth column.

    Raises:
        ValueError: no text.
    """
    lines, num_lost = [], 0
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
        has_sixth = len(values) == 6 and math.isfinite(values[5])
        if has_sixth:
            values = values[:5]
        valid = len(values) == 5 or (len(values) >= 7 and len(values) % 2 == 1)
        if not valid or not all(map(math.isfinite, values)) or values[0] < 0 or not values[0].is_integer():
            report.add("invalid_line", f"{place} {line.strip()[:60]!r} ({len(words)} columns)")
            num_lost += 1
            continue
        if values[0] >= LARGEST_CLASS:
            report.add("invalid_line", f"{place} {line.strip()[:60]!r} ({words[0][:30]} is not a class number)")
            num_lost += 1
            continue
        if max(map(abs, values[1:])) > LARGEST_FRACTION:
            report.add("pixel_values", f"{place} {line.strip()[:60]!r}")
            report.add_error(
                f"{path}: line {number} holds pixels, not fractions of the image: {line.strip()[:60]!r}. "
                "Divide x and width by the image's width, y and height by its height"
            )
            num_lost += 1
            continue
        if tuple(values) in seen:
            report.add("duplicate_line", place)
            continue
        seen.add(tuple(values))
        if has_sixth:
            report.add("sixth_column", f"{place} {line.strip()[:60]!r}")
        lines.append((number, int(values[0]), values[1:]))
    return lines, num_lost


def _select_classes(layout: YoloLayout, classes: Classes, report: Report) -> tuple[list[Category], dict[int, str]]:
    """The wanted classes, and every class by its number."""
    names = layout.names or []
    if classes is not None and not isinstance(classes, str) and not names:
        names, classes = [str(name) for name in classes], None
    pairs = tell_apart(list(enumerate(names)))
    for (number, own_name), name in zip(pairs, names):
        if own_name != name:
            report.add("duplicate_category_name", f"{name} (class {number})")
    if classes is None or classes == "all":
        return pairs, dict(pairs)
    if isinstance(classes, str):
        raise ValueError(f"classes must be a list of names or numbers, 'all' or None, got {classes!r}")
    keys: dict[int | str, int] = {number: number for number, _ in pairs} | {name: number for number, name in pairs}
    chosen = {keys[item] for item in classes if item in keys}
    unknown = [item for item in classes if item not in keys]
    if unknown or not chosen:
        raise ValueError(f"classes {unknown} are not in the class list: {', '.join(names)}")
    return [pair for pair in pairs if pair[0] in chosen], dict(pairs)


def read_index(
    root: str | os.PathLike, options: ReadOptions, report: Report, images: str | os.PathLike | None = None
) -> YoloIndex:
    """Find the images of a split and read their label files.

    Args:
        root: folder of the dataset, its folder of labels, or data.yaml.
        options: `split` as of `find_layout`; None takes every image. `classes` are names and numbers of the class list
            of the dataset; without such a list, its names. With `keep_missing` and without any image there is one
            entry to each label file.
        report: counts problems; `report.errors` names each line with pixels or an unknown class.
        images: another folder of the images than the usual one.

    Returns:
        The classes and one entry per image that has a label file.

    Raises:
        FileNotFoundError: no such folder or split; no image, or none with a label file; listed images are missing.
        ValueError: data.yaml, class list or list of images not valid; no class list; no object of the classes at all.
    """
    layout = find_layout(root, options, report, images)
    classes = _ClassNumbers(*_select_classes(layout, options.classes, report), options)
    if not classes.selected and not options.keep_unlisted:
        stated = f"{layout.sources[-1]} holds no class names" if layout.names is not None else "there is no class list"
        raise ValueError(
            f"{stated} for the YOLO labels of {unicode_path(root)}. "
            'Write classes.txt or data.yaml with "names", or pass classes=[...] in the order of the class numbers'
        )
    present, refused = _find_images(layout, options, report)
    labels = _LabelFiles(layout)
    labelled = _find_labels(present, labels, report)
    if present and not labels.used:
        looked = " and ".join(f"{folder}/{stem}.txt" for folder, stem in labels.candidates(present[0].file_name))
        raise FileNotFoundError(
            f"none of the {len(present)} images in {layout.image_folder} has a label file (looked for {looked}). "
            "Pass the folder that holds images/ and labels/"
        )
    entries = _read_labels(labelled, layout.keypoints, classes, report)
    _find_rotated(entries, layout, options, report)
    selected = classes.complete()
    report.classes = [f"{label} {name} (class {number})" for label, (number, name) in enumerate(selected, start=1)]
    for name in refused:  # Counted already; their label files are not without an image.
        with suppress(ValueError):
            labels.find(name)
    for path in labels.unused(everywhere=options.split is None):
        report.add("label_without_image", os.path.relpath(path, unicode_path(root)))
    holds_a_box = any(item.category != NO_CLASS for entry in entries for item in entry.objects)
    is_faulty = "unreadable_annotation" in report.counts or any(item.objects or item.num_lost for item in entries)
    if is_faulty and not holds_a_box and not report.errors:
        raise NothingUsable(unicode_path(root), report)
    if not options.keep_empty and not holds_a_box and not report.errors:
        chosen = ", ".join(name for _, name in selected[:5]) + (", ..." if len(selected) > 5 else "")
        raise ValueError(
            f"no image of {layout.image_folder} has an object of the classes {chosen}.\n{report.summary()}"
        )
    files = [*layout.sources, *(entry.label_path for entry in labelled)]
    return YoloIndex(selected, entries, files, layout.image_folder, layout.splits)


def _find_images(layout: YoloLayout, options: ReadOptions, report: Report) -> tuple[list[YoloEntry], list[str]]:
    """Entries of the images that are to be used, and the names of those that lead outside."""
    present: list[YoloEntry] = []
    missing: list[str] = []
    refused: list[str] = []
    for name in layout.images:
        try:
            path = resolve_inside(layout.image_folder, name)
        except ValueError as error:
            report.add("unsafe_path", f"{name} {error}", image=name)
            refused.append(name)
            continue
        if layout.complete or os.path.isfile(fs_path(path)):
            present.append(YoloEntry(name, path))
        else:
            missing.append(name)
    check_missing(
        MissingFiles("missing_image", "images", missing, len(layout.images), layout.image_folder), options, report
    )
    return [*present, *(YoloEntry(name, None) for name in missing if options.keep_missing)], refused


def _find_labels(entries: list[YoloEntry], labels: _LabelFiles, report: Report) -> list[YoloEntry]:
    """The entries of the images that have a label file of their own."""
    stems: dict[str, list[str]] = {}
    for entry in entries:
        stems.setdefault(os.path.splitext(entry.file_name)[0], []).append(entry.file_name)
    labelled = []
    for entry in entries:
        name = entry.file_name
        try:
            path = labels.find(name)
        except ValueError as error:
            report.add("unsafe_path", f"label file of {name} {error}", image=name)
            continue
        if path is None:
            report.add("image_without_annotation", name)
            continue
        same_name = stems[os.path.splitext(name)[0]]
        if len(same_name) == 1:
            entry.label_path = path
            entry.label_name = f"{os.path.splitext(name)[0]}{os.path.splitext(path)[1]}"
            labelled.append(entry)
        elif name == same_name[0]:
            report.add("ambiguous_image", f"{without_folders(path)}: {', '.join(same_name)}")
            report.skipped.extend((image, "ambiguous_image") for image in same_name)
    return labelled


@dataclass
class _ClassNumbers:
    """Class number in the label files -> position in the class list.

    Attributes:
        selected: (number, name) of the wanted classes.
        names: of every class that the dataset names.
        options: of the run.
        unlisted: the objects of numbers without a name that are kept; they get a position at the end.
    """

    selected: list[Category]
    names: dict[int, str]
    options: ReadOptions
    unlisted: dict[int, list[_YoloObject]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.position = {number: index for index, (number, _) in enumerate(self.selected)}
        self.everything = self.options.classes in (None, "all")

    def complete(self) -> list[Category]:
        """The wanted classes and after them, by number, those that no list names."""
        selected = list(self.selected)
        taken = {name for _, name in selected}
        for number in sorted(self.unlisted):
            for item in self.unlisted[number]:
                item.category = len(selected)
            selected.append((number, free_name(f"class {number}", number, taken)))
            taken.add(selected[-1][1])
        return selected


def _read_labels(labelled: list[YoloEntry], keypoints: int, classes: _ClassNumbers, report: Report) -> list[YoloEntry]:
    """The entries with their objects; images without one are skipped unless `keep_empty`."""
    entries = []
    next_id = 1
    for entry in labelled:
        try:
            lines, entry.num_lost = _read_label_lines(entry.label_path, entry.label_name, keypoints, report)
        except ValueError as error:
            report.add("unreadable_annotation", f"{entry.label_name}: {error}", image=entry.file_name)
            continue
        entry.objects, entry.first_id = _select_objects(lines, classes, entry, report), next_id
        next_id += len(entry.objects)
        if entry.objects or entry.num_lost or classes.options.keep_empty:
            entries.append(entry)
        else:
            report.add("image_without_object", entry.file_name, image=entry.file_name)
    return entries


def _select_objects(
    lines: list[_LabelLine], classes: _ClassNumbers, entry: YoloEntry, report: Report
) -> list[_YoloObject]:
    """The lines of a label file whose class is wanted, or not known; the others are counted."""
    keeps_unlisted = classes.everything and classes.options.keep_unlisted
    objects = []
    for number, category, values in lines:
        where = f"{entry.label_name}: line {number}"
        position = classes.position.get(category, -1)
        if position < 0 and category in classes.names:
            report.add("other_class", where, classes.names[category])
            continue
        if position < 0 and not keeps_unlisted:
            report.add("unknown_class", where, f"class {category}")
            if classes.everything:
                report.add_error(
                    f"{entry.label_path}: line {number} has the class number {category}, but the class list holds "
                    f"{len(classes.names)} names (numbers 0 to {len(classes.names) - 1}). "
                    "Correct the line or complete the list"
                )
            objects.append(_read_object(number, NO_CLASS, values, classes.options.masks))
            continue
        item = _read_object(number, position, values, classes.options.masks)
        if position < 0:
            report.add("unlisted_class", where, f"class {category}")
            classes.unlisted.setdefault(category, []).append(item)
        objects.append(item)
    return objects


def _read_object(line: int, category: int, values: list[float], masks: bool) -> _YoloObject:
    if len(values) == 4:
        x, y, width, height = values
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        return _YoloObject(line, category, array("d", box), None)
    x, y = values[0::2], values[1::2]
    polygon = array("d", values) if masks or len(values) == 8 else None
    return _YoloObject(line, category, array("d", (min(x), min(y), max(x), max(y))), polygon)


def _find_rotated(entries: list[YoloEntry], layout: YoloLayout, options: ReadOptions, report: Report) -> None:
    """Mark the lines of four points that are rotated boxes.

    All are if data.yaml ("task: obb") or `box_format` says so; then they are no outlines. Without a word, they are
    taken for both if no line has another number of points, and nine in ten of those that are turned are parallelograms
    (as rotated boxes are in fractions too). Other quadrilaterals are outlines; if all lines are such, it is counted.
    """
    objects = [item for entry in entries for item in entry.objects]
    is_stated = layout.rotated_boxes or options.box_format == ROTATED_BOXES
    turned = [item for item in objects if _is_turned(item)]
    if not is_stated:
        if not turned or any(item.polygon is None or len(item.polygon) != 8 for item in objects):
            return
        if sum(map(_is_parallelogram, turned)) < 0.9 * len(turned):
            report.add("quadrilaterals", f"{len(turned)} objects")
            return
    for item in objects:
        item.is_region = item.polygon is not None and len(item.polygon) == 8
        item.is_outline = not (is_stated and item.is_region)


def _is_turned(item: _YoloObject) -> bool:
    return item.polygon is not None and len(item.polygon) == 8 and not fills_box(item.polygon, item.box)


def _is_parallelogram(item: _YoloObject) -> bool:
    """Whether opposite sides are equal, within 2 % of the box around."""
    x1, y1, x2, y2, x3, y3, x4, y4 = item.polygon or [0.0] * 8
    width, height = item.box[2] - item.box[0], item.box[3] - item.box[1]
    return abs(x1 + x3 - x2 - x4) <= 0.02 * width and abs(y1 + y3 - y2 - y4) <= 0.02 * height


def make_record(entry: YoloEntry, options: ReadOptions, report: Report) -> Record | None:
    """Check one image and its objects.

    Args:
        entry: from `read_index`.
        options: `masks` turns outlines into RLE. The image's header is always read, as fractions need its size.
        report: counts problems.

    Returns:
        The record, or None (and counted) if the image cannot be used.
    """
    size = SIZE_WITHOUT_IMAGE
    if entry.path is not None:
        try:
            size = image_size(entry.path, entry.file_name, options.max_pixels)
            if options.stored_frame:
                size = upright_size(size, image_orientation(entry.path, entry.file_name, options.max_pixels))
        except ImageProblem as problem:
            report.add(problem.kind, str(problem))
            return None
    objects = []
    for number, item in enumerate(entry.objects):
        made = _make_object(item, f"{entry.label_name}: line {item.line}", size, options.masks, report)
        if made is not None:
            made.id = entry.first_id + number
            objects.append(made)
    record = Record(entry.path, entry.file_name, os.path.splitext(entry.file_name)[0], size, objects)
    return finish_record(record, entry.file_name, entry.num_lost, options, report)


def _make_object(
    item: _YoloObject, where: str, size: tuple[int, int], masks: bool, report: Report
) -> BoxObject | None:
    height, width = size
    x1, y1, x2, y2 = item.box
    centre = (x1 + x2) / 2, (y1 + y2) / 2
    if min(centre) < -CENTRE_TOLERANCE or max(centre) > 1 + CENTRE_TOLERANCE:
        report.add("centre_outside", f"{where}: centre ({centre[0]:g}, {centre[1]:g})")
        x1, y1, x2, y2 = (min(max(value, 0.0), 1.0) for value in item.box)
        region = (x1 * width, y1 * height, x2 * width, y2 * height)
        return BoxObject(region, NO_CLASS, box_area(region), True) if x1 < x2 and y1 < y2 else None
    box = checked_box((x1 * width, y1 * height, x2 * width, y2 * height), size, where, report)
    if box is None:
        return None
    rle, stated, points = None, {}, []
    is_region = item.category == NO_CLASS
    if item.polygon is not None:
        points = (np.asarray(item.polygon).reshape(-1, 2) * (width, height)).ravel().tolist()
    if masks and not (points and item.is_outline) and not is_region:
        report.add("no_mask", where)
    elif masks and points and item.is_outline:
        rle = segmentation_to_rle([points], Geometry(size), where, report)
        stated = {"segmentation": [points]} if rle is not None else {}
    area = float(coco_mask.area(rle)) if rle is not None else box_area(box)
    region = points if item.is_region and _is_turned(item) else None
    if region is not None:
        report.add("rotated_box", where)
    return BoxObject(box, item.category, area, is_region, rle=rle, stated=stated, region=region)


def read_yolo(
    root: str | os.PathLike,
    options: ReadOptions = ReadOptions(),
    *,
    images: str | os.PathLike | None = None,
    report: Report | None = None,
) -> Iterator[Record]:
    """All records of a YOLO split, one at a time; arguments as in `read_index`.

    Lines with pixels or an unknown class are skipped and named in `report.errors`; `builders.YoloBoxes` refuses such
    data.
    """
    report = Report() if report is None else report
    for entry in read_index(root, options, report, images).entries:
        record = make_record(entry, options, report)
        if record is not None:
            yield record


def mask_to_polygons(mask: np.ndarray, simplify: float = 0.0) -> list[list[float]]:
    """The outlines of a mask along the edges of its pixels: filled by the even-odd rule they give the mask again.

    Args:
        mask: (H, W) bool or integer, nonzero is the object.
        simplify: how far, in pixels, an outline with fewer points may be from the middles of the pixel edges, but at
            most 2 % of the root of the mask's area, so that small objects keep their shape; 0: every pixel again.

    Returns:
        x, y, x, y, ... in pixels, 0-based, (0, 0) the corner of the image; one for each connected part, and one for
        each hole, which turns the other way round.
    """
    doubled = np.repeat(np.repeat(np.asarray(mask, dtype=bool).astype(np.uint8), 2, axis=0), 2, axis=1)
    contours, _ = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    polygons, tolerance = [], min(simplify, _SMALL_SHARE * float(np.count_nonzero(mask)) ** 0.5)
    for contour in contours:
        # Half pixels 2i and 2i + 1 belong to pixel i, whose edges are i and i + 1: the outer half pixel is the edge's.
        points = (contour[:, 0] + 1) // 2
        points = points[(points != np.roll(points, 1, axis=0)).any(axis=1)]
        before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
        corners = points[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]  # No corner, no point.
        if tolerance >= _LEAST_TOLERANCE:
            middles = (points + after / 2).astype(np.float32)  # a slope is a straight line through them, not stairs
            simple = cv2.approxPolyDP(middles[:, None], tolerance, closed=True)[:, 0]
            corners = simple if 3 <= len(simple) < len(corners) else corners
        polygons.append(corners.ravel().astype(float).tolist())
    return polygons


def _outline(rle: Rle, simplify: float) -> list[float]:
    """The outline of a mask of any number of parts: looked for only in the part of the image that it covers."""
    window = mask_window(rle)
    outline = join_polygons(mask_to_polygons(decode_window(rle, window), simplify))
    points = np.asarray(outline).reshape(-1, 2) + (window[1].start, window[0].start)
    return points.ravel().tolist()


def join_polygons(polygons: Sequence[Sequence[float]]) -> list[float]:
    """Several outlines as one, since a YOLO line holds only one: lines that run there and back join them."""
    first, *others = polygons
    joined = list(first)
    for other in others:
        joined += [*first[:2], *other, *other[:2]]
    return joined


def yolo_text(record: Record, *, masks: bool = False, only_outlines: bool = False, simplify: float = 0.0) -> str:
    """The lines of a label file; the class number is the position in the class list.

    Args:
        record: its image's size makes fractions of the numbers (12 digits).
        masks: write outlines. A file holds boxes or outlines, as readers tell them by the file: an object without a
            mask is written as the outline of its box if another one has a mask.
        only_outlines: write those of the boxes also if none has a mask: trainers want one kind of line in all files.
        simplify: see `mask_to_polygons`.
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
            values = _outline(item.rle, simplify)
        fractions = (
            f"{value / size:.12g}" for value, size in zip(values, (record.width, record.height) * len(values))
        )
        lines.append(" ".join([str(item.category), *fractions]))
    return "".join(f"{line}\n" for line in lines)


def write_yolo(path: str | os.PathLike, record: Record, **how: Any) -> None:
    """Write one record as a label file; arguments as of `yolo_text`."""
    text = yolo_text(record, **how)
    Path(fs_path(path)).write_text(text, encoding="utf-8", newline="\n")
