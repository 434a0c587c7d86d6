"""A written YOLO dataset, read by the trainer's own rules, written down here (ultralytics 8.4, data loading).

1. The root is `path` of data.yaml, else the folder of data.yaml. A relative `path` counts from the working folder.
2. `train` and `val` must be there. Each is joined to the root, and links in it are resolved; it must exist.
3. A folder stands for all images below it; a text file for its lines, where "./" is the folder of the text file and
   any other relative path counts from the working folder.
4. The label file of an image: the last "/images/" of its path becomes "/labels/", its suffix ".txt".
5. A label file holds boxes (5 columns) or outlines (7 and more), not both; fractions, at most 1.01; classes below the
   number of names.
"""

import os
from pathlib import Path

import pytest
import yaml
from PIL import Image

from lpg_hf.data._formats.yolo_dataset import dataset_files, image_place, label_place, place_image


SUFFIXES = {"bmp", "jpeg", "jpg", "png", "tif", "tiff", "webp"}


def trainer_images(data_yaml: Path, split: str) -> list[str]:
    content = yaml.safe_load(data_yaml.read_text(encoding="utf-8"))
    assert "train" in content and "val" in content
    root = Path(content.get("path") or data_yaml.parent)
    place = (root / content[split]).resolve()
    if place.is_dir():
        found = [str(path) for path in place.rglob("*.*")]
    else:
        lines = place.read_text(encoding="utf-8").strip().splitlines()
        found = [line.replace("./", f"{place.parent}{os.sep}", 1) if line.startswith("./") else line for line in lines]
    return sorted(path for path in found if path.rpartition(".")[2].lower() in SUFFIXES)


def trainer_labels(image: str, num_classes: int) -> list[list[float]]:
    swapped = f"{os.sep}labels{os.sep}".join(image.rsplit(f"{os.sep}images{os.sep}", 1))
    path = Path(f"{swapped.rsplit('.', 1)[0]}.txt")
    if not path.is_file():
        return []
    rows = [[float(word) for word in line.split()] for line in path.read_text().splitlines()]
    assert not ({len(row) for row in rows} & {5}) or {len(row) for row in rows} == {5}
    assert all(0 <= value <= 1.01 for row in rows for value in row[1:]) and all(row[0] < num_classes for row in rows)
    return rows


def trainer_dataset(data_yaml: Path, split: str) -> dict[str, list[list[float]]]:
    """Image name -> rows, as the trainer would load a split; every image must open."""
    names = yaml.safe_load(data_yaml.read_text(encoding="utf-8"))["names"]
    images = trainer_images(data_yaml, split)
    for image in images:
        Image.open(image).verify()
    return {os.path.basename(image): trainer_labels(image, len(names)) for image in images}


OUTLINE = "0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5\n"


def write_dataset(out: Path, source: Path, file_names: list[str], splits=None, how: str = "link", line="") -> Path:
    for number, name in enumerate(file_names):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 40)).save(source / name)
        place_image(str(source / name), out / image_place(name), how)
        label = out / label_place(name)
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(line or f"0 0.5 0.5 0.{number + 1} 0.5\n")
    for name, text in dataset_files(["red"], file_names, splits).items():
        (out / name).write_text(text, encoding="utf-8")
    return out / "data.yaml"


@pytest.fixture(autouse=True)
def another_working_folder(tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))


@pytest.mark.parametrize("how", ["link", "copy"])
def test_labels_are_the_dataset_s_own_and_not_those_behind_the_images(tmp_path, how):
    (tmp_path / "source" / "labels").mkdir(parents=True)
    (tmp_path / "source" / "labels" / "a.txt").write_text("0 0.9 0.9 0.1 0.1\n")
    data = write_dataset(tmp_path / "out", tmp_path / "source" / "images", ["a.png"], how=how)
    assert trainer_dataset(data, "train") == trainer_dataset(data, "val") == {"a.png": [[0, 0.5, 0.5, 0.1, 0.5]]}
    image, placed = tmp_path / "source" / "images" / "a.png", tmp_path / "out" / "images" / "a.png"
    assert os.path.samefile(image, placed) == (how == "link") and not placed.is_symlink()
    for again in ("link", "link", "copy"):
        place_image(str(image), placed, again)
    assert os.listdir(placed.parent) == ["a.png"] and not os.path.samefile(image, placed)


@pytest.mark.parametrize("layout", ["{split}/{name}", "{split}/images/{name}", "images/{split}/{name}", "{name}"])
def test_splits_stay_what_they_were(tmp_path, layout):
    names = {f"{split}{i}.png": split for split, count in (("train", 4), ("val", 1)) for i in range(count)}
    splits = {layout.format(split=split, name=name): split for name, split in names.items()}
    stated = splits if layout == "{name}" else None  # Else the folders say it.
    data = write_dataset(tmp_path / "out", tmp_path / "source", list(splits), stated)
    assert sorted(trainer_dataset(data, "train")) == [f"train{i}.png" for i in range(4)]
    assert trainer_dataset(data, "val") == {"val0.png": [[0, 0.5, 0.5, 0.5, 0.5]]}
    assert all(trainer_dataset(data, "train").values())


def test_valid_is_val_and_test_is_kept(tmp_path):
    names = ["train/a.png", "valid/b.png", "test/c.png"]
    data = write_dataset(tmp_path / "out", tmp_path / "source", names)
    assert [list(trainer_dataset(data, split)) for split in ("train", "val", "test")] == [
        ["a.png"],
        ["b.png"],
        ["c.png"],
    ]


def test_a_name_with_a_line_break_is_refused():
    with pytest.raises(ValueError, match="holds a line break"):
        dataset_files(["red"], ["a\nb.png"])


def test_across_disks_it_is_a_symbolic_link_and_without_links_a_copy(tmp_path, monkeypatch):
    image = tmp_path / "a.png"
    Image.new("RGB", (60, 40)).save(image)

    def refuse(*arguments):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    place_image(str(image), tmp_path / "out" / "a.png", "link")
    assert (tmp_path / "out" / "a.png").is_symlink() and os.path.samefile(image, tmp_path / "out" / "a.png")
    monkeypatch.setattr(os, "symlink", refuse)
    place_image(str(image), tmp_path / "out" / "b.png", "link")
    assert (tmp_path / "out" / "b.png").read_bytes() == image.read_bytes()
    place_image(str(image), tmp_path / "out" / "c.png", "none")
    assert sorted(os.listdir(tmp_path / "out")) == ["a.png", "b.png"]
