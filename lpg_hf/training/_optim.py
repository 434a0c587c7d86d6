"""Optimisers: the parameter groups of Table I by sub-module, proved complete; schedules of the learning rate."""

import math

import torch
from torch import nn

from lpg_hf.training.config import LPGSettings, SegmenterSettings


POLY_POWER = 0.9
WARM_UP = 0.02  # share of the steps in which the rate of the cosine schedule rises
MOMENTUM = 0.9
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def _poly_factor(step: int, num_steps: int) -> float:
    """Share of the initial learning rate at an optimiser step, 0 at `num_steps` (Table I)."""
    return (1 - step / num_steps) ** POLY_POWER


def rate_factor(step: int, num_steps: int, schedule: str) -> float:
    """Share of the initial learning rate at an optimiser step, 0 at `num_steps`.

    Args:
        schedule: "poly" (Table I), or "cosine" after a linear rise.
    """
    if schedule == "poly":
        return _poly_factor(step, num_steps)
    rise = min(1.0, (step + 1) / max(1, round(WARM_UP * num_steps)))
    return rise * (1 + math.cos(math.pi * step / num_steps)) / 2


def find_head(model: nn.Module) -> list[nn.Parameter]:
    """Parameters that get the head's learning rate, see `head_names`."""
    names = head_names(model)
    return [parameter for name, parameter in model.named_parameters() if name in names]


def head_names(model: nn.Module) -> set[str]:
    """Names of the head's tensors in the state dict: those of `classifier` (both DeepLabs), or what lies outside the
    base model, or outside `backbone` (UPerNet).

    Raises:
        ValueError: the head cannot be told apart from the rest.
    """
    children = dict(model.named_children())
    names = model.state_dict().keys()
    if "classifier" in children:
        return {name for name in names if name.startswith("classifier.")}
    for body in (getattr(model, "base_model_prefix", ""), "backbone"):
        if body in children:
            return {name for name in names if not name.startswith(f"{body}.")}
    raise ValueError(
        f"{type(model).__name__} has neither a classifier nor a base model nor a backbone, so its head is not known. "
        "Choose another segmenter.model."
    )


def segmenter_groups(model: nn.Module, settings: SegmenterSettings) -> list[dict]:
    """Four groups: weights and biases (with norms) of the body and of the head (Table I).

    Raises:
        RuntimeError: a trainable parameter is in no group or in two.
    """
    head = {id(p) for p in find_head(model)}
    no_decay = {id(p) for m in model.modules() if isinstance(m, _NORMS) for p in m.parameters(recurse=False)}
    no_decay |= {id(p) for name, p in model.named_parameters() if name.rsplit(".", 1)[-1] == "bias"}
    rate, decay = settings.learning_rate, settings.weight_decay
    groups = []
    for module, head_factor in (("body", 1.0), ("head", settings.head_multiplier)):
        for kind, factor in (("weight", 1.0), ("bias", settings.bias_multiplier)):
            groups.append(
                {
                    "name": f"{module}_{kind}",
                    "params": [
                        p
                        for p in model.parameters()
                        if p.requires_grad
                        and (id(p) in head) == (module == "head")
                        and (id(p) in no_decay) == (kind == "bias")
                    ],
                    "lr": rate * head_factor * factor,
                    "weight_decay": decay if kind == "weight" else 0.0,
                }
            )
    _check_complete(model, groups)
    return groups


def lpg_groups(model: nn.Module, settings: LPGSettings) -> list[dict]:
    """One group, as in the official code."""
    params = [p for p in model.parameters() if p.requires_grad]
    group = {
        "name": "all",
        "params": params,
        "lr": settings.learning_rate,
        "weight_decay": settings.weight_decay,
    }
    _check_complete(model, [group])
    return [group]


def _check_complete(model: nn.Module, groups: list[dict]) -> None:
    """Raises RuntimeError unless every trainable parameter is in exactly one group."""
    grouped = [id(p) for g in groups for p in g["params"]]
    trainable = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    missing = [name for i, name in trainable.items() if i not in set(grouped)]
    if missing or len(grouped) != len(set(grouped)) or len(grouped) != len(trainable):
        raise RuntimeError(f"Parameters in no optimiser group: {missing[:5]}, or some are in two.")


def build_optimizer(kind: str, groups: list[dict]) -> torch.optim.Optimizer:
    """`adam` (decay added to the gradient, as in the official code), `adamw` or `sgd`; initial rates are kept."""
    groups = [g | {"initial_lr": g["lr"]} for g in groups if g["params"]]
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=groups[0]["lr"], momentum=MOMENTUM)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind](groups, lr=groups[0]["lr"])


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
