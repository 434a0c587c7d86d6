"""The target photographs of coco60_voc: the 437 of VOC's own train list, and 1,027 others that show all classes
evenly.

    python benchmarks/voc_target.py $LPG_HF_DATA runs/bench/coco60_voc/target

Writes a VOC folder that links to the data folder's and has a further list, `bench_train`: the lists `train` and
`train_val20` together, 1,464 photographs with VOC's own precise masks. As in the paper, the photographs of `train`
keep their ground truth in the mode semi. What is there already is left alone.
"""

import argparse
import shutil
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lpg_hf._files import write_atomically


SPLITS = ("train", "train_val20")
LIST = "bench_train"


def write_target(voc: Path, out: Path) -> None:
    """The folder; its new list comes last, so that a folder with it is complete."""
    lists = voc / "ImageSets" / "Segmentation"
    (out / "ImageSets" / "Segmentation").mkdir(parents=True, exist_ok=True)
    for path in [p for p in voc.iterdir() if p.name != "ImageSets"] + sorted(lists.glob("*.txt")):
        link = out / path.relative_to(voc)
        link.unlink(missing_ok=True)
        link.symlink_to(path.resolve(), target_is_directory=path.is_dir())
    names = [name for split in SPLITS for name in (lists / f"{split}.txt").read_text(encoding="utf-8").split()]
    text = "".join(f"{name}\n" for name in dict.fromkeys(names))
    write_atomically(out / "ImageSets" / "Segmentation" / f"{LIST}.txt", text.encode("utf-8"))


def forget_other_source(out: Path, data: Path) -> None:
    """Deletes a prepared folder that was made from another data folder."""
    stamp, source = out / "source.txt", str(data.resolve())
    if stamp.is_file() and stamp.read_text(encoding="utf-8") != source:
        shutil.rmtree(out)
    write_atomically(stamp, source.encode("utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with voc/")
    parser.add_argument("out", type=Path, help="the new folder")
    arguments = parser.parse_args()
    forget_other_source(arguments.out, arguments.data)
    if not (arguments.out / "ImageSets" / "Segmentation" / f"{LIST}.txt").is_file():
        write_target(arguments.data / "voc", arguments.out)


if __name__ == "__main__":
    main()
