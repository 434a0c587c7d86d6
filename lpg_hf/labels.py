"""Class lists: the 20 classes of Pascal VOC, the 80 of MS-COCO, and the 60 of COCO that are not in VOC.

A semantic label is the 1-based position of a class in its list; 0 is the background, 255 is ignored.
"""

import re

import numpy as np


IGNORE_INDEX = 255

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)

# (official category id, name); the official ids have gaps.
COCO_CLASSES = (
    (1, "person"),
    (2, "bicycle"),
    (3, "car"),
    (4, "motorcycle"),
    (5, "airplane"),
    (6, "bus"),
    (7, "train"),
    (8, "truck"),
    (9, "boat"),
    (10, "traffic light"),
    (11, "fire hydrant"),
    (13, "stop sign"),
    (14, "parking meter"),
    (15, "bench"),
    (16, "bird"),
    (17, "cat"),
    (18, "dog"),
    (19, "horse"),
    (20, "sheep"),
    (21, "cow"),
    (22, "elephant"),
    (23, "bear"),
    (24, "zebra"),
    (25, "giraffe"),
    (27, "backpack"),
    (28, "umbrella"),
    (31, "handbag"),
    (32, "tie"),
    (33, "suitcase"),
    (34, "frisbee"),
    (35, "skis"),
    (36, "snowboard"),
    (37, "sports ball"),
    (38, "kite"),
    (39, "baseball bat"),
    (40, "baseball glove"),
    (41, "skateboard"),
    (42, "surfboard"),
    (43, "tennis racket"),
    (44, "bottle"),
    (46, "wine glass"),
    (47, "cup"),
    (48, "fork"),
    (49, "knife"),
    (50, "spoon"),
    (51, "bowl"),
    (52, "banana"),
    (53, "apple"),
    (54, "sandwich"),
    (55, "orange"),
    (56, "broccoli"),
    (57, "carrot"),
    (58, "hot dog"),
    (59, "pizza"),
    (60, "donut"),
    (61, "cake"),
    (62, "chair"),
    (63, "couch"),
    (64, "potted plant"),
    (65, "bed"),
    (67, "dining table"),
    (70, "toilet"),
    (72, "tv"),
    (73, "laptop"),
    (74, "mouse"),
    (75, "remote"),
    (76, "keyboard"),
    (77, "cell phone"),
    (78, "microwave"),
    (79, "oven"),
    (80, "toaster"),
    (81, "sink"),
    (82, "refrigerator"),
    (84, "book"),
    (85, "clock"),
    (86, "vase"),
    (87, "scissors"),
    (88, "teddy bear"),
    (89, "hair drier"),
    (90, "toothbrush"),
)

# The COCO categories that are also VOC classes. They are left out of the auxiliary data, so that the auxiliary and the
# target classes are disjoint (paper, Sec. IV-A).
COCO_VOC_IDS = (1, 2, 3, 4, 5, 6, 7, 9, 16, 17, 18, 19, 20, 21, 44, 62, 63, 64, 67, 72)
COCO_NONVOC_IDS = tuple(category_id for category_id, _ in COCO_CLASSES if category_id not in COCO_VOC_IDS)


def voc_palette() -> np.ndarray:
    """The colour map of the VOC mask PNGs: the bits of an index, spread over red, green and blue from the top bit
    down.

    Returns:
        (256, 3) uint8 RGB; row 0 is black, row 255 the cream colour of the void border.
    """
    index = np.arange(256)[:, None]  # (256, 1)
    palette = np.zeros((256, 3), dtype=np.int64)
    for level in range(3):
        palette |= ((index >> (3 * level + np.arange(3))) & 1) << (7 - level)
    return palette.astype(np.uint8)


def clean_name(name: str) -> str:
    """A class name in one line, as every format can hold it: blanks and line breaks become one blank each.

    Control characters, which no xml file can hold, and halves of characters become the replacement mark.
    """
    odd = "[\\x00-\\x1f\\x7f-\\x9f\\ud800-\\udfff\\ufffe\\uffff]"
    return re.sub(odd, "\N{REPLACEMENT CHARACTER}", " ".join(name.split()))
