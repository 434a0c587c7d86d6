"""Requirements from field faults that hold for every format: each on COCO, VOC, YOLO and an exported dataset."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from trees import HEIGHT, RED, WIDTH, add_everywhere, make_image

from lpg_hf.data.check import check_source
from lpg_hf.data.convert import WITH_MASKS
from lpg_hf.data.export import _write_shards
from lpg_hf.data.load import load_boxes
from lpg_hf.data.options import SOURCE_OPTIONS
from lpg_hf.data.report import Report
from lpg_hf.data.sources import open_source
from lpg_hf.images import MAX_PIXELS


BASE_BOX = (10, 8, 30, 24)


@pytest.fixture(params=["coco", "voc", "yolo"])
def tree(request):
    tree = request.getfixturevalue(f"{request.param}_tree")
    if request.param == "coco":
        tree.write()
    return tree


def opened(tree, **options):
    report = Report()
    source = open_source(tree.root, options=replace(SOURCE_OPTIONS, **options), report=report)
    return source, [source.record(i, report) for i in range(len(source))], report


def box_of(record):
    return pytest.approx(record.objects[0].box, abs=1e-3)


def test_images_without_boxes_are_background(tree):
    add_everywhere(tree, "b.png")
    if hasattr(tree, "content"):
        tree.content["annotations"].pop()
        tree.write()
    elif (tree.root / "Annotations").is_dir():
        tree.add("b", tree.xml("b.png", objects=[]))
    else:
        tree.add("b", "")
    source, records, _ = opened(tree)
    assert [len(r.objects) for r in records] == [1, 0] and source.image(records[1]).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_the_box_falls_on_the_shown_pixels(tree, orientation):
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # what stores an upright image turned, by Pillow's numbers
    stored = make_image().transpose(Image.Transpose(turn[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = add_everywhere(tree, "b.png")
    stored.save(path, exif=exif)
    source, records, report = opened(tree)
    image = source.image(records[1])
    assert image.shape == (HEIGHT, WIDTH, 3) and box_of(records[1]) == BASE_BOX and report.counts == {}
    red = (image == RED).all(-1)
    assert red[8:24, 10:30].all() and red.sum() == 320


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA", "P", "1", "CMYK"])
def test_every_mode_becomes_rgb(tree, mode):
    path = add_everywhere(tree, "b.tif" if mode == "CMYK" else "b.png")
    make_image().convert(mode).save(path)
    source, records, report = opened(tree)
    image = source.image(records[1])
    assert image.shape == (HEIGHT, WIDTH, 3) and image.dtype == np.uint8 and report.counts == {}


def test_sixteen_bits_are_scaled(tree):
    ramp = np.tile(np.linspace(0, 65520, WIDTH).astype(np.uint16), (HEIGHT, 1))
    Image.fromarray(ramp).save(add_everywhere(tree, "b.png"))
    source, records, _ = opened(tree)
    image = source.image(records[1])
    assert image.min() == 0 and image.max() == 255 and abs(image.mean() - 127) < 2


def test_bad_images_are_counted_and_the_others_used(tree):
    for name in ("b.jpg", "c.png", "d.png", "e.png"):
        path = add_everywhere(tree, name)
    cut = path.with_name("b.jpg")
    Image.effect_noise((WIDTH, HEIGHT), 50).save(cut)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 6 // 10])
    path.with_name("c.png").write_bytes(b"")
    path.with_name("d.png").write_text("<html>not found</html>")
    Image.new("1", (20_000, 10_000)).save(path)
    before = Image.MAX_IMAGE_PIXELS
    report = check_source(tree.root).report
    assert report.counts == {"truncated_image": 1, "unreadable_image": 2, "image_too_large": 1} and report.images == 1
    (place,) = report.places["image_too_large"]
    assert "e.png has 20000 x 10000" in place and "max_pixels" in place and 20_000 * 10_000 > MAX_PIXELS
    assert Image.MAX_IMAGE_PIXELS == before


def test_suffixes_in_any_case(tree):
    for name in ("b.JPG", "c.PNG", "d.Jpeg", "e.WEBP", "f.Tif", "g.BMP"):
        add_everywhere(tree, name)
    _, records, report = opened(tree)
    assert [r.file_name for r in records] == ["a.png", "b.JPG", "c.PNG", "d.Jpeg", "e.WEBP", "f.Tif", "g.BMP"]
    assert all(box_of(r) == BASE_BOX for r in records) and report.counts == {}


@pytest.mark.parametrize(
    "name", ["set1/a.png", "données/图片 1.png", "a..b.png", "x/.../y.png", "-n.png", "50%#1.png", "'q'.png"]
)
def test_harmless_names_keep_their_relative_path(tree, name):
    add_everywhere(tree, name)
    source, records, report = opened(tree)
    assert name in source.file_names and report.counts == {}
    record = records[source.file_names.index(name)]
    assert box_of(record) == BASE_BOX and source.image(record).shape == (HEIGHT, WIDTH, 3)


def test_backslashes_become_forward_slashes(coco_tree, voc_tree, yolo_tree):
    for tree in (coco_tree, voc_tree, yolo_tree):
        add_everywhere(tree, "set2/b.png")
    coco_tree.content["images"][1]["file_name"] = "set2\\b.png"
    coco_tree.write()
    voc_tree.add("set2/b", voc_tree.xml("set2\\b.png"), "set2/b.png")
    yolo_tree.write("data.yaml", "train: list.txt\nnames: [thing]\n")
    yolo_tree.write("list.txt", ".\\images\\a.png\r\nimages\\set2\\b.png\r\n")
    for tree in (coco_tree, voc_tree, yolo_tree):
        source, records, report = opened(tree)
        assert source.file_names == ["a.png", "set2/b.png"] and report.counts == {}


def test_an_image_that_is_a_link_to_the_outside_is_refused(tree, tmp_path):
    secret = tmp_path / "secret.png"
    make_image().save(secret)
    path = add_everywhere(tree, "b.png")
    path.unlink()
    path.symlink_to(secret)
    source, records, report = opened(tree)
    assert source.file_names == ["a.png"] and report.counts == {"unsafe_path": 1}
    assert "b" in report.places["unsafe_path"][0] and report.needs_attention


def test_a_folder_that_is_a_link_to_the_outside_is_refused(tree, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    make_image().save(outside / "b.png")
    path = add_everywhere(tree, "set/b.png")
    path.unlink()
    path.parent.rmdir()
    path.parent.symlink_to(outside)
    source, _, report = opened(tree)
    assert source.file_names == ["a.png"] and report.needs_attention


@pytest.mark.parametrize(
    "name", ["../../secret.png", "/etc/hostname", "a/../../b.png", "C:\\x.png", "..", "\\\\host\\x.png"]
)
def test_names_that_lead_outside_are_refused(coco_tree, voc_tree, yolo_tree, name):
    coco_tree.content["images"].append({"id": 2, "file_name": name, "width": WIDTH, "height": HEIGHT})
    coco_tree.write()
    (voc_tree.root / "Annotations" / "b.xml").write_text(voc_tree.xml(name))
    yolo_tree.write("data.yaml", "train: list.txt\nnames: [thing]\n")
    yolo_tree.write("list.txt", f"images/a.png\n{name}\n")
    for tree in (coco_tree, voc_tree, yolo_tree):
        source, records, report = opened(tree)
        assert source.file_names == ["a.png"] and report.counts == {"unsafe_path": 1}, report.summary()
        place = report.places["unsafe_path"][0].replace("\\\\", "/").replace("\\", "/")
        assert name.replace("\\\\", "/").replace("\\", "/") in place


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tgz"])
def test_archives_are_not_accepted(tmp_path, suffix):
    path = tmp_path / f"data{suffix}"
    path.write_bytes(b"PK")
    with pytest.raises(ValueError, match=f"data{suffix} is an archive; archives are not read. Unpack it"):
        open_source(path, report=Report())


def test_a_class_mask_of_another_size_is_named_with_its_image(voc_tree):
    voc_tree.add_mask("a", np.zeros((HEIGHT + 1, WIDTH), dtype=np.uint8))
    checked = check_source(voc_tree.root, options=WITH_MASKS)
    for text in ("SegmentationClass/a.png is 60 x 41", "its image a.png 60 x 40", "never resized"):
        assert text in checked.summary()


@pytest.mark.parametrize("line", ["0 -164 -221 208543216 352186880 226 236", "0 -0.9 -0.9 1.9 1.9 1.9 -0.9"])
def test_outlines_far_outside_are_bounded(yolo_tree, line):
    yolo_tree.add("b", f"{line}\n{yolo_tree.LINE}\n")
    _, (_, record), report = opened(yolo_tree, masks=True)
    assert (record is None or len(record.objects) == 2) and report.needs_attention


LOCALE_SCRIPT = """
import sys
from lpg_hf.data.convert import convert_labels, WITH_MASKS
from lpg_hf.data.report import Report
from lpg_hf.data.sources import open_source
from lpg_hf._files import unicode_path
root, report = unicode_path(sys.argv[1]), Report()
source = open_source(root, report=report)
records = [source.record(i, report) for i in range(len(source))]
assert source.file_names == ["a.png", "donn\\u00e9es/\\u56fe\\u7247 1.png"], ascii(source.file_names)
assert source.classes[0][1] == "\\u72ac \\u010d", ascii(source.classes)
assert [source.image(r).shape for r in records] == [(40, 60, 3)] * 2
for target in ("coco", "voc", "yolo"):
    convert_labels(root, root + "-" + target, target)
"""


@pytest.mark.parametrize("locale", [{"PYTHONUTF8": "0", "LC_ALL": "C"}, {"PYTHONUTF8": "1"}])
def test_names_are_utf8_whatever_the_locale(tree, locale):
    add_everywhere(tree, "données/图片 1.png")
    if hasattr(tree, "content"):
        tree.content["categories"][0]["name"] = "犬 č"
        tree.write()
    else:
        (tree.root / "classes.txt").write_bytes("犬 č\n".encode())
        for path in tree.root.glob("Annotations/**/*.xml"):
            path.write_bytes(path.read_bytes().replace(b"<name>thing", "<name>犬 č".encode()))
    environment = {**os.environ, **locale, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", LOCALE_SCRIPT, os.fsencode(tree.root)], env=environment, check=True)
    coco = json.loads((tree.root.with_name(f"{tree.root.name}-coco") / "annotations.json").read_bytes())
    assert coco["images"][1]["file_name"] == "données/图片 1.png" and coco["categories"][0]["name"] == "犬 č"
    for target, file in (("voc", "Annotations/données/图片 1.xml"), ("yolo", "labels/données/图片 1.txt")):
        folder = tree.root.with_name(f"{tree.root.name}-{target}")
        assert (folder / file).is_file() and (folder / "classes.txt").read_bytes() == "犬 č\n".encode()


def test_an_exported_data_set_gives_what_its_source_gives(tree, tmp_path):
    add_everywhere(tree, "données/图片 1.png")
    format = opened(tree)[0].format
    (tmp_path / "data").mkdir()
    _write_shards(load_boxes(format, root=tree.root), tmp_path / "data", "train", 100)
    _, records, _ = opened(tree)
    report = Report()
    source = open_source(tmp_path / "data", report=report)
    again = [source.record(i, report) for i in range(len(source))]
    assert [(r.file_name, box_of(r)) for r in again] == [(r.file_name, r.objects[0].box) for r in records]
    assert (source.image(again[0])[8:24, 10:30] == RED).all() and report.counts == {}
