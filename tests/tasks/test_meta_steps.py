"""A step on tensors of the device ``meta``: what mixes devices, or asks a value of one, raises there.

On a GPU the first is an error in the midst of a run, and the second makes the host wait for all that is still to do. So
does a copy from the host that is not told to be non-blocking, which passes here: :class:`Copies` notes these.

A classifier's whole step runs: networks, Distiller, method, balance. Torchvision's detectors cannot: in training they
look at boxes, draw samples and suppress proposals, all of which ask for values. Of these pairs what goes around the
heads runs (transform, both backbones, boxes, anchors, the teacher's confidence), and every method's step on made-up
knowledge.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from run_comparison import OF_OBJECTS
from torch import Tensor
from torch.overrides import TorchFunctionMode

from detkt import Distiller
from detkt.knowledge import Dense, FeatureSpec, Knowledge, Rows, Scores, Spec, Tower
from detkt.methods import available, method_class, method_config
from detkt.methods.adversary import KINDS, LOSSES
from detkt.methods.base import Needs
from detkt.models import build_classifier

LEVELS = {"output.0": (8, 12), "output.1": (4, 6), "output.2": (2, 3)}
SETTINGS = {
    **{name: {"m": 3} for name in ("kr", "kr-dense", "kr-l1")},
    "cae": {"num_layers": 1},
    "fitnet": {"weighting": "score", "projector": "mlp", "normalize": True, "normalize_student": True},
}
PICTURES, ROWS, CLASSES, ANCHORS, WIDTH = 2, 10, 4, 96, 20
ADVERSARIES = [(adversary, loss) for adversary in KINDS for loss in LOSSES]


def spec(channels: int, sigmoid: bool = False) -> Spec:
    maps = {name: FeatureSpec(channels, *size, False) for name, size in LEVELS.items()}
    scores = Scores("regions", sigmoid, width=WIDTH, rpn_anchors=3)
    return Spec(maps, CLASSES, scores=scores, tower=Tower(channels, tuple(LEVELS.values())))


def knowledge(channels: int, grad: bool) -> Knowledge:
    """All that a method can be given, on ``meta``; what the host keeps stays there."""
    make = lambda *shape: torch.randn(*shape, device="meta", requires_grad=grad)  # noqa: E731
    maps = {name: make(PICTURES, channels, *size) for name, size in LEVELS.items()}
    dense = Dense(
        *([make(PICTURES, channels, *size) for size in LEVELS.values()] for _ in range(2)),
        torch.randn(PICTURES, ANCHORS, CLASSES, device="meta"),
        torch.randn(PICTURES, ANCHORS, 4, device="meta"),
        torch.ones(PICTURES, ANCHORS, device="meta"),
        torch.tensor(3, device="meta"),
    )
    losses = {"loss_classifier": make(1).sum(), "loss_box_reg": make(1).sum()}
    return Knowledge(
        maps,
        make(ROWS, CLASSES),
        torch.zeros(ROWS, dtype=torch.int64, device="meta"),
        losses,
        "loss_classifier",
        torch.ones(ROWS, device="meta"),
        [torch.rand(count, 4, device="meta") for count in (1, 2)],
        {name: torch.rand(*size, 3, 4, device="meta") for name, size in LEVELS.items()},
        {name: torch.rand(PICTURES, 1, *size, device="meta") for name, size in LEVELS.items()},
        dense,
        [(1.0, 0.8), (0.7, 1.0)],
    )


class Heads:
    """Heads that read a map, or a tower's, on its own device."""

    def task_losses(self, features, role):
        return {"loss": torch.stack([feature.mean() for feature in features.values()]).sum()}

    def rows(self, features, role):
        read = torch.stack([feature.mean() for feature in features.values()]).sum()
        logits, vectors = (torch.randn(ROWS, size, device="meta") + read for size in (CLASSES, WIDTH))
        return Rows(logits, torch.zeros(ROWS, dtype=torch.int64, device="meta"), vectors)

    def objectness(self, features, role):
        return {name: feature[:, :3] for name, feature in features.items()}

    def remaining(self, classification, regression):
        rest = sum(level.sum() for level in (*classification, *regression))
        shape = (PICTURES, ANCHORS)
        return rest + torch.randn(*shape, CLASSES, device="meta"), rest + torch.randn(*shape, 4, device="meta")


class Copies(TorchFunctionMode):
    """Notes what copies from the host to ``meta``, as to a GPU, and waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and result.is_meta and not kwargs.get("non_blocking"):
            # Values of Python's come by the host's memory, too, where a tensor is made of them.
            made = func in (torch.tensor, torch.as_tensor, Tensor.new_tensor) and not isinstance(args[-1], Tensor)
            moved = func in (Tensor.to, Tensor.copy_) and any(isinstance(x, Tensor) and x.is_cpu for x in args)
            if made or moved:
                self.waiting.append(f"{func.__name__} to {tuple(result.shape)}")
        return result


@pytest.fixture
def autocast_knows_meta(monkeypatch):
    """torch.autocast has no device ``meta``: what is said of it holds for the CPU."""
    known = lambda device: "cpu" if device == "meta" else device  # noqa: E731
    for name in ("autocast", "is_autocast_enabled"):
        original = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda device, *a, call=original, **s: call(known(device), *a, **s))


@pytest.mark.usefixtures("autocast_knows_meta")
@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("name", [name for name in available() if name != "none"])
def test_a_step_asks_no_value_and_mixes_no_devices(name, sigmoid):
    if sigmoid and name not in ("kd", "dkd", "dist"):
        return  # the scores of no other method depend on it
    run(name, SETTINGS.get(name), sigmoid)


@pytest.mark.usefixtures("autocast_knows_meta")
@pytest.mark.parametrize(("adversary", "loss"), ADVERSARIES)
def test_so_does_every_adversary(adversary, loss):
    run("ktan", {"adversary": adversary, "loss": loss, "r1": 1.0}, sigmoid=False)


def run(name, settings, sigmoid):
    """Every stage's step, with its backward passes."""
    with torch.device("meta"):
        method = method_class(name)(method_config(name, settings), spec(16, sigmoid), spec(24, sigmoid))
    stages = [*method.stages(), *(stage.between for stage in method.stages() if stage.between)]
    for stage in stages:
        student, teacher = knowledge(16, grad=True), knowledge(24, grad=False)
        with Copies() as copies:
            updates = list(method.step(stage, student, teacher, Heads()))
        assert not copies.waiting
        for update in updates:
            if update.losses:
                assert {loss.device.type for loss in update.losses.values()} == {"meta"}
                update.total.backward()
        assert updates or name == "fgfi"


CLASSIFIERS = [name for name in available() if name not in OF_OBJECTS]
QUICK = {
    **{name: {"paraphraser_steps": 1} for name in ("ft", "rae")},
    **{name: {"layers": ["output=layer3.0+layer3.1"]} for name in ("kr", "kr-dense", "kr-l1")},
    "cae": {"paraphraser_steps": 1, "num_layers": 1},
    "fsp": {"layers": ["layer2", "output"]},
    "ktan": {"regressor_steps": 1, "warmup_steps": 0, "adversary_every": 1},
    "dln": {"regressor_steps": 1},
}


@pytest.mark.usefixtures("autocast_knows_meta")
@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("method", CLASSIFIERS)
def test_the_whole_step_of_a_classifier(method, share):
    """With a share its gradients are looked at, too."""
    torch.manual_seed(0)
    student, teacher = build_classifier("cifar_resnet8x0.25", 10), build_classifier("cifar_resnet14x0.5", 10)
    settings = {**QUICK.get(method, {}), **({"balance": share} if share else {})}
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 3, 9, 2])
    with Distiller(student, teacher, method, settings) as distiller:
        # Not made there: of the maps that are probed a value is asked.
        distiller.train().prepare([(images, labels)])
        distiller.to("meta")
        distiller._players = None  # their optimizers are of the parameters that were on the host
        with Copies() as copies:
            losses = distiller(images, labels)
        assert not copies.waiting
        assert {loss.device.type for loss in losses.values()} == {"meta"}
        torch.stack([*losses.values()]).sum().backward()
        assert all(p.grad is not None for p in student.backbone.parameters() if p.requires_grad)


@pytest.mark.parametrize("other", ["its own size", "its own normalisation"])
@pytest.mark.parametrize("kind", ["c4", "fpn"])
def test_around_a_detectors_heads(detector, batch, kind, other):
    """Pictures come from the host, as a loader gives them; one is padded."""
    student = detector(f"fasterrcnn_resnet10x0.125_{kind}")
    sizes = {"min_size": 96, "max_size": 160} if other == "its own size" else {}
    teacher = detector(f"fasterrcnn_resnet10x0.25_{kind}", seed=1, **sizes)
    teacher.transform.image_mean = [0.5, 0.5, 0.5]
    needs = Needs.STUDENT_FEATURES | Needs.TEACHER_FEATURES | Needs.BOXES | Needs.ANCHORS | Needs.TEACHER_CONFIDENCE
    with Distiller(student, teacher, "pkd", own_size=bool(sizes)) as distiller:
        distiller.train().to("meta")
        distiller.task.run(*batch, needs)  # what is made once a device
        with Copies() as copies:
            ours, theirs, _ = distiller.task.run(*batch, needs)
            masks = [knowledge.mask(feature) for knowledge in (ours, theirs) for feature in knowledge.features.values()]
    assert not copies.waiting
    found = [*ours.features.values(), *ours.boxes, *ours.anchors.values(), *theirs.features.values(), *masks]
    assert {value.device.type for value in (*found, *theirs.confidence.values())} == {"meta"}
