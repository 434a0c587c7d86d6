import ast
import dataclasses
import json

import pytest
from tiny_run import ROOT, launch

from training.config import Settings, check_same_run, parse_settings, settings_from_dict
from training.steps import divide_batch


def test_every_configuration_of_the_repository_parses():
    paths = sorted((ROOT / "training" / "configs").glob("*.yaml"))
    assert len(paths) >= 4
    for path in paths:
        parse_settings(["--config", str(path)])


def test_the_batches_of_every_configuration_divide_on_one_process_and_on_two():
    for path in (ROOT / "training" / "configs").glob("*.yaml"):
        settings = parse_settings(["--config", str(path)])
        for processes in (1, 2):
            divide_batch("lpg", settings.lpg_batch_size, settings.lpg_micro_batch_size, processes)
            divide_batch("segmenter", settings.segmenter_batch_size, settings.segmenter_micro_batch_size, processes)


def test_every_setting_is_read_by_something():
    read = set()
    for path in (ROOT / "training").glob("*.py"):
        if path.name != "config.py":
            read |= {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    assert {f.name for f in dataclasses.fields(Settings)} - read == set()


def test_flags_win_over_the_file_and_lists_are_yaml(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("seed: 3\nlpg_steps: 7\nsegmenter_learning_rate: 1e-2\n")
    settings = parse_settings(["--config", str(path), "--seed", "5", "--lpg_scales", "[0.5, 1]"])
    assert (settings.seed, settings.lpg_steps, settings.lpg_scales) == (5, 7, [0.5, 1])
    assert settings.segmenter_learning_rate == 0.01


def test_null_on_the_command_line_takes_a_setting_of_the_file_back():
    path = str(ROOT / "training" / "configs" / "lpg_small.yaml")
    settings = parse_settings(["--config", path, "--lpg_init", "lpg-small", "--lpg_weights", "null"])
    assert (settings.lpg_init, settings.lpg_weights) == ("lpg-small", None)
    assert parse_settings(["--run_dir", "null"]).run_dir == "null"  # is never absent


def test_a_list_of_classes_or_the_name_of_a_set_on_the_command_line():
    assert parse_settings(["--aux_classes", "[cat, dog]"]).aux_classes == ["cat", "dog"]
    assert parse_settings(["--aux_classes", "all"]).aux_classes == "all"


@pytest.mark.parametrize(
    "wrong, named",
    [
        ({"lpg_step": 5}, "lpg_step"),
        ({"lpg_steps": "many"}, "lpg_steps"),
        ({"lpg_steps": 1.5}, "lpg_steps"),
        ({"lpg_steps": 0}, "lpg_steps"),
        ({"lpg_steps": True}, "lpg_steps"),
        ({"mode": "strong"}, "mode"),
        ({"view": "boxes"}, "view"),
        ({"aux_fraction": 0.0}, "aux_fraction"),
        ({"run_dir": " "}, "run_dir"),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_it(wrong, named):
    with pytest.raises(ValueError, match=named):
        settings_from_dict(wrong, "test.yaml")


def test_an_unknown_flag_stops_the_program(capsys):
    with pytest.raises(SystemExit):
        parse_settings(["--lpg_stepz", "3"])
    assert "lpg_stepz" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"lpg_stepz": 3}, "lpg_stepz"),
        ({"aux_annotations": "nowhere/a.json"}, "nowhere/a.json"),
        ({"segmenter_config": {"depth": 3}}, "depth"),
        ({"lpg_config": {"hidden_size": [8]}}, "hidden_size"),
        ({"aux_classes": ["zebra"]}, "zebra"),
        ({"segmenter": "./no/such/model"}, "no/such/model"),
    ],
)
def test_bad_input_is_one_clear_line_and_an_exit_code(values, tmp_path, changes, named):
    result = launch("em.py", values | changes, tmp_path / "run")
    assert result.returncode != 0
    assert named in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "run" / "aux" / "stage0" / "segmenter").exists()


def test_a_run_is_continued_with_the_same_settings_only(settings, tmp_path):
    record = tmp_path / "settings.json"
    check_same_run(settings, record)
    check_same_run(dataclasses.replace(settings, num_workers=3, log_every=7), record)
    with pytest.raises(ValueError, match="lpg_steps: 5 then, 6 now"):
        check_same_run(dataclasses.replace(settings, lpg_steps=6), record)


def test_a_run_that_is_older_than_a_setting_had_its_default(settings, tmp_path):
    record = tmp_path / "settings.json"
    check_same_run(settings, record)
    before = json.loads(record.read_text(encoding="utf-8"))
    del before["lpg_color_jitter"]
    record.write_text(json.dumps(before), encoding="utf-8")
    check_same_run(settings, record)
    with pytest.raises(ValueError, match="lpg_color_jitter: 0.0 then, 0.5 now"):
        check_same_run(dataclasses.replace(settings, lpg_color_jitter=0.5), record)
