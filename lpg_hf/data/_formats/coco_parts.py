"""Several COCO files as one: Roboflow's file per split, or one file per image."""

import os
from collections.abc import Sequence

from lpg_hf._files import fs_path, walk_files
from lpg_hf.data._formats import coco, coco_layout
from lpg_hf.data._formats.tool_image import is_of_split, names_of_split
from lpg_hf.data.options import ReadOptions
from lpg_hf.data.records import NO_CLASS
from lpg_hf.data.report import Report


def files_of(root: str, split: str | None) -> list[str]:
    """The COCO files of a folder: those of the usual names, else by what the files hold; raises FileNotFoundError."""
    try:
        return [coco.find_annotations(root, None, split)]
    except FileNotFoundError:
        if not os.path.isdir(fs_path(root)):
            raise
        if files := coco_layout.files_by_content(root, split):
            return files
        others = [] if split is None else coco_layout.files_by_content(root, None)
        if not others:
            raise
    names = ", ".join(file[len(root) + 1 :] for file in others[:5]) + (", ..." if len(others) > 5 else "")
    raise FileNotFoundError(
        f"no COCO file of the split {split!r} (--split) in {root}; there are: {names}. Pass the split of one of "
        "these, or split=None for all"
    )


def check_split(files: Sequence[str], root: str | None, split: str | None) -> None:
    """Refuse a split that no name tells of: neither that of the file, nor of a folder of images.

    Args:
        files: that are read, absolute.
        root: folder that was passed; None: a file was.
        split: name of the split.

    Raises:
        ValueError: it would be without any effect.
    """
    if split is None or len(files) > 1:
        return
    folder, name = os.path.split(files[0])
    place = f"{os.path.basename(folder)}/{name}"
    in_folder = (
        [] if root is None else [item for item in names_of_split(split) if os.path.isdir(fs_path(f"{root}/{item}"))]
    )
    if in_folder or is_of_split(place, names_of_split(split)):
        return
    others = [other for other in walk_files(folder, (".json",), deep=False) if other != name]
    beside = f" Beside it lie {', '.join(others[:5])}." if others else ""
    raise ValueError(
        f"split={split!r} (--split) is not in {files[0]}: one COCO file has one set of images.{beside} Leave it out, "
        "or pass the file of the split, or the folder of all"
    )


def read_parts(
    files: Sequence[str], root: str, images: str | os.PathLike | None, options: ReadOptions, report: Report
) -> coco.CocoIndex:
    """Read some COCO files and join them.

    File names become relative to `root`, or to the folder above it if the images lie beside `root`; images and
    annotations are numbered anew from 1, as the files count for themselves; classes keep their ids where no id means
    two things.

    Args:
        files: absolute paths.
        root: folder that holds them, absolute.
        images: as of `coco.read_index`, as `options` and `report`.

    Raises:
        FileNotFoundError: as of `coco.read_index`.
        ValueError: as of `coco.read_index`.
    """
    parts = [coco.read_index(file, images, options, report, None if len(files) > 1 else root) for file in files]
    if images is None:
        root = os.path.commonpath([root, *(part.image_folder for part in parts)]).replace(os.sep, "/")
    classes = coco_layout.shared_classes([part.classes for part in parts])
    position_of = {name: position for position, (_, name) in enumerate(classes)}
    entries = []
    number = 0
    for part in parts:
        prefix = os.path.relpath(part.image_folder, root).replace(os.sep, "/") if images is None else "."
        position = [position_of[name] for _, name in part.classes]
        for entry in part.entries:
            entry.image_id = str(len(entries) + 1)
            entry.file_name = entry.file_name if prefix == "." else f"{prefix}/{entry.file_name}"
            for annotation in entry.annotations:
                number += 1
                annotation.id = number
                if annotation.category != NO_CLASS:
                    annotation.category = position[annotation.category]
            entries.append(entry)
    report.classes = [f"{label} {name} (category id {i})" for label, (i, name) in enumerate(classes, start=1)]
    return coco.CocoIndex(classes, entries, {}, root if images is None else parts[0].image_folder)
