"""What every annotation format has in common: the record, the report of problems, safe paths, picture headers, box checks.

Rules for all formats: nothing wrong is repaired or dropped without being counted; one bad item does not stop the others;
a count names the first few places, as "file: object".
"""

import json
import math
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from lpg_hf.files import fs_path, json_text, unicode_name, write_atomically


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
# Pillow's own limit for an error (twice its limit for a warning), 178,956,970 pixels.
MAX_PIXELS = 2 * (1024 * 1024 * 1024 // 4 // 3)
# How far a box may reach over the border before it is counted as clipped: rounding of the tool that wrote it, and ours.
CLIP_TOLERANCE_PIXELS = 0.5 + 1e-6
MIN_BOX_SIDE = 1e-3
MAX_PLACES = 10
MAX_ERRORS = 100
EXIF_ORIENTATION = 0x0112
PNG_START = b"\x89PNG\r\n\x1a\n"
FORMATS_WITH_AN_END = ("JPEG", "MPO", "PNG", "WEBP")  # Pillow's names

IMAGE_LEFT_OUT = "image left out"
# kind of problem -> (what happens to the item, what was found)
PROBLEMS = {
    "invalid_image_entry": (IMAGE_LEFT_OUT, "image entry without a usable id and file name"),
    "duplicate_image_id": (IMAGE_LEFT_OUT, "image id that an earlier image has already"),
    "unsafe_path": (IMAGE_LEFT_OUT, "file name that leads outside the image folder"),
    "missing_image": (IMAGE_LEFT_OUT, "picture that does not exist"),
    "missing_annotation": (IMAGE_LEFT_OUT, "name in the split list without an annotation file"),
    "invalid_class_mask": ("mask not used", "class mask that fits neither its picture nor the classes"),
    "label_name_taken": (IMAGE_LEFT_OUT, "picture whose label file an earlier picture has already"),
    "missing_mask": (IMAGE_LEFT_OUT, "picture without a class mask"),
    "unreadable_annotation": (IMAGE_LEFT_OUT, "annotation file that is not valid"),
    "unreadable_image": (IMAGE_LEFT_OUT, "picture that cannot be opened"),
    "truncated_image": (IMAGE_LEFT_OUT, "picture file that is cut off"),
    "image_too_large": (IMAGE_LEFT_OUT, "picture with more pixels than max_pixels"),
    "size_mismatch": (IMAGE_LEFT_OUT, "stated size differs from the picture's"),
    "size_rescaled": ("boxes rescaled", "stated size differs from the picture's"),
    "ambiguous_image": (IMAGE_LEFT_OUT, "several pictures of one name with different extensions"),
    "same_name_images": ("used the one in <filename>", "several pictures of one name with different extensions"),
    "image_without_object": (IMAGE_LEFT_OUT, "image without an object of the classes (keep_empty=True keeps it)"),
    "empty_image": ("kept", "image without an object of the classes"),
    "duplicate_file_name": ("kept", "picture that several image entries name"),
    "duplicate_entry": ("used once", "name that the split list holds more than once"),
    "image_without_annotation": ("not read", "picture without an annotation file: unlabelled"),
    "label_without_image": ("not read", "txt file without a picture"),
    "yaml_path": ("not used", "path in data.yaml that does not exist inside the folder of the data"),
    "class_count_differs": ("names used", "data.yaml states another number of classes than names"),
    "file_name_differs": ("kept", "<filename> names another existing picture than the annotation file's own name"),
    "size_from_image": ("kept", "no valid size stated, taken from the picture"),
    "size_unknown": ("right and lower border not checked", "neither a picture nor a valid size stated"),
    "invalid_annotation": ("object left out", "annotation that is no object with an image and a category"),
    "unknown_image": ("object left out", "annotation of an image that the file does not list"),
    "unknown_category": ("object left out", "category that the file does not list"),
    "unknown_class": ("object left out", "class that is not in the class list"),
    "unlisted_class": ("kept", "class that is in no class list, appended to it"),
    "other_class": ("object left out", "object of a class that was not asked for"),
    "id_type_differs": ("matched", "ids that are text in one place and a number in another"),
    "duplicate_annotation_id": ("new id given", "annotation id that is missing, no integer, or used before"),
    "duplicate_category_name": ("renamed", "category name that two ids share"),
    "invalid_line": ("object left out", "line that is neither class and box nor class and outline"),
    "pixel_values": ("object left out", "YOLO line with pixels in the place of fractions"),
    "duplicate_line": ("used once", "line that the label file holds more than once"),
    "centre_outside": ("object left out", "YOLO box with its centre outside the picture"),
    "invalid_box": ("object left out", "box that is not four finite numbers"),
    "no_box": ("object left out", "object with neither a box nor a mask to take it from"),
    "box_from_polygon": ("kept", "no box stated, taken from the polygon or mask"),
    "corners_swapped": ("put in order", "box with its corners in the wrong order"),
    "degenerate_box": ("object left out", "box without an area"),
    "box_outside": ("object left out", "box outside the picture"),
    "clipped_box": ("clipped", "box that reaches over the border of the picture"),
    "one_pixel_box": ("kept", "VOC box whose corners are one pixel: an annotation error?"),
    "zero_coordinate": ("kept", "VOC box with a coordinate 0: is the tool 0-based? (zero_based=True, --zero-based)"),
    "mask_name_taken": (IMAGE_LEFT_OUT, "picture whose mask would have the name of an earlier one's"),
    "low_score": ("left out of the result", "mask whose score is below min_score"),
    "empty_mask": ("kept, without a pixel", "box in which the generator found no object"),
    "no_mask": ("box kept", "object without a mask"),
    "invalid_mask": ("box kept", "object whose mask or polygon cannot be used"),
}

# Kinds that good files have too; any other kind deserves a warning.
EXPECTED = {"other_class", "image_without_object", "empty_image", "size_from_image", "image_without_annotation"}


class ImageProblem(OSError):
    """A picture that cannot be used; `kind` is its key in `PROBLEMS`."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


@dataclass
class BoxObject:
    """One annotated object.

    Attributes:
        box: (x1, y1, x2, y2), pixels, 0-based, end exclusive, inside the upright picture.
        category: 0-based position in the class list (semantic label - 1).
        area: pixels; of the mask if there is one, else as stated, else of the box.
        iscrowd: a region of many objects (COCO); no single object.
        difficult: VOC flag.
        id: unique in its dataset.
        rle: COCO mask, {"size": [height, width], "counts": text}; None if there is none or masks were not asked for.
        stated: COCO fields that say more than `rle` and `area` do, as the file states them: "segmentation" (an outline
            between pixels) and "area"; only beside `rle`.
    """

    box: tuple[float, float, float, float]
    category: int
    area: float
    iscrowd: bool = False
    difficult: bool = False
    id: int = 0
    rle: dict | None = None
    stated: dict = field(default_factory=dict, compare=False)


@dataclass
class Record:
    """One picture with its objects.

    Attributes:
        path: of the picture file; None: it does not exist, and only its annotations are to be checked (`keep_missing`).
        file_name: relative to the image folder, forward slashes.
        image_id: the id in the annotation file, as text.
        height: of the upright picture (EXIF orientation applied), pixels; without a picture as stated, infinite if not stated.
        width: the same.
        objects: in the order of the file.
        mask_path: VOC class mask (PNG of class indices), if asked for.
        license: name and address, if the file states them.
    """

    path: str | None
    file_name: str
    image_id: str
    height: int
    width: int
    objects: list[BoxObject] = field(default_factory=list)
    mask_path: str | None = None
    license: str = ""

    @property
    def single_objects(self) -> list[BoxObject]:
        """The objects without crowd regions."""
        return [item for item in self.objects if not item.iscrowd]


@dataclass
class Report:
    """What a reader found: counts, and for each kind of problem the first places.

    Attributes:
        images: pictures that became records.
        objects: objects in them.
        counts: kind (key of `PROBLEMS`) -> number.
        places: kind -> the first `max_places` of them, "file: object (detail)".
        classes: one line per class, "label name" (COCO: "label name (category id N)").
        details: kind -> value (a class name, a category id) -> number, where the value matters.
        errors: messages of faults that a data set must not be built with (a mask that does not fit its picture), the first
            `MAX_ERRORS` of them.
        left_out: (file name, kind) of all pictures that were left out before they were looked at: when an index was read. The
            name is the annotation file's, or the place in it, where the picture's is not known.
        max_places: of a kind that are kept; None: all.
    """

    images: int = 0
    objects: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    places: dict[str, list[str]] = field(default_factory=dict)
    details: dict[str, dict[str, int]] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    max_places: int | None = field(default=MAX_PLACES, compare=False)

    def add(self, kind: str, place: str, value: str | None = None, *, picture: str | None = None) -> None:
        """Count one problem of a kind; `value` is counted on its own too, `picture` is one of `left_out`."""
        if kind not in PROBLEMS:
            raise KeyError(f"unknown kind of problem {kind!r}")
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self._add_places(kind, [place])
        if value is not None:
            values = self.details.setdefault(kind, {})
            values[value] = values.get(value, 0) + 1
        if picture is not None:
            self.left_out.append((picture, kind))

    def add_error(self, message: str) -> None:
        """Keep the message of a fault that a data set must not be built with."""
        if len(self.errors) < MAX_ERRORS:
            self.errors.append(message)

    def _add_places(self, kind: str, places: list[str]) -> None:
        kept = self.places.setdefault(kind, [])
        kept.extend(places if self.max_places is None else places[: self.max_places - len(kept)])

    def merge(self, other: "Report") -> None:
        """Add another report's counts to this one."""
        self.images += other.images
        self.objects += other.objects
        self.classes = self.classes or other.classes
        self.errors = (self.errors + other.errors)[:MAX_ERRORS]
        self.left_out.extend(other.left_out)
        for kind, count in other.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
            self._add_places(kind, other.places.get(kind, []))
        for kind, values in other.details.items():
            mine = self.details.setdefault(kind, {})
            for value, count in values.items():
                mine[value] = mine.get(value, 0) + count

    def save(self, path: str | os.PathLike) -> None:
        """Write a json file that is complete or absent; folders are created."""
        write_atomically(path, json_text(asdict(self)).encode("utf-8"))

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Report":
        """What `save` wrote."""
        content = json.loads(Path(fs_path(path)).read_text(encoding="utf-8"))
        return cls(**content | {"left_out": [(name, kind) for name, kind in content.get("left_out", [])]})

    @property
    def needs_attention(self) -> bool:
        """Whether something was found that a good file does not have."""
        return bool(self.errors) or any(kind not in EXPECTED for kind in self.counts)

    @property
    def has_images_left_out(self) -> bool:
        """Whether any picture was left out."""
        return any(PROBLEMS[kind][0] == IMAGE_LEFT_OUT for kind in self.counts)

    def summary(self, outcomes: dict[str, str] | None = None) -> str:
        """A line for the whole, one for each kind of problem, and the first errors.

        Args:
            outcomes: kind -> what happened to the item, where that is not what `PROBLEMS` says.
        """
        lines = [f"{self.images} images, {self.objects} objects, {len(self.classes)} classes"]
        for kind, count in sorted(self.counts.items()):
            outcome, meaning = PROBLEMS[kind]
            outcome = (outcomes or {}).get(kind, outcome)
            line = f"  {kind}: {count} ({meaning}; {outcome})"
            if kind in self.details:
                values = sorted(self.details[kind].items(), key=lambda item: (-item[1], item[0]))
                line += ": " + ", ".join(f"{value} {number}" for value, number in values[:MAX_PLACES])
                line += ", ..." if len(values) > MAX_PLACES else ""
            lines.append(f"{line}, e.g. {'; '.join(self.places[kind][:3])}")
        return "\n".join([*lines, *self.errors[:MAX_PLACES]])


def walk_files(folder: str, suffixes: Sequence[str], deep: bool = True) -> Iterator[str]:
    """Relative names of the files of a folder (`deep`: and below), forward slashes, sorted.

    Args:
        folder: links to folders in it are not followed.
        suffixes: lower case; any case is found.
        deep: go into its folders.
    """
    base = fs_path(folder)
    for current, folders, files in os.walk(base):
        folders[:] = sorted(folders) if deep else []
        inner = os.path.relpath(current, base)
        for name in sorted(files):
            if name.lower().endswith(tuple(suffixes)):
                relative = name if inner == "." else os.path.join(inner, name)
                yield unicode_name(relative).replace(os.sep, "/")


def read_text(path: str | os.PathLike) -> str:
    """A text file: UTF-8, or UTF-16 with its mark.

    Raises:
        ValueError: it is neither.
    """
    data = Path(fs_path(path)).read_bytes()
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: byte {error.start}. Save it as UTF-8") from error


@lru_cache(maxsize=4096)
def _real_folder(path: str) -> str:
    return os.path.realpath(path)


def relative_name(name: object) -> str:
    """A file name of an annotation file as a relative path with forward slashes.

    Raises:
        ValueError: it is empty, absolute, on a drive, or climbs with "..".
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise ValueError("is no file name")
    name = name.replace("\\", "/")
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        raise ValueError("is not relative")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts or ".." in parts:
        raise ValueError("climbs out of the folder")
    return "/".join(parts)


def resolve_inside(root: str, name: str) -> str:
    """The path of `name` (from `relative_name`) under `root`; the file need not exist.

    Raises:
        ValueError: a symbolic link leads outside `root`.
    """
    path = f"{root}/{name}"
    local = fs_path(path)
    real = os.path.realpath(local) if os.path.islink(local) else _real_folder(os.path.dirname(local)) + os.sep
    base = os.path.join(_real_folder(fs_path(root)), "")
    if not real.startswith(base):
        raise ValueError("is a link that leads outside the folder")
    return path


_pixel_limit_lock = threading.Lock()


@contextmanager
def _without_pixel_limit() -> Iterator[None]:
    """Pillow checks its process-wide limit in `Image.open`; ours is an argument, so theirs is off for that call only."""
    with _pixel_limit_lock:
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def open_image(source, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open a picture: its header is read, its pixels are not.

    Args:
        source: path or binary file.
        name: for messages.
        max_pixels: a picture with more is refused before any memory is taken for it.

    Raises:
        ImageProblem: it cannot be opened, or is too large.
    """
    if isinstance(source, (str, os.PathLike)):
        source = fs_path(source)
    try:
        with _without_pixel_limit():
            image = Image.open(source)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "it is no picture that Pillow knows" if unknown else getattr(error, "strerror", None) or str(error)
        is_cut_file = isinstance(source, str) and os.path.isfile(source) and _ends_early(source)
        if is_cut_file or "truncated" in reason.lower():
            raise ImageProblem("truncated_image", f"the picture {name} is cut off: {reason}") from error
        raise ImageProblem("unreadable_image", f"cannot open the picture {name}: {reason}") from error
    width, height = image.size
    if width * height > max_pixels:
        image.close()
        raise ImageProblem(
            "image_too_large",
            f"the picture {name} has {width} x {height} = {width * height} pixels, more than max_pixels={max_pixels}; "
            "raise max_pixels (--max-pixels) if you trust the file",
        )
    return image


def _ends_early(path: str) -> bool:
    """Whether the end mark of a JPEG or PNG is absent: the file may be cut off, only decoding can tell."""
    with open(path, "rb") as file:
        start = file.read(8)
        file.seek(max(os.fstat(file.fileno()).st_size - 64, 0))
        end = file.read()
    return (start[:3] == b"\xff\xd8\xff" and b"\xff\xd9" not in end) or (start == PNG_START and b"IEND" not in end)


def exif_orientation(image: Image.Image) -> int:
    """How an opened picture is stored: 1 upright, 2 to 8 turned or mirrored; nothing is decoded.

    Pillow turns TIFF itself, and would decode a whole PNG to look for a block behind the pixels.
    """
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    try:
        return image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # Pillow's parser raises many types on a broken block; viewers show such a picture as stored.
        return 1


def image_size(path: str, name: str, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(height, width) of a picture when shown upright, from its header; a file that may be cut off is decoded as well.

    So is every BMP, TIFF and the like: they have no mark at their end. Pillow looks at the whole of a WebP when it opens it.

    Raises:
        ImageProblem: unreadable, too large or cut off.
    """
    with open_image(path, name, max_pixels) as image:
        width, height = image.size
        turned = exif_orientation(image) in (5, 6, 7, 8)
        if image.format not in FORMATS_WITH_AN_END or _ends_early(fs_path(path)):
            try:
                image.load()
            except (OSError, SyntaxError, ValueError) as error:
                raise ImageProblem("truncated_image", f"the picture {name} is cut off or damaged: {error}") from error
    return (width, height) if turned else (height, width)


def stated_size(height: object, width: object) -> tuple[int, int] | None:
    """(height, width) as positive integers, or None if the file states none that can be true."""
    try:
        size = int(float(height)), int(float(width))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return size if min(size) > 0 else None


@dataclass
class Geometry:
    """The frame of one picture: its true size, and the factors from the stated frame to it (1 unless rescaled).

    Without a picture it is the stated size, and infinite if none is stated.
    """

    height: int | float
    width: int | float
    scale_y: float = 1.0
    scale_x: float = 1.0


SIZE_MISMATCH_CHOICES = ("skip", "error", "rescale")


@dataclass
class ImageChecks:
    """How pictures are checked while records are made.

    Attributes:
        verify: open each picture's header; off, the stated size is believed where there is one.
        size_mismatch: stated size differs from the picture's: "skip" it, raise an "error", or "rescale" the boxes.
        max_pixels: a picture with more pixels is left out.
    """

    verify: bool = True
    size_mismatch: str = "skip"
    max_pixels: int = MAX_PIXELS

    def geometry(self, path: str | None, name: str, stated: tuple[int, int] | None, report: Report) -> Geometry | None:
        """The frame of a picture (`path` None: there is none); None (and counted) if the picture cannot be used.

        Raises:
            ValueError: the sizes differ and `size_mismatch` is "error".
        """
        if stated and not self.verify:
            return Geometry(*stated)
        if path is None:
            if stated is None:
                report.add("size_unknown", name)
            return Geometry(*(stated or (math.inf, math.inf)))
        try:
            height, width = image_size(path, name, self.max_pixels)
        except ImageProblem as problem:
            report.add(problem.kind, str(problem))
            return None
        if stated is None:
            report.add("size_from_image", f"{name}: {width} x {height}")
            return Geometry(height, width)
        if stated == (height, width):
            return Geometry(height, width)
        place = f"{name}: stated {stated[1]} x {stated[0]}, picture {width} x {height}"
        if self.size_mismatch == "error":
            raise ValueError(
                f"size (width x height) of {place}. Correct the file, or pass size_mismatch='skip' or 'rescale'"
            )
        if self.size_mismatch == "rescale":
            report.add("size_rescaled", place)
            return Geometry(height, width, height / stated[0], width / stated[1])
        report.add("size_mismatch", place)
        return None


def checked_box(box: object, height: int, width: int, place: str, report: Report) -> tuple[float, ...] | None:
    """Put the corners of a box in order and clip it to the picture.

    Args:
        box: four numbers, xyxy, pixels, 0-based, end exclusive; anything else is counted.
        height: of the picture; may be infinite.
        width: of the picture; may be infinite.
        place: "file: object", for the report.
        report: counts what was done.

    Returns:
        xyxy inside the picture with a positive area, or None if the object has to be left out.
    """
    x1, y1, x2, y2 = box
    if x2 < x1 or y2 < y1:
        report.add("corners_swapped", f"{place} {_text(box)}")
        x1, x2, y1, y2 = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
    if x2 - x1 < MIN_BOX_SIDE or y2 - y1 < MIN_BOX_SIDE:
        report.add("degenerate_box", f"{place} {_text(box)}")
        return None
    clipped = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    if clipped[2] - clipped[0] < MIN_BOX_SIDE or clipped[3] - clipped[1] < MIN_BOX_SIDE:
        report.add("box_outside", f"{place} {_text(box)}, picture {width} x {height}")
        return None
    if min(x1, width - x2, y1, height - y2) < -CLIP_TOLERANCE_PIXELS:
        report.add("clipped_box", f"{place} {_text(box)}, picture {width} x {height}")
    return clipped


def _text(box) -> str:
    return "[" + ", ".join(f"{value:g}" for value in box) + "]"


def finite_numbers(values: object, count: int) -> list[float] | None:
    """`values` as floats if it is a list of exactly `count` finite numbers, else None."""
    if not isinstance(values, (list, tuple)) or len(values) != count:
        return None
    if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in values):
        return None
    if any(abs(value) > 1e12 or not math.isfinite(value) for value in values):
        return None
    return [float(value) for value in values]


def check_missing(
    kind: str,
    names: list[str],
    total: int,
    folder: str,
    what: str,
    allow_missing: bool,
    report: Report,
    pictures: list[str] | None = None,
    keep: bool = False,
) -> None:
    """Count missing files, and stop unless that is allowed.

    Args:
        kind: key of `PROBLEMS`.
        names: of the missing files.
        total: number of files that should be there.
        folder: where.
        what: files these are, for the message.
        allow_missing: go on without them.
        report: counts them.
        pictures: the picture that each is missing for; None: `names` are pictures.
        keep: only count: the pictures are not left out, and all may be missing.

    Raises:
        FileNotFoundError: some are missing and `allow_missing` is off, or all are; not with `keep`.
    """
    for name, picture in zip(names, names if pictures is None else pictures):
        report.add(kind, name, picture=None if keep else picture)
    if not names or keep:
        return
    first = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    if len(names) == total:
        raise FileNotFoundError(f"none of the {total} {what} exists in {folder}: {first}. Pass the right folder")
    if not allow_missing:
        raise FileNotFoundError(
            f"{len(names)} of {total} {what} are missing in {folder}: {first}. Complete the folder, or pass allow_missing=True "
            "(--allow-missing; in training --aux_allow_missing true, --target_allow_missing true) to go on without them"
        )
