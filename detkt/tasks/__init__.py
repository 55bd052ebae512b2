"""Tasks: how knowledge is obtained from a detector or a classifier."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from detkt.base.errors import InputError
from detkt.tasks.base import Task, TeacherMaps
from detkt.tasks.classification import ClassificationTask
from detkt.tasks.detection import DetectionTask


def build_task(
    student: nn.Module,
    teacher: nn.Module | None = None,
    student_classes: Iterable[str] = (),
    teacher_classes: Iterable[str] = (),
    image_size: int | tuple[int, int] | None = None,
    teacher_cache: TeacherMaps | None = None,
    class_map: Mapping[str, str | None] | None = None,
    own_size: bool = False,
) -> Task:
    """The task that fits the student: detection for a torchvision detector, classification for any other network.

    Raises:
        InputError: *image_size* for a detector, *class_map* or *own_size* for a classifier, a detector with a
            classifier; see the tasks for the rest.
    """
    if not _is_detector(student):
        if teacher is not None and _is_detector(teacher):
            raise InputError(
                f"the student is a {type(student).__name__}, not a torchvision detector as the teacher is; give two of "
                "a kind"
            )
        if class_map is not None:
            raise InputError("class_map is for detectors; two classifiers must have the same classes")
        if own_size:
            raise InputError("own_size is for detectors, whose transforms know their sizes")
        return ClassificationTask(student, teacher, student_classes, teacher_classes, image_size, teacher_cache)
    if image_size is not None:
        raise InputError("image_size is for classifiers; a detector's transform knows its own")
    return DetectionTask(student, teacher, student_classes, teacher_classes, teacher_cache, class_map, own_size)


def _is_detector(model: nn.Module) -> bool:
    """Whether *model* is built as torchvision's detectors are, whatever its transform is."""
    heads = ("rpn", "head")
    parts = dict(model.named_children())
    return isinstance(parts.get("transform"), GeneralizedRCNNTransform) or (
        {"transform", "backbone"} <= set(parts) and any(name in parts for name in heads)
    )


__all__ = ["ClassificationTask", "DetectionTask", "Task", "build_task"]
