import hashlib
import json
import os
import pickle
import subprocess
import sys
import tracemalloc
from shutil import copytree
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_run import changed
from torch import nn
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
from transformers.modeling_outputs import SemanticSegmenterOutput

from lpg_hf.data._examples import decode_image, label_map, row_boxes
from lpg_hf.generators.base import BoxedImage
from lpg_hf.generators.class_probs import SegmenterProbs
from lpg_hf.generators.lpg import LPGGenerator
from lpg_hf.label_maps import mask_name, read_label_map
from lpg_hf.masks.assembly import AssemblyOptions, assemble
from lpg_hf.metrics.mean_iou import ConfusionMatrix
from lpg_hf.training import masks as masks_module
from lpg_hf.training.config import flat
from lpg_hf.training.data import load_aux, load_eval, load_target
from lpg_hf.training.masks import ClassProbs, _size_batches, cache_class_probs, check_distinct, write_pseudo_masks
from lpg_hf.training.measure import measure_label_maps, measure_segmenter
from lpg_hf.training.models import Normalization, build_lpg, build_segmenter, lpg_processor
from lpg_hf.training.run import Run
from lpg_hf.training.stages import Stage, mask_stage


@pytest.fixture
def rows(accelerator, settings):
    return load_target(Run(accelerator, settings), masks=True)


def test_zero_based_corners_of_a_target_are_read_as_they_are(accelerator, settings, rows):
    zero_based = changed(settings, {"target.zero_based": True})
    for one, other in zip(rows, load_target(Run(accelerator, zero_based), masks=False), strict=True):
        assert (np.subtract(other["objects"]["bbox"], one["objects"]["bbox"]) == [1, 1, -1, -1]).all()
    with pytest.raises(ValueError, match="format 'coco' has no option zero_based"):
        load_aux(Run(accelerator, changed(settings, {"aux.zero_based": True})))


@pytest.fixture
def segmenter(settings):
    model, processor = build_segmenter(settings, ["a", "b", "c", "d"])
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.mul_(50)  # opinions strong enough to be measured
    return model.eval(), processor


def digests(folder):
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.rglob("*.png")}


class Local(nn.Module):
    """A segmenter at stride 8 that looks at nothing beyond its 8 x 8 pixels, so padding cannot reach the image."""

    dtype, config = torch.float32, SimpleNamespace(num_labels=5)

    def forward(self, pixel_values):
        mixed = pixel_values.new_tensor([[1, -1, 0], [0, 2, 1], [2, 0, -1], [-1, 1, 1], [1, 1, -2]])
        return SemanticSegmenterOutput(logits=torch.einsum("lc,bchw->blhw", mixed, F.avg_pool2d(pixel_values, 8)))


def cached_probs(run, segmenter, rows, folder):
    return cache_class_probs(run, lambda: segmenter, rows, folder, "p")


def test_cached_probabilities_are_those_of_the_segmenter(run, rows, segmenter, tmp_path):
    _, processor = segmenter
    model = Local()
    probs = cached_probs(run, (model, processor), rows, tmp_path)
    for index in range(len(rows)):
        image = decode_image(rows[index])
        height, width = image.shape[:2]
        pixels = F.pad(torch.from_numpy(Normalization.of(processor)(image))[None], (0, -width % 32, 0, -height % 32))
        at_8 = model(pixels).logits.softmax(dim=1)
        full = F.interpolate(at_8, size=pixels.shape[2:], mode="bilinear", align_corners=False)
        for label in set(row_boxes(rows[index])[1].tolist()):
            cached = probs(index, label)
            assert cached.shape == (height, width) and cached.dtype == np.uint8
            assert np.abs(cached / 255 - full[0, label, :height, :width].numpy()).max() < 2 / 255


@pytest.mark.parametrize("size", [(64, 64), (61, 75), (65, 32)])
def test_the_probabilities_of_a_deeplab_are_interpolated_from_every_eighth_pixel(segmenter, size):
    """Softmax first, as at the logits of training; the last logits lie on the border of the padded image."""
    model, processor = segmenter
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    [probs] = SegmenterProbs(model, processor)([image], [np.array([1, 3])])
    pixels = torch.from_numpy(Normalization.of(processor)(image))[None]
    pixels = F.pad(pixels, (0, -size[1] % 32 + 1, 0, -size[0] % 32 + 1))
    with torch.no_grad():
        at_8 = model.classifier(model.backbone(pixels)).softmax(dim=1)
    full = F.interpolate(at_8, size=pixels.shape[2:], mode="bilinear", align_corners=True)[0]
    assert set(probs) == {1, 3}
    for label, prob in probs.items():
        expected = full[label, : size[0], : size[1]].numpy()
        assert expected.std() > 0.05 and np.abs(prob / 255 - expected).max() < 2 / 255


@pytest.mark.parametrize("aligned", [True, False])
def test_what_an_lpg_is_trained_with_is_what_it_gets_in_use(run, rows, segmenter, segmenter_folder, tmp_path, aligned):
    if aligned:
        model, processor = segmenter
    else:
        model = AutoModelForSemanticSegmentation.from_pretrained(
            segmenter_folder, num_labels=5, ignore_mismatched_sizes=True
        )
        with torch.no_grad():
            model.decode_head.classifier.weight.mul_(5000)  # its logits differ by 1e-4 as they are drawn
        processor = AutoImageProcessor.from_pretrained(segmenter_folder)
    cached = cached_probs(run, (model, processor), rows, tmp_path)
    images, labels = [decode_image(row) for row in rows], [row_boxes(row)[1] for row in rows]
    for index, probs in enumerate(SegmenterProbs(model, processor)(images, labels)):
        assert set(probs) == set(labels[index].tolist())
        for label, prob in probs.items():
            assert prob.std() > 0 and np.abs(prob - cached(index, label).astype(float)).max() <= 2


def test_the_segmenter_runs_once_and_a_second_run_takes_the_files(run, rows, segmenter, tmp_path, monkeypatch):
    first = cached_probs(run, segmenter, rows, tmp_path)
    monkeypatch.setattr(type(segmenter[0]), "forward", lambda *a, **k: pytest.fail("ran again"))
    again = cached_probs(run, segmenter, rows, tmp_path)
    assert np.array_equal(first.values[0], again.values[0])
    cells = [(-(-(r["height"] - 1) // 8) + 1) * (-(-(r["width"] - 1) // 8) + 1) for r in rows]
    assert first.values[0].size == sum(n * len(set(r["objects"]["category"])) for n, r in zip(cells, rows))


def test_probabilities_of_other_rows_or_another_segmenter_are_never_taken(run, rows, segmenter, tmp_path, capsys):
    cached_probs(run, segmenter, rows, tmp_path)
    other_order = rows.select(range(len(rows) - 1, -1, -1))
    [expected] = SegmenterProbs(*segmenter)([decode_image(rows[-1])], [row_boxes(rows[-1])[1]])
    other_boxes = other_order.map(
        lambda row: {"objects": row["objects"] | {"category": [1] * len(row["objects"]["id"])}}
    )
    reversed_probs = cached_probs(run, segmenter, other_order, tmp_path).of_row(0)
    assert all(np.array_equal(reversed_probs[label], expected[label]) for label in expected)
    assert list(cached_probs(run, segmenter, other_boxes, tmp_path).of_row(0)) == [2]  # row values count from 0
    said = capsys.readouterr().out
    assert said.count("class_probs belongs to other rows: it is made again.") == 2
    with torch.no_grad():
        segmenter[0].classifier.convs[0].bias[2] += 1
    raised = cached_probs(run, segmenter, other_boxes, tmp_path).of_row(0)[2]
    assert raised.mean() > expected[2].mean() if 2 in expected else raised.any()
    assert "belongs to other segmenter" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["part0.uint8", "part0.npz"])
def test_a_damaged_cache_is_made_again(run, rows, segmenter, tmp_path, capsys, name):
    whole = cached_probs(run, segmenter, rows, tmp_path).values[0].copy()
    path = tmp_path / "class_probs" / name
    path.write_bytes(path.read_bytes()[:-1])
    assert np.array_equal(cached_probs(run, segmenter, rows, tmp_path).values[0], whole)
    assert "has not the size that was written" in capsys.readouterr().out


def test_a_worker_opens_the_cache_itself(run, rows, segmenter, tmp_path):
    """A spawned one gets the dataset pickled, and a pickled memory map is all its bytes."""
    rows = rows.select([*range(len(rows) - 1, 0, -1)])
    cached = cached_probs(run, segmenter, rows, tmp_path)
    sent = pickle.dumps(cached)
    assert len(sent) < 600 < cached.values[0].size
    opened = pickle.loads(sent)
    assert isinstance(opened.values[0], np.memmap)
    for index, row in enumerate(rows):
        ours, theirs = cached.of_row(index), opened.of_row(index)
        assert set(ours) == set(theirs) == set(row_boxes(row)[1].tolist())
        assert all(np.array_equal(ours[label], theirs[label]) for label in ours)


def test_the_index_of_the_cache_is_small_and_finds_the_maps_of_all_parts(tmp_path):
    """Rows are dealt out to the parts, and every fifth has no box."""
    n, starts, maps = 1000, [0, 0], ([], [])
    for row in range(n):
        for label in range(1, 1 + row % 5):
            maps[row % 2].append((row, label, starts[row % 2], 1, 2))
            starts[row % 2] += 2
    for part, of_part in enumerate(maps):
        (tmp_path / f"part{part}.uint8").write_bytes(bytes(label for _, label, *_ in of_part for _ in range(2)))
        covered = np.array([(0, 0, 2, 1) for _ in of_part], dtype=np.float64)
        np.savez(tmp_path / f"part{part}.npz", maps=np.array(of_part[::-1]), covered=covered)
    (tmp_path / "complete.json").write_text(json.dumps({"bytes": starts}))
    tracemalloc.start()
    probs = ClassProbs(tmp_path, {"height": [1] * n, "width": [2] * n})
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 200 * n  # of 80 bytes for two maps, and 50 for the image
    for row in range(n):
        found = probs.of_row(row)
        assert sorted(found) == [*range(1, 1 + row % 5)] and all((found[label] == label).all() for label in found)


def write(accelerator, settings, rows, folder, view="image", more=0.0):
    """`more`: foreground logit of the LPG, that makes it another one."""
    settings = changed(settings, {"lpg.processor.view": view, "lpg.processor.view_size": 32})
    model = another_lpg(settings, more)
    write_pseudo_masks(Run(accelerator, settings), model, lpg_processor(settings), rows, None, folder, "masks")


def another_lpg(settings, more):
    model = build_lpg(settings, False, None)
    with torch.no_grad():
        model.generator.head[-1].bias[1] += more
    return model


@pytest.mark.parametrize("view", ["image", "box"])
def test_masks_have_the_images_size_and_lie_inside_the_boxes_of_their_class(
    accelerator, settings, rows, tmp_path, view
):
    write(accelerator, settings, rows, tmp_path, view)
    found = 0
    for row in rows:
        mask = read_label_map(tmp_path / mask_name(row["file_name"]))
        assert mask.shape == (row["height"], row["width"])
        boxes, labels = row_boxes(row)
        for label in np.unique(mask[mask > 0]):
            inside = np.zeros(mask.shape, dtype=bool)
            for x1, y1, x2, y2 in boxes[labels == label]:
                inside[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))] = True
            assert inside[mask == label].all()
            found += 1
    assert found > 0 and (tmp_path / "complete.json").is_file()


def test_masks_follow_the_edges_of_the_image_if_they_are_to(accelerator, settings, rows, tmp_path):
    """They are those of the generator that serves the same stage elsewhere."""
    settings = changed(
        settings, {"lpg.processor.view": "box", "lpg.processor.view_size": 32, "lpg.processor.edge_radius": 1}
    )
    write(accelerator, changed(settings, {"lpg.processor.edge_radius": 0}), rows, tmp_path / "plain", "box")
    write(accelerator, settings, rows, tmp_path / "edges", "box")
    generator = LPGGenerator(build_lpg(settings, False, None), lpg_processor(settings))
    differ = 0
    for row in rows:
        found = read_label_map(tmp_path / "edges" / mask_name(row["file_name"]))
        image = BoxedImage(decode_image(row), *row_boxes(row))
        expected = assemble(
            image, (patch for _, patch in generator.patches([image], "class")), "class", AssemblyOptions(clean=False)
        ).label_map
        assert np.array_equal(found, expected)
        differ += (found != read_label_map(tmp_path / "plain" / mask_name(row["file_name"]))).sum()
    assert differ > 0


def test_a_killed_writing_ends_with_the_same_bytes(accelerator, settings, rows, tmp_path, monkeypatch):
    write(accelerator, settings, rows, tmp_path / "whole")
    original, count = masks_module.write_label_map, []

    def dying(path, label_map):
        count.append(path)
        if len(count) == 3:
            raise KeyboardInterrupt
        original(path, label_map)

    monkeypatch.setattr(masks_module, "write_label_map", dying)
    with pytest.raises(KeyboardInterrupt):
        write(accelerator, settings, rows, tmp_path / "killed")
    assert not (tmp_path / "killed" / "complete.json").exists()
    monkeypatch.setattr(masks_module, "write_label_map", original)
    write(accelerator, settings, rows, tmp_path / "killed")
    assert digests(tmp_path / "whole") == digests(tmp_path / "killed")
    assert len(digests(tmp_path / "whole")) == len(rows)


@pytest.mark.parametrize("of", ["another LPG", "an earlier version"])
def test_unfinished_masks_of_another_lpg_are_never_mixed_with_new_ones(
    accelerator, settings, rows, tmp_path, capsys, of
):
    write(accelerator, settings, rows, tmp_path / "whole", more=9.0)
    write(accelerator, settings, rows, tmp_path / "masks", more=0.0 if of == "another LPG" else -9.0)
    (tmp_path / "masks" / "complete.json").unlink()
    min((tmp_path / "masks").glob("*.png")).unlink()
    if of == "an earlier version":
        (tmp_path / "masks" / "belongs_to.json").unlink()
    assert digests(tmp_path / "whole").items().isdisjoint(digests(tmp_path / "masks").items())
    write(accelerator, settings, rows, tmp_path / "masks", more=9.0)
    assert digests(tmp_path / "whole") == digests(tmp_path / "masks")
    assert f"holds {len(rows) - 1} masks of another LPG, or does not tell whose: they are" in capsys.readouterr().out


def test_finished_masks_of_another_lpg_are_refused(accelerator, settings, rows, tmp_path):
    """A segmenter may have been trained on them. Those of an earlier version do not tell whose they are."""
    run, stage = Run(accelerator, settings), Stage("target", 1, tmp_path / "target" / "stage1")
    other = another_lpg(settings, 9.0), lpg_processor(settings)
    folder = mask_stage(run, stage, rows, (another_lpg(settings, 0.0), lpg_processor(settings)), None).folder
    before = digests(folder)
    with pytest.raises(
        ValueError, match=r"holds the masks of another LPG \(other weights\).*--run.dir.* or delete .*target"
    ):
        mask_stage(run, stage, rows, other, None)
    (folder / "belongs_to.json").unlink()
    mask_stage(run, stage, rows, other, None)
    assert digests(folder) == before


LOCALE_SCRIPT = """
import json, sys
from pathlib import Path
from accelerate import Accelerator
from tiny_run import settings_of
from lpg_hf.training.data import load_aux
from lpg_hf.training.run import Run
from lpg_hf.training.masks import write_pseudo_masks
from lpg_hf.training.models import build_lpg, lpg_processor
assert sys.getfilesystemencoding() == "ascii"
settings, folder = settings_of(json.loads(sys.argv[1])), Path(sys.argv[2])
accelerator, model = Accelerator(cpu=True), build_lpg(settings, False, None)
for _ in range(2):
    rows = load_aux(Run(accelerator, settings))
    write_pseudo_masks(Run(accelerator, settings), model, lpg_processor(settings), rows, None, folder, "masks")
    (folder / "complete.json").unlink()
"""


def test_masks_of_images_with_any_name_are_written_whatever_the_locale(settings, data, tmp_path):
    copytree(data / "aux", tmp_path / "aux")
    path = tmp_path / "aux" / "annotations.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    renamed = content["images"][0]["file_name"], "données/é.png"
    (tmp_path / "aux" / "images" / "données").mkdir()
    (tmp_path / "aux" / "images" / renamed[0]).rename(tmp_path / "aux" / "images" / renamed[1])
    content["images"][0]["file_name"] = renamed[1]
    path.write_text(json.dumps(content), encoding="utf-8")
    moved = {"aux.annotations": str(path), "aux.images": str(tmp_path / "aux" / "images")}
    arguments = [json.dumps(flat(settings) | moved), str(tmp_path / "masks")]
    locale = {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", LOCALE_SCRIPT, *arguments], env=os.environ | locale, check=True)
    assert (tmp_path / "masks" / "données" / "é.png").is_file() and len(digests(tmp_path / "masks")) == 8


def test_finished_masks_are_not_written_again(accelerator, settings, rows, tmp_path, monkeypatch):
    write(accelerator, settings, rows, tmp_path)
    monkeypatch.setattr(masks_module, "write_label_map", lambda *a: pytest.fail("written again"))
    write(accelerator, settings, rows, tmp_path)


def test_two_images_never_share_a_mask_file():
    assert mask_name("set1/a.jpg") == "set1/a.png"
    check_distinct(["set1/a.jpg", "set2/a.jpg"])
    with pytest.raises(ValueError, match="a.jpg and a.png"):
        check_distinct(["a.jpg", "a.png"])
    with pytest.raises(ValueError, match="two entries of the image a.png, .* one image id"):
        check_distinct(["a.png", "b.png", "a.png"])


def test_batches_hold_every_image_once_and_one_padded_size(rows):
    batches = _size_batches(rows, 4)
    assert sorted(i for batch in batches for i in batch) == list(range(len(rows)))
    assert max(len(batch) for batch in batches) <= 4


def test_label_maps_are_measured_as_a_plain_count_says(accelerator, settings, rows):
    rng = np.random.default_rng(0)
    maps = [rng.integers(0, 5, (row["height"], row["width"])).astype(np.uint8) for row in rows]
    maps[0][:5] = 255  # an abstention counts as background
    measured = measure_label_maps(Run(accelerator, settings), rows, 5, lambda index, row: maps[index])
    truth = np.concatenate([label_map(row).ravel() for row in rows]).astype(int)
    predicted = np.concatenate([np.where(m == 255, 0, m).ravel() for m in maps]).astype(int)
    ious = []
    for c in range(5):
        both = ((truth == c) & (predicted == c)).sum()
        ious.append(both / (((truth == c) | (predicted == c)) & (truth != 255)).sum())
    assert measured["mean_iou"] == pytest.approx(np.mean(ious))


def test_a_segmenter_is_measured_at_full_size_without_padding(accelerator, settings, segmenter):
    rows = load_eval(Run(accelerator, settings))
    model, processor = segmenter
    measured = measure_segmenter(Run(accelerator, settings), model, processor, rows, "m")
    confusion = ConfusionMatrix(5)
    for row in rows:
        image = decode_image(row)
        height, width = image.shape[:2]
        pixels = torch.from_numpy(Normalization.of(processor)(image))[None]
        pixels = F.pad(pixels, (0, -width % 32 + 1, 0, -height % 32 + 1))
        with torch.no_grad():
            logits = model(pixels).logits
        confusion.update(logits[0, :, :height, :width].argmax(0).numpy(), label_map(row))
    assert measured["per_class_iou"] == pytest.approx(confusion.compute()["per_class_iou"], nan_ok=True, abs=1e-3)
