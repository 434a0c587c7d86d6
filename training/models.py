"""The networks of a run: built from the settings, loaded from a stage folder, saved as one."""

import json
import os
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation, PreTrainedConfig
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

import lpg_hf
from lpg_hf.class_probs import aligns_corners
from lpg_hf.hub import fetch_stage, write_card
from lpg_hf.models import auto
from lpg_hf.models.configuration_deeplab_largefov import DeepLabLargeFOVConfig
from lpg_hf.models.configuration_deeplab_v2 import DeepLabV2Config
from lpg_hf.models.configuration_lpg import LPGConfig
from lpg_hf.models.image_processing_lpg import LPGImageProcessor
from lpg_hf.models.imagenet import (
    load_backbone_weights,
    load_efficientnet_lite0_imagenet,
    load_encoder_imagenet,
    load_resnet_imagenet,
    load_vgg16_imagenet,
)
from lpg_hf.models.modeling_lpg import LPGModel
from lpg_hf.weight_files import reading_weights
from training.config import Settings


auto.register()

OWN_SEGMENTERS = {"largefov": DeepLabLargeFOVConfig, "deeplab-v2": DeepLabV2Config}
# Fields of LPGConfig that may change when training goes on.
NOT_OF_THE_NETWORK = {
    "use_class_prob",
    "class_prob_optional",
    "num_frozen_stages",
    "outside_box_loss_weight",
    "object_loss_weight",
    "dice_loss_weight",
    "semantic_loss_ignore_index",
}
SEGMENTER_WEIGHTS = {"largefov": load_vgg16_imagenet, "deeplab-v2": load_resnet_imagenet}


@dataclass(frozen=True)
class Normalization:
    """(pixels / 255 - mean) / std per RGB channel, as the segmenter's image processor states it."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, processor) -> "Normalization":
        """Raises ValueError for a processor that swaps channels, which would need another frame of mean and std."""
        if getattr(processor, "do_flip_channel_order", False):
            raise ValueError(f"{type(processor).__name__} flips RGB to BGR; choose a segmenter that takes RGB.")
        factor = processor.rescale_factor * 255 if processor.do_rescale else 255.0
        mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0] * 3, [1.0] * 3)
        return cls(tuple(m / factor for m in mean), tuple(s / factor for s in std))

    @property
    def fill(self) -> tuple[int, ...]:
        """The mean colour, 0..255: it becomes about 0."""
        return tuple(round(m * 255) for m in self.mean)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 RGB -> (3, H, W) float32."""
        scaled = (pixels.astype(np.float32) / 255 - np.float32(self.mean)) / np.float32(self.std)
        return np.ascontiguousarray(scaled.transpose(2, 0, 1))


def lpg_processor(settings: Settings) -> LPGImageProcessor:
    return LPGImageProcessor(
        view=settings.view,
        view_size=settings.view_size,
        view_context=settings.view_context,
        box_encoding=settings.box_encoding,
        edge_radius=settings.edge_radius,
        image_mean=settings.lpg_image_mean,
        image_std=settings.lpg_image_std,
    )


def build_lpg(settings: Settings, use_class_prob: bool, previous: Path | None) -> LPGModel:
    """The generator of a stage: continued from the previous stage's, or from `lpg_init`, or built with the initial weights.

    A previous stage without the class probability gets a zero-initialised input channel for it; a model that is trained
    with `lpg_class_prob_dropout` also works without it. The backbone `auto` takes its config from `lpg_weights` if
    `lpg_config` has no `backbone_config`. `lpg_image_mean` and `lpg_image_std` must be those of the weights.

    Raises:
        ValueError: `lpg_config` has a field that LPGConfig or the backbone's config lacks, or the weights do not fit.
        OSError: `lpg_weights` or `lpg_init` does not exist.
    """
    fields = settings.lpg_config | {
        "backbone": settings.lpg_backbone,
        "use_class_prob": use_class_prob,
        "class_prob_optional": use_class_prob and settings.lpg_class_prob_dropout > 0,
    }
    _check_fields(LPGConfig, fields, "lpg_config")
    if settings.lpg_backbone == "auto" and settings.lpg_weights is not None:
        fields.setdefault("backbone_config", read_config(settings.lpg_weights, "lpg_weights"))
    config = LPGConfig(**fields)
    if "backbone_config" in settings.lpg_config:
        _check_fields(type(config.backbone_config), settings.lpg_config["backbone_config"], "backbone_config")
    torch.manual_seed(settings.seed)
    model = LPGModel(config)
    if previous is not None:
        with reading_weights(previous):
            source = LPGModel.from_pretrained(previous, dtype=torch.float32)
        model.load_state_dict(widen_inputs(source.state_dict(), model.state_dict()))
    elif settings.lpg_init is not None:
        _continue_from(model, settings)
    elif settings.lpg_weights is not None:
        if settings.lpg_backbone in ("squeezenet", "vgg16"):
            load_encoder_imagenet(model.generator.encoder, settings.lpg_weights, settings.lpg_weights_channels)
        elif settings.lpg_backbone == "efficientnet_lite0":
            load_efficientnet_lite0_imagenet(model.generator.encoder, settings.lpg_weights)
        elif settings.lpg_backbone == "auto":
            load_backbone_weights(model.generator.encoder, settings.lpg_weights)
        elif settings.lpg_backbone.startswith("resnet"):
            load_resnet_imagenet(model.generator.trunk, settings.lpg_weights)
        else:
            raise ValueError(f"lpg_weights is set, but there are no ImageNet weights for {settings.lpg_backbone!r}.")
    return model


def _continue_from(model: LPGModel, settings: Settings) -> None:
    """Weights of `lpg_init`, whose network and normalisation must be those of the settings."""
    init = settings.lpg_init
    source, processor = load_lpg(init)
    for name in ("image_mean", "image_std"):
        theirs, ours = (
            np.asarray(values, dtype=np.float64)
            for values in (getattr(processor, name), getattr(settings, f"lpg_{name}"))
        )
        if not np.allclose(theirs, ours, atol=1e-4):
            raise ValueError(
                f"lpg_{name}={ours.tolist()}, but lpg_init={init} has {theirs.tolist()}: take its values."
            )
    theirs, ours = network_fields(source.config), network_fields(model.config)
    differing = [f"{key}: {theirs.get(key)} there, {ours[key]} here" for key in ours if theirs.get(key) != ours[key]]
    if source.config.use_class_prob and not model.config.use_class_prob:
        differing.append("use_class_prob: True there, False here")
    if differing:
        raise ValueError(
            f"the network of lpg_init={init} is another than that of the settings ({'; '.join(differing)}). Set lpg_backbone, "
            "lpg_config and stage1_class_prob to its values."
        )
    model.load_state_dict(widen_inputs(source.state_dict(), model.state_dict()))


def network_fields(config: PreTrainedConfig) -> dict:
    """The fields that say which network it is: without those that all configs have, and those that training may change."""
    fields, of_all_configs = {}, PreTrainedConfig().to_dict()
    for key, value in config.to_dict().items():
        if key not in of_all_configs and key not in NOT_OF_THE_NETWORK:
            nested = getattr(config, key)
            fields[key] = network_fields(nested) if isinstance(nested, PreTrainedConfig) else value
    return fields


def widen_inputs(source: dict[str, torch.Tensor], target: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of an LPG without class probability for one with it: wherever a prompt enters, one more input channel.

    The prompt comes first in the stem ([class_prob, box_mask, R, G, B]) and last in the decoder's levels, there as
    [..., class_prob, box_mask]; the new channel starts at 0, so the widened network computes what it did before.
    """
    widened = {}
    for name, value in source.items():
        wanted = target[name].shape
        if value.shape != wanted:
            position = value.shape[1] - 1 if name.startswith(("generator.context", "generator.lateral")) else 0
            zeros = torch.zeros_like(value[:, :1])
            value = torch.cat([value[:, :position], zeros, value[:, position:]], dim=1)
        widened[name] = value
    return widened


def build_segmenter(settings: Settings, class_names: list[str]) -> tuple[nn.Module, object]:
    """The segmenter with its initial weights, and its image processor.

    `settings.segmenter` is `largefov`, `deeplab-v2`, or an AutoModelForSemanticSegmentation: a Hub id, a folder, or a
    config.json (also a folder without weights), which is built at random.

    Raises:
        ValueError: unknown fields in `segmenter_config`, weights that do not fit, or see `check_crop_size`.
        FileNotFoundError: a local path that does not exist.
    """
    id2label = dict(enumerate(["background", *class_names]))
    labels = {"id2label": id2label, "label2id": {name: i for i, name in id2label.items()}}
    torch.manual_seed(settings.seed)
    name = settings.segmenter
    if name in OWN_SEGMENTERS:
        _check_fields(OWN_SEGMENTERS[name], settings.segmenter_config, "segmenter_config")
        config = OWN_SEGMENTERS[name](**settings.segmenter_config, **labels)
        model = AutoModelForSemanticSegmentation.from_config(config)
        if settings.segmenter_weights is not None:
            SEGMENTER_WEIGHTS[name](model, settings.segmenter_weights)
        processor = SegformerImageProcessorPil(do_resize=False)
    else:
        if name.startswith((".", "/", "~")) and not Path(name).expanduser().exists():
            raise FileNotFoundError(
                f"segmenter={name} does not exist. Give a Hub id, a model folder or a config.json."
            )
        config = read_config(name, "segmenter")
        _check_fields(type(config), settings.segmenter_config, "segmenter_config")
        config = AutoConfig.from_pretrained(name, **settings.segmenter_config, **labels)
        if _has_weights(name):
            with reading_weights(name):
                model = AutoModelForSemanticSegmentation.from_pretrained(
                    name, config=config, dtype=torch.float32, ignore_mismatched_sizes=True
                )
        else:
            model = AutoModelForSemanticSegmentation.from_config(config)
        processor = _segmenter_processor(name)
    check_crop_size(model, settings)
    if settings.segmenter_batch_norm_momentum is not None:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = settings.segmenter_batch_norm_momentum
    return model, processor


def check_crop_size(model: nn.Module, settings: Settings) -> None:
    """Refuses crops in which the logits of a segmenter that aligns corners lie elsewhere than in use.

    Its logits lie on the pixels 0, 8, 16, ...; only in crops of 8n + 1 pixels are these the first to the last pixel, as in pictures
    (see `lpg_hf.class_probs.padded_size`).

    Raises:
        ValueError: names the next size.
    """
    size, stride = settings.segmenter_crop_size, getattr(model.config, "output_stride", 8)
    if aligns_corners(model) and size % stride != 1:
        raise ValueError(
            f"segmenter_crop_size={size}, but the logits of {settings.segmenter} lie on the pixels 0, {stride}, {2 * stride}, ... and "
            f"need crops of {stride}n + 1 pixels. Set it to {size + (1 - size) % stride}, or segmenter_config to "
            '"{align_corners: false}".'
        )


def read_config(source: str | Path, what: str) -> PreTrainedConfig:
    """The config in a folder, a file or a Hub repository; an error that names it and is one line long."""
    try:
        return AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise OSError(
            f"{what} {source} cannot be loaded from a folder or the Hub: {str(error).splitlines()[0]}"
        ) from error


def load_segmenter(folder: Path) -> tuple[nn.Module, object]:
    """A segmenter stage, in eval mode, with its image processor."""
    with reading_weights(folder):
        model = AutoModelForSemanticSegmentation.from_pretrained(folder, dtype=torch.float32)
    return model, AutoImageProcessor.from_pretrained(folder)


def load_lpg(source: str | Path, revision: str | None = None) -> tuple[LPGModel, LPGImageProcessor]:
    """An LPG stage, in eval mode, with its image processor.

    Args:
        source: folder, name of a bundled generator, or ORG/NAME on the Hub.
        revision: branch, tag or commit on the Hub; all files come from one commit.

    Raises:
        ValueError: `source` holds another kind of model, or weights that cannot be read.
        OSError: no such folder, Hub repository or revision.
    """
    folder = fetch_stage(source, revision, kind="lpg")
    with reading_weights(folder):
        model = LPGModel.from_pretrained(folder, dtype=torch.float32)
    return model, LPGImageProcessor.from_pretrained(folder)


def save_stage(folder: Path, model: nn.Module, processor: object, metrics: dict) -> None:
    """Writes a complete checkpoint with image processor, metrics.json and card; the folder appears when all is there."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    processor.save_pretrained(temporary)
    write_json(temporary / "metrics.json", metrics)
    write_card(temporary)
    for path in temporary.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    os.replace(temporary, folder)


def write_json(path: Path, value: dict) -> None:
    """Writes a file that appears complete or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def package_versions() -> dict[str, str]:
    names = ("torch", "transformers", "datasets", "accelerate", "numpy", "pillow", "opencv-python-headless")
    return {"lpg_hf": lpg_hf.__version__} | {name: version(name) for name in names}


def _segmenter_processor(name: str) -> object:
    """The model's own image processor as far as mean and std go; resizing and cropping are the data pipeline's."""
    if Path(name).suffix == ".json" or (
        Path(name).is_dir() and not (Path(name) / "preprocessor_config.json").is_file()
    ):
        return SegformerImageProcessorPil(do_resize=False)
    processor = AutoImageProcessor.from_pretrained(name)
    for option in ("do_resize", "do_center_crop", "do_reduce_labels"):
        if hasattr(processor, option):
            setattr(processor, option, False)
    return processor


def _has_weights(name: str) -> bool:
    path = Path(name).expanduser()
    return not path.exists() or (path.is_dir() and any(path.glob("*.safetensors*")) or any(path.glob("*.bin*")))


def _check_fields(config_class: type, fields: dict, setting: str) -> None:
    """PreTrainedConfig accepts unknown names silently, so they are checked here."""
    config = config_class()
    unknown = [name for name in fields if not hasattr(config, name)]
    if unknown:
        raise ValueError(f"{setting} has fields that {config_class.__name__} lacks: {', '.join(unknown)}.")
