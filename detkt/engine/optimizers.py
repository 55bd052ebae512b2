"""Optimizers of the players and the student's learning-rate schedule."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detkt.base.errors import InputError
from detkt.methods.base import Player


def build_player_optimizer(player: Player, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
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
    raise InputError(f"unknown optimizer '{player.optimizer}'; there are: sgd, adam")


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
    step: int, total: int, milestones: Sequence[float], gamma: float, warmup_steps: int, poly_power: float = 0.0
) -> float:
    """Linear warm-up from 1/10, then multi-step and polynomial decay: the factor on the learning rate at *step*.

    ``milestones`` are shares of *total* in (0, 1), at each of which the rate is multiplied by *gamma*. With a
    ``poly_power`` above 0 it falls as (1 - step / total)^poly_power besides.
    """
    factor = gamma ** sum(step >= share * total for share in milestones) * (1 - step / total) ** poly_power
    if step < warmup_steps:
        factor *= 0.1 + 0.9 * step / warmup_steps
    return factor
