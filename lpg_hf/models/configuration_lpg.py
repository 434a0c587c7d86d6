"""Configuration of the class-agnostic pseudo mask generator."""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.models.auto.configuration_auto import CONFIG_MAPPING


# Of an image alone, with a top-down decoder that takes the other inputs.
ENCODERS = ("squeezenet", "vgg16", "efficientnet_lite0", "auto")
BACKBONES = ("hourglass", "resnet18", "resnet101", *ENCODERS)


@strict
class LPGConfig(PreTrainedConfig):
    """Architecture of an [`LPGModel`].

    Args:
        backbone: `"hourglass"` (the paper's default, trained from scratch), `"resnet18"` or `"resnet101"` (the paper's
            other two), or an ImageNet-pretrained encoder with a top-down decoder (ours, for a few hundred auxiliary
            images): `"squeezenet"` (SqueezeNet 1.1), `"vgg16"` (up to conv5_3), `"efficientnet_lite0"` (up to its last
            block of stride 16), or `"auto"`, any `AutoBackbone` of transformers. VGG16 and most backbones were trained
            on RGB with ImageNet's mean and standard deviation, EfficientNet-Lite0 on (RGB - 127) / 128; both are
            settings of the image processor (`image_mean`, `image_std`).
        backbone_config: auto; config of the backbone, or its dict with a `model_type`. Its `out_features` must have
            strides 4, 8, 16, ... up to 64 (coarser ones are skipped). The last stage alone, transformers' default,
            stands for all stages.
        use_class_prob: whether the model takes the segmenter's probability of the class. Paper: True in every stage;
            released stage-1 weights: False.
        class_prob_optional: whether the class probability may be absent. The model then sees 0 everywhere, which it
            must have learned to mean that there is no segmenter. No effect if `use_class_prob` is False.
        embedding_size: hourglass; channels of the first convolution. Paper: 48.
        hidden_sizes: hourglass; channels per level, strides 4, 8, ..., 4 * 2**(levels - 1). Paper: 96, ..., 192.
        depths: hourglass; residual blocks per branch of each level, the last one counts the innermost blocks.
        neck_size: hourglass; channels between the hourglass and the head. Paper: 256.
        head_size: channels of the head's hidden convolution. Paper: 96.
        decoder_size: encoders; channels of the top-down decoder.
        context_size: encoders; channels of each level that is coarser than the encoder, down to stride 64.
        stem_size: encoders; channels of the strided stem through which image, boxes and probability enter.
        num_frozen_stages: encoders; how many stages, counted from the image, keep their weights and batch statistics.
            A stage of squeezenet and vgg16 ends before a pooling, one of efficientnet_lite0 where the stride doubles;
            the first one of a backbone is its embeddings.
        output_stride: resnets; stride of the trunk's last feature map (8, 16 or 32). Logits always have stride 4.
        outside_box_loss_weight: weight of the loss outside the boxes, where the mask is cut away anyway.
            Paper: 1.0 (the loss is over the whole crop).
        object_loss_weight: weight of the loss at the object's pixels; the others have 1. A pixel then belongs to the
            object from a probability of 1 / (1 + weight) on. Paper: 1.0.
        dice_loss_weight: weight of a soft Dice loss inside the boxes, added to the cross entropy; all objects count
            the same in it, however much of their box they fill. Paper: 0.0.
        semantic_loss_ignore_index: label that takes no part in the loss.
    """

    model_type = "lpg"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="resnet", optional=True)}

    backbone: str = "hourglass"
    backbone_config: dict | PreTrainedConfig | None = None
    use_class_prob: bool = True
    class_prob_optional: bool = False
    embedding_size: int = 48
    hidden_sizes: list[int] | tuple[int, ...] = (96, 96, 128, 128, 128, 192)
    depths: list[int] | tuple[int, ...] = (2, 2, 2, 2, 2, 4)
    neck_size: int = 256
    head_size: int = 96
    decoder_size: int = 96
    context_size: int = 256
    stem_size: int = 32
    num_frozen_stages: int = 0
    output_stride: int = 8
    outside_box_loss_weight: float | int = 1.0
    object_loss_weight: float | int = 1.0
    dice_loss_weight: float | int = 0.0
    semantic_loss_ignore_index: int = 255

    def __post_init__(self, **kwargs):
        if isinstance(self.backbone_config, dict) and self.backbone_config.get("model_type") not in CONFIG_MAPPING:
            raise ValueError(
                f"backbone_config has model_type={self.backbone_config.get('model_type')!r}, which transformers does "
                "not know. Name a family with an AutoBackbone, such as resnet, convnext or swin."
            )
        super().__post_init__(**kwargs)
        if self.backbone not in BACKBONES:
            raise ValueError(
                f"backbone={self.backbone!r} is unknown to LPGConfig. Choose one of {', '.join(BACKBONES)}."
            )
        if (self.backbone == "auto") != (self.backbone_config is not None):
            raise ValueError(
                f"backbone={self.backbone!r} and backbone_config={'None' if self.backbone_config is None else '...'} "
                "do not fit: backbone='auto' needs the config of a transformers backbone, the others take none."
            )
        if self.num_frozen_stages < 0 or (self.num_frozen_stages > 0 and self.backbone not in ENCODERS):
            raise ValueError(
                f"num_frozen_stages={self.num_frozen_stages} does not fit backbone={self.backbone!r}: it is at "
                f"least 0, and 0 for all but {', '.join(ENCODERS)}, whose encoder sees the image alone."
            )
        if len(self.hidden_sizes) != len(self.depths) or len(self.depths) < 2:
            raise ValueError(
                f"hidden_sizes {tuple(self.hidden_sizes)} and depths {tuple(self.depths)} of LPGConfig differ in "
                "length or have fewer than two levels. Give one number per level."
            )

    @property
    def in_channels(self) -> int:
        """RGB and box mask, and the class probability if it is used."""
        return 4 + int(self.use_class_prob)

    @property
    def requires_class_prob(self) -> bool:
        """Whether a forward pass without the class probability is refused."""
        return self.use_class_prob and not self.class_prob_optional

    @property
    def size_divisor(self) -> int:
        """Height and width are padded inside the model to a multiple of this (pixels)."""
        if self.backbone == "hourglass":
            return 4 * 2 ** (len(self.hidden_sizes) - 1)
        return 64 if self.backbone in ENCODERS else 32


__all__ = ["LPGConfig"]
