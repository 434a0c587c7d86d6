"""Official checkpoints: equal logits from image to full size, every tensor used, and back to the bit."""

import io
import json
import os
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard
from official_networks import (
    OfficialLargeFOV,
    OfficialLPG,
    OfficialMSC,
    OfficialResNet,
    official_pixels,
    randomise,
)
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from lpg_hf.cli import main
from lpg_hf.convert_official import convert, read_official, to_official
from lpg_hf.generators import load_generator
from lpg_hf.generators.base import BoxedImage
from lpg_hf.models.configuration_lpg import LPGConfig
from lpg_hf.models.image_processing_lpg import LPGImageProcessor
from lpg_hf.models.modeling_lpg import LPGModel


TINY_LPG = {"stem": 4, "sizes": (6, 6, 8, 8, 8, 10), "depths": (2, 1, 1, 1, 1, 3), "neck": 12, "head": 7}


def tiny(kind: str) -> torch.nn.Module:
    networks = {
        "lpg4": lambda: OfficialLPG(4, **TINY_LPG),
        "lpg5": lambda: OfficialLPG(5, **TINY_LPG),
        "largefov": lambda: OfficialLargeFOV(4, (1, 2, 1, 2, 1), (4, 6, 8, 8, 10), fc=12),
        "deeplab-v2": lambda: OfficialMSC(OfficialResNet(4, (1, 2, 1, 2), 6, (8, 12, 16, 20))),
    }
    return randomise(networks[kind]())


KINDS = ("lpg4", "lpg5", "largefov", "deeplab-v2")
every_kind = pytest.mark.parametrize("kind", KINDS)


def make_image(height: int = 321, width: int = 241) -> np.ndarray:
    """Smooth colours with some noise, so that a channel order or a shift of one pixel shows."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0, 255, (1, 3, 12, 9)).astype(np.float32))
    smooth = F.interpolate(coarse, size=(height, width), mode="bicubic")[0].permute(1, 2, 0).numpy()
    return np.clip(smooth + rng.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)


def saved(network: torch.nn.Module, path: Path) -> Path:
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(params=KINDS)
def converted(request, tmp_path) -> tuple[str, torch.nn.Module, Path]:
    """Kind, official network and the folder made of it."""
    network = tiny(request.param)
    assert convert(saved(network, tmp_path / "official.pth"), tmp_path / "ours", request.param.rstrip("45")) == {}
    return request.param, network, tmp_path / "ours"


# Equal results


@pytest.mark.parametrize("kind", ["lpg4", "lpg5"])
@pytest.mark.parametrize("canvas", [512, 640])
@torch.no_grad()
def test_lpg_from_image_to_foreground_equals_the_official_path(kind, canvas, tmp_path):
    """321x241, padded to the official canvas, logits brought to its size with align_corners, cut to the boxes."""
    network, image = tiny(kind), make_image()
    boxes, labels = np.array([[20, 30, 120, 200], [150, 10, 241, 90], [100, 150, 230, 321]]), np.array([3, 1, 3])
    probs = np.random.default_rng(1).dirichlet(np.ones(4), (321, 241)).transpose(2, 0, 1).astype(np.float32)

    convert(saved(network, tmp_path / "o.pth"), tmp_path / "ours", "lpg", view_min_size=canvas)
    model, processor = (
        LPGModel.from_pretrained(tmp_path / "ours"),
        LPGImageProcessor.from_pretrained(tmp_path / "ours"),
    )
    with_prob = {"class_probs": probs} if kind == "lpg5" else {}
    batch = processor(image, boxes=boxes, box_labels=labels, **with_prob, return_tensors="pt")
    views = batch.pop("views")
    output = model(**batch)
    result = processor.post_process_foreground(output, views, [(321, 241)])[0]

    for position, label in enumerate((3, 1)):
        box_map = torch.zeros(1, 1, canvas, canvas)
        for x1, y1, x2, y2 in boxes[labels == label]:
            box_map[:, :, y1:y2, x1:x2] = 1
        inputs = [box_map, official_pixels(image, canvas)]
        if kind == "lpg5":
            inputs.insert(0, F.pad(torch.from_numpy(probs[label])[None, None], (0, canvas - 241, 0, canvas - 321)))
        logits = network(torch.cat(inputs, dim=1))
        torch.testing.assert_close(output.logits[position : position + 1], logits, rtol=0, atol=1e-4)
        full = F.interpolate(logits, size=(canvas, canvas), mode="bilinear", align_corners=True)
        expected = (full.softmax(1)[:, 1:] * box_map)[0, 0, :321, :241]
        assert expected[box_map[0, 0, :321, :241] > 0].std() > 0.01  # not the same everywhere
        torch.testing.assert_close(result["foreground"][position], expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_the_mask_generator_equals_the_official_path(tmp_path):
    """The same through `load_generator`, which computes only where boxes are."""
    network, image = tiny("lpg4"), make_image()
    convert(saved(network, tmp_path / "o.pth"), tmp_path / "ours")
    box = np.array([[20, 30, 120, 200]], dtype=np.float32)
    generator = load_generator("lpg", model=tmp_path / "ours", device="cpu", dtype="float32")
    [(_, patch)] = generator.patches([BoxedImage(image, box, np.array([1]))], "class")
    foreground = np.zeros(image.shape[:2], dtype=np.float32)
    foreground[patch.rows, patch.columns] = patch.foreground

    box_map = torch.zeros(1, 1, 512, 512)
    box_map[:, :, 30:200, 20:120] = 1
    logits = network(torch.cat([box_map, official_pixels(image, 512)], dim=1))
    full = F.interpolate(logits, size=(512, 512), mode="bilinear", align_corners=True)
    expected = (full.softmax(1)[:, 1:] * box_map)[0, 0, :321, :241]
    torch.testing.assert_close(torch.from_numpy(foreground), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["largefov", "deeplab-v2"])
@torch.no_grad()
def test_segmenter_from_image_to_full_size_logits_equals_the_official_path(kind, tmp_path):
    """321x241, logits brought to the image's size with align_corners."""
    network, image = tiny(kind), make_image()
    convert(saved(network, tmp_path / "o.pth"), tmp_path / "ours", kind)
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "ours")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "ours")
    logits = model(**processor(image, return_tensors="pt")).logits
    expected = network(official_pixels(image))
    assert expected.std() > 0.01
    expected = F.interpolate(expected, size=(321, 241), mode="bilinear", align_corners=True)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * max(1, expected.abs().max().item()))


def test_without_the_official_padding_the_masks_are_others(tmp_path):
    """What `view_min_size` is for: with align_corners the size of the canvas decides where the logits lie."""
    checkpoint = saved(tiny("lpg4"), tmp_path / "o.pth")
    results = []
    for name, size in (("with", 512), ("without", None)):
        convert(checkpoint, tmp_path / name, view_min_size=size)
        model, processor = (
            LPGModel.from_pretrained(tmp_path / name),
            LPGImageProcessor.from_pretrained(tmp_path / name),
        )
        batch = processor(make_image(), boxes=[[10, 10, 200, 300]], return_tensors="pt")
        views = batch.pop("views")
        with torch.no_grad():
            results.append(processor.post_process_foreground(model(**batch), views, [(321, 241)])[0]["foreground"])
    assert (results[0] - results[1]).abs().max() > 0.01


def test_images_beyond_the_official_canvas_are_padded_to_what_the_network_needs():
    processor = LPGImageProcessor(view_min_size=64)
    batch = processor(make_image(70, 50), boxes=[[1, 2, 40, 60]], return_tensors="pt")
    assert batch["pixel_values"].shape[2:] == batch["box_mask"].shape[2:] == (70, 64)
    assert batch["pixel_values"][0, :, :, 50:].eq(0).all() and not batch["pixel_values"][0, :, :, :50].eq(0).any()


@pytest.mark.slow
@pytest.mark.parametrize(
    "build, kind",
    [
        (lambda: OfficialLPG(4), "lpg"),
        (lambda: OfficialLPG(5), "lpg"),
        (lambda: OfficialLargeFOV(21), "largefov"),
        (lambda: OfficialLargeFOV(61), "largefov"),
        (lambda: OfficialMSC(OfficialResNet(21)), "deeplab-v2"),
    ],
    ids=["lpg4", "lpg5", "largefov21", "largefov61", "deeplab-v2"],
)
@torch.no_grad()
def test_the_published_sizes_convert(build, kind, tmp_path):
    network = randomise(build(), gain=0.4)
    assert convert(saved(network, tmp_path / "o.pth"), tmp_path / "ours", kind) == {}
    to_official(tmp_path / "ours", tmp_path / "back.pth")
    assert_same_bits(torch.load(tmp_path / "back.pth", weights_only=True), network.state_dict())

    side = 128 if kind == "lpg" else 129
    bgr, boxes = official_pixels(make_image(side, side)), torch.zeros(1, 1, side, side)
    boxes[:, :, 20:100, 10:90] = 1
    if kind == "lpg":
        model = LPGModel.from_pretrained(tmp_path / "ours")
        probs = [torch.rand(1, 1, 128, 128)] if model.config.use_class_prob else []
        logits, official = model(bgr.flip(1), boxes, *probs).logits, network(torch.cat([*probs, boxes, bgr], dim=1))
        published = LPGConfig()
        for field in ("embedding_size", "neck_size", "head_size"):
            assert getattr(model.config, field) == getattr(published, field)
        assert tuple(model.config.hidden_sizes) == published.hidden_sizes
        assert tuple(model.config.depths) == published.depths
    else:
        model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "ours")
        stride = 8 if kind == "largefov" else 4
        logits, official = model(bgr.flip(1)).logits[:, :, ::stride, ::stride], network(bgr)
    torch.testing.assert_close(logits, official, rtol=0, atol=1e-4)


# Names and bits


def assert_same_bits(one: dict, other: dict):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_there_and_back_is_equal_to_the_bit(converted, suffix, tmp_path):
    _, network, folder = converted
    back = to_official(folder, tmp_path / f"back{suffix}")
    tensors = load_file(back) if suffix == ".safetensors" else torch.load(back, weights_only=True)
    assert_same_bits(tensors, network.state_dict())


def test_and_there_again(converted, tmp_path):
    kind, _, folder = converted
    again = tmp_path / "again"
    convert(to_official(folder, tmp_path / "back.pth"), again, kind.rstrip("45"))
    assert_same_bits(load_file(again / "model.safetensors"), load_file(folder / "model.safetensors"))
    assert (again / "config.json").read_text() == (folder / "config.json").read_text()


def test_red_and_blue_change_places_and_the_prompt_stays(tmp_path):
    network = tiny("lpg5")
    convert(saved(network, tmp_path / "o.pth"), tmp_path / "ours")
    official = network.state_dict()["pre.0.conv.weight"]  # seg, box, B, G, R
    ours = load_file(tmp_path / "ours/model.safetensors")["generator.stem.0.0.weight"]
    assert torch.equal(ours, official[:, [0, 1, 4, 3, 2]])


def test_the_folder_holds_config_processor_provenance_and_card(converted):
    kind, _, folder = converted
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "config.json",
        "metrics.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    record = json.loads((folder / "metrics.json").read_text())
    assert record["settings"]["file"] == "official.pth" and len(record["settings"]["sha256"]) == 64
    card = ModelCard.load(folder / "README.md")
    assert "converted from a checkpoint of the official code" in card.text
    processor = AutoImageProcessor.from_pretrained(folder)
    assert np.allclose(np.multiply(processor.image_mean, 255), (122.675, 116.669, 104.008))
    if kind.startswith("lpg"):
        assert processor.align_corners and processor.view_min_size == 512 and processor.view == "image"
        assert LPGConfig.from_pretrained(folder).use_class_prob == (kind == "lpg5")


@pytest.mark.parametrize("form", ["module", "nested", "nested module", "legacy", "safetensors", "unnamed key"])
@every_kind
def test_every_form_of_file_gives_the_same_weights(kind, form, tmp_path):
    tensors = tiny(kind).state_dict()
    plain, path = tmp_path / "plain.pth", tmp_path / "other.pth"
    torch.save(tensors, plain)
    if "module" in form:
        tensors = {f"module.{name}": tensor for name, tensor in tensors.items()}
    unused = {}
    if form.startswith("nested"):
        torch.save({"state_dict": tensors, "optimizer": {"state": {}}, "iteration": 20000}, path)
        unused = dict.fromkeys(("optimizer", "iteration"), "beside the state dict, not a weight")
    elif form == "unnamed key":
        torch.save({"weights": tensors}, path)
    elif form == "safetensors":
        path = tmp_path / "other.safetensors"
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=form != "legacy")
    convert(plain, tmp_path / "a", kind.rstrip("45"))
    assert convert(path, tmp_path / "b", kind.rstrip("45")) == unused
    assert_same_bits(load_file(tmp_path / "a/model.safetensors"), load_file(tmp_path / "b/model.safetensors"))


def test_a_network_saved_without_the_multi_scale_wrapper_has_one_scale(tmp_path):
    network = tiny("deeplab-v2").base
    convert(saved(network, tmp_path / "o.pth"), tmp_path / "ours", "deeplab-v2")
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "ours")
    assert model.config.scales is None
    pixels = official_pixels(make_image(65, 49))
    with torch.no_grad():
        torch.testing.assert_close(model(pixels.flip(1)).logits[:, :, ::4, ::4], network(pixels), rtol=0, atol=1e-4)
    assert_same_bits(torch.load(to_official(tmp_path / "ours", tmp_path / "b.pth")), network.state_dict())


def test_files_older_than_the_batch_counter_convert(tmp_path):
    tensors = {name: t for name, t in tiny("lpg4").state_dict().items() if "num_batches" not in name}
    torch.save(tensors, tmp_path / "o.pth")
    convert(tmp_path / "o.pth", tmp_path / "ours")
    back = torch.load(to_official(tmp_path / "ours", tmp_path / "b.pth"))
    assert_same_bits({name: tensor for name, tensor in back.items() if "num_batches" not in name}, tensors)


def test_half_precision_is_widened(tmp_path):
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in tiny("lpg4").state_dict().items()}
    torch.save(tensors, tmp_path / "o.pth")
    convert(tmp_path / "o.pth", tmp_path / "ours")
    back = torch.load(to_official(tmp_path / "ours", tmp_path / "b.pth"))
    assert all(torch.equal(back[name], t.float() if t.is_floating_point() else t) for name, t in tensors.items())


def test_labels_are_counted_and_named(tmp_path):
    for num_labels, first in ((21, "aeroplane"), (61, "truck"), (4, "class_1")):
        network = OfficialLargeFOV(num_labels, (1,) * 5, (4,) * 5, fc=4)
        checkpoint, folder = saved(network, tmp_path / f"{num_labels}.pth"), tmp_path / f"ours{num_labels}"
        convert(checkpoint, folder, "largefov", num_labels=num_labels)
        config = json.loads((folder / "config.json").read_text())
        assert len(config["id2label"]) == num_labels and config["id2label"]["0"] == "background"
        assert config["id2label"]["1"] == first and config["label2id"][first] == 1
    convert(checkpoint, tmp_path / "named", "largefov", classes=["a", "b", "c"])
    assert json.loads((tmp_path / "named/config.json").read_text())["id2label"]["3"] == "c"
    with pytest.raises(ValueError, match="has 4 labels, not num_labels=21"):
        convert(checkpoint, tmp_path / "x", "largefov", num_labels=21)
    with pytest.raises(ValueError, match="background and 3 classes, but 1 names"):
        convert(checkpoint, tmp_path / "x", "largefov", classes=["a"])


# What does not fit


def nothing_written(tmp_path: Path, *expected: str) -> bool:
    return sorted(path.name for path in tmp_path.iterdir()) == sorted(expected)


@every_kind
def test_missing_unknown_and_wrong_tensors_are_named_in_one_error(kind, tmp_path):
    tensors = tiny(kind).state_dict()
    names = [name for name in tensors if name.endswith("weight") and tensors[name].dim() == 4]
    missing, wrong, infinite = names[2], names[-1], names[1]
    del tensors[missing]
    tensors[wrong] = tensors[wrong][..., :0]
    tensors[infinite][0, 0, 0, 0] = float("nan")
    tensors["extra.weight"] = torch.zeros(3)
    tensors["other.bias"] = torch.zeros(3)
    torch.save(tensors, tmp_path / "o.pth")
    with pytest.raises(ValueError) as error:
        convert(tmp_path / "o.pth", tmp_path / "ours", kind.rstrip("45"))
    text = str(error.value).split("nothing was written. ")[1]
    assert "\n" not in str(error.value) and "2 unknown: extra.weight, other.bias" in text
    assert missing in text.split("missing")[1].split(";")[0]
    assert wrong in text.split("of another shape")[1].split(";")[0]
    assert f"1 not finite: {infinite}" in text
    assert nothing_written(tmp_path, "o.pth")


def test_another_type_of_number_is_refused(tmp_path):
    tensors = tiny("lpg4").state_dict()
    tensors["fm.0.1.bias"] = tensors["fm.0.1.bias"].double()
    torch.save(tensors, tmp_path / "o.pth")
    with pytest.raises(ValueError, match=r"1 of another type: fm.0.1.bias torch.float64, expected torch.float32"):
        convert(tmp_path / "o.pth", tmp_path / "ours")


def test_two_stacks_are_refused(tmp_path):
    tensors = tiny("lpg4").state_dict()
    tensors |= {name.replace("kps.0", "kps.1"): t for name, t in tensors.items() if name.startswith("kps.0")}
    torch.save(tensors, tmp_path / "o.pth")
    with pytest.raises(ValueError, match="unknown: kps.1.up1.0.conv1.weight"):
        convert(tmp_path / "o.pth", tmp_path / "ours")


def test_the_wrong_kind_is_recognised(tmp_path):
    checkpoint = saved(tiny("largefov"), tmp_path / "o.pth")
    with pytest.raises(ValueError, match="not of kind 'lpg'; its names are those of kind 'largefov'"):
        convert(checkpoint, tmp_path / "ours", "lpg")
    with pytest.raises(ValueError, match="kind='vgg' is unknown. Choose one of lpg, largefov, deeplab-v2"):
        convert(checkpoint, tmp_path / "ours", "vgg")
    convert(checkpoint, tmp_path / "recognised")
    assert json.loads((tmp_path / "recognised/config.json").read_text())["model_type"] == "deeplab_largefov"
    torch.save({"a.weight": torch.zeros(1)}, checkpoint)
    with pytest.raises(ValueError, match="Its first tensor is 'a.weight'"):
        convert(checkpoint, tmp_path / "ours")
    saved(OfficialLPG(3, **TINY_LPG), checkpoint)
    with pytest.raises(ValueError, match="3 input channels, expected 4 or 5"):
        convert(checkpoint, tmp_path / "ours", "lpg")


class Bomb:
    """Leaves a marker file wherever it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.skipif(os.name != "posix", reason="the marker is made by posix.mkdir")
@pytest.mark.parametrize("form", ["zip", "legacy", "plain pickle", "inside a state dict"])
def test_a_pickle_with_code_is_refused_in_one_line_and_not_executed(form, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "o.pth"
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(Bomb(marker)))
    else:
        content = tiny("lpg4").state_dict() | {"x": Bomb(marker)} if form.startswith("inside") else Bomb(marker)
        torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    with pytest.raises(ValueError, match="cannot be read as plain tensors .*nothing in it was executed") as error:
        convert(path, tmp_path / "ours")
    reason = "are not what torch.save writes" if form == "plain pickle" else "refers to the Python object posix.mkdir"
    assert reason in str(error.value) and "\n" not in str(error.value) and "weights_only" not in str(error.value)
    assert nothing_written(tmp_path, "o.pth")
    with open(path, "rb") as file:  # the bomb does go off where code is allowed
        torch.load(file, weights_only=False) if form != "plain pickle" else pickle.load(file)
    assert marker.is_dir()


def test_a_compressed_checkpoint_is_not_loaded(tmp_path, monkeypatch):
    saved = io.BytesIO()
    torch.save(tiny("lpg4").state_dict(), saved)
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(tmp_path / "o.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    monkeypatch.setattr(torch, "load", lambda *args, **options: pytest.fail("it was loaded"))
    with pytest.raises(ValueError, match="cannot be read as plain tensors .the bytes are not what torch.save writes"):
        convert(tmp_path / "o.pth", tmp_path / "ours")


@pytest.mark.parametrize("damage", ["empty", "truncated", "noise", "text"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_files_are_one_clear_line(damage, suffix, tmp_path):
    buffer = io.BytesIO()
    torch.save(tiny("lpg4").state_dict(), buffer)
    content = {
        "empty": b"",
        "truncated": buffer.getvalue()[: len(buffer.getvalue()) // 2],
        "noise": np.random.default_rng(0).bytes(5000),
        "text": b"<!DOCTYPE html><html>Quota exceeded</html>",
    }
    path = tmp_path / f"o{suffix}"
    path.write_bytes(content[damage])
    with pytest.raises(ValueError, match="cannot be read as plain tensors") as error:
        convert(path, tmp_path / "ours")
    assert "\n" not in str(error.value)
    assert nothing_written(tmp_path, path.name)


@pytest.mark.parametrize("name", ["kps.0.up1.99999999.conv1.weight", "kps.0.up1." + "9" * 5000 + ".conv1.weight"])
def test_no_number_in_a_name_decides_the_work(name, tmp_path):
    path = tmp_path / "o.pth"
    torch.save(tiny("lpg4").state_dict() | {name: torch.zeros(1)}, path)
    with pytest.raises(
        ValueError, match="does not fit the official 'lpg' network.*missing.*up1.*unknown: kps.0.up1.9"
    ):
        convert(path, tmp_path / "ours")


@pytest.mark.parametrize(
    "change",
    [
        {"pre.0.conv.weight": torch.zeros(1).expand(10**6, 4, 10**6, 7)},
        {"cnvs.0.conv.weight": torch.zeros(2, 2).to_sparse()},
        {"cnvs.0.conv.weight": torch.zeros(0, 4, 3, 3)},
        {"fm.0.0.conv.weight": torch.zeros(())},
        {"kps.0.up1.0.conv1.weight": torch.zeros(0)},
        {"kps.0.up1.0.bn1.weight": torch.zeros(3, dtype=torch.complex64)},
    ],
)
def test_tensors_of_another_kind_are_refused_in_one_line(change, tmp_path):
    path = tmp_path / "o.pth"
    torch.save(tiny("lpg4").state_dict() | change, path)
    with pytest.raises(ValueError, match="o.pth (cannot be read as plain tensors|does not fit the official)") as error:
        convert(path, tmp_path / "ours")
    assert "\n" not in str(error.value) and nothing_written(tmp_path, "o.pth")


def test_files_without_a_state_dict_are_refused(tmp_path):
    path = tmp_path / "o.pth"
    for content in ([torch.zeros(1)], {}, {"lr": 0.1}, torch.zeros(2)):
        torch.save(content, path)
        with pytest.raises(ValueError, match="holds no state dict"):
            read_official(path)
    torch.save({"generator": {"a": torch.zeros(1)}, "critic": {"a": torch.zeros(1)}}, path)
    with pytest.raises(ValueError, match="several state dicts: generator, critic"):
        read_official(path)
    with pytest.raises(FileNotFoundError, match="absent.pth is not a file"):
        read_official(tmp_path / "absent.pth")


def test_an_existing_folder_is_left_alone_or_said_to_be_finished(tmp_path, caplog):
    checkpoint, out = saved(tiny("lpg4"), tmp_path / "o.pth"), tmp_path / "ours"
    out.mkdir()
    convert(checkpoint, out)  # empty: taken
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()}
    convert(checkpoint, out)
    assert "holds this checkpoint already; nothing was written" in caplog.text
    with pytest.raises(FileExistsError, match="exists already"):
        convert(checkpoint, out, view_min_size=640)
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()} == before
    (out / "metrics.json").unlink()
    with pytest.raises(ValueError, match="is not an empty folder"):
        convert(checkpoint, out)


def test_an_empty_folder_is_taken_where_folders_cannot_be_replaced(tmp_path, monkeypatch):
    checkpoint, out = saved(tiny("lpg4"), tmp_path / "o.pth"), tmp_path / "ours"
    out.mkdir()
    replace = os.replace

    def as_on_windows(source, target):
        if os.path.isdir(target):
            raise PermissionError(f"access is denied: {target}")
        replace(source, target)

    monkeypatch.setattr("os.replace", as_on_windows)
    convert(checkpoint, out)
    assert (out / "config.json").is_file()


def test_a_failure_while_writing_leaves_nothing(tmp_path, monkeypatch):
    checkpoint = saved(tiny("lpg4"), tmp_path / "o.pth")

    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(LPGImageProcessor, "save_pretrained", fail)
    with pytest.raises(OSError, match="No space left"):
        convert(checkpoint, tmp_path / "ours")
    assert nothing_written(tmp_path, "o.pth")
    monkeypatch.undo()
    convert(checkpoint, tmp_path / "ours")
    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        to_official(tmp_path / "ours", tmp_path / "back.pth")
    assert nothing_written(tmp_path, "o.pth", "ours")


# Back: only what the official code would compute alike


def ours(folder: Path, processor: dict | None = None, **config) -> Path:
    sizes = {"embedding_size": 4, "hidden_sizes": (6, 8), "depths": (1, 1), "neck_size": 8, "head_size": 6}
    LPGModel(LPGConfig(**sizes, **config)).save_pretrained(folder)
    LPGImageProcessor(**(processor or {})).save_pretrained(folder)
    return folder


def test_what_the_official_code_computes_differently_is_refused(tmp_path, converted):
    with pytest.raises(ValueError, match=r"backbone='squeezenet', officially 'hourglass'.*image_std is \(58"):
        to_official(ours(tmp_path / "a", backbone="squeezenet"), tmp_path / "b.pth")
    with pytest.raises(ValueError, match="view='box'.*image_mean is"):
        to_official(ours(tmp_path / "c", {"view": "box"}), tmp_path / "b.pth")
    with pytest.raises(ValueError, match="box_encoding='distance', officially 'filled'"):
        to_official(ours(tmp_path / "d", {"box_encoding": "distance"}), tmp_path / "b.pth")
    with pytest.raises(ValueError, match="use .pth or .safetensors"):
        to_official(tmp_path / "c", tmp_path / "b.bin")
    (tmp_path / "c/preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="no preprocessor_config.json"):
        to_official(tmp_path / "c", tmp_path / "b.pth")
    kind, _, folder = converted
    settings = json.loads((folder / "config.json").read_text())
    changed = {"largefov": ("align_corners", False), "deeplab-v2": ("stem_pool", True)}.get(
        kind, ("model_type", "segformer")
    )
    settings[changed[0]] = changed[1]
    settings.pop("backbone", None)
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="officially|the official code knows"):
        to_official(folder, tmp_path / "b.pth")
    assert not (tmp_path / "b.pth").exists()


# The command


def test_the_command_goes_there_and_back(tmp_path, capsys, monkeypatch):
    network = tiny("deeplab-v2")
    torch.save({"state_dict": network.state_dict(), "epoch": 3}, tmp_path / "o.pth")
    assert (
        command(
            monkeypatch, "convert-checkpoint", tmp_path / "o.pth", tmp_path / "ours", "--class-names", "cat,dog,cow"
        )
        == 0
    )
    assert command(monkeypatch, "convert-checkpoint", tmp_path / "ours", tmp_path / "back.pth", "--to-official") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "not used: epoch (beside the state dict, not a weight)"
    assert printed[1:] == [f"written to {tmp_path / 'ours'}", f"written to {tmp_path / 'back.pth'}"]
    assert json.loads((tmp_path / "ours/config.json").read_text())["id2label"]["2"] == "dog"
    assert_same_bits(torch.load(tmp_path / "back.pth"), network.state_dict())


@pytest.mark.parametrize("pad, stored", [("640", 640), ("0", None)])
def test_the_command_stores_the_padding(pad, stored, tmp_path, monkeypatch):
    checkpoint = saved(tiny("lpg5"), tmp_path / "o.pth")
    assert (
        command(monkeypatch, "convert-checkpoint", checkpoint, tmp_path / "ours", "--kind", "lpg", "--pad", pad) == 0
    )
    assert LPGImageProcessor.from_pretrained(tmp_path / "ours").view_min_size == stored


def test_the_command_fails_in_one_line(tmp_path, capsys, monkeypatch):
    torch.save(Bomb(tmp_path / "marker"), tmp_path / "o.pth")
    assert command(monkeypatch, "convert-checkpoint", tmp_path / "o.pth", tmp_path / "ours", "--kind", "lpg") == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and "nothing in it was executed" in captured.err
    assert nothing_written(tmp_path, "o.pth")


def command(monkeypatch, *arguments: object) -> int:
    """Exit status of `lpg-hf ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["lpg-hf", *map(str, arguments)])
    with pytest.raises(SystemExit) as status:
        main()
    return status.value.code or 0
