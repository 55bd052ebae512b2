"""PKD: the student's map correlates with the teacher's, channel by channel, whatever the scale of either.

Cao, Zhang, Gao, Cheng, Cheng, Cheng: "PKD: General Distillation Framework for Object Detectors via Pearson Correlation
Coefficient", NeurIPS 2022 (arXiv:2207.02039).

    w * sum over levels of 1/2 mean (s' - t')^2,    x' = (x - mean_c) / (std_c + 10^-6)

with mean and standard deviation of each channel c over all pictures and cells of the batch (the deviation is the
unbiased one, as in the authors' code, mmrazor's pkd_loss.py). With n values a channel this is (n - 1) / n times 1 - r,
averaged over the channels, r Pearson's correlation. The loss lies between 0 and 2 on any map, so that w means the same
on all of them: 6 a level, as published.

What the paper leaves open, and we decided:

* Padding takes no part in mean, deviation and error. The statistics are the batch's, so a batch is not the mean of its
  pictures one by one; it is what one picture made of all their cells would be.
* A channel that is constant in a map, but for rounding, has no correlation. It is 0 after standardising, as with the
  authors' 10^-6, but its gradient is that of a deviation of 1, where theirs is a million times that.
* Where channels differ, a 1x1 convolution on the student's side learns with it. Where sizes differ, both maps are
  averaged to the smaller
  height and the smaller width.
* The level that torchvision adds to a pyramid by subsampling the last one is left out, as in the authors' settings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from detkt.knowledge import Knowledge
from detkt.methods.adapters import in_one_shape
from detkt.methods.base import STUDENT, Heads, MethodConfig, Stage, Update
from detkt.methods.paired_maps import PairedMaps
from detkt.methods.reductions import centred_channels, full_precision, mean_square

ROUNDING = 8
"""Deviations up to so many times the precision of a channel's mean are rounding: the channel is constant."""


def standardised(feature: Tensor, mask: Tensor | None = None) -> Tensor:
    """Each channel of a map (N, C, H, W) at mean 0 and deviation 1 over all pictures and cells; a constant one at 0.

    *mask* (N, 1, H, W) is 1 where the map shows picture: only these cells count, the others are 0.
    """
    feature = full_precision(feature)
    # A constant channel must give exactly 0, which it does only if it is 0 before it is summed.
    first = feature[:1, :, :1, :1].detach()
    centred, mean, variance = centred_channels(feature - first, mask)
    # Averaged to a smaller map, a constant channel is constant but for the rounding of each cell.
    constant = variance <= (ROUNDING * torch.finfo(feature.dtype).eps * (first + mean.detach())) ** 2
    deviation = variance.masked_fill(constant, 1).sqrt()
    return centred / (deviation + 1e-6)


def pkd_loss(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, teacher_mask: Tensor | None = None
) -> Tensor:
    """1/2 (s' - t')^2 of the standardised maps, mean over channels and cells. Scalar between 0 and 2.

    Args:
        student, teacher: (N, C, H, W); unequal sizes are averaged to the smaller height and the smaller width.
        mask, teacher_mask: (N, 1, H, W) of the student's and the teacher's map, 1 where it shows picture; None:
            everywhere. Only cells that show picture in both count, so that one mask does for equal sizes.

    Raises:
        ValueError: unequal channels or pictures.
    """
    student, teacher, mask = in_one_shape(student, teacher, mask, teacher_mask)
    return 0.5 * mean_square(standardised(student, mask) - standardised(teacher, mask), mask)


@dataclass
class PKDConfig(MethodConfig):
    """``weight``: w of each level."""

    weight: float = 6.0


class PKD(PairedMaps):
    """The student's map correlates with the teacher's, channel by channel, whatever the scale of either.

    See the module's docstring. One stage: distill.
    """

    name = "pkd"
    citation = "Cao et al., PKD: General Distillation Framework for Object Detectors, NeurIPS 2022 (arXiv:2207.02039)"
    Config = PKDConfig
    config: PKDConfig

    def step(self, stage: Stage, student: Knowledge, teacher: Knowledge, heads: Heads) -> Iterator[Update]:
        losses = [pkd_loss(*level) for level in self.matched(student, teacher)]
        yield Update(STUDENT, {self.name: self.config.weight * torch.stack(losses).sum()})
