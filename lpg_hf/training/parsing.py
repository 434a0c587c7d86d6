"""Settings from a YAML file, shaped like the sections of `config.py`, and from flags `--section.name value`.

jsonargparse comes near; tyro, draccus and HfArgumentParser know no `null`, or not a file and flags together. But its
errors are several lines without a remedy, and it keeps what stands inside `lpg.config` as text.
"""

import dataclasses
import os
import re
import sys
import types
import typing
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

from yaml.scanner import ScannerError

from lpg_hf._files import read_text
from lpg_hf._yaml import load_yaml
from lpg_hf.training.config import Settings, flat


def parse_settings(
    argv: list[str] | None = None, description: str | None = None, start: str | None = None
) -> Settings:
    """Settings from `--config FILE.yaml` and flags; flags win.

    What may be absent is given as `null`, lists and dicts as YAML, or a key of a dict by itself: `--lpg.scales "[0.5,
    1.0]"`, `--lpg.config.backbone squeezenet`.

    Args:
        argv: the words after the script's name; None: of this process.
        description: what `--help` begins with.
        start: printed where there are no words at all.

    Raises:
        ValueError: an unknown setting, a value of another type, or text that is not YAML.
        SystemExit: after `--help` and `start`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if start is not None and not words:
        if os.environ.get("RANK", "0") == "0":
            print(start)
        sys.exit()
    if "--help" in words or "-h" in words:
        listed = "".join(f"\n  --{name} VALUE  (default: {value!r})" for name, value in flat(Settings()).items())
        print(f"{description or ''}\n  --config FILE.yaml{listed}")
        sys.exit()
    values, source, flags = {}, "the command line", {}
    while words:
        name, equals, text = words.pop(0).partition("=")
        if not name.startswith("--") or not (equals or words):
            raise ValueError(
                f"{name!r} is not a flag with its value. Flags are --section.name VALUE; --help lists them."
            )
        text = text if equals else words.pop(0)
        if name == "--config":
            values, source = read_yaml(text), text
        else:
            flags[name.removeprefix("--")] = text
    for name, text in flags.items():
        section, *path = name.split(".", 2)
        value = _flag_value(name, path[0] if path else "", text) if path else text
        for key in reversed(path):
            value = {key: value}
        values = merged(values, {section: value})
    return settings_from_dict(values, source)


def list_configs(folder: Path) -> str:
    """The files of settings in a folder, a line each with what they begin with."""
    shown = Path(os.path.relpath(folder)) if folder.is_relative_to(Path.cwd()) else folder
    firsts = {path.name: path.read_text(encoding="utf-8").partition("\n")[0] for path in sorted(folder.glob("*.yaml"))}
    width = max(map(len, firsts), default=0)
    lines = [f"  {name:{width}}  {first.removeprefix('# ')}" for name, first in firsts.items()]
    return "\n".join([f"Configurations in {shown}:", *lines])


def read_yaml(path: str) -> dict:
    """The content of a file of settings, unchecked."""
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"Config file {path} does not exist. Those of this repository are in training/configs."
        )
    values = _parse_yaml(read_text(path), path) or {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} does not hold `section: {{name: value}}`.")
    return values


def settings_from_dict(values: dict, source: str) -> Settings:
    """Checked settings; `source` is named in errors. `${NAME}` in a text stands for an environment variable.

    Raises:
        ValueError: an unknown or contradictory setting, or a value of another type.
    """
    sections = {f.name: getattr(Settings(), f.name) for f in dataclasses.fields(Settings)}
    _check_known("", values, list(sections), source)
    for section, default in sections.items():
        if section == "evaluation":
            default = dataclasses.replace(sections["target"], annotations=None, split=default.split)
        given = values.get(section, {})
        if not isinstance(given, dict):
            raise ValueError(f"{section}={given!r} in {source} must hold `name: value` lines.")
        hints, checked = typing.get_type_hints(type(default)), {}
        _check_known(f"{section}.", given, list(hints), source)
        for name, value in given.items():
            value = _expanded(value, f"{section}.{name}")
            value = _converted(value, hints[name], f"{section}.{name}", source)
            checked[name] = (
                merged(typing.cast(dict, getattr(default, name)), value) if isinstance(value, dict) else value
            )
        try:
            sections[section] = dataclasses.replace(default, **checked)
        except ValueError as error:
            raise ValueError(f"{section}.{error}") from error
    return Settings(**sections)


def merged(values: dict, changes: dict) -> dict:
    """The values with the changes, key by key also in dicts inside; an empty dict empties."""
    result = dict(values)
    for key, value in changes.items():
        before = result.get(key)
        if isinstance(before, dict) and isinstance(value, dict) and value:
            value = merged(before, value)
        result[key] = value
    return result


def _parse_yaml(text: str, source: str) -> typing.Any:
    try:
        return load_yaml(text)
    except (ScannerError, ValueError) as error:
        raise ValueError(f"{source} is not valid YAML: {' '.join(str(error).split())}.") from error


def _check_known(prefix: str, given: dict, known: list[str], source: str) -> None:
    for name in given:
        if name not in known:
            near = get_close_matches(str(name), known, n=1)
            remedy = f"Did you mean {prefix}{near[0]}?" if near else f"Known: {', '.join(known)}."
            raise ValueError(f"Unknown setting {prefix}{name} in {source}. {remedy}")


def _options(hint: typing.Any) -> tuple:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _flag_value(flag: str, name: str, text: str) -> typing.Any:
    """The text, or what it is as YAML where the setting is not a text."""
    section = getattr(Settings(), flag.split(".")[0], None)
    hint = typing.get_type_hints(type(section)).get(name, str)
    is_null = text == "null" and types.NoneType in _options(hint)
    is_list = text.startswith("[") and any(typing.get_origin(option) is tuple for option in _options(hint))
    return text if str in _options(hint) and not (is_null or is_list) else _parse_yaml(text, f"--{flag}")


def _converted(value: typing.Any, hint: typing.Any, name: str, source: str) -> typing.Any:
    """The value, a list as a tuple and a whole number as a float where the type asks for it.

    Raises:
        ValueError: it is of another type.
    """
    for option in _options(hint):
        kind = typing.get_origin(option) or option
        if kind is tuple and isinstance(value, (list, tuple)):
            return tuple(_converted(item, typing.get_args(option)[0], name, source) for item in value)
        if kind is float and type(value) in (int, str):
            with suppress(ValueError, OverflowError):
                return float(value)  # YAML reads 1e-3 as text
        if type(value) is kind:
            return value
    wanted = hint.__name__ if isinstance(hint, type) else str(hint)
    for type_name, word in {"float": "numbers", "int": "whole numbers", "str": "names"}.items():
        wanted = wanted.replace(f"tuple[{type_name}, ...]", f"list of {word}")
    raise ValueError(f"{name}={value!r} in {source} is {type(value).__name__}; it must be {wanted}.")


def _expanded(value: typing.Any, name: str) -> typing.Any:
    """The value with `${NAME}` replaced by the environment variable."""

    def variable(match: re.Match) -> str:
        if match[1] not in os.environ:
            raise ValueError(f"{name}={value} needs the environment variable {match[1]}: set it, or pass --{name}.")
        return os.environ[match[1]]

    return re.sub(r"\$\{(\w+)\}", variable, value) if isinstance(value, str) else value
