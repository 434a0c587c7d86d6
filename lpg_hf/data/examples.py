"""A row of a built dataset -> arrays.

A row is what `dataset[i]` gives. Cast the image columns to `Image(decode=False)` first if only some of them are needed:
otherwise `datasets` decodes each at every access.

Every function works on the row alone and in the frame of the upright image, height x width as stated in the row.
"""

import io
from typing import BinaryIO

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from lpg_hf.boxes import box_slices, clip_boxes, convert_boxes
from lpg_hf.images import MAX_PIXELS, open_image, read_rgb
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

    Grey becomes three equal channels. Transparent pixels are laid over white, as a viewer shows them. 16-bit grey is divided
    by 257, so that 65535 is 255. 32-bit integers beyond 16 bits and floats have no agreed range and are refused.

    Args:
        row: `image` is a decoded PIL image, or {"path", "bytes"} of an `Image(decode=False)` column.
        max_pixels: a larger image is refused before it takes memory.

    Returns:
        (H, W, 3) uint8 RGB, turned as the EXIF orientation says.

    Raises:
        ImageProblem: cannot be opened or is cut off; the message names the file.
        ValueError: a kind of image that is refused, or another size than the row states.
    """
    source, name = column_source(row, "image")
    pixels = read_rgb(source, name, max_pixels)
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


def _objects(row: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(boxes (N, 4) float32 xyxy clipped, labels (N,) int64 1-based, iscrowd (N,) bool), all objects."""
    objects = row["objects"]
    boxes = np.asarray(objects["bbox"], dtype=np.float64).reshape(-1, 4)
    boxes = clip_boxes(convert_boxes(boxes, "xywh", "xyxy"), row["height"], row["width"]).astype(np.float32)
    labels = np.asarray(objects["category"], dtype=np.int64) + 1
    crowd = np.asarray(objects.get("iscrowd", [False] * len(labels)), dtype=bool)
    return boxes, labels, crowd


def row_boxes(row: dict) -> tuple[np.ndarray, np.ndarray]:
    """The boxes of the single objects of a row; crowd regions are left out.

    Args:
        row: of a built dataset.

    Returns:
        boxes: (N, 4) float32 xyxy, pixels, clipped to the image.
        labels: (N,) int64 semantic labels, 1-based.
    """
    boxes, labels, crowd = _objects(row)
    return boxes[~crowd], labels[~crowd]


def mask_column(row: dict) -> np.ndarray:
    source, name = column_source(row, "mask")
    mask = open_image(source, name)
    if mask.mode not in ("P", "L"):
        raise ValueError(f"the class mask {name} has mode {mask.mode}; it must be a palette or grey PNG of indices")
    try:
        labels = np.array(mask)
    except (OSError, SyntaxError) as error:
        raise OSError(f"cannot decode the class mask {name}: {error}") from error
    check_size(labels, _stated_size(row), f"the class mask {name}")
    return labels


def _has_class_png(row: dict) -> bool:
    if row.get("mask") is not None:
        return True
    if "segmentation" not in row["objects"]:
        name = row.get("file_name") or row.get("image_id")
        raise ValueError(f"the row of {name} has no masks: build the dataset with masks=True")
    return False


def _paint(
    target: np.ndarray, row: dict, indices: np.ndarray, boxes: np.ndarray, value: int, free: bool = False
) -> None:
    """Set the pixels of some objects to `value`; `free`: only where `target` is still 0. No mask: the box as ignored."""
    segmentation = row["objects"]["segmentation"]
    rles = [segmentation[i] for i in indices if segmentation[i]["counts"]]
    if rles:
        merged = rles[0] if len(rles) == 1 else coco_mask.merge(rles)
        pixels = coco_mask.decode(merged).view(bool)
        target[pixels & (target == 0) if free else pixels] = value
    for i in indices:
        if not segmentation[i]["counts"]:
            region = target[box_slices(boxes[i], *target.shape)]
            region[region == 0] = IGNORE_INDEX


def class_mask(row: dict, label: int) -> np.ndarray:
    """The pixels of one class, without losing any to the other classes.

    Args:
        row: of a dataset built with masks.
        label: semantic label, 1-based.

    Returns:
        (H, W) uint8: 1 the class, 0 not, 255 ignored. COCO: the union of the class's instances; its crowd regions, and the
        boxes of its objects without a mask, are 255 where none of its instances lies. VOC: the class's pixels of the PNG,
        whose 255 stays 255.

    Raises:
        ValueError: the row has no masks, or the PNG does not fit the image.
    """
    if _has_class_png(row):
        labels = mask_column(row)
        return np.where(labels == IGNORE_INDEX, IGNORE_INDEX, labels == label).astype(np.uint8)
    boxes, labels, crowd = _objects(row)
    mask = np.zeros((row["height"], row["width"]), dtype=np.uint8)
    of_class = labels == label
    _paint(mask, row, np.flatnonzero(of_class & ~crowd), boxes, 1)
    _paint(mask, row, np.flatnonzero(of_class & crowd), boxes, IGNORE_INDEX, free=True)
    return mask


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
    boxes, labels, crowd = _objects(row)
    index = np.flatnonzero(~crowd)[index]
    mask = np.zeros((row["height"], row["width"]), dtype=np.uint8)
    if not row["objects"]["segmentation"][index]["counts"]:
        return np.full_like(mask, IGNORE_INDEX)
    _paint(mask, row, np.array([index]), boxes, 1)
    _paint(mask, row, np.flatnonzero((labels == labels[index]) & crowd), boxes, IGNORE_INDEX, free=True)
    return mask


def label_map(row: dict) -> np.ndarray:
    """The ground truth of a row as one map.

    Args:
        row: of a dataset built with masks.

    Returns:
        (H, W) uint8 semantic labels, 255 ignored. VOC: the PNG as it is. COCO: instances painted by area, large first, so that
        the smaller lies on top; crowd regions, and boxes of objects without a mask, are 255 where no instance lies.

    Raises:
        ValueError: the row has no masks, or the PNG does not fit the image.
    """
    if _has_class_png(row):
        return mask_column(row)
    boxes, labels, crowd = _objects(row)
    area = np.asarray(row["objects"]["area"], dtype=np.float64)
    segmentation = row["objects"]["segmentation"]
    has_mask = np.array([bool(item["counts"]) for item in segmentation], dtype=bool)
    target = np.zeros((row["height"], row["width"]), dtype=np.uint8)
    for i in np.argsort(-area, kind="stable"):
        if has_mask[i] and not crowd[i]:
            _paint(target, row, np.array([i]), boxes, int(labels[i]))
    _paint(target, row, np.flatnonzero(crowd | ~has_mask), boxes, IGNORE_INDEX, free=True)
    return target


def box_label_map(row: dict) -> np.ndarray:
    """The boxes of a row as a label map: the labels of stage 0. Masks are never touched.

    Returns:
        (H, W) uint8 semantic labels: boxes filled, larger boxes first so that the smaller lies on top; boxes of crowd regions
        are 255 where no object's box lies.

    Source: Sec. III-C, the segmenter's training on box maps.
    """
    boxes, labels, crowd = _objects(row)
    height, width = row["height"], row["width"]
    target = np.zeros((height, width), dtype=np.uint8)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for i in np.argsort(-area, kind="stable"):
        if not crowd[i]:
            target[box_slices(boxes[i], height, width)] = labels[i]
    for i in np.flatnonzero(crowd):
        region = target[box_slices(boxes[i], height, width)]
        region[region == 0] = IGNORE_INDEX
    return target
