"""The compared methods as label sources: each paper's rule on a made image, then from start to metrics."""

import json
import math
from shutil import copytree

import numpy as np
import pytest
import torch
from datasets import Dataset
from killed import Runner
from tiny_run import changed, run_script, weights

from lpg_hf._rle import encode_mask
from lpg_hf.data._examples import box_label_map, row_boxes
from lpg_hf.generators import crf
from lpg_hf.label_maps import mask_name, write_label_map
from lpg_hf.training._label_sources import check_label_source, load_label_source
from lpg_hf.training._label_sources.base import paint_pieces
from lpg_hf.training._label_sources.bcm import confident_labels
from lpg_hf.training._label_sources.proposals import Proposals
from lpg_hf.training._label_sources.sdi import _front_boxes
from lpg_hf.training._labels import MaskLabels, SemiLabels
from lpg_hf.training.data import load_target
from lpg_hf.training.run import Run


HEIGHT, WIDTH = 40, 60


def row_of(boxes, labels, crowds=(), name="a.jpg"):
    """A row of a made image; boxes are xyxy, crowds the positions of crowd regions."""
    bbox = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in boxes]
    iscrowd = [index in crowds for index in range(len(boxes))]
    objects = {"bbox": bbox, "category": [label - 1 for label in labels], "iscrowd": iscrowd}
    return {"file_name": name, "image_id": "7", "height": HEIGHT, "width": WIDTH, "objects": objects}


def disc(row, column, radius):
    """(H, W) bool."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


BLANK = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)


def probs_of(label_map, num_labels=3, high=0.9):
    """(num_labels, H, W) float32: `high` for the label of a pixel, the rest is shared."""
    probs = np.full((num_labels, HEIGHT, WIDTH), (1 - high) / (num_labels - 1), dtype=np.float32)
    np.put_along_axis(probs, label_map[None].astype(np.int64), high, axis=0)
    return probs


def drawing(mask):
    """A bright object on a dark ground, with a little noise."""
    noise = np.random.default_rng(0).integers(0, 20, (HEIGHT, WIDTH, 3))
    return (np.where(mask[..., None], [220, 200, 40], [20, 40, 60]) + noise).astype(np.uint8)


@pytest.mark.parametrize(
    "name",
    ["", "lpg2", "boxsup", "folder", "sdi-mcg", "sdi-grabcut:many", "sdi-grabcut:0", "sdi-box:3", "sam", "bcm:x"],
)
def test_an_unknown_source_is_refused_with_the_known_ones(name):
    with pytest.raises(ValueError, match=r"is unknown. Choose one of .*sam:ID"):
        check_label_source(name)


def test_pieces_lie_on_each_other_as_filled_boxes_do():
    row = row_of([(0, 0, 30, 30), (20, 10, 50, 40), (25, 15, 35, 25), (2, 32, 12, 40)], [1, 2, 1, 2], crowds=(3,))
    windows = [(30, 30), (30, 30), (10, 10)]
    assert np.array_equal(paint_pieces(row, [np.ones(size, np.uint8) for size in windows]), box_label_map(row))
    ring = np.full((10, 10), 255, np.uint8)
    ring[4:6, 4:6] = 1
    painted = paint_pieces(row, [np.ones((30, 30), np.uint8), np.zeros((30, 30), np.uint8), ring])
    assert (painted[15:25, 25:35] == 255).sum() == 96 and painted[20, 30] == 1  # ignored on top of another object
    assert painted[35, 40] == 0 and painted[36, 5] == 255  # 0 is what lies below; the crowd region


def test_wssl_raises_a_class_in_its_own_boxes_and_the_background_everywhere():
    """EM-Fixed: 5 for the classes of the image (here inside their boxes), 3 for the background, nothing for others."""
    source = load_label_source("bbox-em")
    row = row_of([(10, 10, 30, 30)], [1])
    assert np.array_equal(source.label_map(row, BLANK, None), box_label_map(row))
    assert np.array_equal(
        source.label_map(row, BLANK, np.full((3, HEIGHT, WIDTH), 1 / 3, np.float32)), box_label_map(row)
    )
    logits = np.zeros((3, HEIGHT, WIDTH), dtype=np.float32)
    logits[0] = 1.9  # 1.9 + 3 < 0 + 5: the class
    logits[0, :, 20:] = 2.1  # 2.1 + 3 > 0 + 5: the background
    logits[2, 35:] = 5.2  # a class without a box: 5.2 > 2.1 + 3
    probs = np.exp(logits) / np.exp(logits).sum(axis=0)
    expected = np.zeros((HEIGHT, WIDTH))
    expected[10:30, 10:20], expected[35:] = 1, 2
    assert np.array_equal(source.label_map(row, BLANK, probs), expected)


def test_bbox_seg_is_the_dense_crf_between_a_certain_centre_and_a_certain_outside():
    pytest.importorskip("pydensecrf")
    mask = disc(20, 30, 12)
    row = row_of([(18, 8, 43, 33)], [2])
    found = load_label_source("bbox-seg").label_map(row, drawing(mask), None)
    assert set(np.unique(found)) == {0, 2} and (found[box_label_map(row) == 0] == 0).all()
    assert (found == 2)[mask].mean() > 0.95 and (found == 2).sum() < 1.1 * mask.sum()


def identity_crf(image, probabilities, settings=crf.LARGEFOV_CRF, *, min_probability=0.0):
    return probabilities


@pytest.fixture
def without_crf(monkeypatch):
    monkeypatch.setattr("lpg_hf.training._label_sources.sdi.dense_crf", identity_crf)


@pytest.mark.usefixtures("without_crf")
def test_sdi_box_and_box_i_begin_with_the_box_or_its_centre():
    row = row_of([(10, 10, 30, 30)], [1])
    assert np.array_equal(load_label_source("sdi-box").label_map(row, BLANK, None), box_label_map(row))
    first = load_label_source("sdi-boxi").label_map(row, BLANK, None)
    side = round(20 * math.sqrt(0.2))
    assert (first == 1).sum() == side**2 and (first == 255).sum() == 400 - side**2
    assert first[20, 20] == 1 and first[10, 10] == 255 and (first[box_label_map(row) == 0] == 0).all()


@pytest.mark.usefixtures("without_crf")
@pytest.mark.parametrize("name", ["sdi-box", "sdi-boxi"])
def test_sdi_enforces_boxes_and_resets_what_fills_less_than_half(name):
    source = load_label_source(name)
    row = row_of([(0, 0, 20, 20), (30, 0, 50, 20)], [1, 2])
    predicted = np.zeros((HEIGHT, WIDTH), np.uint8)
    predicted[0:20, 0:11] = 1  # 55 % of the first box
    predicted[0:20, 30:39] = 2  # 45 % of the second
    predicted[30:, :] = 1  # outside all boxes
    predicted[0:3, 45:50] = 1  # in the box of another class
    found, first = source.label_map(row, BLANK, probs_of(predicted)), source.label_map(row, BLANK, None)
    assert (found[20:] == 0).all() and np.array_equal(
        found[:, :20], np.where(predicted == 1, 1, 0)[:, :20] * (np.arange(HEIGHT) < 20)[:, None]
    )
    assert np.array_equal(found[:, 20:], first[:, 20:])


@pytest.mark.usefixtures("without_crf")
@pytest.mark.parametrize("name", ["sdi-box", "sdi-boxi"])
@pytest.mark.parametrize("label", [1, 2])
def test_sdi_resets_no_pixel_of_a_box_in_front(name, label):
    """A missed sofa gets its first labels back, and the person on it, or another sofa, keeps what was segmented."""
    source = load_label_source(name)
    row = row_of([(10, 10, 30, 30), (0, 0, 60, 40)], [label, 1])
    predicted = np.zeros((HEIGHT, WIDTH), np.uint8)
    predicted[11:29, 11:29] = label  # 81 % of the box in front, the box behind is missed
    expected = source.label_map(row, BLANK, None)
    expected[10:30, 10:30] = predicted[10:30, 10:30]
    assert np.array_equal(source.label_map(row, BLANK, probs_of(predicted)), expected)


def test_the_box_in_front_is_that_of_the_first_labels():
    """Of boxes of one size the later one, as where they are painted; each box has a label of its own here."""
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 20, (40, 2))
    boxes = np.concatenate([corners, corners + rng.choice([4, 6, 9, 12], (40, 2))], axis=1).tolist()
    row = row_of([*boxes, (0, 0, 60, 40)], range(1, 42), crowds=(40,))
    pieces = [np.ones((y2 - y1, x2 - x1), np.uint8) for x1, y1, x2, y2 in boxes]
    painted, front = paint_pieces(row, pieces), _front_boxes(row)
    assert np.array_equal(np.where(painted == 255, 0, painted), front + 1) and len(np.unique(front)) > 20


def test_sdi_filters_the_output_by_a_dense_crf():
    pytest.importorskip("pydensecrf")
    mask, row = disc(20, 30, 12), row_of([(18, 8, 43, 33)], [1])
    blurred = probs_of(disc(20, 32, 12).astype(np.uint8), high=0.6)
    found = load_label_source("sdi-box").label_map(row, drawing(mask), blurred) == 1
    before = blurred.argmax(axis=0) == 1
    iou = [(m & mask).sum() / (m | mask).sum() for m in (before, found)]
    assert iou[1] > iou[0] + 0.05


def test_grabcut_plus_ignores_where_moved_boxes_disagree():
    mask, row = disc(20, 30, 12), row_of([(18, 8, 43, 33)], [1])
    source = load_label_source("sdi-grabcut:12")
    found = source.label_map(row, drawing(mask), None)
    assert (found == 1)[mask].mean() > 0.9 and (found[box_label_map(row) == 0] == 0).all()
    assert (found == 1)[~mask].mean() < 0.02
    assert np.array_equal(found, source.label_map(row, drawing(mask), None))


@pytest.mark.parametrize("votes, label", [(7, 1), (6, 255), (2, 255), (1, 0)])
def test_grabcut_plus_counts_votes_as_the_paper_says(monkeypatch, votes, label):
    """70 % are foreground, below 20 % are background."""
    calls = []

    def cut(self, image, rows, columns):
        assert 0.1 <= self.context <= 0.6
        calls.append((rows, columns))
        return np.full((rows.stop - rows.start, columns.stop - columns.start), float(len(calls) <= votes), np.float32)

    monkeypatch.setattr("lpg_hf.training._label_sources.sdi.GrabCutGenerator.foreground", cut)
    found = load_label_source("sdi-grabcut:10").label_map(row_of([(10, 10, 30, 30)], [1]), BLANK, None)
    assert found[20, 20] == label
    assert len(set(map(str, calls))) > 1 and all(9 <= rows.start <= 11 and 29 <= rows.stop <= 31 for rows, _ in calls)


def proposals_file(tmp_path, masks, image_id="a.jpg"):
    entries = [{"image_id": image_id, "segmentation": encode_mask(mask), "score": 0.5} for mask in masks]
    path = tmp_path / "proposals.json"
    path.write_text(json.dumps(entries))
    return path


def squares(*corners):
    masks = np.zeros((len(corners), HEIGHT, WIDTH), bool)
    for mask, (x1, y1, x2, y2) in zip(masks, corners):
        mask[y1:y2, x1:x2] = True
    return masks


@pytest.mark.parametrize("image_id", ["a.jpg", 7])
def test_mcg_takes_the_proposal_that_overlaps_most_and_fills_a_box_that_has_none(tmp_path, image_id):
    path = proposals_file(tmp_path, squares((8, 8, 20, 20), (10, 10, 29, 30), (0, 0, 40, 40)), image_id)
    row = row_of([(10, 10, 30, 30), (50, 5, 58, 15)], [1, 2])
    found = load_label_source(f"sdi-mcg:{path}").label_map(row, BLANK, None)
    assert (found == 1).sum() == 19 * 20 and found[15, 28] == 1 and found[15, 29] == 0
    assert (found == 2).sum() == 80


def test_m_and_g_keeps_what_both_call_the_object_and_ignores_the_rest_of_the_box(tmp_path):
    mask = disc(20, 30, 12)
    half = mask.copy()
    half[:, 35:] = False
    row = row_of([(18, 8, 43, 33)], [1])
    source = load_label_source(f"sdi-mg:{proposals_file(tmp_path, [half])}")
    found = source.label_map(row, drawing(mask), None)
    assert ((found == 1) & ~half).sum() == 0 and (found == 1)[half].mean() > 0.9
    assert (found[(box_label_map(row) == 1) & (found != 1)] == 255).all() and (
        found[box_label_map(row) == 0] == 0
    ).all()


def test_boxsup_first_ranks_by_the_overlap_of_tight_boxes(tmp_path):
    """A thin frame has the tight box of the object, though it covers few of its pixels."""
    frame = squares((10, 10, 30, 30))[0] ^ squares((11, 11, 29, 29))[0]
    shifted = squares(*((10 + k, 10, 30 + k, 30) for k in range(1, 8)))
    source = load_label_source(f"boxsup:{proposals_file(tmp_path, [*shifted[::-1], frame, *squares((50, 0, 55, 9))])}")
    [candidates] = source.candidates(row_of([(10, 10, 30, 30)], [1]), None)
    assert len(candidates) == 5 and np.array_equal(candidates[0], frame[10:30, 10:30])
    assert [piece[5].argmax() for piece in candidates[1:]] == [1, 2, 3, 4]  # the proposals, cut to the box


def test_boxsup_adds_three_times_the_loss_of_the_segmenter(tmp_path):
    boxes = [(10, 10, 30, 30), (10, 10, 29, 30), (10, 10, 20, 30)]
    path = proposals_file(tmp_path, squares(*boxes))
    source, row = load_label_source(f"boxsup:{path}"), row_of([(10, 10, 30, 30)], [1])
    segmented = squares((10, 10, 20, 30))[0].astype(np.uint8)
    probs = probs_of(segmented, high=0.9)
    [candidates] = source.candidates(row, probs)
    costs = []
    for x1, y1, x2, y2 in boxes:
        piece = squares((x1, y1, x2, y2))[0].astype(np.int64)
        loss = -np.log(np.take_along_axis(probs, piece[None], axis=0))[0, 10:30, 10:30].mean()
        costs.append(1 - (x2 - x1) * (y2 - y1) / 400 + 3 * loss)
    widths = [piece.sum() // 20 for piece in candidates]
    assert widths == [20 - 10 * (k == 2) - (k == 1) for k in np.argsort(costs)] and widths[0] == 10


def test_the_early_end_of_the_search_changes_no_candidate(tmp_path):
    rng = np.random.default_rng(0)
    corners = [sorted(rng.integers(0, 40, 2)) + sorted(rng.integers(0, 40, 2)) for _ in range(60)]
    masks = squares(*((x1, y1, x2 + 2, y2 + 2) for x1, x2, y1, y2 in corners))
    source = load_label_source(f"boxsup:{proposals_file(tmp_path, masks)}")
    row, probs = row_of([(8, 6, 33, 30)], [1]), probs_of(disc(20, 20, 9).astype(np.uint8), high=0.8)
    [candidates] = source.candidates(row, probs)
    found = source.proposals.of_row(row)
    ious, order = found.by_overlap(row_boxes(row)[0][0])
    losses = -np.log(probs[:, 6:30, 8:33])
    costs = {i: 1 - ious[i] + 3 * np.where(masks[i][6:30, 8:33], losses[1], losses[0]).mean() for i in order}
    best = sorted(costs, key=lambda i: (costs[i], i))[:5]
    assert all(np.array_equal(piece, masks[i][6:30, 8:33]) for piece, i in zip(candidates, best, strict=True))


def test_boxsup_draws_one_of_its_candidates_in_each_epoch(tmp_path):
    path = proposals_file(tmp_path, squares(*((10 + k, 10, 30, 30) for k in range(8))))
    source, row = load_label_source(f"boxsup:{path}"), row_of([(10, 10, 30, 30)], [1])
    source.write(tmp_path / "a.png", row, BLANK, None)
    labels = source.labels(tmp_path, seed=0)
    drawn = [int((labels(0, row, epoch) == 1).sum()) for epoch in range(40)]
    assert set(drawn) == {20 * (20 - k) for k in range(5)}
    assert drawn == [int((labels(0, row, epoch) == 1).sum()) for epoch in range(40)]
    assert (labels(0, row) == 1).sum() == 400  # outside a training the best one
    assert drawn != [int((source.labels(tmp_path, seed=1)(0, row, epoch) == 1).sum()) for epoch in range(40)]


@pytest.mark.parametrize("kind", ["sdi-mcg", "sdi-mg", "boxsup"])
def test_boxes_without_a_proposal_are_counted_from_what_each_process_wrote(tmp_path, kind):
    """No file of proposals is read a second time, and none of an image whose labels an earlier start wrote."""
    proposals, folder = tmp_path / "proposals", tmp_path / "labels"
    (proposals / "sub").mkdir(parents=True)
    inside, outside = (10, 10, 30, 30), (50, 5, 58, 15)
    boxes = {"a.jpg": [inside, outside, outside], "sub/b.jpg": [outside, inside], "c.jpg": [inside], "d.jpg": []}
    rows = Dataset.from_list([row_of(these, [1] * len(these), name=name) for name, these in boxes.items()])
    for name in ("a.json", "sub/b.json"):
        (proposals / name).write_text(json.dumps([encode_mask(mask) for mask in squares(inside)]))
    for row in rows:  # each by a process of its own
        source = load_label_source(f"{kind}:{proposals}")
        source.write(folder / mask_name(row["file_name"]), row, BLANK, None)
        (proposals / mask_name(row["file_name"])).with_suffix(".json").unlink(missing_ok=True)
    source = load_label_source(f"{kind}:{proposals}")
    assert source.summary(rows, folder, 3) == {"boxes_without_proposal": 2 + 1 + 1}
    if kind == "boxsup":
        labels = source.labels(folder, seed=0)
        assert all(np.array_equal(labels(0, row, 0), box_label_map(row)) for row in rows)


@pytest.mark.parametrize("kind", ["sdi-mcg", "boxsup"])
def test_an_image_called_complete_does_not_end_a_round(tmp_path, kind):
    """`complete.json` says that the labels of all images are there."""
    row = row_of([(10, 10, 30, 30)], [1], name="complete.jpg")
    source = load_label_source(f"{kind}:{proposals_file(tmp_path, squares((10, 10, 30, 30)), 'complete.jpg')}")
    source.write(tmp_path / "labels" / "complete.png", row, BLANK, None)
    assert not (tmp_path / "labels" / "complete.json").exists()
    (tmp_path / "labels" / "complete.json").write_text("{}")
    assert np.array_equal(source.labels(tmp_path / "labels", seed=0)(0, row, 0), box_label_map(row))
    (tmp_path / "labels" / "complete.boxes.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"complete.boxes.json is missing; .* Delete the folder"):
        source.summary(Dataset.from_list([row]), tmp_path / "labels", 3)


def test_the_proposals_of_mcg_as_they_are_distributed(tmp_path):
    savemat = pytest.importorskip("scipy.io").savemat
    superpixels = np.ones((HEIGHT, WIDTH), np.uint32)
    superpixels[10:30, 10:20], superpixels[10:30, 20:30] = 2, 3
    labels = np.empty((2, 1), dtype=object)
    labels[:, 0] = [np.array([[2]]), np.array([[2, 3]])]
    savemat(tmp_path / "a.mat", {"superpixels": superpixels, "labels": labels})
    found = load_label_source(f"sdi-mcg:{tmp_path}").label_map(row_of([(10, 10, 30, 30)], [1]), BLANK, None)
    assert (found == 1).sum() == 400
    (tmp_path / "b.mat").unlink(missing_ok=True)
    savemat(tmp_path / "b.mat", {"other": superpixels})
    with pytest.raises(ValueError, match="b.mat lacks superpixels or labels"):
        Proposals(str(tmp_path)).of_row(row_of([], [], name="b.jpg"))


def cells(*arrays):
    """What savemat writes as a cell array."""
    result = np.empty((len(arrays), 1), dtype=object)
    result[:, 0] = arrays
    return result


@pytest.mark.parametrize(
    "superpixels, labels, said",
    [
        (np.ones((HEIGHT, WIDTH), np.uint16), cells(np.array([99])), "labels of proposal 0 must hold .* 0 to 1,"),
        (np.ones((HEIGHT, WIDTH), np.uint16), cells(np.array([1]), np.array([-1])), "labels of proposal 1 must"),
        (np.ones((HEIGHT, WIDTH), np.uint16), cells(np.array([0.5])), "labels of proposal 0 must hold whole numbers"),
        (
            np.ones((HEIGHT, WIDTH), np.uint16),
            {"a": 1},
            "cannot be .* labels holds something else than arrays of numbers",
        ),
        (np.ones((HEIGHT, WIDTH), np.uint16), np.ones(100_001), "cannot be .* labels states 100001 proposals, but"),
        (np.ones((4, 5, 6)), cells(np.array([1])), r"has superpixels of \(4, 5, 6\), but the image's .* \(40, 60\)"),
        (np.zeros((HEIGHT, 0)), cells(np.array([0])), r"has superpixels of \(40, 0\)"),
        (np.zeros((HEIGHT, 10**6), np.uint8), cells(np.array([0])), r"has superpixels of \(40, 1000000\)"),
        (np.full((HEIGHT, WIDTH), 3e9), cells(np.array([0])), "superpixels must hold whole numbers from 0 to 2400,"),
        (np.full((HEIGHT, WIDTH), -1), cells(np.array([0])), "superpixels must hold whole numbers"),
        (np.full((HEIGHT, WIDTH), np.nan), cells(np.array([0])), "superpixels must hold whole numbers"),
        (np.full(HEIGHT, "a" * WIDTH), cells(np.array([0])), "cannot be .* superpixels holds something else"),
        (np.full((HEIGHT, WIDTH), "a", object), cells(np.array([0])), "cannot be .* superpixels holds"),
    ],
)
def test_proposals_of_mcg_that_do_not_fit_the_image_are_named(tmp_path, superpixels, labels, said):
    content = {"superpixels": superpixels, "labels": labels}
    pytest.importorskip("scipy.io").savemat(tmp_path / "a.mat", content, do_compression=True)
    with pytest.raises(ValueError, match=f"a.mat:? {said}"):
        Proposals(str(tmp_path)).of_row(row_of([], []))


def test_any_bytes_of_a_file_of_mcg_may_be_changed(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "a.mat"
    content = {"labels": cells(np.array([1]), np.array([0, 1])), "superpixels": np.ones((HEIGHT, WIDTH), np.uint8)}
    pytest.importorskip("scipy.io").savemat(path, content)
    data, refused = path.read_bytes(), 0
    for _ in range(300):  # among them types of numbers that there are not, at which scipy's reader ends the process
        changed = np.frombuffer(data, np.uint8).copy()
        changed[rng.integers(120, 500, 2)] = rng.integers(0, 256, 2)
        path.write_bytes(changed.tobytes())
        try:
            Proposals(str(tmp_path)).of_row(row_of([], []))
        except ValueError as error:
            assert "a.mat" in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 100


def test_a_damaged_file_of_mcg_is_named_and_a_packed_one_is_not_unpacked_beyond_its_image(tmp_path):
    savemat, path = pytest.importorskip("scipy.io").savemat, tmp_path / "a.mat"
    content = {"superpixels": np.ones((HEIGHT, WIDTH)), "labels": cells(np.array([1]))}
    savemat(path, content)
    damaged = [path.read_bytes()[:size] for size in (0, 50, 1000)]
    damaged += [bytes(300), b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM" + bytes(500)]
    savemat(path, content | {"other": np.zeros((1000, 200_000), np.uint8)}, do_compression=True)
    damaged.append(path.read_bytes())
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(ValueError, match="a.mat cannot be read as a MAT-file: .*Copy or make it again"):
            Proposals(str(tmp_path)).of_row(row_of([], []))


@pytest.mark.parametrize(
    "content, said",
    [
        ("{}", "holds a dict, not a list"),
        ("[3]", "holds 3, which is no"),
        ("[", "is not json"),
        ("[" * 200_000, "is not json of proposals: it is nested too deeply"),
        (f"[{'9' * 5000}]", "is not json: Exceeds the limit"),
    ],
)
def test_a_file_that_holds_no_proposals_is_named(tmp_path, content, said):
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(ValueError, match=f"p.json {said}"):
        Proposals(str(tmp_path / "p.json"))


def test_a_proposal_of_another_size_is_named(tmp_path):
    path = proposals_file(tmp_path, [np.ones((5, 5), bool)])
    with pytest.raises(ValueError, match=r"proposal 0 of a.jpg .* height and width \[40, 60\]: \[5, 5\]"):
        Proposals(str(path)).of_row(row_of([(1, 1, 5, 5)], [1]))
    with pytest.raises(FileNotFoundError, match="the proposals nowhere.json do not exist"):
        Proposals("nowhere.json")


def test_the_filling_rate_says_how_many_pixels_of_a_box_are_learned():
    """A rate of 0.5 keeps the 4 of 8 pixels that the segmenter calls the class most; other labels stay."""
    logits = torch.zeros(1, 3, 1, 10)
    logits[0, 1, 0, :8] = torch.tensor([8.0, 1.0, 7.0, 2.0, 6.0, 3.0, 5.0, 4.0])
    boxes = torch.tensor([[[1] * 8 + [2] + [0]]])
    labels = torch.tensor([[[1, 1, 0, 1, 1, 255, 1, 1, 2, 0]]])
    kept = confident_labels(logits, labels, boxes, torch.tensor([[1.0, 0.5, 1.0]]))
    assert kept.tolist() == [[[1, 255, 0, 255, 1, 255, 1, 255, 2, 0]]]
    assert torch.equal(confident_labels(logits, labels, boxes, torch.ones(1, 3)), labels)


@pytest.fixture
def rows(accelerator, settings):
    return load_target(Run(accelerator, settings), masks=False)


def test_filling_rates_are_the_mean_share_of_the_boxes_that_proposals_fill(rows, tmp_path):
    pytest.importorskip("pydensecrf")
    source = load_label_source("bcm")
    shares: dict = {}
    for index, row in enumerate(rows):
        boxes = box_label_map(row)
        labels = np.where(np.arange(boxes.shape[0])[:, None] % (2 + index % 2) == 0, boxes, 0).astype(np.uint8)
        write_label_map(tmp_path / mask_name(row["file_name"]), labels)
        for label in set(np.unique(boxes)) - {0, 255}:
            shares.setdefault(int(label), []).append((labels == label).sum() / (boxes == label).sum())
    summary = source.summary(rows, tmp_path, 6)
    (tmp_path / "complete.json").write_text(json.dumps(summary))
    assert summary["filling_rates"][0] == summary["filling_rates"][5] == 1
    for label, values in shares.items():
        assert np.isclose(summary["filling_rates"][label], np.mean(values), atol=1e-5)
    assert source.labels(tmp_path, 0) == MaskLabels(tmp_path, tuple(summary["filling_rates"]))
    kept = SemiLabels(source.labels(tmp_path, 0), rows, {rows[0]["file_name"]: 0})
    from lpg_hf.training._labels import filling_rates_of

    assert (filling_rates_of(kept, rows[0]) == 1).all() and (filling_rates_of(kept, rows[1]) < 1).any()


def rows_proposals(rows, path):
    """For every box itself and its left half, as a COCO file; for those of the first image nothing."""
    entries = []
    for row in list(rows)[1:]:
        for x1, y1, x2, y2 in row_boxes(row)[0].astype(int):
            for right in (x2, (x1 + x2 + 1) // 2):
                mask = np.zeros((row["height"], row["width"]), bool)
                mask[y1:y2, x1:right] = True
                entries.append({"image_id": row["file_name"], "segmentation": encode_mask(mask)})
    path.write_text(json.dumps(entries))
    return path


SOURCES = ["bbox-rect", "bbox-seg", "bbox-em", "sdi-box", "sdi-boxi", "sdi-grabcut:3", "sdi-mcg:", "sdi-mg:", "bcm"]
SOURCES += ["boxsup:", "folder:", "grabcut"]
QUICK = ("bbox-rect", "sdi-box", "bcm", "boxsup:")  # one of each kind; the others are marked slow
REFINING = ("bbox-em", "sdi-box", "sdi-boxi", "boxsup:")
PROPOSED = ("sdi-mcg:", "sdi-mg:", "boxsup:")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SOURCES]
)
def test_a_source_is_trained_on_from_start_to_metrics_and_resumes(values, rows, tmp_path, monkeypatch, name):
    """Without the run's generators; a run that is stopped after the first round ends as one that is not."""
    if name in ("bbox-seg", "sdi-box", "sdi-boxi", "bcm"):
        pytest.importorskip("pydensecrf")
    source = name
    if name.startswith("folder"):
        for row in rows:
            write_label_map(tmp_path / "maps" / mask_name(row["file_name"]), box_label_map(row))
        source += str(tmp_path / "maps")
    elif name.endswith(":"):
        source += str(rows_proposals(rows, tmp_path / "proposals.json"))
    changes = values | {"run.labels": source, "run.num_stages": 1}
    run_script("deploy.py", changes, tmp_path / "whole")
    target = tmp_path / "whole" / "target"
    metrics = json.loads((target / "metrics.json").read_text())
    stages = ["0", "1"] if name in REFINING else ["0"]
    assert list(metrics["pseudo_mask_miou"]) == stages and list(metrics["segmenter_miou"]) == ["0", "1"]
    assert str(tmp_path) not in json.dumps(metrics) and metrics["settings"]["run"]["labels"].startswith(name)
    for stage in stages:
        folder = target / f"stage{stage}" / "pseudo_masks"
        complete = json.loads((folder / "complete.json").read_text())
        assert len(list(folder.rglob("*.png"))) == len(rows) == complete["images"]
        assert complete.get("boxes_without_proposal") == (len(row_boxes(rows[0])[1]) if name in PROPOSED else None)
    assert (target / "stage1" / "pseudo_masks").exists() == (name in REFINING)

    last = f"stage{stages[-1]}"
    copytree(tmp_path / "whole", tmp_path / "run")
    stopped = tmp_path / "run" / "target" / last
    complete = (stopped / "pseudo_masks" / "complete.json").read_bytes()
    (stopped / "pseudo_masks" / "complete.json").unlink()
    sorted((stopped / "pseudo_masks").rglob("*.png"))[2].unlink()
    for path in (tmp_path / "run" / "target").rglob("segmenter"):
        if path.parent.name == last or stages == ["0"]:
            path.rename(path.with_name("gone"))
    run_script("deploy.py", changes, tmp_path / "run")
    assert (stopped / "pseudo_masks" / "complete.json").read_bytes() == complete
    again = weights(tmp_path / "run")
    assert {key: digest for key, digest in again.items() if "gone" not in key} == weights(tmp_path / "whole")


@pytest.mark.slow
def test_a_source_that_draws_and_refines_is_killed_and_ends_with_the_same_bytes(values, rows, tmp_path):
    """Around the renames of candidates, label maps, checkpoints and networks."""
    changes = values | {"run.num_stages": 1, "run.measure": []}
    changes["run.labels"] = f"boxsup:{rows_proposals(rows, tmp_path / 'proposals.json')}"
    run_script("deploy.py", changes, tmp_path / "whole")
    runner = Runner()
    kills = [(3, "after"), (4, "before"), ("stage0/segmenter", "before"), (5, "before"), (10, "after")]
    codes = [runner.run("deploy.py", changes, tmp_path / "run", *kill) for kill in kills]
    codes.append(runner.run("deploy.py", changes, tmp_path / "run"))
    assert codes == [-9] * len(kills) + [0], (codes, (tmp_path / "run.log").read_text()[-3000:])
    files = {p.relative_to(tmp_path / "run"): p.read_bytes() for p in (tmp_path / "run").rglob("pseudo_masks/**/*.*")}
    assert len([name for name in files if name.suffix == ".json"]) == 2 * (len(rows) + 1)
    assert all((tmp_path / "whole" / name).read_bytes() == content for name, content in files.items())
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_bcm_trains_on_other_pixels_than_its_proposals_alone(values, tmp_path):
    pytest.importorskip("pydensecrf")
    for name in ("bcm", "bbox-seg"):
        run_script("deploy.py", values | {"run.labels": name, "run.num_stages": 0, "run.measure": []}, tmp_path / name)
    digests = [weights(tmp_path / name) for name in ("bcm", "bbox-seg")]
    masks = [{key: value for key, value in one.items() if key.endswith("png")} for one in digests]
    assert masks[0] == masks[1] and digests[0] != digests[1]


def test_ground_truth_of_semi_mode_goes_before_the_labels_of_a_source(values, tmp_path):
    changes = {"run.labels": "bbox-rect", "run.num_stages": 0, "run.mode": "semi", "run.semi_split": "train"}
    run_script("deploy.py", values | changes, tmp_path / "semi")
    run_script("deploy.py", values | changes | {"run.mode": "weak"}, tmp_path / "weak")
    one, other = ({k.split("/", 1)[1]: v for k, v in weights(tmp_path / n).items()} for n in ("semi", "weak"))
    assert one.keys() == other.keys() and one != other


def test_what_does_not_fit_is_refused_before_any_training(values, rows, tmp_path):
    write_label_map(tmp_path / "maps" / mask_name(rows[0]["file_name"]), box_label_map(rows[0]))
    changes = values | {"run.labels": f"folder:{tmp_path / 'maps'}"}
    with pytest.raises(FileNotFoundError, match="lacks the label maps of 5 of 6 target images"):
        run_script("deploy.py", changes, tmp_path / "run")
    other = proposals_file(tmp_path, squares((0, 0, 5, 5)), image_id="none")
    with pytest.raises(ValueError, match="has proposals for none of the 6 target images"):
        run_script("deploy.py", values | {"run.labels": f"boxsup:{other}"}, tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.safetensors"))


@pytest.mark.parametrize("value, said", [(9, r"has labels \[9\]"), (None, r"has height and width \(3, 3\)")])
def test_a_label_map_that_does_not_fit_is_named_and_not_kept(values, rows, tmp_path, value, said):
    for row in rows:
        labels = np.full((3, 3), 1, np.uint8) if value is None else np.full((64, 64), value, np.uint8)
        write_label_map(tmp_path / "maps" / mask_name(row["file_name"]), labels)
    with pytest.raises(ValueError, match=said):
        run_script("deploy.py", values | {"run.labels": f"folder:{tmp_path / 'maps'}"}, tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.png"))


def test_a_number_of_stages_below_one_is_for_sources(settings):
    assert changed(settings, {"run.labels": "bbox-rect", "run.num_stages": 0}).run.num_stages == 0
    assert changed(settings, {"run.mode": "full", "run.num_stages": 0}).run.num_stages == 0
    with pytest.raises(ValueError, match="run.num_stages=0 must be at least 1"):
        changed(settings, {"run.num_stages": 0})
    with pytest.raises(ValueError, match="run.labels='sdi' is unknown"):
        changed(settings, {"run.labels": "sdi"})
