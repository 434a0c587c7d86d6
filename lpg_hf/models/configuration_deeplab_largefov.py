"""Configuration of DeepLab-LargeFOV on VGG16."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class DeepLabLargeFOVConfig(PreTrainedConfig):
    """DeepLab-LargeFOV (Chen et al. 2015), the VGG16 segmenter f of the paper. Output stride 8.

    Args:
        num_channels: channels of the input (3, RGB).
        depths: 3x3 convolutions in conv1..conv5; VGG16 has (2, 2, 3, 3, 3).
        hidden_sizes: channels of conv1..conv5.
        fc_size: channels of fc6 and fc7 (1024).
        fc_dilation: dilation of fc6's 3x3 kernel (12); it sets the field of view.
        dropout: "channel" drops whole channels (as the official code), "element" single values (as Caffe's DeepLab).
        dropout_prob: probability of both dropouts (0.5).
        initializer_range: standard deviation of fc8's normal initialisation (0.01); its bias starts at 0. fc6 and fc7
            start as PyTorch's convolutions do.
        semantic_loss_ignore_index: label that the loss ignores.
        align_corners: where the logits lie. True (the official code): on every stride-th pixel. Training crops are
            n x stride + 1 pixels; outside training the model pads images to such a size and returns logits on all
            pixels. False: at the centres of cells of stride x stride pixels.
    """

    model_type = "deeplab_largefov"

    num_channels: int = 3
    depths: list[int] | tuple[int, ...] = (2, 2, 3, 3, 3)
    hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 256, 512, 512)
    fc_size: int = 1024
    fc_dilation: int = 12
    dropout: Literal["channel", "element"] = "channel"
    dropout_prob: float | int = 0.5
    initializer_range: float | int = 0.01
    semantic_loss_ignore_index: int = 255
    align_corners: bool = True


__all__ = ["DeepLabLargeFOVConfig"]
