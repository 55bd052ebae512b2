"""Optimizers of the players and the student's learning-rate schedule."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from detkt.errors import InputError
from detkt.methods.base import Player


def build_player_optimizer(player: Player, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer a method asks for one of its own players; fused where the device has it."""
    fused = all(p.is_cuda for p in parameters) or None
    if player.optimizer == "adam":
        return torch.optim.Adam(
            parameters, player.lr, betas=player.betas, weight_decay=player.weight_decay, fused=fused
        )
    if player.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, player.lr, momentum=player.momentum, weight_decay=player.weight_decay, fused=fused
        )
    raise InputError(f"unknown optimizer '{player.optimizer}'; there are: sgd, adam")


def schedule_factor(step: int, total: int, milestones: Sequence[float], gamma: float, warmup_steps: int) -> float:
    """Linear warm-up from 1/10, then multi-step decay: the factor on the learning rate at *step* of *total*.

    ``milestones`` are shares of *total* in (0, 1), at each of which the rate is multiplied by *gamma*.
    """
    factor = gamma ** sum(step >= share * total for share in milestones)
    if step < warmup_steps:
        factor *= 0.1 + 0.9 * step / warmup_steps
    return factor
