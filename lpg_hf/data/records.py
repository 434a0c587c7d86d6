"""What every annotation format has in common: the record of an image and its objects, its frame, and checked boxes."""

import math
from dataclasses import dataclass, field

from lpg_hf.data.report import Report
from lpg_hf.images import MAX_PIXELS, ImageProblem, image_size


# How far a box may reach over the border before it is counted as clipped: rounding of the tool that wrote it, and ours.
CLIP_TOLERANCE_PIXELS = 0.5 + 1e-6
MIN_BOX_SIDE = 1e-3


@dataclass
class BoxObject:
    """One annotated object.

    Attributes:
        box: (x1, y1, x2, y2), pixels, 0-based, end exclusive, inside the upright image.
        category: 0-based position in the class list (semantic label - 1).
        area: pixels; of the mask if there is one, else as stated, else of the box.
        iscrowd: a region of many objects (COCO); no single object.
        difficult: VOC flag.
        id: unique in its dataset.
        rle: COCO mask, {"size": [height, width], "counts": text}; None if there is none or masks were not asked for.
        stated: COCO fields that say more than `rle` and `area` do, as the file states them: "segmentation" (an outline
            between pixels) and "area"; only beside `rle`.
    """

    box: tuple[float, float, float, float]
    category: int
    area: float
    iscrowd: bool = False
    difficult: bool = False
    id: int = 0
    rle: dict | None = None
    stated: dict = field(default_factory=dict, compare=False)


@dataclass
class Record:
    """One image with its objects.

    Attributes:
        path: of the image file; None: it does not exist, and only its annotations are to be checked (`keep_missing`).
        file_name: relative to the image folder, forward slashes.
        image_id: the id in the annotation file, as text.
        height: of the upright image (EXIF orientation applied), pixels; without an image as stated, infinite if not stated.
        width: the same.
        objects: in the order of the file.
        mask_path: VOC class mask (PNG of class indices), if asked for.
        license: name and address, if the file states them.
    """

    path: str | None
    file_name: str
    image_id: str
    height: int
    width: int
    objects: list[BoxObject] = field(default_factory=list)
    mask_path: str | None = None
    license: str = ""

    @property
    def single_objects(self) -> list[BoxObject]:
        """The objects without crowd regions."""
        return [item for item in self.objects if not item.iscrowd]


def stated_size(height: object, width: object) -> tuple[int, int] | None:
    """(height, width) as positive integers, or None if the file states none that can be true."""
    try:
        size = int(float(height)), int(float(width))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return size if min(size) > 0 else None


@dataclass
class Geometry:
    """The frame of one image: its true size, and the factors from the stated frame to it (1 unless rescaled).

    Without an image it is the stated size, and infinite if none is stated.
    """

    height: int | float
    width: int | float
    scale_y: float = 1.0
    scale_x: float = 1.0


@dataclass
class ImageChecks:
    """How images are checked while records are made.

    Attributes:
        verify: open each image's header; off, the stated size is believed where there is one.
        size_mismatch: stated size differs from the image's: "skip" it, raise an "error", or "rescale" the boxes.
        max_pixels: an image with more pixels is left out.
    """

    verify: bool = True
    size_mismatch: str = "skip"
    max_pixels: int = MAX_PIXELS

    def geometry(self, path: str | None, name: str, stated: tuple[int, int] | None, report: Report) -> Geometry | None:
        """The frame of an image (`path` None: there is none); None (and counted) if the image cannot be used.

        Raises:
            ValueError: the sizes differ and `size_mismatch` is "error".
        """
        if stated and not self.verify:
            return Geometry(*stated)
        if path is None:
            if stated is None:
                report.add("size_unknown", name)
            return Geometry(*(stated or (math.inf, math.inf)))
        try:
            height, width = image_size(path, name, self.max_pixels)
        except ImageProblem as problem:
            report.add(problem.kind, str(problem))
            return None
        if stated is None:
            report.add("size_from_image", f"{name}: {width} x {height}")
            return Geometry(height, width)
        if stated == (height, width):
            return Geometry(height, width)
        place = f"{name}: stated {stated[1]} x {stated[0]}, image {width} x {height}"
        if self.size_mismatch == "error":
            raise ValueError(
                f"size (width x height) of {place}. Correct the file, or pass size_mismatch='skip' or 'rescale'"
            )
        if self.size_mismatch == "rescale":
            report.add("size_rescaled", place)
            return Geometry(height, width, height / stated[0], width / stated[1])
        report.add("size_mismatch", place)
        return None


def checked_box(box: object, height: int, width: int, place: str, report: Report) -> tuple[float, ...] | None:
    """Put the corners of a box in order and clip it to the image.

    Args:
        box: four numbers, xyxy, pixels, 0-based, end exclusive; anything else is counted.
        height: of the image; may be infinite.
        width: of the image; may be infinite.
        place: "file: object", for the report.
        report: counts what was done.

    Returns:
        xyxy inside the image with a positive area, or None if the object has to be left out.
    """
    x1, y1, x2, y2 = box
    if x2 < x1 or y2 < y1:
        report.add("corners_swapped", f"{place} {_text(box)}")
        x1, x2, y1, y2 = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
    if x2 - x1 < MIN_BOX_SIDE or y2 - y1 < MIN_BOX_SIDE:
        report.add("degenerate_box", f"{place} {_text(box)}")
        return None
    clipped = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    if clipped[2] - clipped[0] < MIN_BOX_SIDE or clipped[3] - clipped[1] < MIN_BOX_SIDE:
        report.add("box_outside", f"{place} {_text(box)}, image {width} x {height}")
        return None
    if min(x1, width - x2, y1, height - y2) < -CLIP_TOLERANCE_PIXELS:
        report.add("clipped_box", f"{place} {_text(box)}, image {width} x {height}")
    return clipped


def _text(box) -> str:
    return "[" + ", ".join(f"{value:g}" for value in box) + "]"


def finite_numbers(values: object, count: int) -> list[float] | None:
    """`values` as floats if it is a list of exactly `count` finite numbers, else None."""
    if not isinstance(values, (list, tuple)) or len(values) != count:
        return None
    if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in values):
        return None
    if any(abs(value) > 1e12 or not math.isfinite(value) for value in values):
        return None
    return [float(value) for value in values]
