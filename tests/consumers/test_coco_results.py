"""COCO results and polygons, read by pycocotools itself."""

import json

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lpg_hf.data._formats.coco_forms import result_of, rle_to_polygons


def encoded(mask):
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}


def masks():
    """One part, two parts, a hole, two parts with a hole, one pixel, all."""
    one = np.zeros((40, 60), dtype=np.uint8)
    cv2.ellipse(one, (20, 16), (10, 8), 30, 0, 360, 1, -1)
    two = one.copy()
    two[25:35, 40:50] = 1
    hole = one.copy()
    hole[14:18, 18:22] = 0
    both = two.copy()
    both[28:30, 43:46] = 0
    pixel = np.zeros_like(one)
    pixel[39, 59] = 1
    return {"one": one, "two": two, "hole": hole, "both": both, "pixel": pixel, "all": np.ones_like(one)}


@pytest.mark.parametrize("name", masks())
def test_polygons_give_every_pixel_again(name):
    mask = masks()[name]
    polygons = rle_to_polygons(encoded(mask))
    assert len(polygons) == (2 if name == "two" else 1) and all(len(polygon) >= 6 for polygon in polygons)
    rle = coco_mask.merge(coco_mask.frPyObjects(polygons, *mask.shape))
    assert np.array_equal(coco_mask.decode(rle), mask)


@pytest.mark.parametrize("scale", [1, 4])
@pytest.mark.parametrize("name", masks())
def test_simplified_polygons_have_fewer_points_and_nearly_the_pixels(name, scale):
    mask = np.repeat(np.repeat(masks()[name], scale, axis=0), scale, axis=1)
    if scale > 1:
        mask = (cv2.GaussianBlur(mask.astype(np.float32), (9, 9), 0) > 0.5).astype(np.uint8)
    exact, simple = rle_to_polygons(encoded(mask)), rle_to_polygons(encoded(mask), 1.0)
    rle = coco_mask.merge(coco_mask.frPyObjects(simple, *mask.shape))
    assert coco_mask.iou([rle], [coco_mask.encode(np.asfortranarray(mask))], [0])[0, 0] > 0.97
    points, before = (sum(map(len, polygons)) for polygons in (simple, exact))
    assert points <= before * (0.7 if name in ("one", "two", "hole", "both") else 1), (points, before)


def test_a_mask_without_a_pixel_has_no_polygon():
    assert rle_to_polygons(encoded(np.zeros((4, 5)))) == []


def test_results_are_taken_by_load_res_and_scored_by_cocoeval(tmp_path):
    annotations = []
    for number, mask in enumerate(masks().values(), start=1):
        rle = encoded(mask)
        annotations.append(
            {
                "id": number,
                "image_id": number,
                "category_id": 7,
                "bbox": coco_mask.toBbox(rle).tolist(),
                "area": float(mask.sum()),
                "iscrowd": 0,
                "segmentation": rle,
                "score": 0.5 + number / 20,
                "fill_rate": 0.5,
            }
        )
    images = [{"id": a["id"], "width": 60, "height": 40, "file_name": f"{a['id']}.png"} for a in annotations]
    truth = {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "red"}]}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps([result_of(annotation) for annotation in annotations]))
    coco = COCO(tmp_path / "truth.json")
    results = coco.loadRes(str(tmp_path / "results.json"))
    assert len(results.anns) == len(annotations)
    for kind in ("segm", "bbox"):
        evaluation = COCOeval(coco, results, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert evaluation.stats[0] == pytest.approx(1)
