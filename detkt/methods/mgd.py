"""MGD: the student's map, with a part of its cells blanked, generates the teacher's whole map.

Yang, Li, Shao, Shi, Yuan, Yuan: "Masked Generative Distillation", ECCV 2022 (arXiv:2205.01529).

    w * sum over levels of 1/N sum_n,c,h,w (G(s * M) - t)^2

with a random mask M that blanks each cell, in all channels, with the probability *ratio*, and a generator G, 3x3
convolution - ReLU - 3x3 convolution, that learns with the student. Published weights are of sums over the
maps: w 5e-7 and ratio 0.45 for two-stage detectors, 2e-5 and 0.65 for one-stage ones. What is not set is that of the
student's kind; classifiers take the first.

What the paper leaves open, and we decided:

* A weight of sums means something else on every map. ``cells`` says for how many cells of 256 channels it was chosen:
  the sums are brought to that size. 89,250 cells are the levels P2 to P5 of a picture of 800 x 1344, 22,400 the levels
  P3 to P7: on such maps the loss is the published one, with ``preset=paper`` (``cells`` 0) it is on all maps.
* Padding is blank for the generator and does not count, so that a padded batch is the mean of its pictures one by one.
* Where channels differ, a 1x1 convolution on the student's side learns with it. Where sizes differ, both maps are
  averaged to the smaller height and the smaller width.
* The level that torchvision adds to a pyramid by subsampling the last one is left out, as in the authors' settings.
* Classifiers blank cells, too; the authors' settings for them blank channels instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkt.knowledge import Knowledge, Spec
from detkt.methods.base import STUDENT, Heads, MethodConfig, Stage, Update
from detkt.methods.paired_maps import ONE_STAGE, TWO_STAGE, PairedMaps, cell_factor, channel_factor
from detkt.methods.reductions import squared_error


def random_cells(feature: Tensor, ratio: float) -> Tensor:
    """(N, 1, H, W) for a map (N, C, H, W): 0 for cells to blank, each with the probability *ratio*, else 1."""
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
            feature = layer((feature if mask is None else feature * mask).to(layer.weight.dtype))
        return feature


@dataclass
class MGDConfig(MethodConfig):
    """``weight``: w, of sums over *cells* cells of 256 channels (0: over the map as it is); ``ratio``: of blanks.

    null: what was published for the student's kind of detector.
    """

    weight: float | None = None
    ratio: float | None = None
    cells: int | None = None


class MGD(PairedMaps):
    """The student's map, with random cells blanked, generates the teacher's whole map.

    See the module's docstring. One stage: distill.
    """

    name = "mgd"
    citation = "Yang et al., Masked Generative Distillation, ECCV 2022 (arXiv:2205.01529)"
    Config = MGDConfig
    config: MGDConfig
    presets = {"default": {}, "paper": {"cells": 0}}
    published = {
        TWO_STAGE: {"weight": 5e-7, "ratio": 0.45, "cells": 89_250},
        ONE_STAGE: {"weight": 2e-5, "ratio": 0.65, "cells": 22_400},
    }

    def __init__(self, config: MGDConfig, student: Spec, teacher: Spec) -> None:
        super().__init__(config, student, teacher)
        self.settings = self.settled()
        self.require("ratio", 0 <= self.settings["ratio"] < 1, "0 or more and less than 1")
        self.require_not_negative("cells")
        self.generators = nn.ModuleList(Generator(self.pair_specs(pair)[1].channels) for pair in self.pairs())

    def step(self, stage: Stage, student: Knowledge, teacher: Knowledge, heads: Heads) -> Iterator[Update]:
        levels, cells = self.matched(student, teacher), self.settings["cells"]
        errors = []
        for level, generator in zip(levels, self.generators, strict=True):
            blanked = level.student * random_cells(level.student, self.settings["ratio"])
            generated = generator(blanked, level.mask)
            errors.append(channel_factor(level, cells) * squared_error(generated, level.teacher, level.mask))
        loss = (cell_factor(levels, cells) * torch.stack(errors).sum(dim=0)).mean()
        yield Update(STUDENT, {self.name: self.settings["weight"] * loss})
