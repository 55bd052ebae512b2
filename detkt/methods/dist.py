"""DIST: the student's class scores correlate with the teacher's, along classes and along rows.

Huang, You, Wang, Qian, Xu: "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022 (arXiv:2205.10536).

    inter * (1 - mean over rows of r(p_t, p_s)) + intra * (1 - mean over classes of r(p_t, p_s))

with softmax scores p (M, K) and Pearson's correlation r, first along the classes of each row, then along the rows of
each class. Rows are pictures, or the student's own sampled RoIs, read by both RoI heads, with the
background as a class. Weights 1 and 1 are the authors' for detectors, 2 and 2 those for ImageNet (``preset=imagenet``).

A correlation does not know the scores' scale, so that the loss asks less of the student than KL does. The second term
compares the rows of a batch with each other: a batch is not the mean of its rows one by one.

What the paper leaves open, and we decided:

* A row or column that is constant has no correlation. It counts as uncorrelated, as with the authors' 10^-8, but its
  gradient is that of vectors of length 1, where theirs is 10^8 times that.
* The scores of a head that has a sigmoid for each class (RetinaNet, FCOS) are its sigmoids. With one class alone there
  is nothing along the classes, and that term is constant. Which anchors are rows, and what counts where only some
  classes are known to both nets, is as in `detkt.methods.kd`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from detkt.knowledge import Knowledge, Spec, known
from detkt.methods.base import STUDENT, Heads, Method, MethodConfig, Needs, Stage, Update
from detkt.methods.reductions import full_precision, require_one_shape, row_mean


def pearson(first: Tensor, second: Tensor, dim: int, weights: Tensor | None = None) -> Tensor:
    """Pearson's correlation of two tensors of one shape along *dim*; 0 where one of them is constant there.

    weights: what each value counts, in a shape that broadcasts to theirs; None: all alike.
    """
    first, second = (_centred(values, dim, weights) for values in (first, second))
    weighted = second if weights is None else second * weights
    product = (first.square() if weights is None else first.square() * weights).sum(dim) * (second * weighted).sum(dim)
    constant = product == 0
    return (first * weighted).sum(dim) / (product.masked_fill(constant, 1).sqrt() + 1e-8)


def dist_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    inter: float = 1.0,
    intra: float = 1.0,
    weights: Tensor | None = None,
    sigmoid: bool = False,
) -> Tensor:
    """inter (1 - correlation along classes) + intra (1 - correlation along rows), each a mean. Scalar.

    Args:
        student_logits, teacher_logits: (M, K), before the softmax or sigmoid.
        inter: weight of the correlation of each row's classes; intra: weight of the correlation of each class's rows.
        weights: (M,), what each row counts; None: all alike.
        sigmoid: each class has a probability of its own, instead of one softmax over all.

    Raises:
        ValueError: the shapes differ, or there are no rows.
    """
    require_one_shape(student_logits, teacher_logits)
    if not len(student_logits):
        raise ValueError("there is nothing to correlate: give logits of 1 row or more")
    ours, theirs = (
        logits.sigmoid() if sigmoid else logits.softmax(dim=1)
        for logits in map(full_precision, (student_logits, teacher_logits))
    )
    along_classes = row_mean(1 - pearson(ours, theirs, 1), weights)
    along_rows = 1 - pearson(ours, theirs, 0, None if weights is None else weights[:, None]).mean()
    if weights is not None:
        along_rows = along_rows * (weights.sum() > 0)  # rows that all count nothing cost nothing
    return inter * along_classes + intra * along_rows


def _centred(values: Tensor, dim: int, weights: Tensor | None) -> Tensor:
    """*values* at a weighted mean of 0 along *dim*; exactly 0 where they are constant."""
    values = values - values.narrow(dim, 0, 1).detach()
    if weights is None:
        return values - values.mean(dim, keepdim=True)
    return values - (values * weights).sum(dim, keepdim=True) / weights.sum(dim, keepdim=True).clamp_min(1e-6)


@dataclass
class DISTConfig(MethodConfig):
    """``inter``: weight of the correlation of each row's classes; ``intra``: of that of each class's rows."""

    inter: float = 1.0
    intra: float = 1.0


class DIST(Method):
    """The student's class scores correlate with the teacher's, along classes and along rows.

    See the module's docstring. One stage: distill.
    """

    name = "dist"
    citation = "Huang et al., Knowledge Distillation from A Stronger Teacher, NeurIPS 2022 (arXiv:2205.10536)"
    Config = DISTConfig
    config: DISTConfig
    needs = Needs.STUDENT | Needs.STUDENT_LOGITS | Needs.TEACHER_LOGITS
    presets = {"default": {}, "paper": {}, "imagenet": {"inter": 2.0, "intra": 2.0}}

    def __init__(self, config: DISTConfig, student: Spec, teacher: Spec) -> None:
        super().__init__(config, student, teacher)
        self.require_same_classes()
        self.require_no_layers()
        self.require_not_negative("inter", "intra")

    def step(self, stage: Stage, student: Knowledge, teacher: Knowledge, heads: Heads) -> Iterator[Update]:
        logits, sigmoid = (known(student.logits), known(teacher.logits)), known(self.student_spec.scores).sigmoid
        loss = dist_loss(*logits, self.config.inter, self.config.intra, student.weights, sigmoid)
        yield Update(STUDENT, {self.name: loss})
