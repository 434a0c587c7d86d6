"""Errors of weight files in one line, loaded or written. Loaders execute nothing that a file holds."""

import errno
import os
import pickle
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError


@contextmanager
def reading_weights(folder: str | os.PathLike) -> Iterator[None]:
    """Around `from_pretrained(..., trust_remote_code=False)` and what computes with it: a wrong value is an error.

    Args:
        folder: folder or Hub id, for the message.

    Raises:
        ValueError: the weights are damaged or more than tensors, the model needs code of its own, or a file holds
            values that make no model; one line with the remedy. Or a file is a pipe, which would be waited for.
    """
    place = Path(folder)
    for path in place.iterdir() if place.is_dir() else [place]:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path} is a pipe or a device, not a file. Remove it")
    try:
        yield
    except Exception as error:
        if not _is_damage(error):
            raise _of_config(error, folder) from error
        raise ValueError(
            f"the weights in {folder} cannot be read ({why_unreadable(error)}); nothing in them was executed. "
            "Copy or download them again, or save the model again with save_pretrained, which writes safetensors."
        ) from None  # torch's text recommends to execute the file


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
