"""Model cards of stage folders, rendered from the files of the folder and nothing else.

A stage folder is a `save_pretrained` checkpoint with its image processor and, written by training, `metrics.json`. Every number
of its card is in one of these files; what is absent is said to be absent. Nothing here needs a network.
"""

import json
import os
import re
from pathlib import Path

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData


# Installed, the templates are package data; in a checkout they lie beside the package.
_TEMPLATES = [Path(__file__).parent / "hub_cards", Path(__file__).parents[1] / "hub_cards"]
_METRIC_NAME = re.compile(r"(iou|accuracy)(_|$)")
_RUN_KEYS = ("seconds", "loss", "steps", "versions")
# Bookkeeping of transformers and label lists, which the card shows elsewhere or nobody asks for.
_HIDDEN_CONFIG_KEYS = {"architectures", "auto_map", "id2label", "label2id", "transformers_version", "_name_or_path"}


def write_card(folder: str | os.PathLike) -> Path:
    """Write `README.md` of a stage folder from its `config.json`, `preprocessor_config.json` and `metrics.json`.

    Args:
        folder: a saved LPG or segmenter stage. `metrics.json` may hold `kind` ("lpg" or "segmenter"), `stage`, `dataset`,
            `measured_on` (the dataset of the metrics where it is not `dataset`), `classes`, `excluded_classes`, `settings`,
            `seconds`, `loss`, `versions`, and metrics: keys that name an IoU or an accuracy, with a number or a
            dictionary of numbers. Only `config.json` is required.

    Returns:
        Path of the card. Metrics also go to its `model-index`.

    Raises:
        FileNotFoundError: the folder holds no `config.json`.
        ValueError: a file is not valid JSON, or `kind` is neither "lpg" nor "segmenter".
    """
    folder = Path(folder)
    config = _read_json(folder / "config.json")
    if config is None:
        raise FileNotFoundError(f"{folder} holds no config.json. Call save_pretrained on the model first.")
    metrics = _read_json(folder / "metrics.json")
    preprocessor = _read_json(folder / "preprocessor_config.json")
    known = metrics or {}
    kind = known.get("kind", "lpg" if config.get("model_type") == "lpg" else "segmenter")
    if kind not in ("lpg", "segmenter"):
        raise ValueError(f"kind is {kind!r} in {folder / 'metrics.json'}, but a stage is 'lpg' or 'segmenter'.")
    stage, dataset = known.get("stage"), known.get("dataset")
    measured_on = known.get("measured_on", dataset)
    results = _results(known)
    task = "mask-generation" if kind == "lpg" else "image-segmentation"

    data = ModelCardData(
        license="apache-2.0",
        library_name="lpg_hf",
        pipeline_tag=task,
        tags=["box-supervised", "pseudo-labels", "semantic-segmentation", config.get("model_type", kind)],
        model_name=f"{kind}-stage{stage}" if stage is not None else kind,
        metrics=["mean_iou"] if results else None,
        eval_results=[
            EvalResult(
                task_type=task,
                dataset_type=re.sub(r"[^a-z0-9]+", "-", str(measured_on).lower()).strip("-") or "unknown",
                dataset_name=str(measured_on),
                metric_type="accuracy" if "accuracy" in name else "mean_iou",
                metric_name=name,
                metric_value=value,
            )
            for name, value in results
            if not name.startswith("box_fill")  # the baseline is in the table, but it is no result of this model
        ]
        or None,
    )
    content = (
        _environment()
        .get_template(f"{kind}_stage.md")
        .render(
            card_data=data.to_yaml(),
            title=("Pseudo mask generator" if kind == "lpg" else "Segmenter")
            + ("" if stage is None else f", stage {stage}"),
            stage=stage,
            dataset=dataset,
            measured_on=measured_on,
            classes=known.get("classes"),
            excluded_classes=known.get("excluded_classes"),
            use_class_prob=config.get("use_class_prob", False),
            architecture=_table({k: v for k, v in config.items() if k not in _HIDDEN_CONFIG_KEYS}),
            settings=_table(known.get("settings") or {}),
            preprocessor=_table(preprocessor or {}),
            results=[(name, _shown(value)) for name, value in results],
            run=_table({key: known[key] for key in _RUN_KEYS if known.get(key) is not None}),
            has_metrics=metrics is not None,
        )
    )
    ModelCard(content)  # parses the front matter: a broken card is an error here, not at the push
    path = folder / "README.md"
    temporary = folder / f".README.md.{os.getpid()}"
    temporary.write_text(content, encoding="utf-8")
    os.replace(temporary, path)
    return path


def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader([str(path) for path in _TEMPLATES], encoding="utf-8")
    return jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)


def _read_json(path: Path) -> dict | None:
    """Content of a JSON file, or None if there is no such file."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}). Save the stage again.") from None


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
