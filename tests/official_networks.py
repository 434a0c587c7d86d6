"""The three networks of the official release, as far as a converter can tell: layer names, order and arithmetic.

Written from METHOD's description of the layers, with free widths: a test does not need 12 to 44 million weights.
The networks read BGR of 0..255 minus the mean, after the class probability and the box map.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


MEAN_BGR = (104.008, 116.669, 122.675)


def conv_unit(c_in: int, c_out: int, size: int, stride: int = 1, norm: bool = True) -> nn.Module:
    """Convolution (`conv`), normalisation (`bn`) and ReLU; without the normalisation the convolution has a bias."""
    unit = nn.Sequential()
    unit.add_module("conv", nn.Conv2d(c_in, c_out, size, stride, size // 2, bias=not norm))
    if norm:
        unit.add_module("bn", nn.BatchNorm2d(c_out))
    unit.add_module("relu", nn.ReLU())
    return unit


class Residual(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int = 1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out)
        self.conv2, self.bn2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out)
        self.skip = nn.Sequential()
        if stride > 1 or c_in != c_out:
            self.skip.extend([nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out)])

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.skip(x))


class Level(nn.Module):
    def __init__(self, sizes: tuple[int, ...], depths: tuple[int, ...]):
        super().__init__()
        here, below, depth = sizes[0], sizes[1], depths[0]
        self.up1 = nn.Sequential(*(Residual(here, here) for _ in range(depth)))
        self.low1 = nn.Sequential(Residual(here, below, 2), *(Residual(below, below) for _ in range(depth - 1)))
        if len(sizes) == 2:
            self.low2 = nn.Sequential(*(Residual(below, below) for _ in range(depths[1])))
        else:
            self.low2 = Level(sizes[1:], depths[1:])
        self.low3 = nn.Sequential(*(Residual(below, below) for _ in range(depth - 1)), Residual(below, here))

    def forward(self, x: Tensor) -> Tensor:
        low = self.low3(self.low2(self.low1(x)))
        return self.up1(x) + low.repeat_interleave(2, 2).repeat_interleave(2, 3)


class OfficialLPG(nn.Module):
    """(B, 4 or 5, H, W) -> (B, 2, H/4, W/4); H and W are multiples of 4 * 2**(levels - 1)."""

    def __init__(
        self,
        channels: int,
        stem: int = 48,
        sizes: tuple[int, ...] = (96, 96, 128, 128, 128, 192),
        depths: tuple[int, ...] = (2, 2, 2, 2, 2, 4),
        neck: int = 256,
        head: int = 96,
    ):
        super().__init__()
        self.pre = nn.Sequential(conv_unit(channels, stem, 7, 2), Residual(stem, sizes[0], 2))
        self.kps = nn.ModuleList([Level(sizes, depths)])
        self.cnvs = nn.ModuleList([conv_unit(sizes[0], neck, 3)])
        self.fm = nn.ModuleList([nn.Sequential(conv_unit(neck, head, 3, norm=False), nn.Conv2d(head, 2, 1))])

    def forward(self, x: Tensor) -> Tensor:
        return self.fm[0](self.cnvs[0](self.kps[0](self.pre(x))))


class OfficialLargeFOV(nn.Module):
    """(B, 3, H, W) -> (B, C, ~H/8, ~W/8); `features` counts every layer."""

    def __init__(
        self,
        num_labels: int,
        depths: tuple[int, ...] = (2, 2, 3, 3, 3),
        sizes: tuple[int, ...] = (64, 128, 256, 512, 512),
        fc: int = 1024,
    ):
        super().__init__()
        layers, c_in = [], 3
        for stage, (depth, size) in enumerate(zip(depths, sizes)):
            dilation = 2 if stage == 4 else 1
            for _ in range(depth):
                layers += [nn.Conv2d(c_in, size, 3, padding=dilation, dilation=dilation), nn.ReLU()]
                c_in = size
            layers.append(nn.MaxPool2d(3, 2 if stage < 3 else 1, 1))
        layers.append(nn.AvgPool2d(3, 1, 1))
        layers += [nn.Conv2d(c_in, fc, 3, padding=12, dilation=12), nn.ReLU(), nn.Dropout2d()]
        layers += [nn.Conv2d(fc, fc, 1), nn.ReLU(), nn.Dropout2d()]
        self.features = nn.Sequential(*layers, nn.Conv2d(fc, num_labels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)


class Bottleneck(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int, dilation: int):
        super().__init__()
        width = c_out // 4
        self.conv1, self.bn1 = nn.Conv2d(c_in, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, c_out, 1, bias=False), nn.BatchNorm2d(c_out)
        if stride > 1 or c_in != c_out:
            self.downsample = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


class OfficialResNet(nn.Module):
    """Dilated ResNet without a pool behind its stem, and four summed classifiers: stride 4."""

    def __init__(
        self,
        num_labels: int,
        depths: tuple[int, ...] = (3, 4, 23, 3),
        stem: int = 64,
        sizes: tuple[int, ...] = (256, 512, 1024, 2048),
    ):
        super().__init__()
        self.layer0 = nn.Sequential(nn.Conv2d(3, stem, 7, 2, 3, bias=False), nn.BatchNorm2d(stem), nn.ReLU())
        c_in = stem
        for number, (depth, size) in enumerate(zip(depths, sizes), start=1):
            stride, dilation = (2 if number == 2 else 1), {3: 2, 4: 4}.get(number, 1)
            first = Bottleneck(c_in, size, stride, dilation)
            rest = [Bottleneck(size, size, 1, dilation) for _ in range(depth - 1)]
            self.add_module(f"layer{number}", nn.Sequential(first, *rest))
            c_in = size
        self.aspp = nn.ModuleDict(
            {f"c{i}": nn.Conv2d(c_in, num_labels, 3, padding=r, dilation=r) for i, r in enumerate((6, 12, 18, 24))}
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.layer0(x)))))
        return sum(classifier(x) for classifier in self.aspp.values())


class OfficialMSC(nn.Module):
    """The multi-scale wrapper in eval mode: pixel-wise maximum over the scales 1.0, 0.5 and 0.75."""

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.base(x)]
        for scale in (0.5, 0.75):
            logits = self.base(F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False))
            maps.append(F.interpolate(logits, size=maps[0].shape[2:], mode="bilinear", align_corners=False))
        return torch.stack(maps).amax(0)


def official_pixels(image: np.ndarray, canvas: int | None = None) -> Tensor:
    """(H, W, 3) uint8 RGB -> (1, 3, H, W) float32: BGR minus the mean, padded right and bottom with the mean."""
    pixels = image[:, :, ::-1].astype(np.float32)
    if canvas:
        padded = np.empty((canvas, canvas, 3), dtype=np.float32)
        padded[:] = MEAN_BGR
        padded[: image.shape[0], : image.shape[1]] = pixels
        pixels = padded
    return torch.from_numpy((pixels - np.float32(MEAN_BGR)).transpose(2, 0, 1)[None])


def randomise(network: nn.Module, gain: float = 1.0, seed: int = 0) -> nn.Module:
    """Weights and statistics that keep activations in range and make every layer count; eval mode.

    Args:
        gain: of the normalisations; 33 residual blocks of gain 1 would blow up.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5 * gain, 1.5 * gain, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(std=0.2, generator=generator)
            module.num_batches_tracked.fill_(17)
        elif isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            module.weight.data.normal_(std=(1.5 / fan_in) ** 0.5, generator=generator)
            if module.bias is not None:
                module.bias.data.normal_(std=0.2, generator=generator)
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    first.weight.data[:, -3:] /= 60  # colours are about +-100, the box map and the probability 0 to 1
    return network.eval()
