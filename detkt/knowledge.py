"""What a network reveals about a batch: the only thing that methods see of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def known(value: T | None) -> T:
    """*value*, a part of a network's `Knowledge` that a method has asked for.

    Raises:
        ValueError: it is None: the stage's ``needs`` do not name it, or the network does not have it.
    """
    if value is None:
        raise ValueError("a method reads what the needs of its stage do not name, or what its networks do not have")
    return value


@dataclass
class Dense:
    """What the head of a RetinaNet or an FCOS makes of all cells, for methods that look into it. Lists: a level each.

    Attributes:
        classification, regression: maps (N, C, H, W) in the two towers, as the last convolution but one of each leaves
            them (with its norm, before its activation).
        logits: a teacher's class scores before the sigmoid (N, R, K) of all R anchors; None of a student.
        boxes: a teacher's boxes (N, R, 4), x1, y1, x2, y2 in pixels of the batch; None of a student.
        shown: (N, R) of 0 and 1, which anchors stand in cells that show picture; None: all of them.
        positives: how many of a student's anchors stand for an object, a picture without any counted as 1. Scalar.
    """

    classification: list[Tensor]
    regression: list[Tensor]
    logits: Tensor | None = None
    boxes: Tensor | None = None
    shown: Tensor | None = None
    positives: Tensor | None = None


@dataclass
class Rows:
    """What a head makes of maps: a row for each region, anchor or picture.

    Attributes:
        logits: class scores (M, K), all that the head gives.
        classes: true class of each row (M,), by the student's numbers; of regions and anchors 0 is the background.
        vectors: (M, D), what the scores are made of; None where the head makes them of maps.
    """

    logits: Tensor
    classes: Tensor
    vectors: Tensor | None = None


@dataclass
class Knowledge:
    """A network's knowledge about one batch of N pictures.

    Attributes:
        features: name -> map (N, C, H, W). ``output`` is the last shared convolution (the backbone's
            output); a feature pyramid reveals ``output.<level>``; other names are modules of the backbone.
        logits: class scores (M, K): M pictures (classification), M sampled RoIs, or M anchors of a detector of one
            stage, those that student or teacher scores highest. Only the classes that both nets know.
        labels: true class of each row of ``logits`` (M,); -1 where it has none of these and there is no background.
        losses: the network's own task losses by name, scalars; empty where they were not computed.
        classification_loss: the name of the one among ``losses`` that ``logits`` enter.
        weights: (M,), what each row of ``logits`` counts in a mean: 0 where the teacher does not know its true class;
            None: 1.
        boxes: of the objects in each picture (n, 4): x1, y1, x2, y2 as shares of the batch's width and height, padding
            included; None where they were not asked for.
        anchors: by output, the network's own (H, W, A, 4), in the unit of ``boxes``; empty where not asked for.
        confidence: by output (N, 1, H, W), how sure the network is that a cell has an object, in [0, 1]: its highest
            class score there, or that of its proposals; empty where not asked for.
        dense: what a dense head makes of the batch; None where not asked for.
        valid: for each picture the share of the batch's height and width that it fills, each in (0, 1];
            None where no picture is padded. Kept on the host, so that asking costs no synchronisation.
    """

    features: dict[str, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None
    labels: Tensor | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)
    classification_loss: str = ""
    weights: Tensor | None = None
    boxes: Sequence[Tensor] | None = None
    anchors: dict[str, Tensor] = field(default_factory=dict)
    confidence: dict[str, Tensor] = field(default_factory=dict)
    dense: Dense | None = None
    valid: Sequence[tuple[float, float]] | None = None

    def mask(self, feature: Tensor) -> Tensor | None:
        """Which cells of *feature* (N, C, H, W) show picture: (N, 1, H, W) of 0 and 1; None: all of them.

        A cell counts if its centre lies inside the picture. Padding carries no knowledge. float32 whatever the
        precision of *feature*: half precision could neither place the edge nor count the cells.
        """
        if self.valid is None:
            return None
        height, width = feature.shape[-2:]
        valid = torch.tensor(self.valid, dtype=torch.float32)
        rows = (torch.arange(height) + 0.5) / height < valid[:, 0:1]
        columns = (torch.arange(width) + 0.5) / width < valid[:, 1:2]
        # At least one cell: a sliver of a picture must not turn a masked mean into 0 / 0.
        rows[:, 0] = True
        columns[:, 0] = True
        mask = (rows[:, :, None] & columns[:, None, :]).unsqueeze(1)
        return mask.float().to(feature.device, non_blocking=True)

    def boxes_on(self, feature: Tensor) -> list[Tensor]:
        """``boxes`` in cells of *feature* (N, C, H, W), to a thousandth: an edge between cells stays one."""
        height, width = feature.shape[-2:]
        return [scaled(boxes, width, height).round(decimals=3) for boxes in self.boxes or ()]


def scaled(boxes: Tensor, width: float, height: float) -> Tensor:
    """Boxes (..., 4), x1, y1, x2, y2, times *width* and *height*."""
    # Not a product with a tensor of the four: to make one on a GPU means to wait for it.
    x1, y1, x2, y2 = boxes.unbind(dim=-1)
    return torch.stack([x1 * width, y1 * height, x2 * width, y2 * height], dim=-1)


@dataclass(frozen=True)
class FeatureSpec:
    """Shape of a feature map as probed on a sample picture.

    ``nonnegative`` tells whether the layer ends in a ReLU (no negative value was seen).
    """

    channels: int
    height: int
    width: int
    nonnegative: bool


@dataclass(frozen=True)
class Scores:
    """Which class scores a network gives, so that two can be compared before training.

    Attributes:
        of: what a row of them belongs to: ``pictures``, ``regions`` or ``anchors``.
        sigmoid: whether each class is scored by itself, without a background; else a softmax goes over all.
        anchors: (R, 4) on the probed picture, in pixels; None of other rows.
        shared: names of the classes that both nets know and that are compared; empty: all.
        every: whether the teacher knows all of the student's classes.
        resized: whether the network sees pictures of another size than the student does, and so has other anchors.
        width: D of `Rows.vectors`; 0 where there are none.
        rpn_anchors: anchors of a cell, as many on every level, of which regions are chosen; 0 where there are none.
    """

    of: str = "pictures"
    sigmoid: bool = False
    anchors: Tensor | None = None
    shared: tuple[str, ...] = ()
    every: bool = True
    resized: bool = False
    width: int = 0
    rpn_anchors: int = 0


@dataclass(frozen=True)
class Tower:
    """Of a dense head: the ``channels`` of its two towers and the ``sizes`` (height, width) of its levels."""

    channels: int
    sizes: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Spec:
    """What a method may know of a network before training: its maps, its classes, and what its heads give.

    ``num_classes``: 0 where the network does not tell. ``scores``: None where it cannot be asked for
    `Knowledge.logits`. ``tower``: None where it cannot be asked for `Knowledge.dense`. ``height``: of the
    probed picture, in pixels; 0: not told.
    """

    features: Mapping[str, FeatureSpec] = field(default_factory=dict)
    num_classes: int = 0
    classes: tuple[str, ...] = ()
    scores: Scores | None = Scores()
    tower: Tower | None = None
    height: int = 0

    @property
    def compared_classes(self) -> int:
        """Columns of `Knowledge.logits`."""
        scores = self.scores or Scores()
        background = scores.of != "pictures" and not scores.sigmoid
        if scores.shared:
            return len(scores.shared) + background
        return self.num_classes - (scores.of != "pictures" and scores.sigmoid)
