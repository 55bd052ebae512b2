"""What can go wrong in the numbers: some of it stops the run, some of it is only told.

Nothing here waits for a CUDA device in every step: values are kept there and looked at when the run looks anyway.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from detkt.base.errors import InputError
from detkt.methods.base import Watch

_REMEDY = "lower train.lr_per_image or the method's weight, or set train.clip_norm"


def check_weights(weights: dict[str, Tensor], step: int) -> None:
    """Raise InputError naming the first tensor that is not finite."""
    for name, value in weights.items():
        if isinstance(value, Tensor) and not value.isfinite().all():
            raise InputError(
                f"'{name}' became NaN or infinite by step {step}; a checkpoint saved before is kept: {_REMEDY}"
            )


class FiniteGuard:
    """Collects the losses and gradient norms of each step and checks them when asked (logged steps, checkpoints).

    On the CPU each is checked at once, since looking costs nothing there: the step is not taken.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[int, list[str], list[str], Tensor]] = []

    def add_losses(self, step: int, pictures: list[str], losses: dict[str, Tensor]) -> None:
        values = torch.stack([loss.detach().float() for loss in losses.values()])
        self._add(step, pictures, [f"loss '{name}'" for name in losses], values)

    def add_gradient(self, step: int, pictures: list[str], player: str, norm: Tensor) -> None:
        """*norm*: of the gradient of all the player's parameters."""
        self._add(step, pictures, [f"the gradient of player '{player}'"], norm.detach().float()[None])

    def check(self) -> None:
        """Raise InputError naming the first loss or gradient that is not finite, with its step and pictures."""
        pending, self._pending = self._pending, []
        for step, pictures, names, values in pending:
            for name, value in zip(names, values.tolist(), strict=True):
                if not math.isfinite(value):
                    raise InputError(
                        f"{name} became {value} at step {step} (pictures {', '.join(pictures)}); the last good "
                        f"checkpoint is kept: {_REMEDY}"
                    )

    def _add(self, step: int, pictures: list[str], names: list[str], values: Tensor) -> None:
        self._pending.append((step, pictures, names, values))
        if not values.is_cuda:
            self.check()


class SkippedUpdates:
    """Tells once a player when fp16's gradient scaler skips its updates, one after the other.

    Some are skipped by design, until the scale is low enough for the gradients to be finite.
    """

    MANY = 30

    def __init__(self) -> None:
        self._rows: dict[str, Tensor] = {}
        self._told: set[str] = set()

    def add(self, player: str, norm: Tensor) -> None:
        """*norm*: of the unscaled gradient; the update is skipped where it is not finite."""
        self._rows[player] = (self._rows.get(player, 0) + 1) * (~norm.isfinite()).int()

    def warnings(self) -> list[str]:
        """A line a player whose row is long by now."""
        found = [name for name, row in self._rows.items() if name not in self._told and row >= self.MANY]
        self._told.update(found)
        return [
            f"the last {int(self._rows[name])} updates of player '{name}' were skipped, its gradient being infinite in "
            "fp16: use --precision bf16, or lower train.lr_per_image"
            for name in found
        ]


class Watcher:
    """Tells each sign of trouble that a method watches for, once, when it has been seen for long enough."""

    def __init__(self, watches: Sequence[Watch]) -> None:
        self._watches = watches
        self._first: list[dict[str, float]] = [{} for _ in watches]
        self._since: list[int | None] = [None for _ in watches]
        self._told = [False for _ in watches]

    def warnings(self, step: int, means: Mapping[str, float]) -> list[str]:
        """A line for each sign that is due, given the logged means at *step*."""
        due = []
        for number, watch in enumerate(self._watches):
            if self._told[number] or not all(name in means for name in watch.names):
                continue
            values = {name: means[name] for name in watch.names}
            first = self._first[number] = self._first[number] or values
            if not watch.seen(values, first):
                self._since[number] = None
                continue
            since = self._since[number] = self._since[number] or step
            if step - since >= watch.updates:
                self._told[number] = True
                due.append(f"{watch.sign} (seen from step {since} on): {watch.advice}")
        return due

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a resumed run tells the same."""
        return {"first": list(self._first), "since": list(self._since), "told": list(self._told)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # A watch that is younger than the checkpoint begins with it.
        known = min(len(self._watches), len(state["told"]))
        for ours, key in ((self._first, "first"), (self._since, "since"), (self._told, "told")):
            ours[:known] = state[key][:known]
