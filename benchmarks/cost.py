"""What the paper's phases cost: operations and memory counted on the networks, and the hours they suggest.

    python benchmarks/cost.py --tflops 100

Nothing is trained and no data are needed: the networks run on PyTorch's meta device. It counts the operations of a
forward pass (a backward pass is taken as two) and the bytes of float32 that autograd keeps for it; with bf16 about
half of them. The hours follow from --tflops, what the GPU sustains on
convolutions, so they are an estimate: data loading, masks and measuring come on top.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lpg_hf.models.configuration_deeplab_largefov import DeepLabLargeFOVConfig
from lpg_hf.models.configuration_deeplab_v2 import DeepLabV2Config
from lpg_hf.models.configuration_lpg import LPGConfig
from lpg_hf.models.modeling_deeplab_largefov import DeepLabLargeFOVForSemanticSegmentation
from lpg_hf.models.modeling_deeplab_v2 import DeepLabV2ForSemanticSegmentation
from lpg_hf.models.modeling_lpg import LPGModel


@dataclass(frozen=True)
class Phase:
    """One training phase of Table I.

    Attributes:
        name: of the phase.
        build: makes the network.
        inputs: channels of each input: the image, and the maps of an LPG.
        crop: pixels, square.
        batch: samples per step, over all GPUs.
        steps: of one stage.
        states: values per weight that the optimiser keeps.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: tuple[int, ...]
    crop: int
    batch: int
    steps: int
    states: int


def segmenter(kind: type, config: type, **fields) -> Callable[[], nn.Module]:
    """A segmenter for COCO-60: 60 classes and the background."""
    return lambda: kind(config(num_labels=61, **fields))


PHASES = (
    Phase("LPG hourglass", lambda: LPGModel(LPGConfig()), (3, 1, 1), 512, 32, 100_000, 2),
    Phase(
        "LargeFOV",
        segmenter(DeepLabLargeFOVForSemanticSegmentation, DeepLabLargeFOVConfig),
        (3,),
        321,
        30,
        20_000,
        1,
    ),
    Phase(
        "DeepLab v2",
        segmenter(DeepLabV2ForSemanticSegmentation, DeepLabV2Config, scales=[0.5, 0.75]),
        (3,),
        321,
        10,
        40_000,
        1,
    ),
)


def measure(phase: Phase) -> tuple[int, float, float]:
    """(weights, operations of a forward pass of one sample, bytes of float32 kept for its backward pass)."""
    with torch.device("meta"):
        model = phase.build().train()
        inputs = [
            torch.empty(2, channels, phase.crop, phase.crop) for channels in phase.inputs
        ]  # batch norm needs two
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()} - {0}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, nn.Parameter) and storage.data_ptr() not in parameters:
            kept[storage._cdata] = storage  # held, so that its address is not given to another
        return tensor

    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(*inputs)
    weights = sum(parameter.numel() for parameter in model.parameters())
    return weights, counter.get_total_flops() / 2, sum(storage.nbytes() for storage in kept.values()) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tflops", type=float, required=True, help="what one GPU sustains, 10^12 operations a second")
    parser.add_argument("--gpus", type=int, default=1)
    arguments = parser.parse_args()
    print("| phase | weights | GFLOP, forward | kept for backward | memory of a GPU | hours of a stage |")
    print("| --- | --- | --- | --- | --- | --- |")
    for phase in PHASES:
        weights, operations, kept = measure(phase)
        share = -(-phase.batch // arguments.gpus)
        memory = share * kept + 4 * weights * (2 + phase.states)  # weights, gradients, the optimiser's values
        hours = 3 * operations * phase.batch * phase.steps / (arguments.tflops * 1e12 * arguments.gpus) / 3600
        print(
            f"| {phase.name} | {weights / 1e6:.1f} M | {operations / 1e9:.0f} | {kept / 2**20:.0f} MiB "
            f"| {share} samples: {memory / 2**30:.1f} GiB | {hours:.1f} |"
        )


if __name__ == "__main__":
    main()
