"""The readers on real photographs, where they are at hand."""

import os
from pathlib import Path

import numpy as np
import pytest

from lpg_hf.data._examples import box_label_map, class_mask, decode_image, label_map, row_boxes
from lpg_hf.data._formats.voc import parse_xml
from lpg_hf.data.builders import CocoBoxes, VocBoxes
from lpg_hf.data.options import ReadOptions
from lpg_hf.labels import COCO_NONVOC_IDS


DATA, CASES = (Path(os.environ.get(name, "absent")) for name in ("LPG_HF_DATA", "LPG_HF_CASES"))
NONVOC_MASKS = ReadOptions(classes="nonvoc60", masks=True)

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not DATA.is_dir(), reason="needs the photographs in the folder LPG_HF_DATA"),
]


def build(builder, split):
    builder.download_and_prepare()
    return builder.as_dataset(split=split), builder.report


@pytest.mark.parametrize(
    "file, images, objects",
    [("instances_nonvoc_train.json", 481, 2174), ("instances_nonvoc_val.json", 85, 422)],
)
def test_coco_counts(file, images, objects):
    builder = CocoBoxes(data_dir=str(DATA / "coco"), annotations=file, options=NONVOC_MASKS)
    dataset, report = build(builder, "train")
    assert (len(dataset), report.images, report.objects) == (images, images, objects)
    assert set(report.counts) <= {"invalid_mask"}  # one instance of the val part has no pixel at this size
    assert [len(dataset.features["objects"]["category"].feature.names), len(report.classes)] == [60, 60]


def test_nonvoc60_of_the_full_file_is_the_nonvoc_file():
    options = {"data_dir": str(DATA / "coco"), "options": ReadOptions(classes="nonvoc60")}
    part, _ = build(CocoBoxes(annotations="instances_nonvoc_train.json", **options), "train")
    full, report = build(CocoBoxes(annotations="instances.json", **options), "train")
    rows = {row["image_id"]: row["objects"] for row in full.remove_columns("image")}
    assert report.counts["other_class"] > 2000 and len(COCO_NONVOC_IDS) == len(report.classes)
    for row in part.remove_columns("image"):
        same = rows[row["image_id"]]
        keep = [i for i, crowd in enumerate(same["iscrowd"]) if not crowd]
        assert sorted(row["objects"]["id"]) == sorted(same["id"][i] for i in keep)
        by_id = dict(zip(same["id"], zip(same["bbox"], same["category"])))
        for values in zip(row["objects"]["id"], row["objects"]["bbox"], row["objects"]["category"]):
            assert by_id[values[0]] == values[1:]


@pytest.mark.parametrize("split, images, objects", [("train_mix", 2877, 7016), ("val_mix", 300, 747)])
def test_voc_counts(split, images, objects):
    builder = VocBoxes(data_dir=str(DATA / "voc"), options=ReadOptions(split=split))
    dataset, report = build(builder, split)
    assert (len(dataset), report.images, report.objects) == (images, images, objects)
    assert report.counts == {} and len(report.classes) == 20


def test_arrays_of_real_rows_agree_with_each_other():
    coco, _ = build(
        CocoBoxes(data_dir=str(DATA / "coco"), annotations="instances_nonvoc_val.json", options=NONVOC_MASKS),
        "train",
    )
    voc, _ = build(VocBoxes(data_dir=str(DATA / "voc"), options=ReadOptions(split="val_mix", masks=True)), "val_mix")
    for dataset in (coco.select(range(40)), voc.select(range(40))):
        for row in dataset:
            shape = (row["height"], row["width"])
            boxes, labels = row_boxes(row)
            assert decode_image(row).shape == (*shape, 3) and len(boxes) == len(labels) > 0
            assert (boxes[:, 2:] > boxes[:, :2]).all() and (boxes >= 0).all()
            truth, filled = label_map(row), box_label_map(row)
            assert truth.shape == filled.shape == shape
            assert set(np.unique(filled)) - {0, 255} <= set(labels.tolist())
            for label in np.unique(truth[(truth > 0) & (truth < 255)]):
                assert (class_mask(row, int(label))[truth == label] == 1).all()


@pytest.mark.skipif(not CASES.is_dir(), reason="needs the odd files in the folder LPG_HF_CASES")
def test_odd_xml_files_are_read():
    for path in sorted(CASES.glob("*.xml")):
        content = parse_xml(str(path))
        assert content.filename and all(item.name for item in content.objects)
