"""Activation checkpointing under the name that the installed transformers has for it."""

from transformers import PreTrainedModel


def enable_checkpointing(model: PreTrainedModel, use_reentrant: bool) -> None:
    """From 5.24 on transformers calls it activation checkpointing, before that gradient checkpointing."""
    for name in ("activation", "gradient"):
        if hasattr(model, f"{name}_checkpointing_enable"):
            getattr(model, f"{name}_checkpointing_enable")(
                **{f"{name}_checkpointing_kwargs": {"use_reentrant": use_reentrant}}
            )
            assert getattr(model, f"is_{name}_checkpointing")
            return
    raise AssertionError("transformers has neither name")
