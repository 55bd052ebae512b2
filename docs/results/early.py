"""A trial of a share that ends before the training does: CWD for the first updates, then the task alone.

detkt train-det --method docs/results/early.py:Early methods.early-cwd.balance=1 methods.early-cwd.steps=750
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from detkt.knowledge import Knowledge, Spec
from detkt.methods.base import Heads, Stage, Update
from detkt.methods.cwd import CWD, CWDConfig


@dataclass
class EarlyConfig(CWDConfig):
    """CWD's; ``steps``: of the student's updates with it."""

    steps: int = 750


class Early(CWD):
    """CWD for the first updates of the student."""

    name = "early-cwd"
    Config = EarlyConfig
    config: EarlyConfig
    taken: Tensor

    def __init__(self, config: EarlyConfig, student: Spec, teacher: Spec) -> None:
        super().__init__(config, student, teacher)
        self.require("steps", config.steps >= 0, "0 or more")
        self.register_buffer("taken", torch.zeros((), dtype=torch.int64))  # so that a resumed run goes on counting

    def step(self, stage: Stage, student: Knowledge, teacher: Knowledge, heads: Heads) -> Iterator[Update]:
        if self.taken < self.config.steps:
            self.taken += torch.is_grad_enabled()
            yield from super().step(stage, student, teacher, heads)
