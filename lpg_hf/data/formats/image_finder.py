"""Finds the images that annotation files name, though tools write other folders, drives and prefixes than are there."""

import os
from collections.abc import Sequence
from urllib.parse import parse_qs, unquote, urlsplit

from lpg_hf.data.report import Report
from lpg_hf.files import fs_path, relative_name, resolve_inside, walk_files
from lpg_hf.images import IMAGE_SUFFIXES


class ImageFinder:
    """The images of a folder, found by their whole name, by the end of it, or without suffix; nothing outside is."""

    def __init__(self, folder: str):
        """`folder` is absolute, with forward slashes; it is listed when the first whole name fails."""
        self.folder = folder
        self._by_base: dict[str, list[str]] | None = None

    def exact(self, stated: str, beside: str = "") -> str | None:
        """The relative name of the image of this very name, or None.

        Args:
            stated: in the annotation file.
            beside: folder of the annotation file below the image folder, where the image may lie too.
        """
        for text in (f"{beside}/{stated}" if beside else "", stated):
            try:
                name = relative_name(text.replace("\\", "/"))
                if os.path.isfile(fs_path(resolve_inside(self.folder, name))):
                    return name
            except ValueError:
                continue
        return None

    def find(self, stated: str, report: Report, others: Sequence[str] = (), beside: str = "") -> str | None:
        """The relative name of the image that is meant, or None.

        A match by a part of the name is counted (`image_by_name`), and so is a name whose longest end that fits at all fits
        several images (`ambiguous_image`): None too.

        Args:
            stated: as of `exact`, as `beside`.
            report: counts problems.
            others: names under which the image may lie too.
        """
        name = self.exact(stated, beside)
        if name is not None:
            return name
        for text in (stated, *others):
            parts = [part for part in text.replace("\\", "/").split("/") if part not in ("", ".", "..")]
            candidates = self._named(parts[-1]) if parts else []
            for length in range(len(parts) if candidates else 0, 0, -1):
                fitting = self._fitting(candidates, "/".join(parts[-length:]), beside)
                if len(fitting) > 1:
                    report.add("ambiguous_image", f"{text}: {', '.join(fitting[:5])}", image=text)
                    return None
                if fitting:
                    if text != stated or length < len(parts) or text != "/".join(parts):
                        report.add("image_by_name", f"{stated}: {fitting[0]}")
                    return fitting[0]
        return None

    def _named(self, base: str) -> list[str]:
        """The images of this base name, with or without suffix, in any folder."""
        if self._by_base is None:
            self._by_base = {}
            for name in walk_files(self.folder, IMAGE_SUFFIXES):
                for key in {os.path.basename(name), os.path.splitext(os.path.basename(name))[0]}:
                    self._by_base.setdefault(key, []).append(name)
        return self._by_base.get(base, [])

    def _fitting(self, names: list[str], tail: str, beside: str) -> list[str]:
        fitting = [name for name in names if f"/{name}".endswith(f"/{tail}")]
        fitting = fitting or [name for name in names if f"/{os.path.splitext(name)[0]}".endswith(f"/{tail}")]
        near = [name for name in fitting if os.path.dirname(name) == beside]
        return [name for name in (near if len(near) == 1 else fitting) if self._is_inside(name)]

    def _is_inside(self, name: str) -> bool:
        try:
            resolve_inside(self.folder, name)
        except ValueError:  # A link that leads outside.
            return False
        return True


def name_in_address(address: str) -> str:
    """The path in an address of Label Studio: "/data/local-files/?d=set/a.png" is set/a.png."""
    address = address.replace("\\", "/")
    if "?d=" in address:
        return parse_qs(urlsplit(address).query).get("d", [address])[0]
    if "://" in address:
        address = urlsplit(address).path
    return unquote(address)
