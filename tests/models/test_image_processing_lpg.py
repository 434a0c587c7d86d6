import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from lpg_hf.boxes import boxes_to_mask
from lpg_hf.data._examples import decode_image
from lpg_hf.models.configuration_lpg import LPGConfig
from lpg_hf.models.image_processing_lpg import LPGImageProcessor, stack_views
from lpg_hf.models.modeling_lpg import LPGModel
from lpg_hf.models.views_lpg import Augmentation, box_mask_of_view, image_to_view


PROCESSORS = {"image": LPGImageProcessor(), "box": LPGImageProcessor(view="box", view_size=64)}
every_view = pytest.mark.parametrize("processor", PROCESSORS.values(), ids=PROCESSORS.keys())

BOXES = [[10, 8, 30, 24], [40.5, 2.25, 70, 39]]


def make_image(height=40, width=60, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def tiny_lpg(use_class_prob=False) -> LPGModel:
    torch.manual_seed(0)
    sizes = {"embedding_size": 4, "hidden_sizes": (6, 8), "depths": (1, 1), "neck_size": 8, "head_size": 6}
    return LPGModel(LPGConfig(use_class_prob=use_class_prob, **sizes)).eval()


@torch.no_grad()
def run(model, batch):
    return model(**{name: value for name, value in batch.items() if name != "views"})


def certain(batch, value=20.0):
    """Output of a network that takes every pixel for the object."""
    num_views, _, height, width = batch["box_mask"].shape
    logits = torch.zeros(num_views, 2, -(-height // 4), -(-width // 4))
    logits[:, 1] = value
    return SimpleNamespace(logits=logits)


def pooled(batch):
    """Output of a network that sees 4 x 4 pixels and answers with their mean colour."""
    pixels = batch["pixel_values"]
    pixels = F.pad(pixels, (0, -pixels.shape[3] % 4, 0, -pixels.shape[2] % 4))
    return SimpleNamespace(logits=F.avg_pool2d(pixels[:, :2], 4))


def equal(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one if k != "views")


# What the call takes


@every_view
def test_images_of_every_kind_give_the_same_batch(processor):
    image = make_image()
    expected = processor(image, boxes=BOXES, return_tensors="pt")
    assert expected["pixel_values"].dtype == expected["box_mask"].dtype == torch.float32
    tensor = torch.from_numpy(image)
    for same in (Image.fromarray(image), image.transpose(2, 0, 1), tensor, tensor.permute(2, 0, 1)):
        assert equal(processor(same, boxes=BOXES, return_tensors="pt"), expected)
        assert equal(processor([same], boxes=[BOXES], return_tensors="pt"), expected)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_images_of_other_modes_become_rgb(mode):
    image = Image.fromarray(make_image()).convert(mode)
    batch = PROCESSORS["box"](image, boxes=BOXES, return_tensors="pt")
    assert equal(batch, PROCESSORS["box"](image.convert("RGB"), boxes=BOXES, return_tensors="pt"))


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I"])
def test_pil_images_are_read_as_the_package_reads_files(mode, orientation):
    if mode in ("I;16", "I"):
        values = np.linspace(0, 65520, 2400).reshape(40, 60)
        image = Image.fromarray(values.astype(np.uint16 if mode == "I;16" else np.int32))
    else:
        image = Image.fromarray(np.dstack([make_image(), np.tile(np.uint8(range(60)), (40, 1))])).convert(mode)
    if mode == "P":
        image.info["transparency"] = 7
    image.getexif()[0x0112] = orientation
    expected = decode_image({"image": image})
    assert expected.shape == ((40, 60, 3) if orientation == 1 else (60, 40, 3))
    processor = PROCESSORS["image"]
    batch = processor([image], boxes=[BOXES[:1]], return_tensors="pt")
    assert equal(batch, processor([expected], boxes=[BOXES[:1]], return_tensors="pt"))


def test_pil_images_without_an_agreed_range_are_refused():
    for values in (np.float32(make_image()[..., 0]), np.int32([[70000]]), np.int32([[-1]])):
        with pytest.raises(ValueError, match="convert it to 8 or 16 bits"):
            PROCESSORS["image"](Image.fromarray(values), boxes=[[0, 0, 1, 1]])


@every_view
def test_boxes_of_every_kind_give_the_same_batch(processor):
    boxes = [[10, 8, 30, 24], [40, 2, 70, 39]]
    expected = processor(make_image(), boxes=boxes, return_tensors="pt")
    for same in (
        tuple(map(tuple, boxes)),
        np.array(boxes),
        np.array(boxes, dtype=np.uint8),
        np.array(boxes, dtype=np.float64),
        torch.tensor(boxes),
        torch.tensor(boxes, dtype=torch.float32),
        [torch.tensor(box) for box in boxes],
    ):
        assert equal(processor(make_image(), boxes=same, return_tensors="pt"), expected)


@every_view
def test_images_of_different_sizes_and_numbers_of_boxes_in_one_batch_equal_one_by_one(processor):
    images = [make_image(40, 60), make_image(15, 16, 1), make_image(60, 64, 2), make_image(31, 30, 3)]
    boxes = [BOXES, [[2, 3, 9, 12]], [], [[0, 0, 30, 31], [5, 6, 7, 8], [20, 1, 40, 9]]]
    labels = [[1, 2], [3], [], [4, 5, 4]]
    batch = processor(images, boxes=boxes, box_labels=labels, return_tensors="pt")
    assert [len(of_image) for of_image in batch["views"]] == [2, 1, 0, 2 if processor.view == "image" else 3]
    results = processor.post_process_foreground(pooled(batch), batch["views"], [i.shape[:2] for i in images])
    for i, image in enumerate(images):
        assert results[i]["foreground"].shape[1:] == image.shape[:2]
        assert results[i]["labels"].tolist() == list(dict.fromkeys(labels[i]))
        alone = processor(image, boxes=boxes[i], box_labels=labels[i], return_tensors="pt")
        result = processor.post_process_foreground(pooled(alone), alone["views"], [image.shape[:2]])[0]
        core = np.s_[:, :-4, :-4] if processor.view == "image" else np.s_[:]  # the last logits see the padding
        torch.testing.assert_close(results[i]["foreground"][core], result["foreground"][core])


@every_view
def test_a_batch_of_different_sizes_covers_each_image_with_its_own_part_of_the_logits(processor):
    """15 x 16 beside 60 x 64: the small image's padded logits have as many pixels as the image itself."""
    images = [make_image(16, 16), make_image(64, 64, 1)]
    batch = processor(images, boxes=[[[0, 0, 16, 16]], [[0, 0, 64, 64]]], return_tensors="pt")
    output = certain(batch)
    if processor.view == "image":
        output.logits[0, 1, 4:] = output.logits[0, 1, :, 4:] = -20  # what the network says of the padding
    results = processor.post_process_foreground(output, batch["views"], [(16, 16), (64, 64)])
    assert all(result["foreground"][:, :13, :13].min() > 0.99 for result in results)


@pytest.mark.parametrize("use_class_prob", [False, True])
@every_view
@pytest.mark.parametrize("boxes", [[], np.zeros((0, 4)), torch.zeros(0, 4)], ids=["list", "numpy", "torch"])
def test_zero_boxes_give_no_view_and_no_mask(processor, boxes, use_class_prob):
    """The documented result; it also passes through the network."""
    probs = np.full((3, 5, 5), 0.5, dtype=np.float32) if use_class_prob else None
    batch = processor(make_image(), boxes=boxes, class_probs=probs, return_tensors="pt")
    assert batch["views"] == [[]] and len(batch["pixel_values"]) == len(batch["box_mask"]) == 0
    output = run(tiny_lpg(use_class_prob), batch)
    result = processor.post_process_foreground(output, batch["views"], [(40, 60)])[0]
    assert result["labels"].shape == (0,) and result["labels"].dtype == torch.int64
    assert result["foreground"].shape == (0, 40, 60) and result["foreground"].dtype == torch.float32


def test_without_boxes_only_pixel_values_come_out():
    batch = PROCESSORS["box"]([make_image(40, 60), make_image(30, 50)], return_tensors="pt")
    assert set(batch) == {"pixel_values"} and batch["pixel_values"].shape == (2, 3, 40, 60)


def test_views_follow_the_processor():
    labels = [2, 1, 2]
    boxes = [[10, 8, 30, 24], [0, 0, 5, 5], [40, 2, 60, 39]]
    whole = PROCESSORS["image"](make_image(), boxes=boxes, box_labels=labels, return_tensors="pt")
    assert whole["pixel_values"].shape == (2, 3, 40, 60)  # one per class
    assert [view.label for view in whole["views"][0]] == [2, 1]
    assert (whole["box_mask"][0, 0].numpy() == boxes_to_mask(np.array(boxes)[[0, 2]], 40, 60)).all()
    windows = PROCESSORS["box"](make_image(), boxes=boxes, box_labels=labels, return_tensors="pt")
    assert windows["pixel_values"].shape == (3, 3, 64, 64)  # one per box
    assert [view.label for view in windows["views"][0]] == labels
    for row, view in zip(windows["box_mask"], windows["views"][0]):
        assert (row[0].numpy() == box_mask_of_view(view)).all()


def test_view_settings_are_read():
    image = make_image()
    near = LPGImageProcessor(view="box", view_size=64, view_context=0.0)(image, boxes=BOXES)
    far = LPGImageProcessor(view="box", view_size=64, view_context=1.0)(image, boxes=BOXES)
    assert np.mean(near["box_mask"]) > 0.4 > 0.15 > np.mean(far["box_mask"])
    small = LPGImageProcessor(view="box", view_size=32)(image, boxes=BOXES)
    assert np.shape(small["pixel_values"]) == (2, 3, 32, 32)
    views = near["views"]
    output = SimpleNamespace(logits=torch.randn(2, 2, 16, 16, generator=torch.Generator().manual_seed(0)))
    maps = [
        LPGImageProcessor(align_corners=align).post_process_foreground(output, views, [(40, 60)])[0]["foreground"]
        for align in (False, True)
    ]
    assert not torch.allclose(*maps)


@pytest.mark.parametrize("return_tensors, kind", [("pt", torch.Tensor), ("np", np.ndarray), (None, np.ndarray)])
def test_tensors_are_of_the_kind_asked_for_and_views_survive_to(return_tensors, kind):
    batch = PROCESSORS["box"](make_image(), boxes=BOXES, return_tensors=return_tensors)
    assert isinstance(batch["pixel_values"], kind) and isinstance(batch["box_mask"], kind)
    assert batch.to("cpu", torch.bfloat16)["views"] == batch["views"]


# Errors


def test_unknown_view_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'crop' is unknown.*image, box"):
        LPGImageProcessor(view="crop")


@pytest.mark.parametrize(
    "setting", [{"view": "box"}, {"view_size": 96}, {"view_context": 0.5}, {"align_corners": True}]
)
def test_a_view_setting_for_one_call_is_refused_instead_of_ignored(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))}=.* was given for one call"):
        PROCESSORS["image"](make_image(), boxes=BOXES, **setting)


@pytest.mark.parametrize(
    "box", [[10, 8, 10, 24], [10, 24, 30, 8], [30, 8, 10, 24], [20, 16, 20, 16]], ids=["thin", "y", "x", "point"]
)
def test_empty_and_inverted_boxes_are_refused_with_their_place_and_the_remedy(box):
    with pytest.raises(ValueError, match=r"box 1 of image 1 is empty: \[.*xyxy.*'xywh'"):
        PROCESSORS["image"]([make_image(), make_image()], boxes=[BOXES, [BOXES[0], box]])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_boxes_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match="boxes of image 0 .*not finite"):
        PROCESSORS["box"](make_image(), boxes=[[1, 2, value, 9]])


@pytest.mark.parametrize("boxes", [[1, 2, 3, 4], [[1, 2, 3]], [[1, 2, 3, 4, 5]]])
def test_boxes_of_another_shape_are_refused(boxes):
    with pytest.raises(ValueError, match=r"boxes of image 0 have shape .*\(N, 4\) xyxy"):
        PROCESSORS["image"](make_image(), boxes=boxes)


@pytest.mark.parametrize("name", ["boxes", "box_labels", "class_probs"])
def test_another_number_of_entries_than_images_is_refused(name):
    entries = {"boxes": [BOXES, BOXES], "box_labels": [[1, 1]] * 2, "class_probs": [np.zeros((2, 4, 4))] * 2}
    entries[name] = entries[name][:1]
    with pytest.raises(ValueError, match=f"{name} has 1 entries for 2 images"):
        PROCESSORS["image"]([make_image(), make_image()], **entries)


def test_another_number_of_labels_than_boxes_is_refused():
    with pytest.raises(ValueError, match=r"box_labels of image 0 have shape \(3,\) for 2 boxes"):
        PROCESSORS["image"](make_image(), boxes=BOXES, box_labels=[1, 2, 3])


@pytest.mark.parametrize("dtype", [np.float32, np.uint16, np.int64])
def test_images_that_are_not_8_bit_are_refused(dtype):
    with pytest.raises(ValueError, match=f"image 0 is {np.dtype(dtype)}: .*8-bit"):
        LPGImageProcessor(do_convert_rgb=False)(make_image().astype(dtype), boxes=BOXES)


def test_output_that_does_not_belong_to_the_views_is_refused():
    processor = PROCESSORS["box"]
    batch = processor(make_image(), boxes=BOXES, return_tensors="pt")
    output = certain(batch)
    with pytest.raises(ValueError, match="2 logits and 2 target_sizes for 2 views of 1 images"):
        processor.post_process_foreground(output, batch["views"], [(40, 60), (40, 60)])
    output.logits = output.logits[:1]
    with pytest.raises(ValueError, match="1 logits and 1 target_sizes for 2 views of 1 images"):
        processor.post_process_foreground(output, batch["views"], [(40, 60)])


# Values


@every_view
def test_pixels_are_normalised_and_what_lies_outside_the_image_is_the_mean_colour(processor):
    image = np.zeros((40, 60, 3), dtype=np.uint8)
    image[:] = (200, 100, 50)
    box = [[-10, -10, 20, 20]]
    pixels = processor(image, boxes=box, return_tensors="pt")["pixel_values"][0]
    mean, std = np.array(processor.image_mean), np.array(processor.image_std)
    expected = (np.array([200, 100, 50]) / 255 - mean) / std
    np.testing.assert_allclose(pixels[:, -1, -1].numpy(), expected, rtol=1e-4)
    if processor.view == "box":
        assert pixels[:, 0, 0].abs().max() < 0.5 / 255 / std.min() + 1e-4


def test_own_mean_and_std_are_used():
    processor = LPGImageProcessor(image_mean=[0.5] * 3, image_std=[0.25] * 3)
    pixels = processor(make_image(), boxes=BOXES, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(pixels, (make_image().transpose(2, 0, 1) / 255 - 0.5) / 0.25, atol=1e-5)


@every_view
def test_class_probs_are_those_of_the_views_class_brought_to_the_image(processor):
    probs = np.zeros((4, 5, 6), dtype=np.float32)
    probs[0], probs[1], probs[3] = 0.1, np.linspace(0, 1, 6), 0.7
    for given in (probs, torch.from_numpy(probs)):
        batch = processor(
            make_image(), boxes=[[0, 0, 60, 40]] * 2, box_labels=[3, 1], class_probs=given, return_tensors="pt"
        )
        constant, ramp = batch["class_prob"]
        assert batch["class_prob"].shape == batch["box_mask"].shape and constant.dtype == torch.float32
        inside = batch["box_mask"][0, 0].bool()  # the image; a box view reaches beyond it
        assert (constant[0][inside] - 0.7).abs().median() < 1e-6
        row = ramp[0][ramp.shape[1] // 2][inside[ramp.shape[1] // 2]][1:-1]  # without the pixels across the edge
        assert (row.diff() > -1e-6).all() and row[0] < 0.05 and row[-1] > 0.95 and abs(row.mean() - 0.5) < 0.01
        if processor.view == "box":
            assert constant[0][0].eq(0).all()  # outside the image nothing is likely


def test_8_bit_class_prob_equals_the_float_one():
    processor = PROCESSORS["box"]
    view = processor.views(np.array(BOXES, dtype=np.float32), np.array([1, 1]), 40, 60)[0]
    prob = np.random.default_rng(0).integers(0, 256, (5, 8), dtype=np.uint8)
    encoded = [processor.encode(make_image(), view, p)["class_prob"] for p in (prob, prob.astype(np.float32) / 255)]
    assert encoded[0].dtype == np.float32 and encoded[0].max() > 0.3
    np.testing.assert_allclose(*encoded, atol=1e-5)


def test_stacked_views_are_padded_at_the_right_and_the_bottom_with_nothing_to_learn():
    def row(height, width):
        return {
            "pixel_values": np.ones((3, height, width), dtype=np.float32),
            "box_mask": np.ones((1, height, width), dtype=np.float32),
            "labels": np.ones((height, width), dtype=np.int64),
        }

    batch = stack_views([row(4, 7), row(6, 5)])
    for name, fill in (("pixel_values", 0), ("box_mask", 0), ("labels", 255)):
        values = batch[name]
        assert values.shape[-2:] == (6, 7)
        assert (values[0, ..., :4, :] == 1).all() and (values[0, ..., 4:, :] == fill).all()
        assert (values[1, ..., :5] == 1).all() and (values[1, ..., 5:] == fill).all()


# Back to the image


@every_view
def test_foreground_is_a_probability_inside_the_boxes_and_exactly_0_outside(processor):
    """The boxes are partly outside, overlapping, fractional, and of one pixel."""
    boxes = np.array([[10, 8, 30, 24], [-9, 20.5, 14.5, 60], [40.2, 2.7, 75, 39], [50, 5, 51, 6]], dtype=np.float32)
    labels = np.array([1, 1, 2, 3])
    batch = processor(make_image(), boxes=boxes, box_labels=labels, return_tensors="pt")
    for output in (run(tiny_lpg(), batch), certain(batch)):
        result = processor.post_process_foreground(output, batch["views"], [(40, 60)])[0]
        assert result["labels"].tolist() == [1, 2, 3] and result["foreground"].dtype == torch.float32
        for label, foreground in zip((1, 2, 3), result["foreground"].numpy()):
            inside = boxes_to_mask(boxes[labels == label], 40, 60).astype(bool)
            assert (foreground[~inside] == 0).all()
            assert (foreground[inside] > 0).all() and (foreground <= 1).all()
    assert np.isclose(foreground[5, 50], 1) and foreground.sum() == foreground[5, 50]


@every_view
def test_certain_foreground_fills_a_box_in_a_image_larger_than_the_working_size(processor):
    """The extent of the mask is the box (IoU 1)."""
    boxes = np.array([[13, 57, 211, 140]], dtype=np.float32)
    batch = processor(make_image(217, 333), boxes=boxes, return_tensors="pt")
    foreground = processor.post_process_foreground(certain(batch), batch["views"], [(217, 333)])[0]["foreground"][0]
    assert ((foreground > 0.5).numpy() == boxes_to_mask(boxes, 217, 333).astype(bool)).all()


@pytest.mark.parametrize("box", [[15.74, 18.52, 17.3, 19.7], [10.9, 10.9, 18.3, 18.3], [7.9991, 5, 8.0005, 5.0014]])
def test_certain_foreground_fills_a_box_between_the_pixels_whatever_the_context(box):
    boxes = np.array([box], dtype=np.float32)
    for context in (0.0, 0.05, 0.25):
        processor = LPGImageProcessor(view="box", view_size=32, view_context=context)
        batch = processor(make_image(30, 40), boxes=boxes, return_tensors="pt")
        foreground = processor.post_process_foreground(certain(batch), batch["views"], [(30, 40)])[0]["foreground"][0]
        assert ((foreground > 0.5).numpy() == boxes_to_mask(boxes, 30, 40).astype(bool)).all()


def test_where_boxes_of_a_class_overlap_the_larger_probability_counts():
    processor = PROCESSORS["box"]
    boxes = [[0, 0, 20, 20], [10, 0, 30, 20], [15, 0, 35, 20]]
    batch = processor(make_image(), boxes=boxes, box_labels=[1, 1, 2], return_tensors="pt")
    output = certain(batch)
    output.logits[:, 1] = torch.tensor([2.0, -2.0, 3.0])[:, None, None]
    foreground = processor.post_process_foreground(output, batch["views"], [(40, 60)])[0]["foreground"]
    high, low, other = torch.sigmoid(torch.tensor([2.0, -2.0, 3.0]))
    assert foreground.shape[0] == 2
    torch.testing.assert_close(foreground[0, 5, :30], torch.where(torch.arange(30) < 20, high, low))
    torch.testing.assert_close(foreground[1, 5, 15:35], other.expand(20))  # another class is not merged


def test_logits_become_a_softmax_of_the_second_channel():
    processor = PROCESSORS["image"]
    batch = processor(make_image(), boxes=[[0, 0, 60, 40]], return_tensors="pt")
    output = SimpleNamespace(logits=torch.tensor([0.3, 1.7])[None, :, None, None].expand(1, 2, 10, 15).bfloat16())
    foreground = processor.post_process_foreground(output, batch["views"], [(40, 60)])[0]["foreground"]
    expected = output.logits[0, :, 0, 0].float().softmax(0)[1]
    torch.testing.assert_close(foreground, expected.expand(1, 40, 60))


def disc(height, width, x, y, radius):
    rows, columns = np.mgrid[:height, :width] + 0.5
    return ((columns - x) ** 2 + (rows - y) ** 2 < radius**2).astype(np.uint8)


def perfect_output(encoded) -> SimpleNamespace:
    """What a perfect network says at stride 4: the share of object pixels, as logits around 0."""
    labels = torch.from_numpy(np.stack([e["labels"] for e in encoded]) == 1).float()[:, None]
    height, width = labels.shape[2:]
    share = F.avg_pool2d(F.pad(labels, (0, -width % 4, 0, -height % 4)), 4)
    return SimpleNamespace(logits=torch.cat([0.5 - share, share - 0.5], dim=1) * 10)


@pytest.mark.parametrize("height, width", [(217, 333), (120, 97)])
@pytest.mark.parametrize("x, y, radius", [(50, 60, 30), (60, 20, 35), (48.3, 60.7, 47)], ids=["whole", "cut", "large"])
@pytest.mark.parametrize("kind", ["image", "box"])
def test_a_perfect_network_gives_back_the_mask_at_the_images_size(kind, height, width, x, y, radius):
    processor = LPGImageProcessor(view=kind)
    truth = disc(height, width, x, y, radius)
    ys, xs = np.nonzero(truth)
    boxes = np.array([[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]], dtype=np.float32)
    views = processor.views(boxes, np.array([1]), height, width)
    encoded = [processor.encode(make_image(height, width), view, target=truth, pad_label=0) for view in views]
    output = perfect_output(encoded)
    foreground = processor.post_process_foreground(output, [views], [(height, width)])[0]["foreground"][0].numpy()
    found = foreground > 0.5
    iou = (found & (truth == 1)).sum() / (found | (truth == 1)).sum()
    assert iou > 0.95
    # A shift by one pixel costs 2 to 4 % and would pass; the centre would not.
    for axis in (0, 1):
        centre, expected = (np.nonzero(mask)[axis].mean() for mask in (found, truth))
        assert abs(centre - expected) < 0.35


def test_target_keeps_ignored_pixels_and_gets_the_pad_label_outside():
    processor = PROCESSORS["box"]
    target = np.full((40, 60), 255, dtype=np.uint8)
    target[:20] = 1
    view = processor.views(np.array([[-20, 0, 40, 40]], dtype=np.float32), np.array([1]), 40, 60)[0]
    for pad_label in (0, 255):
        labels = processor.encode(make_image(), view, target=target, pad_label=pad_label)["labels"]
        assert labels.dtype == np.int64 and set(np.unique(labels)) == {1, 255, pad_label}
        assert (labels[:, 0] == pad_label).all()


@every_view
def test_random_view_is_of_the_wanted_class_and_box_and_fits_the_network(processor):
    boxes = np.array([[10, 8, 30, 24], [0, 0, 5, 5], [40, 2, 60, 39]], dtype=np.float32)
    labels = np.array([2, 1, 2])
    augmentation = Augmentation(crop_size=32, scales=(0.5, 1.0), context=(0.1, 0.4), jitter=0.0)
    for index, expected in enumerate(processor.views(boxes, labels, 40, 60)):
        rng = np.random.default_rng(index)
        views = [processor.random_view(expected, (40, 60), rng, augmentation) for _ in range(20)]
        assert all(view.label == expected.label and (view.boxes == expected.boxes).all() for view in views)
        assert len({view.window for view in views}) > 1 and {view.flip for view in views} == {False, True}
        side = 32 if processor.view == "image" else 64
        for view in views:
            encoded = processor.encode(make_image(), view, target=np.ones((40, 60), dtype=np.uint8))
            assert encoded["pixel_values"].shape == (3, side, side) and encoded["labels"].shape == (side, side)
            assert encoded["box_mask"].any()


# The image's edges


def two_colours() -> tuple[np.ndarray, np.ndarray]:
    """An image with an object that fills a part of its box, with edges off the grid of 4; and the object, bool."""
    noise = np.random.default_rng(0).integers(-6, 7, (72, 90, 3))
    rows, columns = np.mgrid[:72, :90]
    inside = (np.abs(rows - 37) + np.abs(columns - 46) < 22) | (
        (rows > 50) & (rows < 62) & (columns > 29) & (columns < 63)
    )
    colours = np.where(inside[..., None], [60, 120, 200], [170, 140, 40]) + noise
    return colours.astype(np.uint8), inside


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / (one | other).sum()


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("view", ["image", "box"])
def test_edge_radius_gives_a_coarse_foreground_the_edges_of_the_image(view, flip):
    image, inside = two_colours()
    boxes, labels = np.array([[22, 14, 70, 63]], dtype=np.float32), np.array([1])
    found = {}
    for radius in (0, 1, 2):
        processor = LPGImageProcessor(view=view, view_size=64, edge_radius=radius)
        (view_of_box,) = processor.views(boxes, labels, *inside.shape)
        view_of_box = replace(view_of_box, flip=flip)
        target = image_to_view(inside.astype(np.float32), view_of_box)
        seen = F.avg_pool2d(
            torch.from_numpy(target.copy())[None], 4, ceil_mode=True
        )  # what a perfect network would say
        logits = torch.cat([torch.zeros_like(seen), torch.logit(seen, eps=1e-3)])
        logits = F.pad(logits, (0, 3, 0, 2), value=9.0)  # of the batch
        _, (foreground,) = processor.decode(logits[None], [view_of_box], *inside.shape, image)
        assert 0 <= foreground.min() and foreground.max() <= 1
        assert not foreground[:14].any() and not foreground[:, 70:].any()
        found[radius] = iou(foreground > 0.5, inside)
    assert found[0] < 0.98 and min(found[1], found[2]) > 0.99


@pytest.mark.parametrize("width", [48, 49, 50, 51])
def test_edges_of_a_mirrored_view_are_those_of_the_mirrored_image(width):
    """Also where 4 does not divide the width, so that the grid reaches over one side of the view."""
    image = make_image(48, width)
    mirrored = np.ascontiguousarray(image[:, ::-1])
    processor = LPGImageProcessor(edge_radius=1)
    (view,) = processor.views(np.array([[0, 0, width, 48]], dtype=np.float32), np.array([1]), 48, width)
    logits = torch.randn(2, 12, -(-width // 4), generator=torch.Generator().manual_seed(0))
    _, _, expected = processor.decode_view(logits, view, 48, width, mirrored)
    _, _, foreground = processor.decode_view(logits, replace(view, flip=True), 48, width, image)
    np.testing.assert_allclose(foreground, expected[:, ::-1], atol=1e-5)


def test_edge_radius_leaves_the_foreground_of_a_plain_image_smooth():
    """Where there is no edge to follow, the foreground is a mean of itself."""
    image = np.full((64, 64, 3), 90, dtype=np.uint8)
    processor = LPGImageProcessor(edge_radius=1)
    views = processor.views(np.array([[0, 0, 64, 64]], dtype=np.float32), np.array([1]), 64, 64)
    logits = torch.zeros(1, 2, 16, 16)
    logits[:, 1, :, 8:] = 4
    _, (foreground,) = processor.decode(logits, views, 64, 64, image)
    np.testing.assert_allclose(foreground[:, :20], 0.5, atol=1e-4)
    np.testing.assert_allclose(foreground[:, 44:], torch.sigmoid(torch.tensor(4.0)), atol=1e-4)
    assert (np.diff(foreground, axis=1) >= -1e-5).all()


@pytest.mark.parametrize("kind", ["array", "PIL", "channels first"])
def test_edge_radius_takes_the_images_as_the_call_does(kind):
    image, _ = two_colours()
    processor = LPGImageProcessor(view="box", view_size=32, edge_radius=1)
    given = {
        "array": image,
        "PIL": Image.fromarray(image),
        "channels first": torch.from_numpy(image).permute(2, 0, 1),
    }[kind]
    batch = processor([given, given], boxes=[[[22, 14, 70, 63]], [[1, 2, 40, 60]]], return_tensors="pt")
    output = pooled(batch)
    found = processor.post_process_foreground(output, batch["views"], [image.shape[:2]] * 2, images=[given, given])
    for i, result in enumerate(found):
        expected = processor.decode(output.logits[i : i + 1], batch["views"][i], *image.shape[:2], image)[1]
        assert np.array_equal(result["foreground"].numpy(), expected)


def test_edge_radius_without_the_images_or_below_zero_is_an_error():
    processor = LPGImageProcessor(view="box", view_size=32, edge_radius=1)
    batch = processor(make_image(), boxes=BOXES, return_tensors="pt")
    with pytest.raises(ValueError, match="edge_radius=1 follows the image's edges: pass the image"):
        processor.post_process_foreground(pooled(batch), batch["views"], [(40, 60)])
    with pytest.raises(
        ValueError, match=r"the images have the sizes \[\(30, 60\)\], but target_sizes are \[\(40, 60\)\]"
    ):
        processor.post_process_foreground(pooled(batch), batch["views"], [(40, 60)], images=make_image(30, 60))
    with pytest.raises(ValueError, match="edge_radius=-1 of LPGImageProcessor must be at least 0"):
        LPGImageProcessor(edge_radius=-1)


@pytest.mark.parametrize(
    "field, value",
    [
        ("edge_radius", "1"),
        ("edge_radius", True),
        ("view_size", 32.5),
        ("view_size", 10**9),
        ("view_min_size", "512"),
        ("view_context", float("nan")),
        ("align_corners", "false"),
        ("rescale_factor", 0),
        ("rescale_factor", 10**400),
        ("image_mean", [10**400, 0.5, 0.5]),
        ("image_mean", [0.5, 0.5]),
        ("image_std", [0.2, 0.2, 0]),
        ("image_std", None),
    ],
)
def test_fields_of_another_type_or_size_are_named_when_the_checkpoint_is_read(tmp_path, field, value):
    """People edit the json file by hand."""
    LPGImageProcessor(view="box", view_size=32).save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(ValueError, match=f"{field}=.* of LPGImageProcessor must be"):
        LPGImageProcessor.from_pretrained(tmp_path)
