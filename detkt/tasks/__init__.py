"""Tasks: how knowledge is obtained from a detector or a classifier."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from detkt.base.errors import InputError
from detkt.models.classifier import Classifier
from detkt.tasks.base import Task
from detkt.tasks.classification import ClassificationTask
from detkt.tasks.detection import DetectionTask


def build_task(
    student: nn.Module,
    teacher: nn.Module | None = None,
    student_classes: Iterable[str] = (),
    teacher_classes: Iterable[str] = (),
    image_size: int | tuple[int, int] | None = None,
) -> Task:
    """The task that fits the student: a torchvision R-CNN's or a :class:`~detkt.models.Classifier`'s.

    Raises:
        InputError: *image_size* for a detector; see the tasks for the rest.
    """
    if isinstance(student, Classifier):
        return ClassificationTask(student, teacher, student_classes, teacher_classes, image_size)
    if image_size is not None:
        raise InputError("image_size is for classifiers; a detector's transform knows its own")
    return DetectionTask(student, teacher, student_classes, teacher_classes)


__all__ = ["ClassificationTask", "DetectionTask", "Task", "build_task"]
