"""Names of the detectors, and their options with the settings of the papers' tables as defaults.

Names: ``fasterrcnn_<resnet>_c4``, ``fasterrcnn_<resnet>_fpn``, ``fasterrcnn_vgg16``, ``fasterrcnn_alexnet``,
``fasterrcnn_timm:<name>_c4`` and ``fasterrcnn_timm:<name>_fpn``.

``<resnet>`` is ``resnet`` with a depth of 10, 18, 34, 50, 101 or 152 and, if wanted, a factor on the width
of every layer: ``fasterrcnn_resnet18x0.25_c4`` has 64 channels on its C4 map instead of 256. ``resnet10`` and
nets with a factor (``x1`` too) are for training from nothing: batch norms are live and no stage is frozen.

``timm:<name>`` is a convolutional net of timm; ``image_mean`` and ``image_std`` are those of its own data config. Its
C4 form ends at stride 16, or before at the layer that ``last_layer`` names; with ``dilated`` the layers of stride 32
are kept, at stride 16. Both forms read RoIs with two fully connected layers.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from detkt.base.errors import InputError, suggestion
from detkt.models.backbones import RESNETS
from detkt.models.timm_backbones import timm_normalisation

SHARED_OPTIONS: dict[str, Any] = {
    "min_size": 600,
    "max_size": 1000,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
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
"""Options of every detector, by torchvision's names where it has one. Lengths are pixels after resizing."""

KIND_OPTIONS: dict[str, dict[str, Any]] = {
    "c4": {"norm": "frozen", "roi_head_stride": 2},
    "vgg16": {"head_features": 4096, "head_dropout": 0.5},
    "alexnet": {"head_features": 4096, "head_dropout": 0.5, "roi_size": 6, "frozen_stages": 0},
    # One anchor size a level, and proposals counted a level, as in Lin et al. 2017.
    "fpn": {
        "norm": "frozen",
        "fpn_channels": 256,
        "head_features": 1024,
        "anchor_sizes": [32, 64, 128, 256, 512],
        "rpn_channels": 256,
        "rpn_pre_nms_top_n_train": 2000,
        "rpn_pre_nms_top_n_test": 1000,
        "rpn_post_nms_top_n_test": 1000,
    },
    "timm_c4": {"norm": "frozen", "last_layer": "", "dilated": False, "head_features": 1024, "head_dropout": 0.0},
}
KIND_OPTIONS["timm_fpn"] = KIND_OPTIONS["fpn"]
"""What a kind of detector adds to :data:`SHARED_OPTIONS` or has otherwise."""

LAST_FROZEN_STAGE = {"c4": 4, "fpn": 5, "vgg16": 5, "alexnet": 5, "timm_c4": 4, "timm_fpn": 5}

_NAME = re.compile(
    r"fasterrcnn_(?:(?P<plain>vgg16|alexnet)|timm:(?P<timm>.+)_(?P<timm_kind>c4|fpn)"
    rf"|resnet(?P<depth>{'|'.join(map(str, RESNETS))})(?:x(?P<width>\d+(?:\.\d+)?))?_(?P<kind>c4|fpn))"
)


@dataclass(frozen=True)
class Architecture:
    """What the name of a detector says."""

    name: str
    kind: str
    depth: int = 0
    width: float = 1.0
    from_scratch: bool = False
    timm: str = ""

    @property
    def has_pyramid(self) -> bool:
        return self.kind.endswith("fpn")

    @property
    def classifier(self) -> str | None:
        """Name of torchvision's classifier whose ImageNet weights fit, if there is one."""
        if self.from_scratch or self.timm:
            return None
        return f"resnet{self.depth}" if self.depth else self.kind


def available_detectors() -> list[str]:
    """Names that ``build_detector`` takes, without timm's; a ResNet may have a width factor (``resnet18x0.25``)."""
    resnets = [f"fasterrcnn_resnet{depth}_{kind}" for depth in RESNETS for kind in ("c4", "fpn")]
    return [*resnets, "fasterrcnn_vgg16", "fasterrcnn_alexnet"]


def parse_name(name: str) -> Architecture:
    """Take the name of a detector apart; an unknown one raises :class:`InputError`."""
    match = _NAME.fullmatch(str(name))
    if match is None:
        scaled = [f"fasterrcnn_resnet{depth}x0.25_c4" for depth in RESNETS]
        raise InputError(
            f"unknown detector '{name}'{suggestion(name, available_detectors() + scaled)}; known: "
            f"{', '.join(available_detectors())}, widths as in fasterrcnn_resnet18x0.25_c4, and timm's nets as in "
            "fasterrcnn_timm:convnext_tiny_c4 and fasterrcnn_timm:convnext_tiny_fpn"
        )
    if match["plain"]:
        return Architecture(name, match["plain"])
    if match["timm"]:
        return Architecture(name, f"timm_{match['timm_kind']}", timm=match["timm"])
    width = float(match["width"] or 1)
    if width == 0:
        raise InputError(f"detector '{name}': the width factor must be above 0")
    depth = int(match["depth"])
    return Architecture(name, match["kind"], depth, width, from_scratch=match["width"] is not None or depth == 10)


def default_options(name: str) -> dict[str, Any]:
    """Every option of a detector with its default."""
    architecture = parse_name(name)
    defaults = SHARED_OPTIONS | KIND_OPTIONS[architecture.kind]
    if architecture.from_scratch:
        defaults |= {"norm": "batch", "frozen_stages": 0}
        for key in defaults.keys() & {"rpn_channels", "fpn_channels", "head_features"}:
            defaults[key] = max(1, round(defaults[key] * architecture.width))
    if architecture.timm:
        defaults |= timm_normalisation(architecture.timm, f"detector '{name}'")
    return copy.deepcopy(defaults)  # the tables' lists stay theirs


def resolve_options(architecture: Architecture, given: dict[str, Any]) -> dict[str, Any]:
    """Defaults overridden by *given*, checked and in JSON's types; raises :class:`InputError`."""
    options = overridden(architecture.name, default_options(architecture.name), given, _checked)
    if options["min_size"] > options["max_size"]:
        raise InputError(f"min_size {options['min_size']} is above max_size {options['max_size']}")
    if options["rpn_bg_iou_thresh"] > options["rpn_fg_iou_thresh"]:
        raise InputError("rpn_bg_iou_thresh is above rpn_fg_iou_thresh")
    if options["box_bg_iou_thresh"] > options["box_fg_iou_thresh"]:
        raise InputError("box_bg_iou_thresh is above box_fg_iou_thresh")
    if options["frozen_stages"] > LAST_FROZEN_STAGE[architecture.kind]:
        last = LAST_FROZEN_STAGE[architecture.kind]
        raise InputError(f"{architecture.name}: frozen_stages is 0 to {last}, got {options['frozen_stages']}")
    if architecture.has_pyramid and len(options["anchor_sizes"]) != 5:
        sizes = options["anchor_sizes"]
        raise InputError(f"{architecture.name}: anchor_sizes needs one size for each of 5 levels, got {sizes}")
    return options


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
        return float(_number(key, value, low=0, high=1))
    if not isinstance(value, Integral):
        raise InputError(f"option {key} must be a whole number, got {value!r}")
    return int(_number(key, value, low=0, open_low=key not in ("frozen_stages", "roi_sampling_ratio")))


def _number(key: str, value: Any, low: float, high: float = math.inf, open_low: bool = False) -> int | float:
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
        raise InputError(f"option {key} must be a number, got {value!r}")
    if float(value) < low or float(value) > high or (open_low and value == low):
        limits = f"above {low:g}" if open_low else f"{low:g} or more"
        raise InputError(f"option {key} must be {limits}{f' and at most {high:g}' * (high < math.inf)}, got {value}")
    return int(value) if isinstance(value, Integral) else float(value)
