"""The library in other people's loops: it learns what the trainer learns, and leaves both nets as they came."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from torch.nn.utils import parameters_to_vector
from torchvision.models import resnet18
from torchvision.models.detection import (
    FasterRCNN,
    fasterrcnn_mobilenet_v3_large_fpn,
    fasterrcnn_resnet50_fpn,
    fcos_resnet50_fpn,
    keypointrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn,
    retinanet_resnet50_fpn,
    ssd300_vgg16,
    ssdlite320_mobilenet_v3_large,
)
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.resnet import BasicBlock, ResNet

import detkt
from detkt.base.errors import InputError
from detkt.data import training_set
from detkt.data.loading import EndlessBatches, training_loader
from detkt.distiller import Distiller
from detkt.engine.trainer import Trainer
from detkt.methods.base import STUDENT, Method, MethodConfig, Needs, Player, Stage, Update
from detkt.methods.players import schedule_factor
from detkt.models import load_model

SMALL = {"min_size": 96, "max_size": 128, "box_batch_size_per_image": 8, "rpn_post_nms_top_n_train": 20}
UNTRAINED = {"weights": None, "weights_backbone": None, "num_classes": 4}
FAST = {"regressor_steps": 1, "warmup_steps": 0}


def rcnn(cls=FasterRCNN, seed: int = 0, **options) -> FasterRCNN:
    """A small detector put together of torchvision's own parts: batch norms that learn, a pyramid of five levels."""
    torch.manual_seed(seed)
    body = BackboneWithFPN(
        ResNet(BasicBlock, [1] * 4), {f"layer{i + 1}": str(i) for i in range(4)}, [64, 128, 256, 512], 32
    )
    parts = {"box_head": TwoMLPHead(32 * 49, 64), "box_predictor": FastRCNNPredictor(64, 4)}
    return cls(body, None, **parts, **{**SMALL, **options})


def pictures():
    torch.manual_seed(0)
    boxes = torch.tensor([[10.0, 12, 80, 90], [60, 40, 150, 140]])
    targets = [{"boxes": boxes, "labels": torch.tensor([1, 2])} for _ in range(2)]
    return [torch.rand(3, 160, 200), torch.rand(3, 160, 160)], targets


def state(*modules: nn.Module) -> list[torch.Tensor]:
    return [tensor.clone() for module in modules for tensor in module.state_dict().values()]


def same(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# The trainer and a loop of one's own

METHODS = {
    "ktan": {"regressor_steps": 3, "warmup_steps": 2, "discriminator_width": 8, "adversary_every": 2},
    "ft": {"paraphraser_steps": 3},
    "kdgan": {},
    "ktan+kd": {"ktan": {"regressor_steps": 3, "warmup_steps": 2, "discriminator_width": 8, "adversary_every": 2}},
}


@pytest.mark.parametrize("method", METHODS)
def test_a_loop_of_ones_own_learns_what_the_trainer_learns(tiny_config, tmp_path, method):
    """The same batches and settings give the same weights bit for bit: student, players, batch norms."""
    settings = METHODS[method]
    config = tiny_config("train.milestones=[0.5]", "train.gamma=0.2", "train.warmup_steps=3")
    train, dataset = config.train, training_set(config.data)

    def distiller() -> Distiller:
        torch.manual_seed(5)
        student = load_model(config.student.checkpoint or config.teacher.checkpoint)[0]
        return Distiller(student, load_model(config.teacher.checkpoint)[0], method, settings)

    ours = distiller()
    torch.manual_seed(7)
    trainer = Trainer(ours, dataset, train, tmp_path, quiet=True)
    trainer.fit()

    own = distiller().train()
    torch.manual_seed(7)
    groups = dataset.aspect_groups if train.group_by_aspect else None
    order = EndlessBatches(len(dataset), train.batch_size, train.seed, groups=groups)
    loader = iter(training_loader(dataset, order, 0, pin_memory=False))
    optimizer = torch.optim.SGD(
        own.trainable_parameters(), trainer.learning_rate, train.momentum, weight_decay=train.weight_decay
    )
    warmup = trainer.warmup_steps
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: schedule_factor(step, trainer.student_steps, train.milestones, train.gamma, warmup),
    )
    own.follow(optimizer)
    own.prepare(loader)
    for _ in range(trainer.student_steps):
        losses = own(*next(loader))
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(own.trainable_parameters(), train.clip_norm)
        optimizer.step()
        schedule.step()
    theirs = {name: value for name, value in ours.state_dict().items() if not name.endswith("_extra_state")}
    found = own.state_dict()
    assert len(theirs) > 20
    assert [name for name, value in theirs.items() if not torch.equal(value, found[name])] == []


class Follower(Method):
    """A net of its own that must not outpace the student, after two updates of the student's alone."""

    name = "follower"

    def __init__(self, config, student, teacher):
        super().__init__(config, student, teacher)
        self.own = nn.Linear(1, 1, bias=False)
        self.turns = []

    def stages(self):
        passes = Needs.STUDENT | Needs.TEACHER_FEATURES
        return [Stage("alone", passes, steps=2), Stage("both", passes, (STUDENT, "own"))]

    def players(self):
        return {"own": Player((self.own,), lr=0.5, momentum=0.0, clip_norm=None, scheduled=True)}

    def step(self, stage, student, teacher, heads):
        self.turns.append(stage.name)
        if stage.name == "both":
            yield Update("own", {"own": self.own(torch.ones(1)).sum()}, {"seen": torch.tensor(3.0)})


def test_rates_of_players_follow_the_students(detector, batch):
    distiller = Distiller(detector(), detector(seed=1), Follower)
    optimizer = torch.optim.SGD(distiller.trainable_parameters(), lr=0.01)
    weights = [distiller.method.own.weight.item()]
    for rate in (0.01, 0.01, 0.01, 0.004, 0.001):
        optimizer.param_groups[0]["lr"] = rate
        sum(distiller(*batch).values()).backward()
        optimizer.step()
        weights.append(distiller.method.own.weight.item())
    steps = [a - b for a, b in zip(weights, weights[1:], strict=False)]
    assert steps == pytest.approx([0, 0, 0.5, 0.2, 0.05], abs=1e-6)
    distiller(*batch, progress=0.2)
    distiller(*batch, progress=0.8)
    assert weights[-1] - distiller.method.own.weight.item() == pytest.approx(0.5 + 0.05, abs=1e-6)
    assert distiller.metrics["seen"] == 3
    assert distiller.metrics["own"].item() == pytest.approx(distiller.method.own.weight.item() + 0.05, abs=1e-6)
    with pytest.raises(InputError, match="this optimizer does not train the student"):
        distiller.follow(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1))


def test_updates_are_counted_and_not_parts_or_validations(detector, batch):
    distiller = Distiller(detector(), detector(seed=1), Follower)
    optimizer = torch.optim.SGD(distiller.trainable_parameters(), lr=0.01)
    for call in range(8):
        sum(distiller(*batch).values()).backward()
        if call % 4 == 3:
            with torch.no_grad():
                assert set(distiller(*batch)) >= {"loss_classifier"}
            optimizer.step()
    distiller(*batch)
    turns = distiller.method.turns
    assert turns == ["alone"] * 10 + ["both"]
    weight = distiller.method.own.weight.item()
    with torch.no_grad():
        distiller(*batch)
    assert distiller.method.own.weight.item() == weight


def test_players_step_with_the_last_part_where_parts_are_told(detector, batch):
    distiller = Distiller(detector(), detector(seed=1), Follower, accumulate=2)
    weights = [distiller.method.own.weight.item()]
    for _ in range(7):
        distiller(*batch)
        weights.append(distiller.method.own.weight.item())
    steps = [a - b for a, b in zip(weights, weights[1:], strict=False)]
    # Two updates of two parts alone, then the mean of both parts' gradients with every second call.
    assert steps == pytest.approx([0, 0, 0, 0, 0, 0.5, 0], abs=1e-6)
    with pytest.raises(InputError, match="accumulate is 0"):
        Distiller(detector(), detector(seed=1), Follower, accumulate=0)


@pytest.mark.parametrize("method", ["at", "ktan"])
def test_a_validation_loss_is_no_update(method):
    distiller = Distiller(rcnn(), rcnn(seed=1), method, FAST if method == "ktan" else None).train()
    distiller.prepare([pictures()])
    before = state(distiller.method)
    with torch.no_grad():
        losses = distiller(*pictures())
    assert len(losses) > 4
    assert same(before, state(distiller.method))
    assert distiller._student_updates == 0


def test_resume_then_prepare_trains_no_stage_again():
    def new() -> Distiller:
        torch.manual_seed(0)
        return Distiller(rcnn(), rcnn(seed=1), "ktan", {"regressor_steps": 2, "warmup_steps": 0}).train()

    first, second = new(), new()
    assert first.prepare([pictures()])
    assert first.prepare([pictures()]) == {}
    first(*pictures())
    second.load_state_dict(load(save(first.state_dict())))  # as Accelerate saves it
    assert second.prepare([pictures()]) == {}
    assert same(state(first.method), state(second.method))
    assert second._student_updates == 1
    torch.manual_seed(3)
    first(*pictures())
    torch.manual_seed(3)
    second(*pictures())
    assert same(state(first.method), state(second.method))  # the players' optimizers came along


def test_players_losses_and_metrics_reach_the_caller():
    distiller = Distiller(rcnn(), rcnn(seed=1), "ktan", FAST).train()
    assert set(distiller.prepare([pictures()])) == {
        f"regressor_{name}" for name in ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg")
    }
    losses = distiller(*pictures())
    assert {"discriminator", "discriminator_accuracy_teacher", "feature_mse", "generator_loss"} <= set(
        distiller.metrics
    )
    assert not set(distiller.metrics) & set(losses)
    assert not any(value.requires_grad for name, value in distiller.metrics.items() if name == "discriminator")


# Both nets as they came


def hooks(*nets: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for net in nets for part in net.modules())


def let_go(distiller: Distiller) -> None:
    distiller.close()


def drop(distiller: Distiller) -> None:
    """The caller's own reference goes with this frame."""


@pytest.mark.parametrize("end", [let_go, drop])
@pytest.mark.parametrize("method", ["ktan", "kd", "fitnet"])
def test_both_nets_are_left_as_they_came(end, method):
    student, teacher = rcnn().train(), rcnn(seed=1).train()
    teacher.backbone.body.conv1.weight.requires_grad_(False)
    modes, gradients = [[f(x) for net in (student, teacher) for x in g(net)] for f, g in PARTS]
    names, order = list(student.state_dict()), [p.stride() for p in student.parameters()]

    def use() -> None:
        distiller = Distiller(student, teacher, method, FAST if method == "ktan" else None)
        distiller.prepare([pictures()])
        sum(distiller(*pictures()).values()).backward()
        assert hooks(student, teacher) == 0, "also between two passes"
        assert not any(p.requires_grad for p in teacher.parameters())
        end(distiller)

    use()
    gc.collect()
    assert [[f(x) for net in (student, teacher) for x in g(net)] for f, g in PARTS] == [modes, gradients]
    assert [list(student.state_dict()), [p.stride() for p in student.parameters()]] == [names, order]
    assert hooks(student, teacher) == 0
    again = pickle.loads(pickle.dumps(student))
    assert same(state(again), state(student))
    assert len(save(student.state_dict())) > 1000
    assert parameters_to_vector(student.parameters()).numel() == sum(p.numel() for p in student.parameters())
    torch.jit.script(student.eval())
    copy.deepcopy(student).double()([torch.rand(3, 96, 128, dtype=torch.float64)])


PARTS = [(lambda module: module.training, nn.Module.modules), (lambda p: p.requires_grad, nn.Module.parameters)]


def test_the_student_can_be_saved_between_two_steps():
    student = rcnn().train()
    distiller = Distiller(student, rcnn(seed=1), "at")
    distiller(*pictures())
    assert b"detkt" not in pickle.dumps(student)
    assert len(save(student.state_dict())) > 1000
    assert parameters_to_vector(student.parameters()).dim() == 1


def test_a_refused_distiller_leaves_both_nets_too():
    student, teacher = rcnn(), rcnn(seed=1)
    with pytest.raises(InputError, match="needs two or more"):
        Distiller(student, teacher, "fsp", {"layers": ["body.layer1"]})
    assert all(p.requires_grad for p in teacher.parameters())
    assert teacher.training


def test_a_closed_distiller_says_so():
    with Distiller(rcnn(), rcnn(seed=1), "at") as distiller:
        distiller(*pictures())
    with pytest.raises(InputError, match="this distiller is closed"):
        distiller(*pictures())


def test_two_distillers_in_a_row_see_their_own_layers():
    student, teacher = rcnn(), rcnn(seed=1)
    for layers in ([], ["body.layer2"], ["body.layer1", "body.layer3"]):
        with Distiller(student, teacher, "fitnet", {"layers": layers}) as distiller:
            assert distiller(*pictures())["fitnet"].isfinite()


def test_compiled_backbones_reveal_their_layers_in_a_row():
    for layers in ([], ["body.layer2"]):
        student = rcnn()
        student.backbone.compile(backend="eager")
        distiller = Distiller(student, rcnn(seed=1), "fitnet", {"layers": layers}).train()
        for _ in range(2):
            assert distiller(*pictures())["fitnet"].isfinite()
        distiller.close()
        assert hooks(student) == 0


def test_a_shared_backbone_is_refused():
    student, teacher = rcnn(), rcnn(seed=1)
    teacher.backbone = student.backbone
    with pytest.raises(InputError, match="share a parameter.*would freeze the student"):
        Distiller(student, teacher, "at")
    assert all(p.requires_grad for p in student.parameters())


def test_the_teacher_stays_in_evaluation_mode():
    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = rcnn(seed=1)
            self.distiller = Distiller(rcnn(), self.teacher, "fitnet")

    mine = Mine().train()
    before = state(mine.teacher)
    mine.distiller(*pictures())
    assert same(before, state(mine.teacher))


def test_a_student_in_evaluation_mode_is_refused_before_anything_is_trained():
    distiller = Distiller(rcnn().eval(), rcnn(seed=1), "ktan", FAST)
    before = state(distiller.method)
    with pytest.raises(InputError, match="the student is in evaluation mode"):
        distiller.prepare([pictures()])
    assert same(before, state(distiller.method))


# Detectors of all kinds


def test_levels_are_paired_by_stride_and_never_by_name():
    student = fasterrcnn_mobilenet_v3_large_fpn(**UNTRAINED, **SMALL)
    teacher = fasterrcnn_resnet50_fpn(**UNTRAINED, **SMALL)
    for ours, theirs in ((student, teacher), (teacher, student)):
        with Distiller(ours, theirs, "fitnet") as distiller:
            pairs = distiller.method.pairs()
            heights = [[spec.height for spec in distiller.method.pair_specs(pair)] for pair in pairs]
            assert len(pairs) == 2
            assert all(a == b for a, b in heights)
            assert sum(distiller.train()(*pictures()).values()).isfinite()


@pytest.mark.parametrize("kind", ["mask", "keypoint"])
def test_teachers_with_other_heads_give_box_losses_on_box_targets(kind):
    student = rcnn()
    if kind == "mask":
        teacher = maskrcnn_resnet50_fpn(**UNTRAINED, **SMALL)
    else:
        teacher = keypointrcnn_resnet50_fpn(**{**UNTRAINED, "num_classes": 2}, **SMALL)
        student.roi_heads.box_predictor = FastRCNNPredictor(64, 2)
    with Distiller(student, teacher, "ktan", FAST) as distiller:
        images, targets = pictures()
        targets = [{**target, "labels": torch.ones(2, dtype=torch.int64)} for target in targets]
        found = distiller.train().prepare([(images, targets)])
        assert set(found) == {f"regressor_{name}" for name in BOX_LOSSES}
        assert sum(distiller(images, targets).values()).isfinite()
    assert getattr(teacher.roi_heads, f"{kind}_roi_pool") is not None


BOX_LOSSES = ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg")


def test_the_students_own_forward_and_hooks_are_honoured():
    class Mine(FasterRCNN):
        def forward(self, images, targets=None):
            losses = super().forward(images, targets)
            return {**losses, "mine": 2 * losses["loss_classifier"]} if self.training else losses

    student, called = rcnn(Mine), []
    student.backbone.register_forward_hook(lambda *_: called.append("backbone"))
    student.rpn.register_forward_pre_hook(lambda *_: called.append("rpn"))
    with Distiller(student, rcnn(seed=1), "at") as distiller:
        called.clear()
        losses = distiller.train()(*pictures())
    assert losses["mine"].item() == pytest.approx(2 * losses["loss_classifier"].item())
    assert called == ["backbone", "rpn"]


class PlainTransform(nn.Module):
    """A transform without a size or a normalisation."""

    def forward(self, images, targets=None):
        batch = torch.stack([nn.functional.interpolate(image[None], (128, 160))[0] for image in images])
        return ImageList(batch, [(128, 160)] * len(images)), targets


class OwnPredictor(nn.Module):
    """A predictor without ``cls_score``."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(64, classes), nn.Linear(64, 4 * classes)

    def forward(self, x):
        return self.a(x.flatten(1)), self.b(x.flatten(1))


@pytest.mark.parametrize("method", ["at", "kd"])
def test_parts_of_ones_own(method):
    student, teacher = rcnn(), rcnn(seed=1)
    student.transform, teacher.transform = PlainTransform(), PlainTransform()
    student.roi_heads.box_predictor = OwnPredictor()
    with Distiller(student, teacher, method) as distiller:
        assert distiller.method.student_spec.num_classes == 4
        assert distiller.train()(*pictures())[method].isfinite()
        student.roi_heads.box_predictor = FastRCNNPredictor(64, 4)
        assert distiller(*pictures())[method].isfinite()


def test_double_precision():
    images, targets = pictures()
    images = [image.double() for image in images]
    targets = [{"boxes": t["boxes"].double(), "labels": t["labels"]} for t in targets]
    with Distiller(rcnn().double(), rcnn(seed=1).double(), "fitnet") as distiller:
        losses = distiller.train()(images, targets)
    assert losses["fitnet"].dtype == torch.float64
    assert sum(losses.values()).isfinite()


ONE_STAGE = {
    "retinanet": lambda: retinanet_resnet50_fpn(**UNTRAINED, min_size=96, max_size=128),
    "fcos": lambda: fcos_resnet50_fpn(**UNTRAINED, min_size=96, max_size=128),
    "ssd": lambda: ssd300_vgg16(**UNTRAINED),
    "ssdlite": lambda: ssdlite320_mobilenet_v3_large(**UNTRAINED),
}


@pytest.mark.parametrize("name", ONE_STAGE)
def test_detectors_of_one_stage_learn_from_features(name):
    images, targets = pictures()
    student, teacher = ONE_STAGE[name](), rcnn(seed=1)
    torch.manual_seed(1)
    expected = student.train()(images, targets)
    with Distiller(student, teacher, "fitnet") as distiller:
        torch.manual_seed(1)
        losses = distiller.train()(images, targets)
        assert {name: loss.item() for name, loss in losses.items() if name != "fitnet"} == pytest.approx(
            {name: loss.item() for name, loss in expected.items()}, rel=1e-5
        )
        losses["fitnet"].backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.backbone.parameters())
    with pytest.raises(InputError, match="method 'kd' compares the class scores of regions.*student.*one stage"):
        Distiller(student, teacher, "kd")
    with Distiller(student, None, "none") as distiller:
        assert set(distiller(images, targets)) == set(expected)


def test_a_detector_of_one_stage_reads_a_map_with_its_own_head():
    """KTAN's first stage: the teacher's regressed maps through the head of the student, or of the teacher."""
    student, teacher = (ONE_STAGE["retinanet"]() for _ in range(2))
    with Distiller(student, teacher, "ktan", FAST) as distiller:
        found = distiller.train().prepare([pictures()])
        assert set(found) == {"regressor_classification", "regressor_bbox_regression"}
        assert sum(distiller(*pictures()).values()).isfinite()


# Classifiers as they are


class Tokens(nn.Module):
    """A transformer: patches, attention, a class score; its output is an object that has logits."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 16, stride=16)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 10)

    def forward(self, images):
        tokens = self.block(self.patches(images).flatten(2).mT)
        return type("Output", (), {"logits": self.head(tokens.mean(1))})()


def test_raw_classifiers_are_taken_as_they_are():
    torch.manual_seed(0)
    student, teacher = resnet18(num_classes=10), resnet18(num_classes=10)
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([1, 2, 3, 4])
    expected = nn.functional.cross_entropy(copy.deepcopy(student).train()(images), labels)
    for method in ("kd", "at", "ktan"):
        settings = FAST if method == "ktan" else None
        with Distiller(student, teacher, method, settings, image_size=64) as distiller:
            assert distiller.method.student_spec.features["output"].channels == 512
            distiller.train().prepare([(images, labels)])
            losses = distiller(images, labels)
            assert sum(losses.values()).isfinite()
        if method == "kd":
            assert losses["cross_entropy"].item() == pytest.approx(0.1 * expected.item(), rel=1e-5)


def test_transformers_teach_by_scores():
    torch.manual_seed(0)
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([1, 2, 3, 4])
    with Distiller(resnet18(num_classes=10), Tokens(), "kd", image_size=64) as distiller:
        assert distiller.method.teacher_spec.features == {}
        assert distiller.train()(images, labels)["kd"] > 0
    with pytest.raises(InputError, match="has no counterpart|no map"):
        Distiller(resnet18(num_classes=10), Tokens(), "at", image_size=64)


# Messages


def test_wrong_arguments_are_told_as_arguments():
    student, teacher = rcnn(), rcnn(seed=1)
    for arguments, message in (
        ((student, teacher, None), "method must be a name such as 'ktan', or a subclass of detkt.Method, not None"),
        ((student, teacher, "at", "weight=3"), "settings must be a dict of the method's settings, not 'weight=3'"),
        ((student, teacher, 7), "method must be a name"),
        (("student", teacher), "the student must be a network"),
        ((student, "teacher"), "the teacher must be a network"),
    ):
        with pytest.raises(InputError, match=message):
            Distiller(*arguments)
    images, targets = pictures()
    distiller = Distiller(student, teacher, "at").train()
    for given, message in (
        (None, "targets must be a list of dicts with 'boxes'"),
        ([{"boxes": torch.zeros(0, 4)}] * 2, "target 0 of the batch has no tensor 'labels'"),
        (targets[:1], "the batch has 2 pictures but 1 targets"),
    ):
        with pytest.raises(InputError, match=message):
            distiller(images, given)


def test_the_lazy_face_has_the_class():
    assert detkt.Distiller is Distiller
    assert issubclass(MethodConfig, object)
