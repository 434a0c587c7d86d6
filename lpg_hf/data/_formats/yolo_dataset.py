"""A YOLO dataset that trains as it lies there: where images and labels go, data.yaml and its lists of images.

    OUT/data.yaml             train, val, test: lists; names. No `path`: the trainer then takes the folder of
                              data.yaml, and would take a relative one from its own working folder
    OUT/train.txt, val.txt    one image a line, "./images/a.jpg": the trainer replaces "./" by the folder of the list
    OUT/images/a.jpg          a link or copy per file. A linked folder would not do: the trainer resolves it, and then
                              reads the labels that lie beside the real one
    OUT/labels/a.txt          where the trainer looks: the last folder "images" of an image's path becomes "labels"

An image whose name holds a folder "images" keeps its place: train/images/a.jpg has its labels in train/labels/a.txt.
The rules are those of the ultralytics package; tests/consumers/test_yolo_rules.py states them.
"""

import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

from lpg_hf._files import atomic_file, fs_path, relative_name
from lpg_hf.data._formats.yolo_layout import IMAGES_FOLDER, LABELS_FOLDER, SPLIT_ALIASES, SPLITS, YAML_FILES, swap_last


# How the images of a source get into a dataset.
WITH_IMAGES = ("link", "copy", "none")


def image_place(file_name: str) -> str:
    """Where an image of a source lies in the dataset, relative to it; forward slashes."""
    return file_name if IMAGES_FOLDER in file_name.split("/")[:-1] else f"{IMAGES_FOLDER}/{file_name}"


def label_place(file_name: str) -> str:
    """Where the trainer looks for the label file of an image of a source."""
    stem = os.path.splitext(image_place(file_name))[0]
    return f"{swap_last(stem, IMAGES_FOLDER, LABELS_FOLDER)}.txt"


def is_relative(name: str) -> bool:
    """Whether our readers take a name of an image for a relative one: not C:a.jpg."""
    try:
        return bool(relative_name(name))
    except ValueError:
        return False


def is_line(name: str) -> bool:
    """Whether a list of relative names, one a line, holds this one as our readers take it back."""
    is_text = not re.search("[\ud800-\udfff]", name)
    return is_text and name.splitlines() == [name.strip()] and is_relative(name) and relative_name(name) == name


def holds_name(file_name: str) -> bool:
    """Whether the lists of a dataset hold the name of an image."""
    return is_line(image_place(file_name))


def split_of_name(file_name: str) -> str | None:
    """The split that a folder of a name states: "valid/images/a.jpg" is of "val"."""
    for folder in file_name.split("/")[:-1]:
        name = SPLIT_ALIASES.get(folder.lower(), folder.lower())
        if name in SPLITS:
            return name
    return None


def dataset_files(
    names: Sequence[str], file_names: Sequence[str], splits: Mapping[str, str] | None = None
) -> dict[str, str]:
    """data.yaml and the lists that it names, as texts by their relative names.

    Args:
        names: of the classes, in the order of the class numbers.
        file_names: of the images that have a label file.
        splits: file name -> "train", "val" or "test"; a name that it lacks is of the split that its folders state,
            else of "train". The trainer needs a "val": without one, it is all of "train".

    Raises:
        ValueError: a name holds a line break, which a list cannot.
    """
    lists: dict[str, list[str]] = {}
    for file_name in file_names:
        if len(f"{file_name}|".splitlines()) > 1:
            raise ValueError(f"the image name {file_name!r} holds a line break, which a YOLO list cannot. Rename it")
        split = (splits or {}).get(file_name) or split_of_name(file_name) or SPLITS[0]
        lists.setdefault(split, []).append(f"./{image_place(file_name)}\n")
    lists.setdefault("train", lists.get("val", []))
    content: dict[str, object] = {split: f"{split}.txt" for split in SPLITS if split in lists}
    content.setdefault("val", content["train"])
    content["names"] = dict(enumerate(names))
    files = {f"{split}.txt": "".join(lines) for split, lines in lists.items()}
    return {**files, YAML_FILES[0]: yaml.safe_dump(content, allow_unicode=True, sort_keys=False)}


@dataclass(frozen=True)
class YoloOptions:
    """What a converted YOLO dataset holds.

    Attributes:
        with_images: "link" or "copy" the images file by file, or "none".
        simplify: of the outlines, pixels, see `yolo.mask_to_polygons`; 0: every pixel again.

    Raises:
        ValueError: another choice, or a distance below 0.
    """

    with_images: str = "link"
    simplify: float = 0.0

    def __post_init__(self):
        check_with_images(self.with_images)
        check_simplify(self.simplify)


def check_simplify(value: float) -> None:
    """Raises ValueError if this is no distance."""
    if not 0 <= value < math.inf:
        raise ValueError(f"simplify={value} is a distance in pixels: it must be 0 or above.")


def check_with_images(value: str) -> None:
    """Raises ValueError if a value is none of `WITH_IMAGES`."""
    if value not in WITH_IMAGES:
        raise ValueError(f"with_images={value!r} (--with-images) must be one of {', '.join(WITH_IMAGES)}")


def place_image(path: str, place: str | os.PathLike, how: str, scratch: str | os.PathLike | None = None) -> None:
    """Put one image into a dataset; one that is there already is replaced, unless it is the same file.

    Args:
        path: of the image.
        place: of the new file; its folder is created.
        how: "link" (a hard link, which is a file of the folder as any other; across disks a symbolic link; a copy
            where the system makes neither), "copy", or "none".
        scratch: as of `files.atomic_file`.

    Raises:
        OSError: it cannot be written.
    """
    source, target = os.path.realpath(fs_path(path)), fs_path(place)
    if how == "none" or (os.path.exists(target) and os.path.samefile(source, target) and how == "link"):
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if how == "link":
        if os.path.lexists(target):
            os.unlink(target)
        for make in (os.link, os.symlink):
            try:
                make(source, target)
                return
            except (NotImplementedError, OSError):
                continue
    with open(source, "rb") as image, atomic_file(place, scratch) as file:
        shutil.copyfileobj(image, file)
