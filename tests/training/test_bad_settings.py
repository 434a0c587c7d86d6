"""Data and models that cannot work: one line that names them, before any training."""

import os
import re
import runpy
import socket
import sys
from shutil import copytree

import pytest
import yaml
from tiny_run import LARGEFOV, ROOT, launch, nested

from lpg_hf._files import locked_folder
from lpg_hf.training.data import check_num_classes
from lpg_hf.training.parsing import parse_settings


@pytest.fixture
def script(monkeypatch, values, tmp_path, capsys):
    """Runs a script of training/ as `__main__` in this process; returns what it says as it stops."""

    def run(name: str, changes: dict) -> str:
        path = tmp_path / "config.yaml"
        content = nested(values | {"run.dir": str(tmp_path / "run")} | changes)
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        monkeypatch.setattr(sys, "argv", [name, "--config", str(path)])
        before = list(tmp_path.glob("run/*"))
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(ROOT / "training" / name), run_name="__main__")
        assert stopped.value.code == 2
        printed, prefix, said = capsys.readouterr().err.rpartition(f"{name}: ")
        assert prefix and "Traceback" not in printed
        assert list(tmp_path.glob("run/*")) == before and (tmp_path / "run").exists() == bool(before)
        return prefix + said.rstrip("\n")

    return run


def test_a_wrong_setting_stops_the_script_with_its_name(script):
    assert script("em.py", {"lpg.stepz": 3}).startswith("em.py: Unknown setting lpg.stepz in ")


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"aux.annotations": "nowhere/a.json"}, "nowhere/a.json"),
        ({"segmenter.config": {"depth": 3}}, "segmenter.config has fields that .* lacks: depth"),
        ({"lpg.config": {"hidden_size": [8]}}, "lpg.config has fields that .* lacks: hidden_size"),
        ({"aux.classes": ["zebra"]}, "zebra"),
        ({"segmenter.model": "./no/such/model"}, "no/such/model"),
        ({"aux.zero_based": True}, "format 'coco' has no option zero_based"),
    ],
)
def test_bad_auxiliary_data_and_networks_are_named_at_once(script, changes, named):
    assert re.search(named, script("em.py", changes))


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"target.root": "./nowhere"}, "nowhere"),
        ({"evaluation.split": "dusk"}, "dusk"),
        ({"target.classes": ["zebra"]}, "zebra"),
        ({"run.stages": "./no/run"}, "no/run"),
        ({"run.stages": None}, "em.py"),
        ({"run.measure": ["segmenter", "crf"]}, r'run.measure has crf. .*pip install "lpg_hf\[crf\]"'),
        ({"run.log_with": "dvclive"}, "run.log_with=dvclive, but that package is not installed"),
        ({"segmenter.model": None, "run.num_stages": 1, "lpg.stage1_class_prob": False}, "segmenter.model is null"),
        (
            {"run.mode": "semi", "run.semi_split": "val"},
            r"no image of run.semi_split=val \(val_000001.jpg, ...\) is a target image \(train_000001",
        ),
    ],
)
def test_bad_target_data_and_missing_stages_are_named_at_once(script, finished_run, monkeypatch, changes, named):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)  # as where it is not installed
    said = script("deploy.py", {"run.stages": str(finished_run)} | changes)
    assert re.search(named, said.partition("\n")[0])  # a list of the classes that there are may follow


def test_objects_cannot_be_learnt_from_maps_of_classes(script, values):
    maps = {"aux.format": "voc", "aux.root": values["target.root"], "aux.split": "train"}
    maps |= {"aux.annotations": None, "aux.images": None, "lpg.processor.view": "box", "lpg.target": "object"}
    assert "lpg.target=object, but the auxiliary set has maps of classes" in script("em.py", maps)


def test_images_that_would_share_a_mask_are_refused_before_any_training(script, data, finished_run, tmp_path):
    """Two xml files with one <filename>; two COCO entries of one image are one image (test_coco.py)."""
    copytree(data / "target", tmp_path / "target")
    one, other = sorted((tmp_path / "target" / "Annotations").glob("train_*.xml"))[:2]
    other.write_bytes(one.read_bytes())
    (tmp_path / "target" / "JPEGImages" / f"{other.stem}.jpg").unlink()
    changes = {"target.root": str(tmp_path / "target"), "run.stages": str(finished_run)}
    said = script("deploy.py", changes)
    assert f"two entries of the image {one.stem}" in said and "\n" not in said


@pytest.mark.parametrize("name", ["em.py", "deploy.py"])
@pytest.mark.parametrize("mode", ["weak", "full"])
def test_a_run_that_another_process_writes_is_refused_in_one_line_that_names_it(script, tmp_path, name, mode):
    """All parts of a run have one log.jsonl."""
    with locked_folder(tmp_path / "run"):
        said = script(name, {"run.mode": mode})
    process = f"process {os.getpid()} on {socket.gethostname()}"
    assert said.startswith(f"{name}: another process writes {tmp_path / 'run'} now ({process}). Wait until it ends")
    assert "\n" not in said


@pytest.mark.slow
def test_two_processes_that_find_their_run_taken_say_so_once(values, tmp_path):
    with locked_folder(tmp_path / "run"):
        result = launch("em.py", values, tmp_path / "run", processes=2)
    assert result.returncode != 0 and len(re.findall("em.py: another process writes .*", result.stderr)) == 1
    assert 'training/em.py", line' not in result.stderr


@pytest.mark.parametrize("name", ["em.py", "deploy.py"])
def test_without_arguments_one_screen_says_what_is_needed_and_what_there_is(monkeypatch, capsys, name):
    monkeypatch.setattr(sys, "argv", [name])
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "training" / name), run_name="__main__")
    assert not stopped.value.code
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 25 and max(map(len, lines)) <= 120
    for config in (ROOT / "training" / "configs").glob("*.yaml"):
        assert any(line.startswith(f"  {config.name} ") for line in lines)
    for line in lines:
        if "accelerate launch" in line:  # each of the commands parses
            parse_settings(line.partition("#")[0].split()[3:])


@pytest.mark.slow
def test_a_refusal_of_two_processes_is_one_line(values, tmp_path):
    """The second phase's batch is looked at before the first one is trained; the launcher has its say after it."""
    result = launch("em.py", values | LARGEFOV | {"lpg.batch_size": 1}, tmp_path / "run", processes=2)
    assert result.returncode != 0
    said = [line for line in result.stderr.splitlines() if "em.py: " in line]
    assert said == [
        "em.py: lpg.batch_size=1 is less than one image for each of the 2 processes. Raise lpg.batch_size, or "
        "start fewer processes."
    ]
    assert 'training/em.py", line' not in result.stderr  # no traceback of ours
    assert not (tmp_path / "run").exists()


def test_more_classes_than_a_label_map_of_8_bits_holds_are_refused():
    check_num_classes(["x"] * 254)
    with pytest.raises(ValueError, match="255 classes.*at most 254.*lpg-hf masks"):
        check_num_classes(["x"] * 255)


def doubled(kind: str, item: str) -> str:
    """Yaml of 30 lists, each of which holds the one before it twice."""
    lists = [f"k{n}: &k{n} {kind}[{item % f'*k{n - 1}'}, {item % f'*k{n - 1}'}]" for n in range(1, 30)]
    return f"{{k0: &k0 x, {', '.join(lists)}}}"


@pytest.mark.parametrize(
    "config",
    [doubled("", "%s"), doubled("!!pairs ", "x: %s"), f"{{a: &a {'x' * 10_000}, b: [{'*a, ' * 1000}]}}"],
    ids=["lists", "pairs", "a long text"],
)
def test_aliases_make_no_setting_larger_than_its_text(tmp_path, config):
    path = tmp_path / "c.yaml"
    path.write_text(f"lpg:\n  config: {config}\n")
    with pytest.raises(ValueError, match=r"c.yaml is not valid YAML: its aliases \(\*name\) repeat too much"):
        parse_settings(["--config", str(path)])
    with pytest.raises(ValueError, match=r"--lpg.config is not valid YAML: its aliases \(\*name\) repeat too much"):
        parse_settings(["--lpg.config", config])


def test_merge_keys_are_refused_in_settings(tmp_path):
    (tmp_path / "c.yaml").write_text("lpg: &a {steps: 3}\nsegmenter: {<<: *a}\n")
    with pytest.raises(ValueError, match="c.yaml is not valid YAML: merge keys"):
        parse_settings(["--config", str(tmp_path / "c.yaml")])
