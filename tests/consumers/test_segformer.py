"""Label maps of `masks` and Parquet of `export-data` train a SegFormer of transformers (make test-consumers)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image


ROOT = Path(__file__).parents[2]


def run(cwd: Path, *arguments: str) -> str:
    """Standard output of a program, run offline from `cwd`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(cwd / "cache")}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def write_boxes(root: Path) -> None:
    """Four grey images, in two folders, with a red and a blue rectangle and their boxes as COCO."""
    images, annotations = [], []
    for number in range(4):
        pixels = np.full((48, 64, 3), 128, dtype=np.uint8)
        boxes = [[6 + 4 * number, 8, 20, 16], [30, 28, 16, 12 + number]]
        for category, ((x, y, width, height), colour) in enumerate(
            zip(boxes, ([200, 30, 30], [30, 30, 200])), start=1
        ):
            pixels[y : y + height, x : x + width] = colour
            one = {"id": len(annotations) + 1, "image_id": number, "category_id": category, "iscrowd": 0}
            annotations.append({**one, "bbox": [x, y, width, height], "area": width * height})
        name = f"{'ab'[number % 2]}/{number}.png"
        (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / "images" / name)
        images.append({"id": number, "file_name": name, "width": 64, "height": 48})
    categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "boxes.json").write_text(json.dumps(content))


@pytest.mark.consumers
def test_a_segformer_trains_on_the_parquet_and_the_label_maps(tmp_path):
    write_boxes(tmp_path)
    told = ["--format", "coco", "--annotations", "boxes.json", "--images", "images", "--classes", "all"]
    run(tmp_path, "-m", "lpg_hf.cli", "export-data", "parquet", *told, "--embed-images")
    assert len(load_dataset(str(tmp_path / "parquet"), split="train", cache_dir=str(tmp_path / "cache"))) == 4
    run(tmp_path, "-m", "lpg_hf.cli", "masks", "parquet", "--generator", "box", "--out", "masks")
    losses = {}
    for images in ("parquet", "images"):
        script = [str(ROOT / "examples" / "train_segformer.py"), images, "masks", "--out", f"from_{images}"]
        said = run(tmp_path, *script, "--steps", "21", "--size", "64")
        losses[images] = [float(line.rpartition(" ")[2]) for line in said.splitlines() if line.startswith("step ")]
        labels = json.loads((tmp_path / f"from_{images}" / "config.json").read_text())["id2label"]
        assert labels == {"0": "background", "1": "red", "2": "blue"}
    assert losses["parquet"] == losses["images"] and losses["parquet"][-1] < 0.7 * losses["parquet"][0], losses
