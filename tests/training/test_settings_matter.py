"""Every setting of the training changes its result: none is read and then lost."""

import hashlib

import pytest
import torch
from accelerate import Accelerator
from tiny_run import changed, settings_of

from lpg_hf.training._labels import box_labels
from lpg_hf.training._samples import LPGViews, SegmenterCrops
from lpg_hf.training.data import load_aux
from lpg_hf.training.models import Normalization, build_lpg, build_segmenter, lpg_processor
from lpg_hf.training.run import Run
from lpg_hf.training.steps import train_lpg, train_segmenter


@pytest.fixture(scope="module")
def base(values, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("matter")
    steps = {"lpg.steps": 2, "segmenter.steps": 2, "run.checkpoint_every": 100}
    return settings_of(values | steps | {"run.dir": str(run_dir)})


@pytest.fixture(scope="module")
def rows(base):
    return load_aux(Run(Accelerator(cpu=True), base))


def digest(model):
    return hashlib.sha256(b"".join(v.numpy().tobytes() for v in model.state_dict().values())).hexdigest()


def lpg_result(settings, rows, folder):
    model = build_lpg(settings, False, None)
    samples = LPGViews(rows, lpg_processor(settings), settings, "phase", None)
    accelerator = fresh_accelerator(settings)
    train_lpg(Run(accelerator, settings), model, samples, "phase", folder)
    return digest(model)


def segmenter_result(settings, rows, folder):
    model, processor = build_segmenter(settings, ["a"] * 6)
    labels = Normalization.of(processor)
    samples = SegmenterCrops(rows, labels, settings, "phase", box_labels)
    accelerator = fresh_accelerator(settings)
    train_segmenter(Run(accelerator, settings), model, samples, "phase", folder, settings.segmenter.steps)
    return digest(model)


def fresh_accelerator(settings):
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # its precision is that of the process otherwise
    return Accelerator(cpu=True, mixed_precision=settings.run.mixed_precision)


@pytest.fixture(autouse=True)
def default_state():
    yield
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()


@pytest.fixture(scope="module")
def reference(base, rows, tmp_path_factory):
    """Results that the changes are compared with: of the base, and of the base with box views."""
    folder = tmp_path_factory.mktemp("reference")
    boxes = changed(base, {"lpg.processor.view": "box", "lpg.processor.view_size": 32})
    return {
        "lpg": lpg_result(base, rows, folder / "lpg"),
        "box": lpg_result(boxes, rows, folder / "box"),
        "segmenter": segmenter_result(base, rows, folder / "segmenter"),
    }


def test_the_same_settings_give_the_same_weights(base, rows, reference, tmp_path):
    assert lpg_result(base, rows, tmp_path / "lpg") == reference["lpg"]
    assert segmenter_result(base, rows, tmp_path / "segmenter") == reference["segmenter"]


@pytest.mark.parametrize(
    "name, value",
    [
        ("run.seed", 1),
        ("run.mixed_precision", "bf16"),
        (
            "lpg.config",
            {"embedding_size": 16, "hidden_sizes": [16, 16], "depths": [1, 2], "neck_size": 8, "head_size": 8},
        ),
        ("lpg.processor.view", "box"),
        ("lpg.steps", 3),
        ("lpg.batch_size", 2),
        ("lpg.optimizer", "sgd"),
        ("lpg.learning_rate", 1e-3),
        ("lpg.weight_decay", 0.5),
        ("lpg.crop_size", 48),
        ("lpg.scales", [1.1]),
        ("lpg.min_box_side", 20.0),
        ("lpg.pad_label", 0),
        ("lpg.processor.image_mean", [0.5, 0.5, 0.5]),
        ("lpg.processor.image_std", [0.2, 0.2, 0.2]),
        ("lpg.color_jitter", 0.2),
        ("lpg.processor.box_encoding", "distance"),
        ("lpg.ema", 0.5),
        ("lpg.schedule", "cosine"),
    ],
)
def test_a_setting_of_the_e_step_changes_its_weights(base, rows, reference, tmp_path, name, value):
    assert lpg_result(changed(base, {name: value}), rows, tmp_path / "c") != reference["lpg"]


@pytest.mark.parametrize(
    "name, value",
    [
        ("lpg.processor.view_size", 40),
        ("lpg.context_range", [0.3, 0.4]),
        ("lpg.box_jitter", 0.2),
        ("lpg.low_detail", 1.0),
        ("lpg.view_sizes", [32, 48]),
        ("lpg.box_noise", 1.0),
        ("lpg.degrade", 1.0),
        ("lpg.target", "object"),
    ],
)
def test_a_setting_of_the_box_view_changes_its_weights(base, rows, reference, tmp_path, name, value):
    other = changed(base, {"lpg.processor.view": "box", "lpg.processor.view_size": 32} | {name: value})
    assert lpg_result(other, rows, tmp_path / "c") != reference["box"]


@pytest.mark.parametrize(
    "name, value",
    [
        ("run.seed", 1),
        ("run.mixed_precision", "bf16"),
        ("segmenter.model", "largefov"),
        (
            "segmenter.config",
            {"block": "basic", "depths": [1, 1, 1, 1], "stem_size": 16, "hidden_sizes": [16, 16, 16, 24]},
        ),
        ("segmenter.steps", 3),
        ("segmenter.batch_size", 2),
        ("segmenter.optimizer", "adamw"),
        ("segmenter.learning_rate", 1e-2),
        ("segmenter.weight_decay", 0.5),
        ("segmenter.head_multiplier", 1.0),
        ("segmenter.bias_multiplier", 1.0),
        ("segmenter.batch_norm_momentum", 0.5),
        ("segmenter.loss_stride", 2),
        ("segmenter.crop_size", 49),
        ("segmenter.scales", [1.1]),
    ],
)
def test_a_setting_of_the_m_step_changes_its_weights(base, rows, reference, tmp_path, name, value):
    if name == "segmenter.model":  # the tiny fields of one family are not those of the other
        small = {"depths": [1] * 5, "hidden_sizes": [8] * 5, "fc_size": 8}
        other = changed(base, {"segmenter.model": value, "segmenter.config": small})
    else:
        other = changed(base, {name: value})
    assert segmenter_result(other, rows, tmp_path / "c") != reference["segmenter"]


@pytest.mark.parametrize("name, value", [("run.num_workers", 1), ("run.log_every", 5)])
def test_a_neutral_setting_changes_nothing(base, rows, reference, tmp_path, name, value):
    other = changed(base, {name: value})
    assert lpg_result(other, rows, tmp_path / "c") == reference["lpg"]


@pytest.mark.parametrize("train", [lpg_result, segmenter_result])
def test_networks_too_narrow_for_channels_last_on_a_cpu_train_without_it(base, rows, tmp_path, train):
    """torch corrupts the heap there: a crash on large images, and who knows what on small ones.

    A convolution computes in channels_last if its input or its weight is in it.
    """
    seen = []

    def in_channels_last(tensor):
        return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()

    def watch(module, inputs):
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (1, 1) and max(module.stride) > 1:
            seen.append((module.in_channels, in_channels_last(inputs[0]) or in_channels_last(module.weight)))

    lpg = base.lpg.config | {"embedding_size": 8, "hidden_sizes": [8, 8]}
    segmenter = base.segmenter.config | {"stem_size": 8, "hidden_sizes": [8, 8, 8, 8]}
    narrow = changed(base, {"lpg.config": lpg, "segmenter.config": segmenter})
    hook = torch.nn.modules.module.register_module_forward_pre_hook(watch)
    try:
        train(narrow, rows, tmp_path / "narrow")
        assert set(seen) == {(8, False)}
        seen.clear()
        train(base, rows, tmp_path / "wide")
        assert set(seen) == {(16, True)}
    finally:
        hook.remove()


def test_a_share_of_the_auxiliary_images_is_drawn_by_the_seed(base, rows):
    accelerator = Accelerator(cpu=True)
    halves = [load_aux(Run(accelerator, changed(base, {"run.aux_fraction": 0.5, "run.seed": s}))) for s in (0, 0, 1)]
    names = [half["file_name"][:] for half in halves]
    assert len(names[0]) == len(rows) // 2 and set(names[0]) < set(rows["file_name"][:])
    assert names[0] == names[1] != names[2]
