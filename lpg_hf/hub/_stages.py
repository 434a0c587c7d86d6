"""The stages of a run folder as their repositories hold them: checkpoint, processor, code, card, numbers, panel."""

import ast
import functools
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import yaml
from safetensors import SafetensorError, safe_open

from lpg_hf._cards import read_json, reading_stage, write_card
from lpg_hf._files import read_bytes


MODELS = Path(__file__).parents[1] / "models"
# Which classes of which module files a process without this package loads (`trust_remote_code=True`).
AUTO_MAPS = {
    "lpg": {"AutoConfig": "configuration_lpg.LPGConfig", "AutoModel": "modeling_lpg.LPGModel"},
    "deeplab_largefov": {
        "AutoConfig": "configuration_deeplab_largefov.DeepLabLargeFOVConfig",
        "AutoModelForSemanticSegmentation": "modeling_deeplab_largefov.DeepLabLargeFOVForSemanticSegmentation",
    },
    "deeplab_v2": {
        "AutoConfig": "configuration_deeplab_v2.DeepLabV2Config",
        "AutoModelForSemanticSegmentation": "modeling_deeplab_v2.DeepLabV2ForSemanticSegmentation",
    },
}
PROCESSOR_AUTO_MAPS = {"LPGImageProcessor": {"AutoImageProcessor": "image_processing_lpg.LPGImageProcessor"}}
_JSON_FILES = ("config.json", "preprocessor_config.json", "metrics.json")
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Stage:
    """A stage folder of a run.

    Args:
        kind: "lpg" or "segmenter".
        part: "aux" or "target", the part of the run that it was trained in.
        number: the stage.
    """

    kind: str
    part: str
    number: int
    folder: Path

    def repo_id(self, org: str, prefix: str) -> str:
        return stage_repo_id(f"{org}/{prefix}", self.kind, self.number)


def stage_repo_id(run_id: str, kind: str, number: int) -> str:
    """ORG/PREFIX-stageN of an LPG, ORG/PREFIX-segmenter-stageN of a segmenter."""
    return f"{run_id}-{'segmenter-' if kind == 'segmenter' else ''}stage{number}"


def find_stages(run_dir: Path) -> list[Stage]:
    """Finished stages of a run folder: the generators, then the segmenters, by number.

    The segmenters are the target's, which a generator needs on new images of the target classes. A run without a
    target has those of the auxiliary set.

    Raises:
        FileNotFoundError: there is no run folder, or no finished stage in it.
        ValueError: two folders of one stage.
    """
    if not run_dir.is_dir():
        raise FileNotFoundError(f"Run folder {run_dir} does not exist.")
    stages = [*_stages_of(run_dir, "aux", "lpg")]
    stages += _stages_of(run_dir, "target", "segmenter") or _stages_of(run_dir, "aux", "segmenter")
    if not stages:
        raise FileNotFoundError(
            f"{run_dir} holds no finished stage (aux/stageN/lpg, target/stageN/segmenter). Give the run_dir of "
            "training/em.py."
        )
    return stages


def _stages_of(run_dir: Path, part: str, kind: str) -> list[Stage]:
    stages: dict[int, Stage] = {}
    for folder in sorted((run_dir / part).glob(f"stage*/{kind}")):
        digits = folder.parent.name.removeprefix("stage")
        if not (digits.isascii() and digits.isdecimal() and folder.is_dir()):
            continue
        number = int(digits)
        if number in stages:
            raise ValueError(f"{stages[number].folder} and {folder} are both of stage {number}. Remove one of them.")
        stages[number] = Stage(kind, part, number, folder)
    return [stages[number] for number in sorted(stages)]


def check_stage(stage: Stage) -> None:
    """Refuse a stage that cannot be pushed.

    Raises:
        FileNotFoundError: a file of the stage is missing.
        ValueError: the folder holds another kind of model, or incomplete weights; or what would be pushed is no file
            of the run, such as a link out of its folder.
    """
    _check_files(stage)
    with reading_stage(stage.folder):
        _check_stage(stage)


def _check_files(stage: Stage) -> None:
    """Refuse what is no regular file of the run: a run of others may link to any file of this machine."""
    run_dir, panel = _run_dir(stage), _panel(stage)
    root = Path(os.path.realpath(run_dir))
    # The Hub's cache links from its snapshots to the blobs of the same repository.
    blobs = [parent.parent / "blobs" for parent in root.parents if parent.name == "snapshots"]
    for path in _sources(stage):
        real = Path(os.path.realpath(path))
        if not any(place in real.parents for place in (root, *blobs)):
            raise ValueError(
                f"{path} leads out of {run_dir} through a link, to {real}. Put a copy of the file in its place if it "
                "may be published, or remove it."
            )
        if not path.is_file():
            raise ValueError(f"{path} is not a regular file, so it cannot be pushed. Remove it.")
    if panel is not None and read_bytes(panel, len(_PNG)) != _PNG:
        raise ValueError(f"{panel} is not a PNG image. Save the image as PNG, or remove the file.")


def _sources(stage: Stage) -> list[Path]:
    """What lies in the run folder of that which the stage's repository is made of."""
    target = _run_dir(stage) / "target"
    paths = [stage.folder / name for name in _JSON_FILES] + _weights(stage.folder) + _weight_indices(stage.folder)
    paths += [target / "metrics.json", _first_metrics(target)]
    panel = _panel(stage)
    return [path for path in paths if os.path.lexists(path)] + ([] if panel is None else [panel])


def _run_dir(stage: Stage) -> Path:
    return stage.folder.parents[2]


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _weight_indices(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors.index.json"))


def _panel(stage: Stage) -> Path | None:
    """The image of the run's masks, which lies in the stage's folder in a pulled run."""
    panels = (_run_dir(stage) / "target" / "panel.png", stage.folder / "panel.png")
    return next((path for path in panels if os.path.lexists(path)), None)


def _first_metrics(target: Path) -> Path:
    return target / "stage0" / "segmenter" / "metrics.json"


def _check_stage(stage: Stage) -> None:
    folder = stage.folder
    for name in _JSON_FILES:
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} holds no {name}, so this stage is not complete. Train it again, or remove it."
            )
    model_type = read_json(folder / "config.json").get("model_type")
    if (model_type == "lpg") != (stage.kind == "lpg"):
        wanted = "an LPG (model_type 'lpg')" if stage.kind == "lpg" else "a segmenter"
        raise ValueError(f"{folder / 'config.json'} has model_type {model_type!r}, but this stage must be {wanted}.")
    kind = read_json(folder / "metrics.json").get("kind")
    if kind != stage.kind:
        raise ValueError(f"{folder / 'metrics.json'} has kind {kind!r}, but this stage is {stage.kind!r}.")
    weights = _weights(folder)
    for index in _weight_indices(folder):
        missing = sorted(set(read_json(index)["weight_map"].values()) - {path.name for path in weights})
        if missing:
            raise FileNotFoundError(
                f"{folder} holds no {missing[0]}, which {index.name} names. Train this stage again."
            )
    if not weights:
        raise FileNotFoundError(f"{folder} holds no *.safetensors file. Save the model with save_pretrained.")
    for path in weights:
        try:
            with safe_open(path, "numpy"):  # the header states the size, so an incomplete file fails
                pass
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged ({error}). Train this stage again.") from error


def prepare_stage(stage: Stage, stages: list[Stage], org: str, prefix: str, work: Path) -> dict[str, Path]:
    """Everything that the stage's repository holds.

    Args:
        stages: all of the run; the card names the neighbours among them.
        work: an empty folder for the files that differ from the run's.

    Returns:
        Path in the repository -> local file. Weights stay where they are.

    Raises:
        ValueError: a value in a json file of the stage or of the target has another type.
    """
    with reading_stage(stage.folder):
        return _prepare_stage(stage, stages, f"{org}/{prefix}", work)


def _prepare_stage(stage: Stage, stages: list[Stage], run_id: str, work: Path) -> dict[str, Path]:
    source = stage.folder
    files = {path.name: path for path in _weights(source) + _weight_indices(source)}

    config = read_json(source / "config.json")
    processor = read_json(source / "preprocessor_config.json")
    auto_map = AUTO_MAPS.get(config["model_type"])
    processor_map = PROCESSOR_AUTO_MAPS.get(processor.get("image_processor_type", ""))
    for values, entry in ((config, auto_map), (processor, processor_map)):
        if entry is not None:
            values["auto_map"] = entry
    modules = {name.split(".")[0] for entry in (auto_map, processor_map) for name in (entry or {}).values()}
    for path in _with_siblings(modules):
        files[path.name] = path

    metrics = read_json(source / "metrics.json")
    written = {
        "config.json": config,
        "preprocessor_config.json": processor,
        "metrics.json": metrics | _context(stage, stages, config, metrics, run_id),
    }
    for name, values in written.items():
        (work / name).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    settings = yaml.safe_dump(metrics.get("settings") or {}, sort_keys=False, allow_unicode=True)
    (work / "training_config.yaml").write_text(settings, encoding="utf-8")
    panel = _panel(stage)
    if panel is not None:
        shutil.copyfile(panel, work / "panel.png")
    write_card(work)
    return files | {path.name: path for path in sorted(work.iterdir())}


def _with_siblings(modules: set[str]) -> list[Path]:
    """Files of `lpg_hf.models` that these modules need: themselves, and what those import with `from .name import`."""
    needed, waiting = set(), sorted(modules)
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += _siblings(name)
    return [MODELS / f"{name}.py" for name in sorted(needed)]


@functools.cache
def _siblings(module: str) -> tuple[str, ...]:
    tree = ast.parse((MODELS / f"{module}.py").read_text(encoding="utf-8"))
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1]
    return tuple(node.module for node in froms if node.module)


def _context(stage: Stage, stages: list[Stage], config: dict, metrics: dict, run_id: str) -> dict:
    """A stage's context in its run, for `metrics.json` and the card."""
    present = {(other.kind, other.number) for other in stages}
    settings = metrics.get("settings") or {}
    own, run = settings.get(stage.kind) or {}, settings.get("run") or {}
    context: dict = {"part": stage.part, "repo_id": stage_repo_id(run_id, stage.kind, stage.number)}
    # A run that was extended later has stages that the settings of its first ones do not count.
    context["num_stages"] = max(run.get("num_stages") or 0, *(other.number for other in stages))
    if config.get("use_class_prob") and ("segmenter", stage.number - 1) in present:
        context["segmenter"] = stage_repo_id(run_id, "segmenter", stage.number - 1)
    if run.get("stage_init") == "previous" and (stage.kind, stage.number - 1) in present:
        context["base_model"] = stage_repo_id(run_id, stage.kind, stage.number - 1)
    else:
        weights = str(own.get("init") or own.get("weights") or "").split(":")[0]
        named = str(own.get("model") or "")
        context["base_model"] = next((name for name in (weights, named) if name.count("/") == 1), None)
    target = _run_dir(stage) / "target"
    measured = read_json(target / "metrics.json")
    if measured:
        context["run"] = _run_summary(measured, target, stage)
    return context


def _run_summary(measured: dict, target: Path, stage: Stage) -> dict:
    """Target's numbers of all stages, in [0, 1], and per class of this one."""
    details = measured["details"]
    first_stage = read_json(_first_metrics(target))
    crf = {number: scores["crf"]["mean_iou"] for number, scores in details["segmenter"].items() if "crf" in scores}
    own = details["pseudo_masks" if stage.kind == "lpg" else "segmenter"].get(str(stage.number), {})
    names = ["background", *measured["classes"]]
    per_class = own.get("per_class_iou") or []
    return {
        "dataset": first_stage.get("dataset"),
        "mode": measured["mode"],
        "classes": measured["classes"],
        "num_images": measured["num_images"],
        "box_fill_miou": measured["box_fill_miou"],
        "pseudo_mask_miou": measured["pseudo_mask_miou"],
        "segmenter_miou": measured["segmenter_miou"],
        "segmenter_crf_miou": crf,
        "iou_of_classes": dict(zip(names, per_class)) if len(names) == len(per_class) else {},
    }
