"""Means over the cells that show picture."""

import pytest
import torch

from detkt.methods.reductions import masked_mean, mean_square, root_mean_square, squared_error


def test_masked_mean_counts_the_cells_of_every_channel():
    values = torch.arange(12.0).reshape(1, 2, 2, 3)
    mask = torch.tensor([[1.0, 1, 0], [1, 0, 0]]).reshape(1, 1, 2, 3)
    assert masked_mean(values, None).item() == 5.5
    assert masked_mean(values, mask).item() == pytest.approx((0 + 1 + 3 + 6 + 7 + 9) / 6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_masked_mean_of_half_precision_neither_overflows_nor_miscounts(dtype):
    values = torch.full((2, 64, 40, 45), 3.0, dtype=dtype)  # 230,400 elements: infinite in float16
    assert masked_mean(values, torch.ones(2, 1, 40, 45)).item() == 3.0


@pytest.mark.parametrize("masked", [False, True])
def test_mean_square_is_the_mean_of_the_squares(masked):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    mask = (torch.rand(2, 1, 4, 5, generator=generator) > 0.4).double() if masked else None
    expected = masked_mean(values**2, mask)
    torch.testing.assert_close(mean_square(values, mask), expected)
    torch.testing.assert_close(root_mean_square(values, mask), expected.sqrt())
    (gradient,) = torch.autograd.grad(mean_square(values, mask), values)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, values)[0])


def test_mean_square_is_formed_in_full_precision():
    values = torch.full((2, 64, 40, 45), 300.0, dtype=torch.float16)  # one square is infinite in float16
    assert mean_square(values).item() == 90_000
    assert mean_square(values, torch.ones(2, 1, 40, 45)).item() == 90_000


def test_root_mean_square_of_an_empty_map_can_be_divided_by():
    assert root_mean_square(torch.zeros(1, 2, 3, 3)).item() == pytest.approx(1e-6)


def test_squared_error_sums_each_picture():
    first, second = torch.arange(12.0).reshape(2, 1, 2, 3), torch.ones(2, 1, 2, 3)
    assert squared_error(first, second).tolist() == [1 + 0 + 1 + 4 + 9 + 16, 25 + 36 + 49 + 64 + 81 + 100]
    mask = torch.tensor([[1.0, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 1]]).reshape(2, 1, 2, 3)
    assert squared_error(first, second, mask).tolist() == [1, 100]
    with pytest.raises(ValueError, match=r"got \(2, 1, 2, 3\) and \(1, 1, 2, 3\)"):
        squared_error(first, second[:1])
