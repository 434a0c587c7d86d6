"""The state from which a training phase resumes, in single files that are complete or absent."""

import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import PARAM_LIST, AveragedModel, get_ema_multi_avg_fn

from lpg_hf._weight_files import write_tensors


KEPT = 2  # checkpoints: the newest, and one before in case that the newest is damaged


class TrainingState:
    """The weights and numbers that a step changes.

    Random states are not in it: sampling and dropout are seeded by the step (see `samples.py` and `steps.py`).

    Attributes:
        step: steps that are done.
        updates: those of them that changed the weights; the learning rate follows them. A step that fp16's loss scaler
            skips is not one.
        losses: of each step.
        seconds: of the starts before this one.
        average: exponential average of the weights, which are the result where there is one.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, precision: str, ema: float):
        self.model, self.optimizer, self.precision = model, optimizer, precision
        self.scaler: torch.amp.GradScaler | None = None
        self.average = AveragedModel(model, multi_avg_fn=average_weights(ema), use_buffers=True) if ema else None
        self.step, self.updates, self.losses, self.seconds = 0, 0, [], 0.0

    def advance(self, loss: float, is_update: bool) -> None:
        """Counts a step."""
        self.step += 1
        self.updates += is_update
        self.losses.append(loss)
        if self.average is not None and is_update:
            self.average.update_parameters(self.model)

    def save(self, seconds: float) -> dict:
        """Tensors and plain values; `seconds` of this start."""
        saved = {
            "step": self.step,
            "updates": self.updates,
            "losses": self.losses,
            "seconds": self.seconds + seconds,
            "mixed_precision": self.precision,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        optional = {"average": self.average, "scaler": self.scaler}
        return saved | {name: item.state_dict() for name, item in optional.items() if item is not None}

    def load(self, saved: dict) -> None:
        """Raises ValueError if it was saved in another precision."""
        if saved["mixed_precision"] != self.precision:
            raise ValueError(
                f"the run was begun with mixed_precision {saved['mixed_precision']}, and this machine would resume it "
                f"with {self.precision}. Resume it where it was begun, or start again with another run.dir."
            )
        self.step, self.updates = saved["step"], saved["updates"]
        self.losses, self.seconds = list(saved["losses"]), saved["seconds"]
        restored = {"model": self.model, "optimizer": self.optimizer, "average": self.average, "scaler": self.scaler}
        for name, item in restored.items():
            if item is not None:
                item.load_state_dict(saved[name])


def average_weights(decay: float) -> Callable[[PARAM_LIST, PARAM_LIST, Tensor | int], None]:
    """The update of an exponential average whose decay rises to `decay`, which soon forgets the initial weights.

    At step t it is (1 + t) / (10 + t) at most: the average spans about a tenth of the steps so far.
    """

    def update(averaged: PARAM_LIST, current: PARAM_LIST, num_averaged: Tensor | int) -> None:
        steps = int(num_averaged)
        get_ema_multi_avg_fn(min(decay, (1 + steps) / (10 + steps)))(averaged, current, num_averaged)

    return update


class Checkpoints:
    """The checkpoints of a phase in one folder, named by step.

    A file is written under a temporary name, flushed to the disk and renamed, so a kill leaves the ones before.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def save(self, state: dict) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step_{state['step']}.pt"
        temporary = path.with_suffix(".tmp")
        with open(temporary, "wb") as file:
            write_tensors(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        for old in self._paths()[KEPT:]:
            old.unlink()

    def load(self, report: Callable[[str], None] = print) -> dict | None:
        """The newest complete checkpoint, or None. An incomplete one is skipped with a message.

        Raises:
            ValueError: a file with anything but tensors and plain values; code is never executed.
        """
        for path in self._paths():
            try:
                with zipfile.ZipFile(path) as archive:
                    damaged = archive.testzip()
                if damaged is None:
                    return torch.load(path, map_location="cpu", weights_only=True)
                reason = f"{damaged} fails its checksum"
            except (zipfile.BadZipFile, OSError, EOFError) as error:
                reason = str(error)
            except pickle.UnpicklingError as error:
                raise ValueError(f"{path} holds more than tensors and plain values. Delete it.") from error
            report(f"{path} is incomplete ({reason}); the one before is taken.")
        return None

    def _paths(self) -> list[Path]:
        """Newest first."""
        steps = {int(m[1]): p for p in self.folder.glob("step_*.pt") if (m := re.fullmatch(r"step_(\d+)\.pt", p.name))}
        return [steps[step] for step in sorted(steps, reverse=True)]
