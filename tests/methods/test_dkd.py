"""DKD: against the paper's probabilities in NumPy, and against KD, which it takes apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from map_helpers import added, make, one_update, random_map, spec, task_losses

from detkt.base.errors import InputError
from detkt.knowledge import Knowledge
from detkt.methods.dkd import dkd_loss
from detkt.methods.kd import distillation_loss

LABELS = torch.tensor([0, 3, 2, 2, 4, 0])


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def row_terms(student: np.ndarray, teacher: np.ndarray, label: int, temperature: float) -> tuple[float, float]:
    """T^2 KL of the two, and of the others, of one row."""
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    two = sum(a * np.log(a / b) for a, b in ((p[label], q[label]), (1 - p[label], 1 - q[label])))
    rest, other = np.delete(p, label), np.delete(q, label)
    rest, other = rest / rest.sum(), other / other.sum()
    return temperature**2 * two, temperature**2 * (rest * np.log(rest / other)).sum()


@pytest.mark.parametrize(("alpha", "beta", "temperature"), [(1.0, 0.25, 1.0), (1.0, 8.0, 4.0), (0.3, 0.0, 0.5)])
def test_loss_equals_its_formula(alpha, beta, temperature):
    student, teacher = 3 * random_map(6, 5, seed=1), 3 * random_map(6, 5, seed=2)
    rows = zip(student.numpy(), teacher.numpy(), LABELS.tolist(), strict=True)
    terms = np.array([row_terms(*row, temperature) for row in rows])
    expected = (terms @ [alpha, beta]).mean()
    assert dkd_loss(student, teacher, LABELS, alpha, beta, temperature).item() == pytest.approx(expected, abs=1e-10)


def test_loss_by_hand():
    """Teacher (1/2, 3/8, 1/8), student uniform, target 0: log of 3/4 and 3/4, and of 3/2 and 1/2 among the others."""
    student = torch.zeros(1, 3, dtype=torch.float64)
    teacher = torch.tensor([[0.5, 0.375, 0.125]], dtype=torch.float64).log()
    target = 0.5 * np.log(1.5) + 0.5 * np.log(0.75)
    others = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    label = torch.tensor([0])
    assert dkd_loss(student, teacher, label, 1.0, 0.0).item() == pytest.approx(target, abs=1e-12)
    assert dkd_loss(student, teacher, label, 0.0, 1.0).item() == pytest.approx(others, abs=1e-12)
    assert dkd_loss(student, teacher, label).item() == pytest.approx(target + 0.25 * others, abs=1e-12)


def test_with_the_teachers_doubt_as_beta_it_is_kd():
    """KD's divergence is the target's part plus 1 - p(target) times the others' part (Eq. 6)."""
    student, teacher = random_map(1, 5, seed=3), random_map(1, 5, seed=4)
    doubt = 1 - teacher.softmax(dim=1)[0, 2].item()
    loss = dkd_loss(student, teacher, torch.tensor([2]), alpha=1.0, beta=doubt)
    torch.testing.assert_close(loss, distillation_loss(student, teacher, 1.0))


def test_of_two_classes_only_the_targets_part_is_left():
    student, teacher, labels = random_map(4, 2, seed=1), random_map(4, 2, seed=2), torch.tensor([0, 1, 1, 0])
    loss = dkd_loss(student, teacher, labels, beta=100.0)
    torch.testing.assert_close(loss, distillation_loss(student, teacher, 1.0))


def test_one_class_alone_has_no_others():
    row = torch.zeros(2, 1)
    with pytest.raises(ValueError, match="2 classes or more"):
        dkd_loss(row, row, torch.zeros(2, dtype=torch.int64))
    assert dkd_loss(row, row, torch.zeros(2, dtype=torch.int64), sigmoid=True).item() == 0


@pytest.mark.parametrize(("alpha", "beta", "temperature"), [(1.0, 0.25, 1.0), (0.5, 2.0, 3.0)])
def test_loss_of_sigmoids_equals_its_formula(alpha, beta, temperature):
    """A Bernoulli a class: alpha for the true one, beta for the others, and a row without a class has others alone."""
    student, teacher = 3 * random_map(6, 5, seed=1), 3 * random_map(6, 5, seed=2)
    labels, weights = torch.tensor([0, 3, -1, 2, 4, -1]), torch.tensor([1.0, 0.5, 2.0, 0.0, 1.0, 1.0]).double()
    q, p = (1 / (1 + np.exp(-logits.numpy() / temperature)) for logits in (student, teacher))
    cost = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    factors = np.full((6, 5), beta)
    for row, label in enumerate(labels.tolist()):
        if label >= 0:
            factors[row, label] = alpha
    expected = temperature**2 * ((factors * cost).sum(axis=1) * weights.numpy()).sum() / weights.sum().item()
    loss = dkd_loss(student, teacher, labels, alpha, beta, temperature, weights, sigmoid=True)
    assert loss.item() == pytest.approx(expected, abs=1e-10)


def test_what_the_teacher_excludes_costs_nothing():
    student = torch.tensor([[1.0, -2, 0.5]], requires_grad=True)
    teacher, label = torch.tensor([[0.3, 1.0, float("-inf")]]), torch.tensor([0])
    loss = dkd_loss(student, teacher, label)
    loss.backward()
    torch.testing.assert_close(loss.detach(), dkd_loss(student.detach(), teacher.clamp_min(-1e4), label))
    assert student.grad.isfinite().all()


def test_gradient():
    student, teacher = random_map(6, 5, seed=3, grad=True), random_map(6, 5, seed=4)
    assert torch.autograd.gradcheck(lambda s: dkd_loss(s, teacher, LABELS, 1.0, 8.0, 4.0), student)


def test_a_class_of_probability_zero_costs_what_it_should():
    """The student is sure of class 0, which the teacher excludes: float32 has no number as small as exp(-200)."""
    student = torch.tensor([[200.0, 0, 0]], requires_grad=True)
    loss = dkd_loss(student, -student.detach(), torch.tensor([0]))
    loss.backward()
    assert loss.item() == pytest.approx(200 - np.log(2), rel=1e-6)
    assert student.grad.tolist() == [pytest.approx([1.0, -0.5, -0.5])]


def test_half_precision_is_computed_in_full():
    student, teacher = (random_map(6, 5, seed=seed).bfloat16() for seed in (1, 2))
    for sigmoid in (False, True):
        loss = dkd_loss(student, teacher, LABELS, temperature=3.0, sigmoid=sigmoid)
        assert loss.dtype == torch.float32
        exact = dkd_loss(student.float(), teacher.float(), LABELS, temperature=3.0, sigmoid=sigmoid)
        torch.testing.assert_close(loss, exact, rtol=0, atol=0)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(6, 3\) and \(1, 3\)"):
        dkd_loss(random_map(6, 3), random_map(1, 3), LABELS)
    with pytest.raises(ValueError, match=r"labels of shape \(1,\) for 6 rows"):
        dkd_loss(random_map(6, 3), random_map(6, 3), LABELS[:1], sigmoid=True)


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        ({}, (1, 0.25, 1)),
        ({"preset": "cifar"}, (1, 8, 4)),
        ({"alpha": 2.0, "beta": 3.0, "temperature": 0.5}, (2, 3, 0.5)),
    ],
)
def test_step_adds_the_loss_and_leaves_the_classification_loss_whole(settings, weights):
    logits, target, losses = random_map(6, 5, seed=5), random_map(6, 5, seed=6), task_losses()
    student = Knowledge(logits=logits, labels=LABELS, losses=losses, classification_loss="loss_classifier")
    update = one_update(make("dkd", spec(5), spec(5), **settings), student, Knowledge(logits=target))
    torch.testing.assert_close(added(update, losses, "dkd"), dkd_loss(logits, target, LABELS, *weights))


@pytest.mark.parametrize(
    ("teacher", "settings", "message"),
    [
        (spec(4), {}, "student has 3 classes and the teacher 4"),
        (spec(), {"temperature": 0.0}, "methods.dkd.temperature is 0.0: it must be greater than 0"),
        (spec(), {"alpha": -1.0}, "methods.dkd.alpha is -1.0: it must be 0 or more"),
        (spec(), {"beta": -1.0}, "methods.dkd.beta is -1.0: it must be 0 or more"),
        (spec(), {"layers": ["layer3"]}, "methods.dkd.layers: dkd reads class scores and no layers"),
    ],
)
def test_errors_before_training(teacher, settings, message):
    with pytest.raises(InputError, match=message):
        make("dkd", spec(), teacher, **settings)
