"""The generator that measures best on the true masks that some of the annotations have: `--generator auto`."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice

from pycocotools import mask as coco_mask

from lpg_hf.data.report import Report
from lpg_hf.data.sources import evenly
from lpg_hf.evaluation.compare import ComparedData, Comparison, measure
from lpg_hf.generators import NamedGenerator
from lpg_hf.generators.base import GeneratorOptions
from lpg_hf.generators.bundle import BUNDLED


_WITHOUT_TRAINING = ("densecrf", "grabcut", "box")
_NUM_IMAGES = 20  # with true masks, that are measured
_LOOKED_AT = 400  # images, evenly spaced, for those with true masks


def choose_generator(
    data: ComparedData, options: GeneratorOptions, log: Callable[[str], None], begun: str | None = None
) -> tuple[str, GeneratorOptions]:
    """The generator with the best IoU per box on at most 20 images that have true masks, or the one of masks begun.

    The bundled LPGs, or the one of `options.model`, compete with dense CRF, GrabCut and the filled box. One that
    cannot run, such as dense CRF without the extra `crf`, is named and left out.

    Args:
        data: what is read; the true masks are those of the annotations themselves.
        options: how the generators are loaded.
        log: gets the numbers, or that there are none.
        begun: `NamedGenerator.digest` of the generator of an earlier run, which goes on without being measured again.

    Returns:
        Its name, and `options` as they fit it. Without any true mask: the LPG of `options.model`, else the default.
    """
    models = BUNDLED if options.model is None else (os.fspath(options.model),)
    untrained = replace(options, model=None, segmenter=None, flip=False, revision=None)
    candidates = {model: ("lpg", replace(options, model=model)) for model in models}
    candidates |= {name: (name, untrained) for name in _WITHOUT_TRAINING}
    for candidate, (name, loaded) in candidates.items():
        if begun is not None and NamedGenerator(name, loaded).digest() == begun:
            log(f"--generator auto: going on with {candidate}, whose masks were begun")
            return name, loaded
    found: dict[str, float] = {}
    own = replace(data, truth=None)
    indices = tuple(islice(_with_masks(own), _NUM_IMAGES))
    if not indices:
        log(f"--generator auto: no object has a true mask, so nothing is measured: using {models[0]}")
        return candidates[models[0]]
    for candidate, (name, loaded) in candidates.items():
        try:
            iou = measure(Comparison(own, loaded, indices=indices), name).scores["mean_box_iou"]
        except (ImportError, OSError, ValueError, RuntimeError) as error:
            log(f"--generator auto: {candidate} cannot run: {str(error).partition(chr(10))[0]}")
            continue
        found |= {} if iou is None else {candidate: iou}
    ranked = sorted(found.items(), key=lambda item: -item[1])
    numbers = ", ".join(f"{candidate} {100 * iou:.1f}" for candidate, iou in ranked)
    log(f"--generator auto: IoU per box on {len(indices)} images with true masks: {numbers}")
    return candidates[ranked[0][0] if ranked else models[0]]


def _with_masks(data: ComparedData) -> Iterator[int]:
    """The images with an object whose mask the truth has, among `_LOOKED_AT` evenly spaced ones.

    The first of them are from all over the data, which may be sorted.
    """
    source, truth = data.open(Report())
    looked_at = evenly(range(len(source)), _LOOKED_AT)
    stride = -(-len(looked_at) // _NUM_IMAGES)
    for index in (index for start in range(stride) for index in looked_at[start::stride]):
        record = source.record(index, Report())
        if record is None or not truth.has(record.file_name):
            continue
        try:
            true = truth.of(record)
        except (OSError, ValueError):
            continue
        masks = (true.of_box(item)[0] for item in record.single_objects)
        if any(mask is not None and coco_mask.area(mask) for mask in masks):
            yield index
