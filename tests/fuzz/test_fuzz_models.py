"""Saved models, changed at random: official checkpoints, stage folders, ONNX files of salient-object networks."""

import io
import json
import shutil
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from mutations import CHANGES, changed_bytes, changed_json
from outcomes import allowed, fuzz, inputs, run
from safetensors.torch import save
from trees_in_memory import CocoTree

from lpg_hf._cards import write_card
from lpg_hf.convert_official import to_official
from lpg_hf.generators import load_generator
from lpg_hf.generators.base import BoxedImage


def _networks() -> dict[str, dict[str, torch.Tensor]]:
    """Weights of the three official networks, as small as they can be."""
    from official_networks import OfficialLargeFOV, OfficialLPG, OfficialMSC, OfficialResNet

    torch.manual_seed(0)
    small = {"stem": 4, "sizes": (6, 8), "depths": (1, 1), "neck": 4, "head": 4}
    networks = {
        "lpg": OfficialLPG(4, **small),
        "largefov": OfficialLargeFOV(4, (1, 1, 1, 1, 1), (4, 4, 4, 4, 4), fc=4),
        "deeplab-v2": OfficialMSC(OfficialResNet(4, (1, 1, 1, 1), 4, (4, 4, 4, 4))),
    }
    return {name: network.state_dict() for name, network in networks.items()}


def _changed_tensors(tensors: dict[str, torch.Tensor], changes: list) -> dict:
    """Other names, shapes and types; a few values that are no tensors."""
    tensors = dict(tensors)
    for what, where, which in changes:
        names = list(tensors)
        if not names:
            break
        name = names[where % len(names)]
        tensor = tensors[name]
        others = [str(which), f"module.{name}", name.replace("0", str(which)), "base." + name, name + ".1"]
        if what < 4:
            del tensors[name]
        elif what < 8:
            tensors[others[which % len(others)]] = tensors.pop(name)
        elif what < 10:
            tensors[others[which % len(others)]] = tensor
        elif what < 16 and isinstance(tensor, torch.Tensor):
            shape = list(tensor.shape) or [1]
            shape[where // 7 % len(shape)] = (0, 1, 2, 3, 5, 64)[which % 6]
            shape = shape[: 1 + which % 5] if what == 15 else shape
            tensors[name] = torch.zeros(shape, dtype=tensor.dtype)
        elif what < 18 and isinstance(tensor, torch.Tensor):
            kinds = (
                torch.int64,
                torch.float16,
                torch.float64,
                torch.bool,
                torch.bfloat16,
                torch.complex64,
                torch.uint8,
            )
            tensors[name] = tensor.to(kinds[which % len(kinds)])
        elif what < 20 and isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
            huge = min(1e30, torch.finfo(tensor.dtype).max)
            tensors[name] = torch.full_like(tensor, (float("nan"), float("inf"), huge)[which % 3])
        elif what < 22:
            tensors[name] = (None, 1, "x", [1], {}, {"a": 1}, torch.tensor(3.0))[which % 7]
        else:
            tensors[name] = tensors[names[which % len(names)]]
    return tensors


@inputs
def test_official_checkpoints(tmp_path, inputs):
    networks = _networks()
    drawn = st.tuples(st.sampled_from(sorted(networks)), CHANGES, st.integers(0, 29))
    file_of = cache(lambda kind, action: _file_of(networks[kind], action))
    fuzz(inputs, drawn, partial(check_checkpoint, tmp_path, networks, file_of))


def _file_of(tensors: dict, action: int) -> tuple[str, bytes]:
    """(suffix, content) of a checkpoint."""
    if action % 2 and all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        return ".safetensors", save({name: tensor.clone().contiguous() for name, tensor in tensors.items()})
    buffer = io.BytesIO()
    torch.save({"model": tensors, "epoch": 3} if action % 5 == 0 else tensors, buffer)
    return ".pth", buffer.getvalue()


def check_checkpoint(folder: Path, networks: dict, file_of: Callable, drawn: tuple) -> None:
    kind, changes, action = drawn
    shutil.rmtree(folder / "out", ignore_errors=True)
    if action % 3 == 0:
        suffix, data = file_of(kind, action)
        data = changed_bytes(data, changes)
    else:
        suffix, data = _file_of(_changed_tensors(networks[kind], changes), action)
    path = folder / f"x{suffix}"
    path.write_bytes(data)
    if run("convert-checkpoint", path, folder / "out") == 0:
        to_official(folder / "out", folder / "back.pth")


@pytest.mark.parametrize("kind", ["lpg", "segmenter"])
@inputs
def test_stage_folders(tmp_path, lpg_folder, segmenter_folder, kind, inputs):
    tree = CocoTree(tmp_path / "coco")
    tree.write()
    stage = lpg_folder if kind == "lpg" else segmenter_folder
    files = {path.name: path.read_bytes() for path in sorted(stage.iterdir())}
    metrics = {"kind": kind, "stage": 1, "dataset": "coco", "classes": ["cat", "dog", "cow"], "seconds": 1.5}
    metrics |= {"settings": {"run": {"num_stages": 2}}, "pseudo_mask_miou": 0.8, "per_class_iou": [0.9, 0.8, 0.7, 0.6]}
    files["metrics.json"] = json.dumps(metrics).encode()
    drawn = st.tuples(st.sampled_from(sorted(files)), CHANGES, st.integers(0, 9))
    fuzz(inputs, drawn, partial(check_stage, tmp_path, files, kind))


def check_stage(folder: Path, files: dict[str, bytes], kind: str, drawn: tuple) -> None:
    changed, changes, action = drawn
    stage = folder / "stage"
    stage.mkdir(exist_ok=True)
    for name, data in files.items():
        if name == changed:
            by_value = name.endswith(".json") and action != 9
            data = (
                json.dumps(changed_json(json.loads(data), changes)).encode()
                if by_value
                else changed_bytes(data, changes)
            )
        (stage / name).write_bytes(data)
    if changed == "metrics.json" or action == 0:
        with allowed():
            write_card(stage)
    elif kind == "lpg":
        image = BoxedImage(np.full((40, 60, 3), 90, np.uint8), np.array([[10, 8, 30, 24.0]]), np.array([1]))
        with allowed():
            generator = load_generator("lpg", model=stage, device="cpu")
            list(generator.patches([image], "instance"))
    else:
        shutil.rmtree(folder / "out", ignore_errors=True)
        run("segment", stage, folder / "coco" / "images", "--out", folder / "out", "--device", "cpu")


@inputs
def test_salient_object_networks(tmp_path, inputs):
    pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
    sys.path.insert(0, str(Path(__file__).parents[1] / "generators"))
    from test_saliency import save_red_detector

    data = save_red_detector(tmp_path / "red.onnx").read_bytes()
    fuzz(inputs, CHANGES, partial(check_onnx, tmp_path, data))


def check_onnx(folder: Path, data: bytes, changes: list) -> None:
    path = folder / "x.onnx"
    path.write_bytes(changed_bytes(data, changes))
    image = BoxedImage(np.full((40, 60, 3), 90, np.uint8), np.array([[10, 8, 30, 24.0]]), np.array([1]))
    with allowed():
        generator = load_generator(f"saliency:{path}")
        list(generator.patches([image], "instance"))
