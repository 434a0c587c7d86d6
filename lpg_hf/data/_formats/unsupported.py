"""Annotation files that are known but not read: what they are, for the error that refuses them."""

import os
from collections.abc import Callable

from lpg_hf._files import fs_path, read_head, walk_files
from lpg_hf.data._formats.json_files import json_sample


_EXPORT = "export the boxes as COCO, VOC or YOLO"
# Files of a folder that are looked at.
_NUM_LOOKS = 10


def _items(content: object, key: str) -> list[dict]:
    """The dicts in the list under a key."""
    value = content.get(key) if isinstance(content, dict) else None
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _first(content: object) -> dict:
    """The first dict of a list, or of a dict's values."""
    values = content if isinstance(content, list) else list(content.values()) if isinstance(content, dict) else []
    return next((value for value in values if isinstance(value, dict)), {})


def _annotations_with(key: str) -> Callable[[object], bool]:
    def check(content: object) -> bool:
        annotations = _items(content, "annotations")
        return bool(annotations) and all(key in item and "bbox" not in item for item in annotations[:5])

    return check


def _is_results(content: object) -> bool:
    first = _first(content) if isinstance(content, list) else {}
    return "image_id" in first and ("bbox" in first or "segmentation" in first)


def _is_via(content: object) -> bool:
    first = _first(content)
    return isinstance(content, dict) and ("_via_img_metadata" in content or {"filename", "regions"} <= first.keys())


# (what a json file is, how it is told, what to do instead); the first that fits counts.
_JSON: tuple[tuple[str, Callable[[object], bool], str], ...] = (
    ("COCO captions", _annotations_with("caption"), "they hold sentences, no boxes; pass instances_*.json"),
    ("COCO panoptic annotations", _annotations_with("segments_info"), "pass instances_*.json"),
    ("COCO key points without boxes", _annotations_with("keypoints"), "pass instances_*.json"),
    ("a list of COCO results", _is_results, "it lists no images; pass the annotation file of the images"),
    ("a VGG Image Annotator (VIA) file", _is_via, "export it as COCO"),
    ("a Supervisely file", lambda c: any("classTitle" in i for i in _items(c, "objects")), _EXPORT),
    ("Cityscapes polygons", lambda c: isinstance(c, dict) and {"imgHeight", "objects"} <= c.keys(), _EXPORT),
    ("GeoJSON", lambda c: isinstance(c, dict) and c.get("type") == "FeatureCollection", _EXPORT + " in pixels"),
    ("a Datumaro file", lambda c: isinstance(c, dict) and {"items", "categories"} <= c.keys(), _EXPORT),
    ("a VoTT file", lambda c: isinstance(c, dict) and {"asset", "regions"} <= c.keys(), _EXPORT),
    ("a Labelbox export", lambda c: not {"data_row", "Labeled Data"}.isdisjoint(_first(c)), _EXPORT),
    ("a FiftyOne detection dataset", lambda c: isinstance(c, dict) and c.keys() == {"classes", "labels"}, _EXPORT),
    ("FiftyOne samples", lambda c: any("filepath" in i for i in _items(c, "samples")), _EXPORT),
    (
        "a Segment Anything (SA-1B) file",
        lambda c: isinstance(c, dict) and isinstance(c.get("image"), dict) and bool(_items(c, "annotations")),
        "join the files to one COCO json",
    ),
)
# (what an xml or csv file is, texts that its head holds, what to do instead).
_TEXTS = (
    ("a CVAT for video file", ("<annotations", "<track "), "export it as CVAT for images, COCO or YOLO"),
    ("a LabelMe xml with polygons", ("<annotation>", "<polygon>", "<pt>"), _EXPORT),
    ("a dlib imglab file", ("<dataset", "<images>", "<box "), _EXPORT),
    ("a VGG Image Annotator (VIA) table", ("filename", "region_shape_attributes"), "export it as COCO"),
)


def describe(path: str, deep: bool = False) -> str | None:
    """What a file (or the first known one in a folder) is, and what to do instead; None if it is not known either.

    Args:
        path: file or folder.
        deep: look into the folders of a folder too.

    Returns:
        For example "captions.json is COCO captions: they hold sentences, no boxes; pass instances_*.json".
    """
    if os.path.isdir(fs_path(path)):
        names = walk_files(path, (".json", ".geojson", ".xml", ".csv"), deep)
        told = (describe(f"{path}/{name}") for _, name in zip(range(_NUM_LOOKS), names))
        return next((text for text in told if text), None)
    name = os.path.basename(path)
    if name.lower().endswith((".json", ".geojson")):
        content = json_sample(path)
        found = next(((what, remedy) for what, fits, remedy in _JSON if fits(content)), None)
    else:
        head = read_head(path)
        found = next(((what, remedy) for what, texts, remedy in _TEXTS if all(t in head for t in texts)), None)
    return f"{name} is {found[0]}: {found[1]}" if found else None
