"""Batch normalisation with fixed statistics, in the precision of the maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import ops


class FrozenBatchNorm2d(ops.FrozenBatchNorm2d):
    """torchvision's, with the same weights and values, made for mixed precision.

    torchvision's multiplies by 32-bit factors: under autocast every map after it is of 32 bits, twice the memory and
    the traffic. This one returns what it is given. Without gradients it is one fused operation; with them not, since
    that one would keep its input for gradients of factors that nobody trains.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        scale, shift = (values.to(x.dtype)[:, None, None] for values in (scale, shift))
        return torch.addcmul(shift, x, scale)
