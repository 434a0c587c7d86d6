"""The two training steps of the EM loop: the E-step trains the LPG, the M-step trains the segmenter."""

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from lpg_hf.models.losses import pixel_cross_entropy
from lpg_hf.training.checkpoint import Checkpoints, TrainingState
from lpg_hf.training.config import LPGSettings, SegmenterSettings
from lpg_hf.training.optim import build_optimizer, lpg_groups, rate_factor, segmenter_groups, set_learning_rate
from lpg_hf.training.run import Run
from lpg_hf.training.samples import Positions, StepBatches, step_loader


Loss = Callable[[nn.Module, dict], Tensor]


@dataclass(frozen=True)
class Phase:
    """The training of one network in one stage.

    Attributes:
        name: in log and progress bar.
        network: "lpg" or "segmenter", the section of its settings.
        settings: that section.
        num_steps: optimiser steps.
        folder: for checkpoints.
        ema: decay per step of an exponential average of the weights, which the model has in the end, see
            `average_weights`; 0: none.
        schedule: of the learning rate, see `rate_factor`.
    """

    name: str
    network: str
    settings: LPGSettings | SegmenterSettings
    num_steps: int
    folder: Path
    ema: float = 0.0
    schedule: str = "poly"

    def micro_batches(self, num_processes: int) -> tuple[int, int]:
        """Number and size of the micro-batches of a process in one step.

        Raises:
            ValueError: the batch does not divide among processes and micro-batches.
        """
        batch_size = self.settings.batch_size
        share, rest = divmod(batch_size, num_processes)
        size = min(self.settings.micro_batch_size or share, share)
        if rest or share % size:
            raise ValueError(
                f"a batch of {batch_size} does not divide into {num_processes} processes and micro-batches of {size}. "
                f"Change {self.network}.batch_size or {self.network}.micro_batch_size."
            )
        return share // size, size


def train_lpg(run: Run, model: nn.Module, samples: Positions, name: str, folder: Path) -> dict:
    """E-step: the LPG on image, box map (and cached class probability) against the auxiliary masks.

    Args:
        name: of the phase.
        folder: for checkpoints.

    Returns:
        `loss` (mean of the last tenth of the steps) and `seconds`.

    Source: Sec. III-C, Eq. (4); Table I.
    """
    settings = run.settings.lpg
    optimizer = build_optimizer(settings.optimizer, lpg_groups(model, settings))
    phase = Phase(name, "lpg", settings, settings.steps, folder, settings.ema, settings.schedule)
    return train(run, phase, model, optimizer, samples, _lpg_loss)


def train_segmenter(run: Run, model: nn.Module, samples: Positions, name: str, folder: Path, num_steps: int) -> dict:
    """M-step: the segmenter on label maps (boxes in stage 0, else pseudo masks).

    Source: Sec. III-C, Eq. (5); Table I.
    """
    settings = run.settings.segmenter
    optimizer = build_optimizer(settings.optimizer, segmenter_groups(model, settings))
    phase = Phase(name, "segmenter", settings, num_steps, folder)
    return train(run, phase, model, optimizer, samples, partial(_segmenter_loss, stride=settings.loss_stride))


def _lpg_loss(model: nn.Module, batch: dict) -> Tensor:
    return model(**batch).loss


def _segmenter_loss(model: nn.Module, batch: dict, stride: int | None) -> Tensor:
    """Cross-entropy over all logits of the network.

    Args:
        stride: pixels per position of the loss; None: the logits' own positions.
    """
    labels = batch["labels"]  # (B, H, W)
    outputs = model(pixel_values=batch["pixel_values"])
    maps = outputs.get("scale_logits") or (outputs.logits,)  # DeepLab v2 sums over its scales
    if stride is None:
        losses = [pixel_cross_entropy(logits, labels) for logits in maps]
    else:
        labels = labels[:, stride // 2 :: stride, stride // 2 :: stride]  # (B, H/stride, W/stride)
        losses = [pixel_cross_entropy(logits, labels, at="labels") for logits in maps]
    return reduce(torch.add, losses)


def train(
    run: Run, phase: Phase, model: nn.Module, optimizer: torch.optim.Optimizer, samples: Positions, loss_of: Loss
) -> dict:
    """The loop of both steps; resumes from the newest checkpoint of the phase, exactly.

    Losses are means over images, so neither the micro-batch nor the number of processes changes the gradient.

    Raises:
        ValueError: see `Phase.micro_batches`, `TrainingState.load` and `_explained`.
        FloatingPointError: the loss is not finite; the message names the samples.
    """
    accelerator, every = run.accelerator, run.settings.run.checkpoint_every
    num_micro, micro_size = phase.micro_batches(accelerator.num_processes)
    model = _prepare_network(run, model)
    state = TrainingState(model, optimizer, accelerator.mixed_precision, phase.ema)
    network, stepper = accelerator.prepare(model, optimizer)  # the same weights, synchronised and in the precision
    checkpoints = Checkpoints(phase.folder)
    _resume(run, phase, state, checkpoints)
    groups = {g["name"]: sum(p.numel() for p in g["params"]) for g in stepper.param_groups}
    run.print(
        f"{phase.name}: {samples.num_entries} samples, batch {phase.settings.batch_size} = "
        f"{accelerator.num_processes} processes x {num_micro} x {micro_size}, {phase.num_steps} steps, parameters "
        f"{groups}"
    )

    batches = StepBatches(
        phase.settings.batch_size,
        micro_size,
        state.step,
        phase.num_steps,
        accelerator.process_index,
        accelerator.num_processes,
    )
    loader = iter(step_loader(samples, batches, run.settings.run.num_workers, accelerator.device.type == "cuda"))
    log = _StepLog(run, phase, state.step)
    for step in range(state.step, phase.num_steps):
        _seed_step(run, samples, step)
        set_learning_rate(stepper, rate_factor(state.updates, phase.num_steps, phase.schedule))
        loss = torch.zeros((), device=accelerator.device)
        for micro in range(num_micro):
            is_last = micro == num_micro - 1
            with nullcontext() if is_last else accelerator.no_sync(network), _explained(phase, step, micro_size):
                loss += _backward(run, network, next(loader), loss_of, num_micro)
        stepper.step()
        stepper.zero_grad()
        mean_loss = cast(Tensor, accelerator.reduce(loss, reduction="mean"))
        state.advance(mean_loss.item(), is_update=not stepper.step_was_skipped)
        log.add(state)
        if state.step % every == 0 or state.step == phase.num_steps:
            if run.is_main:
                checkpoints.save(state.save(log.seconds))
            accelerator.wait_for_everyone()
    seconds = log.close()
    accelerator.unwrap_model(network, keep_fp32_wrapper=False)
    accelerator.free_memory()
    if state.average is not None:
        state.model.load_state_dict(state.average.module.state_dict())
    tail = state.losses[-max(1, phase.num_steps // 10) :]
    return {"loss": sum(tail) / len(tail), "seconds": state.seconds + seconds}


def _prepare_network(run: Run, model: nn.Module) -> nn.Module:
    """The network on the device, in training mode."""
    device = run.accelerator.device
    model.to(device)
    if trains_in_channels_last(model, device):
        cast(Any, model).to(memory_format=torch.channels_last)
    model.train()
    if run.settings.run.sync_batch_norm and run.accelerator.num_processes > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # keeps the parameters, so the optimiser is still right
    return model


def trains_in_channels_last(model: nn.Module, device: torch.device) -> bool:
    """False for the networks on whose gradients torch 2.13 corrupts the heap (a crash, or wrong weights without one).

    On CPUs that is the float32 backward pass of a strided 1x1 convolution with fewer than 16 input channels in
    channels_last; no network of the paper or of `configs/` has one.
    """
    narrow = [
        module
        for module in model.modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.in_channels < 16
    ]
    return device.type != "cpu" or all(max(module.stride) == 1 for module in narrow)


def _resume(run: Run, phase: Phase, state: TrainingState, checkpoints: Checkpoints) -> None:
    """Loads the newest checkpoint, if there is one, and takes the lines of the steps to be repeated out of the log."""
    state.scaler = run.accelerator.scaler
    if state.scaler is not None:
        # It is the accelerator's and still has the scale of the phase before, which a new process would not have.
        state.scaler.load_state_dict(torch.amp.GradScaler(run.accelerator.device.type).state_dict())
    saved = checkpoints.load(run.print)
    if saved is not None:
        state.load(saved)
        run.print(f"{phase.name}: resumed at step {state.step} of {phase.num_steps}")
    if run.is_main:
        _drop_log_lines(run.folder / "log.jsonl", phase.name, state.step)


def _seed_step(run: Run, samples: Positions, step: int) -> None:
    """Dropout depends on seed, phase, process and step alone, so a resumed run repeats it."""
    sequence = np.random.SeedSequence([*samples.seed, 2, run.accelerator.process_index, step])  # 0, 1: see Positions
    torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))


def _backward(run: Run, model: nn.Module, batch: dict, loss_of: Loss, num_micro: int) -> Tensor:
    """Adds the gradients of a micro-batch; returns its share of the loss of the step.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    names = batch.pop("names")
    device = run.accelerator.device
    loss = loss_of(model, {k: to_device(v, device) for k, v in batch.items()}) / num_micro
    if not math.isfinite(loss.item()):
        raise FloatingPointError(
            f"loss {loss.item()} on {', '.join(names)}. Lower the learning rate, or look at these images."
        )
    run.accelerator.backward(loss)
    return loss.detach()


@contextmanager
def _explained(phase: Phase, step: int, micro_batch_size: int) -> Iterator[None]:
    """Adds where it happened to a loss that is not finite, and the remedy to a batch norm with one value per channel.

    Raises:
        FloatingPointError: with the phase and the step.
        ValueError: naming the settings; torch says it for a pooled image that is alone in its micro-batch.
    """
    try:
        yield
    except FloatingPointError as error:
        raise FloatingPointError(f"{phase.name}, step {step}: {error}") from error
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        network = phase.network
        raise ValueError(
            f"a batch norm of the {network} has one value per channel in micro-batches of {micro_batch_size} "
            f"({error}). Set {network}.batch_size and {network}.micro_batch_size so that a process has at least 2 "
            "images at a time, or take a network that trains on frozen batch norms."
        ) from error


class _StepLog:
    """The progress bar, log.jsonl and the tracker of a phase."""

    def __init__(self, run: Run, phase: Phase, start: int):
        self.run, self.phase, self.start, self.began = run, phase, start, time.monotonic()
        hidden = not run.is_main
        self.bar = tqdm(
            total=phase.num_steps, initial=start, desc=phase.name, unit="step", disable=hidden, mininterval=5
        )

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def add(self, state: TrainingState) -> None:
        """A step that is done; every so often, and for the last one, a line is written."""
        self.bar.update()
        settings = self.run.settings.run
        if not self.run.is_main or (state.step % settings.log_every and state.step != self.phase.num_steps):
            return
        losses, samples = (
            state.losses[-settings.log_every :],
            (state.step - self.start) * self.phase.settings.batch_size,
        )
        line = {
            "phase": self.phase.name,
            "step": state.step,
            "loss": round(sum(losses) / len(losses), 6),
            "lr": state.optimizer.param_groups[0]["lr"],
            "samples_per_second": round(samples / self.seconds, 2),
        }
        with open(self.run.folder / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if settings.log_with is not None:
            values = {f"{self.phase.name}/{name}": line[name] for name in ("loss", "lr")}
            self.run.accelerator.log(values, step=state.step)

    def close(self) -> float:
        """Returns the seconds since the start."""
        self.bar.close()
        return self.seconds


def _drop_log_lines(path: Path, phase: str, start: int) -> None:
    """Takes the lines of steps that are about to be repeated, and half a line of a killed write, out of log.jsonl."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n") and ((entry := json.loads(line))["phase"] != phase or entry["step"] <= start):
            kept.append(line)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(path)


def remove_checkpoints(run: Run, folder: Path) -> None:
    """After the stage is saved its checkpoints are of no more use."""
    if run.is_main:
        shutil.rmtree(folder, ignore_errors=True)


def to_device(value: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; (B, C, H, W) ones in channels_last."""
    value = value.to(device, non_blocking=True)
    return value.to(memory_format=torch.channels_last) if value.dim() == 4 else value
