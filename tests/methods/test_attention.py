from __future__ import annotations

import numpy as np
import pytest
import torch
from map_helpers import added, make, numpy_pool, one_update, random_map, rectangle_mask, spec, task_losses

from detkt.base.errors import InputError
from detkt.knowledge import Knowledge
from detkt.methods.attention import attention_loss, attention_map


def numpy_loss(
    student: np.ndarray, teacher: np.ndarray, p: float, mask: np.ndarray | None = None, form: str = "paper"
) -> float:
    distances = []
    for n in range(len(student)):
        vectors = []
        for feature in (student[n], teacher[n]):
            attention = (np.abs(feature) ** p).sum(axis=0)
            attention = attention.ravel() if mask is None else attention[mask[n, 0] == 1]
            vectors.append(attention / np.sqrt((attention**2).sum()))
        squares = (vectors[0] - vectors[1]) ** 2
        distances.append(np.sqrt(squares.sum()) if form == "paper" else squares.mean())
    return float(np.mean(distances))


@pytest.mark.parametrize("form", ["paper", "official"])
@pytest.mark.parametrize("p", [1, 2, 4, 1.5])
def test_loss_equals_its_formula(p, form):
    student, teacher = random_map(3, 4, 5, 7, seed=1), random_map(3, 6, 5, 7, seed=2)
    expected = numpy_loss(student.numpy(), teacher.numpy(), p, form=form)
    assert attention_loss(student, teacher, p, form=form).item() == pytest.approx(expected, abs=1e-10)


def test_loss_by_hand():
    # Attention (3, 4) and (4, 3), both of length 5: distance sqrt(0.04 + 0.04).
    student = torch.tensor([3.0, 4.0], dtype=torch.float64).sqrt().view(1, 1, 1, 2)
    teacher = torch.tensor([4.0, 3.0], dtype=torch.float64).sqrt().view(1, 1, 1, 2)
    assert attention_loss(student, teacher).item() == pytest.approx(0.08**0.5, abs=1e-12)
    assert attention_loss(student, teacher, form="official").item() == pytest.approx(0.08 / 2, abs=1e-12)


@pytest.mark.parametrize(("student_size", "teacher_size"), [((5, 7), (10, 14)), ((9, 11), (4, 5)), ((9, 4), (5, 7))])
def test_unequal_sizes_are_pooled_to_the_smaller(student_size, teacher_size):
    student, teacher = random_map(2, 4, *student_size, seed=1), random_map(2, 3, *teacher_size, seed=2)
    size = tuple(map(min, student_size, teacher_size))
    expected = numpy_loss(numpy_pool(student, size), numpy_pool(teacher, size), 2)
    assert attention_loss(student, teacher).item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("form", ["paper", "official"])
def test_masked_and_pooled(form):
    student, teacher = random_map(2, 4, 4, 6, seed=1), random_map(2, 3, 9, 11, seed=2)
    mask, teacher_mask = rectangle_mask(4, 6, [(4, 3), (3, 6)]), rectangle_mask(9, 11, [(9, 5), (6, 11)])
    pooled = numpy_pool(teacher, (4, 6), teacher_mask)
    covered = numpy_pool(teacher_mask, (4, 6), teacher_mask)
    expected = numpy_loss(student.numpy(), pooled, 2, mask.numpy() * covered, form)
    assert attention_loss(student, teacher, 2, mask, teacher_mask, form).item() == pytest.approx(expected, abs=1e-10)
    other = random_map(2, 5, 4, 6, seed=3)
    expected = numpy_loss(student.numpy(), other.numpy(), 2, mask.numpy(), form)
    assert attention_loss(student, other, mask=mask, form=form).item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("form", ["paper", "official"])
@pytest.mark.parametrize("teacher_size", [(3, 4), (5, 7), (2, 3)])
def test_gradient(teacher_size, form):
    student, teacher = random_map(2, 3, 3, 4, seed=1, grad=True), random_map(2, 2, *teacher_size, seed=2)
    mask = rectangle_mask(3, 4, [(3, 4), (2, 3)])
    assert torch.autograd.gradcheck(lambda s: attention_loss(s, teacher, 2, mask, form=form), student)


def test_equal_and_empty_maps_have_finite_gradients():
    for student, teacher in (
        (random_map(1, 2, 3, 4, grad=True), random_map(1, 2, 3, 4)),
        (torch.zeros(1, 2, 3, 4, requires_grad=True), torch.zeros(1, 2, 3, 4)),
    ):
        loss = attention_loss(student, teacher)
        loss.backward()
        assert loss.item() == pytest.approx(0, abs=1e-12)
        assert student.grad.isfinite().all()


def test_scale_does_not_matter_and_the_distance_is_bounded():
    student, teacher = random_map(2, 3, 4, 5, seed=1), random_map(2, 3, 4, 5, seed=2)
    torch.testing.assert_close(attention_loss(10 * student, teacher), attention_loss(student, teacher))
    left, right = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    left[..., 0], right[..., 1] = 1, 1
    assert attention_loss(left, right).item() == pytest.approx(2**0.5)
    assert attention_map(student).norm(dim=1).tolist() == pytest.approx([1, 1])


def knowledge(student, teacher, losses=None, valid=None):
    return Knowledge(student, losses=losses or {}, valid=valid), Knowledge(teacher, valid=valid)


@pytest.mark.parametrize(
    ("settings", "form", "factor"),
    [
        ({}, "paper", 1000 / 20 / 2),
        ({"preset": "paper"}, "paper", 0.05 / 2),
        ({"weight": 8.0, "per_cell": False}, "paper", 8.0 / 2),
        ({"preset": "official"}, "official", 1000),  # no half, and the cells are in the form
        ({"form": "official", "weight": 8.0}, "official", 8.0),
    ],
)
def test_step_adds_the_weighted_distance(settings, form, factor):
    student, teacher, losses = random_map(2, 3, 4, 6, seed=1), random_map(2, 5, 8, 5, seed=2), task_losses()
    method = make("at", spec(output=(3, 4, 6)), spec(output=(5, 8, 5)), **settings)
    update = one_update(method, *knowledge({"output": student}, {"output": teacher}, losses))
    pooled = numpy_pool(student, (4, 5)), numpy_pool(teacher, (4, 5))
    expected = factor * numpy_loss(*pooled, 2, form=form)
    assert added(update, losses, "at").item() == pytest.approx(expected, rel=1e-9)


def test_layers_of_other_names_are_summed():
    student = {"features.16": random_map(1, 3, 4, 6, seed=1), "output": random_map(1, 3, 4, 6, seed=2)}
    teacher = {"layer2": random_map(1, 5, 8, 12, seed=3), "output": random_map(1, 2, 4, 6, seed=4)}
    specs = spec(features_16=(3, 4, 6), output=(3, 4, 6)), spec(layer2=(5, 8, 12), output=(2, 4, 6))
    method = make("at", *specs, layers=["features.16=layer2", "output"], preset="paper", p=1.0)
    update = one_update(method, *knowledge(student, teacher))
    expected = attention_loss(student["features.16"], teacher["layer2"], 1)
    expected = 0.025 * (expected + attention_loss(student["output"], teacher["output"], 1))
    torch.testing.assert_close(update.losses["at"], expected)


@pytest.mark.parametrize("teacher_size", [(8, 10), (4, 5), (13, 21)])
def test_padding_carries_no_gradient(teacher_size):
    valid = [(1.0, 0.5), (0.7, 1.0)]
    student, teacher = random_map(2, 3, 8, 10, seed=1, grad=True), random_map(2, 5, *teacher_size, seed=2)
    method = make("at", spec(output=(3, 8, 10)), spec(output=(5, *teacher_size)))

    def loss(ours, theirs):
        return one_update(method, *knowledge({"output": ours}, {"output": theirs}, valid=valid)).losses["at"]

    loss(student, teacher).backward()
    padding = (Knowledge(valid=valid).mask(student) == 0).expand_as(student)
    assert padding.any()
    assert (student.grad[padding] == 0).all()
    assert (student.grad[~padding] != 0).any()
    teacher_padding = Knowledge(valid=valid).mask(teacher) == 0
    changed = loss(student.detach().masked_fill(padding, 9), teacher.masked_fill(teacher_padding, -9))
    torch.testing.assert_close(changed, loss(student, teacher))


def test_errors_before_training():
    with pytest.raises(InputError, match="methods.at.form 'offical'.*'official'"):
        make("at", spec(output=(3, 4, 6)), spec(output=(3, 4, 6)), form="offical")
    with pytest.raises(InputError, match="methods.at.p is 0.5"):
        make("at", spec(output=(3, 4, 6)), spec(output=(3, 4, 6)), p=0.5)
    with pytest.raises(InputError, match="output.0.*methods.at.layers"):
        make("at", spec(output_0=(3, 4, 6)), spec(output=(3, 4, 6)))
    with pytest.raises(InputError, match="no map 'output.7'"):
        make("at", spec(output=(3, 4, 6)), spec(output=(3, 4, 6)), layers=["output.7"])
