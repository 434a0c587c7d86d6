"""Configuration of the class-agnostic pseudo mask generator."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


BACKBONES = ("hourglass", "resnet18", "resnet101", "squeezenet")


@strict
class LPGConfig(PreTrainedConfig):
    """Architecture of an [`LPGModel`].

    Args:
        backbone: `"hourglass"` (the paper's default, trained from scratch), `"resnet18"` or `"resnet101"` (the paper's
            other two), `"squeezenet"` (ours: an ImageNet-pretrained SqueezeNet 1.1 with a top-down decoder, for a few
            hundred auxiliary images).
        use_class_prob: whether the model takes the segmenter's probability of the class. Paper: True in every stage;
            released stage-1 weights: False.
        embedding_size: hourglass; channels of the first convolution. Paper: 48.
        hidden_sizes: hourglass; channels per level, strides 4, 8, ..., 4 * 2**(levels - 1). Paper: 96, ..., 192.
        depths: hourglass; residual blocks per branch of each level, the last one counts the innermost blocks.
        neck_size: hourglass; channels between the hourglass and the head. Paper: 256.
        head_size: channels of the head's hidden convolution. Paper: 96.
        decoder_size: squeezenet; channels of the top-down decoder.
        context_size: squeezenet; channels of the two levels that are coarser than the encoder (strides 32 and 64).
        stem_size: squeezenet; channels of the strided stem through which image, boxes and probability enter.
        output_stride: resnets; stride of the trunk's last feature map (8, 16 or 32). Logits always have stride 4.
        outside_box_loss_weight: weight of the loss outside the boxes, where the mask is cut away anyway.
            Paper: 1.0 (the loss is over the whole crop).
        semantic_loss_ignore_index: label that takes no part in the loss.
    """

    model_type = "lpg"

    backbone: str = "hourglass"
    use_class_prob: bool = True
    embedding_size: int = 48
    hidden_sizes: list[int] | tuple[int, ...] = (96, 96, 128, 128, 128, 192)
    depths: list[int] | tuple[int, ...] = (2, 2, 2, 2, 2, 4)
    neck_size: int = 256
    head_size: int = 96
    decoder_size: int = 96
    context_size: int = 256
    stem_size: int = 32
    output_stride: int = 8
    outside_box_loss_weight: float | int = 1.0
    semantic_loss_ignore_index: int = 255

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.backbone not in BACKBONES:
            raise ValueError(
                f"backbone={self.backbone!r} is unknown to LPGConfig. Choose one of {', '.join(BACKBONES)}."
            )
        if len(self.hidden_sizes) != len(self.depths) or len(self.depths) < 2:
            raise ValueError(
                f"hidden_sizes {tuple(self.hidden_sizes)} and depths {tuple(self.depths)} of LPGConfig differ in length "
                "or have fewer than two levels. Give one number per level."
            )

    @property
    def in_channels(self) -> int:
        """RGB and box mask, and the class probability if it is used."""
        return 4 + int(self.use_class_prob)

    @property
    def size_divisor(self) -> int:
        """Height and width are padded inside the model to a multiple of this (pixels)."""
        if self.backbone == "hourglass":
            return 4 * 2 ** (len(self.hidden_sizes) - 1)
        return 64 if self.backbone == "squeezenet" else 32


__all__ = ["LPGConfig"]
