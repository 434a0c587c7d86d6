"""A stage's config may ask for no more than its weights hold: nothing is built or allocated for it."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from lpg_hf import LPGModel
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


@pytest.mark.parametrize("number", [10**5, 10**9])
def test_more_layers_than_tensors_are_not_built(lpg_folder: Path, segmenter_folder: Path, tmp_path: Path, number: int):
    lpg = changed(lpg_folder, tmp_path / "lpg", depths=[1, number])
    segmenter = changed(segmenter_folder, tmp_path / "segmenter", num_encoder_blocks=number)
    for folder, field in ((lpg, "depths"), (segmenter, "num_encoder_blocks")):
        with pytest.raises(ValueError, match=rf"config.json has {field} of 10*[01] layers, but the weights hold"):
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
