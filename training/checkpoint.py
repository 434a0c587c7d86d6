"""Checkpoints of one training phase: single files that are complete or absent, newest complete one wins."""

import os
import pickle
import re
import zipfile
from pathlib import Path

import torch


class Checkpoints:
    """The checkpoints of a phase in one folder, named by optimiser step.

    A file is written under a temporary name, flushed to the disk and renamed, so a kill leaves the ones before. Random
    states are not in it: sampling and dropout are seeded by the step (see `samples.py` and `steps.py`).
    """

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep

    def save(self, step: int, state: dict) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step_{step}.pt"
        temporary = path.with_suffix(".tmp")
        with open(temporary, "wb") as file:
            torch.save(state | {"step": step}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        for old in self._paths()[self.keep :]:
            old.unlink()

    def load(self, report=print) -> dict | None:
        """The newest complete checkpoint, or None. Incomplete ones are passed over with a message.

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
                raise ValueError(
                    f"{path} holds more than tensors and plain values, so it is not read. Delete it."
                ) from error
            report(f"{path} is incomplete ({reason}); the one before is taken.")
        return None

    def _paths(self) -> list[Path]:
        """Newest first."""
        steps = {int(m[1]): p for p in self.folder.glob("step_*.pt") if (m := re.fullmatch(r"step_(\d+)\.pt", p.name))}
        return [steps[step] for step in sorted(steps, reverse=True)]
