from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from map_helpers import make, one_update, random_map, spec, task_losses

from detkt import Distiller
from detkt.base.errors import InputError
from detkt.knowledge import Knowledge
from detkt.methods.base import Needs
from detkt.methods.kd import distillation_loss
from detkt.models import build_detector


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 0.5])
def test_loss_equals_its_formula(temperature):
    student, teacher = 3 * random_map(7, 5, seed=1), 3 * random_map(7, 5, seed=2)
    p, q = softmax(teacher.numpy() / temperature), softmax(student.numpy() / temperature)
    expected = temperature**2 * (p * np.log(p / q)).sum(axis=1).mean()
    assert distillation_loss(student, teacher, temperature).item() == pytest.approx(expected, abs=1e-9)


def test_loss_by_hand():
    # Teacher (3/4, 1/4), student (1/2, 1/2) at T = 2: 4 * (0.75 log 1.5 + 0.25 log 0.5) = 0.523248...
    student = torch.zeros(1, 2, dtype=torch.float64)
    teacher = torch.tensor([[2 * np.log(3), 0.0]], dtype=torch.float64)
    assert distillation_loss(student, teacher, temperature=2.0).item() == pytest.approx(0.5232481437, abs=1e-9)


def test_loss_is_zero_where_only_a_constant_differs_and_stays_finite_at_extremes():
    logits = random_map(4, 3)
    assert distillation_loss(logits, logits + 5).item() == pytest.approx(0, abs=1e-12)
    extreme = distillation_loss(torch.tensor([[2000.0, 0.0]]), torch.tensor([[0.0, 2000.0]]))
    assert extreme.item() == pytest.approx(16 * 500, rel=1e-5)


def test_gradient():
    student, teacher = random_map(3, 4, seed=3, grad=True), random_map(3, 4, seed=4)
    assert torch.autograd.gradcheck(lambda s: distillation_loss(s, teacher, 4.0), student)


def test_half_precision_is_computed_in_full():
    student, teacher = random_map(6, 3, seed=1).bfloat16(), random_map(6, 3, seed=2).bfloat16()
    loss = distillation_loss(student, teacher)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, distillation_loss(student.float(), teacher.float()))


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(1, 3\)"):
        distillation_loss(random_map(4, 3), random_map(1, 3))


def test_step_shares_the_classification_loss_and_leaves_the_others():
    logits, target, losses = random_map(6, 3, seed=5), random_map(6, 3, seed=6), task_losses()
    student = Knowledge(logits=logits, losses=losses, classification_loss="loss_classifier")
    method = make("kd", spec(), spec(), alpha=0.8, temperature=3.0)
    update = one_update(method, student, Knowledge(logits=target)).with_task(losses)
    assert set(update.losses) == {"loss_classifier", "loss_box", "kd"}
    assert update.losses["loss_classifier"].item() == pytest.approx(0.2 * 0.7)
    assert update.losses["loss_box"].item() == pytest.approx(0.2)
    assert update.losses["kd"].item() == pytest.approx(0.8 * distillation_loss(logits, target, 3.0).item())
    assert student.losses["loss_classifier"].item() == 0.7


def test_defaults_and_passes():
    method = make("kd", spec(), spec())
    assert (method.config.alpha, method.config.temperature) == (0.9, 4.0)
    (stage,) = method.stages()
    assert stage.needs == Needs.STUDENT | Needs.STUDENT_LOGITS | Needs.TEACHER_LOGITS
    assert method.players() == {}


@pytest.mark.parametrize(
    ("teacher", "settings", "message"),
    [
        (spec(num_classes=5), {}, "student has 3 classes and the teacher 5"),
        (spec(classes=("cat", "dog")), {}, "student 'dog' where the teacher has 'cat'"),
        (spec(), {"alpha": 1.5}, "methods.kd.alpha is 1.5"),
        (spec(), {"temperature": 0.0}, "methods.kd.temperature is 0.0"),
        (spec(), {"layers": ["layer3"]}, "methods.kd.layers"),
    ],
)
def test_errors_before_training(teacher, settings, message):
    with pytest.raises(InputError, match=message):
        make("kd", spec(classes=("dog", "cat")), teacher, **settings)


def test_detectors_score_the_same_rois():
    """Whatever RoIs the student samples, a teacher equal to the student agrees with it on every one."""
    torch.manual_seed(0)
    images = [torch.rand(3, 64, 80), torch.rand(3, 48, 64)]
    targets = [{"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1])} for _ in images]
    student, other = (
        build_detector("fasterrcnn_resnet10x0.25_c4", 3, min_size=64, max_size=80, norm="frozen") for _ in range(2)
    )
    torch.nn.init.normal_(other.roi_heads.box_predictor.cls_score.weight)
    for teacher, equal in ((deepcopy(student), True), (other, False)):
        losses = Distiller(student, teacher, method="kd")(images, targets)
        assert len(losses) == 5
        assert (losses["kd"].item() < 1e-6) == equal
