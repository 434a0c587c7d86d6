"""`lpg-hf compare`: known scores, ground truth of both kinds, generators that cannot run, and the files; and what
`--generator auto` makes of it."""

import dataclasses
import errno
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from typer.testing import CliRunner

from lpg_hf._files import MachineError
from lpg_hf._rle import encode_mask
from lpg_hf.cli import app
from lpg_hf.data.convert import WITH_MASKS, convert_labels
from lpg_hf.data.options import SOURCE_OPTIONS, ReadOptions
from lpg_hf.data.records import BoxObject, Record
from lpg_hf.evaluation._truth import ImageTruth
from lpg_hf.evaluation.choose import choose_generator
from lpg_hf.evaluation.compare import (
    COLUMNS,
    ComparedData,
    Comparison,
    Row,
    _rank_correlation,
    _with_moved_boxes,
    compare,
    measure,
    peak_memory_mb,
    table,
    write,
)
from lpg_hf.generators.base import GeneratorOptions
from lpg_hf.label_maps import read_label_map, write_label_map


HEIGHT, WIDTH = 60, 80
# (annotation id, image, category id, object: a rectangle inside the box, box x, y, width, height)
OBJECTS = [
    (11, 1, 4, (12, 10, 32, 30), [10, 10, 22, 20]),
    (12, 1, 4, (50, 30, 60, 50), [50, 30, 10, 20]),
    (13, 2, 7, (5, 5, 25, 45), [5, 5, 40, 40]),
]
# Box against object: 400 of 440, 200 of 200, 800 of 1600.
BOX_IOUS = (400 / 440, 1, 0.5)
CLASS_IOUS = (600 / 640, 0.5)


def rectangle(x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y1:y2, x1:x2] = True
    return mask


@pytest.fixture
def tree(tmp_path) -> Path:
    """Three images, the last without objects; a COCO file with masks, one with boxes alone, and label maps."""
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    annotations = []
    for image in (1, 2, 3):
        pixels = rng.normal((60, 120, 60), 6, (HEIGHT, WIDTH, 3))
        label_map = np.zeros((HEIGHT, WIDTH), np.uint8)
        for number, of_image, category, corners, bbox in OBJECTS:
            if of_image == image:
                mask = rectangle(*corners)
                pixels[mask] += (120, -60, -20)
                label_map[mask] = {4: 1, 7: 2}[category]
                encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
                annotations.append(
                    {
                        "id": number,
                        "image_id": image,
                        "category_id": category,
                        "bbox": bbox,
                        "iscrowd": 0,
                        "segmentation": {"size": [HEIGHT, WIDTH], "counts": encoded["counts"].decode()},
                    }
                )
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / "images" / f"{image}.png")
        write_label_map(tmp_path / "maps" / f"{image}.png", label_map)
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in (1, 2, 3)],
        "annotations": annotations,
        "categories": [{"id": 4, "name": "cat"}, {"id": 7, "name": "dog"}],
    }
    save(tmp_path / "full.json", content)
    bare = [{key: value for key, value in entry.items() if key != "segmentation"} for entry in annotations]
    save(tmp_path / "boxes.json", content | {"annotations": bare})
    return tmp_path


def save(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def comparison(tree: Path, annotations: str = "boxes.json", truth: str = "full.json", **changes) -> Comparison:
    """Of the three images of a tree; `changes` are fields of `ReadOptions`, `GeneratorOptions` or `Comparison`."""
    fields = {kind: {f.name for f in dataclasses.fields(kind)} for kind in (ReadOptions, GeneratorOptions)}
    read, loaded = (
        {k: changes.pop(k) for k in fields[kind] & changes.keys()} for kind in (ReadOptions, GeneratorOptions)
    )
    options = dataclasses.replace(SOURCE_OPTIONS, **read)
    data = ComparedData(str(tree / annotations), str(tree / "images"), str(tree / truth), options=options)
    chosen = {"indices": (0, 1, 2), "shown": (0,)} | changes
    return Comparison(data, GeneratorOptions(**{"device": "cpu"} | loaded), **chosen)


def test_boxes_are_moved_for_the_generator_and_not_for_the_truth(tree):
    """+10 % on each side: 26.4 x 24 pixels touched as 28 x 24, 12 x 24, and 48 x 48 of which 4 leave the image."""
    row = measure(comparison(tree, box_offsets=(0.1, 0.1)), "box")
    assert (row.num_boxes, row.skipped) == (3, [])
    ious = (400 / (28 * 24), 200 / (12 * 24), 800 / (48 * 48))
    assert row.scores["mean_box_iou"] == pytest.approx(np.mean(ious))


def test_moved_boxes_stay_in_the_image_and_are_the_same_again():
    objects = [BoxObject((10.0, 10.0, 30.0, 20.0), 0, 200.0), BoxObject((0.0, 0.0, 40.0, 40.0), 1, 1600.0)]
    record = Record(None, "a.png", "1", (40, 40), objects)
    assert _with_moved_boxes(record, (0.0, 0.0)) is record
    assert _with_moved_boxes(record, (-0.1, -0.1)).objects[0].box == pytest.approx((12, 11, 28, 19))
    moved = _with_moved_boxes(record, (-0.1, 0.25))
    assert moved == _with_moved_boxes(record, (-0.1, 0.25)) and record.objects is objects
    assert moved.objects[0].box != pytest.approx(objects[0].box)
    for item in moved.objects:
        x1, y1, x2, y2 = item.box
        assert 0 <= x1 < x2 <= 40 and 0 <= y1 < y2 <= 40
    other = _with_moved_boxes(dataclasses.replace(record, file_name="b.png"), (-0.1, 0.25))
    assert other.objects[0].box != moved.objects[0].box


@pytest.mark.parametrize("per", ["class", "instance"])
@pytest.mark.parametrize(
    "annotations, truth", [("boxes.json", "full.json"), ("full.json", "full.json"), ("boxes.json", "maps")]
)
def test_filled_boxes_have_the_scores_of_their_rectangles(tree, annotations, truth, per):
    row = measure(comparison(tree, annotations, truth, per=per), "box")
    assert (row.num_images, row.num_boxes, row.skipped, row.error) == (3, 3, [], None)
    assert row.scores["mean_box_iou"] == pytest.approx(np.mean(BOX_IOUS))
    assert row.scores["foreground_iou"] == pytest.approx(np.mean(CLASS_IOUS))
    background = (3 * HEIGHT * WIDTH - 440 - 200 - 1600) / (3 * HEIGHT * WIDTH - 400 - 200 - 800)
    assert row.scores["mean_iou"] == pytest.approx(np.mean([background, *CLASS_IOUS]))
    assert 0 < row.scores["mean_boundary_iou"] < 1
    assert row.scores["seconds_per_image"] * 3 * row.scores["boxes_per_second"] == pytest.approx(3)
    assert list(row.label_maps) == [0] and (row.label_maps[0] == 1).sum() == 640


@pytest.mark.parametrize(
    "pairs, expected",
    [
        ([(0.6, 0.1), (0.7, 0.5), (0.99, 0.51)], 1.0),  # ranks count, not distances
        ([(0.9, 0.1), (0.8, 0.2), (0.7, 0.3)], -1.0),
        ([(1, 1), (2, 3), (3, 2)], 0.5),
        ([(1, 1), (1, 2), (2, 3)], 3**0.5 / 2),  # two alike share the rank 1.5
        ([(1, 0.2), (1, 0.4)], None),  # scores that tell nothing
        ([], None),
    ],
)
def test_rank_correlation_of_scores_and_ious(pairs, expected):
    assert _rank_correlation(pairs) == (expected if expected is None else pytest.approx(expected))


def test_scores_of_filled_boxes_say_nothing_of_their_iou(tree):
    assert measure(comparison(tree, "full.json", "full.json"), "box").scores["score_rank_correlation"] is None


def test_zero_based_corners_are_measured_as_they_are(tree):
    x, y, width, height = OBJECTS[1][4]  # equal to its object
    corners = "".join(
        f"<{n}>{v}</{n}>" for n, v in zip(("xmin", "ymin", "xmax", "ymax"), (x, y, x + width, y + height))
    )
    (tree / "voc").mkdir()
    (tree / "voc/1.xml").write_text(
        f"<annotation><object><name>cat</name><bndbox>{corners}</bndbox></object></annotation>"
    )
    scores = [
        measure(comparison(tree, "voc", indices=(0,), zero_based=zero_based), "box").scores["mean_box_iou"]
        for zero_based in (True, False)
    ]
    assert scores[0] == 1 > scores[1]


def test_a_generator_that_sees_colours_beats_the_box(tree):
    found = measure(comparison(tree), "grabcut")
    assert found.scores["mean_box_iou"] > 0.95 > np.mean(BOX_IOUS)


def test_a_trained_stage_is_one_of_the_generators(tree, lpg_folder, monkeypatch):
    monkeypatch.setattr("lpg_hf.evaluation.compare.ProcessPoolExecutor", InThisProcess)
    rows, _ = compare(comparison(tree, model=str(lpg_folder), dtype="float32"), ["box", "lpg"])
    assert [row.generator for row in rows] == ["box", "lpg"] and rows[1].num_boxes == 3
    assert 0 < rows[1].scores["mean_box_iou"] != rows[0].scores["mean_box_iou"]


def test_objects_meet_by_box_when_ids_differ(tree):
    content = json.loads((tree / "boxes.json").read_text())
    ids = [entry["id"] for entry in content["annotations"]]
    for entry, other in zip(content["annotations"], [ids[1], ids[0], 99]):
        entry["id"] = other
    save(tree / "boxes.json", content)
    assert measure(comparison(tree), "box").scores["mean_box_iou"] == pytest.approx(np.mean(BOX_IOUS))


@pytest.mark.parametrize("seed", range(10))
def test_an_object_meets_the_one_of_its_id_or_the_closest(seed):
    rng = np.random.default_rng(seed)
    rle, objects = encode_mask(np.ones((4, 6), dtype=bool)), []
    for number in rng.permutation(60).tolist():
        box = tuple((rng.integers(0, 4, 4) + rng.choice([0, 0.25, 1.0], 4)).tolist())
        objects.append((BoxObject(box, 0, 24, id=number % 50, rle=rle), int(rng.integers(1, 3))))
    truth = ImageTruth(np.zeros((4, 6), dtype=np.uint8), 255, objects)
    for number in range(100):
        item = BoxObject(tuple(rng.uniform(0, 4.5, 4).tolist()), number % 3, 24, id=number)
        of_class = [true for true, label in objects if label == item.category + 1]
        distances = [max(abs(a - b) for a, b in zip(true.box, item.box)) for true in of_class]
        near = [(true.id != number, distance, true) for true, distance in zip(of_class, distances) if distance <= 1]
        found, other = truth._match(item), [true for is_other, _, true in near if not is_other]
        closest = min(near, key=lambda one: one[1])[2] if near else None
        assert found is (other[0] if other else closest)


def test_boxes_by_the_thousand_meet_their_truth_at_once():
    rle, corners = encode_mask(np.ones((4, 6), dtype=bool)), np.random.default_rng(0).uniform(0, 4000, (4000, 2))
    boxes = [(x, y, x + 9, y + 9) for x, y in corners.tolist()]
    objects = [(BoxObject(box, 0, 24, id=10_000 + i, rle=rle), 1) for i, box in enumerate(boxes)]
    truth = ImageTruth(np.zeros((4, 6), dtype=np.uint8), 255, objects)
    start = time.process_time()
    assert all(truth.of_box(BoxObject(box, 0, 24, id=i))[0] is not None for i, box in enumerate(boxes))
    assert time.process_time() - start < 5  # each with each: 12 s


def test_objects_and_images_without_truth_are_named(tree):
    content = json.loads((tree / "full.json").read_text())
    content["annotations"][0]["segmentation"] = []
    save(tree / "full.json", content)
    row = measure(comparison(tree), "box")
    assert row.num_boxes == 2 and row.skipped == ["1.png: object 11: no mask in the ground truth"]
    write_label_map(tree / "maps" / "2.png", np.zeros((5, 5), np.uint8))
    Image.new("RGB", (WIDTH, HEIGHT)).save(tree / "maps" / "3.png")
    row = measure(comparison(tree, truth="maps"), "box")
    assert row.num_images == 1 and len(row.skipped) == 2
    assert "is 5 x 5, but the image 80 x 60" in row.skipped[0] and "mode RGB" in row.skipped[1]


def test_what_the_readers_leave_out_is_told_with_its_reason(tree, monkeypatch):
    content = json.loads((tree / "boxes.json").read_text())
    content["annotations"][0]["bbox"] = [10, 10, 0, 20]
    content["images"].append({"id": 4, "file_name": "absent.png"})
    content["images"].append({"id": 5, "file_name": "../1.png"})
    save(tree / "boxes.json", content)
    content = json.loads((tree / "full.json").read_text())
    content["images"][1]["width"] = 2 * WIDTH
    save(tree / "full.json", content)
    data = (tree / "images/3.png").read_bytes()
    (tree / "images/3.png").write_bytes(data[: len(data) // 2])
    monkeypatch.setattr("lpg_hf.evaluation.compare.ProcessPoolExecutor", InThisProcess)
    rows, chosen = compare(comparison(tree), ["box"])
    (row,) = rows
    assert (row.num_images, row.num_boxes) == (1, 1) and len(row.skipped) == 5
    for name, reason in (
        ("absent.png", "image that does not exist"),
        ("../1.png", "leads outside the image folder"),
        ("1.png: annotation 11", "box without an area"),
        ("2.png", "full.json: 2.png: stated 160 x 60, image 80 x 60 (stated size differs"),
        ("3.png", "cut off"),
    ):
        assert any(name in line and reason in line for line in row.skipped), (name, row.skipped)
    text = table(rows)
    assert "5 images or boxes are in no score, e.g. " in text
    assert "annotations: 2 images, 2 objects, 2 classes" in text and "  degenerate_box: 1 (box without an area" in text
    assert "ground truth: 1 images, 2 objects" in text and "  size_mismatch: 1 " in text
    write(tree / "out", rows, chosen)
    saved = json.loads((tree / "out/comparison.json").read_text())
    assert saved["reports"]["annotations"]["counts"] == {
        "missing_image": 1,
        "unsafe_path": 1,
        "degenerate_box": 1,
        "truncated_image": 1,
    }
    assert saved["reports"]["ground truth"]["counts"]["size_mismatch"] == 1


def test_sizes_are_compared_and_limited_as_asked_for(tree):
    for name in ("boxes.json", "full.json"):
        content = json.loads((tree / name).read_text())
        content["images"][0] |= {"width": 2 * WIDTH, "height": 2 * HEIGHT}
        for entry in content["annotations"][:2]:
            entry["bbox"] = [2 * value for value in entry["bbox"]]
            if "segmentation" in entry:
                x1, y1, x2, y2 = (2 * value for value in OBJECTS[entry["id"] - 11][3])
                entry["segmentation"] = [[x1, y1, x2, y1, x2, y2, x1, y2]]
        save(tree / name, content)
    assert measure(comparison(tree), "box").num_images == 2
    rescaled = measure(comparison(tree, size_mismatch="rescale"), "box")
    assert rescaled.num_boxes == 3 and rescaled.scores["mean_box_iou"] == pytest.approx(np.mean(BOX_IOUS))
    assert [report.counts["size_rescaled"] for report in rescaled.reports.values()] == [1, 1]
    arguments = ["compare", tree / "boxes.json", "--images", tree / "images", "--truth", tree / "full.json"]
    arguments += ["--generators", "box", "--device", "cpu", "--size-mismatch", "rescale", "--max-pixels", "100"]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert "image_too_large: 3 (image with more pixels than max_pixels" in result.output


def test_crowd_pixels_that_no_object_covers_count_nowhere(tree):
    content = json.loads((tree / "full.json").read_text())
    region = rectangle(20, 0, 45, 60)  # all that the box of object 13 holds beside it, and a part of the object
    encoded = coco_mask.encode(np.asfortranarray(region.astype(np.uint8)))
    counts = {"size": [HEIGHT, WIDTH], "counts": encoded["counts"].decode()}
    crowd = {"id": 20, "image_id": 2, "category_id": 7, "bbox": [20, 0, 25, 60], "iscrowd": 1}
    save(tree / "full.json", content | {"annotations": [*content["annotations"], crowd | {"segmentation": counts}]})
    row = measure(comparison(tree, indices=(1,)), "box")
    assert row.num_boxes == 1 and row.scores["mean_box_iou"] == 1 == row.scores["foreground_iou"]


def test_a_box_without_a_true_pixel_counts_where_a_mask_is_found(tree):
    write_label_map(tree / "maps" / "2.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    box = measure(comparison(tree, truth="maps"), "box")
    assert box.num_boxes == 3
    text = table([box, Row("nothing", box.scores, 3, 2)])
    assert "3 images, 2 to 3 boxes where the ground truth or the generator's mask has a pixel" in text


def test_void_pixels_of_label_maps_count_nowhere(tree):
    label_map = np.full((HEIGHT, WIDTH), 255, np.uint8)
    label_map[rectangle(5, 5, 25, 45)] = 2
    write_label_map(tree / "maps" / "2.png", label_map)
    row = measure(comparison(tree, truth="maps", indices=(1,)), "box")
    assert row.scores["mean_box_iou"] == 1 and row.scores["mean_iou"] == 1


def test_one_that_cannot_run_leaves_the_others_alone(tree, monkeypatch, tmp_path):
    hidden = tmp_path / "hidden" / "pydensecrf"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError('hidden')")
    monkeypatch.syspath_prepend(hidden.parent)  # the processes inherit sys.path
    out, numbers = tree / "out", tree / "numbers.json"
    arguments = ["compare", tree / "boxes.json", "--images", tree / "images", "--truth", tree / "full.json"]
    arguments += [
        "--generators",
        "box,densecrf",
        "--out",
        out,
        "--json",
        numbers,
        "--device",
        "cpu",
    ]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 1, result.output
    saved = json.loads(numbers.read_text())
    assert saved == json.loads((out / "comparison.json").read_text())
    box, crf = saved["rows"]
    assert box["error"] is None and box["scores"]["mean_box_iou"] == pytest.approx(np.mean(BOX_IOUS))
    assert 'pip install "lpg_hf[crf]"' in crf["error"] and not crf["scores"]
    assert result.stdout.strip() == (out / "comparison.md").read_text().strip()
    assert "densecrf did not run: " in result.stdout and "3 images, 3 boxes" in result.stdout
    with Image.open(out / "panel.jpg") as figure:
        assert figure.width > 3 * 200 and figure.height > 3 * 100


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), MachineError("no memory is left")])
def test_a_fault_of_the_machine_ends_the_comparison_and_blames_no_generator(tree, monkeypatch, error):
    def fails(*_):
        raise error

    monkeypatch.setattr("lpg_hf.evaluation.compare.measure", fails)
    monkeypatch.setattr("lpg_hf.evaluation.compare.ProcessPoolExecutor", lambda n, mp_context: ThreadPoolExecutor(n))
    arguments = ["compare", tree / "boxes.json", "--images", tree / "images", "--truth", tree / "full.json"]
    result = CliRunner().invoke(app, [str(argument) for argument in [*arguments, "--generators", "box"]])
    assert isinstance(result.exception, MachineError) and "did not run" not in result.output


def test_images_are_chosen_evenly_among_those_with_truth(tree, monkeypatch):
    (tree / "maps" / "2.png").unlink()
    monkeypatch.setattr("lpg_hf.evaluation.compare.ProcessPoolExecutor", InThisProcess)
    rows, chosen = compare(comparison(tree, truth="maps"), ["box"])
    assert chosen.indices == (0, 2) and rows[0].num_images == 2
    assert compare(comparison(tree), ["box"], limit=1)[1].indices == (0,)
    rows, chosen = compare(comparison(tree), ["box"], num_shown=2)
    assert chosen.shown == (0, 1) and list(rows[0].label_maps) == [0, 1]


class InThisProcess:
    """In the place of a process pool."""

    def __init__(self, *_, **__) -> None:
        pass

    def __enter__(self) -> "InThisProcess":
        return self

    def __exit__(self, *_) -> None:
        pass

    def submit(self, function, *arguments) -> "InThisProcess":
        self.found = function(*arguments)
        return self

    def result(self) -> Row:
        return self.found


def test_without_a_generator_that_ran_no_panel_is_drawn(tree):
    write(tree / "out", [Row("box", error="no")], comparison(tree))
    assert sorted(os.listdir(tree / "out")) == ["comparison.json", "comparison.md"]


def test_the_table_has_a_column_for_each_number_and_says_what_is_unknown():
    row = Row("box", {key: 0.5 for key in COLUMNS} | {"peak_memory_mb": None, "peak_gpu_memory_mb": None}, 2, 3)
    head, _, line = table([row]).splitlines()[:3]
    assert [cell.strip() for cell in line.split("|")[1:-1]] == [
        "box",
        "50.0",
        "50.0",
        "50.0",
        "50.0",
        "0.50",
        "0.500",
        "0.5",
        "n/a",
    ]
    assert "GPU" not in head and head.count("|") == line.count("|") == 10


def test_peak_memory_is_that_of_the_process_and_not_of_its_parent():
    ballast = np.ones(40_000_000)  # 305 MB here
    code = "from lpg_hf.evaluation.compare import peak_memory_mb; import numpy, sys; before = peak_memory_mb(); "
    code += "numpy.ones(12_500_000); print(before, peak_memory_mb(), 'torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after, has_torch = result.stdout.split()
    assert 80 < float(after) - float(before) < 130  # an array of 95 MB
    assert has_torch == "False"  # it would be in the memory of generators that need none
    assert ballast.sum() and peak_memory_mb() > 305


@pytest.mark.parametrize(
    "names, changes, message",
    [
        (["boxes"], {}, "generator 'boxes' is unknown"),
        (["sam:"], {}, "generator 'sam:' is unknown"),
        (["box"], {"per": "image"}, "per='image' is unknown"),
        (["box"], {"truth": "images/other.json"}, "does not exist"),
        (["box"], {"truth": "empty"}, "none of the 3 images .* has ground truth"),
    ],
)
def test_wrong_settings_are_told_before_any_work(tree, names, changes, message):
    (tree / "empty").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        compare(comparison(tree, **changes), names)


def test_class_masks_in_the_colours_of_a_labelmap_measure_as_those_of_indices(tree):
    """As CVAT writes VOC: its class masks are colour images."""
    convert_labels(str(tree / "full.json"), str(tree / "voc"), "voc", images=str(tree / "images"), options=WITH_MASKS)
    (tree / "voc" / "JPEGImages").symlink_to(tree / "images")
    expected = measure(comparison(tree, "voc"), "box").scores
    names = (tree / "voc" / "classes.txt").read_text().split()
    colours = [(0, 0, 0), (250, 50, 83), (128, 0, 0)]
    lines = [f"{name}:{r},{g},{b}::" for name, (r, g, b) in zip(["background", *names], colours)]
    (tree / "voc" / "labelmap.txt").write_text("\n".join(lines))
    (tree / "voc" / "classes.txt").unlink()
    for path in (tree / "voc" / "SegmentationClass").iterdir():
        Image.fromarray(np.array(colours, dtype=np.uint8)[read_label_map(path)]).save(path)
    found = measure(comparison(tree, "voc"), "box").scores
    assert expected["mean_box_iou"] == pytest.approx(np.mean(BOX_IOUS))
    assert {name: value for name, value in found.items() if "iou" in name} == {
        name: value for name, value in expected.items() if "iou" in name
    }


@pytest.mark.parametrize("file", ["full.json", "voc"])
def test_auto_takes_what_measures_best_on_the_true_masks(tree, file):
    """Objects of one colour on another: dense CRF or GrabCut find them, the filled box is wrong."""
    if file == "voc":
        convert_labels(
            str(tree / "full.json"), str(tree / "voc"), "voc", images=str(tree / "images"), options=WITH_MASKS
        )
        (tree / "voc" / "JPEGImages").symlink_to(tree / "images")
    lines: list[str] = []
    name, options = choose_generator(own_data(tree, file), GeneratorOptions(device="cpu", flip=True), lines.append)
    numbers = re.search(r"on 2 images with true masks: (.*)", lines[-1])
    assert numbers is not None
    scores = {word.rsplit(" ", 1)[0]: float(word.rsplit(" ", 1)[1]) for word in numbers[1].split(", ")}
    assert scores["box"] == pytest.approx(100 * np.mean(BOX_IOUS), abs=0.05)
    assert {"lpg-small", "lpg-base", "grabcut"} <= scores.keys()
    best = max(scores, key=lambda key: scores[key])
    assert scores[best] > 90 and (options.model or name) == best and options.flip == (name == "lpg")


def test_auto_without_true_masks_takes_lpg_base_and_says_so(tree):
    lines: list[str] = []
    name, options = choose_generator(own_data(tree, "boxes.json"), GeneratorOptions(device="cpu"), lines.append)
    assert (name, options.model) == ("lpg", "lpg-base")
    assert lines == ["--generator auto: no object has a true mask, so nothing is measured: using lpg-base"]


def test_auto_measures_images_from_all_over_the_data(tree, monkeypatch):
    content = json.loads((tree / "full.json").read_text(encoding="utf-8"))
    image = content["images"][0]
    objects = [item for item in content["annotations"] if item["image_id"] == image["id"]]
    many = {"images": [], "annotations": [], "categories": content["categories"]}
    for number in range(1, 101):
        name = f"{number:03d}{Path(image['file_name']).suffix}"
        (tree / "images" / name).symlink_to(tree / "images" / image["file_name"])
        many["images"].append(image | {"id": number, "file_name": name})
        many["annotations"] += [item | {"id": 10 * number + k, "image_id": number} for k, item in enumerate(objects)]
    (tree / "many.json").write_text(json.dumps(many), encoding="utf-8")
    measured = []
    monkeypatch.setattr(
        "lpg_hf.evaluation.choose.measure",
        lambda given, name: measured.append(given.indices) or Row(name, {"mean_box_iou": 0.5}),
    )
    choose_generator(own_data(tree, "many.json"), GeneratorOptions(device="cpu"), print)
    assert measured[0] == tuple(range(0, 100, 5))


def own_data(tree: Path, file: str) -> ComparedData:
    return ComparedData(str(tree / file), str(tree / "images") if file != "voc" else None)


def test_the_command_masks_takes_auto(tree):
    arguments = [
        "masks",
        tree / "full.json",
        "--images",
        tree / "images",
        "--out",
        tree / "out",
        "--generator",
        "auto",
    ]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0 and "IoU per box on 2 images with true masks" in result.output
    report = tree / "out" / "report.json"
    chosen = json.loads(report.read_text(encoding="utf-8"))["settings"]["generator"]
    assert chosen in ("lpg", "densecrf", "grabcut", "box")
    again = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert again.exit_code == 0 and "going on with" in again.output and "IoU per box" not in again.output
    report.unlink()  # as of a run that was killed
    resumed = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert resumed.exit_code == 0 and "going on with" in resumed.output
    assert json.loads(report.read_text(encoding="utf-8"))["settings"]["generator"] == chosen
    anew = CliRunner().invoke(app, [str(argument) for argument in [*arguments, "--overwrite"]])
    assert anew.exit_code == 0 and "IoU per box on 2 images with true masks" in anew.output


def test_truth_is_by_default_that_of_the_annotations(tree):
    of_json = ComparedData(str(tree / "full.json"), str(tree / "images"), str(tree / "full.json"))
    named = measure(Comparison(of_json, indices=(0, 1, 2)), "box")
    default = measure(Comparison(dataclasses.replace(of_json, truth=None), indices=(0, 1, 2)), "box")
    assert default.scores["mean_box_iou"] == named.scores["mean_box_iou"] == pytest.approx(np.mean(BOX_IOUS))
