"""Masks for a whole dataset, image by image: the work behind `lpg-hf masks`.

    OUT/masks/NAME.png        label map, palette PNG (16-bit grey above 254 classes); 255 (65535) is ignored
    OUT/instances.json        COCO, one compressed RLE per box, with the original ids and categories
    OUT/instances_polygons.json, OUT/results.json   the same with polygons; the results of pycocotools' loadRes
    OUT/labels/NAME.txt       YOLO segmentation polygons, with OUT/data.yaml, its lists and the images in OUT/images
    OUT/labelme/NAME.json     LabelMe shapes, with the image beside them
    OUT/overlays/NAME.jpg     the image with its label map and boxes
    OUT/classes.txt           class names in the order of the labels
    OUT/report.json           settings, counts of problems, and for every image its time or why it was skipped

NAME keeps the folders of the image's name. The images are processed in fixed blocks. A block is finished when its
block file exists, which is written after all other files of the block; each file is complete or absent. So a killed
run resumes and ends with the same masks and annotations to the byte. Processes share the blocks without talking to
each other: whichever finishes the last block joins the block files.
"""

import hashlib
import io
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from tqdm import tqdm

from lpg_hf.boxes import box_slices
from lpg_hf.data.formats import coco, yolo_dataset
from lpg_hf.data.formats.coco_forms import result_of, rle_to_polygons
from lpg_hf.data.formats.labelme import labelme_content
from lpg_hf.data.formats.yolo import yolo_text
from lpg_hf.data.records import Record
from lpg_hf.data.report import Report
from lpg_hf.data.sources import Source
from lpg_hf.files import atomic_file, fs_path, json_text, write_atomically
from lpg_hf.generators.base import GRANULARITIES, BoxedImage, MaskGenerator, batches_of_one_size, check_choice
from lpg_hf.label_maps import label_map_type, mask_name, write_label_map
from lpg_hf.masks.assembly import ImageMasks, assemble, boxed_image, by_position
from lpg_hf.masks.fusion import OVERLAP_RULES
from lpg_hf.version import __version__
from lpg_hf.visualize import colour_index, draw_boxes, overlay


logger = logging.getLogger(__name__)

OUTPUTS = ("png", "coco", "coco-polygons", "coco-results", "yolo", "labelme")
# The files of an output that cover all images.
_JOINED_FILES = {
    "coco": ("instances.json",),
    "coco-polygons": ("instances_polygons.json",),
    "coco-results": ("results.json",),
    "yolo": (*yolo_dataset.YAML_FILES[:1], *(f"{split}.txt" for split in yolo_dataset.SPLITS)),
}
BLOCK_SIZE = 8  # images: what a killed run does again at most, per thread
BLOCKS = ".parts"  # folder of the block files


@dataclass(frozen=True)
class MaskSettings:
    """What is written, and how masks become label maps.

    Attributes:
        write: any of `OUTPUTS`.
        per: "class" or "instance", see `assemble`; None: "class" if only label maps are written, else "instance".
        overlap_rule: see `fusion.Fusion`.
        threshold: foreground probability above which a pixel is in the mask.
        overlay: also write images for people.
        min_score: masks with a lower score are neither in COCO and YOLO files nor in the label map, where their boxes
            are ignored unless other masks claim the pixels.
        batch_size: images that a generator may combine.
        generator: its name for the report; an interrupted run resumes only with the same.
        with_images: YOLO and LabelMe: "link" or "copy" the images file by file, or "none".
    """

    write: tuple[str, ...] = ("png",)
    per: str | None = None
    overlap_rule: str = "rate"
    threshold: float = 0.5
    overlay: bool = False
    min_score: float = 0.0
    batch_size: int = 8
    generator: str = ""
    with_images: str = "link"

    def __post_init__(self):
        unknown = [name for name in self.write if name not in OUTPUTS]
        if unknown or not self.write:
            raise ValueError(f"write={','.join(self.write)!r}: choose one or more of {', '.join(OUTPUTS)}.")
        check_choice("per", self.granularity, GRANULARITIES)
        check_choice("overlap_rule", self.overlap_rule, OVERLAP_RULES)
        yolo_dataset.check_with_images(self.with_images)
        for name in ("threshold", "min_score"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} is a probability: it must lie in [0, 1].")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1.")

    @property
    def granularity(self) -> str:
        """`per`, or its default."""
        return self.per or ("instance" if set(self.write) - {"png"} else "class")


@dataclass(frozen=True)
class Processes:
    """The processes that share a folder of masks, and the threads of this one.

    Attributes:
        rank: number of this process.
        count: number of processes.
        num_workers: threads that decode and write.
    """

    rank: int = 0
    count: int = 1
    num_workers: int = min(8, os.cpu_count() or 1)

    def __post_init__(self):
        if not 0 <= self.rank < self.count:
            raise ValueError(f"rank={self.rank} (RANK) must be from 0 to {self.count - 1} (WORLD_SIZE={self.count}).")

    @classmethod
    def of_launch(cls, num_workers: int | None = None) -> "Processes":
        """Those that `accelerate launch` or `torchrun` states in the environment."""
        threads = {} if num_workers is None else {"num_workers": num_workers}
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)), **threads)


def write_masks(
    source: Source,
    generator: MaskGenerator,
    out: str | os.PathLike,
    settings: MaskSettings,
    *,
    report: Report,
    overwrite: bool = False,
    processes: Processes = Processes(),
) -> Report | None:
    """Writes the masks of all images of a source; finished blocks are skipped.

    Args:
        source: from `open_source`.
        generator: makes the masks; called from several threads.
        out: folder, created if it is missing.
        report: what opening the source found.
        overwrite: delete what an earlier run wrote to `out`; other files stay.

    Returns:
        What was found, over all images; None if other processes still have blocks to do.

    Raises:
        ValueError: `out` holds a run with other settings, other files, or the annotations; or a finished run that
            skipped images which can be used now; or `overwrite` is on with several processes.
    """
    out = Path(fs_path(out))
    _check_folder(out, source, overwrite, processes)
    identity = {
        "version": __version__,
        "annotations": source.path,
        "annotations_sha256": _digest(source),
        **source.identity,
        **generator.settings(),
        **asdict(settings),
        "per": settings.granularity,
        "write": sorted(settings.write),
    }
    if _is_finished(out, identity, source.file_names, overwrite):
        repaired = _repaired(out, source)
        if repaired:
            raise ValueError(
                f"the masks in {out} were finished without "
                f"{', '.join(repaired[:5])}{', ...' if len(repaired) > 5 else ''}, "
                "whose files can be used now. Choose another folder, or start again with --overwrite."
            )
        logger.warning("the masks in %s are finished already; --overwrite makes them again", out)
        return _finished_report(out)
    run = _MaskRun(source, generator, out, settings, identity, report)
    try:
        _write_blocks(run, processes)
        written = _join(run)
        if written is not None and written.images == 0:
            raise ValueError(f"no image of {source.path} can be used, so no mask was made.\n{written.summary()}")
    except Exception:
        _leave_nothing(run, processes)
        raise
    return written


def _leave_nothing(run: "_MaskRun", processes: Processes) -> None:
    """Deletes what a run without one finished block has written, so that the corrected command is not refused."""
    if processes.count > 1 or any(run.block_file(block).is_file() for block in range(run.num_blocks)):
        return
    _clear(run.out, {"settings": run.identity, "file_names": run.source.file_names}, set())
    if run.out.is_dir() and not any(run.out.iterdir()):
        run.out.rmdir()


def _write_blocks(run: "_MaskRun", processes: Processes) -> None:
    """Writes this process's unfinished blocks, in threads."""
    mine = range(processes.rank, run.num_blocks, processes.count)
    unfinished = [block for block in mine if not run.block_file(block).is_file()]
    total, to_do = (sum(len(run.images_of(block)) for block in blocks) for blocks in (mine, unfinished))
    bar = tqdm(
        total=total, initial=total - to_do, unit="image", desc="masks", disable=processes.rank != 0, mininterval=1
    )
    with bar, ThreadPoolExecutor(processes.num_workers) as pool:
        futures = [pool.submit(run.write_block, block, bar) for block in unfinished]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            run.stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _check_folder(out: Path, source: Source, overwrite: bool, processes: Processes) -> None:
    """Raises ValueError if masks must not be written to `out`, whatever it holds of earlier runs."""
    inside = next(
        (path for path in source.annotation_files if out.resolve() in Path(fs_path(path)).resolve().parents), None
    )
    if inside is not None:
        raise ValueError(f"{out} holds annotations that are read ({inside}). Choose another folder for the masks.")
    if overwrite and processes.count > 1:
        raise ValueError(f"--overwrite is for one process; delete {out} before you start {processes.count} processes.")


class _MaskRun:
    """What the blocks of a run share."""

    def __init__(
        self,
        source: Source,
        generator: MaskGenerator,
        out: Path,
        settings: MaskSettings,
        identity: dict,
        report: Report,
    ):
        self.source, self.generator, self.out = source, generator, out
        self.settings, self.identity, self.index_report = settings, identity, report
        self.map_type, self.ignored = label_map_type(len(source.classes))
        self.stop = threading.Event()
        self.num_blocks = -(-len(source) // BLOCK_SIZE)
        self.scratch = out / BLOCKS / "unfinished"
        self.scratch.mkdir(parents=True, exist_ok=True)
        first: dict[str, int] = {}
        self.same_name = {
            index: source.file_names[earlier]
            for index, name in enumerate(source.file_names)
            if (earlier := first.setdefault(mask_name(name), index)) != index
        }

    def block_file(self, block: int) -> Path:
        return self.out / BLOCKS / f"{block:06d}.json"

    def images_of(self, block: int) -> range:
        """The images of a block."""
        return range(block * BLOCK_SIZE, min((block + 1) * BLOCK_SIZE, len(self.source)))

    def blocks(self) -> Iterator[dict]:
        """The contents of all block files."""
        for block in range(self.num_blocks):
            yield json.loads(self.block_file(block).read_text(encoding="utf-8"))

    def write_block(self, block: int, bar: tqdm) -> None:
        """Writes all files of a block, and its block file at the end."""
        report, entries, records = Report(), {}, {}
        for index in self.images_of(block):
            image_report = Report()
            record = self._record(index, image_report)
            report.merge(image_report)
            entries[index] = {"file_name": self.source.file_names[index]}
            if image_report.counts:
                entries[index]["problems"] = image_report.places
            if record is None:
                entries[index]["skipped"] = True
                bar.update()
            else:
                records[index] = record
        sizes = {index: (record.height, record.width) for index, record in records.items()}
        for members in batches_of_one_size(sizes, self.settings.batch_size):
            if self.stop.is_set():
                return
            self._write_batch(members, records, entries, report)
            bar.update(len(members))
        content = {"report": asdict(report), "images": [entries[index] for index in sorted(entries)]}
        write_atomically(self.block_file(block), json.dumps(content).encode(), self.scratch)

    def _write_batch(
        self, members: list[int], records: dict[int, Record], entries: dict[int, dict], report: Report
    ) -> None:
        """Masks and files of images that the generator may combine."""
        start, settings = time.perf_counter(), self.settings
        images = self._images(members, records, entries, report)
        boxed = [boxed_image(image, records[index]) for index, image in images]
        patches = by_position(self.generator.patches(boxed, settings.granularity), len(boxed))
        try:
            for (index, _), image, image_patches in zip(images, boxed, patches):
                masks = assemble(
                    image,
                    image_patches,
                    settings.granularity,
                    overlap_rule=settings.overlap_rule,
                    threshold=settings.threshold,
                    min_score=settings.min_score,
                )
                entries[index] |= self._write(image, records[index], masks, report)
        except Exception as error:
            if min(boxed[0].image.shape[:2]) > 1:
                raise
            self._skip_thin([index for index, _ in images], records, entries, error, report)
        for index, _ in images:
            entries[index]["seconds"] = round((time.perf_counter() - start) / len(images), 4)

    def _skip_thin(
        self,
        members: list[int],
        records: dict[int, Record],
        entries: dict[int, dict],
        error: Exception,
        report: Report,
    ) -> None:
        """Counts images of one pixel in height or width at which the generator failed."""
        for index in (index for index in members if "objects" not in entries[index]):
            place = f"{records[index].file_name}: {records[index].width} x {records[index].height}, {error}"
            report.add("generator_failed", place)
            report.images -= 1
            report.objects -= records[index].num_objects
            entries[index] |= {"skipped": True, "problems": {"generator_failed": [place]}}

    def _record(self, index: int, report: Report) -> Record | None:
        if index in self.same_name:
            report.add("mask_name_taken", f"{self.source.file_names[index]}: {self.same_name[index]}")
            return None
        return self.source.record(index, report)

    def _images(
        self, members: list[int], records: dict[int, Record], entries: dict[int, dict], report: Report
    ) -> list[tuple[int, np.ndarray]]:
        """The decoded images; one that cannot be decoded is counted and skipped."""
        images = []
        for index in members:
            image_report = Report()
            image = self.source.decode(records[index], image_report)
            if image is not None:
                images.append((index, image))
                continue
            report.merge(image_report)
            problems = entries[index].get("problems", {}) | image_report.places
            entries[index] |= {"skipped": True, "problems": problems}
        return images

    def _write(self, image: BoxedImage, record: Record, masks: ImageMasks, report: Report) -> dict:
        """Writes the files of one image; returns its entry in the block file."""
        objects = record.single_objects
        kept, rejected = [], []
        for item, mask in zip(objects, masks.masks):
            place = f"{record.file_name}: object {item.id}"
            if mask.score < self.settings.min_score:
                report.add("low_score", f"{place}, score {mask.score:.3f}")
                rejected.append(item)
                continue
            if mask.area == 0:
                report.add("empty_mask", place)
            kept.append((replace(item, rle=mask.rle, area=mask.area), mask))
        label_map = masks.label_map.astype(self.map_type)
        for item in [*rejected, *(item for item in record.objects if item.iscrowd)]:
            region = label_map[box_slices(item.box, *label_map.shape)]
            region[region == 0] = self.ignored
        name = record.file_name
        if "png" in self.settings.write:
            write_label_map(self.out / _image_files(name)["png"], label_map, self.scratch)
        self._write_shapes(replace(record, objects=[item for item, mask in kept if mask.area]))
        if self.settings.overlay:
            self._write_overlay(image, name, label_map)
        return {
            "image_id": record.image_id,
            "height": record.height,
            "width": record.width,
            "license": record.license,
            "objects": [
                asdict(item) | {"score": round(mask.score, 4), "fill_rate": round(mask.fill_rate, 4)}
                for item, mask in kept
            ],
        }

    def _write_shapes(self, record: Record) -> None:
        """The files that hold the masks of one image as shapes, and the image beside them."""
        files, names = _image_files(record.file_name), [name for _, name in self.source.classes]
        if "yolo" in self.settings.write:
            write_atomically(self.out / files["yolo"], yolo_text(record, masks=True).encode(), self.scratch)
            self.source.place_image(record, self.out / files["yolo image"], self.settings.with_images, self.scratch)
        if "labelme" in self.settings.write:
            content = labelme_content(record, names, PurePosixPath(record.file_name).name)
            text = json_text(content, indent=2).encode("utf-8", "surrogateescape")
            write_atomically(self.out / files["labelme"], text, self.scratch)
            self.source.place_image(record, self.out / files["labelme image"], self.settings.with_images, self.scratch)

    def _write_overlay(self, image: BoxedImage, name: str, label_map: np.ndarray) -> None:
        shown = colour_index(label_map, self.ignored)
        names = [class_name for _, class_name in self.source.classes]
        canvas = draw_boxes(overlay(image.image, shown), image.boxes, image.labels.tolist(), names)
        buffer = io.BytesIO()
        Image.fromarray(canvas).save(buffer, "JPEG", quality=90)
        write_atomically(self.out / _image_files(name)["overlay"], buffer.getvalue(), self.scratch)


def _image_files(name: str) -> dict[str, str]:
    """The files of an image in OUT, by output."""
    path = PurePosixPath(name)
    return {
        "png": f"masks/{mask_name(name)}",
        "yolo": yolo_dataset.label_place(name),
        "yolo image": yolo_dataset.image_place(name),
        "labelme": f"labelme/{path.with_suffix('.json')}",
        "labelme image": f"labelme/{name}",
        "overlay": f"overlays/{path.with_suffix('.jpg')}",
    }


def _digest(source: Source) -> str:
    """A hash of classes, images, and sizes and times of the annotation files; it changes with them."""
    digest = hashlib.sha256(json.dumps([source.classes, source.file_names]).encode())
    for path in source.annotation_files:
        state = os.stat(fs_path(path))
        digest.update(json.dumps([path, state.st_size, state.st_mtime_ns]).encode())
    return digest.hexdigest()


def _is_finished(out: Path, identity: dict, file_names: list[str], overwrite: bool) -> bool:
    """Whether `out` holds a complete run with these settings; prepares `out` if the run is new.

    Raises:
        ValueError: it holds a run with other settings, or files that no run wrote.
    """
    finished, started = out / "report.json", out / BLOCKS / "settings.json"
    before = _read_run(finished) or _read_run(started)
    if before is None and out.is_dir() and any(item.name != BLOCKS for item in out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no masks of an earlier run. Choose another folder.")
    if before is not None and not overwrite:
        now = json.loads(json.dumps(identity))
        settings = before["settings"]
        other = next((key for key in now if settings.get(key) != now[key]), None)
        if other == "annotations_sha256":
            raise ValueError(
                f"the annotations or the images have changed since the masks in {out} were made. Choose another "
                f"folder, "
                "or start again with --overwrite."
            )
        if other is not None:
            raise ValueError(
                f"{out} holds masks made with other settings: {other} was {settings.get(other)!r} and is now "
                f"{now[other]!r}. Choose another folder, or start again with --overwrite."
            )
        return _read_run(finished) is not None
    if before is not None:
        _clear(out, before, _files_of_run(identity, file_names))
    write_atomically(started, json.dumps({"settings": identity, "file_names": file_names}).encode())
    return False


def _read_run(path: Path) -> dict | None:
    """What a run wrote to its report or at its start; None if the file is absent or not from a run."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    settings = content.get("settings") if isinstance(content, dict) else None
    return content if isinstance(settings, dict) and "annotations_sha256" in settings else None


def _files_of_run(settings: dict, file_names: Iterable[str]) -> set[str]:
    """All files that a run writes to OUT for some images, except the block files."""
    outputs = {*settings["write"], *(["overlay"] if settings["overlay"] else [])}
    if settings.get("with_images", "none") != "none":
        outputs |= {f"{output} image" for output in settings["write"]}
    return {
        "report.json",
        "classes.txt",
        *(file for output in outputs for file in _JOINED_FILES.get(output, ())),
        *(file for name in file_names for output, file in _image_files(name).items() if output in outputs),
    }


def _clear(out: Path, before: dict, wanted: set[str]) -> None:
    """Deletes the files of an earlier run, and no others.

    Args:
        before: what the earlier run states.
        wanted: files of the new run.

    Raises:
        ValueError: a file of unknown origin has the name of one of `wanted`; then nothing is deleted.
    """
    if "images" in before:
        names = [image["file_name"] for image in before["images"] if "skipped" not in image]
    else:
        names = before.get("file_names", ())  # Earlier versions do not state them at the start.
    written = {fs_path(out / file) for file in _files_of_run(before["settings"], names)}
    # Links to folders are not followed: the run makes none, so the files behind one are not its own.
    present = (str(Path(folder, name)) for folder, _, files in os.walk(out) for name in files)
    left = {path for path in present if path in written}
    planned = (fs_path(out / file) for file in sorted(wanted))
    foreign = next((path for path in planned if path not in left and os.path.lexists(path)), None)
    if foreign is not None:
        raise ValueError(
            f"{foreign} has the name of a file to be written, but is not known to come from the earlier run in {out}. "
            "Move it away, or choose another folder."
        )
    for path in sorted(left):  # report.json, which identifies the run, is the last in this order.
        os.unlink(path)
    emptied = {folder for path in left for folder in Path(path).parents if out in folder.parents}
    for folder in sorted(emptied, reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()
    shutil.rmtree(out / BLOCKS, ignore_errors=True)


def _finished_report(out: Path) -> Report:
    content = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return Report(**content["report"])


def _repaired(out: Path, source: Source) -> list[str]:
    """The images that a finished run skipped because of their file, and that can be used now."""
    images = json.loads((out / "report.json").read_text(encoding="utf-8"))["images"][: len(source)]
    skipped = (
        i
        for i, image in enumerate(images)
        if "skipped" in image and {"mask_name_taken", "generator_failed"}.isdisjoint(image["problems"])
    )
    records = (source.record(index, Report()) for index in skipped)
    return [item.file_name for item in records if item is not None and source.decode(item, Report()) is not None]


def _join(run: _MaskRun) -> Report | None:
    """Writes the files that cover all images, once every block file exists; then deletes the block files."""
    out, settings, source = run.out, run.settings, run.source
    if not all(run.block_file(block).is_file() for block in range(run.num_blocks)):
        return None
    report = Report(classes=[f"{label} {name}" for label, (_, name) in enumerate(source.classes, start=1)])
    report.merge(run.index_report)
    try:
        for block in run.blocks():
            report.merge(Report(**block["report"]))
        names = "".join(f"{name}\n" for _, name in source.classes)
        write_atomically(out / "classes.txt", names.encode("utf-8", "surrogateescape"), run.scratch)
        for output in ("coco", "coco-polygons", "coco-results"):
            if output in settings.write:
                _write_coco(run, output)
        if "yolo" in settings.write:
            written = [image["file_name"] for block in run.blocks() for image in block["images"] if "objects" in image]
            files = yolo_dataset.dataset_files([name for _, name in source.classes], written, source.splits)
            for name, text in files.items():
                write_atomically(out / name, text.encode("utf-8", "surrogateescape"), run.scratch)
        head = {"settings": run.identity, "report": asdict(report), "summary": report.summary().splitlines()}
        _write_json(out / "report.json", head, {"images": _report_entries(run)}, run.scratch)
    except FileNotFoundError:
        # Another process joins them too, and deletes the block files after it wrote the report.
        if not (out / "report.json").is_file():
            raise
        return _finished_report(out)
    shutil.rmtree(out / BLOCKS, ignore_errors=True)
    return report


def _report_entries(run: _MaskRun) -> Iterator[dict]:
    """One entry per image: its time, or why it was skipped; at the end those skipped when the source was opened."""
    for block in run.blocks():
        for image in block["images"]:
            reported = {key: value for key, value in image.items() if key not in ("objects", "license")}
            yield reported | {"boxes": len(image.get("objects", ()))}
    for name, kind in run.index_report.skipped:
        yield {"file_name": name, "skipped": True, "problems": {kind: []}}


def _write_coco(run: _MaskRun, output: str) -> None:
    source, classes = run.source, run.source.coco_classes

    def entries() -> Iterator[tuple[int | str, dict]]:
        number = 0
        for block in run.blocks():
            for image in block["images"]:
                number += 1
                if "objects" in image:
                    yield coco.id_of(image["image_id"]) if source.has_coco_ids else number, image

    def annotations() -> Iterator[dict]:
        for image_id, image in entries():
            for item in image["objects"]:
                x1, y1, x2, y2 = item["box"]
                yield {
                    "id": item["id"],
                    "image_id": image_id,
                    "category_id": classes[item["category"]][0],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": item["area"],
                    "iscrowd": 0,
                    "segmentation": item["rle"],
                    "score": item["score"],
                    "fill_rate": item["fill_rate"],
                }

    (name,) = _JOINED_FILES[output]
    if output == "coco-results":
        _write_list(run.out / name, map(result_of, annotations()), run.scratch)
        return
    made = map(_with_polygons, annotations()) if output == "coco-polygons" else annotations()
    head = coco.header_with(source.coco_header, classes)
    licences = coco.LicenceIds(head)
    images = []
    for image_id, image in entries():
        # Block files of earlier versions have no licence.
        license = {"license": licences.find(image["license"])} if image.get("license") else {}
        images.append({"id": image_id} | {key: image[key] for key in ("file_name", "width", "height")} | license)
    head |= licences.header()
    _write_json(run.out / name, head, {"images": images, "annotations": filter(None, made)}, run.scratch)


def _with_polygons(annotation: dict) -> dict | None:
    """An annotation with polygons in place of run lengths; None for a mask without a pixel, which has none."""
    polygons = rle_to_polygons(annotation["segmentation"])
    return {**annotation, "segmentation": polygons} if polygons else None


def _write_list(path: Path, items: Iterable[dict], scratch: Path) -> None:
    """Writes a json list one item at a time."""
    with atomic_file(path, scratch) as file:
        for number, item in enumerate(items):
            file.write(((",\n" if number else "[\n") + json.dumps(item)).encode())
        file.write(b"]\n" if file.tell() else b"[]\n")


def _write_json(path: Path, head: dict, lists: dict[str, Iterable[dict]], scratch: Path) -> None:
    """Writes a json object whose long lists are written one item at a time."""
    with atomic_file(path, scratch) as file:
        file.write(json.dumps(head)[:-1].encode())
        for key, items in lists.items():
            file.write(f',\n"{key}": ['.encode())
            for number, item in enumerate(items):
                file.write(((",\n" if number else "\n") + json.dumps(item)).encode())
            file.write(b"]")
        file.write(b"}\n")
