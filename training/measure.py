"""Measuring: label maps and segmenters against ground truth, at the images' own sizes."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from datasets import Dataset
from transformers import BaseImageProcessor, PreTrainedModel

from lpg_hf.data.examples import label_map
from lpg_hf.labels import IGNORE_INDEX
from lpg_hf.metrics.mean_iou import ConfusionMatrix
from training.config import Settings
from training.masks import encoded_images, frozen_segmenter, prefetch


# Classes below it in the whole image do not enter the dense CRF. With 21 classes, 0.02 to 0.06 % of the pixels change, for
# 2.3 to 2.6 times the speed (15 photographs of val_mix, segmenters of 25.6 and 35.7 mIoU).
CRF_MIN_PROBABILITY = 0.05


def measure_label_maps(
    accelerator: Accelerator,
    settings: Settings,
    rows: Dataset,
    num_labels: int,
    predict: Callable[[int, dict], np.ndarray],
) -> dict:
    """mIoU of label maps (pseudo masks, filled boxes) against the masks of the rows; void pixels take no part.

    Args:
        predict: `(row index, row) -> (H, W) uint8` label map; its 255 (crowd regions) counts as background.

    Returns:
        `ConfusionMatrix.compute()`.
    """
    confusion = ConfusionMatrix(num_labels)

    def load(index: int) -> tuple[np.ndarray, np.ndarray]:
        row = rows[index]
        prediction = predict(index, row)
        return np.where(prediction == IGNORE_INDEX, 0, prediction), label_map(row)

    mine = range(accelerator.process_index, len(rows), accelerator.num_processes)
    for prediction, truth in prefetch(load, mine, settings.num_workers):
        confusion.update(prediction, truth)
    return _reduced(accelerator, confusion)


def measure_segmenter(
    accelerator: Accelerator,
    settings: Settings,
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    rows: Dataset,
    description: str,
) -> dict:
    """mIoU of a segmenter at full image size, single scale.

    Returns:
        `ConfusionMatrix.compute()`, and the same under `crf` after a dense CRF if `settings.crf`, with the official code's kernels
        for DeepLab v2 or, for all others, for LargeFOV.

    Source: Sec. IV; the published numbers are after the dense CRF.
    """
    num_labels = model.config.num_labels
    confusion, after_crf = ConfusionMatrix(num_labels), ConfusionMatrix(num_labels)
    segmenter = frozen_segmenter(accelerator, settings, model, processor)
    for indices, images, inputs in encoded_images(accelerator, settings, segmenter, rows, description):
        with accelerator.autocast():
            logits = segmenter.logits(inputs)
        for index, image, item, image_logits in zip(indices, images, inputs, logits):
            height, width = image.shape[:2]
            full = F.interpolate(image_logits[None], size=item.frame, mode="bilinear")[0, :, :height, :width]
            truth = label_map(rows[index])
            confusion.update(full.argmax(dim=0).cpu().numpy(), truth)
            if settings.crf:
                from lpg_hf.generators.crf import LARGEFOV_CRF, RESNET_CRF, dense_crf

                kernels = RESNET_CRF if model.config.model_type == "deeplab_v2" else LARGEFOV_CRF
                probs = full.softmax(dim=0).cpu().numpy()
                probs = dense_crf(image, probs, kernels, min_probability=CRF_MIN_PROBABILITY)
                after_crf.update(probs.argmax(axis=0), truth)
    result = _reduced(accelerator, confusion)
    if settings.crf:
        result["crf"] = _reduced(accelerator, after_crf)
    return result


def _reduced(accelerator: Accelerator, confusion: ConfusionMatrix) -> dict:
    """Sums the matrices of all processes."""
    matrix = torch.from_numpy(confusion.matrix).to(accelerator.device)
    confusion.matrix[...] = accelerator.reduce(matrix, reduction="sum").cpu().numpy()
    return confusion.compute()
