"""Curves of penalties: value and gradient by hand."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from penalties import penalty_curves, penalty_figure

from detkt.methods.knowledge_representing import sparse_recoding_penalty


def sparse(threshold: float):
    return partial(sparse_recoding_penalty, threshold=torch.tensor(threshold, dtype=torch.float64))


def test_value_and_gradient_of_single_gaps():
    gaps = torch.tensor([-2.0, -0.5, 0.25, 3.0], dtype=torch.float64)
    values, gradients = penalty_curves(sparse(1.0), gaps)
    np.testing.assert_allclose(values, [4, 1, 1, 9])  # gamma / 2 * max(r^2, theta^2), gamma = 2
    np.testing.assert_allclose(gradients, [-4, 0, 0, 6])
    values, gradients = penalty_curves(lambda gap: gap.abs().mean(), gaps)
    np.testing.assert_allclose(values, [2, 0.5, 0.25, 3])
    np.testing.assert_allclose(gradients, [-1, -1, 1, 1])


def test_the_figure_has_a_line_a_penalty_broken_at_the_threshold():
    figure = penalty_figure({"sparse": sparse(1.0), "L2": lambda gap: gap.square().mean() / 2}, furthest=2.0)
    value, gradient = figure.axes
    assert [text.get_text() for text in figure.legends[0].texts] == ["sparse", "L2"]
    x, y = value.lines[0].get_data()
    assert (x[0], x[-1]) == (-2, 2)
    np.testing.assert_allclose(y, np.maximum(np.square(x), 1))
    x, y = gradient.lines[0].get_data()
    assert np.isnan(y).sum() == 2
    shown = ~np.isnan(y)
    np.testing.assert_allclose(y[shown], np.where(np.abs(x) > 1, 2 * x, 0)[shown])
    np.testing.assert_allclose(gradient.lines[1].get_ydata(), gradient.lines[1].get_xdata())
