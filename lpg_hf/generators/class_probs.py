"""The segmenter's part of the generator's input: the probability of every class that has boxes in an image.

This module states how an image is padded for a segmenter, for training, measuring and use. Logits cover their image as
transformers takes it: they lie at the centres of the cells of a grid (see `lpg_hf.models.logits`).
"""

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, BaseImageProcessor, PreTrainedModel

import lpg_hf.models  # noqa: F401  makes the Auto classes know our segmenters
from lpg_hf.generators.base import PAD_MULTIPLE
from lpg_hf.hub import fetch_stage
from lpg_hf.weight_files import reading_weights


CLASS_PROB_STRIDE = 8  # pixels per stored probability


def _padded_size(height: int, width: int) -> tuple[int, int]:
    """The size to which an image is padded for a segmenter: multiples of 32, right and bottom, after normalization."""
    return -(-height // PAD_MULTIPLE) * PAD_MULTIPLE, -(-width // PAD_MULTIPLE) * PAD_MULTIPLE


def _stored_probs(logits: Tensor, frame: tuple[int, int]) -> Tensor:
    """Class probabilities at the centres of cells of 8 x 8 pixels.

    Args:
        logits: (C, h, w) float32, at the centres of the cells of a grid.
        frame: (height, width) in pixels that the grid covers.

    Returns:
        (C, ceil(height / 8), ceil(width / 8)) uint8, 255 times the probability. Bilinear; beyond the last logit, its
        value.
    """

    def positions(side: int) -> Tensor:  # from -1 to 1, as `grid_sample` counts them
        centres = torch.arange(CLASS_PROB_STRIDE / 2 - 0.5, side + CLASS_PROB_STRIDE / 2 - 0.5, CLASS_PROB_STRIDE)
        return (2 * centres + 1) / side - 1

    rows, columns = (positions(side).to(logits.device) for side in frame)
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)[None]
    sampled = F.grid_sample(logits[None], grid, mode="bilinear", padding_mode="border", align_corners=False)[0]
    return (sampled.softmax(dim=0) * 255).round().to(torch.uint8)


def stored_size(height: int, width: int) -> tuple[int, int]:
    """The size of the stored probabilities of an image."""
    return -(-height // CLASS_PROB_STRIDE), -(-width // CLASS_PROB_STRIDE)


def _at_image_size(stored: np.ndarray, height: int, width: int) -> np.ndarray:
    """(ceil(height / 8), ceil(width / 8)) uint8 of `_stored_probs` -> (height, width) uint8, bilinear."""
    h, w = stored.shape
    full = Image.fromarray(stored).resize((w * CLASS_PROB_STRIDE, h * CLASS_PROB_STRIDE), Image.Resampling.BILINEAR)
    return np.asarray(full)[:height, :width]


class ImageProbs(Mapping[int, np.ndarray]):
    """Class id -> (height, width) uint8, 255 times its probability; resized from `stored` at each access."""

    def __init__(self, stored: Mapping[int, np.ndarray], height: int, width: int) -> None:
        self.stored, self.size = stored, (height, width)

    def __getitem__(self, label: int) -> np.ndarray:
        return _at_image_size(self.stored[label], *self.size)

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
        nn.Module.to(model.eval(), device)
        self.model, self.device = model, torch.device(device)
        self._processor = copy.copy(processor)
        setattr(self._processor, "do_center_crop", False)  # of MobileNetV2's processor and others
        self._index_of = None
        if class_names is not None:
            id2label = model.config.id2label or {}
            known = {name.casefold(): int(index) for index, name in id2label.items()}
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
            model = AutoModelForSemanticSegmentation.from_pretrained(folder, dtype=dtype)
        return cls(model, AutoImageProcessor.from_pretrained(folder), class_names, device)

    def encode(self, image: np.ndarray) -> SegmenterInput:
        """(H, W, 3) uint8 RGB -> the segmenter's input; any thread may do it."""
        pixels, frame = self._processor(image, return_tensors="pt")["pixel_values"][0], image.shape[:2]
        if pixels.shape[1:] == frame:  # A processor that resizes makes the input cover the image, and nothing else.
            frame = _padded_size(*frame)
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
            batch = torch.stack([inputs[i].pixels for i in members]).to(self.device, self.model.dtype)
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
            stored = _stored_probs(logits, item.frame).cpu().numpy()
            h, w = stored_size(*image.shape[:2])
            maps = {label: stored[self._channel(label), :h, :w] for label in dict.fromkeys(image_labels.tolist())}
            probs.append(ImageProbs(maps, *image.shape[:2]))
        return probs

    def _channel(self, label: int) -> int:
        num_labels = self.model.config.num_labels or 0
        channel = label if self._index_of is None else self._index_of.get(label)
        if channel is None or not 0 <= channel < num_labels:
            raise ValueError(f"label {label} is none of the segmenter's {num_labels} labels.")
        return channel
