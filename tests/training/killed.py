"""Runs of em.py and deploy.py in forked processes that are killed; a fork costs no imports."""

import multiprocessing
import os
import random
import signal
from pathlib import Path


def child(script: str, values: dict, run_dir: Path, fatal: int | str | None, when: str) -> None:
    """Runs a script; the process kills itself at a rename of a finished file or folder, or inside a write.

    Args:
        fatal: number of the rename or write, counted from 1, or the end of the path that a rename leads to.
        when: before or after the rename; checkpoint or mask: with half of such a file written.
    """
    output = os.open(run_dir.with_suffix(".log"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    import torch
    from tiny_run import run_script

    import lpg_hf.training.masks

    if when == "checkpoint":
        torch.save = dying_write(torch.save, fatal, position=1)
    elif when == "mask":
        lpg_hf.training.masks.write_label_map = dying_write(lpg_hf.training.masks.write_label_map, fatal, position=0)
    replace, count = os.replace, 0

    def dying_replace(source, target, **folders):
        nonlocal count
        counted = str(target).startswith(str(run_dir)) and when in ("before", "after")
        count += counted
        dies = counted and (count == fatal or isinstance(fatal, str) and str(target).endswith(fatal))
        if dies and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target, **folders)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = dying_replace
    run_script(script, values, run_dir)


def dying_write(write, fatal: int, position: int):
    """The function, but its call with the number `fatal` ends the process with half a file.

    Args:
        position: of the argument that is the open file or its path.
    """
    count = 0

    def call(*arguments, **options):
        nonlocal count
        count += 1
        if count == fatal:
            file = arguments[position]
            file = file if hasattr(file, "write") else open(f"{file}.part", "wb")
            file.write(b"half a file")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return write(*arguments, **options)

    return call


class Runner:
    """Starts such processes from a server that has imported everything once."""

    def __init__(self):
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["training.em", "training.deploy"])

    def run(
        self, script: str, values: dict, run_dir: Path, fatal: int | str | None = None, when: str = "before"
    ) -> int:
        """Exit code; -9 if it was killed."""
        process = self.start(script, values, run_dir, fatal, when)
        process.join(timeout=200)
        assert process.exitcode is not None, "the run hangs"
        return process.exitcode

    def run_and_kill(self, script: str, values: dict, run_dir: Path, seconds: float) -> int:
        """Kills the process from outside after some seconds."""
        process = self.start(script, values, run_dir, None, "before")
        process.join(timeout=seconds)
        process.kill()
        process.join()
        return process.exitcode

    def start(self, script, values, run_dir, fatal, when):
        process = self.context.Process(target=child, args=(script, values, run_dir, fatal, when))
        process.start()
        return process


def moments(seed: int, count: int, last: int) -> list[tuple[int, str]]:
    """Random renames, each to die before or after."""
    generator = random.Random(seed)
    return [(generator.randrange(1, last), generator.choice(("before", "after"))) for _ in range(count)]
