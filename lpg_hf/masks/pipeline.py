"""The box-to-mask pipeline: images and boxes in, one mask per box and a label map per image out.

import lpg_hf
from transformers import pipeline

lpg_hf.register_auto_classes()
pipe = pipeline("box-mask-generation", model="org/lpg-stage1")
result = pipe("street.jpg", boxes=[[10, 20, 110, 140]], labels=[1])
"""

import io
import os
from collections.abc import Iterator
from itertools import islice
from typing import Any, cast

import numpy as np
import requests
from PIL import Image
from torch import Tensor
from transformers import Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from lpg_hf.boxes import clip_boxes, convert_boxes
from lpg_hf.generators.base import GRANULARITIES, BoxedImage, Patch, check_choice
from lpg_hf.generators.bundle import bundled
from lpg_hf.generators.class_probs import SegmenterProbs
from lpg_hf.generators.lpg import LPGGenerator
from lpg_hf.images import MAX_PIXELS, read_rgb
from lpg_hf.label_maps import IGNORE_INDEX_16
from lpg_hf.masks.assembly import AssemblyOptions, assemble, by_position
from lpg_hf.masks.fusion import OVERLAP_RULES
from lpg_hf.models.image_processing_lpg import LPGImageProcessor
from lpg_hf.models.modeling_lpg import LPGModel


TASK = "box-mask-generation"
DEFAULT_BATCH_SIZE = 8
URL_TIMEOUT = 60  # seconds in which a server must answer, and continue to answer


Results = dict | list[dict] | Iterator[dict]


class BoxToMaskPipeline(Pipeline):
    """Masks from boxes with an [`LPGModel`].

    The image processor stores how the model is run: the whole image per class, or a window per box. The caller chooses
    how fine the result is, see `per`.

    Args:
        model: an [`LPGModel`]; by `transformers.pipeline` also a Hub id or a folder.
        image_processor: its [`LPGImageProcessor`].
        segmenter: for a model with `config.use_class_prob`: an AutoModelForSemanticSegmentation, its Hub id, or its
            folder; optional with `config.class_prob_optional`. Box labels are the segmenter's own.
        segmenter_processor: its image processor, where `segmenter` is a model.
        flip: each view is also seen mirrored: better masks in twice the time.
        batch_size: images that are prepared together (default 8); a forward pass takes up to twice as many views.
    """

    _load_processor = False
    _load_image_processor = True
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, *args, segmenter=None, segmenter_processor=None, flip: bool = False, **kwargs):
        kwargs["batch_size"] = kwargs.get("batch_size") or DEFAULT_BATCH_SIZE
        super().__init__(*args, **kwargs)
        if self.image_processor is None:
            raise ValueError("the pipeline needs the LPGImageProcessor of the model: pass image_processor=...")
        if isinstance(segmenter, (str, os.PathLike)):
            segmenter = SegmenterProbs.from_pretrained(segmenter, device=self.device, dtype=self.model.dtype)
        elif segmenter is not None:
            if segmenter_processor is None:
                raise ValueError("segmenter is a model: pass segmenter_processor=... too, or the segmenter's folder.")
            segmenter = SegmenterProbs(segmenter, segmenter_processor, device=self.device)
        self.generator = LPGGenerator(
            cast(LPGModel, self.model),
            cast(LPGImageProcessor, self.image_processor),
            segmenter,
            batch_size=2 * self._batch_size,
            flip=flip,
            device=self.device,
        )

    def __call__(
        self,
        images: Any,
        boxes: Any = None,
        labels: Any = None,
        class_probs: Any = None,
        **kwargs,
    ) -> Results:
        """Masks of one image, of a list, or of a stream.

        Args:
            images: an image (path, URL, PIL, or (H, W), (H, W, 3) uint8 array) or a list of them; or dicts
                {"image", "boxes", "labels", "class_probs"}. From a generator of dicts comes a generator of results.
            boxes: (N, 4) numbers for one image, or a list of such: list, tuple, numpy or torch. In original pixels of
                the upright image. They may reach over its border.
            labels: (N,) class ids from 1 on, per image; None: one class.
            class_probs: (num_labels, h, w) probabilities of a segmenter over the image, in [0, 1], per image.
            box_format (`str`): "xyxy" (default), "xywh", "cxcywh", "yolo" or "voc", see `lpg_hf.boxes`.
            per (`str`): "instance" (default), one mask per box on its own; or "class": the boxes of a class are seen
                together, and a box's mask is its class's mask inside the box.
            overlap_rule (`str`): which class keeps a pixel of the label map that several claim, see `fusion.Fusion`.
            threshold (`float`): foreground probability above which a pixel is in the mask (default 0.5).
            clean (`bool`): drop specks and fill small holes of every mask (default True).
            exclusive (`bool`): no pixel is in two masks, by the overlap rule (default False).
            max_pixels (`int`): an image of a path or URL with more is refused before it takes memory (default
                178956970).
            output_rle (`bool`): masks as COCO run lengths, which very many boxes need (default False).
            batch_size (`int`): as of the constructor, from this call on. Images are decoded in this process;
                `num_workers`, which every pipeline takes, has no effect.

        Returns:
            Per image a dict: `masks`, one per box in the order given, (H, W) bool, nothing outside its box (or RLE);
            `scores`, the mean foreground probability of each mask's pixels (0 for an empty mask); `fill_rates`, the
            share of each box that is mask; `labels`; `label_map`, (H, W) uint8, or uint16 above 254 classes. Without
            boxes the lists are empty and the map is 0.

        Raises:
            ValueError: boxes, labels or settings that are not as above; the message names the box and, in a list or
                stream, the position (from 0 on) and the path or URL of the image.
            OSError: an image that cannot be read; named in the same way.
        """
        single = not isinstance(images, (list, tuple))
        if not single and len(images) == 0:
            return []
        if boxes is None:
            if labels is not None or class_probs is not None:
                raise ValueError("labels and class_probs belong to boxes: pass boxes=... too.")
            return cast(Results, super().__call__(images, **kwargs))
        columns = {"image": images, "boxes": boxes, "labels": labels, "class_probs": class_probs}
        columns = {name: [value] if single else value for name, value in columns.items() if value is not None}
        lengths = {name: len(value) for name, value in columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"one entry per image is needed, but the numbers differ: {lengths}.")
        inputs = [dict(zip(columns, row)) for row in zip(*columns.values())]
        return cast(Results, super().__call__(inputs[0] if single else inputs, **kwargs))

    def _sanitize_parameters(  # pyright: ignore[reportIncompatibleMethodOverride]  (as pipelines do)
        self,
        box_format: str | None = None,
        per: str | None = None,
        output_rle: bool | None = None,
        max_pixels: int | None = None,
        **assembly: Any,
    ) -> tuple[dict, dict, dict]:
        assembly = {name: value for name, value in assembly.items() if value is not None}
        options = AssemblyOptions(**assembly)
        if per is not None:
            check_choice("per", per, GRANULARITIES)
        check_choice("overlap_rule", options.overlap_rule, OVERLAP_RULES)
        if not 0 <= options.threshold <= 1:
            raise ValueError(f"threshold={options.threshold} is a probability: it must lie in [0, 1].")
        if max_pixels is not None and max_pixels < 1:
            raise ValueError(f"max_pixels={max_pixels} lets no image in: it must be at least 1.")
        preprocess = {"box_format": box_format, "max_pixels": max_pixels}
        forward = {"per": per}
        postprocess = {"per": per, "output_rle": output_rle, **assembly}
        first, second, third = (
            {name: value for name, value in step.items() if value is not None}
            for step in (preprocess, forward, postprocess)
        )
        return first, second, third

    def preprocess(self, inputs: dict, box_format: str = "xyxy", max_pixels: int = MAX_PIXELS) -> BoxedImage:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not isinstance(inputs, dict) or inputs.get("boxes") is None:
            raise ValueError("the pipeline needs boxes for every image: pipe(image, boxes=[[x1, y1, x2, y2], ...]).")
        unknown = sorted(set(inputs) - {"image", "boxes", "labels", "class_probs"})
        if unknown:
            raise ValueError(f"unknown input {unknown[0]!r}; an image comes as image, boxes, labels and class_probs.")
        image = _as_pixels(inputs["image"], max_pixels)
        boxes, labels = checked_boxes(inputs["boxes"], inputs.get("labels"), box_format, *image.shape[:2])
        probs = inputs.get("class_probs")
        return BoxedImage(image, boxes, labels, None if probs is None else _checked_class_probs(probs, labels))

    def _forward(self, images: list[BoxedImage], per: str = "instance") -> Iterator[tuple[int, Patch]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.generator.patches(images, per)

    def postprocess(  # pyright: ignore[reportIncompatibleMethodOverride]  (as pipelines do)
        self,
        outputs: tuple[BoxedImage, Iterator[Patch]],
        per: str = "instance",
        output_rle: bool = False,
        **assembly: Any,
    ) -> dict:
        image, patches = outputs
        options = AssemblyOptions(**assembly)
        result = assemble(image, patches, per, options)
        return {
            "masks": [mask.rle if output_rle else mask.decode() for mask in result.masks],
            "scores": [mask.score for mask in result.masks],
            "fill_rates": [mask.fill_rate for mask in result.masks],
            "labels": image.labels.tolist(),
            "label_map": result.label_map,
        }

    def run_single(self, inputs, preprocess_params: dict, forward_params: dict, postprocess_params: dict) -> dict:
        prepared = iter([self.preprocess(inputs, **preprocess_params)])
        return next(self._results(prepared, 1, forward_params, postprocess_params))

    def get_iterator(  # pyright: ignore[reportIncompatibleMethodOverride]  (as pipelines do)
        self, inputs, num_workers: int, batch_size: int, preprocess_params, forward_params, postprocess_params
    ) -> Iterator[dict]:
        self.generator.batch_size = 2 * batch_size
        prepared = (self._prepared(number, item, preprocess_params) for number, item in enumerate(inputs))
        return self._results(prepared, batch_size, forward_params, postprocess_params)

    def _prepared(self, number: int, item: Any, preprocess_params: dict) -> BoxedImage:
        """As `preprocess`; errors name the image."""
        try:
            return self.preprocess(item, **preprocess_params)
        except (OSError, ValueError) as error:
            image = item.get("image") if isinstance(item, dict) else item
            name = f"image {number}" + (f" ({image})" if isinstance(image, (str, os.PathLike)) else "")
            raise (OSError if isinstance(error, OSError) else ValueError)(f"{name}: {error}") from error

    def _results(
        self, prepared: Iterator[BoxedImage], batch_size: int, forward_params: dict, postprocess_params: dict
    ) -> Iterator[dict]:
        """Results in the order of the images, a group at a time; views of a group share forward passes."""
        while group := list(islice(prepared, batch_size)):
            patches = self._forward(group, **forward_params)
            for image, image_patches in zip(group, by_position(patches, len(group))):
                yield self.postprocess((image, image_patches), **postprocess_params)


def _as_pixels(image: Any, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A path, URL, PIL image or array as upright (H, W, 3) uint8 RGB.

    Args:
        max_pixels: a file or URL with more is refused.

    Raises:
        OSError: a file that is not an image or is too large, or a URL that cannot be fetched.
        ValueError: an array of another type or shape, or a kind of image that is refused.
    """
    if isinstance(image, Image.Image):
        return read_rgb(image)
    if isinstance(image, str) and image.startswith(("http://", "https://")):
        return read_rgb(io.BytesIO(_fetched(image)), image, max_pixels)
    if isinstance(image, (str, os.PathLike)):
        return read_rgb(str(image), max_pixels=max_pixels)
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise ValueError(f"the image is a {pixels.dtype} array of shape {pixels.shape}; pass (H, W, 3) uint8 RGB.")
    return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels


def _fetched(url: str) -> bytes:
    """The file at a URL.

    Raises:
        OSError: it cannot be fetched.
    """
    try:
        response = requests.get(url, timeout=URL_TIMEOUT)
        response.raise_for_status()
    except requests.RequestException as error:
        raise OSError(f"cannot fetch the image {url}: {error}") from error
    return response.content


def checked_boxes(boxes: Any, labels: Any, box_format: str, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of any container and format as xyxy inside the image, with their labels.

    Args:
        boxes: (N, 4) numbers: list, tuple, numpy or torch; N may be 0.
        labels: (N,) integers from 1 on, or None: all 1.

    Returns:
        boxes: (N, 4) float32 xyxy, pixels, clipped to the image.
        labels: (N,) int64.

    Raises:
        ValueError: a box is not four finite numbers, is empty or lies outside the image; labels that do not fit.
    """
    values = boxes.detach().cpu().double().numpy() if isinstance(boxes, Tensor) else boxes
    given = np.array(values, dtype=np.float64)
    if given.size == 0:
        given = given.reshape(0, 4)
    if given.ndim != 2 or given.shape[1] != 4:
        raise ValueError(f"boxes of an image must be (N, 4) numbers, got shape {given.shape}.")
    if not np.isfinite(given).all():
        raise ValueError(
            f"box {np.flatnonzero(~np.isfinite(given).all(axis=1))[0]} holds a number that is not finite."
        )
    xyxy: np.ndarray = np.asarray(convert_boxes(given, box_format, "xyxy", height, width))
    inside = np.asarray(clip_boxes(xyxy, height, width), dtype=np.float32)
    empty = np.flatnonzero(~((xyxy[:, 2:] > xyxy[:, :2]).all(axis=1) & (inside[:, 2:] > inside[:, :2]).all(axis=1)))
    if len(empty):
        i = empty[0]
        raise ValueError(
            f"box {i} is empty or outside the image of {width} x {height}: {given[i].tolist()} as {box_format}. "
            f"Boxes are "
            "xyxy in original pixels with x1 < x2 and y1 < y2; name another format with box_format=..."
        )
    ids: np.ndarray = np.ones(len(inside), dtype=np.int64) if labels is None else np.asarray(labels)
    ids = ids.astype(np.int64) if ids.size == 0 else ids
    in_range = ids.size == 0 or (ids.dtype.kind in "iu" and 1 <= ids.min() <= ids.max() < IGNORE_INDEX_16)
    if ids.shape != (len(inside),) or not in_range:
        raise ValueError(
            f"labels must be one integer from 1 to {IGNORE_INDEX_16 - 1} for each of the {len(inside)} boxes, "
            f"got {labels!r}."
        )
    return inside, ids.astype(np.int64)


def _checked_class_probs(probs: Any, labels: np.ndarray) -> dict[int, np.ndarray]:
    """The probabilities of the classes that have boxes.

    Args:
        probs: (num_labels, h, w) in [0, 1], numpy or torch.
        labels: (N,) class ids.

    Raises:
        ValueError: another shape, values outside [0, 1], or a label that has no map.
    """
    maps = np.asarray(probs.detach().float().cpu() if isinstance(probs, Tensor) else probs, dtype=np.float32)
    if maps.ndim != 3 or (len(labels) and labels.max() >= len(maps)):
        raise ValueError(
            f"class_probs have shape {maps.shape}; labels up to {labels.max(initial=0)} need (num_labels, h, w) "
            f"with a map "
            "for each label, the background first."
        )
    if maps.size and not (maps.min() >= 0 and maps.max() <= 1 + 1e-3):
        raise ValueError(f"class_probs lie in {maps.min()}..{maps.max()}; pass the softmax of the logits, in [0, 1].")
    return {label: maps[label] for label in dict.fromkeys(labels.tolist())}


# A second import finds the task registered already: transformers would warn.
if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
    PIPELINE_REGISTRY.register_pipeline(
        TASK,
        pipeline_class=BoxToMaskPipeline,
        pt_model=LPGModel,
        default={"model": (str(bundled()), "main")},
        type="image",
    )
