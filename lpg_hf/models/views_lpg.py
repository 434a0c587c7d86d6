"""Views: what one forward pass of the generator sees of an image, and the way back.

A view is an integer window in the image's frame, resampled to a size in pixels. The paper's view is the whole image
(window = image, size = image, the union of a class's boxes drawn in); ours is a square window around one box, at one
fixed size. Training crops, scales and flips are windows too, so image, box map, class probability and label always
pass through `image_to_view`. The network's maps come back through `bands_to_image`.

Frames: image pixels, 0-based; windows and boxes are xyxy with exclusive ends; pixel centres lie at +0.5.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


EDGE_SMOOTHNESS = 1e-4  # variance of colours (in [0, 1]) that counts as noise in `edge_maps`
BAND_PIXELS = 2**20  # of the maps of one view that are brought to an image's resolution at a time
LEAST_DETAIL = 16  # pixels; the window of an object of about 10 pixels


@dataclass(frozen=True)
class Augmentation:
    """What is random in a training view.

    Args:
        crop_size: side of the crop of an image view in pixels.
        scales: factors of which one is drawn for an image view.
        context: range of the margin of a box view, as a share of the longer box side.
        jitter: how far an edge of a box view's box may move, as a share of the box's size (its width or its height).
        noise: share of box views whose box fits badly: its edges move within `noise_range` in place of `jitter`.
        noise_range: how far an edge may move outwards, from and to, as shares of the box's size; below 0: inwards. The
            edges move together, or each alone, or anything between.
        low_detail: share of box views that are reduced to a side between `LEAST_DETAIL` pixels and the view's side,
            log-uniformly, as small objects are.
    """

    crop_size: int
    scales: Sequence[float]
    context: tuple[float, float]
    jitter: float
    noise: float = 0.0
    noise_range: tuple[float, float] = (-0.15, 0.3)
    low_detail: float = 0.0


@dataclass(frozen=True)
class View:
    """One forward pass of the generator.

    Args:
        label: class id of the boxes, 1-based (0 is the background).
        boxes: (N, 4) float32 xyxy boxes drawn into the view, in the image's frame.
        window: x1, y1, x2, y2 in image pixels; may reach outside the image.
        size: (height, width) of the view in pixels.
        flip: whether the view is mirrored horizontally.
        detail: training; pixels per side to which the image is reduced before it is brought to `size`, so that a large
            object looks as a small one does. None: not reduced.
    """

    label: int
    boxes: np.ndarray
    window: tuple[int, int, int, int]
    size: tuple[int, int]
    flip: bool = False
    detail: int | None = None


def image_views(boxes: np.ndarray, labels: np.ndarray, height: int, width: int, min_size: int = 0) -> list[View]:
    """The paper's views: the whole image once per class, with the union of its boxes (Sec. III-B).

    Args:
        boxes: (N, 4) xyxy in image pixels.
        labels: (N,) class ids.
        min_size: pixels per side to which the window of a smaller image reaches, over its right or bottom edge.

    Returns:
        One view per class, in order of first appearance.
    """
    classes = list(dict.fromkeys(labels.tolist()))
    size = max(height, min_size), max(width, min_size)
    return [View(c, boxes[labels == c], (0, 0, size[1], size[0]), size) for c in classes]


def box_views(boxes: np.ndarray, labels: np.ndarray, size: int, context: float) -> list[View]:
    """One square window per box, in the order given, at a fixed size.

    Args:
        boxes: (N, 4) xyxy in image pixels.
        labels: (N,) class ids.
        size: side of the view in pixels.
        context: margin around the box on each side, as a share of its longer side.
    """
    return [View(int(c), box[None], _box_window(box, context), (size, size)) for box, c in zip(boxes, labels)]


def _box_window(box: np.ndarray, context: float) -> tuple[int, int, int, int]:
    """The square around a box: side = longer box side x (1 + 2 x context), rounded to whole pixels.

    It holds every pixel that the box touches, for which it is larger or off the middle where need be.
    """
    x1, y1, x2, y2 = (float(v) for v in box)
    touched = _touched_pixels(x1, x2), _touched_pixels(y1, y2)
    side = max(round(max(x2 - x1, y2 - y1) * (1 + 2 * context)), *(last - first for first, last in touched))
    left, top = (
        min(max(round((start + stop - side) / 2), last - side), first)
        for start, stop, (first, last) in zip((x1, y1), (x2, y2), touched)
    )
    return left, top, left + side, top + side


def random_box_view(
    box: np.ndarray,
    label: int,
    size: int,
    rng: np.random.Generator,
    augmentation: Augmentation,
) -> View:
    """A training view of one box: edges moved, random context, random flip; see `Augmentation`."""
    box = np.asarray(box, dtype=np.float32)
    extent = np.array([box[2] - box[0], box[3] - box[1]] * 2, dtype=np.float32)
    offsets = rng.uniform(-augmentation.jitter, augmentation.jitter, 4)
    if augmentation.noise > 0 and rng.random() < augmentation.noise:
        offsets = _bad_fit(augmentation.noise_range, rng)
    drawn = box + offsets.astype(np.float32) * extent
    if drawn[2] <= drawn[0] or drawn[3] <= drawn[1]:
        drawn = box
    window = _box_window(drawn, rng.uniform(*augmentation.context))
    flip, detail = bool(rng.random() < 0.5), None
    if augmentation.low_detail > 0 and rng.random() < augmentation.low_detail:
        detail = round(size * (LEAST_DETAIL / size) ** rng.random())
    return View(int(label), drawn[None], window, (size, size), flip, detail)


def _bad_fit(noise_range: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """(4,) offsets of x1, y1, x2, y2 in shares of the box's size: of all sides together, or of each alone."""
    together, common, alone = rng.random(), rng.random(), rng.random(4)
    low, high = noise_range
    outwards = low + (high - low) * (together * common + (1 - together) * alone)
    return outwards * [-1, -1, 1, 1]


def random_window(
    height: int,
    width: int,
    size: int,
    scale: float,
    rng: np.random.Generator,
    boxes: np.ndarray | None = None,
) -> tuple[int, int, int, int]:
    """A random crop of `size` pixels out of the image scaled by `scale`, as a window in the image's frame.

    Where the scaled image is smaller than the crop, the window reaches over its right or bottom edge (padding).

    Args:
        boxes: (N, 4) xyxy; if given, the window holds a random point of a random one of them.
    """
    side = max(1, round(size / scale))
    low, high = np.zeros(2), np.maximum([width - side, height - side], 0)
    if boxes is not None and len(boxes):
        box = boxes[rng.integers(len(boxes))]
        point = rng.uniform(box[:2], box[2:])
        low = np.clip(np.ceil(point - side), 0, high)
        high = np.clip(np.floor(point), low, high)
    left, top = (int(rng.integers(int(a), int(b) + 1)) for a, b in zip(low, high))
    return left, top, left + side, top + side


def random_image_view(
    boxes: np.ndarray, label: int, height: int, width: int, size: int, scale: float, rng: np.random.Generator
) -> View:
    """A training view of one class: a scaled, flipped crop that touches one of its boxes."""
    window = random_window(height, width, size, scale, rng, boxes)
    return View(int(label), boxes, window, (size, size), bool(rng.random() < 0.5))


def image_to_view(
    array: np.ndarray,
    view: View,
    fill: int | float | tuple = 0,
    resample: Image.Resampling = Image.Resampling.BILINEAR,
) -> np.ndarray:
    """Resamples an array of the image's frame into the view.

    Args:
        array: (H, W, 3) uint8 image or (H, W) float32 probability, resampled with antialiasing; (H, W) uint8 label,
            resampled by nearest neighbour.
        fill: value outside the image; one number or one per channel.
        resample: of images and probabilities.

    Returns:
        `view.size` array of the same type and number of dimensions.
    """
    x1, y1, x2, y2 = view.window
    height, width = array.shape[:2]
    inside = array[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)]
    if inside.shape[:2] != (y2 - y1, x2 - x1):
        padded = np.empty((y2 - y1, x2 - x1, *array.shape[2:]), dtype=array.dtype)
        top, left = max(-y1, 0), max(-x1, 0)
        bottom, right = top + inside.shape[0], left + inside.shape[1]
        padded[top:bottom, left:right] = inside
        for border in (np.s_[:top], np.s_[bottom:], np.s_[top:bottom, :left], np.s_[top:bottom, right:]):
            padded[border] = fill
        inside = padded
    if inside.shape[:2] != view.size:
        if array.ndim == 2 and array.dtype == np.uint8:
            resample = Image.Resampling.NEAREST
        resized = Image.fromarray(np.ascontiguousarray(inside)).resize((view.size[1], view.size[0]), resample)
        inside = np.asarray(resized)
    return inside[:, ::-1] if view.flip else inside


def reduce_detail(pixels: np.ndarray, side: int) -> np.ndarray:
    """(h, w, 3) uint8 image of a view, reduced to `side` x `side` and enlarged again."""
    reduced = Image.fromarray(np.ascontiguousarray(pixels)).resize((side, side), Image.Resampling.BILINEAR)
    height, width = pixels.shape[:2]
    return np.asarray(reduced.resize((width, height), Image.Resampling.BILINEAR))


def box_mask_of_view(view: View, encoding: str = "filled") -> np.ndarray:
    """The box map as the network sees it.

    Args:
        encoding: "filled" (the paper): 1 at every pixel that a box of the view touches. "distance": 0.5 at a box's
            edge, rising to 1 on its middle line.

    Returns:
        `view.size` float32 in [0, 1], 0 outside the boxes and nowhere else.
    """
    x1, y1, x2, y2 = view.window
    height, width = view.size
    scale = np.array([width / (x2 - x1), height / (y2 - y1)] * 2)
    corners = (np.asarray(view.boxes, dtype=np.float64) - [x1, y1, x1, y1]) * scale
    mask = np.zeros(view.size, dtype=np.float32)
    for left, top, right, bottom in corners:
        rows, columns = pixel_range(top, bottom, height), pixel_range(left, right, width)
        value = 1.0
        if encoding == "distance":
            y, x = np.arange(rows.start, rows.stop)[:, None] + 0.5, np.arange(columns.start, columns.stop) + 0.5
            to_edge = np.minimum(np.minimum(y - top, bottom - y), np.minimum(x - left, right - x))
            value = 0.5 + np.clip(to_edge / max(min(bottom - top, right - left), 1e-3), 0, 0.5)
        mask[rows, columns] = np.maximum(mask[rows, columns], value)
    return mask[:, ::-1] if view.flip else mask


def _touched_pixels(start: float, stop: float, tolerance: float = 1e-3) -> tuple[int, int]:
    """The pixels that an interval touches: floor(start) to ceil(stop), exclusive; at least one."""
    first = math.floor(start + tolerance)
    return first, max(math.ceil(stop - tolerance), first + 1)


def pixel_range(start: float, stop: float, limit: int) -> slice:
    """`_touched_pixels`, cut to 0..limit."""
    first, last = _touched_pixels(start, stop)
    return slice(min(max(first, 0), limit), min(max(last, 0), limit))


def visible_part(view: View, height: int, width: int) -> tuple[slice, slice]:
    """The rows and columns of an image that a view covers."""
    x1, y1, x2, y2 = view.window
    rows = slice(min(max(y1, 0), height), min(max(y2, 0), height))
    return rows, slice(min(max(x1, 0), width), min(max(x2, 0), width))


def bands_to_image(
    maps: Tensor, view: View, rows: slice, columns: slice, align_corners: bool = False
) -> Iterator[tuple[slice, Tensor]]:
    """Take the network's maps of one view back to the image's own pixels.

    A large window comes in bands of rows, so that memory does not grow with it.

    Args:
        maps: (C, h, w) float; h x w covers the view from its top-left corner at the network's stride of 4. Padding at
            the right and the bottom is removed.
        view: the view that the maps belong to.
        rows, columns: `visible_part` of the view.
        align_corners: how the maps are brought to the view's size (the official code: True).

    Yields:
        band: the next rows of the image.
        patch: (C, band, columns) float32 at the image's resolution.
    """
    x1, y1, x2, y2 = view.window
    window_size = (y2 - y1, x2 - x1)
    maps = maps.float()
    full = (maps.shape[1] * 4, maps.shape[2] * 4)
    if full == view.size and math.prod(window_size) > BAND_PIXELS and not align_corners:
        maps = maps.flip(2) if view.flip else maps
        across = maps @ _interpolation_weights(maps.shape[2], x2 - x1, slice(columns.start - x1, columns.stop - x1))
        height = max(1, BAND_PIXELS // max(1, columns.stop - columns.start))
        for start in range(rows.start, max(rows.stop, rows.start + 1), height):
            band = slice(start, min(start + height, rows.stop))
            down = _interpolation_weights(maps.shape[1], y2 - y1, slice(band.start - y1, band.stop - y1))
            yield band, down.T @ across
        return
    maps = maps[None]
    if full == view.size:  # one interpolation serves both steps
        maps = F.interpolate(maps, size=window_size, mode="bilinear", align_corners=align_corners)
    else:
        maps = F.interpolate(maps, size=full, mode="bilinear", align_corners=align_corners)
        maps = maps[:, :, : view.size[0], : view.size[1]]
    if view.flip:
        maps = maps.flip(3)
    if tuple(maps.shape[2:]) != window_size:
        maps = F.interpolate(maps, size=window_size, mode="bilinear", align_corners=False)
    yield rows, maps[0, :, rows.start - y1 : rows.stop - y1, columns.start - x1 : columns.stop - x1]


def _interpolation_weights(source: int, target: int, wanted: slice) -> Tensor:
    """(source, wanted) weights of a linear interpolation from `source` to `target` half-pixel centres."""
    positions = (torch.arange(wanted.start, wanted.stop) + 0.5) * (source / target) - 0.5
    return (1 - (torch.arange(source)[:, None] - positions.clamp(0, source - 1)).abs()).clamp(min=0)


def edge_maps(foreground: Tensor, guide: Tensor, radius: int) -> Tensor:
    """A linear function of the colour at every position, as close to the foreground around it as one can be.

    The foreground of a coarse grid gets the image's own edges when these functions are applied to its pixels.

    Args:
        foreground: (h, w) float probability.
        guide: (3, h, w) float colours in [0, 1].
        radius: half the side of the square around a position that its function is fitted to, in positions; at least 1.

    Returns:
        (4, h, w) float: the foreground is the product of the first three with the colour, plus the fourth.

    Source: He and Sun, "Fast Guided Filter" (2015): fitted at low resolution, applied at full resolution.
    """

    def mean(maps: Tensor) -> Tensor:
        batch = maps[None].contiguous(memory_format=torch.channels_last)  # which is pooled several times as fast
        return F.avg_pool2d(batch, 2 * radius + 1, stride=1, padding=radius, count_include_pad=False)[0]

    maps = torch.cat([guide, foreground[None]]).double()  # variances are small differences
    products = (maps[:, None] * maps[None, :3]).flatten(0, 1)
    means, products = mean(torch.cat([maps, products])).contiguous().split([4, 12])
    covariances = products.unflatten(0, (4, 3)) - means[:, None] * means[None, :3]
    first, second, third = covariances[:3] + EDGE_SMOOTHNESS * torch.eye(3)[:, :, None, None]
    # Cramer's rule, much faster than a general solver for so many systems of three equations.
    cofactors = torch.stack(
        [torch.linalg.cross(*pair, dim=0) for pair in ((second, third), (third, first), (first, second))]
    )
    slope = (cofactors * covariances[3]).sum(dim=1) / (first * cofactors[0]).sum(dim=0)
    offset = means[3:] - (slope * means[:3]).sum(dim=0, keepdim=True)
    return mean(torch.cat([slope, offset])).float()


__all__ = [
    "Augmentation",
    "View",
    "bands_to_image",
    "box_mask_of_view",
    "box_views",
    "edge_maps",
    "image_to_view",
    "image_views",
    "pixel_range",
    "random_box_view",
    "random_image_view",
    "random_window",
    "reduce_detail",
    "visible_part",
]
