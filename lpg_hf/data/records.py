"""What every annotation format has in common: the record of an image and its objects, its frame, and checked boxes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lpg_hf._rle import Rle
from lpg_hf.data._upright import upright_box, upright_labels, upright_points, upright_rle, upright_size
from lpg_hf.data.options import ReadOptions
from lpg_hf.data.report import Report
from lpg_hf.images import ImageProblem, image_orientation, image_size
from lpg_hf.label_maps import label_map_type, read_label_map


# How far a box may reach over the border before it is counted as clipped: rounding by other tools, and ours.
CLIP_TOLERANCE_PIXELS = 0.5 + 1e-6
MIN_BOX_SIDE = 1e-3
_LARGEST_NUMBER = 1e12  # of pixels and fractions; not a number where a file holds a larger one, an infinity or a NaN
# The category of a region that may hold an object of any class, or of none; always a crowd.
NO_CLASS = -1
# The class of objects that state none.
UNNAMED = "object"
Box = tuple[float, float, float, float]  # xyxy, pixels, 0-based, end exclusive


@dataclass
class BoxObject:
    """One annotated object.

    Attributes:
        box: (x1, y1, x2, y2), pixels, 0-based, end exclusive, inside the upright image.
        category: 0-based position in the class list (semantic label - 1); `NO_CLASS`: a region that is ignored, as an
            object that cannot be used lies in it.
        area: pixels; of the mask if there is one, else as stated, else of the box.
        iscrowd: a region of many objects (COCO), not a single object.
        difficult: VOC flag.
        id: unique in its dataset.
        rle: COCO mask; None if there is none or masks were not asked for.
        stated: COCO fields that say more than `rle` and `area` do, as the file states them: "segmentation" (an outline
            between pixels) and "area"; only beside `rle`.
        region: x, y, x, y, ... in pixels: a rotated box or quadrilateral in which the object lies; its mask is cut to
        it.
    """

    box: Box
    category: int
    area: float
    iscrowd: bool = False
    difficult: bool = False
    id: int = 0
    rle: Rle | None = None
    stated: dict = field(default_factory=dict, compare=False)
    region: list[float] | None = None


@dataclass
class Record:
    """One image with its objects.

    Attributes:
        path: of the image file; None: it is in a row of a dataset, or does not exist (`keep_missing`).
        file_name: relative to the image folder, forward slashes.
        image_id: the id in the annotation file, as text.
        size: (height, width) of the upright image (EXIF orientation applied), pixels; of an image that does not exist
            as stated, or None.
        objects: in the order of the file.
        mask_path: VOC class mask (PNG of class indices), if asked for.
        mask_orientation: EXIF orientation of the frame that the class mask is in; 1: the upright image's.
        license: name and address, if the file states them.
        row: number of the row that holds the image, in a dataset.
        has_unusable: whether some of the regions of no class stand for objects that cannot be used.
    """

    path: str | None
    file_name: str
    image_id: str
    size: tuple[int, int] | None
    objects: list[BoxObject] = field(default_factory=list)
    mask_path: str | None = None
    mask_orientation: int = 1
    license: str = ""
    row: int | None = None
    has_unusable: bool = False

    @property
    def height(self) -> int:
        """Pixels; raises ValueError if the size is not known."""
        return _known(self.size, self.file_name)[0]

    @property
    def width(self) -> int:
        """Pixels; raises ValueError if the size is not known."""
        return _known(self.size, self.file_name)[1]

    def changed_mask(self, object_value: int | None) -> np.ndarray | None:
        """(H, W) uint8 labels of the class mask, in the upright image, where they are not what its file holds.

        Args:
            object_value: see `label_maps.read_label_map`.

        Returns:
            None: there is no class mask, or its file is right as it is.

        Raises:
            ValueError: the value marks objects of several classes.
        """
        if self.mask_path is None or (object_value is None and self.mask_orientation == 1):
            return None
        labels = read_label_map(self.mask_path, object_value=object_value)
        labels = labels if object_value is None else self.with_its_class(labels)
        return labels if self.mask_orientation == 1 else upright_labels(labels, self.mask_orientation)

    def with_its_class(self, objects: np.ndarray) -> np.ndarray:
        """(H, W) labels of an image whose objects are of one class, from where the objects are ((H, W) uint8, 0 or 1).

        Without an object the class is not known: such pixels are ignored.

        Raises:
            ValueError: the objects are of several classes.
        """
        labels = {item.category + 1 for item in self.objects if item.category != NO_CLASS}
        if len(labels) > 1:
            raise ValueError(
                f"one value of its mask marks all objects of {self.file_name} (--object-value), but they are of "
                f"{len(labels)} classes. Make a class mask with their labels"
            )
        map_type, ignored = label_map_type(max(labels, default=0))
        return objects.astype(map_type) * map_type(labels.pop() if labels else ignored)

    @property
    def has_image(self) -> bool:
        """Whether there is an image to open."""
        return self.path is not None or self.row is not None

    @property
    def num_objects(self) -> int:
        """Number of objects, without the regions of no class."""
        return sum(item.category != NO_CLASS for item in self.objects)

    @property
    def single_objects(self) -> list[BoxObject]:
        """The objects without crowd regions."""
        return [item for item in self.objects if not item.iscrowd]


def _known(size: tuple[int, int] | None, name: str) -> tuple[int, int]:
    if size is None:
        raise ValueError(f"the size of {name} is not known: the image does not exist, and the annotations state none")
    return size


def stated_size(height: Any, width: Any) -> tuple[int, int] | None:
    """(height, width) as positive integers, or None if the file states none that can be true."""
    if isinstance(height, bool) or isinstance(width, bool):  # Python takes them for 0 and 1.
        return None
    try:
        size = int(float(height)), int(float(width))
    except (TypeError, ValueError, OverflowError):
        return None
    return size if 0 < min(size) and max(size) <= _LARGEST_NUMBER else None


@dataclass
class Geometry:
    """The frame of one image: its true (height, width), and the factors from the stated frame to it (1 unless
    rescaled).

    Without an image it is the stated size; None if none is stated.
    """

    size: tuple[int, int] | None
    scale_y: float = 1.0
    scale_x: float = 1.0

    @property
    def is_scaled(self) -> bool:
        """Whether the stated frame is not the image's."""
        return self.scale_y != 1 or self.scale_x != 1


def image_geometry(
    path: str | None, name: str, stated: tuple[int, int] | None, options: ReadOptions, report: Report
) -> Geometry | None:
    """The frame of an image.

    Args:
        path: of the image; None: it does not exist, so the stated size has to do.
        name: for the report.
        stated: (height, width) in the annotation file, if it states one.
        options: verify_images, size_mismatch and max_pixels.
        report: counts problems.

    Returns:
        The frame; None (and counted) if the image cannot be used.

    Raises:
        ValueError: the sizes differ and `size_mismatch` is "error".
    """
    is_believed = path is None or not options.verify_images or options.size_mismatch == "rescale"
    if stated and is_believed and stated[0] * stated[1] > options.max_pixels:
        report.add("image_too_large", f"{name}: stated {stated[1]} x {stated[0]}, max_pixels={options.max_pixels}")
        return None
    if stated and not options.verify_images:
        return Geometry(stated)
    if path is None:
        if stated is None:
            report.add("size_unknown", name)
        return Geometry(stated)
    try:
        height, width = image_size(path, name, options.max_pixels)
    except ImageProblem as problem:
        report.add(problem.kind, str(problem))
        return None
    if stated is None and options.stored_frame:
        height, width = upright_size((height, width), image_orientation(path, name, options.max_pixels))
    if stated is None:
        report.add("size_from_image", f"{name}: {width} x {height}")
        return Geometry((height, width))
    if options.stored_frame:
        height, width = upright_size((height, width), image_orientation(path, name, options.max_pixels))
    if stated == (height, width):
        return Geometry((height, width))
    where = f"{name}: stated {stated[1]} x {stated[0]}, image {width} x {height}"
    if options.size_mismatch == "error":
        raise ValueError(
            f"size (width x height) of {where}. Correct the file, or pass size_mismatch='skip' or 'rescale'"
        )
    if options.size_mismatch == "rescale":
        report.add("size_rescaled", where)
        return Geometry((height, width), height / stated[0], width / stated[1])
    is_stored = stated == (width, height) and image_orientation(path, name, options.max_pixels) >= 5
    report.add("stored_size" if is_stored and not options.stored_frame else "size_mismatch", where)
    return None


def checked_box(box: Box, size: tuple[int, int] | None, where: str, report: Report) -> Box | None:
    """Put the corners of a box in order and clip it to the image.

    Args:
        box: xyxy, pixels, 0-based, end exclusive, finite.
        size: (height, width) of the image; None: not known, so that only the left and upper border are checked.
        where: "file: object", for the report.
        report: counts what was done.

    Returns:
        xyxy inside the image with a positive area, or None if the object has to be skipped.
    """
    height, width = (math.inf, math.inf) if size is None else size
    x1, y1, x2, y2 = box
    if x2 < x1 or y2 < y1:
        report.add("corners_swapped", f"{where} {_text(box)}")
        x1, x2, y1, y2 = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
    if x2 - x1 < MIN_BOX_SIDE or y2 - y1 < MIN_BOX_SIDE:
        report.add("degenerate_box", f"{where} {_text(box)}")
        return None
    clipped = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    if clipped[2] - clipped[0] < MIN_BOX_SIDE or clipped[3] - clipped[1] < MIN_BOX_SIDE:
        report.add("box_outside", f"{where} {_text(box)}, image {width} x {height}")
        return None
    if min(x1, width - x2, y1, height - y2) < -CLIP_TOLERANCE_PIXELS:
        report.add("clipped_box", f"{where} {_text(box)}, image {width} x {height}")
    return clipped


def note_corners(box: Sequence[float], size: tuple[int, int] | None, where: str, report: Report) -> None:
    """Count a box (x, y, width, height) that reaches over the border, while its numbers fit as corners."""
    x, y, w, h = box
    if size is not None and (x + w > size[1] + 1 or y + h > size[0] + 1) and x < w <= size[1] and y < h <= size[0]:
        report.add("fits_as_corners", f"{where} {_text((x, y, w, h))}")


def finish_record(record: Record, where: str, num_lost: int, options: ReadOptions, report: Report) -> Record | None:
    """Count a record and its objects.

    Args:
        record: with all objects and ignored regions.
        where: the image, for the report.
        num_lost: objects that cannot be used and whose place is not known: background could lie nowhere then.
        options: keep_empty.
        report: counts.

    Returns:
        The record, or None (and counted) if it has to be skipped.
    """
    if num_lost:
        report.add("incomplete_image", f"{where}: {num_lost} objects")
        return None
    if all(item.iscrowd for item in record.objects):
        report.add("empty_image" if options.keep_empty else "image_without_object", where)
        if not options.keep_empty:
            return None
    if options.stored_frame and record.path is not None and record.size is not None:
        orientation = image_orientation(record.path, record.file_name, options.max_pixels)
        if orientation > 1:
            _turn(record, orientation)
            report.add("labels_turned", where)
    record.has_unusable = record.num_objects < len(record.objects)
    report.images += 1
    report.objects += record.num_objects
    return record


def _turn(record: Record, orientation: int) -> None:
    """Bring the labels of a record from the frame of the stored image to that of the upright one."""
    size = record.height, record.width
    for item in record.objects:
        item.box = upright_box(item.box, orientation, size)
        item.region = None if item.region is None else upright_points(item.region, orientation, size)
        item.rle = None if item.rle is None else upright_rle(item.rle, orientation)
        outlines = item.stated.get("segmentation")
        if isinstance(outlines, list):
            item.stated["segmentation"] = [upright_points(points, orientation, size) for points in outlines]
        else:
            item.stated.pop("segmentation", None)
    record.size = upright_size(size, orientation)
    record.mask_orientation = orientation


def box_area(box: Box) -> float:
    """Square pixels of a box (xyxy)."""
    return (box[2] - box[0]) * (box[3] - box[1])


def _text(box: Box) -> str:
    return "[" + ", ".join(f"{value:g}" for value in box) + "]"


def finite_numbers(values: Any, count: int) -> list[float] | None:
    """`values` as floats if it is a list of exactly `count` finite numbers, else None."""
    if not isinstance(values, (list, tuple)) or len(values) != count:
        return None
    # Each box and outline of a file passes here: one check per type, and the values without a Python loop.
    kinds = set(map(type, values))
    if not kinds <= {int, float} and not all(issubclass(kind, (int, float)) and kind is not bool for kind in kinds):
        return None
    try:
        numbers = list(map(float, values))
    except OverflowError:  # An integer beyond all floats.
        return None
    return numbers if all(map(_LARGEST_NUMBER.__ge__, map(abs, numbers))) else None
