"""Model cards: loadable, complete, and with no number that is in no file."""

import json
import re
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from lpg_hf import _cards as cards
from lpg_hf.hub import write_card


METRICS = {
    "kind": "lpg",
    "stage": 2,
    "dataset": "shapes (aux)",
    "measured_on": "shapes (target)",
    "classes": ["ring", "star|bar", "犬 č"],
    "excluded_classes": ["person", "cat"],
    "settings": {"lpg_steps": 1234, "lpg_lr": 0.0001, "note": "a | b"},
    "seconds": 98.76,
    "loss": 0.1357,
    "versions": {"torch": "2.13.0"},
    "pseudo_mask_miou": 0.8123,
    "box_fill_miou": 0.4811,
    "per_class_iou": [0.9, 0.7, None, 0.25],
}


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(
        json.dumps(
            {"model_type": "lpg", "architectures": ["LPGModel"], "backbone": "hourglass", "use_class_prob": False}
        )
    )
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"view": "box", "view_size": 192}))
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS), encoding="utf-8")
    return tmp_path


def change(folder: Path, name: str, **values: object) -> None:
    content = json.loads((folder / name).read_text(encoding="utf-8"))
    (folder / name).write_text(json.dumps(content | values), encoding="utf-8")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch):
    def refuse(*args: object) -> None:
        raise AssertionError("a card was rendered with a network call")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_card_loads_and_its_numbers_equal_metrics_json(stage: Path):
    card = ModelCard.load(write_card(stage))
    assert card.data.license == "apache-2.0" and card.data.library_name == "lpg_hf"
    assert card.data.pipeline_tag == "mask-generation" and card.data.model_name == "lpg-stage2"
    found = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert found == {
        "pseudo_mask_miou": 0.8123,
        "per_class_iou [background]": 0.9,
        "per_class_iou [ring]": 0.7,
        "per_class_iou [犬 č]": 0.25,
    }
    assert {result.dataset_name for result in card.data.eval_results} == {"shapes (target)"}
    for text in (
        "| pseudo_mask_miou | 0.8123 |",
        "| lpg_steps | 1234 |",
        "| seconds | 98.76 |",
        "| view_size | 192 |",
    ):
        assert text in card.text
    assert "Excluded classes (2), never seen as an object: person, cat." in card.text
    assert "a \\| b" in card.text and "arXiv:2103.05463" in card.text and "needs no segmenter" in card.text


@pytest.mark.parametrize("kind", ["lpg", "segmenter"])
def test_no_number_comes_from_elsewhere(stage: Path, kind: str):
    change(stage, "metrics.json", kind=kind)
    files = "".join(path.read_text(encoding="utf-8") for path in stage.glob("*.json"))
    card = ModelCard.load(write_card(stage))
    sections = card.text.split("## Data")[1].split("## Licence")[0]  # usage and citation hold no results
    for number in re.findall(r"\d+\.\d+|\d{2,}", sections):
        assert number in files, f"{number} is in no file"


def test_absent_metrics_are_said_to_be_absent(stage: Path):
    (stage / "metrics.json").unlink()
    card = ModelCard.load(write_card(stage))
    assert "`metrics.json` is absent" in card.text and "dataset is not recorded" in card.text
    assert card.data.eval_results is None
    (stage / "metrics.json").write_text(json.dumps({"kind": "lpg", "stage": 1, "loss": 0.5, "segmenter_miou": None}))
    (stage / "preprocessor_config.json").unlink()
    card = ModelCard.load(write_card(stage))
    assert "`metrics.json` holds none" in card.text and "No image processor is saved" in card.text


def test_classes_that_the_target_shares_with_the_training_are_named(stage: Path):
    run = {"classes": ["ring", "cup"], "num_images": {"target": 3, "evaluation": 2}, "mode": "weak", "dataset": None}
    numbers = {"box_fill_miou": 0.5, "pseudo_mask_miou": {"2": 0.75}, "segmenter_miou": {"0": 0.25}}
    change(stage, "metrics.json", run=run | numbers | {"segmenter_crf_miou": {}, "iou_of_classes": {}})
    text = write_card(stage).read_text(encoding="utf-8")
    assert "are **not all new** to this model: it was trained on ring." in text
    assert "Numbers after a dense CRF were not measured." in text
    assert "| | stage 0 | stage 2 |" in text and "| pseudo masks of the LPG |  | 0.75 |" in text


def test_a_run_whose_segmenter_was_not_measured_shows_its_pseudo_masks(stage: Path):
    run = {"classes": ["ring"], "num_images": {"target": 3, "evaluation": 0}, "mode": "weak", "dataset": None}
    numbers = {"box_fill_miou": None, "pseudo_mask_miou": {"1": 0.5, "2": 0.75}, "segmenter_miou": {}}
    change(stage, "metrics.json", run=run | numbers | {"segmenter_crf_miou": {}, "iou_of_classes": {}})
    text = write_card(stage).read_text(encoding="utf-8")
    assert "segmenters not measured" in text and "dense CRF" not in text
    assert "| | stage 1 | stage 2 |" in text and "| pseudo masks of the LPG | 0.5 | 0.75 |" in text


def test_segmenter_card(stage: Path):
    change(stage, "config.json", model_type="deeplab_v2")
    change(stage, "metrics.json", kind="segmenter", stage=0, segmenter_miou=0.5)
    card = ModelCard.load(write_card(stage))
    assert card.data.pipeline_tag == "image-segmentation" and "filled boxes" in card.text
    assert "AutoModelForSemanticSegmentation" in card.text
    for number, labels in ((0, "filled boxes"), (3, "pseudo masks that")):
        change(stage, "metrics.json", stage=number, settings={"mode": "full"})
        text = write_card(stage).read_text(encoding="utf-8")
        assert f"its training labels were {labels}" in text and "| mode | full |" in text
        assert "unless the\nsettings below say otherwise (`run.mode`: with full supervision all labels are" in text
    change(stage, "metrics.json", stage=3, segmenter_miou={"crf": 0.61, "plain": 0.6})
    assert "| segmenter_miou [crf] | 0.61 |" in write_card(stage).read_text(encoding="utf-8")


def test_weights_of_others_are_not_said_to_be_trained_or_licensed_here(stage: Path):
    ours = "this model was trained with the independent implementation lpg_hf"
    assert ours in write_card(stage).read_text(encoding="utf-8")
    change(stage, "metrics.json", settings={"origin": "converted from a checkpoint; not trained by lpg_hf"})
    card = ModelCard.load(write_card(stage))
    assert card.data.license == "other" and "Apache" not in card.text and ours not in card.text
    assert "| origin | converted from a checkpoint; not trained by lpg_hf |" in card.text


def test_class_probability_is_explained_where_it_is_needed(stage: Path):
    change(stage, "config.json", use_class_prob=True)
    text = write_card(stage).read_text(encoding="utf-8")
    assert "class_probs=class_probs" in text and "softmax probability" in text and "needs no segmenter" not in text


def test_writing_again_replaces_the_card_and_leaves_no_other_file(stage: Path):
    before = {path.name for path in stage.iterdir()}
    first = write_card(stage).read_bytes()
    assert write_card(stage).read_bytes() == first
    assert {path.name for path in stage.iterdir()} == before | {"README.md"}


def test_broken_folders_are_named(stage: Path, tmp_path_factory: pytest.TempPathFactory):
    with pytest.raises(FileNotFoundError, match="no config.json"):
        write_card(tmp_path_factory.mktemp("empty"))
    change(stage, "metrics.json", kind="detector")
    with pytest.raises(ValueError, match="'detector'.*metrics.json"):
        write_card(stage)
    (stage / "metrics.json").write_text('{"kind": ')
    with pytest.raises(ValueError, match="metrics.json is not valid JSON"):
        write_card(stage)


@pytest.mark.parametrize("use_class_prob, optional", [(False, False), (True, False), (True, True)])
def test_usage_of_the_lpg_card_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use_class_prob: bool, optional: bool
):
    from lpg_hf import LPGConfig, LPGImageProcessor, LPGModel

    small = {"embedding_size": 4, "hidden_sizes": (4, 4), "depths": (1, 1), "neck_size": 4, "head_size": 4}
    config = LPGConfig(use_class_prob=use_class_prob, class_prob_optional=optional, **small)
    LPGModel(config).save_pretrained(tmp_path)
    LPGImageProcessor().save_pretrained(tmp_path)
    Image.new("RGB", (150, 160), "red").save(tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    scope: dict = {} if optional else {"class_probs": torch.full((2, 160, 150), 0.5)}
    segmenter = str(_save_segmenter(tmp_path / "segmenter"))
    for snippet in _snippets(write_card(tmp_path)):
        exec(snippet.replace("SEGMENTER", segmenter), scope)
    assert scope["foreground"].shape == (1, 160, 150) and scope["foreground"][:, :20].max() == 0
    assert not use_class_prob or scope["class_probs"][1].shape == (160, 150)


def test_the_lpg_card_gives_the_network_the_class_probability_that_training_gives_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from lpg_hf import LPGConfig, LPGImageProcessor, LPGModel
    from lpg_hf.generators.base import BoxedImage
    from lpg_hf.generators.class_probs import SegmenterProbs
    from lpg_hf.generators.lpg import LPGGenerator

    small = {"embedding_size": 4, "hidden_sizes": (4, 4), "depths": (1, 1), "neck_size": 4, "head_size": 4}
    model, processor = LPGModel(LPGConfig(use_class_prob=True, **small)), LPGImageProcessor()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    segmenter = str(_save_segmenter(tmp_path / "segmenter"))
    (tmp_path / "metrics.json").write_text(json.dumps({"segmenter": segmenter}))
    pixels = np.random.default_rng(0).integers(0, 256, (161, 150, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    for snippet in _snippets(write_card(tmp_path)):
        exec(snippet, scope)

    seen = []
    generator = LPGGenerator(model, processor, SegmenterProbs.from_pretrained(segmenter))
    generator.network.register_forward_pre_hook(lambda _, args, inputs: seen.append(inputs), with_kwargs=True)
    image = np.asarray(Image.open("image.jpg"))
    boxes, labels = np.array(scope["boxes"], dtype=np.float32), np.array(scope["box_labels"])
    list(generator.patches([BoxedImage(image, boxes, labels)], "class"))
    assert seen[0]["class_prob"].std() > 0.05
    torch.testing.assert_close(scope["inputs"]["class_prob"], seen[0]["class_prob"].contiguous(), atol=0, rtol=0)


def _save_segmenter(folder: Path) -> Path:
    from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

    from lpg_hf import DeepLabV2Config, DeepLabV2ForSemanticSegmentation

    config = DeepLabV2Config(block="basic", depths=(1, 1, 1, 1), stem_size=4, hidden_sizes=(4, 4, 4, 4), num_labels=3)
    torch.manual_seed(0)
    model = DeepLabV2ForSemanticSegmentation(config)
    for weight in model.classifier.parameters():
        weight.data *= 100
    model.save_pretrained(folder)
    SegformerImageProcessorPil(do_resize=False).save_pretrained(folder)
    return folder


def test_usage_of_the_segmenter_card_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _save_segmenter(tmp_path)
    Image.new("RGB", (60, 50), "red").save(tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    for snippet in _snippets(write_card(tmp_path)):
        exec(snippet, scope)
    assert scope["label_map"].shape == (50, 60)


def test_templates_are_found_in_a_checkout_or_an_installed_package():
    assert any((path / name).is_file() for path in cards.TEMPLATES for name in ("lpg_stage.md", "dataset.md"))


def _snippets(card: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card.read_text(encoding="utf-8"), re.DOTALL)


def test_a_card_that_cannot_be_written_leaves_nothing(stage: Path, monkeypatch: pytest.MonkeyPatch):
    before = sorted(path.name for path in stage.iterdir())

    def stop(*arguments: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", stop)
    with pytest.raises(OSError, match="disk full"):
        write_card(stage)
    assert sorted(path.name for path in stage.iterdir()) == before


def test_no_name_ends_a_table_or_a_line_of_python(stage: Path):
    odd = 'a"b\nc | d ](http://x.y) <img src=x> `e` *f* \\g'
    change(stage, "config.json", use_class_prob=True)
    change(stage, "metrics.json", repo_id=odd, segmenter=odd, classes=[odd], dataset=odd, settings={"note": odd})
    text = write_card(stage).read_text(encoding="utf-8")
    body = text.split("\n---\n", 1)[1]
    blocks = re.findall("```python\n(.*?)\n```", body, re.DOTALL)
    shown = re.sub("```python\n.*?\n```", "", body, flags=re.DOTALL)
    assert "<img" not in shown and "](http://x.y)" not in shown
    assert blocks and all(compile(block, "card", "exec") for block in blocks)
    values: dict = {}
    exec(next(line for block in blocks for line in block.splitlines() if line.startswith("source = ")), values)
    assert values["source"] == odd
    (row,) = [line for line in body.splitlines() if line.startswith("| note |")]
    assert len(re.findall(r"(?<!\\)\|", row)) == 3


_BLOCKS = ["~~~", "    ~~~", "# h", "- a", "+", "1. b", "12) c", "> q", "---", "- - -", "_ _ _", "    code", "\tcode"]
_REFERENCES = [
    "[x]: http://evil/p.png",
    "![t][x]",
    "![x]",
    "[a\n]: http://evil/a",
    "[^1]: foot",
    ["x]: http://evil/l"],
]
_LINKS = ["![a](http://evil/b)", "![a]\\(http://evil/b)", "![a\\](http://evil/b)", "\\![a](http://evil/b)"]


@pytest.mark.parametrize("kind", ["lpg", "segmenter"])
def test_no_text_becomes_a_link_an_image_or_a_block(stage: Path, kind: str):
    markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable("table")

    def parsed() -> tuple[list[str], set, dict]:
        definitions: dict = {}
        tokens = markdown.parse(write_card(stage).read_text(encoding="utf-8").split("\n---\n", 1)[1], definitions)
        links = {value for token in tokens for child in token.children or () for value in child.attrs.values()}
        blocks = [token.type for token in tokens if token.type not in ("inline", "paragraph_open", "paragraph_close")]
        return blocks, links, definitions

    change(stage, "metrics.json", kind=kind)
    ordinary = parsed()
    odd = _BLOCKS + _REFERENCES + _LINKS
    change(stage, "metrics.json", notes=odd, dataset=str(odd[0]), classes=[str(value) for value in odd])
    change(stage, "metrics.json", excluded_classes=[str(value) for value in reversed(odd)], per_class_iou=None)
    change(stage, "metrics.json", after_training_x=_REFERENCES[0], measured_on=_REFERENCES[0])
    blocks, links, definitions = parsed()
    assert links == ordinary[1] and definitions == ordinary[2] == {}
    table_rows = ("tr_open", "td_open", "td_close", "tr_close")  # fewer metrics
    assert [b for b in blocks if b not in table_rows] == [b for b in ordinary[0] if b not in table_rows]


def test_ordinary_notes_and_lists_stay_as_they_are(stage: Path):
    notes = ["Made for stage2 (seed 0): 3 classes, -0.5 to +1.", "[1, 2] are its sizes; 1.5 is not a list", "#1 of 2"]
    change(stage, "metrics.json", notes=notes, settings={"sizes": [4, 4], "low": "-1"})
    text = write_card(stage).read_text(encoding="utf-8")
    assert all(f"\n{note}\n" in text for note in notes)
    assert "| sizes | [4, 4] |" in text and "| low | -1 |" in text


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        *((name, name) for name in ("org/lpg-stage1", "resnet50", None)),
        *((name, None) for name in ("../../x y\n- z", "/home/x", "a/b/c", "a b", "org/x\n", "犬/x", 3, ["org/x"], "")),
    ],
)
def test_only_an_id_of_the_hub_is_a_base_model(stage: Path, name: object, shown: str | None):
    change(stage, "metrics.json", base_model=name)
    assert ModelCard.load(write_card(stage)).data.base_model == shown


@pytest.mark.parametrize(
    "values",
    [{"run": 3}, {"classes": [{}], "per_class_iou": [0.1]}, {"settings": [1]}, {"run": {"segmenter_miou": {"x": 1}}}],
)
def test_a_value_of_another_type_is_an_error_in_one_line(stage: Path, values: dict):
    change(stage, "metrics.json", **values)
    with pytest.raises(ValueError, match="metrics.json"):
        write_card(stage)
