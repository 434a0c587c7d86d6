"""Each faulty input, one at a time among good ones: the message names file and object, the others are used."""

import json

import numpy as np
import pytest
from PIL import Image
from trees import HEIGHT, WIDTH, add_everywhere

from lpg_hf.data.check import check_source
from lpg_hf.data.convert import WITH_MASKS
from lpg_hf.data.report import PROBLEMS, Report


# what is changed of a second annotation of image b.png -> kind of problem
COCO_FAULTS = {
    "no box": ({"bbox": ..., "segmentation": ...}, "no_box"),
    "box of polygon": ({"bbox": ...}, "box_from_polygon"),
    "three numbers": ({"bbox": [1, 2, 3]}, "invalid_box"),
    "text": ({"bbox": ["a", 2, 3, 4]}, "invalid_box"),
    "no width": ({"bbox": [10, 8, 0, 16]}, "degenerate_box"),
    "negative": ({"bbox": [30, 24, -20, -16]}, "corners_swapped"),
    "over the border": ({"bbox": [50, 30, 30, 30]}, "clipped_box"),
    "outside": ({"bbox": [100, 100, 5, 5]}, "box_outside"),
    "unknown category": ({"category_id": 9}, "unlisted_class"),
    "same id": ({"id": 1}, "duplicate_annotation_id"),
    "two points": ({"segmentation": [[26, 31, 50, 31]]}, "invalid_mask"),
    "empty mask": ({"segmentation": []}, "no_mask"),
    "short RLE": ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [0, 20]}}, "invalid_mask"),
}


# Kinds of an object whose place is not known: its image is left out.
WITHOUT_A_PLACE = {"no_box", "invalid_box", "invalid_line", "pixel_values"}


def expected_counts(kind: str) -> dict[str, int]:
    return {kind: 1, "incomplete_image": 1} if kind in WITHOUT_A_PLACE else {kind: 1}


@pytest.mark.parametrize("fault", COCO_FAULTS)
def test_faulty_coco_annotation(coco_tree, fault, tmp_path):
    changes, kind = COCO_FAULTS[fault]
    add_everywhere(coco_tree, "b.png")
    coco_tree.content["annotations"].append(coco_tree.annotation(**{"id": 7, "image_id": 2, **changes}))
    path = coco_tree.write()
    checked = check_source(path, options=WITH_MASKS)
    assert checked.report.counts == expected_counts(kind), checked.summary()
    place = checked.report.places[kind][0]
    assert place.startswith(f"b.png: annotation {changes.get('id', 7)}")
    assert str(path) in checked.summary() and place in checked.summary()
    checked.report.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == checked.report
    assert json.loads((tmp_path / "report.json").read_text())["counts"] == expected_counts(kind)
    assert checked.report.images == 2 - (kind in WITHOUT_A_PLACE) and kind in PROBLEMS and not checked.passed


def box(x1, y1, x2, y2):
    return f"<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>"


VOC_FAULTS = {
    "no box": ("<object><name>thing</name></object>", "no_box"),
    "text": (f"<object><name>thing</name>{box('a', 2, 3, 4)}</object>", "invalid_box"),
    "swapped": (f"<object><name>thing</name>{box(30, 24, 11, 9)}</object>", "corners_swapped"),
    "one pixel": (f"<object><name>thing</name>{box(5, 5, 5, 5)}</object>", "one_pixel_box"),
    "over the border": (f"<object><name>thing</name>{box(50, 30, 80, 60)}</object>", "clipped_box"),
    "outside": (f"<object><name>thing</name>{box(100, 100, 120, 120)}</object>", "box_outside"),
    "unknown class": (f"<object><name>foo</name>{box(11, 9, 30, 24)}</object>", "unlisted_class"),
}


@pytest.mark.parametrize("fault", VOC_FAULTS)
def test_faulty_voc_object(voc_tree, fault):
    text, kind = VOC_FAULTS[fault]
    voc_tree.add("b", voc_tree.xml("b.png", objects=[voc_tree.object(), text]))
    checked = check_source(voc_tree.root)
    assert checked.report.counts == expected_counts(kind)
    assert checked.report.places[kind][0].startswith("b.xml: object 2")
    assert checked.report.places[kind][0] in checked.summary()
    assert (
        checked.report.images == 2 - (kind in WITHOUT_A_PLACE)
        and not checked.passed
        and str(voc_tree.root) in checked.summary()
    )


YOLO_FAULTS = {
    "pixels": ("0 320 240 100 80", "pixel_values"),
    "words": ("thing 0.5 0.5 0.2 0.2", "invalid_line"),
    "no width": ("0 0.5 0.5 0 0.2", "degenerate_box"),
    "negative": ("0 0.5 0.5 -0.2 0.2", "corners_swapped"),
    "over the border": ("0 0.9 0.5 0.6 0.2", "clipped_box"),
    "centre outside": ("0 1.07 1.06 0.2 0.2", "centre_outside"),
    "twice": ("0 0.333333 0.4 0.333333 0.4", "duplicate_line"),
    "unknown class": ("7 0.5 0.5 0.2 0.2", "unlisted_class"),
}


@pytest.mark.parametrize("fault", YOLO_FAULTS)
def test_faulty_yolo_line(yolo_tree, fault):
    line, kind = YOLO_FAULTS[fault]
    yolo_tree.add("b", f"{yolo_tree.LINE}\n{line}\n")
    checked = check_source(yolo_tree.root)
    assert checked.report.counts == expected_counts(kind)
    assert checked.report.places[kind][0].startswith("b.txt: line 2")
    assert checked.report.places[kind][0] in checked.summary()
    assert (
        checked.report.images == 2 - (kind in WITHOUT_A_PLACE)
        and not checked.passed
        and str(yolo_tree.root) in checked.summary()
    )


@pytest.mark.parametrize("name", ["coco", "voc", "yolo"])
def test_faulty_image(request, name):
    tree = request.getfixturevalue(f"{name}_tree")
    path = add_everywhere(tree, "b.png")
    for content, kind in ((b"x", "unreadable_image"), (path.read_bytes()[:60], "truncated_image")):
        path.write_bytes(content)
        checked = check_source(tree.root)
        assert checked.report.counts == {kind: 1} and "b.png" in checked.report.places[kind][0]
        assert checked.report.images == 1 and not checked.passed
    Image.fromarray(np.zeros((HEIGHT, WIDTH + 1), dtype=np.uint8)).save(path)
    checked = check_source(tree.root)
    assert checked.report.counts == ({} if name == "yolo" else {"size_mismatch": 1})
    path.unlink()
    if name == "yolo":
        assert check_source(tree.root).report.places == {"label_without_image": ["labels/b.txt"]}
    else:
        assert check_source(tree.root).report.counts == {"missing_image": 1}


def test_a_data_set_of_images_without_boxes_is_noticed(voc_tree):
    voc_tree.add("a", voc_tree.xml(objects=[]))
    checked = check_source(voc_tree.root)
    assert checked.report.counts == {"empty_image": 1} and checked.report.objects == 0
    assert "empty_image: 1" in checked.summary() and not checked.passed
