"""Settings: sections, files, flags, and what is refused."""

import ast
import dataclasses
import json
import re

import pytest
import yaml
from tiny_run import ROOT, changed, nested, settings_of

from lpg_hf.training.config import Settings, check_same_run, flat, record_run
from lpg_hf.training.parsing import parse_settings, read_yaml, settings_from_dict
from lpg_hf.training.steps import _micro_batches


CONFIGS = sorted((ROOT / "training" / "configs").glob("*.yaml"))


@pytest.fixture
def folders(monkeypatch):
    monkeypatch.setenv("LPG_HF_DATA", "photographs")
    monkeypatch.setenv("LPG_HF_WEIGHTS", "imagenet")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_of_the_repository_parses_and_trains_on_1_to_8_processes(folders, path):
    settings = parse_settings(["--config", str(path)])
    for processes in range(1, 9):
        for network in ("lpg", "segmenter"):
            section = getattr(settings, network)
            shares = _micro_batches(network, section, processes)
            assert sum(map(sum, shares)) == section.batch_size


def test_every_setting_is_read_by_something():
    read = set()
    for path in [*(ROOT / "training").glob("*.py"), *(ROOT / "lpg_hf" / "training").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name != "__post_init__":
                read |= {inner.attr for inner in ast.walk(node) if isinstance(inner, ast.Attribute)}
    sections = [getattr(Settings(), f.name) for f in dataclasses.fields(Settings)]
    assert {f.name for section in sections for f in dataclasses.fields(section)} - read == set()


def test_there_are_few_settings():
    """Every one is a thing to know; the three datasets share theirs."""
    sections = {type(getattr(Settings(), f.name)) for f in dataclasses.fields(Settings)}
    assert sum(len(dataclasses.fields(section)) for section in sections) <= 75


def test_flags_win_over_the_file_and_lists_are_yaml(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("run: {seed: 3}\nlpg: {steps: 7}\nsegmenter: {learning_rate: 1e-2}\n")
    settings = parse_settings(["--config", str(path), "--run.seed", "5", "--lpg.scales=[0.5, 1]"])
    assert (settings.run.seed, settings.lpg.steps, settings.lpg.scales) == (5, 7, (0.5, 1.0))
    assert settings.segmenter.learning_rate == 0.01


def test_null_on_the_command_line_takes_a_setting_of_the_file_back(folders):
    path = str(ROOT / "training" / "configs" / "lpg_small.yaml")
    settings = parse_settings(["--config", path, "--lpg.init", "lpg-small", "--lpg.weights", "null"])
    assert (settings.lpg.init, settings.lpg.weights) == ("lpg-small", None)
    assert parse_settings(["--run.dir", "null"]).run.dir == "null"  # is never absent


def test_a_list_of_classes_or_the_name_of_a_set_on_the_command_line():
    assert parse_settings(["--aux.classes", "[cat, dog]"]).aux.classes == ("cat", "dog")
    assert parse_settings(["--aux.classes", "all"]).aux.classes == "all"


def test_fields_of_a_dict_are_added_one_by_one_and_an_empty_dict_takes_the_defaults(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("lpg: {config: {backbone: squeezenet}, processor: {view: box}}\n")
    settings = parse_settings(
        ["--config", str(path), "--lpg.config.head_size", "8", "--lpg.processor.edge_radius", "1"]
    )
    assert settings.lpg.config == {"backbone": "squeezenet", "head_size": 8}
    assert settings.lpg.view == "box" and settings.lpg.processor["image_mean"][0] == 0.48108
    emptied = parse_settings(["--config", str(path), "--lpg.config", "{}", "--lpg.processor", "{}"])
    assert emptied.lpg == Settings().lpg


def test_evaluation_data_are_the_targets_where_nothing_else_is_said():
    target = {"format": "coco", "annotations": "train.json", "images": "images", "split": None, "classes": "all80"}
    evaluation = settings_from_dict({"target": target, "evaluation": {"annotations": "val.json"}}, "a test").evaluation
    assert (evaluation.format, evaluation.images, evaluation.classes) == ("coco", "images", "all80")
    assert (evaluation.annotations, evaluation.split) == ("val.json", "val")
    assert settings_from_dict({"target": target}, "a test").evaluation.annotations is None


def test_variables_of_the_environment_are_replaced_and_a_missing_one_is_named(monkeypatch, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("target: {root: '${LPG_HF_DATA}/voc'}\n")
    monkeypatch.setenv("LPG_HF_DATA", "/data")
    assert parse_settings(["--config", str(path)]).target.root == "/data/voc"
    monkeypatch.delenv("LPG_HF_DATA")
    with pytest.raises(ValueError, match=r"target.root=.* needs .* LPG_HF_DATA: set it, or pass --target.root"):
        parse_settings(["--config", str(path)])
    assert parse_settings(["--config", str(path), "--target.root", "voc"]).target.root == "voc"


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--lpg.stepz", "3"], "Unknown setting lpg.stepz in the command line. Did you mean lpg.steps?"),
        (["--lpg.step", "3"], "Unknown setting lpg.step"),  # an abbreviation is not a flag
        (["--lpg_steps", "3"], "Unknown setting lpg_steps"),
        (["--lpg", "3"], "lpg='3' in the command line must hold `name: value` lines"),
        (["--run.seed"], "'--run.seed' is not a flag with its value"),
        (["seed", "3"], "'seed' is not a flag with its value"),
        (["--run.seed", "many"], "run.seed='many' in the command line is str; it must be int"),
        (["--run.seed.x", "3"], "run.seed={'x': 3} in the command line is dict; it must be int"),
        (["--lpg.scales", "[0.5"], "--lpg.scales is not valid YAML"),
        (["--run.mode", "strong"], "run.mode='strong' is unknown. Choose one of weak, semi, full"),
    ],
)
def test_a_wrong_flag_is_one_line_that_names_it(flags, said):
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        parse_settings(flags)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["run: [", "a list", "{run: 1", "- run", "run: 1\n\tlpg: 2", "lpg: null", "run: !!float ''"]
)
def test_a_file_that_is_not_settings_is_one_line_that_names_it(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="config.yaml") as error:
        parse_settings(["--config", str(path)])
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.yaml"):
        read_yaml(str(tmp_path / "nothing.yaml"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"lpg.steps": 1.5},
        {"lpg.steps": 0},
        {"lpg.steps": True},
        {"lpg.scales": []},
        {"lpg.scales": ["large"]},
        {"lpg.context_range": [0.1, 0.2, 0.3]},
        {"lpg.low_detail": 1.5, "lpg.processor.view": "box"},
        {"lpg.low_detail": 0.5, "lpg.processor.view": "image"},
        {"lpg.schedule": "steps"},
        {"lpg.degrade": 0.5},  # of image views
        {"lpg.box_noise": 0.5},
        {"lpg.box_noise": 1.5, "lpg.processor.view": "box"},
        {"lpg.view_sizes": [128], "lpg.processor.view": "image"},
        {"lpg.view_sizes": [0], "lpg.processor.view": "box"},
        {"lpg.view_sizes": [128.5], "lpg.processor.view": "box"},
        {"lpg.color_jitter": -0.1},
        {"lpg.class_prob_dropout": 1.0},
        {"lpg.class_prob_dropout": 0.5, "run.num_stages": 1, "lpg.stage1_class_prob": False},
        {"lpg.config": {"class_prob_optional": True}},
        {"lpg.ema": 1.0},
        {"lpg.target": "object"},
        {"lpg.init": "lpg-small", "lpg.weights": "w.safetensors"},
        {"lpg.processor.view": "boxes"},
        {"lpg.processor.view_size": "large"},
        {"lpg.processor.vew": "box"},
        {"lpg.processor.image_mean": [0.5]},
        {"segmenter.learning_rate": "fast"},
        {"segmenter.scales": [0.5, 0.0]},
        {"segmenter.config": "depths"},
        {"segmenter.model": None},
        {"aux.classes": [1, 2]},
        {"aux.size_mismatch": "crop"},
        {"target.size_mismatch": "crop"},
        {"run.aux_fraction": 0.0},
        {"run.dir": " "},
        {"run.seed": -1},
        {"run.sync_batch_norm": 1},
        {"run.fixed_stage": 4},
        {"run.measure": ["crf"]},
        {"run.measure": ["everything"]},
    ],
    ids=lambda wrong: " ".join(wrong),
)
def test_a_value_that_would_fail_later_fails_at_once_by_its_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        settings_of(wrong, "test.yaml")


def test_a_key_that_is_not_text_is_named():
    with pytest.raises(ValueError, match="Unknown setting lpg.7 in test.yaml"):
        settings_from_dict({"lpg": {7: 1}}, "test.yaml")


def test_help_lists_every_flag(capsys):
    with pytest.raises(SystemExit):
        parse_settings(["--help"], "what it does")
    text = capsys.readouterr().out
    assert text.startswith("what it does") and all(f"--{name} VALUE" in text for name in flat(Settings()))


def test_settings_come_back_from_their_own_file(settings, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(nested(flat(settings))), encoding="utf-8")
    assert parse_settings(["--config", str(path)]) == settings


def begun_run(settings, folder, rows=None):
    """The record of a run that has a checkpoint."""
    record_run(settings, folder / "settings.json", rows or {})
    (folder / "stage0" / "segmenter_checkpoints").mkdir(parents=True)
    (folder / "stage0" / "segmenter_checkpoints" / "step_2.pt").touch()
    return folder / "settings.json"


def test_a_run_is_resumed_with_the_same_settings_only(settings, tmp_path):
    record = begun_run(settings, tmp_path)
    check_same_run(changed(settings, {"run.num_workers": 3, "run.log_every": 7}), record)
    with pytest.raises(ValueError, match="lpg.steps: 5 then, 6 now"):
        check_same_run(changed(settings, {"lpg.steps": 6}), record)


def test_a_run_may_be_extended_to_more_stages_but_not_shortened(settings, tmp_path):
    record = begun_run(settings, tmp_path)
    check_same_run(changed(settings, {"run.num_stages": 3}), record)
    with pytest.raises(ValueError, match=r"settings \(run.num_stages: 2 then, 1 now\)"):
        check_same_run(changed(settings, {"run.num_stages": 1}), record)


def test_a_run_is_resumed_with_the_same_data_only(settings, tmp_path):
    record = begun_run(settings, tmp_path, {"aux": "abc"})
    check_same_run(settings, record, {"aux": "abc"})
    with pytest.raises(ValueError, match="started with other images or objects of aux. Bring them back"):
        check_same_run(settings, record, {"aux": "abd"})


def test_a_start_that_left_neither_checkpoint_nor_network_never_locks_the_folder(settings, tmp_path):
    record = begun_run(settings, tmp_path, {"aux": "abc"})
    (tmp_path / "stage0" / "segmenter_checkpoints" / "step_2.pt").unlink()
    (tmp_path / "box_fill.json").write_text("{}", encoding="utf-8")
    other = changed(settings, {"lpg.steps": 6})
    check_same_run(other, record, {"aux": "abd"})
    record_run(settings, record, {"aux": "abc"})
    assert (tmp_path / "box_fill.json").is_file()
    record_run(other, record, {"aux": "abd"})
    assert not (tmp_path / "box_fill.json").exists()  # was measured on the other data
    assert json.loads(record.read_text(encoding="utf-8"))["lpg.steps"] == 6


def test_a_run_that_is_older_than_a_setting_had_its_default(settings, tmp_path):
    record = begun_run(settings, tmp_path)
    before = json.loads(record.read_text(encoding="utf-8"))
    del before["lpg.color_jitter"]
    record.write_text(json.dumps(before), encoding="utf-8")
    check_same_run(settings, record)
    with pytest.raises(ValueError, match="lpg.color_jitter: 0.0 then, 0.5 now"):
        check_same_run(changed(settings, {"lpg.color_jitter": 0.5}), record)


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"run: {seed: \x98}")
    with pytest.raises(ValueError, match="x.yaml is not UTF-8 text: byte 12"):
        parse_settings(["--config", str(tmp_path / "x.yaml")])


def test_a_whole_number_beyond_any_float_is_named(tmp_path):
    path = tmp_path / "huge.yaml"
    path.write_text(f"lpg: {{learning_rate: 1{'0' * 400}}}", encoding="utf-8")
    with pytest.raises(ValueError, match="lpg.learning_rate=1000.* is int; it must be float"):
        parse_settings(["--config", str(path)])
