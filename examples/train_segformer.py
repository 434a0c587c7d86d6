"""Train a SegFormer on the label maps that `lpg-hf masks` wrote.

    lpg-hf masks boxes.json --images photos --out masks
    accelerate launch examples/train_segformer.py photos masks --out my-segformer

Without --model a small network starts from random weights; for real use name one, such as nvidia/mit-b0.
"""

import argparse
from itertools import chain, repeat
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from lpg_hf.images import read_rgb
from lpg_hf.label_maps import read_label_map


class MaskFolder(torch.utils.data.Dataset):
    """Images of a folder whose label maps are in MASKS/masks, under the same name as .png."""

    def __init__(self, images: Path, masks: Path, processor: SegformerImageProcessor):
        files = {path.relative_to(images).with_suffix(""): path for path in images.rglob("*") if path.is_file()}
        label_maps = sorted((masks / "masks").rglob("*.png"))
        self.pairs = [(files[path.relative_to(masks / "masks").with_suffix("")], path) for path in label_maps]
        self.processor = processor

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict:
        image, label_map = self.pairs[index]
        batch = self.processor.preprocess(
            read_rgb(image), segmentation_maps=read_label_map(label_map), return_tensors="pt"
        )
        return {name: values[0] for name, values in batch.items()}  # pixel_values (3, S, S), labels (S, S)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("masks", type=Path, help="what --out of lpg-hf masks was")
    parser.add_argument("--out", default="segformer")
    parser.add_argument("--model", help="Hub id or folder to start from")
    for name, default in (("steps", 200), ("batch-size", 4), ("size", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()

    names = ["background", *(args.masks / "classes.txt").read_text(encoding="utf-8").splitlines()]
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    torch.manual_seed(0)
    model = SegformerForSemanticSegmentation(SegformerConfig(**labels))
    if args.model is not None:
        model = SegformerForSemanticSegmentation.from_pretrained(args.model, ignore_mismatched_sizes=True, **labels)
    processor = SegformerImageProcessor(size={"height": args.size, "width": args.size})  # 255 stays ignored
    loader = torch.utils.data.DataLoader(MaskFolder(args.images, args.masks, processor), args.batch_size, shuffle=True)
    accelerator, optimizer = Accelerator(), torch.optim.AdamW(model.parameters(), lr=6e-5 if args.model else 1e-3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for step, batch in zip(range(args.steps), chain.from_iterable(repeat(loader))):
        loss = model(**batch).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0 or step == args.steps - 1:
            accelerator.print(f"step {step}: loss {loss.item():.3f}")
    if accelerator.is_main_process:
        accelerator.unwrap_model(model).save_pretrained(args.out)
        processor.save_pretrained(args.out)


if __name__ == "__main__":
    main()
