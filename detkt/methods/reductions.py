"""Numbers made of maps: in full precision, over the cells that show picture."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

T = TypeVar("T")


def full_precision(value: T) -> T:
    """*value*, or every tensor in it, in float32 where autocast made it narrower."""
    converted: Any = value
    if isinstance(value, Tensor):
        converted = value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    elif isinstance(value, dict):
        converted = type(value)((name, full_precision(part)) for name, part in value.items())
    elif isinstance(value, list | tuple):
        converted = type(value)(full_precision(part) for part in value)
    return cast(T, converted)


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of *values* (N, C, H, W) over the cells where *mask* (N, 1, H, W) is 1; all cells if None. Scalar."""
    if mask is None:
        return values.mean()
    return (values * mask).sum() / (mask.sum() * values.shape[1])


def mean_square(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """:func:`masked_mean` of the squares of *values* (N, C, H, W), in full precision. Scalar."""
    values = full_precision(values)
    count = values.numel() if mask is None else mask.sum() * values.shape[1]
    if mask is not None:
        values = values * mask
    # Neither square() nor masked_mean() of the squares: forward and backward would take some three times as long.
    return (values * values).sum() / count


def centred_channels(feature: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """A map (N, C, H, W) less the mean of each channel over all pictures and cells, these means, and the variances.

    The last two are (1, C, 1, 1), the variances unbiased. *mask* (N, 1, H, W) is 1 where the map shows picture: only
    these cells count, the others are 0.
    """
    cells = (0, 2, 3)
    if mask is None:
        count = feature.new_full((), feature[:, 0].numel())  # filled there: a value of the host's would be copied
        mean = feature.mean(cells, keepdim=True)
        centred = feature - mean
    else:
        count = mask.sum()
        mean = (feature * mask).sum(cells, keepdim=True) / count
        centred = (feature - mean) * mask
    return centred, mean, (centred * centred).sum(cells, keepdim=True) / (count - 1).clamp_min(1)


def root_mean_square(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Root of :func:`mean_square`, at least 1e-6: what a map is divided by to bring it to a scale of 1. Scalar."""
    return mean_square(values, mask).sqrt().clamp_min(1e-6)


def row_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Mean of *values* (M,) by *weights* (M,), 0 where these are; of all alike if None. Scalar."""
    return values.mean() if weights is None else (values * weights).sum() / weights.sum().clamp_min(1e-6)


def bernoulli_divergence(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(p_t || p_s) of two probabilities p = sigmoid(logit), element by element, 0 or more; finite at any logits."""
    ours, theirs = full_precision(student_logits), full_precision(teacher_logits)
    is_so = theirs.sigmoid() * (F.logsigmoid(theirs) - F.logsigmoid(ours))
    is_not = (-theirs).sigmoid() * (F.logsigmoid(-theirs) - F.logsigmoid(-ours))
    return is_so + is_not


def require_one_shape(student: Tensor, teacher: Tensor) -> None:
    """Raise ValueError unless what is compared has one shape: broadcasting would compare something else."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"student's and teacher's values must have one shape, got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )


def squared_error(first: Tensor, second: Tensor, mask: Tensor | None = None) -> Tensor:
    """Sum of (first - second)^2 over each picture: (N,), in full precision.

    first, second: (N, C, H, W), of which only the cells where *mask* (N, 1, H, W) is 1 count; None: all.
    """
    require_one_shape(first, second)
    difference = full_precision(first) - full_precision(second)
    if mask is not None:
        difference = difference * mask
    return (difference * difference).sum(dim=(1, 2, 3))
