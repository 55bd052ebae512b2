"""NST: neuron selectivity transfer, the student's channels fire on the same regions as the teacher's.

Huang, Wang: "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", arXiv:1707.01219 (2017).

    L_task + lambda/2 * MMD^2(s, t)

    MMD^2 = 1/C_s^2 sum_ij k(s_i, s_j) + 1/C_t^2 sum_ij k(t_i, t_j) - 2/(C_s C_t) sum_ij k(s_i, t_j)

with k(x, y) = (x . y)^2, where s_i and t_j are channel maps, flattened and of Euclidean length 1: the squared maximum
mean discrepancy of the two sets of channels under the paper's best kernel (polynomial, degree 2, no constant).
lambda = 50, as the paper's text has it. The authors' code and those that follow it weigh MMD^2 with 50 and have no
half: ``preset=official``, lambda = 100.

The sums never need every pair of maps at once. With channels as the rows of X (C_x, HW) and Y (C_y, HW),

    sum_ij (x_i . y_j)^2 = ||X Y^T||_F^2 = <X^T X, Y^T Y>

and the second form makes MMD^2 = ||S^T S / C_s - T^T T / C_t||_F^2. We take the form of the smaller products.

What the paper leaves open, and we decided: mean over the pictures; several layers (or the levels of a feature pyramid)
count by their mean; maps of unequal size are averaged to the smaller; padding is cut out of the channel maps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from detkt.knowledge import Knowledge, Spec
from detkt.methods.adapters import to_common_size
from detkt.methods.base import STUDENT, Heads, Method, MethodConfig, Stage, Update
from detkt.methods.reductions import full_precision


def nst_loss(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, teacher_mask: Tensor | None = None
) -> Tensor:
    """MMD^2 with the squared dot kernel between channel maps of length 1; mean over pictures. Scalar.

    Args:
        student, teacher: (N, C_s, H_s, W_s) and (N, C_t, H_t, W_t). Unequal sizes are averaged (adaptive average pool)
            to the smaller height and the smaller width.
        mask, teacher_mask: (N, 1, H, W) of the student's and the teacher's map, 1 where it shows picture; None:
            everywhere. Only cells that show picture in both count, so that one mask does for equal sizes.
    """
    student, teacher, mask = to_common_size(student, teacher, mask, teacher_mask)
    ours, theirs = _channel_maps(student, mask), _channel_maps(teacher, mask)
    channels, other, cells = ours.shape[1], theirs.shape[1], ours.shape[2]
    # bmm in half precision would lose the small difference of large sums.
    with torch.autocast(ours.device.type, enabled=False):
        if 2 * cells**2 < channels**2 + other**2 + channels * other:
            difference = _products(ours.mT, ours.mT) / channels - _products(theirs.mT, theirs.mT) / other
            return _squared_norm(difference).mean()
        return (
            _squared_norm(_products(ours, ours)) / channels**2
            + _squared_norm(_products(theirs, theirs)) / other**2
            - 2 * _squared_norm(_products(ours, theirs)) / (channels * other)
        ).mean()


def _channel_maps(feature: Tensor, mask: Tensor | None) -> Tensor:
    """Channels (N, C, H * W) of length 1; a channel of zeros stays one."""
    feature = full_precision(feature)
    if mask is not None:
        feature = feature * mask
    return F.normalize(feature.flatten(2), dim=2)


def _products(first: Tensor, second: Tensor) -> Tensor:
    """Dot products (N, A, B) of the rows of (N, A, L) and (N, B, L)."""
    return torch.bmm(first, second.mT)


def _squared_norm(matrices: Tensor) -> Tensor:
    """Squared Frobenius norm (N,) of (N, A, B)."""
    return matrices.square().sum(dim=(1, 2))


@dataclass
class NSTConfig(MethodConfig):
    """``weight``: lambda."""

    weight: float = 50.0


class NST(Method):
    """The student's channels fire on the same regions as the teacher's.

    See the module's docstring. One stage: distill.
    """

    name = "nst"
    citation = (
        "Huang and Wang, Like What You Like: Knowledge Distill via Neuron Selectivity Transfer, arXiv:1707.01219 (2017)"
    )
    Config = NSTConfig
    config: NSTConfig
    presets = {"default": {}, "paper": {}, "official": {"weight": 100.0}}

    def __init__(self, config: NSTConfig, student: Spec, teacher: Spec) -> None:
        super().__init__(config, student, teacher)
        for pair in self.pairs():
            self.pair_specs(pair)  # raises where a net has no such map

    def step(self, stage: Stage, student: Knowledge, teacher: Knowledge, heads: Heads) -> Iterator[Update]:
        discrepancies = []
        for pair in self.pairs():
            ours, theirs = student.features[pair.student], teacher.features[pair.teacher]
            discrepancies.append(nst_loss(ours, theirs, student.mask(ours), teacher.mask(theirs)))
        added = self.config.weight / 2 * torch.stack(discrepancies).mean()
        yield Update(STUDENT, {self.name: added})
