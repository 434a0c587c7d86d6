import numpy as np
import pytest

from lpg_hf import load_generator
from lpg_hf.generators.base import BoxedImage


def boxed(num_boxes: int = 2) -> BoxedImage:
    boxes = np.array([[2, 3, 8, 9], [5, 5, 12, 10]], dtype=np.float32)[:num_boxes]
    return BoxedImage(np.zeros((12, 16, 3), np.uint8), boxes, np.array([1, 2])[:num_boxes])


def test_a_function_is_a_generator_and_its_masks_are_cut_to_the_boxes():
    generator = load_generator(lambda image, boxes: np.ones((len(boxes), *image.shape[:2]), dtype=bool))
    patches = [patch for _, patch in generator.patches([boxed()], "instance")]
    assert [(p.label, p.boxes, p.rows, p.columns) for p in patches] == [
        (1, (0,), slice(3, 9), slice(2, 8)),
        (2, (1,), slice(5, 10), slice(5, 12)),
    ]
    assert all((p.foreground == 1).all() and p.foreground.dtype == np.float32 for p in patches)


def test_a_function_is_not_called_without_boxes():
    def never(image, boxes):
        raise AssertionError("called")

    assert list(load_generator(never).patches([boxed(0)], "class")) == []


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (np.zeros((1, 12, 16)), r"returned shape \(1, 12, 16\); expected \(2, 12, 16\)"),
        (np.full((2, 12, 16), 3.5), r"returned floats in 3.5..3.5"),
        (np.full((2, 12, 16), np.nan), r"returned floats in nan"),
    ],
)
def test_a_function_that_returns_something_else_is_named(result: np.ndarray, message: str):
    with pytest.raises(ValueError, match=message):
        list(load_generator(lambda image, boxes: result).patches([boxed()], "class"))


def test_box_generator_fills_the_pixels_that_a_box_touches():
    patches = [patch for _, patch in load_generator("box").patches([boxed()], "class")]
    assert [p.foreground.shape for p in patches] == [(6, 6), (5, 7)] and all(
        (p.foreground == 1).all() for p in patches
    )
