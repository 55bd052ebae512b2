"""Every method's step on tensors of the device ``meta``: what mixes devices, or asks a value of one, raises there.

On a GPU the first is an error in the midst of a run, and the second makes the host wait for all that is still to do.
"""

from __future__ import annotations

import pytest
import torch

from detkt.knowledge import Dense, FeatureSpec, Knowledge, Rows, Scores, Spec, Tower
from detkt.methods import available, method_class, method_config
from detkt.methods.adversary import KINDS, LOSSES

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
    scores = Scores("regions", sigmoid, width=WIDTH)
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

    def remaining(self, classification, regression):
        rest = sum(level.sum() for level in (*classification, *regression))
        shape = (PICTURES, ANCHORS)
        return rest + torch.randn(*shape, CLASSES, device="meta"), rest + torch.randn(*shape, 4, device="meta")


@pytest.fixture
def autocast_knows_meta(monkeypatch):
    """torch.autocast has no device ``meta``: what is said of it holds for the CPU."""
    original = torch.autocast
    known = lambda device: "cpu" if device == "meta" else device  # noqa: E731
    monkeypatch.setattr(torch, "autocast", lambda device, *rest, **settings: original(known(device), *rest, **settings))


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
        updates = list(method.step(stage, student, teacher, Heads()))
        for update in updates:
            if update.losses:
                assert {loss.device.type for loss in update.losses.values()} == {"meta"}
                update.total.backward()
        assert updates or name == "fgfi"
