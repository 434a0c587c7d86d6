"""Outputs of `lpg-hf masks` that say more than a label map, and outputs that are added to a finished run."""

import json
import os

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

import lpg_hf.masks.writer
from lpg_hf.boxes import boxes_to_mask
from lpg_hf.cli import main
from lpg_hf.data.options import SOURCE_OPTIONS
from lpg_hf.data.report import Report
from lpg_hf.data.sources import open_source
from lpg_hf.generators import load_generator
from lpg_hf.label_maps import read_label_map
from lpg_hf.masks.fusion import OVERLAP_RULES
from lpg_hf.masks.writer import MaskSettings, write_masks


ALL = ("png", "coco", "coco-polygons", "coco-results", "yolo", "labelme", "instances-png", "crops")
# xywh and category of three images of 60 x 40; the third has a crowd region too.
BOXES = [
    [([5, 4, 25, 26], 1), ([20, 10, 35, 25], 2), ([22, 12, 6, 6], 1)],
    [([0, 0, 60, 40], 2), ([3, 3, 40, 30], 2)],
    [([10.5, 8.25, 19.5, 15.75], 1)],
]


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A COCO file; blocks of one image."""
    monkeypatch.setattr(lpg_hf.masks.writer, "BLOCK_SIZE", 1)
    rng, annotations = np.random.default_rng(0), []
    for number, boxes in enumerate(BOXES):
        noise = Image.fromarray(rng.integers(0, 255, (5, 8, 3), dtype=np.uint8))
        noise.resize((60, 40), Image.Resampling.BICUBIC).save(tmp_path / f"{number}.png")
        annotations += [
            {"id": 10 + len(annotations) + k, "image_id": number, "category_id": label, "bbox": box, "iscrowd": 0}
            for k, (box, label) in enumerate(boxes)
        ]
    annotations.append({"id": 99, "image_id": 2, "category_id": 1, "bbox": [40, 0, 10, 10], "iscrowd": 1})
    images = [{"id": n, "file_name": f"{n}.png", "width": 60, "height": 40} for n in range(len(BOXES))]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    return tmp_path


def bright(image, boxes):
    """The brighter half of each box, in some parts; nothing in the smallest."""
    masks = []
    for x1, y1, x2, y2 in boxes.round().astype(int):
        mask = np.zeros(image.shape[:2], dtype=np.float32)
        window = image[y1:y2, x1:x2].mean(axis=2)
        mask[y1:y2, x1:x2] = (window > np.median(window)) * 0.9 if window.size > 40 else 0.4
        masks.append(mask)
    return np.stack(masks)


def filled(image, boxes):
    """The boxes."""
    return np.stack([boxes_to_mask(box[None], *image.shape[:2]) for box in boxes])


def write(data, out, *outputs, function=bright, **settings):
    report = Report()
    source = open_source(data / "boxes.json", data, report=report)
    settings = MaskSettings(outputs, generator="mine", **{"per": "instance"} | settings)
    write_masks(source, load_generator(function), data / out, settings, report=report)
    return json.loads((data / out / "report.json").read_text())


def files(folder):
    """The contents of all files but the report and the block files."""
    paths = (path for path in folder.rglob("*") if path.is_file() and ".parts" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.name != "report.json"}


def never(image, boxes):
    raise AssertionError("the masks are there")


@pytest.fixture
def same_generator(monkeypatch):
    """`never` passes for `bright`."""
    monkeypatch.setattr("lpg_hf.generators._function.FunctionGenerator.settings", lambda self: {})


@pytest.mark.parametrize("rule", ["rate", "first", "smallest_box"])
@pytest.mark.parametrize("options", [{}, {"exclusive": True}, {"min_score": 0.95}, {"per": "class", "clean": False}])
def test_outputs_added_later_are_those_of_one_run_and_no_mask_is_made_anew(data, same_generator, rule, options):
    options = {**options, "overlap_rule": rule}
    write(data, "at once", *ALL, overlay=True, **options)
    write(data, "step by step", "coco", **options)
    for more in (["png"], ["yolo", "crops"], ALL):
        report = write(data, "step by step", *more, function=never, overlay=True, **options)
    assert files(data / "step by step") == files(data / "at once")
    assert report["settings"]["write"] == sorted(ALL) and report["settings"]["overlay"]


def test_masks_for_a_label_map_stay_what_they_are_when_instances_are_added(data, same_generator):
    write(data, "out", "png", per=None)
    assert write(data, "out", "coco", function=never, per=None)["settings"]["per"] == "class"


def test_a_run_killed_while_it_adds_outputs_resumes(data, same_generator, monkeypatch):
    write(data, "at once", "coco", "labelme", "png", with_images="copy")
    expected, replace, moment, finished = files(data / "at once"), os.replace, 0, False
    while not finished:
        moment, count = moment + 1, 0
        write(data, f"out{moment}", "coco", with_images="copy")

        def dying(source, target):
            nonlocal count
            count += 1
            if count == moment:
                raise KeyboardInterrupt
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dying)
            try:
                write(data, f"out{moment}", "labelme", "png", function=never, with_images="copy")
                finished = True
            except KeyboardInterrupt:
                pass
        write(data, f"out{moment}", "labelme", "png", function=never, with_images="copy")
        assert files(data / f"out{moment}") == expected, moment
    assert moment > 10


def test_an_added_output_overwrites_no_file_of_others(data, same_generator):
    write(data, "out", "png")
    (data / "out" / "labels").mkdir()
    (data / "out" / "labels" / "1.txt").write_text("mine")
    with pytest.raises(ValueError, match="labels/1.txt has the name of a file to be written"):
        write(data, "out", "yolo")
    assert (data / "out" / "labels" / "1.txt").read_text() == "mine"


def test_a_label_map_by_probability_cannot_be_added(data, same_generator):
    write(data, "out", "coco", overlap_rule="prob")
    with pytest.raises(ValueError, match="decides by probabilities"):
        write(data, "out", "png", overlap_rule="prob")
    write(data, "out", "instances-png", overlap_rule="prob", function=never)


def close(image, boxes):
    """Boxes whose scores are equal in four digits, the later ones a little higher."""
    return filled(image, boxes) * (0.99991 + 1e-5 * np.arange(len(boxes), dtype=np.float32)[:, None, None])


@pytest.mark.parametrize("exclusive", [False, True])
def test_scores_that_differ_in_the_fifth_digit_decide_for_added_instances_too(data, same_generator, exclusive):
    options = {"overlap_rule": "prob", "exclusive": exclusive}
    outputs = ("coco", "coco-results", "html", "instances-png")
    write(data, "at once", *outputs, function=close, **options)
    write(data, "later", "coco", function=close, **options)
    write(data, "later", *outputs, function=never, **options)
    assert files(data / "later") == files(data / "at once")
    instances = read_label_map(data / "later" / "instances" / "0.png")
    assert [instances[15, x] for x in (7, 21, 24, 40)] == [1, 2, 3, 2]
    for name in ("instances.json", "results.json"):
        content = json.loads((data / "later" / name).read_text())
        found = content if isinstance(content, list) else content["annotations"]
        assert {item["score"] for item in found} == {0.9999}


def test_other_outlines_of_written_files_are_refused_and_of_new_files_taken(data, same_generator):
    write(data, "out", "png", simplify=0.0)
    write(data, "out", "yolo", simplify=2.0, function=never)
    with pytest.raises(ValueError, match="simplify was 2.0 and is now 1.0"):
        write(data, "out", "coco-polygons", simplify=1.0)


def test_exclusive_masks_share_no_pixel_and_give_the_label_map(data):
    write(data, "plain", "coco", "png", min_score=0.0)
    write(data, "out", "coco", "png", "instances-png", exclusive=True)
    for name, most in (("plain", 2), ("out", 1)):
        content = json.loads((data / name / "instances.json").read_text())
        for image in range(len(BOXES)):
            masks = [a for a in content["annotations"] if a["image_id"] == image]
            layers = np.stack([coco_mask.decode(item["segmentation"]) for item in masks])
            assert layers.sum(axis=0).max() <= most and [item["area"] for item in masks] == [
                int(layer.sum()) for layer in layers
            ]
            if name == "out":
                numbers = read_label_map(data / name / "instances" / f"{image}.png")
                assert all(np.array_equal(numbers == k, layer) for k, layer in enumerate(layers, start=1))
                labels = np.array([0, *(item["category_id"] for item in masks)])
                ignored = numbers == 65535
                expected = np.where(ignored, 255, labels[np.where(ignored, 0, numbers)])
                assert np.array_equal(read_label_map(data / name / "masks" / f"{image}.png"), expected)
                assert ignored.any() == (image == 2)
    plain = json.loads((data / "plain" / "instances.json").read_text())["annotations"]
    assert coco_mask.iou([plain[0]["segmentation"]], [plain[1]["segmentation"]], [0])[0, 0] > 0  # they did overlap


def test_instances_go_by_the_overlap_rule():
    from lpg_hf._rle import encode_mask
    from lpg_hf.masks.assembly import BoxMask, instance_map

    large, small = np.ones((10, 10), bool), np.zeros((10, 10), bool)
    small[2:5, 2:5] = True
    masks = [BoxMask(encode_mask(small), 9, 0.6, 1.0), None, BoxMask(encode_mask(large), 100, 0.9, 1.0)]
    boxes = np.array([[2, 2, 5, 5], [0, 0, 10, 10], [0, 0, 10, 10]])
    on_top = {rule: instance_map(masks, boxes, (10, 10), rule)[3, 3] for rule in ("rate", "smallest_box", "first")}
    assert on_top == {"rate": 1, "smallest_box": 1, "first": 1}
    assert (instance_map(masks, boxes, (10, 10), "prob") == 3).all()
    assert (instance_map(masks[::-1], boxes[::-1], (10, 10), "first") == 1).all()


def test_instances_above_16_bits_do_not_begin_again_at_zero():
    from lpg_hf._rle import encode_mask
    from lpg_hf.masks.assembly import BoxMask, instance_map

    mask = BoxMask(encode_mask(np.ones((3, 3), bool)), 9, 0.6, 1.0)
    for count, dtype in ((2, np.uint16), (65534, np.uint16), (65535, np.uint32), (65538, np.uint32)):
        numbers = instance_map([None] * (count - 1) + [mask], np.tile([0, 0, 3, 3], (count, 1)), (3, 3))
        assert numbers.dtype == dtype and (numbers == count).all()


@pytest.mark.parametrize("later", [False, True])
def test_an_image_of_too_many_instances_is_counted_and_has_no_map(data, monkeypatch, later, same_generator):
    monkeypatch.setattr(lpg_hf.masks.writer, "_MOST_INSTANCES", 2)
    if later:
        write(data, "out", "png", "coco")
    report = write(data, "out", "png", "coco", "instances-png")["report"]
    assert report["places"]["too_many_instances"] == ["0.png: 3 objects"]
    assert sorted(path.name for path in (data / "out" / "instances").iterdir()) == ["1.png", "2.png"]
    assert sorted(path.name for path in (data / "out" / "masks").iterdir()) == ["0.png", "1.png", "2.png"]


def test_crops_show_the_object_and_nothing_else(data):
    write(data, "out", "coco", "crops")
    content = json.loads((data / "out" / "instances.json").read_text())
    for item in content["annotations"]:
        path = data / "out" / "crops" / str(item["image_id"]) / f"{item['id']}.png"
        if not item["area"]:
            assert not path.exists()
            continue
        crop = np.asarray(Image.open(path))
        x, y, width, height = (int(v) for v in coco_mask.toBbox(item["segmentation"]))
        mask = coco_mask.decode(item["segmentation"])[y : y + height, x : x + width]
        photo = np.asarray(Image.open(data / f"{item['image_id']}.png"))[y : y + height, x : x + width]
        assert crop.shape == (height, width, 4) and np.array_equal(crop[..., 3], mask * 255)
        assert np.array_equal(crop[..., :3], photo)
    report = Report()
    source = open_source(data / "boxes.json", data, report=report)
    settings = MaskSettings(("coco",), generator="mine", per="instance")
    write_masks(source, load_generator(bright), data / "out", settings, report=report, overwrite=True)
    assert not (data / "out" / "crops").exists()


def test_tight_boxes_stand_beside_the_given_ones(data):
    write(data, "out", "coco", tighten_boxes=True)
    annotations = json.loads((data / "out" / "instances.json").read_text())["annotations"]
    given = [box for boxes in BOXES for box, _ in boxes]
    assert [item["bbox"] for item in annotations] == given
    for item in annotations:
        assert item["mask_bbox"] == coco_mask.toBbox(item["segmentation"]).tolist()
    assert any(item["mask_bbox"] != item["bbox"] for item in annotations)


@pytest.mark.parametrize(
    "grow, areas",
    [
        (0.1, [31 * 32, 43 * 31, 8 * 8, 60 * 40, 47 * 36, 24 * 20]),  # cut at the image's border
        (-0.1, [21 * 22, 29 * 21, 6 * 6, 48 * 32, 32 * 24, 17 * 14]),
    ],
)
def test_a_generator_gets_grown_boxes_and_the_files_keep_the_given_ones(data, grow, areas):
    command = ["masks", str(data / "boxes.json"), "--images", str(data), "--generator", "box", "--write", "coco"]
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--out", str(data / "out"), "--grow-boxes", str(grow)])
    assert stopped.value.code == 0
    annotations = json.loads((data / "out" / "instances.json").read_text())["annotations"]
    assert [item["bbox"] for item in annotations] == [box for boxes in BOXES for box, _ in boxes]
    assert [coco_mask.area(item["segmentation"]) for item in annotations] == areas


@pytest.mark.parametrize("rule", OVERLAP_RULES)
@pytest.mark.parametrize("grow", [0.25, -0.1])
def test_instances_of_grown_boxes_are_their_whole_masks(data, same_generator, grow, rule):
    write(data, "out", "coco", "instances-png", function=filled, grow_boxes=grow, overlap_rule=rule)
    write(data, "later", "coco", function=filled, grow_boxes=grow, overlap_rule=rule)
    write(data, "later", "instances-png", function=never, grow_boxes=grow, overlap_rule=rule)
    assert files(data / "later") == files(data / "out")
    annotations = json.loads((data / "out" / "instances.json").read_text())["annotations"]
    for image in range(len(BOXES)):
        masks = [coco_mask.decode(a["segmentation"]) for a in annotations if a["image_id"] == image]
        instances = read_label_map(data / "out" / "instances" / f"{image}.png")
        is_object = (instances > 0) & (instances < 65535)
        assert np.array_equal(is_object, np.any(masks, axis=0))
        assert all(masks[number - 1][instances == number].all() for number in np.unique(instances[is_object]))


@pytest.mark.parametrize("per", ["class", "instance"])
@pytest.mark.parametrize("grow, area", [(0.25, 1800), (-0.25, 200)])
def test_rotated_boxes_grow_with_their_box(tmp_path, grow, area, per):
    """A square on its corner, with diagonals of 40."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (100, 80)).save(tmp_path / "images" / "a.png")
    (tmp_path / "labelTxt").mkdir()
    (tmp_path / "labelTxt" / "a.txt").write_text("50 20 70 40 50 60 30 40 ship 0\n")
    command = ["masks", str(tmp_path), "--generator", "box", "--write", "coco", "--per", per, "--no-clean"]
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--out", str(tmp_path / "out"), "--grow-boxes", str(grow)])
    assert stopped.value.code == 0
    annotations = json.loads((tmp_path / "out" / "instances.json").read_text())["annotations"]
    assert [item["bbox"] for item in annotations] == [[30, 20, 40, 40]]
    mask = coco_mask.decode(annotations[0]["segmentation"])
    assert abs(int(mask.sum()) - area) <= 0.06 * area
    for axis, centre in ((0, 49.5), (1, 39.5)):
        assert abs(np.flatnonzero(mask.any(axis=axis)).mean() - centre) <= 0.5


def test_boxes_cannot_shrink_to_nothing():
    with pytest.raises(ValueError, match="grow_boxes=-0.5 is a share of the box: it must lie above -0.5, at most 1"):
        MaskSettings(grow_boxes=-0.5)


def test_classes_and_limit_choose_objects_and_images(data):
    command = ["masks", str(data / "boxes.json"), "--images", str(data), "--generator", "box", "--write", "coco"]
    for options, images, labels in (
        (["--classes", "dog"], [0, 1, 2], [2, 2, 2]),
        (["--limit", "2"], [0, 1], [1, 2, 1, 2, 2]),
        (["--limit", "1", "--classes", "cat"], [0], [1, 1]),
    ):
        out = data / "_".join(options).strip("-")
        with pytest.raises(SystemExit) as ended:
            main([*command, "--out", str(out), *options])
        content = json.loads((out / "instances.json").read_text())
        assert not ended.value.code and [image["id"] for image in content["images"]] == images
        assert [item["category_id"] for item in content["annotations"]] == labels


def test_a_limited_source_is_even_and_keeps_the_records(data):
    source = open_source(data / "boxes.json", data, SOURCE_OPTIONS, report=Report())
    two = source.limited(2)
    assert two.file_names == ["0.png", "1.png"] and source.limited(9) is source
    assert two.record(1, Report()) == source.record(1, Report())


def images_of(folder, *names):
    """A COCO file of images of these names, one box each."""
    for name in names:
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 24), "green").save(folder / "images" / name, "PNG")
    images = [{"id": i, "file_name": name, "width": 32, "height": 24} for i, name in enumerate(names, start=1)]
    boxes = [{"id": i["id"], "image_id": i["id"], "category_id": 1, "bbox": [2, 2, 8, 8]} for i in images]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}
    (folder / "names.json").write_text(json.dumps(content))


def masks_of_names(folder, outputs, out="out"):
    """The exit status of `lpg-hf masks`."""
    arguments = ["masks", folder / "names.json", "--images", folder / "images", "--generator", "box"]
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in [*arguments, "--write", outputs, "--out", folder / out]])
    return end.value.code


NAMES = {
    "two images of a YOLO dataset": (["a.jpg", "images/a.jpg"], "yolo", "mask_name_taken", "images/a.jpg"),
    "two labels of it": (["labels/b.jpg", "labels/images/b.jpg"], "yolo", "mask_name_taken", "labels/images/b.jpg"),
    "an image and a mask": (
        ["images/x.jpg", "masks/images/x.png"],
        "png,yolo",
        "mask_name_taken",
        "masks/images/x.png",
    ),
    "an image and its label": (["a.json", "b.jpg"], "labelme", "mask_name_taken", "a.json"),
    "a crop and a folder": (["x.jpg", "x/1.png.jpg"], "crops", "mask_name_taken", "x.jpg"),
    "a line break": (["a\nb.jpg", "c.jpg"], "yolo", "unwritable_name", "a\nb.jpg"),
    "another line break": (["a\u2028b.jpg", "c.jpg"], "yolo", "unwritable_name", "a\u2028b.jpg"),
    "a blank at the end": (["a.jpg ", "c d.jpg"], "yolo", "unwritable_name", "a.jpg "),
}


@pytest.mark.parametrize("case", NAMES)
def test_images_whose_files_would_clash_or_whose_names_no_list_holds_are_counted(tmp_path, case):
    names, outputs, kind, left_out = NAMES[case]
    images_of(tmp_path, *names)
    assert masks_of_names(tmp_path, outputs) == 1
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["report"]["counts"] == {kind: 1}
    assert [image["file_name"] for image in report["images"] if image.get("skipped")] == [left_out]
    if "yolo" in outputs:
        found = Report()
        assert len(open_source(tmp_path / "out", report=found)) == 1 and not found.needs_attention


def test_names_that_clash_in_no_output_that_is_written_are_all_kept(tmp_path, capsys):
    images_of(tmp_path, "a.jpg", "images/a.jpg", "x.jpg", "x/1.png.jpg", "x/2.png.jpg", "c.", "c..jpg")
    assert masks_of_names(tmp_path, "png") == 0
    assert len(list((tmp_path / "out" / "masks").rglob("*.png"))) == 7
    before = files(tmp_path / "out")
    assert masks_of_names(tmp_path, "yolo") == 2
    said = capsys.readouterr().err
    assert "1 images with masks cannot have the files of the added outputs" in said and "images/a.jpg: a.jpg" in said
    assert files(tmp_path / "out") == before
    assert masks_of_names(tmp_path, "coco") == 0  # What has no files of its own can be added.
    assert masks_of_names(tmp_path, "crops", "crops") == 1
    assert {path.name for path in (tmp_path / "crops" / "crops" / "x").iterdir()} == {"1.png", "2.png"}
