"""A row of a built dataset -> arrays.

A row is what `dataset[i]` gives. Cast the image columns to `Image(decode=False)` first if only some of them are
needed: otherwise `datasets` decodes each at every access.

Every function works on the row alone and in the frame of the upright image, height x width as stated in the row.
"""

import io
import json
from typing import BinaryIO

import numpy as np
from PIL import Image

from lpg_hf._bands import Rendering
from lpg_hf.boxes import clip_boxes, convert_boxes
from lpg_hf.data._painting import paint_boxes, paint_label_map
from lpg_hf.data.records import NO_CLASS, BoxObject
from lpg_hf.images import MAX_PIXELS, load_pixels, open_image, read_rgb
from lpg_hf.label_maps import check_lossless
from lpg_hf.labels import IGNORE_INDEX


def column_source(row: dict, column: str) -> tuple[Image.Image | BinaryIO | str, str]:
    """What `images.open_image` takes, and the name for messages."""
    value = row[column]
    name = row.get("file_name") or row.get("image_id") or column
    if isinstance(value, Image.Image):
        return value, name
    if not isinstance(value, dict):
        raise ValueError(f"column {column!r} of {name} is a {type(value).__name__}, not an image")
    if value.get("bytes") is not None:
        return io.BytesIO(value["bytes"]), name
    if not value.get("path"):
        raise ValueError(f"column {column!r} of {name} holds neither a path nor bytes")
    return value["path"], value["path"]


def decode_image(row: dict, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The image of a row as upright RGB.

    Args:
        row: `image` is a decoded PIL image, or {"path", "bytes"} of an `Image(decode=False)` column; `rendering`, if
            it is there, tells the bands and the range of the values, see `images.read_rgb`.
        max_pixels: a larger image is refused before it takes memory.

    Returns:
        (H, W, 3) uint8 RGB, turned as the EXIF orientation says.

    Raises:
        ImageProblem: cannot be opened or is cut off; the message names the file.
        ValueError: another size than the row states.
    """
    source, name = column_source(row, "image")
    stated = row.get("rendering")
    pixels = read_rgb(source, name, max_pixels, Rendering(**json.loads(stated)) if stated else Rendering())
    check_size(pixels, _stated_size(row), name)
    return pixels


def _stated_size(row: dict) -> tuple[int, int] | None:
    return (row["height"], row["width"]) if "height" in row and "width" in row else None


def check_size(pixels: np.ndarray, size: tuple[int, int] | None, name: str) -> None:
    """Raises ValueError if an image ((H, W, ...)) is not as large as its record or row says; None: nothing is said."""
    if size is not None and pixels.shape[:2] != size:
        raise ValueError(
            f"{name} is {pixels.shape[1]} x {pixels.shape[0]}, the row says {size[1]} x {size[0]} (width x height); "
            "build the dataset again with verify_images=True"
        )


def _row_objects(row: dict, masks: bool = True) -> list[BoxObject]:
    """All objects of a row; with the masks that it holds, or none of them read."""
    columns = row["objects"]
    boxes, labels, crowd = _columns(row)
    segmentations = columns["segmentation"] if masks else [None] * len(labels)
    areas = columns.get("area", [0.0] * len(labels))
    return [
        BoxObject(box, label - 1, area, iscrowd, rle=rle if rle and rle["counts"] else None)
        for box, label, area, iscrowd, rle in zip(
            map(tuple, boxes.tolist()), labels.tolist(), areas, crowd.tolist(), segmentations
        )
    ]


def _columns(row: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(boxes (N, 4) float32 xyxy clipped, labels (N,) int64 1-based, iscrowd (N,) bool), all objects."""
    objects = row["objects"]
    boxes = np.asarray(objects["bbox"], dtype=np.float64).reshape(-1, 4)
    boxes = clip_boxes(convert_boxes(boxes, "xywh", "xyxy"), row["height"], row["width"]).astype(np.float32)
    labels = np.asarray(objects["category"], dtype=np.int64) + 1
    crowd = np.asarray(objects.get("iscrowd", [False] * len(labels)), dtype=bool)
    return boxes, labels, crowd


def row_boxes(row: dict) -> tuple[np.ndarray, np.ndarray]:
    """The boxes of the single objects of a row, without crowd regions.

    Args:
        row: of a built dataset.

    Returns:
        boxes: (N, 4) float32 xyxy, pixels, clipped to the image.
        labels: (N,) int64 semantic labels, 1-based.
    """
    boxes, labels, crowd = _columns(row)
    return boxes[~crowd], labels[~crowd]


def mask_column(row: dict) -> np.ndarray:
    source, name = column_source(row, "mask")
    mask = open_image(source, name)
    check_lossless(mask, f"the class mask {name}")
    if mask.mode not in ("P", "L"):
        raise ValueError(f"the class mask {name} has mode {mask.mode}; it must be a palette or grey PNG of indices")
    load_pixels(mask, name)
    labels = np.array(mask)
    check_size(labels, _stated_size(row), f"the class mask {name}")
    return labels


def _has_class_png(row: dict) -> bool:
    if row.get("mask") is not None:
        return True
    if "segmentation" not in row["objects"]:
        name = row.get("file_name") or row.get("image_id")
        raise ValueError(f"the row of {name} has no masks: build the dataset with masks=True")
    return False


def class_mask(row: dict, label: int) -> np.ndarray:
    """The pixels of one class, without losing any to the other classes.

    Args:
        row: of a dataset built with masks.
        label: semantic label, 1-based.

    Returns:
        (H, W) uint8: 1 the class, 0 not, 255 ignored. COCO: the union of the class's instances; its crowd regions,
        regions of no class, and the boxes of its objects without a mask, are 255 where none of its instances lies.
        VOC: the class's pixels of the PNG, whose 255 stays 255.

    Raises:
        ValueError: the row has no masks, or the PNG does not fit the image.
    """
    if _has_class_png(row):
        labels = mask_column(row)
        return np.where(labels == IGNORE_INDEX, IGNORE_INDEX, labels == label).astype(np.uint8)
    of_class = [item for item in _row_objects(row) if item.category + 1 == label or item.category == NO_CLASS]
    return paint_label_map(of_class, row["height"], row["width"], [1] * len(of_class))


def object_mask(row: dict, index: int) -> np.ndarray:
    """The pixels of one object, without those of others of its class.

    Args:
        row: of a dataset built with masks of objects (COCO).
        index: position in `row_boxes`.

    Returns:
        (H, W) uint8: 1 the object, 0 not, 255 ignored: crowd regions of its class, and all if it has no mask.

    Raises:
        ValueError: the row has no masks, or a map of classes, which does not tell objects apart.
    """
    if _has_class_png(row):
        name = row.get("file_name") or row.get("image_id")
        raise ValueError(f"{name} has a map of classes, which does not tell objects apart: use class_mask")
    objects = _row_objects(row)
    chosen = [item for item in objects if not item.iscrowd][index]
    if chosen.rle is None:
        return np.full((row["height"], row["width"]), IGNORE_INDEX, dtype=np.uint8)
    crowds = [item for item in objects if item.iscrowd and item.category in (chosen.category, NO_CLASS)]
    return paint_label_map([chosen, *crowds], row["height"], row["width"], [1] * (1 + len(crowds)))


def label_map(row: dict) -> np.ndarray:
    """The ground truth of a row as one map.

    Args:
        row: of a dataset built with masks.

    Returns:
        (H, W) uint8 semantic labels, 255 ignored. VOC: the PNG as it is. COCO: instances painted by area, large first,
        so that the smaller lies on top; crowd regions, and boxes of objects without a mask, are 255 where no instance
        lies.

    Raises:
        ValueError: the row has no masks, or the PNG does not fit the image.
    """
    if _has_class_png(row):
        return mask_column(row)
    return paint_label_map(_row_objects(row), row["height"], row["width"])


def box_label_map(row: dict) -> np.ndarray:
    """The boxes of a row as a label map: the labels of stage 0. Masks are never touched.

    Returns:
        (H, W) uint8 semantic labels: boxes filled, larger boxes first so that the smaller lies on top; boxes of crowd
        regions are 255 where no object's box lies.

    Source: Sec. III-C, the segmenter's training on box maps.
    """
    return paint_boxes(_row_objects(row, masks=False), row["height"], row["width"])
