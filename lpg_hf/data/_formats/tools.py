"""Labelling tools' files -> records: the table of the small readers, and the one adapter behind them.

`recognise` tells which format a file or folder is of; `read_index` reads it, finds the images and numbers the classes;
`make_record` checks one image and its objects, as the other formats do. A new format is a module with
`looks_like(path)` and `read(path, split)`, and a line of `TOOL_FORMATS`.
"""

import math
import os
from collections.abc import Callable, Container
from dataclasses import dataclass, field, fields
from typing import Any

from pycocotools import mask as coco_mask

from lpg_hf._files import LONGEST_PATH, fs_path, relative_name, unicode_path, walk_files
from lpg_hf._rle import Rle, with_text
from lpg_hf.data._formats import bdd100k, createml, csv_table, cvat, dota, kitti, label_studio, labelme, mot
from lpg_hf.data._formats.image_finder import ImageFinder, StatedImage, match_images, num_found
from lpg_hf.data._formats.rle import checked_rle, fits, rescaled_rle, segmentation_to_rle
from lpg_hf.data._formats.tool_image import ToolFile, ToolImage, ToolObject, extent, fills_box
from lpg_hf.data._formats.unsupported import describe
from lpg_hf.data._formats.yolo_layout import SPLITS
from lpg_hf.data.options import ReadOptions
from lpg_hf.data.records import (
    NO_CLASS,
    UNNAMED,
    Box,
    BoxObject,
    Geometry,
    Record,
    box_area,
    checked_box,
    finish_record,
    image_geometry,
)
from lpg_hf.data.report import MissingFiles, Report, check_missing


# Fractions without their image are checked as if it had this size, in pixels.
_SIZE_WITHOUT_IMAGE = (640, 640)
# Images of which one must be found in a folder for it to be the folder of the images.
_NUM_TRIED = 20


@dataclass(frozen=True)
class ToolFormat:
    """A format of `TOOL_FORMATS`.

    Attributes:
        title: for messages.
        looks_like: whether a file (absolute path) is of the format; some tell folders too.
        read_split: (path, split) -> its images.
        suffixes: of its files; a folder is of the format if such a file in it, or in a folder in it, looks like it.
            None: `looks_like` tells folders.
        deep: files may lie in folders of folders.
        one_split: without a split, `read_split` reads only one of several.
    """

    title: str
    looks_like: Callable[[str], bool]
    read_split: Callable[[str, str | None], ToolFile]
    suffixes: tuple[str, ...] | None = None
    deep: bool = False
    one_split: bool = False

    def read(self, path: str, split: str | None = None) -> "SplitFile":
        """The images of a split, with the class names of all splits, so that a name has one label in all of them.

        Raises:
            FileNotFoundError: nothing of the split there.
            ValueError: a file is not valid.
        """
        chosen = self.read_split(path, split)
        result = SplitFile(**{item.name: getattr(chosen, item.name) for item in fields(chosen)})
        result.names = _names(chosen)
        if os.path.isfile(fs_path(path)):
            return result
        others = (None, *SPLITS) if self.one_split else (None,)
        for other in others:
            if other == split:
                continue
            try:
                more = self.read_split(path, other)
            except FileNotFoundError:  # No such split.
                continue
            result.names |= _names(more)
            if split is None and not set(more.files) <= set(chosen.files):
                result.problems = [*result.problems, ("unread_split", f"{other}: {len(more.images)} images")]
            result.files = list(dict.fromkeys([*result.files, *more.files]))
            if other is None:
                result.classes = more.classes
        return result


@dataclass
class SplitFile(ToolFile):
    """The images of a split; `names`, `classes` and `files` are of all splits."""

    names: set[str] = field(default_factory=set)


def _names(tool_file: ToolFile) -> set[str]:
    objects = (item for image in tool_file.images for item in image.objects)
    return {item.name or UNNAMED for item in objects if item.name or not item.iscrowd}


TOOL_FORMATS = {
    "csv": ToolFormat("CSV table", csv_table.looks_like, csv_table.read, (".csv", ".tsv")),
    "labelme": ToolFormat("LabelMe json", labelme.looks_like, labelme.read, (".json",), deep=True),
    "cvat": ToolFormat("CVAT for images xml", cvat.looks_like, cvat.read, (".xml",)),
    "label-studio": ToolFormat("Label Studio json", label_studio.looks_like, label_studio.read, (".json",)),
    "createml": ToolFormat("CreateML json", createml.looks_like, createml.read, (".json",)),
    "bdd100k": ToolFormat("BDD100K json", bdd100k.looks_like, bdd100k.read, (".json",), deep=True),
    "kitti": ToolFormat("KITTI labels", kitti.looks_like, kitti.read, one_split=True),
    "mot": ToolFormat("MOT gt.txt", mot.looks_like, mot.read, one_split=True),
    "dota": ToolFormat("DOTA labels", dota.looks_like, dota.read, one_split=True),
}
# Files of a folder and of each folder in it that are looked at.
_NUM_LOOKS = 5


def recognise(path: str) -> list[str]:
    """The formats of `TOOL_FORMATS` that a file or a folder is of; more than one only for a folder."""
    if os.path.isfile(fs_path(path)):
        return [name for name, tool in TOOL_FORMATS.items() if tool.looks_like(path)][:1]
    found = {name for name, tool in TOOL_FORMATS.items() if tool.suffixes is None and tool.looks_like(path)}
    inner = sorted(item.path for item in os.scandir(fs_path(path)) if item.is_dir() and not item.name.startswith("."))
    for folder in [path, *inner]:
        for deep in (False,) if folder == path else (False, True):
            tools = {n: t for n, t in TOOL_FORMATS.items() if t.suffixes and (t.deep or not deep) and n not in found}
            suffixes = tuple({suffix for tool in tools.values() for suffix in tool.suffixes or ()})
            for _, file in zip(range(_NUM_LOOKS), walk_files(folder, suffixes, deep=deep)):
                found |= {name for name, tool in tools.items() if tool.looks_like(f"{folder}/{file}")}
    return [name for name in TOOL_FORMATS if name in found]


def likeness(path: str) -> str:
    """What annotations that cannot be used look like, as a sentence after the error; "" if nothing is known.

    Args:
        path: file or folder.
    """
    known = describe(path)
    if known is not None:
        return known
    found = recognise(path)
    if not found and os.path.isdir(fs_path(path)):
        files = (f"{path}/{name}" for _, name in zip(range(_NUM_LOOKS), walk_files(path, (".txt", ".json", ".xml"))))
        found = [name for file in files for name in recognise(file)]
    return f"It looks like {TOOL_FORMATS[found[0]].title} (--format {found[0]})" if found else ""


@dataclass
class ToolEntry:
    """One image that exists (or is kept without), not yet checked.

    Attributes:
        file_name: relative to the image folder, forward slashes.
        path: of the image; None: it does not exist.
        images: what the file states about it, in one place or in several.
        categories: 0-based class of each object of `images`, in their order; None: not wanted, `NO_CLASS`: not known.
        first_id: id of the first object; the others follow.
    """

    file_name: str
    path: str | None
    images: list[ToolImage]
    categories: list[int | None] = field(default_factory=list)
    first_id: int = 1


@dataclass
class ToolIndex:
    """A file or folder: `classes` are names in the order of the labels; `files` were read for it."""

    classes: list[str]
    entries: list[ToolEntry]
    files: list[str]
    image_folder: str


def _stated(image: ToolImage) -> StatedImage:
    return StatedImage(image.file_name, image.other_names, image.folder)


def _image_folder(tool_file: ToolFile, images: str | None, path: str) -> str:
    """The folder of the images: the one asked for, else the first usual one in which some of the images are found."""
    if images is not None:
        return unicode_path(images)
    tried = [_stated(image) for image in tool_file.images[:_NUM_TRIED]]
    folders = [unicode_path(folder) for folder in tool_file.image_folders]
    for folder in folders:
        if any(ImageFinder(folder).exact(image) for image in tried):
            return folder
    # The one that knows most of them; among equals the innermost, so that names are short.
    ranked = sorted(((num_found(folder, tried), len(folder), folder) for folder in folders), reverse=True)
    if ranked and ranked[0][0]:
        return ranked[0][2]
    return folders[0] if folders else path if os.path.isdir(fs_path(path)) else os.path.dirname(path)


def read_index(format: str, path: str, images: str | None, options: ReadOptions, report: Report) -> ToolIndex:
    """Read a file or folder, find its images, and number its classes.

    Args:
        format: key of `TOOL_FORMATS`.
        path: absolute, forward slashes.
        images: folder of the images; None: the usual place of the tool.
        options: how to read.
        report: counts problems.

    Returns:
        The classes (those that the files list, else the names of all splits by the alphabet) and one entry per image.

    Raises:
        FileNotFoundError: nothing of the format there; images are missing.
        ValueError: not valid; no object can be read; unknown classes; no object of the classes at all.
    """
    tool = TOOL_FORMATS[format]
    tool_file = tool.read(path, options.split)
    if not tool_file.images and not tool_file.problems:
        where = f" of the split {options.split!r}" if options.split is not None else ""
        raise FileNotFoundError(f"no {tool.title}{where} in {path}. Pass the file, or another format (--format)")
    problems = [*tool_file.problems, *(problem for image in tool_file.images for problem in image.problems)]
    for kind, place in problems:
        left_out = place if kind in ("unreadable_annotation", "invalid_image_entry", "unsafe_path") else None
        report.add(kind, place, image=left_out)
    if problems and not any(image.objects for image in tool_file.images):
        raise ValueError(f"no object of {path} can be used; it looks like {tool.title}.\n{report.summary()}")
    selected, position = _select_classes(tool_file, options, path)
    listed = None if tool_file.classes is None else set(tool_file.classes)
    report.classes = [f"{label} {name}" for label, name in enumerate(selected, start=1)]

    folder = _image_folder(tool_file, images, path)
    entries = _make_entries(tool_file, folder, options, report)
    next_id = 1
    wanted: list[ToolEntry] = []
    for entry in entries:
        objects = [item for image in entry.images for item in image.objects]
        entry.categories = [_category(item, position, listed, options, report) for item in objects]
        entry.first_id, next_id = next_id, next_id + len(objects)
        for image in entry.images:
            image.lost = [pair for pair in image.lost if _may_be_wanted(pair[0], position, listed)]
        has_lost = any(image.lost for image in entry.images)
        if options.keep_empty or has_lost or any(category is not None for category in entry.categories):
            wanted.append(entry)
        else:
            report.add("image_without_object", entry.file_name, image=entry.file_name)
    if not options.keep_empty and not wanted:
        raise ValueError(
            f"no image of {path} has an object of the classes {', '.join(selected[:5])}.\n{report.summary()}"
        )
    return ToolIndex(selected, wanted, tool_file.files, folder)


def _select_classes(tool_file: SplitFile, options: ReadOptions, path: str) -> tuple[list[str], dict[str, int]]:
    """The wanted classes in the order of the labels, and the position of each."""
    found = tool_file.names
    listed = list(dict.fromkeys(tool_file.classes or sorted(found)))
    if options.classes is None or options.classes == "all":
        unlisted = sorted(found - set(listed)) if options.keep_unlisted and options.classes is None else []
        selected = [*listed, *unlisted]
    elif isinstance(options.classes, str):
        raise ValueError(f"classes must be a list of names, 'all' or None, got {options.classes!r}")
    else:
        unknown = [name for name in options.classes if name not in {*listed, *found}]
        if unknown:
            raise ValueError(f"classes {unknown} are not in {path}; it holds: {', '.join(sorted({*listed, *found}))}")
        selected = [name for name in [*listed, *sorted(found - set(listed))] if name in options.classes]
    return selected, {name: index for index, name in enumerate(selected)}


def _category(
    item: ToolObject, position: dict[str, int], listed: Container[str] | None, options: ReadOptions, report: Report
) -> int | None:
    """The 0-based class of an object; None (and counted) if it is not wanted, `NO_CLASS` if it is not known."""
    if item.name is None and item.iscrowd:  # A region of no class.
        return NO_CLASS
    name = item.name or UNNAMED
    if item.name is None:
        report.add("no_class_name", item.place)
    if listed is not None and name not in listed:
        report.add("unlisted_class" if name in position else "unknown_class", item.place, name)
        return position.get(name, NO_CLASS)
    if name not in position:
        report.add("other_class", item.place, name)
    return position.get(name)


def _may_be_wanted(name: str | None, position: dict[str, int], listed: Container[str] | None) -> bool:
    """Whether an object that cannot be used may be of a wanted class: one of these, or none that is known."""
    return name is None or name in position or (listed is not None and name not in listed)


def _make_entries(tool_file: ToolFile, folder: str, options: ReadOptions, report: Report) -> list[ToolEntry]:
    """One entry per image file, in the order of the annotations."""
    matched = match_images(folder, [_stated(image) for image in tool_file.images], report)
    entries: dict[str, ToolEntry] = {}
    missing: dict[str, ToolEntry] = {}
    for image in tool_file.images:
        if _stated(image) in matched.ambiguous:
            continue
        name = matched.names.get(_stated(image))
        if name is not None:
            entry = entries.get(name)
            if entry is None:
                entries[name] = ToolEntry(name, f"{folder}/{name}", [image])
            else:
                report.add("duplicate_file_name", f"{image.place}: {image.file_name}")
                entry.images.append(image)
            continue
        parts = [part for part in image.file_name.replace("\\", "/").split("/") if part.strip(". ")]
        if not parts or "\0" in image.file_name or len(image.file_name) > LONGEST_PATH:
            name = image.file_name[:100]
            report.add("invalid_image_entry", f"{image.place}: {name!r}", image=name)
            continue
        try:
            stated = relative_name(image.file_name)
        except ValueError:  # Absolute, or above the folder: only the name can be looked for.
            stated = parts[-1]
        missing.setdefault(stated, ToolEntry(stated, None, [])).images.append(image)
    total = len(entries) + len(missing)
    check_missing(MissingFiles("missing_image", "images", list(missing), total, folder), options, report)
    return [*entries.values(), *(missing.values() if options.keep_missing else ())]


def make_record(entry: ToolEntry, options: ReadOptions, report: Report) -> Record | None:
    """Check one image and its objects.

    Returns:
        The record, or None (and counted) if the image cannot be used.

    Raises:
        ValueError: the sizes differ and `options.size_mismatch` is "error".
    """
    stated = next((image.size for image in entry.images if image.size), None)
    frame = image_geometry(entry.path, entry.file_name, stated, options, report)
    if frame is None:
        return None
    if frame.size is None and any(image.fractions for image in entry.images):
        frame = Geometry(_SIZE_WITHOUT_IMAGE)
    objects, num_lost = _regions_of_lost(entry, frame, report)
    items = [(image, item) for image in entry.images for item in image.objects]
    for number, ((image, item), category) in enumerate(zip(items, entry.categories)):
        made = None if category is None else _make_object(item, category, image, frame, options, report)
        if made is not None:
            made.id = entry.first_id + number
            objects.append(made)
    record = Record(entry.path, entry.file_name, os.path.splitext(entry.file_name)[0], frame.size, objects)
    record = finish_record(record, entry.file_name, num_lost, options, report)
    if record is not None:  # Regions that the tool itself marks as ignored are no loss.
        named = (item.name for (_, item), category in zip(items, entry.categories) if category == NO_CLASS)
        record.has_unusable = any(image.lost for image in entry.images) or any(name is not None for name in named)
    return record


def _regions_of_lost(entry: ToolEntry, frame: Geometry, report: Report) -> tuple[list[BoxObject], int]:
    """The regions of the objects that cannot be used, and the number of those whose place is not known."""
    regions, num_lost = [], 0
    for image in entry.images:
        for _, box in image.lost:
            if box is None or (image.fractions and frame.size is None):
                num_lost += 1
                continue
            scale = _scale(image, frame)
            x1, y1, x2, y2 = (value * scale[i % 2] for i, value in enumerate(box))
            height, width = frame.size or (math.inf, math.inf)
            # A point or a line covers at least a pixel.
            x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(max(x2, x1 + 1), width), min(max(y2, y1 + 1), height)
            if x1 < x2 and y1 < y2:
                regions.append(BoxObject((x1, y1, x2, y2), NO_CLASS, (x2 - x1) * (y2 - y1), True))
    return regions, num_lost


def _scale(image: ToolImage, frame: Geometry) -> tuple[float, float]:
    """What the numbers of an image have to be multiplied with: (x, y)."""
    if image.fractions and frame.size is not None:
        return float(frame.size[1]), float(frame.size[0])
    return frame.scale_x, frame.scale_y


def _make_object(
    item: ToolObject, category: int, image: ToolImage, frame: Geometry, options: ReadOptions, report: Report
) -> BoxObject | None:
    scale = _scale(image, frame)
    outlines = [[value * scale[i % 2] for i, value in enumerate(outline)] for outline in item.outlines]
    corners = _corners(item, outlines, scale, frame, report)
    box = None if corners is None else checked_box(corners, frame.size, item.place, report)
    if box is None:
        return None
    rle, stated = None, {}
    if options.masks and frame.size is not None and item.mask is not None:
        rle = _rle_of_window(item, image.size or frame.size, frame, report)
    elif options.masks and frame.size is not None:
        segmentation = item.rle if item.rle is not None else [] if item.is_region else outlines
        # Outlines are in the image's frame already; run lengths are still in the stated one.
        of_mask = frame if item.rle is not None else Geometry(frame.size)
        rle = segmentation_to_rle(segmentation, of_mask, item.place, report)
        stated = {"segmentation": segmentation} if rle is not None and item.rle is None else {}
    area = float(coco_mask.area(rle)) if rle is not None else box_area(box)
    is_turned = item.is_region and not fills_box(outlines[0], box) and _is_near(outlines[0], frame)
    region = outlines[0] if is_turned else None
    iscrowd = item.iscrowd or category == NO_CLASS
    return BoxObject(box, category, area, iscrowd, item.difficult, rle=rle, stated=stated, region=region)


def _rle_of_window(item: ToolObject, size: tuple[int, int], frame: Geometry, report: Report) -> Rle | None:
    """The mask of an object with `ToolObject.mask`, in the image's frame; None (and counted) if there is none.

    Args:
        size: (height, width) that the file states; nothing is painted before the image is known to have it.
    """
    rle = item.mask(size) if item.mask is not None and fits(size, frame) else None
    if rle is not None and frame.is_scaled:
        rle = rescaled_rle(rle, frame)
    if rle is None or not coco_mask.area(rle):  # type: ignore[arg-type]
        report.add("invalid_mask", f"{item.place}: the mask does not fit the image, or has no pixel")
        return None
    return with_text(rle)


def _corners(
    item: ToolObject, outlines: list[list[float]], scale: tuple[float, float], frame: Geometry, report: Report
) -> Box | None:
    """The box of an object in the image's frame, xyxy; None (and counted) if there is none."""
    if item.box is not None:
        x1, y1, x2, y2 = (value * scale[i % 2] for i, value in enumerate(item.box))
        return x1, y1, x2, y2
    corners = extent(outlines) or _extent_of_rle(item.rle, frame)
    if corners is None:
        report.add("no_box", item.place)
    elif not (item.is_region and fills_box(outlines[0], corners)):
        report.add("rotated_box" if item.is_region else "box_from_polygon", item.place)
    return corners


def _is_near(outline: list[float], frame: Geometry) -> bool:
    """Whether an outline lies in the image or not far outside: what draws it takes as much memory as it is long."""
    height, width = frame.size or (0, 0)
    return all(-(width, height)[i % 2] <= value <= 2 * (width, height)[i % 2] for i, value in enumerate(outline))


def _extent_of_rle(rle: dict | None, frame: Geometry) -> tuple[float, float, float, float] | None:
    checked: Any = checked_rle(rle) if rle is not None else None
    if checked is None or not coco_mask.area(checked):
        return None
    x, y, width, height = coco_mask.toBbox(checked).tolist()
    return x * frame.scale_x, y * frame.scale_y, (x + width) * frame.scale_x, (y + height) * frame.scale_y
