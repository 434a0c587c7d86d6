"""Training samples: which image, which class or box, and which random crop, as a function of one number.

A run draws samples at the positions 0, 1, 2, ... Position p belongs to epoch p // N and takes the entry p % N of that
epoch's permutation; its crop, scale and flip come from a generator seeded by (seed, phase, p). So a sample depends on
nothing but its position: not on the number of workers, of processes, or of restarts.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from zlib import crc32

import numpy as np
import torch
from datasets import Dataset
from PIL import Image, ImageEnhance, ImageFilter
from torch.utils.data import DataLoader, Sampler

from lpg_hf.boxes import box_slices
from lpg_hf.data.examples import class_mask, decode_image, object_mask, row_boxes
from lpg_hf.models.image_processing_lpg import LPGImageProcessor
from lpg_hf.models.views_lpg import BoxAugmentation, View, image_to_view, random_window, visible_part
from training.config import Settings
from training.models import Normalization


class Positions(torch.utils.data.Dataset, ABC):
    """A dataset indexed by position instead of by entry."""

    def __init__(self, num_entries: int, seed: int, phase: str):
        if num_entries == 0:
            raise ValueError(f"There is nothing to train on in {phase}: no image has a box of a class of interest.")
        self.num_entries = num_entries
        self.seed = (seed, crc32(phase.encode()))
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __getitem__(self, position: int) -> dict:
        epoch = position // self.num_entries
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([*self.seed, 0, epoch]).permutation(self.num_entries)
        rng = np.random.default_rng([*self.seed, 1, position])
        return self.sample(int(self._order[position % self.num_entries]), rng, position)

    @abstractmethod
    def sample(self, entry: int, rng: np.random.Generator, position: int) -> dict:
        """Arrays of one entry, and its `name`; what is random comes from `rng`, what changes from `position`."""


class LPGViews(Positions):
    """Samples of the E-step: one view (of a class or of a box) with the mask of its class.

    Args:
        rows: built with masks.
        processor: decides the view.
        class_probs: `(row index, label) -> (H, W) uint8` cached probabilities of the frozen segmenter, or None.
    """

    def __init__(
        self,
        rows: Dataset,
        processor: LPGImageProcessor,
        settings: Settings,
        phase: str,
        class_probs: Callable[[int, int], np.ndarray] | None,
    ):
        self.rows, self.processor, self.settings, self.class_probs = rows, processor, settings, class_probs
        self.augmentation = BoxAugmentation(
            context=tuple(settings.lpg_context_range),
            jitter=settings.lpg_box_jitter,
            noise=settings.lpg_box_noise,
            noise_range=tuple(settings.lpg_box_noise_range),
            low_detail=settings.lpg_low_detail,
        )
        self.entries = trainable_views(rows, processor, settings.lpg_min_box_side)  # (E, 2): row, view of the row
        super().__init__(len(self.entries), settings.seed, phase)

    def processor_at(self, position: int) -> LPGImageProcessor:
        """The processor with the side of the box views of a position's step, which `lpg_view_sizes` may make grow."""
        sizes = self.settings.lpg_view_sizes
        if not sizes:
            return self.processor
        step = position // self.settings.lpg_batch_size
        resized = copy.copy(self.processor)
        resized.view_size = sizes[min(step * len(sizes) // self.settings.lpg_steps, len(sizes) - 1)]
        return resized

    def sample(self, entry: int, rng: np.random.Generator, position: int) -> dict:
        processor = self.processor_at(position)
        index, view_index = (int(v) for v in self.entries[entry])
        row = self.rows[index]
        image = decode_image(row)
        boxes, labels = row_boxes(row)
        view = processor.random_view(
            boxes,
            labels,
            view_index,
            *image.shape[:2],
            rng,
            crop_size=self.settings.lpg_crop_size,
            scales=self.settings.lpg_scales,
            augmentation=self.augmentation,
        )
        if self.settings.lpg_color_jitter > 0:
            image = jitter_color(image, self.settings.lpg_color_jitter, rng)
        if self.settings.lpg_degrade > 0 and rng.random() < self.settings.lpg_degrade:
            image = degrade(image, view, rng)
        of_object = self.settings.lpg_target == "object"
        target = object_mask(row, view_index) if of_object else class_mask(row, view.label)
        seen = target[box_slices(boxes[view_index], *target.shape)] if processor.view == "box" else target
        if not (seen == 1).any():
            target = np.full_like(target, 255)  # a box without any mask pixel (SBD has some) teaches nothing
        prob = None if self.class_probs is None else self.class_probs(index, view.label)
        if prob is not None and rng.random() < self.settings.lpg_class_prob_dropout:
            prob = np.zeros_like(prob)
        sample = processor.encode(image, view, prob, target, pad_label=self.settings.lpg_pad_label)
        return sample | {"name": f"{row['file_name']} class {view.label}"}


def jitter_color(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8 RGB with brightness, contrast and saturation multiplied by factors in [1 - strength, 1 + strength]."""
    picture = Image.fromarray(image)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        picture = enhance(picture).enhance(rng.uniform(1 - strength, 1 + strength))
    return np.asarray(picture)


def degrade(image: np.ndarray, view: View, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8 RGB whose part in the view is grey, noisy or blurred, as pictures of other domains are."""
    part = visible_part(view, *image.shape[:2])
    pixels = np.ascontiguousarray(image[part])
    kind = rng.integers(3)
    if kind == 0:
        pixels = np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
    elif kind == 1:
        noise = rng.normal(0, rng.uniform(*NOISE_DEVIATIONS), pixels.shape)
        pixels = np.clip(pixels + noise, 0, 255).astype(np.uint8)
    else:
        radius = rng.uniform(*BLUR_RADII) * max(pixels.shape)
        pixels = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))
    degraded = image.copy()
    degraded[part] = pixels
    return degraded


NOISE_DEVIATIONS = (4, 24)  # of grey levels
BLUR_RADII = (0.004, 0.02)  # as shares of the longer side of the view


def trainable_views(rows: Dataset, processor: LPGImageProcessor, min_box_side: float) -> np.ndarray:
    """(E, 2) int64: row index and index into `processor.views` of every view with a box of the wanted size."""
    entries = []
    for index, row in enumerate(rows.remove_columns([c for c in rows.column_names if c not in BOX_COLUMNS])):
        boxes, labels = row_boxes(row)
        for view_index, view in enumerate(processor.views(boxes, labels, row["height"], row["width"])):
            sides = np.minimum(view.boxes[:, 2] - view.boxes[:, 0], view.boxes[:, 3] - view.boxes[:, 1])
            if sides.max() >= min_box_side:
                entries.append((index, view_index))
    return np.asarray(entries, dtype=np.int64).reshape(-1, 2)


BOX_COLUMNS = ("objects", "height", "width", "file_name")


class SegmenterCrops(Positions):
    """Samples of the M-step: a scaled, padded, cropped and flipped image with its label map.

    Args:
        labels: `(row index, row) -> (H, W) uint8` label map: boxes, pseudo masks or ground truth.
    """

    def __init__(
        self,
        rows: Dataset,
        normalization: Normalization,
        settings: Settings,
        phase: str,
        labels: Callable[[int, dict], np.ndarray],
    ):
        self.rows, self.normalization, self.settings, self.labels = rows, normalization, settings, labels
        super().__init__(len(rows), settings.seed, phase)

    def sample(self, entry: int, rng: np.random.Generator, position: int) -> dict:
        row = self.rows[entry]
        image = decode_image(row)
        label_map = self.labels(entry, row)
        size = self.settings.segmenter_crop_size
        scale = self.settings.segmenter_scales[rng.integers(len(self.settings.segmenter_scales))]
        window = random_window(*image.shape[:2], size, scale, rng)
        view = View(0, np.empty((0, 4)), window, (size, size), bool(rng.random() < 0.5))
        pixels = image_to_view(image, view, self.normalization.fill)
        return {
            "pixel_values": self.normalization(pixels),
            "labels": image_to_view(label_map, view, 255).astype(np.int64),
            "name": row["file_name"],
        }


class StepBatches(Sampler[list[int]]):
    """Positions of this process's micro-batches, step by step.

    Step t of a run with a global batch of B covers the positions t * B ... (t + 1) * B - 1 whatever the number of
    processes; each takes its share, in micro-batches.
    """

    def __init__(self, batch_size: int, micro_batch_size: int, start: int, stop: int, rank: int, num_processes: int):
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.start, self.stop, self.rank, self.num_processes = start, stop, rank, num_processes

    def __iter__(self) -> Iterator[list[int]]:
        share = self.batch_size // self.num_processes
        for step in range(self.start, self.stop):
            first = step * self.batch_size + self.rank * share
            for offset in range(0, share, self.micro_batch_size):
                yield list(range(first + offset, first + offset + self.micro_batch_size))

    def __len__(self) -> int:
        return (self.stop - self.start) * self.batch_size // (self.num_processes * self.micro_batch_size)


def collate(samples: list[dict]) -> dict:
    batch = {k: torch.from_numpy(np.stack([s[k] for s in samples])) for k in samples[0] if k != "name"}
    return batch | {"names": [s["name"] for s in samples]}


def step_loader(dataset: Positions, batches: StepBatches, num_workers: int, pin_memory: bool) -> DataLoader:
    return DataLoader(
        dataset, batch_sampler=batches, collate_fn=collate, num_workers=num_workers, pin_memory=pin_memory
    )
