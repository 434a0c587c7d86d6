"""SDI, Khoreva et al., "Simple Does It: Weakly Supervised Instance and Semantic Segmentation" (CVPR 2017)."""

from pathlib import Path
from zlib import crc32

import numpy as np
from datasets import Dataset

from lpg_hf.boxes import box_slices
from lpg_hf.data._examples import row_boxes
from lpg_hf.generators._densecrf import central_part
from lpg_hf.generators._grabcut import GrabCutGenerator
from lpg_hf.generators.crf import LARGEFOV_CRF, dense_crf
from lpg_hf.label_maps import write_label_map
from lpg_hf.labels import IGNORE_INDEX
from lpg_hf.masks.fusion import Window
from lpg_hf.training._label_sources.base import LabelSource, box_windows, paint_pieces, with_crowds
from lpg_hf.training._label_sources.proposals import (
    Proposals,
    filled_piece,
    num_unmatched,
    proposal_piece,
    write_choices,
)


_CENTRE = 0.2  # of a box's area, which Box^i labels (Sec. 3.1)
_LEAST_IOU = 0.5  # of a segment with its box, below which it is reset (Sec. 3.1)
# GrabCut+^i (Sec. 3.2): how many cuts, how far a box moves (share of its sides), the outer region, and the votes.
_DRAWS = 150
_JITTER = 0.05
_CONTEXT = (0.1, 0.6)
_FOREGROUND_VOTES, _BACKGROUND_VOTES = 0.7, 0.2
# A class below it in the whole image takes no part in the dense CRF, which is slow with many classes.
_MIN_PROBABILITY = 0.05


class SDIBox(LabelSource):
    """Box and Box^i: recursive training on the segmenter's own output, with three rules after each round.

    1. What the segmenter calls a class outside the boxes of this class is background.
    2. An object whose segment has an IoU below 50 % with its box gets its first labels back.
    3. A dense CRF (the parameters of DeepLab v1) brings the output to the image's boundaries. It runs first, on the
       segmenter's probabilities, so that the other two hold for the labels.

    Args:
        centre_only: Box^i: the first labels are the central 20 % of each box, and the rest of it is ignored. Else Box:
            the first labels are the filled boxes.

    Raises:
        ImportError: the dense CRF is not installed.

    Source: Sec. 3.1.
    """

    refines = True

    def __init__(self, centre_only: bool) -> None:
        self.centre_only = centre_only
        # A missing package is reported before any work is done.
        dense_crf(np.zeros((1, 1, 3), np.uint8), np.full((2, 1, 1), 0.5))

    def label_map(self, row: dict, image: np.ndarray, probs: np.ndarray | None) -> np.ndarray:
        """See `LabelSource.label_map`."""
        first = paint_pieces(row, [self._first_piece(window) for window in box_windows(row)])
        if probs is None:
            return first
        refined = dense_crf(image, probs, LARGEFOV_CRF, min_probability=_MIN_PROBABILITY).argmax(axis=0)
        return with_crowds(row, _reset_outliers(row, _inside_boxes(row, refined.astype(np.uint8)), first))

    def _first_piece(self, window: Window) -> np.ndarray:
        rows, columns = (slice(0, side.stop - side.start) for side in window)
        if not self.centre_only:
            return np.ones((rows.stop, columns.stop), dtype=np.uint8)
        piece = np.full((rows.stop, columns.stop), IGNORE_INDEX, dtype=np.uint8)
        piece[central_part(rows, _CENTRE), central_part(columns, _CENTRE)] = 1
        return piece


def _inside_boxes(row: dict, label_map: np.ndarray) -> np.ndarray:
    """The label map with background where a pixel lies in no box of its class."""
    allowed = np.zeros(label_map.shape, dtype=bool)
    for window, label in zip(box_windows(row), row_boxes(row)[1]):
        allowed[window] |= label_map[window] == label
    return np.where(allowed, label_map, 0).astype(np.uint8)


def _reset_outliers(row: dict, label_map: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The label map with the first labels of every object that fills less than half of its box, where it is in front.

    Inside a box, the IoU of its class's pixels with it is the share that they fill.
    """
    fills = zip(box_windows(row), row_boxes(row)[1])
    outliers = [k for k, (window, label) in enumerate(fills) if (label_map[window] == label).mean() < _LEAST_IOU]
    return np.where(np.isin(_front_boxes(row), outliers), first, label_map)


def _front_boxes(row: dict) -> np.ndarray:
    """(H, W) int32: for each pixel the position in `row_boxes` of the box in front, -1 outside all boxes."""
    boxes, windows = row_boxes(row)[0], box_windows(row)
    front = np.full((row["height"], row["width"]), -1, dtype=np.int32)
    # The order of `paint_pieces`, which the first labels have.
    for index in np.argsort(-(boxes[:, 2:] - boxes[:, :2]).prod(axis=1), kind="stable"):
        front[windows[index]] = index
    return front


class SDIGrabCut(LabelSource):
    """GrabCut+^i: many GrabCuts of a box that moves a little; pixels on which they disagree are ignored.

    Each edge moves by up to 5 % of the box's side, and the margin in which the background is learnt is 10 to 60 % of
    its longer side. A pixel that 70 % call foreground is the object, below 20 % it is background, else ignored.
    The paper's GrabCut+ takes the edges of HED; here the cut is OpenCV's, whose edges are contrasts of colour.

    Args:
        num_draws: GrabCuts per box; the paper has about 150.

    Source: Sec. 3.2.
    """

    def __init__(self, num_draws: int = _DRAWS) -> None:
        self.num_draws = num_draws

    def label_map(self, row: dict, image: np.ndarray, probs: np.ndarray | None) -> np.ndarray:
        """See `LabelSource.label_map`."""
        return paint_pieces(row, [self._piece(row, image, index) for index in range(len(row_boxes(row)[1]))])

    def _piece(self, row: dict, image: np.ndarray, index: int) -> np.ndarray:
        rng = np.random.default_rng([crc32(row["file_name"].encode()), index])
        box, (rows, columns) = row_boxes(row)[0][index], box_windows(row)[index]
        sides, limits = np.tile(box[2:] - box[:2], 2), np.tile(image.shape[1::-1], 2)
        votes = np.zeros(image.shape[:2], dtype=np.float32)
        for _ in range(self.num_draws):
            moved = np.clip(box + rng.uniform(-_JITTER, _JITTER, 4) * sides, 0, limits)
            window = box_slices(moved, *image.shape[:2])
            votes[window] += GrabCutGenerator(context=rng.uniform(*_CONTEXT)).foreground(image, *window) > 0.5
        share = votes[rows, columns] / self.num_draws
        piece = np.where(share >= _FOREGROUND_VOTES, 1, np.where(share < _BACKGROUND_VOTES, 0, IGNORE_INDEX))
        return piece.astype(np.uint8)


class SDIProposal(LabelSource):
    """MCG: the proposal that overlaps most with a box; M and G+: only where GrabCut agrees that it is the object.

    A box that no proposal overlaps is filled, and counted.

    Args:
        proposals: see `Proposals`.
        with_grabcut: the object is where both agree, and the rest of the box is ignored; GrabCut+ is that of the
            generator grabcut, see `SDIGrabCut` for its edges.

    Source: Sec. 3.2.
    """

    def __init__(self, proposals: str, with_grabcut: bool) -> None:
        self.proposals = Proposals(proposals)
        self.grabcut = GrabCutGenerator() if with_grabcut else None

    def check(self, rows: Dataset) -> None:
        """See `LabelSource.check`."""
        self.proposals.check(rows)

    def label_map(self, row: dict, image: np.ndarray, probs: np.ndarray | None) -> np.ndarray:
        """See `LabelSource.label_map`."""
        return self._label_map(row, image)[0]

    def write(self, path: Path, row: dict, image: np.ndarray, probs: np.ndarray | None) -> None:
        """See `LabelSource.write`; the numbers of the boxes' proposals lie beside the label map."""
        label_map, chosen = self._label_map(row, image)
        write_choices(path, chosen)
        write_label_map(path, label_map)

    def summary(self, rows: Dataset, folder: Path, num_labels: int) -> dict:
        """See `LabelSource.summary`."""
        return {"boxes_without_proposal": num_unmatched(rows, folder)}

    def _label_map(self, row: dict, image: np.ndarray) -> tuple[np.ndarray, list[list[int]]]:
        """The label map, and for each box the number of its proposal, [] if none overlaps."""
        found, pieces, chosen = self.proposals.of_row(row), [], []
        for box, window in zip(row_boxes(row)[0], box_windows(row)):
            best = found.by_overlap(box)[1][:1].tolist()
            chosen.append(best)
            piece = proposal_piece(found.rles[best[0]], window) if best else filled_piece(window)
            if self.grabcut is not None:
                agreed = (piece == 1) & (self.grabcut.foreground(image, *window) > 0.5)
                piece = np.where(agreed, 1, IGNORE_INDEX).astype(np.uint8)
            pieces.append(piece)
        return paint_pieces(row, pieces), chosen
