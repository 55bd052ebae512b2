"""CWD: each channel of the student's map is active where the teacher's is.

Shu, Liu, Gao, Yan, Shen: "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021 (arXiv:2011.13256).

    w * sum over levels of T^2 / (N C) sum_n,c KL(softmax_HW(t / T) || softmax_HW(s / T))

where the softmax makes a distribution over the cells of every channel. A divergence of distributions does
not grow with the map, so that w means the same on all maps: 10 a level at T 1, as published for the necks of detectors
(mmrazor's settings). ``preset=paper`` has the paper's 50 at T 4, chosen for the maps of segmentation nets.

What the paper leaves open, and we decided: padding takes no part in the softmax, so that a padded batch is the mean of
its pictures one by one. Where channels differ, a 1x1 convolution on the student's side learns with it. Where sizes
differ, both maps are averaged to the smaller height and the smaller width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from detkt.knowledge import Knowledge, Spec
from detkt.methods.adapters import in_one_shape
from detkt.methods.base import STUDENT, Heads, MethodConfig, Stage, Update
from detkt.methods.paired_maps import PairedMaps


def cwd_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    teacher_mask: Tensor | None = None,
) -> Tensor:
    """T^2 KL(softmax_HW(t / T) || softmax_HW(s / T)), mean over pictures and channels. Scalar, 0 or more.

    Args:
        student, teacher: (N, C, H, W); unequal sizes are averaged to the smaller height and the smaller width.
        temperature: T, greater than 0. The factor T^2 keeps the gradient's size as T changes.
        mask, teacher_mask: (N, 1, H, W) of the student's and the teacher's map, 1 where it shows picture; None:
            everywhere. Only cells that show picture in both count, so that one mask does for equal sizes.

    Raises:
        ValueError: unequal channels or pictures.
    """
    student, teacher, mask = in_one_shape(student, teacher, mask, teacher_mask)
    ours, theirs = (_log_distribution(feature / temperature, mask) for feature in (student, teacher))
    p, difference = theirs.exp(), theirs - ours
    if mask is not None:
        # 0 log 0 is -inf less -inf; and a picture without cells has no distribution, and costs nothing.
        p, difference = (values.masked_fill(mask.flatten(2) == 0, 0) for values in (p, difference))
    return temperature**2 * (p * difference).sum(dim=2).mean()


def _log_distribution(feature: Tensor, mask: Tensor | None) -> Tensor:
    """log softmax over the cells of *mask* of every channel: (N, C, H * W), -inf elsewhere."""
    if mask is not None:
        feature = feature.masked_fill(mask == 0, float("-inf"))
    return F.log_softmax(feature.flatten(2), dim=2)


@dataclass
class CWDConfig(MethodConfig):
    """``weight``: w of each level; ``temperature``: T."""

    weight: float = 10.0
    temperature: float = 1.0


class CWD(PairedMaps):
    """Each channel of the student's map is active where the teacher's is.

    See the module's docstring. One stage: distill.
    """

    name = "cwd"
    citation = "Shu et al., Channel-wise Knowledge Distillation for Dense Prediction, ICCV 2021 (arXiv:2011.13256)"
    Config = CWDConfig
    config: CWDConfig
    presets = {"default": {}, "paper": {"weight": 50.0, "temperature": 4.0}}

    def __init__(self, config: CWDConfig, student: Spec, teacher: Spec) -> None:
        super().__init__(config, student, teacher)
        self.require("temperature", config.temperature > 0, "greater than 0")

    def step(self, stage: Stage, student: Knowledge, teacher: Knowledge, heads: Heads) -> Iterator[Update]:
        levels = self.matched(student, teacher)
        losses = [cwd_loss(ours, theirs, self.config.temperature, mask) for ours, theirs, mask in levels]
        yield Update(STUDENT, {self.name: self.config.weight * torch.stack(losses).sum()})
