"""What KTAN's discriminator sees and is, and by which losses it and the student play.

What it sees (``adversary``):

* ``patch``: every location of the map, one logit each. KTAN's own but for the logits' number.
* ``map``: the map, pooled in the end: one logit a picture, as the paper's figure has it.
* ``objectness``: the objectness that the frozen first stage of a detector of two gives in every location of the map, a
  value an anchor; one logit a location. In the padding, which this stage reads, both maps are the student's.
* ``roi``: the vectors that the frozen head of two stages makes of the student's sampled regions, which is what its
  predictors read, with the region's class by a projection (Miyato and Koyama, ICLR 2018).
* ``score``: the head's class scores of these regions, of anchors, or of pictures, with the class; less their mean where
  a softmax reads them.

Losses (``loss``):

* ``gan``: Goodfellow et al., NeurIPS 2014, with the non-saturating loss of the student. KTAN's own.
* ``hinge``: Lim and Ye, "Geometric GAN", 2017 (arXiv:1705.02894); Miyato et al., ICLR 2018.
* ``relativistic``: Jolicoeur-Martineau, ICLR 2019, the paired form: a map is judged against the other of its picture.
* ``wgan-gp``: Gulrajani et al., NeurIPS 2017. A picture's value is its mean logit, and the gradient's norm is that of a
  picture's whole map; the penalty sees maps without noise.

Any of them with a penalty on the squared norm of D's gradient at the teacher's maps or rows (``r1``: Mescheder et al.,
ICML 2018), for ``relativistic`` at the student's, too (R1 and R2: Huang et al., NeurIPS 2024), without noise. It is
taken when the adversary has its turn, which is lazy already.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from detkt.methods.reductions import masked_mean

KINDS = ("patch", "map", "objectness", "roi", "score")
LOSSES = ("gan", "hinge", "relativistic", "wgan-gp")
PENALTY = 10.0
"""On the squared distance of the gradient's norm from 1, for ``wgan-gp``."""


def discriminator_loss(
    teacher_logit: Tensor,
    student_logit: Tensor,
    mask: Tensor | None = None,
    label_smoothing: float = 0.0,
    loss: str = "gan",
) -> Tensor:
    """What D minimises; of `gan`: -log D(R(t)) - log(1 - D(s)), mean over elements of each, then their sum. Scalar.

    Args:
        teacher_logit, student_logit: (N, 1) or (N, 1, H, W), before the sigmoid.
        mask: (N, 1, H, W) of 0 and 1, for logits per location.
        label_smoothing: the "teacher" label is 1 minus this (one-sided smoothing); of `gan` alone.
        loss: one of `LOSSES`; `wgan-gp` without its penalty, `gradient_penalty`.
    """
    if loss == "hinge":
        return masked_mean(F.relu(1 - teacher_logit), mask) + masked_mean(F.relu(1 + student_logit), mask)
    if loss == "relativistic":
        return masked_mean(F.softplus(student_logit - teacher_logit), mask)
    if loss == "wgan-gp":
        return masked_mean(student_logit, mask) - masked_mean(teacher_logit, mask)
    smooth = label_smoothing
    real = (1 - smooth) * F.softplus(-teacher_logit) + smooth * F.softplus(teacher_logit)
    return masked_mean(real, mask) + masked_mean(F.softplus(student_logit), mask)


def generator_loss(
    student_logit: Tensor, mask: Tensor | None = None, teacher_logit: Tensor | None = None, loss: str = "gan"
) -> Tensor:
    """What the student minimises; of `gan`: -log D(s), the label "teacher" on its map: mean over elements. Scalar.

    Args:
        student_logit, mask, loss: as for `discriminator_loss`.
        teacher_logit: of the same cells; `relativistic` alone reads it.
    """
    if loss in ("hinge", "wgan-gp"):
        return -masked_mean(student_logit, mask)
    if loss == "relativistic":
        assert teacher_logit is not None
        return masked_mean(F.softplus(teacher_logit - student_logit), mask)
    return masked_mean(F.softplus(-student_logit), mask)


def gradient_penalty(
    judge: Discriminator | RowDiscriminator, teacher: Tensor, student: Tensor, context: Tensor | None = None
) -> Tensor:
    """Mean over pictures (rows) of (norm of D's gradient - 1)^2, at a random point between the two of each. Scalar.

    Args:
        judge: D.
        teacher, student: maps (N, C, H, W), or rows (M, D); no gradient goes back to them.
        context: the mask (N, 1, H, W) of maps, 1 where there is picture, or the classes (M,) of rows.
    """
    share = torch.rand(len(teacher), *[1] * (teacher.dim() - 1), dtype=teacher.dtype, device=teacher.device)
    between = torch.lerp(student.detach(), teacher.detach(), share)
    return (_gradients(judge, between, context).norm(dim=1) - 1).square().mean()


def zero_penalty(judge: Discriminator | RowDiscriminator, values: Tensor, context: Tensor | None = None) -> Tensor:
    """Mean over pictures (rows) of the squared norm of D's gradient at *values*, as for `gradient_penalty`. Scalar."""
    return _gradients(judge, values, context).square().sum(dim=1).mean()


def _gradients(judge: Discriminator | RowDiscriminator, values: Tensor, context: Tensor | None) -> Tensor:
    """The gradient of D's mean logit of each picture (row) at *values*, one a row: (N, ...)."""
    at = values.detach().requires_grad_()
    logits = judge(at, context).float().flatten(1)
    shown = torch.ones_like(logits) if context is None or not judge.patch else context.flatten(1)
    means = (logits * shown).sum(1) / shown.sum(1)
    # The gradient of the sum over pictures has each picture's in its row.
    (gradient,) = torch.autograd.grad(means.sum(), at, create_graph=True)
    return gradient.float().flatten(1)


def right_shares(
    teacher_logit: Tensor, student_logit: Tensor, mask: Tensor | None, undecided: float, loss: str
) -> tuple[Tensor, Tensor]:
    """Shares of the teacher's and of the student's logits that D puts on the right side: of *undecided*, the logit of
    a D that knows nothing; of the other map's logit in ``relativistic``; of the middle of both means in ``wgan-gp``."""
    if loss == "relativistic":
        share = masked_mean((teacher_logit > student_logit).float(), mask)
        return share, share
    border: float | Tensor = undecided
    if loss == "wgan-gp":
        border = (masked_mean(teacher_logit, mask) + masked_mean(student_logit, mask)) / 2
    teacher, student = (teacher_logit > border).float(), (student_logit < border).float()
    return masked_mean(teacher, mask), masked_mean(student, mask)


class Discriminator(nn.Module):
    """D: a map (N, C, H, W) -> one logit per location (N, 1, H, W), or per picture (N, 1) with ``patch=False``.

    With *narrow* a 1x1 convolution comes first: a 3x3 convolution at full width would cost a sixth of a ResNet-152.
    *slope* is that of the leaky ReLUs, 0 for ReLUs. Cells where *mask* (N, 1, H, W) is 0 are seen as zeros, so that
    padding reaches no neighbour's score.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        num_convs: int,
        patch: bool,
        spectral: bool,
        narrow: bool = True,
        slope: float = 0.2,
    ) -> None:
        super().__init__()
        norm = spectral_norm if spectral else (lambda module: module)
        layers: list[nn.Module] = []
        for kernel in ([1] if narrow else []) + [3] * num_convs:
            layers += [norm(nn.Conv2d(channels, width, kernel, padding=kernel // 2)), nn.LeakyReLU(slope)]
            channels = width
        self.layers = nn.Sequential(*layers)
        self.patch = patch
        self.score = norm(nn.Conv2d(width, 1, 1) if patch else nn.Linear(width, 1))

    def forward(self, feature: Tensor, mask: Tensor | None = None) -> Tensor:
        hidden = self.layers(feature if mask is None else feature * mask)
        if self.patch:
            return self.score(hidden)
        if mask is None:
            return self.score(hidden.mean(dim=(2, 3)))
        return self.score((hidden * mask).sum(dim=(2, 3)) / mask.sum(dim=(2, 3)))


class RowDiscriminator(nn.Module):
    """D of rows (M, D) and their classes (M,), 0 to *classes* - 1 -> logits (M, 1).

    Two layers, then the sum of a logit of the row alone and of the row's projection on its class.
    """

    patch = False

    def __init__(self, size: int, classes: int, width: int, spectral: bool, slope: float = 0.2) -> None:
        super().__init__()
        norm = spectral_norm if spectral else (lambda module: module)
        layers: list[nn.Module] = []
        for inputs in (size, width):
            layers += [norm(nn.Linear(inputs, width)), nn.LeakyReLU(slope)]
        self.layers = nn.Sequential(*layers)
        self.score, self.projection = norm(nn.Linear(width, 1)), norm(nn.Embedding(classes, width))

    def forward(self, rows: Tensor, classes: Tensor) -> Tensor:
        hidden = self.layers(rows)
        return self.score(hidden) + (hidden * self.projection(classes)).sum(dim=1, keepdim=True)
