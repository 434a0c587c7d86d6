"""What a stage consists of, each finished once its folder exists: segmenter (M-step), LPG (E-step), pseudo masks."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset

from lpg_hf._files import write_json
from lpg_hf.data.load import class_names
from lpg_hf.hub import write_card
from lpg_hf.labels import COCO_CLASSES, COCO_VOC_IDS
from lpg_hf.models.image_processing_lpg import LPGImageProcessor
from lpg_hf.models.modeling_lpg import LPGModel
from lpg_hf.training._label_sources.base import LabelSource
from lpg_hf.training._labels import Labels, MaskLabels
from lpg_hf.training._samples import LPGViews, SegmenterCrops
from lpg_hf.training.config import public_settings
from lpg_hf.training.masks import (
    ClassProbs,
    cache_class_probs,
    frozen_segmenter,
    masks_are_finished,
    write_pseudo_masks,
    write_source_labels,
)
from lpg_hf.training.models import (
    Normalization,
    build_lpg,
    build_segmenter,
    load_segmenter,
    lpg_processor,
    package_versions,
    save_stage,
)
from lpg_hf.training.run import Run
from lpg_hf.training.steps import remove_checkpoints, train_lpg, train_segmenter


@dataclass(frozen=True)
class Stage:
    """A stage of em.py or a round of deploy.py.

    Attributes:
        dataset: "auxiliary", or the name of the target's folder: target, target_semi or target_full.
        number: from 0, which has no LPG.
        folder: `stageK` of the run.
    """

    dataset: str
    number: int
    folder: Path

    @property
    def name(self) -> str:
        """In log and progress bars."""
        return f"{self.dataset} stage {self.number}"


def segmenter_stage(
    run: Run, stage: Stage, rows: Dataset, labels: Labels, previous: Path | None, num_steps: int
) -> Path:
    """M-step: trains the segmenter on `labels` and saves it to `segmenter` in the stage's folder.

    Args:
        previous: segmenter to start from; None: the initial weights.
    """
    result, checkpoints = stage.folder / "segmenter", stage.folder / "segmenter_checkpoints"
    if not result.is_dir():
        settings, names, phase = run.settings, class_names(rows), f"{stage.name} segmenter"
        model, processor = build_segmenter(settings, names)
        if previous is not None and settings.run.stage_init == "previous":
            model.load_state_dict(load_segmenter(previous)[0].state_dict())
        samples = SegmenterCrops(rows, Normalization.of(processor), settings, phase, labels)
        trained = train_segmenter(run, model, samples, phase, checkpoints, num_steps)
        if run.is_main:
            save_stage(result, model, processor, _stage_metrics(run, stage, "segmenter", names, trained))
        run.wait_for(result)
    remove_checkpoints(run, checkpoints)  # also those of a run that was killed after the stage was saved
    run.phases.append(num_steps)
    return result


def lpg_stage(run: Run, stage: Stage, rows: Dataset, segmenter: Path | None, previous: Path | None) -> Path:
    """E-step: trains the LPG of a stage on the auxiliary masks and saves it to `lpg` in the stage's folder.

    The segmenter is frozen, so it runs once over the images before the loop and never inside it.

    Args:
        segmenter: of the stage before, which gives the class probability; None for a generator without it.
        previous: LPG of the stage before; None in stage 1.
    """
    result, checkpoints = stage.folder / "lpg", stage.folder / "lpg_checkpoints"
    if not result.is_dir():
        settings, phase = run.settings, f"{stage.name} LPG"
        use_class_prob = stage.number > 1 or settings.lpg.stage1_class_prob
        processor = lpg_processor(settings)
        model = build_lpg(settings, use_class_prob, previous if settings.run.stage_init == "previous" else None)
        probs = _class_probs(run, stage, rows, segmenter) if use_class_prob else None
        samples = LPGViews(rows, processor, settings, phase, probs)
        trained = train_lpg(run, model, samples, phase, checkpoints)
        if run.is_main:
            save_stage(result, model, processor, _stage_metrics(run, stage, "lpg", class_names(rows), trained))
        run.wait_for(result)
    remove_checkpoints(run, checkpoints)
    run.phases.append(run.settings.lpg.steps)
    return result


def mask_stage(
    run: Run, stage: Stage, rows: Dataset, lpg: tuple[LPGModel, LPGImageProcessor], segmenter: Path | None
) -> Labels:
    """Between E-step and M-step: writes the pseudo masks of a stage to `pseudo_masks` in the stage's folder.

    Args:
        segmenter: of the stage before, needed if the LPG takes a class probability.

    Returns:
        The masks as labels for `segmenter_stage` and `measure_label_maps`.

    Raises:
        ValueError: the folder holds the masks of another LPG.
    """
    model, processor = lpg
    folder = stage.folder / "pseudo_masks"
    if not masks_are_finished(folder, model, processor):
        probs = _class_probs(run, stage, rows, segmenter) if model.config.use_class_prob else None
        write_pseudo_masks(run, model, processor, rows, probs, folder, f"{stage.name} pseudo masks")
    return MaskLabels(folder)


def source_stage(run: Run, stage: Stage, rows: Dataset, source: LabelSource, segmenter: Path | None) -> Labels:
    """Before a round's M-step: writes the labels of a source to `pseudo_masks` in the stage's folder.

    Args:
        source: one that does not refine writes in round 0 only; the later rounds have the same labels.
        segmenter: of the stage before; None in round 0.

    Returns:
        The labels for `segmenter_stage` and `measure_label_maps`.
    """
    first = stage.folder.parent / "stage0"
    folder = (stage.folder if source.refines else first) / "pseudo_masks"
    if not (folder / "complete.json").is_file():
        before = None
        if source.refines and segmenter is not None:
            before = frozen_segmenter(run, *load_segmenter(segmenter))
        write_source_labels(run, source, rows, before, folder, f"{stage.name} labels")
    return source.labels(folder, run.settings.run.seed)


def _class_probs(run: Run, stage: Stage, rows: Dataset, segmenter: Path | None) -> ClassProbs:
    """Cached probabilities of a frozen segmenter for all rows; E-step and mask writing share them."""
    assert segmenter is not None  # each stage that takes a class probability comes after a segmenter
    description = f"{stage.name}: class probabilities"
    return cache_class_probs(run, lambda: load_segmenter(segmenter), rows, stage.folder, description)


def _stage_metrics(run: Run, stage: Stage, kind: str, names: list[str], trained: dict) -> dict:
    """`metrics.json` of a stage: what it was trained on, how, and what came out.

    Args:
        kind: lpg or segmenter.
        names: of the classes.
        trained: loss and seconds.
    """
    auxiliary, settings = stage.dataset == "auxiliary", run.settings
    data = settings.aux if auxiliary else settings.target
    classes = list(data.classes) if isinstance(data.classes, tuple) else data.classes
    of = (classes or data.split or "all classes") if auxiliary else (data.split or "target")
    excluded = [name for index, name in COCO_CLASSES if index in COCO_VOC_IDS]
    device = run.accelerator.device
    return {
        "kind": kind,
        "stage": stage.number,
        "dataset": f"{data.format} {of}",
        "classes": names,
        "excluded_classes": excluded if auxiliary and data.classes == "nonvoc60" else None,
        "settings": public_settings(settings),
        **trained,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": run.accelerator.num_processes,
        "mixed_precision": run.accelerator.mixed_precision,
        "versions": package_versions(),
    }


def add_metrics(run: Run, folder: Path, values: dict) -> None:
    """Adds what was measured later to a stage's `metrics.json` and card."""
    if run.is_main:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        if any(metrics.get(name) != value for name, value in values.items()):
            write_json(folder / "metrics.json", metrics | values)
            write_card(folder)
