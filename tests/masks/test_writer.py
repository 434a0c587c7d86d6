"""`lpg-hf masks`: the files of all three formats; interrupted and resumed; shared by processes; with bad images."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

import lpg_hf.masks.writer
from lpg_hf import cli, load_generator
from lpg_hf._files import locked_folder
from lpg_hf.data.export import _write_shards
from lpg_hf.data.load import load_boxes
from lpg_hf.data.report import Report
from lpg_hf.data.sources import open_source
from lpg_hf.evaluation.evaluate import evaluate
from lpg_hf.label_maps import read_label_map
from lpg_hf.masks._outputs import ImageWriter
from lpg_hf.masks.writer import MaskSettings, Processes, write_masks
from tests.conftest import tiny_lpg


NAMES = ["set1/a.jpg", "set1/b c.png", "é/图片.jpg", "d.png", "e.jpg", "f.jpg"]
# xyxy pixels and class, per image of 60 x 40
OBJECTS = [
    [((5, 4, 30, 30), 0), ((20, 10, 55, 35), 1)],
    [((0, 0, 60, 40), 2)],
    [((10.5, 8.25, 30, 24), 0), ((12, 9, 40, 30), 0)],
    [],
    [((1, 1, 20, 39), 1), ((30, 5, 59, 20), 2), ((2, 2, 8, 8), 0)],
    [((40, 20, 60, 40), 1)],
]
CLASSES = [(3, "cat"), (7, "dog"), (90, "犬")]


def write_images(root: Path) -> None:
    rng = np.random.default_rng(0)
    for name in NAMES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        noise = rng.integers(0, 255, (5, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((60, 40), Image.Resampling.BICUBIC).save(root / name)


def coco_content() -> dict:
    annotations = [
        {"image_id": image, "category_id": CLASSES[category][0], "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0}
        for image, objects in enumerate(OBJECTS)
        for (x1, y1, x2, y2), category in objects
    ]
    return {
        "info": {"description": "made by hand"},
        "images": [{"id": 100 + i, "file_name": n, "width": 60, "height": 40} for i, n in enumerate(NAMES)],
        "annotations": [a | {"id": 1000 + i, "image_id": 100 + a["image_id"]} for i, a in enumerate(annotations)],
        "categories": [{"id": i, "name": name, "supercategory": "animal"} for i, name in CLASSES],
    }


@pytest.fixture
def data(tmp_path) -> Path:
    """The same boxes as COCO json (coco.json), VOC folder (voc) and YOLO folder (yolo)."""
    write_images(tmp_path / "images")
    (tmp_path / "coco.json").write_text(json.dumps(coco_content(), ensure_ascii=False), encoding="utf-8")
    names = [name for _, name in CLASSES]
    for folder in ("voc/JPEGImages", "yolo/images"):
        write_images(tmp_path / folder)
    for name, objects in zip(NAMES, OBJECTS):
        xml = "".join(
            f"<object><name>{names[c]}</name><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin>"
            f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
            for (x1, y1, x2, y2), c in objects
        )
        path = (tmp_path / "voc/Annotations" / name).with_suffix(".xml")
        path.parent.mkdir(parents=True, exist_ok=True)
        size = "<size><width>60</width><height>40</height><depth>3</depth></size>"
        path.write_text(f"<annotation>{size}{xml}</annotation>", encoding="utf-8")
        lines = "".join(
            f"{c} {(x1 + x2) / 120!r} {(y1 + y2) / 80!r} {(x2 - x1) / 60!r} {(y2 - y1) / 40!r}\n"
            for (x1, y1, x2, y2), c in objects
        )
        path = (tmp_path / "yolo/labels" / name).with_suffix(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(lines, encoding="utf-8")
    for folder in ("voc", "yolo"):
        (tmp_path / folder / "classes.txt").write_text("\n".join(names), encoding="utf-8")
    return tmp_path


def run(*arguments: object) -> int:
    """The exit status of `lpg-hf ARGUMENTS`."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(argument) for argument in arguments])
    return stopped.value.code or 0


def files(folder: Path) -> dict[str, str]:
    """Every file but the report, which holds times, with its digest."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "report.json" and ".parts" not in path.parts
    }


SOURCES = {"coco": ("coco.json", "images"), "voc": ("voc", None), "yolo": ("yolo", None)}


@pytest.mark.parametrize("name", SOURCES)
def test_all_outputs_of_every_format(name: str, data: Path, lpg_folder: Path):
    annotations, images = SOURCES[name]
    flags = [] if images is None else ["--images", data / images]
    out = data / "out"
    assert (
        run(
            "masks",
            data / annotations,
            *flags,
            "--out",
            out,
            "--model",
            lpg_folder,
            "--write",
            "png,coco,yolo",
            "--overlay",
        )
        == 0
    )

    for image, objects in zip(NAMES, OBJECTS):  # R-G1, R-G3: relative paths are kept
        label_map = read_label_map(out / "masks" / Path(image).with_suffix(".png"))
        assert label_map.shape == (40, 60) and set(np.unique(label_map)) <= {0, *(c + 1 for _, c in objects)}
        with Image.open(out / "overlays" / Path(image).with_suffix(".jpg")) as shown:
            assert shown.size == (60, 40)
        lines = (out / "labels" / Path(image).with_suffix(".txt")).read_text().splitlines()
        assert len(lines) <= len(objects)
    assert yaml.safe_load((out / "data.yaml").read_text(encoding="utf-8"))["names"] == dict(
        enumerate(n for _, n in CLASSES)
    )

    coco = COCO(str(out / "instances.json"))
    assert len(coco.imgs) == 6 and len(coco.anns) == 9
    assert [image["file_name"] for image in coco.dataset["images"]] == (NAMES if name == "coco" else sorted(NAMES))
    by_name = dict(zip(NAMES, OBJECTS))
    for image in coco.dataset["images"]:
        found = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        assert len(found) == len(by_name[image["file_name"]])
        for annotation, (box, category) in zip(found, by_name[image["file_name"]]):
            x1, y1, x2, y2 = box
            assert annotation["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=1e-6)
            mask = coco.annToMask(annotation)
            assert mask.sum() == annotation["area"] > 0 and 0.5 < annotation["score"] <= 1
            mask[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))] = 0
            assert not mask.any()  # R-N3
            assert coco.cats[annotation["category_id"]]["name"] == CLASSES[category][1]
    if name == "coco":  # R-A5: original ids, categories and header come back
        content = coco_content()
        assert [a["id"] for a in coco.dataset["annotations"]] == list(range(1000, 1009))
        assert coco.dataset["categories"] == content["categories"] and coco.dataset["info"] == content["info"]
        assert [i["id"] for i in coco.dataset["images"]] == list(range(100, 106))

    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["report"]["images"] == 6 and report["report"]["objects"] == 9
    assert [image["file_name"] for image in report["images"]] == [i["file_name"] for i in coco.dataset["images"]]
    assert all(image["seconds"] >= 0 for image in report["images"])
    assert {path.suffix for path in (out / ".parts").rglob("*") if path.is_file()} == {".json"}


def test_label_maps_are_palette_images(data: Path):
    assert (
        run("masks", data / "coco.json", "--images", data / "images", "--out", data / "out", "--generator", "box") == 0
    )
    with Image.open(data / "out/masks/set1/a.png") as image:
        assert image.mode == "P" and np.unique(np.asarray(image)).tolist() == [0, 1, 2]
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) == 3


def test_more_classes_than_a_label_map_holds_are_refused_before_any_work(data: Path, capsys):
    content = coco_content()
    content["categories"] = [{"id": i, "name": f"class {i}"} for i in range(1, 65536)]
    for annotation in content["annotations"]:
        annotation["category_id"] = 65535
    (data / "many.json").write_text(json.dumps(content), encoding="utf-8")
    command = ["masks", data / "many.json", "--images", data / "images", "--out", data / "out", "--generator", "box"]
    for flags in ([], ["--write", "coco", "--overlay"], ["--write", "instances-png"]):
        assert run(*command, *flags) == 2 and not (data / "out").exists()
        assert "65535 classes do not fit in a label map: a 16-bit PNG holds 65534" in capsys.readouterr().err
    assert run(*command, "--write", "coco") == 0
    written = json.loads((data / "out" / "instances.json").read_text(encoding="utf-8"))
    assert {annotation["category_id"] for annotation in written["annotations"]} == {65535}


def test_more_than_254_classes_give_16_bit_maps(data: Path):
    content = coco_content()
    content["categories"] = [{"id": i, "name": f"class {i}"} for i in range(1, 301)]
    for annotation in content["annotations"]:
        annotation["category_id"] = 300
    content["annotations"][0]["iscrowd"] = 1
    (data / "many.json").write_text(json.dumps(content), encoding="utf-8")
    assert (
        run(
            "masks",
            data / "many.json",
            "--images",
            data / "images",
            "--out",
            data / "out",
            "--generator",
            "box",
            "--overlay",
        )
        == 0
    )
    label_map = read_label_map(data / "out/masks/set1/a.png")
    assert label_map.dtype == np.uint16 and np.unique(label_map).tolist() == [0, 300, 65535]


@pytest.mark.parametrize("name", SOURCES)
def test_a_finished_run_is_not_done_again(name: str, data: Path, monkeypatch):
    annotations, images = SOURCES[name]
    flags = [] if images is None else ["--images", data / images]
    command = [
        "masks",
        data / annotations,
        *flags,
        "--out",
        data / "out",
        "--generator",
        "box",
        "--write",
        "png,coco,yolo",
    ]
    assert run(*command) == 0
    before = {path: path.stat().st_mtime_ns for path in (data / "out").rglob("*")}

    def never(*arguments):
        raise AssertionError("something was written")

    monkeypatch.setattr(lpg_hf.masks.writer, "write_atomically", never)
    assert run(*command) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (data / "out").rglob("*")}


class Killed(BaseException):
    """Ends a run as a signal would: no handler of `Exception` sees it."""


def masks_of(
    data: Path, out: Path, lpg_folder: Path, rank: int = 0, count: int = 1, overwrite: bool = False
) -> Report | None:
    report = Report()
    source = open_source(data / "coco.json", data / "images", report=report)
    generator = load_generator("lpg", model=lpg_folder, dtype="float32", device="cpu")
    outputs = ("png", "coco", "yolo")
    settings = MaskSettings(outputs, per="instance", overlay=True, batch_size=2, generator="lpg")
    processes = Processes(rank, count, num_workers=1)
    return write_masks(source, generator, out, settings, report=report, overwrite=overwrite, processes=processes)


def test_cut_off_at_any_file_and_repeated_gives_the_bytes_of_one_run(data: Path, lpg_folder: Path, monkeypatch):
    monkeypatch.setattr(lpg_hf.masks.writer, "BLOCK_SIZE", 2)
    masks_of(data, data / "clean", lpg_folder)
    expected = files(data / "clean")
    replace = os.replace
    moment = 0
    while True:
        moment += 1
        count = 0

        def dying(source, target):
            nonlocal count
            count += 1
            if count == moment:
                Path(source).write_bytes(b"half")  # what a killed process leaves is unfinished
                raise Killed
            replace(source, target)

        out = data / f"out{moment}"
        monkeypatch.setattr(os, "replace", dying)
        try:
            masks_of(data, out, lpg_folder)
            finished = True
        except Killed:
            finished = False
        monkeypatch.setattr(os, "replace", replace)
        if finished:
            break
        masks_of(data, out, lpg_folder)
        assert files(out) == expected, f"cut off at file {moment}"
    # A link to an image is complete from the first moment on.
    assert moment > sum(not name.startswith("images/") for name in expected)


def test_a_folder_that_is_deleted_and_written_to_again_is_made_anew(data: Path, lpg_folder: Path, monkeypatch):
    masks_of(data, data / "clean", lpg_folder)
    out, write_blocks = data / "out", lpg_hf.masks.writer._write_blocks

    def deleted_meanwhile(run, processes):
        write_blocks(run, processes)
        last = (out / ".parts/000000.json").read_bytes()  # written after the others were deleted
        shutil.rmtree(out)
        (out / ".parts").mkdir(parents=True)
        (out / ".parts/000000.json").write_bytes(last)

    monkeypatch.setattr(lpg_hf.masks.writer, "_write_blocks", deleted_meanwhile)
    with pytest.raises(FileNotFoundError, match="was deleted while masks were written to it. Start again"):
        masks_of(data, out, lpg_folder)
    monkeypatch.setattr(lpg_hf.masks.writer, "_write_blocks", write_blocks)
    masks_of(data, out, lpg_folder)
    assert files(out) == files(data / "clean")


def test_processes_share_the_images_and_the_last_one_joins(data: Path, lpg_folder: Path, monkeypatch):
    monkeypatch.setattr(lpg_hf.masks.writer, "BLOCK_SIZE", 1)
    masks_of(data, data / "one", lpg_folder)
    results = [masks_of(data, data / "three", lpg_folder, rank=rank, count=3) for rank in (2, 0, 1)]
    assert results[:2] == [None, None] and results[2].images == 6
    assert files(data / "one") == files(data / "three")


def test_another_process_may_be_faster_with_the_end(data: Path, lpg_folder: Path, monkeypatch):
    join, seen = lpg_hf.masks.writer._write_coco, []

    def join_while_another_does(*arguments):
        if not seen:
            seen.append(1)
            report = masks_of(data, data / "out", lpg_folder, rank=1, count=2)  # the other process, to its end
            assert report.images == 6
        join(*arguments)

    masks_of(data, data / "out", lpg_folder, rank=1, count=2)
    monkeypatch.setattr(lpg_hf.masks.writer, "_write_coco", join_while_another_does)
    assert masks_of(data, data / "out", lpg_folder, rank=0, count=2).images == 6
    assert (data / "out/report.json").is_file()


def test_other_settings_do_not_mix(data: Path, capsys):
    command = ["masks", data / "coco.json", "--images", data / "images", "--out", data / "out", "--generator", "box"]
    assert run(*command) == 0
    for change in (
        ["--no-clean"],
        ["--per", "instance"],
        ["--threshold", 0.3],
        ["--overlap-rule", "prob"],
        ["--batch-size", 3],
    ):
        assert run(*command, *change) == 2
        assert "made with other settings" in capsys.readouterr().err
    content = coco_content()
    content["annotations"][0]["bbox"] = [0, 0, 9, 9]
    (data / "coco.json").write_text(json.dumps(content), encoding="utf-8")
    assert run(*command) == 2 and "the annotations or the images have changed" in capsys.readouterr().err
    assert run(*command, "--overwrite", "--write", "coco") == 0
    assert sorted(path.name for path in (data / "out").iterdir()) == [
        ".parts",
        "classes.txt",
        "instances.json",
        "report.json",
    ]


def test_changed_labels_and_reading_options_do_not_mix_either(data: Path, capsys):
    (data / "yolo/data.yaml").write_text("train: images\nnames: [cat, dog, 犬]\n", encoding="utf-8")
    command = ["masks", data / "yolo/data.yaml", "--out", data / "out", "--generator", "box"]
    assert run(*command) == 0 and run(*command) == 0
    (data / "yolo/labels/f.txt").write_text("1 0.5 0.5 0.1 0.1\n")
    assert run(*command) == 2 and "the annotations or the images have changed" in capsys.readouterr().err
    command = ["masks", data / "voc", "--out", data / "voc_out", "--generator", "box"]
    assert run(*command) == 0
    assert run(*command, "--zero-based") == 2 and "zero-based was False" in capsys.readouterr().err


def test_a_missing_image_alone_is_told_by_the_exit_status(data: Path):
    (data / "images/f.jpg").unlink()
    assert (
        run("masks", data / "coco.json", "--images", data / "images", "--out", data / "out", "--generator", "box") == 1
    )
    report = json.loads((data / "out/report.json").read_text(encoding="utf-8"))
    assert report["images"][-1] == {"file_name": "f.jpg", "skipped": True, "problems": {"missing_image": []}}


@pytest.mark.parametrize("name", SOURCES)
def test_an_image_repaired_after_a_finished_run_is_reported(name: str, data: Path, capsys, caplog):
    annotations, images = SOURCES[name]
    flags = [] if images is None else ["--images", data / images]
    command = ["masks", data / annotations, *flags, "--out", data / "out", "--generator", "box"]
    image = data / {"coco": "images", "voc": "voc/JPEGImages", "yolo": "yolo/images"}[name] / "f.jpg"
    good = image.read_bytes()
    image.write_bytes(good[:100])
    assert run(*command) == 1 and run(*command) == 1
    assert "are finished already; --overwrite makes them again" in caplog.text
    image.write_bytes(good)
    assert run(*command) == 2 and "without f.jpg, whose files can be used now" in capsys.readouterr().err
    assert run(*command, "--overwrite") == 0 and (data / "out/masks/f.png").is_file()


def test_lines_in_pixels_are_told_and_are_an_error_if_there_is_no_other_object(data: Path, capsys):
    command = ["masks", data / "yolo", "--out", data / "out", "--generator", "box"]
    (data / "yolo/labels/f.txt").write_text("1 30 20 10 10\n")
    assert run(*command) == 1 and "labels/f.txt: line 1 holds pixels" in capsys.readouterr().out
    for path in (data / "yolo/labels").rglob("*.txt"):
        path.write_text("1 30 20 10 10\n")
    command[3] = data / "other"
    assert run(*command) == 2 and not (data / "other").exists()
    assert "can be used" in (error := capsys.readouterr().err) and "line 1 holds pixels" in error


def test_two_processes_may_join_at_the_same_time(data: Path, lpg_folder: Path, monkeypatch):
    write_coco, inside = lpg_hf.masks.writer._write_coco, []

    def twice(*arguments):
        inside.append(1)
        if len(inside) == 1:  # the other process joins the same files, and has not ended when this one continues
            write_coco(*arguments)
        write_coco(*arguments)

    monkeypatch.setattr(lpg_hf.masks.writer, "_write_coco", twice)
    assert masks_of(data, data / "out", lpg_folder).images == 6
    assert len(json.loads((data / "out/instances.json").read_text(encoding="utf-8"))["annotations"]) == 9


def test_file_names_that_are_no_utf_8(data: Path, capsys):
    raw = os.fsencode(data / "voc")
    os.rename(raw + b"/JPEGImages/f.jpg", raw + b"/JPEGImages/caf\xe9.jpg")
    os.rename(raw + b"/Annotations/f.xml", raw + b"/Annotations/caf\xe9.xml")
    assert run("masks", data / "voc", "--out", data / "out", "--generator", "box", "--write", "png,coco") == 0
    assert b"caf\xe9.png" in os.listdir(os.fsencode(data / "out/masks"))
    assert len(json.loads((data / "out/instances.json").read_text(encoding="utf-8"))["images"]) == 6
    # A trainer reads lists as UTF-8, and so do we.
    assert run("masks", data / "voc", "--out", data / "yolo_out", "--generator", "box", "--write", "yolo") == 1
    assert "unwritable_name: 1" in capsys.readouterr().out
    assert run("check", data / "yolo_out", "--no-decode") == 0


def test_categories_that_no_list_names_are_written_too(data: Path):
    content = coco_content()
    content["annotations"][0]["category_id"] = 77
    (data / "unlisted.json").write_text(json.dumps(content), encoding="utf-8")
    command = [
        "masks",
        data / "unlisted.json",
        "--images",
        data / "images",
        "--out",
        data / "out",
        "--generator",
        "box",
    ]
    assert run(*command, "--write", "coco") == 0
    written = json.loads((data / "out/instances.json").read_text(encoding="utf-8"))
    assert {a["category_id"] for a in written["annotations"]} == {3, 7, 77, 90}
    assert {c["id"] for c in written["categories"]} == {3, 7, 77, 90}


@pytest.fixture
def licensed(data: Path) -> dict:
    """`data` with licences: listed ones, none, and one that the file does not list."""
    content = coco_content()
    content["licenses"] = [{"id": 4, "name": "BY", "url": "http://example.org/by"}, {"id": 6, "name": "CC0"}]
    for image, license_id in zip(content["images"], (4, 6, 6, None, 9, 4)):
        image |= {} if license_id is None else {"license": license_id}
    (data / "coco.json").write_text(json.dumps(content), encoding="utf-8")
    return content


def test_licences_of_images_come_back_from_every_process(data: Path, licensed: dict, lpg_folder: Path, monkeypatch):
    monkeypatch.setattr(lpg_hf.masks.writer, "BLOCK_SIZE", 2)
    for rank in (0, 1):  # the second joins the block files of the first
        masks_of(data, data / "out", lpg_folder, rank=rank, count=2)
    written = json.loads((data / "out/instances.json").read_text(encoding="utf-8"))
    assert written["images"] == licensed["images"] and written["licenses"] == licensed["licenses"]
    report = json.loads((data / "out/report.json").read_text(encoding="utf-8"))
    assert not any("license" in image for image in report["images"])


def test_licences_and_image_ids_of_a_data_set_are_listed(data: Path, licensed: dict):
    (data / "parquet/data").mkdir(parents=True)
    dataset = load_boxes("coco", annotations=data / "coco.json", images=data / "images", keep_empty=True)
    _write_shards(dataset, data / "parquet/data", "train", 100)
    assert run("masks", data / "parquet", "--out", data / "out", "--generator", "box", "--write", "coco") == 0
    written = json.loads((data / "out/instances.json").read_text(encoding="utf-8"))
    assert written["licenses"] == [{"id": 1, "name": "BY http://example.org/by"}, {"id": 2, "name": "CC0"}]
    assert [image.get("license") for image in written["images"]] == [1, 2, 2, None, 9, 1]
    assert [image["id"] for image in written["images"]] == [100, 101, 102, 103, 104, 105]


def test_a_folder_with_other_files_is_left_alone(data: Path, capsys):
    assert (
        run("masks", data / "coco.json", "--out", data / "images", "--images", data / "images", "--generator", "box")
        == 2
    )
    assert "is not empty and holds no masks" in capsys.readouterr().err
    assert sorted(p.name for p in (data / "images").iterdir()) == sorted({n.split("/")[0] for n in NAMES})


@pytest.mark.timeout(50)
@pytest.mark.parametrize("place", [".parts", ".parts/unfinished", ".parts/settings.json"])
def test_links_of_another_origin_are_not_written_or_deleted_behind(place: str, data: Path, capsys):
    theirs, link = data / "theirs", data / "out" / place
    (theirs / "unfinished").mkdir(parents=True)
    (theirs / "unfinished" / "file").write_text("kept")
    link.parent.mkdir(parents=True)
    link.symlink_to(theirs / "unfinished" / "file" if link.suffix else theirs)
    ended = run("masks", data / "coco.json", "--images", data / "images", "--out", data / "out", "--generator", "box")
    assert ended == 2 and ("is a link to" in capsys.readouterr().err) == (not link.suffix)
    assert [path.name for path in theirs.rglob("*")] == ["unfinished", "file"]
    assert (theirs / "unfinished" / "file").read_text() == "kept"


@pytest.mark.timeout(50)
def test_a_pipe_in_the_place_of_the_report_is_not_waited_for(data: Path, capsys):
    (data / "out").mkdir()
    os.mkfifo(data / "out" / "report.json")
    arguments = ("masks", data / "coco.json", "--images", data / "images", "--out", data / "out", "--generator", "box")
    assert run(*arguments) == 2
    assert "is not empty and holds no masks of an earlier run" in capsys.readouterr().err


@pytest.mark.parametrize("name", SOURCES)
def test_bad_images_are_named_and_the_rest_goes_on(name: str, data: Path, capsys):
    annotations, images = SOURCES[name]
    folder = data / {"coco": "images", "voc": "voc/JPEGImages", "yolo": "yolo/images"}[name]
    (folder / "e.jpg").write_bytes((folder / "e.jpg").read_bytes()[:-200])
    (folder / "f.jpg").unlink()
    Image.new("L", (2000, 1000)).save(folder / "d.png")
    flags = ["--max-pixels", 1_000_000] + ([] if images is None else ["--images", folder])
    assert (
        run("masks", data / annotations, *flags, "--out", data / "out", "--generator", "box", "--write", "png,coco")
        == 1
    )
    printed = capsys.readouterr().out
    assert (
        "truncated_image: 1" in printed
        and "e.jpg" in printed
        and "image_too_large: 1" in printed
        and "d.png" in printed
    )
    report = json.loads((data / "out/report.json").read_text(encoding="utf-8"))
    left_out = {image["file_name"]: image["problems"] for image in report["images"] if image.get("skipped")}
    named = {name for name in left_out if not name.startswith("f")}
    assert named == {"d.png", "e.jpg"} and "truncated_image" in left_out["e.jpg"]
    if name == "yolo":  # a label file without an image says no more than its own name
        assert "f.txt" in printed
    else:
        assert any(left.startswith("f.") for left in left_out)
    assert {path.name for path in (data / "out/masks").rglob("*.png")} == {"a.png", "b c.png", "图片.png"}
    assert len(json.loads((data / "out/instances.json").read_text(encoding="utf-8"))["images"]) == 3


def test_images_of_one_mask_name_are_not_overwritten(data: Path, capsys):
    content = coco_content()
    Image.new("RGB", (60, 40)).save(data / "images/set1/a.png")
    content["images"].append({"id": 999, "file_name": "set1/a.png", "width": 60, "height": 40})
    (data / "twice.json").write_text(json.dumps(content), encoding="utf-8")
    assert (
        run("masks", data / "twice.json", "--images", data / "images", "--out", data / "out", "--generator", "box")
        == 1
    )
    assert "mask_name_taken: 1" in capsys.readouterr().out
    assert read_label_map(data / "out/masks/set1/a.png").any()


def test_low_scores_are_left_out_and_ignored(data: Path):
    def unsure(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        return np.stack([np.full(image.shape[:2], 0.9 if i % 2 else 0.6) for i in range(len(boxes))])

    report = Report()
    source = open_source(data / "coco.json", data / "images", report=report)
    settings = MaskSettings(write=("png", "coco", "yolo"), per="instance", min_score=0.7, generator="mine")
    found = write_masks(source, load_generator(unsure), data / "out", settings, report=report)
    assert found.counts["low_score"] == 6 and found.objects == 9
    content = json.loads((data / "out/instances.json").read_text(encoding="utf-8"))
    assert [a["id"] for a in content["annotations"]] == [1001, 1004, 1006]
    label_map = read_label_map(data / "out/masks/set1/a.png")
    assert (label_map[10:35, 20:55] == 2).all() and (label_map[4:10, 5:30] == 255).all() and label_map[39, 59] == 0
    assert (data / "out/labels/f.txt").read_text() == ""


def test_crowds_are_no_objects_and_ignored_where_nothing_lies(data: Path):
    content = coco_content()
    content["annotations"][0] |= {"iscrowd": 1, "segmentation": {"size": [40, 60], "counts": [0, 2400]}}
    (data / "crowd.json").write_text(json.dumps(content), encoding="utf-8")
    assert (
        run(
            "masks",
            data / "crowd.json",
            "--images",
            data / "images",
            "--out",
            data / "out",
            "--generator",
            "box",
            "--write",
            "png,coco",
        )
        == 0
    )
    label_map = read_label_map(data / "out/masks/set1/a.png")
    assert (label_map[10:35, 20:55] == 2).all() and (label_map[4:10, 5:30] == 255).all() and label_map[39, 0] == 0
    written = json.loads((data / "out/instances.json").read_text(encoding="utf-8"))
    assert 1000 not in [a["id"] for a in written["annotations"]]


def test_empty_masks_are_kept_and_counted(data: Path):
    report = Report()
    source = open_source(data / "coco.json", data / "images", report=report)
    nothing = load_generator(lambda image, boxes: np.zeros((len(boxes), *image.shape[:2]), dtype=bool))
    settings = MaskSettings(write=("coco", "yolo"), per="instance", generator="nothing")
    found = write_masks(source, nothing, data / "out", settings, report=report)
    assert found.counts["empty_mask"] == 9
    content = json.loads((data / "out/instances.json").read_text(encoding="utf-8"))
    assert len(content["annotations"]) == 9 and not coco_mask.decode(content["annotations"][0]["segmentation"]).any()
    assert (data / "out/labels/e.txt").read_text() == ""


def test_classes_of_yolo_get_the_category_ids_of_convert_labels(data: Path):
    assert run("masks", data / "yolo", "--out", data / "out", "--generator", "box", "--write", "coco") == 0
    assert run("convert-labels", data / "yolo", data / "labels.json", "--to", "coco") == 0
    made, converted = (
        json.loads((data / name).read_text(encoding="utf-8")) for name in ("out/instances.json", "labels.json")
    )
    assert [category["id"] for category in made["categories"]] == [1, 2, 3]
    assert made["categories"] == converted["categories"]
    ids = [[annotation["category_id"] for annotation in content["annotations"]] for content in (made, converted)]
    assert ids[0] == ids[1] and set(ids[0]) == {1, 2, 3}


def test_a_class_named_background_keeps_its_label_in_the_class_list(data: Path):
    content = coco_content()
    content["categories"][0]["name"] = "background"
    (data / "named.json").write_text(json.dumps(content), encoding="utf-8")
    out = data / "out"
    assert run("masks", data / "named.json", "--images", data / "images", "--out", out, "--generator", "box") == 0
    names = (out / "classes.txt").read_text().splitlines()
    assert names == ["background class", *[category["name"] for category in content["categories"][1:]]]
    scores = evaluate(out / "masks", out / "masks", classes=out / "classes.txt").per_class
    assert list(scores) == ["background", *names]


def test_boxes_of_a_class_are_one_by_one_where_objects_are_written():
    assert [MaskSettings(write=(name,)).granularity for name in ("png", "coco", "yolo")] == [
        "class",
        "instance",
        "instance",
    ]
    assert MaskSettings(write=("png", "coco"), per="class").granularity == "class"


def test_objects_of_unknown_classes_get_masks(data: Path):
    (data / "voc/classes.txt").write_text("cat\ndog\n", encoding="utf-8")
    assert run("masks", data / "voc", "--out", data / "out", "--generator", "box", "--write", "coco") == 0
    content = json.loads((data / "out/instances.json").read_text(encoding="utf-8"))
    assert [c["name"] for c in content["categories"]] == ["cat", "dog", "犬"] and len(content["annotations"]) == 9


def test_very_many_boxes_in_one_image(data: Path, lpg_folder: Path):
    rng = np.random.default_rng(0)
    corners = rng.integers(0, [50, 30], (1000, 2))
    content = coco_content()
    content["annotations"] = [
        {"id": i, "image_id": 100, "category_id": 3, "bbox": [int(x), int(y), 8, 8]}
        for i, (x, y) in enumerate(corners)
    ]
    (data / "many.json").write_text(json.dumps(content), encoding="utf-8")
    command = [
        "masks",
        data / "many.json",
        "--images",
        data / "images",
        "--out",
        data / "out",
        "--write",
        "png,coco,yolo",
    ]
    assert run(*command, "--model", lpg_folder) == 0
    assert len(json.loads((data / "out/instances.json").read_text(encoding="utf-8"))["annotations"]) == 1000


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--write", "png,svg"], "choose one or more of png, coco, coco-polygons"),
        (["--generator", "mcg"], "generator 'mcg' is unknown"),
        (["--model", "no/such/model"], "no/such/model is neither a folder nor an id"),
        (["--generator", "box", "--per", "image"], "--per image is unknown"),
        (["--generator", "box", "--threshold", 1.5], "--threshold 1.5 is a probability"),
        (["--generator", "box", "--overlap-rule", "top"], "--overlap-rule top is unknown"),
        (["--generator", "box", "--format", "xml"], "unknown format 'xml'"),
        (["--generator", "box", "--batch-size", 0], "--batch-size 0 must be at least 1"),
        (["--generator", "box", "--images", "nowhere"], "image folder not found"),
    ],
)
def test_bad_flags_give_one_line_and_leave_nothing(flags: list, message: str, data: Path, capsys):
    assert run("masks", data / "coco.json", "--images", data / "images", "--out", data / "out", *flags) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and error.count("\n") == 1
    assert not (data / "out").exists()


RUN = """
import sys
from lpg_hf import cli
for command in eval(sys.argv[1]):
    try:
        cli.main(["masks", *command])
    except SystemExit as stopped:
        loaded = [name for name in ("torch", "transformers", "datasets") if name in sys.modules]
        print("exit", stopped.code or 0, *loaded)
"""


@pytest.mark.parametrize("name", SOURCES)
def test_no_library_is_imported_before_it_is_needed(name: str, data: Path, lpg_folder: Path):
    """GrabCut, a finished run of an LPG, and refused runs: `import torch` alone takes seconds."""
    annotations, images = SOURCES[name]
    flags = [] if images is None else ["--images", str(data / images)]
    lpg = [str(data / annotations), *flags, "--out", str(data / "lpg"), "--model", str(lpg_folder)]
    assert run("masks", *lpg) == 0
    grabcut = [str(data / annotations), *flags, "--out", str(data / "grabcut"), "--generator", "grabcut"]
    commands = [grabcut, lpg, [*lpg, "--threshold", "0.4"], [str(data / "absent.json"), "--out", str(data / "no")]]
    ended = subprocess.run([sys.executable, "-c", RUN, repr(commands)], capture_output=True, text=True, timeout=120)
    assert [line for line in ended.stdout.splitlines() if line.startswith("exit")] == [
        *("exit 0", "exit 0", "exit 2", "exit 2")
    ], ended.stderr


def test_a_finished_run_is_refused_if_the_model_has_changed(data: Path, lpg_folder: Path, tmp_path, capsys):
    model = Path(shutil.copytree(lpg_folder, tmp_path / "model"))
    command = ["masks", data / "yolo", "--out", data / "out", "--model", model]
    assert run(*command) == 0
    os.utime(model / "config.json", (1, 1))  # the same weights, as a fresh copy has them
    assert run(*command) == 0
    other = tiny_lpg()
    other.generator.head[-1].weight.data.mul_(2)
    other.save_pretrained(model)
    assert run(*command) == 2
    assert "made with other settings: weights_sha256 was" in capsys.readouterr().err


@pytest.mark.parametrize("report", ['{"images": 6}', "[1]", "", '{"settings": {}}'])
def test_overwrite_never_deletes_what_no_run_has_written(report: str, data: Path, capsys):
    (data / "yolo/report.json").write_text(report)
    command = ["masks", data / "coco.json", "--images", data / "images", "--out", data / "yolo", "--generator", "box"]
    assert run(*command, "--overwrite") == 2 and "is not empty" in capsys.readouterr().err
    assert run(*command) == 2 and "is not empty" in capsys.readouterr().err
    assert (data / "yolo/labels/set1/a.txt").is_file()


def test_overwrite_goes_on_beside_files_that_no_run_has_written(data: Path):
    out = data / "out"
    command = ["masks", data / "coco.json", "--images", data / "images", "--out", out, "--generator", "box"]
    assert run(*command, "--write", "png,coco,yolo", "--overlay", "--with-images", "none") == 0
    (out / "images").symlink_to(data / "images", target_is_directory=True)
    mine = [out / name for name in ("notes.txt", "masks/mine.png", "labels/set1/classes.txt")]
    for path in mine:
        path.write_text("mine")
    content = coco_content()
    content["images"], content["annotations"] = content["images"][1:], content["annotations"][2:]
    (data / "coco.json").write_text(json.dumps(content), encoding="utf-8")

    assert run(*command, "--overwrite") == 0
    assert [path.read_text() for path in mine] == ["mine"] * 3 and len(list(out.glob("images/set1/*"))) == 2
    written = {f"masks/{Path(name).with_suffix('.png')}" for name in NAMES[1:]}
    kept = {"notes.txt", "masks/mine.png", "labels/set1/classes.txt"}
    left = {str(path.relative_to(out)) for path in out.rglob("*") if not path.is_dir() and ".parts" not in path.parts}
    assert left - {f"images/{name}" for name in NAMES} == written | kept | {"classes.txt", "report.json"}
    assert not (out / "overlays").exists()


def test_overwrite_clears_an_unfinished_run_beside_other_files_too(data: Path, lpg_folder: Path, monkeypatch):
    monkeypatch.setattr(lpg_hf.masks.writer, "BLOCK_SIZE", 2)
    masks_of(data, data / "clean", lpg_folder)
    out, overlay = data / "out", ImageWriter._overlay

    def dying(writer, image, pixels):
        if image.record.file_name == NAMES[2]:
            raise Killed
        return overlay(writer, image, pixels)

    monkeypatch.setattr(ImageWriter, "_overlay", dying)
    with pytest.raises(Killed):
        masks_of(data, out, lpg_folder)
    monkeypatch.setattr(ImageWriter, "_overlay", overlay)
    (out / "notes.txt").write_text("mine")
    write_images(data / "images/more")
    content = coco_content()
    for image in content["images"]:
        image["file_name"] = f"more/{image['file_name']}"
    (data / "coco.json").write_text(json.dumps(content), encoding="utf-8")
    masks_of(data, out, lpg_folder, overwrite=True)
    left = files(out)
    assert left.pop("notes.txt") and not (out / "masks/set1").exists() and (out / "masks/more/set1").is_dir()
    assert len(left) == len(files(data / "clean"))


def test_overwrite_deletes_nothing_where_another_file_is_in_the_way(data: Path, capsys):
    out = data / "out"
    command = ["masks", data / "yolo", "--out", out, "--generator", "box"]
    assert run(*command) == 0
    (out / "labels").mkdir()
    (out / "labels/f.txt").write_text("mine")
    before = files(out)
    assert run(*command, "--overwrite", "--write", "png,yolo") == 2
    assert "labels/f.txt has the name of a file to be written" in capsys.readouterr().err and files(out) == before
    (out / "labels/f.txt").unlink()
    assert run(*command, "--overwrite", "--write", "png,yolo") == 0


def test_overwrite_never_follows_a_link_to_the_annotations(data: Path, capsys):
    out, labels = data / "out", data / "yolo/labels"
    command = ["masks", data / "yolo", "--out", out, "--generator", "box", "--write", "yolo"]
    assert run(*command) == 0
    (out / "labels").rename(data / "elsewhere")
    (out / "labels").symlink_to(labels, target_is_directory=True)
    before = files(labels)
    assert run(*command, "--overwrite") == 2 and "has the name of a file to be written" in capsys.readouterr().err
    assert files(labels) == before and (out / "report.json").is_file()


def test_masks_are_never_written_into_the_annotations(data: Path, capsys):
    command = ["masks", data / "yolo", "--out", data / "yolo", "--generator", "box", "--overwrite"]
    assert run(*command) == 2 and "holds annotations that are read" in capsys.readouterr().err
    assert (data / "yolo/labels/set1/a.txt").is_file()


def test_a_process_that_does_not_exist_is_refused(data: Path, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run("masks", data / "yolo", "--out", data / "out", "--generator", "box") == 2
    assert "rank=5 (RANK) must be from 0 to 1" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "abc")
    assert run("masks", data / "yolo", "--out", data / "out", "--generator", "box") == 2
    assert "the environment variable RANK is 'abc', not a number" in capsys.readouterr().err


OTHER_TYPES = [
    {"settings": {"annotations_sha256": "", "overlay": False, "write": [[]]}},
    {"settings": {"annotations_sha256": "", "overlay": False, "write": ["png"]}, "report": 3, "images": []},
    {"settings": {"annotations_sha256": "", "overlay": False, "write": ["png"]}, "report": {}, "images": [{"a": 1}]},
    {"settings": {"annotations_sha256": "", "write": ["png"]}, "file_names": []},
    {"settings": {"annotations_sha256": "", "overlay": False, "write": ["png"]}, "file_names": [0.5]},
    {"settings": {"annotations_sha256": "", "overlay": False, "write": ["png"]}, "file_names": ["."]},
    {"settings": {"annotations_sha256": "", "overlay": False, "write": ["png"]}, "file_names": ["\ud83d.png"]},
]


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[" * 100_000, b"\xff\xfe\xff", *(json.dumps(content).encode() for content in OTHER_TYPES)],
    ids=range(4 + len(OTHER_TYPES)),
)
def test_a_damaged_file_of_a_run_is_named_and_overwrite_goes_on(data: Path, lpg_folder: Path, text: bytes):
    out = data / "out"
    masks_of(data, out, lpg_folder)
    expected = files(out)
    (out / "report.json").write_bytes(text)
    masks_of(data, out, lpg_folder)  # the block files tell all that it said
    assert files(out) == expected and json.loads((out / "report.json").read_text())["settings"]
    (out / "report.json").write_bytes(text)
    (out / ".parts" / "settings.json").write_bytes(text)
    with pytest.raises(ValueError, match="report.json is damaged. Start again with --overwrite"):
        masks_of(data, out, lpg_folder)
    (out / "mine.txt").write_text("x")
    masks_of(data, out, lpg_folder, overwrite=True)
    assert (out / "mine.txt").unlink() is None and files(out) == expected


def test_a_report_that_an_editor_saved_with_a_mark_is_one(data: Path, lpg_folder: Path, caplog):
    out = data / "out"
    masks_of(data, out, lpg_folder)
    (out / "report.json").write_bytes(b"\xef\xbb\xbf" + (out / "report.json").read_bytes())
    expected = files(out)
    masks_of(data, out, lpg_folder)
    assert files(out) == expected and "are finished already" in caplog.text


def test_the_state_of_an_unfinished_run_is_no_report_of_a_finished_one(data: Path, lpg_folder: Path):
    out = data / "out"
    masks_of(data, out, lpg_folder)
    expected = files(out)
    content = json.loads((out / "report.json").read_text())
    names = [image["file_name"] for image in content["images"]]
    (out / "report.json").write_text(json.dumps({"settings": content["settings"], "file_names": names}))
    masks_of(data, out, lpg_folder)
    assert files(out) == expected and "report" in json.loads((out / "report.json").read_text())


@pytest.mark.parametrize("change", [(b"{", b"["), (b"1", b"2"), (b"\n", b""), (b'"outputs"', b'"output"')])
def test_a_damaged_block_file_is_named(data: Path, lpg_folder: Path, monkeypatch, change: tuple[bytes, bytes]):
    monkeypatch.setattr(lpg_hf.masks.writer, "BLOCK_SIZE", 2)
    masks_of(data, data / "out", lpg_folder, rank=0, count=2)
    block = next((data / "out" / ".parts").glob("0*.json"))
    block.write_bytes(block.read_bytes().replace(*change, 1))
    with pytest.raises(ValueError, match=f"{block.name} is damaged. Delete it"):
        masks_of(data, data / "out", lpg_folder, rank=1, count=2)
    block.unlink()
    for rank in (0, 1):
        masks_of(data, data / "out", lpg_folder, rank=rank, count=2)
    assert (data / "out" / "report.json").is_file()


def test_an_edited_report_does_not_keep_overwrite_from_the_files_of_its_run(data: Path):
    command = ["masks", data / "yolo", "--out", data / "out", "--generator", "box", "--overwrite"]
    assert run(*command, "--write", "png,coco") == 0
    report = json.loads((data / "out" / "report.json").read_text())
    report["settings"]["write"] = ["coco"]
    (data / "out" / "report.json").write_text(json.dumps(report))
    assert run(*command, "--write", "png") == 0 and not (data / "out" / "instances.json").exists()


def test_an_image_beside_a_folder_that_is_called_like_its_mask_is_counted(tmp_path: Path):
    names = ["x.jpg", "x.png/y.jpg"]
    for name in names:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 40)).save(tmp_path / "images" / name)
    content = coco_content() | {
        "images": [{"id": 100 + i, "file_name": name, "width": 60, "height": 40} for i, name in enumerate(names)]
    }
    content["annotations"] = [item for item in content["annotations"] if item["image_id"] in (100, 101)]
    (tmp_path / "coco.json").write_text(json.dumps(content))
    out = tmp_path / "out"
    arguments = ["--out", out, "--generator", "box", "--write", "png,yolo,labelme,crops", "--overlay"]
    assert run("masks", tmp_path / "coco.json", "--images", tmp_path / "images", *arguments) == 1
    assert [path.relative_to(out).as_posix() for path in out.glob("masks/**/*.png") if path.is_file()] == [
        "masks/x.png/y.png"
    ]
    assert json.loads((out / "report.json").read_text())["report"]["counts"]["mask_name_taken"] == 1


def test_a_second_run_in_the_same_folder_is_told_of_the_first(data: Path, lpg_folder: Path):
    with locked_folder(data / "out", shared=True):
        with pytest.raises(ValueError, match=r"writes .*out now \(process .* on .*\). Wait until it ends"):
            masks_of(data, data / "out", lpg_folder)
        masks_of(data, data / "out", lpg_folder, rank=0, count=2)  # one of those that share the work
    assert masks_of(data, data / "out", lpg_folder, rank=1, count=2) is not None
    with locked_folder(data / "other", shared=False):
        pass
    assert not (data / "other").exists()
