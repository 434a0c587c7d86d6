"""Rows -> arrays: images of every kind, boxes, class masks, label maps."""

import io

import datasets
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from lpg_hf.data._examples import box_label_map, class_mask, decode_image, label_map, row_boxes
from lpg_hf.data.load import load_boxes


def row_of(image, **changes) -> dict:
    return {"image": image, "file_name": "a.png", **changes}


def file_row(path, **changes) -> dict:
    return row_of({"path": str(path), "bytes": None}, **changes)


def rle(mask: np.ndarray) -> dict:
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(v) for v in encoded["size"]], "counts": encoded["counts"].decode()}


def objects_row(*objects: dict, height=10, width=12, masks=True) -> dict:
    """A row from dicts with box (xyxy), label, and optionally mask, area, iscrowd, difficult."""
    columns: dict[str, list] = {key: [] for key in ("bbox", "category", "area", "iscrowd", "difficult", "id")}
    segmentation = []
    for item in objects:
        x1, y1, x2, y2 = item["box"]
        columns["bbox"].append([x1, y1, x2 - x1, y2 - y1])
        columns["category"].append(item["label"] - 1)
        columns["area"].append(item.get("area", (x2 - x1) * (y2 - y1)))
        columns["iscrowd"].append(item.get("iscrowd", False))
        columns["difficult"].append(item.get("difficult", False))
        columns["id"].append(len(columns["id"]) + 1)
        none = {"size": [height, width], "counts": ""}
        segmentation.append(rle(item["mask"]) if "mask" in item else none)
    if masks:
        columns["segmentation"] = segmentation
    return {"file_name": "a.png", "height": height, "width": width, "objects": columns}


def rectangle(x1, y1, x2, y2, height=10, width=12) -> np.ndarray:
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[y1:y2, x1:x2] = 1
    return mask


# --- images


def turned(path, orientation: int) -> np.ndarray:
    """An image that shows, upright, a red patch at columns 10..19, rows 30..44 of 40 x 60; returns it upright."""
    upright = np.full((60, 40, 3), 128, dtype=np.uint8)
    upright[30:45, 10:20] = (255, 0, 0)
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = Image.fromarray(upright)
    stored = stored.transpose(inverse[orientation]) if orientation in inverse else stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(path, exif=exif, **({"quality": 95, "subsampling": 0} if path.suffix == ".jpg" else {}))
    return upright


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_every_orientation_is_turned_upright(tmp_path, orientation, suffix):
    upright = turned(tmp_path / f"a.{suffix}", orientation)
    pixels = decode_image(file_row(tmp_path / f"a.{suffix}", height=60, width=40))
    assert pixels.shape == (60, 40, 3)
    inside, outside = pixels[32:43, 12:18].astype(int), pixels[:16].astype(int)
    assert (inside[..., 0] > 200).all() and (inside[..., 1] < 60).all() and (abs(outside - 128) < 12).all()
    if suffix == "png":
        assert (pixels == upright).all()


@pytest.mark.parametrize("orientation", [1, 6])
def test_box_falls_on_the_right_pixels(coco_tree, orientation):
    turned(coco_tree.images / "a.jpg", orientation)
    coco_tree.content["images"] = [{"id": 1, "file_name": "a.jpg", "width": 40, "height": 60}]
    square = [[10, 30, 20, 30, 20, 45, 10, 45]]
    coco_tree.content["annotations"] = [coco_tree.annotation(bbox=[10, 30, 10, 15], segmentation=square)]
    coco_tree.write()
    dataset = load_boxes("coco", root=coco_tree.root, masks=True)
    for row in (dataset[0], dataset.cast_column("image", datasets.Image(decode=False))[0]):
        pixels, mask = decode_image(row), class_mask(row, 1)
        assert mask.shape == (60, 40) and mask.sum() == 150
        assert (pixels[mask == 1][:, 0] > 200).all() and row_boxes(row)[0].tolist() == [[10, 30, 20, 45]]


def test_grey_becomes_three_equal_channels(tmp_path):
    ramp = np.arange(200, dtype=np.uint8).reshape(10, 20)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    pixels = decode_image(file_row(tmp_path / "a.png"))
    assert pixels.dtype == np.uint8 and (pixels == ramp[..., None]).all() and pixels.shape == (10, 20, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_transparent_pixels_lie_over_white(tmp_path, mode):
    image = Image.new("RGBA", (4, 2), (0, 0, 0, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    options = {}
    if mode in ("L", "RGB"):
        image = Image.new(mode, (4, 2), "black")
        image.putpixel((0, 0), 7 if mode == "L" else (7, 7, 7))
        options["transparency"] = 7 if mode == "L" else (7, 7, 7)
    elif mode == "P":
        image = image.convert("RGBA").quantize(8)
    else:
        image = image.convert(mode)
    image.save(tmp_path / "a.png", **options)
    pixels = decode_image(file_row(tmp_path / "a.png"))
    assert pixels[0, 0].tolist() == [255, 255, 255] and pixels[1, 3].tolist() == [0, 0, 0]


def test_half_transparent_is_half_white():
    assert decode_image(row_of(Image.new("RGBA", (2, 2), (0, 0, 0, 128))))[0, 0].tolist() == [127, 127, 127]


@pytest.mark.parametrize("as_bytes", [True, False])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, as_bytes):
    ramp = (np.arange(4096, dtype=np.uint16) * 16).reshape(64, 64)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    row = file_row(tmp_path / "a.png")
    if as_bytes:
        row["image"] = {"path": None, "bytes": (tmp_path / "a.png").read_bytes()}
    pixels = decode_image(row)
    assert pixels.dtype == np.uint8 and pixels.min() == 0 and pixels.max() == 255 and abs(pixels.mean() - 127) < 1


@pytest.mark.parametrize("values", [np.array([[-1, 70000]], np.int32), np.array([[0.1, 0.4]], np.float32)])
def test_values_without_an_agreed_range_are_stretched(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert decode_image(file_row(tmp_path / "a.tif")).tolist() == [[[0, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize("mode", ["1", "CMYK", "P"])
def test_other_modes_become_rgb(tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new("RGB", (4, 3), (255, 255, 255)).convert(mode).save(path)
    pixels = decode_image(file_row(path))
    assert pixels.shape == (3, 4, 3) and (pixels > 250).all()


def test_path_bytes_and_decoded_image_give_equal_arrays(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    for image in (
        {"path": str(tmp_path / "a.png"), "bytes": None},
        {"path": None, "bytes": buffer.getvalue()},
        Image.fromarray(pixels),
    ):
        decoded = decode_image(row_of(image, height=8, width=6))
        assert (decoded == pixels).all() and decoded.flags.writeable


def test_cut_jpeg_raises_an_error_that_names_the_file(tmp_path):
    Image.effect_noise((60, 40), 50).convert("RGB").save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: len(data) * 6 // 10])
    with pytest.raises(OSError, match="cannot decode the image .*a.jpg"):
        decode_image(file_row(tmp_path / "a.jpg"))
    with pytest.raises(OSError, match="cannot open the image .*b.jpg"):
        decode_image(file_row(tmp_path / "b.jpg"))


def test_huge_image_is_refused(tmp_path):
    Image.new("1", (300, 200)).save(tmp_path / "a.png")
    with pytest.raises(OSError, match="300 x 200 = 60000 pixels, more than max_pixels=1000"):
        decode_image(file_row(tmp_path / "a.png"), max_pixels=1000)


def test_image_of_another_size_than_the_row_is_an_error():
    with pytest.raises(ValueError, match=r"a.png is 6 x 8, the row says 8 x 6 \(width x height\)"):
        decode_image(row_of(Image.new("RGB", (6, 8)), height=6, width=8))


# --- boxes


def test_boxes_are_clipped_xyxy_with_labels_from_one_and_no_crowd():
    row = objects_row(
        {"box": (1, 2, 4, 6), "label": 3},
        {"box": (0, 0, 5, 5), "label": 1, "iscrowd": True},
        {"box": (-2, -2, 20, 20), "label": 1, "difficult": True},
    )
    boxes, labels = row_boxes(row)
    assert boxes.tolist() == [[1, 2, 4, 6], [0, 0, 12, 10]] and labels.tolist() == [3, 1]
    assert boxes.dtype == np.float32 and labels.dtype == np.int64


def test_no_objects_give_empty_arrays_and_background():
    row = objects_row()
    boxes, labels = row_boxes(row)
    assert boxes.shape == (0, 4) and labels.shape == (0,)
    for array in (box_label_map(row), label_map(row), class_mask(row, 1)):
        assert array.shape == (10, 12) and array.dtype == np.uint8 and not array.any()


@pytest.mark.parametrize("reverse", [False, True])
def test_smaller_boxes_lie_on_top_whatever_the_order(reverse):
    objects = [
        {"box": (0, 0, 12, 10), "label": 2},
        {"box": (2, 2, 6, 6), "label": 1},
        {"box": (3, 3, 5, 5), "label": 7},
    ]
    labels = box_label_map(objects_row(*(reversed(objects) if reverse else objects), masks=False))
    expected = rectangle(0, 0, 12, 10) * 2
    expected[2:6, 2:6], expected[3:5, 3:5] = 1, 7
    assert (labels == expected).all() and labels.dtype == np.uint8


def test_crowd_boxes_are_ignored_where_no_box_lies():
    row = objects_row(
        {"box": (2, 2, 6, 6), "label": 1}, {"box": (0, 0, 4, 10), "label": 1, "iscrowd": True}, masks=False
    )
    labels = box_label_map(row)
    assert (labels[2:6, 2:6] == 1).all() and (labels[:2, :4] == 255).all() and (labels == 255).sum() == 40 - 8


def test_box_label_map_works_when_masks_are_garbage():
    row = objects_row({"box": (2, 2, 6, 6), "label": 1, "mask": rectangle(2, 2, 6, 6)})
    expected = box_label_map(row)
    row["objects"]["segmentation"] = "garbage"
    row["mask"] = "garbage"
    assert (box_label_map(row) == expected).all() and row_boxes(row)[0].tolist() == [[2, 2, 6, 6]]


# --- masks


def test_class_mask_is_the_union_of_the_class_and_loses_nothing_to_others():
    first, second, other = rectangle(1, 1, 4, 4), rectangle(6, 6, 9, 9), rectangle(2, 2, 8, 8)
    row = objects_row(
        {"box": (1, 1, 4, 4), "label": 1, "mask": first},
        {"box": (2, 2, 8, 8), "label": 2, "mask": other},
        {"box": (6, 6, 9, 9), "label": 1, "mask": second},
    )
    assert (class_mask(row, 1) == (first | second)).all()
    assert (class_mask(row, 2) == other).all() and not class_mask(row, 3).any()


def test_crowd_is_void_where_no_object_lies():
    crowd, item = rectangle(0, 0, 6, 10), rectangle(4, 2, 8, 8)
    row = objects_row(
        {"box": (0, 0, 6, 10), "label": 1, "mask": crowd, "iscrowd": True},
        {"box": (4, 2, 8, 8), "label": 1, "mask": item},
    )
    expected = np.where(item == 1, 1, crowd * 255)
    assert (class_mask(row, 1) == expected).all() and (label_map(row) == expected).all()
    assert not class_mask(row, 2).any()


def test_object_without_a_mask_is_void_in_its_box():
    row = objects_row(
        {"box": (0, 0, 6, 10), "label": 1}, {"box": (4, 2, 8, 8), "label": 1, "mask": rectangle(4, 2, 8, 8)}
    )
    expected = np.where(rectangle(4, 2, 8, 8) == 1, 1, rectangle(0, 0, 6, 10) * 255)
    assert (class_mask(row, 1) == expected).all() and (label_map(row) == expected).all()


@pytest.mark.parametrize("reverse", [False, True])
def test_label_map_paints_small_objects_last(reverse):
    objects = [
        {"box": (0, 0, 8, 8), "label": 2, "mask": rectangle(0, 0, 8, 8), "area": 64},
        {"box": (2, 2, 5, 5), "label": 1, "mask": rectangle(2, 2, 5, 5), "area": 9},
    ]
    labels = label_map(objects_row(*(reversed(objects) if reverse else objects)))
    assert (labels[2:5, 2:5] == 1).all() and (labels == 2).sum() == 64 - 9


@pytest.mark.parametrize("mode", ["P", "L"])
def test_voc_mask_values_are_the_indices(tmp_path, mode):
    values = np.zeros((4, 8), dtype=np.uint8)
    values[0], values[1], values[2] = 1, 15, 255
    image = Image.fromarray(values)
    if mode == "P":
        image = image.convert("L")
        image.putpalette([v for i in range(256) for v in (i, 255 - i, 0)])
    image.save(tmp_path / "m.png")
    row = {
        "file_name": "a.png",
        "height": 4,
        "width": 8,
        "objects": {},
        "mask": {"path": str(tmp_path / "m.png"), "bytes": None},
    }
    decoded = {**row, "mask": Image.open(tmp_path / "m.png")}
    assert decoded["mask"].mode == mode
    for each in (row, decoded):
        assert (label_map(each) == values).all()
        mask = class_mask(each, 15)
        assert mask.dtype == np.uint8 and mask[:, 0].tolist() == [0, 1, 255, 0]


def test_voc_mask_of_another_size_is_an_error(tmp_path):
    Image.new("L", (60, 41)).save(tmp_path / "m.png")
    row = {
        "file_name": "a.png",
        "height": 40,
        "width": 60,
        "objects": {},
        "mask": {"path": str(tmp_path / "m.png"), "bytes": None},
    }
    with pytest.raises(ValueError, match="m.png is 60 x 41, the row says 60 x 40"):
        label_map(row)


def test_masks_of_a_row_without_masks_are_an_error():
    row = objects_row({"box": (2, 2, 6, 6), "label": 1}, masks=False)
    for function in (label_map, lambda row: class_mask(row, 1)):
        with pytest.raises(ValueError, match="row of a.png has no masks: build the dataset with masks=True"):
            function(row)


def test_rows_of_built_data_sets(coco_tree, voc_tree):
    coco_tree.write()
    voc_tree.add_mask("a")
    expected = rectangle(10, 8, 30, 24, 40, 60)
    for dataset in (
        load_boxes("coco", root=coco_tree.root, masks=True),
        load_boxes("voc", root=voc_tree.root, masks=True),
    ):
        row = dataset[0]
        pixels = decode_image(row)
        for array in (class_mask(row, 1), label_map(row), box_label_map(row)):
            assert (array == expected).all()
        assert (pixels[expected == 1] == (200, 30, 30)).all() and (pixels[expected == 0] == 128).all()
