"""Photographs that scikit-image ships, with boxes drawn by hand: the end of `make demo`.

    python benchmarks/demo_photos.py data runs/demo/photos
    lpg-hf masks runs/demo/photos/boxes.json --images runs/demo/photos/images --out runs/demo/photos/masks \\
        --write png,coco
    python benchmarks/demo_photos.py panel runs/demo/photos

They lie in the wheel of scikit-image, which says that they are in the public domain or under CC0; nothing is
downloaded. There are no true masks: panel.png is for the eye.
"""

import argparse
import json
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


def write_panel(folder: Path) -> Path:
    """Write panel.png: every photograph with its boxes, and with its masks; returns its path."""
    report = Report()
    source = open_source(folder / "boxes.json", folder / "images", report=report)
    names = [name for _, name in source.classes]
    rows = []
    for index in range(len(source)):
        record = source.record(index, report)
        assert record is not None  # its image was written beside the boxes
        image = source.image(record)
        boxes = np.array([item.box for item in record.objects])
        labels = [item.category + 1 for item in record.objects]
        label_map = read_label_map(folder / "masks" / "masks" / record.file_name)
        rows.append([draw_boxes(image, boxes, labels, names, font_size=16), overlay(image, label_map)])
    path = folder / "panel.png"
    panel(["boxes", "masks by lpg-small"], rows, cell_width=400).save(path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("data", "panel"))
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    if arguments.what == "data":
        write_data(arguments.folder)
    else:
        print(f"written to {write_panel(arguments.folder)}")


if __name__ == "__main__":
    main()
