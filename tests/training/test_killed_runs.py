"""SIGKILL at random moments of both scripts: started again, they end with the weights of an undisturbed run."""

import json
import random
import time

import pytest
from killed import Runner, moments
from tiny_run import weights


@pytest.fixture(scope="module")
def runner(datasets_cache):
    return Runner()


def below(run_dir, folder):
    return {name: digest for name, digest in weights(run_dir).items() if name.startswith(folder)}


def leftovers(run_dir):
    return [path for path in run_dir.rglob("*") if path.suffix == ".tmp" or path.name.endswith("_checkpoints")]


@pytest.fixture(scope="module")
def killed_em(runner, values, tmp_path_factory):
    """em.py, killed before or after random renames, until it came through."""
    run_dir = tmp_path_factory.mktemp("killed") / "run"
    codes = [runner.run("em.py", values, run_dir, *moment) for moment in moments(0, 5, 10)]
    codes.append(runner.run("em.py", values, run_dir))
    assert codes.count(-9) >= 3 and codes[-1] == 0, (codes, run_dir.with_suffix(".log").read_text()[-3000:])
    return run_dir


@pytest.mark.slow
def test_em_killed_around_renames_ends_with_the_same_weights_and_masks(killed_em, finished_run):
    assert below(killed_em, "aux") == below(finished_run, "aux")
    assert len(below(killed_em, "aux")) == 5 + 2 * 8  # 3 segmenters, 2 generators, 2 x 8 masks


@pytest.mark.slow
def test_a_killed_run_leaves_no_checkpoints_or_half_files_behind(killed_em):
    assert leftovers(killed_em) == []


@pytest.mark.parametrize("what", ["checkpoint", pytest.param("mask", marks=pytest.mark.slow)])
def test_a_kill_inside_a_write_changes_nothing(runner, values, finished_run, tmp_path, what):
    run_dir, generator = tmp_path / "run", random.Random(0)
    codes = [runner.run("em.py", values, run_dir, generator.randrange(1, 9), what) for _ in range(3)]
    codes.append(runner.run("em.py", values, run_dir))
    assert codes.count(-9) >= 2 and codes[-1] == 0, (codes, run_dir.with_suffix(".log").read_text()[-3000:])
    assert weights(run_dir) == below(finished_run, "aux")


def test_a_truncated_checkpoint_costs_the_steps_since_the_one_before(runner, values, finished_run, tmp_path):
    run_dir = tmp_path / "run"
    assert runner.run("em.py", values, run_dir, 3, "checkpoint") == -9
    newest = max(run_dir.rglob("step_*.pt"), key=lambda path: int(path.stem.split("_")[1]))
    newest.write_bytes(newest.read_bytes()[:1000])
    assert runner.run("em.py", values, run_dir) == 0
    assert f"{newest.name} is incomplete" in run_dir.with_suffix(".log").read_text()
    assert weights(run_dir) == below(finished_run, "aux")


@pytest.mark.parametrize(
    "fatal, when",
    [
        ("stage0/segmenter", "after"),
        ("stage1/lpg", "before"),
        pytest.param("stage1/lpg", "after", marks=pytest.mark.slow),
        pytest.param("class_probs", "before", marks=pytest.mark.slow),
    ],
)
def test_a_kill_where_a_phase_ends_changes_nothing(runner, values, finished_run, tmp_path, fatal, when):
    """Before the finished folder or file appears, or after it and before its checkpoints are removed."""
    run_dir, short = tmp_path / "run", values | {"run.num_stages": 1}
    assert runner.run("em.py", short, run_dir, fatal, when) == -9
    assert any(str(path).endswith(fatal) for path in run_dir.rglob("*")) == (when == "after")
    assert runner.run("em.py", short, run_dir) == 0
    expected = below(finished_run, "aux")
    assert weights(run_dir) == {name: digest for name, digest in expected.items() if "stage2" not in name}
    assert leftovers(run_dir) == []


@pytest.mark.slow
def test_deploy_killed_around_renames_ends_with_the_same_results(runner, values, killed_em, finished_run):
    codes = [runner.run("deploy.py", values, killed_em, *moment) for moment in moments(1, 4, 10)]
    codes.append(runner.run("deploy.py", values, killed_em))
    assert codes.count(-9) >= 3 and codes[-1] == 0, (codes, killed_em.with_suffix(".log").read_text()[-3000:])
    assert below(killed_em, "target") == below(finished_run, "target")
    assert leftovers(killed_em) == []
    one, other = (json.loads((run / "target" / "metrics.json").read_text()) for run in (killed_em, finished_run))
    for name in ("segmenter_miou", "pseudo_mask_miou", "box_fill_miou", "details"):
        assert one[name] == other[name]


@pytest.mark.slow
def test_em_killed_from_outside_after_random_times_ends_with_the_same_weights(runner, values, finished_run, tmp_path):
    began = time.monotonic()
    assert runner.run("em.py", values, tmp_path / "whole") == 0
    seconds = time.monotonic() - began
    codes = [runner.run_and_kill("em.py", values, tmp_path / "run", share * seconds) for share in (0.45, 0.3, 0.5)]
    assert -9 in codes
    assert runner.run("em.py", values, tmp_path / "run") == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "whole") == below(finished_run, "aux")
