"""A generator or a segmenter as one ONNX model, for any batch and image size, compared with PyTorch.

Inputs are those of the PyTorch model: `pixel_values` (B, 3, H, W) and, for an LPG, `box_mask` (B, 1, H, W) and perhaps
`class_prob` (B, 1, H, W), all float32, made by the image processor. The output is `logits`; padding to the network's
stride and cutting back are part of the graph.

The graph is traced (`dynamo=False`). Measured with torch 2.13 on every family here and on five of transformers: traced
graphs keep batch and size free and equal PyTorch for our families and SegFormer. `dynamo=True` is equal for the same
ones and frees no further one, takes 4 to 50 times as long (25 s for a tiny hourglass), and needs onnxscript.
"""

import contextlib
import copy
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lpg_hf._files import check_replaceable, unfinished_folder
from lpg_hf.generators.bundle import named_stage
from lpg_hf.hub import fetch_stage
from lpg_hf.hub.loading import load_network
from lpg_hf.models.modeling_lpg import LPGModel


OPSETS = range(13, 21)  # of the tracing exporter
TOLERANCE = 1e-4
TRACED = (2, 130, 97)  # batch, height, width; no multiple of any stride
CHECKED = ((1, 256, 256), (1, 333, 217), (3, 95, 130))


class _Logits(nn.Module):
    """Positional tensors in, logits out."""

    def __init__(self, model: PreTrainedModel, names: Sequence[str]):
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(**dict(zip(self.names, inputs)), return_dict=True).logits


def export_onnx(
    model: str | os.PathLike | PreTrainedModel,
    out: str | os.PathLike,
    *,
    opset: int = 17,
    size: tuple[int, int] | None = None,
    check: bool = True,
) -> dict[tuple[int, int, int], float]:
    """Write a model as an ONNX file, which appears complete and checked or not at all.

    Args:
        model: an LPG or any `AutoModelForSemanticSegmentation`: a folder, a Hub id, or the model itself (not changed).
        out: the .onnx file.
        opset: ONNX operator set, 13 to 20.
        size: (height, width) of all images, for a model that cannot have free sizes. None: any size.
        check: run the file through onnxruntime at several batch and image sizes and compare it with PyTorch.

    Returns:
        (batch, height, width) -> largest difference of the logits from PyTorch's, in units of max(1, largest logit);
        empty without `check`. Sizes that the PyTorch model itself refuses are skipped.

    Raises:
        ImportError: the extra `onnx` is not installed.
        ValueError: the model cannot be exported; or the file differs from PyTorch by over 1e-4, or fails at a size.
    """
    try:
        import onnx  # pyright: ignore[reportMissingImports]  the extra [onnx]

        if check:
            import onnxruntime  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            f"ONNX export needs {error.name}, which is not installed: pip install 'lpg_hf[onnx]'."
        ) from None
    out = Path(out)
    if out.suffix != ".onnx":
        raise ValueError(f"{out} has the type {out.suffix!r}; an ONNX file ends in .onnx.")
    check_replaceable(out)
    if opset not in OPSETS:
        raise ValueError(f"opset={opset} is not supported; use {OPSETS[0]} to {OPSETS[-1]}.")
    title = type(model).__name__ if isinstance(model, PreTrainedModel) else str(model)
    loaded = (
        copy.deepcopy(model) if isinstance(model, PreTrainedModel) else load_network(fetch_stage(named_stage(model)))
    )
    names = ["pixel_values"]
    if isinstance(loaded, LPGModel):
        names += ["box_mask", "class_prob"] if loaded.config.use_class_prob else ["box_mask"]
    network = _Logits(loaded, names).to("cpu", torch.float32).eval()

    with unfinished_folder(out) as work:
        file = work / out.name
        _trace(network, file, opset, size, title)
        onnx.checker.check_model(str(file))
        sizes = list(dict.fromkeys((batch, *(size or (height, width))) for batch, height, width in CHECKED))
        differences = _differences(network, file, sizes, title, free=size is None) if check else {}
        os.replace(file, out)
    return differences


def _inputs(names: Sequence[str], batch: int, height: int, width: int, num_channels: int) -> tuple[Tensor, ...]:
    """Random images, a box in each, random probabilities."""
    generator = torch.Generator().manual_seed(batch + height + width)
    box_mask = torch.zeros(batch, 1, height, width)
    box_mask[:, :, height // 5 : height // 2, width // 4 : width - width // 5] = 1
    inputs = {
        "pixel_values": torch.randn(batch, num_channels, height, width, generator=generator),
        "box_mask": box_mask,
        "class_prob": torch.rand(batch, 1, height, width, generator=generator),
    }
    return tuple(inputs[name] for name in names)


def _num_channels(network: _Logits) -> int:
    return getattr(network.model.config, "num_channels", 3) or 3


def _trace(network: _Logits, file: Path, opset: int, size: tuple[int, int] | None, title: str) -> None:
    batch, height, width = TRACED
    axes = {0: "batch"} if size else {0: "batch", 2: "height", 3: "width"}
    logits_axes = {0: "batch"} if size else {0: "batch", 2: "logits_height", 3: "logits_width"}
    try:
        # The exporter warns of itself and of every comparison of sizes.
        with _without_standard_output(), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network,
                _inputs(network.names, batch, *(size or (height, width)), _num_channels(network)),
                str(file),
                dynamo=False,
                opset_version=opset,
                input_names=network.names,
                output_names=["logits"],
                dynamic_axes={**{name: axes for name in network.names}, "logits": logits_axes},
            )
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        remedy = "Give a fixed size (size=, --size) that it accepts." if size is None else "Try another opset or size."
        raise ValueError(f"{title} cannot be exported ({type(error).__name__}: {reason}). {remedy}") from None


@contextlib.contextmanager
def _without_standard_output() -> Iterator[None]:
    """Drops what C++ prints where the exporter fails: a graph of thousands of lines, also with `verbose=False`."""
    sys.stdout.flush()
    saved, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(nowhere)


@torch.no_grad()
def _differences(
    network: _Logits, file: Path, sizes: Sequence[tuple[int, int, int]], title: str, free: bool
) -> dict[tuple[int, int, int], float]:
    import onnxruntime  # pyright: ignore[reportMissingImports]  the extra [onnx]

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its errors are raised as well
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    remedy = "Export it for one size of images (size=, --size)." if free else "Nothing was written."
    differences: dict[tuple[int, int, int], float] = {}
    for batch, height, width in sizes:
        inputs = _inputs(network.names, batch, height, width, _num_channels(network))
        try:
            expected = network(*inputs)
        except (RuntimeError, ValueError):  # not a size of this model
            continue
        where = f"{title} as ONNX, batch {batch} of {height}x{width} pixels"
        try:
            logits = torch.from_numpy(session.run(None, dict(zip(network.names, (x.numpy() for x in inputs))))[0])
        except Exception as error:  # onnxruntime's own classes derive from Exception alone
            reason = str(error).split("\n")[0][:160]
            raise ValueError(f"{where}: onnxruntime fails ({reason}). {remedy}") from None
        if logits.shape != expected.shape:
            raise ValueError(f"{where}: logits {tuple(logits.shape)}, PyTorch's are {tuple(expected.shape)}. {remedy}")
        difference = ((logits - expected).abs().max() / expected.abs().max().clamp(min=1)).item()
        if not difference <= TOLERANCE:  # also NaN
            raise ValueError(
                f"{where}: logits differ from PyTorch's by {difference:.2g} (allowed {TOLERANCE}). {remedy}"
            )
        differences[batch, height, width] = difference
    if not differences:
        raise ValueError(
            f"{title} accepts none of the sizes {', '.join(map(str, sizes))}. Export it for one size (--size)."
        )
    return differences


__all__ = ["export_onnx"]
