import dataclasses

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForSemanticSegmentation
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

from lpg_hf import LPGImageProcessor
from training import models as models_module
from training.models import (
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
    assert isinstance(loaded_processor, LPGImageProcessor) and loaded_processor.view == settings.view
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
        with pytest.raises(OSError, match=f"segmenter .*{name}") as error:
            build_segmenter(dataclasses.replace(settings, segmenter=str(tmp_path / name), segmenter_config={}), ["a"])
        assert "\n" not in str(error.value)


def test_the_same_seed_builds_the_same_networks(settings):
    for build in (lambda s: build_lpg(s, True, None), lambda s: build_segmenter(s, ["a"])[0]):
        one, two, other = build(settings), build(settings), build(dataclasses.replace(settings, seed=1))
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))
        assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))


def test_weights_for_a_backbone_without_any_are_refused(settings):
    with pytest.raises(ValueError, match="hourglass"):
        build_lpg(dataclasses.replace(settings, lpg_weights="w.safetensors"), True, None)
