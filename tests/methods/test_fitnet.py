from __future__ import annotations

import numpy as np
import pytest
import torch
from map_helpers import added, make, one_update, random_map, rectangle_mask, spec, task_losses

from detkt.base.errors import InputError
from detkt.knowledge import FeatureSpec, Knowledge
from detkt.methods.adapters import Regressor, regressor_geometry
from detkt.methods.fitnet import hint_loss


def test_loss_equals_its_formula_with_and_without_mask():
    regressed, teacher = random_map(2, 3, 4, 5, seed=1), random_map(2, 3, 4, 5, seed=2)
    squares = (regressed - teacher).numpy() ** 2
    assert hint_loss(regressed, teacher).item() == pytest.approx(squares.mean() / 2, abs=1e-12)
    mask = rectangle_mask(4, 5, [(4, 5), (2, 3)])
    expected = (squares[0].sum() + squares[1, :, :2, :3].sum()) / (3 * (20 + 6)) / 2
    assert hint_loss(regressed, teacher, mask).item() == pytest.approx(expected, abs=1e-12)


def test_gradient():
    regressed, teacher = random_map(2, 2, 3, 4, seed=1, grad=True), random_map(2, 2, 3, 4, seed=2)
    mask = rectangle_mask(3, 4, [(3, 4), (2, 2)])
    assert torch.autograd.gradcheck(lambda s: hint_loss(s, teacher, mask), regressed)


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        (38, 38, (1, 1, 0)),
        (76, 38, (2, 2, 0)),
        (75, 38, (1, 2, 0)),
        (8, 6, (3, 1, 0)),
        (6, 8, (3, 1, 2)),
        (40, 4, (10, 10, 0)),
    ],
)
def test_geometry_satisfies_its_rule(source, target, expected):
    kernel, stride, padding = regressor_geometry(source, target)
    assert (kernel, stride, padding) == expected
    assert (source + 2 * padding - kernel) / stride + 1 == target


@pytest.mark.parametrize("size", [(4, 12), (9, 30), (9, 12), (30, 3)])
def test_regressor_reaches_any_size(size):
    source, target = FeatureSpec(3, 8, 12, False), FeatureSpec(5, *size, nonnegative=True)
    output = Regressor(source, target)(torch.randn(2, 3, 8, 12), size)
    assert output.shape == (2, 5, *size)
    assert (output >= 0).all()
    assert Regressor(source, source).convolution.kernel_size == (1, 1)
    unpadded = Regressor(source, target, padded=False)
    assert unpadded(torch.randn(2, 3, 8, 12), size).shape == (2, 5, *size)
    assert (unpadded.convolution.kernel_size == (1, 1)) == (max(size[0] - 8, size[1] - 12) > 0)


@pytest.mark.parametrize(("student", "kernel"), [((4, 5), 1), ((3, 5), 1), ((3, 7), 1), ((5, 6), 2), ((4, 6), 2)])
def test_a_student_with_a_shorter_axis_is_resized(student, kernel):
    method = make("fitnet", spec(output=(3, *student)), spec(output=(2, 4, 5)))
    assert max(method.regressors[0].convolution.kernel_size) == kernel
    maps = Knowledge({"output": random_map(1, 3, *student, seed=1)}, losses=task_losses())
    one_update(method, maps, Knowledge({"output": random_map(1, 2, 4, 5, seed=2)}))


def test_step_between_unequal_channels():
    student, teacher, losses = random_map(2, 3, 4, 6, seed=1), random_map(2, 5, 4, 6, seed=2), task_losses()
    method = make("fitnet", spec(output=(3, 4, 6)), spec(output=(5, 4, 6)))
    update = one_update(method, Knowledge({"output": student}, losses=losses), Knowledge({"output": teacher}))
    convolution = method.regressors[0].convolution
    weight, bias = convolution.weight.detach().numpy()[:, :, 0, 0], convolution.bias.detach().numpy()
    regressed = np.einsum("dc,nchw->ndhw", weight, student.numpy()) + bias[None, :, None, None]
    expected = 4 * ((regressed - teacher.numpy()) ** 2).mean() / 2
    assert added(update, losses, "fitnet").item() == pytest.approx(expected, abs=1e-9)


def test_regressor_learns_with_the_student():
    method = make("fitnet", spec(output=(3, 4, 6)), spec(output=(5, 4, 6)))
    (player,) = method.players().items()
    assert player[0] == "student"
    assert {id(p) for m in player[1].modules for p in m.parameters()} == {id(p) for p in method.parameters()}
    student = random_map(1, 3, 4, 6, grad=True)
    update = one_update(method, Knowledge({"output": student}), Knowledge({"output": random_map(1, 5, 4, 6)}))
    update.losses["fitnet"].backward()
    assert all(p.grad.abs().sum() > 0 for p in [student, *method.parameters()])


def test_several_layers_count_by_their_mean():
    names = ("output.0", "output.1")
    student = {name: random_map(1, 3, 4, 6, seed=i) for i, name in enumerate(names)}
    teacher = {name: random_map(1, 3, 4, 6, seed=7 + i) for i, name in enumerate(names)}
    shapes = {"output_0": (3, 4, 6), "output_1": (3, 4, 6)}
    method = make("fitnet", spec(**shapes), spec(**shapes), weight=6.0)
    update = one_update(method, Knowledge(student), Knowledge(teacher))
    hints = [hint_loss(r(student[n]), teacher[n]) for r, n in zip(method.regressors, names, strict=True)]
    assert update.losses["fitnet"].item() == pytest.approx(6 * torch.stack(hints).mean().item())


def test_normalize_makes_the_teachers_scale_irrelevant():
    student, teacher = random_map(2, 3, 4, 6, seed=1), random_map(2, 3, 4, 6, seed=2)
    method = make("fitnet", spec(output=(3, 4, 6)), spec(output=(3, 4, 6)), normalize=True)
    losses = [
        one_update(method, Knowledge({"output": student}), Knowledge({"output": scale * teacher})).losses["fitnet"]
        for scale in (1.0, 50.0)
    ]
    torch.testing.assert_close(*losses)
    unit = teacher / teacher.square().mean().sqrt()
    torch.testing.assert_close(losses[0], 4 * hint_loss(method.regressors[0](student), unit))


@pytest.mark.parametrize("teacher_size", [(8, 10), (4, 5), (7, 9), (12, 16), (20, 23)])
def test_padding_carries_no_gradient(teacher_size):
    valid = [(1.0, 0.5), (0.75, 1.0)]
    student, teacher = random_map(2, 3, 8, 10, seed=1, grad=True), random_map(2, 5, *teacher_size, seed=2)
    method = make("fitnet", spec(output=(3, 8, 10)), spec(output=(5, *teacher_size)))

    def loss(ours, theirs):
        networks = [Knowledge({"output": feature}, valid=valid) for feature in (ours, theirs)]
        return one_update(method, *networks).losses["fitnet"]

    loss(student, teacher).backward()
    padding = (Knowledge(valid=valid).mask(student) == 0).expand_as(student)
    assert padding.any()
    assert (student.grad[padding] == 0).all()
    assert (student.grad[~padding] != 0).any()
    teacher_padding = Knowledge(valid=valid).mask(teacher) == 0
    changed = loss(student.detach().masked_fill(padding, 9), teacher.masked_fill(teacher_padding, -9))
    torch.testing.assert_close(changed, loss(student, teacher))


def test_unknown_layer_is_named():
    with pytest.raises(InputError, match="layer9"):
        make("fitnet", spec(output=(3, 4, 6)), spec(output=(3, 4, 6)), layers=["layer9"])
