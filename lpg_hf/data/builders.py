"""`datasets` builders: COCO, VOC, YOLO and the exports of other tools as datasets with one row per image.

    builder = VocBoxes(data_dir="VOC2012", options=ReadOptions(split="train_aug"))
    builder.download_and_prepare(num_proc=4)
    dataset = builder.as_dataset(split="train_aug")
    print(builder.report.summary())

Columns (masks only if asked for):

    image          Image, the path only: the cache holds no pixels
    image_id       string
    file_name      string, relative to the image folder, forward slashes
    width, height  int32, of the image shown upright
    objects        {bbox: 4 x float32 (COCO: x, y, width, height in pixels), category: ClassLabel (semantic label - 1),
                   area, iscrowd, difficult, id [, segmentation: COCO's RLE (not VOC), "" for an object without a
                   mask]}
    license        string, COCO only
    mask           Image, VOC only: the PNG of class indices

The cache is keyed by every option and by size and time of every annotation file, so an edited file is read again. The
problems that were met are kept beside the cached data: `builder.report`. So are the times of the folders that hold
images, and size and time of the images that were skipped: if one of them has changed, the data are made again, so an
image that comes, goes or is repaired is noticed. A good image that is overwritten in its place is not: that would mean
to look at all of them at every load.

Cost, on one core: a COCO file of 200,000 images and 2 million boxes takes about 45 s and less than 2 GB once, without
opening images. After that the rows are memory-mapped: a second load takes 0.1 s, and a `DataLoader` worker needs about
12 MB of its own, whatever the size of the data.
"""

import hashlib
import json
import os
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import Any

from datasets import (
    BuilderConfig,
    ClassLabel,
    DatasetInfo,
    DownloadMode,
    Features,
    GeneratorBasedBuilder,
    Image,
    List,
    SplitGenerator,
    Value,
    Version,
)
from PIL import Image as PILImage

from lpg_hf._class_lists import CLASSES_FILE, COLOURS_FILE
from lpg_hf._files import fs_path, json_text, unicode_path, walk_files, write_atomically
from lpg_hf.data._formats import coco, coco_parts, tools, voc, yolo, yolo_layout
from lpg_hf.data._recognise import voc_folders
from lpg_hf.data.options import ReadOptions
from lpg_hf.data.records import Record
from lpg_hf.data.report import Report
from lpg_hf.images import IMAGE_SUFFIXES
from lpg_hf.label_maps import no_class_message


# Part of the cache path, which holds no hash of the code: raise it when the same files give other rows.
VERSION = "1.3.0"
NUM_SHARDS = 64
# Hidden, so that a prepared folder is still a plain data folder for `load_dataset`.
REPORT_PREFIX = ".report-"
IMAGES_PREFIX = ".images-"


def split_name(split: str | None) -> str:
    """The name that `datasets` gives to a split: letters, digits and underscores; "train" if there is no list."""
    name = "".join(character if character.isalnum() else "_" for character in split or "train")
    return f"{name}_split" if name == "all" else name


def file_fingerprint(paths: list[str]) -> list[tuple[str, int, int]]:
    """(path, size, modification time in ns) of files and folders; a missing one is (path, -1, -1)."""
    found = []
    for path in paths:
        try:
            status = os.stat(fs_path(path))
            found.append((path, 0 if os.path.isdir(fs_path(path)) else status.st_size, status.st_mtime_ns))
        except FileNotFoundError:
            found.append((path, -1, -1))
    return found


@dataclass
class _BoxesConfig(BuilderConfig):
    """The configuration of every format.

    Attributes:
        data_dir: folder of the dataset.
        annotations: another annotation file (COCO, YOLO: data.yaml) or folder (VOC, YOLO: labels) than the usual one
            of `data_dir`; absolute, or relative to `data_dir` or else to the working folder, as `images`.
        images: another image folder than the usual one.
        options: how they are read. With `masks` off, nothing of the masks is opened.
    """

    version: Version | str | None = VERSION
    annotations: str | None = None
    images: str | None = None
    options: ReadOptions = ReadOptions()

    @abstractmethod
    def sources(self) -> list[str]:
        """The files and folders whose change must make a new cache."""

    def create_config_id(self, config_kwargs: dict, custom_features: Features | None = None) -> str:
        """Name of the configuration and a hash of all options and of the annotation files' state."""
        state = {
            item.name: getattr(self, item.name) for item in fields(self) if item.name not in ("version", "data_files")
        }
        if self.data_dir is not None:
            state["data_dir"] = unicode_path(self.data_dir)
        state["sources"] = file_fingerprint(self.sources())
        state["features"] = None if custom_features is None else str(custom_features)
        digest = hashlib.sha256(json.dumps(state, sort_keys=True, default=str).encode("utf-8", "surrogateescape"))
        return f"{self.name}-{digest.hexdigest()[:16]}"


def _below(root: str, name: str | None, usual: str = "") -> str:
    """`name` below `root`, or as it is if it exists there alone; None: the usual name, below `root` only."""
    inside = os.path.join(root, name or usual)
    if name is not None and not os.path.exists(fs_path(inside)) and os.path.exists(fs_path(name)):
        return name
    return inside


@dataclass
class _CocoConfig(_BoxesConfig):
    """Where a COCO dataset is."""

    def read_index(self, report: Report) -> coco.CocoIndex:
        """Raises FileNotFoundError or ValueError."""
        root, files = self._files()
        images = None if self.images is None else coco.find_images(root, self.images, self.options.split, files[0])
        if root is not None and len(files) > 1:
            return coco_parts.read_parts(files, root, images, self.options, report)
        return coco.read_index(files[0], images, self.options, report, root)

    def sources(self) -> list[str]:
        root, files = self._files()
        of_parts = [os.path.dirname(file) for file in files] if len(files) > 1 and self.images is None else []
        return [*files, *(of_parts or [coco.find_images(root, self.images, self.options.split, files[0])])]

    def _files(self) -> tuple[str | None, list[str]]:
        """(folder of the data or None, annotation files)."""
        root = None if self.data_dir is None else unicode_path(self.data_dir)
        if root is None or self.annotations is not None:
            return root, [coco.find_annotations(root, self.annotations, self.options.split)]
        return root, coco_parts.files_of(root, self.options.split)


@dataclass
class _VocConfig(_BoxesConfig):
    """Where a VOC dataset is."""

    def folders(self) -> voc.VocFolders:
        """Raises FileNotFoundError or ValueError."""
        if self.data_dir is None:
            raise ValueError("VOC data needs its folder: root=... (data_dir=... of the builder)")
        root = unicode_path(self.data_dir)
        if self.annotations is None and next(walk_files(root, (".xml",)), None) is not None:
            found = voc_folders(root, self.images and _below(root, self.images))
            if found.images != found.annotations or next(walk_files(found.images, IMAGE_SUFFIXES), None) is not None:
                return found
        annotations = _below(root, self.annotations, voc.ANNOTATIONS_FOLDER)
        return voc.VocFolders.find(root, annotations, _below(root, self.images, voc.IMAGES_FOLDER))

    def sources(self) -> list[str]:
        found, split = self.folders(), self.options.split
        listed = [] if split is None else voc.names_of_split_or_folder(found, split, Report())[1]
        masks = (voc.MASKS_FOLDER, voc.MORE_MASKS_FOLDER) if self.options.masks else ()
        folders = [found.annotations, *(f"{found.root}/{name}" for name in masks)]
        names = {folder: voc.annotation_names(folder) for folder in folders}
        files = [f"{folder}/{name}" for folder in folders for name in names[folder]]
        of_images = {os.path.dirname(f"{found.images}/{name}") for name in names[found.annotations]}
        listed += [f"{found.root}/{name}" for name in (CLASSES_FILE, COLOURS_FILE)]
        return [*listed, *sorted({found.images, *of_images}), *files]


@dataclass
class _YoloConfig(_BoxesConfig):
    """Where a YOLO dataset is."""

    def paths(self) -> tuple[str, str | None]:
        """(data folder, labels folder or data.yaml; image folder or None); raises ValueError."""
        if self.data_dir is None and self.annotations is None:
            raise ValueError("YOLO data needs root=... (the data folder) or annotations=... (labels or data.yaml)")
        base = "" if self.data_dir is None else unicode_path(self.data_dir)
        images = None if self.images is None else _below(base, self.images)
        return unicode_path(_below(base, self.annotations)), images

    def sources(self) -> list[str]:
        root, images = self.paths()
        layout = yolo_layout.find_layout(root, self.options, Report(), images)
        folders = sorted({os.path.dirname(f"{layout.image_folder}/{name}") for name in layout.images})
        labels = [
            f"{folder}/{name}"
            for folder in (*layout.label_roots, layout.image_folder)
            for name in yolo.txt_names(folder)
        ]
        return [root, *layout.sources, *folders, *labels]


@dataclass
class _ToolConfig(_BoxesConfig):
    """Where the export of another tool is; `tool` is one of `tools.TOOL_FORMATS`."""

    tool: str = ""

    def paths(self) -> tuple[str, str | None]:
        """(file or folder, image folder or None); raises FileNotFoundError or ValueError."""
        if self.data_dir is None and self.annotations is None:
            raise ValueError(f"{self.tool} data need root=... (the folder) or annotations=... (the file)")
        base = "" if self.data_dir is None else unicode_path(self.data_dir)
        path, images = _below(base, self.annotations), None if self.images is None else _below(base, self.images)
        for place in filter(None, (path, images)):
            if not os.path.exists(fs_path(place)):
                raise FileNotFoundError(f"{place} does not exist. Pass the file or the folder of the export")
        return unicode_path(path), None if images is None else unicode_path(images)

    def sources(self) -> list[str]:
        return tools.TOOL_FORMATS[self.tool].read(self.paths()[0], self.options.split).files


def _features(class_names: list[str], segmentation: bool = False, extra: dict[str, Any] | None = None) -> Features:
    objects = {
        "bbox": List(List(Value("float32"), length=4)),
        "category": List(ClassLabel(names=class_names)),
        "area": List(Value("float32")),
        "iscrowd": List(Value("bool")),
        "difficult": List(Value("bool")),
        "id": List(Value("int64")),
    }
    if segmentation:
        objects["segmentation"] = List({"size": List(Value("int32"), length=2), "counts": Value("string")})
    return Features(
        {
            "image": Image(),
            "image_id": Value("string"),
            "file_name": Value("string"),
            "width": Value("int32"),
            "height": Value("int32"),
            "objects": objects,
            **(extra or {}),
        }
    )


def _record_to_row(record: Record, features: Features, object_value: int | None) -> dict:
    """A record as a row with the columns of `features`; a class mask is embedded if its file is not right as it is."""
    objects = record.objects
    row = {
        "image": record.path,
        "image_id": record.image_id,
        "file_name": record.file_name,
        "width": record.width,
        "height": record.height,
        "objects": {
            "bbox": [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in (item.box for item in objects)],
            "category": [item.category for item in objects],
            "area": [item.area for item in objects],
            "iscrowd": [item.iscrowd for item in objects],
            "difficult": [item.difficult for item in objects],
            "id": [item.id for item in objects],
        },
    }
    if "segmentation" in features["objects"]:
        absent = {"size": [record.height, record.width], "counts": ""}
        row["objects"]["segmentation"] = [item.rle or absent for item in objects]
    if "license" in features:
        row["license"] = record.license
    if "mask" in features:
        row["mask"] = record.mask_path
        labels = record.changed_mask(object_value)
        if labels is not None:
            buffer = BytesIO()
            PILImage.fromarray(labels).save(buffer, format="PNG")
            row["mask"] = {"path": None, "bytes": buffer.getvalue()}
    return row


def _have_changed(prepared: Path) -> bool:
    """Whether something whose state `_BoxesBuilder` has kept in a folder of prepared data is in another state now."""
    kept = (json.loads(file.read_text(encoding="utf-8")) for file in sorted(prepared.glob(f"{IMAGES_PREFIX}*.json")))
    return any(file_fingerprint([path for path, *_ in state]) != [tuple(item) for item in state] for state in kept)


class _BoxesBuilder(GeneratorBasedBuilder):
    """Shared by the formats: the index is read once, its entries are checked in shards."""

    DATASET_NAME: str
    # The record of an entry; None (and counted) if its image cannot be used.
    MAKE_RECORD: Callable[[Any, ReadOptions, Report], Record | None]
    config: _BoxesConfig

    def __init__(self, cache_dir: str | None = None, dataset_name: str | None = None, **kwargs):
        self._live_report = Report()
        super().__init__(cache_dir=cache_dir, dataset_name=dataset_name or self.DATASET_NAME, **kwargs)

    def _info(self) -> DatasetInfo:
        # The features need the class names, for which the annotation file is read: not before the data are made.
        return DatasetInfo(description=f"{self.DATASET_NAME}: images with boxes")

    @property
    def report(self) -> Report:
        """What was found when the data were made (now or in an earlier run), or so far when streaming."""
        folder = None if self._output_dir is None else Path(self._output_dir)
        files = sorted(folder.glob(f"{REPORT_PREFIX}*.json")) if folder is not None and folder.is_dir() else []
        if not files:
            return self._live_report
        report = Report()
        for file in files:
            report.merge(Report.load(file))
        return report

    def download_and_prepare(self, output_dir: str | None = None, **kwargs) -> None:
        """As of `datasets`; data whose images have changed (see the top of this file) are made again."""
        if _have_changed(Path(fs_path(output_dir or self._cache_dir))):
            kwargs["download_mode"] = DownloadMode.REUSE_CACHE_IF_EXISTS
            self.info.splits = None  # Else the new number of rows is checked against the old one.
        super().download_and_prepare(output_dir, **kwargs)

    @abstractmethod
    def _read_index(self, report: Report) -> tuple[list, Features]:
        """The entries and the features."""

    def _image_folders(self, entries: list, report: Report) -> list[str]:
        """The folders that hold images, or ought to."""
        return sorted({os.path.dirname(entry.path) for entry in entries})

    def _split_generators(self, dl_manager) -> list[SplitGenerator]:
        report = Report()
        entries, features = self._read_index(report)
        self.info.features = features
        size = max(1, -(-len(entries) // NUM_SHARDS))
        shards = [(start // size, entries[start : start + size]) for start in range(0, len(entries), size)]
        folder = None if dl_manager.is_streaming else self._output_dir
        self._keep(report, self._image_folders(entries, report), folder, "index")
        return [
            SplitGenerator(
                name=split_name(self.config.options.split),
                gen_kwargs={"shards": shards or [(0, [])], "report_folder": folder},
            )
        ]

    def _generate_examples(self, shards: list, report_folder: str | None) -> Iterator[tuple[str, dict]]:
        features = self.info.features
        assert features is not None  # Set in `_split_generators`.
        for number, entries in shards:
            report, skipped = Report(), []
            for entry in entries:
                try:
                    record = self.MAKE_RECORD(entry, self.config.options, report)
                    value = self.config.options.object_value
                    row = {} if record is None else _record_to_row(record, features, value)
                except ValueError as error:
                    if report_folder is None:
                        raise
                    report.add_error(str(error))
                    continue
                if record is None:
                    skipped.append(entry.path)
                else:
                    yield record.image_id, row
            self._keep(report, skipped, report_folder, f"{number:03d}")

    def _keep(self, report: Report, images: list[str], folder: str | None, name: str) -> None:
        """Keep a report, and the state of the images or folders whose change must make the data anew."""
        if folder is None:
            self._live_report.merge(report)
        else:
            report.save(os.path.join(folder, f"{REPORT_PREFIX}{name}.json"))
            state = json_text(file_fingerprint(images)).encode("utf-8")
            write_atomically(os.path.join(folder, f"{IMAGES_PREFIX}{name}.json"), state)

    def _prepare_split(self, split_generator: SplitGenerator, *args, **kwargs) -> None:
        """Raises ValueError, before anything is cached, if a file must not be used or no image is left."""
        super()._prepare_split(split_generator, *args, **kwargs)
        report = self.report
        if report.errors:
            more = f"\n({len(report.errors)} such files)" if len(report.errors) > 1 else ""
            raise ValueError("\n".join(report.errors[:5]) + more)
        if report.images == 0:
            raise ValueError(f"no image can be used:\n{report.summary()}")
        counts, place = report.counts, self.config.data_dir or self.config.annotations
        if self.config.options.masks and counts.get("mask_without_object") == report.images:
            raise ValueError(no_class_message(f"the class masks of {place}"))
        if self.config.options.masks and 0 < report.objects <= counts.get("no_mask", 0):
            raise ValueError(
                f"no object of {place} has a mask, so there is nothing to learn or to measure from. Pass annotations "
                f"with masks, or leave them out (masks=False).\n{report.summary()}"
            )


class CocoBoxes(_BoxesBuilder):
    """COCO json files.

    `classes`: None or "all" (every category of the file), "nonvoc60", "voc20" or "all80" (official ids; always the
        full list),
    or a list of category names or ids. Labels follow the ascending category id. `split` names the default files
    (`coco.find_annotations`, `coco.find_images`) and the split of the dataset. Of a folder with a file per split
    (Roboflow) or per image, all are one dataset, or those of `split`.
    """

    DATASET_NAME = "coco_boxes"
    BUILDER_CONFIG_CLASS = _CocoConfig
    MAKE_RECORD = staticmethod(coco.make_record)
    config: _CocoConfig

    def _read_index(self, report: Report) -> tuple[list, Features]:
        index = self.config.read_index(report)
        self._folder = index.image_folder
        ids = ", ".join(str(category_id) for category_id, _ in index.classes)
        self.info.description = f"COCO category ids in the order of the labels: {ids}"
        names = [name for _, name in index.classes]
        return index.entries, _features(names, self.config.options.masks, {"license": Value("string")})

    def _image_folders(self, entries: list, report: Report) -> list[str]:
        missing = [f"{self._folder}/{name}" for name, kind in report.skipped if kind == "missing_image"]
        return sorted({*super()._image_folders(entries, report), *map(os.path.dirname, missing)})


class VocBoxes(_BoxesBuilder):
    """Pascal VOC folders, or xml files beside their images, as LabelImg writes them.

    `split`: a list in ImageSets/Segmentation, else ImageSets/Main; None takes every annotation file. `classes`: None
    (classes.txt of the folder, else VOC's 20), "all" (every name that occurs, sorted), or a list in the order of the
    labels.
    """

    DATASET_NAME = "voc_boxes"
    BUILDER_CONFIG_CLASS = _VocConfig
    MAKE_RECORD = staticmethod(voc.make_record)
    config: _VocConfig

    def _read_index(self, report: Report) -> tuple[list, Features]:
        index = voc.read_index(self.config.folders(), self.config.options, report)
        return index.entries, _features(index.classes, extra={"mask": Image()} if self.config.options.masks else {})


class YoloBoxes(_BoxesBuilder):
    """YOLO folders, or data.yaml.

    `split`: train, val or test of data.yaml, a folder of images, or a txt list; None takes every image that has a
        label
    file. `classes`: None or "all" (data.yaml or classes.txt), or a list of names or numbers; labels follow the
    ascending number.
    """

    DATASET_NAME = "yolo_boxes"
    BUILDER_CONFIG_CLASS = _YoloConfig
    MAKE_RECORD = staticmethod(yolo.make_record)
    config: _YoloConfig

    def _read_index(self, report: Report) -> tuple[list, Features]:
        root, images = self.config.paths()
        index = yolo.read_index(root, self.config.options, report, images)
        if report.errors:
            more = f"\n({len(report.errors)} such lines or more)" if len(report.errors) > 5 else ""
            raise ValueError("\n".join(report.errors[:5]) + more)
        return index.entries, _features([name for _, name in index.classes], self.config.options.masks)


class ToolBoxes(_BoxesBuilder):
    """Exports of other tools: the formats of `tools.TOOL_FORMATS`, which `tool` names.

    `classes`: None or "all" (those that the file lists, else all its names by the alphabet), or a list of names.
    """

    DATASET_NAME = "tool_boxes"
    BUILDER_CONFIG_CLASS = _ToolConfig
    MAKE_RECORD = staticmethod(tools.make_record)
    config: _ToolConfig

    def _read_index(self, report: Report) -> tuple[list, Features]:
        path, images = self.config.paths()
        index = tools.read_index(self.config.tool, path, images, self.config.options, report)
        self._image_folder = index.image_folder
        return index.entries, _features(index.classes, self.config.options.masks)

    def _image_folders(self, entries: list, report: Report) -> list[str]:
        missing = [f"{self._image_folder}/{name}" for name, kind in report.skipped if kind == "missing_image"]
        return sorted({*super()._image_folders(entries, report), *map(os.path.dirname, missing)})
