"""Runs shown side by side: what they are called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from detkt.base.errors import InputError
from detkt.config import load_config
from detkt.models import load_model
from detkt.visualization.curves import Log, read_log
from detkt.visualization.kernels import convolution_weights


def titles(methods: Sequence[str], runs: Sequence[Path]) -> list[str]:
    """Each run's method; with its folder where several runs share it.

    Raises InputError: a run is named twice.
    """
    if len(set(runs)) < len(runs):
        twice = next(run for run in runs if runs.count(run) > 1)
        raise InputError(f"{twice} is named twice; name every run once")
    shared, names = Counter(methods), Counter(run.name for run in runs)
    folders = [run.name if names[run.name] == 1 else str(run) for run in runs]
    return [
        method if shared[method] == 1 else f"{method} ({folder})"
        for method, folder in zip(methods, folders, strict=True)
    ]


def titled_logs(runs: Sequence[Path]) -> dict[str, Log]:
    """Title -> log of each run. Raises InputError: no ``config.yaml`` or ``log.jsonl``, or one that cannot be read."""
    methods = [load_config(run / "config.yaml").method_name for run in runs]
    return dict(zip(titles(methods, runs), [read_log(run / "log.jsonl") for run in runs], strict=True))


def titled_convolutions(runs: Sequence[Path]) -> dict[str, list[Tensor]]:
    """Title -> weights of every convolution of each run's network. Raises InputError: it holds none."""
    opened = [load_model(run, task=None) for run in runs]
    methods = [(meta.get("extra") or {}).get("method") or "network" for _, meta in opened]
    return {title: convolution_weights(model) for title, (model, _) in zip(titles(methods, runs), opened, strict=True)}
