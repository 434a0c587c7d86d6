"""Detection datasets in the layouts that are on the Hub, and imagefolders."""

import io
import json

import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from pycocotools.coco import COCO
from test_unusable import ended
from trees import make_image

from lpg_hf.data.load import class_names, load_boxes
from lpg_hf.data.options import SOURCE_OPTIONS
from lpg_hf.data.records import NO_CLASS
from lpg_hf.data.report import Report
from lpg_hf.data.sources import open_source


BOXES = [[10.0, 8.0, 20.0, 16.0], [40.0, 20.0, 12.0, 14.0]]
CORNERS = [(10, 8, 30, 24), (40, 20, 52, 34)]
NUMBERS, TEXTS = List(Value("int64")), List(Value("string"))
BOX = List(List(Value("float64")))
NAMED = List(ClassLabel(names=["red", "blue"]))
SIZED = {"image_id": Value("int64"), "width": Value("int32"), "height": Value("int32")}
# layout -> (columns beside the image, their values, class names)
LAYOUTS = {
    "cppe-5": (
        {**SIZED, "objects": {"id": NUMBERS, "bbox": BOX, "category": NAMED}},
        {"image_id": 7, "width": 60, "height": 40, "objects": {"id": [1, 2], "bbox": BOXES, "category": [0, 1]}},
        ["red", "blue"],
    ),
    "numbers": ({"objects": {"bbox": BOX, "category": NUMBERS}}, {"objects": {"bbox": BOXES, "category": [3, 5]}},
                ["class 3", "class 5"]),
    "list of dicts": (
        {"annotations": List({"bbox": List(Value("float64")), "category_id": Value("int64")})},
        {"annotations": [{"bbox": BOXES[0], "category_id": 0}, {"bbox": BOXES[1], "category_id": 1}]},
        ["class 0", "class 1"],
    ),
    "texts": ({"objects": {"boxes": BOX, "label": TEXTS}}, {"objects": {"boxes": BOXES, "label": ["red", "blue"]}},
              ["blue", "red"]),
    "columns": ({"bbox": BOX, "labels": NAMED}, {"bbox": BOXES, "labels": [0, 1]}, ["red", "blue"]),
    "no class": ({"objects": {"bbox": BOX}}, {"objects": {"bbox": BOXES}}, ["object"]),
}  # fmt: skip


def png() -> bytes:
    buffer = io.BytesIO()
    make_image().save(buffer, "PNG")
    return buffer.getvalue()


def parquet(root, columns: dict, *rows: dict):
    (root / "data").mkdir(parents=True)
    features = Features({"image": Image(), **columns})
    Dataset.from_list([{"image": {"bytes": png()}, **row} for row in rows], features=features).to_parquet(
        root / "data" / "train-00000-of-00001.parquet"
    )
    return root


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_boxes(tmp_path, layout):
    columns, row, names = LAYOUTS[layout]
    root = parquet(tmp_path / "set", columns, row, row)
    report = Report()
    source = open_source(root, report=report)
    assert source.format == "dataset" and [name for _, name in source.classes] == names
    records = [source.record(index, report) for index in range(2)]
    assert [[item.box for item in record.objects] for record in records if record] == [CORNERS, CORNERS]
    assert len(set(source.file_names)) == 2 and source.file_names[0] == "000000.png"
    assert report.counts == {} and report.objects == 4
    assert source.image(records[0]).shape == (40, 60, 3)
    rows = load_boxes("parquet", root=root)
    assert class_names(rows) == names and rows[1]["objects"]["bbox"] == BOXES and rows[0]["image"].size == (60, 40)


def test_masks_of_a_hub_layout(tmp_path):
    columns, row, _ = LAYOUTS["cppe-5"]
    root = parquet(tmp_path / "set", columns, row)
    assert ended("masks", root, "--generator", "box", "--out", tmp_path / "out", "--write", "png,coco") == 0
    made = json.loads((tmp_path / "out" / "instances.json").read_text())
    assert [item["bbox"] for item in made["annotations"]] == BOXES and made["images"][0]["id"] == 7


def test_an_imagefolder_with_metadata(tmp_path):
    (tmp_path / "set" / "train" / "inner").mkdir(parents=True)
    lines = []
    for name, count in (("a.png", 1), ("inner/b.png", 2)):
        make_image().save(tmp_path / "set" / "train" / name)
        lines.append(json.dumps({"file_name": name, "objects": {"bbox": BOXES[:count], "category": [0, 1][:count]}}))
    (tmp_path / "set" / "train" / "metadata.jsonl").write_text("\n".join(lines))
    source = open_source(tmp_path / "set", report=(report := Report()))
    assert source.file_names == ["train/a.png", "train/inner/b.png"]
    record = source.record(1, report)
    assert record is not None and [item.box for item in record.objects] == CORNERS
    assert source.image(record).shape == (40, 60, 3) and report.counts == {}
    assert ended("check", tmp_path / "set") == 0


@pytest.mark.parametrize("text", ["null\n", "\ufeff null", '{"file_name": "a.png"}\n\rnull\r\n', "\nnull null"])
def test_a_line_that_is_null_ends_no_process(tmp_path, text):
    """It does where pyarrow reads it."""
    make_image().save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_bytes(text.encode())
    with pytest.raises(ValueError, match=r"metadata.jsonl: line \d is null, not a row. Remove it"):
        open_source(tmp_path, report=Report())


@pytest.mark.timeout(20)
def test_a_pipe_or_a_device_is_refused_where_lines_are_read(tmp_path):
    make_image().save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="metadata.jsonl is a pipe or a device, not a file. Remove it"):
        open_source(tmp_path, format="dataset", report=Report())


def test_a_link_out_of_an_imagefolder_is_not_followed(tmp_path):
    (tmp_path / "set").mkdir()
    make_image().save(tmp_path / "secret.png")
    make_image().save(tmp_path / "set" / "a.png")
    (tmp_path / "set" / "b.png").symlink_to("../secret.png")
    (tmp_path / "set" / "c.png").symlink_to("a.png")
    objects = {"bbox": BOXES, "category": [0, 1]}
    lines = [json.dumps({"file_name": f"{name}.png", "objects": objects}) for name in "abc"]
    (tmp_path / "set" / "metadata.jsonl").write_text("\n".join(lines))
    source = open_source(tmp_path / "set", report=(report := Report()))
    assert source.file_names == ["a.png", "c.png"] and report.counts == {"unsafe_path": 1}
    (tmp_path / "set" / "metadata.jsonl").write_text(lines[1])
    (tmp_path / "set" / "a.png").unlink()
    (tmp_path / "set" / "c.png").unlink()
    with pytest.raises(ValueError, match="holds links to images elsewhere"):
        open_source(tmp_path / "set", report=Report())


def test_a_name_that_leads_out_of_an_imagefolder_is_told(tmp_path):
    make_image().save(tmp_path / "a.png")
    line = {"file_name": "../a.png", "objects": {"bbox": BOXES, "category": [0, 1]}}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(line))
    with pytest.raises(ValueError, match=r"cannot be read by datasets.load_dataset: .*\.\./a.png"):
        open_source(tmp_path, report=Report())


def test_the_cache_of_the_hub_links_to_its_own_files(tmp_path):
    snapshot = tmp_path / "datasets--a--b" / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (tmp_path / "datasets--a--b" / "blobs").mkdir()
    make_image().save(tmp_path / "datasets--a--b" / "blobs" / "abcd", "PNG")
    (snapshot / "a.png").symlink_to("../../blobs/abcd")
    line = {"file_name": "a.png", "objects": {"bbox": BOXES, "category": [0, 1]}}
    (snapshot / "metadata.jsonl").write_text(json.dumps(line))
    source = open_source(snapshot, report=(report := Report()))
    record = source.record(0, report)
    assert record is not None and source.image(record).shape == (40, 60, 3) and report.counts == {}


def test_boxes_as_corners_are_counted_and_read_with_their_format(tmp_path):
    stated = [[30.0, 20.0, 55.0, 38.0], [40.0, 20.0, 52.0, 34.0]]
    root = parquet(tmp_path / "set", LAYOUTS["cppe-5"][0], {**LAYOUTS["cppe-5"][1], "objects": {
        "id": [1, 2], "bbox": stated, "category": [0, 1]}})  # fmt: skip
    source = open_source(root, report=(report := Report()))
    source.record(0, report)
    assert report.counts == {"clipped_box": 2, "fits_as_corners": 2}
    assert ended("check", root) == 1 and ended("check", root, "--box-format", "xyxy") == 0
    rows = load_boxes("parquet", root=root, box_format="xyxy")
    assert rows[0]["objects"]["bbox"] == [[30, 20, 25, 18], [40, 20, 12, 14]]


def test_coco_boxes_as_corners(coco_tree):
    coco_tree.content["annotations"][0]["bbox"] = [30, 20, 55, 38]
    path = coco_tree.write()
    source = open_source(path, report=(report := Report()))
    source.record(0, report)
    assert report.counts == {"clipped_box": 1, "fits_as_corners": 1}
    rows = load_boxes("coco", annotations=path, images=coco_tree.images, box_format="xyxy")
    assert rows[0]["objects"]["bbox"] == [[30, 20, 25, 18]]


def test_rows_that_cannot_be_used_are_counted(tmp_path):
    columns, row, _ = LAYOUTS["numbers"]
    bad_box = {"objects": {"bbox": [BOXES[0], None], "category": [3, 5]}}
    no_class = {"objects": {"bbox": BOXES, "category": [3, None]}}
    no_image = {**row, "image": {"bytes": b"x"}}
    root = parquet(tmp_path / "set", columns, row, bad_box, no_class, no_image)
    report = Report()
    source = open_source(root, report=report)
    records = [source.record(index, report) for index in range(len(source))]
    assert [record and [item.category for item in record.objects] for record in records] == [[0, 1], None, [0, -1]]
    assert report.counts == {"unreadable_image": 1, "invalid_box": 1, "incomplete_image": 1, "unknown_class": 1}


def test_a_category_beyond_the_class_names_is_a_region_of_no_class(tmp_path):
    columns, row, _ = LAYOUTS["cppe-5"]
    numbers = {**columns, "objects": {**columns["objects"], "category": List(Value("float64"))}}
    rows = [{"image": {"bytes": png()}, **row, "objects": {**row["objects"], "category": [1.0, 9.0]}}]
    made = Dataset.from_list(rows, features=Features({"image": Image(), **numbers}))
    (tmp_path / "data").mkdir()
    made.cast(Features({"image": Image(), **columns})).to_parquet(tmp_path / "data" / "train-0.parquet")
    source = open_source(tmp_path, report=(report := Report()))
    record = source.record(0, report)
    assert record is not None and [item.category for item in record.objects] == [1, NO_CLASS]
    assert report.counts == {"unknown_class": 1}


def test_a_dataset_without_boxes_names_its_columns(tmp_path):
    root = parquet(tmp_path / "set", {"caption": Value("string")}, {"caption": "a box"})
    with pytest.raises(ValueError, match="has no column of boxes; its columns are image, caption"):
        open_source(root, report=Report(), options=SOURCE_OPTIONS)


def test_paths_in_parquet_rows_are_not_opened(tmp_path):
    make_image().save(tmp_path / "secret.png")
    columns, row, _ = LAYOUTS["numbers"]
    root = parquet(tmp_path / "set", columns, row, {**row, "image": {"path": str(tmp_path / "secret.png")}})
    source = open_source(root, report=(report := Report()))
    assert len(source) == 1 and report.counts == {"unsafe_path": 1}


ROW = {"image_id": "1", "file_name": "a.png", "width": 60, "height": 40}
OBJECTS = {"id": [1, 2], "bbox": BOXES, "category": [0, 1], "area": [320.0, 168.0], "iscrowd": [False, False]}
TYPES = {"id": NUMBERS, "bbox": BOX, "category": NAMED, "area": List(Value("float64")), "iscrowd": List(Value("bool"))}


def own_rows(root, features: dict, row: dict):
    """A folder with a row as the exports have it, its features changed."""
    (root / "data").mkdir(parents=True)
    image = io.BytesIO()
    make_image().save(image, "PNG")
    columns = {"image": Image(), "image_id": Value("string"), "file_name": Value("string")}
    columns |= {"width": Value("int32"), "height": Value("int32"), "objects": TYPES}
    content = {"image": {"bytes": image.getvalue()}, **ROW, "objects": OBJECTS, **row}
    whole = {**OBJECTS, "id": content["objects"]["id"]} if "objects" in features else OBJECTS
    rows = Dataset.from_list([content, {**content, **ROW, "file_name": "b.png", "objects": whole}],
                             features=Features(columns | features))  # fmt: skip
    rows.to_parquet(root / "data" / "train-0.parquet")
    return root


@pytest.mark.parametrize(
    "row, kind",
    [
        ({"height": None}, "invalid_image_entry"),
        ({"width": 0}, "invalid_image_entry"),
        ({"objects": {**OBJECTS, "area": [1.0]}}, "incomplete_image"),
        ({"objects": {**OBJECTS, "iscrowd": None}}, "incomplete_image"),
        ({"objects": {**OBJECTS, "id": [1, None]}}, "incomplete_image"),
        ({"objects": {**OBJECTS, "bbox": [BOXES[0], None]}}, "incomplete_image"),
        ({"objects": None}, "empty_image"),
    ],
)
def test_a_row_that_lacks_values_is_counted(tmp_path, row, kind):
    report = Report()
    source = open_source(own_rows(tmp_path / "set", {}, row), None, SOURCE_OPTIONS, format="dataset", report=report)
    records = [source.record(index, report) for index in range(2)]
    assert report.counts[kind] == 1 and records[1] is not None and len(records[1].objects) == 2
    assert (records[0] is None) == (kind != "empty_image")


def rows_with_ids(root, *ids: list):
    """A folder of rows with two objects each, or as many as there are ids; None: no column of ids in that row."""
    columns = {"file_name": Value("string"), "width": Value("int32"), "height": Value("int32"), "objects": TYPES}
    rows = []
    for number, own in enumerate(ids):
        count = 2 if own is None else len(own)
        objects = {name: values[:count] for name, values in OBJECTS.items()} | {"id": own}
        rows.append({**ROW, "file_name": f"{number}.png", "objects": objects})
    return parquet(root, {"image_id": Value("string"), **columns}, *rows)


@pytest.mark.parametrize(
    "ids, expected, counted",
    [
        ([[7, 3], [], [4, -1]], [[7, 3], [], [4, -1]], []),
        ([[0, 1], [], [0, 1]], [[1, 2], [], [3, 4]], ["2.png: annotation 0", "2.png: annotation 1"]),
        ([[5, 5], [6, 7]], [[1, 2], [3, 4]], ["0.png: annotation 5"]),
        ([[5, 6], [5, None], None], [[1, 2], None, None], ["1.png: annotation 5"]),  # without an id: as before
    ],
)
def test_ids_of_objects_are_kept_only_if_all_are_different(tmp_path, ids, expected, counted):
    report = Report()
    source = open_source(rows_with_ids(tmp_path / "set", *ids), None, SOURCE_OPTIONS, report=report)
    assert report.counts == ({"duplicate_annotation_id": len(counted)} if counted else {})
    assert report.places.get("duplicate_annotation_id", []) == counted
    records = [source.record(index, report) for index in range(len(source))]
    assert [None if record is None else [item.id for item in record.objects] for record in records] == expected


def test_pycocotools_finds_every_mask_of_rows_whose_ids_begin_again(tmp_path):
    root = rows_with_ids(tmp_path / "set", [0, 1], [0, 1])
    out = ["--generator", "box", "--out", tmp_path / "out"]
    assert ended("masks", root, *out, "--write", "coco") == 0
    assert ended("masks", root, *out, "--write", "crops") == 0  # of the masks in the block files
    assert len(COCO(tmp_path / "out" / "instances.json").anns) == 4
    assert len(list((tmp_path / "out" / "crops").rglob("*.png"))) == 4


@pytest.mark.parametrize(
    "features, row",
    [
        ({"height": Value("string")}, {"height": "forty"}),
        ({"width": Value("float32")}, {"width": 60.5}),
        ({"objects": {**TYPES, "id": TEXTS}}, {"objects": {**OBJECTS, "id": ["a", "b"]}}),
        ({"objects": {**TYPES, "bbox": TEXTS}}, {"objects": {**OBJECTS, "bbox": ["a", "b"]}}),
    ],
)
def test_a_column_of_another_type_is_an_error(tmp_path, features, row, monkeypatch):
    monkeypatch.setitem(ROW, next(iter(row)), next(iter(row.values())))
    monkeypatch.setattr("test_hub_rows.OBJECTS", row.get("objects", OBJECTS))
    root = own_rows(tmp_path / "set", features, {})
    with pytest.raises(ValueError, match="the column .* of .* holds .*, not "):
        open_source(root, None, SOURCE_OPTIONS, format="dataset", report=Report())


def test_texts_that_are_no_utf8_are_an_error(tmp_path):
    parquet(tmp_path, {"bbox": BOX, "labels": TEXTS}, {"bbox": BOXES, "labels": ["red", "blue"]})
    (path,) = tmp_path.glob("data/*.parquet")
    table = pyarrow.parquet.read_table(path)
    labels = pyarrow.array([[png(), b"blue"]], pyarrow.list_(pyarrow.binary()))
    field = table.schema.field("labels")
    table = table.set_column(table.schema.names.index("labels"), field, labels.cast(field.type, safe=False))
    pyarrow.parquet.write_table(table, path)
    with pytest.raises(ValueError, match=f"a column of texts of {tmp_path} holds bytes that are no UTF-8"):
        load_boxes("parquet", root=tmp_path)


def test_sizes_that_no_image_has_are_counted_in_other_layouts(tmp_path):
    columns, values, _ = LAYOUTS["cppe-5"]
    image = io.BytesIO()
    make_image().save(image, "PNG")
    features = Features({"image": Image(), **columns, "width": Value("int64"), "height": Value("int64")})
    (tmp_path / "data").mkdir()
    odd = [{"height": 6 * 10**10}, {"height": None}, {"width": -1}]
    rows = [{"image": {"bytes": image.getvalue()}, **values, **changes} for changes in odd]
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "data" / "train-0.parquet")
    report = Report()
    with pytest.raises(ValueError, match="no image of the dataset .* can be used"):
        open_source(tmp_path, None, SOURCE_OPTIONS, format="dataset", report=report)
    assert report.counts["invalid_image_entry"] == 3


def test_a_column_of_objects_that_is_no_list_is_an_error(tmp_path):
    types = {"objects": {**TYPES, "id": Value("int64")}}
    with pytest.raises(ValueError, match="the column 'objects.id' of .* holds no lists, not whole numbers"):
        root = own_rows(tmp_path / "set", types, {"objects": {**OBJECTS, "id": 3}})
        open_source(root, None, SOURCE_OPTIONS, format="dataset", report=Report())
