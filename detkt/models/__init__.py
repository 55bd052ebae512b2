"""Detectors and classifiers by name, and their weights: partial loading, saving, rebuilding."""

from detkt.models.card import ModelCard, card_of
from detkt.models.classifier import Classifier, available_classifiers, build_classifier, load_classifier_weights
from detkt.models.detectors import build_detector
from detkt.models.options import available_detectors, default_options
from detkt.models.saved import load_model, save_model
from detkt.models.weights import LoadReport, load_weights

__all__ = [
    "Classifier",
    "LoadReport",
    "ModelCard",
    "available_classifiers",
    "available_detectors",
    "build_classifier",
    "build_detector",
    "card_of",
    "default_options",
    "load_classifier_weights",
    "load_model",
    "load_weights",
    "save_model",
]
