"""The bench: every number of results/TABLES.md, from one command per cell.

    python benchmarks/tables.py list                          # rows, what is done, minutes
    python benchmarks/tables.py run ablations/base           # TABLE, TABLE/ROW or TABLE/ROW/PROTOCOL; none: everything
    python benchmarks/tables.py render                        # results/TABLES.md from what is finished

The photographs and weights are not part of the repository: see --data and --weights. Everything together takes many
hours on two CPU cores (`list` says how many); `run` may be stopped at any time and is resumed by the same command, and
two of them share the work. benchmarks/cells.py says what a row is; a new row is a new file in benchmarks/rows.
"""

import argparse
import os
import signal
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cells import Cell, read_cells, select
from benchmarks.report import duration, render
from benchmarks.running import ROOT, VARIABLES, Bench, Busy, run_cell, write_text


DEFINITIONS = ROOT / "benchmarks"
TABLES_FILE = ROOT / "results" / "TABLES.md"


def run(bench: Bench, cells: list[Cell], *, redo: bool = False) -> int:
    """Run cells one after the other; a failure does not stop the others.

    Returns:
        Exit status: 1 if a cell failed.
    """
    waiting = [cell for cell in cells if redo or not bench.is_up_to_date(cell)]
    print(f"{len(cells)} cells, {len(cells) - len(waiting)} of them finished; {remaining(waiting)}")
    failed = {}
    for number, cell in enumerate(cells, start=1):
        if cell in waiting:
            print(f"[{number}/{len(cells)}] {cell.name} ({duration(cell.minutes)}); {remaining(waiting)}", flush=True)
            waiting.remove(cell)
        try:
            run_cell(bench, cell, redo=redo)
        except Busy as busy:
            print(f"  skipped: {busy}")
        except (ValueError, OSError, RuntimeError) as error:
            failed[cell.name] = error
            print(f"  failed: {error}", flush=True)
    if failed:
        print(f"{len(failed)} of {len(cells)} cells failed:")
        for name, error in failed.items():
            print(f"  {name}: {str(error).splitlines()[0]}")
    return int(bool(failed))


def show(bench: Bench, cells: list[Cell]) -> None:
    """One line per cell, and what is left to do."""
    width = max((len(cell.name) for cell in cells), default=0)
    for cell in cells:
        state = "finished" if bench.is_up_to_date(cell) else "not run" if bench.finished(cell) is None else "changed"
        print(f"{cell.name:<{width}}  {cell.kind:<9}  {state:<8}  {duration(cell.minutes)}")
    print(remaining([cell for cell in cells if not bench.is_up_to_date(cell)]))


def remaining(cells: list[Cell]) -> str:
    return f"{len(cells)} to run, {duration(sum(cell.minutes for cell in cells))} by the rows' expectations"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="command", required=True)
    running = actions.add_parser("run", help="run the cells that are not finished; all of them take many hours")
    listing = actions.add_parser("list", help="cells, finished or not, and their minutes")
    actions.add_parser("render", help="write results/TABLES.md from the finished cells")
    for action in (running, listing):
        action.add_argument("rows", nargs="*", metavar="TABLE[/ROW[/PROTOCOL]]", help="default: all")
        action.add_argument("--seed", type=int, help="only this seed")
    for name, variable in VARIABLES.items():
        help = f"folder of the {name}, relative to the repository root (default: the environment variable {variable})"
        running.add_argument(f"--{name}", default=os.environ.get(variable), metavar="DIR", help=help)
    running.add_argument(
        "--redo", action="store_true", help="delete the runs and results of the chosen cells first, and train again"
    )
    options = parser.parse_args(arguments)
    cells = read_cells(DEFINITIONS)
    bench = Bench()
    if options.command == "render":
        write_text(TABLES_FILE, render(cells, bench.results, TABLES_FILE.parent))
        return 0
    chosen = select(cells, options.rows, options.seed)
    if options.command == "list":
        show(bench, chosen)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: the command that is running is stopped too
    for name, variable in VARIABLES.items():
        if getattr(options, name) is None:
            raise ValueError(f"the folder of the {name} is not given: pass --{name} DIR, or set {variable}.")
    places = tuple((name, getattr(options, name)) for name in VARIABLES)
    return run(Bench(places=places), chosen, redo=options.redo)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        sys.exit(f"tables.py: {error}")
    except KeyboardInterrupt:
        sys.exit("tables.py: stopped; the same command resumes it.")
