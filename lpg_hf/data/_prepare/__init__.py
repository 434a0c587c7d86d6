"""`lpg-hf prepare-data`: from the official archives to the folders that the paper's configurations read.

    DATA/coco/annotations/instances_{train,val}2017.json  DATA/coco/{train2017,val2017}/*.jpg
    DATA/voc/{JPEGImages,Annotations,SegmentationClass}   VOC 2012, as published
    DATA/voc/SegmentationClassAug                         masks of train_aug and val: VOC's own, else SBD's
    DATA/voc/ImageSets/Segmentation/{train,val,train_aug}.txt
    DATA/weights/{vgg16,resnet101}.safetensors

`prepared.json` in each of the three folders remembers what is finished. The same command goes on after an
interruption.
"""

from lpg_hf._files import locked_folder
from lpg_hf.data._prepare.coco60 import prepare_coco60
from lpg_hf.data._prepare.progress import PrepareOptions
from lpg_hf.data._prepare.voc_aug import prepare_voc_aug
from lpg_hf.data._prepare.weights import prepare_weights


__all__ = ["PREPARE", "PrepareOptions", "prepare"]

PREPARE = {"coco60": prepare_coco60, "voc-aug": prepare_voc_aug, "weights": prepare_weights}
_FOLDERS = {"coco60": "coco", "voc-aug": "voc", "weights": "weights"}


def prepare(what: str, options: PrepareOptions) -> None:
    """Prepare `coco60`, `voc-aug` or `weights`; finished pieces are skipped.

    Raises:
        FileNotFoundError: archives are missing; the message names each, its page, and the folder it belongs into.
        ValueError: unknown name; an archive is not the published one, is damaged, or names files outside the folder;
            or another process prepares it.
        ImportError: SciPy is missing, which reads SBD's files.
    """
    if what not in PREPARE:
        raise ValueError(f"unknown data {what!r}. Choose one of {', '.join(PREPARE)}.")
    with locked_folder(options.root / _FOLDERS[what]):
        PREPARE[what](options)
