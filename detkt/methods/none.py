"""Plain training on ground truth: the student every method is compared with, and how teachers are trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from detkt.knowledge import Knowledge
from detkt.methods.base import Heads, Method, Needs, Stage, Update


class NoDistillation(Method):
    """Only the network's own task losses."""

    name = "none"
    needs_teacher = False

    def stages(self) -> Sequence[Stage]:
        return [Stage("train", needs=Needs.STUDENT)]

    def step(
        self, stage: Stage, student: Knowledge | None, teacher: Knowledge | None, heads: Heads
    ) -> Iterator[Update]:
        return iter(())
