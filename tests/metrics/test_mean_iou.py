"""Mean IoU: hand-counted cases, constant memory, exactness over processes, and the `evaluate` face."""

import multiprocessing
import tracemalloc
import warnings
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch

from lpg_hf.metrics import mean_iou
from lpg_hf.metrics.mean_iou import ConfusionMatrix, MeanIoU


def counted(prediction: object, target: object, num_labels: int, ignore_index: int = 255) -> ConfusionMatrix:
    counts = ConfusionMatrix(num_labels, ignore_index)
    counts.update(prediction, target)
    return counts


def test_absent_classes_are_null_and_left_out():
    target = np.array([[0, 0], [1, 1]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        perfect = counted(target, target, 4).compute()
        spurious = counted(np.array([[0, 0], [1, 3]]), target, 4).compute()
    assert perfect["mean_iou"] == 1.0 and perfect["per_class_iou"] == [1.0, 1.0, None, None]
    assert spurious["per_class_iou"] == [1.0, 0.5, None, 0.0] and spurious["mean_iou"] == 0.5
    assert spurious["foreground_mean_iou"] == 0.25 and spurious["pixel_accuracy"] == 0.75


def test_hand_counted_scores_and_void():
    prediction = np.array([[1, 1], [1, 1]])
    scores = counted(prediction, np.array([[0, 0], [1, 1]]), 2).compute()
    assert scores["per_class_iou"] == [0.0, 0.5] and scores["mean_iou"] == 0.25
    void = counted(prediction, np.array([[0, 255], [1, 1]]), 2).compute()
    assert void["per_class_iou"] == [0.0, 2 / 3]


def test_nothing_counted_gives_none():
    scores = counted(np.zeros((2, 2), int), np.full((2, 2), 255), 2).compute()
    assert scores == {
        "mean_iou": None,
        "foreground_mean_iou": None,
        "per_class_iou": [None, None],
        "pixel_accuracy": None,
    }


def test_rows_are_truth_and_columns_are_predictions():
    matrix = counted(np.array([[1]], np.uint8), np.array([[0]], np.uint8), 2).matrix
    assert matrix.dtype == np.int64 and matrix.tolist() == [[0, 1], [0, 0]]


def test_numpy_torch_and_batches_agree():
    rng = np.random.default_rng(0)
    prediction, target = rng.integers(0, 21, (3, 17, 13)), rng.integers(0, 21, (3, 17, 13))
    batch = counted(prediction, target, 21).matrix
    assert (counted(torch.tensor(prediction), torch.tensor(target, dtype=torch.uint8), 21).matrix == batch).all()
    single = ConfusionMatrix(21)
    for one, other in zip(prediction, target):
        single.update(one.astype(np.uint8), other)
    assert (single.matrix == batch).all()


def test_matches_a_direct_count_without_uint8_overflow():
    rng = np.random.default_rng(1)
    prediction, target = rng.integers(0, 21, (64, 64), np.uint8), rng.integers(0, 21, (64, 64), np.uint8)
    scores = counted(prediction, target, 21).compute()
    for label, iou in enumerate(scores["per_class_iou"]):
        p, t = prediction == label, target == label
        assert iou == (p & t).sum() / (p | t).sum()


@pytest.mark.parametrize(
    "prediction, target, message",
    [
        (np.zeros((2, 3), int), np.zeros((3, 2), int), r"\(2, 3\).*\(3, 2\)"),
        (np.zeros((2, 2), int), np.full((2, 2), 7), "target holds the value 7.*0..2, except the ignored value 255"),
        (np.full((2, 2), 255), np.zeros((2, 2), int), "prediction holds the value 255"),
        (np.full((2, 2), -1), np.full((2, 2), 255), "prediction holds the value -1"),
        (np.zeros((2, 2)), np.zeros((2, 2), int), "dtype float64.*argmax"),
    ],
)
def test_wrong_input_is_named(prediction: np.ndarray, target: np.ndarray, message: str):
    counts = ConfusionMatrix(3)
    with pytest.raises(ValueError, match=message):
        counts.update(prediction, target)
    assert counts.matrix.sum() == 0


def test_ignored_value_cannot_be_a_label():
    with pytest.raises(ValueError, match="ignore_index 0 is one of the 2 labels"):
        ConfusionMatrix(2, ignore_index=0)
    with pytest.raises(ValueError, match="num_labels is 0"):
        ConfusionMatrix(0)
    assert counted(np.zeros((1, 1), int), np.full((1, 1), -1), 2, ignore_index=-1).matrix.sum() == 0


def test_memory_does_not_grow_with_the_number_of_images():
    prediction, target = np.zeros((512, 512), np.uint8), np.ones((512, 512), np.uint8)
    counts = ConfusionMatrix(21)
    counts.update(prediction, target)
    tracemalloc.start()
    for _ in range(3):
        counts.update(prediction, target)
    few = tracemalloc.get_traced_memory()
    for _ in range(20):
        counts.update(prediction, target)
    many = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert many[0] - few[0] < 50_000 and many[1] < 1.1 * few[1]
    assert counts.matrix.sum() == 24 * 512 * 512


def _count_share(rank: int, queue: multiprocessing.Queue) -> None:
    rng = np.random.default_rng(2)
    counts = ConfusionMatrix(5)
    for index in range(7):  # an odd number: the shares are unequal
        prediction, target = rng.integers(0, 5, (2, 9, 11))
        if index % 2 == rank:
            counts.update(prediction, target)
    queue.put(counts.matrix)


def test_two_processes_give_exactly_the_number_of_one():
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_count_share, args=(rank, queue)) for rank in range(2)]
    for worker in workers:
        worker.start()
    merged = ConfusionMatrix(5)
    for _ in workers:
        part = ConfusionMatrix(5)
        part.matrix = queue.get(timeout=60)
        merged.merge(part)
    for worker in workers:
        worker.join()
    rng, alone = np.random.default_rng(2), ConfusionMatrix(5)
    for _ in range(7):
        alone.update(*rng.integers(0, 5, (2, 9, 11)))
    assert (merged.matrix == alone.matrix).all() and merged.compute() == alone.compute()


def test_merging_other_labels_is_refused():
    with pytest.raises(ValueError, match="4 labels into one of 3"):
        ConfusionMatrix(3).merge(ConfusionMatrix(4))


def test_evaluate_face_loads_offline_and_agrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    maps = [np.array([[0, 1, 1], [2, 2, 255]]), np.array([[0, 0], [1, 1], [1, 1]])]  # sizes differ
    predictions = [np.where(target == 255, 0, target) for target in maps]
    predictions[1][0, 0] = 1
    counts = ConfusionMatrix(3)
    for prediction, target in zip(predictions, maps):
        counts.update(prediction, target)
    arguments = {"predictions": predictions, "references": maps, "num_labels": 3}
    assert MeanIoU(cache_dir=str(tmp_path)).compute(**arguments) == counts.compute()
    loaded = evaluate.load(mean_iou.__file__, cache_dir=str(tmp_path))
    assert loaded.compute(**arguments) == counts.compute()
