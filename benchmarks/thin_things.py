"""Photographs of thin things as a small set of own masks, to try `lpg-hf finetune` on.

python benchmarks/thin_things.py coco/instances.json thin.json --classes fork skis "baseball bat" --not-in train.json
lpg-hf finetune thin.json --images coco/images --out runs/thin
"""

import argparse
import json
from pathlib import Path

from lpg_hf._files import write_json


def thin_things(content: dict, classes: list[str], num_images: int, without: set[str]) -> dict:
    """The first images of a COCO file that show one of the classes, with the objects of these classes alone.

    Args:
        content: of the file.
        without: names of images that are not wanted, such as those that the generator learned from.

    Raises:
        ValueError: an unknown class, or too few images.
    """
    ids = {category["name"]: category["id"] for category in content["categories"]}
    if unknown := [name for name in classes if name not in ids]:
        raise ValueError(f"the file has no class {unknown[0]!r}. Its classes: {', '.join(ids)}.")
    wanted = {ids[name] for name in classes}
    objects = [item for item in content["annotations"] if item["category_id"] in wanted and not item.get("iscrowd")]
    showing = {item["image_id"] for item in objects}
    images = [image for image in content["images"] if image["id"] in showing and image["file_name"] not in without]
    if len(images) < num_images:
        raise ValueError(f"only {len(images)} images show {', '.join(classes)}. Name more classes or fewer images.")
    kept = {image["id"] for image in images[:num_images]}
    return {
        "images": images[:num_images],
        "annotations": [item for item in objects if item["image_id"] in kept],
        "categories": [category for category in content["categories"] if category["id"] in wanted],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", type=Path, help="COCO file")
    parser.add_argument("out", type=Path, help="the new COCO file")
    parser.add_argument("--classes", nargs="+", default=["fork", "skis", "baseball bat"])
    parser.add_argument("--images", type=int, default=20, help="how many")
    parser.add_argument("--not-in", type=Path, help="COCO file whose images are not wanted")
    args = parser.parse_args()
    without = set()
    if args.not_in is not None:
        without = {image["file_name"] for image in json.loads(args.not_in.read_text(encoding="utf-8"))["images"]}
    content = thin_things(json.loads(args.annotations.read_text(encoding="utf-8")), args.classes, args.images, without)
    write_json(args.out, content)
    print(f"{args.out}: {len(content['images'])} images, {len(content['annotations'])} objects")


if __name__ == "__main__":
    main()
