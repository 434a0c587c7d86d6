"""The two training steps of the EM loop: the E-step trains the LPG, the M-step trains the segmenter."""

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from lpg_hf.models.losses import pixel_cross_entropy
from training.checkpoint import Checkpoints
from training.config import Settings
from training.optim import (
    build_optimizer,
    lpg_groups,
    lpg_rate_factor,
    poly_factor,
    segmenter_groups,
    set_learning_rate,
)
from training.samples import Positions, StepBatches, step_loader


def train_lpg(
    accelerator: Accelerator, settings: Settings, model: nn.Module, samples: Positions, phase: str, folder: Path
) -> dict:
    """E-step: the LPG on image, box map (and cached class probability) against the auxiliary masks.

    Returns:
        `loss` (mean of the last tenth of the steps) and `seconds`.

    Source: Sec. III-C, Eq. (4); Table I.
    """
    optimizer = build_optimizer(settings.lpg_optimizer, lpg_groups(model, settings))

    def loss_of(model: nn.Module, batch: dict) -> Tensor:
        return model(**batch).loss

    return train(
        accelerator,
        settings,
        model,
        optimizer,
        samples,
        loss_of,
        phase,
        folder,
        network="lpg",
        num_steps=settings.lpg_steps,
        batch_size=settings.lpg_batch_size,
        micro_batch_size=settings.lpg_micro_batch_size,
        rate_factor=lambda step: lpg_rate_factor(step, settings.lpg_steps, settings),
        ema=settings.lpg_ema,
    )


def train_segmenter(
    accelerator: Accelerator,
    settings: Settings,
    model: nn.Module,
    samples: Positions,
    phase: str,
    folder: Path,
    num_steps: int,
) -> dict:
    """M-step: the segmenter on label maps (boxes in stage 0, else pseudo masks).

    Source: Sec. III-C, Eq. (5); Table I.
    """
    groups = segmenter_groups(model, settings)
    optimizer = build_optimizer(settings.segmenter_optimizer, groups, settings.segmenter_momentum)

    def loss_of(model: nn.Module, batch: dict) -> Tensor:
        labels = batch.pop("labels")
        outputs = model(**batch)
        maps = outputs.get("scale_logits") or (outputs.logits,)  # DeepLab v2 sums over its scales
        stride = settings.segmenter_loss_stride
        if stride is None:
            return sum(pixel_cross_entropy(logits, labels) for logits in maps)
        labels = labels[:, stride // 2 :: stride, stride // 2 :: stride]
        return sum(pixel_cross_entropy(logits, labels, at="labels") for logits in maps)

    return train(
        accelerator,
        settings,
        model,
        optimizer,
        samples,
        loss_of,
        phase,
        folder,
        network="segmenter",
        num_steps=num_steps,
        batch_size=settings.segmenter_batch_size,
        micro_batch_size=settings.segmenter_micro_batch_size,
        rate_factor=lambda step: poly_factor(step, num_steps, settings.poly_power),
    )


def train(
    accelerator: Accelerator,
    settings: Settings,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    samples: Positions,
    loss_of: Callable[[nn.Module, dict], Tensor],
    phase: str,
    folder: Path,
    *,
    network: str,
    num_steps: int,
    batch_size: int,
    micro_batch_size: int | None,
    rate_factor: Callable[[int], float],
    ema: float = 0.0,
) -> dict:
    """The loop of both steps; resumes from the newest checkpoint in `folder`, exactly.

    Losses are means over pictures, so neither the micro-batch nor the number of processes changes the gradient.

    Args:
        network: "lpg" or "segmenter", which the names of its settings begin with.
        rate_factor: step -> share of the initial learning rates.
        ema: decay per step of an exponential average of the weights, which `model` has in the end, see
            `average_weights`; 0: none.

    Raises:
        ValueError: see `divide_batch`, `check_channels_last` and `explained_batch_norm`.
        FloatingPointError: the loss is not finite; the message names the samples.
    """
    num_micro, micro_batch_size = divide_batch(network, batch_size, micro_batch_size, accelerator.num_processes)
    checkpoints = Checkpoints(folder, settings.keep_checkpoints)
    state = checkpoints.load(accelerator.print) or {"step": 0, "losses": [], "seconds": 0.0}
    start, seconds_before = state["step"], state["seconds"]
    precision = state.get("mixed_precision", accelerator.mixed_precision)
    if precision != accelerator.mixed_precision:
        raise ValueError(
            f"{phase} was begun with mixed_precision {precision}, and this machine would go on with "
            f"{accelerator.mixed_precision}. Go on where it was begun, or start anew with another run_dir."
        )
    if start:
        model.load_state_dict(state["model"])
        accelerator.print(f"{phase}: resumed at step {start} of {num_steps}")
    if accelerator.is_main_process:
        drop_log_lines(Path(settings.run_dir) / "log.jsonl", phase, start)
    model.to(accelerator.device)
    if settings.channels_last:
        check_channels_last(model, accelerator.device)
        model.to(memory_format=torch.channels_last)
    model.train()
    if start:
        optimizer.load_state_dict(state["optimizer"])
    if settings.sync_batch_norm and accelerator.num_processes > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # keeps the parameters, so the optimiser is still right
    raw_model = model
    average = None
    if ema > 0:
        average = AveragedModel(raw_model, multi_avg_fn=average_weights(ema), use_buffers=True)
        if start:
            average.load_state_dict(state["average"])
    model, optimizer = accelerator.prepare(model, optimizer)
    if accelerator.scaler is not None:
        # It is the accelerator's and still has the scale of the phase before, which a new process would not have.
        initial = torch.amp.GradScaler(accelerator.device.type).state_dict()
        accelerator.scaler.load_state_dict(state["scaler"] if start else initial)
    groups = {g["name"]: sum(p.numel() for p in g["params"]) for g in optimizer.param_groups}
    accelerator.print(
        f"{phase}: {samples.num_entries} samples, batch {batch_size} = {accelerator.num_processes} processes x "
        f"{num_micro} x {micro_batch_size}, {num_steps} steps, parameters {groups}"
    )

    batches = StepBatches(
        batch_size, micro_batch_size, start, num_steps, accelerator.process_index, accelerator.num_processes
    )
    loader = iter(step_loader(samples, batches, settings.num_workers, accelerator.device.type == "cuda"))
    losses, began = list(state["losses"]), time.monotonic()
    bar = tqdm(
        total=num_steps, initial=start, desc=phase, unit="step", disable=not accelerator.is_main_process, mininterval=5
    )
    for step in range(start, num_steps):
        # Dropout of a step depends on nothing but the step, so a resumed run repeats it.
        torch.manual_seed(hash((settings.seed, accelerator.process_index, step)) % 2**63)
        set_learning_rate(optimizer, rate_factor(step))
        step_loss = torch.zeros((), device=accelerator.device)
        for micro in range(num_micro):
            batch = next(loader)
            names = batch.pop("names")
            batch = {k: to_device(v, accelerator.device, settings.channels_last) for k, v in batch.items()}
            synchronize = micro == num_micro - 1
            with accelerator.no_sync(model) if not synchronize else nullcontext():
                with explained_batch_norm(network, micro_batch_size):
                    loss = loss_of(model, batch) / num_micro
                if not math.isfinite(loss.item()):
                    raise FloatingPointError(
                        f"{phase}: loss {loss.item()} at step {step} on {', '.join(names)}. Lower the learning rate, "
                        "or look at these images."
                    )
                accelerator.backward(loss)
            step_loss += loss.detach()
        optimizer.step()
        optimizer.zero_grad()
        if average is not None:
            average.update_parameters(raw_model)
        losses.append(accelerator.reduce(step_loss, reduction="mean").item())
        bar.update()

        done = step + 1
        if done % settings.log_every == 0 or done == num_steps:
            _log(
                accelerator, settings, phase, done, losses[-settings.log_every :], optimizer, began, start, batch_size
            )
        if done % settings.checkpoint_every == 0 or done == num_steps:
            if accelerator.is_main_process:
                checkpoint = {
                    "model": raw_model.state_dict(),
                    "optimizer": optimizer.optimizer.state_dict(),
                    "losses": losses,
                    "mixed_precision": accelerator.mixed_precision,
                    "seconds": seconds_before + time.monotonic() - began,
                }
                if average is not None:
                    checkpoint["average"] = average.state_dict()
                if accelerator.scaler is not None:
                    checkpoint["scaler"] = accelerator.scaler.state_dict()
                checkpoints.save(done, checkpoint)
            accelerator.wait_for_everyone()
    bar.close()
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    accelerator.free_memory()
    if average is not None:
        raw_model.load_state_dict(average.module.state_dict())
    tail = losses[-max(1, num_steps // 10) :]
    return {"loss": sum(tail) / len(tail), "seconds": seconds_before + time.monotonic() - began}


def divide_batch(network: str, batch_size: int, micro_batch_size: int | None, num_processes: int) -> tuple[int, int]:
    """Number and size of the micro-batches of a process in one step.

    Raises:
        ValueError: the batch does not divide among processes and micro-batches.
    """
    share, rest = divmod(batch_size, num_processes)
    size = min(micro_batch_size or share, share)
    if rest or share % size:
        raise ValueError(
            f"a batch of {batch_size} does not divide into {num_processes} processes and micro-batches of {size}. Change "
            f"{network}_batch_size or {network}_micro_batch_size."
        )
    return share // size, size


@contextmanager
def explained_batch_norm(network: str, micro_batch_size: int) -> Iterator[None]:
    """Names the settings where torch says that a batch norm has one value per channel, as over a pooled picture.

    Raises:
        ValueError: with the remedy, in place of torch's.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            f"a batch norm of the {network} has one value per channel in micro-batches of {micro_batch_size} ({error}). Set "
            f"{network}_batch_size and {network}_micro_batch_size so that a process has at least 2 pictures at a time, or take a "
            "network that trains on frozen batch norms."
        ) from error


def average_weights(decay: float) -> Callable:
    """The update of an exponential average whose decay rises to `decay`, which soon forgets the initial weights.

    At step t it is (1 + t) / (10 + t) at most: the average spans about a tenth of the steps so far.
    """

    def update(averaged: list[Tensor], current: list[Tensor], num_averaged: Tensor | int) -> None:
        steps = int(num_averaged)
        get_ema_multi_avg_fn(min(decay, (1 + steps) / (10 + steps)))(averaged, current, num_averaged)

    return update


def remove_checkpoints(accelerator: Accelerator, folder: Path) -> None:
    """After the stage is saved its checkpoints are of no more use."""
    if accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)


def check_channels_last(model: nn.Module, device: torch.device) -> None:
    """Refuses networks on whose gradients torch 2.13 corrupts the heap (a crash, or wrong weights without one).

    On CPUs that is the float32 backward pass of a strided 1x1 convolution with fewer than 16 input channels in
    channels_last; no network of the paper or of `configs/` has one.

    Raises:
        ValueError: names the layer.
    """
    for name, module in model.named_modules():
        narrow = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.in_channels < 16
        if device.type == "cpu" and narrow and max(module.stride) > 1:
            raise ValueError(
                f"{name} has {module.in_channels} input channels, too few for channels_last on a CPU (torch writes out "
                "of bounds). Set channels_last to false, or give the network at least 16 channels there."
            )


def drop_log_lines(path: Path, phase: str, start: int) -> None:
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


def to_device(value: Tensor, device: torch.device, channels_last: bool) -> Tensor:
    value = value.to(device, non_blocking=True)
    return value.to(memory_format=torch.channels_last) if channels_last and value.dim() == 4 else value


def _log(
    accelerator: Accelerator,
    settings: Settings,
    phase: str,
    step: int,
    losses: list[float],
    optimizer: torch.optim.Optimizer,
    began: float,
    start: int,
    batch_size: int,
) -> None:
    """One line of log.jsonl, and the tracker."""
    if not accelerator.is_main_process:
        return
    line = {
        "phase": phase,
        "step": step,
        "loss": round(sum(losses) / len(losses), 6),
        "lr": optimizer.param_groups[0]["lr"],
        "samples_per_second": round((step - start) * batch_size / (time.monotonic() - began), 2),
    }
    with open(Path(settings.run_dir) / "log.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    if settings.log_with is not None:
        accelerator.log({f"{phase}/loss": line["loss"], f"{phase}/lr": line["lr"]}, step=step)
