"""Write a dataset as Parquet with a card, so that ``load_dataset(FOLDER)`` reads it without this package.

    lpg-hf export-data OUT --format voc --root VOC2012 --split train_aug --split val --masks --embed-images
    lpg-hf export-data OUT --format coco --annotations instances_train2017.json --images train2017 --classes nonvoc60

    OUT/README.md                                the card: YAML `configs:`, counts, columns, classes
    OUT/data/SPLIT-00000-of-00001.parquet        rows as in `lpg_hf.data.builders`

Without ``--embed-images`` the column `image` is left out, and `file_name` says which image of your own copy belongs to
a row: ``load_boxes("parquet", root=OUT, images=FOLDER)`` puts them together again. Class masks are always embedded. No
path of this machine is written. ``lpg-hf push-data ORG/NAME`` with the same options uploads what this writes.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq
from datasets import Dataset
from datasets.table import embed_table_storage, table_cast
from huggingface_hub import DatasetCard, DatasetCardData

from lpg_hf._cards import render_card
from lpg_hf._files import fs_path, place_output, unfinished_folder, write_atomically
from lpg_hf.data._formats.coco import with_class_names
from lpg_hf.data._formats.yolo_dataset import is_relative
from lpg_hf.data.load import class_names, load_boxes
from lpg_hf.data.options import ReadOptions
from lpg_hf.data.report import Report


logger = logging.getLogger(__name__)

TITLES = {"coco": "COCO", "voc": "Pascal VOC", "yolo": "YOLO"}  # of the formats that can be exported
ROWS_PER_SHARD = 1000
ROWS_PER_SHARD_WITHOUT_IMAGES = 50_000
ROW_GROUP_SIZE = 100
# The Hub's names for numbers of rows: (below, name).
SIZE_CATEGORIES = [
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (float("inf"), "1M<n<10M"),
]


def _write_shards(dataset: Dataset, folder: Path, split: str, rows_per_shard: int) -> None:
    """Write a dataset as Parquet files `SPLIT-00000-of-0000N.parquet`, images and masks embedded.

    Args:
        dataset: of `load_boxes`.
        folder: where the files go.
        split: first part of their names.
        rows_per_shard: largest number of rows in a file; so many images are held in memory at once.
    """
    num_shards = max(1, -(-len(dataset) // rows_per_shard))
    schema = dataset.features.arrow_schema
    for index in range(num_shards):
        shard = dataset.shard(num_shards, index, contiguous=True).with_format("arrow")
        table = embed_table_storage(table_cast(shard[:], schema))
        # pyarrow itself opens no path that is no Unicode, as one of other letters in a C locale.
        with open(folder / f"{split}-{index:05d}-of-{num_shards:05d}.parquet", "wb") as file:
            pq.write_table(table, file, row_group_size=ROW_GROUP_SIZE)


def _columns(dataset: Dataset) -> list[tuple[str, str]]:
    meaning = {
        "image": "the image file",
        "image_id": "id in the annotation file",
        "file_name": "relative to the image folder",
        "width": "pixels, upright",
        "height": "pixels, upright",
        "objects": "lists, one item per object: " + ", ".join(f"`{name}`" for name in dataset.features["objects"]),
        "license": "of the image, as the annotation file states it",
        "mask": "class mask, PNG of class indices",
    }
    return [(name, meaning[name]) for name in dataset.features]


def _text(word: str) -> str:
    """A word of the command line as text, in any locale: what is no UTF-8 becomes the replacement mark."""
    return word.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def write_card(
    folder: Path, datasets: dict[str, Dataset], title: str, source: str, repo_id: str | None = None
) -> None:
    """Write README.md for Parquet files in `folder`/data.

    Args:
        folder: the dataset's folder.
        datasets: split name -> rows, as written.
        title: of the card.
        source: name of the annotation format.
        repo_id: where the card will be on the Hub; None: it tells how to read the folder.
    """
    first = next(iter(datasets.values()))
    num_images = sum(len(dataset) for dataset in datasets.values())
    data = DatasetCardData(
        pretty_name=title,
        license="other",
        task_categories=["object-detection", "image-segmentation"],
        size_categories=next(name for limit, name in SIZE_CATEGORIES if num_images < limit),
        tags=["bounding-boxes", "box-supervised-segmentation"],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"data/{split}-*.parquet"} for split in datasets],
            }
        ],
    )
    licenses = (
        sorted({name for d in datasets.values() for name in d["license"][:]} - {""})
        if "license" in first.features
        else []
    )
    content = render_card(
        "dataset.md",
        card_data=data.to_yaml(),
        title=title,
        source=source,
        name=repo_id or _text(folder.name),
        split=next(iter(datasets)),
        counts=[
            (split, len(dataset), sum(len(item["id"]) for item in dataset["objects"]))
            for split, dataset in datasets.items()
        ],
        columns=_columns(first),
        has_images="image" in first.features,
        classes=class_names(first),
        category_ids=first.info.description if first.info.description.startswith("COCO category ids") else "",
        has_license="license" in first.features,
        licenses=licenses,
    )
    DatasetCard(content)  # parses the front matter
    write_atomically(folder / "README.md", content.encode("utf-8"))


@dataclass(frozen=True)
class Export:
    """What is exported.

    Attributes:
        format: "coco", "voc" or "yolo".
        root: folder of the dataset.
        annotations: as of `load_boxes`: one file for all splits, or one for each; empty: the usual one.
        images: as of `load_boxes`.
        splits: their names; empty: one, "train".
        with_images: embed the image files.
        title: of the card; None: the name of the repository or the folder.
        repo_id: where it will be on the Hub.
    """

    format: str
    root: str | os.PathLike | None = None
    annotations: Sequence[str] = ()
    images: str | os.PathLike | None = None
    splits: Sequence[str] = ()
    with_images: bool = False
    title: str | None = None
    repo_id: str | None = None


def write_dataset(
    out: str | os.PathLike,
    export: Export,
    options: ReadOptions = ReadOptions(),
    *,
    num_proc: int = 1,
    report: Report | None = None,
) -> int:
    """Write a COCO, VOC or YOLO dataset as Parquet with a card; `out` is written completely or not at all.

    Args:
        out: new folder; it must not exist, or be empty.
        export: what to write.
        options: how it is read; `classes` may also be one text, names with commas between.
        num_proc: processes that check the images.
        report: takes the problems of all splits, for the caller to show.

    Returns:
        Number of rows.

    Raises:
        ValueError: settings that do not fit together, or annotations that cannot be used.
        FileExistsError: `out` is in use.
        OSError: a file cannot be read or written.
    """
    if export.format not in TITLES:
        raise ValueError(f"--format must be one of {', '.join(TITLES)}, got {export.format!r}")
    target = Path(fs_path(os.path.abspath(fs_path(out))))
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not (target / "README.md").is_file()):
        raise FileExistsError(f"{out} exists already and is not empty; choose another folder or remove it")
    loaded = _load_splits(export, options, num_proc, report)
    rows = ROWS_PER_SHARD if export.with_images else ROWS_PER_SHARD_WITHOUT_IMAGES
    title = _text(export.title or (export.repo_id.split("/")[-1] if export.repo_id else target.name))
    with unfinished_folder(target) as unfinished:
        written = unfinished / target.name
        (written / "data").mkdir(parents=True)
        for name, dataset in loaded.items():
            _write_shards(dataset, written / "data", name, rows)
        write_card(written, loaded, title, TITLES[export.format], export.repo_id)
        if not place_output(written, target):
            logger.warning("%s holds these rows already; nothing was written", out)
    return sum(len(dataset) for dataset in loaded.values())


def _with_readable_names(dataset: Dataset, report: Report | None) -> Dataset:
    """The rows whose image can be found by its name, when the rows are read; the others are counted."""
    names, found = dataset["file_name"][:], Report()
    kept = [number for number, name in enumerate(names) if is_relative(name)]
    for number in sorted({*range(len(names))} - {*kept}):
        found.add("unwritable_name", repr(names[number]))
    if not kept and names:
        raise ValueError(f"no image has a name that rows can hold, such as {names[0]!r}. Rename the images")
    if report is not None:
        report.merge(found)
    elif found.counts:
        logger.warning("%s", found.summary())
    return dataset if len(kept) == len(names) else dataset.select(kept)


def _load_splits(export: Export, options: ReadOptions, num_proc: int, report: Report | None) -> dict[str, Dataset]:
    """The rows of each split as they are written, by the name that `datasets` gives it."""
    options = with_class_names(options, export.format)
    options.check_no_rendering()
    names, files = export.splits or [None], export.annotations or [None]
    files = list(files) * len(names) if len(files) == 1 else files
    if len(files) != len(names):
        raise ValueError(f"{len(files)} --annotations for {len(names)} --split: give one for all or one for each")
    loaded = {}
    for name, file in zip(names, files):
        dataset = load_boxes(
            export.format,
            root=export.root,
            annotations=file,
            images=export.images,
            num_proc=num_proc,
            report=report,
            **replace(options, split=name).changed,
        )
        dataset = dataset if export.with_images else dataset.remove_columns("image")
        loaded[str(dataset.split)] = _with_readable_names(dataset, report)
    if len({tuple(class_names(dataset)) for dataset in loaded.values()}) > 1:
        raise ValueError("the splits have different classes; pass --classes to fix them")
    return loaded
