"""Configurations of older results in the names and values of today.

They may be older than the sections of `lpg_hf/training/config.py`, or than the crops of 128 px of
`benchmarks/protocols/deep.yaml`: with 129 px the segmenter was shifted in use, see `has_shifted_frame`.
"""

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


def has_shifted_frame(configuration: dict) -> bool:
    """Whether a MobileNetV2 was trained on crops of 129 px, which training refuses since; such results count still."""
    network = (configuration.get("settings") or {}).get("segmenter")  # a name where there are no sections
    is_section = isinstance(network, dict)
    return is_section and network.get("crop_size") == 129 and "mobilenet_v2" in str(network.get("model"))


def as_of_today(configuration: dict) -> dict:
    """The configuration of a cell with its settings in sections, and crops of 128 px in place of 129."""
    settings, used = configuration.get("settings") or {}, configuration.get("uses")
    if not set(settings) <= _SECTIONS or not all(isinstance(value, dict) for value in settings.values()):
        settings = _settings_with_sections(settings)
    if has_shifted_frame({"settings": settings}):
        settings = merged(settings, {"segmenter": {"crop_size": 128}})
    return configuration | {"settings": settings, "uses": as_of_today(used) if used else used}


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
