"""transformers' ModelTesterMixin and ConfigTester on our models; every override gives its reason."""

import copy
import unittest
from abc import abstractmethod

import pytest
import torch
from hf_tests.test_configuration_common import ConfigTester
from hf_tests.test_modeling_common import ModelTesterMixin

from lpg_hf.models.configuration_deeplab_largefov import DeepLabLargeFOVConfig
from lpg_hf.models.configuration_deeplab_v2 import DeepLabV2Config
from lpg_hf.models.configuration_lpg import LPGConfig
from lpg_hf.models.modeling_deeplab_largefov import DeepLabLargeFOVForSemanticSegmentation
from lpg_hf.models.modeling_deeplab_v2 import DeepLabV2ForSemanticSegmentation
from lpg_hf.models.modeling_lpg import LPGModel


pytestmark = pytest.mark.peer


class TinyModel:
    """What the mixin asks of a `model_tester`: a tiny config and inputs for it."""

    batch_size = 2
    height, width = 64, 96
    is_training = True
    # Sizes of text models; read by tests that we override or that skip themselves.
    seq_length = hidden_size = num_hidden_layers = 1

    def __init__(self, config_class, num_prompts=0, **settings):
        self.config_class = config_class
        self.num_prompts = num_prompts
        self.settings = settings

    def get_config(self):
        return self.config_class(**self.settings)

    def prepare_config_and_inputs_for_common(self):
        inputs = {"pixel_values": torch.randn(self.batch_size, 3, self.height, self.width)}
        for name in ("box_mask", "class_prob")[: self.num_prompts]:
            inputs[name] = torch.rand(self.batch_size, 1, self.height, self.width)
        return self.get_config(), inputs


class PeerTests(ModelTesterMixin):
    """Overrides common to all our models."""

    has_attentions = False  # convolutions only
    test_resize_embeddings = False  # no embeddings
    test_torch_exportable = False  # the export tests are not in the source distribution
    test_can_init_all_missing_weights_before_2023 = True  # else skipped: it looks our file's date up in the library
    config_common_properties: tuple[str, ...] = ()
    num_feature_maps: int

    @abstractmethod
    def make_tester(self) -> TinyModel:
        """The tiny model of the class under test."""

    def setUp(self):
        self.model_tester = self.make_tester()
        # The config tester compares values with those read back from JSON: there a tuple is a list, and num_labels is
        # not written (it is the length of id2label).
        settings = {k: list(v) if isinstance(v, tuple) else v for k, v in self.model_tester.settings.items()}
        settings.pop("num_labels", None)
        self.config_tester = ConfigTester(
            self,
            config_class=self.model_tester.config_class,
            has_text_modality=False,
            common_properties=list(self.config_common_properties),
            **settings,
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        # The mixin finds out by the names of in-library classes which labels a model takes; ours take label maps.
        inputs_dict = copy.deepcopy(inputs_dict)
        if return_labels:
            inputs_dict["labels"] = torch.zeros(2, TinyModel.height, TinyModel.width, dtype=torch.long)
        return inputs_dict

    @unittest.skip(reason="no embeddings")
    def test_model_get_set_embeddings(self):
        pass

    def test_hidden_states_output(self):
        # The mixin's form compares with (sequence length, hidden size); ours are maps (B, C, h, w), fine to coarse.
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        config_with = copy.deepcopy(config)
        config_with.output_hidden_states = True
        for model_class in self.all_model_classes:
            by_argument = model_class(config).eval()(**inputs, output_hidden_states=True).hidden_states
            by_config = model_class(config_with).eval()(**inputs).hidden_states
            for hidden_states in (by_argument, by_config):
                self.assertEqual(len(hidden_states), self.num_feature_maps)
                self.assertTrue(all(m.dim() == 4 and m.shape[0] == TinyModel.batch_size for m in hidden_states))


class LargeFOVPeerTest(PeerTests, unittest.TestCase):
    all_model_classes = (DeepLabLargeFOVForSemanticSegmentation,)
    config_common_properties = ("num_channels", "hidden_sizes", "fc_size")
    num_feature_maps = 7

    def make_tester(self):
        return TinyModel(
            DeepLabLargeFOVConfig, num_labels=3, depths=(1, 1, 1, 1, 1), hidden_sizes=(4, 4, 6, 6, 6), fc_size=8
        )


class DeepLabV2PeerTest(PeerTests, unittest.TestCase):
    all_model_classes = (DeepLabV2ForSemanticSegmentation,)
    config_common_properties = ("num_channels", "hidden_sizes", "stem_size")
    num_feature_maps = 5

    def make_tester(self, **kwargs):
        return TinyModel(
            DeepLabV2Config, num_labels=3, depths=(1, 1, 1, 1), stem_size=4, hidden_sizes=(8, 8, 12, 16), **kwargs
        )


class DeepLabV2MultiScalePeerTest(DeepLabV2PeerTest):
    def make_tester(self):
        return super().make_tester(scales=(0.5, 0.75), batch_norm="train")


class LPGHourglassPeerTest(PeerTests, unittest.TestCase):
    all_model_classes = (LPGModel,)
    config_common_properties = ("hidden_sizes", "head_size")
    num_feature_maps = 1

    def make_tester(self):
        sizes = {"embedding_size": 4, "hidden_sizes": (6, 8, 8), "depths": (2, 1, 1), "neck_size": 8, "head_size": 6}
        return TinyModel(LPGConfig, num_prompts=2, **sizes)


class LPGSqueezeNetPeerTest(PeerTests, unittest.TestCase):
    all_model_classes = (LPGModel,)
    config_common_properties = ("head_size",)
    num_feature_maps = 5

    def make_tester(self):
        sizes = {"backbone": "squeezenet", "decoder_size": 8, "context_size": 8, "stem_size": 4, "head_size": 6}
        return TinyModel(LPGConfig, num_prompts=1, use_class_prob=False, **sizes)
