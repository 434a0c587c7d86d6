import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_run import changed
from transformers import (
    AutoModel,
    AutoModelForSemanticSegmentation,
    DPTConfig,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    MobileNetV2ForSemanticSegmentation,
    ResNetConfig,
    ResNetForImageClassification,
    SegformerConfig,
    SegformerForImageClassification,
)
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

from lpg_hf import DeepLabV2ForSemanticSegmentation, LPGImageProcessor
from lpg_hf.models.modeling_lpg import _VGG16Encoder
from lpg_hf.training import models as models_module
from lpg_hf.training.models import (
    Normalization,
    build_lpg,
    build_segmenter,
    load_lpg,
    load_segmenter,
    lpg_processor,
    save_stage,
)


def test_normalization_is_that_of_the_image_processor():
    processor = SegformerImageProcessorPil(do_resize=False)
    image = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(torch.from_numpy(Normalization.of(processor)(image)), expected)


def test_the_fill_colour_becomes_about_zero():
    normalization = Normalization.of(SegformerImageProcessorPil())
    filled = normalization(np.full((1, 1, 3), normalization.fill, dtype=np.uint8))
    assert np.abs(filled).max() < 0.01


def test_a_stage_folder_is_complete_and_loads_equal(settings, tmp_path):
    model, processor = build_lpg(settings, False, None), lpg_processor(settings)
    save_stage(tmp_path / "lpg", model, processor, {"kind": "lpg", "stage": 1, "loss": 0.5})
    names = {path.name for path in (tmp_path / "lpg").iterdir()}
    assert names == {"config.json", "model.safetensors", "preprocessor_config.json", "metrics.json", "README.md"}
    loaded, loaded_processor = load_lpg(tmp_path / "lpg")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    assert isinstance(loaded_processor, LPGImageProcessor) and loaded_processor.view == settings.lpg.view
    x, box_mask = torch.rand(1, 3, 24, 40), torch.ones(1, 1, 24, 40)
    auto = AutoModel.from_pretrained(tmp_path / "lpg")
    assert torch.equal(auto(x, box_mask).logits, loaded(x, box_mask).logits)


def test_a_segmenter_stage_loads_through_the_auto_classes(settings, tmp_path):
    model, processor = build_segmenter(settings, ["a", "b"])
    save_stage(tmp_path / "segmenter", model.eval(), processor, {"kind": "segmenter", "stage": 0})
    loaded, _ = load_segmenter(tmp_path / "segmenter")
    auto = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "segmenter")
    x = torch.rand(1, 3, 24, 40)
    assert torch.equal(loaded(x).logits, model(x).logits) and torch.equal(auto(x).logits, model(x).logits)
    assert loaded.config.id2label == {0: "background", 1: "a", 2: "b"}


def test_a_stage_that_fails_half_way_leaves_no_folder(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(models_module, "write_card", lambda folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_stage(tmp_path / "lpg", build_lpg(settings, False, None), lpg_processor(settings), {})
    assert not (tmp_path / "lpg").exists()


def test_a_segmenter_is_no_lpg_stage(settings, tmp_path):
    model, processor = build_segmenter(settings, ["a"])
    save_stage(tmp_path / "segmenter", model, processor, {"kind": "segmenter", "stage": 0})
    with pytest.raises(ValueError, match="deeplab"):
        load_lpg(tmp_path / "segmenter")


def test_a_config_that_cannot_be_read_is_one_line_that_names_it(settings, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    for name in ("empty", "broken"):
        with pytest.raises(OSError, match=f"segmenter.model .*{name}") as error:
            build_segmenter(
                changed(settings, {"segmenter.model": str(tmp_path / name), "segmenter.config": {}}), ["a"]
            )
        assert "\n" not in str(error.value)


def test_norms_outside_the_head_may_keep_the_statistics_of_their_weights(settings, tmp_path):
    config = MobileNetV2Config(depth_multiplier=0.35, num_labels=3)
    MobileNetV2ForSemanticSegmentation(config).save_pretrained(tmp_path)
    changes = {"segmenter.model": str(tmp_path), "segmenter.config": {}, "segmenter.crop_size": 32}
    model, _ = build_segmenter(changed(settings, changes | {"segmenter.batch_norm_momentum": 0}), ["a", "b"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    norms = {name: m.training for name, m in model.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert {name.split(".")[0]: is_training for name, is_training in norms.items()} == {
        "mobilenet_v2": False,
        "segmentation_head": True,
    }
    images = torch.randn(4, 3, 64, 64)
    together, alone = (model.mobilenet_v2(part).last_hidden_state for part in (images, images[:1]))
    torch.testing.assert_close(together[:1], alone, rtol=1e-3, atol=1e-4)
    model(images).logits.square().mean().backward()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all(name.startswith("segmentation_head") for name in moved)
    assert model.mobilenet_v2.conv_stem.first_conv.normalization.weight.grad.abs().sum() > 0
    assert changed(settings, {"segmenter.batch_norm_momentum": 0.5}).segmenter.batch_norm_momentum == 0.5
    with pytest.raises(ValueError, match="batch_norm_momentum=1.5 is a share"):
        changed(settings, {"segmenter.batch_norm_momentum": 1.5})


def test_the_config_of_a_half_precision_checkpoint_is_trained_in_float32(settings, segmenter_folder, tmp_path):
    config = json.loads((segmenter_folder / "config.json").read_text()) | {"dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, _ = build_segmenter(changed(settings, {"segmenter.model": str(tmp_path), "segmenter.config": {}}), ["a"])
    assert {value.dtype for value in model.parameters()} == {torch.float32}


def test_norms_without_statistics_are_not_frozen(settings, tmp_path):
    MobileNetV2Config(depth_multiplier=0.35).save_pretrained(tmp_path)
    frozen = {"segmenter.batch_norm_momentum": 0}
    from_config = {"segmenter.model": str(tmp_path), "segmenter.config": {}, "segmenter.crop_size": 32}
    for changes in (frozen, frozen | from_config):
        with pytest.raises(ValueError, match="batch_norm_momentum=0 keeps the statistics .* has none. Set it to null"):
            build_segmenter(changed(settings, changes), ["a"])


def test_the_same_seed_builds_the_same_networks(settings):
    for build in (lambda s: build_lpg(s, True, None), lambda s: build_segmenter(s, ["a"])[0]):
        one, two, other = build(settings), build(settings), build(changed(settings, {"run.seed": 1}))
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))
        assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))


@pytest.mark.parametrize("stride, size, next_size", [(8, 128, 129), (16, 137, 145), (4, 130, 133)])
def test_crops_in_which_aligned_logits_lie_elsewhere_than_in_use_are_refused(settings, stride, size, next_size):
    fields = settings.segmenter.config | {"output_stride": stride}
    settings = changed(settings, {"segmenter.config": fields, "segmenter.crop_size": size})
    with pytest.raises(
        ValueError, match=f"segmenter.crop_size={size}, .* Set it to {next_size}, .*align_corners to false"
    ):
        build_segmenter(settings, ["a"])
    build_segmenter(changed(settings, {"segmenter.crop_size": next_size}), ["a"])
    build_segmenter(changed(settings, {"segmenter.config": fields | {"align_corners": False}}), ["a"])


@pytest.mark.parametrize("stride, size, next_size", [(16, 129, 144), (32, 144, 160), (8, 100, 104)])
def test_crops_in_which_a_network_with_tf_padding_sees_other_pixels_than_in_use_are_refused(
    settings, tmp_path, stride, size, next_size
):
    MobileNetV2Config(depth_multiplier=0.35).save_pretrained(tmp_path)
    fields = {"output_stride": stride}
    changes = {"segmenter.model": str(tmp_path), "segmenter.config": fields, "segmenter.crop_size": size}
    settings = changed(settings, changes)
    with pytest.raises(
        ValueError, match=f"={size}, .* {stride}n pixels. Set it to {next_size}, .*tf_padding to false"
    ):
        build_segmenter(settings, ["a"])
    build_segmenter(changed(settings, {"segmenter.crop_size": next_size}), ["a"])
    build_segmenter(changed(settings, {"segmenter.config": fields | {"tf_padding": False}}), ["a"])


def test_a_segmenter_of_square_images_is_refused_before_anything_is_trained(settings, tmp_path):
    layers = {"hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 8}
    head = {"backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8] * 4, "fusion_hidden_size": 8}
    DPTConfig(**layers, **head, image_size=32, is_hybrid=False).save_pretrained(tmp_path)
    changes = {"segmenter.model": str(tmp_path), "segmenter.config": {}, "segmenter.crop_size": 32}
    with pytest.raises(ValueError, match="does not take an image of 128 x 192 pixels .* such as a SegFormer"):
        build_segmenter(changed(settings, changes), ["a"])


def test_a_segmenter_whose_head_is_not_known_is_refused_before_anything_is_trained(settings, monkeypatch):
    monkeypatch.setattr(DeepLabV2ForSemanticSegmentation, "named_children", lambda self: iter(()))
    with pytest.raises(ValueError, match="neither a classifier nor a base model nor a backbone"):
        build_segmenter(settings, ["a"])


def test_imagenet_weights_for_a_segmenter_of_transformers_are_refused(settings, segmenter_folder):
    fields = {
        "segmenter.model": str(segmenter_folder),
        "segmenter.config": {},
        "segmenter.weights": "vgg16.safetensors",
    }
    with pytest.raises(ValueError, match="segmenter.weights=vgg16.safetensors is set, but .* Set it to null"):
        build_segmenter(changed(settings, fields), ["a"])


def test_fields_that_lose_pretrained_weights_outside_the_head_are_refused(settings, segmenter_folder, tmp_path):
    fields = {"segmenter.model": str(segmenter_folder), "segmenter.config": {"hidden_sizes": [16] * 4}}
    with pytest.raises(ValueError, match=r"lack \d+ of the \d+ .* segformer\..*config.json as segmenter.model"):
        build_segmenter(changed(settings, fields), ["a"])
    of_the_head = changed(settings, fields | {"segmenter.config": {"decoder_hidden_size": 16}})
    model, _ = build_segmenter(of_the_head, ["a"])
    pretrained = load_segmenter(segmenter_folder)[0].segformer.state_dict()
    assert all(torch.equal(value, pretrained[name]) for name, value in model.segformer.state_dict().items())
    for name in ("model.safetensors", "config.json"):
        shutil.copy(segmenter_folder / name, tmp_path)
    weights = load_file(segmenter_folder / "model.safetensors")
    del weights[next(name for name in weights if name.startswith("segformer."))]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=rf"lack 1 of the {len(pretrained)} tensors .*: segformer\.[a-z0-9._]+ Take"):
        build_segmenter(changed(settings, {"segmenter.model": str(tmp_path), "segmenter.config": {}}), ["a"])


@pytest.mark.parametrize("kind", [SegformerForImageClassification, MobileNetV2ForImageClassification])
def test_a_classifier_gives_a_segmenter_its_body(settings, tmp_path, kind):
    """Also one as older versions saved it, without counts of batches."""
    small = {"hidden_sizes": [8] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 8}
    is_segformer = kind is SegformerForImageClassification
    classifier = kind(SegformerConfig(**small) if is_segformer else MobileNetV2Config(depth_multiplier=0.35))
    classifier.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    counts = [name for name in weights if name.endswith("num_batches_tracked")]
    save_file({k: v for k, v in weights.items() if k not in counts}, tmp_path / "model.safetensors", {"format": "pt"})
    changes = {"segmenter.model": str(tmp_path), "segmenter.config": {}, "segmenter.crop_size": 32}
    model, _ = build_segmenter(changed(settings, changes), ["a"])
    body = classifier.base_model.state_dict()
    assert all(torch.equal(value, body[name]) for name, value in model.base_model.state_dict().items())


def test_weights_for_a_backbone_without_any_are_refused(settings):
    with pytest.raises(ValueError, match="hourglass"):
        build_lpg(changed(settings, {"lpg.weights": "w.safetensors"}), True, None)


DECODER = {"decoder_size": 8, "context_size": 8, "stem_size": 4, "head_size": 6}


@pytest.fixture
def resnet_folder(tmp_path):
    """An image classifier of transformers."""
    stages = {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    ResNetForImageClassification(ResNetConfig(embedding_size=8, **stages)).save_pretrained(tmp_path / "resnet")
    return tmp_path / "resnet"


def auto_settings(settings, folder, **fields):
    weights = None if folder is None else str(folder)
    return changed(settings, {"lpg.weights": weights, "lpg.config": DECODER | {"backbone": "auto"} | fields})


def test_an_auto_backbone_has_config_and_weights_of_its_folder(settings, resnet_folder, tmp_path):
    settings = auto_settings(settings, resnet_folder)
    model = build_lpg(settings, False, None)
    classifier = ResNetForImageClassification.from_pretrained(resnet_folder).state_dict()
    ours = model.generator.encoder.backbone.state_dict()
    assert all(torch.equal(value, classifier[f"resnet.{name}"]) for name, value in ours.items())

    save_stage(tmp_path / "lpg", model, lpg_processor(settings), {"kind": "lpg", "stage": 1})
    (resnet_folder / "model.safetensors").unlink()
    wider = build_lpg(settings, True, tmp_path / "lpg")  # the next stage continues from it
    model, x, box_mask = model.eval(), torch.rand(2, 3, 64, 64), torch.ones(2, 1, 64, 64)
    with torch.no_grad():
        expected = model(x, box_mask).logits
        torch.testing.assert_close(wider.eval()(x, box_mask, torch.rand(2, 1, 64, 64)).logits, expected)


def test_an_auto_backbone_without_weights_starts_from_its_config(settings, tmp_path):
    backbone_config = {"model_type": "convnext", "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}
    model = build_lpg(auto_settings(settings, None, backbone_config=backbone_config), True, None)
    assert model.generator.encoder.hidden_sizes == (8, 8, 8, 8)
    save_stage(tmp_path / "lpg", model, lpg_processor(settings), {})
    init = changed(auto_settings(settings, None, backbone_config=backbone_config), {"lpg.init": str(tmp_path / "lpg")})
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in build_lpg(init, True, None).state_dict().items())
    with pytest.raises(ValueError, match="backbone_config has fields that ConvNextConfig lacks: hidden_size"):
        build_lpg(auto_settings(settings, None, backbone_config=backbone_config | {"hidden_size": 8}), True, None)
    with pytest.raises(OSError, match="lpg.weights .*nowhere cannot be loaded"):
        build_lpg(auto_settings(settings, "./nowhere"), True, None)


def test_vgg16_starts_from_imagenet_with_its_early_stages_frozen(settings, tmp_path):
    weights = {name: torch.randn_like(value) for name, value in _VGG16Encoder().state_dict().items()}
    save_file(weights, tmp_path / "vgg16.safetensors")
    settings = changed(
        settings,
        {
            "lpg.weights": str(tmp_path / "vgg16.safetensors"),
            "lpg.config": DECODER | {"backbone": "vgg16", "num_frozen_stages": 2},
        },
    )
    encoder = build_lpg(settings, False, None).generator.encoder
    assert all(torch.equal(value, weights[name]) for name, value in encoder.state_dict().items())
    trained = [name for name, parameter in encoder.named_parameters() if parameter.requires_grad]
    assert trained[0] == "features.10.weight" and len(trained) == 18


@pytest.mark.parametrize("use_class_prob", [False, True])
def test_class_probability_is_optional_after_training_with_dropout(settings, use_class_prob):
    for dropout in (0.0, 0.5):
        config = build_lpg(changed(settings, {"lpg.class_prob_dropout": dropout}), use_class_prob, None).config
        assert config.class_prob_optional == (use_class_prob and dropout > 0)
        assert config.requires_class_prob == (use_class_prob and dropout == 0)


def test_stage_1_may_start_from_a_generator_that_is_there(settings, tmp_path):
    config = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "neck_size": 8, "head_size": 8}
    settings = changed(settings, {"lpg.config": config, "run.seed": 3})
    source = build_lpg(settings, False, None)
    save_stage(tmp_path / "lpg", source, lpg_processor(settings), {})
    weighted = config | {"object_loss_weight": 1.5, "outside_box_loss_weight": 0.5}
    started = changed(settings, {"lpg.init": str(tmp_path / "lpg"), "lpg.config": weighted, "run.seed": 4})
    model = build_lpg(started, False, None)
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in model.state_dict().items())
    inputs = torch.randn(1, 3, 32, 32), torch.ones(1, 1, 32, 32)
    wider = build_lpg(started, True, None).eval()
    torch.testing.assert_close(wider(*inputs, torch.rand(1, 1, 32, 32)).logits, source.eval()(*inputs).logits)


def test_a_generator_that_does_not_fit_is_refused_with_the_reason(settings, tmp_path):
    save_stage(tmp_path / "lpg", build_lpg(settings, False, None), lpg_processor(settings), {})
    init = {"lpg.init": str(tmp_path / "lpg")}
    with pytest.raises(ValueError, match="lpg.processor.image_mean=.*take its values"):
        build_lpg(changed(settings, {"lpg.processor.image_mean": [0.1, 0.2, 0.3]} | init), False, None)
    with pytest.raises(ValueError, match="backbone: .* there, squeezenet here"):
        build_lpg(changed(settings, {"lpg.config": {"backbone": "squeezenet"}} | init), False, None)
    with pytest.raises(ValueError, match="lpg.init=.* and weights=.* are both set"):
        changed(settings, {"lpg.weights": "w.safetensors"} | init)


def test_a_stage_with_damaged_weights_is_named(settings, tmp_path, lpg_folder, segmenter_folder):
    for good, load in ((lpg_folder, load_lpg), (segmenter_folder, load_segmenter)):
        damaged = tmp_path / good.name
        shutil.copytree(good, damaged)
        weights = damaged / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:9000])
        with pytest.raises(ValueError, match=f"^the weights in {damaged} cannot be read"):
            load(damaged)
    with pytest.raises(ValueError, match="^the weights in .* cannot be read"):
        build_lpg(settings, False, tmp_path / lpg_folder.name)
    with pytest.raises(ValueError, match="^the weights in .* cannot be read"):
        name = str(tmp_path / segmenter_folder.name)
        build_segmenter(changed(settings, {"segmenter.model": name, "segmenter.config": {}}), ["a"])


def test_a_segmenter_of_the_hub_does_not_choose_a_second_repository(settings, monkeypatch):
    config = {"model_type": "upernet", "backbone": "some-org/name"}
    monkeypatch.setattr("transformers.PreTrainedConfig.get_config_dict", lambda *args, **options: (dict(config), {}))
    monkeypatch.setattr("transformers.backbone_utils.hf_api", lambda: pytest.fail("the Hub was asked"))
    settings = changed(settings, {"segmenter.model": "org/segmenter", "segmenter.config": {}})
    with pytest.raises(
        OSError, match="segmenter.model org/segmenter cannot .* names a backbone .'some-org/name'"
    ) as error:
        build_segmenter(settings, ["a"])
    assert "\n" not in str(error.value)


def test_imagenet_weights_that_hold_code_are_refused_in_one_line(settings, tmp_path):
    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    torch.save({"x": Bomb()}, tmp_path / "resnet.pth")
    settings = changed(settings, {"lpg.weights": str(tmp_path / "resnet.pth"), "lpg.config": {"backbone": "resnet18"}})
    with pytest.raises(ValueError, match="^the weights in .*resnet.pth cannot be read .*nothing in them was") as error:
        build_lpg(settings, False, None)
    assert "\n" not in str(error.value) and not (tmp_path / "ran").exists()
