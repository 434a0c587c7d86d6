"""Any function of an image and its boxes as a generator."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from lpg_hf.boxes import box_slices
from lpg_hf.generators.base import BoxedImage, MaskGenerator, Patch


class FunctionGenerator(MaskGenerator):
    """Calls `function(image, boxes)` once per image and cuts what it returns to the boxes.

    Args:
        function: takes (H, W, 3) uint8 RGB and (N, 4) float32 xyxy in pixels, returns (N, H, W) masks (bool or
            integer, 0 for the rest) or probabilities (float in [0, 1]). It must allow calls from several threads.
    """

    def __init__(self, function: Callable[[np.ndarray, np.ndarray], np.ndarray]):
        self.function = function

    def settings(self) -> dict:
        return {"function": getattr(self.function, "__qualname__", type(self.function).__qualname__)}

    def patches(self, images: Sequence[BoxedImage], per: str) -> Iterator[tuple[int, Patch]]:
        """See `MaskGenerator.patches`; both granularities give the function's own masks.

        Raises:
            ValueError: the function returns another shape, or floats outside [0, 1].
        """
        for position, image in enumerate(images):
            if not len(image.boxes):
                continue
            masks = np.asarray(self.function(image.image, image.boxes))
            expected = (len(image.boxes), *image.image.shape[:2])
            if masks.shape != expected:
                raise ValueError(f"the mask function returned shape {masks.shape}; expected {expected}, one per box.")
            if masks.dtype.kind == "f":
                if not (masks.min() >= 0 and masks.max() <= 1):
                    raise ValueError(
                        f"the mask function returned floats in {masks.min()}..{masks.max()}; return probabilities in "
                        "[0, 1], or a boolean mask."
                    )
            else:
                masks = masks != 0
            for index, (box, label) in enumerate(zip(image.boxes, image.labels)):
                rows, columns = box_slices(box, *expected[1:])
                inside = masks[index, rows, columns].astype(np.float32)
                yield position, Patch(int(label), (index,), rows, columns, inside)
