"""Finds the images that annotation files name, though tools write other folders and drives than are there."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from lpg_hf._files import LONGEST_PATH, fs_path, relative_name, resolve_inside, walk_files
from lpg_hf.data.report import Report
from lpg_hf.images import IMAGE_SUFFIXES


class StatedImage(NamedTuple):
    """How an annotation file names an image.

    Attributes:
        name: with or without suffix and folders.
        others: further names under which it may lie, such as the one before an upload.
        beside: folder of the annotation file below the image folder, where the image may lie too.
    """

    name: str
    others: tuple[str, ...] = ()
    beside: str = ""


@dataclass
class MatchedImages:
    """What `match_images` found.

    Attributes:
        names: relative names of the images that exist, by how they are stated.
        ambiguous: that fit several images, or an image that another one fits better; counted.
    """

    names: dict[StatedImage, str] = field(default_factory=dict)
    ambiguous: set[StatedImage] = field(default_factory=set)


def match_images(folder: str, stated: Sequence[StatedImage], report: Report) -> MatchedImages:
    """Find images by their whole name, and those that are not there by the end of it.

    The longest end that fits some image counts, and if none does, the longest one that is the whole name of an image
    but for its suffix. It must fit one image only, which no other entry of the file means: else an image whose own
    folder is missing would get the labels of another.

    Args:
        folder: of the images, absolute, forward slashes; nothing outside is found.
        stated: all that a file states.
        report: counts `image_by_name`, `other_suffix` and `ambiguous_image`.
    """
    finder = ImageFinder(folder)
    matched = MatchedImages()
    rest = []
    for image in dict.fromkeys(stated):
        name = finder.exact(image)
        if name is not None:
            matched.names[image] = name
        elif not finder.leads_outside(image.name):
            rest.append(image)
    taken = set(matched.names.values())
    found = {image: finder.by_end(image) for image in rest}
    wanted = Counter(names[0] for names, _ in found.values() if len(names) == 1)
    for image, (names, kind) in found.items():
        if len(names) > 1 or (names and (names[0] in taken or wanted[names[0]] > 1)):
            if not _is_relative(image.name):  # It leads outside, and nothing inside is meant.
                continue
            report.add("ambiguous_image", f"{image.name}: {', '.join(names[:5])}", image=image.name)
            matched.ambiguous.add(image)
        elif names:
            if kind is not None:
                report.add(kind, f"{image.name}: {names[0]}")
            matched.names[image] = names[0]
    return matched


class ImageFinder:
    """The images of a folder, which is listed when the first whole name fails."""

    def __init__(self, folder: str):
        """`folder` is absolute, with forward slashes."""
        self.folder = folder
        self._by_base: dict[str, list[str]] | None = None
        # The images of the base names that were asked for, by each end of their name, and by each end of it without
        # suffix; and how many parts their names have at most.
        self._by_end: tuple[dict[str, list[str]], dict[str, list[str]]] = {}, {}
        self._num_parts: dict[str, int] = {}
        self._fitting: dict[tuple[str, str, bool], list[str]] = {}

    def exact(self, image: StatedImage) -> str | None:
        """The relative name of the image of this very name, or None."""
        for text in (f"{image.beside}/{image.name}", image.name) if image.beside else (image.name,):
            try:
                name = relative_name(text.replace("\\", "/"))
                if os.path.isfile(fs_path(resolve_inside(self.folder, name))):
                    return name
            except ValueError:
                continue
        return None

    def leads_outside(self, name: str) -> bool:
        """Whether a relative name goes through a link to the outside: it means that image and no other."""
        try:
            return not self._is_inside(relative_name(name))
        except ValueError:
            return False

    def by_end(self, image: StatedImage) -> tuple[list[str], str | None]:
        """(relative names of the images that the longest end of the name fits, the kind to count if it is a part)."""
        texts = [image.name, *image.others]
        stems = [os.path.splitext(text)[0] for text in texts if text.lower().endswith(IMAGE_SUFFIXES)]
        for text in (*texts, *stems) if len(image.name) <= LONGEST_PATH else ():
            parts = [part for part in text.replace("\\", "/").split("/") if part not in ("", ".", "..")]
            for length in range(min(len(parts), self._add_ends(parts[-1]) if parts else 0), 0, -1):
                end = "/".join(parts[-length:])
                fitting = self._find(end, image.beside, of_stem=text not in texts)
                if fitting and text in texts:
                    return fitting, None if text == image.name == end else "image_by_name"
                if fitting:
                    return fitting, "other_suffix"
        return [], None

    def _add_ends(self, base: str) -> int:
        """Make the images of this base name, with or without suffix, be found by each end of their names.

        Returns:
            The parts of the name of the image that lies deepest.
        """
        if base not in self._num_parts:
            self._num_parts[base] = 0
            for name in self._named(base):
                for ends, text in zip(self._by_end, (name, os.path.splitext(name)[0])):
                    parts = text.split("/")
                    self._num_parts[base] = max(self._num_parts[base], len(parts))
                    for start in range(len(parts) if parts[-1] == base else 0):
                        ends.setdefault("/".join(parts[start:]), []).append(name)
        return self._num_parts[base]

    def _named(self, base: str) -> list[str]:
        """The images of this base name, with or without suffix, in any folder."""
        if self._by_base is None:
            self._by_base = {}
            for name in walk_files(self.folder, IMAGE_SUFFIXES):
                for key in {os.path.basename(name), os.path.splitext(os.path.basename(name))[0]}:
                    self._by_base.setdefault(key, []).append(name)
        return self._by_base.get(base, [])

    def _find(self, end: str, beside: str, of_stem: bool) -> list[str]:
        """The images that an end fits; `of_stem`: those whose whole name it is but for the suffix.

        In a folder that a name does not state, the same number means another image.
        """
        if (end, beside, of_stem) not in self._fitting:
            whole, stems = self._by_end
            fitting = whole.get(end) or stems.get(end, [])
            near = [name for name in fitting if os.path.dirname(name) == beside]
            fitting = [name for name in (near if len(near) == 1 else fitting) if self._is_inside(name)]
            if of_stem:
                fitting = [name for name in fitting if os.path.splitext(name)[0] == end]
            self._fitting[end, beside, of_stem] = fitting
        return self._fitting[end, beside, of_stem]

    def _is_inside(self, name: str) -> bool:
        try:
            resolve_inside(self.folder, name)
        except ValueError:  # A link that leads outside.
            return False
        return True


def _is_relative(name: str) -> bool:
    try:
        return bool(relative_name(name))
    except ValueError:
        return False


def num_found(folder: str, stated: Sequence[StatedImage]) -> int:
    """How many images are found in a folder, by their whole name or by the end of it."""
    return len(match_images(folder, stated, Report()).names)


def name_in_address(address: str) -> str:
    """The path in an address of Label Studio: "/data/local-files/?d=set/a.png" is set/a.png."""
    address = address.replace("\\", "/")
    try:
        if "?d=" in address:
            return parse_qs(urlsplit(address).query).get("d", [address])[0]
        if "://" in address:
            address = urlsplit(address).path
    except ValueError:  # No address, such as http://[a/b.png: then it is a name.
        pass
    return unquote(address)
