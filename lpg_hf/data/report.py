"""What readers found wrong: counts, and for each kind of problem the first places.

Rules for all formats: nothing wrong is repaired or dropped without being counted; one bad item does not stop the others;
a count names the first few places, as "file: object".
"""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lpg_hf.files import fs_path, json_text, write_atomically


MAX_PLACES = 10
MAX_ERRORS = 100
IMAGE_LEFT_OUT = "image left out"
# kind of problem -> (what happens to the item, what was found)
PROBLEMS = {
    "invalid_image_entry": (IMAGE_LEFT_OUT, "image entry without a usable id and file name"),
    "duplicate_image_id": (IMAGE_LEFT_OUT, "image id that an earlier image has already"),
    "unsafe_path": (IMAGE_LEFT_OUT, "file name that leads outside the image folder"),
    "missing_image": (IMAGE_LEFT_OUT, "image that does not exist"),
    "missing_annotation": (IMAGE_LEFT_OUT, "name in the split list without an annotation file"),
    "invalid_class_mask": ("mask not used", "class mask that fits neither its image nor the classes"),
    "label_name_taken": (IMAGE_LEFT_OUT, "image whose label file an earlier image has already"),
    "missing_mask": (IMAGE_LEFT_OUT, "image without a class mask"),
    "unreadable_annotation": (IMAGE_LEFT_OUT, "annotation file that is not valid"),
    "unreadable_image": (IMAGE_LEFT_OUT, "image that cannot be opened"),
    "truncated_image": (IMAGE_LEFT_OUT, "image file that is cut off"),
    "image_too_large": (IMAGE_LEFT_OUT, "image with more pixels than max_pixels"),
    "size_mismatch": (IMAGE_LEFT_OUT, "stated size differs from the image's"),
    "size_rescaled": ("boxes rescaled", "stated size differs from the image's"),
    "ambiguous_image": (IMAGE_LEFT_OUT, "several images of one name with different extensions"),
    "same_name_images": ("used the one in <filename>", "several images of one name with different extensions"),
    "image_without_object": (IMAGE_LEFT_OUT, "image without an object of the classes (keep_empty=True keeps it)"),
    "empty_image": ("kept", "image without an object of the classes"),
    "duplicate_file_name": ("kept", "image that several image entries name"),
    "duplicate_entry": ("used once", "name that the split list holds more than once"),
    "image_without_annotation": ("not read", "image without an annotation file: unlabelled"),
    "label_without_image": ("not read", "txt file without an image"),
    "yaml_path": ("not used", "path in data.yaml that does not exist inside the folder of the data"),
    "class_count_differs": ("names used", "data.yaml states another number of classes than names"),
    "file_name_differs": ("kept", "<filename> names another existing image than the annotation file's own name"),
    "size_from_image": ("kept", "no valid size stated, taken from the image"),
    "size_unknown": ("right and lower border not checked", "neither an image nor a valid size stated"),
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
    "centre_outside": ("object left out", "YOLO box with its centre outside the image"),
    "invalid_box": ("object left out", "box that is not four finite numbers"),
    "no_box": ("object left out", "object with neither a box nor a mask to take it from"),
    "box_from_polygon": ("kept", "no box stated, taken from the polygon or mask"),
    "corners_swapped": ("put in order", "box with its corners in the wrong order"),
    "degenerate_box": ("object left out", "box without an area"),
    "box_outside": ("object left out", "box outside the image"),
    "clipped_box": ("clipped", "box that reaches over the border of the image"),
    "one_pixel_box": ("kept", "VOC box whose corners are one pixel: an annotation error?"),
    "zero_coordinate": ("kept", "VOC box with a coordinate 0: is the tool 0-based? (zero_based=True, --zero-based)"),
    "mask_name_taken": (IMAGE_LEFT_OUT, "image whose mask would have the name of an earlier one's"),
    "low_score": ("left out of the result", "mask whose score is below min_score"),
    "empty_mask": ("kept, without a pixel", "box in which the generator found no object"),
    "no_mask": ("box kept", "object without a mask"),
    "invalid_mask": ("box kept", "object whose mask or polygon cannot be used"),
}
# Kinds that good files have too; any other kind deserves a warning.
EXPECTED = {"other_class", "image_without_object", "empty_image", "size_from_image", "image_without_annotation"}


@dataclass
class Report:
    """What a reader found: counts, and for each kind of problem the first places.

    Attributes:
        images: images that became records.
        objects: objects in them.
        counts: kind (key of `PROBLEMS`) -> number.
        places: kind -> the first `max_places` of them, "file: object (detail)".
        classes: one line per class, "label name" (COCO: "label name (category id N)").
        details: kind -> value (a class name, a category id) -> number, where the value matters.
        errors: messages of faults that a dataset must not be built with (a mask that does not fit its image), the first
            `MAX_ERRORS` of them.
        left_out: (file name, kind) of all images that were left out before they were looked at: when an index was read. The
            name is the annotation file's, or the place in it, where the image's is not known.
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

    def add(self, kind: str, place: str, value: str | None = None, *, image: str | None = None) -> None:
        """Count one problem of a kind; `value` is counted on its own too, `image` is one of `left_out`."""
        if kind not in PROBLEMS:
            raise KeyError(f"unknown kind of problem {kind!r}")
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self._add_places(kind, [place])
        if value is not None:
            values = self.details.setdefault(kind, {})
            values[value] = values.get(value, 0) + 1
        if image is not None:
            self.left_out.append((image, kind))

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
        """Whether any image was left out."""
        return any(PROBLEMS[kind][0] == IMAGE_LEFT_OUT for kind in self.counts)

    def reasons(self) -> list[str]:
        """The images and objects that a reader has left out, each with the reason."""
        kinds = [kind for kind in self.counts if PROBLEMS[kind][0] in (IMAGE_LEFT_OUT, "object left out")]
        return [f"{place} ({PROBLEMS[kind][1]})" for kind in kinds for place in self.places[kind]]

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


def check_missing(
    kind: str,
    names: list[str],
    total: int,
    folder: str,
    what: str,
    allow_missing: bool,
    report: Report,
    images: list[str] | None = None,
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
        images: the image that each is missing for; None: `names` are images.
        keep: only count: the images are not left out, and all may be missing.

    Raises:
        FileNotFoundError: some are missing and `allow_missing` is off, or all are; not with `keep`.
    """
    for name, image in zip(names, names if images is None else images):
        report.add(kind, name, image=None if keep else image)
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
