"""State dicts of the official release (`Vious/LPG_BBox_Segmentation`) into this package's checkpoints, and back.

Three kinds of network: the hourglass LPG (`pre`, `kps`, `cnvs`, `fm`), the VGG16 segmenter (`features.N`) and the
ResNet segmenter (`layer0`..`layer4`, `aspp`, below `base.` where the multi-scale wrapper was saved). The official
networks read BGR of 0..255 minus a mean. Here the image processor makes RGB of that range, and the last three input
channels of the first convolution change places; no bit of the weights changes.

Nothing in a checkpoint is executed: torch files are read with `weights_only=True`.
"""

import errno
import hashlib
import json
import logging
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, BaseImageProcessor, PreTrainedConfig, PreTrainedModel
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

from lpg_hf._cards import write_card
from lpg_hf._files import atomic_file, check_replaceable, place_output, unfinished_folder
from lpg_hf._weight_files import check_pickle, reading_weights, why_unreadable, write_tensors
from lpg_hf.hub.loading import load_network
from lpg_hf.labels import COCO_CLASSES, COCO_NONVOC_IDS, VOC_CLASSES
from lpg_hf.models.configuration_deeplab_largefov import DeepLabLargeFOVConfig
from lpg_hf.models.configuration_deeplab_v2 import DeepLabV2Config
from lpg_hf.models.configuration_lpg import LPGConfig
from lpg_hf.models.image_processing_lpg import LPGImageProcessor
from lpg_hf.models.modeling_deeplab_largefov import DeepLabLargeFOVForSemanticSegmentation
from lpg_hf.models.modeling_deeplab_v2 import DeepLabV2ForSemanticSegmentation
from lpg_hf.models.modeling_lpg import LPGModel


logger = logging.getLogger(__name__)

MODELS: dict[str, type[PreTrainedModel]] = {
    "lpg": LPGModel,
    "largefov": DeepLabLargeFOVForSemanticSegmentation,
    "deeplab-v2": DeepLabV2ForSemanticSegmentation,
}
# The first convolution under its official name, without the multi-scale wrapper's prefix.
FIRST_CONV = {"lpg": "pre.0.conv.weight", "largefov": "features.0.weight", "deeplab-v2": "layer0.0.weight"}
MSC_PREFIX = "base."
MSC_SCALES = (0.5, 0.75)  # of the official multi-scale wrapper, beside 1.0
OFFICIAL_MEAN = (122.675 / 255, 116.669 / 255, 104.008 / 255)  # RGB, of 0..1
OFFICIAL_STD = (1 / 255,) * 3  # undoes the rescaling to 0..1: the official networks see differences of 0..255
# What the official code computes with, and no weight shows.
OFFICIAL_SETTINGS = {
    "lpg": {"backbone": ("hourglass",)},
    "largefov": {"fc_dilation": (12,), "align_corners": (True,)},
    "deeplab-v2": {
        "output_stride": (4,),
        "stem_pool": (False,),
        "atrous_rates": ((6, 12, 18, 24),),
        "scales": (None, (), MSC_SCALES),
        "align_corners": (True,),
    },
}
CLASS_NAMES = {  # by num_labels: the two label lists that the official release was trained with
    21: VOC_CLASSES,
    61: tuple(name for category_id, name in COCO_CLASSES if category_id in COCO_NONVOC_IDS),
}
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "net")
_SHOWN = 8


def convert(
    checkpoint: str | os.PathLike,
    out: str | os.PathLike,
    kind: str | None = None,
    *,
    num_labels: int | None = None,
    classes: Sequence[str] | None = None,
    view_min_size: int | None = 512,
) -> dict[str, str]:
    """Write an official checkpoint as a `save_pretrained` folder with image processor, `metrics.json` and card.

    Depths, widths, input channels and number of labels are read from the weights; half-precision weights are widened.

    Args:
        checkpoint: .pth of the official release (a state dict, with or without `module.` before its names, or with
            other entries beside it), or the same tensors as .safetensors.
        out: the new folder; it appears complete or not at all.
        kind: "lpg", "largefov" or "deeplab-v2"; None: what the names say.
        num_labels: checked against the weights; 2 for an LPG, else the classes and the background.
        classes: names of the labels 1, 2, ... of a segmenter. None: 21 labels are VOC's, 61 are COCO's without VOC's.
        view_min_size: LPG; side in pixels to which an image is padded, as officially (VOC 512, COCO 640). None pads to
            what the network needs, which moves masks by up to about a pixel.

    Returns:
        What in the file was not used, and why: name -> reason.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the file cannot be read as plain tensors; tensors are missing, unknown, of another shape or type,
            or not finite; `num_labels` or `classes` do not fit; `out` is in use.
        FileExistsError: `out` holds something else than this checkpoint.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    if kind is not None and kind not in MODELS:
        raise ValueError(f"kind={kind!r} is unknown. Choose one of {', '.join(MODELS)}.")
    is_in_use = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if is_in_use and not (out / "metrics.json").is_file():
        raise ValueError(f"{out} exists and is not an empty folder. Name another one or remove it.")
    tensors, unused = read_official(checkpoint)
    official = _Official(checkpoint, tensors, _checked_kind(tensors, kind, checkpoint))
    config = _config_of(official)
    if official.kind != "lpg":
        _name_labels(config, checkpoint, classes)
    if num_labels is not None and num_labels != config.num_labels:
        raise ValueError(f"{checkpoint} has {config.num_labels} labels, not num_labels={num_labels}.")

    model = _empty_model(official, config)
    names = _official_names(model)
    _check_tensors(official, {names[name]: tensor for name, tensor in model.state_dict().items()})
    model.load_state_dict({name: _own_tensor(official, names[name]) for name in names}, assign=True)
    _write_folder(out, model, _official_processor(official.kind, view_min_size), _record(official, config))
    logger.info("%s: %d tensors from %s; not used: %s", out, len(names), checkpoint, unused or "nothing")
    return unused


def to_official(folder: str | os.PathLike, out: str | os.PathLike) -> Path:
    """Write the weights of a checkpoint folder under the official code's names, for its own scripts.

    Args:
        folder: an hourglass LPG, a LargeFOV or a DeepLab v2 segmenter with its image processor.
        out: a .pth or .safetensors file; it appears complete or not at all.

    Returns:
        `out`.

    Raises:
        FileNotFoundError: `folder` is not a checkpoint with an image processor.
        ValueError: the official code would compute something else with these weights (another architecture, another
            normalisation of the images or map of the boxes); the weights cannot be read; or the file type of `out` is
            unknown.
    """
    folder, out = Path(folder), Path(out)
    if out.suffix not in (".pth", ".safetensors"):
        raise ValueError(f"{out} has the type {out.suffix!r}; use .pth or .safetensors.")
    check_replaceable(out)
    for name in ("config.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} holds no {name}: give the folder of a saved model with its image processor."
            )
    with reading_weights(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    kinds = [kind for kind, model_class in MODELS.items() if model_class.config_class is type(config)]
    if not kinds:
        raise ValueError(f"{folder} holds a {config.model_type!r} model; the official code knows {', '.join(MODELS)}.")
    kind = kinds[0]
    _check_official_behaviour(config, processor, kind, folder)

    model = load_network(folder)
    names = _official_names(model)
    state_dict = model.state_dict()
    tensors = {official: state_dict[name].contiguous() for name, official in names.items()}
    first = _first_conv(tensors, kind)
    tensors[first] = _swap_red_and_blue(tensors[first])
    with atomic_file(out) as file:
        if out.suffix == ".safetensors":
            file.write(save(tensors))
        else:
            write_tensors(tensors, file)
    return out


def _empty_model(official: "_Official", config: PreTrainedConfig) -> PreTrainedModel:
    """The network without memory for its weights; ValueError if their sizes make none."""
    try:
        with torch.device("meta"):
            return MODELS[official.kind](config).eval()
    except Exception as error:  # torch raises many types for sizes that make no layer
        raise ValueError(
            f"{official.checkpoint} does not fit the official {official.kind!r} network: the sizes of its tensors "
            f"make none ({str(error).splitlines()[0]})."
        ) from error


def read_official(checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The named tensors of a file, without executing anything in it.

    Args:
        checkpoint: a .safetensors file, or a file of `torch.save` in its zip or its older format.

    Returns:
        The state dict, its names without `module.`; and what else the file holds: name -> why it is not used.

    Raises:
        FileNotFoundError, ValueError: as for `convert`.
    """
    if not checkpoint.is_file():
        raise FileNotFoundError(f"{checkpoint} is not a file. Give an official checkpoint (.pth or .safetensors).")
    try:
        if checkpoint.suffix == ".safetensors":
            content = load_file(checkpoint)
        else:
            check_pickle(checkpoint)
            with warnings.catch_warnings():  # torch warns of a pickle protocol before it refuses the file
                warnings.simplefilter("ignore")
                content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged or foreign bytes can lead the two readers to any error
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # torch seeks to before an incomplete file
            raise
        raise ValueError(
            f"{checkpoint} cannot be read as plain tensors ({why_unreadable(error)}); nothing in it was executed. "
            "Give an undamaged file written with torch.save(model.state_dict(), ...)."
        ) from None

    unused: dict[str, str] = {}
    if isinstance(content, Mapping) and not _is_state_dict(content):
        nested = [key for key, value in content.items() if _is_state_dict(value)]
        preferred = [key for key in _STATE_DICT_KEYS if key in nested] or nested
        if len(nested) > 1 and preferred[0] not in _STATE_DICT_KEYS:
            raise ValueError(
                f"{checkpoint} holds several state dicts: {', '.join(map(str, nested))}. Save one of them alone."
            )
        if nested:
            unused = {str(key): "beside the state dict, not a weight" for key in content if key != preferred[0]}
            content = content[preferred[0]]
    if not _is_state_dict(content):
        raise ValueError(
            f"{checkpoint} holds no state dict (name -> tensor). Save it with torch.save(model.state_dict(), ...)."
        )
    odd = next((name for name, tensor in content.items() if not _holds_its_values(tensor)), None)
    if odd is not None:
        raise ValueError(
            f"{checkpoint} cannot be read as plain tensors ({odd} is sparse, quantized or repeats values). "
            "Save it with torch.save(model.state_dict(), ...)."
        )
    prefix = "module." if all(name.startswith("module.") for name in content) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in content.items()}, unused


def _swap_red_and_blue(weight: Tensor) -> Tensor:
    """(O, I, k, k) weights of a first convolution with the last three of its input channels in the opposite order."""
    return torch.cat([weight[:, :-3], weight[:, -3:].flip(1)], dim=1)


def _holds_its_values(tensor: Tensor) -> bool:
    """Whether a tensor is an ordinary one with a number in the file for each of its values."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _is_state_dict(value: Any) -> TypeGuard[Mapping[str, Tensor]]:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )


def _first_conv(tensors: Mapping[str, Tensor], kind: str) -> str:
    """Name of the first convolution in this state dict."""
    return MSC_PREFIX + FIRST_CONV[kind] if MSC_PREFIX + FIRST_CONV[kind] in tensors else FIRST_CONV[kind]


def _checked_kind(tensors: Mapping[str, Tensor], kind: str | None, checkpoint: Path) -> str:
    named = [other for other in MODELS if _first_conv(tensors, other) in tensors]
    if not named:
        raise ValueError(
            f"{checkpoint} is not an official checkpoint: it has none of {', '.join(FIRST_CONV.values())}. "
            f"Its first tensor is {next(iter(tensors))!r}."
        )
    if kind not in (None, *named):
        raise ValueError(f"{checkpoint} is not of kind {kind!r}; its names are those of kind {named[0]!r}.")
    return kind or named[0]


@dataclass(frozen=True)
class _Official:
    """The named tensors of an official checkpoint of a known kind."""

    checkpoint: Path
    tensors: Mapping[str, Tensor]
    kind: str

    @property
    def first_conv(self) -> str:
        return _first_conv(self.tensors, self.kind)

    @property
    def prefix(self) -> str:
        """`base.` where the multi-scale wrapper was saved, else nothing."""
        return MSC_PREFIX if self.first_conv.startswith(MSC_PREFIX) else ""

    def size(self, name: str, default: int, dim: int = 0) -> int:
        """Length of one dimension of a tensor, or the default if the tensor is missing."""
        tensor = self.tensors.get(name)
        return tensor.shape[dim] if tensor is not None and tensor.dim() > dim else default

    def count(self, prefix: str) -> int:
        """How many numbers follow the prefix in names; a gap is then a missing tensor, however large the numbers."""
        matches = (re.match(re.escape(prefix) + r"(\d+)\.", name) for name in self.tensors)
        return len({match[1] for match in matches if match})


def _config_of(official: _Official) -> PreTrainedConfig:
    """The architecture that the weights have; where a tensor is missing, the published one."""
    channels = official.size(official.first_conv, 0, dim=1)
    allowed = (4, 5) if official.kind == "lpg" else (3,)
    if channels not in allowed:
        raise ValueError(
            f"{official.first_conv} of {official.checkpoint} has {channels} input channels, expected "
            f"{' or '.join(map(str, allowed))}."
        )
    if official.kind == "lpg":
        return _lpg_config(official, use_class_prob=channels == 5)
    return _largefov_config(official) if official.kind == "largefov" else _deeplab_v2_config(official)


def _lpg_config(official: _Official, use_class_prob: bool) -> LPGConfig:
    published, size = LPGConfig(), official.size
    level, hidden_sizes, depths = "kps.0.", [], []
    innermost_size = published.hidden_sizes[-1]
    while depth := official.count(f"{level}up1."):
        hidden_sizes.append(size(f"{level}up1.0.conv1.weight", published.hidden_sizes[0]))
        depths.append(depth)
        innermost_size = size(f"{level}low1.0.conv1.weight", published.hidden_sizes[-1])
        level += "low2."
    if not depths:
        return LPGConfig(use_class_prob=use_class_prob)
    return LPGConfig(
        use_class_prob=use_class_prob,
        embedding_size=size("pre.0.conv.weight", published.embedding_size),
        hidden_sizes=[*hidden_sizes, innermost_size],
        depths=[*depths, official.count(level) or published.depths[-1]],
        neck_size=size("cnvs.0.conv.weight", published.neck_size),
        head_size=size("fm.0.0.conv.weight", published.head_size),
    )


def _largefov_config(official: _Official) -> DeepLabLargeFOVConfig:
    matches = (re.match(r"features\.(\d+)\.", name) for name in official.tensors)
    stages: list[list[int]] = []
    # Within a stage every other layer is a convolution; a pool or dropout makes the gap wider.
    for number in sorted({int(match[1][:9]) for match in matches if match}):
        if stages and number - stages[-1][-1] == 2:
            stages[-1].append(number)
        else:
            stages.append([number])
    if len(stages) != 8 or any(len(stage) > 1 for stage in stages[5:]):
        config = DeepLabLargeFOVConfig()
        config.num_labels = official.size("features.38.bias", 21)
        return config
    lasts = [f"features.{stage[-1]}" for stage in stages]
    widths = [official.size(f"{last}.bias", 0) or official.size(f"{last}.weight", 0) for last in lasts]
    config = DeepLabLargeFOVConfig(
        depths=[len(stage) for stage in stages[:5]], hidden_sizes=widths[:5], fc_size=widths[5]
    )
    config.num_labels = widths[7]
    return config


def _deeplab_v2_config(official: _Official) -> DeepLabV2Config:
    published, prefix = DeepLabV2Config(), official.prefix
    basic = f"{prefix}layer1.0.conv2.weight" in official.tensors
    basic = basic and f"{prefix}layer1.0.conv3.weight" not in official.tensors
    last_conv = "conv2" if basic else "conv3"
    config = DeepLabV2Config(
        block="basic" if basic else "bottleneck",
        depths=[official.count(f"{prefix}layer{i}.") or depth for i, depth in enumerate(published.depths, 1)],
        stem_size=official.size(f"{prefix}layer0.0.weight", published.stem_size),
        hidden_sizes=[
            official.size(f"{prefix}layer{i}.0.{last_conv}.weight", width)
            for i, width in enumerate(published.hidden_sizes, 1)
        ],
        # Parity: the official network has no max-pool after its stem, so its stride is 4, not 8.
        stem_pool=False,
        output_stride=4,
        scales=MSC_SCALES if prefix else None,
    )
    config.num_labels = official.size(f"{prefix}aspp.c0.weight", 21)
    return config


def _name_labels(config: PreTrainedConfig, checkpoint: Path, classes: Sequence[str] | None) -> None:
    num_labels = len(config.id2label or ())
    if classes is not None and len(classes) != num_labels - 1:
        raise ValueError(
            f"{checkpoint} has {num_labels} labels: the background and {num_labels - 1} classes, "
            f"but {len(classes)} names are given."
        )
    names = classes if classes is not None else CLASS_NAMES.get(num_labels)
    names = [f"class_{label}" for label in range(1, num_labels)] if names is None else names
    config.id2label = dict(enumerate(["background", *names]))
    config.label2id = {name: label for label, name in config.id2label.items()}


def _official_names(model: PreTrainedModel) -> dict[str, str]:
    """Our name -> official name, of every tensor of the model."""
    if isinstance(model, LPGModel):
        rules = [
            (r"^generator\.", ""),
            (r"^stem\.0\.0\.", "pre.0.conv."),
            (r"^stem\.0\.1\.", "pre.0.bn."),
            (r"^stem\.1\.", "pre.1."),
            (r"^hourglass\.", "kps.0."),
            (r"^neck\.0\.", "cnvs.0.conv."),
            (r"^neck\.1\.", "cnvs.0.bn."),
            (r"^head\.0\.", "fm.0.0.conv."),
            (r"^head\.2\.", "fm.0.1."),
            (r"\.conv([12])\.0\.", r".conv\1."),  # inside a residual block
            (r"\.conv([12])\.1\.", r".bn\1."),
        ]
    elif isinstance(model, DeepLabLargeFOVForSemanticSegmentation):
        fc8 = sum(len(list(stage.children())) for stage in model.features)  # 38 in VGG16: the layer after all others
        rules = [(r"^features\.\w+\.", "features."), (r"^classifier\.", f"features.{fc8}.")]
    else:
        prefix = MSC_PREFIX if model.config.scales else ""
        rules = [
            (r"^backbone\.conv1\.", f"{prefix}layer0.0."),
            (r"^backbone\.bn1\.", f"{prefix}layer0.1."),
            (r"^backbone\.", prefix),
            (r"^classifier\.convs\.", f"{prefix}aspp.c"),
        ]
    names = {}
    for name in model.state_dict():
        official = name
        for pattern, replacement in rules:
            official = re.sub(pattern, replacement, official)
        names[name] = official
    return names


def _check_tensors(official: _Official, expected: Mapping[str, Tensor]) -> None:
    """Raises one ValueError that names every kind of problem."""
    problems: dict[str, list[str]] = {"missing": [], "unknown": [], "of another shape": [], "of another type": []}
    problems["not finite"] = []
    for name, target in expected.items():
        if name not in official.tensors:
            if not name.endswith("num_batches_tracked"):  # absent from files older than torch 0.4.1
                problems["missing"].append(f"{name} {tuple(target.shape)}")
            continue
        tensor = official.tensors[name]
        if tensor.shape != target.shape:
            problems["of another shape"].append(f"{name} {tuple(tensor.shape)}, expected {tuple(target.shape)}")
        elif tensor.dtype not in (_DTYPES if target.is_floating_point() else (torch.int64,)):
            problems["of another type"].append(f"{name} {tensor.dtype}, expected {target.dtype}")
        elif tensor.is_floating_point() and not tensor.isfinite().all():
            problems["not finite"].append(name)
    problems["unknown"] = [name for name in official.tensors if name not in expected]
    if any(problems.values()):
        listed = [
            f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
            for what, names in problems.items()
            if names
        ]
        raise ValueError(
            f"{official.checkpoint} does not fit the official {official.kind!r} network; nothing was written. "
            f"Tensors {'; '.join(listed)}."
        )


def _own_tensor(official: _Official, name: str) -> Tensor:
    """The tensor as our model holds it: float32, storage of its own, first convolution for RGB."""
    if name not in official.tensors:
        return torch.zeros((), dtype=torch.int64)  # num_batches_tracked
    tensor = official.tensors[name]
    if name == official.first_conv:
        tensor = _swap_red_and_blue(tensor)
    return (tensor.float() if tensor.is_floating_point() else tensor).clone(memory_format=torch.contiguous_format)


def _official_processor(kind: str, view_min_size: int | None) -> BaseImageProcessor:
    mean, std = list(OFFICIAL_MEAN), list(OFFICIAL_STD)
    if kind == "lpg":
        return LPGImageProcessor(
            view="image", align_corners=True, view_min_size=view_min_size, image_mean=mean, image_std=std
        )
    return SegformerImageProcessorPil(do_resize=False, image_mean=mean, image_std=std)


def _record(official: _Official, config: PreTrainedConfig) -> dict:
    """`metrics.json` of a converted checkpoint."""
    record = {
        "kind": "lpg" if official.kind == "lpg" else "segmenter",
        "settings": {
            "origin": "converted from a checkpoint of the official code (Vious/LPG_BBox_Segmentation); not trained by "
            "lpg_hf",
            "file": official.checkpoint.name,
            "sha256": hashlib.sha256(official.checkpoint.read_bytes()).hexdigest(),
            "licence of the weights": "as their authors say; the official repository's MIT licence covers its code",
        },
    }
    if official.kind != "lpg":
        record["classes"] = list((config.id2label or {}).values())[1:]
    return record


def _check_official_behaviour(
    config: PreTrainedConfig, processor: BaseImageProcessor, kind: str, folder: Path
) -> None:
    """Raises ValueError where the official code, given the weights, would not compute what this checkpoint does."""
    differences = []
    for name, allowed in OFFICIAL_SETTINGS[kind].items():
        value = getattr(config, name)
        value = tuple(value) if isinstance(value, list) else value
        if value not in allowed:
            differences.append(f"{name}={value!r}, officially {' or '.join(map(repr, allowed))}")
    for name, wanted in (("view", "image"), ("box_encoding", "filled")):
        value = getattr(processor, name, wanted)
        if isinstance(processor, LPGImageProcessor) and value != wanted:
            differences.append(f"{name}={value!r}, officially {wanted!r}")
    for name, wanted in (("image_mean", OFFICIAL_MEAN), ("image_std", OFFICIAL_STD)):
        # To 0..255, where the official mean is stated in thousandths.
        value = [v / processor.rescale_factor for v in getattr(processor, name)]
        if max(abs(a - b * 255) for a, b in zip(value, wanted)) > 1e-3:
            shown = ", ".join(f"{v:.3f}" for v in value)
            differences.append(
                f"{name} is ({shown}) of 0..255, officially ({', '.join(f'{v * 255:.3f}' for v in wanted)})"
            )
    if differences:
        raise ValueError(f"The official code cannot run {folder}: {'; '.join(differences)}.")


def _write_folder(out: Path, model: PreTrainedModel, processor: BaseImageProcessor, record: dict) -> None:
    with unfinished_folder(out) as work:
        folder = work / out.name
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        (folder / "metrics.json").write_text(text, encoding="utf-8")
        write_card(folder)
        if not place_output(folder, out):
            logger.warning("%s holds this checkpoint already; nothing was written", out)


__all__ = ["convert", "read_official", "to_official"]
