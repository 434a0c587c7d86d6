"""Annotation files in json: read whole, with errors that name the byte; and enough of one to tell what it is."""

import gc
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any

from lpg_hf._files import encoding_of, fs_path, read_bytes, read_head


# A json file up to this size is read whole to tell what it is; of a larger one only the head.
_LARGEST_SAMPLE = 4_000_000
# Escapes: pairs are characters, and \udc80 to \udcff bytes of a file name (`files.json_text`).
_ESCAPES = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[dD][cC][89a-fA-F][0-9a-fA-F]"
    r"|(?P<half>u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)
# Items of a large list that are read to tell what it is.
_MAX_ITEMS = 20


def read_json(
    path: str | os.PathLike, object_hook: Callable[[dict], Any] | None = None, *, bare_list: bool = False
) -> dict | list:
    """A json file as a dict.

    Args:
        path: of the file.
        object_hook: what to put in the place of each dict of the file, called as soon as the dict is read.
        bare_list: a list, as COCO's own tools write results, is fine too.

    Raises:
        FileNotFoundError: no such file.
        ValueError: empty, not valid or not complete (with the byte position), or not an object.
    """
    try:
        data = read_bytes(path)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise FileNotFoundError(f"annotation file not found: {path}") from error
    if not data.strip():
        raise ValueError(f"{path} is empty ({len(data)} bytes), not a json file")
    try:
        text, num_bytes = data.decode(encoding_of(data)), len(data)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not valid json: not UTF-8 text at byte {error.start}") from error
    del data
    if "\\ud" in text or "\\uD" in text:
        text = _ESCAPES.sub(_without_half, text)
    try:
        with _collector_paused():
            content = json.loads(text, object_hook=object_hook)
    except json.JSONDecodeError as error:
        position = len(text[: error.pos].encode("utf-8"))
        hint = " (it is an HTML page)" if text.lstrip()[:1] == "<" else ""
        raise ValueError(
            f"{path} is not valid or not complete json{hint}: {error.msg} at byte {position} of {num_bytes}"
        ) from error
    except RecursionError as error:
        raise ValueError(f"{path} is not an annotation file: it is nested too deeply") from error
    except ValueError as error:  # An integer of thousands of digits.
        raise ValueError(f"{path} is not an annotation file: {error}") from error
    if not isinstance(content, dict) and not (bare_list and isinstance(content, list)):
        raise ValueError(f"{path} is not a COCO annotation file: its top level is a {type(content).__name__}")
    return content


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Parsing makes millions of objects without a cycle, and the collector would look through them again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _without_half(escape: re.Match) -> str:
    """An escape of json text; half a character (of an emoji), which no file can hold, becomes the replacement mark."""
    return "\\ufffd" if escape["half"] else escape[0]


def json_content(path: str) -> dict | list:
    """A json file; raises FileNotFoundError or ValueError as `read_json`."""
    return read_json(path, bare_list=True)


def json_contents(
    files: Sequence[str], is_of_tool: Callable[[dict | list], bool], problems: list[tuple[str, str]]
) -> Iterator[tuple[str, dict | list]]:
    """(path, content) of a tool's files; of several, those that are not the tool's are left out.

    Args:
        files: that may be the tool's.
        is_of_tool: looks at a content.
        problems: takes those of several files that are not valid json.

    Raises:
        ValueError: the only file is not valid json.
    """
    for file in files:
        try:
            content = json_content(file)
        except ValueError as error:
            if len(files) == 1:
                raise
            problems.append(("unreadable_annotation", f"{os.path.basename(file)}: {error}"))
            continue
        if len(files) == 1 or is_of_tool(content):
            yield file, content


def json_sample(path: str) -> dict | list | None:
    """Enough of a json file to tell what it is; not to be changed.

    Returns:
        All of a small file; of a large one the first items of its list, or of its list "shapes" or "frames"; else
        None.
    """
    try:
        status = os.stat(fs_path(path))
        return _json_sample(path, status.st_size, status.st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=2)  # The looks_like of every format asks for the same file.
def _json_sample(path: str, size: int, time: int) -> dict | list | None:
    try:
        if size <= _LARGEST_SAMPLE:
            return json_content(path)
    except (OSError, ValueError):
        return None
    head = read_head(path, _LARGEST_SAMPLE).lstrip()
    if head[:1] == "[":
        return _first_items(head[1:])
    for key, others in (("shapes", ("imagePath",)), ("frames", ())):
        start = re.search(rf'"{key}"\s*:\s*\[', head)
        if start and all(f'"{other}"' in head for other in others):
            return {key: _first_items(head[start.end() :]), **dict.fromkeys(others, "")}
    return None


def _first_items(text: str) -> list:
    """The first items of a json list that is cut off."""
    items, position = [], 0
    with suppress(ValueError, RecursionError):
        while len(items) < _MAX_ITEMS:
            position += len(text[position:]) - len(text[position:].lstrip(", \t\r\n"))
            item, position = json.JSONDecoder().raw_decode(text, position)
            items.append(item)
    return items
