"""Masks for a whole dataset, image by image: the work behind `lpg-hf masks`.

    OUT/masks/NAME.png        label map, palette PNG (16-bit grey above 254 classes); 255 (65535) is ignored
    OUT/instances.json        COCO, one compressed RLE per box, with the original ids and categories
    OUT/labels/NAME.txt       YOLO segmentation polygons, and OUT/data.yaml, which expects the images in OUT/images
    OUT/overlays/NAME.jpg     the image with its label map and boxes
    OUT/classes.txt           class names in the order of the labels
    OUT/report.json           settings, counts of problems, and for every image its time or why it was left out

NAME keeps the folders of the image's name. The images are processed in fixed blocks. A block is finished when its part file
exists, which is written after all of the block's other files; each file is complete or absent. So a killed run goes
on where it was and ends with the same masks and annotations to the byte, and processes can share the blocks out among them without
talking to each other: whoever finishes the last block joins the parts.
"""

import hashlib
import io
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import yaml
from PIL import Image
from tqdm import tqdm

from lpg_hf.boxes import box_slices
from lpg_hf.data.formats import coco
from lpg_hf.data.formats.yolo import yolo_text
from lpg_hf.data.records import Record
from lpg_hf.data.report import Report
from lpg_hf.data.sources import Source
from lpg_hf.files import atomic_file, fs_path, write_atomically
from lpg_hf.generators.base import GRANULARITIES, BoxedImage, MaskGenerator, batches_of_one_size, check_choice
from lpg_hf.label_maps import label_map_type, mask_name, write_label_map
from lpg_hf.masks.assembly import ImageMasks, assemble, boxed_image, by_position
from lpg_hf.masks.fusion import OVERLAP_RULES
from lpg_hf.version import __version__
from lpg_hf.visualize import colour_index, draw_boxes, overlay


logger = logging.getLogger(__name__)

OUTPUTS = ("png", "coco", "yolo")
BLOCK_SIZE = 8  # images: what a killed run does again at most, per thread
PARTS = ".parts"


@dataclass(frozen=True)
class MaskSettings:
    """What is written, and how masks become label maps.

    Attributes:
        write: any of `OUTPUTS`.
        per: "class" or "instance", see `assemble`; None: "instance" if COCO or YOLO is written, else "class".
        overlap_rule: see `fuse_classes`.
        threshold: foreground probability above which a pixel is in the mask.
        overlay: also write images for people.
        min_score: a mask with a lower score is left out of COCO and YOLO files and of the label map, where its box is ignored
            as far as no other mask claims it.
        batch_size: images that a generator may combine.
    """

    write: tuple[str, ...] = ("png",)
    per: str | None = None
    overlap_rule: str = "rate"
    threshold: float = 0.5
    overlay: bool = False
    min_score: float = 0.0
    batch_size: int = 8

    def __post_init__(self):
        unknown = [name for name in self.write if name not in OUTPUTS]
        if unknown or not self.write:
            raise ValueError(f"write={','.join(self.write)!r}: choose one or more of {', '.join(OUTPUTS)}.")
        if self.per is None:
            object.__setattr__(self, "per", "instance" if {"coco", "yolo"} & set(self.write) else "class")
        check_choice("per", self.per, GRANULARITIES)
        check_choice("overlap_rule", self.overlap_rule, OVERLAP_RULES)
        for name in ("threshold", "min_score"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} is a probability: it must lie in [0, 1].")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1.")


def write_masks(
    source: Source,
    generator: MaskGenerator,
    out: str | os.PathLike,
    settings: MaskSettings,
    *,
    report: Report,
    generator_name: str,
    overwrite: bool = False,
    num_workers: int | None = None,
    rank: int = 0,
    num_processes: int = 1,
    log: Callable[[str], None] = logger.info,
) -> Report | None:
    """Write the masks of all images of a source; finished ones are not redone.

    Args:
        source: from `open_source`.
        generator: makes the masks; called from several threads.
        out: folder, created if it is missing.
        report: what opening the source found.
        generator_name: for the report; part of what a started run must agree in.
        overwrite: throw away what an earlier run left in `out`; files that it has not written stay.
        num_workers: threads that decode and write; None: one per core, at most 8.
        rank: number of this process among those that share `out`.
        num_processes: their number.
        log: is told that there was nothing to do.

    Returns:
        What was found, over all images; None if other processes still have blocks to do.

    Raises:
        ValueError: `out` holds a run with other settings, other files, or the annotations, or a finished run that left out
            images which can be used now; `overwrite` with several processes; `rank` that is none of theirs.
    """
    out = Path(fs_path(out))
    if not 0 <= rank < num_processes:
        raise ValueError(f"rank={rank} (RANK) is no number of one of {num_processes} processes (WORLD_SIZE).")
    inside = next(
        (path for path in source.annotation_files if out.resolve() in Path(fs_path(path)).resolve().parents), None
    )
    if inside is not None:
        raise ValueError(f"{out} holds annotations that are read ({inside}). Choose another folder for the masks.")
    if overwrite and num_processes > 1:
        raise ValueError(f"--overwrite is for one process; delete {out} before you start {num_processes} of them.")
    identity = {
        "version": __version__,
        "annotations": source.path,
        "annotations_sha256": _digest(source),
        **source.identity,
        "generator": generator_name,
        **generator.settings(),
        **asdict(settings),
        "write": sorted(settings.write),
    }
    if _is_finished(out, identity, source.file_names, overwrite):
        repaired = _repaired(out, source)
        if repaired:
            raise ValueError(
                f"the masks in {out} were finished without {', '.join(repaired[:5])}{', ...' if len(repaired) > 5 else ''}, whose "
                "file can be used now. Choose another folder, or start anew with --overwrite."
            )
        log(f"{out} is finished already; --overwrite does it again")
        return _finished_report(out)
    job = _Job(source, generator, out, settings, identity, report)
    num_blocks = -(-len(source) // BLOCK_SIZE)
    mine = range(rank, num_blocks, num_processes)
    waiting = [block for block in mine if not job.part(block).is_file()]
    total = sum(min(BLOCK_SIZE, len(source) - block * BLOCK_SIZE) for block in mine)
    to_do = sum(min(BLOCK_SIZE, len(source) - block * BLOCK_SIZE) for block in waiting)
    bar = tqdm(total=total, initial=total - to_do, unit="image", desc="masks", disable=rank != 0, mininterval=1)
    num_workers = min(8, os.cpu_count() or 1) if num_workers is None else num_workers
    with bar, ThreadPoolExecutor(num_workers) as pool:
        jobs = [pool.submit(job.run, block, bar) for block in waiting]
        try:
            for done in as_completed(jobs):
                done.result()
        except BaseException:
            job.stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return _join(job, num_blocks)


class _Job:
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
        self.scratch = out / PARTS / "unfinished"
        self.scratch.mkdir(parents=True, exist_ok=True)
        first: dict[str, int] = {}
        self.same_name = {
            index: source.file_names[earlier]
            for index, name in enumerate(source.file_names)
            if (earlier := first.setdefault(mask_name(name), index)) != index
        }

    def part(self, block: int) -> Path:
        return self.out / PARTS / f"{block:06d}.json"

    def run(self, block: int, bar: tqdm) -> None:
        """All files of a block, and its part at the end."""
        report, entries, records = Report(), {}, {}
        for index in range(block * BLOCK_SIZE, min((block + 1) * BLOCK_SIZE, len(self.source))):
            of_image = Report()
            record = self._record(index, of_image)
            report.merge(of_image)
            entries[index] = {"file_name": self.source.file_names[index]}
            if of_image.counts:
                entries[index]["problems"] = of_image.places
            if record is None:
                entries[index]["skipped"] = True
                bar.update()
            else:
                records[index] = record
        sizes = {index: (record.height, record.width) for index, record in records.items()}
        for members in batches_of_one_size(sizes, self.settings.batch_size):
            if self.stop.is_set():
                return
            start = time.perf_counter()
            images = self._images(members, records, entries, report)
            boxed = [boxed_image(image, records[index]) for index, image in images]
            patches = self.generator.patches(boxed, self.settings.per)
            for (index, _), image, of_image in zip(images, boxed, by_position(patches, len(boxed))):
                masks = assemble(
                    image,
                    of_image,
                    self.settings.per,
                    overlap_rule=self.settings.overlap_rule,
                    threshold=self.settings.threshold,
                    min_score=self.settings.min_score,
                )
                entries[index] |= self._write(image, records[index], masks, report)
            for index, _ in images:
                entries[index]["seconds"] = round((time.perf_counter() - start) / len(images), 4)
            bar.update(len(members))
        part = {"report": asdict(report), "images": [entries[index] for index in sorted(entries)]}
        write_atomically(self.part(block), json.dumps(part).encode(), self.scratch)

    def _record(self, index: int, report: Report) -> Record | None:
        if index in self.same_name:
            report.add("mask_name_taken", f"{self.source.file_names[index]}: {self.same_name[index]}")
            return None
        return self.source.record(index, report)

    def _images(
        self, members: list[int], records: dict[int, Record], entries: dict[int, dict], report: Report
    ) -> list[tuple[int, np.ndarray]]:
        """The decoded images; one that cannot be decoded is counted and left out."""
        images = []
        for index in members:
            of_image = Report()
            image = self.source.decode(records[index], of_image)
            if image is not None:
                images.append((index, image))
                continue
            report.merge(of_image)
            entries[index] |= {"skipped": True, "problems": entries[index].get("problems", {}) | of_image.places}
        return images

    def _write(self, image: BoxedImage, record: Record, masks: ImageMasks, report: Report) -> dict:
        """Files of one image; returns its entry in the part."""
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
        if "yolo" in self.settings.write:
            self._write_outlines(replace(record, objects=[item for item, mask in kept if mask.area]))
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

    def _write_outlines(self, record: Record) -> None:
        path = self.out / _image_files(record.file_name)["yolo"]
        write_atomically(path, yolo_text(record, masks=True).encode(), self.scratch)

    def _write_overlay(self, image: BoxedImage, name: str, label_map: np.ndarray) -> None:
        shown = colour_index(label_map, self.ignored)
        names = [class_name for _, class_name in self.source.classes]
        canvas = draw_boxes(overlay(image.image, shown), image.boxes, image.labels, names)
        buffer = io.BytesIO()
        Image.fromarray(canvas).save(buffer, "JPEG", quality=90)
        write_atomically(self.out / _image_files(name)["overlay"], buffer.getvalue(), self.scratch)


def _image_files(name: str) -> dict[str, str]:
    """The files of an image in OUT, by the output that they belong to."""
    path = PurePosixPath(name)
    return {
        "png": f"masks/{mask_name(name)}",
        "yolo": f"labels/{path.with_suffix('.txt')}",
        "overlay": f"overlays/{path.with_suffix('.jpg')}",
    }


def _digest(source: Source) -> str:
    """Tells changed annotations: the classes and images, and the sizes and times of the files that they came from."""
    digest = hashlib.sha256(json.dumps([source.classes, source.file_names]).encode())
    for path in source.annotation_files:
        state = os.stat(fs_path(path))
        digest.update(json.dumps([path, state.st_size, state.st_mtime_ns]).encode())
    return digest.hexdigest()


def _is_finished(out: Path, identity: dict, file_names: list[str], overwrite: bool) -> bool:
    """Whether `out` holds a complete run of these settings; makes it ready for one if it is new.

    Raises:
        ValueError: it holds a run with other settings, or files that no run has written.
    """
    finished, started = out / "report.json", out / PARTS / "settings.json"
    before = _read_run(finished) or _read_run(started)
    if before is None and out.is_dir() and any(item.name != PARTS for item in out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no masks of an earlier run. Choose another folder.")
    if before is not None and not overwrite:
        now = json.loads(json.dumps(identity))
        settings = before["settings"]
        other = next((key for key in now if settings.get(key) != now[key]), None)
        if other == "annotations_sha256":
            raise ValueError(
                f"the annotations or the images have changed since the masks in {out} were made. Choose another folder, or "
                "start anew with --overwrite."
            )
        if other is not None:
            raise ValueError(
                f"{out} holds masks made with other settings: {other} was {settings.get(other)!r} and is now {now[other]!r}. "
                "Choose another folder, or start anew with --overwrite."
            )
        return _read_run(finished) is not None
    if before is not None:
        _clear(out, before, _files_of_run(identity, file_names))
    write_atomically(started, json.dumps({"settings": identity, "file_names": file_names}).encode())
    return False


def _read_run(path: Path) -> dict | None:
    """What a run states in its report or at its start; None if the file is absent, or some other program's."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    settings = content.get("settings") if isinstance(content, dict) else None
    return content if isinstance(settings, dict) and "annotations_sha256" in settings else None


def _files_of_run(settings: dict, file_names: Iterable[str]) -> set[str]:
    """All that a run writes in OUT for some images, but for its parts."""
    outputs = {*settings["write"], *(["overlay"] if settings["overlay"] else [])}
    once = {"coco": "instances.json", "yolo": "data.yaml"}
    return {
        "report.json",
        "classes.txt",
        *(once[output] for output in outputs & once.keys()),
        *(file for name in file_names for output, file in _image_files(name).items() if output in outputs),
    }


def _clear(out: Path, before: dict, wanted: set[str]) -> None:
    """Delete what an earlier run has written, and no other file.

    Args:
        before: what the earlier run states.
        wanted: files of the new run.

    Raises:
        ValueError: another file stands where one of `wanted` is to be written; nothing is deleted then.
    """
    if "images" in before:
        names = [image["file_name"] for image in before["images"] if "skipped" not in image]
    else:
        names = before.get("file_names", ())  # A start of an earlier version states none.
    written = {fs_path(out / file) for file in _files_of_run(before["settings"], names)}
    # Links to folders are not followed: the run has made none, so what lies behind one is not its own.
    found = (str(Path(folder, name)) for folder, _, files in os.walk(out) for name in files)
    left = {path for path in found if path in written}
    planned = (fs_path(out / file) for file in sorted(wanted))
    foreign = next((path for path in planned if path not in left and os.path.lexists(path)), None)
    if foreign is not None:
        raise ValueError(
            f"{foreign} is in the way of the masks, and is not known to come from the earlier run in {out}. Move it away, or "
            "choose another folder."
        )
    for path in sorted(left):  # In this order report.json, by which the next start would know the run, is the last.
        os.unlink(path)
    emptied = {folder for path in left for folder in Path(path).parents if out in folder.parents}
    for folder in sorted(emptied, reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()
    shutil.rmtree(out / PARTS, ignore_errors=True)


def _finished_report(out: Path) -> Report:
    content = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return Report(**content["report"])


def _repaired(out: Path, source: Source) -> list[str]:
    """The images that a finished run left out for their file, and that can be used now."""
    images = json.loads((out / "report.json").read_text(encoding="utf-8"))["images"][: len(source)]
    skipped = (
        i for i, image in enumerate(images) if "skipped" in image and "mask_name_taken" not in image["problems"]
    )
    records = (source.record(index, Report()) for index in skipped)
    return [item.file_name for item in records if item is not None and source.decode(item, Report()) is not None]


def _join(job: _Job, num_blocks: int) -> Report | None:
    """What stands in one file for all images, once every part is there; then the parts are deleted."""
    out, settings, source = job.out, job.settings, job.source
    if not all(job.part(block).is_file() for block in range(num_blocks)):
        return None

    def parts() -> Iterator[dict]:
        for block in range(num_blocks):
            yield json.loads(job.part(block).read_text(encoding="utf-8"))

    report = Report(classes=[f"{label} {name}" for label, (_, name) in enumerate(source.classes, start=1)])
    report.merge(job.index_report)
    try:
        for part in parts():
            report.merge(Report(**part["report"]))
        names = "".join(f"{name}\n" for _, name in source.classes)
        write_atomically(out / "classes.txt", names.encode("utf-8", "surrogateescape"), job.scratch)
        if "coco" in settings.write:
            _write_coco(job, parts)
        if "yolo" in settings.write:
            names = {number: name for number, (_, name) in enumerate(source.classes)}
            text = yaml.safe_dump(
                {"path": ".", "train": "images", "val": "images", "names": names}, allow_unicode=True
            )
            write_atomically(out / "data.yaml", text.encode(), job.scratch)
        head = {"settings": job.identity, "report": asdict(report), "summary": report.summary().splitlines()}
        _write_json(out / "report.json", head, {"images": _report_entries(job, parts)}, job.scratch)
    except FileNotFoundError:
        # Another process joins them too, and deletes the parts when it has written the report.
        if not (out / "report.json").is_file():
            raise
        return _finished_report(out)
    shutil.rmtree(out / PARTS, ignore_errors=True)
    return report


def _report_entries(job: _Job, parts: Callable[[], Iterator[dict]]) -> Iterator[dict]:
    """One entry per image: what was found, or why it was left out; last those that were dropped when the source was opened."""
    for part in parts():
        for image in part["images"]:
            told = {key: value for key, value in image.items() if key not in ("objects", "license")}
            yield told | {"boxes": len(image.get("objects", ()))}
    for name, kind in job.index_report.skipped:
        yield {"file_name": name, "skipped": True, "problems": {kind: []}}


def _write_coco(job: _Job, parts) -> None:
    source, classes = job.source, job.source.coco_classes

    def entries() -> Iterator[tuple[int | str, dict]]:
        number = 0
        for part in parts():
            for image in part["images"]:
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

    head = coco.header_with(source.coco_header, classes)
    licences = coco.LicenceIds(head)
    images = []
    for image_id, image in entries():
        # Parts that were written before they held the licence go without.
        license = {"license": licences.find(image["license"])} if image.get("license") else {}
        images.append({"id": image_id} | {key: image[key] for key in ("file_name", "width", "height")} | license)
    head |= licences.header()
    _write_json(job.out / "instances.json", head, {"images": images, "annotations": annotations()}, job.scratch)


def _write_json(path: Path, head: dict, lists: dict[str, Iterable[dict]], scratch: Path) -> None:
    """A json object with long lists, which are written one item at a time."""
    with atomic_file(path, scratch) as file:
        file.write(json.dumps(head)[:-1].encode())
        for key, items in lists.items():
            file.write(f',\n"{key}": ['.encode())
            for number, item in enumerate(items):
                file.write(((",\n" if number else "\n") + json.dumps(item)).encode())
            file.write(b"]")
        file.write(b"}\n")
