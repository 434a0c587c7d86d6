"""The learned generator (Sec. III-B), with the view of its image processor: whole images, or a window per box."""

import copy
import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lpg_hf._weight_files import reading_weights
from lpg_hf.generators.base import BoxedImage, GeneratorOptions, MaskGenerator, Patch, weights_digest
from lpg_hf.generators.bundle import bundled, named_stage
from lpg_hf.generators.class_probs import SegmenterProbs
from lpg_hf.hub import fetch_stage
from lpg_hf.hub.loading import load_network
from lpg_hf.models.image_processing_lpg import LPGImageProcessor, stack_views
from lpg_hf.models.modeling_lpg import LPGModel
from lpg_hf.models.views_lpg import View


class LPGGenerator(MaskGenerator):
    """An LPG with its image processor and, if it uses the class probability, a segmenter.

    A model with `config.class_prob_optional` works with and without a segmenter.

    Args:
        model: is copied for inference, and not changed.
        processor: decides the view.
        segmenter: gives the class probability of images that come without one.
        batch_size: views per forward pass.
        flip: each view is also seen mirrored, and the two foregrounds are averaged: better masks in twice the time.
        device: where the copy runs.
        dtype: of the copy; None: the model's.

    Raises:
        ValueError: a segmenter for a model without class probability, or a `batch_size` below 1.
    """

    def __init__(
        self,
        model: LPGModel,
        processor: LPGImageProcessor,
        segmenter: SegmenterProbs | None = None,
        *,
        batch_size: int = 16,
        flip: bool = False,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, but a pass takes at least one view.")
        if segmenter is not None and not model.config.use_class_prob:
            raise ValueError("this LPG takes no class probability (config.use_class_prob=False): pass no segmenter.")
        self.network = _inference_copy(model)
        nn.Module.to(self.network, device=device, dtype=dtype or model.dtype)
        self.processor, self.segmenter, self.batch_size, self.flip = processor, segmenter, batch_size, flip
        self._one_at_a_time = threading.Lock()

    @classmethod
    def from_pretrained(cls, options: GeneratorOptions) -> "LPGGenerator":
        """The stage `options.model`, or the bundled one.

        Raises:
            OSError: a folder or Hub id that does not exist.
            ValueError: the model is not an LPG, its weights cannot be read, or the device does not exist.
        """
        device, dtype = options.placement()
        source = bundled() if options.model is None else named_stage(options.model)
        folder = fetch_stage(source, options.revision, kind="lpg")
        with reading_weights(folder):
            network = cast(LPGModel, load_network(folder))
            processor = LPGImageProcessor.from_pretrained(folder)
        segmenter = None
        if options.segmenter is not None:
            segmenter = SegmenterProbs.from_pretrained(options.segmenter, options.class_names, device, dtype)
        return cls(
            network,
            processor,
            segmenter,
            batch_size=options.batch_size,
            flip=options.flip,
            device=device,
            dtype=dtype,
        )

    def patches(self, images: Sequence[BoxedImage], per: str) -> Iterator[tuple[int, Patch]]:
        """See `MaskGenerator.patches`. Per class, a whole-image view holds all boxes of its class; else a view is a
        box.

        Raises:
            ValueError: the model requires the class probability, and there is neither one nor a segmenter.
        """
        images = self._with_class_probs(images)
        views = self._views(images, per)
        while chunk := list(islice(views, self.batch_size)):
            passes = [chunk]
            if self.flip:
                passes.append([(position, members, replace(view, flip=True)) for position, members, view in chunk])
            logits = [self._forward(self._encode(images, views_of_pass)) for views_of_pass in passes]
            for i, (position, members, view) in enumerate(chunk):
                image = images[position].image
                height, width = image.shape[:2]
                decoded = [
                    self.processor.decode_view(pass_logits[i], pass_views[i][2], height, width, image)
                    for pass_logits, pass_views in zip(logits, passes)
                ]
                rows, columns, foreground = decoded[0]
                if self.flip:
                    foreground = (foreground + decoded[1][2]) / 2
                yield position, Patch(view.label, members, rows, columns, foreground)

    def settings(self) -> dict:
        """See `MaskGenerator.settings`; weights as a digest."""
        networks = [self.network] if self.segmenter is None else [self.network, self.segmenter.model]
        return super().settings() | {
            "weights_sha256": weights_digest(*networks),
            "processor": json.loads(self.processor.to_json_string()),
        }

    def _views(self, images: Sequence[BoxedImage], per: str) -> Iterator[tuple[int, tuple[int, ...], View]]:
        """(position of the image, its boxes in the view, view)."""
        for position, image in enumerate(images):
            size = image.image.shape[:2]
            if per == "instance" or self.processor.view == "box":
                members: Iterable[np.ndarray] = np.arange(len(image.boxes))[:, None]
            else:
                members = (np.flatnonzero(image.labels == c) for c in dict.fromkeys(image.labels.tolist()))
            for boxes in members:
                (view,) = self.processor.views(image.boxes[boxes], image.labels[boxes], *size)
                yield position, tuple(boxes.tolist()), view

    def _encode(self, images: Sequence[BoxedImage], chunk: list[tuple[int, tuple[int, ...], View]]) -> list[dict]:
        """The arrays of the views; views of one window of an image share its pixels."""
        rows, encoded, pixels = [], None, {}
        for position, _, view in chunk:
            image = images[position]
            if encoded != (position, view.window, view.size, view.flip):
                encoded = position, view.window, view.size, view.flip
                pixels = self.processor.encode_pixels(image.image, view)
            class_probs = image.class_probs if self.network.config.use_class_prob else None
            prob = None if class_probs is None else class_probs[view.label]
            rows.append(pixels | self.processor.encode_prompt(view, image.image.shape[:2], prob))
        return rows

    @torch.inference_mode()
    def _forward(self, rows: list[dict[str, np.ndarray]]) -> list[Tensor]:
        """(2, h, w) float32 logits of every view, exact where they decide about pixels of its boxes.

        Views that the network pads to one size, and that have the same inputs, share a pass, so that none depends on
        the others. Threads take turns, as a pass uses all cores.
        """
        network, divisor = self.network, self.network.config.size_divisor
        # On a CPU an hourglass is no faster in batches (measured: 8.3 views of 512 x 512 a second alone, 8.0 by
        # eights), and one by one each view's boxes bound the region that has to be computed.
        alone = network.config.backbone == "hourglass" and network.device.type == "cpu"
        passes: dict[object, list[int]] = {}
        for i, row in enumerate(rows):
            padded = tuple(-(-side // divisor) for side in row["box_mask"].shape[1:])
            passes.setdefault(i if alone else (padded, "class_prob" in row), []).append(i)
        logits: dict[int, Tensor] = {}
        with self._one_at_a_time:
            for members in passes.values():
                batch = stack_views([rows[i] for i in members])
                inputs = {
                    name: torch.from_numpy(array).to(network.device, network.dtype, memory_format=torch.channels_last)
                    for name, array in batch.items()
                }
                output = network(**inputs, region=_box_region(batch["box_mask"])).logits.float().cpu()
                logits.update(zip(members, output))
        return [logits[i] for i in range(len(rows))]

    def _with_class_probs(self, images: Sequence[BoxedImage]) -> list[BoxedImage]:
        missing = [i for i, image in enumerate(images) if image.class_probs is None and len(image.boxes)]
        images = list(images)
        if not missing or not self.network.config.use_class_prob:
            return images
        if self.segmenter is None and not self.network.config.requires_class_prob:
            return images
        if self.segmenter is None:
            raise ValueError(
                "this LPG was trained with a segmenter's class probability (config.use_class_prob=True): pass a "
                "segmenter (--segmenter ID_OR_DIR) or class_probs, or use a stage that needs none."
            )
        with self._one_at_a_time:
            class_probs = self.segmenter([images[i].image for i in missing], [images[i].labels for i in missing])
        for i, probs in zip(missing, class_probs):
            images[i] = replace(images[i], class_probs=probs)
        return images


def _box_region(box_mask: np.ndarray, stride: int = 4, margin: int = 2) -> tuple[slice, slice]:
    """The rows and columns of the logits that are interpolated for the pixels of the boxes; box_mask (V, 1, H, W)."""
    rows, columns = (np.flatnonzero(box_mask.any(axis=axes)) for axes in ((0, 1, 3), (0, 1, 2)))
    spans = ((side[0], side[-1]) if len(side) else (0, 0) for side in (rows, columns))
    return tuple(slice(max(low // stride - margin, 0), high // stride + 1 + margin) for low, high in spans)  # type: ignore[return-value]


def _inference_copy(model: LPGModel) -> LPGModel:
    """A frozen float32 copy in channels_last; batch norms that follow a convolution in an nn.Sequential are folded
    into it.

    Raises:
        ValueError: a weight is not finite, such as a variance that does not fit into float16.
    """
    network = copy.deepcopy(model).float().eval().requires_grad_(False)
    # By numpy: torch would start its threads for each of many small tensors, which takes longer than the test itself.
    weights = {name: value.cpu().numpy() for name, value in network.state_dict().items()}
    broken = [name for name, value in weights.items() if not np.isfinite(value).all()]
    if broken:
        raise ValueError(
            f"{len(broken)} weights of the LPG are not finite in {model.dtype}, such as {broken[0]}. Load the "
            f"model in "
            "float32; the generator's own dtype may be lower, as it folds the batch norms first."
        )
    for module in list(network.modules()):
        if isinstance(module, nn.Sequential):
            _fold_norms(module)
    cast(Any, network).to(memory_format=torch.channels_last)
    return network


def _fold_norms(layers: nn.Sequential) -> None:
    for i in range(len(layers) - 1):
        # Exact types: a backbone's subclasses compute something else besides.
        first, second = layers[i], layers[i + 1]
        if type(first) is nn.Conv2d and type(second) is nn.BatchNorm2d:
            layers[i], layers[i + 1] = fuse_conv_bn_eval(first, second), nn.Identity()
