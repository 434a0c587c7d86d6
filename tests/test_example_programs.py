"""The examples run: notebooks cell by cell in a fresh interpreter, scripts on what the commands wrote."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image


pytest.importorskip("skimage", reason="the photographs come with scikit-image")
ROOT = Path(__file__).parents[1]
SUFFIXES = ("jpg", "JPG", "png", "gif")
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
# matplotlib is the reader's to install: a stand-in that takes every call. `axes` of several columns are iterated and
# indexed.
PLOTTING = """
import sys, types
from unittest.mock import MagicMock
pyplot = MagicMock()
pyplot.subplots = lambda rows, columns, **options: (MagicMock(), [MagicMock() for _ in range(columns)])
sys.modules["matplotlib"] = types.ModuleType("matplotlib")
sys.modules["matplotlib.pyplot"] = sys.modules["matplotlib"].pyplot = pyplot
"""


def run(arguments: list, cwd: Path) -> str:
    """Standard output of a fresh interpreter, offline; fails with its error text."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, env=environment, timeout=280
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def code_cells(notebook: Path) -> list[dict]:
    return [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_committed_without_outputs(notebook: Path):
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code_cells(notebook))


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(notebook: Path, tmp_path: Path):
    script = tmp_path / "cells.py"
    script.write_text("\n\n".join([PLOTTING, *("".join(cell["source"]) for cell in code_cells(notebook))]))
    run([script], tmp_path)


def test_the_segformer_takes_the_images_where_labels_lie_beside_them(tmp_path: Path):
    """As labelImg and LabelMe write them; the image of the last, with no usual suffix, is alone."""
    photos = tmp_path / "photos"
    for number, suffix in enumerate(SUFFIXES):
        (photos / "in").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 40), (40 * number, 0, 0)).save(photos / "in" / f"{number}.{suffix}")
        for beside in ("txt", "xml", "json", "TXT~") if suffix != "gif" else ():
            (photos / "in" / f"{number}.{beside}").write_text("0 0.5 0.5 0.2 0.2\n")
    (photos / "classes.txt").write_text("thing\n")
    images = [{"id": n, "file_name": f"in/{n}.{s}", "width": 60, "height": 40} for n, s in enumerate(SUFFIXES)]
    annotations = [{"id": n, "image_id": n, "category_id": 1, "bbox": [5, 5, 20, 20]} for n in range(len(images))]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    made = ["-m", "lpg_hf.cli", "masks", "boxes.json", "--images", "photos", "--out", "masks", "--generator", "box"]
    run(made, tmp_path)
    code = (
        f"import sys; from pathlib import Path; sys.path.insert(0, {str(ROOT / 'examples')!r}); "
        "from train_segformer import MaskFolder, SegformerImageProcessor; "
        "data = MaskFolder('photos', Path('masks'), SegformerImageProcessor()); "
        "print(*(image.name for image, _ in data.pairs), sum(one['labels'].max().item() for one in data))"
    )
    assert run(["-c", code], tmp_path).split() == [*(f"{n}.{s}" for n, s in enumerate(SUFFIXES)), "4"]


def test_the_segformer_has_the_lines_that_the_pages_say():
    num_lines = len((ROOT / "examples/train_segformer.py").read_text(encoding="utf-8").splitlines())
    pages = [(ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("quickstart.md", "masks_from_boxes.md")]
    assert all(f"[SegFormer in {num_lines} lines]" in page for page in pages)


@pytest.mark.slow
def test_a_segformer_trains_on_masks_of_boxes(tmp_path: Path):
    run([ROOT / "benchmarks/demo_photos.py", "data", tmp_path], tmp_path)
    run(["-m", "lpg_hf.cli", "masks", "boxes.json", "--images", "images", "--out", "masks"], tmp_path)
    script = ROOT / "examples/train_segformer.py"
    said = run([script, "images", "masks", "--out", "segformer", "--steps", "30", "--size", "128"], tmp_path)
    losses = [float(line.rpartition(" ")[2]) for line in said.splitlines() if line.startswith("step ")]
    assert len(losses) == 3 and losses[-1] < losses[0]
    labels = json.loads((tmp_path / "segformer/config.json").read_text())["id2label"]
    assert labels["0"] == "background" and len(labels) == 11
