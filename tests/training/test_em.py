"""The two scripts as a user runs them."""

import json
from shutil import copytree, rmtree

import pytest
from PIL import Image
from safetensors.torch import load_file
from tiny_run import launch, weights


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
    assert metrics["settings"]["lpg_steps"] == 5 and "torch" in metrics["versions"]
    assert len(metrics["details"]["segmenter"]["2"]["per_class_iou"]) == len(metrics["classes"]) + 1
    table = (finished_run / "target" / "table.md").read_text()
    assert f"{100 * metrics['pseudo_mask_miou']['2']:.1f}" in table and "stage 2" in table
    assert Image.open(finished_run / "target" / "panel.png").size[0] > 500


def test_metrics_hold_no_folder_of_this_machine(finished_run):
    for path in finished_run.rglob("metrics.json"):
        assert str(finished_run.parent) not in path.read_text(), path


def test_the_same_command_again_redoes_nothing(values, finished_run):
    before = {path: path.stat().st_mtime_ns for path in finished_run.rglob("*.safetensors")}
    for script in ("em.py", "deploy.py"):
        result = launch(script, values, finished_run)
        assert result.returncode == 0, result.stderr[-3000:]
    assert before == {path: path.stat().st_mtime_ns for path in finished_run.rglob("*.safetensors")}


KILL_AT = """
import os, random, signal
import training.checkpoint, training.masks, torch
generator = random.Random({seed})
count, fatal = [0], generator.randrange(1, 9)
save, write = torch.save, training.masks.write_label_map
def dying(original, half):
    def call(first, second):
        count[0] += 1
        if count[0] == fatal:
            half(first, second)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(first, second)
    return call
def half_checkpoint(state, file):
    file.write(b"half a checkpoint"); file.flush()
def half_mask(path, label_map):
    open(str(path) + ".part", "wb").write(b"half a mask")
if {where!r} == "checkpoint":
    torch.save = dying(save, half_checkpoint)
else:
    training.masks.write_label_map = dying(write, half_mask)
"""


@pytest.mark.parametrize("where", ["checkpoint", "mask"])
def test_a_run_that_is_killed_ends_with_the_same_weights_and_masks(values, finished_run, tmp_path, where):
    """SIGKILL inside a write, at random moments, until the run comes through."""
    run_dir = tmp_path / "run"
    kills = 0
    for attempt in range(3):
        result = launch("em.py", values, run_dir, wrapper=KILL_AT.format(seed=attempt, where=where))
        kills += result.returncode == -9
    assert kills >= 2
    result = launch("em.py", values, run_dir)
    assert result.returncode == 0, result.stderr[-3000:]
    expected = {name: digest for name, digest in weights(finished_run).items() if name.startswith("aux")}
    assert weights(run_dir) == expected


def test_a_truncated_checkpoint_costs_the_steps_since_the_one_before(values, finished_run, tmp_path):
    run_dir = tmp_path / "run"
    kill = KILL_AT.format(seed=0, where="checkpoint").replace("generator.randrange(1, 9)", "3")
    assert launch("em.py", values, run_dir, wrapper=kill).returncode == -9
    newest = max(run_dir.rglob("step_*.pt"), key=lambda path: int(path.stem.split("_")[1]))
    newest.write_bytes(newest.read_bytes()[:1000])
    result = launch("em.py", values, run_dir)
    assert result.returncode == 0 and f"{newest.name} is incomplete" in result.stdout
    assert weights(run_dir) == {k: v for k, v in weights(finished_run).items() if k.startswith("aux")}


@pytest.mark.parametrize("mode", ["semi", "full"])
def test_the_other_modes_write_beside_the_weak_run(values, finished_run, tmp_path, mode):
    result = launch(
        "deploy.py", values | {"mode": mode, "semi_split": "train"}, tmp_path / "run", "--stages", str(finished_run)
    )
    assert result.returncode == 0, result.stderr[-3000:]
    metrics = json.loads((tmp_path / "run" / f"target_{mode}" / "metrics.json").read_text())
    assert metrics["mode"] == mode and list(metrics["segmenter_miou"]) == ["0", "1", "2"]
    assert bool(metrics["pseudo_mask_miou"]) == (mode == "semi")
    weak = load_file(finished_run / "target" / "stage0" / "segmenter" / "model.safetensors")
    other = load_file(tmp_path / "run" / f"target_{mode}" / "stage0" / "segmenter" / "model.safetensors")
    assert any((weak[name] != other[name]).any() for name in weak)


def test_box_views_and_a_first_stage_without_class_probability(values, tmp_path):
    """Stage 2 continues the stage-1 network, which had one input channel less, and works without it as well."""
    changed = values | {"view": "box", "view_size": 32, "stage1_class_prob": False, "lpg_class_prob_dropout": 0.5}
    for script in ("em.py", "deploy.py"):
        result = launch(script, changed, tmp_path / "run")
        assert result.returncode == 0, result.stderr[-3000:]
    configs = [json.loads((tmp_path / f"run/aux/stage{s}/lpg/config.json").read_text()) for s in (1, 2)]
    assert [config["use_class_prob"] for config in configs] == [False, True]
    assert [config["class_prob_optional"] for config in configs] == [False, True]
    assert not (tmp_path / "run" / "aux" / "stage1" / "class_probs.uint8").exists()


def test_without_a_segmenter_one_generator_is_trained_and_nothing_else(values, tmp_path):
    changed = values | {"view": "box", "view_size": 32, "stage1_class_prob": False, "num_stages": 1, "segmenter": None}
    result = launch("em.py", changed, tmp_path / "run")
    assert result.returncode == 0, result.stderr[-3000:]
    assert sorted(path.name for path in (tmp_path / "run/aux").iterdir()) == ["stage1"]
    assert sorted(path.name for path in (tmp_path / "run/aux/stage1").iterdir()) == ["lpg"]
    result = launch("deploy.py", changed, tmp_path / "run")
    assert result.returncode != 0 and "segmenter is null" in result.stderr and "Traceback" not in result.stderr


def test_objects_cannot_be_learnt_from_maps_of_classes(values, tmp_path):
    of_voc = {"aux_format": "voc", "aux_root": values["target_root"], "aux_split": "train"}
    changed = values | of_voc | {"aux_annotations": None, "aux_images": None, "view": "box", "lpg_target": "object"}
    result = launch("em.py", changed, tmp_path / "run")
    assert result.returncode != 0 and "lpg_target=object, but the auxiliary set has maps of classes" in result.stderr
    assert not (tmp_path / "run" / "aux" / "stage0").exists()


def test_a_fixed_stage_makes_the_masks_of_every_round(values, finished_run, tmp_path):
    """Round 1 then has the masks of the last generator, round 2 those that a fresh run of its own gives."""
    changed = values | {"fixed_stage": 2, "stages": str(finished_run)}
    result = launch("deploy.py", changed, tmp_path / "run")
    assert result.returncode == 0, result.stderr[-3000:]
    digests = []
    for folder in (finished_run, tmp_path / "run"):
        masks = sorted((folder / "target/stage1/pseudo_masks").rglob("*.png"))
        digests.append([path.read_bytes() for path in masks])
    assert len(digests[0]) == len(digests[1]) > 0 and digests[0] != digests[1]


def test_missing_stages_are_named_before_any_training(values, tmp_path):
    result = launch("deploy.py", values, tmp_path / "run")
    assert result.returncode != 0 and "em.py" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "run" / "target" / "stage0").exists()


def test_other_settings_in_the_same_folder_are_refused(values, finished_run, tmp_path):
    copytree(finished_run, tmp_path / "run")
    result = launch("em.py", values | {"lpg_steps": 6}, tmp_path / "run")
    assert result.returncode != 0 and "lpg_steps: 5 then, 6 now" in result.stderr


def test_semi_needs_masks_of_the_images_that_keep_theirs_only(values, data, finished_run, tmp_path):
    """The other target images may have no ground truth at all."""
    root = tmp_path / "target"
    copytree(data / "target", root)
    lists = root / "ImageSets" / "Segmentation"
    train = (lists / "train.txt").read_text().split()
    (lists / "few.txt").write_text("\n".join(train[:2]) + "\n")
    for name in train[2:]:
        (root / "SegmentationClass" / f"{name}.png").unlink()
    changed = values | {"target_root": str(root), "mode": "semi", "semi_split": "few", "measure_masks": False}
    result = launch("deploy.py", changed, tmp_path / "run", "--stages", str(finished_run))
    assert result.returncode == 0, result.stderr[-3000:]
    assert "ground truth is kept by 2 target images" in result.stdout
    assert "measured on 4 images that hold the classes" in result.stdout
    metrics = json.loads((tmp_path / "run" / "target_semi" / "metrics.json").read_text())
    assert metrics["box_fill_miou"] is None and metrics["pseudo_mask_miou"] == {}


def test_boxes_alone_are_enough_for_masks_and_a_segmenter(values, data, finished_run, tmp_path):
    """Nobody has a mask: nothing is measured, and what is trained is the same."""
    root = tmp_path / "target"
    copytree(data / "target", root)
    rmtree(root / "SegmentationClass")
    changed = values | {"target_root": str(root), "eval_split": "nowhere", "measure_masks": False}
    result = launch(
        "deploy.py", changed, tmp_path / "run", "--stages", str(finished_run), "--measure_segmenter", "false"
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "the segmenter is not measured" in result.stdout
    target = tmp_path / "run" / "target"
    metrics = json.loads((target / "metrics.json").read_text())
    assert metrics["segmenter_miou"] == {} and metrics["num_images"]["evaluation"] == 0
    assert "segmenter not measured" in (target / "table.md").read_text()
    trained, measured = (run / "target" / "stage2" / "segmenter" for run in (tmp_path / "run", finished_run))
    assert weights(trained) == weights(measured)
