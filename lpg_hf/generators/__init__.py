"""Boxes to foreground maps: one file per method, one signature for all (`base.MaskGenerator`)."""

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lpg_hf.devices import resolve_dtype, usable_device
from lpg_hf.generators.base import MaskGenerator
from lpg_hf.generators.bundle import bundled


if TYPE_CHECKING:
    import torch

GENERATORS = ("lpg", "grabcut", "densecrf", "box", "sam:ID", "saliency:FILE.onnx")


def check_generator(name: str) -> None:
    """Raises ValueError if no generator has this name."""
    kind, colon, which = name.partition(":")
    kinds = {known.partition(":")[:2] for known in GENERATORS}
    if (kind, colon) not in kinds or (colon and not which):
        raise ValueError(f"generator {name!r} is unknown. Choose one of {', '.join(GENERATORS)}.")


def load_generator(
    name: "str | Callable",
    *,
    model: str | os.PathLike | None = None,
    segmenter: str | os.PathLike | None = None,
    class_names: Sequence[str] | None = None,
    batch_size: int = 16,
    flip: bool = False,
    device: "str | torch.device | None" = None,
    dtype: str = "auto",
    revision: str | None = None,
) -> MaskGenerator:
    """A generator by its name.

    Args:
        name: "lpg", "grabcut", "densecrf", "box", "sam:ID" with the Hub id or folder of a SAM, SAM 2 or HQ-SAM model, or
            "saliency:FILE.onnx" with a salient-object network of the U2-Net family. Or a function
            `(image (H, W, 3) uint8 RGB, boxes (N, 4) float32 xyxy) -> (N, H, W)` masks, bool or probabilities.
        model: LPG stage, a Hub id or a folder; only for "lpg". None: the bundled lpg-small.
        segmenter: Hub id or folder of the segmenter whose class probability the LPG takes; only for "lpg".
        class_names: of the boxes in the order of their labels; they are looked up in the segmenter.
        batch_size: views (LPG) or boxes (SAM, saliency) per forward pass.
        flip: whether the LPG sees each view mirrored too, and averages: better masks in twice the time; only for "lpg".
        device: "cpu", "cuda", ...; None: a GPU if there is one.
        dtype: "float32", "bfloat16", "float16", or "auto": bfloat16 where the hardware computes in it, else float32.
        revision: of the Hub repository of `model`.

    Raises:
        ValueError: unknown name, a setting that the generator does not have, or a device that is not there.
        OSError: a folder or Hub id that does not exist.
    """
    if callable(name):
        from lpg_hf.generators.function import FunctionGenerator

        return FunctionGenerator(name)
    check_generator(name)
    for setting, value, users in (
        ("model", model, ("lpg",)),
        ("flip", flip or None, ("lpg",)),
        ("segmenter", segmenter, ("lpg",)),
        ("revision", revision, ("lpg", "sam")),
    ):
        if value is not None and name.partition(":")[0] not in users:
            raise ValueError(
                f"{setting}={value} is for the generator {' or '.join(users)}, not for {name!r}; leave it out."
            )
    if name == "box":
        from lpg_hf.generators.box import BoxGenerator

        return BoxGenerator()
    if name == "grabcut":
        from lpg_hf.generators.grabcut import GrabCutGenerator

        return GrabCutGenerator()
    if name == "densecrf":
        from lpg_hf.generators.densecrf import DenseCRFGenerator

        return DenseCRFGenerator()
    if name.startswith("sam:"):
        from lpg_hf.generators.sam import SAMGenerator

        device = usable_device(device)
        return SAMGenerator(
            name[len("sam:") :],
            device=device,
            dtype=resolve_dtype(dtype, device),
            batch_size=batch_size,
            revision=revision,
        )
    if name.startswith("saliency:"):
        from lpg_hf.generators.saliency import SaliencyGenerator

        return SaliencyGenerator(name[len("saliency:") :], batch_size=batch_size)
    from lpg_hf.generators.lpg import LPGGenerator

    device = usable_device(device)
    return LPGGenerator.from_pretrained(
        bundled() if model is None else model,
        segmenter=segmenter,
        class_names=class_names,
        batch_size=batch_size,
        flip=flip,
        device=device,
        dtype=resolve_dtype(dtype, device),
        revision=revision,
    )
