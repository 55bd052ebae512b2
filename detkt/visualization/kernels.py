"""Kernels of the first convolution of several networks side by side, and how sparse their weights are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor, nn

from detkt.visualization.panels import DPI

NEAR_ZERO = 0.1
"""A weight is near zero below this share of its layer's root mean square; of normal weights 8.0 % are."""


SQUARE, GAP = 6, 5
"""Cells of a weight's side, and between two kernels; a kernel's channels are one cell apart."""


def convolution_weights(model: nn.Module) -> list[Tensor]:
    """Weights (O, I, h, w) of every convolution of *model*, in the order of its definition: the first sees pictures."""
    return [part.weight.detach() for part in model.modules() if isinstance(part, nn.Conv2d)]


def near_zero_share(weights: Iterable[Tensor], threshold: float = NEAR_ZERO) -> float:
    """Share of all weights that lie below *threshold* times the root mean square of their own layer.

    It does not change with a layer's scale; the more a layer's weights are a few large among many small ones, the
    larger it is.
    """
    small = total = 0
    for weight in weights:
        small += int((weight.abs() < threshold * weight.square().mean().sqrt()).sum())
        total += weight.numel()
    return small / total


def kernel_figure(kernels: Mapping[str, np.ndarray]) -> Figure:
    """A panel a network: its kernels (O, I, h, w), the channels of each side by side, white at 0, all on one scale.

    kernels: title -> weights. Kernels stand row by row in the order of the output channels, so that those that
    students of one start have in one place come from the same kernel. The scale ends at the 99th percentile of all
    magnitudes, for single large weights would leave the others pale.
    """
    magnitudes = np.concatenate([np.abs(weights).ravel() for weights in kernels.values()])
    largest = np.percentile(magnitudes, 99) or 1.0
    columns = min(len(kernels), 4)
    rows = math.ceil(len(kernels) / columns)
    figure = Figure(figsize=(2.6 * columns + 0.9, 2.75 * rows), dpi=DPI, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    colors = colormaps["RdBu_r"].with_extremes(bad="#8a8a8a")
    for axes, (title, weights) in zip(panels.flat, kernels.items(), strict=False):
        image = axes.imshow(kernel_sheet(weights), cmap=colors, vmin=-largest, vmax=largest, interpolation="nearest")
        outputs, inputs, height, width = weights.shape
        axes.set_title(f"{title}\n{outputs} kernels {inputs} x {height} x {width}", fontsize=8, parse_math=False)
    bar = figure.colorbar(image, ax=panels, shrink=0.8, pad=0.02, extend="both")
    bar.ax.tick_params(labelsize=7)
    bar.set_label("weight", fontsize=8)
    return figure


def kernel_sheet(weights: np.ndarray) -> np.ndarray:
    """Kernels (O, I, h, w) in a rectangle about as wide as high, a weight a square of `SQUARE` cells, NaN between."""
    outputs, inputs, height, width = weights.shape
    high, wide = height * SQUARE + GAP, inputs * (width * SQUARE + 1) - 1 + GAP
    columns = max(1, min(outputs, round(math.sqrt(outputs * high / wide))))
    sheet = np.full((math.ceil(outputs / columns) * high - GAP, columns * wide - GAP), np.nan)
    for number, channel in np.ndindex(outputs, inputs):
        top = number // columns * high
        left = number % columns * wide + channel * (width * SQUARE + 1)
        enlarged = weights[number, channel].repeat(SQUARE, axis=0).repeat(SQUARE, axis=1)
        sheet[top : top + height * SQUARE, left : left + width * SQUARE] = enlarged
    return sheet
