"""The figures of the paper's claims from metrics.json files."""

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks import claims


def run(root, name, masks, segmenter, **changes):
    """A metrics.json as deploy.py leaves it."""
    settings = {
        "run": {"mode": "weak", "labels": "lpg", "fixed_stage": None, "aux_fraction": 1.0, "seed": 0} | changes
    }
    settings["segmenter"] = {"steps": 100, "target_steps": 50}
    stages = [
        {str(k): value for k, value in enumerate(values, first)} for values, first in ((masks, 1), (segmenter, 0))
    ]
    metrics = {"pseudo_mask_miou": stages[0], "segmenter_miou": stages[1], "settings": settings}
    (root / name).mkdir(parents=True)
    (root / name / "metrics.json").write_text(json.dumps(metrics))


@pytest.fixture
def runs(tmp_path):
    root = tmp_path / "runs"
    run(root, "weak0", [0.6, 0.7], [0.4, 0.5, 0.55])
    run(root, "weak1", [0.62, 0.72], [0.4, 0.52, 0.57], seed=1)
    run(root, "fixed", [0.6, 0.65], [0.4, 0.5, 0.52], fixed_stage=1)
    run(root, "full", [], [0.5, 0.6, 0.65], mode="full")
    run(root, "sdi", [0.55, 0.6], [0.35, 0.4, 0.45], labels="sdi-mcg:proposals.json")
    run(root, "half", [0.5, 0.6], [0.4, 0.4, 0.5], aux_fraction=0.5)
    (root / "weak0" / "stage1").mkdir()
    (root / "weak0" / "stage1" / "metrics.json").write_text(json.dumps({"kind": "segmenter"}))
    return root


def test_each_figure_has_the_runs_that_its_claim_is_about(runs):
    figures = claims.curves_of(claims.read_results([runs]))
    flat = {
        (f, name): {x: np.round(v, 6).tolist() for x, v in c.items()}
        for f, cs in figures.items()
        for name, c in cs.items()
    }
    assert flat["stages", "pseudo masks, stage-wise"] == {1: [60, 62], 2: [70, 72]}
    assert flat["stages", "segmenter, fixed LPG"] == {0: [40], 1: [50], 2: [52]}
    assert flat["steps", "boxes"] == {50: [40, 40], 100: [50, 52], 150: [55, 57]}
    assert flat["steps", "masks"] == {50: [50], 100: [60], 150: [65]}
    assert flat["methods", "segmenter: sdi-mcg"] == {0: [45]} and flat["methods", "labels: lpg"] == {0: [70, 72]}
    assert (
        flat["methods", "segmenter: full supervision"] == {0: [65]}
        and ("methods", "labels: full supervision") not in flat
    )
    assert flat["aux_share", "segmenter"] == {100: [55, 57], 50: [50]}
    assert set(figures["stages"]) == {
        f"{what}, {of}" for what in ("pseudo masks", "segmenter") for of in ("stage-wise", "fixed LPG")
    }


def test_the_figures_are_drawn_with_text_that_is_read_at_half_size(runs, tmp_path, capsys):
    claims.main([str(runs), "--out", str(tmp_path / "out")])
    assert sorted(p.name for p in (tmp_path / "out").glob("*.png")) == [
        "aux_share.png",
        "methods.png",
        "stages.png",
        "steps.png",
    ]
    drawn = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert len(drawn["files"]) == 6 and set(drawn["figures"]) == {"stages", "steps", "methods", "aux_share"}
    assert claims.FONT // 2 >= 13
    with Image.open(tmp_path / "out" / "steps.png") as image:
        pixels = np.asarray(image)
    assert pixels.shape == (800, 1200, 3)
    assert "boxes" in capsys.readouterr().out
    first, second = (pixels[..., :] == tuple(bytes.fromhex(c[1:])) for c in claims.COLOURS[:2])
    # "boxes" come before "masks", which lie above it; legends are below the axes.
    rows = [np.argwhere(found.all(axis=2))[:, 0] for found in (second, first)]
    assert rows[0].min() < rows[1].min() < 600


def test_folders_of_labels_have_the_name_of_the_row_or_of_the_folder(tmp_path):
    run(tmp_path, "own", [0.6], [0.3, 0.4], labels="folder:somewhere/mine")
    cell = {"segmenter": {"1": {"mean_iou": 0.5}}, "pseudo_masks": {}, "configuration": {}, "label": "ours at once"}
    cell["settings"] = {"run": {"labels": "folder:stage3/pseudo_masks"}, "segmenter": {"steps": 20}}
    (tmp_path / "metrics.json").write_text(json.dumps(cell))
    methods = claims.curves_of(claims.read_results([tmp_path]))["methods"]
    assert methods == {
        "segmenter: mine": {0: [40.0]},
        "labels: mine": {0: [60.0]},
        "segmenter: ours at once": {0: [50.0]},
    }


def test_two_runs_that_a_figure_cannot_tell_apart_are_refused(runs):
    run(runs, "weak0_again", [0.6], [0.4, 0.5])
    with pytest.raises(ValueError, match="are the same to a figure: give the runs of one protocol"):
        claims.read_results([runs])


def test_folders_without_scores_are_refused(tmp_path):
    (tmp_path / "metrics.json").write_text('{"kind": "lpg"}')
    with pytest.raises(ValueError, match="none of 1 metrics.json files has scores by stage"):
        claims.read_results([tmp_path])


def test_a_share_alone_is_no_figure_and_older_cells_are_read(tmp_path):
    scores = {"1": {"mean_iou": 0.7}}
    cell = {"segmenter": {"0": {"mean_iou": 0.3}, "1": {"mean_iou": 0.4}}, "pseudo_masks": scores, "configuration": {}}
    cell["settings"] = {"seed": 0, "aux_fraction": 1.0, "target_steps": None, "segmenter_steps": 20, "mode": "weak"}
    (tmp_path / "metrics.json").write_text(json.dumps(cell))
    figures = claims.curves_of(claims.read_results([tmp_path / "metrics.json"]))
    assert set(figures) == {"stages", "steps", "methods"} and list(figures["steps"]["boxes"]) == [20, 40]


def test_generators_of_a_share_stand_beside_the_first_stage_of_all_images(tmp_path):
    boxes = {"1": {"mean_iou": 0.7}, "1 without segmenter": {"mean_iou": 0.1}}
    segmenter = {"segmenter": {"0": {"mean_iou": 0.3}}, "pseudo_masks": {}}
    for name, fraction, more in (("all", 1.0, segmenter), ("third", 0.3, {})):
        cell = {"kind": "generator", "configuration": {}, "boxes": boxes} | more
        cell["settings"] = {"run": {"aux_fraction": fraction}, "segmenter": {"steps": 20}}
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps(cell))
    baseline = {"kind": "baseline", "configuration": {}, "boxes": {"grabcut": {"mean_iou": 0.5}}}
    (tmp_path / "metrics.json").write_text(json.dumps(baseline))
    (curve,) = claims.curves_of(claims.read_results([tmp_path]))["aux_share"].items()
    assert curve == ("masks of measured boxes, stage 1", {100: [70.0], 30: [70.0]})
