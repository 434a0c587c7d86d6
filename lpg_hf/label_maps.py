"""Label maps as files: 8-bit palette PNG whose indices are the labels, coloured like Pascal VOC's."""

import io
import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from .labels import voc_palette


def write_label_map(path: str | os.PathLike, label_map: np.ndarray) -> None:
    """Write a label map as a palette PNG; folders are created, and the file is complete or absent.

    Args:
        path: file to write.
        label_map: (H, W) integer, 0 background, 255 ignored.

    Raises:
        ValueError: the map is not two-dimensional, not integer, or holds values outside 0..255.
    """
    path, label_map = Path(path), np.asarray(label_map)
    if label_map.ndim != 2 or label_map.dtype.kind not in "iu":
        raise ValueError(
            f"label map for {path} has shape {label_map.shape} and dtype {label_map.dtype}, but must be (height, width) "
            "and integer. Pass the argmax over the classes."
        )
    if label_map.size and (label_map.min() < 0 or label_map.max() > 255):
        raise ValueError(
            f"label map for {path} holds values in {label_map.min()}..{label_map.max()}, but an 8-bit PNG holds 0..255."
        )
    picture = Image.fromarray(label_map.astype(np.uint8))
    picture.putpalette(voc_palette().reshape(-1).tolist())
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(buffer.getvalue())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files that only the owner can read
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read_label_map(path: str | os.PathLike) -> np.ndarray:
    """Labels of a palette (P) or grey (L) PNG, as stored.

    Args:
        path: file to read.

    Returns:
        (H, W) uint8, 0 background, 255 ignored.

    Raises:
        ValueError: the file is a colour picture, whose values are no labels.
    """
    with Image.open(path) as picture:
        if picture.mode not in ("P", "L"):
            raise ValueError(
                f"{path} is a picture of mode {picture.mode}, not a label map. "
                "Label maps are 8-bit palette or grey PNG files whose values are the labels."
            )
        return np.array(picture, dtype=np.uint8)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
