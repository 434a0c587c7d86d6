"""Segment proposals, such as MCG's, read from files."""

import json
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
from datasets import Dataset
from pycocotools import mask as coco_mask

from lpg_hf._files import read_bytes
from lpg_hf._rle import Rle, encode_mask
from lpg_hf.boxes import convert_boxes
from lpg_hf.data._examples import row_boxes
from lpg_hf.data._formats.rle import checked_rle
from lpg_hf.label_maps import mask_name
from lpg_hf.masks.fusion import Window


_COMPRESSED = 15  # the type of a variable of a MAT-file that is packed with zlib
# Bytes of MCG's file of an image when it is unpacked: so many, and so many for each pixel.
_UNPACKED_BYTES = 2**27
_UNPACKED_BYTES_PER_PIXEL = 8


@dataclass(frozen=True)
class ImageProposals:
    """The proposals of one image.

    Attributes:
        rles: over the whole image, counts as bytes.
        boxes: (N, 4) float64 xywh, the tight box of each.
    """

    rles: list[Rle]
    boxes: np.ndarray

    def by_overlap(self, box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The IoU of a box (xyxy, pixels) with the tight box of each proposal, and those that overlap, best first."""
        if not self.rles:
            return np.zeros(0), np.zeros(0, dtype=np.int64)
        wanted = convert_boxes(np.asarray(box, dtype=np.float64), "xyxy", "xywh")
        ious = np.asarray(coco_mask.iou(self.boxes, wanted[None], [0]), dtype=np.float64)[:, 0]
        order = np.argsort(-ious, kind="stable")
        return ious, order[ious[order] > 0]


def proposal_piece(rle: Rle, window: Window) -> np.ndarray:
    """(rows, columns) uint8: 1 where a proposal lies in a window of the image."""
    return np.ascontiguousarray(coco_mask.decode(rle)[window])


class Proposals:
    """Proposals of the images of a dataset.

    Args:
        path: a json file: a list of {"image_id", "segmentation"} with COCO's RLE (other keys are not read), where the
            id is the image's in its annotations, or its file name. Or a folder with a file per image, under the
            image's relative path: NAME.json, a list of RLEs, or NAME.mat as MCG is distributed: `superpixels` (H, W)
            and `labels`, the numbers of the superpixels that each proposal joins (needs scipy).

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is not such a file.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path).expanduser()
        if not self.path.exists():
            raise FileNotFoundError(f"the proposals {path} do not exist.")
        self._of_image: dict[str, list] | None = None
        if self.path.is_file():
            self._of_image = {}
            for entry in _read_list(self.path):
                if not isinstance(entry, dict) or not {"image_id", "segmentation"} <= entry.keys():
                    raise ValueError(
                        f'{self.path} holds {str(entry)[:60]}, which is no {{"image_id", "segmentation"}} of COCO.'
                    )
                self._of_image.setdefault(str(entry["image_id"]), []).append(entry["segmentation"])

    def check(self, rows: Dataset) -> None:
        """Raises ValueError if no target image has a proposal."""
        images = list(zip(rows["file_name"][:], rows["image_id"][:]))
        if not any(self._has(name, image_id) for name, image_id in images):
            raise ValueError(
                f"{self.path} has proposals for none of the {len(images)} target images, such as {images[0][0]} (id "
                f"{images[0][1]}). A json file names the image's id or file name as image_id; a folder has NAME.json "
                "or NAME.mat under the image's relative path."
            )

    def of_row(self, row: dict) -> ImageProposals:
        """The proposals of an image; none if the file has none.

        Raises:
            ValueError: a mask cannot be read, or has another size than the image.
        """
        name, size = row["file_name"], [row["height"], row["width"]]
        if self._of_image is not None:
            found = self._of_image.get(name, self._of_image.get(str(row["image_id"]), []))
        else:
            found = self._of_folder(name, (row["height"], row["width"]))
        rles: list[Any] = []
        for number, segmentation in enumerate(found):
            rle = checked_rle(segmentation) if isinstance(segmentation, dict) else None
            if rle is None or list(rle["size"]) != size:
                stated = segmentation.get("size") if isinstance(segmentation, dict) else segmentation
                raise ValueError(
                    f"proposal {number} of {name} in {self.path} is no RLE of the image's height and width {size}: "
                    f"{str(stated)[:60]}."
                )
            rles.append(rle)
        tight: Any = coco_mask.toBbox(cast(Any, rles)) if rles else np.zeros((0, 4))
        return ImageProposals(rles, np.asarray(tight, dtype=np.float64))

    def num_unmatched(self, rows: Dataset) -> int:
        """How many boxes no proposal overlaps."""
        columns = ["file_name", "image_id", "height", "width", "objects"]
        count = 0
        for row in rows.select_columns(columns):
            row: Any
            found = self.of_row(row)
            count += sum(len(found.by_overlap(box)[1]) == 0 for box in row_boxes(row)[0])
        return count

    def _has(self, name: str, image_id: str) -> bool:
        if self._of_image is not None:
            return name in self._of_image or str(image_id) in self._of_image
        return any(self._file(name, suffix).is_file() for suffix in (".json", ".mat"))

    def _file(self, name: str, suffix: str) -> Path:
        return (self.path / mask_name(name)).with_suffix(suffix)

    def _of_folder(self, name: str, size: tuple[int, int]) -> list:
        if self._file(name, ".json").is_file():
            return _read_list(self._file(name, ".json"))
        return _read_mcg(self._file(name, ".mat"), size) if self._file(name, ".mat").is_file() else []


def _read_list(path: Path) -> list:
    data = read_bytes(path)
    try:
        content = json.loads(data.decode("utf-8"))
    except RecursionError as error:
        raise ValueError(f"{path} is not json of proposals: it is nested too deeply.") from error
    except ValueError as error:  # also an integer of thousands of digits
        raise ValueError(f"{path} is not json: {error}.") from error
    if not isinstance(content, list):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a list of proposals.")
    return content


def _read_mcg(path: Path, size: tuple[int, int]) -> list[Rle]:
    """RLEs of a file of MCG's distributed proposals, for an image of a size (height, width).

    Raises:
        ValueError: it is no such file, is damaged, or is of another image; names it.
    """
    content = _read_mat(path, size)
    try:
        superpixels = _whole_numbers(content["superpixels"], math.prod(size))
    except ValueError as error:
        raise ValueError(f"{path}: superpixels {error}, the pixels of its image.") from error
    last, masks = int(superpixels.max()), []
    for number, joined in enumerate(np.asarray(content["labels"]).ravel()):
        chosen = np.zeros(last + 1, dtype=bool)
        try:
            chosen[_whole_numbers(joined, last).ravel()] = True
        except ValueError as error:
            raise ValueError(f"{path}: labels of proposal {number} {error}, the last superpixel.") from error
        masks.append(encode_mask(chosen[superpixels]))
    return masks


def _whole_numbers(values: Any, last: int) -> np.ndarray:
    """The values as int64.

    Raises:
        ValueError: they are no whole numbers from 0 to `last`.
    """
    values = np.asarray(values)
    if values.dtype.kind in "biuf" and (values.size == 0 or 0 <= values.min() <= values.max() <= last):
        numbers = values.astype(np.int64)
        if (numbers == values).all():
            return numbers
    raise ValueError(f"must hold whole numbers from 0 to {last}")


def _read_mat(path: Path, size: tuple[int, int]) -> dict[str, Any]:
    """`superpixels` and `labels` of a MAT-file; their shapes are looked at before they are read."""
    try:
        from scipy.io import loadmat, whosmat
    except ImportError as error:
        raise ImportError(f'{path} needs scipy: pip install "lpg_hf[prepare]".') from error
    data, shapes = read_bytes(path), {}
    with _damage_named(path):
        data = _unpacked(data, _UNPACKED_BYTES + _UNPACKED_BYTES_PER_PIXEL * math.prod(size))
        for name, shape, _ in whosmat(BytesIO(data)):
            shapes.setdefault(name, tuple(shape))  # of two with one name, loadmat too takes the first
    if not {"superpixels", "labels"} <= shapes.keys():
        raise ValueError(f"{path} lacks superpixels or labels, which MCG's proposals have.")
    if shapes["superpixels"] != size:
        raise ValueError(
            f"{path} has superpixels of {shapes['superpixels']}, but the image's height and width are {size}: it is "
            "the file of another image."
        )
    if math.prod(shapes["labels"]) > len(data):
        raise ValueError(f"{path} states labels of {shapes['labels']}, more than it can hold.")
    with _damage_named(path):
        return loadmat(BytesIO(data), variable_names=["superpixels", "labels"])


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Errors of scipy, which are of many types, as a ValueError that names the file."""
    try:
        yield
    except MemoryError as error:
        raise ValueError(f"{path} asks for more memory than there is.") from error
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} cannot be read as a MAT-file: {said}. Copy or make it again.") from error


def _unpacked(data: bytes, limit: int) -> bytes:
    """A MAT-file with its compressed variables unpacked.

    Raises:
        ValueError: it is of another version, ends early, or is larger than `limit` bytes when it is unpacked.
        zlib.error: a variable is damaged.
    """
    if len(data) < 128 or data[124:128] not in (b"\0\1IM", b"\1\0MI"):
        raise ValueError("it is not of version 5 to 7, which MATLAB saves with '-v7'")
    number, position, parts = np.dtype("<u4" if data[126:128] == b"IM" else ">u4"), 128, [data[:128]]
    while position < len(data):
        kind, size = np.frombuffer(data[position : position + 8].ljust(8, b"\0"), number).tolist()
        start, position = position, position + 8 + size
        if position > len(data):
            raise ValueError(f"it ends at byte {len(data)} in the middle of a variable")
        if kind == _COMPRESSED:
            part = zlib.decompressobj().decompress(data[start + 8 : position], limit + 1)
        else:
            part = data[start:position]
        parts.append(part)
        limit -= len(part)
        if limit < 0:
            raise ValueError("it is far larger when it is unpacked than proposals of its image are")
    return b"".join(parts)
