"""COCO 2017: the auxiliary dataset of the paper's main experiment."""

import json
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from lpg_hf._files import read_text, write_json
from lpg_hf.data._prepare import archives
from lpg_hf.data._prepare.archives import (
    Entry,
    below,
    convert_entry,
    destination,
    find_archives,
    open_archive,
    write_entry,
)
from lpg_hf.data._prepare.progress import PrepareOptions, Progress
from lpg_hf.data._prepare.resized import smaller_coco, write_smaller_jpeg
from lpg_hf.data.sources import evenly
from lpg_hf.labels import COCO_NONVOC_IDS


def prepare_coco60(options: PrepareOptions) -> None:
    """COCO 2017: instances and images of train and val. See `prepare`.

    A subset takes images that hold one of the 60 classes outside VOC, and keeps all 80 classes in them.
    """
    zips = {"train2017": archives.COCO_TRAIN, "val2017": archives.COCO_VAL}
    wanted = [archives.COCO_ANNOTATIONS, *zips.values()]
    paths = dict(zip(wanted, find_archives(options.archive_folder, wanted), strict=True))
    progress = Progress(options.root / "coco", options)
    for archive, path in paths.items():
        progress.check(path, archive)

    names = {f"instances_{split}.json" for split in zips}
    if not progress.is_finished("annotations"):
        with open_archive(paths[archives.COCO_ANNOTATIONS]) as entries:
            for entry in below(entries, "annotations/", names):
                _write_instances(entry, progress.folder / "annotations", options)
        progress.finish("annotations")
    for split, archive in zips.items():
        if progress.is_finished(split):
            continue
        chosen = None if options.is_copy else _image_names(progress.folder / f"annotations/instances_{split}.json")
        with open_archive(paths[archive]) as entries:
            _write_images(below(entries, f"{split}/", chosen), progress.folder / split, options)
        progress.finish(split)


def _write_instances(entry: Entry, folder: Path, options: PrepareOptions) -> None:
    """A COCO file, or the part of it that a subset has."""
    if options.is_copy:
        write_entry(entry, folder, entry.name)
        return
    with entry.open() as file:
        content = json.load(file)
    ids = {item["image_id"] for item in content["annotations"] if item["category_id"] in COCO_NONVOC_IDS}
    if options.limit is None:
        ids = {image["id"] for image in content["images"]}
    chosen = set(evenly(sorted(ids), options.limit or len(ids)))
    write_json(destination(folder, entry.name), smaller_coco(content, chosen, options.long_side))


def _image_names(path: Path) -> set[str]:
    return {image["file_name"] for image in json.loads(read_text(path))["images"]}


def _write_images(entries: Iterable[Entry], folder: Path, options: PrepareOptions) -> None:
    """JPEG files, smaller if that is asked for; those that are there are skipped."""
    long_side = options.long_side
    for entry in tqdm(entries, desc=f"writing {folder.name}", unit="image", disable=None, leave=False):
        if long_side is None:
            write_entry(entry, folder, entry.name)
        else:
            convert_entry(entry, folder, entry.name, lambda path, data: write_smaller_jpeg(path, data, long_side))
