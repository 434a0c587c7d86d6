"""Training samples: which image, which class or box, and which random crop, as a function of one number.

A run draws samples at the positions 0, 1, 2, ... Position p belongs to epoch p // N and takes the entry p % N of that
epoch's permutation; its crop, scale and flip come from a generator seeded by (seed, phase, p). So a sample depends on
nothing but its position: not on the number of workers, of processes, or of restarts.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import cast
from zlib import crc32

import numpy as np
import torch
from datasets import Dataset
from PIL import Image, ImageEnhance, ImageFilter, ImageStat
from torch.utils.data import DataLoader, Sampler

from lpg_hf._files import check_descriptors, check_file_size
from lpg_hf.boxes import box_slices
from lpg_hf.data._examples import box_label_map, class_mask, decode_image, object_mask, row_boxes
from lpg_hf.labels import IGNORE_INDEX
from lpg_hf.models.image_processing_lpg import LPGImageProcessor
from lpg_hf.models.views_lpg import Augmentation, View, image_to_view, random_window, visible_part
from lpg_hf.training._labels import Labels, filling_rates_of
from lpg_hf.training.config import Settings
from lpg_hf.training.models import Normalization


_NOISE_DEVIATIONS = (4, 24)  # of grey levels
_BLUR_RADII = (0.004, 0.02)  # as shares of the longer side of the view


# A worker sends each array of a batch in a file of its own. Where none can be opened, or none may be as large as 16
# crops of 513 pixels in float32, it prints a traceback and waits.
DESCRIPTORS = 64
_SHARED_BYTES = 16 * 3 * 513**2 * 4


class Positions(torch.utils.data.Dataset, ABC):
    """A dataset indexed by position instead of by entry."""

    def __init__(self, num_entries: int, seed: int, phase: str):
        if num_entries == 0:
            raise ValueError(f"{phase} has nothing to train on: no image has a box of a class of interest.")
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
        lpg = settings.lpg
        self.augmentation = Augmentation(
            crop_size=lpg.crop_size,
            scales=lpg.scales,
            context=(lpg.context_range[0], lpg.context_range[1]),
            jitter=lpg.box_jitter,
            noise=lpg.box_noise,
            low_detail=lpg.low_detail,
        )
        self.entries = _trainable_views(rows, processor, lpg.min_box_side)  # (E, 2): row, view of the row
        super().__init__(len(self.entries), settings.run.seed, phase)
        if not any(self._shows_object(*entry) for entry in self.entries.tolist()):
            raise ValueError(
                f"{phase} has nothing to learn: in none of {len(self.entries)} views has the mask a pixel inside the "
                "boxes. Look at the masks of the auxiliary set."
            )

    def _shows_object(self, index: int, view_index: int) -> bool:
        """Whether the mask of a view has a pixel of its class or object inside the boxes."""
        row = self.rows[index]
        boxes, labels = row_boxes(row)
        view = self.processor.views(boxes, labels, row["height"], row["width"])[view_index]
        target = self._target(row, view, view_index)
        return any((target[box_slices(box, *target.shape)] == 1).any() for box in view.boxes)

    def _target(self, row: dict, view: View, view_index: int) -> np.ndarray:
        """(H, W) uint8 of the view's class or object: 0, 1 or 255."""
        return object_mask(row, view_index) if self.settings.lpg.target == "object" else class_mask(row, view.label)

    def processor_at(self, position: int) -> LPGImageProcessor:
        """The processor with the side of the box views of a position's step, which `lpg.view_sizes` may make grow."""
        lpg = self.settings.lpg
        if not lpg.view_sizes:
            return self.processor
        part = position // lpg.batch_size * len(lpg.view_sizes) // lpg.steps
        resized = copy.copy(self.processor)
        resized.view_size = lpg.view_sizes[min(part, len(lpg.view_sizes) - 1)]
        return resized

    def sample(self, entry: int, rng: np.random.Generator, position: int) -> dict:
        processor = self.processor_at(position)
        index, view_index = (int(v) for v in self.entries[entry])
        row, settings = self.rows[index], self.settings.lpg
        image = decode_image(row)
        height, width = image.shape[:2]
        boxes, labels = row_boxes(row)
        view = processor.views(boxes, labels, height, width)[view_index]
        view = processor.random_view(view, (height, width), rng, self.augmentation)
        if settings.color_jitter > 0:
            image = _jitter_color(image, view, settings.color_jitter, rng)
        if settings.degrade > 0 and rng.random() < settings.degrade:
            image = _degraded(image, view, rng)
        target = self._target(row, view, view_index)
        seen = target[box_slices(boxes[view_index], *target.shape)] if processor.view == "box" else target
        if not (seen == 1).any():
            target = np.full_like(target, IGNORE_INDEX)  # a box without any mask pixel (SBD has some) teaches nothing
        prob = None if self.class_probs is None else self.class_probs(index, view.label)
        if prob is not None and rng.random() < settings.class_prob_dropout:
            prob = np.zeros_like(prob)
        sample = processor.encode(image, view, prob, target, pad_label=settings.pad_label)
        return sample | {"name": f"{row['file_name']} class {view.label}"}


def _jitter_color(image: np.ndarray, view: View, strength: float, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8 RGB whose part in the view has other brightness, contrast and saturation.

    They are multiplied by 1 - strength to 1 + strength. Contrast changes around the mean of the whole image; the first
    two are looked up for the 256 levels, as they are the same function of every value.
    """
    brightness, contrast, saturation = (rng.uniform(1 - strength, 1 + strength) for _ in range(3))
    levels = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2))
    brighter = ImageEnhance.Brightness(levels).enhance(brightness)
    mean = int(ImageStat.Stat(Image.fromarray(_looked_up(image, brighter)).convert("L")).mean[0] + 0.5)
    grey = Image.new("RGB", levels.size, (mean, mean, mean))
    table = Image.blend(grey, brighter, contrast)
    part = visible_part(view, *image.shape[:2])
    jittered = image.copy()
    if jittered[part].size:
        pixels = Image.fromarray(_looked_up(image[part], table))
        jittered[part] = ImageEnhance.Color(pixels).enhance(saturation)
    return jittered


def _looked_up(pixels: np.ndarray, table: Image.Image) -> np.ndarray:
    """Every value of the pixels in a table of 256 grey levels."""
    return np.take(np.asarray(table)[0, :, 0], pixels)


def _degraded(image: np.ndarray, view: View, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8 RGB whose part in the view is grey, noisy or blurred, as images of other domains are."""
    part = visible_part(view, *image.shape[:2])
    pixels = np.ascontiguousarray(image[part])
    kind = rng.integers(3)
    if kind == 0:
        pixels = np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
    elif kind == 1:
        noise = rng.normal(0, rng.uniform(*_NOISE_DEVIATIONS), pixels.shape)
        pixels = np.clip(pixels + noise, 0, 255).astype(np.uint8)
    else:
        radius = rng.uniform(*_BLUR_RADII) * max(pixels.shape)
        pixels = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))
    degraded = image.copy()
    degraded[part] = pixels
    return degraded


def _trainable_views(rows: Dataset, processor: LPGImageProcessor, min_box_side: float) -> np.ndarray:
    """(E, 2) int64: row index and index into `processor.views` of every view with a box of the wanted size."""
    entries = []
    without_images = cast("Iterable[dict]", rows.select_columns(list(BOX_COLUMNS)))
    for index, row in enumerate(without_images):
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
        labels: boxes, pseudo masks or ground truth.
    """

    def __init__(
        self,
        rows: Dataset,
        normalization: Normalization,
        settings: Settings,
        phase: str,
        labels: Labels,
    ):
        self.rows, self.normalization, self.settings, self.labels = rows, normalization, settings, labels
        super().__init__(len(rows), settings.run.seed, phase)
        label_maps = (labels(index, row) for index, row in enumerate(cast("Iterable[dict]", rows)))
        if not any(((label_map > 0) & (label_map != IGNORE_INDEX)).any() for label_map in label_maps):
            raise ValueError(
                f"{phase} has nothing to learn: none of the {len(rows)} label maps holds an object. Look at the "
                "boxes of the images, and at the pseudo masks if it is trained on them."
            )

    def sample(self, entry: int, rng: np.random.Generator, position: int) -> dict:
        row, settings = self.rows[entry], self.settings.segmenter
        image = decode_image(row)
        label_map = self.labels(entry, row, position // self.num_entries)
        size = settings.crop_size
        scale = settings.scales[rng.integers(len(settings.scales))]
        height, width = image.shape[:2]
        window = random_window(height, width, size, scale, rng)
        view = View(0, np.empty((0, 4)), window, (size, size), bool(rng.random() < 0.5))
        pixels = image_to_view(image, view, self.normalization.fill)
        sample = {
            "pixel_values": self.normalization(pixels),
            "labels": image_to_view(label_map, view, IGNORE_INDEX).astype(np.int64),
            "name": row["file_name"],
        }
        rates = filling_rates_of(self.labels, row)
        if rates is not None:
            sample["filling_rates"] = rates
            sample["box_labels"] = image_to_view(box_label_map(row), view, IGNORE_INDEX).astype(np.int64)
        return sample


class StepBatches(Sampler[list[int]]):
    """Positions of this process's micro-batches, step by step.

    Step t of a run with a global batch of B covers the positions t * B ... (t + 1) * B - 1 whatever the number of
    processes; each takes its share, in micro-batches.

    Args:
        shares: sizes of the micro-batches of every process; their sum is B.
        rank: number of this process.
        start, stop: the steps, `stop` exclusive.
    """

    def __init__(self, shares: Sequence[Sequence[int]], rank: int, start: int, stop: int):
        self.shares, self.rank, self.start, self.stop = shares, rank, start, stop

    @property
    def num_micro(self) -> int:
        """Micro-batches of this process in a step."""
        return len(self.shares[self.rank])

    def __iter__(self) -> Iterator[list[int]]:
        batch_size = sum(map(sum, self.shares))
        for step in range(self.start, self.stop):
            first = step * batch_size + sum(map(sum, self.shares[: self.rank]))
            for size in self.shares[self.rank]:
                yield list(range(first, first + size))
                first += size

    def __len__(self) -> int:
        return (self.stop - self.start) * self.num_micro


def _collate(samples: list[dict]) -> dict:
    batch = {k: torch.from_numpy(np.stack([s[k] for s in samples])) for k in samples[0] if k != "name"}
    return batch | {"names": [s["name"] for s in samples]}


def step_loader(dataset: Positions, batches: StepBatches, num_workers: int, pin_memory: bool) -> DataLoader:
    """The loader of a phase.

    Raises:
        OSError: workers are asked for, and too few or too small files can be opened for what they send.
    """
    if num_workers:
        check_descriptors(DESCRIPTORS)
        check_file_size(_SHARED_BYTES)
    return DataLoader(
        dataset, batch_sampler=batches, collate_fn=_collate, num_workers=num_workers, pin_memory=pin_memory
    )
