"""Configurations of results that are older than the sections of `lpg_hf/training/config.py`, in the names of today."""

from typing import Any

from lpg_hf.training.parsing import merged


_MOVED = {
    "run_dir": "run.dir",
    "aux_fraction": "run.aux_fraction",
    "segmenter": "segmenter.model",
    "stage0_steps": "segmenter.stage0_steps",
    "target_steps": "segmenter.target_steps",
    "stage1_class_prob": "lpg.stage1_class_prob",
    "lpg_backbone": "lpg.config.backbone",
    "lpg_image_mean": "lpg.processor.image_mean",
    "lpg_image_std": "lpg.processor.image_std",
}
_MOVED |= {f: f"lpg.processor.{f}" for f in ("view", "view_size", "view_context", "box_encoding", "edge_radius")}
_PREFIXES = {"aux_": "aux", "target_": "target", "eval_": "evaluation", "lpg_": "lpg", "segmenter_": "segmenter"}
_SECTIONS = {"run", *_PREFIXES.values()}


def with_sections(configuration: dict) -> dict:
    """The configuration of a cell with its settings in sections; one that has them is returned as it is."""
    settings, used = configuration.get("settings") or {}, configuration.get("uses")
    if not set(settings) <= _SECTIONS or not all(isinstance(value, dict) for value in settings.values()):
        settings = _settings_with_sections(settings)
    return configuration | {"settings": settings, "uses": with_sections(used) if used else used}


def _settings_with_sections(settings: dict) -> dict:
    """`lpg_steps: 3` as `lpg: {steps: 3}`."""
    result: dict = {}
    value: Any
    for name, value in settings.items():
        prefix = next((p for p in _PREFIXES if name.startswith(p)), "")
        path = _MOVED.get(name, f"{_PREFIXES.get(prefix, 'run')}.{name.removeprefix(prefix)}")
        if name == "crf":
            path, value = "run.measure", ["masks", "segmenter", "crf"] if value else ["masks", "segmenter"]
        for key in reversed(path.split(".")):
            value = {key: value}
        result = merged(result, value)
    return result
