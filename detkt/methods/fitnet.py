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
  default, as in the papers. ``normalize_student`` divides s by its own before the regressor: then both sides have one
  scale, and the hint teaches a direction. Else a student's map at ten times the target's scale (of a net that ends
  without a norm) is first of all made smaller.

Two more settings make it the hint of Ultralytics' YOLO (pull request 24894, 2026): ``projector: mlp`` has two 1x1
convolutions with a ReLU in between for reg, the student's map resized before them, and ``weighting: score`` weighs each
cell's squared error by the teacher's highest class score there, of a two-stage teacher by the highest objectness of its
proposals. Ours divides by the sum of these weights, so that w means the same on a picture with many objects and on one
with few. Their w of 6 is of another sum (theirs has no 1/2, and adds three levels): hold ours with ``balance``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkt.base.errors import InputError
from detkt.knowledge import FeatureSpec, Knowledge, Spec
from detkt.methods.adapters import Regressor, with_zero_bias
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
    choose,
    outputs,
    view_title,
)
from detkt.methods.reductions import full_precision, mean_square, root_mean_square


def hint_loss(regressed: Tensor, teacher: Tensor, mask: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
    """1/2 (reg(s) - t)^2, mean over all elements (N, C, H, W) or, with *mask* (N, 1, H, W), over its cells. Scalar.

    weights: (N, 1, H, W), 0 or more, what each cell counts in the mean; None: all alike.
    """
    difference = full_precision(regressed) - full_precision(teacher)
    if weights is None:
        return 0.5 * mean_square(difference, mask)
    weights = weights if mask is None else weights * mask
    total = (weights.sum() * difference.shape[1]).clamp_min(1e-6)
    return 0.5 * (weights * difference * difference).sum() / total


class Projector(nn.Module):
    """Map (N, C_source, H, W) -> (N, C_target, H', W') through two 1x1 convolutions with a ReLU in between."""

    def __init__(self, source: FeatureSpec, target: FeatureSpec) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            with_zero_bias(nn.Conv2d(source.channels, target.channels, 1)),
            nn.ReLU(),
            with_zero_bias(nn.Conv2d(target.channels, target.channels, 1)),
        )

    def is_pointwise(self, feature: Tensor, size: tuple[int, ...]) -> bool:
        """As :meth:`detkt.methods.adapters.Regressor.is_pointwise`."""
        return tuple(feature.shape[-2:]) == tuple(size)

    def forward(self, feature: Tensor, size: tuple[int, int]) -> Tensor:
        """*size*: height and width of the target's map on this batch, to which the map is resized bilinearly."""
        if feature.shape[-2:] != size:
            feature = F.interpolate(feature, size=size, mode="bilinear", align_corners=False)
        return self.layers(feature)


@dataclass
class FitNetConfig(MethodConfig):
    """``weight``: w; ``normalize``: bring the teacher's map to a root mean square of 1.

    ``normalize_student``: the student's map, too, before the regressor. ``weighting``: ``uniform``, or ``score``: cells
    count by the teacher's highest class score there. ``projector``: ``linear``, one convolution, or ``mlp``.
    """

    weight: float = 4.0
    normalize: bool = False
    normalize_student: bool = False
    weighting: str = "uniform"
    projector: str = "linear"


class FitNet(Method):
    """The student's map, regressed, imitates the teacher's (Ultralytics' hint: weighting=score projector=mlp).

    See the module's docstring. One stage: distill.
    """

    name = "fitnet"
    citation = "Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015 (arXiv:1412.6550)"
    Config = FitNetConfig
    config: FitNetConfig

    def __init__(self, config: FitNetConfig, student: Spec, teacher: Spec) -> None:
        super().__init__(config, student, teacher)
        choose(config.weighting, ("uniform", "score"), "methods.fitnet.weighting")
        choose(config.projector, ("linear", "mlp"), "methods.fitnet.projector")
        for pair in self.pairs() if config.weighting == "score" else []:
            if pair.teacher not in outputs(teacher.features):
                raise InputError(
                    f"methods.fitnet.layers: the teacher has no scores on '{pair.teacher}', which weighting=score "
                    "needs; name outputs of its backbone, or leave it empty"
                )
        self.regressors = nn.ModuleList(self._regressor(*self.pair_specs(pair)) for pair in self.pairs())

    def _regressor(self, source: FeatureSpec, target: FeatureSpec) -> nn.Module:
        return Projector(source, target) if self.config.projector == "mlp" else Regressor(source, target, padded=False)

    def stages(self) -> Sequence[Stage]:
        needs = Needs.STUDENT | Needs.TEACHER_FEATURES
        return [Stage("distill", needs | Needs.TEACHER_CONFIDENCE if self.config.weighting == "score" else needs)]

    def players(self) -> dict[str, Player]:
        return {STUDENT: Player((self.regressors,))}

    def step(self, stage: Stage, student: Knowledge, teacher: Knowledge, heads: Heads) -> Iterator[Update]:
        hints = []
        for i, pair in enumerate(self.pairs()):
            target = full_precision(teacher.features[pair.teacher])
            mask = teacher.mask(target)
            if self.config.normalize:
                target = target / root_mean_square(target, mask)
            weights = teacher.confidence[pair.teacher] if self.config.weighting == "score" else None
            hints.append(hint_loss(self._regressed(i, pair, student, target), target, mask, weights))
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
        regressor = cast(Regressor | Projector, self.regressors[index])
        mask = student.mask(source)
        if self.config.normalize_student:
            source = source / root_mean_square(source, mask).to(source.dtype)
        if mask is not None and not regressor.is_pointwise(source, size):
            source = source * mask  # else padding would be mixed into the picture's border
        return regressor(source, size)
