"""Batch normalisation over the whole batch where several processes share it."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _SumOfAll(torch.autograd.Function):
    """The sum of a tensor over the processes; so is its gradient, since all of their losses depend on it."""

    @staticmethod
    def forward(context, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        return _SumOfAll.forward(context, gradient)


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose training statistics are those of all processes' parts of a batch.

    Parts may differ in size. Each process computes the gradient of its own loss; their mean, as
    :meth:`detkt.base.processes.Processes.average_gradients` forms it, is that of the mean loss. torch's own
    SyncBatchNorm does the same on GPUs alone, and for DistributedDataParallel.
    """

    # Only one that has them all becomes such a one.
    momentum: float
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        values = x.float()
        count = values.new_full((1,), values.numel() / values.shape[1])
        sums = _SumOfAll.apply(torch.cat([values.sum(dim=(0, 2, 3)), count]))
        total, mean = sums[-1], sums[:-1] / sums[-1]
        # In a second exchange: the difference of two sums of squares would lose what a small deviation is made of.
        centred = values - mean[:, None, None]
        variance = _SumOfAll.apply(centred.square().sum(dim=(0, 2, 3))) / total
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * total / (total - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return torch.addcmul(self.bias[:, None, None], centred, scale[:, None, None]).to(x.dtype)


def sync_batch_norms(network: nn.Module) -> None:
    """Make every BatchNorm2d of *network* a synchronised one, in place; its state stays what it was."""
    for module in network.modules():
        if type(module) is nn.BatchNorm2d and module.affine and module.momentum is not None:
            module.__class__ = SyncedBatchNorm2d
