"""Label maps as files: 8-bit palette PNG whose indices are the labels, coloured like Pascal VOC's.

More than 254 classes do not fit beside the ignored value 255: such maps are uint16 and become 16-bit grey PNG, with
65535 ignored.
"""

import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lpg_hf._class_lists import COLOURS_FILE, Colour, labels_of_colours
from lpg_hf._files import write_atomically
from lpg_hf.images import MAX_PIXELS, load_pixels, open_image
from lpg_hf.labels import IGNORE_INDEX, voc_palette


IGNORE_INDEX_16 = 65535
# zlib's level: writing a map takes half the time of its default (results/SPEED.md), the file 4 kB in place of 2.5.
_COMPRESSION = 3


def label_map_type(num_classes: int) -> tuple[type, int]:
    """The integer type of the label maps of a dataset, and their ignored value.

    Args:
        num_classes: without the background.

    Raises:
        ValueError: more than 65,534.
    """
    if num_classes >= IGNORE_INDEX_16:
        raise ValueError(
            f"{num_classes} classes do not fit in a label map: a 16-bit PNG holds {IGNORE_INDEX_16 - 1}. Choose some "
            "(--classes), or an output without label maps (--write coco)."
        )
    return (np.uint8, IGNORE_INDEX) if num_classes < IGNORE_INDEX else (np.uint16, IGNORE_INDEX_16)


def write_label_map(path: str | os.PathLike, label_map: np.ndarray, scratch: str | os.PathLike | None = None) -> None:
    """Write a label map as a palette PNG; folders are created, and the file is complete or absent.

    Args:
        path: file to write.
        label_map: (H, W) integer, 0 background, 255 ignored; uint16 becomes 16-bit grey, with 65535 ignored.
        scratch: see `write_atomically`.

    Raises:
        ValueError: the map is not two-dimensional, not integer, or holds values outside 0..255.
    """
    path, label_map = Path(path), np.asarray(label_map)
    if label_map.ndim != 2 or label_map.dtype.kind not in "iu":
        raise ValueError(
            f"label map for {path} has shape {label_map.shape} and dtype {label_map.dtype}, "
            "but must be (height, width) and integer. Pass the argmax over the classes."
        )
    if label_map.dtype == np.uint16:
        image = Image.fromarray(label_map)
    elif label_map.size and (label_map.min() < 0 or label_map.max() > 255):
        raise ValueError(
            f"label map for {path} holds values in {label_map.min()}..{label_map.max()}, "
            "but an 8-bit PNG holds 0..255."
        )
    else:
        image = Image.fromarray(label_map.astype(np.uint8))
        image.putpalette(voc_palette().reshape(-1).tolist())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=_COMPRESSION)
    write_atomically(path, buffer.getvalue(), scratch)


def mask_name(file_name: str) -> str:
    """The label map of an image: the same relative path, with the suffix .png."""
    return f"{os.path.splitext(file_name)[0]}.png"


def clashing_names(
    file_names: Sequence[str], files_of: Callable[[str], Iterable[str]] = lambda name: (mask_name(name),)
) -> dict[int, str]:
    """The images whose files in an output would lie where those of another image lie.

    Args:
        file_names: of all images, relative, forward slashes.
        files_of: the files that are written for an image of a name, relative to one folder; default: its label map.

    Returns:
        Position -> name of the other image: an earlier one with a file of the same name, or one in a folder that is
        called like a file of the image (x.jpg beside x.png/y.jpg: the label map and the folder x.png); or of the image
        itself, if it has two files of one name.
    """
    files = [tuple(files_of(name)) for name in file_names]
    innermost = {os.path.dirname(file): name for name, own in zip(file_names, files) for file in own}
    folders: dict[str, str] = {}
    for folder, name in innermost.items():
        while folder and folder not in folders:
            folders[folder] = name
            folder = os.path.dirname(folder)
    clashing, first = {}, {}
    for index, (name, own) in enumerate(zip(file_names, files)):
        others = (first.get(file) or folders.get(file) for file in own)
        other = next(filter(None, others), name if len(set(own)) < len(own) else None)
        if other is None:
            first.update(dict.fromkeys(own, name))
        else:
            clashing[index] = other
    return clashing


def check_lossless(image: Image.Image, name: str) -> None:
    """Raises ValueError if an opened image is of a kind that changes values a little when it is saved."""
    if image.format in ("JPEG", "MPO"):
        raise ValueError(
            f"{name} is a JPEG, which cannot hold labels exactly: neighbouring values are mixed when it is saved. "
            "Make the label map again as PNG"
        )


def object_labels(image: Image.Image, object_value: int) -> np.ndarray:
    """(H, W) uint8: 1 where an opened image of any mode has this value (of the grey image), 0 elsewhere."""
    grey = image if image.mode in ("P", "L", "I;16") else image.convert("L")
    return (np.asarray(grey) == object_value).astype(np.uint8)


def no_class_message(place: object) -> str:
    """The error for ground truth in which no pixel has a label."""
    return (
        f"no pixel of {place} has the label of a class: every one is background (0) or ignored (255). If a value such "
        "as 255 marks the object, say so: object_value=255 (--object-value 255)"
    )


def read_label_map(
    path: str | os.PathLike,
    max_pixels: int = MAX_PIXELS,
    object_value: int | None = None,
    colours: Mapping[Colour, int] | None = None,
) -> np.ndarray:
    """Labels of a palette (P) or grey (L) PNG, as stored.

    Args:
        path: file to read.
        max_pixels: a larger map is refused before it takes memory.
        object_value: the file marks one class with this value: it becomes the label 1, all else background.
        colours: the label of each colour, for a file whose pixels are colours.

    Returns:
        (H, W) uint8, 0 background, 255 ignored; of a 16-bit file uint16, 65535 ignored.

    Raises:
        ImageProblem: it cannot be opened, is too large, damaged or cut off.
        ValueError: a colour image without `colours`, or with a colour that is none of them; or a JPEG, which does not
            keep labels.
    """
    with open_image(path, os.fspath(path), max_pixels) as image:
        check_lossless(image, os.fspath(path))
        load_pixels(image, os.fspath(path))
        if object_value is not None:
            return object_labels(image, object_value)
        labels = labels_of_colours(image, os.fspath(path), colours or {})
        if labels is not None:
            return labels
        if image.mode == "I;16":
            return np.array(image, dtype=np.uint16)
        if image.mode not in ("P", "L"):
            raise ValueError(
                f"{path} is an image of mode {image.mode}, not a label map. "
                "Label maps are palette or grey PNG files whose values are the labels, or a "
                f"{COLOURS_FILE} in their folder or the one above says what the colours of the ground truth are."
            )
        return np.array(image, dtype=np.uint8)
