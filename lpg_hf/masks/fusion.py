"""Foreground maps of one image to one label map: Eq. (7) and the overlap rule of Sec. III-D."""

from collections.abc import Sequence

import numpy as np

from lpg_hf._rle import Window


OVERLAP_RULES = ("rate", "first", "prob", "smallest_box")


def smallest_box_areas(boxes: np.ndarray, labels: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """(K,) area of the smallest box of each class in pixels, of (N, 4) xyxy boxes with (N,) labels."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = np.lexsort((areas, labels))
    return areas[order][np.searchsorted(labels[order], classes)]


def window_around(windows: Sequence[Window]) -> Window:
    """The smallest window that holds all of these, of which there is at least one."""
    rows, columns = zip(*windows)
    return (
        slice(min(item.start for item in rows), max(item.stop for item in rows)),
        slice(min(item.start for item in columns), max(item.stop for item in columns)),
    )


class Fusion:
    """One label per pixel, from pieces of the foreground maps of the classes.

    A piece takes a bit per pixel of its window, and with the rule `prob` nothing: memory does not grow with the number
    of classes times the pixels in floats.

    Args:
        labels: (K,) class ids, in order of first appearance in the annotation.
        size: (height, width) of the image.
        box_areas: (K,) area of the smallest box of each class in pixels; used by `smallest_box`.
        rule: which class keeps a pixel that several claim.
            `rate` (Sec. III-D): the class of which the larger share of its own mask is overlapped, so that the smaller
            object lies on top; ties go to the smaller mask, then to the lower id.
            `first` (official code): the class that comes first in the annotation.
            `prob`: the class with the highest probability.
            `smallest_box`: the class with the smallest box.
        threshold: foreground probability above which a pixel is claimed; 0.5 is the argmax of two logits.

    Raises:
        ValueError: unknown rule.
    """

    def __init__(
        self,
        labels: Sequence[int] | np.ndarray,
        size: tuple[int, int],
        box_areas: np.ndarray,
        rule: str = "rate",
        threshold: float = 0.5,
    ):
        if rule not in OVERLAP_RULES:
            raise ValueError(f"overlap rule {rule!r} is unknown. Choose one of {', '.join(OVERLAP_RULES)}.")
        self.labels, self.box_areas = np.asarray(labels, dtype=np.int64), box_areas
        self.size, self.rule, self.threshold = size, rule, threshold
        self._pieces: list[list[tuple[Window, np.ndarray]]] = [[] for _ in self.labels]
        if rule == "prob":
            self._highest = np.zeros(size, dtype=np.float32)
            self._best = np.full(size, len(self.labels), dtype=np.int32)

    def add(self, k: int, window: Window, foreground: np.ndarray) -> None:
        """Add a piece of the foreground of a class; where its pieces overlap, the higher probability counts.

        Args:
            k: position of the class in `labels`.
            window: rows and columns of the image.
            foreground: (rows, columns) float probability, 0 outside the boxes of the class.
        """
        foreground = np.asarray(foreground, dtype=np.float32)
        claimed = foreground > self.threshold
        if self.rule != "prob":
            self._pieces[k].append((window, np.packbits(claimed, axis=1)))
            return
        highest, best = self._highest[window], self._best[window]
        # Of equal probabilities, the class that comes first has the pixel.
        wins = claimed & ((foreground > highest) | ((foreground == highest) & (k < best)))
        highest[wins] = foreground[wins]
        best[wins] = k

    def label_map(self) -> np.ndarray:
        """(H, W) uint8, uint16 if a class id is above 254, uint32 above 65534; 0 where no class claims the pixel."""
        highest = self.labels.max(initial=0)
        dtype = np.uint8 if highest <= 254 else np.uint16 if highest <= 65534 else np.uint32
        if self.rule == "prob":
            return np.append(self.labels, 0).astype(dtype)[self._best]
        label_map = np.zeros(self.size, dtype=dtype)
        present = [k for k, pieces in enumerate(self._pieces) if pieces]
        for k in reversed(self._top_first(present)):
            window, claimed = self._claimed(k)
            label_map[window][claimed] = self.labels[k]
        return label_map

    def _claimed(self, k: int) -> tuple[Window, np.ndarray]:
        """(window, bool) of the pixels that a class claims."""
        pieces = self._pieces[k]
        around = window_around([window for window, _ in pieces])
        claimed = np.zeros((around[0].stop - around[0].start, around[1].stop - around[1].start), dtype=bool)
        for (rows, columns), bits in pieces:
            piece = np.unpackbits(bits, axis=1, count=columns.stop - columns.start).view(bool)
            top, left, width = rows.start - around[0].start, columns.start - around[1].start, piece.shape[1]
            claimed[top : top + len(piece), left : left + width] |= piece
        return around, claimed

    def _top_first(self, present: list[int]) -> list[int]:
        """The positions of some classes in the order in which they lie on each other."""
        if self.rule == "first" or len(present) < 2:
            return present
        areas, labels = np.zeros(len(present), dtype=np.int64), self.labels[present]
        seen, contested = np.zeros(self.size, dtype=bool), np.zeros(self.size, dtype=bool)
        for i, k in enumerate(present):
            window, claimed = self._claimed(k)
            areas[i] = claimed.sum()
            contested[window] |= seen[window] & claimed
            seen[window] |= claimed
        if self.rule == "smallest_box":
            order = np.lexsort((labels, areas, self.box_areas[present]))
        else:
            overlapped = np.zeros(len(present), dtype=np.int64)
            for i, k in enumerate(present):
                window, claimed = self._claimed(k)
                overlapped[i] = (claimed & contested[window]).sum()
            order = np.lexsort((labels, areas, -(overlapped / np.maximum(areas, 1))))
        return [present[i] for i in order]
