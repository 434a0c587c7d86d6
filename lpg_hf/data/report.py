"""What readers found wrong: counts, and for each kind of problem the first places.

Rules for all formats: nothing wrong is repaired or dropped without being counted; one bad item does not stop the
others; a count names the first few places, as "file: object".
"""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lpg_hf._files import fs_path, json_text, write_atomically
from lpg_hf.data.options import ReadOptions


MAX_PLACES = 10
MAX_ERRORS = 100
# The outcomes that other code asks for; further ones are free text.
IMAGE_SKIPPED = "image skipped"
OBJECT_SKIPPED = "object skipped"
REGION_IGNORED = "region ignored (255)"
KEPT = "kept"


@dataclass(frozen=True)
class ProblemKind:
    """A kind of problem: what happens to the item (`outcome`), and what was found (`meaning`)."""

    outcome: str
    meaning: str


PROBLEMS = {
    "invalid_image_entry": ProblemKind(IMAGE_SKIPPED, "image entry without a usable id, file name or size"),
    "duplicate_image_id": ProblemKind(IMAGE_SKIPPED, "image id that another image has too"),
    "unsafe_path": ProblemKind(IMAGE_SKIPPED, "file name that leads outside the image folder"),
    "missing_image": ProblemKind(IMAGE_SKIPPED, "image that does not exist"),
    "missing_annotation": ProblemKind(IMAGE_SKIPPED, "name in the split list without an annotation file"),
    "unreadable_class_list": ProblemKind("not used", "class list that is no text, or states a name twice"),
    "generator_failed": ProblemKind(IMAGE_SKIPPED, "image one pixel high or wide, at which the generator failed"),
    "invalid_class_mask": ProblemKind("mask not used", "class mask that fits neither its image nor the classes"),
    "label_name_taken": ProblemKind(
        IMAGE_SKIPPED, "image whose new files would have the name of another one's, or of a folder"
    ),
    "unwritable_name": ProblemKind(
        IMAGE_SKIPPED, "image whose name the new files cannot hold: with a line break, a blank at its end, no UTF-8"
    ),
    "mask_without_object": ProblemKind(KEPT, "class mask without a pixel of any class"),
    "missing_mask": ProblemKind(IMAGE_SKIPPED, "image without a class mask"),
    "unreadable_annotation": ProblemKind(IMAGE_SKIPPED, "annotation file that is not valid"),
    "unreadable_image": ProblemKind(IMAGE_SKIPPED, "image that cannot be opened"),
    "truncated_image": ProblemKind(IMAGE_SKIPPED, "image file that is cut off"),
    "image_too_large": ProblemKind(IMAGE_SKIPPED, "image with more pixels than max_pixels"),
    "chosen_bands": ProblemKind("first ones taken", "image of other bands than red, green and blue (--bands)"),
    "first_page": ProblemKind("first one read", "TIFF of several pages"),
    "alpha_as_band": ProblemKind("not transparent", "image whose transparency has mostly values in between: a band"),
    "scaled_values": ProblemKind("scaled to 8 bits", "image with values of other kinds than 8 bits (--stretch)"),
    "size_mismatch": ProblemKind(IMAGE_SKIPPED, "stated size differs from the image's"),
    "stored_size": ProblemKind(
        IMAGE_SKIPPED,
        "stated size is the image's before its EXIF rotation: are the labels too (stored_frame=True, --stored-frame)?",
    ),
    "labels_turned": ProblemKind("turned", "labels in the frame of the image before its EXIF rotation"),
    "size_rescaled": ProblemKind("boxes rescaled", "stated size differs from the image's"),
    "ambiguous_image": ProblemKind(IMAGE_SKIPPED, "name that fits several images, or the image of another entry"),
    "same_name_images": ProblemKind(
        "used the one in <filename>", "several images of one name with different extensions"
    ),
    "image_without_object": ProblemKind(
        IMAGE_SKIPPED, "image without an object of the classes (keep_empty=True keeps it)"
    ),
    "empty_image": ProblemKind(KEPT, "image without an object of the classes"),
    "image_by_name": ProblemKind(
        "matched", "image found by a part of its name: other folders, or the name before an upload"
    ),
    "other_suffix": ProblemKind("matched", "image that lies there under another suffix"),
    "duplicate_file_name": ProblemKind(KEPT, "image that several image entries name"),
    "duplicate_entry": ProblemKind("used once", "name that the split list holds more than once"),
    "image_without_annotation": ProblemKind("not read", "image without an annotation: unlabelled"),
    "label_without_image": ProblemKind("not read", "txt file without an image"),
    "yaml_path": ProblemKind("not used", "path in data.yaml that does not exist inside the folder of the data"),
    "class_count_differs": ProblemKind("names used", "data.yaml states another number of classes than names"),
    "file_name_differs": ProblemKind(
        KEPT, "<filename> names another existing image than the annotation file's own name"
    ),
    "size_from_image": ProblemKind(KEPT, "no valid size stated, taken from the image"),
    "size_unknown": ProblemKind("right and lower border not checked", "neither an image nor a valid size stated"),
    "invalid_annotation": ProblemKind(OBJECT_SKIPPED, "annotation that is not an object with an image and a category"),
    "unknown_image": ProblemKind(OBJECT_SKIPPED, "annotation of an image that the file does not list"),
    "incomplete_image": ProblemKind(
        IMAGE_SKIPPED, "image with an object that cannot be used and whose place is not known"
    ),
    "unmarked_region": ProblemKind(
        IMAGE_SKIPPED, "image with an object that cannot be used, whose region this format cannot mark as ignored"
    ),
    "unknown_category": ProblemKind(REGION_IGNORED, "category that the file does not list"),
    "unknown_class": ProblemKind(REGION_IGNORED, "class that is not in the class list"),
    "unlisted_class": ProblemKind(KEPT, "class that is in no class list, appended to it"),
    "other_class": ProblemKind(OBJECT_SKIPPED, "object of a class that was not asked for"),
    "id_type_differs": ProblemKind("matched", "ids that are text in one place and a number in another"),
    "duplicate_annotation_id": ProblemKind(
        "new id given", "annotation id that is missing, not an integer, or used before"
    ),
    "grouping_category": ProblemKind("no label", "category that no object has and that only groups the others"),
    "duplicate_category_name": ProblemKind("renamed", "category name that two ids share"),
    "invalid_line": ProblemKind(OBJECT_SKIPPED, "line that is neither class and box nor class and outline"),
    "pixel_values": ProblemKind(OBJECT_SKIPPED, "YOLO line with pixels in the place of fractions"),
    "sixth_column": ProblemKind("box kept", "YOLO box with a confidence or a track id behind it, which is not read"),
    "duplicate_line": ProblemKind("used once", "line that the label file holds more than once"),
    "centre_outside": ProblemKind(REGION_IGNORED, "YOLO box with its centre outside the image"),
    "invalid_box": ProblemKind(OBJECT_SKIPPED, "box that is not four finite numbers"),
    "unsupported_shape": ProblemKind(OBJECT_SKIPPED, "shape without an area, or of a kind that is not read"),
    "no_class_name": ProblemKind('class "object"', "object without a class name"),
    "repeated_element": ProblemKind("used", "second box of one object, or second class name"),
    "other_annotation": ProblemKind("not used", "further annotation of a task that has one already"),
    "no_box": ProblemKind(OBJECT_SKIPPED, "object with neither a box nor a mask to take it from"),
    "box_from_polygon": ProblemKind(KEPT, "no box stated, taken from the polygon or mask"),
    "rotated_box": ProblemKind("box around it, masks are cut to it", "rotated box or quadrilateral"),
    "quadrilaterals": ProblemKind(
        "used as outlines",
        "YOLO labels whose outlines all have four points: are they rotated boxes (--box-format obb)?",
    ),
    "corners_swapped": ProblemKind("put in order", "box with its corners in the wrong order"),
    "degenerate_box": ProblemKind(OBJECT_SKIPPED, "box without an area"),
    "box_outside": ProblemKind(OBJECT_SKIPPED, "box outside the image"),
    "clipped_box": ProblemKind("clipped", "box that reaches over the border of the image"),
    "fits_as_corners": ProblemKind(KEPT, "box over the border whose numbers fit as x1, y1, x2, y2"),
    "one_pixel_box": ProblemKind(KEPT, "VOC box whose corners are one pixel: an annotation error?"),
    "zero_coordinate": ProblemKind(KEPT, "VOC box with a coordinate 0"),
    "unread_split": ProblemKind("not read", "split beside the one that is read: name it (--split)"),
    "counted_from_zero": ProblemKind(
        "read as counted from 1", "VOC box by LabelImg, CVAT or Label Studio, which count from 0 (--zero-based)"
    ),
    "mask_name_taken": ProblemKind(
        IMAGE_SKIPPED, "image whose new files would have the name of another one's, or of a folder"
    ),
    "low_score": ProblemKind("skipped", "mask whose score is below min_score"),
    "too_many_instances": ProblemKind("no instances-png", "image with more than the 65534 objects of a 16-bit map"),
    "no_georeference": ProblemKind("no geotiff and no geojson", "image that is no GeoTIFF"),
    "empty_mask": ProblemKind("kept, without a pixel", "box in which the generator found no object"),
    "no_mask": ProblemKind("box kept", "object without a mask"),
    "invalid_mask": ProblemKind("box kept", "object whose mask or polygon cannot be used"),
}
# Kinds that good files have too; any other kind deserves a warning.
EXPECTED = {
    "chosen_bands",
    "first_page",
    "alpha_as_band",
    "scaled_values",
    "image_by_name",
    "grouping_category",
    "rotated_box",
    "other_class",
    "image_without_object",
    "empty_image",
    "labels_turned",
    "mask_without_object",
    "size_from_image",
    "image_without_annotation",
    "unread_split",
    "counted_from_zero",  # many tools write the mark, so it is no proof
}


_LOSSES = (IMAGE_SKIPPED, OBJECT_SKIPPED, REGION_IGNORED)


@dataclass
class Report:
    """What a reader found: counts, and for each kind of problem the first places.

    Attributes:
        images: images that became records.
        objects: objects in them.
        counts: kind (key of `PROBLEMS`) -> number.
        places: kind -> the first `max_places` of them, "file: object (detail)".
        classes: one line per class, "label name" (COCO: "label name (category id N)").
        objects_per_class: class name -> objects in the records; only `check` counts them.
        details: kind -> value (a class name, a category id) -> number, where the value matters.
        errors: messages of faults that a dataset must not be built with (a mask that does not fit its image), the
            first `MAX_ERRORS` of them.
        skipped: (file name, kind) of all images that were skipped before they were opened: when an index was read. The
            name is the annotation file's, or the place in it, where the image's is not known.
        max_places: of a kind that are kept; None: all.
        fit: what the masks say of the boxes of the whole source, with the remedy; only `check` looks.
    """

    images: int = 0
    objects: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    places: dict[str, list[str]] = field(default_factory=dict)
    details: dict[str, dict[str, int]] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    objects_per_class: dict[str, int] = field(default_factory=dict)
    max_places: int | None = field(default=MAX_PLACES, compare=False)
    fit: str = ""

    def add(self, kind: str, place: str, value: str | None = None, *, image: str | None = None) -> None:
        """Count one problem of a kind; `value` is counted on its own too, `image` is added to `skipped`."""
        if kind not in PROBLEMS:
            raise KeyError(f"unknown kind of problem {kind!r}")
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self._add_places(kind, [place])
        if value is not None:
            values = self.details.setdefault(kind, {})
            values[value] = values.get(value, 0) + 1
        if image is not None:
            self.skipped.append((image, kind))

    def add_error(self, message: str) -> None:
        """Keep the message of a fault that a dataset must not be built with."""
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
        self.fit = self.fit or other.fit
        self.errors = (self.errors + other.errors)[:MAX_ERRORS]
        self.skipped.extend(other.skipped)
        for kind, count in other.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
            self._add_places(kind, other.places.get(kind, []))
        pairs = [(self.objects_per_class, other.objects_per_class)]
        pairs += [(self.details.setdefault(kind, {}), values) for kind, values in other.details.items()]
        for mine, values in pairs:
            for value, count in values.items():
                mine[value] = mine.get(value, 0) + count

    def save(self, path: str | os.PathLike) -> None:
        """Write a json file that is complete or absent; folders are created."""
        write_atomically(path, json_text(asdict(self)).encode("utf-8"))

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Report":
        """What `save` wrote."""
        content = json.loads(Path(fs_path(path)).read_text(encoding="utf-8"))
        return cls(**content | {"skipped": [(name, kind) for name, kind in content.get("skipped", [])]})

    @property
    def needs_attention(self) -> bool:
        """Whether something was found that a good file does not have."""
        return bool(self.errors or self.fit) or any(kind not in EXPECTED for kind in self.counts)

    @property
    def is_incomplete(self) -> bool:
        """Whether an image was skipped, or an object of one that is used."""
        return any(PROBLEMS[kind].outcome in _LOSSES for kind in self.counts.keys() - EXPECTED)

    @property
    def lost_masks(self) -> int:
        """How many masks could not be used; their boxes are."""
        return self.counts.get("invalid_mask", 0) + self.counts.get("invalid_class_mask", 0)

    def reasons(self) -> list[str]:
        """The images and objects that were skipped, each with the reason."""
        kinds = [kind for kind in self.counts if PROBLEMS[kind].outcome in _LOSSES]
        return [f"{place} ({PROBLEMS[kind].meaning})" for kind in kinds for place in self.places[kind]]

    def summary(self, outcomes: dict[str, str] | None = None) -> str:
        """A line for the whole, one for each kind of problem, the causes they point to, and the first errors.

        Args:
            outcomes: kind -> what happened to the item, where that is not what `PROBLEMS` says.
        """
        lines = [f"{self.images} images, {self.objects} objects, {len(self.classes)} classes"]
        for kind, count in sorted(self.counts.items()):
            outcome = (outcomes or {}).get(kind, PROBLEMS[kind].outcome)
            line = f"  {kind}: {count} ({PROBLEMS[kind].meaning}; {outcome})"
            if kind in self.details:
                values = sorted(self.details[kind].items(), key=lambda item: (-item[1], item[0]))
                line += ": " + ", ".join(f"{value} {number}" for value, number in values[:MAX_PLACES])
                line += ", ..." if len(values) > MAX_PLACES else ""
            lines.append(f"{line}, e.g. {'; '.join(self.places[kind][:3])}")
        return "\n".join([*lines, *self._causes(), *self.errors[:MAX_PLACES]])

    def _causes(self) -> list[str]:
        """What the problems of the whole source have in common, each cause once, with the remedy."""
        causes = [self.fit] if self.fit else []
        num_boxes = self.objects + sum(self.counts.get(kind, 0) for kind in ("box_outside", "degenerate_box"))
        num_corners, num_zero = self.counts.get("fits_as_corners", 0), self.counts.get("zero_coordinate", 0)
        num_tool = self.counts.get("counted_from_zero", 0)
        if 2 * num_corners > num_boxes:
            causes.append(
                f"boxes look like corners: {num_corners} of {num_boxes} reach over the border as x, y, width, height, "
                "and fit as x1, y1, x2, y2. If they are, pass box_format='xyxy' (--box-format xyxy)"
            )
        if num_zero and not num_tool:
            causes.append(
                f"boxes look 0-based: {num_zero} of {num_boxes} have xmin or ymin 0, and Pascal VOC counts from 1. "
                "If the tool counts from 0, pass zero_based=True (--zero-based)"
            )
        if num_tool:
            causes.append(
                f"boxes look 0-based: {num_tool} of {num_boxes} are of files as LabelImg, CVAT and Label Studio write "
                "them, from 0 and end exclusive. Read as Pascal VOC's they are a pixel larger on the left and at the "
                "top: pass zero_based=True (--zero-based)"
            )
        return causes


class NothingUsable(ValueError):
    """Annotations of which no object can be used; `path` is what was read."""

    def __init__(self, path: str, report: Report):
        super().__init__(f"no object of {path} can be used.\n{report.summary()}")
        self.path = path


@dataclass(frozen=True)
class MissingFiles:
    """Files that should be there and are not.

    Attributes:
        kind: "missing_image", "missing_annotation" or "missing_mask".
        what: the files in words, for the message.
        names: of the missing files.
        total: number of files that should be there.
        folder: where they should be.
        images: the image that each is missing for; None: `names` are images.
    """

    kind: str
    what: str
    names: list[str]
    total: int
    folder: str
    images: list[str] | None = None


def check_missing(missing: MissingFiles, options: ReadOptions, report: Report) -> None:
    """Count missing files, and stop unless that is allowed.

    With `keep_missing` images and masks are only counted: their records are kept, and all may be missing.

    Raises:
        FileNotFoundError: some are missing and `allow_missing` is off, or all are.
    """
    names, total = missing.names, missing.total
    keep = (
        options.keep_missing and missing.kind != "missing_annotation"
    )  # Without annotations there is nothing to keep.
    for name, image in zip(names, names if missing.images is None else missing.images):
        report.add(missing.kind, name, image=None if keep else image)
    if not names or keep:
        return
    first = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    if len(names) == total:
        option = "images=... (--images)" if missing.kind == "missing_image" else "the right folder"
        raise FileNotFoundError(
            f"none of the {total} {missing.what} exists in {missing.folder}: {first}. Pass {option}"
        )
    if not options.allow_missing:
        raise FileNotFoundError(
            f"{len(names)} of {total} {missing.what} are missing in {missing.folder}: {first}. Complete the folder, "
            "or pass allow_missing=True (--allow-missing; in training --aux.allow_missing true, "
            "--target.allow_missing true) to go on without them"
        )
