"""Names of the detectors, and their options.

Names of Faster R-CNN: ``fasterrcnn_<resnet>_c4``, ``fasterrcnn_vgg16``, ``fasterrcnn_alexnet`` and
``fasterrcnn_timm:<name>_c4`` with the settings of the papers' tables as defaults; ``fasterrcnn_<resnet>_fpn``,
``fasterrcnn_<resnet>_fpn_v2``, ``fasterrcnn_mobilenet_v3_large_fpn``, ``fasterrcnn_mobilenet_v3_large_320_fpn`` and
``fasterrcnn_timm:<name>_fpn`` with torchvision's. ``maskrcnn_<resnet>_fpn``, ``maskrcnn_<resnet>_fpn_v2`` and
``keypointrcnn_<resnet>_fpn`` are these again, for the boxes of torchvision's nets: their other heads are left out.

Of one stage: ``retinanet_<resnet>_fpn``, ``retinanet_<resnet>_fpn_v2``, ``retinanet_timm:<name>_fpn``,
``fcos_<resnet>_fpn``, ``fcos_timm:<name>_fpn``, ``ssd300_vgg16`` and ``ssdlite320_mobilenet_v3_large``.

``<resnet>`` is ``resnet`` with a depth of 10, 18, 34, 50, 101 or 152 and, if wanted, a factor on the width
of every layer: ``fasterrcnn_resnet18x0.25_c4`` has 64 channels on its C4 map instead of 256. ``resnet10`` and
nets with a factor (``x1`` too) are for training from nothing: batch norms are live and no stage is frozen.

``timm:<name>`` is a convolutional net of timm; ``image_mean`` and ``image_std`` are those of its own data config. Its
C4 form ends at stride 16, or before at the layer that ``last_layer`` names; with ``dilated`` the layers of stride 32
are kept, at stride 16. Faster R-CNN's forms of it read RoIs with two fully connected layers.
"""

from __future__ import annotations

import copy
import inspect
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.ssd import SSD

from detkt.base.errors import InputError, suggestion
from detkt.models.backbones import RESNETS
from detkt.models.timm_backbones import timm_normalisation


def numbers(cls: type) -> dict[str, Any]:
    """The settings of a torchvision detector that are plain numbers, with its own defaults."""
    parameters = inspect.signature(cls).parameters.values()
    return {p.name: p.default for p in parameters if type(p.default) in (int, float)}


IMAGENET_NORMALISATION = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
SHARED_OPTIONS: dict[str, Any] = {
    "min_size": 600,
    "max_size": 1000,
    **IMAGENET_NORMALISATION,
    "anchor_sizes": [128, 256, 512],
    "aspect_ratios": [0.5, 1.0, 2.0],
    "rpn_channels": 512,
    "rpn_batch_size_per_image": 256,
    "rpn_positive_fraction": 0.5,
    "rpn_fg_iou_thresh": 0.7,
    "rpn_bg_iou_thresh": 0.3,
    "rpn_pre_nms_top_n_train": 12000,
    "rpn_post_nms_top_n_train": 2000,
    "rpn_pre_nms_top_n_test": 6000,
    "rpn_post_nms_top_n_test": 300,
    "rpn_nms_thresh": 0.7,
    "roi_size": 7,
    "roi_sampling_ratio": 2,
    "box_batch_size_per_image": 128,
    "box_positive_fraction": 0.25,
    "box_fg_iou_thresh": 0.5,
    "box_bg_iou_thresh": 0.5,
    "box_score_thresh": 0.05,
    "box_nms_thresh": 0.3,
    "box_detections_per_img": 100,
    "frozen_stages": 2,
}
"""Options of a Faster R-CNN of one map, by torchvision's names where it has one. Lengths are pixels after resizing."""

_RATIOS = [0.5, 1.0, 2.0]
_LEVELS = {"anchor_sizes": [32, 64, 128, 256, 512], "aspect_ratios": _RATIOS}
_ROIS = {"roi_size": 7, "roi_sampling_ratio": 2}
_TRAINED = {"norm": "frozen", "trainable_backbone_layers": 3}
_FPN = {
    **numbers(FasterRCNN),
    **IMAGENET_NORMALISATION,
    **_LEVELS,
    **_ROIS,
    "rpn_channels": 256,
    "norm": "frozen",
    "frozen_stages": 2,
    "fpn_channels": 256,
    "head_features": 1024,
}
_FPN_V2 = {
    **numbers(FasterRCNN),
    **IMAGENET_NORMALISATION,
    **_LEVELS,
    **_ROIS,
    **_TRAINED,
    "norm": "batch",
    "fpn_channels": 256,
    "head_features": 1024,
}
_MOBILENET = {
    **numbers(FasterRCNN),
    **IMAGENET_NORMALISATION,
    **_LEVELS,
    **_TRAINED,
    "rpn_score_thresh": 0.05,
}
_RETINANET = {
    **numbers(RetinaNet),
    **IMAGENET_NORMALISATION,
    **_LEVELS,
    "scales_per_octave": 3,
    **_TRAINED,
    "fpn_channels": 256,
}
_FCOS = {
    **numbers(FCOS),
    **IMAGENET_NORMALISATION,
    "anchor_sizes": [8, 16, 32, 64, 128],
    **_TRAINED,
    "fpn_channels": 256,
}

KIND_OPTIONS: dict[str, dict[str, Any]] = {
    "c4": SHARED_OPTIONS | {"norm": "frozen", "roi_head_stride": 2},
    "vgg16": SHARED_OPTIONS | {"head_features": 4096, "head_dropout": 0.5},
    "alexnet": SHARED_OPTIONS | {"head_features": 4096, "head_dropout": 0.5, "roi_size": 6, "frozen_stages": 0},
    "timm_c4": SHARED_OPTIONS
    | {"norm": "frozen", "last_layer": "", "dilated": False, "head_features": 1024, "head_dropout": 0.0},
    "fpn": _FPN,
    "timm_fpn": _FPN,
    "fpn_v2": _FPN_V2,
    "mobilenet_fpn": _MOBILENET,
    "mobilenet_320_fpn": _MOBILENET
    | {"min_size": 320, "max_size": 640, "rpn_pre_nms_top_n_test": 150, "rpn_post_nms_top_n_test": 150},
    "retinanet": _RETINANET,
    "timm_retinanet": _RETINANET,
    "retinanet_v2": _RETINANET | {"norm": "batch"},
    "fcos": _FCOS,
    "timm_fcos": _FCOS,
    "ssd300": {
        **numbers(SSD),
        # VGG-16's weights before torchvision's own: pixels from 0 to 255, and no deviation.
        "image_mean": [0.48235, 0.45882, 0.40784],
        "image_std": [1 / 255, 1 / 255, 1 / 255],
        "trainable_backbone_layers": 4,
    },
    "ssdlite320": {
        **numbers(SSD),
        "score_thresh": 0.001,
        "nms_thresh": 0.55,
        "detections_per_img": 300,
        "topk_candidates": 300,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "trainable_backbone_layers": 6,
        "reduced_tail": True,
    },
}
"""Every option of a kind of detector with its default. ``reduced_tail``: the last layers of MobileNetV3 have half the
channels, as in torchvision's COCO weights; its ImageNet weights need ``False``."""

LAST_STAGE = {kind: 5 for kind in KIND_OPTIONS} | {"c4": 4, "timm_c4": 4}
LAST_STAGE |= {"mobilenet_fpn": 6, "mobilenet_320_fpn": 6, "ssdlite320": 6}
"""The largest ``frozen_stages`` and ``trainable_backbone_layers`` of a kind."""

_PYRAMIDS = ("fpn", "timm_fpn", "fpn_v2", "retinanet", "timm_retinanet", "retinanet_v2", "fcos", "timm_fcos")
ANCHOR_LEVELS = dict.fromkeys(_PYRAMIDS, 5)
"""How many maps each have an anchor size of their own."""

GROUP_NORM = {"retinanet_v2": 32, "fcos": 32, "timm_fcos": 32}
"""In how many groups a kind's heads normalise the channels of the pyramid."""

# What comes before and after the backbone's name.
_FORMS = {
    ("fasterrcnn", "c4"): "c4",
    ("fasterrcnn", "fpn"): "fpn",
    ("fasterrcnn", "fpn_v2"): "fpn_v2",
    ("maskrcnn", "fpn"): "fpn",
    ("maskrcnn", "fpn_v2"): "fpn_v2",
    ("keypointrcnn", "fpn"): "fpn",
    ("retinanet", "fpn"): "retinanet",
    ("retinanet", "fpn_v2"): "retinanet_v2",
    ("fcos", "fpn"): "fcos",
}
_FIXED = {
    "fasterrcnn_vgg16": "vgg16",
    "fasterrcnn_alexnet": "alexnet",
    "fasterrcnn_mobilenet_v3_large_fpn": "mobilenet_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn": "mobilenet_320_fpn",
    "ssd300_vgg16": "ssd300",
    "ssdlite320_mobilenet_v3_large": "ssdlite320",
}
_IMAGENET = {
    "vgg16": "vgg16",
    "alexnet": "alexnet",
    "mobilenet_fpn": "mobilenet_v3_large",
    "mobilenet_320_fpn": "mobilenet_v3_large",
    "ssd300": "vgg16:IMAGENET1K_FEATURES",
    "ssdlite320": "mobilenet_v3_large",
}
_TIMM_FORMS = ("fasterrcnn", "retinanet", "fcos")
_NAME = re.compile(
    rf"(?P<form>{'|'.join(dict.fromkeys(form for form, _ in _FORMS))})_"
    rf"(?:timm:(?P<timm>.+)|resnet(?P<depth>{'|'.join(map(str, RESNETS))})(?:x(?P<width>\d+(?:\.\d+)?))?)_"
    rf"(?P<neck>{'|'.join(dict.fromkeys(neck for _, neck in _FORMS))})"
)


@dataclass(frozen=True)
class Architecture:
    """What the name of a detector says; ``kind`` is a key of :data:`KIND_OPTIONS`."""

    name: str
    kind: str
    depth: int = 0
    width: float = 1.0
    from_scratch: bool = False
    timm: str = ""

    @property
    def classifier(self) -> str | None:
        """torchvision's classifier whose ImageNet weights fit, if there is one: NAME, or NAME:WEIGHTS."""
        if self.from_scratch or self.timm:
            return None
        return f"resnet{self.depth}" if self.depth else _IMAGENET[self.kind]


def available_detectors() -> list[str]:
    """Names that ``build_detector`` takes, without timm's; a ResNet may have a width factor (``resnet18x0.25``)."""
    return [f"{form}_resnet{depth}_{neck}" for form, neck in _FORMS for depth in RESNETS] + list(_FIXED)


def parse_name(name: str) -> Architecture:
    """Take the name of a detector apart; an unknown one raises :class:`InputError`."""
    name = str(name)
    if name in _FIXED:
        return Architecture(name, _FIXED[name])
    match = _NAME.fullmatch(name)
    kind = _FORMS.get((match["form"], match["neck"])) if match else None
    if match is not None and match["timm"] and kind is not None:
        kind = f"timm_{kind}" if f"timm_{kind}" in KIND_OPTIONS and match["form"] in _TIMM_FORMS else None
    if match is None or kind is None:
        scaled = [f"fasterrcnn_resnet{depth}x0.25_c4" for depth in RESNETS]
        forms = [f"{form}_<resnet>_{neck}" for form, neck in _FORMS]
        raise InputError(
            f"unknown detector '{name}'{suggestion(name, available_detectors() + scaled)}; known: "
            f"{', '.join(forms)} with <resnet> resnet{', '.join(map(str, RESNETS))} or a width as in resnet18x0.25, "
            f"{', '.join(_FIXED)}, and timm's nets as in fasterrcnn_timm:convnext_tiny_c4 and "
            f"{', '.join(f'{form}_timm:convnext_tiny_fpn' for form in _TIMM_FORMS)}"
        )
    if match["timm"]:
        return Architecture(name, kind, timm=match["timm"])
    width = float(match["width"] or 1)
    if width == 0:
        raise InputError(f"detector '{name}': the width factor must be above 0")
    depth = int(match["depth"])
    return Architecture(name, kind, depth, width, from_scratch=match["width"] is not None or depth == 10)


def default_options(name: str) -> dict[str, Any]:
    """Every option of a detector with its default."""
    architecture = parse_name(name)
    kind = architecture.kind
    defaults = dict(KIND_OPTIONS[kind])
    if architecture.from_scratch:
        live = {"norm": "batch", "frozen_stages": 0, "trainable_backbone_layers": LAST_STAGE[kind]}
        defaults |= {key: value for key, value in live.items() if key in defaults}
        for key in defaults.keys() & {"rpn_channels", "fpn_channels", "head_features"}:
            groups = GROUP_NORM.get(kind, 1) if key == "fpn_channels" else 1
            defaults[key] = groups * max(1, round(defaults[key] * architecture.width / groups))
    if architecture.timm:
        defaults |= timm_normalisation(architecture.timm, f"detector '{name}'")
    return copy.deepcopy(defaults)  # the tables' lists stay theirs


def resolve_options(architecture: Architecture, given: dict[str, Any]) -> dict[str, Any]:
    """Defaults overridden by *given*, checked and in JSON's types; raises :class:`InputError`.

    Where a kind counts ``frozen_stages`` from the input, torchvision's ``trainable_backbone_layers``, from the other
    end, is taken too.
    """
    name, kind, last = architecture.name, architecture.kind, LAST_STAGE[architecture.kind]
    defaults = default_options(name)
    trainable = given.get("trainable_backbone_layers")
    if kind in ("fpn", "timm_fpn") and isinstance(trainable, int) and "frozen_stages" not in given:
        given = {key: value for key, value in given.items() if key != "trainable_backbone_layers"}
        given["frozen_stages"] = last - trainable
    options = overridden(name, defaults, given, _checked)
    for low, high in (
        ("min_size", "max_size"),
        ("rpn_bg_iou_thresh", "rpn_fg_iou_thresh"),
        ("box_bg_iou_thresh", "box_fg_iou_thresh"),
        ("bg_iou_thresh", "fg_iou_thresh"),
    ):
        if low in options and options[low] > options[high]:
            raise InputError(f"{low} {options[low]} is above {high} {options[high]}")
    for key in ("frozen_stages", "trainable_backbone_layers"):
        if options.get(key, 0) > last:
            raise InputError(f"{name}: {key} is 0 to {last}, got {options[key]}")
    if kind in ANCHOR_LEVELS and len(options["anchor_sizes"]) != ANCHOR_LEVELS[kind]:
        sizes = options["anchor_sizes"]
        raise InputError(f"{name}: anchor_sizes needs one size for each of {ANCHOR_LEVELS[kind]} levels, got {sizes}")
    if kind in GROUP_NORM and options["fpn_channels"] % GROUP_NORM[kind]:
        raise InputError(
            f"{name}: fpn_channels must be a multiple of {GROUP_NORM[kind]}, the groups of its heads; got "
            f"{options['fpn_channels']}"
        )
    return options


_MAY_BE_ZERO = ("frozen_stages", "trainable_backbone_layers", "roi_sampling_ratio")


def overridden(
    name: str, defaults: dict[str, Any], given: dict[str, Any], checked: Callable[[str, Any, Any], Any]
) -> dict[str, Any]:
    """*defaults* of the net *name* with those *given*, each as ``checked(key, value, default)`` returns it.

    Raises:
        InputError: an option that is not among the defaults.
    """
    options = dict(defaults)
    for key, value in given.items():
        if key not in options:
            known = f"it has: {', '.join(options)}" if options else "it has none"
            raise InputError(f"{name} has no option '{key}'{suggestion(key, options)}; {known}")
        options[key] = checked(key, value, options[key])
    return options


def _checked(key: str, value: Any, default: Any) -> Any:
    """*value* as a plain int, float, str or list of numbers, like *default*."""
    if isinstance(default, list):
        if not isinstance(value, Sequence) or isinstance(value, str) or not value:
            raise InputError(f"option {key} must be a list of numbers such as {default}, got {value!r}")
        if key.startswith("image_") and len(value) != 3:
            raise InputError(f"option {key} must hold three numbers (red, green, blue), got {list(value)}")
        signed = key == "image_mean"
        return [_number(key, item, low=-math.inf if signed else 0, open_low=not signed) for item in value]
    if key == "last_layer":
        if not isinstance(value, str):
            raise InputError(f"option last_layer must be the name of a layer such as 'blocks.3', got {value!r}")
        return value
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise InputError(f"option {key} must be true or false, got {value!r}")
        return value
    if isinstance(default, str):
        if value not in ("frozen", "batch"):
            raise InputError(f"option {key} must be 'frozen' or 'batch', got {value!r}")
        return value
    if isinstance(default, float):
        return float(_number(key, value, low=0, high=1 if default <= 1 else math.inf))
    if not isinstance(value, Integral):
        raise InputError(f"option {key} must be a whole number, got {value!r}")
    return int(_number(key, value, low=0, open_low=key not in _MAY_BE_ZERO))


def _number(key: str, value: Any, low: float, high: float = math.inf, open_low: bool = False) -> int | float:
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
        raise InputError(f"option {key} must be a number, got {value!r}")
    if float(value) < low or float(value) > high or (open_low and value == low):
        limits = f"above {low:g}" if open_low else f"{low:g} or more"
        raise InputError(f"option {key} must be {limits}{f' and at most {high:g}' * (high < math.inf)}, got {value}")
    return int(value) if isinstance(value, Integral) else float(value)
