"""CWD: against the divergence of NumPy's softmax, channel by channel; padding, extremes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from map_helpers import added, make, one_update, random_map, rectangle_mask, spec, task_losses

from detkt.base.errors import InputError
from detkt.knowledge import Knowledge
from detkt.methods.cwd import cwd_loss

SIZES = [(3, 7), (5, 2)]


def divergence(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """T^2 KL of the softmax over all values of one channel of one picture."""
    p, q = (np.exp((x - x.max()) / temperature) for x in (teacher.ravel(), student.ravel()))
    p, q = p / p.sum(), q / q.sum()
    return temperature**2 * (p * np.log(p / q)).sum()


@pytest.mark.parametrize("temperature", [1.0, 4.0, 0.5])
@pytest.mark.parametrize("sizes", [[(5, 7), (5, 7)], SIZES])
def test_loss_equals_its_formula(sizes, temperature):
    student, teacher = random_map(2, 3, 5, 7, seed=1), 2 * random_map(2, 3, 5, 7, seed=2)
    mask = None if sizes is not SIZES else rectangle_mask(5, 7, sizes)
    expected = [
        divergence(student[i, c, :h, :w].numpy(), teacher[i, c, :h, :w].numpy(), temperature)
        for i, (h, w) in enumerate(sizes)
        for c in range(3)
    ]
    assert cwd_loss(student, teacher, temperature, mask).item() == pytest.approx(np.mean(expected), abs=1e-10)


def test_loss_by_hand():
    """Teacher (3/4, 1/4), student (1/2, 1/2) at T = 2: 4 (0.75 log 1.5 + 0.25 log 0.5)."""
    student = torch.zeros(1, 1, 1, 2, dtype=torch.float64)
    teacher = torch.tensor([2 * np.log(3), 0.0]).reshape(1, 1, 1, 2)
    assert cwd_loss(student, teacher, 2.0).item() == pytest.approx(0.5232481437, abs=1e-9)


def test_a_padded_batch_is_the_mean_of_its_pictures():
    student, teacher = random_map(2, 3, 5, 7, seed=1), random_map(2, 3, 5, 7, seed=2)
    alone = [
        cwd_loss(student[i : i + 1, :, :h, :w], teacher[i : i + 1, :, :h, :w], 2.0) for i, (h, w) in enumerate(SIZES)
    ]
    whole = cwd_loss(student, teacher, 2.0, rectangle_mask(5, 7, SIZES))
    torch.testing.assert_close(whole, torch.stack(alone).mean())


def test_padding_neither_counts_nor_gets_a_gradient():
    student, teacher = random_map(2, 3, 5, 7, seed=1, grad=True), random_map(2, 3, 5, 7, seed=2)
    mask = rectangle_mask(5, 7, SIZES)
    loss = cwd_loss(student, teacher, 1.0, mask)
    loss.backward()
    padding = (mask == 0).expand_as(student)
    assert (student.grad[padding] == 0).all()
    assert (student.grad[~padding] != 0).all()
    other = cwd_loss(student.masked_fill(padding, 1e6), teacher.masked_fill(padding, -1e6), 1.0, mask)
    torch.testing.assert_close(other, loss)


def test_gradient():
    student, teacher = random_map(2, 2, 3, 4, seed=1, grad=True), random_map(2, 2, 3, 4, seed=2)
    mask = rectangle_mask(3, 4, [(3, 4), (2, 2)])
    assert torch.autograd.gradcheck(lambda s: cwd_loss(s, teacher, 2.0), student)
    assert torch.autograd.gradcheck(lambda s: cwd_loss(s, teacher, 2.0, mask), student)


def test_constant_channels_and_extremes_are_finite():
    constant, teacher = torch.full((1, 1, 4, 6), 3.3), random_map(1, 1, 4, 6).float()
    p = teacher.flatten().softmax(0)
    assert cwd_loss(constant, teacher).item() == pytest.approx((p * (p * 24).log()).sum().item(), rel=1e-5)
    assert cwd_loss(constant, 0 * teacher).item() == pytest.approx(0, abs=1e-6)
    opposite = torch.tensor([2000.0, 0]).reshape(1, 1, 1, 2)
    assert cwd_loss(opposite, opposite.flip(3)).item() == pytest.approx(2000)


def test_a_picture_without_cells_costs_nothing():
    student, teacher = random_map(2, 3, 4, 5, seed=1, grad=True), random_map(2, 3, 4, 5, seed=2)
    mask = rectangle_mask(4, 5, [(4, 5), (0, 0)])
    loss = cwd_loss(student, teacher, 1.0, mask)
    loss.backward()
    torch.testing.assert_close(loss.detach(), cwd_loss(student.detach()[:1], teacher[:1]) / 2)
    assert student.grad[0].abs().sum() > 0 and not student.grad[1].any()


def test_maps_of_two_sizes_are_averaged_to_the_smaller():
    student, teacher = random_map(1, 2, 4, 9, seed=1), random_map(1, 2, 8, 3, seed=2)
    pooled = student.unflatten(3, (3, 3)).mean(dim=4), teacher.unflatten(2, (4, 2)).mean(dim=3)
    torch.testing.assert_close(cwd_loss(student, teacher), cwd_loss(*pooled))


def test_half_precision_is_computed_in_full():
    student, teacher = (random_map(2, 3, 30, 40, seed=seed).bfloat16() for seed in (1, 2))
    loss = cwd_loss(student, teacher)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, cwd_loss(student.float(), teacher.float()))


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 5\) and \(2, 6, 4, 5\)"):
        cwd_loss(random_map(2, 3, 4, 5), random_map(2, 6, 4, 5))


@pytest.mark.parametrize(("settings", "weight", "temperature"), [({}, 10, 1), ({"preset": "paper"}, 50, 4)])
def test_step_adds_the_weight_a_level(settings, weight, temperature):
    student, teacher, losses = random_map(2, 3, 4, 6, seed=1), random_map(2, 3, 4, 6, seed=2), task_losses()
    method = make("cwd", spec(output=(3, 4, 6)), spec(output=(3, 4, 6)), **settings)
    update = one_update(method, Knowledge({"output": student}, losses=losses), Knowledge({"output": teacher}))
    torch.testing.assert_close(added(update, losses, "cwd"), weight * cwd_loss(student, teacher, temperature))


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(InputError, match="methods.cwd.temperature is 0.0: it must be greater than 0"):
        make("cwd", spec(output=(3, 4, 6)), spec(output=(3, 4, 6)), temperature=0.0)
