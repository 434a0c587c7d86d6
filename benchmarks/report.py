"""results/TABLES.md, from the rows and the `metrics.json` of the finished cells, and nothing else."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from benchmarks.cells import Cell, differences, json_like
from benchmarks.history import as_of_today, has_shifted_frame


HEAD = """# Tables

Rendered by `python benchmarks/tables.py render` from the `metrics.json` of each run, to which every line is linked:
the commands, seconds, settings, seeds, versions and the machine stand there. Percent; where a row has several seeds,
their mean and each of them.

- **fg**: mean over the classes, without the background; of boxes, the pixels of a class are pooled over its boxes.
  **bg**: mIoU of the label maps with the background, as in the paper.
- **boxes**: masks of the boxes of the measured photographs, which no step of the training has seen. **per box**: mean
  IoU of the single boxes; **boundary**: their boundary IoU.
- **masks**: pseudo masks on the target's own training photographs, whose ground truth no step has read, except where a
  row says so.
- **boxes / s**: on one core, often beside other work on the machine: an order of magnitude.
- **segm.**: the segmenter on the measured photographs, single scale; **CRF**: after a dense CRF; **of full**: its bg
  as a share of the same segmenter's with full supervision, in the same stage.
- The photographs are the subsets behind `LPG_HF_DATA`, scaled to 320 px; `val_mix` is not VOC's val, and no number
  here compares with a published one. Training is far shorter than the paper's; `benchmarks/protocols` says how much.
"""
DIRECTIONS = {
    "coco60_voc": "COCO-60 -> VOC",
    "voc_coco60": "VOC -> COCO-60",
    "fold0": "fold 0",
    "deep": "COCO-60 -> VOC, longer",
}
BASE = "base"
SHIFTED = "crops of 129 px: [shifted in use](README.md#the-frame-of-the-segmenter)"


@dataclass(frozen=True)
class Line:
    """The cells of one row under one protocol: one per seed.

    Attributes:
        cells: in the order of the seeds.
        metrics: of those that are finished.
    """

    cells: tuple[Cell, ...]
    metrics: tuple[dict, ...]

    @property
    def cell(self) -> Cell:
        return self.cells[0]

    @property
    def note(self) -> str:
        """Of the row, and of what has been found since about a finished seed."""
        shifted = any(has_shifted_frame(metrics["configuration"]) for metrics in self.metrics)
        return "; ".join(filter(None, (self.cell.note, SHIFTED if shifted else "")))

    @property
    def missing(self) -> str:
        """What has not been run, "" if everything has."""
        done = {metrics["seed"] for metrics in self.metrics}
        left = [cell for cell in self.cells if cell.seed not in done]
        if not left:
            return ""
        what = "not run" if len(left) == len(self.cells) else f"seed {', '.join(str(c.seed) for c in left)} not run"
        return f"{what} ({duration(sum(cell.minutes for cell in left))})"

    def values(self, *path: str) -> list[float]:
        """The number at a path of keys in the metrics of each finished seed that has it."""
        found = []
        for value in self.metrics:
            for key in path:
                value = value.get(key) if isinstance(value, dict) else None
            if value is not None:
                found.append(value)
        return found

    def keys(self, name: str) -> list[str]:
        """The stages, or generators, that a group of the metrics has."""
        return list(dict.fromkeys(key for metrics in self.metrics for key in metrics.get(name, {})))


def render(cells: list[Cell], results: Path, folder: Path) -> str:
    """The text of TABLES.md.

    Args:
        cells: all, finished or not.
        results: folder of the finished cells.
        folder: that the links are relative to.

    Raises:
        ValueError: a protocol that the tables do not know.
    """
    unknown = sorted({cell.protocol for cell in cells} - set(DIRECTIONS))
    if unknown:
        raise ValueError(
            f"protocol {', '.join(unknown)} has no heading; add it to DIRECTIONS in benchmarks/report.py."
        )
    lines = _lines(cells, results)
    link = _linker(results, folder)

    def of(table: str, protocol: str, *rows: str) -> list[Line]:
        found = [line for line in lines if (line.cell.table, line.cell.protocol) == (table, protocol)]
        return [line for line in found if not rows or line.cell.row in rows]

    deep, two, one_round = (of(table, "deep") for table in ("deep", "deep_two", "deep_long"))
    parts = [HEAD]
    parts += ["## Longer runs\n", DEEP, _stage_table(deep, link, of_full=True), _cost_table(deep)]
    parts += ["### Two rounds, not shifted\n", TWO_ROUNDS]
    parts += [_stage_table(two, link, of_full=True), _cost_table(two)]
    parts += ["### One longer round\n", ONE_ROUND, _stage_table(one_round, link, of_full=True), _cost_table(one_round)]
    parts += ["### One generator, as long as a stage\n", _stage_table(of("deep_lpg", "deep"), link)]
    parts += [
        SHALLOW,
        "## II. Stages, encoders, stage-wise against fixed\n",
        f"{DIRECTIONS['coco60_voc']}. Stage 0 is a segmenter trained on filled boxes.\n",
        _stage_table(of("stages", "coco60_voc"), link),
        "## III. Masks of the measured boxes, against generators without training\n",
    ]
    for protocol, direction in DIRECTIONS.items():
        if not of("baselines", protocol):
            continue
        trained = [line for line in of("stages", protocol) if line.cell.kind == "stages"]
        parts += [f"### {direction}\n", _box_table(of("baselines", protocol) + trained, link)]
    parts += [
        "## IV. Weak, semi and full supervision\n",
        "Semi: the photographs of VOC's own train list keep their ground truth; full: all do, for as many rounds.\n",
    ]
    for protocol, direction in DIRECTIONS.items():
        supervised = of("supervision", protocol)
        if supervised:
            table = _stage_table(
                _by_supervision(of("stages", protocol, "squeezenet") + supervised), link, of_full=True
            )
            parts += [f"### {direction}\n", table]
    parts.append("## VII. Both directions\n")
    both = {line.cell.row for line in of("stages", "voc_coco60")}
    for protocol in ("coco60_voc", "voc_coco60"):
        parts += [f"### {DIRECTIONS[protocol]}\n", _stage_table(of("stages", protocol, *both), link)]
    parts += ["## Fold 0 of PASCAL-5i\n", FOLD0, _stage_table(of("stages", "fold0"), link)]
    parts += ["## Ablations\n", ABLATIONS, _ablation_table([x for x in lines if x.cell.table == "ablations"], link)]
    return "\n".join(parts)


SHALLOW = """All tables below are of runs of minutes (`shallow/`): at most 4,800 views an E-step, and segmenters far
from converged.
"""

DEEP = """COCO-60 -> VOC on all 2,877 target photographs: the whole method beside the methods that the paper compares
it with (`--run.labels`), on the same boxes, segmenter and schedule. A source whose labels never change trains on the
same ones in all rounds. **masks** of round 0 are the source's first labels, or filled boxes.
"""
TWO_ROUNDS = """Two rounds on crops of 128 px, in which the segmenter sees what it sees in use: with 129, as above, it
was [shifted](README.md#the-frame-of-the-segmenter).
"""
ONE_ROUND = """The same segmenter and photographs, but a single round whose learning rate falls once: with three times
the crops of all four rounds above, or with fewer that hold most of a photograph.
"""
FOLD0 = """170 of the 374 target photographs are auxiliary ones too, with masks of the other classes; objects of the
target classes are background there.
"""
ABLATIONS = """One change at a time, one generator without class probability, at about equal time. Masks of the
measured boxes; the difference to the base row in points. s: seconds of the training, of which other work on the same
cores is a part; the number of steps is in the labels' files.
"""


def _stage_table(lines: list[Line], link: Callable[[Line], str], *, of_full: bool = False) -> str:
    """One line per row and stage, with everything that is measured at it.

    Args:
        of_full: also the segmenter's mIoU as a share of that of the same network with full supervision, in the same
            stage.
    """
    groups = {
        "boxes": (
            "boxes",
            {"fg": "foreground_iou", "bg": "mean_iou", "per box": "mean_box_iou", "boundary": "mean_boundary_iou"},
        ),
        "masks": ("pseudo_masks", {"fg": "foreground_mean_iou", "bg": "mean_iou"}),
        "segm.": ("segmenter", {"fg": "foreground_mean_iou", "bg": "mean_iou"}),
    }
    table = []
    for line in lines:
        stages = sorted(set(line.keys("segmenter") + line.keys("pseudo_masks") + line.keys("boxes")))
        for stage in stages:
            cells = {"": line.cell.label, "stage": stage}
            for group, (key_of_group, scores) in groups.items():
                for name, key in scores.items():
                    title = name if name in ("per box", "boundary") else f"{group} {name}"
                    cells[title] = percent(line.values(key_of_group, stage, key))
            for name, key in (("fg", "foreground_mean_iou"), ("bg", "mean_iou")):
                cells[f"CRF {name}"] = percent(line.values("segmenter", stage, "crf", key))
            full = _values_with_full_supervision(line, lines, stage) if of_full else []
            if full:
                cells["of full"] = f"{mean(line.values('segmenter', stage, 'mean_iou')) / mean(full):.3f}"
            if stage == "0" and not cells["masks bg"] and line.cell.mode == "weak":  # what stage 0 is trained on
                cells["masks fg"] = percent(line.values("box_fill", "foreground_mean_iou"))
                cells["masks bg"] = percent(line.values("box_fill", "mean_iou"))
            table.append(cells | _ends(line, link, first=stage == stages[0]))
        if not stages:
            table.append({"": line.cell.label} | _ends(line, link))
    return _markdown(table)


def _cost_table(lines: list[Line]) -> str:
    """What each row was trained with: views and crops, and how fast its segmenter went."""
    table = []
    for line in lines:
        if not line.metrics:
            continue
        settings, metrics = line.metrics[0]["settings"], line.metrics[0]
        lpg, segmenter = settings["lpg"], settings["segmenter"]
        # Rounds are those on the target set, or on the auxiliary set where stages alone are trained.
        part, steps = "aux", segmenter["steps"]
        if line.cell.kind != "em":
            part, steps = "target", segmenter["target_steps"] or steps
        seconds = [
            stage["seconds"]
            for name, stage in metrics["training"].items()
            if name.startswith(part) and name.endswith("segmenter")
        ]
        is_bf16 = settings["run"]["mixed_precision"] == "auto" and metrics["hardware"]["native_bf16"]
        cells = {"": line.cell.label, "views per E-step": ""}
        if line.cell.kind != "deploy":
            cells["views per E-step"] = f"{lpg['steps'] * lpg['batch_size']:,}"
        if seconds:
            cells |= {
                "rounds": str(len(seconds)),
                "steps per round": str(steps),
                "crops per step": f"{segmenter['batch_size']} of {segmenter['crop_size']} px",
                "crops / s": f"{len(seconds) * steps * segmenter['batch_size'] / sum(seconds):.1f}",
            }
        table.append(cells | {"precision": "bfloat16" if is_bf16 else "float32"})
    return _markdown(table)


def _box_table(lines: list[Line], link: Callable[[Line], str]) -> str:
    """One line per generator, or per stage of a trained row."""
    table = []
    for line in lines:
        names = line.keys("boxes")
        for name in names:
            label = line.cell.generators.get(name) or f"{line.cell.label}, stage {name}"
            cells = {"": label}
            for title, key in (
                ("boxes fg", "foreground_iou"),
                ("boxes bg", "mean_iou"),
                ("per box", "mean_box_iou"),
                ("boundary", "mean_boundary_iou"),
            ):
                cells[title] = percent(line.values("boxes", name, key))
            cells["boxes / s"] = plain(line.values("boxes", name, "boxes_per_second"))
            cells["photographs, boxes"] = ", ".join(
                plain(line.values("boxes", name, key)[:1]) for key in ("num_images", "num_boxes")
            )
            table.append(cells | _ends(line, link, first=name == names[0]))
        if not names:
            table.append({"": line.cell.label} | _ends(line, link))
    return _markdown(table)


def _ablation_table(lines: list[Line], link: Callable[[Line], str]) -> str:
    """One line per change, the directions side by side, each with its difference to the base row."""
    directions = [protocol for protocol in DIRECTIONS if any(line.cell.protocol == protocol for line in lines)]
    of = {(line.cell.row, line.cell.protocol): line for line in lines}
    table = []
    for row in dict.fromkeys(line.cell.row for line in lines):
        here = [of[row, protocol] for protocol in directions if (row, protocol) in of]
        cells, notes, runs = {"": here[0].cell.label}, [], []
        for protocol in directions:
            line, base = of.get((row, protocol)), of.get((BASE, protocol))
            direction = DIRECTIONS[protocol]
            for title, key in (("fg", "foreground_iou"), ("bg", "mean_iou"), ("per box", "mean_box_iou")):
                values = _last_stage(line, key) if line else []
                before = _last_stage(base, key) if base and row != BASE else []
                text = percent(values)
                if values and before:
                    text += f" ({100 * (mean(values) - mean(before)):+.1f})"
                cells[f"{direction}: {title}"] = text
            cells[f"{direction}: s"] = plain(line.values("training_seconds")) if line else ""
            if line:
                notes.append(line.note)
                runs.append(link(line))
                if line.missing:
                    runs[-1] = f"{runs[-1]} {line.missing}".strip()
        cells["note"] = " ".join(dict.fromkeys(note for note in notes if note))
        cells["runs"] = "; ".join(runs)
        table.append(cells)
    return _markdown(table)


def percent(values: list[float]) -> str:
    """`71.2`, or of several seeds `71.2 (70.9, 71.5)`."""
    return _with_each([100 * value for value in values], ".1f")


def plain(values: list[float]) -> str:
    return f"{mean(values):.0f}" if values else ""


def duration(minutes: float) -> str:
    """`about 50 minutes`, or from two hours on `about 3.5 hours`."""
    return f"about {minutes:g} minutes" if minutes < 120 else f"about {minutes / 60:.1f} hours"


def _with_each(values: list[float], form: str) -> str:
    if len(values) < 2:
        return "".join(f"{value:{form}}" for value in values)
    return f"{mean(values):{form}} ({', '.join(f'{value:{form}}' for value in values)})"


def _last_stage(line: Line, key: str) -> list[float]:
    return line.values("boxes", max(line.keys("boxes"), default=""), key)


def _by_supervision(lines: list[Line]) -> list[Line]:
    """The rows of one segmenter together, in the order of the first, and from weak to full."""
    segmenters = list(dict.fromkeys(line.cell.settings["segmenter"]["model"] for line in lines))
    modes = ("weak", "semi", "full")
    return sorted(
        lines,
        key=lambda line: (segmenters.index(line.cell.settings["segmenter"]["model"]), modes.index(line.cell.mode)),
    )


def _values_with_full_supervision(line: Line, lines: list[Line], stage: str) -> list[float]:
    """The mIoU of the same segmenter and schedule in the row with mode full; empty for that row, or without one."""
    values = line.values("segmenter", stage, "mean_iou")
    if line.cell.mode == "full" or not values:
        return []
    segmenter = line.cell.settings["segmenter"]
    full = [other for other in lines if other.cell.mode == "full" and other.cell.settings["segmenter"] == segmenter]
    return full[0].values("segmenter", stage, "mean_iou") if full else []


def _ends(line: Line, link: Callable[[Line], str], first: bool = True) -> dict[str, str]:
    """Note and links, on the first line of a row."""
    run = " ".join(filter(None, (link(line), line.missing)))
    return {"note": line.note if first else "", "run": run if first else ""}


def _lines(cells: Iterable[Cell], results: Path) -> list[Line]:
    """The rows; what was measured with another configuration than the row has now counts as not run."""
    grouped: dict[str, list[Cell]] = {}
    for cell in cells:
        grouped.setdefault(cell.line, []).append(cell)
    lines = []
    for group in grouped.values():
        files = [results / cell.result / "metrics.json" for cell in sorted(group, key=lambda cell: cell.seed)]
        metrics = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]
        of_seed = {cell.seed: cell for cell in group}
        metrics = [
            m
            for m in metrics
            if not differences(as_of_today(m["configuration"]), json_like(of_seed[m["seed"]].configuration))
        ]
        lines.append(Line(tuple(sorted(group, key=lambda cell: cell.seed)), tuple(metrics)))
    return lines


def _linker(results: Path, folder: Path) -> Callable[[Line], str]:
    def link(line: Line) -> str:
        finished = {metrics["seed"] for metrics in line.metrics}
        names = {
            cell.seed: (results / cell.result / "metrics.json").relative_to(folder).as_posix()
            for cell in line.cells
            if cell.seed in finished
        }
        return ", ".join(f"[seed {seed}]({name})" for seed, name in names.items())

    return link


def _markdown(table: list[dict[str, str]]) -> str:
    """Lines of column -> text; a column without any text is dropped."""
    if not table:
        return "No row.\n"
    titles = list(dict.fromkeys(title for cells in table for title in cells))
    titles.sort(key=lambda title: title in ("note", "run", "runs"))
    titles = [title for title in titles if any(cells.get(title) for cells in table)]
    lines = ["| " + " | ".join(titles) + " |", "| " + " | ".join("---" for _ in titles) + " |"]
    lines += ["| " + " | ".join(cells.get(title, "") for title in titles) + " |" for cells in table]
    return "\n".join(lines) + "\n"
