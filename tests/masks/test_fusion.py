import numpy as np
import pytest

from lpg_hf.masks.fusion import OVERLAP_RULES, Fusion, smallest_box_areas


every_rule = pytest.mark.parametrize("rule", OVERLAP_RULES)


def strips(*spans, length=10):
    """Foreground maps of one row: (start, stop, probability) per class."""
    maps = np.zeros((len(spans), 1, length), dtype=np.float32)
    for k, (start, stop, probability) in enumerate(spans):
        maps[k, 0, start:stop] = probability
    return maps


def fuse(labels, foreground, box_areas=None, **kwargs):
    box_areas = np.ones(len(labels)) if box_areas is None else np.asarray(box_areas)
    height, width = foreground.shape[1:]
    fusion = Fusion(labels, (height, width), box_areas, **kwargs)
    for k in np.random.default_rng(0).permutation(len(labels)).tolist():  # no rule asks for the order of the pieces
        fusion.add(k, (slice(0, height), slice(0, width // 2)), foreground[k, :, : width // 2])
        fusion.add(k, (slice(0, height), slice(width // 2, width)), foreground[k, :, width // 2 :])
        fusion.add(k, (slice(0, 1), slice(0, width)), foreground[k, :1] * np.float32(0.9))
    return fusion.label_map()


# Class 5 covers columns 0..7, class 3 columns 6..9: they share 6 and 7, a quarter of one and half of the other.
OVERLAP = strips((0, 8, 0.9), (6, 10, 0.6))


@pytest.mark.parametrize(
    "rule, box_areas, winner",
    [
        ("rate", [1, 2], 3),  # half of class 3 is overlapped, a quarter of class 5
        ("first", [2, 1], 5),  # it is named first
        ("prob", [2, 1], 5),  # 0.9 > 0.6
        ("smallest_box", [2, 1], 3),
        ("smallest_box", [1, 2], 5),
    ],
)
def test_each_rule_on_one_overlap(rule, box_areas, winner):
    fused = fuse([5, 3], OVERLAP, box_areas, rule=rule)
    assert fused.dtype == np.uint8
    assert fused.tolist() == [[5] * 6 + [winner] * 2 + [3] * 2]


def test_rate_is_the_default():
    assert (fuse([5, 3], OVERLAP) == fuse([5, 3], OVERLAP, rule="rate")).all()
    assert (fuse([5, 3], OVERLAP) != fuse([5, 3], OVERLAP, rule="first")).any()


def test_order_of_the_classes_matters_to_first_only():
    for rule in OVERLAP_RULES:
        fused = fuse([5, 3], OVERLAP, [2, 1], rule=rule)
        swapped = fuse([3, 5], OVERLAP[::-1], [1, 2], rule=rule)
        assert (fused == swapped).all() == (rule != "first")


@pytest.mark.parametrize("labels", [(1, 2), (2, 1)])
def test_rate_puts_the_small_object_on_top_of_the_large_one_around_it(labels):
    foreground = np.zeros((2, 8, 8), dtype=np.float32)
    foreground[0, :, :] = 0.99
    foreground[1, 2:4, 2:4] = 0.51
    fused = fuse(labels, foreground, [1, 9], rule="rate")
    assert (fused[2:4, 2:4] == labels[1]).all() and (fused == labels[0]).sum() == 60


def test_rate_counts_the_overlap_with_all_other_classes_together():
    # Class 1 shares 2 of 6 pixels with class 2 and 2 with class 3: rate 4/6. Class 2: 2/4, class 3: 2/4.
    fused = fuse([1, 2, 3], strips((2, 8, 0.9), (0, 4, 0.9), (6, 10, 0.9)), rule="rate")
    assert fused.tolist() == [[2, 2, 1, 1, 1, 1, 1, 1, 3, 3]]


@pytest.mark.parametrize("order", [1, -1])
def test_rate_breaks_ties_by_the_smaller_mask(order):
    # Both overlap entirely with another class, at the same rate of 1: class 9 has 4 pixels, class 4 has 6.
    foreground = strips((0, 6, 0.9), (2, 6, 0.9), (0, 10, 0.9))[::order]
    fused = fuse([4, 9, 7][::order], foreground, rule="rate")
    assert fused.tolist() == [[4, 4, 9, 9, 9, 9, 7, 7, 7, 7]]


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("rule", ["rate", "smallest_box"])
def test_full_ties_go_to_the_lower_id(rule, order):
    foreground = strips((0, 4, 0.9), (2, 6, 0.9))[::order]
    assert fuse([4, 2][::order], foreground, rule=rule).tolist() == [[4, 4, 2, 2, 2, 2, 0, 0, 0, 0]]


def test_equal_boxes_go_to_the_smaller_mask():
    fused = fuse([1, 2], strips((0, 8, 0.9), (6, 9, 0.9)), [5, 5], rule="smallest_box")
    assert fused.tolist() == [[1] * 6 + [2] * 3 + [0]]


def test_prob_decides_pixel_by_pixel_and_equal_ones_go_to_the_first():
    foreground = np.array([[[0.6, 0.9, 0.7, 0.2]], [[0.8, 0.7, 0.7, 0.4]]], dtype=np.float32)
    assert fuse([1, 2], foreground, rule="prob").tolist() == [[2, 1, 1, 0]]


@every_rule
def test_no_class_gives_background(rule):
    fused = fuse([], np.zeros((0, 4, 5), dtype=np.float32), rule=rule)
    assert fused.shape == (4, 5) and fused.dtype == np.uint8 and (fused == 0).all()


@every_rule
def test_classes_without_pixels_change_nothing(rule):
    with np.errstate(all="raise"):
        fused = fuse([7, 5, 3], np.concatenate([strips((0, 0, 0)), OVERLAP]), [1, 2, 3], rule=rule)
    assert (fused == fuse([5, 3], OVERLAP, [2, 3], rule=rule)).all()


@every_rule
@pytest.mark.parametrize("label, dtype", [(254, np.uint8), (255, np.uint16), (1203, np.uint16)])
def test_ids_above_254_give_16_bits(rule, label, dtype):
    fused = fuse([label, 3], OVERLAP, rule=rule)
    assert fused.dtype == dtype and set(np.unique(fused)) == {3, label}


@every_rule
def test_threshold_itself_is_background(rule):
    foreground = strips((0, 2, 0.5), (2, 4, 0.51), (4, 6, 0.8))
    assert fuse([1, 2, 3], foreground, rule=rule).tolist() == [[0, 0, 2, 2, 3, 3, 0, 0, 0, 0]]
    assert fuse([1, 2, 3], foreground, rule=rule, threshold=0.7).tolist() == [[0, 0, 0, 0, 3, 3, 0, 0, 0, 0]]


@every_rule
def test_a_mask_is_never_outside_its_input_and_no_claimed_pixel_is_lost(rule):
    rng = np.random.default_rng(0)
    labels = [4, 9, 2]
    for _ in range(20):
        foreground = rng.random((3, 6, 7), dtype=np.float32) * (rng.random((3, 6, 7)) < 0.6)
        fused = fuse(labels, foreground, rng.random(3), rule=rule)
        for label, probability in zip(labels, foreground):
            assert (probability[fused == label] > 0.5).all()
        assert ((fused > 0) == (foreground > 0.5).any(axis=0)).all()


def test_unknown_rule_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'largest' is unknown.*rate, first, prob, smallest_box"):
        fuse([5, 3], OVERLAP, rule="largest")


def test_smallest_boxes_are_those_of_each_class():
    rng = np.random.default_rng(0)
    boxes, labels = rng.random((200, 4)).astype(np.float32), rng.integers(1, 40, 200)
    classes = list(dict.fromkeys(labels.tolist()))
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    assert smallest_box_areas(boxes, labels, classes).tolist() == [areas[labels == k].min() for k in classes]
