"""FSP: flow of solution procedure, how one layer's features lead to the next one's.

Yim, Joo, Bae, Kim: "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer
Learning", CVPR 2017.

    L_task + w * sum over neighbouring layers of || G(s_k, s_k+1) - G(t_k, t_k+1) ||^2,    G(a, b) = A B^T / (H W)

with the channels of a and b as the rows of A (C_a, HW) and B (C_b, HW) (Eq. 1 and 2). What the paper leaves open, or
we do otherwise:

* The paper trains on this loss first and on the task afterwards; here the two are added, as for all other methods.
* ||.||^2 is the mean over the entries of G and over the pictures, so that w does not depend on the widths. w = 1.
* G's shape holds no map size, so the nets' maps may differ in size; their channels may not. Where they do, a 1x1
  convolution on the student's side, trained with it, gives its layer the teacher's channels.
* Two layers of unequal size: the larger map is max pooled to the smaller, as the paper does.
* Padding is cut out of the mean over cells.

The method needs two layers or more: ``layers``, in the order in which the net runs them; without it the levels of a
feature pyramid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from detkt.base.errors import InputError
from detkt.knowledge import FeatureSpec, Knowledge, Spec
from detkt.methods.adapters import max_pool, to_common_size
from detkt.methods.base import STUDENT, Heads, Method, MethodConfig, Player, Stage, Update


def flow_matrix(
    first: Tensor,
    second: Tensor,
    mask: Tensor | None = None,
    second_mask: Tensor | None = None,
) -> Tensor:
    """G: products of every channel of *first* with every channel of *second*, mean over cells. (N, C1, C2).

    Args:
        first, second: maps (N, C1, H1, W1) and (N, C2, H2, W2) of two layers of one net. Unequal sizes are max pooled
            (adaptively) to the smaller height and the smaller width.
        mask, second_mask: (N, 1, H, W) of the two maps, 1 where they show picture; None: everywhere. The mean is over
            the cells that show picture in both, so that one mask does for equal sizes.
    """
    first, second, mask = to_common_size(first, second, mask, second_mask, max_pool)
    cells: Tensor | int = first.shape[-2] * first.shape[-1]
    if mask is not None:
        second = second * mask
        cells = mask.sum(dim=(2, 3)).unsqueeze(2)
    with torch.autocast(first.device.type, enabled=False):
        return torch.bmm(first.flatten(2), second.flatten(2).mT) / cells


@dataclass
class FSPConfig(MethodConfig):
    """``weight``: w."""

    weight: float = 1.0


class FSP(Method):
    """One layer's features are to lead to the next one's as they do in the teacher.

    See the module's docstring. One stage: distill.
    """

    name = "fsp"
    citation = "Yim et al., A Gift from Knowledge Distillation, CVPR 2017"
    Config = FSPConfig
    config: FSPConfig

    def __init__(self, config: FSPConfig, student: Spec, teacher: Spec) -> None:
        super().__init__(config, student, teacher)
        pairs = self.pairs()
        if len(pairs) < 2:
            raise InputError(
                f"method 'fsp' compares neighbouring layers and needs two or more, but has only "
                f"'{pairs[0].student}'; name them with methods.fsp.layers=[NAME or STUDENT=TEACHER, ...], "
                "e.g. [layer2,layer3] for two ResNets"
            )
        self.adapters = nn.ModuleList(_adapter(*self.pair_specs(pair)) for pair in pairs)

    def players(self) -> dict[str, Player]:
        return {STUDENT: Player((self.adapters,))}

    def step(self, stage: Stage, student: Knowledge, teacher: Knowledge, heads: Heads) -> Iterator[Update]:
        pairs = self.pairs()
        ours = [student.features[pair.student] for pair in pairs]
        ours = [adapter(feature) for adapter, feature in zip(self.adapters, ours, strict=True)]
        theirs = [teacher.features[pair.teacher] for pair in pairs]
        distances = [
            (flow - target).square().mean()
            for flow, target in zip(_flows(ours, student), _flows(theirs, teacher), strict=True)
        ]
        added = self.config.weight * torch.stack(distances).sum()
        yield Update(STUDENT, {self.name: added})


def _adapter(student: FeatureSpec, teacher: FeatureSpec) -> nn.Module:
    if student.channels == teacher.channels:
        return nn.Identity()
    return nn.Conv2d(student.channels, teacher.channels, 1, bias=False)


def _flows(maps: Sequence[Tensor], knowledge: Knowledge) -> list[Tensor]:
    """Flow matrices of every map with the next one."""
    masks = [knowledge.mask(feature) for feature in maps]
    neighbours = zip(pairwise(maps), pairwise(masks), strict=True)
    return [flow_matrix(*layers, *cells) for layers, cells in neighbours]
