"""IoU per box in many domains, with boxes that fit and boxes that do not: one table and one figure.

    python benchmarks/domains.py --data $LPG_HF_DATA --out runs/domains [--model NAME=STAGE ...] [--limit 30]

Every generator gets the boxes of two sets of photographs and of the sets under `domains/` as they are annotated, and
again with edges moved: see `CHANGES`. Models are bundled ones, or NAME=FOLDER. OUT gets domains.json, domains.md and
looseness.png. Cells that are in domains.json are not run again, so an interrupted bench goes on, and a later model
joins the table; those of a model whose files have changed since are. Page and figure show the cells of one --limit.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

from PIL import Image, ImageDraw, ImageFont


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lpg_hf._files import write_json
from lpg_hf.data.options import SOURCE_OPTIONS
from lpg_hf.data.report import Report
from lpg_hf.data.sources import evenly, open_source
from lpg_hf.evaluation.compare import ComparedData, Comparison, measure
from lpg_hf.generators.base import GeneratorOptions
from lpg_hf.generators.bundle import BUNDLED, bundled


# Name of a change -> how far every edge moves outwards, from and to, as shares of the box's size.
CHANGES = {
    "exact": (0.0, 0.0),
    "+10 %": (0.1, 0.1),
    "+25 %": (0.25, 0.25),
    "-10 %": (-0.1, -0.1),
    "random": (-0.1, 0.25),
}
CLASSICAL = ("box", "grabcut", "densecrf")
FIGURE_CHANGES = ("-10 %", "exact", "+10 %", "+25 %")  # along the axis, at the share that they name
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#7f7f7f")


@dataclass(frozen=True)
class BoxSet:
    """Photographs with boxes and masks: a COCO file, which is its own ground truth, or a list of a VOC folder."""

    name: str
    annotations: Path
    images: Path | None = None
    split: str | None = None

    def comparison(self, limit: int | None, model: str | None, change: str) -> Comparison:
        """What `lpg_hf.evaluation.compare.measure` runs: at most `limit` photographs, evenly spaced."""
        images = None if self.images is None else str(self.images)
        truth = self.annotations if self.split is None else self.annotations / "SegmentationClass"
        options = replace(SOURCE_OPTIONS, split=self.split)
        data = ComparedData(str(self.annotations), images, str(truth), options=options)
        indices = range(len(open_source(data.annotations, data.images, options, report=Report())))
        return Comparison(
            data,
            GeneratorOptions(model=model, dtype="float32"),
            indices=evenly(indices, limit or len(indices)),
            box_offsets=CHANGES[change],
        )


@dataclass(frozen=True)
class Cell:
    """One generator on one set with one change of its boxes; `model` is the folder of an LPG."""

    boxes: BoxSet
    change: str
    generator: str
    model: str | None = None

    @property
    def key(self) -> str:
        return " | ".join((self.boxes.name, self.change, self.generator))

    @property
    def digest(self) -> str | None:
        """A hash of the files that decide the masks of the model; None for a generator without one."""
        if self.model is None:
            return None
        files = (Path(self.model) / name for name in ("config.json", "preprocessor_config.json", "model.safetensors"))
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def box_sets(data: Path) -> list[BoxSet]:
    """The two sets of photographs, of which no bundled generator has seen these parts, and the domains.

    VOC has masks of classes, so the mask of a box is that of its class inside the annotated box; void does not count.
    """
    sets = [
        BoxSet("voc", data / "voc", split="val_mix"),
        BoxSet("coco", data / "coco/instances_nonvoc_val.json", data / "coco/images"),
    ]
    folders = sorted(file.parent for file in (data / "domains").glob("*/instances.json"))
    return sets + [BoxSet(folder.name, folder / "instances.json", folder / "images") for folder in folders]


def named_models(texts: list[str]) -> dict[str, str]:
    """Name -> folder of bundled models and of "NAME=FOLDER".

    Raises:
        ValueError: a text is neither.
    """
    named = {}
    for text in texts:
        name, _, folder = text.partition("=")
        if not folder and name not in BUNDLED:
            raise ValueError(f"--model {text} is not a bundled model ({', '.join(BUNDLED)}); write NAME=FOLDER.")
        named[name] = folder or str(bundled(name))
    return named


def cells(sets: list[BoxSet], changes: list[str], generators: list[str], models: dict[str, str]) -> Iterator[Cell]:
    """Photographs and exact boxes first, so that the numbers that say most are there early."""
    for change in changes:
        for boxes in sets:
            for name, folder in models.items():
                yield Cell(boxes, change, name, folder)
            for generator in generators:
                yield Cell(boxes, change, generator)


def run(cell: Cell, limit: int | None) -> dict:
    """Numbers of one cell, as in domains.json."""
    row = measure(cell.boxes.comparison(limit, cell.model, cell.change), "lpg" if cell.model else cell.generator)
    return {
        "set": cell.boxes.name,
        "change": cell.change,
        "generator": cell.generator,
        "model_digest": cell.digest,
        **{key: round(row.scores[key] or 0.0, 4) for key in ("mean_box_iou", "foreground_iou")},
        "score_rank_correlation": row.scores["score_rank_correlation"],
        "num_images": row.num_images,
        "num_boxes": row.num_boxes,
        "limit": limit,
    }


ABOUT = """# Masks of boxes in many domains

IoU per box in percent, the best of a line bold, as `python benchmarks/domains.py` (`make bench-domains`) measures it.
Photographs: {sizes}. Boxes: **exact** as annotated; **+10 %** and the like: every edge moved outwards (-: inwards) by
this share of the box's size; **random**: each edge by its own share between -10 and +25 %. voc and coco are the
measuring parts of the two sets of photographs, the others the sets below `domains/`; no bundled generator was trained
on any of them.

"""


def page(results: list[dict], limit: int | None) -> str:
    """domains.md."""
    sizes = "all of a set" if limit is None else f"at most {limit} of a set, evenly spaced"
    return ABOUT.format(sizes=sizes) + table(results)


def table(results: list[dict]) -> str:
    """Markdown: a line for each set and change, a column for each generator; IoU per box in percent, the best bold."""
    generators = list(dict.fromkeys(cell["generator"] for cell in results))
    values = {(cell["change"], cell["set"], cell["generator"]): cell for cell in results}
    lines = [
        "| boxes | set | number of boxes | " + " | ".join(generators) + " |",
        "|---|---|---|" + "---|" * len(generators),
    ]
    for change in CHANGES:
        sets = list(dict.fromkeys(cell["set"] for cell in results if cell["change"] == change))
        for name in sets:
            found = [values.get((change, name, generator)) for generator in generators]
            ious = [None if cell is None else cell["mean_box_iou"] for cell in found]
            num_boxes = max(cell["num_boxes"] for cell in found if cell is not None)
            lines.append(f"| {change} | {name} | {num_boxes} | " + " | ".join(_marked(ious)) + " |")
        averages = [_average(values, change, sets, generator) for generator in generators]
        if sets:
            lines.append(f"| {change} | **mean of {len(sets)} sets** | | " + " | ".join(_marked(averages)) + " |")
    return "\n".join(lines) + "\n"


def _average(values: dict, change: str, sets: list[str], generator: str) -> float | None:
    found = [values[change, name, generator]["mean_box_iou"] for name in sets if (change, name, generator) in values]
    return mean(found) if sets and len(found) == len(sets) else None


def _marked(ious: list[float | None]) -> list[str]:
    best = max((iou for iou in ious if iou is not None), default=None)
    texts = ["-" if iou is None else f"{100 * iou:.1f}" for iou in ious]
    return [f"**{text}**" if iou is not None and iou == best else text for iou, text in zip(ious, texts)]


def figure(results: list[dict], width: int = 900, height: int = 420) -> Image.Image:
    """IoU per box against how far the edges of the boxes are moved: photographs at the left, domains at the right."""
    image = Image.new("RGB", (width, height), "white")
    photographs = ("voc", "coco")
    sides = (("two sets of photographs", True), ("domains", False))
    for number, (title, wanted) in enumerate(sides):
        chosen = [cell for cell in results if (cell["set"] in photographs) == wanted]
        if chosen:
            _plot(image, (number * width // 2, 0, (number + 1) * width // 2, height), title, chosen)
    return image


def _plot(image: Image.Image, area: tuple[int, int, int, int], title: str, results: list[dict]) -> None:
    """One diagram in an area (x1, y1, x2, y2) of the image, a curve for each generator."""
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    left, top, right, bottom = area[0] + 45, area[1] + 35, area[2] - 30, area[3] - 40
    values = {(cell["change"], cell["set"], cell["generator"]): cell for cell in results}
    sets = list(dict.fromkeys(cell["set"] for cell in results))
    shares = {change: CHANGES[change][0] for change in FIGURE_CHANGES}
    low, high = min(shares.values()), max(shares.values())

    def place(share: float, iou: float) -> tuple[float, float]:
        return left + (share - low) / (high - low) * (right - left), bottom - iou * (bottom - top)

    draw.text((left, area[1] + 10), f"IoU per box, mean of {len(sets)} sets: {title}", "black", font)
    for iou in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        draw.line([place(low, iou), place(high, iou)], "#dddddd")
        draw.text((left - 35, place(low, iou)[1] - 8), f"{100 * iou:.0f}", "black", font)
    for change, share in shares.items():
        draw.text((place(share, 0)[0] - 15, bottom + 8), change, "black", font)
    for number, generator in enumerate(dict.fromkeys(cell["generator"] for cell in results)):
        averages = {share: _average(values, change, sets, generator) for change, share in shares.items()}
        points = [place(share, iou) for share, iou in sorted(averages.items()) if iou is not None]
        colour = COLOURS[number % len(COLOURS)]
        draw.line(points, colour, 2)
        for x, y in points:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), colour)
        draw.text((left + 10, bottom - 20 - 18 * number), generator, colour, font)


def write(out: Path, results: list[dict], limit: int | None) -> None:
    """All cells into domains.json, those of one limit into the page and the figure."""
    shown = [cell for cell in results if cell["limit"] == limit]
    write_json(out / "domains.json", {"cells": results})
    (out / "domains.md").write_text(page(shown, limit), encoding="utf-8")
    figure(shown).save(out / "looseness.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("LPG_HF_DATA")
    parser.add_argument("--data", type=Path, default=data, required=data is None, help="default: $LPG_HF_DATA")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--model", action="append", metavar="NAME=STAGE", help="again and again; default: the bundled ones"
    )
    parser.add_argument(
        "--generators", default=",".join(CLASSICAL), help="besides the models, with commas; may be empty"
    )
    parser.add_argument("--changes", default=",".join(CHANGES), help="with commas")
    parser.add_argument("--sets", help="names of sets with commas; default: all")
    parser.add_argument("--limit", type=int, help="photographs of a set, evenly spaced")
    arguments = parser.parse_args()
    sets = box_sets(arguments.data)
    if arguments.sets is not None:
        sets = [boxes for boxes in sets if boxes.name in arguments.sets.split(",")]
    generators = [name for name in arguments.generators.split(",") if name]
    models = named_models(list(BUNDLED) if arguments.model is None else arguments.model)
    path = arguments.out / "domains.json"
    results = json.loads(path.read_text(encoding="utf-8"))["cells"] if path.is_file() else []
    place = {(cell["set"], cell["change"], cell["generator"], cell["limit"]): at for at, cell in enumerate(results)}
    for cell in cells(sets, arguments.changes.split(","), generators, models):
        at = place.get((cell.boxes.name, cell.change, cell.generator, arguments.limit))
        if at is not None and results[at].get("model_digest") == cell.digest:
            continue
        found = run(cell, arguments.limit)
        if at is None:
            results.append(found)
        else:
            results[at] = found
        print(f"{cell.key} | {100 * found['mean_box_iou']:.1f}", flush=True)
        write(arguments.out, results, arguments.limit)
    write(arguments.out, results, arguments.limit)
    print(table([cell for cell in results if cell["limit"] == arguments.limit]))


if __name__ == "__main__":
    main()
