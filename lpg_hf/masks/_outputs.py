"""The files that `lpg-hf masks` writes for one image."""

import io
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from lpg_hf._files import json_text, write_atomically
from lpg_hf._rle import decode_window, mask_window
from lpg_hf.data._formats import yolo_dataset
from lpg_hf.data._formats.labelme import labelme_content
from lpg_hf.data._formats.yolo import yolo_text
from lpg_hf.data.records import BoxObject, Record
from lpg_hf.data.sources import Source
from lpg_hf.label_maps import clashing_names, mask_name, write_label_map
from lpg_hf.labels import IGNORE_INDEX
from lpg_hf.masks._geo import Georeference, geojson, geotiff
from lpg_hf.visualize import colour_index, draw_boxes, overlay


OUTPUTS = (
    *(
        "png",
        "coco",
        "coco-polygons",
        "coco-results",
        "yolo",
        "labelme",
        "instances-png",
        "crops",
        "geotiff",
        "geojson",
        "html",
    ),
    "overlay",
)
# Outputs with the image beside them, with outlines, and those that are made of the image itself.
WITH_IMAGE, WITH_OUTLINES = {"yolo", "labelme"}, {"yolo", "labelme", "coco-polygons", "geojson"}
OF_PIXELS = {"crops", "overlay"}
# Whether the file of an output that covers all images holds the name of an image.
_HOLDS_NAME = {
    "yolo": yolo_dataset.holds_name,
    "coco": yolo_dataset.is_relative,
    "coco-polygons": yolo_dataset.is_relative,
}


@dataclass(frozen=True)
class FinishedImage:
    """What is written of an image.

    Attributes:
        record: of the image, with all its objects.
        kept: the objects whose masks are written, with their masks; a mask may be empty.
        label_map: (H, W) as it is written.
        instances: (H, W) uint16: number of the object among `kept`, from 1 on; 65535 where the label map is ignored;
            None if it is not asked for.
        pixels: (H, W, 3) uint8 RGB; None if no output needs it.
        scores: of the kept masks.
        place: where it lies on the map; None if it is not known, or no output needs it.
    """

    record: Record
    kept: Sequence[BoxObject]
    label_map: np.ndarray
    instances: np.ndarray | None = None
    pixels: np.ndarray | None = None
    scores: Sequence[float] = ()
    place: Georeference | None = None


@dataclass(frozen=True)
class ImageWriter:
    """Writes the files of one image after the other; several threads may use it.

    Attributes:
        source: of the images.
        out: folder of all files.
        scratch: folder of unfinished files, see `write_atomically`.
        outputs: any of `OUTPUTS`.
        with_images: see `yolo_dataset.place_image`.
        simplify: see `yolo.mask_to_polygons`.
    """

    source: Source
    out: Path
    scratch: Path
    outputs: frozenset[str]
    with_images: str = "link"
    simplify: float = 0.0

    def write(self, image: FinishedImage, outputs: Iterable[str]) -> None:
        """Writes some of the outputs of an image; those that cover all images are not written here."""
        wanted, record = set(outputs), image.record
        if record.has_unusable:
            wanted -= {"yolo"}  # Its trainer knows no ignored region.
        files = {name: self.out / file for name, file in image_files(record.file_name).items()}
        shapes = Record(record.path, record.file_name, record.image_id, record.size, _with_pixels(image.kept))
        if "png" in wanted:
            write_label_map(files["png"], image.label_map, self.scratch)
        if "instances-png" in wanted and image.instances is not None:
            write_label_map(files["instances-png"], image.instances, self.scratch)
        if "yolo" in wanted:
            text = yolo_text(shapes, masks=True, simplify=self.simplify)
            write_atomically(files["yolo"], text.encode(), self.scratch)
        if "labelme" in wanted:
            names = [name for _, name in self.source.classes]
            content = labelme_content(shapes, names, PurePosixPath(record.file_name).name, self.simplify)
            text = json_text(content, indent=2)
            write_atomically(files["labelme"], text.encode("utf-8", "surrogateescape"), self.scratch)
        for output in sorted(wanted & WITH_IMAGE):
            self.source.place_image(record, files[f"{output} image"], self.with_images, self.scratch)
        if image.place is not None and "geotiff" in wanted:
            write_atomically(files["geotiff"], geotiff(image.label_map, image.place), self.scratch)
        if image.place is not None and "geojson" in wanted:
            names = [name for _, name in self.source.classes]
            scores = {item.id: score for item, score in zip(image.kept, image.scores)}
            text = geojson(shapes, scores, names, image.place, self.simplify)
            write_atomically(files["geojson"], text.encode("utf-8", "surrogateescape"), self.scratch)
        if image.pixels is not None and "crops" in wanted:
            for item in shapes.objects:
                write_atomically(files["crops"] / f"{item.id}.png", _crop(image.pixels, item), self.scratch)
        if image.pixels is not None and "overlay" in wanted:
            write_atomically(files["overlay"], self._overlay(image, image.pixels), self.scratch)

    def _overlay(self, image: FinishedImage, pixels: np.ndarray) -> bytes:
        """A JPEG of the image with its label map and boxes."""
        ignored = IGNORE_INDEX if image.label_map.dtype == np.uint8 else np.iinfo(np.uint16).max
        objects = image.record.single_objects
        boxes = np.array([item.box for item in objects], dtype=np.float32).reshape(-1, 4)
        names = [name for _, name in self.source.classes]
        shown = overlay(pixels, colour_index(image.label_map, ignored))
        buffer = io.BytesIO()
        canvas = draw_boxes(shown, boxes, [item.category + 1 for item in objects], names)
        Image.fromarray(canvas).save(buffer, "JPEG", quality=90)
        return buffer.getvalue()


def image_files(name: str) -> dict[str, str]:
    """The files of an image in OUT, by output; of "crops" the folder."""
    stem = os.path.splitext(name)[0]
    return {
        "png": f"masks/{mask_name(name)}",
        "yolo": yolo_dataset.label_place(name),
        "yolo image": yolo_dataset.image_place(name),
        "labelme": f"labelme/{stem}.json",
        "labelme image": f"labelme/{name}",
        "instances-png": f"instances/{mask_name(name)}",
        "geotiff": f"geotiff/{stem}.tif",
        "geojson": f"geojson/{stem}.geojson",
        "crops": f"crops/{stem}",
        "overlay": f"overlays/{stem}.jpg",
    }


def refused_names(file_names: Sequence[str], outputs: Collection[str]) -> dict[int, tuple[str, str]]:
    """The images that are left out for their names.

    Args:
        outputs: keys of `image_files`, and those that cover all images.

    Returns:
        Position -> (kind of `PROBLEMS`, place).
    """
    wanted = {"png", *outputs}  # Two label maps of one name are refused in any output, so that png can be added.

    def files_of(name: str) -> Iterator[str]:
        for output, file in image_files(name).items():
            if output in wanted:
                yield from _crop_files(file) if output == "crops" else (file,)

    clashing = clashing_names(file_names, files_of)
    refused = {index: ("mask_name_taken", f"{file_names[index]}: {other}") for index, other in clashing.items()}
    rules = [holds_name for output, holds_name in _HOLDS_NAME.items() if output in wanted]
    for index, name in enumerate(file_names):
        if not all(holds_name(name) for holds_name in rules):
            refused[index] = ("unwritable_name", repr(name))
    return refused


def _crop_files(folder: str) -> Iterator[str]:
    """Names that stand for the files of a folder of crops, which are called by numbers.

    A folder above that is called like such a file (x/1.png of the image x/1.png.jpg) counts as one of those of x.
    """
    yield f"{folder}/*.png"
    parts = folder.split("/")
    for depth, part in enumerate(parts):
        if re.fullmatch(r"-?\d+\.png", part):
            yield "/".join([*parts[:depth], "*.png", folder.replace("/", "\0")])


def _with_pixels(objects: Sequence[BoxObject]) -> list[BoxObject]:
    return [item for item in objects if item.area]


def _crop(pixels: np.ndarray, item: BoxObject) -> bytes:
    """A PNG of the window of an object's mask, which has one: RGB of the image, opaque on the object."""
    assert item.rle is not None
    window = mask_window(item.rle)
    buffer = io.BytesIO()
    Image.fromarray(np.dstack([pixels[window], decode_window(item.rle, window) * np.uint8(255)])).save(buffer, "PNG")
    return buffer.getvalue()
