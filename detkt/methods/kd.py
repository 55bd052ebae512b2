"""KD: knowledge distillation, the teacher's softened class scores as targets.

Hinton, Vinyals, Dean: "Distilling the Knowledge in a Neural Network", arXiv:1503.02531 (2015).

    L = (1 - alpha) L_classification + alpha T^2 KL(softmax(z_t / T) || softmax(z_s / T)) + other task losses

with class logits z_t of the teacher, z_s of the student, mean over the M rows. The KTAN papers use T = 4 and
alpha = 0.9. They are silent on detection, where we decided:

* Of two detectors of two stages the rows are the student's own sampled RoIs, background included, read by both RoI
  heads. Of two of one stage with the same anchors they are anchors, 512 a picture as a RoI head samples: those of
  objects, and then those that student or teacher scores highest; padding is none. The losses of boxes and proposals
  stay as they are.
* A head that scores each class by a sigmoid (RetinaNet, FCOS) has no softmax: KL is then that of the Bernoulli
  distributions of every class, summed over the classes, as it is summed in the softmax's.
* Where only some classes are known to both nets, softmax and sum go over these (and the background), rows whose true
  class is another one do not count in a softmax, and the classification loss stays whole: nobody but the labels teaches
  the other classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from detkt.knowledge import Knowledge, Spec, known
from detkt.methods.base import STUDENT, Heads, Method, MethodConfig, Needs, Stage, Update
from detkt.methods.reductions import bernoulli_divergence, full_precision, require_one_shape, row_mean


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 4.0,
    weights: Tensor | None = None,
    sigmoid: bool = False,
) -> Tensor:
    """T^2 KL(p_t || p_s) at temperature T: sum over classes, mean over rows. Scalar.

    Args:
        student_logits, teacher_logits: (M, K), before the softmax or sigmoid.
        temperature: T. The factor T^2 keeps the gradient's size as T changes.
        weights: (M,), what each row counts in the mean; None: all alike.
        sigmoid: each class has a probability of its own, instead of one softmax over all.

    Raises:
        ValueError: the shapes differ.
    """
    require_one_shape(student_logits, teacher_logits)
    ours, theirs = (full_precision(logits) / temperature for logits in (student_logits, teacher_logits))
    if sigmoid:
        divergence = bernoulli_divergence(ours, theirs)
    else:
        divergence = F.kl_div(ours.log_softmax(dim=1), theirs.log_softmax(dim=1), reduction="none", log_target=True)
    return temperature**2 * row_mean(divergence.sum(dim=1), weights)


@dataclass
class KDConfig(MethodConfig):
    """``alpha``: share of the teacher's targets in the classification loss; ``temperature``: T."""

    alpha: float = 0.9
    temperature: float = 4.0


class KD(Method):
    """The teacher's softened class scores are targets beside the true classes.

    See the module's docstring. One stage: distill.
    """

    name = "kd"
    citation = "Hinton et al., Distilling the Knowledge in a Neural Network, arXiv:1503.02531 (2015)"
    Config = KDConfig
    config: KDConfig
    needs = Needs.STUDENT | Needs.STUDENT_LOGITS | Needs.TEACHER_LOGITS

    def __init__(self, config: KDConfig, student: Spec, teacher: Spec) -> None:
        super().__init__(config, student, teacher)
        self.require_same_classes()
        self.require_no_layers()
        self.require("alpha", 0 <= config.alpha <= 1, "between 0 and 1")
        self.require("temperature", config.temperature > 0, "greater than 0")

    def step(self, stage: Stage, student: Knowledge, teacher: Knowledge, heads: Heads) -> Iterator[Update]:
        scores = known(self.student_spec.scores)
        logits = known(student.logits), known(teacher.logits)
        softened = distillation_loss(*logits, self.config.temperature, student.weights, scores.sigmoid)
        rest = {student.classification_loss: 1 - self.config.alpha} if scores.every else {}
        yield Update(STUDENT, {self.name: self.config.alpha * softened}, task_weights=rest)
