"""The box itself as the mask: the baseline that every method has to beat."""

from collections.abc import Iterator, Sequence

import numpy as np

from lpg_hf.boxes import box_slices
from lpg_hf.generators.base import BoxedImage, MaskGenerator, Patch


class BoxGenerator(MaskGenerator):
    """Every pixel that a box touches is foreground."""

    def patches(self, images: Sequence[BoxedImage], per: str) -> Iterator[tuple[int, Patch]]:
        for position, image in enumerate(images):
            height, width = image.image.shape[:2]
            for index, (box, label) in enumerate(zip(image.boxes, image.labels)):
                rows, columns = box_slices(box, height, width)
                ones = np.ones((rows.stop - rows.start, columns.stop - columns.start), dtype=np.float32)
                yield position, Patch(int(label), (index,), rows, columns, ones)
