"""The segmenter's part of the generator's input: the probability of every class that has boxes in an image.

How an image is padded for a segmenter, and where its logits lie in the image, is said here for training, measuring and use.
"""

import copy
import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from lpg_hf.generators.base import PAD_MULTIPLE
from lpg_hf.hub import fetch_stage
from lpg_hf.weight_files import reading_weights


CLASS_PROB_STRIDE = 8  # pixels per stored probability


def aligns_corners(model: nn.Module) -> bool:
    """Whether the first and last logits lie on the first and last pixels (both DeepLabs); else at half-pixel centres."""
    return hasattr(model, "upsample_logits") and model.config.align_corners


def padded_size(model: nn.Module, height: int, width: int) -> tuple[int, int]:
    """The size that an image is padded to at the right and the bottom, with zeros after normalization, for a segmenter.

    Multiples of 32; one pixel more for a segmenter that aligns corners, so that its logits lie a whole stride apart, as in the
    crops that it was trained on (the official code: 513).
    """
    extra = int(aligns_corners(model))
    return tuple(-(-side // PAD_MULTIPLE) * PAD_MULTIPLE + extra for side in (height, width))  # type: ignore[return-value]


def resize_logits(model: nn.Module, logits: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, h, w) -> (B, C, *size), bilinear, as the segmenter's config says (both DeepLabs), else half-pixel centres."""
    if hasattr(model, "upsample_logits"):
        return model.upsample_logits(logits, size)
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def stored_probs(model: nn.Module, logits: Tensor, frame: tuple[int, int]) -> Tensor:
    """Class probabilities at the centres of cells of 8 x 8 pixels.

    Args:
        model: whose logits they are; it says where they lie.
        logits: (B, C, h, w) float32.
        frame: (height, width) in pixels of what they cover.

    Returns:
        (B, C, ceil(height / 8), ceil(width / 8)) uint8, 255 times the probability. Bilinear; beyond the last logit, its value.
    """
    aligned = aligns_corners(model)

    def positions(side: int) -> Tensor:  # from -1 to 1, as `grid_sample` counts them
        centres = torch.arange(CLASS_PROB_STRIDE / 2 - 0.5, side + CLASS_PROB_STRIDE / 2 - 0.5, CLASS_PROB_STRIDE)
        return 2 * centres / (side - 1) - 1 if aligned else (2 * centres + 1) / side - 1

    rows, columns = (positions(side).to(logits.device) for side in frame)
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).expand(len(logits), -1, -1, -1)
    logits = F.grid_sample(logits, grid, mode="bilinear", padding_mode="border", align_corners=aligned)
    return (logits.softmax(dim=1) * 255).round().to(torch.uint8)


def at_image_size(stored: np.ndarray, height: int, width: int) -> np.ndarray:
    """(ceil(height / 8), ceil(width / 8)) uint8 of `stored_probs` -> (height, width) uint8, bilinear."""
    h, w = stored.shape
    full = Image.fromarray(stored).resize((w * CLASS_PROB_STRIDE, h * CLASS_PROB_STRIDE), Image.Resampling.BILINEAR)
    return np.asarray(full)[:height, :width]


class ImageProbs(Mapping[int, np.ndarray]):
    """Class id -> (height, width) uint8, 255 times its probability; made from what is stored when it is asked for."""

    def __init__(self, stored: dict[int, np.ndarray], height: int, width: int) -> None:
        self.stored, self.size = stored, (height, width)

    def __getitem__(self, label: int) -> np.ndarray:
        return at_image_size(self.stored[label], *self.size)

    def __iter__(self) -> Iterator[int]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


class SegmenterProbs:
    """A frozen segmenter that gives class probabilities for images with boxes.

    Args:
        model: an AutoModelForSemanticSegmentation.
        processor: its image processor; its cropping is left out, as probabilities are wanted for the whole image.
        class_names: of the boxes, in the order of their labels; they are looked up in the segmenter's `id2label`. None: a
            box's label is the segmenter's own.
        device: where it runs.

    Raises:
        ValueError: the segmenter does not know one of the classes.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: object,
        class_names: Sequence[str] | None = None,
        device: str | torch.device = "cpu",
    ):
        self.model, self.device = model.eval().to(device), torch.device(device)
        self.processor = copy.copy(processor)
        self.processor.do_center_crop = False  # of MobileNetV2's processor and others
        self.index_of = None
        if class_names is not None:
            known = {name.casefold(): int(index) for index, name in model.config.id2label.items()}
            unknown = [name for name in class_names if name.casefold() not in known]
            if unknown:
                raise ValueError(
                    f"the segmenter knows no class {unknown[0]!r} ({len(unknown)} such); its classes are: "
                    f"{', '.join(list(model.config.id2label.values())[:25])}. Choose a segmenter trained on the boxes' "
                    "classes, or a generator that needs none (config.use_class_prob=False)."
                )
            self.index_of = {label: known[name.casefold()] for label, name in enumerate(class_names, start=1)}

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

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> list[ImageProbs]:
        """Probabilities of the classes of some images, as a training computes them; those of one padded size share a forward
        pass.

        Args:
            images: (H, W, 3) uint8 RGB.
            labels: (N,) class ids per image.

        Returns:
            Per image: class id -> (H, W) uint8, 255 times the probability.
        """
        batches: dict[tuple, list[tuple[int, Tensor]]] = {}
        for i, image in enumerate(images):
            pixels = self.processor(image, return_tensors="pt")["pixel_values"][0]
            frame = image.shape[:2]
            if (
                pixels.shape[1:] == frame
            ):  # A processor that resizes makes the input cover the image, and nothing else.
                frame = padded_size(self.model, *frame)
                pixels = F.pad(pixels, (0, frame[1] - pixels.shape[2], 0, frame[0] - pixels.shape[1]))
            batches.setdefault((frame, pixels.shape), []).append((i, pixels))
        found = [ImageProbs({}, *image.shape[:2]) for image in images]
        for (frame, _), members in batches.items():
            batch = torch.stack([pixels for _, pixels in members]).to(self.device, self.model.dtype)
            probs = stored_probs(self.model, self.model(pixel_values=batch).logits.float(), frame).cpu().numpy()
            for (i, _), of_image in zip(members, probs):
                h, w = (-(-side // CLASS_PROB_STRIDE) for side in images[i].shape[:2])
                for label in dict.fromkeys(labels[i].tolist()):
                    found[i].stored[label] = of_image[self._channel(label), :h, :w]
        return found

    def _channel(self, label: int) -> int:
        num_labels = self.model.config.num_labels
        channel = label if self.index_of is None else self.index_of.get(label)
        if channel is None or not 0 <= channel < num_labels:
            raise ValueError(f"the label {label} is none of the segmenter's {num_labels}.")
        return channel
