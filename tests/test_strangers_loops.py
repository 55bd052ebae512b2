"""What strangers do with a distiller: their optimizers, copies, wrappers, interruptions and wrong arguments."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref

import pytest
import timm
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR
from torchvision.models import DenseNet, SwinTransformer, resnet18
from torchvision.models.detection import maskrcnn_resnet50_fpn

from detkt.base.errors import InputError
from detkt.distiller import Distiller, settings_told_as_keys
from detkt.tasks.detectors import Detector

KTAN = {"regressor_steps": 1, "warmup_steps": 0, "discriminator_width": 8}


@pytest.fixture
def make(detector):
    """A distiller of two small detectors, in training mode."""

    def build(method="at", settings=None, **options) -> Distiller:
        return Distiller(detector(), detector(seed=1), method, settings, **options).train()

    return build


def state(net: nn.Module) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in net.state_dict().values()]


def same(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# Optimizers


def step(distiller, batch, *optimizers) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad()
    sum(distiller(*batch).values()).backward()
    for optimizer in optimizers:
        optimizer.step()


def test_updates_are_counted_whatever_the_optimizers_hold(make, batch):
    distiller = make()
    heads = [*distiller.student.rpn.parameters(), *distiller.student.roi_heads.parameters()]
    only_heads, backbone = SGD(heads, 1e-3), SGD(distiller.student.backbone.parameters(), 1e-3)
    for done in (1, 2):
        step(distiller, batch, only_heads)
        assert distiller._student_updates == done
    step(distiller, batch, only_heads, backbone)
    assert distiller._student_updates == 3, "two optimizers step once a call"
    anew = SGD(distiller.trainable_parameters(), 1e-3)
    step(distiller, batch, anew)
    assert distiller._student_updates == 4, "the old one is alive still"
    step(distiller, batch, SGD([nn.Parameter(torch.zeros(1))], 1e-3))
    assert distiller._student_updates == 4
    anew.step()
    anew.step()
    assert distiller._student_updates == 5, "no step without a call is an update"


def test_no_player_outpaces_its_own_rate(make, batch):
    """A warm-up by hand, and one whose first rate is a 25th of its highest."""
    distiller = make()
    optimizer, factors = SGD(distiller.trainable_parameters(), 0.01), []
    for rate in (1e-5, 5e-3, 1e-2, 1e-3):
        optimizer.param_groups[0]["lr"] = rate
        step(distiller, batch, optimizer)
        factors.append(distiller._rate_factor(None))
    assert factors == pytest.approx([1, 1, 1, 0.1])
    distiller = make()
    optimizer = SGD(distiller.trainable_parameters(), 0.01)
    OneCycleLR(optimizer, 0.1, total_steps=10)
    step(distiller, batch, optimizer)
    assert distiller._rate_factor(None) == pytest.approx(1 / 25)


def test_the_rate_goes_on_where_a_state_is_loaded(make, batch):
    first, second = make(), make()
    ours = SGD(first.trainable_parameters(), 0.01)
    for rate in (0.01, 0.001):
        ours.param_groups[0]["lr"] = rate
        step(first, batch, ours)
    theirs = SGD(second.trainable_parameters(), 0.01)
    theirs.load_state_dict(ours.state_dict())
    second.load_state_dict(first.state_dict())
    assert second._rate_factor(None) == pytest.approx(0.1)
    step(second, batch, theirs)
    assert second._rate_factor(None) == pytest.approx(0.1)


# Copies, ends


def test_a_copy_is_a_distiller_of_its_own(make, batch):
    distiller = make("ktan", KTAN)
    distiller.prepare([batch])
    optimizer = SGD(distiller.trainable_parameters(), 1e-3)
    step(distiller, batch, optimizer)
    assert not any(value.requires_grad for value in distiller.metrics.values())
    again = copy.deepcopy(distiller)
    step(again, batch, SGD(again.trainable_parameters(), 1e-3))
    assert [distiller._student_updates, again._student_updates] == [1, 2]
    again.close()
    assert all(p.requires_grad for p in again.teacher.parameters())
    assert not any(p.requires_grad for p in distiller.teacher.parameters())
    step(distiller, batch, optimizer)


def test_a_saved_distiller_goes_on(make, batch):
    distiller = make("kdgan")
    step(distiller, batch, SGD(distiller.trainable_parameters(), 1e-3))
    file = io.BytesIO()
    torch.save(distiller, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    step(again, batch, SGD(again.trainable_parameters(), 1e-3))
    assert again._student_updates == 2
    again.close()
    assert pickle.loads(pickle.dumps(again))._closed


def test_a_teacher_of_two_is_frozen_until_the_last_is_closed(detector, batch):
    teacher = detector(seed=1).train()
    teacher.rpn.eval()
    first, second = (Distiller(detector(), teacher, "at").train() for _ in range(2))
    first.close()
    first.close()
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not teacher.training
    assert second(*batch)["at"].isfinite()
    second.close()
    assert all(p.requires_grad for p in teacher.parameters())
    assert [teacher.training, teacher.rpn.training, teacher.backbone.training] == [True, False, True]


@pytest.mark.filterwarnings("error")
def test_a_distiller_in_a_cycle_is_collected(detector):
    student, teacher = detector(), detector(seed=1)
    student.mine = [Distiller(student, teacher, "at")]
    seen = [weakref.ref(student), weakref.ref(student.mine[0])]
    del student
    gc.collect()
    assert [ref() for ref in seen] == [None, None]
    assert all(p.requires_grad for p in teacher.parameters())


def test_an_error_in_the_midst_of_a_pass_leaves_no_trace(make, batch):
    distiller = make("ktan", KTAN)
    distiller.prepare([batch])
    student, teacher = distiller.student, distiller.teacher

    def stop(*_):
        raise KeyboardInterrupt

    parts = (student.backbone, student.rpn, student.roi_heads.box_head, teacher.backbone, distiller.method)
    for part in parts:
        handle = next(reversed([module for module in part.modules() if not list(module.children())]))
        handle = handle.register_forward_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            distiller(*batch)
        handle.remove()
        gc.collect()
        hooks = [module for net in (student, teacher) for module in net.modules() if module._forward_hooks]
        assert hooks == []
        assert type(student.transform).__module__.startswith("torchvision")
        assert isinstance(student.transform.image_mean, list)
        assert all(p.requires_grad for p in distiller.method.parameters())
    pickle.dumps(student)
    assert sum(distiller(*batch).values()).isfinite()


# Modes, wrappers, precisions


def test_a_validation_loss_of_a_student_in_evaluation_mode(make, batch):
    """The losses come, batch norms do not learn, and every part stays in its mode."""
    distiller = make("at").eval()
    before = state(distiller)
    with torch.no_grad():
        losses = distiller(*batch)
    assert {"loss_classifier", "loss_rpn_box_reg", "at"} <= set(losses)
    assert sum(losses.values()).isfinite()
    assert same(before, state(distiller))
    assert not any(module.training for module in distiller.student.modules())
    with pytest.raises(InputError, match=r"evaluation mode.*needs torch.no_grad\(\)"):
        distiller(*batch)
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([1, 2])
    student = resnet18(num_classes=5)
    distiller = Distiller(student, resnet18(num_classes=5), "at", image_size=64).eval()
    with torch.no_grad():
        found = distiller(images, labels)["cross_entropy"].item()
        assert found == pytest.approx(nn.functional.cross_entropy(student(images), labels).item(), rel=1e-5)


def test_compiled_nets_are_the_nets(detector, batch):
    student, teacher = detector(), detector(seed=1)
    with Distiller(*(torch.compile(net, backend="eager") for net in (student, teacher)), "at") as distiller:
        assert [distiller.student, distiller.teacher] == [student, teacher]
        assert distiller.train()(*batch)["at"].isfinite()
    settings = {"layers": ["layer2"]}
    with Distiller(student, teacher, "fitnet", settings) as distiller:
        torch.manual_seed(0)
        expected = distiller.train()(*batch)["fitnet"].item()
        weights = distiller.method.state_dict()
    student.backbone = torch.compile(student.backbone, backend="eager")
    with Distiller(student, teacher, "fitnet", settings) as distiller:
        distiller.method.load_state_dict(weights)
        assert distiller.train()(*batch)["fitnet"].item() == pytest.approx(expected, rel=1e-4)


def test_wrapped_nets(detector):
    student, teacher = detector(), detector(seed=1)
    with pytest.raises(InputError, match="student is wrapped in DataParallel: give the network itself, and wrap the d"):
        Distiller(nn.DataParallel(student), teacher, "at")
    with Distiller(student, nn.DataParallel(teacher), "at") as distiller:
        assert distiller.teacher is teacher


def test_precisions_that_cannot_work_are_told(detector):
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(InputError, match="the student is in torch.*float16, in which.*torch.autocast"):
            Distiller(detector().to(dtype), None, "none")
    with pytest.raises(InputError, match="the student is in torch.float64 and the teacher in torch.float32"):
        Distiller(detector().double(), detector(seed=1), "at")


def test_pictures_come_into_the_students_precision(detector, batch):
    with Distiller(detector().double(), detector(seed=1).double(), "at") as distiller:
        assert distiller.train()(*batch)["at"].dtype == torch.float64


def test_a_mask_head_needs_masks(detector):
    options = {"weights": None, "weights_backbone": None, "num_classes": 4, "min_size": 64, "max_size": 96}
    student = maskrcnn_resnet50_fpn(**options)
    images, box = [torch.rand(3, 64, 64)], torch.tensor([[5.0, 5, 50, 50]])
    targets = [{"boxes": box, "labels": torch.tensor([1])}]
    with Distiller(student, None, "none") as distiller:
        with pytest.raises(InputError, match="the student has a mask head, but not every target has 'masks'"):
            distiller.train()(images, targets)
        assert student.roi_heads.mask_roi_pool is not None
        masks = torch.ones(1, 64, 64, dtype=torch.uint8)
        assert "loss_mask" in distiller(images, [{**targets[0], "masks": masks}])


# Classifiers


def test_a_net_that_writes_into_its_last_map(make):
    """DenseNet applies its last ReLU in place."""
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([1, 2])
    student, teacher = (DenseNet(8, (2, 2, 2), 16, num_classes=5) for _ in range(2))
    with Distiller(student, teacher, "ktan", KTAN, image_size=64) as distiller:
        distiller.train().prepare([(images, labels)])
        losses = distiller(images, labels)
        sum(losses.values()).backward()
        assert losses["ktan_mse"].isfinite()


def test_channels_last_is_no_map():
    """The norm of timm's Swin gives (N, H, W, C); torchvision's Swin turns it into a map."""
    options = {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 2)}
    swin = timm.create_model("swin_tiny_patch4_window7_224", num_classes=5, **options)
    student = resnet18(num_classes=5)
    with Distiller(student, swin, "kd", image_size=64) as distiller:
        assert distiller.method.teacher_spec.features == {}
    swin = SwinTransformer([4, 4], 16, [1, 1], [2, 2], [4, 4], num_classes=5)
    with Distiller(student, swin, "kd", image_size=64) as distiller:
        assert distiller.method.teacher_spec.features["output"].channels == 32


class Two(nn.Module):
    """A net that gives two scores in training."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))

    def forward(self, images):
        scores = self.net(images)
        return (scores, scores) if self.training else scores


def test_scores_of_another_form_in_training_are_told():
    with (
        Distiller(Two(), None, "none", image_size=16) as distiller,
        pytest.raises(InputError, match=r"the student gives tuple, not class logits \(N, K\)"),
    ):
        distiller.train()(torch.rand(2, 3, 16, 16), torch.tensor([1, 2]))


# Wrong arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"accumulate": "2"}, "accumulate is '2': it must be a whole number"),
        ({"student_classes": "cat"}, "student_classes must be a list of class names, not 'cat'"),
        ({"teacher_classes": 3}, "teacher_classes must be a list of class names, not 3"),
        ({"method": "at", "settings": {"wait": 1}}, r"unknown key 'settings\['wait'\]' \(did you mean 'weight'\?\)"),
        ({"method": "kd", "settings": {"alpha": 2}}, r"^settings\['alpha'\] is 2.0: it must be"),
        ({"method": "at+kd", "settings": {"kd": {"alpha": 2}}}, r"^settings\['kd'\]\['alpha'\] is 2.0: it must be"),
        ({"method": "kd", "settings": {"layers": ["layer2"]}}, r"^settings\['layers'\]: kd reads class scores"),
        ({"teacher": nn.Identity()}, "the teacher is a Identity without parameters"),
    ],
)
def test_arguments_that_cannot_be(detector, arguments, message):
    given = {"student": detector(), "teacher": detector(seed=1), "method": "at", **arguments}
    with pytest.raises(InputError, match=message):
        Distiller(**given)
    with pytest.raises(InputError) as caught, settings_told_as_keys():
        Distiller(**given)
    assert "settings[" not in str(caught.value)


@pytest.mark.parametrize("size", ["x", (3,), (16, "a"), 0, -4, 2.5])
def test_sizes_that_cannot_be(size):
    with pytest.raises(InputError, match="^image_size is .*: it must be a side in pixels, or height and width"):
        Distiller(resnet18(), None, "none", image_size=size)


def test_detectors_batches_that_cannot_be(make, batch):
    distiller = make()
    images, targets = batch
    integers = [{**target, "labels": target["labels"].int()} for target in targets]
    for given, message in (
        ((None, targets), "images must be a list of tensors"),
        (([], []), "images must be a list of tensors .* one or more"),
        (([(image * 255).byte() for image in images], targets), "picture 0 of the batch is .* of torch.uint8"),
        (([image.numpy() for image in images], targets), "picture 0 of the batch is ndarray"),
        (([image.permute(1, 2, 0) for image in images], targets), "picture 0 of the batch is .*; give "),
        ((images, integers), "target 0 of the batch: labels are torch.int32; they must be torch.int64"),
    ):
        with pytest.raises(InputError, match=message):
            distiller(*given)
    for progress in (-1, 2, "half", float("nan")):
        with pytest.raises(InputError, match="progress is .*: it must be the share"):
            distiller(*batch, progress=progress)


def test_classifiers_batches_that_cannot_be():
    distiller = Distiller(Two().eval(), None, "none", image_size=16).train()
    images, labels = torch.rand(2, 3, 16, 16), torch.tensor([1, 2])
    for given, message in (
        ((None, labels), "images must be a floating-point batch"),
        (((images * 255).byte(), labels), r"not \(2, 3, 16, 16\) of torch.uint8"),
        ((images[:, :1], labels), r"images must be \(N, 3, H, W\)"),
        (([images[0], images[1, :, :8]], labels), "of one size"),
        ((images, labels > 1), "whole-number labels"),
    ):
        with pytest.raises(InputError, match=message):
            distiller(*given)
    distiller.eval()
    with torch.no_grad():
        assert distiller(images.double(), labels.int())["cross_entropy"].isfinite()


@pytest.mark.parametrize("batches", [None, 3, [1], [(1, 2, 3)], [{"images": 1, "targets": 2}]])
def test_prepares_batches_that_cannot_be(make, batches):
    distiller = make("ktan", KTAN)
    with pytest.raises(InputError, match=r"prepare\(\) takes"):
        distiller.prepare(batches)


def test_a_half_teacher_is_told_by_its_role(detector):
    with pytest.raises(InputError, match="the teacher is in torch.float16"):
        Detector(detector().half(), "teacher")
