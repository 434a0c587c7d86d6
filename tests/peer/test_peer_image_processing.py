"""transformers' ImageProcessingTestMixin on our image processor; every override gives its reason."""

import unittest

import numpy as np
import pytest
from hf_tests.test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin
from PIL import Image

from lpg_hf.models.auto import register
from lpg_hf.models.image_processing_lpg import LPGImageProcessor


pytestmark = pytest.mark.peer
register()


class LPGImageProcessingTester(ImageProcessingTester):
    def __init__(self, parent):
        super().__init__(parent, batch_size=3, min_resolution=30, max_resolution=90, image_mean=[0.5, 0.4, 0.3])

    def _get_image_processing_classes(self):
        # The library finds the classes by the folder of the test file.
        return {"pil": LPGImageProcessor}

    def expected_output_image_shape(self, images):
        # No resizing: a batch is padded to its largest height and width.
        def size(image):
            if isinstance(image, Image.Image):
                return image.size[::-1]
            return image.shape[:2] if isinstance(image, np.ndarray) else tuple(image.shape[1:])

        heights, widths = zip(*map(size, images))
        return self.num_channels, max(heights), max(widths)


class LPGImageProcessorPeerTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = LPGImageProcessingTester

    @unittest.skip(reason="a rule for the library's own models; torchvision is not a dependency of ours")
    def test_new_models_require_torchvision_backend(self):
        pass
