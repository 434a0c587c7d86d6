"""The rows of `benchmarks/speed.py`: what is measured, with what it is compared to.

python benchmarks/speed_rows.py masks --quick         # the numbers of one row, as json
"""

import argparse
import importlib
import importlib.util
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, os.environ.get("LPG_HF_SPEED_OF", sys.path[0]))  # the checkout whose lpg_hf is measured

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import official_loops
from benchmarks.masks_speed import write_data
from lpg_hf import (
    DeepLabLargeFOVConfig,
    DeepLabLargeFOVForSemanticSegmentation,
    LPGConfig,
    LPGImageProcessor,
    LPGModel,
    load_boxes,
    load_generator,
)
from lpg_hf.data.report import Report
from lpg_hf.data.sources import open_source
from lpg_hf.devices import resolve_dtype
from lpg_hf.evaluation.compare import peak_memory_mb
from lpg_hf.generators.base import BoxedImage
from lpg_hf.generators.class_probs import ImageProbs, SegmenterProbs
from lpg_hf.generators.lpg import LPGGenerator
from lpg_hf.masks.assembly import AssemblyOptions, assemble, by_position
from lpg_hf.masks.writer import MaskSettings, write_masks
from lpg_hf.training import steps
from lpg_hf.training.config import LPGSettings, RunSettings, SegmenterSettings, Settings


Numbers = dict[str, float]
CLASSES = 20
TINY_HOURGLASS = {"embedding_size": 8, "hidden_sizes": (8, 8), "depths": (1, 1), "neck_size": 8, "head_size": 8}
TINY_LARGEFOV = {"hidden_sizes": (8, 8, 8, 8, 8), "fc_size": 8}


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        rounds: turns of what is compared, see `_turns`.
        image_side: longer side in pixels of the images that get masks.
        images: of them.
        crop: side of the E-step's crops of whole images; `crops` are in a step.
        view: side of box views in training; `views` are in a step.
        segmenter_crop: side of the M-step's crops, 8n + 1; `segmenter_crops` are in a step.
        boxes: images with one box each, JPEG to PNG.
        samples: of the E-step that are loaded.
        indexed: images of a COCO file with five boxes each, which is opened whole and a tenth of it.
        shared: images with one box each that several processes share.
        tiny: small networks, for the tests.
    """

    rounds: int = 4
    image_side: int = 500
    images: int = 2
    crop: int = 256
    crops: int = 8
    view: int = 192
    views: int = 16
    segmenter_crop: int = 193
    segmenter_crops: int = 8
    boxes: int = 100
    samples: int = 100
    indexed: int = 200_000
    shared: int = 400
    tiny: bool = False


QUICK = Sizes(rounds=1, images=1, segmenter_crops=4, boxes=16, samples=20, indexed=20_000, shared=40)


def _module(*names: str) -> Any:
    """The first module that the measured checkout has; its names have changed over time."""
    for name in names:
        if importlib.util.find_spec(name) is not None:
            return importlib.import_module(name)
    raise ImportError(f"none of {', '.join(names)} exists")


samples = _module("lpg_hf.training._samples", "lpg_hf.training.samples")
optim = _module("lpg_hf.training._optim", "lpg_hf.training.optim")


def _hourglass(sizes: Sizes) -> LPGModel:
    torch.manual_seed(0)
    return LPGModel(LPGConfig(**(TINY_HOURGLASS if sizes.tiny else {})))


def _largefov(sizes: Sizes) -> DeepLabLargeFOVForSemanticSegmentation:
    torch.manual_seed(0)
    config = DeepLabLargeFOVConfig(num_labels=CLASSES + 1, **(TINY_LARGEFOV if sizes.tiny else {}))
    return DeepLabLargeFOVForSemanticSegmentation(config)


def _turns(compared: dict[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """CPU seconds of each in every round, in which they take turns, and what each returned at the end.

    Of several rounds the first is not counted: kernels are compiled in it.
    """
    seconds: dict[str, list[float]] = {name: [] for name in compared}
    results: dict[str, Any] = {}
    for _ in range(rounds):
        for name, call in compared.items():
            start = time.process_time()
            results[name] = call()
            seconds[name].append(time.process_time() - start)
    return {name: taken[1:] or taken for name, taken in seconds.items()}, results


def _ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> float:
    return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast]))


def _autocast(precision: str) -> Any:
    """The numbers of a run's `mixed_precision`: float32, or bfloat16 where "auto" takes it."""
    if precision == "auto" and resolve_dtype("auto", "cpu") == torch.bfloat16:
        return torch.autocast("cpu", torch.bfloat16)
    return nullcontext()


def _work(
    compared: dict[str, Callable[[], Any]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, Any], Numbers]:
    """As `_turns`, and the operations of each call, in 10^9."""
    counted: Numbers = {}

    def counting(name: str, call: Callable[[], Any]) -> Any:
        with FlopCounterMode(display=False) as counter:
            result = call()
        counted[name] = counter.get_total_flops() / 1e9
        return result

    seconds, results = _turns({name: partial(counting, name, call) for name, call in compared.items()}, rounds)
    return seconds, results, counted


def _rates(row: str, seconds: dict[str, list[float]], operations: Numbers) -> Numbers:
    """GFLOP/s of each, and how many times ours the operations of the official loop are."""
    rates = {f"{row} {name} GFLOP/s": operations[name] / statistics.median(seconds[name]) for name in operations}
    return rates | {f"{row} operations": operations["official"] / operations["auto"]}


def _boxed_images(sizes: Sizes) -> list[BoxedImage]:
    """Images of noise with five boxes of two classes."""
    rng, made = np.random.default_rng(0), []
    height, width = sizes.image_side * 3 // 4, sizes.image_side
    for _ in range(sizes.images):
        corners = rng.integers(0, [width // 2, height // 2], (5, 2))
        extents = rng.integers([width // 8, height // 8], [width // 2, height // 2], (5, 2))
        boxes = np.concatenate([corners, corners + extents], axis=1).astype(np.float32)
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        made.append(BoxedImage(image, boxes, np.array([3, 3, 7, 7, 7])))
    return made


def masks(sizes: Sizes) -> Numbers:
    """Pseudo masks of the hourglass and LargeFOV, against the official loop on the same weights."""
    from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

    images, lpg, segmenter = _boxed_images(sizes), _hourglass(sizes).eval(), _largefov(sizes).eval()
    side = -(-sizes.image_side // 128) * 128
    processor = LPGImageProcessor(view_min_size=side, align_corners=True)
    of_segmenter = SegformerImageProcessorPil(do_resize=False)
    normalizations = [(p.image_mean, p.image_std) for p in (processor, of_segmenter)]
    options = AssemblyOptions(overlap_rule="first", clean=False)

    def official() -> list[np.ndarray]:
        return [
            official_loops.label_map(lpg, segmenter, i.image, i.boxes, i.labels, normalizations, side) for i in images
        ]

    def ours(generator: LPGGenerator) -> list[np.ndarray]:
        patches = by_position(generator.patches(images, "class"), len(images))
        return [assemble(image, own, "class", options).label_map for image, own in zip(images, patches)]

    compared: dict[str, Callable[[], Any]] = {"official": official}
    for name in ("float32", "auto"):
        dtype = resolve_dtype(name, "cpu")
        frozen = SegmenterProbs(_largefov(sizes).to(dtype), of_segmenter)
        generator = LPGGenerator(lpg, processor, frozen, dtype=dtype)
        compared[name] = lambda generator=generator: ours(generator)
    seconds, made, operations = _work(compared, sizes.rounds)
    numbers = _rates("masks", seconds, operations)
    for name in ("float32", "auto"):
        numbers[f"masks {name}"] = _ratio(seconds, "official", name)
        equal = [(a == b).mean() for a, b in zip(made["official"], made[name])]
        numbers[f"masks equal {name}"] = float(np.mean(equal))
    return numbers


@contextmanager
def _coco(number: int, size: tuple[int, int] = (480, 640)) -> Iterator[Any]:
    """The rows of a COCO set with masks, of `number` JPEG images."""
    from PIL import Image

    rng, images, annotations = np.random.default_rng(0), [], []
    height, width = size
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for i in range(number):
            coarse = rng.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
            smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
            noisy = (smooth.astype(int) + rng.integers(-12, 12, smooth.shape)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(Path(folder, f"{i}.jpg"), quality=90)
            images.append({"id": i, "file_name": f"{i}.jpg", "width": width, "height": height})
            for _ in range(4):
                w, h = rng.uniform(0.1, 0.5, 2) * (width, height)
                x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
                angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
                outline = np.stack([x + w / 2 * (1 + np.cos(angles)), y + h / 2 * (1 + np.sin(angles))], axis=1)
                common = {"id": len(annotations), "image_id": i, "category_id": 1 + len(annotations) % 3, "iscrowd": 0}
                annotations.append(common | {"bbox": [x, y, w, h], "segmentation": [outline.ravel().tolist()]})
        categories = [{"id": i, "name": f"class {i}"} for i in (1, 2, 3)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        path = Path(folder, "boxes.json")
        path.write_text(json.dumps(content))
        yield load_boxes("coco", root=folder, annotations=path, images=folder, masks=True, cache_dir=f"{folder}/cache")


def _class_probs(index: int, label: int) -> np.ndarray:
    """As a run's cached class probabilities, of 640 x 480 pixels at a stride of 8."""
    stored = np.random.default_rng([index, label]).integers(0, 255, (61, 81), dtype=np.uint8)
    first = 0.5 - 0.5 / 8
    return ImageProbs({label: stored}, (first, first, first + 80, first + 60), (480, 640))[label]


def _lpg_samples(rows: Any, sizes: Sizes, with_prob: bool, **fields: Any) -> Any:
    settings = Settings(
        run=RunSettings(num_stages=1),
        lpg=LPGSettings(stage1_class_prob=with_prob, crop_size=sizes.crop, **fields),
        segmenter=SegmenterSettings(),
    )
    processor = LPGImageProcessor(**settings.lpg.processor)
    return samples.LPGViews(rows, processor, settings, "speed", _class_probs if with_prob else None)


def _step(model: Any, optimizer: Any, batch: dict, loss_of: Any, precision: str) -> None:
    """One step of a training, without its log and checkpoints."""
    inputs = {k: steps._to_device(v, torch.device("cpu")) for k, v in batch.items() if k != "names"}
    with _autocast(precision):
        loss = loss_of(model, inputs)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def e_step(sizes: Sizes) -> Numbers:
    """The E-step of the hourglass, with data loading, against the official step, without."""
    with _coco(4 if sizes.tiny else 16) as rows:
        data = _lpg_samples(rows, sizes, True)
        shares = samples.StepBatches([[sizes.crops]], 0, 0, 2 * sizes.rounds + 1)
        loader = iter(samples.step_loader(data, shares, 0, False))
        segmenter, theirs = _largefov(sizes).eval(), _hourglass(sizes).train()
        adam = torch.optim.Adam(theirs.parameters(), lr=1e-4, weight_decay=5e-4)
        fixed = next(iter(samples.step_loader(data, shares, 0, False)))

        def ours(precision: str) -> Callable[[], None]:
            model = _hourglass(sizes).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
            optimizer = optim.build_optimizer("adam", optim.lpg_groups(model, LPGSettings()))
            return lambda: _step(model, optimizer, next(loader), steps._lpg_loss, precision)

        compared = {
            "official": lambda: official_loops.e_step(theirs, segmenter, adam, fixed, 3),
            "float32": ours("no"),
            "auto": ours("auto"),
        }
        seconds, _, operations = _work(compared, sizes.rounds)
    numbers = {f"E-step {name}": _ratio(seconds, "official", name) for name in ("float32", "auto")}
    return numbers | _rates("E-step", seconds, operations)


def views(sizes: Sizes) -> Numbers:
    """LPG training on box views, and what share of the machine's fastest convolution it reaches."""
    torch.manual_seed(0)
    config = LPGConfig(backbone="squeezenet", use_class_prob=False)
    model = LPGModel(config).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = optim.build_optimizer("adamw", optim.lpg_groups(model, LPGSettings()))
    shape = (sizes.views, 3, sizes.view, sizes.view)
    batch = {
        "pixel_values": torch.randn(shape),
        "box_mask": torch.ones(sizes.views, 1, *shape[2:]),
        "labels": torch.randint(0, 2, (sizes.views, *shape[2:])),
    }
    with FlopCounterMode(display=False) as counter:
        _step(model, optimizer, batch, steps._lpg_loss, "no")
    training = counter.get_total_flops()
    compared: dict[str, Callable[[], Any]] = {"step": lambda: _step(model, optimizer, batch, steps._lpg_loss, "auto")}
    channels, convolved = 32 if sizes.tiny else 256, {}
    for dtype in {torch.float32, resolve_dtype("auto", "cpu")}:
        conv: Any = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False).requires_grad_(False)
        conv.to(dtype, memory_format=torch.channels_last)
        for count, side in ((4, 56), (16, 28), (64, 14)):
            maps = torch.randn(count, channels, side, side, dtype=dtype).to(memory_format=torch.channels_last)
            with FlopCounterMode(display=False) as counter:
                conv(maps)
            convolved[f"{side} {dtype}"] = counter.get_total_flops()
            compared[f"{side} {dtype}"] = lambda conv=conv, maps=maps: conv(maps)
    seconds, _ = _turns(compared, 4 + sizes.rounds)
    rate = training / statistics.median(seconds["step"]) / 1e9
    rates = {name: operations / statistics.median(seconds[name]) / 1e9 for name, operations in convolved.items()}
    fastest = max(rates.values())
    return _shares(compared["step"]) | {
        "views a second": sizes.views / statistics.median(seconds["step"]),
        "views GFLOP/s": rate,
        "convolution GFLOP/s": fastest,
        "convolution float32 GFLOP/s": max(value for name, value in rates.items() if name.endswith("float32")),
        "views share": rate / fastest,
    }


# What a training step spends its time on: name -> operations of torch, by what their names begin with.
_PARTS = {
    "convolutions": ("aten::convolution_backward", "aten::mkldnn_convolution"),
    "copies": ("aten::copy_", "aten::cat"),
    "norms": ("aten::native_batch_norm",),
    "pooling and upsampling": ("aten::max_pool2d", "aten::avg_pool2d", "aten::upsample"),
    "optimizer": ("Optimizer.step",),
}


def _shares(step: Callable[[], Any]) -> Numbers:
    """Shares of each of `_PARTS` of a step's time; the optimizer's has what it calls in it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        step()
    events = profiled.key_averages()
    whole, numbers = sum(event.self_cpu_time_total for event in events), {}
    for part, names in _PARTS.items():
        found = [event for event in events if event.key.startswith(names)]
        times = [e.cpu_time_total if part == "optimizer" else e.self_cpu_time_total for e in found]
        numbers[f"views {part}"] = sum(times) / whole
    return numbers


def compiled(sizes: Sizes) -> Numbers:
    """What `torch.compile` gains in LPG training and in inference on box views, and its wait before the first step."""
    with tempfile.TemporaryDirectory() as cache:  # the wait is that of the first run on a machine
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        return _compiled(sizes)


def _compiled(sizes: Sizes) -> Numbers:
    shape = (sizes.views, 3, sizes.view, sizes.view)
    batch = {"pixel_values": torch.randn(shape), "box_mask": torch.ones(sizes.views, 1, *shape[2:])}
    labels = torch.randint(0, 2, (sizes.views, *shape[2:]))
    config, numbers = LPGConfig(backbone="squeezenet", use_class_prob=False), {}

    def training(network: Any) -> Callable[[], None]:
        optimizer = optim.build_optimizer("adamw", optim.lpg_groups(network, LPGSettings()))
        return lambda: _step(network, optimizer, batch | {"labels": labels}, steps._lpg_loss, "auto")

    def inference(network: Any) -> Callable[[], None]:
        def call() -> None:
            with torch.inference_mode(), _autocast("auto"):
                network(**batch)

        return call

    for name, use in (("training", training), ("inference", inference)):
        calls: dict[str, Callable[[], None]] = {}
        for side in ("plain", "compiled"):
            torch.manual_seed(0)
            network: Any = LPGModel(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            network.train(name == "training")
            if side == "compiled":
                network.compile(backend="eager" if sizes.tiny else "inductor")
            calls[side] = use(network)
        begun = time.perf_counter()
        calls["compiled"]()
        numbers[f"compiled {name} wait"] = time.perf_counter() - begun
        seconds, _ = _turns(calls, 2 + 2 * sizes.rounds)
        numbers[f"compiled {name}"] = _ratio(seconds, "plain", "compiled")
    return numbers


def _own_context(model: torch.nn.Module) -> Any:
    """What a training does to a network that it trains on a CPU."""
    earlier = getattr(steps, "depthwise_in_float32", None)  # in another checkout
    if earlier is not None:
        return earlier(model)
    return steps.fast_depthwise(model, autocast=True) if hasattr(steps, "fast_depthwise") else nullcontext()


def m_step(sizes: Sizes) -> Numbers:
    """Segmenter training, without data loading, against a plain loop over the same network."""
    from transformers import MobileNetV2Config, MobileNetV2ForSemanticSegmentation

    def mobilenet() -> Any:
        torch.manual_seed(0)
        size = {"depth_multiplier": 0.35} if sizes.tiny else {}
        return MobileNetV2ForSemanticSegmentation(
            MobileNetV2Config(num_labels=CLASSES + 1, output_stride=16, **size)  # type: ignore[call-arg]
        )

    shape = (sizes.segmenter_crops, 3, sizes.segmenter_crop, sizes.segmenter_crop)
    batch = {"pixel_values": torch.randn(shape), "labels": torch.randint(0, CLASSES, (shape[0], *shape[2:]))}
    numbers: Numbers = {}
    for name, build in (("mobilenet", mobilenet), ("largefov", lambda: _largefov(sizes))):
        plain = build().train()
        sgd = torch.optim.SGD(plain.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)
        model = build().to(memory_format=torch.channels_last).train()
        settings = SegmenterSettings(learning_rate=1e-4)
        optimizer = optim.build_optimizer("sgd", optim.segmenter_groups(model, settings))

        def loss_of(model: Any, inputs: dict) -> torch.Tensor:
            return steps._segmenter_loss(model, inputs, None)

        compared: dict[str, Callable[[], Any]] = {"plain": lambda: official_loops.m_step(plain, sgd, batch)}
        compared["auto"] = lambda: _step(model, optimizer, batch, loss_of, "auto")
        with _own_context(model):
            seconds, _ = _turns(compared, 2 + sizes.rounds)
        numbers[f"M-step {name}"] = _ratio(seconds, "plain", "auto")
        numbers[f"M-step {name} a second"] = shape[0] / statistics.median(seconds["auto"])
    return numbers


def _environment(**more: str) -> dict[str, str]:
    """Of a process of one thread that imports the lpg_hf that is measured."""
    import lpg_hf

    return os.environ | {"PYTHONPATH": str(Path(lpg_hf.__file__).parents[1]), "OMP_NUM_THREADS": "1"} | more


def start(sizes: Sizes) -> Numbers:
    """`lpg-hf masks` as a command on five images, again in the same folder, and with a file that does not exist."""
    environment = _environment()

    def seconds(*arguments: str) -> float:
        """CPU seconds of a Python process and its children, by the system's own count."""
        before = os.times()
        # `python -m` would look into the current folder first.
        subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, cwd=name)
        after = os.times()
        return after.children_user - before.children_user + after.children_system - before.children_system

    taken: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder, 5, 0.4)
        for number in range(1 + sizes.rounds // 2):
            command = ["-m", "lpg_hf.cli", "masks", str(folder / "boxes.json"), "--out", f"{folder}/out{number}"]
            command += ["--model", "lpg-small"]
            measured = {
                "start masks": command,
                "start finished": command,
                "start refused": [*command[:3], str(folder / "absent.json"), *command[4:]],
                "start imports": ["-c", "import lpg_hf.generators.lpg, lpg_hf.masks.writer, lpg_hf.data.sources"],
                "start transformers": ["-c", "import torch; from transformers import PreTrainedModel"],
            }
            for what, arguments in measured.items():
                taken.setdefault(what, []).append(seconds(*arguments))
    numbers = {what: statistics.median(values) for what, values in taken.items()}
    return numbers | {"start imports ratio": numbers["start imports"] / numbers["start transformers"]}


def _idle() -> tuple[float, float]:
    """(idle, all) CPU seconds of the machine so far; (0, 0) where /proc does not tell."""
    try:
        fields = [float(v) for v in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    except OSError:
        return 0.0, 0.0
    return fields[3] + fields[4], sum(fields)


def boxes(sizes: Sizes) -> Numbers:
    """Masks from JPEG to PNG with lpg-small and with GrabCut, on all cores."""
    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as name:
        folder, number = Path(name), 0
        write_data(folder, sizes.boxes, 0.4)
        generators = {"lpg": load_generator("lpg", model="lpg-small"), "grabcut": load_generator("grabcut")}
        idle = {kind: [0.0, 0.0] for kind in generators}

        def write(kind: str) -> Callable[[], None]:
            def call() -> None:
                nonlocal number
                number, report = number + 1, Report()
                source, before = open_source(folder / "boxes.json", folder, report=report), _idle()
                out = folder / f"out{number}"
                write_masks(source, generators[kind], out, MaskSettings(generator=kind), report=report)
                idle[kind] = [have + now - then for have, now, then in zip(idle[kind], _idle(), before)]

            return call

        seconds, _ = _turns({kind: write(kind) for kind in generators}, sizes.rounds)
    shares = {kind: part / max(whole, 1e-9) for kind, (part, whole) in idle.items()}
    return {
        "boxes ratio": _ratio(seconds, "grabcut", "lpg"),
        "boxes lpg-small": 1000 * statistics.median(seconds["lpg"]) / sizes.boxes,
        "boxes grabcut": 1000 * statistics.median(seconds["grabcut"]) / sizes.boxes,
        "boxes idle": shares["lpg"],
    }


def loading(sizes: Sizes) -> Numbers:
    """CPU milliseconds to load a sample of the E-step at 640 x 480."""
    kinds = {
        "image view": ({}, True),
        "box view": ({"processor": {"view": "box", "view_size": sizes.view}}, True),
        "box view, jitter": (
            {"processor": {"view": "box", "view_size": sizes.view}, "color_jitter": 0.3, "low_detail": 0.2},
            False,
        ),
    }
    with _coco(4 if sizes.tiny else 40) as rows:
        data = {kind: _lpg_samples(rows, sizes, prob, **fields) for kind, (fields, prob) in kinds.items()}

        def load(kind: str) -> Callable[[], list]:
            return lambda: [data[kind][position] for position in range(sizes.samples)]

        seconds, _ = _turns({kind: load(kind) for kind in data}, 2 + sizes.rounds)
    return {f"loading {kind}": 1000 * statistics.median(taken) / sizes.samples for kind, taken in seconds.items()}


def index(sizes: Sizes) -> Numbers:
    """A COCO file of many images with five boxes each: opened, every record made, and a label map of each image."""
    numbers: Numbers = {}
    with tempfile.TemporaryDirectory() as name:
        for label, count in (("a tenth", sizes.indexed // 10), ("all", sizes.indexed)):
            path = Path(name, f"{count}.json")
            _write_many(path, count)
            begun, memory = time.process_time(), peak_memory_mb() or float("nan")
            report = Report()
            source = open_source(path, name, report=report)
            opened = time.process_time()
            num_boxes = sum(len(r.objects) for i in range(len(source)) if (r := source.record(i, report)) is not None)
            if num_boxes != 5 * count:
                raise RuntimeError(f"{num_boxes} boxes were read of {5 * count}: {report.summary()}")
            numbers[f"index open {label}"] = 1e6 * (opened - begun) / count
            read = time.process_time()
            numbers[f"index records {label}"] = 1e6 * (read - opened) / count
            numbers[f"index memory {label}"] = 1000 * ((peak_memory_mb() or float("nan")) - memory) / count
            out = Path(name, f"masks{count}")
            write_masks(source, load_generator("box"), out, MaskSettings(generator="box"), report=Report())
            numbers[f"index masks {label}"] = 1e6 * (time.process_time() - read) / count
            numbers[f"index masks memory {label}"] = peak_memory_mb() or float("nan")
            shutil.rmtree(out)
            del source
    return numbers | {"index images": sizes.indexed}


def _write_many(path: Path, count: int) -> None:
    """A COCO file of `count` images of 640 x 480, which are links to one small file, or to few: links have a limit."""
    from PIL import Image

    one = io.BytesIO()
    Image.new("RGB", (640, 480)).save(one, "jpeg", quality=5)
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"categories": [{"id": 1, "name": "thing"}], "images": [')
        for i in range(count):
            image = path.parent / f"{i}.jpg"
            if not image.exists():
                first = path.parent / f"{i // 10_000 * 10_000}.jpg"
                image.write_bytes(one.getvalue()) if image == first else os.link(first, image)
            entry = {"id": i, "file_name": image.name, "width": 640, "height": 480}
            file.write(("," if i else "") + json.dumps(entry))
        file.write('], "annotations": [')
        for i in range(5 * count):
            entry = {"id": i, "image_id": i // 5, "category_id": 1, "bbox": [i % 500, i % 300, 50.5, 60.25]}
            file.write(("," if i else "") + json.dumps(entry))
        file.write("]}")


def processes(sizes: Sizes) -> Numbers:
    """Images a second of `lpg-hf masks` with lpg-small, with its start, in processes of one thread that share OUT."""
    numbers: Numbers = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder, sizes.shared, 0.4)
        command = [sys.executable, "-m", "lpg_hf.cli", "masks", str(folder / "boxes.json"), "--images", name]
        command += ["--model", "lpg-small", "--num-workers", "1", "--out"]
        for count in (1, 2):
            begun = time.perf_counter()
            started = [
                subprocess.Popen(
                    [*command, str(folder / f"out{count}")],
                    env=_environment(RANK=str(rank), WORLD_SIZE=str(count)),
                    cwd=name,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
                for rank in range(count)
            ]
            if any([process.wait() for process in started]):
                raise RuntimeError(f"masks in {count} processes failed")
            numbers[f"processes {count}"] = sizes.shared / (time.perf_counter() - begun)
    return numbers


ROWS = {row.__name__: row for row in (masks, e_step, views, compiled, m_step, start, boxes, loading, index, processes)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", choices=ROWS)
    parser.add_argument("--quick", action="store_true", help="fewer images and rounds")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(ROWS[arguments.row](QUICK if arguments.quick else Sizes())))


if __name__ == "__main__":
    main()
