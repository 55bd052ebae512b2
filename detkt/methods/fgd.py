"""FGD: the student's map is the teacher's where objects are and where the teacher attends, and so are its relations.

Yang, Li, Jiang, Gong, Yuan, Zhao, Yuan: "Focal and Global Knowledge Distillation for Detectors", CVPR 2022
(arXiv:2111.11837).

    sum over levels of  foreground * 1/N sum M_f A_s A_c (s - t)^2  +  background * 1/N sum M_b A_s A_c (s - t)^2
                        + attention * 1/N (|A_s(s) - A_s(t)|_1 + |A_c(s) - A_c(t)|_1)
                        + relation * 1/N sum (R_s(s) - R_t(t))^2

with sums over channels and cells. M_f is one over the number of cells of the smallest box that lies over a cell, M_b
one over the number of cells without box. Spatial attention A_s = HW softmax(mean_c |x| / T) and channel attention A_c =
C softmax(mean_hw |x| / T), T 0.5: those that weigh the error are the teacher's alone. R_s and R_t are two context
blocks (GcNet), whose last convolution starts at zero and which learn with the student.

Published weights are of sums over the maps: 5e-5, 2.5e-5, 5e-5, 5e-7 for two-stage detectors, 1e-3, 5e-4, 5e-4, 5e-6
for one-stage ones. A weight that is not set is that of the student's kind. Their author advises to keep the ratios and
to choose the scale such that each term lies between 0.1 and 2: the log has the terms, as they are before ``balance``
holds their sum to a share.

What the paper leaves open, and we decided:

* A weight of sums means something else on every map. ``cells`` says for how many cells of 256 channels it was chosen,
  and what is summed over channels or cells is brought to that size. M_f and M_b are means over a level's cells already
  (so that with one map in place of four levels these two terms are a quarter beside the others). 89,250
  cells are the levels P2 to P5 of a picture of 800 x 1344, 22,400 the levels P3 to P7: on such maps the loss is the
  published one, with ``preset=paper`` (``cells`` 0) it is on all maps.
* A box covers the cells from the one that its upper left corner lies in to the one after its lower right corner, as in
  the authors' code. Theirs places the boxes of a padded picture too far to the right and below; ours does not.
* Padding is no background and takes no part in the softmaxes, so that a padded batch is the mean of its pictures one by
  one.
* Where channels differ, a 1x1 convolution on the student's side learns with it. Where sizes differ, both maps are
  averaged to the smaller height and the smaller width.
* The level that torchvision adds to a pyramid by subsampling the last one is left out, as in the authors' settings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detkt.knowledge import Knowledge, Spec
from detkt.methods.adapters import with_zero_bias
from detkt.methods.base import STUDENT, Heads, MethodConfig, Needs, Stage, Update
from detkt.methods.paired_maps import ONE_STAGE, TWO_STAGE, Matched, PairedMaps, cell_factor, channel_factor
from detkt.methods.reductions import full_precision, squared_error


def foreground_mask(boxes: Tensor, height: int, width: int) -> Tensor:
    """M_f of one picture: the largest 1 / (cells of a box) among the boxes over each cell, 0 without box.

    Args:
        boxes: (n, 4), x1, y1, x2, y2 in cells of the map; n may be 0. A box covers the columns floor(x1) to ceil(x2)
            and the rows floor(y1) to ceil(y2), both ends included. Cells outside of the map count, but are not drawn.
        height, width: of the map, in cells.

    Returns:
        (height, width).
    """
    boxes = boxes if boxes.is_floating_point() else boxes.float()
    if not len(boxes):
        return boxes.new_zeros(height, width)
    (x1, y1), (x2, y2) = boxes[:, :2].floor().unbind(1), boxes[:, 2:].ceil().unbind(1)
    rows = torch.arange(height, device=boxes.device)
    columns = torch.arange(width, device=boxes.device)
    over_rows = (rows >= y1[:, None]) & (rows <= y2[:, None])
    over_columns = (columns >= x1[:, None]) & (columns <= x2[:, None])
    share = 1 / ((y2 - y1 + 1) * (x2 - x1 + 1))
    return (share[:, None, None] * (over_rows[:, :, None] & over_columns[:, None, :])).amax(dim=0)


def background_mask(foreground: Tensor, mask: Tensor | None = None) -> Tensor:
    """M_b (N, 1, H, W): 1 / (cells without box) on these cells of each picture, 0 on others; all 0 if there are none.

    foreground: M_f (N, 1, H, W); mask: 1 where the map shows picture, None: everywhere.
    """
    empty = (foreground == 0).to(foreground.dtype)
    if mask is not None:
        empty = empty * mask
    return empty / empty.sum(dim=(2, 3), keepdim=True).clamp_min(1)


def attention(feature: Tensor, temperature: float = 0.5, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A_s (N, 1, H, W) and A_c (N, C, 1, 1) of a map (N, C, H, W), each of mean 1 over a picture.

    *mask* (N, 1, H, W) is 1 where the map shows picture; only these cells count, A_s is 0 on others.
    """
    magnitude = full_precision(feature).abs()
    cells = magnitude[0, 0].numel() if mask is None else mask.sum(dim=(2, 3), keepdim=True)
    over_cells = magnitude.mean(dim=1, keepdim=True) / temperature
    if mask is None:
        over_channels = magnitude.mean(dim=(2, 3), keepdim=True)
    else:
        over_cells = over_cells.masked_fill(mask == 0, float("-inf"))
        over_channels = (magnitude * mask).sum(dim=(2, 3), keepdim=True) / cells
    spatial = cells * over_cells.flatten(2).softmax(dim=2).unflatten(2, over_cells.shape[2:])
    return spatial, feature.shape[1] * (over_channels / temperature).softmax(dim=1)


def focal_errors(
    student: Tensor, teacher: Tensor, foreground: Tensor, background: Tensor, spatial: Tensor, channel: Tensor
) -> tuple[Tensor, Tensor]:
    """Sums of M_f A_s A_c (s - t)^2 and of M_b A_s A_c (s - t)^2 over each picture: (N,) and (N,).

    student, teacher: (N, C, H, W); foreground, background, spatial: (N, 1, H, W); channel: (N, C, 1, 1).
    """
    difference = full_precision(student) - full_precision(teacher)
    error = spatial * (channel * difference * difference).sum(dim=1, keepdim=True)
    return (foreground * error).sum(dim=(1, 2, 3)), (background * error).sum(dim=(1, 2, 3))


class ContextBlock(nn.Module):
    """R: a map (N, C, H, W) plus what the picture as a whole tells each channel (Cao et al. 2019, GcNet's block).

    The last convolution starts at zero: R is the identity first.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.where = with_zero_bias(nn.Conv2d(channels, 1, 1))
        nn.init.kaiming_normal_(self.where.weight, nonlinearity="relu")
        hidden = max(1, channels // 2)
        first, last = nn.Conv2d(channels, hidden, 1), with_zero_bias(nn.Conv2d(hidden, channels, 1))
        nn.init.zeros_(last.weight)
        self.transform = nn.Sequential(first, nn.LayerNorm([hidden, 1, 1]), nn.ReLU(), last)

    def forward(self, feature: Tensor, mask: Tensor | None = None) -> Tensor:
        """*mask* (N, 1, H, W): 1 where the map shows picture; the context is of these cells alone."""
        weights = full_precision(self.where(feature))
        if mask is not None:
            weights = weights.masked_fill(mask == 0, float("-inf"))
        weights = weights.flatten(2).softmax(dim=2).unflatten(2, feature.shape[2:])
        context = (feature * weights).sum(dim=(2, 3), keepdim=True)
        return feature + self.transform(context)


@dataclass
class FGDConfig(MethodConfig):
    """Weights of the four terms, of sums over *cells* cells of 256 channels (0: over the map as it is).

    ``foreground``, ``background``, ``attention``, ``relation`` (the paper's alpha, beta, gamma, lambda) and ``cells``;
    null: what was published for the student's kind of detector. ``temperature``: T of the attentions.
    """

    foreground: float | None = None
    background: float | None = None
    attention: float | None = None
    relation: float | None = None
    temperature: float = 0.5
    cells: int | None = None


class FGD(PairedMaps):
    """The student's map is the teacher's where objects are and where the teacher attends, and so are its relations.

    See the module's docstring. One stage: distill.
    """

    name = "fgd"
    citation = "Yang et al., Focal and Global Knowledge Distillation for Detectors, CVPR 2022 (arXiv:2111.11837)"
    Config = FGDConfig
    config: FGDConfig
    needs = Needs.STUDENT | Needs.TEACHER_FEATURES | Needs.BOXES
    presets = {"default": {}, "paper": {"cells": 0}}
    published = {
        TWO_STAGE: {"foreground": 5e-5, "background": 2.5e-5, "attention": 5e-5, "relation": 5e-7, "cells": 89_250},
        ONE_STAGE: {"foreground": 1e-3, "background": 5e-4, "attention": 5e-4, "relation": 5e-6, "cells": 22_400},
    }

    def __init__(self, config: FGDConfig, student: Spec, teacher: Spec) -> None:
        super().__init__(config, student, teacher)
        self.require("temperature", config.temperature > 0, "greater than 0")
        self.settings = self.settled()
        self.require_not_negative(*self.settings)
        channels = [self.pair_specs(pair)[1].channels for pair in self.pairs()]
        self.student_context, self.teacher_context = (
            nn.ModuleList(ContextBlock(count) for count in channels) for _ in range(2)
        )

    def step(self, stage: Stage, student: Knowledge, teacher: Knowledge, heads: Heads) -> Iterator[Update]:
        levels = self.matched(student, teacher)
        per_cell = cell_factor(levels, self.settings["cells"])
        terms = [
            self._terms(number, level, student.boxes_on(level.student), per_cell) for number, level in enumerate(levels)
        ]
        weighted = {
            name: self.settings[name] * torch.stack([of_level[name] for of_level in terms]).sum(dim=0).mean()
            for name in terms[0]
        }
        metrics = {f"{self.name}_{name}": loss.detach() for name, loss in weighted.items()}
        yield Update(STUDENT, {self.name: torch.stack(list(weighted.values())).sum()}, metrics)

    def _terms(
        self, number: int, level: Matched, boxes: Sequence[Tensor], per_cell: Tensor | float
    ) -> dict[str, Tensor]:
        """The terms of a level by the setting that is their weight, of each picture (N,); boxes in cells."""
        per_channel = channel_factor(level, self.settings["cells"])
        foreground = torch.stack([foreground_mask(found, *level.student.shape[2:]) for found in boxes]).unsqueeze(1)
        background = background_mask(foreground, level.mask)
        (our_cells, our_channels), (cells, channels) = (
            attention(feature, self.config.temperature, level.mask) for feature in (level.student, level.teacher)
        )
        on_boxes, elsewhere = focal_errors(level.student, level.teacher, foreground, background, cells, channels)
        apart = per_cell * (our_cells - cells).abs().sum(dim=(1, 2, 3))
        channels_apart = per_channel * (our_channels - channels).abs().sum(dim=(1, 2, 3))
        ours = self.student_context[number](level.student, level.mask)
        theirs = self.teacher_context[number](level.teacher, level.mask)
        return {
            "foreground": per_channel * on_boxes,
            "background": per_channel * elsewhere,
            "attention": apart + channels_apart,
            "relation": per_cell * per_channel * squared_error(ours, theirs, level.mask),
        }
