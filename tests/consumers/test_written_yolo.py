"""What `convert-labels` writes as YOLO, read by the trainer's rules: the same images, splits and boxes as went in."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from test_yolo_rules import trainer_dataset


sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from tool_trees import OTHER_TREES, TOOL_TREES, write  # noqa: E402

from lpg_hf.data.convert import WITH_MASKS, YoloOptions, convert_labels  # noqa: E402


ROW = [pytest.approx(value, abs=1e-4) for value in (0, 1 / 3, 0.4, 1 / 3, 0.4)]


@pytest.fixture(autouse=True)
def another_working_folder(tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))


@pytest.mark.parametrize(
    "name, train, val",
    [
        ("Roboflow COCO", ["train.jpg"], ["valid.jpg"]),
        ("Roboflow YOLO", ["train.jpg"], ["valid.jpg"]),
        ("CreateML", ["train.png"], ["valid.png"]),
        ("LabelMe", ["a.png"], ["a.png"]),
        ("CVAT for images 1.1", ["a.png"], ["a.png"]),
        ("CVAT YOLO 1.1", ["a.png"], ["a.png"]),
        ("COCO", ["a.jpg"], ["a.jpg"]),
        ("LabelImg VOC", ["a.png"], ["a.png"]),
    ],
)
@pytest.mark.parametrize("how", ["link", "copy"])
def test_it_trains_as_it_lies_there(tmp_path, name, train, val, how):
    {**OTHER_TREES, **TOOL_TREES}[name][1](tmp_path / "in")
    options = replace(WITH_MASKS, zero_based=name == "LabelImg VOC")
    convert_labels(tmp_path / "in", tmp_path / "out", "yolo", options=options, yolo_options=YoloOptions(how))
    found = {split: trainer_dataset(tmp_path / "out" / "data.yaml", split) for split in ("train", "val")}
    assert {split: sorted(images) for split, images in found.items()} == {"train": train, "val": val}
    # VOC trees have the class list of VOC, to which "red" is appended.
    rows = [row[1:] for images in found.values() for rows in images.values() for row in rows]
    assert rows == [ROW[1:]] * (len(train) + len(val))


def test_the_lists_of_voc_are_splits(tmp_path):
    OTHER_TREES["CVAT VOC 1.1"][1](tmp_path / "in")
    text = (tmp_path / "in" / "Annotations" / "a.xml").read_text()
    for name in "bc":
        write(tmp_path / "in", f"JPEGImages/{name}.png", None)
        write(tmp_path / "in", f"Annotations/{name}.xml", text.replace("a.png", f"{name}.png"))
    write(tmp_path / "in", "ImageSets/Main/train.txt", "a\nc\n")
    write(tmp_path / "in", "ImageSets/Main/val.txt", "b\n")
    convert_labels(tmp_path / "in", tmp_path / "out", "yolo")
    data = tmp_path / "out" / "data.yaml"
    assert sorted(trainer_dataset(data, "train")) == ["a.png", "c.png"] and list(trainer_dataset(data, "val")) == [
        "b.png"
    ]


def test_a_data_yaml_whose_splits_are_lists_keeps_them(tmp_path):
    for name in "abc":
        write(tmp_path / "in", f"images/{name}.png", None)
        write(tmp_path / "in", f"labels/{name}.txt", "0 0.333333 0.4 0.333333 0.4\n")
    write(tmp_path / "in", "train.txt", "./images/a.png\n./images/c.png\n")
    write(tmp_path / "in", "val.txt", "./images/b.png\n")
    write(tmp_path / "in", "data.yaml", "train: train.txt\nval: val.txt\nnames: [red]\n")
    convert_labels(tmp_path / "in", tmp_path / "out", "yolo")
    data = tmp_path / "out" / "data.yaml"
    assert sorted(trainer_dataset(data, "train")) == ["a.png", "c.png"] and trainer_dataset(data, "val") == {
        "b.png": [ROW]
    }
