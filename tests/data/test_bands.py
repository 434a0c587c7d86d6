"""Images of more than 8 bits, of floats and of several bands, as 8-bit RGB: in all commands, with what was assumed."""

import json
import struct
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from lpg_hf._bands import Bands, Rendering, num_pages
from lpg_hf.cli import main
from lpg_hf.data._examples import decode_image
from lpg_hf.data.check import check_source
from lpg_hf.data.load import load_boxes
from lpg_hf.data.options import ReadOptions
from lpg_hf.images import ImageProblem, image_size, read_rgb
from lpg_hf.training.config import DataSettings


SHARES = np.stack([np.tile(np.linspace(0, 1, 60), (40, 1)), np.tile(np.linspace(1, 0, 40)[:, None], (1, 60))], axis=-1)
SHARES = np.dstack([SHARES, np.full((40, 60), 0.5)])  # red to the right, green to the top, blue everywhere
EXPECTED = np.round(SHARES * 255).astype(np.uint8)
NOT_TURNED = np.arange(40 * 60 * 7, dtype=np.uint16).reshape(40, 60, 7)


def of_bits(bits: int) -> np.ndarray:
    return np.round(SHARES * (2**bits - 1)).astype(np.uint16)


def write_tiff(path: Path, values: np.ndarray, **how) -> Path:
    is_rgb = values.shape[-1] in (3, 4)
    tifffile.imwrite(
        path, values, **{"photometric": "rgb" if is_rgb else "minisblack", "planarconfig": "contig"} | how
    )
    return path


def close(pixels: np.ndarray, expected: np.ndarray) -> bool:
    return np.abs(pixels.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("bits", [8, 11, 12, 16])
@pytest.mark.parametrize("kind", ["color.png", "color.tif", "grey.png", "grey.tif"])
def test_values_are_scaled_by_the_bits_that_they_use(tmp_path, bits, kind):
    values, notes = of_bits(bits), []
    if kind == "color.png":
        cv2.imwrite(str(tmp_path / kind), values[..., ::-1])
    elif kind == "color.tif":
        write_tiff(tmp_path / kind, values)
    else:
        Image.fromarray(values[..., 0]).save(tmp_path / kind)
    pixels = read_rgb(tmp_path / kind, notes=notes)
    assert close(pixels, EXPECTED if kind.startswith("color") else EXPECTED[..., :1])
    assert notes == [("scaled_values", f"uint16 of 0 to {2**bits - 1}")]


@pytest.mark.parametrize(
    "stretch, black, white",
    [("none", 0, 65535), ("bits", 0, 1023), ("minmax", 100, 900), ("25%,75%", 300, 700), ("200,600", 200, 600)],
)
def test_each_stretch_makes_its_two_values_black_and_white(tmp_path, stretch, black, white):
    values = np.linspace(100, 900, 2401).round().astype(np.uint16)[:, None]
    Image.fromarray(values).save(tmp_path / "a.png")
    notes = []
    pixels = read_rgb(tmp_path / "a.png", rendering=Rendering(stretch=stretch), notes=notes)[:, 0, 0]
    expected = np.clip((values[:, 0].astype(float) - black) / (white - black), 0, 1) * 255
    assert np.abs(pixels - expected).max() <= 1 and notes == []


def test_percentages_and_minmax_are_of_each_band_and_of_8_bits_too(tmp_path):
    values = np.dstack([EXPECTED[..., 0] // 4 + 100, EXPECTED[..., 0] // 2, EXPECTED[..., 0]])
    Image.fromarray(values).save(tmp_path / "a.png")
    pixels = read_rgb(tmp_path / "a.png", rendering=Rendering(stretch="minmax"))
    assert (pixels.min((0, 1)) == 0).all() and (pixels.max((0, 1)) == 255).all()
    assert (read_rgb(tmp_path / "a.png") == values).all()


def test_floats_are_stretched_without_pixels_that_hold_no_data(tmp_path):
    values = (SHARES[..., 0] * 0.3).astype(np.float32)
    values[:10], values[10] = -9999, np.nan
    tifffile.imwrite(tmp_path / "a.tif", values, extratags=[(42113, "s", 0, "-9999", True)])
    notes = []
    pixels = read_rgb(tmp_path / "a.tif", notes=notes)[..., 0]
    assert (pixels[:11] == 0).all() and pixels[11].min() == 0 and pixels[11].max() == 255
    assert notes[0][0] == "scaled_values" and abs(float(notes[0][1].split()[-1]) - 0.3 * 0.98) < 0.01
    plain = read_rgb(tmp_path / "a.tif", rendering=Rendering(stretch="none"))[11:, :, 0]
    assert close(plain, np.round(values[11:] * 255))


@pytest.mark.parametrize("layout", ["contig", "separate"])
@pytest.mark.parametrize("how", [{}, {"compression": "zlib", "predictor": True}, {"bigtiff": True, "tile": (16, 16)}])
def test_any_bands_of_many_are_red_green_and_blue(tmp_path, layout, how):
    values = np.dstack([of_bits(11), of_bits(11)[..., ::-1], of_bits(11)[..., :1]])  # 7 bands
    stored = values if layout == "contig" else np.moveaxis(values, -1, 0)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", planarconfig=layout, **how)
    assert image_size(str(tmp_path / "a.tif"), "a.tif") == (40, 60)
    notes = []
    assert close(read_rgb(tmp_path / "a.tif", notes=notes), EXPECTED)
    assert ("chosen_bands", "1,2,3 of 7") in notes
    for bands in ("6,5,4", [6, 5, 4]):
        assert close(read_rgb(tmp_path / "a.tif", rendering=Rendering(bands)), EXPECTED)
    assert close(read_rgb(tmp_path / "a.tif", rendering=Rendering("7")), EXPECTED[..., :1])
    assert close(read_rgb(BytesIO((tmp_path / "a.tif").read_bytes()), "a"), EXPECTED)
    with pytest.raises(ImageProblem, match="a.tif: it has 7 bands, and bands=8,2,1 needs 8"):
        read_rgb(tmp_path / "a.tif", rendering=Rendering("8,2,1"))


@pytest.mark.parametrize("kind", ["tagged.tif", "unspecified.tif", "untagged.tif", "a.png"])
def test_infrared_in_the_place_of_transparency_is_a_band(tmp_path, kind):
    infrared = np.random.default_rng(0).integers(20, 230, (40, 60), dtype=np.uint8)
    values, path = np.dstack([EXPECTED, infrared]), tmp_path / kind
    if kind == "a.png":
        Image.fromarray(values).save(path)
    else:
        tags = {"tagged.tif": ["unassalpha"], "unspecified.tif": ["unspecified"], "untagged.tif": None}[kind]
        write_tiff(path, values, extrasamples=tags)
    notes = []
    assert (read_rgb(path, notes=notes) == EXPECTED).all()
    told = ("chosen_bands", "1,2,3 of 4") if kind == "unspecified.tif" else ("alpha_as_band", "band 4")
    assert notes == [told]
    assert (read_rgb(path, rendering=Rendering("4,1,2")) == values[..., [3, 0, 1]]).all()


@pytest.mark.parametrize("bits", [8, 16])
def test_real_transparency_stays_transparent(tmp_path, bits):
    opacity = np.zeros((40, 60))
    opacity[:, 30:], opacity[:, 28:30] = 1, 0.5  # with a soft edge
    values = np.round(np.dstack([SHARES, opacity]) * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), values[..., [2, 1, 0, 3]])
    write_tiff(tmp_path / "a.tif", values, extrasamples=["unassalpha"])
    for name in ("a.png", "a.tif"):
        notes = []
        pixels = read_rgb(tmp_path / name, notes=notes)
        assert (pixels[:, :28] == 255).all() and close(pixels[:, 30:], EXPECTED[:, 30:]), name
        assert "alpha_as_band" not in dict(notes)
        assert close(read_rgb(tmp_path / name, rendering=Rendering("1,2,3")), EXPECTED), "asked for, it is a band"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_bands_are_turned_as_other_images_are(tmp_path, orientation):
    path = write_tiff(tmp_path / "a.tif", np.dstack([of_bits(12)] * 2), extratags=[(274, "H", 1, orientation, True)])
    write_tiff(tmp_path / "usual.tif", EXPECTED, extratags=[(274, "H", 1, orientation, True)])
    usual = read_rgb(tmp_path / "usual.tif")
    assert close(read_rgb(path), usual) and image_size(str(path), "a") == usual.shape[:2]


def test_a_limit_damage_and_a_missing_package_are_one_line_with_the_remedy(tmp_path):
    path = write_tiff(tmp_path / "a.tif", NOT_TURNED)
    with pytest.raises(ImageProblem, match=r"60 x 40 pixels and 7 bands, more than max_pixels=99") as error:
        image_size(str(path), "a.tif", max_pixels=99)
    assert error.value.kind == "image_too_large"
    (tmp_path / "cut.tif").write_bytes(path.read_bytes()[:-9000])
    for read in (read_rgb, lambda file: image_size(str(file), "cut.tif")):
        with pytest.raises(ImageProblem, match=r"cut\.tif"):
            read(tmp_path / "cut.tif")
    cv2.imwrite(str(tmp_path / "a.png"), of_bits(12))
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:-200])
    with pytest.raises(ImageProblem, match=r"cut\.png: image file is truncated"):
        read_rgb(tmp_path / "cut.png")
    code = f"import sys; sys.modules['tifffile'] = None\nfrom lpg_hf.images import read_rgb; read_rgb({str(path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.endswith("needs the extra tiff: pip install 'lpg_hf[tiff]'")


def test_a_page_without_a_size_is_damage_of_the_file(tmp_path):
    buffer = BytesIO()
    Image.new("RGB", (6, 4)).save(buffer, "TIFF")
    data = bytearray(buffer.getvalue())
    (first,) = struct.unpack_from("<I", data, 4)
    (num_tags,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<I", data, first + 2 + 12 * num_tags, len(data))  # where the next page is
    data += struct.pack("<HHHIII", 1, 305, 2, 2, 0, 0)  # with one tag, the name of a program
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(ImageProblem, match=r"cannot decode the image .*a\.tif") as error:
        read_rgb(tmp_path / "a.tif")
    assert error.value.kind == "unreadable_image"


@pytest.mark.parametrize(
    "given, text",
    [
        ({"bands": "1,2"}, r"bands='1,2' must be one or three numbers"),
        ({"bands": [0, 1, 2]}, r"bands=\[0, 1, 2\] must be"),
        ({"stretch": "most"}, r"stretch='most' must be one of none, bits, minmax, or two percentages"),
        ({"stretch": "98%,2%"}, "the lower one first"),
        ({"stretch": "2%,9"}, "or two percentages"),
        ({"stretch": "2%,101%"}, "or two percentages"),
    ],
)
def test_what_is_no_choice_is_named(given, text):
    with pytest.raises(ValueError, match=text):
        ReadOptions(**given)


@pytest.fixture
def satellite(coco_tree) -> Path:
    """A COCO file whose only image has seven bands of 11 bits: its red, green and blue are 6, 5 and 4."""
    values = np.dstack([of_bits(11)[..., :1]] * 3 + [of_bits(11)[..., ::-1], of_bits(11)[..., :1]])
    write_tiff(coco_tree.images / "a.tif", values)
    coco_tree.content["images"][0]["file_name"] = "a.tif"
    return coco_tree.write()


def test_check_counts_what_was_assumed_and_nothing_once_it_is_said(satellite, coco_tree):
    checked = check_source(satellite)
    assert checked.report.counts == {"chosen_bands": 1, "scaled_values": 1} and checked.passed
    assert "a.tif: 1,2,3 of 7" in checked.summary() and "a.tif: uint16 of 0 to 2047" in checked.summary()
    assert check_source(satellite, options=ReadOptions(bands="6,5,4", stretch="bits")).report.counts == {}
    Image.fromarray(np.full((40, 60), 0.5, dtype=np.float32)).save(coco_tree.images / "a.tif")
    assert check_source(satellite).report.counts == {"scaled_values": 1}


def test_masks_reads_the_bands_and_tells_what_it_assumed(satellite, tmp_path, capsys):
    def run(*flags: str) -> dict:
        out = tmp_path / f"out{len(flags)}"
        with pytest.raises(SystemExit) as end:
            main(["masks", str(satellite), "--generator", "grabcut", "--overlay", "--out", str(out), *flags])
        assert end.value.code == 0
        return {"said": capsys.readouterr().out, "shown": read_rgb(out / "overlays" / "a.jpg")}

    assumed, asked = run(), run("--bands", "6,5,4", "--stretch", "bits")
    assert "chosen_bands: 1" in assumed["said"] and "scaled_values: 1" in assumed["said"]
    assert "chosen_bands" not in asked["said"] and "scaled_values" not in asked["said"]
    corner = np.s_[30:, 40:]  # outside the box; grey where the three bands are one
    assert np.ptp(assumed["shown"][corner].astype(int), axis=-1).max() < 20
    assert np.abs(asked["shown"][corner].astype(int) - EXPECTED[corner]).mean() < 10


@pytest.mark.parametrize("command", ["convert-labels", "export-data"])
def test_what_writes_no_pixels_of_its_own_refuses_the_options(satellite, tmp_path, capsys, command):
    flags = {"convert-labels": [str(satellite), str(tmp_path / "out"), "--to", "yolo"]}
    flags["export-data"] = [str(tmp_path / "out"), "--format", "coco", "--annotations", str(satellite)]
    with pytest.raises(SystemExit) as end:
        main([command, *flags[command], "--bands", "6,5,4", "--stretch", "minmax"])
    assert end.value.code == 2 and not (tmp_path / "out").exists()
    assert "bands and stretch (--bands, --stretch) would change nothing" in capsys.readouterr().err


def test_rows_for_training_know_how_their_images_are_read(satellite, tmp_path):
    settings = DataSettings(format="coco", read={"bands": [6, 5, 4], "stretch": "bits"})
    rows = load_boxes(
        "coco",
        annotations=str(satellite),
        images=str(satellite.parent / "images"),
        cache_dir=tmp_path,
        **settings.read_options(masks=True).changed,
    )
    from datasets import Image as ImageColumn

    row = rows.cast_column("image", ImageColumn(decode=False))[0]
    assert json.loads(row["rendering"]) == {"bands": [6, 5, 4], "stretch": "bits"}
    assert close(decode_image(row), EXPECTED)
    plain = load_boxes("coco", annotations=str(satellite), images=str(satellite.parent / "images"), cache_dir=tmp_path)
    assert "rendering" not in plain.column_names


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_of_several_pages_the_first_is_read_and_the_others_are_counted(tmp_path, kind):
    first, path = (SHARES * np.iinfo(kind).max).round().astype(kind), tmp_path / "pages.tif"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(first, photometric="rgb")
        tiff.write(first[::2, ::2].copy(), photometric="rgb", subfiletype=1)  # a reduced copy
        tiff.write(first[::-1].copy(), photometric="rgb")
    notes: list[tuple[str, str]] = []
    assert close(read_rgb(path, notes=notes), EXPECTED)
    assert ("first_page", "1 of 2") in notes
    notes.clear()
    read_rgb(write_tiff(path, first), notes=notes)
    assert "first_page" not in dict(notes)


def test_of_many_pages_only_the_first_hundred_are_looked_at(tmp_path):
    path = tmp_path / "pages.tif"
    pages = [Image.new("L", (2, 2)) for _ in range(300)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    with Image.open(path) as image:
        assert num_pages(image) == 100 and image.tell() == 0
        assert len(image._frame_pos) == 100


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_floats_of_the_whole_range_of_their_type_are_stretched(kind):
    largest = float(np.finfo(kind).max)
    values = np.array([[-largest, 0, largest / 2, largest, np.inf, np.nan]], dtype=kind)[..., None]
    assert Bands(values).to_rgb(Rendering(stretch="minmax"), [])[0, :, 0].tolist() == [0, 128, 191, 255, 0, 0]
    assert Bands(values).to_rgb(Rendering(stretch="0%,100%"), [])[0, :, 0].tolist() == [0, 128, 191, 255, 0, 0]
    assert Bands(values).to_rgb(Rendering(stretch="none"), [])[0, :, 0].tolist() == [0, 0, 255, 255, 0, 0]
