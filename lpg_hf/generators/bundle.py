"""Generators that come with the package, so that the first call needs no download."""

import os
from pathlib import Path


BUNDLED = ("lpg-base", "lpg-small")
DEFAULT = BUNDLED[0]  # where no model is named


def bundled(name: str = DEFAULT) -> Path:
    """The folder of a bundled generator, for every place that takes a stage folder.

    Args:
        name: "lpg-base", or "lpg-small", as fast and trained on less: its masks are worse, most of all where boxes are
            too large, but better on some crowds of small objects. Both see a window per box and need no segmenter; the
            card is README.md in the folder.

    Raises:
        ValueError: there is no such generator.
    """
    if name not in BUNDLED:
        raise ValueError(f"no generator {name!r} comes with the package. There is: {', '.join(BUNDLED)}.")
    return Path(__file__).parents[1] / "weights" / name


def named_stage(source: str | os.PathLike) -> str | os.PathLike:
    """The folder of the bundled generator that `source` names, else `source`; a folder of that name comes first."""
    return bundled(str(source)) if str(source) in BUNDLED and not Path(source).exists() else source
