"""Image headers, orientation, limits, and the report."""

import subprocess
import sys

import pytest
from PIL import Image

from lpg_hf.data.options import ReadOptions
from lpg_hf.data.records import image_geometry
from lpg_hf.data.report import MAX_PLACES, PROBLEMS, Report
from lpg_hf.images import ImageProblem, _exif_orientation, image_size, read_rgb


def check(path, **options):
    report = Report()
    return image_geometry(str(path), path.name, None, ReadOptions(**options), report), report


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_size_is_that_of_the_upright_image(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (60, 40)).save(tmp_path / f"a.{suffix}", exif=exif)
    size = image_size(str(tmp_path / f"a.{suffix}"), "a")
    assert size == ((60, 40) if orientation >= 5 else (40, 60))


@pytest.mark.parametrize(
    "data", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", b"P7 332\n9 9\n"]
)
def test_the_content_of_an_image_is_of_a_listed_format(tmp_path, data):
    """Pillow hands PostScript to another program."""
    (tmp_path / "a.jpg").write_bytes(data)
    frame, report = check(tmp_path / "a.jpg")
    assert frame is None and report.counts == {"unreadable_image": 1}
    with pytest.raises(ImageProblem, match="not an image of a known format"):
        read_rgb(tmp_path / "a.jpg")


def test_cut_images_are_named_by_the_check(tmp_path):
    for suffix in ("jpg", "png", "bmp", "tif"):
        Image.effect_noise((60, 40), 50).save(tmp_path / f"a.{suffix}")
        data = (tmp_path / f"a.{suffix}").read_bytes()
        assert check(tmp_path / f"a.{suffix}")[0] is not None
        (tmp_path / f"a.{suffix}").write_bytes(data[: len(data) * 6 // 10])
        frame, report = check(tmp_path / f"a.{suffix}")
        assert frame is None and report.counts == {"truncated_image": 1}
        assert f"a.{suffix} is cut off" in report.places["truncated_image"][0]


def test_bytes_after_the_end_mark_do_not_matter(tmp_path):
    Image.new("RGB", (60, 40)).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes() + b"\0" * 200)
    assert check(tmp_path / "a.jpg")[1].counts == {"size_from_image": 1}


@pytest.mark.parametrize("data", [b"", b"text", b"GIF89a"])
def test_files_that_are_no_image_are_counted(tmp_path, data):
    (tmp_path / "a.png").write_bytes(data)
    frame, report = check(tmp_path / "a.png")
    assert frame is None and report.counts == {"unreadable_image": 1}
    assert str(tmp_path) not in report.places["unreadable_image"][0]


def test_huge_image_is_refused_with_size_and_option(tmp_path):
    Image.new("1", (20000, 10000)).save(tmp_path / "a.png")
    frame, report = check(tmp_path / "a.png")
    assert frame is None and report.counts == {"image_too_large": 1}
    text = report.places["image_too_large"][0]
    assert "a.png has 20000 x 10000" in text and "raise max_pixels" in text
    assert check(tmp_path / "a.png", max_pixels=200_000_000)[0].size == (10000, 20000)


def test_importing_leaves_pillows_limit_alone():
    code = (
        "from PIL import Image; before = Image.MAX_IMAGE_PIXELS; "
        "import lpg_hf.data._examples, lpg_hf.data._formats.coco; assert Image.MAX_IMAGE_PIXELS == before is not None"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


def test_pillows_limit_is_restored_after_a_failed_open(tmp_path):
    before = Image.MAX_IMAGE_PIXELS
    (tmp_path / "a.png").write_bytes(b"no image")
    check(tmp_path / "a.png")
    assert Image.MAX_IMAGE_PIXELS == before


def test_orientation_of_a_png_is_read_without_decoding(tmp_path):
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert _exif_orientation(image) == 1 and image._im is None


def test_report_counts_keeps_the_first_places_and_merges(tmp_path):
    first, second = Report(images=1, objects=2, classes=["1 a"]), Report(images=2, objects=3)
    for i in range(MAX_PLACES + 5):
        first.add("unknown_class", f"a.xml: object {i}", "foo")
    second.add("unknown_class", "b.xml: object 1", "bar")
    second.add("no_box", "b.xml: object 2")
    second.save(tmp_path / "report.json")
    first.merge(Report.load(tmp_path / "report.json"))
    assert (first.images, first.objects) == (3, 5)
    assert first.counts == {"unknown_class": MAX_PLACES + 6, "no_box": 1}
    assert len(first.places["unknown_class"]) == MAX_PLACES
    assert first.details["unknown_class"] == {"foo": MAX_PLACES + 5, "bar": 1}
    summary = first.summary()
    assert "3 images, 5 objects, 1 classes" in summary and f"foo {MAX_PLACES + 5}, bar 1" in summary
    assert "b.xml: object 2" in summary and len(summary.splitlines()) == 3


def test_every_kind_of_problem_that_is_counted_is_explained():
    report = Report()
    with pytest.raises(KeyError, match="unknown kind"):
        report.add("surprise", "a.png")
    for kind in PROBLEMS:
        report.add(kind, "a.png")
    assert all(kind.meaning in report.summary() for kind in PROBLEMS.values())
