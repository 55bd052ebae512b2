"""He et al.'s residual nets for CIFAR ("Deep Residual Learning for Image Recognition", 2016, section 4.2).

A 3x3 convolution, then three stages of ``n`` basic blocks with 16, 32 and 64 channels at strides 1, 2 and 4:
``6 n + 2`` weighted layers with the linear one. ResNet-20, 32, 44, 56 and 110 have 269,722, 464,154, 658,586,
853,018 and 1,727,962 parameters with parameter-free shortcuts and ten classes.

The nets of Knowledge Representing (tables 1 and 2 there, CIFAR-10 and CIFAR-100) come with rounded sizes only:

=================  =====  ========================  =======  ===============================
its net            size   here                      counted  the plain net
=================  =====  ========================  =======  ===============================
ResNet-26          0.36M  ``cifar_resnet26``        366,938  (364,464 in convolutions alone)
ResNet-8           0.12M  ``cifar_resnet8x1.25``    117,150  75,290
ResNet-8, fewer    0.09M  ``cifar_resnet8x1.1``      90,401
ResNet-32          0.46M  ``cifar_resnet32``        470,004  (461,232 in convolutions alone)
ResNet-14          0.19M  ``cifar_resnet14x1.03``   188,669  178,356
ResNet-14, fewer   0.17M  ``cifar_resnet14x0.98``   172,111
=================  =====  ========================  =======  ===============================

The teachers are the plain nets, if one counts convolutions alone. No plain net has a student's size, nor does the
paper give widths: those factors are ours, chosen to meet the sizes.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, conv1x1, conv3x3

from detkt.base.errors import InputError


class PaddingShortcut(nn.Module):
    """He et al.'s option A: every *stride*-th pixel, and channels of zeros on both sides of the *in_channels*.

    Both sides, as in the public re-implementation whose trained weights are in use; the original code has all
    zeros after the channels, which is the same net with its channels in another order.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, feature: Tensor) -> Tensor:
        """``(N, in_channels, H, W)`` -> ``(N, out_channels, ceil(H / stride), ceil(W / stride))``."""
        return F.pad(feature[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


def cifar_resnet(depth: int, width: float, shortcut: str, in_channels: int) -> nn.Sequential:
    """``conv1``, ``bn1``, ``relu``, ``layer1``, ``layer2``, ``layer3``: images -> ``(N, 64 width, H / 4, W / 4)``.

    Args:
        depth: 6 n + 2 with n blocks a stage.
        width: factor on the 16, 32 and 64 channels.
        shortcut: where channels change, "padding" with zeros (option A, no parameters) or "projection" by a
            1x1 convolution and batch norm (option B).
        in_channels: of the images.

    Raises:
        InputError: no whole number of blocks gives *depth*.
    """
    if depth < 8 or (depth - 2) % 6:
        raise InputError(f"cifar_resnet{depth}: the depth must be 6 n + 2, as 8, 14, 20, 26, 32, 44, 56 or 110")
    planes = [max(1, round(16 * width * 2**i)) for i in range(3)]
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=conv3x3(in_channels, planes[0]),
        bn1=nn.BatchNorm2d(planes[0]),
        relu=nn.ReLU(inplace=True),
    )
    channels = planes[0]
    for i, stride in enumerate((1, 2, 2)):
        blocks = []
        for j in range((depth - 2) // 6):
            blocks.append(_block(channels, planes[i], stride if j == 0 else 1, shortcut))
            channels = planes[i]
        layers[f"layer{i + 1}"] = nn.Sequential(*blocks)
    backbone = nn.Sequential(layers)
    backbone.out_channels = channels
    return backbone


def _block(in_channels: int, out_channels: int, stride: int, shortcut: str) -> BasicBlock:
    changed: nn.Module | None = None
    if in_channels == out_channels and stride == 1:
        pass
    elif shortcut == "padding":
        changed = PaddingShortcut(in_channels, out_channels, stride)
    else:
        changed = nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))
    return BasicBlock(in_channels, out_channels, stride, changed)
