"""The same boxes through several generators, side by side: scores, time, memory and pictures (`lpg-hf compare`).

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
from zlib import crc32

import numpy as np
from tqdm import tqdm

from lpg_hf.assembly import assemble, boxed_image
from lpg_hf.boxes import box_slices
from lpg_hf.data.formats.records import IMAGE_LEFT_OUT, MAX_PIXELS, PROBLEMS, BoxObject, Record, Report
from lpg_hf.data.sources import Source, open_source
from lpg_hf.evaluation import BOX_TOLERANCE, LabelPairs, default_ignore, write_json
from lpg_hf.files import fs_path, write_atomically
from lpg_hf.generators import check_generator, load_generator
from lpg_hf.generators.base import GRANULARITIES, check_choice
from lpg_hf.label_maps import IGNORE_INDEX_16, mask_name, read_label_map
from lpg_hf.metrics.box_masks import BoxMaskScores, as_mask
from lpg_hf.visualize import colour_index, draw_boxes, overlay, panel


COLUMNS = {
    "mean_iou": "mIoU with background",
    "foreground_iou": "foreground IoU",
    "mean_box_iou": "IoU per box",
    "mean_boundary_iou": "boundary IoU",
    "seconds_per_picture": "s / picture",
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
        indices: pictures of the source.
        shown: those of them whose label maps are wanted for the panel.
        model: LPG stage; None: the bundled one.
        segmenter: of the LPG.
        flip: of the LPG: see also mirrored views.
        device: None: a GPU if there is one.
        dtype: as of `load_generator`.
        batch_size: views or boxes per forward pass.
        box_offsets: each edge of a box moves outwards by a share of the box's size from this range before a generator
            gets it; below 0: inwards. The ground truth stays. (0, 0): the boxes as they are annotated.
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
    box_offsets: tuple[float, float] = (0.0, 0.0)


@dataclass
class Row:
    """One generator.

    Attributes:
        generator: its name.
        scores: keys of `COLUMNS` -> number; None where nothing was counted or the system does not tell.
        num_pictures: measured.
        num_boxes: in them, those that count: where the ground truth or the generator's mask has a pixel. A box whose label map
            holds no pixel of its class counts for a generator that finds one there, and not for one that finds none.
        skipped: pictures and boxes that are in no score, with the reason; of a picture at most ten of a kind.
        reports: what the readers found in the pictures that were chosen and when the files were opened: "annotations" and, of a
            COCO json, "ground truth".
        error: why the generator did not run, or None.
        label_maps: index of a shown picture -> (H, W) label map.
    """

    generator: str
    scores: dict[str, float | None] = field(default_factory=dict)
    num_pictures: int = 0
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
    """Measure some generators on the pictures that have ground truth; a script that calls it needs `if __name__ == "__main__"`.

    A box's truth is its object's mask or, of a label map, the pixels of its class inside the box. The time is that from the
    decoded picture to its masks, one picture at a time, without loading the model. Memory is the peak of the process.

    Args:
        job: `indices` and `shown` are chosen here.
        generators: names as of `load_generator`; None: box, grabcut, densecrf and lpg.
        limit: at most this many pictures, evenly over the source.
        num_shown: pictures for the panel.

    Returns:
        One row per generator, in order, and the job with the pictures that were chosen.

    Raises:
        ValueError: an unknown generator or `per`, or no picture with ground truth.
        FileNotFoundError: annotations or ground truth that do not exist.
    """
    names = list(generators or ("box", "grabcut", "densecrf", "lpg"))
    for name in names:
        check_generator(name)
    check_choice("per", job.per, GRANULARITIES)
    source = _open(job, Report())
    truth = open_truth(job, source)
    with_truth = [index for index, name in enumerate(source.file_names) if truth.has(name)]
    if not with_truth:
        raise ValueError(
            f"none of the {len(source)} pictures of {job.annotations} has ground truth in {job.truth}, for example "
            f"{source.file_names[0] if len(source) else '(no picture)'}. Label maps have the picture's relative path, with .png."
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
    """Run one generator over the pictures of a job; meant for a process of its own."""
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
    truth = open_truth(job, source)
    row, pairs, scores, seconds, num_masks = Row(name), LabelPairs(), BoxMaskScores(), 0.0, 0
    row.skipped += [f"{picture} ({PROBLEMS[kind][1]})" for picture, kind in report.left_out]
    row.reports["annotations"] = report
    if truth.report is not None:
        row.reports["ground truth"] = truth.report
    for index in tqdm(job.indices, desc=name, disable=None, leave=False):
        found = Report()
        record = source.record(index, found)
        pixels = None if record is None else source.decode(record, found)
        report.merge(found)
        row.skipped += _left_out(found)
        if record is None or pixels is None:
            continue
        image = boxed_image(pixels, with_moved_boxes(record, job.box_offsets))
        try:
            true = truth.of(record)
        except (OSError, ValueError, SyntaxError) as error:  # Pillow raises SyntaxError on broken PNG chunks
            row.skipped.append(f"{record.file_name}: {error}")
            continue
        start = time.perf_counter()
        masks = assemble(image, (patch for _, patch in generator.patches([image], job.per)), job.per)
        seconds += time.perf_counter() - start
        row.num_pictures += 1
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
        "seconds_per_picture": seconds / row.num_pictures if row.num_pictures else None,
        "boxes_per_second": num_masks / seconds if seconds else None,
        "peak_memory_mb": peak_memory_mb(),
        "peak_gpu_memory_mb": peak_gpu_memory_mb(),
    }
    return row


def with_moved_boxes(record: Record, offsets: tuple[float, float]) -> Record:
    """The record with every edge of its boxes moved outwards by a share of the box's size, cut to the picture.

    The shares are drawn between the two `offsets`, for a picture always the same; equal offsets move all edges alike.
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
    return open_source(
        job.annotations,
        job.images,
        format=job.format,
        split=job.split,
        zero_based=job.zero_based,
        size_mismatch=job.size_mismatch,
        max_pixels=job.max_pixels,
        report=report,
    )


def _left_out(report: Report) -> list[str]:
    """The picture, or its boxes, that a reader has left out, with the reason."""
    kinds = [kind for kind in report.counts if PROBLEMS[kind][0] in (IMAGE_LEFT_OUT, "object left out")]
    return [f"{place} ({PROBLEMS[kind][1]})" for kind in kinds for place in report.places[kind]]


def _evenly(items: Sequence[int], count: int) -> tuple[int, ...]:
    """At most `count` of the items, evenly spaced, the first among them."""
    step = max(1.0, len(items) / count) if count else np.inf
    return tuple(items[int(i * step)] for i in range(min(count, len(items))))


# --- ground truth -----------------------------------------------------------------------------------------------------


@dataclass
class PictureTruth:
    """The truth of one picture.

    Attributes:
        label_map: (H, W) integer in the labels of the source.
        ignored: its value that counts nowhere.
        objects: of a COCO file: the true objects with their labels; None if there is only the label map.
        crowd: of a COCO file: (H, W) bool, its crowd regions where no object lies.
    """

    label_map: np.ndarray
    ignored: int
    objects: list[tuple[BoxObject, int]] | None = None
    crowd: np.ndarray | None = None

    def of_box(self, item: BoxObject) -> tuple[np.ndarray | None, np.ndarray | None]:
        """(mask of an object of the source, pixels that count nowhere); the mask is None if there is no truth for it."""
        if self.objects is None:
            target = np.zeros(self.label_map.shape, dtype=bool)
            window = box_slices(item.box, *target.shape)
            target[window] = self.label_map[window] == item.category + 1
            return target, self.label_map == self.ignored
        same_class = [true for true, label in self.objects if label == item.category + 1]
        found = next(
            (true for true in same_class if true.id == item.id and _distance(true, item) <= BOX_TOLERANCE), None
        )
        if found is None:
            found = min(same_class, key=lambda true: _distance(true, item), default=None)
        if found is None or _distance(found, item) > BOX_TOLERANCE or found.rle is None:
            return None, None
        return as_mask(found.rle), self.crowd


def _distance(a: BoxObject, b: BoxObject) -> float:
    return max(abs(x - y) for x, y in zip(a.box, b.box))


class FolderTruth:
    """Label maps (PNG) under the pictures' relative paths."""

    report = None  # Of a map that cannot be used, `of` says why.

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def has(self, file_name: str) -> bool:
        return os.path.isfile(fs_path(self._path(file_name)))

    def of(self, record: Record) -> PictureTruth:
        """
        Raises:
            OSError: the file cannot be read.
            ValueError: it is no label map, or of another size than the picture.
        """
        path = self._path(record.file_name)
        label_map = read_label_map(path)
        if label_map.shape != (record.height, record.width):
            raise ValueError(
                f"{path} is {label_map.shape[1]} x {label_map.shape[0]}, but the picture {record.width} x {record.height}"
            )
        return PictureTruth(label_map, default_ignore(label_map))

    def _path(self, file_name: str) -> str:
        return os.path.join(self.folder, mask_name(file_name))


class CocoTruth:
    """Masks of a COCO file; its pictures meet those of the source by file name, its classes by name."""

    def __init__(self, job: Job, source: Source) -> None:
        self.report = Report()
        self.source = open_source(
            job.truth,
            job.images,
            format="coco",
            masks=True,
            size_mismatch=job.size_mismatch,
            max_pixels=job.max_pixels,
            report=self.report,
        )
        self.index = {name: index for index, name in enumerate(self.source.file_names)}
        self.names = [name for _, name in self.source.classes]
        self.label_of = {name: label for label, (_, name) in enumerate(source.classes, start=1)}

    def has(self, file_name: str) -> bool:
        return file_name in self.index

    def of(self, record: Record) -> PictureTruth:
        """
        Raises:
            ValueError: the reader leaves the picture out, or it has another size there.
        """
        found = Report()
        true = self.source.record(self.index[record.file_name], found)
        self.report.merge(found)
        if true is None:
            raise ValueError(f"cannot be used in {self.source.path}: {'; '.join(_left_out(found))}")
        if (true.height, true.width) != (record.height, record.width):
            raise ValueError(
                f"is {true.width} x {true.height} in {self.source.path}, but {record.width} x {record.height} in the annotations"
            )
        names, label_of = self.names, self.label_of
        objects = [(item, label_of[names[item.category]]) for item in true.objects if names[item.category] in label_of]
        single = [pair for pair in objects if not pair[0].iscrowd]
        label_map = _painted(objects, true.height, true.width)
        return PictureTruth(label_map, IGNORE_INDEX_16, single, _crowd(objects, label_map))


def _painted(objects: list[tuple[BoxObject, int]], height: int, width: int) -> np.ndarray:
    """(H, W) uint16: large objects first, so that the smaller lies on top; crowds and objects without a mask are ignored."""
    label_map = np.zeros((height, width), dtype=np.uint16)
    for item, label in sorted(objects, key=lambda pair: -pair[0].area):
        if item.rle is not None and not item.iscrowd:
            label_map[as_mask(item.rle)] = label
    for item, _ in objects:
        if item.rle is None:
            region = label_map[box_slices(item.box, height, width)]
            region[region == 0] = IGNORE_INDEX_16
        elif item.iscrowd:
            label_map[as_mask(item.rle) & (label_map == 0)] = IGNORE_INDEX_16
    return label_map


def _crowd(objects: list[tuple[BoxObject, int]], label_map: np.ndarray) -> np.ndarray:
    """(H, W) bool: the pixels of crowd regions that no object of `_painted` covers."""
    crowd = np.zeros(label_map.shape, dtype=bool)
    for item, _ in objects:
        if item.iscrowd and item.rle is None:
            crowd[box_slices(item.box, *crowd.shape)] = True
        elif item.iscrowd:
            crowd |= as_mask(item.rle)
    return crowd & (label_map == IGNORE_INDEX_16)


def open_truth(job: Job, source: Source) -> FolderTruth | CocoTruth:
    """The ground truth of a job.

    Raises:
        FileNotFoundError: it does not exist.
    """
    if os.path.isdir(fs_path(job.truth)):
        return FolderTruth(job.truth)
    if not os.path.isfile(fs_path(job.truth)):
        raise FileNotFoundError(
            f"ground truth {job.truth} does not exist. Pass a folder of label maps or a COCO json."
        )
    return CocoTruth(job, source)


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
            f"\n{measured[0].num_pictures} pictures, {num_boxes} where the ground truth or the generator's mask has a pixel"
        )
        if skipped := measured[0].skipped:
            lines.append(f"{len(skipped)} pictures or boxes are in no score, e.g. {skipped[0]}")
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
    return f"{value:.3f}" if key == "seconds_per_picture" else f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def write(out: str | os.PathLike, rows: Sequence[Row], job: Job) -> None:
    """Write comparison.md, comparison.json and, if there are pictures to show, panel.jpg into a folder."""
    write_atomically(Path(out, "comparison.md"), (table(rows) + "\n").encode("utf-8"))
    write_json(Path(out, "comparison.json"), as_dict(rows, job))
    ran = [row for row in rows if row.error is None]
    shown = [index for index in job.shown if all(index in row.label_maps for row in ran)]
    if not ran or not shown:
        return
    report = Report()
    source = _open(job, report)
    truth = open_truth(job, source)
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
