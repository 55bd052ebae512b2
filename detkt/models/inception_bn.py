"""The small Inception with batch norm for pictures of about 28x28.

The widely used reduction of Ioffe and Szegedy's Inception-BN (2015) that MXNet ships as ``inception-bn-28-small``
and Zhang et al. ("Understanding deep learning requires rethinking generalization", 2017, appendix A) describe:
modules of two branches, 1x1 and 3x3, and downsampling modules of a strided convolution beside a max pool. Zhang et
al. count 1,649,402 parameters with biases and without batch norms; with batch norms instead of biases it is
1,651,114. KTAN says of its student only "a shallow version of Inception"; that it is this one is our reading.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

MODULES: dict[str, tuple[int, ...]] = {
    "in3a": (32, 32),
    "in3b": (32, 48),
    "in3c": (80,),
    "in4a": (112, 48),
    "in4b": (96, 64),
    "in4c": (80, 80),
    "in4d": (48, 96),
    "in4e": (96,),
    "in5a": (176, 160),
    "in5b": (176, 160),
}
"""Channels of the 1x1 and the 3x3 branch; of the strided 3x3 convolution where a module downsamples."""


class SimpleModule(nn.Module):
    """A 1x1 and a 3x3 convolution side by side: ``(N, C, H, W)`` -> ``(N, channels_1x1 + channels_3x3, H, W)``."""

    def __init__(self, in_channels: int, channels_1x1: int, channels_3x3: int) -> None:
        super().__init__()
        self.conv1x1 = Conv2dNormActivation(in_channels, channels_1x1, kernel_size=1)
        self.conv3x3 = Conv2dNormActivation(in_channels, channels_3x3, kernel_size=3)
        self.out_channels = channels_1x1 + channels_3x3

    def forward(self, feature: Tensor) -> Tensor:
        return torch.cat([self.conv1x1(feature), self.conv3x3(feature)], dim=1)


class DownsampleModule(nn.Module):
    """A strided 3x3 convolution beside a 3x3 max pool: ``(N, C, H, W)`` -> ``(N, channels_3x3 + C, ceil(H / 2), ...)``.

    The pool is padded like the convolution, so that the two agree at any size.
    """

    def __init__(self, in_channels: int, channels_3x3: int) -> None:
        super().__init__()
        self.conv3x3 = Conv2dNormActivation(in_channels, channels_3x3, kernel_size=3, stride=2)
        self.pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.out_channels = channels_3x3 + in_channels

    def forward(self, feature: Tensor) -> Tensor:
        return torch.cat([self.conv3x3(feature), self.pool(feature)], dim=1)


def cifar_inception_bn(in_channels: int) -> nn.Sequential:
    """``conv1`` and the modules ``in3a`` to ``in5b``: images -> ``(N, 336, H / 4, W / 4)``."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv1=Conv2dNormActivation(in_channels, 96, kernel_size=3))
    channels = 96
    for name, widths in MODULES.items():
        module: Any = (DownsampleModule if len(widths) == 1 else SimpleModule)(channels, *widths)
        layers[name], channels = module, module.out_channels
    backbone: Any = nn.Sequential(layers)
    backbone.out_channels = channels
    return backbone
