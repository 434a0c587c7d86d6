"""An object that cannot be used is never background: its region is ignored, or its image is left out, in every use."""

import json
import os

import numpy as np
import pytest
from PIL import Image
from tool_trees import labelme_json, write
from trees import HEIGHT, WIDTH, voc_object

from lpg_hf.cli import main
from lpg_hf.data._examples import box_label_map, class_mask, label_map, object_mask
from lpg_hf.data.load import class_names, load_boxes
from lpg_hf.data.options import SOURCE_OPTIONS, ReadOptions
from lpg_hf.data.report import Report
from lpg_hf.data.sources import open_source
from lpg_hf.generators._function import FunctionGenerator
from lpg_hf.masks.writer import MaskSettings, write_masks


REGION = (40, 20, 52, 34)  # xyxy
XYWH = [40, 20, 12, 14]
TEXT = "<object><name>thing</name><bndbox><xmin>?</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object>"


def ended(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return int(end.value.code or 0)


def with_region(tree, kind: str) -> tuple[str, dict]:
    """A tree whose a.png holds a box at REGION of no class that is known; (format, options to load it)."""
    if kind == "coco":
        tree.content["annotations"].append(tree.annotation(id=2, category_id=[7], bbox=XYWH, segmentation=...))
        tree.write()
        return "coco", {"annotations": tree.root / "annotations.json"}
    if kind == "voc":
        tree.add("a", tree.xml(objects=[tree.object(), voc_object("slip", (41, 21, 52, 34))]))
        return "voc", {}
    x1, y1, x2, y2 = REGION
    line = f"9 {(x1 + x2) / 2 / WIDTH} {(y1 + y2) / 2 / HEIGHT} {(x2 - x1) / WIDTH} {(y2 - y1) / HEIGHT}"
    tree.add("a", f"{tree.LINE}\n{line}\n")
    return "yolo", {"classes": ["thing"]}


def with_lost(tree, kind: str) -> None:
    """A second image b.png of whose two objects one cannot be placed."""
    if kind == "coco":
        tree.add_image("b.png", 2)
        bad = {"image_id": 2, "bbox": None, "segmentation": ...}
        tree.content["annotations"] += [tree.annotation(id=2, image_id=2), tree.annotation(id=3, **bad)]
        tree.write()
    elif kind == "voc":
        tree.add("b", tree.xml("b.png", objects=[tree.object(), TEXT]))
    elif kind == "yolo":
        tree.add("b", f"{tree.LINE}\n0 0.5 0.5 0.2\n")
    else:
        for name in "ab":
            write(tree, f"{name}.png", None)
        write(tree, "a.json", labelme_json())
        write(tree, "b.json", labelme_json("b.png", [{}, {"points": [["x", 1], [2, 3]]}]))


def is_region_ignored(labels: np.ndarray) -> bool:
    x1, y1, x2, y2 = REGION
    outside = np.ones(labels.shape, dtype=bool)
    outside[y1:y2, x1:x2] = False
    return bool((labels[y1:y2, x1:x2] == 255).all() and not (labels[outside] == 255).any())


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo"])
def test_the_region_of_an_unknown_class_is_ignored_in_training(request, kind):
    tree = request.getfixturevalue(f"{kind}_tree")
    format, options = with_region(tree, kind)
    if kind == "yolo":  # The number 9 is in no list: refused where all classes are asked for.
        with pytest.raises(ValueError, match="has the class number 9"):
            load_boxes(format, root=tree.root)
        (tree.root / "classes.txt").unlink()
    report = Report()
    rows = load_boxes(format, root=tree.root, report=report, **options)
    assert is_region_ignored(box_label_map(rows[0])) and box_label_map(rows[0])[10, 15] == 1
    assert report.is_incomplete and report.objects == 1
    if kind == "coco":
        row = load_boxes(format, root=tree.root, masks=True, **options)[0]
        assert is_region_ignored(label_map(row)) and is_region_ignored(object_mask(row, 0))
        assert is_region_ignored(class_mask(row, 1))


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo", "labelme"])
def test_an_image_with_an_object_of_unknown_place_is_left_out_of_masks(request, tmp_path, kind):
    tree = tmp_path / "labelme" if kind == "labelme" else request.getfixturevalue(f"{kind}_tree")
    with_lost(tree, kind)
    root = tree if kind == "labelme" else tree.root
    out = tmp_path / "masks"
    assert ended("masks", root, "--generator", "box", "--out", out, "--write", "png,coco,yolo") == 1
    assert os.listdir(out / "masks") == ["a.png"] and os.listdir(out / "labels") == ["a.txt"]
    assert [image["file_name"] for image in json.loads((out / "instances.json").read_text())["images"]] == ["a.png"]
    assert json.loads((out / "report.json").read_text())["report"]["counts"]["incomplete_image"] == 1
    assert ended("check", root) == 1


@pytest.mark.parametrize(
    "shape",
    [
        {"points": [[40, 20]]},
        {"shape_type": "polygon", "points": [[40, 20], [52, 34]]},
        {"shape_type": "circle", "points": [[40, 20]]},
    ],
)
def test_an_image_with_a_labelme_shape_of_too_few_points_is_left_out(tmp_path, shape):
    write(tmp_path, "a.png", None)
    write(tmp_path, "b.png", None)
    write(tmp_path, "a.json", labelme_json())
    write(tmp_path, "b.json", labelme_json("b.png", [{}, shape]))
    out = tmp_path / "out"
    assert ended("masks", tmp_path, "--generator", "box", "--out", out) == 1
    assert os.listdir(out / "masks") == ["a.png"]


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo", "labelme"])
def test_masks_in_the_folder_of_their_annotations_are_no_annotations(request, tmp_path, kind):
    root = tmp_path / "labelme"
    if kind == "labelme":
        write(root, "a.png", None)
        write(root, "a.json", labelme_json())
    else:
        tree = request.getfixturevalue(f"{kind}_tree")
        root = (tree.write() if kind == "coco" else tree.root / "x").parent
    names = sorted(os.listdir(root))
    for write_ in ("yolo,labelme", "yolo,labelme", "png,coco"):
        assert ended("masks", root, "--generator", "box", "--out", root / "out", "--write", write_, "--overlay") == 0
    assert ended("check", root) == 0
    assert ended("convert-labels", root, tmp_path / "new.json", "--to", "coco") == 0
    assert len(json.loads((tmp_path / "new.json").read_text())["images"]) == 1
    assert sorted(os.listdir(root)) == sorted([*names, "out"])


@pytest.mark.parametrize("target", ["coco", "voc", "yolo"])
@pytest.mark.parametrize("kind", ["coco", "voc", "yolo", "labelme"])
def test_an_image_with_an_object_of_unknown_place_is_left_out_of_conversions(request, tmp_path, kind, target):
    tree = tmp_path / "labelme" if kind == "labelme" else request.getfixturevalue(f"{kind}_tree")
    with_lost(tree, kind)
    root = tree if kind == "labelme" else tree.root
    assert ended("convert-labels", root, tmp_path / "out", "--to", target) == 1
    images = None if target == "yolo" else root if kind == "labelme" else root / "images"
    images = root / "JPEGImages" if kind == "voc" and target != "yolo" else images
    source = open_source(tmp_path / "out", images, SOURCE_OPTIONS, report=Report())
    assert source.file_names == ["a.png"]


@pytest.mark.parametrize("kind", ["coco", "voc"])
def test_an_image_with_an_object_of_unknown_place_is_left_out_of_exports(request, tmp_path, kind):
    tree = request.getfixturevalue(f"{kind}_tree")
    with_lost(tree, kind)
    assert ended("export-data", tmp_path / "out", "--format", kind, "--root", tree.root) == 1
    assert load_boxes("parquet", root=tmp_path / "out", images=tree.root / "images" if kind == "coco" else
                      tree.root / "JPEGImages")["file_name"] == ["a.png"]  # fmt: skip


def test_the_region_of_an_unknown_class_is_ignored_in_masks(coco_tree, tmp_path):
    with_region(coco_tree, "coco")
    out = tmp_path / "masks"
    path = coco_tree.root / "annotations.json"
    coco_tree.add_image("b.png", 2)
    coco_tree.content["annotations"].append(coco_tree.annotation(id=5, image_id=2))
    coco_tree.write()
    assert ended("masks", path, "--generator", "box", "--out", out, "--write", "png,yolo") == 1
    assert os.listdir(out / "labels") == ["b.txt"] and os.listdir(out / "images") == ["b.png"]
    assert (out / "train.txt").read_text() == "./images/b.png\n"
    labels = np.asarray(Image.open(out / "masks" / "a.png"))
    assert is_region_ignored(labels) and (labels[8:24, 10:30] == 1).all()


def test_a_conversion_marks_the_region_or_leaves_the_image_out(coco_tree, tmp_path):
    coco_tree.add_image("b.png", 2)
    coco_tree.content["annotations"].append(coco_tree.annotation(id=5, image_id=2))
    with_region(coco_tree, "coco")
    path = coco_tree.root / "annotations.json"
    assert ended("convert-labels", path, tmp_path / "out.json", "--to", "coco") == 1
    made = json.loads((tmp_path / "out.json").read_text())["annotations"]
    assert [(item["category_id"], item["iscrowd"], item["bbox"]) for item in made if item["iscrowd"]] == [(1, 1, XYWH)]
    assert ended("convert-labels", path, tmp_path / "voc", "--to", "voc") == 1
    assert is_region_ignored(np.asarray(Image.open(tmp_path / "voc" / "SegmentationClass" / "a.png")))
    assert ended("convert-labels", path, tmp_path / "boxes", "--to", "voc", "--no-masks") == 1
    assert os.listdir(tmp_path / "boxes" / "Annotations") == ["b.xml"]
    assert ended("convert-labels", path, tmp_path / "yolo", "--to", "yolo") == 1
    assert os.listdir(tmp_path / "yolo" / "labels") == ["b.txt"]


def test_a_labelme_point_of_a_class_is_an_ignored_region(tmp_path):
    write(tmp_path, "a.png", None)
    write(tmp_path, "a.json", labelme_json(shapes=[{}, {"shape_type": "line", "points": [[40, 20], [52, 34]]}]))
    assert ended("masks", tmp_path, "--generator", "box", "--out", tmp_path / "masks") == 1
    assert is_region_ignored(np.asarray(Image.open(tmp_path / "masks" / "masks" / "a.png")))
    write(
        tmp_path,
        "a.json",
        labelme_json(shapes=[{}, {"label": "lane", "shape_type": "line", "points": [[1, 1], [5, 5]]}]),
    )
    source = open_source(tmp_path, report=Report(), options=SOURCE_OPTIONS)
    record = source.record(0, Report())
    assert record is not None and len(record.objects) == 1  # No object of this class can be masked.


CAPTIONS = {"annotations": [{"id": 1, "image_id": 1, "caption": "A red box."}]}
PANOPTIC = {"annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": []}]}


@pytest.mark.parametrize("command", ["check", "masks", "convert-labels", "load"])
@pytest.mark.parametrize(
    "kind, looks",
    [("captions", "COCO captions"), ("panoptic", "COCO panoptic"), ("voc", "LabelMe xml"), ("dota", "DOTA"),
     ("kitti", "KITTI")],
)  # fmt: skip
def test_a_set_without_a_readable_object_says_what_it_looks_like(
    coco_tree, voc_tree, yolo_tree, tmp_path, capsys, command, kind, looks
):
    format = {"captions": "coco", "panoptic": "coco", "voc": "voc"}.get(kind, "yolo")
    if format == "coco":
        coco_tree.content |= CAPTIONS if kind == "captions" else PANOPTIC
        path = coco_tree.write()
    elif format == "voc":
        polygon = "<object><name>x</name><polygon><pt><x>1</x><y>2</y></pt></polygon></object>"
        voc_tree.add("a", voc_tree.xml(objects=[polygon]))
        path = voc_tree.root
    else:
        dota = "46 20 52 27 46 34 40 27 plane 1\n"
        kitti = "Car 0.00 0 -10 10.0 8.0 30.0 24.0 -1 -1 -1 -1000 -1000 -1000 -10\n"
        yolo_tree.add("a", dota if kind == "dota" else kitti)
        path = yolo_tree.root
    if command == "load":
        where = {"annotations": path, "images": coco_tree.images} if format == "coco" else {"root": path}
        with pytest.raises(ValueError, match=f"(?s)no object of .* can be used.*{looks}"):
            load_boxes(format, **where)
        return
    out = tmp_path / "out"
    more = {"check": [path], "masks": [path, "--generator", "box", "--out", out]}
    more["convert-labels"] = [path, out, "--to", "coco"]
    assert ended(command, *more[command], "--format", format) == 2
    assert looks in capsys.readouterr().err and not out.exists()


def test_a_set_with_one_readable_object_is_used(voc_tree):
    voc_tree.add("b", voc_tree.xml("b.png", objects=[TEXT]))
    source = open_source(voc_tree.root, report=Report(), options=ReadOptions())
    assert len(source) == 2


# Ground truth in which no pixel has a label.


def binary_masks(tree, value: int = 255, suffix: str = ".png") -> None:
    """Class masks of 0 and one value, grey."""
    for name in ("a", "b"):
        tree.add(name, tree.xml(f"{name}.png"))
        values = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
        values[8:24, 10:30] = value
        Image.fromarray(values).save(tree.root / "SegmentationClass" / f"{name}{suffix}")


def test_class_masks_of_0_and_255_are_refused_and_read_with_the_object_value(voc_tree, capsys, tmp_path):
    binary_masks(voc_tree)
    assert ended("check", voc_tree.root, "--masks") == 1
    assert "--object-value 255" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no pixel of the class masks of .* has the label of a class.*object-value"):
        load_boxes("voc", root=voc_tree.root, masks=True)
    for command in (["convert-labels", tmp_path / "out", "--to", "coco"], ["finetune", "--out", tmp_path / "out"]):
        assert ended(command[0], voc_tree.root, *command[1:]) == 2
        assert "no pixel of the class masks of" in (said := capsys.readouterr().err) and "--object-value 255" in said
    assert not list(tmp_path.glob("out*"))
    assert ended("check", voc_tree.root, "--masks", "--object-value", 255) == 0
    rows = load_boxes("voc", root=voc_tree.root, masks=True, object_value=255)
    expected = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    expected[8:24, 10:30] = 1
    assert (label_map(rows[0]) == expected).all() and (class_mask(rows[1], 1) == expected).all()
    for target in ("coco", "voc"):
        out = tmp_path / f"made_{target}"
        assert ended("convert-labels", voc_tree.root, out, "--to", target, "--object-value", 255) == 0
    made = json.loads((tmp_path / "made_coco" / "annotations.json").read_text())["annotations"]
    assert [item["area"] for item in made] == [320, 320]
    assert (np.asarray(Image.open(tmp_path / "made_voc" / "SegmentationClass" / "a.png")) == expected).all()


def test_the_object_value_becomes_the_class_of_the_objects_of_its_image(voc_tree, tmp_path, capsys):
    binary_masks(voc_tree)
    (voc_tree.root / "classes.txt").write_text("background\nother\nthing\n")
    scores = tmp_path / "x.json"
    arguments = ["compare", voc_tree.root, "--generators", "box", "--object-value", 255, "--json", scores]
    assert ended(*arguments) == 0
    assert json.loads(scores.read_text())["rows"][0]["scores"]["mean_box_iou"] == 1.0
    rows = load_boxes("voc", root=voc_tree.root, masks=True, object_value=255)
    assert set(np.unique(label_map(rows[0]))) == {0, 2}
    voc_tree.add("b", voc_tree.xml("b.png", objects=[]))
    rows = load_boxes("voc", root=voc_tree.root, masks=True, object_value=255, keep_empty=True)
    assert set(np.unique(label_map(rows[1]))) == {0, 255}  # of which class is not known
    voc_tree.add("b", voc_tree.xml("b.png", objects=[voc_tree.object(), voc_object("other", (41, 21, 52, 34))]))
    with pytest.raises(ValueError, match="b.png .*but they are of 2 classes"):
        load_boxes("voc", root=voc_tree.root, masks=True, object_value=255)
    out = tmp_path / "converted"
    assert ended("convert-labels", voc_tree.root, out, "--to", "coco", "--object-value", 255) == 2
    assert "they are of 2 classes" in capsys.readouterr().err and not out.exists()


def test_a_class_mask_with_another_single_value_names_the_remedy(voc_tree):
    binary_masks(voc_tree, 128)
    with pytest.raises(ValueError, match="holds the value 128.*--object-value 128"):
        load_boxes("voc", root=voc_tree.root, masks=True)


def test_eval_refuses_truth_without_a_class_and_takes_the_object_value(voc_tree, tmp_path, capsys):
    binary_masks(voc_tree)
    truth = voc_tree.root / "SegmentationClass"
    labels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    labels[8:24, 10:20] = 1
    (tmp_path / "predicted").mkdir()
    for name in "ab":
        Image.fromarray(labels).save(tmp_path / "predicted" / f"{name}.png")
    assert ended("eval", tmp_path / "predicted", truth) == 2
    assert "no pixel of the ground truth" in capsys.readouterr().err
    for predicted, iou in (
        (tmp_path / "predicted", 0.5),
        (truth, 1.0),
    ):
        scores = tmp_path / "scores.json"
        assert ended("eval", predicted, truth, "--object-value", 255, "--json", scores) == 0
        assert json.loads(scores.read_text())["per_class_iou"]["1"] == pytest.approx(iou)


def test_compare_refuses_truth_without_a_class_and_takes_the_object_value(voc_tree, tmp_path, capsys):
    binary_masks(voc_tree)
    truth = voc_tree.root / "SegmentationClass"
    arguments = ["compare", voc_tree.root, "--truth", truth, "--generators", "box", "--json", tmp_path / "x.json"]
    assert ended(*arguments) == 2
    assert "--object-value 255" in capsys.readouterr().err
    assert ended(*arguments, "--object-value", 255) == 0
    (row,) = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert row["scores"]["mean_box_iou"] == 1.0


def test_objects_without_masks_are_no_ground_truth(coco_tree, capsys):
    coco_tree.content["annotations"] = [coco_tree.annotation(segmentation=...)]
    path = coco_tree.write()
    with pytest.raises(ValueError, match="no object of .* has a mask"):
        load_boxes("coco", annotations=path, images=coco_tree.images, masks=True)
    assert ended("check", path, "--masks") == 1 and "no object of" in capsys.readouterr().out
    assert ended("compare", path, "--truth", path, "--generators", "box") == 2
    assert ended("eval", path, path) == 2


def test_label_maps_as_jpeg_are_refused_as_such(voc_tree, tmp_path, capsys):
    binary_masks(voc_tree, 1, ".jpg")
    folder = voc_tree.root / "SegmentationClass"
    with pytest.raises(ValueError, match="as JPEG.*cannot hold labels exactly"):
        load_boxes("voc", root=voc_tree.root, masks=True)
    assert ended("eval", folder, folder) == 2 and "JPEG" in capsys.readouterr().err
    assert ended("compare", voc_tree.root, "--truth", folder, "--generators", "box") == 2
    assert "A JPEG (a.jpg) cannot hold labels exactly" in capsys.readouterr().err
    for path in folder.glob("*.jpg"):  # Some tools keep the suffix, others do not.
        path.rename(path.with_suffix(".png"))
    with pytest.raises(ValueError, match="is a JPEG, which cannot hold labels exactly"):
        load_boxes("voc", root=voc_tree.root, masks=True)
    assert ended("eval", folder, folder) in (1, 2) and "is a JPEG" in "".join(capsys.readouterr())


def test_check_counts_the_objects_of_each_class(voc_tree, capsys, tmp_path):
    voc_tree.add("b", voc_tree.xml("b.png", objects=[voc_tree.object(), voc_tree.object("thign")]))
    assert ended("check", voc_tree.root, "--json", tmp_path / "report.json") == 1
    assert "objects per class: thing 2, thign 1" in capsys.readouterr().out
    assert Report.load(tmp_path / "report.json").objects_per_class == {"thing": 2, "thign": 1}


def test_eval_refuses_two_images_of_one_id(coco_tree, capsys):
    coco_tree.add_image("b.png", 1)
    path = coco_tree.write()
    assert ended("eval", path, path) == 2
    assert "the images 'a.png' and 'b.png' have one id, 1" in capsys.readouterr().err


# Side files, single images, and runs that come to nothing.


@pytest.mark.parametrize("kind", ["voc", "yolo"])
def test_a_class_list_in_another_encoding_does_not_stop_masks(request, tmp_path, capsys, kind):
    tree = request.getfixturevalue(f"{kind}_tree")
    (tree.root / "classes.txt").write_bytes("th\u00efng\n".encode("cp1252"))
    out = tmp_path / "masks"
    assert ended("masks", tree.root, "--generator", "box", "--out", out) == 0
    counts = json.loads((out / "report.json").read_text())["report"]["counts"]
    assert counts["unreadable_class_list"] == 1
    with pytest.raises(ValueError, match="is not UTF-8 text.*--encoding cp1252"):
        load_boxes(kind, root=tree.root)
    if kind == "yolo":
        assert class_names(load_boxes(kind, root=tree.root, encoding="cp1252")) == ["th\u00efng"]
        source = open_source(tree.root, options=ReadOptions(encoding="cp1252"), report=Report())
        assert source.classes == [(0, "th\u00efng")]
    with pytest.raises(ValueError, match="encoding='nothing' is unknown"):
        load_boxes(kind, root=tree.root, encoding="nothing")


def test_a_table_in_another_encoding_is_read_with_its_name(tmp_path):
    write(tmp_path, "a.png", None)
    text = "image_path,xmin,ymin,xmax,ymax,label\na.png,10,8,30,24,gr\u00fcn\n"
    (tmp_path / "t.csv").write_bytes(text.encode("cp1252"))
    assert ended("check", tmp_path / "t.csv") == 2 and ended("check", tmp_path / "t.csv", "--encoding", "cp1252") == 0
    source = open_source(tmp_path / "t.csv", options=ReadOptions(encoding="cp1252"), report=Report())
    assert source.classes == [(1, "gr\u00fcn")]


def thin_refusing(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    if min(image.shape[:2]) == 1 or image[0, 0, 0] == 7:
        raise RuntimeError("Kernel size can't be greater than actual input size")
    return np.ones((len(boxes), *image.shape[:2]), dtype=np.float32)


def test_a_thin_image_that_the_generator_cannot_take_is_counted(coco_tree, tmp_path):
    coco_tree.write_image("b.png", 1, 60)
    coco_tree.content["images"].append({"id": 2, "file_name": "b.png", "width": 60, "height": 1})
    coco_tree.content["annotations"].append(coco_tree.annotation(id=2, image_id=2, bbox=[0, 0, 60, 1]))
    source = open_source(coco_tree.write(), coco_tree.images, report=(report := Report()))
    written = write_masks(source, FunctionGenerator(thin_refusing), tmp_path / "out", MaskSettings(), report=report)
    assert written is not None and written.counts == {"generator_failed": 1} and written.is_incomplete
    assert (written.images, written.objects) == (1, 1) and os.listdir(tmp_path / "out" / "masks") == ["a.png"]


def test_a_run_that_fails_or_comes_to_nothing_leaves_no_folder(coco_tree, tmp_path):
    out = tmp_path / "out"
    path = coco_tree.write()
    pixels = np.full((HEIGHT, WIDTH, 3), 7, dtype=np.uint8)
    Image.fromarray(pixels).save(coco_tree.images / "a.png")
    source = open_source(path, coco_tree.images, report=Report())
    with pytest.raises(RuntimeError, match="Kernel size"):
        write_masks(source, FunctionGenerator(thin_refusing), out, MaskSettings(), report=Report())
    assert not out.exists()
    (coco_tree.images / "a.png").write_bytes(b"no image")
    assert ended("masks", path, "--images", coco_tree.images, "--generator", "box", "--out", out) == 2
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    coco_tree.write_image("a.png")
    assert ended("masks", path, "--images", coco_tree.images, "--generator", "box", "--out", out) == 2
    assert os.listdir(out) == ["mine.txt"]
