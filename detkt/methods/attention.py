"""AT: attention transfer, the student looks where the teacher looks.

Zagoruyko, Komodakis: "Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks
via Attention Transfer", ICLR 2017 (arXiv:1612.03928).

    L_task + w/2 * sum over layers of || Q(s) - Q(t) ||_2,    Q(x) = v / ||v||_2,    v = sum_c |x_c|^p

with v flattened to a vector a picture (Eq. 2); we take the mean over the pictures of a batch. Q is a vector of length 1
without negative entries, so that the distance is never above the square root of 2, whatever the map's size. This is
``form=paper``. The authors' code, and all that follow it, have the mean of the squared differences over the map's H * W
cells, and no half:

    L_task + w * sum over layers of || Q(s) - Q(t) ||_2^2 / (H * W)

which is ``form=official``. Near the end of training it is much the weaker, as its gradient falls with the distance.

The weight has three conventions. The AT paper sets w to "10^3 divided by number of elements in attention map and batch
size", for a sum over the batch: ``weight=1000, per_cell=true`` divides by the map's cells, and the mean over the
pictures does the rest. These are the defaults, and they fit the paper's text: w is about 16 on an 8 x 8 map of CIFAR,
0.4 on a 38 x 63 map of a detector. The code takes 10^3 as it is, since its form divides by the cells: this is
``preset=official``, and fits the Factor Transfer paper's 10^3 "following" AT, too, there over all groups of layers. The
KTAN papers say 0.05 and not of which form: ``preset=paper`` takes it undivided, in the text's.

What the papers leave open, and we decided: *maps* of unequal size are pooled to the smaller before Q (the AT paper
interpolates the attention maps); padding is cut out of v.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from detkt.knowledge import Knowledge, Spec
from detkt.methods.adapters import to_common_size
from detkt.methods.base import STUDENT, Heads, Method, MethodConfig, Stage, Update, choose, view_title
from detkt.methods.reductions import full_precision

FORMS = ("paper", "official")


def attention_map(feature: Tensor, p: float = 2, mask: Tensor | None = None) -> Tensor:
    """Q: sum over channels of |x_c|^p of a map (N, C, H, W), flattened, of Euclidean length 1: (N, H * W).

    *mask* (N, 1, H, W) is 1 where the map shows picture; elsewhere Q is 0, as it is for a map of zeros.
    """
    attention = full_precision(feature).abs().pow(p).sum(dim=1, keepdim=True)
    if mask is not None:
        attention = attention * mask
    return F.normalize(attention.flatten(1), dim=1)


def attention_loss(
    student: Tensor,
    teacher: Tensor,
    p: float = 2,
    mask: Tensor | None = None,
    teacher_mask: Tensor | None = None,
    form: str = "paper",
) -> Tensor:
    """Distance of each picture's attention maps, mean over pictures. Scalar.

    It is || Q(s) - Q(t) ||_2 in the *form* of the paper, || Q(s) - Q(t) ||_2^2 / cells in that of the official code.

    Args:
        student, teacher: (N, C_s, H_s, W_s) and (N, C_t, H_t, W_t). Unequal sizes are averaged (adaptive average pool)
            to the smaller height and the smaller width.
        p: exponent of the activations.
        mask, teacher_mask: (N, 1, H, W) of the student's and the teacher's map, 1 where it shows picture; None:
            everywhere. Only cells that show picture in both count, so that one mask does for equal sizes.
        form: ``paper`` or ``official``.
    """
    student, teacher, mask = to_common_size(student, teacher, mask, teacher_mask)
    difference = attention_map(student, p, mask) - attention_map(teacher, p, mask)
    if form == "paper":
        return torch.linalg.vector_norm(difference, dim=1).mean()
    cells = difference.shape[1] if mask is None else mask.sum(dim=(1, 2, 3)).clamp_min(1)
    return (difference.square().sum(dim=1) / cells).mean()


@dataclass
class AttentionConfig(MethodConfig):
    """``weight``: w; ``p``: exponent; ``form``: of the distance, ``paper`` or ``official``.

    ``per_cell``: in the paper's form, divide w by the number of cells of the (smaller) map.
    """

    weight: float = 1000.0
    per_cell: bool = True
    form: str = "paper"
    p: float = 2.0


class AttentionTransfer(Method):
    """The student looks where the teacher looks: where its map is active, summed over channels.

    See the module's docstring. One stage: distill.
    """

    name = "at"
    citation = "Zagoruyko and Komodakis, Paying More Attention to Attention, ICLR 2017 (arXiv:1612.03928)"
    Config = AttentionConfig
    config: AttentionConfig
    presets = {"default": {}, "paper": {"weight": 0.05, "per_cell": False}, "official": {"form": "official"}}

    def __init__(self, config: AttentionConfig, student: Spec, teacher: Spec) -> None:
        super().__init__(config, student, teacher)
        choose(config.form, FORMS, "methods.at.form")
        self.require("p", config.p >= 1, "1 or more")
        for pair in self.pairs():
            self.pair_specs(pair)  # raises where a net has no such map

    def step(self, stage: Stage, student: Knowledge, teacher: Knowledge, heads: Heads) -> Iterator[Update]:
        terms = []
        for pair in self.pairs():
            ours, theirs = student.features[pair.student], teacher.features[pair.teacher]
            masks = student.mask(ours), teacher.mask(theirs)
            loss = attention_loss(ours, theirs, self.config.p, *masks, self.config.form)
            terms.append(self._weight(ours, theirs) * loss)
        yield Update(STUDENT, {self.name: torch.stack(terms).sum()})

    def views(self, student: Knowledge, teacher: Knowledge) -> dict[str, Tensor]:
        views: dict[str, Tensor] = {}
        for pair in self.pairs():
            ours, theirs = student.features[pair.student], teacher.features[pair.teacher]
            *pooled, mask = to_common_size(ours, theirs, student.mask(ours), teacher.mask(theirs))
            attended = [attention_map(x, self.config.p, mask).unflatten(1, (1, *x.shape[-2:])) for x in pooled]
            views |= {
                view_title("teacher", pair.teacher): theirs,
                view_title("teacher, attention", pair.teacher): attended[1],
                view_title("student, attention", pair.student): attended[0],
                view_title("student", pair.student): ours,
            }
        return views

    def _weight(self, student: Tensor, teacher: Tensor) -> float:
        """What the distance of two maps (N, C, H, W) counts."""
        if self.config.form == "official":
            return self.config.weight
        height, width = map(min, student.shape[-2:], teacher.shape[-2:])
        return self.config.weight / 2 / (height * width if self.config.per_cell else 1)
