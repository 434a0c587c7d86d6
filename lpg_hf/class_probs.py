"""The segmenter's part of the generator's input: the probability of every class that has boxes in a picture."""

import copy
import os
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from lpg_hf.hub import fetch_stage


CLASS_PROB_STRIDE = 8  # pixels per stored probability


def resize_logits(model: nn.Module, logits: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, h, w) -> (B, C, *size), bilinear, as the segmenter's config says (both DeepLabs), else half-pixel centres."""
    if hasattr(model, "upsample_logits"):
        return model.upsample_logits(logits, size)
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


class SegmenterProbs:
    """A frozen segmenter that gives class probabilities for pictures with boxes.

    Args:
        model: an AutoModelForSemanticSegmentation.
        processor: its image processor; its cropping is left out, as probabilities are wanted for the whole picture.
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
            ValueError: it is an LPG, or does not know one of the classes.
        """
        folder = fetch_stage(source, kind="segmenter")
        model = AutoModelForSemanticSegmentation.from_pretrained(folder, dtype=dtype)
        return cls(model, AutoImageProcessor.from_pretrained(folder), class_names, device)

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> list[dict[int, np.ndarray]]:
        """Probabilities of the classes of some pictures; those of one size share a forward pass.

        Args:
            images: (H, W, 3) uint8 RGB.
            labels: (N,) class ids per picture.

        Returns:
            Per picture: class id -> (ceil(H / 8), ceil(W / 8)) uint8, 255 times the probability.
        """
        pixels = [self.processor(image, return_tensors="pt")["pixel_values"][0] for image in images]
        batches: dict[tuple, list[int]] = {}
        for i, (image, values) in enumerate(zip(images, pixels)):
            batches.setdefault((image.shape[:2], tuple(values.shape)), []).append(i)
        found: list[dict[int, np.ndarray]] = [{} for _ in images]
        for ((height, width), _), members in batches.items():
            batch = torch.stack([pixels[i] for i in members]).to(self.device, self.model.dtype)
            logits = self.model(pixel_values=batch).logits.float()
            size = (-(-height // CLASS_PROB_STRIDE), -(-width // CLASS_PROB_STRIDE))
            probs = (
                (resize_logits(self.model, logits, size).softmax(dim=1) * 255).round().to(torch.uint8).cpu().numpy()
            )
            for i, image_probs in zip(members, probs):
                for label in dict.fromkeys(labels[i].tolist()):
                    found[i][label] = image_probs[self._channel(label)]
        return found

    def _channel(self, label: int) -> int:
        num_labels = self.model.config.num_labels
        channel = label if self.index_of is None else self.index_of.get(label)
        if channel is None or not 0 <= channel < num_labels:
            raise ValueError(f"the label {label} is none of the segmenter's {num_labels}.")
        return channel
