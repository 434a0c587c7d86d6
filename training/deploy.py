"""Uses stage-wise generators on a box-annotated target set (Fig. 2 of the paper).

    accelerate launch training/deploy.py --config training/configs/quickstart.yaml

Stage 0 trains a segmenter on filled boxes; each stage s = 1..S writes pseudo masks with the given LPG_s and the
segmenter of stage s - 1, and trains segmenter s on them. `--mode semi` lets the images of `semi_split` keep their
ground truth, `--mode full` trains on ground truth alone, for as many rounds (the upper bound).
Results: RUN/target/stageK/{segmenter,pseudo_masks}, RUN/target/{metrics.json,table.md,panel.png}; in the other modes
below RUN/target_semi and RUN/target_full.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from accelerate import Accelerator
from datasets import Dataset

from lpg_hf.data.examples import label_map
from lpg_hf.data.load import class_names
from lpg_hf.files import write_json
from training.config import Settings, parse_settings
from training.data import check_num_classes, check_same_classes, load_eval, load_semi, load_target
from training.masks import check_distinct
from training.measure import measure_label_maps, measure_segmenter
from training.models import build_segmenter, load_lpg, load_segmenter, package_versions
from training.report import write_panel, write_table
from training.stages import (
    Labels,
    add_metrics,
    box_labels,
    finish_run,
    mask_stage,
    once,
    public_settings,
    segmenter_stage,
    start_run,
)


def stage_source(settings: Settings, stage: int) -> str:
    """Folder or Hub id of a stage's LPG: RUN/aux/stageK/lpg of a run folder, ORG/PREFIX-stageK on the Hub."""
    stages = settings.stages or settings.run_dir
    folder = Path(stages).expanduser() / "aux" / f"stage{stage}" / "lpg"
    if folder.is_dir():
        return str(folder)
    if settings.stages is None or Path(stages).expanduser().exists() or stages.count("/") != 1:
        raise FileNotFoundError(
            f"There is no LPG of stage {stage} in {folder}. Run training/em.py with the same run_dir first, or give "
            "--stages a run folder or a Hub prefix like org/lpg."
        )
    return f"{stages}-stage{stage}"


def supervision(accelerator: Accelerator, settings: Settings, rows: Dataset) -> Callable[[Labels], Labels]:
    """The mode: from the labels of a stage to those trained on, which are ground truth for the images that keep it.

    Args:
        rows: with masks in mode full.

    Raises:
        ValueError: no image keeps its ground truth in mode semi, or the classes of that part are others.
    """
    if settings.mode == "weak":
        return lambda labels: labels
    if settings.mode == "full":
        return lambda labels: lambda index, row: label_map(row)
    semi_rows = load_semi(accelerator, settings)
    check_same_classes(rows, semi_rows, "target set and its part with ground truth")
    semi_index = {file_name: index for index, file_name in enumerate(semi_rows["file_name"][:])}
    num_kept = len(set(semi_index) & set(rows["file_name"][:]))
    if num_kept == 0:
        raise ValueError(
            f"mode=semi, but no image of semi_split={settings.semi_split} ({semi_rows['file_name'][0]}, ...) is a target image "
            f"({rows['file_name'][0]}, ...): the images must be in both, under the same names. Correct semi_split, or set mode to "
            "weak."
        )
    accelerator.print(f"ground truth is kept by {num_kept} target images")

    def supervised(labels: Labels) -> Labels:
        def labels_or_truth(index: int, row: dict):
            kept = semi_index.get(row["file_name"])
            return labels(index, row) if kept is None else label_map(semi_rows[kept])

        return labels_or_truth

    return supervised


def measured_stage(
    accelerator: Accelerator, settings: Settings, segmenter: Path, eval_rows: Dataset, folder: Path, phase: str
) -> dict:
    """What `measure_segmenter` says of a stage's segmenter, kept in `folder` and added to the segmenter's metrics and card."""

    def measure() -> dict:
        return measure_segmenter(accelerator, settings, *load_segmenter(segmenter), eval_rows, f"{phase} measured")

    measured = once(accelerator, folder / f"segmenter{'_crf' if settings.crf else ''}.json", measure)
    of_segmenter = {"segmenter_miou": measured["mean_iou"], "measured_on": f"{len(eval_rows)} evaluation images"}
    if "crf" in measured:
        of_segmenter["segmenter_crf_miou"] = measured["crf"]["mean_iou"]
    add_metrics(accelerator, segmenter, of_segmenter)
    accelerator.print(f"{phase}: segmenter {100 * measured['mean_iou']:.1f} mIoU")
    return measured


def run_deploy(settings: Settings) -> dict:
    """Trains and measures the rounds of a mode, or goes on where a run with the same settings stopped.

    Writes, below RUN/target (RUN/target_semi, RUN/target_full): `stageK/segmenter` (a checkpoint with metrics and card),
    `stageK/pseudo_masks` (palette PNG), what was measured on them (`box_fill.json`, `stageK/pseudo_masks.json`,
    `stageK/segmenter.json` or `segmenter_crf.json`), and `metrics.json`, `table.md` and `panel.png`.

    Returns:
        What `metrics.json` holds.

    Raises:
        ValueError: settings or data do not fit, before any training, or the run was begun with other settings.
        OSError: data, weights or the LPG of a stage are not there.
        FloatingPointError: a loss is not finite.
    """
    if settings.segmenter is None:
        raise ValueError("segmenter is null: name the segmenter that is to be trained on the target set.")
    name = "target" if settings.mode == "weak" else f"target_{settings.mode}"
    target = Path(settings.run_dir) / name
    accelerator = start_run(settings, f"{name}/settings.json")
    num_rounds = settings.num_stages + 1
    sources = (
        [stage_source(settings, settings.fixed_stage or s) for s in range(1, num_rounds)]
        if settings.mode != "full"
        else []
    )
    generators = [load_lpg(source, settings.stages_revision) for source in sources]

    rows = load_target(accelerator, settings, masks=settings.mode == "full")
    names = class_names(rows)
    check_num_classes(names)
    check_distinct(rows["file_name"][:])
    num_labels = len(names) + 1
    build_segmenter(settings, names)
    eval_rows = load_eval(accelerator, settings) if settings.measure_segmenter else None
    measured_on = "the segmenter is not measured"
    if eval_rows is not None:
        check_same_classes(rows, eval_rows, "target set and evaluation set")
        measured_on = f"measured on {len(eval_rows)} images that hold the classes"
    accelerator.print(f"target set: {len(rows)} images, {num_labels - 1} classes; {measured_on}")
    supervised = supervision(accelerator, settings, rows)
    truth_rows = load_target(accelerator, settings, masks=True) if settings.measure_masks else None

    metrics = {
        "mode": settings.mode,
        "classes": names,
        "pseudo_mask_miou": {},
        "segmenter_miou": {},
        "box_fill_miou": None,
        "details": {"pseudo_masks": {}, "segmenter": {}},
    }
    measure_masks = partial(measure_label_maps, accelerator, settings, truth_rows, num_labels)
    if truth_rows is not None:
        filled = once(accelerator, target / "box_fill.json", partial(measure_masks, box_labels))
        metrics["box_fill_miou"], metrics["details"]["box_fill"] = filled["mean_iou"], filled

    segmenter = None
    for stage in range(num_rounds):
        folder = target / f"stage{stage}"
        labels = box_labels
        if stage > 0 and settings.mode != "full":
            labels = mask_stage(
                accelerator, settings, rows, generators[stage - 1], segmenter, folder, stage=stage, part="target"
            )
            if truth_rows is not None:
                measured = once(accelerator, folder / "pseudo_masks.json", partial(measure_masks, labels))
                metrics["pseudo_mask_miou"][str(stage)] = measured["mean_iou"]
                metrics["details"]["pseudo_masks"][str(stage)] = measured
        segmenter = segmenter_stage(
            accelerator,
            settings,
            rows,
            supervised(labels),
            segmenter,
            folder,
            stage=stage,
            num_steps=settings.target_steps or settings.segmenter_steps,
            part=name,
        )
        if eval_rows is not None:
            measured = measured_stage(accelerator, settings, segmenter, eval_rows, folder, f"{name} stage {stage}")
            metrics["segmenter_miou"][str(stage)] = measured["mean_iou"]
            metrics["details"]["segmenter"][str(stage)] = measured

    metrics |= {
        "num_images": {"target": len(rows), "evaluation": len(eval_rows or ())},
        "settings": public_settings(settings),
        "versions": package_versions(),
    }
    if accelerator.is_main_process:
        write_json(target / "metrics.json", metrics)
        write_table(target / "table.md", metrics)
        write_panel(target / "panel.png", truth_rows if truth_rows is not None else rows, target, settings.num_stages)
        print((target / "table.md").read_text(encoding="utf-8"))
        print(f"Written: {target / 'metrics.json'}, table.md and panel.png beside it.")
    finish_run(accelerator)
    return metrics


if __name__ == "__main__":
    try:
        run_deploy(parse_settings(description=__doc__))
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"deploy.py: {error}")
