"""COCO's masks: polygons and run lengths (RLE), checked before they reach pycocotools."""

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from lpg_hf._rle import Rle, encode_window, with_text
from lpg_hf.boxes import box_slices
from lpg_hf.data.records import Box, Geometry, finite_numbers
from lpg_hf.data.report import Report


# Pixels that the outlines of one mask may be long: a multiple of its image's pixels, and a limit for all images.
_OUTLINE_BUDGET = 4
_LONGEST_OUTLINES = 2_000_000
_MOST_PIXELS = 2**31 - 1  # pycocotools counts in 32 bits


def polygons_of(segmentation: Any) -> Iterator[list[float] | None]:
    """The polygons of "segmentation": x, y, x, y, ... of three points or more; None for each that is not a polygon."""
    for polygon in segmentation if isinstance(segmentation, list) else []:
        if isinstance(polygon, array):
            numbers = polygon.tolist()
        else:
            numbers = finite_numbers(polygon, len(polygon)) if isinstance(polygon, list) else None
        yield numbers if numbers and len(numbers) >= 6 and len(numbers) % 2 == 0 else None


def segmentation_to_rle(segmentation: Any, frame: Geometry, where: str, report: Report) -> Rle | None:
    """A COCO "segmentation" as compressed RLE of the image's size.

    Polygons, uncompressed and compressed RLE are read. Each is checked before it reaches pycocotools, whose C code
    allocates 100 bytes per pixel of an outline and leaves pixels unset that an RLE does not cover: a polygon with a
    point further outside than the image is large is rejected, and so are polygons that are together longer than 4
    times the image's pixels or 2 million, and an RLE whose runs do not add up to its size.

    Args:
        segmentation: the field as it is in the file.
        frame: the true image size, and factors if the stated size was another.
        where: "file: object", for the report.
        report: counts what cannot be used.

    Returns:
        {"size": [height, width], "counts": text}, or None if there is no mask that can be used.
    """
    if not segmentation:
        report.add("no_mask", where)
        return None
    if frame.size is None:
        raise ValueError("a mask has as many pixels as its image, whose size is not known")
    height, width = frame.size
    if isinstance(segmentation, dict):
        rle = checked_rle(segmentation)
        if rle is not None and rle["size"] != [height, width]:
            rle = rescaled_rle(rle, frame)
        if rle is None:
            report.add("invalid_mask", f"{where}: RLE does not fit the image ({height} x {width})")
            return None
    else:
        usable, size = [], np.array([width, height])
        budget = min(_OUTLINE_BUDGET * (height + 3) * (width + 3), _LONGEST_OUTLINES)
        for polygon in polygons_of(segmentation):
            if polygon is not None:
                points = np.asarray(polygon).reshape(-1, 2) * (frame.scale_x, frame.scale_y)
                length = float(np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1).sum())
                if ((points >= -size) & (points <= 2 * size)).all() and length <= budget:
                    usable.append(points.ravel().tolist())
                    budget -= length
                    continue
            report.add("invalid_mask", f"{where}: polygon of fewer than 3 points, too long, or far outside the image")
        if not usable:
            if not isinstance(segmentation, list):
                report.add("invalid_mask", f"{where}: segmentation is a {type(segmentation).__name__}")
            return None
        rle = coco_mask.merge(coco_mask.frPyObjects(usable, height, width))
    if coco_mask.area(rle) == 0:
        report.add("invalid_mask", f"{where}: mask without a pixel")
        return None
    return with_text(rle)


def _rle_runs(counts: str | bytes) -> list[int] | None:
    """The run lengths in compressed RLE text: 5 bits a character, from run 3 on the difference to the last but one."""
    try:
        codes = (counts if isinstance(counts, bytes) else counts.encode("ascii")).rstrip(b"\0")
    except UnicodeEncodeError:
        return None
    runs: list[int] = []
    value = shift = 0
    for code in codes:
        digit = code - 48
        if not 0 <= digit < 64 or shift > 60:
            return None
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs if shift == 0 else None


def checked_rle(segmentation: dict) -> Rle | None:
    """RLE as {"size", "counts": bytes}, or None if its runs do not fit its size."""
    size, counts = segmentation.get("size"), segmentation.get("counts")
    numbers = finite_numbers(size, 2)
    if numbers is None or any(value < 1 or not value.is_integer() for value in numbers):
        return None
    height, width = (int(value) for value in numbers)
    if height * width > _MOST_PIXELS:
        return None
    if isinstance(counts, (str, bytes)):
        runs = _rle_runs(counts)
    else:
        runs = finite_numbers(counts, len(counts)) if isinstance(counts, (list, tuple)) else None
    if runs is None or any(run < 0 or run != int(run) for run in runs) or sum(runs) != height * width:
        return None
    if isinstance(counts, str):
        counts = counts.encode("ascii")
    if isinstance(counts, bytes):
        return {"size": [height, width], "counts": counts}
    uncompressed: Any = {"size": [height, width], "counts": [int(run) for run in runs]}
    return coco_mask.frPyObjects(uncompressed, height, width)


def fits(size: Sequence[int], frame: Geometry) -> bool:
    """Whether the size of a mask, (height, width), is the stated one of its image."""
    height, width = size
    return (round(height * frame.scale_y), round(width * frame.scale_x)) == frame.size


def rescaled_rle(rle: Rle, frame: Geometry) -> Rle | None:
    """RLE of the stated size in the image's size (nearest pixel), or None if its size is neither."""
    if frame.size is None or not fits(rle["size"], frame):
        return None
    height, width = rle["size"]
    rows, columns = (  # the pixel that the centre of a new one lies in
        (2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip(frame.size, (height, width))
    )
    return coco_mask.encode(np.asfortranarray(coco_mask.decode(rle)[rows][:, columns]))


def class_in_box_to_rle(labels: np.ndarray, label: int, box: Box) -> Rle | None:
    """The pixels of a class in a box, as compressed RLE.

    Args:
        labels: (H, W) label map; 255 is not a class.
        label: 1-based.
        box: xyxy, pixels, 0-based, end exclusive.

    Returns:
        {"size": [height, width], "counts": text}, or None if there is no such pixel.
    """
    window = box_slices(np.asarray(box), *labels.shape)
    mask = labels[window] == label
    return encode_window(mask, window, labels.shape) if mask.any() else None
