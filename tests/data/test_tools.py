"""The small readers, on files laid out as the tools write them."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from tool_trees import (
    BOX,
    KITTI_LINE,
    OTHER,
    TOOL_TREES,
    bdd_label,
    createml_json,
    cvat_xml,
    label_studio_task,
    labelme_json,
    region,
    write,
)
from trees import HEIGHT, WIDTH, make_image

from lpg_hf.data._formats import cvat, tools
from lpg_hf.data._formats.tool_image import window_rle
from lpg_hf.data._formats.unsupported import describe
from lpg_hf.data._recognise import recognise_format
from lpg_hf.data.options import ReadOptions
from lpg_hf.data.records import NO_CLASS
from lpg_hf.data.report import Report
from lpg_hf.data.sources import open_source


def read(path, format=None, images=None, **options):
    """(records, classes, report) of a file or folder, with the options of a source of boxes for masks."""
    options = ReadOptions(**{"keep_empty": True, "keep_unlisted": True, "allow_missing": True} | options)
    path, report = str(path), Report()
    if format is None:
        (format,) = tools.recognise(path)
    index = tools.read_index(format, path, images, options, report)
    records = [tools.make_record(entry, options, report) for entry in index.entries]
    return [record for record in records if record is not None], index.classes, report


def boxes(record):
    return [pytest.approx(item.box, abs=1e-3) for item in record.objects]


@pytest.mark.parametrize("name", TOOL_TREES)
def test_the_export_of_a_tool_is_recognised_and_read(tmp_path, name):
    format, make, classes = TOOL_TREES[name]
    make(tmp_path)
    assert tools.recognise(str(tmp_path)) == [format]
    records, found, report = read(tmp_path)
    assert boxes(records[0]) == [BOX] and (records[0].height, records[0].width) == (HEIGHT, WIDTH)
    assert found[: len(classes)] == classes and records[0].objects[0].category == 0
    assert not report.needs_attention and all(record.path for record in records)


@pytest.mark.parametrize("name", TOOL_TREES)
def test_objects_are_as_many_without_images_and_images_are_missed_by_name(tmp_path, name):
    _, make, _ = TOOL_TREES[name]
    make(tmp_path)
    whole = read(tmp_path)[2]
    for path in [*tmp_path.rglob("*.png"), *tmp_path.rglob("*.jpg")]:
        path.unlink()
    records, _, report = read(tmp_path, keep_missing=True)
    assert report.counts["missing_image"] == len(records) == whole.images and report.objects == whole.objects
    assert all(record.path is None for record in records)
    with pytest.raises(FileNotFoundError, match="images exists in"):
        read(tmp_path)


def test_a_split_is_a_folder_or_a_word_in_the_name_of_the_file(tmp_path):
    TOOL_TREES["CreateML"][1](tmp_path)
    assert [r.file_name for r in read(tmp_path)[0]] == ["train/train.png", "valid/valid.png"]
    assert [r.file_name for r in read(tmp_path, split="val")[0]] == ["valid/valid.png"]
    with pytest.raises(FileNotFoundError, match="no CreateML json of the split 'test'"):
        read(tmp_path, "createml", split="test")
    TOOL_TREES["Open Images"][1](tmp_path / "oi")
    assert len(read(tmp_path / "oi", split="train")[0]) == 1
    TOOL_TREES["DOTA"][1](tmp_path / "dota")
    assert len(read(tmp_path / "dota", split="train")[0]) == 1
    with pytest.raises(FileNotFoundError, match="of the split 'val'"):
        read(tmp_path / "dota", split="val")


def test_chosen_classes_only(tmp_path):
    write(tmp_path, "a.png", None)
    path = write(tmp_path, "t.csv", "image_path,xmin,ymin,xmax,ymax,label\na.png,10,8,30,24,red\na.png,1,1,5,5,blue\n")
    records, classes, report = read(path, classes=["red"])
    assert classes == ["red"] and boxes(records[0]) == [BOX] and report.details == {"other_class": {"blue": 1}}
    with pytest.raises(ValueError, match=r"classes \['green'\] are not in .*; it holds: blue, red"):
        read(path, classes=["green"])


# Images


def csv_of(root, *names):
    rows = "".join(f"{name},10,8,30,24,red\n" for name in names)
    return write(root, "t.csv", f"image_path,xmin,ymin,xmax,ymax,label\n{rows}")


@pytest.mark.parametrize(
    "stated",
    ["a.png", "sub/a.png", "sub\\a.png", "/home/me/data/sub/a.png", "C:\\data\\a.png", "../sub/a.png", "sub/a"],
)
def test_an_image_is_found_by_the_end_of_its_name_inside_the_folder_only(tmp_path, stated):
    write(tmp_path, "data/sub/a.png", None)
    write(tmp_path, "a.png", None)
    path = csv_of(tmp_path / "data", stated)
    records, _, report = read(path, images=str(tmp_path / "data"))
    assert [record.file_name for record in records] == ["sub/a.png"]
    assert ("image_by_name" in report.counts) == (stated not in ("a.png", "sub/a.png", "sub\\a.png", "sub/a"))
    assert not report.needs_attention


def test_an_image_with_another_suffix_is_used_and_counted(tmp_path):
    write(tmp_path, "a.png", None)
    records, _, report = read(csv_of(tmp_path, "photos/a.jpg"))
    assert [record.file_name for record in records] == ["a.png"] and report.counts["other_suffix"] == 1
    assert report.needs_attention and not report.is_incomplete


def test_an_image_whose_name_fits_several_is_ambiguous(tmp_path):
    for name in ("one/a.png", "two/a.png", "b.png"):
        write(tmp_path, name, None)
    records, _, report = read(csv_of(tmp_path, "elsewhere/a.png", "b.png"))
    assert [record.file_name for record in records] == ["b.png"] and report.counts["ambiguous_image"] == 1
    records, _, report = read(csv_of(tmp_path, "two/a.png", "b.png"))
    assert [record.file_name for record in records] == ["two/a.png", "b.png"] and not report.needs_attention


def test_an_image_that_is_a_link_to_the_outside_is_not_read(tmp_path):
    write(tmp_path, "outside/a.png", None)
    write(tmp_path, "data/b.png", None)
    (tmp_path / "data" / "a.png").symlink_to(tmp_path / "outside" / "a.png")
    records, _, report = read(csv_of(tmp_path / "data", "a.png", "b.png"))
    assert [record.file_name for record in records] == ["b.png"] and report.counts["missing_image"] == 1


def test_two_entries_of_one_image_are_one_record(tmp_path):
    write(tmp_path, "a.png", None)
    other = {"label": "blue", "coordinates": {"x": 46, "y": 27, "width": 12, "height": 14}}
    write(tmp_path, "x.json", createml_json() + createml_json(other))
    records, classes, report = read(tmp_path)
    assert len(records) == 1 and boxes(records[0]) == [BOX, OTHER] and classes == ["blue", "red"]
    assert report.counts["duplicate_file_name"] == 1 and [item.id for item in records[0].objects] == [1, 2]


def test_a_stated_size_that_is_not_the_image_s(tmp_path):
    write(tmp_path, "a.png", None)
    head = "filename,width,height,class,xmin,ymin,xmax,ymax"
    path = write(tmp_path, "t.csv", f"{head}\na.png,120,80,red,20,16,60,48\n")
    assert read(path)[2].counts["size_mismatch"] == 1
    records, _, report = read(path, size_mismatch="rescale")
    assert boxes(records[0]) == [BOX] and report.counts["size_rescaled"] == 1
    with pytest.raises(ValueError, match="stated 120 x 80, image 60 x 40"):
        read(path, size_mismatch="error")


# What cannot be read is counted, and never an image without objects.


def test_an_unreadable_object_is_counted_with_its_place(tmp_path):
    write(tmp_path, "a.png", None)
    write(tmp_path, "b.png", None)
    head = "image_path,xmin,ymin,xmax,ymax,label"
    lines = "b.png,10,8,30,24,red\na.png,10,8,30,24,red\na.png,10,8,?,24,red\na.png,30,8,30,24,red\n,1,1,2,2,x\n"
    path = write(tmp_path, "t.csv", f"{head}\n{lines}")
    records, _, report = read(path)
    assert [record.file_name for record in records] == ["b.png"] and report.counts["incomplete_image"] == 1
    assert report.places["invalid_box"] == ["t.csv: line 4 ['10', '8', '?', '24']"]
    assert report.places["degenerate_box"] == ["t.csv: line 5 [30, 8, 30, 24]"]
    assert report.places["invalid_annotation"] == ["t.csv: line 6 names no image"]


@pytest.mark.parametrize("name", ["LabelMe", "CVAT for images 1.1", "Label Studio JSON", "CreateML", "KITTI", "DOTA"])
def test_a_file_without_a_usable_object_is_an_error_that_says_what_it_looks_like(tmp_path, name):
    format, make, _ = TOOL_TREES[name]
    make(tmp_path)
    for path in (path for path in tmp_path.rglob("*") if path.suffix in (".json", ".xml", ".txt")):
        text = path.read_text().replace("gsd:0.14", "")
        for old in ("10.00", "10.0", "[10, 8]", '"y": 20.0', '"y": 16'):
            text = text.replace(
                old, {"[10, 8]": '["x", 8]', '"y": 20.0': '"y": "?"', '"y": 16': '"y": "?"'}.get(old, "?")
            )
        path.write_text(text)
    with pytest.raises(
        ValueError, match=f"no object of .* can be used; it looks like {tools.TOOL_FORMATS[format].title}"
    ):
        read(tmp_path, format)


def test_an_object_without_a_class_is_an_object(tmp_path):
    write(tmp_path, "a.png", None)
    path = write(tmp_path, "t.csv", "image_path,xmin,ymin,xmax,ymax\na.png,10,8,30,24\n")
    records, classes, report = read(path)
    assert classes == ["object"] and boxes(records[0]) == [BOX] and report.counts["no_class_name"] == 1


def test_images_without_objects_are_kept(tmp_path):
    for name in "abc":
        write(tmp_path, f"{name}.png", None)
    path = write(tmp_path, "t.csv", "a.png,10,8,30,24,red\nb.png,,,,,\nc.png,0,0,0,0,red\n")
    records, classes, report = read(path)
    assert [len(record.objects) for record in records] == [1, 0, 0] and classes == ["red"]
    assert report.counts == {"size_from_image": 3, "empty_image": 2}
    assert [record.file_name for record in read(path, keep_empty=False)[0]] == ["a.png"]


# LabelMe


def labelme_objects(tmp_path, *shapes, **options):
    write(tmp_path, "a.png", None)
    write(tmp_path, "a.json", labelme_json(shapes=list(shapes)))
    records, _, report = read(tmp_path, **options)
    return records[0].objects, report


def test_labelme_polygon_is_a_box_and_a_mask(tmp_path):
    triangle = {"shape_type": "polygon", "points": [[10, 8], [30, 8], [10, 24]]}
    (item,), report = labelme_objects(tmp_path, triangle, masks=True)
    assert item.box == BOX and item.area == coco_mask.area(item.rle) == pytest.approx(160, abs=12)
    assert report.counts == {"box_from_polygon": 1}


def test_labelme_polygons_of_one_group_are_one_object(tmp_path):
    first = {"shape_type": "polygon", "points": [[10, 8], [20, 8], [20, 24], [10, 24]], "group_id": 3}
    second = {**first, "points": [[25, 8], [30, 8], [30, 24], [25, 24]]}
    (item,), _ = labelme_objects(tmp_path, first, second, masks=True)
    assert item.box == BOX and item.area == 240
    both, _ = labelme_objects(tmp_path, first, {**second, "group_id": 4})
    assert len(both) == 2


def test_labelme_circle_rotated_box_and_mask(tmp_path):
    circle = {"shape_type": "circle", "points": [[20, 20], [30, 20]]}
    turned = {"shape_type": "rotation", "points": [[46, 20], [52, 27], [46, 34], [40, 27]], "direction": 0.8}
    window = io.BytesIO()
    Image.fromarray(np.eye(16, 20, dtype=bool)).save(window, "PNG")
    mask = {"shape_type": "mask", "points": [[10, 8], [29, 23]], "mask": base64.b64encode(window.getvalue()).decode()}
    (of_circle, of_turned, of_mask), report = labelme_objects(tmp_path, circle, turned, mask, masks=True)
    assert of_circle.box == (10, 10, 30, 30) and of_circle.area == pytest.approx(314, rel=0.05)
    assert of_turned.box == OTHER and of_turned.rle is None
    assert of_mask.box == BOX and of_mask.area == 16
    assert report.counts == {"rotated_box": 1, "no_mask": 1}


def test_labelme_ignore_is_a_region_of_no_class(tmp_path):
    write(tmp_path, "a.png", None)
    ignored = {"label": "__ignore__", "points": [[40, 20], [52, 34]]}
    [record], classes, report = read(write(tmp_path, "a.json", labelme_json(shapes=[{}, ignored])))
    assert classes == ["red"] and not record.has_unusable and report.counts == {}
    assert [(item.category, item.iscrowd) for item in record.objects] == [(0, False), (NO_CLASS, True)]


def test_labelme_points_and_lines_have_no_area(tmp_path):
    shapes = [{}, {"shape_type": "point", "points": [[1, 1]]}, {"shape_type": "line", "points": [[1, 1], [5, 5]]}]
    objects, report = labelme_objects(tmp_path, *shapes)
    assert [(item.box, item.category) for item in objects] == [
        ((1, 1, 2, 2), NO_CLASS),
        ((1, 1, 5, 5), NO_CLASS),
        (BOX, 0),
    ]
    assert report.places["unsupported_shape"] == [
        "a.json: shape 2 is a point of 1 points",
        "a.json: shape 3 is a line of 2 points",
    ]


def test_labelme_json_that_is_cut_off_is_one_image_and_other_json_is_none(tmp_path):
    for name in "ab":
        write(tmp_path, f"{name}.png", None)
    write(tmp_path, "a.json", labelme_json())
    write(tmp_path, "b.json", json.dumps(labelme_json("b.png"))[:100])
    write(tmp_path, "settings.json", {"theme": "dark"})
    records, _, report = read(tmp_path)
    assert [record.file_name for record in records] == ["a.png"]
    assert report.counts == {"unreadable_annotation": 1} and "b.json" in report.places["unreadable_annotation"][0]


def test_labelme_with_a_large_embedded_image_is_told_by_its_head(tmp_path):
    write(tmp_path, "a.png", None)
    write(tmp_path, "a.json", {**labelme_json(), "imageData": "A" * 5_000_000})
    assert boxes(read(tmp_path)[0][0]) == [BOX]


# CVAT


def cvat_objects(tmp_path, *shapes, **options):
    write(tmp_path, "images/a.png", None)
    write(tmp_path, "annotations.xml", cvat_xml(*shapes, **{"labels": options.pop("labels", "red")}))
    records, classes, report = read(tmp_path, **options)
    return records[0].objects, classes, report


def test_cvat_shapes(tmp_path):
    turned = '<box label="red" xtl="40" ytl="20" xbr="52" ybr="34" rotation="90.0"/>'
    polygon = '<polygon label="red" points="10.00,8.00;30.00,8.00;30.00,24.00;10.00,24.00"/>'
    ellipse = '<ellipse label="red" cx="20" cy="16" rx="10" ry="8" rotation="0.00"/>'
    mask = '<mask label="red" rle="0, 20, 280, 20" left="10" top="8" width="20" height="16"/>'
    objects, _, report = cvat_objects(tmp_path, turned, polygon, ellipse, mask, masks=True)
    assert objects[0].box == pytest.approx((39, 21, 53, 33)) and objects[0].rle is None
    assert objects[1].box == BOX and objects[1].area == 320
    assert objects[2].box == BOX and objects[2].area == pytest.approx(251, rel=0.05)
    decoded = coco_mask.decode(objects[3].rle)
    assert objects[3].box == BOX and decoded[8, 10:30].all() and decoded[23, 10:30].all() and decoded.sum() == 40


def test_cvat_shapes_without_an_area_are_counted_and_tags_are_not(tmp_path):
    box = '<box label="red" xtl="10" ytl="8" xbr="30" ybr="24"/>'
    objects, classes, report = cvat_objects(
        tmp_path, "<tag label='night'/>", box, '<points label="red" points="1,2;3,4"/>', labels="blue red"
    )
    assert [(item.box, item.category) for item in objects] == [((1, 2, 3, 4), NO_CLASS), (BOX, 1)]
    assert classes == ["blue", "red"]
    assert report.counts == {"unsupported_shape": 1}
    assert report.places["unsupported_shape"] == ["annotations.xml: a.png: object 2 is a points"]


def test_the_pixels_of_a_cvat_cuboid_are_ignored(tmp_path):
    corners = {"tl1": (10, 12), "bl1": (10, 24), "tr1": (22, 12), "br1": (22, 24)}
    corners |= {"tl2": (18, 8), "bl2": (18, 20), "tr2": (30, 8), "br2": (30, 20)}
    places = " ".join(f'x{name}="{x}" y{name}="{y}"' for name, (x, y) in corners.items())
    box = '<box label="red" xtl="40" ytl="20" xbr="52" ybr="34"/>'
    objects, _, report = cvat_objects(tmp_path, box, f'<cuboid label="red" {places}/>')
    assert [(item.box, item.category) for item in objects] == [(BOX, NO_CLASS), ((40, 20, 52, 34), 0)]
    assert report.counts == {"unsupported_shape": 1}


def test_an_image_with_a_cvat_skeleton_is_left_out(tmp_path):
    """The object is larger than the points of its skeleton."""
    write(tmp_path, "images/a.png", None)
    skeleton = '<skeleton label="red"><points label="1" outside="0" points="12,9"/></skeleton>'
    box = '<box label="red" xtl="10" ytl="8" xbr="30" ybr="24"/>'
    write(tmp_path, "annotations.xml", cvat_xml(box, skeleton, labels="red"))
    records, _, report = read(tmp_path)
    assert records == [] and report.counts == {"unsupported_shape": 1, "incomplete_image": 1}


def cvat_project(root):
    """What CVAT exports of a project: one xml, in which each image has its subset."""
    images = "".join(
        f'<image id="{number}" name="{name}" subset="{subset}" task_id="1" width="60" height="40">'
        f'<box label="red" occluded="0" xtl="{number + 1}" ytl="8" xbr="30" ybr="24" z_order="0"></box></image>'
        for number, (subset, name) in enumerate([("Train", "a.png"), ("Validation", "a.png"), ("Validation", "b.png")])
    )
    head, tail = cvat_xml().split("<image ")[0], "</annotations>"
    write(root, "annotations.xml", head + images + tail)


def test_cvat_subsets_of_a_project_are_its_splits_and_the_folders_of_its_images(tmp_path):
    cvat_project(tmp_path)
    for name in ("Train/a.png", "Validation/a.png", "Validation/b.png"):
        write(tmp_path, f"images/{name}", None)
    records, _, report = read(tmp_path)
    found = {record.file_name: record.objects[0].box[0] for record in records}
    assert found == {"Train/a.png": 1, "Validation/a.png": 2, "Validation/b.png": 3} and report.counts == {}
    for place in (tmp_path, tmp_path / "annotations.xml"):
        records, _, _ = read(place, split="val")
        assert [record.file_name for record in records] == ["Validation/a.png", "Validation/b.png"]
        with pytest.raises(FileNotFoundError, match="of the split 'test'"):
            read(place, split="test")


def test_cvat_subsets_are_the_splits_of_images_in_one_folder_too(tmp_path):
    cvat_project(tmp_path)
    xml = tmp_path / "annotations.xml"
    xml.write_text(xml.read_text().replace('name="a.png" subset="Validation"', 'name="c.png" subset="Validation"'))
    for name in "abc":
        write(tmp_path, f"images/{name}.png", None)
    source = open_source(tmp_path, report=Report())
    assert source.splits == {"a.png": "train", "b.png": "val", "c.png": "val"}


@pytest.mark.parametrize("rle", ["", "1, 2", "0, 999999999999"])
def test_cvat_mask_that_does_not_fit_keeps_its_box(tmp_path, rle):
    mask = f'<mask label="red" rle="{rle}" left="10" top="8" width="20" height="16"/>'
    box = '<box label="red" xtl="10" ytl="8" xbr="30" ybr="24"/>'
    objects, _, report = cvat_objects(tmp_path, box, mask, masks=True)
    assert [item.box for item in objects] == [BOX, BOX] and report.counts["invalid_mask"] == 1


def test_nothing_is_painted_in_an_image_of_another_size(tmp_path, monkeypatch):
    """A line that states 14000 x 14000 pixels took a second, before its image of 60 x 40 was looked at."""
    mask = '<mask label="red" rle="0, 196000000" left="0" top="0" width="14000" height="14000"/>'
    write(tmp_path, "images/a.png", None)
    text = cvat_xml(*[mask] * 3).replace('width="60" height="40"', 'width="14000" height="14000"')
    write(tmp_path, "annotations.xml", text)
    monkeypatch.setattr(cvat.np, "repeat", None)
    assert read(tmp_path, masks=True)[2].counts == {"size_mismatch": 1}
    write(tmp_path, "annotations.xml", cvat_xml(*[mask] * 3))
    assert read(tmp_path, masks=True)[2].counts == {"clipped_box": 3, "invalid_mask": 3}


def test_a_mask_of_far_more_runs_than_its_text_can_mean_is_refused():
    size, whole = (2000, 1000), (slice(0, 2000), slice(0, 1000))
    stripes = np.zeros(size, dtype=bool)
    stripes[::4] = True  # 500 rows are 1,000,000 runs, column by column
    assert window_rle(stripes, whole, size, 3000) is None
    rle = window_rle(stripes, whole, size, 80_000)
    assert rle["counts"] == coco_mask.encode(np.asfortranarray(stripes, dtype=np.uint8))["counts"].decode()
    assert window_rle(stripes[:100], (slice(5, 105), whole[1]), size, 100) is not None


def test_cvat_xml_with_entities_is_refused(tmp_path):
    text = cvat_xml().replace("<annotations>", '<!DOCTYPE a [<!ENTITY x "y">]><annotations>', 1)
    write(tmp_path, "annotations.xml", text)
    with pytest.raises(ValueError, match="is no valid xml"):
        read(tmp_path, "cvat")


# Label Studio


@pytest.mark.parametrize("name", ["http://[x/b.png", "//[/?d=b.png"])
def test_what_is_no_address_is_the_name_of_a_missing_image(tmp_path, name):
    write(tmp_path, "images/a.png", None)
    write(tmp_path, "project.json", [label_studio_task(), label_studio_task(image=name)])
    records, _, report = read(tmp_path)
    assert [record.file_name for record in records] == ["a.png"] and report.counts["missing_image"] == 1


def label_studio_objects(tmp_path, *tasks, **options):
    write(tmp_path, "images/a.png", None)
    write(tmp_path, "project.json", list(tasks))
    records, _, report = read(tmp_path, **options)
    return records[0].objects, report


def test_label_studio_rectangle_is_turned_around_its_first_corner(tmp_path):
    # 14 wide and 12 high at (52, 20), turned by 90 degrees: 12 wide, to the left of its corner.
    value = {"x": 100 * 52 / 60, "y": 50, "width": 100 * 14 / 60, "height": 30, "rotation": 90}
    slanted = {**value, "x": 50, "y": 25, "rotation": 45}
    objects, report = label_studio_objects(tmp_path, label_studio_task(region(**value), region(**slanted)))
    assert objects[0].box == pytest.approx(OTHER) and report.counts["rotated_box"] == 1
    x, y, w, h, s = 30, 10, 14, 12, 2**-0.5
    assert objects[1].box == pytest.approx((x - h * s, y, x + w * s, y + (w + h) * s))


def test_label_studio_polygon_ellipse_brush_and_choices(tmp_path):
    points = [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in ((10, 8), (30, 8), (30, 24), (10, 24))]
    ellipse = region("ellipse", x=100 / 3, y=40, radiusX=100 / 6, radiusY=20, rotation=0)
    task = label_studio_task(
        region("polygon", points=points),
        ellipse,
        {"type": "choices", "value": {"choices": ["sharp"]}},
    )
    (polygon, oval), report = label_studio_objects(tmp_path, task, masks=True)
    assert polygon.box == pytest.approx(BOX) and polygon.area == 320
    assert oval.box == pytest.approx(BOX) and oval.area == pytest.approx(251, rel=0.05)
    assert report.counts["box_from_polygon"] == 2
    brush = region("brush", format="rle", rle=[0, 1])
    path = write(tmp_path, "project.json", [label_studio_task(ellipse, brush)])
    records, _, report = read(path)
    assert records == [] and report.counts["incomplete_image"] == 1
    assert report.places["unsupported_shape"] == ["project.json: task 1: region 2 is a brushlabels"]


def test_label_studio_uses_one_annotation_of_a_task(tmp_path):
    cancelled = {"was_cancelled": True, "result": [region(x=0)]}
    mine, yours = {"result": [region()]}, {"result": [region(x=1)]}
    task = label_studio_task()
    objects, report = label_studio_objects(tmp_path, {**task, "annotations": [cancelled, mine, yours]})
    assert [item.box for item in objects] == [pytest.approx(BOX)] and report.counts["other_annotation"] == 1
    objects, report = label_studio_objects(tmp_path, {**task, "annotations": [cancelled]}, task)
    assert len(objects) == 1


# The others


def test_open_images_group_is_a_crowd_region(tmp_path):
    TOOL_TREES["Open Images"][1](tmp_path)
    path = tmp_path / "train-annotations-bbox.csv"
    path.write_text(path.read_text() + "a,xclick,/m/02,1,0.5,0.9,0.5,0.9,0,0,1,0,0\n")
    records, classes, _ = read(tmp_path)
    assert classes == ["blue", "red"] and [item.iscrowd for item in records[0].objects] == [False, True]


@pytest.mark.parametrize("separator", [";", "\t"])
def test_csv_with_another_separator_and_order(tmp_path, separator):
    write(tmp_path, "a.png", None)
    rows = [["Class", "X_Max", "X_Min", "Y_Max", "Y_Min", "File Name"], ["red", "30", "10", "24", "8", "a.png"]]
    path = write(tmp_path, "t.csv", "\r\n".join(separator.join(row) for row in rows))
    assert boxes(read(path)[0][0]) == [BOX]


def test_width_and_height_are_the_box_s_beside_those_of_the_image(tmp_path):
    write(tmp_path, "a.png", None)
    head = "filename,class,x,y,width,height,img_width,img_height"
    [record], _, report = read(write(tmp_path, "t.csv", f"{head}\na.png,red,10,8,20,16,60,40\n"))
    assert boxes(record) == [BOX] and report.counts == {}
    write(tmp_path, "t.csv", "filename,class,x,y,img_width,img_height\na.png,red,10,8,60,40\n")
    assert tools.recognise(str(tmp_path)) == []


@pytest.mark.parametrize("column", ["class_id", "category_id", "labelId"])
def test_the_numbers_of_classes_are_their_names_where_a_table_has_no_other(tmp_path, column):
    write(tmp_path, "a.png", None)
    rows = "a.png,10,8,30,24,1\na.png,40,20,52,34,0\n"
    [record], classes, report = read(write(tmp_path, "t.csv", f"filename,xmin,ymin,xmax,ymax,{column}\n{rows}"))
    assert classes == ["0", "1"] and [item.category for item in record.objects] == [1, 0]
    assert "no_class_name" not in report.counts
    write(tmp_path, "t.csv", f"filename,{column},class_name,xmin,ymin,xmax,ymax\na.png,1,red,10,8,30,24\n")
    assert read(tmp_path / "t.csv")[1] == ["red"]


def test_a_table_with_a_cell_without_an_end_is_an_error_that_names_the_line(tmp_path):
    write(tmp_path, "a.png", None)
    head = "image_path,xmin,ymin,xmax,ymax,label"
    path = write(tmp_path, "t.csv", f'{head}\na.png,10,8,30,24,"red\n{"x" * 200_000}\n')
    with pytest.raises(ValueError, match="t.csv is not a valid table: .* at line"):
        read(path)


def test_a_table_that_holds_no_boxes_is_not_recognised(tmp_path):
    for text in ("id,name\n1,red\n", "filename,label\na.png,red\n", "", "a,b,c,d,e,f\n"):
        write(tmp_path, "t.csv", text)
        assert tools.recognise(str(tmp_path)) == []


def test_bdd100k_outlines_lanes_and_crowds(tmp_path):
    write(tmp_path, "a.png", None)
    corners = [[10, 8], [30, 8], [30, 24], [10, 24]]
    closed = {"vertices": corners, "types": "LLLL", "closed": True}
    labels = [
        {"id": "1", "category": "red", "poly2d": [closed]},
        {"id": "2", "category": "lane", "poly2d": [{**closed, "closed": False}]},
        bdd_label(attributes={"crowd": True}),
    ]
    write(tmp_path, "x.json", [{"name": "a.png", "labels": labels}])
    records, _, report = read(tmp_path, masks=True)
    assert boxes(records[0]) == [BOX, BOX] and records[0].objects[0].area == 320
    assert [item.iscrowd for item in records[0].objects] == [False, True]
    assert report.places["unsupported_shape"] == ["a.png: label 2 (lane) has neither a box nor a closed outline"]


def test_kitti_dont_care_is_a_region_of_no_class(tmp_path):
    TOOL_TREES["KITTI"][1](tmp_path)
    line = "DontCare -1 -1 -10 40.0 20.0 52.0 34.0 -1 -1 -1 -1000 -1000 -1000 -10\n"
    write(tmp_path, "training/label_2/000000.txt", f"{KITTI_LINE}\n{line}")
    records, classes, report = read(tmp_path)
    assert classes == ["red"] and boxes(records[0]) == [BOX, OTHER]
    assert [item.category for item in records[0].objects] == [0, NO_CLASS] and records[0].objects[1].iscrowd
    assert report.objects == 1 and not report.needs_attention


def test_kitti_of_cvat_lies_in_a_folder_for_its_subset(tmp_path):
    write(tmp_path, "default/image_2/a.png", None)
    write(tmp_path, "default/label_2/a.txt", KITTI_LINE)
    write(tmp_path, "label_colors.txt", "250 50 83 red\n")
    [record], classes, _ = read(tmp_path)
    assert boxes(record) == [BOX] and classes == ["red"] and record.file_name == "a.png"


def test_mot_frames_flags_and_sequences(tmp_path):
    for name in ("S1", "S2"):
        TOOL_TREES["MOT Challenge"][1](tmp_path / "train" / name)
        write(tmp_path, f"train/{name}/img1/000002.jpg", None)
        write(
            tmp_path,
            f"train/{name}/gt/gt.txt",
            "2,1,11,9,20,16,1,3,1\n2,2,41,21,12,14,0,1,1\n1,1,11,9,20,16,1,-1,-1,-1\n",
        )
    records, classes, report = read(tmp_path)
    assert [r.file_name for r in records][:2] == ["S1/img1/000001.jpg", "S1/img1/000002.jpg"] and len(records) == 4
    assert [classes[item.category] for item in records[1].objects] == ["car", "pedestrian"]
    assert boxes(records[1]) == [BOX, OTHER] and [item.iscrowd for item in records[1].objects] == [False, True]
    assert not report.needs_attention
    assert [r.file_name for r in read(tmp_path / "train" / "S2" / "gt" / "gt.txt")[0]] == ["000001.jpg", "000002.jpg"]


@pytest.mark.parametrize("line", ["imDir=../secret", "imDir=link", "imDir={secret}", "imExt=/../../../secret/1.jpg"])
def test_mot_frames_lie_in_the_sequence(tmp_path, line):
    for name in ("S1", "S2"):
        TOOL_TREES["MOT Challenge"][1](tmp_path / "train" / name)
    secret = tmp_path / "train" / "secret"
    write(secret, "000001.jpg", None)
    (tmp_path / "train" / "S1" / "link").symlink_to(secret)
    line = line.format(secret=secret)
    write(tmp_path, "train/S1/seqinfo.ini", f"[Sequence]\n{line}\nimWidth=60\nimHeight=40\n")
    records, _, report = read(tmp_path)
    assert [record.file_name for record in records] == ["S2/img1/000001.jpg"]
    assert report.counts == {"unsafe_path": 1} and line.partition("=")[2] in report.places["unsafe_path"][0]
    with pytest.raises(ValueError, match="file name that leads outside the image folder.*seqinfo.ini: im"):
        read(tmp_path / "train" / "S1")


def test_a_split_that_is_not_read_is_counted(tmp_path):
    for split in ("train", "val"):
        write(tmp_path, f"{split}/images/{split}.png", None)
        write(tmp_path, f"{split}/labelTxt/{split}.txt", "10 8 30 8 30 24 10 24 red 0\n")
    [record], _, report = read(tmp_path, "dota")
    assert record.file_name == "train.png" and report.places["unread_split"] == ["val: 1 images"]
    [record], _, report = read(tmp_path, "dota", split="val")
    assert record.file_name == "val.png" and "unread_split" not in report.counts


def test_dota_quadrilateral_is_the_box_around_it(tmp_path):
    TOOL_TREES["DOTA"][1](tmp_path)
    write(tmp_path, "train/labelTxt/a.txt", "46 20 52 27 46 34 40 27 plane 1\n")
    records, _, report = read(tmp_path)
    assert boxes(records[0]) == [OTHER] and records[0].objects[0].difficult
    assert records[0].objects[0].region == [46, 20, 52, 27, 46, 34, 40, 27]
    assert report.counts["rotated_box"] == 1


@pytest.mark.parametrize("name", ["KITTI", "DOTA", "Open Images"])
def test_a_class_name_is_one_that_every_format_can_hold(tmp_path, name):
    TOOL_TREES[name][1](tmp_path)
    for path in [*tmp_path.rglob("*.txt"), *tmp_path.rglob("class-descriptions*.csv")]:
        path.write_text(re.sub("(?i)red", "\0\x1bed", path.read_text()))
    assert read(tmp_path)[1] == ["\N{REPLACEMENT CHARACTER}" * 2 + "ed"]


# What is known but not read


@pytest.mark.parametrize(
    "name, content, what",
    [
        ("x.json", {"images": [], "annotations": [{"id": 1, "image_id": 1, "caption": "a dog"}]}, "COCO captions"),
        ("x.json", {"images": [], "annotations": [{"image_id": 1, "segments_info": []}]}, "COCO panoptic"),
        ("x.json", {"annotations": [{"image_id": 1, "keypoints": [1, 2, 2]}]}, "COCO key points"),
        ("x.json", [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2], "score": 1}], "COCO results"),
        ("x.json", {"a.png12": {"filename": "a.png", "size": 12, "regions": []}}, "VGG Image Annotator"),
        ("x.json", {"_via_settings": {}, "_via_img_metadata": {}}, "VGG Image Annotator"),
        ("x.json", {"size": {}, "objects": [{"classTitle": "red", "geometryType": "rectangle"}]}, "Supervisely"),
        ("x.json", {"imgHeight": 1, "imgWidth": 1, "objects": [{"label": "road", "polygon": []}]}, "Cityscapes"),
        ("x.geojson", {"type": "FeatureCollection", "features": []}, "GeoJSON"),
        ("x.json", {"info": {}, "categories": {}, "items": []}, "Datumaro"),
        ("x.json", {"asset": {}, "regions": []}, "VoTT"),
        ("x.json", [{"data_row": {}, "projects": {}}], "Labelbox"),
        ("x.json", {"samples": [{"filepath": "a.png"}]}, "FiftyOne"),
        ("x.json", {"classes": ["red"], "labels": {"a": [{"label": 0, "bounding_box": [0, 0, 1, 1]}]}}, "FiftyOne"),
        ("x.json", {"image": {"image_id": 1}, "annotations": [{"bbox": [1, 1, 2, 2]}]}, "Segment Anything"),
        (
            "x.xml",
            "<annotations><version>1.1</version><track id='0' label='red'></track></annotations>",
            "CVAT for video",
        ),
        ("x.xml", "<annotation><object><polygon><pt><x>1</x></pt></polygon></object></annotation>", "LabelMe xml"),
        ("x.xml", "<dataset><images><image file='a.png'><box top='1'/></image></images></dataset>", "dlib"),
        ("x.csv", "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes\n", "VGG Image"),
        ("x.json", {"project": {}, "config": {}, "attribute": {}, "file": {}, "metadata": {}}, "VGG Image Annotator"),
        ("x.json", {"version": "2.0", "item": {"name": "a.png"}, "annotations": []}, "Darwin"),
        ("x.json", {"images": [{"image_name": "a.png"}], "label_classes": []}, "Hasty"),
        ("x.json", {"metadata": {}, "instances": [{"type": "bbox", "className": "red"}]}, "SuperAnnotate"),
        ("x.json", {"a.png": {"instances": [{"type": "bbox", "classId": 1}]}}, "SuperAnnotate"),
        ("x.json", [{"task_id": "1", "response": {"annotations": []}}], "Scale AI"),
        ("x.ndjson", '{"data_row": {}, "projects": {}}\n', "Labelbox"),
        ("x.jsonl", '{"image": "a.png", "prefix": "detect red", "suffix": "<loc0001>"}\n', "PaliGemma"),
        ("x.manifest", '{"source-ref": "s3://b/a.png", "job": {}}\n', "SageMaker"),
        ("x.jsonl", '{"imageGcsUri": "gs://b/a.png", "boundingBoxAnnotations": []}\n', "Vertex AI"),
        ("x.csv", "TRAINING,gs://b/a.png,red,0.1,0.2,,,0.5,0.6,,\n", "Vertex AI"),
        ("x.jsonl", '{"image_url": "azureml://a.png", "label": []}\n', "Azure"),
        ("x.odgt", '{"ID": "a", "gtboxes": []}\n', "CrowdHuman"),
        ("x.jsonl", '{"filename": "a.png", "detection": {"instances": []}}\n', "ODVG"),
        ("x.jsonl", '{"image": "a.png", "spans": []}\n', "Prodigy"),
        ("x.jsonl", '{"file_name": "a.png"}\n', "pass its folder"),
        ("x.tfrecord", "\0", "TensorFlow records"),
        ("x.txt", "684,8,273,116,0,0,0,0\n406,119,265,70,1,4,0,1,\n", "VisDrone"),
        ("x.txt", "0--Parade/a b.jpg\n1\n449 330 122 149 0 0 0 0 0 0 \n", "WIDER FACE"),
        ("x.txt", "a b.jpg 0,0,10,10,1 5,5,8,8,0\n", "keras-yolo3"),
        ("x.txt", "2\nimage_id x_1 y_1 width height\n000001.jpg 95 71 226 313\n", "CelebA"),
        ("x.txt", "# PASCAL Annotation Version 1.00\n\n", "PASCAL Annotation"),
    ],
)
def test_a_known_format_that_is_not_read_is_named(tmp_path, name, content, what):
    path = write(tmp_path, name, content)
    assert tools.recognise(str(path)) == []
    assert what in (describe(str(path)) or "") and describe(str(tmp_path)) == describe(str(path))


@pytest.mark.parametrize(
    "name, content, what",
    [
        ("ds0/ann/a.png.json", {"objects": [{"classTitle": "red"}]}, "a.png.json is a Supervisely file"),
        ("gtFine/train/aachen/a_polygons.json", {"imgHeight": 1, "objects": []}, "Cityscapes"),
        ("annotations/default.json", {"info": {}, "categories": {}, "items": []}, "Datumaro"),
    ],
)
def test_a_known_format_is_named_where_the_root_of_its_export_is_passed(tmp_path, name, content, what):
    write(tmp_path, name, content)
    write(tmp_path, "meta.json", {"classes": []})
    with pytest.raises(FileNotFoundError, match=f"no annotations recognised in .*{what}"):
        open_source(tmp_path, report=Report())


@pytest.mark.parametrize("name", ["CreateML", "Label Studio JSON", "BDD100K"])
def test_a_file_called_as_coco_s_is_of_the_tool_that_its_content_is_of(tmp_path, name):
    format, make, _ = TOOL_TREES[name]
    make(tmp_path)
    file = next(tmp_path.rglob("*.json"))
    file.rename(tmp_path / "annotations.json")
    assert recognise_format(tmp_path) == format


@pytest.mark.parametrize("name", ["boxes.dat", "notes.txt", "lines.jsonl"])
def test_boxes_of_no_known_format_can_be_written_as_a_table(tmp_path, name):
    """What the error asks for is read."""
    write(tmp_path, name, "[1]")
    for path, error in ((tmp_path / name, ValueError), (tmp_path, FileNotFoundError)):
        with pytest.raises(error, match="a csv whose first line is ") as refusal:
            open_source(path, report=Report())
    head = re.search(r"first line is (\S+)", str(refusal.value))[1]
    write(tmp_path, "a.png", None)
    write(tmp_path, "boxes.csv", f"{head}\na.png,10,8,30,24,red\n")
    records, classes, _ = read(tmp_path)
    assert boxes(records[0]) == [BOX] and classes == ["red"]


def test_nothing_is_said_of_an_unknown_file(tmp_path):
    assert describe(str(write(tmp_path, "x.json", {"a": 1}))) is None
    assert describe(str(write(tmp_path, "y.json", "{"))) is None
    make_image().save(tmp_path / "a.png")
    assert describe(str(tmp_path)) is None
