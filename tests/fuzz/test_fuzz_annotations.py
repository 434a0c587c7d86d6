"""Annotations of every format, changed at random: each command ends well, and what it writes can be read."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st
from mutations import CHANGES
from outcomes import Fault, allowed, fuzz, inputs, run
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from trees_in_memory import LAYOUTS, changed_file, changed_tree, inputs_of, rich_coco

from lpg_hf.data.load import load_boxes
from lpg_hf.data.options import SOURCE_OPTIONS
from lpg_hf.data.report import Report
from lpg_hf.data.sources import open_source


OUTPUTS = "png,coco,coco-polygons,coco-results,yolo,labelme,instances-png,crops"
TARGETS = ("coco", "voc", "yolo", "labelme")


@pytest.mark.parametrize("kind", sorted(LAYOUTS))
@inputs
def test_annotations(tmp_path, monkeypatch, kind, inputs):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")
    datasets.disable_progress_bars()
    fuzz(inputs, inputs_of(kind), partial(check_annotations, tmp_path, kind))


def check_annotations(folder: Path, kind: str, drawn: tuple) -> None:
    make, which, changes, action = drawn
    root, out = folder / "tree", folder / "out"
    changed_tree(root, make, which, changes)
    shutil.rmtree(out, ignore_errors=True)
    asked = ["--format", kind] if action % 2 else []
    if action < 10:
        run("check", root, *asked, *(["--masks"] if action < 5 else []))
    elif action < 70:
        if run("masks", root, "--generator", "box", "--out", out, "--write", OUTPUTS, "--num-workers", 1, *asked) < 2:
            check_masks(out, root)
    elif action < 98:
        to = TARGETS[action % len(TARGETS)]
        masks = ["--no-masks"] if action < 76 else []
        if run("convert-labels", root, out, "--to", to, *asked, *masks) < 2:
            check_conversion(out, to)
    elif kind in ("coco", "voc", "yolo"):
        run("export-data", out, "--format", kind, "--root", root)
    else:
        with allowed():
            load_boxes(kind, root=root, report=Report())


def strict_json(path: Path) -> dict | list:
    """Json as other programs read it; a fault where it holds NaN or an infinity."""

    def refuse(name: str) -> None:
        raise Fault(f"{path.name} holds {name}")

    return json.loads(path.read_bytes(), parse_constant=refuse)


def check_coco(path: Path) -> None:
    """What pycocotools and its users ask of a file."""
    content = strict_json(path)
    assert isinstance(content, dict)
    known = COCO(str(path))
    for annotation in known.loadAnns(known.getAnnIds()):
        image = known.imgs[annotation["image_id"]]
        assert annotation["category_id"] in known.cats, annotation
        if annotation.get("segmentation"):
            assert known.annToMask(annotation).shape == (image["height"], image["width"])
    ids = [annotation["id"] for annotation in content["annotations"]]
    assert len(set(ids)) == len(ids)


def check_source(path: Path, format: str) -> None:
    """Our own reader takes what was written, wherever its images are."""
    source = open_source(path, None, replace(SOURCE_OPTIONS, keep_missing=True), format=format, report=Report())
    for index in range(len(source)):
        source.record(index, Report())


def check_masks(out: Path, root: Path) -> None:
    report = strict_json(out / "report.json")
    assert isinstance(report, dict)
    classes = (out / "classes.txt").read_text(encoding="utf-8").split("\n")[:-1]
    assert len(set(classes)) == len(classes) and all(name.strip() == name and name for name in classes), classes
    content = strict_json(out / "instances.json")
    check_coco(out / "instances.json")
    check_coco(out / "instances_polygons.json")
    if strict_json(out / "results.json"):
        COCO(str(out / "instances.json")).loadRes(str(out / "results.json"))
    for image in content["images"] if isinstance(content, dict) else ():
        path = (out / "masks" / image["file_name"]).with_suffix(".png")
        with Image.open(path) as label_map:
            labels = np.asarray(label_map)
        assert labels.shape == (image["height"], image["width"])
        assert set(np.unique(labels).tolist()) <= {*range(len(classes) + 1), 255}
    files = list((out / "labels").rglob("*.txt"))
    if any(path.stat().st_size for path in files):
        check_source(out / "data.yaml", "yolo")
    if list((out / "labelme").rglob("*.json")) and content["annotations"]:
        check_source(out / "labelme", "labelme")
    if content["annotations"]:
        for item in content["annotations"]:
            assert int(coco_mask.area(item["segmentation"])) == item["area"]
        check_source(out / "instances.json", "coco")


def check_conversion(out: Path, to: str) -> None:
    if to == "coco":
        check_coco(out / "annotations.json")
    if any(path.suffix in (".xml", ".txt", ".json") and path.stat().st_size for path in out.rglob("*")):
        check_source(out, to)


@inputs
def test_scores_of_coco_files(tmp_path, inputs):
    rich_coco(tmp_path / "coco")
    truth, out = tmp_path / "coco" / "annotations.json", tmp_path / "out"
    assert run("masks", truth, "--generator", "box", "--out", out, "--write", "coco,coco-results") < 2
    files = {path.name: path.read_bytes() for path in (truth, out / "instances.json", out / "results.json")}
    drawn = st.tuples(st.sampled_from(sorted(files)), CHANGES, st.booleans())
    fuzz(inputs, drawn, partial(check_scores, tmp_path, files))


def check_scores(folder: Path, files: dict[str, bytes], drawn: tuple) -> None:
    name, changes, of_results = drawn
    for other, data in files.items():
        (folder / other).write_bytes(changed_file(other, data, changes) if other == name else data)
    predicted = folder / ("results.json" if of_results and name != "instances.json" else "instances.json")
    scores = folder / "scores.json"
    if run("eval", predicted, folder / "annotations.json", "--json", scores) < 2:
        strict_json(scores)
