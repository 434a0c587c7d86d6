"""Optimisers: the parameter groups of Table I by sub-module, proved complete; schedules of the learning rate."""

import math

import torch
from torch import nn

from training.config import Settings


NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def poly_factor(step: int, num_steps: int, power: float) -> float:
    """Share of the initial learning rate at an optimiser step, 0 at `num_steps`: (1 - step / num_steps) ** power."""
    return (1 - step / num_steps) ** power


def lpg_rate_factor(step: int, num_steps: int, settings: Settings) -> float:
    """Share of the initial learning rate at a step of the LPG: the poly or cosine schedule, after a linear rise."""
    rise = min(1.0, (step + 1) / max(1, round(settings.lpg_warmup * num_steps)))
    if settings.lpg_schedule == "cosine":
        return rise * (1 + math.cos(math.pi * step / num_steps)) / 2
    return rise * poly_factor(step, num_steps, settings.poly_power)


def find_head(model: nn.Module, name: str | None) -> list[nn.Parameter]:
    """Parameters that get the head's learning rate.

    Args:
        model: a semantic segmenter.
        name: sub-module of the head. None: `classifier` if there is one (both DeepLabs), else all that lies outside
            the base model, as transformers names it.

    Raises:
        ValueError: there is no such sub-module, or no way to tell the head from the rest.
    """
    modules = dict(model.named_modules())
    if name is not None and name not in modules:
        top = ", ".join(child for child, _ in model.named_children())
        raise ValueError(f"segmenter_head={name!r} is no sub-module of {type(model).__name__}. It has {top}.")
    if name is not None or "classifier" in modules:
        return list(modules[name or "classifier"].parameters())
    base = getattr(model, "base_model", model)
    if base is model:
        raise ValueError(f"The head of {type(model).__name__} is not known: set segmenter_head to its sub-module.")
    inside = {id(p) for p in base.parameters()}
    return [p for p in model.parameters() if id(p) not in inside]


def segmenter_groups(model: nn.Module, settings: Settings) -> list[dict]:
    """Four groups: weights and biases (with norms) of the body and of the head (Table I).

    Raises:
        RuntimeError: a trainable parameter is in no group or in two.
    """
    head = {id(p) for p in find_head(model, settings.segmenter_head)}
    no_decay = {id(p) for m in model.modules() if isinstance(m, NORMS) for p in m.parameters(recurse=False)}
    no_decay |= {id(p) for name, p in model.named_parameters() if name.rsplit(".", 1)[-1] == "bias"}
    rate, decay = settings.segmenter_learning_rate, settings.segmenter_weight_decay
    groups = []
    for part, head_factor in (("body", 1.0), ("head", settings.segmenter_head_multiplier)):
        for kind, factor in (("weight", 1.0), ("bias", settings.segmenter_bias_multiplier)):
            groups.append(
                {
                    "name": f"{part}_{kind}",
                    "params": [
                        p
                        for p in model.parameters()
                        if p.requires_grad
                        and (id(p) in head) == (part == "head")
                        and (id(p) in no_decay) == (kind == "bias")
                    ],
                    "lr": rate * head_factor * factor,
                    "weight_decay": decay if kind == "weight" else 0.0,
                }
            )
    check_complete(model, groups)
    return groups


def lpg_groups(model: nn.Module, settings: Settings) -> list[dict]:
    """One group, as in the official code."""
    params = [p for p in model.parameters() if p.requires_grad]
    group = {
        "name": "all",
        "params": params,
        "lr": settings.lpg_learning_rate,
        "weight_decay": settings.lpg_weight_decay,
    }
    check_complete(model, [group])
    return [group]


def check_complete(model: nn.Module, groups: list[dict]) -> None:
    """Raises RuntimeError unless every trainable parameter is in exactly one group."""
    grouped = [id(p) for g in groups for p in g["params"]]
    trainable = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    missing = [name for i, name in trainable.items() if i not in set(grouped)]
    if missing or len(grouped) != len(set(grouped)) or len(grouped) != len(trainable):
        raise RuntimeError(f"Parameters in no optimiser group: {missing[:5]}, or some are in two.")


def build_optimizer(kind: str, groups: list[dict], momentum: float = 0.9) -> torch.optim.Optimizer:
    """`adam` (decay added to the gradient, as in the official code), `adamw` or `sgd`; initial rates are kept."""
    groups = [g | {"initial_lr": g["lr"]} for g in groups if g["params"]]
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=groups[0]["lr"], momentum=momentum)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind](groups, lr=groups[0]["lr"])


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
