"""SAM, SAM 2 and HQ-SAM with random weights: prompts, frames, chunks and types, offline."""

import json
import os

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2MaskDecoderConfig,
    Sam2Model,
    Sam2PromptEncoderConfig,
    Sam2VisionConfig,
    SamConfig,
    SamHQConfig,
    SamHQMaskDecoderConfig,
    SamHQModel,
    SamHQPromptEncoderConfig,
    SamHQVisionConfig,
    SamMaskDecoderConfig,
    SamModel,
    SamProcessor,
    SamPromptEncoderConfig,
    SamVisionConfig,
)
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil
from transformers.models.sam_hq.processing_sam_hq import SamHQProcessor
from transformers.utils import is_torchvision_available

from lpg_hf.boxes import box_slices
from lpg_hf.generators._sam import SAMGenerator, _resize_window
from lpg_hf.generators.base import BoxedImage


SIDE = 64
FAMILIES = ("sam", "sam_hq", "sam2", "sam2_video")


def decoder() -> dict:
    return {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}


def make_sam(folder, kind: str):
    hq = kind == "sam_hq"
    vision = (SamHQVisionConfig if hq else SamVisionConfig)(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=8,
        window_size=4,
        global_attn_indexes=[1],
        output_channels=32,
        num_pos_feats=16,
        mlp_dim=32,
    )
    prompt = (SamHQPromptEncoderConfig if hq else SamPromptEncoderConfig)(
        hidden_size=32, image_size=SIDE, patch_size=8, mask_input_channels=8
    )
    mask = (SamHQMaskDecoderConfig(vit_dim=32, **decoder())) if hq else SamMaskDecoderConfig(**decoder())
    if hq:
        model = SamHQModel(SamHQConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=mask))
    else:
        model = SamModel(SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=mask))
    square = {"height": SIDE, "width": SIDE}
    image_processor = SamImageProcessorPil(size={"longest_edge": SIDE}, pad_size=square)
    model.save_pretrained(folder)
    (SamHQProcessor if hq else SamProcessor)(image_processor).save_pretrained(folder)


def make_sam2(folder, kind: str):
    backbone = Sam2HieraDetConfig(
        hidden_size=8,
        num_attention_heads=1,
        image_size=[SIDE, SIDE],
        blocks_per_stage=[1, 2, 1, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 1, 1],
        window_size_per_stage=[4, 4, 4, 4],
        global_attention_blocks=[2],
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=32,
    )
    prompt = Sam2PromptEncoderConfig(hidden_size=32, image_size=SIDE, patch_size=16, mask_input_channels=8)
    config = Sam2Config(
        vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=Sam2MaskDecoderConfig(**decoder())
    )
    Sam2Model(config).save_pretrained(folder)
    # As the Hub's checkpoints have it; saving the object itself needs torchvision.
    values = {
        "image_processor_type": "Sam2ImageProcessorFast",
        "size": {"height": SIDE, "width": SIDE},
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(values), encoding="utf-8")
    if kind == "sam2_video":
        saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps(saved | {"model_type": kind}), encoding="utf-8")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict:
    made = {}
    for kind in FAMILIES:
        made[kind] = tmp_path_factory.mktemp(kind)
        torch.manual_seed(1)
        (make_sam2 if kind.startswith("sam2") else make_sam)(made[kind], kind)
    return made


@pytest.fixture
def boxed_images() -> list[BoxedImage]:
    rng = np.random.default_rng(0)
    boxes = np.array([[3, 4, 40.5, 30], [0, 0, 90, 50], [70, 10, 71, 11], [5.2, 6.1, 20.7, 22.3], [50, 20, 90, 50]])
    return [
        BoxedImage(
            rng.integers(0, 256, (50, 90, 3), dtype=np.uint8), boxes.astype(np.float32), np.array([1, 2, 1, 3, 2])
        ),
        BoxedImage(
            rng.integers(0, 256, (70, 40, 3), dtype=np.uint8), np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
        ),
        BoxedImage(rng.integers(0, 256, (70, 40, 3), dtype=np.uint8), boxes[[3]].astype(np.float32), np.array([4])),
    ]


def collect(generator: SAMGenerator, boxed_images: list[BoxedImage]) -> dict:
    return {(i, patch.boxes[0]): patch for i, patch in generator.patches(boxed_images, "instance")}


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_patch_is_exactly_its_box_and_a_probability(folders, boxed_images, kind):
    found = collect(SAMGenerator(folders[kind]), boxed_images)
    assert list(found) == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (2, 0)]
    for (i, k), patch in found.items():
        assert (patch.rows, patch.columns) == box_slices(boxed_images[i].boxes[k], *boxed_images[i].image.shape[:2])
        assert patch.label == boxed_images[i].labels[k] and patch.foreground.dtype == np.float32
        assert patch.foreground.shape == (patch.rows.stop - patch.rows.start, patch.columns.stop - patch.columns.start)
        assert 0 < patch.foreground.min() and patch.foreground.max() < 1
    assert len({round(float(patch.foreground.mean()), 6) for patch in found.values()}) > 3


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("multimask", [False, True])
def test_chunks_and_company_do_not_matter(folders, boxed_images, kind, multimask):
    at_once = collect(SAMGenerator(folders[kind], multimask_output=multimask), boxed_images)
    in_twos = SAMGenerator(folders[kind], batch_size=2, multimask_output=multimask)
    alone = {(0, k): patch for (_, k), patch in collect(in_twos, boxed_images[:1]).items()}
    alone |= {(2, k): patch for (_, k), patch in collect(in_twos, boxed_images[2:]).items()}
    assert at_once.keys() == alone.keys()
    for key, patch in at_once.items():
        assert np.allclose(patch.foreground, alone[key].foreground, atol=1e-5)


@pytest.mark.parametrize("kind", ["sam", "sam_hq"])
@pytest.mark.parametrize("multimask", [False, True])
def test_equals_the_processor_and_the_model_of_transformers(folders, boxed_images, kind, multimask):
    processor = (SamHQProcessor if kind == "sam_hq" else SamProcessor).from_pretrained(folders[kind])
    model = (SamHQModel if kind == "sam_hq" else SamModel).from_pretrained(folders[kind]).eval()
    image = boxed_images[0]
    inputs = processor(images=image.image, input_boxes=[image.boxes.tolist()], return_tensors="pt")
    inputs["input_boxes"] = inputs["input_boxes"].float()
    with torch.no_grad():
        output = model(
            pixel_values=inputs["pixel_values"], input_boxes=inputs["input_boxes"], multimask_output=multimask
        )
    (logits,) = processor.post_process_masks(
        output.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"], binarize=False
    )
    best = output.iou_scores[0].argmax(dim=1)
    if multimask:
        assert len(set(best.tolist())) >= 1 and logits.shape[1] > 1
    for k, patch in enumerate(collect(SAMGenerator(folders[kind], multimask_output=multimask), [image]).values()):
        expected = logits[k, best[k]].sigmoid().numpy()[patch.rows, patch.columns]
        assert np.allclose(patch.foreground, expected, atol=1e-5)


def test_sam2_equals_the_model_of_transformers_on_the_stretched_image(folders, boxed_images):
    image, generator = boxed_images[0], SAMGenerator(folders["sam2"])
    model = Sam2Model.from_pretrained(folders["sam2"]).eval()
    scale = torch.tensor([SIDE / 90, SIDE / 50] * 2)
    with torch.no_grad():
        output = model(
            pixel_values=generator.processor.pixel_values(image.image),
            input_boxes=torch.from_numpy(image.boxes)[None] * scale,
            multimask_output=False,
        )
    logits = torch.nn.functional.interpolate(output.pred_masks[0], (50, 90), mode="bilinear", align_corners=False)
    for k, patch in enumerate(collect(generator, [image]).values()):
        assert np.allclose(patch.foreground, logits[k, 0].sigmoid()[patch.rows, patch.columns], atol=1e-5)


@pytest.mark.skipif(not is_torchvision_available(), reason="torchvision is not installed")
def test_sam2_images_are_those_of_its_processor(folders, boxed_images):
    from transformers import Sam2ImageProcessor

    theirs = Sam2ImageProcessor.from_pretrained(folders["sam2"])(images=boxed_images[0].image, return_tensors="pt")
    ours = SAMGenerator(folders["sam2"]).processor.pixel_values(boxed_images[0].image)
    assert torch.allclose(ours, theirs["pixel_values"], atol=1 / 255 / 0.22)


@pytest.mark.parametrize("kind", FAMILIES)
def test_half_precision_gives_nearly_the_same(folders, boxed_images, kind):
    full = collect(SAMGenerator(folders[kind]), boxed_images[:1])
    half = collect(SAMGenerator(folders[kind], dtype=torch.bfloat16), boxed_images[:1])
    for key, patch in full.items():
        assert half[key].foreground.dtype == np.float32
        assert abs(half[key].foreground - patch.foreground).mean() < 0.05


def test_a_images_embedding_is_computed_once(folders, boxed_images, monkeypatch):
    generator = SAMGenerator(folders["sam"], batch_size=1)
    calls = []
    encode = generator.network.get_image_embeddings
    monkeypatch.setattr(generator.network, "get_image_embeddings", lambda pixels: calls.append(1) or encode(pixels))
    assert len(collect(generator, boxed_images)) == 6 and len(calls) == 2


@pytest.mark.parametrize("source, size", [((16, 16), (50, 90)), ((40, 30), (20, 90)), ((3, 5), (3, 5))])
def test_resize_window_is_a_window_of_interpolate(source, size):
    values = torch.randn(source, generator=torch.Generator().manual_seed(0))
    whole = torch.nn.functional.interpolate(values[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    rows, columns = slice(1, size[0]), slice(2, size[1] - 1)
    assert torch.allclose(_resize_window(values, size, rows, columns), whole[rows, columns], atol=1e-5)
    assert torch.allclose(_resize_window(values, size, slice(0, size[0]), slice(0, size[1])), whole, atol=1e-5)


def test_what_is_no_sam_is_named(folders, tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a 'bert', not of the SAM family"):
        SAMGenerator(tmp_path)
    with pytest.raises(OSError):
        SAMGenerator(os.fspath(tmp_path / "absent"))
    with pytest.raises(ValueError, match="batch_size is 0"):
        SAMGenerator(folders["sam"], batch_size=0)
