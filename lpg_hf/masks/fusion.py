"""Class-wise foreground maps of one image to one label map: Eq. (7) and the overlap rule of Sec. III-D."""

from collections.abc import Sequence

import numpy as np


OVERLAP_RULES = ("rate", "first", "prob", "smallest_box")


def smallest_box_areas(boxes: np.ndarray, labels: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """(K,) area of the smallest box of each class in pixels, of (N, 4) xyxy boxes with (N,) labels."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return np.array([areas[labels == label].min() for label in classes])


def fuse_classes(
    labels: np.ndarray,
    foreground: np.ndarray,
    box_areas: np.ndarray,
    rule: str = "rate",
    threshold: float = 0.5,
) -> np.ndarray:
    """One label per pixel.

    Args:
        labels: (K,) class ids, in order of first appearance in the annotation.
        foreground: (K, H, W) float probability, 0 outside the boxes of the class.
        box_areas: (K,) area of the smallest box of each class in pixels; used by `smallest_box`.
        rule: which class keeps a pixel that several claim.
            `rate` (Sec. III-D): the class of which the larger share of its own mask is overlapped, so that the smaller
            object lies on top; ties go to the smaller mask, then to the lower id.
            `first` (official code): the class that comes first in the annotation.
            `prob`: the class with the highest probability.
            `smallest_box`: the class with the smallest box.
        threshold: foreground probability above which a pixel is claimed; 0.5 is the argmax of two logits.

    Returns:
        (H, W) uint8, or uint16 where a class id is above 254; 0 where no class claims the pixel.

    Raises:
        ValueError: unknown rule.
    """
    if rule not in OVERLAP_RULES:
        raise ValueError(f"overlap rule {rule!r} is unknown. Choose one of {', '.join(OVERLAP_RULES)}.")
    dtype = np.uint8 if len(labels) == 0 or labels.max() <= 254 else np.uint16
    label_map = np.zeros(foreground.shape[1:], dtype=dtype)
    claimed = foreground > threshold
    if rule == "prob":
        best = np.where(claimed, foreground, 0).argmax(axis=0) if len(labels) else label_map
        return np.where(claimed.any(axis=0), labels.astype(dtype)[best], 0).astype(dtype) if len(labels) else label_map

    areas = claimed.sum(axis=(1, 2))
    if rule == "rate":
        contested = claimed.sum(axis=0) > 1
        rates = (claimed & contested).sum(axis=(1, 2)) / np.maximum(areas, 1)
        top_first = np.lexsort((labels, areas, -rates))
    elif rule == "smallest_box":
        top_first = np.lexsort((labels, areas, box_areas))
    else:
        top_first = np.arange(len(labels))
    for k in reversed(top_first):
        label_map[claimed[k]] = labels[k]
    return label_map
