"""Dense CRF: it follows the image's edges, takes arrays of any kind, and its absence is explained."""

import sys

import numpy as np
import pytest

from lpg_hf.generators.crf import LARGEFOV_CRF, RESNET_CRF, dense_crf


HEIGHT, WIDTH = 40, 60


@pytest.fixture
def scene() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A red rectangle on grey, and a probability that is shifted and noisy: (image, probabilities, truth)."""
    rng = np.random.default_rng(0)
    image = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    image[8:24, 10:30] = (200, 20, 20)
    truth = np.zeros((HEIGHT, WIDTH), bool)
    truth[8:24, 10:30] = True
    foreground = np.full((HEIGHT, WIDTH), 0.25)
    foreground[10:26, 12:32] = 0.75
    foreground = np.clip(foreground + rng.normal(0, 0.1, foreground.shape), 0, 1)
    return image, np.stack([1 - foreground, foreground]), truth


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("settings", [LARGEFOV_CRF, RESNET_CRF])
def test_crf_moves_the_mask_to_the_edges_of_the_image(scene, settings):
    pytest.importorskip("pydensecrf", reason="the extra [crf] is not installed")
    image, probabilities, truth = scene
    refined = dense_crf(image, probabilities, settings)
    assert refined.shape == probabilities.shape and refined.dtype == np.float32
    assert np.allclose(refined.sum(axis=0), 1, atol=1e-4)
    assert iou(refined.argmax(0) == 1, truth) > 0.98 > iou(probabilities.argmax(0) == 1, truth)


def test_precision_layout_and_writability_do_not_matter(scene):
    pytest.importorskip("pydensecrf", reason="the extra [crf] is not installed")
    image, probabilities, _ = scene
    plain = np.ascontiguousarray(probabilities, dtype=np.float32)
    expected = dense_crf(image, plain)
    transposed = np.asfortranarray(plain)
    strided = np.repeat(plain, 2, axis=2)[:, :, ::2]
    read_only, image_read_only = plain.copy(), image.copy()
    read_only.flags.writeable = image_read_only.flags.writeable = False
    for name, result in {
        "float64": dense_crf(image, plain.astype(np.float64)),
        "fortran": dense_crf(np.asfortranarray(image), transposed),
        "strided": dense_crf(image[:, :, ::-1][:, :, ::-1], strided),
        "read-only": dense_crf(image_read_only, read_only),
        "float image": dense_crf(image.astype(np.float32) / 255, plain),
    }.items():
        assert np.array_equal(result, expected), name
    assert np.array_equal(plain, probabilities.astype(np.float32))


def test_hard_zeros_and_ones_stay_finite(scene):
    pytest.importorskip("pydensecrf", reason="the extra [crf] is not installed")
    image, probabilities, _ = scene
    assert np.isfinite(dense_crf(image, probabilities.round())).all()


def test_classes_without_a_chance_can_be_left_out(scene):
    pytest.importorskip("pydensecrf", reason="the extra [crf] is not installed")
    image, probabilities, _ = scene
    rare = np.full((3, HEIGHT, WIDTH), 0.01)
    probabilities = np.insert(probabilities * 0.97, 1, rare, axis=0)  # background, three rare classes, the object
    everything, refined = dense_crf(image, probabilities), dense_crf(image, probabilities, min_probability=0.05)
    assert np.array_equal(refined.argmax(0), everything.argmax(0))
    assert not refined[1:4].any() and everything[1:4].any()
    assert np.allclose(refined.sum(axis=0), 1, atol=1e-4)
    unsure = np.stack([np.full((HEIGHT, WIDTH), 0.4), np.full((HEIGHT, WIDTH), 0.6)])
    refined = dense_crf(image, unsure, min_probability=0.9)  # nothing reaches it: the highest class stays
    assert not refined[0].any() and np.allclose(refined[1], 1)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda image, p: (image[:-1], p), "Resize the logits"),
        (lambda image, p: (image, p * 40 - 20), "softmax of the logits"),
        (lambda image, p: (image, np.full_like(p, np.nan)), "finite"),
        (lambda image, p: (image.astype(np.float32), p), "float32 with values in 20.0..200.0"),
        (lambda image, p: (image.astype(np.int64), p), "dtype int64"),
        (lambda image, p: (image[..., 0], p), r"shape \(40, 60\)"),
    ],
)
def test_wrong_input_is_named(scene, change, message):
    image, probabilities, _ = scene
    with pytest.raises(ValueError, match=message):
        dense_crf(*change(image, probabilities))


def test_absent_package_is_explained(scene, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    with pytest.raises(ImportError, match=r'pip install "lpg_hf\[crf\]"'):
        dense_crf(*scene[:2])
