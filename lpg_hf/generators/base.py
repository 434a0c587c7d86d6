"""What every generator of masks takes and gives.

A generator turns images with boxes into patches of foreground probability, and hands them out one at a time, so that
an image with very many boxes does not fill the memory.
"""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from lpg_hf.boxes import box_slices
from lpg_hf.devices import resolve_dtype, usable_device
from lpg_hf.images import PAD_MULTIPLE


if TYPE_CHECKING:
    import torch
    from torch import nn

GRANULARITIES = ("class", "instance")


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raises ValueError if `value` is not among those allowed."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is unknown. Choose one of {', '.join(allowed)}.")


@dataclass(frozen=True)
class GeneratorOptions:
    """How a generator is loaded; made where a call enters, and passed whole.

    Attributes:
        model: LPG stage, a Hub id, a folder or the name of a bundled one; only for "lpg". None: lpg-base.
        segmenter: Hub id or folder of the segmenter that gives the LPG its class probability; only for "lpg".
        class_names: names of the boxes' classes in the order of their labels; they are looked up in the segmenter.
        batch_size: views (LPG) or boxes (SAM, saliency) per forward pass.
        flip: the LPG also sees each view mirrored, and averages: better masks in twice the time; only for "lpg".
        device: "cpu", "cuda", ...; None: a GPU if there is one.
        dtype: "float32", "bfloat16", "float16", or "auto": bfloat16 where the hardware computes in it, else float32.
        revision: branch, tag or commit of `model`, or of the SAM model, on the Hub.
    """

    model: str | os.PathLike | None = None
    segmenter: str | os.PathLike | None = None
    class_names: tuple[str, ...] | None = None
    batch_size: int = 16
    flip: bool = False
    device: str | None = None
    dtype: str = "auto"
    revision: str | None = None

    def placement(self) -> "tuple[str, torch.dtype]":
        """The device and the type to compute in.

        Raises:
            ValueError: a device that does not exist, or an unknown type.
        """
        device = usable_device(self.device)
        return device, resolve_dtype(self.dtype, device)


@dataclass(frozen=True)
class BoxedImage:
    """An image and the boxes whose masks are wanted.

    Args:
        image: (H, W, 3) uint8 RGB, upright.
        boxes: (N, 4) float32 xyxy, pixels, inside the image, each with an area; N may be 0.
        labels: (N,) int64 class ids, 1-based.
        class_probs: class id -> (h, w) probability of a segmenter over the whole image, float32 in [0, 1] or uint8 in
            [0, 255], at any resolution; for generators that use one.
        regions: index of a box -> x, y, x, y, ... in pixels: the quadrilateral that the masks of the box are cut to.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    class_probs: Mapping[int, np.ndarray] | None = None
    regions: Mapping[int, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Patch:
    """Foreground of one box, or of several boxes of one class, in a window of the image.

    Args:
        label: class id.
        boxes: positions in `BoxedImage.boxes` of the boxes that it belongs to.
        rows, columns: the window, inside the image.
        foreground: (rows, columns) float32 probability in [0, 1], 0 outside the boxes (Eq. (7)).
    """

    label: int
    boxes: tuple[int, ...]
    rows: slice
    columns: slice
    foreground: np.ndarray


class MaskGenerator(ABC):
    """A method that makes masks from boxes."""

    @abstractmethod
    def patches(self, images: Sequence[BoxedImage], per: str) -> Iterator[tuple[int, Patch]]:
        """The foreground of some images; several threads may call it at the same time.

        Args:
            images: what one forward pass may combine; the result depends on no other image.
            per: "instance": one patch per box, which knows nothing of the other boxes of its class. "class": patches
                that may stand for all boxes of a class together, whichever the method does best. Patches of a class
                are merged by their maximum. Each box belongs to one patch.

        Yields:
            (position in `images`, patch), images in their order.
        """

    def settings(self) -> dict:
        """What the masks depend on, as json values; an interrupted run resumes only with the same."""
        return {name: value for name, value in vars(self).items() if isinstance(value, (bool, int, float, str))}


class BoxByBoxGenerator(MaskGenerator):
    """A method that looks at one box at a time; both granularities give one patch per box."""

    @abstractmethod
    def foreground(self, image: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
        """The foreground inside one box.

        Args:
            image: (H, W, 3) uint8 RGB.
            rows, columns: the pixels that the box touches.

        Returns:
            (rows, columns) float32 in [0, 1].
        """

    def patches(self, images: Sequence[BoxedImage], per: str) -> Iterator[tuple[int, Patch]]:
        """See `MaskGenerator.patches`."""
        for position, image in enumerate(images):
            for index, (box, label) in enumerate(zip(image.boxes, image.labels)):
                rows, columns = box_slices(box, *image.image.shape[:2])
                yield position, Patch(int(label), (index,), rows, columns, self.foreground(image.image, rows, columns))


def weights_digest(*networks: "nn.Module") -> str:
    """A hash of all weights."""
    import torch

    digest = hashlib.sha256()
    for network in networks:
        for name, tensor in network.state_dict().items():
            digest.update(f"{name} {tensor.dtype}".encode())
            digest.update(tensor.cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def batches_of_one_size(sizes: Mapping[int, tuple[int, int]], batch_size: int) -> list[list[int]]:
    """The images in batches of one padded size; every run makes the same batches, so results repeat to the bit.

    Args:
        sizes: number of the image -> (height, width).
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for index, (height, width) in sizes.items():
        groups.setdefault((-(-height // PAD_MULTIPLE), -(-width // PAD_MULTIPLE)), []).append(index)
    return [members[i : i + batch_size] for members in groups.values() for i in range(0, len(members), batch_size)]
