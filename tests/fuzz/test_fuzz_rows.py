"""Rows of datasets, their cards and metadata, changed at random: exports of ours, and the Hub's other layouts."""

import io
import json
import shutil
from functools import partial
from pathlib import Path

import datasets
import pyarrow as pa
from datasets import ClassLabel, Dataset, Features, Image, List
from hypothesis import assume
from hypothesis import strategies as st
from mutations import CHANGES, changed_bytes, changed_json, changed_text, json_bytes
from outcomes import allowed, fuzz, inputs, run
from trees_in_memory import make_image

import lpg_hf.data.load
from lpg_hf.data.options import SOURCE_OPTIONS
from lpg_hf.data.report import Report
from lpg_hf.data.sources import open_source


def _png() -> bytes:
    buffer = io.BytesIO()
    make_image().save(buffer, "PNG")
    return buffer.getvalue()


_IMAGE = {"bytes": _png(), "path": None}
_CLASSES = ClassLabel(names=["red", "blue"])
# As `lpg_hf.data.export` writes rows, and three layouts of other people: (row, features that pyarrow cannot tell).
_OBJECTS = {
    "bbox": [[10.0, 8.0, 20.0, 16.0]],
    "category": [0],
    "area": [320.0],
    "iscrowd": [False],
    "difficult": [False],
}
_OURS = {"image": _IMAGE, "image_id": "1", "file_name": "a.png", "width": 60, "height": 40, "license": ""}
_LAYOUTS = [
    ({**_OURS, "objects": {**_OBJECTS, "id": [1]}}, {"objects": {"category": List(_CLASSES)}}),
    ({"image": _IMAGE, "objects": {"bbox": [[10, 8, 20, 16]], "category": [0]}}, {}),
    ({"image": _IMAGE, "image_id": 7, "objects": [{"bbox": [10, 8, 20, 16], "category": "red", "iscrowd": 0}]}, {}),
    ({"pixels": _IMAGE, "width": 60, "height": 40, "boxes": [[10, 8, 20, 16]], "labels": ["red"]}, {}),
]


def _dataset(row: dict, hints: dict) -> Dataset | None:
    """One changed row twice; None where Arrow has no type for it."""
    try:
        dataset = Dataset(pa.Table.from_pylist([row, row]))
    except (pa.ArrowException, AttributeError, LookupError, OverflowError, TypeError, ValueError, RecursionError):
        return None
    features = Features(dataset.features)
    for name in ("image", "mask", "pixels"):
        fields = features.get(name)
        if isinstance(fields, dict) and {"bytes", "path"} >= set(fields):
            features[name] = Image()
    for name, inner in hints.items():
        if isinstance(features.get(name), dict):
            features[name] = {**features[name], **{k: v for k, v in inner.items() if k in features[name]}}
    try:
        return dataset.cast(features)
    except Exception:
        return dataset


@inputs
def test_rows(tmp_path, monkeypatch, inputs):
    monkeypatch.setattr(lpg_hf.data.load, "load_dataset", lambda *_, **__: {"train": made[0]})
    # The hashes by which `datasets` finds results in its cache take longer than all else, and nothing here is cached.
    for module in (datasets.arrow_dataset, datasets.fingerprint):
        for name in ("generate_fingerprint", "update_fingerprint"):
            monkeypatch.setattr(module, name, lambda *_, **__: "0" * 16)
    datasets.disable_progress_bars()
    made: list[Dataset] = []
    drawn = st.tuples(st.sampled_from(range(len(_LAYOUTS))), CHANGES, st.booleans())
    (tmp_path / "rows").mkdir()
    fuzz(inputs, drawn, partial(check_rows, tmp_path / "rows", made))


def check_rows(folder: Path, made: list, drawn: tuple) -> None:
    layout, changes, masks = drawn
    row, hints = _LAYOUTS[layout]
    dataset = _dataset(changed_json(row, changes), hints)
    assume(dataset is not None)
    made[:] = [dataset]
    with allowed():
        options = SOURCE_OPTIONS if not masks else SOURCE_OPTIONS.__class__(masks=True, keep_empty=True)
        source = open_source(folder, None, options, format="dataset", report=Report())
        for index in range(len(source)):
            record = source.record(index, Report())
            if record is not None:
                source.decode(record, Report())


_CARD = """---
license: other
task_categories: [object-detection]
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
dataset_info:
  features:
  - name: image
    dtype: image
---
# Rows
"""


@inputs
def test_folders_of_datasets(tmp_path, monkeypatch, inputs):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    buffer = io.BytesIO()
    row, hints = _LAYOUTS[1]
    made = _dataset(row, hints)
    assert made is not None
    made.to_parquet(buffer)
    metadata = {"file_name": "a.png", "objects": {"bbox": [[10, 8, 20, 16]], "category": ["red"]}}
    drawn = st.tuples(st.integers(0, 9), CHANGES)
    # Each opens files through `datasets`, which takes a tenth of a second.
    fuzz(max(inputs // 10, 5), drawn, partial(check_folder, tmp_path, buffer.getvalue(), metadata))


def check_folder(folder: Path, parquet: bytes, metadata: dict, drawn: tuple) -> None:
    kind, changes = drawn
    root = folder / "set"
    shutil.rmtree(root, ignore_errors=True)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    (root / "data").mkdir(parents=True)
    if kind < 5:
        make_image().save(root / "a.png")
        lines = (
            json_bytes(changed_json(metadata, changes))
            if kind < 4
            else changed_text(json.dumps(metadata), changes).encode()
        )
        (root / "metadata.jsonl").write_bytes(lines + b"\n")
    else:
        (root / "data" / "train-0.parquet").write_bytes(changed_bytes(parquet, changes) if kind < 8 else parquet)
        (root / "README.md").write_text(
            _CARD if kind < 8 else changed_text(_CARD, changes), encoding="utf-8", errors="replace"
        )
    run("check", root, "--format", "dataset")
