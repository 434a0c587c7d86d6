"""Class-agnostic pseudo masks for box-supervised semantic segmentation.

Public names are imported on first use: `import lpg_hf` loads neither torch nor transformers. Importing
`lpg_hf.models`, or a model such as `from lpg_hf import LPGModel`, makes the Auto classes of transformers know our
model families. The pipeline task `box-mask-generation` needs `register_auto_classes()`:

    import lpg_hf
    from transformers import pipeline

    lpg_hf.register_auto_classes()
    pipe = pipeline("box-mask-generation")
"""

import importlib
from typing import Any

from lpg_hf.version import __version__ as __version__


_MODULE_OF = {
    "LPGConfig": "lpg_hf.models.configuration_lpg",
    "LPGModel": "lpg_hf.models.modeling_lpg",
    "LPGImageProcessor": "lpg_hf.models.image_processing_lpg",
    "DeepLabLargeFOVConfig": "lpg_hf.models.configuration_deeplab_largefov",
    "DeepLabLargeFOVForSemanticSegmentation": "lpg_hf.models.modeling_deeplab_largefov",
    "DeepLabV2Config": "lpg_hf.models.configuration_deeplab_v2",
    "DeepLabV2ForSemanticSegmentation": "lpg_hf.models.modeling_deeplab_v2",
    "load_vgg16_imagenet": "lpg_hf.models.imagenet",
    "load_resnet_imagenet": "lpg_hf.models.imagenet",
    "CocoBoxes": "lpg_hf.data.builders",
    "VocBoxes": "lpg_hf.data.builders",
    "YoloBoxes": "lpg_hf.data.builders",
    "load_boxes": "lpg_hf.data.load",
    "BoxToMaskPipeline": "lpg_hf.masks.pipeline",
    "bundled": "lpg_hf.generators.bundle",
    "load_generator": "lpg_hf.generators",
    "ConfusionMatrix": "lpg_hf.metrics.mean_iou",
    "MeanIoU": "lpg_hf.metrics.mean_iou",
}
__all__ = [*_MODULE_OF, "register_auto_classes"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'lpg_hf' has no attribute {name!r}; it has {', '.join(sorted(__all__))}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])


def register_auto_classes() -> None:
    """Make the Auto classes know our model families, and `transformers.pipeline` the task `box-mask-generation`.

    Imports torch and transformers. May be called any number of times.
    """
    importlib.import_module("lpg_hf.models")
    importlib.import_module("lpg_hf.masks.pipeline")
