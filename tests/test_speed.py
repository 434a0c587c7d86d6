"""`benchmarks/speed.py` measures every line of its table, and the official loop makes the masks that ours makes."""

import json

import pytest
import torch

from benchmarks import masks_speed, speed, speed_rows


TINY = speed_rows.Sizes(1, 64, 1, 64, 2, 32, 2, 33, 2, 2, 2, 20, 2, tiny=True)


def test_every_line_of_the_table_is_measured(monkeypatch: pytest.MonkeyPatch):
    """But for what takes processes of its own."""
    monkeypatch.setattr(masks_speed, "SIDE", 64)
    assert set(speed.ROWS) == speed_rows.ROWS.keys()
    numbers, threads = {}, torch.get_num_threads()
    for name in set(speed.ROWS) - {"start", "processes"}:
        numbers |= speed_rows.ROWS[name](TINY)
    torch.set_num_threads(threads)  # one row uses all cores
    missing = {line.key for line in speed.LINES if not line.key.startswith(("start", "processes"))} - numbers.keys()
    assert not missing and all(value >= 0 for value in numbers.values())
    assert numbers["masks equal float32"] == 1


def test_both_sides_stand_in_one_table(tmp_path, monkeypatch: pytest.MonkeyPatch, capsys):
    for folder in ("speed", "lpg_hf"):
        (tmp_path / folder).mkdir()
    (tmp_path / "lpg_hf/__init__.py").touch()
    (tmp_path / "speed/about.md").write_text("# Speed\n")
    of = {
        speed.ROOT: {"masks float32": 7.25, "start masks": 4.0},
        tmp_path: {"masks float32": 5.0, "start masks": 7.5},
    }
    monkeypatch.setattr(speed, "_measured", lambda row, quick, checkout: of[checkout])
    speed.main(["--rows", "masks", "--against", str(tmp_path), "--results", str(tmp_path), "--name", "one"])
    assert json.loads((tmp_path / "speed/one.json").read_text())["now"]["numbers"] == of[speed.ROOT]
    page = (tmp_path / "SPEED.md").read_text()
    assert page.strip().endswith(capsys.readouterr().out[-200:].strip())  # and the table is printed
    assert "| 5.00 | 7.25 | x | >= 10 |" in page and "| 7.50 | 4.00 | s | <= 3.5 |" in page
    speed.main(["--rows", "masks", "--results", str(tmp_path), "--name", "two"])
    assert "| 7.25 | x | >= 10 |" in (tmp_path / "SPEED.md").read_text().split("## two")[1]


def test_a_folder_that_is_no_checkout_is_not_compared_with(tmp_path, capsys):
    with pytest.raises(SystemExit):
        speed.main(["--against", str(tmp_path)])
    assert "has no lpg_hf" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        speed.main(["--render", "--results", str(tmp_path)])
    assert "about.md is not there" in capsys.readouterr().err


def test_the_committed_page_is_rendered_from_the_committed_files():
    assert (speed.RESULTS / "SPEED.md").read_text(encoding="utf-8") == speed.render()
