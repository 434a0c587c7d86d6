"""Uses stage-wise generators on a box-annotated target set (Fig. 2 of the paper).

    accelerate launch training/deploy.py --config training/configs/quickstart.yaml

Stage 0 trains a segmenter on filled boxes; each stage s = 1..S writes pseudo masks with the given LPG_s and the
segmenter of stage s - 1, and trains segmenter s on them. `--mode semi` lets the images of `semi_split` keep their
ground truth, `--mode full` trains on ground truth alone, for as many rounds (the upper bound).
Results: RUN/target/stageK/{segmenter,pseudo_masks}, RUN/target/{metrics.json,table.md,panel.png}; in the other modes
below RUN/target_semi and RUN/target_full.
"""

import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lpg_hf.data.examples import box_label_map, label_map
from lpg_hf.data.load import class_names
from training.config import Settings, parse_settings
from training.data import check_num_classes, check_same_classes, load_eval, load_semi, load_target
from training.masks import check_distinct, write_pseudo_masks
from training.measure import measure_label_maps, measure_segmenter
from training.models import build_segmenter, load_lpg, load_segmenter, package_versions, write_json
from training.report import write_panel, write_table
from training.stages import (
    add_metrics,
    class_probs,
    finish_run,
    mask_labels,
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


def run_deploy(settings: Settings) -> dict:
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
    if eval_rows is not None:
        check_same_classes(rows, eval_rows, "target set and evaluation set")
    measured_on = "the segmenter is not measured"
    if eval_rows is not None:
        measured_on = f"measured on {len(eval_rows)} images that hold the classes"
    accelerator.print(f"target set: {len(rows)} images, {num_labels - 1} classes; {measured_on}")
    semi_rows, semi_index = None, {}
    if settings.mode == "semi":
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

    def box_labels(index: int, row: dict):
        return box_label_map(row)

    def supervised(labels):
        """The mode's labels: ground truth for the images that keep it, `labels` for the others."""
        if settings.mode == "full":
            return lambda index, row: label_map(row)

        def labels_or_truth(index: int, row: dict):
            kept = semi_index.get(row["file_name"])
            return labels(index, row) if kept is None else label_map(semi_rows[kept])

        return labels_or_truth

    truth_rows = load_target(accelerator, settings, masks=True) if settings.measure_masks else None
    metrics = {
        "mode": settings.mode,
        "classes": names,
        "pseudo_mask_miou": {},
        "segmenter_miou": {},
        "box_fill_miou": None,
        "details": {"pseudo_masks": {}, "segmenter": {}},
    }
    if truth_rows is not None:

        def measure_masks(labels) -> dict:
            return measure_label_maps(accelerator, settings, truth_rows, num_labels, labels)

        filled = once(accelerator, target / "box_fill.json", lambda: measure_masks(box_labels))
        metrics["box_fill_miou"], metrics["details"]["box_fill"] = filled["mean_iou"], filled

    segmenter = None
    for stage in range(num_rounds):
        folder = target / f"stage{stage}"
        labels = box_labels
        if stage > 0 and settings.mode != "full":
            model, processor = generators[stage - 1]
            probs = None
            if model.config.use_class_prob:
                probs = class_probs(accelerator, settings, rows, segmenter, folder, f"target stage {stage}")
            masks = folder / "pseudo_masks"
            write_pseudo_masks(
                accelerator, settings, model, processor, rows, probs, masks, f"target stage {stage} pseudo masks"
            )
            labels = mask_labels(masks)
            if truth_rows is not None:
                measured = once(accelerator, folder / "pseudo_masks.json", lambda labels=labels: measure_masks(labels))
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
        if eval_rows is None:
            continue

        def measure(segmenter: Path = segmenter, stage: int = stage) -> dict:
            return measure_segmenter(
                accelerator, settings, *load_segmenter(segmenter), eval_rows, f"{name} stage {stage} measured"
            )

        measured = once(accelerator, folder / f"segmenter{'_crf' if settings.crf else ''}.json", measure)
        metrics["segmenter_miou"][str(stage)] = measured["mean_iou"]
        metrics["details"]["segmenter"][str(stage)] = measured
        of_segmenter = {"segmenter_miou": measured["mean_iou"], "measured_on": f"{len(eval_rows)} evaluation images"}
        if "crf" in measured:
            of_segmenter["segmenter_crf_miou"] = measured["crf"]["mean_iou"]
        add_metrics(accelerator, segmenter, of_segmenter)
        accelerator.print(f"{name} stage {stage}: segmenter {100 * measured['mean_iou']:.1f} mIoU")

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
