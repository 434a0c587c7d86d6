"""`import lpg_hf` is light, its names resolve on use, and importing a model registers the families."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from setuptools import find_packages

import lpg_hf


ROOT = Path(__file__).parents[1]
KNOWS_LPG = "config = transformers.AutoConfig.for_model('lpg'); assert type(config).__name__ == 'LPGConfig'"
KNOWS_TASK = "assert 'box-mask-generation' in transformers.pipelines.PIPELINE_REGISTRY.get_supported_tasks()"


def run(code: str) -> str:
    """Standard output of a fresh interpreter; fails with its error text."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


# What takes seconds to import and knows nothing of us comes once; then each code gets a copy of the interpreter.
COPIES = """
import os, sys, traceback
import torch, transformers.image_processing_utils, transformers.modeling_utils
assert not any(name.startswith("lpg_hf") for name in sys.modules)
for code in sys.argv[1:]:
    if os.fork() == 0:
        try:
            exec(code, {})
        except BaseException:
            traceback.print_exc()
            print("in the code:", code, file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    if os.wait()[1] != 0:
        sys.exit(1)
"""


def run_each(codes: list[str]) -> None:
    """Every code in an interpreter that has imported torch and transformers, and nothing of ours."""
    if not hasattr(os, "fork"):
        for code in codes:
            run(code)
        return
    result = subprocess.run([sys.executable, "-c", COPIES, *codes], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr


def test_package_import_loads_no_heavy_library():
    heavy = ["torch", "transformers", "datasets", "evaluate", "accelerate", "numpy", "cv2"]
    assert run(f"import lpg_hf, sys; print([m for m in {heavy} if m in sys.modules])").strip() == "[]"


def test_auto_classes_know_the_families_once_a_model_is_imported():
    check = f"\nimport transformers\n{KNOWS_LPG}"
    run(f"import lpg_hf.models{check}")
    imports = [
        "from transformers import AutoModel; import lpg_hf.models",
        "from lpg_hf import LPGModel",
        # The file of one family registers all of them.
        "from lpg_hf.models.modeling_deeplab_v2 import DeepLabV2ForSemanticSegmentation",
        "import lpg_hf; lpg_hf.register_auto_classes()",
    ]
    run_each([f"{code}{check}" for code in imports])


def test_registering_again_changes_nothing():
    lpg_hf.register_auto_classes()
    lpg_hf.register_auto_classes()
    from transformers import AutoModel

    assert AutoModel._model_mapping[lpg_hf.LPGConfig] is lpg_hf.LPGModel


@pytest.mark.parametrize("name", lpg_hf.__all__)
def test_every_public_name_resolves(name: str):
    assert getattr(lpg_hf, name).__name__ == name and name in dir(lpg_hf)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'LPG'.*LPGModel"):
        lpg_hf.LPG


def test_packaging_lists_every_package():
    tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted([*find_packages(str(ROOT), include=["lpg_hf*"]), "lpg_hf.hub_cards"])


def test_pipeline_knows_the_task_once_it_is_registered():
    imports = [
        "import lpg_hf; from transformers import pipeline; lpg_hf.register_auto_classes()",
        "from transformers import pipeline; import lpg_hf.masks.pipeline",
        "from lpg_hf import BoxToMaskPipeline",
    ]
    run_each([f"{code}\nimport transformers.pipelines\n{KNOWS_TASK}" for code in imports])
