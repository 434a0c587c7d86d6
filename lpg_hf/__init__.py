"""Class-agnostic pseudo masks for box-supervised semantic segmentation.

Public names are imported on first use: ``import lpg_hf`` loads neither torch nor transformers. The model families are
made known to the Auto classes at the first moment that this costs nothing extra: at once if transformers is already
imported, else right after the first import of transformers or of `lpg_hf.models`. So both orders of

    import lpg_hf
    from transformers import AutoModel

are enough for ``AutoModel.from_pretrained(<a saved LPG stage>)``. In the same way ``transformers.pipeline`` knows the task
``box-mask-generation``.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable
from types import ModuleType

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
__all__ = [*_MODULE_OF, "register_auto_classes"]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'lpg_hf' has no attribute {name!r}; it has {', '.join(sorted(__all__))}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])


def register_auto_classes() -> None:
    """Make the Auto classes of transformers know our families; imports torch and transformers.

    Importing the package does this by itself (see the module's text); a second call changes nothing.
    """
    importlib.import_module("lpg_hf.models.auto").register()


def _register_pipeline() -> None:
    importlib.import_module("lpg_hf.masks.pipeline")  # registers its task when it is imported


class _AfterImport(importlib.abc.MetaPathFinder):
    """Calls a function once, when one of some modules has been imported completely.

    Not earlier: a family that is registered while its own file or transformers is half imported fails. Not on the import
    of `transformers.models.auto`: transformers imports parts of it in the middle of its own base classes.
    """

    def __init__(self, names: tuple[str, ...], function: Callable[[], None]):
        self.names, self.function = names, function

    def find_spec(
        self, fullname: str, path: object = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self.names:
            return None
        others = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, others), None)
        if spec is not None:
            run_module = spec.loader.exec_module

            def run_and_call(module: ModuleType) -> None:
                waiting = self in sys.meta_path
                if waiting:
                    sys.meta_path.remove(self)
                run_module(module)
                if waiting:
                    self.function()

            spec.loader.exec_module = run_and_call
        return spec


for _names, _function in (
    (("transformers", "lpg_hf.models"), register_auto_classes),
    (("transformers.pipelines",), _register_pipeline),
):
    if _names[0] in sys.modules:
        _function()
    else:
        sys.meta_path.insert(0, _AfterImport(_names, _function))
