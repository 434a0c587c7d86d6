"""`lpg-hf eval`: known scores, what has no partner, bad files, and how COCO masks find each other."""

import json
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from typer.testing import CliRunner

import lpg_hf.evaluation.evaluate as evaluate_module
from lpg_hf.cli import app
from lpg_hf.evaluation.evaluate import Evaluation, _close_boxes, _Instance, _match, class_list, evaluate
from lpg_hf.label_maps import write_label_map
from lpg_hf.metrics.box_masks import BoxMaskScores
from lpg_hf.metrics.mean_iou import ConfusionMatrix


def run(*arguments: object):
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    return tmp_path / "prediction", tmp_path / "truth"


def random_maps(folders: tuple[Path, Path], count: int = 6, num_labels: int = 4) -> ConfusionMatrix:
    """Label maps in two folders, some in a sub-folder, and their confusion matrix."""
    rng = np.random.default_rng(0)
    expected = ConfusionMatrix(num_labels)
    for i in range(count):
        true = rng.integers(0, num_labels, (20, 30 + i), dtype=np.uint8)
        predicted = np.where(rng.random(true.shape) < 0.7, true, rng.integers(0, num_labels, true.shape)).astype(
            np.uint8
        )
        true[:2] = 255
        name = f"part{i % 2}/{i}.png"
        write_label_map(folders[0] / name, predicted)
        write_label_map(folders[1] / name, true)
        expected.update(predicted, true)
    return expected


@pytest.mark.parametrize("num_workers", [1, 3])
def test_label_maps_score_as_their_confusion_matrix(folders, num_workers):
    expected = random_maps(folders).compute()
    result = evaluate(*folders, classes=["a", "b", "c"], num_workers=num_workers)
    assert result.scores["mean_iou"] == pytest.approx(expected["mean_iou"])
    assert result.scores["foreground_mean_iou"] == pytest.approx(expected["foreground_mean_iou"])
    assert result.per_class == pytest.approx(dict(zip(["background", "a", "b", "c"], expected["per_class_iou"])))
    assert result.num_scored == 6 and not (result.missing or result.extra or result.bad)


def test_without_classes_labels_are_numbers_and_absent_ones_no_scores(folders):
    write_label_map(folders[0] / "a.png", np.array([[0, 7]], np.uint8))
    write_label_map(folders[1] / "a.png", np.array([[0, 200]], np.uint8))
    result = evaluate(*folders)
    assert result.per_class == {"background": 1, "7": 0, "200": 0}
    assert result.scores == {"mean_iou": pytest.approx(1 / 3), "foreground_mean_iou": 0}


def test_classes_that_occur_nowhere_are_in_no_mean(folders):
    write_label_map(folders[0] / "a.png", np.array([[0, 1]], np.uint8))
    write_label_map(folders[1] / "a.png", np.array([[0, 1]], np.uint8))
    result = evaluate(*folders, classes="cat, dog")
    assert result.per_class == {"background": 1, "cat": 1, "dog": None} and result.scores["mean_iou"] == 1
    assert "dog" in result.text() and "     -" in result.text()


def test_maps_of_16_bits_have_their_own_ignored_value(folders):
    write_label_map(folders[0] / "a.png", np.array([[0, 255, 300, 65535]], np.uint16))
    write_label_map(folders[1] / "a.png", np.array([[0, 255, 65535, 0]], np.uint16))
    result = evaluate(*folders)
    assert result.per_class == {"background": 1, "255": 1}
    assert result.notes == ["1 predictions hold the ignored value, which counts as background"]


def test_label_maps_that_lie_elsewhere_are_told(folders, tmp_path):
    write_label_map(folders[1] / "a.png", np.array([[0, 1]], np.uint8))
    write_label_map(tmp_path / "elsewhere" / "b.png", np.array([[0, 1]], np.uint8))
    write_label_map(folders[0] / "c.png", np.array([[0, 1]], np.uint8))
    (folders[0] / "a.png").symlink_to(tmp_path / "elsewhere" / "b.png")
    (note,) = evaluate(*folders).notes
    assert note.startswith("1 label maps are links to files elsewhere, e.g. ") and note.endswith("elsewhere/b.png")


def test_the_ignored_value_can_be_chosen(folders):
    write_label_map(folders[0] / "a.png", np.array([[0, 1, 1]], np.uint8))
    write_label_map(folders[1] / "a.png", np.array([[0, 1, 9]], np.uint8))
    assert evaluate(*folders, ignore=9).scores["mean_iou"] == 1
    assert evaluate(*folders).scores["mean_iou"] < 1


@pytest.mark.parametrize("ignore", [1, 2])
def test_an_ignored_value_that_is_a_class_is_refused(folders, ignore):
    random_maps(folders, count=1)
    with pytest.raises(ValueError, match=f"ignore={ignore} .* is the label of the class .* above 2"):
        evaluate(*folders, classes=["a", "b"], ignore=ignore)


def test_what_has_no_partner_is_counted_and_named(folders):
    random_maps(folders)
    (folders[0] / "part0" / "0.png").unlink()
    write_label_map(folders[0] / "other.png", np.zeros((2, 2), np.uint8))
    result = evaluate(*folders)
    assert (result.missing, result.extra, result.num_scored) == (["part0/0.png"], ["other.png"], 5)
    assert "ground truth without a prediction: 1\n  part0/0.png" in result.text()
    assert run(*folders).exit_code == 0


def test_bad_files_are_named_and_the_others_scored(folders, tmp_path):
    random_maps(folders)
    names = [f"part{i % 2}/{i}.png" for i in range(4)]
    Image.new("RGB", (30, 20)).save(folders[0] / names[0])
    write_label_map(folders[0] / names[1], np.zeros((5, 6), np.uint8))
    (folders[1] / names[2]).write_bytes(b"no image")
    whole = (folders[0] / names[3]).read_bytes()
    (folders[0] / names[3]).write_bytes(whole[: len(whole) // 2])
    result = run(*folders, "--json", tmp_path / "out" / "scores.json")
    saved = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert result.exit_code == 1 and saved["num_scored"] == 2 and len(saved["bad"]) == 4
    bad = dict(zip(sorted(names), sorted(saved["bad"])))
    assert "mode RGB" in bad[names[0]] and "not a label map" in bad[names[0]]
    assert "is 6 x 5" in bad[names[1]] and "is 31 x 20" in bad[names[1]]
    assert str(folders[0]) in bad[names[1]] and str(folders[1]) in bad[names[1]]
    assert "skipped, cannot be used: 4" in result.stdout
    assert all(0 < saved[key] < 1 for key in ("mean_iou", "foreground_mean_iou"))


def test_a_map_with_too_many_pixels_is_named_and_the_others_scored(folders):
    random_maps(folders, count=2)
    for folder in folders:
        Image.new("1", (20_000, 10_000)).save(folder / "z.png")
    result = run(*folders)
    assert result.exit_code == 1 and "2 label maps" in result.output and "z.png has 20000 x 10000" in result.output
    assert "--max-pixels" in result.output
    found = evaluate(*folders, max_pixels=20 * 30)
    assert found.num_scored == 1 and len(found.bad) == 2 and "max_pixels=600" in found.bad[0]


def test_labels_outside_the_class_list_are_bad(folders):
    random_maps(folders, count=2)
    for folder in folders:
        write_label_map(folder / "good.png", np.tile(np.uint8([0, 1, 2]), (4, 2)))
    result = evaluate(*folders, classes=["a", "b"])
    assert len(result.bad) == 2 and "holds the label 3, but there are 2 classes" in result.bad[0]
    assert result.num_scored == 1 and result.scores["mean_iou"] == 1


def test_label_maps_of_which_none_can_be_used_are_refused(folders):
    random_maps(folders, count=2)
    with pytest.raises(ValueError, match="none of the 2 pairs of label maps can be compared, such as .*label 3"):
        evaluate(*folders, classes=["a", "b"])


def test_a_class_file_is_read(folders, tmp_path):
    (tmp_path / "classes.txt").write_text("background\ncat\ndog\n")
    assert (
        class_list(tmp_path / "classes.txt") == class_list("cat,dog") == class_list(["cat", "dog"]) == ["cat", "dog"]
    )
    with pytest.raises(ValueError, match="unique names"):
        class_list("cat,cat")


# --- COCO files
# -------------------------------------------------------------------------------------------------------

SIZE = (40, 60)


@pytest.mark.parametrize("class_names", [None, "labelmap.txt", ("cat", "dog")])
def test_ground_truth_in_the_colours_of_a_labelmap_is_read(tmp_path, class_names):
    """CVAT's `Segmentation mask 1.1`: the colours stand in the folder above the masks."""
    labelmap, truth = tmp_path / "labelmap.txt", tmp_path / "SegmentationClass"
    labelmap.write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:250,50,83::\ndog:128,0,0::\n")
    labels = np.zeros((8, 9), dtype=np.uint8)
    labels[:2], labels[5:] = 1, 2
    write_label_map(tmp_path / "masks" / "a.png", labels)
    truth.mkdir()
    Image.fromarray(np.array([(0, 0, 0), (250, 50, 83), (128, 0, 0)], dtype=np.uint8)[labels]).save(truth / "a.png")
    class_names = labelmap if class_names == "labelmap.txt" else class_names
    result = evaluate(tmp_path / "masks", truth, classes=class_names)
    assert result.per_class == {"background": 1.0, "cat": 1.0, "dog": 1.0}
    with pytest.raises(ValueError, match="ignore=2 .* is the label of the class 'dog'"):
        evaluate(tmp_path / "masks", truth, classes=class_names, ignore=2)
    with pytest.raises(ValueError, match=r"colour \(128, 0, 0\), which labelmap.txt gives to no class of the list"):
        evaluate(tmp_path / "masks", truth, classes=["cat"])
    labelmap.unlink()
    with pytest.raises(ValueError, match="a labelmap.txt in their folder or the one above says"):
        evaluate(tmp_path / "masks", truth)


def rle(x1: int, y1: int, x2: int, y2: int, size: tuple[int, int] = SIZE) -> dict:
    mask = np.zeros(size, np.uint8)
    mask[y1:y2, x1:x2] = 1
    encoded = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(size), "counts": encoded["counts"].decode()}


TRUE = [(1, 1, 5, (0, 0, 20, 20)), (2, 1, 5, (30, 10, 50, 30)), (3, 1, 9, (10, 10, 20, 40)), (4, 2, 9, (5, 5, 55, 35))]
PREDICTED = [(0, 0, 20, 10), (30, 10, 50, 30), (10, 10, 20, 20), (5, 5, 55, 20)]


def annotations(masks: list, offset: int = 0) -> list[dict]:
    return [
        {
            "id": number + offset,
            "image_id": image,
            "category_id": category,
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            "segmentation": rle(*mask),
        }
        for (number, image, category, box), mask in zip(TRUE, masks)
    ]


def coco(entries: list[dict], image_offset: int = 0) -> dict:
    return {
        "images": [
            {"id": i + image_offset, "file_name": f"{i}.jpg", "height": SIZE[0], "width": SIZE[1]} for i in (1, 2)
        ],
        "annotations": [entry | {"image_id": entry["image_id"] + image_offset} for entry in entries],
        "categories": [{"id": 9, "name": "dog"}, {"id": 5, "name": "cat"}],
    }


@pytest.fixture
def files(tmp_path) -> tuple[Path, Path]:
    paths = tmp_path / "prediction.json", tmp_path / "truth.json"
    write(paths[0], coco(annotations(PREDICTED)))
    write(paths[1], coco(annotations([box for *_, box in TRUE])))
    return paths


def write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def expected() -> dict:
    scores = BoxMaskScores()
    for (_, _, category, box), mask in zip(TRUE, PREDICTED):
        scores.update(rle(*mask), rle(*box), {5: 1, 9: 2}[category])
    return scores.compute()


def check(result: Evaluation, matched_by: str) -> None:
    wanted = expected()
    assert result.matched_by.startswith(matched_by)
    assert result.scores == pytest.approx({key: wanted[key] for key in result.scores})
    assert result.per_class == pytest.approx({"cat": wanted["per_class_iou"][1], "dog": wanted["per_class_iou"][2]})
    assert result.num_scored == 4 and not (result.missing or result.extra or result.bad)


def test_coco_masks_meet_by_annotation_id(files):
    result = evaluate(*files)
    check(result, "annotation id")
    assert result.per_class["cat"] == pytest.approx((200 + 400) / (400 + 400))
    assert list(result.scores) == ["mean_box_iou", "mean_boundary_iou", "foreground_iou"]
    assert "4 box masks, matched by annotation id" in run(*files).stdout


@pytest.mark.parametrize(
    "content",
    [
        coco(annotations(PREDICTED, offset=1)),  # ids that mean other objects
        coco(annotations(PREDICTED), image_offset=70),  # other image ids, same file names
        [{**entry, "id": None} for entry in annotations(PREDICTED)],  # the bare list of COCO's tools, without ids
        coco([entry | {"bbox": [v + 0.4 for v in entry["bbox"]]} for entry in annotations(PREDICTED, offset=9)[::-1]]),
    ],
)
def test_coco_masks_meet_by_image_and_box_when_ids_differ(files, content):
    write(files[0], content)
    by = "annotation id" if isinstance(content, dict) and content["images"][0]["id"] > 70 else "image and box"
    check(evaluate(*files), by)


def test_truth_of_a_category_that_is_not_listed_is_named(files):
    content = coco(annotations([box for *_, box in TRUE]))
    content["annotations"][0]["category_id"] = 77
    write(files[1], content)
    result = evaluate(*files)
    assert result.num_scored == 3 and len(result.bad) == 1 and result.bad[0].endswith("annotation 1: no category 77")


def test_ids_that_agree_by_chance_are_no_partners(files):
    entries = annotations(PREDICTED)
    entries[1]["id"], entries[2]["id"] = entries[2]["id"], entries[1]["id"]  # a cat and a dog of one image
    write(files[0], coco(entries))
    check(evaluate(*files), "image and box")


def test_a_box_has_one_partner_only(files):
    twice = annotations(PREDICTED, offset=10)
    write(files[0], coco([*twice, twice[0] | {"id": 99, "segmentation": rle(0, 0, 1, 1)}]))
    result = evaluate(*files)
    assert result.num_scored == 4 and result.extra == ["image 1.jpg, annotation 99"]


def test_coco_partners_that_are_missing_are_named(files):
    write(files[0], coco(annotations(PREDICTED)[1:]))
    result = evaluate(*files)
    assert result.missing == ["image 1.jpg, annotation 1"] and result.num_scored == 3


def test_an_empty_prediction_scores_zero(files):
    entries = annotations(PREDICTED)
    for entry, segmentation in zip(entries, ([], None, rle(0, 0, 0, 0), entries[3]["segmentation"])):
        entry["segmentation"] = segmentation
    write(files[0], coco(entries))
    result = evaluate(*files)
    assert result.num_scored == 4 and not result.bad
    assert result.scores["mean_box_iou"] == pytest.approx(0.5 / 4)


def test_bad_masks_are_named_and_the_others_scored(files):
    entries = annotations(PREDICTED)
    entries[0]["segmentation"] = rle(0, 0, 5, 5, (50, 60))
    entries[1]["segmentation"] = {"size": list(SIZE), "counts": [3, 4]}
    write(files[0], coco(entries))
    result = run(*files)
    assert result.exit_code == 1
    found = evaluate(*files)
    assert found.num_scored == 2 and len(found.bad) == 2
    assert "(50, 60)" in found.bad[0] and "(40, 60)" in found.bad[0] and "annotation 1" in found.bad[0]
    assert "annotation 2" in found.bad[1]


def test_crowd_regions_take_no_part_and_classes_can_be_chosen(files):
    entries = annotations([box for *_, box in TRUE])
    write(files[1], coco([*entries, entries[0] | {"id": 50, "iscrowd": 1}]))
    assert evaluate(*files).notes == ["1 crowd regions take no part"]
    chosen = evaluate(*files, classes="dog")
    assert list(chosen.per_class) == ["dog"] and chosen.num_scored == 2


def test_crowd_pixels_that_no_object_covers_count_nowhere(files):
    crowd = {"id": 50, "iscrowd": 1, "image_id": 1, "category_id": 1, "segmentation": rle(20, 5, 40, 25)}
    entries = [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 5, 10, 20], "segmentation": rle(10, 5, 20, 25)},
        {"id": 2, "image_id": 1, "category_id": 1, "bbox": [30, 5, 10, 20], "segmentation": rle(30, 5, 40, 25)},
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": 1, "name": "thing"}],
    }
    write(files[1], content | {"annotations": [*entries, crowd]})
    # The first reaches over the crowd alone (void), the second over the crowd and the first object.
    grown = [entries[0] | {"segmentation": rle(10, 5, 30, 25)}, entries[1] | {"segmentation": rle(10, 5, 40, 25)}]
    write(files[0], content | {"annotations": grown})
    assert evaluate(*files).scores["mean_box_iou"] == pytest.approx((1 + 200 / 400) / 2)
    write(files[1], content | {"annotations": entries})
    assert evaluate(*files).scores["mean_box_iou"] == pytest.approx((200 / 400 + 200 / 600) / 2)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda p, t: (p, t.parent), "is a file, but"),
        (lambda p, t: (p.parent / "absent", t), "absent does not exist"),
        (lambda p, t: (p, (t.write_text("{"), t)[1]), "not valid or not complete json"),
        (lambda p, t: (p, (t.write_text("[]"), t)[1]), "bare list"),
        (lambda p, t: ((p.write_text('{"a": 1}'), p)[1], t), 'no list "annotations"'),
        (lambda p, t: ((p.write_text('{"annotations": []}'), p)[1], t), "has a partner"),
        (lambda p, t: (p.parent, t.parent), "holds no label map"),
    ],
)
def test_wrong_input_is_explained(files, change, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluate(*change(*files))


def test_unknown_classes_and_folders_that_share_no_path_are_explained(files, folders):
    with pytest.raises(ValueError, match=r"\['horse'\] are not in .*dog"):
        evaluate(*files, classes=["horse"])
    for i, folder in enumerate(folders):
        write_label_map(folder / f"{i}.png", np.zeros((2, 2), np.uint8))
    with pytest.raises(ValueError, match="0.png there, 1.png here"):
        evaluate(*folders)


def instances(boxes: np.ndarray) -> list[_Instance]:
    """Objects of one image and category; boxes (N, 4) xywh."""
    return [_Instance(None, "a.jpg", "cat", box, {}) for box in boxes.tolist()]


def closest_first(predicted: np.ndarray, true: np.ndarray) -> set[tuple[int, int]]:
    """Pairs by the definition: the closest boxes of all, then the closest of the others."""
    corners = [np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1) for boxes in (predicted, true)]
    distance, pairs = np.abs(corners[0][:, None] - corners[1][None]).max(axis=2), set()
    while distance.min() <= 1:
        i, j = np.unravel_index(distance.argmin(), distance.shape)
        pairs.add((int(i), int(j)))
        distance[i], distance[:, j] = np.inf, np.inf
    return pairs


@pytest.mark.parametrize("seed", range(5))
def test_the_closest_boxes_are_partners_first(seed):
    generator = np.random.default_rng(seed)
    true = np.concatenate([generator.integers(0, 6, (40, 2)), np.full((40, 2), 5)], axis=1).astype(float)
    predicted = true[generator.permutation(40)[:30]] + generator.choice([0, 0.25, 0.5], (30, 4))
    here, there = instances(predicted), instances(true)
    pairs, _ = _match(here, there)
    found = {
        (next(i for i, o in enumerate(here) if o is a), next(j for j, o in enumerate(there) if o is b))
        for a, b in pairs
    }
    assert found == closest_first(predicted, true) and len(found) > 10


def test_partners_of_many_boxes_in_one_image_are_found_in_the_time_of_one_comparison():
    boxes = np.random.default_rng(0).random((2500, 4)) * 1000 + 10
    here, there = instances(boxes), instances(boxes + 0.1)
    start = time.thread_time()
    np.abs(boxes[:, None] - boxes[None]).max(axis=2)
    one_comparison = time.thread_time() - start
    start = time.thread_time()
    assert len(_match(here, there)[0]) == len(boxes)
    assert time.thread_time() - start < 4 * one_comparison


def test_the_size_that_a_file_states_bounds_no_memory(files):
    """700 bytes took 13 GB."""
    content = coco(annotations(PREDICTED))
    for image in content["images"]:
        image.update(width=60_000, height=60_000)
    for number, annotation in enumerate(content["annotations"]):
        annotation.update(segmentation=[[0, 0, 60_000, 0, 60_000, 60_000]], iscrowd=int(number == 3))
    for path in files:
        write(path, content)
    with pytest.raises(ValueError, match="no pair .* 60000 x 60000 pixels, more than max_pixels="):
        evaluate(*files)


def test_boxes_by_the_thousand_are_matched_in_little_memory():
    boxes = np.random.default_rng(0).uniform(0, 5000, (6000, 4))
    tracemalloc.start()
    pairs, _ = _match(instances(boxes), instances(boxes + 0.25))
    assert len(pairs) > 5990 and tracemalloc.get_traced_memory()[1] < 150e6  # 288 MB for a table of all
    tracemalloc.stop()
    with pytest.raises(ValueError, match="image .*: 4000 boxes of the predictions and 4000 .* lie at one place"):
        _match(instances(np.ones((4000, 4))), instances(np.ones((4000, 4)) + 0.5))


@pytest.mark.parametrize("seed", range(4))
def test_close_boxes_are_the_same_however_many_are_compared_at_a_time(monkeypatch, seed):
    rng = np.random.default_rng(seed)
    spread = [40, 40, 3, 3] if seed < 2 else [3, 0, 40, 3]
    boxes, targets = ((rng.random((count, 4)) * spread).round(seed % 2) for count in (150, 170))
    expected = _close_boxes(boxes, targets, "a")
    monkeypatch.setattr(evaluate_module, "_PAIRS_AT_ONCE", 50)
    found = _close_boxes(boxes, targets, "a")
    assert len(found[0]) > 20 and all(np.array_equal(a, b) for a, b in zip(found, expected))
    assert [len(part) for part in _close_boxes(boxes, np.full((150, 4), 900.0), "a")] == [0, 0, 0]


@pytest.mark.parametrize("varying", [(0, 1), (1,), (2, 3)])
def test_pairs_are_compared_only_where_boxes_lie_side_by_side(monkeypatch, varying):
    boxes = np.zeros((3000, 4))
    boxes[:, varying] = np.random.default_rng(0).uniform(0, 4000, (3000, len(varying)))
    monkeypatch.setattr(evaluate_module, "_PAIRS_AT_ONCE", 10_000)
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    compared = sum(len(here) * len(there) for here, there in evaluate_module._neighbours(corners, corners))
    assert compared < 600_000  # of 9 million


def test_images_that_are_no_list_are_an_error(tmp_path: Path):
    content = {"images": 0.5, "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    for name, images in (("predicted.json", 0.5), ("truth.json", [])):
        (tmp_path / name).write_text(json.dumps(content | {"images": images}))
    with pytest.raises(ValueError, match='predicted.json .* its "images" are no list'):
        evaluate(tmp_path / "predicted.json", tmp_path / "truth.json")
