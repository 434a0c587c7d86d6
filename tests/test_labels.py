"""Class lists and the palette."""

from lpg_hf.labels import COCO_CLASSES, COCO_NONVOC_IDS, COCO_VOC_IDS, IGNORE_INDEX, VOC_CLASSES, voc_palette


def test_sixty_and_twenty_coco_ids_are_disjoint_and_complete():
    assert (len(COCO_NONVOC_IDS), len(COCO_VOC_IDS)) == (60, 20)
    assert not set(COCO_NONVOC_IDS) & set(COCO_VOC_IDS)
    assert set(COCO_NONVOC_IDS) | set(COCO_VOC_IDS) == {category_id for category_id, _ in COCO_CLASSES}


def test_coco_has_eighty_ascending_ids_and_unique_names():
    ids = [category_id for category_id, _ in COCO_CLASSES]
    assert len(ids) == 80 and ids == sorted(set(ids)) and len({name for _, name in COCO_CLASSES}) == 80


def test_excluded_coco_classes_are_the_voc_classes_by_meaning():
    other_names = {
        "airplane": "aeroplane",
        "motorcycle": "motorbike",
        "couch": "sofa",
        "potted plant": "pottedplant",
        "dining table": "diningtable",
        "tv": "tvmonitor",
    }
    names = {name for category_id, name in COCO_CLASSES if category_id in COCO_VOC_IDS}
    assert {other_names.get(name, name) for name in names} == set(VOC_CLASSES)


def test_kept_ids_are_those_of_the_method():
    ranges = [
        (8, 8),
        (10, 11),
        (13, 15),
        (22, 25),
        (27, 28),
        (31, 43),
        (46, 61),
        (65, 65),
        (70, 70),
        (73, 82),
        (84, 90),
    ]
    assert COCO_NONVOC_IDS == tuple(i for low, high in ranges for i in range(low, high + 1))


def test_voc_classes_are_in_alphabetical_order_of_the_challenge():
    assert len(VOC_CLASSES) == 20 and VOC_CLASSES[0] == "aeroplane" and VOC_CLASSES[-1] == "tvmonitor"
    assert list(VOC_CLASSES) == sorted(VOC_CLASSES)


def test_palette_is_the_voc_colour_map():
    palette = voc_palette()
    assert palette.shape == (256, 3) and palette.dtype == "uint8"
    expected = {0: (0, 0, 0), 1: (128, 0, 0), 8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128)}
    assert {index: tuple(int(v) for v in palette[index]) for index in expected} == expected
    assert tuple(int(v) for v in palette[IGNORE_INDEX]) == (224, 224, 192)
    assert len({tuple(colour) for colour in palette.tolist()}) == 256
