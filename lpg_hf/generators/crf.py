"""Dense CRF refinement of class probabilities (Kraehenbuehl and Koltun 2011), through the optional pydensecrf2.

Only reported next to the plain numbers, and as a baseline for pseudo masks; nothing in training needs it.
"""

from typing import NamedTuple

import numpy as np


class CRFSettings(NamedTuple):
    """Weights and kernel widths of the two pairwise terms.

    Attributes:
        iterations: mean-field iterations.
        pos_w: weight of the smoothness term.
        pos_xy: its width in pixels.
        bi_w: weight of the appearance term.
        bi_xy: its spatial width in pixels.
        bi_rgb: its width in colour values (0..255).
    """

    iterations: int = 10
    pos_w: float = 3
    pos_xy: float = 3
    bi_w: float = 5
    bi_xy: float = 140
    bi_rgb: float = 5


# The values of the official code for its two segmenters.
LARGEFOV_CRF = CRFSettings()
RESNET_CRF = CRFSettings(iterations=10, pos_w=3, pos_xy=1, bi_w=4, bi_xy=67, bi_rgb=3)


def dense_crf(
    image: np.ndarray,
    probabilities: np.ndarray,
    settings: CRFSettings = CRFSettings(),
    *,
    min_probability: float = 0.0,
) -> np.ndarray:
    """Class probabilities after mean-field inference with a smoothness and an appearance term.

    Args:
        image: (H, W, 3) RGB, uint8, or float in [0, 1].
        probabilities: (C, H, W) float of any precision and memory layout, softmax over the first axis.
        settings: weights and kernel widths.
        min_probability: a class that reaches it nowhere takes no part and becomes 0; the time grows with the number of
            classes. The highest class always takes part.

    Returns:
        (C, H, W) float32; sums to 1 over the classes. The inputs are not changed.

    Raises:
        ImportError: pydensecrf2 is not installed.
        ValueError: a shape, type or range is not as above.

    Source: the evaluation of the official code; the paper does not mention it.
    """
    image, probabilities = _checked_image(image), np.array(probabilities, dtype=np.float32, order="C")
    if probabilities.ndim != 3 or probabilities.shape[1:] != image.shape[:2]:
        raise ValueError(
            f"probabilities have shape {probabilities.shape}, but the image of {image.shape[:2]} (height, "
            f"width) needs "
            "(classes, height, width). Resize the logits to the image before the softmax."
        )
    if not np.isfinite(probabilities).all() or probabilities.min() < 0 or probabilities.max() > 1 + 1e-3:
        raise ValueError(
            f"probabilities lie in {probabilities.min()}..{probabilities.max()}, but must be finite and in [0, 1]. "
            "Pass the softmax of the logits."
        )
    try:
        from pydensecrf import densecrf  # pyright: ignore[reportAttributeAccessIssue]  (compiled)
    except ImportError as error:
        raise ImportError('The dense CRF needs pydensecrf2: pip install "lpg_hf[crf]" (compiles C++ code).') from error

    height, width = image.shape[:2]
    highest = probabilities.max(axis=(1, 2))
    kept = np.flatnonzero(highest >= min(min_probability, highest.max()))
    model = densecrf.DenseCRF2D(width, height, len(kept))
    # The floor keeps a probability of 0 at a finite energy.
    unary = -np.log(np.clip(probabilities[kept], 1e-5, 1)).reshape(len(kept), height * width)
    model.setUnaryEnergy(np.ascontiguousarray(unary))
    model.addPairwiseGaussian(sxy=settings.pos_xy, compat=settings.pos_w)
    model.addPairwiseBilateral(sxy=settings.bi_xy, srgb=settings.bi_rgb, rgbim=image, compat=settings.bi_w)
    refined = np.zeros_like(probabilities)
    refined[kept] = np.reshape(model.inference(settings.iterations), (len(kept), height, width))
    return refined


def _checked_image(image: np.ndarray) -> np.ndarray:
    """A contiguous, writable uint8 copy, which is what the C++ code takes."""
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image has shape {image.shape}, but must be (height, width, 3) RGB.")
    if image.dtype.kind == "f":
        if not (np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1):
            raise ValueError(
                f"image is {image.dtype} with values in {image.min()}..{image.max()}. Pass uint8, or float in [0, 1]."
            )
        image = np.rint(image.astype(np.float64) * 255)
    elif image.dtype != np.uint8:
        raise ValueError(f"image has dtype {image.dtype}. Pass uint8, or float in [0, 1].")
    return np.array(image, dtype=np.uint8, order="C")
