"""The two scripts, from settings to what they leave."""

import json
from shutil import copytree, rmtree

import numpy as np
import pytest
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from tiny_run import launch, run_script, weights


BOX_VIEWS = {"lpg.processor.view": "box", "lpg.processor.view_size": 32}


def test_a_run_leaves_every_stage_and_its_results(finished_run):
    for stage in range(3):
        assert (finished_run / "aux" / f"stage{stage}" / "segmenter" / "model.safetensors").is_file()
        assert (finished_run / "target" / f"stage{stage}" / "segmenter" / "README.md").is_file()
        assert (finished_run / "aux" / f"stage{stage}" / "lpg" / "model.safetensors").is_file() == (stage > 0)
        assert (finished_run / "target" / f"stage{stage}" / "pseudo_masks" / "complete.json").is_file() == (stage > 0)
    assert not list(finished_run.rglob("*checkpoints")) and not list(finished_run.rglob("*.tmp"))


def test_metrics_table_and_panel_tell_the_stages(finished_run):
    metrics = json.loads((finished_run / "target" / "metrics.json").read_text())
    assert list(metrics["segmenter_miou"]) == ["0", "1", "2"] and list(metrics["pseudo_mask_miou"]) == ["1", "2"]
    assert 0 < metrics["box_fill_miou"] < 1
    assert "seconds" not in metrics  # over all starts they stand in the metrics of each stage
    assert metrics["settings"]["lpg"]["steps"] == 5 and "torch" in metrics["versions"]
    assert len(metrics["details"]["segmenter"]["2"]["per_class_iou"]) == len(metrics["classes"]) + 1
    table = (finished_run / "target" / "table.md").read_text()
    assert f"{100 * metrics['pseudo_mask_miou']['2']:.1f}" in table and "stage 2" in table
    assert Image.open(finished_run / "target" / "panel.png").size[0] > 500


def test_cards_tell_the_settings_of_the_stage(finished_run):
    card = (finished_run / "aux" / "stage2" / "lpg" / "README.md").read_text()
    assert "| lpg.steps | 5 |" in card and "| run.seed | 0 |" in card


def test_metrics_hold_no_folder_of_this_machine(finished_run):
    for path in finished_run.rglob("metrics.json"):
        assert str(finished_run.parent) not in path.read_text(), path


def test_the_same_command_again_redoes_nothing(values, finished_run):
    """As a user types it."""
    before = {path: path.stat().st_mtime_ns for path in finished_run.rglob("*.safetensors")}
    for script in ("em.py", "deploy.py"):
        result = launch(script, values, finished_run)
        assert result.returncode == 0, result.stderr[-3000:]
    assert before == {path: path.stat().st_mtime_ns for path in finished_run.rglob("*.safetensors")}


def test_a_finished_run_is_extended_by_training_the_new_stage_alone(values, finished_run, tmp_path, monkeypatch):
    """The tracker counts the steps of all phases, and gets what is measured."""
    copytree(finished_run, tmp_path / "run")
    before = weights(tmp_path / "run")
    tracked = []
    monkeypatch.setattr(Accelerator, "init_trackers", lambda *arguments, **options: None)
    monkeypatch.setattr(Accelerator, "log", lambda self, values, step: tracked.append((step, values)))
    monkeypatch.setattr("accelerate.accelerator.filter_trackers", lambda *arguments: ["tensorboard"])
    run_script("em.py", values | {"run.num_stages": 3, "run.log_with": "tensorboard"}, tmp_path / "run")
    after = weights(tmp_path / "run")
    assert {name: digest for name, digest in after.items() if "stage3" not in name} == before
    assert json.loads((tmp_path / "run" / "aux" / "metrics.json").read_text())["pseudo_masks"].keys() == {
        "1",
        "2",
        "3",
    }
    lpg = [step for step, values in tracked if "auxiliary stage 3 LPG/loss" in values]
    assert lpg == [26, 27, 28, 29, 30]  # after 3 segmenters and 2 generators of 5 steps
    assert [step for step, values in tracked if "auxiliary/pseudo_mask_miou" in values] == [10, 20, 30]
    assert [step for step, _ in tracked] == sorted(step for step, _ in tracked)


@pytest.mark.parametrize("mode", ["semi", "full"])
def test_the_other_modes_write_beside_the_weak_run(values, finished_run, tmp_path, mode):
    changes = {"run.mode": mode, "run.semi_split": "train", "run.stages": str(finished_run)}
    run_script("deploy.py", values | changes, tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / f"target_{mode}" / "metrics.json").read_text())
    assert metrics["mode"] == mode and list(metrics["segmenter_miou"]) == ["0", "1", "2"]
    assert bool(metrics["pseudo_mask_miou"]) == (mode == "semi")
    weak = load_file(finished_run / "target" / "stage0" / "segmenter" / "model.safetensors")
    other = load_file(tmp_path / "run" / f"target_{mode}" / "stage0" / "segmenter" / "model.safetensors")
    assert any((weak[name] != other[name]).any() for name in weak)


def test_box_views_and_a_first_stage_without_class_probability(values, tmp_path):
    """Stage 2 continues the stage-1 network, which had one input channel less, and works without it as well."""
    changes = BOX_VIEWS | {"lpg.stage1_class_prob": False, "lpg.class_prob_dropout": 0.5}
    changes |= {"lpg.steps": 20, "lpg.learning_rate": 1e-2, "lpg.config.object_loss_weight": 20.0}  # finds objects
    for script in ("em.py", "deploy.py"):
        run_script(script, values | changes, tmp_path / "run")
    configs = [json.loads((tmp_path / f"run/aux/stage{s}/lpg/config.json").read_text()) for s in (1, 2)]
    assert [config["use_class_prob"] for config in configs] == [False, True]
    assert [config["class_prob_optional"] for config in configs] == [False, True]
    assert not (tmp_path / "run" / "aux" / "stage1" / "class_probs").exists()


def test_without_a_segmenter_one_generator_is_trained_and_nothing_else(values, tmp_path):
    changes = BOX_VIEWS | {"lpg.stage1_class_prob": False, "run.num_stages": 1, "segmenter.model": None}
    run_script("em.py", values | changes, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run/aux").iterdir()) == ["settings.json", "stage1"]
    assert sorted(path.name for path in (tmp_path / "run/aux/stage1").iterdir()) == ["lpg"]


def test_a_fixed_stage_makes_the_masks_of_every_round(values, finished_run, tmp_path):
    """Round 1 then has the masks of the last generator, round 2 those that a fresh run of its own gives."""
    run_script("deploy.py", values | {"run.fixed_stage": 2, "run.stages": str(finished_run)}, tmp_path / "run")
    digests = []
    for folder in (finished_run, tmp_path / "run"):
        masks = sorted((folder / "target/stage1/pseudo_masks").rglob("*.png"))
        digests.append([path.read_bytes() for path in masks])
    assert len(digests[0]) == len(digests[1]) > 0 and digests[0] != digests[1]


def test_other_settings_in_the_same_folder_are_refused(values, finished_run):
    with pytest.raises(ValueError, match="lpg.steps: 5 then, 6 now"):
        run_script("em.py", values | {"lpg.steps": 6}, finished_run)


def test_semi_needs_masks_of_the_images_that_keep_theirs_only(values, data, finished_run, tmp_path, capsys):
    """The other target images may have no ground truth at all."""
    root = tmp_path / "target"
    copytree(data / "target", root)
    lists = root / "ImageSets" / "Segmentation"
    train = (lists / "train.txt").read_text().split()
    (lists / "few.txt").write_text("\n".join(train[:2]) + "\n")
    for name in train[2:]:
        (root / "SegmentationClass" / f"{name}.png").unlink()
    changes = {"target.root": str(root), "run.mode": "semi", "run.semi_split": "few", "run.measure": ["segmenter"]}
    run_script("deploy.py", values | changes | {"run.stages": str(finished_run)}, tmp_path / "run")
    said = capsys.readouterr().out
    assert "ground truth is kept by 2 target images" in said
    assert "measured on 4 images that hold the classes" in said
    metrics = json.loads((tmp_path / "run" / "target_semi" / "metrics.json").read_text())
    assert metrics["box_fill_miou"] is None and metrics["pseudo_mask_miou"] == {}


def test_boxes_alone_are_enough_for_masks_and_a_segmenter(values, data, finished_run, tmp_path, capsys):
    """Nobody has a mask: nothing is measured, and the segmenters are the same."""
    root = tmp_path / "target"
    copytree(data / "target", root)
    rmtree(root / "SegmentationClass")
    changes = {"target.root": str(root), "evaluation.split": "nowhere", "run.measure": []}
    run_script("deploy.py", values | changes | {"run.stages": str(finished_run)}, tmp_path / "run")
    assert "the segmenter is not measured" in capsys.readouterr().out
    target = tmp_path / "run" / "target"
    metrics = json.loads((target / "metrics.json").read_text())
    assert metrics["segmenter_miou"] == {} and metrics["num_images"]["evaluation"] == 0
    assert "segmenter not measured" in (target / "table.md").read_text()
    trained, measured = (run / "target" / "stage2" / "segmenter" for run in (tmp_path / "run", finished_run))
    assert weights(trained) == weights(measured)


@pytest.mark.parametrize("mode", ["weak", "semi"])
def test_a_run_is_resumed_with_what_it_was_measured_on_and_its_true_masks_only(
    values, data, tmp_path, monkeypatch, mode
):
    """Also where a start between them measured nothing."""
    root, folder = tmp_path / "target", tmp_path / "run"
    copytree(data / "target", root)
    lists = root / "ImageSets" / "Segmentation"
    (lists / "few.txt").write_text("\n".join((lists / "train.txt").read_text().split()[:3]))
    changes = {"target.root": str(root), "run.mode": mode, "run.semi_split": "few", "run.stages": "lpg-small"}

    def stopped(run, stage, *_):
        (stage.folder / "segmenter_checkpoints").mkdir(parents=True, exist_ok=True)
        (stage.folder / "segmenter_checkpoints" / "step_2.pt").touch()
        raise RuntimeError("stopped")

    monkeypatch.setattr("training.deploy.segmenter_stage", stopped)
    for measure in (["masks", "segmenter"], [], ["masks", "segmenter"]):
        with pytest.raises(RuntimeError, match="stopped"):
            run_script("deploy.py", values | changes | {"run.measure": measure}, folder)
    edits = {
        "evaluation": lists / "val.txt",
        "evaluation masks": root / "SegmentationClass" / "val_000002.png",
        "target truth masks": root / "SegmentationClass" / "train_000002.png",
    }
    if mode == "semi":
        edits = {"run.semi_split": lists / "few.txt", "run.semi_split masks": edits["target truth masks"]}
    for name, path in edits.items():
        before = path.read_bytes()
        if path.suffix == ".txt":
            path.write_text("\n".join(path.read_text().split()[1:]))
        else:
            Image.fromarray(np.asarray(Image.open(path)) * 0 + 1).save(path)
        with pytest.raises(ValueError, match=f"started with other images or objects of {name}. Bring them back"):
            run_script("deploy.py", values | changes, folder)
        path.write_bytes(before)
