"""DeepLab v2 on ResNet, the second segmenter of the paper.

Source: Chen et al., "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous Convolution, and Fully
Connected CRFs", TPAMI 2018.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils.generic import ModelOutput

from .configuration_deeplab_v2 import DeepLabV2Config
from .logits import logits_at_pixels, pad_to_logits
from .losses import pixel_cross_entropy
from .resnet import ResNetTrunk


@dataclass
class DeepLabV2Output(ModelOutput):
    """Output of DeepLab v2.

    Args:
        loss: scalar float32, given labels.
        logits: (B, num_labels, H, W) float, in training (B, num_labels, h, w); with `config.scales`, the pixel-wise
            maximum over the scales.
        hidden_states: stem and layer1..layer4 outputs at scale 1.0, on request.
        attentions: always None; the field is what semantic segmenters of the ecosystem carry.
        scale_logits: with `config.scales` in training mode, the maps that each carry a loss term: scale 1.0, each
            further scale at its own size, and the maximum.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    scale_logits: tuple[Tensor, ...] | None = None


class _ASPP(nn.Module):
    """Atrous spatial pyramid pooling: the sum of dilated 3x3 classifiers (Chen et al. 2018, Fig. 7)."""

    def __init__(self, in_channels: int, num_labels: int, rates: Sequence[int]):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(in_channels, num_labels, kernel_size=3, padding=rate, dilation=rate) for rate in rates
        )

    def forward(self, hidden_state: Tensor) -> Tensor:
        """(B, in_channels, h, w) -> (B, num_labels, h, w)."""
        return reduce(torch.add, (conv(hidden_state) for conv in self.convs))


class DeepLabV2ForSemanticSegmentation(PreTrainedModel):
    """Dilated ResNet `backbone` and `classifier` = ASPP, the last layer (10x learning rate in Table I).

    With `config.batch_norm == "frozen"` the normalisation layers stay in eval mode and their affine parameters have
    `requires_grad=False`, whatever `train()` is asked for.
    """

    config: DeepLabV2Config
    main_input_name = "pixel_values"
    input_modalities = "image"
    supports_gradient_checkpointing = True
    _no_split_modules = ["BasicBlock", "Bottleneck"]

    def __init__(self, config: DeepLabV2Config):
        super().__init__(config)
        self.backbone = ResNetTrunk(
            in_channels=config.num_channels,
            block=config.block,
            depths=config.depths,
            stem_size=config.stem_size,
            hidden_sizes=config.hidden_sizes,
            output_stride=config.output_stride,
            stem_pool=config.stem_pool,
        )
        self.classifier = _ASPP(self.backbone.out_channels, len(config.id2label or ()), config.atrous_rates)
        self.post_init()
        self.train(self.training)  # freezes

    def train(self, mode: bool = True) -> "DeepLabV2ForSemanticSegmentation":
        """Set the mode of every layer; frozen normalisation layers stay as they are."""
        super().train(mode)
        if self.config.batch_norm == "frozen":
            # Here and not only in __init__: from_pretrained makes new parameters, and ends with eval().
            for module in self.backbone.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
                    module.requires_grad_(False)
        return self

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # zero biases, identity batch norm
        if isinstance(module, nn.Conv2d):
            if module in self.classifier.convs:
                init.normal_(module.weight, std=self.config.initializer_range)
            else:
                init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> DeepLabV2Output | tuple[Tensor, ...]:
        """Class scores, and the loss if labels are given.

        The network's logits lie on every `config.output_stride`-th pixel. In training they are returned as they are,
        else (with `config.align_corners`) on all pixels, which any image processor and pipeline takes to the right
        place.

        Args:
            pixel_values: (B, num_channels, H, W) float, normalised by the image processor; any H and W.
            labels: (B, H, W) integer, 0..num_labels-1 or `config.semantic_loss_ignore_index`.
            output_hidden_states: also return the stem and layer outputs at scale 1.0; default from the config.
            return_dict: False returns a plain tuple; default from the config.

        Returns:
            `loss`: sum over the maps (one, or one per scale and their maximum) of `pixel_cross_entropy` at the size of
            each map. `logits` (B, num_labels, H, W) float32, in training at the stride of the network (321 -> 41
            pixels at stride 8). `hidden_states`, `scale_logits`.

        Source: Sec. IV-A; multi-scale inputs with max fusion are Chen et al. 2018, Sec. 4.1.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if return_dict is None:
            return_dict = self.config.return_dict

        ignore_index, stride = self.config.semantic_loss_ignore_index, self.config.output_stride
        on_pixels = self.config.align_corners and not self.training
        size = (pixel_values.shape[2], pixel_values.shape[3])
        if on_pixels:
            pixel_values = pad_to_logits(pixel_values, stride)
            labels = None if labels is None else pad_to_logits(labels, stride, ignore_index)

        feature_maps = self.backbone.feature_maps(pixel_values)
        maps = [self.classifier(feature_maps[-1])]  # (B, num_labels, h, w)
        if self.config.scales:
            maps += [self._logits_at_scale(pixel_values, scale) for scale in self.config.scales]
            maps.append(_pixelwise_max(maps))

        loss = None
        if labels is not None:
            loss = reduce(torch.add, (pixel_cross_entropy(m, labels, ignore_index=ignore_index) for m in maps))
        output = DeepLabV2Output(
            loss=loss,
            logits=logits_at_pixels(maps[-1], stride, size) if on_pixels else maps[-1],
            hidden_states=feature_maps if output_hidden_states else None,
            scale_logits=tuple(maps) if self.config.scales and self.training else None,
        )
        return output if return_dict else output.to_tuple()

    def _logits_at_scale(self, pixel_values: Tensor, scale: float) -> Tensor:
        scaled = F.interpolate(pixel_values, scale_factor=scale, mode="bilinear", align_corners=False)
        return self.classifier(self.backbone(scaled))


def _pixelwise_max(maps: Sequence[Tensor]) -> Tensor:
    """Maximum over the maps, each brought to the size of the first."""
    size = maps[0].shape[-2:]
    resized = [F.interpolate(logits, size=size, mode="bilinear", align_corners=False) for logits in maps[1:]]
    return torch.stack([maps[0], *resized]).amax(dim=0)


__all__ = ["DeepLabV2ForSemanticSegmentation", "DeepLabV2Output"]
