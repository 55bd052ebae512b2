"""torchvision's detectors by name: `build_detector` and which function builds which kind."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from pathlib import Path
from typing import Any

from torch import nn

from detkt.base.errors import InputError
from detkt.models import faster_rcnn, one_stage
from detkt.models.card import ModelCard, add_card
from detkt.models.options import Architecture, parse_name, resolve_options
from detkt.models.published import is_published, load_published
from detkt.models.weights import DETECTOR_LOADER

BUILDERS: dict[str, Callable[[Architecture, int, dict[str, Any]], nn.Module]] = {
    **dict.fromkeys(faster_rcnn.KINDS, faster_rcnn.faster_rcnn),
    **dict.fromkeys(("retinanet", "timm_retinanet", "retinanet_v2"), one_stage.retinanet),
    **dict.fromkeys(("fcos", "timm_fcos"), one_stage.fcos),
    "ssd300": one_stage.ssd300,
    "ssdlite320": one_stage.ssdlite320,
}
"""By `detkt.models.options.Architecture.kind`."""


def build_detector(name: str, num_classes: int, weights: str | Path | None = None, **options: Any) -> Any:
    """A detector of the given name, on the CPU and in training mode.

    Args:
        name: see `detkt.models.options.available_detectors`.
        num_classes: number of classes, background included.
        weights: "imagenet" for torchvision's classifier weights; "torchvision" or "torchvision:COCO_V1" for its
            detector of the same name, whose predictor stays random where it has other classes (both downloaded, or from
            torch's hub cache); a file or folder for `detkt.models.weights.load_weights`; or None for random ones.
            What was loaded is logged.
        options: any key of `detkt.models.options.default_options`; numbers, strings and lists.
            ``frozen_stages`` counts from the input: for a ResNet 1 is conv1, 2 adds layer1, and so on; for
            VGG-16 it is a number of blocks of convolutions, for AlexNet of convolutions, and for timm's nets k
            means every layer up to stride 2^k. ``trainable_backbone_layers`` counts them from the end, as torchvision
            does, also without trained weights. ``norm`` is "frozen" or "batch", see
            `detkt.models.backbones.resnet_stages`.

    Returns:
        torchvision's ``FasterRCNN``, ``RetinaNet``, ``FCOS`` or ``SSD``; its ``card = detkt.models.card_of(model)``
        rebuilds it: ``build_detector(card.architecture, card.num_classes, **card.options)``.

    Raises:
        InputError: unknown name or option, option of a wrong type or out of range, weights that do not fit.
    """
    architecture = parse_name(name)
    if not isinstance(num_classes, Integral) or isinstance(num_classes, bool) or num_classes < 2:
        raise InputError(f"{name}: num_classes counts the background and must be 2 or more, got {num_classes!r}")
    resolved = resolve_options(architecture, options)
    model = BUILDERS[architecture.kind](architecture, int(num_classes), resolved)
    add_card(model, ModelCard("detection", name, int(num_classes), resolved))
    if is_published(weights):
        load_published(model, name, str(weights))
    elif weights == "imagenet" and resolved.get("reduced_tail"):
        raise InputError(f"{name}: ImageNet weights are of the whole MobileNetV3; give the option reduced_tail=false")
    elif weights is not None:
        DETECTOR_LOADER.load(model, weights, architecture.classifier, name)
    return model
