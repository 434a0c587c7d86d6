import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lpg_hf import LPGImageProcessor
from lpg_hf.models.losses import box_dice, pixel_cross_entropy


@pytest.fixture
def batch():
    """Logits (2, 5, 6, 7) and labels: the first image is 90 % void, the second has no void."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 6, 7, generator=generator)
    labels = torch.randint(0, 5, (2, 6, 7), generator=generator)
    labels[0].view(-1)[4:] = 255
    return logits, labels


def test_loss_of_one_image_is_the_usual_cross_entropy(batch):
    logits, labels = batch
    expected = F.cross_entropy(logits[:1], labels[:1], ignore_index=255)
    torch.testing.assert_close(pixel_cross_entropy(logits[:1], labels[:1]), expected)


def test_gradient_of_a_batch_equals_accumulated_single_images(batch):
    logits, labels = batch
    together = logits.clone().requires_grad_()
    pixel_cross_entropy(together, labels).backward()
    one_by_one = logits.clone().requires_grad_()
    for i in range(2):
        (pixel_cross_entropy(one_by_one[i : i + 1], labels[i : i + 1]) / 2).backward()
    torch.testing.assert_close(together.grad, one_by_one.grad)


@pytest.mark.parametrize("at", ["logits", "labels"])
def test_all_ignored_batch_has_loss_zero_and_zero_gradients(batch, at):
    logits = batch[0].clone().requires_grad_()
    loss = pixel_cross_entropy(logits, torch.full((2, 24, 28), 255), at=at)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.eq(0).all()


def test_ignored_image_counts_zero_in_the_mean(batch):
    logits, labels = batch
    labels = labels.clone()
    labels[0] = 255
    torch.testing.assert_close(pixel_cross_entropy(logits, labels), pixel_cross_entropy(logits[1:], labels[1:]) / 2)


def test_ignored_pixels_do_not_change_the_loss(batch):
    logits, labels = batch
    changed = logits.clone()
    changed[0].flatten(1)[:, 4:] += 100
    assert pixel_cross_entropy(changed, labels) == pixel_cross_entropy(logits, labels)


def test_weight_zero_equals_ignored_and_constant_weight_changes_nothing(batch):
    logits, labels = batch
    weight = torch.ones(2, 6, 7)
    weight[1, :3] = 0
    ignored = labels.clone()
    ignored[1, :3] = 255
    expected = pixel_cross_entropy(logits, ignored)
    torch.testing.assert_close(pixel_cross_entropy(logits, labels, weight=weight), expected)
    torch.testing.assert_close(pixel_cross_entropy(logits, labels, weight=3 * weight), expected)
    assert pixel_cross_entropy(logits, labels, weight=torch.zeros(2, 6, 7)) == 0


def test_labels_go_to_the_nearest_pixel_centre():
    labels = torch.arange(9).repeat(9, 1)[None]  # label = column; a third of the size keeps columns 1, 4, 7
    logits = F.one_hot(torch.tensor([1, 4, 7]), 9).float().T[None, :, None].expand(1, 9, 3, 3) * 100
    assert pixel_cross_entropy(logits, labels) == 0


def test_at_labels_upsamples_the_logits_without_aligned_corners(batch):
    logits, _ = batch
    labels = torch.randint(0, 5, (2, 13, 11))
    upsampled = F.interpolate(logits, size=(13, 11), mode="bilinear", align_corners=False)
    torch.testing.assert_close(pixel_cross_entropy(logits, labels, at="labels"), F.cross_entropy(upsampled, labels))


def test_float16_logits_far_from_zero_give_finite_losses_and_the_masks_of_float32():
    torch.manual_seed(0)
    exact = torch.randn(2, 2, 128, 128) * 1e4
    logits = exact.half().requires_grad_()
    labels = torch.randint(0, 2, (2, 512, 512))
    loss = pixel_cross_entropy(logits, labels)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and logits.grad.isfinite().all()
    processor, boxes = LPGImageProcessor(), np.array([[10, 20, 500, 480]], dtype=np.float32)
    (view,) = processor.views(boxes, np.array([1]), 512, 512)
    half, full = (processor.decode_view(values, view, 512, 512)[2] for values in (logits[0].detach(), exact[0]))
    assert np.isfinite(half).all() and ((half > 0.5) == (full > 0.5)).mean() > 0.99


def test_loss_is_float32_also_for_bfloat16_logits_and_uint8_labels(batch):
    logits, labels = batch
    loss = pixel_cross_entropy(logits.bfloat16(), labels.to(torch.uint8))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, pixel_cross_entropy(logits.bfloat16().float(), labels))


def test_wrong_shapes_and_modes_are_refused(batch):
    logits, labels = batch
    with pytest.raises(ValueError, match="class indices"):
        pixel_cross_entropy(logits, labels[:, None])
    with pytest.raises(ValueError, match="weight has shape"):
        pixel_cross_entropy(logits, labels, weight=torch.ones(2, 6, 8))
    with pytest.raises(ValueError, match="at='both'"):
        pixel_cross_entropy(logits, labels, at="both")


def certain(mask: torch.Tensor) -> torch.Tensor:
    """(B, H, W) bool -> logits (B, 2, H, W) that are sure of it."""
    return torch.stack([~mask, mask], dim=1).float() * 200


def test_dice_is_0_for_the_object_and_1_beside_it_and_sees_the_boxes_alone():
    object_mask, box_mask = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    object_mask[0, 2:6, 2:6] = box_mask[0, 1:7, 1:7] = True
    labels, boxes = object_mask.long(), box_mask.float()
    assert box_dice(certain(object_mask), labels, boxes) == 0
    assert box_dice(certain(object_mask | ~box_mask), labels, boxes) == 0
    assert box_dice(certain(box_mask & ~object_mask), labels, boxes) == 1
    whole_box = box_dice(certain(box_mask), labels, boxes)
    torch.testing.assert_close(whole_box, torch.tensor(1 - 2 * 16 / (36 + 16)))
    ignored = torch.where(box_mask & ~object_mask, 255, labels)
    assert box_dice(certain(box_mask), ignored, boxes) == 0


def test_dice_is_a_mean_over_images_and_ignored_ones_and_ones_without_object_count_0():
    torch.manual_seed(0)
    logits = torch.randn(3, 2, 4, 4, requires_grad=True)
    labels = torch.randint(0, 2, (3, 16, 16))
    boxes = torch.ones(3, 16, 16)
    one = box_dice(logits[:1], labels[:1], boxes[:1])
    labels[1], labels[2] = 255, 0
    loss = box_dice(logits, labels, boxes)
    torch.testing.assert_close(loss, one / 3)
    loss.backward()
    assert logits.grad.isfinite().all() and logits.grad[0].any() and not logits.grad[1:].any()
    assert box_dice(logits.bfloat16(), labels, boxes).dtype == torch.float32
