"""How annotations are read: one frozen set of options, made where a call enters and passed whole."""

from dataclasses import dataclass

from lpg_hf.images import MAX_PIXELS


SIZE_MISMATCH_CHOICES = ("skip", "error", "rescale")


@dataclass(frozen=True)
class ReadOptions:
    """How annotations of any format are read.

    Attributes:
        split: VOC list, YOLO split, split of a dataset, or part of a COCO file's name; None: all, or the format's default.
        classes: names, COCO ids, or a name of `labels.CLASS_LISTS`; None: all. Objects of other classes are left out and counted.
        masks: read the masks too.
        keep_empty: keep images without an object of the classes.
        keep_unlisted: objects of a class that no list names are kept, and their class is appended to the list; off, they are
            left out. Counted either way.
        allow_missing: go on (and count) when some images, annotation files or masks do not exist.
        keep_missing: images and masks that do not exist are counted, and their records kept, so that the annotations can be
            checked: `Record.path` is None, and the size is the stated one.
        verify_images: open each image's header; off, the stated size is believed where there is one.
        size_mismatch: the stated size is not the image's (COCO, VOC): "skip" the image, raise an "error", or "rescale" its boxes.
        max_pixels: an image with more pixels is left out.
        zero_based: VOC corners are 0-based and end exclusive, as some tools write them.
        drop_difficult: leave out VOC objects flagged difficult.
    """

    split: str | None = None
    classes: str | tuple[str | int, ...] | None = None
    masks: bool = False
    keep_empty: bool = False
    keep_unlisted: bool = False
    allow_missing: bool = False
    keep_missing: bool = False
    verify_images: bool = True
    size_mismatch: str = "skip"
    max_pixels: int = MAX_PIXELS
    zero_based: bool = False
    drop_difficult: bool = False

    def __post_init__(self):
        if self.size_mismatch not in SIZE_MISMATCH_CHOICES:
            raise ValueError(
                f"size_mismatch must be one of {', '.join(SIZE_MISMATCH_CHOICES)}, got {self.size_mismatch!r}"
            )
        if self.max_pixels < 1:
            raise ValueError(f"max_pixels={self.max_pixels} must be at least 1")
