"""The diagnosis that a check gives of real annotation files, with blank images in the place of the true ones."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from lpg_hf.data._formats.voc import parse_xml
from lpg_hf.data.check import check_source
from lpg_hf.data.convert import convert_labels
from lpg_hf.data.options import SOURCE_OPTIONS


CASES = Path(os.environ.get("LPG_HF_CASES", "absent"))

# file -> (images, objects, classes, counts)
DIAGNOSES = {
    "coco_crowd_rle_gap_ids.json": (6, 36, 80, {"empty_image": 1}),
    "coco_taco_dup_ids_negative_xy.json": (11, 11, 60, {"duplicate_annotation_id": 2, "clipped_box": 6}),
    "coco_voc2coco_cat0_emptyseg.json": (18, 164, 3, {"no_mask": 164}),
    "voc_2011_003353_float_no_truncated.xml": (1, 1, 20, {}),
    "voc_bccd_degenerate_BloodImage_00338.xml": (1, 14, 2, {"one_pixel_box": 1, "counted_from_zero": 14}),
    "voc_no_size_no_object.xml": (1, 0, 20, {"size_from_image": 1, "empty_image": 1}),
    "voc_paddlelabel_negative_out.xml": (1, 2, 1, {"clipped_box": 2}),
    "voc_person_part_with_own_box.xml": (1, 2, 20, {}),
    "voc_roboflow_no_flags.xml": (1, 1, 1, {}),
    "voc_roboflow_zero_based.xml": (1, 1, 1, {"zero_coordinate": 1, "clipped_box": 1}),
}


def blank_data(name, root):
    """(annotations, image folder) with blank images of the stated sizes."""
    path = CASES / name
    if not path.is_file():
        pytest.skip(f"needs the file {name} in the folder LPG_HF_CASES")
    images = root / ("images" if path.suffix == ".json" else "JPEGImages")
    if path.suffix == ".json":
        sizes = {i["file_name"]: (i["width"], i["height"]) for i in json.loads(path.read_text())["images"]}
        annotations = path
    else:
        content = parse_xml(str(path))
        sizes = {content.filename: (content.size or (100, 100))[::-1]}
        (root / "Annotations").mkdir(parents=True)
        shutil.copy(path, root / "Annotations" / Path(content.filename).with_suffix(".xml").name)
        annotations = root
    for file_name, size in sizes.items():
        (images / file_name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", size).save(images / file_name)
    return annotations, images


@pytest.mark.parametrize("name", DIAGNOSES)
def test_diagnosis(name, tmp_path):
    annotations, images = blank_data(name, tmp_path / "data")
    report = check_source(annotations, images, replace(SOURCE_OPTIONS, masks=name.endswith(".json"))).report
    assert (report.images, report.objects, len(report.classes), report.counts) == DIAGNOSES[name]


@pytest.mark.parametrize("name", DIAGNOSES)
def test_diagnosis_of_the_file_as_it_lies_there_without_its_images(name):
    path = CASES / name
    if not path.is_file():
        pytest.skip(f"needs the file {name} in the folder LPG_HF_CASES")
    checked = check_source(path, options=replace(SOURCE_OPTIONS, masks=name.endswith(".json")))
    images, objects, classes, counts = DIAGNOSES[name]
    counts = {{"size_from_image": "size_unknown"}.get(kind, kind): count for kind, count in counts.items()}
    counts["missing_image"] = images
    found = checked.report
    assert not checked.passed and (found.images, found.objects, len(found.classes)) == (images, objects, classes)
    assert found.counts == counts
    assert f"{images} of {images} images do not exist in {CASES}" in checked.summary()


@pytest.mark.parametrize("target", ["coco", "voc", "yolo"])
@pytest.mark.parametrize("name", DIAGNOSES)
def test_conversion_keeps_every_object_but_crowds(name, target, tmp_path):
    annotations, images = blank_data(name, tmp_path / "data")
    done = convert_labels(annotations, tmp_path / "out", target, images=images)
    crowds = 0
    if name.endswith(".json") and target != "coco":
        crowds = sum(a["iscrowd"] for a in json.loads(annotations.read_text())["annotations"])
    again = check_source(tmp_path / "out", images).report
    assert (again.images, again.objects) == (done.report.images, done.report.objects - crowds)
    assert set(again.counts) <= {"empty_image", "one_pixel_box", "duplicate_line"}


def test_there_is_a_diagnosis_of_every_file():
    if not CASES.is_dir():
        pytest.skip("needs the files in the folder LPG_HF_CASES")
    assert {path.name for path in CASES.iterdir() if path.suffix in (".json", ".xml")} == set(DIAGNOSES)
