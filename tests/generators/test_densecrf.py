"""Dense CRF from boxes: it finds the object, scales with the box, survives odd boxes, and its absence is explained."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lpg_hf.boxes import box_slices
from lpg_hf.generators._densecrf import BOX_CRF, DenseCRFGenerator, central_part
from lpg_hf.generators.base import BoxedImage


@pytest.fixture
def needs_crf():
    pytest.importorskip("pydensecrf", reason="the extra [crf] is not installed")


def boxed(image: np.ndarray, *boxes: tuple) -> BoxedImage:
    return BoxedImage(image, np.array(boxes, dtype=np.float32).reshape(-1, 4), np.arange(1, len(boxes) + 1))


def foregrounds(generator: DenseCRFGenerator, *images: BoxedImage) -> list[np.ndarray]:
    return [patch.foreground for _, patch in generator.patches(images, "class")]


def disc(scale: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A noisy red disc on noisy green: (image, truth)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: 80 * scale, : 120 * scale] / scale
    truth = (y - 40) ** 2 + (x - 60) ** 2 < 18**2
    image = np.where(truth[..., None], (200, 60, 40), (50, 120, 60)) + rng.normal(0, 4, (*truth.shape, 3))
    return image.clip(0, 255).astype(np.uint8), truth


def noise(height: int = 60, width: int = 70, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.usefixtures("needs_crf")
@pytest.mark.parametrize("scale", [1, 6])
def test_finds_the_object_in_its_box_at_any_size(scale):
    image, truth = disc(scale)
    box = (42 * scale, 22 * scale, 78 * scale, 58 * scale)
    (patch,) = (patch for _, patch in DenseCRFGenerator(max_side=96).patches([boxed(image, box)], "instance"))
    found, true = patch.foreground > 0.5, truth[patch.rows, patch.columns]
    assert (patch.rows, patch.columns) == box_slices(box, *truth.shape)
    assert patch.foreground.dtype == np.float32 and 0 <= patch.foreground.min() <= patch.foreground.max() <= 1
    assert (found & true).sum() / (found | true).sum() > 0.9 > true.mean()


@pytest.mark.usefixtures("needs_crf")
def test_a_box_knows_nothing_of_other_boxes_and_images():
    image, _ = disc()
    boxes = [(42, 22, 78, 58), (30, 10, 100, 70), (0, 0, 20, 20)]
    generator = DenseCRFGenerator()
    together = foregrounds(generator, boxed(noise(), (5, 5, 50, 50)), boxed(image, *boxes))[1:]
    alone = [foregrounds(generator, boxed(image, box))[0] for box in boxes]
    assert all(np.array_equal(a, b) for a, b in zip(together, alone))
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: foregrounds(generator, boxed(image, *boxes)), range(4)):
            assert all(np.array_equal(a, b) for a, b in zip(found, alone))


@pytest.mark.usefixtures("needs_crf")
@pytest.mark.parametrize(
    "image, box",
    [
        (noise(), (0, 0, 70, 60)),
        (noise(), (3, 4, 4, 5)),
        (noise(), (69.5, 59.5, 70, 60)),
        (noise(), (0, 7, 70, 8)),
        (noise(1, 1), (0, 0, 1, 1)),
        (noise(2, 2), (0, 0, 1, 1)),
        (np.full((60, 70, 3), 90, np.uint8), (10, 10, 30, 30)),
        (np.zeros((1200, 20, 3), np.uint8), (0, 0, 20, 1100)),
    ],
)
def test_odd_boxes_give_a_mask_that_fills_some_of_the_box(image, box):
    (found,) = foregrounds(DenseCRFGenerator(max_side=64), boxed(image, box))
    rows, columns = box_slices(box, *image.shape[:2])
    assert found.shape == (rows.stop - rows.start, columns.stop - columns.start)
    assert np.isfinite(found).all() and 0 <= found.min() and found.max() <= 1
    assert (found > 0.5).mean() >= 0.25


@pytest.mark.usefixtures("needs_crf")
@pytest.mark.parametrize(
    "change",
    [
        {"centre": 0.05},
        {"prior": 0.3},
        {"context": 1.0},
        {"min_fill": 0.95},
        {"max_side": 24},
        {"crf": BOX_CRF._replace(iterations=1)},
        {"crf": BOX_CRF._replace(pos_w=20)},
        {"crf": BOX_CRF._replace(pos_xy=0.2)},
        {"crf": BOX_CRF._replace(bi_w=1)},
        {"crf": BOX_CRF._replace(bi_xy=0.05)},
        {"crf": BOX_CRF._replace(bi_rgb=60)},
    ],
)
def test_every_argument_matters(change):
    image = boxed(disc()[0], (30, 10, 84, 66))
    (base,), (changed,) = (foregrounds(DenseCRFGenerator(**kw), image) for kw in ({}, change))
    assert not np.allclose(base, changed, atol=1e-3)


@pytest.mark.parametrize(
    "side, share, expected",
    [
        (slice(10, 20), 0.25, slice(12, 17)),
        (slice(0, 1), 0.2, slice(0, 1)),
        (slice(3, 5), 0.01, slice(3, 4)),
        (slice(3, 5), 0.99, slice(3, 5)),
        (slice(0, 9), 0, slice(4, 5)),
    ],
)
def test_the_central_part_is_in_the_middle_and_never_empty(side, share, expected):
    assert central_part(side, share) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"centre": 1},
        {"prior": -0.1},
        {"min_fill": 1},
        {"context": 0},
        {"crf": BOX_CRF._replace(bi_xy=0)},
        {"max_side": 4},
    ],
)
def test_bad_arguments_are_named(change):
    name, value = next(iter(change.items()))
    name, value = ("bi_xy", 0) if name == "crf" else (name, value)
    with pytest.raises(ValueError, match=f"{name}={value}:"):
        DenseCRFGenerator(**change)


def test_absent_package_is_told_when_the_generator_is_made(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    with pytest.raises(ImportError, match=r'pip install "lpg_hf\[crf\]"'):
        DenseCRFGenerator()


@pytest.mark.usefixtures("needs_crf")
def test_no_boxes_no_patches():
    assert foregrounds(DenseCRFGenerator(), boxed(noise())) == []
