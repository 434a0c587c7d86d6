"""The network of a stage folder, whose config asks for no more than its weights hold."""

import math
import os
import re
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForSemanticSegmentation, PreTrainedConfig, PreTrainedModel

import lpg_hf.models  # noqa: F401  makes the Auto classes know our segmenters
from lpg_hf._weight_files import reading_weights
from lpg_hf.models.configuration_lpg import LPGConfig
from lpg_hf.models.modeling_lpg import LPGModel


# Fields of configs that state how many layers a model has.
_LAYERS = re.compile(r"depths|(num_)?(\w+_)?(layers|blocks)")
# What a model may have beyond twice its weights: small parts that are not saved.
_FREE_NUMBERS = 1_000_000


def load_network(folder: str | os.PathLike, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The LPG or the segmenter in a folder, in eval mode.

    A loader builds what config.json states, and takes memory for it, before it compares that with the weights: a
    number with a few zeros too many would fill the memory. It is compared first.

    Raises:
        OSError: no config.json, or no weights.
        ValueError: another kind of model, a config.json of a larger model than the weights are of, or weights that
            cannot be read; one line with the remedy.
    """
    folder = Path(folder)
    with reading_weights(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if isinstance(config, LPGConfig):
            loader = LPGModel
        elif type(config) in AutoModelForSemanticSegmentation._model_mapping:
            loader = AutoModelForSemanticSegmentation
        else:
            raise ValueError(f"{folder} holds a {config.model_type!r} model: neither an LPG nor a semantic segmenter.")
        _check_size(config, folder)
        return loader.from_pretrained(folder, config=config, dtype=dtype, trust_remote_code=False)


def _check_size(config: PreTrainedConfig, folder: Path) -> None:
    """Refuses a config of more layers than there are tensors, or of far more numbers; needs safetensors files."""
    sizes = []
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "numpy") as file:
            sizes += [math.prod(file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118
    if not sizes:
        return
    remedy = "Correct it, or save the model again with save_pretrained."
    for name, count in _layer_counts(config.to_dict()):
        if count > len(sizes):
            raise ValueError(
                f"{folder / 'config.json'} has {name} of {count} layers, but the weights hold {len(sizes)} tensors. "
                f"{remedy}"
            )
    with torch.device("meta"):
        is_lpg = isinstance(config, LPGConfig)
        model = LPGModel(config) if is_lpg else AutoModelForSemanticSegmentation.from_config(config)
    asked = sum(parameter.numel() for parameter in model.parameters())
    if asked > 2 * sum(sizes) + _FREE_NUMBERS:
        raise ValueError(
            f"{folder / 'config.json'} is of a model of {asked} numbers, but the weights hold {sum(sizes)}. {remedy}"
        )


def _layer_counts(config: dict) -> list[tuple[str, int]]:
    """(field, number of layers) of what a config and those inside it state."""
    found, waiting = [], [config]
    while waiting:
        for name, value in waiting.pop().items():
            values = value if isinstance(value, (list, tuple)) else [value]
            waiting += [item for item in values if isinstance(item, dict)]
            if _LAYERS.fullmatch(str(name)):
                found.append((str(name), sum(abs(count) for count in values if isinstance(count, int))))
    return found
