"""Memory of `lpg-hf masks` above that of its imports, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


CODE = """
import resource, sys
import lpg_hf.data.sources, lpg_hf.generators._box, lpg_hf.masks.writer
from lpg_hf.cli import main
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
print("kilobytes", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "size, num_boxes, num_classes, megabytes",
    [((640, 480), 2000, 2000, 300), ((4000, 3000), 40, 40, 600), ((13000, 13000), 3, 2, 1600)],
)
def test_memory_is_bounded_by_the_image_and_not_by_its_classes(
    tmp_path: Path, size: tuple[int, int], num_boxes: int, num_classes: int, megabytes: int
):
    pytest.importorskip("resource")
    width, height = size
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).resize(size).save(tmp_path / "a.jpg")
    box = width // 2, height // 2
    annotations = [
        {"id": i, "image_id": 1, "category_id": i % num_classes + 1, "iscrowd": 0, "area": box[0] * box[1]}
        | {"bbox": [int(rng.integers(width - box[0])), int(rng.integers(height - box[1])), *box]}
        for i in range(1, num_boxes + 1)
    ]
    content = {"images": [{"id": 1, "file_name": "a.jpg", "width": width, "height": height}]}
    content |= {"annotations": annotations, "categories": [{"id": i + 1, "name": str(i)} for i in range(num_classes)]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    arguments = ["masks", "a.json", "--images", ".", "--out", "out", "--generator", "box", "--write", "png,coco"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split("kilobytes")[1]) < megabytes * 1000
