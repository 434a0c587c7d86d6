"""`convert_labels`: the same boxes and masks in another format, and a list of what is lost."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tool_trees
from PIL import Image
from pycocotools import mask as coco_mask
from trees import HEIGHT, WIDTH

from lpg_hf._files import unfinished_folder
from lpg_hf.data.check import check_source
from lpg_hf.data.convert import WITH_MASKS, YoloOptions, _Reading, convert_labels
from lpg_hf.data.export import Export, write_dataset
from lpg_hf.data.options import SOURCE_OPTIONS, ReadOptions
from lpg_hf.data.report import Report
from lpg_hf.data.sources import open_source
from lpg_hf.label_maps import read_label_map


TARGETS = ("coco", "voc", "yolo")


def everything(path, images, format="auto", masks=False):
    """file name -> objects as (class name, box, mask or None), as read back."""
    report = Report()
    source = open_source(
        path, images, replace(SOURCE_OPTIONS, masks=masks and format != "voc"), format=format, report=report
    )
    found = {}
    for index in range(len(source)):
        record = source.record(index, report)
        found[record.file_name] = [
            (source.classes[o.category][1], o.box, None if o.rle is None else coco_mask.decode(o.rle).tobytes())
            for o in record.objects
        ]
    assert not set(report.counts) - {"empty_image", "no_mask"}, report.summary()
    return found


def same_boxes(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert [o[0] for o in one[name]] == [o[0] for o in other[name]]
        assert np.allclose([o[1] for o in one[name]], [o[1] for o in other[name]], atol=1e-4, rtol=0)
    return True


@pytest.fixture
def many(coco_tree):
    """Images in folders, whole and broken coordinates, sparse ids, an empty image, other scripts."""
    random = np.random.default_rng(0)
    coco_tree.content["categories"] = [
        {"id": i, "name": n, "supercategory": "s"} for i, n in ((3, "thing"), (90, "犬 č"))
    ]
    coco_tree.content["annotations"] = [coco_tree.annotation(category_id=90, segmentation=...)]
    for number, name in enumerate(("set1/a.png", "set2/données 1.jpg", "empty.png"), start=2):
        coco_tree.add_image(name, number)
        for _ in range(0 if name == "empty.png" else 4):
            x, y, w, h = (random.random(4) * (25, 15, 30, 20) + (0, 0, 2, 2)).tolist()
            coco_tree.content["annotations"].append(
                coco_tree.annotation(
                    id=len(coco_tree.content["annotations"]) + 1,
                    image_id=number,
                    category_id=3,
                    bbox=[x, y, w, h],
                    segmentation=...,
                )
            )
    return coco_tree


@pytest.mark.parametrize("first", TARGETS)
@pytest.mark.parametrize("second", TARGETS)
def test_boxes_survive_two_conversions(many, tmp_path, first, second):
    path = many.write()
    done = convert_labels(path, tmp_path / "one", first, images=many.images)
    assert not done.report.needs_attention and (done.report.images, done.report.objects) == (4, 9)
    convert_labels(tmp_path / "one", tmp_path / "two", second, images=many.images)
    assert same_boxes(everything(path, many.images), everything(tmp_path / "two", many.images))


def test_coco_ids_and_header_come_back(many, tmp_path):
    many.content |= {"info": {"year": 1}, "licenses": [{"id": 1, "name": "x"}]}
    many.content["images"][0]["id"] = 77
    many.content["annotations"][0]["image_id"] = 77
    convert_labels(many.write(), tmp_path / "new.json", "coco", images=many.images)
    content = json.loads((tmp_path / "new.json").read_text(encoding="utf-8"))
    assert content["categories"] == many.content["categories"] and content["info"] == {"year": 1}
    assert content["images"][0] == {"id": 77, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}
    assert [a["category_id"] for a in content["annotations"]] == [90] + [3] * 8
    assert [a["id"] for a in content["annotations"]] == [a["id"] for a in many.content["annotations"]]


def test_voc_to_coco_numbers_images_and_categories(voc_tree, tmp_path):
    convert_labels(voc_tree.root, tmp_path / "out", "coco")
    content = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert content["images"][0]["id"] == 1 and content["categories"] == [{"id": 1, "name": "thing"}]
    assert content["annotations"][0]["bbox"] == [10, 8, 20, 16]


def test_voc_files_are_one_based_and_keep_broken_numbers(coco_tree, tmp_path):
    coco_tree.content["annotations"] = [
        coco_tree.annotation(segmentation=...),
        coco_tree.annotation(id=2, bbox=[0.25, 0.5, 10.5, 20.125], segmentation=...),
    ]
    convert_labels(
        coco_tree.write(), tmp_path / "out", "voc", options=replace(WITH_MASKS, split="val"), images=coco_tree.images
    )
    text = (tmp_path / "out" / "Annotations" / "a.xml").read_text()
    assert "<xmin>11</xmin>" in text and "<ymax>24</ymax>" in text and "<xmin>1.25</xmin>" in text
    assert (tmp_path / "out" / "ImageSets" / "Main" / "val.txt").read_text() == "a\n"
    assert (tmp_path / "out" / "classes.txt").read_text() == "thing\n"


def masked(tree):
    ring = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    ring[5:20, 35:55] = 1
    ring[8:12, 40:50] = 0
    ring[30:34, 36:40] = 1
    rle = coco_mask.encode(ring)
    rle["counts"] = rle["counts"].decode()
    tree.content["annotations"].append(tree.annotation(id=2, bbox=[35, 5, 20, 29], segmentation=rle))
    return tree.write()


@pytest.mark.parametrize("target", ["coco", "yolo"])
def test_masks_with_holes_and_parts_survive(coco_tree, tmp_path, target):
    path = masked(coco_tree)
    done = convert_labels(path, tmp_path / "one", target, images=coco_tree.images)
    convert_labels(tmp_path / "one", tmp_path / "two.json", "coco", images=coco_tree.images)
    before = everything(path, coco_tree.images, masks=True)
    after = everything(tmp_path / "two.json", coco_tree.images, masks=True)
    assert same_boxes(before, after) and [o[2] for o in before["a.png"]] == [o[2] for o in after["a.png"]]
    assert any("outlines between pixels" in line for line in done.lost) == (target == "yolo")


def test_coco_to_coco_keeps_what_both_hold(coco_tree, tmp_path):
    masked(coco_tree)
    coco_tree.content["annotations"][0] |= {"id": 70, "area": 319.5}
    coco_tree.content |= {"licenses": [{"id": 3, "name": "CC"}]}
    coco_tree.content["images"][0]["license"] = 3
    done = convert_labels(coco_tree.write(), tmp_path / "new.json", "coco", images=coco_tree.images)
    content = json.loads((tmp_path / "new.json").read_text())
    coco_tree.content["annotations"][1]["area"] = 320
    assert content == coco_tree.content
    assert done.lost == ["fields of images and annotations that are not COCO's own for detection"]


def test_yolo_outlines_stay_polygons_in_coco(yolo_tree, tmp_path):
    yolo_tree.add("a", "0 0.25 0.25 0.75 0.25 0.5 0.75\n")
    done = convert_labels(yolo_tree.root, tmp_path / "new.json", "coco")
    (item,) = json.loads((tmp_path / "new.json").read_text())["annotations"]
    assert item["segmentation"] == [[15, 10, 45, 10, 30, 30]] and not any("outlines" in line for line in done.lost)


def test_files_with_and_without_masks_all_get_outlines_in_yolo(coco_tree, tmp_path):
    coco_tree.add_image("0.png", 2)
    coco_tree.content["images"].reverse()
    coco_tree.content["annotations"].append(coco_tree.annotation(id=2, image_id=2, segmentation=...))
    convert_labels(coco_tree.write(), tmp_path / "out", "yolo", images=coco_tree.images)
    lines = [(tmp_path / "out" / "labels" / f"{name}.txt").read_text().split() for name in "0a"]
    assert [len(line) for line in lines] == [9, 9]
    coco_tree.content["annotations"].pop(0)
    convert_labels(coco_tree.write(), tmp_path / "boxes", "yolo", images=coco_tree.images)
    assert len((tmp_path / "boxes" / "labels" / "0.txt").read_text().split()) == 5


def test_boxes_thinner_than_a_pixel_are_widened_for_voc_and_said(coco_tree, tmp_path):
    coco_tree.content["annotations"] = [
        coco_tree.annotation(bbox=[10.38, 8.3, 0.93, 0.5], segmentation=...),
        coco_tree.annotation(id=2, segmentation=...),
    ]
    done = convert_labels(coco_tree.write(), tmp_path / "out", "voc", images=coco_tree.images)
    assert "boxes thinner than a pixel: widened to one (1)" in done.lost
    back = check_source(tmp_path / "out", coco_tree.images).report
    assert back.counts == {"one_pixel_box": 1} and back.objects == 2


def test_one_xml_file_can_be_converted_with_its_class_mask(voc_tree, tmp_path):
    voc_tree.add("b")
    voc_tree.add_mask("a")
    convert_labels(voc_tree.root / "Annotations" / "a.xml", tmp_path / "new.json", "coco")
    content = json.loads((tmp_path / "new.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["a.png"]
    assert coco_mask.area(content["annotations"][0]["segmentation"]) == 320


def test_masks_become_a_class_png_and_come_back(coco_tree, tmp_path):
    path = masked(coco_tree)
    coco_tree.content["categories"].append({"id": 2, "name": "other"})
    coco_tree.content["annotations"][1]["category_id"] = 2
    coco_tree.write()
    done = convert_labels(path, tmp_path / "new" / "voc", "voc", images=coco_tree.images)
    labels = read_label_map(tmp_path / "new" / "voc" / "SegmentationClass" / "a.png")
    assert (labels[8:24, 10:30] == 1).all() and (labels == 2).sum() == 15 * 20 - 40 + 16
    assert any("instances in masks" in line for line in done.lost)
    before = everything(path, coco_tree.images, masks=True)
    for target in ("coco", "yolo"):
        done = convert_labels(tmp_path / "new" / "voc", tmp_path / "new" / target, target, images=coco_tree.images)
        after = everything(tmp_path / "new" / target, coco_tree.images, masks=True)
        assert same_boxes(before, after) and [o[2] for o in before["a.png"]] == [o[2] for o in after["a.png"]]
        assert any("pixels of its class in its box" in line for line in done.lost)
    convert_labels(tmp_path / "new" / "voc", tmp_path / "again", "voc", images=coco_tree.images)
    assert (read_label_map(tmp_path / "again" / "SegmentationClass" / "a.png") == labels).all()


def test_no_masks_writes_boxes_only(coco_tree, tmp_path):
    for target in TARGETS:
        done = convert_labels(
            masked(coco_tree), tmp_path / "new" / target, target, images=coco_tree.images, options=SOURCE_OPTIONS
        )
        assert any("not asked for" in line for line in done.lost)
    assert not (tmp_path / "new" / "voc" / "SegmentationClass").exists()
    assert (tmp_path / "new" / "yolo" / "labels" / "a.txt").read_text().split()[:2] == ["0", "0.333333333333"]
    assert "segmentation" not in (tmp_path / "new" / "coco" / "annotations.json").read_text()


def test_boxes_without_masks_are_normal_and_said(coco_tree, tmp_path):
    coco_tree.content["annotations"].append(coco_tree.annotation(id=2, segmentation=...))
    for target in TARGETS:
        done = convert_labels(coco_tree.write(), tmp_path / "new" / target, target, images=coco_tree.images)
        assert not done.report.needs_attention
        what = "the outline of their box, if any has a mask" if target == "yolo" else "boxes only"
        assert f"objects without a mask: written as {what} (1)" in done.lost
    assert len((tmp_path / "new" / "yolo" / "labels" / "a.txt").read_text().splitlines()[1].split()) == 9


def test_what_is_lost_is_said(coco_tree, voc_tree, tmp_path):
    coco_tree.content |= {"info": "x", "licenses": [{"id": 1, "name": "CC"}]}
    coco_tree.content["images"][0]["license"] = 1
    coco_tree.content["categories"] = [{"id": 7, "name": "thing", "supercategory": "s"}]
    crowd = {"size": [HEIGHT, WIDTH], "counts": [0, 20, WIDTH * HEIGHT - 20]}
    coco_tree.content["annotations"] = [
        coco_tree.annotation(category_id=7, segmentation=..., area=5),
        coco_tree.annotation(id=2, category_id=7, iscrowd=1, segmentation=crowd, bbox=[0, 0, 1, 20]),
        coco_tree.annotation(id=3, category_id=7, bbox=[5, 5, 30, 30]),
    ]
    for target in ("voc", "yolo"):
        lost = "\n".join(
            convert_labels(coco_tree.write(), tmp_path / "new" / target, target, images=coco_tree.images).lost
        )
        expected = (
            "category ids [7]",
            "ids of images and annotations",
            "info, licenses, supercategories",
            f"crowd regions: skipped, {'ignored (255)' if target == 'voc' else 'their pixels become background'}",
            "licences of images (1)",
            "areas: recomputed from mask or box (1)",
        )
        assert all(text in lost for text in expected)
        assert ("boxes that differ from the extent of their mask" in lost) == (target == "yolo")
    assert (read_label_map(tmp_path / "new" / "voc" / "SegmentationClass" / "a.png")[:20, 0] == 255).all()
    assert (tmp_path / "new" / "voc" / "Annotations" / "a.xml").read_text().count("<object>") == 2
    voc_tree.add("a", voc_tree.xml(objects=[voc_tree.object(flags="<difficult>1</difficult>")]))
    lost = convert_labels(voc_tree.root, tmp_path / "from_voc", "coco").lost
    assert "difficult flags: kept as ordinary objects (1)" in lost
    convert_labels(voc_tree.root, tmp_path / "same", "voc")
    assert "<difficult>1</difficult>" in (tmp_path / "same" / "Annotations" / "a.xml").read_text()


def test_problems_on_the_way_are_counted(coco_tree, tmp_path):
    coco_tree.content["annotations"].append(coco_tree.annotation(id=2, bbox=[0, 0, 0, 0]))
    coco_tree.add_image("a.jpg", 2)
    done = convert_labels(coco_tree.write(), tmp_path / "out", "yolo", images=coco_tree.images)
    assert done.report.counts == {"degenerate_box": 1, "label_name_taken": 1} and done.report.images == 1
    assert "a.jpg: a" in done.summary() and done.remedy == ""


@pytest.mark.parametrize("target", TARGETS)
def test_an_existing_result_is_never_touched(coco_tree, tmp_path, target):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("x")
    with pytest.raises(FileExistsError, match="out exists already and is not empty; choose another"):
        convert_labels(coco_tree.write(), out, target, images=coco_tree.images)
    (out / "mine").unlink()
    convert_labels(coco_tree.write(), out, target, images=coco_tree.images)
    assert not convert_labels(coco_tree.write(), out, target, images=coco_tree.images).is_new
    coco_tree.content["categories"][0]["name"] = "other"
    with pytest.raises(FileExistsError):
        convert_labels(coco_tree.write(), out, target, images=coco_tree.images)


@pytest.mark.parametrize("target", TARGETS)
def test_a_failure_leaves_nothing_behind(many, tmp_path, target, monkeypatch):
    from lpg_hf.data.sources import Source

    path, made = many.write(), Source.record

    def fail(self, index, report):
        if index == 3:
            raise OSError("disk gone")
        return made(self, index, report)

    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.setattr(Source, "record", fail)
    with pytest.raises(OSError, match="disk gone"):
        convert_labels(path, place / "out", target, images=many.images)
    assert list(place.iterdir()) == []


def test_nothing_usable_writes_nothing(coco_tree, tmp_path):
    coco_tree.content["images"][0] |= {"width": 10, "height": 10}
    with pytest.raises(ValueError, match="no image of .*annotations.json can be used"):
        convert_labels(coco_tree.write(), tmp_path / "out", "voc", images=coco_tree.images)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="unknown format 'csv' to write.*--to"):
        convert_labels(coco_tree.write(), tmp_path / "out", "csv")


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_written_outside(coco_tree, tmp_path, target):
    for number, name in enumerate(("../evil.png", "/tmp/evil.png", "x/../../evil.png", "C:\\evil.png"), start=2):
        coco_tree.content["images"].append({"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT})
    path = coco_tree.write()
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    done = convert_labels(path, tmp_path / "deep" / "out", target, images=coco_tree.images)
    new = [p for p in sorted(str(p) for p in tmp_path.rglob("*")) if p not in before]
    assert all(p.startswith(str(tmp_path / "deep")) for p in new) and done.report.counts == {"unsafe_path": 4}
    assert os.listdir(tmp_path / "deep") == ["out"]


def test_written_labels_name_no_path_of_this_machine(many, tmp_path):
    path = many.write()
    for target in TARGETS:
        convert_labels(path, tmp_path / "new" / target, target, images=many.images)
        for file in (p for p in (tmp_path / "new" / target).rglob("*") if p.is_file()):
            assert str(tmp_path).encode() not in file.read_bytes()


def test_yolo_outlines_have_fewer_points_if_asked(coco_tree, tmp_path):
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    disc = coco_mask.encode(np.asfortranarray(((rows - 20) ** 2 + (columns - 30) ** 2 < 300).astype(np.uint8)))
    rle = {"size": [HEIGHT, WIDTH], "counts": disc["counts"].decode()}
    coco_tree.content["annotations"] = [coco_tree.annotation(bbox=[12, 2, 37, 37], segmentation=rle)]
    path, points, masks = coco_tree.write(), {}, {}
    for simplify in (0.0, 0.5):
        out = tmp_path / f"yolo{simplify}"
        convert_labels(path, out, "yolo", yolo_options=YoloOptions(simplify=simplify))
        points[simplify] = len((out / "labels" / "a.txt").read_text().split()) // 2
        source = open_source(out / "data.yaml", options=WITH_MASKS, report=Report())
        masks[simplify] = source.record(0, Report()).objects[0].rle
    assert points[0.5] < points[0.0] / 2
    assert (
        coco_mask.iou([masks[0.5]], [disc], [0])[0, 0] > 0.95 and coco_mask.iou([masks[0.0]], [disc], [0])[0, 0] == 1
    )
    for target, options in (("voc", WITH_MASKS), ("yolo", SOURCE_OPTIONS)):
        with pytest.raises(ValueError, match="simplify=2 .--simplify. is for outlines of YOLO"):
            convert_labels(path, tmp_path / "no", target, options=options, yolo_options=YoloOptions(simplify=2))


def test_yolo_result_with_its_images_is_a_yolo_folder(many, tmp_path):
    path = many.write()
    convert_labels(path, tmp_path / "out", "yolo", images=many.images)
    assert same_boxes(everything(path, many.images), everything(tmp_path / "out" / "data.yaml", None))
    done = convert_labels(path, tmp_path / "none", "yolo", images=many.images, yolo_options=YoloOptions("none"))
    assert "images/" in done.remedy and not (tmp_path / "none" / "images").exists()
    shutil.copytree(many.images, tmp_path / "none" / "images")
    assert same_boxes(everything(path, many.images), everything(tmp_path / "none" / "data.yaml", None))
    with pytest.raises(ValueError, match="with_images='some' .--with-images. must be one of link, copy, none"):
        convert_labels(path, tmp_path / "new", "yolo", images=many.images, yolo_options=YoloOptions("some"))


def test_a_dataset_without_masks_needs_no_option(tmp_path):
    tool_trees.imagefolder(tmp_path / "in")
    for target in TARGETS:
        done = convert_labels(tmp_path / "in", tmp_path / target, target)
        assert done.report.counts == {} and done.report.objects == 1
        assert not any("mask" in line or "outline" in line for line in done.lost)
    with pytest.raises(ValueError, match=r"has no masks: .*masks=False"):
        open_source(tmp_path / "in", options=WITH_MASKS, report=Report())


@pytest.fixture
def listed(yolo_tree):
    """A YOLO dataset whose splits are lists."""
    for name in "bc":
        yolo_tree.add(name, yolo_tree.LINE)
    for split, names in (("train", "ac"), ("val", "b")):
        yolo_tree.write(f"{split}.txt", "".join(f"./images/{name}.png\n" for name in names))
    yolo_tree.write("data.yaml", "train: train.txt\nval: val.txt\nnames: [thing]\n")
    return yolo_tree


def test_voc_gets_a_list_for_each_split(listed, tmp_path):
    done = convert_labels(listed.root, tmp_path / "voc", "voc")
    lists = {path.stem: path.read_text().split() for path in (tmp_path / "voc" / "ImageSets" / "Main").iterdir()}
    assert lists == {"all": ["a", "c", "b"], "train": ["a", "c"], "val": ["b"]}
    assert not any("split" in line for line in done.lost)
    convert_labels(tmp_path / "voc", tmp_path / "again", "yolo", images=listed.root / "images")
    assert (tmp_path / "again" / "val.txt").read_text() == "./images/b.png\n"
    convert_labels(listed.root, tmp_path / "part", "voc", options=replace(WITH_MASKS, split="val"))
    assert [path.name for path in (tmp_path / "part" / "ImageSets" / "Main").iterdir()] == ["val.txt"]


def test_coco_says_that_splits_are_lost(listed, tmp_path):
    done = convert_labels(listed.root, tmp_path / "all.json", "coco")
    assert any(line.startswith("splits: ") and line.endswith("(3)") for line in done.lost)
    done = convert_labels(listed.root, tmp_path / "val.json", "coco", options=replace(WITH_MASKS, split="val"))
    assert not any("splits" in line for line in done.lost)


def test_losses_of_masks_are_told_only_where_there_is_a_mask(coco_tree, tmp_path):
    said = {}
    for name, segmentation in (("with", coco_tree.annotation()["segmentation"]), ("without", [])):
        coco_tree.content["annotations"] = [coco_tree.annotation(segmentation=segmentation)]
        lost = convert_labels(coco_tree.write(), tmp_path / name, "voc", images=coco_tree.images).lost
        said[name] = [any(text in line for line in lost) for text in ("outlines between", "instances in masks")]
    assert said == {"with": [True, True], "without": [False, False]}


def coloured(root, mode="RGB", colour=(250, 50, 83)):
    """CVAT's export with class masks in the colours of labelmap.txt."""
    tool_trees.cvat_voc(root)
    text = "background:0,0,0::\nblue:10,20,200::\nred:250,50,83::\n"
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + text)
    pixels = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    pixels[8:24, 10:30] = colour
    (root / "SegmentationClass").mkdir()
    mask = Image.fromarray(pixels)
    (mask if mode == "RGB" else mask.quantize(2)).save(root / "SegmentationClass" / "a.png")
    return root


@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_class_masks_in_the_colours_of_a_labelmap_are_those_of_its_classes(tmp_path, mode):
    root, options = coloured(tmp_path / "in", mode), replace(WITH_MASKS, zero_based=True)
    done = convert_labels(root, tmp_path / "new.json", "coco", options=options)
    content = json.loads((tmp_path / "new.json").read_text())
    assert not done.report.needs_attention and [item["name"] for item in content["categories"]] == ["blue", "red"]
    (item,) = content["annotations"]
    assert item["category_id"] == 2 and coco_mask.area(item["segmentation"]) == 320
    convert_labels(root, tmp_path / "voc", "voc", options=options)
    assert (tmp_path / "voc" / "classes.txt").read_text() == "blue\nred\n"
    labels = read_label_map(tmp_path / "voc" / "SegmentationClass" / "a.png")
    assert (labels == 2).sum() == 320 and set(np.unique(labels)) == {0, 2}
    source = open_source(root, options=options, report=Report())
    assert (source.record(0, Report()).changed_mask(None) == labels).all()
    assert check_source(root, options=options).passed


def test_a_colour_of_no_class_is_counted(tmp_path):
    root, options = coloured(tmp_path / "in", colour=(1, 2, 3)), replace(WITH_MASKS, zero_based=True)
    done = convert_labels(root, tmp_path / "new.json", "coco", options=options)
    assert done.report.counts == {"invalid_class_mask": 1}
    assert r"colour (1, 2, 3), which labelmap.txt gives to no class" in done.report.places["invalid_class_mask"][0]
    (root / "labelmap.txt").write_text("red:250,50::\n")
    with pytest.raises(ValueError, match="labelmap.txt: line 1 is not name:r,g,b:parts:actions"):
        open_source(root, options=options, report=Report())


def test_class_masks_without_a_class_list_are_refused(voc_tree, tmp_path):
    voc_tree.add_mask("a")
    (voc_tree.root / "classes.txt").unlink()
    with pytest.raises(ValueError, match="no classes.txt .*--no-masks"):
        convert_labels(voc_tree.root, tmp_path / "out", "coco")
    assert convert_labels(voc_tree.root, tmp_path / "out", "coco", options=SOURCE_OPTIONS).report.objects == 1


def test_class_masks_are_written_where_there_are_masks(many, tmp_path):
    many.content["annotations"][0]["segmentation"] = []
    convert_labels(many.write(), tmp_path / "boxes", "voc", images=many.images)
    assert not (tmp_path / "boxes" / "SegmentationClass").exists()
    many.content["annotations"][0] = many.annotation(category_id=90)
    convert_labels(many.write(), tmp_path / "masks", "voc", images=many.images)
    folder = tmp_path / "masks" / "SegmentationClass"
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png")) == ["a.png", "empty.png"]
    assert read_label_map(folder / "empty.png").max() == 0 and read_label_map(folder / "a.png").max() == 2


def test_a_class_named_background_does_not_shift_the_others(coco_tree, tmp_path):
    coco_tree.content["categories"] = [{"id": 0, "name": "background"}, {"id": 1, "name": "thing"}]
    done = convert_labels(coco_tree.write(), tmp_path / "out", "voc", images=coco_tree.images)
    assert (tmp_path / "out" / "classes.txt").read_text() == "background class\nthing\n"
    assert (read_label_map(tmp_path / "out" / "SegmentationClass" / "a.png")[8:24, 10:30] == 2).all()
    assert any('" class" behind' in line for line in done.lost)


def test_what_is_lost_can_be_asked_twice(coco_tree):
    coco_tree.content["annotations"].append(coco_tree.annotation(id=2, segmentation=...))
    report = Report()
    source = open_source(coco_tree.write(), coco_tree.images, WITH_MASKS, report=report)
    reading = _Reading(source, "yolo", True, report)
    assert len(list(reading)) == 1
    lost = reading.lost()
    assert any("without a mask" in line and line.endswith("(1)") for line in lost) and reading.lost() == lost
    assert report.counts == {"no_mask": 1}


def test_class_masks_of_an_exported_data_set_become_masks_of_objects(voc_tree, tmp_path):
    voc_tree.add_mask("a")
    write_dataset(tmp_path / "exported", Export("voc", voc_tree.root, with_images=True), ReadOptions(masks=True))
    done = convert_labels(tmp_path / "exported", tmp_path / "new.json", "coco")
    assert any("pixels of its class in its box" in line for line in done.lost) and not done.report.needs_attention
    (item,) = json.loads((tmp_path / "new.json").read_text())["annotations"]
    assert item["area"] == 320 == coco_mask.area(item["segmentation"])


def test_ids_of_an_exported_data_set_are_kept_or_said_to_be_lost(coco_tree, tmp_path):
    coco_tree.content["images"][0]["id"] = 101
    coco_tree.content["annotations"][0] |= {"id": 11, "image_id": 101, "category_id": 7}
    coco_tree.content["categories"] = [{"id": 7, "name": "thing"}]
    for image_id, kept, lost in (
        (101, 101, "ids of categories, if the dataset was made of a COCO file: numbered from 1"),
        ("x101", 1, "ids of images and categories, if the dataset was made of a COCO file: numbered from 1"),
    ):
        coco_tree.content["images"][0]["id"] = coco_tree.content["annotations"][0]["image_id"] = image_id
        coco_tree.write()
        folder = tmp_path / str(image_id)
        write_dataset(folder, Export("coco", coco_tree.root, with_images=True), ReadOptions(masks=True))
        done = convert_labels(folder, tmp_path / f"{image_id}.json", "coco")
        content = json.loads((tmp_path / f"{image_id}.json").read_text())
        assert content["images"][0]["id"] == content["annotations"][0]["image_id"] == kept and lost in done.lost


@pytest.mark.parametrize("to, name", [("coco", "out.json"), ("coco", "out"), ("voc", "out"), ("yolo", "out")])
def test_a_finished_conversion_is_told_from_other_files(coco_tree, tmp_path, to, name):
    """A killed one leaves a folder that the next start removes."""
    coco_tree.write()
    place = tmp_path / "place"
    (place / f".{name}.unfinished" / "out" / "labels").mkdir(parents=True)
    first = convert_labels(coco_tree.root, place / name, to)
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    again = convert_labels(coco_tree.root, place / name, to)
    assert first.is_new and not again.is_new and "finished already, nothing was written" in again.summary()
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before
    assert [path.name for path in place.iterdir()] == [name]
    coco_tree.content["categories"][0]["name"] = "other"
    coco_tree.write()
    with pytest.raises(FileExistsError, match="exists already and is not empty"):
        convert_labels(coco_tree.root, place / name, to)
    assert [path.name for path in place.iterdir()] == [name]


def test_a_second_conversion_to_the_same_place_is_told_so(coco_tree, tmp_path):
    coco_tree.write()
    with unfinished_folder(tmp_path / "out"):
        with pytest.raises(ValueError, match=rf"writes .*out now \(process {os.getpid()} on .+\). Wait"):
            convert_labels(coco_tree.root, tmp_path / "out", "yolo")
    assert convert_labels(coco_tree.root, tmp_path / "out", "yolo").is_new


ODD_NAMES = ["two\nlines", " blanks  inside ", "blanks inside", "bell\x07", "half \ud83d", "whole \U0001f600", "\t"]


@pytest.mark.parametrize("to", TARGETS)
def test_what_is_written_of_odd_names_and_numbers_can_be_read_back(coco_tree, tmp_path, to):
    coco_tree.content["info"] = {"a": float("nan"), "b": [float("inf"), 1], "file": "caf\udce9.jpg"}
    coco_tree.content["categories"] = [{"id": n, "name": name} for n, name in enumerate(ODD_NAMES, start=1)]
    numbers = range(1, 1 + len(ODD_NAMES))
    coco_tree.content["annotations"] = [coco_tree.annotation(id=n, category_id=n) for n in numbers]
    out = tmp_path / "out"
    done = convert_labels(coco_tree.write(), out, to, images=coco_tree.images)
    assert done.report.counts == {"duplicate_category_name": 2}
    back = open_source(out, None if to == "yolo" else coco_tree.images, WITH_MASKS, report=Report())
    expected = ["two lines", "blanks inside (2)", "blanks inside (3)", "bell\ufffd", "half \ufffd", "whole \U0001f600"]
    assert [name for _, name in back.classes] == [*expected, "category 7"]
    for file in out.rglob("*.json"):
        info = json.loads(file.read_text(), parse_constant=pytest.fail)["info"]
        assert info == {"a": None, "b": [None, 1], "file": "caf\udce9.jpg"}


@pytest.mark.parametrize(
    "target, names, counts",
    [
        ("yolo", ["a.png", "images/a.png"], {"label_name_taken": 1}),
        ("yolo", ["labels/a.png", "labels/images/a.png"], {"label_name_taken": 1}),
        ("yolo", ["a.png", "a\nb.png", "b\x85.png"], {"unwritable_name": 2}),
        ("voc", ["a.png", "images/a.png"], {}),
        ("voc", ["a.png", "a..png"], {}),
        ("voc", ["a.png", "a\x01b.png", "a\x0bb.png", "b .png", " b.png"], {"unwritable_name": 4}),
    ],
)
def test_names_that_the_new_files_cannot_hold_are_counted(coco_tree, tmp_path, target, names, counts):
    coco_tree.content["images"], coco_tree.content["annotations"] = [], []
    for number, name in enumerate(names, start=1):
        coco_tree.add_image(name, number)
        coco_tree.content["annotations"].append(coco_tree.annotation(id=number, image_id=number))
    done = convert_labels(coco_tree.write(), tmp_path / "out", target, images=coco_tree.images)
    assert done.report.counts == counts and done.report.images == len(names) - sum(counts.values())
    found = Report()
    images = coco_tree.images if target == "voc" else None
    source = open_source(
        tmp_path / "out", images, replace(SOURCE_OPTIONS, split="all" if images else None), report=found
    )
    assert len(source) == done.report.images, found.summary()


def test_names_that_look_like_those_of_another_drive(yolo_tree, tmp_path):
    yolo_tree.add("a:b", yolo_tree.LINE)
    for target, number in (("yolo", 2), ("voc", 1), ("coco", 1)):
        done = convert_labels(yolo_tree.root, tmp_path / f"to_{target}", target)
        assert (done.report.images, done.report.counts.get("unwritable_name", 0)) == (number, 2 - number)
    report = Report()
    assert write_dataset(tmp_path / "rows", Export("yolo", yolo_tree.root), report=report) == 1
    assert report.counts == {"unwritable_name": 1} and report.places["unwritable_name"] == ["'a:b.png'"]


def test_masks_of_more_classes_than_a_class_mask_holds_are_lost(coco_tree, tmp_path):
    coco_tree.content["categories"] = [{"id": number, "name": f"class {number}"} for number in range(1, 301)]
    corners = [[20, 10, 40, 10, 40, 20, 20, 20]]
    coco_tree.content["annotations"] = [coco_tree.annotation(category_id=300, segmentation=corners)]
    done = convert_labels(coco_tree.write(), tmp_path / "out", "voc", images=coco_tree.images)
    assert "masks: 300 classes do not fit in an 8-bit class mask (1)" in done.lost
    assert not (tmp_path / "out" / "SegmentationClass").exists()
    assert "<name>class 300</name>" in (tmp_path / "out" / "Annotations" / "a.xml").read_text()
