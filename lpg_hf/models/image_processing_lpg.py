"""Images and boxes to the generator's inputs, and its logits back to foreground maps of the image's own size."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_base import BatchFeature
from transformers.image_utils import ChannelDimension, ImageInput
from transformers.processing_utils import ImagesKwargs
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from typing_extensions import Unpack

from .modeling_lpg import LPGOutput
from .views_lpg import (
    Augmentation,
    View,
    bands_to_image,
    box_mask_of_view,
    box_views,
    edge_maps,
    image_to_view,
    image_views,
    pixel_range,
    random_box_view,
    random_image_view,
    reduce_detail,
    visible_part,
)


VIEWS = ("image", "box")
LARGEST_VIEW = 8192  # pixels of its side
BOX_ENCODINGS = ("filled", "distance")
# What a generator was trained with: a call with boxes cannot change it.
VIEW_SETTINGS = (
    "view",
    "view_size",
    "view_context",
    "view_min_size",
    "align_corners",
    "box_encoding",
    "edge_radius",
)


class LPGImageProcessorKwargs(ImagesKwargs, total=False):
    """
    view (`str`): `"image"`, the whole image once per class (the paper), or `"box"`, a square window per box (ours).
    view_size (`int`): side of a box view in pixels.
    view_context (`float`): margin of a box view on each side, as a share of the longer box side.
    view_min_size (`int`): side in pixels to which a smaller image view is padded, right and bottom; the official code
        has 512 for VOC, 640 for COCO. With `align_corners` it decides where the logits lie.
    align_corners (`bool`): how stride-4 logits are brought to full size; the official code: True.
    box_encoding (`str`): `"filled"`, 1 inside the boxes (the paper), or `"distance"`, 0.5 at their edges to 1 in their
        middle.
    edge_radius (`int`): 0: the foreground is the generator's own (the paper), interpolated from its stride of 4. Above
        0, it follows the image's edges as a guided filter of this radius does, in positions of that stride, see
        `edge_maps`.
    """

    view: str
    view_size: int
    view_context: float
    view_min_size: int | None
    align_corners: bool
    box_encoding: str
    edge_radius: int


class LPGImageProcessor(PilBackend):
    """Image processor of [`LPGModel`]. Which view the generator was trained with is stored here, and only here.

    Boxes are xyxy in original pixels, 0-based, end exclusive; class ids are 1-based.
    """

    valid_kwargs = LPGImageProcessorKwargs
    model_input_names = ["pixel_values", "box_mask"]
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    rescale_factor = 1 / 255
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_pad = True
    view = "image"
    view_size = 192
    view_context = 0.25
    view_min_size = None
    align_corners = False
    box_encoding = "filled"
    edge_radius = 0

    def __init__(self, **kwargs: Unpack[LPGImageProcessorKwargs]):
        super().__init__(**kwargs)
        if self.view not in VIEWS:
            raise ValueError(f"view={self.view!r} is unknown to LPGImageProcessor. Choose one of {', '.join(VIEWS)}.")
        if self.box_encoding not in BOX_ENCODINGS:
            raise ValueError(
                f"box_encoding={self.box_encoding!r} is unknown to LPGImageProcessor. Choose one of "
                f"{', '.join(BOX_ENCODINGS)}."
            )
        self._check_types()
        if self.edge_radius < 0:
            raise ValueError(f"edge_radius={self.edge_radius} of LPGImageProcessor must be at least 0 (no edges).")

    def _check_types(self) -> None:
        """The json file of a checkpoint is edited by hand: "1" is not 1, and a view has to fit into memory."""
        size = int, lambda value: 1 <= value <= LARGEST_VIEW, f"a whole number from 1 to {LARGEST_VIEW}"
        allowed: dict[str, tuple[type | tuple[type, ...], Any, str]] = {
            "view_size": size,
            "view_context": ((int, float), lambda value: 0 <= value <= 10, "a number from 0 to 10"),
            "align_corners": (bool, lambda value: True, "true or false"),
            "edge_radius": (int, lambda value: value <= LARGEST_VIEW, "a whole number"),
            "rescale_factor": ((int, float), lambda value: 1e-6 <= value <= 1e6, "a number from 1e-6 to 1e6"),
        }
        if self.view_min_size is not None:
            allowed["view_min_size"] = size
        for name, (kind, fits, what) in allowed.items():
            value = getattr(self, name)
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool) or not fits(value):
                raise ValueError(f"{name}={value!r} of LPGImageProcessor must be {what}.")
        for name, smallest in (("image_mean", -1e6), ("image_std", 0.0)):
            value = getattr(self, name)
            numbers: Sequence[Any] = value if isinstance(value, (list, tuple)) else ()
            if len(numbers) != 3 or not all(type(v) in (int, float) and smallest < v < 1e6 for v in numbers):
                raise ValueError(f"{name}={value!r} of LPGImageProcessor must be three numbers, RGB, in 0..1.")

    # One image at a time: what the training loop, the mask writer and the pipeline use.

    def views(self, boxes: np.ndarray, labels: np.ndarray, height: int, width: int) -> list[View]:
        """The forward passes that an image needs.

        Args:
            boxes: (N, 4) xyxy in image pixels.
            labels: (N,) class ids.
        """
        if self.view == "image":
            return image_views(boxes, labels, height, width, self.view_min_size or 0)
        return box_views(boxes, labels, self.view_size, self.view_context)

    def random_view(
        self, view: View, size: tuple[int, int], rng: np.random.Generator, augmentation: Augmentation
    ) -> View:
        """An augmented view for training.

        Args:
            view: one of `views`.
            size: (height, width) of its image.
        """
        if self.view == "image":
            scale = augmentation.scales[int(rng.integers(len(augmentation.scales)))]
            return random_image_view(view.boxes, view.label, *size, augmentation.crop_size, scale, rng)
        return random_box_view(view.boxes[0], view.label, self.view_size, rng, augmentation)

    def encode(
        self,
        image: np.ndarray,
        view: View,
        class_prob: np.ndarray | None = None,
        target: np.ndarray | None = None,
        pad_label: int = 255,
    ) -> dict[str, np.ndarray]:
        """The arrays of one view.

        Args:
            image: (H, W, 3) uint8 RGB.
            class_prob: (h, w) float32 in [0, 1] or uint8 in [0, 255]; the segmenter's probability of the view's class
                over the whole image, at any resolution.
            target: (H, W) uint8 mask of the view's class, 0, 1 or 255.
            pad_label: label outside the image.

        Returns:
            `pixel_values` (3, h, w) float32, `box_mask` (1, h, w) float32 and, if given, `class_prob` (1, h, w)
            float32 and `labels` (h, w) int64.
        """
        encoded = self.encode_pixels(image, view) | self.encode_prompt(view, image.shape[:2], class_prob)
        if target is not None:
            encoded["labels"] = image_to_view(target, view, pad_label).astype(np.int64)
        return encoded

    def encode_pixels(self, image: np.ndarray, view: View) -> dict[str, np.ndarray]:
        """`pixel_values` of `encode`; views of one window and size share them."""
        mean, std = np.asarray(self.image_mean, np.float32), np.asarray(self.image_std, np.float32)
        pixels = image_to_view(image, view, self._fill)
        if view.detail is not None:
            pixels = reduce_detail(pixels, view.detail)
        # The normalised value of every grey level, looked up: the same numbers as of all pixels, in half the time.
        levels = (np.arange(256, dtype=np.float32)[:, None] * np.float32(self.rescale_factor) - mean) / std
        normalized = np.empty((3, *view.size), dtype=np.float32)
        for channel in range(3):
            np.take(levels[:, channel].copy(), pixels[..., channel], out=normalized[channel], mode="clip")
        if self.view_min_size and view.window == (0, 0, *view.size[::-1]) and not view.flip:
            # Parity: the official padding is exactly the mean colour, which the 8-bit fill only comes near to.
            normalized[:, image.shape[0] :] = normalized[:, :, image.shape[1] :] = 0
        return {"pixel_values": normalized}

    @property
    def _fill(self) -> tuple[int, ...]:
        """The mean colour in 8 bits, which views have outside the image."""
        levels = np.asarray(self.image_mean, np.float32) / self.rescale_factor
        return tuple(int(level) for level in np.rint(levels).clip(0, 255))

    def encode_prompt(
        self, view: View, size: tuple[int, int], class_prob: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """`box_mask` and, if given, `class_prob` of `encode`, for an image of `size` (height, width)."""
        encoded = {"box_mask": box_mask_of_view(view, self.box_encoding)[None]}
        if class_prob is not None:
            scale = 1 / 255 if class_prob.dtype == np.uint8 else 1.0
            if class_prob.shape != size:
                prob = Image.fromarray(class_prob.astype(np.float32))
                class_prob = np.asarray(prob.resize((size[1], size[0]), Image.Resampling.BILINEAR))
            rows, columns = visible_part(view, *size)  # the rest of the image is not looked at
            x1, y1, x2, y2 = view.window
            window = (x1 - columns.start, y1 - rows.start, x2 - columns.start, y2 - rows.start)
            inside = image_to_view(class_prob[rows, columns].astype(np.float32), replace(view, window=window))
            encoded["class_prob"] = inside[None] * np.float32(scale)
        return encoded

    def decode(
        self,
        logits: torch.Tensor,
        views: Sequence[View],
        height: int,
        width: int,
        image: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Foreground maps of one image from the logits of its views.

        Args:
            logits: (V, 2, h, w) float at stride 4, one per view.
            image: (height, width, 3) uint8 RGB; needed with an `edge_radius`.

        Returns:
            labels: (K,) int64, the classes in order of first appearance.
            foreground: (K, height, width) float32 probability, 0 outside the boxes of the class (Eq. (7)); where
                several views of a class overlap, their maximum.
        """
        labels = list(dict.fromkeys(view.label for view in views))
        foreground = np.zeros((len(labels), height, width), dtype=np.float32)
        for view, view_logits in zip(views, logits):
            rows, columns, patch = self.decode_view(view_logits, view, height, width, image)
            merged = foreground[labels.index(view.label), rows, columns]
            np.maximum(merged, patch, out=merged)
        return np.asarray(labels, dtype=np.int64), foreground

    def decode_view(
        self, logits: torch.Tensor, view: View, height: int, width: int, image: np.ndarray | None = None
    ) -> tuple[slice, slice, np.ndarray]:
        """The foreground that one view sees.

        Args:
            logits: (2, h, w) float at stride 4.
            image: (height, width, 3) uint8 RGB; needed with an `edge_radius`.

        Returns:
            rows, columns: the window of the image that the view covers.
            foreground: (rows, columns) float32 probability, 0 outside the view's boxes.

        Raises:
            ValueError: an `edge_radius` without the image.
        """
        if not self.edge_radius:
            image, maps = None, logits
        elif image is None:
            raise ValueError(f"edge_radius={self.edge_radius} follows the image's edges: pass the image(s) too.")
        else:
            maps = self._edge_maps(logits, view, image)
        rows, columns = visible_part(view, height, width)
        prob = np.zeros((rows.stop - rows.start, columns.stop - columns.start), dtype=np.float32)
        for band, patch in bands_to_image(maps, view, rows, columns, self.align_corners):
            band_prob = prob[band.start - rows.start : band.stop - rows.start]
            if image is None:
                band_prob[...] = torch.sigmoid(patch[1] - patch[0]).numpy()  # softmax over two logits
                continue
            *slopes, band_prob[...] = patch.numpy()
            for channel, slope in enumerate(slopes):
                band_prob += slope * image[band, columns, channel]
            band_prob.clip(0, 1, out=band_prob)
        foreground = np.zeros_like(prob)
        for x1, y1, x2, y2 in view.boxes:
            box_rows, box_columns = pixel_range(y1, y2, height), pixel_range(x1, x2, width)
            inside = (
                slice(max(box_rows.start - rows.start, 0), max(box_rows.stop - rows.start, 0)),
                slice(max(box_columns.start - columns.start, 0), max(box_columns.stop - columns.start, 0)),
            )
            foreground[inside] = prob[inside]
        return rows, columns, foreground

    def _edge_maps(self, logits: torch.Tensor, view: View, image: np.ndarray) -> torch.Tensor:
        """`edge_maps` of the view's foreground inside its boxes, for colours of 8 bits; (4, h, w)."""
        h, w = (-(-side // 4) for side in view.size)  # without the batch's padding
        x1, y1, x2, y2 = view.window
        # The grid reaches over the view's right edge, which is the image's left one where the view is mirrored.
        width = round((x2 - x1) * 4 * w / view.size[1])
        x1, x2 = (x2 - width, x2) if view.flip else (x1, x1 + width)
        covered = (x1, y1, x2, y1 + round((y2 - y1) * 4 * h / view.size[0]))
        cells = replace(view, window=covered, size=(h, w))
        pixels = image_to_view(image, cells, self._fill, Image.Resampling.BOX)
        guide = torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)
        inside = F.avg_pool2d(torch.from_numpy(box_mask_of_view(view).copy())[None], 4, ceil_mode=True)[0]
        logits = logits[:, :h, :w].float()
        maps = edge_maps(torch.sigmoid(logits[1] - logits[0]) * inside, guide, self.edge_radius)
        maps[:3] /= 255
        return maps

    # The ecosystem's call.

    def preprocess(  # pyright: ignore[reportIncompatibleMethodOverride]  as every processor with more inputs
        self,
        images: ImageInput,
        boxes: Sequence | None = None,
        box_labels: Sequence | None = None,
        class_probs: Sequence | None = None,
        **kwargs: Unpack[LPGImageProcessorKwargs],
    ) -> BatchFeature:
        """
        Args:
            images: one image or a list: PIL, (H, W, 3) or (3, H, W) uint8 arrays or tensors. PIL images are turned
                upright, see `_upright_rgb`, unless `do_convert_rgb` is off.
            boxes: (N, 4) xyxy in original pixels for one image, or a list of such for a list of images; N may differ.
            box_labels: (N,) class ids per image, 1-based; one class if absent.
            class_probs: the segmenter's softmax probabilities per image, at any resolution: (num_labels, h, w) float,
                or label -> (h, w) float in [0, 1] or uint8 in [0, 255].

        Returns:
            Without boxes only `pixel_values` (B, 3, H, W). With boxes one row per view, of all images in turn, always
            rescaled and normalised by the processor's own values and never resized, as the generator needs them:
            `pixel_values` (V, 3, h, w), `box_mask` (V, 1, h, w), `class_prob` (V, 1, h, w) if `class_probs` are given,
            and `views`, a list of [`View`] per image, which `post_process_foreground` needs.

        Raises:
            ValueError: boxes, labels or probabilities do not fit the images, images are neither 8-bit nor 16-bit PIL
                images, or a setting of the view differs from the processor's own.
        """
        return super().preprocess(images, boxes, box_labels, class_probs, **kwargs)

    def process_image(
        self,
        image: ImageInput,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """One image as a (3, H, W) array; a PIL image by `_upright_rgb` where `do_convert_rgb` is on."""
        if do_convert_rgb and isinstance(image, Image.Image):
            image, do_convert_rgb, input_data_format = _upright_rgb(image), False, ChannelDimension.LAST
        return super().process_image(image, do_convert_rgb, input_data_format, **kwargs)

    def _preprocess_image_like_inputs(self, images: ImageInput, *args: Sequence | None, **kwargs: Any) -> BatchFeature:
        boxes, box_labels, class_probs = args
        single = not isinstance(images, (list, tuple))
        prepared = self._prepare_image_like_inputs(
            images,
            do_convert_rgb=kwargs.pop("do_convert_rgb"),
            input_data_format=kwargs.pop("input_data_format"),
        )
        if boxes is None:
            return self._preprocess(prepared, **kwargs)
        self._check_same_view(kwargs)
        if single:
            boxes, box_labels, class_probs = (None if v is None else [v] for v in (boxes, box_labels, class_probs))
            assert boxes is not None
        for name, value in (("boxes", boxes), ("box_labels", box_labels), ("class_probs", class_probs)):
            if value is not None and len(value) != len(prepared):
                raise ValueError(f"{name} has {len(value)} entries for {len(prepared)} images: give one per image.")

        views, rows = [], []
        for i, image in enumerate(prepared):
            if image.dtype != np.uint8:
                raise ValueError(f"image {i} is {image.dtype}: with boxes, images must be 8-bit (uint8, 0 to 255).")
            image = image.transpose(1, 2, 0)
            image_boxes, labels = _checked_boxes(i, boxes[i], None if box_labels is None else box_labels[i])
            views.append(self.views(image_boxes, labels, *image.shape[:2]))
            for view in views[-1]:
                prob = None if class_probs is None else np.asarray(class_probs[i][view.label])
                rows.append(self.encode(image, view, prob))
        data = stack_views(rows)
        if class_probs is not None and not rows:
            data["class_prob"] = data["box_mask"]
        batch = BatchFeature(data=data, tensor_type=kwargs["return_tensors"])
        batch["views"] = views
        return batch

    def _check_same_view(self, values: Mapping) -> None:
        """Raises ValueError if the values of one call differ from the processor's own."""
        for name in VIEW_SETTINGS:
            if values[name] != getattr(self, name):
                raise ValueError(
                    f"{name}={values[name]!r} was given for one call, but this processor has {getattr(self, name)!r}, "
                    "which belongs to its generator. Make a processor of its own: LPGImageProcessor(...)."
                )

    def post_process_foreground(
        self,
        outputs: LPGOutput,
        views: Sequence[Sequence[View]],
        target_sizes: Sequence[tuple[int, int]],
        images: ImageInput | None = None,
    ) -> list[dict[str, torch.Tensor]]:
        """Foreground maps per class at the images' own sizes, cut to the boxes.

        Args:
            outputs: [`LPGOutput`] for all views.
            views: `views` of the processor's output.
            target_sizes: (height, width) of every image, upright.
            images: as they were given to the processor; needed with an `edge_radius`.

        Returns:
            Per image `labels` (K,) int64 and `foreground` (K, H, W) float32 in [0, 1]; K = 0 without boxes.

        Raises:
            ValueError: the numbers of logits, views and images do not agree, or an `edge_radius` without the images.
        """
        assert outputs.logits is not None
        logits = outputs.logits.detach().float().cpu()
        num_views = sum(map(len, views))
        if len(logits) != num_views or len(target_sizes) != len(views):
            raise ValueError(
                f"{len(logits)} logits and {len(target_sizes)} target_sizes for {num_views} views of {len(views)} "
                "images: give the output for all rows of the processor's batch, and one (height, width) per image."
            )
        pixels: Sequence[np.ndarray | None] = [None] * len(views)
        if images is not None:
            prepared = self._prepare_image_like_inputs(
                images=images, do_convert_rgb=self.do_convert_rgb, input_data_format=None
            )
            pixels = [np.asarray(image).transpose(1, 2, 0) for image in prepared]
            if [image.shape[:2] for image in pixels] != [tuple(size) for size in target_sizes]:
                sizes = [image.shape[:2] for image in pixels]
                raise ValueError(f"the images have the sizes {sizes}, but target_sizes are {list(target_sizes)}.")
        results, start = [], 0
        for seen, (height, width), image in zip(views, target_sizes, pixels):
            stop = start + len(seen)
            labels, foreground = self.decode(logits[start:stop], seen, height, width, image)
            results.append({"labels": torch.from_numpy(labels), "foreground": torch.from_numpy(foreground)})
            start = stop
        return results


def _upright_rgb(image: Image.Image) -> np.ndarray:
    """A PIL image as `lpg_hf.images.read_rgb` reads it; a checkpoint that is used without the package lacks that one.

    Turned as the EXIF orientation says; transparent pixels are laid over white; of 16-bit grey, the largest number of
    as many bits as the image uses is white: 4095 where its largest value is 3000.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: 32-bit values beyond 16 bits, or floats, which have no agreed range.
    """
    image.load()
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # Pillow's parser raises many types on a broken block; viewers show such an image as stored.
        pass
    values = np.asarray(image) if image.mode.startswith("I") else None
    if image.mode == "F" or (values is not None and values.size and not 0 <= values.min() <= values.max() <= 65535):
        raise ValueError(
            f"a PIL image of mode {image.mode} holds floats or values beyond 16 bits: convert it to 8 or 16 bits."
        )
    if values is not None:
        white = 2 ** max(8, int(values.max(initial=0)).bit_length()) - 1
        return np.repeat(np.round(values.astype(np.float32) * (255 / white)).astype(np.uint8)[..., None], 3, axis=-1)
    if image.mode in ("RGBA", "LA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return np.array(image.convert("RGB"))


def stack_views(rows: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Encoded views of different sizes to one batch, padded at the right and the bottom.

    Padding is 0 (mean colour, no box, no probability), and 255 in labels.
    """
    if not rows:
        empty = np.zeros((0, 1, 4, 4), dtype=np.float32)
        return {"pixel_values": np.repeat(empty, 3, axis=1), "box_mask": empty}
    height = max(row["pixel_values"].shape[1] for row in rows)
    width = max(row["pixel_values"].shape[2] for row in rows)
    batch = {}
    for name in rows[0]:
        first = rows[0][name]
        fill = 255 if name == "labels" else 0
        stacked = np.full((len(rows), *first.shape[:-2], height, width), fill, dtype=first.dtype)
        for i, row in enumerate(rows):
            h, w = row[name].shape[-2:]
            stacked[i, ..., :h, :w] = row[name]
        batch[name] = stacked
    return batch


def _checked_boxes(index: int, boxes: Sequence, labels: Sequence | None) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and labels of the `index`-th image as (N, 4) float32 and (N,) int64."""
    xyxy = np.asarray(boxes, dtype=np.float32)
    xyxy = xyxy.reshape(0, 4) if xyxy.size == 0 else xyxy
    if xyxy.ndim != 2 or xyxy.shape[1] != 4:
        raise ValueError(f"boxes of image {index} have shape {xyxy.shape}: expected (N, 4) xyxy in original pixels.")
    ids = np.ones(len(xyxy), dtype=np.int64) if labels is None else np.asarray(labels, dtype=np.int64)
    if ids.shape != (len(xyxy),):
        raise ValueError(f"box_labels of image {index} have shape {ids.shape} for {len(xyxy)} boxes.")
    if not np.isfinite(xyxy).all():
        raise ValueError(f"boxes of image {index} hold a value that is not finite: {xyxy.tolist()}.")
    empty = np.flatnonzero(~((xyxy[:, 2] > xyxy[:, 0]) & (xyxy[:, 3] > xyxy[:, 1])))
    if len(empty):
        raise ValueError(
            f"box {empty[0]} of image {index} is empty: {xyxy[empty[0]].tolist()}. Boxes are xyxy in original pixels "
            "with x1 < x2 and y1 < y2; convert COCO boxes with lpg_hf.boxes.convert_boxes(boxes, 'xywh', 'xyxy')."
        )
    return xyxy, ids


__all__ = ["LPGImageProcessor", "stack_views"]
