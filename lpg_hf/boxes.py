"""Boxes: the one place that states the box convention and converts to and from the others.

A box of this package is ``xyxy``: float, pixels, 0-based, end exclusive, in the frame of the (upright) image it comes
with: (0, 0, width, height) is the whole image. A box covers the pixels that it touches: columns floor(x1) .. ceil(x2)
exclusive, and at least one. Coordinates are never rounded when they are read; a thousandth of a pixel is forgiven when
they are painted, because x + width in float32 is seldom exact.
"""

import math
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np


if TYPE_CHECKING:
    import torch

Boxes = TypeVar("Boxes", "np.ndarray", "torch.Tensor")
BOX_FORMATS = ("xyxy", "xywh", "cxcywh", "yolo", "voc")
PIXEL_TOLERANCE = 1e-3


def _is_tensor(value: Any) -> bool:
    return type(value).__module__.split(".")[0] == "torch"


def _as_float_boxes(boxes: Any) -> Any:
    """Boxes as a float tensor, if they are a tensor, else as a float array; (..., 4)."""
    if _is_tensor(boxes):
        boxes = boxes if boxes.is_floating_point() else boxes.float()
    else:
        boxes = np.asarray(boxes)
        boxes = boxes if np.issubdtype(boxes.dtype, np.floating) else boxes.astype(np.float64)
        boxes = boxes.reshape(0, 4) if boxes.size == 0 else boxes
    if boxes.shape[-1] != 4:
        raise ValueError(f"boxes must have four numbers each, got shape {tuple(boxes.shape)}")
    return boxes


def _stack(columns: list) -> Any:
    if _is_tensor(columns[0]):
        import torch

        return torch.stack(columns, dim=-1)
    return np.stack(columns, axis=-1)


def convert_boxes(
    boxes: Boxes, source: str, target: str, height: int | None = None, width: int | None = None
) -> Boxes:
    """Change the format of boxes; nothing is clipped or rounded.

    Args:
        boxes: (..., 4), array, tensor or nested list in the format `source`.
        source: `xyxy` (this package), `xywh` (COCO: corner and size), `cxcywh` (centre and size in pixels),
            `yolo` (centre and size as fractions of the image), `voc` (1-based corners, both inclusive).
        target: one of the same names.
        height: of the image in pixels; needed for `yolo` only.
        width: of the image in pixels; needed for `yolo` only.

    Returns:
        (..., 4) float array or tensor, as `boxes` is.

    Raises:
        ValueError: unknown format, no four numbers per box, or `yolo` without the size of the image.
    """
    for name in (source, target):
        if name not in BOX_FORMATS:
            raise ValueError(f"unknown box format {name!r}; choose one of {', '.join(BOX_FORMATS)}")
    if "yolo" in (source, target) and source != target and (not height or not width):
        raise ValueError(f"YOLO boxes are fractions of the image: pass its height and width, got {height} and {width}")
    boxes = _as_float_boxes(boxes)
    if source == target:
        return boxes

    across, down = width or 1, height or 1  # Only used with YOLO's fractions, which come with both.
    a, b, c, d = (boxes[..., i] for i in range(4))
    if source == "yolo":
        a, b, c, d = a * across, b * down, c * across, d * down
    if source in ("cxcywh", "yolo"):
        a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
    elif source == "xywh":
        c, d = a + c, b + d
    elif source == "voc":
        a, b = a - 1, b - 1

    if target in ("cxcywh", "yolo"):
        a, b, c, d = (a + c) / 2, (b + d) / 2, c - a, d - b
    elif target == "xywh":
        c, d = c - a, d - b
    elif target == "voc":
        a, b = a + 1, b + 1
    if target == "yolo":
        a, b, c, d = a / across, b / down, c / across, d / down
    return _stack([a, b, c, d])


def clip_boxes(boxes: Boxes, height: int, width: int) -> Boxes:
    """Cut boxes to the image.

    Args:
        boxes: (..., 4) xyxy, pixels.
        height: of the image.
        width: of the image.

    Returns:
        (..., 4) xyxy; a box outside the image becomes an empty one on its border.
    """
    boxes = _as_float_boxes(boxes)
    limits = (width, height, width, height)
    return _stack([boxes[..., i].clip(0, limit) for i, limit in enumerate(limits)])


def box_slices(box, height: int, width: int) -> tuple[slice, slice]:
    """The rows and the columns that a box covers.

    Args:
        box: four numbers, xyxy, pixels.
        height: of the image.
        width: of the image.

    Returns:
        (row slice, column slice) inside the image: floor(x1 + 1e-3) .. ceil(x2 - 1e-3) and at least one pixel wide and
        high, empty only if the box lies outside the image.
    """
    x1, y1, x2, y2 = (float(value) for value in box)
    return _span(y1, y2, height), _span(x1, x2, width)


def _span(low: float, high: float, size: int) -> slice:
    if high <= 0 or low >= size:
        return slice(0, 0)
    start = min(max(math.floor(low + PIXEL_TOLERANCE), 0), size - 1)
    stop = min(max(math.ceil(high - PIXEL_TOLERANCE), start + 1), size)
    return slice(start, stop)


def boxes_to_mask(boxes: Boxes, height: int, width: int) -> Boxes:
    """The union of boxes as a mask.

    Args:
        boxes: (N, 4) xyxy, pixels; N may be 0.
        height: of the image.
        width: of the image.

    Returns:
        (height, width) uint8, 1 inside any box, else 0; a tensor on the device of `boxes` if they are a tensor, else
        an array.
    """
    mask: Any = np.zeros((height, width), dtype=np.uint8)
    for box in _as_float_boxes(boxes).tolist():
        mask[box_slices(box, height, width)] = 1
    if _is_tensor(boxes):
        import torch

        mask = torch.from_numpy(mask).to(boxes.device)
    return mask
