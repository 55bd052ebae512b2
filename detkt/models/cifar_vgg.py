"""VGG-13 with batch norm for CIFAR: the convolutions of Simonyan and Zisserman (2015), configuration B.

Factor Transfer's student of 9.4 million parameters: one linear layer follows the last pooling, as in the public
CIFAR versions, instead of VGG's three.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn
from torchvision.ops import Conv2dNormActivation

VGG13_STAGES = ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512))
"""Output channels of the convolutions, a 2x2 max pool between two stages."""


def cifar_vgg13(in_channels: int) -> nn.Sequential:
    """``stage1`` to ``stage5``, each ending with a ReLU: images -> ``(N, 512, H / 16, W / 16)``.

    A stage begins with the pooling of the one before, so that a stage's map is what its convolutions give. VGG's
    fifth pooling is the head's.
    """
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    channels = in_channels
    for i, stage in enumerate(VGG13_STAGES):
        layers: list[nn.Module] = [nn.MaxPool2d(kernel_size=2)] if i else []
        for out_channels in stage:
            layers.append(Conv2dNormActivation(channels, out_channels, kernel_size=3))
            channels = out_channels
        stages[f"stage{i + 1}"] = nn.Sequential(*layers)
    backbone: Any = nn.Sequential(stages)
    backbone.out_channels = channels
    return backbone
