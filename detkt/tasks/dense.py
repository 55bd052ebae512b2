"""The head of a torchvision detector of one stage: its scores of every anchor, and its towers.

Two kinds are known. RetinaNet's and FCOS's score each class by a sigmoid, and their column 0, which torchvision keeps
for a background, is never trained: it is left out here. SSD's and SSDlite's have a softmax over the background and the
classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.ssd import SSDHead
from torchvision.models.detection.ssdlite import SSDLiteHead

from detkt.methods.reductions import full_precision

ROWS = 512
"""Anchors of a picture whose scores are compared: as many as torchvision's RoI head samples."""


class DenseHead:
    """The head of *model*; :meth:`of` finds out whether it has one of a known kind."""

    def __init__(self, model: Any) -> None:
        self.model, self.head = model, model.head
        self.sigmoid = isinstance(self.head, RetinaNetHead | FCOSHead)

    @classmethod
    def of(cls, model: Any) -> DenseHead | None:
        """Its dense head; None where it has none, or one that detkt does not know."""
        kinds = (RetinaNetHead, FCOSHead, SSDHead, SSDLiteHead)
        return cls(model) if isinstance(getattr(model, "head", None), kinds) else None

    def anchors(self, maps: Sequence[Tensor], images: ImageList) -> Tensor:
        """Anchors (R, 4) of one picture, in pixels of the batch; those of all pictures are the same."""
        return anchors_of(self.model.anchor_generator, maps, images)

    def logits(self, maps: Sequence[Tensor]) -> Tensor:
        """Class scores (N, R, K) of all anchors, before sigmoid or softmax."""
        return self.scored(full_precision(self.head.classification_head(list(maps))))

    def scored(self, logits: Tensor) -> Tensor:
        """The columns of torchvision's (N, R, K) that are trained."""
        return logits[..., 1:] if self.sigmoid else logits

    def confidence(self, logits: Tensor) -> Tensor:
        """The highest score (..., R) that an anchor's *logits* (..., R, K) give to any object."""
        # 1 less the background's: of all objects together.
        return logits.sigmoid().amax(dim=-1) if self.sigmoid else 1 - logits.softmax(dim=-1)[..., 0]

    def confidence_maps(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The highest :meth:`confidence` of each cell's anchors: (N, 1, H, W) a level."""
        levels = self.confidence(self.logits(maps)).split(self._counts(maps), dim=1)
        return [
            level.reshape(len(level), *feature.shape[2:], -1).amax(dim=3).unsqueeze(1)
            for level, feature in zip(levels, maps, strict=True)
        ]

    def _counts(self, maps: Sequence[Tensor]) -> list[int]:
        """Anchors of each level."""
        per_cell = self.model.anchor_generator.num_anchors_per_location()
        return [feature.shape[-2:].numel() * count for feature, count in zip(maps, per_cell, strict=True)]

    def shown(self, maps: Sequence[Tensor], mask: Callable[[Tensor], Tensor | None]) -> Tensor | None:
        """(N, R) of 0 and 1: which anchors stand in cells that *mask* of a level says to show picture; None: all."""
        levels = []
        for feature, count in zip(maps, self._counts(maps), strict=True):
            if (cells := mask(feature)) is None:
                return None
            levels.append(cells.flatten(1).repeat_interleave(count // cells[0].numel(), dim=1))
        return torch.cat(levels, dim=1)

    def labels(self, matched: Sequence[Tensor], targets: Sequence[dict[str, Tensor]]) -> Tensor:
        """Class (N, R) of every anchor by what torchvision has *matched* it with; 0: none."""
        found = []
        for indices, target in zip(matched, targets, strict=True):
            labels = target["labels"]
            if len(labels):
                found.append(labels[indices.clamp_min(0)].masked_fill(indices < 0, 0))
            else:
                found.append(torch.zeros_like(indices))
        return torch.stack(found)

    @contextmanager
    def noting_matches(self, note: Callable[[list[Tensor]], None]) -> Iterator[None]:
        """Tell *note* which target (R,) a picture torchvision gives each anchor in its next loss; below 0: none."""
        owner = self.head if hasattr(self.head, "compute_loss") else self.model
        original, own = owner.compute_loss, vars(owner)

        def compute_loss(targets: Any, head_outputs: Any, anchors: Any, matched_idxs: list[Tensor]) -> Any:
            note(matched_idxs)
            return original(targets, head_outputs, anchors, matched_idxs)

        before = own.get("compute_loss")
        own["compute_loss"] = compute_loss
        try:
            yield
        finally:
            if before is None:
                del own["compute_loss"]
            else:
                own["compute_loss"] = before


def anchors_of(generator: nn.Module, maps: Sequence[Tensor], images: ImageList) -> Tensor:
    """The anchors (R, 4) that *generator* puts on *maps* of a picture, in pixels of the batch."""
    # They are the same for all pictures, and in the precision of the maps: one map of one channel does.
    one = ImageList(images.tensors, images.image_sizes[:1])
    (anchors,) = generator(one, [full_precision(level[:1, :1]) for level in maps])
    return anchors


class Towers:
    """The towers of a RetinaNet's or an FCOS's head, cut before the activation that leads to the last convolution.

    Args:
        dense: the head.
    """

    BRANCHES = ("classification", "regression")

    def __init__(self, dense: DenseHead) -> None:
        self.dense = dense
        head = dense.head
        self._layers = [
            [part for part in branch.conv.modules() if not list(part.children())]
            for branch in (head.classification_head, head.regression_head)
        ]
        self._cuts = [_cut(layers) for layers in self._layers]

    @classmethod
    def of(cls, dense: DenseHead | None) -> Towers | None:
        """Its towers; None where they have fewer than two convolutions, or there are none."""
        if dense is None or not dense.sigmoid:
            return None
        branches = (dense.head.classification_head, dense.head.regression_head)
        counts = [sum(isinstance(part, nn.Conv2d) for part in branch.conv.modules()) for branch in branches]
        return cls(dense) if min(counts) > 1 else None

    @property
    def channels(self) -> int:
        """Of the towers."""
        return next(part for part in self._layers[0] if isinstance(part, nn.Conv2d)).out_channels

    def first(self, maps: Sequence[Tensor]) -> list[list[Tensor]]:
        """What the first parts of the two towers make of *maps*: (N, C, H, W) a level, of each tower."""
        return [
            [_through(layers[:cut], feature) for feature in maps]
            for layers, cut in zip(self._layers, self._cuts, strict=True)
        ]

    def rest(self, classification: Sequence[Tensor], regression: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """What is left of the head on such maps: class scores (N, R, K) before the sigmoid, and box codes (N, R, 4)."""
        head = self.dense.head
        scored, coded = (
            [_through(layers[cut:], feature.clone()) for feature in maps]
            for layers, cut, maps in zip(self._layers, self._cuts, (classification, regression), strict=True)
        )
        classes = head.classification_head.num_classes
        logits = torch.cat([_rows(head.classification_head.cls_logits(level), classes) for level in scored], dim=1)
        codes = [head.regression_head.bbox_reg(level) for level in coded]
        if isinstance(head, FCOSHead):
            codes = [level.relu() for level in codes]  # distances to the sides
        boxes = torch.cat([_rows(level, 4) for level in codes], dim=1)
        return self.dense.scored(full_precision(logits)), full_precision(boxes)

    def decoded(self, codes: Tensor, anchors: Tensor) -> Tensor:
        """Boxes (N, R, 4) of box codes (N, R, 4) on *anchors* (R, 4), in the anchors' unit."""
        coder = self.dense.model.box_coder
        if isinstance(self.dense.head, FCOSHead):
            return coder.decode(codes, anchors.expand_as(codes))
        pictures = len(codes)
        return coder.decode_single(codes.flatten(0, 1), anchors.repeat(pictures, 1)).reshape_as(codes)

    @contextmanager
    def watching(self, note: Callable[[str, Tensor], None]) -> Iterator[None]:
        """Tell *note*, branch by branch and level by level, what the first parts of the towers give in a pass."""
        with ExitStack() as stack:
            for branch, layers, cut in zip(self.BRANCHES, self._layers, self._cuts, strict=True):
                in_place = getattr(layers[cut], "inplace", False)  # then the activation would write into what is told

                def told(
                    module: nn.Module, inputs: tuple, output: Tensor, branch: str = branch, copied: bool = in_place
                ) -> Tensor | None:
                    note(branch, output)
                    return output.clone() if copied else None

                stack.callback(layers[cut - 1].register_forward_hook(told).remove)
            yield


def _cut(layers: Sequence[nn.Module]) -> int:
    """Index of the first layer after the last convolution but one and its norm."""
    *_, index, last = (number for number, part in enumerate(layers) if isinstance(part, nn.Conv2d))
    activations = [number for number in range(index + 1, last) if not list(layers[number].parameters())]
    # A norm without parameters is no activation.
    return next((number for number in activations if "Norm" not in type(layers[number]).__name__), last)


def _through(layers: Sequence[nn.Module], feature: Tensor) -> Tensor:
    for layer in layers:
        feature = layer(feature)
    return feature


def _rows(level: Tensor, columns: int) -> Tensor:
    """(N, A * columns, H, W) -> (N, H * W * A, columns), in torchvision's order of anchors."""
    pictures, _, height, width = level.shape
    return level.view(pictures, -1, columns, height, width).permute(0, 3, 4, 1, 2).reshape(pictures, -1, columns)


def leading_rows(scores: Sequence[Tensor], labels: Tensor, shown: Tensor | None) -> list[Tensor]:
    """The anchors of each picture whose class scores are compared: indices (n,), n at most :data:`ROWS`.

    Those of objects first, then those with the highest of *scores*, each (N, R) in [0, 1]; none that shows padding.

    Args:
        scores: the student's and the teacher's confidence.
        labels: (N, R), 0 where an anchor stands for no object.
        shown: (N, R), on the host; None: all.
    """
    order = torch.stack(list(scores)).amax(dim=0) + (labels > 0)
    counts = [order.shape[1]] * len(order)
    if shown is not None:
        counts = shown.sum(dim=1).int().tolist()
        order = order.masked_fill(shown.to(order.device, non_blocking=True) == 0, -1.0)
    return [row.topk(min(ROWS, count)).indices for row, count in zip(order, counts, strict=True)]
