"""The card of a network: what it was built as, from which its builder makes the same network again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from detkt.base.errors import InputError

_ATTRIBUTE = "detkt_card"


@dataclass(frozen=True)
class ModelCard:
    """How a network was built.

    ``task``: ``detection`` or ``classification``. ``architecture``, ``num_classes`` and ``options`` are the builder's
    arguments: a detector's classes count the background, the options are all of them, resolved. ``channels``: of the
    pictures it takes. ``random``: names of tensors that the weights it was built with left random; they are no part of
    what rebuilds it.
    """

    task: str
    architecture: str
    num_classes: int
    options: dict[str, Any]
    channels: int = 3
    random: tuple[str, ...] = ()


def add_card(model: nn.Module, card: ModelCard) -> None:
    """Let *model* carry *card*; copies of it carry it, too."""
    vars(model)[_ATTRIBUTE] = card


def find_card(model: nn.Module) -> ModelCard | None:
    """The card of *model*; None: detkt did not build it."""
    return vars(model).get(_ATTRIBUTE)


def card_of(model: nn.Module) -> ModelCard:
    """The card of *model*; raises :class:`InputError` for a network that detkt did not build."""
    card = find_card(model)
    if card is None:
        raise InputError(
            f"this {type(model).__name__} was not built by detkt, which so does not know what would rebuild it; take "
            "one of detkt.models.build_detector, build_classifier or load_model"
        )
    return card
