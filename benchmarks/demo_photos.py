"""Photographs that scikit-image ships, with boxes drawn by hand: the end of `make demo`.

    python benchmarks/demo_photos.py data runs/demo/photos
    lpg-hf masks runs/demo/photos/boxes.json --images runs/demo/photos/images --out runs/demo/photos/masks \\
        --model lpg-base --write png,coco
    python benchmarks/demo_photos.py panel runs/demo/photos
    python benchmarks/demo_photos.py figure runs/demo/photos     # docs/images/boxes_to_masks.jpg, the README's

They lie in the wheel of scikit-image, which says that they are in the public domain or under CC0; nothing is
downloaded. There are no true masks: panel.png is for the eye.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lpg_hf.data.report import Report
from lpg_hf.data.sources import open_source
from lpg_hf.label_maps import read_label_map
from lpg_hf.visualize import draw_boxes, overlay, panel


# Name in skimage.data -> objects with their boxes, xyxy in pixels, end exclusive.
PHOTOS = {
    "astronaut": [
        ("person", (18, 15, 366, 512)),
        ("helmet", (277, 343, 512, 512)),
        ("shuttle", (353, 0, 473, 290)),
    ],
    "chelsea": [("cat", (0, 0, 402, 300))],
    "coffee": [
        ("cup", (172, 17, 410, 309)),
        ("saucer", (76, 68, 480, 390)),
        ("spoon", (325, 66, 426, 327)),
    ],
    "rocket": [("rocket", (309, 126, 336, 408))],
    "camera": [
        ("person", (0, 63, 332, 512)),
        ("video camera", (252, 138, 326, 187)),
        ("tripod", (231, 190, 410, 512)),
    ],
}
# The README's figure: these photographs at this height, so many pixels apart.
FIGURE = ("astronaut", "chelsea", "coffee")
HEIGHT, GAP = 260, 8


def write_data(folder: Path) -> None:
    """Write images/NAME.png and boxes.json (COCO).

    Raises:
        ImportError: scikit-image is not installed.
    """
    try:
        from skimage import data
    except ImportError:
        raise ImportError("the photographs come with scikit-image: pip install 'lpg_hf[dev]'.") from None
    names = sorted({name for objects in PHOTOS.values() for name, _ in objects})
    content = {"images": [], "annotations": [], "categories": [{"id": i, "name": n} for i, n in enumerate(names, 1)]}
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for image_id, (photo, objects) in enumerate(PHOTOS.items(), 1):
        image = Image.fromarray(getattr(data, photo)()).convert("RGB")
        image.save(folder / "images" / f"{photo}.png")
        size = {"width": image.width, "height": image.height}
        content["images"].append({"id": image_id, "file_name": f"{photo}.png"} | size)
        for name, (x1, y1, x2, y2) in objects:
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": names.index(name) + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    (folder / "boxes.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def drawn(folder: Path, names: Sequence[str] = tuple(PHOTOS)) -> list[tuple[np.ndarray, np.ndarray]]:
    """(photograph with its boxes, photograph with its masks), each (H, W, 3) uint8, in the order of the file."""
    report = Report()
    source = open_source(folder / "boxes.json", folder / "images", report=report)
    classes = [name for _, name in source.classes]
    pairs = []
    for index in range(len(source)):
        record = source.record(index, report)
        if record is None or Path(record.file_name).stem not in names:
            continue
        image = source.image(record)
        boxes = np.array([item.box for item in record.objects])
        labels = [item.category + 1 for item in record.objects]
        label_map = read_label_map(folder / "masks" / "masks" / record.file_name)
        pairs.append((draw_boxes(image, boxes, labels, classes, font_size=16), overlay(image, label_map)))
    return pairs


def write_panel(folder: Path) -> Path:
    """Write panel.png: every photograph with its boxes, and with its masks; returns its path."""
    path = folder / "panel.png"
    panel(["boxes", "masks by lpg-base"], [list(pair) for pair in drawn(folder)], cell_width=400).save(path)
    return path


def write_figure(folder: Path) -> Path:
    """Write the README's figure: boxes in the upper row, masks in the lower one; returns its path."""
    rows = [[_at_height(cell) for cell in cells] for cells in zip(*drawn(folder, FIGURE))]
    width = sum(cell.width for cell in rows[0]) + GAP * (len(FIGURE) - 1)
    figure = Image.new("RGB", (width, 2 * HEIGHT + GAP), "white")
    for number, cells in enumerate(rows):
        left = 0
        for cell in cells:
            figure.paste(cell, (left, number * (HEIGHT + GAP)))
            left += cell.width + GAP
    path = Path(__file__).parents[1] / "docs" / "images" / "boxes_to_masks.jpg"
    figure.save(path, quality=85)
    return path


def _at_height(pixels: np.ndarray) -> Image.Image:
    image = Image.fromarray(pixels)
    return image.resize((round(image.width * HEIGHT / image.height), HEIGHT), Image.Resampling.LANCZOS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("data", "panel", "figure"))
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    if arguments.what == "data":
        write_data(arguments.folder)
    else:
        write = write_panel if arguments.what == "panel" else write_figure
        print(f"written to {write(arguments.folder)}")


if __name__ == "__main__":
    main()
