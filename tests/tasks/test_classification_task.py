"""Knowledge from classifiers: maps, logits and losses are the networks' own, and no pass too many is run."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from run_comparison import OF_OBJECTS
from torch import nn

import detkt
from detkt.base.errors import InputError
from detkt.methods import available
from detkt.methods.base import Needs
from detkt.models import Classifier, build_classifier, build_detector
from detkt.tasks import ClassificationTask, build_task

EVERYTHING = Needs.STUDENT | Needs.STUDENT_LOGITS | Needs.TEACHER_FEATURES | Needs.TEACHER_LOGITS


def nets(classes: int = 10):
    torch.manual_seed(0)
    student = build_classifier("cifar_resnet8x0.25", classes)
    teacher = build_classifier("cifar_resnet14x0.5", classes).eval().requires_grad_(False)
    return student, teacher


@pytest.fixture
def cifar_batch():
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(6, 3, 32, 32, generator=generator)
    return images, {"labels": torch.tensor([0, 3, 9, 3, 1, 2]), "image_id": torch.arange(6)}


def watched(student, teacher, *layers):
    task = ClassificationTask(student, teacher)
    task.specs = task.reveal(layers, layers)
    return task


def test_knowledge_is_what_the_networks_say(cifar_batch):
    images, targets = cifar_batch
    student, teacher = nets()
    reference = copy.deepcopy(student)
    ours, theirs, _ = watched(student, teacher, "layer2").run(images, targets, EVERYTHING)
    logits = reference(images)
    assert torch.equal(ours.logits, logits)
    assert torch.equal(ours.labels, targets["labels"])
    assert torch.equal(ours.losses[ours.classification_loss], F.cross_entropy(logits, targets["labels"]))
    assert torch.equal(theirs.logits, teacher(images))
    assert torch.equal(theirs.features["output"], teacher.backbone(images))
    assert torch.equal(theirs.features["layer2"].shape and F.relu(theirs.features["layer2"]), theirs.features["layer2"])
    assert ours.features["layer2"].shape == (6, 8, 16, 16)
    assert ours.valid is None, "no picture is padded"
    assert ours.features["output"].requires_grad
    assert not theirs.features["output"].requires_grad


def test_maps_are_probed(cifar_batch):
    student_spec, teacher_spec = watched(*nets(), "layer1").specs
    assert (student_spec.num_classes, teacher_spec.num_classes) == (10, 10)
    output = teacher_spec.features["output"]
    assert (output.channels, output.height, output.width, output.nonnegative) == (32, 8, 8, True)
    assert student_spec.features["layer1"].channels == 4
    task = ClassificationTask(*nets(), image_size=(48, 64))
    assert [(m.height, m.width) for m in task.reveal([], [])[0].features.values()] == [(12, 16)]


def test_only_what_is_asked_for_is_run(cifar_batch):
    student, teacher = nets()
    task = watched(student, teacher)

    def forbid(*_):
        raise AssertionError("this pass must not run")

    student.backbone.register_forward_pre_hook(forbid)
    teacher.head.register_forward_pre_hook(forbid)
    ours, theirs, _ = task.run(*cifar_batch, Needs.TEACHER_FEATURES)
    assert ours is None
    assert theirs.logits is None


def test_a_head_reads_any_map_and_learns_nothing(cifar_batch):
    images, targets = cifar_batch
    student, teacher = nets()
    _, theirs, heads = watched(student, teacher).run(images, targets, Needs.TEACHER_FEATURES)
    feature = theirs.features["output"].clone().requires_grad_()
    loss = heads.task_losses({"output": feature}, "teacher")["cross_entropy"]
    torch.testing.assert_close(loss, F.cross_entropy(teacher(images), targets["labels"]))
    loss.backward()
    assert feature.grad.abs().sum() > 0
    assert all(p.grad is None for p in teacher.parameters())


def test_rows_are_the_pictures_scores_and_teach_no_head(cifar_batch):
    images, targets = cifar_batch
    student, teacher = nets()
    ours, theirs, heads = watched(student, teacher).run(images, targets, Needs.STUDENT | Needs.TEACHER_FEATURES)
    feature = theirs.features["output"].clone().requires_grad_()
    rows = heads.rows({"output": feature}, "teacher")
    torch.testing.assert_close(rows.logits, teacher(images))
    assert (rows.classes.tolist(), rows.vectors) == (targets["labels"].tolist(), None)
    rows.logits.sum().backward()
    assert feature.grad.abs().sum() > 0
    heads.rows({"output": ours.features["output"]}, "student").logits.sum().backward()
    assert all(p.grad is None for p in [*teacher.parameters(), *student.head.parameters()])
    assert all(p.requires_grad for p in student.parameters())


def test_labels_alone_are_targets_too(cifar_batch):
    images, targets = cifar_batch
    task = watched(*nets())
    with_dict, alone = (task.run(images, t, Needs.STUDENT)[0] for t in (targets, targets["labels"]))
    torch.testing.assert_close(with_dict.losses["cross_entropy"], alone.losses["cross_entropy"])
    assert task.pictures(targets) == [0, 1, 2, 3, 4, 5]


def test_classifiers_of_the_users_own(cifar_batch):
    images, targets = cifar_batch

    def make(channels):
        body = nn.Sequential(nn.Conv2d(3, channels, 3, stride=8), nn.ReLU())
        return Classifier(body, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)))

    distiller = detkt.Distiller(make(4), make(8), "fitnet+kd", image_size=32)
    assert set(distiller.train()(images, targets)) == {"cross_entropy", "fitnet", "kd"}


def test_what_does_not_fit_is_refused(cifar_batch):
    images, targets = cifar_batch
    student, teacher = nets()
    with pytest.raises(InputError, match="the same object"):
        ClassificationTask(student, student)
    with pytest.raises(InputError, match="student_classes has 2 names, but the student has 10"):
        ClassificationTask(student, teacher, ["a", "b"]).reveal([], [])
    with pytest.raises(InputError, match=r"the student cannot take pictures of 2 x 2 \("):
        ClassificationTask(build_classifier("cifar_vgg13", 10), image_size=2).reveal([], [])
    with pytest.raises(InputError, match="pictures of 3 channels and the teacher of 1"):
        ClassificationTask(student, build_classifier("cifar_resnet8", 10, in_channels=1))
    with pytest.raises(InputError, match="the student is a Classifier, not a torchvision detector as the teacher is"):
        build_task(student, build_detector("fasterrcnn_resnet10x0.125_c4", 4))
    with pytest.raises(InputError, match="labels must be 0 to 9, found 0 to 10"):
        watched(student, teacher).run(images, torch.tensor([0, 1, 2, 3, 10, 4]), EVERYTHING)
    for labels in (torch.arange(5), torch.zeros(6), [{"labels": torch.tensor([1])}] * 6):
        with pytest.raises(InputError, match="targets must be whole-number labels"):
            watched(student, teacher).run(images, labels, EVERYTHING)
    with pytest.raises(InputError, match="no layer 'layr2'.*did you mean 'layer2'"):
        watched(student, teacher, "layr2")
    student.eval()
    with pytest.raises(InputError, match="the student is in evaluation mode"):
        watched(student, teacher).run(images, targets, EVERYTHING)
    with pytest.raises(InputError, match="image_size is for classifiers"):
        build_task(build_detector("fasterrcnn_resnet10x0.125_c4", 4), image_size=32)


SETTINGS = {
    "fsp": {"layers": ["layer1", "output"]},
    "kr": {"layers": ["output=layer3.0+layer3.1"]},
    "kr-dense": {"layers": ["output=layer3.0+layer3.1"]},
    "kr-l1": {"layers": ["output=layer3.0+layer3.1"]},
    "ktan": {"regressor_steps": 2, "warmup_steps": 1},
    "dln": {"regressor_steps": 2},
    **{name: {"paraphraser_steps": 2} for name in ("ft", "cae", "rae")},
}


OF_PICTURES = [method for method in available() if method not in OF_OBJECTS]


@pytest.mark.parametrize("method", [*OF_PICTURES, "ktan+kd", "ft+kd", "at+kd", "kr+kdgan", "pkd+dist"])
def test_every_method_distils_a_classifier(method, cifar_batch):
    """Each class is detection's own: a few steps lower the method's term or the cross entropy, all values finite."""
    torch.manual_seed(1)
    student, teacher = nets()
    settings = SETTINGS if "+" in method else SETTINGS.get(method)
    distiller = detkt.Distiller(student, teacher, method, settings)
    distiller.prepare([cifar_batch])
    optimizer = torch.optim.SGD(distiller.trainable_parameters(), lr=0.02, momentum=0.9)
    totals = []
    for _ in range(8):
        losses = distiller(*cifar_batch)
        optimizer.zero_grad()
        total = sum(losses.values())
        total.backward()
        torch.nn.utils.clip_grad_norm_(distiller.trainable_parameters(), 1.0)
        optimizer.step()
        totals.append(losses["cross_entropy"].item() / (0.1 if "kd" in method.split("+") else 1.0))
        assert torch.isfinite(total)
    if method == "none":
        assert list(losses) == ["cross_entropy"]
        assert totals[-1] < totals[0]
    else:
        assert set(losses) - {"cross_entropy"}, "the method adds a term"


@pytest.mark.parametrize(("method", "named"), [("fgd", "fgd"), ("fgfi", "fgfi"), ("fgd+dkd", r"fgd\+dkd")])
def test_methods_that_look_at_objects_are_refused_before_training(method, named):
    with pytest.raises(InputError, match=f"^method '{named}' needs the boxes of objects, .*; choose a method") as error:
        detkt.Distiller(*nets(), method)
    assert "\n" not in str(error.value)


def test_methods_know_no_task():
    for path in (Path(detkt.__file__).parent / "methods").glob("*.py"):
        code = re.sub(r'""".*?"""|#.*|citation = \(?\s*"[^"]*"|"roi"', "", path.read_text(), flags=re.DOTALL)
        assert not re.search(
            r"detect|classif(y|ication_task)|roi|torchvision(?!\.ops)", code.lower().replace("detkt", "")
        ), path
