"""Lists of classes: a text file of names, or CVAT's labelmap.txt with the colours of label maps."""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from lpg_hf._files import fs_path, read_list
from lpg_hf.labels import IGNORE_INDEX, VOC_CLASSES, clean_name


CLASSES_FILE = "classes.txt"
COLOURS_FILE = "labelmap.txt"
BACKGROUND_NAMES = ("background", "__background__", "_background_", "__ignore__")
_IGNORED = ("ignored", (224, 224, 192))  # as Datumaro calls VOC's 255, and its colour
Colour = tuple[int, int, int]


def listed_name(name: str) -> str:
    """The name of a class as a list of classes holds it, where some names mean the background."""
    return f"{name} class" if name in BACKGROUND_NAMES else name


def read_class_list(path: str | os.PathLike) -> list[str]:
    """The names in a text file, one a line, or in a labelmap.txt, in the order of the labels, without the background.

    Raises:
        ValueError: no text, no names, or a name twice.
    """
    if os.path.basename(path) == COLOURS_FILE:
        pairs: list[tuple[str, Colour | None]] = _read_label_colours(os.fspath(path))
    else:
        pairs = [(name, None) for name in map(clean_name, read_list(path)) if name]
    names = [pair[0] for pair in pairs if pair[0] not in BACKGROUND_NAMES and pair != _IGNORED]
    check_class_names(names, str(path))
    return names


def own_class_list(root: str) -> list[str]:
    """The class list of a folder: its classes.txt, else its labelmap.txt, else VOC's 20."""
    files = class_list_files(root)
    return read_class_list(files[0]) if files else list(VOC_CLASSES)


def class_list_files(root: str) -> list[str]:
    """The file that lists the classes of a folder: classes.txt, else labelmap.txt; empty if there is none."""
    return [path for path in (f"{root}/{CLASSES_FILE}", f"{root}/{COLOURS_FILE}") if os.path.isfile(fs_path(path))][:1]


def _read_label_colours(path: str) -> list[tuple[str, Colour | None]]:
    """(name, colour if it states one) of the lines name:r,g,b:parts:actions of a labelmap.txt, background too.

    Raises:
        ValueError: no text, or a line of another form.
    """
    found: list[tuple[str, Colour | None]] = []
    for number, line in enumerate(read_list(path), start=1):
        name, *rest = line.split(":")
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        values = rest[0].split(",") if rest and rest[0].strip() else []
        if (
            not clean_name(name)
            or len(values) not in (0, 3)
            or not all(re.fullmatch(r"\s*\d{1,3}\s*", v) for v in values)
        ):
            raise ValueError(f"{path}: line {number} is not name:r,g,b:parts:actions: {line.strip()[:60]!r}")
        found.append((clean_name(name), (int(values[0]), int(values[1]), int(values[2])) if values else None))
    return found


def read_colours(root: str, names: Sequence[str]) -> dict[Colour, int]:
    """The label of each colour of class masks by labelmap.txt; one of two classes is none.

    Args:
        root: of the dataset; without the file there are no colours.
        names: the class list of the dataset.
    """
    path = f"{root}/{COLOURS_FILE}"
    pairs = _read_label_colours(path) if os.path.isfile(fs_path(path)) else []
    uses = Counter(colour for _, colour in pairs)
    labels = {name: label for label, name in enumerate(names, start=1)} | dict.fromkeys(BACKGROUND_NAMES, 0)
    found = {colour: labels[name] for name, colour in pairs if name in labels and colour and uses[colour] == 1}
    return found | ({_IGNORED[1]: IGNORE_INDEX} if _IGNORED in pairs else {})


def colours_of_maps(
    folder: str | os.PathLike, names: Sequence[str] | None
) -> tuple[Sequence[str] | None, dict[Colour, int]]:
    """What label maps in colours mean, by the labelmap.txt in their folder or in the one above, where CVAT writes it.

    Args:
        names: the classes in the order of the labels; None: those of the dataset.

    Returns:
        (names, or those of the dataset if they are None and there are colours; the label of each colour)
    """
    folders = (os.fspath(folder), os.path.dirname(os.path.abspath(folder)))
    root = next((place for place in folders if os.path.isfile(fs_path(f"{place}/{COLOURS_FILE}"))), None)
    if root is None:
        return names, {}
    listed = own_class_list(root) if names is None else names
    colours = read_colours(root, listed)
    return listed if colours else names, colours


def labels_of_colours(mask: Image.Image, name: str, colours: Mapping[Colour, int]) -> np.ndarray | None:
    """(H, W) uint8 labels of a label map in colours, which has been loaded; None if it is one of indices.

    Raises:
        ValueError: a colour that is none of `colours`, in an image without a palette.
    """
    if not colours or mask.mode not in ("P", "RGB", "RGBA"):
        return None
    pixels = np.asarray(mask.convert("RGB")).astype(np.uint32) @ np.array([65536, 256, 1], dtype=np.uint32)
    values, places = np.unique(pixels, return_inverse=True)
    found = [(int(value) >> 16, int(value) >> 8 & 255, int(value) & 255) for value in values]
    unknown = [colour for colour in found if colour not in colours]
    if unknown and mask.mode == "P":
        return None
    if unknown:
        raise ValueError(f"{name} has the colour {unknown[0]}, which {COLOURS_FILE} gives to no class of the list")
    return np.array([colours[colour] for colour in found], dtype=np.uint8)[places].reshape(pixels.shape)


def check_class_names(names: Sequence[str], place: str) -> None:
    """Raises ValueError if there are none, or one twice; `place` is where they stand."""
    if not names:
        raise ValueError(f"{place} holds no class names")
    twice = sorted(name for name, uses in Counter(names).items() if uses > 1)
    if twice:
        raise ValueError(f"{place} holds class names twice: {', '.join(twice)}")
