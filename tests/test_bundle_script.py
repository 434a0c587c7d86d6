import json

import pytest
import torch

from benchmarks.lpg_small import bundle
from lpg_hf import LPGConfig, LPGImageProcessor, LPGModel


@pytest.fixture
def stage(tmp_path):
    torch.manual_seed(0)
    sizes = {"embedding_size": 4, "hidden_sizes": (6, 8), "depths": (1, 1), "neck_size": 8, "head_size": 6}
    model = LPGModel(LPGConfig(use_class_prob=False, object_loss_weight=1.2, **sizes)).half().float().eval()
    LPGImageProcessor(view="box", view_size=32).save_pretrained(tmp_path / "stage")
    model.save_pretrained(tmp_path / "stage")
    metrics = {"kind": "lpg", "stage": 1, "settings": {}, "foreground_iou": {"here": 0.5}}
    (tmp_path / "stage" / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    return tmp_path / "stage"


def logit(folder) -> torch.Tensor:
    model, seen = LPGModel.from_pretrained(folder, dtype=torch.float32), torch.Generator().manual_seed(1)
    with torch.no_grad():
        logits = model(torch.randn(1, 3, 32, 32, generator=seen), torch.ones(1, 1, 32, 32)).logits
    return logits[0, 1] - logits[0, 0]


def test_a_stage_gets_another_weight_of_the_object_and_edges_after_training(stage, tmp_path):
    """The odds that a loss asks for are those of the object times its weight."""
    bundle(stage, {}, {}, tmp_path / "new", object_weight=1.8, edge_radius=2)
    torch.testing.assert_close(
        (logit(tmp_path / "new") - logit(stage)).exp(), torch.full((8, 8), 1.5), atol=3e-3, rtol=0
    )
    assert LPGConfig.from_pretrained(tmp_path / "new").object_loss_weight == 1.8
    assert LPGImageProcessor.from_pretrained(tmp_path / "new").edge_radius == 2
    metrics = json.loads((tmp_path / "new" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["after_training_object_loss_weight"] == 1.8 and metrics["after_training_edge_radius"] == 2
    assert metrics["foreground_iou"] == {"here": 0.5}  # nothing was measured anew
    card = (tmp_path / "new" / "README.md").read_text(encoding="utf-8")
    assert "Set after training: object_loss_weight 1.8, edge_radius 2." in card


def test_a_stage_is_bundled_as_it_is_with_what_was_measured(stage, tmp_path):
    rows = [
        {"generator": "lpg", "scores": {"foreground_iou": 0.71234, "mean_box_iou": 0.6}},
        {"generator": "box", "scores": {"foreground_iou": 0.3, "mean_box_iou": 0.2}},
    ]
    (tmp_path / "voc.json").write_text(json.dumps({"rows": rows}), encoding="utf-8")
    measured, twins = {"VOC": tmp_path / "voc.json"}, {"a twin": tmp_path / "voc.json"}
    bundle(stage, measured, twins, tmp_path / "new")
    assert torch.equal(logit(tmp_path / "new"), logit(stage))
    metrics = json.loads((tmp_path / "new" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["foreground_iou"] == {"VOC": 0.7123} and metrics["baseline_box_mean_box_iou"] == {"VOC": 0.2}
    assert metrics["baseline_unseen_classes_twin_mean_box_iou"] == {"a twin": 0.6} and metrics["measured_on"] == "VOC"
    assert "0.7123" in (tmp_path / "new" / "README.md").read_text(encoding="utf-8")
