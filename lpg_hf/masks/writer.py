"""Masks for a whole dataset, image by image: the work behind `lpg-hf masks`.

    OUT/masks/NAME.png        label map, palette PNG (16-bit grey above 254 classes); 255 (65535) is ignored
    OUT/instances.json        COCO, one compressed RLE per box, with the original ids and categories
    OUT/instances_polygons.json, OUT/results.json   the same with polygons; the results of pycocotools' loadRes
    OUT/labels/NAME.txt       YOLO segmentation polygons, with OUT/data.yaml, its lists and the images in OUT/images
    OUT/labelme/NAME.json     LabelMe shapes, with the image beside them
    OUT/instances/NAME.png    16-bit grey: number of the object in the image's list of annotations; 65535 is ignored
    OUT/geotiff/NAME.tif      label map on the map, of an image that is a GeoTIFF
    OUT/geojson/NAME.geojson  polygons on the map, with class and score
    OUT/report.html           the masks with the lowest scores, to look at first
    OUT/crops/NAME/ID.png     an object as RGBA, transparent around its mask
    OUT/overlays/NAME.jpg     the image with its label map and boxes
    OUT/classes.txt           class names in the order of the labels
    OUT/report.json           settings, counts of problems, and for every image its time or why it was skipped

NAME keeps the folders of the image's name. The images are processed in fixed blocks. A block is finished when its
block file (OUT/.parts) exists, which is written after all other files of the block; each file is complete or absent.
So a killed run resumes and ends with the same masks and annotations to the byte. Block files stay: they hold the
masks, of which outputs that are asked for later are made. Processes share the blocks without talking to each other:
whichever finishes the last block joins the block files.
"""

import hashlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from tqdm import tqdm

from lpg_hf._class_lists import listed_name
from lpg_hf._files import (
    LOCK_FILE,
    atomic_file,
    fs_path,
    locked_folder,
    read_bytes,
    refuse_link,
    relative_name,
    write_atomically,
)
from lpg_hf.boxes import box_slices
from lpg_hf.data._formats import coco, yolo_dataset
from lpg_hf.data._formats.coco_forms import result_of, rle_to_polygons
from lpg_hf.data.records import Record
from lpg_hf.data.report import Report
from lpg_hf.data.sources import Source
from lpg_hf.generators import NamedGenerator
from lpg_hf.generators.base import GRANULARITIES, BoxedImage, MaskGenerator, batches_of_one_size, check_choice
from lpg_hf.label_maps import IGNORE_INDEX_16, label_map_type
from lpg_hf.masks._geo import GEO_OUTPUTS, check_installed, georeference
from lpg_hf.masks._outputs import (
    OF_PIXELS,
    OUTPUTS,
    WITH_IMAGE,
    WITH_OUTLINES,
    FinishedImage,
    ImageWriter,
    image_files,
    refused_names,
)
from lpg_hf.masks._review import review_page
from lpg_hf.masks.assembly import (
    AssemblyOptions,
    BoxMask,
    ImageMasks,
    assemble,
    boxed_image,
    by_position,
    instance_map,
    label_map_of,
)
from lpg_hf.masks.fusion import OVERLAP_RULES
from lpg_hf.version import __version__


logger = logging.getLogger(__name__)

# Settings that say what is made of the masks, so that another run may add to them.
_OF_OUTPUTS = ("write", "overlay", "tighten_boxes", "with_images", "simplify")
# Outputs that show the label map.
_OF_LABEL_MAP = {"png", "overlay", "geotiff"}
# Why an image is skipped whose file is not to blame.
_STAYS_SKIPPED = {"mask_name_taken", "unwritable_name", "generator_failed"}
# The files of an output that cover all images.
_JOINED_FILES = {
    "coco": ("instances.json",),
    "coco-polygons": ("instances_polygons.json",),
    "coco-results": ("results.json",),
    "html": ("report.html",),
    "yolo": (*yolo_dataset.YAML_FILES[:1], *(f"{split}.txt" for split in yolo_dataset.SPLITS)),
}
_MOST_INSTANCES = 65534  # in an image: 16 bits without 0 and the ignored value
BLOCK_SIZE = 8  # images: what a killed run does again at most, per thread
BLOCKS = ".parts"  # folder of the block files
SCRATCH = "unfinished"  # folder in it of the files that a thread is writing


@dataclass(frozen=True)
class MaskSettings(AssemblyOptions):
    """What is written, and how masks become label maps (`AssemblyOptions`).

    Attributes:
        write: any of `OUTPUTS`.
        per: "class" or "instance", see `assemble`; None: "class" if only label maps and the page of html are written,
            else "instance".
        overlay: also write images for people.
        min_score: masks with a lower score are not in the other files either; in the label map their boxes are ignored
            unless other masks claim the pixels.
        batch_size: images that a generator may combine.
        generator: its name for the report; an interrupted run resumes only with the same.
        with_images: YOLO and LabelMe: "link" or "copy" the images file by file, or "none".
        simplify: outlines: tolerance in pixels, see `yolo.mask_to_polygons`.
        tighten_boxes: COCO files get the box of each mask too, as "mask_bbox" (xywh, pixels).
        grow_boxes: the generator gets boxes whose edges are moved outwards by this share of the box's size, below 0
            inwards; the files keep the boxes as they are.
    """

    write: tuple[str, ...] = ("png",)
    per: str | None = None
    overlay: bool = False
    batch_size: int = 8
    generator: str = ""
    with_images: str = "link"
    simplify: float = 2.0
    tighten_boxes: bool = False
    grow_boxes: float = 0.0

    def __post_init__(self):
        known = [name for name in OUTPUTS if name != "overlay"]
        if not self.write or not set(self.write) <= set(known):
            raise ValueError(f"write={','.join(self.write)!r}: choose one or more of {', '.join(known)}.")
        check_choice("per", self.granularity, GRANULARITIES)
        check_choice("overlap_rule", self.overlap_rule, OVERLAP_RULES)
        yolo_dataset.check_with_images(self.with_images)
        if GEO_OUTPUTS & set(self.write):
            check_installed()
        for name in ("threshold", "min_score"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} is a probability: it must lie in [0, 1].")
        yolo_dataset.check_simplify(self.simplify)
        if not -0.5 < self.grow_boxes <= 1:
            raise ValueError(f"grow_boxes={self.grow_boxes} is a share of the box: it must lie above -0.5, at most 1.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1.")

    @property
    def granularity(self) -> str:
        """`per`, or its default."""
        return self.per or ("instance" if set(self.write) - {"png", "geotiff", "html"} else "class")

    def identity(self) -> dict:
        """What masks and outputs depend on; None where no output depends on a setting."""
        write = set(self.write)
        return {
            **asdict(self),
            "per": self.granularity,
            "write": sorted(write),
            "with_images": self.with_images if write & WITH_IMAGE else None,
            "simplify": self.simplify if write & WITH_OUTLINES else None,
        }


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
        return cls(_number_in("RANK", 0), _number_in("WORLD_SIZE", 1), **threads)


def _number_in(variable: str, default: int) -> int:
    """The number in an environment variable.

    Raises:
        ValueError: it holds something else.
    """
    text = os.environ.get(variable, str(default))
    try:
        return int(text)
    except ValueError:
        raise ValueError(
            f"the environment variable {variable} is {text!r}, not a number as a launcher sets it. Unset it"
        ) from None


def write_masks(
    source: Source,
    generator: MaskGenerator | NamedGenerator,
    out: str | os.PathLike,
    settings: MaskSettings,
    *,
    report: Report,
    overwrite: bool = False,
    processes: Processes = Processes(),
) -> Report | None:
    """Writes the masks of all images of a source; finished blocks are skipped, outputs that they lack are added.

    Args:
        source: from `open_source`.
        generator: makes the masks; called from several threads. One that is only named is loaded when it is needed, so
            that a run that is refused or finished already answers at once.
        out: folder, created if it is missing.
        report: what opening the source found.
        overwrite: delete what an earlier run wrote to `out`; other files stay.

    Returns:
        What was found, over all images; None if other processes still have blocks to do.

    Raises:
        ValueError: `out` holds a run with other settings, other files, or the annotations; or a finished run that
            skipped images which can be used now; or `overwrite` is on with several processes; or a process that does
            not share the work writes there; or a label map is asked for that does not hold so many classes.
    """
    out = Path(fs_path(out))
    if settings.overlay or set(settings.write) & {*_OF_LABEL_MAP, "instances-png"}:
        label_map_type(len(source.classes))
    _check_folder(out, source, overwrite, processes)
    with locked_folder(out, shared=processes.count > 1):
        return _write_masks(source, generator, out, settings, report, overwrite, processes)


def _write_masks(
    source: Source,
    generator: MaskGenerator | NamedGenerator,
    out: Path,
    settings: MaskSettings,
    report: Report,
    overwrite: bool,
    processes: Processes,
) -> Report | None:
    """As `write_masks`, in a folder that is ours alone."""
    for folder in (out / BLOCKS, out / BLOCKS / SCRATCH):
        refuse_link(folder)
    before = None if overwrite else _run_before(out)
    asked = {
        "version": __version__,
        "annotations": source.path,
        **source.identity,
        "annotations_sha256": _digest(source),
        **settings.identity(),
    }
    finished = None if before is None else _read_run(out / "report.json")
    digest = generator.digest() if isinstance(generator, NamedGenerator) else None
    if before is not None:  # What can be refused is, before anything is loaded.
        united = _with_outputs_of(before["settings"], asked, settings, out)
        _check_added_names(before["settings"], united, source.file_names)
    if before is not None and finished and digest is not None and digest == before.get("generator_digest"):
        of_generator = {key: value for key, value in before["settings"].items() if key not in asked}
    else:
        generator = _loaded(generator)
        of_generator = generator.settings()
    asked = of_generator | asked
    identity = asked if before is None else _with_outputs_of(before["settings"], asked, settings, out)
    if before is not None and finished:
        repaired = _repaired(finished, source)
        if repaired:
            raise ValueError(
                f"the masks in {out} were finished without "
                f"{', '.join(repaired[:5])}{', ...' if len(repaired) > 5 else ''}, "
                "whose files can be used now. Choose another folder, or start again with --overwrite."
            )
        if identity == before["settings"]:
            logger.warning("the masks in %s are finished already; --overwrite makes them again", out)
            return Report(**finished["report"])
    generator = _loaded(generator)
    stated = {"settings": identity, "generator_digest": digest, "file_names": source.file_names}
    _prepare(out, before, stated, overwrite)
    if processes.count == 1:
        shutil.rmtree(out / BLOCKS / SCRATCH, ignore_errors=True)  # of a killed process
    run = _MaskRun(source, generator, out, settings, identity, report, digest)
    state = out / BLOCKS / "settings.json"
    try:
        _write_blocks(run, processes)
        if not state.is_file():  # what was written since made the folders again, so nothing else tells
            raise FileNotFoundError(state)
        written = _join(run)
        if written is not None and written.images == 0:
            shutil.rmtree(out / BLOCKS, ignore_errors=True)
            raise ValueError(f"no image of {source.path} can be used, so no mask was made.\n{written.summary()}")
    except Exception as error:
        is_gone = not state.is_file()
        if before is None or is_gone:
            _leave_nothing(run, processes, even_blocks=is_gone)
        if is_gone and isinstance(error, FileNotFoundError):
            raise FileNotFoundError(f"{out} was deleted while masks were written to it. Start again.") from error
        raise
    return written


def digest_of_run(out: str | os.PathLike) -> str | None:
    """`NamedGenerator.digest` of the generator whose masks an earlier run began in `out`; None if nothing tells.

    Raises:
        ValueError: `out` holds files that no run wrote.
    """
    before = _run_before(Path(fs_path(out)))
    return None if before is None else before.get("generator_digest")


def _loaded(generator: MaskGenerator | NamedGenerator) -> MaskGenerator:
    return generator.load() if isinstance(generator, NamedGenerator) else generator


def _leave_nothing(run: "_MaskRun", processes: Processes, *, even_blocks: bool) -> None:
    """Deletes what a run without one finished block has written, so that the corrected command is not refused.

    Args:
        even_blocks: finished blocks too: the files of some are gone.
    """
    has_blocks = any(run.block_file(block).is_file() for block in range(run.num_blocks))
    if processes.count > 1 or (has_blocks and not even_blocks):
        return
    _clear(run.out, [{"settings": run.identity, "file_names": run.source.file_names}], set())


def _run_before(out: Path) -> dict | None:
    """What an earlier run in `out` states; None if there was none.

    Raises:
        ValueError: `out` holds files that no run wrote.
    """
    before = _read_run(out / "report.json") or _read_run(out / BLOCKS / "settings.json")
    damaged = _damaged(out)
    if before is None and damaged is not None:
        raise ValueError(f"{damaged} is damaged. Start again with --overwrite, or choose another folder.")
    if before is None and _holds_others(out):
        raise ValueError(f"{out} is not empty and holds no masks of an earlier run. Choose another folder.")
    return before


def _holds_others(out: Path) -> bool:
    """Whether there are files that no run wrote. Empty folders, as a full disk leaves them, do not count."""
    for folder, folders, files in os.walk(out):
        if folder == os.fspath(out):
            folders[:] = [name for name in folders if name != BLOCKS]
            files = [name for name in files if name != LOCK_FILE]
        if files or any(os.path.islink(os.path.join(folder, name)) for name in folders):
            return True
    return False


def _damaged(out: Path) -> Path | None:
    """The file that tells of an earlier run in `out`, if no such file is as a run writes it."""
    paths = [path for path in (out / "report.json", out / BLOCKS / "settings.json") if path.is_file()]
    is_ours = (out / BLOCKS).is_dir()  # other programs write a report.json too
    return paths[0] if paths and is_ours and not any(map(_read_run, paths)) else None


def _with_outputs_of(before: dict, asked: dict, settings: MaskSettings, out: Path) -> dict:
    """The settings of a run that adds outputs to those of an earlier one.

    Raises:
        ValueError: the masks, or an output that is there, would be others; or an output cannot be made of the masks.
    """
    now = json.loads(json.dumps(asked))
    if settings.per is None:  # The default depends on the outputs, but the masks are there.
        now["per"] = before.get("per")
    for name in ("with_images", "simplify"):
        now[name], other = (before.get(name) if now[name] is None else now[name]), before.get(name)
        before = {**before, name: now[name] if other is None else other}
    other = next((key for key in now if key not in _OF_OUTPUTS[:3] and before.get(key) != now[key]), None)
    if other == "annotations_sha256":
        raise ValueError(
            f"the annotations or the images have changed since the masks in {out} were made. Choose another folder, "
            "or start again with --overwrite."
        )
    if other is not None:
        raise ValueError(
            f"{out} holds masks made with other settings: {other} was {before.get(other)!r} and is now "
            f"{now[other]!r}. Choose another folder, or start again with --overwrite."
        )
    now["write"] = sorted({*before["write"], *now["write"]})
    for name in ("overlay", "tighten_boxes"):
        now[name] = bool(before.get(name)) or now[name]
    lacking = _outputs_of(now) - _outputs_of(before)
    if now["overlap_rule"] == "prob" and not now["exclusive"] and lacking & _OF_LABEL_MAP:
        raise ValueError(
            f"overlap_rule='prob' decides by probabilities, which {out} does not keep, so that no label map can be "
            "added. Choose another folder, or start again with --overwrite."
        )
    return now


def _check_added_names(before: dict, united: dict, file_names: Sequence[str]) -> None:
    """Raises ValueError if images that have masks would be left out of the outputs that are added."""
    if before["write"] == united["write"] and _outputs_of(before) == _outputs_of(united):
        return
    known, refused = (refused_names(file_names, _kinds_of_files(settings)) for settings in (before, united))
    added = [place for index, (_, place) in refused.items() if index not in known]
    if added:
        raise ValueError(
            f"{len(added)} images with masks cannot have the files of the added outputs, as another image has a file "
            f"of that name, or none holds theirs: {', '.join(added[:3])}. Choose another folder."
        )


def _outputs_of(identity: dict) -> frozenset[str]:
    """The outputs of a run by its settings."""
    return frozenset([*identity["write"], *(["overlay"] if identity["overlay"] else [])])


def _write_blocks(run: "_MaskRun", processes: Processes) -> None:
    """Writes this process's unfinished blocks, in threads."""
    mine = range(processes.rank, run.num_blocks, processes.count)
    unfinished = [block for block in mine if not run.is_finished(block)]
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
        generator_digest: str | None = None,
    ):
        self.source, self.generator, self.out, self.generator_digest = source, generator, out, generator_digest
        self.settings, self.identity, self.index_report = settings, identity, report
        self.outputs = _outputs_of(identity)
        # Of more classes no label map is written.
        self.map_type, self.ignored = label_map_type(min(len(source.classes), IGNORE_INDEX_16 - 1))
        self.stop = threading.Event()
        self.num_blocks = -(-len(source) // BLOCK_SIZE)
        self.scratch = out / BLOCKS / SCRATCH
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.writer = ImageWriter(
            source, out, self.scratch, self.outputs, identity["with_images"] or "none", identity["simplify"] or 0.0
        )
        self.refused = refused_names(source.file_names, _kinds_of_files(identity))

    def block_file(self, block: int) -> Path:
        return self.out / BLOCKS / f"{block:06d}.json"

    def is_finished(self, block: int) -> bool:
        """Whether all outputs of a block are there."""
        return self.block_file(block).is_file() and self.outputs <= set(self._read(block).get("outputs", ()))

    def _read(self, block: int) -> dict:
        path = self.block_file(block)
        try:
            text, _, digest = path.read_bytes().rpartition(b"\n")
            if digest != _sha256(text):
                raise ValueError("it is not as it was written")
            return json.loads(text)
        except ValueError as error:
            raise ValueError(f"{path} is damaged. Delete it; the same command makes its masks again.") from error

    def _write_block_file(self, block: int, content: dict) -> None:
        """A line of json, and its hash: masks that changed on the disk are told from those that were made."""
        text = json.dumps(content).encode()
        write_atomically(self.block_file(block), text + b"\n" + _sha256(text), self.scratch)

    def images_of(self, block: int) -> range:
        """The images of a block."""
        return range(block * BLOCK_SIZE, min((block + 1) * BLOCK_SIZE, len(self.source)))

    def blocks(self) -> Iterator[dict]:
        """The contents of all block files, with scores as other files hold them."""
        for block in range(self.num_blocks):
            content = self._read(block)
            for item in (item for image in content["images"] for item in image.get("objects", ())):
                item |= {name: round(item[name], 4) for name in ("score", "fill_rate")}
            yield content

    def write_block(self, block: int, bar: tqdm) -> None:
        """Writes all files of a block, and its block file at the end."""
        if self.block_file(block).is_file():
            self._add_outputs(block)
            bar.update(len(self.images_of(block)))
            return
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
        images = [entries[index] for index in sorted(entries)]
        content = {"report": asdict(report), "outputs": sorted(self.outputs), "images": images}
        self._write_block_file(block, content)

    def _add_outputs(self, block: int) -> None:
        """Writes the outputs that a block lacks, of the masks in its file."""
        content = self._read(block)
        there, report = frozenset(content["outputs"]), Report(**content["report"])
        lacking = self.outputs - there
        for index, entry in zip(self.images_of(block), content["images"]):
            record = self.source.record(index, Report()) if "objects" in entry else None
            if self.stop.is_set():
                return
            if record is None:
                continue
            stored = {item["id"]: item for item in entry["objects"]}
            masks = [_stored_mask(stored.get(item.id)) for item in record.single_objects]
            size = (record.height, record.width)
            image = boxed_image(np.zeros((*size, 0), dtype=np.uint8), record, self.settings.grow_boxes)
            label_map = np.zeros(size, dtype=self.map_type)
            if lacking & {*_OF_LABEL_MAP, "instances-png"}:  # Of instances only where no mask lies is looked at.
                by_rule = lacking & _OF_LABEL_MAP and not self.settings.exclusive
                rule = self.settings.overlap_rule if by_rule else "first"
                label_map = label_map_of(masks, image.boxes, image.labels, size, rule)
            pixels = self.source.image(record) if lacking & OF_PIXELS else None
            finished = self._finished(record, image.boxes, masks, label_map, pixels)
            _note_what_lacks(finished, lacking, report, there)
            self.writer.write(finished, lacking)
        content["report"] = asdict(report)
        content["outputs"] = sorted(self.outputs)
        self._write_block_file(block, content)

    def _finished(
        self,
        record: Record,
        boxes: np.ndarray,
        masks: Sequence[BoxMask | None],
        label_map: np.ndarray,
        pixels: np.ndarray | None,
    ) -> FinishedImage:
        """An image as it is written; masks that are None were rejected, and their boxes are ignored.

        Args:
            boxes: (N, 4) xyxy of the masks, as the generator got them.
        """
        objects, label_map = record.single_objects, label_map.astype(self.map_type)
        rejected = [item.box for item, mask in zip(objects, masks) if mask is None]
        for box in [*rejected, *(item.box for item in record.objects if item.iscrowd)]:
            region = label_map[box_slices(box, *label_map.shape)]
            region[region == 0] = self.ignored
        kept = [replace(item, rle=m.rle, area=m.area) for item, m in zip(objects, masks) if m is not None]
        instances = None
        if "instances-png" in self.outputs and len(kept) <= _MOST_INSTANCES:
            kept_masks = [mask for mask in masks if mask is not None]
            kept_boxes = boxes[[mask is not None for mask in masks]]
            instances = instance_map(kept_masks, kept_boxes, label_map.shape, self.settings.overlap_rule)
            instances[(label_map == self.ignored) & (instances == 0)] = np.iinfo(np.uint16).max
        place = georeference(record) if self.outputs & GEO_OUTPUTS else None
        scores = [mask.score for mask in masks if mask is not None]
        return FinishedImage(record, kept, label_map, instances, pixels, scores, place)

    def _write_batch(
        self, members: list[int], records: dict[int, Record], entries: dict[int, dict], report: Report
    ) -> None:
        """Masks and files of images that the generator may combine."""
        start, settings, per = time.perf_counter(), self.settings, self.identity["per"]
        images = self._images(members, records, entries, report)
        boxed = [boxed_image(image, records[index], settings.grow_boxes) for index, image in images]
        patches = by_position(self.generator.patches(boxed, per), len(boxed))
        try:
            for (index, _), image, image_patches in zip(images, boxed, patches):
                masks = assemble(image, image_patches, per, settings)
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
        if index in self.refused:
            report.add(*self.refused[index])
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
            report.merge(image_report)
            if image is not None:
                images.append((index, image))
                continue
            problems = entries[index].get("problems", {}) | image_report.places
            entries[index] |= {"skipped": True, "problems": problems}
        return images

    def _write(self, image: BoxedImage, record: Record, found: ImageMasks, report: Report) -> dict:
        """Writes the files of one image; returns its entry in the block file."""
        masks: list[BoxMask | None] = []
        for item, mask in zip(record.single_objects, found.masks):
            place = f"{record.file_name}: object {item.id}"
            rejected = mask.score < self.settings.min_score
            if rejected:
                report.add("low_score", f"{place}, score {mask.score:.3f}")
            elif mask.area == 0:
                report.add("empty_mask", place)
            masks.append(None if rejected else mask)
        finished = self._finished(record, image.boxes, masks, found.label_map, image.image)
        _note_what_lacks(finished, self.outputs, report)
        self.writer.write(finished, self.outputs)
        # In full: the overlap rule "prob" compares them when outputs are added.
        scores = [{"score": mask.score, "fill_rate": mask.fill_rate} for mask in masks if mask is not None]
        return {
            "image_id": record.image_id,
            "height": record.height,
            "width": record.width,
            "license": record.license,
            "objects": [asdict(item) | of_mask for item, of_mask in zip(finished.kept, scores)],
        } | ({"unusable": True} if record.has_unusable else {})


def _note_what_lacks(
    image: FinishedImage, outputs: frozenset[str], report: Report, before: frozenset[str] = frozenset()
) -> None:
    """Counts the outputs that an image cannot have, once for both on the map; `before`: those counted already."""
    if outputs & GEO_OUTPUTS and not before & GEO_OUTPUTS and image.place is None:
        report.add("no_georeference", image.record.file_name)
    if "instances-png" in outputs and image.instances is None:
        report.add("too_many_instances", f"{image.record.file_name}: {len(image.kept)} objects")


def _sha256(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode()


def _stored_mask(item: dict | None) -> BoxMask | None:
    """The mask of an object in a block file; None for an object that it lacks."""
    return None if item is None else BoxMask(item["rle"], item["area"], item["score"], item["fill_rate"])


def _digest(source: Source) -> str:
    """A hash of classes, images, and sizes and times of the annotation files; it changes with them."""
    digest = hashlib.sha256(json.dumps([source.classes, source.file_names]).encode())
    for path in source.annotation_files:
        state = os.stat(fs_path(path))
        digest.update(json.dumps([path, state.st_size, state.st_mtime_ns]).encode())
    return digest.hexdigest()


def _prepare(out: Path, before: dict | None, stated: dict, overwrite: bool) -> None:
    """Makes `out` ready for a new run, for one that resumes, or for one that adds outputs.

    Args:
        stated: what `settings.json` tells of the run from its start on.

    Raises:
        ValueError: a file to be written is there, and not from an earlier run.
    """
    identity, file_names, earlier = stated["settings"], stated["file_names"], None
    if overwrite and out.is_dir():  # What a run whose report is damaged has written, this one would write again.
        earlier = stated if _damaged(out) is not None else _run_before(out)
    if earlier is not None:
        started = _read_run(out / BLOCKS / "settings.json")  # Its report may have been edited since.
        _clear(out, [earlier, *([started] if started else [])], _files_of_run(identity, file_names))
    if before is not None and _read_run(out / "report.json") is not None:
        _check_foreign(out, set(), _files_of_run(identity, file_names) - _files_of_run(before["settings"], file_names))
    if before is None or before["settings"] != identity:
        write_atomically(out / BLOCKS / "settings.json", json.dumps(stated).encode())
    (out / "report.json").unlink(missing_ok=True)


def _read_run(path: Path) -> dict | None:
    """What a run wrote to its report or at its start; None if the file is absent, damaged or not from a run."""
    try:
        content = json.loads(read_bytes(path))
        settings = content["settings"]
        is_run = {"annotations_sha256", "overlay"} <= settings.keys() and set(settings["write"]) <= set(OUTPUTS)
        names = content.get("file_names", [])
        if "report" in content or path.name == "report.json":  # Of a finished run.
            Report(**content["report"]).summary()
            names = [image["file_name"] for image in content["images"] if "skipped" not in image]
            is_run &= all(isinstance(image["problems"], dict) for image in content["images"] if "skipped" in image)
        return content if is_run and all(fs_path(relative_name(name)) for name in names) else None
    except (ArithmeticError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError):
        return None  # A value of another type.


def _kinds_of_files(settings: dict) -> set[str]:
    """The outputs of a run, with "OUTPUT image" where it puts the images too: keys of `image_files`, and others."""
    outputs = set(_outputs_of(settings))
    if (settings.get("with_images") or "none") != "none":
        outputs |= {f"{output} image" for output in settings["write"]}
    return outputs


def _files_of_run(settings: dict, file_names: Iterable[str]) -> set[str]:
    """All files that a run writes to OUT for some images, except the block files."""
    outputs = _kinds_of_files(settings)
    return {
        "report.json",
        "classes.txt",
        *(file for output in outputs for file in _JOINED_FILES.get(output, ())),
        *(file for name in file_names for output, file in image_files(name).items() if output in outputs),
    }


def _clear(out: Path, stated: Sequence[dict], wanted: set[str]) -> None:
    """Deletes the files of an earlier run, and no others.

    Args:
        stated: what the earlier run states, in one file or in two.
        wanted: files of the new run.

    Raises:
        ValueError: a file of unknown origin has the name of one of `wanted`; then nothing is deleted.
    """
    written = set()
    for before in stated:
        names = [image["file_name"] for image in before.get("images", ()) if "skipped" not in image]
        names += before.get("file_names", ())
        written |= {fs_path(out / file) for file in _files_of_run(before["settings"], names)}
    # Links to folders are not followed: the run makes none, so the files behind one are not its own.
    present = (str(Path(folder, name)) for folder, _, files in os.walk(out) for name in files)
    left = {path for path in present if path in written or os.path.dirname(path) in written}  # a folder of crops
    _check_foreign(out, {*left, *map(os.path.dirname, left)}, wanted)
    for path in sorted(left):  # report.json, which identifies the run, is the last in this order.
        os.unlink(path)
    emptied = {folder for path in left for folder in Path(path).parents if out in folder.parents}
    for folder in sorted(emptied, reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()
    shutil.rmtree(out / BLOCKS, ignore_errors=True)


def _check_foreign(out: Path, known: set[str], wanted: set[str]) -> None:
    """Raises ValueError if one of the `wanted` files of `out` is there, but is not among the `known` paths."""
    planned = (fs_path(out / file) for file in sorted(wanted))
    foreign = next((path for path in planned if path not in known and os.path.lexists(path)), None)
    if foreign is not None:
        raise ValueError(
            f"{foreign} has the name of a file to be written, but is not known to come from the earlier run in {out}. "
            "Move it away, or choose another folder."
        )


def _repaired(finished: dict, source: Source) -> list[str]:
    """The images that a finished run skipped because of their file, and that can be used now."""
    images = finished["images"][: len(source)]
    skipped = (
        i for i, image in enumerate(images) if "skipped" in image and _STAYS_SKIPPED.isdisjoint(image["problems"])
    )
    records = (source.record(index, Report()) for index in skipped)
    return [item.file_name for item in records if item is not None and source.decode(item, Report()) is not None]


def _join(run: _MaskRun) -> Report | None:
    """Writes the files that cover all images, once every block file exists; then deletes the block files."""
    out, source = run.out, run.source
    if not all(run.is_finished(block) for block in range(run.num_blocks)):
        return None
    report = Report(classes=[f"{label} {name}" for label, (_, name) in enumerate(source.classes, start=1)])
    report.merge(run.index_report)
    for block in run.blocks():
        report.merge(Report(**block["report"]))
    names = "".join(f"{listed_name(name)}\n" for _, name in source.classes)
    write_atomically(out / "classes.txt", names.encode("utf-8", "surrogateescape"), run.scratch)
    for output in sorted(run.outputs & {"coco", "coco-polygons", "coco-results"}):
        _write_coco(run, output)
    if "html" in run.outputs:
        page = review_page(source, (image for block in run.blocks() for image in block["images"]))
        write_atomically(out / "report.html", page, run.scratch)
    if "yolo" in run.outputs:
        images = (image for block in run.blocks() for image in block["images"] if "objects" in image)
        written = [image["file_name"] for image in images if "unusable" not in image]
        files = yolo_dataset.dataset_files([name for _, name in source.classes], written, source.splits)
        for name, text in files.items():
            write_atomically(out / name, text.encode("utf-8", "surrogateescape"), run.scratch)
    head: dict[str, Any] = {"settings": run.identity, "generator_digest": run.generator_digest}
    head |= {"report": asdict(report), "summary": report.summary().splitlines()}
    _write_json(out / "report.json", head, {"images": _report_entries(run)}, run.scratch)
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
                    **({"mask_bbox": coco_mask.toBbox(item["rle"]).tolist()} if run.identity["tighten_boxes"] else {}),
                }

    (name,) = _JOINED_FILES[output]
    if output == "coco-results":
        _write_list(run.out / name, map(result_of, annotations()), run.scratch)
        return
    made = annotations()
    if output == "coco-polygons":
        made = (_with_polygons(annotation, run.writer.simplify) for annotation in made)
    head = coco.header_with(source.coco_header, classes)
    licences = coco.LicenceIds(head)
    images = []
    for image_id, image in entries():
        license = {"license": licences.find(image["license"])} if image["license"] else {}
        images.append({"id": image_id} | {key: image[key] for key in ("file_name", "width", "height")} | license)
    head |= licences.header()
    _write_json(run.out / name, head, {"images": images, "annotations": filter(None, made)}, run.scratch)


def _with_polygons(annotation: dict, simplify: float) -> dict | None:
    """An annotation with polygons in place of run lengths; None for a mask without a pixel, which has none."""
    polygons = rle_to_polygons(annotation["segmentation"], simplify)
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
