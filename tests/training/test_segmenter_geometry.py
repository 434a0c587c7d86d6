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
from tiny_run import changed
from torch import Tensor, nn
from transformers import (
    MobileNetV2Config,
    MobileNetV2ForSemanticSegmentation,
    MobileNetV2Model,
    PreTrainedModel,
    pipeline,
)
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

from lpg_hf._cards import write_card
from lpg_hf.metrics.mean_iou import ConfusionMatrix
from lpg_hf.models.configuration_deeplab_largefov import DeepLabLargeFOVConfig
from lpg_hf.models.configuration_deeplab_v2 import DeepLabV2Config
from lpg_hf.models.logits import logits_at_pixels, tf_padding_stride
from lpg_hf.models.losses import pixel_cross_entropy
from lpg_hf.models.modeling_deeplab_largefov import DeepLabLargeFOVForSemanticSegmentation
from lpg_hf.models.modeling_deeplab_v2 import DeepLabV2ForSemanticSegmentation
from lpg_hf.training import steps
from lpg_hf.training.measure import measure_segmenter
from lpg_hf.training.run import Run


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

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.feature_maps(pixel_values)[-1]


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


def label_map_of_card(model, processor, folder: Path, monkeypatch) -> np.ndarray:
    """What the first example of the model's card makes of `folder/image.png`."""
    stage = folder / "stage"
    model.config.save_pretrained(stage)
    processor.save_pretrained(stage)
    card = re.search(r"```python\n(.*?)```", write_card(stage).read_text(encoding="utf-8"), re.DOTALL)
    auto = {"AutoModelForSemanticSegmentation": model, "AutoImageProcessor": processor}
    for name, loaded in auto.items():
        monkeypatch.setattr(getattr(transformers, name), "from_pretrained", lambda source, loaded=loaded: loaded)
    scope: dict = {}
    exec(card[1].replace("image.jpg", str(folder / "image.png")), scope)
    return scope["label_map"].numpy()


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

    of_card = label_map_of_card(model, processor, tmp_path, monkeypatch)
    scores["card"] = mean_iou(of_card, truth)

    scores["measuring"] = measure_segmenter(run, model, processor, rows, "m")["mean_iou"]

    assert max(scores.values()) - min(scores.values()) < 0.001, scores
    inner = truth.copy()  # the last logits of a row or column may lie on padding
    inner[-8:] = inner[:, -8:] = 255
    half_pixel = F.interpolate(model.train()(**inputs).logits, (height, width), mode="bilinear")
    wrong = half_pixel[0].argmax(dim=0).numpy()
    assert mean_iou(of_card, inner) > mean_iou(wrong, inner)


@pytest.mark.parametrize("height, width", [(96, 128), (97, 121), (64, 75)])
def test_the_card_of_a_network_with_tf_padding_has_the_label_map_that_is_measured(
    height, width, run, tmp_path, monkeypatch
):
    torch.manual_seed(0)
    config = MobileNetV2Config(depth_multiplier=0.35, output_stride=16, num_labels=NUM_LABELS)
    model = MobileNetV2ForSemanticSegmentation(config).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    processor = SegformerImageProcessorPil(do_resize=False)
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    with torch.no_grad():  # the labels change from place to place
        means = model(**processor(noise, return_tensors="pt")).logits.mean(dim=(0, 2, 3))
        model.segmentation_head.classifier.convolution.bias -= means
    rows = dataset_rows(tmp_path, Image.fromarray(noise), np.zeros((height, width), np.uint8))
    of_card = label_map_of_card(model, processor, tmp_path, monkeypatch)
    assert of_card.shape == (height, width) and len(np.unique(of_card)) > 1
    truth = dataset_rows(tmp_path, Image.fromarray(noise), of_card.astype(np.uint8))
    assert measure_segmenter(run, model, processor, truth, "m")["pixel_accuracy"] == 1
    assert measure_segmenter(run, model, processor, rows, "m")["pixel_accuracy"] < 1


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_a_network_with_tf_padding_sees_other_pixels_in_crops_of_other_sides(stride):
    """With equal weights, the pixels that a feature depends on have their centre where its logit lies."""
    config = MobileNetV2Config(depth_multiplier=0.35, output_stride=stride, hidden_act="relu")
    model = MobileNetV2Model(config).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())

    def middle(side: int) -> tuple[int, float]:
        """Index of a feature, and the pixel that it lies on."""
        image = torch.ones(1, 3, side, side, requires_grad=True)
        features = model(image).last_hidden_state
        index = features.shape[-1] // 2
        gradient = torch.autograd.grad(features[0, 0, index, index], image)[0][0, 0].sum(dim=1)
        return index, (gradient @ torch.arange(side, dtype=gradient.dtype) / gradient.sum()).item()

    assert tf_padding_stride(config) == stride
    index, pixel = middle(512)
    assert pixel == pytest.approx(stride * (index + 1) - 1, abs=0.1)
    index, pixel = middle(513)
    assert pixel == pytest.approx(stride * index, abs=0.1)
    index, pixel = middle(540)
    assert stride * index < pixel < stride * (index + 1) - 1


@pytest.mark.parametrize("stride, every", [(8, 4), (8, 8), (4, 3), (8, 16)])
def test_a_part_of_the_pixels_has_the_logits_that_all_of_them_have(stride, every):
    logits = torch.randn(2, 3, 9, 6).requires_grad_()
    size = 8 * stride + 1, 5 * stride - 1  # of which the last columns are padding
    every_pixel = logits_at_pixels(logits, stride, size)
    part = logits_at_pixels(logits, stride, size, every=every)
    expected = every_pixel[:, :, every // 2 :: every, every // 2 :: every]
    torch.testing.assert_close(part, expected)
    gradients = (torch.autograd.grad(maps.square().sum(), logits)[0] for maps in (part, expected))
    torch.testing.assert_close(*gradients)


@pytest.fixture
def loss_of(run, tmp_path, monkeypatch):
    """The loss of the M-step with a stride of 4."""
    monkeypatch.setattr(steps, "_train", lambda run, phase, model, optimizer, samples, loss_of: loss_of)
    strided = Run(run.accelerator, changed(run.settings, {"segmenter.loss_stride": 4}))

    def build(model):
        return steps.train_segmenter(strided, model, None, "phase", tmp_path, 1)

    return build


@pytest.mark.parametrize("kind", ["largefov", "deeplab-v2"])
@pytest.mark.parametrize("align_corners", [True, False])
def test_the_loss_between_the_logits_is_that_of_the_logits_in_use(kind, align_corners, loss_of):
    model = model_that_knows(kind)
    model.config.align_corners = align_corners
    labels = torch.from_numpy(ellipses(129, 129))[None].long()
    images = SHADE * labels[:, None].expand(1, 3, -1, -1).float()
    with torch.no_grad():
        in_use = model(images).logits
    targets = labels[:, 2::4, 2::4]
    if align_corners:
        expected = F.cross_entropy(in_use[:, :, 2::4, 2::4], targets)
    else:
        expected = pixel_cross_entropy(in_use, targets, at="labels")
    batch = {"pixel_values": images, "labels": labels}
    loss = loss_of(model)(model.train(), batch)
    assert torch.equal(loss, expected) or (align_corners and torch.isclose(loss, expected, rtol=1e-5))
    everywhere = {"box_labels": labels, "filling_rates": torch.ones(1, NUM_LABELS)}
    assert torch.equal(loss_of(model)(model, batch | everywhere), loss)


def test_the_loss_of_several_scales_ends_with_that_of_their_maximum_in_use(loss_of):
    model = model_that_knows("deeplab-v2")
    model.config.scales = (0.5, 0.75)
    labels = torch.from_numpy(ellipses(129, 129))[None].long()
    batch = {"pixel_values": SHADE * labels[:, None].expand(1, 3, -1, -1).float(), "labels": labels}
    with torch.no_grad():
        in_use = model(batch["pixel_values"]).logits[:, :, 2::4, 2::4]
        maps = model.train()(batch["pixel_values"]).scale_logits
        at_positions = steps._at_positions(maps, labels.shape[1:], 4, 4)
        torch.testing.assert_close(at_positions[-1], in_use)
        expected = sum(F.cross_entropy(logits, labels[:, 2::4, 2::4]) for logits in at_positions)
        torch.testing.assert_close(loss_of(model)(model, batch), expected)
