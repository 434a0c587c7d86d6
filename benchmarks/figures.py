"""Images like Fig. 3 to 6 of the paper: the best, median and worst boxes of one method, beside the other methods.

    python benchmarks/figures.py VOC2012 --masks VOC2012/SegmentationClass --split val \\
        --generators box grabcut lpg --stage "stage 1" runs/mine/aux/stage1/lpg \\
        --stage "stage 3" runs/mine/aux/stage3/lpg runs/mine/target/stage2/segmenter

A row of panel.jpg is an image: its boxes, the ground truth, and the label map of each method; the box that the row was
chosen for is drawn everywhere, with its IoU. images.json has the names and numbers. Failures are a third of the rows,
however good a method is.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from pycocotools import mask as coco_mask
from tqdm import tqdm

from lpg_hf import load_generator
from lpg_hf._files import write_json
from lpg_hf.data.options import SOURCE_OPTIONS
from lpg_hf.data.records import Record
from lpg_hf.data.report import Report
from lpg_hf.data.sources import Source
from lpg_hf.evaluation._truth import ImageTruth, Truth
from lpg_hf.evaluation.compare import ComparedData
from lpg_hf.generators.base import BoxedImage, MaskGenerator
from lpg_hf.masks.assembly import ImageMasks, assemble, boxed_image
from lpg_hf.metrics.box_masks import BoxMaskScores
from lpg_hf.visualize import colour_index, draw_boxes, overlay, panel


@dataclass(frozen=True)
class MeasuredBox:
    """A box with ground truth.

    Attributes:
        image: position in the source.
        position: of the box in the image's `BoxedImage`.
        area: pixels of the true mask.
        ious: title of a method -> IoU of its mask in [0, 1].
    """

    image: int
    position: int
    area: int
    ious: dict[str, float]


def masks_of(generator: MaskGenerator, image: BoxedImage) -> ImageMasks:
    """One mask per box, each for itself, and the label map."""
    return assemble(image, (patch for _, patch in generator.patches([image], "instance")), "instance")


def images_with_truth(
    source: Source, truth: Truth, indices: Sequence[int]
) -> Iterator[tuple[int, Record, BoxedImage, ImageTruth]]:
    """The images that have ground truth and that the reader does not skip."""
    report = Report()
    for index in indices:
        record = source.record(index, report) if truth.has(source.file_names[index]) else None
        if record is not None:
            yield index, record, boxed_image(source.image(record), record), truth.of(record)


def measure(
    source: Source, truth: Truth, generators: Mapping[str, MaskGenerator], indices: Sequence[int]
) -> list[MeasuredBox]:
    """The IoU of every box that has ground truth, by every method.

    Args:
        truth: from `open_truth`.
        generators: title -> method.
        indices: images of the source.
    """
    boxes = []
    shown = cast("Sequence[int]", tqdm(indices, disable=None))
    for index, record, image, true in images_with_truth(source, truth, shown):
        found = {title: masks_of(generator, image).masks for title, generator in generators.items()}
        objects = record.single_objects
        for position, item in enumerate(objects):
            target, ignore = true.of_box(item)
            area = 0 if target is None else int(coco_mask.area(cast(Any, target)))
            if target is None or not area:
                continue
            scores = {
                title: BoxMaskScores().update(masks[position].rle, target, ignore=ignore)
                for title, masks in found.items()
            }
            ious = {title: iou for title, iou in scores.items() if iou is not None}  # all, as there are true pixels
            boxes.append(MeasuredBox(index, position, area, ious))
    return boxes


def choose(boxes: Sequence[MeasuredBox], title: str, num_each: int) -> list[tuple[str, MeasuredBox]]:
    """The boxes with the best, the median and the worst IoU of one method, `num_each` of each and no image twice.

    Where images are few, the three kinds take turns, and there are fewer of each.

    Returns:
        (kind, box): best, then median, then worst.
    """
    ranked = sorted(boxes, key=lambda box: -box.ious[title])
    middle = sorted(range(len(ranked)), key=lambda rank: abs(rank - (len(ranked) - 1) / 2))
    waiting = {"best": iter(ranked), "median": (ranked[rank] for rank in middle), "worst": reversed(ranked)}
    chosen: dict[str, list[MeasuredBox]] = {kind: [] for kind in waiting}
    seen: set[int] = set()
    for _ in range(num_each):
        for kind, candidates in waiting.items():
            box = next((box for box in candidates if box.image not in seen), None)
            if box is not None:
                seen.add(box.image)
                chosen[kind].append(box)
    return [(kind, box) for kind, members in chosen.items() for box in members]


def draw(
    source: Source,
    truth: Truth,
    generators: Mapping[str, MaskGenerator],
    chosen: Sequence[tuple[str, MeasuredBox]],
) -> list[list[np.ndarray | None]]:
    """One row of cells for each chosen box: boxes, ground truth, and every method."""
    rows: list[list[np.ndarray | None]] = []
    for kind, box in chosen:
        ((_, _, image, true),) = images_with_truth(source, truth, [box.image])
        corners = image.boxes[[box.position]]
        colours = colour_index(true.label_map, true.ignored)
        cells = [
            (kind, draw_boxes(image.image, image.boxes, image.labels.tolist())),
            ("", overlay(image.image, colours)),
        ]
        for title, generator in generators.items():
            label_map = masks_of(generator, image).label_map
            cells.append((f"{100 * box.ious[title]:.0f}", overlay(image.image, colour_index(label_map))))
        rows.append([draw_boxes(cell, corners, names=[text] if text else None) for text, cell in cells])
    return rows


def as_dict(kind: str, box: MeasuredBox, source: Source) -> dict:
    """For the json file."""
    record = source.record(box.image, Report())
    assert record is not None  # it was measured
    item = record.single_objects[box.position]
    return {
        "kind": kind,
        "file_name": record.file_name,
        "object_id": item.id,
        "class": source.classes[item.category][1],
        "box_xyxy": list(item.box),
        "iou": {title: round(iou, 4) for title, iou in box.ious.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", help="as for `lpg-hf compare`")
    parser.add_argument("--masks", required=True, help="ground truth: folder of label maps, or COCO json")
    parser.add_argument("--images", help="image folder, if it is not the usual one")
    parser.add_argument("--format", default="auto")
    parser.add_argument("--split")
    parser.add_argument("--generators", nargs="*", default=["box", "grabcut"], help="names as of `lpg-hf compare`")
    parser.add_argument(
        "--stage",
        nargs="+",
        action="append",
        default=[],
        metavar=("TITLE LPG", "SEGMENTER"),
        help="an LPG stage, and the segmenter whose class probability it takes; may be repeated",
    )
    parser.add_argument("--rank_by", help="title of the method whose IoU chooses the rows; default: the last")
    parser.add_argument("--num_each", type=int, default=3, help="rows of each kind")
    parser.add_argument("--min_area", type=int, default=400, help="pixels; smaller true masks are not shown")
    parser.add_argument("--limit", type=int, help="measure at most this many images, evenly over the data")
    parser.add_argument("--device")
    parser.add_argument("--out", type=Path, default=Path("runs/images"))
    arguments = parser.parse_args()
    if any(len(stage) not in (2, 3) for stage in arguments.stage):
        parser.error("--stage takes a title, the folder or Hub id of an LPG, and perhaps that of a segmenter")

    options = replace(SOURCE_OPTIONS, split=arguments.split)
    data = ComparedData(arguments.annotations, arguments.images, arguments.masks, arguments.format, options)
    source, truth = data.open(Report())
    class_names = [name for _, name in source.classes]
    generators = {name: load_generator(name, device=arguments.device) for name in arguments.generators}
    for title, model, *segmenter in arguments.stage:
        generators[title] = load_generator(
            "lpg", model=model, segmenter=next(iter(segmenter), None), class_names=class_names, device=arguments.device
        )
    rank_by = arguments.rank_by or list(generators)[-1]
    if rank_by not in generators:
        parser.error(f"--rank_by {rank_by!r} is none of the methods: {', '.join(generators)}")

    limit = min(arguments.limit or len(source), len(source))
    boxes = measure(source, truth, generators, np.linspace(0, len(source) - 1, limit).astype(int).tolist())
    large = [box for box in boxes if box.area >= arguments.min_area]
    if not large:
        parser.error(f"no box of {arguments.annotations} has {arguments.min_area} true pixels in {arguments.masks}")
    chosen = choose(large, rank_by, arguments.num_each)
    arguments.out.mkdir(parents=True, exist_ok=True)
    figure = panel(["boxes", "ground truth", *generators], draw(source, truth, generators, chosen))
    figure.save(arguments.out / "panel.jpg", quality=90)
    content = {
        "command": {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()},
        "ranked_by": rank_by,
        "num_images": len({box.image for box in boxes}),
        "num_boxes": len(boxes),
        "num_boxes_too_small": len(boxes) - len(large),
        "rows": [as_dict(kind, box, source) for kind, box in chosen],
    }
    write_json(arguments.out / "images.json", content)
    print(f"{len(chosen)} of {len(large)} boxes, by the IoU of {rank_by}: {arguments.out}/panel.jpg and images.json")


if __name__ == "__main__":
    main()
