"""The Segment Anything family with boxes as prompts, through transformers: SAM (SlimSAM too), SAM 2 and 2.1, HQ-SAM.

These models were trained on a billion masks: a strong reference for controlled experiments.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    BaseImageProcessor,
    Sam2Model,
    SamHQModel,
    SamModel,
)

from lpg_hf._weight_files import reading_weights
from lpg_hf.boxes import box_slices
from lpg_hf.generators.base import BoxedImage, MaskGenerator, Patch, weights_digest


# The checkpoints of SAM 2 on the Hub are of the video model, whose image part is `Sam2Model`.
MODELS = {"sam": SamModel, "sam_hq": SamHQModel, "sam2": Sam2Model, "sam2_video": Sam2Model}


class SAMGenerator(MaskGenerator):
    """A model of the SAM family; every box is one prompt, and its mask is cut to the box.

    Args:
        model: Hub id or folder of a `SamModel`, `SamHQModel`, `Sam2Model` or SAM 2 video checkpoint.
        device: where it runs.
        dtype: of its weights. Box coordinates stay float32: half precision would move them by pixels.
        batch_size: boxes per pass of the mask decoder; the image's embedding is computed once.
        multimask_output: the model makes three masks for a prompt, and the one that it scores highest is taken; off,
            it makes the one mask that its authors use for boxes.
        revision: of the checkpoint on the Hub.

    Raises:
        OSError: a folder or Hub id that does not exist.
        ValueError: another kind of model, or a batch size below 1.
    """

    def __init__(
        self,
        model: str | os.PathLike,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 32,
        *,
        multimask_output: bool = False,
        revision: str | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, but a pass takes at least one box.")
        with reading_weights(model):
            kind = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False).model_type
        if kind not in MODELS:
            raise ValueError(f"{model} is a {kind!r}, not of the SAM family ({', '.join(MODELS)}).")
        with reading_weights(model):
            network = MODELS[kind].from_pretrained(model, revision=revision, dtype=dtype)
            self.processor = (
                _Sam2Images(model, revision)
                if MODELS[kind] is Sam2Model
                else _SamImages(AutoImageProcessor.from_pretrained(model, revision=revision, trust_remote_code=False))
            )
        nn.Module.to(network.eval().requires_grad_(False), device)
        self.network: SamModel | SamHQModel | Sam2Model = network
        self.batch_size = batch_size
        self.multimask_output = multimask_output
        self._one_at_a_time = threading.Lock()

    def settings(self) -> dict:
        """See `MaskGenerator.settings`; weights as a digest."""
        return super().settings() | {"weights_sha256": weights_digest(self.network)}

    def patches(self, images: Sequence[BoxedImage], per: str) -> Iterator[tuple[int, Patch]]:
        """See `MaskGenerator.patches`; one patch per box in both cases.

        The image encoder takes all images in one pass on an accelerator, and one at a time on a CPU, where a larger
        pass is no faster and takes more memory.
        """
        with_boxes = [i for i, image in enumerate(images) if len(image.boxes)]
        step = 1 if self.network.device.type == "cpu" else max(1, len(with_boxes))
        for start in range(0, len(with_boxes), step):
            positions = with_boxes[start : start + step]
            embeddings = self._embed([images[i].image for i in positions])
            for row, position in enumerate(positions):
                for patch in self._patches_of(images[position], _select(embeddings, row)):
                    yield position, patch

    def _patches_of(self, image: BoxedImage, embeddings: dict) -> Iterator[Patch]:
        size = image.image.shape[:2]
        prompts = torch.from_numpy(image.boxes.astype(np.float32)) * self.processor.box_scale(size)
        for start in range(0, len(prompts), self.batch_size):
            logits = self._decode(embeddings, prompts[start : start + self.batch_size])
            for index, map_logits in enumerate(logits, start):
                rows, columns = box_slices(image.boxes[index], *size)
                window = self.processor.to_image(map_logits, size, rows, columns)
                foreground = window.sigmoid().cpu().numpy()
                yield Patch(int(image.labels[index]), (index,), rows, columns, foreground)

    @torch.inference_mode()
    def _embed(self, images: list[np.ndarray]) -> dict[str, Any]:
        """The inputs of the mask decoder from the images, under the names of the model's arguments."""
        pixels = torch.cat([self.processor.pixel_values(image) for image in images])
        with self._one_at_a_time:
            embeddings = self.network.get_image_embeddings(pixels.to(self.network.device, self.network.dtype))
        if isinstance(self.network, SamHQModel):
            return {"image_embeddings": embeddings[0], "intermediate_embeddings": embeddings[1]}
        return {"image_embeddings": embeddings}

    @torch.inference_mode()
    def _decode(self, embeddings: dict, prompts: Tensor) -> Tensor:
        """(N, h, w) float32 logits of N boxes of one image, at the decoder's size."""
        with self._one_at_a_time:
            output = self.network(
                input_boxes=prompts[None].to(self.network.device), multimask_output=self.multimask_output, **embeddings
            )
            masks, scores = output.pred_masks[0], output.iou_scores[0]  # (N, M, h, w), (N, M)
            best = scores.argmax(dim=1) if masks.shape[1] > 1 else torch.zeros_like(scores[:, 0], dtype=torch.long)
            return masks[torch.arange(len(masks), device=masks.device), best].float()


class _SamImages:
    """The frame of SAM and HQ-SAM: the longest side is scaled to 1024, the rest of the square is padding."""

    def __init__(self, processor: BaseImageProcessor) -> None:
        self.processor = processor
        values = processor.to_dict()
        self.longest_edge = values["size"]["longest_edge"]
        self.padded = values["pad_size"]["height"], values["pad_size"]["width"]

    def pixel_values(self, image: np.ndarray) -> Tensor:
        """(1, 3, S, S) float32."""
        return self.processor(images=image, return_tensors="pt", input_data_format="channels_last")["pixel_values"]

    def box_scale(self, size: tuple[int, int]) -> Tensor:
        """Factors from image pixels to the model's pixels, for x1, y1, x2, y2."""
        height, width = self._scaled(size)
        return torch.tensor([width / size[1], height / size[0]] * 2)

    def to_image(self, logits: Tensor, size: tuple[int, int], rows: slice, columns: slice) -> Tensor:
        """(rows, columns) of the (h, w) logits at the image's size; as `post_process_masks`, for one window."""
        full = F.interpolate(logits[None, None], self.padded, mode="bilinear", align_corners=False)[0, 0]
        height, width = self._scaled(size)
        return _resize_window(full[:height, :width], size, rows, columns)

    def _scaled(self, size: tuple[int, int]) -> tuple[int, int]:
        scale = self.longest_edge / max(size)
        return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)


class _Sam2Images:
    """The frame of SAM 2: the image is stretched to a square, without padding.

    Transformers implements this step with torchvision only, which nothing else here needs. The numbers are the
    checkpoint's.
    """

    def __init__(self, model: str | os.PathLike, revision: str | None) -> None:
        values, _ = BaseImageProcessor.get_image_processor_dict(model, revision=revision)
        self.size = values["size"]["height"], values["size"]["width"]
        self.mean = torch.tensor(values["image_mean"]).view(1, 3, 1, 1)
        self.std = torch.tensor(values["image_std"]).view(1, 3, 1, 1)

    def pixel_values(self, image: np.ndarray) -> Tensor:
        """(1, 3, S, S) float32."""
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
        pixels = F.interpolate(pixels, self.size, mode="bilinear", align_corners=False, antialias=True)
        return (pixels.round().clamp(0, 255) / 255 - self.mean) / self.std

    def box_scale(self, size: tuple[int, int]) -> Tensor:
        """Factors from image pixels to the model's pixels, for x1, y1, x2, y2."""
        return torch.tensor([self.size[1] / size[1], self.size[0] / size[0]] * 2)

    def to_image(self, logits: Tensor, size: tuple[int, int], rows: slice, columns: slice) -> Tensor:
        """(rows, columns) of the (h, w) logits at the image's size."""
        return _resize_window(logits, size, rows, columns)


def _resize_window(values: Tensor, size: tuple[int, int], rows: slice, columns: slice) -> Tensor:
    """A window of `F.interpolate(values, size, mode="bilinear", align_corners=False)`, at the cost of the window.

    Args:
        values: (h, w) float.
        size: (height, width) of the whole result.
        rows: of the window.
        columns: of the window.

    Returns:
        (rows, columns) float.
    """
    top, bottom, down = _neighbours(values.shape[0], size[0], rows, values.device)
    left, right, across = _neighbours(values.shape[1], size[1], columns, values.device)
    lines = torch.lerp(values[top], values[bottom], down[:, None])
    return torch.lerp(lines[:, left], lines[:, right], across[None])


def _neighbours(source: int, target: int, window: slice, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each position of the window, the two source positions around it and the weight of the second."""
    centres = torch.arange(window.start, window.stop, device=device, dtype=torch.float32) + 0.5
    positions = (centres * (source / target) - 0.5).clamp(min=0)
    first = positions.floor().long().clamp(max=source - 1)
    return first, (first + 1).clamp(max=source - 1), positions - first


def _select(embeddings: dict[str, Tensor | list[Tensor]], row: int) -> dict[str, Any]:
    """The embeddings of one image out of a batch."""
    return {
        name: [level[row : row + 1] for level in value] if isinstance(value, (list, tuple)) else value[row : row + 1]
        for name, value in embeddings.items()
    }
