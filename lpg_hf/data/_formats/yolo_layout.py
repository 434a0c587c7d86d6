"""Where the images, labels and class names of a YOLO dataset are: data.yaml, or the folders (see `yolo`)."""

import os
from dataclasses import dataclass, field

import yaml
from yaml.scanner import ScannerError

from lpg_hf._files import fs_path, read_list, read_text, relative_name, unicode_name, unicode_path, walk_files
from lpg_hf._yaml import load_yaml
from lpg_hf.data._formats.image_finder import MatchedImages, StatedImage, match_images
from lpg_hf.data._formats.tool_image import SPLIT_NAMES, folder_of_split, names_of_split
from lpg_hf.data.options import ReadOptions
from lpg_hf.data.report import Report
from lpg_hf.images import IMAGE_SUFFIXES
from lpg_hf.labels import clean_name


IMAGES_FOLDER = "images"
LABELS_FOLDER = "labels"
YAML_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
CLASS_FILES = ("classes.txt", "obj.names", "_darknet.labels")  # the last: Roboflow's, in the folder of each split
# txt files beside labels that are not labels; each may still be one, if an image has its name.
OTHER_TXT_FILES = ("classes.txt", "train.txt", "val.txt", "valid.txt", "test.txt")
SPLITS = tuple(SPLIT_NAMES)
SPLIT_ALIASES = {other: split for split, names in SPLIT_NAMES.items() for other in names if other != split}
LARGEST_CLASS = 1_000_000
# Classes without a name, which a few characters of data.yaml state.
_MOST_UNNAMED = 10_000


@dataclass
class YoloLayout:
    """Where images and labels are.

    Attributes:
        image_folder: that the file names are relative to.
        images: relative names.
        label_roots: folders that mirror `image_folder`, in the order of the search; after them a folder "labels" in
            the place of the last "images" of a name, and the image's own folder are searched.
        complete: `images` are all of their folders, so that a txt without an image can be told.
        names: class names by number; None if nothing states them.
        sources: files that state layout and names.
        keypoints: numbers per line after the box, which are not read.
        rotated_boxes: data.yaml says that lines of eight numbers are rotated boxes.
        splits: image -> "train", "val" or "test", as far as data.yaml says it; the first that names an image counts.
    """

    image_folder: str
    images: list[str]
    label_roots: list[str] = field(default_factory=list)
    complete: bool = True
    names: list[str] | None = None
    sources: list[str] = field(default_factory=list)
    keypoints: int = 0
    rotated_boxes: bool = False
    splits: dict[str, str] = field(default_factory=dict)


def read_yaml(path: str) -> dict:
    """A data.yaml as a dict.

    Raises:
        ValueError: not valid, or not a mapping.
    """
    text = read_text(path)
    slashes = text.replace("\\", "/")
    try:
        try:
            content = load_yaml(text)
        except ScannerError:  # A Windows path in quotes: "C:\data" has a backslash that starts no escape,
            content = load_yaml(slashes)
        if slashes != text and isinstance(content, dict):  # and "images\train" one that is a tab.
            paths = load_yaml(slashes)
            keys = ("path", *SPLITS, *SPLIT_ALIASES) if isinstance(paths, dict) else ()
            content.update({key: paths[key] for key in keys if paths.get(key)})
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid yaml: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a data.yaml: its top level is a {type(content).__name__}, not a mapping")
    return content


def _yaml_names(content: dict, path: str, report: Report) -> list[str] | None:
    names, count = content.get("names"), _class_count(content)
    values = list(names.values()) if isinstance(names, dict) else names if isinstance(names, list) else []
    if any(isinstance(name, (list, dict)) for name in values):  # Also keeps nested aliases from growing without end.
        raise ValueError(f'{path}: "names" holds a list or a mapping in the place of a name')
    if isinstance(names, dict):
        odd = [key for key in names if not (type(key) is int or (isinstance(key, str) and key.strip().isdecimal()))]
        if odd:
            raise ValueError(f'{path}: "names" has a key that is not a class number: {odd[0]!r}')
        try:
            numbered = {int(number): clean_name(str(name)) for number, name in names.items()}
        except ValueError as error:  # Of thousands of digits.
            raise ValueError(f'{path}: "names" has a key that is not a class number: {error}') from error
        last = max(numbered, default=0)
        if min(numbered, default=0) < 0 or last > len(numbered) + _MOST_UNNAMED:
            raise ValueError(
                f'{path}: "names" has the class number {min(min(numbered), 0) or last}, but {len(numbered)} names. '
                f"Numbers count from 0, and at most {_MOST_UNNAMED} may have no name"
            )
        found = [numbered.get(number) or f"class {number}" for number in range(max(numbered, default=-1) + 1)]
    elif isinstance(names, list):
        found = [clean_name(str(name)) or f"class {number}" for number, name in enumerate(names)]
    elif names is None:
        return None
    else:
        raise ValueError(f'{path}: "names" is a {type(names).__name__}, not a list or a mapping of numbers to names')
    if count is not None and count != len(found):
        report.add("class_count_differs", f'{path}: "nc" is {count}, "names" holds {len(found)}')
    return found


def _class_count(content: dict) -> int | None:
    """The number of classes that data.yaml states ("nc"); `true` is none."""
    count = content.get("nc")
    return count if type(count) is int else None


def without_folders(path: str) -> str:
    return os.path.basename(path) or path


def _folder(base: str, value: object) -> str | None:
    """A folder or list that data.yaml names: an existing path inside `base`, else None."""
    text = str(value).replace("\\", "/")
    candidates = [text] if text.startswith("/") else [f"{base}/{text}"]
    if text.startswith("../"):  # As exported by a well-known tool: meant from a folder that is not there.
        candidates.append(f"{base}/{text[3:]}")
    for candidate in candidates:
        path = os.path.normpath(candidate)
        inside, outer = (os.path.join(os.path.realpath(fs_path(folder)), "") for folder in (path, base))
        if os.path.exists(fs_path(path)) and inside.startswith(outer):
            return path
    return None


def swap_last(path: str, old: str, new: str) -> str | None:
    """`path` with its last component `old` replaced, or None if it has none."""
    parts = path.split("/")
    for position in range(len(parts) - 1, -1, -1):
        if parts[position] == old:
            return "/".join([*parts[:position], new, *parts[position + 1 :]])
    return None


def _listed_images(path: str, base: str, report: Report) -> list[str]:
    """The images of a txt list, relative to `base`; those that are not there by the end of their name, if it fits."""
    folder = os.path.relpath(os.path.dirname(path), base)
    stated: list[tuple[str, str, StatedImage]] = []
    has_all = True
    for number, line in enumerate(read_list(path), start=1):
        text = line.strip().replace("\\", "/")
        if not text:
            continue
        name = text[len(base) + 1 :] if text.startswith(f"{base}/") else text
        from_list = os.path.normpath(os.path.join(folder, name)).replace(os.sep, "/")
        exists = os.path.isfile(fs_path(f"{base}/{name}")) and not name.startswith(("../", "/"))
        if not exists and not from_list.startswith(("../", "/")) and os.path.isfile(fs_path(f"{base}/{from_list}")):
            name, exists = from_list, True
        has_all = has_all and exists
        stated.append((f"{without_folders(path)}: line {number} ", text, StatedImage(name)))
    if not stated:
        raise ValueError(f"the list of images {path} is empty")
    matched = MatchedImages() if has_all else match_images(base, [image for _, _, image in stated], report)
    names: dict[str, None] = {}
    for where, text, image in stated:
        if image in matched.ambiguous:  # Counted already.
            continue
        try:
            name = matched.names.get(image) or relative_name(image.name)
        except ValueError as error:
            report.add("unsafe_path", f"{where}{text[:100]!r} {error}", image=text[:100])
            continue
        if name in names:
            report.add("duplicate_entry", f"{where}{name}")
        names[name] = None
    return list(names)


def _yaml_layout(path: str, content: dict, split: str | None, report: Report) -> YoloLayout | None:
    """The layout that data.yaml states; None if the places it names do not exist in its folder."""
    folder = os.path.dirname(path)
    aliases = [key for key in SPLIT_ALIASES if not isinstance(content.get(key), dict)]  # Settings of a training.
    stated = [key for key in (*SPLITS, *aliases) if content.get(key)]
    if split is not None:
        stated = [key for key in stated if key in names_of_split(split)]
        if split not in stated and content.get(split):
            stated = [split]
    if not stated:
        return None
    values = [(key, v) for key in stated for v in (content[key] if isinstance(content[key], list) else [content[key]])]
    bases = [_folder(folder, content["path"]) if content.get("path") else None, folder]
    base = max(filter(None, bases), key=lambda base: sum(_folder(base, value) is not None for _, value in values))
    images: dict[str, str] = {}
    complete, sources = True, [path]
    for key, value in values:
        place = _folder(base, value)
        if place is None:
            report.add("yaml_path", f"{without_folders(path)}: {key}: {value}")
            continue
        if os.path.isfile(fs_path(place)):
            complete = False
            sources.append(place)
            found = _listed_images(place, base, report)
        else:
            inner = os.path.relpath(place, base).replace(os.sep, "/")
            found = [name if inner == "." else f"{inner}/{name}" for name in walk_files(place, IMAGE_SUFFIXES)]
        for name in found:
            images.setdefault(name, SPLIT_ALIASES.get(key, key))
    if not images:
        return None
    prefix = f"{IMAGES_FOLDER}/"
    if all(name.startswith(prefix) for name in images):
        splits = {name[len(prefix) :]: key for name, key in images.items()}
        labels = [f"{base}/{LABELS_FOLDER}"]
        return YoloLayout(f"{base}/{IMAGES_FOLDER}", list(splits), labels, complete, sources=sources, splits=splits)
    return YoloLayout(base, list(images), complete=complete, sources=sources, splits=images)


def _plain_layout(root: str, images: str | None, split: str | None, report: Report) -> YoloLayout:
    """The layout of a folder of images and labels."""
    label_roots = []
    if images is not None:
        swapped = swap_last(images, IMAGES_FOLDER, LABELS_FOLDER)
        label_roots = [f"{root}/{LABELS_FOLDER}", root, *([swapped] if swapped else [])]
    elif next(walk_files(f"{root}/{IMAGES_FOLDER}", IMAGE_SUFFIXES), None) is not None:
        images, label_roots = f"{root}/{IMAGES_FOLDER}", [f"{root}/{LABELS_FOLDER}"]
    else:
        swapped = swap_last(root, LABELS_FOLDER, IMAGES_FOLDER)
        if swapped and os.path.isdir(fs_path(swapped)):
            images, label_roots = swapped, [root]
        else:
            images = root
            swapped = swap_last(root, IMAGES_FOLDER, LABELS_FOLDER)
            label_roots = [swapped] if swapped else []
    label_roots = [
        folder for folder in dict.fromkeys(label_roots) if os.path.isdir(fs_path(folder)) and folder != images
    ]
    if split is None:
        return YoloLayout(images, list(walk_files(images, IMAGE_SUFFIXES)), label_roots)

    try:
        split = relative_name(split)
    except ValueError as error:
        raise ValueError(f"the split name {split!r} {error}; pass the name of a folder or list") from error
    inner = folder_of_split(images, split)
    if inner is not None:
        names = [f"{inner[len(images) + 1 :]}/{name}" for name in walk_files(inner, IMAGE_SUFFIXES)]
        return YoloLayout(images, names, label_roots)
    for path in (f"{folder}/{name}.txt" for folder in (root, images) for name in names_of_split(split)):
        if os.path.isfile(fs_path(path)):
            names = _listed_images(path, root, report)
            return YoloLayout(root, names, [], complete=False, sources=[path])
    there = sorted(
        unicode_name(item.name)
        for folder in {root, images}
        for item in os.scandir(fs_path(folder))
        if item.is_dir() or item.name in OTHER_TXT_FILES[1:]
    )
    raise FileNotFoundError(
        f"no split {split!r} in {root} (looked for the folder {images}/{split} and the list {split}.txt). "
        f"There are: {', '.join(there) or 'no folders'}. Pass split=None for every image"
    )


def find_yaml(root: str) -> str | None:
    """The data.yaml of a folder: by its usual names, else the only yaml file with "names" or "train"."""
    for name in YAML_FILES:
        if os.path.isfile(fs_path(f"{root}/{name}")):
            return f"{root}/{name}"
    others = [path for path in walk_files(root, (".yaml", ".yml"), deep=False)]
    for name in others if len(others) == 1 else []:
        try:
            content = read_yaml(f"{root}/{name}")
        except ValueError:
            return None
        return f"{root}/{name}" if "names" in content or "train" in content else None
    return None


def _read_names(path: str) -> list[str]:
    """The names in classes.txt: the line is the class number, so a line without a name counts too."""
    lines = [clean_name(line) for line in read_list(path)]
    while lines and not lines[-1]:
        lines.pop()
    return [line or f"class {number}" for number, line in enumerate(lines)]


def find_layout(
    root: str | os.PathLike, options: ReadOptions, report: Report, images: str | os.PathLike | None = None
) -> YoloLayout:
    """Find images, label folders and class names.

    Args:
        root: folder of the dataset, its folder of labels, or data.yaml.
        options: `split` is "train", "val" or "test" of data.yaml, a folder inside that of the images, or a txt list;
            None: all images. With `keep_missing` and without any image, there is one to each label file, named NAME.*
        report: counts problems.
        images: another folder of the images than the usual one.

    Raises:
        FileNotFoundError: no such folder or split, or no image.
        ValueError: data.yaml or a list is not valid.
    """
    root = unicode_path(root)
    images = None if images is None else unicode_path(images)
    for folder in filter(None, (root, images)):
        if not os.path.exists(fs_path(folder)):
            raise FileNotFoundError(f"YOLO folder not found: {folder}. Pass the folder with images/ and labels/")
    yaml_path = root if os.path.isfile(fs_path(root)) else None
    root = os.path.dirname(root) if yaml_path else root
    above = os.path.dirname(root) if os.path.basename(root) in (LABELS_FOLDER, IMAGES_FOLDER) else root
    yaml_path = yaml_path or find_yaml(root) or find_yaml(above)
    content = read_yaml(yaml_path) if yaml_path else {}

    layout = None
    if yaml_path and images is None:
        layout = _yaml_layout(yaml_path, content, options.split, report)
    if layout is None:
        layout = _plain_layout(root, images, options.split, report)
    if yaml_path:
        layout.sources = list(dict.fromkeys([yaml_path, *layout.sources]))
        layout.names = _yaml_names(content, yaml_path, report)
        layout.keypoints = _num_keypoints(content)
        layout.rotated_boxes = content.get("task") == "obb"
    if layout.names is None:
        _add_class_list(
            layout, [root, *layout.label_roots, f"{root}/{LABELS_FOLDER}", above, layout.image_folder], options, report
        )
    count = _class_count(content) or 0
    if layout.names is None and count > 0:
        if count > _MOST_UNNAMED:
            raise ValueError(f'{yaml_path}: "nc" is {count}, but at most {_MOST_UNNAMED} classes may have no name')
        layout.names = [f"class {number}" for number in range(count)]
    if not layout.images and options.keep_missing:
        _take_images_from_labels(layout, [*layout.label_roots, f"{root}/{LABELS_FOLDER}", root])
    if not layout.images:
        outside = bool(yaml_path and content.get("path"))
        hint = f" ({without_folders(yaml_path or '')} names {content['path']}, outside its folder)" if outside else ""
        raise FileNotFoundError(
            f"no image in {layout.image_folder}{hint}. Pass images=... (the folder of the images; suffixes "
            f"{', '.join(IMAGE_SUFFIXES)})"
        )
    return layout


def _num_keypoints(content: dict) -> int:
    """Numbers per line that data.yaml says are keypoints."""
    shape = content.get("kpt_shape")
    if isinstance(shape, list) and len(shape) == 2 and all(type(number) is int for number in shape):
        return shape[0] * shape[1]
    return 0


def _class_files(folder: str | None) -> list[str]:
    """The lists of class names in a folder."""
    files = [] if folder is None else [f"{folder}/{name}" for name in CLASS_FILES]
    return [path for path in files if os.path.isfile(fs_path(path))]


def _add_class_list(layout: YoloLayout, folders: list[str], options: ReadOptions, report: Report) -> None:
    """Take the class names from the first list in one of the folders, else from those of the splits, if all agree."""
    files = [path for folder in dict.fromkeys(folders) for path in _class_files(folder)]
    of_splits = [path for split in SPLITS for path in _class_files(folder_of_split(layout.image_folder, split))]
    for path in files or of_splits:
        try:
            names = _read_names(path)
            other = next((other for other in of_splits if not files and _read_names(other) != names), None)
            if other is not None:
                raise ValueError(
                    f"{path} and {other} list different classes. Write one {CLASS_FILES[0]} beside the splits"
                )
        except ValueError as error:
            if options.masks or not (options.keep_unlisted and options.classes is None):
                raise
            report.add("unreadable_class_list", str(error))
            continue
        layout.names = names
        layout.sources.append(path)
        return


def _take_images_from_labels(layout: YoloLayout, folders: list[str]) -> None:
    """Name one image for each label file of the first folder that holds some."""
    for folder in dict.fromkeys(folders):
        names = [name for name in txt_names(folder) if without_folders(name).lower() not in OTHER_TXT_FILES]
        if names:
            layout.images = [f"{os.path.splitext(name)[0]}.*" for name in names]
            layout.label_roots, layout.complete = [folder], False
            return


def txt_names(folder: str) -> list[str]:
    """Relative names of the txt files below a folder."""
    return list(walk_files(folder, (".txt",)))
