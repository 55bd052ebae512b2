"""Knowledge from image classifiers: the last map before the pooling, inner layers through hooks, class scores."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkt.base.errors import InputError, first_line
from detkt.knowledge import Knowledge, Spec
from detkt.methods.base import Needs
from detkt.models.classifier import Classifier
from detkt.models.layout import channels_last
from detkt.tasks.base import LayerRecorder, TeacherMaps, evaluating, map_specs

CIFAR_SIZE, IMAGENET_SIZE = 32, 224


class _Net:
    """One classifier with the hooks on its inner layers."""

    def __init__(self, model: Classifier, role: str) -> None:
        self.model, self.role = model, role
        channels_last(model.backbone)
        self.recorder = LayerRecorder(model.backbone, [], role)

    def watch(self, layers: Iterable[str]) -> None:
        names = [name for name in dict.fromkeys(layers) if name != "output"]
        self.recorder = LayerRecorder(self.model.backbone, names, self.role)

    def compile(self) -> None:
        self.features = torch.compile(self.features)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Backbone alone: ``output`` and the watched inner layers."""
        with self.recorder.recording() as inner:
            output = self.model.backbone(images)
        return {"output": output, **inner}

    def scores(self, features: dict[str, Tensor]) -> Tensor:
        """Class logits (N, K) of the head on ``output``; float32 whatever the precision, as losses need it."""
        return self.model.head(features["output"]).float()


class ClassificationTask:
    """Student and teacher are :class:`~detkt.models.Classifier`s that see the same normalised batch.

    Args:
        student: trained.
        teacher: frozen; None for plain training.
        student_classes, teacher_classes: names, compared where scores are.
        image_size: height and width, or the side, of the pictures to probe the maps with; None: 32 for the CIFAR nets,
            224 for others.

    Raises:
        InputError: not a classifier, one net in both roles, nets for pictures of unequal channels, or class names that
            are not as many as a net's classes.
    """

    def __init__(
        self,
        student: Classifier,
        teacher: Classifier | None = None,
        student_classes: Iterable[str] = (),
        teacher_classes: Iterable[str] = (),
        image_size: int | tuple[int, int] | None = None,
    ) -> None:
        if teacher is student:
            raise InputError("student and teacher are the same object; give a copy (copy.deepcopy) as the teacher")
        self.student, self.teacher, self._image_size = student, teacher, image_size
        self.teacher_cache: TeacherMaps | None = None
        self.offered = ~(Needs.BOXES | Needs.ANCHORS)
        self._nets = {"student": _Net(student, "student")}
        if teacher is not None:
            if not isinstance(teacher, Classifier):
                raise InputError(f"the teacher is a {type(teacher).__name__}, the student a classifier")
            self._nets["teacher"] = _Net(teacher, "teacher")
        self._classes = {"student": tuple(student_classes), "teacher": tuple(teacher_classes)}
        self._num_classes: dict[str, int] = {}  # known once the networks were probed
        if len({_channels(net.model) for net in self._nets.values()}) > 1:
            ours, theirs = _channels(student), _channels(teacher)
            raise InputError(f"the student takes pictures of {ours} channels and the teacher of {theirs}")

    def watch(self, student_layers: Iterable[str], teacher_layers: Iterable[str]) -> tuple[Spec, Spec | None]:
        """See :class:`detkt.tasks.base.Task`."""
        for role, layers in (("student", student_layers), ("teacher", teacher_layers)):
            if role in self._nets:
                self._nets[role].watch(layers)
        return self._probe("student"), self._probe("teacher") if self.teacher is not None else None

    def compile(self) -> None:
        """See :class:`detkt.tasks.base.Task`."""
        for net in self._nets.values():
            net.compile()

    def _probe(self, role: str) -> Spec:
        """Maps of two noise pictures."""
        net = self._nets[role]
        size = self._image_size
        if size is None:
            name = getattr(self.student, "detkt", {}).get("architecture", "")
            size = CIFAR_SIZE if name.startswith("cifar_") else IMAGENET_SIZE
        height, width = (size, size) if isinstance(size, int) else size
        noise = torch.randn(2, _channels(net.model), height, width, generator=torch.Generator().manual_seed(0))
        try:
            with torch.no_grad(), evaluating(net.model):
                maps = net.features(noise.to(next(net.model.parameters()).device))
                classes = self._num_classes[role] = net.scores(maps).shape[1]
        except (RuntimeError, ValueError, IndexError) as error:
            raise InputError(
                f"the {role} cannot take pictures of {height} x {width} ({first_line(error)}); choose another "
                "net or size (data.image_size, in your own loop image_size)"
            ) from None
        names = self._classes[role]
        if names and len(names) != classes:
            raise InputError(f"{role}_classes has {len(names)} names, but the {role} has {classes} classes")
        return Spec(map_specs(maps, role), classes, names)

    def pictures(self, targets: dict[str, Tensor]) -> list[int]:
        """Indices of a batch's pictures in the data set."""
        return targets["image_id"].tolist()

    def teacher_maps(self, images: Tensor) -> dict[str, Tensor]:
        """See :class:`detkt.tasks.base.Task`."""
        with torch.no_grad():
            return self._nets["teacher"].features(images.to(next(self.student.parameters()).device, non_blocking=True))

    def input_size(self, width: int, height: int) -> tuple[int, int]:
        """See :class:`detkt.tasks.base.Task`: classifiers see pictures as they are."""
        return height, width

    def run(
        self, images: Tensor | list[Tensor], targets: dict[str, Tensor] | Tensor, needs: Needs
    ) -> tuple[Knowledge | None, Knowledge | None, ClassificationHeads]:
        """Images: (N, C, H, W), normalised; targets: ``labels`` (N,), alone or in a dict. See `detkt.tasks.base.Task`.

        They may be on another device than the networks.

        Raises:
            InputError: the student is to learn while it is in evaluation mode, or a label is not one of its classes.
        """
        if Needs.STUDENT in needs and not self.student.training:
            raise InputError(
                "the student is in evaluation mode: call train() on it, or on the distiller, before training"
            )
        device = next(self.student.parameters()).device
        labels = targets["labels"] if isinstance(targets, dict) else targets
        if (
            not isinstance(labels, Tensor)
            or labels.dim() != 1
            or len(labels) != len(images)
            or labels.is_floating_point()
        ):
            raise InputError(
                "targets must be whole-number labels (N,), one a picture, or a dict that has them as 'labels'"
            )
        classes = self._num_classes["student"]
        if labels.device.type == "cpu" and len(labels) and not 0 <= labels.min() <= labels.max() < classes:
            raise InputError(f"labels must be 0 to {classes - 1}, found {int(labels.min())} to {int(labels.max())}")
        images = torch.stack(images) if isinstance(images, list) else images
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        student = teacher = None
        if needs & (Needs.STUDENT | Needs.STUDENT_FEATURES):
            student = Knowledge(self._nets["student"].features(images))
        if Needs.STUDENT in needs:
            student.logits, student.labels = self._nets["student"].scores(student.features), labels
            student.losses = {"cross_entropy": F.cross_entropy(student.logits, labels)}
            student.classification_loss = "cross_entropy"
        if needs & (Needs.TEACHER_FEATURES | Needs.TEACHER_LOGITS):
            with torch.no_grad():
                teacher = Knowledge(self._teacher_features(images, targets))
                if Needs.TEACHER_LOGITS in needs:
                    teacher.logits = self._nets["teacher"].scores(teacher.features)
        return student, teacher, ClassificationHeads(self._nets, labels)

    def _teacher_features(self, images: Tensor, targets: dict[str, Tensor] | Tensor) -> dict[str, Tensor]:
        """The backbone's maps of *images*, or the cached ones of the pictures that *targets* name."""
        if self.teacher_cache is None:
            return self._nets["teacher"].features(images)
        return self.teacher_cache.read(self.pictures(targets), targets["flipped"].tolist(), images.device)


class ClassificationHeads:
    """The heads of both classifiers on the current batch (see :class:`detkt.methods.base.Heads`)."""

    def __init__(self, nets: dict[str, _Net], labels: Tensor) -> None:
        self._nets, self._labels = nets, labels

    def task_losses(self, features: dict[str, Tensor], role: str) -> dict[str, Tensor]:
        """The cross entropy that the head of *role* reads from the ``output`` map."""
        with evaluating(self._nets[role].model.head):
            return {"cross_entropy": F.cross_entropy(self._nets[role].scores(features), self._labels)}


def _channels(model: nn.Module) -> Any:
    """Channels of the pictures a network takes."""
    return next(part.in_channels for part in model.modules() if isinstance(part, nn.Conv2d))
