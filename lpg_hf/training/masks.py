"""The LPG's inference between the E-step and the M-step: cached class probabilities in, pseudo masks out."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor
from tqdm import tqdm
from transformers import BaseImageProcessor, PreTrainedModel

from lpg_hf._files import fs_path, write_json
from lpg_hf._threads import prefetch
from lpg_hf.data._examples import decode_image, row_boxes
from lpg_hf.data.load import class_names
from lpg_hf.generators.base import BoxedImage, batches_of_one_size, weights_digest
from lpg_hf.generators.class_probs import ImageProbs, SegmenterInput, SegmenterProbs
from lpg_hf.generators.lpg import LPGGenerator
from lpg_hf.label_maps import clashing_names, mask_name, read_label_map, write_label_map
from lpg_hf.labels import IGNORE_INDEX
from lpg_hf.masks.assembly import AssemblyOptions, assemble, by_position
from lpg_hf.models.image_processing_lpg import LPGImageProcessor
from lpg_hf.models.modeling_lpg import LPGModel
from lpg_hf.training._digests import rows_digest
from lpg_hf.training._label_sources.base import LabelSource, with_crowds
from lpg_hf.training._samples import BOX_COLUMNS
from lpg_hf.training.run import Run


_OWNER = "belongs_to.json"  # in a folder of pseudo masks, whose they are
# The generator's weights have the type that autocast would compute in.
_GENERATOR_DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def _size_batches(rows: Dataset, batch_size: int) -> list[list[int]]:
    """Row indices in batches of one padded size."""
    return batches_of_one_size(dict(enumerate(zip(rows["height"][:], rows["width"][:]))), batch_size)


def encoded_images(
    run: Run,
    segmenter: SegmenterProbs,
    rows: Dataset,
    description: str,
    batches: list[list[int]] | None = None,
) -> Iterator[tuple[list[int], list[np.ndarray], list[SegmenterInput]]]:
    """This process's share of the images, decoded and encoded in threads, in batches of one padded size.

    Args:
        batches: some of `_own_batches`; None: all of them.

    Yields:
        indices: of the rows.
        images: their (H, W, 3) uint8 arrays.
        inputs: what `segmenter.logits` takes.
    """

    def load(indices: list[int]) -> tuple[list[int], list[np.ndarray], list[SegmenterInput]]:
        images = [decode_image(rows[i]) for i in indices]
        return indices, images, [segmenter.encode(image) for image in images]

    mine = _own_batches(run, rows) if batches is None else batches
    return _progress(run, prefetch(load, mine, run.settings.run.num_workers), len(mine), description)


def _own_batches(run: Run, rows: Dataset) -> list[list[int]]:
    """This process's share of `_size_batches`."""
    batches = _size_batches(rows, run.settings.run.inference_batch_size)
    return batches[run.accelerator.process_index :: run.accelerator.num_processes]


def image_logits(logits: Tensor, item: SegmenterInput, image: np.ndarray) -> Tensor:
    """(C, H, W) logits at the pixels of an image, from the segmenter's (C, h, w) for its input."""
    height, width = image.shape[:2]
    return F.interpolate(logits[None], size=item.frame, mode="bilinear")[0, :, :height, :width]


def _progress(run: Run, batches: Iterator, total: int, description: str) -> Iterator:
    """The batches, with a progress bar of the main process."""
    return iter(tqdm(batches, desc=description, total=total, unit="batch", disable=not run.is_main, mininterval=5))


def frozen_segmenter(run: Run, model: PreTrainedModel, processor: BaseImageProcessor) -> SegmenterProbs:
    """A segmenter of the run, on the accelerator's device; a box's label is its own."""
    return SegmenterProbs(model, processor, device=run.accelerator.device)


class ClassProbs:
    """Class probabilities of a frozen segmenter, computed once per image.

    Memory-mapped uint8 files, one per process that wrote them, hold the classes that have boxes in an image, at the
    logits' positions (see `ImageProbs`), and nothing else. Pickled it is its folder: a worker opens the files itself.
    """

    def __init__(self, folder: Path, rows: Dataset):
        self.folder = folder
        self.sizes = np.array([rows["height"][:], rows["width"][:]], dtype=np.int32).T  # (rows, 2)
        self._open()

    def __getstate__(self) -> dict:
        return {"folder": self.folder, "sizes": self.sizes}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._open()

    def _open(self) -> None:
        """Maps the files of all parts; their indices are arrays in the order of the rows."""
        self.values, maps, covered = [], [], []
        for part, num_bytes in enumerate(_read_json(self.folder / "complete.json")["bytes"]):
            path = self.folder / f"part{part}.uint8"
            self.values.append(np.memmap(path, dtype=np.uint8, mode="r") if num_bytes else np.empty(0, np.uint8))
            with np.load(path.with_suffix(".npz")) as index:
                maps.append(np.insert(index["maps"], 1, part, axis=1))
                covered.append(index["covered"])
        of_maps, of_images = np.concatenate(maps), np.concatenate(covered)
        order = np.argsort(of_maps[:, 0], kind="stable")
        self._rows, first = np.unique(of_maps[order, 0], return_index=True)  # rows that have maps
        self._maps = of_maps[order, 1:]  # of each: part, label, start, h, w
        self._bounds = np.append(first, len(order))  # the maps of the n-th of those rows begin at the n-th
        self._covered = of_images[order[first]]

    def of_row(self, index: int) -> ImageProbs:
        """Class id -> (H, W) uint8, 255 times the probability, at the image's size."""
        height, width = self.sizes[index].tolist()
        n = int(np.searchsorted(self._rows, index))
        if n == len(self._rows) or self._rows[n] != index:
            return ImageProbs({}, (0, 0, 1, 1), (height, width))
        stored = {
            label: self.values[part][start : start + h * w].reshape(h, w)
            for part, label, start, h, w in self._maps[self._bounds[n] : self._bounds[n + 1]].tolist()
        }
        x1, y1, x2, y2 = self._covered[n].tolist()
        return ImageProbs(stored, (x1, y1, x2, y2), (height, width))

    def __call__(self, index: int, label: int) -> np.ndarray:
        """(H, W) uint8 of one class of a row."""
        return self.of_row(index)[label]


def cache_class_probs(
    run: Run,
    load_model: Callable[[], tuple[PreTrainedModel, BaseImageProcessor]],
    rows: Dataset,
    folder: Path,
    description: str,
) -> ClassProbs:
    """Runs the segmenter once over all images, or takes what an earlier call left in `folder/class_probs`.

    What was left by other rows or by another segmenter, or has lost a byte, is never taken, but made again.

    Args:
        load_model: makes the frozen segmenter and its image processor.
    """
    accelerator, done = run.accelerator, folder / "class_probs"
    model, processor = load_model()
    belongs_to = {"rows": rows_digest(rows), "segmenter": weights_digest(model), "processor": processor.to_dict()}
    belongs_to = json.loads(json.dumps(belongs_to, default=str))
    unusable = _why_unusable(done, belongs_to)
    accelerator.wait_for_everyone()
    if unusable is not None:
        temporary = done.with_suffix(".tmp")
        if run.is_main:
            if done.exists():
                run.print(f"{done} {unusable}: it is made again.")
            for path in (done, temporary):
                shutil.rmtree(path, ignore_errors=True)
            temporary.mkdir(parents=True)
        accelerator.wait_for_everyone()
        _write_part(run, frozen_segmenter(run, model, processor), rows, temporary, description)
        accelerator.wait_for_everyone()
        if run.is_main:
            write_json(
                temporary / "complete.json",
                {"belongs_to": belongs_to} | _part_sizes(temporary, accelerator.num_processes),
            )
            os.replace(temporary, done)
        run.wait_for(done / "complete.json")
    return ClassProbs(done, rows)


def _write_part(run: Run, segmenter: SegmenterProbs, rows: Dataset, folder: Path, description: str) -> None:
    """The class probabilities of this process's share of the images, and where they lie in its file."""
    part, labels_of = folder / f"part{run.accelerator.process_index}", _labels_of_rows(rows)
    maps, covered, position = [], [], 0
    with open(part.with_suffix(".uint8"), "wb") as file:
        for indices, images, inputs in encoded_images(run, segmenter, rows, description):
            with run.accelerator.autocast():
                probs = segmenter(images, [labels_of[index] for index in indices], inputs)
            for index, image_probs in zip(indices, probs):
                for label, stored in image_probs.stored.items():
                    maps.append((index, label, position, *stored.shape))
                    covered.append(image_probs.covered)
                    file.write(np.ascontiguousarray(stored).data)
                    position += stored.size
    np.savez(
        part.with_suffix(".npz"),
        maps=np.asarray(maps, dtype=np.int64).reshape(-1, 5),
        covered=np.asarray(covered, dtype=np.float64).reshape(-1, 4),
    )


def _why_unusable(folder: Path, belongs_to: dict) -> str | None:
    """Why a cache cannot be taken; None if it can."""
    if not (folder / "complete.json").is_file():
        return "is incomplete"
    found = _read_json(folder / "complete.json")
    sizes = _part_sizes(folder, len(found["bytes"]))
    if sizes != {name: found.get(name) for name in sizes}:
        return "has not the size that was written"
    differing = _differing(found["belongs_to"], belongs_to)
    return f"belongs to other {differing}" if differing else None


def _part_sizes(folder: Path, num_parts: int) -> dict[str, list[int]]:
    """The bytes of each part's probabilities, and of its index; -1 for a missing file."""
    sizes = {}
    for name, suffix in (("bytes", "uint8"), ("index_bytes", "npz")):
        paths = [folder / f"part{part}.{suffix}" for part in range(num_parts)]
        sizes[name] = [path.stat().st_size if path.is_file() else -1 for path in paths]
    return sizes


def _differing(before: dict, current: dict) -> str:
    """The names of the current values that were others before; empty: none."""
    return " and ".join(name for name, value in current.items() if before.get(name) != value)


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def write_pseudo_masks(
    run: Run,
    model: LPGModel,
    processor: LPGImageProcessor,
    rows: Dataset,
    class_probs: ClassProbs | None,
    folder: Path,
    description: str,
) -> None:
    """Writes one palette PNG per image: the LPG's masks, cut to the boxes and fused (Eq. (7), Sec. III-D).

    Crowd regions that no class claims are 255. Images are taken in fixed groups, and a group with a missing file is
    written again as a whole, so that a killed run ends with the same bytes as an undisturbed one.
    `folder/complete.json` appears at the end, `folder/belongs_to.json` before the first mask: what another LPG has
    left unfinished is made again.
    """
    accelerator, settings = run.accelerator, run.settings.run
    generator = LPGGenerator(
        model,
        processor,
        batch_size=settings.inference_batch_size,
        device=accelerator.device,
        dtype=_GENERATOR_DTYPES[accelerator.mixed_precision],
    )
    options = AssemblyOptions(overlap_rule=settings.overlap_rule, clean=False)  # as the paper says
    paths = _mask_paths(rows, folder)
    _claim_masks(run, folder, paths, _lpg_digests(model, processor))

    def write(group: list[int]) -> None:
        of_group = [rows[index] for index in group]
        images = []
        for index, row in zip(group, of_group):
            probs = None if class_probs is None else class_probs.of_row(index)
            images.append(BoxedImage(decode_image(row), *row_boxes(row), probs))
        patches = by_position(generator.patches(images, "class"), len(images))
        for index, row, image, image_patches in zip(group, of_group, images, patches):
            label_map = with_crowds(row, assemble(image, image_patches, "class", options).label_map)
            paths[index].parent.mkdir(parents=True, exist_ok=True)
            write_label_map(paths[index], label_map)

    missing = _missing_batches(run, rows, paths)
    for _ in _progress(run, prefetch(write, missing, settings.num_workers), len(missing), description):
        pass
    accelerator.wait_for_everyone()
    if run.is_main:
        write_json(folder / "complete.json", {"images": len(rows), "overlap_rule": settings.overlap_rule})
    accelerator.wait_for_everyone()


def masks_are_finished(folder: Path, model: LPGModel, processor: LPGImageProcessor) -> bool:
    """Whether a folder holds all pseudo masks of an LPG; those of an earlier version do not tell whose they are.

    Raises:
        ValueError: they are another LPG's. A segmenter may have been trained on them, so they are not made again.
    """
    if not (folder / "complete.json").is_file():
        return False
    path, current = folder / _OWNER, _lpg_digests(model, processor)
    if path.is_file() and (differing := _differing(_read_json(path), current)):
        raise ValueError(
            f"{folder} holds the masks of another LPG (other {differing}). Bring it back to resume the run, give "
            f"another --run.dir for a new run, or delete {folder.parents[1]}."
        )
    return True


def _lpg_digests(model: LPGModel, processor: LPGImageProcessor) -> dict:
    """What tells an LPG from others, as json values."""
    return {"weights": weights_digest(model), "processor": json.loads(processor.to_json_string())}


def _claim_masks(run: Run, folder: Path, paths: list[Path], belongs_to: dict) -> None:
    """Keeps whose masks a folder gets; those there of another LPG, or of nobody known, are removed."""
    owner = folder / _OWNER
    if run.is_main and (not owner.is_file() or _differing(_read_json(owner), belongs_to)):
        left = [path for path in paths if path.is_file()]
        if left:
            run.print(f"{folder} holds {len(left)} masks of another LPG, or does not tell whose: they are made again.")
        for path in left:
            path.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        write_json(owner, belongs_to)
    run.accelerator.wait_for_everyone()


def write_source_labels(
    run: Run,
    source: LabelSource,
    rows: Dataset,
    segmenter: SegmenterProbs | None,
    folder: Path,
    description: str,
) -> None:
    """Writes one palette PNG per image: the labels of a source, in groups that resume as pseudo masks do.

    `folder/complete.json`, with the source's summary, appears at the end.

    Args:
        segmenter: of the round before, whose probabilities the source refines; None: it takes none.

    Raises:
        ValueError: a label map has another size than its image, or a label that is no class.
    """
    names, num_labels = rows["file_name"][:], len(class_names(rows)) + 1
    paths = _mask_paths(rows, folder)
    missing = _missing_batches(run, rows, paths)

    def write(index: int, image: np.ndarray, probs: np.ndarray | None) -> None:
        paths[index].parent.mkdir(parents=True, exist_ok=True)
        source.write(paths[index], rows[index], image, probs)
        _check_labels(read_label_map(paths[index]), image, num_labels, names[index], paths[index])

    def write_group(group: list[int]) -> None:
        for index in group:
            write(index, decode_image(rows[index]), None)

    if segmenter is None:
        groups = prefetch(write_group, missing, run.settings.run.num_workers)
        for _ in _progress(run, groups, len(missing), description):
            pass
    else:
        for indices, images, inputs in encoded_images(run, segmenter, rows, description, missing):
            with run.accelerator.autocast():
                logits = segmenter.logits(inputs)
            for index, image, item, one in zip(indices, images, inputs, logits):
                write(index, image, image_logits(one, item, image).softmax(dim=0).cpu().numpy())
    run.accelerator.wait_for_everyone()
    if run.is_main:
        summary = source.summary(rows, folder, num_labels)
        if summary:
            run.print(f"{description}: {summary}")
        write_json(folder / "complete.json", {"images": len(rows), "labels": run.settings.run.labels} | summary)
    run.wait_for(folder / "complete.json")


def _check_labels(label_map: np.ndarray, image: np.ndarray, num_labels: int, name: str, path: Path) -> None:
    """Raises ValueError, and takes the file away, if a written label map does not fit its image or the classes."""
    wrong = np.setdiff1d(label_map, [*range(num_labels), IGNORE_INDEX])
    if label_map.shape != image.shape[:2] or len(wrong):
        path.unlink()
        what = f"labels {wrong[:5].tolist()}" if len(wrong) else f"height and width {label_map.shape}"
        raise ValueError(
            f"the label map of {name} has {what}, but the image has height and width {image.shape[:2]}, and labels "
            f"are 0 to {num_labels - 1} and {IGNORE_INDEX}."
        )


def _mask_paths(rows: Dataset, folder: Path) -> list[Path]:
    """The label map of each row in a folder."""
    names = rows["file_name"][:]
    check_distinct(names)
    return [Path(fs_path(folder / mask_name(name))) for name in names]


def _missing_batches(run: Run, rows: Dataset, paths: list[Path]) -> list[list[int]]:
    """Those of this process's batches that lack a label map."""
    return [group for group in _own_batches(run, rows) if not all(paths[index].is_file() for index in group)]


def check_distinct(file_names: list[str]) -> None:
    """Raises ValueError if two images, or two entries of one image, would share a mask file."""
    for index, other in clashing_names(file_names).items():
        name, mask = file_names[index], mask_name(file_names[index])
        if other == name:
            raise ValueError(
                f"the dataset has two entries of the image {name}, which would share the mask {mask}. Put all boxes "
                "of an image into one entry (COCO: one image id; VOC: one xml file, whose <filename> is its image)."
            )
        raise ValueError(f"{other} and {name} would share the mask {mask}: rename one of the images.")


def _labels_of_rows(rows: Dataset) -> list[np.ndarray]:
    """The classes that have boxes in each row."""
    without_images = cast("Iterable[dict]", rows.select_columns(list(BOX_COLUMNS)))
    return [np.unique(row_boxes(row)[1]) for row in without_images]
