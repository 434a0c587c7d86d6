"""A small procedural dataset for the demo and the tests: auxiliary set with masks, target set with boxes.

Textured objects lie on textured, cluttered backgrounds among unlabelled distractors. The auxiliary and the target
classes are disjoint in shape and in texture, as COCO-60 and VOC are in the paper, and every shape fills its box badly,
so that a filled box is a poor pseudo mask. The same seed gives byte-identical files.

    ROOT/synthetic.json                       the settings that the folder was made with
    ROOT/aux/annotations.json, images/*.png   COCO with RLE masks
    ROOT/target/                              Pascal VOC: JPEGImages, Annotations, SegmentationClass,
                                              ImageSets/Segmentation/{train,val}.txt, classes.txt

Command: ``python -m lpg_hf.data.synthetic ROOT [--num-aux N ...]``
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from xml.etree import ElementTree

import cv2
import numpy as np
import typer
from PIL import Image

from lpg_hf._files import unfinished_folder
from lpg_hf._rle import encode_mask
from lpg_hf.labels import voc_palette


# Part of the stored settings: raise it when the same arguments draw other images.
GENERATOR_VERSION = 1
SETTINGS_FILE = "synthetic.json"
MIN_VISIBLE_FRACTION = 0.5
MIN_VISIBLE_PIXELS = 60

Plane = np.ndarray  # (H, W) float32


# --- shapes: signed "insideness" in object coordinates, u and v in about [-1, 1]; the object is where it is > 0 ---


def _ring(u: Plane, v: Plane, width: float) -> Plane:
    return 0.19 * width - np.abs(np.hypot(u, v) - 0.8)


def _star(u: Plane, v: Plane, width: float) -> Plane:
    spikes = np.abs(np.mod(np.arctan2(v, u) / (2 * np.pi / 5), 1) - 0.5) * 2  # 1 at a tip, 0 in a notch
    return 0.33 * width + 0.67 * spikes**1.6 - np.hypot(u, v)


def _bar(u: Plane, v: Plane, width: float) -> Plane:
    u, v = (u + v) / np.sqrt(2), (u - v) / np.sqrt(2)  # diagonal: an upright bar would fill its box
    return np.minimum(0.26 * width - np.abs(v), 1.1 - np.abs(u))


def _ell(u: Plane, v: Plane, width: float) -> Plane:
    square = np.minimum(0.9 - np.abs(u), 0.9 - np.abs(v))
    return np.minimum(square, np.maximum(0.5 * width - 0.9 - u, v - 0.9 + 0.5 * width))


def _triangle(u: Plane, v: Plane, width: float) -> Plane:
    return np.minimum(0.75 - v, 0.55 * width * (v + 1) - np.abs(u))


def _propeller(u: Plane, v: Plane, width: float) -> Plane:
    return np.abs(np.cos(1.5 * np.arctan2(v, u))) ** (1.1 / width) - np.hypot(u, v)


def _crescent(u: Plane, v: Plane, width: float) -> Plane:
    return np.minimum(0.95 - np.hypot(u, v), np.hypot(u - 0.5 * width, v) - 0.72)


def _cross(u: Plane, v: Plane, width: float) -> Plane:
    arm = 0.26 * width
    bars = np.maximum(arm - np.abs(u), arm - np.abs(v))
    return np.minimum(bars, 0.95 - np.maximum(np.abs(u), np.abs(v)))


def _wye(u: Plane, v: Plane, width: float) -> Plane:
    best = np.full_like(u, -np.inf)
    for angle in (np.pi / 2, np.pi * 7 / 6, np.pi * 11 / 6):
        along = np.clip(u * np.cos(angle) + v * np.sin(angle), 0, 0.85)
        best = np.maximum(best, 0.24 * width - np.hypot(u - along * np.cos(angle), v - along * np.sin(angle)))
    return best


def _wave(u: Plane, v: Plane, width: float) -> Plane:
    return np.minimum(0.31 * width - np.abs(v - 0.6 * np.sin(np.pi * u)), 1.0 - np.abs(u))


# --- textures: weight of the second colour in [0, 1], in object coordinates ---


def _stripes(u: Plane, v: Plane) -> Plane:
    return (np.sin(13 * v) > 0).astype(np.float32)


def _checks(u: Plane, v: Plane) -> Plane:
    return ((np.sin(9 * u) > 0) ^ (np.sin(9 * v) > 0)).astype(np.float32)


def _dots(u: Plane, v: Plane) -> Plane:
    return (np.cos(12 * u) + np.cos(12 * v) > 0.9).astype(np.float32)


def _rays(u: Plane, v: Plane) -> Plane:
    return (np.sin(9 * np.arctan2(v, u)) > 0).astype(np.float32)


def _shade(u: Plane, v: Plane) -> Plane:
    return np.clip(0.5 + 0.5 * v, 0, 1)


def _circles(u: Plane, v: Plane) -> Plane:
    return (np.sin(16 * np.hypot(u, v)) > 0).astype(np.float32)


def _bricks(u: Plane, v: Plane) -> Plane:
    row = np.floor(4 * v)
    mortar = (np.mod(4 * v, 1) < 0.25) | (np.mod(2.5 * u + 0.5 * np.mod(row, 2), 1) < 0.18)
    return mortar.astype(np.float32)


def _chevrons(u: Plane, v: Plane) -> Plane:
    return (np.sin(12 * (v + np.abs(np.mod(2 * u, 2) - 1))) > 0).astype(np.float32)


def _mottle(u: Plane, v: Plane) -> Plane:
    return np.clip(0.5 + 0.5 * np.sin(7 * u + 2 * np.sin(5 * v)) * np.sin(8 * v + 2 * np.sin(6 * u)), 0, 1)


def _crosshatch(u: Plane, v: Plane) -> Plane:
    return ((np.sin(14 * (u + v)) > 0.6) | (np.sin(14 * (u - v)) > 0.6)).astype(np.float32)


@dataclass(frozen=True)
class _SyntheticClass:
    """One class of objects: a shape filled with a two-coloured texture.

    Attributes:
        name: class name in the annotation files.
        shape: insideness in object coordinates; > 0 inside. Its third argument scales the limbs, about 1.
        texture: weight of the second colour in [0, 1], in object coordinates.
        hues: the two hues in degrees; every object moves them a little.
    """

    name: str
    shape: Callable[[Plane, Plane, float], Plane]
    texture: Callable[[Plane, Plane], Plane]
    hues: tuple[int, int]


AUX_CLASSES = (
    _SyntheticClass("ring", _ring, _stripes, (0, 45)),
    _SyntheticClass("star", _star, _dots, (60, 220)),
    _SyntheticClass("bar", _bar, _checks, (150, 185)),
    _SyntheticClass("ell", _ell, _bricks, (200, 15)),
    _SyntheticClass("triangle", _triangle, _shade, (260, 310)),
    _SyntheticClass("propeller", _propeller, _rays, (310, 90)),
)
TARGET_CLASSES = (
    _SyntheticClass("crescent", _crescent, _circles, (50, 5)),
    _SyntheticClass("cross", _cross, _crosshatch, (180, 280)),
    _SyntheticClass("wye", _wye, _chevrons, (340, 210)),
    _SyntheticClass("wave", _wave, _mottle, (75, 115)),
)


def _colour(hue: float, saturation: float, value: float) -> np.ndarray:
    """RGB in 0..255 of a hue in degrees, saturation and value in [0, 1]; (3,) float32."""
    hsv = np.array([[[hue % 360, saturation, value]]], dtype=np.float32)
    return 255 * cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0]


def _noise(rng: np.random.Generator, height: int, width: int, cell: float) -> Plane:
    """Smooth noise, about zero mean and unit deviation, with features of `cell` pixels."""
    rows, columns = int(height / cell) + 3, int(width / cell) + 3
    coarse = rng.standard_normal((rows, columns)).astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def _draw_background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Two or three textured regions of muted colours; (H, W, 3) float32 in 0..255."""
    image = np.empty((height, width, 3), np.float32)
    region = _noise(rng, height, width, cell=60)
    grid_y, grid_x = np.mgrid[:height, :width].astype(np.float32)
    for low, high in ((-np.inf, -0.4), (-0.4, 0.5), (0.5, np.inf)):
        first, second = (
            _colour(rng.uniform(0, 360), rng.uniform(0.05, 0.4), rng.uniform(0.25, 0.8)) for _ in range(2)
        )
        angle, period = rng.uniform(0, np.pi), rng.uniform(5, 22)
        waves = np.sin((grid_x * np.cos(angle) + grid_y * np.sin(angle)) * 2 * np.pi / period)
        weight = 0.5 + 0.22 * _noise(rng, height, width, rng.uniform(6, 25)) + 0.18 * rng.uniform(0, 1) * waves
        weight = np.clip(weight, 0, 1)[..., None]
        inside = (region >= low) & (region < high)
        image[inside] = (first * (1 - weight) + second * weight)[inside]
    return image


def _draw_distractors(rng: np.random.Generator, image: np.ndarray) -> None:
    """Paint unlabelled plain ellipses, polygons and lines, in any colour, the objects' ones included."""
    height, width = image.shape[:2]
    for _ in range(int(rng.integers(4, 10))):
        colour = _colour(rng.uniform(0, 360), rng.uniform(0.1, 0.75), rng.uniform(0.3, 0.95)).tolist()
        x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
        radius = rng.uniform(3, 13)
        kind = int(rng.integers(0, 3))
        if kind == 0:
            axes = (int(radius), max(2, int(radius * rng.uniform(0.4, 1))))
            cv2.ellipse(image, (x, y), axes, float(rng.uniform(0, 180)), 0, 360, colour, -1)
        elif kind == 1:
            angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 6))))
            corners = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1)
            cv2.fillPoly(image, [corners.astype(np.int32)], colour)
        else:
            end = (int(x + rng.uniform(-50, 50)), int(y + rng.uniform(-50, 50)))
            cv2.line(image, (x, y), end, colour, int(rng.integers(1, 4)))


def _draw_object(
    rng: np.random.Generator, kind: _SyntheticClass, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """One object alone: (its mask (H, W) bool, its colours (H, W, 3) float32), at a random place, size and pose."""
    radius = rng.uniform(0.15, 0.32) * min(height, width)
    centre_x, centre_y = (rng.uniform(0.7 * radius, side - 0.7 * radius) for side in (width, height))
    angle, aspect = rng.normal(0, 0.25), np.exp(rng.normal(0, 0.12))
    grid_y, grid_x = np.mgrid[:height, :width].astype(np.float32)
    bend_x, bend_y = (0.05 * radius * _noise(rng, height, width, radius) for _ in range(2))
    x, y = (grid_x - centre_x + bend_x) / radius, (grid_y - centre_y + bend_y) / radius
    u = (x * np.cos(angle) + y * np.sin(angle)) * aspect * rng.choice([-1, 1])
    v = (y * np.cos(angle) - x * np.sin(angle)) / aspect
    mask = kind.shape(u, v, rng.uniform(0.85, 1.15)) > 0

    first, second = (
        _colour(hue + rng.normal(0, 9), rng.uniform(0.65, 0.95), rng.uniform(0.6, 0.95)) for hue in kind.hues
    )
    weight = (kind.texture(u, v) * rng.uniform(0.7, 1.0))[..., None]
    return mask, first * (1 - weight) + second * weight


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Tight (x1, y1, x2, y2) around the True pixels of a non-empty mask, end exclusive."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _draw_scene(
    rng: np.random.Generator, classes: tuple[_SyntheticClass, ...], size: tuple[int, int]
) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """Draw one image with one to three objects; a later object covers the earlier ones.

    Args:
        rng: the only source of randomness.
        classes: the classes to draw from.
        size: (height, width) in pixels.

    Returns:
        The image (H, W, 3) uint8 RGB, and for every object its label (1-based position in `classes`) and the mask of
        its visible part (H, W) bool. At least half of every object is visible.
    """
    height, width = size
    image = _draw_background(rng, height, width)
    _draw_distractors(rng, image)
    objects: list[tuple[int, np.ndarray]] = []
    full_areas: list[int] = []
    wanted = int(rng.choice([1, 2, 3], p=[0.35, 0.4, 0.25]))
    while len(objects) < wanted:
        label = int(rng.integers(len(classes))) + 1
        mask, colours = _draw_object(rng, classes[label - 1], height, width)
        covered = [(other_label, other & ~mask) for other_label, other in objects]
        areas = [*full_areas, int(mask.sum())]
        visible = [int(part.sum()) for _, part in covered] + areas[-1:]
        if any(v < max(MIN_VISIBLE_PIXELS, MIN_VISIBLE_FRACTION * a) for v, a in zip(visible, areas)):
            continue  # it would hide another object (or lies almost outside): draw a new one
        objects, full_areas = [*covered, (label, mask)], areas
        alpha = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.6)[..., None]
        image = image * (1 - alpha) + colours * alpha
    image += rng.normal(0, 5, image.shape)  # sensor noise
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), objects


def _scene(
    seed: int, stream: int, index: int, classes: tuple[_SyntheticClass, ...], size: tuple[int, int]
) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """Scene number `index` of a stream; independent of how many scenes are drawn. The sides vary by a tenth."""
    rng = np.random.default_rng([seed, stream, index])
    height, width = (max(48, round(float(side * rng.choice([0.9, 1.0, 1.1])))) for side in size)
    return _draw_scene(rng, classes, (height, width))


def _write_coco(folder: Path, num_images: int, size: tuple[int, int], seed: int) -> None:
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for index in range(num_images):
        image, objects = _scene(seed, 0, index, AUX_CLASSES, size)
        name = f"{index + 1:06d}.png"
        Image.fromarray(image).save(folder / "images" / name, compress_level=1)
        images.append({"id": index + 1, "file_name": name, "height": image.shape[0], "width": image.shape[1]})
        for label, mask in objects:
            x1, y1, x2, y2 = _box(mask)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": label,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": encode_mask(mask),
                }
            )
    categories = [{"id": i, "name": kind.name} for i, kind in enumerate(AUX_CLASSES, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content), encoding="utf-8")


def _write_voc(folder: Path, num_train: int, num_val: int, size: tuple[int, int], seed: int) -> None:
    for name in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    palette = voc_palette().reshape(-1).tolist()
    for stream, split, count in ((1, "train", num_train), (2, "val", num_val)):
        ids = [f"{split}_{index + 1:06d}" for index in range(count)]
        for index, image_id in enumerate(ids):
            image, objects = _scene(seed, stream, index, TARGET_CLASSES, size)
            Image.fromarray(image).save(folder / "JPEGImages" / f"{image_id}.jpg", quality=95, subsampling=0)
            labels = np.zeros(image.shape[:2], np.uint8)
            root = ElementTree.Element("annotation")
            ElementTree.SubElement(root, "filename").text = f"{image_id}.jpg"
            size_tag = ElementTree.SubElement(root, "size")
            for tag, value in zip(("width", "height", "depth"), (image.shape[1], image.shape[0], 3)):
                ElementTree.SubElement(size_tag, tag).text = str(value)
            ElementTree.SubElement(root, "segmented").text = "1"
            for label, mask in objects:
                labels[mask] = label
                entry = ElementTree.SubElement(root, "object")
                ElementTree.SubElement(entry, "name").text = TARGET_CLASSES[label - 1].name
                ElementTree.SubElement(entry, "difficult").text = "0"
                box = ElementTree.SubElement(entry, "bndbox")
                x1, y1, x2, y2 = _box(mask)
                # VOC counts from 1 and includes the end: our exclusive end is the inclusive 1-based one.
                for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), (x1 + 1, y1 + 1, x2, y2)):
                    ElementTree.SubElement(box, tag).text = str(value)
            ElementTree.indent(root)
            (folder / "Annotations" / f"{image_id}.xml").write_text(
                ElementTree.tostring(root, encoding="unicode") + "\n", encoding="utf-8"
            )
            png = Image.fromarray(labels)
            png.putpalette(palette)
            png.save(folder / "SegmentationClass" / f"{image_id}.png")
        text = "".join(f"{image_id}\n" for image_id in ids)
        (folder / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(text, encoding="utf-8")
    names = "".join(f"{kind.name}\n" for kind in TARGET_CLASSES)
    (folder / "classes.txt").write_text(names, encoding="utf-8")


def _finished(root: Path, settings: dict) -> bool:
    path = root / SETTINGS_FILE
    return path.is_file() and json.loads(path.read_text(encoding="utf-8")) == settings


def _write_synthetic_dataset(
    root: str | os.PathLike,
    *,
    num_aux: int = 200,
    num_target: int = 160,
    num_eval: int = 60,
    size: tuple[int, int] = (160, 160),
    seed: int = 0,
) -> Path:
    """Write the demo's auxiliary (COCO, masks) and target (VOC, boxes; masks for measuring) datasets.

    Everything is written to a temporary folder beside `root` and renamed at the end, so that a killed run leaves no
    half-written dataset. A finished folder with the same settings is kept as it is; one with other settings is
    replaced.

    Args:
        root: folder to write.
        num_aux: number of auxiliary images.
        num_target: number of target images in the split `train`.
        num_eval: number of target images in the split `val`.
        size: typical (height, width) in pixels; each side is this times 0.9, 1.0 or 1.1.
        seed: the same seed and sizes give byte-identical files.

    Returns:
        `root` as a path.

    Raises:
        ValueError: a count is below 1 or a side below 64.
        FileExistsError: `root` exists and was not written by this function.
    """
    root = Path(root)
    for name, value in (("num_aux", num_aux), ("num_target", num_target), ("num_eval", num_eval)):
        if value < 1:
            raise ValueError(f"{name} is {value}, but a dataset needs at least one image. Pass {name} >= 1.")
    if min(size) < 64:
        raise ValueError(f"size is {tuple(size)}, but objects need at least 64 x 64 pixels. Pass a larger size.")
    settings = {
        "generator_version": GENERATOR_VERSION,
        "num_aux": num_aux,
        "num_target": num_target,
        "num_eval": num_eval,
        "size": list(size),
        "seed": seed,
    }
    if root.exists() and not (root / SETTINGS_FILE).is_file() and (not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(
            f"{root} exists and holds no {SETTINGS_FILE}, so it was not written by this generator and is left alone. "
            "Name another folder or remove it."
        )
    _write_and_rename(root, settings)
    return root


def _write_and_rename(root: Path, settings: dict) -> None:
    size, seed = settings["size"], settings["seed"]
    with unfinished_folder(root) as work:
        if _finished(root, settings):
            return
        new = work / "new"
        _write_coco(new / "aux", settings["num_aux"], size, seed)
        _write_voc(new / "target", settings["num_target"], settings["num_eval"], size, seed)
        (new / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        if root.exists():
            root.rename(work / "old")
        new.rename(root)


def main(
    root: Annotated[Path, typer.Argument(help="Folder to write.")],
    num_aux: Annotated[int, typer.Option(help="Auxiliary images (COCO, masks).")] = 200,
    num_target: Annotated[int, typer.Option(help="Target training images (VOC).")] = 160,
    num_eval: Annotated[int, typer.Option(help="Target evaluation images (VOC).")] = 60,
    height: Annotated[int, typer.Option(help="Typical image height in pixels.")] = 160,
    width: Annotated[int, typer.Option(help="Typical image width in pixels.")] = 160,
    seed: Annotated[int, typer.Option(help="The same seed gives the same files.")] = 0,
) -> None:
    """Write the procedural demo dataset."""
    try:
        _write_synthetic_dataset(
            root, num_aux=num_aux, num_target=num_target, num_eval=num_eval, size=(height, width), seed=seed
        )
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"{root}: {num_aux} auxiliary images, {num_target} + {num_eval} target images")


if __name__ == "__main__":
    typer.run(main)
