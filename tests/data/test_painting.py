"""Objects -> label maps; what rows give through the same painter: tests/data/test_examples.py."""

import numpy as np
from pycocotools import mask as coco_mask

from lpg_hf.data._painting import crowd_pixels, paint_boxes, paint_label_map
from lpg_hf.data.records import BoxObject


HEIGHT, WIDTH = 10, 12


def item(x1, y1, x2, y2, category=0, has_mask=True, **flags):
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    mask[y1:y2, x1:x2] = 1
    rle = coco_mask.encode(mask) if has_mask else None
    return BoxObject((x1, y1, x2, y2), category, float(mask.sum()), rle=rle, **flags)


def test_the_smaller_object_lies_on_top_and_labels_may_be_given():
    objects = [item(2, 2, 4, 4, category=1), item(0, 0, 8, 8)]
    painted = paint_label_map(objects, HEIGHT, WIDTH)
    assert painted.dtype == np.uint8 and (painted == 2).sum() == 4 and (painted == 1).sum() == 60
    large = paint_label_map(objects, HEIGHT, WIDTH, labels=[300, 7], ignored=65535)
    assert large.dtype == np.uint16 and (large == 300).sum() == 4 and (large == 7).sum() == 60


def test_crowd_regions_and_objects_without_a_mask_are_ignored_where_no_object_lies():
    objects = [item(0, 0, 6, 6, iscrowd=True), item(4, 4, 8, 8, has_mask=False), item(5, 5, 7, 7, category=2)]
    painted = paint_label_map(objects, HEIGHT, WIDTH)
    assert (painted == 3).sum() == 4 and (painted == 255).sum() == 36 + 16 - 4 - 4


def test_crowd_pixels_are_those_that_no_mask_covers():
    objects = [item(0, 0, 6, 6, iscrowd=True), item(8, 8, 10, 10, iscrowd=True, has_mask=False)]
    assert crowd_pixels(objects, HEIGHT, WIDTH).sum() == 36 + 4
    objects += [item(5, 5, 9, 9), item(0, 0, 2, 2, has_mask=False)]  # A box without a mask covers nothing.
    assert crowd_pixels(objects, HEIGHT, WIDTH).sum() == 36 + 4 - 2
    assert not crowd_pixels([], HEIGHT, WIDTH).any()


def test_boxes_are_painted_without_their_masks():
    objects = [item(0, 0, 8, 8, iscrowd=True), item(2, 2, 4, 4, category=1), item(0, 0, 5, 5, has_mask=False)]
    painted = paint_boxes(objects, HEIGHT, WIDTH)
    assert (painted == 2).sum() == 4 and (painted == 1).sum() == 21 and (painted == 255).sum() == 64 - 25
