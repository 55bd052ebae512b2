"""The classes that student and teacher both know: only their scores can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from detkt.base.errors import InputError
from detkt.knowledge import Scores, Spec


@dataclass(frozen=True)
class SharedClasses:
    """Classes of both nets, in the student's order; indices count no background.

    Attributes:
        names: of the shared classes.
        student, teacher: the index of each among that net's classes.
        count: how many classes the student has.
    """

    names: tuple[str, ...]
    student: tuple[int, ...]
    teacher: tuple[int, ...]
    count: int

    def restricted(self, logits: Tensor, role: str, sigmoid: bool) -> Tensor:
        """The columns of *logits* (..., K) that are shared, after the background's of a softmax (column 0)."""
        own = getattr(self, role)
        columns = list(own) if sigmoid else [0, *(index + 1 for index in own)]
        return logits[..., torch.tensor(columns).to(logits.device, non_blocking=True)]

    def relabelled(self, labels: Tensor) -> Tensor:
        """The student's *labels* (0: background) among the shared classes, from 1 on; -1: of a class not shared."""
        table = torch.full((self.count + 1,), -1)
        table[0] = 0
        table[torch.tensor(self.student, dtype=torch.int64) + 1] = torch.arange(1, len(self.student) + 1)
        return table.to(labels.device, non_blocking=True)[labels]

    def told(self, spec: Spec) -> Spec:
        """*spec* with its scores restricted to these classes."""
        scores = replace(spec.scores or Scores(), shared=self.names, every=len(self.names) == self.count)
        return replace(spec, scores=scores if spec.scores is not None else None)


def shared_classes(student: Spec, teacher: Spec, class_map: Sequence[int | None] | None) -> SharedClasses | None:
    """The classes that two detectors share; None where the lists are one, or nothing is known of them.

    Args:
        student, teacher: as probed; their ``classes`` are the names, without background.
        class_map: for each of the student's classes the index of the teacher's that it is, None for none; not given:
            by equal names.

    Raises:
        InputError: the map is not as long as the student's classes are many, or names a class that the teacher has not.
    """
    if class_map is None:
        if not (student.classes and teacher.classes) or student.classes == teacher.classes:
            return None
        class_map = [teacher.classes.index(name) if name in teacher.classes else None for name in student.classes]
    ours, theirs = student.num_classes - 1, teacher.num_classes - 1
    if len(class_map) != ours or not all(index is None or 0 <= index < theirs for index in class_map):
        raise InputError(
            f"class_map must have an index below {theirs} of the teacher's classes, or None, for each of the student's "
            f"{ours} classes"
        )
    if list(class_map) == list(range(theirs)):
        return None
    pairs = [(i, j) for i, j in enumerate(class_map) if j is not None]
    names = tuple(student.classes[i] if student.classes else f"class {i + 1}" for i, _ in pairs)
    return SharedClasses(names, tuple(i for i, _ in pairs), tuple(j for _, j in pairs), ours)
