"""Wide residual nets for CIFAR (Zagoruyko and Komodakis, "Wide Residual Networks", 2016).

A 3x3 convolution to 16 channels, three stages of ``n`` pre-activation basic blocks with ``16 k``, ``32 k`` and
``64 k`` channels at strides 1, 2 and 4, then the batch norm and ReLU that end the last block: ``6 n + 4``
convolutions, those of the shortcuts counted.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torchvision.models.resnet import conv1x1, conv3x3

from detkt.base.errors import InputError
from detkt.models.preact_resnet import three_stages


class WideBlock(nn.Module):
    """Two 3x3 convolutions, each after a batch norm and ReLU; dropout, if any, before the second.

    Where the number of channels changes, the shortcut is a 1x1 convolution that reads the first ReLU's output.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = conv1x1(in_channels, out_channels, stride) if in_channels != out_channels else None

    def forward(self, feature: Tensor) -> Tensor:
        activated = self.relu(self.bn1(feature))
        shortcut = feature if self.downsample is None else self.downsample(activated)
        hidden = self.relu(self.bn2(self.conv1(activated)))
        return shortcut + self.conv2(self.dropout(hidden))


def wide_resnet(depth: int, widening: int, dropout: float, in_channels: int) -> nn.Sequential:
    """``conv1``, ``layer1``, ``layer2``, ``layer3``, ``bn1``, ``relu``: images -> ``(N, 64 k, H / 4, W / 4)``.

    Args:
        depth: 6 n + 4 with n blocks a stage.
        widening: the paper's k.
        dropout: probability between the two convolutions of a block.
        in_channels: of the images.

    Raises:
        InputError: no whole number of blocks gives *depth*, or *widening* is 0.
    """
    if depth < 10 or (depth - 4) % 6:
        raise InputError(f"cifar_wrn{depth}_{widening}: the depth must be 6 n + 4, as 10, 16, 22, 28, 40 or 46")
    if widening < 1:
        raise InputError(f"cifar_wrn{depth}_{widening}: the widening factor must be 1 or more")
    widths = [16 * widening * 2**i for i in range(3)]
    return three_stages(in_channels, widths, (depth - 4) // 6, partial(WideBlock, dropout=dropout))
