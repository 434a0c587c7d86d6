import pytest
import torch
from torch import nn
from transformers import (
    ConvNextConfig,
    MobileNetV2Config,
    MobileNetV2ForSemanticSegmentation,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from lpg_hf import (
    DeepLabLargeFOVConfig,
    DeepLabLargeFOVForSemanticSegmentation,
    DeepLabV2Config,
    DeepLabV2ForSemanticSegmentation,
)
from lpg_hf.training._optim import (
    _check_complete,
    _poly_factor,
    build_optimizer,
    rate_factor,
    segmenter_groups,
    set_learning_rate,
)
from lpg_hf.training.config import SegmenterSettings


SMALL = {"depths": [1, 1, 1, 1], "stem_size": 8, "hidden_sizes": [8, 8, 8, 8], "block": "basic"}
SEGMENTERS = {
    "largefov": lambda: DeepLabLargeFOVForSemanticSegmentation(
        DeepLabLargeFOVConfig(depths=[1] * 5, hidden_sizes=[8] * 5, fc_size=8)
    ),
    "deeplab-v2, frozen": lambda: DeepLabV2ForSemanticSegmentation(DeepLabV2Config(**SMALL, batch_norm="frozen")),
    "deeplab-v2, trained": lambda: DeepLabV2ForSemanticSegmentation(DeepLabV2Config(**SMALL, batch_norm="train")),
    "segformer": lambda: SegformerForSemanticSegmentation(
        SegformerConfig(hidden_sizes=[8, 8, 8, 8], depths=[1] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8)
    ),
    "upernet": lambda: UperNetForSemanticSegmentation(
        UperNetConfig(
            backbone_config=ConvNextConfig(
                hidden_sizes=[8] * 4, depths=[1] * 4, out_features=["stage1", "stage2", "stage3", "stage4"]
            ),
            hidden_size=8,
            auxiliary_in_channels=8,
            auxiliary_channels=8,
        )
    ),
    "mobilenet": lambda: MobileNetV2ForSemanticSegmentation(MobileNetV2Config(depth_multiplier=0.35)),
}


@pytest.mark.parametrize("name", SEGMENTERS)
def test_every_trainable_parameter_is_in_one_of_four_groups(name):
    model = SEGMENTERS[name]()
    groups = {g["name"]: g for g in segmenter_groups(model, SegmenterSettings())}
    assert list(groups) == ["body_weight", "body_bias", "head_weight", "head_bias"]
    assert all(group["params"] for group in groups.values() if "frozen" not in name or group["name"] != "body_bias")
    grouped = [id(p) for g in groups.values() for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_rates_and_decay_are_those_of_table_1():
    groups = segmenter_groups(SEGMENTERS["largefov"](), SegmenterSettings())
    assert [g["lr"] for g in groups] == pytest.approx([1e-3, 2e-3, 1e-2, 2e-2])
    assert [g["weight_decay"] for g in groups] == [5e-4, 0, 5e-4, 0]


def test_the_head_of_both_deeplabs_is_the_classifier():
    for name in ("largefov", "deeplab-v2, trained"):
        model = SEGMENTERS[name]()
        head = {id(p) for g in segmenter_groups(model, SegmenterSettings())[2:] for p in g["params"]}
        assert head == {id(p) for p in model.classifier.parameters()}


def test_the_head_of_upernet_is_all_but_its_backbone():
    model = SEGMENTERS["upernet"]()
    head = {id(p) for g in segmenter_groups(model, SegmenterSettings())[2:] for p in g["params"]}
    assert head == {id(p) for part in (model.decode_head, model.auxiliary_head) for p in part.parameters()}


def test_an_incomplete_grouping_is_refused():
    model = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="bias"):
        _check_complete(model, [{"params": [model.weight]}])
    with pytest.raises(RuntimeError):
        _check_complete(model, [{"params": [model.weight, model.bias]}, {"params": [model.bias]}])


def test_a_network_without_a_known_head_is_refused():
    with pytest.raises(ValueError, match="Sequential has neither a classifier nor a base model nor a backbone"):
        segmenter_groups(nn.Sequential(nn.Conv2d(3, 3, 1)), SegmenterSettings())


def test_poly_goes_from_one_to_zero_over_the_steps():
    curve = [_poly_factor(step, 100) for step in range(101)]
    assert curve[0] == 1 and curve[100] == 0 and curve == sorted(curve, reverse=True)
    assert curve[50] == pytest.approx(0.5**0.9)


def test_the_schedule_keeps_the_ratios_of_the_groups():
    groups = segmenter_groups(SEGMENTERS["largefov"](), SegmenterSettings())
    optimizer = build_optimizer("sgd", groups)
    set_learning_rate(optimizer, 0.5)
    set_learning_rate(optimizer, 0.25)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([2.5e-4, 5e-4, 2.5e-3, 5e-3])
    assert isinstance(optimizer, torch.optim.SGD) and optimizer.param_groups[0]["momentum"] == 0.9


def test_the_rate_falls_as_poly_or_after_a_rise_as_cosine():
    assert [rate_factor(t, 10, "poly") for t in range(10)] == [_poly_factor(t, 10) for t in range(10)]
    factors = [rate_factor(t, 1000, "cosine") for t in range(1001)]
    assert factors[0] == pytest.approx(1 / 20) and max(factors) == factors[19] < 1
    assert factors[500] == pytest.approx(0.5) and factors[1000] == pytest.approx(0)
    assert factors[20:] == sorted(factors[20:], reverse=True)
    assert rate_factor(0, 3, "cosine") == 1  # of few steps, none is for the rise
