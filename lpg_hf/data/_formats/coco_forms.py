"""Other forms of COCO masks than `coco.write_coco`: polygons, and the results that pycocotools' `loadRes` takes."""

from lpg_hf._rle import Rle, decode_window, mask_window
from lpg_hf.data._formats.yolo import join_polygons, mask_to_polygons


def rle_to_polygons(rle: Rle, simplify: float = 0.0) -> list[list[float]]:
    """A mask as COCO polygons that give every pixel of it again in pycocotools.

    Args:
        rle: compressed run lengths of the whole image.
        simplify: pixels, see `mask_to_polygons`; above 0 the pixels at the edge may differ.

    Returns:
        x, y, x, y, ... in pixels, along the edges of the pixels; one for each part of the mask. A mask with a hole is
        one polygon whose parts and holes are joined by lines that enclose nothing, as COCO's polygons know no holes.
        Empty for a mask without a pixel.
    """
    rows, columns = window = mask_window(rle)
    if rows.start == rows.stop:
        return []
    polygons = mask_to_polygons(decode_window(rle, window), simplify)
    if len({_turn(polygon) > 0 for polygon in polygons}) > 1:  # Holes turn the other way round.
        polygons = [join_polygons(polygons)]
    return [[value + (columns.start, rows.start)[i % 2] for i, value in enumerate(polygon)] for polygon in polygons]


def _turn(polygon: list[float]) -> float:
    """Twice the signed area of a polygon."""
    x, y = polygon[0::2], polygon[1::2]
    return sum(x[i - 1] * y[i] - x[i] * y[i - 1] for i in range(len(x)))


def result_of(annotation: dict) -> dict:
    """An annotation with a mask as a result: what `loadRes` and COCO's evaluation read, and nothing else.

    Args:
        annotation: "image_id", "category_id", "bbox" (xywh, pixels), "segmentation" (run lengths) and "score".
    """
    return {key: annotation[key] for key in ("image_id", "category_id", "bbox", "segmentation", "score")}
