"""Labels in the frame of an image as it is stored -> the frame of the image turned upright by its EXIF orientation."""

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask

from lpg_hf._rle import Rle, encode_mask


# EXIF orientation -> (x and y are exchanged, then x is mirrored, then y is mirrored).
_STEPS = {
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}


def upright_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(height, width) of the upright image of a stored size, and the other way round."""
    return (size[1], size[0]) if orientation >= 5 else size


def upright_points(points: Sequence[float], orientation: int, size: tuple[int, int]) -> list[float]:
    """Points x, y, x, y, ... in pixels of the upright image.

    Args:
        points: in the stored image.
        orientation: EXIF, 2 to 8.
        size: (height, width) of the stored image.
    """
    exchanged, mirror_x, mirror_y = _STEPS[orientation]
    height, width = upright_size(size, orientation)
    turned = []
    for x, y in zip(points[0::2], points[1::2]):
        x, y = (y, x) if exchanged else (x, y)
        turned += [width - x if mirror_x else x, height - y if mirror_y else y]
    return turned


def upright_box(box: Sequence[float], orientation: int, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """A box (xyxy) in pixels of the upright image; arguments as of `upright_points`."""
    a, b, c, d = upright_points(box, orientation, size)
    return min(a, c), min(b, d), max(a, c), max(b, d)


def upright_rle(rle: Rle, orientation: int) -> Rle:
    """A mask of the stored image as one of the upright image."""
    return encode_mask(np.asfortranarray(upright_labels(coco_mask.decode(rle), orientation)))


def upright_labels(labels: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W) labels of the stored image as those of the upright image; orientation as of `upright_points`."""
    exchanged, mirror_x, mirror_y = _STEPS[orientation]
    labels = labels.T if exchanged else labels
    labels = labels[:, ::-1] if mirror_x else labels
    return labels[::-1] if mirror_y else labels
