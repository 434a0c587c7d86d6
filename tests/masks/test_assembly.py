import numpy as np
import pytest
from pycocotools import mask as coco_mask

from lpg_hf.generators import load_generator
from lpg_hf.generators.base import BoxedImage, Patch
from lpg_hf.masks.assembly import _window_to_rle, assemble, by_position


def boxed(boxes: list, labels: list, height: int = 20, width: int = 30) -> BoxedImage:
    image = np.zeros((height, width, 3), dtype=np.uint8)
    return BoxedImage(image, np.array(boxes, dtype=np.float32).reshape(-1, 4), np.array(labels, dtype=np.int64))


def patch(label: int, index: int, box: tuple[int, int, int, int], value: float) -> Patch:
    x1, y1, x2, y2 = box
    full = np.full((y2 - y1, x2 - x1), value, dtype=np.float32)
    return Patch(label, (index,), slice(y1, y2), slice(x1, x2), full)


@pytest.mark.parametrize("seed", range(20))
def test_window_to_rle_is_coco_encoding_of_the_whole_mask(seed: int):
    rng = np.random.default_rng(seed)
    height, width = (int(n) for n in rng.integers(1, 12, 2))
    top, left = (int(rng.integers(0, n)) for n in (height, width))
    rows = slice(top, int(rng.integers(top + 1, height + 1)))
    columns = slice(left, int(rng.integers(left + 1, width + 1)))
    share = (0, 0.5, 0.9, 1)[seed % 4]
    mask = rng.random((rows.stop - rows.start, columns.stop - columns.start)) < share
    full = np.zeros((height, width), dtype=np.uint8, order="F")
    full[rows, columns] = mask
    rle = _window_to_rle(mask, rows, columns, height, width)
    assert rle == {"size": [height, width], "counts": coco_mask.encode(full)["counts"].decode()}


def test_instances_of_one_class_keep_masks_of_their_own_where_they_overlap():
    image = boxed([[0, 0, 10, 10], [5, 0, 15, 10]], [1, 1])
    left_half = patch(1, 0, (0, 0, 5, 10), 0.9)
    found = assemble(image, [left_half, patch(1, 1, (5, 0, 15, 10), 0.8)], "class")
    assert found.masks[0].area == 100  # the neighbour's foreground inside the box counts too
    own = assemble(image, [patch(1, 0, (0, 0, 10, 10), 0.2), patch(1, 1, (5, 0, 15, 10), 0.8)], "instance")
    assert [mask.area for mask in own.masks] == [0, 100]
    assert own.masks[0].score == 0.0 and own.masks[1].score == pytest.approx(0.8)
    assert (own.label_map[:10, 5:15] == 1).all() and own.label_map.sum() == 100


def test_masks_lie_inside_their_boxes_and_scores_are_those_of_the_mask():
    image = boxed([[2.5, 3, 8, 9]], [4])
    foreground = np.zeros((20, 30), dtype=np.float32)
    foreground[2:12, 0:12] = 0.7
    foreground[4, 4] = 0.9
    (mask,) = assemble(image, [Patch(4, (0,), slice(0, 20), slice(0, 30), foreground)], "instance").masks
    rows, columns = np.nonzero(mask.decode())
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (3, 8, 2, 7)
    assert mask.score == pytest.approx((35 * 0.7 + 0.9) / 36, abs=1e-6) and mask.fill_rate == 1.0


def test_overlap_rule_decides_between_classes():
    image = boxed([[0, 0, 20, 20], [5, 5, 10, 10]], [1, 2])
    patches = [patch(1, 0, (0, 0, 20, 20), 0.9), patch(2, 1, (5, 5, 10, 10), 0.6)]
    assert assemble(image, patches, "class").label_map[7, 7] == 2  # the smaller lies on top
    assert assemble(image, patches, "class", overlap_rule="prob").label_map[7, 7] == 1
    assert assemble(image, patches, "class", overlap_rule="first").label_map[7, 7] == 1


def test_no_boxes_give_an_empty_result_of_full_size():
    found = assemble(boxed([], []), [], "instance")
    assert found.masks == [] and found.label_map.shape == (20, 30) and not found.label_map.any()


def test_unknown_granularity_is_refused():
    with pytest.raises(ValueError, match="per='boxes' is unknown. Choose one of class, instance"):
        assemble(boxed([], []), [], "boxes")


@pytest.mark.parametrize("positions", [[], [0, 0, 2], [1], [2, 2], [0, 1, 2]])
def test_by_position_gives_every_image_its_patches(positions: list[int]):
    stream = iter([(position, patch(1, i, (0, 0, 1, 1), 0.5)) for i, position in enumerate(positions)])
    found = [[item.boxes[0] for item in of_image] for of_image in by_position(stream, 3)]
    assert found == [[i for i, p in enumerate(positions) if p == position] for position in range(3)]


@pytest.mark.parametrize("per", ["class", "instance"])
def test_masks_are_cut_to_the_region_of_their_box(per):
    """A turned square beside an upright box of the same class, which has no region."""
    boxes = np.array([[2, 2, 12, 12], [14, 2, 20, 12]], dtype=np.float32)
    region = [7.0, 2.0, 12.0, 7.0, 7.0, 12.0, 2.0, 7.0]
    image = BoxedImage(np.zeros((16, 24, 3), np.uint8), boxes, np.array([1, 1]), regions={0: region})
    whole = BoxedImage(image.image, boxes, image.labels)
    masks, plain = (
        assemble(given, (patch for _, patch in load_generator("box").patches([given], per)), per)
        for given in (image, whole)
    )
    square, other = (mask.decode() for mask in masks.masks)
    assert plain.masks[0].area == 100 and 40 <= square.sum() <= 60 and not square[2, 2] and square[7, 7]
    assert masks.masks[1].rle == plain.masks[1].rle and other.sum() == 60
    assert np.array_equal(masks.label_map == 1, square | other)
