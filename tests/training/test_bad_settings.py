"""Settings that cannot work: one line that names them, before any training."""

import json
import runpy
import sys
from shutil import copytree

import pytest
import yaml
from tiny_run import ROOT

from training.config import parse_settings, settings_from_dict
from training.data import check_num_classes


@pytest.fixture
def script(capsys, monkeypatch, values, tmp_path):
    """Runs a script of training/ as `__main__` in this process: (exit code, what a user reads)."""

    def run(name: str, *flags: str, config: str | None = None) -> tuple[int, str]:
        path = tmp_path / "config.yaml"
        path.write_text(config or yaml.safe_dump(values | {"run_dir": str(tmp_path / "run")}), encoding="utf-8")
        program = ROOT / "training" / name
        monkeypatch.setattr(sys, "argv", [name, "--config", str(path), *flags])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(program), run_name="__main__")
        if isinstance(stopped.value.code, str):  # the interpreter prints the text and exits with 1
            return 1, stopped.value.code
        return stopped.value.code, capsys.readouterr().err.strip()

    return run


@pytest.mark.parametrize("name", ["em.py", "deploy.py"])
@pytest.mark.parametrize(
    "flags, named",
    [
        (["--lpg_stepz", "3"], "lpg_stepz"),
        (["--lpg_step", "3"], "lpg_step"),  # an abbreviation is no flag
        (["--seed"], "seed"),
        (["--seed", "many"], "seed='many'"),
        (["--lpg_scales", "[0.5"], "lpg_scales"),
        (["--mode", "strong"], "mode='strong'"),
    ],
)
def test_a_wrong_flag_is_one_line_that_names_it(script, name, flags, named):
    code, said = script(name, *flags)
    assert code != 0
    assert said.startswith(f"{name}: ") and named in said and "\n" not in said


@pytest.mark.parametrize("text", ["seed: [", "a list", "{seed: 1", "- seed", "seed: 1\n\tlpg_steps: 2"])
def test_a_file_that_is_not_settings_is_one_line_that_names_it(script, text):
    code, said = script("em.py", config=text)
    assert code != 0 and "config.yaml" in said and "\n" not in said


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.yaml"):
        parse_settings(["--config", str(tmp_path / "nothing.yaml")])


@pytest.mark.parametrize(
    "wrong",
    [
        {"segmenter_learning_rate": "fast"},
        {"lpg_scales": []},
        {"lpg_scales": ["large"]},
        {"segmenter_scales": [0.5, 0.0]},
        {"lpg_image_mean": [0.5]},
        {"lpg_context_range": [0.1, 0.2, 0.3]},
        {"aux_classes": [1, 2]},
        {"keep_checkpoints": 0},
        {"seed": -1},
        {"channels_last": 1},
        {"segmenter_config": "depths"},
        {"segmenter": None},
        {"lpg_low_detail": 1.5, "view": "box"},
        {"lpg_color_jitter": -0.1},
        {"lpg_class_prob_dropout": 1.0},
        {"lpg_class_prob_dropout": 0.5, "num_stages": 1, "stage1_class_prob": False},
        {"lpg_low_detail": 0.5, "view": "image"},
        {"lpg_config": {"class_prob_optional": True}},
        {"lpg_ema": 1.0},
        {"lpg_warmup": 1.0},
        {"lpg_schedule": "steps"},
        {"lpg_degrade": 0.5},  # of image views
        {"lpg_box_noise": 0.5},
        {"lpg_box_noise": 1.5, "view": "box"},
        {"lpg_box_noise_range": [0.3, -0.15]},
        {"lpg_box_noise_range": [-0.5, 0.3]},
        {"lpg_view_sizes": [128], "view": "image"},
        {"lpg_view_sizes": [0], "view": "box"},
        {"lpg_target": "object"},
        {"fixed_stage": 4},
        {"aux_size_mismatch": "crop"},
        {"target_size_mismatch": "crop"},
    ],
)
def test_a_value_that_would_fail_later_fails_at_once(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        settings_from_dict(wrong, "test.yaml")


def test_a_key_that_is_no_text_is_named():
    with pytest.raises(ValueError, match="Unknown setting 7 in test.yaml"):
        settings_from_dict({7: 1}, "test.yaml")


@pytest.mark.parametrize(
    "wrong, named",
    [
        ({"target_root": "./nowhere"}, "nowhere"),
        ({"eval_split": "dusk"}, "dusk"),
        ({"target_classes": ["zebra"]}, "zebra"),
        ({"stages": "./no/run"}, "no/run"),
        (
            {"mode": "semi", "semi_split": "val"},
            "no image of semi_split=val (val_000001.jpg, ...) is a target image (train_000001",
        ),
    ],
)
def test_bad_target_data_and_missing_stages_are_named_at_once(script, values, finished_run, tmp_path, wrong, named):
    changed = {"stages": str(finished_run)} | wrong
    flags = [word for name, value in changed.items() for word in (f"--{name}", str(value))]
    code, said = script("deploy.py", *flags)
    first, _, report = said.partition("\n")  # of the classes that there are, where those asked for are not
    assert code != 0 and named in first and "Traceback" not in report
    assert not list((tmp_path / "run").rglob("stage0"))


@pytest.mark.parametrize("name", ["em.py", "deploy.py"])
def test_r_a3_images_that_would_share_a_mask_are_refused_before_any_training(
    script, values, data, finished_run, tmp_path, name
):
    """Two entries of one image in the COCO file; two xml files with one <filename>."""
    content = json.loads((data / "aux" / "annotations.json").read_text(encoding="utf-8"))
    first, second = content["images"][:2]
    second["file_name"] = first["file_name"]
    second["height"], second["width"] = first["height"], first["width"]
    (tmp_path / "aux.json").write_text(json.dumps(content), encoding="utf-8")
    copytree(data / "target", tmp_path / "target")
    one, other = sorted((tmp_path / "target" / "Annotations").glob("train_*.xml"))[:2]
    other.write_bytes(one.read_bytes())
    (tmp_path / "target" / "JPEGImages" / f"{other.stem}.jpg").unlink()
    changed = values | {"aux_annotations": str(tmp_path / "aux.json"), "target_root": str(tmp_path / "target")}
    changed |= {"run_dir": str(tmp_path / "run"), "stages": str(finished_run)}
    code, said = script(name, config=yaml.safe_dump(changed))
    shared = first["file_name"] if name == "em.py" else one.stem
    assert code != 0 and f"two entries of the image {shared}" in said and "\n" not in said
    assert not list((tmp_path / "run").rglob("stage*"))


def test_more_classes_than_a_label_map_of_8_bits_holds_are_refused():
    check_num_classes(["x"] * 254)
    with pytest.raises(ValueError, match="255 classes.*at most 254.*lpg-hf masks"):
        check_num_classes(["x"] * 255)
