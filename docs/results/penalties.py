"""Penalties of one value: what they cost over it, and the gradient they send back."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from detkt.visualization.curves import COLORS
from detkt.visualization.panels import DPI

Penalty = Callable[[Tensor], Tensor]


def penalty_curves(penalty: Penalty, gaps: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient (n,) of *penalty* at each of *gaps* (n,), each taken as a map (1, 1, 1, 1) of its own."""
    gaps = gaps.clone().requires_grad_(True)
    values = torch.stack([penalty(gap.view(1, 1, 1, 1)) for gap in gaps])
    (gradients,) = torch.autograd.grad(values.sum(), gaps)
    return values.detach(), gradients


def penalty_figure(penalties: Mapping[str, Penalty], furthest: float = 2.5) -> Figure:
    """Value and gradient of *penalties* by title, over the gap from -*furthest* to *furthest*.

    A penalty takes a map (N, C, H, W) and gives the mean over its elements.
    """
    # An even number of points leaves out 0, where a norm has no gradient.
    gaps = torch.linspace(-furthest, furthest, 600, dtype=torch.float64)
    figure = Figure(figsize=(8.4, 3.9), dpi=DPI, layout="constrained")
    value_axes, gradient_axes = figure.subplots(1, 2)
    for number, (title, penalty) in enumerate(penalties.items()):
        values, gradients = penalty_curves(penalty, gaps)
        # Each narrower than the one before, so that lines on top of one another are all seen.
        style = {"color": COLORS[number % len(COLORS)], "linewidth": 1.2 + 2 * 0.6**number}
        value_axes.plot(gaps, values, label=title, **style)
        gradient_axes.plot(gaps, _broken_at_jumps(gradients.numpy()), **style)
    for axes, what in ((value_axes, "value"), (gradient_axes, "gradient")):
        axes.set(xlabel="gap r", ylabel=what, xlim=(-furthest, furthest))
        axes.axhline(0, color="#888888", linewidth=0.7, zorder=0)
        axes.grid(color="#e3e3e3", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    handles = value_axes.get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=3, frameon=False, fontsize=8.5)
    return figure


def _broken_at_jumps(values: np.ndarray) -> np.ndarray:
    """*values* with NaN in place of the first one after a jump, so that no line joins the two sides."""
    steps = np.abs(np.diff(values))
    jumps = np.flatnonzero(steps > 0.1 * (np.ptp(values) or 1)) + 1
    broken = values.copy()
    broken[jumps] = np.nan
    return broken
