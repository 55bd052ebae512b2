"""DKD: knowledge distillation with the target class apart from the others, each part with a weight of its own.

Zhao, Cui, Song, Qiu, Liang: "Decoupled Knowledge Distillation", CVPR 2022 (arXiv:2203.08679).

    alpha T^2 KL(b_t || b_s) + beta T^2 KL(p_t || p_s)

where b holds two probabilities, of the true class and of all others together, and p those of the other classes among
themselves (softmax at temperature T; the paper's TCKD and NCKD). Mean over the M rows: pictures, or the student's own
sampled RoIs, read by both RoI heads, with the background as a class (the authors' detection code). The task losses stay
whole.

Defaults, and ``preset=paper``, are the authors' for detection (alpha 1, beta 0.25, T 1), for classifiers, too;
``preset=cifar`` has their usual ones for CIFAR-100 (beta
8, T 4; between 0.5 and 8 a pair of nets, and rising over 20 epochs, which we leave to the schedule).

What the paper leaves open, and we decided:

* The terms are formed from logarithms, so that a class of probability 0 in single precision costs what it should, not
  infinity.
* A head that scores each class by a sigmoid (RetinaNet, FCOS) is decoupled already: the target's part is the KL of the
  Bernoulli distributions of the true class, the others' part the sum of those of the other classes. A row of the
  background has others alone. Which anchors are rows, and what counts where only some classes are known to both nets,
  is as in `detkt.methods.kd`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from detkt.knowledge import Knowledge, Spec, known
from detkt.methods.base import STUDENT, Heads, Method, MethodConfig, Needs, Stage, Update
from detkt.methods.reductions import bernoulli_divergence, full_precision, require_one_shape, row_mean


def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 0.25,
    temperature: float = 1.0,
    weights: Tensor | None = None,
    sigmoid: bool = False,
) -> Tensor:
    """T^2 (alpha KL of target against the rest + beta KL among the rest), mean over rows. Scalar, 0 or more.

    Args:
        student_logits, teacher_logits: (M, K), before the softmax, K of 2 or more, or the sigmoid.
        labels: true class of each row (M,), 0 to K - 1; -1 of a row of sigmoids that has none.
        alpha: weight of the target's part; beta: weight of the others' part.
        temperature: T, greater than 0. The factor T^2 keeps the gradient's size as T changes.
        weights: (M,), what each row counts in the mean; None: all alike.
        sigmoid: each class has a probability of its own, instead of one softmax over all.

    Raises:
        ValueError: the logits' shapes differ, there is not one label a row, or one class alone and no sigmoid.
    """
    require_one_shape(student_logits, teacher_logits)
    if labels.shape != student_logits.shape[:1]:
        raise ValueError(f"labels of shape {tuple(labels.shape)} for {len(student_logits)} rows: give one label a row")
    if not sigmoid and student_logits.shape[1] < 2:
        raise ValueError("a softmax over one class alone has no others: give logits of 2 classes or more")
    classes = torch.arange(student_logits.shape[1], device=labels.device)
    is_target = labels[:, None] == classes
    if sigmoid:
        scaled = (full_precision(logits) / temperature for logits in (student_logits, teacher_logits))
        divergence = bernoulli_divergence(*scaled)
        weighted = torch.where(is_target, alpha * divergence, beta * divergence)
        return temperature**2 * row_mean(weighted.sum(dim=1), weights)
    (our_two, our_others), (their_two, their_others) = (
        _parts(full_precision(logits) / temperature, labels, is_target) for logits in (student_logits, teacher_logits)
    )
    target, among_others = _divergence(our_two, their_two), _divergence(our_others, their_others)
    return temperature**2 * row_mean(alpha * target + beta * among_others, weights)


def _parts(logits: Tensor, labels: Tensor, is_target: Tensor) -> tuple[Tensor, Tensor]:
    """Log probabilities (M, 2) of the target and of all others, and (M, K) of the others among themselves."""
    others = logits.masked_fill(is_target, float("-inf"))
    two = torch.cat([logits.gather(1, labels[:, None]), others.logsumexp(dim=1, keepdim=True)], dim=1)
    return two.log_softmax(dim=1), others.log_softmax(dim=1)


def _divergence(ours: Tensor, theirs: Tensor) -> Tensor:
    """KL of log probabilities (M, L), row by row; what the teacher excludes (-inf, so the target's place) costs 0."""
    p = theirs.exp()
    return (p * (theirs - ours).masked_fill(p == 0, 0)).sum(dim=1)


@dataclass
class DKDConfig(MethodConfig):
    """``alpha``: weight of the target's part; ``beta``: weight of the others' part; ``temperature``: T."""

    alpha: float = 1.0
    beta: float = 0.25
    temperature: float = 1.0


class DKD(Method):
    """The teacher's class scores are targets in two parts: the true class against the rest, and the rest by itself.

    See the module's docstring. One stage: distill.
    """

    name = "dkd"
    citation = "Zhao et al., Decoupled Knowledge Distillation, CVPR 2022 (arXiv:2203.08679)"
    Config = DKDConfig
    config: DKDConfig
    needs = Needs.STUDENT | Needs.STUDENT_LOGITS | Needs.TEACHER_LOGITS
    presets = {"default": {}, "paper": {}, "cifar": {"beta": 8.0, "temperature": 4.0}}

    def __init__(self, config: DKDConfig, student: Spec, teacher: Spec) -> None:
        super().__init__(config, student, teacher)
        self.require_same_classes()
        self.require_no_layers()
        self.require("temperature", config.temperature > 0, "greater than 0")
        self.require_not_negative("alpha", "beta")

    def step(self, stage: Stage, student: Knowledge, teacher: Knowledge, heads: Heads) -> Iterator[Update]:
        config, sigmoid = self.config, known(self.student_spec.scores).sigmoid
        scores = known(student.logits), known(teacher.logits), known(student.labels)
        loss = dkd_loss(*scores, config.alpha, config.beta, config.temperature, student.weights, sigmoid)
        yield Update(STUDENT, {self.name: loss})
