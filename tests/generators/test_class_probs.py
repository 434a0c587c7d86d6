"""Where a segmenter's logits lie in the image, and what is kept of them."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

from lpg_hf.generators.class_probs import SegmenterProbs


class Slope(nn.Module):
    """A segmenter of two classes whose logits at a stride grow with the column in pixels."""

    dtype, config = torch.float32, SimpleNamespace(num_labels=2)

    def __init__(self, stride: int, first: float) -> None:
        super().__init__()
        self.stride, self.first = stride, first

    def forward(self, pixel_values: Tensor) -> SemanticSegmenterOutput:
        rows, columns = (torch.arange(self.first, side, self.stride) for side in pixel_values.shape[2:])
        return SemanticSegmenterOutput(
            logits=slope(columns)[None, :, None].expand(len(pixel_values), -1, len(rows), -1)
        )


def slope(positions: Tensor) -> Tensor:
    """Logits of class 1 against class 0 that grow with the column in pixels."""
    return torch.stack([torch.zeros_like(positions), (positions - 60) / 20])


@pytest.mark.parametrize("stride", [1, 4, 8, 16, 32])
def test_logits_are_read_where_the_network_has_looked(stride):
    model = Slope(stride, (stride - 1) / 2)
    images = [np.zeros((50, 119, 3), dtype=np.uint8)] * 2
    segmenter = SegmenterProbs(model, SegformerImageProcessorPil(do_resize=False))
    cell = max(stride, 4)  # logits that lie closer together are stored at the centres of cells of 4 pixels
    positions = np.arange((cell - 1) / 2, 128, cell)  # of 128 columns: images are padded to multiples of 32
    expected = 255 * slope(torch.from_numpy(positions)).softmax(dim=0)[1].numpy()
    for probs in segmenter(images, [np.array([1])] * 2):
        stored = probs.stored[1]
        assert stored.dtype == np.uint8 and probs[1].shape == (50, 119)
        assert np.abs(stored[0] - expected[: stored.shape[1]]).max() <= 0.51
        between = np.interp(np.arange(119), positions, expected)
        assert np.abs(probs[1][20] - between).max() <= 1.01


@pytest.mark.parametrize(
    "name, changed",
    [
        ("preprocessor_config.json", {"image_mean": {"a": 1}}),
        ("preprocessor_config.json", {"rescale_factor": [[[[0]]]]}),
        ("preprocessor_config.json", {"do_resize": True, "size": {"height": 10**5, "width": 32}}),
        ("config.json", {"patch_sizes": [64, 64, 64, 64]}),
    ],
)
def test_a_value_that_fails_at_the_first_image_names_the_folder(segmenter_folder, tmp_path, name, changed):
    folder = shutil.copytree(segmenter_folder, tmp_path / "segmenter")
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**content, **changed}))
    with pytest.raises(ValueError, match=f"{folder} cannot be used .* Correct config.json"):
        SegmenterProbs.from_pretrained(folder)([np.zeros((9, 9, 3), np.uint8)], [np.array([1])])
