"""The box itself as the mask: the baseline that every method has to beat."""

import numpy as np

from lpg_hf.generators.base import BoxByBoxGenerator


class BoxGenerator(BoxByBoxGenerator):
    """Every pixel that a box touches is foreground."""

    def foreground(self, image: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
        return np.ones((rows.stop - rows.start, columns.stop - columns.start), dtype=np.float32)
