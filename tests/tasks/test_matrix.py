"""Every method on every kind of detector, and between unlike ones: it trains a step, or refuses in one line before."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchvision.models.detection import (
    FCOS,
    MaskRCNN,
    RetinaNet,
    fasterrcnn_mobilenet_v3_large_320_fpn,
    ssdlite320_mobilenet_v3_large,
)
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD

from detkt import Distiller
from detkt.base.errors import InputError
from detkt.methods import available
from detkt.methods.base import outputs
from detkt.models import build_detector

SIZE = {"min_size": 64, "max_size": 96}
REGIONS = {
    "rpn_batch_size_per_image": 32,
    "rpn_pre_nms_top_n_train": 100,
    "rpn_post_nms_top_n_train": 30,
    "box_batch_size_per_image": 16,
}
LEVELS = (16, 24, 32, 48, 64)


def rcnn(name: str, seed: int = 0, **options) -> nn.Module:
    torch.manual_seed(seed)
    anchors = list(LEVELS) if name.endswith("fpn") else [16, 32]
    return build_detector(name, 4, **SIZE, **REGIONS, anchor_sizes=anchors, **options)


def body(channels: int, seed: int) -> nn.Module:
    return rcnn("fasterrcnn_resnet10x0.125_fpn", seed, fpn_channels=channels).backbone


def retinanet(channels: int = 16, seed: int = 0) -> nn.Module:
    anchors = AnchorGenerator([(size,) for size in LEVELS], [(0.5, 1.0, 2.0)] * 5)
    net = RetinaNet(body(channels, seed), 4, **SIZE, anchor_generator=anchors)
    return _started(net, net.head.classification_head)


def fcos(channels: int = 32, seed: int = 0) -> nn.Module:
    net = FCOS(body(channels, seed), 4, **SIZE)
    return _started(net, net.head.classification_head)


def _started(net: nn.Module, head: nn.Module) -> nn.Module:
    """*net* with class scores that differ from cell to cell, as those of a net that has learnt do."""
    for layer in head.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    nn.init.constant_(head.cls_logits.bias, -2.0)
    return net


def ssd(channels: int = 16, seed: int = 0) -> nn.Module:
    """SSD's head and default boxes on a thin pyramid: its own body takes no pictures as small as these."""
    backbone = body(channels, seed)
    backbone.out_channels = [channels] * 5
    return SSD(backbone, DefaultBoxGenerator([[2]] * 5), (96, 64), 4)


def ssdlite(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)
    net.transform.fixed_size = (96, 96)
    for block in net.head.classification_head.module_list:
        nn.init.normal_(block[1].weight)
    # In evaluation its norms are to know its maps: else a teacher's scores are all alike, and DIST has no correlation.
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 0.9
    with torch.no_grad():
        for _ in range(3):
            net.train()(BATCH["images"], BATCH["targets"])
    return net


def mask_rcnn(seed: int = 0) -> nn.Module:
    anchors = AnchorGenerator([(size,) for size in LEVELS], [(0.5, 1.0, 2.0)] * 5)
    return MaskRCNN(body(32, seed), 4, **SIZE, rpn_anchor_generator=anchors)


def mobilenet(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=4, **SIZE, **REGIONS, trainable_backbone_layers=6
    )


C4, FPN = "fasterrcnn_resnet10x0.125_c4", "fasterrcnn_resnet10x0.125_fpn"
TIMM = "fasterrcnn_timm:test_resnet"
NETS = {
    "c4": lambda: rcnn(C4),
    "c4-teacher": lambda: rcnn("fasterrcnn_resnet10x0.25_c4", 1),
    "fpn": lambda: rcnn(FPN, fpn_channels=16),
    "fpn-teacher": lambda: rcnn(FPN, 1, fpn_channels=32),
    "mobilenet320": mobilenet,
    "retinanet": retinanet,
    "retinanet-teacher": lambda: retinanet(32, 1),
    "fcos": fcos,
    "fcos-teacher": lambda: fcos(64, 1),
    "ssd": ssd,
    "ssd-teacher": lambda: ssd(32, 1),
    "ssdlite": ssdlite,
    "ssdlite-teacher": lambda: ssdlite(1),
    "mask-rcnn": lambda: mask_rcnn(1),
    "timm-c4": lambda: rcnn(f"{TIMM}_c4", 1),
    "timm-fpn": lambda: rcnn(f"{TIMM}_fpn", 1, fpn_channels=32),
}
PAIRS = [
    ("c4", "c4-teacher"),
    ("fpn", "fpn-teacher"),
    ("mobilenet320", "fpn-teacher"),
    ("retinanet", "retinanet-teacher"),
    ("fcos", "fcos-teacher"),
    ("ssd", "ssd-teacher"),
    ("ssdlite", "ssdlite-teacher"),
    ("fpn", "mask-rcnn"),
    ("timm-c4", "c4-teacher"),
    ("timm-fpn", "fpn-teacher"),
    # unlike ones
    ("fpn", "c4-teacher"),
    ("c4", "fpn-teacher"),
    ("ssdlite", "fpn-teacher"),
    ("fcos", "retinanet-teacher"),
    ("retinanet", "fcos-teacher"),
    ("c4", "timm-c4"),
    ("fpn", "timm-fpn"),
]
SETTINGS = {
    **{name: {"m": 1} for name in ("kr", "kr-dense", "kr-l1")},
    **{name: {"paraphraser_steps": 1} for name in ("ft", "rae")},
    "cae": {"paraphraser_steps": 1, "num_layers": 1},
    "ktan": {"regressor_steps": 1, "warmup_steps": 0},
    "dln": {"regressor_steps": 1},
}
METHODS = [name for name in available() if name != "none"]

SCORES = {"kd", "dkd", "dist", "kdgan"}
BATCH = {
    "images": [torch.rand(3, *size, generator=torch.Generator().manual_seed(5)) for size in ((64, 80), (50, 90))],
    "targets": [
        {"boxes": torch.tensor([[5.0, 5, 35, 40]]), "labels": torch.tensor([1])},
        {"boxes": torch.tensor([[50.0, 5, 85, 35], [10, 15, 40, 45]]), "labels": torch.tensor([2, 3])},
    ],
}
DENSE, ONE_STAGE = ("retinanet", "fcos"), ("retinanet", "fcos", "ssd", "ssdlite")


def refusal(student: str, teacher: str, method: str) -> str | None:
    """What *method* says of a pair that it does not serve; None: it serves it."""
    ours, theirs = student.split("-")[0], teacher.removesuffix("-teacher")
    if method == "crosskd" and not (ours in DENSE and theirs in DENSE):
        return "method 'crosskd' needs the towers of dense heads"
    if method in SCORES and (ours in ONE_STAGE) != (theirs in ONE_STAGE):
        return f"method '{method}' compares the class scores of regions or of anchors"
    if method in SCORES and ours in ONE_STAGE and ours != theirs:
        return f"method '{method}' compares the class scores of anchors, but student and teacher have other anchors"
    if method == "kdgan" and ours in DENSE:
        return "method 'kdgan' draws one class"
    if method == "fsp" and ("c4" in student or "c4" in teacher):
        return "method 'fsp' compares neighbouring layers"
    if method == "cae" and "c4" not in student + teacher and (ours, theirs) not in (("ssdlite", "fpn"),):
        return "method 'cae' halves maps 1 times, but the student's is 1x"  # the last of a pyramid's levels
    return None


@pytest.fixture(scope="module")
def nets():
    """``nets(name)``: a net of :data:`NETS`, made once, as it was made."""
    made: dict[str, tuple[nn.Module, dict]] = {}

    def net(name: str) -> nn.Module:
        if name not in made:
            model = NETS[name]().train()
            made[name] = model, copy.deepcopy(model.state_dict())
        model, state = made[name]
        model.load_state_dict(state)
        model.zero_grad(set_to_none=True)
        return model.train()

    return net


def cases() -> list[tuple[str, str, str]]:
    # SSDlite's many small layers take long: its own teacher is for what needs one.
    own = {*SCORES, "pkd", "crosskd", "ktan"}
    return [
        (student, teacher, method)
        for student, teacher in PAIRS
        for method in METHODS
        if teacher != "ssdlite-teacher" or student != "ssdlite" or method in own
    ]


@pytest.mark.parametrize(("student", "teacher", "method"), cases())
def test_a_step_or_a_refusal(nets, student, teacher, method):
    ours, theirs = nets(student), nets(teacher)
    settings = SETTINGS.get(method)
    if message := refusal(student, teacher, method):
        with pytest.raises(InputError, match=message) as refused:
            Distiller(ours, theirs, method, settings)
        assert "\n" not in str(refused.value)
        return
    before = copy.deepcopy(theirs.state_dict())
    modes = [module.training for module in theirs.modules()]
    seen, batch = SimpleNamespace(), (BATCH["images"], BATCH["targets"])
    with Distiller(ours, theirs, method, settings) as distiller:
        distiller.train().prepare([batch])
        run = distiller.task.run

        def watched(*arguments):
            seen.student, seen.teacher, heads = run(*arguments)
            for feature in seen.student.features.values():
                feature.retain_grad()
            return seen.student, seen.teacher, heads

        distiller.task.run = watched
        optimizer = torch.optim.SGD(distiller.trainable_parameters(), lr=1e-5)
        losses = distiller(*batch)
        task = set(seen.student.losses)
        added = {name: loss for name, loss in losses.items() if name not in task}
        assert added
        assert all(loss.isfinite() for loss in losses.values()), losses
        torch.stack([*added.values()]).sum().backward()
        gradients = {name: feature.grad for name, feature in seen.student.features.items()}
        assert all(gradient is None or gradient.isfinite().all() for gradient in gradients.values())
        reached = {name for name, gradient in gradients.items() if gradient is not None and gradient.any()}
        if method in SCORES or method == "crosskd":
            assert reached, "the scores lead back to maps"
        else:
            distilled = {part for pair in distiller.method.pairs() for part in pair.student.split("+")}
            # FGFI imitates near objects: on levels whose anchors are of their size.
            assert reached & distilled if method == "fgfi" else distilled <= reached
        assert any(p.grad is not None and p.grad.any() for p in ours.backbone.parameters())
        optimizer.step()
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, before[name]), f"the teacher's {name} was touched"
    assert [module.training for module in theirs.modules()] == modes
    assert all(p.grad is None for p in theirs.parameters())


@pytest.mark.parametrize(
    ("student", "teacher"),
    [("c4", "c4-teacher"), ("fpn", "fpn-teacher"), ("mobilenet320", "fpn-teacher"), ("fpn", "c4-teacher")],
)
def test_an_adversary_of_objectness_in_bfloat16(nets, student, teacher):
    """A D a level, in full precision; two more passes of the first stage leave its norms as they are."""
    ours, theirs = nets(student), nets(teacher)
    head = ours.rpn.head
    head.conv.append(nn.BatchNorm2d(head.cls_logits.in_channels))
    try:
        settings = {**SETTINGS["ktan"], "adversary": "objectness", "loss": "wgan-gp"}
        batch, counts, seen = (BATCH["images"], BATCH["targets"]), head.conv[-1].num_batches_tracked, []
        with Distiller(ours, theirs, "ktan", settings) as distiller:
            judges = distiller.method.discriminators
            assert set(judges) == {pair.key for pair in distiller.method.pairs()}
            for judge in judges.values():
                judge.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
            distiller.train().prepare([batch])
            before = counts.item()
            with torch.autocast("cpu", torch.bfloat16):
                losses = distiller(*batch)
            assert counts.item() - before == len(outputs(distiller.method.student_spec.features))
            assert set(seen) == {torch.float32}
            assert losses["ktan_generator"].isfinite()
            losses["ktan_generator"].backward()
            assert any(p.grad is not None and p.grad.any() for p in ours.backbone.parameters())
            assert all(p.grad is None for p in head.parameters())
    finally:
        del head.conv[-1]
