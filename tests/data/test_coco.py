"""COCO json -> records: structure, geometry, masks, files."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from lpg_hf.data._formats import image_finder
from lpg_hf.data._formats.coco import header_with, id_of, make_record, read_coco, read_index, write_coco
from lpg_hf.data._formats.coco_layout import image_folder
from lpg_hf.data._formats.image_finder import StatedImage, match_images
from lpg_hf.data._formats.rle import segmentation_to_rle
from lpg_hf.data.options import ReadOptions
from lpg_hf.data.records import NO_CLASS, Geometry
from lpg_hf.data.report import Report
from lpg_hf.labels import COCO_CLASSES, COCO_NONVOC_IDS, COCO_VOC_IDS


BOX = (10.0, 8.0, 30.0, 24.0)


def read(tree, classes=None, **options):
    report = Report()
    records = list(read_coco(tree.write(), tree.images, ReadOptions(classes=classes, **options), report))
    return records, report


def only_object(tree, **options):
    records, report = read(tree, **options)
    assert len(records) == 1 and len(records[0].objects) == 1, report.summary()
    return records[0].objects[0], report


def test_base_coco(coco_tree):
    item, report = only_object(coco_tree)
    assert item.box == BOX and item.category == 0 and item.rle is None and not item.iscrowd
    assert report.counts == {} and (report.images, report.objects) == (1, 1)
    assert report.classes == ["1 thing (category id 1)"]


def test_absent_iscrowd_is_an_ordinary_object(coco_tree):
    coco_tree.content["annotations"] = [coco_tree.annotation(iscrowd=...)]
    item, report = only_object(coco_tree)
    assert not item.iscrowd and item.box == BOX and report.counts == {}


@pytest.mark.parametrize("area", [..., 0])
def test_area_never_decides_and_is_recomputed(coco_tree, area):
    coco_tree.content["annotations"] = [coco_tree.annotation(area=area)]
    assert only_object(coco_tree)[0].area == 320
    assert only_object(coco_tree, masks=True)[0].area == 320


def test_duplicate_annotation_ids_keep_their_boxes_and_get_fresh_ids(coco_tree, tmp_path):
    coco_tree.add_image("b.png", 2)
    coco_tree.content["annotations"].append(coco_tree.annotation(image_id=2, bbox=[1, 2, 3, 4]))
    records, report = read(coco_tree)
    assert [record.objects[0].box for record in records] == [BOX, (1, 2, 4, 6)]
    assert report.counts == {"duplicate_annotation_id": 1}
    assert report.places["duplicate_annotation_id"] == ["b.png: annotation 1"]
    assert [record.objects[0].id for record in records] == [1, 2]
    write_coco(tmp_path / "out.json", records, [(1, "thing")])
    written = json.loads((tmp_path / "out.json").read_text())
    assert [annotation["id"] for annotation in written["annotations"]] == [1, 2]


def test_category_zero_is_a_real_class(coco_tree):
    coco_tree.content["categories"] = [{"id": 1, "name": "b"}, {"id": 0, "name": "a"}]
    coco_tree.content["annotations"] = [coco_tree.annotation(id=i, category_id=i) for i in (0, 1)]
    records, report = read(coco_tree)
    assert [item.category for item in records[0].objects] == [0, 1]
    assert report.classes == ["1 a (category id 0)", "2 b (category id 1)"]


def test_sparse_ids_give_contiguous_labels_and_come_back(coco_tree, tmp_path):
    coco_tree.content["categories"] = [{"id": i, "name": n} for i, n in ((90, "c"), (3, "a"), (7, "b"))]
    coco_tree.content["annotations"] = [coco_tree.annotation(id=i, category_id=i) for i in (3, 7, 90)]
    index = read_index(coco_tree.write(), coco_tree.images, ReadOptions(), Report())
    assert index.classes == [(3, "a"), (7, "b"), (90, "c")]
    records, _ = read(coco_tree)
    assert [item.category for item in records[0].objects] == [0, 1, 2]
    write_coco(tmp_path / "out.json", records, index.classes)
    written = json.loads((tmp_path / "out.json").read_text())
    assert [annotation["category_id"] for annotation in written["annotations"]] == [3, 7, 90]
    assert written["categories"] == [{"id": i, "name": n} for i, n in ((3, "a"), (7, "b"), (90, "c"))]


@pytest.mark.parametrize("image_id, category_id", [("1", 1), (1, "1")])
def test_text_and_number_ids_are_matched_and_counted(coco_tree, image_id, category_id):
    coco_tree.content["images"][0]["id"] = image_id
    coco_tree.content["categories"][0]["id"] = category_id
    item, report = only_object(coco_tree)
    assert item.box == BOX and report.counts == {"id_type_differs": 1}


def test_images_without_annotations_are_an_explicit_option(coco_tree):
    coco_tree.add_image("b.png", 2)
    records, report = read(coco_tree)
    assert len(records) == 1 and report.counts == {"image_without_object": 1}
    records, report = read(coco_tree, keep_empty=True)
    assert [len(record.objects) for record in records] == [1, 0]
    assert (records[1].height, records[1].width) == (40, 60) and report.counts == {"empty_image": 1}


@pytest.mark.parametrize("masks", [False, True])
def test_box_from_polygon_else_skipped(coco_tree, masks):
    coco_tree.add_image("b.png", 2)
    coco_tree.content["annotations"] = [
        coco_tree.annotation(bbox=...),
        coco_tree.annotation(id=2, image_id=2, bbox=..., segmentation=...),
        coco_tree.annotation(id=3, image_id=2, bbox=[], segmentation=[]),
    ]
    item, report = only_object(coco_tree, masks=masks)
    assert item.box == BOX and report.counts == {"box_from_polygon": 1, "no_box": 2, "incomplete_image": 1}
    assert report.places["no_box"] == ["b.png: annotation 2", "b.png: annotation 3"]


@pytest.mark.parametrize("masks", [False, True])
def test_box_from_rle_else_skipped(coco_tree, masks):
    mask = np.zeros((40, 60), dtype=np.uint8, order="F")
    mask[8:24, 10:30] = 1
    rle = coco_mask.encode(mask)
    rle["counts"] = rle["counts"].decode("ascii")
    coco_tree.content["annotations"] = [
        coco_tree.annotation(bbox=..., segmentation=rle),
        coco_tree.annotation(id=2, image_id=2, bbox=..., segmentation={"size": [40, 60], "counts": [2400]}),
        coco_tree.annotation(id=3, image_id=2, bbox=..., segmentation={"size": [4, 6], "counts": [0, 24]}),
        coco_tree.annotation(id=4, image_id=2, bbox=..., segmentation={"size": [40, 60], "counts": "garbage"}),
    ]
    coco_tree.add_image("b.png", 2)
    item, report = only_object(coco_tree, masks=masks)
    assert item.box == BOX and report.counts == {"box_from_polygon": 1, "no_box": 3, "incomplete_image": 1}


def test_no_segmentation_is_the_normal_input(coco_tree):
    coco_tree.content["annotations"] = [coco_tree.annotation(segmentation=...)]
    item, report = only_object(coco_tree)
    assert item.box == BOX and report.counts == {}


@pytest.mark.parametrize("size", [-1, 0, None, "x", True, ...])
@pytest.mark.parametrize("verify", [True, False])
def test_size_from_the_image(coco_tree, size, verify):
    image = coco_tree.content["images"][0]
    image.pop("width"), image.pop("height")
    if size is not ...:
        image.update(width=size, height=size)
    coco_tree.content["annotations"] = [coco_tree.annotation(bbox=[50, 30, 30, 30])]
    records, report = read(coco_tree, verify_images=verify)
    assert (records[0].height, records[0].width) == (40, 60)
    assert records[0].objects[0].box == (50, 30, 60, 40)
    assert report.counts == {"size_from_image": 1, "clipped_box": 1}


def test_wrong_size_is_skipped_refused_or_rescaled(coco_tree):
    coco_tree.add_image("b.png", 2)
    coco_tree.content["images"][0].update(width=120, height=80)
    double = [[20, 16, 60, 16, 60, 48, 20, 48]]
    coco_tree.content["annotations"] = [
        coco_tree.annotation(bbox=[20, 16, 40, 32], area=1280, segmentation=double),
        coco_tree.annotation(id=2, image_id=2),
    ]
    records, report = read(coco_tree)
    assert [record.file_name for record in records] == ["b.png"]
    assert report.places["size_mismatch"] == ["a.png: stated 120 x 80, image 60 x 40"]
    with pytest.raises(ValueError, match="a.png: stated 120 x 80, image 60 x 40"):
        read(coco_tree, size_mismatch="error")
    records, report = read(coco_tree, masks=True, size_mismatch="rescale")
    item = records[0].objects[0]
    assert item.box == BOX and item.area == 320 and report.counts == {"size_rescaled": 1}
    mask = coco_mask.decode(item.rle)
    assert mask.shape == (40, 60) and mask[8:24, 10:30].all() and mask.sum() == 320


def test_rescale_takes_rle_masks_along(coco_tree):
    coco_tree.content["images"][0].update(width=120, height=80)
    mask = np.zeros((80, 120), dtype=np.uint8, order="F")
    mask[16:48, 20:60] = 1
    rle = coco_mask.encode(mask)
    segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
    coco_tree.content["annotations"] = [coco_tree.annotation(bbox=[20, 16, 40, 32], segmentation=segmentation)]
    item, _ = only_object(coco_tree, masks=True, size_mismatch="rescale")
    assert (coco_mask.decode(item.rle) == mask[::2, ::2]).all()


LOCALE_SCRIPT = """
import sys
from lpg_hf.data._formats.coco import read_coco, write_coco
from lpg_hf.data.report import Report
from lpg_hf._files import unicode_path
root = unicode_path(sys.argv[1])
report = Report()
records = list(read_coco(root + "/annotations.json", root + "/images", report=report))
assert [r.file_name for r in records] == ["\\u00e9.png"], ascii(report.summary())
assert report.classes == ["1 \\u72ac \\u010d (category id 1)"]
write_coco(root + "/out.json", records, [(1, "\\u72ac \\u010d")])
"""


@pytest.mark.parametrize("locale", [{"PYTHONUTF8": "0", "LC_ALL": "C"}, {"PYTHONUTF8": "1"}])
def test_names_are_utf8_whatever_the_locale(coco_tree, locale):
    coco_tree.write_image("é.png")
    coco_tree.content["images"][0]["file_name"] = "é.png"
    coco_tree.content["categories"][0]["name"] = "犬 č"
    coco_tree.write()
    environment = {**os.environ, **locale, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", LOCALE_SCRIPT, str(coco_tree.root)], env=environment, check=True)
    written = json.loads((coco_tree.root / "out.json").read_bytes().decode("utf-8"))
    assert written["images"][0]["file_name"] == "é.png" and written["categories"][0]["name"] == "犬 č"


def test_truncated_json_names_file_and_byte(coco_tree):
    path = coco_tree.write()
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 7 // 10])
    with pytest.raises(
        ValueError, match=r"annotations.json is not valid or not complete json: .* at byte \d+ of \d+"
    ) as info:
        read_index(path, coco_tree.images, ReadOptions(), Report())
    assert "\n" not in str(info.value)


def test_byte_position_counts_bytes_not_characters(coco_tree):
    path = coco_tree.write()
    path.write_text('{"images": "犬犬", oops}', encoding="utf-8")
    with pytest.raises(ValueError, match="at byte 21 of"):
        read_index(path, coco_tree.images, ReadOptions(), Report())


@pytest.mark.parametrize(
    "data, text",
    [
        (b"", r"is empty \(0 bytes\)"),
        (b" \n", "is empty"),
        (b"<html><body>404</body></html>", "HTML page.* at byte 0"),
        (b"\xff\xfe{}", "not valid or not complete json"),
        (b"[1, 2]", "top level is a list"),
        (b"{}", 'no list "annotations"'),
        (b'{"images": [], "categories": [{"id": 1, "name": "a"}]}', 'no list "annotations"'),
        (b'{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "lists no annotations"),
        (b'{"images": [], "annotations": [], "categories": []}', "lists no categories"),
    ],
)
def test_files_that_are_no_coco(coco_tree, data, text):
    path = coco_tree.write()
    path.write_bytes(data)
    with pytest.raises(ValueError, match=text):
        read_index(path, coco_tree.images, ReadOptions(), Report())


def test_a_file_with_images_alone_is_read_where_empty_images_are_kept(coco_tree):
    coco_tree.content |= {"annotations": [], "categories": []}
    path = coco_tree.write()
    index = read_index(path, coco_tree.images, ReadOptions(keep_empty=True), Report())
    assert [entry.file_name for entry in index.entries] == ["a.png"] and index.classes == []
    with pytest.raises(ValueError, match="lists no annotations"):
        read_index(path, coco_tree.images, ReadOptions(), Report())


def test_ids_of_categories_are_written_as_those_of_the_annotations(coco_tree):
    coco_tree.content["categories"] = [{"id": "1", "name": "thing"}, {"id": 2.0, "name": "other"}]
    index = read_index(coco_tree.write(), coco_tree.images, ReadOptions(), Report())
    assert header_with(index.header, index.classes)["categories"] == [
        {"id": 1, "name": "thing"},
        {"id": 2, "name": "other"},
    ]


@pytest.mark.parametrize("extra", [{}, {"info": "text", "licenses": "none"}, {"info": {}, "licenses": [3]}])
def test_header_fields_are_optional(coco_tree, extra):
    coco_tree.content.update(extra)
    assert only_object(coco_tree)[0].box == BOX


def test_what_is_nested_too_deeply_in_the_header_is_left_out(coco_tree, tmp_path):
    coco_tree.content["info"] = {"year": 2026, "odd": json.loads("[" * 900 + "]" * 900)}
    index = read_index(coco_tree.write(), coco_tree.images, ReadOptions(), Report())
    assert index.header["info"]["year"] == 2026 and str(index.header["info"]["odd"]) == "[" * 99 + "None" + "]" * 99
    write_coco(tmp_path / "new.json", [], index.classes, header=index.header)
    assert json.loads((tmp_path / "new.json").read_text())["info"] == index.header["info"]


def test_licence_of_an_image_is_kept(coco_tree):
    coco_tree.content["licenses"] = [{"id": 4, "name": "CC BY", "url": "http://example.org/by"}]
    coco_tree.content["images"][0]["license"] = 4
    records, _ = read(coco_tree)
    assert records[0].license == "CC BY http://example.org/by"


def test_boxes_over_the_border_are_clipped_and_counted(coco_tree):
    coco_tree.content["annotations"] = [
        coco_tree.annotation(id=i, bbox=box) for i, box in enumerate(([-5, -3, 20, 16], [50, 30, 30, 30]), start=1)
    ]
    records, report = read(coco_tree)
    assert [item.box for item in records[0].objects] == [(0, 0, 15, 13), (50, 30, 60, 40)]
    assert report.counts == {"clipped_box": 2} and "a.png: annotation 1" in report.places["clipped_box"][0]


def test_degenerate_boxes_are_skipped_and_counted(coco_tree):
    boxes = ([10, 8, 0, 16], [10, 8, 20, 0], [9.98, 188.56, 5.54, 0.0], [10, 8, 20, 16], [70, 8, 5, 5])
    coco_tree.content["annotations"] = [coco_tree.annotation(id=i, bbox=box) for i, box in enumerate(boxes, start=1)]
    item, report = only_object(coco_tree)
    assert item.id == 4 and report.counts == {"degenerate_box": 3, "box_outside": 1}
    assert [place.split(" [")[0] for place in report.places["degenerate_box"]] == [
        f"a.png: annotation {i}" for i in (1, 2, 3)
    ]


def test_negative_size_puts_corners_in_order(coco_tree):
    coco_tree.content["annotations"] = [coco_tree.annotation(bbox=[30, 24, -20, -16])]
    item, report = only_object(coco_tree)
    assert item.box == BOX and report.counts == {"corners_swapped": 1}


def test_tiny_excess_is_clipped_without_a_word(coco_tree):
    coco_tree.content["annotations"] = [coco_tree.annotation(bbox=[54.14, 16, 5.906, 8])]
    item, report = only_object(coco_tree)
    assert item.box[2] == 60 and report.counts == {}


def test_a_pixel_over_the_border_of_a_large_image_is_counted(coco_tree):
    coco_tree.add_image("large.png", 2, width=4000)
    coco_tree.write_image("large.png", width=4000)
    boxes = ([-1, 8, 20, 16], [-0.5, 8, 20, 16], [3990, 8, 10.5000001, 16], [3990, 8, 11, 16])
    coco_tree.content["annotations"] = [
        coco_tree.annotation(id=i, image_id=2, bbox=box) for i, box in enumerate(boxes, start=1)
    ]
    report = read(coco_tree)[1]
    assert [place.split(" [")[0][-1] for place in report.places["clipped_box"]] == ["1", "4"]


@pytest.mark.parametrize(
    "box",
    [
        [10, 8, 20],
        "10,8,20,16",
        [10, 8, "20", 16],
        [10, 8, float("nan"), 16],
        [10, 8, float("inf"), 1],
        [1, 2, 10**400, 3],
    ],
)
def test_boxes_that_are_no_four_numbers_are_skipped_and_counted(coco_tree, box):
    coco_tree.add_image("b.png", 2)
    added = [coco_tree.annotation(id=7, image_id=2, bbox=box), coco_tree.annotation(id=8, image_id=2)]
    coco_tree.content["annotations"] += added
    item, report = only_object(coco_tree)
    assert item.id == 1 and report.counts == {"invalid_box": 1, "incomplete_image": 1}


def test_entries_that_cannot_be_used_are_counted_and_stop_nothing(coco_tree):
    coco_tree.content["images"] += [{"id": 5}, "text", {"id": 1, "file_name": "a.png"}, {"file_name": "x.png"}]
    coco_tree.content["annotations"] += [
        "text",
        coco_tree.annotation(id=2, image_id=...),
        coco_tree.annotation(id=3, image_id=77),
        coco_tree.annotation(id=4, category_id=9),
        coco_tree.annotation(id="five"),
    ]
    records, report = read(coco_tree)
    assert len(records) == 1
    assert [(item.id, item.category) for item in records[0].objects] == [(1, 0), (4, NO_CLASS), (5, 0)]
    assert report.counts == {
        "invalid_image_entry": 3,
        "duplicate_file_name": 1,
        "invalid_annotation": 2,
        "unknown_image": 1,
        "unknown_category": 1,
        "duplicate_annotation_id": 1,
    }
    assert report.details["unknown_category"] == {"9": 1}


def test_two_images_of_one_id_are_an_error_or_both_left_out(coco_tree):
    for name, image_id in (("b.png", 1), ("c.png", 3)):
        coco_tree.add_image(name, image_id)
    coco_tree.content["annotations"].append(coco_tree.annotation(id=2, image_id=3))
    with pytest.raises(ValueError, match="annotations.json: the images 'a.png' and 'b.png' have one id, 1, "):
        read(coco_tree)
    records, report = read(coco_tree, skip_ambiguous=True)
    assert [record.file_name for record in records] == ["c.png"] and report.counts == {"duplicate_image_id": 2}
    assert report.skipped == [("a.png", "duplicate_image_id"), ("b.png", "duplicate_image_id")]


@pytest.mark.parametrize("iscrowd", [0, 1])
def test_uncompressed_rle(coco_tree, iscrowd):
    coco_tree.write_image("a.png", height=10, width=5)
    coco_tree.content["images"][0].update(width=5, height=10)
    segmentation = {"size": [10, 5], "counts": [0, 20, 30]}
    coco_tree.content["annotations"] = [
        coco_tree.annotation(bbox=[0, 0, 2, 10], segmentation=segmentation, iscrowd=iscrowd)
    ]
    records, report = read(coco_tree, masks=True, keep_empty=True)
    item = records[0].objects[0]
    mask = coco_mask.decode(item.rle)
    assert mask.sum() == 20 and mask[:, :2].all() and item.iscrowd == bool(iscrowd)


def test_text_and_bytes_rle_are_equal_and_written_as_text(coco_tree, tmp_path):
    mask = np.zeros((40, 60), dtype=np.uint8, order="F")
    mask[3:9, 5:50:2] = 1
    rle = coco_mask.encode(mask)
    frame, report = Geometry((40, 60)), Report()
    from_bytes = segmentation_to_rle(rle, frame, "a", report)
    from_text = segmentation_to_rle({**rle, "counts": rle["counts"].decode()}, frame, "a", report)
    assert from_bytes == from_text and isinstance(from_text["counts"], str) and report.counts == {}
    coco_tree.content["annotations"] = [coco_tree.annotation(segmentation=from_text)]
    records, _ = read(coco_tree, masks=True)
    write_coco(tmp_path / "out.json", records, [(1, "thing")])
    again = next(read_coco(tmp_path / "out.json", coco_tree.images, ReadOptions(masks=True)))
    assert again.objects == records[0].objects
    assert (coco_mask.decode(again.objects[0].rle) == mask).all()


@pytest.mark.parametrize(
    "segmentation", [[[26, 31, 50, 31]], [[1, 2, 3, 4, 5, 6, 7]], [[]], ["x"], 5, [[1, 1, 1, 1, 1, 1]]]
)
def test_degenerate_polygon_keeps_the_box(coco_tree, segmentation):
    coco_tree.content["annotations"] = [coco_tree.annotation(bbox=[26, 31, 24, 1], segmentation=segmentation)]
    item, report = only_object(coco_tree, masks=True)
    assert item.box == (26, 31, 50, 32) and item.rle is None and report.counts == {"invalid_mask": 1}


@pytest.mark.parametrize("segmentation", [[], None, {}, ...])
def test_empty_segmentation_counts_as_no_mask(coco_tree, segmentation):
    coco_tree.content["annotations"] = [coco_tree.annotation(segmentation=segmentation)]
    item, report = only_object(coco_tree, masks=True)
    assert item.box == BOX and item.rle is None and report.counts == {"no_mask": 1}


def test_two_polygons_are_one_object(coco_tree):
    squares = [[10, 8, 14, 8, 14, 12, 10, 12], [26, 20, 30, 20, 30, 24, 26, 24]]
    coco_tree.content["annotations"] = [coco_tree.annotation(segmentation=squares)]
    item, _ = only_object(coco_tree, masks=True)
    mask = coco_mask.decode(item.rle)
    assert mask.sum() == 32 and mask[8:12, 10:14].all() and mask[20:24, 26:30].all() and item.box == BOX


LARGE_POLYGON_SCRIPT = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (2 * 2**30, 2 * 2**30))
from lpg_hf.data._formats.coco_layout import image_folder
from lpg_hf.data._formats.rle import segmentation_to_rle
from lpg_hf.data.records import NO_CLASS, Geometry
from lpg_hf.data.report import Report
report = Report()
polygon = [[-164, -221, 208543216, 352186880, 226, 236, 272, 384]]
assert segmentation_to_rle(polygon, Geometry((28, 28)), "a.png: annotation 1", report) is None
assert report.counts == {"invalid_mask": 1}
"""


def test_huge_polygon_is_rejected_before_the_c_call():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", LARGE_POLYGON_SCRIPT], env=environment, check=True, timeout=60)


def test_polygon_a_little_outside_is_cut_at_the_border():
    rle = segmentation_to_rle([[-10, 8, 30, 8, 30, 24, -10, 24]], Geometry((40, 60)), "a", Report())
    mask = coco_mask.decode(rle)
    assert mask[8:24, :30].all() and mask.sum() == 16 * 30


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [40, 60], "counts": [0, 20, 30]},
        {"size": [40, 60], "counts": [0, -20, 2420]},
        {"size": [40, 60], "counts": [0.5, 2399.5]},
        {"size": [40, 60], "counts": "0" * 40},
        {"size": [40, 60], "counts": "o" * 40},
        {"size": [40, 60], "counts": "\u00e9"},
        {"size": [40, 60], "counts": None},
        {"size": [40], "counts": "0"},
        {"size": [-1, 60], "counts": [0]},
        {"counts": "abc"},
        {"size": [10, 5], "counts": [0, 20, 30]},
    ],
)
def test_rle_that_does_not_cover_the_image_is_rejected(segmentation):
    report = Report()
    assert segmentation_to_rle(segmentation, Geometry((40, 60)), "a", report) is None
    assert report.counts == {"invalid_mask": 1}


def test_random_masks_survive_every_rle_form():
    generator = np.random.default_rng(0)
    for _ in range(30):
        height, width = (int(v) for v in generator.integers(1, 70, 2))
        mask = np.asfortranarray((generator.random((height, width)) < generator.random()).astype(np.uint8))
        if not mask.any():
            continue
        runs, value = [], 0
        for pixel in mask.ravel(order="F"):
            if not runs or pixel != value:
                runs += [0, 0] if not runs and pixel else [0]
                value = pixel
            runs[-1] += 1
        for counts in (runs, coco_mask.encode(mask)["counts"]):
            report = Report()
            rle = segmentation_to_rle(
                {"size": [height, width], "counts": counts}, Geometry((height, width)), "a", report
            )
            assert report.counts == {} and (coco_mask.decode(rle) == mask).all()


def test_nothing_of_masks_is_kept_without_masks(coco_tree):
    garbage = ["x", [[1]], {"size": "?"}, [[float("nan")] * 8], 7]
    expected = only_object(coco_tree)[0]
    for segmentation in garbage:
        coco_tree.content["annotations"] = [coco_tree.annotation(segmentation=segmentation)]
        item, report = only_object(coco_tree)
        assert item == expected and report.counts == {}


def official_content(tree, ids):
    names = dict(COCO_CLASSES)
    tree.content["categories"] = [{"id": i, "name": names[i]} for i in ids]
    tree.content["annotations"] = [tree.annotation(id=i, category_id=i) for i in ids]


@pytest.mark.parametrize("ids", [COCO_NONVOC_IDS, [i for i, _ in COCO_CLASSES], COCO_NONVOC_IDS[:3] + (1,)])
def test_nonvoc60_has_the_same_labels_whatever_the_file_lists(coco_tree, ids):
    official_content(coco_tree, ids)
    report = Report()
    index = read_index(coco_tree.write(), coco_tree.images, ReadOptions(classes="nonvoc60"), report)
    assert [category_id for category_id, _ in index.classes] == list(COCO_NONVOC_IDS)
    kept = [annotation.category for annotation in index.entries[0].annotations]
    assert kept == [COCO_NONVOC_IDS.index(i) for i in ids if i in COCO_NONVOC_IDS]
    assert report.counts.get("other_class", 0) == len(set(ids) & set(COCO_VOC_IDS))


def test_named_set_on_other_category_ids_is_refused(coco_tree):
    coco_tree.content["categories"] = [{"id": 8, "name": "lorry"}]
    with pytest.raises(ValueError, match="category 8 is 'lorry', not 'truck'"):
        read(coco_tree, "nonvoc60")
    coco_tree.content["categories"] = [{"id": 500, "name": "lorry"}]
    with pytest.raises(ValueError, match="none of its ids occurs"):
        read(coco_tree, "all80")


def test_classes_by_name_or_id_follow_the_ascending_id(coco_tree):
    official_content(coco_tree, [1, 8, 10, 13])
    index = read_index(coco_tree.write(), coco_tree.images, ReadOptions(classes=["stop sign", 8]), Report())
    assert index.classes == [(8, "truck"), (13, "stop sign")]


@pytest.mark.parametrize(
    "classes, text",
    [
        (["dog", 99], r"classes \['dog', 99\] are not in .* it holds: thing \(1\)"),
        ("dog", "unknown class set 'dog'"),
        ([], "list of classes is empty"),
    ],
)
def test_unknown_classes_are_an_error(coco_tree, classes, text):
    with pytest.raises(ValueError, match=text):
        read(coco_tree, classes)


def test_images_of_other_classes_only_are_counted(coco_tree):
    official_content(coco_tree, [1, 8])
    coco_tree.add_image("b.png", 2)
    coco_tree.content["annotations"].append(coco_tree.annotation(id=99, image_id=2, category_id=1))
    records, report = read(coco_tree, "nonvoc60")
    assert [record.file_name for record in records] == ["a.png"]
    assert report.counts == {"other_class": 2, "image_without_object": 1}
    assert report.details["other_class"] == {"person": 2} and not report.needs_attention


def test_objects_of_other_classes_are_ignored_by_their_boxes_where_that_is_asked_for(coco_tree):
    official_content(coco_tree, [1, 8])
    triangle = [[40.0, 20.0, 52.0, 20.0, 40.0, 34.0]]
    coco_tree.content["annotations"][0] |= {"bbox": [40, 20, 12, 14], "segmentation": triangle}
    coco_tree.add_image("b.png", 2)
    coco_tree.content["annotations"].append(coco_tree.annotation(id=99, image_id=2, category_id=1))
    [record], report = read(coco_tree, "nonvoc60", ignore_others=True, masks=True)
    person, truck = record.objects
    assert (person.category, person.iscrowd, person.box, person.rle) == (NO_CLASS, True, (40, 20, 52, 34), None)
    assert truck.box == BOX and truck.rle is not None and record.num_objects == 1
    assert report.counts == {"other_class": 2, "image_without_object": 1}
    assert not report.needs_attention


def test_no_object_of_the_classes_is_an_error(coco_tree):
    official_content(coco_tree, [1])
    coco_tree.content["categories"].append({"id": 8, "name": "truck"})
    with pytest.raises(
        ValueError, match=r"no image of .* has an object of the chosen classes .*categories are: person \(1\)"
    ):
        read(coco_tree, "nonvoc60")


def test_two_categories_of_one_name_are_told_apart(coco_tree):
    coco_tree.content["categories"].append({"id": 2, "name": "thing"})
    index = read_index(coco_tree.write(), coco_tree.images, ReadOptions(), Report())
    assert index.classes == [(1, "thing (1)"), (2, "thing (2)")]


def test_a_name_that_tells_two_categories_apart_is_no_other_ones(coco_tree):
    names = ["thing", "thing", "thing (1)"]
    coco_tree.content["categories"] = [{"id": number, "name": name} for number, name in enumerate(names)]
    index = read_index(coco_tree.write(), coco_tree.images, ReadOptions(), report := Report())
    assert index.classes == [(0, "thing (0)"), (1, "thing (1) (1)"), (2, "thing (1)")]
    assert report.counts == {"duplicate_category_name": 2}


def test_crowd_is_kept_as_a_flagged_region(coco_tree):
    crowd = {"size": [40, 60], "counts": [0, 200, 2200]}
    coco_tree.content["annotations"].append(
        coco_tree.annotation(id=2, bbox=[0, 0, 5, 40], iscrowd=1, segmentation=crowd)
    )
    records, _ = read(coco_tree, masks=True)
    assert [item.iscrowd for item in records[0].objects] == [False, True]


def test_image_with_crowd_only_has_no_object(coco_tree):
    coco_tree.add_image("b.png", 2)
    coco_tree.content["annotations"].append(coco_tree.annotation(id=2, image_id=2, iscrowd=1))
    records, report = read(coco_tree)
    assert len(records) == 1 and report.counts == {"image_without_object": 1}


def test_missing_images_are_an_error_unless_allowed(coco_tree):
    for image_id, name in ((2, "b.png"), (3, "c.png")):
        coco_tree.add_image(name, image_id)
        coco_tree.content["annotations"].append(coco_tree.annotation(id=image_id, image_id=image_id))
    (coco_tree.images / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 3 images are missing in .*images: b.png.*allow_missing=True"):
        read(coco_tree)
    records, report = read(coco_tree, allow_missing=True)
    assert [record.file_name for record in records] == ["a.png", "c.png"]
    assert report.places["missing_image"] == ["b.png"]
    for name in ("a.png", "c.png"):
        (coco_tree.images / name).unlink()
    with pytest.raises(FileNotFoundError, match="none of the 3 images exists in .*/images: a.png, b.png, c.png"):
        read(coco_tree, allow_missing=True)


def test_sub_folders_and_backslashes(coco_tree):
    coco_tree.add_image("set1/a.png", 2)
    coco_tree.add_image("set2/b.png", 3)
    coco_tree.content["images"][1]["file_name"] = "set1\\a.png"
    coco_tree.content["annotations"] += [coco_tree.annotation(id=i, image_id=i) for i in (2, 3)]
    records, report = read(coco_tree)
    assert [record.file_name for record in records] == ["a.png", "set1/a.png", "set2/b.png"] and report.counts == {}


def test_spaces_and_other_scripts(tmp_path, coco_tree):
    coco_tree.images = coco_tree.root / "données"
    coco_tree.write_image("图片 1.png")
    coco_tree.content["images"][0]["file_name"] = "图片 1.png"
    records, report = read(coco_tree)
    assert records[0].file_name == "图片 1.png" and report.counts == {}


@pytest.mark.parametrize(
    "name", ["../../secret.png", "{absolute}", "b/../../a.png", "C:\\x.png", "link.png", "folder/a.png", ""]
)
def test_names_that_lead_outside_are_refused(coco_tree, tmp_path, name):
    outside = tmp_path / "outside"
    outside.mkdir()
    coco_tree.write_image("a..b.png").rename(outside / "a.png")
    (coco_tree.images / "link.png").symlink_to(outside / "a.png")
    (coco_tree.images / "folder").symlink_to(outside)
    (coco_tree.images / "a.png").unlink()
    coco_tree.add_image("a..b.png", 2)
    coco_tree.content["images"][0]["file_name"] = name.format(absolute=outside / "a.png")
    coco_tree.content["annotations"].append(coco_tree.annotation(id=2, image_id=2))
    records, report = read(coco_tree)
    assert [record.file_name for record in records] == ["a..b.png"]
    assert report.counts == {"unsafe_path": 1} and "image 1" in report.places["unsafe_path"][0]


def test_an_image_with_another_suffix_in_a_folder_that_no_one_stated_is_another_image(coco_tree):
    coco_tree.content["images"][0]["file_name"] = "batch_1/000000.jpg"
    coco_tree.write_image("elsewhere/000000.png")
    with pytest.raises(FileNotFoundError, match="none of the 1 images exists"):
        read(coco_tree, allow_missing=False)


@pytest.mark.parametrize("name", ["a.jpg", "photos/a.JPEG", "C:\\data\\a.tif"])
def test_an_image_with_another_suffix_is_used_and_counted(coco_tree, name):
    coco_tree.content["images"][0]["file_name"] = name
    records, report = read(coco_tree)
    assert [record.file_name for record in records] == ["a.png"] and report.counts == {"other_suffix": 1}
    coco_tree.write_image("a.webp")  # Which of the two is meant is not known.
    coco_tree.add_image("b.png", 2)
    coco_tree.content["annotations"].append(coco_tree.annotation(id=2, image_id=2))
    records, report = read(coco_tree)
    assert [record.file_name for record in records] == ["b.png"]
    assert len(report.skipped) == 1 and report.is_incomplete


@pytest.mark.parametrize("name", ["/home/me/a.png", "C:\\data\\a.png", "../a.png", "data/a.png"])
def test_an_image_is_found_by_the_end_of_its_name_inside_the_folder(coco_tree, name):
    coco_tree.content["images"][0]["file_name"] = name
    records, report = read(coco_tree)
    assert [record.file_name for record in records] == ["a.png"] and report.counts == {"image_by_name": 1}
    coco_tree.add_image("a.png", 2)  # The image is another entry's.
    records, report = read(coco_tree, keep_empty=True)
    kind = "ambiguous_image" if name == "data/a.png" else "unsafe_path"
    assert [record.image_id for record in records] == ["2"] and report.counts[kind] == 1


def test_a_missing_image_does_not_become_one_of_the_same_name_in_another_folder(coco_tree):
    for number, name in ((2, "cam1/0.png"), (3, "cam2/0.png")):
        coco_tree.add_image(name, number)
        coco_tree.content["annotations"].append(coco_tree.annotation(id=number, image_id=number))
    (coco_tree.images / "cam1" / "0.png").unlink()
    records, report = read(coco_tree, allow_missing=True)
    assert [record.file_name for record in records] == ["a.png", "cam2/0.png"] and report.needs_attention


def test_a_name_longer_than_a_path_is_no_image(coco_tree):
    coco_tree.content["images"].append({"id": 2, "file_name": "a/" * 300_000 + "a.png", "width": 60, "height": 40})
    start = time.process_time()
    records, report = read(coco_tree, allow_missing=True)
    assert [record.file_name for record in records] == ["a.png"] and report.counts == {"invalid_image_entry": 1}
    assert time.process_time() - start < 5  # quadratic in the number of folders, it took more than a minute


def test_many_images_of_one_name_are_found_by_their_folders(tmp_path, monkeypatch):
    names = [f"{number}/deep/image.png" for number in range(20_000)]
    monkeypatch.setattr(image_finder, "walk_files", lambda *arguments: iter(names))
    stated = [StatedImage(f"C:/photos/{name}") for name in names] + [StatedImage(f"other/{n}.jpg") for n in range(9)]
    start = time.process_time()
    matched = match_images(str(tmp_path), stated, report := Report())
    assert list(matched.names.values()) == names and report.counts == {"image_by_name": 20_000}
    assert time.process_time() - start < 10


def test_what_is_no_address_is_the_name_of_a_missing_image(coco_tree):
    coco_tree.content["images"].append({"id": 2, "file_name": "http://[x/b.png", "width": 60, "height": 40})
    records, report = read(coco_tree, keep_missing=True, keep_empty=True)
    assert len(records) == 2 and report.counts == {"missing_image": 1, "empty_image": 1}


def test_two_entries_of_one_image_are_one_image(coco_tree):
    coco_tree.add_image("a.png", 2)
    coco_tree.content["annotations"].append(coco_tree.annotation(id=2, image_id=2, bbox=[40, 20, 12, 14]))
    records, report = read(coco_tree)
    assert [[item.box for item in record.objects] for record in records] == [[(10, 8, 30, 24), (40, 20, 52, 34)]]
    assert report.counts == {"duplicate_file_name": 1}


@pytest.mark.parametrize(
    "bbox",
    [
        {"x": 10, "y": 8, "width": 20, "height": 16},
        {"left": 10, "top": 8, "width": 20, "height": 16},
        {"xmin": 10, "ymin": 8, "xmax": 30, "ymax": 24},
    ],
)
def test_a_box_may_be_a_mapping(coco_tree, bbox):
    coco_tree.content["annotations"][0]["bbox"] = bbox
    records, report = read(coco_tree)
    assert records[0].objects[0].box == (10, 8, 30, 24) and report.counts == {}


@pytest.mark.parametrize(
    "bbox", [{"x": 1}, {"x": "1", "y": 1, "width": 1, "height": 1}, {"a": 1, "b": 2, "c": 3, "d": 4}]
)
def test_a_mapping_that_is_no_box_is_counted(coco_tree, bbox):
    coco_tree.add_image("b.png", 2)
    coco_tree.content["annotations"].append(coco_tree.annotation(id=2, image_id=2, bbox=bbox, segmentation=...))
    records, report = read(coco_tree)
    assert [record.file_name for record in records] == ["a.png"]
    assert report.counts == {"invalid_box": 1, "incomplete_image": 1}


def test_objects_without_a_category_are_of_the_class_object(coco_tree):
    coco_tree.content["annotations"].append(coco_tree.annotation(id=2, category_id=...))
    records, report = read(coco_tree, keep_unlisted=True)
    assert [item.category for item in records[0].objects] == [0, 1] and report.counts == {"no_class_name": 1}
    assert report.classes == ["1 thing (category id 1)", "2 object (category id 2)"]
    for categories in ([], ...):
        coco_tree.content = {key: value for key, value in coco_tree.content.items() if key != "categories"}
        coco_tree.content |= {} if categories is ... else {"categories": []}
        coco_tree.content["annotations"] = [coco_tree.annotation(category_id=...)]
        records, report = read(coco_tree)
        assert report.classes == ["1 object (category id 1)"] and len(records[0].objects) == 1


def test_without_categories_ids_are_classes(coco_tree):
    coco_tree.content["categories"] = []
    coco_tree.content["annotations"] = [coco_tree.annotation(id=i, category_id=i) for i in (7, 3)]
    _, report = read(coco_tree)
    assert report.classes == ["1 category 3 (category id 3)", "2 category 7 (category id 7)"]


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("0", 0), ("12", 12), ("-3", -3), ("007", "007"), ("000", "000"), ("-0", "-0"), ("--3", "--3"), ("²", "²"),
        ("٣", "٣"), ("1_0", "1_0"), ("+1", "+1"), (" 1", " 1"), ("1\n", "1\n"), ("", ""), ("9" * 5000, "9" * 5000),
    ],
)  # fmt: skip
def test_only_a_number_written_as_one_is_an_id_that_is_a_number(text, wanted):
    assert id_of(text) == wanted and type(id_of(text)) is type(wanted)


def test_ids_that_look_like_numbers_stay_apart_and_come_back(coco_tree, tmp_path):
    coco_tree.content["categories"] = [{"id": i, "name": f"c{i}"} for i in ("--3", "000", "1", "01")]
    coco_tree.add_image("b.png", "01")
    coco_tree.content["annotations"] = [
        coco_tree.annotation(id=n, image_id=image, category_id=category)
        for n, (image, category) in enumerate([(1, "--3"), (1, "000"), ("01", "1"), ("01", "01")], start=1)
    ]
    records, report = read(coco_tree)
    assert [len(record.objects) for record in records] == [2, 2]
    index = read_index(coco_tree.write(), coco_tree.images, ReadOptions(), Report())
    assert index.classes == [(1, "c1"), ("--3", "c--3"), ("000", "c000"), ("01", "c01")]
    write_coco(tmp_path / "new.json", records, index.classes, header=index.header)
    content = json.loads((tmp_path / "new.json").read_text(encoding="utf-8"))
    assert [image["id"] for image in content["images"]] == [1, "01"]
    assert [item["category_id"] for item in content["annotations"]] == ["--3", "000", 1, "01"]


def test_written_polygons_areas_licences_and_ids_are_those_that_were_read(coco_tree, tmp_path):
    rle = {"size": [40, 60], "counts": [0, 20, 60 * 40 - 20]}
    coco_tree.content["annotations"] = [
        coco_tree.annotation(id=9, area=319.5),
        coco_tree.annotation(id=4, segmentation=rle, bbox=[0, 0, 1, 20], area=20),
        coco_tree.annotation(id=7, segmentation=[[1, 2, 3, 4], [10, 8, 30, 8, 30, 24, 10, 24]]),
    ]
    coco_tree.content["images"][0]["license"] = 5
    coco_tree.content["licenses"] = [{"id": 5, "name": "CC", "url": "here"}]
    report = Report()
    options = ReadOptions(masks=True)
    index = read_index(coco_tree.write(), coco_tree.images, options, report)
    (record,) = (make_record(entry, options, report) for entry in index.entries)
    write_coco(tmp_path / "new.json", [record], index.classes, header=index.header, keep_ids=True)
    content = json.loads((tmp_path / "new.json").read_text())
    assert content["annotations"][:2] == coco_tree.content["annotations"][:2]
    assert content["annotations"][2]["segmentation"]["size"] == [40, 60]  # one of its polygons cannot be used
    assert [item["id"] for item in content["annotations"]] == [9, 4, 7]
    assert content["images"][0]["license"] == 5 and content["licenses"] == coco_tree.content["licenses"]
    record.objects[1].id = record.objects[2].id = 9
    record.license = "MIT"
    write_coco(tmp_path / "new.json", [record], index.classes, header=index.header, keep_ids=True)
    content = json.loads((tmp_path / "new.json").read_text())
    assert content["annotations"][0]["id"] == 9 and len({item["id"] for item in content["annotations"]}) == 3
    assert content["images"][0]["license"] == 6 and content["licenses"][1] == {"id": 6, "name": "MIT"}


def test_regions_of_no_class_are_not_written_for_any_number_of_classes(coco_tree, tmp_path):
    coco_tree.content["annotations"] = [coco_tree.annotation(id=n, category_id=1.5) for n in range(1, 1001)]
    coco_tree.content["annotations"].append(coco_tree.annotation(id=1001))
    records, _ = read(coco_tree)
    classes = [(number, f"{number}") for number in range(1, 1000)]
    write_coco(tmp_path / "new.json", records, classes[:300])
    assert len(json.loads((tmp_path / "new.json").read_text())["annotations"]) == 300_001
    with pytest.raises(ValueError, match=r"a.png has 1000 objects whose class is not known.*all 999 classes"):
        write_coco(tmp_path / "new.json", records, classes)


def test_header_with_keeps_what_is_stated_and_adds_the_other_classes():
    header = {"info": "x", "categories": [{"id": 7, "name": "thing", "supercategory": "s"}]}
    made = header_with(header, [(7, "thing"), (9, "category 9")])
    assert made == {"info": "x", "categories": [*header["categories"], {"id": 9, "name": "category 9"}]}
    assert len(header["categories"]) == 1  # the given one stays as it is
    assert header_with({}, [(1, "a")]) == {"categories": [{"id": 1, "name": "a"}]}


def test_a_category_that_only_groups_the_others_is_no_label(coco_tree):
    """Roboflow's first category."""
    coco_tree.content["categories"] = [
        {"id": 0, "name": "things", "supercategory": "none"},
        {"id": 1, "name": "thing", "supercategory": "things"},
    ]
    _, report = read(coco_tree)
    assert report.classes == ["1 thing (category id 1)"] and report.counts == {"grouping_category": 1}
    assert not report.needs_attention
    coco_tree.content["annotations"].append(coco_tree.annotation(id=2, category_id=0))
    assert len(read(coco_tree)[1].classes) == 2


def test_a_class_that_is_named_like_what_groups_it_keeps_its_name(coco_tree):
    """Roboflow's project "fish" with the one class "fish"."""
    coco_tree.content["categories"] = [
        {"id": 0, "name": "fish", "supercategory": "none"},
        {"id": 1, "name": "fish", "supercategory": "fish"},
    ]
    _, report = read(coco_tree)
    assert report.classes == ["1 fish (category id 1)"] and report.counts == {"grouping_category": 1}
    assert read(coco_tree, classes=["fish"])[1].classes == ["1 fish (category id 1)"]
    coco_tree.content["annotations"].append(coco_tree.annotation(id=2, category_id=0))
    _, report = read(coco_tree)
    assert report.classes == ["1 fish (0) (category id 0)", "2 fish (category id 1)"]
    assert report.counts == {"duplicate_category_name": 1}


def test_an_image_that_ends_alike_in_a_folder_above_is_not_taken(tmp_path):
    content = {
        "images": [{"id": 1, "file_name": "1.png", "width": 60, "height": 40}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 8, 20, 16]}],
        "categories": [{"id": 1, "name": "thing"}],
    }
    for folder in ("labels_of_mine", "annotations"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file.json").write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "data" / "another_set").mkdir(parents=True)
    Image.new("RGB", (60, 40)).save(tmp_path / "data" / "another_set" / "1.png")
    assert image_folder(str(tmp_path / "labels_of_mine" / "file.json"), None, None, ["1.png"]) is None
    assert image_folder(str(tmp_path / "annotations" / "file.json"), None, None, ["1.png"]) == str(tmp_path / "data")


def test_categories_without_a_name_get_one_of_their_own(coco_tree):
    coco_tree.content["categories"] = [{"id": 1, "name": "category 7"}, {"id": " ", "name": "blank"}]
    with pytest.raises(ValueError, match="category number 2 has no id or no name"):
        read_index(coco_tree.write(), coco_tree.images, ReadOptions(), Report())
    coco_tree.content["categories"][1]["name"] = float("inf")  # what is written of it would be null
    with pytest.raises(ValueError, match="category number 2 has no id or no name"):
        read_index(coco_tree.write(), coco_tree.images, ReadOptions(), Report())
    coco_tree.content["categories"].pop()
    coco_tree.content["annotations"].append(coco_tree.annotation(id=2, category_id=7))
    index = read_index(coco_tree.write(), coco_tree.images, ReadOptions(keep_unlisted=True), Report())
    assert index.classes == [(1, "category 7"), (7, "category 7 (7)")]
    coco_tree.content["categories"] = []
    coco_tree.content["annotations"][1]["category_id"] = "a\nb"
    index = read_index(coco_tree.write(), coco_tree.images, ReadOptions(), Report())
    assert [name for _, name in index.classes] == ["category 1", "category a b"]
