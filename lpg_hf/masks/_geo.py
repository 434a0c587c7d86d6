"""Label maps and polygons on the map: of images that are GeoTIFF files (extra `[geo]`, rasterio)."""

import importlib.util
import json
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from lpg_hf._files import fs_path
from lpg_hf._rle import Rle, decode_window, mask_window
from lpg_hf.data._formats.yolo import mask_to_polygons
from lpg_hf.data.records import Record
from lpg_hf.labels import IGNORE_INDEX, voc_palette


GEO_OUTPUTS = frozenset({"geotiff", "geojson"})


@dataclass(frozen=True)
class Georeference:
    """Where an image lies.

    Attributes:
        transform: a, b, c, d, e, f: column x and row y, from the image's corner, lie at (ax + by + c, dx + ey + f).
        crs: of rasterio; None: the file states none.
    """

    transform: tuple[float, ...]
    crs: Any


def check_installed() -> None:
    """Raises ImportError if rasterio is not installed."""
    if importlib.util.find_spec("rasterio") is None:
        raise ImportError("geotiff and geojson need rasterio, which is not installed: pip install 'lpg_hf[geo]'")


def georeference(record: Record) -> Georeference | None:
    """Where the image of a record lies; None if it is no GeoTIFF, or has control points in place of a transform."""
    import rasterio  # pyright: ignore[reportMissingImports]  (an extra)
    from rasterio.errors import RasterioIOError  # pyright: ignore[reportMissingImports]

    if record.path is None:
        return None
    try:
        # Only this driver: GDAL knows formats that open other files and addresses.
        with rasterio.open(fs_path(record.path), driver="GTiff") as image:
            transform, crs, size = image.transform, image.crs, image.shape
    except RasterioIOError:
        return None
    if transform.is_identity or size != record.size:
        return None
    return Georeference(tuple(transform)[:6], crs)


def geotiff(label_map: np.ndarray, place: Georeference) -> bytes:
    """A GeoTIFF of a label map, (H, W) uint8 with the palette of the PNG, or uint16; the ignored value is nodata."""
    import rasterio  # pyright: ignore[reportMissingImports]

    height, width = label_map.shape
    is_small = label_map.dtype == np.uint8
    with rasterio.MemoryFile() as file:
        with file.open(
            driver="GTiff",
            height=height,
            width=width,
            count=1,
            dtype=label_map.dtype,
            crs=place.crs,
            transform=rasterio.Affine(*place.transform),
            compress="deflate",
            nodata=IGNORE_INDEX if is_small else np.iinfo(np.uint16).max,
        ) as image:
            image.write(label_map, 1)
            if is_small:
                image.write_colormap(1, {k: (*map(int, colour), 255) for k, colour in enumerate(voc_palette())})
        return file.read()


def geojson(shapes: Record, scores: dict[int, float], names: list[str], place: Georeference, simplify: float) -> str:
    """A feature for each object, in the CRS of the image, which the member "crs" names.

    Args:
        shapes: with objects that have a mask with a pixel.
        scores: by the id of the object.
        names: of the classes.
        place: of the image.
        simplify: see `yolo.mask_to_polygons`.
    """
    features = [
        {
            "type": "Feature",
            "id": item.id,
            "geometry": {"type": "MultiPolygon", "coordinates": _polygons(item.rle, place.transform, simplify)},
            "properties": {"class": names[item.category], "score": round(scores[item.id], 4)},
        }
        for item in shapes.objects
        if item.rle is not None
    ]
    content: dict[str, Any] = {"type": "FeatureCollection", "features": features}
    if place.crs:
        code = place.crs.to_epsg()
        name = f"urn:ogc:def:crs:EPSG::{code}" if code else place.crs.to_wkt()
        content["crs"] = {"type": "name", "properties": {"name": name}}
    return json.dumps(content)


def _polygons(rle: Rle, transform: tuple[float, ...], simplify: float) -> list[list[list[list[float]]]]:
    """Polygon -> rings, the outer one first -> points on the map; one polygon for each part of the mask."""
    window = mask_window(rle)
    corner = window[1].start, window[0].start
    a, b, c, d, e, f = transform
    polygons = []
    num_parts, parts = cv2.connectedComponents(decode_window(rle, window), connectivity=4)
    for part in range(1, num_parts):
        rings = []
        for outline in mask_to_polygons(np.asarray(parts) == part, simplify):
            points = np.asarray(outline).reshape(-1, 2) + corner
            on_map = points @ np.array([[a, d], [b, e]]) + (c, f)
            following = np.roll(on_map, -1, axis=0)
            shifted = on_map - on_map[0], following - on_map[0]  # Coordinates of maps are large, their areas small.
            area = float((shifted[0][:, 0] * shifted[1][:, 1] - shifted[1][:, 0] * shifted[0][:, 1]).sum())
            rings.append((area, [*on_map.tolist(), on_map[0].tolist()]))
        rings.sort(key=lambda ring: -abs(ring[0]))
        # The outer ring runs against the clock, holes with it (RFC 7946).
        polygons.append(
            [ring if (area > 0) == (number == 0) else ring[::-1] for number, (area, ring) in enumerate(rings)]
        )
    return polygons
