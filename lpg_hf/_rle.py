"""Masks as COCO's run lengths (RLE), as pycocotools takes and gives them."""

from typing import TypedDict

import numpy as np
from pycocotools import mask as coco_mask


class Rle(TypedDict):
    """A compressed mask: `size` is [height, width], `counts` the run lengths, as text where it is stored."""

    size: list[int]
    counts: str | bytes


def encode_mask(mask: np.ndarray) -> Rle:
    """A mask ((H, W) bool or integer, nonzero is the object) with its counts as text."""
    return with_text(coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)))


def with_text(rle: Rle) -> Rle:
    """The same mask with its counts as text, which json can hold."""
    counts = rle["counts"]
    height, width = rle["size"]
    return {"size": [height, width], "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}
