"""Hand-made data folders: the base inputs of the requirement cases."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


WIDTH, HEIGHT = 60, 40
RED = (200, 30, 30)
POLYGON = [[10, 8, 30, 8, 30, 24, 10, 24]]


def make_image(height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    """Grey with a red rectangle at columns 10..29, rows 8..23."""
    pixels = np.full((height, width, 3), 128, dtype=np.uint8)
    pixels[8:24, 10:30] = RED
    return Image.fromarray(pixels)


def coco_annotation(**changes) -> dict:
    base = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "bbox": [10, 8, 20, 16],
        "area": 320,
        "iscrowd": 0,
        "segmentation": POLYGON,
    }
    return {key: value for key, value in {**base, **changes}.items() if value is not ...}


class CocoTree:
    """BASE-COCO under `root`; change `content`, then `write`."""

    annotation = staticmethod(coco_annotation)

    def __init__(self, root: Path):
        self.root = root
        self.images = root / "images"
        self.images.mkdir(parents=True)
        make_image().save(self.images / "a.png")
        self.content = {
            "images": [{"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}],
            "annotations": [coco_annotation()],
            "categories": [{"id": 1, "name": "thing"}],
        }

    def write_image(self, name: str, height: int = HEIGHT, width: int = WIDTH) -> Path:
        path = self.images / name
        path.parent.mkdir(parents=True, exist_ok=True)
        make_image(height, width).save(path)
        return path

    def add_image(self, name: str, image_id: object, **changes) -> None:
        self.write_image(name)
        self.content["images"].append({"id": image_id, "file_name": name, "width": WIDTH, "height": HEIGHT, **changes})

    def write(self) -> Path:
        path = self.root / "annotations.json"
        path.write_text(json.dumps(self.content), encoding="utf-8")
        return path


def voc_xml(filename="a.png", size=(WIDTH, HEIGHT, 3), objects=None) -> str:
    """BASE-VOC; `objects` are texts inside <annotation>."""
    keys = ("width", "height", "depth")
    parts = [] if filename is None else [f"<filename>{filename}</filename>"]
    if size is not None:
        parts.append("<size>" + "".join(f"<{k}>{v}</{k}>" for k, v in zip(keys, size)) + "</size>")
    parts += [voc_object()] if objects is None else objects
    return "<annotation>" + "".join(parts) + "</annotation>"


def voc_object(name="thing", box=(11, 9, 30, 24), flags="<difficult>0</difficult><truncated>0</truncated>", inner=""):
    keys = ("xmin", "ymin", "xmax", "ymax")
    corners = "".join(f"<{key}>{value}</{key}>" for key, value in zip(keys, box))
    return f"<object><name>{name}</name>{flags}{inner}<bndbox>{corners}</bndbox></object>"


class VocTree:
    """BASE-VOC under `root` with the class list [thing]."""

    xml = staticmethod(voc_xml)
    object = staticmethod(voc_object)

    def __init__(self, root: Path):
        self.root = root
        for folder in ("Annotations", "JPEGImages", "ImageSets/Segmentation", "ImageSets/Main", "SegmentationClass"):
            (root / folder).mkdir(parents=True)
        (root / "classes.txt").write_text("background\nthing\n")
        self.add("a")

    def add(self, name: str, xml: str | None = None, image: str | None = None) -> None:
        xml_path = self.root / "Annotations" / f"{name}.xml"
        xml_path.parent.mkdir(parents=True, exist_ok=True)
        xml_path.write_text(voc_xml(f"{name}.png") if xml is None else xml, encoding="utf-8")
        path = self.root / "JPEGImages" / (image or f"{name}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        make_image().save(path)

    def add_mask(self, name: str, values: np.ndarray | None = None) -> Path:
        if values is None:
            values = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
            values[8:24, 10:30] = 1
        path = self.root / "SegmentationClass" / f"{name}.png"
        mask = Image.fromarray(values).convert("L")
        mask.putpalette([v for i in range(256) for v in (i, 255 - i, i // 2)])
        mask.save(path)
        return path

    def add_list(self, name: str, *lines: str, folder: str = "Segmentation") -> None:
        (self.root / "ImageSets" / folder / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


class YoloTree:
    """BASE-YOLO under `root`."""

    LINE = "0 0.333333 0.4 0.333333 0.4"

    def __init__(self, root: Path):
        self.root = root
        root.mkdir(parents=True)
        self.write("classes.txt", "thing\n")
        self.add("a", self.LINE)

    def write(self, name: str, text: str | bytes) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
        return path

    def add(self, name: str, labels: str | bytes | None, image: str | None = None, split: str = "") -> None:
        """An image and its label file (None: without); names may hold folders."""
        path = self.root / "images" / split / (image or f"{name}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        make_image().save(path)
        if labels is not None:
            self.write(str(Path("labels", split, f"{name}.txt")), labels)


def add_everywhere(tree: "CocoTree | VocTree | YoloTree", name: str) -> Path:
    """An image of this relative name with the base box, in whichever format; its path."""
    stem = name.rpartition(".")[0]
    if isinstance(tree, CocoTree):
        number = len(tree.content["images"]) + 1
        tree.add_image(name, number)
        tree.content["annotations"].append(tree.annotation(id=number, image_id=number))
        tree.write()
        return tree.images / name
    if isinstance(tree, VocTree):
        tree.add(stem, voc_xml(name.rpartition("/")[2]), name)
        return tree.root / "JPEGImages" / name
    tree.add(stem, tree.LINE, name)
    return tree.root / "images" / name
