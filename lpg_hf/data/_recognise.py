"""Tells the format of annotations by what is there."""

import os
import re

from lpg_hf._files import fs_path, holds_masks, read_head, unicode_name, unicode_path, walk_files
from lpg_hf.data._formats import coco, coco_layout, tools, voc, yolo_layout
from lpg_hf.data._formats.unsupported import TABLE, describe
from lpg_hf.images import IMAGE_SUFFIXES


DATASET_FILES = (".parquet", "metadata.jsonl")
_DATA_FOLDER = "data"  # of FiftyOne's images
_KNOWN_HERE = (
    "no COCO json, no Annotations folder with xml files, no labels folder or txt file beside an image or data.yaml, "
    f"no Parquet file, and no export of docs/formats.md. Pass another folder, or the format (--format), or {TABLE}"
)
_NUM_LOOKS = 20  # folders that are looked at for what was meant
_ARCHIVE_SUFFIXES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")


def _is_hub_id(text: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", text) is not None and not text.startswith((".", "~"))


def recognise_format(annotations: str | os.PathLike, split: str | None = None) -> str:
    """The format of a file, a folder or a Hub id, by what is there.

    Raises:
        FileNotFoundError: nothing there, or nothing that is known.
        ValueError: more than one format; an archive.
    """
    text = os.fspath(annotations)
    local = fs_path(annotations)
    suffix = os.path.splitext(text)[1].lower()
    if suffix in _ARCHIVE_SUFFIXES and not os.path.isdir(local):
        raise ValueError(f"{text} is an archive; archives are not read. Unpack it and pass the folder")
    if os.path.isfile(local):
        return _format_of_file(unicode_path(text), suffix)
    if not os.path.isdir(local):
        if _is_hub_id(text) and suffix not in (".json", ".yaml", ".yml", ".xml", ".txt"):
            return "dataset"
        raise FileNotFoundError(f"annotations not found: {text}. Pass a COCO json, a folder, or a Hub id (owner/name)")
    found = [name for name, holds in _FOLDER_CHECKS.items() if holds(unicode_path(text), split)]
    found = found or tools.recognise(unicode_path(text))
    if len(found) > 1:
        raise ValueError(
            f"{text} holds annotations of more than one format: {', '.join(found)}. "
            f"Choose one with format=... (--format {' or --format '.join(found)})"
        )
    root = unicode_path(text)
    if not found and (_has_coco_file(root) or (split is not None and _looks_like_coco(root, None))):
        return "coco"  # which of the files is meant will be asked when it is opened
    if not found:
        known = describe(root, deep=True) or _what_is_there(root, split)
        raise FileNotFoundError(f"no annotations recognised in {text}: {known or _KNOWN_HERE}")
    return found[0]


def _what_is_there(root: str, split: str | None) -> str | None:
    """What a folder without annotations of its own holds, and what to do; None if nothing is known."""
    for name in sorted(_folders(root))[:_NUM_LOOKS]:
        inner = f"{root}/{name}"
        found = [known for known, holds in _FOLDER_CHECKS.items() if holds(inner, split)] or tools.recognise(inner)
        if found:
            return f"its folder {name} holds {found[0]} annotations: pass {inner}"
    first = next(walk_files(root, (".txt",)), None)
    if first is not None and re.match(r"\s*\d+(\s+[\d.e+-]+){4}", read_head(f"{root}/{first}", 1000)):
        return f"{first} looks like YOLO labels, but no image lies beside it: pass --format yolo, and --images"
    return None


def _format_of_file(path: str, suffix: str) -> str:
    """The format of one file, by what it holds, else by its suffix; raises ValueError if it is none that is read."""
    found = tools.recognise(path)
    if found:
        return found[0]
    known = describe(path)
    if known is not None:
        raise ValueError(f"{path} cannot be read: {known}")
    by_suffix = {".json": "coco", ".xml": "voc", ".yaml": "yolo", ".yml": "yolo"}
    if suffix in by_suffix:
        return by_suffix[suffix]
    raise ValueError(
        f"{path} is not an annotation file that is known by its content or its suffix (.json COCO, .xml VOC, .yaml "
        f"YOLO). Pass the folder for YOLO txt files, or the format (--format), or {TABLE}"
    )


def _holds(folder: str, suffixes: tuple[str, ...], deep: bool = True) -> bool:
    return next(walk_files(folder, suffixes, deep), None) is not None


def _folders(root: str) -> list[str]:
    items = os.scandir(fs_path(root))
    return [unicode_name(item.name) for item in items if item.is_dir() and not holds_masks(item.path)]


def _is_voc_name(root: str, name: str) -> bool:
    """Whether a folder of a VOC root is called as that of the xml files; FiftyOne has labels/ beside data/."""
    with_data = name == yolo_layout.LABELS_FOLDER and os.path.isdir(fs_path(f"{root}/{_DATA_FOLDER}"))
    return with_data or name.lower() == voc.ANNOTATIONS_FOLDER.lower()


def _voc_folder(root: str) -> str | None:
    """The folder of the xml files of a VOC root."""
    names = sorted(name for name in _folders(root) if _is_voc_name(root, name))
    folders = [f"{root}/{name}" for name in names]
    return next((folder for folder in folders if _holds(folder, (".xml",))), None)


def _looks_like_voc(root: str, split: str | None) -> bool:
    if _voc_folder(root) is not None:
        return True
    if _holds_voc_xml(root):
        return True
    # A folder for each split, as Roboflow writes them: only beside its image is an xml file surely of this format.
    return any(_holds_voc_xml(f"{root}/{name}", beside_image=True) for name in _folders(root))


def _holds_voc_xml(folder: str, beside_image: bool = False) -> bool:
    first = next(walk_files(folder, (".xml",), deep=False), None)
    if first is None or tools.recognise(f"{folder}/{first}") or describe(f"{folder}/{first}") is not None:
        return False
    images = walk_files(folder, IMAGE_SUFFIXES, deep=False) if beside_image else ()
    return not beside_image or os.path.splitext(first)[0] in {os.path.splitext(name)[0] for name in images}


def _looks_like_yolo(root: str, split: str | None) -> bool:
    if yolo_layout.find_yaml(root) is not None:
        return True
    inner = [root, *(f"{root}/{name}" for name in _folders(root))]
    if any(_holds_yolo_lines(f"{folder}/{yolo_layout.LABELS_FOLDER}") for folder in inner):
        return True
    above, name = root.split("/")[-2:]
    is_labels = name == yolo_layout.LABELS_FOLDER
    if (is_labels or above == yolo_layout.LABELS_FOLDER) and _holds_yolo_lines(root, deep=is_labels):
        return True
    for folder in inner:
        images = {os.path.splitext(name)[0] for name in walk_files(folder, IMAGE_SUFFIXES, deep=False)}
        labels = (name for name in walk_files(folder, (".txt",), deep=False) if os.path.splitext(name)[0] in images)
        first = next(labels, None)
        if first is not None and not tools.recognise(f"{folder}/{first}"):
            return True
    return False


def _holds_yolo_lines(folder: str, deep: bool = True) -> bool:
    """Whether a folder holds txt files, and the first is not another tool's (DOTA, KITTI)."""
    first = next(walk_files(folder, (".txt",), deep), None) if os.path.isdir(fs_path(folder)) else None
    return first is not None and not tools.recognise(f"{folder}/{first}")


def _looks_like_coco(root: str, split: str | None) -> bool:
    try:
        file = coco.find_annotations(root, None, split)
    except FileNotFoundError:
        return bool(coco_layout.files_by_content(root, split))
    # Other tools call their files annotations.json too.
    return not tools.recognise(file) and describe(file) is None


def _has_coco_file(root: str) -> bool:
    """Whether there is a json file named as COCO's are, though not in a default place."""
    names = [name for folder in (root, f"{root}/annotations") for name in walk_files(folder, (".json",), deep=False)]
    return any(re.match(r"_?(annotations|instances)", name) for name in names)


def _looks_like_dataset(root: str, split: str | None) -> bool:
    return _holds(root, DATASET_FILES)


_FOLDER_CHECKS = {
    "coco": _looks_like_coco,
    "voc": _looks_like_voc,
    "yolo": _looks_like_yolo,
    "dataset": _looks_like_dataset,
}


def voc_folders(path: str, images: str | os.PathLike | None = None) -> voc.VocFolders:
    """The folders of a VOC root, of its Annotations, of xml files beside images, or of an xml."""
    inner = None
    if os.path.isfile(fs_path(path)):
        folders = [os.path.dirname(path)]
        while os.path.dirname(folders[-1]) != folders[-1]:
            folders.append(os.path.dirname(folders[-1]))
        named = (f for f in folders if _is_voc_name(os.path.dirname(f), os.path.basename(f)))
        path = next(named, folders[0])
    else:
        inner = _voc_folder(path)
    if inner is not None:
        root, annotations = path, inner
    else:
        is_named = _is_voc_name(os.path.dirname(path), os.path.basename(path))
        root, annotations = os.path.dirname(path) if is_named else path, path
    if images is None:
        known = (voc.IMAGES_FOLDER.lower(), yolo_layout.IMAGES_FOLDER, _DATA_FOLDER)
        names = sorted((n for n in _folders(root) if n.lower() in known), key=lambda n: known.index(n.lower()))
        images = f"{root}/{names[0]}" if names else annotations
    return voc.VocFolders.find(root, annotations, images)
