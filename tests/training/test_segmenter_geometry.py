"""A segmenter's logits lie in the same place of an image for transformers, for our cards and for measuring."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from datasets import Dataset
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel, pipeline
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

from lpg_hf._cards import write_card
from lpg_hf.metrics.mean_iou import ConfusionMatrix
from lpg_hf.models.configuration_deeplab_largefov import DeepLabLargeFOVConfig
from lpg_hf.models.configuration_deeplab_v2 import DeepLabV2Config
from lpg_hf.models.modeling_deeplab_largefov import DeepLabLargeFOVForSemanticSegmentation
from lpg_hf.models.modeling_deeplab_v2 import DeepLabV2ForSemanticSegmentation
from lpg_hf.training.measure import measure_segmenter


NUM_LABELS, SHADE = 5, 50  # the images show label k in grey 50 k
SIZES = [(97, 121), (96, 120), (101, 134), (64, 75), (90, 255)]


class Truth(nn.Module):
    """Features that are the true label on every `stride`-th pixel, which is where a DeepLab's logits lie."""

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride

    def feature_maps(self, pixel_values: Tensor) -> tuple[Tensor]:
        labels = (pixel_values[:, 0, :: self.stride, :: self.stride] / SHADE).round().long()
        return (10 * F.one_hot(labels, NUM_LABELS).permute(0, 3, 1, 2).float(),)


def model_that_knows(kind: str) -> PreTrainedModel:
    if kind == "largefov":
        small = {"depths": (1, 1, 1, 1, 1), "hidden_sizes": (4, 4, 4, 4, 4), "fc_size": 4}
        model = DeepLabLargeFOVForSemanticSegmentation(DeepLabLargeFOVConfig(num_labels=NUM_LABELS, **small))
        model.features = Truth(8)
    else:
        small = {"depths": (1, 1, 1, 1), "stem_size": 4, "hidden_sizes": (4, 4, 4, 4), "stem_pool": False}
        config = DeepLabV2Config(num_labels=NUM_LABELS, output_stride=4, **small)
        model = DeepLabV2ForSemanticSegmentation(config)
        model.backbone = Truth(4)
    model.classifier = nn.Conv2d(NUM_LABELS, NUM_LABELS, 1, bias=False)
    nn.init.dirac_(model.classifier.weight)
    return model.eval()


def ellipses(height: int, width: int) -> np.ndarray:
    """A label map with objects of every class, up to the borders."""
    rng = np.random.default_rng(height)
    rows, columns = np.mgrid[:height, :width]
    labels = np.zeros((height, width), dtype=np.uint8)
    for k in range(12):
        y, x = rng.uniform(0, height), rng.uniform(0, width)
        a, b = rng.uniform(12, 30, 2)
        labels[((rows - y) / a) ** 2 + ((columns - x) / b) ** 2 < 1] = k % (NUM_LABELS - 1) + 1
    return labels


def dataset_rows(folder: Path, image: Image.Image, labels: np.ndarray) -> Dataset:
    image.save(folder / "image.png")
    Image.fromarray(labels).save(folder / "mask.png")
    files = {"image": "image.png", "mask": "mask.png"}
    row = {column: [{"bytes": (folder / name).read_bytes(), "path": None}] for column, name in files.items()}
    row |= {"file_name": ["image.png"], "height": [labels.shape[0]], "width": [labels.shape[1]]}
    return Dataset.from_dict(row | {"objects": [{"bbox": [], "category": [], "iscrowd": [], "difficult": []}]})


def mean_iou(prediction: np.ndarray, truth: np.ndarray) -> float:
    confusion = ConfusionMatrix(NUM_LABELS)
    confusion.update(prediction, truth)
    return confusion.compute()["mean_iou"]


@pytest.mark.parametrize("kind", ["largefov", "deeplab-v2"])
@pytest.mark.parametrize("height, width", SIZES)
def test_four_ways_to_a_label_map_score_the_same(kind, height, width, run, tmp_path, monkeypatch):
    model = model_that_knows(kind)
    processor = SegformerImageProcessorPil(do_resize=False, do_rescale=False, do_normalize=False)
    truth = ellipses(height, width)
    image = Image.fromarray(np.repeat(truth[..., None] * SHADE, 3, axis=2))
    rows = dataset_rows(tmp_path, image, truth)
    scores = {}

    inputs = processor(image, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    [label_map] = processor.post_process_semantic_segmentation(outputs, target_sizes=[(height, width)])
    scores["post-processing"] = mean_iou(label_map.numpy(), truth)

    segments = pipeline("image-segmentation", model=model, image_processor=processor)(image, subtask="semantic")
    label_map = np.zeros((height, width), dtype=np.uint8)
    for segment in segments:
        label_map[np.asarray(segment["mask"]) > 0] = model.config.label2id[segment["label"]]
    scores["pipeline"] = mean_iou(label_map, truth)

    stage = tmp_path / "stage"
    model.config.save_pretrained(stage)
    card = re.search(r"```python\n(.*?)```", write_card(stage).read_text(encoding="utf-8"), re.DOTALL)
    auto = {"AutoModelForSemanticSegmentation": model, "AutoImageProcessor": processor}
    for name, loaded in auto.items():
        monkeypatch.setattr(getattr(transformers, name), "from_pretrained", lambda source, loaded=loaded: loaded)
    scope: dict = {}
    exec(card[1].replace("image.jpg", str(tmp_path / "image.png")), scope)
    scores["card"] = mean_iou(scope["label_map"].numpy(), truth)

    scores["measuring"] = measure_segmenter(run, model, processor, rows, "m")["mean_iou"]

    assert max(scores.values()) - min(scores.values()) < 0.001, scores
    inner = truth.copy()  # the last logits of a row or column may lie on padding
    inner[-8:] = inner[:, -8:] = 255
    half_pixel = F.interpolate(model.train()(**inputs).logits, (height, width), mode="bilinear")
    wrong = half_pixel[0].argmax(dim=0).numpy()
    assert mean_iou(scope["label_map"].numpy(), inner) > mean_iou(wrong, inner)
