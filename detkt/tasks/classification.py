"""Knowledge from image classifiers: the last map before the pooling, inner layers, class scores."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkt.base.errors import InputError, first_line
from detkt.knowledge import Knowledge, Rows, Spec
from detkt.methods.base import Needs, frozen
from detkt.models.card import find_card
from detkt.tasks.base import (
    FrozenTeacher,
    TeacherMaps,
    evaluating,
    map_specs,
    require_one_precision,
    require_training,
    require_two_nets,
)
from detkt.tasks.classifiers import SplitNet, WholeNet, net_of

CIFAR_SIZE, IMAGENET_SIZE = 32, 224

Labels = dict[str, Tensor] | Tensor


class ClassificationTask:
    """Student and teacher are classifiers that see the same normalised batch.

    Args:
        student: a :class:`~detkt.models.Classifier`, or any network from pictures to class logits.
        teacher: likewise; frozen until :meth:`close`; None for plain training.
        student_classes, teacher_classes: names, compared where scores are.
        image_size: height and width, or the side, of the pictures to probe the maps with; None: 32 for the CIFAR nets,
            224 for others.
        teacher_cache: the teacher's maps of the training pictures, to be read in place of its backbone's passes.

    Raises:
        InputError: one net or part of a net in both roles, nets for pictures of unequal channels, or class names that
            are not as many as a net's classes.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        student_classes: Iterable[str] = (),
        teacher_classes: Iterable[str] = (),
        image_size: int | tuple[int, int] | None = None,
        teacher_cache: TeacherMaps | None = None,
    ) -> None:
        self.student, self.teacher, self._image_size, self._cache = student, teacher, image_size, teacher_cache
        self.offered = ~(Needs.BOXES | Needs.ANCHORS | Needs.TEACHER_CONFIDENCE | Needs.HEADS)
        self._nets: dict[str, SplitNet | WholeNet] = {"student": net_of(student, "student")}
        self._classes = {"student": tuple(student_classes), "teacher": tuple(teacher_classes)}
        self._num_classes: dict[str, int] = {}  # known once the networks were probed
        self._channels = _channels(student)
        if teacher is None:
            return
        require_two_nets(student, teacher)
        self._nets["teacher"] = net_of(teacher, "teacher")
        require_one_precision(student, teacher)
        ours, theirs = self._channels, _channels(teacher)
        if ours != theirs:
            raise InputError(f"the student takes pictures of {ours} channels and the teacher of {theirs}")
        self._frozen = FrozenTeacher(teacher)

    def close(self) -> None:
        """See :class:`detkt.tasks.base.Task`."""
        for net in self._nets.values():
            net.recorder.close()
        if self.teacher is not None:
            self._frozen.close()

    def reveal(self, student_layers: Iterable[str], teacher_layers: Iterable[str]) -> tuple[Spec, Spec | None]:
        """See :class:`detkt.tasks.base.Task`."""
        student = self._probe("student", student_layers)
        return student, self._probe("teacher", teacher_layers) if self.teacher is not None else None

    def compile(self) -> None:
        """See :class:`detkt.tasks.base.Task`."""
        for net in self._nets.values():
            net.compile()

    def _probe(self, role: str, layers: Iterable[str]) -> Spec:
        """Maps of two noise pictures."""
        net = self._nets[role]
        size = self._image_size
        if size is None:
            card = find_card(self.student)
            size = CIFAR_SIZE if card and card.architecture.startswith("cifar_") else IMAGENET_SIZE
        height, width = _checked_size(size)
        noise = torch.randn(2, _channels(net.model), height, width, generator=torch.Generator().manual_seed(0))
        weight = next(net.model.parameters())
        noise = noise.to(weight.device, weight.dtype)
        try:
            with torch.no_grad(), evaluating(net.model):
                net.reveal(layers, noise)
                maps, logits = net.both(noise)
        except InputError:
            raise
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
            raise InputError(
                f"the {role} cannot take pictures of {height} x {width} ({first_line(error)}); choose another "
                "net or size (data.image_size)"
            ) from None
        classes = self._num_classes[role] = logits.shape[1]
        names = self._classes[role]
        if names and len(names) != classes:
            raise InputError(f"{role}_classes has {len(names)} names, but the {role} has {classes} classes")
        return Spec(map_specs(maps, role), classes, names)

    def pictures(self, targets: dict[str, Tensor]) -> list[int]:
        """Indices of a batch's pictures in the data set."""
        return targets["image_id"].tolist()

    def teacher_maps(self, images: Tensor) -> dict[str, Tensor]:
        """See :class:`detkt.tasks.base.Task`."""
        self._frozen.keep()
        with torch.no_grad():
            return self._nets["teacher"].maps(images.to(next(self.student.parameters()).device, non_blocking=True))

    def input_size(self, width: int, height: int) -> tuple[int, int]:
        """See :class:`detkt.tasks.base.Task`: classifiers see pictures as they are."""
        return height, width

    def run(
        self, images: Tensor | list[Tensor], targets: Labels, needs: Needs
    ) -> tuple[Knowledge | None, Knowledge | None, ClassificationHeads]:
        """Images: (N, C, H, W), normalised; targets: ``labels`` (N,), alone or in a dict. See `detkt.tasks.base.Task`.

        They may be on another device than the networks.

        Raises:
            InputError: the student is to learn while it is in evaluation mode, the pictures are no such batch, or a
                label is not one of its classes.
        """
        if Needs.STUDENT in needs:
            require_training(self.student)
        weight = next(self.student.parameters())
        images = _checked_pictures(images, self._channels)
        labels = _checked_labels(targets, len(images), self._num_classes["student"])
        images = images.to(weight.device, weight.dtype, non_blocking=True)
        labels = labels.to(weight.device, torch.int64, non_blocking=True)
        student = teacher = None
        if Needs.STUDENT in needs:
            features, logits = self._nets["student"].both(images)
            losses = {"cross_entropy": F.cross_entropy(logits, labels)}
            student = Knowledge(features, logits, labels, losses, "cross_entropy")
        elif Needs.STUDENT_FEATURES in needs:
            with torch.no_grad(), evaluating(self.student):
                student = Knowledge(self._nets["student"].maps(images))
        if needs & (Needs.TEACHER_FEATURES | Needs.TEACHER_LOGITS):
            with torch.no_grad():
                teacher = self._teacher_knowledge(images, targets, Needs.TEACHER_LOGITS in needs)
        return student, teacher, ClassificationHeads(self._nets, images, labels)

    def _teacher_knowledge(self, images: Tensor, targets: Labels, with_logits: bool) -> Knowledge:
        """The teacher's maps of *images*, or the cached ones of the pictures that *targets* name, and its scores."""
        self._frozen.keep()
        net = self._nets["teacher"]
        if self._cache is not None:
            assert isinstance(targets, dict), "a cache is asked for pictures that the targets name"
            features = self._cache.read(self.pictures(targets), targets["flipped"].tolist(), images.device)
            return Knowledge(features, net.scores(features, images) if with_logits else None)
        return Knowledge(*net.both(images)) if with_logits else Knowledge(net.maps(images))


class ClassificationHeads:
    """The heads of both classifiers on the current batch (see :class:`detkt.methods.base.Heads`)."""

    def __init__(self, nets: dict[str, SplitNet | WholeNet], images: Tensor, labels: Tensor) -> None:
        self._nets, self._images, self._labels = nets, images, labels

    def task_losses(self, features: dict[str, Tensor], role: str) -> dict[str, Tensor]:
        """The cross entropy that the head of *role* reads from the ``output`` map."""
        net = self._nets[role]
        with net.reading():
            return {"cross_entropy": F.cross_entropy(net.scores(features, self._images), self._labels)}

    def rows(self, features: dict[str, Tensor], role: str) -> Rows:
        """The scores that the head of *role* gives to the ``output`` map of each picture."""
        net = self._nets[role]
        with net.reading(), frozen(net.model):
            return Rows(net.scores(features, self._images), self._labels)

    def objectness(self, features: dict[str, Tensor], role: str) -> dict[str, Tensor]:
        """A classifier proposes no regions, and its scores say so."""
        raise TypeError("classifiers propose no regions")

    def remaining(self, classification: list[Tensor], regression: list[Tensor]) -> tuple[Tensor, Tensor]:
        """A classifier has no dense head, and offers none."""
        raise TypeError("classifiers have no dense head")


def _checked_pictures(images: Any, channels: int) -> Tensor:
    if isinstance(images, list | tuple) and all(isinstance(image, Tensor) for image in images):
        if len({image.shape for image in images}) != 1:
            raise InputError("the pictures of a batch must be of one size: resize or crop them")
        images = torch.stack(tuple(images))
    if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point():
        given = f"{tuple(images.shape)} of {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
        raise InputError(f"images must be a floating-point batch (N, {channels}, H, W), normalised, not {given}")
    if images.shape[1] != channels or not len(images):
        raise InputError(f"images must be (N, {channels}, H, W) with one picture or more, not {tuple(images.shape)}")
    return images


def _checked_labels(targets: Any, pictures: int, classes: int) -> Tensor:
    labels: Any = targets.get("labels") if isinstance(targets, dict) else targets
    fits = isinstance(labels, Tensor) and labels.dim() == 1 and len(labels) == pictures
    if not fits or labels.is_floating_point() or labels.dtype == torch.bool:
        raise InputError("targets must be whole-number labels (N,), one a picture, or a dict that has them as 'labels'")
    if labels.device.type == "cpu" and len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise InputError(f"labels must be 0 to {classes - 1}, found {int(labels.min())} to {int(labels.max())}")
    return labels


def _checked_size(size: Any) -> tuple[int, int]:
    sides = [size, size] if isinstance(size, int) else size
    if not isinstance(sides, list | tuple) or len(sides) != 2 or not all(type(s) is int and s > 0 for s in sides):
        raise InputError(f"data.image_size is {size!r}: it must be a side in pixels, or height and width")
    return sides[0], sides[1]


def _channels(model: nn.Module) -> int:
    """Channels of the pictures a network takes."""
    return next((part.in_channels for part in model.modules() if isinstance(part, nn.Conv2d)), 3)
