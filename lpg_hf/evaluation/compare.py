"""The same boxes through several generators, side by side: scores, time, memory and images (`lpg-hf compare`).

Each generator runs in a process of its own, so that its peak memory is its own, and a generator that cannot run leaves the
others alone.
"""

import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lpg_hf.data.options import SOURCE_OPTIONS
from lpg_hf.data.report import PROBLEMS, Report
from lpg_hf.data.sources import Source, open_source
from lpg_hf.evaluation.evaluate import LabelPairs
from lpg_hf.evaluation.truth import open_truth
from lpg_hf.files import fs_path, write_atomically, write_json
from lpg_hf.generators import check_generator, load_generator
from lpg_hf.generators.base import GRANULARITIES, check_choice
from lpg_hf.images import MAX_PIXELS
from lpg_hf.masks.assembly import assemble, boxed_image
from lpg_hf.metrics.box_masks import BoxMaskScores
from lpg_hf.visualize import colour_index, draw_boxes, overlay, panel


COLUMNS = {
    "mean_iou": "mIoU with background",
    "foreground_iou": "foreground IoU",
    "mean_box_iou": "IoU per box",
    "mean_boundary_iou": "boundary IoU",
    "seconds_per_image": "s / image",
    "boxes_per_second": "boxes / s",
    "peak_memory_mb": "peak memory (MB)",
    "peak_gpu_memory_mb": "peak GPU memory (MB)",
}
_PERCENT = ("mean_iou", "foreground_iou", "mean_box_iou", "mean_boundary_iou")


@dataclass(frozen=True)
class Job:
    """What all generators get.

    Attributes:
        annotations: as of `open_source`.
        images: the same.
        truth: folder of label maps, whose labels are the classes in the order of the source; or a COCO json with masks.
        per: "class" or "instance", see `assemble`.
        format: as of `open_source`.
        split: the same.
        zero_based: the same.
        size_mismatch: the same; for a COCO json of the truth too.
        max_pixels: the same.
        indices: images of the source.
        shown: those of them whose label maps are wanted for the panel.
        model: LPG stage; None: the bundled one.
        segmenter: of the LPG.
        flip: of the LPG: see also mirrored views.
        device: None: a GPU if there is one.
        dtype: as of `load_generator`.
        batch_size: views or boxes per forward pass.
    """

    annotations: str
    images: str | None
    truth: str
    per: str = "instance"
    format: str = "auto"
    split: str | None = None
    zero_based: bool = False
    size_mismatch: str = "skip"
    max_pixels: int = MAX_PIXELS
    indices: tuple[int, ...] = ()
    shown: tuple[int, ...] = ()
    model: str | None = None
    segmenter: str | None = None
    flip: bool = False
    device: str | None = None
    dtype: str = "auto"
    batch_size: int = 16


@dataclass
class Row:
    """One generator.

    Attributes:
        generator: its name.
        scores: keys of `COLUMNS` -> number; None where nothing was counted or the system does not tell.
        num_images: measured.
        num_boxes: in them, those that count: where the ground truth or the generator's mask has a pixel. A box whose label map
            holds no pixel of its class counts for a generator that finds one there, and not for one that finds none.
        skipped: images and boxes that are in no score, with the reason; of an image at most ten of a kind.
        reports: what the readers found in the images that were chosen and when the files were opened: "annotations" and, of a
            COCO json, "ground truth".
        error: why the generator did not run, or None.
        label_maps: index of a shown image -> (H, W) label map.
    """

    generator: str
    scores: dict[str, float | None] = field(default_factory=dict)
    num_images: int = 0
    num_boxes: int = 0
    skipped: list[str] = field(default_factory=list)
    reports: dict[str, Report] = field(default_factory=dict)
    error: str | None = None
    label_maps: dict[int, np.ndarray] = field(default_factory=dict)

    def as_dict(self) -> dict:
        """For a json file, without the label maps, and the reports, which all generators share."""
        return {key: value for key, value in asdict(self).items() if key not in ("label_maps", "reports")}


def compare(
    job: Job, generators: Sequence[str] | None = None, *, limit: int | None = None, num_shown: int = 6
) -> tuple[list[Row], Job]:
    """Measure some generators on the images that have ground truth; a script that calls it needs `if __name__ == "__main__"`.

    A box's truth is its object's mask or, of a label map, the pixels of its class inside the box. The time is that from the
    decoded image to its masks, one image at a time, without loading the model. Memory is the peak of the process.

    Args:
        job: `indices` and `shown` are chosen here.
        generators: names as of `load_generator`; None: box, grabcut, densecrf and lpg.
        limit: at most this many images, evenly over the source.
        num_shown: images for the panel.

    Returns:
        One row per generator, in order, and the job with the images that were chosen.

    Raises:
        ValueError: an unknown generator or `per`, or no image with ground truth.
        FileNotFoundError: annotations or ground truth that do not exist.
    """
    names = list(generators or ("box", "grabcut", "densecrf", "lpg"))
    for name in names:
        check_generator(name)
    check_choice("per", job.per, GRANULARITIES)
    source = _open(job, Report())
    truth = open_truth(
        job.truth, source, images=job.images, size_mismatch=job.size_mismatch, max_pixels=job.max_pixels
    )
    with_truth = [index for index, name in enumerate(source.file_names) if truth.has(name)]
    if not with_truth:
        raise ValueError(
            f"none of the {len(source)} images of {job.annotations} has ground truth in {job.truth}, for example "
            f"{source.file_names[0] if len(source) else '(no image)'}. Label maps have the image's relative path, with .png."
        )
    indices = _evenly(with_truth, limit or len(with_truth))
    chosen = Job(**{**asdict(job), "indices": indices, "shown": _evenly(indices, num_shown)})
    context = multiprocessing.get_context("spawn")
    rows = []
    for name in names:
        with ProcessPoolExecutor(1, mp_context=context) as process:
            try:
                rows.append(process.submit(measure, chosen, name).result())
            except Exception as error:  # whatever a generator or its library raises, or the end of its process
                reason = str(error).splitlines()[0] if str(error) else ""
                rows.append(Row(name, error=": ".join(filter(None, (type(error).__name__, reason)))))
    return rows, chosen


def measure(job: Job, name: str) -> Row:
    """Run one generator over the images of a job; meant for a process of its own."""
    lpg = {"model": job.model, "segmenter": job.segmenter, "flip": job.flip} if name == "lpg" else {}
    report = Report()
    source = _open(job, report)
    generator = load_generator(
        name,
        class_names=[class_name for _, class_name in source.classes],
        batch_size=job.batch_size,
        device=job.device,
        dtype=job.dtype,
        **lpg,
    )
    truth = open_truth(
        job.truth, source, images=job.images, size_mismatch=job.size_mismatch, max_pixels=job.max_pixels
    )
    row, pairs, scores, seconds, num_masks = Row(name), LabelPairs(), BoxMaskScores(), 0.0, 0
    row.skipped += [f"{image} ({PROBLEMS[kind].meaning})" for image, kind in report.skipped]
    row.reports["annotations"] = report
    if truth.report is not None:
        row.reports["ground truth"] = truth.report
    for index in tqdm(job.indices, desc=name, disable=None, leave=False):
        found = Report()
        record = source.record(index, found)
        pixels = None if record is None else source.decode(record, found)
        report.merge(found)
        row.skipped += found.reasons()
        if record is None or pixels is None:
            continue
        image = boxed_image(pixels, record)
        try:
            true = truth.of(record)
        except (OSError, ValueError, SyntaxError) as error:  # Pillow raises SyntaxError on broken PNG chunks
            row.skipped.append(f"{record.file_name}: {error}")
            continue
        start = time.perf_counter()
        masks = assemble(image, (patch for _, patch in generator.patches([image], job.per)), job.per)
        seconds += time.perf_counter() - start
        row.num_images += 1
        num_masks += len(masks.masks)
        counts = true.label_map != true.ignored
        pairs.add(LabelPairs.count(masks.label_map[counts], true.label_map[counts]))
        objects = record.single_objects
        for item, mask in zip(objects, masks.masks):
            target, ignore = true.of_box(item)
            if target is None:
                row.skipped.append(f"{record.file_name}: object {item.id}: no mask in the ground truth")
            else:
                scores.update(mask.rle, target, item.category + 1, ignore)
        if index in job.shown:
            row.label_maps[index] = masks.label_map
    boxes = scores.compute()
    row.num_boxes = boxes["num_boxes"]
    row.scores = {
        "mean_iou": pairs.compute()[0]["mean_iou"],
        **{key: boxes[key] for key in ("foreground_iou", "mean_box_iou", "mean_boundary_iou")},
        "seconds_per_image": seconds / row.num_images if row.num_images else None,
        "boxes_per_second": num_masks / seconds if seconds else None,
        "peak_memory_mb": peak_memory_mb(),
        "peak_gpu_memory_mb": peak_gpu_memory_mb(),
    }
    return row


def peak_memory_mb() -> float | None:
    """Largest resident memory of this process so far; None where the system does not tell (Windows)."""
    try:
        # Linux hands ru_maxrss on to a new program, so a child would report its parent's peak.
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        pass
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, kilobytes elsewhere
    return peak / 1024**2 if sys.platform == "darwin" else peak / 1024


def peak_gpu_memory_mb() -> float | None:
    """Largest memory that torch held on a GPU; None if it used none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return torch.cuda.max_memory_allocated() / 1024**2


def _open(job: Job, report: Report) -> Source:
    options = replace(
        SOURCE_OPTIONS,
        split=job.split,
        zero_based=job.zero_based,
        size_mismatch=job.size_mismatch,
        max_pixels=job.max_pixels,
    )
    return open_source(job.annotations, job.images, options, format=job.format, report=report)


def _evenly(items: Sequence[int], count: int) -> tuple[int, ...]:
    """At most `count` of the items, evenly spaced, the first among them."""
    step = max(1.0, len(items) / count) if count else np.inf
    return tuple(items[int(i * step)] for i in range(min(count, len(items))))


# --- what people read -------------------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> str:
    """A Markdown table, IoU in percent; below it what is in no score, and why a generator did not run."""
    keys = [key for key in COLUMNS if key != "peak_gpu_memory_mb" or any(row.scores.get(key) for row in rows)]
    cells = [["generator", *(COLUMNS[key] for key in keys)]]
    cells += [[row.generator, *(_cell(key, row) for key in keys)] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["| " + " | ".join(f"{text:<{width}}" for text, width in zip(line, widths)) + " |" for line in cells]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    measured = [row for row in rows if row.error is None]
    if measured:
        counts = sorted({row.num_boxes for row in measured})
        num_boxes = f"{counts[0]} boxes" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} boxes"
        lines.append(
            f"\n{measured[0].num_images} images, {num_boxes} where the ground truth or the generator's mask has a pixel"
        )
        if skipped := measured[0].skipped:
            lines.append(f"{len(skipped)} images or boxes are in no score, e.g. {skipped[0]}")
        for name, report in measured[0].reports.items():
            if report.needs_attention:
                lines.append(f"{name}: {report.summary()}")
    lines += [f"{row.generator} did not run: {row.error}" for row in rows if row.error is not None]
    return "\n".join(lines)


def _cell(key: str, row: Row) -> str:
    value = row.scores.get(key)
    if row.error is not None or value is None:
        return "-" if row.error is not None else "n/a"
    if key in _PERCENT:
        return f"{100 * value:.1f}"
    return f"{value:.3f}" if key == "seconds_per_image" else f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def write(out: str | os.PathLike, rows: Sequence[Row], job: Job) -> None:
    """Write comparison.md, comparison.json and, if there are images to show, panel.jpg into a folder."""
    write_atomically(Path(out, "comparison.md"), (table(rows) + "\n").encode("utf-8"))
    write_json(Path(out, "comparison.json"), as_dict(rows, job))
    ran = [row for row in rows if row.error is None]
    shown = [index for index in job.shown if all(index in row.label_maps for row in ran)]
    if not ran or not shown:
        return
    report = Report()
    source = _open(job, report)
    truth = open_truth(
        job.truth, source, images=job.images, size_mismatch=job.size_mismatch, max_pixels=job.max_pixels
    )
    lines = []
    for index in shown:
        record = source.record(index, report)
        image = boxed_image(source.image(record), record)
        true = truth.of(record)
        colours = colour_index(true.label_map, true.ignored)
        lines.append(
            [draw_boxes(image.image, image.boxes, image.labels), overlay(image.image, colours)]
            + [overlay(image.image, colour_index(row.label_maps[index])) for row in ran]
        )
    figure = panel(["boxes", "ground truth", *(row.generator for row in ran)], lines)
    path = Path(fs_path(out), "panel.jpg")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.save(path, quality=90)


def as_dict(rows: Sequence[Row], job: Job) -> dict:
    """For a json file; "reports" are those of the first generator that ran, as all read the same."""
    reports = next((row.reports for row in rows if row.reports), {})
    return {
        "job": asdict(job),
        "reports": {name: asdict(report) for name, report in reports.items()},
        "rows": [row.as_dict() for row in rows],
    }
