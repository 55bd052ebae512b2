"""PKD: against Pearson's correlation, cell by cell; padding, constant channels, the scale it must not see."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from map_helpers import added, make, one_update, random_map, rectangle_mask, spec, task_losses
from torch import Tensor

from detkt.knowledge import Knowledge
from detkt.methods.pkd import pkd_loss, standardised

SIZES = [(3, 7), (5, 2)]  # rows, columns of two pictures in maps of 5 x 7


def shown(feature: Tensor, sizes: list[tuple[int, int]]) -> np.ndarray:
    """Values (C, n) of each channel over the pictures' cells."""
    parts = [feature[i, :, :h, :w].detach().flatten(1) for i, (h, w) in enumerate(sizes)]
    return torch.cat(parts, dim=1).numpy()


def by_correlation(student: np.ndarray, teacher: np.ndarray) -> float:
    """(n - 1) / n times 1 - r, mean over the channels of (C, n)."""
    n = student.shape[1]
    r = [np.corrcoef(ours, theirs)[0, 1] for ours, theirs in zip(student, teacher, strict=True)]
    return (n - 1) / n * (1 - np.mean(r))


def as_published(student: np.ndarray, teacher: np.ndarray) -> float:
    """1/2 mean squared difference after the unbiased deviation plus 1e-6."""
    ours, theirs = (
        (x - x.mean(axis=1, keepdims=True)) / (x.std(axis=1, ddof=1, keepdims=True) + 1e-6) for x in (student, teacher)
    )
    return 0.5 * ((ours - theirs) ** 2).mean()


@pytest.mark.parametrize("sizes", [[(5, 7), (5, 7)], SIZES])
def test_loss_is_one_less_the_correlation(sizes):
    student, teacher = random_map(2, 3, 5, 7, seed=1), 5 + 3 * random_map(2, 3, 5, 7, seed=2)
    mask = None if sizes is not SIZES else rectangle_mask(5, 7, sizes)
    loss = pkd_loss(student, teacher, mask).item()
    ours, theirs = shown(student, sizes), shown(teacher, sizes)
    assert loss == pytest.approx(as_published(ours, theirs), abs=1e-12)
    assert loss == pytest.approx(by_correlation(ours, theirs), abs=1e-5)


def test_loss_by_hand():
    """Cells (0, 1, 2) and (0, 2, 1): deviations 1, r = 1/2, so 2/3 (1 - 1/2); of opposite maps 2/3 (1 + 1)."""
    student, teacher = torch.tensor([0.0, 1, 2]).reshape(1, 1, 1, 3), torch.tensor([0.0, 2, 1]).reshape(1, 1, 1, 3)
    assert pkd_loss(student.double(), teacher.double()).item() == pytest.approx(1 / 3, abs=1e-6)
    assert pkd_loss(student.double(), -student.double()).item() == pytest.approx(4 / 3, abs=1e-5)


def test_scale_and_shift_of_either_map_do_not_matter():
    student, teacher = random_map(2, 3, 4, 6, seed=1), random_map(2, 3, 4, 6, seed=2)
    loss = pkd_loss(student, teacher).item()
    assert pkd_loss(40 * student + 7, 0.2 * teacher - 3).item() == pytest.approx(loss, abs=1e-4)
    assert pkd_loss(teacher, 9 * teacher + 1).item() == pytest.approx(0, abs=1e-9)


def test_gradient():
    student, teacher = random_map(2, 2, 3, 4, seed=1, grad=True), random_map(2, 2, 3, 4, seed=2)
    mask = rectangle_mask(3, 4, [(3, 4), (2, 2)])
    assert torch.autograd.gradcheck(lambda s: pkd_loss(s, teacher), student)
    assert torch.autograd.gradcheck(lambda s: pkd_loss(s, teacher, mask), student)


def test_padding_neither_counts_nor_gets_a_gradient():
    student, teacher = random_map(2, 3, 5, 7, seed=1, grad=True), random_map(2, 3, 5, 7, seed=2)
    mask = rectangle_mask(5, 7, SIZES)
    loss = pkd_loss(student, teacher, mask)
    loss.backward()
    padding = (mask == 0).expand_as(student)
    assert (student.grad[padding] == 0).all()
    assert (student.grad[~padding] != 0).all()
    other = pkd_loss(student.masked_fill(padding, 100), teacher.masked_fill(padding, -50), mask)
    torch.testing.assert_close(other, loss)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("masked", [False, True])
def test_a_constant_channel_is_zero_and_its_gradient_small(layout, masked):
    """3.3 has no exact float32: the mean of 19,200 of them is none of them."""
    student = torch.full((4, 2, 60, 80), 3.3).contiguous(memory_format=layout)
    student[:, 1] = random_map(4, 60, 80, seed=3).float()
    student.requires_grad_()
    teacher = random_map(4, 2, 60, 80, seed=2).float()
    mask = rectangle_mask(60, 80, [(60, 80), (30, 80), (60, 1), (20, 20)]).float() if masked else None
    assert (standardised(student, mask)[:, 0] == 0).all()
    assert (standardised(teacher * 0 - 1.7, mask) == 0).all()
    loss = pkd_loss(student, teacher, mask)
    loss.backward()
    # Half of the first channel's error is the teacher's variance of 1.
    ours, theirs = standardised(student.detach(), mask)[:, 1], standardised(teacher, mask)[:, 1]
    count = mask.sum() if masked else 4 * 60 * 80
    second = ((ours - theirs) ** 2).sum() / count / 2
    assert loss.item() == pytest.approx((0.5 * (count - 1) / count + second).item() / 2, rel=1e-4)
    largest = student.grad.abs().amax(dim=(0, 2, 3))
    assert 0 < largest[0] < 3 * largest[1]


@pytest.mark.parametrize(("value", "size", "other"), [(10.1, (75, 100), (6, 9)), (0.7, (13, 17), (6, 9))])
@pytest.mark.parametrize("masked", [False, True])
def test_a_constant_channel_is_one_after_averaging(value, size, other, masked):
    """Averaged, it is constant but for rounding, which must neither count as a pattern nor be made a large gradient."""
    constant = torch.full((2, 1, *size), value, requires_grad=True)
    varied = random_map(2, 1, *other, seed=1).float()
    mask = rectangle_mask(*size, [size, (size[0] // 2, size[1] - 3)]).float() if masked else None
    loss = pkd_loss(constant, varied, mask, None if mask is None else torch.ones(2, 1, *other))
    assert 0.45 < loss.item() < 0.5  # half of the other map's variance of 1
    loss.backward()
    assert constant.grad.abs().max() < 1
    assert pkd_loss(varied, constant.detach(), None, mask).item() == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 5, 7), (2, 3, 5, 7), (2, 1, 1, 1), (2, 5, 7)])
def test_a_mask_of_another_shape_is_refused(shape):
    """It would broadcast, and count its cells otherwise."""
    maps = random_map(2, 3, 5, 7, seed=1), random_map(2, 3, 5, 7, seed=2)
    with pytest.raises(ValueError, match=r"mask of a map \(2, 3, 5, 7\) must be \(2, 1, 5, 7\), got"):
        pkd_loss(*maps, torch.ones(shape))


def test_a_map_of_one_cell_has_no_correlation():
    student = random_map(1, 3, 1, 1, seed=1, grad=True)
    loss = pkd_loss(student, random_map(1, 3, 1, 1, seed=2))
    loss.backward()
    assert loss.item() == 0
    assert (student.grad == 0).all()


def test_maps_of_two_sizes_are_averaged_to_the_smaller():
    student, teacher = random_map(1, 2, 4, 9, seed=1), random_map(1, 2, 8, 3, seed=2)
    pooled = student.unflatten(3, (3, 3)).mean(dim=4), teacher.unflatten(2, (4, 2)).mean(dim=3)
    torch.testing.assert_close(pkd_loss(student, teacher), pkd_loss(*pooled))


def test_half_precision_is_computed_in_full():
    student, teacher = (200 + random_map(2, 3, 30, 40, seed=seed).bfloat16() for seed in (1, 2))
    loss = pkd_loss(student, teacher)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, pkd_loss(student.float(), teacher.float()))


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 5\) and \(2, 6, 4, 5\)"):
        pkd_loss(random_map(2, 3, 4, 5), random_map(2, 6, 4, 5))


def test_step_adds_the_weight_a_level_and_no_subsampled_one():
    shapes = {"output_0": (3, 8, 12), "output_1": (3, 4, 6), "output_pool": (3, 2, 3)}
    student, teacher = (
        {name.replace("_", "."): random_map(2, *shape, seed=seed + i) for i, (name, shape) in enumerate(shapes.items())}
        for seed in (1, 11)
    )
    losses, valid = task_losses(), [(1.0, 0.5), (0.75, 1.0)]
    method = make("pkd", spec(**shapes), spec(**shapes))
    update = one_update(method, Knowledge(student, losses=losses, valid=valid), Knowledge(teacher, valid=valid))
    expected = sum(
        pkd_loss(student[name], teacher[name], Knowledge(valid=valid).mask(student[name]))
        for name in ("output.0", "output.1")
    )
    torch.testing.assert_close(added(update, losses, "pkd"), 6 * expected)
    assert not list(method.parameters())
