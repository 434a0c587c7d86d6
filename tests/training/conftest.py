import os

import pytest
from tiny_run import TINY, launch

from lpg_hf.data.synthetic import write_synthetic_dataset
from training.config import settings_from_dict


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
    write_synthetic_dataset(root, num_aux=8, num_target=6, num_eval=4, size=(64, 64), seed=0)
    return root


@pytest.fixture(scope="session")
def values(data):
    """Settings of the tiny run as a dict, without run_dir."""
    return TINY | {
        "aux_annotations": str(data / "aux" / "annotations.json"),
        "aux_images": str(data / "aux" / "images"),
        "target_root": str(data / "target"),
    }


@pytest.fixture
def settings(values, tmp_path):
    return settings_from_dict(values | {"run_dir": str(tmp_path / "run")}, "the test")


@pytest.fixture(scope="session")
def finished_run(values, tmp_path_factory):
    """An undisturbed em.py and deploy.py."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    for script in ("em.py", "deploy.py"):
        result = launch(script, values, run_dir)
        assert result.returncode == 0, result.stderr[-3000:]
    return run_dir
