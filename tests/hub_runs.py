"""Run folders for the tests of the Hub, as training writes them, with networks of a few thousand parameters."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from lpg_hf.hub import write_card


CLASSES = ["cup", "bowl"]
TARGET = {
    "mode": "weak",
    "classes": CLASSES,
    "pseudo_mask_miou": {"1": 0.61, "2": 0.72},
    "segmenter_miou": {"0": 0.41, "1": 0.52, "2": 0.63},
    "box_fill_miou": 0.35,
    "details": {
        "pseudo_masks": {str(s): {"per_class_iou": [0.9, 0.55 + s / 100, 0.8]} for s in (1, 2)},
        "segmenter": {
            str(s): {"per_class_iou": [0.9, 0.7, 0.25 + s / 100], "crf": {"mean_iou": 0.43 + s / 10}} for s in range(3)
        },
    },
    "num_images": {"target": 6, "evaluation": 4},
}


def stage_metrics(kind: str, stage: int) -> dict:
    """`metrics.json` of a stage, as training writes it."""
    metrics = {
        "kind": kind,
        "stage": stage,
        "dataset": "coco nonvoc60" if kind == "lpg" else "voc train",
        "classes": ["bear", "kite", "vase"] if kind == "lpg" else CLASSES,
        "excluded_classes": ["person", "cat"] if kind == "lpg" else None,
        "settings": {
            "run": {"num_stages": 2, "stage_init": "previous"},
            "lpg": {"steps": 5},
            "segmenter": {"model": "deeplab-v2"},
        },
        "device": "cpu",
        "processes": 1,
        "seconds": 1.25,
        "loss": 0.5,
        "versions": {"torch": "2.13.0"},
    }
    if kind == "lpg":
        return metrics | {"pseudo_mask_miou": 0.8 + stage / 100, "measured_on": "the auxiliary images"}
    found = TARGET["segmenter_miou"][str(stage)]
    return metrics | {"segmenter_miou": found, "measured_on": "4 evaluation images"}


def folders(run: Path, num_stages: int = 2) -> list[tuple[str, int, Path]]:
    """(kind, stage, folder) of the stages that a run publishes."""
    lpgs = [("lpg", s, run / f"aux/stage{s}/lpg") for s in range(1, num_stages + 1)]
    return lpgs + [("segmenter", s, run / f"target/stage{s}/segmenter") for s in range(num_stages + 1)]


def finish_run(run: Path, num_stages: int = 2) -> Path:
    """Metrics, cards and panel for a run whose checkpoints are saved."""
    for kind, stage, folder in folders(run, num_stages):
        (folder / "metrics.json").write_text(json.dumps(stage_metrics(kind, stage)), encoding="utf-8")
        write_card(folder)
    (run / "target" / "metrics.json").write_text(json.dumps(TARGET), encoding="utf-8")
    Image.new("RGB", (8, 8), "red").save(run / "target" / "panel.png")
    return run


def write_small_run(run: Path, value: float = 0.0, num_stages: int = 2) -> Path:
    """A run whose weights are four numbers: enough for whatever only moves files.

    Args:
        value: goes into weights and configs, so that runs with other values differ in both.
    """
    for kind, stage, folder in folders(run, num_stages):
        folder.mkdir(parents=True)
        model_type = "lpg" if kind == "lpg" else "deeplab_v2"
        processor = "LPGImageProcessor" if kind == "lpg" else "SegformerImageProcessor"
        config = {"model_type": model_type, "use_class_prob": stage > 1, "value": value}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": processor}))
        save_file({"weight": np.full(4, stage + value, np.float32)}, folder / "model.safetensors")
    return finish_run(run, num_stages)


def write_real_run(run: Path) -> Path:
    """A run of two stages with tiny networks, which load and compute."""
    import torch
    from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

    from lpg_hf import DeepLabV2Config, DeepLabV2ForSemanticSegmentation, LPGConfig, LPGImageProcessor, LPGModel

    small = {"embedding_size": 4, "hidden_sizes": (4, 4), "depths": (1, 1), "neck_size": 4, "head_size": 4}
    names = dict(enumerate(["background", *CLASSES]))
    torch.manual_seed(0)
    for kind, stage, folder in folders(run):
        if kind == "lpg":
            LPGModel(LPGConfig(use_class_prob=stage > 1, **small)).save_pretrained(folder)
            LPGImageProcessor().save_pretrained(folder)
        else:
            config = DeepLabV2Config(
                block="basic",
                depths=(1, 1, 1, 1),
                stem_size=4,
                hidden_sizes=(4, 4, 4, 4),
                id2label=names,
                label2id={name: i for i, name in names.items()},
            )
            DeepLabV2ForSemanticSegmentation(config).save_pretrained(folder)
            SegformerImageProcessorPil(do_resize=False).save_pretrained(folder)
    return finish_run(run)
