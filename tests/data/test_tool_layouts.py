"""Which files the small readers read, and what else the tools write into them."""

from dataclasses import replace

import pytest
from tool_trees import (
    TOOL_TREES,
    YOLO_LINE,
    bdd_label,
    createml_json,
    cvat_xml,
    label_studio_task,
    labelme_json,
    write,
)

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


@pytest.mark.parametrize("name", ["BDD100K"])
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
