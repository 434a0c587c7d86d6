"""One call from a folder to a dataset."""

import hashlib
import json
import logging
import os
from dataclasses import fields, replace
from typing import Any

import datasets.config
import numpy as np
import pyarrow as pa
from datasets import Dataset, Image, load_dataset

from lpg_hf.data.builders import CocoBoxes, VocBoxes, YoloBoxes, file_fingerprint, split_name
from lpg_hf.data.formats import tools
from lpg_hf.data.options import ReadOptions
from lpg_hf.data.report import MissingFiles, NothingUsable, Report, check_missing
from lpg_hf.files import fs_path, relative_name, resolve_inside, unicode_path, walk_files


logger = logging.getLogger(__name__)

BUILDERS = {"coco": CocoBoxes, "voc": VocBoxes, "yolo": YoloBoxes}
FORMATS = (*BUILDERS, "parquet")
# A row has an image, and the class lists of the formats hold for training: two options are for sources alone.
BUILDER_OPTIONS = {item.name for item in fields(ReadOptions)} - {"keep_missing", "keep_unlisted"}
PARQUET_OPTIONS = {"split", "masks", "allow_missing"}


def class_names(dataset: Dataset) -> list[str]:
    """The class names of a built dataset in the order of the labels, without the background."""
    return list(dataset.features["objects"]["category"].feature.names)


def load_boxes(
    format: str,
    *,
    root: str | os.PathLike | None = None,
    annotations: str | os.PathLike | None = None,
    images: str | os.PathLike | None = None,
    num_proc: int = 1,
    cache_dir: str | os.PathLike | None = None,
    report: Report | None = None,
    **options: Any,
) -> Dataset:
    """Load images with boxes; the problems met are logged, unless `report` takes them.

    Args:
        format: "coco", "voc", "yolo", or "parquet" (a folder or Hub id that `datasets.load_dataset` reads, as
            `lpg_hf.data.export` writes it). Of its rows only embedded images and masks are read: a path in a row could
            name any file of this machine.
        root: folder of the dataset; for "parquet" a folder or a Hub id.
        annotations: COCO: the json file. VOC: another folder than Annotations. YOLO: data.yaml, or the folder of
            labels.
        images: another image folder than the usual one; for "parquet" the folder of images that were not exported.
        num_proc: processes that check the images.
        cache_dir: of `datasets`.
        report: takes the problems, for the caller to show.
        **options: fields of `options.ReadOptions`: split, classes, masks, keep_empty, allow_missing, max_pixels, ...;
            for "parquet" only split, masks and allow_missing. What `split` and `classes` may be: see the builders.

    Returns:
        The rows described in `builders`.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: a file is not valid, a value is not known, or the data hold no object of the classes.
    """
    if format not in FORMATS:
        raise ValueError(f"unknown data format {format!r}; choose one of {', '.join(FORMATS)}")
    if format == "parquet":
        given = options if annotations is None else {**options, "annotations": annotations}
        if extra := sorted(set(given) - PARQUET_OPTIONS):
            raise ValueError(f"format 'parquet' takes no {', '.join(extra)}; they were fixed at export")
        found = Report()
        dataset = load_parquet(root, images, ReadOptions(**options), found, cache_dir)
        # Who passes a report opens the rows one by one and counts them.
        _tell(root, found if report is not None else replace(found, **_totals(dataset)), report)
        return dataset

    if unknown := sorted(set(options) - BUILDER_OPTIONS):
        raise ValueError(f"format {format!r} has no option {', '.join(unknown)}")
    read = ReadOptions(**options)
    read.check_format(format)
    builder = BUILDERS[format](
        cache_dir=_text(cache_dir),
        data_dir=None if root is None else unicode_path(root),
        annotations=_text(annotations),
        images=_text(images),
        options=read,
    )
    try:
        builder.download_and_prepare(num_proc=num_proc if num_proc > 1 else None)
    except NothingUsable as error:
        raise ValueError(f"{error}\n{tools.likeness(error.path)}".rstrip()) from error
    _tell(root or annotations, builder.report, report)
    return builder.as_dataset(split=split_name(read.split))


def _text(path: str | os.PathLike | None) -> str | None:
    return None if path is None else os.fspath(path)


def _tell(source: str | os.PathLike | None, found: Report, report: Report | None) -> None:
    if report is not None:
        report.merge(found)
    else:
        logger.log(logging.WARNING if found.needs_attention else logging.INFO, "%s: %s", source, found.summary())


def _flat_table(dataset: Dataset) -> pa.Table:
    """All rows as Arrow; a column of structures becomes one column COLUMN.FIELD for each of its fields."""
    table: Any = dataset.with_format("arrow")[:]
    return table.flatten()


def objects_per_row(dataset: Dataset) -> np.ndarray:
    """(number of rows,) int: the length of the lists in the column "objects"."""
    lists = _flat_table(dataset.select_columns(["objects"])).column(0)
    lengths = [chunk.value_lengths().fill_null(0).to_numpy(zero_copy_only=False) for chunk in lists.chunks]
    return np.concatenate([np.zeros(0, dtype=np.int64), *lengths])


def _totals(dataset: Dataset) -> dict:
    """The fields of a `Report` that the builders count while they read; no class names where the rows have none."""
    category = dataset.features["objects"].get("category")
    names = getattr(getattr(category, "feature", None), "names", [])
    return {"images": len(dataset), "objects": int(objects_per_row(dataset).sum()), "classes": names}


def load_parquet(
    root: str | os.PathLike | None,
    images: str | os.PathLike | None,
    options: ReadOptions,
    report: Report,
    cache_dir: str | os.PathLike | None = None,
) -> Dataset:
    """The rows of a folder or a Hub id, with their images; further arguments as of `load_boxes`."""
    if root is None:
        raise ValueError("format 'parquet' needs root=... (a folder or a Hub id)")
    split = options.split
    splits = load_dataset(os.fspath(root), cache_dir=_cache_of_folder(root, cache_dir))
    if split is None and len(splits) > 1:
        raise ValueError(f"{root} holds several splits ({', '.join(map(str, splits))}); pass split=...")
    name = next(iter(splits)) if split is None else split_name(split)
    if name not in splits:
        raise ValueError(f"{root} has no split {split!r}; it has {', '.join(map(str, splits))}")
    dataset = splits[name]
    if "objects" not in dataset.features:
        raise ValueError(f"{root} has no column 'objects'; it has {', '.join(dataset.features)}")
    if options.masks and "mask" not in dataset.features and "segmentation" not in dataset.features["objects"]:
        raise ValueError(f"{root} was exported without masks; export it again from a dataset with masks=True")
    columns = [name for name in ("image", "mask") if name in dataset.features and (name == "mask" or images is None)]
    dataset = _without_foreign_paths(dataset, columns, root, report)
    if images is not None:
        return _with_images(dataset, unicode_path(images), options, report)
    if "image" not in dataset.features:
        raise ValueError(
            f"{root} was exported without images; pass images=... (the folder that the file names are in)"
        )
    return dataset


def _with_images(dataset: Dataset, folder: str, options: ReadOptions, report: Report) -> Dataset:
    """The rows whose image exists in a folder, with its path in the column "image"."""
    paths, present, missing = [], [], []
    for number, name in enumerate(dataset["file_name"]):
        try:
            path = resolve_inside(folder, relative_name(name))
        except ValueError as error:
            report.add("unsafe_path", f"{name!r}: row {number} {error}")
            continue
        if os.path.isfile(fs_path(path)):
            present.append(number)
            paths.append(path)
        else:
            missing.append(name)
    check_missing(MissingFiles("missing_image", "images", missing, len(dataset), folder), options, report)
    dataset = dataset if len(present) == len(dataset) else dataset.select(present)
    dataset = dataset.remove_columns([name for name in ("image",) if name in dataset.features])
    return dataset.add_column("image", paths).cast_column("image", Image())


def _cache_of_folder(root: str | os.PathLike, cache_dir: str | os.PathLike | None) -> str | None:
    """The cache for `load_dataset(root)`: one per state of its files, as it knows a folder by its name alone."""
    if not os.path.isdir(fs_path(root)):
        return None if cache_dir is None else os.fspath(cache_dir)
    folder = unicode_path(root)
    state = file_fingerprint([f"{folder}/{name}" for name in walk_files(folder, ("",))])
    digest = hashlib.sha256(json.dumps(state).encode("utf-8")).hexdigest()[:16]
    return os.path.join(os.fspath(cache_dir or datasets.config.HF_DATASETS_CACHE), f"folder-{digest}")


def _without_foreign_paths(dataset: Dataset, columns: list[str], root: str | os.PathLike, report: Report) -> Dataset:
    """The rows whose images are embedded or absent; the others, which name a file by its path, are counted.

    Raises:
        ValueError: no row is left.
    """
    foreign: dict[int, str] = {}
    for column in columns:
        images = _flat_table(dataset.select_columns([column]).cast_column(column, Image(decode=False)))
        paths = images[f"{column}.path"]
        by_path = paths.is_valid().to_numpy() & images[f"{column}.bytes"].is_null().to_numpy()
        foreign |= {number: paths[number].as_py() for number in np.flatnonzero(by_path).tolist()}
    if not foreign:
        return dataset
    for number, path in sorted(foreign.items()):
        report.add("unsafe_path", f"{path!r}: row {number} names a file in the place of an image", image=path)
    if len(foreign) == len(dataset):
        raise ValueError(
            f"{root} holds paths in the place of images or masks, which are not opened. "
            "Pass images=... (the folder of the images), or export it again with its images"
        )
    return dataset.select([number for number in range(len(dataset)) if number not in foreign])
