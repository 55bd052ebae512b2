"""Faster R-CNN by name: :func:`build_detector` gives a torchvision ``FasterRCNN`` with the papers' settings.

The settings are those of public single-level (stride-16) detectors that reach the mAP of the papers' tables
on VOC2007; torchvision's own defaults are for COCO with a feature pyramid. As in those detectors, ``layer4``
keeps its stride of 2 on the 7x7 RoIs and gives 4x4; ``roi_head_stride=1`` keeps 7x7 at three times the cost.
detectron2 and mmdetection pool 14x14 instead: ``roi_size=14``.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import Conv2dNormActivation, MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from detkt.base.errors import InputError
from detkt.models import backbones
from detkt.models.card import ModelCard, add_card
from detkt.models.options import Architecture, parse_name, resolve_options
from detkt.models.timm_backbones import timm_c4, timm_fpn
from detkt.models.weights import DETECTOR_LOADER

_OWN_OPTIONS = {
    "anchor_sizes",
    "aspect_ratios",
    "rpn_channels",
    "roi_size",
    "roi_sampling_ratio",
    "roi_head_stride",
    "fpn_channels",
    "head_features",
    "head_dropout",
    "norm",
    "frozen_stages",
    "last_layer",
    "dilated",
}
"""Options that become modules; the others are keyword arguments of ``FasterRCNN``."""


class WideRPNHead(RPNHead):
    """torchvision's RPN head with a free number of channels between its 3x3 and its two 1x1 convolutions."""

    def __init__(self, in_channels: int, channels: int, anchors_per_location: int) -> None:
        super().__init__(channels, anchors_per_location)
        block = Conv2dNormActivation(in_channels, channels, kernel_size=3, norm_layer=None)
        nn.init.normal_(block[0].weight, std=0.01)
        nn.init.zeros_(block[0].bias)
        self.conv = nn.Sequential(block)


class StridedAnchors(AnchorGenerator):
    """Anchors at the net's own strides.

    torchvision divides image size by map size, which is 17 and not 16 where a net without padding (AlexNet)
    loses border cells: anchors would drift off their cells.
    """

    def __init__(self, strides: Sequence[int], sizes: Sequence, aspect_ratios: Sequence) -> None:
        super().__init__(tuple(map(tuple, sizes)), tuple(map(tuple, aspect_ratios)))
        self.strides = tuple(strides)

    def grid_anchors(self, grid_sizes: list[list[int]], strides: list[list[Tensor]]) -> list[Tensor]:
        own = [[like.new_full((), stride) for like in pair] for pair, stride in zip(strides, self.strides, strict=True)]
        return super().grid_anchors(grid_sizes, own)


def build_detector(name: str, num_classes: int, weights: str | Path | None = None, **options: Any) -> FasterRCNN:
    """Faster R-CNN of the given name, on the CPU and in training mode.

    Args:
        name: see :func:`detkt.models.options.available_detectors`.
        num_classes: number of classes, background included.
        weights: "imagenet" for torchvision's classifier weights (downloaded, or from torch's hub cache), a
            file or folder for :func:`detkt.models.weights.load_weights`, or None for random ones. What was
            loaded is logged.
        options: any key of :func:`detkt.models.options.default_options`; numbers, strings and lists.
            ``frozen_stages`` counts from the input: for a ResNet 1 is conv1, 2 adds layer1, and so on; for
            VGG-16 it is a number of blocks of convolutions, for AlexNet of convolutions, and for timm's nets k
            means every layer up to stride 2^k. ``norm`` is "frozen" or "batch", see
            :func:`detkt.models.backbones.resnet_stages`.

    Returns:
        The model; its ``card = detkt.models.card_of(model)`` rebuilds it:
        ``build_detector(card.architecture, card.num_classes, **card.options)``.

    Raises:
        InputError: unknown name or option, option of a wrong type or out of range, weights that do not fit.
    """
    architecture = parse_name(name)
    if not isinstance(num_classes, Integral) or isinstance(num_classes, bool) or num_classes < 2:
        raise InputError(f"{name}: num_classes counts the background and must be 2 or more, got {num_classes!r}")
    resolved = resolve_options(architecture, options)
    model = _assemble(architecture, int(num_classes), resolved)
    add_card(model, ModelCard("detection", name, int(num_classes), resolved))
    if weights is not None:
        DETECTOR_LOADER.load(model, weights, architecture.classifier, name)
    return model


def _assemble(architecture: Architecture, num_classes: int, options: dict[str, Any]) -> FasterRCNN:
    body: Any
    head: Any
    if architecture.kind == "c4":
        body, head = backbones.resnet_c4(
            architecture.depth,
            architecture.width,
            norm=options["norm"],
            frozen_stages=options["frozen_stages"],
            roi_head_stride=options["roi_head_stride"],
        )
    elif architecture.kind == "fpn":
        body, head = backbones.resnet_fpn(
            architecture.depth,
            architecture.width,
            norm=options["norm"],
            frozen_stages=options["frozen_stages"],
            fpn_channels=options["fpn_channels"],
            roi_size=options["roi_size"],
            head_features=options["head_features"],
        )
    elif architecture.kind == "timm_c4":
        body = timm_c4(
            architecture.timm,
            norm=options["norm"],
            frozen_stages=options["frozen_stages"],
            last_layer=options["last_layer"],
            dilated=options["dilated"],
        )
        head = backbones.FullyConnectedHead(
            body.out_channels * options["roi_size"] ** 2, options["head_features"], options["head_dropout"]
        )
    elif architecture.kind == "timm_fpn":
        body = timm_fpn(architecture.timm, options["norm"], options["frozen_stages"], options["fpn_channels"])
        head = backbones.FullyConnectedHead(
            body.out_channels * options["roi_size"] ** 2, options["head_features"], dropout=0.0
        )
    else:
        build = backbones.vgg16 if architecture.kind == "vgg16" else backbones.alexnet
        body, head = build(
            frozen_stages=options["frozen_stages"],
            roi_size=options["roi_size"],
            head_features=options["head_features"],
            head_dropout=options["head_dropout"],
        )

    sizes, ratios = options["anchor_sizes"], options["aspect_ratios"]
    if architecture.has_pyramid:
        anchors = StridedAnchors([4, 8, 16, 32, 64], [[size] for size in sizes], [ratios] * len(sizes))
    else:
        anchors = StridedAnchors([16], [sizes], [ratios])
    per_location = anchors.num_anchors_per_location()[0]
    rpn_head = WideRPNHead(body.out_channels, options["rpn_channels"], per_location)
    predictor = FastRCNNPredictor(head.out_features, num_classes)
    # Fast R-CNN (Girshick 2015, section 2.3).
    nn.init.normal_(predictor.cls_score.weight, std=0.01)
    nn.init.normal_(predictor.bbox_pred.weight, std=0.001)
    for layer in (predictor.cls_score, predictor.bbox_pred):
        nn.init.zeros_(layer.bias)
    return FasterRCNN(
        body,
        rpn_anchor_generator=anchors,
        rpn_head=rpn_head,
        box_roi_pool=_roi_pool(architecture.has_pyramid, options),
        box_head=head,
        box_predictor=predictor,
        **{key: value for key, value in options.items() if key not in _OWN_OPTIONS},
    )


def _roi_pool(pyramid: bool, options: dict[str, Any]) -> MultiScaleRoIAlign:
    levels = [2, 3, 4, 5] if pyramid else [4]
    names = [str(i) for i in range(len(levels))]
    pool = MultiScaleRoIAlign(names, options["roi_size"], options["roi_sampling_ratio"])
    # torchvision guesses the scales from the first batch and keeps them; on a very flat picture, padded to a
    # multiple of 32, the guess is wrong.
    pool.scales = [2.0**-level for level in levels]
    pool.map_levels = initLevelMapper(levels[0], levels[-1])
    return pool
