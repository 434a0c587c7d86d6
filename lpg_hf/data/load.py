"""One call from a folder to a dataset."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets.config
import numpy as np
import pyarrow as pa
from datasets import Dataset, Image, load_dataset
from huggingface_hub import hf_hub_download, metadata_load
from huggingface_hub.errors import (
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  of whichever HTTP library the client uses
)

from lpg_hf._bands import Rendering
from lpg_hf._files import (
    fs_path,
    reading_as,
    relative_name,
    resolve_inside,
    unicode_name,
    unicode_path,
    walk_files,
)
from lpg_hf.data._formats import tools
from lpg_hf.data._hub_rows import has_usual_columns, with_usual_columns
from lpg_hf.data._recognise import recognise_format
from lpg_hf.data.builders import CocoBoxes, ToolBoxes, VocBoxes, YoloBoxes, file_fingerprint, split_name
from lpg_hf.data.options import ReadOptions
from lpg_hf.data.report import MissingFiles, NothingUsable, Report, check_missing


logger = logging.getLogger(__name__)

BUILDERS = {
    "coco": CocoBoxes,
    "voc": VocBoxes,
    "yolo": YoloBoxes,
    **{name: partial(ToolBoxes, tool=name) for name in tools.TOOL_FORMATS},
}
FORMATS = (*BUILDERS, "parquet")
# A row has an image, and the class lists of the formats hold for training: two options are for sources alone.
BUILDER_OPTIONS = {item.name for item in fields(ReadOptions)} - {"keep_missing", "keep_unlisted"}
# Of a row of a dataset; no other column is read.
_COLUMNS = ("image", "mask", "image_id", "file_name", "height", "width", "license", "objects")
# What the values of these columns must be, of those in "objects" of each object: (words, check of an Arrow type).
_INTEGER = ("whole numbers", pa.types.is_integer)
_NUMBER = ("numbers", lambda kind: pa.types.is_integer(kind) or pa.types.is_floating(kind))
_FLAG = ("true or false", lambda kind: pa.types.is_boolean(kind) or pa.types.is_integer(kind))
_TEXT = ("texts", lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind))
_NAME = ("texts or whole numbers", lambda kind: _TEXT[1](kind) or pa.types.is_integer(kind))
_TYPES = {
    "image_id": _NAME,
    "file_name": _TEXT,
    "height": _INTEGER,
    "width": _INTEGER,
    "license": _TEXT,
    "objects.bbox": ("lists of numbers", lambda kind: pa.types.is_nested(kind) and _NUMBER[1](kind.value_type)),
    "objects.area": _NUMBER,
    "objects.iscrowd": _FLAG,
    "objects.difficult": _FLAG,
    "objects.id": _INTEGER,
    "objects.segmentation": ("run lengths: size and counts", lambda kind: {"size", "counts"} <= _fields(kind)),
}
PARQUET_OPTIONS = {"split", "masks", "allow_missing", "box_format", "bands", "stretch"}


class _NoMasks(ValueError):
    """Masks were asked for, and the rows of a dataset have none."""


def class_names(dataset: Dataset) -> list[str]:
    """The class names of a built dataset in the order of the labels, without the background."""
    return list(dataset.features["objects"]["category"].feature.names)


def load_boxes(
    format: str | os.PathLike,
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

        rows = load_boxes("labels.csv", images="photos")
        rows = load_boxes("voc", root="VOC2012", split="train_aug")

    Args:
        format: a file, a folder or a Hub id, whose format is told by what is there; or, with `root` or `annotations`,
            the format: "coco", "voc", "yolo", one of `tools.TOOL_FORMATS` (docs/formats.md), or "parquet" (a folder or
            Hub id that `datasets.load_dataset` reads: as `lpg_hf.data.export` writes it, an imagefolder, or a
            detection dataset of another layout, see `hub_rows`). Of Parquet rows only embedded images and masks are
            read: a path in a row could name any file of this machine.
        root: folder of the dataset; for "parquet" a folder or a Hub id.
        annotations: COCO and tools: the file. VOC: another folder than Annotations. YOLO: data.yaml, or the folder of
            labels.
        images: another image folder than the usual one; for "parquet" the folder of images that were not exported.
        num_proc: processes that check the images.
        cache_dir: of `datasets`.
        report: takes the problems, for the caller to show.
        **options: fields of `options.ReadOptions`: split, classes, masks, keep_empty, allow_missing, max_pixels, ...;
            for "parquet" only split, masks, allow_missing, box_format, bands and stretch. What `split` and `classes`
            may be: see the builders.

    Returns:
        The rows described in `builders`. With `bands` or `stretch` they have a column "rendering", so that what opens
        their images later knows of it.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: a file is not valid, a value is not known, or the data hold no object of the classes.
    """
    format = os.fspath(format)
    if format not in FORMATS and root is None and annotations is None:
        format, root, annotations = _recognised(format, options.get("split"))
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
        return _with_rendering(dataset, ReadOptions(**options).rendering)

    if unknown := sorted(set(options) - BUILDER_OPTIONS):
        raise ValueError(f"format {format!r} has no option {', '.join(unknown)}")
    read = ReadOptions(**options)
    read.check_format(format)
    try:
        with reading_as(read.encoding):
            builder = BUILDERS[format](
                cache_dir=_text(cache_dir),
                data_dir=None if root is None else unicode_path(root),
                annotations=_text(annotations),
                images=_text(images),
                options=replace(read, bands=None, stretch=None),  # the rows hold no pixels
            )
            builder.download_and_prepare(num_proc=num_proc if num_proc > 1 else None)
    except NothingUsable as error:
        raise ValueError(f"{error}\n{tools.likeness(error.path)}".rstrip()) from error
    _tell(root or annotations, builder.report, report)
    return _with_rendering(builder.as_dataset(split=split_name(read.split)), read.rendering)


def _with_rendering(dataset: Dataset, rendering: Rendering) -> Dataset:
    """The rows with how `_examples.decode_image` is to read their images, where that is out of the ordinary."""
    if rendering == Rendering():
        return dataset
    return dataset.add_column("rendering", [json.dumps(asdict(rendering))] * len(dataset))


def _recognised(place: str, split: str | None) -> tuple[str, Any, Any]:
    """(format, root, annotations) of a file, a folder or a Hub id."""
    try:
        format = recognise_format(place, split)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}. Or pass a format, one of {', '.join(FORMATS)}, with root=...") from error
    if format == "dataset":
        return "parquet", place, None
    return (format, None, place) if os.path.isfile(fs_path(place)) else (format, place, None)


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
    _check_card(root)
    _check_json(root)
    try:
        # A folder "parquet" or "json" is not the builder of that name.
        place = os.path.abspath(fs_path(root)) if os.path.isdir(fs_path(root)) else os.fspath(root)
        splits = load_dataset(place, cache_dir=_cache_of_folder(root, cache_dir))
    except OSError:
        raise
    except Exception as error:  # `datasets` raises many types on odd cards and files
        cause = error.__cause__ or error  # an error of a builder says only that there was one
        reason = " ".join(str(cause).split()) or type(cause).__name__
        raise ValueError(f"{root} cannot be read by datasets.load_dataset: {reason}") from error
    if split is None and len(splits) > 1:
        raise ValueError(f"{root} holds several splits ({', '.join(map(str, splits))}); pass split=...")
    name = next(iter(splits)) if split is None else split_name(split)
    if name not in splits:
        raise ValueError(f"{root} has no split {split!r}; it has {', '.join(map(str, splits))}")
    dataset = splits[name]
    if images is None and (options.box_format is not None or not has_usual_columns(dataset)):
        embedded = [name for name, feature in dataset.features.items() if isinstance(feature, Image)]
        dataset = _without_foreign_paths(dataset, embedded, root, report)
        try:
            dataset = with_usual_columns(dataset, os.fspath(root), options, report)
        except UnicodeDecodeError as error:
            raise ValueError(f"a column of texts of {root} holds bytes that are no UTF-8 ({error})") from error
    if "objects" not in dataset.features:
        raise ValueError(f"{root} has no column 'objects'; it has {', '.join(dataset.features)}")
    if options.masks and "mask" not in dataset.features and "segmentation" not in dataset.features["objects"]:
        raise _NoMasks(
            f"{root} has no masks: no column 'mask', and no 'segmentation' in 'objects'. Leave them out "
            "(masks=False), or, if lpg-hf export-data made it, export it again with masks=True"
        )
    dataset = _known_columns(dataset, root)
    _check_types(dataset, root)
    columns = [name for name in ("image", "mask") if name in dataset.features and (name == "mask" or images is None)]
    dataset = _without_foreign_paths(dataset, columns, root, report)
    if images is not None:
        return _with_images(dataset, unicode_path(images), options, report)
    if "image" not in dataset.features:
        raise ValueError(
            f"{root} was exported without images; pass images=... (the folder that the file names are in)"
        )
    return dataset


def _check_card(root: str | os.PathLike) -> None:
    """Refuse a folder or Hub id whose card names data files elsewhere, which `datasets` would open or request.

    Raises:
        ValueError: a pattern of "data_files" is absolute, climbs or is an address.
    """
    if os.path.isdir(fs_path(root)):
        card = os.path.join(fs_path(root), "README.md")
    else:
        try:
            card = hf_hub_download(os.fspath(root), "README.md", repo_type="dataset")
        except (OSError, ValueError, HTTPError):  # no card, repository or network: `load_dataset` tells which
            return
    try:
        known = metadata_load(card) if os.path.isfile(card) else None
    except Exception as error:  # PyYAML raises many types on odd scalars
        raise ValueError(f"the front matter of {card} is not valid yaml: {' '.join(str(error).split())}") from error
    configs = known.get("configs") if isinstance(known, dict) else None
    for config in configs if isinstance(configs, list) else [configs]:
        stated = config if isinstance(config, dict) else {}
        for pattern in [*_texts(stated.get("data_files")), *_texts(stated.get("data_dir"))]:
            parts = pattern.replace("\\", "/").split("/")
            if ".." in parts or not parts[0] or "::" in pattern or re.match(r"[A-Za-z][\w+.-]*:", pattern):
                raise ValueError(
                    f"the card of {root} names data files outside it, which are not opened: {pattern!r}. "
                    "Remove them from README.md, or pass the folder of the Parquet files"
                )


def _check_json(root: str | os.PathLike) -> None:
    """Refuse json files of a folder at which pyarrow 26 ends the process: a block of lines that begins with `null`.

    Raises:
        ValueError: names the file and the line; or a pipe or a device, which might never end.
    """
    if not os.path.isdir(fs_path(root)):
        return
    for name in walk_files(os.fspath(root), (".json", ".jsonl")):
        path = os.path.join(root, name)
        if os.path.exists(fs_path(path)) and not os.path.isfile(fs_path(path)):
            raise ValueError(f"{path} is a pipe or a device, not a file. Remove it")
        for number, line in _starts_of_lines(path):
            if line.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"null"):
                raise ValueError(f"{path}: line {number} is null, not a row. Remove it")


def _starts_of_lines(path: str) -> Iterator[tuple[int, bytes]]:
    """The number and the first bytes of each line; of a .json, which may hold one value, only of the first."""
    with open(fs_path(path), "rb") as file:
        if not path.lower().endswith(".jsonl"):
            yield from ((1, part) for part in file.read(4096).split(b"\r"))
            return
        number, is_start = 1, True
        while part := file.readline(1 << 16):
            first, *others = part.split(b"\r")
            yield from ((number, line) for line in [*([first] if is_start else []), *others])
            is_start = part.endswith(b"\n")
            number += is_start


def _texts(value: object) -> Iterator[str]:
    """The texts in the values of nested lists and mappings, as far as "data_files" may be nested."""
    inner = [value]
    for _ in range(4):
        yield from (item for item in inner if isinstance(item, str))
        inner = [
            part
            for item in inner
            for part in (item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())
        ]


def _known_columns(dataset: Dataset, root: str | os.PathLike) -> Dataset:
    """The rows without the columns that are not used; `datasets` opens what an image column of any name points to.

    Raises:
        ValueError: a column that is used holds files where it has to hold numbers or texts.
    """
    dataset = dataset.select_columns([name for name in dataset.features if name in _COLUMNS])
    for name, feature in dataset.features.items():
        if name not in ("image", "mask") and _decodes(feature):
            raise ValueError(f"the column {name!r} of {root} holds files (images, sounds), not numbers or texts")
        if name in ("image", "mask") and not isinstance(feature, Image):
            try:
                dataset = dataset.cast_column(name, Image())
            except (pa.ArrowException, TypeError, ValueError) as error:
                raise ValueError(f"the column {name!r} of {root} holds no images: {error}") from error
    return dataset


def _fields(kind: pa.DataType) -> set[str]:
    return {field.name for field in kind} if isinstance(kind, pa.StructType) else set()


def _check_types(dataset: Dataset, root: str | os.PathLike) -> None:
    """Raises ValueError if a column holds values of another type than `_TYPES` says."""
    kinds = {field.name: field.type for field in dataset.features.arrow_schema}
    objects = kinds["objects"]
    for field in objects if isinstance(objects, pa.StructType) else ():
        # A column of objects is a list; what is none has no values of any type.
        kinds[f"objects.{field.name}"] = getattr(field.type, "value_type", pa.null())
    for name, (wanted, holds) in _TYPES.items():
        if name in kinds and not holds(kinds[name]):
            kind = "no lists" if pa.types.is_null(kinds[name]) else kinds[name]
            raise ValueError(f"the column {name!r} of {root} holds {kind}, not {wanted}. Correct it, or leave it out")


def _decodes(feature: Any) -> bool:
    """Whether a feature, or one inside it, opens files when a row is read."""
    inner = feature.values() if isinstance(feature, dict) else feature if isinstance(feature, list) else ()
    of_list = getattr(feature, "feature", None)
    return (
        hasattr(feature, "decode_example") or any(map(_decodes, inner)) or (of_list is not None and _decodes(of_list))
    )


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
    """The rows whose images are embedded or absent, or lie in a folder of images; the others are counted.

    Raises:
        ValueError: no row is left.
    """
    foreign: dict[int, str] = {}
    of_folder = dataset.info.builder_name == "imagefolder"  # That builder itself states the paths.
    for column in columns:
        images = _flat_table(dataset.select_columns([column]).cast_column(column, Image(decode=False)))
        paths = images[f"{column}.path"]
        by_path = paths.is_valid().to_numpy() & images[f"{column}.bytes"].is_null().to_numpy()
        stated = {number: paths[number].as_py() for number in np.flatnonzero(by_path).tolist()}
        foreign |= {n: path for n, path in stated.items() if not of_folder or _leads_out(root, path)}
    if not foreign:
        return dataset
    what = "is a link that leads outside the folder" if of_folder else "names a file in the place of an image"
    for number, path in sorted(foreign.items()):
        report.add("unsafe_path", f"{path!r}: row {number} {what}", image=path)
    if len(foreign) == len(dataset):
        raise ValueError(
            f"{root} holds {'links to images elsewhere' if of_folder else 'paths in the place of images or masks'}, "
            "which are not opened. Pass images=... (the folder of the images), or export it again with its images"
        )
    return dataset.select([number for number in range(len(dataset)) if number not in foreign])


def _leads_out(root: str | os.PathLike, path: str) -> bool:
    """Whether an image of a folder is a link to elsewhere; the Hub's cache links from its snapshots to its blobs."""
    folder = Path(os.path.abspath(fs_path(root)))
    if folder not in Path(fs_path(path)).parents:  # an archive that `datasets` has unpacked
        return False
    outer = folder.parent.parent if folder.parent.name == "snapshots" else folder
    try:
        resolve_inside(unicode_path(outer), unicode_name(os.path.relpath(fs_path(path), outer)))
    except ValueError:
        return True
    return False
