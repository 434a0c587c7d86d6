"""`check_source`: what is wrong is counted with its place; images are decoded."""

import json
import shutil
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from trees import HEIGHT, WIDTH, make_image

from lpg_hf.data.check import check_source
from lpg_hf.data.convert import WITH_MASKS
from lpg_hf.data.export import Export, write_dataset
from lpg_hf.data.options import SOURCE_OPTIONS, ReadOptions


def test_good_data_pass(coco_tree, voc_tree, yolo_tree):
    voc_tree.add_mask("a")
    for path, format in ((coco_tree.write(), "coco"), (voc_tree.root, "voc"), (yolo_tree.root, "yolo")):
        checked = check_source(path, options=replace(SOURCE_OPTIONS, masks=format != "yolo"))
        assert checked.passed and checked.format == format and checked.report.counts == {}
        assert checked.summary() == f"{path} ({format}): 1 images, 1 objects, 1 classes\nobjects per class: thing 1"


def cut(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])


def test_cut_jpeg_among_good_ones_is_named_for_every_format(coco_tree, voc_tree, yolo_tree):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    for number in range(5):
        coco_tree.add_image(f"{number}.jpg", number + 2)
        coco_tree.content["annotations"].append(coco_tree.annotation(id=number + 2, image_id=number + 2))
        voc_tree.add(str(number), image=f"{number}.jpg")
        yolo_tree.add(str(number), yolo_tree.LINE, f"{number}.jpg")
    for path, folder in (
        (coco_tree.write(), coco_tree.images),
        (voc_tree.root, voc_tree.root / "JPEGImages"),
        (yolo_tree.root, yolo_tree.root / "images"),
    ):
        noise.save(folder / "3.jpg")
        cut(folder / "3.jpg")
        checked = check_source(path)
        assert not checked.passed and checked.report.counts == {"truncated_image": 1}
        assert (checked.report.images, checked.report.objects) == (5, 5)
        assert checked.report.places["truncated_image"][0].startswith("the image 3.jpg is cut off")
        assert check_source(path, decode=False).report == checked.report  # its end is missing: headers are enough


@pytest.mark.parametrize("percent", [10, 60])
def test_a_cut_image_inside_a_data_set_counts_as_cut(coco_tree, tmp_path, percent):
    make_image().save(coco_tree.images / "a.jpg")
    coco_tree.content["images"][0]["file_name"] = "a.jpg"
    coco_tree.write()
    write_dataset(tmp_path / "exported", Export("coco", coco_tree.root, with_images=True))
    (file,) = (tmp_path / "exported").rglob("*.parquet")
    table = pq.read_table(file)
    rows = table.to_pylist()
    data = rows[0]["image"]["bytes"]
    rows[0]["image"]["bytes"] = data[: len(data) * percent // 100]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)
    checked = check_source(tmp_path / "exported")
    assert checked.report.counts == {"truncated_image": 1} and checked.report.images == 0


def test_damage_inside_an_image_is_found_by_decoding(coco_tree):
    data = bytearray((coco_tree.images / "a.png").read_bytes())
    start = data.index(b"IDAT") + 12
    data[start : start + 8] = b"\xff" * 8
    (coco_tree.images / "a.png").write_bytes(data)
    path = coco_tree.write()
    assert check_source(path, decode=False).passed
    checked = check_source(path)
    assert checked.report.counts == {"unreadable_image": 1} and checked.report.images == 0
    assert checked.report.places["unreadable_image"][0].startswith("a.png: cannot decode the image")


def test_class_masks_are_checked_on_request_and_stop_nothing(voc_tree):
    voc_tree.add("b")
    voc_tree.add_mask("a", np.full((HEIGHT, WIDTH), 7, dtype=np.uint8))
    voc_tree.add_mask("b")
    assert check_source(voc_tree.root).passed
    checked = check_source(voc_tree.root, options=WITH_MASKS)
    assert checked.report.counts == {"invalid_class_mask": 1} and checked.report.images == 1
    assert "holds the value 7, but there are 1 classes" in checked.summary()


def test_masks_of_objects_are_checked_on_request(coco_tree):
    coco_tree.content["annotations"] = [coco_tree.annotation(segmentation=[[1, 2, 3, 4]])]
    assert check_source(coco_tree.write()).passed
    assert check_source(coco_tree.write(), options=WITH_MASKS).report.counts == {"invalid_mask": 1}


def test_workers_do_not_change_the_report(coco_tree):
    for number in range(2, 60):
        coco_tree.add_image(f"{number:02d}.png", number)
        box = [10, 8, 20, 16] if number % 3 else [10, 8, 0, 16]
        coco_tree.content["annotations"].append(coco_tree.annotation(id=number, image_id=number, bbox=box))
    path = coco_tree.write()
    one, many = check_source(path, num_workers=1).report, check_source(path, num_workers=5).report
    assert one == many and one.counts["degenerate_box"] == 19
    assert [place[:6] for place in one.places["degenerate_box"][:3]] == ["03.png", "06.png", "09.png"]


def test_lines_that_stop_a_training_are_printed(yolo_tree):
    yolo_tree.add("a", "0 320 240 100 80\n0 0.5 0.5 0.2 0.2\n")
    checked = check_source(yolo_tree.root)
    assert not checked.passed and "labels/a.txt: line 1 holds pixels" in checked.summary()


def test_nothing_usable_is_no_pass_and_nothing_readable_is_an_error(coco_tree):
    coco_tree.content["images"][0] |= {"width": 10, "height": 10}
    assert not check_source(coco_tree.write()).passed
    with pytest.raises(FileNotFoundError, match="annotations not found"):
        check_source(coco_tree.root / "gone.json")


def test_without_images_coco_annotations_are_checked_against_the_stated_sizes(coco_tree):
    boxes = ([10, 8, 20, 16], [50, 30, 30, 30], [5, 5, 0, 0], [10, 8, -5, 5])
    coco_tree.content["annotations"] = [coco_tree.annotation(id=i, bbox=box) for i, box in enumerate(boxes, start=1)]
    coco_tree.content["annotations"][0]["segmentation"] = [[1, 2, 3, 4]]
    coco_tree.add_image("b.png", 2)
    coco_tree.content["images"].append({"id": 3, "file_name": "no_size.png"})
    coco_tree.content["annotations"].append(coco_tree.annotation(id=5, image_id=3, bbox=[-9, 0, 5000, 20]))
    (coco_tree.images / "a.png").unlink()
    checked = check_source(coco_tree.write(), options=WITH_MASKS)
    assert not checked.passed and (checked.report.images, checked.report.objects) == (3, 4)
    assert checked.report.counts == {"missing_image": 2, "clipped_box": 2, "degenerate_box": 1, "corners_swapped": 1,
                                     "invalid_mask": 1, "empty_image": 1, "size_unknown": 1}  # fmt: skip
    assert checked.report.places["missing_image"] == ["a.png", "no_size.png"]
    assert f"2 of 3 images do not exist in {coco_tree.images}" in checked.summary()
    assert "missing_image: 2 (image that does not exist; annotations checked), e.g. a.png" in checked.summary()
    assert "against the stated sizes" in checked.summary() and "--images" in checked.summary()


def test_without_images_voc_annotations_are_checked_against_the_stated_sizes(voc_tree):
    voc_tree.add("b", voc_tree.xml("b.png", objects=[voc_tree.object(box=(1, 1, 90, 20))]))
    voc_tree.add("c", voc_tree.xml("c.png", size=None, objects=[voc_tree.object(box=(3, 3, 3000, 20))]))
    for path in (voc_tree.root / "JPEGImages").iterdir():
        path.unlink()
    checked = check_source(voc_tree.root)
    assert (checked.report.images, checked.report.objects) == (3, 3)
    assert checked.report.counts == {"missing_image": 3, "clipped_box": 1, "size_unknown": 1}
    assert f"3 of 3 images do not exist in {voc_tree.root}/JPEGImages" in checked.summary()


def test_without_images_yolo_labels_are_checked_as_fractions(yolo_tree):
    yolo_tree.add("sub.1/b", "0 0.5 0.5 1.2 0.2\n3 0.5 0.5 0.2 0.2\n0 320 240 10 10\n0 0.5 0.5 0.2 0\n")
    shutil.rmtree(yolo_tree.root / "images")
    checked = check_source(yolo_tree.root)
    assert (checked.report.images, checked.report.objects) == (1, 1)
    assert checked.report.counts == {"missing_image": 2, "clipped_box": 1, "unlisted_class": 1, "pixel_values": 1,
                                     "incomplete_image": 1, "degenerate_box": 1}  # fmt: skip
    assert checked.report.places["missing_image"] == ["a.*", "sub.1/b.*"] and "as fractions" in checked.summary()
    yolo_tree.write("train.txt", "images/a.png\nimages/gone.png\n")
    yolo_tree.write("data.yaml", "names: [thing]\ntrain: train.txt\n")
    yolo_tree.write("labels/gone.txt", "0 0.5 0.5 0.2 0\n")
    assert check_source(yolo_tree.root).report.counts == {"missing_image": 2, "degenerate_box": 1, "empty_image": 1}


@pytest.mark.parametrize("place", ["Annotations/a.xml", "Annotations/sub/a.xml", "alone/a.xml"])
def test_one_xml_file_can_be_checked_alone(voc_tree, place):
    voc_tree.add("other", "no xml")
    voc_tree.add("more")
    file = voc_tree.root / place
    file.parent.mkdir(exist_ok=True)
    (voc_tree.root / "Annotations" / "a.xml").rename(file)
    image_file = {"alone": file.parent}.get(file.parent.name, voc_tree.root / "JPEGImages") / file.relative_to(
        voc_tree.root / place.split("/")[0]
    ).with_suffix(".png")
    image_file.parent.mkdir(exist_ok=True)
    (voc_tree.root / "JPEGImages" / "a.png").rename(image_file)
    checked = check_source(file)
    assert checked.passed and checked.format == "voc" and checked.report.counts == {}, checked.summary()
    assert (checked.report.images, checked.report.objects) == (1, 1)
    image_file.unlink()
    assert check_source(file).report.counts == {"missing_image": 1}
    assert check_source(file, voc_tree.root / "JPEGImages").report.counts == {"missing_image": 1}
    with pytest.raises(ValueError, match="--split.* is for a folder.*a.xml is one annotation file"):
        check_source(file, options=replace(SOURCE_OPTIONS, split="train"))


def test_a_folder_without_class_masks_gets_a_full_report(voc_tree):
    voc_tree.add("b", voc_tree.xml("b.png", objects=[voc_tree.object(box=(1, 1, 90, 20))]))
    (voc_tree.root / "SegmentationClass").rmdir()
    checked = check_source(voc_tree.root, options=WITH_MASKS)
    assert checked.report.counts == {"missing_mask": 2, "clipped_box": 1} and checked.report.objects == 2
    voc_tree.root.joinpath("SegmentationClass").mkdir()
    voc_tree.add_mask("a", np.full((HEIGHT, WIDTH), 7, dtype=np.uint8))
    counts = check_source(voc_tree.root, options=WITH_MASKS).report.counts
    assert counts == {"missing_mask": 1, "clipped_box": 1, "invalid_class_mask": 1}


@pytest.mark.parametrize("percent", [2, 20, 40, 60, 80])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_cut_image_counts_as_cut_wherever_it_is_cut(coco_tree, suffix, percent):
    path = coco_tree.images / f"a.{suffix}"
    make_image().save(path)
    coco_tree.content["images"][0]["file_name"] = path.name
    data = path.read_bytes()
    path.write_bytes(data[: max(len(data) * percent // 100, 8)])
    assert check_source(coco_tree.write()).report.counts == {"truncated_image": 1}


def test_a_huge_image_is_counted_and_not_decoded(coco_tree):
    Image.new("1", (20_000, 10_000)).save(coco_tree.images / "b.png")
    coco_tree.content["images"].append({"id": 2, "file_name": "b.png", "width": 20_000, "height": 10_000})
    report = check_source(coco_tree.write()).report
    assert report.counts == {"image_too_large": 1} and report.images == 1
    assert "max_pixels" in report.places["image_too_large"][0]


def test_report_can_be_saved_as_json(coco_tree, tmp_path):
    coco_tree.content["annotations"].append(coco_tree.annotation(id=2, bbox=[0, 0, 0, 0]))
    checked = check_source(coco_tree.write())
    checked.report.save(tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["counts"] == {"degenerate_box": 1} and content["images"] == 1
    assert content["places"]["degenerate_box"] == ["a.png: annotation 2 [0, 0, 0, 0]"]
    assert make_image().size == (WIDTH, HEIGHT)


def test_every_place_is_in_the_json_file(coco_tree, tmp_path):
    boxes = [coco_tree.annotation(id=number, bbox=[10, 8, 0, 16]) for number in range(100, 150)]
    coco_tree.content["annotations"].extend(boxes)
    check_source(coco_tree.write()).report.save(tmp_path / "report.json")
    places = json.loads((tmp_path / "report.json").read_text())["places"]["degenerate_box"]
    assert [place.split(" [")[0] for place in places] == [f"a.png: annotation {number}" for number in range(100, 150)]


def test_a_class_mask_of_a_data_set_with_a_value_that_is_no_class_is_an_error(voc_tree, tmp_path):
    for name in "ab":
        voc_tree.add(name)
        voc_tree.add_mask(name)
    write_dataset(tmp_path / "exported", Export("voc", voc_tree.root, with_images=True), ReadOptions(masks=True))
    (file,) = (tmp_path / "exported").rglob("*.parquet")
    table = pq.read_table(file)
    rows = table.to_pylist()
    rows[1]["mask"]["bytes"] = voc_tree.add_mask("b", np.full((HEIGHT, WIDTH), 7, dtype=np.uint8)).read_bytes()
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)
    checked = check_source(tmp_path / "exported", options=WITH_MASKS)
    assert not checked.passed and checked.report.counts == {"invalid_class_mask": 1} and checked.report.images == 1
    assert "the class mask of b.png holds the value 7, but there are 1 classes" in checked.summary()


# Sizes that a file states bound no memory: each of these took gigabytes, or ended in the C code of pycocotools.


@pytest.mark.parametrize("masks", [False, True])
def test_an_image_that_does_not_exist_is_not_as_large_as_its_file_says(coco_tree, masks):
    coco_tree.content["images"][0].update(file_name="gone.png", width=10**9, height=10**9)
    coco_tree.content["annotations"] = [coco_tree.annotation(segmentation=[[0, 0, 10**9, 0, 10**9, 10**9]])]
    report = check_source(coco_tree.write(), options=replace(SOURCE_OPTIONS, masks=masks)).report
    assert report.counts == {"missing_image": 1, "image_too_large": 1} and report.objects == 0


def test_a_stated_size_that_is_believed_keeps_the_limit(coco_tree):
    coco_tree.content["images"][0].update(width=60_000, height=60_000)
    for options in ({"size_mismatch": "rescale"}, {"verify_images": False}):
        report = check_source(coco_tree.write(), options=replace(SOURCE_OPTIONS, **options)).report
        assert report.counts == {"image_too_large": 1}
    assert check_source(coco_tree.write()).report.counts == {"size_mismatch": 1}


def test_outlines_are_as_long_as_their_image_allows(coco_tree):
    zigzag = [value for number in range(50_000) for value in (0, 0, WIDTH, HEIGHT - number % 2)]
    outline = [10, 8, 30, 8, 30, 24, 10, 24]
    many = [outline] * 2000
    for segmentation, invalid in (([zigzag], 1), ([outline], 0), (many, 1)):
        coco_tree.content["annotations"] = [coco_tree.annotation(segmentation=segmentation)]
        report = check_source(coco_tree.write(), options=replace(SOURCE_OPTIONS, masks=True)).report
        assert report.objects == 1 and bool(report.counts.get("invalid_mask")) == bool(invalid)


ODD_COUNTS = [3, True, 2.5, None, "", [2**40], ["9"], [-1, 41], {"a": 1}, [[1]], "o" * 99]
ODD_SIZES = [[HEIGHT, WIDTH], [65536, 65536], [2**40, 2**40], [1, 2400], "40 60", None, [HEIGHT, WIDTH, 1]]


def test_run_lengths_of_any_type_are_counted_or_skipped(coco_tree):
    pairs = [{"size": size, "counts": counts} for size in ODD_SIZES for counts in ODD_COUNTS]
    coco_tree.content["annotations"] = [
        coco_tree.annotation(id=number, segmentation=rle) for number, rle in enumerate(pairs, start=1)
    ]
    report = check_source(coco_tree.write(), options=replace(SOURCE_OPTIONS, masks=True)).report
    assert report.counts == {"invalid_mask": len(pairs)} and report.objects == len(pairs)
    for annotation in coco_tree.content["annotations"]:
        del annotation["bbox"]
    assert check_source(coco_tree.write()).report.counts["no_box"] == len(pairs)


def test_many_class_names_take_no_time(coco_tree, yolo_tree):
    names = [f"thing {number // 2}" for number in range(60_000)]
    coco_tree.content["categories"] = [{"id": number, "name": name} for number, name in enumerate(names)]
    yolo_tree.write("data.yaml", f"names: {json.dumps(names)}\n")
    start = time.process_time()
    for path in (coco_tree.write(), yolo_tree.root):
        assert check_source(path).report.counts["duplicate_category_name"] == 60_000
    assert time.process_time() - start < 40


def test_many_classes_and_objects_take_no_time(coco_tree, tmp_path):
    """Objects of classes that no list names, and of none, among many classes; and classes of several files."""
    count = 20_000
    names = [{"id": number, "name": f"{number}"} for number in range(1, count)] + [{"id": count, "name": "object"}]
    annotations = [coco_tree.annotation(id=number, category_id=count + number) for number in range(1, count)]
    annotations += [coco_tree.annotation(id=count + number, category_id=...) for number in range(count)]
    coco_tree.content |= {"categories": names, "annotations": annotations}
    start = time.process_time()
    report = check_source(coco_tree.write()).report
    assert report.counts == {"unlisted_class": count - 1, "no_class_name": count}
    for split in ("train", "valid"):
        categories = [{"id": number, "name": f"{split} {number}"} for number in range(1, count)]
        content = coco_tree.content | {"categories": categories, "annotations": [coco_tree.annotation()]}
        (tmp_path / "parts" / split).mkdir(parents=True)
        (tmp_path / "parts" / split / "_annotations.coco.json").write_text(json.dumps(content))
        shutil.copy(coco_tree.images / "a.png", tmp_path / "parts" / split)
    assert check_source(tmp_path / "parts").report.counts == {}
    assert time.process_time() - start < 10


def boxes_beside_masks(coco_tree, factor, count=6):
    """`count` objects whose mask is 40 x 30 pixels at (10, 5), and whose box is `factor` times as large."""
    outline = [10, 5, 50, 5, 50, 35, 10, 35]
    width, height = 40 * factor, 30 * factor
    box = [30 - width / 2, 20 - height / 2, width, height]
    coco_tree.content["annotations"] = [
        coco_tree.annotation(id=number + 1, bbox=box, segmentation=[outline]) for number in range(count)
    ]
    return coco_tree.write()


@pytest.mark.parametrize(
    "factor, line",
    [
        (
            1.25,
            "boxes look loose: the masks end before them, in the median of 6 objects by left 10 %, top 10 %, "
            "right 10 %, bottom 10 % of the box. For masks from these boxes pass --grow-boxes -0.10 to lpg-hf masks",
        ),
        (
            0.8,
            "boxes look shrunken: the masks leave them, in the median of 6 objects by left 12 %, top 12 %, "
            "right 12 %, bottom 12 % of the box. For masks from these boxes pass --grow-boxes 0.12 to lpg-hf masks",
        ),
    ],
)
def test_boxes_that_do_not_fit_their_masks_are_named_once(coco_tree, factor, line):
    path = boxes_beside_masks(coco_tree, factor)
    checked = check_source(path, options=WITH_MASKS)
    assert not checked.passed and checked.report.counts == {}
    assert checked.summary().count(line) == 1
    assert check_source(path).passed  # Without --masks no mask is read.


@pytest.mark.parametrize("factor, count", [(1, 6), (1.1, 6), (0.95, 6), (1.25, 4)])
def test_boxes_that_nearly_fit_or_are_few_are_not_called_loose(coco_tree, factor, count):
    assert check_source(boxes_beside_masks(coco_tree, factor, count), options=WITH_MASKS).passed


def test_boxes_as_corners_are_named_once_if_most_are(coco_tree):
    corners, good = [30, 20, 55, 38], [10, 8, 20, 16]
    line = "boxes look like corners: 2 of 3 reach over the border as x, y, width, height, and fit as x1, y1, x2, y2. "
    for boxes, times in (([corners, corners, good], 1), ([corners, good, good], 0)):
        coco_tree.content["annotations"] = [
            coco_tree.annotation(id=number + 1, bbox=box) for number, box in enumerate(boxes)
        ]
        summary = check_source(coco_tree.write()).summary()
        assert summary.count(line) == times and summary.count("--box-format xyxy") == times


def test_boxes_that_look_0_based_are_named_once(voc_tree):
    for number in range(3):
        xml = voc_tree.xml(f"{number}.png", objects=[voc_tree.object(box=(0, 3, 20, 30))])
        voc_tree.add(str(number), xml)
    line = "boxes look 0-based: 3 of 4 have xmin or ymin 0, and Pascal VOC counts from 1. "
    assert check_source(voc_tree.root).summary().count(line) == 1
    checked = check_source(voc_tree.root, options=replace(SOURCE_OPTIONS, zero_based=True))
    assert checked.passed and "0-based" not in checked.summary()
