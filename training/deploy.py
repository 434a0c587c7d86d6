"""Uses stage-wise generators on a box-annotated target set (Fig. 2 of the paper).

    accelerate launch training/deploy.py --config training/configs/quickstart.yaml

Stage 0 trains a segmenter on filled boxes; each stage s = 1..S writes pseudo masks with the given LPG_s and the
segmenter of stage s - 1, and trains segmenter s on them. `--run.mode semi` lets the images of `run.semi_split` keep
their ground truth, `--run.mode full` trains on ground truth alone, for as many rounds (the upper bound).
`--run.labels SOURCE` trains on the labels of a compared method instead of an LPG's (docs/label_sources.md).
Results: RUN/target/stageK/{segmenter,pseudo_masks}, RUN/target/{metrics.json,table.md,panel.png}; in the other modes
below RUN/target_semi and RUN/target_full.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from datasets import Dataset

from lpg_hf.data.load import class_names
from lpg_hf.generators.bundle import named_stage
from lpg_hf.generators.crf import dense_crf
from lpg_hf.training._digests import digests
from lpg_hf.training._label_sources import load_label_source
from lpg_hf.training._labels import Labels, SemiLabels, box_labels, true_labels
from lpg_hf.training.config import Settings
from lpg_hf.training.data import check_num_classes, check_same_classes, load_eval, load_semi, load_target
from lpg_hf.training.masks import check_distinct
from lpg_hf.training.models import build_segmenter, load_lpg
from lpg_hf.training.parsing import list_configs, parse_settings
from lpg_hf.training.report import DeployScores
from lpg_hf.training.run import Run, alone_in, start_run, stop_on_refusal
from lpg_hf.training.stages import Stage, mask_stage, segmenter_stage, source_stage
from lpg_hf.training.steps import check_batch


START = """deploy.py makes masks from boxes with the generators of a run, and trains a segmenter on them (Fig. 2).

It needs

  images with boxes              --target.root DIR --target.split train   (VOC; or --target.format coco, yolo)
  images with masks to measure   --evaluation.split val   (or none: --run.measure "[]")
  the generators                 --run.dir RUN of em.py, or --run.stages RUN or ORG/NAME

What most people want: the demo, the paper's experiment (both after em.py), masks alone

  accelerate launch training/deploy.py --config training/configs/quickstart.yaml
  accelerate launch training/deploy.py --config training/configs/coco60_voc_largefov.yaml
  lpg-hf masks boxes.json --images photos --out masks

"""
CONFIGS = Path(__file__).resolve().parent / "configs"


def run_deploy(settings: Settings) -> dict:
    """Trains and measures the rounds of a mode, or resumes a run with the same settings where it stopped.

    Writes, below RUN/target (RUN/target_semi, RUN/target_full): `stageK/segmenter` (a checkpoint with metrics and
    card), `stageK/pseudo_masks` (palette PNG), what was measured on them (`box_fill.json`, `stageK/pseudo_masks.json`,
    `stageK/segmenter.json` or `segmenter_crf.json`), and `metrics.json`, `table.md` and `panel.png`.

    Returns:
        The content of `metrics.json`.

    Raises:
        ValueError: settings or data do not fit, before any training, or the run was begun with other settings, or
            another process writes to RUN.
        OSError: data, weights or the LPG of a stage are not there.
        FloatingPointError: a loss is not finite.
    """
    if settings.segmenter.model is None:
        raise ValueError("segmenter.model is null: name the segmenter that is to be trained on the target set.")
    mode = settings.run.mode
    name = "target" if mode == "weak" else f"target_{mode}"
    run = start_run(settings, f"{name}/settings.json")
    with alone_in(run.folder):
        return _train_rounds(run, name)


def _train_rounds(run: Run, name: str) -> dict:
    """As `run_deploy`, in a folder that is ours alone; `name` is that of the results in it."""
    settings, mode = run.settings, run.settings.run.mode
    source = None
    if mode != "full" and settings.run.labels != "lpg":
        source = load_label_source(settings.run.labels, settings.run.overlap_rule)
    numbers = range(1, settings.run.num_stages + 1) if mode != "full" and source is None else ()
    generators = {number: load_lpg(*_stage_source(settings, number)) for number in numbers}
    rows = load_target(run, masks=mode == "full")
    semi = load_semi(run) if mode == "semi" else None
    evaluation = load_eval(run) if "segmenter" in settings.run.measure else None
    _check_before_training(run, rows, evaluation)
    truth = load_target(run, masks=True) if "masks" in settings.run.measure else None
    if source is not None:
        source.check(rows)
    supervised = _supervision(run, rows, semi)
    measured_on = {"target truth": truth, "evaluation": evaluation}
    run.begin(**digests({"target": rows, "run.semi_split": semi} | measured_on))
    scores = DeployScores(run, run.folder / name, class_names(rows), truth, evaluation)
    scores.add_box_fill()

    segmenter = None
    for number in range(settings.run.num_stages + 1):
        stage = Stage(name, number, run.folder / name / f"stage{number}")
        labels = box_labels
        if number in generators:
            labels = mask_stage(run, stage, rows, generators[number], segmenter)
        elif source is not None:
            labels = source_stage(run, stage, rows, source, segmenter)
        if number in generators or (source is not None and (source.refines or number == 0)):
            scores.add_pseudo_masks(stage, labels)
        num_steps = settings.segmenter.target_steps or settings.segmenter.steps
        segmenter = segmenter_stage(run, stage, rows, supervised(labels), segmenter, num_steps)
        scores.add_segmenter(stage, segmenter)
    metrics = scores.write(rows)
    run.finish()
    return metrics


def _stage_source(settings: Settings, number: int) -> tuple[str, str | None]:
    """Folder of a round's LPG in a run, or its id and revision on the Hub: ORG/PREFIX-stageK.

    A bundled generator, or the folder of a single one, is that of every round.
    """
    run = settings.run
    stages, number = run.stages or run.dir, run.fixed_stage or number
    single = Path(named_stage(stages)).expanduser()
    if (single / "config.json").is_file():
        return str(single), None
    folder = Path(stages).expanduser() / "aux" / f"stage{number}" / "lpg"
    if folder.is_dir():
        return str(folder), None
    prefix, _, revision = stages.partition("@")
    if run.stages is None or Path(stages).expanduser().exists() or prefix.count("/") != 1:
        raise FileNotFoundError(
            f"There is no LPG of stage {number} in {folder}. Run training/em.py with the same run.dir first, or give "
            "--run.stages a run folder, lpg-base, or a Hub prefix like org/lpg."
        )
    return f"{prefix}-stage{number}", revision or None


def _check_before_training(run: Run, rows: Dataset, evaluation: Dataset | None) -> None:
    """Raises ValueError or OSError if the data and the segmenter of the settings do not fit."""
    names, measured_on = class_names(rows), "the segmenter is not measured"
    if "crf" in run.settings.run.measure:
        try:
            dense_crf(np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 2), 0.5))
        except ImportError as error:
            raise ValueError(f"run.measure has crf. {error}") from error
    check_num_classes(names)
    check_distinct(rows["file_name"][:])
    check_batch(run, "segmenter", build_segmenter(run.settings, names)[0])
    if evaluation is not None:
        check_same_classes(rows, evaluation, "target set and evaluation set")
        measured_on = f"measured on {len(evaluation)} images that hold the classes"
    run.print(f"target set: {len(rows)} images, {len(names)} classes; {measured_on}")


def _supervision(run: Run, rows: Dataset, truth: Dataset | None) -> Callable[[Labels], Labels]:
    """The mode: from the labels of a stage to those trained on, which are ground truth for the images that keep it.

    Args:
        rows: with masks in mode full.
        truth: the images that keep their ground truth in mode semi; None in the others.

    Raises:
        ValueError: no image keeps its ground truth in mode semi, or those images have other classes.
    """
    settings = run.settings.run
    if truth is None:
        return lambda labels: true_labels if settings.mode == "full" else labels
    check_same_classes(rows, truth, "target set and its images with ground truth")
    kept = {file_name: index for index, file_name in enumerate(truth["file_name"][:])}
    num_kept = len(set(kept) & set(rows["file_name"][:]))
    if num_kept == 0:
        raise ValueError(
            f"run.mode=semi, but no image of run.semi_split={settings.semi_split} ({truth['file_name'][0]}, ...) is a "
            f"target image ({rows['file_name'][0]}, ...): the images must be in both, under the same names. Correct "
            "run.semi_split, or set run.mode to weak."
        )
    run.print(f"ground truth is kept by {num_kept} target images")
    return partial(SemiLabels, truth=truth, kept=kept)


if __name__ == "__main__":
    screen = f"{START}{list_configs(CONFIGS)}\n\nEvery setting is a flag: deploy.py --help lists them."
    stop_on_refusal("deploy.py", lambda: run_deploy(parse_settings(description=__doc__, start=screen)))
