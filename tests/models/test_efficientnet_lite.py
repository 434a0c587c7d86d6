import torch
from torch import nn

from lpg_hf.generators.lpg import _inference_copy
from lpg_hf.models.configuration_lpg import LPGConfig
from lpg_hf.models.efficientnet_lite import EfficientNetLite0Encoder, InvertedBlock
from lpg_hf.models.modeling_lpg import LPGModel


def test_features_have_the_strides_4_8_16_and_the_stated_channels():
    with torch.device("meta"):
        features = EfficientNetLite0Encoder()(torch.empty(2, 3, 64, 96))
    assert [tuple(f.shape) for f in features] == [(2, 24, 16, 24), (2, 40, 8, 12), (2, 112, 4, 6)]


def test_every_batch_norm_is_folded_for_inference():
    model = LPGModel(LPGConfig(backbone="efficientnet_lite0", use_class_prob=False)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
    folded = _inference_copy(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    inputs = torch.randn(1, 3, 64, 64), torch.ones(1, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(folded(*inputs).logits, model(*inputs).logits, atol=1e-4, rtol=1e-4)


def test_gradients_under_autocast_are_those_of_float32_up_to_its_precision():
    """The depthwise convolutions leave autocast on CPUs; channels_last, as training has it."""
    torch.manual_seed(0)
    block = InvertedBlock(16, 24, 5, 2, 6).to(memory_format=torch.channels_last)
    x = torch.randn(4, 16, 16, 16).contiguous(memory_format=torch.channels_last)
    gradients, direction = [], torch.randn(4, 24, 8, 8)
    for enabled in (False, True):
        block.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            output = block(x)
        (output.float() * direction).sum().backward()
        assert output.dtype == (torch.bfloat16 if enabled else torch.float32)
        gradients.append(block.depthwise.conv.weight.grad.clone())
    exact, rounded = (gradient / gradient.norm() for gradient in gradients)
    assert (exact - rounded).norm() < 0.05
