"""KDGAN: a classifier (the student) and a teacher learn from each other and against a discriminator of labels.

Wang, Zhang, Sun, Qi: "KDGAN: Knowledge Distillation with Generative Adversarial Networks", NeurIPS 2018.

For an input x with true label y, the student C and the teacher T propose labels y_c ~ p_c(. | x) and y_t ~ p_t(. | x);
D(x, y) is the probability that a label is the true one. The three play

    min over C, T, max over D:  E log D(x, y) + alpha E log(1 - D(x, y_c)) + (1 - alpha) E log(1 - D(x, y_t))
                                + beta L_DS(p_c; p_t) + gamma L_DS(p_t; p_c)

with distillation losses L_DS. Proposals are drawn by the Gumbel-max trick from a concrete distribution, so that the
gradient of D reaches C and T through them. The paper searches the weights (alpha in 0 to 1, beta in 10^-3 to 10^3,
gamma in 10^-4 to 10^2) for each data set. ``preset=official`` has those of the authors' script for MNIST (model
compression): the student's share alpha 0.2 and the teacher's 0.8, beta 2, gamma 10^-4, T 3. (L_DS is there 0.7 of the
labels' cross entropy and 0.3 of the mean square of the logits' difference, from which T cancels out; here it stays the
KL below, and learning rates stay ours, as the players' nets are others.) What we decided:

* The teacher is a frozen net here. What of it plays is a linear layer on its K logits, the identity at first (player
  ``kdgan_teacher``): the game can correct its scores, and cannot unlearn its features.
* What D sees of x is the frozen teacher's log-probabilities, beside the label: the best description of an input that
  images and detected regions (M rows) have in common. D is an MLP (player ``kdgan_discriminator``).
* Proposals are one-hot like true labels, else their softness would give them away; the gradient is the concrete
  sample's ("straight through"), of a fixed ``gumbel_temperature``, where the paper anneals it from 1 to 0.1.
* C and T minimise -log D(x, proposal) in place of log(1 - D), whose gradient vanishes while D is sure.
* L_DS is Hinton's T^2 KL between softened scores, target first as in :mod:`detkt.methods.kd`. C keeps its task losses,
  where the paper's classifier sees the labels through D alone.
* One update each of D, T and C a batch, in this order; the paper trains each in turn for several.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkt.base.errors import InputError
from detkt.knowledge import Knowledge, Spec, known
from detkt.methods.base import STUDENT, Heads, Method, MethodConfig, Needs, Player, Stage, Update, frozen
from detkt.methods.kd import distillation_loss
from detkt.methods.reductions import full_precision


def discriminator_loss(true: Tensor, student: Tensor, teacher: Tensor, alpha: float = 0.5) -> Tensor:
    """-log D(x, y) - alpha log(1 - D(x, y_c)) - (1 - alpha) log(1 - D(x, y_t)), mean over rows of each. Scalar.

    Args:
        true, student, teacher: D's logits (M,) on true labels and on the proposals of student and teacher.
        alpha: share of the student's proposals among the false labels.
    """
    false = alpha * F.softplus(student).mean() + (1 - alpha) * F.softplus(teacher).mean()
    return F.softplus(-true).mean() + false


def proposal_loss(logit: Tensor) -> Tensor:
    """-log D(x, proposal) of D's logits (M,), the label "true" put on a proposal: mean over rows. Scalar."""
    return F.softplus(-logit).mean()


def propose(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """One-hot labels (M, K) drawn from softmax(logits), with the gradient of the concrete distribution's sample."""
    return F.gumbel_softmax(full_precision(logits), temperature, hard=True)


class LabelDiscriminator(nn.Module):
    """D: frozen teacher's logits (M, K) and labels (M, K), one-hot -> logit (M,), high where the label is true."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * num_classes, width),
            nn.LeakyReLU(0.2),
            nn.Linear(width, width),
            nn.LeakyReLU(0.2),
            nn.Linear(width, 1),
        )

    def forward(self, context: Tensor, label: Tensor) -> Tensor:
        context = full_precision(context).log_softmax(dim=1)
        return full_precision(self.layers(torch.cat([context, label], dim=1)).squeeze(1))


class TeacherHead(nn.Module):
    """T's part in the game: logits (M, K) -> logits (M, K), linear, the identity at first."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(num_classes, num_classes)
        nn.init.eye_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, logits: Tensor) -> Tensor:
        # Half precision would round the very scores that are distilled.
        with torch.autocast(logits.device.type, enabled=False):
            return self.layer(full_precision(logits))


@dataclass
class KDGANConfig(MethodConfig):
    """``alpha``: share of the student in the adversarial losses, 1 - alpha the teacher's.

    ``beta``, ``gamma``: weights of the student's and the teacher's distillation loss; ``temperature``: its T.
    """

    alpha: float = 0.5
    beta: float = 1.0
    gamma: float = 0.1
    temperature: float = 4.0
    gumbel_temperature: float = 1.0
    discriminator_width: int = 128
    discriminator_lr: float = 2e-4
    teacher_lr: float = 2e-4


class KDGAN(Method):
    """Student and teacher learn from each other and against a discriminator of labels.

    See the module's docstring. One stage: distill.
    """

    name = "kdgan"
    citation = "Wang et al., KDGAN: Knowledge Distillation with Generative Adversarial Networks, NeurIPS 2018"
    Config = KDGANConfig
    config: KDGANConfig
    presets = {
        "default": {},
        "paper": {},
        "official": {"alpha": 0.2, "beta": 2.0, "gamma": 1e-4, "temperature": 3.0},
    }

    def __init__(self, config: KDGANConfig, student: Spec, teacher: Spec) -> None:
        super().__init__(config, student, teacher)
        self.require_same_classes()
        self.require_no_layers()
        self.require("alpha", 0 <= config.alpha <= 1, "between 0 and 1")
        self.require("temperature", config.temperature > 0, "greater than 0")
        self.require("gumbel_temperature", config.gumbel_temperature > 0, "greater than 0")
        if known(student.scores).sigmoid:
            raise InputError(
                "method 'kdgan' draws one class for each row of scores, and these heads score each class by itself, "
                "with a sigmoid; use kd, dkd or dist"
            )
        if not known(student.scores).every:
            raise InputError(
                "method 'kdgan' draws classes that a discriminator compares with the true ones, and the teacher does "
                "not know all of the student's; use kd, dkd or dist"
            )
        self.discriminator = LabelDiscriminator(student.compared_classes, config.discriminator_width)
        self.teacher_head = TeacherHead(student.compared_classes)

    def stages(self) -> Sequence[Stage]:
        needs = Needs.STUDENT | Needs.STUDENT_LOGITS | Needs.TEACHER_LOGITS
        return [Stage("distill", needs, (STUDENT, "kdgan_discriminator", "kdgan_teacher"))]

    def players(self) -> dict[str, Player]:
        config = self.config
        return {
            "kdgan_discriminator": Player((self.discriminator,), "adam", config.discriminator_lr),
            "kdgan_teacher": Player((self.teacher_head,), "adam", config.teacher_lr),
        }

    def share_settings(self) -> dict[str, str]:
        return {"kdgan_proposals": "balance", "kdgan_distillation": "balance"}

    def step(self, stage: Stage, student: Knowledge, teacher: Knowledge, heads: Heads) -> Iterator[Update]:
        config, context, ours = self.config, known(teacher.logits), known(student.logits)
        yield self._discriminator_update(ours, known(student.labels), context)

        with frozen(self.discriminator):
            theirs = self.teacher_head(context)
            losses = {
                "kdgan_teacher_proposals": (1 - config.alpha) * self._proposal_loss(context, theirs),
                "kdgan_teacher_distillation": config.gamma
                * distillation_loss(theirs, ours.detach(), config.temperature),
            }
        yield Update("kdgan_teacher", losses)

        with torch.no_grad():
            theirs = self.teacher_head(context)
        with frozen(self.discriminator):
            losses = {
                "kdgan_proposals": config.alpha * self._proposal_loss(context, ours),
                "kdgan_distillation": config.beta * distillation_loss(ours, theirs, config.temperature),
            }
        yield Update(STUDENT, losses)

    def _proposal_loss(self, context: Tensor, logits: Tensor) -> Tensor:
        return proposal_loss(self.discriminator(context, propose(logits, self.config.gumbel_temperature)))

    def _discriminator_update(self, ours: Tensor, labels: Tensor, context: Tensor) -> Update:
        with torch.no_grad():
            theirs = self.teacher_head(context)
            proposals = [propose(logits, self.config.gumbel_temperature) for logits in (ours, theirs)]
        truth = F.one_hot(labels, context.shape[1]).to(proposals[0].dtype)
        true, student, teacher = (self.discriminator(context, label) for label in (truth, *proposals))
        with torch.no_grad():
            right = [true > 0, student < 0, teacher < 0]
            names = ("true", "student", "teacher")
            metrics = {f"kdgan_accuracy_{name}": x.float().mean() for name, x in zip(names, right, strict=True)}
        loss = discriminator_loss(true, student, teacher, self.config.alpha)
        return Update("kdgan_discriminator", {"kdgan_discriminator": loss}, metrics)
