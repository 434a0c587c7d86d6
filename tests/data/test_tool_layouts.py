"""Which files the small readers read, and what else the tools write into them."""

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tool_trees import (
    BOX,
    OTHER,
    TOOL_TREES,
    YOLO_LINE,
    bdd_label,
    createml_json,
    cvat_xml,
    label_studio_task,
    labelme_json,
    ocr_region,
    region,
    write,
)
from trees import HEIGHT, WIDTH

from lpg_hf._rle import encode_mask
from lpg_hf.data._formats.tool_image import find_files
from lpg_hf.data.options import SOURCE_OPTIONS
from lpg_hf.data.report import Report
from lpg_hf.data.sources import open_source


def opened(path, format="auto", **options):
    """(records, report) of annotations, with the options of `lpg-hf masks`."""
    report = Report()
    source = open_source(path, None, replace(SOURCE_OPTIONS, **options), format=format, report=report)
    records = [source.record(index, report) for index in range(len(source))]
    return [record for record in records if record is not None], report


def many(root, name, number, split=""):
    """A folder of one file per image, as the tools write several tasks."""
    for image in (f"i{k:02}.png" for k in range(number)):
        write(root, f"{split}images/{image}", None)
        task = label_studio_task(image=f"/data/upload/1/0a1b2c3d-{image}")
        content = {
            "DeepForest": f"image_path,xmin,ymin,xmax,ymax,label\n{image},10,8,30,24,red\n",
            "CVAT for images 1.1": cvat_xml(name=image),
            "CreateML": createml_json(name=image),
            "Label Studio JSON": [task],
            "BDD100K": [{"name": image, "labels": [bdd_label()] if image > "i05" else []}],
        }[name]
        suffix = {"DeepForest": "csv", "CVAT for images 1.1": "xml"}.get(name, "json")
        write(root, f"{split}{image[:3]}.{suffix}", content)


@pytest.mark.parametrize("split", ["", "train/"])
@pytest.mark.parametrize("name", ["DeepForest", "CVAT for images 1.1", "CreateML", "Label Studio JSON", "BDD100K"])
def test_every_file_of_a_folder_is_read(tmp_path, name, split):
    many(tmp_path, name, 25, split)
    records, report = opened(tmp_path, TOOL_TREES[name][0])
    assert len(records) == 25 and [len(record.objects) for record in records[5:]] == [1] * 20
    assert report.counts.keys() <= {"size_from_image", "image_by_name", "empty_image"}


def test_only_some_files_of_another_kind_are_looked_at(tmp_path):
    looked = []
    for k in range(30):
        write(tmp_path, f"a{k:02}.json", {"theme": "dark"})
        write(tmp_path, f"in/b{k:02}.json", {"theme": "dark"})
    for deep in (False, True):
        found = find_files(str(tmp_path), (".json",), lambda file: bool(looked.append(file)), deep=deep)
        assert found == [] and len(looked) == 40
        looked.clear()


@pytest.mark.parametrize("name", ["BDD100K", "Label Studio JSON"])
def test_an_unreadable_file_among_those_of_a_tool_is_counted(tmp_path, name):
    many(tmp_path, name, 6)
    write(tmp_path, "i03.json", "[{")
    write(tmp_path, "settings.json", {"theme": "dark"})
    write(tmp_path, "names.json", [{"title": "red.png"}])
    records, report = opened(tmp_path, TOOL_TREES[name][0])
    assert len(records) == 5 and report.counts["unreadable_annotation"] == 1
    assert "i03.json" in report.places["unreadable_annotation"][0] and "invalid_image_entry" not in report.counts


@pytest.mark.parametrize("name", ["labelme", "bdd100k", "mot", "csv", "yolo"])
@pytest.mark.parametrize("split", ["val", "valid", "validation"])
def test_a_split_has_the_same_names_in_every_format(tmp_path, name, split):
    write(tmp_path, "images/validation/a.png", None)
    files = {
        "labelme": ("validation/a.json", labelme_json()),
        "bdd100k": ("labels/validation/a.json", {"name": "a", "frames": [{"objects": [bdd_label()]}]}),
        "mot": ("validation/S/gt/gt.txt", "1,1,11,9,20,16,1,1,1\n"),
        "csv": ("validation/t.csv", "image_path,xmin,ymin,xmax,ymax,label\na.png,10,8,30,24,red\n"),
        "yolo": ("labels/validation/a.txt", YOLO_LINE),
    }
    write(tmp_path, *files[name])
    for folder in ("train", "labels/train"):
        write(tmp_path, f"{folder}/x/b.png", None)
    write(tmp_path, "validation/S/img1/000001.jpg", None)
    (record,), _ = opened(tmp_path, name, split=split)
    assert len(record.objects) == 1


# Label Studio


ELLIPSE = {"x": 100 / 3, "y": 40, "radiusX": 100 / 6, "radiusY": 20, "rotation": 0}
POINTS = [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in ((10, 8), (30, 8), (30, 24), (10, 24))]


def label_studio(root, *tasks, **options):
    for name in "ab":
        write(root, f"images/{name}.png", None)
    write(root, "project.json", list(tasks))
    return opened(root, "label-studio", **options)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
def test_label_studio_results_of_one_id_are_one_object(tmp_path, order):
    regions = [ocr_region(), ocr_region("polygon", points=POINTS), ocr_region("ellipse", ("blue",), **ELLIPSE)]
    task = label_studio_task(*(results[number] for results in regions for number in order))
    (record,), report = label_studio(tmp_path, task, masks=True)
    assert [item.box for item in record.objects] == [pytest.approx(BOX)] * 3
    assert [item.category for item in record.objects] == [1, 1, 0] and report.classes == ["1 blue", "2 red"]
    assert [item.rle is not None for item in record.objects] == [False, True, True]
    assert report.counts == {"box_from_polygon": 2, "no_mask": 1, "image_by_name": 1}


def test_label_studio_rows_of_one_geometry_are_one_object_in_json_min(tmp_path):
    size = {"original_width": WIDTH, "original_height": HEIGHT}
    rows = [[{**item["value"], **size} for item in ocr_region(x=x)] for x in (20, 20, 50)]
    controls = {name: [row[number] for row in rows] for number, name in enumerate(("bbox", "label", "transcription"))}
    row = {"image": "/data/upload/1/0a1b2c3d-a.png", "id": 1, "annotator": 1, "annotation_id": 1, **controls}
    (record,), report = label_studio(tmp_path, row)
    assert len(record.objects) == 3 and report.classes == ["1 red"] and "no_class_name" not in report.counts


def test_label_studio_brush_of_two_controls_is_one_lost_object(tmp_path):
    records, report = label_studio(
        tmp_path,
        label_studio_task(*ocr_region("brush", format="rle", rle=[0, 1])),
        label_studio_task(region(), image="b.png"),
    )
    assert [record.file_name for record in records] == ["b.png"]
    assert report.counts["unsupported_shape"] == report.counts["incomplete_image"] == 1


def test_label_studio_tasks_that_nobody_has_labelled_are_no_background(tmp_path):
    cancelled = {"id": 1, "was_cancelled": True, "result": [region()]}
    task = label_studio_task()
    empty = label_studio_task(image="b.png", annotations=[{"id": 2, "was_cancelled": False, "result": []}])
    for unlabelled in ([cancelled], []):
        records, report = label_studio(tmp_path, {**task, "annotations": unlabelled}, empty, task)
        assert [len(record.objects) for record in records] == [0, 1]
        assert report.counts["image_without_annotation"] == 1
        assert report.places["image_without_annotation"] == [f"project.json: task 1: {task['data']['image']}"]
    records, _ = label_studio(tmp_path, {"data": task["data"], "predictions": [{"result": [region()]}]}, empty, task)
    assert len(records) == 2


def two_images(*regions, **data):
    names = {"image1": "a.png", "image2": "b.png"} if not data else data
    return {**label_studio_task(*regions), "data": {**names, "id": 7}}


def test_label_studio_regions_of_two_images_are_of_the_one_they_name(tmp_path):
    first, second = {**region(), "to_name": "image1"}, {**region(x=50), "to_name": "image2"}
    records, report = label_studio(tmp_path, two_images(second, first, {**second, "id": "another"}), two_images(first))
    assert [(record.file_name, len(record.objects)) for record in records] == [("a.png", 2), ("b.png", 2)]
    assert records[0].objects[0].box == pytest.approx(BOX) and not report.is_incomplete
    assert report.counts["duplicate_file_name"] == 2


def test_label_studio_regions_of_two_images_that_cannot_be_told_apart_are_left_out(tmp_path):
    drawn = {**region(), "to_name": "img2"}
    good = two_images(region(), image="a.png", filename="x.png")
    with pytest.raises(
        ValueError, match="1 regions of 'img2', which is the name of none of its images image1, image2"
    ):
        label_studio(tmp_path, two_images(drawn))
    (record,), report = label_studio(tmp_path, two_images(drawn), good)
    assert record.file_name == "a.png" and report.counts["invalid_image_entry"] == 1 and report.is_incomplete


def test_label_studio_one_image_beside_other_names_is_the_usual_one(tmp_path):
    drawn = {**region(), "to_name": "img"}
    (record,), _ = label_studio(tmp_path, two_images(drawn, filename="b.png", image="a.png"))
    assert record.file_name == "a.png" and len(record.objects) == 1


def test_label_studio_second_name_is_counted(tmp_path):
    (record,), report = label_studio(tmp_path, label_studio_task(region(rectanglelabels=["red", "blue"])))
    assert report.classes == ["1 red"] and len(record.objects) == 1
    assert report.places["repeated_element"] == ["project.json: task 1: region 1 is of the classes red, blue"]


# The others


def test_mot_of_cvat_counts_pixels_from_zero_and_frames_of_a_video_from_frame_000000(tmp_path):
    TOOL_TREES["CVAT MOT 1.1"][1](tmp_path)
    records, report = opened(tmp_path)
    assert [record.file_name for record in records] == ["frame_000000.png", "frame_000001.png"]
    assert [item.box for record in records for item in record.objects] == [BOX, OTHER]
    assert [record.objects[0].category for record in records] == [0, 1] and report.classes == ["1 red", "2 dog"]


def test_mot_of_cvat_without_images_or_class_is_as_its_numbers_say(tmp_path):
    TOOL_TREES["CVAT MOT 1.1"][1](tmp_path)
    for number in (0, 1):
        (tmp_path / "img1" / f"frame_{number:06d}.png").rename(tmp_path / "img1" / f"{number + 1:06d}.png")
    with open(tmp_path / "gt" / "gt.txt", "a") as file:
        file.write("2,-1,1.0,1.0,5.0,5.0,1,-1,1.0\r\n2,-1,1.0,1.0,5.0,5.0,1,3,1.0\r\n")
    records, report = opened(tmp_path)
    assert [record.file_name for record in records] == ["000001.png", "000002.png"]
    assert len(records[1].objects) == 3 and report.counts["no_class_name"] == 1
    assert report.classes == ["1 red", "2 dog", "3 class 3", "4 object"]


@pytest.mark.parametrize("key", ["labels", "objects"])
def test_bdd100k_box_ends_with_its_last_pixel_but_in_the_files_of_2018(tmp_path, key):
    write(tmp_path, "a.png", None)
    rle = dict(encode_mask(np.pad(np.ones((16, 20), np.uint8), ((8, 16), (10, 30)))))
    label = {"id": "1", "category": "car", "rle": rle}
    end = {"labels": (29, 23), "objects": (30, 24)}[key]
    boxed = {**label, "box2d": {"x1": 10, "y1": 8, "x2": end[0], "y2": end[1]}}
    write(tmp_path, "x.json", [{"name": "a.png", "timestamp": 1, key: [boxed, label]}])
    (record,), _ = opened(tmp_path, masks=True)
    assert [item.box for item in record.objects] == [BOX, BOX] and {item.area for item in record.objects} == {320}


def labelme_mask(x: int, y: int, pixels: np.ndarray) -> dict:
    """As LabelMe writes it: a PNG of the window, and its first and last pixel."""
    png = io.BytesIO()
    Image.fromarray(pixels.astype(bool)).save(png, "PNG")
    corners = [[x, y], [x + pixels.shape[1] - 1, y + pixels.shape[0] - 1]]
    return {"shape_type": "mask", "points": corners, "mask": base64.b64encode(png.getvalue()).decode()}


def test_labelme_parts_of_all_kinds_are_one_object(tmp_path):
    square = {"shape_type": "polygon", "points": [[30, 25], [38, 25], [38, 33], [30, 33]]}
    circle = {"shape_type": "circle", "points": [[20, 10], [24, 10]]}
    small, large = labelme_mask(2, 2, np.ones((8, 8))), labelme_mask(40, 20, np.eye(10, 8))
    groups = [(small, large), (circle, square), (square, large, circle)]
    shapes = [{**shape, "group_id": number} for number, group in enumerate(groups) for shape in group]
    write(tmp_path, "a.png", None)
    write(tmp_path, "a.json", labelme_json(shapes=shapes))
    (record,), report = opened(tmp_path, masks=True)
    masks, mixed, all_kinds = record.objects
    assert masks.box == (2, 2, 48, 30) and masks.area == 64 + 8
    assert mixed.box == (16, 6, 38, 33) and mixed.area == pytest.approx(64 + 50, abs=12)
    assert all_kinds.box == (16, 6, 48, 33) and all_kinds.area == mixed.area + 8
    assert not report.needs_attention


def test_labelme_object_with_a_part_that_cannot_be_used_has_no_mask(tmp_path):
    broken = {**labelme_mask(20, 4, np.ones((4, 4))), "mask": "none"}
    far = {"shape_type": "polygon", "points": [[-200, 2], [5, 2], [5, 9]]}
    whole = labelme_mask(2, 2, np.ones((8, 8)))
    shapes = [{**shape, "group_id": n} for n, group in enumerate([(whole, broken), (whole, far)]) for shape in group]
    write(tmp_path, "a.png", None)
    write(tmp_path, "a.json", labelme_json(shapes=shapes))
    (record,), report = opened(tmp_path, masks=True)
    assert [item.box for item in record.objects] == [(2, 2, 24, 10), (0, 2, 10, 10)]
    assert [item.rle for item in record.objects] == [None, None] and report.counts["invalid_mask"] == 2


def test_open_images_class_names_of_every_release(tmp_path):
    for number, name in enumerate(("class-descriptions-boxable.csv", "oidv7-class-descriptions-boxable.csv")):
        root = tmp_path / str(number)
        TOOL_TREES["Open Images"][1](root)
        (root / "class-descriptions-boxable.csv").unlink()
        write(root, name, "LabelName,DisplayName\n/m/01,red\n/m/02,blue\n")
        assert opened(root)[1].classes == ["1 red"]


def test_open_images_class_names_lie_beside_the_table_in_a_folder(tmp_path):
    TOOL_TREES["Open Images"][1](tmp_path)
    (tmp_path / "annotations").mkdir()
    for file in tmp_path.glob("*.csv"):
        file.rename(tmp_path / "annotations" / file.name)
    assert opened(tmp_path)[1].classes == ["1 red"]


def test_retinanet_classes_have_the_order_of_their_list(tmp_path):
    TOOL_TREES["RetinaNet csv"][1](tmp_path)
    write(tmp_path, "classes.csv", "zebra,0\nred,1\nant,2\n")
    for path in (tmp_path, tmp_path / "annotations.csv"):
        (record, _), report = opened(path)
        assert report.classes == ["1 zebra", "2 red", "3 ant"] and record.objects[0].category == 1
    for text in ("zebra,0\nred,0\n", "zebra,0\nred,2\n", "red,0\nred,1\n", "zebra\nred\n", "red,one\n"):
        write(tmp_path, "classes.csv", text)
        _, report = opened(tmp_path)
        assert report.classes == ["1 red"] and report.counts["unreadable_class_list"] == 1
