"""One cell of the bench: its commands one after the other, and what they measured in one `metrics.json`."""

import fcntl
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from benchmarks.cells import Cell, as_used, differences, expand, json_like
from benchmarks.history import as_of_today
from lpg_hf._files import write_atomically
from lpg_hf.devices import resolve_dtype
from lpg_hf.training.config import public_settings
from lpg_hf.training.models import package_versions
from lpg_hf.training.parsing import merged, read_yaml, settings_from_dict


ROOT = Path(__file__).resolve().parents[1]
# Name of a placeholder -> the environment variable of its folder, which is also how results name the folder.
VARIABLES = {"data": "LPG_HF_DATA", "weights": "LPG_HF_WEIGHTS"}
_NAMED_PLACES = {name: f"${{{variable}}}" for name, variable in VARIABLES.items()}
LINES_PER_PHASE = 20
# One process; every option is given, so that accelerate has no default to warn about.
LAUNCH = "accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no"
SCORES = ("foreground_iou", "mean_iou", "mean_box_iou", "mean_boundary_iou")
ALONE = "_without_segmenter"  # in file names, of a stage that takes a segmenter only if there is one
MAP_SCORES = ("foreground_mean_iou", "mean_iou")


class Busy(Exception):
    """Another process is at work on the cell."""


@dataclass(frozen=True)
class Bench:
    """Where things are.

    Attributes:
        runs: folder of the runs, which are ignored by git.
        results: folder of the finished cells.
        places: name of a placeholder -> folder, relative to the repository root or absolute; those of `VARIABLES`.
    """

    runs: Path = ROOT / "runs" / "bench"
    results: Path = ROOT / "results"
    places: tuple[tuple[str, str], ...] = ()

    def run_folder(self, name: str) -> Path:
        return self.runs / name

    def result_folder(self, cell: Cell) -> Path:
        return self.results / cell.result

    def finished(self, cell: Cell) -> dict | None:
        """metrics.json of the cell, whatever its configuration was, or None; settings are those of today."""
        metrics = read_json(self.result_folder(cell) / "metrics.json")
        return metrics and metrics | {"configuration": as_of_today(metrics["configuration"])}

    def is_up_to_date(self, cell: Cell) -> bool:
        """Whether it is finished, with the configuration that its row has now."""
        metrics = self.finished(cell)
        return metrics is not None and not differences(metrics["configuration"], json_like(cell.configuration))


def run_cell(bench: Bench, cell: Cell, *, redo: bool = False) -> bool:
    """Run what is missing of a cell; a run that was stopped is resumed.

    Args:
        redo: begin from nothing, the training included.

    Returns:
        False if it was finished before.

    Raises:
        ValueError: it was finished with another configuration, or the settings are not valid.
        FileNotFoundError: the stages of the used row are not there.
        RuntimeError: a command failed.
        Busy: another process is at work on it.
    """
    run, result = bench.run_folder(cell.name), bench.result_folder(cell)
    run.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        lock = held.enter_context(_alone(run.with_name(run.name + ".lock")))
        if redo:
            shutil.rmtree(run)
            shutil.rmtree(result, ignore_errors=True)
            run.mkdir()
        if _is_finished(bench, cell):
            return False
        if cell.used is not None:
            stages = bench.run_folder(cell.used)
            held.enter_context(_alone(stages.with_name(stages.name + ".lock"), shared=True))
            _check_used(cell, stages)
        config, places = run / "settings.yaml", dict(bench.places)
        if cell.settings:
            write_text(config, _config_text(bench, cell, places))
        running = Commands(run, json_like(cell.configuration), lock)
        for number, command in enumerate(commands(bench, cell, config, places)):
            shares = number == 0 and cell.prepare  # what it makes serves all cells of the protocol
            with _alone(bench.runs / f"{cell.protocol}.lock", wait=True) if shares else nullcontext():
                running.run(command, cell.num_threads)
        _write_result(bench, cell, running)
    return True


def _is_finished(bench: Bench, cell: Cell) -> bool:
    """Raises ValueError if it was finished with another configuration."""
    before = bench.finished(cell)
    differing = before and differences(before["configuration"], json_like(cell.configuration))
    if differing:
        run, result = bench.run_folder(cell.name), bench.result_folder(cell)
        raise ValueError(
            f"{cell.name} was measured with another configuration ({'; '.join(differing)}). Delete {_shown(result)} "
            f"to measure it again, which resumes {_shown(run)} if the training is the same, or pass --redo to begin "
            "from nothing."
        )
    return before is not None


def _check_used(cell: Cell, stages: Path) -> None:
    """Raises FileNotFoundError or ValueError unless the stages that a cell uses are there, trained as its row says."""
    command = f"python benchmarks/tables.py run {cell.uses}/{cell.protocol} --seed {cell.seed}"
    if not (stages / "aux" / f"stage{cell.num_stages}" / "lpg").is_dir():
        raise FileNotFoundError(
            f"{cell.name} uses the stages of {cell.used}, which are not in {_shown(stages)}. Run `{command}` first, "
            "with --redo if its results are there already."
        )
    trained = (read_json(stages / "commands.json") or {}).get("configuration")
    differing = differences(as_used(trained or {}), json_like(cell.used_configuration or {}))
    if differing:
        raise ValueError(
            f"the stages in {_shown(stages)} were trained with another configuration ({'; '.join(differing)}). Run "
            f"`{command} --redo` first."
        )


def commands(bench: Bench, cell: Cell, config: Path, places: dict[str, str]) -> Iterator[list[str]]:
    """The commands of a cell in order, as they are typed in the repository root.

    Whether a stage needs a segmenter is read from its folder, so a later command is known when the ones before are
    done.
    """
    run = bench.run_folder(cell.name)
    if cell.prepare:
        yield ["python", *expand(cell.prepare, places)]
    threads = cell.num_threads or os.cpu_count() or 1
    launch = [*LAUNCH.split(), "--num_cpu_threads_per_process", str(threads)]
    if cell.kind in ("generator", "em", "stages"):
        yield [*launch, "training/em.py", "--config", _shown(config)]
    if cell.kind in ("stages", "deploy"):
        yield [*launch, "training/deploy.py", "--config", _shown(config)]
    measure = expand(cell.measure, places)
    compare = ["lpg-hf", "compare", measure["annotations"], "--truth", measure["masks"], "--dtype", "float32"]
    compare += cell.compare_options
    for option in ("images", "split"):
        if option in measure:
            compare += [f"--{option}", measure[option]]
    for number, name in enumerate(cell.generators):
        yield [*compare, "--generators", expand(name, places), "--json", _shown(run / f"generator{number}.json")]
    if cell.kind in ("generator", "em", "stages"):
        for stage in range(1, cell.num_stages + 1):
            lpg = run / "aux" / f"stage{stage}" / "lpg"
            arguments = ["--generators", "lpg", "--model", _shown(lpg)]
            architecture, name = json.loads((lpg / "config.json").read_text(encoding="utf-8")), f"stage{stage}"
            if architecture["use_class_prob"]:
                if architecture.get("class_prob_optional", False):
                    yield [*compare, *arguments, "--json", _shown(run / f"{name}{ALONE}.json")]
                if cell.kind == "em":  # the segmenters of the measured classes are those of other rows
                    continue
                arguments += ["--segmenter", _shown(run / "target" / f"stage{stage - 1}" / "segmenter")]
            yield [*compare, *arguments, "--json", _shown(run / f"{name}.json")]


class Commands:
    """The commands of a run; what has finished is kept with the seconds of all its starts, and is not run again."""

    def __init__(self, run: Path, configuration: dict, lock: int | None = None) -> None:
        """
        Args:
            run: folder for commands.json and output.log.
            configuration: after a change of it everything runs again; training/ decides what it can resume.
            lock: file descriptor that the commands inherit.
        """
        self.path, self.log, self.lock = run / "commands.json", run / "output.log", lock
        content = read_json(self.path) or {"configuration": None}
        same = content["configuration"] == configuration
        kept = {state: content.get(state, {}) if same else {} for state in ("finished", "stopped")}
        self.content = {"configuration": configuration} | kept

    def run(self, command: list[str], threads: int | None) -> None:
        """Run a command in the repository root.

        Args:
            threads: for OMP_NUM_THREADS; None: as it is.

        Raises:
            RuntimeError: it failed; the message has the last lines of its output.
        """
        text = shlex.join(command)
        if text in self.content["finished"]:
            return
        print(f"  {text}", flush=True)
        began = time.monotonic()
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        if threads is not None:
            environment["OMP_NUM_THREADS"] = str(threads)
        with open(self.log, "ab") as output:
            start = output.tell()
            process = subprocess.Popen(
                _executable(command),
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
                pass_fds=[] if self.lock is None else [self.lock],
            )
            try:
                status = process.wait()
            except BaseException:  # Ctrl-C or a signal to stop: training resumes from its checkpoint the next time
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
                self._keep("stopped", text, began)
                raise
        if status:
            self._keep("stopped", text, began)
            said = self.log.read_bytes()[start:].decode("utf-8", "replace").splitlines()
            last = "\n    ".join(line.rpartition("\r")[2] for line in said[-8:])
            raise RuntimeError(f"exit status {status} of `{text}`. {_shown(self.log)} ends with\n    {last}")
        self._keep("finished", text, began)

    def _keep(self, state: str, text: str, began: float) -> None:
        before = self.content["stopped"].pop(text, 0.0)
        self.content[state][text] = round(before + time.monotonic() - began, 2)
        write_json(self.path, self.content)

    def seconds(self, command: list[str]) -> float:
        return self.content["finished"][shlex.join(command)]


def _write_result(bench: Bench, cell: Cell, running: Commands) -> None:
    run, result = bench.run_folder(cell.name), bench.result_folder(cell)
    ran = list(commands(bench, cell, run / "settings.yaml", dict(bench.places)))
    typed = list(commands(bench, cell, result / "settings.yaml", _NAMED_PLACES))
    seconds = [running.seconds(command) for command in ran]
    if cell.settings:
        write_text(result / "settings.yaml", _config_text(bench, cell, _NAMED_PLACES))
    metrics = {
        "table": cell.table,
        "row": cell.row,
        "protocol": cell.protocol,
        "seed": cell.seed,
        "kind": cell.kind,
        "label": cell.label,
        **measured(cell, run),
        "seconds": round(sum(seconds), 1),
        "commands": [{"command": _typed(command), "seconds": s} for command, s in zip(typed, seconds)],
        "configuration": json_like(cell.configuration),
        **_surroundings(bench, cell),
    }
    log = thinned_log(run / "log.jsonl")
    if log:
        write_text(result / "log.jsonl", log)
    write_json(result / "metrics.json", metrics)


def measured(cell: Cell, run: Path) -> dict:
    """What the commands of a cell left in its run folder.

    Returns:
        `boxes`: generator, or stage -> scores of the masks of the measured boxes. `training`: stage folder -> loss and
        seconds over all starts. Of deploy.py: `box_fill` and `pseudo_masks` (stage -> scores on the training images of
        the target), `segmenter` (stage -> scores, with `crf` those after a dense CRF) and `num_images`.
    """
    found: dict = {"boxes": {}}
    for number, name in enumerate(cell.generators):
        found["boxes"][name] = _compared(run / f"generator{number}.json")
    for path in sorted(run.glob("stage*.json")):
        found["boxes"][path.stem.removeprefix("stage").replace("_", " ")] = _compared(path)
    trained = {}
    for path in sorted(run.glob("*/stage*/*/metrics.json")):
        metrics = json.loads(path.read_text(encoding="utf-8"))
        trained[str(path.parent.relative_to(run))] = {key: metrics[key] for key in ("loss", "seconds", "device")}
    if trained:
        found["training"] = trained
        found["training_seconds"] = round(sum(stage["seconds"] for stage in trained.values()), 1)
    if cell.kind in ("stages", "deploy"):
        path = run / ("target" if cell.mode == "weak" else f"target_{cell.mode}") / "metrics.json"
        target = json.loads(path.read_text(encoding="utf-8"))
        details = target["details"]
        found["num_images"] = target["num_images"]
        if "box_fill" in details:
            found["box_fill"] = _of_maps(details["box_fill"])
        found["pseudo_masks"] = {stage: _of_maps(scores) for stage, scores in details["pseudo_masks"].items()}
        found["segmenter"] = {
            stage: _of_maps(scores) | ({"crf": _of_maps(scores["crf"])} if "crf" in scores else {})
            for stage, scores in details["segmenter"].items()
        }
    return found


def thinned_log(path: Path) -> str:
    """At most `LINES_PER_PHASE` lines of each phase of a log.jsonl, evenly spaced, with the last; "" if absent."""
    if not path.is_file():
        return ""
    phases: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        phases.setdefault(json.loads(line)["phase"], []).append(line)
    kept = []
    for lines in phases.values():
        count = min(len(lines), LINES_PER_PHASE)
        kept += [lines[(i + 1) * len(lines) // count - 1] for i in range(count)]
    return "".join(f"{line}\n" for line in kept)


def _compared(path: Path) -> dict:
    (row,) = json.loads(path.read_text(encoding="utf-8"))["rows"]
    counts = {"num_images": row["num_images"], "num_boxes": row["num_boxes"], "num_skipped": len(row["skipped"])}
    return {key: row["scores"][key] for key in (*SCORES, "boxes_per_second")} | counts


def _of_maps(scores: dict) -> dict:
    return {key: scores[key] for key in MAP_SCORES}


def _config_text(bench: Bench, cell: Cell, places: dict[str, str]) -> str:
    """The YAML file of a run: all its settings, checked."""
    run = {"dir": _shown(bench.run_folder(cell.name))}
    if cell.used is not None:
        run["stages"] = _shown(bench.run_folder(cell.used))
    of_bench = expand(cell.settings, dict(bench.places))
    settings_from_dict(merged(of_bench, {"run": run}), f"the row {cell.table}/{cell.row} under {cell.protocol}")
    settings = merged(expand(cell.settings, places), {"run": run})
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def _surroundings(bench: Bench, cell: Cell) -> dict:
    """Settings without this machine's folders, versions and hardware."""
    found: dict = {}
    if cell.settings:
        values = read_yaml(str(bench.run_folder(cell.name) / "settings.yaml"))
        found["settings"] = public_settings(settings_from_dict(values, "settings.yaml"))
    found["versions"] = {"python": platform.python_version()} | package_versions()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found["hardware"] = {
        "machine": platform.machine(),
        "cpu_cores": cell.num_threads or cores,
        "native_bf16": resolve_dtype("auto", "cpu") == torch.bfloat16,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    return found


def _executable(command: list[str]) -> list[str]:
    """The command with this Python in place of the programs that its environment has."""
    modules = {
        "accelerate": ["-m", "accelerate.commands.accelerate_cli"],
        "lpg-hf": ["-m", "lpg_hf.cli"],
        "python": [],
    }
    return [sys.executable, *modules[command[0]], *command[1:]]


@contextmanager
def _alone(path: Path, *, shared: bool = False, wait: bool = False) -> Iterator[int]:
    """A lock that the commands inherit: a command that outlives the bench still keeps others from its folder.

    Args:
        shared: with others that only read the folder.
        wait: until it is free, in place of an error.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="ascii") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise Busy(f"another process is at work in {_shown(path.with_suffix(''))}") from None
        yield file.fileno()


def _typed(command: list[str]) -> str:
    """A command as it is typed in the repository root, where the shell replaces the variables of the folders."""
    return " ".join(f'"{word}"' if "${" in word else shlex.quote(word) for word in command)


def _shown(path: Path) -> str:
    """A path as it is typed in the repository root."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def read_json(path: Path) -> dict | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write_json(path: Path, value: dict) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """The file appears complete or not at all; folders are created."""
    write_atomically(path, text.encode("utf-8"))
