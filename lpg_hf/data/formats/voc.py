"""Pascal VOC annotations (one xml per image, class masks as PNG) <-> records.

    ROOT/JPEGImages/NAME.jpg              images (or .jpeg .png .bmp .webp .tif, any case)
    ROOT/Annotations/NAME.xml             boxes
    ROOT/SegmentationClass/NAME.png       class masks, palette or grey PNG of indices; only with `masks`
    ROOT/ImageSets/Segmentation/LIST.txt  names of a split (or ImageSets/Main/LIST.txt)
    ROOT/classes.txt                      class names in the order of the labels, if they are not VOC's 20

VOC counts pixels from 1 and includes both corners: (xmin, ymin, xmax, ymax) is the box (xmin - 1, ymin - 1, xmax, ymax) here.
`zero_based=True` is for tools that write plain 0-based corners, which are taken as they are. No box of VOC is thinner than a
pixel: a thinner one is written as the box one pixel wide (or high) with the same centre, moved into the image.
"""

import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from defusedxml import ElementTree as SafeElementTree
from defusedxml.common import DefusedXmlException

from lpg_hf.data.records import BoxObject, ImageChecks, Record, checked_box, finite_numbers, stated_size
from lpg_hf.data.report import Report, check_missing
from lpg_hf.files import fs_path, read_text, relative_name, resolve_inside, unicode_name, unicode_path, walk_files
from lpg_hf.images import IMAGE_SUFFIXES, MAX_PIXELS, ImageProblem, open_image
from lpg_hf.labels import IGNORE_INDEX, VOC_CLASSES


IMAGES_FOLDER = "JPEGImages"
ANNOTATIONS_FOLDER = "Annotations"
MASKS_FOLDER = "SegmentationClass"
SPLIT_FOLDERS = ("ImageSets/Segmentation", "ImageSets/Main")
CLASSES_FILE = "classes.txt"
BACKGROUND_NAMES = ("background", "__background__", "_background_", "__ignore__")


@dataclass
class VocEntry:
    """One image of the dataset, not yet checked.

    Attributes:
        name: of the annotation file without its suffix; the image id.
        file_name: of the image, relative to the image folder.
        path: of the image; None: it does not exist.
        size: (height, width) as stated, or None.
        objects: {"id", "category" (0-based class), "corners" (four numbers as written, or None), "difficult"}.
        mask_path: of the class mask, if asked for.
    """

    name: str
    file_name: str
    path: str | None
    size: tuple[int, int] | None
    objects: list[dict] = field(default_factory=list)
    mask_path: str | None = None


@dataclass
class VocIndex:
    """A split: `classes` are names in the order of the labels, without the background; `files` were read for it."""

    classes: list[str]
    entries: list[VocEntry]
    files: list[str] = field(default_factory=list)


def read_class_list(path: str | os.PathLike) -> list[str]:
    """The names in a text file, one a line, in the order of the labels; a background line is left out.

    Raises:
        ValueError: no text, no names, or a name twice.
    """
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    names = [name for name in names if name not in BACKGROUND_NAMES]
    _check_class_names(names, str(path))
    return names


def _check_class_names(names: Sequence[str], place: str) -> None:
    if not names:
        raise ValueError(f"{place} holds no class names")
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise ValueError(f"{place} holds class names twice: {', '.join(twice)}")


def split_list_paths(root: str, split: str) -> list[str]:
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
    paths = split_list_paths(root, split)
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


def _names_of_split(path: str, annotations: str, report: Report) -> list[str]:
    """The image names in a list file; a class flag (-1, 0, 1) or an image suffix after the name is cut off."""

    def known(name: str) -> bool:
        return os.path.isfile(fs_path(f"{annotations}/{name}.xml"))

    names: dict[str, None] = {}
    list_name = os.path.basename(path)
    for number, line in enumerate(read_text(path).splitlines(), start=1):
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


def parse_xml(path: str) -> dict:
    """The parts of a VOC xml that are used.

    Returns:
        {"filename": text or None, "size": (height, width) or None, "objects": [{"name", "corners", "difficult"}]};
        corners are xmin, ymin, xmax, ymax as written (not finite numbers: None). Boxes of `<part>` are not read.

    Raises:
        ValueError: not xml, not complete, with entities, or no `<annotation>`.
    """
    data = Path(fs_path(path)).read_bytes()
    try:
        root = SafeElementTree.parse(BytesIO(data)).getroot()
    except (ElementTree.ParseError, DefusedXmlException, LookupError, ValueError) as error:
        raise ValueError(f"no valid xml: {error}") from error
    if root.tag != "annotation":
        raise ValueError(f"no VOC annotation: its top element is <{root.tag}>")
    size = root.find("size")
    objects = []
    for element in root.findall("object"):
        box = element.find("bndbox")  # A direct child only: <part> has boxes of its own.
        corners = None
        if box is not None:
            corners = [_number(box.findtext(key)) for key in ("xmin", "ymin", "xmax", "ymax")]
        objects.append(
            {
                "name": (element.findtext("name") or "").strip(),
                "corners": corners,
                "difficult": _number(element.findtext("difficult")) == 1,
            }
        )
    filename = root.findtext("filename")
    return {
        "filename": filename.strip() if filename and filename.strip() else None,
        "size": None if size is None else stated_size(size.findtext("height"), size.findtext("width")),
        "objects": objects,
    }


def _number(text: str | None) -> float | None:
    try:
        return float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None


class _Images:
    """The images of a folder, by name with and without suffix."""

    def __init__(self, root: str):
        self.names = set(walk_files(root, IMAGE_SUFFIXES))
        self.by_stem: dict[str, list[str]] = {}
        for name in sorted(self.names):
            self.by_stem.setdefault(os.path.splitext(name)[0], []).append(name)

    def find(self, stem: str, filename: str | None, report: Report) -> str | None:
        """The image of the annotation file `stem`; None if there is none (not counted) or no single one (counted).

        The annotation file's own name counts first, as masks and split lists use it; `<filename>` decides between several.

        Raises:
            ValueError: only `<filename>` could tell, and it leads outside the folder.
        """
        found = self.by_stem.get(stem, [])
        if len(found) == 1:
            other = None if filename is None else self._named(stem, filename.replace("\\", "/"))
            if other not in (None, found[0]):
                report.add("file_name_differs", f"{stem}.xml: {found[0]} and {other}")
            return found[0]
        if filename is None:
            return None
        named = self._named(stem, relative_name(filename))
        if found:
            place = f"{stem}.xml: {', '.join(found)}"
            if named in found:
                report.add("same_name_images", place)
                return named
            report.add("ambiguous_image", place, image=f"{stem}.xml")
            return None
        if named is not None:
            return named
        same_stem = self.by_stem.get(os.path.splitext(relative_name(filename))[0], [])
        return same_stem[0] if len(same_stem) == 1 else None

    def _named(self, stem: str, filename: str) -> str | None:
        beside = f"{os.path.dirname(stem)}/{filename}".lstrip("/")
        return next((name for name in (beside, filename) if name in self.names), None)


def own_class_list(root: str) -> list[str]:
    """The class list of a folder: its classes.txt, else VOC's 20."""
    path = f"{root}/{CLASSES_FILE}"
    return read_class_list(path) if os.path.isfile(fs_path(path)) else list(VOC_CLASSES)


def _select_classes(
    own: list[str], classes: str | Sequence[str] | None, found: Iterable[str], masks: bool
) -> list[str]:
    if classes is None:
        return own
    if isinstance(classes, str) and classes != "all":
        raise ValueError(f"classes must be a list of names, 'all' or None, got {classes!r}")
    selected = sorted(set(found)) if classes == "all" else list(classes)
    if not selected and classes == "all":
        raise ValueError("classes='all': no annotation file holds an object with a name; pass the list of classes")
    _check_class_names(selected, "classes")
    position = {name: index for index, name in enumerate(own)}
    moved = [name for index, name in enumerate(selected) if position.get(name, index) != index]
    if masks and selected != own and (moved or classes == "all"):
        raise ValueError(
            f"classes {selected[:5]} give other labels than the class masks have ({', '.join(own[:5])}, ...). "
            f"Pass the full list in the order of the mask indices (or write {CLASSES_FILE}), or masks=False"
        )
    return selected


def read_index(
    root: str | os.PathLike,
    split: str | None = None,
    classes: str | Sequence[str] | None = None,
    *,
    annotations: str | os.PathLike | None = None,
    images: str | os.PathLike | None = None,
    masks: bool = False,
    keep_empty: bool = False,
    allow_missing: bool = False,
    keep_unknown: bool = False,
    keep_missing: bool = False,
    only: str | None = None,
    report: Report,
) -> VocIndex:
    """Read the xml files of a split and find their images and masks.

    Args:
        root: folder with Annotations, JPEGImages, ImageSets.
        split: name of a list in ImageSets/Segmentation, else ImageSets/Main; None takes every annotation file.
        classes: names in the order of the labels; None: classes.txt of `root`, else VOC's 20; "all": every name that occurs,
            sorted.
        annotations: other folder of the xml files.
        images: other folder of the images.
        masks: find the class masks.
        keep_empty: keep images without an object of the classes.
        allow_missing: go on (and count) when some images, xml files or masks do not exist.
        keep_unknown: with `classes=None`, names that are in no class list are appended to it and counted; off, their objects
            are left out. Without classes.txt, and if none of VOC's 20 occurs, the list is the names that occur, sorted.
        keep_missing: images and masks that do not exist are counted, and their entries kept, to check the annotations.
        only: name of the one annotation file to read, without its suffix.
        report: counts problems.

    Returns:
        The classes and one entry per image, in the order of the list.

    Raises:
        FileNotFoundError: no such folder or list; files are missing.
        ValueError: class list empty, with doubles or at odds with the masks; no object of the classes at all.
    """
    root = unicode_path(root)
    annotations = unicode_path(annotations or f"{root}/{ANNOTATIONS_FOLDER}")
    images = unicode_path(images or f"{root}/{IMAGES_FOLDER}")
    check_folders(root, annotations, images)
    files = [path for path in (f"{root}/{CLASSES_FILE}",) if os.path.isfile(fs_path(path))]
    if only is not None:
        names = [only]
    elif split is None:
        names = [name[: -len(".xml")] for name in walk_files(annotations, (".xml",))]
        if not names:
            raise FileNotFoundError(f"no xml file in {annotations}. Pass the folder of the VOC annotations")
    else:
        files.append(find_split_list(root, split))
        names = _names_of_split(files[-1], annotations, report)

    parsed: dict[str, dict] = {}
    without_xml: list[str] = []
    for name in names:
        try:
            path = resolve_inside(annotations, f"{name}.xml")
        except ValueError as error:
            report.add("unsafe_path", f"{name}.xml {error}", image=f"{name}.xml")
            continue
        if not os.path.isfile(fs_path(path)):
            without_xml.append(f"{name}.xml")
            continue
        files.append(path)
        try:
            parsed[name] = parse_xml(path)
        except ValueError as error:
            report.add("unreadable_annotation", f"{name}.xml: {error}", image=f"{name}.xml")
    check_missing(
        "missing_annotation", without_xml, len(names), annotations, "annotation files", allow_missing, report
    )

    found = {item["name"] for content in parsed.values() for item in content["objects"] if item["name"]}
    own = own_class_list(root)
    selected = _select_classes(own, classes, found, masks)
    unlisted: set[str] = set()
    if keep_unknown and classes is None:
        if not masks and found and not found & set(own) and not os.path.isfile(fs_path(f"{root}/{CLASSES_FILE}")):
            own = sorted(found)
        unlisted = found - set(own)
        selected = [*own, *sorted(unlisted)]
    report.classes = [f"{label} {name}" for label, name in enumerate(selected, start=1)]
    objects = _number_objects(parsed, selected, own, unlisted, report)
    if not keep_empty and not any(objects.values()):
        raise ValueError(
            f"no image of {annotations} has an object of the classes {', '.join(selected[:5])}"
            f"{', ...' if len(selected) > 5 else ''}. Pass classes=[...] (or 'all'), or write {CLASSES_FILE}.\n"
            f"{report.summary()}"
        )

    listing = _Images(images)
    entries, without_image, lost = [], [], []
    num_wanted = 0
    for name, content in parsed.items():
        if not objects[name] and not keep_empty:
            report.add("image_without_object", f"{name}.xml", image=f"{name}.xml")
            continue
        num_wanted += 1
        num_ambiguous = report.counts.get("ambiguous_image", 0)
        try:
            file_name = listing.find(name, content["filename"], report)
            path = None if file_name is None else resolve_inside(images, file_name)
        except ValueError as error:
            place = f"{name}.xml: image {content['filename']!r} {error}"
            report.add("unsafe_path", place, image=content["filename"] or f"{name}.xml")
            continue
        if path is None:
            if report.counts.get("ambiguous_image", 0) > num_ambiguous:
                continue
            without_image.append(f"{name} ({content['filename']})" if content["filename"] else name)
            lost.append(content["filename"] or f"{name}.xml")
            if not keep_missing:
                continue
            file_name = lost[-1]
        entries.append(VocEntry(name, file_name, path, content["size"], objects[name]))
    check_missing(
        "missing_image", without_image, num_wanted, images, "images", allow_missing, report, lost, keep_missing
    )
    if split is None and only is None:
        used = {entry.file_name for entry in entries}
        for stem in sorted(listing.by_stem.keys() - parsed.keys()):
            for file_name in listing.by_stem[stem]:
                if file_name not in used:
                    report.add("image_without_annotation", file_name)
    if masks:
        entries = _with_masks(entries, f"{root}/{MASKS_FOLDER}", allow_missing, keep_missing, report)
    return VocIndex(selected, entries, files)


def check_folders(root: str, annotations: str, images: str) -> None:
    """Raises FileNotFoundError, with a remedy, if one of the folders does not exist."""
    for what, folder in (("VOC root", root), ("annotation", annotations), ("image", images)):
        if os.path.isdir(fs_path(folder)):
            continue
        hint = ""
        if os.path.isdir(fs_path(root)):
            inner = [n for n in sorted(os.listdir(fs_path(root))) if os.path.isdir(fs_path(f"{root}/{n}/Annotations"))]
            hint = (
                f" Did you mean the folder {inner[0]} in it?"
                if inner
                else f" {root} needs Annotations/ and JPEGImages/."
            )
        raise FileNotFoundError(f"{what} folder not found: {folder}.{hint}")


def _number_objects(
    parsed: dict[str, dict], selected: list[str], own: list[str], unlisted: set[str], report: Report
) -> dict[str, list]:
    """The objects of the wanted classes per annotation file, with ids from 1 in the order of reading."""
    position = {name: index for index, name in enumerate(selected)}
    objects: dict[str, list] = {}
    next_id = 1
    for name, content in parsed.items():
        objects[name] = []
        for number, item in enumerate(content["objects"], start=1):
            place = f"{name}.xml: object {number}"
            if not item["name"]:
                report.add("invalid_annotation", f"{place} has no <name>")
            elif item["name"] in position:
                if item["name"] in unlisted:
                    report.add("unlisted_class", place, item["name"])
                objects[name].append(
                    {
                        "id": next_id,
                        "category": position[item["name"]],
                        "corners": item["corners"],
                        "difficult": item["difficult"],
                        "number": number,
                    }
                )
                next_id += 1
            else:
                report.add("other_class" if item["name"] in own else "unknown_class", place, item["name"])
    return objects


def _with_masks(
    entries: list[VocEntry], folder: str, allow_missing: bool, keep_missing: bool, report: Report
) -> list[VocEntry]:
    safe, missing = [], []
    for entry in entries:
        try:
            entry.mask_path = resolve_inside(folder, f"{entry.name}.png")
        except ValueError as error:
            report.add("unsafe_path", f"{entry.name}.png {error}", image=entry.file_name)
            continue
        safe.append(entry)
        if not os.path.isfile(fs_path(entry.mask_path)):
            missing.append(entry)
    names, images = [f"{entry.name}.png" for entry in missing], [entry.file_name for entry in missing]
    check_missing(
        "missing_mask", names, len(entries), folder, "class masks", allow_missing, report, images, keep_missing
    )
    for entry in missing:
        entry.mask_path = None
    return safe if keep_missing else [entry for entry in safe if entry.mask_path is not None]


def make_record(
    entry: VocEntry,
    checks: ImageChecks,
    report: Report,
    *,
    num_classes: int,
    zero_based: bool = False,
    keep_empty: bool = False,
) -> Record | None:
    """Check one image, its objects, and its class mask if it has one.

    Args:
        entry: from `read_index`.
        checks: how to check the image; `verify=False` also leaves the mask unread.
        report: counts problems.
        num_classes: without the background.
        zero_based: the corners are 0-based and end exclusive, not VOC's.
        keep_empty: keep the image if no object is left.

    Returns:
        The record, or None (and counted) if the image cannot be used.

    Raises:
        ValueError: the mask has another size than the image, holds a value above `num_classes` other than 255, or is no
            index image; or the stated size differs and `checks.size_mismatch` is "error".
    """
    frame = checks.geometry(entry.path, entry.file_name, entry.size, report)
    if frame is None:
        return None
    objects = []
    for item in entry.objects:
        place = f"{entry.name}.xml: object {item['number']}"
        if item["corners"] is None:
            report.add("no_box", place)
            continue
        corners = finite_numbers(item["corners"], 4)
        if corners is None:
            report.add("invalid_box", f"{place} {item['corners']}")
            continue
        x1, y1, x2, y2 = corners
        if x2 < x1 or y2 < y1:
            report.add("corners_swapped", f"{place} {corners}")
            x1, x2, y1, y2 = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
        if not zero_based:
            if 0 in (x1, y1):
                report.add("zero_coordinate", f"{place} {corners}")
            if (x1, y1) == (x2, y2):
                report.add("one_pixel_box", f"{place} {corners}")
            x1, y1 = x1 - 1, y1 - 1
        scaled = (x1 * frame.scale_x, y1 * frame.scale_y, x2 * frame.scale_x, y2 * frame.scale_y)
        box = checked_box(scaled, frame.height, frame.width, place, report)
        if box is not None:
            area = (box[2] - box[0]) * (box[3] - box[1])
            objects.append(BoxObject(box, item["category"], area, difficult=item["difficult"], id=item["id"]))
    if not objects:
        report.add("empty_image" if keep_empty else "image_without_object", f"{entry.name}.xml")
        if not keep_empty:
            return None
    if entry.mask_path is not None and checks.verify and math.isfinite(frame.height):
        check_mask(entry.mask_path, entry.file_name, frame.height, frame.width, num_classes, checks.max_pixels)
    report.images += 1
    report.objects += len(objects)
    return Record(
        path=entry.path,
        file_name=entry.file_name,
        image_id=entry.name,
        height=frame.height,
        width=frame.width,
        objects=objects,
        mask_path=entry.mask_path,
    )


def check_mask(
    path: str, image_name: str, height: int, width: int, num_classes: int, max_pixels: int = MAX_PIXELS
) -> None:
    """Check a class mask against its image and the class list.

    Raises:
        ValueError: other size, a value above `num_classes` other than 255, no index image, or unreadable.
    """
    try:
        with open_image(path, path, max_pixels) as mask:
            if mask.size != (width, height):
                raise ValueError(
                    f"the class mask {path} is {mask.size[0]} x {mask.size[1]}, its image {image_name} {width} x {height}; "
                    "masks are never resized, correct the file"
                )
            if mask.mode not in ("P", "L"):
                raise ValueError(
                    f"the class mask {path} has mode {mask.mode}; it must be a palette or grey PNG of indices"
                )
            labels = np.asarray(mask)
    except (ImageProblem, OSError) as error:
        raise ValueError(f"cannot read the class mask {path}: {error}") from error
    check_mask_values(labels, path, num_classes)


def check_mask_values(labels: np.ndarray, name: str, num_classes: int) -> None:
    """Raises ValueError if a class mask ((H, W) uint8) holds a value above `num_classes` other than 255."""
    values = np.flatnonzero(np.bincount(labels.ravel(), minlength=256))
    wrong = [int(value) for value in values if num_classes < value != IGNORE_INDEX]
    if wrong:
        raise ValueError(
            f"the class mask {name} holds the value {wrong[0]}, but there are {num_classes} classes "
            f"(0 background, 1..{num_classes}, {IGNORE_INDEX} ignored); correct the mask or the class list"
        )


def read_voc(
    root: str | os.PathLike,
    split: str | None = None,
    classes: str | Sequence[str] | None = None,
    *,
    annotations: str | os.PathLike | None = None,
    images: str | os.PathLike | None = None,
    masks: bool = False,
    zero_based: bool = False,
    keep_empty: bool = False,
    allow_missing: bool = False,
    checks: ImageChecks | None = None,
    report: Report | None = None,
) -> Iterator[Record]:
    """All records of a VOC split, one at a time; arguments as in `read_index` and `make_record`."""
    report = Report() if report is None else report
    index = read_index(
        root,
        split,
        classes,
        annotations=annotations,
        images=images,
        masks=masks,
        keep_empty=keep_empty,
        allow_missing=allow_missing,
        report=report,
    )
    for entry in index.entries:
        record = make_record(
            entry,
            checks or ImageChecks(),
            report,
            num_classes=len(index.classes),
            zero_based=zero_based,
            keep_empty=keep_empty,
        )
        if record is not None:
            yield record


def is_thin(box: tuple[float, float, float, float]) -> bool:
    """Whether VOC's corners cannot hold a box (xyxy, pixels, 0-based, end exclusive), as a side of it is below one pixel."""
    x1, y1, x2, y2 = box
    return min(x2 - x1, y2 - y1) < 1 - 1e-6


def _inclusive(start: float, end: float, size: int) -> tuple[float, float]:
    """The ends of one side of a box, 0-based and end exclusive, as VOC's: 1-based and inclusive, at least a pixel apart."""
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
        (xmin, xmax), (ymin, ymax) = (
            _inclusive(*item.box[axis::2], size) for axis, size in enumerate((record.width, record.height))
        )
        for key, value in (("xmin", xmin), ("ymin", ymin), ("xmax", xmax), ("ymax", ymax)):
            ElementTree.SubElement(box, key).text = (
                str(int(value)) if float(value).is_integer() else repr(float(value))
            )
    ElementTree.indent(root)
    Path(fs_path(path)).write_bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))
