"""The data of fold 0 of PASCAL-5i: target classes 1 to 5 of VOC, and everything that has none of their masks.

    python benchmarks/fold0.py $LPG_HF_DATA runs/bench/fold0

Writes OUT/auxiliary.json, a COCO file of the masks of VOC classes 6 to 20 in train_mix and of the 60 COCO classes
outside VOC (file names relative to the data folder), and OUT/target, a VOC folder without images: the boxes of classes
1 to 5 in train_mix and val_mix, and class masks in which the other classes are background. The auxiliary photographs
may show objects of the target classes, as background. What is there already is left alone.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.lpg_small import COCO_NAME_OF_VOC, joined
from benchmarks.voc_target import forget_other_source
from lpg_hf._files import write_atomically
from lpg_hf.data._formats.voc import read_voc, write_voc
from lpg_hf.data.options import ReadOptions
from lpg_hf.label_maps import read_label_map, write_label_map
from lpg_hf.labels import COCO_CLASSES, COCO_VOC_IDS, IGNORE_INDEX, VOC_CLASSES


TARGET_CLASSES = VOC_CLASSES[:5]
SPLITS = ("train_mix", "val_mix")


def auxiliary(content: dict) -> dict:
    """Of the joined file: COCO's photographs with the 60 classes, VOC's with the classes outside the target."""
    id_of_name = {name: category_id for category_id, name in COCO_CLASSES}
    target = {id_of_name[COCO_NAME_OF_VOC.get(name, name)] for name in TARGET_CLASSES}
    from_voc = {image["id"] for image in content["images"] if image["file_name"].startswith("voc/")}
    annotations = []
    for annotation in content["annotations"]:
        excluded = target if annotation["image_id"] in from_voc else COCO_VOC_IDS
        if annotation["category_id"] not in excluded:
            annotations.append(annotation)
    shown = {annotation["image_id"] for annotation in annotations if not annotation["iscrowd"]}
    return {
        "images": [image for image in content["images"] if image["id"] in shown],
        "annotations": [annotation for annotation in annotations if annotation["image_id"] in shown],
        "categories": [category for category in content["categories"] if category["id"] not in target],
    }


def write_target(voc: Path, out: Path) -> None:
    """The VOC folder of the target classes; its lists of images come last, so that a folder with them is complete."""
    (out / "Annotations").mkdir(parents=True, exist_ok=True)
    write_atomically(out / "classes.txt", "".join(f"{name}\n" for name in TARGET_CLASSES).encode("utf-8"))
    for split in SPLITS:
        names = []
        for record in read_voc(voc, ReadOptions(split=split, masks=True)):
            record.objects = [item for item in record.objects if item.category < len(TARGET_CLASSES)]
            if record.objects:
                assert record.mask_path is not None  # asked for
                name = Path(record.file_name).stem
                labels = read_label_map(record.mask_path)
                others = (labels > len(TARGET_CLASSES)) & (labels != IGNORE_INDEX)
                write_label_map(out / "SegmentationClass" / f"{name}.png", np.where(others, 0, labels))
                write_voc(out / "Annotations" / f"{name}.xml", record, TARGET_CLASSES)
                names.append(f"{name}\n")
        write_atomically(out / "ImageSets" / "Segmentation" / f"{split}.txt", "".join(names).encode("utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with coco/ and voc/")
    parser.add_argument("out", type=Path, help="the new folder")
    arguments = parser.parse_args()
    forget_other_source(arguments.out, arguments.data)
    if not (arguments.out / "auxiliary.json").is_file():
        content = json.dumps(auxiliary(joined(arguments.data))).encode("utf-8")
        write_atomically(arguments.out / "auxiliary.json", content)
    if not all((arguments.out / f"target/ImageSets/Segmentation/{split}.txt").is_file() for split in SPLITS):
        write_target(arguments.data / "voc", arguments.out / "target")


if __name__ == "__main__":
    main()
