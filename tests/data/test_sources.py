import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from tool_trees import YOLO_LINE, coco_json, write
from trees import HEIGHT, RED, WIDTH, make_image

from lpg_hf.data._recognise import recognise_format
from lpg_hf.data.convert import WITH_MASKS, convert_labels
from lpg_hf.data.export import _write_shards, write_card
from lpg_hf.data.load import load_boxes
from lpg_hf.data.options import SOURCE_OPTIONS
from lpg_hf.data.records import NO_CLASS
from lpg_hf.data.report import IMAGE_SKIPPED, PROBLEMS, Report
from lpg_hf.data.sources import open_source


BASE_BOX = (10, 8, 30, 24)


def opened(path, images=None, format="auto", **options):
    """(source, records, report)"""
    report = Report()
    source = open_source(path, images, replace(SOURCE_OPTIONS, **options), format=format, report=report)
    return source, [source.record(i, report) for i in range(len(source))], report


def exported(tree, out, format="coco", with_images=True, **options):
    dataset = load_boxes(format, root=tree.root, **options)
    dataset = dataset if with_images else dataset.remove_columns("image")
    (out / "data").mkdir(parents=True)
    _write_shards(dataset, out / "data", "train", 100)
    write_card(out, {"train": dataset}, "made by a test", "COCO")
    return out


@pytest.fixture
def places(coco_tree, voc_tree, yolo_tree, tmp_path):
    """Every way to name the base dataset: (format, path)."""
    json_path = coco_tree.write()
    yolo_tree.write("other/data.yaml", "names: [thing]\ntrain: images\n")
    shutil.copytree(yolo_tree.root / "images", yolo_tree.root / "other" / "images")
    shutil.copytree(yolo_tree.root / "labels", yolo_tree.root / "other" / "labels")
    other = shutil.move(yolo_tree.root / "other", tmp_path / "with_yaml")
    return {
        "coco json": ("coco", json_path),
        "coco folder": ("coco", coco_tree.root),
        "voc root": ("voc", voc_tree.root),
        "voc annotations": ("voc", voc_tree.root / "Annotations"),
        "yolo root": ("yolo", yolo_tree.root),
        "yolo labels": ("yolo", yolo_tree.root / "labels"),
        "yolo yaml": ("yolo", other / "data.yaml"),
        "yolo folder with yaml": ("yolo", other),
        "exported folder": ("dataset", exported(coco_tree, tmp_path / "exported")),
    }


@pytest.mark.parametrize("kind", ["coco json", "coco folder", "voc root", "voc annotations", "yolo root",
                                  "yolo labels", "yolo yaml", "yolo folder with yaml", "exported folder"])  # fmt: skip
def test_every_format_gives_the_same_box_and_image(places, kind):
    format, path = places[kind]
    source, (record,), report = opened(path)
    assert (source.format, source.file_names, len(source)) == (format, ["a.png"], 1)
    assert [name for _, name in source.classes] == ["thing"]
    assert record.objects[0].box == pytest.approx(BASE_BOX, abs=1e-3) and record.file_name == "a.png"
    assert (report.images, report.objects) == (1, 1) and not report.needs_attention
    image = source.image(record)
    assert image.shape == (HEIGHT, WIDTH, 3) and (image[8:24, 10:30] == RED).all()
    assert ("categories" in source.coco_header) == (format == "coco")
    assert opened(path, format=format)[0].format == format


def test_coco_header_is_the_files_own(coco_tree):
    coco_tree.content |= {"info": "text", "licenses": [{"id": 1, "name": "x"}]}
    coco_tree.content["categories"] = [{"id": 7, "name": "thing", "supercategory": "s"}]
    coco_tree.content["annotations"] = [coco_tree.annotation(category_id=7)]
    source, _, _ = opened(coco_tree.write())
    assert source.coco_header == {k: coco_tree.content[k] for k in ("info", "licenses", "categories")}
    assert source.classes == [(7, "thing")]


def test_images_without_boxes_are_listed(coco_tree, voc_tree, yolo_tree):
    coco_tree.add_image("b.png", 2)
    voc_tree.add("b", voc_tree.xml("b.png", objects=[]))
    yolo_tree.add("b", "")
    for path in (coco_tree.write(), voc_tree.root, yolo_tree.root):
        source, records, report = opened(path)
        assert source.file_names == ["a.png", "b.png"] and [len(r.objects) for r in records] == [1, 0]
        assert report.counts == {"empty_image": 1}


def test_r_d8_r_e3_objects_of_unlisted_classes_are_kept_and_counted(coco_tree, voc_tree, yolo_tree):
    coco_tree.content["annotations"].append(coco_tree.annotation(id=2, category_id=9))
    voc_tree.add("a", voc_tree.xml(objects=[voc_tree.object(), voc_tree.object("foo")]))
    yolo_tree.add("a", f"{yolo_tree.LINE}\n9 0.5 0.5 0.2 0.2\n")
    expected = {
        coco_tree.write(): [(1, "thing"), (9, "category 9")],
        voc_tree.root: [(1, "thing"), (2, "foo")],
        yolo_tree.root: [(0, "thing"), (9, "class 9")],
    }
    for path, classes in expected.items():
        source, (record,), report = opened(path)
        assert source.classes == classes and [o.category for o in record.objects] == [0, 1]
        assert report.counts == {"unlisted_class": 1} and report.needs_attention and len(report.classes) == 2
        source, (record,), report = opened(path, classes=["thing"])
        assert [item.category for item in record.objects] == [0, NO_CLASS] and len(source.classes) == 1
        assert sum(report.counts.get(k, 0) for k in ("unknown_class", "unknown_category")) == 1


def test_voc_without_a_class_list(voc_tree):
    (voc_tree.root / "classes.txt").unlink()
    assert opened(voc_tree.root)[0].classes == [(1, "thing")] and opened(voc_tree.root)[2].counts == {}
    voc_tree.add("b", voc_tree.xml("b.png", objects=[voc_tree.object("person")]))
    source, _, report = opened(voc_tree.root)
    assert len(source.classes) == 21 and source.classes[-1] == (21, "thing")
    assert report.details["unlisted_class"] == {"thing": 1}


def test_voc_with_classes_asked_for_that_no_list_names(voc_tree):
    source, (record,), report = opened(voc_tree.root, classes=["thing", "new"])
    assert source.classes == [(1, "thing"), (2, "new")] and report.counts == {}


def test_yolo_without_a_class_list(yolo_tree):
    (yolo_tree.root / "classes.txt").unlink()
    source, (record,), report = opened(yolo_tree.root)
    assert source.classes == [(0, "class 0")] and len(record.objects) == 1 and report.counts == {"unlisted_class": 1}


def test_xml_beside_images(voc_tree, tmp_path):
    folder = tmp_path / "both"
    folder.mkdir()
    shutil.copy(voc_tree.root / "Annotations" / "a.xml", folder)
    shutil.copy(voc_tree.root / "JPEGImages" / "a.png", folder)
    source, (record,), _ = opened(folder)
    assert source.format == "voc" and record.objects[0].box == BASE_BOX


def test_one_xml_file_is_a_source_whose_image_must_exist(voc_tree):
    voc_tree.add("b")
    source, records, report = opened(voc_tree.root / "Annotations" / "b.xml")
    assert source.file_names == ["b.png"] and records[0].objects[0].box == BASE_BOX and report.counts == {}
    assert source.image(records[0]).shape == (HEIGHT, WIDTH, 3)
    (voc_tree.root / "JPEGImages" / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match="none of the 1 images exists"):
        opened(voc_tree.root / "Annotations" / "b.xml")
    source, records, report = opened(voc_tree.root / "Annotations" / "b.xml", keep_missing=True)
    assert records[0].path is None and (records[0].height, records[0].width) == (HEIGHT, WIDTH)
    assert report.skipped == [] and source.image_folder == f"{voc_tree.root}/JPEGImages"


def test_lower_case_folders_of_voc_files(voc_tree):
    (voc_tree.root / "Annotations").rename(voc_tree.root / "annotations")
    (voc_tree.root / "JPEGImages").rename(voc_tree.root / "images")
    source, (record,), _ = opened(voc_tree.root)
    assert source.format == "voc" and record.objects[0].box == BASE_BOX
    assert opened(voc_tree.root / "annotations")[0].file_names == ["a.png"]


def test_split_of_voc_and_zero_based(voc_tree):
    voc_tree.add("b")
    voc_tree.add_list("train", "b")
    source, (record,), _ = opened(voc_tree.root, split="train", zero_based=True)
    assert source.file_names == ["b.png"] and record.objects[0].box == (11, 9, 30, 24)
    with pytest.raises(FileNotFoundError, match="no split list 'val'"):
        opened(voc_tree.root, split="val")


def test_other_image_folder(coco_tree, voc_tree, yolo_tree, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    make_image().save(photos / "a.png")
    for folder in (coco_tree.images, voc_tree.root / "JPEGImages", yolo_tree.root / "images"):
        shutil.rmtree(folder)
    for path in (coco_tree.write(), voc_tree.root, yolo_tree.root):
        source, (record,), _ = opened(path, photos)
        assert record.path == f"{photos}/a.png" and source.image(record).shape == (HEIGHT, WIDTH, 3)
        with pytest.raises(FileNotFoundError, match="gone"):
            opened(path, tmp_path / "gone")


def test_masks_of_every_format(coco_tree, voc_tree, yolo_tree, tmp_path):
    coco_tree.write()
    voc_tree.add_mask("a")
    yolo_tree.add("a", "0 0.166667 0.2 0.5 0.2 0.5 0.6 0.166667 0.6")
    for path in (coco_tree.root, yolo_tree.root, exported(coco_tree, tmp_path / "exported", masks=True)):
        source, (record,), report = opened(path, masks=True)
        assert (
            source.options.masks
            and coco_mask.decode(record.objects[0].rle).sum() == 320
            and not report.needs_attention
        )
        assert opened(path)[1][0].objects[0].rle is None
    assert opened(voc_tree.root, masks=True)[1][0].mask_path == f"{voc_tree.root}/SegmentationClass/a.png"
    assert opened(voc_tree.root)[1][0].mask_path is None


def test_exported_data_set_without_images_needs_their_folder(coco_tree, tmp_path):
    coco_tree.add_image("b.png", 2)
    coco_tree.write()
    out = exported(coco_tree, tmp_path / "exported", with_images=False, keep_empty=True)
    with pytest.raises(ValueError, match="exported without images"):
        opened(out)
    source, records, _ = opened(out, coco_tree.images)
    assert source.file_names == ["a.png", "b.png"] and source.image(records[1]).shape == (HEIGHT, WIDTH, 3)
    (coco_tree.images / "b.png").unlink()
    source, _, report = opened(out, coco_tree.images)
    assert source.file_names == ["a.png"] and report.counts == {"missing_image": 1}
    with pytest.raises(FileNotFoundError, match="1 of 2 images are missing"):
        opened(out, coco_tree.images, allow_missing=False)


def test_classes_of_an_exported_data_set(coco_tree, tmp_path):
    coco_tree.content["categories"].append({"id": 2, "name": "other"})
    coco_tree.content["annotations"].append(coco_tree.annotation(id=2, category_id=2))
    coco_tree.write()
    out = exported(coco_tree, tmp_path / "exported")
    source, (record,), report = opened(out, classes=["other"])
    assert source.classes == [(1, "other")] and [o.category for o in record.objects] == [0]
    assert report.details["other_class"] == {"thing": 1}
    with pytest.raises(ValueError, match=r"\['gone'\] are not in .*it holds: thing, other"):
        opened(out, classes=["gone"])


def test_r_m2_file_names_of_a_data_set_that_lead_outside_are_refused(tmp_path):
    make_image().save(tmp_path / "a.png")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "file_name": datasets.Value("string"),
            "height": datasets.Value("int32"),
            "width": datasets.Value("int32"),
            "objects": {
                "bbox": datasets.List(datasets.List(datasets.Value("float32"))),
                "category": datasets.List(datasets.ClassLabel(names=["thing"])),
            },
        }
    )
    objects = {"bbox": [[10, 8, 20, 16]], "category": [0]}
    rows = [
        {"image": str(tmp_path / "a.png"), "file_name": name, "height": 40, "width": 60, "objects": objects}
        for name in ("../evil.png", "/etc/passwd", "fine/a..b.png")
    ]
    (tmp_path / "data").mkdir()
    _write_shards(datasets.Dataset.from_list(rows, features=features), tmp_path / "data", "train", 100)
    source, (record,), report = opened(tmp_path / "data")
    assert source.file_names == ["fine/a..b.png"] and report.counts == {"unsafe_path": 2}
    assert record.objects[0].box == BASE_BOX and source.image(record).shape == (HEIGHT, WIDTH, 3)


def test_two_formats_in_one_folder_are_an_error_that_names_the_flag(voc_tree, yolo_tree):
    shutil.copytree(yolo_tree.root, voc_tree.root, dirs_exist_ok=True)
    with pytest.raises(ValueError, match="more than one format: voc, yolo.*--format voc or --format yolo"):
        opened(voc_tree.root)
    assert opened(voc_tree.root, format="yolo")[0].format == "yolo"
    assert opened(voc_tree.root, format="voc")[0].format == "voc"


@pytest.mark.parametrize(
    "name, error, text",
    [
        ("gone.json", FileNotFoundError, "annotations not found: .*gone.json"),
        ("gone", FileNotFoundError, "annotations not found"),
        ("empty", FileNotFoundError, "no annotations recognised in .*empty"),
        ("a.csv", ValueError, "a.csv is not an annotation file that is known by its content or its suffix.*--format"),
        ("a.zip", ValueError, "a.zip is an archive; archives are not read. Unpack"),
        ("a.tar.gz", ValueError, "archives are not read"),
    ],
)
def test_what_is_no_source_is_one_error_that_names_it(tmp_path, name, error, text):
    (tmp_path / "empty").mkdir()
    for file in ("a.csv", "a.zip", "a.tar.gz"):
        (tmp_path / file).write_bytes(b"x")
    with pytest.raises(error, match=text):
        opened(tmp_path / name)


def test_the_folder_of_the_annotations_is_named_if_the_one_above_is_passed(voc_tree, tmp_path):
    shutil.copytree(voc_tree.root, tmp_path / "VOCdevkit" / "VOC2012")
    with pytest.raises(FileNotFoundError, match="its folder VOC2012 holds voc annotations: pass .*/VOC2012$"):
        opened(tmp_path / "VOCdevkit")


def test_yolo_labels_in_a_folder_of_another_name_are_told(tmp_path):
    write(tmp_path, "boxes/a.txt", YOLO_LINE)
    with pytest.raises(FileNotFoundError, match="a.txt looks like YOLO labels, .* pass --format yolo, and --images"):
        opened(tmp_path / "boxes")


@pytest.mark.parametrize("format", ["auto", "coco"])
def test_a_split_that_a_coco_folder_lacks_is_an_error_that_names_its_files(tmp_path, format):
    for split in ("train", "valid"):
        write(tmp_path, f"{split}/{split}.jpg", None)
        write(tmp_path, f"{split}/_annotations.coco.json", coco_json(f"{split}.jpg"))
    files = "train/_annotations.coco.json, valid/_annotations.coco.json"
    with pytest.raises(FileNotFoundError, match=f"no COCO file of the split 'tset' .* there are: {files}"):
        opened(tmp_path, format=format, split="tset")


def test_images_beside_a_folder_of_coco_files_have_names_inside_the_folder_above(tmp_path):
    for split in ("train2017", "val2017"):
        write(tmp_path, f"{split}/a.png", None)
        write(tmp_path, f"annotations/instances_{split}.json", coco_json("a.png"))
    source, records, _ = opened(tmp_path / "annotations")
    assert source.file_names == ["train2017/a.png", "val2017/a.png"]
    assert [record.objects[0].box for record in records] == [BASE_BOX, BASE_BOX]
    assert Path(source.image_folder) == tmp_path


def test_errors_of_arguments(coco_tree, yolo_tree, tmp_path):
    path = coco_tree.write()
    for options, text in (
        ({"format": "pascal"}, "unknown format 'pascal'.*--format"),
        ({"size_mismatch": "stretch"}, "size_mismatch must be one of skip, error, rescale"),
        ({"zero_based": True}, "zero_based .* is for VOC"),
    ):
        with pytest.raises(ValueError, match=text):
            opened(path, **options)
    out = exported(coco_tree, tmp_path / "exported")
    with pytest.raises(ValueError, match="format 'dataset' has no option size_mismatch .*size_mismatch='rescale'"):
        opened(out, size_mismatch="rescale")
    with pytest.raises(
        ValueError, match="format 'yolo' has no option size_mismatch .*: it is for formats that state the size"
    ):
        opened(yolo_tree.root, size_mismatch="error")
    with pytest.raises(ValueError, match=r"classes \['dog'\] are not in .*; it holds: thing"):
        opened(out, classes="thing,dog")
    assert opened(out, classes="all")[0].classes == [(1, "thing")]


def test_a_text_like_owner_name_is_a_hub_id_and_a_file_name_is_not():
    assert recognise_format("owner/name") == "dataset"
    for text in ("owner/name.json", "a/b/c", "name", "../name", "/owner/name"):
        with pytest.raises(FileNotFoundError):
            recognise_format(text)


def test_r_f7_missing_images_are_counted_or_an_error(coco_tree):
    coco_tree.add_image("b.png", 2)
    (coco_tree.images / "b.png").unlink()
    source, _, report = opened(coco_tree.write())
    assert source.file_names == ["a.png"] and report.counts == {"missing_image": 1}
    with pytest.raises(FileNotFoundError, match="1 of 2 images are missing"):
        opened(coco_tree.write(), allow_missing=False)


def test_r_a11_size_mismatch_options(coco_tree):
    coco_tree.content["images"][0] |= {"width": 120, "height": 80}
    coco_tree.content["annotations"] = [coco_tree.annotation(bbox=[20, 16, 40, 32])]
    path = coco_tree.write()
    assert opened(path)[1] == [None]
    assert opened(path, size_mismatch="rescale")[1][0].objects[0].box == BASE_BOX
    with pytest.raises(ValueError, match="stated 120 x 80, image 60 x 40"):
        opened(path, size_mismatch="error")


def test_r_f6_max_pixels_is_for_the_record_and_for_the_image(coco_tree, tmp_path):
    coco_tree.write()
    for path in (coco_tree.root, exported(coco_tree, tmp_path / "exported")):
        _, records, report = opened(path, max_pixels=100)
        assert records == [None] and report.counts == {"image_too_large": 1}


def test_a_image_that_became_too_large_since_is_counted_as_such(coco_tree):
    source, (record,), _ = opened(coco_tree.write())
    source.options = replace(source.options, max_pixels=100)
    report = Report(images=1, objects=1)
    assert source.decode(record, report) is None
    assert report.counts == {"image_too_large": 1} and (report.images, report.objects) == (0, 0)


def test_many_boxes_in_one_image_take_no_longer_each(coco_tree, voc_tree):
    import time

    def seconds(count):
        boxes = np.random.default_rng(0).random((count, 2)) * (40, 20)
        coco_tree.content["annotations"] = [
            coco_tree.annotation(id=i, bbox=[x, y, 5, 5], segmentation=...) for i, (x, y) in enumerate(boxes.tolist())
        ]
        objects = [voc_tree.object(box=(x + 1, y + 1, x + 5, y + 5)) for x, y in boxes.tolist()]
        voc_tree.add("a", voc_tree.xml(objects=objects))
        path, times = coco_tree.write(), []
        for source in (path, voc_tree.root):
            start = time.thread_time()
            assert len(opened(source)[1][0].objects) == count
            times.append(time.thread_time() - start)
        return times

    seconds(500)
    for few, many in zip(seconds(1000), seconds(20_000)):
        assert many < 100 * max(few, 0.02)  # 400 times if each box were compared with each


def test_relative_paths_work(coco_tree, monkeypatch):
    monkeypatch.chdir(coco_tree.root)
    assert opened(os.path.basename(coco_tree.write()))[0].file_names == ["a.png"]
    assert json.loads((coco_tree.root / "annotations.json").read_text())["images"]


def test_a_json_file_beside_a_voc_folder_does_not_make_it_ambiguous(voc_tree):
    root = voc_tree.root
    (root / "instances_derived.json").write_text("{}", encoding="utf-8")
    assert recognise_format(root) == "voc"
    (root / "annotations.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="more than one format: coco, voc"):
        recognise_format(root)


def test_files_are_those_that_were_read(places, voc_tree, yolo_tree):
    voc_tree.add("b")
    voc_tree.add_list("one", "a")
    yolo_tree.write("labels/unused.txt", "")
    folders = {kind: os.fspath(path) for kind, (_, path) in places.items()}
    voc, yolo = folders["voc root"], folders["yolo root"]
    with_yaml = os.path.dirname(folders["yolo yaml"])
    expected = {
        "coco folder": [folders["coco json"]],
        "voc root": [f"{voc}/{name}" for name in ("classes.txt", "Annotations/a.xml", "Annotations/b.xml")],
        "yolo root": [f"{yolo}/{name}" for name in ("classes.txt", "labels/a.txt")],
        "yolo yaml": [f"{with_yaml}/{name}" for name in ("data.yaml", "labels/a.txt")],
        "exported folder": [f"{folders['exported folder']}/data/train-00000-of-00001.parquet"],
    }
    for kind, files in expected.items():
        assert sorted(opened(folders[kind])[0].annotation_files) == sorted(files)
    list_file = f"{voc}/ImageSets/Segmentation/one.txt"
    assert set(opened(voc, split="one")[0].annotation_files) == {
        f"{voc}/classes.txt",
        f"{voc}/Annotations/a.xml",
        list_file,
    }


def test_options_are_what_the_records_depend_on_besides_the_files(voc_tree, tmp_path):
    source, _, _ = opened(voc_tree.root)
    assert source.identity == json.loads(json.dumps(source.identity))
    assert source.identity["zero_based"] is False and source.identity["images"] is None
    changes = {
        "zero_based": True,
        "size_mismatch": "rescale",
        "max_pixels": 10_000,
        "images": f"{voc_tree.root}/JPEGImages",
        "split": "one",
        "classes": ["thing"],
        "stored_frame": True,
        "bands": ["3", "2", "1"],
        "stretch": "minmax",
    }
    voc_tree.add_list("one", "a")
    assert source.identity.keys() == {*changes, "box_format"} and source.identity["box_format"] is None
    for name, value in changes.items():
        changed = opened(voc_tree.root, **{name: tuple(value) if name == "classes" else value})[0].identity
        assert changed == source.identity | {name: [3, 2, 1] if name == "bands" else value}


def test_a_split_that_one_coco_file_cannot_have_is_refused_with_what_is_there(coco_tree, tmp_path):
    path = coco_tree.write()
    (coco_tree.root / "other.json").write_text("{}")
    for place in (path, coco_tree.root):
        with pytest.raises(
            ValueError, match=r"split='val' \(--split\) is not in .*annotations\.json.*lie other\.json"
        ):
            opened(place, split="val")
    named = shutil.copy(path, tmp_path / "instances_val2017.json")
    assert len(opened(named, images=coco_tree.images, split="val2017")[0]) == 1
    converted = convert_labels(path, tmp_path / "voc", "voc", options=replace(WITH_MASKS, split="val"))
    assert converted.report.images == 1 and (tmp_path / "voc/ImageSets/Main/val.txt").read_text() == "a\n"
    shutil.copytree(coco_tree.images, coco_tree.root / "val")  # The layout of one file and a folder per split.
    assert len(opened(coco_tree.root, split="val")[0]) == 1


def test_a_data_set_of_the_hub_has_a_fingerprint_in_place_of_files(coco_tree, tmp_path, monkeypatch):
    coco_tree.write()
    dataset = load_boxes("coco", root=coco_tree.root)
    monkeypatch.setattr("lpg_hf.data.load.load_parquet", lambda *arguments: dataset)
    first, again = (opened("owner/name")[0] for _ in range(2))
    assert list(first.annotation_files) == [] and first.identity["fingerprint"] == again.identity["fingerprint"]
    dataset = dataset.select([0, 0])
    assert opened("owner/name")[0].identity["fingerprint"] != first.identity["fingerprint"]


def list_absent_images(coco_tree, voc_tree, yolo_tree):
    """Names of twelve images that each of the trees lists and that do not exist: more than a report names."""
    names = [f"gone{number:02}.png" for number in range(12)]
    for number, name in enumerate(names):
        coco_tree.content["images"].append({"id": 100 + number, "file_name": name, "width": 60, "height": 40})
        (voc_tree.root / "Annotations" / f"{name[:-4]}.xml").write_text(voc_tree.xml(name), encoding="utf-8")
    yolo_tree.write("train.txt", "\n".join(["images/a.png", *(f"images/{name}" for name in names)]))
    yolo_tree.write("data.yaml", "names: [thing]\ntrain: train.txt\n")
    return names


def test_left_out_names_every_image_that_opening_dropped(coco_tree, voc_tree, yolo_tree):
    names = list_absent_images(coco_tree, voc_tree, yolo_tree)
    coco_tree.content["images"].append({"id": 7, "file_name": "../evil.png", "width": 60, "height": 40})
    (voc_tree.root / "Annotations" / "broken.xml").write_text("<annotation>", encoding="utf-8")
    yolo_tree.write("train.txt", (yolo_tree.root / "train.txt").read_text() + "\n../evil.png\n")
    more = {
        coco_tree.write(): ("../evil.png", "unsafe_path"),
        voc_tree.root: ("broken.xml", "unreadable_annotation"),
        yolo_tree.root: ("../evil.png", "unsafe_path"),
    }
    for path, other in more.items():
        _, _, report = opened(path)
        found = {name.removeprefix("images/"): kind for name, kind in report.skipped}
        assert found == dict.fromkeys(names, "missing_image") | {other[0]: other[1]}
        counts = [count for kind, count in report.counts.items() if PROBLEMS[kind].outcome == IMAGE_SKIPPED]
        assert len(report.skipped) == sum(counts) == 13
        assert len(report.places["missing_image"]) == 10  # the report itself stays short


def test_left_out_of_a_data_set(coco_tree, tmp_path):
    for number in range(2, 14):
        coco_tree.add_image(f"{number}.png", number)
    coco_tree.write()
    out = exported(coco_tree, tmp_path / "exported", with_images=False, keep_empty=True)
    for number in range(2, 14):
        (coco_tree.images / f"{number}.png").unlink()
    _, _, report = opened(out, coco_tree.images)
    assert sorted(report.skipped) == sorted((f"{number}.png", "missing_image") for number in range(2, 14))


def test_images_of_one_name_are_left_out_and_each_is_named(yolo_tree):
    yolo_tree.add("a", yolo_tree.LINE, "a.jpg")
    yolo_tree.add("b", yolo_tree.LINE)
    source, _, report = opened(yolo_tree.root)
    assert source.file_names == ["b.png"] and report.counts == {"ambiguous_image": 1}
    assert report.skipped == [("a.jpg", "ambiguous_image"), ("a.png", "ambiguous_image")]


def test_ids_of_a_data_set_without_ids_are_unique(coco_tree, tmp_path):
    coco_tree.add_image("b.png", 2)
    coco_tree.add_image("c.png", 3)
    coco_tree.content["annotations"] = [
        coco_tree.annotation(id=10 * image + n, image_id=image) for image in (1, 3) for n in range(2)
    ]
    coco_tree.write()
    dataset = load_boxes("coco", root=coco_tree.root, keep_empty=True)
    rows = [{**row, "objects": {k: v for k, v in row["objects"].items() if k != "id"}} for row in dataset]
    features = dataset.features.copy()
    features["objects"] = {name: value for name, value in features["objects"].items() if name != "id"}
    (tmp_path / "data").mkdir()
    _write_shards(datasets.Dataset.from_list(rows, features=features), tmp_path / "data", "train", 100)
    source, records, _ = opened(tmp_path / "data")
    assert [[item.id for item in record.objects] for record in records] == [[1, 2], [], [3, 4]]
    assert [item.id for item in source.record(2, Report()).objects] == [3, 4]  # in any order


def test_class_masks_of_an_exported_data_set_give_each_object_its_pixels(voc_tree, tmp_path):
    values = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    values[10:24, 10:30], values[0:4, 0:4] = 1, 255
    voc_tree.add_mask("a", values)
    objects = [voc_tree.object(), voc_tree.object(box=(41, 1, 50, 10))]
    voc_tree.add("a", voc_tree.xml(objects=objects))
    out = exported(voc_tree, tmp_path / "exported", "voc", masks=True)
    source, (record,), report = opened(out, masks=True)
    with_mask, without = record.objects
    assert (coco_mask.decode(with_mask.rle) == (values == 1)).all() and with_mask.area == 14 * 20
    assert without.rle is None and without.area == 100 and report.counts == {"no_mask": 1}
    source, (record,), report = opened(out)
    assert [item.rle for item in record.objects] == [None, None] and report.counts == {}
