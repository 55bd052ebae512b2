"""Pre-activation bottleneck ResNets for CIFAR (He et al., "Identity Mappings in Deep Residual Networks", 2016).

A 3x3 convolution, three stages of ``n`` bottlenecks with 64, 128 and 256 channels at strides 1, 2 and 4, then
the batch norm and ReLU that end the last block: ``9 n + 2`` weighted layers with the linear one. ResNet-164 and
-1001 have 1,703,258 and 10,327,706 parameters with ten classes (the paper's table says 1.7M and 10.2M).

KTAN's teacher is ResNet-1001. Its activations are what fills a GPU: ``checkpoint_activations`` keeps one map a
block and computes the inside of a block again on the way back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import conv1x1, conv3x3

from detkt.base.errors import InputError


class PreActBottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution, each after a batch norm and ReLU.

    Where the number of channels changes, the shortcut is a 1x1 convolution that reads the first ReLU's output; the
    stride is the first convolution's. Both as in the authors' code.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        width = out_channels // 4
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv1x1(in_channels, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = conv1x1(in_channels, out_channels, stride) if in_channels != out_channels else None

    def forward(self, feature: Tensor) -> Tensor:
        activated = self.relu(self.bn1(feature))
        shortcut = feature if self.downsample is None else self.downsample(activated)
        hidden = self.relu(self.bn2(self.conv1(activated)))
        hidden = self.relu(self.bn3(self.conv2(hidden)))
        return shortcut + self.conv3(hidden)


class CheckpointedStage(nn.Sequential):
    """Blocks one after the other, keeping only what enters each of them for the way back if told to."""

    def __init__(self, *blocks: nn.Module, checkpoint_activations: bool) -> None:
        super().__init__(*blocks)
        self.checkpoint_activations = checkpoint_activations

    def forward(self, feature: Tensor) -> Tensor:
        if not (self.checkpoint_activations and torch.is_grad_enabled()):
            return super().forward(feature)
        for block in self:
            feature = checkpoint(
                block,
                feature,
                use_reentrant=False,
                preserve_rng_state=False,  # nothing in a block is random
                context_fn=partial(_first_and_second_pass, block),
            )
        return feature


def _first_and_second_pass(block: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    return nullcontext(), _StatisticsKept(block)


class _StatisticsKept:
    """Inside, batch norms normalise by their batch but do not count it: the first pass has.

    torch counts it twice (pytorch/pytorch issue 96136). ``track_running_stats = False`` is no way out: the second
    pass would save other tensors than the first, which ``checkpoint`` refuses. Entered once for each time that the
    way back is gone, so that ``retain_graph`` works.
    """

    def __init__(self, block: nn.Module) -> None:
        self.norms = [module for module in block.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]

    def __enter__(self) -> None:
        self.kept = [(norm.momentum, norm.num_batches_tracked) for norm in self.norms]
        for norm in self.norms:
            assert norm.num_batches_tracked is not None
            norm.momentum = 0.0
            norm.num_batches_tracked = norm.num_batches_tracked.clone()

    def __exit__(self, *error: object) -> None:
        for norm, (momentum, batches) in zip(self.norms, self.kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches


def preact_resnet(depth: int, checkpoint_activations: bool, in_channels: int) -> nn.Sequential:
    """``conv1``, ``layer1``, ``layer2``, ``layer3``, ``bn1``, ``relu``: images -> ``(N, 256, H / 4, W / 4)``.

    Args:
        depth: 9 n + 2 with n blocks a stage.
        checkpoint_activations: compute activations twice instead of keeping them. Gradients and running
            statistics are the same; a training step costs one more forward pass.
        in_channels: of the images.

    Raises:
        InputError: no whole number of blocks gives *depth*.
    """
    if depth < 11 or (depth - 2) % 9:
        raise InputError(f"cifar_preact_resnet{depth}: the depth must be 9 n + 2, as 11, 29, 56, 110, 164 or 1001")
    stage = partial(CheckpointedStage, checkpoint_activations=checkpoint_activations)
    return three_stages(in_channels, (64, 128, 256), (depth - 2) // 9, PreActBottleneck, stage)


def three_stages(
    in_channels: int,
    widths: Sequence[int],
    count: int,
    block: Callable[[int, int, int], nn.Module],
    stage: Callable[..., nn.Module] = nn.Sequential,
) -> nn.Sequential:
    """A 3x3 convolution to 16 channels, stages of *count* blocks at strides 1, 2 and 4, and the last norm and ReLU.

    block: makes one from its channels before and after, and its stride; stage: what holds those of a stage.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv1=conv3x3(in_channels, 16))
    channels = 16
    for i, (out_channels, stride) in enumerate(zip(widths, (1, 2, 2), strict=True)):
        blocks = []
        for j in range(count):
            blocks.append(block(channels, out_channels, stride if j == 0 else 1))
            channels = out_channels
        layers[f"layer{i + 1}"] = stage(*blocks)
    layers["bn1"] = nn.BatchNorm2d(channels)
    layers["relu"] = nn.ReLU(inplace=True)
    backbone: Any = nn.Sequential(layers)
    backbone.out_channels = channels
    return backbone
