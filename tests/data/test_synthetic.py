"""The demo dataset is deterministic, class-disjoint, tightly boxed, and hard for filled boxes."""

import hashlib
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import typer
from PIL import Image
from pycocotools import mask as coco_mask
from typer.testing import CliRunner

from lpg_hf.data import synthetic
from lpg_hf.data.synthetic import AUX_CLASSES, TARGET_CLASSES, _write_synthetic_dataset


COUNTS = {"num_aux": 12, "num_target": 8, "num_eval": 4}


def digests(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write_synthetic_dataset(tmp_path_factory.mktemp("synthetic") / "data", **COUNTS)


def test_same_seed_gives_byte_identical_files(root: Path, tmp_path: Path):
    again = _write_synthetic_dataset(tmp_path / "data", **COUNTS)
    assert digests(again) == digests(root)
    other = _write_synthetic_dataset(tmp_path / "other", **COUNTS, seed=1)
    assert digests(other)["aux/images/000001.png"] != digests(root)["aux/images/000001.png"]


def test_a_larger_dataset_begins_with_the_smaller_one(root: Path, tmp_path: Path):
    larger = _write_synthetic_dataset(tmp_path / "data", num_aux=13, num_target=9, num_eval=5)
    for name in ("aux/images/000012.png", "target/JPEGImages/train_000008.jpg", "target/JPEGImages/val_000004.jpg"):
        assert (larger / name).read_bytes() == (root / name).read_bytes()


def test_auxiliary_and_target_classes_share_no_name_shape_or_texture():
    for field in ("name", "shape", "texture", "hues"):
        auxiliary = {getattr(kind, field) for kind in AUX_CLASSES}
        target = {getattr(kind, field) for kind in TARGET_CLASSES}
        assert len(auxiliary) == len(AUX_CLASSES) and len(target) == len(TARGET_CLASSES)
        assert not auxiliary & target


def test_coco_boxes_are_tight_around_masks_that_fill_them_badly(root: Path):
    content = json.loads((root / "aux/annotations.json").read_text(encoding="utf-8"))
    assert len(content["images"]) == 12 and [c["name"] for c in content["categories"]][0] == "ring"
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    fills = []
    for annotation in content["annotations"]:
        mask = coco_mask.decode(annotation["segmentation"]).astype(bool)
        assert mask.shape == sizes[annotation["image_id"]] and annotation["area"] == mask.sum()
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x, y, width, height = annotation["bbox"]
        assert (x, y, x + width, y + height) == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        fills.append(mask.sum() / (width * height))
    assert 0.3 < np.mean(fills) < 0.55
    for image in content["images"]:
        assert Image.open(root / "aux/images" / image["file_name"]).size == (image["width"], image["height"])


def test_voc_masks_and_boxes_agree(root: Path):
    target = root / "target"
    names = (target / "classes.txt").read_text(encoding="utf-8").split()
    assert names == [kind.name for kind in TARGET_CLASSES]
    splits = {s: (target / f"ImageSets/Segmentation/{s}.txt").read_text().split() for s in ("train", "val")}
    assert len(splits["train"]) == 8 and len(splits["val"]) == 4 and not set(splits["train"]) & set(splits["val"])
    for image_id in splits["train"] + splits["val"]:
        image = Image.open(target / f"JPEGImages/{image_id}.jpg")
        png = Image.open(target / f"SegmentationClass/{image_id}.png")
        labels = np.asarray(png)
        assert png.mode == "P" and png.size == image.size and labels.max() <= len(names)
        inside = np.zeros(labels.shape, np.uint8)
        for entry in ElementTree.parse(target / f"Annotations/{image_id}.xml").iter("object"):
            x1, y1, x2, y2 = (int(entry.find(f"bndbox/{tag}").text) for tag in ("xmin", "ymin", "xmax", "ymax"))
            assert 1 <= x1 <= x2 <= image.width and 1 <= y1 <= y2 <= image.height
            label = names.index(entry.find("name").text) + 1
            part = labels[y1 - 1 : y2, x1 - 1 : x2] == label
            assert all(edge.any() for edge in (part[0], part[-1], part[:, 0], part[:, -1]))
            inside[y1 - 1 : y2, x1 - 1 : x2] = 1
        assert not labels[inside == 0].any()


def test_every_object_shows_at_least_half_of_itself():
    for index in range(20):
        _, objects = synthetic._scene(0, 1, index, TARGET_CLASSES, (160, 160))
        assert 1 <= len(objects) <= 3
        total = sum(mask.astype(int) for _, mask in objects)
        assert total.max() <= 1 and all(mask.sum() >= synthetic.MIN_VISIBLE_PIXELS / 2 for _, mask in objects)


def test_finished_folder_is_kept_and_other_settings_replace_it(tmp_path: Path):
    counts = {"num_aux": 1, "num_target": 1, "num_eval": 1}
    root = _write_synthetic_dataset(tmp_path / "data", **counts)
    stamp = (root / "synthetic.json").stat().st_mtime_ns
    _write_synthetic_dataset(root, **counts)
    assert (root / "synthetic.json").stat().st_mtime_ns == stamp
    _write_synthetic_dataset(root, **counts, seed=5)
    assert json.loads((root / "synthetic.json").read_text())["seed"] == 5
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_interrupted_writing_leaves_no_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "_write_voc", fail)
    with pytest.raises(KeyboardInterrupt):
        _write_synthetic_dataset(tmp_path / "data", num_aux=1, num_target=1, num_eval=1)
    assert not list(tmp_path.iterdir())


def test_foreign_folder_is_left_alone(tmp_path: Path):
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(FileExistsError, match="left alone"):
        _write_synthetic_dataset(tmp_path, **COUNTS)
    result = CliRunner().invoke(_app(), [str(tmp_path)])
    assert result.exit_code == 1 and "left alone" in result.output
    assert (tmp_path / "precious.txt").read_text() == "x"


@pytest.mark.parametrize("wrong", [{"num_aux": 0}, {"num_eval": -1}, {"size": (32, 160)}])
def test_impossible_settings_are_refused(tmp_path: Path, wrong: dict):
    with pytest.raises(ValueError, match="Pass"):
        _write_synthetic_dataset(tmp_path / "data", **{**COUNTS, **wrong})


def test_command_writes_the_dataset(tmp_path: Path):
    arguments = [str(tmp_path / "data"), "--num-aux", "2", "--num-target", "1", "--num-eval", "1", "--height", "96"]
    result = CliRunner().invoke(_app(), arguments)
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "data/aux/images").iterdir())) == 2


def _app() -> typer.Typer:
    app = typer.Typer()
    app.command()(synthetic.main)
    return app
