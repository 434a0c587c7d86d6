"""What a training may look at: stage 0 sees no mask, an E-step runs no segmenter."""

import json

import numpy as np
from accelerate import Accelerator
from tiny_run import changed

from lpg_hf.models.modeling_lpg import LPGModel
from lpg_hf.training._labels import box_labels
from lpg_hf.training.data import load_aux, load_target
from lpg_hf.training.models import build_segmenter, save_stage
from lpg_hf.training.run import Run
from lpg_hf.training.stages import Stage, lpg_stage, segmenter_stage


def stage0(settings, rows, run_dir):
    """Weights and losses of a box-trained segmenter."""
    run_dir.mkdir()
    settings = changed(settings, {"run.dir": str(run_dir)})
    run = Run(Accelerator(cpu=True), settings)
    folder = segmenter_stage(run, Stage("target", 0, run_dir / "stage0"), rows, box_labels, None, num_steps=3)
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    return (folder / "model.safetensors").read_bytes(), [line["loss"] for line in lines]


def test_stage_0_is_the_same_with_masks_without_and_with_garbage_of_coco(settings, tmp_path):
    accelerator = Accelerator(cpu=True)
    rows = load_aux(Run(accelerator, settings), masks=True)
    without = load_aux(Run(accelerator, settings), masks=False)
    assert "segmentation" in rows.features["objects"] and "segmentation" not in without.features["objects"]
    garbage = rows.map(
        lambda row: {
            "objects": row["objects"] | {"segmentation": [{"size": [1, 1], "counts": "x"}] * len(row["objects"]["id"])}
        }
    )
    results = [stage0(settings, r, tmp_path / str(k)) for k, r in enumerate((rows, without, garbage))]
    assert results[0] == results[1] == results[2]
    assert len(results[0][1]) == 3


def test_stage_0_is_the_same_with_masks_without_and_with_garbage_of_voc(settings, tmp_path):
    accelerator = Accelerator(cpu=True)
    rows = load_target(Run(accelerator, settings), masks=True)
    without = load_target(Run(accelerator, settings), masks=False)
    assert "mask" in rows.column_names and "mask" not in without.column_names
    garbage = rows.map(lambda row: {"mask": {"bytes": b"no image", "path": None}})
    results = [stage0(settings, r, tmp_path / str(k)) for k, r in enumerate((rows, without, garbage))]
    assert results[0] == results[1] == results[2]


def test_an_e_step_runs_the_segmenter_for_the_cache_and_never_after_it(run, settings, tmp_path, monkeypatch):
    rows = load_aux(run)
    segmenter, processor = build_segmenter(settings, [f"c{i}" for i in range(6)])
    save_stage(tmp_path / "segmenter", segmenter, processor, {"kind": "segmenter", "stage": 0})
    calls = []
    for kind, model_class in (("segmenter", type(segmenter)), ("lpg", LPGModel)):
        original = model_class.forward

        def counted(self, *args, kind=kind, original=original, **kwargs):
            calls.append((kind, self.training))
            return original(self, *args, **kwargs)

        monkeypatch.setattr(model_class, "forward", counted)
    lpg_stage(run, Stage("auxiliary", 1, tmp_path / "stage1"), rows, tmp_path / "segmenter", None)
    first = calls.index(("lpg", True))
    assert calls[first:] == [("lpg", True)] * settings.lpg.steps
    assert 0 < first <= len(rows) and set(calls[:first]) == {("segmenter", False)}


def test_a_resumed_e_step_does_not_run_the_segmenter_at_all(run, settings, tmp_path, monkeypatch):
    rows = load_aux(run)
    segmenter, processor = build_segmenter(settings, [f"c{i}" for i in range(6)])
    save_stage(tmp_path / "segmenter", segmenter, processor, {"kind": "segmenter", "stage": 0})
    step = (run, Stage("auxiliary", 1, tmp_path / "stage1"), rows, tmp_path / "segmenter", None)
    lpg_stage(*step)
    before = (tmp_path / "stage1" / "lpg" / "model.safetensors").read_bytes()
    (tmp_path / "stage1" / "lpg").rename(tmp_path / "stage1" / "old")

    def forbidden(self, *args, **kwargs):
        raise AssertionError("the segmenter ran in a resumed E-step")

    monkeypatch.setattr(type(segmenter), "forward", forbidden)
    lpg_stage(*step)
    assert (tmp_path / "stage1" / "lpg" / "model.safetensors").read_bytes() == before
    assert np.fromfile(tmp_path / "stage1" / "class_probs" / "part0.uint8", dtype=np.uint8).any()
