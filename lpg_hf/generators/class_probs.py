"""The segmenter's part of the generator's input: the probability of every class that has boxes in an image.

This module states how an image is padded for a segmenter, for training, measuring and use, and where its logits lie:
those of the DeepLabs on the pixels 0, stride, 2 x stride, ... (see `lpg_hf.models.logits`), all others at the centres
of the cells of a grid, as transformers takes them. Softmax is taken there, and the generator reads the probabilities
interpolated from there.
"""

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import AutoImageProcessor, BaseImageProcessor, PreTrainedModel

from lpg_hf._weight_files import reading_weights
from lpg_hf.hub import fetch_stage
from lpg_hf.hub.loading import load_network
from lpg_hf.images import PAD_MULTIPLE
from lpg_hf.models.image_processing_lpg import LARGEST_VIEW
from lpg_hf.models.logits import corner_stride


_CELL = 4  # pixels; logits that lie closer together are stored at the centres of cells of this side


def _check_sizes(processor: BaseImageProcessor) -> None:
    """Refuses a processor that makes images larger than any segmenter takes: they would fill the memory."""
    for name, switch in (("size", "do_resize"), ("crop_size", "do_center_crop"), ("pad_size", "do_pad")):
        size = getattr(processor, name, None)
        if not size or not getattr(processor, switch, True):
            continue
        for side, value in dict(size).items():
            if value is not None and value > (LARGEST_VIEW**2 if side.endswith("pixels") else LARGEST_VIEW):
                raise ValueError(f"{name} has {side}={value}, but a side has at most {LARGEST_VIEW} pixels")


def _padded_size(height: int, width: int, corner_stride: int | None) -> tuple[int, int]:
    """The size to which an image is padded for a segmenter, right and bottom, after normalization.

    Multiples of 32, and 1 more for a DeepLab, whose last logits then lie on the border.
    """
    more = 0 if corner_stride is None else 1
    return -(-height // PAD_MULTIPLE) * PAD_MULTIPLE + more, -(-width // PAD_MULTIPLE) * PAD_MULTIPLE + more


def _probs_at_logits(
    logits: Tensor, frame: tuple[int, int], size: tuple[int, int], corner_stride: int | None
) -> tuple[Tensor, tuple[float, float, float, float]]:
    """Class probabilities at the logits' own positions.

    Args:
        logits: (C, h, w) float32 that cover the frame.
        frame: (height, width) of the padded image in pixels.
        size: (height, width) of the image at its top left.
        corner_stride: see `lpg_hf.models.logits`.

    Returns:
        probs: (C, h', w') float32 at the positions that the image's pixels are interpolated from.
        covered: x1, y1, x2, y2 of the image, in cells of `probs`; a cell has its value in its middle.
    """
    if corner_stride is not None:
        logits = logits[:, ::corner_stride, ::corner_stride]
        first = 0.5 - 0.5 / corner_stride  # pixel 0 has its centre in the middle of the first cell
        (y1, y2), (x1, x2) = ((first, first + side / corner_stride) for side in size)
    else:
        cells = [min(count, -(-side // _CELL)) for count, side in zip(logits.shape[1:], frame)]
        if cells != list(logits.shape[1:]):
            logits = F.interpolate(logits[None], size=cells, mode="bilinear", align_corners=False)[0]
        (y1, y2), (x1, x2) = ((0.0, side * count / full) for side, count, full in zip(size, cells, frame))
    return logits[:, : int(y2 + 0.5) + 1, : int(x2 + 0.5) + 1].softmax(dim=0), (x1, y1, x2, y2)


class ImageProbs(Mapping[int, np.ndarray]):
    """Class id -> (height, width) uint8, 255 times its probability, interpolated at each access.

    Args:
        stored: class id -> (h, w) uint8 at the logits' positions.
        covered: x1, y1, x2, y2 of the image, in cells of the stored maps, see `_probs_at_logits`.
        size: (height, width) of the image.
    """

    def __init__(
        self,
        stored: Mapping[int, np.ndarray],
        covered: tuple[float, float, float, float],
        size: tuple[int, int],
    ) -> None:
        self.stored, self.covered, self.size = stored, covered, size

    def __getitem__(self, label: int) -> np.ndarray:
        height, width = self.size
        cells = Image.fromarray(self.stored[label])
        return np.asarray(cells.resize((width, height), Image.Resampling.BILINEAR, box=self.covered))

    def __iter__(self) -> Iterator[int]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


@dataclass(frozen=True)
class SegmenterInput:
    """An image as a segmenter takes it.

    Attributes:
        pixels: (3, h, w) float32, normalised and padded.
        frame: (height, width) in image pixels that `pixels`, and so the logits, cover; the image lies at the top left.
    """

    pixels: Tensor
    frame: tuple[int, int]


class SegmenterProbs:
    """A frozen segmenter that gives class probabilities for images with boxes: in training, measuring and use.

    Args:
        model: an AutoModelForSemanticSegmentation; `device` and dtype are its own after construction.
        processor: its image processor. Its cropping is switched off, as the whole image is wanted.
        class_names: names of the boxes' classes in the order of their labels; they are looked up in the segmenter's
            `id2label`. None: a box's label is the segmenter's own.
        device: where it runs.

    Raises:
        ValueError: the segmenter does not know one of the classes.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: BaseImageProcessor,
        class_names: Sequence[str] | None = None,
        device: str | torch.device = "cpu",
    ):
        # LargeFOV on a CPU: 1.2 times as fast as in the other layout in float32, 1.3 times in bfloat16.
        cast(Any, nn.Module).to(model.eval(), device, memory_format=torch.channels_last)
        self.model, self.device = model, torch.device(device)
        self._name = getattr(model.config, "name_or_path", None) or "the segmenter"
        self._corner_stride = corner_stride(model.config)
        self._processor = copy.copy(processor)
        setattr(self._processor, "do_center_crop", False)  # of MobileNetV2's processor and others
        self._index_of = None
        if class_names is not None:
            id2label = model.config.id2label or {}
            known = {str(name).casefold(): int(index) for index, name in id2label.items()}
            unknown = [name for name in class_names if name.casefold() not in known]
            if unknown:
                raise ValueError(
                    f"the segmenter knows no class {unknown[0]!r} ({len(unknown)} such); its classes are: "
                    f"{', '.join(list(id2label.values())[:25])}. Choose a segmenter trained on the boxes' "
                    "classes, or a generator that needs none (config.use_class_prob=False)."
                )
            self._index_of = {label: known[name.casefold()] for label, name in enumerate(class_names, start=1)}

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        class_names: Sequence[str] | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "SegmenterProbs":
        """Loads a Hub id or a folder.

        Raises:
            OSError: neither exists.
            ValueError: it is an LPG, its weights cannot be read, or it does not know one of the classes.
        """
        folder = fetch_stage(source, kind="segmenter")
        with reading_weights(folder):
            model = load_network(folder, dtype)
            processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
            _check_sizes(processor)
        return cls(model, processor, class_names, device)

    def encode(self, image: np.ndarray) -> SegmenterInput:
        """(H, W, 3) uint8 RGB -> the segmenter's input; any thread may do it."""
        with reading_weights(self._name):  # A wrong value in preprocessor_config.json shows here.
            # One pixel high, an image could be taken for one with its channels first.
            encoded = self._processor(image, return_tensors="pt", input_data_format="channels_last")
        pixels, frame = encoded["pixel_values"][0], image.shape[:2]
        if pixels.shape[1:] == frame:  # A processor that resizes makes the input cover the image, and nothing else.
            frame = _padded_size(frame[0], frame[1], self._corner_stride)
            pixels = F.pad(pixels, (0, frame[1] - pixels.shape[2], 0, frame[0] - pixels.shape[1]))
        return SegmenterInput(pixels, frame)

    @torch.inference_mode()
    def logits(self, inputs: Sequence[SegmenterInput]) -> list[Tensor]:
        """(num_labels, h, w) float32 logits of every input; inputs of one shape share a forward pass."""
        batches: dict[torch.Size, list[int]] = {}
        for i, item in enumerate(inputs):
            batches.setdefault(item.pixels.shape, []).append(i)
        logits: dict[int, Tensor] = {}
        for members in batches.values():
            with reading_weights(self._name):
                batch = torch.stack([inputs[i].pixels for i in members])
                batch = batch.to(self.device, self.model.dtype, memory_format=torch.channels_last)
                logits.update(zip(members, self.model(pixel_values=batch).logits.float()))
        return [logits[i] for i in range(len(inputs))]

    def __call__(
        self,
        images: Sequence[np.ndarray],
        labels: Sequence[np.ndarray],
        inputs: Sequence[SegmenterInput] | None = None,
    ) -> list[ImageProbs]:
        """Probabilities of the classes that have boxes.

        Args:
            images: (H, W, 3) uint8 RGB.
            labels: (N,) class ids per image.
            inputs: `encode` of the images, where another thread made them.

        Returns:
            Per image: class id -> (H, W) uint8, 255 times the probability.
        """
        inputs = [self.encode(image) for image in images] if inputs is None else inputs
        probs = []
        for image, image_labels, item, logits in zip(images, labels, inputs, self.logits(inputs)):
            size = image.shape[0], image.shape[1]
            at_logits, covered = _probs_at_logits(logits, item.frame, size, self._corner_stride)
            classes = list(dict.fromkeys(image_labels.tolist()))
            stored = at_logits[[self._channel(label) for label in classes]].mul(255).round().to(torch.uint8).cpu()
            probs.append(ImageProbs(dict(zip(classes, stored.numpy())), covered, size))
        return probs

    def _channel(self, label: int) -> int:
        num_labels = self.model.config.num_labels or 0
        channel = label if self._index_of is None else self._index_of.get(label)
        if channel is None or not 0 <= channel < num_labels:
            raise ValueError(f"label {label} is none of the segmenter's {num_labels} labels.")
        return channel
