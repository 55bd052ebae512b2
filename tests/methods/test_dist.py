"""DIST: against NumPy's correlation of rows and columns; constant ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from map_helpers import added, make, one_update, random_map, spec, task_losses

from detkt.base.errors import InputError
from detkt.knowledge import Knowledge
from detkt.methods.dist import dist_loss, pearson


def mean_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Mean of NumPy's correlation over rows."""
    return np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(first, second, strict=True)])


def test_loss_equals_its_formula():
    student, teacher = 2 * random_map(9, 5, seed=1), 2 * random_map(9, 5, seed=2)
    ours, theirs = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (student.numpy(), teacher.numpy()))
    inter, intra = 1 - mean_correlation(ours, theirs), 1 - mean_correlation(ours.T, theirs.T)
    assert dist_loss(student, teacher).item() == pytest.approx(inter + intra, abs=1e-6)
    assert dist_loss(student, teacher, 2.0, 0.5).item() == pytest.approx(2 * inter + 0.5 * intra, abs=1e-6)


def test_correlation_by_hand():
    """(0, 1, 2) and (0, 2, 1) correlate by 1/2, (0, 1, 2) and (2, 1, 0) by -1."""
    first = torch.tensor([[0.0, 1, 2], [0, 1, 2]], dtype=torch.float64)
    second = torch.tensor([[0.0, 2, 1], [2, 1, 0]], dtype=torch.float64)
    assert pearson(first, second, 1).tolist() == pytest.approx([0.5, -1])
    assert pearson(first.T, second.T, 0).tolist() == pytest.approx([0.5, -1])


def test_the_same_scores_cost_nothing_and_opposite_ones_two_a_term():
    scores = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.2, 0.7], [0.3, 0.4, 0.3]], dtype=torch.float64)
    assert dist_loss(scores.log(), scores.log() + 5).item() == pytest.approx(0, abs=1e-6)
    # (1 - score) / 2 of three classes are a distribution, too.
    assert dist_loss(scores.log(), (1 - scores).log()).item() == pytest.approx(4, abs=1e-5)


def test_rows_that_count_nothing_cost_nothing():
    """As in a batch without any class that the teacher knows."""
    ours, theirs = random_map(4, 3, seed=1, grad=True), random_map(4, 3, seed=2)
    loss = dist_loss(ours, theirs, weights=torch.zeros(4, dtype=torch.float64))
    loss.backward()
    assert loss.item() == 0
    assert (ours.grad == 0).all()
    with pytest.raises(ValueError, match="1 row or more"):
        dist_loss(ours[:0], theirs[:0])


def test_gradient():
    student, teacher = random_map(6, 5, seed=3, grad=True), random_map(6, 5, seed=4)
    assert torch.autograd.gradcheck(lambda s: dist_loss(s, teacher), student)


@pytest.mark.parametrize("rows", [1, 7])
def test_constant_rows_and_columns_count_as_uncorrelated(rows):
    """All scores alike, as those of a net that knows nothing; in float32 the mean of seven tenths is not a tenth."""
    student, teacher = torch.full((rows, 10), 0.7, requires_grad=True), random_map(rows, 10, seed=1).float()
    loss = dist_loss(student, teacher)
    loss.backward()
    assert loss.item() == 2
    assert 0 < student.grad.abs().max() < 1
    assert dist_loss(teacher, student.detach()).item() == 2


def test_half_precision_is_computed_in_full():
    student, teacher = (random_map(6, 5, seed=seed).bfloat16() for seed in (1, 2))
    loss = dist_loss(student, teacher)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, dist_loss(student.float(), teacher.float()))


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(1, 3\)"):
        dist_loss(random_map(4, 3), random_map(1, 3))


@pytest.mark.parametrize(
    ("settings", "weights"), [({}, (1, 1)), ({"preset": "imagenet"}, (2, 2)), ({"inter": 3.0, "intra": 0.5}, (3, 0.5))]
)
def test_step_adds_the_loss(settings, weights):
    logits, target, losses = random_map(6, 3, seed=5), random_map(6, 3, seed=6), task_losses()
    student = Knowledge(logits=logits, losses=losses, classification_loss="loss_classifier")
    update = one_update(make("dist", spec(), spec(), **settings), student, Knowledge(logits=target))
    torch.testing.assert_close(added(update, losses, "dist"), dist_loss(logits, target, *weights))


@pytest.mark.parametrize(
    ("teacher", "settings", "message"),
    [
        (spec(4), {}, "student has 3 classes and the teacher 4"),
        (spec(), {"inter": -1.0}, "methods.dist.inter is -1.0: it must be 0 or more"),
        (spec(), {"intra": -1.0}, "methods.dist.intra is -1.0: it must be 0 or more"),
        (spec(), {"layers": ["layer3"]}, "methods.dist.layers: dist reads class scores and no layers"),
    ],
)
def test_errors_before_training(teacher, settings, message):
    with pytest.raises(InputError, match=message):
        make("dist", spec(), teacher, **settings)
