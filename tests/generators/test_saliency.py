"""A salient-object network in ONNX: crops, batches, the fallback to the box, and models that do not fit."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lpg_hf import load_generator
from lpg_hf.boxes import box_slices
from lpg_hf.data.options import SOURCE_OPTIONS
from lpg_hf.evaluation.compare import ComparedData, Comparison, compare
from lpg_hf.generators._saliency import SaliencyGenerator
from lpg_hf.generators.base import BoxedImage, GeneratorOptions


onnxruntime = pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")

DATA, WEIGHTS = (Path(os.environ.get(name, "absent")) for name in ("LPG_HF_DATA", "LPG_HF_WEIGHTS"))
U2NETP = WEIGHTS / "u2netp.onnx"
RED, GREEN = (220, 40, 30), (30, 140, 60)


def save_red_detector(path: Path, batch="batch", height=24, width=32, channels=3, bias=0.0) -> Path:
    """A model that has its first output where red is above green, and a second output that is the opposite."""
    onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
    from onnx import TensorProto, helper, numpy_helper

    weights = np.zeros((1, channels, 1, 1), np.float32)
    weights[0, :2, 0, 0] = 4, -4
    tensors = {"weights": weights, "bias": np.array([bias], np.float32)}
    nodes = [
        helper.make_node("Conv", ["image", "weights", "bias"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["salient"]),
        helper.make_node("Neg", ["salient"], ["opposite"]),
    ]
    shape = [batch, channels, height, width]
    graph = helper.make_graph(
        nodes,
        "red",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 1, *shape[2:]])
            for name in ("salient", "opposite")
        ],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)]), path)
    return path


@pytest.fixture
def model(tmp_path) -> Path:
    return save_red_detector(tmp_path / "red.onnx")


def scene(seed: int = 0) -> tuple[BoxedImage, np.ndarray]:
    """Two red discs on noisy green with loose boxes: (image, their pixels)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:90, :140]
    truth = ((y - 40) ** 2 + (x - 40) ** 2 < 22**2) | ((y - 60) ** 2 + (x - 105) ** 2 < 15**2)
    pixels = np.where(truth[..., None], RED, GREEN) + rng.normal(0, 5, (90, 140, 3))
    boxes = np.array([(14, 14, 66, 66), (86, 42, 124, 79)], np.float32)
    return BoxedImage(pixels.clip(0, 255).astype(np.uint8), boxes, np.array([1, 2])), truth


def foregrounds(generator: SaliencyGenerator, *images: BoxedImage) -> list[np.ndarray]:
    return [patch.foreground for _, patch in generator.patches(images, "instance")]


@pytest.mark.parametrize("context", [0.0, 0.3])
def test_the_first_output_comes_back_at_the_place_of_each_box(model, context):
    image, truth = scene()
    found = list(SaliencyGenerator(model, context=context).patches([image], "class"))
    assert [(position, patch.label, patch.boxes) for position, patch in found] == [(0, 1, (0,)), (0, 2, (1,))]
    for box, (_, patch) in zip(image.boxes, found):
        assert (patch.rows, patch.columns) == box_slices(box, *truth.shape)
        assert patch.foreground.dtype == np.float32 and 0 <= patch.foreground.min() and patch.foreground.max() <= 1
        predicted, true = patch.foreground > 0.5, truth[patch.rows, patch.columns]
        assert (predicted & true).sum() / (predicted | true).sum() > 0.85 > true.mean()


def test_pixels_are_divided_by_the_largest_and_normalised(model, monkeypatch):
    generator = SaliencyGenerator(model)
    seen = []
    run = generator.session.run
    monkeypatch.setattr(
        generator,
        "session",
        Recorder(generator.session, lambda names, inputs: seen.append(inputs) or run(names, inputs)),
    )
    image = BoxedImage(
        np.full((10, 20, 3), (50, 100, 200), np.uint8), np.array([(0, 0, 20, 10)], np.float32), np.ones(1)
    )
    foregrounds(generator, image)
    (pixels,) = seen[0].values()
    assert pixels.shape == (1, 3, 24, 32) and pixels.dtype == np.float32
    expected = (np.array([0.25, 0.5, 1]) - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    assert np.allclose(pixels[0].reshape(3, -1).T, expected, atol=1e-6)


class Recorder:
    """A session whose passes go through a function."""

    def __init__(self, session, run) -> None:
        self.run, self.get_inputs, self.get_outputs = run, session.get_inputs, session.get_outputs


def test_batches_are_equal_to_one_by_one(tmp_path, model):
    images = [scene(seed)[0] for seed in range(3)]
    empty = BoxedImage(images[0].image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    alone = foregrounds(SaliencyGenerator(model, batch_size=1), *images)
    for generator in (
        SaliencyGenerator(model, batch_size=4),  # the last batch is short
        SaliencyGenerator(save_red_detector(tmp_path / "one.onnx", batch=1), batch_size=4),
    ):
        batched = foregrounds(generator, images[0], empty, *images[1:])
        assert len(batched) == 6 and all(np.allclose(a, b, atol=1e-5) for a, b in zip(alone, batched))
    assert generator.batch_size == 1


def test_a_weak_map_counts_as_much_as_a_strong_one(tmp_path, model):
    image, _ = scene()
    weak = SaliencyGenerator(save_red_detector(tmp_path / "weak.onnx", bias=-12.0))
    assert all(
        np.mean((a > 0.5) == (b > 0.5)) > 0.9
        for a, b in zip(foregrounds(weak, image), foregrounds(SaliencyGenerator(model), image))
    )


def test_where_next_to_nothing_stands_out_the_box_is_the_mask(model):
    image, truth = scene()
    for pixels in (np.full_like(image.image, 90), np.zeros_like(image.image)):
        flat = BoxedImage(pixels, image.boxes, image.labels)
        assert all((found == 1).all() for found in foregrounds(SaliencyGenerator(model), flat))
    loose = BoxedImage(image.image, np.array([(0, 0, 80, 90)], np.float32), np.array([1]))
    strict, lenient = (foregrounds(SaliencyGenerator(model, min_fill=fill), loose)[0] for fill in (0.4, 0))
    assert (strict == 1).all() and (lenient > 0.5).mean() == pytest.approx(truth[:, :80].mean(), rel=0.1)


@pytest.mark.parametrize("box", [(3, 4, 4, 5), (139.5, 89.5, 140, 90), (0, 7, 140, 8), (0, 0, 140, 90)])
def test_odd_boxes_give_patches_of_their_size(model, box):
    image = BoxedImage(scene()[0].image, np.array([box], np.float32), np.array([1]))
    (found,) = foregrounds(SaliencyGenerator(model, context=0.1), image)
    rows, columns = box_slices(box, 90, 140)
    assert found.shape == (rows.stop - rows.start, columns.stop - columns.start) and np.isfinite(found).all()


def test_a_free_size_is_that_of_u2net(tmp_path):
    generator = SaliencyGenerator(save_red_detector(tmp_path / "free.onnx", height="height", width=64))
    assert generator.size == (320, 64)


def test_threads_get_the_same_masks(model):
    generator = SaliencyGenerator(model, batch_size=1)
    images = [scene(seed)[0] for seed in range(6)]
    expected = [foregrounds(generator, image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        for found, masks in zip(pool.map(lambda image: foregrounds(generator, image), images), expected):
            assert all(np.array_equal(a, b) for a, b in zip(found, masks))


def test_other_weights_and_settings_are_told_apart(tmp_path, model):
    settings = SaliencyGenerator(model).settings()
    assert settings == SaliencyGenerator(str(model)).settings()
    assert settings != SaliencyGenerator(save_red_detector(tmp_path / "other.onnx", bias=1.0)).settings()
    assert settings != SaliencyGenerator(model, context=0.2).settings()


@pytest.mark.parametrize(
    "has_torch, variable, expected", [(True, "7", 1), (False, "3", 3), (False, "2,4", 2), (False, "", 0)]
)
def test_cpu_threads_are_those_of_the_other_generators(model, monkeypatch, has_torch, variable, expected):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    if not has_torch:
        monkeypatch.delitem(sys.modules, "torch")
    options = SaliencyGenerator(model).session.get_session_options()
    torch.set_num_threads(before)
    assert options.intra_op_num_threads == expected


def test_it_is_a_generator_by_its_name(model):
    image, _ = scene()
    generator = load_generator(f"saliency:{model}", batch_size=3)
    assert generator.batch_size == 3
    assert all(
        np.array_equal(a, b)
        for a, b in zip(foregrounds(generator, image), foregrounds(SaliencyGenerator(model), image))
    )
    for name in ("saliency", "saliency:"):
        with pytest.raises(ValueError, match="is unknown. Choose one of .*saliency:FILE.onnx"):
            load_generator(name)
    with pytest.raises(ValueError, match="model=x is for the generator lpg"):
        load_generator(f"saliency:{model}", model="x")


def test_files_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.onnx"):
        SaliencyGenerator(tmp_path / "absent.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ValueError, match="text.onnx is not an ONNX model"):
        SaliencyGenerator(tmp_path / "text.onnx")
    data = save_red_detector(tmp_path / "name.onnx").read_bytes().replace(b"image", b"\x80mage")
    (tmp_path / "name.onnx").write_bytes(data)
    with pytest.raises(ValueError, match="name.onnx is not an ONNX model that can run here: 'utf-8' codec"):
        SaliencyGenerator(tmp_path / "name.onnx")
    for name, wrong in (("grey", {"channels": 2}), ("four", {"batch": 4})):
        file = save_red_detector(tmp_path / f"{name}.onnx", **wrong)
        with pytest.raises(
            ValueError, match=rf"{name}.onnx takes image tensor.* \[.*\], but a salient-object network"
        ):
            SaliencyGenerator(file)


@pytest.mark.parametrize("change", [{"batch_size": 0}, {"context": -0.1}, {"min_fill": 1}])
def test_bad_arguments_are_named(model, change):
    with pytest.raises(ValueError, match=next(iter(change))):
        SaliencyGenerator(model, **change)


def test_without_onnxruntime_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"onnxruntime.*pip install 'lpg_hf\[onnx\]'"):
        SaliencyGenerator(tmp_path / "any.onnx")


@pytest.mark.data
@pytest.mark.skipif(
    not U2NETP.is_file() or not DATA.is_dir(), reason="needs LPG_HF_WEIGHTS with u2netp.onnx, and LPG_HF_DATA"
)
def test_u2netp_is_better_than_the_box_on_photographs():
    options = replace(SOURCE_OPTIONS, split="val_mix")
    data = ComparedData(str(DATA / "voc"), None, str(DATA / "voc" / "SegmentationClass"), options=options)
    (box, found), _ = compare(Comparison(data, GeneratorOptions(device="cpu")), ["box", f"saliency:{U2NETP}"], limit=8)
    assert found.error is None and found.num_boxes == box.num_boxes
    assert found.scores["foreground_iou"] > box.scores["foreground_iou"] + 0.05


def test_models_of_other_shapes_and_types_are_refused_in_one_line(tmp_path):
    onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
    from onnx import TensorProto, helper

    for number, (operator, kind, size) in enumerate(
        [
            ("Flatten", TensorProto.FLOAT, 8),
            ("Shape", TensorProto.FLOAT, 8),
            ("Identity", TensorProto.DOUBLE, 8),
            ("Identity", TensorProto.FLOAT, 10**6),
        ]
    ):
        path = tmp_path / f"{number}.onnx"
        taken = [helper.make_tensor_value_info("image", kind, [1, 3, size, size])]
        given = [helper.make_tensor_value_info("out", TensorProto.INT64 if operator == "Shape" else kind, None)]
        graph = helper.make_graph([helper.make_node(operator, ["image"], ["out"])], "odd", taken, given)
        onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)]), path)
        image = BoxedImage(np.zeros((20, 30, 3), np.uint8), np.array([[2.0, 2, 9, 9]]), np.array([1]))
        with pytest.raises(ValueError, match=f"^{path} (takes|returns|cannot run)") as error:
            list(SaliencyGenerator(path).patches([image], "instance"))
        assert "\n" not in str(error.value)


def test_sides_and_batches_are_bounded(tmp_path):
    for side, batch_size in ((320, 81), (2048, 2)):
        file = save_red_detector(tmp_path / f"{side}.onnx", height=side, width=side)
        assert SaliencyGenerator(file, batch_size=16).batch_size == min(batch_size, 16)
        assert SaliencyGenerator(file, batch_size=1000).batch_size == batch_size
    with pytest.raises(ValueError, match="large.onnx takes .* 8191, 64.*sides up to 2048"):
        SaliencyGenerator(save_red_detector(tmp_path / "large.onnx", height=8191, width=64))


def test_a_model_that_loops_is_refused(tmp_path):
    onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
    from onnx import TensorProto, helper

    count = helper.make_tensor_value_info("count", TensorProto.INT64, [])
    states = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("before", "after")]
    body = helper.make_graph(
        [helper.make_node("Identity", ["before"], ["after"])], "body", [count, states[0]], states[1:]
    )
    loop = helper.make_node("Loop", ["", "yes"], [], body=body)
    branch = helper.make_graph([loop], "branch", [], [])
    model = onnx.load(save_red_detector(tmp_path / "red.onnx"))
    for node in (loop, helper.make_node("If", ["yes"], [], then_branch=branch, else_branch=branch)):
        looping = onnx.ModelProto()
        looping.CopyFrom(model)
        looping.graph.node.append(node)
        onnx.save(looping, tmp_path / "loop.onnx")
        with pytest.raises(ValueError, match="loop.onnx has a node Loop, which may run for ever"):
            SaliencyGenerator(tmp_path / "loop.onnx")
