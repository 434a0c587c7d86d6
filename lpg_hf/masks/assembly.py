"""Patches of foreground -> what users get of an image: one mask per box, with its scores, and one label map."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from lpg_hf._rle import Rle, Window, decode_window, encode_window
from lpg_hf.boxes import box_slices
from lpg_hf.data.records import Record
from lpg_hf.generators.base import GRANULARITIES, BoxedImage, Patch, check_choice
from lpg_hf.masks.fusion import Fusion, smallest_box_areas, window_around
from lpg_hf.metrics.box_masks import as_mask


_CLEAN_SHARE = 0.02  # of a mask: smaller parts of it are specks, smaller holes are filled


@dataclass(frozen=True)
class BoxMask:
    """The mask of one box.

    Attributes:
        rle: COCO compressed run lengths over the whole image, {"size": [height, width], "counts": text}.
        area: pixels of the mask.
        score: mean foreground probability of the mask's pixels, in (threshold, 1]; 0 for a mask without a pixel; 1
            from generators that give no probabilities.
        fill_rate: share of the box's pixels that are in the mask, in [0, 1].
    """

    rle: Rle
    area: int
    score: float
    fill_rate: float

    def decode(self) -> np.ndarray:
        """(H, W) bool, True on the object."""
        return as_mask(self.rle)


@dataclass(frozen=True, kw_only=True)
class AssemblyOptions:
    """How foreground becomes masks and a label map.

    Attributes:
        overlap_rule: which class keeps a pixel that several claim, see `Fusion`.
        threshold: foreground probability above which a pixel belongs to the object.
        min_score: masks with a lower score are not in the label map.
        clean: drop specks and fill small holes of every mask, see `_clean_foreground`; the label map has the cleaned
            masks too.
        exclusive: no pixel is in two masks, see `instance_map`; scores stay those of the whole masks.
    """

    overlap_rule: str = "rate"
    threshold: float = 0.5
    min_score: float = 0.0
    clean: bool = True
    exclusive: bool = False


@dataclass(frozen=True)
class ImageMasks:
    """The masks of an image.

    Attributes:
        masks: one per box, in the order of the boxes.
        label_map: (H, W) uint8, or uint16 where a class id is above 254; 0 where no class claims the pixel.
    """

    masks: list[BoxMask]
    label_map: np.ndarray


def boxed_image(image: np.ndarray, record: Record, grow: float = 0.0) -> BoxedImage:
    """An image, (H, W, 3) uint8 RGB, with the boxes of its single objects; crowd regions are not objects.

    Args:
        grow: every edge moves outwards by this share of the box's size, as far as the image goes; below 0: inwards.
            The region of a rotated box grows as its box does.
    """
    objects = record.single_objects
    boxes = np.array([item.box for item in objects], dtype=np.float32).reshape(-1, 4)
    if grow:
        offset = grow * np.tile(boxes[:, 2:] - boxes[:, :2], 2)
        limits = np.tile(image.shape[1::-1], 2).astype(np.float32)
        boxes = np.clip(boxes + offset * (-1, -1, 1, 1), 0, limits).astype(np.float32)
    return BoxedImage(
        image,
        boxes,
        np.array([item.category + 1 for item in objects], dtype=np.int64),
        regions={
            index: _grown_region(item.region, grow) for index, item in enumerate(objects) if item.region is not None
        },
    )


def _grown_region(region: list[float], grow: float) -> list[float]:
    """A quadrilateral (x, y, x, y, ...) scaled about the centre of its extent, by as much as its box."""
    if not grow:
        return region
    points = np.array(region).reshape(-1, 2)
    centre = (points.min(axis=0) + points.max(axis=0)) / 2
    return (centre + (1 + 2 * grow) * (points - centre)).ravel().tolist()


def assemble(
    image: BoxedImage, patches: Iterable[Patch], per: str, options: AssemblyOptions = AssemblyOptions()
) -> ImageMasks:
    """Merge the patches of an image by class, cut out the mask of every box, and fuse the classes.

    Args:
        patches: from a generator called with the same `per`; taken one at a time.
        per: "class": a box's mask is the foreground of its class inside the box. "instance": it is the box's own
            patch, so that overlapping boxes of one class have separate masks.

    Source: Eq. (7) and the overlap rule of Sec. III-D; cleaning is not of the paper.

    Raises:
        ValueError: unknown `per` or overlap rule.
    """
    check_choice("per", per, GRANULARITIES)
    size = image.image.shape[0], image.image.shape[1]
    boxes_of: dict[int, list[int]] = {}
    for index, label in enumerate(image.labels.tolist()):
        boxes_of.setdefault(label, []).append(index)
    classes = list(boxes_of)
    smallest = smallest_box_areas(image.boxes, image.labels, classes)
    fusion = Fusion(classes, size, smallest, options.overlap_rule, options.threshold)
    by_box: dict[int, BoxMask] = {}
    # A class is needed as a whole where its boxes share their foreground, or where masks may be rejected.
    waits = per == "class" or options.min_score > 0
    unfinished = {label: _UnfinishedClass(k, image, boxes_of[label]) for k, label in enumerate(classes) if waits}
    position = {label: k for k, label in enumerate(classes)}

    def finish(label: int) -> None:
        one = unfinished.pop(label)
        window, foreground = one.merged()
        if per == "class":
            masks, foreground = one.box_masks(window, foreground, options)
            by_box.update(masks)
        if options.min_score > 0:
            foreground = one.without_rejected(window, foreground, by_box, options.min_score)
        fusion.add(one.position, window, foreground)

    for patch in (_cut_to_regions(patch, image) for patch in patches):
        if per == "instance":
            index = patch.boxes[0]
            rows, columns = box_slices(image.boxes[index], *size)
            inside = patch.foreground[_inner((patch.rows, patch.columns), (rows, columns))]
            if options.clean:
                inside = _clean_foreground(inside, options.threshold)
                patch = replace(patch, rows=rows, columns=columns, foreground=inside)
            by_box[index] = _box_mask(inside, rows, columns, *size, options.threshold)
        if not waits:
            fusion.add(position[patch.label], (patch.rows, patch.columns), patch.foreground)
        elif unfinished[patch.label].add(patch):
            finish(patch.label)
    for label in list(unfinished):
        finish(label)
    found = ImageMasks([by_box[index] for index in range(len(image.boxes))], fusion.label_map())
    return _exclusive(found, image, options) if options.exclusive else found


def _inner(outer: Window, inner: Window) -> Window:
    """A window of the image as one of a window that holds it."""
    (rows, columns), (top, left) = inner, (outer[0].start, outer[1].start)
    return slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)


class _UnfinishedClass:
    """The patches of one class until all its boxes have one, in little more memory than the window around them."""

    def __init__(self, position: int, image: BoxedImage, boxes: list[int]):
        self.position, self.image, self.boxes = position, image, boxes
        self.size = image.image.shape[0], image.image.shape[1]
        self.missing = set(boxes)
        self.parts: list[tuple[Window, np.ndarray]] = []
        self.window: Window | None = None  # around the parts
        self.num_pixels = 0  # of the parts

    def add(self, patch: Patch) -> bool:
        """Add a patch; returns whether it was the last one."""
        window = patch.rows, patch.columns
        self.parts.append((window, patch.foreground))
        self.missing.difference_update(patch.boxes)
        self.window = rows, columns = window_around([window, self.window or window])
        self.num_pixels += patch.foreground.size
        window_pixels = (rows.stop - rows.start) * (columns.stop - columns.start)
        if len(self.parts) > 1 and self.num_pixels > 2 * window_pixels:
            self.parts, self.num_pixels = [_merge(self.parts)], window_pixels
        return not self.missing

    def merged(self) -> tuple[Window, np.ndarray]:
        """(window, float32 foreground) of the class; the window holds all its boxes."""
        empty = [(box_slices(self.image.boxes[index], *self.size), None) for index in self.boxes]
        return _merge([*self.parts, *empty])

    def box_masks(
        self, window: Window, foreground: np.ndarray, options: AssemblyOptions
    ) -> tuple[dict[int, BoxMask], np.ndarray]:
        """The mask of each box: the foreground of the class inside it, and inside its region.

        Returns:
            masks by the number of their box, and the foreground, with `clean` that of the masks.
        """
        masks, cleaned = {}, np.zeros_like(foreground) if options.clean else foreground
        for index in self.boxes:
            rows, columns = box_slices(self.image.boxes[index], *self.size)
            inside = foreground[_inner(window, (rows, columns))]
            if index in self.image.regions:
                inside = inside * _region_mask(self.image.regions[index], rows, columns)
            if options.clean:
                inside = _clean_foreground(inside, options.threshold)
                merged = cleaned[_inner(window, (rows, columns))]
                np.maximum(merged, inside, out=merged)
            masks[index] = _box_mask(inside, rows, columns, *self.size, options.threshold)
        return masks, cleaned

    def without_rejected(
        self, window: Window, foreground: np.ndarray, masks: Mapping[int, BoxMask], min_score: float
    ) -> np.ndarray:
        """The foreground without the boxes of rejected masks, except where other masks of the class lie."""
        claimed, doubtful = np.zeros(foreground.shape, dtype=bool), np.zeros(foreground.shape, dtype=bool)
        for index in self.boxes:
            box = box_slices(self.image.boxes[index], *self.size)
            if masks[index].score < min_score:
                doubtful[_inner(window, box)] = True
            else:
                claimed[_inner(window, box)] |= decode_window(masks[index].rle, box).view(bool)
        return np.where(doubtful & ~claimed, np.float32(0), foreground)


def _merge(parts: Sequence[tuple[Window, np.ndarray | None]]) -> tuple[Window, np.ndarray]:
    """The maximum of some windows, in the window around them; None stands for an empty one."""
    window = window_around([part for part, _ in parts])
    foreground = np.zeros([item.stop - item.start for item in window], dtype=np.float32)
    for part, values in parts:
        if values is not None:
            inner = foreground[_inner(window, part)]
            np.maximum(inner, values, out=inner)
    return window, foreground


def _exclusive(found: ImageMasks, image: BoxedImage, options: AssemblyOptions) -> ImageMasks:
    """Masks that share no pixel, and the label map that they give; rejected masks claim none and stay as they are."""
    height, width = found.label_map.shape
    claiming = [mask if mask.score >= options.min_score else None for mask in found.masks]
    numbers = instance_map(claiming, image.boxes, (height, width), options.overlap_rule)
    masks = list(found.masks)
    for index, mask in enumerate(claiming):
        if mask is not None:
            rows, columns = box_slices(image.boxes[index], height, width)
            left = numbers[rows, columns] == index + 1
            area = int(left.sum())
            rle = encode_window(left, (rows, columns), (height, width))
            masks[index] = BoxMask(rle, area, mask.score if area else 0.0, area / left.size)
    label_of = np.concatenate([[0], image.labels]).astype(found.label_map.dtype)
    return ImageMasks(masks, label_of[numbers])


def instance_map(
    masks: Sequence[BoxMask | None], boxes: np.ndarray, size: tuple[int, int], rule: str = "rate"
) -> np.ndarray:
    """One instance per pixel, by the overlap rule between the masks of boxes.

    Args:
        masks: one per box, inside it; None claims no pixel.
        boxes: (N, 4) xyxy.
        size: (height, width) of the image.
        rule: as of `Fusion`, with a box in place of a class; "prob" is the higher score of the whole mask.

    Returns:
        (H, W) uint16, or uint32 above 65534 boxes: number of the box from 1 on, 0 where no mask lies.
    """
    numbers = np.arange(1, len(masks) + 1)
    fusion = Fusion(numbers, size, smallest_box_areas(boxes, numbers, numbers.tolist()), rule, threshold=0.0)
    for index, mask in enumerate(masks):
        if mask is not None:
            window = box_slices(boxes[index], *size)
            fusion.add(index, window, decode_window(mask.rle, window) * mask.score)
    label_map = fusion.label_map()
    return label_map.astype(np.promote_types(label_map.dtype, np.uint16))


def label_map_of(
    masks: Sequence[BoxMask | None], boxes: np.ndarray, labels: np.ndarray, size: tuple[int, int], rule: str = "rate"
) -> np.ndarray:
    """The label map of masks that `assemble` found, as it found it; rule "prob" needs more than the masks.

    Args:
        masks: one per box; None for one that was rejected.
        boxes: (N, 4) xyxy.
        labels: (N,) class ids.
        size: (height, width) of the image.
        rule: see `Fusion`.

    Returns:
        (H, W) uint8, or uint16 where a class id is above 254.

    Raises:
        ValueError: rule "prob".
    """
    if rule == "prob":
        raise ValueError("overlap_rule='prob' needs the probabilities, which are not kept: make the masks again.")
    classes = list(dict.fromkeys(labels.tolist()))
    position = {label: k for k, label in enumerate(classes)}
    fusion = Fusion(classes, size, smallest_box_areas(boxes, labels, classes), rule)
    for mask, box, label in zip(masks, boxes, labels.tolist()):
        if mask is not None:
            window = box_slices(box, *size)
            fusion.add(position[label], window, decode_window(mask.rle, window))
    return fusion.label_map()


def _clean_foreground(foreground: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """The foreground of one box without specks and small holes.

    Args:
        foreground: (rows, columns) float32 in [0, 1].
        threshold: above which a pixel is in the mask.

    Returns:
        The same, or a copy: 0 in the parts of the mask that are smaller than 2 % of it (never in the largest), and
        just above the threshold in its holes of less than 2 %. A part is connected over edges and corners, a hole
        over edges only.
    """
    mask = (foreground > threshold).astype(np.uint8)
    # Outlines take a thirtieth of the time of labelled parts, and most masks have one part or no hole.
    contours, tree = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    num_holes = int((tree[0, :, 3] >= 0).sum()) if len(contours) else 0
    least = _CLEAN_SHARE * cv2.countNonZero(mask)
    if len(contours) - num_holes > 1:
        foreground, mask = _without_specks(foreground, mask, least)
    return _without_holes(foreground, mask, least, threshold) if num_holes else foreground


def _without_specks(foreground: np.ndarray, mask: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Foreground and mask without the parts below `least` pixels, never without the largest."""
    parts, areas = _parts(mask, connectivity=8)
    specks = areas < least
    specks[[0, 1 + int(areas[1:].argmax())]] = False
    if not specks.any():
        return foreground, mask
    kept = np.take(~specks, parts)
    return foreground * kept, mask * kept


def _without_holes(foreground: np.ndarray, mask: np.ndarray, least: float, threshold: float) -> np.ndarray:
    """The foreground, just above the threshold in the holes of the mask below `least` pixels."""
    padded = cv2.copyMakeBorder(1 - mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=1)
    holes, areas = _parts(padded, connectivity=4)
    filled = areas < least
    filled[[0, int(holes[0, 0])]] = False
    if not filled.any():
        return foreground
    just_above = np.nextafter(np.float32(threshold), np.float32(1))
    return np.where(np.take(filled, holes)[1:-1, 1:-1], just_above, foreground)


def _parts(mask: np.ndarray, connectivity: int) -> tuple[np.ndarray, np.ndarray]:
    """Connected parts of a mask, and the pixels of each; number 0 is what lies outside the mask.

    Counting the labels takes a third of the time of OpenCV's statistics, which also have boxes and centres.
    """
    _, parts = cv2.connectedComponents(mask, connectivity=connectivity)
    parts = np.asarray(parts, dtype=np.int32)
    return parts, np.bincount(parts.ravel())


def _cut_to_regions(patch: Patch, image: BoxedImage) -> Patch:
    """A patch that is empty outside the regions of its boxes, and outside the boxes that have none."""
    if image.regions.keys().isdisjoint(patch.boxes):
        return patch
    allowed = np.zeros((image.image.shape[0], image.image.shape[1]), dtype=bool)
    for index in patch.boxes:
        rows, columns = box_slices(image.boxes[index], *allowed.shape)
        region = image.regions.get(index)
        allowed[rows, columns] |= True if region is None else _region_mask(region, rows, columns)
    return replace(patch, foreground=patch.foreground * allowed[patch.rows, patch.columns])


def _region_mask(region: Sequence[float], rows: slice, columns: slice) -> np.ndarray:
    """The pixels of a quadrilateral in a window, (rows, columns) bool."""
    height, width = rows.stop - rows.start, columns.stop - columns.start
    points = [value - (columns.start, rows.start)[i % 2] for i, value in enumerate(region)]
    rle = coco_mask.merge(coco_mask.frPyObjects([points], height, width))
    return coco_mask.decode(rle).astype(bool)


def by_position(patches: Iterator[tuple[int, Patch]], count: int) -> Iterator[Iterator[Patch]]:
    """Splits `MaskGenerator.patches` into one iterator per image; each must be used up before the next."""
    waiting: list[tuple[int, Patch]] = []

    def image_patches(image: int) -> Iterator[Patch]:
        if waiting and waiting[0][0] != image:
            return
        if waiting:
            yield waiting.pop()[1]
        for position, patch in patches:
            if position != image:
                waiting.append((position, patch))
                return
            yield patch

    for image in range(count):
        yield image_patches(image)


def _box_mask(
    foreground: np.ndarray, rows: slice, columns: slice, height: int, width: int, threshold: float
) -> BoxMask:
    mask = foreground > threshold
    area = int(mask.sum())
    score = float(foreground[mask].mean(dtype=np.float64)) if area else 0.0
    return BoxMask(encode_window(mask, (rows, columns), (height, width)), area, score, area / mask.size)
