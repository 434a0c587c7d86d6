"""The proposals of a file of MCG: two variables of a MAT-file of version 5.

scipy's reader is not taken, as it ends the process on a damaged file, and reserves whatever memory a file asks for.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from lpg_hf._files import read_bytes
from lpg_hf._rle import Rle, encode_mask


# The types of what a MAT-file holds ("MAT-File Format" of MathWorks): of numbers, as numpy names them, and two others.
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_MATRIX, _COMPRESSED = 14, 15
# The classes of a matrix: cells, and numbers from double to uint64.
_CELLS, _NUMBER_CLASSES = 1, range(6, 16)
_COMPLEX = 0x800
# Bytes of a file when it is unpacked: so many, and so many for each pixel of its image.
_UNPACKED_BYTES = 2**27
_UNPACKED_BYTES_PER_PIXEL = 8
_MOST_PROPOSALS = 100_000  # of an image; MCG has some thousands


def read_mcg(path: Path, size: tuple[int, int]) -> list[Rle]:
    """The proposals of an image.

    Args:
        size: (height, width) of the image.

    Raises:
        ValueError: it is no such file, is damaged, or is of another image; names it.
    """
    data = read_bytes(path)
    try:
        superpixels, labels = _read_variables(data, size)
    except (ValueError, struct.error, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as a MAT-file: {error}. Copy or make it again.") from error
    if superpixels is None or labels is None:
        raise ValueError(f"{path} lacks superpixels or labels, which MCG's proposals have.")
    if superpixels.shape != size:
        raise ValueError(
            f"{path} has superpixels of {superpixels.shape}, but the image's height and width are {size}: it is the "
            "file of another image."
        )
    try:
        superpixels = _whole_numbers(superpixels, math.prod(size))
    except ValueError as error:
        raise ValueError(f"{path}: superpixels {error}, the pixels of its image.") from error
    last, masks = int(superpixels.max()), []
    for number, joined in enumerate(labels):
        chosen = np.zeros(last + 1, dtype=bool)
        try:
            chosen[_whole_numbers(joined, last).ravel()] = True
        except ValueError as error:
            raise ValueError(f"{path}: labels of proposal {number} {error}, the last superpixel.") from error
        masks.append(encode_mask(chosen[superpixels]))
    return masks


def _whole_numbers(values: np.ndarray, last: int) -> np.ndarray:
    """The values as int64.

    Raises:
        ValueError: they are no whole numbers from 0 to `last`.
    """
    if values.size == 0 or 0 <= values.min() <= values.max() <= last:
        numbers = values.astype(np.int64)
        if (numbers == values).all():
            return numbers
    raise ValueError(f"must hold whole numbers from 0 to {last}")


def _read_variables(data: bytes, size: tuple[int, int]) -> tuple[np.ndarray | None, list[np.ndarray] | None]:
    """`superpixels`, and an array for each item of `labels`; None if there is none.

    Raises:
        ValueError, struct.error, zlib.error: the file is damaged, of another version, or larger than its image needs.
    """
    if len(data) < 128 or data[124:128] not in (b"\0\1IM", b"\1\0MI"):
        raise ValueError("it is not of version 5 to 7, which MATLAB saves with '-v7'")
    order = "<" if data[126:128] == b"IM" else ">"
    left = _UNPACKED_BYTES + _UNPACKED_BYTES_PER_PIXEL * math.prod(size)
    superpixels = labels = None
    for kind, variable in _elements(memoryview(data)[128:], order):
        if kind == _COMPRESSED:
            unpacked = zlib.decompressobj().decompress(variable, left + 1)
            left -= len(unpacked)
            if left < 0:
                raise ValueError("it is far larger when it is unpacked than proposals of its image are")
            kind, variable = next(_elements(memoryview(unpacked), order), (0, variable))
        name, class_number, shape, content = _matrix(kind, variable, order)
        if name == b"labels" and math.prod(shape) > _MOST_PROPOSALS:
            raise ValueError(f"labels states {math.prod(shape)} proposals, but an image has at most {_MOST_PROPOSALS}")
        if name == b"superpixels":
            superpixels = _array(class_number, shape, content, order, name)
        elif name == b"labels" and class_number == _CELLS:
            cells = [_matrix(kind, cell, order)[1:] for kind, cell in islice(content, _MOST_PROPOSALS + 1)]
            if len(cells) != math.prod(shape):
                raise ValueError(f"labels states {shape} cells and holds {len(cells)}")
            places = np.arange(len(cells)).reshape(shape, order="F").ravel()
            labels = [_array(*cells[place], order, name) for place in places]
        elif name == b"labels":
            labels = list(_array(class_number, shape, content, order, name).ravel())
    return superpixels, labels


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """(type, bytes) of what lies in a piece of a MAT-file.

    Raises:
        ValueError, struct.error: it ends early.
    """
    position = 0
    while position < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, position)
        start, end = position + 8, position + 8 + size
        if kind >> 16:  # up to 4 bytes lie in the tag itself
            kind, size = kind & 0xFFFF, kind >> 16
            start, end = position + 4, position + 4 + size
        if end > len(data) or (start == position + 4 and size > 4):
            raise ValueError("it ends in the middle of a variable")
        yield kind, data[start:end]
        position = end if kind == _COMPRESSED else -(-end // 8) * 8


def _matrix(
    kind: int, data: memoryview, order: str
) -> tuple[bytes, int, tuple[int, ...], Iterator[tuple[int, memoryview]]]:
    """Name, class, shape and what follows of a variable or cell; a complex one has the class 0."""
    if kind != _MATRIX:
        raise ValueError(f"it holds the type {kind} in the place of a matrix")
    if not data:  # an empty cell
        return b"", _NUMBER_CLASSES[0], (0, 0), iter([(9, data)])
    elements = _elements(data, order)
    parts = list(islice(elements, 3))
    if len(parts) < 3:
        raise ValueError("a variable lacks its class, shape or name")
    (flags,) = struct.unpack_from(f"{order}I", parts[0][1])
    shape = tuple(np.frombuffer(parts[1][1], f"{order}i4").tolist())
    return bytes(parts[2][1]), 0 if flags & _COMPLEX else flags & 0xFF, shape, elements


def _array(
    class_number: int, shape: tuple[int, ...], content: Iterator[tuple[int, memoryview]], order: str, name: bytes
) -> np.ndarray:
    """The numbers of a variable or cell, which lie column by column."""
    parts = list(islice(content, 2))
    if class_number not in _NUMBER_CLASSES or len(parts) != 1 or parts[0][0] not in _NUMBERS:
        raise ValueError(f"{name.decode()} holds something else than arrays of numbers")
    numbers = np.frombuffer(parts[0][1], order + _NUMBERS[parts[0][0]])
    if min(shape, default=0) < 0 or math.prod(shape) != len(numbers):
        raise ValueError(f"{name.decode()} states the shape {shape} and holds {len(numbers)} numbers")
    return numbers.reshape(shape, order="F")
