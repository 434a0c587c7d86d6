"""Errors of unreadable weight files, in one line. Loaders execute nothing that a file holds."""

import errno
import os
import pickle
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError


@contextmanager
def reading_weights(folder: str | os.PathLike) -> Iterator[None]:
    """Around `from_pretrained`: damaged weights, and a pickle of more than tensors, raise an error with the remedy.

    Args:
        folder: folder or Hub id, for the message.

    Raises:
        ValueError: the weights cannot be read.
    """
    try:
        yield
    except Exception as error:
        if not _is_damage(error):
            raise
        raise ValueError(
            f"the weights in {folder} cannot be read ({why_unreadable(error)}); nothing in them was executed. "
            "Copy or download them again, or save the model again with save_pretrained, which writes safetensors."
        ) from None  # torch's text recommends to execute the file


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
