"""The families of networks, a task each: what rebuilds one from its card."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from detkt.models.classifier import (
    build_classifier,
    default_classifier_options,
    parse_classifier,
    resolve_classifier_options,
)
from detkt.models.detectors import build_detector
from detkt.models.options import default_options, parse_name, resolve_options


@dataclass(frozen=True)
class Family:
    """Networks of one task by name.

    ``build(name, num_classes, weights, **options)`` makes one; ``default_options(name)`` are all its options;
    ``resolve_options(name, given)`` are these with some given, checked. ``background``: how many of a network's classes
    have no name.
    """

    task: str
    build: Callable[..., nn.Module]
    default_options: Callable[[str], dict[str, Any]]
    resolve_options: Callable[[str, dict[str, Any]], dict[str, Any]]
    background: int


DETECTORS = Family(
    "detection",
    build_detector,
    default_options,
    lambda name, given: resolve_options(parse_name(name), given),
    background=1,
)
CLASSIFIERS = Family(
    "classification",
    build_classifier,
    default_classifier_options,
    lambda name, given: resolve_classifier_options(parse_classifier(name), given),
    background=0,
)
FAMILIES = {family.task: family for family in (DETECTORS, CLASSIFIERS)}
