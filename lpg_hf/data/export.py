"""Write a data set as Parquet with a card, so that ``load_dataset(FOLDER)`` reads it without this package.

    python -m lpg_hf.data.export OUT --format voc --root VOC2012 --split train_aug --split val --masks --with-images
    python -m lpg_hf.data.export OUT --format coco --annotations instances_train2017.json --images train2017 --classes nonvoc60

    OUT/README.md                                the card: YAML `configs:`, counts, columns, classes
    OUT/data/SPLIT-00000-of-00001.parquet        rows as in `lpg_hf.data.builders`

Without ``--with-images`` the column `image` is left out, and `file_name` says which picture of your own copy belongs to a row:
``load_boxes("parquet", root=OUT, images=FOLDER)`` puts them together again. Class masks are always embedded. No path of this
machine is written. Upload the folder with ``hf upload ORG/NAME OUT --repo-type dataset``.
"""

import json
from pathlib import Path
from typing import Annotated

import pyarrow.parquet as pq
import typer
from datasets import Dataset
from datasets.table import embed_table_storage, table_cast

from lpg_hf.data.load import class_names, load_boxes


ROWS_PER_SHARD = 1000
ROWS_PER_SHARD_WITHOUT_IMAGES = 50_000
ROW_GROUP_SIZE = 100

CARD = """---
pretty_name: {quoted_title}
task_categories:
- object-detection
- image-segmentation
tags:
- bounding-boxes
- box-supervised-segmentation
configs:
- config_name: default
  data_files:
{data_files}
---

# {title}

Written by `lpg_hf.data.export` from {source} annotations.

```python
from datasets import load_dataset

dataset = load_dataset("{folder}")
```

| split | images | objects |
| --- | --- | --- |
{counts}

## Columns

{columns}

Boxes are x, y, width, height in pixels of the picture shown upright (EXIF orientation applied). A semantic label is
`category` + 1; 0 is the background and 255 is ignored.

## Classes

{classes}

## Licence

{license}
"""


def write_shards(dataset: Dataset, folder: Path, split: str, rows_per_shard: int) -> None:
    """Write a data set as Parquet files `SPLIT-00000-of-0000N.parquet`, pictures and masks embedded.

    Args:
        dataset: of `load_boxes`.
        folder: where the files go.
        split: first part of their names.
        rows_per_shard: largest number of rows in a file; so many pictures are held in memory at once.
    """
    num_shards = max(1, -(-len(dataset) // rows_per_shard))
    schema = dataset.features.arrow_schema
    for index in range(num_shards):
        shard = dataset.shard(num_shards, index, contiguous=True).with_format("arrow")
        table = embed_table_storage(table_cast(shard[:], schema))
        path = folder / f"{split}-{index:05d}-of-{num_shards:05d}.parquet"
        pq.write_table(table, path, row_group_size=ROW_GROUP_SIZE)


def _columns(dataset: Dataset) -> str:
    meaning = {
        "image": "the picture file",
        "image_id": "id in the annotation file",
        "file_name": "relative to the image folder",
        "width": "pixels, upright",
        "height": "pixels, upright",
        "objects": "lists, one item per object: " + ", ".join(f"`{name}`" for name in dataset.features["objects"]),
        "license": "of the picture, as the annotation file states it",
        "mask": "class mask, PNG of class indices",
    }
    lines = [f"- `{name}`: {meaning[name]}" for name in dataset.features]
    if "image" not in dataset.features:
        lines.append("\nThe pictures are not part of this data set: `file_name` names them in the original one.")
    return "\n".join(lines)


def write_card(folder: Path, datasets: dict[str, Dataset], title: str, source: str) -> None:
    """Write README.md for Parquet files in `folder`/data.

    Args:
        folder: the data set's folder.
        datasets: split name -> rows, as written.
        title: of the card.
        source: name of the annotation format.
    """
    first = next(iter(datasets.values()))
    data_files = "\n".join(f"  - split: {split}\n    path: data/{split}-*.parquet" for split in datasets)
    counts = "\n".join(
        f"| {split} | {len(dataset)} | {sum(len(item['id']) for item in dataset['objects'])} |"
        for split, dataset in datasets.items()
    )
    ids = first.info.description if first.info.description.startswith("COCO category ids") else ""
    names = "\n".join(f"{label}. {name}" for label, name in enumerate(class_names(first), start=1))
    license_text = "The pictures keep the licences of their source"
    license_text += " (column `license`)." if "license" in first.features else "."
    card = CARD.format(
        title=title,
        quoted_title=json.dumps(title, ensure_ascii=False),
        folder=folder.name,
        source=source,
        data_files=data_files,
        counts=counts,
        columns=_columns(first),
        classes=f"{names}\n\n{ids}".rstrip(),
        license=license_text,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def export(
    out: Annotated[Path, typer.Argument(help="Folder to write; it must not hold a data set yet.")],
    format: Annotated[str, typer.Option(help="coco or voc.")],
    root: Annotated[Path | None, typer.Option(help="Folder of the data set.")] = None,
    annotations: Annotated[
        list[str] | None, typer.Option(help="COCO: json file, one for each --split. VOC: other folder of xml files.")
    ] = None,
    images: Annotated[str | None, typer.Option(help="Image folder, if it is not the usual one.")] = None,
    split: Annotated[list[str] | None, typer.Option(help="Name of a split; may be repeated. Default: train.")] = None,
    classes: Annotated[
        str | None, typer.Option(help="COCO: nonvoc60, voc20, all80. Both: all, or names with commas between.")
    ] = None,
    masks: Annotated[bool, typer.Option(help="Write the masks too.")] = False,
    with_images: Annotated[bool, typer.Option(help="Embed the picture files.")] = False,
    keep_empty: Annotated[bool, typer.Option(help="Keep pictures without an object of the classes.")] = False,
    allow_missing: Annotated[bool, typer.Option(help="Go on without pictures that do not exist.")] = False,
    num_proc: Annotated[int, typer.Option(help="Processes that check the pictures.")] = 1,
    title: Annotated[str | None, typer.Option(help="Title of the card. Default: the name of the folder.")] = None,
) -> None:
    """Write a COCO or VOC data set as Parquet with a card."""
    named_sets = ("all", "nonvoc60", "voc20", "all80")
    wanted = classes if classes is None or classes in named_sets else [name.strip() for name in classes.split(",")]
    splits: list[str | None] = list(split or [None])
    files: list[str | None] = list(annotations or [None])
    if len(files) == 1:
        files = files * len(splits)
    try:
        if format not in ("coco", "voc"):
            raise ValueError(f"--format must be coco or voc, got {format!r}")
        if len(files) != len(splits):
            raise ValueError(f"{len(files)} --annotations for {len(splits)} --split: give one for all or one for each")
        if (out / "data").exists() or (out / "README.md").exists():
            raise ValueError(f"{out} holds a data set already; choose another folder or remove it")
        loaded = {}
        for name, file in zip(splits, files):
            dataset = load_boxes(
                format,
                root=root,
                annotations=file,
                images=images,
                split=name,
                classes=wanted,
                masks=masks,
                num_proc=num_proc,
                keep_empty=keep_empty,
                allow_missing=allow_missing,
            )
            loaded[str(dataset.split)] = dataset if with_images else dataset.remove_columns("image")
        if len({tuple(class_names(dataset)) for dataset in loaded.values()}) > 1:
            raise ValueError("the splits have different classes; pass --classes to fix them")
    except (ValueError, OSError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from error

    (out / "data").mkdir(parents=True)
    rows = ROWS_PER_SHARD if with_images else ROWS_PER_SHARD_WITHOUT_IMAGES
    for name, dataset in loaded.items():
        write_shards(dataset, out / "data", name, rows)
    write_card(out, loaded, title or out.name, {"coco": "COCO", "voc": "Pascal VOC"}[format])
    typer.echo(f"wrote {sum(len(dataset) for dataset in loaded.values())} rows to {out}")


if __name__ == "__main__":
    typer.run(export)
