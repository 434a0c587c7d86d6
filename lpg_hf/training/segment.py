"""A finished segmenter predicts a folder of images (`lpg-hf segment`), also with several scales and a dense CRF."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm

from lpg_hf._bands import Rendering
from lpg_hf._cards import read_json
from lpg_hf._class_lists import listed_name
from lpg_hf._files import fs_path, locked_folder, unicode_path, walk_files, write_atomically, write_json
from lpg_hf._threads import prefetch
from lpg_hf.data.options import SOURCE_OPTIONS
from lpg_hf.data.report import Report
from lpg_hf.data.sources import open_source
from lpg_hf.generators.base import GeneratorOptions, weights_digest
from lpg_hf.generators.class_probs import SegmenterProbs
from lpg_hf.images import IMAGE_SUFFIXES, MAX_PIXELS, read_rgb
from lpg_hf.label_maps import label_map_type, mask_name, write_label_map
from lpg_hf.labels import clean_name
from lpg_hf.training.masks import check_distinct
from lpg_hf.training.measure import after_dense_crf


@dataclass(frozen=True)
class SegmentJob:
    """What `segment` is asked for.

    Attributes:
        model: segmenter, folder or Hub id.
        images: folder of images; with `split`, annotations whose images are meant, see `open_source`.
        out: folder that gets `masks/NAME.png` and `classes.txt`, as of `lpg-hf masks`.
        split: of the annotations.
        scales: the image is also looked at in these sizes, and the probabilities are averaged.
        crf: refine the probabilities with a dense CRF.
        device: see `GeneratorOptions`.
        dtype: see `GeneratorOptions`.
        max_pixels: larger images are skipped.
        rendering: bands and range of the values of the images.
    """

    model: str
    images: Path
    out: Path
    split: str | None = None
    scales: tuple[float, ...] = (1.0,)
    crf: bool = False
    device: str | None = None
    dtype: str = "auto"
    max_pixels: int = MAX_PIXELS
    rendering: Rendering = Rendering()

    def __post_init__(self):
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales={','.join(map(str, self.scales))} must be positive numbers, such as 0.5,1,1.5.")


def segment(job: SegmentJob) -> list[str]:
    """Writes a label map (palette PNG) for every image; images that have one are skipped, so a stopped run resumes.

    Returns:
        What could not be used, with the reason.

    Raises:
        FileNotFoundError: no images, or no such model.
        ValueError: the folder was written with another model or other options; scales for a model that resizes;
            another process writes there; no image can be used.
        ImportError: the dense CRF is not installed.
    """
    folder, names = _listed(job)
    out = Path(fs_path(job.out))
    with locked_folder(out):
        bad = _write_label_maps(job, folder, names)
        if len(bad) == len(names):  # What was written must not refuse the corrected command.
            (out / "classes.txt").unlink()
            (out / "settings.json").unlink()
            raise ValueError(f"none of the {len(names)} images of {job.images} can be used, such as {bad[0]}")
        return bad


def _write_label_maps(job: SegmentJob, folder: str, names: list[str]) -> list[str]:
    """As `segment`, in a folder that is ours alone."""
    device, dtype = GeneratorOptions(device=job.device, dtype=job.dtype).placement()
    segmenter = SegmenterProbs.from_pretrained(job.model, device=device, dtype=dtype)
    if job.scales != (1.0,):
        probe = segmenter.encode(np.zeros((61, 97, 3), np.uint8))  # sides that no processor asks for
        if probe.pixels.shape[1:] != probe.frame:
            raise ValueError(f"{job.model} resizes every image, so other scales change nothing. Leave them out.")
    id2label = sorted((segmenter.model.config.id2label or {}).items())[1:]
    classes = [clean_name(str(name)) or f"class {label}" for label, name in id2label]
    _check_same_settings(job, segmenter)
    write_atomically(job.out / "classes.txt", "".join(f"{listed_name(name)}\n" for name in classes).encode("utf-8"))
    value_type, _ = label_map_type(len(classes))
    missing = [name for name in names if not (job.out / "masks" / mask_name(name)).is_file()]
    bad = []
    images = prefetch(partial(_decoded, folder, job), missing, num_workers=2)
    for name, image in cast("Iterable[tuple]", tqdm(images, total=len(missing), unit="image")):
        if isinstance(image, Exception):
            bad.append(f"{name}: {image}")
            continue
        try:
            probs = _class_probabilities(segmenter, image, job.scales)
            if job.crf:
                probs = after_dense_crf(segmenter.model, image, probs)
        except Exception as error:  # Of many types, from a network that cannot take one pixel in height or width.
            if min(image.shape[:2]) > 1:
                raise
            bad.append(f"{name}: {image.shape[1]} x {image.shape[0]}, {error}")
            continue
        write_label_map(job.out / "masks" / mask_name(name), probs.argmax(axis=0).astype(value_type))
    return bad


def _class_probabilities(segmenter: SegmenterProbs, image: np.ndarray, scales: tuple[float, ...]) -> np.ndarray:
    """The softmax at all pixels, averaged over scales of the image.

    Args:
        image: (H, W, 3) uint8 RGB.
        scales: of its sides.

    Returns:
        (C, H, W) float32.
    """
    height, width = image.shape[:2]
    total = torch.zeros(1)
    for scale in scales:
        rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
        scaled = (
            image
            if scale == 1
            else np.asarray(Image.fromarray(image).resize((columns, rows), Image.Resampling.BILINEAR))
        )
        item = segmenter.encode(scaled)
        logits = F.interpolate(segmenter.logits([item])[0][None], size=item.frame, mode="bilinear")
        logits = F.interpolate(logits[:, :, :rows, :columns], size=(height, width), mode="bilinear")
        total = total.to(logits.device) + logits[0].softmax(dim=0)
    return (total / len(scales)).cpu().numpy()


def _listed(job: SegmentJob) -> tuple[str, list[str]]:
    """The folder of the images, and their names in it."""
    if job.split is None:
        folder = unicode_path(job.images)
        if not os.path.isdir(fs_path(folder)):
            raise FileNotFoundError(f"image folder not found: {job.images}.")
        names = list(walk_files(folder, IMAGE_SUFFIXES))
    else:
        options = replace(SOURCE_OPTIONS, split=job.split, max_pixels=job.max_pixels)
        source = open_source(job.images, None, options, report=Report())
        if source.image_folder is None:
            raise ValueError(f"{job.images} holds its images in rows. Pass a folder of images without a split.")
        folder, names = source.image_folder, source.file_names
    if not names:
        raise FileNotFoundError(f"no image in {job.images}. Pass a folder with {', '.join(IMAGE_SUFFIXES)} files.")
    check_distinct(names)
    return folder, names


def _decoded(folder: str, job: SegmentJob, name: str) -> tuple[str, np.ndarray | Exception]:
    """An image, or why it cannot be used."""
    path = f"{folder}/{name}"
    try:
        return name, read_rgb(path, path, job.max_pixels, job.rendering)
    except (OSError, ValueError) as error:
        return name, error


def _check_same_settings(job: SegmentJob, segmenter: SegmenterProbs) -> None:
    """Records what the masks depend on; raises ValueError if the folder was written with something else."""
    settings = {"scales": list(job.scales), "crf": job.crf, "weights_sha256": weights_digest(segmenter.model)}
    given = {"bands": list(job.rendering.bands or ()), "stretch": job.rendering.stretch}
    settings |= {name: value for name, value in given.items() if value}
    path = job.out / "settings.json"
    if path.is_file() and read_json(path) != settings:
        raise ValueError(
            f"{job.out} was written with another model or other options. Name another --out, or remove it."
        )
    write_json(path, settings)
