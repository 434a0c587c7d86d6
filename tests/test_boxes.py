"""The box convention, and conversions to the others."""

import numpy as np
import pytest
import torch

from lpg_hf.boxes import BOX_FORMATS, box_slices, boxes_to_mask, clip_boxes, convert_boxes


def test_box_mask_end_is_exclusive():
    mask = boxes_to_mask(torch.tensor([[1, 0, 3, 2]]), height=4, width=5)
    assert mask.sum() == 4 and mask[:2, 1:3].eq(1).all()


def test_numpy_and_torch_masks_are_equal():
    boxes = np.array([[0.4, 1.2, 3.7, 2.0], [2, 2, 5, 4]], dtype=np.float32)
    array, tensor = boxes_to_mask(boxes, 4, 5), boxes_to_mask(torch.from_numpy(boxes), 4, 5)
    assert array.dtype == np.uint8 and tensor.dtype == torch.uint8
    assert (tensor.numpy() == array).all()


@pytest.mark.parametrize("boxes", [np.zeros((0, 4)), torch.zeros(0, 4), []])
def test_no_boxes_give_an_empty_mask(boxes):
    mask = boxes_to_mask(boxes, 4, 5)
    assert tuple(mask.shape) == (4, 5) and mask.sum() == 0


@pytest.mark.parametrize("source", BOX_FORMATS)
@pytest.mark.parametrize("target", BOX_FORMATS)
def test_format_round_trip(source, target):
    xyxy = np.array([[10.0, 8.0, 30.0, 24.0], [0.0, 0.0, 60.0, 40.0]])
    boxes = convert_boxes(xyxy, "xyxy", source, height=40, width=60)
    there = convert_boxes(boxes, source, target, height=40, width=60)
    np.testing.assert_allclose(convert_boxes(there, target, source, height=40, width=60), boxes, atol=1e-12)


def test_one_box_in_all_formats():
    box = np.array([10.0, 8.0, 30.0, 24.0])
    expected = {
        "xyxy": [10, 8, 30, 24],
        "xywh": [10, 8, 20, 16],
        "cxcywh": [20, 16, 20, 16],
        "yolo": [1 / 3, 0.4, 1 / 3, 0.4],
        "voc": [11, 9, 30, 24],
    }
    for name, numbers in expected.items():
        np.testing.assert_allclose(convert_boxes(box, "xyxy", name, height=40, width=60), numbers)
        tensor = convert_boxes(torch.tensor(box), "xyxy", name, height=40, width=60)
        np.testing.assert_allclose(tensor.numpy(), numbers)


def test_integer_boxes_do_not_lose_halves():
    assert convert_boxes(torch.tensor([[0, 0, 3, 5]]), "xyxy", "cxcywh").tolist() == [[1.5, 2.5, 3.0, 5.0]]
    assert convert_boxes([[0, 0, 3, 5]], "xyxy", "cxcywh").tolist() == [[1.5, 2.5, 3.0, 5.0]]


def test_voc_corner_values():
    full, pixel = convert_boxes([[1, 1, 60, 40], [1, 1, 1, 1]], "voc", "xyxy")
    assert full.tolist() == [0, 0, 60, 40] and pixel.tolist() == [0, 0, 1, 1]
    assert boxes_to_mask(full[None], 40, 60).sum() == 2400
    mask = boxes_to_mask(pixel[None], 40, 60)
    assert mask.sum() == 1 and mask[0, 0] == 1


def test_boxes_are_clipped_to_the_image():
    boxes = convert_boxes([[-5, -3, 20, 16], [50, 30, 30, 30]], "xywh", "xyxy")
    clipped = convert_boxes(clip_boxes(boxes, height=40, width=60), "xyxy", "xywh")
    assert clipped.tolist() == [[0, 0, 15, 13], [50, 30, 10, 10]]
    assert clip_boxes(torch.tensor([[-5.0, -3.0, 99.0, 16.0]]), 40, 60).tolist() == [[0, 0, 60, 16]]


def test_pixel_rule_covers_touched_pixels_and_at_least_one():
    assert box_slices([1.2, 0.0, 2.1, 3.9], 10, 10) == (slice(0, 4), slice(1, 3))
    assert box_slices([1.2, 1.2, 1.3, 1.3], 10, 10) == (slice(1, 2), slice(1, 2))
    assert box_slices([9.9999, 0, 10, 1], 10, 10) == (slice(0, 1), slice(9, 10))


def test_float32_rounding_does_not_paint_another_column():
    x, width = np.float32(10.1), np.float32(19.9)
    for end in (30.0, float(x + width), 30.0 + 9e-4, 30.0 - 9e-4):
        assert box_slices([10, 0, end, 1], 40, 60)[1] == slice(10, 30)


def test_box_outside_the_image_covers_nothing():
    assert boxes_to_mask([[60, 0, 70, 10], [-9, -9, 0, 0]], 40, 60).sum() == 0


@pytest.mark.parametrize(
    "arguments, text",
    [
        (([[0, 0, 1, 1]], "xyxy", "corners"), "unknown box format 'corners'"),
        (([[0, 0, 1, 1]], "yolo", "xyxy"), "pass its height and width"),
        (([[0, 0, 1]], "xywh", "xyxy"), "four numbers"),
    ],
)
def test_error_texts(arguments, text):
    with pytest.raises(ValueError, match=text):
        convert_boxes(*arguments)
