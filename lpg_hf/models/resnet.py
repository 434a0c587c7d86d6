"""ResNet trunk with torchvision's parameter names, dilated to a chosen output stride (He et al. 2015, v1.5 layout)."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer


class BasicBlock(GradientCheckpointingLayer):
    """Two 3x3 convolutions and a skip (ResNet18 and 34)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dilation: int):
        super().__init__()
        self.conv1 = _conv3x3(in_channels, out_channels, stride, dilation)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = _conv3x3(out_channels, out_channels, 1, dilation)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = _projection(in_channels, out_channels, stride)

    def forward(self, hidden_state: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(hidden_state)), inplace=True)
        out = self.bn2(self.conv2(out))
        skip = hidden_state if self.downsample is None else self.downsample(hidden_state)
        return F.relu(out + skip, inplace=True)


class Bottleneck(GradientCheckpointingLayer):
    """1x1, 3x3 (which carries the stride: v1.5), 1x1 and a skip (ResNet50 and deeper)."""

    expansion = 4

    def __init__(self, in_channels: int, out_channels: int, stride: int, dilation: int):
        super().__init__()
        width = out_channels // self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width, stride, dilation)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = _projection(in_channels, out_channels, stride)

    def forward(self, hidden_state: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(hidden_state)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        skip = hidden_state if self.downsample is None else self.downsample(hidden_state)
        return F.relu(out + skip, inplace=True)


BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}


class ResNetTrunk(nn.Module):
    """ResNet without average pool and classifier.

    The stem has stride 4, or 2 without its max-pool. A layer whose stride would exceed `output_stride` has stride 1
    and doubles the dilation of all its 3x3 convolutions instead. Sizes that the stride does not divide are rounded up.

    Args:
        in_channels: channels of the input; 3 for RGB.
        block: "basic" (ResNet18) or "bottleneck" (ResNet101).
        depths: blocks in layer1..layer4; (2, 2, 2, 2) for ResNet18, (3, 4, 23, 3) for ResNet101.
        stem_size: channels after conv1; 64 as published.
        hidden_sizes: output channels of layer1..layer4; (64, 128, 256, 512) and (256, 512, 1024, 2048) as published.
        output_stride: input pixels per pixel of the last map: 4, 8, 16 or 32.
        stem_pool: max-pool after conv1.

    Raises:
        ValueError: a size above does not describe a ResNet, or `output_stride` cannot be reached.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(
        self,
        in_channels: int = 3,
        block: Literal["basic", "bottleneck"] = "bottleneck",
        depths: Sequence[int] = (3, 4, 23, 3),
        stem_size: int = 64,
        hidden_sizes: Sequence[int] = (256, 512, 1024, 2048),
        output_stride: int = 32,
        stem_pool: bool = True,
    ):
        super().__init__()
        stride = 4 if stem_pool else 2
        if block not in BLOCKS:
            raise ValueError(f"block={block!r} is unknown; use one of {sorted(BLOCKS)}.")
        if len(depths) != 4 or len(hidden_sizes) != 4:
            raise ValueError(f"depths={tuple(depths)} and hidden_sizes={tuple(hidden_sizes)} need 4 entries each.")
        if output_stride not in (4, 8, 16, 32) or output_stride > 8 * stride:
            raise ValueError(
                f"output_stride={output_stride} is not possible with stem_pool={stem_pool}; "
                f"use one of {[s for s in (4, 8, 16, 32) if s <= 8 * stride]}."
            )

        self.conv1 = nn.Conv2d(in_channels, stem_size, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem_size)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1) if stem_pool else nn.Identity()

        dilation, channels = 1, stem_size
        for index, (depth, width) in enumerate(zip(depths, hidden_sizes), start=1):
            layer_stride = 1 if index == 1 else 2
            if stride * layer_stride > output_stride:
                dilation, layer_stride = dilation * layer_stride, 1
            stride *= layer_stride
            blocks = [
                BLOCKS[block](channels if i == 0 else width, width, layer_stride if i == 0 else 1, dilation)
                for i in range(depth)
            ]
            self.add_module(f"layer{index}", nn.Sequential(*blocks))
            channels = width
        self.out_channels = channels

    def feature_maps(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Stem output and the outputs of layer1..layer4.

        Args:
            pixel_values: (B, in_channels, H, W) float.

        Returns:
            Five tensors (B, channels, height, width); the last has stride `output_stride`.
        """
        maps = [self.maxpool(F.relu(self.bn1(self.conv1(pixel_values)), inplace=True))]
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps.append(layer(maps[-1]))
        return tuple(maps)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, in_channels, H, W) float -> (B, out_channels, ceil(H / output_stride), ceil(W / output_stride))."""
        return self.feature_maps(pixel_values)[-1]


def pad_stem(weight: Tensor, in_channels: int) -> Tensor:
    """conv1 weights of an RGB ResNet, for an input whose LAST three channels are RGB; the new channels weigh 0.

    Args:
        weight: (O, 3, 7, 7) float.
        in_channels: channels of the new input, e.g. 5 for [class_prob, box_mask, R, G, B].

    Returns:
        (O, in_channels, 7, 7) float, `weight` itself for 3 channels.
    """
    extra = in_channels - weight.shape[1]
    return torch.cat([weight.new_zeros(weight.shape[0], extra, *weight.shape[2:]), weight], dim=1)


def _conv3x3(in_channels: int, out_channels: int, stride: int, dilation: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
    )
