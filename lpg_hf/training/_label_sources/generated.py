"""Masks of a generator that needs no training as labels: GrabCut, dense CRF (WSSL's Bbox-Seg), the SAM family."""

import numpy as np

from lpg_hf.data._examples import row_boxes
from lpg_hf.generators import load_generator
from lpg_hf.generators.base import BoxedImage
from lpg_hf.masks.assembly import AssemblyOptions, assemble
from lpg_hf.training._label_sources.base import LabelSource, with_crowds


class Generated(LabelSource):
    """The masks of a generator, fused as those of the LPG are.

    WSSL's Bbox-Seg is the generator densecrf: the centre of a box (20 % of its area) is foreground, what lies outside
    the boxes is background, and a dense CRF decides the rest; see `DenseCRFGenerator` for where it differs.

    Args:
        generator: name, as `load_generator` takes it.
        overlap_rule: see `Fusion`.

    Source: Papandreou et al. (ICCV 2015), Sec. 3.3, Bbox-Seg; Eq. (7) and Sec. III-D of the LPG paper for the fusion.
    """

    def __init__(self, generator: str, overlap_rule: str) -> None:
        self.generator = load_generator(generator)
        self.options = AssemblyOptions(overlap_rule=overlap_rule, clean=False)

    def label_map(self, row: dict, image: np.ndarray, probs: np.ndarray | None) -> np.ndarray:
        """See `LabelSource.label_map`."""
        boxed = BoxedImage(image, *row_boxes(row))
        patches = (patch for _, patch in self.generator.patches([boxed], "class"))
        return with_crowds(row, assemble(boxed, patches, "class", self.options).label_map)
