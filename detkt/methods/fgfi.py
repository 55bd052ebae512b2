"""FGFI: the student's map equals the teacher's near objects, as the detector's own anchors tell it.

Wang, Yuan, Zhang, Feng: "Distilling Object Detectors with Fine-grained Feature Imitation", CVPR 2019 (arXiv:1906.03609).

    w * 1/(2 N_p) sum_h,w I sum_c (adapt(s) - t)^2

where I is 1 for cells with an anchor whose IoU with a box exceeds *threshold* (0.5) times the largest that any anchor has
with this box, N_p is the number of such cells, and adapt a 3x3 convolution on the student's side that ends as the
teacher's layer ends and learns with the student (Eq. 1 to 3). In the authors' code the weights of the convolution start
at a deviation of 10^-4, and imitation starts after 400 updates: ``warmup_steps`` 400 with ``preset=paper``, 0 by default,
since our students are trained before they are distilled.

What the paper leaves open, and we decided:

* The sum over channels is theirs: w 0.01 is for the 512 of VGG. ``channels`` says so, and the sum is brought to that
  number; 0 (``preset=paper``) takes it as it is. The mean over cells is over those of the batch (the authors' batch is
  one picture), so that a picture counts by its cells near objects.
* The method was made for a single map. On a pyramid the largest IoU is that of all levels, so that an object is imitated
  on the levels that have anchors of its size, and cells of all levels count alike.
* Anchors of cells that show padding do not count. A batch without objects has a loss of 0.
* Where sizes differ, both maps are averaged to the smaller height and the smaller width, and a cell of the smaller map
  is near an object if one that it covers is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

from detkt.methods.reductions import full_precision, require_one_shape


def imitation_masks(
    boxes: Tensor, anchors: Sequence[Tensor], threshold: float = 0.5, valid: Sequence[Tensor | None] | None = None
) -> list[Tensor]:
    """I of one picture, a level each: (H, W) bool.

    Args:
        boxes: (n, 4), x1, y1, x2, y2; n may be 0.
        anchors: (H, W, A, 4) of each level, in the boxes' unit.
        threshold: share of a box's largest IoU that an anchor's must exceed.
        valid: (H, W) of each level, 0 where it shows padding; None: nowhere.
    """
    overlaps = []
    for level, shown in zip(anchors, valid or [None] * len(anchors), strict=True):
        overlap = box_iou(level.reshape(-1, 4), boxes).reshape(*level.shape[:3], len(boxes))
        overlaps.append(overlap if shown is None else overlap * shown[:, :, None, None])
    largest = torch.stack([overlap.amax(dim=(0, 1, 2)) for overlap in overlaps]).amax(dim=0)
    return [(overlap > threshold * largest).any(dim=3).any(dim=2) for overlap in overlaps]


def imitation_mask(boxes: Tensor, anchors: Tensor, threshold: float = 0.5) -> Tensor:
    """:func:`imitation_masks` of a single map: (H, W) bool of anchors (H, W, A, 4)."""
    return imitation_masks(boxes, [anchors], threshold)[0]


def imitation_loss(student: Tensor, teacher: Tensor, near: Tensor) -> Tensor:
    """1 / (2 N_p) sum of (s - t)^2 over channels and the cells of *near* (N, 1, H, W) of 0 and 1. Scalar; 0 if N_p is.

    Raises:
        ValueError: the shapes of student and teacher (N, C, H, W) differ.
    """
    require_one_shape(student, teacher)
    difference = (full_precision(student) - full_precision(teacher)) * near
    return (difference * difference).sum() / (2 * near.sum()).clamp_min(1)
