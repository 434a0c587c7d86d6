"""What `lpg-hf masks` writes, read by the programs that come next: trainers, pycocotools, LabelMe."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import test_labelme
import test_ultralytics
from packages import run_consumer
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from test_yolo_rules import trainer_dataset


sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from tool_trees import OTHER_TREES, TOOL_TREES  # noqa: E402

from lpg_hf.data.options import SOURCE_OPTIONS  # noqa: E402
from lpg_hf.data.report import Report  # noqa: E402
from lpg_hf.data.sources import open_source  # noqa: E402
from lpg_hf.generators import load_generator  # noqa: E402
from lpg_hf.masks.writer import MaskSettings, write_masks  # noqa: E402


EVERYTHING = ("png", "coco", "coco-polygons", "coco-results", "yolo", "labelme", "instances-png", "crops")


def write(tmp_path, name, **settings):
    """OUT with the boxes of an export as masks, in every form."""
    {**OTHER_TREES, **TOOL_TREES}[name][1](tmp_path / "in")
    report = Report()
    source = open_source(tmp_path / "in", report=report)
    write_masks(source, load_generator("box"), tmp_path / "out", MaskSettings(EVERYTHING, **settings), report=report)
    return tmp_path / "out"


@pytest.mark.parametrize("how", ["link", "copy"])
@pytest.mark.parametrize("name", ["Roboflow COCO", "Roboflow YOLO", "CreateML"])
def test_yolo_trains_as_it_lies_there_with_the_splits_of_the_input(tmp_path, monkeypatch, name, how):
    out = write(tmp_path, name, with_images=how)
    monkeypatch.chdir(tmp_path)
    found = {split: trainer_dataset(out / "data.yaml", split) for split in ("train", "val")}
    assert {split: [Path(n).stem for n in images] for split, images in found.items()} == {
        "train": ["train"],
        "val": ["valid"],
    }
    for rows in (rows for images in found.values() for rows in images.values()):
        assert len(rows) == 1 and sorted(set(np.round(rows[0][1:], 3))) == [0.167, 0.2, 0.5, 0.6]


def test_results_polygons_and_run_lengths_are_the_same_masks_to_pycocotools(tmp_path):
    out = write(tmp_path, "COCO")
    coco, polygons = COCO(out / "instances.json"), COCO(out / "instances_polygons.json")
    results = coco.loadRes(str(out / "results.json"))
    expected = np.zeros((40, 60), dtype=np.uint8)
    expected[8:24, 10:30] = 1
    for api in (coco, polygons, results):
        (annotation,) = api.loadAnns(api.getAnnIds())
        assert np.array_equal(api.annToMask(annotation), expected)
    assert isinstance(polygons.anns[1]["segmentation"], list) and results.anns[1]["score"] == 1
    evaluation = COCOeval(coco, results, "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)


@pytest.mark.consumers
@pytest.mark.parametrize("name", ["Roboflow COCO", "Roboflow YOLO", "CreateML"])
def test_ultralytics_finds_the_objects_and_splits_that_went_in(tmp_path, name):
    out = write(tmp_path, name)
    found = run_consumer(test_ultralytics.LOAD, "ultralytics", tmp_path, str(out / "data.yaml"))
    assert {split: {Path(n).stem: rows[0] for n, rows in images.items()} for split, images in found.items()} == {
        "train": {"train": 1},
        "val": {"valid": 1},
    }


@pytest.mark.consumers
def test_labelme_opens_what_masks_wrote(tmp_path):
    out = write(tmp_path, "COCO")
    path, (shape,) = run_consumer(test_labelme.LOAD, "labelme", tmp_path, str(out / "labelme" / "a.json"))
    assert path == "a.jpg" and shape[:2] == ["red", "polygon"]


def test_labelme_files_are_read_again_with_their_masks(tmp_path):
    out = write(tmp_path, "Roboflow COCO")
    report = Report()
    source = open_source(out / "labelme", options=replace(SOURCE_OPTIONS, masks=True), report=report)
    records = [source.record(index, report) for index in range(len(source))]
    assert source.format == "labelme" and [record.file_name for record in records] == [
        f"{split}/{split}.jpg" for split in ("test", "train", "valid")
    ]
    assert all(coco_mask.area(record.objects[0].rle) == 320 for record in records)


def test_without_images_no_image_is_placed(tmp_path):
    out = write(tmp_path, "COCO", with_images="none")
    assert (
        not list(out.rglob("*.jpg")) and json.loads((out / "labelme" / "a.json").read_text())["imagePath"] == "a.jpg"
    )


def test_overwrite_takes_the_images_away_again(tmp_path):
    out = write(tmp_path, "COCO")
    assert (out / "images" / "a.jpg").is_file() and (out / "labelme" / "a.jpg").is_file()
    report = Report()
    source = open_source(tmp_path / "in", report=report)
    settings = MaskSettings(("png",))
    write_masks(source, load_generator("box"), out, settings, report=report, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == [".parts", "classes.txt", "masks", "report.json"]
    assert (tmp_path / "in" / "train2017" / "a.jpg").is_file()
