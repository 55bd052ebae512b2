"""KD: knowledge distillation, the teacher's softened class scores as targets.

Hinton, Vinyals, Dean: "Distilling the Knowledge in a Neural Network", arXiv:1503.02531 (2015).

    L = (1 - alpha) L_classification + alpha T^2 KL(softmax(z_t / T) || softmax(z_s / T)) + other task losses

with class logits z_t of the teacher, z_s of the student, mean over the M rows. The KTAN papers use T = 4 and
alpha = 0.9. They are silent on detection, where we decided: the rows are the student's own sampled RoIs, background
included, read by both RoI heads, and the losses of boxes and proposals stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from detkt.knowledge import Knowledge, Spec, known
from detkt.methods.base import STUDENT, Heads, Method, MethodConfig, Needs, Stage, Update
from detkt.methods.reductions import full_precision, require_one_shape


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0) -> Tensor:
    """T^2 KL(softmax(z_t / T) || softmax(z_s / T)): sum over classes, mean over rows. Scalar.

    Args:
        student_logits, teacher_logits: (M, K), before the softmax.
        temperature: T. The factor T^2 keeps the gradient's size as T changes.

    Raises:
        ValueError: the shapes differ.
    """
    require_one_shape(student_logits, teacher_logits)
    student = F.log_softmax(full_precision(student_logits) / temperature, dim=1)
    teacher = F.log_softmax(full_precision(teacher_logits) / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


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

    def __init__(self, config: KDConfig, student: Spec, teacher: Spec) -> None:
        super().__init__(config, student, teacher)
        self.require_same_classes()
        self.require_no_layers()
        self.require("alpha", 0 <= config.alpha <= 1, "between 0 and 1")
        self.require("temperature", config.temperature > 0, "greater than 0")

    def stages(self) -> Sequence[Stage]:
        return [Stage("distill", Needs.STUDENT | Needs.STUDENT_LOGITS | Needs.TEACHER_LOGITS)]

    def step(self, stage: Stage, student: Knowledge, teacher: Knowledge, heads: Heads) -> Iterator[Update]:
        softened = distillation_loss(known(student.logits), known(teacher.logits), self.config.temperature)
        rest = {student.classification_loss: 1 - self.config.alpha}
        yield Update(STUDENT, {self.name: self.config.alpha * softened}, task_weights=rest)
