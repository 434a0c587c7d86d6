"""Segmentations side by side, like Fig. 4 and 5 of the paper: image, the label maps of several segmenters, the truth.

    lpg-hf segment runs/mine/target/stage3/segmenter VOC2012 --split val --out runs/weak
    lpg-hf segment runs/mine/target_full/stage0/segmenter VOC2012 --split val --out runs/full
    python benchmarks/segmentations.py VOC2012/JPEGImages --masks weak runs/weak/masks --masks full runs/full/masks \\
        --truth VOC2012/SegmentationClass --out panel.jpg
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from lpg_hf._files import walk_files
from lpg_hf.evaluation.compare import evenly
from lpg_hf.images import IMAGE_SUFFIXES, read_rgb
from lpg_hf.label_maps import mask_name, read_label_map
from lpg_hf.visualize import colour_index, overlay, panel


def segmentations(images: Path, folders: Mapping[str, Path], num_images: int) -> Image.Image:
    """A row for each of some images, evenly over those that every folder has a label map of.

    Args:
        folders: heading -> folder of label maps.

    Raises:
        ValueError: no image has a label map in every folder.
    """
    names = [
        name
        for name in walk_files(str(images), IMAGE_SUFFIXES)
        if all((folder / mask_name(name)).is_file() for folder in folders.values())
    ]
    if not names:
        raise ValueError(f"no image of {images} has a label map in each of {', '.join(map(str, folders.values()))}.")
    rows: list[list[np.ndarray | None]] = []
    for index in evenly(range(len(names)), num_images):
        image = read_rgb(images / names[index], names[index])
        label_maps = [read_label_map(folder / mask_name(names[index])) for folder in folders.values()]
        rows.append([image, *(overlay(image, colour_index(np.where(m == 255, 0, m))) for m in label_maps)])
    return panel(["image", *folders], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="folder of the images")
    parser.add_argument("--masks", nargs=2, action="append", metavar=("TITLE", "FOLDER"), required=True)
    parser.add_argument("--truth", type=Path, help="folder of the true label maps")
    parser.add_argument("--num", type=int, default=6, help="images")
    parser.add_argument("--out", type=Path, default=Path("panel.jpg"))
    args = parser.parse_args()
    folders = {title: Path(folder) for title, folder in args.masks}
    if args.truth is not None:
        folders["ground truth"] = args.truth
    args.out.parent.mkdir(parents=True, exist_ok=True)
    segmentations(args.images, folders, args.num).save(args.out, quality=90)


if __name__ == "__main__":
    main()
