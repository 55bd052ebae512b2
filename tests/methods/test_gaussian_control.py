"""The control of KTAN's adversary in docs/results: the distance by hand, and that it teaches at its share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import detkt
from detkt.methods import method_class

FILE = Path(__file__).resolve().parents[2] / "docs/results/gaussian.py"


@pytest.fixture(scope="module")
def gaussian():
    return method_class(f"{FILE}:Gaussian")


def test_the_distance_by_hand(gaussian):
    """In the box the student's channel is 3 everywhere, and the teacher's 1 up to column 13 and 5 from then on."""
    distance = gaussian._with_distance.__globals__["gaussian_distance"]
    student, teacher = torch.full((1, 1, 8, 28), 3.0), torch.ones(1, 1, 8, 28)
    teacher[..., 14:] = 5
    student[..., :7] = teacher[..., :7] = 90.0  # outside
    box = torch.tensor([[8.0, 0.5, 13.0, 7.5]])
    assert distance(student, teacher, [box]).item() == pytest.approx((3 - 1) ** 2, rel=1e-2)
    # Seven cells of two samples a row each, read between the centres of the map's cells.
    wide = torch.tensor([[10.5, 0.5, 17.5, 7.5]])
    samples = np.interp(10.75 + 0.5 * np.arange(14), np.arange(28) + 0.5, teacher[0, 0, 0])
    cells = samples.reshape(7, 2).mean(axis=1)
    assert distance(student, teacher, [wide]).item() == pytest.approx((3 - cells.mean()) ** 2 + cells.var(), rel=1e-2)
    assert distance(student, teacher, [box[:0]]).item() == 0


def test_it_is_held_to_its_share(gaussian, detector, batch):
    settings = {"adversary_balance": 0.3, "regressor_steps": 1}
    distiller = detkt.Distiller(detector(), detector(seed=1), gaussian, settings)
    distiller.prepare([batch])
    losses = distiller(*batch)
    assert losses["gaussian_distance"] > 0
    assert distiller.metrics["gaussian_distance_share"].item() == pytest.approx(0.3, rel=1e-3)
