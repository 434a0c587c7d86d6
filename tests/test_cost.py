"""benchmarks/cost.py counts what REPRODUCE.md states."""

import sys
from pathlib import Path

import pytest

from benchmarks.cost import PHASES, main, measure


ROOT = Path(__file__).parents[1]


def test_weights_are_the_papers():
    weights = {phase.name: measure(phase)[0] for phase in PHASES[:2]}
    assert weights == {"LPG hourglass": 12_120_370, "LargeFOV": 20_546_429}


def test_reproduce_states_what_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    printed = {}
    for gpus in (1, 2, 8):
        monkeypatch.setattr(sys, "argv", ["cost.py", "--tflops", "10", "--gpus", str(gpus)])
        main()
        rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
        printed[gpus] = {row[0]: row[1:] for row in rows}
    page = (ROOT / "REPRODUCE.md").read_text(encoding="utf-8")
    for name, (weights, operations, kept, _, hours) in printed[1].items():
        memory = [printed[gpus][name][3].partition(": ")[2] for gpus in printed]
        kept = f"{int(kept.removesuffix(' MiB')):,} MiB"
        assert f"| {' | '.join([name, weights, operations, kept, *memory, hours])} |" in page
