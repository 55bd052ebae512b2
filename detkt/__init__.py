"""detkt: small object detectors learn from large ones."""

import importlib

from detkt.base.version import __version__
from detkt.distiller import Distiller

_PARTS = ("base", "data", "engine", "evaluation", "methods", "models", "prepare", "tasks", "visualization")


def __getattr__(name: str):
    """Subpackages on demand: ``import detkt; detkt.models.build_detector(...)``."""
    if name in _PARTS:
        return importlib.import_module(f"detkt.{name}")
    raise AttributeError(f"module 'detkt' has no attribute '{name}'")


__all__ = ["Distiller", "__version__"]
