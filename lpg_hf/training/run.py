"""A run: its accelerator, settings and folder, passed together to everything that trains, writes or measures."""

import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs, PartialState
from accelerate.utils import GradientAccumulationPlugin, parse_flag_from_env

from lpg_hf._cards import read_json
from lpg_hf._files import MachineError, locked_folder, system_message, write_json
from lpg_hf.devices import resolve_dtype, usable_device
from lpg_hf.training.config import Settings, check_same_run, flat, record_run
from lpg_hf.training.models import OWN_SEGMENTERS


_SECONDS_FOR_THE_MAIN_PROCESS = 60  # to tell what has gone wrong
_LONGEST_WAIT = timedelta(hours=6)  # one process may build data while the others wait
# A network drive remembers for up to a minute that a file was absent when this machine looked for it (NFS).
_SECONDS_FOR_A_NETWORK_DRIVE = 120


@dataclass(frozen=True)
class Run:
    """A run of em.py or deploy.py.

    Attributes:
        record: file that `begin` keeps the settings in.
        phases: steps of the phases that are over, on which a tracker counts.
    """

    accelerator: Accelerator
    settings: Settings
    record: Path | None = None
    phases: list[int] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return Path(self.settings.run.dir)

    @property
    def is_main(self) -> bool:
        """Whether this process writes what all processes share."""
        return self.accelerator.is_main_process

    def print(self, text: str) -> None:
        self.accelerator.print(text)

    def begin(self, **rows: str) -> None:
        """Claims the folder, now that settings, data and models are known to fit, and starts the tracker.

        Args:
            rows: digests of what the run is trained on and measured on, see `digests`. Those that an earlier start
                with another `run.measure` had are kept.

        Raises:
            ValueError: see `check_same_run`.
        """
        if self.record is not None:
            check_same_run(self.settings, self.record, rows)
            self.accelerator.wait_for_everyone()
            if self.is_main:
                before = read_json(self.record).get("rows", {})
                record_run(self.settings, self.record, before | rows)
            self.accelerator.wait_for_everyone()
        if self.settings.run.log_with is not None:
            scalars = {k: v for k, v in flat(self.settings).items() if isinstance(v, (int, float, str, bool))}
            self.accelerator.init_trackers(self.folder.name, config=scalars)

    def track(self, values: dict, step: int = 0) -> None:
        """Sends values to the tracker.

        Args:
            step: of the phase that is trained; the tracker gets the step of the whole run.
        """
        if self.settings.run.log_with is not None:
            self.accelerator.log(values, step=sum(self.phases) + step)

    def once(self, path: Path, measure: Callable[[], dict]) -> dict:
        """The result of `measure`, kept in a file, so that a resumed run does not measure again."""
        if not path.is_file():
            result = measure()
            if self.is_main:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, result)
            self.wait_for(path)
        return json.loads(path.read_text(encoding="utf-8"))

    def wait_for(self, path: Path) -> None:
        """Until all processes are here, and this one sees what the main process has written, also on a network drive.

        A process that looked for it before may be told for a while that it is still absent.
        """
        self.accelerator.wait_for_everyone()
        deadline = time.monotonic() + _SECONDS_FOR_A_NETWORK_DRIVE
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.1)

    def finish(self) -> None:
        """The order in which gloo processes end cleanly."""
        self.accelerator.wait_for_everyone()
        self.accelerator.free_memory()
        self.accelerator.end_training()


def start_run(settings: Settings, record: str) -> Run:
    """A run whose settings `Run.begin` keeps in `run.dir/record`; one that was stopped is resumed.

    Args:
        record: name, in the folder of the results.

    Raises:
        ValueError: the folder holds a run with other settings, or accelerate is to shard the networks.
    """
    run, path = settings.run, Path(settings.run.dir) / record
    check_same_run(settings, path)
    _refuse_sharding()
    precision = _usable_precision(run.mixed_precision)
    overruled = _overruled_flags(precision)
    # Some segmenters of transformers have an auxiliary head that takes no part in the loss, some backbones a last
    # norm.
    unused_parameters = settings.segmenter.model not in OWN_SEGMENTERS or settings.lpg.config.get("backbone") == "auto"
    accelerator = Accelerator(
        mixed_precision=precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        log_with=run.log_with,
        project_dir=run.dir,
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=_LONGEST_WAIT),
            DistributedDataParallelKwargs(find_unused_parameters=unused_parameters),
        ],
    )
    if run.log_with is not None and not accelerator.log_with:
        raise ValueError(f"run.log_with={run.log_with}, but that package is not installed. Install it, or set null.")
    if accelerator.device.type == "cpu":  # accelerate launch allows a process one thread unless told otherwise
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        total = accelerator.num_processes
        here = min(int(os.environ.get("LOCAL_WORLD_SIZE") or total), total)  # processes of this machine
        torch.set_num_threads(run.num_threads or max(1, cores // here))
    if overruled:
        accelerator.print(f"not used, as the settings of the run say it: {', '.join(overruled)}")
    return Run(accelerator, settings, path)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """A folder that one command writes to: its main process has the lock, and its other processes wait for that.

    Raises:
        ValueError: a process of another command writes there; names it. Or accelerate is to shard the networks.
    """
    _refuse_sharding()
    # The accelerator takes it up, if it is not made yet.
    state = PartialState(parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=_LONGEST_WAIT)
    with locked_folder(folder) if state.is_main_process else nullcontext():
        state.wait_for_everyone()
        yield


def _refuse_sharding() -> None:
    sharded = [name for name in ("DEEPSPEED", "FSDP", "MEGATRON_LM") if parse_flag_from_env(f"ACCELERATE_USE_{name}")]
    if sharded:
        raise ValueError(f"accelerate is to use {sharded[0]}, but every process trains whole networks: leave it out.")


def _overruled_flags(precision: str) -> list[str]:
    """What accelerate was told by flags or by its own file, and the settings of the run say otherwise."""
    overruled = []
    theirs = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if theirs not in ("no", precision):
        overruled.append(f"accelerate's mixed_precision {theirs} (run.mixed_precision gives {precision})")
    num_steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if num_steps != "1":
        overruled.append(
            f"accelerate's gradient_accumulation_steps {num_steps} (lpg.micro_batch_size, segmenter.micro_batch_size)"
        )
    return overruled


def stop_on_refusal(script: str, work: Callable[[], object]) -> None:
    """Runs a script's work; what the user can remedy ends it with one line of the main process, and status 2.

    Args:
        script: name that the line begins with.
    """
    try:
        work()
    except (ValueError, OSError, FloatingPointError, RuntimeError) as error:
        if int(os.environ.get("RANK", "0")) > 0:
            # All processes meet what concerns them all, and then the launcher ends this one while it sleeps. Others
            # fail because the main process is gone. What only this one met, it reports itself.
            time.sleep(_SECONDS_FOR_THE_MAIN_PROCESS)
        if isinstance(error, RuntimeError) and not isinstance(error, MachineError):
            raise
        text = str(error)
        if isinstance(error, OSError) and error.errno is not None and error.strerror:
            text = system_message(error)
        print(f"{script}: {text}", file=sys.stderr)
        sys.exit(2)


def _usable_precision(mixed_precision: str) -> str:
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
