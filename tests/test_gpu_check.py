"""`make gpu-check` is ready for the day a GPU is at hand: its dry run on a CPU measures all of it."""

import json
from math import inf

from benchmarks import gpu_check


def test_the_dry_run_measures_all_of_it(tmp_path):
    gpu_check.main(["--device", "cpu", "--tiny", "--out", str(tmp_path / "gpu/cpu.json")])
    found = json.loads((tmp_path / "gpu/cpu.json").read_text())
    assert found["against the CPU"].keys() == gpu_check._networks(tiny=True).keys()
    assert all(network["float32 difference"] < 1e-5 for network in found["against the CPU"].values())
    assert all(network["bf16 same class"] > 0.8 for network in found["against the CPU"].values())
    assert all(of["to the bit"] and of["finite"] for of in found["resumed training"].values())
    assert len(found["training"]) == 6 and all(0 < of["MFU"] < inf for of in found["training"].values())
    assert len(found["masks"]) == 2 and all(rate > 0 for rate in found["masks"].values())
