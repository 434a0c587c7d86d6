"""Look at every image and every object of a source before it is used: `lpg-hf check`."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from pycocotools import mask as coco_mask
from tqdm import tqdm

from lpg_hf.data.options import SOURCE_OPTIONS, ReadOptions
from lpg_hf.data.records import NO_CLASS, BoxObject, Record
from lpg_hf.data.report import Report
from lpg_hf.data.sources import Source, open_source
from lpg_hf.label_maps import no_class_message


# Images per task: the report of a task is merged when its turn comes, so that places keep the order of the file.
TASK_SIZE = 16
# Classes that the summary names, those with the most objects first.
_MAX_CLASSES = 100
# Boxes look loose or shrunken where the median margin to the mask is above this share of the box on every side. Where
# the sides have `_MIN_SIDE` pixels, one pixel is not more than that; fewer boxes than `_MIN_BOXES` tell nothing.
_MAX_MARGIN = 0.05
_MIN_SIDE = 20
_MIN_BOXES = 5


@dataclass
class Checked:
    """What a check found.

    Attributes:
        format: of the annotations.
        path: of the annotations.
        report: counts and all places. Images that do not exist count too: their annotations were checked.
        note: what was checked of images that do not exist, if there are any.
    """

    format: str
    path: str
    report: Report
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing needs attention, and at least one object can be used."""
        return self.report.objects > 0 and not self.report.needs_attention

    def summary(self) -> str:
        """The lines for a person: the file, the counts, and what must be corrected."""
        outcomes = {"missing_mask": "boxes checked"} | ({"missing_image": "annotations checked"} if self.note else {})
        counted = sorted(self.report.objects_per_class.items(), key=lambda pair: (-pair[1], pair[0]))
        shown = ", ".join(f"{name} {number}" for name, number in counted[:_MAX_CLASSES])
        more = f", and {len(counted) - _MAX_CLASSES} more" if len(counted) > _MAX_CLASSES else ""
        classes = f"objects per class: {shown}{more}" if counted else ""
        lines = [f"{self.path} ({self.format}): {self.report.summary(outcomes)}", classes, self.note]
        return "\n".join(line for line in lines if line)


def check_source(
    annotations: str | os.PathLike,
    images: str | os.PathLike | None = None,
    options: ReadOptions = SOURCE_OPTIONS,
    *,
    format: str = "auto",
    decode: bool = True,
    num_workers: int | None = None,
    progress: bool = False,
) -> Checked:
    """Open everything, and count what is wrong. Memory grows with the number of problems, not with that of the images.

    Where images of annotation files do not exist, the annotations are checked all the same, against the stated sizes.

    Args:
        annotations: see `sources.open_source`.
        images: folder of the images.
        options: `masks` checks masks too (COCO, YOLO: that each object's can be used; VOC: that the PNG fits image and
            classes). Images with more than `max_pixels` are counted and not decoded. `keep_missing` is always on.
        format: see `sources.open_source`.
        decode: decode every image, which finds those that are damaged; off, only headers are read.
        num_workers: threads; None: one per core.
        progress: show a bar on stderr.

    Raises:
        FileNotFoundError: the annotations are missing, or all images of a dataset.
        ValueError: the annotations cannot be read at all.
    """
    report = Report(max_places=None)
    source = open_source(annotations, images, replace(options, keep_missing=True), format=format, report=report)
    starts = range(0, len(source), TASK_SIZE)
    with (
        ThreadPoolExecutor(num_workers or os.cpu_count()) as pool,
        tqdm(total=len(source), unit=" images", disable=not progress) as bar,
    ):
        num_masks = 0
        margins = [np.zeros((0, 4))]
        for found, found_masks, found_margins in pool.map(lambda start: _check_some(source, start, decode), starts):
            report.merge(found)
            num_masks += found_masks
            margins.append(found_margins)
            bar.update(min(TASK_SIZE, len(source) - bar.n))
    if num_masks and report.counts.get("mask_without_object") == num_masks:
        report.add_error(no_class_message(f"the class masks of {source.path}"))
    if options.masks and source.format == "coco" and 0 < report.objects <= report.counts.get("no_mask", 0):
        report.add_error(f"no object of {source.path} has a mask. Pass annotations with masks, or leave out --masks")
    report.fit = _fit_of_boxes(np.concatenate(margins))
    return Checked(source.format, source.path, report, _note(source, report))


def _margins(item: BoxObject) -> np.ndarray | None:
    """(4,) how far the mask ends inside the box on the left, top, right and bottom, as shares of the box.

    None: there is no mask, or the box is too small to tell.
    """
    x1, y1, x2, y2 = item.box
    if item.rle is None or item.iscrowd or min(x2 - x1, y2 - y1) < _MIN_SIDE:
        return None
    x, y, width, height = coco_mask.toBbox(item.rle)  # type: ignore[arg-type]
    if not width * height:
        return None
    return np.array([x - x1, y - y1, x2 - x - width, y2 - y - height]) / np.tile((x2 - x1, y2 - y1), 2)


def _fit_of_boxes(margins: np.ndarray) -> str:
    """What the `_margins` of all boxes, (N, 4), say of them; empty if they fit, or if there are too few."""
    medians = np.median(margins, axis=0) if len(margins) >= _MIN_BOXES else np.zeros(4)
    if (medians > _MAX_MARGIN).all():
        fault = "loose: the masks end before them"
    elif (medians < -_MAX_MARGIN).all():
        fault = "shrunken: the masks leave them"
    else:
        return ""
    names = ("left", "top", "right", "bottom")
    sides = ", ".join(f"{name} {100 * abs(value):.0f} %" for name, value in zip(names, medians))
    return (
        f"boxes look {fault}, in the median of {len(margins)} objects by {sides} of the box. For masks from these "
        f"boxes pass --grow-boxes {-medians.mean():.2f} to lpg-hf masks"
    )


def _note(source: Source, report: Report) -> str:
    num_missing = report.counts.get("missing_image", 0)
    if not num_missing or source.image_folder is None:
        return ""
    sizes = "as fractions" if source.format == "yolo" else "against the stated sizes"
    return (
        f"{num_missing} of {len(source)} images do not exist in {source.image_folder}: only their annotations were "
        f"checked, boxes {sizes}. Pass the right folder (--images) to check the images too"
    )


def _check_some(source: Source, start: int, decode: bool) -> tuple[Report, int, np.ndarray]:
    """What was found in some images, the number of their class masks, and the `_margins` of objects, (N, 4)."""
    total, num_masks, margins = Report(max_places=None), 0, []
    for index in range(start, min(start + TASK_SIZE, len(source))):
        reports, record = _check_one(source, index, decode)
        for report in reports:
            total.merge(report)
        if record is not None:
            num_masks += record.mask_path is not None
            margins += [found for found in map(_margins, record.objects) if found is not None]
    return total, num_masks, np.reshape(margins, (-1, 4))


def _check_one(source: Source, index: int, decode: bool) -> tuple[list[Report], Record | None]:
    report = Report(max_places=None)
    name = source.file_names[index]
    try:
        record = source.record(index, report)
    except ValueError as error:  # A class mask that does not fit.
        report.add("invalid_class_mask", f"{name}: {error}")
        report.add_error(str(error))
        record = None
    for item in () if record is None else record.objects:
        if item.category != NO_CLASS:
            class_name = source.classes[item.category][1]
            report.objects_per_class[class_name] = report.objects_per_class.get(class_name, 0) + 1
    if record is None or not record.has_image or not decode:
        return [report], record
    damage = Report()
    source.decode(record, damage)
    return [report, damage], record
