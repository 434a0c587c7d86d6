import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image, ImageDraw
from transformers import pipeline

from lpg_hf import LPGModel, bundled, cli, load_generator, register_auto_classes
from lpg_hf.generators.bundle import BUNDLED, DEFAULT, named_stage
from lpg_hf.generators.lpg import _inference_copy
from lpg_hf.label_maps import read_label_map
from lpg_hf.training._own_data import OwnJob


def ellipse_on_stripes() -> tuple[Image.Image, np.ndarray, list[int]]:
    """An image that no photograph resembles, the mask of its object, and the object's box."""
    rows, columns = np.mgrid[:200, :260]
    stripes = np.stack([120 + 40 * np.sin(columns / 3), 130 + 40 * np.sin(rows / 5), np.full(rows.shape, 90)], axis=2)
    image = Image.fromarray(stripes.astype(np.uint8))
    ImageDraw.Draw(image).ellipse([60, 40, 199, 139], fill=(210, 60, 40))
    mask = (np.asarray(image) == (210, 60, 40)).all(axis=2)
    return image, mask, [60, 40, 200, 140]


@pytest.mark.parametrize("name", [None, *BUNDLED])
def test_bundled_generator_finds_an_object_better_than_its_box_does(name):
    image, truth, box = ellipse_on_stripes()
    register_auto_classes()
    model = None if name is None else str(bundled(name))
    (found,) = pipeline("box-mask-generation", model=model)(image, boxes=[box])["masks"]
    iou = (found & truth).sum() / (found | truth).sum()
    box_fill = truth.sum() / (140 * 100)
    assert box_fill < 0.8 and iou > 0.9


@pytest.mark.parametrize("name", BUNDLED)
def test_it_is_small_and_needs_no_segmenter(name):
    folder = bundled(name)
    assert (folder / "model.safetensors").stat().st_size <= 8e6
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["use_class_prob"] is False
    assert load_generator("lpg", model=name).settings()["processor"]["view"] == "box"


@pytest.mark.parametrize("name", BUNDLED)
def test_weights_are_finite_in_the_type_that_it_is_loaded_in(name):
    model = LPGModel.from_pretrained(bundled(name))
    assert model.dtype == torch.float32 and all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_weights_that_do_not_fit_into_a_type_are_named():
    with pytest.raises(ValueError, match="not finite in torch.float16, such as generator.context.0.1.running_var"):
        _inference_copy(LPGModel.from_pretrained(bundled("lpg-small"), dtype=torch.float16))


@pytest.mark.parametrize("name", BUNDLED)
def test_card_holds_the_numbers_of_its_metrics(name):
    folder = bundled(name)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    card = ModelCard.load(folder / "README.md")
    results = {result.metric_name: result.metric_value for result in card.data.eval_results}
    for where, value in metrics["foreground_iou"].items():
        assert results[f"foreground_iou [{where}]"] == value > metrics["baseline_grabcut_foreground_iou"][where]
    assert not any(name.startswith("baseline") for name in results)


def test_command_without_a_model_uses_it_and_says_so(tmp_path, capsys):
    image, truth, box = ellipse_on_stripes()
    (tmp_path / "images").mkdir()
    image.save(tmp_path / "images/a.png")
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [60, 40, 140, 100]}
    content = {"images": [{"id": 1, "file_name": "a.png"}], "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "boxes.json").write_text(json.dumps(content | {"annotations": [annotation]}))
    with pytest.raises(SystemExit) as stopped:
        cli.main(["masks", str(tmp_path / "boxes.json"), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 0 and f"using {DEFAULT}," in capsys.readouterr().out
    found = read_label_map(tmp_path / "out/masks/a.png") == 1
    assert (found & truth).sum() / (found | truth).sum() > 0.9


def test_a_segmenter_is_trained_on_its_masks():
    assert inspect.signature(cli._train).parameters["model"].default == OwnJob("a.json", Path("out")).model == DEFAULT


@pytest.mark.parametrize("name", BUNDLED)
def test_its_name_stands_for_its_folder_wherever_a_stage_is_named(name, monkeypatch, tmp_path):
    assert named_stage(name) == bundled(name) and named_stage("org/name") == "org/name"
    by_name, by_folder = (load_generator("lpg", model=model).settings() for model in (name, bundled(name)))
    assert by_name == by_folder
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    with pytest.raises(FileNotFoundError, match="config.json"):  # a folder of that name comes first
        load_generator("lpg", model=name)


def test_unknown_name_is_refused():
    with pytest.raises(
        ValueError, match="no generator 'lpg-large' comes with the package. There is: lpg-base, lpg-small."
    ):
        bundled("lpg-large")
