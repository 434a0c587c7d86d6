"""The `datasets` builders: columns, cache, processes, streaming."""

import os
import shutil

import datasets
import numpy as np
import pytest
from trees import add_everywhere

from lpg_hf.data.builders import VERSION, CocoBoxes, VocBoxes, YoloBoxes, split_name
from lpg_hf.data.options import ReadOptions


def build(builder, **options):
    builder.download_and_prepare(**options)
    return builder.as_dataset(split=split_name(builder.config.options.split))


def coco(tree, cache_dir=None, **options):
    tree.write()
    return CocoBoxes(cache_dir, data_dir=str(tree.root), options=ReadOptions(**options))


def voc(tree, **options):
    return VocBoxes(data_dir=str(tree.root), options=ReadOptions(**options))


def many(tree, count=6):
    for i in range(2, count + 1):
        tree.add_image(f"{i}.png", i)
        tree.content["annotations"].append(tree.annotation(id=i, image_id=i, bbox=[i, 8, 20, 16]))


def test_coco_columns_and_values(coco_tree):
    dataset = build(coco(coco_tree))
    features = dataset.features
    assert set(features) == {"image", "image_id", "file_name", "width", "height", "objects", "license"}
    assert set(features["objects"]) == {"bbox", "category", "area", "iscrowd", "difficult", "id"}
    assert features["objects"]["category"].feature.names == ["thing"]
    row = dataset.cast_column("image", datasets.Image(decode=False))[0]
    assert row["image"] == {"bytes": None, "path": str(coco_tree.images / "a.png")}
    assert (row["image_id"], row["file_name"], row["width"], row["height"]) == ("1", "a.png", 60, 40)
    assert row["objects"] == {
        "bbox": [[10, 8, 20, 16]],
        "category": [0],
        "area": [320],
        "iscrowd": [False],
        "difficult": [False],
        "id": [1],
    }
    assert dataset[0]["image"].size == (60, 40)


def test_coco_masks_are_text_rle_and_empty_for_none(coco_tree):
    coco_tree.content["annotations"].append(coco_tree.annotation(id=2, segmentation=...))
    row = build(coco(coco_tree, masks=True))[0]
    first, second = row["objects"]["segmentation"]
    assert first["size"] == second["size"] == [40, 60] and first["counts"] and second["counts"] == ""


def test_voc_columns(voc_tree):
    dataset = build(voc(voc_tree))
    assert set(dataset.features) == {"image", "image_id", "file_name", "width", "height", "objects"}
    voc_tree.add_mask("a")
    dataset = build(voc(voc_tree, masks=True))
    assert np.unique(np.asarray(dataset[0]["mask"])).tolist() == [0, 1]


def test_image_without_objects_is_an_empty_row(coco_tree):
    coco_tree.add_image("b.png", 2)
    dataset = build(coco(coco_tree, keep_empty=True, masks=True))
    assert dataset[1]["objects"] == {key: [] for key in dataset.features["objects"]}


@pytest.mark.parametrize("classes, num_classes", [("nonvoc60", 60), ("voc20", 20), ("all80", 80), ("all", 2)])
def test_coco_class_sets(coco_tree, classes, num_classes):
    coco_tree.content["categories"] = [{"id": 8, "name": "truck"}, {"id": 1, "name": "person"}]
    coco_tree.content["annotations"].append(coco_tree.annotation(id=2, category_id=8))
    builder = coco(coco_tree, classes=classes)
    dataset = build(builder)
    names = dataset.features["objects"]["category"].feature.names
    assert len(names) == num_classes and str(builder.config.version) == VERSION
    found = [names[i] for i in dataset[0]["objects"]["category"]]
    assert found == {"nonvoc60": ["truck"], "voc20": ["person"]}.get(classes, ["person", "truck"])


def test_unchanged_files_are_served_from_the_cache(coco_tree, monkeypatch):
    first = coco(coco_tree)
    build(first)
    monkeypatch.setattr(CocoBoxes, "_read_index", lambda *_: pytest.fail("the file was read again"))
    again = CocoBoxes(data_dir=str(coco_tree.root))
    assert len(build(again)) == 1 and again.report.images == 1
    assert again.info.description == "COCO category ids in the order of the labels: 1"


def test_edited_coco_file_is_never_served_from_a_stale_cache(coco_tree):
    assert build(coco(coco_tree))[0]["objects"]["bbox"] == [[10, 8, 20, 16]]
    path = coco_tree.root / "annotations.json"
    state = os.stat(path)
    coco_tree.content["annotations"][0]["bbox"] = [11, 8, 20, 16]
    coco_tree.write()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))  # same size, one nanosecond later
    assert os.stat(path).st_size == state.st_size
    assert build(CocoBoxes(data_dir=str(coco_tree.root)))[0]["objects"]["bbox"] == [[11, 8, 20, 16]]


@pytest.mark.parametrize("change", ["xml", "list", "classes", "colours", "mask", "option"])
def test_edited_voc_files_are_never_served_from_a_stale_cache(voc_tree, change):
    for name in "ab":
        voc_tree.add(name)
        voc_tree.add_mask(name)
    voc_tree.add_list("train", "a")
    options = {"split": "train", "masks": True}
    first = voc(voc_tree, **options)
    build(first)
    if change == "xml":
        voc_tree.add("a", voc_tree.xml(objects=[voc_tree.object(box=(1, 1, 5, 5))]))
    elif change == "list":
        voc_tree.add_list("train", "a", "b")
    elif change == "classes":
        (voc_tree.root / "classes.txt").write_text("thing\nmore\n")
    elif change == "colours":
        (voc_tree.root / "labelmap.txt").write_text("thing:255,0,0::\n")
    elif change == "mask":
        voc_tree.add_mask("a", np.full((40, 60), 1, dtype=np.uint8))
    else:
        options["zero_based"] = True
    second = voc(voc_tree, **options)
    assert second.cache_dir != first.cache_dir
    if change == "list":
        assert len(build(second)) == 2


def test_an_image_that_arrives_later_is_seen(coco_tree):
    many(coco_tree, 2)
    (coco_tree.images / "2.png").rename(coco_tree.root / "2.png")
    assert len(build(coco(coco_tree, allow_missing=True))) == 1
    (coco_tree.root / "2.png").rename(coco_tree.images / "2.png")
    assert len(build(coco(coco_tree, allow_missing=True))) == 2


BUILDERS = {"coco": CocoBoxes, "voc": VocBoxes, "yolo": YoloBoxes}


@pytest.fixture(params=BUILDERS)
def two_images(request):
    """(path of an image in a subfolder, function that loads the names of both)."""
    tree = request.getfixturevalue(f"{request.param}_tree")
    image = add_everywhere(tree, "set1/b.png")

    def names(**options):
        return build(BUILDERS[request.param](data_dir=str(tree.root), options=ReadOptions(**options)))["file_name"][:]

    return image, names


def test_an_image_that_is_repaired_in_its_place_is_seen(two_images):
    image, names = two_images
    good = image.read_bytes()
    image.write_bytes(good[:100])
    assert names() == names() == ["a.png"]
    image.write_bytes(good)
    assert names() == ["a.png", "set1/b.png"]


def test_images_of_a_subfolder_that_go_and_come_are_seen(two_images):
    image, names = two_images
    good = image.read_bytes()
    assert names() == names(allow_missing=True) == ["a.png", "set1/b.png"]
    image.unlink()
    assert names(allow_missing=True) == ["a.png"]
    image.write_bytes(good)
    assert names(allow_missing=True) == ["a.png", "set1/b.png"]


def test_a_deleted_image_is_an_error_after_a_good_build_too(coco_tree):
    image = add_everywhere(coco_tree, "set1/b.png")
    assert len(build(coco(coco_tree))) == 2
    image.unlink()
    with pytest.raises(FileNotFoundError, match="1 of 2 images are missing"):
        build(coco(coco_tree))


def test_two_processes_give_the_rows_and_the_report_of_one(coco_tree):
    many(coco_tree)
    coco_tree.content["annotations"][3]["bbox"] = [10, 8, 0, 16]
    coco_tree.content["annotations"].append(coco_tree.annotation(id=50, image_id=4))
    one = coco(coco_tree, masks=True)
    rows = build(one)
    two = coco(coco_tree, masks=True, cache_dir=str(coco_tree.root / "other_cache"))
    assert build(two, num_proc=2)[:] == rows[:]
    assert two.report == one.report and one.report.counts == {"degenerate_box": 1}


def test_streaming_gives_the_same_rows_in_shards(coco_tree):
    many(coco_tree)
    rows = build(coco(coco_tree, masks=True)).cast_column("image", datasets.Image(decode=False))
    builder = coco(coco_tree, masks=True, cache_dir=str(coco_tree.root / "other_cache"))
    stream = builder.as_streaming_dataset(split="train")
    assert stream.num_shards == 6 and stream.features["objects"]["category"].feature.names == ["thing"]
    assert list(stream.cast_column("image", datasets.Image(decode=False))) == list(rows)
    assert builder.report.images == 6
    assert not list((coco_tree.root / "other_cache").rglob("*.arrow"))


def test_voc_streaming(voc_tree):
    voc_tree.add_mask("a")
    voc_tree.add_list("train", "a")
    row = next(iter(voc(voc_tree, split="train", masks=True).as_streaming_dataset(split="train")))
    assert row["image"].size == row["mask"].size == (60, 40)


def test_prepared_parquet_folder_is_a_plain_data_folder(coco_tree, tmp_path):
    coco(coco_tree).download_and_prepare(str(tmp_path / "out"), file_format="parquet")
    dataset = datasets.load_dataset(str(tmp_path / "out"), split="train")
    assert dataset[0]["image"].size == (60, 40) and len(dataset) == 1


@pytest.mark.parametrize("num_proc", [None, 2])
def test_masks_that_do_not_fit_stop_the_build_and_leave_no_cache(voc_tree, num_proc):
    for name in "abc":
        voc_tree.add(name)
        voc_tree.add_mask(name, np.zeros((40, 60), dtype=np.uint8))
    voc_tree.add_mask("b", np.zeros((41, 60), dtype=np.uint8))
    voc_tree.add_mask("c", np.full((40, 60), 9, dtype=np.uint8))
    builder = voc(voc_tree, masks=True)
    with pytest.raises(
        ValueError, match=r"(?s)b.png is 60 x 41, its image b.png 60 x 40.*c.png holds the value 9.*\(2 such"
    ):
        build(builder, num_proc=num_proc)
    assert not os.path.exists(builder.cache_dir)


def test_no_usable_image_is_an_error_with_the_counts(coco_tree):
    coco_tree.content["annotations"][0]["bbox"] = [10, 8, 0, 16]
    with pytest.raises(ValueError, match="(?s)no image can be used.*degenerate_box: 1"):
        build(coco(coco_tree))


def test_without_verification_no_image_is_opened(coco_tree):
    coco_tree.write()
    (coco_tree.images / "a.png").write_bytes(b"no image")
    assert len(build(coco(coco_tree, verify_images=False))) == 1
    with pytest.raises(ValueError, match="unreadable_image"):
        build(coco(coco_tree))


def test_coco_box_data_do_not_depend_on_masks(coco_tree):
    plain = build(coco(coco_tree))[:]
    coco_tree.content["annotations"][0]["segmentation"] = {"size": "garbage", "counts": 3}
    assert build(coco(coco_tree))[:] == plain


def test_voc_box_data_never_open_masks(voc_tree):
    plain = build(voc(voc_tree))[:]
    voc_tree.add_mask("a").write_bytes(b"garbage")
    (voc_tree.root / "classes.txt").write_text("thing\n")  # a new cache
    assert build(voc(voc_tree))[:] == plain
    shutil.rmtree(voc_tree.root / "SegmentationClass")
    (voc_tree.root / "classes.txt").write_text("\nthing\n")
    assert build(voc(voc_tree))[:] == plain


@pytest.mark.parametrize(
    "options, error, text",
    [
        ({"annotations": "other.json"}, FileNotFoundError, "other.json.*json files in .* are: annotations.json"),
        ({"images": "photos"}, FileNotFoundError, "image folder not found: .*photos"),
        (
            {"data_dir": "/nowhere/at/all"},
            FileNotFoundError,
            "annotation file not found: /nowhere/at/all/annotations.json",
        ),
        ({"data_dir": None}, ValueError, "needs root="),
    ],
)
def test_errors_come_before_anything_is_built(coco_tree, options, error, text):
    coco_tree.write()
    with pytest.raises(error, match=text):
        CocoBoxes(**{"data_dir": str(coco_tree.root), **options})


def test_official_coco_layout_is_found_by_the_split(coco_tree):
    path = coco_tree.write()
    (coco_tree.root / "annotations").mkdir()
    path.rename(coco_tree.root / "annotations" / "instances_val2017.json")
    coco_tree.images.rename(coco_tree.root / "val2017")
    dataset = build(CocoBoxes(data_dir=str(coco_tree.root), options=ReadOptions(split="val2017")))
    assert len(dataset) == 1 and str(dataset.split) == "val2017"


def test_other_folders_are_relative_to_the_data_or_to_the_working_folder(voc_tree, yolo_tree, tmp_path, monkeypatch):
    """As `lpg-hf masks --images` and COCO files have it: the bench gives `--target_images ../data/JPEGImages`."""
    for tree, usual, builder in ((voc_tree, "JPEGImages", VocBoxes), (yolo_tree, "images", YoloBoxes)):
        moved = tmp_path / "images of" / tree.root.name
        moved.parent.mkdir(exist_ok=True)
        (tree.root / usual).rename(moved)
        monkeypatch.chdir(moved.parent)
        assert len(build(builder(data_dir=str(tree.root), images=moved.name))) == 1
        moved.rename(tree.root / moved.name)
        moved.mkdir()  # the dataset's own folder is the one that is meant
        assert len(build(builder(data_dir=str(tree.root), images=moved.name))) == 1


def test_a_missing_usual_folder_is_not_taken_from_the_working_folder(voc_tree, tmp_path, monkeypatch):
    (voc_tree.root / "JPEGImages").rename(tmp_path / "JPEGImages")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="image folder not found"):
        VocBoxes(data_dir=str(voc_tree.root))


@pytest.mark.parametrize(
    "split, name", [(None, "train"), ("train_mix", "train_mix"), ("train-2/x", "train_2_x"), ("all", "all_split")]
)
def test_split_names(split, name):
    assert split_name(split) == name
