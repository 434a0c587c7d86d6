"""Label map files: exact values, visible colours, never half written."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lpg_hf.data._formats.voc import check_mask
from lpg_hf.data._formats.yolo_dataset import image_place, label_place
from lpg_hf.data.options import ReadOptions
from lpg_hf.images import ImageProblem
from lpg_hf.label_maps import clashing_names, mask_name, read_label_map, write_label_map
from lpg_hf.labels import voc_palette


def test_round_trip_keeps_every_label_and_shows_colours(tmp_path: Path):
    label_map = np.arange(256, dtype=np.uint8).reshape(8, 32)
    path = tmp_path / "set 1" / "图片.png"
    write_label_map(path, label_map)
    assert np.array_equal(read_label_map(path), label_map)
    with Image.open(path) as image:
        assert image.mode == "P" and image.size == (32, 8) and image.format == "PNG"
        assert np.array_equal(np.asarray(image.convert("RGB")), voc_palette()[label_map])
    assert [p.name for p in path.parent.iterdir()] == ["图片.png"]


def test_any_integer_type_is_written_and_grey_is_read(tmp_path: Path):
    label_map = np.array([[0, 1], [15, 255]], dtype=np.int64)
    write_label_map(tmp_path / "a.png", label_map)
    Image.fromarray(label_map.astype(np.uint8)).save(tmp_path / "grey.png")
    for name in ("a.png", "grey.png"):
        values = read_label_map(tmp_path / name)
        assert values.dtype == np.uint8 and values.tolist() == label_map.tolist()


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_label_map(tmp_path / "a.png", np.zeros((2, 2), np.uint8))

    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_label_map(tmp_path / "a.png", np.ones((2, 2), np.uint8))
    assert not read_label_map(tmp_path / "a.png").any()
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    "label_map, message",
    [
        (np.zeros((2, 2)), "float64.*argmax"),
        (np.zeros((1, 2, 2), np.uint8), r"shape \(1, 2, 2\)"),
        (np.full((2, 2), 256), "256..256"),
        (np.full((2, 2), -1), "-1..-1"),
    ],
)
def test_wrong_maps_are_refused_before_a_file_is_made(tmp_path: Path, label_map: np.ndarray, message: str):
    with pytest.raises(ValueError, match=message):
        write_label_map(tmp_path / "a.png", label_map)
    assert not list(tmp_path.iterdir())


def test_colour_image_is_no_label_map(tmp_path: Path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="a.png is an image of mode RGB"):
        read_label_map(tmp_path / "a.png")


@pytest.mark.parametrize("object_value", [None, 1])
def test_a_damaged_file_is_named_wherever_its_damage_shows(tmp_path: Path, object_value: int | None):
    write_label_map(tmp_path / "a.png", np.eye(40, dtype=np.uint8))
    data = (tmp_path / "a.png").read_bytes()
    start = data.index(b"IDAT")
    for damaged in (data[: start + 20], data[: start - 1] + b"\5" + data[start:]):  # cut off; no chunk behind it
        (tmp_path / "a.png").write_bytes(damaged)
        with pytest.raises(ImageProblem, match="a.png: (image file is truncated|broken PNG)"):
            read_label_map(tmp_path / "a.png", object_value=object_value)
        with pytest.raises(ValueError, match="cannot read the class mask .*a.png"):
            check_mask(str(tmp_path / "a.png"), "a.jpg", (40, 40), 1, ReadOptions(object_value=object_value))


def test_images_whose_files_would_lie_in_one_place_are_told():
    names = ["a.jpg", "b.jpg", "a.png", "sub/a.jpg", "x.jpg", "x.png/y.jpg", "c.d/e.jpg", "z.jpg", "s/z.txt/1/2.jpg"]
    assert clashing_names(names) == {2: "a.jpg", 4: "x.png/y.jpg"}
    assert clashing_names(["a.jpg", "a.jpg"]) == {1: "a.jpg"}
    assert clashing_names(["s/z.jpg", "s/z.txt/1/2.jpg"], lambda name: (label_place(name),)) == {0: "s/z.txt/1/2.jpg"}
    assert clashing_names(["a.jpg", "images/a.jpg"], lambda name: (image_place(name),)) == {1: "a.jpg"}
    assert clashing_names(["a.png", "b.jpg"], lambda name: (name, mask_name(name))) == {0: "a.png"}  # its own
    assert mask_name("a.") == "a.png" and mask_name("a..jpg") == "a..png"


def test_clashes_of_many_images_are_found_in_linear_time():
    names = [f"{number}/{'x/' * 30}{number}.jpg" for number in range(20_000)]
    visited = []
    assert clashing_names(names, lambda name: visited.append(name) or (name,)) == {} and visited == names
