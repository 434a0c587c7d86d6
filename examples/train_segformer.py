"""Train a SegFormer on the label maps that `lpg-hf masks` wrote.

    lpg-hf masks boxes.json --images photos --out masks
    accelerate launch examples/train_segformer.py photos masks --out my-segformer

In place of the folder of images, the Parquet files of `lpg-hf export-data --embed-images` or a dataset of the Hub do.
Without --model a small network starts from random weights; for real use name one, such as nvidia/mit-b0.
"""

import argparse
from itertools import chain, repeat
from pathlib import Path

import torch
from accelerate import Accelerator
from datasets import concatenate_datasets, load_dataset
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from lpg_hf.images import IMAGE_SUFFIXES, read_rgb
from lpg_hf.label_maps import read_label_map


class MaskFolder(torch.utils.data.Dataset):
    """Images of a folder, or rows of a dataset, whose label maps are in MASKS/masks, under the same name as .png."""

    def __init__(self, images: str, masks: Path, processor: SegformerImageProcessor):
        folder, root, self.rows, self.processor = Path(images), masks / "masks", None, processor
        if not folder.is_dir() or any(folder.rglob("*.parquet")):
            place = str(folder.absolute()) if folder.is_dir() else images
            self.rows = concatenate_datasets(list(load_dataset(place).values()))
            found = {Path(name).with_suffix(""): row for row, name in enumerate(self.rows["file_name"])}
        else:
            paths = sorted(folder.rglob("*"), key=lambda path: path.suffix.lower() in IMAGE_SUFFIXES)  # images last
            found = {path.relative_to(folder).with_suffix(""): path for path in paths if path.is_file()}
        label_maps = sorted(root.rglob("*.png"))
        self.pairs = [(found[path.relative_to(root).with_suffix("")], path) for path in label_maps]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict:
        image, label_map = self.pairs[index]
        pixels = read_rgb(image if self.rows is None else self.rows[image]["image"])
        batch = self.processor.preprocess(pixels, segmentation_maps=read_label_map(label_map), return_tensors="pt")
        return {name: values[0] for name, values in batch.items()}  # pixel_values (3, S, S), labels (S, S)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", help="folder of images, of Parquet files, or Hub id")
    parser.add_argument("masks", type=Path, help="what --out of lpg-hf masks was")
    parser.add_argument("--model", help="Hub id or folder to start from")
    for name, default in (("out", "segformer"), ("steps", 200), ("batch-size", 4), ("size", 256)):
        parser.add_argument(f"--{name}", type=type(default), default=default)
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
