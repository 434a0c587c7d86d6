"""Panels of the best, the median and the worst boxes, on procedural images."""

import json
import re
import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from benchmarks.figures import MeasuredBox, choose, main


SIDE = 60
SHARES = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4]  # of the box of image i that is object


@pytest.fixture
def tree(tmp_path):
    """One box of 40 x 40 per image, filled from the left by a red object; the box's own IoU is its share."""
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for number, share in enumerate(SHARES):
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[10:50, 10 : 10 + round(40 * share)] = 1
        pixels = np.where(mask[..., None], (200, 40, 30), (30, 120, 60)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
        encoded = coco_mask.encode(np.asfortranarray(mask))
        images.append({"id": number, "file_name": f"{number}.png", "height": SIDE, "width": SIDE})
        annotations.append(
            {
                "id": 100 + number,
                "image_id": number,
                "category_id": 3,
                "bbox": [10, 10, 40, 40],
                "iscrowd": 0,
                "segmentation": {"size": [SIDE, SIDE], "counts": encoded["counts"].decode()},
            }
        )
    content = {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": "thing"}]}
    (tmp_path / "boxes.json").write_text(json.dumps(content), encoding="utf-8")
    return tmp_path


def run(monkeypatch, tree, *arguments) -> dict:
    fixed = [tree / "boxes.json", "--images", tree / "images", "--masks", tree / "boxes.json", "--out", tree / "out"]
    words = [str(word) for word in (*fixed, "--device", "cpu", *arguments)]
    monkeypatch.setattr(sys, "argv", ["images.py", *words])
    main()
    return json.loads((tree / "out" / "images.json").read_text(encoding="utf-8"))


def test_rows_are_the_best_the_median_and_the_worst_boxes(tree, monkeypatch):
    found = run(monkeypatch, tree, "--generators", "box", "--num_each", "1")
    assert [(row["kind"], row["file_name"], row["iou"]) for row in found["rows"]] == [
        ("best", "0.png", {"box": 1.0}),
        ("median", "3.png", {"box": 0.7}),
        ("worst", "6.png", {"box": 0.4}),
    ]
    assert found["rows"][1] | {"object_id": 103, "class": "thing", "box_xyxy": [10, 10, 50, 50]} == found["rows"][1]
    assert (found["ranked_by"], found["num_boxes"], found["num_boxes_too_small"]) == ("box", 7, 0)
    with Image.open(tree / "out" / "panel.jpg") as figure:
        assert figure.width > 3 * 200 and figure.height > 3 * 200


def test_stages_stand_beside_other_generators(tree, monkeypatch, lpg_folder):
    arguments = ["--generators", "box", "grabcut", "--stage", "stage 1", lpg_folder, "--num_each", "2"]
    found = run(monkeypatch, tree, *arguments, "--limit", "4", "--rank_by", "box")
    assert found["num_boxes"] == 4 and len(found["rows"]) == 4
    assert all(set(row["iou"]) == {"box", "grabcut", "stage 1"} for row in found["rows"])
    assert all(row["iou"]["grabcut"] > 0.95 for row in found["rows"])
    by_stage = run(monkeypatch, tree, *arguments)
    assert by_stage["ranked_by"] == "stage 1"
    scores = {
        kind: [row["iou"]["stage 1"] for row in by_stage["rows"] if row["kind"] == kind] for kind in ("best", "worst")
    }
    assert min(scores["best"]) >= max(scores["worst"])


def test_small_objects_are_counted_and_not_shown(tree, monkeypatch):
    found = run(monkeypatch, tree, "--generators", "box", "--min_area", "1000")
    assert found["num_boxes_too_small"] == 3
    assert {row["file_name"] for row in found["rows"]} == {f"{number}.png" for number in range(4)}


def test_no_image_comes_twice_and_the_kinds_take_turns():
    boxes = [
        MeasuredBox(i // 2, i % 2, 500, {"a": iou}) for i, iou in enumerate([0.9, 0.2, 0.8, 0.5, 0.7, 0.1, 0.6, 0.3])
    ]
    chosen = choose(boxes, "a", 2)
    assert [(kind, box.image, box.position) for kind, box in chosen] == [
        ("best", 0, 0),
        ("best", 1, 0),
        ("median", 3, 0),
        ("worst", 2, 1),
    ]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--rank_by", "lpg"], "--rank_by 'lpg' is none of the methods: box, grabcut"),
        (["--stage", "stage 1"], "--stage takes a title"),
        (["--generators", "box", "--min_area", "5000"], "no box of .* has 5000 true pixels"),
    ],
)
def test_mistakes_are_told(tree, monkeypatch, capsys, arguments, message):
    with pytest.raises(SystemExit):
        run(monkeypatch, tree, *arguments)
    assert re.search(message, capsys.readouterr().err)
