"""Sheets of kernels and shares of near-zero weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from detkt.visualization.kernels import GAP, SQUARE, convolution_weights, kernel_figure, kernel_sheet, near_zero_share


def test_near_zero_is_relative_to_each_layer():
    # Root mean squares 2 and 200: one of 4 and three of 4 weights are below a tenth of it.
    first, second = torch.tensor([0.1, 2.0, -2.0, 2.8267]), torch.tensor([400.0, 1.0, -1.0, 0.0])
    assert near_zero_share([first]) == 0.25
    assert near_zero_share([first, second]) == 0.5
    assert near_zero_share([100 * first]) == 0.25
    assert near_zero_share([first], threshold=1.2) == 0.75
    normal = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    assert near_zero_share([normal]) == pytest.approx(0.0797, abs=0.002)


def test_convolutions_come_in_order():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(2, 2), nn.Sequential(nn.Conv2d(2, 4, 1)))
    assert [tuple(weight.shape) for weight in convolution_weights(model)] == [(2, 1, 3, 3), (4, 2, 1, 1)]


def test_a_sheet_holds_every_weight_once_in_its_place():
    weights = np.arange(1.0, 4 * 3 * 2 * 2 + 1).reshape(4, 3, 2, 2)
    sheet = kernel_sheet(weights)
    filled = sheet[~np.isnan(sheet)]
    values, counts = np.unique(filled, return_counts=True)
    np.testing.assert_array_equal(values, weights.ravel())
    assert set(counts) == {SQUARE**2}
    # Kernels of 12 x 38 cells: in one column they are 63 x 38, in two 29 x 81.
    assert sheet.shape == (4 * 2 * SQUARE + 3 * GAP, 3 * 2 * SQUARE + 2)
    assert sheet[0, 0] == weights[0, 0, 0, 0]
    assert sheet[SQUARE, 0] == weights[0, 0, 1, 0]
    assert sheet[0, 2 * SQUARE + 1] == weights[0, 1, 0, 0]
    assert np.isnan(sheet[0, 2 * SQUARE])


def test_all_networks_share_one_scale():
    sparse, dense = np.zeros((4, 1, 3, 3)), np.full((4, 1, 3, 3), -2.0)
    figure = kernel_figure({"sparse": sparse, "dense": dense})
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["sparse\n4 kernels 1 x 3 x 3", "dense\n4 kernels 1 x 3 x 3"]
    assert [axes.images[0].get_clim() for axes in panels] == [(-2, 2), (-2, 2)]
    assert len(kernel_figure({str(i): dense for i in range(5)}).axes) == 8 + 1  # two rows of four, and the scale
    assert kernel_figure({"nothing": sparse}).axes[0].images[0].get_clim() == (-1, 1)
