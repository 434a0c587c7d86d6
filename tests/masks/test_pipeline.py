import io
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from transformers import pipeline

from lpg_hf import BoxToMaskPipeline, LPGImageProcessor
from lpg_hf.masks.pipeline import _as_pixels
from tests.conftest import tiny_lpg


BOXES = [[3, 4, 30, 40], [20, 10, 55.5, 33]]


@pytest.fixture(scope="module")
def pipe(lpg_folder) -> BoxToMaskPipeline:
    return pipeline("box-mask-generation", model=str(lpg_folder))


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (45, 61, 3), dtype=np.uint8)


def equal(one: dict, other: dict) -> bool:
    return (
        all(np.array_equal(a, b) for a, b in zip(one["masks"], other["masks"], strict=True))
        and one["scores"] == pytest.approx(other["scores"])
        and one["labels"] == other["labels"]
        and np.array_equal(one["label_map"], other["label_map"])
    )


def test_every_container_of_boxes_gives_the_same_masks(pipe, pixels):
    whole = [[3, 4, 30, 40], [20, 10, 55, 33], [0, 0, 60, 44]]
    results = [
        pipe(pixels, boxes=boxes)
        for boxes in (
            whole,
            tuple(tuple(box) for box in whole),
            np.array(whole),
            np.array(whole, dtype=np.float32),
            torch.tensor(whole),
            torch.tensor(whole, dtype=torch.float16),
        )
    ]
    assert len(results[0]["masks"]) == 3 and all(equal(results[0], other) for other in results[1:])
    one = pipe(pixels, boxes=whole[:1])
    assert len(one["masks"]) == 1 and np.array_equal(one["masks"][0], results[0]["masks"][0])


@pytest.mark.parametrize("empty", [[], (), np.empty((0, 4)), torch.empty(0, 4)])
def test_zero_boxes_give_empty_lists_and_a_background_map(pipe, pixels, empty):
    result = pipe(pixels, boxes=empty)
    assert (result["masks"], result["scores"], result["fill_rates"], result["labels"]) == ([], [], [], [])
    assert result["label_map"].shape == (45, 61) and not result["label_map"].any()


def test_images_with_different_numbers_of_boxes_share_a_call(pipe, pixels):
    other = np.ascontiguousarray(pixels[::-1, :50])
    together = pipe([pixels, other, pixels], boxes=[BOXES, [], BOXES[:1]], labels=[[1, 2], [], [7]])
    alone = [
        pipe(pixels, boxes=BOXES, labels=[1, 2]),
        pipe(other, boxes=[]),
        pipe(pixels, boxes=BOXES[:1], labels=[7]),
    ]
    assert all(equal(a, b) for a, b in zip(together, alone, strict=True))
    assert set(np.unique(together[2]["label_map"])) <= {0, 7}


@pytest.mark.parametrize("view", ["image", "box"])
@pytest.mark.parametrize("per", ["class", "instance"])
def test_nothing_outside_the_box_is_set(view: str, per: str, pixels):
    pipe = BoxToMaskPipeline(model=tiny_lpg(), image_processor=LPGImageProcessor(view=view, view_size=32))
    result = pipe(pixels, boxes=BOXES, labels=[1, 1], per=per)
    for mask, (x1, y1, x2, y2) in zip(result["masks"], BOXES):
        assert mask.dtype == bool and mask.shape == (45, 61) and mask.any()
        mask[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))] = False
        assert not mask.any()


def test_box_formats_mean_the_same_box(pipe, pixels):
    expected = pipe(pixels, boxes=[[6, 9, 36, 36]])
    for box_format, box in {
        "xywh": [6, 9, 30, 27],
        "cxcywh": [21, 22.5, 30, 27],
        "yolo": [21 / 61, 22.5 / 45, 30 / 61, 27 / 45],
        "voc": [7, 10, 36, 36],
    }.items():
        assert equal(pipe(pixels, boxes=[box], box_format=box_format), expected), box_format


def test_images_of_every_kind_are_read_alike(pipe, pixels, tmp_path):
    path = tmp_path / "é 1.png"
    Image.fromarray(pixels).save(path)
    expected = pipe(pixels, boxes=BOXES)
    for image in (path, str(path), Image.open(path), Image.fromarray(pixels)):
        assert equal(pipe(image, boxes=BOXES), expected)
    grey = pixels[..., 0]
    assert equal(pipe(grey, boxes=BOXES), pipe(np.repeat(grey[..., None], 3, axis=2), boxes=BOXES))


def test_boxes_lie_in_the_upright_image(pipe, pixels, tmp_path):
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(pixels)))  # orientation 6 turns it back
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "a.png", exif=exif)
    assert equal(pipe(tmp_path / "a.png", boxes=BOXES), pipe(pixels, boxes=BOXES))


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The address of a server of the files in `tmp_path`."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path)) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_a_image_of_a_url_is_that_of_its_file(pipe, pixels, server, tmp_path):
    ramp = np.linspace(0, 65520, 45 * 61).reshape(45, 61).astype(np.uint16)
    half = np.where(np.arange(61) < 30, 255, 0).astype(np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(ramp).save(tmp_path / "16 bit.png")
    Image.fromarray(np.dstack([pixels, np.tile(half, (45, 1))])).save(tmp_path / "transparent.png")
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=turned)
    for path in tmp_path.glob("*.png"):
        read = _as_pixels(f"{server}/{path.name}")
        assert np.array_equal(read, _as_pixels(path)), path.name
        assert equal(pipe(f"{server}/{path.name}", boxes=BOXES), pipe(path, boxes=BOXES))
    assert 120 < _as_pixels(f"{server}/16 bit.png").mean() < 135
    assert (_as_pixels(f"{server}/transparent.png")[:, 30:] == 255).all()


def test_a_url_that_gives_no_image_is_named(server, tmp_path):
    with pytest.raises(OSError, match=f"cannot fetch the image {server}/absent.png: 404"):
        _as_pixels(f"{server}/absent.png")
    (tmp_path / "page.png").write_text("<html>")
    with pytest.raises(OSError, match=f"cannot open the image {server}/page.png: it is no image"):
        _as_pixels(f"{server}/page.png")
    with pytest.raises(OSError, match="cannot fetch the image http://127.0.0.1:1/a.png"):
        _as_pixels("http://127.0.0.1:1/a.png")


def test_a_too_large_image_is_refused_by_name_unless_max_pixels_says_so(pipe, server, tmp_path):
    path = tmp_path / "big.png"
    Image.new("L", (20000, 10000)).save(path)
    for image in (path, f"{server}/big.png"):
        with pytest.raises(OSError, match=rf"{image} has 20000 x 10000 = 200000000 pixels.* raise max_pixels"):
            pipe(image, boxes=BOXES)
    Image.new("L", (61, 45)).save(path)
    for image in (path, f"{server}/big.png"):
        with pytest.raises(OSError, match="more than max_pixels=2744"):
            pipe(image, boxes=BOXES, max_pixels=61 * 45 - 1)
        assert pipe(image, boxes=BOXES, max_pixels=61 * 45)["label_map"].shape == (45, 61)
    with pytest.raises(ValueError, match="max_pixels=0 lets no image in"):
        pipe(path, boxes=BOXES, max_pixels=0)


def test_dicts_and_generators_stream(pipe, pixels):
    item = {"image": pixels, "boxes": BOXES, "labels": [1, 2]}
    expected = pipe(pixels, boxes=BOXES, labels=[1, 2])
    assert equal(pipe(item), expected) and equal(pipe([item, item])[1], expected)
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield item

    results = pipe(endless(), batch_size=2)
    assert equal(next(results), expected) and len(taken) <= 3


def test_run_lengths_are_the_masks(pipe, pixels):
    plain, rle = pipe(pixels, boxes=BOXES), pipe(pixels, boxes=BOXES, output_rle=True)
    for mask, code in zip(plain["masks"], rle["masks"], strict=True):
        assert np.array_equal(coco_mask.decode(code).astype(bool), mask)


def test_threshold_and_overlap_rule_are_read(pipe, pixels):
    sizes = [sum(mask.sum() for mask in pipe(pixels, boxes=BOXES, threshold=t)["masks"]) for t in (0.1, 0.5, 0.9)]
    assert sizes[0] > sizes[1] > sizes[2]
    both = {"boxes": BOXES, "labels": [2, 1], "threshold": 0.01}  # every pixel of the overlap is claimed twice
    maps = {rule: pipe(pixels, **both, overlap_rule=rule)["label_map"] for rule in ("first", "prob")}
    assert (maps["first"][11:30, 21:29] == 2).all() and (maps["prob"][11:30, 21:29] == 1).any()


def test_the_batch_size_of_a_call_is_that_of_the_forward_passes(pipe, pixels):
    for batch_size in (1, 3):
        pipe([pixels] * 4, boxes=[BOXES] * 4, batch_size=batch_size)
        assert pipe.generator.batch_size == 2 * batch_size


def test_segmenter_of_a_later_stage(segmenter_folder, pixels):
    model = tiny_lpg(use_class_prob=True)
    pipe = BoxToMaskPipeline(model=model, image_processor=LPGImageProcessor(), segmenter=str(segmenter_folder))
    found = pipe(pixels, boxes=BOXES, labels=[1, 3])
    assert len(found["masks"]) == 2
    of_path = BoxToMaskPipeline(model=model, image_processor=LPGImageProcessor(), segmenter=segmenter_folder)
    assert equal(of_path(pixels, boxes=BOXES, labels=[1, 3]), found)
    probs = np.zeros((4, 5, 6), dtype=np.float32)
    given = pipe(pixels, boxes=BOXES, labels=[1, 3], class_probs=probs)
    assert not equal(found, given)
    with pytest.raises(ValueError, match="label 9 is none of the segmenter's 4 labels"):
        pipe(pixels, boxes=BOXES, labels=[1, 9])
    with pytest.raises(ValueError, match=r"class_probs have shape \(4, 5, 6\); labels up to 9"):
        pipe(pixels, boxes=BOXES, labels=[1, 9], class_probs=probs)
    with pytest.raises(ValueError, match="class_probs lie in 0.0..255.0; pass the softmax"):
        pipe(
            pixels,
            boxes=BOXES,
            labels=[1, 3],
            class_probs=np.full((4, 5, 6), 255, np.uint8) * (probs == 0)[0] * (np.arange(4) > 0)[:, None, None],
        )
    with pytest.raises(ValueError, match="threshold=2 is a probability"):
        pipe(pixels, boxes=BOXES, labels=[1, 3], class_probs=probs, threshold=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"boxes": [[5, 5, 5, 9]]},
            r"box 0 is empty or outside the image of 61 x 45: \[5.0, 5.0, 5.0, 9.0\] as xyxy",
        ),
        ({"boxes": [[1, 1, 9, 9], [30, 20, 10, 8]]}, "box 1 is empty"),
        ({"boxes": [[100, 100, 120, 130]]}, "outside the image of 61 x 45"),
        ({"boxes": [[1, 1, float("nan"), 9]]}, "box 0 holds a number that is not finite"),
        ({"boxes": [[1, 2, 3]]}, r"\(N, 4\) numbers, got shape \(1, 3\)"),
        ({"boxes": BOXES, "labels": [1]}, "one integer from 1 to 65534 for each of the 2 boxes"),
        ({"boxes": BOXES, "labels": [0, 1]}, "one integer from 1 to 65534"),
        ({"boxes": BOXES, "labels": [70000, 1]}, "one integer from 1 to 65534"),
        ({"boxes": BOXES, "labels": [1.5, 1]}, "one integer from 1 to 65534"),
        ({"boxes": BOXES, "per": "image"}, "per='image' is unknown. Choose one of class, instance"),
        ({"boxes": BOXES, "overlap_rule": "top"}, "overlap_rule='top' is unknown"),
        ({"boxes": BOXES, "box_format": "ltrb"}, "unknown box format 'ltrb'"),
        ({"labels": [1, 2]}, "labels and class_probs belong to boxes"),
        ({}, "the pipeline needs boxes for every image"),
    ],
)
def test_bad_input_is_named(pipe, pixels, arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        pipe(pixels, **arguments)


def test_the_bad_one_of_several_images_is_named(pipe, pixels, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    empty = [BOXES[0], [5, 5, 5, 9]]
    with pytest.raises(ValueError, match="^image 1: box 1 is empty or outside the image of 61 x 45"):
        pipe([str(path), pixels, pixels], boxes=[BOXES, empty, BOXES])
    with pytest.raises(ValueError, match=rf"^image 2 \({path}\): box 1 is empty"):
        pipe([pixels, pixels, str(path)], boxes=[BOXES, BOXES, empty])
    with pytest.raises(ValueError, match=rf"^image 1 \({path}\): labels must be one integer"):
        pipe([pixels, path], boxes=[BOXES, BOXES], labels=[[1, 1], [1]])
    with pytest.raises(ValueError, match=rf"^image 0 \({path}\): the pipeline needs boxes for every image"):
        pipe([str(path), pixels])
    cut = Image.open(io.BytesIO(path.read_bytes()[:-200]))
    with pytest.raises(OSError, match="^image 1: cannot decode the image"):
        pipe([pixels, cut], boxes=[BOXES, BOXES])
    stream = ({"image": pixels, "boxes": boxes} for boxes in (BOXES, BOXES, empty))
    results = pipe(stream, batch_size=1)
    next(results), next(results)
    with pytest.raises(ValueError, match="^image 2: box 1 is empty"):
        next(results)
    with pytest.raises(ValueError, match="^box 1 is empty"):
        pipe(pixels, boxes=empty)


def test_bad_images_are_named(pipe, pixels, tmp_path):
    with pytest.raises(OSError, match="absent.png"):
        pipe(tmp_path / "absent.png", boxes=BOXES)
    with pytest.raises(ValueError, match=r"float64 array of shape \(45, 61, 3\)"):
        pipe(pixels / 255, boxes=BOXES)
    with pytest.raises(ValueError, match="the numbers differ: {'image': 2, 'boxes': 1}"):
        pipe([pixels, pixels], boxes=[BOXES])
    with pytest.raises(ValueError, match="unknown input 'bbox'"):
        pipe({"image": pixels, "boxes": BOXES, "bbox": BOXES})
