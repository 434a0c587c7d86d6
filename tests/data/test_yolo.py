import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from tool_trees import roboflow_darknet
from trees import HEIGHT, WIDTH, make_image

from lpg_hf.data._examples import label_map
from lpg_hf.data._formats import yolo, yolo_layout
from lpg_hf.data._formats.yolo import join_polygons, mask_to_polygons, read_index, read_yolo, write_yolo, yolo_text
from lpg_hf.data._recognise import recognise_format
from lpg_hf.data.check import check_source
from lpg_hf.data.load import class_names, load_boxes
from lpg_hf.data.options import ReadOptions
from lpg_hf.data.records import NO_CLASS, BoxObject, Record
from lpg_hf.data.report import Report


LINE = "0 0.333333 0.4 0.333333 0.4"
OUTLINE = "0 0.166667 0.2 0.5 0.2 0.5 0.6 0.166667 0.6"


def records(root, split=None, images=None, **options):
    report = Report()
    return list(read_yolo(root, ReadOptions(split=split, **options), images=images, report=report)), report


def only(root, *args, **options):
    found, report = records(root, *args, **options)
    assert len(found) == 1
    return found[0], report


def boxes(record):
    return [pytest.approx(item.box, abs=1e-3) for item in record.objects]


BASE_BOX = (10, 8, 30, 24)


def test_base_yolo_is_the_box_of_base_coco(yolo_tree):
    record, report = only(yolo_tree.root)
    assert boxes(record) == [BASE_BOX] and (record.height, record.width) == (HEIGHT, WIDTH)
    assert (record.file_name, record.image_id, record.objects[0].id) == ("a.png", "a", 1)
    assert report.counts == {} and report.classes == ["1 thing (class 0)"]


def make_layout(tree, layout):
    root = tree.root
    if layout == "flat":
        shutil.move(root / "images" / "a.png", root / "a.png")
        shutil.move(root / "labels" / "a.txt", root / "a.txt")
        return root
    if layout in ("split inside", "split outside"):
        for kind, name in (("images", "a.png"), ("labels", "a.txt")):
            folder = root / (f"{kind}/train" if layout == "split inside" else f"train/{kind}")
            folder.mkdir(parents=True)
            shutil.move(root / kind / name, folder / name)
            if layout == "split outside":
                (root / kind).rmdir()
        return root
    return {"root": root, "labels": root / "labels", "images": root / "images"}[layout]


def test_a_folder_of_labels_with_a_folder_for_each_split_is_recognised(yolo_tree):
    root = make_layout(yolo_tree, "split inside")
    assert recognise_format(root / "labels") == recognise_format(root / "labels" / "train") == "yolo"
    record, report = only(root / "labels")
    assert boxes(record) == [BASE_BOX] and record.file_name == "train/a.png" and report.counts == {}


@pytest.mark.parametrize("split", [None, "train"])
@pytest.mark.parametrize("layout", ["flat", "split inside", "split outside", "labels", "images", "root"])
def test_layouts(yolo_tree, layout, split):
    root = make_layout(yolo_tree, layout)
    if split is not None and "split" not in layout:
        with pytest.raises(FileNotFoundError, match="no split 'train'"):
            records(root, split)
        return
    record, report = only(root, split)
    assert boxes(record) == [BASE_BOX] and report.counts == {} and record.file_name.endswith("a.png")


def test_other_image_folder(yolo_tree, tmp_path):
    shutil.move(yolo_tree.root / "images", tmp_path / "photos")
    record, report = only(yolo_tree.root, images=tmp_path / "photos")
    assert boxes(record) == [BASE_BOX] and report.counts == {}
    record, _ = only(yolo_tree.root / "labels", images=tmp_path / "photos")
    assert boxes(record) == [BASE_BOX]


@pytest.mark.parametrize(
    "text",
    [
        "path: .\ntrain: images/train\nval: images/val\nnames: [dog, cat]\nnc: 2\n",
        "train: images/train\nval: [images/val]\nnames:\n  0: dog\n  1: cat\n",
        "train: ../images/train\nval: ../images/val\nnames: ['dog', 'cat']\n",
        "path: /nowhere/at/all\ntrain: images/train/\nval: images/val\nnames: {'0': dog, '1': cat}\n",
        "train: train.txt\nval: images\\val\nnames: [dog, cat]\r\nnc: 2\r\n",
        '\ufefftrain: "images\\train"\nval: images/val # comment\nnames: ["dog", "cat"]\n',
    ],
)
def test_data_yaml(yolo_tree, text):
    shutil.rmtree(yolo_tree.root / "images")
    shutil.rmtree(yolo_tree.root / "labels")
    yolo_tree.add("b", "1 0.5 0.5 1 1", split="train")
    yolo_tree.add("c", LINE, split="val")
    yolo_tree.write("train.txt", "./images/train/b.png\n")
    path = yolo_tree.write("data.yaml", text)
    for root in (yolo_tree.root, path):
        train, report = only(root, "train")
        assert (train.file_name, train.objects[0].category) == ("train/b.png", 1)
        assert report.classes == ["1 dog (class 0)", "2 cat (class 1)"] and not report.needs_attention
        assert only(root, "val")[0].file_name == "val/c.png"
        assert [r.file_name for r in records(root)[0]] == ["train/b.png", "val/c.png"]


def test_data_yaml_whose_path_holds_nothing_of_what_it_names(yolo_tree):
    (yolo_tree.root / "sub").mkdir()
    yolo_tree.write("data.yaml", "path: sub\ntrain: images\nnames: [thing]\n")
    record, report = only(yolo_tree.root)
    assert boxes(record) == [BASE_BOX] and report.counts == {}


def test_paths_of_data_yaml_that_do_not_exist_are_counted_and_the_folder_is_used(yolo_tree):
    yolo_tree.write("data.yaml", "path: C:\\Users\\me\\data\ntrain: C:\\Users\\me\\data\\images\nnames: [thing]\n")
    record, report = only(yolo_tree.root)
    assert boxes(record) == [BASE_BOX] and report.counts == {"yaml_path": 1}


def test_places_of_data_yaml_may_lie_in_the_root_of_a_drive(yolo_tree):
    inside = f"{yolo_tree.root}/images".lstrip("/")
    assert os.path.samefile(yolo_layout._folder("/", inside), yolo_tree.root / "images")
    # A folder does not lie in another one because its name begins alike.
    assert yolo_layout._folder(f"{yolo_tree.root}/im", "../images") is None


def test_data_yaml_does_not_lead_outside_its_folder(yolo_tree, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    make_image().save(outside / "secret.png")
    (outside / "secret.txt").write_text(LINE)
    for text in (f"train: {outside}", "train: ../outside", f"path: {outside}\ntrain: .", "train: list.txt"):
        yolo_tree.write("data.yaml", f"{text}\nnames: [thing]\n")
        yolo_tree.write("list.txt", f"{outside}/secret.png\n../outside/secret.png\nimages/a.png\n")
        found, report = records(yolo_tree.root)
        assert [record.file_name for record in found] == ["a.png"]
        assert set(report.counts) <= {"yaml_path", "unsafe_path"}


@pytest.mark.parametrize("name", ["link.png", "folder"])
def test_links_that_lead_outside_are_refused(yolo_tree, tmp_path, name):
    outside = tmp_path / "outside"
    outside.mkdir()
    make_image().save(outside / "b.png")
    (outside / "b.txt").write_text(LINE)
    if name == "folder":
        (yolo_tree.root / "images" / "folder").symlink_to(outside)
        assert records(yolo_tree.root)[0][0].file_name == "a.png"
        (yolo_tree.root / "labels" / "b.txt").symlink_to(outside / "b.txt")
        make_image().save(yolo_tree.root / "images" / "b.png")
    else:
        (yolo_tree.root / "images" / name).symlink_to(outside / "b.png")
    found, report = records(yolo_tree.root)
    assert [record.file_name for record in found] == ["a.png"] and report.counts["unsafe_path"] == 1


@pytest.mark.parametrize(
    "text, message",
    [
        ("- a\n", "not a mapping"),
        ("names: [a\n", "not valid yaml"),
        ("names: 3\n", "not a list or a mapping"),
        ("names: {a: b}\n", "not a class number"),
        ("names: {true: b}\n", "not a class number: True"),
        ("names: {0.5: b}\n", "not a class number: 0.5"),
        ("names: {-1: b}\n", "the class number -1, but 1 names"),
        ("names: {999999: a}\n", "the class number 999999, but 1 names"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nnames: [*b, *b]\n", "in the place of a name"),
        (b"\xff\xfe\x00", "not UTF-8 text"),
        ("names: !!python/object/apply:os.system ['true']\n", "not valid yaml"),
    ],
)
def test_bad_data_yaml_is_an_error_that_names_it(yolo_tree, text, message):
    yolo_tree.write("data.yaml", text)
    with pytest.raises(ValueError, match=f"data.yaml.*{message}"):
        records(yolo_tree.root)


def test_nc_that_differs_from_the_names_is_counted(yolo_tree):
    yolo_tree.write("data.yaml", "names: [thing]\nnc: 4\n")
    assert records(yolo_tree.root)[1].counts == {"class_count_differs": 1}


def test_only_some_classes_may_have_no_name(yolo_tree):
    (yolo_tree.root / "classes.txt").unlink()
    names = ", ".join(f"{number}: n{number}" for number in range(20_000))
    for text, count in ((f"names: {{{names}, 29999: last}}", 30_000), ("nc: 10000", 10_000)):
        yolo_tree.write("data.yaml", text + "\n")
        assert len(read_index(yolo_tree.root, ReadOptions(), Report()).classes) == count
    yolo_tree.write("data.yaml", "nc: 10001\n")
    with pytest.raises(ValueError, match='data.yaml: "nc" is 10001, but at most 10000 classes'):
        records(yolo_tree.root)
    yolo_tree.write("data.yaml", "nc: true\n")
    with pytest.raises(ValueError, match="there is no class list"):
        records(yolo_tree.root)


@pytest.mark.parametrize("place", ["classes.txt", "obj.names", "labels/classes.txt", "labels/obj.names"])
def test_class_list_places(yolo_tree, place):
    (yolo_tree.root / "classes.txt").unlink()
    yolo_tree.write(place, "\ufeffthing\r\nother thing \r\n\r\n".encode())
    assert records(yolo_tree.root)[1].classes == ["1 thing (class 0)", "2 other thing (class 1)"]


def test_a_line_without_a_name_is_still_a_class_number(yolo_tree):
    yolo_tree.write("classes.txt", "thing\n\nlast\n")
    assert [name for _, name in read_index(yolo_tree.root, ReadOptions(), Report()).classes] == [
        "thing",
        "class 1",
        "last",
    ]


def test_two_classes_of_one_name_are_told_apart(yolo_tree):
    yolo_tree.write("classes.txt", "thing\nthing\n")
    index = read_index(yolo_tree.root, ReadOptions(), report := Report())
    assert index.classes == [(0, "thing (0)"), (1, "thing (1)")] and report.counts == {"duplicate_category_name": 2}


def test_a_name_that_tells_two_classes_apart_is_no_other_ones(yolo_tree):
    yolo_tree.write("classes.txt", "class 3\nclass 3\nclass 3 (1)\n")
    yolo_tree.add("a", "0 .5 .5 .1 .1\n3 .5 .5 .2 .2\n")
    index = read_index(yolo_tree.root, ReadOptions(keep_unlisted=True), Report())
    assert [name for _, name in index.classes] == ["class 3 (0)", "class 3 (1) (1)", "class 3 (1)", "class 3"]
    yolo_tree.write("classes.txt", "class 3\n")
    index = read_index(yolo_tree.root, ReadOptions(keep_unlisted=True), Report())
    assert [name for _, name in index.classes] == ["class 3", "class 3 (3)"]


def test_chosen_classes_keep_their_numbers(yolo_tree):
    yolo_tree.write("classes.txt", "a\nb\nc\n")
    yolo_tree.add("a", "0 .5 .5 .1 .1\n1 .5 .5 .2 .2\n2 .5 .5 .3 .3\n")
    report = Report()
    index = read_index(yolo_tree.root, ReadOptions(classes=["c", 1]), report)
    assert index.classes == [(1, "b"), (2, "c")] and [o.category for o in index.entries[0].objects] == [0, 1]
    assert report.details["other_class"] == {"a": 1}
    with pytest.raises(ValueError, match=r"\['d'\] are not in the class list: a, b, c"):
        read_index(yolo_tree.root, ReadOptions(classes=["d"]), Report())


def test_pixel_values_are_an_error_that_names_file_and_line(yolo_tree):
    yolo_tree.add("a", f"{LINE}\n0 1.07 1.06 0.2 0.2\n0 0.5 0.5 1.2 0.4\n")
    yolo_tree.add("b", f"{LINE}\n0 320 240 100 80\n")
    record, report = only(yolo_tree.root)
    assert boxes(record)[::2] == [BASE_BOX, (0, 12, 60, 28)]
    assert record.objects[1].box == pytest.approx((58.2, 38.4, 60, 40))
    assert [item.category for item in record.objects] == [0, NO_CLASS, 0] and record.objects[1].iscrowd
    assert report.counts == {"pixel_values": 1, "incomplete_image": 1, "centre_outside": 1, "clipped_box": 1}
    assert len(report.errors) == 1 and "labels/b.txt: line 2 holds pixels" in report.errors[0]
    assert report.places["centre_outside"][0].startswith("a.txt: line 2")


def test_duplicate_lines_are_used_once(yolo_tree):
    yolo_tree.add("a", f"{LINE}\n{LINE}\n0 0.5 0.5 0.2 0.2\n")
    record, report = only(yolo_tree.root)
    assert len(record.objects) == 2 and report.counts == {"duplicate_line": 1}
    assert report.places["duplicate_line"] == ["a.txt: line 2"]


def test_class_beyond_the_list(yolo_tree):
    yolo_tree.write("classes.txt", "a\nb\n")
    yolo_tree.add("a", "2 0.5 0.5 0.2 0.2\n")
    _, report = records(yolo_tree.root, keep_empty=True)
    assert len(report.errors) == 1 and "a.txt: line 1 has the class number 2" in report.errors[0]
    assert "holds 2 names" in report.errors[0] and report.details["unknown_class"] == {"class 2": 1}
    record, report = only(yolo_tree.root, keep_unlisted=True)
    assert record.objects[0].category == 2 and report.counts == {"unlisted_class": 1} and report.errors == []
    assert report.classes[-1] == "3 class 2 (class 2)"


@pytest.mark.parametrize("text", ["", "\n\n", None])
def test_empty_or_absent_class_list(yolo_tree, text):
    (yolo_tree.root / "classes.txt").unlink()
    if text is not None:
        yolo_tree.write("classes.txt", text)
    with pytest.raises(ValueError, match="holds no class names" if text is not None else "there is no class list"):
        records(yolo_tree.root)
    record, report = only(yolo_tree.root, keep_unlisted=True)
    assert boxes(record) == [BASE_BOX] and report.counts == {"unlisted_class": 1}
    assert only(yolo_tree.root, classes=["thing"])[1].counts == {}


def test_empty_is_background_and_missing_is_unlabelled(yolo_tree):
    yolo_tree.add("b", "")
    yolo_tree.add("c", None)
    found, report = records(yolo_tree.root, keep_empty=True)
    assert [(r.file_name, len(r.objects)) for r in found] == [("a.png", 1), ("b.png", 0)]
    assert report.counts == {"image_without_annotation": 1, "empty_image": 1}
    assert "unlabelled" in report.summary()
    shutil.rmtree(yolo_tree.root / "labels")
    with pytest.raises(FileNotFoundError, match="none of the 3 images.*images/a.txt"):
        records(yolo_tree.root)


def test_suffixes_in_any_case(yolo_tree):
    for name, image in (
        ("b", "b.JPG"),
        ("c", "c.PNG"),
        ("d", "d.Jpeg"),
        ("e", "e.WebP"),
        ("f", "f.TIF"),
        ("g", "g.bmp"),
    ):
        yolo_tree.add(name, LINE, image)
    shutil.move(yolo_tree.root / "labels" / "g.txt", yolo_tree.root / "labels" / "g.TXT")
    found, report = records(yolo_tree.root)
    assert [r.file_name for r in found] == ["a.png", "b.JPG", "c.PNG", "d.Jpeg", "e.WebP", "f.TIF", "g.bmp"]
    assert all(boxes(r) == [BASE_BOX] for r in found) and report.counts == {}


def test_other_txt_files_are_no_labels(yolo_tree):
    yolo_tree.write("labels/classes.txt", "thing\n")
    yolo_tree.write("labels/notes.txt", "Some prose about this dataset.\n")
    record, report = only(yolo_tree.root)
    assert boxes(record) == [BASE_BOX] and report.counts == {"label_without_image": 1}
    assert report.places["label_without_image"] == ["labels/notes.txt"]


@pytest.mark.parametrize("line", ["0 0.9515625 0.5 0.0984375 0.2", "0 0.75 0.5 0.5000002 0.2"])
def test_tiny_excess_is_clipped_without_a_word(yolo_tree, line):
    yolo_tree.add("a", line)
    record, report = only(yolo_tree.root)
    assert record.objects[0].box[2] == WIDTH and report.counts == {}


@pytest.mark.parametrize("column", ["0.87", "17"])  # a confidence, a track id
def test_boxes_of_a_detector_are_used_and_their_sixth_column_is_counted(yolo_tree, column):
    yolo_tree.add("a", f"{LINE} {column}")
    record, report = only(yolo_tree.root)
    assert boxes(record) == [BASE_BOX]
    assert report.counts == {"sixth_column": 1} and report.places["sixth_column"][0].startswith("a.txt: line 1")


@pytest.mark.parametrize(
    "line, kind",
    [
        ("0 0.5 0.5 0 0.5", "degenerate_box"),
        ("0 0.5 0.5 -0.5 0.5", "corners_swapped"),
        ("0 0.5 0.5 1.8 0.5", "clipped_box"),
        ("0 0.5 0.5", "invalid_line"),
        ("0 0.5 0.5 0.5 0.5 high", "invalid_line"),
        ("0 0.5 0.5 0.5 0.5 nan", "invalid_line"),
        ("-1 0.5 0.5 0.5 0.5 0.9", "invalid_line"),
        ("thing 0.5 0.5 0.5 0.5", "invalid_line"),
        ("-1 0.5 0.5 0.5 0.5", "invalid_line"),
        ("99999999999999999999 0.5 0.5 0.5 0.5", "invalid_line"),
        ("0.5 0.5 0.5 0.5 0.5", "invalid_line"),
        ("0 nan 0.5 0.5 0.5", "invalid_line"),
        ("0 inf 0.5 0.5 0.5", "invalid_line"),
        ("0,0.5,0.5,0.5,0.5", "invalid_line"),
    ],
)
def test_faulty_lines_are_counted_and_stop_nothing(yolo_tree, line, kind):
    yolo_tree.add("b", f"{line}\n{LINE}\n")
    found, report = records(yolo_tree.root)
    assert report.places[kind][0].startswith("b.txt: line 1")
    if kind == "invalid_line":  # Its object may lie anywhere in the image.
        assert [record.file_name for record in found] == ["a.png"]
        assert report.counts == {kind: 1, "incomplete_image": 1}
    else:
        assert boxes(found[1])[-1] == BASE_BOX and report.counts == {kind: 1}


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf0 0.333333 0.4 0.333333 0.4\r\n\r\n",
        b"\t0\t3.33333e-1\t.4  0.333333   4E-1 \t\r\n",
        b"0.0 +0.333333 0.4 0.333333 0.4\r",
        "0 0.333333 0.4 0.333333 0.4\n".encode("utf-16"),
    ],
)
def test_the_same_line_as_tools_write_it(yolo_tree, data):
    yolo_tree.add("a", data)
    record, report = only(yolo_tree.root)
    assert boxes(record) == [BASE_BOX] and report.counts == {}


def test_label_file_that_is_no_text_is_counted(yolo_tree):
    yolo_tree.add("b", b"0 0.5 \xff\xfa 0.5")
    found, report = records(yolo_tree.root)
    assert [r.file_name for r in found] == ["a.png"] and report.counts == {"unreadable_annotation": 1}


def test_outline_gives_box_and_mask(yolo_tree):
    yolo_tree.add("a", OUTLINE)
    record, report = only(yolo_tree.root, masks=True)
    mask = coco_mask.decode(record.objects[0].rle)
    assert boxes(record) == [BASE_BOX] and mask[8:24, 10:30].all() and mask.sum() == record.objects[0].area == 320
    assert report.counts == {} and only(yolo_tree.root)[0].objects[0].rle is None


def test_box_without_an_outline_has_no_mask(yolo_tree):
    record, report = only(yolo_tree.root, masks=True)
    assert record.objects[0].rle is None and report.counts == {"no_mask": 1}


def test_keypoints_are_not_an_outline(yolo_tree):
    yolo_tree.write("data.yaml", "names: [thing]\nkpt_shape: [2, 3]\n")
    yolo_tree.add("a", f"{LINE} 0.1 0.1 2 0.9 0.9 2\n")
    record, report = only(yolo_tree.root, masks=True)
    assert boxes(record) == [BASE_BOX] and report.counts == {"no_mask": 1}


def test_two_images_of_one_name_are_reported(yolo_tree):
    yolo_tree.add("b", LINE, "b.jpg")
    yolo_tree.add("b", LINE, "b.png")
    found, report = records(yolo_tree.root)
    assert [r.file_name for r in found] == ["a.png"] and report.counts == {"ambiguous_image": 1}
    assert report.places["ambiguous_image"] == ["b.txt: b.jpg, b.png"]


def test_fractions_are_of_the_upright_image(yolo_tree):
    exif = Image.Exif()
    exif[0x0112] = 6
    make_image().save(yolo_tree.root / "images" / "a.png", exif=exif)
    record, _ = only(yolo_tree.root)
    assert (record.height, record.width) == (WIDTH, HEIGHT)
    assert boxes(record) == [(40 / 6, 12, 20, 36)]


def test_images_that_cannot_be_used_are_counted(yolo_tree):
    yolo_tree.add("b", LINE)
    yolo_tree.add("c", LINE)
    data = (yolo_tree.root / "images" / "b.png").read_bytes()
    (yolo_tree.root / "images" / "b.png").write_bytes(data[: len(data) * 6 // 10])
    Image.new("1", (300, 300)).save(yolo_tree.root / "images" / "c.png")
    found, report = records(yolo_tree.root, max_pixels=WIDTH * HEIGHT)
    assert [r.file_name for r in found] == ["a.png"] and report.counts == {"truncated_image": 1, "image_too_large": 1}


def test_listed_images_that_do_not_exist_are_an_error_unless_allowed(yolo_tree):
    yolo_tree.write("data.yaml", "train: list.txt\nnames: [thing]\n")
    yolo_tree.write("list.txt", "images/a.png\nimages/gone.png\nimages/a.png\n")
    with pytest.raises(FileNotFoundError, match="1 of 2 images are missing.*gone.png"):
        records(yolo_tree.root)
    found, report = records(yolo_tree.root, allow_missing=True)
    assert [r.file_name for r in found] == ["a.png"]
    assert report.counts == {"missing_image": 1, "duplicate_entry": 1}
    yolo_tree.write("list.txt", "images/gone.png\n")
    with pytest.raises(FileNotFoundError, match=f"none of the 1 images exists in {yolo_tree.root}/images"):
        records(yolo_tree.root, allow_missing=True)


@pytest.mark.parametrize(
    "line, kind",
    [
        ("/home/me/data/images/b.png", "image_by_name"),
        ("data/images/b.png", "image_by_name"),
        ("images/b.jpg", "other_suffix"),
        ("images/b.png", None),
    ],
)
def test_listed_images_are_found_by_the_end_of_their_name(yolo_tree, line, kind):
    yolo_tree.add("b", LINE)
    yolo_tree.write("data.yaml", "train: list.txt\nnames: [thing]\n")
    yolo_tree.write("list.txt", f"images/a.png\n{line}\n")
    found, report = records(yolo_tree.root)
    assert [(r.file_name, len(r.objects)) for r in found] == [("a.png", 1), ("b.png", 1)]
    assert report.counts == ({} if kind is None else {kind: 1})
    yolo_tree.write("list.txt", f"images/a.png\n{line}\nother/images/b.png\n")
    found, report = records(yolo_tree.root)  # Two lines mean one image: neither is used, unless one is exact.
    assert [r.file_name for r in found] == ["a.png"] + ["b.png"] * (kind is None)
    refused = report.counts.get("ambiguous_image", 0) + report.counts.get("unsafe_path", 0)
    assert refused == (1 if kind is None else 2)


def test_sub_folders_spaces_and_other_scripts(yolo_tree):
    yolo_tree.add("données/图片 1", LINE)
    yolo_tree.add("set1/a", LINE)
    found, report = records(yolo_tree.root)
    assert [r.file_name for r in found] == ["a.png", "données/图片 1.png", "set1/a.png"]
    assert all(boxes(r) == [BASE_BOX] for r in found) and report.counts == {}


def test_folder_without_images_is_an_error_that_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no image in {tmp_path}"):
        read_index(tmp_path, ReadOptions(), Report())
    with pytest.raises(FileNotFoundError, match="YOLO folder not found: .*/gone"):
        read_index(tmp_path / "gone", ReadOptions(), Report())


def test_no_object_of_the_classes_is_an_error(yolo_tree):
    yolo_tree.write("classes.txt", "thing\nother\n")
    with pytest.raises(ValueError, match="no image of .* has an object of the classes other"):
        records(yolo_tree.root, classes=["other"])


def decoded(polygons, height, width):
    rle = coco_mask.frPyObjects([join_polygons(polygons)], height, width)
    return coco_mask.decode(coco_mask.merge(rle))


def test_polygons_of_random_masks_give_the_masks_again():
    random = np.random.default_rng(0)
    for _ in range(60):
        height, width = random.integers(1, 24, size=2)
        mask = random.random((height, width)) < random.random()
        if mask.any():
            assert (decoded(mask_to_polygons(mask), int(height), int(width)) == mask).all()


def test_a_rectangle_has_four_corners_and_a_hole_is_its_own_outline():
    mask = np.zeros((40, 60), bool)
    mask[8:24, 10:30] = True
    (polygon,) = mask_to_polygons(mask)
    assert sorted(zip(polygon[::2], polygon[1::2])) == [(10, 8), (10, 24), (30, 8), (30, 24)]
    mask[12:14, 15:20] = False
    assert [len(p) for p in mask_to_polygons(mask)] == [8, 8]
    assert mask_to_polygons(np.zeros((4, 4), bool)) == []


def test_written_labels_read_back_as_the_same_boxes_and_masks(yolo_tree):
    random = np.random.default_rng(1)
    size = np.array([WIDTH, HEIGHT])
    objects = []
    for number in range(20):
        corners = np.sort(random.random((2, 2)) * size, axis=0)
        mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
        x1, y1, x2, y2 = np.concatenate([np.floor(corners[0]), np.ceil(corners[1])]).astype(int)
        mask[y1:y2, x1:x2] = random.random((y2 - y1, x2 - x1)) < 0.7
        mask[y1, x1] = mask[y2 - 1, x2 - 1] = 1
        rle = coco_mask.encode(mask)
        rle["counts"] = rle["counts"].decode()
        objects.append(BoxObject(tuple(corners.ravel().tolist()), 0, float(mask.sum()), id=number + 1, rle=rle))
    record = Record("", "a.png", "a", (HEIGHT, WIDTH), objects)
    path = yolo_tree.root / "labels" / "a.txt"
    write_yolo(path, record)
    back, _ = only(yolo_tree.root)
    assert np.allclose([o.box for o in back.objects], [o.box for o in objects], atol=1e-6)
    write_yolo(path, record, masks=True)
    back, _ = only(yolo_tree.root, masks=True)
    assert [o.rle for o in back.objects] == json.loads(json.dumps([o.rle for o in objects]))


def test_a_file_with_outlines_holds_no_boxes(yolo_tree):
    rle = coco_mask.encode(np.asfortranarray(np.eye(HEIGHT, WIDTH, dtype=np.uint8)))
    objects = [BoxObject((0, 0, 40, 40), 0, 40, rle=rle), BoxObject(BASE_BOX, 1, 320)]
    path = yolo_tree.root / "labels" / "a.txt"
    write_yolo(path, Record("", "a.png", "a", (HEIGHT, WIDTH), objects), masks=True)
    lines = path.read_text().splitlines()
    assert len(lines[1].split()) == 9 and lines[1].startswith("1 0.166666666667 0.2 0.5 0.2")


def test_an_outline_is_looked_for_only_where_its_mask_is(monkeypatch):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[7:12, 20:31] = mask[14, 25] = 1
    mask[9, 22:24] = 0
    whole = join_polygons(mask_to_polygons(mask))
    seen = []
    monkeypatch.setattr(yolo, "mask_to_polygons", lambda part, _: seen.append(part.shape) or mask_to_polygons(part))
    record = Record("", "a.png", "a", (HEIGHT, WIDTH), [BoxObject((20, 7, 31, 15), 0, 54, rle=coco_mask.encode(mask))])
    numbers = np.array(yolo_text(record, masks=True).split()[1:], float).reshape(-1, 2) * (WIDTH, HEIGHT)
    assert seen == [(8, 11)] and numbers.ravel() == pytest.approx(np.array(whole))


def test_many_lines_in_one_file_take_no_longer_each(yolo_tree):
    import time

    def seconds(count):
        yolo_tree.add("a", "".join(f"0 {0.3 + i / count / 4:.9f} 0.5 0.2 0.2\n" for i in range(count)))
        start = time.thread_time()
        record, _ = only(yolo_tree.root)
        assert len(record.objects) == count
        return time.thread_time() - start

    seconds(1000)
    assert seconds(40_000) < 100 * max(seconds(2_000), 0.02)  # 400 times if each line were compared with each


def test_load_boxes_gives_rows_like_the_other_formats(yolo_tree, tmp_path):
    yolo_tree.add("a", OUTLINE)
    dataset = load_boxes("yolo", root=yolo_tree.root, masks=True)
    row = dataset[0]
    assert class_names(dataset) == ["thing"] and row["image"].size == (WIDTH, HEIGHT)
    assert row["objects"]["bbox"] == [pytest.approx([10, 8, 20, 16], abs=1e-3)]
    assert (label_map(row)[8:24, 10:30] == 1).all() and label_map(row).sum() == 320
    assert "segmentation" not in load_boxes("yolo", root=yolo_tree.root).features["objects"]
    shutil.move(yolo_tree.root / "images", tmp_path / "photos")
    assert len(load_boxes("yolo", annotations=yolo_tree.root / "labels", images=tmp_path / "photos")) == 1


def test_load_boxes_refuses_pixels_and_unknown_classes_before_it_builds(yolo_tree):
    for line, text in (("0 320 240 100 80", "line 2 holds pixels"), ("5 .5 .5 .1 .1", "class number 5.* 1 names")):
        yolo_tree.add("a", f"{LINE}\n{line}\n")
        with pytest.raises(ValueError, match=f"labels/a.txt: {text}|labels/a.txt: line 2 has the {text}"):
            load_boxes("yolo", root=yolo_tree.root)


@pytest.mark.parametrize("change", ["labels/a.txt", "classes.txt", "labels/b.txt", "data.yaml"])
def test_edited_yolo_files_are_never_served_from_a_stale_cache(yolo_tree, change):
    yolo_tree.add("b", None)
    before = load_boxes("yolo", root=yolo_tree.root)
    assert load_boxes("yolo", root=yolo_tree.root)._fingerprint == before._fingerprint
    text = {"classes.txt": "other\n", "data.yaml": "names: [other]\n"}.get(change, "0 0.5 0.5 0.25 0.25\n")
    yolo_tree.write(change, text)
    after = load_boxes("yolo", root=yolo_tree.root)
    assert (class_names(after), after[:]["objects"]) != (class_names(before), before[:]["objects"])


def test_splits_of_data_yaml_are_splits_of_the_data_set(yolo_tree):
    yolo_tree.add("b", LINE, split="val")
    yolo_tree.write("data.yaml", "train: images\nval: images/val\nnames: [thing]\n")
    dataset = load_boxes("yolo", root=yolo_tree.root, split="val")
    assert str(dataset.split) == "val" and dataset["file_name"][:] == ["val/b.png"]


@pytest.mark.parametrize("key", ["train", "names", "path", "nc", "kpt_shape"])
def test_aliases_make_no_file_larger_than_it_is(yolo_tree, key):
    """515 bytes of them took 1.7 GB and more than a minute."""
    levels = [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 30)]
    yolo_tree.write("data.yaml", "\n".join(["l0: &l0 [images]", *levels, f"{key}: *l29", ""]))
    with pytest.raises(ValueError, match="data.yaml is not valid yaml: its aliases .* repeat too much"):
        check_source(yolo_tree.root / "data.yaml")
    yolo_tree.write("data.yaml", "a: &a {x: 1}\nb: &b {<<: [*a, *a]}\ntrain: images\nnames: [thing]\n")
    with pytest.raises(ValueError, match="merge keys .* are not read"):
        check_source(yolo_tree.root / "data.yaml")
    yolo_tree.write("data.yaml", "train: &a images\nval: *a\nnames: [thing]\n")
    assert check_source(yolo_tree.root / "data.yaml").passed


ODD = ["!!float ''", "!!int ''", "!!bool x", "!!timestamp x", "!!binary é", "{[a]: 1}", "{? [a] : b}", ".inf", "-1"]


@pytest.mark.parametrize("key", ["train", "names", "path", "nc", "kpt_shape"])
def test_odd_scalars_of_data_yaml_are_an_error_in_one_line_or_passed_over(yolo_tree, key):
    for value in (*ODD, "~", "&a [*a]", "{~: a}", "{.inf: a}", "{1e999: a}", "!!set {a}", "2026-01-01"):
        yolo_tree.write("data.yaml", f"names: [thing]\n{key}: {value}\n" if key != "names" else f"names: {value}\n")
        try:
            check_source(yolo_tree.root / "data.yaml")
        except (ValueError, OSError) as error:
            assert "data.yaml" in str(error) or "class" in str(error)


def test_a_class_list_or_a_split_list_of_another_folder_is_told(yolo_tree, voc_tree, tmp_path, caplog):
    lists = yolo_tree.root / "classes.txt", voc_tree.root / "ImageSets/Main/mine.txt"
    for name, text, link, load in (
        ("names.txt", "other\n", lists[0], lambda: load_boxes("yolo", root=yolo_tree.root)),
        ("list.txt", "a\n", lists[1], lambda: load_boxes("voc", root=voc_tree.root, split="mine")),
    ):
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        (tmp_path / "elsewhere" / name).write_text(text)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(tmp_path / "elsewhere" / name)
        caplog.clear()
        load()
        assert f"{link.name} is a link: its names are those of {tmp_path / 'elsewhere' / name}" in caplog.text


# Rotated boxes

ROTATED = "0 0.435727 0.6 0.5 0.433013 0.23094 0.2 0.166667 0.366987"  # a rectangle turned by 30 degrees in BASE_BOX
SKEWED = "0 0.2 0.2 0.5 0.25 0.45 0.6 0.166667 0.5"  # no parallelogram


@pytest.mark.parametrize("told", ["by the lines", "by data.yaml", "by the option"])
def test_rotated_boxes_keep_their_quadrilateral(yolo_tree, told):
    yolo_tree.add("a", f"{ROTATED}\n{OUTLINE}" + ("" if told == "by the lines" else f"\n{SKEWED}"))
    if told == "by data.yaml":
        yolo_tree.write("data.yaml", "task: obb\nnames: [thing]\n")
    options = {"box_format": "obb"} if told == "by the option" else {}
    record, report = only(yolo_tree.root, **options)
    turned, upright, *others = record.objects
    assert boxes(record)[:2] == [BASE_BOX, BASE_BOX] and upright.region is None
    assert turned.region == pytest.approx([26.144, 24, 30, 17.321, 13.856, 8, 10, 14.679], abs=1e-3)
    assert all(item.region is not None for item in others)
    assert report.counts == {"rotated_box": 1 + len(others)} and not report.needs_attention
    with_masks, report = only(yolo_tree.root, masks=True, **options)
    # What only looks like a rotated box stays an outline too.
    assert [item.rle is not None for item in with_masks.objects] == [told == "by the lines"] * (2 + len(others))
    assert [item.region is not None for item in with_masks.objects] == [True, False, *(True for _ in others)]


@pytest.mark.parametrize("others", [SKEWED, f"{SKEWED}\n{OUTLINE}"])
def test_other_quadrilaterals_are_outlines_and_it_is_asked(yolo_tree, others):
    yolo_tree.add("a", f"{ROTATED}\n{others}")
    record, report = only(yolo_tree.root, masks=True)
    assert all(item.region is None and item.rle is not None for item in record.objects)
    assert report.counts == {"quadrilaterals": 1} and report.needs_attention
    assert "--box-format obb" in report.summary()


@pytest.mark.parametrize("other", ["0 0.2 0.2 0.5 0.25 0.3 0.6", LINE])
def test_quadrilaterals_among_lines_of_another_kind_are_outlines(yolo_tree, other):
    yolo_tree.add("a", f"{ROTATED}\n{SKEWED}\n{other}")
    record, report = only(yolo_tree.root)
    assert len(record.objects) == 3 and all(item.region is None for item in record.objects) and not report.counts


def test_only_yolo_has_rotated_boxes_and_it_has_no_other(yolo_tree, coco_tree):
    for format, tree, value in (("yolo", yolo_tree, "xyxy"), ("coco", coco_tree, "obb")):
        with pytest.raises(ValueError, match=f"format '{format}' has no boxes of box_format='{value}'"):
            load_boxes(format, root=tree.root, box_format=value)


def test_lists_of_classes_that_differ_between_splits_are_refused(tmp_path):
    roboflow_darknet(tmp_path)
    (tmp_path / "valid" / "_darknet.labels").write_text("blue\nred\n")
    with pytest.raises(ValueError, match=r"train/_darknet.labels and .*valid/_darknet.labels list different classes"):
        load_boxes("yolo", root=tmp_path, split="train")
    report = check_source(tmp_path).report
    assert report.counts["unreadable_class_list"] == 2 and report.classes == ["1 class 0 (class 0)"]
