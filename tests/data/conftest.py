"""Fixtures: the trees of `trees.py` in a temporary folder."""

import pytest
from trees import CocoTree, VocTree, YoloTree


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")
    datasets.disable_progress_bars()


@pytest.fixture
def yolo_tree(tmp_path) -> YoloTree:
    return YoloTree(tmp_path / "yolo")


@pytest.fixture
def coco_tree(tmp_path) -> CocoTree:
    return CocoTree(tmp_path / "coco")


@pytest.fixture
def voc_tree(tmp_path) -> VocTree:
    return VocTree(tmp_path / "voc")
