"""Label maps and polygons of GeoTIFF images on the map, as rasterio reads them."""

import json

import numpy as np
import pytest
from PIL import Image

from lpg_hf.data.report import Report
from lpg_hf.data.sources import open_source
from lpg_hf.generators import load_generator
from lpg_hf.label_maps import read_label_map
from lpg_hf.masks.writer import MaskSettings, write_masks


CODE, TRANSFORM = 32632, (0.5, 0.1, 500_000.0, 0.1, -0.5, 5_000_000.0)
BOXES = {1: [10, 8, 20, 16], 2: [35, 5, 20, 30]}


def shapes(image, boxes):
    """Two parts, of which one has a hole, in every box."""
    masks = np.zeros((len(boxes), *image.shape[:2]), dtype=np.float32)
    for mask, (x, y, *_) in zip(masks, boxes.astype(int)):
        mask[y + 1 : y + 10, x + 2 : x + 12] = 0.75
        mask[y + 4 : y + 6, x + 5 : x + 8] = 0
        mask[y + 12 : y + 15, x + 3 : x + 9] = 0.75
    return masks


@pytest.fixture
def data(tmp_path):
    """A GeoTIFF and a PNG of 60 x 40, each with two boxes."""
    rasterio = pytest.importorskip("rasterio", reason="the extra [geo] is not installed")
    pixels = np.random.default_rng(0).integers(0, 255, (3, 40, 60), dtype=np.uint8)
    profile = {"driver": "GTiff", "width": 60, "height": 40, "count": 3, "dtype": "uint8"}
    with rasterio.open(tmp_path / "a.tif", "w", crs=f"EPSG:{CODE}", transform=TRANSFORM, **profile) as file:
        file.write(pixels)
    Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / "b.png")
    images = [{"id": k, "file_name": name, "width": 60, "height": 40} for k, name in enumerate(("a.tif", "b.png"))]
    annotations = [
        {"id": 10 * image + label, "image_id": image, "category_id": label, "bbox": box, "iscrowd": 0}
        for image in (0, 1)
        for label, box in BOXES.items()
    ]
    categories = [{"id": 1, "name": "roof"}, {"id": 2, "name": "tree"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    return tmp_path


def write(data, out, *outputs, **settings):
    report = Report()
    source = open_source(data / "boxes.json", data, report=report)
    settings = MaskSettings(outputs, "instance", clean=False, simplify=0, **settings)
    return write_masks(source, load_generator(shapes), data / out, settings, report=report)


def test_a_label_map_keeps_the_georeference_of_its_image(data):
    import rasterio

    write(data, "out", "png", "geotiff")
    with rasterio.open(data / "out" / "geotiff" / "a.tif") as file:
        assert file.crs.to_epsg() == CODE and tuple(file.transform)[:6] == TRANSFORM and file.nodata == 255
        assert file.colormap(1)[1][:3] == (128, 0, 0)
        found = file.read(1)
    assert np.array_equal(found, read_label_map(data / "out" / "masks" / "a.png")) and set(found.flat) == {0, 1, 2}


def test_geojson_gives_every_pixel_of_a_mask_on_the_map(data):
    from rasterio.crs import CRS
    from rasterio.features import rasterize

    write(data, "out", "geojson")
    content = json.loads((data / "out" / "geojson" / "a.geojson").read_text())
    assert CRS.from_user_input(content["crs"]["properties"]["name"]).to_epsg() == CODE
    boxes = np.array([[x, y, x + w, y + h] for x, y, w, h in BOXES.values()], dtype=np.float32)
    masks = shapes(np.zeros((40, 60, 3)), boxes) > 0.5
    assert [f["properties"] for f in content["features"]] == [
        {"class": name, "score": 0.75} for name in ("roof", "tree")
    ]
    for feature, mask in zip(content["features"], masks):
        burnt = rasterize([feature["geometry"]], out_shape=(40, 60), transform=TRANSFORM)
        assert np.array_equal(burnt, mask)
        polygons = feature["geometry"]["coordinates"]
        assert sorted(map(len, polygons)) == [1, 2]
        for rings in polygons:
            areas = [area(ring) for ring in rings]
            assert areas[0] > 0 and all(value < 0 for value in areas[1:]) and rings[0][0] == rings[0][-1]


def area(ring):
    x, y = np.array(ring).T - np.array(ring[0])[:, None]
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum()) / 2


def test_an_image_without_georeference_is_counted_also_when_it_is_added_later(data):
    at_once = write(data, "out", "png", "geotiff", "geojson")
    write(data, "later", "png")
    later = write(data, "later", "geotiff", "geojson")
    write(data, "one by one", "png", "geotiff")
    one_by_one = write(data, "one by one", "geojson")
    for out, report in (("out", at_once), ("later", later), ("one by one", one_by_one)):
        assert report.counts["no_georeference"] == 1 and report.places["no_georeference"] == ["b.png"]
        written = sorted(path.name for name in ("geotiff", "geojson") for path in (data / out / name).iterdir())
        assert written == ["a.geojson", "a.tif"]
    for name in ("geotiff/a.tif", "geojson/a.geojson", "masks/a.png"):
        for out in ("later", "one by one"):
            assert (data / "out" / name).read_bytes() == (data / out / name).read_bytes()


def test_without_the_extra_the_error_names_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for output in ("geotiff", "geojson"):
        with pytest.raises(ImportError, match=r"rasterio.*pip install 'lpg_hf\[geo\]'"):
            MaskSettings((output,))
