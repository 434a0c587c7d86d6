"""A salient-object network of the U2-Net family, as an ONNX file, on the crop of every box.

The network sees no boxes: whatever stands out in a crop is taken as the object. A class-agnostic peer to compare with.
"""

import hashlib
import math
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from lpg_hf._files import read_bytes
from lpg_hf._threads import asked_threads
from lpg_hf.boxes import box_slices
from lpg_hf.generators.base import BoxedImage, MaskGenerator, Patch


MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)  # ImageNet, RGB
STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)
DEFAULT_SIZE = 320  # pixels; what U2-Net was trained with
_LARGEST_SIDE = 2048
_MOST_PIXELS = 2**23  # of all crops of a batch; 81 of 320 x 320


class SaliencyGenerator(MaskGenerator):
    """U2-Net, U2-Net-P or another network with their input and output; it runs on the CPU.

    A crop is stretched to the network's size, divided by its largest value, and normalised with ImageNet's mean and
    standard deviation. The first output is the map; it is stretched to [0, 1] over the crop and cut to the box. Where
    hardly a pixel is left, the box is the mask, as with GrabCut and the dense CRF.

    Args:
        file: ONNX model with one input (B, 3, H, W) float32 and a first output (B, 1, H, W). H and W are those of the
            model if it fixes them, up to 2,048, else 320.
        batch_size: boxes per forward pass if the model leaves B free, but no more than 2^23 pixels; otherwise each box
            has its own pass.
        context: margin of the crop on each side of the box, as a share of the box's longer side: an object that fills
            its crop does not stand out.
        min_fill: a mask that fills less than this share of its box is replaced by the box. The scores of U2-Net-P with
            these two defaults are in results/TABLES.md.

    Raises:
        ImportError: onnxruntime is not installed.
        OSError: the file does not exist or cannot be read.
        ValueError: it is not an ONNX model, has another input, or nodes that loop (seen if the package onnx is there);
            or an argument is out of its range.

    Source: Qin et al., U2-Net (Pattern Recognition 2020), and the inference of its published code.
    """

    def __init__(
        self, file: str | os.PathLike, batch_size: int = 16, *, context: float = 0.1, min_fill: float = 0.25
    ) -> None:
        if batch_size < 1 or context < 0 or not 0 <= min_fill < 1:
            raise ValueError(
                f"a salient-object network needs batch_size >= 1, context >= 0 and 0 <= min_fill < 1, but got "
                f"batch_size={batch_size}, context={context}, min_fill={min_fill}."
            )
        try:
            import onnxruntime  # pyright: ignore[reportMissingImports]  (an extra)
        except ImportError as error:
            raise ImportError(
                f"the generator saliency needs {error.name}, which is not installed: pip install 'lpg_hf[onnx]'."
            ) from None
        content = read_bytes(file)
        _refuse_loops(file, content)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = _num_threads()
        try:
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            inputs = [(item.name, item.type, item.shape) for item in self.session.get_inputs()]
        except Exception as error:  # onnxruntime's errors have no class of their own in common
            raise ValueError(f"{file} is not an ONNX model that can run here: {str(error).splitlines()[0]}") from error
        self._input, number_type, shape = inputs[0] if len(inputs) == 1 else ("", "", [])
        takes_images = len(shape) == 4 and shape[1] == 3 and number_type == "tensor(float)"
        sides = [side for side in shape[2:] if isinstance(side, int)]
        if (
            not takes_images
            or (isinstance(shape[0], int) and shape[0] != 1)
            or not all(0 < s <= _LARGEST_SIDE for s in sides)
        ):
            raise ValueError(
                f"{file} takes {', '.join(f'{name} {kind} {shape}' for name, kind, shape in inputs)}, but a "
                "salient-object network takes one image, (B, 3, H, W) floats with B free or 1 and sides up to "
                f"{_LARGEST_SIDE}."
            )
        self.size = tuple(side if isinstance(side, int) else DEFAULT_SIZE for side in shape[2:])
        self.batch_size = 1 if shape[0] == 1 else min(batch_size, _MOST_PIXELS // math.prod(self.size))
        self._file, self.context = Path(file), context
        self.min_fill = min_fill
        self.weights_sha256 = hashlib.sha256(content).hexdigest()
        self._one_at_a_time = threading.Lock()

    def patches(self, images: Sequence[BoxedImage], per: str) -> Iterator[tuple[int, Patch]]:
        """See `MaskGenerator.patches`; one patch per box in both cases."""
        boxes = ((position, index) for position, image in enumerate(images) for index in range(len(image.boxes)))
        while chunk := list(islice(boxes, self.batch_size)):
            windows = [self._window(images[position], index) for position, index in chunk]
            maps = self._maps([images[position].image[window] for (position, _), window in zip(chunk, windows)])
            for (position, index), window, saliency in zip(chunk, windows, maps):
                image = images[position]
                rows, columns = box_slices(image.boxes[index], *image.image.shape[:2])
                foreground = saliency[_shifted(rows, window[0].start), _shifted(columns, window[1].start)]
                if (foreground > 0.5).mean() < max(self.min_fill, 1 / foreground.size):
                    foreground = np.ones_like(foreground)
                yield position, Patch(int(image.labels[index]), (index,), rows, columns, foreground)

    def _window(self, image: BoxedImage, index: int) -> tuple[slice, slice]:
        """The rows and columns of a box's crop, inside the image."""
        sides = image.image.shape[:2]
        box = box_slices(image.boxes[index], *sides)
        margin = math.ceil(self.context * max(side.stop - side.start for side in box))
        rows, columns = (slice(max(b.start - margin, 0), min(b.stop + margin, side)) for b, side in zip(box, sides))
        return rows, columns

    def _maps(self, crops: list[np.ndarray]) -> list[np.ndarray]:
        """The map of each crop at the crop's size, float32 in [0, 1]."""
        pixels = np.stack([self._normalised(crop) for crop in crops]).transpose(0, 3, 1, 2)
        inputs = {self._input: np.ascontiguousarray(pixels)}
        try:
            with self._one_at_a_time:  # a pass uses all cores
                maps = self.session.run([item.name for item in self.session.get_outputs()[:1]], inputs)[0]
        except Exception as error:  # onnxruntime's errors have no class of their own in common
            raise ValueError(f"{self._file} cannot run on an image: {str(error).splitlines()[0]}") from error
        if not isinstance(maps, np.ndarray) or maps.ndim != 4 or len(maps) != len(crops) or not maps[:, :1].size:
            raise ValueError(
                f"{self._file} returns {np.shape(maps)}, but a salient-object network returns (B, 1, H, W) maps first."
            )
        maps = maps[:, 0].astype(np.float32)  # (B, H, W)
        return [_resize(_stretched(saliency), *crop.shape[:2]) for saliency, crop in zip(maps, crops)]

    def _normalised(self, crop: np.ndarray) -> np.ndarray:
        """(H, W, 3) float32 as the network was trained with."""
        resized = np.asarray(_resize(crop, *self.size), dtype=np.float32)
        return (resized / max(resized.max(), 1) - MEAN) / STD


def _refuse_loops(file: str | os.PathLike, content: bytes) -> None:
    """Refuses nodes that may run for ever, as far as onnx is installed (onnxruntime does not show them).

    Raises:
        ValueError: there are some; names the file.
    """
    try:
        import onnx  # pyright: ignore[reportMissingImports]  (an extra)
        from google.protobuf.message import DecodeError  # pyright: ignore[reportMissingModuleSource]
    except ImportError:
        return
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError:  # onnxruntime says what is wrong with it
        return
    waiting = [model.graph, *model.functions]
    while waiting:
        for node in waiting.pop().node:
            if node.op_type in ("Loop", "Scan"):
                raise ValueError(
                    f"{file} has a node {node.op_type}, which may run for ever and no salient-object network needs. "
                    "Export the model without it."
                )
            for attribute in node.attribute:
                waiting += [attribute.g, *attribute.graphs]


def _stretched(saliency: np.ndarray) -> np.ndarray:
    """Stretched from its range to [0, 1]; 0 if all values are equal."""
    low, high = saliency.min(), saliency.max()
    return (saliency - low) / (high - low) if high > low else np.zeros_like(saliency)


def _resize(array: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, over all pixels when it shrinks; uint8 RGB or float32 with one channel."""
    return np.asarray(Image.fromarray(array).resize((width, height), Image.Resampling.BILINEAR))


def _shifted(side: slice, start: int) -> slice:
    return slice(side.start - start, side.stop - start)


def _num_threads() -> int:
    """torch's CPU threads or OMP_NUM_THREADS, as with the other generators; 0 (one per core) if neither is set."""
    torch = sys.modules.get("torch")
    return asked_threads() or 0 if torch is None else torch.get_num_threads()
