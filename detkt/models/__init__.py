"""Detectors by name, and their weights: partial loading, saving, rebuilding."""

from detkt.models.faster_rcnn import build_detector
from detkt.models.options import available_detectors, default_options
from detkt.models.weights import LoadReport, load_model, load_weights, save_model

__all__ = [
    "LoadReport",
    "available_detectors",
    "build_detector",
    "default_options",
    "load_model",
    "load_weights",
    "save_model",
]
