"""Export to Parquet, and back without this package."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest

from lpg_hf.cli import main
from lpg_hf.data._examples import class_mask, decode_image
from lpg_hf.data.export import Export, write_dataset
from lpg_hf.data.load import class_names, load_boxes


READ_SCRIPT = """
import json, sys
from datasets import load_dataset
splits = load_dataset(sys.argv[1])
assert not any(name.startswith("lpg_hf") for name in sys.modules)
found = {}
for name, rows in splits.items():
    row = rows[0]
    image, mask = row.pop("image", None), row.pop("mask", None)
    sizes = [image and list(image.size) for image in (image, mask)]
    found[name] = {"rows": len(rows), "row": row, "sizes": sizes,
                   "names": rows.features["objects"]["category"].feature.names}
print(json.dumps(found))
"""


@dataclass
class Ended:
    exit_code: int
    output: str


@pytest.fixture
def run(capsys):
    """`lpg-hf export-data` with these arguments."""

    def run_command(*arguments) -> Ended:
        with pytest.raises(SystemExit) as end:
            main(["export-data", *map(str, arguments)])
        return Ended(end.value.code, "".join(capsys.readouterr()))

    return run_command


def read_elsewhere(folder, tmp_path) -> dict:
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf_home"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    process = subprocess.run(
        [sys.executable, "-c", READ_SCRIPT, str(folder)],
        env=environment,
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(process.stdout)


def test_export_round_trip_without_importing_lpg_hf(run, voc_tree, tmp_path):
    voc_tree.add("b")
    for name in "ab":
        voc_tree.add_mask(name)
    voc_tree.add_list("train_mix", "a", "b")
    voc_tree.add_list("val", "b")
    out = tmp_path / "out"
    result = run(
        out,
        "--format",
        "voc",
        "--root",
        voc_tree.root,
        "--split",
        "train_mix",
        "--split",
        "val",
        "--masks",
        "--embed-images",
    )
    assert result.exit_code == 0, result.output
    found = read_elsewhere(out, tmp_path)
    assert {name: part["rows"] for name, part in found.items()} == {"train_mix": 2, "val": 1}
    part = found["train_mix"]
    assert part["names"] == ["thing"] and part["sizes"] == [[60, 40], [60, 40]]
    assert part["row"]["objects"]["bbox"] == [[10, 8, 20, 16]] and part["row"]["file_name"] == "a.png"

    original = load_boxes("voc", root=voc_tree.root, split="train_mix", masks=True)
    again = load_boxes("parquet", root=out, split="train_mix", masks=True)
    assert again.features == original.features
    assert again.remove_columns(["image", "mask"])[:] == original.remove_columns(["image", "mask"])[:]
    for one, two in zip(original, again):
        assert (decode_image(one) == decode_image(two)).all() and (class_mask(one, 1) == class_mask(two, 1)).all()


def test_export_without_images_is_joined_with_a_folder_again(run, coco_tree, tmp_path):
    coco_tree.write()
    out = tmp_path / "out"
    result = run(out, "--format", "coco", "--root", coco_tree.root, "--masks", "--title", "A: title")
    assert result.exit_code == 0, result.output
    part = read_elsewhere(out, tmp_path)["train"]
    assert part["sizes"] == [None, None] and part["row"]["objects"]["segmentation"][0]["size"] == [40, 60]
    dataset = load_boxes("parquet", root=out, images=coco_tree.images, masks=True)
    original = load_boxes("coco", root=coco_tree.root, masks=True)
    assert class_names(dataset) == ["thing"] and (decode_image(dataset[0]) == decode_image(original[0])).all()
    with pytest.raises(ValueError, match="exported without images; pass images="):
        load_boxes("parquet", root=out)
    with pytest.raises(FileNotFoundError, match="none of the 1 images exists"):
        load_boxes("parquet", root=out, images=tmp_path)
    with pytest.raises(ValueError, match="several splits|has no split 'val'"):
        load_boxes("parquet", root=out, split="val")


def test_no_path_of_the_machine_is_written(run, coco_tree, voc_tree, tmp_path):
    coco_tree.write()
    voc_tree.add_mask("a")
    for name, tree, options in (("coco", coco_tree, []), ("voc", voc_tree, ["--embed-images", "--masks"])):
        result = run(tmp_path / f"out_{name}", "--format", name, "--root", tree.root, *options)
        assert result.exit_code == 0, result.output
        for path in (tmp_path / f"out_{name}").rglob("*"):
            assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes()


def test_large_splits_are_written_in_shards(run, coco_tree, tmp_path, monkeypatch):
    for i in range(2, 6):
        coco_tree.add_image(f"{i}.png", i)
        coco_tree.content["annotations"].append(coco_tree.annotation(id=i, image_id=i))
    coco_tree.write()
    monkeypatch.setattr("lpg_hf.data.export.ROWS_PER_SHARD", 2)
    result = run(tmp_path / "out", "--format", "coco", "--root", coco_tree.root, "--embed-images")
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "out" / "data").glob("train-*-of-00003.parquet"))) == 3
    assert load_boxes("parquet", root=tmp_path / "out")["image_id"][:] == ["1", "2", "3", "4", "5"]


def test_card_has_configs_counts_and_category_ids(run, coco_tree, tmp_path):
    import yaml

    coco_tree.write()
    assert run(tmp_path / "out", "--format", "coco", "--root", coco_tree.root, "--title", "A: title").exit_code == 0
    _, header, body = (tmp_path / "out" / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    data = yaml.safe_load(header)
    assert data["pretty_name"] == "A: title"
    assert data["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
    assert "| train | 1 | 1 |" in body and "1. thing" in body and "order of the labels: 1" in body
    assert "images are not part of this dataset" in body


@pytest.mark.parametrize(
    "options, text",
    [
        (["--format", "csv"], "--format must be one of coco, voc, yolo"),
        (["--format", "coco", "--annotations", "missing.json"], "missing.json"),
        (["--format", "coco", "--annotations", "a", "--annotations", "b"], "2 --annotations for 1 --split"),
        (["--format", "coco", "--classes", "dog,cat"], r"classes ['dog', 'cat'] are not in"),
    ],
)
def test_errors_are_one_line_and_exit_two(run, coco_tree, tmp_path, options, text):
    coco_tree.write()
    result = run(tmp_path / "out", "--root", coco_tree.root, *options)
    assert result.exit_code == 2 and not (tmp_path / "out").exists()
    assert text in result.output and len(result.output.splitlines()) == 1


def test_an_existing_data_set_is_not_overwritten(run, coco_tree, tmp_path):
    coco_tree.write()
    assert run(tmp_path / "out", "--format", "coco", "--root", coco_tree.root).exit_code == 0
    result = run(tmp_path / "out", "--format", "coco", "--root", coco_tree.root, "--title", "other")
    assert result.exit_code == 2 and "exists already and is not empty" in result.output
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty", "--format", "coco", "--root", coco_tree.root).exit_code == 0


def test_what_stops_in_the_middle_leaves_nothing(coco_tree, tmp_path, monkeypatch):
    coco_tree.write()

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("lpg_hf.data.export.write_card", stop)  # the Parquet files are written by then
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "new" / "out", Export("coco", coco_tree.root))
    assert list((tmp_path / "new").iterdir()) == []
    monkeypatch.undo()
    assert write_dataset(tmp_path / "new" / "out", Export("coco", coco_tree.root)) == 1


@pytest.mark.parametrize("command", ["export-data", "push-data"])
def test_images_without_objects_or_labels_are_told(voc_tree, yolo_tree, tmp_path, capsys, command):
    voc_tree.add("b", voc_tree.xml("b.png", objects=[]))
    yolo_tree.add("b", None)
    for tree, name, kind in (
        (voc_tree, "voc", "image_without_object: 1"),
        (yolo_tree, "yolo", "image_without_annotation: 1"),
    ):
        where = [str(tmp_path / "out" / name)] if command == "export-data" else [f"org/{name}", "--dry-run"]
        with pytest.raises(SystemExit) as end:
            main([command, *where, "--format", name, "--root", str(tree.root)])
        told = capsys.readouterr().out
        assert not end.value.code and kind in told and told.startswith("1 images, 1 objects, 1 classes")


def test_a_mask_that_cannot_be_used_is_a_loss_where_masks_are_written(run, coco_tree, tmp_path):
    coco_tree.content["annotations"][0]["segmentation"] = [[1, 2, 3]]
    arguments = ["--format", "coco", "--annotations", coco_tree.write(), "--images", coco_tree.images]
    assert run(tmp_path / "boxes", *arguments).exit_code == 0
    result = run(tmp_path / "masks", *arguments, "--masks")
    assert result.exit_code == 1 and "invalid_mask: 1" in result.output


def test_yolo_data_are_exported_too(run, yolo_tree, tmp_path):
    result = run(tmp_path / "out", "--format", "yolo", "--root", yolo_tree.root, "--embed-images")
    assert result.exit_code == 0, result.output
    (row,) = load_boxes("parquet", root=tmp_path / "out")
    assert row["objects"]["bbox"][0] == pytest.approx([10, 8, 20, 16], abs=1e-3)
    assert "YOLO" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_zero_based_corners_are_exported_as_they_are(run, voc_tree, coco_tree, tmp_path):
    voc_tree.add("a", voc_tree.xml(objects=[voc_tree.object(box=(10, 8, 30, 24))]))
    result = run(tmp_path / "out", "--format", "voc", "--root", voc_tree.root, "--zero-based", "--embed-images")
    assert result.exit_code == 0, result.output
    (row,) = load_boxes("parquet", root=tmp_path / "out")
    assert row["objects"]["bbox"] == [[10, 8, 20, 16]]
    coco_tree.write()
    result = run(tmp_path / "other", "--format", "coco", "--root", coco_tree.root, "--zero-based")
    assert result.exit_code == 2 and "format 'coco' has no option --zero-based" in result.output


def test_command_line_runs_as_a_module(coco_tree, tmp_path):
    coco_tree.write()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "lpg_hf.cli", "export-data", str(tmp_path / "out"), "--format", "coco"]
    process = subprocess.run(
        [*command, "--root", str(coco_tree.root)], env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0 and "wrote 1 rows" in process.stdout, process.stderr


def test_a_finished_export_says_so_and_leaves_nothing_beside_it(coco_tree, tmp_path, caplog):
    coco_tree.write()
    out = tmp_path / "place" / "out"
    for _ in range(2):
        caplog.clear()
        assert write_dataset(out, Export("coco", coco_tree.root)) == 1
    assert "holds these rows already; nothing was written" in caplog.text
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_folder_with_the_name_of_a_builder_of_datasets_is_still_a_folder(coco_tree, tmp_path, monkeypatch):
    coco_tree.write()
    monkeypatch.chdir(tmp_path)
    write_dataset("parquet", Export("coco", coco_tree.root, with_images=True))
    assert load_boxes("parquet", root="parquet")["file_name"][:] == ["a.png"]
