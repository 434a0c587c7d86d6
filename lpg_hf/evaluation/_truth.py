"""True masks beside the images of a source: a folder of label maps, a COCO file, or the annotations themselves."""

import os
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from lpg_hf._class_lists import colours_of_maps
from lpg_hf._files import fs_path
from lpg_hf._rle import Rle, encode_window
from lpg_hf.boxes import box_slices
from lpg_hf.data._formats.voc import MASKS_FOLDER
from lpg_hf.data._painting import crowd_pixels, paint_label_map
from lpg_hf.data._recognise import voc_folders
from lpg_hf.data._upright import upright_labels
from lpg_hf.data.options import SOURCE_OPTIONS, ReadOptions
from lpg_hf.data.records import NO_CLASS, BoxObject, Record
from lpg_hf.data.report import Report
from lpg_hf.data.sources import Source, open_source
from lpg_hf.evaluation.evaluate import BOX_TOLERANCE, default_ignore
from lpg_hf.label_maps import IGNORE_INDEX_16, mask_name, read_label_map


@dataclass
class ImageTruth:
    """The truth of one image.

    Attributes:
        label_map: (H, W) integer in the labels of the source.
        ignored: its value that counts nowhere.
        objects: of a COCO file: the true objects with their labels; None if there is only the label map.
        crowd: of a COCO file: (H, W) bool, its crowd regions where no object lies.
    """

    label_map: np.ndarray
    ignored: int
    objects: list[tuple[BoxObject, int]] | None = None
    crowd: np.ndarray | None = None

    def of_box(self, item: BoxObject) -> tuple[Rle | None, np.ndarray | None]:
        """(mask of an object of the source, pixels that count nowhere); the mask is None if it has no truth."""
        if self.objects is None:
            size = self.label_map.shape[0], self.label_map.shape[1]
            window = box_slices(item.box, *size)
            return encode_window(self.label_map[window] == item.category + 1, window, size), self._void
        match = self._match(item)
        if match is None or match.rle is None:
            return None, None
        return match.rle, self.crowd

    @cached_property
    def _void(self) -> np.ndarray:
        return self.label_map == self.ignored

    def _match(self, item: BoxObject) -> BoxObject | None:
        """The true object of the class that lies at the box of an object: with its id, else the closest."""
        if item.category + 1 not in self._of_class:
            return None
        of_class = self._of_class[item.category + 1]
        left = item.box[0] + np.array([-2, 2]) * BOX_TOLERANCE
        low, high = np.searchsorted(of_class.lefts, left)
        near = np.sort(of_class.by_left[low:high])
        distance = np.abs(of_class.boxes[near] - item.box).max(axis=1, initial=0)
        near, distance = near[distance <= BOX_TOLERANCE], distance[distance <= BOX_TOLERANCE]
        if not len(near):
            return None
        same_id = (number for number in of_class.by_id.get(item.id, ()) if number in near)
        return of_class.objects[next(same_id, near[distance.argmin()])]

    @cached_property
    def _of_class(self) -> "dict[int, _TrueObjects]":
        groups: dict[int, list[BoxObject]] = {}
        for true, label in self.objects or ():
            groups.setdefault(label, []).append(true)
        return {label: _TrueObjects(objects) for label, objects in groups.items()}


class _TrueObjects:
    """The true objects of one class, so that those near a box are found without a look at the others."""

    def __init__(self, objects: list[BoxObject]) -> None:
        self.objects = objects
        self.boxes = np.array([item.box for item in objects], dtype=np.float64)  # (N, 4)
        self.by_left = np.argsort(self.boxes[:, 0], kind="stable")
        self.lefts = self.boxes[self.by_left, 0]
        self.by_id: dict[int, list[int]] = {}
        for number, item in enumerate(objects):
            self.by_id.setdefault(item.id, []).append(number)


class Truth(Protocol):
    """The ground truth of a source's images."""

    @property
    def report(self) -> Report | None:
        """What the reader found; None of label maps, as `of` raises what is wrong with one."""
        ...

    def has(self, file_name: str) -> bool:
        """Whether there is ground truth for an image."""
        ...

    def of(self, record: Record) -> ImageTruth:
        """The ground truth of an image.

        Raises:
            OSError: the file cannot be read.
            ValueError: it cannot be used, or has another size than the image.
        """
        ...


class _FolderTruth:
    """Label maps (PNG) under the images' relative paths, in the labels of a source or in colours of its classes."""

    report: Report | None = None

    def __init__(self, folder: str, object_value: int | None, source: Source) -> None:
        self.folder, self.object_value = folder, object_value
        _, self.colours = colours_of_maps(folder, [name for _, name in source.classes])

    def has(self, file_name: str) -> bool:
        return os.path.isfile(fs_path(self._path(file_name)))

    def of(self, record: Record) -> ImageTruth:
        """See `Truth.of`."""
        path = self._path(record.file_name)
        label_map = read_label_map(path, object_value=self.object_value, colours=self.colours)
        label_map = label_map if self.object_value is None else record.with_its_class(label_map)
        if record.mask_orientation > 1:  # With `stored_frame` they lie as the annotations do.
            label_map = upright_labels(label_map, record.mask_orientation)
        if label_map.shape != (record.height, record.width):
            raise ValueError(
                f"{path} is {label_map.shape[1]} x {label_map.shape[0]}, but the image {record.width} x "
                f"{record.height}"
            )
        return ImageTruth(label_map, default_ignore(label_map))

    def _path(self, file_name: str) -> str:
        return os.path.join(self.folder, mask_name(file_name))


class _SourceTruth:
    """Masks of annotations; their images meet those of the source by file name, their classes by name."""

    def __init__(self, masks: Source, report: Report, source: Source) -> None:
        self.source, self.report = masks, report
        self.index = {name: index for index, name in enumerate(masks.file_names)}
        self.names = [name for _, name in masks.classes]
        self.label_of = {name: label for label, (_, name) in enumerate(source.classes, start=1)}

    def has(self, file_name: str) -> bool:
        return file_name in self.index

    def of(self, record: Record) -> ImageTruth:
        """See `Truth.of`."""
        report = Report()
        true = self.source.record(self.index[record.file_name], report)
        self.report.merge(report)
        if true is None:
            raise ValueError(f"cannot be used in {self.source.path}: {'; '.join(report.reasons())}")
        if (true.height, true.width) != (record.height, record.width):
            raise ValueError(
                f"is {true.width} x {true.height} in {self.source.path}, but {record.width} x {record.height} "
                f"in the annotations"
            )
        names, label_of = self.names, self.label_of
        known = [item for item in true.objects if item.category == NO_CLASS or names[item.category] in label_of]
        objects = [(item, 1 if item.category == NO_CLASS else label_of[names[item.category]]) for item in known]
        single = [pair for pair in objects if not pair[0].iscrowd]
        items, labels = [item for item, _ in objects], [label for _, label in objects]
        label_map = paint_label_map(items, true.height, true.width, labels, IGNORE_INDEX_16)
        return ImageTruth(label_map, IGNORE_INDEX_16, single, crowd_pixels(items, true.height, true.width))


def open_truth(
    path: str | None, source: Source, images: str | None, options: ReadOptions, object_value: int | None = None
) -> Truth:
    """The ground truth of a source: a folder of label maps, or a COCO json.

    Args:
        path: None: the masks of the annotations themselves, of VOC those of its folder SegmentationClass.
        images: folder of the source's images.
        options: how the source is read; a COCO json is read with the same limits, and with `stored_frame` the truth is
            in the frame of the stored images too.
        object_value: of a folder: see `label_maps.read_label_map`.

    Raises:
        FileNotFoundError: it does not exist.
    """
    if path is None and source.format == "voc":
        return _FolderTruth(f"{voc_folders(source.path).root}/{MASKS_FOLDER}", object_value, source)
    report = Report()
    if path is None:
        masks = open_source(source.path, images, replace(options, masks=True), format=source.format, report=report)
        return _SourceTruth(masks, report, source)
    if os.path.isdir(fs_path(path)):
        return _FolderTruth(path, object_value, source)
    if not os.path.isfile(fs_path(path)):
        raise FileNotFoundError(f"ground truth {path} does not exist. Pass a folder of label maps or a COCO json.")
    # Split, classes and corners are those of the annotations, not of this file.
    own = replace(
        SOURCE_OPTIONS,
        masks=True,
        size_mismatch=options.size_mismatch,
        max_pixels=options.max_pixels,
        skip_ambiguous=options.skip_ambiguous,
        stored_frame=options.stored_frame,
    )
    return _SourceTruth(open_source(path, images, own, format="coco", report=report), report, source)
