"""Every command that writes, on data that takes it a moment, and what one run of it leaves."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

from hub_runs import finish_run, write_small_run
from hub_server import HubServer

from lpg_hf.label_maps import read_label_map
from lpg_hf.masks.writer import BLOCKS


ROOT = Path(__file__).parents[2]
PRELOADED = (
    "lpg_hf.cli",
    "lpg_hf.convert_official",
    "lpg_hf.data.check",
    "lpg_hf.data.convert",
    "lpg_hf.data.export",
    "lpg_hf.data._prepare",
    "lpg_hf.data.sources",
    "lpg_hf.evaluation.compare",
    "lpg_hf.evaluation.evaluate",
    "lpg_hf.export_onnx",
    "lpg_hf.generators._box",
    "lpg_hf.hub",
    "lpg_hf.masks.writer",
    "lpg_hf.training.finetune",
    "lpg_hf.training.segment",
    "lpg_hf.training._train_on_boxes",
)
ROUNDS = int(os.environ.get("LPG_HF_CRASH_ROUNDS", "1"))
# Of the json files: what time and machine decide.
MEASURED = {
    "seconds",
    "seconds_per_image",
    "boxes_per_second",
    "peak_memory_mb",
    "peak_gpu_memory_mb",
    "date",
    "checked",
}


@dataclass
class Data:
    """What the commands read: a synthetic dataset, archives, checkpoints, and a Hub."""

    folder: Path
    hub: HubServer

    @property
    def coco(self) -> list[str]:
        return [str(self.folder / "data/aux/annotations.json"), "--images", str(self.folder / "data/aux/images")]

    @property
    def masks(self) -> str:
        return str(self.folder / "data/target/SegmentationClass")


@dataclass(frozen=True)
class Command:
    """A command that writes.

    Attributes:
        name: of the test.
        arguments: its words, from the data and the place of its OUT.
        out: name of OUT.
        says: what a repeated finished command says; None: it does the work again.
        is_slow: it takes seconds.
        needs: packages that not every environment has.
        may_wait: processes that write the same OUT wait for each other instead of an error.
    """

    name: str
    arguments: Callable[[Data, str], list[str]]
    out: str = "out"
    says: str | None = None
    is_slow: bool = False
    may_wait: bool = False
    needs: tuple[str, ...] = ()

    @property
    def pushes(self) -> bool:
        """Whether it writes to the Hub, not to a place here."""
        return self.name.startswith("push-")


def _prepare(what: str) -> Callable[[Data, str], list[str]]:
    return lambda data, out: [
        *("prepare-data", what, "--out", out, "--archives", str(data.folder / "archives"), "--no-check"),
    ]


OUTPUTS = "png,coco,coco-polygons,coco-results,yolo,labelme,instances-png,crops"
DONE = "finished already"
COMMANDS = [
    Command(
        "masks",
        lambda d, out: ["masks", *d.coco, "--out", out, "--generator", "box", "--write", OUTPUTS, "--overlay"],
        says=DONE,
    ),
    Command("to-coco", lambda d, out: ["convert-labels", *d.coco, out, "--to", "coco"], "out.json", DONE),
    Command("to-voc", lambda d, out: ["convert-labels", *d.coco, out, "--to", "voc"], says=DONE),
    Command("to-yolo", lambda d, out: ["convert-labels", *d.coco, out, "--to", "yolo"], says=DONE),
    Command(
        "export-data",
        lambda d, out: [
            *("export-data", out, "--format", "coco", "--masks", "--embed-images"),
            *("--annotations", *d.coco),
        ],
        says="nothing was written",
    ),
    Command("check", lambda d, out: ["check", *d.coco, "--masks", "--json", out], "out.json", may_wait=True),
    Command("eval", lambda d, out: ["eval", d.masks, d.masks, "--json", out], "out.json", may_wait=True),
    Command("prepare-weights", _prepare("weights"), says="skipped, it is there"),
    Command("prepare-coco60", _prepare("coco60"), says="files are finished"),
    Command("prepare-voc-aug", _prepare("voc-aug"), says="files are finished", needs=("scipy",)),
    Command(
        "convert-checkpoint",
        lambda d, out: ["convert-checkpoint", str(d.folder / "official.pth"), out, "--kind", "lpg"],
        says="nothing was written",
    ),
    Command(
        "to-official",
        lambda d, out: ["convert-checkpoint", str(d.folder / "ours"), out, "--to-official"],
        "out.safetensors",
    ),
    Command("push-run", lambda d, out: ["push-run", str(d.folder / "run"), "--org", Path(out).name], says="unchanged"),
    Command(
        "push-data",
        lambda d, out: [
            *("push-data", f"{Path(out).name}/data", "--format", "voc", "--root", str(d.folder / "data/target")),
            *("--split", "train", "--masks"),
        ],
        says="unchanged",
    ),
    Command("pull-run", lambda d, out: ["pull-run", "org/lpg", "--out", out], says="org/lpg-stage1"),
    Command(
        "segment",
        lambda d, out: [
            *("segment", str(d.folder / "segmenter"), str(d.folder / "data/aux/images"), "--out", out),
            *("--device", "cpu", "--dtype", "float32"),
        ],
    ),
    Command(
        "finetune",
        lambda d, out: [
            *("finetune", *d.coco, "--out", out, "--model", str(d.folder / "lpg"), "--steps", "3"),
        ],
        says="was finished before",
        is_slow=True,
    ),
    Command(
        "train",
        lambda d, out: ["train", str(d.folder / "data/target"), "--split", "train", "--out", out, "--steps", "2"],
        says="was finished before",
        is_slow=True,
    ),
    Command("compare", lambda d, out: ["compare", *d.coco, "--truth", d.coco[0], "--out", out], is_slow=True),
    Command(
        "compare-json",
        lambda d, out: ["compare", *d.coco, "--truth", d.coco[0], "--generators", "box", "--json", out],
        "out.json",
        is_slow=True,
        may_wait=True,
    ),
    Command(
        "export-onnx",
        lambda d, out: ["export-onnx", str(d.folder / "lpg"), "--out", out],
        "out.onnx",
        is_slow=True,
        needs=("onnx", "onnxruntime"),
    ),
]
COMMANDS = [command for command in COMMANDS if all(map(find_spec, command.needs))]
FAST = [command for command in COMMANDS if not command.is_slow]


class Driver:
    """Starts commands from `driver.py`."""

    def __init__(self, environment: dict[str, str]):
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("driver.py")), *PRELOADED],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        assert self.process.stdout is not None and json.loads(self.process.stdout.readline()) == {"ready": True}

    def ask(self, **request) -> dict:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@dataclass
class Place:
    """A fresh folder for one round of a command: OUT is in `work`, so that anything beside it is seen."""

    driver: Driver
    data: Data
    command: Command
    root: Path
    kills: list[int] = field(default_factory=list)

    def __post_init__(self):
        for name in ("work", "tmp"):
            (self.root / name).mkdir(parents=True, exist_ok=True)

    @property
    def out(self) -> Path:
        return self.root / "work" / (self.org if self.command.pushes else self.command.out)

    @property
    def org(self) -> str:
        """Of a push: one of its own for each round, of one length."""
        return f"org{abs(hash(self.root)) % 10**6:06d}"

    @property
    def log(self) -> Path:
        return self.root / "log"

    def start(self, **fault) -> int:
        """The process of the command."""
        arguments = self.command.arguments(self.data, str(self.out))
        return self.driver.ask(arguments=arguments, log=str(self.log), root=str(self.root), fault=fault)["pid"]

    def wait(self, pid: int, seconds: float = 280) -> int | None:
        return self.driver.ask(wait=pid, seconds=seconds)["code"]

    def run(self, **fault) -> int:
        """The exit code; negative: ended by that signal."""
        pid = self.start(**fault)
        code = self.wait(pid)
        if code is None:
            os.kill(pid, signal.SIGKILL)
            self.wait(pid)
        assert code is not None, f"the command hangs\n{self.said()}"
        return code

    def run_and_kill(self, seconds: float) -> int:
        """Ends the process from outside, unless it is faster."""
        pid = self.start()
        code = self.wait(pid, seconds)
        if code is None:
            os.kill(pid, signal.SIGKILL)
            code = self.wait(pid)
        assert code is not None
        return code

    def said(self) -> str:
        """What the command printed since the last call."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        self.log.unlink(missing_ok=True)
        return text

    def content(self) -> dict[str, bytes]:
        """Every file of `work`, or of the repositories that a push made, without what time decides."""
        if self.command.pushes:
            pushed = {key: files for key, files in self.data.hub.content().items() if key[1].startswith(self.org)}
            return {
                f"{name.removeprefix(self.org)}/{path}": blob.replace(self.org.encode(), b"ORG")
                for (_, name), files in pushed.items()
                for path, blob in files.items()
            }
        files = (path for path in sorted((self.root / "work").rglob("*")) if not path.is_dir())
        return {str(path.relative_to(self.root / "work")): self._settled(path) for path in files}

    def _settled(self, path: Path) -> bytes:
        content = path.read_bytes()
        if path.suffix == ".json":
            # In a block file of masks, a hash of the line stands below it.
            text = content.splitlines()[0] if path.parent.name == BLOCKS else content
            content = json.dumps(_without_measured(json.loads(text))).encode()
        if path.suffix == ".md":  # tables with seconds and megabytes
            content = re.sub(rb"[\d.]+ *(s|MB|minutes|seconds)\b|\|[ \d.]+(?=\|)", b"", content)
        return content.replace(str(self.root).encode(), b"ROOT")


def _without_measured(value):
    if isinstance(value, dict):
        return {key: _without_measured(item) for key, item in value.items() if key not in MEASURED}
    return [_without_measured(item) for item in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Undisturbed:
    """One run of a command that nothing disturbed: exit code, content, file operations and seconds."""

    code: int
    content: dict[str, bytes]
    operations: int
    seconds: float


def kill_and_finish(place: Place, expected: Undisturbed, chance: random.Random, deaths: int = 2) -> None:
    """Kills up to `deaths` starts at random moments; the next start must end as if nothing had happened."""
    for _ in range(deaths):
        if chance.random() < 0.6:
            code = place.run(signal=signal.SIGKILL, at=chance.randint(1, max(expected.operations, 1)))
        else:
            code = place.run_and_kill(chance.uniform(0, expected.seconds))
        assert code in (-signal.SIGKILL, expected.code), (code, place.said())
        if code < 0:
            place.kills.append(code)
    assert_finishes(place, expected)


def assert_finishes(place: Place, expected: Undisturbed) -> None:
    code = place.run()
    assert code == expected.code, (code, place.said())
    assert_same(place.content(), expected.content)


def assert_same(found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    """Names first: bytes of a long list say little."""
    assert sorted(found) == sorted(expected), sorted(set(found) ^ set(expected))
    differing = [name for name in found if found[name] != expected[name]]
    assert not differing, differing


def assert_one_line(text: str) -> str:
    """The message of a command that failed; no traceback, and no raw number of the system."""
    lines = re.findall("lpg-hf: .*", text)
    assert len(lines) == 1 and "Traceback" not in text, text[-3000:]
    assert "Errno" not in lines[0] and "errno" not in lines[0], lines[0]
    return lines[0]


def make_data(folder: Path, hub: HubServer) -> Data:
    """Writes all that the commands read."""
    import torch
    from official_networks import OfficialLPG, randomise

    from lpg_hf.convert_official import convert
    from lpg_hf.data._prepare import archives
    from lpg_hf.data.synthetic import _write_synthetic_dataset

    _write_synthetic_dataset(folder / "data", num_aux=20, num_target=10, num_eval=4, size=(64, 64), seed=0)
    torch.save(
        randomise(OfficialLPG(4, stem=4, sizes=(6, 6, 8, 8, 8, 10), depths=(1,) * 6, neck=12, head=7)).state_dict(),
        folder / "official.pth",
    )
    convert(folder / "official.pth", folder / "ours", "lpg")
    (folder / "archives").mkdir()
    torch.manual_seed(0)
    for archive in (archives.VGG16, archives.RESNET101):
        torch.save({f"weight{n}": torch.rand(200, 200) for n in range(4)}, folder / "archives" / archive.name)
    images = sorted((folder / "data/aux/images").iterdir())
    _write_coco_archives(folder / "archives", images)
    if find_spec("scipy"):
        _write_voc_archives(folder / "archives", folder / "data/target")
    (folder / "tmp").mkdir()
    finish_run(write_small_run(folder / "run", num_stages=1), num_stages=1)
    return Data(folder, hub)


def _write_coco_archives(folder: Path, images: list[Path]) -> None:
    """Archives with COCO's inner layout and these images."""
    from lpg_hf.data._prepare import archives

    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "person"}]}
    with zipfile.ZipFile(folder / archives.COCO_ANNOTATIONS.name, "w") as archive:
        for split in ("train2017", "val2017"):
            archive.writestr(f"annotations/instances_{split}.json", json.dumps(content))
    for archive_of, chosen in ((archives.COCO_TRAIN, images[:-4]), (archives.COCO_VAL, images[-4:])):
        with zipfile.ZipFile(folder / archive_of.name, "w") as archive:
            for image in chosen:
                archive.write(image, f"{archive_of.name.removesuffix('.zip')}/{image.name}")


def _write_voc_archives(folder: Path, voc: Path) -> None:
    """VOC's archive of a VOC folder, and SBD's with the masks of two of its training images."""
    import scipy.io

    from lpg_hf.data._prepare import archives
    from lpg_hf.data._prepare.voc_aug import LISTS, SBD_INNER, VOC_INNER

    names = {split: (voc / LISTS / f"{split}.txt").read_text().split() for split in ("train", "val")}
    paths = sorted(voc.rglob("*.*"))
    of_voc = {f"{VOC_INNER}{path.relative_to(voc).as_posix()}": path.read_bytes() for path in paths}
    of_voc[f"{VOC_INNER}{LISTS}/train.txt"] = "\n".join(names["train"][2:]).encode()
    of_sbd = {f"{SBD_INNER}train.txt": "\n".join(names["train"][:2]).encode(), f"{SBD_INNER}val.txt": b""}
    for name in names["train"][:2]:
        mat = BytesIO()
        scipy.io.savemat(mat, {"GTcls": {"Segmentation": read_label_map(voc / f"SegmentationClass/{name}.png")}})
        of_sbd[f"{SBD_INNER}cls/{name}.mat"] = mat.getvalue()
    for archive_of, mode, files in ((archives.VOC, "w", of_voc), (archives.SBD, "w:gz", of_sbd)):
        with tarfile.open(folder / archive_of.name, mode) as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, BytesIO(content))


def free(folder: Path) -> None:
    """Deletes a round's folder, which many rounds would fill the disk with."""
    shutil.rmtree(folder, ignore_errors=True)
