"""Scores per box: known values, the definition of the boundary, forms of masks, merging."""

import pickle
import tracemalloc

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from lpg_hf._rle import encode_window
from lpg_hf.metrics.box_masks import BoxMaskScores, _boundary_width, as_mask, boundary


def rectangle(x1: int, y1: int, x2: int, y2: int, size: tuple[int, int] = (40, 60)) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[y1:y2, x1:x2] = True
    return mask


def rle(mask: np.ndarray) -> dict:
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode("ascii")}


def random_pairs(count: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray, int]]:
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        (x1, y1), (w, h) = rng.integers(0, (50, 30)), rng.integers(2, 12, 2)
        dx, dy = rng.integers(-2, 3, 2)
        pairs.append(
            (
                rectangle(x1, y1, x1 + w, y1 + h),
                rectangle(max(x1 + dx, 0), max(y1 + dy, 0), x1 + w, y1 + h),
                int(rng.integers(1, 4)),
            )
        )
    return pairs


def test_scores_of_two_shifted_rectangles():
    scores = BoxMaskScores()
    # 10 x 10 pixels each, shifted by 5: 50 of 150. The diagonal of 40 x 60 gives bands of one pixel.
    assert _boundary_width(40, 60) == 1
    assert scores.update(rectangle(10, 10, 20, 20), rectangle(15, 10, 25, 20)) == pytest.approx(1 / 3)
    # Bands of 36 pixels share the two horizontal edges: 2 x 5 pixels.
    result = scores.compute()
    assert result["mean_box_iou"] == pytest.approx(1 / 3)
    assert result["mean_boundary_iou"] == pytest.approx(10 / (36 + 36 - 10))
    assert result["foreground_iou"] == pytest.approx(1 / 3) and result["num_boxes"] == 1


def test_classes_are_pooled_over_their_boxes_and_then_averaged():
    scores = BoxMaskScores()
    scores.update(rectangle(0, 0, 10, 10), rectangle(0, 0, 10, 10), label=3)
    scores.update(rectangle(0, 0, 2, 1), rectangle(0, 0, 1, 1), label=3)
    scores.update(rectangle(0, 0, 4, 1), rectangle(0, 0, 1, 1), label=1)
    result = scores.compute()
    assert result["per_class_iou"] == {1: 0.25, 3: pytest.approx(101 / 102)}
    assert result["foreground_iou"] == pytest.approx((0.25 + 101 / 102) / 2)
    assert result["mean_box_iou"] == pytest.approx((1 + 0.5 + 0.25) / 3)


def test_boundary_is_the_mask_without_what_is_deeper_than_its_width():
    mask = rectangle(0, 5, 30, 35)  # touches the image's left border, which is an edge
    band = boundary(mask, 3)
    assert np.array_equal(mask & ~band, rectangle(3, 8, 27, 32))
    assert np.array_equal(boundary(np.ones((9, 9), bool), 2), ~rectangle(2, 2, 7, 7, (9, 9)))


def test_boundary_agrees_with_the_distance_to_the_background():
    rng = np.random.default_rng(0)
    mask = rng.random((20, 25)) > 0.1
    padded = np.pad(mask, 2)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5))
    assert np.array_equal(boundary(mask, 2), mask & ~windows.all(axis=(2, 3)))


def test_the_band_is_two_per_cent_of_the_images_diagonal_and_at_least_a_pixel():
    assert [_boundary_width(300, 400), _boundary_width(10, 10), _boundary_width(300, 400, 0.1)] == [10, 1, 50]
    large, shifted = rectangle(100, 100, 200, 200, (300, 400)), rectangle(105, 100, 205, 200, (300, 400))
    results = []
    for ratio in (0.02, 0.002):
        scores = BoxMaskScores(ratio)
        scores.update(large, shifted)
        results.append(scores.compute()["mean_boundary_iou"])
    assert results[0] > results[1]


@pytest.mark.parametrize(
    "form", [rle, lambda m: rle(m) | {"counts": rle(m)["counts"].encode()}, lambda m: m.astype(np.uint8) * 255]
)
def test_forms_of_a_mask_give_the_same(form):
    plain, other = BoxMaskScores(), BoxMaskScores()
    for prediction, target, label in random_pairs(10):
        plain.update(prediction, target, label)
        other.update(form(prediction), form(target), label)
    assert plain.compute() == other.compute()


def test_run_lengths_cost_the_window_of_both_masks_and_not_the_image():
    size, scores = (20_000, 20_000), BoxMaskScores()
    square = np.ones((20, 20), dtype=bool)
    one, other = (encode_window(square, (slice(500, 520), slice(x, x + 20)), size) for x in (19_980, 19_970))
    empty = encode_window(square[:0], (slice(0, 0), slice(0, 20)), size)
    tracemalloc.start()
    try:
        assert scores.update(one, other) == pytest.approx(1 / 3) and scores.update(one, empty) == 0
        assert scores.update(empty, empty) is None
        assert tracemalloc.get_traced_memory()[1] < 2_000_000  # the image has 400 million pixels
    finally:
        tracemalloc.stop()


def test_run_lengths_of_another_size_than_stated_are_refused():
    with pytest.raises(ValueError, match=r"add up to 6 pixels, but its size is \[3, 3\]"):
        BoxMaskScores().update({"size": [3, 3], "counts": [1, 3, 2]}, np.zeros((3, 3)))


def test_uncompressed_runs_are_read():
    assert np.array_equal(as_mask({"size": [3, 2], "counts": [1, 3, 2]}), np.array([[0, 1], [1, 0], [1, 0]], bool))


def test_ignored_pixels_count_nowhere():
    scores = BoxMaskScores()
    prediction, target = rectangle(10, 10, 30, 20), rectangle(10, 10, 20, 20)
    assert scores.update(prediction, target, ignore=rectangle(20, 0, 60, 40)) == 1
    assert scores.update(prediction, target, ignore=np.ones((40, 60), bool)) is None
    assert scores.compute()["num_boxes"] == 1 and scores.num_empty == 1


def test_nothing_counted_is_none():
    scores = BoxMaskScores()
    assert scores.update(np.zeros((4, 4)), np.zeros((4, 4))) is None
    assert scores.compute() == {
        "mean_box_iou": None, "mean_boundary_iou": None, "foreground_iou": None, "per_class_iou": {}, "num_boxes": 0,
    }  # fmt: skip
    assert scores.update(np.zeros((4, 4)), np.eye(4)) == 0
    assert scores.compute()["mean_box_iou"] == scores.compute()["mean_boundary_iou"] == 0


def test_parts_of_several_processes_merge_to_the_whole():
    whole, parts = BoxMaskScores(), [BoxMaskScores(), BoxMaskScores()]
    for i, (prediction, target, label) in enumerate(random_pairs(30)):
        whole.update(prediction, target, label)
        parts[i % 2].update(prediction, target, label)
    merged = BoxMaskScores()
    for part in parts:
        merged.merge(pickle.loads(pickle.dumps(part)))
    expected, found = whole.compute(), merged.compute()
    assert found["per_class_iou"] == expected["per_class_iou"] and found["num_boxes"] == 30
    assert found["mean_box_iou"] == pytest.approx(expected["mean_box_iou"])
    assert found["mean_boundary_iou"] == pytest.approx(expected["mean_boundary_iou"])
    with pytest.raises(ValueError, match="boundary of 0.1"):
        merged.merge(BoxMaskScores(0.1))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((np.zeros((4, 5)), np.zeros((5, 4))), r"\(4, 5\), target \(5, 4\)"),
        ((np.zeros((4, 5)), np.zeros((4, 5)), 1, np.zeros((1, 5))), r"ignore \(1, 5\)"),
        ((np.zeros((4, 5, 3)), np.zeros((4, 5))), r"prediction has shape \(4, 5, 3\)"),
        ((np.zeros((4, 5)), {"segmentation": []}), r"target is a dictionary with \['segmentation'\]"),
    ],
)
def test_wrong_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        BoxMaskScores().update(*arguments)
