"""Windows of run lengths are what pycocotools decodes, whatever the size of the image around them."""

import tracemalloc

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from lpg_hf._rle import Rle, decode_window, encode_mask, encode_window, mask_window
from lpg_hf.data._formats import coco_forms, yolo
from lpg_hf.data._formats.coco_forms import rle_to_polygons
from lpg_hf.data._formats.labelme import labelme_content
from lpg_hf.data._formats.rle import class_in_box_to_rle, rescaled_rle
from lpg_hf.data._formats.yolo import yolo_text
from lpg_hf.data.records import BoxObject, Geometry, Record
from lpg_hf.masks._geo import _polygons
from lpg_hf.masks._outputs import _crop


SHARES = (0, 0.1, 0.5, 0.9, 1)


def random_mask(rng: np.random.Generator, share: float) -> np.ndarray:
    """(H, W) bool, up to 14 x 14: often at the border of the image."""
    return rng.random(rng.integers(1, 15, 2)) < share


def random_window(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[slice, slice]:
    rows, columns = (np.sort(rng.integers(0, size + 1, 2)).tolist() for size in shape)
    return slice(*rows), slice(*columns)


@pytest.mark.parametrize("size", [(5, 3), (9, 7), (31, 40), (10, 26), (3, 64)])
def test_a_mask_is_rescaled_as_its_label_map_is(size):
    mask = np.random.default_rng(0).random((20, 26)) < 0.5
    scaled = rescaled_rle(encode_mask(mask), Geometry(size, size[0] / 20, size[1] / 26))
    assert scaled is not None
    expected = Image.fromarray(mask.astype(np.uint8)).resize(size[::-1], Image.Resampling.NEAREST)
    assert np.array_equal(coco_mask.decode(scaled), np.asarray(expected))


@pytest.mark.parametrize("seed", range(200))
def test_a_window_is_that_of_the_decoded_mask(seed):
    rng = np.random.default_rng(seed)
    mask = random_mask(rng, SHARES[seed % 5])
    rle, window = encode_mask(mask), random_window(rng, mask.shape)
    assert np.array_equal(decode_window(rle, window), mask[window])
    assert np.array_equal(decode_window({**rle, "counts": rle["counts"].encode() + b"\0"}, window), mask[window])
    rows, columns = extent = mask_window(rle)
    assert np.array_equal(decode_window(rle, extent), mask[extent]) and mask[extent].sum() == mask.sum()
    if mask.any():
        assert [rows.start, rows.stop - 1] == np.flatnonzero(mask.any(axis=1))[[0, -1]].tolist()
        assert [columns.start, columns.stop - 1] == np.flatnonzero(mask.any(axis=0))[[0, -1]].tolist()


def test_long_runs_are_read_as_pycocotools_writes_them():
    rng = np.random.default_rng(0)
    mask = np.zeros((3000, 2000), dtype=np.uint8, order="F")
    for x, y, size in rng.integers(1, 1500, (40, 3)).tolist():
        mask[y : y + size, x : x + size] ^= 1
    window = slice(700, 2100), slice(300, 1900)
    assert np.array_equal(decode_window(encode_mask(mask), window), mask[window])


@pytest.mark.parametrize("seed", range(20))
def test_a_window_is_encoded_as_the_whole_mask(seed):
    rng = np.random.default_rng(seed)
    full = np.zeros(rng.integers(1, 12, 2), dtype=np.uint8, order="F")
    window = random_window(rng, full.shape)
    mask = rng.random(full[window].shape) < SHARES[seed % 5]
    full[window] = mask
    rle = encode_window(mask, window, full.shape)
    assert rle == {"size": list(full.shape), "counts": coco_mask.encode(full)["counts"].decode()}


@pytest.mark.parametrize("simplify", [0.0, 2.0])
def test_outlines_traced_in_a_window_are_those_of_the_whole_image(monkeypatch, simplify):
    rng = np.random.default_rng(1)
    masks = [mask for mask in (random_mask(rng, SHARES[1 + i % 4]) for i in range(100)) if mask.any()]

    def outlines() -> list:
        made = []
        for mask in masks:
            item = BoxObject((0, 0, mask.shape[1], mask.shape[0]), 0, 1, rle=encode_mask(mask))
            text = yolo_text(Record(None, "a.png", "1", mask.shape, [item]), masks=True, simplify=simplify)
            made.append((rle_to_polygons(encode_mask(mask), simplify), text))
        return made

    in_windows = outlines()
    for module in (yolo, coco_forms):
        monkeypatch.setattr(module, "mask_window", lambda rle: tuple(slice(0, size) for size in rle["size"]))
    assert in_windows == outlines()


SIZE = 20_000, 20_000


def big_mask() -> Rle:
    return encode_window(np.tri(20, dtype=bool), (slice(500, 520), slice(19_980, 20_000)), SIZE)


def big_record() -> Record:
    return Record(None, "a.png", "1", SIZE, [BoxObject((19_980, 500, 20_000, 520), 0, 210, rle=big_mask())])


@pytest.mark.parametrize(
    "write",
    [
        lambda: rle_to_polygons(big_mask()),
        lambda: yolo_text(big_record(), masks=True),
        lambda: labelme_content(big_record(), ["a"], "a.png"),
        lambda: _polygons(big_mask(), (1, 0, 0, 0, 1, 0), 0.0),
        lambda: _crop(np.broadcast_to(np.uint8(0), (*SIZE, 3)), big_record().objects[0]),
    ],
    ids=["coco-polygons", "yolo", "labelme", "geojson", "crops"],
)
def test_an_object_costs_its_window_and_not_its_image(write):
    tracemalloc.start()
    try:
        assert write()
        assert tracemalloc.get_traced_memory()[1] < 2_000_000  # the image has 400 million pixels
    finally:
        tracemalloc.stop()


def test_the_pixels_of_a_class_in_a_box_cost_the_box_and_not_the_image():
    labels = np.broadcast_to(np.uint8(3), SIZE)
    tracemalloc.start()
    try:
        assert class_in_box_to_rle(labels, 2, (19_980, 500, 20_000, 520)) is None
        rle = class_in_box_to_rle(labels, 3, (19_980.4, 500, 20_000, 519.6))
        assert tracemalloc.get_traced_memory()[1] < 2_000_000  # the image has 400 million pixels
    finally:
        tracemalloc.stop()
    window = slice(500, 520), slice(19_980, 20_000)
    assert rle == encode_window(np.ones((20, 20), dtype=bool), window, SIZE) and mask_window(rle) == window
