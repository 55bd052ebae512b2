"""FitNet: the student's map, through a regressor of its own, imitates the teacher's (hint learning).

Romero, Ballas, Kahou, Chassang, Gatta, Bengio: "FitNets: Hints for Thin Deep Nets", ICLR 2015 (arXiv:1412.6550).

    L_task + w * 1/2 ||reg(s) - t||^2

with student map s, teacher map t and a regressor reg on the student's side, trained with it. We follow the KTAN
papers, which compare with it: the last shared layer, w = 4, and the hint beside the task loss all the time, where
FitNets has a stage of hints alone before a stage of KD. What the papers leave open, and we decided:

* ||.||^2 is the mean over the elements that show picture, so that w does not depend on the map's size.
* The regressor is one convolution, and ends as the teacher's layer ends (FitNets asks for "the same non-linearity").
  From a larger map its kernel makes the size fit, as in FitNets; from one with an axis that is shorter than the
  teacher's, which FitNets does not have, it is 1x1 on the resized map.
* Several layers (or the levels of a feature pyramid) count by their mean.
* ``normalize`` divides t by its root mean square, so that w does not depend on the teacher's scale either. Off by
  default, as in the papers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from detkt.knowledge import Knowledge, Spec
from detkt.methods.adapters import Regressor
from detkt.methods.base import (
    STUDENT,
    Heads,
    LayerPair,
    Method,
    MethodConfig,
    Needs,
    Player,
    Stage,
    Update,
    view_title,
)
from detkt.methods.reductions import full_precision, mean_square, root_mean_square


def hint_loss(regressed: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """1/2 (reg(s) - t)^2, mean over all elements (N, C, H, W) or, with *mask* (N, 1, H, W), over its cells. Scalar."""
    return 0.5 * mean_square(full_precision(regressed) - full_precision(teacher), mask)


@dataclass
class FitNetConfig(MethodConfig):
    """``weight``: w; ``normalize``: bring the teacher's map to a root mean square of 1."""

    weight: float = 4.0
    normalize: bool = False


class FitNet(Method):
    """The student's map, through a regressor of its own, imitates the teacher's (hint learning).

    See the module's docstring. One stage: distill.
    """

    name = "fitnet"
    citation = "Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015 (arXiv:1412.6550)"
    Config = FitNetConfig
    config: FitNetConfig

    def __init__(self, config: FitNetConfig, student: Spec, teacher: Spec) -> None:
        super().__init__(config, student, teacher)
        self.regressors = nn.ModuleList(Regressor(*self.pair_specs(pair), padded=False) for pair in self.pairs())

    def stages(self) -> Sequence[Stage]:
        return [Stage("distill", Needs.STUDENT | Needs.TEACHER_FEATURES)]

    def players(self) -> dict[str, Player]:
        return {STUDENT: Player((self.regressors,))}

    def step(self, stage: Stage, student: Knowledge, teacher: Knowledge, heads: Heads) -> Iterator[Update]:
        hints = []
        for i, pair in enumerate(self.pairs()):
            target = full_precision(teacher.features[pair.teacher])
            mask = teacher.mask(target)
            if self.config.normalize:
                target = target / root_mean_square(target, mask)
            hints.append(hint_loss(self._regressed(i, pair, student, target), target, mask))
        added = self.config.weight * torch.stack(hints).mean()
        yield Update(STUDENT, {self.name: added})

    def views(self, student: Knowledge, teacher: Knowledge) -> dict[str, Tensor]:
        views: dict[str, Tensor] = {}
        for i, pair in enumerate(self.pairs()):
            target = teacher.features[pair.teacher]
            views |= {
                view_title("teacher", pair.teacher): target,
                view_title("student, regressed", pair.student): self._regressed(i, pair, student, target),
                view_title("student", pair.student): student.features[pair.student],
            }
        return views

    def _regressed(self, index: int, pair: LayerPair, student: Knowledge, target: Tensor) -> Tensor:
        """reg(s) of the pair of this *index*, in the *target*'s shape."""
        source, size = student.features[pair.student], target.shape[-2:]
        regressor = cast(Regressor, self.regressors[index])
        mask = student.mask(source)
        if mask is not None and not regressor.is_pointwise(source, size):
            source = source * mask  # else padding would be mixed into the picture's border
        return regressor(source, size)
