"""BoxSup, Dai et al., "BoxSup: Exploiting Bounding Boxes to Supervise Convolutional Networks" (ICCV 2015)."""

from bisect import insort
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
from datasets import Dataset
from pycocotools import mask as coco_mask

from lpg_hf._rle import encode_mask
from lpg_hf.data._examples import row_boxes
from lpg_hf.label_maps import mask_name, read_label_map, write_label_map
from lpg_hf.masks.fusion import Window
from lpg_hf.training._label_sources.base import LabelSource, box_windows, paint_pieces
from lpg_hf.training._label_sources.proposals import (
    ImageProposals,
    Proposals,
    filled_piece,
    num_unmatched,
    proposal_piece,
    read_choices,
    write_choices,
)
from lpg_hf.training._labels import Labels


_REGRESSION_WEIGHT = 3.0  # lambda, Sec. 4.2
_NUM_CANDIDATES = 5  # k, Sec. 4.3


class BoxSup(LabelSource):
    """For each box one of the 5 proposals of the lowest cost, drawn anew in every epoch.

    The cost of a proposal S for a box B is E_o + 3 E_r: the overlap objective E_o is 1 minus the IoU of B and the
    tight box of S; the regression objective E_r is the loss of the segmenter of the round before with S as the label,
    here the mean over the pixels of the box. In round 0, where there is no segmenter, the cost is E_o. Proposals are
    cut to the box. The written label map has the proposals of the lowest cost. A box that no proposal overlaps is
    filled, and counted.

    The paper chooses and trains in turns, an epoch at a time; here the costs follow the segmenter once per round, and
    the draws every epoch.

    Args:
        proposals: see `Proposals`; the paper has those of MCG.

    Source: Sec. 4.2 (the objectives), Sec. 4.3 (the first k = 5 of the lowest cost, one of them at random).
    """

    refines = True

    def __init__(self, proposals: str) -> None:
        self.proposals = Proposals(proposals)

    def check(self, rows: Dataset) -> None:
        """See `LabelSource.check`."""
        self.proposals.check(rows)

    def label_map(self, row: dict, image: np.ndarray, probs: np.ndarray | None) -> np.ndarray:
        """See `LabelSource.label_map`."""
        return _lowest_cost_map(row, self.candidates(row, probs))

    def write(self, path: Path, row: dict, image: np.ndarray, probs: np.ndarray | None) -> None:
        """See `LabelSource.write`; the candidates of the boxes lie beside the label map, as RLEs of their boxes."""
        candidates = self.candidates(row, probs)
        write_choices(path, [[encode_mask(piece) for piece in pieces] for pieces in candidates])
        write_label_map(path, _lowest_cost_map(row, candidates))

    def summary(self, rows: Dataset, folder: Path, num_labels: int) -> dict:
        """See `LabelSource.summary`."""
        return {"boxes_without_proposal": num_unmatched(rows, folder)}

    def labels(self, folder: Path, seed: int) -> Labels:
        """See `LabelSource.labels`."""
        return CandidateLabels(folder, seed)

    def candidates(self, row: dict, probs: np.ndarray | None) -> list[list[np.ndarray]]:
        """For each box the pieces of up to 5 proposals that overlap it, see `paint_pieces`, the lowest cost first."""
        found, result = self.proposals.of_row(row), []
        for box, label, window in zip(*row_boxes(row), box_windows(row)):
            rows, columns = window
            inside = None if probs is None else probs[[0, label]][:, rows, columns]
            result.append(_lowest_costs(found, box, window, inside))
        return result


def _lowest_cost_map(row: dict, candidates: list[list[np.ndarray]]) -> np.ndarray:
    """The label map of the first candidates; a box without any is filled."""
    windows = box_windows(row)
    return paint_pieces(row, [pieces[0] if pieces else filled_piece(w) for pieces, w in zip(candidates, windows)])


def _lowest_costs(
    found: ImageProposals, box: np.ndarray, window: Window, probs: np.ndarray | None
) -> list[np.ndarray]:
    """The pieces of the proposals of the lowest cost.

    Args:
        probs: (2, rows, columns) probability of the background and of the box's class; None: the cost is E_o alone.
    """
    ious, order = found.by_overlap(box)
    if probs is None:
        return [proposal_piece(found.rles[index], window) for index in order[:_NUM_CANDIDATES]]
    background, object_loss = -np.log(np.maximum(probs, 1e-7))
    best: list[tuple[float, int]] = []
    for index in order:
        overlap_cost = 1 - float(ious[index])
        # E_r is not negative, and E_o only grows from here on.
        if len(best) == _NUM_CANDIDATES and overlap_cost >= best[-1][0]:
            break
        piece = proposal_piece(found.rles[index], window)
        regression_cost = float(np.where(piece, object_loss, background).mean())
        insort(best, (overlap_cost + _REGRESSION_WEIGHT * regression_cost, int(index)))
        del best[_NUM_CANDIDATES:]
    return [proposal_piece(found.rles[index], window) for _, index in best]


@dataclass(frozen=True)
class CandidateLabels:
    """One candidate per box, drawn by seed, image and epoch; the written label map outside a training."""

    folder: Path
    seed: int

    def __call__(self, index: int, row: dict, epoch: int | None = None) -> np.ndarray:
        path = self.folder / mask_name(row["file_name"])
        if epoch is None:
            return read_label_map(path)
        rng = np.random.default_rng([self.seed, crc32(row["file_name"].encode()), epoch])
        pieces = []
        for rles, window in zip(read_choices(path), box_windows(row)):
            pieces.append(coco_mask.decode(rles[rng.integers(len(rles))]) if rles else filled_piece(window))
        return paint_pieces(row, pieces)
