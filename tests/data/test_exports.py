"""Every export of docs/formats.md is recognised by itself and read by `open_source`."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from tool_trees import BOX, OTHER_TREES, TOOL_TREES
from trees import HEIGHT, WIDTH

from lpg_hf.data.options import SOURCE_OPTIONS
from lpg_hf.data.report import Report
from lpg_hf.data.sources import open_source, recognise_format


TREES = {**OTHER_TREES, **TOOL_TREES}
DOCS = Path(__file__).parents[2] / "docs" / "formats.md"


@pytest.mark.parametrize("name", TREES)
def test_an_export_needs_no_option_but_the_one_that_the_docs_name(tmp_path, name):
    format, make, classes = TREES[name]
    make(tmp_path)
    assert recognise_format(tmp_path) == format
    report = Report()
    from_zero = name in ("LabelImg VOC", "CVAT VOC 1.1", "FiftyOne VOC", "Label Studio VOC")
    source = open_source(tmp_path, options=replace(SOURCE_OPTIONS, zero_based=from_zero), report=report)
    records = [source.record(index, report) for index in range(len(source))]
    assert len(records) == report.images and records[0].objects[0].box == pytest.approx(BOX, abs=1e-3)
    assert (records[0].height, records[0].width) == (HEIGHT, WIDTH)
    assert [name for _, name in source.classes][: len(classes)] == classes
    unexpected = {"no_class_name", "id_type_differs"} if name == "VIA COCO" else set()
    assert not report.needs_attention or set(report.counts) <= unexpected


def test_every_row_of_the_docs_has_a_tree_and_every_tree_a_row():
    rows = re.findall(r"^\| ([^|]+?) +\| `([a-z0-9][a-z0-9-]+)`", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert dict(rows) == {name: format for name, (format, _, _) in TREES.items()}
