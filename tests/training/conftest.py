import os
from pathlib import Path

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tiny_run import TINY, run_script, settings_of

from lpg_hf.data.synthetic import _write_synthetic_dataset
from lpg_hf.training.run import Run


@pytest.fixture(scope="session", autouse=True)
def datasets_cache(tmp_path_factory):
    """The built datasets of these tests stay out of the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("HF_DATASETS_CACHE")
    os.environ["HF_DATASETS_CACHE"] = str(folder)
    import datasets.config

    default, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, folder
    yield folder
    datasets.config.HF_DATASETS_CACHE = default
    if before is None:
        del os.environ["HF_DATASETS_CACHE"]
    else:
        os.environ["HF_DATASETS_CACHE"] = before


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "synthetic"
    _write_synthetic_dataset(root, num_aux=8, num_target=6, num_eval=4, size=(64, 64), seed=0)
    return root


@pytest.fixture(scope="session")
def values(data):
    """Settings of the tiny run, `section.name` -> value, without run.dir."""
    return TINY | {
        "aux.annotations": str(data / "aux" / "annotations.json"),
        "aux.images": str(data / "aux" / "images"),
        "target.root": str(data / "target"),
    }


@pytest.fixture
def settings(values, tmp_path):
    return settings_of(values | {"run.dir": str(tmp_path / "run")})


@pytest.fixture(scope="module")
def own_precision():
    """Commands choose the precision by the machine; accelerate keeps that of the first run of a process."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


@pytest.fixture
def run(accelerator, settings):
    """A run whose folder exists."""
    Path(settings.run.dir).mkdir()
    return Run(accelerator, settings)


@pytest.fixture(scope="session")
def finished_run(values, tmp_path_factory):
    """An undisturbed em.py and deploy.py."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    for script in ("em.py", "deploy.py"):
        run_script(script, values, run_dir)
    return run_dir
