"""Paths in any language and locale, and files that are complete or absent."""

import errno
import filecmp
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO


logger = logging.getLogger(__name__)

# In a folder that a process writes to: the lock, with the name of the process.
LOCK_FILE = ".lock"
LONGEST_PATH = 4096  # bytes, of Linux; other systems take less

# What no file is to blame for, in words that say what to do.
_NO_FILES_LEFT = "too many files are open. Raise the limit (`ulimit -n`), and start the same command again"
_SYSTEM_ERRORS = {
    errno.ENOSPC: "no space is left on the disk. Free some, and start the same command again",
    errno.EDQUOT: "your quota of the disk is used up. Free some space, and start the same command again",
    errno.EFBIG: "no file may become so large here (`ulimit -f`). Raise the limit, and start the same command again",
    errno.EMFILE: _NO_FILES_LEFT,
    errno.ENFILE: _NO_FILES_LEFT,
    errno.ENOMEM: "no memory is left. Close other programs, and start the same command again",
    errno.EROFS: "the disk is read-only. Choose another place",
}
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)

# Reading the umask means setting it, which is not safe beside other threads; so once, on import.
_UMASK = os.umask(0)
os.umask(_UMASK)


def fs_path(path: str | os.PathLike) -> str:
    """A path for the operating system's calls: UTF-8 on the disk, whatever the locale says (a C locale says ASCII)."""
    return os.fsdecode(os.fspath(path).encode("utf-8", "surrogateescape"))


def unicode_path(path: str | os.PathLike) -> str:
    """The opposite of `fs_path`: an absolute path as true Unicode text with forward slashes, fit for a dataset."""
    path = os.path.abspath(fs_path(path))
    return os.fsencode(path).decode("utf-8", "surrogateescape").replace(os.sep, "/")


def unicode_name(name: str) -> str:
    """A name that the operating system gave, as true Unicode text (see `fs_path`)."""
    return os.fsencode(name).decode("utf-8", "surrogateescape")


class MachineError(RuntimeError):
    """The machine is at fault, not a file that cannot be opened now: no files may be opened, or no memory is left.

    Neither an OSError nor a ValueError, so that nobody counts the file as a broken one.
    """


def check_machine(error: Exception) -> None:
    """Raises MachineError if a file could not be opened because of the machine."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        raise MachineError(system_message(error)) from error


def check_file_size(size: int) -> None:
    """Whether a file, or memory that processes share, may have so many bytes (`ulimit -f`), asked as descriptors are.

    Raises:
        OSError: it may not.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit.
        return
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY and limit < size:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))


def check_descriptors(count: int) -> None:
    """Whether so many files and connections can be opened at once, asked before work that fails badly without them.

    Raises:
        OSError: they cannot.
    """
    opened = []
    try:
        for _ in range(count):
            opened.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0)) from error  # Not the null device's fault.
    finally:
        for descriptor in opened:
            os.close(descriptor)


def system_message(error: OSError) -> str:
    """What an error of the system means, and for which file, without its number."""
    files = " and ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    said = _SYSTEM_ERRORS.get(error.errno or 0) or os.strerror(error.errno or 0)
    return f"{files or 'a file or connection'}: {said}"


def check_replaceable(path: str | os.PathLike) -> None:
    """Refuse an output that would be renamed over something else than a regular file.

    Raises:
        ValueError: there is a folder, a device, a pipe or a socket.
    """
    path = Path(fs_path(path))
    if path.exists() and (not path.is_file() or _is_stream(path)):
        what = "a folder" if path.is_dir() else "a device or a pipe"
        raise ValueError(f"{path} is {what}, which no file may replace. Choose another name.")


def _is_stream(path: Path) -> bool:
    """Whether writing means sending: a terminal, /dev/null, a pipe, and the file that /dev/stdout leads to."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    folder = os.path.realpath(path.parent) if path.is_symlink() else ""
    is_standard = folder == "/dev" or folder.startswith("/proc/")
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode) or (is_standard and stat.S_ISREG(mode))


def write_atomically(path: str | os.PathLike, content: bytes, scratch: str | os.PathLike | None = None) -> None:
    """Write a file that is complete or absent at every moment; folders are created.

    Args:
        scratch: folder on the same disk for the unfinished file, which a killed process leaves there; None: the file's
            own.
    """
    with atomic_file(path, scratch) as file:
        file.write(content)


@contextmanager
def atomic_file(path: str | os.PathLike, scratch: str | os.PathLike | None = None) -> Iterator[BinaryIO]:
    """A binary file to write to; it gets its name when the block ends without an error; see `write_atomically`.

    A terminal, /dev/stdout, /dev/null or a pipe receives the bytes.

    Raises:
        ValueError: the name is that of a folder, a disk or a socket.
    """
    path = Path(fs_path(path))
    if _is_stream(path):
        # Without O_NONBLOCK, a pipe that nobody reads would wait for ever.
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_NONBLOCK", 0))
        os.set_blocking(descriptor, True)
        with os.fdopen(descriptor, "wb") as file:
            yield file
        return
    check_replaceable(path)
    lock, temporary = _temporary_file(scratch or path.parent, path.name if scratch is None else None)
    try:
        with open(temporary, "wb") as file:
            yield file
        os.chmod(temporary, 0o666 & ~_UMASK)  # until here only the owner can read it
        path.parent.mkdir(parents=True, exist_ok=True)  # now, so that a full disk leaves no empty folder
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):  # Somebody has deleted the folder.
            os.unlink(temporary)
        raise
    finally:
        _close_lock(lock)


def _temporary_file(folder: str | os.PathLike, name: str | None) -> tuple[int | None, str]:
    """A file for unfinished content, and a descriptor that locks it, or None.

    Args:
        name: of the finished file, which decides the temporary one, so that those of killed processes do not pile up;
            None: any.
    """
    if name is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        # A digest, as the name itself may be as long as the system allows.
        path = Path(folder, f".unfinished.{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}")
        while (lock := _open_lock(path, 0o600)) is not None:
            if not _flock(lock, wait=True):
                _close_lock(lock)
                path.unlink(missing_ok=True)
                break
            if _is_at(lock, path):  # Else its earlier owner has renamed it meanwhile.
                return lock, str(path)
            _close_lock(lock)
    descriptor, temporary = tempfile.mkstemp(prefix=".unfinished.", dir=folder)
    os.close(descriptor)
    return None, temporary


_locks: set[int] = set()  # the descriptors of this process


def _open_lock(path: Path, mode: int) -> int | None:
    """A descriptor of a lock file, made if needed; None: it must not be written."""
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), mode)
    except OSError as error:
        if error.errno in _NOT_WRITABLE:
            return None
        raise
    _locks.add(lock)
    return lock


def _close_lock(lock: int | None) -> None:
    if lock in _locks:
        _locks.remove(lock)
        os.close(lock)


def _forget_locks() -> None:
    """In a forked process, such as one that loads data: else it would keep the locks of a killed parent."""
    for lock in list(_locks):
        _close_lock(lock)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)


def _is_at(descriptor: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


def _flock(descriptor: int, *, shared: bool = False, wait: bool = False) -> bool:
    """Locks an open file until it is closed; False where the system has no locks.

    Raises:
        BlockingIOError: another process has it, and `wait` is off.
    """
    try:
        import fcntl

        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
    except ImportError:  # Windows
        return False
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise BlockingIOError(error.errno, error.strerror) from error
        return False
    return True


def refuse_link(folder: Path) -> None:
    """Refuses a folder for files of our own that is a link: what lies behind it would be overwritten and deleted.

    Raises:
        ValueError: names it.
    """
    if os.path.islink(folder):
        raise ValueError(f"{folder} is a link to {os.readlink(folder)}, not a folder of this command. Delete the link")


@contextmanager
def unfinished_folder(target: Path) -> Iterator[Path]:
    """An empty hidden folder beside an output, deleted at the end; what a killed process left in it is deleted first.

    Raises:
        ValueError: another process writes the same output; names it. Or the folder is a link.
    """
    place = Path(os.path.abspath(target))
    if place.is_dir() and place.samefile(os.curdir):
        raise ValueError(f"{place} is the working folder, which no output may replace. Choose a new folder in it")
    folder = place.with_name(f".{place.name}.unfinished")
    refuse_link(folder)
    lock = _lock(folder, shared=False, output=target)
    folder.mkdir(parents=True, exist_ok=True)  # Says why, where it is not there.
    try:
        for item in folder.iterdir():
            if item.name != LOCK_FILE:
                shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _close_lock(lock)


@contextmanager
def locked_folder(folder: Path, shared: bool = False) -> Iterator[None]:
    """A folder that one process writes to at a time, or several that know of each other (`shared`); made if needed.

    Raises:
        ValueError: another process writes to it; names it.
    """
    made = [folder, *(place for place in folder.parents if not place.exists())]
    lock = _lock(folder, shared, output=folder)
    try:
        yield
    finally:
        with suppress(OSError):  # Others share it; or a folder is not empty, or is gone.
            if lock is not None:
                _flock(lock)
            (folder / LOCK_FILE).unlink()
            for place in made:
                place.rmdir()
        _close_lock(lock)


def _lock(folder: Path, shared: bool, output: Path) -> int | None:
    """A descriptor that holds the lock of a folder until the process ends; None where nothing can be written.

    Args:
        folder: made if needed. The lock is a file in it, which states process and host.
        output: what the error says that the other process writes.

    Raises:
        ValueError: another process has the lock; names it.
    """
    path = folder / LOCK_FILE
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = _open_lock(path, 0o666)
        except FileNotFoundError:  # Its earlier owner has deleted the folder just now.
            continue
        except OSError as error:
            if error.errno in _NOT_WRITABLE:
                return None
            with suppress(OSError):
                folder.rmdir()
            raise
        if lock is None:
            return None
        try:
            _flock(lock, shared=shared)
        except BlockingIOError:
            owner = _read_owner(lock)
            _close_lock(lock)
            raise ValueError(
                f"another process writes {output} now{f' ({owner})' if owner else ''}. Wait until it ends, or choose "
                "another place."
            ) from None
        if _is_at(lock, path):  # Else its earlier owner has deleted the file before it was locked.
            break
        _close_lock(lock)
    with suppress(OSError):  # The disk may be full: then the name is missing.
        os.truncate(lock, 0)
        os.write(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return lock


def _read_owner(lock: int) -> str:
    """What the process that has a lock wrote into it; it may have got it this moment, so it is given 3 seconds."""
    for _ in range(60):
        if owner := os.pread(lock, 200, 0).decode("utf-8", "replace").strip():
            return owner
        time.sleep(0.05)
    return ""


def place_output(written: Path, target: Path) -> bool:
    """Give a finished file or folder its name.

    Returns:
        Whether it is new; False if `target` holds all its files already, equal to the byte.

    Raises:
        FileExistsError: `target` is something else.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        if target.is_dir():
            target.rmdir()
        os.replace(written, target)
        return True
    names = [path.relative_to(written) for path in written.rglob("*") if path.is_file()] if written.is_dir() else [""]
    for name in names:
        if not (target / name).is_file() or not filecmp.cmp(written / name, target / name, shallow=False):
            raise FileExistsError(f"{target} exists already and is not empty; choose another place or remove it")
    return False


def json_text(content: Any, **options: Any) -> str:
    """Json that any person can read and UTF-8 can hold: only what is not Unicode (bytes of a file name) is escaped.

    Args:
        options: of `json.dumps`.
    """
    text = json.dumps(content, ensure_ascii=False, **options)
    return re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def holds_masks(folder: str) -> bool:
    """Whether `lpg-hf masks` writes to a folder: what it holds is made of annotations, and is none of them."""
    return os.path.isfile(os.path.join(fs_path(folder), ".parts", "settings.json"))


def walk_files(folder: str, suffixes: Sequence[str], deep: bool = True) -> Iterator[str]:
    """Relative names of the files of a folder (`deep`: and below), forward slashes, sorted.

    Args:
        folder: links to folders in it are not followed, and folders of masks (`holds_masks`) are left out.
        suffixes: lower case; any case is found.
        deep: go into its folders.
    """
    base = fs_path(folder)
    for current, folders, files in os.walk(base, onerror=check_machine):
        folders[:] = sorted(name for name in folders if not holds_masks(f"{current}/{name}")) if deep else []
        inner = os.path.relpath(current, base)
        for name in sorted(files):
            if name.lower().endswith(tuple(suffixes)):
                relative = name if inner == "." else os.path.join(inner, name)
                yield unicode_name(relative).replace(os.sep, "/")


def read_bytes(path: str | os.PathLike, size: int = -1) -> bytes:
    """The content of a file, or its first `size` bytes.

    Raises:
        OSError: there is no such file.
        ValueError: it is a pipe or a device, which might never end.
        MachineError: no file can be opened.
    """
    try:
        # Opening a pipe that nobody writes to would wait for ever; a regular file knows no O_NONBLOCK.
        descriptor = os.open(fs_path(path), os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        check_machine(error)
        raise
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError(f"{path} is a pipe or a device, not a file")
        return file.read(size)


def read_head(path: str | os.PathLike, size: int = 100_000) -> str:
    """The first bytes of a file as text, whatever they are, to tell what it is; "" if it cannot be read."""
    try:
        return read_bytes(path, size).decode("utf-8-sig", "replace")
    except (OSError, ValueError):
        return ""


_ENCODING: ContextVar[str | None] = ContextVar("encoding", default=None)


@contextmanager
def reading_as(encoding: str | None) -> Iterator[None]:
    """What `read_text` and the json readers decode with inside the block; None: by the files' own marks."""
    token = _ENCODING.set(encoding)
    try:
        yield
    finally:
        _ENCODING.reset(token)


def encoding_of(data: bytes) -> str:
    """The encoding of a text file: that of `reading_as`, else UTF-16 with its mark, else UTF-8."""
    return _ENCODING.get() or ("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")


def read_text(path: str | os.PathLike) -> str:
    """A text file: UTF-8, UTF-16 with its mark, or as `reading_as` says.

    Raises:
        ValueError: it is none of them, or no file.
    """
    data = read_bytes(path)
    encoding = encoding_of(data)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        name = _ENCODING.get() or "UTF-8"
        raise ValueError(
            f"{path} is not {name} text: byte {error.start}. Save it as UTF-8, or pass its encoding "
            "(--encoding cp1252)"
        ) from error


def read_list(path: str | os.PathLike) -> list[str]:
    """The lines of a list of classes or images; where it is a link to a file of another folder, that is told.

    Raises:
        ValueError: as of `read_text`.
    """
    real = link_out(path)
    if real is not None:
        logger.warning("%s is a link: its names are those of %s", path, real)
    return read_text(path).splitlines()


def link_out(path: str | os.PathLike) -> str | None:
    """The file that a link to another folder leads to; None: it is a file of its own folder."""
    local = fs_path(path)
    if not os.path.islink(local):
        return None
    real = os.path.realpath(local)
    return None if os.path.dirname(real) == os.path.realpath(os.path.dirname(local)) else unicode_name(real)


@lru_cache(maxsize=4096)
def _real_folder(path: str) -> str:
    return os.path.realpath(path)


def relative_name(name: Any) -> str:
    """A file name of an annotation file as a relative path with forward slashes.

    Raises:
        ValueError: it is empty, longer than a path can be, absolute, on a drive, or climbs with "..".
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise ValueError("is not a file name")
    if len(name) > LONGEST_PATH:
        raise ValueError(f"is longer than a path can be ({len(name)} characters)")
    name = name.replace("\\", "/")
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        raise ValueError("is not relative")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts or ".." in parts:
        raise ValueError("climbs out of the folder")
    return "/".join(parts)


def resolve_inside(root: str, name: str) -> str:
    """The path of `name` (from `relative_name`) under `root`; the file need not exist.

    Raises:
        ValueError: a symbolic link leads outside `root`.
    """
    path = f"{root}/{name}"
    local = fs_path(path)
    real = os.path.realpath(local) if os.path.islink(local) else _real_folder(os.path.dirname(local)) + os.sep
    base = os.path.join(_real_folder(fs_path(root)), "")
    if not real.startswith(base):
        raise ValueError("is a link that leads outside the folder")
    return path


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Write a json file that is complete or absent; folders are created."""
    write_atomically(path, (json_text(content, indent=2) + "\n").encode("utf-8"))
