"""MS-COCO instance annotations (one json file) <-> records.

`read_index` reads the file once, checks what concerns it as a whole, and gives one light entry per image;
`make_record` turns an entry into a record, and may run in other processes; `write_coco` writes records.

Masks are kept compressed, as RLE text. Without `masks` the field "segmentation" is dropped unread, except for an
object that states no box: its box is then the extent of its polygons or its RLE.

Each object is made small while the json is parsed, so that polygons that are not wanted never pile up. A file of 1
million boxes on 100,000 images adds 0.5 GB to the process and takes 10 s; with 15-point polygons (380 MB of json) 0.8
GB while it is read without `masks` (0.4 GB after), 1.1 GB and 27 s with them. The limit is the text of the file, which
is read as a whole.
"""

import json
import math
import os
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from lpg_hf._files import fs_path, json_text, relative_name, resolve_inside, unicode_path
from lpg_hf.boxes import convert_boxes
from lpg_hf.data._formats import coco_layout
from lpg_hf.data._formats.image_finder import StatedImage, match_images, name_in_address
from lpg_hf.data._formats.json_files import read_json
from lpg_hf.data._formats.rle import checked_rle, fits, polygons_of, segmentation_to_rle
from lpg_hf.data._formats.tool_image import free_name, tell_apart
from lpg_hf.data.options import Classes, ReadOptions
from lpg_hf.data.records import (
    NO_CLASS,
    UNNAMED,
    Box,
    BoxObject,
    Geometry,
    Record,
    box_area,
    checked_box,
    finish_record,
    finite_numbers,
    image_geometry,
    note_corners,
    stated_size,
)
from lpg_hf.data.report import MissingFiles, NothingUsable, Report, check_missing
from lpg_hf.labels import COCO_CLASSES, COCO_NONVOC_IDS, COCO_VOC_IDS, clean_name


NAMED_CLASS_SETS = {
    "nonvoc60": COCO_NONVOC_IDS,
    "voc20": COCO_VOC_IDS,
    "all80": tuple(category_id for category_id, _ in COCO_CLASSES),
}


# What is used of an image entry.
IMAGE_KEYS = ("id", "file_name", "coco_url", "width", "height", "license")
_OBJECT_KEYS = {"bbox", "category_id", "segmentation"}
HEADER_KEYS = ("info", "licenses", "categories")
_MOST_LEVELS = 100  # of lists and mappings in the header
Category = tuple[int | str, str]  # (category id, name)
# Crowd regions that regions of no class may become, of every class each: in all, and for each object.
_MOST_REGIONS = 300_000
_PER_OBJECT = 10


@dataclass(slots=True)
class _CocoAnnotation:
    """One object of the file, with only what is used of it; fields as in the file, but for

    Attributes:
        id: made unique by `read_index`.
        category: 0-based class, set by `read_index`; `NO_CLASS`: not one that is known.
        bbox: an array of four floats, or what the file holds if that is none.
        segmentation: None if masks are not wanted (and there is a box); polygons are arrays of floats where they can
            be.
    """

    id: Any
    image_id: Any
    category_id: Any
    bbox: Any
    area: Any
    iscrowd: Any
    segmentation: Any
    category: int = -1


@dataclass
class CocoEntry:
    """One image of the file, not yet checked.

    Attributes:
        image_id: text.
        file_name: safe relative name, forward slashes.
        path: of the image; None: it does not exist.
        size: (height, width) as stated, or None if the file states none that can be true.
        license: name and address.
        annotations: of the wanted classes.
    """

    image_id: str
    file_name: str
    path: str | None
    size: tuple[int, int] | None
    license: str = ""
    annotations: list[_CocoAnnotation] = field(default_factory=list)


@dataclass
class _Listing:
    """The images of a file: entries by the text of their id, and the ids of those whose file name is refused."""

    entries: dict[str, CocoEntry] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)

    def holds_a_box(self) -> bool:
        """Whether an object of a known class has a box, or a segmentation in its place."""
        items = (item for entry in self.entries.values() for item in entry.annotations)
        return any(
            item.category != NO_CLASS and (isinstance(item.bbox, array) or (not item.bbox and item.segmentation))
            for item in items
        )


@dataclass
class CocoIndex:
    """The whole file: `classes` are in the order of the labels, `header` its other parts, `image_folder` absolute."""

    classes: list[Category]
    entries: list[CocoEntry]
    header: dict = field(default_factory=dict)
    image_folder: str = ""


def find_annotations(root: str | None, annotations: str | os.PathLike | None, split: str | None) -> str:
    """The annotation file that is meant.

    Args:
        root: folder of the dataset, or None.
        annotations: the file, absolute or relative to `root` or to the working folder; None searches `root` for
            annotations/instances_SPLIT.json (the official layout), instances_SPLIT.json, annotations.json,
            instances.json.
        split: name of the split.

    Raises:
        FileNotFoundError: nothing there; the message lists the json files of `root`.
        ValueError: neither `root` nor `annotations`.
    """
    if annotations is None and root is None:
        raise ValueError("COCO data needs root=... (the data folder) or annotations=... (the json file)")
    if annotations is not None:
        names = [str(annotations)]
    else:
        names = [f"annotations/instances_{split}.json", f"instances_{split}.json"] if split else []
        names += ["annotations.json", "instances.json"]
    places = [os.path.join(root, name) for name in names] if root is not None else []
    places += [str(annotations)] if annotations is not None else []
    for place in places:
        if os.path.isfile(fs_path(place)):
            return unicode_path(place)
    there = sorted(path.name for path in Path(fs_path(root)).glob("*.json")) if root is not None else []
    there += (
        sorted(f"annotations/{path.name}" for path in Path(fs_path(root)).glob("annotations/*.json")) if root else []
    )
    raise FileNotFoundError(
        f"annotation file not found: {' or '.join(places)}."
        + (f" The json files in {root} are: {', '.join(there) or 'none'}." if root is not None else "")
        + " Pass annotations=..."
    )


def find_images(root: str | None, images: str | os.PathLike | None, split: str | None, annotations: str) -> str:
    """The image folder that is meant.

    Args:
        root: folder of the dataset; None takes the folder of `annotations`.
        images: the folder, absolute or relative to `root` or to the working folder; None searches `root` for a folder
            with the name of the split, then "images", and else takes `root` itself.
        split: name of the split.
        annotations: the annotation file.

    Raises:
        FileNotFoundError: no such folder.
    """
    base = os.path.dirname(annotations) if root is None else root
    names = [str(images)] if images is not None else [*([split] if split else []), "images", ""]
    places = [os.path.join(base, name) for name in names] + ([str(images)] if images is not None else [])
    for place in places:
        if os.path.isdir(fs_path(place)):
            return unicode_path(place)
    raise FileNotFoundError(f"image folder not found: {' or '.join(places)}. Pass images=... (a folder)")


_ID_TYPES = (int, str, float)  # as json holds ids; only these can be compared in a set


def id_text(value: Any) -> str | None:
    """One text for an id, so that 1, 1.0 and "1" meet; None if it is not an id."""
    if type(value) is int:  # Nearly every id.
        return str(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return None
    return str(value).strip() or None


def id_of(text: str) -> int | str:
    """The id that a text of `id_text` means: a number if it is written as one ("007", "--3" and "²" are names)."""
    return int(text) if re.fullmatch(r"0|-?[1-9]\d{0,99}", text, re.ASCII) else text


def _is_no_name(value: object) -> bool:
    """Whether a value names no category, as `null` does, and the numbers that json does not have."""
    return value in (None, "") or (isinstance(value, float) and not math.isfinite(value))


def _list_of(content: dict, key: str, path: object) -> list:
    value = content.get(key)
    if not isinstance(value, list):
        raise ValueError(f'{path} is not a COCO annotation file: it has no list "{key}" (keys: {sorted(content)})')
    return value


def read_categories(content: dict, path: object, report: Report, drop_group: bool = False) -> list[Category]:
    """(id, name) of all categories of a file, by ascending id.

    Args:
        content: the parsed json.
        path: of the file, for messages.
        report: counts names that are changed because two categories have them.
        drop_group: leave out (and count) a category that no object has and that only groups the others. Where it is
            kept, it is the one that gives way if another has its name.

    Raises:
        ValueError: neither categories nor images, a category without id or name, or an id used twice.
    """
    categories: dict[str, Category] = {}
    for position, category in enumerate(_list_of(content, "categories", path)):
        key = id_text(category.get("id")) if isinstance(category, dict) else None
        if key is None or _is_no_name(category.get("name")):
            raise ValueError(f"{path}: category number {position + 1} has no id or no name: {category!r}")
        if key in categories:
            raise ValueError(
                f"{path}: two categories have the id {key}: {categories[key][1]!r} and {category['name']!r}"
            )
        categories[key] = (id_of(key), clean_name(str(category["name"])) or _name_of_id(key))
    if not categories and not content.get("images"):
        raise ValueError(f"{path} lists no categories")
    file = os.path.basename(str(path))
    group = _grouping_category(content["categories"])
    if drop_group and group is not None and group not in _used_categories(content.get("annotations")):
        report.add("grouping_category", f"{file}: {categories.pop(group)[1]} (category id {group})")
    pairs = sorted(categories.values(), key=lambda pair: (isinstance(pair[0], str), pair[0]))
    told = dict(tell_apart([pair for pair in pairs if str(pair[0]) != group]))
    if group in categories:
        category_id, name = categories[group]
        told[category_id] = free_name(name, group, set(told.values()))
    for category_id, name in pairs:
        if told[category_id] != name:
            report.add("duplicate_category_name", f"{file}: {name} (category id {category_id})")
    return [(category_id, told[category_id]) for category_id, _ in pairs]


def with_class_names(options: ReadOptions, format: str) -> ReadOptions:
    """The options with names in place of a text of names with commas between, unless the text names a class set."""
    named = ("all", *(NAMED_CLASS_SETS if format == "coco" else ()))
    if not isinstance(options.classes, str) or options.classes in named:
        return options
    return replace(options, classes=tuple(name.strip() for name in options.classes.split(",")))


def _select_classes(categories: list[Category], classes: Classes, path: object) -> list[Category]:
    """The wanted classes as (category id, name), by ascending id: the order of the labels.

    Args:
        categories: what the file holds.
        classes: None or "all" (what the file holds), "nonvoc60", "voc20" or "all80" (always the full official list, so
            that labels do not depend on which categories a file happens to list), or a list of names and ids.
        path: of the file, for messages.

    Raises:
        ValueError: unknown class, or a named set on a file whose ids mean other things.
    """
    if classes is None or classes == "all":
        return categories
    if isinstance(classes, str):
        if classes not in NAMED_CLASS_SETS:
            raise ValueError(
                f"unknown class set {classes!r}; choose all, {', '.join(NAMED_CLASS_SETS)}, or a list of names or ids"
            )
        official: list[Category] = [pair for pair in COCO_CLASSES if pair[0] in NAMED_CLASS_SETS[classes]]
        held = dict(categories)
        other = [(i, held[i], name) for i, name in official if i in held and held[i] != name]
        if other or not any(category_id in held for category_id, _ in official):
            what = (
                f"category {other[0][0]} is {other[0][1]!r}, not {other[0][2]!r}"
                if other
                else "none of its ids occurs"
            )
            raise ValueError(
                f"{classes!r} needs the official COCO category ids, but {path} has others: {what}. "
                "Pass classes='all' or a list of names"
            )
        return official
    by_name = {name: (category_id, name) for category_id, name in categories}
    by_id = {str(category_id): (category_id, name) for category_id, name in categories}
    chosen, unknown = set(), []
    for wanted in classes:
        pair = by_name.get(wanted) if isinstance(wanted, str) else None
        pair = pair or by_id.get(str(wanted))
        if pair is None:
            unknown.append(wanted)
        chosen.add(pair)
    if unknown:
        raise ValueError(
            f"classes {unknown} are not in {path}; it holds: {', '.join(f'{name} ({i})' for i, name in categories)}"
        )
    if not chosen:
        raise ValueError("the list of classes is empty; leave it out for all categories of the file")
    return [pair for pair in categories if pair in chosen]


def _licenses(content: dict) -> dict[str, str]:
    stated = content.get("licenses")
    licenses = {}
    for entry in stated if isinstance(stated, list) else []:
        key = id_text(entry.get("id")) if isinstance(entry, dict) else None
        if key is not None:
            licenses[key] = " ".join(str(entry[name]) for name in ("name", "url") if entry.get(name))
    return licenses


def _without_ambiguous(
    usable: dict[str, tuple[StatedImage, dict]],
    twice: dict[str, list[str]],
    file: str,
    options: ReadOptions,
    report: Report,
) -> None:
    """Take out all images that share an id with another one.

    Args:
        usable: the first image of each id.
        twice: id -> the names of the further images.

    Raises:
        ValueError: there are some, and they are not to be left out.
    """
    for key, others in twice.items():
        names = [usable.pop(key)[0].name, *others]
        if not options.skip_ambiguous and not options.keep_missing:
            raise ValueError(
                f"{file}: the images {' and '.join(map(repr, names[:3]))} have one id, {key}, so it is not known "
                "whose the objects of this id are. Correct the file, or leave them all out: skip_ambiguous=True "
                "(--skip-ambiguous)"
            )
        for name in names:
            report.add("duplicate_image_id", f"{name!r}: image {key}", image=name)


def _read_images(content: dict, file: str, root: str, options: ReadOptions, report: Report) -> _Listing:
    licenses = _licenses(content)
    listing = _Listing()
    usable: dict[str, tuple[StatedImage, dict]] = {}
    twice: dict[str, list[str]] = {}
    for number, image in enumerate(_list_of(content, "images", file), start=1):
        key = id_text(image.get("id")) if isinstance(image, dict) else None
        name = coco_layout.image_name(image) if isinstance(image, dict) else None
        if key is None or name is None:
            where = f"{file}: image number {number}"
            report.add("invalid_image_entry", where, image=where)
        elif key in usable:
            if usable[key][0].name == name:
                report.add("duplicate_file_name", f"{name!r}: image {key}")
            else:
                twice.setdefault(key, []).append(name)
        else:
            usable[key] = StatedImage(name, (name_in_address(name),)), image
    _without_ambiguous(usable, twice, file, options, report)
    listing.refused.update(twice)
    matched = match_images(root, [stated for stated, _ in usable.values()], report)
    by_name: dict[str, CocoEntry] = {}
    for key, (stated, image) in usable.items():
        if stated in matched.ambiguous:  # Counted already.
            listing.refused.add(key)
            continue
        name = matched.names.get(stated)
        try:
            file_name = name or relative_name(stated.name)
            path = f"{root}/{name}" if name is not None else None  # a matched name lies inside
            if path is None:
                resolve_inside(root, file_name)
        except ValueError as error:
            report.add("unsafe_path", f"{stated.name!r}: image {key} {error}", image=stated.name)
            listing.refused.add(key)
            continue
        if file_name in by_name:  # Their boxes belong to one image.
            report.add("duplicate_file_name", f"{stated.name!r}: image {key}")
            listing.entries[key] = by_name[file_name]
        else:
            license_key = id_text(image.get("license")) or ""
            listing.entries[key] = by_name[file_name] = CocoEntry(
                image_id=key,
                file_name=file_name,
                path=path,
                size=stated_size(image.get("height"), image.get("width")),
                license=licenses.get(license_key, license_key),
            )
    return listing


def _slim(masks: bool) -> Callable[[dict], Any]:
    """What keeps of each dict of the file only what is used."""

    def slim(item: dict) -> Any:
        if "image_id" in item and not ({"file_name", "coco_url"} & item.keys() and _OBJECT_KEYS.isdisjoint(item)):
            bbox, segmentation = item.get("bbox"), item.get("segmentation")
            if isinstance(bbox, dict):
                bbox = coco_layout.box_of_mapping(bbox) or bbox
            numbers = finite_numbers(bbox, 4)
            if not masks and bbox:
                segmentation = None
            elif isinstance(segmentation, list):
                if finite_numbers(segmentation, len(segmentation)):  # VIA writes one polygon without a list around it.
                    segmentation = [segmentation]
                polygons = [
                    finite_numbers(part, len(part)) if isinstance(part, list) else None for part in segmentation
                ]
                segmentation = [array("d", p) if p else part for p, part in zip(polygons, segmentation)]
            get = item.get
            box = array("d", numbers) if numbers else bbox
            return _CocoAnnotation(
                get("id"), item["image_id"], get("category_id"), box, get("area"), get("iscrowd"), segmentation
            )
        if "file_name" in item or "coco_url" in item:
            return {key: item[key] for key in IMAGE_KEYS if key in item}
        return item

    return slim


def _id_types(ids: Iterable) -> set[type]:
    return {type(value) for value in ids if isinstance(value, (int, str))}


def read_index(
    annotations: str | os.PathLike,
    images: str | os.PathLike | None,
    options: ReadOptions,
    report: Report,
    root: str | None = None,
) -> CocoIndex:
    """Read a COCO json file and find its images.

    Args:
        annotations: the json file.
        images: folder that the file names are relative to; None: the usual one in which some of them are found.
        options: `classes` as of `_select_classes`; `masks` keeps "segmentation".
        report: counts problems.
        root: folder of the dataset; None: that of the file.

    Returns:
        The classes and one entry per image, in the order of the file.

    Raises:
        FileNotFoundError: no such file or folder; images are missing.
        ValueError: not valid json or not COCO; unknown classes; no object of the classes at all.
    """
    path = unicode_path(annotations)
    content = read_json(path, _slim(options.masks))
    assert isinstance(content, dict)
    folder = _image_folder(content, path, images, options.split, root)
    file_name = os.path.basename(path)
    items = _list_of(content, "annotations", path)
    if items and not content.get("categories"):
        content["categories"] = _categories_of(items)
    categories = read_categories(content, path, report, drop_group=options.classes is None)
    classes = _Classes.choose(categories, options, path)
    listing = _read_images(content, file_name, folder, options, report)
    if not items and not options.keep_empty:
        raise ValueError(f"{path} lists no annotations, so there is nothing to train on")
    _compare_id_types(content, items, file_name, report)
    _assign(items, listing, classes, file_name, report)
    if items and not (listing.refused or "other_class" in report.counts) and not listing.holds_a_box():
        raise NothingUsable(path, report)
    selected = classes.selected
    report.classes = [f"{label} {name} (category id {i})" for label, (i, name) in enumerate(selected, start=1)]
    if not options.keep_empty and not any(
        item.category != NO_CLASS for entry in listing.entries.values() for item in entry.annotations
    ):
        held = ", ".join(f"{name} ({i})" for i, name in categories[:20]) + (", ..." if len(categories) > 20 else "")
        chosen = ", ".join(name for _, name in selected[:5]) + (", ..." if len(selected) > 5 else "")
        raise ValueError(
            f"no image of {path} has an object of the chosen classes ({chosen}). "
            f"The file's categories are: {held}.\n{report.summary()}"
        )
    header = _header(content, path)
    entries = list({id(entry): entry for entry in listing.entries.values()}.values())
    return CocoIndex(selected, _existing(entries, folder, options, report), header, folder)


def _header(content: dict, path: str) -> dict:
    """The parts of a file that a new one takes over, as they are in the file.

    What is made of each dict while the json is read goes by its keys alone, and a dict in here may have such keys.
    """
    header = {key: content[key] for key in HEADER_KEYS if key in content}
    waiting: list = list(header.values())
    while waiting:
        item = waiting.pop()
        is_slim = isinstance(item, dict) and not {"file_name", "coco_url"}.isdisjoint(item)
        if is_slim or isinstance(item, _CocoAnnotation):
            whole = read_json(path)
            assert isinstance(whole, dict)
            header = {key: whole.get(key) or value for key, value in header.items()}
            break
        waiting += item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
    return {key: _finite(value) for key, value in header.items()}


def _finite(value: Any, levels: int = _MOST_LEVELS) -> Any:
    """A value of a json file without what no other reader takes: NaN, infinity, and what is nested too deeply."""
    if isinstance(value, (dict, list)) and not levels:
        return None
    if isinstance(value, dict):
        return {key: _finite(inner, levels - 1) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner, levels - 1) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _image_folder(
    content: dict, path: str, images: str | os.PathLike | None, split: str | None, root: str | None
) -> str:
    if images is None:
        stated = content.get("images")
        names = (
            (coco_layout.image_name(item) for item in stated if isinstance(item, dict))
            if isinstance(stated, list)
            else ()
        )
        images = coco_layout.image_folder(path, root, split, filter(None, names)) or find_images(
            root, None, split, path
        )
    folder = unicode_path(images)
    if not os.path.isdir(fs_path(folder)):
        raise FileNotFoundError(f"image folder not found: {folder}. Pass images=...")
    return folder


def _grouping_category(categories: list[dict]) -> str | None:
    """The id, as text, of a category that is the supercategory of all others; Roboflow writes one."""
    above = Counter(
        text for text in (category.get("supercategory") for category in categories) if isinstance(text, str)
    )
    for category in categories:
        name = category["name"]
        if len(categories) > 1 and above[str(name)] - (category.get("supercategory") == name) == len(categories) - 1:
            return id_text(category["id"])
    return None


def _used_categories(items: object) -> set[str | None]:
    """The ids of the categories that objects state, as text."""
    annotations = (item for item in (items if isinstance(items, list) else ()) if isinstance(item, _CocoAnnotation))
    return {
        id_text(item) for item in {item.category_id for item in annotations if type(item.category_id) in _ID_TYPES}
    }


def _categories_of(items: list) -> list[dict]:
    """The categories of a file that lists none: one for each id that its objects state, else one class for all."""
    keys = {id_text(item.category_id) for item in items if isinstance(item, _CocoAnnotation)} - {None}
    return [{"id": id_of(key), "name": _name_of_id(key)} for key in keys if key] or [{"id": 1, "name": UNNAMED}]


def _name_of_id(key: str) -> str:
    """The name of a category that has none."""
    return clean_name(f"category {key}")


@dataclass
class _Classes:
    """The classes of a run.

    Attributes:
        selected: (category id, name) in the order of the labels; categories that the file does not list are appended.
        names: of all categories of the file, by the text of their id.
        keeps_unlisted: whether objects of categories that the file does not list are kept.
        ignores_others: whether objects of categories that were not asked for are regions of no class.
        position: text of the category id -> position in `selected`.
        taken: the names in `selected`.
        unnamed: id of the class of objects that state no category, as text; None: there is none yet.
    """

    selected: list[Category]
    names: dict[str, str]
    keeps_unlisted: bool
    ignores_others: bool
    position: dict[str, int] = field(init=False)
    taken: set[str] = field(init=False)
    unnamed: str | None = field(init=False)

    def __post_init__(self) -> None:
        self.position = {str(category_id): position for position, (category_id, _) in enumerate(self.selected)}
        self.taken = {name for _, name in self.selected}
        self.unnamed = next((key for key, name in self.names.items() if name == UNNAMED), None)

    @classmethod
    def choose(cls, categories: list[Category], options: ReadOptions, path: str) -> "_Classes":
        selected = list(_select_classes(categories, options.classes, path))
        return cls(
            selected,
            names={str(category_id): name for category_id, name in categories},
            keeps_unlisted=options.keep_unlisted and options.classes in (None, "all"),
            ignores_others=options.ignore_others,
        )

    def find(self, key: str, where: str, report: Report) -> int | None:
        """The position of a category; None (and counted) if it was not asked for, `NO_CLASS` if it is not known."""
        position = self.position.get(key)
        if key in self.names:
            if position is None:
                report.add("other_class", where, self.names[key])
                return NO_CLASS if self.ignores_others else None
            return position
        if position is None and not self.keeps_unlisted:
            report.add("unknown_category", where, key)
            return NO_CLASS
        report.add("unlisted_class", where, key)
        if position is None:
            position = self.position[key] = len(self.selected)
            self._append(key, free_name(_name_of_id(key), key, self.taken))
        return position

    def _append(self, key: str, name: str) -> None:
        self.selected.append((id_of(key), name))
        self.taken.add(name)

    def find_unnamed(self, where: str, report: Report) -> int:
        """The position of the class of objects that state no category; `NO_CLASS` (and counted) if there is none."""
        key = self.unnamed
        if key is None and self.keeps_unlisted:
            taken = [int(key) for key in (*self.position, *self.names) if isinstance(id_of(key), int)]
            key = self.unnamed = str(max(taken, default=0) + 1)
            self.names[key], self.position[key] = UNNAMED, len(self.selected)
            self._append(key, UNNAMED)
        if key is None or key not in self.position:
            report.add("unknown_category", where, "none")
            return NO_CLASS
        report.add("no_class_name", where)
        return self.position[key]


def _compare_id_types(content: dict, items: list, file_name: str, report: Report) -> None:
    """Count ids that are text in the annotations and numbers where they are defined, or the other way round."""
    annotations = [item for item in items if isinstance(item, _CocoAnnotation)]
    for what, ids, target in (
        ("image_id", [item.image_id for item in annotations], "images"),
        ("category_id", [item.category_id for item in annotations], "categories"),
    ):
        here, there = _id_types(ids), _id_types(item.get("id") for item in content[target] if isinstance(item, dict))
        if here and there and here != there:
            report.add("id_type_differs", f'{file_name}: "{what}" is {ids[0]!r}, ids in "{target}" are not all alike')


def _assign(items: list, listing: _Listing, classes: _Classes, file_name: str, report: Report) -> None:
    """Give each annotation that can be used its class and a unique id, and hand it to the entry of its image."""
    annotations = (item for item in items if isinstance(item, _CocoAnnotation))
    next_id = max(max((item.id for item in annotations if _is_integer(item.id)), default=0), 0) + 1
    used_ids: set[int] = set()
    for number, item in enumerate(items, start=1):
        image_key = category_key = None
        if isinstance(item, _CocoAnnotation):
            image_key, category_key = id_text(item.image_id), id_text(item.category_id)
        if image_key is None:
            report.add("invalid_annotation", f"{file_name}: annotation number {number}")
            continue
        entry = listing.entries.get(image_key)
        if entry is None:
            if image_key not in listing.refused:
                report.add("unknown_image", f"{file_name}: annotation {item.id} of image {image_key}")
            continue
        where = f"{entry.file_name}: annotation {item.id}"
        if category_key is None and item.category_id is not None:
            position = NO_CLASS
            report.add("unknown_category", where, str(item.category_id)[:20])
        elif category_key is None:
            position = classes.find_unnamed(where, report)
        else:
            position = classes.find(category_key, where, report)
        if position is None:
            continue
        if position == NO_CLASS and category_key in classes.names:
            item.segmentation = None  # the box alone
        if not _is_integer(item.id) or item.id in used_ids:
            report.add("duplicate_annotation_id", where)
            item.id, next_id = next_id, next_id + 1
        used_ids.add(item.id)
        item.category = position
        entry.annotations.append(item)


def _existing(entries: Iterable[CocoEntry], root: str, options: ReadOptions, report: Report) -> list[CocoEntry]:
    """The entries that are to be used: with objects (or `keep_empty`), and with an image (or `keep_missing`)."""
    wanted = []
    for entry in entries:
        has_object = any(item.category != NO_CLASS or not options.ignore_others for item in entry.annotations)
        if has_object or options.keep_empty:
            wanted.append(entry)
        else:
            report.add("image_without_object", entry.file_name, image=entry.file_name)
    missing = [entry for entry in wanted if entry.path is None]
    names = [entry.file_name for entry in missing]
    check_missing(MissingFiles("missing_image", "images", names, len(wanted), root), options, report)
    return [entry for entry in wanted if options.keep_missing or entry.path is not None]


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**62


def make_record(entry: CocoEntry, options: ReadOptions, report: Report) -> Record | None:
    """Check one image and its objects.

    Args:
        entry: from `read_index`.
        options: `masks` turns "segmentation" into RLE.
        report: counts problems.

    Returns:
        The record, or None (and counted) if the image cannot be used.

    Raises:
        ValueError: the sizes differ and `size_mismatch` is "error".
    """
    frame = image_geometry(entry.path, entry.file_name, entry.size, options, report)
    if frame is None:
        return None
    objects, num_lost = [], 0
    for annotation in entry.annotations:
        where = f"{entry.file_name}: annotation {annotation.id}"
        corners = _corners(annotation, where, frame, options.box_format, report)
        made = None if corners is None else _make_object(annotation, corners, where, frame, options.masks, report)
        num_lost += corners is None
        if made is not None:
            objects.append(made)
    record = Record(
        path=entry.path,
        file_name=entry.file_name,
        image_id=entry.image_id,
        size=frame.size,
        objects=objects,
        license=entry.license,
    )
    return finish_record(record, entry.file_name, num_lost, options, report)


def _make_object(
    annotation: _CocoAnnotation, corners: Box, where: str, frame: Geometry, masks: bool, report: Report
) -> BoxObject | None:
    x1, y1, x2, y2 = corners
    scaled = (x1 * frame.scale_x, y1 * frame.scale_y, x2 * frame.scale_x, y2 * frame.scale_y)
    box = checked_box(scaled, frame.size, where, report)
    if box is None:
        return None
    segmentation = annotation.segmentation
    num_invalid = report.counts.get("invalid_mask", 0)
    # A mask has as many pixels as its image, so none can be made where the size is not known.
    wants_mask = masks and frame.size is not None and (annotation.category != NO_CLASS or segmentation)
    rle = segmentation_to_rle(segmentation, frame, where, report) if wants_mask else None
    is_whole = report.counts.get("invalid_mask", 0) == num_invalid
    numbers = finite_numbers([annotation.area], 1)
    stated_area = numbers[0] if numbers and numbers[0] > 0 else None
    stated = {}
    if rle is not None and is_whole and not frame.is_scaled:
        if isinstance(segmentation, list):
            segmentation = [list(polygon) for polygon in segmentation]
        stated = {"segmentation": segmentation} | ({} if stated_area is None else {"area": stated_area})
    if rle is not None:
        area = float(coco_mask.area(rle))
    else:
        area = box_area(box) if stated_area is None else stated_area * frame.scale_x * frame.scale_y
    return BoxObject(
        box=box,
        category=annotation.category,
        area=area,
        iscrowd=annotation.category == NO_CLASS or annotation.iscrowd in (1, True, "1"),
        id=annotation.id,
        rle=rle,
        stated=stated,
    )


def _corners(
    annotation: _CocoAnnotation, where: str, frame: Geometry, box_format: str | None, report: Report
) -> Box | None:
    """The box of an annotation in the stated frame, xyxy; None (and counted) if there is none."""
    if annotation.bbox:
        if not isinstance(annotation.bbox, array):
            report.add("invalid_box", f"{where} {annotation.bbox!r}"[:200])
            return None
        if box_format not in (None, "xywh"):
            x1, y1, x2, y2 = convert_boxes(
                np.asarray(annotation.bbox), box_format, "xyxy", *(frame.size or ())
            ).tolist()
            return x1, y1, x2, y2
        x, y, width, height = annotation.bbox
        if frame.size is not None and not frame.is_scaled:
            note_corners(annotation.bbox, frame.size, where, report)
        return x, y, x + width, y + height
    corners = _extent(annotation.segmentation, frame)
    report.add("no_box" if corners is None else "box_from_polygon", where)
    return corners


def _extent(segmentation: Any, frame: Geometry) -> Box | None:
    """xyxy of a segmentation in the stated frame; None if no part of it can be used."""
    if isinstance(segmentation, dict):
        rle = checked_rle(segmentation)
        if rle is None or not coco_mask.area(rle) or (frame.size is not None and not fits(rle["size"], frame)):
            return None
        x, y, width, height = coco_mask.toBbox(rle).tolist()
        return x, y, x + width, y + height
    polygons = [polygon for polygon in polygons_of(segmentation) if polygon]
    if not polygons:
        return None
    x = [value for polygon in polygons for value in polygon[0::2]]
    y = [value for polygon in polygons for value in polygon[1::2]]
    return min(x), min(y), max(x), max(y)


def read_coco(
    annotations: str | os.PathLike,
    images: str | os.PathLike,
    options: ReadOptions = ReadOptions(),
    report: Report | None = None,
) -> Iterator[Record]:
    """All records of a COCO file, one at a time; arguments as in `read_index`."""
    report = Report() if report is None else report
    for entry in read_index(annotations, images, options, report).entries:
        record = make_record(entry, options, report)
        if record is not None:
            yield record


def header_with(header: dict, classes: Sequence[Category]) -> dict:
    """The header of a COCO file to be written: what `header` states, and a category for each class that it lacks.

    Args:
        header: `CocoIndex.header`; may be empty.
        classes: (category id, name) in the order of the labels, as `CocoIndex.classes`.
    """
    found = ((id_text(item.get("id")), item) for item in header.get("categories", []) if isinstance(item, dict))
    stated = [{**item, "id": id_of(key)} for key, item in found if key is not None]  # as the annotations have it
    known = {id_text(item["id"]) for item in stated}
    added = [{"id": category_id, "name": name} for category_id, name in classes if id_text(category_id) not in known]
    return {**header, "categories": stated + added}


def write_coco(
    path: str | os.PathLike,
    records: Iterable[Record],
    classes: Sequence[Category],
    *,
    header: dict | None = None,
    keep_ids: bool = False,
) -> None:
    """Write records as a COCO json file, one at a time.

    Args:
        path: of the new file.
        records: boxes become xywh; masks are written as `BoxObject.stated` has them, else as RLE with text counts.
            Regions of no class become crowd regions of every class.
        classes: (category id, name) in the order of the labels, as `CocoIndex.classes`.
        header: `CocoIndex.header`: its info, licenses and categories are written as they are; classes and licences
            that it lacks are added.
        keep_ids: annotations keep their ids, but for one that an earlier annotation has; off, they are counted from 1.

    Raises:
        ValueError: the regions of no class would become far more annotations than there are objects.
    """
    header = header_with(header or {}, classes)
    licences = LicenceIds(header)
    images = []
    number = num_left = 0
    used_ids: set[int] = set()
    with open(fs_path(path), "w", encoding="utf-8", newline="\n") as file:
        file.write('{"annotations": [')
        for record in records:
            image_id = id_of(record.image_id)
            size = {"width": record.width, "height": record.height}
            license = {"license": licences.find(record.license)} if record.license else {}
            images.append({"id": image_id, "file_name": record.file_name, **size, **license})
            num_regions = len(record.objects) - record.num_objects
            num_left += _PER_OBJECT * len(record.objects) - num_regions * len(classes)
            if num_left < -_MOST_REGIONS:
                raise ValueError(
                    f"{record.file_name} has {num_regions} objects whose class is not known. In COCO each is a crowd "
                    f"region of all {len(classes)} classes, and all images together would have more than "
                    f"{_MOST_REGIONS} of them and {_PER_OBJECT} for each object. Correct their classes, or state "
                    "fewer classes"
                )
            for item in (part for item in record.objects for part in _per_class(item, len(classes))):
                file.write(",\n" if number else "\n")
                number += 1
                item_id = item.id if keep_ids else number
                while keep_ids and item_id in used_ids:
                    item_id = max(item_id, number) + 1
                if keep_ids:
                    used_ids.add(item_id)
                file.write(json.dumps(_annotation(item, item_id, image_id, classes[item.category][0])))
        file.write("],\n" + json_text({**header, **licences.header(), "images": images})[1:])


def _per_class(item: BoxObject, num_classes: int) -> list[BoxObject]:
    """A region of no class as a crowd region of every class, as COCO knows no other; any other object as it is."""
    if item.category != NO_CLASS:
        return [item]
    return [replace(item, category=category) for category in range(num_classes)]


class LicenceIds:
    """The licence ids of a file to be written: those of its header, and new ones for texts that it does not hold."""

    def __init__(self, header: dict):
        self.ids: dict[str, int | str] = {text: id_of(key) for key, text in _licenses(header).items()}
        self.last = max((key for key in self.ids.values() if isinstance(key, int)), default=0)
        self.added: list[dict] = []
        self.stated = header.get("licenses")

    def find(self, text: str) -> int | str:
        """The id of a licence, as `CocoEntry.license` or `Record.license` states it."""
        if text not in self.ids:
            if isinstance(id_of(text), int):  # The id of a licence that the file does not list.
                return id_of(text)
            self.last += 1
            self.ids[text] = self.last
            self.added.append({"id": self.ids[text], "name": text})
        return self.ids[text]

    def header(self) -> dict:
        """The list of licences with the new ones, to replace the header's; empty if there are none."""
        if not self.added:
            return {}
        return {"licenses": [*(self.stated if isinstance(self.stated, list) else []), *self.added]}


def _annotation(item: BoxObject, number: int, image_id: int | str, category_id: int | str) -> dict:
    x1, y1, x2, y2 = item.box
    annotation = {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": item.area,
        "iscrowd": int(item.iscrowd),
    }
    return annotation if item.rle is None else {**annotation, "segmentation": item.rle, **item.stated}
