"""Mean intersection over union from a confusion matrix.

The state is one (num_labels, num_labels) integer matrix, so memory does not grow with the number of images and several
processes give exactly the number of one: add their matrices. `MeanIoU` is the same as an `evaluate` metric; this file
is also what ``evaluate.load(<path of this file>)`` loads, which is why every import has a line of its own.

Source: Sec. IV-A; protocol of Pascal VOC (one matrix over all images, label 255 ignored).
"""

from typing import Any, Protocol, runtime_checkable

import datasets
import evaluate
import numpy as np


_DESCRIPTION = "Intersection over union per class from one confusion matrix over all images; void pixels are ignored."
_CITATION = ""


@runtime_checkable
class _Tensor(Protocol):
    """A torch tensor, without importing torch."""

    def detach(self) -> Any: ...


def _as_labels(values: Any, name: str) -> np.ndarray:
    """Integer array of a numpy array, torch tensor or nested list."""
    if isinstance(values, _Tensor):
        values = values.detach().cpu().numpy()
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise ValueError(
            f"{name} has dtype {array.dtype}, but labels are integers. Pass the argmax of the logits, not the logits."
        )
    return array


class ConfusionMatrix:
    """Counts of (true label, predicted label) over all pixels seen.

    Args:
        num_labels: number of labels, background included.
        ignore_index: target value of pixels that count nowhere; must not be a label.

    Attributes:
        matrix: (num_labels, num_labels) int64; row = true label, column = predicted label. Assign a sum over
            processes.

    Raises:
        ValueError: `num_labels` is below 1, or `ignore_index` is one of the labels.
    """

    def __init__(self, num_labels: int, ignore_index: int = 255) -> None:
        if num_labels < 1:
            raise ValueError(f"num_labels is {num_labels}; pass the number of labels including the background.")
        if 0 <= ignore_index < num_labels:
            raise ValueError(
                f"ignore_index {ignore_index} is one of the {num_labels} labels, whose pixels would vanish from the "
                f"metric. Use a value that is not a label, such as {max(num_labels, 255)}."
            )
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.matrix = np.zeros((num_labels, num_labels), dtype=np.int64)

    def update(self, prediction: Any, target: Any) -> None:
        """Add one label map or a batch.

        Args:
            prediction: (H, W) or (B, H, W) integer, numpy or torch, each in 0..num_labels-1.
            target: same shape, in 0..num_labels-1 or `ignore_index`.

        Raises:
            ValueError: the shapes differ, a value is not an integer, or not a label.
        """
        prediction, target = _as_labels(prediction, "prediction"), _as_labels(target, "target")
        if prediction.shape != target.shape:
            raise ValueError(
                f"prediction has shape {prediction.shape}, but target has {target.shape}. "
                "Resize the logits (not the ground truth) to the size of the target before the argmax."
            )
        valid = target != self.ignore_index
        rows, columns = target[valid], prediction[valid]
        self._check_range(rows, "target", f", except the ignored value {self.ignore_index}")
        # Where the truth is void a prediction counts nowhere, but it still has to be a label.
        self._check_range(prediction, "prediction", "")
        index = rows.astype(np.int64) * self.num_labels + columns.astype(np.int64)
        self.matrix += np.bincount(index, minlength=self.num_labels**2).reshape(self.num_labels, self.num_labels)

    def _check_range(self, values: np.ndarray, name: str, exception: str) -> None:
        if values.size and (values.min() < 0 or values.max() >= self.num_labels):
            wrong = [int(v) for v in np.unique(values) if not 0 <= v < self.num_labels]
            raise ValueError(
                f"{name} holds the value {wrong[0]} ({len(wrong)} wrong values in all), but with "
                f"{self.num_labels} labels "
                f"values are 0..{self.num_labels - 1}{exception}. Check num_labels and the class list."
            )

    def merge(self, other: "ConfusionMatrix") -> None:
        """Add the counts of another matrix over the same labels, for example of another process.

        Raises:
            ValueError: the other matrix has another number of labels.
        """
        if other.num_labels != self.num_labels:
            raise ValueError(
                f"cannot merge a matrix of {other.num_labels} labels into one of {self.num_labels} labels."
            )
        self.matrix += other.matrix

    def compute(self) -> dict:
        """Scores of everything seen.

        Returns:
            `mean_iou`: mean over the labels that occur in the truth or in a prediction; `foreground_mean_iou`: the
            same without label 0; `per_class_iou`: a list with None for labels that occur in neither;
            `pixel_accuracy`. All in [0, 1], None where nothing was counted.
        """
        intersection = np.diag(self.matrix)
        union = self.matrix.sum(axis=0) + self.matrix.sum(axis=1) - intersection
        per_class = [float(i / u) if u else None for i, u in zip(intersection, union)]
        total = int(self.matrix.sum())
        return {
            "mean_iou": _mean(per_class),
            "foreground_mean_iou": _mean(per_class[1:]),
            "per_class_iou": per_class,
            "pixel_accuracy": float(intersection.sum() / total) if total else None,
        }


def _mean(values: list[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present else None


class MeanIoU(evaluate.Metric):
    """`ConfusionMatrix` as an `evaluate` metric; works offline.

    ``MeanIoU().compute(predictions=maps, references=maps, num_labels=21, ignore_index=255)`` with lists of (H, W)
    integer maps returns the dictionary of `ConfusionMatrix.compute`. `evaluate` keeps every added map until `compute`;
    for a whole dataset use `ConfusionMatrix`, whose memory does not grow.
    """

    def _info(self) -> evaluate.MetricInfo:
        label_map = datasets.List(datasets.List(datasets.Value("int32")))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description="predictions, references: lists of (H, W) integer label maps; num_labels; ignore_index",
            features=datasets.Features({"predictions": label_map, "references": label_map}),
        )

    def _compute(  # pyright: ignore[reportIncompatibleMethodOverride]  (`evaluate` passes the metric's own arguments)
        self, predictions: list, references: list, num_labels: int, ignore_index: int = 255
    ) -> dict:
        counts = ConfusionMatrix(num_labels, ignore_index)
        for prediction, target in zip(predictions, references):
            counts.update(np.asarray(prediction), np.asarray(target))
        return counts.compute()
