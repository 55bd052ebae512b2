from __future__ import annotations

import numpy as np
import pytest
import torch
from map_helpers import (
    added,
    make,
    numpy_pool,
    one_update,
    peak_megabytes,
    random_map,
    rectangle_mask,
    spec,
    task_losses,
)

from detkt.knowledge import Knowledge
from detkt.methods.nst import nst_loss


def numpy_loss(student: np.ndarray, teacher: np.ndarray, mask: np.ndarray | None = None) -> float:
    """The double sums, pair by pair of channels."""
    losses = []
    for n in range(len(student)):
        ours, theirs = (
            [channel.ravel() if mask is None else channel[mask[n, 0] == 1] for channel in feature[n]]
            for feature in (student, teacher)
        )

        def kernel(first, second):
            units = [[x / np.linalg.norm(x) for x in channels] for channels in (first, second)]
            return np.mean([np.dot(x, y) ** 2 for x in units[0] for y in units[1]])

        losses.append(kernel(ours, ours) + kernel(theirs, theirs) - 2 * kernel(ours, theirs))
    return float(np.mean(losses))


# More cells than channels, and more channels than cells: the two ways to compute it.
SHAPES = [((2, 3, 5, 7), (2, 4, 5, 7)), ((2, 9, 2, 3), (2, 12, 2, 3)), ((1, 1, 4, 1), (1, 5, 4, 1))]


@pytest.mark.parametrize(("ours", "theirs"), SHAPES)
def test_loss_equals_its_formula(ours, theirs):
    student, teacher = random_map(*ours, seed=1), random_map(*theirs, seed=2)
    assert nst_loss(student, teacher).item() == pytest.approx(numpy_loss(student.numpy(), teacher.numpy()), abs=1e-10)


def test_loss_by_hand():
    # Student: channels e1, e2; teacher: e1. 1/4 (1 + 1) + 1 - 2/2 (1 + 0) = 0.5.
    student = torch.tensor([[[[2.0, 0.0]], [[0.0, 5.0]]]], dtype=torch.float64)
    teacher = torch.tensor([[[[3.0, 0.0]]]], dtype=torch.float64)
    assert nst_loss(student, teacher).item() == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize(("student_size", "teacher_size"), [((4, 5), (8, 11)), ((9, 11), (4, 5)), ((9, 4), (5, 7))])
def test_unequal_sizes_are_pooled_to_the_smaller(student_size, teacher_size):
    student, teacher = random_map(2, 4, *student_size, seed=1), random_map(2, 3, *teacher_size, seed=2)
    size = tuple(map(min, student_size, teacher_size))
    expected = numpy_loss(numpy_pool(student, size), numpy_pool(teacher, size))
    assert nst_loss(student, teacher).item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("channels", [3, 30])
def test_masked_and_pooled(channels):
    student, teacher = random_map(2, channels, 4, 6, seed=1), random_map(2, 4, 9, 11, seed=2)
    mask, teacher_mask = rectangle_mask(4, 6, [(4, 3), (3, 6)]), rectangle_mask(9, 11, [(9, 5), (6, 11)])
    pooled = numpy_pool(teacher, (4, 6), teacher_mask)
    valid = mask.numpy() * numpy_pool(teacher_mask, (4, 6), teacher_mask)
    expected = numpy_loss(student.numpy(), pooled, valid)
    assert nst_loss(student, teacher, mask, teacher_mask).item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(("channels", "teacher_size"), [(2, (3, 4)), (9, (2, 2)), (2, (5, 6))])
def test_gradient(channels, teacher_size):
    student, teacher = random_map(2, channels, 3, 4, seed=1, grad=True), random_map(2, 3, *teacher_size, seed=2)
    mask = rectangle_mask(3, 4, [(3, 4), (2, 3)])
    assert torch.autograd.gradcheck(lambda s: nst_loss(s, teacher, mask), student)


@pytest.mark.parametrize("size", [(5, 7), (1, 2)])
def test_zero_for_the_same_channels_in_any_order_and_scale(size):
    feature = random_map(2, 4, *size).abs()
    scale = torch.tensor([1.0, 3.0, 0.5, 9.0]).view(1, 4, 1, 1)
    assert nst_loss((feature * scale).flip(1), feature).item() == pytest.approx(0, abs=1e-12)
    assert nst_loss(feature.repeat(1, 2, 1, 1), feature).item() == pytest.approx(0, abs=1e-12)


def test_dead_channels_have_finite_gradients():
    student = random_map(1, 3, 4, 5).index_fill(1, torch.tensor([1]), 0).requires_grad_()
    nst_loss(student, random_map(1, 2, 4, 5, seed=1)).backward()
    assert student.grad.isfinite().all()


def test_autocast_does_not_reach_it():
    student, teacher = random_map(1, 16, 9, 11, seed=1).bfloat16(), random_map(1, 16, 9, 11, seed=2).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = nst_loss(student, teacher)
    torch.testing.assert_close(loss.double(), nst_loss(student.double(), teacher.double()), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("size", "limit"), [((38, 63), 75), ((19, 32), 20)])
def test_memory_at_detection_size(size, limit, tmp_path):
    """Forward and backward on a picture, far below 200 MB; with the larger of the two products it is 101 and 26 MB."""
    student, teacher = torch.rand(1, 1024, *size, requires_grad=True), torch.rand(1, 1024, *size)
    assert peak_megabytes(lambda: nst_loss(student, teacher).backward(), tmp_path) < limit


def test_the_memory_measure_sees_temporaries(tmp_path):
    assert peak_megabytes(lambda: torch.ones(1000, 1000).exp().sum(), tmp_path) == pytest.approx(8, rel=0.01)


@pytest.mark.parametrize(("settings", "factor"), [({}, 25), ({"preset": "official"}, 50), ({"weight": 8.0}, 4)])
def test_step_adds_half_the_weighted_mean_over_layers(settings, factor):
    names, losses = ("output.0", "output.1"), task_losses()
    student = {name: random_map(2, 3, 4, 6, seed=i) for i, name in enumerate(names)}
    teacher = {name: random_map(2, 5, 7, 6, seed=7 + i) for i, name in enumerate(names)}
    shapes = [{"output_0": shape, "output_1": shape} for shape in ((3, 4, 6), (5, 7, 6))]
    method = make("nst", spec(**shapes[0]), spec(**shapes[1]), **settings)
    update = one_update(method, Knowledge(student, losses=losses), Knowledge(teacher))
    expected = factor * np.mean([nst_loss(student[name], teacher[name]).item() for name in names])
    assert added(update, losses, "nst").item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("channels", "teacher_size"), [(3, (8, 10)), (60, (8, 10)), (3, (4, 5)), (3, (13, 21))])
def test_padding_carries_no_gradient(channels, teacher_size):
    valid = [(1.0, 0.5), (0.7, 1.0)]
    student, teacher = random_map(2, channels, 8, 10, seed=1, grad=True), random_map(2, 60, *teacher_size, seed=2)
    method = make("nst", spec(output=(channels, 8, 10)), spec(output=(60, *teacher_size)))

    def loss(ours, theirs):
        networks = [Knowledge({"output": feature}, valid=valid) for feature in (ours, theirs)]
        return one_update(method, *networks).losses["nst"]

    loss(student, teacher).backward()
    padding = (Knowledge(valid=valid).mask(student) == 0).expand_as(student)
    assert padding.any()
    assert (student.grad[padding] == 0).all()
    assert (student.grad[~padding] != 0).any()
    teacher_padding = Knowledge(valid=valid).mask(teacher) == 0
    changed = loss(student.detach().masked_fill(padding, 9), teacher.masked_fill(teacher_padding, -9))
    torch.testing.assert_close(changed, loss(student, teacher))
