"""Measuring a segmenter: equal to a plain count over the images' own pixels."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from PIL import Image
from tiny_run import changed
from torch import nn
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

from lpg_hf._files import write_json
from lpg_hf.data._examples import decode_image, label_map
from lpg_hf.training.data import load_eval
from lpg_hf.training.measure import measure_label_maps, measure_segmenter
from lpg_hf.training.models import Normalization
from lpg_hf.training.run import Run


class Threshold(nn.Module):
    """A segmenter that decides each pixel by itself, so that nothing beyond the image can reach it."""

    dtype = torch.float32

    def __init__(self, num_labels):
        super().__init__()
        self.config = type("Config", (), {"num_labels": num_labels})()
        self.directions = torch.randn(num_labels, 3, generator=torch.Generator().manual_seed(0))

    def forward(self, pixel_values):
        return SemanticSegmenterOutput(logits=torch.einsum("lc,bchw->blhw", self.directions, pixel_values))


def plain_ious(pairs, num_labels):
    """IoU per class of (prediction, truth) pairs, pixel by pixel in Python's plainest way."""
    ious = []
    for c in range(num_labels):
        both = sum(int(((p == c) & (t == c)).sum()) for p, t in pairs)
        either = sum(int((((p == c) | (t == c)) & (t != 255)).sum()) for p, t in pairs)
        ious.append(both / either if either else float("nan"))
    return ious


def odd_rows(tmp_path):
    """Three images of odd sizes, one a multiple of the padding, with void pixels in the masks."""
    rng = np.random.default_rng(0)
    rows = {"image": [], "mask": [], "file_name": [], "height": [], "width": []}
    for k, (height, width) in enumerate([(37, 51), (64, 32), (33, 65)]):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(tmp_path / f"{k}.png")
        mask = rng.integers(0, 3, (height, width)).astype(np.uint8)
        mask[:, -3:] = 255
        Image.fromarray(mask).save(tmp_path / f"{k}_mask.png")
        for column, name in (("image", f"{k}.png"), ("mask", f"{k}_mask.png")):
            rows[column].append({"bytes": (tmp_path / name).read_bytes(), "path": None})
        rows["file_name"].append(f"{k}.png")
        rows["height"].append(height)
        rows["width"].append(width)
    return Dataset.from_dict(rows | {"objects": [{"bbox": [], "category": [], "iscrowd": [], "difficult": []}] * 3})


@pytest.mark.parametrize("batch_size", [1, 3])
def test_odd_sizes_and_padding_count_as_the_image_alone(settings, tmp_path, batch_size):
    settings = changed(settings, {"run.inference_batch_size": batch_size})
    rows, model, processor = odd_rows(tmp_path), Threshold(3), SegformerImageProcessorPil(do_resize=False)
    measured = measure_segmenter(Run(Accelerator(cpu=True), settings), model, processor, rows, "m")
    pairs = []
    for row in rows:
        pixels = torch.from_numpy(Normalization.of(processor)(decode_image(row)))[None]
        pairs.append((model(pixels).logits[0].argmax(dim=0).numpy(), label_map(row)))
    assert measured["per_class_iou"] == pytest.approx(plain_ious(pairs, 3), abs=1e-12)
    assert measured["mean_iou"] == pytest.approx(np.mean(plain_ious(pairs, 3)), abs=1e-12)


def test_the_truth_itself_scores_one(settings):
    rows = load_eval(Run(Accelerator(cpu=True), settings))
    measured = measure_label_maps(Run(Accelerator(cpu=True), settings), rows, 5, lambda index, row: label_map(row))
    assert measured["mean_iou"] == 1


def test_what_was_measured_may_reach_another_machine_late(settings, tmp_path):
    """On a network drive: a file that was looked for stays absent for a while after the main process wrote it."""
    path, measured = tmp_path / "measured.json", {"mean_iou": 0.5}
    late = threading.Timer(0.5, lambda: write_json(path, measured))
    other = Run(SimpleNamespace(is_main_process=False, wait_for_everyone=late.start), settings)
    assert other.once(path, lambda: measured) == measured
