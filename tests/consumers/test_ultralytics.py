"""A written YOLO dataset in the trainer's own dataset class (opt-in: make test-consumers)."""

import pytest
from packages import run_consumer
from test_yolo_rules import OUTLINE, trainer_dataset, write_dataset


pytestmark = pytest.mark.consumers

LOAD = """
import json, os, sys
from ultralytics.cfg import get_cfg
from ultralytics.data.build import build_yolo_dataset
from ultralytics.data.utils import check_det_dataset

data = check_det_dataset(sys.argv[1])
found = {}
for split in ("train", "val"):
    cfg = get_cfg(overrides={"task": "segment", "imgsz": 64})
    dataset = build_yolo_dataset(cfg, data[split], 2, data, mode="val")
    found[split] = {
        os.path.basename(item["im_file"]): [len(item["cls"]), [len(s) for s in item["segments"]]]
        for item in dataset.labels
    }
print(json.dumps(found))
"""


@pytest.mark.parametrize("how", ["link", "copy"])
def test_the_trainer_s_dataset_class_finds_the_same_objects_and_splits(tmp_path, how):
    names = ["train/images/a.png", "train/images/b.png", "valid/images/c.png"]
    data = write_dataset(tmp_path / "out", tmp_path / "source", names, how=how, line=OUTLINE)
    found = run_consumer(LOAD, "ultralytics", tmp_path, str(data))
    assert found == {"train": {"a.png": [1, [4]], "b.png": [1, [4]]}, "val": {"c.png": [1, [4]]}}
    assert {split: sorted(trainer_dataset(data, split)) for split in found} == {k: sorted(v) for k, v in found.items()}
