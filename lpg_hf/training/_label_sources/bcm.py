"""BCM, Song et al., "Box-driven Class-wise Region Masking and Filling Rate Guided Loss" (CVPR 2019)."""

import json
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from lpg_hf.data._examples import box_label_map
from lpg_hf.label_maps import mask_name, read_label_map
from lpg_hf.labels import IGNORE_INDEX
from lpg_hf.models.losses import resize_nearest
from lpg_hf.training._label_sources.generated import Generated
from lpg_hf.training._labels import Labels, MaskLabels


class BCM(Generated):
    """Dense CRF proposals, and a loss that keeps of each class the share of its boxes that is usual for it.

    The filling rate of a class is the mean, over the images that have it, of the share of its boxes' pixels that the
    proposals give it. The loss is `confident_labels`. What is not here is the masking: a branch of the network that is
    trained on the boxes and multiplies its logits, in training and in use; an arbitrary segmenter has none.

    Source: Sec. 3, proposals and filling rates.
    """

    def __init__(self, overlap_rule: str) -> None:
        super().__init__("densecrf", overlap_rule)

    def summary(self, rows: Dataset, folder: Path, num_labels: int) -> dict:
        """`filling_rates`: of each label; 1 of the background and of classes without a box."""
        sums, counts = np.zeros(num_labels), np.zeros(num_labels)
        for row in rows.select_columns(["file_name", "height", "width", "objects"]):
            boxes = box_label_map(dict(row))
            proposals = read_label_map(folder / mask_name(dict(row)["file_name"]))
            for label in np.setdiff1d(boxes, [0, IGNORE_INDEX]):
                sums[label] += (proposals[boxes == label] == label).mean()
                counts[label] += 1
        return {"filling_rates": np.where(counts > 0, sums / np.maximum(counts, 1), 1.0).round(6).tolist()}

    def labels(self, folder: Path, seed: int) -> Labels:
        """See `LabelSource.labels`."""
        complete = json.loads((folder / "complete.json").read_text(encoding="utf-8"))
        return MaskLabels(folder, tuple(complete["filling_rates"]))


def confident_labels(logits: Tensor, labels: Tensor, box_labels: Tensor, filling_rates: Tensor) -> Tensor:
    """The labels without the pixels that the segmenter doubts most: the filling rate guided loss as a rule on labels.

    In the boxes of a class, the pixels are ranked by the probability of the class. As many as its filling rate says,
    the most probable, are kept. The others are ignored where they are labelled with the class.

    Args:
        logits: (B, C, h, w) float.
        labels: (B, H, W) integer, 0..C-1 or 255.
        box_labels: (B, H, W) integer, the filled boxes of the same crops, 255 where there is no image.
        filling_rates: (B, C) float in [0, 1].

    Returns:
        (B, h, w) labels at the logits' positions.

    Source: Sec. 3, FR-loss; the official code's `make_FR_labels` without the shifted rates of the journal version.
    """
    labels = resize_nearest(labels, logits.shape[-2:]).clone()
    boxes = resize_nearest(box_labels, logits.shape[-2:])
    probabilities = logits.detach().float().softmax(dim=1)
    for position in range(len(labels)):
        for label in boxes[position].unique().tolist():
            if label in (0, IGNORE_INDEX):
                continue
            inside = boxes[position] == label
            scores = probabilities[position, label][inside]
            num_kept = max(1, round(float(filling_rates[position, label]) * len(scores)))
            doubted = torch.ones_like(scores, dtype=torch.bool)
            doubted[scores.topk(num_kept).indices] = False
            own = labels[position][inside]
            labels[position][inside] = torch.where(doubted & (own == label), IGNORE_INDEX, own)
    return labels
