"""Every setting of the training changes its result: none is read and then lost."""

import dataclasses
import hashlib

import pytest
from accelerate import Accelerator

from lpg_hf.data.examples import box_label_map
from training.config import settings_from_dict
from training.data import load_aux
from training.models import Normalization, build_lpg, build_segmenter, lpg_processor
from training.samples import LPGViews, SegmenterCrops
from training.steps import train_lpg, train_segmenter


@pytest.fixture(scope="module")
def base(values, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("matter")
    steps = {"lpg_steps": 2, "segmenter_steps": 2, "checkpoint_every": 100}
    return settings_from_dict(values | steps | {"run_dir": str(run_dir)}, "the test")


@pytest.fixture(scope="module")
def rows(base):
    return load_aux(Accelerator(cpu=True), base)


def digest(model):
    return hashlib.sha256(b"".join(v.numpy().tobytes() for v in model.state_dict().values())).hexdigest()


def lpg_result(settings, rows, folder):
    model = build_lpg(settings, False, None)
    samples = LPGViews(rows, lpg_processor(settings), settings, "phase", None)
    accelerator = fresh_accelerator(settings)
    train_lpg(accelerator, settings, model, samples, "phase", folder)
    return digest(model)


def segmenter_result(settings, rows, folder):
    model, processor = build_segmenter(settings, ["a"] * 6)
    labels = Normalization.of(processor)
    samples = SegmenterCrops(rows, labels, settings, "phase", lambda index, row: box_label_map(row))
    accelerator = fresh_accelerator(settings)
    train_segmenter(accelerator, settings, model, samples, "phase", folder, settings.segmenter_steps)
    return digest(model)


def fresh_accelerator(settings):
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # its precision is that of the process otherwise
    return Accelerator(cpu=True, mixed_precision=settings.mixed_precision)


@pytest.fixture(autouse=True)
def default_state():
    yield
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()


@pytest.fixture(scope="module")
def reference(base, rows, tmp_path_factory):
    """Results that the changes are compared with: of the base, and of the base with box views."""
    folder = tmp_path_factory.mktemp("reference")
    boxes = dataclasses.replace(base, view="box", view_size=32)
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
        ("seed", 1),
        ("mixed_precision", "bf16"),
        (
            "lpg_config",
            {"embedding_size": 16, "hidden_sizes": [16, 16], "depths": [1, 2], "neck_size": 8, "head_size": 8},
        ),
        ("view", "box"),
        ("lpg_steps", 3),
        ("lpg_batch_size", 2),
        ("lpg_optimizer", "sgd"),
        ("lpg_learning_rate", 1e-3),
        ("lpg_weight_decay", 0.5),
        ("lpg_crop_size", 48),
        ("lpg_scales", [1.1]),
        ("lpg_min_box_side", 20.0),
        ("lpg_pad_label", 0),
        ("lpg_image_mean", [0.5, 0.5, 0.5]),
        ("lpg_image_std", [0.2, 0.2, 0.2]),
        ("lpg_color_jitter", 0.2),
        ("box_encoding", "distance"),
        ("lpg_ema", 0.5),
        ("lpg_schedule", "cosine"),
        ("lpg_warmup", 0.9),
        ("poly_power", 0.1),
    ],
)
def test_a_setting_of_the_e_step_changes_its_weights(base, rows, reference, tmp_path, name, value):
    assert lpg_result(dataclasses.replace(base, **{name: value}), rows, tmp_path / "c") != reference["lpg"]


@pytest.mark.parametrize(
    "name, value",
    [
        ("view_size", 40),
        ("lpg_context_range", [0.3, 0.4]),
        ("lpg_box_jitter", 0.2),
        ("lpg_low_detail", 1.0),
        ("lpg_view_sizes", [32, 48]),
        ("lpg_box_noise", 1.0),
        ("lpg_degrade", 1.0),
        ("lpg_target", "object"),
    ],
)
def test_a_setting_of_the_box_view_changes_its_weights(base, rows, reference, tmp_path, name, value):
    changed = dataclasses.replace(base, **({"view": "box", "view_size": 32} | {name: value}))
    assert lpg_result(changed, rows, tmp_path / "c") != reference["box"]


def test_the_range_of_badly_fitting_boxes_changes_the_weights(base, rows, tmp_path):
    noisy = dataclasses.replace(base, view="box", view_size=32, lpg_box_noise=1.0)
    narrow = dataclasses.replace(noisy, lpg_box_noise_range=[0.0, 0.1])
    assert lpg_result(noisy, rows, tmp_path / "a") != lpg_result(narrow, rows, tmp_path / "b")


@pytest.mark.parametrize(
    "name, value",
    [
        ("seed", 1),
        ("mixed_precision", "bf16"),
        ("segmenter", "largefov"),
        (
            "segmenter_config",
            {"block": "basic", "depths": [1, 1, 1, 1], "stem_size": 16, "hidden_sizes": [16, 16, 16, 24]},
        ),
        ("segmenter_head", "backbone"),
        ("segmenter_steps", 3),
        ("segmenter_batch_size", 2),
        ("segmenter_optimizer", "adamw"),
        ("segmenter_learning_rate", 1e-2),
        ("segmenter_momentum", 0.5),
        ("segmenter_weight_decay", 0.5),
        ("segmenter_head_multiplier", 1.0),
        ("segmenter_bias_multiplier", 1.0),
        ("segmenter_batch_norm_momentum", 0.5),
        ("segmenter_loss_stride", 2),
        ("segmenter_crop_size", 49),
        ("segmenter_scales", [1.1]),
        ("poly_power", 0.1),
    ],
)
def test_a_setting_of_the_m_step_changes_its_weights(base, rows, reference, tmp_path, name, value):
    if name == "segmenter":  # the tiny fields of one family are not those of the other
        small = {"depths": [1] * 5, "hidden_sizes": [8] * 5, "fc_size": 8}
        changed = dataclasses.replace(base, segmenter=value, segmenter_config=small)
    else:
        changed = dataclasses.replace(base, **{name: value})
    assert segmenter_result(changed, rows, tmp_path / "c") != reference["segmenter"]


@pytest.mark.parametrize("name, value", [("num_workers", 1), ("log_every", 5), ("keep_checkpoints", 1)])
def test_a_neutral_setting_changes_nothing(base, rows, reference, tmp_path, name, value):
    changed = dataclasses.replace(base, **{name: value})
    assert lpg_result(changed, rows, tmp_path / "c") == reference["lpg"]


@pytest.mark.parametrize("train", [lpg_result, segmenter_result])
def test_networks_too_narrow_for_channels_last_on_a_cpu_are_refused(base, rows, tmp_path, train):
    """torch corrupts the heap there: a crash on large images, and who knows what on small ones."""
    lpg = base.lpg_config | {"embedding_size": 8, "hidden_sizes": [8, 8]}
    segmenter = base.segmenter_config | {"stem_size": 8, "hidden_sizes": [8, 8, 8, 8]}
    narrow = dataclasses.replace(base, lpg_config=lpg, segmenter_config=segmenter)
    with pytest.raises(ValueError, match="channels_last"):
        train(narrow, rows, tmp_path / "c")
    train(dataclasses.replace(narrow, channels_last=False), rows, tmp_path / "c")


def test_a_share_of_the_auxiliary_images_is_drawn_by_the_seed(base, rows):
    accelerator = Accelerator(cpu=True)
    halves = [load_aux(accelerator, dataclasses.replace(base, aux_fraction=0.5, seed=s)) for s in (0, 0, 1)]
    names = [half["file_name"][:] for half in halves]
    assert len(names[0]) == len(rows) // 2 and set(names[0]) < set(rows["file_name"][:])
    assert names[0] == names[1] != names[2]
