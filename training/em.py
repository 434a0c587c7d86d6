"""Trains the stage-wise generators on the auxiliary set (the EM loop, Fig. 1 of the paper).

    accelerate launch training/em.py --config training/configs/quickstart.yaml

Stage 0 trains a segmenter on filled boxes. Each stage s = 1..S then trains an LPG on the auxiliary masks, with the
segmenter of stage s - 1 (E-step), writes pseudo masks with it, and trains segmenter s on them (M-step). Without a
segmenter (`segmenter: null`) one generator is trained that needs no class probability, and nothing else.
Results: RUN/aux/stageK/{lpg,segmenter,pseudo_masks}, RUN/aux/metrics.json, RUN/log.jsonl. The same command continues a
run that was stopped, to the same weights.
"""

import sys
from functools import partial
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lpg_hf.data.load import class_names
from lpg_hf.files import write_json
from training.config import Settings, parse_settings
from training.data import check_num_classes, load_aux
from training.masks import check_distinct
from training.measure import measure_label_maps
from training.models import build_lpg, build_segmenter, load_lpg
from training.stages import (
    add_metrics,
    box_labels,
    finish_run,
    lpg_stage,
    mask_stage,
    once,
    segmenter_stage,
    start_run,
)


def run_em(settings: Settings) -> None:
    """Trains the stages into RUN/aux, or goes on where a run with the same settings stopped.

    Writes `stageK/{lpg,segmenter}` (checkpoints with metrics and card), `stageK/pseudo_masks` (palette PNG), what was measured on them
    (`box_fill.json`, `stageK/pseudo_masks.json`, `metrics.json`) and RUN/log.jsonl.

    Raises:
        ValueError: settings or data do not fit, before any training, or the run was begun with other settings.
        OSError: data, weights or a model are not there.
        FloatingPointError: a loss is not finite.
    """
    accelerator = start_run(settings, "em_settings.json")
    rows = load_aux(accelerator, settings)
    num_labels = len(class_names(rows)) + 1
    if settings.lpg_target == "object" and "mask" in rows.column_names:
        raise ValueError(
            "lpg_target=object, but the auxiliary set has maps of classes, which do not tell objects apart. Set lpg_target to "
            "class, or give a COCO file with masks."
        )
    accelerator.print(f"auxiliary set: {len(rows)} images, {num_labels - 1} classes")
    aux = Path(settings.run_dir) / "aux"
    if settings.segmenter is None:
        lpg_stage(accelerator, settings, rows, None, None, aux / "stage1", stage=1, part="auxiliary")
        finish_run(accelerator)
        return
    check_num_classes(class_names(rows))
    check_distinct(rows["file_name"][:])
    build_segmenter(settings, class_names(rows))  # settings that do not fit fail here, before any training
    build_lpg(settings, settings.stage1_class_prob, None)

    measure = partial(measure_label_maps, accelerator, settings, rows, num_labels)
    box_fill = once(accelerator, aux / "box_fill.json", partial(measure, box_labels))
    metrics = {"box_fill": box_fill, "pseudo_masks": {}}
    segmenter = segmenter_stage(
        accelerator,
        settings,
        rows,
        box_labels,
        None,
        aux / "stage0",
        stage=0,
        num_steps=settings.stage0_steps or settings.segmenter_steps,
        part="auxiliary",
    )
    lpg = None
    for stage in range(1, settings.num_stages + 1):
        folder = aux / f"stage{stage}"
        lpg = lpg_stage(accelerator, settings, rows, segmenter, lpg, folder, stage=stage, part="auxiliary")
        labels = mask_stage(
            accelerator, settings, rows, load_lpg(lpg), segmenter, folder, stage=stage, part="auxiliary"
        )
        measured = once(accelerator, folder / "pseudo_masks.json", partial(measure, labels))
        metrics["pseudo_masks"][str(stage)] = measured
        of_lpg = {"pseudo_mask_miou": measured["mean_iou"], "box_fill_miou": box_fill["mean_iou"]}
        add_metrics(accelerator, lpg, of_lpg | {"measured_on": "the auxiliary images it was trained on"})
        segmenter = segmenter_stage(
            accelerator,
            settings,
            rows,
            labels,
            segmenter,
            folder,
            stage=stage,
            num_steps=settings.segmenter_steps,
            part="auxiliary",
        )
    if accelerator.is_main_process:
        write_json(aux / "metrics.json", metrics)
    of_stages = " / ".join(f"{100 * m['mean_iou']:.1f}" for m in metrics["pseudo_masks"].values())
    accelerator.print(
        f"auxiliary set, training images: box fill {100 * box_fill['mean_iou']:.1f}, "
        f"pseudo masks of stages 1..{settings.num_stages} {of_stages} mIoU"
    )
    finish_run(accelerator)


if __name__ == "__main__":
    try:
        run_em(parse_settings(description=__doc__))
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"em.py: {error}")
