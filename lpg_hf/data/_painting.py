"""Objects -> label maps: the one place where masks, boxes and crowd regions are painted over each other."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from pycocotools import mask as coco_mask

from lpg_hf.boxes import box_slices
from lpg_hf.data.records import BoxObject, box_area
from lpg_hf.labels import IGNORE_INDEX


def paint_label_map(
    objects: Sequence[BoxObject],
    height: int,
    width: int,
    labels: Sequence[int] | None = None,
    ignored: int = IGNORE_INDEX,
) -> np.ndarray:
    """The masks of the objects of one image as a label map.

    Args:
        objects: single objects and crowd regions, in any order.
        height: of the image.
        width: of the image.
        labels: of the objects; None: category + 1.
        ignored: value of the pixels that count nowhere.

    Returns:
        (H, W) uint8, or uint16 if `ignored` is above 255: 0 background. Large objects are painted first, so that the
        smaller lies on top. Crowd regions, and the boxes of objects without a mask, are `ignored` where no object
        lies.
    """
    target = np.zeros((height, width), dtype=np.uint8 if ignored <= IGNORE_INDEX else np.uint16)
    numbers = [item.category + 1 for item in objects] if labels is None else labels
    painted = [pair for pair in zip(objects, numbers) if pair[0].rle is not None and not pair[0].iscrowd]
    painted.sort(key=lambda pair: -pair[0].area)
    for label, pairs in groupby(painted, key=lambda pair: pair[1]):  # Neighbours of one label are decoded together.
        target[_pixels([item for item, _ in pairs])] = label
    crowds = [item for item in objects if item.iscrowd and item.rle is not None]
    if crowds:
        target[_pixels(crowds) & (target == 0)] = ignored
    _ignore_boxes(target, [item for item in objects if item.rle is None], ignored)
    return target


def crowd_pixels(objects: Sequence[BoxObject], height: int, width: int) -> np.ndarray:
    """(H, W) bool: the crowd regions (of one without a mask the box) where no single object's mask lies."""
    relevant = [item for item in objects if item.iscrowd or item.rle is not None]
    return paint_label_map(relevant, height, width, [1] * len(relevant)) == IGNORE_INDEX


def paint_boxes(objects: Sequence[BoxObject], height: int, width: int) -> np.ndarray:
    """The boxes of the objects of one image as a label map; masks are not looked at.

    Returns:
        (H, W) uint8: boxes filled with category + 1, larger boxes first, so that the smaller lies on top; boxes of
        crowd regions are 255 where no object's box lies.
    """
    target = np.zeros((height, width), dtype=np.uint8)
    for item in sorted((item for item in objects if not item.iscrowd), key=lambda item: -box_area(item.box)):
        target[box_slices(item.box, height, width)] = item.category + 1
    _ignore_boxes(target, [item for item in objects if item.iscrowd], IGNORE_INDEX)
    return target


def _pixels(objects: list[BoxObject]) -> np.ndarray:
    """(H, W) bool: the union of the masks of some objects, all of which have one."""
    rles = [item.rle for item in objects if item.rle is not None]
    return coco_mask.decode(rles[0] if len(rles) == 1 else coco_mask.merge(rles)).view(bool)


def _ignore_boxes(target: np.ndarray, objects: list[BoxObject], ignored: int) -> None:
    """Set the pixels of some boxes to `ignored` where the map is still 0."""
    for item in objects:
        region = target[box_slices(item.box, *target.shape)]
        region[region == 0] = ignored
