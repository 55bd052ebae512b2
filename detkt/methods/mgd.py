"""MGD: the student's map, with a part of its cells blanked, generates the teacher's whole map.

Yang, Li, Shao, Shi, Yuan, Yuan: "Masked Generative Distillation", ECCV 2022 (arXiv:2205.01529).

    w * sum over levels of 1/N sum_n,c,h,w (G(s * M) - t)^2

with a random mask M that blanks each cell, in all channels, with the probability *ratio* (Eq. 2) and a generator G, 3x3
convolution - ReLU - 3x3 convolution, that learns with the student (Eq. 3). Published weights are of sums over the
maps: w 5e-7 and ratio 0.45 for two-stage detectors, 2e-5 and 0.65 for one-stage ones (``preset=one_stage``).

What the paper leaves open, and we decided:

* A weight of sums means something else on every map. ``cells`` says for how many cells of 256 channels it was chosen:
  the sums are brought to that size. 89,250 cells are the levels P2 to P5 of a picture of 800 x 1344, 22,400 the levels
  P3 to P7: there, and on any map of 256 channels with ``preset=paper`` (``cells`` 0), the loss is the published one.
* Padding is blank for the generator and does not count, so that a padded batch is the mean of its pictures one by one.
* Where channels differ, a 1x1 convolution on the student's side learns with it. Where sizes differ, both maps are
  averaged to the smaller height and the smaller width.
* The level that torchvision adds to a pyramid by subsampling the last one is left out, as in the authors' settings.
* Classifiers blank cells, too; the authors' settings for them blank channels instead.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkt.methods.reductions import squared_error


def random_cells(feature: Tensor, ratio: float) -> Tensor:
    """1 for cells of a map (N, C, H, W) that stay, 0 for those to blank, each with probability *ratio*: (N, 1, H, W)."""
    size = (len(feature), 1, *feature.shape[-2:])
    return (torch.rand(size, device=feature.device) >= ratio).to(feature.dtype)


class Generator(nn.Module):
    """G: map (N, C, H, W) -> map of the same shape, 3x3 convolution - ReLU - 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, feature: Tensor, mask: Tensor | None = None) -> Tensor:
        """*mask* (N, 1, H, W): 1 where the map shows picture; the rest is as blank as what lies outside of the map."""
        for layer in (self.first, self.second):
            if layer is self.second:
                feature = F.relu(feature)
            feature = layer(feature if mask is None else feature * mask)
        return feature


def mgd_loss(generated: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """(G(s * M) - t)^2, sum over channels and cells, mean over pictures. Scalar.

    Args:
        generated, teacher: (N, C, H, W).
        mask: (N, 1, H, W), 1 where the maps show picture; None: everywhere.

    Raises:
        ValueError: the shapes differ.
    """
    return squared_error(generated, teacher, mask).mean()
