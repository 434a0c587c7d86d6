"""Model cards of stage folders, rendered from the files of the folder and nothing else.

A stage folder is a `save_pretrained` checkpoint with its image processor and, written by training, `metrics.json`.
Every number of its card is in one of these files, and the card says what is absent. Nothing here needs a network.
"""

import functools
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from lpg_hf._files import json_text, write_atomically
from lpg_hf.images import PAD_MULTIPLE


# Installed, the templates are package data; in a checkout they lie beside the package.
TEMPLATES = [Path(__file__).parent / "hub_cards", Path(__file__).parents[1] / "hub_cards"]
# What makes a heading, list, rule, quote or code of a line of Markdown, up to the sign that a backslash makes plain.
_BLOCK_START = re.compile(
    r"\A(?:(?=#{1,6}(?:\s|$)|[-+](?:\s|$)|-+\s*$|=+\s*$|(?:_\s*){3,}$|>|~~~)|\d{1,9}(?=[.)](?:\s|$)))"
)
_METRIC_NAME = re.compile(r"(iou|accuracy)(_|$)")
_COMPUTE_KEYS = ("device", "processes", "mixed_precision", "seconds", "loss", "steps", "versions")
_NO_CARD = "cannot be described"
_LATER = "after_training_"  # prefix of what was set after training
_STAGE_ROWS = {
    "pseudo_mask_miou": "pseudo masks of the LPG",
    "segmenter_miou": "segmenter",
    "segmenter_crf_miou": "segmenter + dense CRF",
}
# Of the settings of training, see lpg_hf/training/config.py.
_SECTIONS = ("run", "aux", "target", "evaluation", "lpg", "segmenter")
# Bookkeeping of transformers, and label lists, which the card shows elsewhere.
_HIDDEN_CONFIG_KEYS = {"architectures", "auto_map", "id2label", "label2id", "transformers_version", "_name_or_path"}


@dataclass(frozen=True)
class _StageFiles:
    """What a stage folder says about its model.

    Args:
        config: `config.json`; preprocessor: `preprocessor_config.json`, {} if absent.
        metrics: `metrics.json`, {} if absent.
        kind: "lpg" or "segmenter".
    """

    folder: Path
    config: dict
    preprocessor: dict
    metrics: dict
    kind: str

    @classmethod
    def read(cls, folder: Path) -> "_StageFiles":
        config = read_json(folder / "config.json")
        if not config:
            raise FileNotFoundError(f"{folder} holds no config.json. Call save_pretrained on the model first.")
        metrics = read_json(folder / "metrics.json")
        kind = metrics.get("kind", "lpg" if config.get("model_type") == "lpg" else "segmenter")
        if kind not in ("lpg", "segmenter"):
            raise ValueError(f"kind is {kind!r} in {folder / 'metrics.json'}, but a stage is 'lpg' or 'segmenter'.")
        return cls(folder, config, read_json(folder / "preprocessor_config.json"), metrics, kind)

    @property
    def measured_on(self) -> str | None:
        return self.metrics.get("measured_on", self.metrics.get("dataset"))

    @property
    def is_converted(self) -> bool:
        """Whether the weights were trained by others."""
        return "origin" in (self.metrics.get("settings") or {})


@contextmanager
def reading_stage(folder: str | os.PathLike) -> Iterator[None]:
    """Around what computes with the values of a stage folder's json files: one of another type is an error.

    Raises:
        ValueError: one line with the folder and the remedy.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # jinja2, yaml and Python raise many types
        reason = " ".join(str(error).split())
        if isinstance(error, ValueError) and (os.fspath(folder) in reason or _NO_CARD in reason):
            raise  # It names the file, and more than is known here.
        raise ValueError(
            f"{folder} {_NO_CARD}: a value in metrics.json, config.json or preprocessor_config.json has an "
            f"unexpected type ({type(error).__name__}: {reason[:200]}). Correct the value, or save the stage again."
        ) from error


def write_card(folder: str | os.PathLike) -> Path:
    """Write `README.md` of a stage folder from its `config.json`, `preprocessor_config.json` and `metrics.json`.

    Args:
        folder: a saved LPG or segmenter stage. Only `config.json` is required; an image `panel.png` is shown.
            `metrics.json` may hold `kind` ("lpg" or "segmenter"), `stage`, `dataset`, `measured_on` (the metrics'
            dataset where it is not `dataset`), `notes` (paragraphs on the data), `classes`, `excluded_classes`,
            `settings` (with `origin` if the weights were trained elsewhere), `device`, `seconds`, `loss`, `versions`,
            and metrics: keys that name an IoU or an accuracy, with a number or a dictionary of numbers. A push adds
            `repo_id`, `segmenter` (the one that goes with an LPG), `base_model` and `run` (the target's numbers of all
            stages).

    Returns:
        Path of the card. Metrics also go to its `model-index`.

    Raises:
        FileNotFoundError: the folder holds no `config.json`.
        ValueError: a file is not valid JSON, a value has another type, or `kind` is neither "lpg" nor "segmenter".
    """
    with reading_stage(folder):
        return _write_card(Path(folder))


def _write_card(folder: Path) -> Path:
    stage = _StageFiles.read(folder)
    known, results = stage.metrics, _results(stage.metrics)
    number, run = known.get("stage"), known.get("run") or {}
    content = render_card(
        f"{stage.kind}_stage.md",
        card_data=_card_data(stage, results).to_yaml(),
        title=("Pseudo mask generator" if stage.kind == "lpg" else "Segmenter")
        + ("" if number is None else f", stage {number}"),
        stage=number,
        dataset=known.get("dataset"),
        measured_on=stage.measured_on,
        notes=known.get("notes", []),
        classes=known.get("classes"),
        excluded_classes=known.get("excluded_classes"),
        target_classes=run.get("classes") if stage.kind == "lpg" else None,
        shared_classes=[name for name in known.get("classes") or [] if name in run.get("classes", [])],
        use_class_prob=stage.config.get("use_class_prob", False),
        class_prob_optional=stage.config.get("class_prob_optional", False),
        source=known.get("repo_id", "."),
        segmenter=known.get("segmenter"),
        pad_multiple=None
        if stage.preprocessor.get("do_resize") or not stage.config.get("tf_padding")
        else PAD_MULTIPLE,
        has_code="auto_map" in stage.config,
        has_panel=(stage.folder / "panel.png").is_file(),
        architecture=_table({k: v for k, v in stage.config.items() if k not in _HIDDEN_CONFIG_KEYS}),
        settings=_table(_flat(known.get("settings") or {})),
        converted=stage.is_converted,
        changed_later=_table({k.removeprefix(_LATER): v for k, v in known.items() if k.startswith(_LATER)}),
        preprocessor=_table({k: v for k, v in stage.preprocessor.items() if k not in _HIDDEN_CONFIG_KEYS}),
        results=[(name, _shown(value)) for name, value in results],
        run=run,
        stages=_measured_stages(run),
        stage_rows=_stage_rows(run),
        weakest=_weakest(run.get("iou_of_classes") or {}),
        compute=_table({key: known[key] for key in _COMPUTE_KEYS if known.get(key) is not None}),
        has_metrics=(stage.folder / "metrics.json").is_file(),
    )
    ModelCard(content)  # parses the front matter: a broken card is an error here, not at the push
    path = stage.folder / "README.md"
    write_atomically(path, content.encode("utf-8"))
    return path


def _card_data(stage: _StageFiles, results: list[tuple[str, float]]) -> ModelCardData:
    """The front matter of the card, with `results` in its `model-index`."""
    known, task = stage.metrics, "mask-generation" if stage.kind == "lpg" else "image-segmentation"
    # Baselines are in the card's table, but they are not results of this model.
    evaluated = [
        (name, value, stage.measured_on) for name, value in results if not name.startswith(("box_fill", "baseline_"))
    ]
    target = (known.get("run") or {}).get("dataset") or "target"
    evaluated += [(name, value, target) for name, value in _target_results(stage.kind, known)]
    dataset, number = known.get("dataset"), known.get("stage")
    return ModelCardData(
        license="other" if stage.is_converted else "apache-2.0",
        library_name="lpg_hf",
        pipeline_tag=task,
        tags=["box-supervised", "pseudo-labels", "semantic-segmentation", stage.config.get("model_type", stage.kind)],
        model_name=f"{stage.kind}-stage{number}" if number is not None else stage.kind,
        datasets=[_slug(dataset)] if dataset else None,
        base_model=_hub_id(known.get("base_model")),
        metrics=["mean_iou"] if evaluated else None,
        eval_results=[
            EvalResult(
                task_type=task,
                dataset_type=_slug(where),
                dataset_name=str(where),
                metric_type="accuracy" if "accuracy" in name else "mean_iou",
                metric_name=name,
                metric_value=value,
            )
            for name, value, where in evaluated
        ]
        or None,
    )


def render_card(template: str, *, card_data: str, **values: Any) -> str:
    """A template of hub_cards/, filled in; a missing value that the template needs is an error.

    Args:
        card_data: the front matter, in yaml.
        values: texts may hold anything: they become one line that Markdown shows as it is, and with the filter
            `python` a literal for a line of code.
    """
    return _environment().get_template(template).render(card_data=_Verbatim(card_data), **values)


class _Verbatim(str):
    """Text that is written as it is."""


def _markdown(value: Any) -> Any:
    """What an expression of a template gives, so that no name in it ends a table, or becomes a link, tag or block.

    Brackets stay as they are, as lists have them: without `](` and `]:` there is neither a link nor a definition that
    a reference or a footnote could lead to.
    """
    if isinstance(value, _Verbatim):
        return value
    text = str(value)
    text = " ".join(text.split()) if "\n" in text or "\r" in text else text
    text = text.replace("<", "&lt;").replace("|", "\\|").replace("`", "'").replace("*", "\\*")
    text = text.replace("](", "]\\(").replace("]:", "]\\:")
    text = _BLOCK_START.sub(r"\g<0>\\", text.lstrip())
    return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)


def _python(value: object) -> _Verbatim:
    """A text as a literal of Python in double quotes."""
    return _Verbatim(json_text(str(value)))


@functools.cache
def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader([str(path) for path in TEMPLATES], encoding="utf-8")
    environment = jinja2.Environment(
        loader=loader, undefined=jinja2.StrictUndefined, keep_trailing_newline=True, finalize=_markdown
    )
    environment.filters["python"] = _python
    return environment


def read_json(path: Path) -> dict:
    """Content of a JSON file, {} if there is no such file.

    Raises:
        ValueError: the file is not JSON, or holds something else than an object.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}). Save the stage again.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not an object. Save the stage again.")
    return content


def _target_results(kind: str, metrics: dict) -> list[tuple[str, float]]:
    """This stage's numbers on the target set of its run, as far as they are not among the stage's own metrics."""
    if kind == "lpg":
        names = {"pseudo_mask_miou": "target_pseudo_mask_miou"}
    else:
        names = {name: name for name in ("segmenter_miou", "segmenter_crf_miou") if name not in metrics}
    run, stage = metrics.get("run") or {}, str(metrics.get("stage"))
    return [(shown, run[name][stage]) for name, shown in names.items() if stage in run.get(name, {})]


def _measured_stages(run: dict) -> list[str]:
    """Stages with a number, in order; a run without evaluation images has those of its pseudo masks alone."""
    measured = {stage for name in _STAGE_ROWS for stage in run.get(name) or {}}
    return sorted(measured | ({"0"} if run.get("box_fill_miou") is not None else set()), key=int)


def _stage_rows(run: dict) -> list[tuple[str, list[str]]]:
    """Rows of the stage table: name, and a cell for each of `_measured_stages`."""
    stages = _measured_stages(run)
    rows = [("filled boxes", {"0": run["box_fill_miou"]})] if run.get("box_fill_miou") is not None else []
    rows += [(text, run[name]) for name, text in _STAGE_ROWS.items() if run.get(name)]
    return [(text, [_shown(values[stage]) if stage in values else "" for stage in stages]) for text, values in rows]


def _weakest(iou_of_classes: dict) -> tuple[str, str] | None:
    """Name and IoU of the worst class."""
    measured = [(iou, name) for name, iou in iou_of_classes.items() if iou is not None and name != "background"]
    if not measured:
        return None
    iou, name = min(measured, key=lambda entry: entry[0])
    return name, _shown(iou)


def _slug(name: str | None) -> str:
    return re.sub(r"[^a-z0-9]+", "-", str(name).lower()).strip("-") or "unknown"


def _hub_id(name: object) -> str | None:
    """A name, or an id such as org/name; None for what the Hub would refuse as one."""
    if not isinstance(name, str) or not name.isascii():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def _results(metrics: dict) -> list[tuple[str, float]]:
    """(name, number) of every quality metric; a dictionary or a list of numbers is spread over its keys or classes."""
    results: list[tuple[str, float]] = []
    for key, value in metrics.items():
        if not _METRIC_NAME.search(key):
            continue
        if isinstance(value, list):
            names = metrics.get("classes") or []
            names = ["background", *names] if len(value) == len(names) + 1 else names
            value = {names[i] if len(value) == len(names) else i: number for i, number in enumerate(value)}
        entries = value.items() if isinstance(value, dict) else [(None, value)]
        for name, number in entries:
            if isinstance(number, int | float) and not isinstance(number, bool):
                results.append((key if name is None else f"{key} [{name}]", number))
    return results


def _flat(settings: dict) -> dict:
    """The sections of training's settings as `section.name` -> value; other settings as they are."""
    flat = {}
    for name, value in settings.items():
        is_section = name in _SECTIONS and isinstance(value, dict)
        flat |= {f"{name}.{key}": inner for key, inner in value.items()} if is_section else {name: value}
    return flat


def _table(values: dict) -> list[tuple[str, str]]:
    return [(str(key), _shown(value)) for key, value in values.items()]


def _shown(value: str | float | Sequence | dict | None) -> str:
    """A value for a cell of a table, as the JSON file has it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
