"""OUT/report.html: the masks with the lowest scores first, and names that are only text."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lpg_hf.masks._review
from lpg_hf import load_generator
from lpg_hf.data.report import Report
from lpg_hf.data.sources import Source, open_source
from lpg_hf.masks.writer import MaskSettings, write_masks


WIDTHS = [10, 30, 20, 40]  # of the boxes; their probability, and so their score, is width / 50
NAME = "<script>alert(1)</script>"


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Two images with two boxes each."""
    for name in "ab":
        Image.new("RGB", (60, 40), (90, 90, 90)).save(tmp_path / f"{name}.png")
    annotations = [
        {"id": i, "image_id": i // 2, "category_id": 1, "bbox": [20 * (i % 2), 5, width, 20]}
        for i, width in enumerate(WIDTHS)
    ]
    content = {
        "images": [{"id": i, "file_name": f"{n}.png", "width": 60, "height": 40} for i, n in enumerate("ab")],
        "annotations": annotations,
        "categories": [{"id": 1, "name": NAME}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    return open_source(tmp_path / "boxes.json", tmp_path, report=Report())


def by_width(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Masks that fill their box with a probability of its width / 50."""
    masks = np.zeros((len(boxes), *image.shape[:2]), dtype=np.float32)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int)):
        mask[y1:y2, x1:x2] = (x2 - x1) / 50
    return masks


def captions(source: Source, out: Path) -> list[str]:
    settings = MaskSettings(write=("html",), threshold=0.1)
    write_masks(source, load_generator(by_width), out, settings, report=Report())
    return re.findall("<figcaption>(.*?)</figcaption>", (out / "report.html").read_text(encoding="utf-8"))


def test_the_lowest_scores_come_first(source: Source, tmp_path: Path):
    shown = captions(source, tmp_path / "out")
    assert [line.split()[0] for line in shown] == ["0.20", "0.40", "0.60", "0.80"]
    assert [line.rsplit(": ", 1)[1] for line in shown] == [
        "a.png, object 0",
        "b.png, object 2",
        "a.png, object 1",
        "b.png, object 3",
    ]


def test_only_the_lowest_are_shown(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lpg_hf.masks._review, "_NUM_SHOWN", 2)
    assert len(captions(source, tmp_path / "out")) == 2
    assert "4 masks, mean score 0.50, 50% below 0.5" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_a_name_is_text_and_the_page_may_load_nothing(source: Source, tmp_path: Path):
    assert NAME.replace("<", "&lt;").replace(">", "&gt;") in captions(source, tmp_path / "out")[0]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert NAME not in page and "default-src 'none'" in page
