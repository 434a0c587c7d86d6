"""Configuration of DeepLab v2 on ResNet."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class DeepLabV2Config(PreTrainedConfig):
    """DeepLab v2 (Chen et al. 2016) on ResNet101, the second segmenter of the paper.

    Args:
        num_channels: channels of the input (3, RGB).
        block: residual block, "bottleneck" (ResNet101) or "basic".
        depths: blocks in layer1..layer4; ResNet101 has (3, 4, 23, 3).
        stem_size: channels of the stem (64).
        hidden_sizes: channels of layer1..layer4.
        output_stride: input pixels per pixel of the logits, by dilation: 4, 8 (DeepLab v2), 16 or 32.
        stem_pool: max-pool after the stem. The official code has none: `stem_pool=False, output_stride=4` is its net.
        atrous_rates: dilations of the summed 3x3 classifiers (6, 12, 18, 24).
        batch_norm: "frozen" keeps the loaded statistics and affine parameters fixed, also in training mode (DeepLab's
            practice for small batches; needs pretrained weights); "train" treats them as any other layer.
        scales: further input scales, e.g. (0.5, 0.75); the logits are the pixel-wise maximum over 1.0 and these.
            None or () is the single scale 1.0.
        initializer_range: standard deviation of the classifiers' normal initialisation (0.01); biases start at 0.
        semantic_loss_ignore_index: label that the loss ignores.
        align_corners: where the logits lie. True (the official code): on every stride-th pixel. Training crops are
            n x stride + 1 pixels; outside training the model pads images to such a size and returns logits on all
            pixels. False: at the centres of cells of stride x stride pixels.
    """

    model_type = "deeplab_v2"

    num_channels: int = 3
    block: Literal["basic", "bottleneck"] = "bottleneck"
    depths: list[int] | tuple[int, ...] = (3, 4, 23, 3)
    stem_size: int = 64
    hidden_sizes: list[int] | tuple[int, ...] = (256, 512, 1024, 2048)
    output_stride: int = 8
    stem_pool: bool = True
    atrous_rates: list[int] | tuple[int, ...] = (6, 12, 18, 24)
    batch_norm: Literal["frozen", "train"] = "frozen"
    scales: list[float | int] | tuple[float | int, ...] | None = None
    initializer_range: float | int = 0.01
    semantic_loss_ignore_index: int = 255
    align_corners: bool = True


__all__ = ["DeepLabV2Config"]
