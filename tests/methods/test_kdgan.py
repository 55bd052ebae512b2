"""KDGAN: losses by hand, proposals, and the three players' turns."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from map_helpers import make, random_map, spec, task_losses

from detkt import Distiller
from detkt.base.errors import InputError
from detkt.knowledge import Knowledge
from detkt.methods.base import Needs
from detkt.methods.kdgan import LabelDiscriminator, TeacherHead, discriminator_loss, proposal_loss, propose


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def game(classes: int = 4, rows: int = 6, **settings):
    """A method in float64 and what both nets know of a few rows."""
    torch.manual_seed(0)
    method = make("kdgan", spec(classes), spec(classes), **settings)
    labels = torch.arange(rows) % classes
    student = Knowledge(logits=random_map(rows, classes, seed=1, grad=True), labels=labels, losses=task_losses())
    return method, student, Knowledge(logits=random_map(rows, classes, seed=2))


def turns(method, student, teacher):
    (stage,) = method.stages()
    return method.step(stage, student, teacher, heads=None)


def numpy_softened_kl(ours: np.ndarray, theirs: np.ndarray, temperature: float) -> float:
    """T^2 KL(theirs || ours), mean over rows."""
    p, q = (np.exp(z / temperature) / np.exp(z / temperature).sum(1, keepdims=True) for z in (theirs, ours))
    return temperature**2 * (p * np.log(p / q)).sum(1).mean()


# Losses


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_discriminator_loss_by_hand(alpha):
    true, student, teacher = (torch.tensor(x, dtype=torch.float64) for x in ([0.5, 2.0], [1.0, -1.0], [-3.0, 0.0]))
    expected = -(log_sigmoid(0.5) + log_sigmoid(2)) / 2
    expected -= alpha * (log_sigmoid(-1) + log_sigmoid(1)) / 2
    expected -= (1 - alpha) * (log_sigmoid(3) + log_sigmoid(0)) / 2
    assert discriminator_loss(true, student, teacher, alpha).item() == pytest.approx(expected, abs=1e-12)


def test_proposal_loss_by_hand():
    logit = torch.tensor([0.5, -2.0], dtype=torch.float64)
    assert proposal_loss(logit).item() == pytest.approx(-(log_sigmoid(0.5) + log_sigmoid(-2)) / 2, abs=1e-12)


def test_gradients_of_the_losses():
    logits = [random_map(5, seed=i, grad=True) for i in range(3)]
    assert torch.autograd.gradcheck(lambda *x: discriminator_loss(*x, 0.3), logits)
    assert torch.autograd.gradcheck(proposal_loss, logits[0])


def test_proposals_are_one_hot_and_follow_the_scores():
    probabilities = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    torch.manual_seed(0)
    proposals = propose(probabilities.log().expand(20000, 3))
    torch.testing.assert_close(proposals, proposals.round(), atol=1e-12, rtol=0)
    assert (proposals.sum(1) - 1).abs().max() < 1e-12
    torch.testing.assert_close(proposals.mean(0), probabilities, atol=0.015, rtol=0)


def test_gradient_of_a_proposal_is_the_concrete_samples():
    logits, weights = random_map(5, 3, seed=1, grad=True), random_map(5, 3, seed=2)
    torch.manual_seed(4)
    (propose(logits, 0.7) * weights).sum().backward()
    torch.manual_seed(4)
    noise = -torch.empty(5, 3, dtype=torch.float64).exponential_().log()
    soft = logits.detach().clone().requires_grad_()
    (((soft + noise) / 0.7).softmax(1) * weights).sum().backward()
    torch.testing.assert_close(logits.grad, soft.grad)


# The nets


def test_discriminator_does_not_see_the_offset_of_scores():
    torch.manual_seed(0)
    judge, context = LabelDiscriminator(4, 16).double(), random_map(5, 4, seed=1)
    label = torch.eye(4, dtype=torch.float64)[[0, 1, 2, 3, 0]]
    assert judge(context, label).shape == (5,)
    torch.testing.assert_close(judge(context + 3, label), judge(context, label))
    assert (judge(context, label.roll(1, 0)) != judge(context, label)).any()


def test_teacher_head_starts_as_the_identity():
    logits = random_map(5, 4, seed=1)
    torch.testing.assert_close(TeacherHead(4).double()(logits), logits, atol=0, rtol=0)


# The game


def test_three_players_take_turns():
    method, student, teacher = game()
    (stage,) = method.stages()
    assert stage.needs == Needs.STUDENT | Needs.STUDENT_LOGITS | Needs.TEACHER_LOGITS
    assert set(method.players()) == {"kdgan_discriminator", "kdgan_teacher"}
    assert stage.players == ("student", "kdgan_discriminator", "kdgan_teacher")
    teacher.logits.requires_grad_()
    nets = {name: list(player.modules[0].parameters()) for name, player in method.players().items()}
    nets["student"] = [student.logits]
    assert sum(map(len, nets.values())) == len(list(method.parameters())) + 1
    seen = []
    for update in turns(method, student, teacher):
        for parameter in (p for parameters in nets.values() for p in parameters):
            parameter.grad = None
        update.total.backward()
        for name, parameters in nets.items():
            learns = [p.grad is not None and p.grad.abs().sum() > 0 for p in parameters]
            assert learns == len(parameters) * [name == update.player], (update.player, name)
        seen.append(update.player)
    assert seen == ["kdgan_discriminator", "kdgan_teacher", "student"]
    assert all(p.requires_grad for p in method.parameters())


def test_the_official_weights():
    """A fifth of the adversarial losses is the student's; beta 2, gamma 10^-4, both at a temperature of 3."""
    method, student, teacher = game(preset="official")
    torch.manual_seed(3)
    _, theirs, ours = turns(method, student, teacher)
    torch.manual_seed(3)
    proposals = [propose(logits) for logits in (student.logits, teacher.logits, teacher.logits, student.logits)][2:]
    fooled = [proposal_loss(method.discriminator(teacher.logits, proposal)).item() for proposal in proposals]
    s, t = student.logits.detach().numpy(), teacher.logits.numpy()
    expected = {
        "kdgan_teacher_proposals": 0.8 * fooled[0],
        "kdgan_teacher_distillation": 1e-4 * numpy_softened_kl(t, s, 3),
        "kdgan_proposals": 0.2 * fooled[1],
        "kdgan_distillation": 2 * numpy_softened_kl(s, t, 3),
    }
    found = {name: loss.item() for name, loss in {**theirs.losses, **ours.losses}.items() if name in expected}
    assert found == pytest.approx(expected)


def test_discriminator_judges_true_labels_and_proposals_of_both():
    method, student, teacher = game(alpha=0.3)
    torch.manual_seed(3)
    update = next(turns(method, student, teacher))
    torch.manual_seed(3)
    labels = [
        torch.eye(4, dtype=torch.float64)[student.labels],
        propose(student.logits),
        propose(teacher.logits),
    ]
    logits = [method.discriminator(teacher.logits, label.detach()) for label in labels]
    torch.testing.assert_close(update.losses["kdgan_discriminator"], discriminator_loss(*logits, 0.3))
    right = [(logits[0] > 0), (logits[1] < 0), (logits[2] < 0)]
    for name, answers in zip(("true", "student", "teacher"), right, strict=True):
        assert update.metrics[f"kdgan_accuracy_{name}"].item() == pytest.approx(answers.double().mean().item())


def test_student_and_teacher_learn_from_each_other():
    method, student, teacher = game(beta=0.5, gamma=0.2, temperature=3.0, alpha=0.3)
    steps = turns(method, student, teacher)
    next(steps)
    ours, theirs = student.logits.detach().numpy(), teacher.logits.numpy()
    update = next(steps)
    expected = 0.2 * numpy_softened_kl(theirs, ours, 3.0)
    assert update.losses["kdgan_teacher_distillation"].item() == pytest.approx(expected, abs=1e-9)
    torch.nn.init.constant_(method.teacher_head.layer.bias, 0)
    method.teacher_head.layer.weight.data *= 2  # the teacher's turn: the student learns from what it became
    torch.manual_seed(3)
    update = next(steps)
    expected = 0.5 * numpy_softened_kl(ours, 2 * theirs, 3.0)
    assert update.losses["kdgan_distillation"].item() == pytest.approx(expected, abs=1e-9)
    torch.manual_seed(3)
    fooled = proposal_loss(method.discriminator(teacher.logits, propose(student.logits)))
    torch.testing.assert_close(update.losses["kdgan_proposals"], 0.3 * fooled)
    assert set(update.losses) == {"kdgan_proposals", "kdgan_distillation"}
    assert update.task_weights == {}


def test_discriminator_teaches_the_true_labels():
    """Against a teacher that knows nothing but a hint, the student's scores move towards the labels."""
    method, _, _ = game(classes=3, discriminator_lr=1e-2, beta=0.0)
    method.float()
    labels = torch.arange(60) % 3
    scores = torch.zeros(60, 3, requires_grad=True)
    hints = torch.eye(3)[labels]
    players = {name: list(player.modules[0].parameters()) for name, player in method.players().items()}
    players["student"] = [scores]
    optimizers = {name: torch.optim.Adam(p, 0.01 if name != "student" else 0.05) for name, p in players.items()}
    for _ in range(60):
        student = Knowledge(logits=scores, labels=labels)
        for update in turns(method, student, Knowledge(logits=hints)):
            optimizers[update.player].zero_grad()
            update.total.backward(inputs=players[update.player])
            optimizers[update.player].step()
    assert scores.softmax(1)[torch.arange(60), labels].mean() > 0.6


# Where it cannot apply


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 1.5}, r"methods\.kdgan\.alpha is 1\.5: it must be between 0 and 1"),
        ({"temperature": 0.0}, r"methods\.kdgan\.temperature is 0\.0: it must be greater than 0"),
        ({"gumbel_temperature": -1.0}, r"methods\.kdgan\.gumbel_temperature is -1\.0"),
        ({"layers": ["layer3"]}, r"methods\.kdgan\.layers: kdgan reads class scores"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        game(**settings)


def test_other_classes_than_the_teachers_are_refused():
    with pytest.raises(InputError, match="student has 3 classes and the teacher 4"):
        make("kdgan", spec(3), spec(4))
    with pytest.raises(InputError, match="student 'cat' where the teacher has 'dog'"):
        make("kdgan", spec(3, ("cat", "dog")), spec(3, ("dog", "cat")))


def test_trains_a_detector(detector, batch):
    student, teacher = detector(), detector("fasterrcnn_resnet10x0.25_c4", seed=1)
    distiller = Distiller(student, teacher, "kdgan")
    before = {name: value.clone() for name, value in distiller.method.state_dict().items()}
    losses = distiller(*batch)
    assert {"kdgan_proposals", "kdgan_distillation", "loss_classifier"} <= set(losses)
    sum(losses.values()).backward()
    # Both players have moved inside the call; the teacher itself stays.
    for net in ("discriminator.layers.0.weight", "teacher_head.layer.weight"):
        assert (distiller.method.state_dict()[net] != before[net]).any()
    assert all(p.grad is not None for p in student.roi_heads.box_predictor.cls_score.parameters())
    assert all(p.grad is None for p in teacher.parameters())
