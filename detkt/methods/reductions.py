"""Numbers made of maps: in full precision, over the cells that show picture."""

from __future__ import annotations

import torch
from torch import Tensor


def full_precision(tensor: Tensor) -> Tensor:
    """*tensor* in float32 where autocast made it narrower; float64 stays."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


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


def root_mean_square(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Root of :func:`mean_square`, at least 1e-6: what a map is divided by to bring it to a scale of 1. Scalar."""
    return mean_square(values, mask).sqrt().clamp_min(1e-6)


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
