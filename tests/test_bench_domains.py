"""benchmarks/domains.py on a tree of the same layout: the files, the order, and going on where it stopped."""

import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from benchmarks import domains
from lpg_hf import bundled


def write_coco(images, annotations) -> None:
    """Two images with one square object each, which fills its box of 20 x 20."""
    images.mkdir(parents=True)
    mask = np.zeros((60, 60), np.uint8, order="F")
    mask[20:40, 20:40] = 1
    rle = {"size": [60, 60], "counts": coco_mask.encode(mask)["counts"].decode()}
    entries = []
    for number in (1, 2):
        pixels = np.full((60, 60, 3), 80, np.uint8)
        pixels[20:40, 20:40] = (200, 60, 60)
        Image.fromarray(pixels).save(images / f"{number}.png")
        box = {"bbox": [20, 20, 20, 20], "area": 400, "iscrowd": 0, "category_id": 1, "segmentation": rle}
        entries.append({"id": number, "image_id": number} | box)
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 60, "height": 60} for n in (1, 2)],
        "annotations": entries,
        "categories": [{"id": 1, "name": "thing"}],
    }
    annotations.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "data"
    write_coco(root / "coco/images", root / "coco/instances_nonvoc_val.json")
    for name in ("fruit", "steel"):
        write_coco(root / f"domains/{name}/images", root / f"domains/{name}/instances.json")
    return root


def bench(monkeypatch, data, out, *flags):
    sets = "coco,fruit,steel"
    arguments = ["domains.py", "--data", str(data), "--out", str(out), "--sets", sets, "--generators", "box", *flags]
    monkeypatch.setattr(sys, "argv", arguments)
    domains.main()
    return json.loads((out / "domains.json").read_text(encoding="utf-8"))["cells"]


def test_filled_boxes_lose_what_their_looseness_says(monkeypatch, data, tmp_path):
    cells = bench(monkeypatch, data, tmp_path / "out", "--model", f"mine={bundled()}", "--changes", "exact,+25 %")
    box = [cell for cell in cells if cell["generator"] == "box"]
    assert [(cell["change"], cell["set"]) for cell in box[:3]] == [
        ("exact", name) for name in ("coco", "fruit", "steel")
    ]
    assert [cell["mean_box_iou"] for cell in box] == [1.0] * 3 + [round(400 / 900, 4)] * 3
    assert {cell["generator"] for cell in cells} == {"mine", "box"} and all(cell["num_boxes"] == 2 for cell in cells)
    text = (tmp_path / "out/domains.md").read_text(encoding="utf-8")
    assert "| exact | **mean of 3 sets** | |" in text and "| 44.4 |" in text
    with Image.open(tmp_path / "out/looseness.png") as figure:
        assert figure.size == (900, 420) and len(figure.getcolors(10_000)) > 5


def test_finished_cells_are_not_run_again(monkeypatch, data, tmp_path):
    flags = ("--model", f"mine={bundled()}", "--changes", "exact", "--limit", "1")
    first = bench(monkeypatch, data, tmp_path / "out", *flags)
    assert all(cell["num_images"] == 1 for cell in first)
    monkeypatch.setattr(domains, "run", lambda cell, limit: pytest.fail(f"{cell.key} ran again"))
    assert bench(monkeypatch, data, tmp_path / "out", *flags) == first


def test_cells_of_a_model_whose_files_changed_are_run_again(monkeypatch, data, tmp_path):
    folder = shutil.copytree(bundled(), tmp_path / "mine")
    flags = ("--model", f"mine={folder}", "--changes", "exact")
    first = bench(monkeypatch, data, tmp_path / "out", *flags)
    settings = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"view_context": 0.5}), encoding="utf-8")
    ran = []
    measured = domains.run
    monkeypatch.setattr(domains, "run", lambda cell, limit: ran.append(cell.generator) or measured(cell, limit))
    second = bench(monkeypatch, data, tmp_path / "out", *flags)
    assert ran == ["mine"] * 3 and [cell["generator"] for cell in second] == [cell["generator"] for cell in first]


def test_cells_of_another_limit_are_kept_but_not_shown(monkeypatch, data, tmp_path):
    flags = ("--model", f"mine={bundled()}", "--changes", "exact")
    bench(monkeypatch, data, tmp_path / "out", *flags)
    cells = bench(monkeypatch, data, tmp_path / "out", *flags, "--limit", "1")
    assert sorted(cell["num_boxes"] for cell in cells) == [1] * 6 + [2] * 6
    text = (tmp_path / "out/domains.md").read_text(encoding="utf-8")
    assert "| exact | fruit | 1 |" in text and "at most 1 of a set" in text


def test_a_model_is_bundled_or_has_a_name(tmp_path):
    assert domains.named_models(["lpg-small", "mine=folder"]) == {
        "lpg-small": str(bundled("lpg-small")),
        "mine": "folder",
    }
    with pytest.raises(ValueError, match="NAME=FOLDER"):
        domains.named_models(["runs/aux/stage1/lpg"])
