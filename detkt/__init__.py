"""detkt: small object detectors learn from large ones.

What is imported from here is loaded when it is first used: ``import detkt`` itself takes no time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from detkt.base.version import __version__

if TYPE_CHECKING:
    from detkt import base as base
    from detkt import data as data
    from detkt import engine as engine
    from detkt import evaluation as evaluation
    from detkt import methods as methods
    from detkt import models as models
    from detkt import prepare as prepare
    from detkt import tasks as tasks
    from detkt import visualization as visualization
    from detkt.base.errors import InputError
    from detkt.distiller import Distiller
    from detkt.engine.run import train
    from detkt.knowledge import Knowledge
    from detkt.methods.base import Method, Needs, Stage, Update
    from detkt.models import build_detector, load_model

_HOMES = {
    "Distiller": "detkt.distiller",
    "InputError": "detkt.base.errors",
    "Knowledge": "detkt.knowledge",
    "Method": "detkt.methods.base",
    "Needs": "detkt.methods.base",
    "Stage": "detkt.methods.base",
    "Update": "detkt.methods.base",
    "build_detector": "detkt.models",
    "load_model": "detkt.models",
    "train": "detkt.engine.run",
}
_PARTS = ("base", "data", "engine", "evaluation", "methods", "models", "prepare", "tasks", "visualization")


if not TYPE_CHECKING:  # which would take any name for one that is there

    def __getattr__(name: str) -> Any:
        """The names above, and subpackages: ``import detkt; detkt.models.build_classifier(...)``."""
        if name in _HOMES:
            return getattr(importlib.import_module(_HOMES[name]), name)
        if name in _PARTS:
            return importlib.import_module(f"detkt.{name}")
        raise AttributeError(f"module 'detkt' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, *_PARTS])


__all__ = [
    "Distiller",
    "InputError",
    "Knowledge",
    "Method",
    "Needs",
    "Stage",
    "Update",
    "__version__",
    "build_detector",
    "load_model",
    "train",
]
