"""The LPG's inference between the E-step and the M-step: cached class probabilities in, pseudo masks out."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor, nn
from tqdm import tqdm

from lpg_hf.data.examples import box_label_map, decode_image, row_boxes
from lpg_hf.files import fs_path, write_json
from lpg_hf.generators.base import batches_of_one_size
from lpg_hf.generators.class_probs import CLASS_PROB_STRIDE, at_image_size, padded_size, stored_probs
from lpg_hf.label_maps import mask_name, write_label_map
from lpg_hf.labels import IGNORE_INDEX
from lpg_hf.masks.fusion import fuse_classes, smallest_box_areas
from lpg_hf.models.image_processing_lpg import LPGImageProcessor, stack_views
from lpg_hf.models.modeling_lpg import LPGModel
from training.config import Settings
from training.models import Normalization
from training.samples import BOX_COLUMNS
from training.steps import to_device


VIEWS_IN_GROUP = 3  # forward passes whose views wait in memory together, see `split_by_views`


def size_batches(rows: Dataset, batch_size: int) -> list[list[int]]:
    """Row indices in batches of one padded size."""
    return batches_of_one_size(dict(enumerate(zip(rows["height"][:], rows["width"][:]))), batch_size)


def split_by_views(groups: list[list[int]], num_views: list[int], limit: int) -> list[list[int]]:
    """The groups in parts of at most `limit` views, or of one image, so that memory does not grow with the boxes of an image.

    Args:
        num_views: of each row.
    """
    parts = []
    for group in groups:
        parts.append([])
        for index in group:
            if parts[-1] and sum(num_views[i] for i in parts[-1]) + num_views[index] > limit:
                parts.append([])
            parts[-1].append(index)
    return parts


def prefetch(function: Callable, items: Iterable, num_workers: int) -> Iterator:
    """`map` in threads, a few items ahead of the consumer, so memory stays flat."""
    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        pending = []
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > max(1, num_workers):
                yield pending.pop(0).result()
        for future in pending:
            yield future.result()


@torch.inference_mode()
def segmenter_logits(
    accelerator: Accelerator,
    settings: Settings,
    model: nn.Module,
    normalization: Normalization,
    rows: Dataset,
    batches: list[list[int]],
    description: str,
) -> Iterator[tuple[list[int], list[np.ndarray], Tensor, tuple[int, int]]]:
    """Runs a segmenter over images in batches of one padded size.

    Yields:
        indices: of the rows.
        images: their (H, W, 3) uint8 arrays.
        logits: (B, num_labels, h, w) float32 over the padded size.
        padded: (height, width) that the logits cover; images lie at its top left.
    """
    model.eval().to(accelerator.device)
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)

    def load(indices: list[int]):
        images = [decode_image(rows[i]) for i in indices]
        padded = padded_size(model, *(max(i.shape[d] for i in images) for d in (0, 1)))
        pixels = np.zeros((len(images), 3, *padded), dtype=np.float32)
        for k, image in enumerate(images):
            pixels[k, :, : image.shape[0], : image.shape[1]] = normalization(image)
        return indices, images, torch.from_numpy(pixels), padded

    loaded = prefetch(load, batches, settings.num_workers)
    bar = tqdm(
        loaded,
        desc=description,
        total=len(batches),
        unit="batch",
        disable=not accelerator.is_main_process,
        mininterval=5,
    )
    for indices, images, pixels, padded in bar:
        pixels = to_device(pixels, accelerator.device, settings.channels_last)
        with accelerator.autocast():
            logits = model(pixel_values=pixels).logits
        yield indices, images, logits.float(), padded


class ClassProbs:
    """Class probabilities of a frozen segmenter, computed once per image: (row, class) -> map.

    One memory-mapped uint8 file at stride 8 holds the classes that have boxes in the image, and nothing else.
    """

    def __init__(self, folder: Path, rows: Dataset):
        self.sizes = list(zip(rows["height"][:], rows["width"][:]))
        self.offsets, _ = _offsets(rows)
        self.values = np.memmap(folder / "class_probs.uint8", dtype=np.uint8, mode="r")

    def __call__(self, index: int, label: int) -> np.ndarray:
        """(H, W) uint8, 255 times the probability, at the image's size."""
        height, width = self.sizes[index]
        h, w = _cached_size(height, width)
        start = self.offsets[index][label]
        return at_image_size(self.values[start : start + h * w].reshape(h, w), height, width)


def cache_class_probs(
    accelerator: Accelerator,
    settings: Settings,
    load_model: Callable[[], tuple[nn.Module, object]],
    rows: Dataset,
    folder: Path,
    description: str,
) -> ClassProbs:
    """Runs the segmenter once over all images, or takes what a run before left in `folder`.

    Args:
        load_model: makes the frozen segmenter and its image processor; called only if it has to run.
    """
    done, temporary = folder / "class_probs.uint8", folder / "class_probs.tmp"
    if not done.is_file():
        offsets, num_bytes = _offsets(rows)
        if accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            np.memmap(temporary, dtype=np.uint8, mode="w+", shape=(max(num_bytes, 1),)).flush()
        accelerator.wait_for_everyone()
        values = np.memmap(temporary, dtype=np.uint8, mode="r+")
        model, processor = load_model()
        batches = size_batches(rows, settings.inference_batch_size)
        mine = batches[accelerator.process_index :: accelerator.num_processes]
        normalization = Normalization.of(processor)
        for indices, images, logits, padded in segmenter_logits(
            accelerator, settings, model, normalization, rows, mine, description
        ):
            probs = stored_probs(model, logits, padded).cpu().numpy()
            for k, (index, image) in enumerate(zip(indices, images)):
                h, w = _cached_size(*image.shape[:2])
                for label, start in offsets[index].items():
                    values[start : start + h * w] = probs[k, label, :h, :w].ravel()
        values.flush()
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            os.replace(temporary, done)
        accelerator.wait_for_everyone()
    return ClassProbs(folder, rows)


@torch.inference_mode()
def write_pseudo_masks(
    accelerator: Accelerator,
    settings: Settings,
    model: LPGModel,
    processor: LPGImageProcessor,
    rows: Dataset,
    class_probs: ClassProbs | None,
    folder: Path,
    description: str,
) -> None:
    """Writes one palette PNG per image: the LPG's masks, cut to the boxes and fused (Eq. (7), Sec. III-D).

    Crowd regions that no class claims are 255. Images are taken in fixed groups and a group with a missing file is
    redone whole, so that a killed run ends with the same bytes as an undisturbed one. `folder/complete.json` appears at
    the end.
    """
    if (folder / "complete.json").is_file():
        return
    model.eval().to(accelerator.device)
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)
    num_views = [
        len(processor.views(*row_boxes(row), row["height"], row["width"]))
        for row in rows.select_columns(list(BOX_COLUMNS))
    ]
    groups = size_batches(rows, settings.inference_batch_size)
    groups = split_by_views(groups, num_views, VIEWS_IN_GROUP * settings.inference_batch_size)
    mine = groups[accelerator.process_index :: accelerator.num_processes]
    names = rows["file_name"][:]
    check_distinct(names)

    def mask_path(index: int) -> Path:
        return Path(fs_path(folder / mask_name(names[index])))

    missing = [group for group in mine if not all(mask_path(i).is_file() for i in group)]

    def load(group: list[int]):
        images, encoded, chunks = [], [], []
        for index in group:
            row = rows[index]
            image = decode_image(row)
            boxes, labels = row_boxes(row)
            views = processor.views(boxes, labels, *image.shape[:2])
            for view in views:
                prob = None if class_probs is None else class_probs(index, view.label)
                encoded.append(processor.encode(image, view, prob))
                if len(encoded) == settings.inference_batch_size:
                    chunks.append(stack_views(encoded))
                    encoded = []
            images.append((mask_path(index), image, boxes, labels, views, box_label_map(row) == IGNORE_INDEX))
        chunks += [stack_views(encoded)] if encoded else []
        return images, [{k: torch.from_numpy(v) for k, v in chunk.items()} for chunk in chunks]

    def save(logits: Tensor, path: Path, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, views, crowd):
        path.parent.mkdir(parents=True, exist_ok=True)
        classes, foreground = processor.decode(logits, views, *image.shape[:2], image)
        smallest = smallest_box_areas(boxes, labels, classes)
        fused = fuse_classes(classes, foreground, smallest, settings.overlap_rule)
        fused[crowd & (fused == 0)] = IGNORE_INDEX
        write_label_map(path, fused)

    bar = tqdm(
        prefetch(load, missing, settings.num_workers),
        desc=description,
        total=len(missing),
        unit="batch",
        disable=not accelerator.is_main_process,
        mininterval=5,
    )
    with ThreadPoolExecutor(max(1, settings.num_workers)) as pool:
        for images, chunks in bar:
            outputs = []
            for chunk in chunks:
                chunk = {k: to_device(v, accelerator.device, settings.channels_last) for k, v in chunk.items()}
                with accelerator.autocast():
                    outputs.append(model(**chunk).logits.float().cpu())
            logits = [view_logits for output in outputs for view_logits in output]
            jobs = []
            start = 0
            for image in images:
                stop = start + len(image[4])
                jobs.append(pool.submit(save, logits[start:stop], *image))
                start = stop
            for job in jobs:
                job.result()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_json(folder / "complete.json", {"images": len(rows), "overlap_rule": settings.overlap_rule})
    accelerator.wait_for_everyone()


def check_distinct(file_names: list[str]) -> None:
    """Raises ValueError if two images, or two entries of one image, would share a mask file."""
    taken: dict[str, str] = {}
    for name in file_names:
        mask = mask_name(name)
        if mask in taken and taken[mask] == name:
            raise ValueError(
                f"the dataset has two entries of the image {name}, which would share the mask {mask}. Put all boxes of an image "
                "into one entry (COCO: one image id; VOC: one xml file, whose <filename> is its own image)."
            )
        if mask in taken:
            raise ValueError(f"{taken[mask]} and {name} would share the mask {mask}: rename one of the images.")
        taken[mask] = name


def _cached_size(height: int, width: int) -> tuple[int, int]:
    return -(-height // CLASS_PROB_STRIDE), -(-width // CLASS_PROB_STRIDE)


def _offsets(rows: Dataset) -> tuple[list[dict[int, int]], int]:
    """Start of every (row, class) map in the cache file, and the file's size in bytes."""
    offsets, position = [], 0
    for row in rows.select_columns(list(BOX_COLUMNS)):
        h, w = _cached_size(row["height"], row["width"])
        _, labels = row_boxes(row)
        starts = {}
        for label in dict.fromkeys(labels.tolist()):
            starts[label] = position
            position += h * w
        offsets.append(starts)
    return offsets, position
