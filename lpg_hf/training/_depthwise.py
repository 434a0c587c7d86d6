"""Depthwise convolutions whose training a CPU does slowly (torch 2.13), a third of a step of MobileNetV2."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


_SLOW_DILATION = torch.backends.cpu.get_cpu_capability() == "AVX2"


class _DilatedDepthwise(torch.autograd.Function):
    """A dilated depthwise convolution, with a backward pass of convolutions without dilation.

    Only pixels that are multiples of `dilation` apart meet, so an image is dilation x dilation grids that have nothing
    to do with each other. A core without AVX-512, float32, 16 crops of 960 channels and 8 x 8 positions: 17 ms in
    place of 108; with AVX-512 there is nothing to gain.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, dilation: int) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.dilation = dilation
        return F.conv2d(input, weight, dilation=dilation, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        input, weight = ctx.saved_tensors
        (height, width), dilation = input.shape[2:], ctx.dilation
        more = [0, -width % dilation, 0, -height % dilation]
        of_input, of_weight, _ = torch.ops.aten.convolution_backward(
            _split_grids(F.pad(grad, more), dilation),
            _split_grids(F.pad(input, more), dilation),
            weight,
            None,
            [1, 1],
            [0, 0],
            [1, 1],
            False,
            [0, 0],
            len(weight),
            [ctx.needs_input_grad[0], ctx.needs_input_grad[1], False],
        )
        if of_input is not None:
            of_input = _join_grids(of_input, dilation)[:, :, :height, :width]
        return of_input, of_weight, None


def _split_grids(maps: Tensor, dilation: int) -> Tensor:
    """(B, C, H, W), sides divisible by the dilation -> (B x dilation x dilation, C, H / dilation, W / dilation).

    Both ways work on channels_last, where the channels of a pixel are copied as one.
    """
    pixels = maps.permute(0, 2, 3, 1)  # (B, H, W, C)
    grids = pixels.unflatten(2, (-1, dilation)).unflatten(1, (-1, dilation))  # (B, h, dilation, w, dilation, C)
    return grids.permute(0, 2, 4, 1, 3, 5).flatten(0, 2).contiguous().permute(0, 3, 1, 2)


def _join_grids(grids: Tensor, dilation: int) -> Tensor:
    """The inverse of `_split_grids`."""
    pixels = grids.permute(0, 2, 3, 1).unflatten(0, (-1, dilation, dilation))  # (B, dilation, dilation, h, w, C)
    return pixels.permute(0, 3, 1, 4, 2, 5).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


class _FastConv2d(nn.Conv2d):
    """A depthwise convolution that autocast leaves in float32, and whose dilation does not slow its backward pass."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            input = input.float()
            if not (_SLOW_DILATION and _is_dilated_depthwise(self)):
                return super().forward(input)
            padded = F.pad(input, self._reversed_padding_repeated_twice)
            output = _DilatedDepthwise.apply(padded, self.weight, self.dilation[0])
            return output if self.bias is None else output + self.bias[:, None, None]


def _is_dilated_depthwise(module: nn.Conv2d) -> bool:
    """Whether it is one that `_DilatedDepthwise` computes."""
    return (
        module.groups == module.in_channels == module.out_channels
        and module.stride == (1, 1)
        and module.dilation[0] == module.dilation[1] > 1
        and module.padding_mode == "zeros"
    )


def _is_slow(module: nn.Module, autocast: bool) -> bool:
    if type(module) is not nn.Conv2d or module.groups == 1 or max(*module.stride, *module.dilation) == 1:
        return False
    return autocast or _SLOW_DILATION and _is_dilated_depthwise(module)


@contextmanager
def fast_depthwise(model: nn.Module, *, autocast: bool) -> Iterator[None]:
    """Within the context, a CPU trains the depthwise convolutions of a model as fast as it can.

    Those with a dilation have another backward pass where it is slow, see `_DilatedDepthwise`. Those with a stride or
    a dilation compute in float32 under autocast, as their backward pass in bfloat16 takes 3 to 8 times as long.

    Args:
        autocast: whether the training runs in bfloat16.
    """
    slow = [module for module in model.modules() if _is_slow(module, autocast)]
    for module in slow:
        module.__class__ = _FastConv2d
    try:
        yield
    finally:
        for module in slow:
            module.__class__ = nn.Conv2d
