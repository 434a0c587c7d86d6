"""The network of a stage folder, whose config asks for no more than its weights hold."""

import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from torch.nn.modules.module import register_module_module_registration_hook
from transformers import AutoConfig, AutoModelForSemanticSegmentation, PreTrainedConfig, PreTrainedModel

import lpg_hf.models  # noqa: F401  makes the Auto classes know our segmenters
from lpg_hf._weight_files import LAYERS, check_pickle, inner_mappings, pickled_weights, reading_weights
from lpg_hf.models.configuration_lpg import LPGConfig
from lpg_hf.models.modeling_lpg import LPGModel


# What a model may have beyond twice its weights: small parts that are not saved.
_FREE_NUMBERS = 1_000_000
_MODULES_PER_TENSOR, _FREE_MODULES = 4, 1_000
_REMEDY = "Correct it, or save the model again with save_pretrained."


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
    """Refuses a config of more layers or modules than the weights can have, or of far more numbers."""
    num_tensors, numbers = _size_of_weights(folder)
    if not num_tensors:
        raise FileNotFoundError(
            f"{folder} holds no weights: neither model.safetensors nor pytorch_model.bin. Save the model again with "
            "save_pretrained."
        )
    for name, count in _layer_counts(config.to_dict()):
        if count > num_tensors:
            raise ValueError(
                f"{folder / 'config.json'} has {name} of {count} layers, but the weights hold {num_tensors} tensors. "
                f"{_REMEDY}"
            )
    with torch.device("meta"), _limited_modules(_MODULES_PER_TENSOR * num_tensors + _FREE_MODULES, folder):
        is_lpg = isinstance(config, LPGConfig)
        model = LPGModel(config) if is_lpg else AutoModelForSemanticSegmentation.from_config(config)
    asked = sum(parameter.numel() for parameter in model.parameters())
    if asked > 2 * numbers + _FREE_NUMBERS:
        raise ValueError(
            f"{folder / 'config.json'} is of a model of {asked} numbers, but the weights hold {numbers}. {_REMEDY}"
        )


def _size_of_weights(folder: Path) -> tuple[int, int]:
    """(number of tensors, numbers in them) of the safetensors files, else the most that pickled weights can hold."""
    sizes = []
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "numpy") as file:
            sizes += [math.prod(file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118
    if sizes:
        return len(sizes), sum(sizes)
    pickled = pickled_weights(folder)
    return sum(map(check_pickle, pickled)), sum(path.stat().st_size // 2 for path in pickled)


@contextmanager
def _limited_modules(most: int, folder: Path) -> Iterator[None]:
    """Inside, ValueError where this thread makes more modules: a config counts layers in fields of any name."""
    thread, made = threading.get_ident(), 0

    def count(*_: object) -> None:
        nonlocal made
        made += threading.get_ident() == thread
        if made > most:
            raise ValueError(
                f"{folder / 'config.json'} makes more than {most} modules, too many for its weights. {_REMEDY}"
            )

    handle = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _layer_counts(config: dict) -> list[tuple[str, int]]:
    """(field, number of layers) of what a config and those inside it state."""
    found = []
    for part in inner_mappings(config):
        for name, value in part.items():
            if LAYERS.fullmatch(str(name)):
                values = value if isinstance(value, (list, tuple)) else [value]
                found.append((str(name), sum(abs(count) for count in values if isinstance(count, int))))
    return found
