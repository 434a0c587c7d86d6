"""The paper's claims in four figures, from the metrics.json of runs of deploy.py and of cells of the bench.

    python benchmarks/claims.py runs/deep/weak0 runs/deep/weak1 runs/deep/full runs/deep/sdi --out results/claims

stages.png has the masks and the segmenter stage by stage, with each stage's own LPG and with a fixed one (Tables II
and III); steps.png the segmenter over the training steps, weak beside semi and full (Table V); methods.png the methods
on the same boxes (Table V); aux_share.png the share of auxiliary images (Table VI). A figure for which there are no
runs is not drawn. Dots are means over seeds, bars go from the lowest to the highest; figures.json has every value and
the files that it comes from. The runs of a figure should differ in nothing else: give those of one protocol.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.history import as_of_today
from lpg_hf._files import write_json


Curve = dict[float, list[float]]  # x -> the values of all seeds
SIZE = (1200, 800)
FONT = 28  # pixels; half of it is still read with ease
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b")
_MODES = ("weak", "semi", "full")
_MARGINS = (110, 80, 40, 190)  # left, top, right, bottom


@dataclass(frozen=True)
class Result:
    """What one run measured.

    Attributes:
        path: of its metrics.json.
        mode: weak, semi or full.
        labels: source of the labels, `run.labels`.
        method: its name in a figure: that of the source, or of the bench's row if the source is a folder.
        fixed: whether one LPG makes the masks of every round.
        fraction: share of the auxiliary images.
        seed: of the run.
        steps: of the segmenter in a round.
        masks, segmenter: stage -> mIoU in [0, 1]; empty where a generator alone was trained.
        boxes: the same of the masks of measured boxes; empty where a cell of the bench does not measure them.
    """

    path: Path
    mode: str
    labels: str
    method: str
    fixed: bool
    fraction: float
    seed: int
    steps: int
    masks: dict[int, float]
    segmenter: dict[int, float]
    boxes: dict[int, float]

    @property
    def is_method(self) -> bool:
        """Weak supervision by the whole method of the paper, on all auxiliary images."""
        return (self.mode, self.labels, self.fixed, self.fraction) == ("weak", "lpg", False, 1.0)


def read_result(path: Path) -> Result | None:
    """The result in a metrics.json; None if it measured no stages (a cell of baselines, a stage's own)."""
    metrics = json.loads(path.read_text(encoding="utf-8"))
    if "segmenter_miou" in metrics and "pseudo_mask_miou" in metrics:
        groups = [metrics["pseudo_mask_miou"], metrics["segmenter_miou"], {}]
    elif metrics.get("kind", "deploy") != "baseline" and "configuration" in metrics:
        groups = [
            {stage: scores["mean_iou"] for stage, scores in metrics.get(name, {}).items()}
            for name in ("pseudo_masks", "segmenter", "boxes")
        ]
    else:
        return None
    settings = as_of_today({"settings": metrics["settings"]})["settings"]
    run, network = settings["run"], settings["segmenter"]
    labels = run.get("labels", "lpg")
    method, _, folder = labels.partition(":")
    if method == "folder":
        method = metrics.get("label") or Path(folder).name
    masks, segmenter, boxes = ({int(k): v for k, v in group.items() if k.isdecimal()} for group in groups)
    return Result(
        path,
        run.get("mode", "weak"),
        labels,
        method,
        run.get("fixed_stage") is not None,
        run.get("aux_fraction", 1.0),
        run.get("seed", 0),
        network.get("target_steps") or network["steps"],
        masks,
        segmenter,
        boxes,
    )


def read_results(paths: Iterable[Path]) -> list[Result]:
    """The results of files, or of all metrics.json below folders.

    Raises:
        ValueError: there are none, or two differ in nothing that a figure shows.
    """
    files = [file for path in paths for file in (sorted(path.rglob("metrics.json")) if path.is_dir() else [path])]
    results = [result for result in map(read_result, files) if result is not None]
    if not results:
        raise ValueError(f"none of {len(files)} metrics.json files has scores by stage.")
    seen: dict[tuple, Path] = {}
    for one in results:
        key = (one.mode, one.labels, one.fixed, one.fraction, one.seed, bool(one.segmenter))
        if key in seen:
            raise ValueError(f"{seen[key]} and {one.path} are the same to a figure: give the runs of one protocol.")
        seen[key] = one.path
    return sorted(results, key=lambda one: (_MODES.index(one.mode), one.fixed, one.fraction, one.seed))


def curves_of(results: list[Result]) -> dict[str, dict[str, Curve]]:
    """Figure -> name of a curve -> x -> mIoU in percent of every seed; figures and curves without values are left out.

    The x of `stages` is the stage, of `steps` the steps of the segmenter so far, of `aux_share` percent of the
    auxiliary images; `methods` has one x, 0, and a curve per method.
    """
    figures: dict[str, dict[str, Curve]] = {name: {} for name in ("stages", "steps", "methods", "aux_share")}

    def add(figure: str, name: str, values: Mapping[int, float] | Mapping[float, float]) -> None:
        for x, value in values.items():
            figures[figure].setdefault(name, {}).setdefault(x, []).append(100 * value)

    for one in results:
        if one.labels == "lpg" and one.mode == "weak" and not one.fixed and 1 in one.boxes:
            add("aux_share", "masks of measured boxes, stage 1", {100 * one.fraction: one.boxes[1]})
        if not one.segmenter:
            continue
        last_masks, last = max(one.masks, default=None), max(one.segmenter)
        if one.is_method or (one.fixed and one.mode == "weak" and one.fraction == 1):
            of = "fixed LPG" if one.fixed else "stage-wise"
            add("stages", f"pseudo masks, {of}", one.masks)
            add("stages", f"segmenter, {of}", one.segmenter)
        if one.is_method or one.mode != "weak":
            name = {"weak": "boxes", "semi": "boxes and some masks", "full": "masks"}[one.mode]
            add("steps", name, {(stage + 1) * one.steps: value for stage, value in one.segmenter.items()})
        if one.mode != "semi" and not one.fixed and one.fraction == 1:
            name = "full supervision" if one.mode == "full" else one.method
            add("methods", f"segmenter: {name}", {0: one.segmenter[last]})
            if last_masks is not None:
                add("methods", f"labels: {name}", {0: one.masks[last_masks]})
        if one.mode == "weak" and one.labels == "lpg" and not one.fixed:
            add("aux_share", "segmenter", {100 * one.fraction: one.segmenter[last]})
            if last_masks is not None:
                add("aux_share", "pseudo masks", {100 * one.fraction: one.masks[last_masks]})
    figures["aux_share"] = {name: curve for name, curve in figures["aux_share"].items() if len(curve) > 1}
    return {figure: curves for figure, curves in figures.items() if curves}


def line_figure(title: str, x_label: str, curves: Mapping[str, Curve]) -> Image.Image:
    """Curves over x with a dot for the mean of the seeds and a bar from the lowest to the highest."""
    image, draw, font = _canvas(title)
    left, top, right, bottom = _area(curves)
    places = sorted({x for curve in curves.values() for x in curve})
    first, span = places[0], (places[-1] - places[0]) or 1
    low, high = _limits(value for curve in curves.values() for values in curve.values() for value in values)

    def place(x: float, value: float) -> tuple[float, float]:
        return left + (x - first) / span * (right - left), bottom - (value - low) / (high - low) * (bottom - top)

    for tick in _ticks(low, high):
        draw.line([place(first, tick), place(places[-1], tick)], "#dddddd", 2)
        draw.text((left - 20, place(first, tick)[1]), f"{tick:g}", "black", font, anchor="rm")
    for x in places:
        draw.text((place(x, low)[0], bottom + 22), f"{x:g}", "black", font, anchor="mt")
    draw.text(((left + right) / 2, bottom + 58), x_label, "black", font, anchor="mt")
    for number, (name, curve) in enumerate(curves.items()):
        colour, means = COLOURS[number % len(COLOURS)], {x: sum(v) / len(v) for x, v in sorted(curve.items())}
        draw.line([place(x, mean) for x, mean in means.items()], colour, 4)
        for x, mean in means.items():
            draw.line([place(x, min(curve[x])), place(x, max(curve[x]))], colour, 8)
            centre = place(x, mean)
            draw.ellipse([centre[0] - 9, centre[1] - 9, centre[0] + 9, centre[1] + 9], colour)
        at = (left + (number % 2) * (right - left) // 2, bottom + 102 + 40 * (number // 2))
        draw.text(at, f"{name}{_of_seeds(curve)}", colour, font)
    return image


def bar_figure(title: str, bars: Mapping[str, Curve]) -> Image.Image:
    """A bar per name, the longest first, with its mean; a line goes from the lowest to the highest seed."""
    size = (SIZE[0], 110 + 52 * len(bars))
    image, draw, font = _canvas(title, size)
    values = {name: next(iter(curve.values())) for name, curve in bars.items()}
    left = 35 + max(round(draw.textlength(name + _of_seeds(bars[name]), font)) for name in bars)
    scale = (SIZE[0] - left - 110) / max(max(found) for found in values.values())
    for number, (name, found) in enumerate(sorted(values.items(), key=lambda item: -sum(item[1]) / len(item[1]))):
        middle, mean = 100 + 52 * number + 22, sum(found) / len(found)
        colour = COLOURS[0] if name.startswith("segmenter") else "#9aa7b1"
        draw.text((left - 15, middle), f"{name}{_of_seeds(bars[name])}", "black", font, anchor="rm")
        draw.rectangle([left, middle - 18, left + mean * scale, middle + 18], colour)
        draw.line([left + min(found) * scale, middle, left + max(found) * scale, middle], "black", 4)
        draw.text((left + max(found) * scale + 10, middle), f"{mean:.1f}", "black", font, anchor="lm")
    return image


def _of_seeds(curve: Curve) -> str:
    """How many seeds the dots of a curve have, "" for one."""
    fewest, most = (of(len(values) for values in curve.values()) for of in (min, max))
    return "" if most == 1 else f" ({most} seeds)" if fewest == most else f" ({fewest} to {most} seeds)"


def _canvas(title: str, size: tuple[int, int] = SIZE) -> tuple[Image.Image, ImageDraw.ImageDraw, Any]:
    image, font = Image.new("RGB", size, "white"), ImageFont.load_default(FONT)
    draw = ImageDraw.Draw(image)
    draw.text((20, 20), title, "black", ImageFont.load_default(FONT + 4))
    return image, draw, font


def _area(curves: Mapping[str, Curve]) -> tuple[int, int, int, int]:
    left, top, right, bottom = _MARGINS
    return left, top, SIZE[0] - right, SIZE[1] - bottom - 40 * max(0, (len(curves) - 3) // 2)


def _limits(values: Iterable[float]) -> tuple[float, float]:
    """The axis: whole tens around the values."""
    found = list(values)
    return 10 * (min(found) // 10), 10 * (max(found) // 10 + 1)


def _ticks(low: float, high: float) -> list[float]:
    step = 5 if high - low <= 40 else 10
    return [low + step * number for number in range(int((high - low) // step) + 1)]


FIGURES = {
    "stages": ("mIoU over the stages", "stage"),
    "steps": ("mIoU of the segmenter over its steps", "training steps"),
    "aux_share": ("mIoU over the share of auxiliary images", "percent of the auxiliary images"),
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="metrics.json files, or folders that hold some")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    results = read_results(options.runs)
    figures = curves_of(results)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, curves in figures.items():
        image = bar_figure("mIoU by method", curves) if name == "methods" else line_figure(*FIGURES[name], curves)
        image.save(options.out / f"{name}.png")
        print(f"{options.out / name}.png: {', '.join(curves)}")
    files = [result.path.as_posix() for result in results]
    write_json(options.out / "figures.json", {"files": files, "figures": figures})


if __name__ == "__main__":
    main()
