"""Detectors that torchvision has trained, by the name of its function: their weights and their classes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torchvision
from torch import Tensor, nn

from detkt.base.errors import InputError, suggestion
from detkt.models.reading import fetched
from detkt.models.weights import DETECTOR_LOADER, LoadReport

PREFIX = "torchvision"
# Whose COCO_V1 were trained with an eps of 0, which torchvision sets once they are loaded.
_WITHOUT_EPS = (
    "fasterrcnn_resnet50_fpn",
    "keypointrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn",
    "retinanet_resnet50_fpn",
)
_EPS = 1e-5


def is_published(weights: Any) -> bool:
    """Whether *weights* ask for torchvision's: "torchvision", or "torchvision:" and more."""
    return str(weights).partition(":")[0] == PREFIX


def published(name: str, tag: str = "") -> Any:
    """torchvision's weights of its detector *name*; *tag*: which, if not its default ones.

    Raises:
        InputError: torchvision has no such detector, or no such weights of it.
    """
    names = torchvision.models.list_models(module=torchvision.models.detection)
    if name not in names:
        raise InputError(
            f"torchvision {torchvision.__version__} has no trained detector '{name}'{suggestion(name, names)}; it has: "
            f"{', '.join(names)}"
        )
    weights: Any = torchvision.models.get_model_weights(name)
    tags = [member.name for member in weights]
    if not tag:
        return weights.DEFAULT
    if tag not in tags:
        raise InputError(
            f"torchvision's {name} has no weights '{tag}'{suggestion(tag, tags)}; it has: {', '.join(tags)}"
        )
    return weights[tag]


def published_classes(weights: Any) -> list[str]:
    """The classes of :func:`published` weights without the background, so that label i + 1 is the i-th.

    COCO has given up a few of its labels: these are called "N/A 12" and so on.
    """
    names = weights.meta["categories"]
    return [f"N/A {label}" if name == "N/A" else name for label, name in enumerate(names)][1:]


def load_published(model: nn.Module, name: str, weights: str) -> LoadReport:
    """Load *weights*, "torchvision" or "torchvision:TAG", of torchvision's detector *name*; logged.

    Raises:
        InputError: there are none such, or they could not be had.
    """
    found = published(name, weights.partition(":")[2])
    report = DETECTOR_LOADER.load_tensors(model, tensors_of(found, name), f"torchvision's {found}")
    logging.getLogger(__name__).info("%s", report)
    return report


def tensors_of(weights: Any, name: str) -> dict[str, Tensor]:
    """The tensors of torchvision's *weights* of its detector *name*, from torch's hub cache or downloaded."""
    tensors = fetched(weights, f"torchvision's {weights}")
    return with_eps(tensors) if is_without_eps(weights, name) else tensors


def is_without_eps(weights: Any, name: str) -> bool:
    """Whether torchvision's *weights* of its detector *name* are for batch norms that add nothing to the variance."""
    return name in _WITHOUT_EPS and weights.name == "COCO_V1"


def with_eps(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """*tensors* of a net whose frozen batch norms add nothing to the variance, for one whose add :data:`_EPS`."""
    tensors = dict(tensors)
    for name in [name for name in tensors if name.endswith("running_var")]:
        weight = f"{name.removesuffix('running_var')}weight"
        tensors[weight] = tensors[weight] * ((tensors[name] + _EPS) / tensors[name]).sqrt()
    return tensors


def published_file(path: Path, name: str) -> Any:
    """torchvision's weights of its detector *name* that are downloaded under the file name of *path*; None: no such."""
    if name not in torchvision.models.list_models(module=torchvision.models.detection):
        return None
    weights: Any = torchvision.models.get_model_weights(name)
    return next((member for member in weights if member.url.rpartition("/")[2] == path.name), None)
