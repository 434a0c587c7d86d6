"""Labels in the frame of the stored image, before its EXIF rotation."""

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from test_unusable import ended
from tool_trees import TOOL_TREES
from trees import HEIGHT, POLYGON, WIDTH, make_image

from lpg_hf._rle import encode_mask
from lpg_hf.data._examples import label_map
from lpg_hf.data._upright import upright_box, upright_points, upright_rle, upright_size
from lpg_hf.data.load import load_boxes
from lpg_hf.data.options import SOURCE_OPTIONS, ReadOptions
from lpg_hf.data.report import Report
from lpg_hf.data.sources import open_source
from lpg_hf.evaluation._truth import open_truth
from lpg_hf.images import read_rgb
from lpg_hf.label_maps import write_label_map


def store(path, orientation: int) -> None:
    """The red rectangle of `make_image` as stored pixels, with an orientation: what is shown is turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    make_image().save(path, exif=exif, **({"quality": 95} if path.suffix == ".jpg" else {}))


@pytest.mark.parametrize("orientation", range(2, 9))
def test_boxes_points_and_masks_turn_as_the_pixels_do(tmp_path, orientation):
    store(tmp_path / "a.png", orientation)
    shown = read_rgb(tmp_path / "a.png")
    red = (shown[..., 0] == 200) & (shown[..., 1] == 30)
    rows, columns = np.nonzero(red)
    expected = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert upright_size((HEIGHT, WIDTH), orientation) == shown.shape[:2]
    assert upright_box((10, 8, 30, 24), orientation, (HEIGHT, WIDTH)) == expected
    points = upright_points(POLYGON[0], orientation, (HEIGHT, WIDTH))
    assert (min(points[0::2]), min(points[1::2]), max(points[0::2]), max(points[1::2])) == expected
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[8:24, 10:30] = 1
    assert (coco_mask.decode(upright_rle(encode_mask(mask), orientation)) == red).all()


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo", "labelme"])
def test_every_format_has_the_switch(request, tmp_path, kind):
    if kind == "labelme":
        TOOL_TREES["LabelMe"][1](tmp_path)
        root, image = tmp_path, tmp_path / "a.png"
    else:
        tree = request.getfixturevalue(f"{kind}_tree")
        tree.write() if kind == "coco" else None
        root, image = tree.root, tree.root / ("JPEGImages" if kind == "voc" else "images") / "a.png"
    store(image, 6)
    report = Report()
    source = open_source(root, report=report)
    if kind != "yolo":  # YOLO states no size.
        assert source.record(0, report) is None and report.counts == {"stored_size": 1}
    options = ReadOptions(**{**SOURCE_OPTIONS.changed, "stored_frame": True, "masks": kind == "coco"})
    source = open_source(root, options=options, report=(report := Report()))
    record = source.record(0, report)
    assert record is not None and record.size == (WIDTH, HEIGHT) and report.counts == {"labels_turned": 1}
    shown = source.image(record)
    x1, y1, x2, y2 = (round(value) for value in record.objects[0].box)
    assert (shown[y1:y2, x1:x2] == (200, 30, 30)).all() and (x2 - x1, y2 - y1) == (16, 20)
    if kind == "coco":
        rle = record.objects[0].rle
        assert rle is not None and coco_mask.decode(rle)[y1:y2, x1:x2].all() and coco_mask.area(rle) == 320
    assert ended("check", root, "--stored-frame") == 0


def test_rows_of_training_are_turned_too(coco_tree):
    path = coco_tree.write()
    store(coco_tree.images / "a.png", 8)
    rows = load_boxes("coco", annotations=path, images=coco_tree.images, masks=True, stored_frame=True)
    assert rows[0]["objects"]["bbox"] == [[8, 30, 16, 20]] and (rows[0]["height"], rows[0]["width"]) == (60, 40)
    assert rows[0]["objects"]["segmentation"][0]["size"] == [60, 40]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_class_masks_are_turned_too(voc_tree, tmp_path, orientation):
    mask = np.asarray(Image.open(voc_tree.add_mask("a")))
    store(voc_tree.root / "JPEGImages" / "a.png", orientation)
    shown = read_rgb(voc_tree.root / "JPEGImages" / "a.png")
    red = (shown == (200, 30, 30)).all(axis=-1)
    (row,) = load_boxes("voc", root=voc_tree.root, masks=True, stored_frame=True)
    assert (label_map(row) == red).all() and red.sum() == mask.sum() == 320
    for to in ("voc", "coco"):
        assert ended("convert-labels", voc_tree.root, tmp_path / "out" / to, "--to", to, "--stored-frame") == 0
    assert (np.asarray(Image.open(tmp_path / "out" / "voc" / "SegmentationClass" / "a.png")) == red).all()
    source = open_source(
        next((tmp_path / "out" / "coco").rglob("*.json")),
        voc_tree.root / "JPEGImages",
        ReadOptions(**{**SOURCE_OPTIONS.changed, "masks": True}),
        report=(report := Report()),
    )
    record = source.record(0, report)
    assert record is not None and record.objects[0].rle is not None
    assert (coco_mask.decode(record.objects[0].rle) == red).all()


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("kind", ["folder", "coco"])
def test_ground_truth_is_turned_with_the_annotations(coco_tree, tmp_path, orientation, kind):
    path = coco_tree.write()
    store(coco_tree.images / "a.png", orientation)
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[8:24, 10:30] = 1
    write_label_map(tmp_path / "truth" / "a.png", mask)
    options = ReadOptions(**{**SOURCE_OPTIONS.changed, "stored_frame": True})
    source = open_source(path, coco_tree.images, options, report=Report())
    record = source.record(0, Report())
    place = str(tmp_path / "truth") if kind == "folder" else str(path)
    truth = open_truth(place, source, str(coco_tree.images), options).of(record)
    shown = read_rgb(coco_tree.images / "a.png")
    assert ((truth.label_map == 1) == ((shown[..., 0] == 200) & (shown[..., 1] == 30))).all()
    target, _ = truth.of_box(record.objects[0])
    assert coco_mask.area(target) == 16 * 20
