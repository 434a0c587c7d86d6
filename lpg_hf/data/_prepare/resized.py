"""Smaller copies of images with all that is measured in their pixels: COCO annotations, VOC xml files, class masks.

Images are never enlarged. All frames of an image (its pixels, boxes and masks) use `_smaller_size`, so they stay one
frame.
"""

import io
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from defusedxml import ElementTree as SafeElementTree
from PIL import Image

from lpg_hf._files import write_atomically
from lpg_hf.data._formats.rle import checked_rle, rescaled_rle
from lpg_hf.data.records import Geometry


JPEG_QUALITY = 95


def _smaller_size(height: int, width: int, long_side: int | None) -> tuple[int, int]:
    """(height, width) with at most `long_side` pixels on the longer side; None: as it is."""
    if long_side is None or max(height, width) <= long_side:
        return height, width
    scale = long_side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def write_smaller_jpeg(path: Path, data: bytes, long_side: int | None) -> None:
    """Write a JPEG file with a shorter long side; the same bytes if it is short enough.

    Raises:
        OSError: the image cannot be decoded.
    """
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        height, width = _smaller_size(image.height, image.width, long_side)
        if (width, height) != image.size:
            buffer = io.BytesIO()
            smaller = image.resize((width, height), Image.Resampling.LANCZOS)
            smaller.save(buffer, "JPEG", quality=JPEG_QUALITY, exif=image.info.get("exif", b""))  # orientation
            data = buffer.getvalue()
    write_atomically(path, data)


def smaller_mask(label_map: np.ndarray, long_side: int | None) -> np.ndarray:
    """A label map with a shorter long side, by the nearest pixel: (H, W) uint8 -> (h, w) uint8."""
    height, width = _smaller_size(label_map.shape[0], label_map.shape[1], long_side)
    if (height, width) == label_map.shape:
        return label_map
    return np.asarray(Image.fromarray(label_map).resize((width, height), Image.Resampling.NEAREST))


def smaller_coco(content: dict, image_ids: set, long_side: int | None) -> dict:
    """The part of a COCO file that belongs to some images, in the frames of their smaller copies.

    Args:
        content: the parsed json, unchanged by this.
        image_ids: of the images to keep.
        long_side: see `_smaller_size`.
    """
    frames, images = {}, []
    for image in content["images"]:
        if image["id"] in image_ids:
            before = image["height"], image["width"]
            after = _smaller_size(*before, long_side)
            frames[image["id"]] = before, after
            images.append(image | {"height": after[0], "width": after[1]})
    annotations = [
        _smaller_annotation(item, *frames[item["image_id"]])
        for item in content["annotations"]
        if item["image_id"] in frames
    ]
    return content | {"images": images, "annotations": annotations}


def _smaller_annotation(item: dict, before: tuple[int, int], after: tuple[int, int]) -> dict:
    if before == after:
        return item
    y_scale, x_scale = after[0] / before[0], after[1] / before[1]
    x, y, width, height = item["bbox"]
    scaled = {
        "bbox": [x * x_scale, y * y_scale, width * x_scale, height * y_scale],
        "area": item["area"] * x_scale * y_scale,
    }
    segmentation = item["segmentation"]
    if isinstance(segmentation, list):
        scaled["segmentation"] = [
            [value * (x_scale, y_scale)[i % 2] for i, value in enumerate(polygon)] for polygon in segmentation
        ]
    else:
        scaled["segmentation"] = _smaller_rle(segmentation, after)
    return item | scaled


def _smaller_rle(rle: dict, size: tuple[int, int]) -> dict:
    checked = checked_rle(rle)
    if checked is None:
        raise ValueError(f"an RLE of size {rle.get('size')} holds runs that do not add up to it")
    height, width = checked["size"]
    scaled = rescaled_rle(checked, Geometry(size, size[0] / height, size[1] / width))
    assert scaled is not None  # its own size fits
    counts = scaled["counts"]
    return {"size": list(size), "counts": counts if isinstance(counts, str) else counts.decode("ascii")}


def smaller_xml(data: bytes, long_side: int | None) -> bytes:
    """A VOC annotation in the frame of the smaller copy of its image; all else that it holds stays.

    VOC's corners count from 1 and are inclusive; they stay whole numbers, and a box stays at least one pixel wide.

    Raises:
        ValueError: no size is stated.
    """
    root = SafeElementTree.fromstring(data)
    width, height = (root.find(f"size/{name}") for name in ("width", "height"))
    if width is None or height is None or not width.text or not height.text:
        raise ValueError("states no <size>")
    before = int(height.text), int(width.text)
    after = _smaller_size(*before, long_side)
    if after == before:
        return data
    height.text, width.text = str(after[0]), str(after[1])
    for box in root.iter("bndbox"):  # also those of <part>
        for low, high, old, new in (("xmin", "xmax", before[1], after[1]), ("ymin", "ymax", before[0], after[0])):
            first, last = box.find(low), box.find(high)
            if first is None or last is None or not first.text or not last.text:
                continue
            start = min(round((float(first.text) - 1) * new / old), new - 1)
            end = min(max(round(float(last.text) * new / old), start + 1), new)
            first.text, last.text = str(start + 1), str(end)
    return ElementTree.tostring(root, encoding="utf-8")
