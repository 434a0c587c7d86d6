"""Where the logits of segmenters lie in an image: those of the DeepLabs on the pixels 0, stride, 2 x stride, ..."""

import torch
import torch.nn.functional as F
from torch import Tensor


def corner_stride(config: object) -> int | None:
    """Pixels between the logits of a DeepLab of ours that aligns corners, from pixel 0 on; None for all others."""
    strides = {"deeplab_largefov": 8, "deeplab_v2": getattr(config, "output_stride", None)}
    return strides.get(getattr(config, "model_type", "")) if getattr(config, "align_corners", False) else None


def tf_padding_stride(config: object) -> int | None:
    """The output stride of a network that pads as TensorFlow does (MobileNetV2 of transformers); None for all others.

    Such a network pads by the sides of its input: its logits lie on the pixels stride - 1, 2 x stride - 1, ... if
    these are multiples of its stride, on 0, stride, ... in n x stride + 1 pixels, and between in others. So training
    and use take multiples.
    """
    return getattr(config, "output_stride", None) if getattr(config, "tf_padding", False) else None


def pad_to_logits(maps: Tensor, stride: int, value: float = 0) -> Tensor:
    """Pad (..., H, W) at the right and the bottom to n x stride + 1 pixels: the last logits then lie on the border."""
    height, width = maps.shape[-2:]
    return F.pad(maps, (0, (1 - width) % stride, 0, (1 - height) % stride), value=value)


def logits_at_pixels(logits: Tensor, stride: int, size: tuple[int, int], every: int = 1) -> Tensor:
    """Logits on every `stride`-th pixel -> logits on every pixel, or on a part of them.

    Args:
        logits: (B, num_labels, h, w) float of an image that `pad_to_logits` has padded.
        size: (height, width) of the image without padding.
        every: above 1, only the rows and columns every // 2, every // 2 + every, ...; the others are not computed.

    Returns:
        (B, num_labels, height, width) float32, bilinear; with `every`, (B, num_labels, rows, columns).
    """
    if every > 1:
        rows, columns = (
            _weights(num, stride, torch.arange(every // 2, side, every, device=logits.device))
            for num, side in zip(logits.shape[2:], size)
        )
        return rows @ logits.float() @ columns.T
    full = ((logits.shape[2] - 1) * stride + 1, (logits.shape[3] - 1) * stride + 1)
    logits = F.interpolate(logits.float(), size=full, mode="bilinear", align_corners=True)
    return logits[:, :, : size[0], : size[1]]


def _weights(num_logits: int, stride: int, pixels: Tensor) -> Tensor:
    """(pixels, logits) float32: how much of each logit of a row or column a pixel has, by linear interpolation."""
    distances = pixels[:, None] / stride - torch.arange(num_logits, device=pixels.device)
    return (1 - distances.abs()).clamp(min=0)
