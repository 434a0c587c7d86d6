"""Stages and datasets on the Hub: cards, push and pull. Nothing here imports torch."""

from lpg_hf._cards import write_card
from lpg_hf.hub.pull import fetch_stage, pull_run
from lpg_hf.hub.push import Pushed, PushOptions, PushReport, push_data, push_run


__all__ = ["PushOptions", "PushReport", "Pushed", "fetch_stage", "pull_run", "push_data", "push_run", "write_card"]
