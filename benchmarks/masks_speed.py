"""Images a second and peak memory of `lpg-hf masks`, JPEG to PNG, for the paper's hourglass and for lpg-small.

    python benchmarks/masks_speed.py [--images 100] [--share 0.4]

Each generator runs over procedural images of 512 x 512 with one box each, as the command line runs it, in a process of
its own; the rate is that of the whole job without the start of the process. The hourglass has random weights, which
changes nothing about its speed.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from lpg_hf import LPGConfig, LPGImageProcessor, LPGModel, bundled, load_generator
from lpg_hf.data.report import Report
from lpg_hf.data.sources import open_source
from lpg_hf.evaluation.compare import peak_memory_mb
from lpg_hf.masks.writer import MaskSettings, write_masks


SIDE = 512


def write_data(folder: Path, num_images: int, share: float) -> None:
    """Images of coloured noise, and boxes of `share` of their area, of all shapes and places."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(num_images):
        noise = Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8))
        noise.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)
        images.append({"id": number, "file_name": f"{number}.jpg", "width": SIDE, "height": SIDE})
        width = SIDE * rng.uniform(share, 1)
        height = share * SIDE**2 / width
        corner = [rng.uniform(0, SIDE - side) for side in (width, height)]
        annotations.append({"id": number, "image_id": number, "category_id": 1, "bbox": [*corner, width, height]})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "boxes.json").write_text(json.dumps(content))


def measure(model: str, folder: Path, out: Path) -> tuple[float, float]:
    """(images a second, peak memory in MB) of this process."""
    report = Report()
    source = open_source(folder / "boxes.json", folder, report=report)
    generator = load_generator("lpg", model=model)
    start = time.perf_counter()
    write_masks(source, generator, out, MaskSettings(generator="lpg"), report=report)
    return len(source) / (time.perf_counter() - start), peak_memory_mb() or float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--share", type=float, default=0.4, help="of the image that its box covers")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder, arguments.images, arguments.share)
        LPGModel(LPGConfig(use_class_prob=False)).save_pretrained(folder / "hourglass")
        LPGImageProcessor().save_pretrained(folder / "hourglass")
        for label, model in (("hourglass, whole image", folder / "hourglass"), ("lpg-small", bundled("lpg-small"))):
            with multiprocessing.get_context("spawn").Pool(1) as process:
                rate, memory = process.apply(measure, (str(model), folder, folder / f"out {label}"))
            print(f"{label}: {rate:.1f} images a second, peak memory {memory:.0f} MB")


if __name__ == "__main__":
    main()
