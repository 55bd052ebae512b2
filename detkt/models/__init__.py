"""Detectors and classifiers by name, and their weights: partial loading, saving, rebuilding."""

from detkt.models.classifier import Classifier, available_classifiers, build_classifier, load_classifier_weights
from detkt.models.faster_rcnn import build_detector
from detkt.models.options import available_detectors, default_options
from detkt.models.weights import LoadReport, load_model, load_weights, save_model

__all__ = [
    "Classifier",
    "LoadReport",
    "available_classifiers",
    "available_detectors",
    "build_classifier",
    "build_detector",
    "default_options",
    "load_classifier_weights",
    "load_model",
    "load_weights",
    "save_model",
]
