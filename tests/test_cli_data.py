"""`lpg-hf check` and `lpg-hf convert-labels`."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from lpg_hf.cli import app, main
from lpg_hf.masks._outputs import OUTPUTS
from lpg_hf.masks.writer import MaskSettings


@pytest.fixture
def data(tmp_path):
    """A COCO file of one image, as a function of its box."""
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
    assert run(capsys, "check", path) == (
        0,
        f"{path} (coco): 1 images, 1 objects, 1 classes\nobjects per class: thing 1\n",
        "",
    )
    path = data([10, 8, 20, 16], [5, 5, 0, 0])
    status, out, err = run(capsys, "check", path, "--json", tmp_path / "report.json")
    assert status == 1 and err == "" and "degenerate_box: 1" in out and "a.png: annotation 2" in out
    assert json.loads((tmp_path / "report.json").read_text())["counts"] == {"degenerate_box": 1}


def test_what_cannot_be_read_is_one_line_and_status_two(data, tmp_path, capsys):
    path = data()
    for arguments, text in (
        (("check", tmp_path / "gone.json"), "annotations not found"),
        (("check", path, "--format", "csv"), "no CSV table in"),
        (("check", path, "--format", "pdf"), "unknown format 'pdf'"),
        (("convert-labels", path, tmp_path, "--to", "voc"), "exists already and is not empty"),
        (("convert-labels", path, tmp_path / "out", "--to", "csv"), "unknown format 'csv'"),
    ):
        status, out, err = run(capsys, *arguments)
        assert status == 2 and out == "" and text in err and len(err.splitlines()) == 1
    broken = tmp_path / "broken.json"
    broken.write_text('{"images": [')
    status, _, err = run(capsys, "check", broken)
    assert status == 2 and "broken.json is not valid or not complete json" in err


def test_check_goes_on_without_images_and_takes_one_xml_file(data, tmp_path, capsys):
    path = data([10, 8, 20, 16], [5, 5, 0, 0])
    (tmp_path / "a.png").unlink()
    status, out, err = run(capsys, "check", path)
    assert status == 1 and err == "" and "degenerate_box: 1" in out and "missing_image: 1" in out and "a.png" in out
    assert f"1 of 1 images do not exist in {tmp_path}: " in out
    xml = tmp_path / "b.xml"
    box = "<bndbox><xmin>0</xmin><ymin>9</ymin><xmax>90</xmax><ymax>24</ymax></bndbox>"
    xml.write_text(
        f"<annotation><size><width>60</width><height>40</height></size><object><name>x</name>{box}</object></annotation>"
    )
    status, out, err = run(capsys, "check", xml)
    assert status == 1 and "(voc): 1 images, 1 objects" in out and "clipped_box: 1" in out and "--zero-based" in out


def test_check_says_and_takes_max_pixels(data, tmp_path, capsys):
    path = data([10, 8, 20, 16])
    status, out, _ = run(capsys, "check", path, "--max-pixels", 2000)
    assert status == 1 and "image_too_large: 1" in out and "--max-pixels" in out
    assert run(capsys, "convert-labels", path, tmp_path / "new", "--to", "voc", "--max-pixels", 2000)[0] == 2


def test_headers_only(data, tmp_path, capsys):
    path = data([10, 8, 20, 16])
    image = bytearray((tmp_path / "a.png").read_bytes())
    start = image.index(b"IDAT") + 8
    image[start : start + 6] = b"\xff" * 6
    (tmp_path / "a.png").write_bytes(image)
    assert run(capsys, "check", path, "--no-decode")[0] == 0
    assert run(capsys, "check", path)[0] == 1


def test_convert_labels_says_what_is_lost_and_where_images_go(data, tmp_path, capsys):
    path = data([10, 8, 20, 16])
    status, out, _ = run(capsys, "convert-labels", path, tmp_path / "new", "--to", "yolo", "--no-masks")
    assert status == 0 and "lost: ids of images and annotations" in out
    assert (tmp_path / "new" / "images" / "a.png").is_file()
    assert (tmp_path / "new" / "labels" / "a.txt").read_text().startswith("0 0.333333333333 0.4 ")
    status, out, _ = run(
        capsys, "convert-labels", tmp_path / "new", tmp_path / "back.json", "--to", "coco", "--format", "yolo",
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


def test_the_report_goes_to_a_new_folder_and_is_complete_or_absent(data, tmp_path, capsys, monkeypatch):
    path = data([10, 8, 20, 16])
    assert run(capsys, "check", path, "--json", tmp_path / "new" / "folder" / "r.json")[0] == 0
    assert json.loads((tmp_path / "new" / "folder" / "r.json").read_text())["images"] == 1

    def stop(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr("lpg_hf._files.os.replace", stop)
    assert run(capsys, "check", path, "--json", tmp_path / "new" / "folder" / "s.json")[0] == 2
    assert [file.name for file in (tmp_path / "new" / "folder").iterdir()] == ["r.json"]


@pytest.mark.skipif(sys.platform != "linux", reason="only there a file name may be any bytes")
def test_file_names_that_are_no_utf8_and_letters_that_the_terminal_lacks(tmp_path):
    root = tmp_path / "yolo"
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    (root / "classes.txt").write_text("犬\n", encoding="utf-8")
    for stem in (b"caf\xe9", "犬".encode()):
        with open(os.path.join(os.fsencode(root / "images"), stem + b".png"), "wb") as file:
            Image.fromarray(np.zeros((40, 60, 3), dtype=np.uint8)).save(file, "PNG")
        with open(os.path.join(os.fsencode(root / "labels"), stem + b".txt"), "wb") as file:
            file.write(b"0 0.5 0.5 0.2 0.2\n0 0.5 0.5 0 0\n")

    def command(*arguments, encoding):
        environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
        line = [sys.executable, "-m", "lpg_hf.cli", *map(str, arguments)]
        return subprocess.run(line, capture_output=True, env=environment, timeout=120)

    for encoding, dog in (("utf-8", "犬".encode()), ("cp1252", b"\\u72ac")):
        done = command("check", root, "--json", tmp_path / "report.json", encoding=encoding)
        assert done.returncode == 1 and b"caf\\udce9.txt: line 2" in done.stdout, done.stderr
        assert dog + b".txt: line 2" in done.stdout
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    assert json.loads(text)["counts"] == {"degenerate_box": 2}
    assert "犬.txt" in text and "caf\\udce9.txt: line 2" in text
    done = command("convert-labels", root, tmp_path / "new.json", "--to", "coco", encoding="utf-8")
    assert done.returncode == 1, done.stderr
    text = (tmp_path / "new.json").read_text(encoding="utf-8")
    assert "犬.png" in text and {i["file_name"] for i in json.loads(text)["images"]} == {"caf\udce9.png", "犬.png"}
    done = command("check", tmp_path / "new.json", "--images", root / "images", encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr  # the json file names the image's true bytes
    done = command("convert-labels", root, tmp_path / "voc", "--to", "voc", encoding="utf-8")
    assert done.returncode == 1 and b"unwritable_name: 1" in done.stdout and b"'caf\\udce9.png'" in done.stdout
    assert [path.name for path in (tmp_path / "voc" / "Annotations").iterdir()] == ["犬.xml"]


def test_one_thing_has_one_name_in_all_commands():
    commands = typer.main.get_command(app).commands
    assert {"masks", "convert-checkpoint", "export-onnx", "push-run", "pull-run"} <= commands.keys()
    assert commands.keys().isdisjoint({"convert", "export", "push", "pull"})
    options: dict[str, set[bool]] = {}
    for item in (item for command in commands.values() for item in command.params if item.opts[0].startswith("--")):
        options.setdefault(item.opts[0], set()).add(item.is_flag)
    assert "--num-workers" in options and options.keys().isdisjoint(
        {"--workers", "--num-proc", "--from", "--onnx", "--subset", "--image-folder"}
    )
    # `compare` has its ground truth in --truth, so that --masks and --with-images mean one thing each.
    assert all(len(kinds) == 1 for kinds in options.values()), options


@pytest.mark.parametrize("target", ["coco", "voc"])
def test_images_are_asked_for_only_where_the_new_format_has_them(data, tmp_path, capsys, target):
    command = ["convert-labels", data([10, 8, 20, 16]), tmp_path / "out", "--to", target, "--with-images"]
    for how in ("copy", "link"):
        status, _, err = run(capsys, *command, how)
        line = f"lpg-hf: --with-images {how} is for YOLO: {target} gets no images. Leave it out\n"
        assert (status, err) == (2, line) and not (tmp_path / "out").exists()
    assert run(capsys, *command, "none")[0] == 0  # as it is


def test_segment_writes_no_result_without_a_truth_and_says_so_before_any_work(tmp_path, capsys):
    command = ["segment", tmp_path / "no-model", tmp_path, "--out", tmp_path / "out"]
    status, _, err = run(capsys, *command, "--json", tmp_path / "s.json")
    assert status == 2 and "Pass --truth, or leave --json out" in err and not (tmp_path / "out").exists()


def test_the_help_of_per_names_the_outputs_of_which_it_speaks():
    (per,) = [item for item in typer.main.get_command(app).commands["masks"].params if item.name == "per"]
    for output in set(OUTPUTS) - {"overlay"}:
        is_named = re.search(rf"\b{output}\b", per.help) is not None
        try:
            assert (MaskSettings((output,)).granularity == "class") == is_named
        except ImportError:
            assert output in ("geotiff", "geojson")  # without the extra


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["--size-mismatch", "no"], "--size-mismatch must be one of skip, error, rescale, got 'no'"),
        (["--threshold", "2"], "--threshold 2.0 is a probability"),
        (["--per", "box"], "--per box is unknown"),
        (["--with-images", "all"], "--with-images all must be one of"),
    ],
)
def test_messages_use_the_names_of_the_command_line(data, tmp_path, capsys, arguments, text):
    code, _, err = run(capsys, "masks", data([0, 0, 9, 9]), "--out", tmp_path / "out", *arguments)
    assert code == 2 and text in err and "=" not in err and "(--" not in err, err


def test_messages_name_an_option_whose_value_is_left_open(tmp_path, capsys):
    root = tmp_path / "voc"
    for folder in ("Annotations", "SegmentationClass", "labels"):
        (root / folder).mkdir(parents=True)
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>"
    text = f"<annotation><filename>a.png</filename><object><name>cat</name>{box}</object></annotation>"
    (root / "Annotations" / "a.xml").write_text(text)
    for path in (root / "a.png", root / "Annotations" / "a.png", root / "SegmentationClass" / "a.png"):
        Image.new("L", (60, 40)).save(path)
    masks = ["masks", root, "--out", tmp_path / "out"]
    code, _, err = run(capsys, *masks, "--format", "coco")
    assert code == 2 and "Pass ANNOTATIONS" in err and "=" not in err, err
    (root / "labels" / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    code, _, err = run(capsys, *masks)
    assert code == 2 and "Choose one with --format (--format voc or --format yolo)" in err, err
    code, out, _ = run(capsys, "check", root, "--masks", "--format", "voc")
    assert code == 1 and "say so: --object-value 255\n" in out, out


@pytest.mark.parametrize(
    "error, line",
    [
        (KeyError("a"), "an unexpected KeyError: 'a'. A file that it reads may be damaged (FILE); `lpg-hf --debug"),
        (RecursionError(), "an unexpected RecursionError: no further detail"),
        (ValueError(), "an unexpected ValueError: no further detail"),
        (PermissionError(13, "Permission denied", "a.json"), "a.json: Permission denied"),
        (OSError(28, "No space left on device"), "a file or connection: no space is left on the disk"),
        (ValueError("a.json is empty"), "a.json is empty"),
    ],
)
def test_an_error_of_any_type_is_one_line_that_names_the_file(data, monkeypatch, capsys, error, line):
    path = data([10, 8, 20, 16])

    def broken(*arguments, **options):
        raise error

    monkeypatch.setattr("lpg_hf.data.check.check_source", broken)
    status, out, err = run(capsys, "check", path)
    assert (status, out) == (2, "") and err.startswith(f"lpg-hf: {line.replace('FILE', path)}")
    assert err.count("\n") == 1
    with pytest.raises(type(error)):  # where it happened can be seen
        main(["--debug", "check", path])


NESTED = {"image_id": 1, "bbox": [1, 2, 3, 4], "category_id": 1}


@pytest.mark.parametrize("part", [{"info": NESTED}, {"licenses": [NESTED, {"id": 1, "file_name": "x", "more": 1}]}])
def test_a_mapping_of_the_header_that_looks_like_an_annotation_stays_what_it_is(data, tmp_path, capsys, part):
    path = Path(data([10, 8, 20, 16]))
    path.write_text(json.dumps(json.loads(path.read_text()) | part))
    assert run(capsys, "convert-labels", path, tmp_path / "out.json", "--to", "coco")[0] == 0
    written = json.loads((tmp_path / "out.json").read_text())
    assert {key: written[key] for key in part} == part
    (tmp_path / "long.json").write_text(path.read_text().replace('"images"', f'"n": {"9" * 5000}, "images"'))
    status, _, err = run(capsys, "check", tmp_path / "long.json")
    assert status == 2 and "long.json is not an annotation file" in err and err.count("\n") == 1


def test_json_replaces_nothing_that_it_did_not_write(data, tmp_path, capsys):
    path = data([10, 8, 20, 16])
    for place in (path, tmp_path / "a.png"):
        before = Path(place).read_bytes()
        status, _, err = run(capsys, "check", path, "--json", place)
        assert status == 2 and err == (
            f"lpg-hf: {place} exists, and is no result that --json wrote. Move it away, or choose another name\n"
        )
        assert Path(place).read_bytes() == before
    (tmp_path / "maps").mkdir()
    Image.fromarray(np.ones((4, 4), dtype=np.uint8)).save(tmp_path / "maps" / "a.png")
    assert run(capsys, "eval", tmp_path / "maps", tmp_path / "maps", "--json", tmp_path / "maps" / "a.png")[0] == 2
    (tmp_path / "empty.json").write_bytes(b"")
    for _ in range(2):  # Again, beside what is read.
        assert run(capsys, "check", path, "--json", tmp_path / "empty.json")[0] == 0
        assert (
            run(capsys, "eval", tmp_path / "maps", tmp_path / "maps", "--json", tmp_path / "maps" / "s.json")[0] == 0
        )


@pytest.mark.parametrize(
    "arguments, empty", [(["", "--to", "voc"], "an argument"), (["x", "--to="], "--to"), (["--to", ""], "--to")]
)
def test_an_empty_argument_is_no_working_folder(data, tmp_path, capsys, monkeypatch, arguments, empty):
    path = data([10, 8, 20, 16])
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    status, _, err = run(capsys, "convert-labels", path, *arguments)
    assert (status, err) == (2, f"lpg-hf: {empty} is empty. Pass a name or a value; the working folder is .\n")
    assert list((tmp_path / "new").iterdir()) == []


def test_no_output_replaces_the_working_folder(data, tmp_path, capsys, monkeypatch):
    path = data([10, 8, 20, 16])
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    export = ("--format", "coco", "--annotations", path)
    for command in (("convert-labels", path, ".", "--to", "voc"), ("export-data", tmp_path / "new", *export)):
        status, _, err = run(capsys, *command)
        assert status == 2 and "is the working folder, which no output may replace" in err
        assert os.path.samefile(".", tmp_path / "new") and os.listdir(".") == []


@pytest.mark.parametrize("closed", ["2>&-", ">&-"])
def test_commands_work_where_a_stream_is_closed(data, tmp_path, closed):
    path = data([10, 8, 20, 16])
    for command in (f"check {path} --json {tmp_path}/r.json", f"masks {path} --generator box --out {tmp_path}/masks"):
        line = f'"{sys.executable}" -m lpg_hf.cli {command} {closed}'
        assert subprocess.run(["bash", "-c", line], capture_output=True, timeout=120).returncode == 0
    assert (tmp_path / "r.json").is_file() and (tmp_path / "masks" / "masks" / "a.png").is_file()


def test_rows_go_to_a_folder_of_any_letters_in_a_c_locale(data, tmp_path):
    path = data([10, 8, 20, 16])
    c_locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = ["export-data", tmp_path / "図", "--format", "coco", "--annotations", path]
    line = [sys.executable, "-m", "lpg_hf.cli", *map(str, command)]
    done = subprocess.run(line, capture_output=True, env={**os.environ, **c_locale}, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "\n# 図\n" in (tmp_path / "図" / "README.md").read_text(encoding="utf-8")
