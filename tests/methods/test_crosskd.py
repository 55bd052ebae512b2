"""CrossKD: against NumPy, statistics over the cells that show picture, and what of the student it teaches."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from map_helpers import make, random_map, rectangle_mask
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import generalized_box_iou_loss

from detkt import Distiller
from detkt.base.errors import InputError
from detkt.knowledge import Dense, FeatureSpec, Knowledge, Spec, Tower
from detkt.methods.base import Needs
from detkt.methods.crosskd import giou_loss, quality_focal_loss, with_statistics_of

SIZES = [(3, 7), (5, 2)]  # rows, columns of two pictures in maps of 5 x 7


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def qfl(logits: np.ndarray, teacher: np.ndarray, focus: float) -> np.ndarray:
    p, q = sigmoid(teacher), sigmoid(logits)
    return np.abs(q - p) ** focus * -(p * np.log(q) + (1 - p) * np.log(1 - q))


def giou(first: np.ndarray, second: np.ndarray) -> float:
    """Of two boxes x1, y1, x2, y2."""
    area = lambda b: max(0.0, b[2] - b[0]) * max(0.0, b[3] - b[1])  # noqa: E731
    inner = area([*np.maximum(first[:2], second[:2]), *np.minimum(first[2:], second[2:])])
    outer = area([*np.minimum(first[:2], second[:2]), *np.maximum(first[2:], second[2:])])
    union = area(first) + area(second) - inner
    return inner / union - (outer - union) / outer


@pytest.mark.parametrize("focus", [0.0, 1.0, 2.0])
def test_quality_focal_loss_equals_its_formula(focus):
    logits, teacher = 2 * random_map(4, 6, seed=1), 2 * random_map(4, 6, seed=2)
    expected = qfl(logits.numpy(), teacher.numpy(), focus)
    torch.testing.assert_close(quality_focal_loss(logits, teacher, focus).numpy(), expected, rtol=0, atol=1e-9)


def test_quality_focal_loss_by_hand():
    """sigmoid 1/2 against 3/4: 1/4 log 2; against itself 0; finite where a score is 0 in single precision."""
    teacher = torch.tensor([np.log(3.0), 0.0])
    assert quality_focal_loss(torch.zeros(2), teacher).tolist() == pytest.approx([0.25 * np.log(2), 0])
    assert quality_focal_loss(torch.tensor([200.0]), torch.tensor([-200.0])).item() == pytest.approx(200)


def test_giou_is_torchvisions_own():
    """Boxes that overlap, touch, stand apart, lie within one another, and are empty."""
    boxes = torch.tensor([[0.0, 0, 4, 4], [2, 2, 6, 5], [4, 0, 8, 4], [1, 1, 2, 3], [9, 9, 9, 9]]).double()
    first, second = boxes.repeat_interleave(5, 0).requires_grad_(), boxes.repeat(5, 1)
    reference = first.detach().requires_grad_()
    ours, theirs = giou_loss(first, second), generalized_box_iou_loss(reference, second)
    torch.testing.assert_close(ours, theirs)
    apart = torch.arange(25) % 6 != 0  # equal boxes: either side of the maximum has the gradient
    (ours * apart).sum().backward()
    (theirs * apart).sum().backward()
    torch.testing.assert_close(first.grad, reference.grad)


def test_gradients():
    logits, teacher = random_map(3, 4, seed=1, grad=True), random_map(3, 4, seed=2)
    assert torch.autograd.gradcheck(lambda x: quality_focal_loss(x, teacher), logits)
    student, target = random_map(2, 3, 5, 7, seed=3, grad=True), random_map(2, 3, 5, 7, seed=4)
    for mask in (None, rectangle_mask(5, 7, SIZES)):
        assert torch.autograd.gradcheck(lambda s, mask=mask: with_statistics_of(s, target, mask), student)


@pytest.mark.parametrize("sizes", [[(5, 7), (5, 7)], SIZES])
def test_the_map_has_the_teachers_mean_and_deviation_over_the_cells_that_show_picture(sizes):
    student, teacher = 3 + 9 * random_map(2, 4, 5, 7, seed=1), 5 - 2 * random_map(2, 4, 5, 7, seed=2)
    mask = rectangle_mask(5, 7, sizes) if sizes is SIZES else None
    found = with_statistics_of(student, teacher, mask)
    cells = lambda x: np.concatenate([x[i, :, :h, :w].reshape(4, -1) for i, (h, w) in enumerate(sizes)], 1)  # noqa: E731
    ours, theirs, given = (cells(x.numpy()) for x in (student, teacher, found))
    unit = (ours - ours.mean(1, keepdims=True)) / ours.std(1, ddof=1, keepdims=True)
    expected = unit * theirs.std(1, ddof=1, keepdims=True) + theirs.mean(1, keepdims=True)
    np.testing.assert_allclose(given, expected, atol=1e-5)
    if mask is not None:
        padding = (mask == 0).expand_as(found)
        assert torch.equal(found[padding], teacher[padding]), "padding is the teacher's own"
        changed = with_statistics_of(student.masked_fill(padding, 99), teacher, mask)
        torch.testing.assert_close(changed, found)


def test_a_constant_channel_gets_the_teachers_mean():
    teacher = random_map(1, 1, 3, 4, seed=1)
    student = torch.full_like(teacher, 7.0).requires_grad_()
    found = with_statistics_of(student, teacher)
    torch.testing.assert_close(found, teacher.mean().expand_as(found))
    found.square().sum().backward()
    assert student.grad.isfinite().all()


def tower(channels: int = 3, sizes=((2, 3), (1, 2))) -> Spec:
    maps = {f"output.{i}": FeatureSpec(8, *size, False) for i, size in enumerate(sizes)}
    return Spec(maps, 4, tower=Tower(channels, tuple(sizes)))


class Rest:
    """The rest of a head: the maps of the first tower are scores, those of the other box codes added to a square."""

    def remaining(self, classification, regression):
        rows = lambda maps: torch.cat([x.flatten(2).mT for x in maps], dim=1)  # noqa: E731
        return rows(classification), torch.tensor([0.0, 0, 20, 20]).double() + rows(regression)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("positives", [2.0, 5.0])
def test_step_equals_its_formula(padded, positives):
    """Two classes and no tower behind the cut; with padding only the first column of the second picture's cells."""
    ours = Dense(*([random_map(2, n, 2, 3, seed=n), random_map(2, n, 1, 2, seed=n + 9)] for n in (2, 4)))
    theirs = Dense(*([random_map(2, n, 2, 3, seed=n + 20), random_map(2, n, 1, 2, seed=n + 30)] for n in (2, 4)))
    valid = [(1.0, 1.0), (1.0, 0.4)] if padded else None
    teacher = Knowledge(dense=theirs, valid=valid)
    theirs.logits, theirs.boxes = Rest().remaining(theirs.classification, theirs.regression)
    if padded:
        masks = [teacher.mask(level).flatten(1) for level in theirs.classification]
        theirs.shown = torch.cat(masks, dim=1).double()
        assert theirs.shown[1].tolist() == [1, 0, 0, 1, 0, 0, 1, 0]
    ours.positives = torch.tensor(positives)
    method = make("crosskd", *(tower(2, ((2, 3), (1, 2))),) * 2, weight=3.0, box_weight=0.5)
    (stage,) = method.stages()
    assert stage.needs == Needs.STUDENT | Needs.HEADS
    (update,) = method.step(stage, Knowledge(dense=ours), teacher, Rest())

    levels = [
        [with_statistics_of(a, b, teacher.mask(b)) for a, b in zip(getattr(ours, n), getattr(theirs, n), strict=True)]
        for n in ("classification", "regression")
    ]
    logits, boxes = Rest().remaining(*levels)
    shown = np.ones((2, 8)) if not padded else theirs.shown.numpy()
    classes = (qfl(logits.numpy(), theirs.logits.numpy(), 1.0).sum(2) * shown).sum() / positives
    pairs = zip(boxes.reshape(-1, 4).numpy(), theirs.boxes.reshape(-1, 4).numpy(), strict=True)
    apart = np.array([1 - giou(*pair) for pair in pairs]).reshape(2, -1)
    weighted = (sigmoid(theirs.logits.numpy()).max(2) * apart * shown).sum() / positives
    assert {name: loss.item() for name, loss in update.losses.items()} == pytest.approx(
        {"crosskd_classes": 3 * classes, "crosskd_boxes": 0.5 * weighted}, abs=1e-6
    )


@pytest.mark.parametrize(
    ("student", "teacher", "settings", "message"),
    [
        (Spec(), tower(), {}, "needs the towers of dense heads, .*RetinaNet and FCOS.*student has none"),
        (tower(), Spec(), {}, "teacher has none"),
        (tower(), tower(sizes=((4, 6), (2, 3))), {}, "levels of the same strides.*2 x 3, 1 x 2 and 4 x 6, 2 x 3"),
        (tower(), tower(), {"layers": ["output.0"]}, "methods.crosskd.layers"),
        (tower(), tower(), {"focus": -1.0}, "methods.crosskd.focus is -1.0"),
        (tower(), tower(), {"focus": 0.5}, "methods.crosskd.focus is 0.5: it must be 0, or 1 or more"),
        (tower(), tower(), {"box_weight": -1.0}, "methods.crosskd.box_weight is -1.0: it must be 0 or more"),
    ],
)
def test_errors_before_training(student, teacher, settings, message):
    with pytest.raises(InputError, match=message):
        make("crosskd", student, teacher, **settings)


def retinanet(detector, channels: int = 16, seed: int = 0):
    anchors = AnchorGenerator([(size,) for size in (16, 24, 32, 48, 64)], [(0.5, 1.0, 2.0)] * 5)
    backbone = detector("fasterrcnn_resnet10x0.125_fpn", seed=seed, fpn_channels=channels, norm="frozen").backbone
    net = RetinaNet(backbone, 4, min_size=64, max_size=96, anchor_generator=anchors)
    for branch in (net.head.classification_head, net.head.regression_head):
        for layer in branch.conv.modules():
            if isinstance(layer, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(layer.weight)
    return net


def test_a_student_like_its_teacher_has_nothing_to_learn(detector, batch):
    teacher = retinanet(detector)
    with Distiller(copy.deepcopy(teacher), teacher, "crosskd") as distiller:
        losses = distiller.train()(*batch)
    assert losses["crosskd_classes"].item() == pytest.approx(0, abs=1e-3)
    assert losses["crosskd_boxes"].item() == pytest.approx(0, abs=1e-3)


def test_the_first_part_of_the_towers_learns_and_the_students_predictors_do_not(detector, batch):
    student, teacher = retinanet(detector), retinanet(detector, 32, seed=1)
    with Distiller(student, teacher, "crosskd") as distiller:
        losses = distiller.train()(*batch)
        (losses["crosskd_classes"] + losses["crosskd_boxes"]).backward()
        assert all(p.grad.any() for p in distiller.method.adapters.parameters())
    for branch in (student.head.classification_head, student.head.regression_head):
        reached = [block[0].weight.grad is not None and bool(block[0].weight.grad.any()) for block in branch.conv]
        assert reached == [True, True, True, False]
    assert student.head.classification_head.cls_logits.weight.grad is None
    assert all(p.grad is None for p in teacher.parameters())


def test_pictures_without_objects(detector, batch):
    """No anchor is positive: each picture counts as one, as in the authors' code."""
    student, teacher = retinanet(detector), retinanet(detector, 32, seed=1)
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    with Distiller(student, teacher, "crosskd") as distiller:
        ours, _, _ = distiller.train().task.run(batch[0], [nothing, nothing], distiller.stages[0].needs)
        assert ours.dense.positives.item() == 2
        losses = distiller(batch[0], [nothing, nothing])
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["crosskd_classes"] > 0


def test_the_sum_with_pkd_lowers_all_three_terms(detector, batch):
    student, teacher = retinanet(detector), retinanet(detector, 32, seed=1)
    with Distiller(student, teacher, "crosskd+pkd") as distiller:
        optimizer = torch.optim.Adam(distiller.train().trainable_parameters(), lr=2e-3)
        own = []
        for _ in range(8):
            losses = distiller(*batch)
            own.append({name: losses[name].item() for name in ("crosskd_classes", "crosskd_boxes", "pkd")})
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
    assert all(own[-1][name] < 0.95 * own[0][name] for name in own[0]), (own[0], own[-1])
