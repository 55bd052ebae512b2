"""Who learns, and how: an optimizer a player, with its rate, clipping, gradient scaler and parts of a batch.

The trainer and a loop of one's own step the same class, so that both learn alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detkt.base.errors import InputError
from detkt.methods.base import OPTIMIZERS, STUDENT, Player, Update


def _nothing(*_: Any) -> None:
    """What is done where nothing is asked for. A function has a name, and so can be pickled."""


class Players:
    """The method's own players, each with its optimizer, and the student where its optimizer is given.

    Args:
        players: the method's, by name.
        parameters: trainable parameters by player.
        student: the student's optimizer; None where somebody else steps it.
        clip_norm: of the student's gradient; 0 switches clipping off.
        accumulate: in how many parts a batch comes; players step with the last.
        half: scale losses for float16 gradients.
        average: called with parameters whose gradients are complete, to average them over processes.
        look: called with a player and the norm of its gradient before its step; what it raises prevents the step.
    """

    def __init__(
        self,
        players: Mapping[str, Player],
        parameters: Mapping[str, list[nn.Parameter]],
        student: torch.optim.Optimizer | None = None,
        clip_norm: float = 0.0,
        accumulate: int = 1,
        half: bool = False,
        average: Callable[[Iterable[nn.Parameter]], None] = _nothing,
        look: Callable[[str, Tensor], None] = _nothing,
    ) -> None:
        self.parameters, self.accumulate, self.half = parameters, accumulate, half
        self._average, self._look = average, look
        own = {name: player for name, player in players.items() if name != STUDENT}
        self.optimizers = {name: build_optimizer(player, parameters[name]) for name, player in own.items()}
        self._clip_norms: dict[str, float | None] = {name: player.clip_norm for name, player in own.items()}
        self._scheduled = {name: player.lr for name, player in own.items() if player.scheduled}
        if student is not None:
            self.optimizers[STUDENT] = student
            self._clip_norms[STUDENT] = clip_norm
            self._scheduled[STUDENT] = student.param_groups[0]["lr"]
        self._scalers = {
            name: torch.amp.GradScaler(parameters[name][0].device.type if parameters[name] else "cpu", enabled=half)
            for name in self.optimizers
        }

    def set_rates(self, factor: float) -> None:
        """Multiply the first learning rates of the student and of the scheduled players by *factor*."""
        for name, rate in self._scheduled.items():
            for group in self.optimizers[name].param_groups:
                group["lr"] = rate * factor

    def step(self, update: Update, last: bool = True) -> None:
        """Add to the gradients of the update's player, and let it step with the *last* part of a batch."""
        name = update.player
        optimizer, scaler, parameters = self.optimizers[name], self._scalers[name], self.parameters[name]
        # Restricting the inputs keeps every other player's gradients untouched, and uncomputed.
        scaler.scale(update.total / self.accumulate).backward(inputs=parameters)
        if not last:
            return
        self._average(parameters)
        scaler.unscale_(optimizer)
        if clip_norm := self._clip_norms[name]:
            norm = nn.utils.clip_grad_norm_(parameters, clip_norm)
        else:
            norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        self._look(name, norm)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)  # not before the next backward pass: the forward pass needs the room
        # Inside an autocast the player would go on with half-precision copies of its old weights.
        torch.clear_autocast_cache()

    def state_dict(self) -> dict[str, Any]:
        """Optimizers and scalers by player."""
        return {
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "scalers": {name: scaler.state_dict() for name, scaler in self._scalers.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The reverse of :meth:`state_dict`. Raises KeyError or ValueError: it is of other players."""
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
            self._scalers[name].load_state_dict(state["scalers"][name])
            match_layout(optimizer)


def build_optimizer(player: Player, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer a method asks for one of its own players, fused: one pass over a player's small tensors."""
    fused = all(p.is_cuda or p.is_cpu for p in parameters) or None
    if player.optimizer == "adam":
        return torch.optim.Adam(
            parameters, player.lr, betas=player.betas, weight_decay=player.weight_decay, fused=fused
        )
    if player.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, player.lr, momentum=player.momentum, weight_decay=player.weight_decay, fused=fused
        )
    raise InputError(f"unknown optimizer '{player.optimizer}'; there are: {', '.join(OPTIMIZERS)}")


def match_layout(optimizer: torch.optim.Optimizer) -> None:
    """Bring the optimizer's state into the memory order of its parameters.

    A fused step walks both in the order of memory: a momentum that was saved in another order would be added to other
    weights, without an error.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter).copy_(value)


def schedule_factor(
    step: float, total: float, milestones: Sequence[float], gamma: float, warmup_steps: int, poly_power: float = 0.0
) -> float:
    """Linear warm-up from 1/10, then multi-step and polynomial decay: the factor on the learning rate at *step*.

    ``milestones`` are shares of *total* in (0, 1), at each of which the rate is multiplied by *gamma*. With a
    ``poly_power`` above 0 it falls as (1 - step / total)^poly_power besides.
    """
    factor = gamma ** sum(step >= share * total for share in milestones) * (1 - step / total) ** poly_power
    if step < warmup_steps:
        factor *= 0.1 + 0.9 * step / warmup_steps
    return factor
