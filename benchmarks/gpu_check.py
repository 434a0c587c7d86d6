"""What has to be seen once on a GPU: results/gpu/NAME.json (`make gpu-check`).

    python benchmarks/gpu_check.py                     # all of it, minutes on one GPU
    python benchmarks/gpu_check.py --device cpu --tiny # a dry run

Every network against the CPU; training in half precision that is interrupted and resumed; samples a second of the
E-step and the M-step with their share of the fastest matrix product (MFU); masks a second; peak memory; and, on two
GPUs, the losses of two processes against those of one. Images and weights are random: no data are needed.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lpg_hf import (
    DeepLabLargeFOVConfig,
    DeepLabLargeFOVForSemanticSegmentation,
    DeepLabV2Config,
    DeepLabV2ForSemanticSegmentation,
    LPGConfig,
    LPGImageProcessor,
    LPGModel,
)
from lpg_hf.generators.base import BoxedImage
from lpg_hf.generators.lpg import LPGGenerator
from lpg_hf.training._samples import Positions
from lpg_hf.training.config import LPGSettings, RunSettings, Settings
from lpg_hf.training.run import Run
from lpg_hf.training.steps import train_lpg


ROOT = Path(__file__).resolve().parents[1]
TINY_HOURGLASS = {"embedding_size": 8, "hidden_sizes": (8, 8), "depths": (1, 1), "neck_size": 8, "head_size": 8}
STEPS = 6
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


def _networks(tiny: bool) -> dict[str, Callable[[], nn.Module]]:
    """Every family and encoder, with seeded weights."""

    def lpg(**fields: Any) -> Callable[[], nn.Module]:
        return lambda: LPGModel(LPGConfig(**fields))

    small = {"depths": (1, 1, 1, 1), "hidden_sizes": (16, 16, 16, 16), "stem_size": 16, "block": "basic"}
    largefov = {"hidden_sizes": (8,) * 5, "fc_size": 8} if tiny else {}
    networks: dict[str, Callable[[], nn.Module]] = {
        "hourglass": lpg(**(TINY_HOURGLASS if tiny else {})),
        "largefov": lambda: DeepLabLargeFOVForSemanticSegmentation(DeepLabLargeFOVConfig(num_labels=21, **largefov)),
        "deeplab-v2": lambda: DeepLabV2ForSemanticSegmentation(
            DeepLabV2Config(num_labels=21, **(small if tiny else {}))
        ),
    }
    encoders = ("squeezenet", "efficientnet_lite0", "resnet18", *(() if tiny else ("vgg16", "resnet101")))
    return networks | {f"LPG on {name}": lpg(backbone=name) for name in encoders}


def _built(build: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    return build()


def _inputs(model: nn.Module, count: int, side: int) -> dict[str, Tensor]:
    """Random inputs and labels of a network."""
    generator = torch.Generator().manual_seed(0)
    inputs = {"pixel_values": torch.randn(count, 3, side, side, generator=generator)}
    if isinstance(model, LPGModel):
        inputs["box_mask"] = torch.zeros(count, 1, side, side)
        inputs["box_mask"][..., side // 8 : side // 2, side // 8 : side // 2] = 1
        inputs["class_prob"] = torch.rand(count, 1, side, side, generator=generator)
    return inputs


@torch.inference_mode()
def against_cpu(device: str, tiny: bool) -> dict[str, dict[str, float]]:
    """Per network: the largest difference of float32 logits from the CPU's, as a share of their range; and the share
    of positions with the same class in half precision.
    """
    results = {}
    for name, build in _networks(tiny).items():
        model = _built(build).eval()
        inputs = _inputs(model, 1, 64 if tiny else 256)
        expected = model(**inputs).logits
        there = {key: value.to(device) for key, value in inputs.items()}
        found = model.to(device)(**there).logits.float().cpu()
        spread = (expected.max() - expected.min()).clamp(min=1e-6)
        results[name] = {"float32 difference": ((found - expected).abs().max() / spread).item()}
        for half, dtype in HALF.items():
            with torch.autocast(torch.device(device).type, dtype):
                classes = model(**there).logits.float().cpu().argmax(1)
            results[name][f"{half} same class"] = (classes == expected.argmax(1)).float().mean().item()
    return results


class _RandomViews(Positions):
    """Samples of an LPG without data; `stop` is the position at which the run is interrupted."""

    def __init__(self, side: int, stop: int | None = None):
        super().__init__(16, 0, "check")
        self.side, self.stop = side, stop

    def sample(self, entry: int, rng: np.random.Generator, position: int) -> dict:
        if position == self.stop:
            raise KeyboardInterrupt
        shape = (self.side, self.side)
        return {
            "pixel_values": rng.standard_normal((3, *shape), dtype=np.float32),
            "box_mask": np.ones((1, *shape), dtype=np.float32),
            "labels": rng.integers(0, 2, shape),
            "name": str(entry),
        }


def resumed_training(device: str, tiny: bool, precision: str) -> dict[str, float | bool]:
    """A training that is interrupted between two checkpoints, against one that is not."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision=precision)
    config = TINY_HOURGLASS if tiny else {"backbone": "squeezenet"}
    side = 64 if tiny else 192

    def train(folder: Path, stop: int | None = None) -> dict[str, Tensor]:
        folder.mkdir(exist_ok=True)
        settings = Settings(
            run=RunSettings(dir=str(folder), num_stages=1, num_workers=0, checkpoint_every=2),
            lpg=LPGSettings(stage1_class_prob=False, config=config, steps=STEPS, batch_size=4),
        )
        model = _built(lambda: LPGModel(LPGConfig(**config, use_class_prob=False)))
        train_lpg(Run(accelerator, settings), model, _RandomViews(side, stop), "check", folder / "checkpoints")
        return {name: value.detach().cpu() for name, value in model.state_dict().items()}

    torch.use_deterministic_algorithms(True, warn_only=True)
    with tempfile.TemporaryDirectory() as name:
        whole = train(Path(name, "whole"))
        try:
            train(Path(name, "resumed"), stop=4 * 4 + 1)
            raise AssertionError("the training was to be interrupted")
        except KeyboardInterrupt:
            resumed = train(Path(name, "resumed"))
    torch.use_deterministic_algorithms(False)
    AcceleratorState._reset_state(reset_partial_state=True)
    apart = max((whole[key].float() - resumed[key].float()).abs().max().item() for key in whole)
    finite = all(value.isfinite().all() for value in whole.values())
    return {"largest difference of a weight": apart, "to the bit": apart == 0, "finite": bool(finite)}


def _seconds(device: str, call: Callable[[], object], repeats: int) -> float:
    """Mean seconds of a call, after two that are not counted."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(2):
        call()
    wait()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    wait()
    return (time.perf_counter() - start) / repeats


def _fastest_product(device: str, dtype: torch.dtype, tiny: bool) -> float:
    """Operations a second of a large matrix product."""
    side = 256 if tiny else 8192
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / _seconds(device, lambda: a @ b, 5)


def throughput(device: str, tiny: bool) -> dict[str, dict[str, float]]:
    """Samples a second, MFU and peak memory of a step of Table I's networks, in float32 and bfloat16."""
    peaks = {dtype: _fastest_product(device, dtype, tiny) for dtype in (torch.float32, torch.bfloat16)}
    results = {}
    for name, side, count in (("hourglass", 512, 32), ("LPG on squeezenet", 192, 64), ("largefov", 321, 30)):
        side, count = (33 if name == "largefov" else 32, 2) if tiny else (side, count)
        for dtype, peak in peaks.items():
            model = _built(_networks(tiny)[name]).to(device, memory_format=torch.channels_last).train()
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
            inputs = {key: value.to(device) for key, value in _inputs(model, count, side).items()}
            inputs["labels"] = torch.zeros(count, side, side, dtype=torch.long, device=device)

            def step() -> None:
                half = dtype != torch.float32
                with torch.autocast(torch.device(device).type, dtype) if half else nullcontext():
                    loss = model(**inputs).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()

            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            with FlopCounterMode(display=False) as counter:
                step()
            seconds = _seconds(device, step, 1 if tiny else 10)
            results[f"{name}, {side} px, batch {count}, {str(dtype).removeprefix('torch.')}"] = {
                "samples a second": count / seconds,
                "TFLOP/s": counter.get_total_flops() / seconds / 1e12,
                "MFU": counter.get_total_flops() / seconds / peak,
                "peak memory MB": torch.cuda.max_memory_allocated() / 1e6 if device == "cuda" else float("nan"),
            }
    return results


def mask_rates(device: str, tiny: bool) -> dict[str, float]:
    """Masks a second of box views and of whole images, without files."""
    rng, results = np.random.default_rng(0), {}
    side, count = (64, 2) if tiny else (512, 64)
    boxes = np.array([[side / 8, side / 8, side / 2, side / 2], [side / 4, side / 4, side - 4, side - 4]], np.float32)
    images = [
        BoxedImage(rng.integers(0, 256, (side, side, 3), dtype=np.uint8), boxes, np.array([1, 2]))
        for _ in range(count)
    ]
    for label, fields, view in (
        ("squeezenet, box views of 192", {"backbone": "squeezenet"}, {"view": "box", "view_size": 192}),
        ("hourglass, whole images", TINY_HOURGLASS if tiny else {}, {}),
    ):
        model = _built(lambda: LPGModel(LPGConfig(**fields, use_class_prob=False)))
        generator = LPGGenerator(model, LPGImageProcessor(**view), batch_size=32, device=device, dtype=torch.bfloat16)
        seconds = _seconds(device, lambda: sum(1 for _ in generator.patches(images, "instance")), 1)
        results[f"{label}, {side} px, masks a second"] = 2 * count / seconds
    return results


def two_processes(config: Path, num_steps: int = 20) -> dict[str, float]:
    """The losses of two GPUs against those of one, on the data and settings of the demo."""
    losses = {}
    with tempfile.TemporaryDirectory() as name:
        synthetic = [sys.executable, "-m", "lpg_hf.data.synthetic", f"{name}/data", "--num-aux", "40"]
        subprocess.run(synthetic, check=True, cwd=ROOT)
        for count in (1, 2):
            flags = f"--num_processes {count} --num_machines 1 --mixed_precision no --dynamo_backend no"
            flags += " --main_process_port 0"  # any that is free
            launcher = [sys.executable, "-m", "accelerate.commands.launch", *(["--multi_gpu"] if count > 1 else [])]
            steps = ["--run.num_stages", "1", "--run.log_every", "1", "--run.mixed_precision", "no"]
            steps += ["--lpg.steps", str(num_steps), "--segmenter.steps", str(num_steps)]
            aux = f"{name}/data/aux"
            data = ["--aux.annotations", f"{aux}/annotations.json", "--aux.images", f"{aux}/images"]
            script = [str(ROOT / "training/em.py"), "--config", str(config), "--run.dir", f"{name}/run{count}"]
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            subprocess.run([*launcher, *flags.split(), *script, *steps, *data], check=True, cwd=ROOT, env=environment)
            log = Path(name, f"run{count}", "log.jsonl").read_text(encoding="utf-8").splitlines()
            losses[count] = [json.loads(line)["loss"] for line in log]
    apart = max(abs(one - two) for one, two in zip(losses[1], losses[2]))
    return {"steps": len(losses[1]), "largest difference of a loss": apart}


def check(device: str, tiny: bool) -> dict[str, Any]:
    """All results of a device."""
    precisions = ("fp16", "bf16") if device == "cuda" else ("no", "bf16")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # "float32" means it
    about = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    results: dict[str, Any] = {"device": about, "torch": torch.__version__, "tiny": tiny}
    results["against the CPU"] = against_cpu(device, tiny)
    results["resumed training"] = {name: resumed_training(device, tiny, name) for name in precisions}
    results["training"] = throughput(device, tiny)
    results["masks"] = mask_rates(device, tiny)
    if device == "cuda" and torch.cuda.device_count() > 1:
        results["two processes"] = two_processes(ROOT / "training/configs/quickstart.yaml")
    return results


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small networks: a dry run of seconds")
    parser.add_argument("--out", type=Path, help="json file; default: results/gpu/NAME OF THE GPU.json")
    arguments = parser.parse_args(given)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu_check.py: there is no GPU here. --device cpu --tiny is a dry run.")
    results = check(arguments.device, arguments.tiny)
    text = json.dumps(results, indent=1)
    print(text)
    path = arguments.out or ROOT / "results" / "gpu" / f"{results['device'].replace(' ', '_')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
