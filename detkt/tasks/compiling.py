"""``torch.compile`` for a task's backbones, asked for in words a user understands where it cannot work."""

from __future__ import annotations

import torch

from detkt.base.errors import InputError, first_line
from detkt.tasks.base import Task


def compile_backbones(task: Task, device: torch.device) -> None:
    """Have *task* compile its backbones when they first run on *device*.

    Heads stay as they are: proposals and RoIs differ in number from step to step.

    Raises:
        InputError: torch cannot compile here, for want of a C++ compiler or of Triton, say.
    """
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:  # each of its back ends fails in ways of its own
        raise InputError(f"torch.compile does not work here ({first_line(error)}); leave out --compile") from None
    task.compile()
