"""The photographs of `make demo`: boxes that fit, no download, and a panel of what `lpg-hf masks` wrote."""

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks.demo_photos import PHOTOS, write_data, write_panel
from lpg_hf.data.check import check_source
from lpg_hf.label_maps import write_label_map


skimage = pytest.importorskip("skimage", reason="the extra [dev] is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "photos"
    write_data(folder)
    return folder


def test_the_data_set_has_no_problem(folder):
    checked = check_source(str(folder / "boxes.json"), str(folder / "images"))
    assert checked.passed and checked.report.counts == {}
    assert checked.report.images == len(PHOTOS) == 5
    assert checked.report.objects == sum(len(objects) for objects in PHOTOS.values())


def test_images_are_those_of_scikit_image(folder):
    for name in PHOTOS:
        pixels = getattr(skimage.data, name)()
        with Image.open(folder / "images" / f"{name}.png") as image:
            assert image.mode == "RGB"
            assert np.array_equal(np.asarray(image)[..., 0], pixels if pixels.ndim == 2 else pixels[..., 0])


def test_boxes_come_back_as_they_were_drawn(folder):
    content = json.loads((folder / "boxes.json").read_text(encoding="utf-8"))
    names = {category["id"]: category["name"] for category in content["categories"]}
    photo_of = {image["id"]: image["file_name"].removesuffix(".png") for image in content["images"]}
    found = {name: [] for name in PHOTOS}
    for entry in content["annotations"]:
        x, y, width, height = entry["bbox"]
        found[photo_of[entry["image_id"]]].append((names[entry["category_id"]], (x, y, x + width, y + height)))
    assert found == PHOTOS


def test_the_panel_shows_the_masks(folder):
    for name in PHOTOS:
        with Image.open(folder / "images" / f"{name}.png") as image:
            write_label_map(folder / "masks" / "masks" / f"{name}.png", np.zeros(image.size[::-1], np.uint8))
    panels = []
    for label in (0, 2):
        height, width = skimage.data.coffee().shape[:2]
        write_label_map(folder / "masks" / "masks" / "coffee.png", np.full((height, width), label, np.uint8))
        with Image.open(write_panel(folder)) as figure:
            panels.append(np.asarray(figure))
    differs = (panels[0] != panels[1]).any(axis=2)
    assert not differs[:, : differs.shape[1] // 2].any()  # the photographs
    assert 0.9 * 400 * 267 < differs.sum() <= 400 * 267  # the coffee, at the panel's width
