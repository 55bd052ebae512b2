"""FGFI: the student's map imitates the teacher's near objects, as the student's own anchors tell it.

Wang, Yuan, Zhang, Feng: "Distilling Object Detectors with Fine-grained Feature Imitation", CVPR 2019
(arXiv:1906.03609).

    w * 1/(2 N_p) sum_h,w I sum_c (adapt(s) - t)^2

where I is 1 for cells with an anchor whose IoU with a box exceeds *threshold* (0.5) times the largest that any anchor
has with this box, N_p is the number of such cells, and adapt a 3x3 convolution on the student's side that ends as the
teacher's layer ends and learns with the student. In the authors' code its weights start at a deviation of 10^-4, and
imitation starts after 400 updates: ``warmup_steps`` is 400 with ``preset=paper``, and 0 by default, since our students
are trained before they are distilled.

What the paper leaves open, and we decided:

* The sum over channels is theirs: w 0.01 is for the 512 of VGG. ``channels`` says so, and the sum is brought to that
  number; 0 (``preset=paper``) takes it as it is. The mean over cells is over those of the batch (the authors' batch is
  one picture), so that a picture counts by its cells near objects.
* The method was made for a single map. On a pyramid the largest IoU is that of all levels, so that an object is
  imitated on the levels that have anchors of its size, and cells of all levels count alike.
* The anchors of SSD and SSDlite are their default boxes. FCOS has one a cell, of the size that its level measures in.
* Anchors of cells that show padding do not count. A batch without objects has a loss of 0.
* Where sizes differ, both maps are averaged to the smaller height and the smaller width, and a cell of the smaller map
  is near an object if one that it covers is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from detkt.base.errors import InputError
from detkt.knowledge import FeatureSpec, Knowledge, Spec, known
from detkt.methods.adapters import max_pool, with_zero_bias
from detkt.methods.base import STUDENT, Heads, LayerPair, Method, MethodConfig, Needs, Stage, Update, outputs
from detkt.methods.paired_maps import PairedMaps
from detkt.methods.reductions import squared_error


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
    """`imitation_masks` of a single map: (H, W) bool of anchors (H, W, A, 4)."""
    return imitation_masks(boxes, [anchors], threshold)[0]


def imitation_loss(levels: Sequence[tuple[Tensor, Tensor, Tensor]], channels: float = 0) -> Tensor:
    """1 / (2 N_p) sum of (s - t)^2 over channels and the N_p cells near objects. Scalar; 0 without such cells.

    Args:
        levels: of each, the adapted student's and the teacher's map (N, C, H, W), and (N, 1, H, W) of 1 near objects
            and 0 elsewhere.
        channels: to how many the sum over the channels is brought; 0: to those that there are.

    Raises:
        ValueError: the shapes of the two maps differ.
    """
    errors = [squared_error(*level).sum() * (channels / level[0].shape[1] if channels else 1) for level in levels]
    count = torch.stack([near.sum() for _, _, near in levels]).sum()
    return torch.stack(errors).sum() / (2 * count).clamp_min(1)


@dataclass
class FGFIConfig(MethodConfig):
    """``weight``: w, of sums over *channels* channels (0: over those of the map); ``threshold``: see the module.

    ``warmup_steps``: updates of the student before it imitates.
    """

    weight: float = 0.01
    channels: int = 512
    threshold: float = 0.5
    warmup_steps: int = 0


class FGFI(PairedMaps):
    """The student's map imitates the teacher's near objects, as the student's own anchors tell it.

    See the module's docstring. Stages: warmup, distill.
    """

    name = "fgfi"
    citation = (
        "Wang et al., Distilling Object Detectors with Fine-grained Feature Imitation, CVPR 2019 (arXiv:1906.03609)"
    )
    Config = FGFIConfig
    config: FGFIConfig
    presets = {"default": {}, "paper": {"channels": 0, "warmup_steps": 400}}

    def __init__(self, config: FGFIConfig, student: Spec, teacher: Spec) -> None:
        super().__init__(config, student, teacher)
        self.require("channels", config.channels >= 0, "0 or more")
        self.require("threshold", 0 <= config.threshold < 1, "0 or more and less than 1")
        self.require("warmup_steps", config.warmup_steps >= 0, "0 or more")
        for pair in self.pairs():
            if pair.student not in outputs(student.features):
                raise InputError(
                    f"methods.fgfi.layers: the student has no anchors on '{pair.student}'; name outputs of its "
                    f"backbone ({', '.join(outputs(student.features))}), or leave it empty"
                )

    def adapter(self, source: FeatureSpec, target: FeatureSpec) -> nn.Module:
        """A 3x3 convolution to the target's channels, which ends in a ReLU where the target's layer does."""
        convolution = with_zero_bias(nn.Conv2d(source.channels, target.channels, 3, padding=1))
        nn.init.normal_(convolution.weight, std=1e-4)
        return nn.Sequential(convolution, nn.ReLU()) if target.nonnegative else convolution

    def adapted(self, adapter: nn.Module, feature: Tensor, mask: Tensor | None) -> Tensor:
        return adapter(feature if mask is None else feature * mask)  # else padding would be mixed into the border

    def pairs(self) -> list[LayerPair]:
        """All of a pyramid's levels: large objects have their anchors on the last."""
        return Method.pairs(self)

    def stages(self) -> Sequence[Stage]:
        distill = Stage("distill", Needs.STUDENT | Needs.TEACHER_FEATURES | Needs.BOXES | Needs.ANCHORS)
        steps = self.config.warmup_steps
        return [Stage("warmup", Needs.STUDENT, steps=steps), distill] if steps else [distill]

    def step(self, stage: Stage, student: Knowledge, teacher: Knowledge, heads: Heads) -> Iterator[Update]:
        if stage.name == "warmup":
            return
        levels = []
        for near, (ours, theirs, mask) in zip(self._near(student), self.matched(student, teacher), strict=True):
            near = max_pool(near.to(ours.dtype), None, ours.shape[2:])[0]
            levels.append((ours, theirs, near if mask is None else near * mask))
        yield Update(STUDENT, {self.name: self.config.weight * imitation_loss(levels, self.config.channels)})

    def _near(self, student: Knowledge) -> list[Tensor]:
        """I (N, 1, H, W) of each pair's level; a box's largest IoU is that on all of the student's levels."""
        names = list(student.anchors)
        compared = [names.index(pair.student) for pair in self.pairs()]
        anchors, shown = [student.anchors[name] for name in names], [student.mask(student.features[n]) for n in names]
        pictures = []
        for number, boxes in enumerate(known(student.boxes)):
            valid = [None if mask is None else mask[number, 0] for mask in shown]
            pictures.append(imitation_masks(boxes, anchors, self.config.threshold, valid))
        levels = list(zip(*pictures, strict=True))
        return [torch.stack(levels[number]).unsqueeze(1) for number in compared]
