"""Runs a consumer's own package on a written folder, in a process of its own; skips where it is not installed.

`make test-consumers` installs the packages without their dependencies into a folder and names it in LPG_HF_CONSUMERS.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest


def run_consumer(code: str, package: str, tmp_path: Path, *arguments: str) -> object:
    """What a script prints as json in its last line, run from another working folder, offline.

    Args:
        code: of the script; `sys.argv[1:]` are the arguments.
        package: that it needs.
        tmp_path: for settings of the package, and the working folder.
        arguments: for the script.
    """
    folder = os.environ.get("LPG_HF_CONSUMERS", "")
    if not folder or not Path(folder, package).is_dir():
        pytest.skip(f"{package} is not installed: make test-consumers")
    stubs, elsewhere = tmp_path / "stubs", tmp_path / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    if find_spec("torchvision") is None:  # Loading data needs its version only.
        (stubs / "torchvision").mkdir(parents=True, exist_ok=True)
        (stubs / "torchvision" / "__init__.py").write_text("__version__ = '0.28.0'\n")
        info = stubs / "torchvision-0.28.0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n")
    settings = {"YOLO_CONFIG_DIR": str(tmp_path), "YOLO_AUTOINSTALL": "False", "YOLO_OFFLINE": "True"}
    environment = {**os.environ, **settings, "PYTHONPATH": os.pathsep.join([str(stubs), folder])}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])
