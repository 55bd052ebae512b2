from __future__ import annotations

import numpy as np
import pytest
import torch
from map_helpers import added, make, one_update, random_map, rectangle_mask, spec, task_losses
from torch import nn

from detkt import Distiller
from detkt.base.errors import InputError
from detkt.knowledge import FeatureSpec, Knowledge
from detkt.methods.adapters import Regressor, regressor_geometry
from detkt.methods.base import Needs
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


def test_normalize_student_makes_its_scale_irrelevant_and_shrinks_nothing():
    """A map at ten times the scale gives the same hint, and the hint's gradient does not pull at its scale."""
    student, teacher = random_map(2, 3, 4, 6, seed=1), random_map(2, 5, 4, 6, seed=2)
    method = make("fitnet", spec(output=(3, 4, 6)), spec(output=(5, 4, 6)), normalize=True, normalize_student=True)
    losses, pulls = [], []
    for scale in (1.0, 10.0):
        feature = (scale * student).requires_grad_()
        loss = one_update(method, Knowledge({"output": feature}), Knowledge({"output": teacher})).losses["fitnet"]
        loss.backward()
        losses.append(loss.detach())
        pulls.append((feature.grad * feature).sum().item())
    torch.testing.assert_close(*losses)
    assert pulls == pytest.approx([0, 0], abs=1e-9)
    unit = student / student.square().mean().sqrt(), teacher / teacher.square().mean().sqrt()
    torch.testing.assert_close(losses[0], (4 * hint_loss(method.regressors[0](unit[0]), unit[1])).detach())


def test_weighted_hint_by_hand():
    """Errors 1, 4, 9 under weights 1/2, 0, 1/4: (1/2 + 9/4) / (3/4) / 2; without the last cell 1/2."""
    student, teacher = torch.tensor([1.0, 2, 3]).reshape(1, 1, 1, 3), torch.zeros(1, 1, 1, 3)
    weights = torch.tensor([0.5, 0, 0.25]).reshape(1, 1, 1, 3)
    assert hint_loss(student, teacher, None, weights).item() == pytest.approx(2.75 / 0.75 / 2)
    mask = torch.tensor([1.0, 1, 0]).reshape(1, 1, 1, 3)
    assert hint_loss(student, teacher, mask, weights).item() == pytest.approx(0.5)
    alike = hint_loss(student, teacher, None, torch.full_like(weights, 0.3))
    torch.testing.assert_close(alike, hint_loss(student, teacher))
    assert hint_loss(student, teacher, None, torch.zeros_like(weights)).item() == 0


def test_cells_count_by_the_teachers_confidence():
    student, teacher, shown = random_map(2, 3, 4, 6, seed=1), random_map(2, 5, 4, 6, seed=2), [(1.0, 0.5), (0.75, 1.0)]
    confidence = random_map(2, 1, 4, 6, seed=3).sigmoid()
    method = make("fitnet", spec(output=(3, 4, 6)), spec(output=(5, 4, 6)), weighting="score", weight=6.0)
    (stage,) = method.stages()
    assert stage.needs == Needs.STUDENT | Needs.TEACHER_FEATURES | Needs.TEACHER_CONFIDENCE
    theirs = Knowledge({"output": teacher}, confidence={"output": confidence}, valid=shown)
    update = one_update(method, Knowledge({"output": student}, valid=shown), theirs)
    weights = (confidence * theirs.mask(teacher)).numpy()
    error = (method.regressors[0](student) - teacher).detach().square().sum(dim=1, keepdim=True).numpy()
    expected = 6 * 0.5 * (weights * error).sum() / (5 * weights.sum())
    assert update.losses["fitnet"].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("teacher_size", [(4, 6), (8, 12), (3, 5)])
def test_a_projector_is_two_pointwise_convolutions_on_the_resized_map(teacher_size):
    student, teacher = random_map(2, 3, 4, 6, seed=1, grad=True), random_map(2, 5, *teacher_size, seed=2)
    method = make("fitnet", spec(output=(3, 4, 6)), spec(output=(5, *teacher_size)), projector="mlp")
    loss = one_update(method, Knowledge({"output": student}), Knowledge({"output": teacher})).losses["fitnet"]
    first, _, second = method.regressors[0].layers
    resized = torch.nn.functional.interpolate(student, teacher_size, mode="bilinear", align_corners=False)
    w1, w2 = (layer.weight[:, :, 0, 0] for layer in (first, second))
    hidden = (torch.einsum("dc,nchw->ndhw", w1, resized) + first.bias[:, None, None]).clamp_min(0)
    projected = torch.einsum("dc,nchw->ndhw", w2, hidden) + second.bias[:, None, None]
    assert loss.item() == pytest.approx(2 * (projected - teacher).square().mean().item(), abs=1e-9)
    loss.backward()
    assert all(p.grad.any() for p in [student, first.weight, second.weight])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weighting": "scores"}, r"unknown methods.fitnet.weighting 'scores' \(did you mean 'score'\?\)"),
        ({"projector": "cnn"}, "unknown methods.fitnet.projector 'cnn'.*linear, mlp"),
        ({"weighting": "score", "layers": ["layer2"]}, "the teacher has no scores on 'layer2'"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    maps = spec(output=(3, 4, 6), layer2=(3, 4, 6))
    with pytest.raises(InputError, match=message):
        make("fitnet", maps, maps, **settings)


def test_the_rivals_hint_on_detectors(detector, batch):
    settings = {"weighting": "score", "projector": "mlp", "weight": 6.0}
    student, teacher = detector(), detector("fasterrcnn_resnet10x0.25_c4", seed=1)
    with Distiller(student, teacher, "fitnet", settings) as distiller:
        losses = distiller.train()(*batch)
        losses["fitnet"].backward()
    assert losses["fitnet"].isfinite()
    assert any(p.grad is not None and p.grad.any() for p in student.backbone.parameters())
    classifiers = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()) for _ in range(2)]
    with pytest.raises(InputError, match="needs scores of every cell, which this teacher does not have"):
        Distiller(*classifiers, "fitnet", settings, image_size=32)
