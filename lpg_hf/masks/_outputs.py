"""The files that `lpg-hf masks` writes for one image."""

import io
from collections.abc import Iterable, Sequence
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
from lpg_hf.label_maps import mask_name, write_label_map
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
_IGNORED_INSTANCE = 65535


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
    path = PurePosixPath(name)
    return {
        "png": f"masks/{mask_name(name)}",
        "yolo": yolo_dataset.label_place(name),
        "yolo image": yolo_dataset.image_place(name),
        "labelme": f"labelme/{path.with_suffix('.json')}",
        "labelme image": f"labelme/{name}",
        "instances-png": f"instances/{mask_name(name)}",
        "geotiff": f"geotiff/{path.with_suffix('.tif')}",
        "geojson": f"geojson/{path.with_suffix('.geojson')}",
        "crops": f"crops/{path.with_suffix('')}",
        "overlay": f"overlays/{path.with_suffix('.jpg')}",
    }


def _with_pixels(objects: Sequence[BoxObject]) -> list[BoxObject]:
    return [item for item in objects if item.area]


def _crop(pixels: np.ndarray, item: BoxObject) -> bytes:
    """A PNG of the window of an object's mask, which has one: RGB of the image, opaque on the object."""
    assert item.rle is not None
    window = mask_window(item.rle)
    buffer = io.BytesIO()
    Image.fromarray(np.dstack([pixels[window], decode_window(item.rle, window) * np.uint8(255)])).save(buffer, "PNG")
    return buffer.getvalue()
