"""Label maps that a segmenter is trained on: functions of a row that can be sent to workers, however these start."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from datasets import Dataset

from lpg_hf.data._examples import box_label_map, label_map
from lpg_hf.label_maps import mask_name, read_label_map


class Labels(Protocol):
    """A function from a row to its label map."""

    def __call__(self, index: int, row: dict, epoch: int | None = None) -> np.ndarray:
        """(H, W) uint8 semantic labels, 255 ignored.

        Args:
            index: of the row.
            row: of the dataset.
            epoch: of the training, for labels that are drawn anew in each; None outside a training.
        """
        ...


def box_labels(index: int, row: dict, epoch: int | None = None) -> np.ndarray:
    """Filled boxes."""
    return box_label_map(row)


def true_labels(index: int, row: dict, epoch: int | None = None) -> np.ndarray:
    """Ground truth, which the row has."""
    return label_map(row)


@dataclass(frozen=True)
class MaskLabels:
    """Pseudo masks from a folder.

    Attributes:
        filling_rates: by label, of a source whose loss keeps only the most probable pixels of a box (BCM).
    """

    folder: Path
    filling_rates: tuple[float, ...] | None = None

    def __call__(self, index: int, row: dict, epoch: int | None = None) -> np.ndarray:
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

    def __call__(self, index: int, row: dict, epoch: int | None = None) -> np.ndarray:
        kept = self.kept.get(row["file_name"])
        return self.labels(index, row, epoch) if kept is None else label_map(self.truth[kept])


def filling_rates_of(labels: Labels, row: dict) -> np.ndarray | None:
    """(num_labels,) float32 of `MaskLabels.filling_rates`, 1 for an image with ground truth; None: there are none."""
    if isinstance(labels, SemiLabels):
        rates = filling_rates_of(labels.labels, row)
        return np.ones_like(rates) if rates is not None and row["file_name"] in labels.kept else rates
    rates = labels.filling_rates if isinstance(labels, MaskLabels) else None
    return None if rates is None else np.array(rates, dtype=np.float32)
