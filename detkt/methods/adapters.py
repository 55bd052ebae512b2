"""What makes two nets' maps comparable: one number of channels, one size, one precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkt.knowledge import FeatureSpec
from detkt.methods.reductions import full_precision, require_one_shape

Pool = Callable[[Tensor, Tensor | None, tuple[int, ...]], tuple[Tensor, Tensor | None]]
Convolution = TypeVar("Convolution", nn.Conv2d, nn.ConvTranspose2d)


def with_zero_bias(convolution: Convolution) -> Convolution:
    """*convolution*, whose bias is 0 now."""
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return convolution


def regressor_geometry(source: int, target: int) -> tuple[int, int, int] | None:
    """Kernel K, stride S, padding P along one axis with (source + 2P - K) / S + 1 = target.

    The smallest kernel that fits; None where the sizes are too far apart for a small one.
    """
    if source >= target:
        stride = max(1, round(source / target))
        kernel = source - stride * (target - 1)
        return (kernel, stride, 0) if 1 <= kernel <= stride + 2 else None
    # Padding below the kernel: no row of the output may see padding alone.
    padding = target - source
    return (padding + 1, 1, padding) if padding <= 2 else None


class Regressor(nn.Module):
    """Map (N, C_source, H, W) -> shape of the target's map (N, C_target, H', W'), one convolution.

    Equal sizes give a 1x1 kernel; it ends with a ReLU where the target's layer does. Detection maps vary in
    size; where rounding makes a batch differ from the probed sizes the output is resized bilinearly.

    *padded*: an axis that is a little too short is lengthened by padding and a wider kernel. Else the map is resized
    bilinearly first, in both axes, as it is where the sizes are far apart, and the kernel is 1x1, which is cheaper.
    """

    def __init__(self, source: FeatureSpec, target: FeatureSpec, padded: bool = True) -> None:
        super().__init__()
        rows = regressor_geometry(source.height, target.height)
        columns = regressor_geometry(source.width, target.width)
        self.resize_first = rows is None or columns is None or (not padded and bool(rows[2] or columns[2]))
        if rows is None or columns is None or self.resize_first:
            rows = columns = (1, 1, 0)
        (kh, sh, ph), (kw, sw, pw) = rows, columns
        self.convolution = with_zero_bias(nn.Conv2d(source.channels, target.channels, (kh, kw), (sh, sw), (ph, pw)))
        nn.init.kaiming_normal_(self.convolution.weight, nonlinearity="relu")
        self.activation = nn.ReLU() if target.nonnegative else nn.Identity()

    def is_pointwise(self, feature: Tensor, size: tuple[int, ...]) -> bool:
        """Whether every cell of the output is made of one cell of *feature* alone; *size* as in ``forward``."""
        return max(self.convolution.kernel_size) == 1 and tuple(feature.shape[-2:]) == tuple(size)

    def forward(self, feature: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """*size*: height and width of the target's map on this batch; None: as the convolution gives it."""
        if self.resize_first and size is not None:
            feature = F.interpolate(feature, size=size, mode="bilinear", align_corners=False)
        regressed = self.convolution(feature)
        if size is not None and regressed.shape[-2:] != size:
            regressed = F.interpolate(regressed, size=size, mode="bilinear", align_corners=False)
        return self.activation(regressed)


def average_pool(feature: Tensor, mask: Tensor | None, size: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
    """Adaptive average pool of *feature* (N, C, H, W) to *size* over the cells where *mask* (N, 1, H, W) is 1.

    Returns the pooled map and its mask: the cells that cover at least one unmasked cell.
    """
    if feature.shape[-2:] == size:
        return feature, mask
    height, width = size
    if mask is None:
        return F.adaptive_avg_pool2d(feature, (height, width)), None
    share = F.adaptive_avg_pool2d(mask, (height, width))
    pooled = F.adaptive_avg_pool2d(feature * mask, (height, width)) / share.clamp_min(torch.finfo(share.dtype).eps)
    return pooled, (share > 0).to(mask.dtype)


def max_pool(feature: Tensor, mask: Tensor | None, size: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
    """:func:`average_pool` with the maximum in place of the mean; cells without picture are 0."""
    if feature.shape[-2:] == size:
        return feature, mask
    if mask is None:
        return F.adaptive_max_pool2d(feature, size), None
    covered = F.adaptive_max_pool2d(mask, size)
    lowest = torch.finfo(feature.dtype).min
    pooled = F.adaptive_max_pool2d(feature.masked_fill(mask == 0, lowest), size)
    return pooled.masked_fill(covered == 0, 0), covered


def in_one_shape(
    student: Tensor, teacher: Tensor, mask: Tensor | None, teacher_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """:func:`to_common_size` of maps that have one number of channels; ValueError where they have not."""
    student, teacher, mask = to_common_size(student, teacher, mask, teacher_mask)
    require_one_shape(student, teacher)
    return student, teacher, mask


def to_common_size(
    first: Tensor,
    second: Tensor,
    first_mask: Tensor | None = None,
    second_mask: Tensor | None = None,
    pool: Pool = average_pool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Pool two maps (N, C, H, W) to the smaller height and the smaller width of the two.

    Masks (N, 1, H, W) are 1 where a map shows picture; None: everywhere. Returns both maps, in full precision,
    and the mask (N, 1, h, w) of the cells that show picture in both, None where no mask was given.

    Raises:
        ValueError: a mask of another shape, which would count its cells otherwise.
    """
    for feature, mask in ((first, first_mask), (second, second_mask)):
        expected = (len(feature), 1, *feature.shape[-2:])
        if mask is not None and tuple(mask.shape) != expected:
            raise ValueError(f"the mask of a map {tuple(feature.shape)} must be {expected}, got {tuple(mask.shape)}")
    size = tuple(map(min, first.shape[-2:], second.shape[-2:]))
    first, first_mask = pool(full_precision(first), first_mask, size)
    second, second_mask = pool(full_precision(second), second_mask, size)
    if first_mask is None or second_mask is None:
        return first, second, first_mask if second_mask is None else second_mask
    return first, second, first_mask * second_mask
