"""Where the logits of the DeepLabs lie in an image: on the pixels 0, stride, 2 x stride, ..."""

import torch.nn.functional as F
from torch import Tensor


def pad_to_logits(maps: Tensor, stride: int, value: float = 0) -> Tensor:
    """Pad (..., H, W) at the right and the bottom to n x stride + 1 pixels: the last logits then lie on the border."""
    height, width = maps.shape[-2:]
    return F.pad(maps, (0, (1 - width) % stride, 0, (1 - height) % stride), value=value)


def logits_at_pixels(logits: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """Logits on every `stride`-th pixel -> logits on every pixel.

    Args:
        logits: (B, num_labels, h, w) float of an image that `pad_to_logits` has padded.
        size: (height, width) of the image without padding.

    Returns:
        (B, num_labels, height, width) float32, bilinear.
    """
    full = ((logits.shape[2] - 1) * stride + 1, (logits.shape[3] - 1) * stride + 1)
    logits = F.interpolate(logits.float(), size=full, mode="bilinear", align_corners=True)
    return logits[:, :, : size[0], : size[1]]
