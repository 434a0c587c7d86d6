"""Paths in any language and locale, and files that are complete or absent."""

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


# Reading the umask means setting it, which is not safe beside other threads; so once, on import.
_UMASK = os.umask(0)
os.umask(_UMASK)


def fs_path(path: str | os.PathLike) -> str:
    """A path as the operating system's calls need it: UTF-8 on the disk, whatever the locale says (a C locale says ASCII)."""
    return os.fsdecode(os.fspath(path).encode("utf-8", "surrogateescape"))


def unicode_path(path: str | os.PathLike) -> str:
    """The opposite of `fs_path`: an absolute path as true Unicode text with forward slashes, fit for a dataset."""
    path = os.path.abspath(fs_path(path))
    return os.fsencode(path).decode("utf-8", "surrogateescape").replace(os.sep, "/")


def unicode_name(name: str) -> str:
    """A name that the operating system gave, as true Unicode text (see `fs_path`)."""
    return os.fsencode(name).decode("utf-8", "surrogateescape")


def write_atomically(path: str | os.PathLike, content: bytes, scratch: str | os.PathLike | None = None) -> None:
    """Write a file that is complete or absent at every moment; folders are created.

    Args:
        scratch: folder on the same disk for the unfinished file, which a killed process leaves there; None: the file's own.
    """
    with atomic_file(path, scratch) as file:
        file.write(content)


@contextmanager
def atomic_file(path: str | os.PathLike, scratch: str | os.PathLike | None = None) -> Iterator[BinaryIO]:
    """A binary file to write to, which gets its name when the block ends without an error; arguments as `write_atomically`."""
    path = Path(fs_path(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=".unfinished.", dir=scratch or path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        os.chmod(temporary, 0o666 & ~_UMASK)  # mkstemp makes files that only the owner can read
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def json_text(content: object, **options: object) -> str:
    """Json that any person can read and UTF-8 can hold: only what is no Unicode (bytes of a file name) is escaped.

    Args:
        options: of `json.dumps`.
    """
    text = json.dumps(content, ensure_ascii=False, **options)
    return re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)
