"""Segment proposals, such as MCG's, read from files."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from datasets import Dataset
from pycocotools import mask as coco_mask

from lpg_hf._files import read_bytes, write_json
from lpg_hf._rle import Rle
from lpg_hf.boxes import convert_boxes
from lpg_hf.data._formats.rle import checked_rle
from lpg_hf.label_maps import mask_name
from lpg_hf.masks.fusion import Window
from lpg_hf.training._label_sources.mcg_files import read_mcg


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


def filled_piece(window: Window) -> np.ndarray:
    """(rows, columns) uint8: 1 everywhere, for a box that no proposal overlaps."""
    rows, columns = window
    return np.ones((rows.stop - rows.start, columns.stop - columns.start), dtype=np.uint8)


def write_choices(path: Path, choices: list[list]) -> None:
    """Writes beside a label map, as json, a list for each box of what was chosen; [] if no proposal overlaps it."""
    write_json(_choices_path(path), choices)


def read_choices(path: Path) -> list[list]:
    """What `write_choices` left beside a label map.

    Raises:
        FileNotFoundError: it left nothing.
    """
    try:
        return json.loads(read_bytes(_choices_path(path)))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{_choices_path(path)} is missing; earlier versions wrote none. Delete the folder of these pseudo masks, "
            "and start the same command again."
        ) from error


def num_unmatched(rows: Dataset, folder: Path) -> int:
    """How many boxes no proposal overlaps, by what `write_choices` left beside the label maps of all images."""
    # The proposals themselves take a second per image to read (MCG's 2000).
    return sum(read_choices(folder / mask_name(name)).count([]) for name in rows["file_name"][:])


def _choices_path(path: Path) -> Path:
    # Never complete.json, which the folder of the label maps has at the end: an image may be called complete.jpg.
    return path.with_suffix(".boxes.json")


class Proposals:
    """Proposals of the images of a dataset.

    Args:
        path: a json file: a list of {"image_id", "segmentation"} with COCO's RLE (other keys are not read), where the
            id is the image's in its annotations, or its file name. Or a folder with a file per image, under the
            image's relative path: NAME.json, a list of RLEs, or NAME.mat as MCG is distributed: `superpixels` (H, W)
            and `labels`, the numbers of the superpixels that each proposal joins.

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

    def _has(self, name: str, image_id: str) -> bool:
        if self._of_image is not None:
            return name in self._of_image or str(image_id) in self._of_image
        return any(self._file(name, suffix).is_file() for suffix in (".json", ".mat"))

    def _file(self, name: str, suffix: str) -> Path:
        return (self.path / mask_name(name)).with_suffix(suffix)

    def _of_folder(self, name: str, size: tuple[int, int]) -> list:
        if self._file(name, ".json").is_file():
            return _read_list(self._file(name, ".json"))
        return read_mcg(self._file(name, ".mat"), size) if self._file(name, ".mat").is_file() else []


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
