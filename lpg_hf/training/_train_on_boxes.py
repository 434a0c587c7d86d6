"""From boxes to a trained segmenter in one command (`lpg-hf train`): masks by an LPG, and a segmenter on them.

Where the images have true masks, a part of them is held out, and the segmenter is measured on it; the true masks take
no part in the training.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from lpg_hf.data.load import class_names
from lpg_hf.models.image_processing_lpg import LPGImageProcessor
from lpg_hf.models.modeling_lpg import LPGModel
from lpg_hf.training._digests import rows_digest
from lpg_hf.training._own_data import OwnData, OwnJob, start_own_run
from lpg_hf.training.config import DataSettings, RunSettings, SegmenterSettings, Settings
from lpg_hf.training.data import check_num_classes, load_eval, load_target
from lpg_hf.training.masks import check_distinct
from lpg_hf.training.measure import measure_label_maps, measure_segmenter
from lpg_hf.training.models import build_segmenter, load_lpg, load_segmenter, segmenter_kind
from lpg_hf.training.run import Run, alone_in
from lpg_hf.training.stages import Stage, add_metrics, mask_stage, segmenter_stage
from lpg_hf.training.steps import check_batch


_HELD_OUT, _MAX_HELD_OUT, _FEWEST_WITH_TRUTH = 0.2, 500, 10  # share of the images with masks; images
_STEPS_PER_IMAGE, _FEWEST_STEPS, _MOST_STEPS = 5, 300, 20_000
_BATCH_SIZE, _LARGEST_CROP = 8, 321
# The segmenter "small": a DeepLab v2 of 0.6 M parameters that trains from random weights, as in `make demo`.
_SMALL = {
    "block": "basic",
    "depths": [1, 1, 1, 1],
    "stem_size": 16,
    "hidden_sizes": [32, 48, 64, 96],
    "output_stride": 8,
    "batch_norm": "train",
}


def train_on_boxes(
    job: OwnJob, segmenter: str = "small", weights: str | None = None, log: Callable[[str], None] = print
) -> dict:
    """Writes masks of the boxes, trains a segmenter on them, and saves it to `job.out`, which transformers loads.

    Args:
        segmenter: small, largefov, deeplab-v2, or any AutoModelForSemanticSegmentation: Hub id, folder or config.json.
        weights: ImageNet weights of largefov or deeplab-v2.

    Returns:
        `training` of `metrics.json`: what was asked for, `num_images`, and where there are true masks
        `pseudo_mask_miou` and `segmenter_miou`.

    Raises:
        FileNotFoundError: annotations, images or a model are not there.
        FileExistsError: `job.out` holds something else.
        ValueError: no boxes; the LPG takes a class probability; more than 254 classes; the work was begun with other
            settings; another process does it.
    """
    with alone_in(job.unfinished):
        return _train_on_boxes(job, segmenter, weights, log)


def _train_on_boxes(job: OwnJob, segmenter: str, weights: str | None, log: Callable[[str], None]) -> dict:
    """As `train_on_boxes`, in a folder that is ours alone."""
    with job.claiming():  # Errors come before the masks are made.
        data = job.read(log)
        lpg = _generator(job.model)
        asked = job.asked(data, lpg[0], segmenter=segmenter, weights=weights)
        if done := job.finished("training", asked):
            log(f"{_summary(done)}\n{job.out} was finished before.")
            shutil.rmtree(job.unfinished, ignore_errors=True)
            return done
        train, held_out = _parts(data, job.seed)
        run = start_own_run(_settings(job, train, held_out, segmenter, weights))
        rows = load_target(run, masks=False)
        check_num_classes(class_names(rows))
        check_distinct(rows["file_name"][:])
        check_batch(run, "segmenter", build_segmenter(run.settings, class_names(rows))[0])
        job.begin(asked)
    run.begin(target=rows_digest(rows))
    stage = Stage("target", 1, job.unfinished / "stage1")
    labels = mask_stage(run, stage, rows, lpg, segmenter=None)
    result = asked | {"num_images": len(rows), "held_out_images": held_out.num_images if held_out else 0}
    if held_out is not None:
        truth, num_labels = load_target(run, masks=True), len(class_names(rows)) + 1
        path = stage.folder / "pseudo_masks.json"
        measured = run.once(path, lambda: measure_label_maps(run, truth, num_labels, labels))
        result["pseudo_mask_miou"] = measured["mean_iou"]
    trained = segmenter_stage(run, stage, rows, labels, None, run.settings.segmenter.steps)
    result |= _measured(run, stage, trained, result["held_out_images"])
    if run.is_main:
        add_metrics(run, trained, {"training": result})
        job.out.parent.mkdir(parents=True, exist_ok=True)
        os.replace(trained, job.out)
        log(f"{_summary(result)}\nwritten to {job.out}")
        shutil.rmtree(job.unfinished)
    run.finish()
    return result


def _generator(name: str) -> tuple[LPGModel, LPGImageProcessor]:
    """The LPG that makes the masks; raises ValueError if it takes a class probability."""
    model, processor = load_lpg(name)
    if model.config.use_class_prob:
        raise ValueError(
            f"{name} takes a segmenter's class probability. Choose a generator without one, such as lpg-base, "
            "or train stage by stage with training/deploy.py."
        )
    return model, processor


def _parts(data: OwnData, seed: int) -> tuple[OwnData, OwnData | None]:
    """The images that train, and those with true masks that measure; None where few have masks."""
    if not data.num_boxes:
        raise ValueError("there is no box to train on. Check the annotations with `lpg-hf check`.")
    without = {item["image_id"] for item in data.content["annotations"] if not item.get("segmentation")}
    with_boxes = {item["image_id"] for item in data.content["annotations"]}
    ids = [image["id"] for image in data.content["images"]]
    complete = [index for index, number in enumerate(ids) if number in with_boxes and number not in without]
    if len(complete) < _FEWEST_WITH_TRUTH:
        return data, None
    order = np.random.default_rng(seed).permutation(complete)
    held_out = sorted(order[: min(round(_HELD_OUT * len(complete)), _MAX_HELD_OUT)].tolist())
    chosen = set(held_out)
    return data.part([index for index in range(data.num_images) if index not in chosen]), data.part(held_out)


def _settings(job: OwnJob, train: OwnData, held_out: OwnData | None, segmenter: str, weights: str | None) -> Settings:
    """The M-step by the size of the data and the kind of the segmenter."""
    folder = job.unfinished
    annotations = train.write(folder, "train")
    target = DataSettings(format="coco", annotations=annotations, images=train.images, classes="all", read=train.read)
    measured = None if held_out is None else held_out.write(folder, "held_out")
    side = float(np.median([max(image["height"], image["width"]) for image in train.content["images"]]))
    kind, is_pretrained = ("deeplab_v2", False) if segmenter == "small" else segmenter_kind(segmenter)
    is_own, is_mobilenet = kind.startswith("deeplab"), kind == "mobilenet_v2"
    momentum = None
    if is_mobilenet:  # benchmarks/protocols/deep.yaml says what 0 gains; random weights have no statistics to keep
        momentum = 0.0 if is_pretrained else 0.03
    crop = min(int(side) // 32 * 32 or 32, _LARGEST_CROP - 1) + is_own  # the DeepLabs take 8n + 1
    chosen = SegmenterSettings(
        model="deeplab-v2" if segmenter == "small" else segmenter,
        config=_SMALL if segmenter == "small" else {},
        weights=weights,
        steps=job.steps or min(max(_STEPS_PER_IMAGE * train.num_images, _FEWEST_STEPS), _MOST_STEPS),
        batch_size=_BATCH_SIZE,
        crop_size=crop,
        scales=(0.75, 1.0, 1.25),
        optimizer="adamw",
        weight_decay=1e-2,
        bias_multiplier=1,
        # From random weights the whole network learns fast; of a pretrained one, the new head alone.
        learning_rate=2e-3 if segmenter == "small" else 1e-4 if momentum == 0 else 2e-4,
        head_multiplier=1 if segmenter == "small" else 20 if momentum == 0 else 10,
        batch_norm_momentum=momentum,
        loss_stride=None if is_own else 4,
    )
    return Settings(
        run=RunSettings(
            dir=str(folder), seed=job.seed, num_stages=1, mixed_precision="auto", num_workers=1, checkpoint_every=200
        ),
        target=target,
        evaluation=replace(target, annotations=measured),
        segmenter=chosen,
    )


def _measured(run: Run, stage: Stage, trained: Path, num_images: int) -> dict:
    """The mIoU of the segmenter on the held-out images, kept in its metrics and card."""
    if not num_images:
        return {}
    description = f"{stage.name} measured"
    evaluation = load_eval(run)
    measured = run.once(
        stage.folder / "segmenter.json",
        lambda: measure_segmenter(run, *load_segmenter(trained), evaluation, description),
    )
    add_metrics(run, trained, {"segmenter_miou": measured["mean_iou"], "measured_on": f"{num_images} held-out images"})
    return {"segmenter_miou": measured["mean_iou"]}


def _summary(result: dict) -> str:
    """What came out, in a line."""
    if "segmenter_miou" not in result:
        return f"{result['num_images']} images; fewer than {_FEWEST_WITH_TRUTH} have true masks to measure on"
    return (
        f"{result['num_images']} images: masks of the boxes {100 * result['pseudo_mask_miou']:.1f} mIoU; segmenter "
        f"{100 * result['segmenter_miou']:.1f} mIoU on {result['held_out_images']} held-out images"
    )
