"""A stage's config may ask for no more than its weights hold: nothing is built or allocated for it."""

import io
import json
import os
import shutil
import socket
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lpg_hf import LPGModel
from lpg_hf._weight_files import check_pickle, reading_weights
from lpg_hf.hub.loading import load_network


def changed(stage: Path, folder: Path, **fields: object) -> Path:
    shutil.copytree(stage, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    return folder


def test_it_is_the_model_that_was_saved(lpg_folder: Path, segmenter_folder: Path):
    assert isinstance(load_network(lpg_folder), LPGModel)
    model = load_network(segmenter_folder, torch.bfloat16)
    assert model.dtype == torch.bfloat16 and model.config.model_type == "segformer" and not model.training


@pytest.mark.parametrize("number", [10**4, 10**5, 10**9])
def test_more_layers_than_tensors_are_not_built(lpg_folder: Path, segmenter_folder: Path, tmp_path: Path, number: int):
    lpg = changed(lpg_folder, tmp_path / "lpg", depths=[1, number])
    segmenter = changed(segmenter_folder, tmp_path / "segmenter", num_encoder_blocks=number)
    for folder, field in ((lpg, "depths"), (segmenter, "num_encoder_blocks")):
        with pytest.raises(ValueError, match=rf"json has {field} of 10*[01](, above 65535| layers, but the weights)"):
            load_network(folder)


def test_more_numbers_than_are_saved_are_not_allocated(lpg_folder: Path, segmenter_folder: Path, tmp_path: Path):
    lpg = changed(lpg_folder, tmp_path / "lpg", neck_size=10**7)
    segmenter = changed(segmenter_folder, tmp_path / "segmenter", mlp_ratios=[4 * 10**6, 4, 4, 4])
    for folder in (lpg, segmenter):
        with pytest.raises(ValueError, match="config.json is of a model of .* numbers, but the weights hold") as error:
            load_network(folder)
        assert "\n" not in str(error.value)


def test_a_model_of_another_kind_is_named(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="holds a 'bert' model: neither an LPG nor a semantic segmenter"):
        load_network(tmp_path)


@pytest.mark.timeout(20)
def test_a_pipe_in_the_place_of_weights_is_not_waited_for(lpg_folder: Path, tmp_path: Path):
    folder = changed(lpg_folder, tmp_path / "lpg")
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    with pytest.raises(ValueError, match="model.safetensors is a pipe or a device, not a file. Remove it"):
        load_network(folder)


@pytest.fixture
def no_request(monkeypatch: pytest.MonkeyPatch):
    def ask(*args: object, **options: object) -> None:
        raise AssertionError("another machine was asked")

    monkeypatch.setattr(socket, "getaddrinfo", ask)
    monkeypatch.setattr("transformers.backbone_utils.hf_api", ask)


@pytest.mark.parametrize("backbone", [{"backbone": "some-org/name"}, {"use_timm_backbone": True}])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_config_chooses_no_repository_that_is_asked_for(
    no_request: None, segmenter_folder: Path, tmp_path: Path, backbone: dict, depth: int
):
    config = {"model_type": "upernet", **backbone}
    for _ in range(depth):
        config = {"model_type": "upernet", "backbone_config": config}
    folder = changed(segmenter_folder, tmp_path / "segmenter")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="config.json names a backbone .* Replace it by the backbone's own config"):
        load_network(folder)


def test_a_config_names_no_code_on_the_hub(no_request: None, segmenter_folder: Path, tmp_path: Path):
    folder = changed(segmenter_folder, tmp_path / "segmenter", _attn_implementation="some-org/kernel")
    with pytest.raises(
        ValueError, match="_attn_implementation='some-org/kernel', which is code on the Hub. Remove this"
    ):
        load_network(folder)


@pytest.mark.parametrize("name", ["sub/m.safetensors.index.json", "sub/m.safetensors", "../m.safetensors", "m.bin", 3])
def test_a_config_names_no_weights_elsewhere(segmenter_folder: Path, tmp_path: Path, name: object):
    folder = changed(segmenter_folder, tmp_path / "segmenter", transformers_weights=name)
    with pytest.raises(ValueError, match="transformers_weights=.* is not the name of a safetensors file beside it"):
        load_network(folder)


def test_an_index_is_looked_at_wherever_weights_are_read(segmenter_folder: Path, tmp_path: Path):
    folder = changed(segmenter_folder, tmp_path / "segmenter")
    shards = {"weight_map": {"a": str(folder / "model.safetensors")}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(shards))
    with pytest.raises(ValueError, match="is not the name of a file beside it"), reading_weights(folder):
        pytest.fail("it was read")


def test_labels_are_not_counted_out_before_the_weights_are_known(
    lpg_folder: Path, segmenter_folder: Path, tmp_path: Path
):
    for stage in (lpg_folder, segmenter_folder):
        folder = changed(stage, tmp_path / stage.name)
        config = json.loads((folder / "config.json").read_text())
        config = {name: value for name, value in config.items() if name not in ("id2label", "label2id")}
        (folder / "config.json").write_text(json.dumps(config | {"num_labels": 10**12}))
        with pytest.raises(ValueError, match="config.json has num_labels of 1000000000000, above 65535"):
            load_network(folder)


def test_modules_of_any_field_are_bounded_by_the_tensors(segmenter_folder: Path, tmp_path: Path):
    backbone = {"model_type": "resnet", "embedding_size": 4, "hidden_sizes": [4] * 4, "depths": [1] * 4}
    backbone |= {"layer_type": "basic", "out_features": ["stage1", "stage2", "stage3", "stage4"]}
    folder = changed(segmenter_folder, tmp_path / "segmenter")
    config = {"model_type": "upernet", "hidden_size": 1, "auxiliary_channels": 1, "backbone_config": backbone}
    for extra in ({"auxiliary_num_convs": 10**9}, {"pool_scales": [1] * 10**5}):
        (folder / "config.json").write_text(json.dumps(config | extra))
        with pytest.raises(ValueError, match="config.json makes more than .* modules") as error:
            load_network(folder)
        assert "\n" not in str(error.value)
    nn.Sequential(*[nn.Identity() for _ in range(3000)])  # the limit ended with the loading


def with_pickled_weights(stage: Path, folder: Path, legacy: bool, **fields: object) -> Path:
    weights = load_file(stage / "model.safetensors")
    changed(stage, folder, **fields)
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    return folder


@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_weights_bound_the_model_too(segmenter_folder: Path, tmp_path: Path, legacy: bool):
    same = load_network(with_pickled_weights(segmenter_folder, tmp_path / "same", legacy)).state_dict()
    for name, tensor in load_network(segmenter_folder).state_dict().items():
        assert torch.equal(same[name], tensor)
    folder = with_pickled_weights(segmenter_folder, tmp_path / "larger", legacy, mlp_ratios=[4 * 10**9, 4, 4, 4])
    with pytest.raises(ValueError, match="config.json is of a model of .* numbers, but the weights hold"):
        load_network(folder)


def test_a_folder_without_weights_is_named_before_a_model_is_built(segmenter_folder: Path, tmp_path: Path):
    folder = changed(segmenter_folder, tmp_path / "segmenter", mlp_ratios=[4 * 10**9, 4, 4, 4])
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="holds no weights: neither model.safetensors nor pytorch_model.bin"):
        load_network(folder)


def torch_file(path: Path, replace: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """A file of torch.save, some of whose entries are replaced."""
    saved = io.BytesIO()
    torch.save({"x": torch.zeros(10**5)}, saved)
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(path, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, replace.get(name.partition("/")[2], old.read(name)))
    return path


# torch.load(weights_only=True) calls each with the number that it finds, and takes so many bytes.
@pytest.mark.parametrize(
    "name", ["builtins\nbytearray", "__builtin__\nbytearray", "torch\nFloatTensor", "torch.storage\nUntypedStorage"]
)
@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_asks_for_memory_is_not_loaded(segmenter_folder: Path, tmp_path: Path, name: str, legacy: bool):
    asked = f"\x80\x02c{name}\n".encode("latin1") + b"\x8a\x05" + (5 * 10**9).to_bytes(5, "little") + b"\x85R."
    folder = changed(segmenter_folder, tmp_path / "segmenter")
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    if legacy:
        path.write_bytes(asked)
    else:
        torch_file(path, {"data.pkl": asked})
    with pytest.raises(ValueError, match=f"refers to the Python object {name.replace(chr(10), '.')}"):
        load_network(folder)


def test_a_torch_file_holds_what_is_made_of_it(tmp_path: Path):
    assert check_pickle(torch_file(tmp_path / "plain.bin", {})) > 0
    with pytest.raises(ValueError, match="bomb.bin cannot be read .the bytes are not what torch.save writes"):
        with reading_weights(torch_file(tmp_path / "bomb.bin", {}, zipfile.ZIP_DEFLATED)):
            pytest.fail("it was loaded")


def test_a_shard_of_any_name_is_looked_at(segmenter_folder: Path, tmp_path: Path):
    folder = changed(segmenter_folder, tmp_path / "segmenter")
    torch_file(folder / "a.dat", {}, zipfile.ZIP_DEFLATED)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"x": "a.dat"}}))
    with pytest.raises(ValueError, match="the bytes are not what torch.save writes"):
        load_network(folder)
