"""The rows of a run: what is left out is asked for, or said."""

import dataclasses
import json
from shutil import copytree
from xml.etree import ElementTree

import numpy as np
import pytest
from accelerate import Accelerator

from training.data import load_aux, load_eval, load_semi, load_target


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


@pytest.fixture
def own(settings, data, tmp_path):
    """Settings with a copy of the data that a test may change."""
    copytree(data, tmp_path / "data")
    return dataclasses.replace(
        settings,
        aux_annotations=str(tmp_path / "data" / "aux" / "annotations.json"),
        aux_images=str(tmp_path / "data" / "aux" / "images"),
        target_root=str(tmp_path / "data" / "target"),
    )


def test_r_f7_missing_images_are_an_error_unless_they_may_be_missing(accelerator, own, tmp_path, capsys):
    for folder in ("aux/images", "target/JPEGImages"):
        for picture in {path.name[:4]: path for path in (tmp_path / "data" / folder).iterdir()}.values():
            picture.unlink()  # one of each part
    loads = {"aux": [load_aux], "target": [lambda *run: load_target(*run, masks=False), load_eval, load_semi]}
    for part, functions in loads.items():
        allowed = dataclasses.replace(own, **{f"{part}_allow_missing": True})
        for load in functions:
            with pytest.raises(FileNotFoundError, match="1 of .* are missing"):
                load(accelerator, own)
            capsys.readouterr()
            assert len(load(accelerator, allowed)) in (7, 5, 3)
            assert "missing_image: 1 (image that does not exist; image left out)" in capsys.readouterr().out


def test_r_a11_images_of_another_size_than_stated_are_left_out_refused_or_rescaled(accelerator, own, tmp_path):
    path = tmp_path / "data" / "aux" / "annotations.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["images"][0]["width"] *= 2
    path.write_text(json.dumps(content), encoding="utf-8")
    for path in (tmp_path / "data" / "target" / "Annotations").glob("*_000001.xml"):
        tree = ElementTree.parse(path)
        width = tree.find("size/width")
        width.text = str(2 * int(width.text))
        tree.write(path, encoding="utf-8")
    loads = {"aux": [load_aux], "target": [lambda *run: load_target(*run, masks=False), load_eval, load_semi]}
    for part, functions in loads.items():
        changed = {how: dataclasses.replace(own, **{f"{part}_size_mismatch": how}) for how in ("error", "rescale")}
        for load in functions:
            assert len(load(accelerator, own)) in (7, 5, 3)
            with pytest.raises(ValueError, match=r"0001.*: stated \d+ x \d+, image"):
                load(accelerator, changed["error"])
            rescaled = load(accelerator, changed["rescale"])
            assert len(rescaled) in (8, 6, 4)
            assert np.max(rescaled[0]["objects"]["bbox"], axis=0)[2] <= rescaled[0]["width"] / 2


def test_r_d5_r_e4_images_and_objects_that_are_left_out_are_printed(accelerator, own, capsys):
    load_aux(accelerator, own)
    assert capsys.readouterr().out == ""  # nothing is left out
    rows = load_aux(accelerator, dataclasses.replace(own, aux_classes=["ring"]))
    said = capsys.readouterr().out
    assert f"auxiliary set: {len(rows)} images" in said and "other_class: " in said
    assert f"image_without_object: {8 - len(rows)} (" in said


def test_a_share_of_the_auxiliary_images_is_told_with_its_objects(accelerator, own, capsys):
    rows = load_aux(accelerator, own)
    kept = load_aux(accelerator, dataclasses.replace(own, aux_fraction=0.5))
    of_all, of_kept = (sum(len(objects["bbox"]) for objects in r["objects"]) for r in (rows, kept))
    assert f"aux_fraction=0.5: 4 of 8 images with {of_kept} of {of_all} objects" in capsys.readouterr().out
