"""Every setting of a run, in sections: frozen dataclasses, filled by `lpg_hf/training/parsing.py`."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lpg_hf.data.load import FORMATS
from lpg_hf.data.options import SIZE_MISMATCH_CHOICES, ReadOptions
from lpg_hf.labels import IGNORE_INDEX
from lpg_hf.masks.fusion import OVERLAP_RULES
from lpg_hf.models.image_processing_lpg import LPGImageProcessor
from lpg_hf.training._label_sources import check_label_source


PAPER_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5)
OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("poly", "cosine")
MEASURES = ("masks", "segmenter", "crf")

# A run may be resumed with other values of these: they change nothing in the result, or (sync_batch_norm) no more than
# another number of processes does.
RESULT_NEUTRAL = {
    "run.dir",
    "run.num_workers",
    "run.sync_batch_norm",
    "run.checkpoint_every",
    "run.log_every",
    "run.log_with",
    "run.measure",
}


# The fields are commented, one line each. Defaults are the paper's (Table I, and the official code where the paper is
# silent); lengths are pixels, learning rates per step. A section checks itself; its messages begin with the name of a
# field.


@dataclass(frozen=True)
class RunSettings:
    """The folder, the stages, the machine, and what is done with the stages (deploy.py)."""

    dir: str = "runs/em"  # everything is written below it: aux/stageK, target/stageK
    seed: int = 0
    num_stages: int = 3
    stage_init: str = "previous"  # a stage's networks start from the stage before, or from the "initial" weights
    aux_fraction: float = 1.0  # share of the auxiliary images, drawn by the seed (Table VI)
    # no, bf16, fp16, or auto: bf16 where the hardware has it; softmax and losses stay float32
    mixed_precision: str = "no"
    sync_batch_norm: bool = True  # batch statistics over all processes; False: each process has its own
    num_threads: int | None = None  # CPU threads of a process; None: the cores shared out among the processes
    num_workers: int = 2  # data loading processes; results do not depend on it
    inference_batch_size: int = 16  # views per forward pass of the LPG, images per forward pass of the segmenter
    checkpoint_every: int = 500  # steps
    log_every: int = 50  # steps per line of log.jsonl
    log_with: str | None = None  # a tracker of accelerate: tensorboard, trackio, ...
    overlap_rule: str = "rate"  # of pseudo masks (Eq. (7)): rate (Sec. III-D), first, prob or smallest_box
    # the LPG stages of deploy.py: a run folder, or a Hub prefix org/name, also org/name@revision; lpg-base, or the
    # folder of one LPG, is that of every round; None: this run's own
    stages: str | None = None
    fixed_stage: int | None = None  # the LPG of this stage in every round (Table II); None: each round its own
    mode: str = "weak"  # weak; semi: images of semi_split keep their ground truth; full: all do
    # what deploy.py trains on: lpg, or a compared method, see docs/label_sources.md (sdi-box, bcm, folder:DIR, ...)
    labels: str = "lpg"
    semi_split: str | None = "train"  # a VOC list, or a COCO file of those images with masks
    # masks: pseudo masks on the target's masks; segmenter: on the evaluation data; crf: the segmenter after a dense
    # CRF too
    measure: tuple[str, ...] = ("masks", "segmenter")

    def __post_init__(self):
        _choose(self, stage_init=("previous", "initial"), mixed_precision=("no", "bf16", "fp16", "auto"))
        _choose(self, mode=("weak", "semi", "full"), overlap_rule=OVERLAP_RULES)
        _at_least(self, 1, "num_threads", "inference_batch_size", "checkpoint_every", "log_every")
        _at_least(self, 0, "seed", "num_workers")
        _at_least(self, 1 if self.labels == "lpg" and self.mode != "full" else 0, "num_stages")
        if self.labels != "lpg":
            check_label_source(self.labels)
        if not self.dir.strip():
            raise ValueError("dir is empty; name the folder that the run is written to.")
        if not 0 < self.aux_fraction <= 1:
            raise ValueError(f"aux_fraction={self.aux_fraction} must lie in (0, 1].")
        if self.fixed_stage is not None and not 1 <= self.fixed_stage <= self.num_stages:
            raise ValueError(f"fixed_stage={self.fixed_stage} must be one of the stages 1..{self.num_stages}.")
        unknown = [name for name in self.measure if name not in MEASURES]
        if unknown or ("crf" in self.measure and "segmenter" not in self.measure):
            raise ValueError(
                f"measure={list(self.measure)} must be a list of {', '.join(MEASURES)}, and crf needs segmenter."
            )


# Not settings of their own: what a file that is out of the ordinary needs.
_READ_FIELDS = {
    "ignore_others",
    "object_value",
    "box_format",
    "encoding",
    "stored_frame",
    "skip_ambiguous",
    "max_pixels",
    "bands",
    "stretch",
}


@dataclass(frozen=True)
class DataSettings:
    """Images with boxes, and with masks where masks are needed."""

    format: str = "voc"  # coco, voc, yolo, parquet, or a tool's of docs/formats.md
    root: str | None = None
    annotations: str | None = None
    images: str | None = None
    split: str | None = None
    classes: str | tuple[str, ...] | None = None  # None: all
    zero_based: bool = False  # VOC xml files whose corners are 0-based and end exclusive
    read: dict = field(default_factory=dict)  # further fields of ReadOptions, such as {encoding: cp1252}
    allow_missing: bool = False  # skip images, masks or annotation files that do not exist
    size_mismatch: str = "skip"  # COCO and VOC: image of another size than stated: skip, error, or rescale (boxes)
    drop_difficult: bool = False  # VOC objects flagged difficult

    def __post_init__(self):
        _choose(self, format=FORMATS, size_mismatch=SIZE_MISMATCH_CHOICES)
        for name, value in self.read.items():
            if name not in _READ_FIELDS:
                raise ValueError(f"read.{name} is unknown. Choose of {', '.join(sorted(_READ_FIELDS))}.")
            is_flag = isinstance(getattr(ReadOptions, name), bool)
            if is_flag != isinstance(value, bool):
                raise ValueError(f"read.{name}={value!r} must {'' if is_flag else 'not '}be true or false.")
        self.read_options(masks=False)

    def read_options(self, masks: bool) -> ReadOptions:
        """How the annotations are read."""
        return ReadOptions(
            split=self.split,
            classes=self.classes,
            masks=masks,
            zero_based=self.zero_based,
            allow_missing=self.allow_missing,
            size_mismatch=self.size_mismatch,
            **self.read,
        )


def _default_processor() -> dict:
    return {"image_mean": [0.48108, 0.45753, 0.40787], "image_std": [1 / 255, 1 / 255, 1 / 255]}  # RGB, of 0..1


@dataclass(frozen=True)
class LPGSettings:
    """The generator and the E-step."""

    stage1_class_prob: bool = True  # stage 1 sees the box-trained segmenter (paper); False: image and boxes only
    config: dict = field(default_factory=dict)  # fields of LPGConfig: backbone, loss weights, ...
    processor: dict = field(default_factory=_default_processor)  # fields of LPGImageProcessor: view, view_size, ...
    # ImageNet weights of a resnet, squeezenet or vgg16 backbone: file or org/repo:file; auto: a model folder or Hub id
    # efficientnet_lite0: "efficientnet-lite0", of the extra efficientnet
    weights: str | None = None
    weights_channels: str = "rgb"  # or bgr: what a squeezenet or vgg16 file was trained on
    # LPG that stage 1 starts from: folder, ORG/NAME, or lpg-base (which comes with the package)
    init: str | None = None
    steps: int = 100_000
    batch_size: int = 32
    micro_batch_size: int | None = None  # per process and backward pass; the rest is accumulated
    optimizer: str = "adam"
    learning_rate: float = 1e-4
    schedule: str = "poly"  # of the learning rate: poly (Table I), or cosine after a rise over 2 % of the steps
    weight_decay: float = 5e-4
    # decay per step of averaged weights, which are then the stage's; less in the first steps; 0: none
    ema: float = 0.0
    target: str = "class"  # what a box view learns: its class's pixels, or object (needs masks of objects: COCO, YOLO)
    # share of samples without class probability; > 0: the LPG also works without one
    class_prob_dropout: float = 0.0
    color_jitter: float = 0.0  # brightness, contrast and saturation vary by up to this share
    crop_size: int = 512  # image views
    scales: tuple[float, ...] = PAPER_SCALES  # image views
    pad_label: int = IGNORE_INDEX  # label of padding: 255 is ignored, 0 is background (official code)
    context_range: tuple[float, ...] = (0.1, 0.5)  # box views: margin, of the longer box side
    box_jitter: float = 0.05  # box views
    box_noise: float = 0.0  # box views: share whose box fits badly: each edge 15 % inwards to 30 % outwards
    # box views: their sides, each for an equal part of the steps; empty: processor.view_size
    view_sizes: tuple[int, ...] = ()
    degrade: float = 0.0  # box views: share that is grey, noisy or blurred
    low_detail: float = 0.0  # box views: share whose image is first reduced, as if the object were small
    min_box_side: float = 0.0  # views all of whose boxes have a shorter side are not trained on

    def __post_init__(self):
        _choose(self, optimizer=OPTIMIZERS, target=("class", "object"), weights_channels=("rgb", "bgr"))
        _choose(self, pad_label=(0, IGNORE_INDEX), schedule=SCHEDULES)
        _at_least(self, 1, "steps", "batch_size", "micro_batch_size", "crop_size")
        _scales(self)
        _share(self, "low_detail", "color_jitter", "box_noise", "degrade")
        _share(self, "class_prob_dropout", "ema", whole=False)
        if len(self.context_range) != 2:
            raise ValueError(f"context_range={list(self.context_range)} must be 2 numbers.")
        if self.init is not None and self.weights is not None:
            raise ValueError(f"init={self.init} and weights={self.weights} are both set: keep one of them.")
        for name, setting in {
            "use_class_prob": "stage1_class_prob",
            "class_prob_optional": "class_prob_dropout",
        }.items():
            if name in self.config:
                raise ValueError(f"config has {name}, which follows from lpg.{setting}: set that.")
        _check_processor(self.processor)
        if min(self.view_sizes, default=1) < 1:
            raise ValueError(f"view_sizes={list(self.view_sizes)} must be numbers of pixels, at least 1.")
        for name, nothing in {"low_detail": 0, "box_noise": 0, "degrade": 0, "view_sizes": []}.items():
            value = getattr(self, name)
            if self.view != "box" and value:
                value = list(value) if name == "view_sizes" else value
                raise ValueError(f"{name}={value} is for box views: set it to {nothing}, or processor.view to box.")
        if self.view != "box" and self.target == "object":
            raise ValueError(
                "target=object needs processor.view=box: a view of the whole image stands for all objects of a class."
            )

    @property
    def view(self) -> str:
        """`image` (paper) or `box`."""
        return self.processor.get("view", LPGImageProcessor.view)


@dataclass(frozen=True)
class SegmenterSettings:
    """The segmenter and the M-step."""

    # largefov, deeplab-v2, or any AutoModelForSemanticSegmentation (id, folder or config.json); None: em.py trains one
    # generator without class probability, and nothing else
    model: str | None = "largefov"
    config: dict = field(default_factory=dict)  # fields of its config to set
    weights: str | None = None  # ImageNet weights of largefov or deeplab-v2: file or org/repo:file
    steps: int = 20_000
    stage0_steps: int | None = None  # of em.py's box-trained segmenter; None: steps
    target_steps: int | None = None  # of deploy.py; None: steps
    batch_size: int = 30
    micro_batch_size: int | None = None  # per process and backward pass; the rest is accumulated
    optimizer: str = "sgd"
    learning_rate: float = 1e-3
    weight_decay: float = 5e-4  # weights; biases and norms have none
    head_multiplier: float = 10.0
    bias_multiplier: float = 2.0
    # None: as the network is built, which transformers' MobileNetV2 needs another for, such as 0.03; 0: the norms
    # outside the head use the statistics of their weights and keep them, those of the head have 0.03
    batch_norm_momentum: float | None = None
    loss_stride: int | None = None  # pixels per position of the loss; None: the logits' own (paper)
    crop_size: int = 321  # 8n + 1 for largefov and deeplab-v2, 16n or 32n (its output stride) for MobileNetV2
    scales: tuple[float, ...] = PAPER_SCALES

    def __post_init__(self):
        _choose(self, optimizer=OPTIMIZERS)
        _at_least(self, 1, "steps", "stage0_steps", "target_steps", "batch_size", "micro_batch_size")
        _at_least(self, 1, "loss_stride", "crop_size")
        if self.batch_norm_momentum is not None:
            _share(self, "batch_norm_momentum")
        _scales(self)


@dataclass(frozen=True)
class Settings:
    """All sections.

    `aux` has masks, and classes disjoint from the target's; `target` has boxes; `evaluation` measures segmenters.
    """

    run: RunSettings = field(default_factory=RunSettings)
    aux: DataSettings = field(default_factory=lambda: DataSettings(format="coco", classes="nonvoc60"))
    # its masks are for measuring, and for the modes semi and full
    target: DataSettings = field(default_factory=lambda: DataSettings(split="train_aug"))
    # in a file or in flags: what it does not state is the target's, but for annotations and split
    evaluation: DataSettings = field(default_factory=lambda: DataSettings(split="val"))
    lpg: LPGSettings = field(default_factory=LPGSettings)
    segmenter: SegmenterSettings = field(default_factory=SegmenterSettings)

    def __post_init__(self):
        one_stage = f"run.num_stages={self.run.num_stages} and lpg.stage1_class_prob={self.lpg.stage1_class_prob}"
        without_prob = self.run.num_stages == 1 and not self.lpg.stage1_class_prob
        if self.segmenter.model is None and not without_prob:
            raise ValueError(
                f"segmenter.model is null, but {one_stage}: a generator without a segmenter has one stage and no "
                "class probability. Set them to 1 and false."
            )
        if self.lpg.class_prob_dropout > 0 and without_prob:
            raise ValueError(
                f"lpg.class_prob_dropout={self.lpg.class_prob_dropout}, but {one_stage}: the only stage takes no "
                "class probability. Set it to 0, or lpg.stage1_class_prob to true."
            )


def _choose(section: object, **choices: tuple) -> None:
    for name, allowed in choices.items():
        if getattr(section, name) not in allowed:
            listed = ", ".join(map(str, allowed))
            raise ValueError(f"{name}={getattr(section, name)!r} is unknown. Choose one of {listed}.")


def _at_least(section: object, lowest: int, *names: str) -> None:
    for name in names:
        value = getattr(section, name)
        if value is not None and value < lowest:
            raise ValueError(f"{name}={value} must be at least {lowest}.")


def _share(section: object, *names: str, whole: bool = True) -> None:
    for name in names:
        value = getattr(section, name)
        if not 0 <= value <= 1 or (value == 1 and not whole):
            raise ValueError(f"{name}={value} is a share: it must lie in [0, 1{']' if whole else ')'}.")


def _scales(section: LPGSettings | SegmenterSettings) -> None:
    if min(section.scales, default=0) <= 0:
        raise ValueError(f"scales={list(section.scales)} must be a list of positive numbers, at least one.")


def _check_processor(values: dict) -> None:
    """An image processor takes unknown names and other types silently, so they are checked here."""
    for name, value in values.items():
        default = getattr(LPGImageProcessor, str(name), None)
        if not hasattr(LPGImageProcessor, str(name)):
            raise ValueError(f"processor.{name} is not a field of LPGImageProcessor.")
        wanted = (int, float) if isinstance(default, float) else type(default)
        if isinstance(default, (bool, int, float, str)) and not isinstance(value, wanted):
            raise ValueError(f"processor.{name}={value!r} must be {type(default).__name__}.")
        if name in ("image_mean", "image_std") and (not isinstance(value, list) or len(value) != 3):
            raise ValueError(f"processor.{name}={value} must be 3 numbers.")
    try:
        LPGImageProcessor(**values)
    except ValueError as error:
        raise ValueError(f"processor.{error}") from error


def flat(settings: Settings) -> dict:
    """`section.name` -> value, fit for json."""
    values = json.loads(json.dumps(dataclasses.asdict(settings)))
    return {f"{section}.{name}": value for section, names in values.items() for name, value in names.items()}


def public_settings(settings: Settings) -> dict:
    """The settings as a file has them, without this machine's folders: of a local path only the last name is kept."""
    values = json.loads(json.dumps(dataclasses.asdict(settings)))
    for section in values.values():
        for name, value in section.items():
            kind, colon, path = value.partition(":") if name == "labels" else ("", "", value)
            if isinstance(path, str) and ("/" in path or "\\" in path) and Path(path).expanduser().exists():
                section[name] = f"{kind}{colon}{Path(path).name}"
    return values


def check_same_run(settings: Settings, path: Path, rows: Mapping[str, str] | None = None) -> None:
    """Refuses to resume a run that was begun with other settings or data; it may be extended to more stages.

    A run without a checkpoint, a network or masks has nothing to resume, and may begin anew with any settings.

    Args:
        path: of the record in the folder of the results.
        rows: digests of what the run is trained on, by section.

    Raises:
        ValueError: names the settings or data that differ.
    """
    if not path.is_file() or not _has_results(path.parent):
        return
    current = flat(settings)
    before = flat(Settings()) | json.loads(path.read_text(encoding="utf-8"))  # also of a run older than a setting
    differing = [k for k in current if k not in RESULT_NEUTRAL and current[k] != before[k]]
    if current["run.num_stages"] > before["run.num_stages"]:
        differing = [k for k in differing if k != "run.num_stages"]
    remedy = "another --run.dir for a new run, or delete the folder."
    if differing:
        listed = "; ".join(f"{k}: {before[k]!r} then, {current[k]!r} now" for k in differing)
        raise ValueError(
            f"{path.parent} was started with other settings ({listed}). Give the same ones to resume it, {remedy}"
        )
    for name, digest in (rows or {}).items():
        if before.get("rows", {}).get(name, digest) != digest:
            raise ValueError(
                f"{path.parent} was started with other images or objects of {name}. Bring them back to resume it, "
                f"give {remedy}"
            )


def record_run(settings: Settings, path: Path, rows: Mapping[str, str]) -> None:
    """Writes what `check_same_run` compares; what a failed start with other values has measured is removed."""
    record = flat(settings) | {"rows": dict(rows)}
    if path.is_file() and not _has_results(path.parent) and json.loads(path.read_text(encoding="utf-8")) != record:
        (path.parent / "box_fill.json").unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=2), encoding="utf-8")
    temporary.replace(path)


def _has_results(folder: Path) -> bool:
    """Whether there is a checkpoint, a finished network or a pseudo mask."""
    return any(True for pattern in ("step_*.pt", "*.safetensors", "pseudo_masks") for _ in folder.rglob(pattern))
