"""The student scored while it learns, on pictures that are neither trained on nor tested on, and the best one kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any


class Validation:
    """Scores after every epoch; what counts is the first of *measures*, the higher the better.

    Args:
        score: the student's scores now, by name.
        measures: those that are logged, as ``val_<measure>``.
        keep: called with the record of a score better than all before, to keep the student as it is now.

    Attributes:
        epochs: how many have been scored.
        history: a record an epoch: ``step``, ``epoch`` and the measures.
        best: that of the best score; None before the first.
    """

    def __init__(
        self, score: Callable[[], dict[str, Any]], measures: Sequence[str], keep: Callable[[dict[str, Any]], None]
    ) -> None:
        self._score, self._measures, self._keep = score, list(measures), keep
        self.epochs = 0
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None

    def run(self, step: int) -> dict[str, float | None]:
        """Score the student of *step*: what to log. A measure that is not a number (nothing to find) is None."""
        scores = self._score()
        found = {name: scores[name] if math.isfinite(scores[name]) else None for name in self._measures}
        record = {"step": step, "epoch": self.epochs + 1, **found}
        if self.best is None or self._value(record) > self._value(self.best):
            self._keep(record)
            self.best = record
        self.epochs += 1
        self.history.append(record)
        return {f"val_{name}": value for name, value in found.items()}

    def _value(self, record: dict[str, Any]) -> float:
        value = record[self._measures[0]]
        return -math.inf if value is None else value

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs, "best": self.best, "history": self.history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs, self.best = state["epochs"], state["best"]
        self.history = list(state.get("history", []))  # a checkpoint of before it was kept: the rest of the curve
