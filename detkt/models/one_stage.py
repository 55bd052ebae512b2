"""torchvision's detectors of one stage by name: RetinaNet, FCOS and SSD, with its settings."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from torchvision.models import mobilenet_v3_large
from torchvision.models.detection import FCOS, RetinaNet, ssd300_vgg16
from torchvision.models.detection._utils import retrieve_out_channels
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteFeatureExtractorMobileNet, SSDLiteHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from detkt.models import backbones
from detkt.models.faster_rcnn import Options, arguments_of, frozen_stages
from detkt.models.options import GROUP_NORM, Architecture
from detkt.models.timm_backbones import timm_fpn

SSDLITE_SIZE = (320, 320)


def retinanet(architecture: Architecture, num_classes: int, options: Options) -> RetinaNet:
    """RetinaNet (Lin et al. 2017) on strides 8 to 128.

    ``anchor_sizes``: a base size a level, to ``scales_per_octave`` sizes each. The second version has P6 from
    ``layer4`` itself, group norm in its heads, and GIoU as the boxes' loss.
    """
    second = architecture.kind == "retinanet_v2"
    scales = options["scales_per_octave"]
    # Whole pixels, as torchvision has them.
    sizes = tuple(tuple(int(size * 2 ** (i / scales)) for i in range(scales)) for size in options["anchor_sizes"])
    anchors = AnchorGenerator(sizes, (tuple(options["aspect_ratios"]),) * len(sizes))
    body = _pyramid(architecture, options, from_body=second)
    norm = partial(nn.GroupNorm, GROUP_NORM[architecture.kind]) if second else None
    head = RetinaNetHead(body.out_channels, anchors.num_anchors_per_location()[0], num_classes, norm_layer=norm)
    if second:
        head.regression_head._loss_type = "giou"
    return RetinaNet(body, num_classes, anchor_generator=anchors, head=head, **arguments_of(RetinaNet, options))


def fcos(architecture: Architecture, num_classes: int, options: Options) -> FCOS:
    """FCOS (Tian et al. 2019) on strides 8 to 128; ``anchor_sizes`` are what distances are measured in, a level."""
    sizes = tuple((size,) for size in options["anchor_sizes"])
    anchors = AnchorGenerator(sizes, ((1.0,),) * len(sizes))
    body = _pyramid(architecture, options)
    return FCOS(body, num_classes, anchor_generator=anchors, **arguments_of(FCOS, options))


def _pyramid(architecture: Architecture, options: Options, from_body: bool = False) -> Any:
    """A backbone's maps of strides 8, 16 and 32 in a pyramid, with P6 and P7 on its P5, or on the map below that."""

    def top(body_channels: int, channels: int) -> LastLevelP6P7:
        return LastLevelP6P7(body_channels if from_body else channels, channels)

    norm, channels = options["norm"], options["fpn_channels"]
    frozen = frozen_stages(architecture.kind, options)
    if architecture.timm:
        return timm_fpn(architecture.timm, norm, frozen, channels, first=2, top=top)
    return backbones.resnet_fpn(architecture.depth, architecture.width, norm, frozen, channels, first=2, top=top)


def ssd300(architecture: Architecture, num_classes: int, options: Options) -> SSD:
    """SSD (Liu et al. 2016) on VGG-16; every picture becomes 300 x 300."""
    given = arguments_of(SSD, options)
    model = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=num_classes, **given)
    backbone: Any = model.backbone
    layers = [*backbone.features, *backbone.extra[0][:-1]]
    starts = [0, *(i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d))]
    _freeze(layers, starts, options["trainable_backbone_layers"])
    return model


def ssdlite320(architecture: Architecture, num_classes: int, options: Options) -> SSD:
    """SSDlite (Sandler et al. 2018) on MobileNetV3; every picture becomes 320 x 320."""
    norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)
    features = mobilenet_v3_large(weights=None, norm_layer=norm, reduced_tail=options["reduced_tail"]).features
    for layer in features.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.03)
    starts = [0, *(i for i, block in enumerate(features) if getattr(block, "_is_cn", False)), len(features) - 1]
    _freeze(features, starts, options["trainable_backbone_layers"])
    backbone = SSDLiteFeatureExtractorMobileNet(features, starts[-2], norm)
    anchors = DefaultBoxGenerator([[2, 3] for _ in range(6)], min_ratio=0.2, max_ratio=0.95)
    channels = retrieve_out_channels(backbone, SSDLITE_SIZE)
    head = SSDLiteHead(channels, anchors.num_anchors_per_location(), num_classes, norm)
    return SSD(backbone, anchors, SSDLITE_SIZE, num_classes, head=head, **arguments_of(SSD, options))


def _freeze(layers: Any, starts: list[int], trainable: int) -> None:
    """Freeze *layers* before the last *trainable* of the stages that begin at *starts*."""
    until = starts[len(starts) - trainable] if trainable else len(layers)
    for layer in layers[:until]:
        layer.requires_grad_(False)
