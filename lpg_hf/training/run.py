"""A run: its accelerator, settings and folder, passed together to everything that trains, writes or measures."""

import json
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import parse_flag_from_env

from lpg_hf.devices import resolve_dtype, usable_device
from lpg_hf.files import write_json
from lpg_hf.training.config import Settings, check_same_run, flat
from lpg_hf.training.models import OWN_SEGMENTERS


@dataclass(frozen=True)
class Run:
    """A run of em.py or deploy.py."""

    accelerator: Accelerator
    settings: Settings

    @property
    def folder(self) -> Path:
        return Path(self.settings.run.dir)

    @property
    def is_main(self) -> bool:
        """Whether this process writes what all processes share."""
        return self.accelerator.is_main_process

    def print(self, text: str) -> None:
        self.accelerator.print(text)

    def once(self, path: Path, measure: Callable[[], dict]) -> dict:
        """The result of `measure`, kept in a file, so that a resumed run does not measure again."""
        if not path.is_file():
            result = measure()
            if self.is_main:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, result)
            self.accelerator.wait_for_everyone()
        return json.loads(path.read_text(encoding="utf-8"))

    def finish(self) -> None:
        """The order in which gloo processes end cleanly."""
        self.accelerator.wait_for_everyone()
        self.accelerator.free_memory()
        self.accelerator.end_training()


def start_run(settings: Settings, record: str) -> Run:
    """A run whose settings are kept in `run.dir/record`; one that was stopped is resumed.

    Raises:
        ValueError: the folder holds a run with other settings.
    """
    run = settings.run
    # Some segmenters of transformers have an auxiliary head that takes no part in the loss, some backbones a last
    # norm.
    unused_parameters = settings.segmenter.model not in OWN_SEGMENTERS or settings.lpg.config.get("backbone") == "auto"
    accelerator = Accelerator(
        mixed_precision=usable_precision(run.mixed_precision),
        log_with=run.log_with,
        project_dir=run.dir,
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=timedelta(hours=6)),  # one process may build data while the others wait
            DistributedDataParallelKwargs(find_unused_parameters=unused_parameters),
        ],
    )
    if accelerator.device.type == "cpu":  # accelerate launch allows a process one thread unless told otherwise
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(run.num_threads or max(1, cores // accelerator.num_processes))
    with accelerator.main_process_first():
        check_same_run(settings, Path(run.dir) / record)
    if run.log_with is not None:
        scalars = {k: v for k, v in flat(settings).items() if isinstance(v, (int, float, str, bool))}
        accelerator.init_trackers(Path(run.dir).name, config=scalars)
    return Run(accelerator, settings)


def usable_precision(mixed_precision: str) -> str:
    """`mixed_precision`, with auto resolved for this process's device; warns of bf16 on a CPU that must emulate it."""
    device = "cpu" if parse_flag_from_env("ACCELERATE_USE_CPU") else usable_device()
    native = resolve_dtype("auto", device) == torch.bfloat16
    if mixed_precision == "bf16" and device == "cpu" and not native:
        warnings.warn(
            "mixed_precision=bf16, but this CPU has no bfloat16 instructions and emulates them, many times slower "
            "than float32. Set run.mixed_precision to auto or no.",
            stacklevel=2,
        )
    return ("bf16" if native else "no") if mixed_precision == "auto" else mixed_precision
