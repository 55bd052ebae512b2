"""Faster R-CNN with the papers' settings on one map, and with torchvision's on a feature pyramid.

The settings of the former are those of public single-level (stride-16) detectors that reach the mAP of the papers'
tables on VOC2007; torchvision's own defaults are for COCO with a feature pyramid. As in those detectors, ``layer4``
keeps its stride of 2 on the 7x7 RoIs and gives 4x4; ``roi_head_stride=1`` keeps 7x7 at three times the cost.
detectron2 and mmdetection pool 14x14 instead: ``roi_size=14``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import mobilenet_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import Conv2dNormActivation, MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from detkt.models import backbones
from detkt.models.frozen_norm import FrozenBatchNorm2d
from detkt.models.options import LAST_STAGE, Architecture
from detkt.models.timm_backbones import timm_c4, timm_fpn

Options = dict[str, Any]
_PYRAMID = (4, 8, 16, 32)


class WideRPNHead(RPNHead):
    """torchvision's RPN head with a free number of channels between its 3x3 and its two 1x1 convolutions."""

    def __init__(self, in_channels: int, channels: int, anchors_per_location: int) -> None:
        super().__init__(channels, anchors_per_location)
        block = Conv2dNormActivation(in_channels, channels, kernel_size=3, norm_layer=None)
        nn.init.normal_(block[0].weight, std=0.01)
        nn.init.zeros_(block[0].bias)
        self.conv = nn.Sequential(block)


class StridedAnchors(AnchorGenerator):
    """Anchors at the net's own stride.

    torchvision divides image size by map size, which is 17 and not 16 where a net without padding (AlexNet)
    loses border cells: anchors would drift off their cells.
    """

    def __init__(self, strides: Sequence[int], sizes: Sequence, aspect_ratios: Sequence) -> None:
        super().__init__(tuple(map(tuple, sizes)), tuple(map(tuple, aspect_ratios)))
        self.strides = tuple(strides)

    def grid_anchors(self, grid_sizes: list[list[int]], strides: list[list[Tensor]]) -> list[Tensor]:
        own = [[like.new_full((), stride) for like in pair] for pair, stride in zip(strides, self.strides, strict=True)]
        return super().grid_anchors(grid_sizes, own)


def faster_rcnn(architecture: Architecture, num_classes: int, options: Options) -> FasterRCNN:
    """Faster R-CNN of any kind that :data:`KINDS` has; *options* are all of its options, resolved."""
    body, head, features, pooled = KINDS[architecture.kind](architecture, options)
    anchors = _anchors(architecture.kind, options)
    per_location = anchors.num_anchors_per_location()[0]
    rpn_head: RPNHead
    if architecture.kind == "fpn_v2":
        rpn_head = RPNHead(body.out_channels, per_location, conv_depth=2)
    else:
        rpn_head = WideRPNHead(body.out_channels, options.get("rpn_channels", body.out_channels), per_location)
    predictor = FastRCNNPredictor(features, num_classes)
    # Fast R-CNN (Girshick 2015, section 2.3).
    nn.init.normal_(predictor.cls_score.weight, std=0.01)
    nn.init.normal_(predictor.bbox_pred.weight, std=0.001)
    for layer in (predictor.cls_score, predictor.bbox_pred):
        nn.init.zeros_(layer.bias)
    return FasterRCNN(
        body,
        rpn_anchor_generator=anchors,
        rpn_head=rpn_head,
        box_roi_pool=_roi_pool(pooled, options.get("roi_size", 7), options.get("roi_sampling_ratio", 2)),
        box_head=head,
        box_predictor=predictor,
        **arguments_of(FasterRCNN, options),
    )


def arguments_of(cls: type, options: Options) -> Options:
    """Those of *options* that *cls* itself takes; the others become modules."""
    taken = inspect.signature(cls).parameters
    return {key: value for key, value in options.items() if key in taken}


Parts = tuple[Any, nn.Module, int, tuple[int, ...]]
"""A body, the head on its pooled RoIs, the features that this gives, and the strides of the maps it pools from."""


def _c4(architecture: Architecture, options: Options) -> Parts:
    body, head = backbones.resnet_c4(
        architecture.depth,
        architecture.width,
        norm=options["norm"],
        frozen_stages=options["frozen_stages"],
        roi_head_stride=options["roi_head_stride"],
    )
    return body, head, head.out_features, (16,)


def _timm_c4(architecture: Architecture, options: Options) -> Parts:
    keys = ("norm", "frozen_stages", "last_layer", "dilated")
    body = timm_c4(architecture.timm, **{key: options[key] for key in keys})
    inputs, features = body.out_channels * options["roi_size"] ** 2, options["head_features"]
    return body, backbones.FullyConnectedHead(inputs, features, options["head_dropout"]), features, (16,)


def _plain(architecture: Architecture, options: Options) -> Parts:
    build = backbones.vgg16 if architecture.kind == "vgg16" else backbones.alexnet
    keys = ("frozen_stages", "roi_size", "head_features", "head_dropout")
    body, head = build(**{key: options[key] for key in keys})
    return body, head, head.out_features, (16,)


def _fpn(architecture: Architecture, options: Options) -> Parts:
    keys = ("norm", "frozen_stages", "fpn_channels")
    settings = {key: options[key] for key in keys}
    body: Any
    if architecture.timm:
        body = timm_fpn(architecture.timm, **settings)
    else:
        body = backbones.resnet_fpn(architecture.depth, architecture.width, **settings)
    inputs, features = body.out_channels * options["roi_size"] ** 2, options["head_features"]
    return body, TwoMLPHead(inputs, features), features, _PYRAMID


def _fpn_v2(architecture: Architecture, options: Options) -> Parts:
    # Li et al. 2021, "Benchmarking Detection Transfer Learning with Vision Transformers", as torchvision has it.
    norm = FrozenBatchNorm2d if options["norm"] == "frozen" else nn.BatchNorm2d
    body = backbones.resnet_fpn(
        architecture.depth,
        architecture.width,
        options["norm"],
        frozen_stages(architecture.kind, options),
        options["fpn_channels"],
        fpn_norm=norm,
    )
    size, channels, features = options["roi_size"], body.out_channels, options["head_features"]
    head = FastRCNNConvFCHead((channels, size, size), [channels] * 4, [features], norm_layer=norm)
    return body, head, features, _PYRAMID


def _mobilenet_fpn(architecture: Architecture, options: Options) -> Parts:
    body = mobilenet_backbone(
        backbone_name="mobilenet_v3_large",
        weights=None,
        fpn=True,
        norm_layer=FrozenBatchNorm2d if options["norm"] == "frozen" else nn.BatchNorm2d,
        trainable_layers=options["trainable_backbone_layers"],
    )
    # Both maps below the pooled one are of stride 32.
    return body, TwoMLPHead(body.out_channels * 7**2, 1024), 1024, (32, 32)


KINDS: dict[str, Callable[[Architecture, Options], Parts]] = {
    "c4": _c4,
    "timm_c4": _timm_c4,
    "vgg16": _plain,
    "alexnet": _plain,
    "fpn": _fpn,
    "timm_fpn": _fpn,
    "fpn_v2": _fpn_v2,
    "mobilenet_fpn": _mobilenet_fpn,
    "mobilenet_320_fpn": _mobilenet_fpn,
}
"""What makes the parts of a kind of Faster R-CNN."""


def frozen_stages(kind: str, options: Options) -> int:
    """torchvision's ``trainable_backbone_layers``, counted from the input."""
    return LAST_STAGE[kind] - options["trainable_backbone_layers"]


def _anchors(kind: str, options: Options) -> AnchorGenerator:
    sizes, ratios = options["anchor_sizes"], options["aspect_ratios"]
    if kind.startswith("mobilenet"):
        levels = [tuple(sizes)] * 3
    elif "fpn" in kind:
        levels = [(size,) for size in sizes]
    else:
        return StridedAnchors([16], [sizes], [ratios])
    return AnchorGenerator(tuple(levels), (tuple(ratios),) * len(levels))


def _roi_pool(strides: Sequence[int], size: int, sampling_ratio: int) -> MultiScaleRoIAlign:
    pool = MultiScaleRoIAlign([str(i) for i in range(len(strides))], size, sampling_ratio)
    # torchvision guesses the scales from the first batch and keeps them; on a very flat picture, padded to a
    # multiple of 32, the guess is wrong.
    pool.scales = [1 / stride for stride in strides]
    pool.map_levels = initLevelMapper(*(stride.bit_length() - 1 for stride in (strides[0], strides[-1])))
    return pool
