"""The rows of a run: the auxiliary set, the target set and what it is measured on."""

from dataclasses import replace

import numpy as np
from datasets import Dataset, Image

from lpg_hf.data.load import class_names, load_boxes
from lpg_hf.data.report import KEPT, PROBLEMS, Report
from lpg_hf.labels import IGNORE_INDEX
from lpg_hf.training.config import DataSettings
from lpg_hf.training.run import Run


def load_aux(run: Run, masks: bool = True) -> Dataset:
    """Auxiliary images with boxes and masks (Sec. III-A), a seeded share of them if `run.aux_fraction` < 1."""
    rows = _load(run, run.settings.aux, "auxiliary set", masks)
    fraction = run.settings.run.aux_fraction
    if fraction < 1:
        order = np.random.default_rng(run.settings.run.seed).permutation(len(rows))
        kept = np.sort(order[: max(1, round(len(rows) * fraction))])
        num_objects = _num_objects(rows)
        run.print(
            f"run.aux_fraction={fraction}: {len(kept)} of {len(rows)} images with {num_objects[kept].sum()} of "
            f"{num_objects.sum()} objects"
        )
        rows = rows.select(kept)
    return rows


def load_target(run: Run, masks: bool) -> Dataset:
    """Target images with boxes; their masks only where asked for."""
    return _load(run, run.settings.target, "target set with masks" if masks else "target set", masks)


def load_eval(run: Run) -> Dataset:
    """What the segmenter is measured on, with masks: the images that hold an object of the classes.

    The others are skipped, so what a segmenter finds in them costs it nothing.
    """
    return _load(run, run.settings.evaluation, "evaluation set", masks=True)


def load_semi(run: Run) -> Dataset:
    """The target images that keep their ground truth in semi mode: a VOC list, or a COCO file."""
    split = run.settings.run.semi_split
    where = {"annotations": split, "split": None} if run.settings.target.format == "coco" else {"split": split}
    return _load(run, replace(run.settings.target, **where), "images with ground truth", masks=True)


def check_num_classes(names: list[str]) -> None:
    """Raises ValueError if the classes do not fit into label maps of 8 bits, where 255 is ignored."""
    if len(names) >= IGNORE_INDEX:
        raise ValueError(
            f"the dataset has {len(names)} classes, but the label maps that a segmenter is trained on hold at most "
            f"{IGNORE_INDEX - 1}. Choose some of them (aux.classes, target.classes), or let `lpg-hf masks` write the "
            "masks, which has no such limit."
        )


def check_same_classes(one: Dataset, other: Dataset, what: str) -> None:
    """Raises ValueError if two datasets do not name the same classes."""
    if class_names(one) != class_names(other):
        raise ValueError(f"{what} differ in their classes: {class_names(one)} and {class_names(other)}.")


def _num_objects(rows: Dataset) -> np.ndarray:
    """(images,) how many each has, crowd regions included."""
    objects = rows.select_columns("objects").with_format("arrow")[:]["objects"].combine_chunks()
    return objects.field("bbox").value_lengths().to_numpy()


def _without_difficult(row: dict) -> dict:
    """The row without the objects that are flagged difficult."""
    keep = [i for i, difficult in enumerate(row["objects"]["difficult"]) if not difficult]
    return {"objects": {name: [values[i] for i in keep] for name, values in row["objects"].items()}}


def _without_empty(run: Run, rows: Dataset, name: str) -> Dataset:
    """The rows that an object is left in: the others show difficult ones only, and would train as background.

    Raises:
        ValueError: there are none.
    """
    difficult = _num_objects(rows) == 0
    if not difficult.any():
        return rows
    names = rows.select(np.flatnonzero(difficult)[:3])["file_name"][:]
    what = f"{difficult.sum()} of {len(rows)} images are skipped, as all their objects are difficult"
    if difficult.all():
        raise ValueError(f"{name}: {what}. Set drop_difficult to false.")
    run.print(f"{name}: {what}, e.g. {', '.join(names)}")
    return rows.select(np.flatnonzero(~difficult))


def _load(run: Run, data: DataSettings, name: str, masks: bool) -> Dataset:
    """Builds or opens the dataset, on the main process first; images stay undecoded until they are needed.

    The report is printed if something was skipped, changed, or deserves attention.
    """
    report = Report()
    with run.accelerator.main_process_first():
        rows = load_boxes(
            data.format,
            root=data.root,
            annotations=data.annotations,
            images=data.images,
            report=report,
            **data.read_options(masks).changed,
        )
        for column in ("image", "mask"):
            if column in rows.column_names:
                rows = rows.cast_column(column, Image(decode=False))
        if data.drop_difficult:
            rows = rows.map(_without_difficult, desc="dropping difficult objects")  # cached for the other processes
    if report.needs_attention or any(PROBLEMS[kind].outcome != KEPT for kind in report.counts):
        run.print(f"{name}: {report.summary()}")
    return _without_empty(run, rows, name) if data.drop_difficult else rows
