"""`load_boxes`: one call for every format."""

import logging
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Image
from tool_trees import CORNERS, OTHER_TREES, TOOL_TREES, labelme_json, write

from lpg_hf.data._examples import class_mask, row_boxes
from lpg_hf.data.check import check_source
from lpg_hf.data.export import Export, _write_shards, write_dataset
from lpg_hf.data.load import class_names, load_boxes
from lpg_hf.data.options import ReadOptions
from lpg_hf.data.report import Report


def test_coco_voc_and_yolo_give_the_same_box(coco_tree, voc_tree, yolo_tree):
    coco_tree.write()
    coco = load_boxes("coco", root=coco_tree.root)
    voc = load_boxes("voc", root=str(voc_tree.root))
    assert coco[0]["objects"]["bbox"] == voc[0]["objects"]["bbox"] == [[10, 8, 20, 16]]
    yolo = load_boxes("yolo", root=yolo_tree.root)
    assert yolo[0]["objects"]["bbox"] == [pytest.approx([10, 8, 20, 16], abs=1e-3)]
    assert class_names(coco) == class_names(voc) == class_names(yolo) == ["thing"]


def test_a_generator_is_not_taught_that_objects_of_other_classes_are_background(coco_tree):
    truck = coco_tree.annotation(segmentation=[[10, 8, 30, 8, 30, 24, 10, 24]])
    coco_tree.content["categories"] = [{"id": 1, "name": "person"}, {"id": 8, "name": "truck"}]
    person = coco_tree.annotation(id=2, category_id=1, bbox=[20, 8, 20, 16], segmentation=[[20, 8, 40, 8, 30, 24]])
    coco_tree.content["annotations"] = [truck | {"category_id": 8}, person]
    coco_tree.write()
    for ignored, value in ((False, 0), (True, 255)):
        [row] = load_boxes("coco", root=coco_tree.root, classes=["truck"], masks=True, ignore_others=ignored)
        boxes, labels = row_boxes(row)
        assert boxes.tolist() == [[10, 8, 30, 24]] and labels.tolist() == [1]
        mask = class_mask(row, 1)
        assert (mask[8:24, 10:30] == 1).all() and (mask[8:24, 30:40] == value).all() and mask[8, 41] == 0


def test_paths_without_a_root(coco_tree, monkeypatch):
    path = coco_tree.write()
    assert len(load_boxes("coco", annotations=path, images=coco_tree.images)) == 1
    assert len(load_boxes("coco", annotations=path)) == 1
    monkeypatch.chdir(coco_tree.root)
    assert len(load_boxes("coco", annotations="annotations.json", images="images")) == 1
    assert len(load_boxes("coco", root=".", annotations="annotations.json")) == 1


def test_voc_split_and_classes(voc_tree):
    voc_tree.add("b")
    voc_tree.add_list("train_mix", "b")
    dataset = load_boxes("voc", root=voc_tree.root, split="train_mix", classes=("thing", "more"), num_proc=2)
    assert dataset["image_id"][:] == ["b"] and class_names(dataset) == ["thing", "more"]
    assert str(dataset.split) == "train_mix"


@pytest.mark.parametrize("layout", ["beside", "annotations_and_images", "split_folders"])
def test_voc_layouts_of_the_commands_are_read(voc_tree, layout):
    voc_tree.add("b")
    root, images = voc_tree.root, voc_tree.root / "JPEGImages"
    if layout == "annotations_and_images":
        (root / "Annotations").rename(root / "annotations")
        images.rename(root / "images")
    else:
        folder = root if layout == "beside" else root / "train"
        for path in [*(root / "Annotations").glob("*.xml"), *images.glob("*.png")]:
            folder.mkdir(exist_ok=True)
            path.rename(folder / path.name)
        for empty in ("Annotations", "JPEGImages"):
            shutil.rmtree(root / empty)
    splits = [load_boxes(root, split="train")] if layout == "split_folders" else []
    for data in (load_boxes(root), load_boxes("voc", root=root, classes="all"), *splits):
        assert len(data) == 2 and sum(len(objects["category"]) for objects in data["objects"]) == 2


def test_what_was_found_is_logged(coco_tree, caplog):
    coco_tree.content["annotations"].append(coco_tree.annotation(id=2, bbox=[10, 8, 0, 16]))
    coco_tree.write()
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="lpg_hf"):
            load_boxes("coco", root=coco_tree.root)
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert "1 images, 1 objects, 1 classes" in record.getMessage()
        assert "degenerate_box: 1" in record.getMessage() and "a.png: annotation 2" in record.getMessage()


def test_good_files_give_no_warning(coco_tree, caplog):
    coco_tree.add_image("b.png", 2)
    coco_tree.write()
    with caplog.at_level(logging.INFO, logger="lpg_hf"):
        load_boxes("coco", root=coco_tree.root)
    assert [record.levelno for record in caplog.records] == [logging.INFO]


def test_what_was_found_beside_a_parquet_folder_is_logged_too(coco_tree, tmp_path, caplog):
    coco_tree.add_image("b.png", 2)
    coco_tree.content["annotations"].append(coco_tree.annotation(id=2, image_id=2))
    coco_tree.write()
    (tmp_path / "data").mkdir()
    _write_shards(load_boxes("coco", root=coco_tree.root).remove_columns("image"), tmp_path / "data", "train", 100)
    with caplog.at_level(logging.INFO, logger="lpg_hf"):
        for level, text in (
            (logging.INFO, "2 images, 2 objects, 1 classes"),
            (logging.WARNING, "1 images, 1 objects, 1 classes\n  missing_image: 1"),
        ):
            caplog.clear()
            options = {"root": tmp_path / "data", "images": coco_tree.images, "allow_missing": True}
            load_boxes("parquet", **options)
            report = Report()
            load_boxes("parquet", **options, report=report)  # What a report takes is the caller's to show.
            (record,) = caplog.records
            assert record.levelno == level and record.getMessage().startswith(f"{tmp_path / 'data'}: {text}")
            (coco_tree.images / "b.png").unlink(missing_ok=True)
    assert report.counts == {"missing_image": 1} and report.skipped == [("b.png", "missing_image")]


@pytest.mark.parametrize(
    "arguments, text",
    [
        (
            {"format": "yolo5", "root": "x"},
            "unknown data format 'yolo5'; choose one of coco, voc, yolo, csv, labelme, cvat, ",
        ),
        ({"format": "coco"}, "COCO data needs root="),
        ({"format": "voc"}, "VOC data needs its folder: root="),
        ({"format": "yolo"}, "YOLO data needs root="),
        ({"format": "coco", "root": "x", "zero_based": True}, "format 'coco' has no option zero_based"),
        ({"format": "yolo", "root": "x", "verify_images": False}, "format 'yolo' has no option verify_images"),
        ({"format": "yolo", "root": "x", "size_mismatch": "error"}, "format 'yolo' has no option size_mismatch"),
        ({"format": "parquet"}, "needs root="),
        ({"format": "parquet", "root": "x", "classes": "all"}, "takes no classes"),
    ],
)
def test_error_texts(arguments, text):
    with pytest.raises(ValueError, match=text):
        load_boxes(arguments.pop("format"), **arguments)


def test_errors_of_the_readers_come_through_as_they_are(coco_tree, voc_tree):
    path = coco_tree.write()
    path.write_bytes(b"{")
    with pytest.raises(ValueError, match="annotations.json is not valid or not complete json"):
        load_boxes("coco", root=coco_tree.root)
    with pytest.raises(FileNotFoundError, match="no split list 'train'"):
        load_boxes("voc", root=voc_tree.root, split="train")
    (voc_tree.root / "JPEGImages" / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match="none of the 1 images exists in .*JPEGImages"):
        load_boxes("voc", root=voc_tree.root)


@pytest.mark.parametrize("column", ["image", "mask"])
def test_rows_that_name_a_file_of_the_machine_are_refused(voc_tree, tmp_path, column):
    for name in "ab":
        voc_tree.add(name)
        voc_tree.add_mask(name)
    write_dataset(tmp_path / "out", Export("voc", voc_tree.root, with_images=True), ReadOptions(masks=True))
    (file,) = (tmp_path / "out/data").iterdir()
    table = pq.read_table(file)
    rows = table.to_pylist()
    secret = {"image": voc_tree.root / "JPEGImages/b.png", "mask": voc_tree.root / "SegmentationClass/b.png"}
    rows[1][column] = {"bytes": None, "path": str(secret[column])}
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)
    report = Report()
    dataset = load_boxes("parquet", root=tmp_path / "out", report=report)
    assert dataset["file_name"][:] == ["a.png"] and report.counts == {"unsafe_path": 1}
    assert report.skipped == [(str(secret[column]), "unsafe_path")]
    options = {"root": tmp_path / "out", "images": voc_tree.root / "JPEGImages"}
    assert len(load_boxes("parquet", **options)) == (2 if column == "image" else 1)
    rows[0][column] = rows[1][column]
    (tmp_path / "other").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), tmp_path / "other/train.parquet")
    with pytest.raises(ValueError, match="paths in the place of images or masks, .* not opened. Pass images="):
        load_boxes("parquet", root=tmp_path / "other")


def test_exported_folders_of_one_name_do_not_share_a_cache(coco_tree, tmp_path):
    """`datasets` knows a folder with a card by its last name: another folder, and a new export, gave the old rows."""
    for x in (10, 11, 12):
        coco_tree.content["annotations"][0]["bbox"] = [x, 8, 20, 16]
        coco_tree.write()
        out = tmp_path / ("a" if x == 10 else "b") / "out"
        shutil.rmtree(out, ignore_errors=True)
        write_dataset(out, Export("coco", coco_tree.root, with_images=True))
        (row,) = load_boxes("parquet", root=out)
        assert row["objects"]["bbox"] == [[x, 8, 20, 16]]


@pytest.fixture
def exported(coco_tree, tmp_path):
    coco_tree.write()
    write_dataset(tmp_path / "exported", Export("coco", coco_tree.root, with_images=True))
    return tmp_path / "exported"


@pytest.mark.parametrize("photo", ["http://127.0.0.1:9/a.jpg", "/etc/passwd", "../../gone.jpg"])
def test_an_image_column_that_is_not_wanted_is_never_opened(exported, photo):
    (file,) = exported.rglob("*.parquet")
    rows = Dataset.from_parquet(str(file)).add_column("photo", [photo]).cast_column("photo", Image())
    pq.write_table(rows.data.table.cast(rows.features.arrow_schema), file)  # to_parquet would open the photo
    (exported / "README.md").unlink()
    found = load_boxes("parquet", root=exported)
    assert "photo" not in found.features and found[0]["image"].size == (60, 40)
    assert check_source(exported).passed
    rows = rows.remove_columns("file_name").rename_column("photo", "file_name")
    pq.write_table(rows.data.table.cast(rows.features.arrow_schema), file)
    with pytest.raises(ValueError, match="the column 'file_name' of .* holds files"):
        load_boxes("parquet", root=exported)


@pytest.mark.parametrize(
    "value",
    [
        "../other/*.parquet",
        "/etc/*.parquet",
        "data/../../other/*.parquet",
        "https://example.org/a.parquet",
        "hf://datasets/org/other/a.parquet",
        "zip://a.parquet::https://example.org/a.zip",
        "C:\\\\other\\\\a.parquet",
    ],
)
@pytest.mark.parametrize("form", ['data_files: "{}"', 'data_files: ["{}"]', 'data_dir: "{}"', "split"])
def test_a_card_that_names_data_files_elsewhere_is_refused(exported, form, value):
    form = 'data_files: [{{split: train, path: ["{}"]}}]' if form == "split" else form
    card = exported / "README.md"
    card.write_text(f"---\nconfigs:\n- config_name: default\n  {form.format(value)}\n---\n")
    with pytest.raises(ValueError, match="names data files outside it, which are not opened"):
        load_boxes("parquet", root=exported)


@pytest.mark.parametrize("text", ["[", "configs: [1, [2]]", "configs: {a: 1}", "!!int ''", "- 1"])
def test_an_odd_card_is_an_error_or_nothing(exported, text):
    (exported / "README.md").write_text(f"---\n{text}\n---\n")
    try:
        assert len(load_boxes("parquet", root=exported)) == 1
    except (ValueError, OSError) as error:
        assert "README.md" in str(error) or "cannot be read by datasets.load_dataset" in str(error)


@pytest.mark.parametrize("name", TOOL_TREES)
def test_exports_of_tools_give_the_rows_of_coco(tmp_path, coco_tree, name):
    format, make, classes = TOOL_TREES[name]
    make(tmp_path / "export")
    of_coco = load_boxes(coco_tree.write(), images=coco_tree.images)
    rows = load_boxes(tmp_path / "export")
    assert rows[0]["objects"]["bbox"][0] == pytest.approx(of_coco[0]["objects"]["bbox"][0], abs=1e-3)
    assert (rows[0]["width"], rows[0]["height"]) == (of_coco[0]["width"], of_coco[0]["height"])
    assert class_names(rows)[: len(classes)] == classes and rows[0]["objects"]["category"][0] == 0
    assert set(rows.features) == set(of_coco.features) - {"license"}
    assert rows[0]["image"].getpixel((15, 12)) == pytest.approx(of_coco[0]["image"].getpixel((15, 12)), abs=12)  # JPEG
    named = load_boxes(format, root=tmp_path / "export", num_proc=2)
    assert named["objects"][:] == rows["objects"][:]


def csv_table(tmp_path, *names):
    lines = "".join(f"{name},10,8,30,24,red\n" for name in names)
    return write(tmp_path, "labels.csv", f"image_path,xmin,ymin,xmax,ymax,label\n{lines}")


def test_a_table_with_its_images_elsewhere(tmp_path, coco_tree):
    path = csv_table(tmp_path / "labels", "a.png")
    rows = load_boxes(path, images=coco_tree.images)
    assert rows["file_name"][:] == ["a.png"] and rows[0]["objects"]["bbox"] == [[10, 8, 20, 16]]
    assert load_boxes("csv", annotations=path, images=coco_tree.images)[:] == rows[:]
    with pytest.raises(ValueError, match="no object of .* has a mask"):
        load_boxes(path, images=coco_tree.images, masks=True)
    with pytest.raises(ValueError, match="format 'csv' has no option zero_based"):
        load_boxes(path, images=coco_tree.images, zero_based=True)


def test_an_edited_table_and_an_image_that_comes_are_noticed(tmp_path):
    write(tmp_path, "a.png", None)
    csv_table(tmp_path, "a.png")
    assert load_boxes(tmp_path)["file_name"][:] == ["a.png"]
    csv_table(tmp_path, "a.png", "b.png")
    with pytest.raises(FileNotFoundError, match="1 of 2 images are missing.*b.png"):
        load_boxes(tmp_path)
    report = Report()
    assert len(load_boxes(tmp_path, allow_missing=True, report=report)) == 1 and report.counts["missing_image"] == 1
    write(tmp_path, "b.png", None)
    assert load_boxes(tmp_path, allow_missing=True)["file_name"][:] == ["a.png", "b.png"]


def test_masks_of_a_tool_are_rows_too(tmp_path):
    write(tmp_path, "a.png", None)
    write(tmp_path, "a.json", labelme_json(shapes=[{"points": CORNERS, "shape_type": "polygon"}]))
    objects = load_boxes(tmp_path, masks=True)[0]["objects"]
    assert objects["segmentation"][0]["size"] == [40, 60] and objects["area"] == [320]


def test_a_path_that_is_not_there_names_the_formats_too(tmp_path):
    with pytest.raises(FileNotFoundError, match="annotations not found: .*gone.csv.* Or pass a format, one of coco"):
        load_boxes(tmp_path / "gone.csv")
    with pytest.raises(FileNotFoundError, match="gone.csv does not exist. Pass the file or the folder of the export"):
        load_boxes("csv", annotations=tmp_path / "gone.csv")
    with pytest.raises(ValueError, match=r"csv data need root=... \(the folder\) or annotations=... \(the file\)"):
        load_boxes("csv")


def test_a_folder_of_several_coco_files_is_one_dataset_or_one_of_its_splits(tmp_path):
    """As on the command line: Roboflow's three files are joined, and `split` takes one."""
    roboflow = tmp_path / "roboflow"
    OTHER_TREES["Roboflow COCO"][1](roboflow)
    rows = load_boxes(roboflow, cache_dir=tmp_path / "cache")
    assert sorted(rows["file_name"]) == ["test/test.jpg", "train/train.jpg", "valid/valid.jpg"]
    assert class_names(rows) == ["red"] and [len(row["objects"]["id"]) for row in rows] == [1, 1, 1]
    assert {tuple(row["image"].size) for row in rows} == {(60, 40)}
    for split, name in (("train", "train"), ("val", "valid"), ("valid", "valid")):
        part = load_boxes("coco", root=roboflow, split=split, cache_dir=tmp_path / "cache")
        assert part["file_name"][:] == [f"{name}.jpg"], split
