import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask

from benchmarks import lpg_small
from benchmarks.lpg_small import bundle
from lpg_hf import LPGConfig, LPGImageProcessor, LPGModel


@pytest.fixture
def stage(tmp_path):
    torch.manual_seed(0)
    sizes = {"embedding_size": 4, "hidden_sizes": (6, 8), "depths": (1, 1), "neck_size": 8, "head_size": 6}
    model = LPGModel(LPGConfig(use_class_prob=False, object_loss_weight=1.2, **sizes)).half().float().eval()
    LPGImageProcessor(view="box", view_size=32).save_pretrained(tmp_path / "stage")
    model.save_pretrained(tmp_path / "stage")
    metrics = {"kind": "lpg", "stage": 1, "settings": {}, "foreground_iou": {"here": 0.5}}
    (tmp_path / "stage" / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    return tmp_path / "stage"


def logit(folder) -> torch.Tensor:
    model, seen = LPGModel.from_pretrained(folder, dtype=torch.float32), torch.Generator().manual_seed(1)
    with torch.no_grad():
        logits = model(torch.randn(1, 3, 32, 32, generator=seen), torch.ones(1, 1, 32, 32)).logits
    return logits[0, 1] - logits[0, 0]


def test_a_stage_gets_another_weight_of_the_object_and_edges_after_training(stage, tmp_path):
    """The odds that a loss asks for are those of the object times its weight."""
    bundle(stage, {}, {}, tmp_path / "new", object_weight=1.8, edge_radius=2)
    torch.testing.assert_close(
        (logit(tmp_path / "new") - logit(stage)).exp(), torch.full((8, 8), 1.5), atol=3e-3, rtol=0
    )
    assert LPGConfig.from_pretrained(tmp_path / "new").object_loss_weight == 1.8
    assert LPGImageProcessor.from_pretrained(tmp_path / "new").edge_radius == 2
    metrics = json.loads((tmp_path / "new" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["after_training_object_loss_weight"] == 1.8 and metrics["after_training_edge_radius"] == 2
    assert metrics["foreground_iou"] == {"here": 0.5}  # nothing was measured anew
    card = (tmp_path / "new" / "README.md").read_text(encoding="utf-8")
    assert "Set after training: object_loss_weight 1.8, edge_radius 2." in card


def test_a_stage_is_bundled_as_it_is_with_what_was_measured(stage, tmp_path):
    rows = [
        {"generator": "lpg", "scores": {"foreground_iou": 0.71234, "mean_box_iou": 0.6}},
        {"generator": "box", "scores": {"foreground_iou": 0.3, "mean_box_iou": 0.2}},
    ]
    (tmp_path / "voc.json").write_text(json.dumps({"rows": rows}), encoding="utf-8")
    measured, twins = {"VOC": tmp_path / "voc.json"}, {"a twin": tmp_path / "voc.json"}
    bundle(stage, measured, twins, tmp_path / "new")
    assert torch.equal(logit(tmp_path / "new"), logit(stage))
    metrics = json.loads((tmp_path / "new" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["foreground_iou"] == {"VOC": 0.7123} and metrics["baseline_box_mean_box_iou"] == {"VOC": 0.2}
    assert metrics["baseline_unseen_classes_twin_mean_box_iou"] == {"a twin": 0.6} and metrics["measured_on"] == "VOC"
    assert "0.7123" in (tmp_path / "new" / "README.md").read_text(encoding="utf-8")


def write_folder(folder, file_names, boxes_of, seeds):
    """Photographs of 40 x 40 with a pattern each, and objects that fill their boxes; the COCO content."""
    (folder / "images").mkdir(parents=True)
    annotations = []
    for number, (name, boxes) in enumerate(zip(file_names, boxes_of)):
        seen = np.random.default_rng(seeds[number]).integers(0, 255, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(seen).resize((40, 40), Image.Resampling.BICUBIC).save(folder / "images" / name)
        for x, y, width, height in boxes:
            mask = np.zeros((40, 40), np.uint8, order="F")
            mask[y : y + height, x : x + width] = 1
            rle = {"size": [40, 40], "counts": coco_mask.encode(mask)["counts"].decode()}
            item = {"id": len(annotations), "image_id": number, "bbox": [x, y, width, height], "segmentation": rle}
            annotations.append(item | {"area": width * height, "iscrowd": 0, "category_id": 3})
    return {
        "images": [{"id": i, "file_name": name, "width": 40, "height": 40} for i, name in enumerate(file_names)],
        "annotations": annotations,
        "categories": [{"id": 3, "name": "deer"}, {"id": 4, "name": "cat"}],
    }


@pytest.fixture
def photographs(tmp_path):
    """Photograph c of "more" is one of a domain, mirrored; the last has the id of one that is measured on."""
    names = ["a.png", "b.png", "c.png", "000000000139_jpg.rf.0.png"]
    boxes = [[[2, 2, 9, 9], [20, 20, 5, 5], [1, 20, 12, 12]], [[0, 0, 9, 9]], [[0, 0, 9, 9]], [[0, 0, 9, 9]]]
    more = write_folder(tmp_path / "more/animals", names, boxes, (1, 2, 3, 4))
    (tmp_path / "more/animals/instances.json").write_text(json.dumps(more))
    write_folder(tmp_path / "domains/fruit", ["x.png", "y.png"], [[], []], (3, 6))
    with Image.open(tmp_path / "domains/fruit/images/x.png") as image:
        mirrored = ImageOps.mirror(image).resize((90, 60))
    mirrored.save(tmp_path / "domains/fruit/images/x.png")
    val = write_folder(tmp_path / "coco", ["000000000139.png"], [[]], (7,))
    val["images"][0]["id"] = 139
    (tmp_path / "coco/instances_nonvoc_val.json").write_text(json.dumps(val))
    (tmp_path / "voc/ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "voc/ImageSets/Segmentation/val_mix.txt").write_text("")
    return tmp_path


def test_a_folder_is_joined_as_often_as_it_weighs_with_its_largest_objects(photographs):
    content = {
        "images": [{"id": 9}],
        "annotations": [{"id": 5}],
        "categories": [{"id": 17, "name": "cat"}, {"id": 90, "name": "toothbrush"}],
    }
    lpg_small._add(content, photographs, lpg_small.Folder("animals", repeat=2, num_largest=2))
    assert len(content["images"]) == 1 + 2 * 4 and len(content["annotations"]) == 1 + 2 * 5
    assert len({image["id"] for image in content["images"]}) == 9
    assert len({item["id"] for item in content["annotations"]}) == 11
    assert content["categories"][2:] == [{"id": 91, "name": "deer"}]  # the cat is there already
    first = [item for item in content["annotations"] if item.get("image_id") == 10]
    assert [item["area"] for item in first] == [144, 81] and {item["category_id"] for item in first} == {91}
    assert content["images"][1]["file_name"] == "more/animals/images/a.png"


def test_photographs_that_are_measured_on_are_found_by_their_id_and_by_what_they_show(photographs):
    names = [f"more/animals/images/{name}" for name in ("a.png", "b.png", "c.png", "000000000139_jpg.rf.0.png")]
    assert lpg_small._measured_on(photographs, names) == set(names[2:])


def test_twins_have_not_seen_the_objects_of_the_classes_that_they_are_measured_on():
    categories = [{"id": 1, "name": "person"}, {"id": 24, "name": "zebra"}, {"id": 91, "name": "deer"}]
    objects = [(1, 1, 0), (1, 24, 0), (2, 1, 0), (2, 24, 1), (3, 91, 0), (3, 1, 1)]
    content = {
        "images": [{"id": number} for number in (1, 2, 3)],
        "annotations": [{"image_id": i, "category_id": c, "iscrowd": crowd} for i, c, crowd in objects],
        "categories": categories,
    }
    for unseen, images, classes in (("voc", [1, 3], [24, 91]), ("coco60", [1, 2, 3], [1, 91])):
        kept = lpg_small.without(content, unseen)
        assert [image["id"] for image in kept["images"]] == images
        assert [category["id"] for category in kept["categories"]] == classes
        assert {item["category_id"] for item in kept["annotations"]} == set(classes)


@pytest.mark.parametrize(
    "options, has_clothes", [(["--unseen", "voc"], False), (["--unseen", "coco60"], True), ([], True)]
)
def test_a_twin_that_may_not_see_people_sees_no_clothes(tmp_path, monkeypatch, options, has_clothes):
    asked = []
    empty = {"images": [], "annotations": [], "categories": []}
    monkeypatch.setattr(lpg_small, "joined", lambda root, more: asked.extend(more) or empty)
    monkeypatch.setattr("sys.argv", ["lpg_small", "data", str(tmp_path), str(tmp_path / "x.json"), "--more", *options])
    lpg_small.main()
    names = [folder.name for folder in asked]
    assert "animals7" in names and ("clothing_ccp" in names) == has_clothes


def test_an_archive_is_all_that_another_machine_needs(photographs, tmp_path):
    names = ["more/animals/images/a.png", "more/animals/images/b.png"]
    content = {"images": [{"file_name": name} for name in (*names, names[0])]}
    lpg_small.write_archive(tmp_path / "x.tar", content, photographs)
    with tarfile.open(tmp_path / "x.tar") as archive:
        assert archive.getnames() == ["boxes.json", *names]
        archive.extractall(tmp_path / "there", filter="data")
    assert json.loads((tmp_path / "there/boxes.json").read_text()) == content
    assert (tmp_path / "there" / names[1]).read_bytes() == (photographs / names[1]).read_bytes()


def test_the_card_tells_where_the_data_of_a_generator_came_from(stage, tmp_path):
    bundle(stage, {}, {}, tmp_path / "new", name="lpg-base")
    card = (tmp_path / "new" / "README.md").read_text(encoding="utf-8")
    assert all(note in card for note in lpg_small.NOTES["lpg-base"]) and lpg_small.DATASETS["lpg-base"] in card


def test_a_stage_of_a_run_before_the_sections_is_bundled_with_the_settings_as_it_recorded_them(stage, tmp_path):
    metrics = json.loads((stage / "metrics.json").read_text(encoding="utf-8"))
    flat = {"run_dir": "lpg_base", "segmenter": None, "view": "box", "lpg_config": {"dice_loss_weight": 1}}
    flat |= {"lpg_schedule": "cosine", "lpg_warmup": 0.02, "lpg_view_sizes": [], "lpg_box_noise_range": [-0.15, 0.3]}
    (stage / "metrics.json").write_text(json.dumps(metrics | {"settings": flat}), encoding="utf-8")
    bundle(stage, {}, {}, tmp_path / "new", edge_radius=1, name="lpg-base")
    assert json.loads((tmp_path / "new" / "metrics.json").read_text(encoding="utf-8"))["settings"] == flat
    card = (tmp_path / "new" / "README.md").read_text(encoding="utf-8")
    assert "| lpg_warmup | 0.02 |" in card and '| lpg_config | {"dice_loss_weight": 1} |' in card
