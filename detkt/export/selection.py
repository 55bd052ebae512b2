"""Which boxes of a batch of pictures stay, without a loop over pictures or classes: a graph takes any number."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms

_EVERY = 2**31 - 1


class _OnnxNMS(torch.autograd.Function):
    """ONNX's NonMaxSuppression: indices of the boxes that stay, of each group's own."""

    @staticmethod
    def forward(context: Any, boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
        groups = scores[0].argmax(0)
        return _nms_of_groups(boxes[0], scores[0].amax(0), groups, iou)

    @staticmethod
    def symbolic(graph: Any, boxes: Any, scores: Any, iou: float) -> Any:
        def constant(value: Any, kind: torch.dtype) -> Any:
            return graph.op("Constant", value_t=torch.tensor([value], dtype=kind))

        limits = constant(_EVERY, torch.int64), constant(iou, torch.float32), constant(-0.5, torch.float32)
        # Triples of picture, class and box, of which the last is a box of one group alone.
        triples = graph.op("NonMaxSuppression", boxes, scores, *limits)
        chosen = graph.op("Gather", triples, graph.op("Constant", value_t=torch.tensor(2)), axis_i=1)
        chosen.setType(torch._C.TensorType.get().with_dtype(torch.int64).with_sizes([None]))
        return chosen


def grouped_nms(boxes: Tensor, scores: Tensor, groups: Tensor, count: Any, iou: float) -> Tensor:
    """Indices of the boxes that non-maximum suppression leaves, each group for itself.

    Args:
        boxes: (M, 4), x1 y1 x2 y2.
        scores: (M,), 0 or more.
        groups: (M,) int64, from 0 to *count* - 1: a picture's class, say.
        count: how many groups there are.
        iou: overlap above which the lower score goes.
    """
    if not torch.onnx.is_in_onnx_export():
        return _nms_of_groups(boxes, scores, groups, iou)
    own = groups[None] == torch.arange(count)[:, None]
    return _OnnxNMS.apply(boxes[None], torch.where(own, scores[None], torch.full_like(scores[None], -1))[None], iou)


def _nms_of_groups(boxes: Tensor, scores: Tensor, groups: Tensor, iou: float) -> Tensor:
    """Groups are moved apart, in float64: in float32 the boxes of a far group would lose digits.

    torchvision moves them in float32, if they are few.
    """
    boxes = boxes.double()
    # A row of zeros, because the largest of nothing is an error.
    apart = torch.cat([boxes.new_zeros(1, 4), boxes]).max() + 1
    return nms(boxes + (groups * apart)[:, None], scores.to(boxes.dtype), iou)


def best_of_each(scores: Tensor, pictures: Tensor, count: Any, limit: int) -> tuple[Tensor, Tensor]:
    """Indices of the *limit* highest of each picture's scores and their pictures: picture by picture, descending.

    Args:
        scores: (M,).
        pictures: (M,) int64, from 0 to *count* - 1.
        count: how many pictures there are.
        limit: how many of a picture.
    """
    order = scores.argsort(descending=True)
    own = pictures[order][None] == torch.arange(count)[:, None]
    best = own & (own.long().cumsum(1) <= limit)
    picture, place = best.nonzero().unbind(1)
    return order[place], picture


def highest(scores: Tensor, count: int, dim: int) -> tuple[Tensor, Tensor]:
    """The *count* highest along *dim*, or all where there are fewer, and their indices."""
    if not torch.jit.is_tracing():
        return scores.topk(min(count, scores.shape[dim]), dim)
    there = torch._shape_as_tensor(scores)[dim][None]
    wanted: Any = torch.cat([torch.tensor([count]), there]).amin()  # the tracer takes it for the number it is
    return scores.topk(wanted, dim)


def clip(boxes: Tensor, size: Tensor) -> Tensor:
    """*boxes* (..., 4) inside a picture of *size* (height, width)."""
    height, width = size.to(boxes.dtype).unbind()
    return torch.minimum(boxes.clamp(min=0), torch.stack([width, height, width, height]))


def is_at_least(boxes: Tensor, side: float) -> Tensor:
    """Whether both sides of *boxes* (..., 4) are *side* long or longer."""
    return ((boxes[..., 2:] - boxes[..., :2]) >= side).all(-1)
