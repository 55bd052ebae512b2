"""CrossKD: what the student's towers see goes through the rest of the teacher's head, and is to give what that gives.

Wang, Chen, Zheng, Li, Cheng, Hou: "CrossKD: Cross-Head Knowledge Distillation for Object Detection", CVPR 2024
(arXiv:2306.11369).

    1/P (w_cls sum QFL(c, sigmoid(c_t)) + w_box sum max_k sigmoid(c_t) (1 - GIoU(b, b_t)))

with the teacher's class scores c_t and boxes b_t of all anchors, and c, b what the teacher's last convolution and
predictors make of the student's towers, taken after their last convolution but one, before its activation. QFL is the
quality focal loss |sigmoid(c) - p|^focus * BCE(c, p), summed over the classes. So the student's own predictors are left
to the labels, with which the teacher's scores often disagree. Dense heads with towers alone: RetinaNet and FCOS.

As in the authors' code (crosskd_retinanet.py): the student's map is standardised channel by channel over all pictures
and cells and given the teacher's mean and deviation; P counts the anchors that the labels give to objects, a picture
without any as 1; weights 1 and 1, focus 1. Their FCOS takes the towers one convolution earlier, at weights 0.4 and
0.75, with IoU in the place of GIoU and another P; ours is treated as the RetinaNet.

What the paper leaves open, and we decided:

* Where the towers have other channels, a 1x1 convolution on the student's side learns with it, before the statistics.
* Padding takes no part in the statistics or in the loss. In its cells the map that goes on is the teacher's own, so
  that the teacher's convolution sees the same border on both sides.
* A channel that is constant in the student's map gets the teacher's mean, with a gradient as of deviation 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkt.base.errors import InputError
from detkt.knowledge import Dense, Knowledge, Spec, Tower, known
from detkt.methods.base import STUDENT, Heads, Method, MethodConfig, Needs, Player, Stage, Update, require_one_size
from detkt.methods.pkd import standardised
from detkt.methods.reductions import centred_channels, full_precision, require_one_shape


def quality_focal_loss(logits: Tensor, teacher_logits: Tensor, focus: float = 1.0) -> Tensor:
    """|sigmoid(c) - p|^focus * BCE(c, p) with p = sigmoid(c_t), element by element, 0 or more; focus 0, or 1 or more.

    Raises:
        ValueError: the shapes differ.
    """
    require_one_shape(logits, teacher_logits)
    logits, target = full_precision(logits), full_precision(teacher_logits).sigmoid()
    cost = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return cost * (logits.sigmoid() - target).abs().pow(focus)


def with_statistics_of(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """*student* (N, C, H, W) with the mean and deviation of *teacher*'s channels over all pictures and cells.

    mask: (N, 1, H, W), 1 where the maps show picture; elsewhere the result is *teacher*. None: everywhere.
    """
    require_one_shape(student, teacher)
    teacher = full_precision(teacher)
    _, mean, variance = centred_channels(teacher, mask)
    moved = standardised(student, mask) * variance.sqrt() + mean
    return moved if mask is None else torch.where(mask > 0, moved, teacher)


def giou_loss(first: Tensor, second: Tensor) -> Tensor:
    """1 - GIoU of boxes (..., 4), x1, y1, x2, y2, pair by pair: between 0 and 2, finite for empty boxes.

    As torchvision's, which selects the pairs that overlap: on a GPU that is to wait for them.
    """
    start, end = torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    shared = (end - start).clamp_min(0).prod(dim=-1)
    outer = torch.maximum(first[..., 2:], second[..., 2:]) - torch.minimum(first[..., :2], second[..., :2])
    area, union = outer.prod(dim=-1), _area(first) + _area(second) - shared
    return 1 - shared / (union + 1e-7) + (area - union) / (area + 1e-7)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)


@dataclass
class CrossKDConfig(MethodConfig):
    """``weight``: w_cls; ``box_weight``: w_box; ``focus``: how much more a class counts whose scores differ more."""

    weight: float = 1.0
    box_weight: float = 1.0
    focus: float = 1.0


class CrossKD(Method):
    """What the student's towers see goes through the rest of the teacher's head, and is to give what that gives.

    See the module's docstring. One stage: distill.

    Raises:
        InputError: a net has no dense head with towers, or the levels of the two have other sizes.
    """

    name = "crosskd"
    citation = (
        "Wang et al., CrossKD: Cross-Head Knowledge Distillation for Object Detection, CVPR 2024 (arXiv:2306.11369)"
    )
    Config = CrossKDConfig
    config: CrossKDConfig
    needs = Needs.STUDENT | Needs.HEADS

    def __init__(self, config: CrossKDConfig, student: Spec, teacher: Spec) -> None:
        super().__init__(config, student, teacher)
        if config.layers:
            raise InputError("methods.crosskd.layers: crosskd reads the towers of heads; leave it empty")
        # In between the gradient is endless where both scores are one number.
        self.require("focus", config.focus == 0 or config.focus >= 1, "0, or 1 or more")
        self.require_not_negative("box_weight")
        ours, theirs = self._tower("student", student), self._tower("teacher", teacher)
        require_one_size(self.name, teacher.scores)
        if ours.sizes != theirs.sizes:
            told = " and ".join(", ".join(f"{h} x {w}" for h, w in tower.sizes) for tower in (ours, theirs))
            raise InputError(
                f"method 'crosskd' needs heads on levels of the same strides, but on one picture student and teacher "
                f"have {told} cells; use a feature method"
            )
        same = ours.channels == theirs.channels
        self.adapters = nn.ModuleDict(
            {
                branch: nn.Identity() if same else nn.Conv2d(ours.channels, theirs.channels, 1)
                for branch in ("classification", "regression")
            }
        )

    def _tower(self, role: str, spec: Spec) -> Tower:
        if spec.tower is None:
            raise InputError(
                f"method 'crosskd' needs the towers of dense heads, as RetinaNet and FCOS have them, and the {role} "
                "has none; use a feature method"
            )
        return spec.tower

    def players(self) -> dict[str, Player]:
        return {STUDENT: Player((self.adapters,))}

    def share_settings(self) -> dict[str, str]:
        return {"crosskd_classes": "balance", "crosskd_boxes": "balance"}

    def step(self, stage: Stage, student: Knowledge, teacher: Knowledge, heads: Heads) -> Iterator[Update]:
        ours, theirs, config = known(student.dense), known(teacher.dense), self.config
        logits, boxes = heads.remaining(
            self._aligned("classification", ours, theirs, teacher), self._aligned("regression", ours, theirs, teacher)
        )
        target = known(theirs.logits)
        positives = known(ours.positives)
        shown = 1.0 if theirs.shown is None else theirs.shown
        classes = quality_focal_loss(logits, target, config.focus).sum(dim=2) * shown
        apart = giou_loss(full_precision(boxes), known(theirs.boxes)) * shown
        confidence = target.sigmoid().amax(dim=2)
        losses = {
            "crosskd_classes": config.weight * classes.sum() / positives,
            "crosskd_boxes": config.box_weight * (confidence * apart).sum() / positives,
        }
        yield Update(STUDENT, losses)

    def _aligned(self, branch: str, ours: Dense, theirs: Dense, teacher: Knowledge) -> list[Tensor]:
        """The student's maps of a tower as the teacher's head is used to see its own, a level each."""
        adapter = self.adapters[branch]
        levels = zip(getattr(ours, branch), getattr(theirs, branch), strict=True)
        return [with_statistics_of(adapter(mine), his, teacher.mask(his)) for mine, his in levels]
