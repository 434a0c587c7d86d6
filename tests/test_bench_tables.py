"""The bench: rows become cells, a cell is run once, and the tables hold what the cells measured."""

import fcntl
import json
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from benchmarks import tables
from benchmarks.cells import Cell, differences, expand, read_cells, select
from benchmarks.fold0 import auxiliary, write_target
from benchmarks.history import as_of_today
from benchmarks.report import duration, render
from benchmarks.running import ROOT, Bench, Busy, Commands, commands, run_cell, thinned_log
from lpg_hf.data._formats.voc import read_voc, write_voc
from lpg_hf.data.options import ReadOptions
from lpg_hf.data.records import BoxObject, Record
from lpg_hf.data.synthetic import _write_synthetic_dataset
from lpg_hf.label_maps import read_label_map, write_label_map
from lpg_hf.labels import COCO_CLASSES, VOC_CLASSES
from lpg_hf.training.parsing import merged, settings_from_dict


TINY_LPG = {
    "run": {"num_threads": 1, "num_workers": 0, "checkpoint_every": 1, "log_every": 1},
    "aux": {"annotations": "{data}/aux/annotations.json", "images": "{data}/aux/images", "classes": None},
    "lpg": {
        "processor": {"view": "box", "view_size": 32},
        "config": {"embedding_size": 16, "hidden_sizes": [16, 16], "depths": [1, 1], "neck_size": 8, "head_size": 8},
        "steps": 2,
        "batch_size": 2,
    },
}
TINY_TARGET = {
    "target": {"root": "{data}/target", "split": "train"},
    "evaluation": {"split": "val"},
    "segmenter": {
        "model": "deeplab-v2",
        "config": {
            "block": "basic",
            "depths": [1, 1, 1, 1],
            "stem_size": 16,
            "hidden_sizes": [16, 16, 16, 16],
            "batch_norm": "train",
        },
        "steps": 2,
        "batch_size": 2,
        "crop_size": 33,
    },
}
TINY_PROTOCOL = {
    "settings": TINY_LPG,
    "target": TINY_TARGET,
    "measure": {"annotations": "{data}/target", "split": "val", "masks": "{data}/target/SegmentationClass"},
}


def save(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content), encoding="utf-8")


def define(folder: Path, rows: dict[str, dict], protocols: tuple[str, ...] = ("coco60_voc",)) -> list[Cell]:
    """The cells of row files that are written below `folder`."""
    save(folder / "common.yaml", {"settings": {}, "target": {}})
    for protocol in protocols:
        save(folder / "protocols" / f"{protocol}.yaml", TINY_PROTOCOL)
    for name, row in rows.items():
        save(folder / "rows" / f"{name}.yaml", {"label": name, "protocols": list(protocols), "minutes": 7} | row)
    return read_cells(folder)


def finish(results: Path, cell: Cell, **metrics: object) -> None:
    """A metrics.json as a run of the cell leaves it."""
    path = results / cell.result / "metrics.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"seed": cell.seed, "configuration": cell.configuration} | metrics
    path.write_text(json.dumps(content), encoding="utf-8")


def boxes(fg: float, bg: float) -> dict:
    return {
        "foreground_iou": fg,
        "mean_iou": bg,
        "mean_box_iou": fg,
        "mean_boundary_iou": fg / 2,
        "boxes_per_second": 9.6,
        "num_images": 3,
        "num_boxes": 5,
    }


def maps(fg: float, bg: float) -> dict:
    return {"foreground_mean_iou": fg, "mean_iou": bg}


def table_rows(text: str) -> list[dict[str, str]]:
    """The lines of all Markdown tables, as column -> text."""
    found, titles = [], None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else None
        if cells is None:
            titles = None
        elif titles is None:
            titles = cells
        elif set(cells) != {"---"}:
            found.append(dict(zip(titles, cells, strict=True)))
    return found


# --- rows and cells --------------------------------------------------------------------------------------------------


def test_a_row_has_a_cell_for_each_protocol_and_seed(tmp_path):
    row = {
        "kind": "generator",
        "seeds": [0, 1],
        "by_protocol": {"fold0": {"seeds": [5], "settings": {"lpg": {"steps": 3}}}},
    }
    cells = define(tmp_path, {"ablations/one": row}, ("coco60_voc", "fold0"))
    assert [cell.name for cell in cells] == [
        "ablations/one/coco60_voc/seed0",
        "ablations/one/coco60_voc/seed1",
        "ablations/one/fold0/seed5",
    ]
    assert [cell.settings["run"]["seed"] for cell in cells] == [0, 1, 5]
    assert [cell.settings["lpg"]["steps"] for cell in cells] == [2, 2, 3]


def test_a_generator_knows_neither_the_target_nor_a_segmenter(tmp_path):
    cells = define(tmp_path, {"ablations/one": {"kind": "generator"}, "stages/all": {"kind": "stages"}})
    generator = next(cell for cell in cells if cell.kind == "generator")
    stages = next(cell for cell in cells if cell.kind == "stages")
    assert generator.settings["segmenter"] == {"model": None} and "target" not in generator.settings
    assert (
        stages.settings["segmenter"]["model"] == "deeplab-v2" and stages.settings["target"]["root"] == "{data}/target"
    )


def test_a_used_row_comes_before_its_users(tmp_path):
    cells = define(tmp_path, {"stages/a": {"kind": "deploy", "uses": "stages/z"}, "stages/z": {"kind": "stages"}})
    assert [(cell.row, cell.used) for cell in cells] == [("z", None), ("a", "stages/z/coco60_voc/seed0")]


@pytest.mark.parametrize(
    "row, message",
    [
        ({"kind": "magic"}, "kind 'magic' is unknown"),
        ({"kind": "generator", "stepz": 3}, "unknown key stepz"),
        ({"kind": "generator", "protocols": ["fold9"]}, "unknown protocol fold9"),
        ({"kind": "generator", "uses": "stages/z"}, "`uses` belongs to the kind deploy"),
        ({"kind": "baseline"}, "`generators` belongs to the kind baseline"),
        ({"kind": "deploy", "uses": "stages/z"}, "which no row file gives"),
        ({"kind": "generator", "by_protocol": {"coco60_voc": {"kind": "stages"}}}, "unknown key kind"),
    ],
)
def test_a_wrong_row_is_refused_with_its_name(tmp_path, row, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        define(tmp_path, {"stages/wrong": row})
    assert "stages/wrong" in str(caught.value)


def test_rows_of_a_table_that_is_not_rendered_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no table that is rendered"):
        define(tmp_path, {"tables/one": {"kind": "generator"}})


def test_paths_select_tables_rows_and_protocols_but_no_beginnings_of_names(tmp_path):
    rows = {"ablations/v1": {"kind": "generator"}, "ablations/v19": {"kind": "generator", "seeds": [0, 1]}}
    cells = define(tmp_path, rows, ("coco60_voc", "fold0"))
    assert len(select(cells, ["ablations"])) == len(select(cells, [])) == 6
    assert {cell.row for cell in select(cells, ["ablations/v1"])} == {"v1"}
    assert [cell.name for cell in select(cells, ["ablations/v19/fold0"], seed=1)] == ["ablations/v19/fold0/seed1"]
    with pytest.raises(ValueError, match="there is no row ablations/v"):
        select(cells, ["ablations/v"])


def test_placeholders_are_replaced_everywhere_and_other_braces_are_not():
    value = {"a": ["{data}/x", 3], "b": {"c": "{weights}"}, "d": "{other}", "e": None}
    expanded = {"a": ["D/x", 3], "b": {"c": "W"}, "d": "{other}", "e": None}
    assert expand(value, {"data": "D", "weights": "W"}) == expanded


def test_a_protocol_without_a_heading_is_not_dropped_in_silence(tmp_path):
    cells = define(tmp_path, {"stages/all": {"kind": "stages"}}, ("coco60_voc", "new"))
    with pytest.raises(ValueError, match="protocol new has no heading"):
        render(cells, tmp_path, tmp_path)


def test_differences_name_the_setting_and_both_values():
    before = {"settings": {"lpg": {"steps": 2, "ema": 0.5}}, "uses": None}
    now = {"settings": {"lpg": {"steps": 3, "ema": 0.5}, "run": {"seed": 0}}, "uses": None}
    assert differences(before, now) == [
        "settings.lpg.steps: 2 then, 3 now",
        "settings.run: None then, {'seed': 0} now",
    ]
    assert differences(now, now) == []


@pytest.mark.parametrize(
    "cell", [cell for cell in read_cells(tables.DEFINITIONS) if cell.settings], ids=lambda cell: cell.name
)
def test_rows_of_the_repository_are_settings_that_training_knows(cell):
    settings_from_dict(cell.settings, cell.name)


def test_an_empty_dict_of_a_row_empties_that_of_the_protocol(tmp_path):
    row = {"kind": "generator", "settings": {"lpg": {"processor": {"view_size": 48}, "config": {}}}}
    (cell,) = define(tmp_path, {"ablations/one": row})
    assert cell.settings["lpg"]["processor"] == {"view": "box", "view_size": 48}
    assert cell.settings["lpg"]["config"] == {} and cell.settings["lpg"]["steps"] == 2


def test_configurations_of_older_results_are_read_in_sections():
    """The settings were flat when most results were made; today's names must not change what they mean."""
    old = {"lpg_steps": 3, "lpg_backbone": "vgg16", "lpg_config": {"head_size": 8}, "view": "box", "seed": 0}
    old |= {"target_root": "r", "target_steps": 5, "segmenter": None, "segmenter_crop_size": 9, "crf": True}
    new = {
        "lpg": {"steps": 3, "config": {"backbone": "vgg16", "head_size": 8}, "processor": {"view": "box"}},
        "run": {"seed": 0, "measure": ["masks", "segmenter", "crf"]},
        "target": {"root": "r"},
        "segmenter": {"target_steps": 5, "model": None, "crop_size": 9},
    }
    assert as_of_today({"settings": old, "uses": {"settings": old}}) == {
        "settings": new,
        "uses": {"settings": new, "uses": None},
    }
    assert as_of_today({"settings": new, "uses": None}) == {"settings": new, "uses": None}


# --- one cell --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("bench_data") / "synthetic"
    return _write_synthetic_dataset(root, num_aux=4, num_target=4, num_eval=3, size=(64, 64), seed=0)


@pytest.fixture(scope="module")
def make_bench(data, tmp_path_factory):
    """A function that gives an empty bench on the procedural data."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("bench_cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")

        def make() -> Bench:
            folder = tmp_path_factory.mktemp("bench")
            return Bench(folder / "runs", folder / "results", (("data", str(data)), ("weights", "none")))

        yield make


@pytest.fixture
def bench(make_bench):
    return make_bench()


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    return define(tmp_path_factory.mktemp("rows"), {"ablations/base": {"kind": "generator"}})[0]


@pytest.fixture(scope="module")
def finished(make_bench, generator):
    """A bench with one finished cell of the kind generator."""
    bench = make_bench()
    assert run_cell(bench, generator)
    return bench


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_a_cell_says_what_it_measured_and_how(finished, generator):
    metrics = finished.finished(generator)
    scores = metrics["boxes"]["1"]
    assert scores["num_images"] == 3 and scores["num_boxes"] >= 3
    assert all(0 <= scores[key] <= 1 for key in ("foreground_iou", "mean_iou", "mean_box_iou", "mean_boundary_iou"))
    train, compare = (entry["command"] for entry in metrics["commands"])
    assert train.startswith("accelerate launch ") and "training/em.py --config" in train
    assert compare.startswith('lpg-hf compare "${LPG_HF_DATA}/target" ') and compare.endswith("stage1.json")
    assert metrics["seconds"] == pytest.approx(sum(entry["seconds"] for entry in metrics["commands"]), abs=0.1)
    assert metrics["training_seconds"] == pytest.approx(metrics["training"]["aux/stage1/lpg"]["seconds"], abs=0.1)
    assert metrics["settings"]["lpg"]["steps"] == 2 and metrics["settings"]["segmenter"]["model"] is None
    assert metrics["hardware"]["cpu_cores"] == 1 and metrics["versions"]["torch"]
    assert metrics["configuration"]["settings"]["aux"]["images"] == "{data}/aux/images"
    result = finished.result_folder(generator)
    assert yaml.safe_load((result / "settings.yaml").read_text())["aux"]["images"] == "${LPG_HF_DATA}/aux/images"
    assert len((result / "log.jsonl").read_text().splitlines()) == 2


def test_a_finished_cell_is_not_run_again(finished, generator):
    before = times(finished.runs.parent)
    assert not run_cell(finished, generator)
    assert times(finished.runs.parent) == before


def test_a_finished_cell_with_another_configuration_is_an_error_with_a_remedy(finished, tmp_path):
    (other,) = define(tmp_path, {"ablations/base": {"kind": "generator", "settings": {"lpg": {"steps": 3}}}})
    with pytest.raises(ValueError, match="settings.lpg.steps: 2 then, 3 now.*--redo"):
        run_cell(finished, other)


def test_new_labels_and_notes_are_not_another_configuration(finished, tmp_path):
    (renamed,) = define(tmp_path, {"ablations/base": {"kind": "generator", "label": "new", "note": "new"}})
    assert not run_cell(finished, renamed)


def test_a_failing_row_does_not_stop_the_others(bench, tmp_path, capsys):
    rows = {
        "stages/a": {"kind": "generator", "settings": {"lpg": {"stepz": 1}}},
        "baselines/b": {"kind": "baseline", "generators": {"box": "box fill"}},
    }
    cells = define(tmp_path, rows)
    assert tables.run(bench, cells) == 1
    said = capsys.readouterr().out
    assert (
        "1 of 2 cells failed" in said and "Unknown setting lpg.stepz" in said and "2 to run, about 14 minutes" in said
    )
    assert bench.finished(cells[0]) is None
    assert 0 < bench.finished(cells[1])["boxes"]["box"]["foreground_iou"] < 1


def test_stages_that_are_not_there_are_asked_for(bench, tmp_path):
    rows = {"stages/z": {"kind": "stages"}, "stages/a": {"kind": "deploy", "uses": "stages/z"}}
    with pytest.raises(FileNotFoundError, match="run stages/z/coco60_voc --seed 0.*--redo"):
        run_cell(bench, define(tmp_path, rows)[1])


def test_a_cell_on_which_another_process_works_is_skipped(bench, generator, capsys):
    lock = bench.run_folder(generator.name).with_name("seed0.lock")
    lock.parent.mkdir(parents=True)
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Busy):
            run_cell(bench, generator)
        assert tables.run(bench, [generator]) == 0
    assert "skipped" in capsys.readouterr().out and bench.finished(generator) is None


def test_a_row_that_uses_stages_waits_while_they_are_trained(bench, tmp_path):
    rows = {"stages/z": {"kind": "stages"}, "stages/a": {"kind": "deploy", "uses": "stages/z"}}
    used, user = define(tmp_path, rows)
    lock = bench.run_folder(used.name).with_name("seed0.lock")
    lock.parent.mkdir(parents=True)
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Busy):
            run_cell(bench, user)


@pytest.mark.slow
def test_stages_that_were_trained_with_another_configuration_are_refused(bench, tmp_path):
    rows: dict = {"stages/z": {"kind": "stages"}, "stages/a": {"kind": "deploy", "uses": "stages/z"}}
    used, user = define(tmp_path, rows)
    run = bench.run_folder(used.name)
    (run / "aux" / "stage3" / "lpg").mkdir(parents=True)
    Commands(run, used.configuration).run(python("pass"), None)
    rows["stages/z"] |= {"settings": {"lpg": {"steps": 9}}}
    with pytest.raises(
        ValueError, match=r"settings.lpg.steps: 2 then, 9 now.*run stages/z/coco60_voc --seed 0 --redo"
    ):
        run_cell(bench, define(tmp_path, rows)[1])
    with pytest.raises(RuntimeError, match="deploy.py"):  # goes on to train with them, which are empty folders here
        run_cell(bench, user)


def test_cells_that_start_together_prepare_their_data_one_after_the_other(bench, tmp_path):
    """What is made serves all cells of a protocol."""
    cells = define(tmp_path, {f"baselines/{k}": {"kind": "baseline", "generators": {"box": "box"}} for k in "ab"})
    script = tmp_path / "prepare.py"
    script.write_text(
        "import os, sys, time\nos.mkdir(sys.argv[1])\ntime.sleep(1)\nos.rmdir(sys.argv[1])\n", encoding="utf-8"
    )
    cells = [replace(cell, prepare=(str(script), str(tmp_path / "busy"))) for cell in cells]
    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(lambda cell: run_cell(bench, cell), cells))


def test_a_change_of_the_used_row_is_a_change_of_the_row_that_uses_it(tmp_path):
    rows: dict = {"stages/z": {"kind": "stages"}, "stages/a": {"kind": "deploy", "uses": "stages/z"}}
    before = define(tmp_path, rows)[1].configuration
    rows["stages/z"] |= {"settings": {"lpg": {"steps": 9}}}
    assert differences(before, define(tmp_path, rows)[1].configuration) == ["uses.settings.lpg.steps: 2 then, 9 now"]
    rows["stages/z"]["settings"] = {"run": {"measure": ["masks"]}}  # measures something else, but trains the same
    assert not differences(before, define(tmp_path, rows)[1].configuration)


def test_rows_come_after_those_whose_stages_or_label_maps_they_use(tmp_path):
    labels = {"run": {"labels": "folder:runs/bench/stages/b/coco60_voc/seed0/target/stage1/pseudo_masks"}}
    rows: dict = {
        "stages/a": {"kind": "deploy", "settings": labels},
        "stages/b": {"kind": "deploy", "uses": "stages/z"},
        "stages/z": {"kind": "stages"},
    }
    assert [cell.row for cell in define(tmp_path, rows)] == ["z", "b", "a"]


def test_a_later_stage_is_measured_with_the_segmenter_of_the_stage_before(bench, tmp_path):
    (cell,) = define(tmp_path, {"stages/all": {"kind": "stages", "settings": {"run": {"num_stages": 2}}}})
    run = bench.run_folder(cell.name)
    for stage, use_class_prob in ((1, False), (2, True)):
        lpg = run / "aux" / f"stage{stage}" / "lpg"
        lpg.mkdir(parents=True)
        (lpg / "config.json").write_text(json.dumps({"use_class_prob": use_class_prob}))
    em, deploy, first, second = commands(bench, cell, run / "settings.yaml", dict(bench.places))
    optional = {"use_class_prob": True, "class_prob_optional": True}
    (run / "aux/stage2/lpg/config.json").write_text(json.dumps(optional))
    *_, alone, again = commands(bench, cell, run / "settings.yaml", dict(bench.places))
    assert "--segmenter" not in alone and alone[-1].endswith("stage2_without_segmenter.json") and again == second
    assert "training/em.py" in em and "training/deploy.py" in deploy
    assert "--segmenter" not in first and first[first.index("--model") + 1].endswith("aux/stage1/lpg")
    assert second[second.index("--model") + 1].endswith("aux/stage2/lpg")
    assert second[second.index("--segmenter") + 1].endswith("target/stage1/segmenter")
    # Stages for other rows have no segmenter of the measured classes.
    of_em = list(commands(bench, replace(cell, kind="em"), run / "settings.yaml", dict(bench.places)))
    assert of_em == [em, first, alone]


# --- commands --------------------------------------------------------------------------------------------------------


def python(code: str) -> list[str]:
    return ["python", "-c", code]


def test_a_finished_command_is_not_run_again_unless_the_configuration_is_another(tmp_path):
    count = python(f"open({str(tmp_path / 'count')!r}, 'a').write('x')")
    for steps in (1, 1, 2):
        Commands(tmp_path, {"steps": steps}).run(count, None)
        assert Commands(tmp_path, {"steps": steps}).seconds(count) > 0
    assert (tmp_path / "count").read_text() == "xx"


def test_seconds_count_all_starts_of_a_command(tmp_path):
    name = str(tmp_path / "started")
    twice = python(
        f"import os, sys, time; again = os.path.exists({name!r}); open({name!r}, 'w'); time.sleep(0 if again else 2); "
        "sys.exit(not again)"
    )
    with pytest.raises(RuntimeError):
        Commands(tmp_path, {}).run(twice, None)
    Commands(tmp_path, {}).run(twice, None)
    assert 2 < Commands(tmp_path, {}).seconds(twice)
    assert not json.loads((tmp_path / "commands.json").read_text())["stopped"]


def test_a_failed_command_is_named_with_its_last_words_and_run_again(tmp_path):
    fail = python("import sys; print('no photographs'); sys.exit(3)")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="(?s)exit status 3 of `python -c .*output.log.*no photographs"):
            Commands(tmp_path, {}).run(fail, None)


def test_stopping_the_bench_stops_its_command(tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    name = tmp_path / "pid"
    wait = python(f"import os, time; open({str(name)!r}, 'w').write(str(os.getpid())); time.sleep(100)")
    before = signal.signal(signal.SIGUSR1, stop)

    def stop_when_started():
        while not (name.is_file() and name.read_text()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGUSR1)

    thread = threading.Thread(target=stop_when_started)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            Commands(tmp_path, {}).run(wait, None)
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    with pytest.raises(ProcessLookupError):
        os.kill(int(name.read_text()), 0)


def test_a_command_has_the_threads_of_its_row(tmp_path):
    show = python(f"import os; open({str(tmp_path / 'threads')!r}, 'w').write(os.environ['OMP_NUM_THREADS'])")
    Commands(tmp_path, {}).run(show, 3)
    assert (tmp_path / "threads").read_text() == "3"


def test_thinned_logs_keep_the_last_line_of_each_phase(tmp_path):
    lines = [
        json.dumps({"phase": phase, "step": step}) for phase in "ab" for step in range(1, 101 if phase == "a" else 4)
    ]
    (tmp_path / "log.jsonl").write_text("".join(f"{line}\n" for line in lines))
    kept = [json.loads(line) for line in thinned_log(tmp_path / "log.jsonl").splitlines()]
    assert [line["step"] for line in kept if line["phase"] == "a"] == list(range(5, 101, 5))
    assert [line["step"] for line in kept if line["phase"] == "b"] == [1, 2, 3]
    assert thinned_log(tmp_path / "absent") == ""


def run_until_stopped(bench: Bench, cell: Cell) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    run_cell(bench, cell)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_stopped_cell_goes_on_from_its_checkpoint_to_the_same_weights(bench, tmp_path):
    (longer,) = define(tmp_path, {"ablations/base": {"kind": "generator", "settings": {"lpg": {"steps": 40}}}})
    run = bench.run_folder(longer.name)
    process = multiprocessing.get_context("fork").Process(target=run_until_stopped, args=(bench, longer))
    process.start()
    log, patience = run / "log.jsonl", time.monotonic() + 200
    while not (log.is_file() and '"step": 2' in log.read_text()):  # the checkpoint of step 1 is complete
        assert process.is_alive() and time.monotonic() < patience, (run / "output.log").read_text()
        time.sleep(0.02)
    process.terminate()
    process.join()
    assert process.exitcode == 143 and bench.finished(longer) is None
    assert run_cell(bench, longer)
    assert "resumed at step" in (run / "output.log").read_text()
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == list(range(1, 41))

    weights = run / "aux" / "stage1" / "lpg" / "model.safetensors"
    resumed, scores = weights.read_bytes(), bench.finished(longer)["boxes"]
    assert run_cell(bench, longer, redo=True)
    assert weights.read_bytes() == resumed and bench.finished(longer)["boxes"]["1"]["num_boxes"] > 0
    for key in ("foreground_iou", "mean_iou", "mean_box_iou"):
        assert bench.finished(longer)["boxes"]["1"][key] == scores["1"][key]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_stages_and_the_rows_that_use_them(bench, tmp_path):
    rows = {
        "stages/all": {"kind": "stages", "settings": {"run": {"num_stages": 2}}},
        "supervision/fixed": {
            "kind": "deploy",
            "uses": "stages/all",
            "settings": {"run": {"num_stages": 2, "fixed_stage": 2}},
        },
        "supervision/full": {"kind": "deploy", "settings": {"run": {"num_stages": 1, "mode": "full"}}},
    }
    cells = define(tmp_path, rows)
    assert tables.run(bench, cells) == 0
    found = {cell.row: bench.finished(cell) for cell in cells}
    assert list(found["all"]["boxes"]) == ["1", "2"]
    assert list(found["all"]["segmenter"]) == list(found["fixed"]["segmenter"]) == ["0", "1", "2"]
    assert list(found["all"]["pseudo_masks"]) == list(found["fixed"]["pseudo_masks"]) == ["1", "2"]
    assert found["full"]["pseudo_masks"] == {} and found["fixed"]["boxes"] == {}
    assert set(found["all"]["training"]) == {
        *(f"aux/stage{stage}/segmenter" for stage in range(3)),
        *(f"target/stage{stage}/segmenter" for stage in range(3)),
        "aux/stage1/lpg",
        "aux/stage2/lpg",
    }


# --- the data of fold 0 ----------------------------------------------------------------------------------------------


def test_auxiliary_masks_of_fold_0_have_no_target_class():
    ids = {name: number for number, name in COCO_CLASSES}
    content = {
        "images": [{"id": 1, "file_name": "coco/images/a.jpg"}, {"id": 2, "file_name": "voc/JPEGImages/b.jpg"}]
        + [{"id": 3, "file_name": "voc/JPEGImages/c.jpg"}],
        "annotations": [
            {"image_id": image, "category_id": ids[name], "iscrowd": crowd}
            for image, name, crowd in (
                (1, "person", 0),  # a class of VOC, so not in COCO's part
                (1, "zebra", 0),
                (2, "person", 0),
                (2, "airplane", 0),
                (3, "boat", 0),
                (3, "person", 1),
            )
        ],
        "categories": [{"id": number, "name": name} for number, name in COCO_CLASSES],
    }
    kept = auxiliary(content)
    assert [(item["image_id"], item["category_id"]) for item in kept["annotations"]] == [(1, ids["zebra"]), (2, 1)]
    assert [image["id"] for image in kept["images"]] == [1, 2]
    assert len(kept["categories"]) == 75 and "bottle" not in {category["name"] for category in kept["categories"]}


def test_target_of_fold_0_has_its_classes_alone(tmp_path):
    voc, labels = tmp_path / "voc", np.zeros((40, 60), dtype=np.uint8)
    labels[5:20, 5:20], labels[5:20, 30:50], labels[20, 5:20] = 1, 15, 255
    for folder in ("JPEGImages", "Annotations", "ImageSets/Segmentation"):
        (voc / folder).mkdir(parents=True)
    objects_of = {"both": ((0, (5, 5, 20, 20)), (14, (30, 5, 50, 20))), "other": ((14, (30, 5, 50, 20)),)}
    for name, objects in objects_of.items():
        Image.new("RGB", (60, 40)).save(voc / "JPEGImages" / f"{name}.jpg")
        write_label_map(voc / "SegmentationClass" / f"{name}.png", labels)
        items = [BoxObject(box, category, area=300) for category, box in objects]
        record = Record(image_id=name, file_name=f"{name}.jpg", path=None, size=(40, 60), objects=items)
        write_voc(voc / "Annotations" / f"{name}.xml", record, VOC_CLASSES)
    for split in ("train_mix", "val_mix"):
        (voc / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("both\nother\n")
    write_target(voc, tmp_path / "out")
    (record,) = read_voc(tmp_path / "out", ReadOptions(split="val_mix", masks=True), images=voc / "JPEGImages")
    assert record.file_name == "both.jpg" and [item.box for item in record.objects] == [(5, 5, 20, 20)]
    assert np.array_equal(read_label_map(record.mask_path), np.where(labels == 15, 0, labels))


# --- what people read ------------------------------------------------------------------------------------------------


def test_numbers_have_both_ways_all_seeds_and_a_link(tmp_path):
    row = {"kind": "stages", "seeds": [0, 1], "label": "ours", "note": "kept"}
    cells = define(tmp_path, {"stages/squeezenet": row})
    for cell, better in zip(cells, (0.0, 0.01)):
        finish(
            tmp_path,
            cell,
            boxes={"1": boxes(0.7 + better, 0.72)},
            box_fill=maps(0.5, 0.55),
            pseudo_masks={"1": maps(0.6 + better, 0.65)},
            segmenter={"0": maps(0.2, 0.25), "1": maps(0.3, 0.35 + better) | {"crf": maps(0.31, 0.36)}},
        )
    first, second = table_rows(render(cells, tmp_path, tmp_path).split("## II")[1].split("## III")[0])
    assert (first["stage"], first["masks fg"], first["masks bg"]) == ("0", "50.0 (50.0, 50.0)", "55.0 (55.0, 55.0)")
    assert (first["segm. fg"], first["boxes fg"], first["note"]) == ("20.0 (20.0, 20.0)", "", "kept")
    assert second["boxes fg"] == "70.5 (70.0, 71.0)" and second["boxes bg"] == "72.0 (72.0, 72.0)"
    assert second["masks fg"] == "60.5 (60.0, 61.0)" and second["segm. bg"] == "35.5 (35.0, 36.0)"
    assert second["CRF fg"] == "31.0 (31.0, 31.0)" and second["boundary"] == "35.2 (35.0, 35.5)"
    for seed in (0, 1):
        assert f"[seed {seed}](shallow/stages/squeezenet/coco60_voc/seed{seed}/metrics.json)" in first["run"]


def test_what_has_not_been_run_stands_there_with_its_minutes(tmp_path):
    rows = {
        "stages/squeezenet": {"kind": "stages", "label": "ours"},
        "ablations/base": {"kind": "generator", "seeds": [0, 1]},
    }
    cells = define(tmp_path, rows)
    finish(tmp_path, cells[-1], boxes={"1": boxes(0.7, 0.72)}, training_seconds=300)
    lines = table_rows(render(cells, tmp_path, tmp_path))
    assert {"": "ours", "run": "not run (about 7 minutes)"} in lines
    assert lines[-1]["runs"].endswith("seed 0 not run (about 7 minutes)") and "[seed 1]" in lines[-1]["runs"]


def test_what_was_measured_with_another_configuration_is_not_shown(tmp_path):
    (cell,) = define(tmp_path, {"ablations/base": {"kind": "generator"}})
    finish(tmp_path, cell, boxes={"1": boxes(0.7, 0.72)}, training_seconds=300)
    assert "70.0" in render([cell], tmp_path, tmp_path)
    (changed,) = define(tmp_path, {"ablations/base": {"kind": "generator", "settings": {"lpg": {"steps": 9}}}})
    text = render([changed], tmp_path, tmp_path)
    assert "70.0" not in text and "not run (about 7 minutes)" in text


def test_crops_that_are_refused_since_stay_in_the_tables_with_a_remark(tmp_path):
    settings = {"run": {"mode": "full"}, "segmenter": {"model": "weights/mobilenet_v2_imagenet", "crop_size": 128}}
    (cell,) = define(tmp_path, {"supervision/full": {"kind": "deploy", "settings": settings}})
    finish(tmp_path, cell, segmenter={"3": maps(0.4, 0.45)})
    assert "shifted in use" not in render([cell], tmp_path, tmp_path)
    for crop_size, is_shown in ((129, True), (130, False)):
        settings = merged(cell.settings, {"segmenter": {"crop_size": crop_size}})
        finish(tmp_path, replace(cell, settings=settings), segmenter={"3": maps(0.4, 0.45)})
        text = render([cell], tmp_path, tmp_path)
        assert ("45.0" in text) is is_shown and ("[shifted in use](README.md#" in text) is is_shown
        assert Bench(results=tmp_path).is_up_to_date(cell) is is_shown


def test_generators_stand_beside_the_stages_on_the_same_boxes(tmp_path):
    rows = {
        "baselines/classical": {"kind": "baseline", "generators": {"box": "box fill", "grabcut": "GrabCut"}},
        "stages/squeezenet": {"kind": "stages", "label": "ours"},
    }
    cells = {cell.row: cell for cell in define(tmp_path, rows)}
    finish(tmp_path, cells["classical"], boxes={"box": boxes(0.5, 0.6), "grabcut": boxes(0.61, 0.64)})
    finish(tmp_path, cells["squeezenet"], boxes={"1": boxes(0.7, 0.72), "2": boxes(0.75, 0.77)})
    text = render(list(cells.values()), tmp_path, tmp_path).split("## III")[1].split("## IV")[0]
    lines = table_rows(text.split("### ")[1])
    assert [(line[""], line["boxes fg"], line["boxes bg"]) for line in lines] == [
        ("box fill", "50.0", "60.0"),
        ("GrabCut", "61.0", "64.0"),
        ("ours, stage 1", "70.0", "72.0"),
        ("ours, stage 2", "75.0", "77.0"),
    ]
    assert lines[0]["photographs, boxes"] == "3, 5" and lines[0]["boxes / s"] == "10"


def test_supervision_goes_from_weak_to_full_with_the_share_that_weak_reaches(tmp_path):
    rows = {
        "stages/squeezenet": {"kind": "stages"},
        "supervision/full": {"kind": "deploy", "settings": {"run": {"mode": "full"}}},
        "supervision/other_weak": {
            "kind": "deploy",
            "uses": "stages/squeezenet",
            "settings": {"segmenter": {"model": "largefov"}},
        },
        "supervision/short_weak": {
            "kind": "deploy",
            "uses": "stages/squeezenet",
            "settings": {"segmenter": {"target_steps": 7}},
        },
        "supervision/semi": {"kind": "deploy", "uses": "stages/squeezenet", "settings": {"run": {"mode": "semi"}}},
    }
    cells = define(tmp_path, rows)
    scores = {"squeezenet": 0.45, "semi": 0.48, "full": 0.5, "other_weak": 0.3, "short_weak": 0.4}
    for cell in cells:
        finish(tmp_path, cell, segmenter={"3": maps(0.4, scores[cell.row])})
    text = render(cells, tmp_path, tmp_path).split("## IV")[1].split("## VII")[0]
    lines = table_rows(text)
    assert [line[""].split("/")[1] for line in lines] == ["squeezenet", "short_weak", "semi", "full", "other_weak"]
    assert [line["of full"] for line in lines] == ["0.900", "", "0.960", "", ""]


def test_ablations_show_both_directions_and_the_difference_to_the_base(tmp_path):
    protocols = ("coco60_voc", "voc_coco60")
    rows = {"ablations/base": {"kind": "generator"}, "ablations/change": {"kind": "generator", "note": "taken"}}
    cells = define(tmp_path, rows, protocols)
    scores = {"base": {"coco60_voc": 0.64, "voc_coco60": 0.61}, "change": {"coco60_voc": 0.655}}
    for cell in cells:
        if cell.protocol in scores[cell.row]:
            fg = scores[cell.row][cell.protocol]
            of_stages = {"1": boxes(0.1, 0.1), "2": boxes(fg, fg + 0.01)}  # the last stage counts
            finish(tmp_path, cell, boxes=of_stages, training_seconds=291.2)
    base, change = table_rows(render(cells, tmp_path, tmp_path).split("## Ablations")[1])
    assert base["COCO-60 -> VOC: fg"] == "64.0" and base["VOC -> COCO-60: fg"] == "61.0"
    assert change["COCO-60 -> VOC: fg"] == "65.5 (+1.5)" and change["COCO-60 -> VOC: s"] == "291"
    assert change["VOC -> COCO-60: fg"] == "" and "not run" in change["runs"] and change["note"] == "taken"


def test_longer_runs_show_the_first_labels_of_each_method_and_what_it_took(tmp_path):
    rows = {
        "deep/weak": {"kind": "stages"},
        "deep/sdi": {"kind": "deploy", "settings": {"run": {"labels": "sdi-box"}}},
    }
    cells = define(tmp_path, rows, ("deep",))
    settings = {"run": {"mixed_precision": "auto"}, "lpg": {"steps": 30, "batch_size": 4}}
    settings["segmenter"] = {"steps": 9, "target_steps": 50, "batch_size": 8, "crop_size": 65}
    for cell in cells:
        masks = {"0": maps(0.6, 0.65)} if cell.row == "sdi" else {"1": maps(0.7, 0.75)}
        finish(
            tmp_path,
            cell,
            box_fill=maps(0.5, 0.55),
            pseudo_masks=masks,
            segmenter={"0": maps(0.2, 0.25), "1": maps(0.3, 0.35)},
            settings=settings,
            hardware={"native_bf16": cell.row == "sdi"},
            training={f"target/stage{i}/segmenter": {"seconds": 20.0} for i in (0, 1)} | {"aux": {"seconds": 1}},
        )
    lines = table_rows(render(cells, tmp_path, tmp_path).split("## Longer runs")[1].split("## II")[0])
    scores = [(line[""], line["stage"], line["masks bg"]) for line in lines[:4]]
    assert scores == [
        ("deep/weak", "0", "55.0"),
        ("deep/weak", "1", "75.0"),
        ("deep/sdi", "0", "65.0"),
        ("deep/sdi", "1", ""),
    ]
    weak, sdi = lines[4:]
    assert weak["views per E-step"] == "120" and sdi["views per E-step"] == ""
    assert (sdi["rounds"], sdi["steps per round"], sdi["crops / s"]) == ("2", "50", "20.0")
    assert (weak["precision"], sdi["precision"], sdi["crops per step"]) == ("float32", "bfloat16", "8 of 65 px")


def test_stages_without_a_segmenter_have_views_and_no_crops(tmp_path):
    (cell,) = define(tmp_path, {"deep_two/em": {"kind": "em"}}, ("deep",))
    settings = {"run": {"mixed_precision": "no"}, "lpg": {"steps": 30, "batch_size": 4}, "segmenter": {"steps": 9}}
    training = {"aux/stage1/lpg": {"seconds": 20.0}}
    measured = {"boxes": {"1": boxes(0.7, 0.72)}, "hardware": {"native_bf16": True}}
    finish(tmp_path, cell, settings=settings, training=training, **measured)
    stage, cost = table_rows(render([cell], tmp_path, tmp_path).split("### Two rounds")[1].split("###")[0])
    assert stage["boxes bg"] == "72.0"
    assert (cost["views per E-step"], cost["precision"]) == ("120", "float32") and "crops / s" not in cost


@pytest.mark.parametrize(
    "minutes, text", [(7, "about 7 minutes"), (119, "about 119 minutes"), (210, "about 3.5 hours")]
)
def test_durations(minutes, text):
    assert duration(minutes) == text


def test_list_and_render_are_commands(tmp_path, monkeypatch, capsys):
    define(tmp_path, {"ablations/base": {"kind": "generator"}})
    monkeypatch.setattr(tables, "DEFINITIONS", tmp_path)
    monkeypatch.setattr(tables, "TABLES_FILE", ROOT / "results" / "absent.md")
    written = {}
    monkeypatch.setattr(tables, "write_text", lambda path, text: written.update({path.name: text}))
    assert tables.main(["list", "ablations"]) == 0 and tables.main(["render"]) == 0
    assert "ablations/base/coco60_voc/seed0  generator" in capsys.readouterr().out
    assert "about 7 minutes" in written["absent.md"]


def test_the_tables_of_the_repository_are_rendered_from_its_results():
    text = render(read_cells(tables.DEFINITIONS), Bench().results, tables.TABLES_FILE.parent)
    assert tables.TABLES_FILE.read_text(encoding="utf-8") == text, "run `python benchmarks/tables.py render`"
