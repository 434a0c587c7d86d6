"""Measuring: label maps and segmenters against ground truth, at the images' own sizes."""

from typing import cast

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel

from lpg_hf._threads import prefetch
from lpg_hf.data._examples import label_map
from lpg_hf.labels import IGNORE_INDEX
from lpg_hf.metrics.mean_iou import ConfusionMatrix
from lpg_hf.training._labels import Labels
from lpg_hf.training.masks import encoded_images, frozen_segmenter, image_logits
from lpg_hf.training.run import Run


# Classes below it in the whole image do not enter the dense CRF. With 21 classes, 0.02 to 0.06 % of the pixels change,
# for 2.3 to 2.6 times the speed (15 photographs of val_mix, segmenters of 25.6 and 35.7 mIoU).
_CRF_MIN_PROBABILITY = 0.05


def measure_label_maps(run: Run, rows: Dataset, num_labels: int, predict: Labels) -> dict:
    """mIoU of label maps (pseudo masks, filled boxes) against the masks of the rows; void pixels take no part.

    Args:
        predict: 255 in its label maps (crowd regions) counts as background.

    Returns:
        `ConfusionMatrix.compute()`.
    """
    confusion = ConfusionMatrix(num_labels)

    def load(index: int) -> tuple[np.ndarray, np.ndarray]:
        row = rows[index]
        prediction = predict(index, row)
        return np.where(prediction == IGNORE_INDEX, 0, prediction), label_map(row)

    mine = range(run.accelerator.process_index, len(rows), run.accelerator.num_processes)
    for prediction, truth in prefetch(load, mine, run.settings.run.num_workers):
        confusion.update(prediction, truth)
    return _reduced(run, confusion)


def measure_segmenter(
    run: Run,
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    rows: Dataset,
    description: str,
) -> dict:
    """mIoU of a segmenter at full image size, single scale.

    Returns:
        `ConfusionMatrix.compute()`, and the same under `crf` after a dense CRF if `run.measure` has crf, with the
        official code's kernels for DeepLab v2 or, for all others, for LargeFOV.

    Source: Sec. IV; the published numbers are after the dense CRF.
    """
    with_crf, num_labels = "crf" in run.settings.run.measure, cast(int, model.config.num_labels)
    confusion, after_crf = ConfusionMatrix(num_labels), ConfusionMatrix(num_labels)
    segmenter = frozen_segmenter(run, model, processor)
    for indices, images, inputs in encoded_images(run, segmenter, rows, description):
        with run.accelerator.autocast():
            logits = segmenter.logits(inputs)
        for index, image, item, one in zip(indices, images, inputs, logits):
            full = image_logits(one, item, image)
            truth = label_map(rows[index])
            confusion.update(full.argmax(dim=0).cpu().numpy(), truth)
            if with_crf:
                probs = after_dense_crf(model, image, full.softmax(dim=0).cpu().numpy())
                after_crf.update(probs.argmax(axis=0), truth)
    result = _reduced(run, confusion)
    if with_crf:
        result["crf"] = _reduced(run, after_crf)
    return result


def after_dense_crf(model: PreTrainedModel, image: np.ndarray, probs: np.ndarray) -> np.ndarray:
    """Class probabilities after a dense CRF with the kernels of the official code for the segmenter.

    Args:
        image: (H, W, 3) uint8 RGB.
        probs: (C, H, W) float, softmax over the classes.

    Returns:
        (C, H, W) float32.
    """
    from lpg_hf.generators.crf import LARGEFOV_CRF, RESNET_CRF, dense_crf

    kernels = RESNET_CRF if model.config.model_type == "deeplab_v2" else LARGEFOV_CRF
    return dense_crf(image, probs, kernels, min_probability=_CRF_MIN_PROBABILITY)


def _reduced(run: Run, confusion: ConfusionMatrix) -> dict:
    """Sums the matrices of all processes."""
    matrix = torch.from_numpy(confusion.matrix).to(run.accelerator.device)
    confusion.matrix[...] = cast(Tensor, run.accelerator.reduce(matrix, reduction="sum")).cpu().numpy()
    return confusion.compute()
