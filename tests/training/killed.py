"""Runs of em.py and deploy.py in forked processes that are killed; a fork costs no imports."""

import multiprocessing
import os
import random
import signal
from pathlib import Path


def child(script: str, values: dict, run_dir: Path, fatal: int | str | None, before: bool) -> None:
    """Runs a script; the process kills itself before or after a rename of a finished file or folder.

    Args:
        fatal: number of the rename, counted from 1, or the end of its target's path.
    """
    output = os.open(run_dir.with_suffix(".log"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    from training.config import settings_from_dict
    from training.deploy import run_deploy
    from training.em import run_em

    replace, count = os.replace, 0

    def dying_replace(source, target, **folders):
        nonlocal count
        counted = str(target).startswith(str(run_dir))
        count += counted
        dies = counted and (count == fatal or isinstance(fatal, str) and str(target).endswith(fatal))
        if dies and before:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target, **folders)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = dying_replace
    {"em.py": run_em, "deploy.py": run_deploy}[script](
        settings_from_dict(values | {"run_dir": str(run_dir)}, "the test")
    )


class Runner:
    """Starts such processes from a server that has imported everything once."""

    def __init__(self):
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["training.em", "training.deploy"])

    def run(
        self, script: str, values: dict, run_dir: Path, fatal: int | str | None = None, before: bool = True
    ) -> int:
        """Exit code; -9 if it was killed."""
        process = self.start(script, values, run_dir, fatal, before)
        process.join(timeout=200)
        assert process.exitcode is not None, "the run hangs"
        return process.exitcode

    def run_and_kill(self, script: str, values: dict, run_dir: Path, seconds: float) -> int:
        """Kills the process from outside after some seconds."""
        process = self.start(script, values, run_dir, None, True)
        process.join(timeout=seconds)
        process.kill()
        process.join()
        return process.exitcode

    def start(self, script, values, run_dir, fatal, before):
        process = self.context.Process(target=child, args=(script, values, run_dir, fatal, before))
        process.start()
        return process


def moments(seed: int, count: int, last: int) -> list[tuple[int, bool]]:
    """Random renames, each to die before or after."""
    generator = random.Random(seed)
    return [(generator.randrange(1, last), generator.random() < 0.5) for _ in range(count)]
