import json
import math
import os
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from tiny_run import LARGEFOV, changed, launch, run_script, settings_of, weights
from torch import nn

from lpg_hf.training import _depthwise, steps
from lpg_hf.training._checkpoint import Checkpoints, average_weights
from lpg_hf.training._depthwise import fast_depthwise
from lpg_hf.training._labels import box_labels
from lpg_hf.training._own_data import start_own_run
from lpg_hf.training._samples import LPGViews, SegmenterCrops
from lpg_hf.training.data import load_aux, load_target
from lpg_hf.training.models import Normalization, build_lpg, build_segmenter, lpg_processor
from lpg_hf.training.run import Run, _usable_precision, start_run
from lpg_hf.training.steps import check_batch, train_lpg, train_segmenter


def trained_segmenter(accelerator, settings, folder, num_steps=3, samples=None):
    """Weights after a few steps on filled boxes, and the losses."""
    rows = load_target(Run(accelerator, settings), masks=False)
    model, processor = build_segmenter(settings, ["a", "b", "c", "d"])
    samples = samples or SegmenterCrops(rows, Normalization.of(processor), settings, "phase", box_labels)
    folder.mkdir(parents=True, exist_ok=True)
    train_segmenter(Run(accelerator, settings), model, samples, "phase", folder / "checkpoints", num_steps)
    return model.state_dict()


def log(settings):
    return [json.loads(line) for line in open(f"{settings.run.dir}/log.jsonl", encoding="utf-8")]


@pytest.fixture
def plain(values, tmp_path):
    """Settings without batch statistics and dropout."""
    (tmp_path / "run").mkdir()
    return settings_of(values | LARGEFOV | {"run.dir": str(tmp_path / "run")})


def test_the_log_has_a_line_per_interval_with_loss_rate_and_learning_rate(accelerator, plain, tmp_path):
    trained_segmenter(accelerator, plain, tmp_path / "a")
    lines = log(plain)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(math.isfinite(line["loss"]) and line["samples_per_second"] > 0 for line in lines)
    assert [line["lr"] for line in lines] == pytest.approx([0.01 * (1 - s / 3) ** 0.9 for s in range(3)])


def test_a_resumed_phase_logs_no_step_twice(accelerator, plain, tmp_path):
    trained_segmenter(accelerator, plain, tmp_path / "a")
    with open(f"{plain.run.dir}/log.jsonl", "a", encoding="utf-8") as file:
        file.write('{"phase": "other", "step": 9}\n{"phase": "pha')  # a write that was killed
    (tmp_path / "a" / "checkpoints" / "step_3.pt").unlink()
    trained_segmenter(accelerator, plain, tmp_path / "a")
    assert [(line["phase"], line["step"]) for line in log(plain)] == [
        ("phase", 1),
        ("phase", 2),
        ("other", 9),
        ("phase", 3),
    ]


def test_accumulated_micro_batches_equal_one_batch(accelerator, plain, tmp_path):
    whole = trained_segmenter(accelerator, plain, tmp_path / "a")
    parts = changed(plain, {"segmenter.micro_batch_size": 1})
    accumulated = trained_segmenter(accelerator, parts, tmp_path / "b")
    for name, value in whole.items():
        torch.testing.assert_close(accumulated[name], value, rtol=1e-4, atol=1e-6)


def test_uneven_micro_batches_equal_one_batch(accelerator, plain, tmp_path):
    """5 = 2 + 2 + 1; the loss of the log too."""
    results = []
    for size in (None, 2):
        settings = changed(plain, {"segmenter.batch_size": 5, "segmenter.micro_batch_size": size})
        Path(settings.run.dir, "log.jsonl").unlink(missing_ok=True)
        state = trained_segmenter(accelerator, settings, tmp_path / str(size))
        results.append((state, [line["loss"] for line in log(settings)]))
    (whole, losses), (parts, losses_of_parts) = results
    assert losses_of_parts == pytest.approx(losses, rel=1e-5)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-6)


def test_weights_that_are_not_finite_are_never_saved(accelerator, plain, tmp_path):
    """A bias that takes no part in the loss: the loss stays finite."""
    rows = load_target(Run(accelerator, plain), masks=False)
    model, processor = build_segmenter(plain, ["a", "b", "c", "d"])
    model.register_buffer("statistics", torch.tensor([float("inf")]))
    samples = SegmenterCrops(rows, Normalization.of(processor), plain, "phase", box_labels)
    with pytest.raises(FloatingPointError, match="phase, step 2: 1 weights are not finite, such as statistics"):
        train_segmenter(Run(accelerator, plain), model, samples, "phase", tmp_path / "checkpoints", 3)
    assert not (tmp_path / "checkpoints").exists()


def test_norms_that_would_wait_for_an_absent_micro_batch_are_refused(settings):
    """Three processes with 4 images: 2 micro-batches of one of them, 1 of the others."""
    run = Run(SimpleNamespace(num_processes=3), changed(settings, {"lpg.micro_batch_size": 1}))
    model = build_lpg(run.settings, False, None)
    with pytest.raises(ValueError, match="lpg.micro_batch_size=1 gives 2 micro-batches to a process and 1 to another"):
        check_batch(run, "lpg", model)
    alone = Run(run.accelerator, changed(run.settings, {"run.sync_batch_norm": False}))
    assert check_batch(alone, "lpg", model) == [[1, 1], [1], [1]]


def test_an_interrupted_training_ends_with_the_same_weights(accelerator, settings, tmp_path):
    """Batch norm and dropout included; stopped between two checkpoints."""
    (tmp_path / "run").mkdir()
    settings = changed(
        settings,
        {
            "segmenter.model": "largefov",
            "segmenter.config": LARGEFOV["segmenter.config"] | {"dropout_prob": 0.5},
            "run.checkpoint_every": 2,
        },
    )
    whole = trained_segmenter(accelerator, settings, tmp_path / "a", num_steps=6)
    rows = load_target(Run(accelerator, settings), masks=False)
    _, processor = build_segmenter(settings, ["a", "b", "c", "d"])

    class Stopping(SegmenterCrops):
        def sample(self, entry, rng, position):
            self.count = getattr(self, "count", 0) + 1
            if self.count > 4 * settings.segmenter.batch_size + 1:
                raise KeyboardInterrupt
            return super().sample(entry, rng, position)

    stopping = Stopping(rows, Normalization.of(processor), settings, "phase", box_labels)
    with pytest.raises(KeyboardInterrupt):
        trained_segmenter(accelerator, settings, tmp_path / "b", num_steps=6, samples=stopping)
    assert (tmp_path / "b" / "checkpoints" / "step_4.pt").is_file()
    resumed = trained_segmenter(accelerator, settings, tmp_path / "b", num_steps=6)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_a_phase_begins_with_the_loss_scale_of_a_new_process(accelerator, plain, tmp_path):
    accelerator.scaler = torch.amp.GradScaler("cpu")  # as mixed_precision=fp16 makes one
    accelerator.scaler.load_state_dict(accelerator.scaler.state_dict() | {"scale": 2.0})  # of the phase before
    trained_segmenter(accelerator, plain, tmp_path / "a")
    scaler = torch.load(tmp_path / "a" / "checkpoints" / "step_3.pt", weights_only=True)["scaler"]
    assert scaler["scale"] == 65536 and scaler["_growth_tracker"] == 3


def test_a_step_that_the_loss_scaler_skips_does_not_advance_the_schedule(accelerator, plain, tmp_path, monkeypatch):
    """Step 2 of 4 finds an infinite gradient, as fp16 does now and then."""
    accelerator.scaler = torch.amp.GradScaler("cpu")
    unscale, count = torch.amp.GradScaler.unscale_, []

    def overflowing(self, optimizer):
        count.append(optimizer)
        if len(count) == 2:
            optimizer.param_groups[0]["params"][0].grad[0] = float("inf")
        unscale(self, optimizer)

    step = torch.amp.GradScaler.step

    def unscaled_step(self, optimizer, *arguments, **options):
        self.unscale_(optimizer)
        return step(self, optimizer, *arguments, **options)

    monkeypatch.setattr(torch.amp.GradScaler, "unscale_", overflowing)
    monkeypatch.setattr(torch.amp.GradScaler, "step", unscaled_step)
    trained_segmenter(accelerator, plain, tmp_path / "a", num_steps=4)
    assert [line["lr"] for line in log(plain)] == pytest.approx([0.01 * (1 - s / 4) ** 0.9 for s in (0, 1, 1, 2)])
    saved = torch.load(tmp_path / "a" / "checkpoints" / "step_4.pt", weights_only=True)
    assert (saved["step"], saved["updates"]) == (4, 3)


def test_averaged_weights_are_between_the_steps_and_survive_a_restart(accelerator, settings, tmp_path):
    (tmp_path / "run").mkdir()

    def trained(folder, ema, stop_after=None):
        steps = {"lpg.steps": 6, "run.checkpoint_every": 2, "lpg.learning_rate": 1e-2}
        averaging = changed(settings, steps | {"lpg.ema": ema})
        run = Run(accelerator, averaging)
        model = build_lpg(averaging, False, None)

        class Stopping(LPGViews):
            def sample(self, entry, rng, position):
                self.count = getattr(self, "count", 0) + 1
                if stop_after is not None and self.count > stop_after:
                    raise KeyboardInterrupt
                return super().sample(entry, rng, position)

        samples = Stopping(load_aux(run), lpg_processor(averaging), averaging, "p", None)
        train_lpg(run, model, samples, "p", folder)
        return model.state_dict()

    plain, averaged = trained(tmp_path / "plain", 0.0), trained(tmp_path / "a", 0.7)
    assert not torch.equal(plain["generator.head.0.weight"], averaged["generator.head.0.weight"])
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "b", 0.7, stop_after=4 * settings.lpg.batch_size + 1)
    resumed = trained(tmp_path / "b", 0.7)
    assert all(torch.equal(resumed[name], value) for name, value in averaged.items())


def test_the_average_forgets_the_first_weights_soon():
    """With a fixed decay of 0.999 it would hold 90 % of them after 100 steps."""
    averaged, update = torch.zeros(1), average_weights(0.999)
    for step in range(1, 101):
        update([averaged], [torch.ones(1)], torch.tensor(step))
    assert averaged > 0.99
    before = averaged.clone()
    update([averaged], [torch.zeros(1)], torch.tensor(100_000))
    torch.testing.assert_close(averaged, 0.999 * before)


def test_a_run_that_would_resume_in_another_precision_is_refused(accelerator, settings, tmp_path):
    (tmp_path / "run").mkdir()
    settings = changed(settings, {"run.checkpoint_every": 2})
    trained_segmenter(accelerator, settings, tmp_path / "a", num_steps=2)
    checkpoint = tmp_path / "a" / "checkpoints" / "step_2.pt"
    before = torch.load(checkpoint, weights_only=True)
    assert before["mixed_precision"] == "no"
    Checkpoints(tmp_path / "a" / "checkpoints").save(before | {"mixed_precision": "bf16"})
    with pytest.raises(ValueError, match="begun with mixed_precision bf16.*resume it with no"):
        trained_segmenter(accelerator, settings, tmp_path / "a", num_steps=4)


def test_processes_that_found_different_checkpoints_do_not_train_together(accelerator, plain, tmp_path, monkeypatch):
    """A run folder on a disk of each machine: this process begins, and another one resumes at step 2."""
    monkeypatch.setattr(steps, "gather_object", lambda found: [*found, 2])
    with pytest.raises(ValueError, match=r"phase: .* different steps \(0, 2\), so run.dir=.* is not one folder"):
        trained_segmenter(accelerator, plain, tmp_path / "a")
    assert not (tmp_path / "a" / "checkpoints").exists()


def test_depthwise_convolutions_with_a_stride_stay_in_float32_under_autocast():
    strided, plain = nn.Conv2d(8, 8, 3, stride=2, groups=8), nn.Conv2d(8, 8, 3, groups=8)
    model, x = nn.Sequential(strided, plain), torch.randn(1, 8, 16, 16)
    exact = strided(x)
    with torch.autocast("cpu", torch.bfloat16):
        with fast_depthwise(model, autocast=True):
            assert torch.equal(strided(x), exact) and plain(x).dtype == torch.bfloat16
        assert strided(x).dtype == torch.bfloat16 and type(strided) is nn.Conv2d
    with fast_depthwise(model, autocast=False):
        assert type(strided) is type(plain) is nn.Conv2d


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "size, fields",
    [
        ((12, 12), {"dilation": 2}),
        ((11, 15), {"dilation": 2, "padding": 2, "bias": True}),
        ((17, 13), {"dilation": 4, "kernel_size": (3, 1), "padding": "same"}),
        ((16, 14), {"dilation": 3, "kernel_size": 5, "padding": (1, 7)}),
    ],
)
def test_dilated_depthwise_convolutions_keep_their_results_and_gradients(size, fields, layout, autocast, monkeypatch):
    monkeypatch.setattr(_depthwise, "_SLOW_DILATION", True)
    module = nn.Conv2d(6, 6, groups=6, **{"kernel_size": 3, "bias": False} | fields).to(memory_format=layout)
    results = []
    for fast in (False, True):
        image = torch.randn(2, 6, *size, generator=torch.Generator().manual_seed(0)).to(memory_format=layout)
        module.zero_grad()
        changed_module = fast_depthwise(nn.Sequential(module), autocast=autocast) if fast else nullcontext()
        with changed_module, torch.autocast("cpu", torch.bfloat16, enabled=fast and autocast):
            output = module(image.requires_grad_())
            assert output.dtype == torch.float32
            output.pow(3).sum().backward()
            results.append([output, image.grad, *(parameter.grad.clone() for parameter in module.parameters())])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "fields", [{"groups": 2}, {"groups": 4, "stride": 2}, {"groups": 4, "padding_mode": "reflect"}]
)
def test_other_convolutions_with_a_dilation_are_left_alone(fields, monkeypatch):
    monkeypatch.setattr(_depthwise, "_SLOW_DILATION", True)
    module = nn.Conv2d(4, 4, 3, dilation=2, padding=1, **fields)
    with fast_depthwise(module, autocast=False):
        assert type(module) is nn.Conv2d


def test_dilated_convolutions_are_left_alone_where_they_are_not_slow(monkeypatch):
    module = nn.Conv2d(4, 4, 3, dilation=2, groups=4)
    for is_slow in (True, False):
        monkeypatch.setattr(_depthwise, "_SLOW_DILATION", is_slow)
        with fast_depthwise(module, autocast=False):
            assert (type(module) is nn.Conv2d) is not is_slow


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_training_on_a_cpu_has_fast_depthwise_convolutions(settings, tmp_path, monkeypatch, precision):
    seen = []
    monkeypatch.setattr(steps, "fast_depthwise", lambda model, autocast: seen.append(autocast) or nullcontext())
    AcceleratorState._reset_state()
    try:
        settings = changed(settings, {"segmenter.model": "largefov", "segmenter.config": LARGEFOV["segmenter.config"]})
        Path(settings.run.dir).mkdir()
        trained_segmenter(Accelerator(cpu=True, mixed_precision=precision), settings, tmp_path / "a", num_steps=1)
    finally:
        AcceleratorState._reset_state()
    assert seen == [precision == "bf16"]


def test_a_loss_that_is_not_finite_stops_and_names_the_images(accelerator, plain, tmp_path):
    rows = load_target(Run(accelerator, plain), masks=False)

    class Broken(SegmenterCrops):
        def sample(self, entry, rng, position):
            sample = super().sample(entry, rng, position)
            sample["pixel_values"][:] = float("nan")
            return sample

    broken = Broken(rows, Normalization((0.5,) * 3, (0.5,) * 3), plain, "phase", box_labels)
    with pytest.raises(FloatingPointError, match=r"train_\d+"):
        trained_segmenter(accelerator, plain, tmp_path / "a", samples=broken)


def test_training_on_boxes_never_depends_on_the_masks(accelerator, plain, tmp_path):
    rows = load_aux(Run(accelerator, plain), masks=True)
    garbage = rows.map(
        lambda row: {
            "objects": row["objects"] | {"segmentation": [{"size": [1, 1], "counts": "x"}] * len(row["objects"]["id"])}
        }
    )
    states, losses = [], []
    for name, data in (("true", rows), ("garbage", garbage)):
        _, processor = build_segmenter(plain, ["a"] * 6)
        samples = SegmenterCrops(data, Normalization.of(processor), plain, "phase", box_labels)
        model, _ = build_segmenter(plain, ["a", "b", "c", "d", "e", "f"])
        train_segmenter(Run(accelerator, plain), model, samples, "phase", tmp_path / name, 3)
        states.append(model.state_dict())
        losses.append([line["loss"] for line in log(plain)])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert losses[0] == losses[1] and len(losses[0]) == 3


def test_the_e_step_takes_cached_probabilities_and_never_runs_a_segmenter(
    accelerator, settings, tmp_path, monkeypatch
):
    (tmp_path / "run").mkdir()
    rows = load_aux(Run(accelerator, settings))
    segmenter, _ = build_segmenter(settings, ["a"] * 6)
    monkeypatch.setattr(type(segmenter), "forward", lambda *a, **k: pytest.fail("the segmenter ran in the E-step"))
    asked = []

    def probs(index, label):
        asked.append((index, label))
        return torch.zeros(rows[index]["height"], rows[index]["width"], dtype=torch.uint8).numpy()

    model = build_lpg(settings, True, None)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    samples = LPGViews(rows, lpg_processor(settings), settings, "phase", probs)
    train_lpg(Run(accelerator, settings), model, samples, "phase", tmp_path / "checkpoints")
    assert len(asked) == settings.lpg.steps * settings.lpg.batch_size
    assert any(not torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", ["segformer", "mobilenet_v2", "upernet"])
def test_segmenters_of_transformers_train_from_a_config_file(accelerator, settings, tmp_path, name):
    from transformers import ConvNextConfig, MobileNetV2Config, SegformerConfig, UperNetConfig

    small = {"depths": [1] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 8}
    backbone = ConvNextConfig(
        hidden_sizes=[8] * 4, depths=[1] * 4, out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    config = {
        "upernet": UperNetConfig(
            backbone_config=backbone, hidden_size=8, auxiliary_in_channels=8, auxiliary_channels=8
        ),
        "segformer": SegformerConfig(hidden_sizes=[8] * 4, **small),
        "mobilenet_v2": MobileNetV2Config(depth_multiplier=0.35),
    }[name]
    config.save_pretrained(tmp_path / "model")
    (tmp_path / "run").mkdir()
    changes = {"segmenter.model": str(tmp_path / "model" / "config.json"), "segmenter.config": {}}
    other = changed(settings, changes | {"segmenter.crop_size": 32})
    model, _ = build_segmenter(other, ["a", "b", "c", "d"])
    assert model.config.model_type == name and model.config.num_labels == 5
    before = {k: v.clone() for k, v in model.state_dict().items()}
    after = trained_segmenter(accelerator, other, tmp_path / "a", num_steps=2)
    moved = [k for k in before if before[k].is_floating_point() and not torch.equal(before[k], after[k])]
    assert any("head" in k for k in moved) and any("head" not in k for k in moved)


def test_a_batch_norm_over_one_pooled_image_is_an_error_that_names_the_setting(accelerator, settings, tmp_path):
    from transformers import MobileNetV2Config

    MobileNetV2Config(depth_multiplier=0.35).save_pretrained(tmp_path / "model")
    (tmp_path / "run").mkdir()
    model = {
        "segmenter.model": str(tmp_path / "model" / "config.json"),
        "segmenter.config": {},
        "segmenter.crop_size": 32,
    }
    alone = changed(settings, model | {"segmenter.micro_batch_size": 1})
    with pytest.raises(ValueError, match="one pooled image .*segmenter.micro_batch_size so that .* at least 2"):
        trained_segmenter(accelerator, alone, tmp_path / "a", num_steps=1)


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one_and_end_cleanly(values, tmp_path):
    """Shares of 4 and 3 images, and 2 and 1; batch norms over all of them; weights without a wrapper's prefix."""
    tiny = values | LARGEFOV | {"run.num_stages": 1, "segmenter.steps": 3, "lpg.steps": 3, "segmenter.batch_size": 3}
    flags = ["--lpg.batch_size", "7"]
    runs = {}
    for processes in (1, 2):
        run_dir = tmp_path / f"run{processes}"
        if processes == 1:
            run_script("em.py", tiny | {"lpg.batch_size": 7}, run_dir)
        else:
            result = launch("em.py", tiny, run_dir, *flags, processes=processes)
            assert result.returncode == 0, result.stderr[-3000:]
        runs[processes] = [json.loads(line) for line in open(run_dir / "log.jsonl", encoding="utf-8")]
    one, two = (
        {path: load_file(run_dir / path) for path in weights(run_dir) if path.endswith("model.safetensors")}
        for run_dir in (tmp_path / "run1", tmp_path / "run2")
    )
    assert one.keys() == two.keys() and len(one) == 3
    for path, tensors in one.items():
        assert tensors.keys() == two[path].keys()
        for name, value in tensors.items():
            torch.testing.assert_close(two[path][name], value, rtol=1e-3, atol=1e-4)
    assert [(line["phase"], line["step"], line["lr"]) for line in runs[1]] == [
        (line["phase"], line["step"], line["lr"]) for line in runs[2]
    ]
    assert [line["loss"] for line in runs[2]] == pytest.approx([line["loss"] for line in runs[1]], rel=1e-4)


@pytest.mark.parametrize("native", [True, False])
def test_auto_precision_is_what_the_hardware_computes_in(monkeypatch, native):
    monkeypatch.setattr("lpg_hf.training.run.resolve_dtype", lambda *_: torch.bfloat16 if native else torch.float32)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert _usable_precision("auto") == ("bf16" if native else "no")
        assert [_usable_precision(name) for name in ("no", "bf16", "fp16")] == ["no", "bf16", "fp16"]
    assert [str(w.message).startswith("mixed_precision=bf16, but this CPU") for w in caught] == [True] * (not native)


def test_flags_of_accelerate_that_settings_overrule_are_told_in_one_line(settings, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    run = start_run(settings, "settings.json")
    assert run.accelerator.mixed_precision == "no" and run.accelerator.gradient_accumulation_steps == 1
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and said[0].startswith(
        "not used, as the settings of the run say it: accelerate's mixed_prec"
    )
    assert "fp16 (run.mixed_precision gives no), accelerate's gradient_accumulation_steps 4 (lpg.micro" in said[0]
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="accelerate is to use FSDP, but every process trains whole networks"):
        start_run(settings, "settings.json")


@pytest.mark.parametrize("local, expected", [(None, 2), ("2", 8), ("32", 2)])
def test_the_cores_of_a_machine_are_shared_out_among_its_own_processes(settings, monkeypatch, local, expected):
    """Of 8 processes on 4 machines, 2 share 16 cores."""
    given = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16), raising=False)
    monkeypatch.setattr(Accelerator, "num_processes", 8)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if local is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    start_run(changed(settings, {"run.num_threads": None}), "settings.json")
    assert given == [expected]


@pytest.mark.parametrize("variable, expected", [("4,2", [4]), ("3", [3]), ("", []), ("many", [])])
def test_a_command_on_own_data_takes_the_first_of_a_list_of_threads(settings, monkeypatch, variable, expected):
    given = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    monkeypatch.setattr("lpg_hf.training._own_data.start_run", lambda *_: None)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    start_own_run(settings)
    assert given == expected


def test_threads_are_set_as_asked(settings):
    before = torch.get_num_threads()
    start_run(changed(settings, {"run.num_threads": 1}), "settings.json")
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)
