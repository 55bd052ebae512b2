"""detkt: small object detectors learn from large ones."""

__version__ = "0.1.0"

import importlib

from detkt.distiller import Distiller

_PARTS = ("data", "engine", "evaluation", "methods", "models", "tasks", "visualization")


def __getattr__(name: str):
    """Subpackages on demand: ``import detkt; detkt.models.build_detector(...)``."""
    if name in _PARTS:
        return importlib.import_module(f"detkt.{name}")
    raise AttributeError(f"module 'detkt' has no attribute '{name}'")


__all__ = ["Distiller", "__version__"]
