"""One stage's parts, each finished once its folder exists: segmenter (M-step), LPG (E-step), pseudo masks."""

import dataclasses
import json
import os
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import parse_flag_from_env
from datasets import Dataset

from lpg_hf.data.examples import box_label_map
from lpg_hf.data.load import class_names
from lpg_hf.devices import resolve_dtype, usable_device
from lpg_hf.files import write_json
from lpg_hf.hub import write_card
from lpg_hf.label_maps import mask_name, read_label_map
from lpg_hf.labels import COCO_CLASSES, COCO_VOC_IDS
from lpg_hf.models.image_processing_lpg import LPGImageProcessor
from lpg_hf.models.modeling_lpg import LPGModel
from training.config import Settings, check_same_run
from training.masks import cache_class_probs, write_pseudo_masks
from training.models import (
    OWN_SEGMENTERS,
    Normalization,
    build_lpg,
    build_segmenter,
    load_segmenter,
    lpg_processor,
    package_versions,
    save_stage,
)
from training.samples import LPGViews, SegmenterCrops
from training.steps import remove_checkpoints, train_lpg, train_segmenter


Labels = Callable[[int, dict], np.ndarray]


def start_run(settings: Settings, record: str) -> Accelerator:
    """The accelerator of a run whose settings are kept in `run_dir/record`."""
    # Some segmenters of transformers have an auxiliary head that takes no part in the loss, some backbones a last norm.
    unused_parameters = settings.segmenter not in OWN_SEGMENTERS or settings.lpg_backbone == "auto"
    accelerator = Accelerator(
        mixed_precision=usable_precision(settings.mixed_precision),
        log_with=settings.log_with,
        project_dir=settings.run_dir,
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=timedelta(hours=6)),  # one process may build data while the others wait
            DistributedDataParallelKwargs(find_unused_parameters=unused_parameters),
        ],
    )
    if accelerator.device.type == "cpu":  # accelerate launch allows a process one thread unless told otherwise
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(settings.num_threads or max(1, cores // accelerator.num_processes))
    with accelerator.main_process_first():
        check_same_run(settings, Path(settings.run_dir) / record)
    if settings.log_with is not None:
        scalars = {k: v for k, v in dataclasses.asdict(settings).items() if isinstance(v, (int, float, str, bool))}
        accelerator.init_trackers(Path(settings.run_dir).name, config=scalars)
    return accelerator


def usable_precision(mixed_precision: str) -> str:
    """`mixed_precision` with auto resolved for this process's device; bf16 on a CPU that must emulate it is warned of."""
    device = "cpu" if parse_flag_from_env("ACCELERATE_USE_CPU") else usable_device()
    native = resolve_dtype("auto", device) == torch.bfloat16
    if mixed_precision == "bf16" and device == "cpu" and not native:
        warnings.warn(
            "mixed_precision=bf16, but this CPU has no bfloat16 instructions and emulates them, many times slower than "
            "float32. Set mixed_precision to auto or no.",
            stacklevel=2,
        )
    return ("bf16" if native else "no") if mixed_precision == "auto" else mixed_precision


def finish_run(accelerator: Accelerator) -> None:
    """The order in which gloo processes end cleanly."""
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    accelerator.end_training()


def segmenter_stage(
    accelerator: Accelerator,
    settings: Settings,
    rows: Dataset,
    labels: Labels,
    previous: Path | None,
    folder: Path,
    *,
    stage: int,
    num_steps: int,
    part: str,
) -> Path:
    """M-step: trains the segmenter on `labels` and saves it to `folder/segmenter`.

    Args:
        labels: `(row index, row) -> (H, W) uint8` label map.
        previous: segmenter to start from; None: the initial weights.
        part: "auxiliary", or the name of the target's folder; names the phase in log and progress bar.
    """
    result, checkpoints = folder / "segmenter", folder / "segmenter_checkpoints"
    if result.is_dir():
        remove_checkpoints(accelerator, checkpoints)  # of a run that was killed after the stage was saved
        return result
    phase = f"{part} stage {stage} segmenter"
    names = class_names(rows)
    model, processor = build_segmenter(settings, names)
    if previous is not None and settings.stage_init == "previous":
        model.load_state_dict(load_segmenter(previous)[0].state_dict())
    samples = SegmenterCrops(rows, Normalization.of(processor), settings, phase, labels)
    trained = train_segmenter(accelerator, settings, model, samples, phase, checkpoints, num_steps)
    if accelerator.is_main_process:
        trained |= compute_used(accelerator)
        save_stage(result, model, processor, stage_metrics("segmenter", stage, part, names, settings, trained))
    accelerator.wait_for_everyone()
    remove_checkpoints(accelerator, checkpoints)
    return result


def lpg_stage(
    accelerator: Accelerator,
    settings: Settings,
    rows: Dataset,
    segmenter: Path | None,
    previous: Path | None,
    folder: Path,
    *,
    stage: int,
    part: str,
) -> Path:
    """E-step: trains the LPG of a stage on the auxiliary masks and saves it to `folder/lpg`.

    The segmenter is frozen, so it runs once over the images before the loop and never inside it.

    Args:
        segmenter: the stage before's, which gives the class probability; None for a generator without it.
        previous: LPG of the stage before; None in stage 1.
    """
    result, checkpoints = folder / "lpg", folder / "lpg_checkpoints"
    if result.is_dir():
        remove_checkpoints(accelerator, checkpoints)
        return result
    phase = f"{part} stage {stage} LPG"
    use_class_prob = stage > 1 or settings.stage1_class_prob
    processor = lpg_processor(settings)
    model = build_lpg(settings, use_class_prob, previous if settings.stage_init == "previous" else None)
    probs = class_probs(accelerator, settings, rows, segmenter, folder, phase) if use_class_prob else None
    samples = LPGViews(rows, processor, settings, phase, probs)
    trained = train_lpg(accelerator, settings, model, samples, phase, checkpoints)
    if accelerator.is_main_process:
        trained |= compute_used(accelerator)
        metrics = stage_metrics("lpg", stage, part, class_names(rows), settings, trained)
        save_stage(result, model, processor, metrics)
    accelerator.wait_for_everyone()
    remove_checkpoints(accelerator, checkpoints)
    return result


def class_probs(
    accelerator: Accelerator, settings: Settings, rows: Dataset, segmenter: Path, folder: Path, phase: str
):
    """Cached probabilities of a frozen segmenter for all rows; E-step and mask writing share them."""
    return cache_class_probs(
        accelerator, settings, lambda: load_segmenter(segmenter), rows, folder, f"{phase}: class probabilities"
    )


def mask_stage(
    accelerator: Accelerator,
    settings: Settings,
    rows: Dataset,
    lpg: tuple[LPGModel, LPGImageProcessor],
    segmenter: Path,
    folder: Path,
    *,
    stage: int,
    part: str,
) -> Labels:
    """Between E-step and M-step: writes the pseudo masks of a stage to `folder/pseudo_masks`.

    Args:
        segmenter: the stage before's, asked if the LPG takes a class probability.

    Returns:
        The masks as labels for `segmenter_stage` and `measure_label_maps`.
    """
    model, processor = lpg
    phase, masks, probs = f"{part} stage {stage}", folder / "pseudo_masks", None
    if model.config.use_class_prob:
        probs = class_probs(accelerator, settings, rows, segmenter, folder, phase)
    write_pseudo_masks(accelerator, settings, model, processor, rows, probs, masks, f"{phase} pseudo masks")
    return mask_labels(masks)


def box_labels(index: int, row: dict) -> np.ndarray:
    """Label map of filled boxes."""
    return box_label_map(row)


def mask_labels(folder: Path) -> Labels:
    """Label maps from a folder of pseudo masks."""
    return lambda index, row: read_label_map(folder / mask_name(row["file_name"]))


def stage_metrics(kind: str, stage: int, part: str, names: list[str], settings: Settings, trained: dict) -> dict:
    """`metrics.json` of a stage folder: what it was trained on, how, and what came out.

    Args:
        part: "auxiliary", or the name of the target's folder.
        trained: loss, seconds and `compute_used`.
    """
    auxiliary = part == "auxiliary"
    if auxiliary:
        dataset = f"{settings.aux_format} {settings.aux_classes or settings.aux_split or 'all classes'}"
    else:
        dataset = f"{settings.target_format} {settings.target_split or 'target'}"
    excluded = [name for index, name in COCO_CLASSES if index in COCO_VOC_IDS]
    return {
        "kind": kind,
        "stage": stage,
        "dataset": dataset,
        "classes": names,
        "excluded_classes": excluded if auxiliary and settings.aux_classes == "nonvoc60" else None,
        "settings": public_settings(settings),
        **trained,
        "versions": package_versions(),
    }


def compute_used(accelerator: Accelerator) -> dict:
    """The kind of machine that a stage was trained on, for its card."""
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "device": name,
        "processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
    }


def add_metrics(accelerator: Accelerator, folder: Path, values: dict) -> None:
    """Adds what was measured later to a stage's `metrics.json` and card."""
    if accelerator.is_main_process:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        if any(metrics.get(name) != value for name, value in values.items()):
            write_json(folder / "metrics.json", metrics | values)
            write_card(folder)


def once(accelerator: Accelerator, path: Path, measure: Callable[[], dict]) -> dict:
    """What `measure` gives, kept in a file, so that a run that goes on does not measure again."""
    if not path.is_file():
        result = measure()
        if accelerator.is_main_process:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, result)
        accelerator.wait_for_everyone()
    return json.loads(path.read_text(encoding="utf-8"))


def public_settings(settings: Settings) -> dict:
    """The settings without this machine's folders: of a local path only the last part is kept."""
    values = dataclasses.asdict(settings)
    for name, value in values.items():
        if isinstance(value, str) and ("/" in value or "\\" in value) and Path(value).expanduser().exists():
            values[name] = Path(value).name
    return values
