"""Folders of earlier runs, changed at random: OUT of `masks`, run folders that go to the Hub, settings files."""

import json
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import yaml
from hub_runs import write_small_run
from hypothesis import strategies as st
from mutations import CHANGES, changed_bytes, changed_json, changed_text
from outcomes import COMMAND, ERRORS, Fault, allowed, fuzz, inputs, run
from trees_in_memory import changed_file, rich_coco

from lpg_hf.hub.pull import pull_run
from lpg_hf.training.config import Settings, flat
from lpg_hf.training.parsing import parse_settings


def _files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def _write(root: Path, files: dict[str, bytes]) -> None:
    shutil.rmtree(root, ignore_errors=True)
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


@inputs
def test_outputs_of_an_earlier_run(tmp_path, inputs):
    rich_coco(tmp_path / "coco")
    out = tmp_path / "out"
    assert run(*_masks(tmp_path), "--write", "png,coco") < 2
    finished = _files(out)
    unfinished = {name: data for name, data in finished.items() if name not in ("report.json", "instances.json")}
    unfinished.pop("masks/sub/b.png")
    states = (finished, unfinished)
    drawn = st.tuples(st.integers(0, 1), st.integers(0, 99), CHANGES, st.integers(0, 9))
    fuzz(inputs, drawn, partial(check_outputs, tmp_path, states))


def _masks(folder: Path) -> tuple:
    source = folder / "coco" / "annotations.json"
    return "masks", source, "--generator", "box", "--out", folder / "out", "--num-workers", 1


def check_outputs(folder: Path, states: tuple, drawn: tuple) -> None:
    state, which, changes, action = drawn
    files = dict(states[state])
    named = [name for name in files if name.endswith(".json")]
    name = named[which % len(named)]
    is_block = name.startswith(".parts/0")  # a line of json and its hash
    files[name] = changed_bytes(files[name], changes) if is_block else changed_file(name, files[name], changes)
    _write(folder / "out", files)
    if action < 4:
        run(*_masks(folder), "--write", "png,coco")
    elif action < 7:
        run(*_masks(folder), "--write", "png,coco,yolo,labelme,coco-polygons,instances-png,crops", "--overlay")
    else:
        with allowed():
            try:
                COMMAND([*map(str, _masks(folder)), "--write", "png,coco", "--overwrite"])
            except ERRORS as error:
                # What names other images or outputs is the state of another run, whose files these are not.
                if "is not known to come from the earlier run" not in str(error):
                    raise Fault(f"--overwrite is refused after {name} was damaged") from error


class _Hub:
    """What `pull_run` asks of a client: a run's repositories as folders."""

    def __init__(self, stages: dict[str, Path]):
        self.stages = stages

    def snapshot_download(self, repo_id: str, **_: object) -> str:
        from huggingface_hub.errors import RepositoryNotFoundError

        if repo_id not in self.stages:
            response = SimpleNamespace(status_code=404, headers={}, request=None)
            raise RepositoryNotFoundError("absent", response=response)  # type: ignore[arg-type]
        return str(self.stages[repo_id])


@inputs
def test_run_folders(tmp_path, inputs):
    files = _files(write_small_run(tmp_path / "made", num_stages=1))
    named = [name for name in files if name.endswith((".json", ".safetensors"))]
    drawn = st.tuples(st.sampled_from(named), CHANGES, st.integers(0, 9))
    fuzz(inputs, drawn, partial(check_run, tmp_path, files))


def check_run(folder: Path, files: dict[str, bytes], drawn: tuple) -> None:
    name, changes, action = drawn
    _write(folder / "run", {**files, name: changed_file(name, files[name], changes)})
    if action < 6:
        run("push-run", folder / "run", "org/lpg", "--dry-run")
        return
    stages = {"org/lpg-stage1": folder / "run/aux/stage1/lpg"}
    stages |= {f"org/lpg-segmenter-stage{i}": folder / f"run/target/stage{i}/segmenter" for i in (0, 1)}
    shutil.rmtree(folder / "pulled", ignore_errors=True)
    before = set(folder.iterdir())
    with allowed():
        pull_run("org/lpg", folder / "pulled", api=_Hub(stages))  # type: ignore[arg-type]
    if set(folder.iterdir()) - before - {folder / "pulled"}:
        raise Fault("a file outside OUT")


def _settings() -> tuple[dict, str]:
    """The settings of training with their defaults, as values and as text."""
    values: dict = {}
    for name, value in flat(Settings()).items():
        section, _, key = name.partition(".")
        values.setdefault(section, {})[key] = list(value) if isinstance(value, tuple) else value
    values = json.loads(json.dumps(values))
    return values, _yaml(values)


@inputs
def test_settings_of_a_training(tmp_path, inputs):
    values, text = _settings()
    # One section of the six is read in a sixth of the time; the changes are in it, and seldom beside it.
    parts = [({name: section}, _yaml({name: section})) for name, section in values.items()]
    drawn = st.tuples(st.sampled_from([*parts, (values, text)]), CHANGES, st.integers(0, 9))
    fuzz(inputs, drawn, partial(check_settings, tmp_path / "x.yaml"))


def _yaml(values: object, **options: bool) -> str:
    try:
        return yaml.dump(values, Dumper=yaml.CSafeDumper, sort_keys=False, **options)
    except (AttributeError, UnicodeEncodeError):  # There is no dumper in C, or it meets half a character.
        return yaml.safe_dump(values, sort_keys=False, **options)


def check_settings(path: Path, drawn: tuple) -> None:
    (values, text), changes, level = drawn
    if level < 6:
        made = _yaml(changed_json(values, changes), allow_unicode=level > 2).encode("utf-8", "replace")
    else:
        made = changed_text(text, changes).encode() if level < 9 else changed_bytes(text.encode(), changes)
    path.write_bytes(made)
    with allowed():
        parse_settings(["--config", str(path)])
