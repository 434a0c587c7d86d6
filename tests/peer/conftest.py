"""The peer suite: transformers' own model and image processor tests, run on our classes. Opt-in, since it downloads.

python tests/peer/fetch.py && LPG_HF_PEER=1 python -m pytest tests/peer
"""

import os
import sys

import pytest


sys.path.insert(0, os.path.dirname(__file__))

from fetch import CACHE  # noqa: E402


collect_ignore_glob = [] if os.environ.get("LPG_HF_PEER") == "1" else ["*"]

# Markers of the mixins.
MARKERS = (
    "peer",
    "slow",
    "accelerate_tests",
    "generate",
    "torch_compile_test",
    "torch_export_test",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "all_flash_attn_test",
)


def pytest_configure(config: pytest.Config) -> None:
    for marker in MARKERS:
        config.addinivalue_line("markers", f"{marker}: see tests/peer")


if not collect_ignore_glob:
    if not (CACHE / "hf_tests").exists():
        raise pytest.UsageError(f"{CACHE} is missing. Run `python tests/peer/fetch.py` first.")
    sys.path.insert(0, str(CACHE))
