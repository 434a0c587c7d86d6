import dataclasses
import io
import json
import pickle
from shutil import copytree

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image, ImageEnhance
from tiny_run import changed

from lpg_hf.data.load import load_boxes
from lpg_hf.models.views_lpg import View
from lpg_hf.training._labels import MaskLabels, SemiLabels, box_labels, true_labels
from lpg_hf.training._samples import LPGViews, Positions, SegmenterCrops, StepBatches, _jitter_color, step_loader
from lpg_hf.training.config import LPGSettings
from lpg_hf.training.data import load_aux, load_target
from lpg_hf.training.models import Normalization, lpg_processor
from lpg_hf.training.run import Run
from lpg_hf.training.steps import _micro_batches


class Entries(Positions):
    def sample(self, entry, rng, position):
        return {"entry": np.int64(entry), "draw": np.float64(rng.random()), "name": str(entry)}


NORMALIZATION = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def entries(samples, start, stop, batch_size=3, rank=0, processes=1, micro=None):
    section = LPGSettings(batch_size=batch_size, micro_batch_size=micro)
    batches = StepBatches(_micro_batches("lpg", section, processes), rank, start, stop)
    loader = step_loader(samples, batches, num_workers=0, pin_memory=False)
    return [value for batch in loader for value in zip(batch["entry"].tolist(), batch["draw"].tolist())]


def test_every_sample_comes_once_an_epoch_and_a_resumed_run_draws_the_rest():
    samples = Entries(20, 0, "phase")
    whole = entries(samples, 0, 20, batch_size=2)
    assert sorted(entry for entry, _ in whole[:20]) == list(range(20))
    assert sorted(entry for entry, _ in whole[20:]) == list(range(20))
    assert [e for e, _ in whole[:20]] != [e for e, _ in whole[20:]]
    assert entries(samples, 0, 4, batch_size=2) + entries(Entries(20, 0, "phase"), 4, 20, batch_size=2) == whole


@pytest.mark.parametrize("processes", [2, 3, 7])
@pytest.mark.parametrize("micro", [None, 1, 2])
def test_processes_share_the_global_batch_of_one(processes, micro):
    samples = Entries(7, 0, "phase")
    whole = entries(samples, 0, 3, batch_size=7)
    ranks = [entries(samples, 0, 3, 7, rank, processes, micro) for rank in range(processes)]
    shares = [len(drawn) // 3 for drawn in ranks]
    assert sum(shares) == 7 and max(shares) - min(shares) <= 1
    together = [v for step in range(3) for r, n in enumerate(shares) for v in ranks[r][n * step : n * step + n]]
    assert together == whole
    assert entries(samples, 0, 3, batch_size=7, micro=2) == whole


def test_micro_batches_are_even_and_no_larger_than_asked():
    assert _micro_batches("lpg", LPGSettings(batch_size=10, micro_batch_size=3), 1) == [[3, 3, 2, 2]]
    assert _micro_batches("lpg", LPGSettings(batch_size=10, micro_batch_size=1), 3) == [[1] * 4, [1] * 3, [1] * 3]
    assert _micro_batches("lpg", LPGSettings(batch_size=30, micro_batch_size=8), 4) == [[8], [8], [7], [7]]
    with pytest.raises(ValueError, match="lpg.batch_size=7 is less than one image for each of the 8 processes"):
        _micro_batches("lpg", LPGSettings(batch_size=7), 8)


@pytest.mark.parametrize("num_entries", [1, 5])
def test_fewer_samples_than_a_batch_still_fill_it(num_entries):
    drawn = entries(Entries(num_entries, 0, "phase"), 0, 2, batch_size=8)
    assert len(drawn) == 16 and {entry for entry, _ in drawn} == set(range(num_entries))
    assert len({draw for _, draw in drawn}) == 16  # the same image, another crop each time


def test_an_empty_phase_is_refused_by_name():
    with pytest.raises(ValueError, match="stage 1 LPG"):
        Entries(0, 0, "stage 1 LPG")


def test_samples_without_any_object_are_refused_by_name(settings, monkeypatch):
    rows = load_target(Run(Accelerator(cpu=True), settings), masks=False)
    with pytest.raises(ValueError, match="the phase has nothing to learn: none of the 6 label maps holds an object"):
        SegmenterCrops(rows, NORMALIZATION, settings, "the phase", empty_labels)
    monkeypatch.setattr("lpg_hf.training._samples.class_mask", lambda row, label: empty_labels(0, row))
    with pytest.raises(ValueError, match="phase has nothing to learn: in none of .* views"):
        lpg_views(settings)


def empty_labels(index, row):
    return np.full((row["height"], row["width"]), 255 * (index % 2), dtype=np.uint8)


def test_phases_and_seeds_draw_differently():
    streams = [entries(Entries(9, seed, phase), 0, 3) for seed, phase in ((0, "a"), (0, "b"), (1, "a"))]
    assert streams[0] != streams[1] and streams[0] != streams[2]


def lpg_views(settings):
    rows = load_aux(Run(Accelerator(cpu=True), settings))
    return LPGViews(rows, lpg_processor(settings), settings, "phase", None)


@pytest.mark.parametrize("view", ["image", "box"])
@pytest.mark.parametrize("size", [(1, 60), (60, 1)])
def test_an_image_one_pixel_high_or_wide_is_trained_on(settings, tmp_path, view, size):
    height, width = size
    x, y = (width - 1) // 2, (height - 1) // 2  # The object is the second half.
    Image.new("RGB", (width, height), "red").save(tmp_path / "a.png")
    outline = [x, y, width, y, width, height, x, height]
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": [outline]}
    annotation["bbox"] = [x, y, width - x, height - y]
    image = {"id": 1, "file_name": "a.png", "width": width, "height": height}
    content = {"images": [image], "annotations": [annotation], "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    rows = load_boxes(tmp_path / "a.json", masks=True)
    changes = {"lpg.processor.view": view, "lpg.min_box_side": 0, "lpg.degrade": 0.5 * (view == "box")}
    thin = changed(settings, changes | {"lpg.color_jitter": 0.2})
    views = LPGViews(rows, lpg_processor(thin), thin, "phase", None)
    crops = SegmenterCrops(rows, NORMALIZATION, thin, "phase", true_labels)
    for samples in (views, crops):
        drawn = [samples[position] for position in range(12)]
        assert all(np.isfinite(sample["pixel_values"]).all() for sample in drawn)
        assert any((sample["labels"] == 1).any() for sample in drawn)


@pytest.mark.parametrize("view", ["image", "box"])
def test_samples_do_not_depend_on_the_number_of_workers(settings, view):
    samples = lpg_views(changed(settings, {"lpg.processor.view": view, "lpg.processor.view_size": 32}))
    batches = StepBatches([[4]], 0, 0, 3)
    alone = list(step_loader(samples, batches, 0, False))
    shared = list(step_loader(samples, batches, 2, False))
    for one, other in zip(alone, shared, strict=True):
        assert one["names"] == other["names"]
        for name in ("pixel_values", "box_mask", "labels"):
            assert torch.equal(one[name], other[name])
    assert not torch.equal(alone[0]["pixel_values"], alone[1]["pixel_values"])


def test_what_workers_need_can_be_sent_to_spawned_ones(settings, tmp_path):
    """Platforms without fork, and fork with threads, start new workers."""
    run = Run(Accelerator(cpu=True), settings)
    rows, truth = load_target(run, masks=False), load_target(run, masks=True)
    labels = SemiLabels(MaskLabels(tmp_path), truth, {name: i for i, name in enumerate(rows["file_name"])})
    samples = SegmenterCrops(rows, NORMALIZATION, settings, "phase", labels)
    batches = StepBatches([[2]], 0, 0, 1)
    (alone,) = step_loader(samples, batches, 0, False)
    loader = step_loader(samples, batches, 1, False)
    loader.multiprocessing_context = "spawn"
    (sent,) = loader
    assert torch.equal(sent["labels"], alone["labels"]) and sent["labels"].any()
    for other in (box_labels, true_labels, lpg_views(settings)):
        pickle.dumps(other)


def test_an_image_view_is_a_class_and_a_box_view_is_a_box(settings):
    rows = load_aux(Run(Accelerator(cpu=True), settings))
    classes = sum(len(set(row["objects"]["category"])) for row in rows)
    boxes = sum(len(row["objects"]["category"]) for row in rows)
    assert lpg_views(settings).num_entries == classes
    assert lpg_views(changed(settings, {"lpg.processor.view": "box"})).num_entries == boxes
    assert boxes > classes


def test_small_boxes_are_skipped_in_training_on_request(settings):
    everything = lpg_views(changed(settings, {"lpg.processor.view": "box"})).num_entries
    large = lpg_views(changed(settings, {"lpg.processor.view": "box", "lpg.min_box_side": 20.0})).num_entries
    assert 0 < large < everything


def test_labels_of_a_view_are_the_class_the_rest_and_padding(settings):
    samples = lpg_views(changed(settings, {"lpg.crop_size": 96, "lpg.scales": [1.0]}))
    areas = {row["height"] * row["width"] for row in samples.rows}
    for position in range(8):
        labels = samples[position]["labels"]
        assert set(np.unique(labels)) == {0, 1, 255} and (labels != 255).sum() in areas
    parity = lpg_views(changed(settings, {"lpg.crop_size": 96, "lpg.scales": [1.0], "lpg.pad_label": 0}))
    assert set(np.unique(parity[0]["labels"])) == {0, 1}


def test_low_detail_takes_detail_and_nothing_else(settings):
    boxes = changed(settings, {"lpg.processor.view": "box", "lpg.processor.view_size": 48})
    plain, reduced = lpg_views(boxes), lpg_views(changed(boxes, {"lpg.low_detail": 1.0}))

    def roughness(sample):
        return np.abs(np.diff(sample["pixel_values"], axis=2)).mean()

    for position in range(8):
        one, other = plain[position], reduced[position]
        assert all(np.array_equal(one[name], other[name]) for name in ("box_mask", "labels"))
        assert roughness(other) < roughness(one)


def test_an_object_is_learnt_without_the_others_of_its_class(settings):
    """Somewhere in the data two objects of a class share a view; elsewhere both targets agree."""
    boxes = changed(
        settings, {"lpg.processor.view": "box", "lpg.processor.view_size": 48, "lpg.context_range": [0.5, 1.0]}
    )
    of_class, of_object = lpg_views(boxes), lpg_views(changed(boxes, {"lpg.target": "object"}))
    lost = 0
    for position in range(of_class.num_entries):
        one, other = of_class[position]["labels"], of_object[position]["labels"]
        assert np.array_equal(one == 255, other == 255) and (one[other == 1] == 1).all() and (other == 1).any()
        lost += int(((one == 1) & (other == 0)).any())
    assert 0 < lost < of_class.num_entries


def test_colour_jitter_changes_colours_and_nothing_else(settings):
    plain, jittered = lpg_views(settings), lpg_views(changed(settings, {"lpg.color_jitter": 0.3}))
    one, other = plain[0], jittered[0]
    assert all(np.array_equal(one[name], other[name]) for name in ("box_mask", "labels"))
    assert not np.array_equal(one["pixel_values"], other["pixel_values"])


def test_colour_jitter_is_that_of_pillow_inside_the_view():
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    view = View(1, np.zeros((1, 4), np.float32), (10, -5, 40, 25), (30, 30))
    jittered = _jitter_color(image, view, 0.4, np.random.default_rng(1))
    factors, expected = np.random.default_rng(1), Image.fromarray(image)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        expected = enhance(expected).enhance(factors.uniform(0.6, 1.4))
    inside = np.s_[:25, 10:40]
    assert np.array_equal(jittered[inside], np.asarray(expected)[inside])
    jittered[inside] = image[inside]
    assert np.array_equal(jittered, image)


def test_views_grow_in_the_course_of_training_whatever_the_start(settings):
    steps = {"lpg.processor.view": "box", "lpg.steps": 3, "lpg.batch_size": 2}
    growing = lpg_views(changed(settings, steps | {"lpg.view_sizes": [32, 48]}))
    sides = [growing[position]["labels"].shape[0] for position in range(8)]
    assert sides == [32, 32, 32, 32, 48, 48, 48, 48]  # steps 0 and 1, then step 2 and any beyond the last
    fixed = lpg_views(changed(settings, steps | {"lpg.processor.view_size": 48}))
    assert np.array_equal(fixed[5]["pixel_values"], growing[5]["pixel_values"])


def test_a_box_that_fits_badly_keeps_the_mask_of_its_object(settings):
    boxes = {"lpg.processor.view": "box", "lpg.processor.view_size": 48, "lpg.box_jitter": 0.0}
    noisy, tight = (lpg_views(changed(settings, boxes | {"lpg.box_noise": 1.0})) for _ in range(2))
    noisy.augmentation = dataclasses.replace(noisy.augmentation, noise_range=(0.3, 0.3))
    tight.augmentation = dataclasses.replace(tight.augmentation, noise_range=(-0.15, -0.15))
    for position in range(6):
        loose, cut = noisy[position], tight[position]
        assert not ((loose["labels"] == 1) & (loose["box_mask"][0] == 0)).any()
        assert ((cut["labels"] == 1) & (cut["box_mask"][0] == 0)).any()


def test_degraded_views_are_grey_noisy_or_blurred_and_nothing_else_changes(settings):
    boxes = changed(settings, {"lpg.processor.view": "box", "lpg.processor.view_size": 48})
    plain, degraded = lpg_views(boxes), lpg_views(changed(boxes, {"lpg.degrade": 1.0}))
    processor = boxes.lpg.processor
    mean, std = (np.array(processor[name], np.float32)[:, None, None] for name in ("image_mean", "image_std"))
    kinds = set()
    for position in range(16):
        one, other = plain[position], degraded[position]
        assert np.array_equal(one["box_mask"], other["box_mask"])
        before, after = (s["pixel_values"] * std + mean for s in (one, other))
        if np.ptp(after[:, 16:32, 16:32], axis=0).max() < 0.01:
            kinds.add("grey")
        else:
            rougher = np.abs(np.diff(after)).mean() > np.abs(np.diff(before)).mean()
            kinds.add("noisy" if rougher else "blurred")
    assert kinds == {"grey", "noisy", "blurred"}


def test_the_class_probability_is_dropped_for_whole_samples_in_the_wanted_share(settings):
    rows = load_aux(Run(Accelerator(cpu=True), settings))

    def probs(index, label):
        return np.full((rows[index]["height"], rows[index]["width"]), 200, dtype=np.uint8)

    dropping = changed(settings, {"lpg.class_prob_dropout": 0.5})
    samples = LPGViews(rows, lpg_processor(settings), dropping, "phase", probs)
    kept = [samples[position]["class_prob"].max() > 0 for position in range(60)]
    assert 15 < sum(kept) < 45
    for position, is_kept in enumerate(kept):
        if is_kept:
            assert np.isclose(samples[position]["class_prob"].max(), 200 / 255)


def test_segmenter_crops_move_image_and_labels_together(settings):
    """The label map is the image's own red channel, so they must stay equal under scale, pad, crop and flip."""
    rows = load_target(Run(Accelerator(cpu=True), settings), masks=False)

    def red(index, row, epoch=None):
        from lpg_hf.data._examples import decode_image

        return decode_image(row)[..., 0].copy()

    samples = SegmenterCrops(rows, NORMALIZATION, changed(settings, {"segmenter.scales": [1.0]}), "p", red)
    for position in range(8):
        sample = samples[position]
        pixels = np.rint((sample["pixel_values"][0] * 0.5 + 0.5) * 255)
        inside = sample["labels"] != 255
        assert inside.mean() > 0.9 and np.array_equal(pixels[inside], sample["labels"][inside])


def test_difficult_objects_are_dropped_on_request_with_all_that_belongs_to_them(data, settings, tmp_path):
    root = tmp_path / "target"
    copytree(data / "target", root)
    for path in (root / "Annotations").glob("train_*.xml"):
        path.write_text(path.read_text().replace("<difficult>0<", "<difficult>1<", 1))  # the first object of each
    settings = changed(settings, {"target.root": str(root)})
    everything = load_target(Run(Accelerator(cpu=True), settings), masks=False)
    easy = load_target(Run(Accelerator(cpu=True), changed(settings, {"target.drop_difficult": True})), masks=False)
    several = [row for row in everything if len(row["objects"]["id"]) > 1]
    for row, kept in zip(several, easy, strict=True):
        assert any(row["objects"]["difficult"]) and not any(kept["objects"]["difficult"])
        assert kept["objects"] == {name: values[1:] for name, values in row["objects"].items()}


def test_a_box_without_a_pixel_of_its_class_teaches_nothing(settings):
    rows = load_target(Run(Accelerator(cpu=True), settings), masks=True)

    def without_its_pixels(row: dict, box: list[float]) -> dict:
        labels = np.array(Image.open(row["mask"]["path"]))
        x, y, width, height = map(round, box)
        labels[y : y + height, x : x + width] = 0
        mask = Image.fromarray(labels).convert("L")
        buffer = io.BytesIO()
        mask.save(buffer, "PNG")
        return row | {"mask": {"bytes": buffer.getvalue(), "path": None}}

    index = next(
        i for i, row in enumerate(rows) if len(set(row["objects"]["category"])) < len(row["objects"]["category"])
    )
    categories = rows[index]["objects"]["category"]
    first = next(i for i, category in enumerate(categories) if categories.count(category) > 1)
    rows = rows.map(
        lambda row, i: without_its_pixels(row, row["objects"]["bbox"][first]) if i == index else row, with_indices=True
    )
    box_views = changed(settings, {"lpg.processor.view": "box", "lpg.processor.view_size": 32})
    samples = LPGViews(rows, lpg_processor(box_views), box_views, "phase", None)
    taught = [
        bool((samples.sample(entry, np.random.default_rng(0), 0)["labels"] != 255).any())
        for entry, (row, _) in enumerate(samples.entries)
        if row == index
    ]
    assert not taught[first] and any(
        of_box for i, of_box in enumerate(taught) if i != first and categories[i] == categories[first]
    )
