"""WSSL, Papandreou et al., "Weakly- and Semi-Supervised Learning of a DCNN" (ICCV 2015): boxes, Sec. 3.3."""

import numpy as np

from lpg_hf.data._examples import box_label_map, row_boxes
from lpg_hf.training._label_sources.base import LabelSource, box_windows, with_crowds


# b_fg and b_bg of EM-Fixed, Sec. 4: added to the scores of the classes that have boxes, and of the background.
_FOREGROUND_BIAS = 5.0
_BACKGROUND_BIAS = 3.0


class BboxRect(LabelSource):
    """Filled boxes; a pixel in several belongs to the smallest.

    Source: Sec. 3.3, Bbox-Rect.
    """

    def label_map(self, row: dict, image: np.ndarray, probs: np.ndarray | None) -> np.ndarray:
        """See `LabelSource.label_map`."""
        return box_label_map(row)


class BboxEM(LabelSource):
    """The E-step of EM-Fixed: the segmenter's best class, with the classes of an image raised inside their boxes.

    Every score log P(l | x) is raised by 3 for the background, and by 5 for a class inside its own boxes. The
    best class per pixel is the label. Classes without a box in the image are not raised, and not forbidden. Round 0,
    where there is no segmenter, has filled boxes, which are what the rule gives for scores that are all equal.

    The paper takes an E-step in each iteration of SGD; here there is one per round, for all images.

    Source: Sec. 3.2, Algorithm 1 (EM-Fixed); Sec. 3.3, Bbox-EM-Fixed.
    """

    refines = True

    def label_map(self, row: dict, image: np.ndarray, probs: np.ndarray | None) -> np.ndarray:
        """See `LabelSource.label_map`."""
        if probs is None:
            return box_label_map(row)
        bias = np.zeros(probs.shape, dtype=np.float32)
        bias[0] = _BACKGROUND_BIAS
        for window, label in zip(box_windows(row), row_boxes(row)[1]):
            bias[label][window] = _FOREGROUND_BIAS
        scores = np.log(np.maximum(probs, np.float32(1e-30))) + bias
        return with_crowds(row, scores.argmax(axis=0).astype(np.uint8))
