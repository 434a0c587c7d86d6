"""Pascal VOC annotations (one xml per image, class masks as PNG) <-> records.

    ROOT/JPEGImages/NAME.jpg              images (or .jpeg .png .bmp .webp .tif, any case)
    ROOT/Annotations/NAME.xml             boxes
    ROOT/SegmentationClass/NAME.png       class masks, palette or grey PNG of indices; only with `masks`
    ROOT/SegmentationClassAug/NAME.png    those of the images without one there, as `lpg-hf prepare-data` writes them
    ROOT/ImageSets/Segmentation/LIST.txt  names of a split (or ImageSets/Main/LIST.txt)
    ROOT/classes.txt                      class names in the order of the labels, if they are not VOC's 20
    ROOT/labelmap.txt                     in its place (CVAT): names, and the colours that class masks have for them

VOC counts pixels from 1 and includes both corners: (xmin, ymin, xmax, ymax) is the box (xmin - 1, ymin - 1, xmax,
ymax) here. `zero_based=True` is for tools that write plain 0-based corners, which are taken as they are; LabelImg and
CVAT do, which their <database> tells, and boxes read as VOC's all the same are counted. No box of VOC
is thinner than a pixel: a thinner one is written as the box one pixel wide (or high) with the same centre, moved into
the image.
"""

import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from defusedxml import ElementTree as SafeElementTree
from defusedxml.common import DefusedXmlException

from lpg_hf._class_lists import (
    CLASSES_FILE,
    COLOURS_FILE,
    Colour,
    check_class_names,
    class_list_files,
    labels_of_colours,
    own_class_list,
    read_colours,
)
from lpg_hf._files import (
    fs_path,
    read_bytes,
    read_list,
    relative_name,
    resolve_inside,
    unicode_name,
    unicode_path,
    walk_files,
)
from lpg_hf.data._formats.image_finder import StatedImage, match_images
from lpg_hf.data._formats.tool_image import names_of_split
from lpg_hf.data._formats.yolo_dataset import is_line
from lpg_hf.data._upright import upright_labels
from lpg_hf.data.options import ReadOptions
from lpg_hf.data.records import (
    NO_CLASS,
    UNNAMED,
    BoxObject,
    Geometry,
    Record,
    box_area,
    checked_box,
    finish_record,
    finite_numbers,
    image_geometry,
    stated_size,
)
from lpg_hf.data.report import MissingFiles, NothingUsable, Report, check_missing
from lpg_hf.images import IMAGE_SUFFIXES, ImageProblem, load_pixels, open_image
from lpg_hf.label_maps import check_lossless, object_labels, read_label_map
from lpg_hf.labels import IGNORE_INDEX, clean_name


IMAGES_FOLDER = "JPEGImages"
ANNOTATIONS_FOLDER = "Annotations"
MASKS_FOLDER = "SegmentationClass"
MORE_MASKS_FOLDER = "SegmentationClassAug"
SPLIT_FOLDERS = ("ImageSets/Segmentation", "ImageSets/Main")
# What LabelImg and Datumaro (CVAT) write as <database>; official files and this package's name none or VOC's.
_TOOL_DATABASE = "Unknown"
_TOOL_OWNER = "Label Studio"  # as <owner><name>


@dataclass(frozen=True)
class VocFolders:
    """Where a VOC dataset is: absolute paths with forward slashes; all three exist."""

    root: str
    annotations: str
    images: str

    @classmethod
    def find(
        cls,
        root: str | os.PathLike,
        annotations: str | os.PathLike | None = None,
        images: str | os.PathLike | None = None,
    ) -> "VocFolders":
        """The folders of a VOC root; None: the usual one.

        Raises:
            FileNotFoundError: one of them does not exist.
        """
        root = unicode_path(root)
        folders = cls(
            root,
            unicode_path(annotations or f"{root}/{ANNOTATIONS_FOLDER}"),
            unicode_path(images or f"{root}/{IMAGES_FOLDER}"),
        )
        for what, folder in (("VOC root", root), ("annotation", folders.annotations), ("image", folders.images)):
            if not os.path.isdir(fs_path(folder)):
                raise FileNotFoundError(f"{what} folder not found: {folder}.{_hint(root)}")
        return folders


def _hint(root: str) -> str:
    if not os.path.isdir(fs_path(root)):
        return ""
    names = [
        n for n in sorted(os.listdir(fs_path(root))) if os.path.isdir(fs_path(f"{root}/{n}/{ANNOTATIONS_FOLDER}"))
    ]
    return f" Did you mean the folder {names[0]} in it?" if names else f" {root} needs Annotations/ and JPEGImages/."


@dataclass(slots=True)
class _VocObject:
    """One object of an xml file.

    Attributes:
        number: its place in the file, from 1.
        name: of its class; "object" if the file states none.
        corners: xmin, ymin, xmax, ymax as written (a value that is not a number: None); None if there is no box.
        difficult: VOC flag.
        category: 0-based position in the class list, set by `read_index`; `NO_CLASS`: it is in no list.
        id: unique in the dataset, set by `read_index`.
        problems: (kind of `PROBLEMS`, detail) of its element.
    """

    number: int
    name: str
    corners: list[float | None] | None
    difficult: bool
    category: int = NO_CLASS
    id: int = 0
    problems: tuple[tuple[str, str], ...] = ()


@dataclass
class _VocAnnotation:
    """What is used of an xml file.

    Attributes:
        filename: of the image, if stated.
        size: (height, width) as stated, or None.
        objects: in the order of the file.
        from_zero: a tool wrote it that counts from 0, end exclusive.
    """

    filename: str | None
    size: tuple[int, int] | None
    objects: list[_VocObject]
    from_zero: bool = False


@dataclass
class VocEntry:
    """One image of the dataset, not yet checked.

    Attributes:
        name: of the annotation file without its suffix; the image id.
        file_name: of the image, relative to the image folder.
        path: of the image; None: it does not exist.
        size: (height, width) as stated, or None.
        objects: of the wanted classes.
        mask_path: of the class mask, if asked for.
        num_classes: the largest label that the class mask may hold.
        from_zero: as of `_VocAnnotation`.
        colours: of `read_colours`.
    """

    name: str
    file_name: str
    path: str | None
    size: tuple[int, int] | None
    objects: list[_VocObject] = field(default_factory=list)
    mask_path: str | None = None
    num_classes: int = 0
    from_zero: bool = False
    colours: dict[Colour, int] = field(default_factory=dict)


@dataclass
class ColouredRecord(Record):
    """A record whose class mask may hold colours in place of labels: `colours` of `read_colours`."""

    colours: dict[Colour, int] = field(default_factory=dict, compare=False)

    def changed_mask(self, object_value: int | None) -> np.ndarray | None:
        """As of `Record`."""
        if self.mask_path is None or object_value is not None:
            return super().changed_mask(object_value)
        labels = read_label_map(self.mask_path, colours=self.colours)
        return labels if self.mask_orientation == 1 else upright_labels(labels, self.mask_orientation)


@dataclass
class VocIndex:
    """A split: `classes` are names in the order of the labels; `files` were read for it."""

    classes: list[str]
    entries: list[VocEntry]
    files: list[str] = field(default_factory=list)


def _split_list_paths(root: str, split: str) -> list[str]:
    """Where the list of a split may be, in the order of the search."""
    try:
        name = relative_name(split)
    except ValueError as error:
        raise ValueError(f"the split name {split!r} {error}; pass the name of a list without .txt") from error
    return [f"{root}/{folder}/{name}.txt" for folder in SPLIT_FOLDERS]


def find_split_list(root: str, split: str) -> str:
    """The list file of a split.

    Raises:
        FileNotFoundError: there is none; the message names those that exist.
    """
    paths = _split_list_paths(root, split)
    for path in paths:
        if os.path.isfile(fs_path(path)):
            return path
    existing = [
        f"{folder}/{unicode_name(name)}"
        for folder in SPLIT_FOLDERS
        if os.path.isdir(fs_path(f"{root}/{folder}"))
        for name in sorted(os.listdir(fs_path(f"{root}/{folder}")))
        if name.endswith(".txt")
    ]
    raise FileNotFoundError(
        f"no split list {split!r} in {root} (looked for {' and '.join(os.path.relpath(p, root) for p in paths)}). "
        f"Lists there: {', '.join(existing) or 'none'}. Pass split=None for every annotation file"
    )


def annotation_names(folder: str) -> list[str]:
    """Relative names of the xml and PNG files below a folder."""
    return list(walk_files(folder, (".xml", ".png")))


def names_in_list(folders: VocFolders, split: str) -> list[str]:
    """The names in the list of a split; empty if there is no list, or it cannot be read."""
    path = next((path for path in _split_list_paths(folders.root, split) if os.path.isfile(fs_path(path))), None)
    try:
        return _names_of_split(path, folders.annotations, Report()) if path is not None else []
    except ValueError:
        return []


def names_of_split_or_folder(folders: VocFolders, split: str, report: Report) -> tuple[list[str], list[str]]:
    """The image names of a split, and its list file if there is one; without a list, a folder of the name counts.

    Raises:
        FileNotFoundError: neither a list nor a folder with xml files; the message names the lists.
        ValueError: no name of a list, or a list that is empty.
    """
    try:
        path = find_split_list(folders.root, split)
    except FileNotFoundError:
        inner = [name for name in names_of_split(split) if os.path.isdir(fs_path(f"{folders.annotations}/{name}"))]
        names = [f"{name}/{file}" for name in inner for file in walk_files(f"{folders.annotations}/{name}", (".xml",))]
        if not names:
            raise
        return [name[: -len(".xml")] for name in names], []
    return _names_of_split(path, folders.annotations, report), [path]


def _names_of_split(path: str, annotations: str, report: Report) -> list[str]:
    """The image names in a list file; a class flag (-1, 0, 1) or an image suffix after the name is cut off."""

    def known(name: str) -> bool:
        return os.path.isfile(fs_path(f"{annotations}/{name}.xml"))

    names: dict[str, None] = {}
    list_name = os.path.basename(path)
    for number, line in enumerate(read_list(path), start=1):
        if not line.strip():
            continue
        try:
            name = relative_name(line.strip())
        except ValueError as error:
            name = line.strip()
            report.add("unsafe_path", f"{list_name}: line {number} {name!r} {error}", image=name)
            continue
        if not known(name):  # A name may itself end in " 1", so the whole line has the first word.
            for shorter in (re.sub(r"\s+(-1|0|1)$", "", name), os.path.splitext(name)[0]):
                if known(shorter):
                    name = shorter
                    break
        if name in names:
            report.add("duplicate_entry", f"{list_name}: line {number} {name}")
        names[name] = None
    if not names:
        raise ValueError(f"the split list {path} is empty")
    return list(names)


def parse_xml(path: str) -> _VocAnnotation:
    """What is used of a VOC xml. Boxes of `<part>` are not read.

    Raises:
        ValueError: not xml, not complete, with entities, or no `<annotation>`.
    """
    data = read_bytes(path)
    try:
        root = SafeElementTree.fromstring(data)
    except (ElementTree.ParseError, DefusedXmlException, LookupError, ValueError) as error:
        raise ValueError(f"not valid xml: {error}") from error
    if root.tag != "annotation":
        raise ValueError(f"not a VOC annotation: its top element is <{root.tag}>")
    objects = []
    for number, element in enumerate(root.iter("object"), start=1):
        objects += _objects_of(element, number)
    size = root.find("size")
    return _VocAnnotation(
        filename=(root.findtext("filename") or "").strip() or None,
        size=None if size is None else stated_size(size.findtext("height"), size.findtext("width")),
        objects=objects,
        from_zero=(root.findtext("source/database") or "").strip() == _TOOL_DATABASE
        or (root.findtext("owner/name") or "").strip() == _TOOL_OWNER,
    )


def _objects_of(element: ElementTree.Element, number: int) -> list[_VocObject]:
    """An `<object>` as one object for each of its boxes; nearly always that is one."""
    boxes = element.findall("bndbox")  # A direct child only: <part> has boxes of its own.
    names = [clean_name(name.text or "") for name in element.findall("name")]
    name = next(filter(None, names), None)
    problems = []
    if name is None:
        problems.append(("no_class_name", ""))
    if len(boxes) > 1:
        problems.append(("repeated_element", f"{len(boxes)} <bndbox>"))
    if len(names) > 1:
        problems.append(("repeated_element", f"{len(names)} <name>: {', '.join(names)}"[:100]))
    keys = ("xmin", "ymin", "xmax", "ymax")
    corners = [[_number(box.findtext(key)) for key in keys] for box in boxes]
    difficult = _number(element.findtext("difficult")) == 1
    made = [_VocObject(number, name or UNNAMED, box, difficult) for box in corners or [None]]
    made[0].problems = tuple(problems)
    return made


def _number(text: str | None) -> float | None:
    try:
        return float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None


class _Ambiguous(Exception):
    """Several images could be meant; this was counted."""


class _Images:
    """The images of a folder, by name with and without suffix."""

    def __init__(self, root: str):
        self.root = root
        self.names = set(walk_files(root, IMAGE_SUFFIXES))
        self.by_stem: dict[str, list[str]] = {}
        for name in sorted(self.names):
            self.by_stem.setdefault(os.path.splitext(name)[0], []).append(name)
        self.by_end: dict[str, str | None] = {}

    def match_ends(self, filenames: dict[str, str | None], report: Report) -> None:
        """Find by the end of `<filename>` the images that no whole name finds; see `match_images`.

        Args:
            filenames: of all annotation files, by their name without suffix.
            report: counts.
        """
        rest: dict[str, StatedImage] = {}
        taken: list[StatedImage] = []
        for stem, filename in filenames.items():
            own = self.by_stem.get(stem, [])
            named = None if filename is None or own else self._named(stem, filename.replace("\\", "/"))
            taken += [StatedImage(name) for name in own or filter(None, [named])]
            if filename is not None and not own and named is None:
                rest[stem] = StatedImage(filename, beside=os.path.dirname(stem))
        if rest:
            matched = match_images(self.root, [*taken, *rest.values()], report)
            found = {stem: matched.names.get(image) for stem, image in rest.items()}
            self.by_end = {
                stem: found[stem] for stem, image in rest.items() if found[stem] or image in matched.ambiguous
            }

    def find(self, stem: str, filename: str | None, report: Report) -> str | None:
        """The image of the annotation file `stem`; None if there is none.

        The annotation file's own name counts first, as masks and split lists use it; `<filename>` decides between
        several. `match_ends` has found the others.

        Raises:
            _Ambiguous: there are several, which is counted.
            ValueError: only `<filename>` could tell, and it leads outside the folder.
        """
        same_stem = self.by_stem.get(stem, [])
        if len(same_stem) == 1:
            other = None if filename is None else self._named(stem, filename.replace("\\", "/"))
            if other not in (None, same_stem[0]):
                report.add("file_name_differs", f"{stem}.xml: {same_stem[0]} and {other}")
            return same_stem[0]
        if stem in self.by_end:
            if self.by_end[stem] is None:  # Counted already.
                raise _Ambiguous
            return self.by_end[stem]
        if filename is None:
            return None
        named = self._named(stem, relative_name(filename))
        if same_stem:
            where = f"{stem}.xml: {', '.join(same_stem)}"
            if named in same_stem:
                report.add("same_name_images", where)
                return named
            report.add("ambiguous_image", where, image=f"{stem}.xml")
            raise _Ambiguous
        return named

    def report_unlabelled(self, stems: Collection[str], used: set[str], report: Report) -> None:
        """Count the images that neither have an annotation file of their name (`stems`) nor are `used` by one."""
        for stem in sorted(self.by_stem.keys() - set(stems)):
            for file_name in self.by_stem[stem]:
                if file_name not in used:
                    report.add("image_without_annotation", file_name)

    def _named(self, stem: str, filename: str) -> str | None:
        beside = f"{os.path.dirname(stem)}/{filename}".lstrip("/")
        return next((name for name in (beside, filename) if name in self.names), None)


def _select_classes(own: list[str], options: ReadOptions, names: "_Names") -> list[str]:
    classes = options.classes
    if classes is None:
        return own
    if isinstance(classes, str) and classes != "all":
        raise ValueError(f"classes must be a list of names, 'all' or None, got {classes!r}")
    selected = sorted(names.occurring) if classes == "all" else [str(name) for name in classes]
    if not selected and classes == "all":
        raise ValueError("classes='all': no annotation file holds an object with a name; pass the list of classes")
    check_class_names(selected, "classes")
    position = {name: index for index, name in enumerate(own)}
    moved = [name for index, name in enumerate(selected) if position.get(name, index) != index]
    if options.masks and selected != own and (moved or classes == "all"):
        raise ValueError(
            f"classes {selected[:5]} give other labels than the class masks have ({', '.join(own[:5])}, ...). "
            f"Pass the full list in the order of the mask indices (or write {CLASSES_FILE}), or masks=False"
        )
    return selected


def read_index(folders: VocFolders, options: ReadOptions, report: Report, only: str | None = None) -> VocIndex:
    """Read the xml files of a split and find their images and masks.

    Args:
        folders: of the dataset.
        options: `split` is the name of a list in ImageSets/Segmentation, else ImageSets/Main, or of a folder of xml
            files where there is no such list; None takes every annotation file. `classes` are names in the order of
            the labels; None: classes.txt of the root, else VOC's 20; "all": every name that occurs, sorted. With
            `keep_unlisted`, without classes.txt, and if none of VOC's 20 occurs, the list is the names that occur,
            sorted. A name that occurs may do so in another split, so that it has one label in all of them.
        report: counts problems.
        only: name of the one annotation file to read, without its suffix.

    Returns:
        The classes and one entry per image, in the order of the list.

    Raises:
        FileNotFoundError: no such list; files are missing.
        ValueError: the class list is empty, holds a name twice or does not fit the masks; no object of the classes at
            all.
    """
    files = class_list_files(folders.root)
    if only is not None:
        names = [only]
    elif options.split is None:
        names = [name[: -len(".xml")] for name in walk_files(folders.annotations, (".xml",))]
        if not names:
            raise FileNotFoundError(f"no xml file in {folders.annotations}. Pass the folder of the VOC annotations")
    else:
        names, list_file = names_of_split_or_folder(folders, options.split, report)
        files += list_file
    parsed, xml_files = _parse_all(names, folders.annotations, options, report)
    names_in = _Names(folders.annotations, parsed, whole=options.split is not None and only is None)
    classes = _choose_classes(folders.root, names_in, options, report)
    report.classes = [f"{label} {name}" for label, name in enumerate(classes.selected, start=1)]
    _select_objects(parsed, classes, report)
    is_faulty = "unreadable_annotation" in report.counts or any(content.objects for content in parsed.values())
    if is_faulty and not any(map(_holds_a_box, parsed.values())):
        raise NothingUsable(folders.annotations, report)
    if not options.keep_empty and not any(content.objects for content in parsed.values()):
        raise ValueError(
            f"no image of {folders.annotations} has an object of the classes {', '.join(classes.selected[:5])}"
            f"{', ...' if len(classes.selected) > 5 else ''}. "
            f"Pass classes=[...] (or 'all'), or write {CLASSES_FILE}.\n{report.summary()}"
        )
    listing = _Images(folders.images)
    entries = _find_images(parsed, listing, options, report)
    if options.split is None and only is None:
        listing.report_unlabelled(parsed.keys(), {entry.file_name for entry in entries}, report)
    colours = (
        read_colours(folders.root, classes.own) if entries and "unreadable_class_list" not in report.counts else {}
    )
    if options.masks:
        entries = _with_masks(entries, folders.root, options, report)
    for entry in entries:
        entry.num_classes, entry.colours = len(classes.selected), colours
    return VocIndex(classes.selected, entries, [*files, *xml_files])


def _parse_all(
    names: list[str], folder: str, options: ReadOptions, report: Report
) -> tuple[dict[str, _VocAnnotation], list[str]]:
    """The annotation files by their name without suffix, and the paths of those that exist."""
    parsed: dict[str, _VocAnnotation] = {}
    files: list[str] = []
    missing: list[str] = []
    for name in names:
        try:
            path = resolve_inside(folder, f"{name}.xml")
        except ValueError as error:
            report.add("unsafe_path", f"{name}.xml {error}", image=f"{name}.xml")
            continue
        if not os.path.isfile(fs_path(path)):
            missing.append(f"{name}.xml")
            continue
        files.append(path)
        try:
            parsed[name] = parse_xml(path)
        except ValueError as error:
            report.add("unreadable_annotation", f"{name}.xml: {error}", image=f"{name}.xml")
    check_missing(MissingFiles("missing_annotation", "annotation files", missing, len(names), folder), options, report)
    return parsed, files


@dataclass(frozen=True)
class _Classes:
    """The class list of a run: `selected` in the order of the labels, `own` of the dataset, `unlisted` in no list."""

    selected: list[str]
    own: list[str]
    unlisted: set[str]


class _Names:
    """The class names that occur in the xml files that were read, and with `whole` in all others of the folder.

    The others are searched only for names that are not known yet, which takes a fifth of the time of parsing them.
    """

    def __init__(self, folder: str, parsed: dict[str, _VocAnnotation], whole: bool):
        self.folder, self.parsed, self.whole = folder, parsed, whole
        self.found = {item.name for content in parsed.values() for item in content.objects}

    @cached_property
    def occurring(self) -> set[str]:
        """The names, without those of files that cannot be read."""
        if not self.whole:
            return self.found
        names = set(self.found)
        for name in walk_files(self.folder, (".xml",)):
            if name[: -len(".xml")] in self.parsed:
                continue
            try:
                path = resolve_inside(self.folder, name)
                if not _holds_only(read_bytes(path), names):
                    names |= {item.name for item in parse_xml(path).objects}
            except (OSError, ValueError):  # Whatever split it is of, it gives no name there either.
                continue
        return names


def _holds_only(data: bytes, names: set[str]) -> bool:
    """Whether an xml file surely holds no object of another name; where this does not tell, parsing does."""
    found = re.findall(rb"<object>\s*<name>([^<&]*)</name>", data)
    is_plain = b"\0" not in data and data.count(b"<object") == len(found)
    return is_plain and all(clean_name(name.decode("utf-8", "replace")) in names for name in set(found))


def _choose_classes(root: str, names: _Names, options: ReadOptions, report: Report) -> _Classes:
    try:
        own = own_class_list(root)
    except ValueError as error:
        if options.masks or not (options.keep_unlisted or options.classes):
            raise
        report.add("unreadable_class_list", str(error))
        own = sorted(names.occurring)
    if options.classes is not None or not options.keep_unlisted:
        return _Classes(_select_classes(own, options, names), own, set())
    has_list = bool(class_list_files(root))
    occurring = names.occurring
    if not options.masks and not has_list and occurring and not occurring & set(own):
        own = sorted(occurring)
    unlisted = occurring - set(own)
    return _Classes([*own, *sorted(unlisted)], own, unlisted)


def _select_objects(parsed: dict[str, _VocAnnotation], classes: _Classes, report: Report) -> None:
    """Keep the objects of the selected classes and of unknown ones, with ids from 1 in the order of reading."""
    position = {name: index for index, name in enumerate(classes.selected)}
    next_id = 1
    for name, content in parsed.items():
        kept = []
        for item in content.objects:
            where = f"{name}.xml: object {item.number}"
            if item.name not in position and item.name in classes.own:
                report.add("other_class", where, item.name)
                continue
            for kind, detail in item.problems:
                report.add(kind, f"{where} {detail}".rstrip())
            if item.name not in position:
                report.add("unknown_class", where, item.name)
            elif item.name in classes.unlisted:
                report.add("unlisted_class", where, item.name)
            item.category, item.id = position.get(item.name, NO_CLASS), next_id
            next_id += 1
            kept.append(item)
        content.objects = kept


def _find_images(
    parsed: dict[str, _VocAnnotation], listing: "_Images", options: ReadOptions, report: Report
) -> list[VocEntry]:
    """One entry for each annotation file whose image is to be used."""
    entries: list[VocEntry] = []
    missing: list[str] = []
    without_image: list[str] = []
    num_wanted = 0
    listing.match_ends({name: content.filename for name, content in parsed.items()}, report)
    for name, content in parsed.items():
        xml = f"{name}.xml"
        if not content.objects and not options.keep_empty:
            report.add("image_without_object", xml, image=xml)
            continue
        num_wanted += 1
        try:
            file_name = listing.find(name, content.filename, report)
            path = None if file_name is None else resolve_inside(listing.root, file_name)
        except _Ambiguous:
            continue
        except ValueError as error:
            where = f"{xml}: image {content.filename!r} {error}"
            report.add("unsafe_path", where, image=content.filename or xml)
            continue
        if file_name is None:
            missing.append(f"{name} ({content.filename})" if content.filename else name)
            file_name = content.filename or xml
            without_image.append(file_name)
            if not options.keep_missing:
                continue
        from_zero = content.from_zero and not options.zero_based
        entries.append(VocEntry(name, file_name, path, content.size, content.objects, from_zero=from_zero))
    check_missing(
        MissingFiles("missing_image", "images", missing, num_wanted, listing.root, without_image), options, report
    )
    return entries


def _with_masks(entries: list[VocEntry], root: str, options: ReadOptions, report: Report) -> list[VocEntry]:
    """The entries with the paths of their class masks; those whose mask is missing are counted."""
    safe: list[VocEntry] = []
    missing: list[VocEntry] = []
    for entry in entries:
        try:
            paths = [
                resolve_inside(f"{root}/{name}", f"{entry.name}.png") for name in (MASKS_FOLDER, MORE_MASKS_FOLDER)
            ]
        except ValueError as error:
            report.add("unsafe_path", f"{entry.name}.png {error}", image=entry.file_name)
            continue
        safe.append(entry)
        entry.mask_path = next((path for path in paths if os.path.isfile(fs_path(path))), None)
        if entry.mask_path is None:
            missing.append(entry)
    names, images = [f"{entry.name}.png" for entry in missing], [entry.file_name for entry in missing]
    folder = f"{root}/{MASKS_FOLDER}"
    jpegs = [name[:-4] for name in names if os.path.isfile(fs_path(f"{folder}/{name[:-4]}.jpg"))]
    if jpegs:
        raise ValueError(
            f"{folder} holds class masks as JPEG, for example {jpegs[0]}.jpg, which cannot hold labels exactly. "
            "Make them again as PNG"
        )
    check_missing(MissingFiles("missing_mask", "class masks", names, len(entries), folder, images), options, report)
    return safe if options.keep_missing else [entry for entry in safe if entry.mask_path is not None]


def make_record(entry: VocEntry, options: ReadOptions, report: Report) -> Record | None:
    """Check one image, its objects, and its class mask if it has one.

    Args:
        entry: from `read_index`.
        options: `verify_images=False` leaves the mask unread too.
        report: counts problems.

    Returns:
        The record, or None (and counted) if the image cannot be used.

    Raises:
        ValueError: the mask has another size than the image, holds a value that is neither a label nor 255, or is not
            an index image; or the stated size differs and `size_mismatch` is "error".
    """
    frame = image_geometry(entry.path, entry.file_name, entry.size, options, report)
    if frame is None:
        return None
    objects, num_lost = [], 0
    for item in entry.objects:
        where = f"{entry.name}.xml: object {item.number}"
        corners = _corners(item, where, report)
        made = None if corners is None else _make_object(item, corners, where, frame, options, report)
        num_lost += corners is None
        if made is not None:
            objects.append(made)
        if made is not None and entry.from_zero:
            report.add("counted_from_zero", f"{where} {corners}")
    if entry.mask_path is not None and options.verify_images and frame.size is not None:
        if not check_mask(entry.mask_path, entry.file_name, frame.size, entry.num_classes, options, entry.colours):
            report.add("mask_without_object", f"{entry.name}.png")
    record = Record(
        path=entry.path,
        file_name=entry.file_name,
        image_id=entry.name,
        size=frame.size,
        objects=objects,
        mask_path=entry.mask_path,
    )
    if entry.colours:
        record = ColouredRecord(**vars(record), colours=entry.colours)
    return finish_record(record, f"{entry.name}.xml", num_lost, options, report)


def _holds_a_box(content: _VocAnnotation) -> bool:
    return any(item.category != NO_CLASS and finite_numbers(item.corners, 4) for item in content.objects)


def _corners(item: _VocObject, where: str, report: Report) -> list[float] | None:
    """The box as it is written; None (and counted) if there is none."""
    corners = finite_numbers(item.corners, 4)
    if item.corners is None:
        report.add("no_box", where)
    elif corners is None:
        report.add("invalid_box", f"{where} {item.corners}")
    return corners


def _make_object(
    item: _VocObject, corners: list[float], where: str, frame: Geometry, options: ReadOptions, report: Report
) -> BoxObject | None:
    x1, y1, x2, y2 = corners
    if x2 < x1 or y2 < y1:
        report.add("corners_swapped", f"{where} {corners}")
        x1, x2, y1, y2 = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
    if not options.zero_based:
        if 0 in (x1, y1):
            report.add("zero_coordinate", f"{where} {corners}")
        if (x1, y1) == (x2, y2):
            report.add("one_pixel_box", f"{where} {corners}")
        x1, y1 = x1 - 1, y1 - 1
    scaled = (x1 * frame.scale_x, y1 * frame.scale_y, x2 * frame.scale_x, y2 * frame.scale_y)
    box = checked_box(scaled, frame.size, where, report)
    if box is None:
        return None
    is_region = item.category == NO_CLASS
    return BoxObject(box, item.category, box_area(box), is_region, item.difficult, item.id)


def check_mask(
    path: str,
    image_name: str,
    size: tuple[int, int],
    num_classes: int,
    options: ReadOptions = ReadOptions(),
    colours: dict[Colour, int] | None = None,
) -> bool:
    """Check a class mask against the (height, width) of its image and the class list.

    Args:
        options: max_pixels and object_value.
        colours: of `read_colours`, for masks that hold colours.

    Returns:
        Whether a pixel has the label of a class.

    Raises:
        ValueError: another size, a value that is neither a label nor 255, not an index image, a JPEG, or unreadable.
    """
    height, width = size
    try:
        with open_image(path, path, options.max_pixels) as mask:
            check_lossless(mask, f"the class mask {path}")
            if mask.size != (width, height):
                raise ValueError(
                    f"the class mask {path} is {mask.size[0]} x {mask.size[1]}, "
                    f"its image {image_name} {width} x {height}; masks are never resized, correct the file"
                )
            load_pixels(mask, path)
            if options.object_value is not None:
                return bool(object_labels(mask, options.object_value).any())
            labels = labels_of_colours(mask, f"the class mask {path}", colours or {})
            if labels is None and mask.mode not in ("P", "L"):
                raise ValueError(
                    f"the class mask {path} has mode {mask.mode}; it must be a palette or grey PNG of indices, or a "
                    f"{COLOURS_FILE} must say what its colours are"
                )
            labels = np.asarray(mask) if labels is None else labels
    except (ImageProblem, OSError) as error:
        raise ValueError(f"cannot read the class mask {path}: {error}") from error
    check_mask_values(labels, path, num_classes)
    return bool(((labels > 0) & (labels != IGNORE_INDEX)).any())


def check_mask_values(labels: np.ndarray, name: str, num_classes: int) -> None:
    """Raises ValueError if a class mask ((H, W) uint8) holds a value above `num_classes` other than 255."""
    values = np.flatnonzero(np.bincount(labels.ravel(), minlength=256))
    wrong = [int(value) for value in values if num_classes < value != IGNORE_INDEX]
    if wrong:
        raise ValueError(
            f"the class mask {name} holds the value {wrong[0]}, but there are {num_classes} classes "
            f"(0 background, 1..{num_classes}, {IGNORE_INDEX} ignored); correct the mask or the class list, or, if "
            f"the value marks the object of the only class, pass object_value={wrong[0]} (--object-value {wrong[0]})"
        )


def read_voc(
    root: str | os.PathLike,
    options: ReadOptions = ReadOptions(),
    *,
    annotations: str | os.PathLike | None = None,
    images: str | os.PathLike | None = None,
    report: Report | None = None,
) -> Iterator[Record]:
    """All records of a VOC split, one at a time; arguments as in `VocFolders.find` and `read_index`."""
    report = Report() if report is None else report
    index = read_index(VocFolders.find(root, annotations, images), options, report)
    for entry in index.entries:
        record = make_record(entry, options, report)
        if record is not None:
            yield record


def is_thin(box: tuple[float, float, float, float]) -> bool:
    """Whether a side of a box (xyxy, pixels, 0-based, end exclusive) is below one pixel, which VOC cannot state."""
    x1, y1, x2, y2 = box
    return min(x2 - x1, y2 - y1) < 1 - 1e-6


def holds_name(file_name: str) -> bool:
    """Whether lists and xml files hold the name of an image, relative, as they are read back."""
    lines = (file_name, os.path.splitext(file_name)[0])
    return all(map(is_line, lines)) and not re.search("[\x00-\x08\x0e-\x1f\ufffe\uffff]", file_name)


def _inclusive(start: float, end: float, size: int) -> tuple[float, float]:
    """One side of a box, 0-based and end exclusive, as VOC's: 1-based and inclusive, at least a pixel long."""
    if start + 1 <= end:
        return start + 1, end
    pixel = min(max((start + end + 1) / 2, 1), size)
    return pixel, pixel


def write_voc(path: str | os.PathLike, record: Record, classes: Sequence[str]) -> None:
    """Write one record as a VOC xml, 1-based and inclusive; whole numbers are written as such.

    A box thinner than a pixel is widened to one, see the top of this file.

    Args:
        path: of the new xml file.
        record: its masks are not written.
        classes: names in the order of the labels.
    """
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = record.file_name
    size = ElementTree.SubElement(root, "size")
    for key, value in (("width", record.width), ("height", record.height), ("depth", 3)):
        ElementTree.SubElement(size, key).text = str(value)
    for item in record.objects:
        element = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(element, "name").text = classes[item.category]
        ElementTree.SubElement(element, "difficult").text = str(int(item.difficult))
        box = ElementTree.SubElement(element, "bndbox")
        x1, y1, x2, y2 = item.box
        (xmin, xmax), (ymin, ymax) = _inclusive(x1, x2, record.width), _inclusive(y1, y2, record.height)
        for key, value in (("xmin", xmin), ("ymin", ymin), ("xmax", xmax), ("ymax", ymax)):
            ElementTree.SubElement(box, key).text = (
                str(int(value)) if float(value).is_integer() else repr(float(value))
            )
    ElementTree.indent(root)
    Path(fs_path(path)).write_bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))
