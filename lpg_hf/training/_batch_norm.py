"""Batch norms in training: statistics over the images of all processes, or those of the weights."""

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


def freeze_batch_norms(model: nn.Module, head: list[nn.Parameter]) -> None:
    """Makes the batch norms outside the head normalise by their running statistics in training too, and keep them.

    Their weights and biases are still trained. What a small batch's own statistics would add as noise is gone.

    Args:
        head: its parameters; its norms begin without statistics, so they are left alone.
    """
    of_head = {id(parameter) for parameter in head}
    for module in model.modules():
        if type(module) is nn.BatchNorm2d and id(module.weight) not in of_head:
            module.__class__ = _FrozenBatchNorm
            module.eval()


class _FrozenBatchNorm(nn.BatchNorm2d):
    """A batch norm that `train()` does not reach."""

    def train(self, mode: bool = True) -> "_FrozenBatchNorm":
        return super().train(False)


def synchronize_batch_norms(model: nn.Module) -> None:
    """Makes the batch norms that are in training mode share their statistics among the processes.

    The parameters stay the same objects. On GPUs the norms become `nn.SyncBatchNorm`, which has no CPU version; on
    CPUs the two-dimensional ones get ours. Frozen norms (in eval mode) are left alone.

    Args:
        model: on its device.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.modules.batchnorm._BatchNorm) or not module.training:
            continue
        if on_cpu and type(module) is nn.BatchNorm2d:
            module.__class__ = _SharedBatchNorm
        elif not on_cpu:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, nn.SyncBatchNorm.convert_sync_batchnorm(module))


class _SharedBatchNorm(nn.BatchNorm2d):
    """A batch norm over the images of all processes; their numbers may differ."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        if not self.training:
            return super().forward(input)
        values, dims = input.float(), (0, 2, 3)
        sums = torch.cat([values.sum(dims), values.new_tensor([values.numel() / values.shape[1]])])
        sums = all_reduce(sums)  # (C + 1,)
        count = sums[-1].detach()
        if count <= 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {input.shape}")
        mean = sums[:-1] / count
        centred = values - mean[:, None, None]
        variance = all_reduce(centred.square().sum(dims)) / count
        self._track(mean.detach(), variance.detach() * count / (count - 1))
        scale = torch.rsqrt(variance + self.eps)
        normalized = centred * (scale if self.weight is None else scale * self.weight)[:, None, None]
        return (normalized if self.bias is None else normalized + self.bias[:, None, None]).to(input.dtype)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)
