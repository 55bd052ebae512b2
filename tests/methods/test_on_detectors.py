"""Each method lowers its own term: on one map, on a pyramid, and from a two-stage teacher to a student of one stage."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator

import detkt

METHODS = ("pkd", "cwd", "mgd", "fgd", "fgfi", "dkd", "dist")
TASK = {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
DENSE_TASK = {"classification", "bbox_regression"}


@pytest.fixture
def distiller(detector):
    """``distiller(method, kind)``: of a student with half of the teacher's channels."""

    def build(method: str, kind: str) -> detkt.Distiller:
        pyramid = "c4" if kind == "c4" else "fpn"
        widths = ({}, {}) if kind == "c4" else ({"fpn_channels": 16}, {"fpn_channels": 32})
        student = detector(f"fasterrcnn_resnet10x0.125_{pyramid}", **widths[0])
        teacher = detector(f"fasterrcnn_resnet10x0.25_{pyramid}", seed=1, **widths[1])
        if kind == "retinanet":
            anchors = AnchorGenerator([(size,) for size in (16, 24, 32, 48, 64)], [(0.5, 1.0, 2.0)] * 5)
            student = RetinaNet(student.backbone, 4, min_size=64, max_size=96, anchor_generator=anchors)
        torch.manual_seed(2)
        return detkt.Distiller(student, teacher, method).train()

    return build


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        *((kind, method) for kind in ("c4", "fpn") for method in (*METHODS, "pkd+dist", "fgd+dkd")),
        *(("retinanet", method) for method in METHODS if method not in ("dkd", "dist")),
    ],
)
def test_a_few_steps_lower_the_methods_own_terms(distiller, batch, kind, method):
    distilled = distiller(method, kind)
    optimizer = torch.optim.Adam(distilled.trainable_parameters(), lr=2e-3)
    own = []
    for _ in range(12):
        losses = distilled(*batch)
        assert set(losses) == (DENSE_TASK if kind == "retinanet" else TASK) | set(method.split("+"))
        own.append(sum(losses[name] for name in method.split("+")))
        optimizer.zero_grad()
        own[-1].backward()
        optimizer.step()
    assert torch.stack(own).isfinite().all()
    # Blanks and sampled RoIs differ from step to step: three of them are compared with three.
    assert sum(own[-3:]) < 0.95 * sum(own[:3])


@pytest.mark.parametrize("method", METHODS)
def test_pictures_without_objects_and_half_precision(distiller, batch, method):
    images, targets = batch
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    distilled = distiller(method, "c4")
    with torch.autocast("cpu", torch.bfloat16):
        losses = distilled(images, [nothing, nothing])
    assert losses[method].dtype == torch.float32
    losses[method].backward()
    assert losses[method].isfinite()
    assert (losses[method] == 0) == (method == "fgfi")
    gradients = [p.grad for p in distilled.student.backbone.parameters() if p.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_what_stands_near_objects_is_learned_there_alone(distiller, batch):
    """FGFI's gradient on the student's map: none beyond near cells and, the adapter being 3 x 3, their neighbours."""
    distilled = distiller("fgfi", "c4")
    stage = distilled.stages[0]
    student, teacher, heads = distilled.task.run(*batch, stage.needs)
    student.features["output"].retain_grad()
    (update,) = distilled.method.step(stage, student, teacher, heads)
    update.losses["fgfi"].backward()
    (near,) = distilled.method._near(student)
    assert near.any() and not near.all()
    reached = torch.nn.functional.max_pool2d(near.float(), 3, 1, 1)
    assert ((student.features["output"].grad.abs().sum(dim=1, keepdim=True) > 0) <= (reached > 0)).all()
