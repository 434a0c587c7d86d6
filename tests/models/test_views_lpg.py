from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lpg_hf.boxes import boxes_to_mask
from lpg_hf.models import views_lpg
from lpg_hf.models.views_lpg import (
    Augmentation,
    View,
    _box_window,
    _touched_pixels,
    box_mask_of_view,
    box_views,
    image_to_view,
    image_views,
    pixel_range,
    random_box_view,
    random_image_view,
    random_window,
    visible_part,
)


HEIGHT, WIDTH = 61, 90
BOXES = {
    "inside": (20, 12, 58, 44),
    "fractional": (20.3, 12.6, 57.5, 44.2),
    "partly outside": (-15, 30, 40, 75),
    "full image": (0, 0, WIDTH, HEIGHT),
    "one pixel": (33, 21, 34, 22),
    "thin": (10, 30, 80, 32),
}


def a_view(kind: str, box, flip: bool) -> View:
    boxes, labels = np.array([box], dtype=np.float32), np.array([1])
    views = image_views(boxes, labels, HEIGHT, WIDTH) if kind == "image" else box_views(boxes, labels, 96, 0.25)
    return replace(views[0], flip=flip)


every_view = pytest.mark.parametrize(
    "view",
    [
        pytest.param(a_view(kind, box, flip), id=f"{kind} view, {name}{', flipped' if flip else ''}")
        for kind in ("image", "box")
        for name, box in BOXES.items()
        for flip in (False, True)
    ],
)


def box_augmentation(context, jitter, **noise):
    return Augmentation(crop_size=32, scales=(1.0,), context=context, jitter=jitter, **noise)


def random_views(rng, number=60):
    """Views of all kinds, among them scaled, padded and flipped ones."""
    for _ in range(number):
        x1, y1 = rng.uniform(-10, WIDTH - 2), rng.uniform(-10, HEIGHT - 2)
        box = np.array([x1, y1, x1 + rng.uniform(12, 60), y1 + rng.uniform(12, 60)], dtype=np.float32)
        yield random_box_view(box, 1, int(rng.integers(8, 120)), rng, box_augmentation((0.0, 0.6), 0.2))
        yield random_image_view(
            box[None], 1, HEIGHT, WIDTH, int(rng.integers(8, 120)), rng.choice([0.5, 0.77, 1, 1.5, 2]), rng
        )


def at_stride_4(array: np.ndarray) -> torch.Tensor:
    """(h, w) of a view -> (1, ceil(h/4), ceil(w/4)): what a perfect network would say of it."""
    maps = torch.from_numpy(np.array(array, dtype=np.float32))[None, None]
    height, width = array.shape
    return F.avg_pool2d(F.pad(maps, (0, -width % 4, 0, -height % 4), mode="replicate"), 4)[0]


def view_to_image(
    maps: torch.Tensor, view: View, height: int, width: int, align_corners: bool = False
) -> tuple[slice, slice, torch.Tensor]:
    """`bands_to_image` in one piece."""
    rows, columns = visible_part(view, height, width)
    bands = views_lpg.bands_to_image(maps, view, rows, columns, align_corners)
    return rows, columns, torch.cat([patch for _, patch in bands], dim=1)


def back_in_the_image(array: np.ndarray, view: View) -> tuple[slice, slice, np.ndarray]:
    rows, columns, patch = view_to_image(at_stride_4(array), view, HEIGHT, WIDTH)
    assert patch.shape == (1, rows.stop - rows.start, columns.stop - columns.start)
    return rows, columns, patch[0].numpy()


# There and back


@every_view
def test_a_position_comes_back_to_its_pixel(view):
    """The image holds each pixel's own x (or y), so that an error of the round trip is a shift in pixels."""
    x1, y1, x2, y2 = view.window
    scale = max((x2 - x1) / view.size[1], 1)
    margin = 1 if x2 - x1 < 8 else int(np.ceil(5 * scale)) + 1  # interpolation at the edge sees what lies beyond
    for position in np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5):
        position = position.astype(np.float32)
        rows, columns, patch = back_in_the_image(image_to_view(position, view), view)
        error = np.abs(patch - position[rows, columns])[margin:-margin, margin:-margin]
        assert error.size or x2 - x1 < 8
        assert not error.size or error.max() < 0.05 * scale


def edges(profile: np.ndarray) -> tuple[float, float]:
    """Where a profile along an axis rises above half its maximum and falls below it again, in pixels."""
    profile = np.concatenate([[0], profile / profile.max(), [0]])
    above = np.flatnonzero(profile > 0.5)
    first, last = above[0], above[-1]
    rise = first - (profile[first] - 0.5) / (profile[first] - profile[first - 1])
    fall = last + (profile[last] - 0.5) / (profile[last] - profile[last + 1])
    return rise - 0.5, fall - 0.5  # pixel i of the image is i + 1 here, and its centre at i + 0.5


@every_view
def test_a_rectangle_comes_back_with_its_edges(view):
    mask = boxes_to_mask(view.boxes, HEIGHT, WIDTH).astype(np.float32)
    rows, columns, patch = back_in_the_image(image_to_view(mask, view, 0), view)
    back = np.zeros((HEIGHT, WIDTH), dtype=np.float32)
    back[rows, columns] = patch
    scale = max((view.window[2] - view.window[0]) / view.size[1], 1)
    for axis in (0, 1):
        truth, found = edges(mask.sum(axis=axis)), edges(back.sum(axis=axis))
        if truth[1] - truth[0] >= 4 * scale:
            np.testing.assert_allclose(found, truth, atol=0.5 * scale)
        else:  # thinner than a pixel of the network, which is 4 wide: it lies within one
            assert abs(sum(found) / 2 - sum(truth) / 2) < 2 * scale


def test_one_pixel_box_fills_its_view_and_comes_back_as_one_pixel():
    mask = boxes_to_mask(np.array([BOXES["one pixel"]]), HEIGHT, WIDTH)
    for flip in (False, True):
        view = a_view("box", BOXES["one pixel"], flip)
        rows, columns, patch = back_in_the_image(image_to_view(mask, view, 0).astype(np.float32), view)
        assert ((patch > 0.5) == mask[rows, columns]).all()


def test_image_view_at_scale_1_is_the_image_itself():
    rng = np.random.default_rng(0)
    view = a_view("image", BOXES["inside"], flip=False)
    for array in (
        rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8),
        rng.random((HEIGHT, WIDTH), dtype=np.float32),
    ):
        assert (image_to_view(array, view) == array).all()
        assert (image_to_view(array, replace(view, flip=True)) == array[:, ::-1]).all()


def test_flip_mirrors_the_view_and_only_that():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    label = rng.integers(0, 2, (HEIGHT, WIDTH), dtype=np.uint8)
    for view in random_views(rng, 10):
        view, mirrored = replace(view, flip=False), replace(view, flip=True)
        for array in (image, label, label.astype(np.float32)):
            assert (image_to_view(array, mirrored, 9)[:, ::-1] == image_to_view(array, view, 9)).all()
        assert (box_mask_of_view(mirrored)[:, ::-1] == box_mask_of_view(view)).all()


@pytest.mark.parametrize("align_corners", [False, True])
def test_the_way_back_undoes_the_flip(align_corners):
    maps = torch.rand(2, 24, 24, generator=torch.Generator().manual_seed(0))
    view = a_view("box", BOXES["partly outside"], flip=False)
    straight = view_to_image(maps, view, HEIGHT, WIDTH, align_corners)
    mirrored = view_to_image(maps.flip(2), replace(view, flip=True), HEIGHT, WIDTH, align_corners)
    assert straight[:2] == mirrored[:2]
    torch.testing.assert_close(straight[2], mirrored[2])


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("window", [(-30, -20, 90, 100), (10, 5, 52, 47), (WIDTH, 5, WIDTH + 32, 37)])
def test_bands_of_a_large_window_are_the_whole_window(window, flip, monkeypatch):
    maps = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0))
    view = View(1, np.zeros((0, 4)), window, (32, 32), flip)
    rows, columns, expected = view_to_image(maps, view, HEIGHT, WIDTH)
    monkeypatch.setattr(views_lpg, "BAND_PIXELS", 200)
    bands = list(views_lpg.bands_to_image(maps, view, rows, columns))
    assert all(patch.shape[1] * patch.shape[2] <= 200 for _, patch in bands)
    assert len(bands) > 1 or expected.numel() == 0
    torch.testing.assert_close(torch.cat([patch for _, patch in bands], dim=1), expected)
    torch.testing.assert_close(view_to_image(maps, view, HEIGHT, WIDTH)[2], expected)


def test_maps_at_stride_4_are_enlarged_as_asked_and_cut_to_the_view():
    view = View(1, np.zeros((0, 4)), (0, 0, 7, 9), (9, 7))
    maps = torch.rand(2, 3, 2)
    for align_corners in (False, True):
        rows, columns, patch = view_to_image(maps, view, 9, 7, align_corners)
        full = F.interpolate(maps[None], size=(12, 8), mode="bilinear", align_corners=align_corners)[0]
        assert (rows, columns) == (slice(0, 9), slice(0, 7)) and torch.equal(patch, full[:, :9, :7])


def test_a_view_whose_size_4_does_not_divide_is_cut_before_it_is_resized():
    """Also where its padded maps happen to have as many pixels as the window."""
    view = View(1, np.zeros((0, 4)), (-8, -22, 88, 74), (94, 94))
    position = np.tile(np.arange(WIDTH, dtype=np.float32), (HEIGHT, 1))
    rows, columns, patch = back_in_the_image(image_to_view(position, view), view)
    assert np.abs(patch - position[rows, columns])[8:-8, 8:-8].max() < 0.05


def test_padding_of_a_batch_does_not_move_the_maps():
    """Also where the padded maps happen to have as many pixels as the view: a 16 x 16 view beside a 64 x 64 one."""
    view = View(1, np.zeros((0, 4)), (0, 0, 16, 16), (16, 16))
    maps = torch.rand(1, 4, 4)
    alone = view_to_image(maps, view, 16, 16)[2]
    for extra in (1, 12):
        padded = F.pad(maps[None], (0, extra, 0, extra), mode="replicate")[0]
        torch.testing.assert_close(view_to_image(padded, view, 16, 16)[2], alone)


def test_a_window_outside_the_image_is_all_fill_and_covers_no_pixel():
    image = np.ones((HEIGHT, WIDTH), dtype=np.uint8)
    for window in ((-40, 5, -8, 37), (WIDTH, 5, WIDTH + 32, 37), (5, -99, 37, -67), (5, HEIGHT + 3, 37, HEIGHT + 35)):
        view = View(1, np.zeros((0, 4)), window, (16, 16))
        assert (image_to_view(image, view, 255) == 255).all()
        assert view_to_image(torch.zeros(2, 4, 4), view, HEIGHT, WIDTH)[2].numel() == 0


# Values


def test_labels_keep_their_values_under_scale_padding_and_flip():
    rng = np.random.default_rng(0)
    target = np.full((HEIGHT, WIDTH), 1, dtype=np.uint8)
    target[:, WIDTH // 2 :] = 255
    seen = set()
    for view in random_views(rng):
        values = set(np.unique(image_to_view(target, view, 255)).tolist())
        assert values <= {1, 255}
        seen |= values
    assert seen == {1, 255}


@pytest.mark.parametrize("size", [37, 100])
def test_labels_resized_from_64_keep_their_values_and_shares(size):
    target = np.full((64, 64), 1, dtype=np.uint8)
    target[:, 32:] = 255
    resized = image_to_view(target, View(1, np.zeros((0, 4)), (0, 0, 64, 64), (size, size)), 255)
    assert set(np.unique(resized)) == {1, 255}
    assert abs((resized == 1).mean() - 0.5) <= 0.5 / size + 1e-6


def test_types_are_kept_and_padding_has_the_fill_of_each_channel():
    view = View(1, np.zeros((0, 4)), (WIDTH - 10, HEIGHT - 10, WIDTH + 10, HEIGHT + 10), (40, 40))
    image = np.full((HEIGHT, WIDTH, 3), 200, dtype=np.uint8)
    pixels = image_to_view(image, view, (1, 2, 3))
    assert pixels.shape == (40, 40, 3) and pixels.dtype == np.uint8
    assert (pixels[:18, :18] == 200).all() and (pixels[22:, 22:] == (1, 2, 3)).all()
    prob = image_to_view(np.full((HEIGHT, WIDTH), 0.5, dtype=np.float32), view)
    assert prob.shape == (40, 40) and prob.dtype == np.float32
    assert (prob[:18, :18] == 0.5).all() and (prob[22:, 22:] == 0).all()


def test_images_are_made_smaller_with_antialiasing():
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 200
    pixels = image_to_view(stripes, View(1, np.zeros((0, 4)), (0, 0, 64, 64), (8, 8)))
    assert np.abs(pixels.astype(int) - 100).max() < 10


# Boxes


@pytest.mark.parametrize("flip", [False, True])
def test_box_mask_at_scale_1_is_the_one_of_the_package(flip):
    rng = np.random.default_rng(0)
    for number in (0, 1, 4):
        corners = rng.uniform(-8, 60, (number, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(0.2, 50, (number, 2))], axis=1).astype(np.float32)
        boxes = np.concatenate([boxes, np.array([BOXES["fractional"]], dtype=np.float32)])
        mask = box_mask_of_view(View(1, boxes, (0, 0, WIDTH, HEIGHT), (HEIGHT, WIDTH), flip))
        expected = boxes_to_mask(boxes, HEIGHT, WIDTH)
        assert mask.dtype == np.float32
        assert (mask == (expected[:, ::-1] if flip else expected)).all()


def test_pixel_range_covers_what_is_touched_at_least_one_and_nothing_beyond_the_limit():
    assert pixel_range(1.0, 3.0, 10) == slice(1, 3)
    assert pixel_range(1.9, 3.1, 10) == slice(1, 4)
    assert pixel_range(0.9995, 3.0005, 10) == slice(1, 3)  # float32 arithmetic, not a touch
    assert pixel_range(4.2, 4.3, 10) == slice(4, 5)
    assert pixel_range(-5, 2, 10) == slice(0, 2) and pixel_range(8, 99, 10) == slice(8, 10)
    for start, stop in ((-5, -2), (12, 15)):
        outside = pixel_range(start, stop, 10)
        assert outside.start == outside.stop


def test_a_small_box_is_at_least_one_pixel_of_any_view():
    box = np.array([[33, 21, 34, 22]], dtype=np.float32)
    assert box_mask_of_view(View(1, box, (0, 0, WIDTH, HEIGHT), (6, 9))).sum() == 1


def test_image_views_are_one_per_class_in_order_of_appearance():
    boxes = np.arange(16, dtype=np.float32).reshape(4, 4)
    views = image_views(boxes, np.array([7, 2, 7, 3]), HEIGHT, WIDTH)
    assert [view.label for view in views] == [7, 2, 3]
    assert [view.boxes.tolist() for view in views] == [
        boxes[[0, 2]].tolist(),
        boxes[[1]].tolist(),
        boxes[[3]].tolist(),
    ]
    assert all(view.window == (0, 0, WIDTH, HEIGHT) and view.size == (HEIGHT, WIDTH) for view in views)


def test_box_views_are_one_per_box_in_the_order_given():
    boxes = np.array([(20, 12, 58, 44), (0, 0, 8, 4), (-15, 30, 40, 75)], dtype=np.float32)
    views = box_views(boxes, np.array([7, 2, 7]), 32, 0.25)
    assert [view.label for view in views] == [7, 2, 7]
    assert all((view.boxes == box).all() and view.size == (32, 32) for view, box in zip(views, boxes))


def test_window_is_a_square_around_the_box_with_the_margin_on_each_side():
    assert _box_window(np.array([20, 30, 60, 50]), 0.25) == (10, 10, 70, 70)
    assert _box_window(np.array([20, 30, 60, 50]), 0.0) == (20, 20, 60, 60)
    for box in BOXES.values():
        x1, y1, x2, y2 = _box_window(np.array(box), 0.25)
        assert x2 - x1 == y2 - y1 >= 1
        assert abs((x1 + x2) / 2 - (box[0] + box[2]) / 2) <= 0.5 and abs((y1 + y2) / 2 - (box[1] + box[3]) / 2) <= 0.5


@pytest.mark.parametrize("context", [0.0, 0.05, 0.25])
def test_window_holds_every_pixel_that_the_box_touches(context):
    rng = np.random.default_rng(0)
    corner, extent = rng.uniform(-3, 40, (2000, 2)), 10 ** rng.uniform(-2.5, 1.5, (2000, 2))
    for box in np.hstack([corner, corner + extent]):
        left, top, right, bottom = _box_window(box, context)
        for (low, high), edges in (((left, right), box[[0, 2]]), ((top, bottom), box[[1, 3]])):
            first, last = _touched_pixels(*edges)
            assert low <= first < last <= high, box
        assert right - left == bottom - top


# Random views


def touches(window, box):
    return window[0] < box[2] and box[0] < window[2] and window[1] < box[3] and box[1] < window[3]


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.75])
@pytest.mark.parametrize("size", [16, 48, 200])
def test_random_window_touches_a_box_and_reaches_over_the_right_and_the_bottom_only(size, scale):
    rng = np.random.default_rng(0)
    side = round(size / scale)
    for _ in range(100):
        x1, y1 = rng.uniform(0, WIDTH - 1), rng.uniform(0, HEIGHT - 1)
        boxes = np.array([[x1, y1, min(x1 + 9, WIDTH), min(y1 + 3, HEIGHT)], [2, 2, 3, 3]], dtype=np.float32)
        left, top, right, bottom = window = random_window(HEIGHT, WIDTH, size, scale, rng, boxes)
        assert any(touches(window, box) for box in boxes)
        assert (right - left, bottom - top) == (side, side)
        assert left >= 0 and top >= 0
        # No padding where the image is large enough; else the image lies in the top left corner.
        assert right <= WIDTH if side <= WIDTH else left == 0
        assert bottom <= HEIGHT if side <= HEIGHT else top == 0


def test_random_window_holds_a_part_of_a_box_that_is_partly_outside():
    rng = np.random.default_rng(0)
    for box in ((-30, -30, 4, 4), (WIDTH - 3, HEIGHT - 3, WIDTH + 40, HEIGHT + 40)):
        for _ in range(50):
            assert touches(random_window(HEIGHT, WIDTH, 16, 1.0, rng, np.array([box], dtype=np.float32)), box)


def test_random_window_without_boxes_reaches_every_part_of_the_image():
    rng = np.random.default_rng(0)
    windows = [random_window(HEIGHT, WIDTH, 40, 1.0, rng) for _ in range(400)]
    assert {window[0] for window in windows} == set(range(WIDTH - 40 + 1))
    assert {window[1] for window in windows} == set(range(HEIGHT - 40 + 1))


def equal(one: View, other: View) -> bool:
    return (one.boxes == other.boxes).all() and replace(one, boxes=None) == replace(other, boxes=None)


def test_random_views_are_determined_by_the_generator():
    def draw(seed):
        return list(random_views(np.random.default_rng(seed), 5))

    assert all(equal(a, b) for a, b in zip(draw(0), draw(0)))
    assert not any(equal(a, b) for a, b in zip(draw(0), draw(1)))


def test_random_image_view_has_all_boxes_of_the_class_and_the_wanted_size():
    rng = np.random.default_rng(0)
    boxes = np.array([BOXES["inside"], BOXES["thin"]], dtype=np.float32)
    views = [random_image_view(boxes, 4, HEIGHT, WIDTH, 24, 0.5, rng) for _ in range(40)]
    assert all(view.label == 4 and view.size == (24, 24) and (view.boxes == boxes).all() for view in views)
    assert all(view.window[2] - view.window[0] == 48 for view in views)
    assert {view.flip for view in views} == {False, True}
    assert all(box_mask_of_view(view).any() for view in views)


def test_random_box_view_moves_each_edge_by_the_jitter_at_most():
    rng = np.random.default_rng(0)
    box = np.array(BOXES["inside"], dtype=np.float32)
    extent = np.array([38, 32, 38, 32])
    drawn = [random_box_view(box, 4, 24, rng, box_augmentation((0.1, 0.4), 0.1)) for _ in range(200)]
    moved = np.stack([view.boxes[0] for view in drawn]) - box
    assert (np.abs(moved) <= 0.1 * extent + 1e-4).all() and (np.abs(moved).max(axis=0) > 0.08 * extent).all()
    assert {view.flip for view in drawn} == {False, True}
    for view in drawn:
        x1, y1, x2, y2 = view.boxes[0]
        side = view.window[2] - view.window[0]
        longer = max(x2 - x1, y2 - y1)
        assert 1.2 * longer - 0.51 <= side <= 1.8 * longer + 0.51


def test_a_share_of_the_boxes_fits_badly_within_the_range_together_or_side_by_side():
    rng = np.random.default_rng(0)
    box = np.array(BOXES["inside"], dtype=np.float32)
    extent = np.array([-38, -32, 38, 32])  # outwards
    augmentation = box_augmentation((0.1, 0.4), jitter=0.0, noise=0.5, noise_range=(-0.15, 0.3))
    drawn = [random_box_view(box, 4, 24, rng, augmentation) for _ in range(400)]
    moved = (np.stack([view.boxes[0] for view in drawn]) - box) / extent
    noisy = moved[np.abs(moved).max(axis=1) > 0]
    assert 160 < len(noisy) < 240 and noisy.min() >= -0.151 and noisy.max() <= 0.301
    assert noisy.min() < -0.1 and noisy.max() > 0.25
    assert (noisy.min(axis=1) > 0.15).sum() > 5  # loose on all sides
    assert ((noisy.max(axis=1) > 0.05) & (noisy.min(axis=1) < -0.02)).sum() > 20  # loose on one, tight on another


def test_random_box_view_without_jitter_keeps_the_box_and_one_that_would_vanish_too():
    rng = np.random.default_rng(0)
    box = np.array(BOXES["inside"], dtype=np.float32)
    assert (random_box_view(box, 4, 24, rng, box_augmentation((0.25, 0.25), 0.0)).boxes[0] == box).all()
    for _ in range(50):
        x1, y1, x2, y2 = random_box_view(box, 4, 24, rng, box_augmentation((0.25, 0.25), 3.0)).boxes[0]
        assert x1 < x2 and y1 < y2
