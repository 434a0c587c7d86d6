"""Depthwise convolutions of a training in bfloat16 on a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class _Float32Conv2d(nn.Conv2d):
    """A convolution that autocast leaves in float32."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float())


@contextmanager
def depthwise_in_float32(model: nn.Module) -> Iterator[None]:
    """Within the context, depthwise convolutions with a stride or a dilation compute in float32 under autocast.

    Their backward pass in bfloat16 takes 3 to 8 times as long on a CPU (torch 2.13), and those of MobileNetV2 a third
    of a step.
    """
    slow = [
        module
        for module in model.modules()
        if type(module) is nn.Conv2d and module.groups > 1 and max(*module.stride, *module.dilation) > 1
    ]
    for module in slow:
        module.__class__ = _Float32Conv2d
    try:
        yield
    finally:
        for module in slow:
            module.__class__ = nn.Conv2d
