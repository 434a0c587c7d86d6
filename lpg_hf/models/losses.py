"""The segmentation loss shared by the segmenters and the LPG, and the LPG's Dice loss."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def pixel_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    weight: Tensor | None = None,
    at: Literal["logits", "labels"] = "logits",
    ignore_index: int = 255,
) -> Tensor:
    """Cross entropy: mean over the valid pixels of each image, then mean over the images.

    An image counts the same however many of its pixels are valid, so the gradient of one batch of B images
    equals the mean of the gradients of B accumulated micro-batches of one image, and that of B processes.
    An image without a valid pixel counts 0: if all are such, the loss and every gradient are 0. Always computed
    in float32, without waiting for the device; labels are trusted to lie in 0..C-1 or to be `ignore_index`.

    Args:
        logits: (B, C, h, w) float, any floating dtype.
        labels: (B, H, W) integer, 0..C-1 or `ignore_index`.
        weight: (B, H, W) float >= 0, weight of each pixel within its image; None weighs all valid pixels 1.
        at: "logits" brings labels and weight to (h, w), nearest pixel centre (Sec. "Losses" of both DeepLabs and the
            LPG); "labels" brings the logits to (H, W), bilinear with `align_corners=False`.
        ignore_index: label of the pixels that count neither in the sum nor in the mean.

    Returns:
        Scalar float32.

    Raises:
        ValueError: the shapes do not fit, or `at` is unknown.
    """
    if logits.dim() != 4 or labels.dim() != 3 or logits.shape[0] != labels.shape[0]:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)} and labels {tuple(labels.shape)}; expected (B, C, h, w) and "
            "(B, H, W) with the same B. Labels are class indices, not one-hot maps."
        )
    if weight is not None and weight.shape != labels.shape:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, labels {tuple(labels.shape)}; both are (B, H, W).")

    logits = logits.float()
    if at == "logits":
        labels = resize_nearest(labels, logits.shape[-2:])
        weight = None if weight is None else resize_nearest(weight, logits.shape[-2:])
    elif at == "labels":
        logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    else:
        raise ValueError(f"at={at!r} is unknown; use 'logits' or 'labels'.")

    labels = labels.long()
    loss = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")  # (B, h, w), 0 where ignored
    mass = (labels != ignore_index).float()
    if weight is not None:
        mass = mass * weight.float()
        loss = loss * weight.float()
    total = mass.sum(dim=(1, 2))  # (B,)
    per_image = loss.sum(dim=(1, 2)) / torch.where(total > 0, total, 1.0)
    return per_image.mean()


def box_dice(logits: Tensor, labels: Tensor, box_mask: Tensor, *, ignore_index: int = 255) -> Tensor:
    """Soft Dice loss of the object inside the boxes: per image, then the mean over the images.

    An image counts 0 if no pixel inside its boxes is the object's at the logits' resolution, as where all pixels are
    ignored. Always computed in float32.

    Args:
        logits: (B, 2, h, w) float, any floating dtype; channel 1 is the object.
        labels: (B, H, W) integer, 0 rest, 1 object or `ignore_index`.
        box_mask: (B, H, W) float, above 0 inside the boxes.

    Returns:
        Scalar float32 in [0, 1].

    Source: Milletari et al., "V-Net" (2016), without the squares.
    """
    labels = resize_nearest(labels, logits.shape[-2:])
    counts = (resize_nearest(box_mask, logits.shape[-2:]) > 0) & (labels != ignore_index)  # (B, h, w)
    probability = torch.softmax(logits.float(), dim=1)[:, 1] * counts
    target = ((labels == 1) & counts).float()
    overlap, true = (probability * target).sum(dim=(1, 2)), target.sum(dim=(1, 2))  # (B,)
    dice = 1 - 2 * overlap / (probability.sum(dim=(1, 2)) + true).clamp(min=1e-6)
    return torch.where(true > 0, dice, 0.0).mean()


def resize_nearest(maps: Tensor, size: torch.Size) -> Tensor:
    """(B, H, W) -> (B, *size), nearest pixel centre; integers up to 2^24 pass through float32 unchanged."""
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps[:, None].float(), size=size, mode="nearest-exact")[:, 0].to(maps.dtype)
