"""ImageNet weights of the paper's segmenters: torchvision's .pth files as safetensors."""

from pathlib import Path

from lpg_hf._files import atomic_file
from lpg_hf._weight_files import reading_weights
from lpg_hf.data._prepare import archives
from lpg_hf.data._prepare.archives import find_archives
from lpg_hf.data._prepare.progress import PrepareOptions, Progress


WEIGHTS = {"vgg16.safetensors": archives.VGG16, "resnet101.safetensors": archives.RESNET101}


def prepare_weights(options: PrepareOptions) -> None:
    """ImageNet weights of torchvision as safetensors, under torchvision's names. See `prepare`.

    One of the files is enough. They are read with `weights_only`, so that nothing in them is executed.
    """
    progress = Progress(options.root / "weights", options)
    paths = {name: options.archive_folder / archive.name for name, archive in WEIGHTS.items()}
    missing = [name for name, path in paths.items() if not path.is_file()]
    if len(missing) == len(paths):
        find_archives(options.archive_folder, list(WEIGHTS.values()))
    for name, path in paths.items():
        target = progress.folder / name
        if target.is_file():
            options.log(f"{target}: skipped, it is there")
        elif name in missing:
            options.log(f"{target}: skipped, {path} is missing (from {WEIGHTS[name].page})")
        else:
            progress.check(path, WEIGHTS[name])
            options.log(f"{target}: {_convert_weights(path, target)} tensors")


def _convert_weights(source: Path, target: Path) -> int:
    """A .pth file of tensors as safetensors; returns how many tensors it holds.

    Raises:
        ValueError: it holds more than tensors, or is damaged; nothing in it was executed.
    """
    from safetensors.torch import save

    from lpg_hf.models.imagenet import read_state_dict

    with reading_weights(source):
        tensors = {name: tensor.contiguous() for name, tensor in read_state_dict(source).items()}
    with atomic_file(target) as file:
        file.write(save(tensors, metadata={"format": "pt"}))  # one entry: several come in a random order
    return len(tensors)
