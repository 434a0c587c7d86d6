"""What every source of labels takes and gives."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset

from lpg_hf.boxes import box_slices
from lpg_hf.data._examples import box_label_map, row_boxes
from lpg_hf.label_maps import write_label_map
from lpg_hf.labels import IGNORE_INDEX
from lpg_hf.masks.fusion import Window
from lpg_hf.training._labels import Labels, MaskLabels


class LabelSource(ABC):
    """A rule from boxes, and for some from the segmenter before, to the label map of an image.

    Attributes:
        refines: the labels are made anew in each round, from the segmenter of the round before; else once.
    """

    refines = False

    def check(self, rows: Dataset) -> None:
        """Raises ValueError or OSError if the source does not fit the target images, before any training."""

    @abstractmethod
    def label_map(self, row: dict, image: np.ndarray, probs: np.ndarray | None) -> np.ndarray:
        """The labels of an image; several threads may call it at the same time.

        Args:
            row: of the target set.
            image: (H, W, 3) uint8 RGB.
            probs: (num_labels, H, W) float32, softmax of the segmenter of the round before; None in round 0, and
                always where the source does not refine.

        Returns:
            (H, W) uint8 semantic labels, 0 background, 255 ignored.
        """

    def write(self, path: Path, row: dict, image: np.ndarray, probs: np.ndarray | None) -> None:
        """Writes the labels of an image; once `path`, a palette PNG, exists, all of them do."""
        write_label_map(path, self.label_map(row, image, probs))

    def summary(self, rows: Dataset, folder: Path, num_labels: int) -> dict:
        """What is known when the labels of all images are written, as json values."""
        return {}

    def labels(self, folder: Path, seed: int) -> Labels:
        """The written labels as training takes them.

        Args:
            folder: of the label maps, with `complete.json`, which has the `summary`.
            seed: of the run, for labels that are drawn anew in each epoch.
        """
        return MaskLabels(folder)


def box_windows(row: dict) -> list[Window]:
    """The rows and columns that each box of `row_boxes` covers."""
    return [box_slices(box, row["height"], row["width"]) for box in row_boxes(row)[0]]


def paint_pieces(row: dict, pieces: Sequence[np.ndarray]) -> np.ndarray:
    """The pieces of the boxes of an image as a label map: the smaller box lies on top, as for filled boxes.

    Args:
        pieces: one per box of `row_boxes`, (rows, columns) uint8 over the pixels that it covers: 1 is the object, 255
            is ignored, 0 is what lies below.

    Returns:
        (H, W) uint8 semantic labels; crowd regions that no box covers are 255.

    Source: Khoreva et al. (CVPR 2017), Sec. 3.1, and Papandreou et al. (ICCV 2015), Sec. 3.3: of two boxes the smaller
        one is in front.
    """
    boxes, labels = row_boxes(row)
    areas, windows = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1), box_windows(row)
    target = np.zeros((row["height"], row["width"]), dtype=np.uint8)
    for index in np.argsort(-areas, kind="stable"):
        region, piece = target[windows[index]], pieces[index]
        region[piece == 1] = labels[index]
        region[piece == IGNORE_INDEX] = IGNORE_INDEX
    return with_crowds(row, target)


def with_crowds(row: dict, label_map: np.ndarray) -> np.ndarray:
    """The label map, in place, with 255 in crowd regions that no class claims."""
    label_map[(box_label_map(row) == IGNORE_INDEX) & (label_map == 0)] = IGNORE_INDEX
    return label_map
