"""Model cards of stage folders, rendered from the files of the folder and nothing else.

A stage folder is a `save_pretrained` checkpoint with its image processor and, written by training, `metrics.json`. Every number
of its card is in one of these files; what is absent is said to be absent. Nothing here needs a network.
"""

import functools
import json
import os
import re
from pathlib import Path

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from lpg_hf.files import write_atomically


# Installed, the templates are package data; in a checkout they lie beside the package.
TEMPLATES = [Path(__file__).parents[1] / "hub_cards", Path(__file__).parents[2] / "hub_cards"]
_METRIC_NAME = re.compile(r"(iou|accuracy)(_|$)")
_COMPUTE_KEYS = ("device", "processes", "mixed_precision", "seconds", "loss", "steps", "versions")
_LATER = "after_training_"  # begins the names of what was set when the training was over
_STAGE_ROWS = {
    "pseudo_mask_miou": "pseudo masks of the LPG",
    "segmenter_miou": "segmenter",
    "segmenter_crf_miou": "segmenter + dense CRF",
}
# Bookkeeping of transformers and label lists, which the card shows elsewhere or nobody asks for.
_HIDDEN_CONFIG_KEYS = {"architectures", "auto_map", "id2label", "label2id", "transformers_version", "_name_or_path"}


def write_card(folder: str | os.PathLike) -> Path:
    """Write `README.md` of a stage folder from its `config.json`, `preprocessor_config.json` and `metrics.json`.

    Args:
        folder: a saved LPG or segmenter stage. `metrics.json` may hold `kind` ("lpg" or "segmenter"), `stage`, `dataset`,
            `measured_on` (the dataset of the metrics where it is not `dataset`), `notes` (paragraphs on the data),
            `classes`, `excluded_classes`, `settings` (with `origin` if the weights were trained elsewhere), `device`,
            `seconds`, `loss`, `versions`, and metrics: keys that name an IoU or an accuracy, with a number or a
            dictionary of numbers. A push adds `repo_id`, `segmenter` (the one that goes with an LPG), `base_model` and
            `run` (the target's numbers of all stages). Only `config.json` is required. A picture `panel.png` is shown.

    Returns:
        Path of the card. Metrics also go to its `model-index`.

    Raises:
        FileNotFoundError: the folder holds no `config.json`.
        ValueError: a file is not valid JSON, or `kind` is neither "lpg" nor "segmenter".
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    if config is None:
        raise FileNotFoundError(f"{folder} holds no config.json. Call save_pretrained on the model first.")
    metrics = read_json(folder / "metrics.json")
    preprocessor = read_json(folder / "preprocessor_config.json")
    known = metrics or {}
    kind = known.get("kind", "lpg" if config.get("model_type") == "lpg" else "segmenter")
    if kind not in ("lpg", "segmenter"):
        raise ValueError(f"kind is {kind!r} in {folder / 'metrics.json'}, but a stage is 'lpg' or 'segmenter'.")
    stage, dataset, run = known.get("stage"), known.get("dataset"), known.get("run") or {}
    measured_on = known.get("measured_on", dataset)
    settings = known.get("settings") or {}
    converted = "origin" in settings  # weights of others
    results = _results(known)
    task = "mask-generation" if kind == "lpg" else "image-segmentation"

    # Baselines are in the table, but they are no results of this model.
    evaluated = [
        (name, value, measured_on) for name, value in results if not name.startswith(("box_fill", "baseline_"))
    ]
    evaluated += [(name, value, run.get("dataset") or "target") for name, value in _target_results(kind, known)]

    data = ModelCardData(
        license="other" if converted else "apache-2.0",
        library_name="lpg_hf",
        pipeline_tag=task,
        tags=["box-supervised", "pseudo-labels", "semantic-segmentation", config.get("model_type", kind)],
        model_name=f"{kind}-stage{stage}" if stage is not None else kind,
        datasets=[_slug(dataset)] if dataset else None,
        base_model=known.get("base_model"),
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
    content = render_card(
        f"{kind}_stage.md",
        card_data=data.to_yaml(),
        title=("Pseudo mask generator" if kind == "lpg" else "Segmenter")
        + ("" if stage is None else f", stage {stage}"),
        stage=stage,
        dataset=dataset,
        measured_on=measured_on,
        notes=known.get("notes", []),
        classes=known.get("classes"),
        excluded_classes=known.get("excluded_classes"),
        target_classes=run.get("classes") if kind == "lpg" else None,
        shared_classes=[name for name in known.get("classes") or [] if name in run.get("classes", [])],
        use_class_prob=config.get("use_class_prob", False),
        class_prob_optional=config.get("class_prob_optional", False),
        source=known.get("repo_id", "."),
        segmenter=known.get("segmenter"),
        has_code="auto_map" in config,
        has_panel=(folder / "panel.png").is_file(),
        architecture=_table({k: v for k, v in config.items() if k not in _HIDDEN_CONFIG_KEYS}),
        settings=_table(settings),
        converted=converted,
        changed_later=_table({k.removeprefix(_LATER): v for k, v in known.items() if k.startswith(_LATER)}),
        preprocessor=_table({k: v for k, v in (preprocessor or {}).items() if k not in _HIDDEN_CONFIG_KEYS}),
        results=[(name, _shown(value)) for name, value in results],
        run=run,
        stages=_measured_stages(run),
        stage_rows=_stage_rows(run),
        weakest=_weakest(run.get("iou_of_classes") or {}),
        compute=_table({key: known[key] for key in _COMPUTE_KEYS if known.get(key) is not None}),
        has_metrics=metrics is not None,
    )
    ModelCard(content)  # parses the front matter: a broken card is an error here, not at the push
    path = folder / "README.md"
    write_atomically(path, content.encode("utf-8"))
    return path


def render_card(template: str, **values: object) -> str:
    """A template of hub_cards/, filled in; a value that the template needs and that is missing is an error."""
    return _environment().get_template(template).render(**values)


@functools.cache
def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader([str(path) for path in TEMPLATES], encoding="utf-8")
    return jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)


def read_json(path: Path) -> dict | None:
    """Content of a JSON file, or None if there is no such file.

    Raises:
        ValueError: the file holds something else.
    """
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}). Save the stage again.") from None


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
    found = {stage for name in _STAGE_ROWS for stage in run.get(name) or {}}
    return sorted(found | ({"0"} if run.get("box_fill_miou") is not None else set()), key=int)


def _stage_rows(run: dict) -> list[tuple[str, list[str]]]:
    """Rows of the stage table: name, and a cell for each of `_measured_stages`."""
    stages = _measured_stages(run)
    rows = [("filled boxes", {"0": run["box_fill_miou"]})] if run.get("box_fill_miou") is not None else []
    rows += [(text, run[name]) for name, text in _STAGE_ROWS.items() if run.get(name)]
    return [(text, [_shown(values[stage]) if stage in values else "" for stage in stages]) for text, values in rows]


def _weakest(iou_of_classes: dict) -> tuple[str, str] | None:
    """Name and IoU of the class that comes out worst."""
    measured = {name: value for name, value in iou_of_classes.items() if value is not None and name != "background"}
    return (min(measured, key=measured.get), _shown(min(measured.values()))) if measured else None


def _slug(name: object) -> str:
    return re.sub(r"[^a-z0-9]+", "-", str(name).lower()).strip("-") or "unknown"


def _results(metrics: dict) -> list[tuple[str, float]]:
    """(name, number) of every quality metric; a dictionary or a list of numbers is spread over its keys or classes."""
    found: list[tuple[str, float]] = []
    for key, value in metrics.items():
        if not _METRIC_NAME.search(key):
            continue
        if isinstance(value, list):
            names = metrics.get("classes") or []
            names = ["background", *names] if len(value) == len(names) + 1 else names
            value = {names[i] if len(value) == len(names) else i: number for i, number in enumerate(value)}
        entries = value.items() if isinstance(value, dict) else [(None, value)]
        for part, number in entries:
            if isinstance(number, int | float) and not isinstance(number, bool):
                found.append((key if part is None else f"{key} [{part}]", number))
    return found


def _table(values: dict) -> list[tuple[str, str]]:
    return [(str(key), _shown(value)) for key, value in values.items()]


def _shown(value: object) -> str:
    """A value for a cell of a table, as it stands in the JSON file."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.replace("|", "\\|").replace("\n", " ")
