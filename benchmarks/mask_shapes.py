"""What cleaning and simplifying do to masks: IoU with the truth, masks in several parts, points per outline.

    python benchmarks/mask_shapes.py instances.json --images photos [--only val.txt] [--limit 100] [--scale 4]

Each object with a true mask gets a mask from its box, per instance, with `lpg-small` or --model. `--scale` enlarges
the images and true masks first, for outlines on large images. The outlines are those of `--write coco-polygons`.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from lpg_hf import bundled, load_generator
from lpg_hf._files import read_text
from lpg_hf.data._formats.coco_forms import rle_to_polygons
from lpg_hf.data.options import SOURCE_OPTIONS
from lpg_hf.data.report import Report
from lpg_hf.data.sources import evenly, open_source
from lpg_hf.generators.base import BoxedImage
from lpg_hf.masks.assembly import AssemblyOptions, BoxMask, assemble, boxed_image
from lpg_hf.metrics.box_masks import as_mask


LARGE = 400  # pixels: smaller masks are not counted by their parts


def masks_and_truth(arguments: argparse.Namespace) -> Iterator[tuple[bool, BoxMask, np.ndarray]]:
    """(cleaned, mask, true mask) of every object with a true mask, not cleaned first."""
    options = replace(SOURCE_OPTIONS, masks=True)
    source = open_source(arguments.annotations, arguments.images, options, report=Report())
    only = None if arguments.only is None else set(read_text(arguments.only).split())
    chosen = [i for i, name in enumerate(source.file_names) if only is None or Path(name).stem in only]
    generator = load_generator("lpg", model=arguments.model or str(bundled("lpg-small")))
    for index in evenly(chosen, arguments.limit or len(chosen)):
        record = source.record(index, Report())
        decoded = None if record is None else source.decode(record, Report())
        if record is None or decoded is None:
            continue
        image, scale = boxed_image(decoded, record), arguments.scale
        if scale != 1:
            enlarged = cv2.resize(decoded, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
            image = BoxedImage(enlarged, image.boxes * scale, image.labels)
        patches = [patch for _, patch in generator.patches([image], "instance")]
        for clean in (False, True):
            found = assemble(image, patches, "instance", AssemblyOptions(clean=clean))
            for item, mask in zip(record.single_objects, found.masks):
                if item.rle is not None:
                    true = coco_mask.decode(item.rle)
                    yield clean, mask, np.repeat(np.repeat(true, scale, axis=0), scale, axis=1).astype(bool)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of two (H, W) bool masks; 1 if both are empty."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


def segmentation_of(polygons: list[list[float]], size: tuple[int, ...]) -> Any:
    """COCO polygons as run lengths."""
    given: Any = polygons  # pycocotools' own type knows less kinds than its function takes
    return coco_mask.merge(coco_mask.frPyObjects(given, *size))


def in_parts(mask: np.ndarray) -> list[bool]:
    """Whether a mask of more than `LARGE` pixels has several parts; nothing for a smaller one."""
    return [cv2.connectedComponents(mask.astype(np.uint8))[0] > 2] if mask.sum() > LARGE else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", help="COCO json with masks")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--only", help="list of image names without suffix")
    parser.add_argument("--limit", type=int, help="at most this many images, evenly over the data")
    parser.add_argument("--scale", type=int, default=1)
    parser.add_argument("--model")
    ious, parts, outlines = defaultdict(list), defaultdict(list), defaultdict(list)
    for clean, mask, true in masks_and_truth(parser.parse_args()):
        pixels = mask.decode()
        ious[clean].append(iou(pixels, true))
        parts[clean] += in_parts(pixels)
        if not clean:
            parts["true"] += in_parts(true)
        for simplify in (0.0, 0.5, 1.0, 2.0):
            polygons = rle_to_polygons(mask.rle, simplify)
            drawn = as_mask(segmentation_of(polygons, true.shape)) if polygons else pixels
            points = sum(map(len, polygons)) / 2
            outlines[clean, simplify].append((iou(drawn, true), iou(drawn, pixels), points))
    print("| masks | IoU per box | in several parts |\n|---|---|---|")
    for clean in (False, True):
        print(f"| {'clean' if clean else 'as found'} | {np.mean(ious[clean]):.2%} | {np.mean(parts[clean]):.1%} |")
    print(f"| true | | {np.mean(parts['true']):.1%} |\n")
    print("| outlines | IoU per box | IoU with the mask | points per object |\n|---|---|---|---|")
    for (clean, simplify), values in outlines.items():
        scores = np.mean(values, axis=0)
        name = f"{'clean' if clean else 'as found'}, --simplify {simplify:g}"
        print(f"| {name} | {scores[0]:.2%} | {scores[1]:.2%} | {scores[2]:.0f} |")


if __name__ == "__main__":
    main()
