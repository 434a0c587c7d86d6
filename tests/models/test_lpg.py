import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from checkpointing import enable_checkpointing
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, ConvNextConfig

from lpg_hf import bundled
from lpg_hf.models import auto
from lpg_hf.models.configuration_lpg import BACKBONES, ENCODERS, LPGConfig
from lpg_hf.models.image_processing_lpg import LPGImageProcessor
from lpg_hf.models.imagenet import load_encoder_imagenet
from lpg_hf.models.modeling_lpg import LPGModel, _SqueezeNetEncoder
from lpg_hf.training.models import _widen_inputs


auto.register()

TINY_DECODER = {"decoder_size": 8, "context_size": 8, "stem_size": 4, "head_size": 6}
TINY_STAGES = {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1]}
TINY_RESNET = {"model_type": "resnet", "embedding_size": 8, "layer_type": "basic", **TINY_STAGES}
TINY_CONVNEXT = {"model_type": "convnext", **TINY_STAGES}
TINY_SWIN = {"model_type": "swin", "embed_dim": 8, "depths": [1] * 4, "num_heads": [1, 1, 2, 2], "window_size": 4}
TINY = {
    "hourglass": {
        "embedding_size": 4,
        "hidden_sizes": (6, 8, 8),
        "depths": (2, 1, 1),
        "neck_size": 8,
        "head_size": 6,
    },
    "resnet18": {},
    "resnet101": {},
    "squeezenet": TINY_DECODER,
    "vgg16": TINY_DECODER,
    "efficientnet_lite0": TINY_DECODER,
    "auto": {**TINY_DECODER, "backbone_config": TINY_RESNET},
}
SMALL_BACKBONES = ("hourglass", "squeezenet", "resnet18", "auto")


def build(backbone="hourglass", **kwargs) -> LPGModel:
    """A small LPG in eval mode whose batch statistics are not the initial ones."""
    torch.manual_seed(0)
    model = LPGModel(LPGConfig(**{"backbone": backbone, **TINY[backbone], **kwargs})).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
    return model


def inputs(height, width, batch=1, use_class_prob=True) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    box_mask = torch.zeros(batch, 1, height, width)
    box_mask[..., height // 4 : height // 2, width // 4 : width // 2] = 1
    values = {"pixel_values": torch.randn(batch, 3, height, width, generator=random), "box_mask": box_mask}
    if use_class_prob:
        values["class_prob"] = torch.rand(batch, 1, height, width, generator=random)
    return values


def random_labels(height, width, batch=1):
    return torch.randint(0, 2, (batch, height, width), generator=torch.Generator().manual_seed(2))


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


# Published architectures (on the meta device: no memory, no time)


@pytest.mark.parametrize(
    "backbone, without_prob, with_prob",
    [
        ("hourglass", 12_118_018, 12_120_370),
        ("resnet18", 11_180_674, 11_183_810),  # Table II: 11.18 M
        ("resnet101", 42_507_394, 42_510_530),  # Table II: 42.51 M
        ("squeezenet", 3_146_690, 3_152_066),
        ("vgg16", 17_175_746, 17_181_122),
        ("efficientnet_lite0", 2_134_242, 2_139_618),
    ],
)
def test_number_of_parameters_is_the_published_one(backbone, without_prob, with_prob):
    with torch.device("meta"):
        assert count(LPGModel(LPGConfig(backbone=backbone, use_class_prob=False))) == without_prob
        assert count(LPGModel(LPGConfig(backbone=backbone, use_class_prob=True))) == with_prob


def test_hourglass_of_half_the_width_has_three_million_parameters():
    half = {"embedding_size": 24, "hidden_sizes": (48, 48, 64, 64, 64, 96), "neck_size": 128, "head_size": 48}
    with torch.device("meta"):
        assert count(LPGModel(LPGConfig(use_class_prob=False, **half))) == 3_037_186
        assert count(LPGModel(LPGConfig(use_class_prob=True, **half))) == 3_038_362


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("height, width", [(217, 333), (800, 275), (321, 320)])
def test_logits_of_the_full_size_models_have_stride_4_at_any_size(backbone, height, width):
    with torch.device("meta"):
        backbone_config = {"model_type": "resnet"} if backbone == "auto" else None
        model = LPGModel(LPGConfig(backbone=backbone, backbone_config=backbone_config)).eval()
        values = {name: torch.empty(value.shape) for name, value in inputs(height, width).items()}
        assert model(**values).logits.shape == (1, 2, -(-height // 4), -(-width // 4))


@pytest.mark.parametrize("field, value", [("embedding_size", 6), ("neck_size", 6), ("depths", (1, 1, 1))])
def test_every_size_of_the_hourglass_changes_it(field, value):
    assert count(build(**{field: value})) != count(build())


@pytest.mark.parametrize("field", ["decoder_size", "context_size", "stem_size", "head_size"])
def test_every_size_of_the_squeezenet_changes_it(field):
    assert count(build("squeezenet", **{field: 5})) != count(build("squeezenet"))


def test_output_stride_is_the_trunks_and_not_the_logits():
    for output_stride in (8, 32):
        model = build("resnet18", output_stride=output_stride)
        output = model(**inputs(64, 96), output_hidden_states=True)
        assert output.hidden_states[0].shape[2:] == (64 // output_stride, 96 // output_stride)
        assert output.logits.shape[2:] == (16, 24)


def test_unknown_backbone_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError,
        match="'vgg19' is unknown.*hourglass, resnet18, resnet101, squeezenet, vgg16, efficientnet_lite0, auto",
    ):
        LPGConfig(backbone="vgg19")


@pytest.mark.parametrize("sizes", [{"depths": (1, 1)}, {"hidden_sizes": (8,), "depths": (1,)}])
def test_levels_of_unequal_number_are_refused(sizes):
    with pytest.raises(ValueError, match="one number per level"):
        build(**sizes)


# Encoders


def waves(*shape):
    """The same numbers with every version of every library."""
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float64).sin().reshape(shape).float()


def test_logits_of_the_bundled_generator_stay_what_they_were():
    model, box_mask = LPGModel.from_pretrained(bundled("lpg-small")), torch.zeros(1, 1, 50, 70)
    box_mask[..., 10:40, 15:60] = 1
    with torch.no_grad():
        logits = model(waves(1, 3, 50, 70), box_mask).logits
    foreground = torch.tensor(
        [
            [-0.484296, -0.796564, -0.735194, -0.839250],
            [-0.993144, -0.534665, -0.250948, -0.561132],
            [-0.933240, -0.524044, -0.244194, -0.622004],
            [-0.968678, -1.153661, -1.113464, -1.203550],
        ]
    )
    torch.testing.assert_close(logits[0, 1, ::4, ::5], foreground, rtol=0, atol=1e-4)


@pytest.mark.parametrize("backbone", ENCODERS)
def test_encoder_sees_the_image_alone_and_the_levels_go_from_stride_4_to_64(backbone):
    model, values = build(backbone), inputs(128, 192)
    with torch.no_grad():
        hidden_states = model(**values, output_hidden_states=True).hidden_states
        features = model.generator.encoder(values["pixel_values"])
    assert [x.shape[2:] for x in hidden_states] == [(128 // stride, 192 // stride) for stride in (4, 8, 16, 32, 64)]
    assert [x.shape[1] for x in features] == list(model.generator.encoder.hidden_sizes)
    for level, (feature, state) in enumerate(zip(features, hidden_states)):
        assert torch.equal(state[:, : feature.shape[1]], feature), level  # the finest has the stem behind it


def test_stages_of_a_backbone_with_the_strides_of_the_decoder_are_used():
    def used(**fields):
        return build("auto", backbone_config={**TINY_CONVNEXT, **fields}).generator.encoder

    everything = used()  # the stem and stage1 have stride 4
    assert everything.backbone.out_features == ["stage1", "stage2", "stage3", "stage4"]
    assert everything.hidden_sizes == (8, 12, 16, 20)
    two = used(out_features=["stem", "stage2"])
    assert two.backbone.out_features == ["stem", "stage2"] and two.hidden_sizes == (8, 12)
    assert used(patch_size=2).backbone.out_features == ["stage2", "stage3", "stage4"]  # the finest stride is 2


def test_config_of_the_backbone_is_left_as_it_was_given():
    given = ConvNextConfig(**TINY_STAGES)
    model = build("auto", backbone_config=given)
    assert model.config.backbone_config is given and given.out_features == ["stage4"]
    assert model.generator.encoder.backbone.config.out_features == ["stage1", "stage2", "stage3", "stage4"]


@pytest.mark.parametrize(
    "backbone_config, message",
    [
        ({**TINY_CONVNEXT, "patch_size": 8}, r"strides stem 8, stage1 8, .*needs 4, 8, 16"),
        ({**TINY_CONVNEXT, "out_features": ["stage1", "stage3"]}, r"strides stage1 4, stage3 16, .*without a gap"),
        ({**TINY_CONVNEXT, "patch_size": 3}, r"strides stem 3\.04762, "),
        ({**TINY_CONVNEXT, "num_channels": 1}, r"convnext backbone .* cannot take an RGB image"),
        ({"model_type": "bert"}, "BertConfig, which names no stages"),
        ({"model_type": "vgg"}, "model_type='vgg', which transformers does not know"),
        ({}, "model_type=None"),
        (None, "needs the config of a transformers backbone"),
    ],
)
def test_unfitting_backbones_are_refused_with_the_reason(backbone_config, message):
    with pytest.raises(ValueError, match=message):
        build("auto", backbone_config=backbone_config)


def test_backbone_config_is_for_the_backbone_auto():
    with pytest.raises(ValueError, match="backbone='squeezenet' and backbone_config=.* do not fit"):
        build("squeezenet", backbone_config=TINY_RESNET)


def test_backbone_config_is_the_same_as_dict_and_as_object_and_after_saving(tmp_path):
    from_dict = LPGConfig(backbone="auto", backbone_config=TINY_CONVNEXT)
    from_object = LPGConfig(backbone="auto", backbone_config=ConvNextConfig(**TINY_STAGES))
    from_object.save_pretrained(tmp_path)
    loaded = LPGConfig.from_pretrained(tmp_path)
    assert type(loaded.backbone_config) is type(from_dict.backbone_config) is ConvNextConfig
    assert from_dict.to_dict() == from_object.to_dict()
    assert loaded.backbone_config.to_dict() == from_object.backbone_config.to_dict()
    assert LPGConfig.from_dict(from_dict.to_dict()).to_dict() == from_dict.to_dict()


@pytest.mark.parametrize("backbone_config", [TINY_CONVNEXT, TINY_SWIN])
def test_other_backbones_take_any_size_and_load_as_they_were_saved(backbone_config, tmp_path):
    model, values = build("auto", backbone_config=backbone_config), inputs(45, 61)
    model.save_pretrained(tmp_path)
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    with torch.no_grad():
        logits = model(**values).logits
        torch.testing.assert_close(loaded(**values).logits, logits)
    assert logits.shape == (1, 2, 12, 16) and logits.isfinite().all()


def test_backbone_has_the_type_of_the_model_and_not_of_its_own_checkpoint(tmp_path):
    model = build("auto", backbone_config={**TINY_RESNET, "dtype": "float16"})
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    model.save_pretrained(tmp_path)
    for dtype in (torch.bfloat16, torch.float32):
        loaded = LPGModel.from_pretrained(tmp_path, dtype=dtype)
        assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}


FROZEN = {
    "squeezenet": "features.([0-4])",
    "vgg16": "features.([0-8])",
    "efficientnet_lite0": "(stem|blocks.[0-2])",
    "auto": "backbone.(embedder|encoder.stages.0)",
}


def frozen(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


@pytest.mark.parametrize("backbone", ENCODERS)
def test_frozen_stages_learn_nothing_and_all_else_does(backbone):
    model, values = build(backbone, num_frozen_stages=2), inputs(64, 64, batch=4)
    early = {name for name in model.state_dict() if re.match(rf"generator\.encoder\.{FROZEN[backbone]}\.", name)}
    parameters = dict(model.named_parameters())
    assert early and frozen(model) == early & set(parameters)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(**values, labels=random_labels(64, 64, 4)).loss.backward()
    assert {name for name, parameter in parameters.items() if parameter.grad is None} == frozen(model)
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert not changed & early  # batch statistics included
    assert any("encoder" in name for name in changed) and any("lateral" in name for name in changed)


@pytest.mark.parametrize("backbone", ENCODERS)
def test_loaded_stages_are_frozen_as_the_config_says(backbone, tmp_path):
    model = build(backbone, num_frozen_stages=1)
    model.save_pretrained(tmp_path)
    assert frozen(LPGModel.from_pretrained(tmp_path)) == frozen(model) != set()
    assert frozen(LPGModel.from_pretrained(tmp_path, num_frozen_stages=0)) == set()
    all_frozen = LPGModel.from_pretrained(tmp_path, num_frozen_stages=len(model.generator.encoder.stages()))
    encoder = {f"generator.encoder.{name}" for name, _ in model.generator.encoder.named_parameters()}
    assert frozen(all_frozen) == encoder


def test_stages_that_cannot_be_frozen_are_refused():
    with pytest.raises(ValueError, match="num_frozen_stages=6, but this encoder has 5 stages"):
        build("vgg16", num_frozen_stages=6)
    for fields in ({"num_frozen_stages": -1}, {"backbone": "hourglass", "num_frozen_stages": 1}):
        with pytest.raises(ValueError, match="num_frozen_stages=.* does not fit backbone"):
            build(**fields)
    without_embeddings = {"model_type": "dinov3_convnext", **TINY_STAGES}
    with pytest.raises(ValueError, match="DINOv3ConvNextBackbone does not name its .*set num_frozen_stages to 0"):
        build("auto", backbone_config=without_embeddings, num_frozen_stages=1)


def test_dice_is_added_with_its_weight():
    values, labels = inputs(32, 32), random_labels(32, 32)
    with torch.no_grad():
        losses = [build(dice_loss_weight=weight)(**values, labels=labels).loss for weight in (0.0, 1.0, 2.0)]
    assert losses[0] < losses[1]
    torch.testing.assert_close(losses[2] - losses[1], losses[1] - losses[0])


# Inputs


@pytest.mark.parametrize("height, width", [(217, 333), (800, 275), (321, 320), (1, 1), (4, 65)])
def test_any_image_size_works(height, width):
    with torch.no_grad():
        logits = build()(**inputs(height, width)).logits
    assert logits.shape == (1, 2, -(-height // 4), -(-width // 4))
    assert logits.isfinite().all()


@pytest.mark.parametrize("backbone", SMALL_BACKBONES)
def test_batched_equals_one_by_one(backbone):
    model, values = build(backbone), inputs(45, 61, batch=3)
    with torch.no_grad():
        batched = model(**values).logits
        for i in range(3):
            single = model(**{name: value[i : i + 1] for name, value in values.items()}).logits
            torch.testing.assert_close(batched[i : i + 1], single, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backbone", SMALL_BACKBONES)
@pytest.mark.parametrize("name", ["pixel_values", "box_mask", "class_prob"])
def test_every_input_reaches_the_logits(backbone, name):
    model, values = build(backbone), inputs(64, 64)
    with torch.no_grad():
        before = model(**values).logits
        changed = model(**{**values, name: 1 - values[name]}).logits
    assert not torch.allclose(before, changed, atol=1e-6)


def test_missing_inputs_are_named():
    values = inputs(16, 16)
    with pytest.raises(ValueError, match="needs box_mask"):
        build()(values["pixel_values"])
    del values["class_prob"]
    with pytest.raises(ValueError, match="use_class_prob=True: pass class_prob"):
        build()(**values)


@pytest.mark.parametrize("backbone", ["hourglass", "squeezenet"])
def test_optional_class_prob_that_is_left_out_is_zero(backbone):
    model, required, values = build(backbone, class_prob_optional=True), build(backbone), inputs(33, 40)
    prob = values.pop("class_prob")
    with torch.no_grad():
        left_out = model(**values).logits
        assert torch.equal(left_out, model(**values, class_prob=torch.zeros_like(prob)).logits)
        given = model(**values, class_prob=prob).logits
        assert torch.equal(given, required(**values, class_prob=prob).logits) and not torch.equal(given, left_out)


def test_class_prob_is_required_only_where_it_is_used_and_not_optional():
    requires = {
        (used, optional): LPGConfig(use_class_prob=used, class_prob_optional=optional).requires_class_prob
        for used in (False, True)
        for optional in (False, True)
    }
    assert [case for case, required in requires.items() if required] == [(True, False)]
    with pytest.raises(ValueError, match="use_class_prob=False: leave it out"):
        build(use_class_prob=False, class_prob_optional=True)(**inputs(16, 16))


def test_superfluous_class_prob_is_refused():
    with pytest.raises(ValueError, match="use_class_prob=False: leave it out"):
        build(use_class_prob=False)(**inputs(16, 16))


@pytest.mark.parametrize("name", ["box_mask", "class_prob"])
@pytest.mark.parametrize("shape", [(1, 1, 16, 20), (2, 1, 16, 16), (1, 16, 16), (1, 2, 16, 16)])
def test_inputs_of_another_size_are_refused(name, shape):
    with pytest.raises(ValueError, match=rf"{name} has shape .*need \(1, 1, 16, 16\)"):
        build()(**{**inputs(16, 16), name: torch.zeros(shape)})


def test_tuple_and_hidden_states_come_on_request():
    model, values = build(), inputs(32, 32)
    assert model(**values).hidden_states is None
    logits, hidden_states = model(**values, output_hidden_states=True, return_dict=False)
    assert torch.equal(logits, model(**values).logits) and hidden_states[0].shape == (1, 8, 8, 8)


# Loss


def test_loss_is_the_cross_entropy_at_the_logits_resolution_in_float32():
    model, values, labels = build(), inputs(32, 48), random_labels(8, 12)
    full = labels.repeat_interleave(4, 1).repeat_interleave(4, 2)
    output = model(**values, labels=full)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, labels))
    assert output.loss.dtype == torch.float32


@pytest.mark.parametrize("ignore_index", [255, 7])
def test_ignored_pixels_add_no_loss_and_no_gradient(ignore_index):
    model, values = build(semantic_loss_ignore_index=ignore_index), inputs(32, 32)
    labels = random_labels(32, 32)
    labels[:, :, 16:] = ignore_index
    output = model(**values, labels=labels)
    output.logits.retain_grad()
    output.loss.backward()
    kept = F.cross_entropy(output.logits[..., :4], labels[:, 2::4, 2:16:4])
    torch.testing.assert_close(output.loss, kept)
    assert output.logits.grad[..., 4:].eq(0).all() and output.logits.grad[..., :4].ne(0).any()


def test_labels_that_are_all_ignored_give_loss_and_gradients_of_zero():
    model = build().train()
    loss = model(**inputs(32, 32), labels=torch.full((1, 32, 32), 255)).loss
    loss.backward()
    assert loss == 0 and all(p.grad is not None and p.grad.eq(0).all() for p in model.parameters())


@pytest.mark.parametrize("weight", [0, 0.25, 1.0])
def test_outside_box_loss_weight_weighs_the_pixels_outside_and_no_others(weight):
    model, values, labels = build(outside_box_loss_weight=weight), inputs(32, 32), random_labels(8, 8)
    output = model(**values, labels=labels.repeat_interleave(4, 1).repeat_interleave(4, 2))
    per_pixel = F.cross_entropy(output.logits, labels, reduction="none")
    inside = values["box_mask"][:, 0, ::4, ::4].bool()  # the box lies on the grid of the logits
    total = per_pixel[inside].sum() + weight * per_pixel[~inside].sum()
    torch.testing.assert_close(output.loss, total / (inside.sum() + weight * (~inside).sum()))


@pytest.mark.parametrize("outside", [0.25, 1.0])
@pytest.mark.parametrize("weight", [1.5, 3])
def test_object_loss_weight_weighs_the_pixels_of_the_object_and_no_others(weight, outside):
    model = build(outside_box_loss_weight=outside, object_loss_weight=weight)
    values, labels = inputs(32, 32), random_labels(8, 8)
    labels[0, 0, :4] = 255
    output = model(**values, labels=labels.repeat_interleave(4, 1).repeat_interleave(4, 2))
    per_pixel = F.cross_entropy(output.logits, labels, reduction="none", ignore_index=255)
    mass = torch.where(values["box_mask"][:, 0, ::4, ::4].bool(), 1.0, outside)
    mass = mass * torch.where(labels == 1, float(weight), 1.0) * (labels != 255)
    torch.testing.assert_close(output.loss, (per_pixel * mass).sum() / mass.sum())


def test_labels_outside_the_boxes_do_not_matter_at_weight_0():
    values, labels = inputs(32, 32), random_labels(32, 32)
    flipped = torch.where(values["box_mask"][:, 0].bool(), labels, 1 - labels)
    for weight, equal in ((0, True), (0.25, False)):
        model = build(outside_box_loss_weight=weight)
        assert (model(**values, labels=labels).loss == model(**values, labels=flipped).loss) == equal


def test_outside_box_loss_weight_is_without_effect_where_the_box_is_the_image():
    values, labels = inputs(32, 32), random_labels(32, 32)
    values["box_mask"][:] = 1
    losses = [build(outside_box_loss_weight=w)(**values, labels=labels).loss for w in (0, 0.25, 1)]
    torch.testing.assert_close(losses[0], losses[2])
    torch.testing.assert_close(losses[1], losses[2])


# Save and load


@pytest.mark.parametrize(
    "backbone", [pytest.param(b, marks=pytest.mark.slow) if b == "resnet101" else b for b in BACKBONES]
)
def test_save_and_load_is_bit_exact(backbone, tmp_path):
    model, values = build(backbone), inputs(45, 61)
    model.save_pretrained(tmp_path)
    loaded, info = LPGModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert not loaded.training
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    with torch.no_grad():  # where a tensor lies in memory may change the order of a sum
        torch.testing.assert_close(loaded(**values).logits, model(**values).logits, rtol=0, atol=1e-6)


def test_auto_classes_find_model_and_image_processor(tmp_path):
    model, values = build(outside_box_loss_weight=0.5), inputs(33, 40)
    model.save_pretrained(tmp_path)
    LPGImageProcessor(view="box", view_size=96, view_context=0.4, align_corners=True).save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).outside_box_loss_weight == 0.5
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is LPGModel
    assert torch.equal(loaded(**values).logits, model(**values).logits)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(processor) is LPGImageProcessor
    assert (processor.view, processor.view_size, processor.view_context) == ("box", 96, 0.4)
    assert processor.align_corners is True


def fit(model, values, labels):
    """A few steps, so that the logits have a margin as a trained network's have."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(50):
        optimizer.zero_grad()
        model(**values, labels=labels).loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("backbone", ["hourglass", "squeezenet"])
def test_bfloat16_agrees_on_more_than_99_percent_of_the_pixels(backbone, tmp_path):
    values = inputs(64, 96, batch=2)
    values["box_mask"][..., 48:] = 1
    model = fit(build(backbone), values, values["box_mask"][:, 0].long())
    model.save_pretrained(tmp_path)
    half = LPGModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    with torch.no_grad():
        foreground = model(**values).logits.argmax(1)
        output = half(**{**values, "pixel_values": values["pixel_values"].bfloat16()}, labels=random_labels(64, 96, 2))
    assert output.logits.dtype == torch.bfloat16 and output.loss.dtype == torch.float32
    assert 0.2 < foreground.float().mean() < 0.8
    assert (output.logits.argmax(1) == foreground).float().mean() > 0.99


@pytest.mark.parametrize("backbone", ["hourglass", "squeezenet"])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_gives_the_same_gradients(backbone, use_reentrant):
    def gradients(checkpointing):
        model = build(backbone).train()
        if checkpointing:
            enable_checkpointing(model, use_reentrant)
        values = inputs(64, 64, batch=2)
        values["pixel_values"].requires_grad_()
        model(**values, labels=random_labels(64, 64, 2)).loss.backward()
        return [p.grad for p in model.parameters()]

    # The reentrant kind adds up the gradients of a block's two branches in another order.
    tolerance = {"rtol": 1e-3, "atol": 1e-6} if use_reentrant else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(gradients(True), gradients(False), **tolerance)


CHILD = """
import sys
sys.modules["lpg_hf"] = sys.modules["training"] = None  # importing either fails, as where it is not installed
import numpy as np, torch
from transformers import AutoImageProcessor, AutoModel
torch.set_num_threads(1)
folder = sys.argv[1]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
data = np.load(folder + "/input.npz")
batch = processor(data["image"], boxes=data["boxes"], return_tensors="pt")
views = batch.pop("views")
with torch.no_grad():
    output = model(**batch)
result = processor.post_process_foreground(output, views, [data["image"].shape[:2]])[0]
np.savez(folder + "/output.npz", logits=output.logits.numpy(), foreground=result["foreground"].numpy())
print(type(model).__module__, type(processor).__module__)
"""


@pytest.mark.parametrize("backbone", ["hourglass", pytest.param("auto", marks=pytest.mark.slow)])
def test_a_checkpoint_runs_as_remote_code_where_lpg_hf_is_not_installed(backbone, tmp_path, monkeypatch):
    for cls, auto_class in ((LPGConfig, "AutoConfig"), (LPGModel, "AutoModel"), (LPGImageProcessor, None)):
        monkeypatch.setattr(cls, "_auto_class", None)  # restored after the test
        cls.register_for_auto_class(*([auto_class] if auto_class else []))
    folder, elsewhere = tmp_path / "stage", tmp_path / "elsewhere"
    elsewhere.mkdir()
    model = build(backbone, use_class_prob=False)
    processor = LPGImageProcessor(view="box", view_size=48)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    boxes = np.array([[10, 8, 30, 24], [-3, 5, 70, 39]])
    np.savez(folder / "input.npz", image=image, boxes=boxes)

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder)], cwd=elsewhere, env=environment, capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr
    assert all(module.startswith("transformers_modules.") for module in child.stdout.split()[-2:])

    batch = processor(image, boxes=boxes, return_tensors="pt")
    views = batch.pop("views")
    with torch.no_grad():
        output = model(**batch)
    foreground = processor.post_process_foreground(output, views, [(40, 60)])[0]["foreground"]
    there = np.load(folder / "output.npz")
    np.testing.assert_allclose(there["logits"], output.logits.numpy(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(there["foreground"], foreground.numpy(), rtol=0, atol=1e-6)


# Weights of another network


@pytest.mark.parametrize("backbone", SMALL_BACKBONES)
def test_widened_network_computes_what_the_narrow_one_did(backbone):
    narrow, wide = build(backbone, use_class_prob=False), build(backbone)
    wide.load_state_dict(_widen_inputs(narrow.state_dict(), wide.state_dict()))
    values = inputs(64, 64, batch=2)
    values["box_mask"] += torch.randn(values["box_mask"].shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = narrow(values["pixel_values"], values["box_mask"]).logits
        outputs = [wide(**{**values, "class_prob": factor * values["class_prob"]}).logits for factor in (0, 1, 100)]
    torch.testing.assert_close(outputs[0], expected, rtol=1e-4, atol=1e-5)  # sums of another length
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("backbone", SMALL_BACKBONES)
def test_widened_network_learns_to_use_the_class_prob(backbone):
    narrow, wide = build(backbone, use_class_prob=False), build(backbone)
    before = _widen_inputs(narrow.state_dict(), wide.state_dict())
    wide.load_state_dict(before)
    wide(**inputs(64, 64), labels=random_labels(64, 64)).loss.backward()
    widened = [name for name, value in narrow.state_dict().items() if value.shape != before[name].shape]
    contexts = {"squeezenet": 2, "auto": 1}
    assert len(widened) == (
        6 + contexts[backbone] if backbone in contexts else 1
    )  # the stem, five levels, the contexts
    for name in widened:
        new = wide.get_parameter(name)
        channel = before[name].abs().sum(dim=(0, 2, 3)).argmin()
        assert new[:, channel].eq(0).all() and new.grad[:, channel].ne(0).any()


def test_squeezenet_weights_trained_on_bgr_see_the_same_image_in_rgb(tmp_path):
    torch.manual_seed(3)
    bgr, encoder = _SqueezeNetEncoder(), _SqueezeNetEncoder()
    save_file({**bgr.state_dict(), "classifier.1.weight": torch.zeros(2)}, tmp_path / "squeezenet.safetensors")
    unused = load_encoder_imagenet(encoder, tmp_path / "squeezenet.safetensors", channel_order="bgr")
    assert unused == ["classifier.1.weight"]
    image = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        for ours, theirs, straight in zip(encoder(image), bgr(image.flip(1)), bgr(image)):
            torch.testing.assert_close(ours, theirs)
            assert not torch.allclose(ours, straight)
        load_encoder_imagenet(encoder, tmp_path / "squeezenet.safetensors")
        assert all(torch.equal(a, b) for a, b in zip(encoder(image), bgr(image)))


def test_squeezenet_refuses_the_file_of_another_network_and_stays_as_it_was(tmp_path):
    model = build("squeezenet")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    save_file({"features.0.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="shape of features.0.weight(.|\n)*missing features.0.bias"):
        load_encoder_imagenet(model.generator.encoder, tmp_path / "other.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
