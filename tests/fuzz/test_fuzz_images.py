"""Image files and label maps, changed at random: each is used, or is counted, or is an error in one line."""

import io
import json
from functools import partial
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from mutations import CHANGES, changed_bytes
from outcomes import fuzz, inputs, run
from PIL import Image
from trees_in_memory import voc_xml

from lpg_hf.label_maps import write_label_map


SIZE = (60, 40)  # width, height
_EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"


def _image_files() -> list[tuple[str, bytes]]:
    """(suffix, content) of every format and mode that is opened."""
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    colour = Image.fromarray(np.stack([x * 4, y * 6, x + y], axis=-1).astype(np.uint8))
    grey16 = Image.fromarray((x * 1000).astype(np.uint16))
    made = []
    for suffix, image, options in [
        ("jpg", colour, {"exif": _EXIF}),
        ("jpg", colour.convert("CMYK"), {}),
        ("jpg", colour, {"progressive": True}),
        ("png", colour, {}),
        ("png", colour.convert("P"), {"transparency": 3}),
        ("png", colour.convert("RGBA"), {"exif": _EXIF}),
        ("png", grey16, {}),
        ("png", colour.convert("1"), {}),
        ("tiff", colour, {"compression": "tiff_lzw"}),
        ("tiff", grey16, {}),
        ("tiff", colour.convert("F"), {}),
        ("tiff", colour, {}),
        ("bmp", colour, {}),
        ("webp", colour, {"exif": _EXIF}),
        ("gif", colour.convert("P"), {}),
        ("ppm", colour, {}),
    ]:
        buffer = io.BytesIO()
        image.save(buffer, {"jpg": "JPEG", "tiff": "TIFF"}.get(suffix, suffix.upper()), **options)
        made.append((suffix, buffer.getvalue()))
    return made


FILES = _image_files()


@inputs
def test_images(tmp_path, inputs):
    fuzz(inputs, st.tuples(st.sampled_from(FILES), CHANGES, st.integers(0, 9)), partial(check_image, tmp_path))


def check_image(folder: Path, drawn: tuple) -> None:
    (suffix, data), changes, action = drawn
    for path in folder.glob("a.*"):
        path.unlink()
    # Suffixes that a folder of images is searched for; what a file is tells its content.
    path = folder / f"a.{suffix if suffix not in ('gif', 'ppm') else 'png'}"
    path.write_bytes(changed_bytes(data, changes))
    labels = folder / "labels.json"
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 8, 20, 16], "area": 320, "iscrowd": 0}
    image = {"id": 1, "file_name": path.name} | ({} if action % 2 else {"width": SIZE[0], "height": SIZE[1]})
    content = {"images": [image], "annotations": [annotation], "categories": [{"id": 1, "name": "red"}]}
    labels.write_text(json.dumps(content))
    most = ("--max-pixels", 50_000_000)  # An image of as many as the default allows may take more than 1 GB.
    if action < 7:
        run("masks", labels, "--generator", "box", "--out", folder / "out", "--overwrite", "--num-workers", 1, *most)
    elif action < 9:
        run("check", labels, *most)
    else:
        run("check", labels, "--stored-frame", "--size-mismatch", "rescale", *most)


def _label_maps(folder: Path) -> list[bytes]:
    values = np.zeros((40, 60), dtype=np.uint8)
    values[8:24, 10:30] = 1
    values[0, :10] = 255
    made = []
    for name, labels in {"8": values, "16": values.astype(np.uint16) * 257}.items():
        write_label_map(folder / f"{name}.png", labels)
        made.append((folder / f"{name}.png").read_bytes())
    return made


@inputs
def test_label_maps(tmp_path, inputs):
    files = _label_maps(tmp_path)
    for name in ("truth/SegmentationClass", "truth/Annotations", "truth/JPEGImages", "predicted"):
        (tmp_path / name).mkdir(parents=True)
    Image.new("RGB", SIZE, (200, 30, 30)).save(tmp_path / "truth" / "JPEGImages" / "a.png")
    (tmp_path / "truth" / "Annotations" / "a.xml").write_text(voc_xml("a.png"))
    (tmp_path / "predicted" / "a.png").write_bytes(files[0])
    drawn = st.tuples(st.sampled_from(files), CHANGES, st.integers(0, 9))
    fuzz(inputs, drawn, partial(check_label_map, tmp_path))


def check_label_map(folder: Path, drawn: tuple) -> None:
    data, changes, action = drawn
    maps = folder / "truth" / "SegmentationClass"
    (maps / "a.png").write_bytes(changed_bytes(data, changes))
    if action < 4:
        run("eval", folder / "predicted", maps, *(["--object-value", 1] if action == 3 else []))
    elif action < 5:
        run("eval", maps, folder / "predicted")
    else:
        run("check", folder / "truth", "--masks")
