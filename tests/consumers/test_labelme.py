"""LabelMe json with masks, by LabelMe's own loader (opt-in: make test-consumers) and by our reader of its files."""

import json

import numpy as np
import pytest
from packages import run_consumer
from PIL import Image
from pycocotools import mask as coco_mask
from test_coco_results import encoded, masks

from lpg_hf.data._formats import tools
from lpg_hf.data._formats.labelme import labelme_content
from lpg_hf.data.options import ReadOptions
from lpg_hf.data.records import BoxObject, Record
from lpg_hf.data.report import Report


LOAD = """
import json, sys
from unittest.mock import MagicMock
for name in ("onnxruntime", "loguru", "PyQt5", "PyQt5.QtCore", "PyQt5.QtGui", "PyQt5.QtWidgets", "tifffile"):
    sys.modules[name] = MagicMock()
from labelme import LabelFile
from labelme.utils import shape_to_mask

file = LabelFile(sys.argv[1])
print(json.dumps([file.imagePath, [
    [s["label"], s["shape_type"], s["group_id"], None if s["mask"] is None else int(s["mask"].sum())]
    for s in file.shapes
]]))
"""


def write(folder, **shapes):
    """a.json with an object per mask (None: a box only), and its image."""
    Image.new("RGB", (60, 40)).save(folder / "a.png")
    box = (10.0, 8.0, 30.0, 24.0)
    objects = [
        BoxObject(box, 0, 320.0, id=number, rle=None if mask is None else encoded(mask))
        for number, mask in enumerate(shapes.values(), start=1)
    ]
    record = Record(str(folder / "a.png"), "a.png", "a", (40, 60), objects)
    (folder / "a.json").write_text(json.dumps(labelme_content(record, ["red"], "a.png")))


def test_our_reader_finds_the_same_pixels(tmp_path):
    write(tmp_path, **masks(), box=None)
    options, report = ReadOptions(masks=True), Report()
    index = tools.read_index("labelme", str(tmp_path), None, options, report)
    record = tools.make_record(index.entries[0], options, report)
    decoded = [None if item.rle is None else coco_mask.decode(item.rle) for item in record.objects]
    assert len(decoded) == len(masks()) + 1 and decoded[-1] is None
    assert all(np.array_equal(a, b) for a, b in zip(decoded, masks().values()))


def test_a_crowd_region_is_no_shape(tmp_path):
    record = Record("", "a.png", "a", (40, 60), [BoxObject((0, 0, 5, 5), 0, 25, iscrowd=True)])
    assert labelme_content(record, ["red"], "a.png")["shapes"] == []


@pytest.mark.consumers
def test_labelme_loads_it(tmp_path):
    shapes = {name: mask for name, mask in masks().items() if name in ("one", "two", "hole")}
    write(tmp_path, **shapes, box=None)
    path, found = run_consumer(LOAD, "labelme", tmp_path, str(tmp_path / "a.json"))
    assert path == "a.png" and [kind for _, kind, _, _ in found] == [
        "polygon",
        "polygon",
        "polygon",
        "mask",
        "rectangle",
    ]
    assert [group for *_, group, _ in found] == [None, 2, 2, None, None]
    assert found[3][3] == masks()["hole"].sum()
