"""Fine-tuning a generator on own masks (`lpg-hf finetune`): it never gets worse on the masks that were held out.

A part of the images is held out, the others train. The generator is measured on the held-out part before, after, and
with weights half way between, and the best of the three is kept. Few images are held out in turns (cross-validation):
then the result is trained on all of them, if that helped on the parts that were held out.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import PreTrainedConfig

from lpg_hf._cards import read_json
from lpg_hf._files import locked_folder
from lpg_hf._weight_files import reading_weights
from lpg_hf.data.options import SOURCE_OPTIONS
from lpg_hf.data.sources import evenly
from lpg_hf.evaluation.compare import ComparedData, Comparison, Row, comparison_panel, measure
from lpg_hf.generators.base import GeneratorOptions
from lpg_hf.generators.bundle import named_stage
from lpg_hf.hub import fetch_stage, write_card
from lpg_hf.models.configuration_lpg import LPGConfig
from lpg_hf.models.image_processing_lpg import LPGImageProcessor
from lpg_hf.training._digests import rows_digest
from lpg_hf.training._own_data import OwnData, OwnJob, start_own_run
from lpg_hf.training.config import DataSettings, LPGSettings, RunSettings, SegmenterSettings, Settings
from lpg_hf.training.data import load_aux
from lpg_hf.training.models import load_lpg, save_stage
from lpg_hf.training.stages import Stage, lpg_stage


_HELD_OUT = 0.25  # share of the images
_MAX_HELD_OUT = 200  # images
_FEW_IMAGES = 8  # fewer are held out in turns
_NUM_FOLDS = 3
_NUM_SHOWN = 6  # images of the panel
_STEPS_PER_BOX, _FEWEST_STEPS, _MOST_STEPS = 10, 300, 2000
# Share of the way from the weights of the start to the trained ones; half of it often forgets less.
_MIXES = {"before": 0.0, "half way": 0.5, "after": 1.0}
_SCORES = {"mean_box_iou": "IoU per box", "mean_boundary_iou": "boundary IoU"}


def finetune(job: OwnJob, log: Callable[[str], None] = print) -> dict:
    """Trains the generator on the masks, and writes the best one to `job.out`: a stage folder with its card,
    `metrics.json` and `panel.png`.

    Returns:
        `finetune` of `metrics.json`: `scores` of "before", "half way" and "after" on the held-out images, which of
        them is `kept`, and on what. Of cross-validation the scores are those of the parts together.

    Raises:
        FileNotFoundError: annotations, images or the model are not there.
        FileExistsError: `job.out` holds something else.
        ValueError: the annotations have no masks, or in one image only; the model takes a class probability; the work
            was begun with other settings; another process does it.
    """
    start = _start(job.model)
    with locked_folder(job.unfinished):
        return _finetune(job, start, log)


def _finetune(job: OwnJob, start: Path, log: Callable[[str], None]) -> dict:
    """As `finetune`, in a folder that is ours alone."""
    with job.claiming():
        masks = _with_masks(job, log)
        asked = job.asked(masks, load_lpg(start)[0])
        if done := job.finished("finetune", asked):
            log(f"{_table(done)}\n{job.out} was finished before.")
            shutil.rmtree(job.unfinished, ignore_errors=True)
            return done
        job.begin(asked)
    folds = _folds(masks.num_images, job.seed)
    log(
        f"{masks.num_images} images with {masks.num_boxes} masks; "
        + (f"{len(folds[0])} images are held out" if len(folds) == 1 else f"held out in {len(folds)} turns")
    )
    trained, rows, panel = _trained_in_turns(job, start, masks, folds, log)
    result = asked | _result(masks, folds, rows)
    if result["kept"] != "before" and len(folds) > 1:
        trained = _train(job, start, job.unfinished / "all", masks)
    _save(job, start, trained, result, panel)
    log(f"{_table(result)}\nwritten to {job.out}")
    shutil.rmtree(job.unfinished)
    return result


def _start(model: str) -> Path:
    """The folder of the generator to start from; raises ValueError if it takes a class probability."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("lpg-hf finetune runs in one process. Start it without accelerate launch.")
    start = Path(fetch_stage(named_stage(model), kind="lpg"))
    with reading_weights(start):
        config = LPGConfig.from_pretrained(start)
    if config.use_class_prob:
        raise ValueError(
            f"{model} takes a segmenter's class probability. Fine-tune a generator without one, such as lpg-base."
        )
    return start


def _trained_in_turns(
    job: OwnJob, start: Path, masks: OwnData, folds: list[list[int]], log: Callable[[str], None]
) -> tuple[Path, list[list[Row]], Image.Image | None]:
    """The folder of the last generator, the measured mixes of each turn, and a panel of the first turn."""
    rows, trained, panel = [], start, None
    for number, held_out in enumerate(folds, start=1):
        folder = job.unfinished / f"part{number}"
        part = masks.part(held_out).write(folder, "held_out")
        comparison = _comparison(part, masks, len(held_out))
        before = _measured(comparison, "before", start)
        log(f"before: {100 * (before.scores['mean_box_iou'] or 0):.1f} IoU per box of the held-out part")
        rest = [index for index in range(masks.num_images) if index not in held_out]
        trained = _train(job, start, folder, masks.part(rest))
        mixes = {name: _mixed(start, trained, name, folder) for name in _MIXES if name != "before"}
        rows.append([before, *(_measured(comparison, name, path) for name, path in mixes.items())])
        panel = panel or comparison_panel(rows[-1], comparison)
    return trained, rows, panel


def _with_masks(job: OwnJob, log: Callable[[str], None]) -> OwnData:
    """The images with masks, and their objects that have one.

    Raises:
        ValueError: there are none, or in one image only.
    """
    data = job.read(log)
    annotations = [item for item in data.content["annotations"] if item.get("segmentation")]
    ids = {item["image_id"] for item in annotations if not item.get("iscrowd")}
    if len(ids) < 2:
        has = "masks in one image only" if ids else "no masks"
        raise ValueError(
            f"{job.annotations} has {has} ({data.num_boxes} objects in {data.num_images} images). A generator learns "
            "from masks (COCO polygons or RLE, VOC label maps, LabelMe or YOLO outlines) of at least two images. To "
            "make masks of boxes, use `lpg-hf masks`."
        )
    if without := len(data.content["annotations"]) - len(annotations):
        log(f"{without} objects without a mask are skipped")
    kept = {
        "images": [image for image in data.content["images"] if image["id"] in ids],
        "annotations": [item for item in annotations if item["image_id"] in ids],
    }
    return replace(data, content=data.content | kept)


def _folds(num_images: int, seed: int) -> list[list[int]]:
    """The images that are held out: a part of them, or each of few images once."""
    order = np.random.default_rng(seed).permutation(num_images)
    if num_images >= _FEW_IMAGES:
        return [sorted(order[: min(round(_HELD_OUT * num_images), _MAX_HELD_OUT)].tolist())]
    return [sorted(part.tolist()) for part in np.array_split(order, min(_NUM_FOLDS, num_images))]


def _train(job: OwnJob, start: Path, folder: Path, masks: OwnData) -> Path:
    """The folder of the generator trained on some masks; finished or begun work there is taken."""
    run = start_own_run(_settings(job, start, folder, masks))
    rows = load_aux(run)
    run.begin(aux=rows_digest(rows))
    trained = lpg_stage(run, Stage("auxiliary", 1, folder), rows, segmenter=None, previous=None)
    run.finish()
    return trained


def _settings(job: OwnJob, start: Path, folder: Path, masks: OwnData) -> Settings:
    """The E-step for few masks: the network and the view of the start, a low rate, averaged weights."""
    model, processor = load_lpg(start)
    usual, of_start = LPGConfig().to_dict(), model.config.to_dict()
    follow = {"use_class_prob", "class_prob_optional"}  # from settings
    names = usual.keys() - PreTrainedConfig().to_dict().keys() - follow
    config = {name: of_start[name] for name in sorted(names) if of_start[name] is not None} | {"dice_loss_weight": 1.0}
    of_processor = json.loads(processor.to_json_string())
    values = {name: value for name, value in of_processor.items() if hasattr(LPGImageProcessor, name)}
    is_box = processor.view == "box"
    steps = job.steps or min(max(_STEPS_PER_BOX * masks.num_boxes, _FEWEST_STEPS), _MOST_STEPS)
    return Settings(
        run=RunSettings(
            dir=str(folder), seed=job.seed, num_stages=1, mixed_precision="auto", num_workers=1, checkpoint_every=100
        ),
        aux=DataSettings(
            format="coco",
            annotations=masks.write(folder, "train"),
            images=masks.images,
            classes="all",
            read=masks.read,
        ),
        lpg=LPGSettings(
            stage1_class_prob=False,
            config=config,
            processor=values,
            init=str(start),
            steps=steps,
            batch_size=16,
            optimizer="adamw",
            learning_rate=3e-4,
            schedule="cosine",
            weight_decay=1e-2,
            ema=0.99,
            target="object" if is_box else "class",
            color_jitter=0.2,
            crop_size=256,
            view_sizes=(128, 128, 128, processor.view_size) if is_box else (),
        ),
        segmenter=SegmenterSettings(model=None),
    )


def _mixed(start: Path, trained: Path, name: str, folder: Path) -> Path:
    """The folder of a generator whose weights lie between two others, see `_MIXES`; only a new one is written."""
    share = _MIXES[name]
    if share in (0, 1):
        return trained if share else start
    model, processor = load_lpg(trained)
    of_start, weights = load_lpg(start)[0].state_dict(), model.state_dict()
    for key, value in weights.items():
        if value.is_floating_point():
            value.lerp_(of_start[key], 1 - share)
    model.save_pretrained(folder / name)
    processor.save_pretrained(folder / name)
    return folder / name


def _comparison(annotations: str, masks: OwnData, num_images: int) -> Comparison:
    indices = tuple(range(num_images))
    options = replace(SOURCE_OPTIONS, **masks.read)
    data = ComparedData(annotations, masks.images, annotations, "coco", options)
    return Comparison(data, indices=indices, shown=evenly(indices, _NUM_SHOWN))


def _measured(comparison: Comparison, name: str, model: Path) -> Row:
    row = measure(replace(comparison, generator=GeneratorOptions(model)), "lpg")
    return replace(row, generator=name)


def _result(masks: OwnData, folds: list[list[int]], rows: list[list[Row]]) -> dict:
    """The scores of all parts together, and which generator is the best; of equal ones the first."""
    result: dict = {"num_images": masks.num_images, "held_out_images": sum(map(len, folds)), "turns": len(folds)}
    result["held_out_boxes"] = num_boxes = sum(parts[0].num_boxes for parts in rows)
    result["scores"] = {
        name: {key: sum((row.scores[key] or 0) * row.num_boxes for row in of_parts) / num_boxes for key in _SCORES}
        for name, of_parts in zip(_MIXES, zip(*rows))
    }
    return result | {"kept": max(_MIXES, key=lambda name: result["scores"][name]["mean_box_iou"])}


def _table(result: dict) -> str:
    """The scores before and after, and what is kept."""
    lines = [f"| held-out part | {' | '.join(_SCORES.values())} | |", "| --- |" + " --- |" * (len(_SCORES) + 1)]
    for name, scores in result["scores"].items():
        title = f"before ({result['model']})" if name == "before" else f"{name} fine-tuning"
        cells = [f"{100 * scores[key]:.1f}" for key in _SCORES]
        lines.append(f"| {' | '.join([title, *cells, 'kept' if name == result['kept'] else ''])} |")
    how = f"in {result['turns']} turns" if result["turns"] > 1 else f"of {result['num_images']}"
    lines.append(f"Held out: {result['held_out_images']} images {how} with {result['held_out_boxes']} boxes.")
    if result["kept"] == "before":
        lines.append(f"Fine-tuning did not help: what is written is {result['model']} itself.")
    return "\n".join(lines)


def _save(job: OwnJob, start: Path, trained: Path, result: dict, panel: Image.Image | None) -> None:
    """Writes the better generator with its card."""
    is_trained = result["kept"] != "before"
    known = read_json((trained if is_trained else start) / "metrics.json")
    metrics = {name: value for name, value in known.items() if "iou" not in name}
    what = "Fine-tuned from" if is_trained else "Fine-tuning did not help, so this is"
    about = f"{result['num_images']} images with masks, {result['held_out_images']} of them held out"
    metrics |= {
        "notes": [f"{what} {result['model']}: {about}. Kept of the weights: {result['kept']}."],
        "measured_on": f"{result['held_out_images']} held-out images",
        "mean_box_iou": result["scores"][result["kept"]]["mean_box_iou"],
        "baseline_start_box_iou": result["scores"]["before"]["mean_box_iou"],
        "finetune": result,
    }
    if is_trained:
        metrics["dataset"] = f"{job.annotations if '://' in job.annotations else Path(job.annotations).name}"
    folder = job.unfinished / "result"
    shutil.rmtree(folder, ignore_errors=True)
    kept = _mixed(start, trained, result["kept"], job.unfinished)
    save_stage(folder, *load_lpg(kept), metrics)
    if panel is not None:
        panel.save(folder / "panel.png")
        write_card(folder)
    job.out.parent.mkdir(parents=True, exist_ok=True)
    os.replace(folder, job.out)
