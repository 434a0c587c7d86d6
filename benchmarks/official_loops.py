"""The loops of the official code, written anew as plain PyTorch from their description, to measure speed against.

One image and one class at a time, float32, contiguous tensors, nothing cached: whole images padded to a fixed side, a
forward pass of the segmenter for every class of an image and for every training crop. The networks are ours, on the
same weights, so that only the loops differ.

Source: the paper's Sec. III-B to III-D, and the steps of the official training and mask writing.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lpg_hf import LPGModel


def _padded(image: np.ndarray, side: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(H, W, 3) uint8 RGB -> (1, 3, side, side) float32, normalised, padded with the mean colour (0)."""
    pixels = (torch.from_numpy(image).float() / 255 - torch.tensor(mean)) / torch.tensor(std)
    height, width = image.shape[:2]
    return F.pad(pixels.permute(2, 0, 1)[None], (0, side - width, 0, side - height)).contiguous()


def _class_prob(segmenter: nn.Module, pixels: Tensor, label: int) -> Tensor:
    """(B, 1, H, W) softmax probability of one class on all pixels."""
    logits = segmenter(pixel_values=pixels).logits
    size = [pixels.shape[2], pixels.shape[3]]
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=True).softmax(1)[:, label : label + 1]


@torch.no_grad()
def label_map(
    lpg: LPGModel,
    segmenter: nn.Module,
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    normalizations: Sequence[tuple[Sequence[float], Sequence[float]]],
    side: int = 512,
) -> np.ndarray:
    """The pseudo mask of an image: a class that is visited earlier keeps its pixels.

    Args:
        image: (H, W, 3) uint8 RGB, at most `side` pixels high and wide.
        boxes: (N, 4) xyxy whole pixels.
        labels: (N,) 1-based.
        normalizations: (mean, std) of the generator's and of the segmenter's input, RGB, of 0..1.

    Returns:
        (H, W) uint8.
    """
    height, width = image.shape[:2]
    found = torch.zeros(side, side, dtype=torch.uint8)
    for label in dict.fromkeys(labels.tolist()):
        pixels, seen = (_padded(image, side, *normalization) for normalization in normalizations)
        box_map = torch.zeros(1, 1, side, side)
        for x1, y1, x2, y2 in boxes[labels == label].astype(int).tolist():
            box_map[..., y1:y2, x1:x2] = 1
        logits = lpg(pixels, box_map, _class_prob(segmenter, seen, label)).logits
        logits = F.interpolate(logits, size=[side, side], mode="bilinear", align_corners=True)
        mask = logits[0].argmax(0).to(torch.uint8) * label * box_map[0, 0].to(torch.uint8)
        found = torch.where(found == 0, mask, found)
    return found[:height, :width].numpy()


def e_step(lpg: nn.Module, segmenter: nn.Module, optimizer: torch.optim.Optimizer, batch: dict, label: int) -> float:
    """One training step of the generator: every crop passes the frozen segmenter first.

    Args:
        batch: `pixel_values`, `box_mask` and `labels` of an LPG; its segmenter gets the same pixels.
        label: the class whose probability is taken.
    """
    with torch.no_grad():
        prob = torch.cat([_class_prob(segmenter, pixels[None], label) for pixels in batch["pixel_values"]])
    logits = lpg(batch["pixel_values"], batch["box_mask"], prob).logits
    labels = batch["labels"][:, ::4, ::4]
    loss = F.cross_entropy(logits, labels, ignore_index=255)
    return _update(loss, optimizer)


def m_step(segmenter: nn.Module, optimizer: torch.optim.Optimizer, batch: dict) -> float:
    """One training step of a segmenter on label maps, brought to the size of its logits."""
    logits = segmenter(pixel_values=batch["pixel_values"]).logits
    labels = F.interpolate(batch["labels"][:, None].float(), size=logits.shape[2:], mode="nearest")[:, 0].long()
    return _update(F.cross_entropy(logits, labels, ignore_index=255), optimizer)


def _update(loss: Tensor, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()
