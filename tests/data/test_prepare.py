"""`lpg-hf prepare-data` on made archives with the official inner layout."""

import dataclasses
import hashlib
import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lpg_hf.cli import main
from lpg_hf.data._prepare import PrepareOptions, archives, prepare
from lpg_hf.data._prepare.voc_aug import _smaller_lists
from lpg_hf.data.load import load_boxes
from lpg_hf.data.sources import evenly
from lpg_hf.label_maps import read_label_map


scipy_io = pytest.importorskip("scipy.io")

HEIGHT, WIDTH = 48, 80
VOC_TRAIN, VOC_VAL = ["2007_000032", "2007_000039"], ["2007_000033"]
SBD_TRAIN, SBD_VAL = ["2008_000002", "2007_000032"], ["2008_000003", "2007_000033"]  # the latter is in VOC's val
TRAIN_AUG = ["2007_000032", "2007_000039", "2008_000002", "2008_000003"]
CROWD = {
    "size": [HEIGHT, WIDTH],
    "counts": [0, HEIGHT * 40, HEIGHT * 40],
}  # the left half, as the official file states it


def jpeg(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), value, np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def png(mask: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(mask)
    image.putpalette(list(range(256)) * 3)
    image.save(buffer, "PNG")
    return buffer.getvalue()


def mat(mask: np.ndarray) -> bytes:
    """A file of SBD's folder `cls`: a struct GTcls of Boundaries, Segmentation and CategoriesPresent."""
    buffer = io.BytesIO()
    boundaries = np.empty((20, 1), dtype=object)
    for i in range(20):
        boundaries[i, 0] = np.zeros((2, 2))
    fields = {"Boundaries": boundaries, "Segmentation": mask, "CategoriesPresent": np.unique(mask[mask > 0])}
    scipy_io.savemat(buffer, {"GTcls": fields}, do_compression=True)
    return buffer.getvalue()


def voc_xml(name: str) -> bytes:
    return (
        f"<annotation><filename>{name}.jpg</filename><size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
        "<object><name>cat</name><truncated>1</truncated><difficult>0</difficult><bndbox><xmin>21</xmin><ymin>13</ymin>"
        "<xmax>60</xmax><ymax>36</ymax></bndbox></object></annotation>"
    ).encode()


def class_mask(label: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[12:36, 20:60] = label
    return mask


def instances(ids: list[int]) -> bytes:
    annotations = []
    for image_id in ids:
        common = {"image_id": image_id, "bbox": [20.0, 12.0, 40.0, 24.0], "area": 960.0}
        polygon = [[20.0, 12.0, 60.0, 12.0, 60.0, 36.0, 20.0, 36.0]]
        kite = {"category_id": 38, "iscrowd": 0, "segmentation": polygon}
        annotations.append({"id": 10 * image_id} | common | kite)
        annotations.append({"id": 10 * image_id + 1, "category_id": 1, "iscrowd": 1, "segmentation": CROWD} | common)
    annotations = [item for item in annotations if item["image_id"] != 5 or item["category_id"] == 1]
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "height": HEIGHT, "width": WIDTH, "license": 1} for i in ids]
    categories = [{"id": 1, "name": "person"}, {"id": 38, "name": "kite"}]
    content = {"info": {}, "licenses": [{"id": 1, "name": "CC"}], "images": images, "annotations": annotations}
    return json.dumps(content | {"categories": categories}).encode()


def write_zip(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def write_tar(path: Path, files: dict[str, bytes], mode: str) -> None:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """All archives; train2017 has five images, of which number 5 holds no class outside VOC."""
    folder = tmp_path / "archives"
    folder.mkdir()
    for split, ids in (("train2017", [1, 2, 3, 4, 5]), ("val2017", [7])):
        write_zip(folder / f"{split}.zip", {f"{split}/": b""} | {f"{split}/{i:012d}.jpg": jpeg(i) for i in ids})
    write_zip(
        folder / "annotations_trainval2017.zip",
        {
            "annotations/instances_train2017.json": instances([1, 2, 3, 4, 5]),
            "annotations/instances_val2017.json": instances([7]),
            "annotations/captions_train2017.json": b"{}",
        },
    )
    inner = "VOCdevkit/VOC2012/"
    names = sorted({*TRAIN_AUG, *VOC_VAL})
    files = {f"{inner}Annotations/{name}.xml": voc_xml(name) for name in [*names, "2012_000001"]}
    files |= {f"{inner}ImageSets/Segmentation/train.txt": "".join(f"{n}\n" for n in VOC_TRAIN).encode()}
    files |= {f"{inner}ImageSets/Segmentation/val.txt": "".join(f"{n}\n" for n in VOC_VAL).encode()}
    files |= {f"{inner}JPEGImages/{name}.jpg": jpeg(9) for name in [*names, "2012_000001"]}
    files |= {f"{inner}SegmentationClass/{name}.png": png(class_mask(8)) for name in [*VOC_TRAIN, *VOC_VAL]}
    files |= {f"{inner}SegmentationObject/{name}.png": png(class_mask(1)) for name in VOC_TRAIN}
    write_tar(folder / "VOCtrainval_11-May-2012.tar", files, "w")
    inner = "benchmark_RELEASE/dataset/"
    files = {f"{inner}cls/{name}.mat": mat(class_mask(15)) for name in [*SBD_TRAIN, *SBD_VAL]}
    files |= {f"{inner}train.txt": "\n".join(SBD_TRAIN).encode(), f"{inner}val.txt": "\n".join(SBD_VAL).encode()}
    write_tar(folder / "benchmark.tgz", files, "w:gz")
    return folder


class Run:
    """Calls `prepare` on the fixture's archives and keeps what it said."""

    def __init__(self, folder: Path):
        self.root, self.archives, self.said = folder.parent / "data", folder, []

    def __call__(self, what: str, **options) -> str:
        self.said.clear()
        given = {"root": self.root, "archives": self.archives, "check": False} | options
        prepare(what, PrepareOptions(log=self.said.append, **given))
        return "\n".join(self.said)

    def names(self, folder: str) -> list[str]:
        return sorted(path.name for path in (self.root / folder).iterdir())


@pytest.fixture
def run(folder: Path) -> Run:
    return Run(folder)


def test_coco_is_written_as_published(run: Run):
    run("coco60")
    assert run.names("coco") == ["annotations", "prepared.json", "train2017", "val2017"]
    assert run.names("coco/annotations") == ["instances_train2017.json", "instances_val2017.json"]
    assert (run.root / "coco/annotations/instances_train2017.json").read_bytes() == instances([1, 2, 3, 4, 5])
    assert (run.root / "coco/train2017/000000000003.jpg").read_bytes() == jpeg(3)
    rows = load_boxes(
        "coco",
        annotations=run.root / "coco/annotations/instances_train2017.json",
        images=run.root / "coco/train2017",
        classes="nonvoc60",
        masks=True,
    )
    assert len(rows) == 4 and rows[0]["objects"]["bbox"] == [[20, 12, 40, 24]]


def test_a_coco_subset_scales_images_boxes_and_masks_together(run: Run):
    run("coco60", limit=2, long_side=40)
    content = json.loads((run.root / "coco/annotations/instances_train2017.json").read_text())
    assert [image["id"] for image in content["images"]] == [1, 3]  # evenly over those with a class outside VOC
    assert run.names("coco/train2017") == ["000000000001.jpg", "000000000003.jpg"]
    assert {(image["height"], image["width"]) for image in content["images"]} == {(24, 40)}
    assert Image.open(run.root / "coco/train2017/000000000001.jpg").size == (40, 24)
    kite, crowd = content["annotations"][:2]
    assert kite["bbox"] == [10, 6, 20, 12] and kite["area"] == 240
    assert kite["segmentation"] == [[10, 6, 30, 6, 30, 18, 10, 18]]
    from pycocotools import mask as coco_mask

    left = coco_mask.decode(crowd["segmentation"])
    assert left.shape == (24, 40) and left[:, :20].all() and not left[:, 20:].any()


def test_voc_gets_the_masks_of_sbd_and_keeps_its_own(run: Run):
    said = run("voc-aug")
    lists = {path.stem: path.read_text().split() for path in (run.root / "voc/ImageSets/Segmentation").iterdir()}
    assert lists == {"train": VOC_TRAIN, "val": VOC_VAL, "train_aug": TRAIN_AUG}
    assert "train_aug: 4 names = SBD's train and val and VOC's train, without VOC's val" in said
    assert run.names("voc/SegmentationClass") == sorted(f"{name}.png" for name in [*VOC_TRAIN, *VOC_VAL])
    assert run.names("voc/SegmentationClassAug") == sorted(f"{name}.png" for name in [*TRAIN_AUG, *VOC_VAL])
    assert len(run.names("voc/JPEGImages")) == 6 and not (run.root / "voc/SegmentationObject").exists()
    for name in [*TRAIN_AUG, *VOC_VAL]:
        label = 8 if name in VOC_TRAIN + VOC_VAL else 15
        assert np.array_equal(read_label_map(run.root / f"voc/SegmentationClassAug/{name}.png"), class_mask(label))
    rows = load_boxes("voc", root=run.root / "voc", split="train_aug", masks=True)
    assert [np.asarray(row["mask"]).max() for row in rows] == [8, 8, 15, 15]
    shutil.rmtree(run.root / "voc/SegmentationClassAug")
    with pytest.raises(FileNotFoundError, match="2 of 4 class masks are missing"):
        load_boxes("voc", root=run.root / "voc", split="train_aug", masks=True)


def test_a_voc_subset_scales_images_boxes_and_masks_together(run: Run):
    run("voc-aug", limit=2, long_side=40)
    train_aug = (run.root / "voc/ImageSets/Segmentation/train_aug.txt").read_text().split()
    train = (run.root / "voc/ImageSets/Segmentation/train.txt").read_text().split()
    assert len(train_aug) == 2 and set(train) < set(train_aug)
    assert run.names("voc/JPEGImages") == sorted(f"{name}.jpg" for name in [*train_aug, *VOC_VAL])
    mask = read_label_map(run.root / f"voc/SegmentationClassAug/{train_aug[0]}.png")
    assert mask.shape == (24, 40) and (mask[6:18, 10:30] > 0).all() and (mask > 0).sum() == 240
    row = load_boxes("voc", root=run.root / "voc", split="train")[0]
    assert row["objects"]["bbox"] == [[10, 6, 20, 12]] and row["image"].size == (40, 24)


def test_a_subset_is_the_images_that_a_limit_of_other_commands_takes(folder: Path, run: Run):
    names = [f"2007_{number:06d}" for number in range(10)]
    chosen = _smaller_lists({"train": names[5:], "val": names, "train_aug": names}, 4)
    assert chosen["val"] == list(evenly(names, 4)) and chosen["train"] == list(evenly(names[5:], 2))
    assert chosen["train_aug"] == sorted([*evenly(names[5:], 2), *evenly(names[:5], 2)])
    run("coco60", limit=3)
    content = json.loads((run.root / "coco/annotations/instances_train2017.json").read_text())
    assert [image["id"] for image in content["images"]] == list(evenly([1, 2, 3, 4], 3))


def test_a_given_list_is_taken_and_must_not_hold_val(run: Run):
    (run.archives / "train_aug.txt").write_text(
        "/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png\n2008_000003\n"
    )
    assert "2 names of train_aug.txt" in run("voc-aug")
    assert (run.root / "voc/ImageSets/Segmentation/train_aug.txt").read_text().split() == [
        "2007_000032",
        "2008_000003",
    ]
    (run.archives / "train_aug.txt").write_text("2007_000033\n")
    with pytest.raises(ValueError, match="1 images of VOC's val .2007_000033"):
        run("voc-aug", root=run.root / "other")


def test_names_without_an_image_or_mask_are_skipped_and_said(run: Run):
    (run.archives / "train_aug.txt").write_text("2007_000032\n2008_000099\n")
    said = run("voc-aug")
    assert "train_aug: skipped 1 names: 2008_000099 (no JPEGImages, no Annotations, no SegmentationClassAug)" in said
    assert (run.root / "voc/ImageSets/Segmentation/train_aug.txt").read_text() == "2007_000032\n"


def test_finished_pieces_are_skipped_and_lost_files_come_again(run: Run):
    run("coco60")
    kept = run.root / "coco/train2017/000000000001.jpg"
    before = kept.stat().st_mtime_ns
    said = run("coco60")
    assert said.count("skipped") == 3 and "train2017: skipped, its 5 files are finished" in said
    (run.root / "coco/train2017/000000000002.jpg").unlink()
    said = run("coco60")
    assert said.count("skipped") == 2 and "train2017: 5 files" in said
    assert kept.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="prepared with .*'limit': None.* Pass the same options"):
        run("coco60", limit=2)


def test_an_interrupted_run_goes_on(run: Run, monkeypatch: pytest.MonkeyPatch):
    written, write = [], archives.write_entry

    def interrupted(entry, folder, name):
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(name)
        return write(entry, folder, name)

    monkeypatch.setattr("lpg_hf.data._prepare.coco60.write_entry", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("coco60")
    assert len(run.names("coco/train2017")) == 2
    monkeypatch.undo()
    said = run("coco60")
    assert "annotations: skipped" in said and len(run.names("coco/train2017")) == 5


def test_missing_archives_are_named_with_page_and_place(run: Run):
    (run.archives / "train2017.zip").unlink()
    with pytest.raises(FileNotFoundError) as error:
        run("coco60")
    assert "train2017.zip  from https://cocodataset.org" in str(error.value) and str(run.archives) in str(error.value)
    assert "val2017.zip" not in str(error.value) and not run.root.exists()


def test_size_and_checksum_are_compared_with_what_is_published(run: Run, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(
        ValueError, match=r"annotations_trainval2017.zip has .* bytes, but .*coco.txt states 252,907,541"
    ):
        run("coco60", check=True)
    tar = (run.archives / archives.VOC.name).read_bytes()
    with pytest.raises(
        ValueError, match="has the md5 .* but torchvision.datasets states 6cd6e144f989b92b3379bac3b3de84fd"
    ):
        run("voc-aug", check=True)
    digests = {
        "VOC": hashlib.md5(tar).hexdigest(),
        "SBD": hashlib.md5((run.archives / "benchmark.tgz").read_bytes()).hexdigest(),
    }
    for name, digest in digests.items():
        published = dataclasses.replace(getattr(archives, name), digest=f"md5:{digest}")
        monkeypatch.setattr(archives, name, published)
    said = run("voc-aug", check=True)
    assert f"md5 {digests['VOC']} as torchvision.datasets states" in said
    assert "warning: train_aug has 4 names, but the published list has 10,582" in said
    assert "md5" not in run("voc-aug", check=True)  # an archive is read once


@pytest.mark.parametrize("name", ["train2017/../../evil.jpg", "/etc/evil.jpg", "C:/evil.jpg", "..\\evil.jpg"])
def test_no_zip_entry_leaves_the_root(run: Run, name: str):
    write_zip(run.archives / "train2017.zip", {"train2017/000000000001.jpg": jpeg(1), name: b"evil"})
    with pytest.raises(ValueError, match="train2017.zip holds the entry .*evil.jpg', which"):
        run("coco60")
    assert not list(run.root.parent.rglob("evil*")) and not (run.root / "coco/train2017").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_in_a_tar_are_refused_by_name(run: Run, kind: bytes):
    with tarfile.open(run.archives / archives.VOC.name, "a") as archive:
        member = tarfile.TarInfo("VOCdevkit/VOC2012/JPEGImages/evil.jpg")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(
        ValueError, match="the entry 'VOCdevkit/VOC2012/JPEGImages/evil.jpg', which is a link or device"
    ):
        run("voc-aug")
    assert not (run.root / "voc/JPEGImages/evil.jpg").is_symlink()


def test_a_link_in_a_zip_and_one_in_the_root_are_refused(run: Run, tmp_path: Path):
    link = zipfile.ZipInfo("val2017/evil.jpg")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(run.archives / "val2017.zip", "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(ValueError, match="val2017/evil.jpg', which is a link"):
        run("coco60")
    outside = tmp_path / "outside"
    outside.mkdir()
    (run.root / "coco").mkdir(exist_ok=True)
    other = run.root.parent / "linked"
    (other / "voc").mkdir(parents=True)
    (other / "voc/JPEGImages").symlink_to(outside)
    run("voc-aug", root=other)  # a folder that the user linked to another disk is a folder


def test_damaged_archives_are_named(run: Run):
    for name, what in (("train2017.zip", "coco60"), ("benchmark.tgz", "voc-aug")):
        path = run.archives / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ValueError, match=f"{name} cannot be read"):
            run(what)


def test_a_damaged_mask_of_sbd_names_its_entry(run: Run):
    inner = "benchmark_RELEASE/dataset/"
    files = {f"{inner}train.txt": b"2008_000002\n", f"{inner}val.txt": b"2008_000003\n"}
    write_tar(run.archives / "benchmark.tgz", files | {f"{inner}cls/2008_000002.mat": b"no mat"}, "w:gz")
    with pytest.raises(ValueError, match="2008_000002.mat cannot be used: no GTcls.Segmentation"):
        run("voc-aug")


def test_weights_become_safetensors_and_execute_nothing(run: Run):
    with pytest.raises(FileNotFoundError, match="vgg16-397923af.pth  from https://download.pytorch.org"):
        run("weights")
    tensors = {"features.0.weight": torch.randn(2, 3, 3, 3), "features.0.bias": torch.arange(6.0).view(2, 3).t()}
    torch.save(tensors, run.archives / "vgg16-397923af.pth")
    said = run("weights")
    assert "resnet101.safetensors: skipped" in said and "vgg16.safetensors: 2 tensors" in said
    loaded = load_file(run.root / "weights/vgg16.safetensors")
    assert all(torch.equal(loaded[name], value) for name, value in tensors.items())
    assert "vgg16.safetensors: skipped, it is there" in run("weights")
    torch.save({"model": Path("pickled")}, run.archives / "resnet101-63fe2227.pth")
    with pytest.raises(ValueError, match="resnet101-63fe2227.pth cannot be read .*nothing in them was executed"):
        run("weights")
    with pytest.raises(ValueError, match="has the sha256 .* but the file's own name states 63fe2227"):
        run("weights", check=True)


def test_unknown_data_and_options_are_one_line(run: Run):
    with pytest.raises(ValueError, match="unknown data 'ade20k'. Choose one of coco60, voc-aug, weights"):
        run("ade20k")
    with pytest.raises(ValueError, match="limit=0 must be at least 1"):
        run("coco60", limit=0)


def test_the_command_prepares_and_says_what_is_missing(run: Run, capsys: pytest.CaptureFixture[str]):
    def command(*arguments: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as end:
            main(["prepare-data", *arguments, "--out", str(run.root)])
        return end.value.code, *capsys.readouterr()

    given = ("--archives", str(run.archives))
    code, out, _ = command("voc-aug", *given, "--limit", "2", "--long-side", "40", "--no-check")
    assert code == 0 and "SegmentationClassAug: 3 files" in out and "not checked (--no-check)" in out
    code, _, err = command("coco60")
    assert code == 2 and "3 of 3 archives are not in" in err and "data/archives" in err
    code, _, err = command("ade20k", *given)
    assert code == 2 and "unknown data 'ade20k'" in err
