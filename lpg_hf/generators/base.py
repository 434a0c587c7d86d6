"""What every generator of masks takes and gives.

A generator turns pictures with boxes into patches of foreground probability, and hands them out one at a time, so that
a picture with very many boxes does not fill the memory.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np


GRANULARITIES = ("class", "instance")


@dataclass(frozen=True)
class BoxedImage:
    """A picture and the boxes whose masks are wanted.

    Args:
        image: (H, W, 3) uint8 RGB, upright.
        boxes: (N, 4) float32 xyxy, pixels, inside the picture, each with an area; N may be 0.
        labels: (N,) int64 class ids, 1-based.
        class_probs: class id -> (h, w) probability of a segmenter over the whole picture, float32 in [0, 1] or uint8 in
            [0, 255], at any resolution; for generators that use one.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    class_probs: Mapping[int, np.ndarray] | None = None


@dataclass(frozen=True)
class Patch:
    """Foreground of one box, or of several boxes of one class, in a window of the picture.

    Args:
        label: class id.
        boxes: positions in `BoxedImage.boxes` of the boxes that it belongs to.
        rows: of the window, inside the picture.
        columns: of the window, inside the picture.
        foreground: (rows, columns) float32 probability in [0, 1], 0 outside the boxes (Eq. (7)).
    """

    label: int
    boxes: tuple[int, ...]
    rows: slice
    columns: slice
    foreground: np.ndarray


class MaskGenerator(ABC):
    """A method that makes masks from boxes."""

    @abstractmethod
    def patches(self, images: Sequence[BoxedImage], per: str) -> Iterator[tuple[int, Patch]]:
        """The foreground of some pictures; several threads may call it at the same time.

        Args:
            images: what one forward pass may combine; the result for a picture depends on no picture outside.
            per: "instance": one patch per box, which knows nothing of the other boxes of its class. "class": patches that
                may stand for all boxes of a class together, whichever the method does best. Patches of a class are merged
                by their maximum.

        Yields:
            (position in `images`, patch), pictures in their order.
        """

    def settings(self) -> dict:
        """What the masks depend on, as json values: an unfinished job goes on only with the same."""
        return {}
