"""Pascal VOC xml and PNG -> records."""

import dataclasses

import numpy as np
import pytest
import tool_trees
from PIL import Image

from lpg_hf._class_lists import read_class_list
from lpg_hf.data._formats.voc import is_thin, parse_xml, read_voc, write_voc
from lpg_hf.data.check import check_source
from lpg_hf.data.convert import convert_labels
from lpg_hf.data.options import SOURCE_OPTIONS, ReadOptions
from lpg_hf.data.records import NO_CLASS
from lpg_hf.data.report import Report
from lpg_hf.data.sources import open_source
from lpg_hf.labels import VOC_CLASSES


BOX = (10.0, 8.0, 30.0, 24.0)


def read(tree, split=None, classes=None, **options):
    report = Report()
    return list(read_voc(tree.root, ReadOptions(split=split, classes=classes, **options), report=report)), report


def only_object(tree, **options):
    records, report = read(tree, **options)
    assert len(records) == 1 and len(records[0].objects) == 1, report.summary()
    return records[0].objects[0], report


def replace(tree, *objects, **changes):
    tree.add("a", tree.xml(objects=list(objects) or None, **changes))


def test_base_voc_is_the_box_of_base_coco(voc_tree):
    item, report = only_object(voc_tree)
    assert item.box == BOX and item.category == 0 and item.area == 320 and not item.difficult
    assert report.counts == {} and report.classes == ["1 thing"]


def test_voc_one_based_round_trip(voc_tree, tmp_path):
    replace(voc_tree, voc_tree.object(box=(1, 1, 60, 40)), voc_tree.object(box=(1, 1, 1, 1)))
    records, report = read(voc_tree)
    assert [item.box for item in records[0].objects] == [(0, 0, 60, 40), (0, 0, 1, 1)]
    assert report.counts == {"one_pixel_box": 1}
    write_voc(voc_tree.root / "Annotations" / "a.xml", records[0], ["thing"])
    assert read(voc_tree)[0] == records
    assert parse_xml(str(voc_tree.root / "Annotations" / "a.xml")).objects[1].corners == [1, 1, 1, 1]


@pytest.mark.parametrize(
    "box, back",
    [
        ((10.38, 8.3, 11.31, 8.8), (10.345, 8.05, 11.345, 9.05)),
        ((0, 0, 0.5, 30), (0, 0, 1, 30)),
        ((59.75, 39.5, 60, 40), (59, 39, 60, 40)),
        ((0.1, 0.2, 1.1, 1.2), (0.1, 0.2, 1.1, 1.2)),
    ],
)
def test_a_box_thinner_than_a_pixel_is_written_as_the_nearest_that_is_not(voc_tree, box, back):
    record = read(voc_tree)[0][0]
    record.objects[0].box = box
    write_voc(voc_tree.root / "Annotations" / "a.xml", record, ["thing"])
    item, report = only_object(voc_tree)
    assert item.box == pytest.approx(back) and set(report.counts) <= {"one_pixel_box"}
    assert is_thin(box) == (box != back)


def test_zero_based_switch_takes_corners_as_they_are(voc_tree):
    replace(voc_tree, voc_tree.object(box=(0, 0, 30, 24)))
    item, report = only_object(voc_tree)
    assert item.box == (0, 0, 30, 24) and report.counts == {"zero_coordinate": 1, "clipped_box": 1}
    item, report = only_object(voc_tree, zero_based=True)
    assert item.box == (0, 0, 30, 24) and report.counts == {}
    replace(voc_tree)
    assert only_object(voc_tree, zero_based=True)[0].box == (11, 9, 30, 24)


@pytest.mark.parametrize("make", [tool_trees.labelimg_voc, tool_trees.cvat_voc, tool_trees.label_studio_voc])
def test_boxes_of_tools_that_count_from_zero_are_counted_with_the_remedy(tmp_path, make):
    make(tmp_path)
    checked = check_source(tmp_path)
    assert checked.report.counts == {"counted_from_zero": 1} and checked.passed
    assert "boxes look 0-based: 1 of 1 are of files as LabelImg, CVAT and Label Studio write them" in checked.summary()
    checked = check_source(tmp_path, options=dataclasses.replace(SOURCE_OPTIONS, zero_based=True))
    assert checked.report.counts == {} and "0-based" not in checked.summary()


def test_official_files_and_those_of_this_package_are_not_taken_for_a_tools(voc_tree, tmp_path):
    source = "<source><database>The VOC2012 Database</database><annotation>PASCAL VOC2012</annotation></source>"
    text = voc_tree.xml(objects=[voc_tree.object(box=("45.70000076293945", 9, 50, 24))])
    voc_tree.add("a", text.replace("<size>", f"{source}<size>"))
    assert read(voc_tree)[1].counts == {}
    convert_labels(voc_tree.root, tmp_path / "new", "voc")
    report = Report()
    found = list(read_voc(tmp_path / "new", images=voc_tree.root / "JPEGImages", report=report))
    assert found == read(voc_tree)[0] and report.counts == {}


def test_a_folder_of_xml_files_is_a_split_where_there_is_no_list(tmp_path):
    tool_trees.roboflow_voc(tmp_path)
    for split, name in (("train", "train/train.jpg"), ("valid", "valid/valid.jpg"), ("val", "valid/valid.jpg")):
        source = open_source(tmp_path, options=dataclasses.replace(SOURCE_OPTIONS, split=split), report=Report())
        assert source.file_names == [name]
    with pytest.raises(FileNotFoundError, match="no split list 'test'"):
        open_source(tmp_path, options=dataclasses.replace(SOURCE_OPTIONS, split="test"), report=Report())


def test_swapped_corners(voc_tree):
    replace(voc_tree, voc_tree.object(box=(30, 24, 11, 9)))
    item, report = only_object(voc_tree)
    assert item.box == BOX and report.counts == {"corners_swapped": 1}


def test_border_and_degenerate_boxes(voc_tree):
    boxes = [(-4, -2, 15, 13), (51, 31, 80, 60), (20, 9, 19, 24), (90, 9, 95, 24), (11, 9, 30, 24)]
    replace(voc_tree, *(voc_tree.object(box=box) for box in boxes))
    records, report = read(voc_tree)
    assert [item.box for item in records[0].objects] == [(0, 0, 15, 13), (50, 30, 60, 40), (18, 8, 20, 24), BOX]
    assert report.counts == {"clipped_box": 2, "corners_swapped": 1, "box_outside": 1}
    assert "a.xml: object 4" in report.places["box_outside"][0]


def test_degenerate_zero_based_box_is_counted(voc_tree):
    replace(voc_tree, voc_tree.object(box=(20, 9, 20, 24)), voc_tree.object())
    _, report = read(voc_tree, zero_based=True)
    assert report.counts == {"degenerate_box": 1}


def test_flags_are_optional_and_difficult_is_kept(voc_tree):
    replace(voc_tree, voc_tree.object(flags=""), voc_tree.object(flags="<difficult>1</difficult>"))
    records, report = read(voc_tree)
    assert [item.difficult for item in records[0].objects] == [False, True] and report.counts == {}


def test_floats_and_white_space_are_not_rounded(voc_tree):
    replace(voc_tree, voc_tree.object(box=("12.0", "\n 15.70000076293945 ", " 30 ", "24")))
    item, report = only_object(voc_tree)
    assert item.box == pytest.approx((11, 14.7, 30, 24), abs=1e-6) and report.counts == {}


@pytest.mark.parametrize("text", ["", "x", "nan", "inf"])
def test_coordinates_that_are_no_numbers_are_skipped_and_counted(voc_tree, text):
    voc_tree.add("b", voc_tree.xml("b.png", objects=[voc_tree.object(box=(text, 9, 30, 24)), voc_tree.object()]))
    item, report = only_object(voc_tree)
    assert item.box == BOX and report.counts == {"invalid_box": 1, "incomplete_image": 1}


@pytest.mark.parametrize("size", [None, (60, 40), (0, 0, 3), ("", "", "")])
def test_size_from_the_image(voc_tree, size):
    replace(voc_tree, size=size)
    records, report = read(voc_tree)
    assert (records[0].height, records[0].width) == (40, 60)
    assert report.counts == ({} if size == (60, 40) else {"size_from_image": 1})


@pytest.mark.parametrize("first", [True, False])
def test_part_boxes_are_not_objects(voc_tree, first):
    part = "<part><name>head</name><bndbox><xmin>53</xmin><ymin>1</ymin><xmax>58</xmax><ymax>5</ymax></bndbox></part>"
    item = voc_tree.object(inner=part)
    if not first:
        item = item.replace(part, "").replace("</object>", part + "</object>")
    replace(voc_tree, item)
    assert only_object(voc_tree)[0].box == BOX


def test_object_without_a_box_is_counted(voc_tree):
    objects = ["<object><name>thing</name></object>", "<object><name>thing</name><bndbox/></object>"]
    voc_tree.add("b", voc_tree.xml("b.png", objects=[*objects, voc_tree.object()]))
    records, report = read(voc_tree)
    assert [record.file_name for record in records] == ["a.png"]
    assert report.counts == {"no_box": 1, "invalid_box": 1, "incomplete_image": 1}


def test_an_object_with_two_boxes_is_two_objects(voc_tree):
    second = "<bndbox><xmin>41</xmin><ymin>21</ymin><xmax>52</xmax><ymax>34</ymax></bndbox></object>"
    replace(voc_tree, voc_tree.object().replace("</object>", second))
    records, report = read(voc_tree)
    assert [item.box for item in records[0].objects] == [BOX, (40, 20, 52, 34)]
    assert report.places == {"repeated_element": ["a.xml: object 1 2 <bndbox>"]}


def test_an_object_without_a_name_is_an_object_or_a_region_of_no_class(voc_tree):
    replace(voc_tree, voc_tree.object(), "<object><name> </name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax>"
            "<ymax>5</ymax></bndbox></object>")  # fmt: skip
    records, report = read(voc_tree, keep_unlisted=True)
    assert [item.category for item in records[0].objects] == [0, 1] and report.classes == ["1 thing", "2 object"]
    assert report.counts == {"no_class_name": 1, "unlisted_class": 1}
    records, report = read(voc_tree)
    assert [item.category for item in records[0].objects] == [0, NO_CLASS] and records[0].objects[1].iscrowd
    assert report.counts == {"no_class_name": 1, "unknown_class": 1} and report.objects == 1


def test_images_without_objects_are_counted(voc_tree):
    voc_tree.add("b", voc_tree.xml("b.png", objects=[""]))
    records, report = read(voc_tree)
    assert len(records) == 1 and report.counts == {"image_without_object": 1}
    records, report = read(voc_tree, keep_empty=True)
    assert [len(record.objects) for record in records] == [1, 0] and report.counts == {"empty_image": 1}


@pytest.mark.parametrize("filename", ["a", "stale.jpg", "../../elsewhere.png", None, " "])
def test_the_annotation_files_own_name_finds_the_image(voc_tree, filename):
    replace(voc_tree, filename=filename)
    records, report = read(voc_tree)
    assert records[0].file_name == "a.png" and report.counts == {}


@pytest.mark.parametrize("suffix", ["png", "jpeg", "JPG", "bmp", "webp", "tif", "TIFF"])
def test_every_image_suffix_is_found(voc_tree, suffix):
    voc_tree.add("x", voc_tree.xml("x"), image=f"x.{suffix}")
    records, _ = read(voc_tree)
    assert records[1].file_name == f"x.{suffix}"


def test_two_images_of_one_name_are_reported(voc_tree):
    voc_tree.add("x", voc_tree.xml("x"), image="x.jpg")
    voc_tree.add("x", voc_tree.xml("x"), image="x.png")
    voc_tree.add("y", voc_tree.xml("y.jpg"), image="y.jpg")
    voc_tree.add("y", voc_tree.xml("y.jpg"), image="y.png")
    records, report = read(voc_tree)
    assert [record.file_name for record in records] == ["a.png", "y.jpg"]
    assert report.counts == {"ambiguous_image": 1, "same_name_images": 1}
    assert report.places["ambiguous_image"] == ["x.xml: x.jpg, x.png"]


def test_image_of_another_name_is_found_by_filename(voc_tree):
    voc_tree.add("x", voc_tree.xml("IMG 7.png"), image="IMG 7.png")
    voc_tree.add("y", voc_tree.xml("IMG 7.png"), image="y.png")
    records, report = read(voc_tree)
    assert [record.file_name for record in records] == ["a.png", "IMG 7.png", "y.png"]
    assert report.counts == {"file_name_differs": 1}


@pytest.mark.parametrize(
    "filename, kind, refusal",
    [
        ("C:\\photos\\b.jpg", "image_by_name", "unsafe_path"),
        ("/home/me/b.jpg", "image_by_name", "unsafe_path"),
        ("photos/b.jpg", "image_by_name", "ambiguous_image"),
        ("b.png", "other_suffix", "ambiguous_image"),
    ],
)
def test_an_image_that_only_the_end_of_filename_fits_is_used_and_counted(voc_tree, filename, kind, refusal):
    voc_tree.add("x", voc_tree.xml(filename), image="b.jpg")
    records, report = read(voc_tree)
    assert [record.file_name for record in records] == ["a.png", "b.jpg"] and report.counts == {kind: 1}
    # The image of another annotation file is never meant.
    voc_tree.add("b", voc_tree.xml("b.jpg"), image="b.jpg")
    records, report = read(voc_tree)
    assert [(record.image_id, record.file_name) for record in records] == [("a", "a.png"), ("b", "b.jpg")]
    assert report.counts == {refusal: 1}


def test_unknown_classes_are_counted_by_name_and_all_keeps_them(voc_tree):
    replace(voc_tree, voc_tree.object("cat"), voc_tree.object("foo"), voc_tree.object("foo"))
    records, report = read(voc_tree, classes=["cat"])
    assert [item.category for item in records[0].objects] == [0, NO_CLASS, NO_CLASS]
    assert report.counts == {"unknown_class": 2} and report.details["unknown_class"] == {"foo": 2}
    records, report = read(voc_tree, classes="all")
    assert report.classes == ["1 cat", "2 foo"] and [item.category for item in records[0].objects] == [0, 1, 1]


def test_no_object_of_the_classes_is_an_error_that_counts_the_names(voc_tree):
    with pytest.raises(ValueError, match=r"(?s)no image of .* has an object of the classes cat.*other_class: 1"):
        read(voc_tree, classes=["cat"])


def test_all_classes_of_files_without_objects_is_an_error(voc_tree):
    replace(voc_tree, "")
    with pytest.raises(ValueError, match="no annotation file holds an object with a name"):
        read(voc_tree, classes="all", keep_empty=True)


@pytest.mark.parametrize(
    "text", ["thing\nother\n", "background\nthing\nother\n", "\ufeff__background__\r\nthing\r\n\r\nother"]
)
def test_class_list_with_or_without_background(tmp_path, text):
    (tmp_path / "classes.txt").write_bytes(text.encode("utf-8"))
    assert read_class_list(tmp_path / "classes.txt") == ["thing", "other"]


@pytest.mark.parametrize(
    "text, message", [("", "no class names"), ("background", "no class names"), ("a\nb\na", "twice: a")]
)
def test_bad_class_lists_are_errors(tmp_path, text, message):
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_class_list(tmp_path / "classes.txt")


def test_without_a_class_list_the_classes_are_vocs(voc_tree):
    (voc_tree.root / "classes.txt").unlink()
    replace(voc_tree, voc_tree.object("aeroplane"), voc_tree.object("tvmonitor"))
    records, report = read(voc_tree)
    assert [item.category for item in records[0].objects] == [0, 19] and len(report.classes) == len(VOC_CLASSES)


def test_split_lists_are_found_in_segmentation_then_main(voc_tree):
    voc_tree.add("b")
    voc_tree.add_list("train", "b")
    voc_tree.add_list("train", "a", folder="Main")
    voc_tree.add_list("other", "a 1", "b -1", "b", "", folder="Main")
    assert [record.image_id for record in read(voc_tree, "train")[0]] == ["b"]
    records, report = read(voc_tree, "other")
    assert [record.image_id for record in records] == ["a", "b"] and report.counts == {"duplicate_entry": 1}


@pytest.mark.parametrize(
    "other",
    [
        "<object><name>van</name>",
        "<object>\n\t<name> van </name>",
        '<object id="1"><name>van</name>',
        "<object><pose>Left</pose><name><![CDATA[van]]></name>",
        "<object><name>v&#97;n</name>",
    ],
)
def test_a_class_has_one_label_in_all_splits(voc_tree, other):
    (voc_tree.root / "classes.txt").unlink()
    text = voc_tree.object("truck").replace("<object><name>truck</name>", other)
    replace(voc_tree, voc_tree.object("truck"), voc_tree.object("bus"))
    voc_tree.add("b", voc_tree.xml("b.png", objects=[text]))
    voc_tree.add("c", voc_tree.xml("c.png", objects=[voc_tree.object("truck").replace("<name>truck</name>", "")]))
    voc_tree.add("d", "<annotation><object><name>broken</name>")
    for split, name in (("train", "a"), ("val", "b"), ("test", "c")):
        voc_tree.add_list(split, name)
    for split in ("train", "val", "test"):
        for options, labels in (({"keep_unlisted": True}, (21, 22, 23)), ({"classes": "all"}, (2, 3, 4))):
            records, report = read(voc_tree, split, **options)
            names = [f"{label} {name}" for label, name in zip(labels, ("object", "truck", "van"))]
            assert report.classes[-3:] == names and len(records) == 1
            assert "unreadable_annotation" not in report.counts


def test_a_name_that_ends_like_a_flag_is_a_name(voc_tree):
    voc_tree.add("图片 1")
    voc_tree.add_list("train", "图片 1", "a.png")
    assert [record.file_name for record in read(voc_tree, "train")[0]] == ["图片 1.png", "a.png"]


def test_missing_split_list_names_those_that_exist(voc_tree):
    voc_tree.add_list("train_mix", "a")
    voc_tree.add_list("val", "a", folder="Main")
    with pytest.raises(
        FileNotFoundError, match="no split list 'tain'.*Segmentation/train_mix.txt, ImageSets/Main/val.txt"
    ):
        read(voc_tree, "tain")
    with pytest.raises(ValueError, match="'../train' climbs out"):
        read(voc_tree, "../train")
    voc_tree.add_list("empty")
    with pytest.raises(ValueError, match="empty.txt is empty"):
        read(voc_tree, "empty")


def test_missing_files_are_errors_unless_allowed(voc_tree):
    voc_tree.add("b")
    voc_tree.add("c")
    voc_tree.add_list("train", "a", "b", "c", "d")
    (voc_tree.root / "JPEGImages" / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 4 annotation files are missing in .*Annotations: d.xml"):
        read(voc_tree, "train")
    with pytest.raises(FileNotFoundError, match=r"1 of 3 images are missing in .*JPEGImages: b \(b.png\)"):
        read(voc_tree)
    records, report = read(voc_tree, "train", allow_missing=True)
    assert len(records) == 2 and report.counts == {"missing_annotation": 1, "missing_image": 1}


def test_images_without_xml_are_counted(voc_tree):
    voc_tree.add("b")
    (voc_tree.root / "Annotations" / "b.xml").unlink()
    voc_tree.add("x", voc_tree.xml("IMG 7.png"), image="IMG 7.png")  # used under another name
    report = read(voc_tree)[1]
    assert report.counts == {"image_without_annotation": 1}
    assert report.places["image_without_annotation"] == ["b.png"]


@pytest.mark.parametrize(
    "xml, text",
    [
        ("<annotation><object>", "not valid xml"),
        ("", "not valid xml"),
        ("<html></html>", "top element is <html>"),
        ('<!DOCTYPE x [<!ENTITY e "eeee">]><annotation>&e;</annotation>', "Entit"),
    ],
)
def test_one_bad_xml_is_counted_and_stops_nothing(voc_tree, xml, text):
    voc_tree.add("b", xml)
    records, report = read(voc_tree)
    assert len(records) == 1 and report.counts["unreadable_annotation"] == 1
    assert (
        report.places["unreadable_annotation"][0].startswith("b.xml: ")
        and text in report.places["unreadable_annotation"][0]
    )


@pytest.mark.parametrize(
    "remove, text",
    [("Annotations", "annotation folder not found"), ("JPEGImages", "needs Annotations/ and JPEGImages/")],
)
def test_missing_folders_are_named(voc_tree, remove, text):
    (voc_tree.root / remove).rename(voc_tree.root / "away")
    with pytest.raises(FileNotFoundError, match=text):
        read(voc_tree)


def test_parent_folder_of_the_data_is_recognised(voc_tree):
    with pytest.raises(FileNotFoundError, match="Did you mean the folder voc in it"):
        list(read_voc(voc_tree.root.parent))


def test_links_and_names_that_lead_outside_are_refused(voc_tree, tmp_path):
    for name in "bcd":
        voc_tree.add(name)
    outside = tmp_path / "outside.png"
    (voc_tree.root / "JPEGImages" / "b.png").rename(outside)
    (voc_tree.root / "JPEGImages" / "b.png").symlink_to(outside)
    (voc_tree.root / "JPEGImages" / "c.png").unlink()
    voc_tree.add("c", voc_tree.xml("../../outside.png"))
    (voc_tree.root / "JPEGImages" / "c.png").unlink()
    (voc_tree.root / "Annotations" / "d.xml").rename(tmp_path / "d.xml")
    (voc_tree.root / "Annotations" / "d.xml").symlink_to(tmp_path / "d.xml")
    voc_tree.add_list("train", "a", "b", "c", "d", "../../etc/passwd")
    records, report = read(voc_tree, "train")
    assert [record.image_id for record in records] == ["a"] and report.counts == {"unsafe_path": 4}


def test_sub_folders(voc_tree):
    voc_tree.add("set1/x", voc_tree.xml("x.png"))
    records, _ = read(voc_tree)
    assert [record.file_name for record in records] == ["a.png", "set1/x.png"]


def test_stated_size_differs(voc_tree):
    replace(voc_tree, voc_tree.object(box=(21, 17, 60, 48)), size=(120, 80, 3))
    voc_tree.add("b")
    records, report = read(voc_tree)
    assert [record.image_id for record in records] == ["b"] and report.counts == {"size_mismatch": 1}
    records, report = read(voc_tree, size_mismatch="rescale")
    assert records[0].objects[0].box == BOX and report.counts == {"size_rescaled": 1}


def test_masks_are_found_only_on_request(voc_tree):
    assert read(voc_tree)[0][0].mask_path is None
    path = voc_tree.add_mask("a")
    assert read(voc_tree, masks=True)[0][0].mask_path == str(path)


def test_missing_masks_are_an_error_unless_allowed(voc_tree):
    voc_tree.add("b")
    voc_tree.add_mask("a")
    with pytest.raises(FileNotFoundError, match="1 of 2 class masks are missing in .*SegmentationClass: b.png"):
        read(voc_tree, masks=True)
    records, report = read(voc_tree, masks=True, allow_missing=True)
    assert [record.image_id for record in records] == ["a"] and report.counts == {"missing_mask": 1}


def test_mask_value_beyond_the_classes_is_an_error(voc_tree):
    (voc_tree.root / "classes.txt").write_text("thing\nb\nc\n")
    values = np.zeros((40, 60), dtype=np.uint8)
    values[0, 0], values[1, 1] = 7, 255
    voc_tree.add_mask("a", values)
    with pytest.raises(ValueError, match="a.png holds the value 7, but there are 3 classes"):
        read(voc_tree, masks=True)


@pytest.mark.parametrize("shape", [(41, 60), (60, 40)])
def test_mask_of_another_size_is_an_error_that_names_both(voc_tree, shape):
    voc_tree.add_mask("a", np.zeros(shape, dtype=np.uint8))
    with pytest.raises(
        ValueError, match=rf"SegmentationClass/a.png is {shape[1]} x {shape[0]}, its image a.png 60 x 40"
    ):
        read(voc_tree, masks=True)


def test_colour_mask_is_refused(voc_tree):
    Image.new("RGB", (60, 40)).save(voc_tree.root / "SegmentationClass" / "a.png")
    with pytest.raises(ValueError, match="mode RGB; it must be a palette or grey PNG"):
        read(voc_tree, masks=True)


def test_classes_that_would_renumber_the_masks_are_refused(voc_tree):
    (voc_tree.root / "classes.txt").write_text("other\nthing\n")
    voc_tree.add_mask("a")
    for classes in (["thing"], "all"):
        with pytest.raises(ValueError, match="other labels than the class masks"):
            read(voc_tree, classes=classes, masks=True)
        assert len(read(voc_tree, classes=classes)[0]) == 1
    assert len(read(voc_tree, classes=["other", "thing", "more"], masks=True)[0]) == 1


@pytest.mark.parametrize("name", ["classes.txt", "ImageSets/Main/train.txt"])
def test_a_list_that_is_no_utf_8_is_named(voc_tree, name):
    (voc_tree.root / name).write_bytes("a\ncaf\xe9\n".encode("latin-1"))
    with pytest.raises(ValueError, match=f"{name} is not UTF-8 text: byte 5. Save it as UTF-8"):
        list(read_voc(voc_tree.root, ReadOptions(split="train" if "train" in name else None)))
