"""The nets that Faster R-CNN is built on: a shared stride-16 body and the head that reads a pooled RoI.

A body takes images ``(N, 3, H, W)`` and gives one feature map ``(N, out_channels, ~H/16, ~W/16)`` which ends
with a ReLU, or, with a feature pyramid, five maps. Layers carry torchvision's names, so that its classifier
weights fit (see :mod:`detkt.models.weights`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.resnet import BasicBlock, Bottleneck, conv1x1
from torchvision.models.vgg import cfgs, make_layers
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from detkt.models.frozen_norm import FrozenBatchNorm2d

RESNETS: dict[int, tuple[type[BasicBlock | Bottleneck], tuple[int, int, int, int]]] = {
    10: (BasicBlock, (1, 1, 1, 1)),
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}
"""Block and number of blocks a stage, by depth. 10 has one block a stage and is not one of torchvision's."""


class C4Head(nn.Module):
    """``layer4`` on every pooled RoI, then the mean over its positions (He et al. 2016, appendix A).

    ``(M, out_channels of layer3, h, w)`` -> ``(M, out_features)``.
    """

    def __init__(self, layer4: nn.Module, out_features: int) -> None:
        super().__init__()
        self.layer4 = layer4
        self.out_features = out_features

    def forward(self, pooled: Tensor) -> Tensor:
        return self.layer4(pooled).mean(dim=(2, 3))


class FullyConnectedHead(TwoMLPHead):
    """``fc6`` and ``fc7``, each followed by a ReLU and dropout: ``(M, C, h, w)`` -> ``(M, out_features)``."""

    def __init__(self, in_features: int, out_features: int, dropout: float) -> None:
        super().__init__(in_features, out_features)
        self.dropout = nn.Dropout(dropout)
        self.out_features = out_features

    def forward(self, pooled: Tensor) -> Tensor:
        hidden = self.dropout(self.fc6(pooled.flatten(start_dim=1)).relu())
        return self.dropout(self.fc7(hidden).relu())


def resnet_c4(
    depth: int, width: float, norm: str, frozen_stages: int, roi_head_stride: int = 2
) -> tuple[nn.Sequential, C4Head]:
    """ResNet cut after ``layer3`` (stride 16), and ``layer4`` as the RoI head.

    Args:
        depth: a key of :data:`RESNETS`.
        width: factor on the width of every layer; 1 is the published net.
        norm: "frozen" or "batch", see :func:`resnet_stages`.
        frozen_stages: 0 to 4, see :func:`resnet_stages`.
        roi_head_stride: stride of ``layer4``. With 2, as in the classifier, 7x7 RoIs become 4x4.
    """
    stages, channels = resnet_stages(depth, width, norm, frozen_stages, last_stride=roi_head_stride)
    head = C4Head(stages.pop("layer4"), channels[-1])
    body: Any = nn.Sequential(stages)
    body.out_channels = channels[-2]
    return body, head


def resnet_fpn(
    depth: int,
    width: float,
    norm: str,
    frozen_stages: int,
    fpn_channels: int,
    first: int = 1,
    top: Callable[[int, int], ExtraFPNBlock] | None = None,
    fpn_norm: Callable[..., nn.Module] | None = None,
) -> BackboneWithFPN:
    """ResNet with a feature pyramid (Lin et al. 2017); *frozen_stages* 5 is ``layer4``.

    The maps are "0", "1", ... of ``layer<first>`` to ``layer4`` (strides 4 to 32), and those that *top* adds: from the
    channels of ``layer4`` and of the pyramid to a block on top of it. None: "pool" of stride 64. *fpn_norm*: what
    normalises the pyramid's maps.
    """
    stages, channels = resnet_stages(depth, width, norm, frozen_stages)
    return_layers = {f"layer{i}": str(i - first) for i in range(first, 5)}
    extra = None if top is None else top(channels[-1], fpn_channels)
    return BackboneWithFPN(
        nn.Sequential(stages), return_layers, channels[first - 1 :], fpn_channels, extra, norm_layer=fpn_norm
    )


def resnet_stages(
    depth: int, width: float, norm: str, frozen_stages: int, last_stride: int = 2
) -> tuple[OrderedDict[str, nn.Module], list[int]]:
    """ResNet's layers up to ``layer4`` by torchvision's names, and the output channels of the four stages.

    *frozen_stages* counts from the input: 0 trains everything, 1 freezes ``conv1`` and ``bn1``, 2 also
    ``layer1``, 3 also ``layer2``, and so on.

    *norm* "frozen" turns every batch normalisation into a fixed scale and shift, for nets that start from
    trained weights and see too few images a step for statistics; "batch" keeps them live, for training from
    nothing. Frozen stages have it fixed in either case, so that their statistics never move.
    """
    block, depths = RESNETS[depth]
    planes = [max(1, round(64 * width * 2**i)) for i in range(4)]
    channels = [count * block.expansion for count in planes]

    def norm_of(stage: int) -> Callable[[int], nn.Module]:
        return FrozenBatchNorm2d if norm == "frozen" or stage < frozen_stages else nn.BatchNorm2d

    stages: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, planes[0], kernel_size=7, stride=2, padding=3, bias=False),
        bn1=norm_of(0)(planes[0]),
        relu=nn.ReLU(inplace=True),
        maxpool=nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
    )
    in_channels = planes[0]
    for i, stride in enumerate((1, 2, 2, last_stride)):
        blocks = [_residual_block(block, in_channels, planes[i], stride, norm_of(i + 1))]
        for _ in range(1, depths[i]):
            blocks.append(_residual_block(block, channels[i], planes[i], 1, norm_of(i + 1)))
        stages[f"layer{i + 1}"] = nn.Sequential(*blocks)
        in_channels = channels[i]

    for module in stages.values():
        _initialise_convolutions(module)
    frozen = (["conv1", "bn1"] if frozen_stages else []) + [f"layer{i}" for i in range(1, frozen_stages)]
    for name in frozen:
        stages[name].requires_grad_(False)
    return stages, channels


def _residual_block(
    block: type[BasicBlock | Bottleneck],
    in_channels: int,
    planes: int,
    stride: int,
    norm: Callable[[int], nn.Module],
) -> BasicBlock | Bottleneck:
    out_channels = planes * block.expansion
    shortcut = None
    if stride != 1 or in_channels != out_channels:
        shortcut = nn.Sequential(conv1x1(in_channels, out_channels, stride), norm(out_channels))
    return block(in_channels, planes, stride, shortcut, norm_layer=norm)


def vgg16(
    frozen_stages: int, roi_size: int, head_features: int, head_dropout: float
) -> tuple[nn.Sequential, FullyConnectedHead]:
    """VGG-16 up to ``conv5_3`` and its ReLU (torchvision's ``features[:30]``), and fc6/fc7 as the RoI head.

    *frozen_stages* counts blocks from the input: 2 freezes conv1_x and conv2_x, which are ``features[:10]``.
    """
    layers = list(make_layers(cfgs["D"]))[:30]
    starts = [0, *(i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)), len(layers)]
    for layer in layers[: starts[frozen_stages]]:
        layer.requires_grad_(False)
    return _plain_net(layers, 512, roi_size, head_features, head_dropout)


def alexnet(
    frozen_stages: int, roi_size: int, head_features: int, head_dropout: float
) -> tuple[nn.Sequential, FullyConnectedHead]:
    """AlexNet up to conv5 and its ReLU (torchvision's ``features[:12]``), and fc6/fc7 as the RoI head.

    *frozen_stages* counts convolutions from the input, 0 to 5.
    """
    layers = [
        nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Conv2d(64, 192, kernel_size=5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Conv2d(192, 384, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(256, 256, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
    ]
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    for convolution in convolutions[:frozen_stages]:
        convolution.requires_grad_(False)
    return _plain_net(layers, 256, roi_size, head_features, head_dropout)


def _plain_net(
    layers: list[nn.Module], out_channels: int, roi_size: int, head_features: int, head_dropout: float
) -> tuple[nn.Sequential, FullyConnectedHead]:
    body: Any = nn.Sequential(*layers)
    _initialise_convolutions(body)
    body.out_channels = out_channels
    return body, FullyConnectedHead(out_channels * roi_size**2, head_features, head_dropout)


def _initialise_convolutions(module: nn.Module) -> None:
    """He et al.'s initialisation, as torchvision's classifiers have it."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
