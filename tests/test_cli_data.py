"""`lpg-hf check` and `lpg-hf convert-labels`."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from lpg_hf.cli import main


@pytest.fixture
def data(tmp_path):
    """A COCO file of one picture, as a function of its box."""
    Image.fromarray(np.zeros((40, 60, 3), dtype=np.uint8)).save(tmp_path / "a.png")

    def write(*boxes):
        content = {
            "images": [{"id": 1, "file_name": "a.png", "width": 60, "height": 40}],
            "annotations": [
                {"id": i, "image_id": 1, "category_id": 1, "bbox": b} for i, b in enumerate(boxes, start=1)
            ],
            "categories": [{"id": 1, "name": "thing"}],
        }
        path = tmp_path / "labels.json"
        path.write_text(json.dumps(content))
        return str(path)

    return write


def run(capsys, *arguments):
    """(exit status, stdout, stderr)"""
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    return end.value.code, *capsys.readouterr()


def test_check_exit_status_and_json(data, tmp_path, capsys):
    path = data([10, 8, 20, 16])
    assert run(capsys, "check", path) == (0, f"{path} (coco): 1 images, 1 objects, 1 classes\n", "")
    path = data([10, 8, 20, 16], [5, 5, 0, 0])
    status, out, err = run(capsys, "check", path, "--json", tmp_path / "report.json")
    assert status == 1 and err == "" and "degenerate_box: 1" in out and "a.png: annotation 2" in out
    assert json.loads((tmp_path / "report.json").read_text())["counts"] == {"degenerate_box": 1}


def test_what_cannot_be_read_is_one_line_and_status_two(data, tmp_path, capsys):
    path = data()
    for arguments, text in (
        (("check", tmp_path / "gone.json"), "annotations not found"),
        (("check", path, "--format", "csv"), "unknown format 'csv'"),
        (("convert-labels", path, tmp_path, "--to", "voc"), "exists already and is not empty"),
        (("convert-labels", path, tmp_path / "out", "--to", "csv"), "unknown format 'csv'"),
    ):
        status, out, err = run(capsys, *arguments)
        assert status == 2 and out == "" and text in err and len(err.splitlines()) == 1
    broken = tmp_path / "broken.json"
    broken.write_text('{"images": [')
    status, _, err = run(capsys, "check", broken)
    assert status == 2 and "broken.json is not valid or not complete json" in err


def test_headers_only(data, tmp_path, capsys):
    path = data([10, 8, 20, 16])
    picture = bytearray((tmp_path / "a.png").read_bytes())
    start = picture.index(b"IDAT") + 8
    picture[start : start + 6] = b"\xff" * 6
    (tmp_path / "a.png").write_bytes(picture)
    assert run(capsys, "check", path, "--no-decode")[0] == 0
    assert run(capsys, "check", path)[0] == 1


def test_convert_labels_says_what_is_lost_and_where_pictures_go(data, tmp_path, capsys):
    path = data([10, 8, 20, 16])
    status, out, _ = run(capsys, "convert-labels", path, tmp_path / "new", "--to", "yolo", "--no-masks")
    assert status == 0 and "lost: ids of images and annotations" in out and "images/" in out
    assert (tmp_path / "new" / "labels" / "a.txt").read_text().startswith("0 0.333333333333 0.4 ")
    status, out, _ = run(
        capsys, "convert-labels", tmp_path / "new", tmp_path / "back.json", "--to", "coco", "--from", "yolo",
        "--images", tmp_path,
    )  # fmt: skip
    assert status == 0
    box = json.loads((tmp_path / "back.json").read_text())["annotations"][0]["bbox"]
    assert box == pytest.approx([10, 8, 20, 16], abs=1e-6)
    path = data([10, 8, 20, 16], [5, 5, 0, 0])
    assert run(capsys, "convert-labels", path, tmp_path / "voc", "--to", "voc")[0] == 1


@pytest.mark.parametrize("command", ["check", "convert-labels"])
def test_help_shows_a_call(command):
    done = subprocess.run(
        [sys.executable, "-m", "lpg_hf.cli", command, "--help"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and f"lpg-hf {command} instances.json" in done.stdout
