import io
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import MobileNetV2ImageProcessorPil, SegformerForSemanticSegmentation

from lpg_hf import LPGImageProcessor, load_generator
from lpg_hf.devices import usable_device
from lpg_hf.generators._grabcut import GrabCutGenerator
from lpg_hf.generators._sam import SAMGenerator
from lpg_hf.generators.base import BoxedImage
from lpg_hf.generators.class_probs import SegmenterProbs
from lpg_hf.generators.lpg import LPGGenerator, _inference_copy
from lpg_hf.training.models import load_segmenter
from tests.conftest import tiny_lpg


def make_image(height: int = 45, width: int = 61, seed: int = 0) -> BoxedImage:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
    boxes = np.array([[3, 4, 30, 40], [20, 10, 55.5, 33], [40, 2, 60, 20]], dtype=np.float32)
    return BoxedImage(image, boxes, np.array([2, 1, 2]))


def foreground(patches, height: int = 45, width: int = 61) -> dict[int, np.ndarray]:
    """Class -> (H, W), as `assemble` merges patches."""
    merged: dict[int, np.ndarray] = {}
    for _, patch in patches:
        full = merged.setdefault(patch.label, np.zeros((height, width), dtype=np.float32))
        full[patch.rows, patch.columns] = np.maximum(full[patch.rows, patch.columns], patch.foreground)
    return merged


@pytest.mark.parametrize("edge_radius", [0, 1])
@pytest.mark.parametrize("view", ["image", "box"])
@pytest.mark.parametrize("backbone", ["hourglass", "squeezenet", "resnet18", "vgg16", "auto"])
def test_per_class_equals_the_processors_own_way(view: str, backbone: str, edge_radius: int):
    torch.manual_seed(0)
    fields = {"backbone": backbone, "decoder_size": 8, "context_size": 8, "stem_size": 8}
    if backbone == "auto":
        sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}
        fields["backbone_config"] = {"model_type": "resnet", "layer_type": "basic", **sizes}
    model = tiny_lpg(**fields) if backbone == "hourglass" else tiny_lpg_of(backbone, fields)
    processor = LPGImageProcessor(view=view, view_size=64, edge_radius=edge_radius)
    image = make_image()
    inputs = processor(image.image, boxes=image.boxes, box_labels=image.labels, return_tensors="pt")
    with torch.inference_mode():
        outputs = model(inputs["pixel_values"], inputs["box_mask"])
    size = image.image.shape[:2]
    expected = processor.post_process_foreground(outputs, inputs["views"], [size], images=image.image)[0]
    found = foreground(LPGGenerator(model, processor).patches([image], "class"))
    assert set(found) == set(expected["labels"].tolist())
    for label, one in zip(expected["labels"].tolist(), expected["foreground"].numpy()):
        np.testing.assert_allclose(found[label], one, atol=1e-5)


def tiny_lpg_of(backbone: str, fields: dict):
    from lpg_hf import LPGConfig, LPGModel

    return LPGModel(LPGConfig(use_class_prob=False, **fields)).eval()


def test_region_gives_the_same_logits_where_they_are_asked_for():
    model = tiny_lpg(hidden_sizes=(8, 8, 8), depths=(2, 1, 1))
    pixels, box_mask = torch.randn(1, 3, 128, 96), torch.ones(1, 1, 128, 96)
    rows, columns = slice(12, 20), slice(0, 9)
    with torch.inference_mode():
        everywhere = model(pixels, box_mask).logits
        there = model(pixels, box_mask, region=(rows, columns)).logits
    assert there.shape == everywhere.shape
    torch.testing.assert_close(there[:, :, rows, columns], everywhere[:, :, rows, columns], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(there, everywhere, atol=1e-3)  # elsewhere nothing was computed


def test_instances_of_an_image_view_are_seen_one_by_one():
    generator = LPGGenerator(tiny_lpg(), LPGImageProcessor(view="image"))
    image = make_image()
    alone = BoxedImage(image.image, image.boxes[:1], image.labels[:1])
    (_, expected), *_ = generator.patches([alone], "class")
    patches = [patch for _, patch in generator.patches([image], "instance")]
    assert [patch.boxes for patch in patches] == [(0,), (1,), (2,)]
    np.testing.assert_allclose(patches[0].foreground, expected.foreground, atol=1e-6)
    assert [patch.boxes for _, patch in generator.patches([image], "class")] == [(0, 2), (1,)]


@pytest.mark.parametrize("batch_size", [1, 2, 7])
@pytest.mark.parametrize("view", ["image", "box"])
def test_batches_do_not_change_the_result(view: str, batch_size: int):
    processor = LPGImageProcessor(view=view, view_size=32)
    images = [
        make_image(),
        make_image(50, 64, seed=1),
        BoxedImage(make_image().image, np.empty((0, 4), np.float32), np.array([])),
    ]
    one = list(LPGGenerator(tiny_lpg(), processor, batch_size=1).patches(images, "instance"))
    many = list(LPGGenerator(tiny_lpg(), processor, batch_size=batch_size).patches(images, "instance"))
    assert [position for position, _ in one] == [position for position, _ in many] == [0, 0, 0, 1, 1, 1]
    for (_, a), (_, b) in zip(one, many):
        np.testing.assert_allclose(a.foreground, b.foreground, atol=1e-5)


@pytest.mark.parametrize("view", ["image", "box"])
def test_flip_averages_with_what_the_mirrored_image_gives(view: str):
    torch.manual_seed(0)
    model, processor = tiny_lpg(), LPGImageProcessor(view=view, view_size=64, view_context=0.25)
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    box = np.array(
        [[10, 12, 42, 44]], dtype=np.float32
    )  # its window is 48 pixels wide and lies the same in the mirror
    pair = [
        BoxedImage(image, box, np.array([1])),
        BoxedImage(image[:, ::-1], box * [-1, 1, -1, 1] @ np.eye(4)[[2, 1, 0, 3]] + [64, 0, 64, 0], np.array([1])),
    ]
    plain, mirrored = (foreground(LPGGenerator(model, processor).patches([one], "class"), 64, 64)[1] for one in pair)
    both = foreground(LPGGenerator(model, processor, flip=True).patches(pair[:1], "class"), 64, 64)[1]
    np.testing.assert_allclose(both, (plain + mirrored[:, ::-1]) / 2, atol=1e-5)
    assert np.abs(both - plain).max() > 1e-3


def test_threads_get_what_one_thread_gets():
    generator = LPGGenerator(tiny_lpg(), LPGImageProcessor(view="box", view_size=32), batch_size=2)
    images = [make_image(seed=seed) for seed in range(8)]
    expected = [foreground(generator.patches([image], "class")) for image in images]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda image: foreground(generator.patches([image], "class")), images))
    for a, b in zip(expected, found):
        assert all(np.array_equal(a[label], b[label]) for label in a)


def test_norms_behind_a_convolution_of_another_kind_are_not_folded():
    class Doubled(torch.nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    model = tiny_lpg()
    size = model.config.neck_size
    model.generator.neck = torch.nn.Sequential(Doubled(size, size, 1), torch.nn.BatchNorm2d(size)).eval()
    model.generator.neck[1].running_var.fill_(0.5)
    pixels, box_mask = torch.randn(1, 3, 32, 32), torch.ones(1, 1, 32, 32)
    with torch.inference_mode():
        expected = model(pixels, box_mask).logits
        torch.testing.assert_close(_inference_copy(model)(pixels, box_mask).logits, expected, atol=1e-5, rtol=1e-5)


def test_folding_norms_leaves_the_model_alone_and_the_result_the_same():
    model = tiny_lpg()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pixels, box_mask = torch.randn(2, 3, 32, 32), torch.ones(2, 1, 32, 32)
    copy = _inference_copy(model)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in copy.modules())
    with torch.inference_mode():
        torch.testing.assert_close(copy(pixels, box_mask).logits, model(pixels, box_mask).logits, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_bfloat16_masks_agree_with_float32_on_more_than_99_percent_of_the_pixels():
    model, processor = tiny_lpg(), LPGImageProcessor()
    images = [make_image(200, 240, seed=seed) for seed in range(3)]
    full = LPGGenerator(model, processor)
    half = LPGGenerator(model, processor, dtype=torch.bfloat16)
    agree = total = 0
    for image in images:
        a, b = (foreground(g.patches([image], "class"), 200, 240) for g in (full, half))
        for label in a:
            agree += int(((a[label] > 0.5) == (b[label] > 0.5)).sum())
            total += a[label].size
    assert agree / total > 0.99


def test_class_probability_comes_from_the_segmenter_or_from_the_caller(segmenter_folder):
    model, processor = tiny_lpg(use_class_prob=True), LPGImageProcessor()
    image = make_image()
    with pytest.raises(ValueError, match="pass a segmenter"):
        list(LPGGenerator(model, processor).patches([image], "class"))
    segmenter = SegmenterProbs.from_pretrained(segmenter_folder, ["cat", "DOG"])
    (probs,) = segmenter([image.image], [image.labels])
    assert set(probs) == {1, 2} and probs[1].shape == image.image.shape[:2] and probs[1].dtype == np.uint8
    seen = foreground(LPGGenerator(model, processor, segmenter).patches([image], "class"))
    given = BoxedImage(image.image, image.boxes, image.labels, probs)
    same = foreground(LPGGenerator(model, processor).patches([given], "class"))
    other = BoxedImage(image.image, image.boxes, image.labels, {1: 255 - probs[1], 2: 255 - probs[2]})
    different = foreground(LPGGenerator(model, processor).patches([other], "class"))
    assert all(np.array_equal(seen[label], same[label]) for label in seen)
    assert not np.array_equal(seen[1], different[1])


def test_optional_class_probability_works_with_a_segmenter_and_without_one(segmenter_folder):
    model, processor = tiny_lpg(use_class_prob=True, class_prob_optional=True), LPGImageProcessor()
    image, other = make_image(), make_image(seed=1)
    segmenter = SegmenterProbs.from_pretrained(segmenter_folder, ["cat", "DOG"])
    (probs,) = segmenter([image.image], [image.labels])
    nothing = {label: np.zeros_like(prob) for label, prob in probs.items()}
    alone = LPGGenerator(model, processor)

    without = foreground(alone.patches([image], "class"))
    zero = foreground(alone.patches([BoxedImage(image.image, image.boxes, image.labels, nothing)], "class"))
    assert all(np.array_equal(without[label], zero[label]) for label in without)
    seen = foreground(LPGGenerator(model, processor, segmenter).patches([image], "class"))
    assert not np.array_equal(seen[1], without[1])

    with_probs = BoxedImage(image.image, image.boxes, image.labels, probs)
    mixed = list(alone.patches([other, with_probs], "class"))  # one batch, of which only some views have a probability
    expected = foreground(alone.patches([other], "class"))
    for position, masks in ((0, expected), (1, seen)):
        found = foreground([patch for patch in mixed if patch[0] == position])
        for label in masks:
            np.testing.assert_allclose(found[label], masks[label], atol=1e-5)


def test_segmenter_probabilities_are_those_of_the_named_class(segmenter_folder):
    image = make_image().image
    swapped = SegmenterProbs.from_pretrained(segmenter_folder, ["dog", "cat"])([image], [np.array([1, 2])])[0]
    own = SegmenterProbs.from_pretrained(segmenter_folder)([image], [np.array([1, 2])])[0]
    assert np.array_equal(swapped[1], own[2]) and np.array_equal(swapped[2], own[1])


def test_segmenter_probabilities_cover_the_whole_image_also_if_the_processor_crops(segmenter_folder):
    image = make_image().image
    model = SegformerForSemanticSegmentation.from_pretrained(segmenter_folder)
    size = {"height": 16, "width": 16}
    crops, plain = (
        MobileNetV2ImageProcessorPil(do_resize=False, do_center_crop=crop, crop_size=size) for crop in (True, False)
    )
    (found,), (expected,) = (SegmenterProbs(model, p)([image], [np.array([1])]) for p in (crops, plain))
    assert np.array_equal(found[1], expected[1])
    assert crops.do_center_crop  # the caller's own


def test_unfitting_parts_are_refused(tmp_path, lpg_folder, segmenter_folder):
    with pytest.raises(ValueError, match="knows no class 'horse'"):
        SegmenterProbs.from_pretrained(segmenter_folder, ["cat", "horse"])
    with pytest.raises(ValueError, match="batch_size is 0"):
        load_generator("lpg", model=lpg_folder, batch_size=0)
    with pytest.raises(ValueError, match="pass no segmenter"):
        load_generator("lpg", model=lpg_folder, segmenter=segmenter_folder)
    with pytest.raises(ValueError, match="holds a 'segformer' model, not an LPG stage"):
        load_generator("lpg", model=segmenter_folder)
    with pytest.raises(FileNotFoundError, match="nowhere is neither a folder nor an id like ORG/NAME"):
        load_generator("lpg", model=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere is neither a folder nor an id like ORG/NAME"):
        load_generator("lpg", model=lpg_folder, segmenter=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="generator 'mcg' is unknown. Choose one of lpg, grabcut"):
        load_generator("mcg")
    with pytest.raises(ValueError, match="model=x is for the generator lpg, not for 'box'"):
        load_generator("box", model="x")
    with pytest.raises(ValueError, match="revision=v1 is for the generator lpg or sam, not for 'grabcut'"):
        load_generator("grabcut", revision="v1")
    for device in ("cuda:7", "gpu"):
        with pytest.raises(ValueError, match=f"the device {device} cannot be used: .* Choose cpu, cuda"):
            load_generator("lpg", model=lpg_folder, device=device)
    with pytest.raises(ValueError, match="dtype 'int4' is unknown"):
        load_generator("lpg", model=lpg_folder, dtype="int4")


class Bomb:
    """Its pickle makes a file when it is read."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def test_weights_that_run_code_or_are_damaged_are_refused_in_one_line(tmp_path, lpg_folder, segmenter_folder):
    marker, buffer = tmp_path / "marker", io.BytesIO()
    torch.save({"x": Bomb(marker)}, tmp_path / "code.bin")
    torch.save(load_file(lpg_folder / "model.safetensors"), buffer)
    whole = (lpg_folder / "model.safetensors").read_bytes()
    damaged = [
        ("pytorch_model.bin", (tmp_path / "code.bin").read_bytes()),
        *[("pytorch_model.bin", data) for data in (buffer.getvalue()[:9000], b"", b"<html>" * 99)],
        *[("model.safetensors", data) for data in (whole[: len(whole) // 2], b"", b"<html>" * 99)],
    ]
    loaders = {
        lpg_folder: lambda folder: load_generator("lpg", model=folder),
        segmenter_folder: SegmenterProbs.from_pretrained,
    }
    for good, load in loaders.items():
        for number, (name, data) in enumerate(damaged):
            folder = tmp_path / f"{good.name}{number}"
            shutil.copytree(good, folder, ignore=shutil.ignore_patterns("model.safetensors"))
            (folder / name).write_bytes(data)
            with pytest.raises(
                ValueError, match=f"^the weights in {folder} cannot be read .* save the model"
            ) as error:
                load(folder)
            assert "\n" not in str(error.value) and "weights_only" not in str(error.value)
    assert not marker.exists()


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_a_model_with_code_of_its_own_is_refused_and_nobody_is_asked(segmenter_folder, tmp_path, monkeypatch, file):
    asked = []
    monkeypatch.setattr("builtins.input", lambda *text: asked.append(text) or "y")
    folder, ran = tmp_path / "segmenter", tmp_path / "ran"
    shutil.copytree(segmenter_folder, folder)
    (folder / "mine.py").write_text(f"open({str(ran)!r}, 'w')\nclass Mine: pass\n")
    names = {
        "AutoConfig": "mine.Mine",
        "AutoModelForSemanticSegmentation": "mine.Mine",
        "AutoImageProcessor": "mine.Mine",
    }
    changed = {"auto_map": names, "model_type": "mine", "image_processor_type": "Mine"}
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | changed))
    for load in (SegmenterProbs.from_pretrained, load_segmenter, SAMGenerator):
        with pytest.raises(ValueError) as error:
            load(folder)
        assert "\n" not in str(error.value) and str(folder) in str(error.value)
        if load is not SAMGenerator or file == "config.json":
            assert re.search("Python code of its own, which is not executed. Choose", str(error.value))
    assert not ran.exists() and not asked


@pytest.mark.parametrize(
    "file, field, value",
    [
        ("config.json", "hidden_sizes", ["8"]),
        ("config.json", "head_size", "x"),
        ("config.json", "head_size", -1),
        ("config.json", "backbone_config", {"model_type": []}),
        ("preprocessor_config.json", "view_size", "32"),
    ],
)
def test_a_stage_with_a_bad_field_is_one_line_that_names_it(lpg_folder, tmp_path, file, field, value):
    folder = tmp_path / "lpg"
    shutil.copytree(lpg_folder, folder)
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | {field: value}))
    with pytest.raises(ValueError, match=f"^{folder} cannot be used .* save the model again") as error:
        load_generator("lpg", model=folder)
    assert "\n" not in str(error.value)


def test_settings_tell_apart_what_the_masks_depend_on(lpg_folder):
    one, same = (load_generator("lpg", model=lpg_folder, dtype="float32", device="cpu") for _ in range(2))
    assert one.settings() == same.settings()
    model, processor = tiny_lpg(), {"view": "box", "view_size": 32}
    plain = LPGGenerator(model, LPGImageProcessor(**processor)).settings()
    assert json.loads(json.dumps(plain)) == plain
    others = [
        LPGGenerator(tiny_lpg(head_size=4), LPGImageProcessor(**processor)),
        LPGGenerator(model, LPGImageProcessor(**processor | {"view_context": 0.5})),
        LPGGenerator(model, LPGImageProcessor(**processor | {"align_corners": True})),
        LPGGenerator(model, LPGImageProcessor(**processor), dtype=torch.bfloat16),
        LPGGenerator(model, LPGImageProcessor(**processor), batch_size=3),
    ]
    assert all(other.settings() != plain for other in others)
    grabcut = GrabCutGenerator().settings()
    for name, value in {"iterations": 2, "context": 0.3, "min_fill": 0.1, "max_side": 99, "seed": 5}.items():
        assert GrabCutGenerator(**{name: value}).settings() != grabcut, name


def test_every_process_of_a_launch_takes_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert usable_device() == "cuda:2"
