"""`lpg-hf train` and `lpg-hf segment`: from boxes to a segmenter that transformers loads, and to its label maps."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from tiny_run import run_script
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    MobileNetV2Config,
    MobileNetV2ForSemanticSegmentation,
    SegformerConfig,
)
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

from lpg_hf import LPGConfig, LPGImageProcessor, LPGModel
from lpg_hf._bands import Rendering
from lpg_hf._class_lists import read_class_list
from lpg_hf._files import write_json
from lpg_hf.cli import main
from lpg_hf.data.convert import convert_labels
from lpg_hf.generators.bundle import bundled
from lpg_hf.generators.class_probs import SegmenterProbs
from lpg_hf.images import read_rgb
from lpg_hf.label_maps import read_label_map
from lpg_hf.training._own_data import OwnJob
from lpg_hf.training._train_on_boxes import _settings, train_on_boxes
from lpg_hf.training.models import build_segmenter
from lpg_hf.training.segment import SegmentJob, _class_probabilities, segment


pytestmark = pytest.mark.usefixtures("own_precision")


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> tuple[Path, dict]:
    """A segmenter of a few steps on the boxes of ten images, and what the command said of it."""
    folder = tmp_path_factory.mktemp("trained")
    job = OwnJob(str(data / "target"), folder / "segmenter", steps=2)
    said = []
    result = train_on_boxes(job, log=said.append)
    assert f"segmenter {100 * result['segmenter_miou']:.1f} mIoU on 2 held-out images" in said[-1]
    return job.out, result


def test_the_segmenter_loads_in_transformers_and_knows_its_numbers(trained, data):
    folder, result = trained
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    AutoImageProcessor.from_pretrained(folder)
    names = (data / "target" / "classes.txt").read_text().split()
    assert list(model.config.id2label.values()) == ["background", *names]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["training"] == result and metrics["segmenter_miou"] == result["segmenter_miou"]
    assert result["num_images"] == 8 and result["held_out_images"] == 2
    assert result["pseudo_mask_miou"] > 0.3  # filled boxes have less
    assert not folder.with_name("segmenter.unfinished").exists()


def test_the_true_masks_change_nothing_but_the_numbers(data, tmp_path, capsys):
    """Without masks no image is held out."""
    convert_labels(data / "target", tmp_path / "boxes.json", "coco", images=data / "target" / "JPEGImages")
    content = json.loads((tmp_path / "boxes.json").read_text())
    for item in content["annotations"]:
        item.pop("segmentation", None)
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    job = OwnJob(str(tmp_path / "boxes.json"), tmp_path / "out", data / "target" / "JPEGImages", steps=2)
    said = []
    result = train_on_boxes(job, log=said.append)
    assert result["num_images"] == 10 and result["held_out_images"] == 0 and "segmenter_miou" not in result
    assert "fewer than 10 have true masks to measure on" in said[-1]
    with pytest.raises(SystemExit) as end:  # what is finished is told again
        main(["train", job.annotations, "--images", str(job.images), "--out", str(job.out), "--steps", "2"])
    assert end.value.code == 0 and "was finished before" in capsys.readouterr().out


def test_generators_with_class_probability_and_data_without_boxes_are_refused(data, tmp_path):
    LPGModel(LPGConfig(embedding_size=16, hidden_sizes=[16, 16], depths=[1, 1])).save_pretrained(tmp_path / "lpg")
    LPGImageProcessor().save_pretrained(tmp_path / "lpg")
    with pytest.raises(ValueError, match="class probability"):
        train_on_boxes(OwnJob(str(data / "target"), tmp_path / "out", model=str(tmp_path / "lpg")))
    content = json.loads((data / "aux" / "annotations.json").read_text())
    (tmp_path / "none.json").write_text(json.dumps(content | {"annotations": []}))
    with pytest.raises(ValueError, match="no box to train on"):
        train_on_boxes(OwnJob(str(tmp_path / "none.json"), tmp_path / "none", data / "aux" / "images"))


@pytest.mark.slow
def test_it_goes_on_from_its_own_segmenter_after_a_refused_attempt(trained, data, tmp_path):
    """Crops of 8n + 1 pixels follow from the kind of network, not from its name."""
    job = OwnJob(str(data / "target"), tmp_path / "again", steps=1)
    with pytest.raises(OSError, match="nosuch cannot be loaded"):
        train_on_boxes(job, "nosuch")
    with pytest.raises(ValueError, match=r"is a mask generator \(LPG\), not a segmenter"):
        train_on_boxes(job, str(bundled()))
    assert list(tmp_path.iterdir()) == []
    train_on_boxes(job, str(trained[0]))
    assert AutoModelForSemanticSegmentation.from_pretrained(job.out).config.model_type == "deeplab_v2"
    with pytest.raises(FileExistsError, match=r"made with steps=1 \(not 2\)"):
        train_on_boxes(replace(job, steps=2), str(trained[0]))


def test_the_work_of_one_generator_is_not_taken_for_that_of_another_of_the_same_name(data, tmp_path):
    """Every stage's folder is called lpg."""
    models = {}
    for seed, run in enumerate("ab"):
        torch.manual_seed(seed)
        model = LPGModel(LPGConfig(embedding_size=16, hidden_sizes=[16, 16], depths=[1, 1], use_class_prob=False))
        models[run] = tmp_path / run / "stage1" / "lpg"
        model.save_pretrained(models[run])
        LPGImageProcessor().save_pretrained(models[run])
    job = OwnJob(str(data / "target"), tmp_path / "out", model=str(models["a"]), steps=1)
    asked = job.asked(job.read(print), LPGModel.from_pretrained(models["a"]), segmenter="small", weights=None)
    assert asked["model"] == "lpg"
    other = replace(job, model=str(models["b"]))
    job.begin(asked)
    with pytest.raises(ValueError, match="holds unfinished work with other weights of the model. Give the same ones"):
        train_on_boxes(other)
    write_json(job.unfinished / "job.json", {k: v for k, v in asked.items() if k != "model_sha256"})
    with pytest.raises(ValueError, match="with unknown weights of the model, which cannot be resumed. .* delete the"):
        train_on_boxes(job)  # of an earlier version
    shutil.rmtree(job.unfinished)
    write_json(job.out / "metrics.json", {"training": asked | {"num_images": 10}})
    assert train_on_boxes(job)["num_images"] == 10
    with pytest.raises(FileExistsError, match="holds what was made with other weights of the model"):
        train_on_boxes(other)


def test_the_work_on_one_segmenter_is_not_taken_for_that_on_another_of_the_same_name(data, tmp_path):
    """As transformers saves them: every run's folder is called segmenter."""
    for run, size in (("a", 16), ("b", 32)):
        SegformerConfig(hidden_sizes=[size] * 4).save_pretrained(tmp_path / run / "segmenter")
    job = OwnJob(str(data / "target"), tmp_path / "out", steps=1)
    lpg = LPGModel.from_pretrained(bundled("lpg-base"))
    asked = job.asked(job.read(print), lpg, segmenter=str(tmp_path / "a" / "segmenter"), weights=None)
    assert asked["segmenter"] == "segmenter" and asked["model"] == "lpg-base"
    job.begin(asked)
    with pytest.raises(ValueError, match="holds unfinished work with other files of the segmenter. Give the same"):
        train_on_boxes(job, str(tmp_path / "b" / "segmenter"))


@pytest.mark.parametrize("name", ["largefov", "deeplab-v2"])
def test_the_papers_segmenters_are_built_by_name(name, data, tmp_path):
    job = OwnJob(str(data / "target"), tmp_path / "out")
    (tmp_path / "out.unfinished").mkdir()
    settings = _settings(job, job.read(print), None, name, None)
    model, _ = build_segmenter(settings, ["thing"])
    assert model.config.model_type == name.replace("-", "_").replace("large", "deeplab_large")
    assert settings.segmenter.crop_size % 8 == 1 and settings.segmenter.loss_stride is None


@pytest.mark.parametrize("weights", [True, False])
def test_a_mobilenet_is_known_by_its_config_and_keeps_the_statistics_of_weights_only(weights, data, tmp_path):
    folder = tmp_path / "any_name"
    model = MobileNetV2ForSemanticSegmentation(MobileNetV2Config(depth_multiplier=0.35))
    (model if weights else model.config).save_pretrained(folder)
    job = OwnJob(str(data / "target"), tmp_path / "out")
    (tmp_path / "out.unfinished").mkdir()
    settings = _settings(
        job, job.read(print), None, str(folder if weights else folder / "config.json"), None
    ).segmenter
    chosen = settings.batch_norm_momentum, settings.learning_rate, settings.head_multiplier
    assert chosen == ((0, 1e-4, 20) if weights else (0.03, 2e-4, 10))


def test_segment_writes_the_argmax_and_resumes(trained, data, tmp_path, capsys):
    images = data / "target" / "JPEGImages"
    arguments = ["segment", str(trained[0]), str(data / "target"), "--split", "val", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--truth", str(data / "target" / "SegmentationClass"), "--json", str(tmp_path / "s.json")])
    assert end.value.code == 0 and "mIoU" in capsys.readouterr().out
    written = sorted((tmp_path / "out" / "masks").glob("*.png"))
    assert [path.stem for path in written] == [f"val_{n:06d}" for n in (1, 2, 3, 4)]
    assert json.loads((tmp_path / "s.json").read_text())["num_scored"] == 4
    segmenter = SegmenterProbs.from_pretrained(trained[0])
    model, processor = segmenter.model, AutoImageProcessor.from_pretrained(trained[0])
    image = read_rgb(images / "val_000001.jpg")
    inputs = processor(image, return_tensors="pt")
    (expected,) = processor.post_process_semantic_segmentation(model(**inputs), target_sizes=[image.shape[:2]])
    agreeing = (read_label_map(written[0]) == expected.numpy()).mean()
    assert agreeing > 0.95 and Image.open(written[0]).mode == "P"
    written[1].unlink()
    kept = written[0].stat().st_mtime_ns
    assert segment(SegmentJob(str(trained[0]), data / "target", tmp_path / "out", "val")) == []
    assert written[1].is_file() and written[0].stat().st_mtime_ns == kept
    with pytest.raises(ValueError, match="written with another model"):
        segment(SegmentJob(str(trained[0]), data / "target", tmp_path / "out", "val", scales=(1.0, 1.5)))


def test_a_class_named_background_keeps_its_line_in_the_class_list_of_label_maps(trained, tmp_path):
    model = shutil.copytree(trained[0], tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["id2label"]["1"] = "background"
    (model / "config.json").write_text(json.dumps(config))
    Image.new("RGB", (40, 40)).save(tmp_path / "image.png")
    segment(SegmentJob(str(model), tmp_path, tmp_path / "out"))
    names = read_class_list(tmp_path / "out" / "classes.txt")
    assert names == ["background class", *list(config["id2label"].values())[2:]]


def test_scales_are_averaged(trained):
    segmenter = SegmenterProbs.from_pretrained(trained[0])
    image = np.random.default_rng(0).integers(0, 255, (48, 70, 3), dtype=np.uint8)
    each = [_class_probabilities(segmenter, image, (scale,)) for scale in (0.5, 1.0, 1.5)]
    together = _class_probabilities(segmenter, image, (0.5, 1.0, 1.5))
    assert together.shape == (5, 48, 70) and not np.allclose(each[0], each[1])
    assert np.allclose(together, sum(each) / 3, atol=1e-6) and np.allclose(together.sum(axis=0), 1, atol=1e-5)


def test_images_that_cannot_be_used_are_named(trained, tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "images" / "good.png")
    (tmp_path / "images" / "bad.png").write_bytes(b"no image")
    bad = segment(SegmentJob(str(trained[0]), tmp_path / "images", tmp_path / "out"))
    assert len(bad) == 1 and bad[0].startswith("bad.png")
    assert (tmp_path / "out" / "masks" / "good.png").is_file()


def test_an_image_one_pixel_high_or_wide_stops_nothing(trained, tmp_path, monkeypatch):
    for name, size in (("high.png", (60, 1)), ("usual.png", (60, 40)), ("wide.png", (1, 60))):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", size).save(tmp_path / "images" / name)
    job = SegmentJob(str(trained[0]), tmp_path / "images", tmp_path / "out")
    assert segment(job) == []
    assert read_label_map(tmp_path / "out" / "masks" / "high.png").shape == (1, 60)

    def choosy(segmenter, image, scales):
        if 1 in image.shape[:2]:
            raise RuntimeError("too thin")
        return _class_probabilities(segmenter, image, scales)

    monkeypatch.setattr("lpg_hf.training.segment._class_probabilities", choosy)
    bad = segment(replace(job, out=tmp_path / "other"))
    assert bad == ["high.png: 60 x 1, too thin", "wide.png: 1 x 60, too thin"]
    assert [path.name for path in (tmp_path / "other" / "masks").iterdir()] == ["usual.png"]


def test_a_folder_of_which_no_image_can_be_used_leaves_no_output(trained, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="none of the 1 images .* can be used, such as a.png"):
        segment(SegmentJob(str(trained[0]), tmp_path / "images", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_list_of_classes_has_a_line_for_each(segmenter_folder, tmp_path):
    folder = shutil.copytree(segmenter_folder, tmp_path / "segmenter")
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "background", "1": "\ud83dcat", "2": "a\nb", "3": ""}
    (folder / "config.json").write_text(json.dumps(config))
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "images" / "a.png")
    assert segment(SegmentJob(str(folder), tmp_path / "images", tmp_path / "out")) == []
    names = (tmp_path / "out" / "classes.txt").read_text(encoding="utf-8")
    assert names == "\N{REPLACEMENT CHARACTER}cat\na b\nclass 3\n"


def test_segment_reads_the_bands_that_are_asked_for(trained, tmp_path):
    values = np.random.default_rng(0).integers(0, 2000, (40, 60, 5)).astype(np.uint16)
    (tmp_path / "images").mkdir()
    tifffile.imwrite(tmp_path / "images" / "a.tif", values, photometric="minisblack", planarconfig="contig")
    job = SegmentJob(str(trained[0]), tmp_path / "images", tmp_path / "out", rendering=Rendering("5,4,3", "0,1999"))
    assert segment(job) == [] and segment(job) == []
    shown = np.round(values[..., [4, 3, 2]] / 1999 * 255).astype(np.uint8)
    expected = _class_probabilities(SegmenterProbs.from_pretrained(trained[0]), shown, (1.0,)).argmax(axis=0)
    assert (read_label_map(tmp_path / "out" / "masks" / "a.png") == expected).mean() > 0.99
    with pytest.raises(ValueError, match="written with another model or other options"):
        segment(replace(job, rendering=Rendering()))


@pytest.mark.parametrize("scales", [(), (0.0,), (1.0, -1.0)])
def test_scales_are_positive(scales):
    with pytest.raises(ValueError, match="positive numbers"):
        SegmentJob("model", Path("images"), Path("out"), scales=scales)


def test_deploy_takes_a_bundled_generator_in_every_round(values, tmp_path):
    changes = {"run.stages": "lpg-small", "run.num_stages": 1, "segmenter.steps": 2, "run.mixed_precision": "auto"}
    run_script("deploy.py", values | changes, tmp_path / "run")
    assert len(list((tmp_path / "run" / "target" / "stage1" / "pseudo_masks").glob("*.png"))) == 6


@pytest.mark.parametrize("size", [{"height": 32, "width": 32}, {"height": 512, "width": 512}, {"shortest_edge": 64}])
def test_scales_of_a_model_that_resizes_every_image_are_refused(segmenter_folder, tmp_path, size):
    folder = shutil.copytree(segmenter_folder, tmp_path / "segmenter")
    SegformerImageProcessorPil(size=size).save_pretrained(folder)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (96, 64)).save(tmp_path / "images" / "a.png")
    job = SegmentJob(str(folder), tmp_path / "images", tmp_path / "out")
    with pytest.raises(ValueError, match="resizes every image, so other scales change nothing. Leave them out"):
        segment(replace(job, scales=(0.5, 1.0)))
    assert not (tmp_path / "out").exists()
    assert segment(job) == []


def test_weights_that_a_segmenter_does_not_take_are_refused_before_the_masks(segmenter_folder, data, tmp_path):
    job = OwnJob(str(data / "target"), tmp_path / "out", steps=2)
    with pytest.raises(
        ValueError, match="segmenter.weights=vgg16.safetensors is set, but only largefov and deeplab-v2"
    ):
        train_on_boxes(job, str(segmenter_folder), "vgg16.safetensors")
    assert list(tmp_path.iterdir()) == []
