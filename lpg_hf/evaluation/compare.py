"""The same boxes through several generators, side by side: scores, time, memory and images (`lpg-hf compare`).

Each generator runs in a process of its own, so that its peak memory is its own, and a generator that cannot run leaves
the others alone.
"""

import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from zlib import crc32

import numpy as np
from PIL import Image
from tqdm import tqdm

from lpg_hf._files import MachineError, atomic_file, check_machine, walk_files, write_atomically, write_json
from lpg_hf.data.options import SOURCE_OPTIONS, ReadOptions
from lpg_hf.data.records import Record
from lpg_hf.data.report import PROBLEMS, Report
from lpg_hf.data.sources import Source, evenly, open_source
from lpg_hf.evaluation._truth import ImageTruth, Truth, open_truth
from lpg_hf.evaluation.evaluate import LabelPairs
from lpg_hf.generators import check_generator, generator_of
from lpg_hf.generators.base import GRANULARITIES, BoxedImage, GeneratorOptions, check_choice
from lpg_hf.label_maps import no_class_message
from lpg_hf.masks.assembly import AssemblyOptions, assemble, boxed_image
from lpg_hf.metrics.box_masks import BoxMaskScores
from lpg_hf.visualize import colour_index, draw_boxes, overlay, panel


COLUMNS = {
    "mean_iou": "mIoU with background",
    "foreground_iou": "foreground IoU",
    "mean_box_iou": "IoU per box",
    "mean_boundary_iou": "boundary IoU",
    "score_rank_correlation": "score ~ IoU",
    "seconds_per_image": "s / image",
    "boxes_per_second": "boxes / s",
    "peak_memory_mb": "peak memory (MB)",
    "peak_gpu_memory_mb": "peak GPU memory (MB)",
}
_PERCENT = ("mean_iou", "foreground_iou", "mean_box_iou", "mean_boundary_iou")


@dataclass(frozen=True)
class ComparedData:
    """The boxes and their ground truth.

    Attributes:
        annotations: see `open_source`.
        images: see `open_source`.
        truth: folder of label maps, whose labels are the classes in the order of the source; or a COCO json with
            masks; None: the masks of the annotations themselves (VOC: of the folder SegmentationClass).
        format: see `open_source`.
        options: how the annotations and a COCO json of the truth are read.
        object_value: of a folder of label maps: the value that marks the objects, in each image of one class.
    """

    annotations: str
    images: str | None = None
    truth: str | None = None
    format: str = "auto"
    options: ReadOptions = SOURCE_OPTIONS
    object_value: int | None = None

    @property
    def place(self) -> str:
        """Where the ground truth is, for messages."""
        return self.truth or self.annotations

    def open(self, report: Report) -> tuple[Source, Truth]:
        """The source, whose problems go into `report`, and its ground truth."""
        source = open_source(self.annotations, self.images, self.options, format=self.format, report=report)
        return source, open_truth(self.truth, source, self.images, self.options, self.object_value)


@dataclass(frozen=True)
class Comparison:
    """What all generators get.

    Attributes:
        data: what is read.
        generator: how the generators are loaded; `model`, `segmenter` and `flip` are for the LPG alone.
        per: "class" or "instance", see `assemble`.
        indices: images of the source.
        shown: those of `indices` whose label maps are wanted for the panel.
        box_offsets: each edge of a box moves outwards by a share of the box's size from this range before a generator
            gets it; below 0: inwards. The ground truth stays. (0, 0): the boxes as they are annotated.
        clean: drop specks and fill small holes, as `assemble` does.
    """

    data: ComparedData
    generator: GeneratorOptions = GeneratorOptions()
    per: str = "instance"
    indices: tuple[int, ...] = ()
    shown: tuple[int, ...] = ()
    box_offsets: tuple[float, float] = (0.0, 0.0)
    clean: bool = True

    def as_dict(self) -> dict:
        """For a json file."""
        data, generator = asdict(self.data), asdict(self.generator)
        options = data.pop("options")
        read = ("split", "zero_based", "size_mismatch", "max_pixels")
        loaded = ("model", "segmenter", "flip", "device", "dtype", "batch_size")
        return {
            **data,
            **{name: options[name] for name in read},
            **{name: generator[name] for name in loaded},
            "per": self.per,
            "clean": self.clean,
            "indices": self.indices,
            "shown": self.shown,
            "box_offsets": self.box_offsets,
        }


@dataclass
class Row:
    """One generator.

    Attributes:
        generator: its name.
        scores: keys of `COLUMNS` -> number; None where nothing was counted or the system does not tell.
            "score_rank_correlation" tells whether the masks' scores put the better masks first (Spearman).
        num_images: measured.
        num_boxes: in them, those that count: where the ground truth or the generator's mask has a pixel. A box whose
            label map holds no pixel of its class counts for a generator that finds one there, and not for one that
            finds none.
        skipped: images and boxes that are in no score, with the reason; of an image at most ten of a kind.
        reports: what the readers found in the images that were chosen and when the files were opened: "annotations"
            and, of a COCO json, "ground truth".
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
    comparison: Comparison, generators: Sequence[str] | None = None, *, limit: int | None = None, num_shown: int = 6
) -> tuple[list[Row], Comparison]:
    """Measures some generators on the images that have ground truth.

    Generators run in spawned processes, so a script that calls this needs `if __name__ == "__main__"`.

    The truth of a box is the mask of its object or, with label maps, the pixels of its class inside the box. The time
    is that from the decoded image to its masks, one image at a time, without loading the model. Memory is the peak of
    the process.

    Args:
        comparison: `indices` and `shown` are chosen here.
        generators: names, see `load_generator`; None: box, grabcut, densecrf and lpg.
        limit: at most this many images, evenly over the source.
        num_shown: images for the panel.

    Returns:
        One row per generator, in order, and the comparison with the images that were chosen.

    Raises:
        ValueError: an unknown generator or `per`, or no image with ground truth.
        FileNotFoundError: annotations or ground truth that do not exist.
        MachineError: no file can be opened now, or no memory is left.
    """
    names = list(generators or ("box", "grabcut", "densecrf", "lpg"))
    for name in names:
        check_generator(name)
    check_choice("per", comparison.per, GRANULARITIES)
    data = comparison.data
    source, truth = data.open(Report())
    with_truth = [index for index, name in enumerate(source.file_names) if truth.has(name)]
    if not with_truth:
        jpegs = next(walk_files(data.truth, (".jpg", ".jpeg")), None) if data.truth else None
        hint = f" A JPEG ({jpegs}) cannot hold labels exactly: make it again as PNG." if jpegs else ""
        raise ValueError(
            f"none of the {len(source)} images of {data.annotations} has ground truth in {data.place}, for example "
            f"{source.file_names[0] if len(source) else '(no image)'}. Label maps have the image's relative "
            f"path, with .png.{hint}"
        )
    indices = evenly(with_truth, limit or len(with_truth))
    if not any(_holds_a_class(source, truth, index) for index in indices):
        raise ValueError(no_class_message(f"the ground truth {data.place} of the {len(indices)} images"))
    chosen = replace(comparison, indices=indices, shown=evenly(indices, num_shown))
    context = multiprocessing.get_context("spawn")
    rows = []
    for name in names:
        with ProcessPoolExecutor(1, mp_context=context) as process:
            try:
                rows.append(process.submit(measure, chosen, name).result())
            except MachineError:
                raise
            except Exception as error:  # whatever a generator or its library raises, or the end of its process
                check_machine(error)
                reason = str(error).splitlines()[0] if str(error) else ""
                rows.append(Row(name, error=": ".join(filter(None, (type(error).__name__, reason)))))
    return rows, chosen


def _holds_a_class(source: Source, truth: Truth, index: int) -> bool:
    """Whether a pixel of an image's ground truth has the label of a class; faults are counted where it is measured."""
    try:
        record = source.record(index, Report())
        true = None if record is None else truth.of(record)
    except (OSError, ValueError):
        true = None
    return true is None or bool(((true.label_map != 0) & (true.label_map != true.ignored)).any())


def measure(comparison: Comparison, name: str) -> Row:
    """Runs one generator over the chosen images; meant for a process of its own."""
    report = Report()
    source, truth = comparison.data.open(report)
    options = replace(comparison.generator, class_names=tuple(class_name for _, class_name in source.classes))
    if name != "lpg":
        options = replace(options, model=None, segmenter=None, flip=False)
    generator = generator_of(name, options)
    row, pairs, scores, seconds, num_masks = Row(name), LabelPairs(), BoxMaskScores(), 0.0, 0
    score_and_iou: list[tuple[float, float]] = []
    row.skipped += [f"{image} ({PROBLEMS[kind].meaning})" for image, kind in report.skipped]
    row.reports["annotations"] = report
    if truth.report is not None:
        row.reports["ground truth"] = truth.report
    for index in tqdm(comparison.indices, desc=name, disable=None, leave=False):
        usable = _image_and_truth(source, truth, index, row, comparison.box_offsets)
        if usable is None:
            continue
        record, image, true = usable
        start = time.perf_counter()
        patches = (patch for _, patch in generator.patches([image], comparison.per))
        masks = assemble(image, patches, comparison.per, AssemblyOptions(clean=comparison.clean))
        seconds += time.perf_counter() - start
        row.num_images += 1
        num_masks += len(masks.masks)
        counts = true.label_map != true.ignored
        pairs.add(LabelPairs.count(masks.label_map[counts], true.label_map[counts]))
        for item, mask in zip(record.single_objects, masks.masks):
            target, ignore = true.of_box(item)
            if target is None:
                row.skipped.append(f"{record.file_name}: object {item.id}: no mask in the ground truth")
            else:
                iou = scores.update(mask.rle, target, item.category + 1, ignore)
                score_and_iou += [] if iou is None else [(mask.score, iou)]
        if index in comparison.shown:
            row.label_maps[index] = masks.label_map
    boxes = scores.compute()
    row.num_boxes = boxes["num_boxes"]
    row.scores = {
        "mean_iou": pairs.compute()[0]["mean_iou"],
        **{key: boxes[key] for key in ("foreground_iou", "mean_box_iou", "mean_boundary_iou")},
        "score_rank_correlation": _rank_correlation(score_and_iou),
        "seconds_per_image": seconds / row.num_images if row.num_images else None,
        "boxes_per_second": num_masks / seconds if seconds else None,
        "peak_memory_mb": peak_memory_mb(),
        "peak_gpu_memory_mb": _peak_gpu_memory_mb(),
    }
    return row


def _image_and_truth(
    source: Source, truth: Truth, index: int, row: Row, box_offsets: tuple[float, float]
) -> tuple[Record, BoxedImage, ImageTruth] | None:
    """An image with its boxes and ground truth; None where one of them cannot be used, which the row then says."""
    report = Report()
    record = source.record(index, report)
    pixels = None if record is None else source.decode(record, report)
    row.reports["annotations"].merge(report)
    row.skipped += report.reasons()
    if record is None or pixels is None:
        return None
    try:
        return record, boxed_image(pixels, _with_moved_boxes(record, box_offsets)), truth.of(record)
    except (OSError, ValueError) as error:
        row.skipped.append(f"{record.file_name}: {error}")
        return None


def _with_moved_boxes(record: Record, offsets: tuple[float, float]) -> Record:
    """The record with every edge of its boxes moved outwards by a share of the box's size, cut to the image.

    The shares are drawn between the two `offsets`, for an image always the same; equal offsets move all edges alike.
    """
    low, high = offsets
    if low == high == 0:
        return record
    rng = np.random.default_rng(crc32(record.file_name.encode("utf-8")))
    moved = []
    for item in record.objects:
        x1, y1, x2, y2 = item.box
        shares = rng.uniform(low, high, 4)
        left, right = (float(x) for x in np.clip((x1, x2) + shares[:2] * [x1 - x2, x2 - x1], 0, record.width))
        top, bottom = (float(y) for y in np.clip((y1, y2) + shares[2:] * [y1 - y2, y2 - y1], 0, record.height))
        moved.append(replace(item, box=(left, top, right, bottom)))
    return replace(record, objects=moved)


def _rank_correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Spearman's rank correlation in [-1, 1], with mean ranks for ties; None where one side is all alike."""
    ranks = []
    for values in np.array(pairs, dtype=np.float64).reshape(-1, 2).T:
        _, position, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[position])
    if not pairs or np.ptp(ranks[0]) == 0 or np.ptp(ranks[1]) == 0:
        return None
    return float(np.corrcoef(ranks)[0, 1])


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


def _peak_gpu_memory_mb() -> float | None:
    """Largest memory that torch held on a GPU; None if it used none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return torch.cuda.max_memory_allocated() / 1024**2


# --- what people read ------------------------------------------------------------------------------------------------


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
            f"\n{measured[0].num_images} images, {num_boxes} where the ground truth or the generator's mask has "
            f"a pixel"
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
    if key == "score_rank_correlation":
        return f"{value:.2f}"
    return f"{value:.3f}" if key == "seconds_per_image" else f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def write(out: str | os.PathLike, rows: Sequence[Row], comparison: Comparison) -> None:
    """Writes comparison.md, comparison.json and, if there are images to show, panel.jpg into a folder."""
    write_atomically(Path(out, "comparison.md"), (table(rows) + "\n").encode("utf-8"))
    write_json(Path(out, "comparison.json"), as_dict(rows, comparison))
    figure = comparison_panel(rows, comparison)
    if figure is not None:
        with atomic_file(Path(out, "panel.jpg")) as file:
            figure.save(file, "JPEG", quality=90)


def comparison_panel(rows: Sequence[Row], comparison: Comparison) -> Image.Image | None:
    """Boxes, ground truth and the label map of every generator, for each shown image; None if none is shown."""
    ran = [row for row in rows if row.error is None]
    shown = [index for index in comparison.shown if all(index in row.label_maps for row in ran)]
    if not ran or not shown:
        return None
    report = Report()
    source, truth = comparison.data.open(report)
    lines = []
    for index in shown:
        record = source.record(index, report)
        if record is None:
            continue
        image = boxed_image(source.image(record), record)
        true = truth.of(record)
        colours = colour_index(true.label_map, true.ignored)
        lines.append(
            [draw_boxes(image.image, image.boxes, image.labels.tolist()), overlay(image.image, colours)]
            + [overlay(image.image, colour_index(row.label_maps[index])) for row in ran]
        )
    return panel(["boxes", "ground truth", *(row.generator for row in ran)], lines)


def as_dict(rows: Sequence[Row], comparison: Comparison) -> dict:
    """For a json file; "reports" are those of the first generator that ran, as all read the same."""
    reports = next((row.reports for row in rows if row.reports), {})
    return {
        "job": comparison.as_dict(),
        "reports": {name: asdict(report) for name, report in reports.items()},
        "rows": [row.as_dict() for row in rows],
    }
