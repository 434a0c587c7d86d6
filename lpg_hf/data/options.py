"""How annotations are read: one frozen set of options, made where a call enters and passed whole."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from lpg_hf._bands import Rendering
from lpg_hf.boxes import BOX_FORMATS
from lpg_hf.images import MAX_PIXELS


SIZE_MISMATCH_CHOICES = ("skip", "error", "rescale")
# Of YOLO labels: a line of eight numbers is a rotated box, and no outline.
ROTATED_BOXES = "obb"
# What a class can be chosen by: one name of a list of classes, or names and ids.
Classes = str | Sequence[str | int] | None
# Formats that state the size of an image, at least in some files.
_SIZED_FORMATS = (
    "coco",
    "voc",
    "csv",
    "labelme",
    "cvat",
    "label-studio",
    "createml",
    "bdd100k",
    "kitti",
    "mot",
    "dota",
)
# Options that only some formats have: (formats, reason why the others have none).
_FORMATS_OF_OPTION = {
    "ignore_others": (("coco",), "it is for COCO files"),
    "zero_based": (("voc",), "it is for VOC xml files"),
    "stored_frame": ((*_SIZED_FORMATS, "yolo"), "its rows hold upright labels"),
    "object_value": (("voc",), "it is for class masks"),
    "box_format": (("coco", "dataset", "yolo"), "the format says what its boxes are"),
    "size_mismatch": (_SIZED_FORMATS, "it is for formats that state the size of an image"),
    "verify_images": (_SIZED_FORMATS, "it is for formats that state the size of an image"),
}


@dataclass(frozen=True)
class ReadOptions:
    """How annotations of any format are read.

    Attributes:
        split: VOC list, YOLO split, split of a dataset, or part of a COCO file's name; None: all, or the format's
            default.
        classes: names or COCO ids, or one text: "all", or of COCO a name of `coco.NAMED_CLASS_SETS`; None: all, or the
            format's own list. Objects of other classes are skipped and counted.
        ignore_others: the boxes of objects of other classes are ignored regions, and not background (COCO); their
            masks are not looked at.
        masks: read the masks too.
        keep_empty: keep images without an object of the classes.
        keep_unlisted: without `classes`, keep objects of a class that no list names, and append the class to the list;
            off, skip them. They are counted either way.
        allow_missing: go on (and count) when some images, annotation files or masks do not exist.
        keep_missing: count images and masks that do not exist, but keep their records, so that the annotations can be
            checked: `Record.path` is None, and the size is the stated one.
        verify_images: open the header of each image (about 0.2 ms; BMP and TIFF are decoded) and compare the stated
            size; off, a stated size is believed.
        size_mismatch: what to do when the stated size is not the image's (COCO, VOC): "skip" the image, raise an
            "error", or "rescale" its boxes.
        max_pixels: skip images with more pixels.
        zero_based: VOC corners are 0-based and end exclusive, as some tools write them.
        object_value: value of the class masks (VOC) that marks objects, in each image of one class; None: values are
            labels.
        box_format: of the boxes in a dataset or a COCO file, one of `boxes.BOX_FORMATS`; None: "xywh". Of YOLO labels
            only "obb": lines of eight numbers are rotated boxes, no outlines; None: see `yolo`.
        encoding: of text files that are not UTF-8, a name that Python knows, such as "cp1252".
        stored_frame: boxes and masks are in the frame of the image as it is stored, before its EXIF rotation; they are
            turned with it.
        skip_ambiguous: leave out, and count, all images that share an id; off, they are an error (COCO).
        bands: of the images that are red, green and blue, see `Rendering`.
        stretch: which values of the images become 0 and 255, see `Rendering`.

    Raises:
        ValueError: a value is not one of the choices.
    """

    split: str | None = None
    classes: Classes = None
    ignore_others: bool = False
    masks: bool = False
    keep_empty: bool = False
    keep_unlisted: bool = False
    allow_missing: bool = False
    keep_missing: bool = False
    verify_images: bool = True
    size_mismatch: str = "skip"
    max_pixels: int = MAX_PIXELS
    zero_based: bool = False
    object_value: int | None = None
    skip_ambiguous: bool = False
    box_format: str | None = None
    encoding: str | None = None
    stored_frame: bool = False
    bands: str | Sequence[int] | None = None
    stretch: str | None = None

    def __post_init__(self):
        if self.size_mismatch not in SIZE_MISMATCH_CHOICES:
            raise ValueError(
                f"size_mismatch must be one of {', '.join(SIZE_MISMATCH_CHOICES)}, got {self.size_mismatch!r}"
            )
        if self.box_format not in (None, *BOX_FORMATS, ROTATED_BOXES):
            known = ", ".join((*BOX_FORMATS, ROTATED_BOXES))
            raise ValueError(f"box_format must be one of {known}, got {self.box_format!r}")
        try:
            "".encode(self.encoding or "utf-8")
        except (LookupError, ValueError) as error:  # No codec of this name, or none of texts, such as hex.
            raise ValueError(
                f"encoding={self.encoding!r} is unknown, or not of texts; names are utf-8, cp1252, gbk, ..."
            ) from error
        if self.max_pixels < 1:
            raise ValueError(f"max_pixels={self.max_pixels} must be at least 1")
        if self.classes is not None and not isinstance(self.classes, str):
            object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "bands", self.rendering.bands)

    @property
    def rendering(self) -> Rendering:
        """How the values of an image become 8-bit RGB."""
        return Rendering(self.bands, self.stretch)

    def check_no_rendering(self) -> None:
        """Raises ValueError if `bands` or `stretch` is set, for what writes no pixels of its own."""
        given = [name for name in ("bands", "stretch") if name in self.changed]
        if given:
            raise ValueError(
                f"{' and '.join(given)} ({', '.join(f'--{name}' for name in given)}) would change nothing: the image "
                "files stay as they are. Leave it out, and pass it where the result is read"
            )

    @property
    def changed(self) -> dict[str, Any]:
        """The options that are not at their default."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {item.name: values[item.name] for item in fields(self) if values[item.name] != item.default}

    def check_format(self, format: str) -> None:
        """Raises ValueError if an option is set that a format does not have."""
        for name, value in self.changed.items():
            formats, reason = _FORMATS_OF_OPTION.get(name, ((format,), ""))
            if format not in formats:
                flag = f"--{name.replace('_', '-')}"
                raise ValueError(
                    f"format {format!r} has no option {name} ({flag}), got {name}={value!r}: {reason}. Leave it out"
                )
        if self.box_format is not None and (self.box_format == ROTATED_BOXES) != (format == "yolo"):
            raise ValueError(
                f"format {format!r} has no boxes of box_format={self.box_format!r} (--box-format): {ROTATED_BOXES!r} "
                "is for YOLO labels, and they take no other. Leave it out"
            )


# Masks know no class, so a source of boxes for masks skips as little as it can.
SOURCE_OPTIONS = ReadOptions(keep_empty=True, keep_unlisted=True, allow_missing=True)
