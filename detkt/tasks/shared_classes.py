"""The classes that student and teacher both know: only their scores can be compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from detkt.base.errors import InputError
from detkt.knowledge import Scores, Spec
from detkt.models.class_names import class_map


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


def shared_classes(student: Spec, teacher: Spec, extra: Mapping[str, str | None] | None) -> SharedClasses | None:
    """The classes that two detectors share, by name (:func:`~detkt.models.class_names.class_map`).

    None where the lists are one, or names are not known.

    Args:
        student, teacher: as probed; their ``classes`` are the names, without background.
        extra: a student's class -> the teacher's class that it is, None for none, whatever the names say.

    Raises:
        InputError: *extra* without names of both nets, or with one that a net does not have.
    """
    if not (student.classes and teacher.classes):
        if extra:
            raise InputError("class_map goes by the names of both nets' classes: give both lists of them")
        return None
    found = class_map(student.classes, teacher.classes, extra)
    if found == list(range(len(teacher.classes))):
        return None
    pairs = [(i, j) for i, j in enumerate(found) if j is not None]
    names = tuple(student.classes[i] for i, _ in pairs)
    return SharedClasses(names, tuple(i for i, _ in pairs), tuple(j for _, j in pairs), len(student.classes))
