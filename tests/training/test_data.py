"""The rows of a run: what is skipped is asked for, or said."""

import json
import os
from contextlib import contextmanager
from shutil import copytree
from xml.etree import ElementTree

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image
from tiny_run import changed

from lpg_hf.training._digests import digests
from lpg_hf.training.data import load_aux, load_eval, load_semi, load_target
from lpg_hf.training.run import Run


LOADS = {"aux": [load_aux], "target": [lambda run: load_target(run, masks=False), load_eval, load_semi]}


@pytest.fixture
def own(run, data, tmp_path):
    """A run with a copy of the data that a test may change, and a function that gives it other settings."""
    copytree(data, tmp_path / "data")
    folders = {
        "aux.annotations": str(tmp_path / "data" / "aux" / "annotations.json"),
        "aux.images": str(tmp_path / "data" / "aux" / "images"),
        "target.root": str(tmp_path / "data" / "target"),
    }
    return lambda changes: Run(run.accelerator, changed(run.settings, folders | changes))


def test_missing_images_are_an_error_unless_they_may_be_missing(own, tmp_path, capsys):
    for folder in ("aux/images", "target/JPEGImages"):
        for image in {path.name[:4]: path for path in (tmp_path / "data" / folder).iterdir()}.values():
            image.unlink()  # one of each list
    for section, functions in LOADS.items():
        for load in functions:
            with pytest.raises(FileNotFoundError, match="1 of .* are missing"):
                load(own({}))
            capsys.readouterr()
            assert len(load(own({f"{section}.allow_missing": True}))) in (7, 5, 3)
            assert "missing_image: 1 (image that does not exist; image " in capsys.readouterr().out


def test_what_a_file_out_of_the_ordinary_needs_is_handed_to_its_reader(own, tmp_path):
    expected = load_aux(own({}))[0]["objects"]["bbox"]
    path = tmp_path / "data" / "aux" / "annotations.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for item in content["annotations"]:
        x, y, width, height = item["bbox"]
        item["bbox"] = [x, y, x + width, y + height]
    path.write_text(json.dumps(content), encoding="utf-8")
    np.testing.assert_allclose(load_aux(own({"aux.read": {"box_format": "xyxy"}}))[0]["objects"]["bbox"], expected)


@pytest.mark.parametrize(
    "read, message",
    [
        ({"masks": True}, "read.masks is unknown. Choose of bands, box_format, "),
        ({"stored_frame": "yes"}, "read.stored_frame='yes' must be true or false"),
        ({"object_value": True}, "read.object_value=True must not be true or false"),
        ({"encoding": "utf-9"}, "encoding='utf-9' is unknown"),
        ({"encoding": "hex"}, "encoding='hex' is unknown, or not of texts"),
    ],
)
def test_what_a_reader_does_not_know_is_refused(own, read, message):
    with pytest.raises(ValueError, match=message):
        own({"aux.read": read})


def test_images_of_another_size_than_stated_are_skipped_refused_or_rescaled(own, tmp_path):
    path = tmp_path / "data" / "aux" / "annotations.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["images"][0]["width"] *= 2
    path.write_text(json.dumps(content), encoding="utf-8")
    for path in (tmp_path / "data" / "target" / "Annotations").glob("*_000001.xml"):
        tree = ElementTree.parse(path)
        width = tree.find("size/width")
        width.text = str(2 * int(width.text))
        tree.write(path, encoding="utf-8")
    for section, functions in LOADS.items():
        for load in functions:
            assert len(load(own({}))) in (7, 5, 3)
            with pytest.raises(ValueError, match=r"0001.*: stated \d+ x \d+, image"):
                load(own({f"{section}.size_mismatch": "error"}))
            rescaled = load(own({f"{section}.size_mismatch": "rescale"}))
            assert len(rescaled) in (8, 6, 4)
            assert np.max(rescaled[0]["objects"]["bbox"], axis=0)[2] <= rescaled[0]["width"] / 2


def test_images_and_objects_that_are_skipped_are_printed(own, capsys):
    load_aux(own({}))
    assert capsys.readouterr().out == ""  # nothing is skipped
    rows = load_aux(own({"aux.classes": ["ring"]}))
    said = capsys.readouterr().out
    assert f"auxiliary set: {len(rows)} images" in said and "other_class: " in said
    assert f"image_without_object: {8 - len(rows)} (" in said


def test_a_share_of_the_auxiliary_images_is_told_with_its_objects(own, capsys):
    rows = load_aux(own({}))
    kept = load_aux(own({"run.aux_fraction": 0.5}))
    of_all, of_kept = (sum(len(objects["bbox"]) for objects in r["objects"]) for r in (rows, kept))
    assert f"run.aux_fraction=0.5: 4 of 8 images with {of_kept} of {of_all} objects" in capsys.readouterr().out


def test_images_whose_objects_are_all_difficult_are_skipped_and_named(own, tmp_path, capsys):
    """They would train as background."""
    paths = sorted((tmp_path / "data" / "target" / "Annotations").glob("train_*.xml"))
    for path in paths[:2]:
        path.write_text(path.read_text().replace("<difficult>0<", "<difficult>1<"))
    rows = load_target(own({"target.drop_difficult": True}), masks=False)
    assert [name.split(".")[0] for name in rows["file_name"]] == [path.stem for path in paths[2:]]
    assert all(objects["bbox"] for objects in rows["objects"])
    said = capsys.readouterr().out
    names = ", ".join(f"{path.stem}.jpg" for path in paths[:2])
    assert f"target set: 2 of 6 images are skipped, as all their objects are difficult, e.g. {names}" in said
    for path in paths:
        path.write_text(path.read_text().replace("<difficult>0<", "<difficult>1<"))
    with pytest.raises(ValueError, match="6 of 6 images are skipped, .* Set drop_difficult to false"):
        load_target(own({"target.drop_difficult": True}), masks=False)


def test_other_processes_drop_nothing_before_the_main_one_has(own, monkeypatch):
    """What it has dropped is cached for them."""
    run, inside = own({"target.drop_difficult": True}), []

    @contextmanager
    def first():
        inside.append("begin")
        yield
        inside.append("end")

    monkeypatch.setattr(run.accelerator, "main_process_first", first)
    dropping = Dataset.map
    monkeypatch.setattr(Dataset, "map", lambda *a, **k: inside.append("map") or dropping(*a, **k))
    load_target(run, masks=False)
    assert inside == ["begin", "map", "end"]


def test_a_changed_mask_file_is_noticed_and_a_copied_one_is_the_same(own, data, tmp_path):
    """By its size: a copy on another machine has another time."""
    run = own({})
    before = digests({"aux": load_aux(run), "target": load_target(run, masks=False), "evaluation": load_eval(run)})
    assert list(before) == ["aux", "target", "evaluation", "evaluation masks"]
    path = min((tmp_path / "data" / "target" / "SegmentationClass").glob("val_*.png"))
    os.utime(path, (1, 1))
    assert digests({"evaluation": load_eval(run), "target truth": None}).items() <= before.items()
    mask = Image.open(path)
    Image.fromarray(np.asarray(mask) * 0).save(path)
    after = digests({"evaluation": load_eval(run)})
    assert [name for name in after if after[name] != before[name]] == ["evaluation masks"]
    embedded = load_eval(run).map(lambda row: {"mask": {"path": None, "bytes": row["file_name"].encode()}})
    changed = embedded.map(lambda row: {"mask": {"path": None, "bytes": row["file_name"].upper().encode()}})
    assert len({digests({"rows": rows})["rows masks"] for rows in (embedded, changed)}) == 2
