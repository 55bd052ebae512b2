"""MGD: generator and loss against NumPy; blank cells; padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from map_helpers import random_map, rectangle_mask

from detkt.methods.mgd import Generator, mgd_loss, random_cells

SIZES = [(3, 7), (5, 2)]


def convolve(feature: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """3x3 convolution of (C, H, W) with zeros around."""
    padded = np.pad(feature, ((0, 0), (1, 1), (1, 1)))
    height, width = feature.shape[1:]
    result = np.zeros((len(weight), height, width)) + bias[:, None, None]
    for y, x in np.ndindex(3, 3):
        result += np.einsum("oc,chw->ohw", weight[:, :, y, x], padded[:, y : y + height, x : x + width])
    return result


@pytest.fixture
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(3).double()


def by_hand(generator: Generator, feature: np.ndarray) -> np.ndarray:
    first, second = (
        [p.detach().numpy() for p in (layer.weight, layer.bias)] for layer in (generator.first, generator.second)
    )
    return convolve(np.maximum(convolve(feature, *first), 0), *second)


@pytest.mark.parametrize("sizes", [[(5, 7), (5, 7)], SIZES])
def test_loss_of_the_generated_map(generator, sizes):
    """Each picture of a padded batch is generated as if it were alone, with zeros around."""
    student, teacher = random_map(2, 3, 5, 7, seed=1), random_map(2, 3, 5, 7, seed=2)
    mask = None if sizes is not SIZES else rectangle_mask(5, 7, sizes)
    expected = [
        ((by_hand(generator, student[i, :, :h, :w].numpy()) - teacher[i, :, :h, :w].numpy()) ** 2).sum()
        for i, (h, w) in enumerate(sizes)
    ]
    loss = mgd_loss(generator(student, mask), teacher, mask)
    assert loss.item() == pytest.approx(np.mean(expected), abs=1e-9)


def test_padding_neither_counts_nor_gets_a_gradient(generator):
    student, teacher = random_map(2, 3, 5, 7, seed=1, grad=True), random_map(2, 3, 5, 7, seed=2)
    mask = rectangle_mask(5, 7, SIZES)
    loss = mgd_loss(generator(student, mask), teacher, mask)
    loss.backward()
    padding = (mask == 0).expand_as(student)
    assert (student.grad[padding] == 0).all()
    assert (student.grad[~padding] != 0).any()
    other = generator(student.masked_fill(padding, 100), mask)
    torch.testing.assert_close(mgd_loss(other, teacher.masked_fill(padding, -50), mask), loss)


def test_gradient(generator):
    student, teacher = random_map(2, 3, 3, 4, seed=1, grad=True), random_map(2, 3, 3, 4, seed=2)
    mask = rectangle_mask(3, 4, [(3, 4), (2, 2)])
    assert torch.autograd.gradcheck(lambda s: mgd_loss(generator(s, mask), teacher, mask), student)


def test_random_cells_are_those_of_all_channels_in_their_share():
    torch.manual_seed(0)
    cells = random_cells(torch.zeros(8, 3, 50, 60), 0.45)
    assert cells.shape == (8, 1, 50, 60)
    assert set(cells.unique().tolist()) == {0, 1}
    # 24,000 cells: four standard deviations are 0.013.
    assert cells.mean().item() == pytest.approx(0.55, abs=0.013)
    assert not torch.equal(cells[0], cells[1])
    assert random_cells(torch.zeros(2, 3, 5, 6), 0.0).all()
    assert not random_cells(torch.zeros(2, 3, 5, 6), 1.0).any()


def test_half_precision_is_summed_in_full():
    generated = torch.full((1, 64, 40, 45), 300.0, dtype=torch.float16)
    assert mgd_loss(generated, torch.zeros_like(generated)).item() == pytest.approx(64 * 40 * 45 * 9e4)
    assert mgd_loss(generated.bfloat16(), generated.bfloat16()).dtype == torch.float32


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 5\) and \(2, 6, 4, 5\)"):
        mgd_loss(random_map(2, 3, 4, 5), random_map(2, 6, 4, 5))
