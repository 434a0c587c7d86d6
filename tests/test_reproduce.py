"""Every command in REPRODUCE.md is one that its program accepts."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from lpg_hf.cli import app
from lpg_hf.data._prepare.weights import WEIGHTS
from lpg_hf.training.parsing import parse_settings


ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "REPRODUCE.md").read_text(encoding="utf-8")
CONFIGS = {
    "LargeFOV": "training/configs/coco60_voc_largefov.yaml",
    "ResNet101": "training/configs/coco60_voc_resnet101.yaml",
}


def commands() -> list[str]:
    """The lines of code blocks, joined where they go on, and the commands in the table."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    lines += re.findall(r"`((?:EM|DEPLOY|lpg-hf|python) [^`]*)`", PAGE)
    return [re.sub(r"\s+#.*", "", line).strip() for line in lines]


def training_flags() -> list[str]:
    found = [
        re.sub(r"^.*?(training/\S+\.py|EM|DEPLOY) ", "", line)
        for line in commands()
        if re.match(r"accelerate|EM|DEPLOY", line)
    ]
    return [flags for flags in found if "..." not in flags]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("flags", training_flags())
def test_flags_of_training_parse(flags: str, config: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(flags)
    given = words if "--config" in words else ["--config", CONFIGS[config], *words]
    parse_settings(given)


@pytest.mark.parametrize("command", [line for line in commands() if line.startswith("lpg-hf ")])
def test_commands_of_the_package_parse(command: str):
    name, *words = shlex.split(command)[1:]
    group = typer.main.get_command(app)
    subcommand = group.get_command(None, name)  # type: ignore[attr-defined,arg-type]
    assert subcommand is not None, name
    subcommand.make_context(name, words)


@pytest.mark.parametrize("command", [line for line in commands() if line.startswith("python benchmarks/")])
def test_commands_of_the_benchmarks_name_their_flags(command: str):
    source = (ROOT / shlex.split(command)[1]).read_text(encoding="utf-8")
    assert all(f'"{flag}"' in source for flag in re.findall(r" (--[a-z_]+)", command))


@pytest.mark.parametrize("config", CONFIGS.values())
def test_configurations_read_what_is_prepared(config: str):
    settings = parse_settings(["--config", str(ROOT / config)])
    layout = re.findall(r"```\n(data/.*?)```", PAGE, flags=re.DOTALL)[0]
    assert settings.aux.annotations == "data/coco/annotations/instances_train2017.json"
    assert settings.aux.images == "data/coco/train2017" and settings.target.root == "data/voc"
    assert "data/coco/{annotations,train2017,val2017}" in layout and "data/voc/{JPEGImages,Annotations," in layout
    folder, _, name = str(settings.segmenter.weights).rpartition("/")
    assert folder == "data/weights" and Path(name).stem in layout and name in WEIGHTS
    assert {settings.target.split, settings.evaluation.split, settings.run.semi_split} == {"train_aug", "val", "train"}
