"""A class name has one label in every split of a data set."""

import os
from dataclasses import replace

import pytest
from tool_trees import write

from lpg_hf.data._formats import tools
from lpg_hf.data.options import SOURCE_OPTIONS
from lpg_hf.data.report import Report


def read(path, format, **options):
    """(records by the name of their image, classes, report)."""
    options, report = replace(SOURCE_OPTIONS, **options), Report()
    index = tools.read_index(format, str(path), None, options, report)
    records = [tools.make_record(entry, options, report) for entry in index.entries]
    return {os.path.basename(record.file_name): record for record in records}, index.classes, report


@pytest.mark.parametrize("format", ["csv", "dota", "kitti"])
def test_a_class_has_one_label_in_all_splits_of_a_tool(tmp_path, format):
    head = "filename,width,height,class,xmin,ymin,xmax,ymax"
    for split, names in (("train", ("ant", "bee")), ("test", ("bee", "cow"))):
        image = {"csv": "", "dota": "images/", "kitti": "image_2/"}[format] + f"{split}.png"
        write(tmp_path, f"{split}/{image}", None)
        line, file = {
            "csv": ("{}.png,60,40,{},10,8,30,24", "_annotations.csv"),
            "dota": ("10.0 8.0 30.0 8.0 30.0 24.0 10.0 24.0 {1} 0", f"labelTxt/{split}.txt"),
            "kitti": ("{1} 0.00 0 -1.57 10.00 8.00 30.00 24.00 1.5 1.6 3.9 0.0 1.5 20.0 -1.5", f"label_2/{split}.txt"),
        }[format]
        lines = [head] * (format == "csv") + [line.format(split, name) for name in names]
        write(tmp_path, f"{split}/{file}", "\n".join(lines) + "\n")
    for split, positions in (("train", [0, 1]), ("test", [1, 2])):
        records, names, _ = read(tmp_path, format, split=split)
        assert [item.category for item in records[f"{split}.png"].objects] == positions
        assert names == read(tmp_path, format)[1] == ["ant", "bee", "cow"]
    records, names, report = read(tmp_path, format, split="test", classes=("ant", "bee"))
    assert names == ["ant", "bee"] and [item.category for item in records["test.png"].objects] == [1]
    assert report.counts["other_class"] == 1
    with pytest.raises(ValueError, match=r"classes \['dog'\] are not in .*; it holds: ant, bee, cow"):
        read(tmp_path, format, split="test", classes=("dog",))
