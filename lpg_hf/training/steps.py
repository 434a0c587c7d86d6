"""The two training steps of the EM loop: the E-step trains the LPG, the M-step trains the segmenter."""

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm import tqdm

from lpg_hf.models.logits import corner_stride, logits_at_pixels
from lpg_hf.models.losses import pixel_cross_entropy
from lpg_hf.training._batch_norm import synchronize_batch_norms
from lpg_hf.training._checkpoint import Checkpoints, TrainingState
from lpg_hf.training._depthwise import fast_depthwise
from lpg_hf.training._label_sources.bcm import confident_labels
from lpg_hf.training._optim import build_optimizer, lpg_groups, rate_factor, segmenter_groups, set_learning_rate
from lpg_hf.training._samples import Positions, StepBatches, step_loader
from lpg_hf.training.config import LPGSettings, SegmenterSettings
from lpg_hf.training.run import Run


Loss = Callable[[nn.Module, dict], Tensor]


@dataclass(frozen=True)
class _Phase:
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


def _micro_batches(network: str, settings: LPGSettings | SegmenterSettings, num_processes: int) -> list[list[int]]:
    """The sizes of each process's micro-batches in one step; shares and micro-batches differ by 1 image at most.

    Args:
        network: "lpg" or "segmenter", the section of the settings.

    Raises:
        ValueError: there are more processes than images in a batch.
    """
    if settings.batch_size < num_processes:
        raise ValueError(
            f"{network}.batch_size={settings.batch_size} is less than one image for each of the {num_processes} "
            f"processes. Raise {network}.batch_size, or start fewer processes."
        )
    shares = _split(settings.batch_size, num_processes)
    num_micro = math.ceil(shares[0] / (settings.micro_batch_size or shares[0]))
    return [_split(share, min(num_micro, share)) for share in shares]


def check_batch(run: Run, network: str, model: nn.Module) -> list[list[int]]:
    """The `_micro_batches` of a network in a run.

    Raises:
        ValueError: see there; or batch norms would wait for processes that have fewer micro-batches.
    """
    section = getattr(run.settings, network)
    shares = _micro_batches(network, section, run.accelerator.num_processes)
    num_norms = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in model.train().modules())
    if len(shares[0]) > len(shares[-1]) and run.settings.run.sync_batch_norm and num_norms:
        raise ValueError(
            f"{network}.micro_batch_size={section.micro_batch_size} gives {len(shares[0])} micro-batches to a process "
            f"and {len(shares[-1])} to another, but {num_norms} batch norms compute over all processes at once. Set "
            f"{network}.micro_batch_size to null, or run.sync_batch_norm to false."
        )
    return shares


def _split(total: int, num_parts: int) -> list[int]:
    return [total // num_parts + (part < total % num_parts) for part in range(num_parts)]


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
    phase = _Phase(name, "lpg", settings, settings.steps, folder, settings.ema, settings.schedule)
    return _train(run, phase, model, optimizer, samples, _lpg_loss)


def train_segmenter(run: Run, model: nn.Module, samples: Positions, name: str, folder: Path, num_steps: int) -> dict:
    """M-step: the segmenter on label maps (boxes in stage 0, else pseudo masks).

    Source: Sec. III-C, Eq. (5); Table I.
    """
    settings = run.settings.segmenter
    optimizer = build_optimizer(settings.optimizer, segmenter_groups(model, settings))
    phase = _Phase(name, "segmenter", settings, num_steps, folder)
    loss_of = partial(
        _segmenter_loss, stride=settings.loss_stride, corner_stride=corner_stride(getattr(model, "config", None))
    )
    return _train(run, phase, model, optimizer, samples, loss_of)


def _lpg_loss(model: nn.Module, batch: dict) -> Tensor:
    return model(**batch).loss


def _segmenter_loss(model: nn.Module, batch: dict, stride: int | None, corner_stride: int | None = None) -> Tensor:
    """Cross-entropy over all logits of the network; with filling rates of BCM, over the pixels that these keep.

    Args:
        stride: pixels per position of the loss; None: the logits' own positions.
        corner_stride: of the network, see there.
    """
    positions = slice(None) if stride is None else slice(stride // 2, None, stride)
    labels = batch["labels"][:, positions, positions]  # (B, H/stride, W/stride)
    outputs = model(pixel_values=batch["pixel_values"])
    maps = outputs.get("scale_logits") or (outputs.logits,)  # DeepLab v2 sums over its scales
    if stride is not None:
        maps = _at_positions(maps, batch["labels"].shape[1:], stride, corner_stride)
    if "filling_rates" in batch:
        boxes = batch["box_labels"][:, positions, positions]  # (B, H/stride, W/stride)
        kept = partial(confident_labels, labels=labels, box_labels=boxes, filling_rates=batch["filling_rates"])
        losses = [pixel_cross_entropy(logits, kept(logits)) for logits in maps]
    else:
        losses = [pixel_cross_entropy(logits, labels) for logits in maps]
    return reduce(torch.add, losses)


def _at_positions(maps: Sequence[Tensor], size: torch.Size, stride: int, corner_stride: int | None) -> list[Tensor]:
    """The logits at the positions of the loss, from where they lie in use.

    Args:
        maps: (B, num_labels, h, w) each; those of further scales are used through their maximum, at the first's size.
        size: (height, width) of the crops.

    Returns:
        (B, num_labels, H/stride, W/stride) float32 each.
    """
    resized = partial(F.interpolate, mode="bilinear", align_corners=False)
    if corner_stride is None:
        counts = [len(range(stride // 2, side, stride)) for side in size]
        return [resized(logits.float(), size=counts) for logits in maps]
    maps = [resized(logits.float(), size=maps[0].shape[-2:]) for logits in maps]
    return [logits_at_pixels(logits, corner_stride, (size[0], size[1]), every=stride) for logits in maps]


def _train(
    run: Run, phase: _Phase, model: nn.Module, optimizer: torch.optim.Optimizer, samples: Positions, loss_of: Loss
) -> dict:
    """The loop of both steps; resumes from the newest checkpoint of the phase, exactly.

    Losses are means over images, each of the same weight in a step, so neither the micro-batches nor the number of
    processes change the gradient.

    Raises:
        ValueError: see `check_batch`, `TrainingState.load` and `_explained`.
        FloatingPointError: the loss (the message names the samples) or a weight is not finite.
    """
    on_cpu, autocast = run.accelerator.device.type == "cpu", run.accelerator.mixed_precision == "bf16"
    with fast_depthwise(model, autocast=autocast) if on_cpu else nullcontext():
        return _loop(run, phase, model, optimizer, samples, loss_of)


def _loop(
    run: Run, phase: _Phase, model: nn.Module, optimizer: torch.optim.Optimizer, samples: Positions, loss_of: Loss
) -> dict:
    """As `_train`."""
    accelerator, every = run.accelerator, run.settings.run.checkpoint_every
    shares = check_batch(run, phase.network, model)
    layout = _prepare_network(run, model)
    state = TrainingState(model, optimizer, accelerator.mixed_precision, phase.ema)
    network, stepper = accelerator.prepare(model, optimizer)  # the same weights, synchronised and in the precision
    checkpoints = Checkpoints(phase.folder)
    _resume(run, phase, state, checkpoints)
    groups = {g["name"]: sum(p.numel() for p in g["params"]) for g in stepper.param_groups}
    run.print(
        f"{phase.name}: {samples.num_entries} samples, batch {phase.settings.batch_size} = "
        f"{' + '.join(str(sizes[0]) if len(sizes) == 1 else str(sizes) for sizes in shares)} on "
        f"{accelerator.num_processes} process(es), {phase.num_steps} steps, parameters {groups}"
    )

    batches = StepBatches(shares, accelerator.process_index, state.step, phase.num_steps)
    loader = iter(step_loader(samples, batches, run.settings.run.num_workers, accelerator.device.type == "cuda"))
    log = _StepLog(run, phase, state.step)
    for step in range(state.step, phase.num_steps):
        _seed_step(run, samples, step)
        set_learning_rate(stepper, rate_factor(state.updates, phase.num_steps, phase.schedule))
        parts = []
        for micro in range(batches.num_micro):
            is_last = micro == batches.num_micro - 1
            with nullcontext() if is_last else accelerator.no_sync(network), _explained(phase):
                parts.append(_backward(run, phase, network, next(loader), loss_of, layout))
        loss = _step_loss(run, phase, step, parts)
        stepper.step()
        stepper.zero_grad()
        state.advance(loss, is_update=not stepper.step_was_skipped)
        log.add(state)
        if state.step % every == 0 or state.step == phase.num_steps:
            _check_weights(phase, state)
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


def _prepare_network(run: Run, model: nn.Module) -> torch.memory_format:
    """Brings the network to the device, and into training mode.

    Returns:
        The layout of its weights. Its inputs need the same: a convolution computes in channels_last if either has it.
    """
    device = run.accelerator.device
    layout = torch.channels_last if _trains_in_channels_last(model, device) else torch.contiguous_format
    cast(Any, model).to(device, memory_format=layout)
    model.train()
    if run.settings.run.sync_batch_norm and run.accelerator.num_processes > 1:
        synchronize_batch_norms(model)
    return layout


def _trains_in_channels_last(model: nn.Module, device: torch.device) -> bool:
    """False for the networks on whose gradients torch 2.13 corrupts the heap (a crash, or wrong weights without one).

    On CPUs that is the backward pass of a strided 1x1 convolution with fewer than 16 input channels in channels_last,
    in float32 and in bfloat16; no network of the paper or of `configs/` has one. Forward passes are safe.
    """
    narrow = [
        module
        for module in model.modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.in_channels < 16
    ]
    return device.type != "cpu" or all(max(module.stride) == 1 for module in narrow)


def _resume(run: Run, phase: _Phase, state: TrainingState, checkpoints: Checkpoints) -> None:
    """Loads the newest checkpoint, if there is one, and takes the lines of the steps to be repeated out of the log.

    Raises:
        ValueError: in all processes, if they found different ones: each would train other weights.
    """
    state.scaler = run.accelerator.scaler
    if state.scaler is not None:
        # It is the accelerator's and still has the scale of the phase before, which a new process would not have.
        state.scaler.load_state_dict(torch.amp.GradScaler(run.accelerator.device.type).state_dict())
    saved = checkpoints.load(run.print)
    if saved is not None:
        state.load(saved)
        run.print(f"{phase.name}: resumed at step {state.step} of {phase.num_steps}")
    found = sorted(set(gather_object([state.step])))
    if len(found) > 1:
        raise ValueError(
            f"{phase.name}: the processes found checkpoints of different steps ({', '.join(map(str, found))}), so "
            f"run.dir={run.folder} is not one folder for all of them. Name one on a drive that all machines share."
        )
    if run.is_main:
        _drop_log_lines(run.folder / "log.jsonl", phase.name, state.step)


def _seed_step(run: Run, samples: Positions, step: int) -> None:
    """Dropout depends on seed, phase, process and step alone, so a resumed run repeats it."""
    sequence = np.random.SeedSequence([*samples.seed, 2, run.accelerator.process_index, step])  # 0, 1: see Positions
    torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))


def _backward(
    run: Run, phase: _Phase, model: nn.Module, batch: dict, loss_of: Loss, layout: torch.memory_format
) -> tuple[list[str], Tensor]:
    """Adds the gradients of a micro-batch.

    Args:
        layout: see `_prepare_network`.

    Returns:
        names: of the samples.
        loss: its share of the step's loss, which is the mean over the processes of the sum of theirs.
    """
    names = batch.pop("names")
    device = run.accelerator.device
    weight = len(names) * run.accelerator.num_processes / phase.settings.batch_size
    loss = loss_of(model, {k: _to_device(v, device, layout) for k, v in batch.items()}) * weight
    run.accelerator.backward(loss)
    return names, loss.detach()


def _step_loss(run: Run, phase: _Phase, step: int, parts: list[tuple[list[str], Tensor]]) -> float:
    """The loss of a step, a mean over the images of all processes.

    Args:
        parts: what `_backward` returned for the micro-batches of this process.

    Raises:
        FloatingPointError: in all processes, if it is not finite.
    """
    total = torch.stack([loss for _, loss in parts]).sum()
    loss = cast(Tensor, run.accelerator.reduce(total, reduction="mean")).item()
    if math.isfinite(loss):
        return loss
    names = gather_object([name for names, part in parts if not math.isfinite(part.item()) for name in names])
    raise FloatingPointError(
        f"{phase.name}, step {step}: loss {loss} on {', '.join(names)}. Lower {phase.network}.learning_rate, or look "
        "at these images."
    )


def _check_weights(phase: _Phase, state: TrainingState) -> None:
    """Raises FloatingPointError if a weight is not finite, so that no such network is ever saved."""
    for network in (state.model, state.average):
        broken = [] if network is None else [k for k, v in network.state_dict().items() if not v.isfinite().all()]
        if broken:
            raise FloatingPointError(
                f"{phase.name}, step {state.step}: {len(broken)} weights are not finite, such as {broken[0]}, so they "
                f"are not saved. Lower {phase.network}.learning_rate and give another run.dir."
            )


@contextmanager
def _explained(phase: _Phase) -> Iterator[None]:
    """Adds the remedy to the error of a batch norm with one value per channel.

    Raises:
        ValueError: naming the settings; torch says it for a pooled image that is alone in its micro-batch.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        network = phase.network
        raise ValueError(
            f"a batch norm of the {network} has one value per channel, as of one pooled image ({error}). Set "
            f"{network}.batch_size and {network}.micro_batch_size so that a process has at least 2 images at a time, "
            "or take a network that trains on frozen batch norms."
        ) from error


class _StepLog:
    """The progress bar, log.jsonl and the tracker of a phase."""

    def __init__(self, run: Run, phase: _Phase, start: int):
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
        self.run.track({f"{self.phase.name}/{name}": line[name] for name in ("loss", "lr")}, state.step)

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


def _to_device(value: Tensor, device: torch.device, layout: torch.memory_format = torch.channels_last) -> Tensor:
    """The tensor on the device; (B, C, H, W) ones in the layout of the network."""
    value = value.to(device, non_blocking=True)
    return value.to(memory_format=layout) if value.dim() == 4 else value
