"""The networks of a run: built from the settings, loaded from a stage folder, saved as one."""

import os
import shutil
import typing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

from lpg_hf._files import write_json
from lpg_hf._weight_files import check_config, reading_weights
from lpg_hf.generators.bundle import named_stage
from lpg_hf.hub import fetch_stage, write_card
from lpg_hf.hub.loading import load_network
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
from lpg_hf.models.logits import corner_stride, tf_padding_stride
from lpg_hf.models.modeling_lpg import LPGModel
from lpg_hf.training._batch_norm import freeze_batch_norms
from lpg_hf.training._optim import find_head, head_names
from lpg_hf.training.config import LPGSettings, SegmenterSettings, Settings
from lpg_hf.version import __version__


auto.register()

OWN_SEGMENTERS = {"largefov": DeepLabLargeFOVConfig, "deeplab-v2": DeepLabV2Config}
# Fields of LPGConfig in which a generator and the one that it starts from may differ.
_NOT_OF_THE_NETWORK = {
    "use_class_prob",
    "class_prob_optional",
    "num_frozen_stages",
    "outside_box_loss_weight",
    "object_loss_weight",
    "dice_loss_weight",
    "semantic_loss_ignore_index",
}
_WHOLE_IMAGE = (128, 192)  # height and width that a segmenter is tried on
_MOMENTUM_OF_THE_HEAD = 0.03  # of its norms, where those of the body are frozen
_SEGMENTER_WEIGHTS = {"largefov": load_vgg16_imagenet, "deeplab-v2": load_resnet_imagenet}


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
        mean, std = np.asarray(self.mean, dtype=np.float32), np.asarray(self.std, dtype=np.float32)
        scaled = (pixels.astype(np.float32) / 255 - mean) / std
        return np.ascontiguousarray(scaled.transpose(2, 0, 1))


def lpg_processor(settings: Settings) -> LPGImageProcessor:
    return LPGImageProcessor(**settings.lpg.processor)


def build_lpg(settings: Settings, use_class_prob: bool, previous: Path | None) -> LPGModel:
    """The generator of a stage: continued from the previous stage's, or from `lpg.init`, or built with the initial
    weights.

    A previous stage without the class probability gets a zero-initialised input channel for it; a model that is
    trained with `lpg.class_prob_dropout` also works without it. The backbone `auto` takes its config from
    `lpg.weights` if `lpg.config` has no `backbone_config`. `lpg.processor` must have the image_mean and image_std of
    the weights.

    Raises:
        ValueError: `lpg.config` has a field that LPGConfig or the backbone's config lacks, or the weights do not fit.
        OSError: `lpg.weights` or `lpg.init` does not exist.
    """
    lpg = settings.lpg
    fields: dict[str, typing.Any] = lpg.config | {
        "use_class_prob": use_class_prob,
        "class_prob_optional": use_class_prob and lpg.class_prob_dropout > 0,
    }
    _check_fields(LPGConfig, fields, "lpg.config")
    if lpg.config.get("backbone") == "auto" and lpg.weights is not None:
        fields.setdefault("backbone_config", _read_config(lpg.weights, "lpg.weights"))
    config = LPGConfig(**fields)
    if "backbone_config" in lpg.config:
        _check_fields(type(config.backbone_config), lpg.config["backbone_config"], "lpg.config.backbone_config")
    torch.manual_seed(settings.run.seed)
    model = LPGModel(config)
    if previous is not None:
        source = load_network(previous)
        model.load_state_dict(_widen_inputs(source.state_dict(), model.state_dict()))
    elif lpg.init is not None:
        _start_from(model, lpg)
    elif lpg.weights is not None:
        _load_imagenet(model, lpg, lpg.weights)
    return model


def _load_imagenet(model: LPGModel, lpg: LPGSettings, weights: str) -> None:
    backbone, generator = model.config.backbone, typing.cast(typing.Any, model.generator)
    if backbone not in ("squeezenet", "vgg16", "efficientnet_lite0", "auto") and not backbone.startswith("resnet"):
        raise ValueError(f"lpg.weights is set, but there are no ImageNet weights for {backbone!r}. Set it to null.")
    with reading_weights(weights):
        _load_encoder(backbone, generator, lpg, weights)


def _load_encoder(backbone: str, generator: typing.Any, lpg: LPGSettings, weights: str) -> None:
    if backbone in ("squeezenet", "vgg16"):
        load_encoder_imagenet(generator.encoder, weights, lpg.weights_channels)
    elif backbone == "efficientnet_lite0":
        load_efficientnet_lite0_imagenet(generator.encoder, weights)
    elif backbone == "auto":
        load_backbone_weights(generator.encoder, weights)
    else:
        load_resnet_imagenet(generator.trunk, weights)


def _start_from(model: LPGModel, lpg: LPGSettings) -> None:
    """Weights of `lpg.init`, whose network and normalisation must be those of the settings."""
    init = str(lpg.init)
    source, processor = load_lpg(init)
    expected = LPGImageProcessor(**lpg.processor)
    for name in ("image_mean", "image_std"):
        theirs, ours = (np.asarray(getattr(p, name), dtype=np.float64) for p in (processor, expected))
        if not np.allclose(theirs, ours, atol=1e-4):
            raise ValueError(
                f"lpg.processor.{name}={ours.tolist()}, but lpg.init={init} has {theirs.tolist()}: take its values."
            )
    theirs, ours = _network_fields(source.config), _network_fields(model.config)
    differing = [f"{key}: {theirs.get(key)} there, {ours[key]} here" for key in ours if theirs.get(key) != ours[key]]
    if source.config.use_class_prob and not model.config.use_class_prob:
        differing.append("use_class_prob: True there, False here")
    if differing:
        raise ValueError(
            f"the network of lpg.init={init} is not that of the settings ({'; '.join(differing)}). Set lpg.config and "
            "lpg.stage1_class_prob to its values."
        )
    model.load_state_dict(_widen_inputs(source.state_dict(), model.state_dict()))


def _network_fields(config: PreTrainedConfig) -> dict:
    """The fields that tell networks apart: neither those that all configs have, nor those that training may change."""
    fields, of_all_configs = {}, PreTrainedConfig().to_dict()
    for key, value in config.to_dict().items():
        if key not in of_all_configs and key not in _NOT_OF_THE_NETWORK:
            nested = getattr(config, key)
            fields[key] = _network_fields(nested) if isinstance(nested, PreTrainedConfig) else value
    return fields


def _widen_inputs(source: dict[str, torch.Tensor], target: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
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


def build_segmenter(settings: Settings, class_names: list[str]) -> tuple[PreTrainedModel, typing.Any]:
    """The segmenter with its initial weights, and its image processor.

    `segmenter.model` is `largefov`, `deeplab-v2`, or an AutoModelForSemanticSegmentation: a Hub id, a folder, or a
    config.json (also a folder without weights), which is built at random.

    Raises:
        ValueError: unknown fields in `segmenter.config`, weights that do not fit or are missing, or see
            `_check_crop_size`, `_check_takes_whole_images` and `head_names`.
        FileNotFoundError: a local path that does not exist.
    """
    id2label = dict(enumerate(["background", *class_names]))
    labels = {"id2label": id2label, "label2id": {name: i for i, name in id2label.items()}}
    torch.manual_seed(settings.run.seed)
    name = str(settings.segmenter.model)
    build = _own_segmenter if name in OWN_SEGMENTERS else _auto_segmenter
    model, processor = build(name, settings.segmenter, labels)
    _check_crop_size(model, settings.segmenter)
    if name not in OWN_SEGMENTERS:
        _check_takes_whole_images(model, name)
    head, momentum = find_head(model), settings.segmenter.batch_norm_momentum
    if momentum is not None:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = momentum or _MOMENTUM_OF_THE_HEAD
    if momentum == 0:
        if settings.segmenter.weights is None and not segmenter_kind(name)[1]:
            raise ValueError(
                f"segmenter.batch_norm_momentum=0 keeps the statistics of the weights, but {name} has none. Set it to "
                "null or to a share such as 0.1, or start from weights."
            )
        freeze_batch_norms(model, head)
    return model, processor


def segmenter_kind(name: str) -> tuple[str, bool]:
    """The `model_type` of a segmenter, as `build_segmenter` takes it, and whether weights belong to its name.

    Raises:
        OSError: there is no such folder, file or Hub repository.
    """
    if name in OWN_SEGMENTERS:
        return OWN_SEGMENTERS[name].model_type, False
    return _read_config(name, "the segmenter").model_type, _has_weights(name)


def _own_segmenter(name: str, settings: SegmenterSettings, labels: dict) -> tuple[PreTrainedModel, typing.Any]:
    _check_fields(OWN_SEGMENTERS[name], settings.config, "segmenter.config")
    model = AutoModelForSemanticSegmentation.from_config(OWN_SEGMENTERS[name](**settings.config, **labels))
    if settings.weights is not None:
        with reading_weights(settings.weights):
            _SEGMENTER_WEIGHTS[name](model, settings.weights)
    return model, SegformerImageProcessorPil(do_resize=False)


def _auto_segmenter(name: str, settings: SegmenterSettings, labels: dict) -> tuple[PreTrainedModel, typing.Any]:
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().exists():
        raise FileNotFoundError(
            f"segmenter.model={name} does not exist. Give a Hub id, a model folder or a config.json."
        )
    if settings.weights is not None:
        raise ValueError(
            f"segmenter.weights={settings.weights} is set, but only {' and '.join(OWN_SEGMENTERS)} start "
            f"from such a file, not {name}. Set it to null."
        )
    config = _read_config(name, "segmenter.model")
    if isinstance(config, LPGConfig):
        raise ValueError(f"{name} is a mask generator (LPG), not a segmenter. Give a folder or Hub id of a segmenter.")
    _check_fields(type(config), settings.config, "segmenter.config")
    with reading_weights(name):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **settings.config, **labels)
    if not _has_weights(name):  # the config of a half-precision checkpoint asks for its type
        return AutoModelForSemanticSegmentation.from_config(config, dtype=torch.float32), _segmenter_processor(name)
    with reading_weights(name):
        model, loaded = AutoModelForSemanticSegmentation.from_pretrained(
            name,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # the head is for other classes
            trust_remote_code=False,
            output_loading_info=True,
        )
    _check_body(model, name, {*loaded["missing_keys"], *(key for key, *_ in loaded["mismatched_keys"])})
    return model, _segmenter_processor(name)


def _check_body(model: PreTrainedModel, name: str, random: set[str]) -> None:
    """Refuses a network whose weights are not those of its folder outside the head.

    Args:
        name: of the folder or Hub repository.
        random: names of the tensors that were not loaded.

    Raises:
        ValueError: names some, and the remedy.
    """
    head = head_names(model)
    body = {key for key, value in model.state_dict().items() if key not in head and value.is_floating_point()}
    if lost := sorted(body & random):
        raise ValueError(
            f"the weights of {name} lack {len(lost)} of the {len(body)} tensors outside the head, or have them in "
            f"other shapes: {', '.join(lost[:3])}. Take the fields that change them out of segmenter.config, or give "
            "a config.json as segmenter.model to train from random weights."
        )


def _check_crop_size(model: PreTrainedModel, settings: SegmenterSettings) -> None:
    """Refuses crops in which the logits of a segmenter lie elsewhere than in use.

    Those of a segmenter that aligns corners lie on the pixels 0, 8, 16, ...; only in crops of 8n + 1 pixels are these
    the first to the last pixel, as in images. One that pads as TensorFlow does sees images in multiples of 32 pixels
    (see `lpg_hf.models.logits`).

    Raises:
        ValueError: names the next size.
    """
    size = settings.crop_size
    for stride, rest, field in (
        (corner_stride(model.config), 1, "align_corners"),
        (tf_padding_stride(model.config), 0, "tf_padding"),
    ):
        if stride is not None and size % stride != rest:
            raise ValueError(
                f"segmenter.crop_size={size}, but the logits of {settings.model} lie where they lie in use only in "
                f"crops of {stride}n{' + 1' * rest} pixels. Set it to {size + (rest - size) % stride}, or "
                f"segmenter.config.{field} to false."
            )


def _check_takes_whole_images(model: PreTrainedModel, name: str) -> None:
    """Refuses a network that takes square images alone (DPT): it would train on crops and fail on whole images.

    Raises:
        ValueError: with the network's own reason.
    """
    height, width = _WHOLE_IMAGE
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, height, width))
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{name} does not take an image of {height} x {width} pixels ({str(error).splitlines()[0]}), but images "
            "are predicted as a whole, in their own shape. Choose another segmenter.model, such as a SegFormer."
        ) from error
    finally:
        model.train(was_training)


def _read_config(source: str | Path, what: str) -> PreTrainedConfig:
    """The config in a folder, a file or a Hub repository; an error that names it and is one line long."""
    try:
        with reading_weights(source):
            if not Path(source).exists():  # on the Hub; what the config of a folder asks for is checked with it
                check_config(PreTrainedConfig.get_config_dict(source)[0], source)
            return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise OSError(
            f"{what} {source} cannot be loaded from a folder or the Hub: {str(error).splitlines()[0]}"
        ) from error


def load_segmenter(folder: Path) -> tuple[PreTrainedModel, typing.Any]:
    """A segmenter stage, in eval mode, with its image processor."""
    with reading_weights(folder):
        return load_network(folder), AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)


def load_lpg(source: str | Path, revision: str | None = None) -> tuple[LPGModel, LPGImageProcessor]:
    """An LPG stage, in eval mode, with its image processor.

    Args:
        source: folder, name of a bundled generator, or ORG/NAME on the Hub.
        revision: branch, tag or commit on the Hub; all files come from one commit.

    Raises:
        ValueError: `source` holds another kind of model, or weights that cannot be read.
        OSError: no such folder, Hub repository or revision.
    """
    folder = fetch_stage(named_stage(source), revision, kind="lpg")
    with reading_weights(folder):
        return typing.cast(LPGModel, load_network(folder)), LPGImageProcessor.from_pretrained(folder)


def save_stage(folder: Path, model: PreTrainedModel, processor: typing.Any, metrics: dict) -> None:
    """Writes a checkpoint with image processor, metrics.json and card; the folder appears when all is there."""
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


def package_versions() -> dict[str, str]:
    names = ("torch", "transformers", "datasets", "accelerate", "numpy", "pillow", "opencv-python-headless")
    return {"lpg_hf": __version__} | {name: version(name) for name in names}


def _segmenter_processor(name: str) -> typing.Any:
    """The model's own image processor as far as mean and std go; resizing and cropping are the data pipeline's."""
    if Path(name).suffix == ".json" or (
        Path(name).is_dir() and not (Path(name) / "preprocessor_config.json").is_file()
    ):
        return SegformerImageProcessorPil(do_resize=False)
    with reading_weights(name):
        processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
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
