"""The rows of a run: the auxiliary set, the target set and what it is measured on."""

import numpy as np
import pyarrow.compute as pc
from accelerate import Accelerator
from datasets import Dataset, Image

from lpg_hf.data.load import class_names, load_boxes
from lpg_hf.data.report import KEPT, PROBLEMS, Report
from lpg_hf.labels import IGNORE_INDEX
from training.config import Settings


def load_aux(accelerator: Accelerator, settings: Settings, masks: bool = True) -> Dataset:
    """Auxiliary images with boxes and masks (Sec. III-A), a seeded share of them if `aux_fraction` < 1."""
    rows = _load(
        accelerator,
        settings,
        settings.aux_format,
        "auxiliary set",
        root=settings.aux_root,
        annotations=settings.aux_annotations,
        images=settings.aux_images,
        split=settings.aux_split,
        classes=settings.aux_classes,
        zero_based=settings.aux_zero_based,
        allow_missing=settings.aux_allow_missing,
        size_mismatch=settings.aux_size_mismatch,
        masks=masks,
    )
    if settings.aux_fraction < 1:
        order = np.random.default_rng(settings.seed).permutation(len(rows))
        kept = np.sort(order[: max(1, round(len(rows) * settings.aux_fraction))])
        objects = rows.select_columns("objects").with_format("arrow")[:]["objects"]
        num_objects = pc.list_value_length(pc.struct_field(objects, "bbox")).to_numpy()  # of each image
        accelerator.print(
            f"aux_fraction={settings.aux_fraction}: {len(kept)} of {len(rows)} images with {num_objects[kept].sum()} of "
            f"{num_objects.sum()} objects"
        )
        rows = rows.select(kept)
    return rows


def load_target(accelerator: Accelerator, settings: Settings, masks: bool) -> Dataset:
    """Target images with boxes; their masks only where asked for."""
    return _load(
        accelerator,
        settings,
        settings.target_format,
        "target set with masks" if masks else "target set",
        root=settings.target_root,
        annotations=settings.target_annotations,
        images=settings.target_images,
        split=settings.target_split,
        classes=settings.target_classes,
        zero_based=settings.target_zero_based,
        allow_missing=settings.target_allow_missing,
        size_mismatch=settings.target_size_mismatch,
        masks=masks,
    )


def load_eval(accelerator: Accelerator, settings: Settings) -> Dataset:
    """The part of the target set that is measured on, with masks: its images that hold an object of the classes.

    The others are left out, so what a segmenter finds in them costs it nothing.
    """
    images = settings.eval_images or settings.target_images
    return _load_part(accelerator, settings, "evaluation set", settings.eval_annotations, images, settings.eval_split)


def load_semi(accelerator: Accelerator, settings: Settings) -> Dataset:
    """The target images that keep their ground truth in semi mode: a VOC list, or a COCO file."""
    part = "part with ground truth"
    if settings.target_format == "coco":
        return _load_part(accelerator, settings, part, settings.semi_split, settings.target_images, None)
    return _load_part(accelerator, settings, part, None, settings.target_images, settings.semi_split)


def _load_part(
    accelerator: Accelerator,
    settings: Settings,
    part: str,
    annotations: str | None,
    images: str | None,
    split: str | None,
) -> Dataset:
    return _load(
        accelerator,
        settings,
        settings.target_format,
        part,
        root=settings.target_root,
        annotations=annotations,
        images=images,
        split=split,
        classes=settings.target_classes,
        zero_based=settings.target_zero_based,
        allow_missing=settings.target_allow_missing,
        size_mismatch=settings.target_size_mismatch,
        masks=True,
    )


def check_num_classes(names: list[str]) -> None:
    """Raises ValueError if the classes do not fit into label maps of 8 bits, where 255 is ignored."""
    if len(names) >= IGNORE_INDEX:
        raise ValueError(
            f"the dataset has {len(names)} classes, but the label maps that a segmenter is trained on hold at most "
            f"{IGNORE_INDEX - 1}. Choose some of them (aux_classes, target_classes), or let `lpg-hf masks` write the masks, which has "
            "no such limit."
        )


def check_same_classes(one: Dataset, other: Dataset, what: str) -> None:
    """Raises ValueError if two parts of a dataset do not name the same classes."""
    if class_names(one) != class_names(other):
        raise ValueError(f"{what} differ in their classes: {class_names(one)} and {class_names(other)}.")


def without_difficult(row: dict) -> dict:
    """The row without the objects that are flagged difficult."""
    keep = [i for i, difficult in enumerate(row["objects"]["difficult"]) if not difficult]
    return {"objects": {name: [values[i] for i in keep] for name, values in row["objects"].items()}}


def _load(
    accelerator: Accelerator,
    settings: Settings,
    format: str,
    part: str,
    *,
    zero_based: bool,
    allow_missing: bool,
    size_mismatch: str,
    **source,
) -> Dataset:
    """Builds or opens the dataset, on the main process first; images stay undecoded until they are needed.

    What the loader found is printed if something was left out, changed, or deserves attention.
    """
    if zero_based:
        source["zero_based"] = True  # VOC's alone: an error for any other format.
    if allow_missing:
        source["allow_missing"] = True
    if size_mismatch != "skip":
        source["size_mismatch"] = size_mismatch  # COCO's and VOC's: an error for any other format.
    report = Report()
    with accelerator.main_process_first():
        rows = load_boxes(format, report=report, **source)
    if report.needs_attention or any(PROBLEMS[kind].outcome != KEPT for kind in report.counts):
        accelerator.print(f"{part}: {report.summary()}")
    for column in ("image", "mask"):
        if column in rows.column_names:
            rows = rows.cast_column(column, Image(decode=False))
    if settings.drop_difficult:
        rows = rows.map(without_difficult, desc="dropping difficult objects")
    return rows
