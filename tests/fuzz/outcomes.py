"""What an input may lead to: a result, a counted skip, or an error in one line; in five seconds, with 1 GB at most."""

import gc
import io
import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import pytest
import typer
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from lpg_hf.cli import app


# Inputs of each kind: `make fuzz` sets the variable; else some in `make test`, more in `make test-slow`.
_STATED = os.environ.get("LPG_HF_FUZZ")
_COUNTS = [int(_STATED)] if _STATED else [50, pytest.param(300, marks=pytest.mark.slow)]
inputs = pytest.mark.parametrize("inputs", _COUNTS)
# Which ones: every number gives others.
_SEED = int(os.environ.get("LPG_HF_FUZZ_SEED", "0"))
# What `lpg_hf.cli.main` runs, built once: that takes longer than most inputs.
COMMAND = typer.main.get_command(app)
_SECONDS = 5
_KILOBYTES = 1_000_000
_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
# What a command turns into one line as it is; any other type is a fault of ours.
ERRORS = (OSError, ValueError, ImportError)


# What no input may make us do, by the names of Python's audit events: starting a program, asking another machine.
_OUTSIDE = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "socket.connect",
    "socket.getaddrinfo",
)
_outside: list[str] = []


class Fault(AssertionError):
    """An outcome that no input may have."""


def _note_outside(event: str, arguments: tuple) -> None:
    if event in _OUTSIDE:
        _outside.append(f"{event}{arguments}")


sys.addaudithook(_note_outside)


def fuzz(inputs: int, drawn: SearchStrategy, check: Callable[[Any], None]) -> None:
    """Calls `check` with so many drawn values, those of the seed; the first that fails is made small and shown."""
    limits = settings(
        max_examples=inputs,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )

    @limits
    @seed(_SEED)
    @given(drawn)
    def one(value: Any) -> None:
        with _quiet():
            check(value)

    with _little_collecting():
        one()


@contextmanager
def allowed() -> Iterator[None]:
    """Around what an input is handed to; a fault where it ends otherwise than it may."""
    signal.signal(signal.SIGPROF, _too_slow)
    # CPU time: others may keep the machine busy. Again each second: an error in a callback of C code may get lost.
    signal.setitimer(signal.ITIMER_PROF, _SECONDS, 1)
    _outside.clear()
    _grown()  # what other tests of this process have taken does not count
    try:
        yield
    except ERRORS as error:
        is_chance = isinstance(error, (UnicodeError, json.JSONDecodeError)) or (
            isinstance(error, ImportError) and "pip install" not in str(error)
        )
        if is_chance or not str(error).strip():
            raise Fault(f"{type(error).__name__} that says not what to do: {error}") from error
    except SystemExit as end:
        if end.code not in (0, 1, 2, None):
            raise Fault(f"exit status {end.code}") from end
    except (Exception, MemoryError) as error:
        if isinstance(error, Fault):
            raise
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise Fault(f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})") from error
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if _outside:
        raise Fault(f"a program or another machine: {_outside}")
    if _grown() > _KILOBYTES:
        raise Fault("more than 1 GB of memory")


def _grown() -> int:
    """By how many kilobytes the most memory in use has grown since the last call."""
    global _peak
    before, _peak = _peak, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _peak - before


def run(*arguments: object) -> int:
    """The command line in this process; the exit status, 2 where an error is one line. Raises `Fault`."""
    status = 2
    with allowed():
        try:
            COMMAND(list(map(str, arguments)))
        except SystemExit as end:
            status = int(end.code or 0)
            raise
    return status


@contextmanager
def _little_collecting() -> Iterator[None]:
    """Python's collector looks through all that torch and others have made, a fifth of the time of most kinds."""
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def _too_slow(*_: object) -> None:
    raise Fault(f"more than {_SECONDS} seconds")


@contextmanager
def _quiet() -> Iterator[None]:
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield
