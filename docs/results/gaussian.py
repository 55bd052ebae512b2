"""A control of KTAN's adversary without a discriminator: DLN, and the distance of what objects look like on both maps.

    detkt train-det --method docs/results/gaussian.py:Gaussian methods.gaussian.adversary_balance=0.3

The cells of an object on the student's map, and on R(t), are a normal distribution each, every channel by itself. The
squared 2-Wasserstein distance of two of these is (difference of means)^2 + (difference of deviations)^2: what a perfect
critic of distributions would tell, in closed form.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torchvision.ops import roi_align

from detkt.knowledge import Knowledge
from detkt.methods.base import Heads, Needs, Stage, Update
from detkt.methods.ktan import DLN, DLNConfig
from detkt.methods.reductions import full_precision, root_mean_square

SIZE, VARIANCE = 7, 1e-6


def moments(feature: Tensor, boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and deviation (K, C) of a map (N, C, H, W) over each of the K *boxes*, n (n, 4) in cells a picture."""
    cells = roi_align(feature, [each.to(feature.dtype) for each in boxes], SIZE, sampling_ratio=2, aligned=True)
    cells = cells.flatten(2)
    return cells.mean(dim=2), (cells.var(dim=2, correction=0) + VARIANCE).sqrt()


def gaussian_distance(student: Tensor, teacher: Tensor, boxes: Sequence[Tensor]) -> Tensor:
    """Squared 2-Wasserstein distance of the maps' cells in each box, mean over boxes and channels; 0 without boxes."""
    if not any(map(len, boxes)):
        return 0 * full_precision(student).sum()
    ours, theirs = (moments(full_precision(feature), boxes) for feature in (student, teacher))
    apart = sum((a - b).square() for a, b in zip(ours, theirs, strict=True))
    return apart.mean()


@dataclass
class GaussianConfig(DLNConfig):
    """DLN's; ``adversary_balance``: the distance's share of the task's gradient, 0: weight 1."""

    section: ClassVar[str] = "gaussian"


class Gaussian(DLN):
    """DLN, and the distributions of the maps' cells in every object are to be alike."""

    name = "gaussian"
    Config = GaussianConfig

    def stages(self) -> Sequence[Stage]:
        return [
            replace(stage, needs=stage.needs | Needs.BOXES) if stage.name == "distill" else stage
            for stage in super().stages()
        ]

    def share_settings(self) -> dict[str, str]:
        return {"gaussian_mse": "balance", "gaussian_distance": "adversary_balance"}

    def step(self, stage: Stage, student: Knowledge, teacher: Knowledge, heads: Heads) -> Iterator[Update]:
        for update in super().step(stage, student, teacher, heads):
            yield self._with_distance(update, student, teacher) if stage.name == "distill" else update

    def _with_distance(self, update: Update, student: Knowledge, teacher: Knowledge) -> Update:
        distances = []
        for pair in self.pairs():
            ours = student.features[pair.student]
            with torch.no_grad():
                target = self._regressed(pair, student, teacher)
                scale = root_mean_square(target, student.mask(ours))
            distances.append(gaussian_distance(ours / scale, target / scale, student.boxes_on(ours)))
        return replace(update, losses={**update.losses, "gaussian_distance": torch.stack(distances).mean()})
