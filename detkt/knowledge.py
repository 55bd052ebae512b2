"""What a network reveals about a batch: the only thing that methods see of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def known(value: T | None) -> T:
    """*value*, a part of a network's :class:`Knowledge` that a method has asked for.

    Raises:
        ValueError: it is None: the stage's ``needs`` do not name it, or the network does not have it.
    """
    if value is None:
        raise ValueError("a method reads what the needs of its stage do not name, or what its networks do not have")
    return value


@dataclass
class Knowledge:
    """A network's knowledge about one batch of N pictures.

    Attributes:
        features: name -> map (N, C, H, W). ``output`` is the last shared convolution (the backbone's
            output); a feature pyramid reveals ``output.<level>``; other names are modules of the backbone.
        logits: class scores (M, K): M pictures (classification), or M sampled RoIs (detection).
        labels: true class of each row of ``logits`` (M,).
        losses: the network's own task losses by name, scalars; empty where they were not computed.
        classification_loss: the name of the one among ``losses`` that ``logits`` enter.
        boxes: of the objects in each picture (n, 4): x1, y1, x2, y2 as shares of the batch's width and height, padding
            included; None where they were not asked for.
        anchors: by output, the network's own (H, W, A, 4), in the unit of ``boxes``; empty where not asked for.
        valid: for each picture the share of the batch's height and width that it fills, each in (0, 1];
            None where no picture is padded. Kept on the host, so that asking costs no synchronisation.
    """

    features: dict[str, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None
    labels: Tensor | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)
    classification_loss: str = ""
    boxes: Sequence[Tensor] | None = None
    anchors: dict[str, Tensor] = field(default_factory=dict)
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
class Spec:
    """What a method may know of a network before training: its maps, its classes, and whether it has logits.

    ``num_classes``: 0 where the network does not tell. ``has_logits``: it can be asked for :attr:`Knowledge.logits`,
    which of detectors those of two stages can.
    """

    features: Mapping[str, FeatureSpec] = field(default_factory=dict)
    num_classes: int = 0
    classes: tuple[str, ...] = ()
    has_logits: bool = True
