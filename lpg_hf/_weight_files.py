"""Errors of weight files in one line, loaded or written. Loaders execute nothing that a file holds."""

import errno
import os
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError

from lpg_hf._cards import read_json


# Fields of configs that state how many layers a model has.
LAYERS = re.compile(r"depths|(num_)?(\w+_)?(layers|blocks)")
# A label map holds 65,534 classes and the background; no model has as many layers.
_MOST = 65_535
# What torch.save writes of named tensors. torch.load also calls others, which make values of any stated size.
_TENSOR_GLOBALS = re.compile(
    r"collections (OrderedDict|Counter)|torch\._utils _rebuild_(tensor|tensor_v2|parameter)|torch Size|torch [a-z]\w*"
    r"|torch(\.cuda)? (?!Typed|Untyped)\w+Storage|torch\.nn\.parameter Parameter|_codecs encode"
    r"|(builtins|__builtin__) (set|complex)"
)
_LEGACY_PICKLES = 5  # that begin a file of torch.save before its zip format: magic, protocol, system, content, keys


@contextmanager
def reading_weights(folder: str | os.PathLike) -> Iterator[None]:
    """Around `from_pretrained(..., trust_remote_code=False)` and what computes with it: a wrong value is an error.

    Args:
        folder: folder or Hub id, for the message.

    Raises:
        ValueError: the weights are damaged or more than tensors, the model needs code of its own, or a file holds
            values that make no model; one line with the remedy. Or a file is a pipe, which would be waited for, or
            names files elsewhere, which would be opened or asked for.
    """
    place = Path(folder)
    for path in place.iterdir() if place.is_dir() else [place]:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path} is a pipe or a device, not a file. Remove it")
    if place.suffix == ".json" and place.is_file():
        check_config(read_json(place), place)
    elif place.is_dir():
        check_config(read_json(place / "config.json"), place / "config.json")
        check_shards(place)
    try:
        for path in pickled_weights(place):
            check_pickle(path)
        yield
    except Exception as error:
        if not _is_damage(error):
            raise _of_config(error, folder) from error
        raise ValueError(
            f"the weights in {folder} cannot be read ({why_unreadable(error)}); nothing in them was executed. "
            "Copy or download them again, or save the model again with save_pretrained, which writes safetensors."
        ) from None  # torch's text recommends to execute the file


def check_config(config: dict, source: str | os.PathLike) -> None:
    """Refuses a config that makes a loader ask the Hub, open files elsewhere, or expand a number to that many values.

    Args:
        config: the content of config.json, before a config is made of it.
        source: file or Hub id, for the message.

    Raises:
        ValueError: one line with the remedy.
    """
    for part in inner_mappings(config):
        has_config = isinstance(part.get("backbone_config"), dict)
        is_named = part.get("backbone") is not None and part.get("model_type") != "lpg"  # an LPG's is none of the Hub
        is_timm = part.get("use_timm_backbone") is True
        if (is_named or is_timm) and not has_config or str(part.get("model_type")).startswith("timm"):
            raise ValueError(
                f"{source} names a backbone ({part.get('backbone')!r}) that timm or the Hub would be asked for. "
                "Replace it by the backbone's own config as backbone_config."
            )
        weights = part.get("transformers_weights")
        if weights is not None and not (
            _is_plain_name(weights) and re.search(r"\.safetensors(\.index\.json)?$", weights)
        ):
            raise ValueError(
                f"{source}: transformers_weights={weights!r} is not the name of a safetensors file beside it. "
                "Save the model again with save_pretrained."
            )
        for name, value in part.items():
            if str(name).endswith("_implementation") and "/" in str(value):
                raise ValueError(f"{source} has {name}={value!r}, which is code on the Hub. Remove this entry.")
            if name == "num_labels" or LAYERS.fullmatch(str(name)):
                for count in value if isinstance(value, list) else [value]:
                    if isinstance(count, (int, float)) and not abs(count) <= _MOST:
                        raise ValueError(f"{source} has {name} of {count}, above {_MOST}, the limit. Correct it.")


def inner_mappings(config: dict) -> Iterator[dict]:
    """A config and those inside it, of any depth."""
    waiting: list[Any] = [config]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            yield item
            waiting += item.values()
        elif isinstance(item, (list, tuple)):
            waiting += item


def check_shards(folder: Path) -> None:
    """Refuses weights in several files whose index names a file elsewhere, which a loader would open."""
    for index in folder.glob("*.index.json"):
        for name in _shards(index):
            if not _is_plain_name(name):
                raise ValueError(f"{index}: {name!r} is not the name of a file beside it. Save the stage again.")


def _shards(index: Path) -> list:
    shards = read_json(index).get("weight_map")
    return list(shards.values()) if isinstance(shards, dict) else [shards]


def _is_plain_name(name: object) -> bool:
    return isinstance(name, str) and bool(name) and name != ".." and not re.search(r"[/\\:\0]", name)


def pickled_weights(place: Path) -> list[Path]:
    """The files that `from_pretrained`, given this folder, or a loader, given this file, reads with `torch.load`."""
    if not place.is_dir():
        return [place] if place.is_file() and place.suffix in (".pth", ".pt", ".bin") else []
    named = {place / name for index in place.glob("*.index.json") for name in _shards(index)}
    pickled = {path for path in named if path.suffix != ".safetensors" and path.is_file()}
    return sorted(pickled | {path for path in place.glob("pytorch_model*.bin") if path.is_file()})


def check_pickle(path: Path) -> int:
    """Refuses a file of `torch.save` that `torch.load(weights_only=True)` would make much more of than it holds.

    Returns:
        The most tensors that it can hold.

    Raises:
        pickle.UnpicklingError: it is compressed or damaged, or refers to something else than tensors.
    """
    with open(path, "rb") as file:
        is_zip = file.read(4) == b"PK\3\4"
        try:
            if is_zip:
                return _check_archive(path)
            file.seek(0)
            for _ in range(_LEGACY_PICKLES):
                _check_globals(file)
        except pickle.UnpicklingError:
            raise
        except (ValueError, RuntimeError, zipfile.BadZipFile, EOFError, struct.error) as error:
            raise pickle.UnpicklingError(str(error)) from error
    return min(path.stat().st_size // 64, 10_000)


def _check_archive(path: Path) -> int:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        is_compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if is_compressed or sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise pickle.UnpicklingError("torch.save compresses nothing")
        for entry in entries:
            if entry.filename.lower().endswith(".pkl"):
                with archive.open(entry) as file:
                    _check_globals(file)
    return len(entries)


def _check_globals(file: Any) -> None:
    """Reads one pickle of a file, without making anything of it."""
    for code, value, _ in pickletools.genops(file):
        if code.name == "GLOBAL" and not _TENSOR_GLOBALS.fullmatch(str(value)):
            raise pickle.UnpicklingError(f"GLOBAL {str(value).replace(' ', '.')}")


def write_tensors(tensors: dict, file: BinaryIO) -> None:
    """`torch.save`, whose error on a full disk is the system's and not one of the archive that could not be ended.

    Raises:
        OSError: the file cannot be written.
    """
    import torch

    try:
        torch.save(tensors, file)
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        if cause is None:
            raise
        raise cause from None


def _of_config(error: Exception, folder: str | os.PathLike) -> Exception:
    """The error in one line if the files of a model caused it; else as it is."""
    text = str(error)
    if "trust_remote_code" in text:
        return ValueError(
            f"{folder} holds a model or an image processor with Python code of its own, which is not executed. "
            "Choose a model of an architecture that transformers has."
        )
    if isinstance(error, ValueError) and "\n" not in text and os.fspath(folder) in text:
        return error  # it names the file, and more than is known here
    is_of_machine = "out of memory" in text.lower() or "not enough memory" in text.lower()
    if isinstance(error, (OSError, ImportError, MemoryError)) or is_of_machine:
        return error
    lines = " ".join(line.strip() for line in text.splitlines() if line.strip())
    return ValueError(
        f"{folder} cannot be used ({type(error).__name__}: {lines[:300]}). Correct config.json or "
        "preprocessor_config.json, or save the model again with save_pretrained."
    )


def _is_damage(error: Exception) -> bool:
    """Whether this error means that the bytes of a weight file are damaged."""
    if isinstance(error, RuntimeError):  # others are a full memory, or weights of other shapes
        return re.search("PytorchStreamReader|unexpected EOF", str(error)) is not None
    if isinstance(error, OSError):  # torch seeks to before the start of an incomplete archive
        return error.errno == errno.EINVAL
    return isinstance(error, (SafetensorError, pickle.UnpicklingError, EOFError, struct.error, UnicodeDecodeError))


def why_unreadable(error: Exception) -> str:
    """The reason in a few words; torch's own text is long and tells how to execute the file."""
    blocked = re.search(r"GLOBAL ([\w.]+)", str(error))
    if blocked:
        return f"it refers to the Python object {blocked[1]}"
    if isinstance(error, pickle.UnpicklingError):
        return "the bytes are not what torch.save writes of tensors"
    lines = str(error).strip().splitlines() or ["no further detail"]
    return f"{type(error).__name__}: {lines[0][:160]}"
