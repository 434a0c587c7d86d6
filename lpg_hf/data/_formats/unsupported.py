"""Annotation files that are known but not read: what they are, for the error that refuses them."""

import json
import os
import re
from collections.abc import Callable
from contextlib import suppress

from lpg_hf._files import fs_path, read_head, walk_files
from lpg_hf.data._formats.json_files import json_sample


# What every source of boxes can be written as in a few lines.
TABLE = "a csv whose first line is filename,xmin,ymin,xmax,ymax,class (a box a line, in pixels)"
_EXPORT = "export the boxes as COCO, VOC or YOLO"
_WRITE_TABLE = f"write the boxes as {TABLE}"
# Files of a folder that are looked at, and as many txt files.
_NUM_LOOKS = 10
_IMAGE = r"\.(?:jpe?g|png|JPE?G|PNG)"


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
    if not isinstance(content, dict):
        return False
    is_third = {"project", "attribute", "file", "metadata"} <= content.keys()
    return is_third or "_via_img_metadata" in content or {"filename", "regions"} <= first.keys()


def _is_superannotate(content: object) -> bool:
    instances = _items(content, "instances") or _items(_first(content), "instances")
    return any(not {"className", "classId"}.isdisjoint(item) for item in instances)


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
    ("a Darwin (V7) file", lambda c: isinstance(c, dict) and {"item", "annotations"} <= c.keys(), _EXPORT),
    ("a Hasty file", lambda c: isinstance(c, dict) and {"images", "label_classes"} <= c.keys(), _EXPORT),
    ("a SuperAnnotate file", _is_superannotate, _EXPORT),
    ("a list of Scale AI tasks", lambda c: {"task_id", "response"} <= _first(c).keys(), _WRITE_TABLE),
)
# The same of the first line of a file with a json object a line.
_JSON_LINES: tuple[tuple[str, Callable[[dict], bool], str], ...] = (
    ("a Labelbox export", lambda c: "data_row" in c, _EXPORT),
    ("a PaliGemma data set", lambda c: {"image", "prefix", "suffix"} <= c.keys(), _EXPORT),
    ("a SageMaker Ground Truth manifest", lambda c: "source-ref" in c, _WRITE_TABLE),
    ("a Vertex AI file", lambda c: "imageGcsUri" in c, _WRITE_TABLE),
    ("an Azure Machine Learning file", lambda c: {"image_url", "label"} <= c.keys(), _EXPORT),
    ("a CrowdHuman file", lambda c: "gtboxes" in c, _WRITE_TABLE),
    (
        "an ODVG (Grounding DINO) file",
        lambda c: "filename" in c and not {"detection", "grounding"}.isdisjoint(c),
        _EXPORT,
    ),
    ("a Prodigy file", lambda c: {"image", "spans"} <= c.keys(), _WRITE_TABLE),
    ("the list of an imagefolder", lambda c: "file_name" in c, "pass its folder"),
)
_JSON_LINES_SUFFIXES = (".jsonl", ".ndjson", ".manifest", ".odgt")
# (what an xml or csv file is, texts that its head holds, what to do instead).
_TEXTS = (
    ("a CVAT for video file", ("<annotations", "<track "), "export it as CVAT for images, COCO or YOLO"),
    ("a LabelMe xml with polygons", ("<annotation>", "<polygon>", "<pt>"), _EXPORT),
    ("a dlib imglab file", ("<dataset", "<images>", "<box "), _EXPORT),
    ("a VGG Image Annotator (VIA) table", ("filename", "region_shape_attributes"), "export it as COCO"),
)
# (what a txt or csv file is, a pattern that its beginning fits, what to do instead).
_BEGINNINGS = (
    ("a VisDrone file", r"(-?\d+,){7}-?\d+,?\s", _WRITE_TABLE),
    ("a WIDER FACE list", rf"[^\n]+{_IMAGE}\s*\n\d+\s*\n(-?\d+ ){{9}}\d", _WRITE_TABLE),
    ("a keras-yolo3 list (_annotations.txt of Roboflow)", rf"[^\n,]+{_IMAGE}( \d+(,\d+){{4}})+\s", _EXPORT),
    ("a list of boxes as CelebA and DeepFashion have them", r"\d+\s+image_\w+\s+x_1\s+y_1\s", _WRITE_TABLE),
    ("a PASCAL Annotation 1.00 file", r"# PASCAL Annotation Version 1\.00", _WRITE_TABLE),
    ("a Vertex AI (AutoML) table", r"(TRAIN|TRAINING|VALIDATION|TEST|UNASSIGNED),\"?gs://", _WRITE_TABLE),
)
_JSON_SUFFIXES = (".json", ".geojson")
_RECORD_SUFFIXES = (".tfrecord", ".tfrecords", ".record")
_SUFFIXES = (*_JSON_SUFFIXES, *_JSON_LINES_SUFFIXES, *_RECORD_SUFFIXES, ".xml", ".csv")


def describe(path: str, deep: bool = False) -> str | None:
    """What a file (or the first known one in a folder) is, and what to do instead; None if it is not known either.

    Args:
        path: file or folder.
        deep: look into the folders of a folder too.

    Returns:
        For example "captions.json is COCO captions: they hold sentences, no boxes; pass instances_*.json".
    """
    if os.path.isdir(fs_path(path)):
        looks = (zip(range(_NUM_LOOKS), walk_files(path, suffixes, deep)) for suffixes in (_SUFFIXES, (".txt",)))
        told = (describe(f"{path}/{name}") for names in looks for _, name in names)
        return next((text for text in told if text), None)
    name = os.path.basename(path)
    suffix = os.path.splitext(name)[1].lower()
    found = None
    if suffix in _JSON_SUFFIXES:
        content = json_sample(path)
        found = next(((what, remedy) for what, fits, remedy in _JSON if fits(content)), None)
    elif suffix in _JSON_LINES_SUFFIXES:
        first = _first_line(path)
        found = next(((what, remedy) for what, fits, remedy in _JSON_LINES if fits(first)), None)
    elif suffix in _RECORD_SUFFIXES:
        found = "a file of TensorFlow records", _EXPORT
    else:
        head = read_head(path)
        found = next(((what, remedy) for what, texts, remedy in _TEXTS if all(t in head for t in texts)), None)
        if found is None:
            fits = (pattern for pattern in _BEGINNINGS if re.match(pattern[1], head))
            found = next(((what, remedy) for what, _, remedy in fits), None)
    return f"{name} is {found[0]}: {found[1]}" if found else None


def _first_line(path: str) -> dict:
    """The first line of a file with a json object a line; {} if it is none."""
    with suppress(ValueError, RecursionError):
        content = json.loads(read_head(path, 1_000_000).lstrip().partition("\n")[0])
        return content if isinstance(content, dict) else {}
    return {}
