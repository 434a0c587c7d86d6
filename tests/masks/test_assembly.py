import subprocess
import sys

import numpy as np
import pytest

from lpg_hf.boxes import box_slices, boxes_to_mask
from lpg_hf.generators import load_generator
from lpg_hf.generators.base import BoxedImage, Patch
from lpg_hf.masks import assembly
from lpg_hf.masks.assembly import AssemblyOptions, _clean_foreground, assemble, by_position
from lpg_hf.masks.fusion import OVERLAP_RULES, window_around


def boxed(boxes: list, labels: list, height: int = 20, width: int = 30) -> BoxedImage:
    image = np.zeros((height, width, 3), dtype=np.uint8)
    return BoxedImage(image, np.array(boxes, dtype=np.float32).reshape(-1, 4), np.array(labels, dtype=np.int64))


def patch(label: int, index: int, box: tuple[int, int, int, int], value: float) -> Patch:
    x1, y1, x2, y2 = box
    full = np.full((y2 - y1, x2 - x1), value, dtype=np.float32)
    return Patch(label, (index,), slice(y1, y2), slice(x1, x2), full)


def test_instances_of_one_class_keep_masks_of_their_own_where_they_overlap():
    image = boxed([[0, 0, 10, 10], [5, 0, 15, 10]], [1, 1])
    left_half = patch(1, 0, (0, 0, 5, 10), 0.9)
    found = assemble(image, [left_half, patch(1, 1, (5, 0, 15, 10), 0.8)], "class")
    assert found.masks[0].area == 100  # the neighbour's foreground inside the box counts too
    own = assemble(image, [patch(1, 0, (0, 0, 10, 10), 0.2), patch(1, 1, (5, 0, 15, 10), 0.8)], "instance")
    assert [mask.area for mask in own.masks] == [0, 100]
    assert own.masks[0].score == 0.0 and own.masks[1].score == pytest.approx(0.8)
    assert (own.label_map[:10, 5:15] == 1).all() and own.label_map.sum() == 100


def test_masks_lie_inside_their_boxes_and_scores_are_those_of_the_mask():
    image = boxed([[2.5, 3, 8, 9]], [4])
    foreground = np.zeros((20, 30), dtype=np.float32)
    foreground[2:12, 0:12] = 0.7
    foreground[4, 4] = 0.9
    (mask,) = assemble(image, [Patch(4, (0,), slice(0, 20), slice(0, 30), foreground)], "instance").masks
    rows, columns = np.nonzero(mask.decode())
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (3, 8, 2, 7)
    assert mask.score == pytest.approx((35 * 0.7 + 0.9) / 36, abs=1e-6) and mask.fill_rate == 1.0


def test_overlap_rule_decides_between_classes():
    image = boxed([[0, 0, 20, 20], [5, 5, 10, 10]], [1, 2])
    patches = [patch(1, 0, (0, 0, 20, 20), 0.9), patch(2, 1, (5, 5, 10, 10), 0.6)]
    assert assemble(image, patches, "class").label_map[7, 7] == 2  # the smaller lies on top
    assert assemble(image, patches, "class", AssemblyOptions(overlap_rule="prob")).label_map[7, 7] == 1
    assert assemble(image, patches, "class", AssemblyOptions(overlap_rule="first")).label_map[7, 7] == 1


def test_no_boxes_give_an_empty_result_of_full_size():
    found = assemble(boxed([], []), [], "instance")
    assert found.masks == [] and found.label_map.shape == (20, 30) and not found.label_map.any()


def test_unknown_granularity_is_refused():
    with pytest.raises(ValueError, match="per='boxes' is unknown. Choose one of class, instance"):
        assemble(boxed([], []), [], "boxes")


@pytest.mark.parametrize("positions", [[], [0, 0, 2], [1], [2, 2], [0, 1, 2]])
def test_by_position_gives_every_image_its_patches(positions: list[int]):
    stream = iter([(position, patch(1, i, (0, 0, 1, 1), 0.5)) for i, position in enumerate(positions)])
    found = [[item.boxes[0] for item in of_image] for of_image in by_position(stream, 3)]
    assert found == [[i for i, p in enumerate(positions) if p == position] for position in range(3)]


@pytest.mark.parametrize("per", ["class", "instance"])
def test_masks_are_cut_to_the_region_of_their_box(per):
    """A turned square beside an upright box of the same class, which has no region."""
    boxes = np.array([[2, 2, 12, 12], [14, 2, 20, 12]], dtype=np.float32)
    region = [7.0, 2.0, 12.0, 7.0, 7.0, 12.0, 2.0, 7.0]
    image = BoxedImage(np.zeros((16, 24, 3), np.uint8), boxes, np.array([1, 1]), regions={0: region})
    whole = BoxedImage(image.image, boxes, image.labels)
    masks, plain = (
        assemble(given, (patch for _, patch in load_generator("box").patches([given], per)), per)
        for given in (image, whole)
    )
    square, other = (mask.decode() for mask in masks.masks)
    assert plain.masks[0].area == 100 and 40 <= square.sum() <= 60 and not square[2, 2] and square[7, 7]
    assert masks.masks[1].rle == plain.masks[1].rle and other.sum() == 60
    assert np.array_equal(masks.label_map == 1, square | other)


def assembled_at_once(image: BoxedImage, patches: list[Patch], per: str, rule: str, min_score: float) -> tuple:
    """(scores of the boxes, label map) with the maps of all classes in memory, as Eq. (7) and Sec. III-D read."""
    size, classes = image.image.shape[:2], list(dict.fromkeys(image.labels.tolist()))
    maps = np.zeros((len(classes), *size), dtype=np.float32)
    for one in patches:
        inner = maps[classes.index(one.label), one.rows, one.columns]
        np.maximum(inner, one.foreground, out=inner)
    scores, masks = [], []
    for index, (box, label) in enumerate(zip(image.boxes, image.labels.tolist())):
        full = np.zeros(size, dtype=np.float32)
        for one in patches:
            if index in one.boxes:
                full[one.rows, one.columns] = one.foreground
        window = box_slices(box, *size)
        inside = (maps[classes.index(label)] if per == "class" else full)[window]
        scores.append(float(inside[inside > 0.5].mean(dtype=np.float64)) if (inside > 0.5).any() else 0.0)
        masks.append(np.zeros(size, dtype=bool))
        masks[-1][window] = inside > 0.5
    for k, label in enumerate(classes):
        of_class = np.flatnonzero(image.labels == label).tolist()
        kept = [masks[i] for i in of_class if scores[i] >= min_score]
        for i in of_class:
            if scores[i] < min_score:
                doubtful = np.zeros(size, dtype=bool)
                doubtful[box_slices(image.boxes[i], *size)] = True
                maps[k, doubtful & ~np.any([*kept, np.zeros(size, dtype=bool)], axis=0)] = 0
    claimed, labels = maps > 0.5, np.array(classes)
    areas = claimed.sum(axis=(1, 2))
    rates = (claimed & (claimed.sum(axis=0) > 1)).sum(axis=(1, 2)) / np.maximum(areas, 1)
    sides = image.boxes[:, 2:] - image.boxes[:, :2]
    smallest = [(sides[:, 0] * sides[:, 1])[image.labels == label].min() for label in classes]
    top_first = {
        "rate": np.lexsort((labels, areas, -rates)),
        "smallest_box": np.lexsort((labels, areas, smallest)),
        "first": np.arange(len(classes)),
    }
    label_map = np.zeros(size, dtype=np.uint8)
    if rule == "prob":
        return scores, np.where(claimed.any(axis=0), labels[np.where(claimed, maps, 0).argmax(axis=0)], 0)
    for k in reversed(top_first[rule]):
        label_map[claimed[k]] = labels[k]
    return scores, label_map


@pytest.mark.parametrize("min_score", [0.0, 0.74])
@pytest.mark.parametrize("rule", OVERLAP_RULES)
@pytest.mark.parametrize("per", ["class", "instance"])
def test_class_by_class_is_equal_to_all_classes_at_once(per: str, rule: str, min_score: float):
    rng = np.random.default_rng(0)
    for _ in range(12):
        count = int(rng.integers(1, 14))
        corners = np.sort(rng.integers(0, 21, (count, 2, 2)), axis=1)
        boxes = np.concatenate([corners[:, 0], corners[:, 1] + 1], axis=1) - rng.random((count, 4)) * 0.4
        image = boxed(np.maximum(boxes, 0).tolist(), rng.integers(1, 6, count).tolist(), 22, 22)
        patches = []
        for index, (box, label) in enumerate(zip(image.boxes, image.labels.tolist())):
            rows, columns = box_slices(box, 22, 22)
            values = np.round(rng.random((rows.stop - rows.start, columns.stop - columns.start)), 1)
            patches.append(Patch(label, (index,), rows, columns, values.astype(np.float32)))
        scores, label_map = assembled_at_once(image, patches, per, rule, min_score)
        found = assemble(
            image, iter(patches), per, AssemblyOptions(overlap_rule=rule, min_score=min_score, clean=False)
        )
        assert [mask.score for mask in found.masks] == scores and (found.label_map == label_map).all()


def test_the_work_on_a_class_grows_with_its_boxes_and_not_with_their_square(monkeypatch):
    seen, count = [], 500
    monkeypatch.setattr(assembly, "window_around", lambda windows: seen.extend(windows) or window_around(windows))
    corners = [(7 * i % 28, 11 * i % 18) for i in range(count)]
    image = boxed([[x, y, x + 2, y + 2] for x, y in corners], [1] * count)
    patches = (patch(1, i, (x, y, x + 2, y + 2), 0.9) for i, (x, y) in enumerate(corners))
    found = assemble(image, patches, "class")
    assert np.array_equal(found.label_map == 1, boxes_to_mask(image.boxes, 20, 30))
    assert len(seen) < 10 * count


PEAK = r"""
import re, sys
import numpy as np
from lpg_hf.boxes import box_slices
from lpg_hf.generators.base import BoxedImage, Patch
from lpg_hf.masks.assembly import assemble

height, width, classes, per = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
rng = np.random.default_rng(0)
low = rng.random((classes, 2)) * (width / 2, height / 2)
boxes = np.concatenate([low, low + rng.random((classes, 2)) * (width / 2, height / 2) + 1], axis=1).astype(np.float32)
image = BoxedImage(np.zeros((height, width, 3), np.uint8), boxes, np.arange(1, classes + 1))


def patches():
    for index, box in enumerate(boxes):
        rows, columns = box_slices(box, height, width)
        foreground = np.full((rows.stop - rows.start, columns.stop - columns.start), 0.9, np.float32)
        yield Patch(index + 1, (index,), rows, columns, foreground)


assemble(image, patches(), per)
print(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1])  # ru_maxrss is the parent's at first
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("per", ["class", "instance"])
@pytest.mark.parametrize("size, classes, megabytes", [((480, 640), 2000, 300), ((3000, 4000), 40, 600)])
def test_memory_does_not_grow_with_classes_times_pixels(size, classes, megabytes, per):
    command = [sys.executable, "-c", PEAK, *map(str, size), str(classes), per]
    peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert peak < megabytes * 1000


def specked(size: int = 40) -> np.ndarray:
    """A square of 30 x 30 with a hole and a notch, a speck beside it, and a part of 5 % below it."""
    foreground = np.zeros((size, size), dtype=np.float32)
    foreground[2:32, 2:32] = 0.9
    foreground[10:13, 10:13] = 0.2
    foreground[20:22, 28:32] = 0.1
    foreground[5:8, 35:38] = 0.8
    foreground[34:39, 2:11] = 0.7
    return foreground


def test_cleaning_drops_specks_and_fills_small_holes_and_nothing_else():
    raw = specked()
    expected = raw > 0.5
    expected[10:13, 10:13], expected[5:8, 35:38] = True, False
    cleaned = _clean_foreground(raw)
    assert np.array_equal(cleaned > 0.5, expected)
    same = (raw > 0.5) == expected
    assert np.array_equal(cleaned[same], raw[same]) and cleaned[11, 11] == np.nextafter(np.float32(0.5), np.float32(1))
    assert raw[5, 35] == np.float32(0.8)  # what it is given stays as it is


def test_cleaning_keeps_the_largest_part_and_leaves_clean_masks_alone():
    dust = np.zeros((200, 200), dtype=np.float32)
    dust[::4, ::4] = 1
    dust[100:102, 101] = 1
    assert (_clean_foreground(dust) > 0.5).sum() == 3
    for raw in (np.zeros((9, 9), np.float32), np.ones((9, 9), np.float32), np.ones((1, 1), np.float32)):
        assert _clean_foreground(raw) is raw


@pytest.mark.parametrize("per", ["class", "instance"])
def test_label_map_and_masks_are_cleaned_together(per: str):
    image = boxed([[0, 0, 40, 40], [42, 0, 52, 10]], [1, 1], 60, 60)
    small = patch(1, 1, (42, 0, 52, 10), 0.9)  # 11 % of the class, of which its own cleaning must not make a speck
    patches = [Patch(1, (0,), slice(0, 40), slice(0, 40), specked()), small]
    found = assemble(image, patches, per)
    assert np.array_equal(found.label_map == 1, found.masks[0].decode() | found.masks[1].decode())
    assert found.masks[0].area == 30 * 30 - 8 + 45 and found.masks[1].area == 100
    plain = assemble(image, patches, per, AssemblyOptions(clean=False))
    assert np.array_equal(plain.masks[0].decode()[:40, :40], specked() > 0.5)


def test_a_small_object_of_a_class_is_no_speck_of_a_large_one():
    image = boxed([[0, 0, 50, 50], [52, 0, 56, 4]], [1, 1], 60, 60)
    patches = [patch(1, 0, (0, 0, 50, 50), 0.9), patch(1, 1, (52, 0, 56, 4), 0.9)]
    assert [mask.area for mask in assemble(image, patches, "class").masks] == [2500, 16]
