"""Label maps that a segmenter is trained on: functions of a row that can be sent to workers, however these start."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset

from lpg_hf.data._examples import box_label_map, label_map
from lpg_hf.label_maps import mask_name, read_label_map


Labels = Callable[[int, dict], np.ndarray]  # (row index, row) -> (H, W) uint8


def box_labels(index: int, row: dict) -> np.ndarray:
    """Filled boxes."""
    return box_label_map(row)


def true_labels(index: int, row: dict) -> np.ndarray:
    """Ground truth, which the row has."""
    return label_map(row)


@dataclass(frozen=True)
class MaskLabels:
    """Pseudo masks from a folder."""

    folder: Path

    def __call__(self, index: int, row: dict) -> np.ndarray:
        return read_label_map(self.folder / mask_name(row["file_name"]))


@dataclass(frozen=True)
class SemiLabels:
    """Ground truth of the images that keep it, else the labels of a stage.

    Attributes:
        truth: rows with masks.
        kept: file name -> index in `truth`.
    """

    labels: Labels
    truth: Dataset
    kept: dict[str, int]

    def __call__(self, index: int, row: dict) -> np.ndarray:
        kept = self.kept.get(row["file_name"])
        return self.labels(index, row) if kept is None else label_map(self.truth[kept])
