"""Scores of detectors of one stage: which anchors are compared, under which labels, and of which classes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou

from detkt import Distiller
from detkt.base.errors import InputError
from detkt.knowledge import FeatureSpec, Knowledge, Spec
from detkt.methods.base import Needs
from detkt.tasks import dense
from detkt.tasks.detection import DetectionTask, as_pyramid
from detkt.tasks.shared_classes import shared_classes

SCORES = Needs.STUDENT | Needs.STUDENT_LOGITS | Needs.TEACHER_LOGITS
LEVELS = (16, 24, 32, 48, 64)


@pytest.fixture
def net(detector):
    """``net(kind, classes=4, seed=0)``: a detector of one stage on a thin pyramid, its scores unlike each other."""

    def build(kind: str, classes: int = 4, seed: int = 0, ratios=(0.5, 1.0, 2.0)) -> nn.Module:
        channels = 32 if kind == "fcos" else 16
        backbone = detector("fasterrcnn_resnet10x0.125_fpn", seed=seed, fpn_channels=channels, norm="frozen").backbone
        if kind == "retinanet":
            anchors = AnchorGenerator([(size,) for size in LEVELS], [ratios] * 5)
            model = RetinaNet(backbone, classes, min_size=64, max_size=96, anchor_generator=anchors)
        elif kind == "fcos":
            model = FCOS(backbone, classes, min_size=64, max_size=96)
        else:
            backbone.out_channels = [channels] * 5
            model = SSD(backbone, DefaultBoxGenerator([[2]] * 5), (96, 64), classes)
        for layer in model.head.classification_head.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
        return model.train()

    return build


KINDS = ("retinanet", "fcos", "ssd")


def rows_of(student: nn.Module, knowledge: Knowledge) -> list[int]:
    """How many anchors of each picture can be compared: those over padding cannot."""
    maps, per_cell = as_pyramid(knowledge.features).values(), student.anchor_generator.num_anchors_per_location()
    masks = [knowledge.mask(level) for level in maps]
    shown = [
        torch.full((2,), level[0, 0].numel()) if mask is None else mask.sum((1, 2, 3))
        for level, mask in zip(maps, masks, strict=True)
    ]
    totals = sum(cells * anchors for cells, anchors in zip(shown, per_cell, strict=True))
    return [min(dense.ROWS, int(total)) for total in totals]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_the_same_anchors_of_both_heads(net, batch, kind):
    student, teacher = net(kind), net(kind, seed=1)
    task = DetectionTask(student, teacher)
    task.reveal([], [])
    ours, theirs, _ = task.run(*batch, SCORES)
    assert ours.logits.shape == theirs.logits.shape
    assert ours.logits.shape[1] == (4 if kind == "ssd" else 3), "a sigmoid's column 0 is no class"
    assert ours.logits.requires_grad
    assert not theirs.logits.requires_grad
    everything, counts = [], rows_of(student, ours)
    for model, features in ((student, ours.features), (teacher, theirs.features)):
        logits = model.head(list(as_pyramid(features).values()))["cls_logits"]
        everything.append(logits if kind == "ssd" else logits[..., 1:])
    start = 0
    for picture in range(2):
        mine, his = (values.logits[start : start + counts[picture]] for values in (ours, theirs))
        # Each row is found in the whole head's output, at one and the same anchor.
        where = (everything[0][picture][:, None] == mine).all(dim=2).int().argmax(dim=0)
        torch.testing.assert_close(everything[0][picture][where], mine)
        torch.testing.assert_close(everything[1][picture][where], his)
        start += counts[picture]
    assert start == len(ours.logits)
    assert "compute_loss" not in vars(student.head)
    assert "compute_loss" not in vars(student)


def test_labels_are_those_that_torchvision_learns(net, batch):
    """RetinaNet's rule, written down: the box of the largest overlap, from 0.5 on, and each box's best anchor."""
    student = net("retinanet")
    task = DetectionTask(student, net("retinanet", seed=1))
    task.reveal([], [])
    with torch.no_grad():
        seen = task._student.train_pass(*batch, lambda images: None, lambda images: None)
        anchors = student.anchor_generator(seen.images, list(as_pyramid(seen.features).values()))
    found = task._student.dense.labels(seen.matched, seen.targets)
    for picture, target in enumerate(seen.targets):
        overlap = box_iou(target["boxes"], anchors[picture])
        best = overlap.argmax(dim=0)
        is_object = (overlap.amax(dim=0) >= 0.5) | (overlap == overlap.amax(dim=1, keepdim=True)).any(dim=0)
        assert torch.equal(found[picture], torch.where(is_object, target["labels"][best], 0))
        assert is_object.any()


@pytest.mark.parametrize("kind", KINDS)
def test_an_adversary_sees_the_scores_of_the_students_anchors(net, batch, kind):
    """Those that student's scores and labels lead to, read from any maps; a picture's classes are the objects'."""
    student = net(kind)
    task = DetectionTask(student, net(kind, seed=1))
    task.reveal([], [])
    ours, theirs, heads = task.run(*batch, Needs.STUDENT | Needs.STUDENT_LOGITS | Needs.TEACHER_FEATURES)
    rows = heads.rows({name: feature.detach() for name, feature in ours.features.items()}, "student")
    torch.testing.assert_close(rows.logits, ours.logits)
    assert rows.vectors is None
    shift = 0 if kind == "ssd" else 1  # of those of a sigmoid, -1 is the background
    assert torch.equal(rows.classes, ours.labels + shift)
    assert heads.rows(theirs.features, "teacher").logits.shape == rows.logits.shape
    feature = next(iter(ours.features))
    maps = {name: value.detach().requires_grad_(name == feature) for name, value in ours.features.items()}
    heads.rows(maps, "student").logits.sum().backward()
    assert maps[feature].grad.abs().sum() > 0
    assert all(p.grad is None for p in student.head.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_ktan_with_an_adversary_of_scores(net, batch, kind):
    settings = {"adversary": "score", "loss": "wgan-gp", "regressor_steps": 1, "warmup_steps": 0}
    with Distiller(net(kind), net(kind, seed=1), "ktan", settings) as distiller:
        distiller.prepare([batch])
        losses = distiller(*batch)
        sum(losses.values()).backward()
        assert losses["ktan_generator"].isfinite()
        assert all(p.grad is not None for p in distiller.student.backbone.parameters() if p.requires_grad)


def test_leading_rows_by_hand(monkeypatch):
    """Objects first, then the highest score of either net, and never padding."""
    monkeypatch.setattr(dense, "ROWS", 4)
    ours = torch.tensor([[0.1, 0.9, 0.2, 0.3, 0.95], [0.5, 0.4, 0.3, 0.2, 0.1]])
    theirs = torch.tensor([[0.8, 0.0, 0.1, 0.1, 0.95], [0.0, 0.0, 0.0, 0.0, 0.9]])
    labels = torch.tensor([[0, 0, 2, 0, 0], [0, 0, 0, 0, 0]])
    assert [rows.tolist() for rows in dense.leading_rows([ours, theirs], labels, None)] == [[2, 4, 1, 0], [4, 0, 1, 2]]
    shown = torch.tensor([[1, 1, 1, 1, 0], [0, 1, 0, 0, 1]])
    assert [rows.tolist() for rows in dense.leading_rows([ours, theirs], labels, shown)] == [[2, 1, 0, 3], [4, 1]]


def test_anchors_over_padding_are_no_rows(net, batch):
    student = net("retinanet")
    task = DetectionTask(student, net("retinanet", seed=1))
    task.reveal([], [])
    ours, _, _ = task.run(*batch, SCORES)
    assert ours.valid is not None
    assert len(ours.logits) == sum(rows_of(student, ours))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("needs", [SCORES, Needs.STUDENT | Needs.HEADS])
def test_the_students_losses_stay_torchvisions_own(net, batch, kind, needs):
    student, teacher = net(kind), net(kind, seed=1)
    if kind == "ssd" and Needs.HEADS in needs:
        assert Needs.HEADS not in DetectionTask(student, teacher).offered
        return
    reference = copy.deepcopy(student)
    task = DetectionTask(student, teacher)
    task.reveal([], [])
    expected, (ours, _, _) = reference(*batch), task.run(*batch, needs)
    assert {name: loss.item() for name, loss in ours.losses.items()} == {k: v.item() for k, v in expected.items()}
    assert ours.classification_loss in ours.losses
    sum(expected.values()).backward()
    sum(ours.losses.values()).backward()
    for one, other in zip(student.parameters(), reference.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad) if one.grad is not None else other.grad is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["kd", "dkd", "dist"])
def test_a_teacher_like_the_student_teaches_nothing(net, batch, kind, method):
    student = net(kind)
    with Distiller(student, copy.deepcopy(student), method) as distiller:
        assert distiller.train()(*batch)[method].item() == pytest.approx(0, abs=5e-3)
    with Distiller(student, net(kind, seed=1), method) as distiller:
        optimizer = torch.optim.Adam(distiller.train().trainable_parameters(), lr=1e-3)
        own = []
        for _ in range(8):
            losses = distiller(*batch)
            own.append(losses[method].item())
            optimizer.zero_grad()
            losses[method].backward()
            optimizer.step()
        assert own[-1] < 0.9 * own[0]


def test_half_precision(net, batch):
    with torch.autocast("cpu", torch.bfloat16), Distiller(net("fcos"), net("fcos", seed=1), "kd+crosskd") as distiller:
        losses = distiller.train()(*batch)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert sum(losses.values()).isfinite()


@pytest.mark.parametrize("kind", ["rcnn", *KINDS])
def test_confidence_is_the_highest_score_of_a_cell(net, detector, batch, kind):
    teacher = detector("fasterrcnn_resnet10x0.125_fpn", seed=1) if kind == "rcnn" else net(kind, seed=1)
    task = DetectionTask(net("retinanet"), teacher)
    task.reveal([], [])
    _, theirs, _ = task.run(*batch, Needs.STUDENT | Needs.TEACHER_CONFIDENCE)
    maps = list(theirs.features.values())
    if kind == "rcnn":
        expected = [level.sigmoid().amax(dim=1, keepdim=True) for level in teacher.rpn.head(maps)[0]]
    else:
        rows, expected = teacher.head(maps)["cls_logits"], []
        for level in maps:
            cells = level.shape[2] * level.shape[3]
            anchors = {"retinanet": 3, "fcos": 1, "ssd": 4}[kind]
            mine, rows = rows[:, : cells * anchors], rows[:, cells * anchors :]
            scores = 1 - mine.softmax(dim=2)[..., 0] if kind == "ssd" else mine[..., 1:].sigmoid().amax(dim=2)
            expected.append(scores.view(2, 1, *level.shape[2:], anchors).amax(dim=4))
    for found, wanted in zip(theirs.confidence.values(), expected, strict=True):
        torch.testing.assert_close(found, wanted)


# Classes


NAMES, OTHERS = ("cat", "dog", "bird"), ("bird", "tree", "cat", "car")


def two_specs(ours=NAMES, theirs=OTHERS) -> tuple[Spec, Spec]:
    return tuple(Spec({"output": FeatureSpec(8, 4, 6, True)}, len(names) + 1, names) for names in (ours, theirs))


def test_shared_classes_by_name_and_by_map():
    shared = shared_classes(*two_specs(), None)
    assert (shared.names, shared.student, shared.teacher, shared.count) == (("cat", "bird"), (0, 2), (2, 0), 3)
    assert shared.relabelled(torch.tensor([0, 1, 2, 3])).tolist() == [0, 1, -1, 2]
    logits = torch.arange(5.0)[None]
    assert shared.restricted(logits, "student", sigmoid=False).tolist() == [[0, 1, 3]]
    assert shared.restricted(logits, "teacher", sigmoid=False).tolist() == [[0, 3, 1]]
    assert shared.restricted(logits, "teacher", sigmoid=True).tolist() == [[2, 0]]
    mapped = shared_classes(*two_specs(), {"dog": "tree", "bird": None})
    assert (mapped.names, mapped.teacher) == (("cat", "dog"), (2, 1))
    assert shared_classes(*two_specs(theirs=NAMES), None) is None
    assert shared_classes(*two_specs((), ()), None) is None
    with pytest.raises(InputError, match="the teacher has no class 'tre'.*did you mean 'tree'"):
        shared_classes(*two_specs(), {"dog": "tre"})
    with pytest.raises(InputError, match="class_map goes by the names of both nets' classes"):
        shared_classes(*two_specs(()), {"dog": "tree"})


@pytest.mark.parametrize("kind", ["rcnn", *KINDS])
def test_scores_of_the_classes_that_both_know(net, detector, batch, kind):
    if kind == "rcnn":
        student, teacher = detector(), detector("fasterrcnn_resnet10x0.25_c4", 5, seed=1)
    else:
        student, teacher = net(kind), net(kind, 5, seed=1)
    task = DetectionTask(student, teacher, NAMES, OTHERS)
    specs = task.reveal([], [])
    assert [spec.scores.shared for spec in specs] == [("cat", "bird")] * 2
    ours, theirs, _ = task.run(*batch, SCORES)
    sigmoid = kind in ("retinanet", "fcos")
    assert ours.logits.shape[1] == theirs.logits.shape[1] == specs[0].compared_classes == (2 if sigmoid else 3)
    if sigmoid:
        assert ours.weights is None
        assert set(ours.labels.tolist()) == {-1, 0, 1}
    else:
        assert set(ours.labels[ours.weights == 1].tolist()) == {0, 1, 2}
        assert (ours.labels[ours.weights == 0] == 0).all()
        if kind == "rcnn":
            assert (ours.weights == 0).any(), "the dog's rows"
    for method in ("kd", "dkd", "dist"):
        with Distiller(student, teacher, method, None, NAMES, OTHERS) as distiller:
            losses = distiller.train()(*batch)
            assert losses[method].isfinite()
            if method == "kd":
                whole = distiller.task.run(*batch, SCORES)[0].losses if kind != "rcnn" else None
    name = "loss_classifier" if kind == "rcnn" else "classification"
    if whole is not None:  # RoIs are drawn anew
        with Distiller(student, teacher, "kd", None, NAMES, OTHERS) as distiller:
            assert distiller.train()(*batch)[name].item() == pytest.approx(whole[name].item()), "not a tenth of it"


@pytest.mark.parametrize(
    ("pair", "names", "message"),
    [
        (("retinanet", "rcnn"), (), "student is a detector of one stage, which scores anchors, .* teacher of two"),
        (("rcnn", "ssd"), (), "student is a detector of two stages, .* the teacher of one stage, which scores anchors"),
        (("retinanet", "fcos"), (), r"other anchors \(1536 and 512 on one picture\)"),
        (("ssd", "fcos"), (), "softmax over all classes, and the teacher's in a sigmoid for each class"),
        (("retinanet", "retinanet"), (NAMES, ("x", "y", "z")), "student and teacher have no class in common"),
        (("retinanet", "retinanet"), (NAMES[:2],), "student_classes has 2 names, but the student has 4 classes"),
    ],
)
@pytest.mark.parametrize("method", ["kd", "dkd", "dist"])
def test_refusals_before_training(net, detector, pair, names, message, method):
    student, teacher = (detector("fasterrcnn_resnet10x0.125_fpn") if kind == "rcnn" else net(kind) for kind in pair)
    with pytest.raises(InputError, match=message) as refused:
        Distiller(student, teacher, method, None, *names)
    assert "\n" not in str(refused.value)


def test_anchors_of_other_shapes_are_refused(net):
    with pytest.raises(InputError, match=r"other anchors \(other shapes\)"):
        Distiller(net("retinanet"), net("retinanet", ratios=(0.25, 1.0, 4.0)), "kd")


def test_class_map_is_for_detectors(net):
    nets, names = (net("retinanet"), net("retinanet", 3, seed=1)), (NAMES, ("tree", "cat"))
    with Distiller(*nets, "kd", None, *names, class_map={"dog": "tree"}) as distiller:
        assert distiller.task.shared.names == ("cat", "dog")
    with pytest.raises(InputError, match="class_map is for detectors"):
        Distiller(nn.Conv2d(3, 3, 1), None, "none", class_map={"cat": None})
