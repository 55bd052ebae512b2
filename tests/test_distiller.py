"""The distiller in a user's own loop: stages, players, and networks that detkt did not build."""

from __future__ import annotations

import copy
import pickle
import weakref
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torchvision.models.detection import FasterRCNN, fasterrcnn_mobilenet_v3_large_320_fpn
from torchvision.models.detection.anchor_utils import AnchorGenerator

import detkt
from detkt.base.errors import InputError
from detkt.methods.base import STUDENT, Method, MethodConfig, Needs, Player, Stage, Update

TASK = {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}


@dataclass
class HintConfig(MethodConfig):
    weight: float = 1.0


class Hint(Method):
    """A user's own method, with a net that learns with the student; it reads a layer of each network."""

    name = "hint"
    Config = HintConfig

    def __init__(self, config, student, teacher):
        super().__init__(config, student, teacher)
        (self.pair,) = self.pairs()
        ours, theirs = self.pair_specs(self.pair)
        self.adapter = nn.Conv2d(ours.channels, theirs.channels, 1)
        self.seen = []

    def stages(self):
        return [Stage("train", Needs.STUDENT | Needs.TEACHER_FEATURES)]

    def players(self):
        return {STUDENT: Player((self.adapter,))}

    def step(self, stage, student, teacher, heads):
        ours, theirs = student.features[self.pair.student], teacher.features[self.pair.teacher]
        tensors = [*student.features.values(), *teacher.features.values(), *student.losses.values()]
        self.seen = [weakref.ref(tensor) for tensor in tensors]
        hint = (self.adapter(ours) - theirs).square().mean()
        yield Update(STUDENT, {"hint": self.config.weight * hint})


def ktan(student: nn.Module, teacher: nn.Module, **settings) -> detkt.Distiller:
    torch.manual_seed(0)
    return detkt.Distiller(student, teacher, "ktan", {"regressor_steps": 3, "warmup_steps": 2, **settings})


def parameters(module: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def same(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_loop_of_the_readme(detector, batch):
    """Losses fall on a batch seen again and again; the adversary joins after the warm-up, every fourth time."""
    student, teacher = detector(), detector("fasterrcnn_resnet10x0.25_c4", seed=1)
    loader = [batch] * 25
    torch.manual_seed(0)
    settings = {"regressor_steps": 10, "warmup_steps": 5}
    distiller = detkt.Distiller(student, teacher, method="ktan", settings=settings)
    optimizer = torch.optim.SGD(distiller.trainable_parameters(), lr=0.02, momentum=0.9)
    distiller.prepare(loader)
    history = []
    for images, targets in loader:
        losses = distiller(images, targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    assert [set(losses) for losses in history[:5]] == [TASK | {"ktan_mse"}] * 5
    assert [set(losses) for losses in history[5:]] == [TASK | {"ktan_mse", "ktan_generator"}] * 20
    assert [losses["ktan_generator"] > 0 for losses in history[5:]] == 5 * [True, False, False, False]

    def mean(steps: list[dict[str, float]], names: set[str]) -> float:
        return sum(losses[name] for losses in steps for name in names) / len(steps)

    assert mean(history[-5:], TASK) < 0.7 * mean(history[:5], TASK)
    assert mean(history[-5:], {"ktan_mse"}) < 0.7 * mean(history[:5], {"ktan_mse"})


def test_players_learn_inside_the_call(detector, batch):
    distiller = ktan(detector(), detector(seed=1))
    method, student = distiller.method, distiller.student
    judges = [parameters(method.discriminators)]
    layer = parameters(method.regressors)
    distiller.prepare([batch])
    assert same(judges[0], parameters(method.discriminators))
    assert not same(layer, parameters(method.regressors))
    layer, weights = parameters(method.regressors), parameters(student)
    for _ in range(7):  # two of warm-up, then one with the adversary and three without
        distiller(*batch)
        judges.append(parameters(method.discriminators))
    assert [not same(a, b) for a, b in zip(judges, judges[1:], strict=False)] == [0, 0, 1, 0, 0, 0, 1]
    assert same(layer, parameters(method.regressors))
    assert same(weights, parameters(student))  # the student waits for the user's optimizer
    assert all(p.grad is None for p in student.parameters())


def test_trainable_parameters(detector):
    student, teacher = detector(frozen_stages=2), detector(seed=1)
    frozen = [p for p in student.parameters() if not p.requires_grad]
    assert frozen
    distiller = ktan(student, teacher)
    trained = {id(p) for p in distiller.trainable_parameters()}
    assert trained == {id(p) for p in student.parameters()} - {id(p) for p in frozen}
    groups = distiller.player_parameters()
    assert list(groups) == [STUDENT, "regressor", "discriminator"]
    assert {id(p) for p in groups["discriminator"]} == {id(p) for p in distiller.method.discriminators.parameters()}
    hint = detkt.Distiller(student, teacher, Hint)
    assert {id(p) for p in hint.trainable_parameters()} - trained == {id(p) for p in hint.method.adapter.parameters()}


def test_a_method_of_the_users_own(detector, batch):
    student, teacher = detector(), detector("fasterrcnn_resnet10x0.25_c4", seed=1)
    distiller = detkt.Distiller(student, teacher, Hint, {"weight": 3.0, "layers": ["layer2=layer2.0.conv1"]})
    assert distiller.method.adapter.weight.shape == (32, 16, 1, 1)
    maps = [None, None]
    for place, layer in enumerate((student.backbone.layer2, teacher.backbone.layer2[0].conv1)):
        layer.register_forward_hook(lambda module, inputs, output, place=place: maps.__setitem__(place, output))
    losses = distiller(*batch)
    assert set(losses) == TASK | {"hint"}
    expected = 3 * nn.functional.mse_loss(distiller.method.adapter(maps[0]), maps[1])
    assert losses["hint"].item() == pytest.approx(expected.item())
    losses["hint"].backward()
    assert student.backbone.layer2[0].conv1.weight.grad.abs().sum() > 0
    assert student.backbone.layer3[0].conv1.weight.grad is None
    with pytest.raises(InputError, match=r"unknown key 'settings\['wait'\]' \(did you mean 'weight'"):
        detkt.Distiller(student, teacher, Hint, {"wait": 3.0})
    with pytest.raises(InputError, match="method 'hint' needs a teacher"):
        detkt.Distiller(student, None, Hint)


class Turns(Hint):
    """Notes what each batch was run as."""

    name = "turns"

    def __init__(self, config, student, teacher):
        super().__init__(config, student, teacher)
        self.runs = []

    def stages(self):
        passes, teacher = Needs.STUDENT | Needs.TEACHER_FEATURES, Needs.TEACHER_FEATURES
        return [
            Stage("prepared", teacher, ("own",), 5, every=2, between=Stage("unprepared", teacher, ())),
            Stage("first", passes, steps=2),
            Stage("whole", passes, every=3, between=Stage("between", passes)),
        ]

    def step(self, stage, student, teacher, heads):
        self.runs.append(stage.name)
        if stage.trains_student:
            yield from super().step(stage, student, teacher, heads)


def test_stages_take_turns(detector, batch):
    distiller = detkt.Distiller(detector(), detector(seed=1), Turns)
    distiller.prepare([batch])
    for _ in range(6):
        distiller(*batch)
    assert distiller.method.runs == [
        *("prepared", "unprepared", "prepared", "unprepared", "prepared"),
        *("first", "first", "whole", "between", "between", "whole"),
    ]


def test_nothing_of_a_step_is_kept(detector, batch):
    distiller = detkt.Distiller(detector(), detector(seed=1), Hint)
    losses = distiller(*batch)
    sum(losses.values()).backward()
    assert len(distiller.method.seen) == 6
    del losses
    assert [ref() for ref in distiller.method.seen] == [None] * 6


def test_plain_training_needs_neither_teacher_nor_preparation(detector, batch):
    student = detector()
    distiller = detkt.Distiller(student, method="none")
    assert distiller.teacher is None
    torch.manual_seed(1)
    expected = student(*batch)
    torch.manual_seed(1)
    losses = distiller(*batch)
    assert set(losses) == TASK
    # Batch norms have moved on between the two, but not what they normalise with in training.
    assert {k: v.item() for k, v in losses.items()} == {k: v.item() for k, v in expected.items()}


def test_detectors_of_torchvision(batch):
    """FPN of MobileNet teaches the same, and a detector put together by hand, whose pyramid has one level."""
    torch.manual_seed(0)
    options = {"min_size": 64, "max_size": 96, "box_batch_size_per_image": 16, "rpn_post_nms_top_n_train": 30}
    student, teacher = (
        fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=4, **options)
        for _ in range(2)
    )
    distiller = ktan(student, teacher, regressor_steps=1, warmup_steps=0)
    assert sorted(distiller.method.regressors) == ["output_0", "output_1", "output_pool"]
    distiller.prepare([batch])
    losses = distiller(*batch)
    assert set(losses) == TASK | {"ktan_mse", "ktan_generator"}
    assert torch.isfinite(sum(losses.values()))

    backbone = nn.Sequential(nn.Conv2d(3, 8, 7, stride=8, padding=3), nn.ReLU())
    backbone.out_channels = 8
    plain = FasterRCNN(backbone, 4, rpn_anchor_generator=AnchorGenerator(((16, 32),), ((1.0,),)), **options)
    plain.roi_heads.box_roi_pool.featmap_names = ["0"]
    with pytest.raises(InputError, match=r"of the student \(output stride 8\) has a counterpart of its stride"):
        ktan(plain, teacher)
    distiller = detkt.Distiller(plain, teacher, Hint, {"layers": ["output=body.0"]})
    assert set(distiller.method.student_spec.features) == {"output"}


def test_forward_before_prepare_is_refused(detector, batch):
    with pytest.raises(InputError, match=r"method 'ktan' has stages before the student's: call prepare\(loader\)"):
        ktan(detector(), detector(seed=1))(*batch)


def test_prepare_goes_through_the_batches_again(detector, batch):
    distiller = ktan(detector(), detector(seed=1), regressor_steps=5)
    passes = []
    distiller.teacher.backbone.register_forward_hook(lambda *_: passes.append(1))
    distiller.prepare([batch, batch])
    assert len(passes) == 5
    other = ktan(detector(), detector(seed=1), regressor_steps=5)
    with pytest.raises(InputError, match="got 2 batches but needs 5; give it a DataLoader or a list"):
        other.prepare(batch for _ in range(2))
    with pytest.raises(InputError, match="got 0 batches"):
        other.prepare([])
    found = other.prepare(batch for _ in range(5))
    assert set(found) == {f"regressor_{name}" for name in TASK}


def test_players_learn_within_an_autocast_of_the_users(detector, batch):
    """Autocast keeps half-precision copies of weights as long as it lasts: a step must do away with them."""
    adam = {"regressor_optimizer": "adam", "regressor_lr": 0.1}
    distiller = ktan(detector(), detector(seed=1), regressor_steps=4, **adam)
    maps = []
    distiller.method.regressors["output"].register_forward_hook(lambda module, inputs, output: maps.append(output))
    with torch.autocast("cpu", torch.bfloat16):
        distiller.prepare([batch])
    assert maps[0].dtype == torch.bfloat16
    assert not any(torch.equal(a, b) for a, b in zip(maps, maps[1:], strict=False))  # on one batch


def test_the_teacher_is_frozen_apart_and_goes_along(detector):
    teacher = detector(seed=1)
    distiller = ktan(detector(), teacher)
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    distiller.train()
    assert not teacher.training
    assert {name.split(".")[0] for name in distiller.state_dict()} == {"student", "method", "_extra_state"}
    assert distiller.to(torch.float64) is distiller
    for net in (teacher, distiller.student, distiller.method):
        assert {p.dtype for p in net.parameters()} == {torch.float64}


def test_students_can_be_pickled(detector):
    """torch.save of the whole model, and workers that are spawned, with hooks in place."""
    student = detector()
    distiller = detkt.Distiller(student, detector(seed=1), Hint, {"layers": ["layer2"]})
    assert distiller.method.pair.student == "layer2"
    again = pickle.loads(pickle.dumps(student))
    assert same(again.parameters(), student.parameters())


def test_wrong_use_is_refused(detector, batch):
    student, teacher = detector(), detector(seed=1)
    with pytest.raises(InputError, match="method 'ktan' needs a teacher"):
        detkt.Distiller(student)
    with pytest.raises(InputError, match=r"unknown method 'ktam' \(did you mean 'ktan'"):
        detkt.Distiller(student, teacher, "ktam")
    with pytest.raises(InputError, match=r"unknown method in the settings 'beta'"):
        detkt.Distiller(student, teacher, "ktan+dln", {"beta": 5.0})
    with pytest.raises(InputError, match="ktan and dln cannot be summed"):
        detkt.Distiller(student, teacher, "ktan+dln", {"ktan": {"beta": 5.0}})
    with pytest.raises(InputError, match="is a Linear, not a torchvision detector"):
        detkt.Distiller(student, nn.Linear(1, 1))
    distiller = ktan(student, teacher, warmup_steps=1)
    distiller.prepare([batch])
    student.eval()
    with pytest.raises(InputError, match="evaluation mode"):
        distiller(*batch)
    assert set(distiller.train()(*batch)) == TASK | {"ktan_mse"}  # the refused call was no update


def test_a_loop_of_your_own_goes_on_from_the_state_dict(detector, batch):
    """Discriminator, its optimizer and the stage come back: the next losses and weights are bit for bit the same."""

    def start():
        student, teacher = detector(), detector("fasterrcnn_resnet10x0.25_c4", seed=1)
        settings = {"regressor_steps": 1, "warmup_steps": 1, "adversary_every": 2}
        return detkt.Distiller(student, teacher, "ktan", settings).train()

    first = start()
    first.prepare([batch])
    for _ in range(3):
        first(*batch)
    kept = copy.deepcopy(first.state_dict())
    second = start()
    second.load_state_dict(kept)
    results = []
    for distiller in (first, second):
        torch.manual_seed(9)
        losses = distiller(*batch)
        weights = [p.detach().clone() for p in distiller.method.discriminators.parameters()]
        results.append(({name: loss.item() for name, loss in losses.items()}, weights))
    assert "ktan_generator" in results[0][0]
    assert results[0][0] == results[1][0]
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))
