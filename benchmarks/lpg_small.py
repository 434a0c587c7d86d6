"""The bundled generator, lpg-small: its training data, and its folder in the package.

    python benchmarks/lpg_small.py data $LPG_HF_DATA runs/lpg_small.json
    accelerate launch training/em.py --config training/configs/lpg_small.yaml
    lpg-hf compare ... --model runs/lpg_small/aux/stage1/lpg --json voc.json   # and for COCO, and for the twins
    python benchmarks/lpg_small.py bundle runs/lpg_small/aux/stage1/lpg --measured "VOC val_mix=voc.json" ...

What lies in the package was trained with an object_loss_weight of 1 and without an edge_radius, and got both
afterwards:

    python benchmarks/lpg_small.py bundle lpg_hf/weights/lpg-small --object_weight 1.5 --edge_radius 1 \\
        --out runs/lpg_small_edges

`data` joins the 481 COCO photographs of the training list, all 80 classes, with the 2,877 VOC photographs of train_mix
into one COCO file. A VOC object's mask is its class inside its box; void pixels become a crowd region of each class of
the image, which training leaves out.

The twins on the card have not seen the classes that they are measured on: stage 3 of the bench, without a segmenter
(`python benchmarks/tables.py run stages/squeezenet`), whose views have 128 pixels.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask

from lpg_hf.boxes import box_slices
from lpg_hf.data.formats.voc import read_voc
from lpg_hf.data.options import ReadOptions
from lpg_hf.hub import write_card
from lpg_hf.label_maps import read_label_map
from lpg_hf.labels import COCO_CLASSES, IGNORE_INDEX, VOC_CLASSES
from lpg_hf.models.image_processing_lpg import LPGImageProcessor
from lpg_hf.models.modeling_lpg import LPGModel


COCO_NAME_OF_VOC = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
BUNDLE = Path(__file__).parents[1] / "lpg_hf" / "weights" / "lpg-small"


def joined(root: Path) -> dict:
    """COCO content of both training lists; file names are relative to `root`."""
    coco = json.loads((root / "coco/instances.json").read_text(encoding="utf-8"))
    listed = json.loads((root / "coco/instances_nonvoc_train.json").read_text(encoding="utf-8"))
    train = {image["id"] for image in listed["images"]}
    images = [image | {"file_name": f"coco/images/{image['file_name']}"} for image in coco["images"]]
    images = [image for image in images if image["id"] in train]
    annotations = [annotation for annotation in coco["annotations"] if annotation["image_id"] in train]
    next_image = max(image["id"] for image in coco["images"]) + 1
    next_id = max(annotation["id"] for annotation in coco["annotations"]) + 1
    id_of_name = {name: category_id for category_id, name in COCO_CLASSES}
    for number, record in enumerate(read_voc(root / "voc", ReadOptions(split="train_mix", masks=True))):
        assert record.mask_path is not None  # asked for
        labels = read_label_map(record.mask_path)
        image_id, regions = next_image + number, []
        for item in record.objects:
            mask = np.zeros(labels.shape, dtype=bool)
            inside = box_slices(item.box, *labels.shape)
            mask[inside] = labels[inside] == item.category + 1
            regions.append((item.category, item.box, mask, 0))
        void = labels == IGNORE_INDEX
        for category in sorted({category for category, _, mask, _ in regions if mask.any()}):
            regions.append((category, (0, 0, record.width, record.height), void, 1))
        size = {"width": record.width, "height": record.height}
        images.append({"id": image_id, "file_name": f"voc/JPEGImages/{record.file_name}"} | size)
        for category, (x1, y1, x2, y2), mask, iscrowd in regions:
            if not mask.any():
                continue
            name = VOC_CLASSES[category]
            rle: Any = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            annotations.append(
                {
                    "id": next_id,
                    "image_id": image_id,
                    "category_id": id_of_name[COCO_NAME_OF_VOC.get(name) or name],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": int(mask.sum()),
                    "iscrowd": iscrowd,
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
                }
            )
            next_id += 1
    categories = [{"id": category_id, "name": name} for category_id, name in COCO_CLASSES]
    return {"images": images, "annotations": annotations, "categories": categories}


def bundle(
    stage: Path,
    measured: dict[str, Path],
    twins: dict[str, Path],
    out: Path,
    object_weight: float | None = None,
    edge_radius: int | None = None,
) -> None:
    """Save a stage, its convolutions as fp16, with a card; its numbers are those of `lpg-hf compare --json` files.

    Args:
        measured: what was measured on -> file; none: the card keeps the numbers that it has.
        twins: the same of generators that have not seen the classes they were measured on.
        object_weight: shifts the logits from the probability that the stage learned with its object_loss_weight to
            that which it would have learned with this one.
        edge_radius: of the image processor.
    """
    model = LPGModel.from_pretrained(stage, dtype=torch.float32)
    processor = LPGImageProcessor.from_pretrained(stage)
    metrics = json.loads((stage / "metrics.json").read_text(encoding="utf-8"))
    if object_weight is not None:
        shift = math.log(object_weight / model.config.object_loss_weight)
        with torch.no_grad():
            head: Any = model.generator.head
            head[-1].bias += torch.tensor([-shift / 2, shift / 2])
        model.config.object_loss_weight = object_weight
        metrics["after_training_object_loss_weight"] = object_weight
    if edge_radius is not None:
        processor.edge_radius = metrics["after_training_edge_radius"] = edge_radius
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):  # the variances of batch norms do not fit into fp16
            module.half()
    model.save_pretrained(out)
    config = json.loads((out / "config.json").read_text(encoding="utf-8")) | {"dtype": "float32"}  # to compute in
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    processor.save_pretrained(out)
    metrics["dataset"] = "COCO train (481 photographs) and VOC train_mix (2,877 photographs)"
    metrics["measured_on"] = " and ".join(measured) or metrics.get("measured_on")
    found: dict[str, dict[str, float]] = {}
    for key in ("foreground_iou", "mean_box_iou"):
        for where, file in measured.items():
            for row in json.loads(file.read_text(encoding="utf-8"))["rows"]:
                name = key if row["generator"] == "lpg" else f"baseline_{row['generator']}_{key}"
                found.setdefault(name, {})[where] = round(row["scores"][key], 4)
        for where, file in twins.items():
            rows = {row["generator"]: row for row in json.loads(file.read_text(encoding="utf-8"))["rows"]}
            found.setdefault(f"baseline_unseen_classes_twin_{key}", {})[where] = round(rows["lpg"]["scores"][key], 4)
    metrics |= found
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_card(out)


def _named_files(values: list[str]) -> dict[str, Path]:
    return {name: Path(path) for name, path in (value.split("=", 1) for value in values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("data", help="write the joined COCO file")
    data.add_argument("root", type=Path, help="folder with coco/ and voc/")
    data.add_argument("out", type=Path, help="the new json file")
    pack = commands.add_parser("bundle", help="write the folder in the package")
    pack.add_argument("stage", type=Path)
    pack.add_argument("--measured", action="append", default=[], metavar="NAME=FILE")
    pack.add_argument("--twin", action="append", default=[], metavar="NAME=FILE")
    pack.add_argument("--object_weight", type=float, metavar="W", help="as if trained with this object_loss_weight")
    pack.add_argument("--edge_radius", type=int, metavar="R", help="of the image processor")
    pack.add_argument("--out", type=Path, default=BUNDLE)
    arguments = parser.parse_args()
    if arguments.command == "data":
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(joined(arguments.root)), encoding="utf-8")
    else:
        bundle(
            arguments.stage,
            _named_files(arguments.measured),
            _named_files(arguments.twin),
            arguments.out,
            arguments.object_weight,
            arguments.edge_radius,
        )


if __name__ == "__main__":
    main()
