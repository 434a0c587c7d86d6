"""Tiny generators and segmenters that several files of tests share."""

import pytest
import torch
from transformers import SegformerConfig, SegformerForSemanticSegmentation
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

from lpg_hf import LPGConfig, LPGImageProcessor, LPGModel


TINY_HOURGLASS = {"embedding_size": 8, "hidden_sizes": (8, 8), "depths": (1, 1), "neck_size": 8, "head_size": 8}


def tiny_lpg(use_class_prob: bool = False, **fields) -> LPGModel:
    """A generator of a few thousand parameters whose foreground is neither empty nor full."""
    torch.manual_seed(0)
    model = LPGModel(LPGConfig(use_class_prob=use_class_prob, **TINY_HOURGLASS | fields)).eval()
    with torch.no_grad():
        model.generator.head[-1].weight.mul_(20)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):  # running statistics as after training
                module.running_mean.uniform_(-0.3, 0.3)
                module.running_var.uniform_(0.5, 1.5)
    return model


@pytest.fixture(scope="session")
def lpg_folder(tmp_path_factory):
    """A saved stage without class probability that sees a window per box."""
    folder = tmp_path_factory.mktemp("stage") / "lpg"
    tiny_lpg().save_pretrained(folder)
    LPGImageProcessor(view="box", view_size=32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def segmenter_folder(tmp_path_factory):
    """A saved SegFormer of three classes and the background."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("segmenter") / "segmenter"
    labels = dict(enumerate(["background", "cat", "dog", "cow"]))
    config = SegformerConfig(
        hidden_sizes=[8, 8, 8, 8],
        num_attention_heads=[1, 1, 1, 1],
        depths=[1, 1, 1, 1],
        decoder_hidden_size=8,
        id2label=labels,
        label2id={name: i for i, name in labels.items()},
    )
    SegformerForSemanticSegmentation(config).save_pretrained(folder)
    SegformerImageProcessorPil(do_resize=False).save_pretrained(folder)
    return folder
