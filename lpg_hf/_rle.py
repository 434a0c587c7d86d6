"""Masks as COCO's run lengths (RLE), as pycocotools takes and gives them."""

from typing import TypedDict, cast

import numpy as np
from pycocotools import mask as coco_mask


Window = tuple[slice, slice]  # rows, columns


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


def mask_window(rle: Rle) -> Window:
    """The smallest window that holds every pixel of a mask; an empty one if it has none."""
    x, y, width, height = (int(value) for value in coco_mask.toBbox(rle))  # type: ignore[arg-type]
    return slice(y, y + height), slice(x, x + width)


def decode_window(rle: Rle, window: Window) -> np.ndarray:
    """A window of a mask; the cost grows with the window and the runs, not with the image.

    Args:
        rle: compressed run lengths of the whole image, which they fill.
        window: inside the image.

    Returns:
        (rows, columns) uint8, 1 on the object.

    Raises:
        ValueError: the runs do not fill the image.
    """
    (rows, columns), image_height = window, rle["size"][0]
    height, width = rows.stop - rows.start, columns.stop - columns.start
    runs = _run_lengths(rle["counts"])
    if runs.sum() != image_height * rle["size"][1]:
        raise ValueError(f"the run lengths of a mask add up to {runs.sum()} pixels, but its size is {rle['size']}")
    column, row = np.divmod(runs.cumsum(), image_height)
    # The ends of the runs, counted in pixels of the window, column by column.
    ends = (column - columns.start) * height + (row - rows.start).clip(0, height)
    ends[column < columns.start], ends[column >= columns.stop] = 0, width * height
    ends[1:] -= ends[:-1].copy()
    return np.repeat(np.arange(len(ends), dtype=np.uint8) & 1, ends).reshape(width, height).T


def _run_lengths(counts: str | bytes) -> np.ndarray:
    """The run lengths (int64) in text: 5 bits a character, from run 3 on the difference to the last but one."""
    text = (counts.encode("ascii") if isinstance(counts, str) else counts).rstrip(b"\0")
    codes = np.frombuffer(text, dtype=np.uint8) - np.uint8(48)
    is_last = (codes & 32) == 0
    (stops,) = is_last.nonzero()
    starts = np.zeros_like(stops)
    starts[1:] = stops[:-1] + 1
    lengths = stops + 1 - starts
    # A digit counts 32 times as much as the one before it.
    shifts = 5 * (np.arange(len(codes)) - starts.repeat(lengths))
    runs = np.add.reduceat((codes & 31).astype(np.int64) << shifts, starts)
    runs -= ((codes[stops] & 16) != 0) * (1 << 5 * lengths)
    runs[1::2], runs[2::2] = runs[1::2].cumsum(), runs[2::2].cumsum()
    return runs


def encode_window(mask: np.ndarray, window: Window, size: tuple[int, int]) -> Rle:
    """Run lengths of a mask that is empty outside a window; the cost grows with the window, not with the image.

    Args:
        mask: (rows, columns) bool, the window.
        window: inside the image.
        size: (height, width) of the image.

    Returns:
        {"size": [height, width], "counts": text}, COCO's compressed form (column by column).
    """
    (rows, columns), (height, width) = window, size
    bounded = np.zeros((mask.shape[1], mask.shape[0] + 2), dtype=bool)
    bounded[:, 1:-1] = mask.T
    # A run starts at even and ends at odd positions of these.
    column, row = np.nonzero(bounded[:, 1:] != bounded[:, :-1])
    ends = (column + columns.start) * height + row + rows.start
    starts, stops = ends[0::2], ends[1::2]
    # A run to the bottom of one column continues at the top of the next.
    is_first, is_last = np.ones((2, len(starts)), dtype=bool)
    is_first[1:] = is_last[:-1] = starts[1:] != stops[:-1]
    edges = np.zeros(2 * np.count_nonzero(is_first) + 2, dtype=np.int64)
    edges[1:-1:2], edges[2::2], edges[-1] = starts[is_first], stops[is_last], height * width
    counts = edges[1:] - edges[:-1]
    counts = counts[: len(counts) - (counts[-1] == 0)]
    rle = coco_mask.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return {"size": [height, width], "counts": cast(bytes, rle["counts"]).decode("ascii")}
