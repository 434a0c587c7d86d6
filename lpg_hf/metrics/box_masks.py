"""Scores of masks that belong to boxes: IoU, boundary IoU, and IoU per class pooled over its boxes.

The state is a few sums, so memory does not grow with the number of boxes, and several processes give exactly the
scores of
one: merge their accumulators.
"""

import math
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from lpg_hf._rle import Rle, Window, decode_window, mask_window


BOUNDARY_RATIO = 0.02


class BoxMaskScores:
    """Sums over pairs of a predicted and a true mask, one pair per box.

    Args:
        boundary_ratio: width of the boundary band as a share of the image's diagonal; at least one pixel.

    Attributes:
        num_boxes: pairs that count: those in which a mask has a pixel.
        num_empty: pairs where both masks are empty.

    Source: boundary IoU of Cheng et al. (CVPR 2021), where the width is 2 % of the diagonal.
    """

    def __init__(self, boundary_ratio: float = BOUNDARY_RATIO) -> None:
        self.boundary_ratio = boundary_ratio
        self.num_boxes = 0
        self.num_empty = 0
        self._iou = 0.0
        self._boundary_iou = 0.0
        self._of_class: dict[int, list[int]] = {}  # label -> [intersection, union] in pixels

    def update(
        self,
        prediction: np.ndarray | Mapping[str, object],
        target: np.ndarray | Mapping[str, object],
        label: int = 1,
        ignore: np.ndarray | None = None,
    ) -> float | None:
        """Add the masks of one box.

        Args:
            prediction: (H, W) array, true on the object, or a COCO RLE {"size": [height, width], "counts": text, bytes
                or list}; over the whole image.
            target: the same, of the same size.
            label: class of the box.
            ignore: (H, W) bool; pixels that count nowhere, such as a void border or everything outside the box.

        Returns:
            The IoU of the pair; None if both masks are empty.

        Raises:
            ValueError: the sizes differ, or a mask is neither an array nor an RLE.
        """
        masks = _readable(prediction, "prediction"), _readable(target, "target")
        shapes = [mask.shape if isinstance(mask, np.ndarray) else tuple(mask["size"]) for mask in masks]
        sizes = {*shapes} | ({np.shape(ignore)} if ignore is not None else set())
        if len(sizes) > 1:
            raise ValueError(
                f"prediction has (height, width) {shapes[0]}, target {shapes[1]}"
                + (f" and ignore {np.shape(ignore)}" if ignore is not None else "")
                + ". All must be in the frame of the image."
            )
        rows, columns = shapes[1]
        width = _boundary_width(rows, columns, self.boundary_ratio)
        window = _extent(*masks)
        predicted, true = (_inside(mask, window) for mask in masks)
        counts = True if ignore is None else ~np.asarray(ignore, dtype=bool)[window]
        intersection, union = _overlap(predicted, true, counts)
        if union == 0:
            self.num_empty += 1
            return None
        self.num_boxes += 1
        self._iou += intersection / union
        edges = _overlap(boundary(predicted, width), boundary(true, width), counts)
        # A void border may hide the boundaries of both masks: then the insides decide.
        self._boundary_iou += edges[0] / edges[1] if edges[1] else intersection / union
        sums = self._of_class.setdefault(int(label), [0, 0])
        sums[0] += intersection
        sums[1] += union
        return intersection / union

    def merge(self, other: "BoxMaskScores") -> None:
        """Add the sums of another accumulator, for example of another process.

        Raises:
            ValueError: its boundary has another width.
        """
        if other.boundary_ratio != self.boundary_ratio:
            raise ValueError(
                f"cannot merge scores with a boundary of {other.boundary_ratio} of the diagonal into scores with "
                f"{self.boundary_ratio}."
            )
        self.num_boxes += other.num_boxes
        self.num_empty += other.num_empty
        self._iou += other._iou
        self._boundary_iou += other._boundary_iou
        for label, (intersection, union) in other._of_class.items():
            sums = self._of_class.setdefault(label, [0, 0])
            sums[0] += intersection
            sums[1] += union

    def compute(self) -> dict:
        """Scores of everything seen.

        Returns:
            `mean_box_iou` and `mean_boundary_iou`: means over the boxes; `per_class_iou`: label -> IoU pooled over the
            class's boxes; `foreground_iou`: its mean over the classes; `num_boxes`. Scores are in [0, 1], None where
            nothing was counted.
        """
        per_class = {label: sums[0] / sums[1] for label, sums in sorted(self._of_class.items())}
        count = self.num_boxes
        return {
            "mean_box_iou": self._iou / count if count else None,
            "mean_boundary_iou": self._boundary_iou / count if count else None,
            "foreground_iou": sum(per_class.values()) / len(per_class) if per_class else None,
            "per_class_iou": per_class,
            "num_boxes": count,
        }


def as_mask(value: np.ndarray | Mapping[str, object], name: str = "mask") -> np.ndarray:
    """(H, W) bool of an array or a COCO RLE, compressed or not.

    Raises:
        ValueError: it is neither.
    """
    mask: Any = _readable(value, name)
    return mask if isinstance(mask, np.ndarray) else coco_mask.decode(mask).astype(bool)


def _readable(value: np.ndarray | Mapping[str, object], name: str) -> np.ndarray | Rle:
    """(H, W) bool of an array; an RLE in its compressed form. Errors as of `as_mask`."""
    if isinstance(value, Mapping):
        if not {"size", "counts"} <= value.keys():
            raise ValueError(f"{name} is a dictionary with {sorted(value)}, but an RLE has 'size' and 'counts'.")
        rle: Any = value  # pycocotools' own type knows less kinds of counts than its functions take
        return coco_mask.frPyObjects(rle, *rle["size"]) if isinstance(rle["counts"], list) else rle
    array = np.asarray(value)
    if array.ndim != 2:
        raise ValueError(f"{name} has shape {array.shape}, but a mask is (height, width).")
    return array.astype(bool)


def _inside(mask: np.ndarray | Rle, window: Window) -> np.ndarray:
    """(rows, columns) bool of a mask."""
    return mask[window] if isinstance(mask, np.ndarray) else decode_window(mask, window).view(bool)


def _boundary_width(height: int, width: int, ratio: float = BOUNDARY_RATIO) -> int:
    """Pixels of the boundary band in an image of that size; at least 1."""
    return max(1, round(ratio * math.hypot(height, width)))


def boundary(mask: np.ndarray, width: int) -> np.ndarray:
    """The pixels of a mask that lie at most `width` pixels inside its edge; the image's border is an edge.

    Args:
        mask: (H, W) bool.
        width: pixels.

    Returns:
        (H, W) bool.
    """
    square = np.ones((3, 3), dtype=np.uint8)
    eroded = cv2.erode(mask.astype(np.uint8), square, iterations=width, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return mask & (eroded == 0)


def _extent(*masks: np.ndarray | Rle) -> Window:
    """The window that holds every pixel of some masks; an empty one if there is none."""
    windows = [_window(mask) if isinstance(mask, np.ndarray) else mask_window(mask) for mask in masks]
    sides = [[side for side in sides if side.start < side.stop] or [slice(0, 0)] for sides in zip(*windows)]
    rows, columns = (slice(min(s.start for s in side), max(s.stop for s in side)) for side in sides)
    return rows, columns


def _window(mask: np.ndarray) -> Window:
    """The window that holds every pixel of an array; an empty one if there is none."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return slice(0, 0), slice(0, 0)
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _overlap(a: np.ndarray, b: np.ndarray, counts: np.ndarray | bool) -> tuple[int, int]:
    """(intersection, union) in pixels that count."""
    return int((a & b & counts).sum()), int(((a | b) & counts).sum())
