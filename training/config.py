"""Every setting of a run: one flat dataclass, filled from a YAML file and command-line flags."""

import argparse
import dataclasses
import json
import types
import typing
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import yaml


PAPER_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5)

# A run may be continued with other values of these: they change nothing in the result.
RESULT_NEUTRAL = (
    "run_dir",
    "num_workers",
    "checkpoint_every",
    "keep_checkpoints",
    "log_every",
    "log_with",
    "crf",
    "measure_segmenter",
)


@dataclass
class Settings:
    """Defaults are the paper's (Table I, and the official code where the paper is silent). Lengths are pixels, learning rates per step."""

    # The run
    run_dir: str = "runs/em"  # everything is written below it: aux/stageK, target/stageK
    seed: int = 0
    num_stages: int = 3
    stage1_class_prob: bool = True  # stage-1 LPG sees the box-trained segmenter (paper); False: image and boxes only
    stage_init: str = "previous"  # a stage's networks start from the stage before, or from the "initial" weights
    # no, bf16, fp16, or auto: bf16 where the hardware has it; softmax and losses stay float32
    mixed_precision: str = "no"
    channels_last: bool = True
    sync_batch_norm: bool = False  # batch statistics over all processes (GPUs only)
    num_threads: int | None = None  # CPU threads of a process; None: the cores shared out among the processes
    num_workers: int = 2  # data loading processes; results do not depend on it
    checkpoint_every: int = 500  # steps
    keep_checkpoints: int = 2
    log_every: int = 50  # steps per line of log.jsonl
    log_with: str | None = None  # a tracker of accelerate: tensorboard, trackio, ...

    # Auxiliary data: boxes and masks, classes disjoint from the target's
    aux_format: str = "coco"  # coco, voc, yolo or parquet
    aux_root: str | None = None
    aux_annotations: str | None = None
    aux_images: str | None = None
    aux_split: str | None = None
    aux_classes: str | list[str] | None = "nonvoc60"
    aux_zero_based: bool = False  # VOC xml files whose corners are 0-based and end exclusive
    aux_allow_missing: bool = False  # go on without pictures, masks or annotation files that do not exist
    aux_size_mismatch: str = (
        "skip"  # COCO and VOC: picture of another size than stated: skip, error, or rescale (boxes)
    )
    aux_fraction: float = 1.0  # share of the auxiliary images, drawn by the seed (Table VI)

    # Target data: boxes; masks are used to measure only (and in the modes semi and full)
    target_format: str = "voc"
    target_root: str | None = None
    target_annotations: str | None = None
    target_images: str | None = None
    target_split: str | None = "train_aug"
    target_classes: str | list[str] | None = None
    target_zero_based: bool = False  # this and the next two as those of aux, also for the eval and semi parts
    target_allow_missing: bool = False
    target_size_mismatch: str = "skip"
    eval_annotations: str | None = None  # COCO targets: the file to measure on; VOC: see eval_split
    eval_images: str | None = None
    eval_split: str | None = "val"
    measure_masks: bool = True  # read the target's masks to measure pseudo masks; False where there are none
    measure_segmenter: bool = True  # on the evaluation part (eval_*), which has masks; False where there is none
    drop_difficult: bool = False  # VOC objects flagged difficult

    # Deployment
    stages: str | None = None  # where the LPG stages are: a run folder or a Hub prefix org/name; default: run_dir
    stages_revision: str | None = None  # branch, tag or commit of the stages on the Hub
    fixed_stage: int | None = None  # the LPG of this stage in every round (Table II); None: each round its own
    mode: str = "weak"  # weak; semi: images of semi_split keep their ground truth; full: all do
    semi_split: str | None = "train"  # a VOC list, or a COCO file of those images with masks
    crf: bool = False  # also measure the segmenter after a dense CRF (extra: lpg_hf[crf])

    # Pseudo masks (Eq. (7))
    overlap_rule: str = "rate"  # rate (Sec. III-D), first, prob or smallest_box
    inference_batch_size: int = 16  # views per forward pass of the LPG, images per forward pass of the segmenter

    # LPG (E-step)
    lpg_backbone: str = "hourglass"
    lpg_config: dict = field(default_factory=dict)  # further fields of LPGConfig
    # ImageNet weights of a resnet, squeezenet or vgg16 backbone: file or org/repo:file; auto: a model folder or Hub id
    lpg_weights: str | None = None
    # LPG that stage 1 starts from: folder, ORG/NAME, or lpg-small (which comes with the package)
    lpg_init: str | None = None
    lpg_weights_channels: str = "rgb"  # or bgr: what a squeezenet or vgg16 file was trained on
    lpg_image_mean: list[float] = field(default_factory=lambda: [0.48108, 0.45753, 0.40787])  # RGB, of 0..1
    lpg_image_std: list[float] = field(default_factory=lambda: [1 / 255, 1 / 255, 1 / 255])
    view: str = "image"  # image (paper) or box
    view_size: int = 192
    view_context: float = 0.25
    lpg_steps: int = 100_000
    lpg_batch_size: int = 32
    lpg_micro_batch_size: int | None = None  # per process and backward pass; the rest is accumulated
    lpg_optimizer: str = "adam"
    lpg_learning_rate: float = 1e-4
    lpg_schedule: str = "poly"  # of the learning rate: poly (see poly_power) or cosine
    lpg_warmup: float = 0.0  # share of the steps in which the learning rate rises to its schedule
    lpg_weight_decay: float = 5e-4
    lpg_crop_size: int = 512
    lpg_scales: list[float] = field(default_factory=lambda: list(PAPER_SCALES))
    lpg_context_range: list[float] = field(default_factory=lambda: [0.1, 0.5])  # box views in training
    lpg_box_jitter: float = 0.05  # box views in training
    box_encoding: str = "filled"  # or distance (to the box's edge)
    edge_radius: int = 0  # pseudo masks follow the picture's edges, see LPGImageProcessor; 0: as they are (paper)
    lpg_min_box_side: float = 0.0  # views all of whose boxes have a shorter side are not trained on
    # box views in training: share whose picture is first reduced, as if the object were small
    lpg_low_detail: float = 0.0
    # sides of the box views in the course of training, each for an equal part of the steps; empty: view_size
    lpg_view_sizes: list[int] = field(default_factory=list)
    lpg_box_noise: float = (
        0.0  # box views in training: share whose box fits badly, by lpg_box_noise_range in place of the jitter
    )
    lpg_box_noise_range: list[float] = field(default_factory=lambda: [-0.15, 0.3])  # outwards, of the box's size
    lpg_degrade: float = 0.0  # box views in training: share that is grey, noisy or blurred
    lpg_color_jitter: float = 0.0  # brightness, contrast and saturation in training vary by up to this share
    # what a box view learns: class, its class's pixels, or object (needs masks of objects: COCO, YOLO)
    lpg_target: str = "class"
    # share of samples without class probability; > 0: the LPG also works without one
    lpg_class_prob_dropout: float = 0.0
    # decay per step of averaged weights, which are then the stage's; less in the first steps; 0: none
    lpg_ema: float = 0.0
    lpg_pad_label: int = 255  # label of padding: 255 is ignored, 0 is background (official code)

    # Segmenter (M-step): largefov, deeplab-v2, or any AutoModelForSemanticSegmentation (id, folder or config.json)
    # or None: em.py trains one generator without class probability, and nothing else
    segmenter: str | None = "largefov"
    segmenter_config: dict = field(default_factory=dict)  # fields of its config to set
    segmenter_weights: str | None = None  # ImageNet weights of largefov or deeplab-v2: file or org/repo:file
    segmenter_head: str | None = None  # sub-module with the head's learning rate; default: found
    segmenter_steps: int = 20_000
    stage0_steps: int | None = None  # of em.py's box-trained segmenter; default: segmenter_steps
    target_steps: int | None = None  # of deploy.py; default: segmenter_steps
    segmenter_batch_size: int = 30
    segmenter_micro_batch_size: int | None = None
    segmenter_optimizer: str = "sgd"
    segmenter_learning_rate: float = 1e-3
    segmenter_momentum: float = 0.9
    segmenter_weight_decay: float = 5e-4  # weights; biases and norms have none
    segmenter_head_multiplier: float = 10.0
    segmenter_bias_multiplier: float = 2.0
    segmenter_batch_norm_momentum: float | None = None  # transformers' MobileNetV2 needs 0.03
    segmenter_loss_stride: int | None = None  # pixels per position of the loss; None: the logits' own (paper)
    segmenter_crop_size: int = 321  # 8n + 1 for largefov and deeplab-v2
    segmenter_scales: list[float] = field(default_factory=lambda: list(PAPER_SCALES))

    poly_power: float = 0.9

    def __post_init__(self):
        choices = {
            "stage_init": ("previous", "initial"),
            "mixed_precision": ("no", "bf16", "fp16", "auto"),
            "aux_format": ("coco", "voc", "yolo", "parquet"),
            "target_format": ("coco", "voc", "yolo", "parquet"),
            "aux_size_mismatch": ("skip", "error", "rescale"),
            "target_size_mismatch": ("skip", "error", "rescale"),
            "mode": ("weak", "semi", "full"),
            "overlap_rule": ("rate", "first", "prob", "smallest_box"),
            "view": ("image", "box"),
            "box_encoding": ("filled", "distance"),
            "lpg_target": ("class", "object"),
            "lpg_weights_channels": ("rgb", "bgr"),
            "lpg_optimizer": ("adam", "adamw", "sgd"),
            "lpg_schedule": ("poly", "cosine"),
            "segmenter_optimizer": ("adam", "adamw", "sgd"),
            "lpg_pad_label": (0, 255),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown. Choose one of {allowed}.")
        positive = [
            f.name for f in dataclasses.fields(self) if f.name.endswith(("_steps", "_size", "_every", "_stride"))
        ]
        for name in ["num_stages", "keep_checkpoints", *positive]:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        if self.segmenter is None and (self.num_stages > 1 or self.stage1_class_prob):
            raise ValueError(
                f"segmenter is null, but num_stages={self.num_stages} and stage1_class_prob={self.stage1_class_prob}: a "
                "generator without a segmenter has one stage and no class probability. Set them to 1 and false."
            )
        if not self.run_dir.strip():
            raise ValueError("run_dir is empty; name the folder that the run is written to.")
        for name in ("lpg_low_detail", "lpg_color_jitter", "lpg_box_noise", "lpg_degrade"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} is a share: it must lie in [0, 1].")
        for name in ("lpg_class_prob_dropout", "lpg_ema", "lpg_warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [0, 1).")
        if self.lpg_class_prob_dropout > 0 and self.num_stages == 1 and not self.stage1_class_prob:
            raise ValueError(
                f"lpg_class_prob_dropout={self.lpg_class_prob_dropout}, but the only stage takes no class probability: set it "
                "to 0, or stage1_class_prob to true."
            )
        for name in ("backbone", "use_class_prob", "class_prob_optional"):
            if name in self.lpg_config:
                setting = {"backbone": "lpg_backbone", "use_class_prob": "stage1_class_prob"}.get(
                    name, "lpg_class_prob_dropout"
                )
                raise ValueError(f"lpg_config has {name}, which follows from {setting}: set that.")
        for name in ("lpg_low_detail", "lpg_box_noise", "lpg_degrade", "lpg_view_sizes"):
            if getattr(self, name) and self.view != "box":
                nothing = [] if name == "lpg_view_sizes" else 0
                raise ValueError(
                    f"{name}={getattr(self, name)} is for box views: set it to {nothing}, or view to box."
                )
        if min(self.lpg_view_sizes, default=1) < 1:
            raise ValueError(f"lpg_view_sizes={self.lpg_view_sizes} must be numbers of pixels, at least 1.")
        if self.lpg_init is not None and self.lpg_weights is not None:
            raise ValueError(
                f"lpg_init={self.lpg_init} and lpg_weights={self.lpg_weights} are both set: keep one of them."
            )
        if self.lpg_target == "object" and self.view != "box":
            raise ValueError(
                "lpg_target=object needs view=box: a view of the whole image stands for all objects of a class."
            )
        if self.fixed_stage is not None and not 1 <= self.fixed_stage <= self.num_stages:
            raise ValueError(f"fixed_stage={self.fixed_stage} must be one of the stages 1..{self.num_stages}.")
        if not 0 < self.aux_fraction <= 1:
            raise ValueError(f"aux_fraction={self.aux_fraction} must lie in (0, 1].")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must not be negative.")
        for name in ("lpg_scales", "segmenter_scales"):
            if min(getattr(self, name), default=0) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be a list of positive numbers, at least one.")
        for name, length in (
            ("lpg_image_mean", 3),
            ("lpg_image_std", 3),
            ("lpg_context_range", 2),
            ("lpg_box_noise_range", 2),
        ):
            if len(getattr(self, name)) != length:
                raise ValueError(f"{name}={getattr(self, name)} must be {length} numbers.")
        if not -0.5 < self.lpg_box_noise_range[0] <= self.lpg_box_noise_range[1]:
            raise ValueError(
                f"lpg_box_noise_range={self.lpg_box_noise_range} must rise from more than -0.5, where boxes vanish."
            )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        """One line, in place of the usage with every setting."""
        self.exit(2, f"{self.prog}: {message}. --help lists the flags.\n")


def parse_settings(argv: list[str] | None = None, description: str | None = None) -> Settings:
    """Settings from `--config FILE.yaml` and `--name value` flags; flags win.

    Lists and dicts are given as YAML on the command line: `--lpg_scales "[0.5, 1.0]"`, and what may be absent as `null`.

    Raises:
        ValueError: an unknown key in the file, a value of another type, or text that is not YAML.
        SystemExit: an unknown flag.
    """
    parser = _Parser(description=description, allow_abbrev=False)
    parser.add_argument("--config", help="YAML file with any of the settings below")
    for f in dataclasses.fields(Settings):
        parser.add_argument(f"--{f.name}", metavar="VALUE", help=f"default: {_default(f)!r}")
    flags = vars(parser.parse_args(argv))
    path = flags.pop("config")
    values = read_yaml(path) if path else {}
    for name, text in flags.items():
        if text is not None:
            as_yaml = (text == "null" and _accepts(name, types.NoneType)) or (
                text.startswith("[") and _accepts(name, list)
            )
            as_text = _accepts(name, str) and not as_yaml
            values[name] = text if as_text else _parse_yaml(text, f"--{name}")
    return settings_from_dict(values, path or "the command line")


def read_yaml(path: str) -> dict:
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"Config file {path} does not exist. Files of this repository lie in training/configs."
        )
    values = _parse_yaml(Path(path).read_text(encoding="utf-8"), path) or {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} does not hold `name: value` lines.")
    return values


def _parse_yaml(text: str, source: str) -> object:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not valid YAML: {' '.join(str(error).split())}.") from error


def settings_from_dict(values: dict, source: str) -> Settings:
    """Checked settings; `source` is named in errors."""
    known = typing.get_type_hints(Settings)
    unknown = sorted(str(name) for name in set(values) - set(known))
    if unknown:
        raise ValueError(f"Unknown setting {', '.join(unknown)} in {source}. Known: {', '.join(known)}.")
    checked = {}
    for name, value in values.items():
        if isinstance(value, int) and not isinstance(value, bool) and _accepts(name, float):
            value = float(value)
        elif isinstance(value, str) and _accepts(name, float) and not _accepts(name, str):
            with suppress(ValueError):
                value = float(value)  # YAML reads 1e-3 as text
        if not any(isinstance(value, t) and (t is bool or not isinstance(value, bool)) for t in _types(name)):
            wanted = " or ".join(t.__name__ for t in _types(name))
            raise ValueError(f"{name}={value!r} in {source} is {type(value).__name__}; it must be {wanted}.")
        if isinstance(value, list) and _accepts(name, list):
            _check_elements(name, value, source)
        checked[name] = value
    return Settings(**checked)


def _check_elements(name: str, values: list, source: str) -> None:
    """Lists of settings hold numbers, or names."""
    kind = str if _accepts(name, str) else (int, float)
    for value in values:
        if not isinstance(value, kind) or isinstance(value, bool):
            wanted = "names" if kind is str else "numbers"
            raise ValueError(f"{name}={values!r} in {source} holds {value!r}; it must be a list of {wanted}.")


def check_same_run(settings: Settings, path: Path) -> None:
    """Writes the settings of a new run, or refuses to continue a run that was started with others.

    Raises:
        ValueError: names the settings that differ.
    """
    current = json.loads(json.dumps(dataclasses.asdict(settings)))
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        defaults = {f.name: _default(f) for f in dataclasses.fields(settings)}
        before = defaults | before  # of a run that is older than a setting
        differing = [k for k in current if k not in RESULT_NEUTRAL and current[k] != before[k]]
        if differing:
            listed = "; ".join(f"{k}: {before[k]!r} then, {current[k]!r} now" for k in differing)
            raise ValueError(
                f"{path.parent} was started with other settings ({listed}). Give the same ones to continue it, "
                "another --run_dir for a new run, or delete the folder."
            )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(current, indent=2), encoding="utf-8")
    temporary.replace(path)


def _types(name: str) -> tuple[type, ...]:
    hint = typing.get_type_hints(Settings)[name]
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return tuple(typing.get_origin(option) or option for option in options)


def _accepts(name: str, kind: type) -> bool:
    return kind in _types(name)


def _default(f: dataclasses.Field) -> object:
    return f.default_factory() if f.default is dataclasses.MISSING else f.default
