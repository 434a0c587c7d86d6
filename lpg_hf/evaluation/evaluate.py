"""Masks against ground truth: two folders of label maps, or two COCO files (`lpg-hf eval`).

Nothing is skipped in silence: masks without a partner, and files or masks that cannot be used, are counted and named.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean

import numpy as np
from pycocotools import mask as coco_mask
from tqdm import tqdm

from lpg_hf._class_lists import Colour, colours_of_maps, read_class_list
from lpg_hf._files import fs_path, link_out
from lpg_hf._rle import Rle, encode_mask
from lpg_hf._threads import prefetch
from lpg_hf.data._formats.coco import id_text, read_categories
from lpg_hf.data._formats.json_files import read_json
from lpg_hf.data._formats.rle import checked_rle, segmentation_to_rle
from lpg_hf.data._painting import crowd_pixels
from lpg_hf.data.records import BoxObject, Geometry, finite_numbers, stated_size
from lpg_hf.data.report import Report
from lpg_hf.images import MAX_PIXELS
from lpg_hf.label_maps import IGNORE_INDEX_16, no_class_message, read_label_map
from lpg_hf.labels import IGNORE_INDEX
from lpg_hf.metrics.box_masks import BoxMaskScores


MAX_NAMED = 10
# Two boxes are the same object's if no side differs by more pixels than this.
BOX_TOLERANCE = 1.0
# Pairs of boxes that are compared at a time, and that may lie at one place: 32 and 240 MB.
_PAIRS_AT_ONCE = 4_000_000
_MOST_CLOSE_PAIRS = 10_000_000


@dataclass
class Evaluation:
    """Scores and what they rest on.

    Attributes:
        kind: "label_maps" or "box_masks".
        scores: `mean_iou` (with background) and `foreground_mean_iou` of label maps, or `mean_box_iou`,
            `mean_boundary_iou` and `foreground_iou` of box masks; in [0, 1], None where nothing was counted.
        per_class: class name -> IoU, or None for a class that occurs nowhere.
        num_scored: pairs of files, or of masks, in the scores.
        matched_by: how pairs were found.
        missing: ground truth without a prediction.
        extra: predictions without ground truth.
        bad: files or masks that cannot be used, with the reason; they are in no score.
        notes: further remarks.
    """

    kind: str
    scores: dict[str, float | None]
    per_class: dict[str, float | None]
    num_scored: int
    matched_by: str
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict:
        """For a json file; the lists are complete."""
        return {
            "kind": self.kind,
            **self.scores,
            "per_class_iou": self.per_class,
            "num_scored": self.num_scored,
            "matched_by": self.matched_by,
            "missing": self.missing,
            "extra": self.extra,
            "bad": self.bad,
            "notes": self.notes,
        }

    def text(self) -> str:
        """A table of percentages, then what was skipped."""
        width = max((len(name) for name in [*_TITLES.values(), *self.per_class]), default=0)
        lines = [f"{name:<{width}}  {_percent(value):>6}" for name, value in self.per_class.items()]
        lines += ["-" * (width + 8)] if lines else []
        lines += [f"{_TITLES[key]:<{width}}  {_percent(value):>6}" for key, value in self.scores.items()]
        what = "label maps" if self.kind == "label_maps" else "box masks"
        lines.append(f"{self.num_scored} {what}, matched by {self.matched_by}")
        for title, names in (
            ("ground truth without a prediction", self.missing),
            ("predictions without ground truth", self.extra),
            ("skipped, cannot be used", self.bad),
        ):
            if names:
                shown = "\n".join(f"  {name}" for name in names[:MAX_NAMED])
                more = f"\n  ... and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
                lines.append(f"{title}: {len(names)}\n{shown}{more}")
        return "\n".join(lines + self.notes)


_TITLES = {
    "mean_iou": "mIoU with background",
    "foreground_mean_iou": "mIoU of the classes",
    "mean_box_iou": "mean IoU per box",
    "mean_boundary_iou": "mean boundary IoU per box",
    "foreground_iou": "foreground IoU",
}


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def evaluate(
    prediction: str | os.PathLike,
    truth: str | os.PathLike,
    *,
    classes: str | os.PathLike | Sequence[str] | None = None,
    ignore: int | None = None,
    num_workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
    object_value: int | None = None,
) -> Evaluation:
    """Compare two folders of label maps, or two COCO files.

    Args:
        prediction: folder of label maps, or COCO json (a whole file, or the bare list of results).
        truth: the same kind.
        classes: names in the order of the labels, or a text file with one per line (or CVAT's labelmap.txt); None:
            numbers (label maps), or the categories of the ground truth. With COCO files, only these categories are
            compared. Ground truth in colours is read by the labelmap.txt in its folder or in the one above.
        ignore: value of the ground truth that counts nowhere; None: 255, in 16-bit maps 65535. In a prediction it
            counts as background. For label maps only.
        num_workers: threads; None: one per core, at most 8.
        max_pixels: larger label maps, and masks of images that a file states to be larger, are skipped.
        object_value: the label maps of the ground truth mark one class with this value: it becomes the label 1. The
            predictions' too, if none of them holds a label.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: two kinds, no pair at all, unknown classes, `ignore` that is the label of one of `classes`, or
            ground truth without a pixel of any class.
    """
    kinds = []
    for path in (prediction, truth):
        if not os.path.exists(fs_path(path)):
            raise FileNotFoundError(f"{path} does not exist. Pass a folder of label maps or a COCO json.")
        kinds.append(os.path.isdir(fs_path(path)))
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"{prediction} is a {'folder' if kinds[0] else 'file'}, but {truth} is a "
            f"{'folder' if kinds[1] else 'file'}. "
            "Pass two folders of label maps, or two COCO json files."
        )
    names, colours = class_list(classes), None
    if kinds[0]:
        names, colours = colours_of_maps(truth, names)
    num_workers = num_workers or min(8, os.cpu_count() or 1)
    if kinds[0] and names is not None and ignore is not None and 1 <= ignore <= len(names):
        raise ValueError(
            f"ignore={ignore} (--ignore) is the label of the class {names[ignore - 1]!r}, which would be in no "
            f"score. Choose "
            f"a value above {len(names)}, which is no class."
        )
    if kinds[0]:
        limits = _LabelMapOptions(names, ignore, max_pixels, object_value, colours=colours)
        return _evaluate_label_maps(prediction, truth, limits, num_workers)
    if object_value is not None:
        raise ValueError(f"object_value={object_value} (--object-value) is for folders of label maps. Leave it out")
    return _evaluate_coco(prediction, truth, names, num_workers, max_pixels)


def class_list(classes: str | os.PathLike | Sequence[str] | None) -> list[str] | None:
    """Names from a list, a comma-separated text, or a file with one per line.

    Raises:
        ValueError: no names, or a name twice.
    """
    if classes is None or not isinstance(classes, (str, os.PathLike)):
        return None if classes is None else list(classes)
    if os.path.isfile(fs_path(classes)):
        return read_class_list(classes)
    names = [name.strip() for name in str(classes).split(",") if name.strip()]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"classes {str(classes)!r} is neither a file nor a comma-separated list of unique names.")
    return names


def _map_in_threads(function: Callable, items: Sequence, num_workers: int, description: str) -> Iterator:
    """`prefetch` with a progress bar."""
    results = prefetch(function, items, num_workers)
    return iter(tqdm(results, desc=description, total=len(items), disable=None, leave=False))


# --- label maps ------------------------------------------------------------------------------------------------------


class LabelPairs:
    """Pixels per pair of true and predicted label.

    Only labels that occur take memory, so 16-bit labels need no huge matrix.
    """

    def __init__(self) -> None:
        self._pixels: dict[int, int] = defaultdict(int)  # true label << 16 | predicted label -> pixels

    @staticmethod
    def count(predicted: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The counts of some pixels, for `add`; any thread may make them.

        Args:
            predicted: labels below 65536, of any shape, without pixels that count nowhere.
            true: the same pixels.
        """
        return np.unique(true.astype(np.uint32) << 16 | predicted.astype(np.uint32), return_counts=True)

    def add(self, counts: tuple[np.ndarray, np.ndarray]) -> None:
        for code, pixels in zip(*(array.tolist() for array in counts)):
            self._pixels[code] += pixels

    @property
    def labels(self) -> tuple[set[int], set[int]]:
        """(predicted labels, true labels) that occur."""
        return {code & 0xFFFF for code in self._pixels}, {code >> 16 for code in self._pixels}

    def compute(self) -> tuple[dict[str, float | None], dict[int, float | None]]:
        """(`mean_iou` with background and `foreground_mean_iou` without, label -> IoU of the labels that occur).

        The same as `metrics.mean_iou.ConfusionMatrix`, whose module imports transformers and torch.
        """
        shared, true, predicted = Counter(), Counter(), Counter()
        for code, pixels in self._pixels.items():
            true[code >> 16] += pixels
            predicted[code & 0xFFFF] += pixels
            if code >> 16 == code & 0xFFFF:
                shared[code & 0xFFFF] += pixels
        iou: dict[int, float | None] = {
            i: shared[i] / (true[i] + predicted[i] - shared[i]) for i in sorted({*true, *predicted})
        }
        foreground = [value for label, value in iou.items() if label != 0 and value is not None]
        scores = {"mean_iou": mean(value for value in iou.values() if value is not None) if iou else None}
        return scores | {"foreground_mean_iou": mean(foreground) if foreground else None}, iou


@dataclass(frozen=True)
class _LabelMapOptions:
    """Arguments of `evaluate`; `of_prediction`: the `object_value` of the predictions; `colours`: of the truth."""

    classes: Sequence[str] | None = None
    ignore: int | None = None
    max_pixels: int = MAX_PIXELS
    object_value: int | None = None
    of_prediction: int | None = None
    colours: Mapping[Colour, int] | None = None


def _evaluate_label_maps(
    prediction: str | os.PathLike, truth: str | os.PathLike, options: _LabelMapOptions, num_workers: int = 4
) -> Evaluation:
    """mIoU over label maps (PNG) with the same relative path in two folders.

    Raises:
        ValueError: a folder without label maps, no pair that can be compared, or ground truth without a pixel of any
            class.
    """
    classes = options.classes
    predicted, true = _label_map_names(prediction), _label_map_names(truth)
    both = sorted(predicted & true)
    if not both:
        raise ValueError(
            f"no label map of {prediction} has the relative path of one in {truth}: "
            f"{min(predicted)} there, {min(true)} here. Pass the folders that hold the same tree."
        )
    pairs, bad, num_scored, num_void = LabelPairs(), [], 0, 0

    def count(name: str) -> tuple[tuple[np.ndarray, np.ndarray], int] | str:
        try:
            predicted_path, true_path = (os.path.join(os.fspath(folder), name) for folder in (prediction, truth))
            return _count_pairs(predicted_path, true_path, options)
        except (OSError, ValueError) as error:
            return f"{name}: {error}"

    for counted in _map_in_threads(count, both, num_workers, "label maps"):
        if isinstance(counted, str):
            bad.append(counted)
            continue
        num_scored += 1
        num_void += counted[1] > 0
        pairs.add(counted[0])
    if not num_scored:
        raise ValueError(f"none of the {len(both)} pairs of label maps can be compared, such as {bad[0]}")
    predicted_labels, true_labels = pairs.labels
    if not true_labels - {0}:
        raise ValueError(no_class_message(f"the ground truth {truth}"))
    if options.object_value is not None and num_void and not predicted_labels - {0}:
        both_sides = replace(options, of_prediction=options.object_value)
        return _evaluate_label_maps(prediction, truth, both_sides, num_workers)
    scores, ious = pairs.compute()
    if classes is None:
        per_class = {"background" if label == 0 else str(label): iou for label, iou in ious.items()}
    else:
        per_class = {name: ious.get(label) for label, name in enumerate(["background", *classes])}
    notes = [f"{num_void} predictions hold the ignored value, which counts as background"] if num_void else []
    links = [
        path for folder in (prediction, truth) for name in both if link_out(path := f"{os.fspath(folder)}/{name}")
    ]
    if links:
        notes.append(f"{len(links)} label maps are links to files elsewhere, e.g. {links[0]} -> {link_out(links[0])}")
    return Evaluation(
        "label_maps",
        scores,
        per_class,
        num_scored,
        "relative path",
        sorted(true - predicted),
        sorted(predicted - true),
        bad,
        notes,
    )


def _label_map_names(folder: str | os.PathLike) -> set[str]:
    root = Path(fs_path(folder))
    names = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.suffix.lower() == ".png"}
    if not names:
        jpegs = any(path.suffix.lower() in (".jpg", ".jpeg") for path in root.rglob("*"))
        reason = "; its JPEG files cannot hold labels exactly. Make them again as PNG" if jpegs else ""
        raise ValueError(f"{folder} holds no label map (.png){reason}.")
    return names


def _count_pairs(prediction: str, truth: str, options: _LabelMapOptions) -> tuple[tuple[np.ndarray, np.ndarray], int]:
    """(counts of `LabelPairs`, predicted pixels of the ignored value) of one pair of files."""
    classes, ignore = options.classes, options.ignore
    predicted = read_label_map(prediction, options.max_pixels, options.of_prediction)
    true = read_label_map(truth, options.max_pixels, options.object_value, options.colours)
    if predicted.shape != true.shape:
        sizes = [
            f"{path} is {shape[1]} x {shape[0]}"
            for path, shape in ((prediction, predicted.shape), (truth, true.shape))
        ]
        raise ValueError(
            f"the sizes (width x height) differ: {sizes[0]}, {sizes[1]}. Label maps are never resized here"
        )
    void = [ignore if ignore is not None else default_ignore(array) for array in (predicted, true)]
    num_void = int((predicted == void[0]).sum())
    counts = true != void[1]
    predicted = np.where(predicted == void[0], 0, predicted)
    if classes is not None:
        for path, values in ((prediction, predicted), (truth, true[counts])):
            if values.size and values.max() > len(classes):
                raise ValueError(f"{path} holds the label {values.max()}, but there are {len(classes)} classes")
    return LabelPairs.count(predicted[counts], true[counts]), num_void


def default_ignore(array: np.ndarray) -> int:
    """The ignored value of a label map of this type: 255, or 65535 with 16 bits."""
    return IGNORE_INDEX if array.dtype == np.uint8 else IGNORE_INDEX_16


# --- COCO files ------------------------------------------------------------------------------------------------------


@dataclass
class _Instance:
    """One annotation of a file."""

    annotation_id: str | None
    image: str
    category: str
    box: list[float] | None
    content: dict

    @property
    def is_crowd(self) -> bool:
        return self.content.get("iscrowd") in (1, True, "1")

    @property
    def key(self) -> tuple[str, str, str | None]:
        return self.image, self.category, self.annotation_id

    @property
    def place(self) -> str:
        return f"image {self.image}, annotation {self.annotation_id or self.box or '(no id)'}"


@dataclass
class _CocoFile:
    path: str
    content: dict
    instances: list[_Instance]
    sizes: dict[str, tuple[int, int]]  # image -> (height, width)
    crowds: list[_Instance]
    max_pixels: int = MAX_PIXELS


@dataclass
class _CocoPair:
    """Two COCO files with the masks that are compared.

    Attributes:
        names: classes that are compared; their labels count from 1.
        objects: all objects of the ground truth, whatever their class.
        bad: annotations of the ground truth that cannot be used.
    """

    predicted: _CocoFile
    true: _CocoFile
    names: list[str]
    objects: list[_Instance]
    bad: list[str]


def _evaluate_coco(
    prediction: str | os.PathLike,
    truth: str | os.PathLike,
    classes: Sequence[str] | None,
    num_workers: int,
    max_pixels: int,
) -> Evaluation:
    """Masks of two COCO files, box by box; arguments as of `evaluate`.

    Pairs have the same annotation id, if every prediction has an id that the ground truth has for the same image and
    category. If not, they are boxes of the same image and category that agree to a pixel, the closest first. Crowd
    regions are no partners: their pixels in the ground truth that none of its objects covers count nowhere.

    Raises:
        ValueError: a file that is not a COCO file, unknown classes, or no pair at all.
    """
    files = _read_pair(prediction, truth, classes)
    files.true.max_pixels = files.predicted.max_pixels = max_pixels
    pairs, matched_by = _match(files.predicted.instances, files.true.instances)
    if not pairs:
        raise ValueError(
            f"no mask of {prediction} has a partner in {truth}: neither annotation ids nor boxes of an image agree. "
            "Both files must be of the same images."
        )
    scores, bad = _score_pairs(files, pairs, num_workers)
    if len(bad) == len(pairs):
        raise ValueError(f"no pair of {prediction} and {truth} has masks that can be compared, for example: {bad[0]}.")
    computed, matched = scores.compute(), {id(instance) for pair in pairs for instance in pair}
    num_crowds = len(files.true.crowds) + len(files.predicted.crowds)
    return Evaluation(
        "box_masks",
        {key: computed[key] for key in ("mean_box_iou", "mean_boundary_iou", "foreground_iou")},
        {name: computed["per_class_iou"].get(label) for label, name in enumerate(files.names, start=1)},
        scores.num_boxes,
        matched_by,
        [instance.place for instance in files.true.instances if id(instance) not in matched],
        [instance.place for instance in files.predicted.instances if id(instance) not in matched],
        files.bad + bad,
        [f"{num_crowds} crowd regions take no part"] if num_crowds else [],
    )


def _read_pair(prediction: str | os.PathLike, truth: str | os.PathLike, classes: Sequence[str] | None) -> _CocoPair:
    content = _read_coco_json(truth)
    if isinstance(content, list):
        raise ValueError(
            f"{truth} is a bare list of results; ground truth has images and categories. Swap the arguments?"
        )
    names = {str(category_id): name for category_id, name in read_categories(content, truth, Report())}
    if classes is not None and not set(classes) <= set(names.values()):
        unknown = sorted(set(classes) - set(names.values()))
        raise ValueError(f"classes {unknown} are not in {truth}; it holds: {', '.join(names.values())}")
    true = _read_instances(truth, content, names)
    predicted = _read_predictions(prediction, true, names)
    listed = set(names.values())
    bad = [f"{truth}: {i.place}: no category {i.category}" for i in true.instances if i.category not in listed]
    objects = true.instances
    true.instances = [instance for instance in true.instances if instance.category in listed]
    if classes is not None:
        for file in (true, predicted):
            file.instances = [instance for instance in file.instances if instance.category in classes]
    wanted = list(dict.fromkeys(names.values() if classes is None else classes))
    return _CocoPair(predicted, true, wanted, objects, bad)


def _score_pairs(
    files: _CocoPair, pairs: list[tuple[_Instance, _Instance]], num_workers: int
) -> tuple[BoxMaskScores, list[str]]:
    """(scores of pairs of a predicted and a true instance, what cannot be used)."""
    true, predicted = files.true, files.predicted
    label_of = {name: label for label, name in enumerate(files.names, start=1)}
    by_image: dict[str, list[tuple[_Instance, _Instance]]] = defaultdict(list)
    for pair in pairs:
        by_image[pair[1].image].append(pair)
    crowds, objects = (_by_image(instances) for instances in (true.crowds, files.objects))

    def score(image: str) -> tuple[BoxMaskScores, list[str]]:
        scores, bad = BoxMaskScores(), []
        size = true.sizes.get(image)
        void = _void(crowds[image], objects[image], size, true) if image in crowds else None
        for instance, target in by_image[image]:
            try:
                target_rle = _mask_of(target, size, true)
                height, width = target_rle["size"]
                predicted_rle = _mask_of(instance, (height, width), predicted, may_be_empty=True)
                scores.update(predicted_rle, target_rle, label_of[target.category], void)
            except ValueError as error:
                bad.append(str(error))
        return scores, bad

    total, bad = BoxMaskScores(), []
    for scores, image_bad in _map_in_threads(score, list(by_image), num_workers, "images"):
        total.merge(scores)
        bad += image_bad
    return total, bad


def _read_coco_json(path: str | os.PathLike) -> dict | list:
    """A whole COCO file, or the bare list of results that COCO's own tools write."""
    content = read_json(path, bare_list=True)
    annotations = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(annotations, list):
        raise ValueError(f'{path} is not a COCO annotation file: it has no list "annotations".')
    if isinstance(content, dict) and not isinstance(content.get("images") or [], list):
        raise ValueError(f'{path} is not a COCO annotation file: its "images" are no list.')
    return content


def _read_predictions(path: str | os.PathLike, true: _CocoFile, names: dict[str, str]) -> _CocoFile:
    content = _read_coco_json(path)
    if isinstance(content, list):
        content = {"images": true.content.get("images"), "annotations": content}
    elif isinstance(content.get("categories"), list) and content["categories"]:
        names = {str(category_id): name for category_id, name in read_categories(content, path, Report())}
    return _read_instances(path, content, names)


def _read_instances(path: str | os.PathLike, content: dict, names: dict[str, str]) -> _CocoFile:
    """Images are known by their file names where the file has them, so that files with other ids meet."""
    images, sizes = {}, {}
    for image in content.get("images") or []:
        key = id_text(image.get("id")) if isinstance(image, dict) else None
        if key is not None:
            name = str(image.get("file_name") or key).replace("\\", "/")
            if images.get(key, name) != name:
                raise ValueError(
                    f"{path}: the images {images[key]!r} and {name!r} have one id, {key}. Correct the file"
                )
            images[key] = name
            size = stated_size(image.get("height"), image.get("width"))
            if size is not None:
                sizes[images[key]] = size
    instances, crowds = [], []
    for annotation in content["annotations"]:
        if not isinstance(annotation, dict):
            raise ValueError(f"{path}: an annotation is a {type(annotation).__name__}, not an object.")
        image, category = str(id_text(annotation.get("image_id"))), str(id_text(annotation.get("category_id")))
        instance = _Instance(
            id_text(annotation.get("id")),
            images.get(image, image),
            names.get(category, category),
            finite_numbers(annotation.get("bbox"), 4),
            annotation,
        )
        (crowds if instance.is_crowd else instances).append(instance)
    return _CocoFile(os.fspath(path), content, instances, sizes, crowds)


def _match(predicted: list[_Instance], true: list[_Instance]) -> tuple[list[tuple[_Instance, _Instance]], str]:
    """(pairs, how they were found)."""
    # Files that number their objects anew share ids by chance, but not on the same images with the same categories.
    by_id = {instance.key: instance for instance in true if instance.annotation_id}
    keys = [instance.key for instance in predicted]
    if len(by_id) == len(true) and len(set(keys)) == len(keys) and all(key in by_id for key in keys):
        return [(instance, by_id[key]) for instance, key in zip(predicted, keys)], "annotation id"
    here, there = (_by_image_and_category(instances) for instances in (predicted, true))
    pairs = []
    for key in here.keys() & there.keys():
        boxes, targets = (np.array([instance.box for instance in group[key]]) for group in (here, there))
        close_here, close_there, distance = _close_boxes(boxes, targets, f"image {key[0]}, category {key[1]}")
        free_here, free_there = set(range(len(boxes))), set(range(len(targets)))
        for number in np.argsort(distance, kind="stable"):
            i, j = int(close_here[number]), int(close_there[number])
            if i in free_here and j in free_there:
                pairs.append((here[key][i], there[key][j]))
                free_here.remove(i)
                free_there.remove(j)
    order = {id(instance): i for i, instance in enumerate(true)}
    return sorted(pairs, key=lambda pair: order[id(pair[1])]), "image and box (the annotation ids differ)"


def _close_boxes(boxes: np.ndarray, targets: np.ndarray, place: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(positions in `boxes`, positions in `targets`, distance) of all pairs within the tolerance, by position.

    Args:
        boxes: (N, 4) xywh; targets: (M, 4). The table of all pairs is never in memory.

    Raises:
        ValueError: more boxes lie at one place than can be told apart.
    """
    corners = [np.concatenate([array[:, :2], array[:, :2] + array[:, 2:]], axis=1) for array in (boxes, targets)]
    found, total = [], 0
    for here, there in _neighbours(*corners):
        distance = np.zeros((len(here), len(there)))
        for side in range(4):
            difference = np.subtract.outer(corners[0][here, side], corners[1][there, side])
            np.maximum(distance, np.abs(difference), out=distance)
        rows, columns = np.nonzero(distance <= BOX_TOLERANCE)
        found.append((here[rows], there[columns], distance[rows, columns]))
        total += len(rows)
        if total > _MOST_CLOSE_PAIRS:
            raise ValueError(
                f"{place}: {len(boxes)} boxes of the predictions and {len(targets)} of the ground truth lie at one "
                "place, so that they cannot be matched by their boxes. Give both files the same annotation ids."
            )
    here, there, distances = (np.concatenate(arrays) for arrays in zip(*found))
    order = np.lexsort((there, here)) if len(found) > 1 else slice(None)
    return here[order], there[order], distances[order]


def _neighbours(boxes: np.ndarray, targets: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Groups of boxes and targets, as positions, that hold every pair within the tolerance once.

    Targets are halved along the side on which they differ most until a group has few enough pairs for a table.

    Args:
        boxes: (N, 4) xyxy; targets: (M, 4).
    """
    waiting = [(np.arange(len(boxes)), np.arange(len(targets)))]
    while waiting:
        here, there = waiting.pop()
        if len(here) * len(there) <= _PAIRS_AT_ONCE:
            yield here, there
            continue
        low, high = targets[there].min(axis=0), targets[there].max(axis=0)
        margin = 2 * BOX_TOLERANCE  # more than the tolerance, as numbers are rounded
        here = here[((boxes[here] >= low - margin) & (boxes[here] <= high + margin)).all(axis=1)]
        side = int((high - low).argmax())
        if high[side] - low[side] <= BOX_TOLERANCE / 4:
            step = max(1, _PAIRS_AT_ONCE // len(there))
            yield from ((here[start : start + step], there) for start in range(0, max(1, len(here)), step))
            continue
        values = targets[there, side]
        middle = np.median(values)
        is_low = values <= middle if middle < high[side] else values < middle
        waiting.append((here[boxes[here, side] >= middle - margin], there[~is_low]))
        waiting.append((here[boxes[here, side] <= middle + margin], there[is_low]))


def _by_image(instances: Iterable[_Instance]) -> dict[str, list[_Instance]]:
    groups = defaultdict(list)
    for instance in instances:
        groups[instance.image].append(instance)
    return groups


def _void(
    crowds: list[_Instance], objects: list[_Instance], size: tuple[int, int] | None, file: _CocoFile
) -> np.ndarray | None:
    """(H, W) bool: the crowd pixels of an image that no object covers; None if nothing in it has a mask."""
    painted = []
    for instance in [*crowds, *objects]:
        with suppress(ValueError):  # Objects whose mask cannot be used are reported where they are scored.
            rle = _mask_of(instance, size, file)
            size = rle["size"][0], rle["size"][1]
            painted.append(BoxObject((0, 0, 0, 0), 0, 0, iscrowd=instance.is_crowd, rle=rle))
    return crowd_pixels(painted, *size) if painted and size is not None else None


def _by_image_and_category(instances: Iterable[_Instance]) -> dict[tuple[str, str], list[_Instance]]:
    groups = defaultdict(list)
    for instance in instances:
        if instance.box is not None:
            groups[instance.image, instance.category].append(instance)
    return groups


def _mask_of(instance: _Instance, size: tuple[int, int] | None, file: _CocoFile, may_be_empty: bool = False) -> Rle:
    """RLE of an annotation.

    Args:
        size: (height, width) of the image; None: as the RLE says.

    Raises:
        ValueError: no mask that can be used, or one of another size.
    """
    segmentation, path = instance.content.get("segmentation"), file.path
    own = checked_rle(segmentation) if isinstance(segmentation, dict) else None
    if own is not None and size is not None and tuple(own["size"]) != size:
        raise ValueError(
            f"{path}: {instance.place}: the mask has (height, width) {tuple(own['size'])}, but the ground truth's "
            f"image {size}"
        )
    if size is None and own is not None:
        size = own["size"][0], own["size"][1]
    if size is None:
        raise ValueError(f"{path}: {instance.place}: the file does not state the image's height and width")
    if size[0] * size[1] > file.max_pixels:
        raise ValueError(
            f"{path}: {instance.place}: the image is stated to have {size[1]} x {size[0]} pixels, more than "
            f"max_pixels={file.max_pixels}"
        )
    if may_be_empty and (segmentation in (None, [], {}) or (own is not None and not coco_mask.area(own))):
        return encode_mask(np.zeros(size, dtype=bool))
    report = Report()
    rle = segmentation_to_rle(segmentation, Geometry(size), f"{path}: {instance.place}", report)
    if rle is None:
        reason = next(iter(report.places.values()))[0]
        raise ValueError(f"{reason}: no mask" if "no_mask" in report.counts else reason)
    return rle
