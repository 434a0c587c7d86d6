"""A process that has imported the commands once, and forks one for each that is to run: a fork costs no imports.

Requests and answers are lines of json: {"arguments", "log", "root", "fault"} -> {"pid"}, and {"wait", "seconds"} ->
{"code"}, null while it runs.
"""

import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path


def watch(root: str, act_at: int, action) -> list[int]:
    """Calls `action` at the file operation with the number `act_at` below `root`; returns the running count."""
    count, command = [0], os.getpid()

    def hook(event: str, arguments: tuple) -> None:
        if os.getpid() != command:
            return  # a process that loads data
        if event.startswith(("open", "os.", "shutil.")) and any(
            isinstance(value, (str, os.PathLike)) and os.fspath(value).startswith(root) for value in arguments
        ):
            count[0] += 1
            if count[0] == act_at:
                action()

    sys.addaudithook(hook)
    return count


def child(arguments: list[str], log: str, root: str, fault: dict) -> int:
    """Runs a command with one fault, and returns its exit code.

    Args:
        root: gets caches and temporary files too, so that no run sees those of another.
        fault: {"signal", "at"}: at which file operation below root/work; {"delete", "at"}: a folder that is deleted
            there; {"descriptors"} or {"bytes"}: so many more may be opened, or written to one file; {"count"}: a file
            that gets the number of operations.
    """
    output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    import datasets.config
    import huggingface_hub.constants

    from lpg_hf.cli import main

    tempfile.tempdir = f"{root}/tmp"
    datasets.config.HF_DATASETS_CACHE = Path(root, "datasets")
    huggingface_hub.constants.HF_HUB_CACHE = f"{root}/hub"

    def act() -> None:
        if "delete" in fault:
            shutil.rmtree(fault["delete"], ignore_errors=True)
        else:
            os.kill(os.getpid(), fault["signal"])

    count = watch(f"{root}/work", fault.get("at", 0), act)
    if "descriptors" in fault:
        used = max(int(name) for name in os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1 + fault["descriptors"], used + 1 + fault["descriptors"]))
    if "bytes" in fault:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault["bytes"], resource.RLIM_INFINITY))
    sys.argv = ["lpg-hf", *arguments]
    try:
        main(arguments)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 99
    if "count" in fault:
        Path(fault["count"]).write_text(str(count[0]))
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def wait(pid: int, seconds: float) -> int | None:
    """The exit code as `subprocess` has it, or None while the process runs."""
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.002)


def serve() -> None:
    """Answers requests until the input ends."""
    for name in sys.argv[1:]:
        __import__(name)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = {"code": wait(request["wait"], request["seconds"])}
        else:
            pid = os.fork()
            if pid == 0:
                os._exit(child(**request))
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
