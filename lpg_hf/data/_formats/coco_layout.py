"""Where the COCO files of a folder are, where their images are, and what tools write differently in them.

ROOT/annotations/instances_SPLIT.json  ROOT/SPLIT/*.jpg      the official layout
ROOT/annotations.json  ROOT/instances.json  ROOT/images      found by name
ROOT/SPLIT/_annotations.coco.json                            Roboflow: one file a split, beside its images
ROOT/*.json, ROOT/annotations/*.json                         the only file that holds images and annotations, or one
                                                             file per image
"""

import os
import re
from collections.abc import Iterable, Sequence

from lpg_hf._files import LONGEST_PATH, fs_path, read_head, unicode_name, unicode_path, walk_files
from lpg_hf.data._formats.image_finder import ImageFinder, StatedImage, num_found
from lpg_hf.data._formats.json_files import json_sample
from lpg_hf.data._formats.tool_image import is_of_split, names_of_split
from lpg_hf.data.records import finite_numbers


_ROBOFLOW_FILE = "_annotations.coco.json"
_ANNOTATION_FOLDERS = ("", "annotations/", "annotation/", "labels/")
_IMAGE_FOLDERS = ("images", "data", "JPEGImages", "")
_HEAD = 100_000
# Images of a file that are looked for in each folder.
_NUM_TRIED = 20
# Keys of a box that is a mapping, and what the last two are.
_BOX_KEYS = (
    (("x", "y", "width", "height"), "size"),
    (("left", "top", "width", "height"), "size"),
    (("x", "y", "w", "h"), "size"),
    (("xmin", "ymin", "xmax", "ymax"), "corner"),
    (("x1", "y1", "x2", "y2"), "corner"),
)


def _is_coco(path: str) -> bool:
    """Whether a json file holds a list of images and one of annotations that are not captions or panoptic segments."""
    content = json_sample(path) if path.lower().endswith(".json") else None
    if isinstance(content, dict):
        images, annotations = content.get("images"), content.get("annotations")
        first = annotations[0] if isinstance(annotations, list) and annotations else {}
        is_other = isinstance(first, dict) and not {"caption", "segments_info"}.isdisjoint(first)
        return isinstance(images, list) and isinstance(annotations, list) and not is_other
    if content is not None:
        return False
    head = read_head(path, _HEAD)
    found = {key for key in ("images", "annotations", "categories") if re.search(rf'"{key}"\s*:\s*\[', head)}
    return head.lstrip()[:1] == "{" and bool(found) and not re.search(r'"(caption|segments_info)"\s*:', head)


def files_by_content(root: str, split: str | None) -> list[str]:
    """The COCO files of a folder that have none of the usual names.

    Args:
        root: absolute, forward slashes.
        split: only files with this name, or in a folder of this name; None: all.

    Returns:
        Roboflow's files, one a split; else the only COCO file; else one file per image. Empty if there is none, or if
        it is not clear which of several is meant.
    """
    folders = sorted(unicode_name(item.name) for item in os.scandir(fs_path(root)) if item.is_dir())
    found = [f"{folder}/{_ROBOFLOW_FILE}".lstrip("/") for folder in ["", *folders]]
    found = [name for name in found if os.path.isfile(fs_path(f"{root}/{name}"))]
    if not found:
        for folder in _ANNOTATION_FOLDERS:
            names = walk_files(f"{root}/{folder}", (".json",), deep=False) if folder[:-1] in ["", *folders] else []
            found = [f"{folder}{name}" for name in names if _is_coco(f"{root}/{folder}{name}")]
            if found:
                break
    if split is not None:
        found = [name for name in found if is_of_split(name, names_of_split(split))]
    paths = [f"{root}/{name}" for name in found]
    if len(paths) > 1 and not found[0].endswith(_ROBOFLOW_FILE) and not all(map(_has_one_image, paths)):
        return []
    return paths


def _has_one_image(path: str) -> bool:
    content = json_sample(path)
    return isinstance(content, dict) and len(content["images"]) == 1


def image_folder(file: str, root: str | None, split: str | None, names: Iterable[str]) -> str | None:
    """The folder in which the images of a COCO file are found, or None.

    Args:
        file: the COCO file.
        root: folder of the dataset; None: that of the file.
        split: name of the split.
        names: of the images as the file states them.
    """
    tried = [StatedImage(name) for _, name in zip(range(_NUM_TRIED), names)]
    base = os.path.dirname(file)
    roots = [folder for folder in (root, base, os.path.dirname(base)) if folder]
    # instances_train2017.json has its images in train2017, CVAT's instances_default.json in images/default.
    splits = (
        names_of_split(split) if split is not None else os.path.basename(file).removesuffix(".json").split("_")[1:]
    )
    inner = [*splits, *(f"images/{name}" for name in splits), *_IMAGE_FOLDERS]
    places = [os.path.join(folder, name).rstrip("/") for folder in roots for name in inner]
    folders = [unicode_path(place) for place in dict.fromkeys(places) if os.path.isdir(fs_path(place))]
    for folder in folders:
        if any(ImageFinder(folder).exact(image) for image in tried):
            return folder
    # By the end of the name. What lies above the file may be anything: it counts only beside a folder of annotations.
    above = unicode_path(os.path.dirname(base))
    is_apart = f"{os.path.basename(base).lower()}/" in _ANNOTATION_FOLDERS
    near = [unicode_path(folder) for folder in (root, base) if folder]
    for folder in folders:
        is_near = any(folder == place or folder.startswith(f"{place}/") for place in near)
        if folder != above and (is_near or is_apart) and num_found(folder, tried):
            return folder
    return None


def image_name(entry: dict) -> str | None:
    """The name of an image entry: its file_name, or the end of its coco_url (LVIS: train2017/000000000001.jpg).

    None: it has none, or one that is longer than a path can be.
    """
    name, address = entry.get("file_name"), entry.get("coco_url")
    if not isinstance(name, str) and isinstance(address, str):
        name = "/".join(address.split("/")[-2:])
    return name if isinstance(name, str) and len(name) <= LONGEST_PATH else None


def box_of_mapping(bbox: dict) -> list[float] | None:
    """A box that is a mapping as x, y, width, height; None if it has other keys or values."""
    for keys, what in _BOX_KEYS:
        numbers = finite_numbers([bbox.get(key) for key in keys], 4)
        if numbers is not None and len(bbox) == 4:
            x, y, a, b = numbers
            return [x, y, a, b] if what == "size" else [x, y, a - x, b - y]
    return None


def shared_classes(parts: Sequence[Sequence[tuple[int | str, str]]]) -> list[tuple[int | str, str]]:
    """The classes of several files as one list: by their ids if no id means two things, else renumbered from 1."""
    pairs = list(dict.fromkeys(pair for part in parts for pair in part))
    if len({category_id for category_id, _ in pairs}) == len({name for _, name in pairs}) == len(pairs):
        return sorted(pairs, key=lambda pair: (isinstance(pair[0], str), pair[0]))
    names = dict.fromkeys(name for _, name in pairs)
    return list(enumerate(names, start=1))
