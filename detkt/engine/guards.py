"""Losses that stop being numbers stop the run, without a host synchronisation in every step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from detkt.errors import InputError


def check_weights(weights: dict[str, Tensor], step: int) -> None:
    """Raise InputError naming the first tensor that is not finite (a finite loss may have a gradient that is not)."""
    for name, value in weights.items():
        if isinstance(value, Tensor) and not value.isfinite().all():
            raise InputError(
                f"'{name}' became NaN or infinite by step {step}; a checkpoint saved before is kept: lower "
                "train.lr_per_image or the method's weight, or set train.clip_norm"
            )


class FiniteGuard:
    """Collects the losses of each step and checks them when asked (logged steps, before a checkpoint).

    On the CPU each step is checked at once, since looking costs nothing there.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[int, list[str], list[str], Tensor]] = []

    def add(self, step: int, pictures: list[str], losses: dict[str, Tensor]) -> None:
        values = torch.stack([loss.detach().float() for loss in losses.values()])
        self._pending.append((step, pictures, list(losses), values))
        if not values.is_cuda:
            self.check()

    def check(self) -> None:
        """Raise InputError naming the first term, step and pictures whose loss is NaN or infinite."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        for step, pictures, names, values in pending:
            for name, value in zip(names, values.tolist(), strict=True):
                if not math.isfinite(value):
                    raise InputError(
                        f"loss '{name}' became {value} at step {step} (pictures {', '.join(pictures)}); the last good "
                        "checkpoint is kept: lower train.lr_per_image or the method's weight, or set train.clip_norm"
                    )
