"""Registration of the model families with the Auto classes of transformers."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForSemanticSegmentation,
)
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

from .configuration_deeplab_largefov import DeepLabLargeFOVConfig
from .configuration_deeplab_v2 import DeepLabV2Config
from .configuration_lpg import LPGConfig
from .image_processing_lpg import LPGImageProcessor
from .modeling_deeplab_largefov import DeepLabLargeFOVForSemanticSegmentation
from .modeling_deeplab_v2 import DeepLabV2ForSemanticSegmentation
from .modeling_lpg import LPGModel


def register() -> None:
    """Make `AutoConfig`, `AutoModel`, `AutoModelForSemanticSegmentation` and `AutoImageProcessor` know our families.

    May be called any number of times. The LPG is an `AutoModel`; the DeepLabs are
    `AutoModelForSemanticSegmentation` and prepare their images as SegFormer does (RGB, ImageNet mean and std).
    """
    for config in (LPGConfig, DeepLabLargeFOVConfig, DeepLabV2Config):
        AutoConfig.register(config.model_type, config, exist_ok=True)

    AutoModel.register(LPGConfig, LPGModel, exist_ok=True)
    AutoImageProcessor.register(LPGConfig, image_processor_classes={"pil": LPGImageProcessor}, exist_ok=True)

    for config, model in (
        (DeepLabLargeFOVConfig, DeepLabLargeFOVForSemanticSegmentation),
        (DeepLabV2Config, DeepLabV2ForSemanticSegmentation),
    ):
        AutoModelForSemanticSegmentation.register(config, model, exist_ok=True)
        AutoImageProcessor.register(config, image_processor_classes={"pil": SegformerImageProcessorPil}, exist_ok=True)
