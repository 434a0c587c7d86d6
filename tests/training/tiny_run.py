"""The tiny run of these tests: 8 auxiliary and 6 target images, networks of a few thousand parameters, two stages."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import yaml

from lpg_hf.training.config import Settings, flat
from lpg_hf.training.parsing import merged, settings_from_dict


ROOT = Path(__file__).parents[2]

TINY = {
    "run.num_stages": 2,
    "run.num_threads": 1,
    "run.num_workers": 0,
    "run.checkpoint_every": 2,
    "run.log_every": 1,
    "run.inference_batch_size": 4,
    "aux.classes": None,
    "target.split": "train",
    "evaluation.split": "val",
    "run.semi_split": "val",
    "lpg.config": {"embedding_size": 16, "hidden_sizes": [16, 16], "depths": [1, 1], "neck_size": 8, "head_size": 8},
    "lpg.steps": 5,
    "lpg.batch_size": 4,
    "lpg.crop_size": 32,
    "segmenter.model": "deeplab-v2",
    "segmenter.config": {
        "block": "basic",
        "depths": [1, 1, 1, 1],
        "stem_size": 16,
        "hidden_sizes": [16, 16, 16, 16],
        "batch_norm": "train",
    },
    "segmenter.steps": 5,
    "segmenter.batch_size": 4,
    "segmenter.crop_size": 33,
}
# No batch statistics and no dropout: what one process and two compute can be compared.
LARGEFOV = {
    "segmenter.model": "largefov",
    "segmenter.config": {"depths": [1, 1, 1, 1, 1], "hidden_sizes": [8] * 5, "fc_size": 8, "dropout_prob": 0.0},
    "segmenter.learning_rate": 1.0e-2,
}


def nested(values: dict) -> dict:
    """`{"lpg.steps": 3}` as a file has it."""
    content: dict = {}
    for name, value in values.items():
        for key in reversed(name.split(".")):
            value = {key: value}
        content = merged(content, value)
    return content


def settings_of(values: dict, source: str = "the test") -> Settings:
    """Settings from `section.name` -> value."""
    return settings_from_dict(nested(values), source)


def changed(settings: Settings, changes: dict) -> Settings:
    """The settings with other values, by `section.name` or `section.dict.name`; evaluation follows the target's."""
    follow = {k.replace("target.", "evaluation.", 1): v for k, v in changes.items() if k.startswith("target.")}
    return settings_of(flat(settings) | follow | changes)


def run_script(script: str, values: dict, run_dir: Path) -> None:
    """Runs a script of training/ in this process."""
    from training.deploy import run_deploy
    from training.em import run_em

    {"em.py": run_em, "deploy.py": run_deploy}[script](settings_of(values | {"run.dir": str(run_dir)}))


def launch(script: str, values: dict, run_dir: Path, *flags: str, wrapper: str = "", processes: int = 1):
    """Runs a script of training/ in a new process, as a user does.

    Args:
        wrapper: Python code that is executed before the script, in its process.
        processes: above 1: that many gloo processes on the CPU.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    config = run_dir.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(nested(values | {"run.dir": str(run_dir)})), encoding="utf-8")
    path = str(ROOT / "training" / script)
    arguments = ["--config", str(config), *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    if processes > 1:
        environment |= {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"}
        options = f"--multi_gpu --num_processes {processes} --num_machines 1 --mixed_precision no --dynamo_backend no"
        launcher = [sys.executable, "-m", "accelerate.commands.launch", *options.split(), "--main_process_port", "0"]
        command = [*launcher, path, *arguments]
    elif wrapper:
        code = f"{wrapper}\nimport runpy, sys\nsys.argv = {[path, *arguments]!r}\n"
        code += f"runpy.run_path({path!r}, run_name='__main__')"
        command = [sys.executable, "-c", code]
    else:
        command = [sys.executable, path, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=ROOT)


def weights(run_dir: Path) -> dict[str, str]:
    """sha256 of every weight and mask file of a run, by relative path."""
    files = [*run_dir.rglob("model.safetensors"), *run_dir.rglob("pseudo_masks/**/*.png")]
    return {str(f.relative_to(run_dir)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
