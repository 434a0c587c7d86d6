"""Own annotations for a command that trains: any format as a COCO file, and a folder for the work until it is done.

While a command runs, OUT.unfinished holds the data, the checkpoints and the numbers; the same command resumes there,
and OUT appears when all is finished.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from lpg_hf._cards import read_json
from lpg_hf._files import json_text, refuse_link, write_atomically, write_json
from lpg_hf._threads import asked_threads
from lpg_hf.data.convert import WITH_MASKS, convert_labels
from lpg_hf.data.options import ReadOptions
from lpg_hf.data.report import Report
from lpg_hf.data.sources import Source, open_source
from lpg_hf.generators.base import weights_digest
from lpg_hf.generators.bundle import DEFAULT
from lpg_hf.models.modeling_lpg import LPGModel
from lpg_hf.training.config import Settings
from lpg_hf.training.run import Run, start_run


_MODEL_DIGEST = "model_sha256"
_MODEL_FILES = (".json", ".safetensors", ".bin")


def start_own_run(settings: Settings) -> Run:
    """As `start_run`, in OMP_NUM_THREADS threads if the user says so; `accelerate launch` always sets it, to 1."""
    run = start_run(settings, "settings.json")
    num_threads = asked_threads()
    if num_threads is not None and "ACCELERATE_MIXED_PRECISION" not in os.environ:
        torch.set_num_threads(num_threads)
    return run


@dataclass(frozen=True)
class OwnJob:
    """What a command that trains is asked for.

    Attributes:
        annotations: see `open_source`, as for `images` and `format`.
        out: the new model folder.
        images: folder of the images.
        format: of the annotations.
        options: how they are read, with masks where there are any.
        model: the LPG: folder, Hub id or name of a bundled one; it takes no class probability.
        steps: of the optimiser; None: by the size of the data.
        seed: of the held-out part and of the training.
    """

    annotations: str
    out: Path
    images: Path | None = None
    format: str = "auto"
    options: ReadOptions = WITH_MASKS
    model: str = DEFAULT
    steps: int | None = None
    seed: int = 0

    def __post_init__(self):
        refuse_link(self.unfinished)

    @property
    def unfinished(self) -> Path:
        """The folder of the work that is not finished."""
        return self.out.with_name(self.out.name + ".unfinished")

    def asked(self, data: "OwnData", lpg: LPGModel, **more: Any) -> dict:
        """What the result depends on, for `metrics.json`.

        Of a folder or file of this machine that is its name, and a hash: those of every run have the same names.

        Args:
            lpg: `model`, loaded.
            more: further settings of the command.
        """
        values = {"model": self.model, "steps": self.steps, "seed": self.seed, "data_sha256": data.digest} | more
        places = {k: Path(v) for k, v in values.items() if isinstance(v, str) and Path(v).exists()}
        names = {k: place.name for k, place in places.items()}
        digests = {f"{k}_sha256": _files_digest(place) for k, place in places.items() if k in more}
        return values | names | digests | {_MODEL_DIGEST: weights_digest(lpg)}

    def finished(self, key: str, asked: dict) -> dict | None:
        """`key` of `metrics.json` in `out` if the work is done; None: it begins or resumes.

        Raises:
            FileExistsError: `out` holds something else.
            ValueError: the unfinished work is on something else.
        """
        if self.out.is_dir() and any(self.out.iterdir()):
            done = read_json(self.out / "metrics.json").get(key, {})
            if differing := _differing(asked, done):
                what = f"what was made with {differing}" if done else "something else"
                raise FileExistsError(
                    f"{self.out} exists and holds {what}. Name another folder with --out, or remove it."
                )
            return done
        begun = read_json(self.unfinished / "job.json")
        if begun and (differing := _differing(asked, begun)):
            raise ValueError(
                f"{self.unfinished} holds unfinished work with {differing}. Give the same ones to resume it, another "
                "--out, or delete the folder."
            )
        return None

    def begin(self, asked: dict) -> None:
        """Claims the folder of the work, now that the command is known to fit."""
        write_json(self.unfinished / "job.json", asked)

    @contextmanager
    def claiming(self) -> Iterator[None]:
        """Around what comes before `begin`: a command that is refused leaves no folder."""
        try:
            yield
        finally:
            if not (self.unfinished / "job.json").is_file():
                shutil.rmtree(self.unfinished, ignore_errors=True)

    def read(self, log: Callable[[str], None]) -> "OwnData":
        """The images and their objects, whatever the format; what is skipped is reported."""
        with TemporaryDirectory() as folder:
            path = Path(folder, "data.json")
            options = replace(self.options, masks=True, bands=None, stretch=None)
            read = convert_labels(
                self.annotations, path, "coco", images=self.images, options=options, format=self.format
            )
            content = json.loads(path.read_text(encoding="utf-8"))
        if read.report.needs_attention:
            log(read.report.summary())
        options = replace(self.options, masks=False)
        source = open_source(self.annotations, self.images, options, format=self.format, report=Report())
        images = source.image_folder or _placed_images(source, self.unfinished / "images")
        read = {name: value for name, value in options.changed.items() if name in ("bands", "stretch")}
        return OwnData(content, images, read)


def _differing(asked: dict, other: dict) -> str:
    """How other work differs from what is asked for, in words; empty: it does not."""
    names = [name for name in asked if other.get(name) != asked[name]]
    in_words = {
        "data_sha256": "other data",
        _MODEL_DIGEST: "other weights of the model",
        "segmenter_sha256": "other files of the segmenter",
        "weights_sha256": "another file of weights",
    }
    if _MODEL_DIGEST not in other:  # work of an earlier version
        in_words[_MODEL_DIGEST] = "unknown weights of the model, which cannot be resumed"
    options = [f"{name}={other.get(name)} (not {asked[name]})" for name in names if name not in in_words]
    return " and ".join([text for name, text in in_words.items() if name in names] + options)


def _files_digest(place: Path) -> str:
    """A hash of a file, or of the config and the weights in a folder."""
    digest = hashlib.sha256()
    files = [path for path in sorted(place.iterdir()) if path.suffix in _MODEL_FILES] if place.is_dir() else [place]
    for path in files:
        digest.update(os.fsencode(path.name))
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _placed_images(source: Source, folder: Path) -> str:
    """The images of a dataset, whose rows hold them, as files."""
    for index, name in enumerate(source.file_names):
        record = source.record(index, Report())
        if record is not None and not (folder / name).is_file():
            source.place_image(record, folder / name, "copy")
    return str(folder)


@dataclass(frozen=True)
class OwnData:
    """Images with objects.

    Attributes:
        content: of a COCO file.
        images: folder of the images.
        read: the fields of `ReadOptions` that say how the images become RGB.
    """

    content: dict
    images: str
    read: dict = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """A hash of the annotations, and of how the images are read."""
        read = {"read": self.read} if self.read else {}
        return hashlib.sha256(json_text(self.content | read).encode("utf-8")).hexdigest()

    @property
    def num_images(self) -> int:
        return len(self.content["images"])

    @property
    def num_boxes(self) -> int:
        """Without crowd regions."""
        return sum(not item.get("iscrowd") for item in self.content["annotations"])

    def part(self, indices: list[int]) -> "OwnData":
        """Some of the images, with their objects."""
        images = [self.content["images"][index] for index in indices]
        ids = {image["id"] for image in images}
        annotations = [item for item in self.content["annotations"] if item["image_id"] in ids]
        return replace(self, content=self.content | {"images": images, "annotations": annotations})

    def write(self, folder: Path, name: str) -> str:
        """Writes the COCO file `folder/name.json`."""
        path = folder / f"{name}.json"
        write_atomically(path, json_text(self.content).encode("utf-8"))
        return str(path)
