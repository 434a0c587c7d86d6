"""Where a segmenter's logits lie in the image, and what is kept of them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lpg_hf.generators.class_probs import at_image_size, padded_size, stored_probs
from lpg_hf.models.configuration_deeplab_largefov import DeepLabLargeFOVConfig
from lpg_hf.models.modeling_deeplab_largefov import DeepLabLargeFOVForSemanticSegmentation


HALF_PIXEL = SimpleNamespace()
ALIGNED = SimpleNamespace(upsample_logits=None, config=SimpleNamespace(align_corners=True))


def slope(positions: torch.Tensor) -> torch.Tensor:
    """Logits of class 1 against class 0 that grow with the column in pixels."""
    return torch.stack([torch.zeros_like(positions), (positions - 60) / 20])


@pytest.mark.parametrize(
    "model, stride", [(HALF_PIXEL, 4), (HALF_PIXEL, 8), (HALF_PIXEL, 16), (HALF_PIXEL, 32), (ALIGNED, 4), (ALIGNED, 8)]
)
def test_logits_are_read_where_the_network_has_looked(model, stride):
    height, width = padded_size(model, 50, 119)
    first = 0 if model is ALIGNED else (stride - 1) / 2
    centres = torch.arange(first, width, stride)
    logits = slope(centres)[None, :, None, :].expand(2, -1, len(torch.arange(first, height, stride)), -1)
    stored = stored_probs(model, logits, (height, width)).numpy()
    assert stored.shape == (2, 2, -(-height // 8), -(-width // 8)) and stored.dtype == np.uint8
    cells = torch.arange(3.5, width, 8)
    inside = (cells >= centres[0]) & (cells <= centres[-1])
    expected = 255 * slope(cells).softmax(dim=0)
    assert inside.sum() >= 12
    assert np.abs(stored[1, :, 3, : len(cells)] - expected.numpy())[:, inside.numpy()].max() <= 0.51

    full = at_image_size(stored[0, 1, :7, :15], 50, 119)
    pixels = torch.arange(119.0)
    assert full.shape == (50, 119)
    assert np.abs(full[20] - 255 * slope(pixels).softmax(dim=0)[1].numpy())[20:96].max() <= 3


def test_a_segmenter_that_aligns_corners_gets_images_of_whole_strides_and_one_pixel():
    config = DeepLabLargeFOVConfig(num_labels=3)
    for align_corners, expected in ((True, (385, 513)), (False, (384, 512))):
        config.align_corners = align_corners
        with torch.device("meta"):
            model = DeepLabLargeFOVForSemanticSegmentation(config)
        assert padded_size(model, 375, 500) == expected
    assert padded_size(HALF_PIXEL, 384, 512) == (384, 512)
