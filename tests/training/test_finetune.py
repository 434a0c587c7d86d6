"""`lpg-hf finetune`: the better generator is kept, whatever the format of the masks; it resumes; what is refused."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lpg_hf import LPGConfig, LPGImageProcessor, LPGModel
from lpg_hf.cli import main
from lpg_hf.data.convert import convert_labels
from lpg_hf.generators.bundle import bundled
from lpg_hf.training import finetune as module
from lpg_hf.training._own_data import OwnJob
from lpg_hf.training.finetune import finetune


pytestmark = pytest.mark.usefixtures("own_precision")


@pytest.fixture(scope="module")
def blank(tmp_path_factory) -> Path:
    """A small generator that finds nothing."""
    folder = tmp_path_factory.mktemp("blank")
    sizes = {"embedding_size": 16, "hidden_sizes": [16, 16], "depths": [1, 1], "neck_size": 8, "head_size": 8}
    torch.manual_seed(0)
    model = LPGModel(LPGConfig(use_class_prob=False, **sizes))
    last = model.generator.head[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([1.0, 0.0]))
    model.save_pretrained(folder)
    LPGImageProcessor(view="box", view_size=32).save_pretrained(folder)
    return folder


@pytest.fixture
def job(data, tmp_path) -> OwnJob:
    return OwnJob(str(data / "aux" / "annotations.json"), tmp_path / "mine", data / "aux" / "images", steps=2)


def replaced(job: OwnJob, **changes) -> OwnJob:
    return OwnJob(**{**vars(job), **changes})


def weights(folder: Path) -> dict:
    return load_file(folder / "model.safetensors")


def same_weights(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_work_is_not_done_behind_a_link(tmp_path):
    (tmp_path / "mine.unfinished").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="mine.unfinished is a link to"):
        OwnJob("a.json", tmp_path / "mine")


@pytest.mark.parametrize("helps", [True, False])
def test_the_generator_that_is_best_on_the_held_out_part_is_kept(job, blank, monkeypatch, helps):
    start, trained = (blank, bundled()) if helps else (bundled(), blank)
    monkeypatch.setattr(module, "_train", lambda *arguments: trained)
    monkeypatch.setattr(module, "_mixed", lambda first, last, name, folder: first if name == "before" else last)
    said = []
    result = finetune(replaced(job, model=str(start)), said.append)
    scores = [result["scores"][name]["mean_box_iou"] for name in ("before", "half way", "after")]
    assert (scores[2] > scores[0]) == helps and min(scores) == 0
    assert result["kept"] == ("half way" if helps else "before")  # the first of equal ones
    assert result["num_images"] == 8 and result["held_out_images"] == 2
    assert same_weights(job.out, bundled())
    metrics = json.loads((job.out / "metrics.json").read_text())
    assert metrics["mean_box_iou"] == max(scores) and metrics["finetune"] == result
    assert Image.open(job.out / "panel.png").width > 5 * 200  # boxes, truth, and three masks
    assert "panel.png" in (job.out / "README.md").read_text()
    assert str(job.out.parent) not in (job.out / "README.md").read_text()
    assert f"| after fine-tuning | {100 * scores[2]:.1f} |" in said[-1]
    assert ("did not help" in said[-1]) != helps
    assert not job.unfinished.exists()


def test_half_way_is_the_mean_of_the_weights(blank, tmp_path):
    model = LPGModel.from_pretrained(blank)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(2)
    model.save_pretrained(tmp_path / "trained")
    LPGImageProcessor.from_pretrained(blank).save_pretrained(tmp_path / "trained")
    half = weights(module._mixed(blank, tmp_path / "trained", "half way", tmp_path))
    for name, _ in model.named_parameters():
        assert torch.allclose(half[name], weights(blank)[name] + 1, atol=1e-6)


def test_few_images_are_held_out_in_turns_and_the_command_resumes(job, blank, tmp_path, monkeypatch, capsys):
    content = json.loads(Path(job.annotations).read_text())
    content["images"] = content["images"][:4]
    few = tmp_path / "few.json"
    few.write_text(json.dumps(content))
    few_job = replaced(job, annotations=str(few), model=str(blank))
    stop = module._comparison

    def stopped_in_the_third_turn(annotations, *rest):
        if "part3" in annotations:
            raise KeyboardInterrupt
        return stop(annotations, *rest)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(module, "_comparison", stopped_in_the_third_turn)
        finetune(few_job)
    finished = job.unfinished / "part1" / "stage1" / "lpg"
    finished = finished if finished.exists() else job.unfinished / "part1" / "lpg"
    before = (finished / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(ValueError, match=r"unfinished work with seed=0 \(not 1\)"):
        finetune(replaced(few_job, seed=1))
    touched = []
    save = module._save
    monkeypatch.setattr(
        module,
        "_save",
        lambda *a: (touched.append((finished / "model.safetensors").stat().st_mtime_ns), save(*a)),
    )
    result = finetune(few_job)
    assert result["turns"] == 3 and result["held_out_images"] == 4
    assert touched == [before]
    assert finetune(few_job) == result  # what is finished is told again
    assert "was finished before" in capsys.readouterr().out
    with pytest.raises(FileExistsError, match=r"holds what was made with seed=0 \(not 1\)"):
        finetune(replaced(few_job, seed=1))


def test_the_command_writes_a_generator_for_the_other_commands(data, blank, tmp_path, capsys):
    arguments = ["finetune", str(data / "target"), "--split", "train", "--model", str(blank), "--steps", "2"]
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--out", str(tmp_path / "mine")])
    assert end.value.code == 0
    assert "| held-out part | IoU per box | boundary IoU | |" in capsys.readouterr().out
    masks = ["masks", str(data / "target"), "--model", str(tmp_path / "mine"), "--out", str(tmp_path / "masks")]
    with pytest.raises(SystemExit) as end:
        main(masks)
    assert end.value.code == 0 and len(list((tmp_path / "masks" / "masks").glob("*.png"))) == 10


def test_every_format_with_masks_gives_the_same_images_and_boxes(data, job, tmp_path):
    images = str(data / "aux" / "images")
    convert_labels(job.annotations, tmp_path / "yolo", "yolo", images=images)
    convert_labels(job.annotations, tmp_path / "voc", "voc", images=images)
    (tmp_path / "voc" / "JPEGImages").symlink_to(images)
    masks = module._with_masks(job, print)
    for other in ("yolo", "voc"):
        found = module._with_masks(replaced(job, annotations=str(tmp_path / other), images=None), print)
        assert (found.num_images, found.num_boxes) == (masks.num_images, masks.num_boxes)


@pytest.mark.parametrize("num_masks, text", [(0, "has no masks"), (1, "has masks in one image only")])
def test_annotations_without_masks_are_refused(job, tmp_path, num_masks, text):
    content = json.loads(Path(job.annotations).read_text())
    for item in content["annotations"]:
        if item["image_id"] > num_masks:
            del item["segmentation"]
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=text):
        finetune(replaced(job, annotations=str(boxes)))


def test_a_generator_with_class_probability_is_refused(job, tmp_path):
    LPGModel(LPGConfig(embedding_size=16, hidden_sizes=[16, 16], depths=[1, 1])).save_pretrained(tmp_path / "lpg")
    LPGImageProcessor().save_pretrained(tmp_path / "lpg")
    with pytest.raises(ValueError, match="class probability"):
        finetune(replaced(job, model=str(tmp_path / "lpg")))
