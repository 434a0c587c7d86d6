"""The class-agnostic pseudo mask generator (LPG): image, box map and class probability in, foreground logits out.

Source: Sec. III-B and Fig. 1 of the paper; the layers of the hourglass are those of the official code.
"""

import copy
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoBackbone, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.generic import ModelOutput

from .configuration_lpg import ENCODERS, LPGConfig
from .efficientnet_lite import EfficientNetLite0Encoder
from .losses import box_dice, pixel_cross_entropy
from .resnet import ResNetTrunk


DECODER_STRIDES = (4, 8, 16, 32, 64)
PROBED_SIDE = 128  # pixels; a multiple of the coarsest stride, as all images are after padding


@dataclass
class LPGOutput(ModelOutput):
    """
    Args:
        loss: () float32, given when `labels` are.
        logits: (B, 2, ceil(H/4), ceil(W/4)) float; channel 0 is the rest, channel 1 the object.
        hidden_states: feature maps of the backbone, fine to coarse; given when `output_hidden_states` is set.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


def conv_norm(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> list[nn.Module]:
    """A convolution without bias and its batch normalisation, padded to keep the size at stride 1."""
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
    ]


def _conv_norm_relu(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(*conv_norm(in_channels, out_channels, kernel_size, stride), nn.ReLU(inplace=True))


class _ResidualBlock(GradientCheckpointingLayer):
    """conv3x3 - BN - ReLU - conv3x3 - BN, plus the skip (a projection where stride or width changes), ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.conv1 = _conv_norm_relu(in_channels, out_channels, 3, stride)
        self.conv2 = nn.Sequential(*conv_norm(out_channels, out_channels, 3))
        changes = stride != 1 or in_channels != out_channels
        self.skip = nn.Sequential(*conv_norm(in_channels, out_channels, 1, stride)) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(self.conv1(x)) + self.skip(x))


class _HourglassLevel(nn.Module):
    """One level: a branch at this resolution plus one through half the resolution; innermost the next level."""

    def __init__(self, hidden_sizes: tuple[int, ...], depths: tuple[int, ...]):
        super().__init__()
        size, low_size, depth = hidden_sizes[0], hidden_sizes[1], depths[0]
        self.up1 = nn.Sequential(*[_ResidualBlock(size, size) for _ in range(depth)])
        self.low1 = nn.Sequential(
            _ResidualBlock(size, low_size, stride=2), *[_ResidualBlock(low_size, low_size) for _ in range(depth - 1)]
        )
        if len(hidden_sizes) > 2:
            self.low2 = _HourglassLevel(hidden_sizes[1:], depths[1:])
        else:
            self.low2 = nn.Sequential(*[_ResidualBlock(low_size, low_size) for _ in range(depths[1])])
        self.low3 = nn.Sequential(
            *[_ResidualBlock(low_size, low_size) for _ in range(depth - 1)], _ResidualBlock(low_size, size)
        )

    def forward(self, x: Tensor, rows: slice = slice(None), columns: slice = slice(None)) -> Tensor:
        """(B, C, h, w) -> (B, C, rows, columns); pixels within 2 x depth of an inner edge of the cut are not exact."""
        low = F.interpolate(self.low3(self.low2(self.low1(x))), scale_factor=2.0, mode="nearest")
        return self.up1(x[:, :, rows, columns]) + low[:, :, rows, columns]


class _Hourglass(nn.Module):
    """The paper's generator network: one hourglass without max-pooling at stride 4."""

    def __init__(self, config: LPGConfig):
        super().__init__()
        size = config.hidden_sizes[0]
        self.stem = nn.Sequential(
            _conv_norm_relu(config.in_channels, config.embedding_size, 7, stride=2),
            _ResidualBlock(config.embedding_size, size, stride=2),
        )
        self.hourglass = _HourglassLevel(tuple(config.hidden_sizes), tuple(config.depths))
        self.neck = _conv_norm_relu(size, config.neck_size, 3)
        self.head = nn.Sequential(
            nn.Conv2d(config.neck_size, config.head_size, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(config.head_size, 2, 1),
        )

    def forward(
        self, prompt: Tensor, image: Tensor, region: tuple[slice, slice] | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        x = self.stem(torch.cat([prompt, image], dim=1))  # (B, hidden_sizes[0], H/4, W/4)
        if region is None:
            x = self.neck(self.hourglass(x))
            return self.head(x), (x,)
        # Everything after the lower levels is local: two convolutions a block, the neck and the head see `reach`
        # pixels. Cuts at multiples of 16 keep the number of shapes small: a CPU compiles kernels for each of them.
        reach = 2 * len(self.hourglass.up1) + 2
        starts = (max(axis.start - reach, 0) // 16 * 16 for axis in region)
        stops = (-(-(axis.stop + reach) // 16) * 16 for axis in region)
        rows, columns = (slice(start, stop) for start, stop in zip(starts, stops))
        x = self.neck(self.hourglass(x, rows, columns))
        wanted = self.head(x)
        logits = wanted.new_zeros(*wanted.shape[:2], image.shape[2] // 4, image.shape[3] // 4)
        logits[:, :, rows, columns] = wanted
        return logits, (x,)


class _ResNetGenerator(nn.Module):
    """A ResNet trunk with a 1x1 head (Table II of the paper); the extra channels enter through the stem."""

    def __init__(self, config: LPGConfig):
        super().__init__()
        is_small = config.backbone == "resnet18"  # else resnet101
        self.trunk = ResNetTrunk(
            in_channels=config.in_channels,
            block="basic" if is_small else "bottleneck",
            depths=(2, 2, 2, 2) if is_small else (3, 4, 23, 3),
            hidden_sizes=(64, 128, 256, 512) if is_small else (256, 512, 1024, 2048),
            output_stride=config.output_stride,
        )
        self.head = nn.Conv2d(self.trunk.out_channels, 2, 1)

    def forward(self, prompt: Tensor, image: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        x = self.trunk(torch.cat([prompt, image], dim=1))  # (B, C, H/output_stride, W/output_stride)
        size = (image.shape[2] // 4, image.shape[3] // 4)
        return F.interpolate(self.head(x), size=size, mode="bilinear", align_corners=False), (x,)


class _Fire(GradientCheckpointingLayer):
    """SqueezeNet's block: a 1x1 squeeze, then 1x1 and 3x3 expansions side by side."""

    def __init__(self, in_channels: int, squeeze: int, expand: int):
        super().__init__()
        self.squeeze = nn.Conv2d(in_channels, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return F.relu(torch.cat([self.expand1x1(x), self.expand3x3(x)], dim=1))


class _SqueezeNetEncoder(nn.Module):
    """SqueezeNet 1.1 with torchvision's names, so that its ImageNet weights load as they are.

    The first convolution and the poolings are padded by 1, so the strides align with the input: 4, 8 and 16.
    """

    hidden_sizes = (128, 256, 512)

    def __init__(self):
        super().__init__()

        def pool() -> nn.Module:
            return nn.MaxPool2d(3, stride=2, padding=1)

        self.features = nn.Sequential(
            *(nn.Conv2d(3, 64, 3, stride=2, padding=1), nn.ReLU(inplace=True)),
            *(pool(), _Fire(64, 16, 64), _Fire(128, 16, 64)),
            *(pool(), _Fire(128, 32, 128), _Fire(256, 32, 128)),
            *(pool(), _Fire(256, 48, 192), _Fire(384, 48, 192), _Fire(384, 64, 256), _Fire(512, 64, 256)),
        )

    def stages(self) -> list[nn.Module]:
        return [self.features[:2], self.features[2:5], self.features[5:8], self.features[8:]]

    def forward(self, image: Tensor) -> list[Tensor]:
        at_4 = self.features[:5](image)
        at_8 = self.features[5:8](at_4)
        at_16 = self.features[8:](at_8)
        return [at_4, at_8, at_16]


class _VGG16Encoder(nn.Module):
    """VGG16 up to conv5_3, strides 4, 8 and 16; torchvision's names, so that its ImageNet weights load as they are."""

    hidden_sizes = (256, 512, 512)

    def __init__(self):
        super().__init__()
        layers, channels = [], 3
        for depth, size in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
            if layers:
                layers.append(nn.MaxPool2d(2))
            for _ in range(depth):
                layers += [nn.Conv2d(channels, size, 3, padding=1), nn.ReLU(inplace=True)]
                channels = size
        self.features = nn.Sequential(*layers)

    def stages(self) -> list[nn.Module]:
        return [self.features[start:stop] for start, stop in ((0, 4), (4, 9), (9, 16), (16, 23), (23, 30))]

    def forward(self, image: Tensor) -> list[Tensor]:
        at_4 = self.features[:16](image)
        at_8 = self.features[16:23](at_4)
        at_16 = self.features[23:](at_8)
        return [at_4, at_8, at_16]


class BackboneEncoder(nn.Module):
    """An `AutoBackbone` of transformers, of whose feature maps those of strides 4, 8, ... are used, at most 64.

    Strides and channels are found by passing an image through a copy on the meta device, as configs do not state them.
    Of several maps with the same stride the deepest is used.

    Raises:
        ValueError: `config` does not belong to a backbone of transformers, or the backbone cannot take an image or has
            other strides.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        if getattr(config, "stage_names", None) is None:
            raise ValueError(
                f"backbone_config is a {type(config).__name__}, which names no stages: it does not belong to a "
                "backbone of transformers. Choose a family with an AutoBackbone, such as resnet, convnext or swin."
            )
        config = copy.deepcopy(config)
        if list(config.out_features) == config.stage_names[-1:]:
            config.out_features = list(config.stage_names)
        shapes = _feature_map_shapes(config)
        deepest = {PROBED_SIDE / shape[-1]: name for name, shape in shapes.items()}
        used = {stride: deepest[stride] for stride in DECODER_STRIDES if stride in deepest}
        if not used or tuple(used) != DECODER_STRIDES[: len(used)]:
            strides = ", ".join(f"{name} {PROBED_SIDE / shape[-1]:g}" for name, shape in shapes.items())
            raise ValueError(
                f"the feature maps of the {config.model_type} backbone have the strides {strides}, but the LPG's "
                "decoder needs 4, 8, 16, ... without a gap. Choose a hierarchical backbone whose finest stride is 4 "
                "(or 2), and the out_features that have these strides."
            )
        config.out_features = list(used.values())
        self.backbone = AutoBackbone.from_config(config, dtype=torch.get_default_dtype())
        self.hidden_sizes = tuple(shapes[name][1] for name in used.values())

    def stages(self) -> list[nn.Module]:
        """Embeddings, then the encoder's stages.

        Raises:
            ValueError: the backbone names its parts in another way.
        """
        network = getattr(self.backbone, self.backbone.base_model_prefix, self.backbone)
        embeddings = getattr(network, "embeddings", getattr(network, "embedder", None))
        encoder = getattr(network, "encoder", None)
        stages = getattr(encoder, "stages", getattr(encoder, "layers", None))
        if not isinstance(embeddings, nn.Module) or not isinstance(stages, nn.ModuleList):
            raise ValueError(
                f"{type(self.backbone).__name__} does not name its embeddings and encoder stages: set "
                "num_frozen_stages to 0."
            )
        return [embeddings, *stages]

    def forward(self, image: Tensor) -> list[Tensor]:
        return list(self.backbone(image).feature_maps)


def _feature_map_shapes(config: PreTrainedConfig) -> dict[str, torch.Size]:
    """Names of a backbone's feature maps -> their shapes (1, C, h, w) for a square image of PROBED_SIDE pixels."""
    try:
        with torch.device("meta"), torch.no_grad():
            backbone = AutoBackbone.from_config(config, dtype=torch.get_default_dtype()).eval()
            feature_maps = backbone(torch.empty(1, 3, PROBED_SIDE, PROBED_SIDE)).feature_maps
    except Exception as error:  # from the code of any family of transformers
        reason = str(error).strip().split("\n")[0][:200]
        raise ValueError(
            f"the {config.model_type} backbone cannot be built from its config, or cannot take an RGB image of "
            f"{PROBED_SIDE} x {PROBED_SIDE} pixels ({type(error).__name__}: {reason}). Correct backbone_config, or "
            "choose a backbone that takes images of any size."
        ) from error
    return {name: feature_map.shape for name, feature_map in zip(config.out_features, feature_maps)}


class _EncoderDecoder(nn.Module):
    """Our generator for few auxiliary images: a pretrained encoder sees the image alone; every level of the decoder
    sees the boxes and the segmenter's class probability too.

    Context levels, down to stride 64, cover large objects. The prompt (box map, class probability) is resized by area
    and concatenated at every level. It also enters through a small strided stem beside the image, which gives the
    decoder sharp edges at stride 4.
    """

    def __init__(self, config: LPGConfig):
        super().__init__()
        num_prompts = config.in_channels - 3
        self.encoder = _encoder(config)
        self.num_frozen = config.num_frozen_stages
        self._freeze()
        self.context = nn.ModuleList()
        channels = list(self.encoder.hidden_sizes)
        while len(channels) < len(DECODER_STRIDES):
            self.context.append(_conv_norm_relu(channels[-1] + num_prompts, config.context_size, 3, stride=2))
            channels.append(config.context_size)
        self.stem = nn.Sequential(
            _conv_norm_relu(config.in_channels, config.stem_size, 3, stride=2),
            _conv_norm_relu(config.stem_size, config.stem_size, 3, stride=2),
        )
        channels[0] += config.stem_size
        self.lateral = nn.ModuleList([_conv_norm_relu(c + num_prompts, config.decoder_size, 1) for c in channels])
        self.merge = nn.ModuleList([_conv_norm_relu(config.decoder_size, config.decoder_size, 3) for _ in channels])
        self.head = nn.Sequential(
            nn.Conv2d(config.decoder_size, config.head_size, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(config.head_size, 2, 1),
        )

    def train(self, mode: bool = True) -> "_EncoderDecoder":
        """Frozen stages stay in eval mode, and stay frozen where from_pretrained has put in new parameters."""
        super().train(mode)
        self._freeze()
        return self

    def _freeze(self) -> None:
        stages = self.encoder.stages() if self.num_frozen else []
        if self.num_frozen > len(stages):
            raise ValueError(
                f"num_frozen_stages={self.num_frozen}, but this encoder has {len(stages)} stages. Choose at most that."
            )
        for stage in stages[: self.num_frozen]:
            stage.requires_grad_(False).eval()

    def forward(self, prompt: Tensor, image: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        features = self.encoder(image)  # strides 4, 8, ...
        prompts = [F.avg_pool2d(prompt, 4)]
        while len(prompts) < len(DECODER_STRIDES):
            prompts.append(F.avg_pool2d(prompts[-1], 2))
        for context in self.context:  # ... 32, 64
            level = len(features) - 1
            features.append(context(torch.cat([features[level], prompts[level]], dim=1)))
        stem = self.stem(torch.cat([prompt, image], dim=1))
        features[0] = torch.cat([features[0], stem], dim=1)

        x = None
        for level in reversed(range(len(DECODER_STRIDES))):
            lateral = self.lateral[level](torch.cat([features[level], prompts[level]], dim=1))
            if x is not None:
                lateral = lateral + F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = self.merge[level](lateral)
        return self.head(x), tuple(features)


def _encoder(
    config: LPGConfig,
) -> _SqueezeNetEncoder | _VGG16Encoder | EfficientNetLite0Encoder | BackboneEncoder:
    """A module of an image -> feature maps of the strides 4, 8, ...; `hidden_sizes` are their channels."""
    if isinstance(config.backbone_config, PreTrainedConfig):  # backbone="auto"
        return BackboneEncoder(config.backbone_config)
    encoders = {
        "squeezenet": _SqueezeNetEncoder,
        "vgg16": _VGG16Encoder,
        "efficientnet_lite0": EfficientNetLite0Encoder,
    }
    return encoders[config.backbone]()


class LPGPreTrainedModel(PreTrainedModel):
    config: LPGConfig
    base_model_prefix = "lpg"
    main_input_name = "pixel_values"
    input_modalities = "image"
    supports_gradient_checkpointing = True
    _no_split_modules = ["_ResidualBlock", "_Fire", "InvertedBlock"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """PyTorch's own initialisation, as in the official code; a backbone of transformers has its own."""
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                fan_in = module.weight[0].numel()
                init.uniform_(module.bias, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))


class LPGModel(LPGPreTrainedModel):
    """Learned pseudo mask generator: which pixels inside the boxes of one class are the object.

    Source: Sec. III-B, Fig. 1.
    """

    def __init__(self, config: LPGConfig):
        super().__init__(config)
        generators = {"hourglass": _Hourglass} | dict.fromkeys(ENCODERS, _EncoderDecoder)
        self.generator = generators.get(config.backbone, _ResNetGenerator)(config)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        box_mask: Tensor | None = None,
        class_prob: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        region: tuple[slice, slice] | None = None,
    ) -> LPGOutput | tuple:
        """Logits of rest and object for every view, and the loss.

        Args:
            pixel_values: (B, 3, H, W) float RGB, normalised by the image processor; any H and W.
            box_mask: (B, 1, H, W) float, 0 outside the boxes, above 0 inside; 1 in the encoding "filled". Required.
            class_prob: (B, 1, H, W) float in [0, 1], the segmenter's softmax probability of the class; only if
                `config.use_class_prob`. None, if `config.class_prob_optional`, is the same as 0 everywhere.
            labels: (B, H, W) integer, 0 rest, 1 object, `config.semantic_loss_ignore_index` ignored.
            output_hidden_states: whether the backbone's feature maps are returned too; None: as the config says.
            return_dict: False returns a plain tuple; None: as the config says.
            region: rows and columns of the logits that are wanted; logits elsewhere are then unspecified. An hourglass
                computes its last layers there only, which is up to half of its work.

        Returns:
            [`LPGOutput`] with (B, 2, ceil(H/4), ceil(W/4)) logits, and the loss if `labels` are given: float32 cross
            entropy at the logits' resolution, weighted by `config.outside_box_loss_weight` outside the boxes and by
            `config.object_loss_weight` on the object, plus `config.dice_loss_weight` times the `box_dice` inside them.

        Raises:
            ValueError: an input is missing, is given to a model built without it, or has another size.
        """
        box_mask = self._checked_box_mask(pixel_values, box_mask, class_prob)
        if self.config.use_class_prob and class_prob is None:
            class_prob = torch.zeros_like(box_mask)
        return_dict = return_dict if return_dict is not None else self.config.return_dict
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        height, width = pixel_values.shape[2:]

        prompt = box_mask if class_prob is None else torch.cat([class_prob, box_mask], dim=1)
        prompt = self._pad(prompt.to(pixel_values.dtype))
        local = {"region": region} if region is not None and self.config.backbone == "hourglass" else {}
        logits, hidden_states = self.generator(prompt, self._pad(pixel_values), **local)
        logits = logits[:, :, : (height + 3) // 4, : (width + 3) // 4]  # integers only: an exported graph keeps them

        loss = None
        if labels is not None:
            ignored = self.config.semantic_loss_ignore_index
            weight = self._loss_weight(labels, box_mask)
            loss = pixel_cross_entropy(logits, labels, weight=weight, ignore_index=ignored)
            if self.config.dice_loss_weight > 0:
                dice = box_dice(logits, labels, box_mask[:, 0], ignore_index=ignored)
                loss = loss + self.config.dice_loss_weight * dice
        output = LPGOutput(loss=loss, logits=logits, hidden_states=hidden_states if output_hidden_states else None)
        return output if return_dict else output.to_tuple()

    def _loss_weight(self, labels: Tensor, box_mask: Tensor) -> Tensor | None:
        """(B, H, W) float, or None where all pixels weigh the same."""
        outside, inside_object = self.config.outside_box_loss_weight, self.config.object_loss_weight
        if outside == inside_object == 1:
            return None
        weight = torch.where(box_mask[:, 0] > 0, 1.0, outside)
        return torch.where(labels == 1, inside_object * weight, weight)

    def _pad(self, x: Tensor) -> Tensor:
        """Pads right and bottom to the needed multiple with 0: the mean colour, no box, no probability."""
        divisor = self.config.size_divisor
        return F.pad(x, (0, -x.shape[3] % divisor, 0, -x.shape[2] % divisor))

    def _checked_box_mask(self, pixel_values: Tensor, box_mask: Tensor | None, class_prob: Tensor | None) -> Tensor:
        """`box_mask`, once all inputs fit the model and each other."""
        if box_mask is None:
            raise ValueError("LPGModel needs box_mask (B, 1, H, W): LPGImageProcessor(images, boxes=...) makes it.")
        if self.config.requires_class_prob and class_prob is None:
            raise ValueError(
                "This LPGModel was built with use_class_prob=True: pass class_prob (B, 1, H, W), the segmenter's "
                "probability of the class, or use a stage trained with use_class_prob=False or "
                "class_prob_optional=True."
            )
        if not self.config.use_class_prob and class_prob is not None:
            raise ValueError("class_prob was given to an LPGModel built with use_class_prob=False: leave it out.")
        expected = (pixel_values.shape[0], 1, *pixel_values.shape[2:])
        for name, value in (("box_mask", box_mask), ("class_prob", class_prob)):
            if value is not None and tuple(value.shape) != expected:
                raise ValueError(
                    f"{name} has shape {tuple(value.shape)}, but pixel_values {tuple(pixel_values.shape)} need "
                    f"{expected}."
                )
        return box_mask


__all__ = ["LPGModel", "LPGOutput", "LPGPreTrainedModel"]
