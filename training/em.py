"""Trains the stage-wise generators on the auxiliary set (the EM loop, Fig. 1 of the paper).

    accelerate launch training/em.py --config training/configs/quickstart.yaml

Stage 0 trains a segmenter on filled boxes. Each stage s = 1..S then trains an LPG on the auxiliary masks, with the
segmenter of stage s - 1 (E-step), writes pseudo masks with it, and trains segmenter s on them (M-step). Without a
segmenter (`segmenter.model: null`) one generator is trained that needs no class probability, and nothing else.
Results: RUN/aux/stageK/{lpg,segmenter,pseudo_masks}, RUN/aux/metrics.json, RUN/log.jsonl. The same command resumes a
run that was stopped, to the same weights.
"""

import sys
from functools import partial
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datasets import Dataset

from lpg_hf._files import write_json
from lpg_hf.data.load import class_names
from lpg_hf.training._digests import digests
from lpg_hf.training._labels import box_labels
from lpg_hf.training.config import Settings
from lpg_hf.training.data import check_num_classes, load_aux
from lpg_hf.training.masks import check_distinct
from lpg_hf.training.measure import measure_label_maps
from lpg_hf.training.models import build_lpg, build_segmenter, load_lpg
from lpg_hf.training.parsing import list_configs, parse_settings
from lpg_hf.training.run import Run, alone_in, start_run, stop_on_refusal
from lpg_hf.training.stages import Stage, add_metrics, lpg_stage, mask_stage, segmenter_stage
from lpg_hf.training.steps import check_batch


START = """em.py trains mask generators (LPG) on images with masks: the EM loop, Fig. 1 of the paper. It needs

  images with boxes and masks    --aux.annotations FILE --aux.images DIR --aux.classes all   (or --aux.format voc)
  ImageNet weights               --lpg.weights FILE --segmenter.weights FILE   (or null: from scratch)
  a folder for the results       --run.dir RUN   (the same command resumes a run that was stopped)

What most people want: the demo (make demo is all of it), the paper's experiment (REPRODUCE.md has its data), own masks

  accelerate launch training/em.py --config training/configs/quickstart.yaml
  accelerate launch training/em.py --config training/configs/coco60_voc_largefov.yaml
  lpg-hf finetune my.json --images photos --out my-lpg

"""
CONFIGS = Path(__file__).resolve().parent / "configs"


def run_em(settings: Settings) -> None:
    """Trains the stages into RUN/aux, or resumes a run with the same settings where it stopped.

    Writes `stageK/{lpg,segmenter}` (checkpoints with metrics and card), `stageK/pseudo_masks` (palette PNG), what was
    measured on them (`box_fill.json`, `stageK/pseudo_masks.json`, `metrics.json`) and RUN/log.jsonl.

    Raises:
        ValueError: settings or data do not fit, before any training, or the run was begun with other settings, or
            another process writes to RUN.
        OSError: data, weights or a model are not there.
        FloatingPointError: a loss is not finite.
    """
    run = start_run(settings, "aux/settings.json")
    with alone_in(run.folder):
        _train_stages(run)


def _train_stages(run: Run) -> None:
    """As `run_em`, in a folder that is ours alone."""
    settings = run.settings
    rows = load_aux(run)
    aux, names = run.folder / "aux", class_names(rows)
    run.print(f"auxiliary set: {len(rows)} images, {len(names)} classes")
    _check_before_training(run, rows)
    run.begin(**digests({"aux": rows}))
    if settings.segmenter.model is None:
        lpg_stage(run, Stage("auxiliary", 1, aux / "stage1"), rows, segmenter=None, previous=None)
        run.finish()
        return

    measure = partial(measure_label_maps, run, rows, len(names) + 1)
    box_fill = run.once(aux / "box_fill.json", partial(measure, box_labels))
    metrics = {"box_fill": box_fill, "pseudo_masks": {}}
    steps = settings.segmenter.steps
    stage = Stage("auxiliary", 0, aux / "stage0")
    segmenter = segmenter_stage(run, stage, rows, box_labels, None, settings.segmenter.stage0_steps or steps)
    lpg = None
    for number in range(1, settings.run.num_stages + 1):
        stage = Stage("auxiliary", number, aux / f"stage{number}")
        lpg = lpg_stage(run, stage, rows, segmenter, lpg)  # E-step
        labels = mask_stage(run, stage, rows, load_lpg(lpg), segmenter)
        measured = run.once(stage.folder / "pseudo_masks.json", partial(measure, labels))
        metrics["pseudo_masks"][str(number)] = measured
        scores = {"pseudo_mask_miou": measured["mean_iou"], "box_fill_miou": box_fill["mean_iou"]}
        run.track({f"auxiliary/{name}": score for name, score in scores.items()})
        add_metrics(run, lpg, scores | {"measured_on": "the auxiliary images it was trained on"})
        segmenter = segmenter_stage(run, stage, rows, labels, segmenter, steps)  # M-step
    if run.is_main:
        write_json(aux / "metrics.json", metrics)
    of_stages = [f"{100 * measured['mean_iou']:.1f} (stage {n})" for n, measured in metrics["pseudo_masks"].items()]
    run.print(
        f"auxiliary set, mIoU on its training images: box fill {100 * box_fill['mean_iou']:.1f}, pseudo masks "
        f"{', '.join(of_stages)}"
    )
    run.finish()


def _check_before_training(run: Run, rows: Dataset) -> None:
    """Raises ValueError or OSError if the data and the networks of the settings do not fit."""
    settings, names = run.settings, class_names(rows)
    if settings.lpg.target == "object" and "mask" in rows.column_names:
        raise ValueError(
            "lpg.target=object, but the auxiliary set has maps of classes, which do not tell objects apart. Set "
            "lpg.target to class, or give a COCO file with masks."
        )
    if settings.segmenter.model is not None:
        check_num_classes(names)
        check_distinct(rows["file_name"][:])
        check_batch(run, "segmenter", build_segmenter(settings, names)[0])
    check_batch(run, "lpg", build_lpg(settings, settings.lpg.stage1_class_prob, None))


if __name__ == "__main__":
    screen = f"{START}{list_configs(CONFIGS)}\n\nEvery setting is a flag: em.py --help lists them."
    stop_on_refusal("em.py", lambda: run_em(parse_settings(description=__doc__, start=screen)))
