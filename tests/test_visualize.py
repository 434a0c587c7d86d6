"""Images: right colours at the right pixels, and panels whose parts do not touch."""

import numpy as np
import pytest

from lpg_hf.labels import voc_palette
from lpg_hf.visualize import colorize, draw_boxes, overlay, panel


def test_colorize_uses_the_voc_colours():
    colours = colorize(np.array([[0, 1], [15, 255]]))
    assert colours.dtype == np.uint8
    assert colours.tolist() == [[[0, 0, 0], [128, 0, 0]], [[192, 128, 128], [224, 224, 192]]]


def test_overlay_tints_labelled_pixels_only():
    image = np.full((2, 3, 3), 100, np.uint8)
    label_map = np.array([[0, 1, 1], [0, 0, 255]])
    tinted = overlay(image, label_map, 0.5)
    assert (tinted[label_map == 0] == 100).all() and tinted[0, 1].tolist() == [114, 50, 50]
    assert (overlay(image, label_map, 1.0)[label_map == 1] == voc_palette()[1]).all()
    assert (image == 100).all()
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        overlay(image, label_map.T)


def test_box_outline_lies_on_its_first_and_last_pixels():
    image = np.zeros((40, 60, 3), np.uint8)
    drawn = draw_boxes(image, np.array([[10, 8, 30, 24]]), [2])
    rows, columns = np.nonzero(drawn.any(axis=2))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (8, 23, 10, 29)
    assert (drawn[8, 10:30] == voc_palette()[2]).all() and not drawn[12, 15].any() and not image.any()


def test_boxes_without_labels_names_or_boxes():
    image = np.zeros((40, 60, 3), np.uint8)
    assert draw_boxes(image, np.array([[1, 1, 9, 9]])).any()
    assert not draw_boxes(image, np.zeros((0, 4)), []).any()
    named = draw_boxes(image, [[1.0, 1.0, 50.0, 30.0]], [1], ["犬 cat"])
    assert named.sum() > draw_boxes(image, [[1.0, 1.0, 50.0, 30.0]], [1]).sum()


def test_panel_places_every_image_below_its_heading():
    red, blue = (np.full((30, 20, 3), colour, np.uint8) for colour in ([255, 0, 0], [0, 0, 255]))
    wide = np.full((20, 80, 3), [0, 255, 0], np.uint8)
    figure = panel(["image", "a much longer heading", "truth"], [[red, None, blue], [wide, wide, None]], cell_width=40)
    pixels = np.asarray(figure)
    assert figure.mode == "RGB" and figure.width == 3 * 40 + 4 * 2
    for colour, area in (([255, 0, 0], 40 * 60), ([0, 0, 255], 40 * 60), ([0, 255, 0], 2 * 40 * 10)):
        assert (pixels == colour).all(axis=2).sum() == area
    first_row = np.nonzero((pixels == [255, 0, 0]).all(axis=2).any(axis=1))[0][0]
    assert (pixels[:first_row] < 128).any() and (pixels[:first_row, :2] == 255).all()


def test_panel_refuses_ragged_rows():
    with pytest.raises(ValueError, match="row 1 of the panel has 1 cells, but there are 2 columns"):
        panel(["a", "b"], [[None, None], [None]])
