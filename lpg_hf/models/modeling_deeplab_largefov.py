"""DeepLab-LargeFOV on VGG16, the first segmenter of the paper.

Source: Chen et al., "Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs", ICLR 2015.
"""

import math

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import SemanticSegmenterOutput

from .configuration_deeplab_largefov import DeepLabLargeFOVConfig
from .logits import logits_at_pixels, pad_to_logits
from .losses import pixel_cross_entropy


OUTPUT_STRIDE = 8


class Stage(GradientCheckpointingLayer, nn.Sequential):
    """Convolutions of one size, with what follows them; recomputed as a whole under activation checkpointing."""


class _LargeFOVFeatures(nn.Sequential):
    """conv1..conv5, fc6 and fc7. Within them the layers are numbered through as in torchvision's VGG16.

    So `features.0.weight` of a VGG16 file is `features.conv1.0.weight` here, and fc6, fc7 are 32 and 35, as in the
    official code (where fc8, our `classifier`, is 38).
    """

    conv1: Stage
    fc6: Stage
    fc7: Stage

    def __init__(self, config: DeepLabLargeFOVConfig):
        super().__init__()
        number = 0
        channels = config.num_channels

        def add_stage(name: str, layers: list[nn.Module]) -> None:
            nonlocal number
            stage = Stage()
            for layer in layers:
                stage.add_module(str(number), layer)
                number += 1
            self.add_module(name, stage)

        for index, (depth, width) in enumerate(zip(config.depths, config.hidden_sizes), start=1):
            dilation = 2 if index == 5 else 1
            layers = []
            for _ in range(depth):
                layers.append(nn.Conv2d(channels, width, kernel_size=3, padding=dilation, dilation=dilation))
                layers.append(nn.ReLU(inplace=True))
                channels = width
            layers.append(nn.MaxPool2d(kernel_size=3, stride=2 if index <= 3 else 1, padding=1))
            if index == 5:
                layers.append(nn.AvgPool2d(kernel_size=3, stride=1, padding=1))
            add_stage(f"conv{index}", layers)

        dropout = nn.Dropout2d if config.dropout == "channel" else nn.Dropout
        fov, size = config.fc_dilation, config.fc_size
        fc6 = nn.Conv2d(channels, size, kernel_size=3, padding=fov, dilation=fov)
        add_stage("fc6", [fc6, nn.ReLU(inplace=True), dropout(config.dropout_prob)])
        fc7 = nn.Conv2d(size, size, kernel_size=1)
        add_stage("fc7", [fc7, nn.ReLU(inplace=True), dropout(config.dropout_prob)])

    def feature_maps(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """(B, num_channels, H, W) -> outputs of conv1..conv5 (each with its pools), fc6 and fc7 (~H/8, ~W/8)."""
        maps, hidden_state = [], pixel_values
        if self.conv1.gradient_checkpointing and self.training and not hidden_state.requires_grad:
            # conv1 reads the image; reentrant checkpointing gives no gradient to a layer whose inputs need none.
            hidden_state = hidden_state.detach().requires_grad_()
        for stage in self:
            hidden_state = stage(hidden_state)
            maps.append(hidden_state)
        return tuple(maps)


class DeepLabLargeFOVForSemanticSegmentation(PreTrainedModel):
    """VGG16 with dilated conv5 and fc6, and `classifier` = fc8, the last layer (10x learning rate in Table I)."""

    config: DeepLabLargeFOVConfig
    main_input_name = "pixel_values"
    input_modalities = "image"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Stage"]

    def __init__(self, config: DeepLabLargeFOVConfig):
        super().__init__(config)
        if len(config.depths) != 5 or len(config.hidden_sizes) != 5:
            raise ValueError(f"depths={config.depths} and hidden_sizes={config.hidden_sizes} need 5 entries each.")
        self.features = _LargeFOVFeatures(config)
        self.classifier = nn.Conv2d(config.fc_size, len(config.id2label or ()), kernel_size=1)
        self.post_init()

    @property
    def backbone(self) -> _LargeFOVFeatures:
        """Everything but the last layer."""
        return self.features

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # zero biases
        if not isinstance(module, nn.Conv2d):
            return
        if module is self.classifier:
            init.normal_(module.weight, std=self.config.initializer_range)
        elif module in (self.features.fc6[0], self.features.fc7[0]):
            # Parity: PyTorch's default, as the official code leaves them. It takes down the large values of conv5 (rms
            # 25 with VGG16's weights); an initialisation that keeps their scale diverges at Table I's learning rates.
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = module.weight[0].numel() ** -0.5
                init.uniform_(module.bias, -bound, bound)
        else:
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SemanticSegmenterOutput | tuple[Tensor, ...]:
        """Class scores, and the loss if labels are given.

        The network's logits lie on every eighth pixel. In training they are returned as they are, else (with
        `config.align_corners`) on all pixels, which any image processor and pipeline takes to the right place.

        Args:
            pixel_values: (B, num_channels, H, W) float, normalised by the image processor; any H and W.
            labels: (B, H, W) integer, 0..num_labels-1 or `config.semantic_loss_ignore_index`.
            output_hidden_states: also return the outputs of conv1..conv5, fc6 and fc7; default from the config.
            return_dict: False returns a plain tuple; default from the config.

        Returns:
            `loss` scalar (`pixel_cross_entropy` at stride 8), `logits` (B, num_labels, H, W) float32, in training at
            stride 8 (321 -> 41 and 513 -> 65 pixels), `hidden_states`.

        Source: Sec. IV-A; labels are resized to the logits as in the official code.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if return_dict is None:
            return_dict = self.config.return_dict

        ignore_index = self.config.semantic_loss_ignore_index
        on_pixels = self.config.align_corners and not self.training
        size = (pixel_values.shape[2], pixel_values.shape[3])
        if on_pixels:
            pixel_values = pad_to_logits(pixel_values, OUTPUT_STRIDE)
            labels = None if labels is None else pad_to_logits(labels, OUTPUT_STRIDE, ignore_index)

        feature_maps = self.features.feature_maps(pixel_values)
        logits = self.classifier(feature_maps[-1])  # (B, num_labels, ~H/8, ~W/8)

        loss = None
        if labels is not None:
            loss = pixel_cross_entropy(logits, labels, ignore_index=ignore_index)
        if on_pixels:
            logits = logits_at_pixels(logits, OUTPUT_STRIDE, size)  # (B, num_labels, H, W)
        output = SemanticSegmenterOutput(
            loss=loss, logits=logits, hidden_states=feature_maps if output_hidden_states else None
        )
        return output if return_dict else output.to_tuple()


__all__ = ["DeepLabLargeFOVForSemanticSegmentation"]
