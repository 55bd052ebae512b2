"""detkt: small object detectors learn from large ones."""

__version__ = "0.1.0"

from detkt.distiller import Distiller

__all__ = ["Distiller", "__version__"]
