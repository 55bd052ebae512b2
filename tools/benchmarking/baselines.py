"""Other training loops on the same networks and batches, for the benchmark to be compared with.

``torchvision``: the loop of its detection reference, training the student alone. ``torchdistill``: hints as FitNet's,
through that package's own distillation box; once with the whole teacher, as in its configs for detectors whose student
learns from ground truth, too, and once with the teacher cut to its backbone by the package's means.
"""

from __future__ import annotations

import copy
import importlib.util
import math
import warnings
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from benchmarking.subjects import STUDENT, Batch, Subjects, Work
from detkt.base.errors import InputError
from detkt.methods import choose
from detkt.models.frozen_norm import FrozenBatchNorm2d
from detkt.tasks.detection import named_outputs

BASELINES = ("torchvision", "torchdistill")
HINT = "fitnet"  # what torchdistill's step is compared with
_CUT = "torchdistill, teacher's backbone alone"

Sizes = dict[str, tuple[int, int]]


def check(against: Sequence[str], task: str) -> None:
    """InputError for a baseline that is not known, not for this task, or not installed."""
    for name in against:
        choose(name, BASELINES, "baseline of --against")
    if against and task != "detection":
        raise InputError(f"--against {','.join(against)} compares loops that train detectors; give a detector's config")
    if "torchdistill" in against and importlib.util.find_spec("torchdistill") is None:
        raise InputError("--against torchdistill needs that package: pip install torchdistill")


def compared(against: Sequence[str]) -> dict[str, str]:
    """The baselines' subjects, each with the training of ours it is compared with."""
    names = {"torchvision": {"torchvision": STUDENT}, "torchdistill": {"torchdistill": HINT, _CUT: HINT}}
    return {name: ours for baseline in against for name, ours in names[baseline].items()}


def build(against: Sequence[str], subjects: Subjects) -> dict[str, Work]:
    """The subjects of :func:`compared`: each makes one training step on a batch."""
    works: dict[str, Work] = {}
    if "torchvision" in against:
        works["torchvision"] = TorchvisionLoop(subjects).step
    if "torchdistill" in against:
        works["torchdistill"] = TorchdistillLoop(subjects, whole_teacher=True).step
        works[_CUT] = TorchdistillLoop(subjects, whole_teacher=False).step
    return works


class TorchvisionLoop:
    """What torchvision's references/detection/engine.py does with a batch, on a copy of the student.

    Losses are summed up and looked at on the host in every step, metrics are kept in windows, the optimizer is SGD as
    torch chooses its implementation, gradients are not clipped; the learning rate warms up linearly. The detector is
    torchvision's own forward, without detkt's hooks.
    """

    def __init__(self, subjects: Subjects) -> None:
        self._subjects, self._device = subjects, subjects.device
        self._model = _copy(subjects.student).train()
        parameters = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.SGD(parameters, **_sgd(subjects))
        self._schedule = torch.optim.lr_scheduler.LinearLR(self._optimizer, 1 / 1000, total_iters=1000)
        half = subjects.config.train.precision == "fp16"
        self._scaler = torch.amp.GradScaler(self._device.type) if half else None
        self._meters: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=20))

    def step(self, batch: Batch) -> None:
        images, targets = _moved(batch, self._device)
        with self._subjects.autocast():
            losses = self._model(images, targets)
            total = sum(losses.values())
        value = total.item()
        _check_finite("torchvision", value)
        self._optimizer.zero_grad()
        if self._scaler is None:
            total.backward()
            self._optimizer.step()
        else:
            self._scaler.scale(total).backward()
            self._scaler.step(self._optimizer)
            self._scaler.update()
        self._schedule.step()
        for name, loss in {"loss": total, **losses}.items():
            self._meters[name].append(loss.item())
        self._meters["lr"].append(self._optimizer.param_groups[0]["lr"])


class TorchdistillLoop:
    """Hint learning through torchdistill: the step of its object detection example, with its distillation box.

    The student's backbone output passes through regressors as FitNet's, which its hook records; the loss is the mean
    squared error with the recorded output of the teacher's backbone, beside the student's own losses.
    """

    def __init__(self, subjects: Subjects, whole_teacher: bool) -> None:
        from torchdistill.core.distillation import DistillationBox

        self._subjects, self._device = subjects, subjects.device
        fitnet = subjects.trainers[HINT].distiller.method
        own_teacher = _copy(subjects.teacher).eval()
        sizes: Sizes = {}  # of the teacher's maps, which runs first
        own_teacher.backbone.register_forward_hook(
            lambda backbone, given, output: sizes.update(
                {name: tuple(found.shape[-2:]) for name, found in named_outputs(output).items()}
            )
        )
        regressors = copy.deepcopy(fitnet.regressors)
        student = _hint_student(_copy(subjects.student), regressors, fitnet.pairs(), sizes)
        layer = "backbone" if whole_teacher else "seq.backbone"
        teacher = {
            "forward_proc": "forward_batch_only",
            "forward_hook": {"output": [layer]},
            "requires_grad": False,
        }
        if not whole_teacher:
            head = {"key": "HeadRCNN", "kwargs": {"head_rcnn": {"sequential": ["backbone"]}}}
            teacher["auxiliary_model_wrapper"] = head
        config = {
            "num_epochs": 1,
            "teacher": teacher,
            "student": {
                "forward_proc": "forward_batch_target",
                "forward_hook": {"output": ["detector.backbone", "hint"]},
            },
            "optimizer": {
                "key": "SGD",
                "kwargs": _sgd(subjects),
                "max_grad_norm": subjects.config.train.clip_norm or None,
            },
            "criterion": {
                "key": "WeightedSumLoss",
                "func2extract_model_loss": "extract_model_loss_dict",
                "kwargs": {
                    "model_term": {"weight": 1.0},
                    "sub_terms": {"hint": {"criterion": _HintLoss(layer), "weight": fitnet.config.weight / 2}},
                },
            },
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._box = DistillationBox(own_teacher, student, {}, config, self._device, None, False, 1)
        self._box.pre_epoch_process(epoch=0)

    def step(self, batch: Batch) -> None:
        images, targets = _moved(batch, self._device)
        with self._subjects.autocast():
            loss = self._box.forward_process(images, targets, {})
        self._box.post_forward_process(loss=loss)
        _check_finite("torchdistill", loss.item())


def _hint_student(detector: nn.Module, regressors: nn.ModuleList, pairs: Sequence, sizes: Sizes) -> nn.Module:
    """*detector* with regressors on its backbone's outputs, as a module that torchdistill knows how to run.

    *sizes*: of the teacher's maps of the batch.
    """
    from torchdistill.models.wrapper import AuxiliaryModelWrapper

    class Hint(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.regressors = regressors

        def forward(self, output: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
            maps = named_outputs(output)
            return {
                pair.teacher: net(maps[pair.student], sizes[pair.teacher])
                for pair, net in zip(pairs, self.regressors, strict=True)
            }

    class HintStudent(AuxiliaryModelWrapper):
        def __init__(self) -> None:
            super().__init__()
            self.detector, self.hint = detector, Hint()

        def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
            return self.detector(images, targets)

        def secondary_forward(self, io_dict: dict[str, Any]) -> None:
            self.hint(io_dict["detector.backbone"]["output"])

    return HintStudent()


class _HintLoss(nn.Module):
    """Mean squared error of the hints and the teacher's outputs, of torchdistill's records of both."""

    def __init__(self, teacher_layer: str) -> None:
        super().__init__()
        self._layer = teacher_layer

    def forward(self, student: dict[str, Any], teacher: dict[str, Any], targets: Any) -> Tensor:
        maps = named_outputs(teacher[self._layer]["output"])
        losses = [F.mse_loss(hint.float(), maps[name].float()) for name, hint in student["hint"]["output"].items()]
        return torch.stack(losses).mean()


def _check_finite(loop: str, loss: float) -> None:
    if not math.isfinite(loss):
        raise InputError(f"{loop}'s loop stopped: its loss is {loss}; give trained networks, or another size")


def _copy(model: nn.Module) -> nn.Module:
    """A copy as torchvision builds it: without the hooks, the memory layout and the frozen norms of detkt's own."""
    model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.__class__ = torchvision.ops.FrozenBatchNorm2d
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return model


def _sgd(subjects: Subjects) -> dict[str, float]:
    train = subjects.config.train
    lr = train.lr_per_image * train.batch_size
    return {"lr": lr, "momentum": train.momentum, "weight_decay": train.weight_decay}


def _moved(batch: Batch, device: torch.device) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    targets = [{key: value.to(device) for key, value in target.items()} for target in batch.targets]
    return [image.to(device) for image in batch.images], targets
