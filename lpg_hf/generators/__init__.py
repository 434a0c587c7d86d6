"""Boxes to foreground maps: one file per method, one signature for all (`base.MaskGenerator`)."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lpg_hf._files import fs_path
from lpg_hf.generators.base import GeneratorOptions, MaskGenerator
from lpg_hf.generators.bundle import DEFAULT, named_stage


if TYPE_CHECKING:
    import torch

GENERATORS = ("lpg", "grabcut", "densecrf", "box", "sam:ID", "saliency:FILE.onnx")


def check_generator(name: str) -> None:
    """Raises ValueError if no generator has this name."""
    kind, colon, which = name.partition(":")
    kinds = {known.partition(":")[:2] for known in GENERATORS}
    if (kind, colon) not in kinds or (colon and not which):
        raise ValueError(
            f"generator {name!r} is unknown. Choose one of {', '.join(GENERATORS)}; `lpg-hf masks` takes auto too."
        )


def load_generator(
    name: str | Callable,
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
        name: one of `GENERATORS`: "sam:ID" takes the Hub id or folder of a SAM, SAM 2 or HQ-SAM model,
            "saliency:FILE.onnx" a salient-object network of the U2-Net family. Or a function
            `(image (H, W, 3) uint8 RGB, boxes (N, 4) float32 xyxy) -> (N, H, W)` masks, bool or probabilities.
        model, segmenter, class_names, batch_size, flip, device, dtype, revision: see `GeneratorOptions`.

    Raises:
        ValueError: an unknown name, an option that the generator does not have, or a device that does not exist.
        OSError: a folder or Hub id that does not exist.
    """
    if callable(name):
        from lpg_hf.generators._function import FunctionGenerator

        return FunctionGenerator(name)
    options = GeneratorOptions(
        model=model,
        segmenter=segmenter,
        class_names=None if class_names is None else tuple(class_names),
        batch_size=batch_size,
        flip=flip,
        device=None if device is None else str(device),
        dtype=dtype,
        revision=revision,
    )
    return generator_of(name, options)


@dataclass(frozen=True)
class NamedGenerator:
    """A generator that is not loaded yet, as loading may take seconds.

    Args:
        name: one of `GENERATORS`.

    Raises:
        ValueError: an unknown name, or an option that the generator does not have.
    """

    name: str
    options: GeneratorOptions

    def __post_init__(self):
        check_generator(self.name)
        kind = self.name.partition(":")[0]
        for option, users in (("model", "lpg"), ("flip", "lpg"), ("segmenter", "lpg"), ("revision", "lpg or sam")):
            value = getattr(self.options, option)
            if value and kind not in users.split():
                raise ValueError(
                    f"{option}={value} is for the generator {users}, not for {self.name!r}; leave it out."
                )

    def load(self) -> MaskGenerator:
        """The generator; see `load_generator` for the errors."""
        return generator_of(self.name, self.options)

    def digest(self) -> str | None:
        """A hash of the name, the options, and the sizes and times of the files that `load` reads.

        None where these may change unseen, as those of the Hub do.
        """
        kind, _, which = self.name.partition(":")
        models = [which] if which else [self.options.model or DEFAULT, self.options.segmenter] if kind == "lpg" else []
        states = []
        for model in filter(None, models):
            path = Path(fs_path(named_stage(model)))
            files = sorted(path.iterdir()) if path.is_dir() else [path]
            if not all(file.exists() for file in files):
                return None
            states += [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        options = {name: value if value is None else str(value) for name, value in asdict(self.options).items()}
        return hashlib.sha256(json.dumps([self.name, options, states]).encode()).hexdigest()


def generator_of(name: str, options: GeneratorOptions) -> MaskGenerator:
    """As `load_generator`, for options that are passed on whole."""
    NamedGenerator(name, options)  # is checked
    kind, _, which = name.partition(":")
    if kind == "box":
        from lpg_hf.generators._box import BoxGenerator

        return BoxGenerator()
    if kind == "grabcut":
        from lpg_hf.generators._grabcut import GrabCutGenerator

        return GrabCutGenerator()
    if kind == "densecrf":
        from lpg_hf.generators._densecrf import DenseCRFGenerator

        return DenseCRFGenerator()
    if kind == "saliency":
        from lpg_hf.generators._saliency import SaliencyGenerator

        return SaliencyGenerator(which, batch_size=options.batch_size)
    if kind == "sam":
        from lpg_hf.generators._sam import SAMGenerator

        device, dtype = options.placement()
        return SAMGenerator(which, device, dtype, options.batch_size, revision=options.revision)
    from lpg_hf.generators.lpg import LPGGenerator

    return LPGGenerator.from_pretrained(options)
