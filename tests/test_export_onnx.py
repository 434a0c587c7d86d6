"""ONNX files: any batch and size in one graph, logits equal to PyTorch's, written checked or not at all."""

import sys

import pytest
import torch
from transformers import (
    AutoModelForSemanticSegmentation,
    BertConfig,
    MobileNetV2Config,
    ResNetConfig,
    SegformerConfig,
    UperNetConfig,
)

import lpg_hf.export_onnx as module
from lpg_hf.cli import main
from lpg_hf.export_onnx import export_onnx
from lpg_hf.models.configuration_deeplab_largefov import DeepLabLargeFOVConfig
from lpg_hf.models.configuration_deeplab_v2 import DeepLabV2Config
from lpg_hf.models.configuration_lpg import LPGConfig
from lpg_hf.models.modeling_deeplab_largefov import DeepLabLargeFOVForSemanticSegmentation
from lpg_hf.models.modeling_deeplab_v2 import DeepLabV2ForSemanticSegmentation
from lpg_hf.models.modeling_lpg import LPGModel


pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")

SIZES = [(1, 256, 256), (1, 333, 217), (3, 95, 130), (2, 7, 5), (1, 40, 500)]


def randomised(model):
    """Statistics that make every normalisation count, logits that differ from pixel to pixel."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if "running" in name or (tensor.dim() == 1 and name.endswith("weight")):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif name.endswith("bias"):
            tensor.normal_(std=0.2, generator=generator)
        elif tensor.is_floating_point() and tensor.dim() == 4:
            tensor.normal_(std=(1.5 / tensor[0].numel()) ** 0.5, generator=generator)
    return model.eval()


def tiny_lpg(backbone="hourglass", use_class_prob=True):
    sizes = {
        "embedding_size": 4,
        "hidden_sizes": (6, 6, 8, 8, 8, 10),
        "depths": (1,) * 6,
        "neck_size": 8,
        "head_size": 6,
    }
    return randomised(LPGModel(LPGConfig(backbone=backbone, use_class_prob=use_class_prob, **sizes)))


def tiny_largefov():
    sizes = {"depths": (1, 2, 1, 1, 1), "hidden_sizes": (4, 6, 8, 8, 8), "fc_size": 12}
    return randomised(DeepLabLargeFOVForSemanticSegmentation(DeepLabLargeFOVConfig(num_labels=5, **sizes)))


def tiny_v2(**kwargs):
    sizes = {"depths": (1, 1, 2, 1), "stem_size": 4, "hidden_sizes": (8, 8, 16, 16)}
    return randomised(DeepLabV2ForSemanticSegmentation(DeepLabV2Config(num_labels=5, **sizes, **kwargs)))


def tiny_segformer():
    sizes = {"depths": [1] * 4, "hidden_sizes": [8, 8, 16, 16], "decoder_hidden_size": 8}
    config = SegformerConfig(num_labels=5, num_attention_heads=[1, 1, 2, 2], **sizes)
    return randomised(AutoModelForSemanticSegmentation.from_config(config))


MODELS = {
    "hourglass": tiny_lpg,
    "hourglass without class_prob": lambda: tiny_lpg(use_class_prob=False),
    "resnet18": lambda: tiny_lpg("resnet18"),
    "squeezenet": lambda: tiny_lpg("squeezenet"),
    "largefov": tiny_largefov,
    "deeplab-v2": tiny_v2,
    "deeplab-v2 as officially": lambda: tiny_v2(stem_pool=False, output_stride=4, scales=(0.5, 0.75)),
    "segformer": tiny_segformer,
}


def run(path, inputs):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session, torch.from_numpy(session.run(None, {name: value.numpy() for name, value in inputs.items()})[0])


@pytest.mark.parametrize("name", MODELS)
def test_one_file_equals_pytorch_at_every_size(name, tmp_path):
    model = MODELS[name]()
    model.save_pretrained(tmp_path / "model")
    differences = export_onnx(tmp_path / "model", tmp_path / "m.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "model"]
    assert set(differences) == set(module.CHECKED) and max(differences.values()) <= 1e-4

    inputs = ["pixel_values"]
    if isinstance(model, LPGModel):
        inputs += ["box_mask", "class_prob"] if model.config.use_class_prob else ["box_mask"]
    for batch, height, width in SIZES:
        if name == "segformer" and height < 32:  # its deepest map would be empty
            continue
        tensors = {"pixel_values": torch.randn(batch, 3, height, width)}
        tensors |= {key: torch.rand(batch, 1, height, width) for key in inputs[1:]}
        session, logits = run(tmp_path / "m.onnx", tensors)
        with torch.no_grad():
            expected = model(**tensors).logits
        assert expected.numel() < 40 or expected.std() > 0.01
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    assert [entry.name for entry in session.get_inputs()] == inputs
    assert [entry.name for entry in session.get_outputs()] == ["logits"]
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]


@pytest.mark.parametrize("opset", [13, 20])
def test_other_opsets(opset, tmp_path):
    for number, model in enumerate((tiny_lpg(), tiny_v2(scales=(0.5,)))):
        assert export_onnx(model, tmp_path / f"{number}.onnx", opset=opset)


def test_the_model_itself_is_left_as_it_was(tmp_path):
    model = tiny_lpg().to(torch.bfloat16).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export_onnx(model, tmp_path / "m.onnx", check=False)
    assert model.training and model.dtype == torch.bfloat16
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_without_check_nothing_is_run(tmp_path, monkeypatch):
    monkeypatch.setattr(onnxruntime, "InferenceSession", None)
    assert export_onnx(tiny_lpg(), tmp_path / "m.onnx", check=False) == {}
    assert (tmp_path / "m.onnx").is_file()


def test_a_graph_that_differs_is_not_written(tmp_path, monkeypatch):
    model = tiny_lpg()
    monkeypatch.setattr(module, "TOLERANCE", -1.0)
    with pytest.raises(ValueError, match=r"LPGModel as ONNX, batch 1 of 256x256 pixels: logits differ .*--size"):
        export_onnx(model, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_a_model_with_sizes_of_its_own_needs_a_fixed_one(tmp_path):
    """MobileNetV2 computes its padding outside the graph."""
    config = MobileNetV2Config(num_labels=5, depth_multiplier=0.35, image_size=64)
    model = randomised(AutoModelForSemanticSegmentation.from_config(config))
    with pytest.raises(ValueError, match="pixels: .*PyTorch.*Export it for one size"):
        export_onnx(model, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
    assert export_onnx(model, tmp_path / "m.onnx", size=(97, 65)).keys() == {(1, 97, 65), (3, 97, 65)}
    pixels = torch.randn(2, 3, 97, 65)
    with torch.no_grad():
        torch.testing.assert_close(
            run(tmp_path / "m.onnx", {"pixel_values": pixels})[1], model(pixels).logits, rtol=0, atol=1e-4
        )


def test_a_model_that_cannot_be_traced_is_one_line(tmp_path, capfd):
    """UPerNet pools to sizes that do not divide the image's; the exporter would print its whole graph."""
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, out_indices=[1, 2, 3, 4])
    config = UperNetConfig(num_labels=5, backbone_config=backbone, hidden_size=8, auxiliary_in_channels=8)
    model = AutoModelForSemanticSegmentation.from_config(config)
    with pytest.raises(
        ValueError, match="UperNetForSemanticSegmentation cannot be exported .*adaptive_avg_pool2d"
    ) as error:
        export_onnx(model, tmp_path / "m.onnx")
    assert "\n" not in str(error.value) and capfd.readouterr().out == ""
    assert not list(tmp_path.iterdir())


def test_errors_say_what_and_where(tmp_path):
    with pytest.raises(ValueError, match="m.pt has the type '.pt'"):
        export_onnx(tiny_lpg(), tmp_path / "m.pt")
    with pytest.raises(ValueError, match="opset=9 is not supported; use 13 to 20"):
        export_onnx(tiny_lpg(), tmp_path / "m.onnx", opset=9)
    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="holds a 'bert' model: neither an LPG nor a semantic segmenter"):
        export_onnx(tmp_path / "bert", tmp_path / "m.onnx")


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_a_missing_extra_is_one_line(missing, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf"needs {missing}, which is not installed: pip install 'lpg_hf\[onnx\]'"):
        export_onnx(tiny_lpg(), tmp_path / "m.onnx")


@pytest.mark.slow
def test_the_published_hourglass_and_resnet101(tmp_path):
    for backbone in ("hourglass", "resnet101"):
        model = randomised(LPGModel(LPGConfig(backbone=backbone)))
        assert max(export_onnx(model, tmp_path / f"{backbone}.onnx").values()) <= 1e-4


def test_the_command_writes_and_reports(tmp_path, capsys, monkeypatch):
    tiny_lpg().save_pretrained(tmp_path / "model")
    arguments = ["lpg-hf", "export-onnx", str(tmp_path / "model"), "--out", str(tmp_path / "m.onnx")]
    for more, lines in (([], 4), (["--size", "64", "80", "--opset", "16"], 3), (["--no-check"], 1)):
        monkeypatch.setattr(sys, "argv", arguments + more)
        with pytest.raises(SystemExit) as status:
            main()
        assert not status.value.code
        printed = capsys.readouterr().out.splitlines()
        assert len(printed) == lines and printed[-1] == f"written to {tmp_path / 'm.onnx'}"
        assert all("equal to PyTorch within" in line for line in printed[:-1])
    monkeypatch.setattr(
        sys, "argv", ["lpg-hf", "export-onnx", str(tmp_path / "absent"), "--out", str(tmp_path / "x.onnx")]
    )
    with pytest.raises(SystemExit) as status:
        main()
    error = capsys.readouterr().err
    assert status.value.code == 2 and error.count("\n") == 1 and f"{tmp_path / 'absent'} is neither a folder" in error
