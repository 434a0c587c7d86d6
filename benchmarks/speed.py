"""How fast everything is, with what it is compared to in the same run: results/speed/NAME.json, results/SPEED.md.

    python benchmarks/speed.py --quick                    # every row, some minutes on one core
    python benchmarks/speed.py --against ../before        # also with the lpg_hf of another checkout (a git worktree)
    python benchmarks/speed.py --render                   # results/SPEED.md alone

Images and weights are random, so nothing is downloaded. What is compared takes turns in one process; the result is the
median of the ratios of CPU seconds, which change little on a machine that has other work to do. Each row has a process
of its own (`benchmarks/speed_rows.py`), and with `--against` a second one right before it.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lpg_hf._files import write_atomically


ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
ROWS = ("masks", "e_step", "views", "compiled", "m_step", "start", "boxes", "loading", "index", "processes")


@dataclass(frozen=True)
class Line:
    """A line of the table: what is shown of the numbers, and the goal."""

    text: str
    key: str
    unit: str
    goal: str = ""
    lower_is_better: bool = False


LINES = (
    Line("pseudo masks, hourglass + LargeFOV at 500 px, against the official loop, fp32", "masks float32", "x", "10"),
    Line("the same in auto", "masks auto", "x", "16"),
    Line("pixels equal to the official loop's, float32", "masks equal float32", "%", "99.99"),
    Line("pixels equal to the official loop's, auto", "masks equal auto", "%"),
    Line("operations of the official loop against ours", "masks operations", "x"),
    Line("the official loop, float32", "masks official GFLOP/s", "GFLOP/s"),
    Line("ours in auto", "masks auto GFLOP/s", "GFLOP/s"),
    Line("E-step, hourglass, crops of 256 by eights, against the official step, float32", "E-step float32", "x", "5"),
    Line("the same in auto", "E-step auto", "x", "16"),
    Line("operations of the official step against ours", "E-step operations", "x"),
    Line("the official step, float32", "E-step official GFLOP/s", "GFLOP/s"),
    Line("ours in auto", "E-step auto GFLOP/s", "GFLOP/s"),
    Line("LPG training, SqueezeNet, views of 192 by sixteens, auto", "views a second", "views/s"),
    Line("the same", "views GFLOP/s", "GFLOP/s"),
    Line("the fastest 3x3 convolution of 256 channels in auto", "convolution GFLOP/s", "GFLOP/s"),
    Line("the same in float32", "convolution float32 GFLOP/s", "GFLOP/s"),
    Line("LPG training's share of the convolution in auto", "views share", "%", "60"),
    *(
        Line(f"{part} in its time", f"views {part}", "%")
        for part in ("convolutions", "copies", "norms", "pooling and upsampling", "optimizer")
    ),
    Line("the same training with torch.compile, against without", "compiled training", "x"),
    Line("the wait for its compiler", "compiled training wait", "s", "", True),
    Line("its inference with torch.compile, against without", "compiled inference", "x"),
    Line("the wait for its compiler", "compiled inference wait", "s", "", True),
    Line("segmenter training, MobileNetV2-DeepLabV3+, against a plain loop, auto", "M-step mobilenet", "x", "3"),
    Line("segmenter training, LargeFOV, against a plain loop, auto", "M-step largefov", "x", "3"),
    Line("`lpg-hf masks` with lpg-small on 5 images, start to end", "start masks", "s", "3.5", True),
    Line("its imports", "start imports", "s", "", True),
    Line("its imports against those of torch and transformers' models", "start imports ratio", "x", "1.2", True),
    Line("`lpg-hf masks` in a finished folder", "start finished", "s", "1", True),
    Line("`lpg-hf masks` of a file that does not exist", "start refused", "s", "1", True),
    Line("lpg-small, JPEG to PNG, against GrabCut", "boxes ratio", "x", "8"),
    Line("lpg-small, JPEG to PNG, a box", "boxes lpg-small", "ms", "", True),
    Line("GrabCut, JPEG to PNG, a box", "boxes grabcut", "ms", "", True),
    Line("cores that are idle meanwhile (lpg-small)", "boxes idle", "%", "10", True),
    Line("loading an E-step's sample, 640 x 480, image view with class prob.", "loading image view", "ms", "6", True),
    Line("the same, box view with class prob.", "loading box view", "ms", "6", True),
    Line("the same, box view with colour jitter", "loading box view, jitter", "ms", "6", True),
    Line("opening a COCO file with five boxes an image, an image", "index open all", "us", "", True),
    Line("the same of a tenth of the images", "index open a tenth", "us", "", True),
    Line("all its records, an image", "index records all", "us", "", True),
    Line("memory for it, an image", "index memory all", "kB", "", True),
    Line("the same of a tenth of the images", "index memory a tenth", "kB", "", True),
    Line("label maps of all of them by the boxes alone, an image", "index masks all", "us", "", True),
    Line("the same of a tenth of the images", "index masks a tenth", "us", "", True),
    Line("memory of the process after it", "index masks memory all", "MB", "", True),
    Line("the same of a tenth of the images", "index masks memory a tenth", "MB", "", True),
    Line("`lpg-hf masks`, lpg-small, one process of one thread, with its start", "processes 1", "images/s"),
    Line("two of them that share OUT", "processes 2", "images/s"),
)  # fmt: skip


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    model = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    abilities = getattr(torch.cpu, "get_capabilities", dict)()
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "bfloat16": bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16")),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _commit(folder: Path) -> str:
    told = subprocess.run(["git", "-C", str(folder), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return told.stdout.strip() or "unknown"


def _measured(row: str, quick: bool, of: Path) -> dict[str, float]:
    """The numbers of a row of the lpg_hf in the checkout `of`, from a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "LPG_HF_SPEED_OF": str(of.resolve())}
    command = [sys.executable, str(ROOT / "benchmarks" / "speed_rows.py"), row, *(["--quick"] if quick else [])]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"the row {row} failed with {of}; its error is above")
    return json.loads(done.stdout.splitlines()[-1])


def render(folder: Path = RESULTS) -> str:
    """results/SPEED.md of all json files in results/speed."""
    text = [(folder / "speed" / "about.md").read_text(encoding="utf-8").rstrip()]
    text += [_table(path) for path in sorted((folder / "speed").glob("*.json"))]
    return "\n".join(text) + "\n"


def _table(path: Path) -> str:
    """What a json file holds."""
    content = json.loads(path.read_text(encoding="utf-8"))
    about, now, before = content["machine"], content["now"], content.get("before")
    bf16 = "with" if about["bfloat16"] else "without"
    heads = ["", *(["before"] if before else []), "now", "unit", "goal"]
    text = [
        f"\n## {path.stem}\n",
        f"{about['cpu']}, {about['cores']} cores, {bf16} bfloat16 instructions; Python {about['python']}, torch "
        f"{about['torch']}{'; --quick' if content['quick'] else ''}. Now: {_commits(now)}"
        + (f"; before: {_commits(before)}." if before else "."),
        "\n| " + " | ".join(heads) + " |",
        "| --- |" + " ---: |" * (len(heads) - 1),
    ]
    for line in LINES:
        if line.key in now["numbers"]:
            sides = [before, now] if before else [now]
            shown = [_shown(side["numbers"].get(line.key), line.unit) for side in sides]
            goal = f"{'<=' if line.lower_is_better else '>='} {line.goal}" if line.goal else ""
            text.append("| " + " | ".join([line.text, *shown, line.unit, goal]) + " |")
    return "\n".join(text)


def _commits(side: dict) -> str:
    return ", ".join(dict.fromkeys(side["commits"].values()))


def _shown(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    if unit == "%":
        return f"{100 * value:.2f}" if value > 0.99 else f"{100 * value:.0f}" if value > 0.1 else f"{100 * value:.1f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _measure(arguments: argparse.Namespace) -> None:
    """Measures the rows, and keeps each in the json file as soon as it is there."""
    path = arguments.results / "speed" / f"{arguments.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    content |= {"machine": machine(), "quick": arguments.quick}
    for row in arguments.rows:
        for side, of in (("before", arguments.against), ("now", ROOT)):
            if of is not None:
                numbers = _measured(row, arguments.quick, of)
                kept = content.setdefault(side, {"numbers": {}, "commits": {}})
                kept["numbers"] |= numbers
                kept["commits"][row] = _commit(of)
                print(side, row, {name: round(value, 4) for name, value in numbers.items()}, flush=True)
        write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
    print(_table(path))


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer images and rounds")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, help="default: all")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="another checkout")
    parser.add_argument("--name", default="cpu", help="of the json file")
    parser.add_argument(
        "--render", action="store_true", help="write results/SPEED.md of the json files that are there"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args(given)
    if arguments.against is not None and not (arguments.against / "lpg_hf" / "__init__.py").is_file():
        parser.error(f"--against {arguments.against} has no lpg_hf: name a checkout, as of `git worktree add`")
    if not (arguments.results / "speed" / "about.md").is_file():
        parser.error(f"{arguments.results / 'speed' / 'about.md'} is not there, which the page begins with: copy it")
    if not arguments.render:
        _measure(arguments)
    (arguments.results / "SPEED.md").write_text(render(arguments.results), encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except (OSError, RuntimeError) as error:
        sys.exit(f"speed.py: {error}")
    except KeyboardInterrupt:
        sys.exit("speed.py: stopped; the rows that were printed are kept, --rows measures the others.")
