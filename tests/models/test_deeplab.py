import re

import pytest
import torch
import torch.nn.functional as F
from checkpointing import enable_checkpointing
from torch import nn
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, ResNetConfig, ResNetModel
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

from lpg_hf.models.auto import register
from lpg_hf.models.configuration_deeplab_largefov import DeepLabLargeFOVConfig
from lpg_hf.models.configuration_deeplab_v2 import DeepLabV2Config
from lpg_hf.models.losses import pixel_cross_entropy
from lpg_hf.models.modeling_deeplab_largefov import DeepLabLargeFOVForSemanticSegmentation
from lpg_hf.models.modeling_deeplab_v2 import DeepLabV2ForSemanticSegmentation
from lpg_hf.models.resnet import ResNetTrunk


def tiny_largefov(**kwargs):
    settings = dict(num_labels=5, depths=(1, 2, 1, 1, 1), hidden_sizes=(4, 6, 8, 8, 8), fc_size=12, fc_dilation=3)
    torch.manual_seed(0)
    return DeepLabLargeFOVForSemanticSegmentation(DeepLabLargeFOVConfig(**{**settings, **kwargs}))


def tiny_v2(**kwargs):
    settings = dict(num_labels=5, depths=(1, 1, 2, 1), stem_size=4, hidden_sizes=(8, 8, 16, 16), atrous_rates=(1, 2))
    torch.manual_seed(0)
    return DeepLabV2ForSemanticSegmentation(DeepLabV2Config(**{**settings, **kwargs}))


def tiny_v2_msc(**kwargs):
    return tiny_v2(scales=(0.5, 0.75), **kwargs)


every_model = pytest.mark.parametrize("build", [tiny_largefov, tiny_v2, tiny_v2_msc])


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def pixels(height, width, batch=1):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


# Published architectures (built on the meta device: no memory, no time)


@pytest.mark.parametrize("num_labels, expected", [(21, 20_505_429), (61, 20_546_429)])
def test_largefov_has_the_published_number_of_parameters(num_labels, expected):
    with torch.device("meta"):
        assert count(DeepLabLargeFOVForSemanticSegmentation(DeepLabLargeFOVConfig(num_labels=num_labels))) == expected


def test_v2_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = DeepLabV2ForSemanticSegmentation(DeepLabV2Config(num_labels=21))
    assert count(model.backbone) == 42_500_160
    assert count(model.classifier) == 1_548_372
    assert count(model) == 44_048_532


@pytest.mark.parametrize(
    "in_channels, expected", [(3, 11_176_512), (5, 11_182_784)]
)  # 11.177M and, before its 1x1 head, 11.184M
def test_resnet18_trunk_has_the_published_number_of_parameters(in_channels, expected):
    with torch.device("meta"):
        trunk = ResNetTrunk(in_channels, "basic", (2, 2, 2, 2), 64, (64, 128, 256, 512))
    assert count(trunk) == expected


def test_largefov_fc8_would_be_features_38_of_the_official_code():
    with torch.device("meta"):
        model = DeepLabLargeFOVForSemanticSegmentation(DeepLabLargeFOVConfig(num_labels=21))
    layers = {int(number): layer for stage in model.features for number, layer in stage.named_children()}
    assert sorted(layers) == list(range(38))
    assert layers[28].dilation == (2, 2) and layers[32].dilation == (12, 12)  # conv5_3, fc6


@pytest.mark.parametrize("size, expected", [(321, 41), (512, 64), (513, 65)])
def test_output_sizes_are_the_published_ones(size, expected):
    pixel_values = torch.empty(1, 3, size, size, device="meta")
    for build in (tiny_largefov, tiny_v2):
        assert build().to("meta").train()(pixel_values).logits.shape == (1, 5, expected, expected)


@pytest.mark.parametrize("stem_pool", [True, False])
@pytest.mark.parametrize("output_stride", [4, 8, 16, 32])
def test_output_stride_is_reached_by_dilation(output_stride, stem_pool):
    if output_stride == 32 and not stem_pool:
        with pytest.raises(ValueError, match="output_stride=32"):
            tiny_v2(output_stride=output_stride, stem_pool=stem_pool)
        return
    model = tiny_v2(output_stride=output_stride, stem_pool=stem_pool).train()
    assert model(pixels(64, 96)).logits.shape[-2:] == (64 // output_stride, 96 // output_stride)


def test_net_of_the_official_code_has_dilations_2_and_4():
    trunk = tiny_v2(output_stride=4, stem_pool=False).backbone  # 321 -> 81
    dilations = [[block.conv2.dilation[0] for block in layer] for layer in (trunk.layer2, trunk.layer3, trunk.layer4)]
    assert dilations == [[1], [2, 2], [4]]
    assert trunk(pixels(321, 321)).shape[-2:] == (81, 81)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_trunk_equals_the_resnet_of_transformers(block):
    sizes = {"depths": [2, 1, 2, 1], "hidden_sizes": [8, 16, 24, 32]}
    torch.manual_seed(0)
    peer = ResNetModel(ResNetConfig(embedding_size=6, layer_type=block, **sizes)).eval()
    for buffer in peer.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    trunk = ResNetTrunk(3, block, sizes["depths"], 6, sizes["hidden_sizes"], output_stride=32).eval()
    renamed = {}
    for name, value in peer.state_dict().items():
        name = name.replace("embedder.embedder.convolution", "conv1").replace("embedder.embedder.normalization", "bn1")
        name = re.sub(r"encoder\.stages\.(\d)\.layers", lambda match: f"layer{int(match[1]) + 1}", name)
        name = name.replace("shortcut.convolution", "downsample.0").replace("shortcut.normalization", "downsample.1")
        name = re.sub(r"layer\.(\d)\.convolution", lambda match: f"conv{int(match[1]) + 1}", name)
        name = re.sub(r"layer\.(\d)\.normalization", lambda match: f"bn{int(match[1]) + 1}", name)
        renamed[name] = value
    trunk.load_state_dict(renamed)
    with torch.no_grad():
        torch.testing.assert_close(trunk(pixels(75, 61)), peer(pixels(75, 61)).last_hidden_state)


@pytest.mark.parametrize(
    "build, field, value",
    [
        (tiny_largefov, "num_channels", 4),
        (tiny_largefov, "depths", (1, 1, 1, 1, 1)),
        (tiny_largefov, "hidden_sizes", (4, 6, 8, 8, 10)),
        (tiny_largefov, "fc_size", 14),
        (tiny_largefov, "fc_dilation", 2),
        (tiny_v2, "num_channels", 4),
        (tiny_v2, "block", "basic"),
        (tiny_v2, "depths", (1, 1, 1, 1)),
        (tiny_v2, "stem_size", 6),
        (tiny_v2, "hidden_sizes", (8, 8, 16, 20)),
        (tiny_v2, "atrous_rates", (1, 3)),
    ],
)
def test_every_architecture_setting_changes_the_model(build, field, value):
    one, other = build().eval(), build(**{field: value}).eval()
    shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in (one, other)]
    assert shapes[0] != shapes[1] or not torch.allclose(one(pixels(64, 64)).logits, other(pixels(64, 64)).logits)


# Any size, any batch


@every_model
@pytest.mark.parametrize("height, width", [(333, 217), (275, 800), (320, 321), (9, 7)])
def test_any_image_size_works_and_gives_logits_on_all_pixels(build, height, width):
    with torch.no_grad():
        logits = build().eval()(pixels(height, width)).logits
        coarse = build(align_corners=False).eval()(pixels(height, width)).logits
    assert logits.shape == (1, 5, height, width) and logits.isfinite().all()
    assert coarse.shape == (1, 5, -(-height // 8), -(-width // 8))


@every_model
def test_batched_equals_one_by_one(build):
    model = build().eval()
    pixel_values = pixels(45, 61, batch=3)
    with torch.no_grad():
        together = model(pixel_values).logits
        one_by_one = torch.cat([model(image[None]).logits for image in pixel_values])
    torch.testing.assert_close(together, one_by_one)


@every_model
@torch.no_grad()
def test_logits_on_all_pixels_are_those_of_the_network_between_its_own(build):
    """In crops as in training (8n + 1) nothing is padded: every eighth pixel has the network's own logits."""
    model, coarse = build().eval(), build(align_corners=False).eval()
    on_pixels, own = model(pixels(33, 41)).logits, coarse(pixels(33, 41)).logits
    torch.testing.assert_close(on_pixels[:, :, ::8, ::8], own)
    torch.testing.assert_close(on_pixels[:, :, 4::8, ::8], (own[:, :, 1:] + own[:, :, :-1]) / 2)
    labels = torch.randint(0, 5, (1, 33, 41))
    assert torch.equal(model(pixels(33, 41), labels=labels).loss, coarse(pixels(33, 41), labels=labels).loss)
    padded = F.pad(pixels(30, 39), (0, 2, 0, 3))  # 33 x 41
    torch.testing.assert_close(model(pixels(30, 39)).logits, model(padded).logits[:, :, :30, :39])


# Loss, multi-scale inputs


@every_model
def test_all_ignored_batch_trains_nothing_and_breaks_nothing(build):
    model = build(batch_norm="train") if build is not tiny_largefov else build()
    loss = model.train()(pixels(33, 40, batch=2), labels=torch.full((2, 33, 40), 255)).loss
    loss.backward()
    assert loss.item() == 0
    assert all(parameter.grad.eq(0).all() for parameter in model.parameters())


@every_model
def test_gradient_of_a_batch_equals_accumulation_of_single_images(build):
    model = build(dropout_prob=0.0) if build is tiny_largefov else build()  # v2's batch norm is frozen
    model.train()
    pixel_values, labels = pixels(33, 40, batch=2), torch.randint(0, 5, (2, 33, 40))
    labels[0, 3:] = 255  # 91 % void
    model(pixel_values, labels=labels).loss.backward()
    together = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    for i in range(2):
        (model(pixel_values[i : i + 1], labels=labels[i : i + 1]).loss / 2).backward()
    one_by_one = [p.grad for p in model.parameters() if p.requires_grad]
    torch.testing.assert_close(together, one_by_one, rtol=1e-4, atol=1e-6)


def test_multi_scale_logits_are_the_pixelwise_maximum():
    model, single = tiny_v2_msc(align_corners=False).eval(), tiny_v2(align_corners=False).eval()
    pixel_values = pixels(64, 80)
    with torch.no_grad():
        maps = [single(pixel_values).logits]
        for scale in (0.5, 0.75):
            scaled = F.interpolate(pixel_values, scale_factor=scale, mode="bilinear")
            maps.append(F.interpolate(single(scaled).logits, size=maps[0].shape[-2:], mode="bilinear"))
        output = model(pixel_values)
    torch.testing.assert_close(output.logits, torch.stack(maps).amax(0))
    assert output.scale_logits is None


def test_multi_scale_loss_sums_the_terms_of_the_maps():
    model = tiny_v2_msc().train()
    labels = torch.randint(0, 5, (2, 64, 80))
    output = model(pixels(64, 80, batch=2), labels=labels)
    assert [tuple(logits.shape[-2:]) for logits in output.scale_logits] == [(8, 10), (4, 5), (6, 8), (8, 10)]
    assert output.scale_logits[-1] is output.logits
    torch.testing.assert_close(output.loss, sum(pixel_cross_entropy(logits, labels) for logits in output.scale_logits))


@pytest.mark.parametrize("scales", [None, ()])
def test_without_scales_there_is_one_loss_term(scales):
    labels = torch.randint(0, 5, (1, 33, 40))
    output = tiny_v2(scales=scales).train()(pixels(33, 40), labels=labels)
    assert output.scale_logits is None
    torch.testing.assert_close(output.loss, pixel_cross_entropy(output.logits, labels))


@every_model
def test_ignore_index_comes_from_the_config(build):
    labels = torch.full((1, 33, 40), 3)
    assert build().eval()(pixels(33, 40), labels=labels).loss > 0
    assert build(semantic_loss_ignore_index=3).eval()(pixels(33, 40), labels=labels).loss == 0


@every_model
def test_tuple_output_and_hidden_states_on_request(build):
    model = build().eval()
    output = model(pixels(33, 40), output_hidden_states=True)
    as_tuple = model(pixels(33, 40), return_dict=False)
    assert len(as_tuple) == 1 and torch.equal(as_tuple[0], output.logits)
    assert len(output.hidden_states) == (7 if build is tiny_largefov else 5)
    assert model(pixels(33, 40)).hidden_states is None


def test_dropout_kind_is_read():
    def dropped(kind):
        model = tiny_largefov(dropout=kind, dropout_prob=0.5, fc_size=64).train()
        last = model.features(pixels(65, 65))[0]  # (64, 9, 9)
        return last.flatten(1).eq(0).float().mean(dim=1)  # share of zeros per channel

    assert dropped("channel").eq(1).sum() > 20  # about half of the channels are dropped as a whole
    assert dropped("element").eq(1).sum() < 20
    assert {m.p for m in tiny_largefov(dropout_prob=0.25).modules() if isinstance(m, nn.Dropout2d)} == {0.25}


# Batch normalisation


def norms(model):
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def test_frozen_batch_norm_survives_train_and_a_training_step():
    model = tiny_v2(batch_norm="frozen").train()
    before = {
        name: value.clone() for name, value in model.state_dict().items() if "bn" in name or "downsample.1" in name
    }
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    model(pixels(33, 40), labels=torch.zeros(1, 33, 40, dtype=torch.long)).loss.backward()
    optimizer.step()
    assert model.training and model.backbone.layer1.training
    assert not any(module.training for module in norms(model))
    assert not any(p.requires_grad for module in norms(model) for p in module.parameters())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def test_trained_batch_norm_trains():
    model = tiny_v2(batch_norm="train").train()
    model(pixels(33, 40, batch=2), labels=torch.zeros(2, 33, 40, dtype=torch.long)).loss.backward()
    assert all(module.training and module.num_batches_tracked == 1 for module in norms(model))
    assert all(p.grad is not None for p in model.parameters())


def test_frozen_batch_norm_is_frozen_after_from_pretrained(tmp_path):
    tiny_v2().save_pretrained(tmp_path)
    model = DeepLabV2ForSemanticSegmentation.from_pretrained(tmp_path)
    assert not any(p.requires_grad for module in norms(model) for p in module.parameters())
    assert all(p.requires_grad for p in model.classifier.parameters())


# Initialisation, saving, checkpointing


def test_last_layer_starts_at_std_001_and_bias_0():
    largefov = tiny_largefov(num_labels=64, fc_size=512)
    v2 = tiny_v2(num_labels=64, hidden_sizes=(8, 8, 16, 64))
    for convs in ([largefov.classifier], v2.classifier.convs):
        for conv in convs:
            assert conv.weight.std().item() == pytest.approx(0.01, rel=0.05)
            assert conv.bias.eq(0).all()
    assert tiny_largefov(num_labels=64, fc_size=512, initializer_range=0.1).classifier.weight.std() > 0.09


def test_fc6_and_fc7_take_large_features_down():
    """As PyTorch's default does: conv5 of VGG16 has values of about 25, and the rates of Table I need smaller ones."""
    model = tiny_largefov(hidden_sizes=(4, 6, 8, 8, 256), fc_size=256).eval()
    with torch.no_grad():
        large = torch.rand(1, 256, 32, 32) * 25
        values = [large, model.features.fc6(large)]
        values.append(model.features.fc7(values[-1]))
    first, second, third = (value.pow(2).mean().sqrt() for value in values)
    assert 0.2 < second / first < 0.7 and 0.2 < third / second < 0.7
    for stage, fan_in in ((model.features.fc6, 256 * 9), (model.features.fc7, 256)):
        assert stage[0].weight.std().item() == pytest.approx((3 * fan_in) ** -0.5, rel=0.05)
        assert stage[0].bias.abs().max() <= fan_in**-0.5 and stage[0].bias.std() > 0


@every_model
def test_save_and_load_is_bit_exact(build, tmp_path):
    model = build().eval()
    for buffer in model.buffers():  # non-trivial statistics
        if buffer.is_floating_point():
            buffer.add_(0.3)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert list(loaded.config.hidden_sizes) == list(model.config.hidden_sizes)
    assert torch.equal(loaded(pixels(45, 61)).logits, model(pixels(45, 61)).logits)


@every_model
def test_bfloat16_loads_and_runs(build, tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    model = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)
    output = model(pixels(33, 40).bfloat16(), labels=torch.zeros(1, 33, 40, dtype=torch.long))
    assert output.logits.dtype == output.loss.dtype == torch.float32
    assert model.train()(pixels(33, 40).bfloat16()).logits.dtype == torch.bfloat16


@every_model
def test_auto_classes_find_model_and_image_processor(build, tmp_path):
    register()
    register()  # twice is fine
    model = build().eval()
    model.save_pretrained(tmp_path)
    SegformerImageProcessorPil(do_resize=False).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(processor) is SegformerImageProcessorPil and not processor.do_resize
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert torch.equal(loaded(pixels(33, 40)).logits, model(pixels(33, 40)).logits)


@every_model
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_gives_the_same_gradients(build, use_reentrant):
    labels = torch.randint(0, 5, (2, 33, 40), generator=torch.Generator().manual_seed(2))

    def gradients(checkpointing):
        model = build().train()
        if checkpointing:
            enable_checkpointing(model, use_reentrant)
        torch.manual_seed(3)  # dropout
        model(pixels(33, 40, batch=2), labels=labels).loss.backward()
        return [p.grad for p in model.parameters() if p.requires_grad]

    torch.testing.assert_close(gradients(True), gradients(False), rtol=0, atol=0)


@pytest.mark.parametrize("build", [tiny_largefov, tiny_v2])
def test_wrong_number_of_stages_is_refused(build):
    with pytest.raises(ValueError, match="entries each"):
        build(depths=(1, 1))
