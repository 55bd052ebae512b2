"""Pictures to compare networks on where there are none of a data set: the same ones each time."""

from __future__ import annotations

import torch
from torch import Tensor


def scenes(size: tuple[int, int], channels: int = 3) -> list[Tensor]:
    """Noise, and noise with rectangles that a detector may take for objects, in [0, 1].

    Of *size* (height, width), of *size* turned and of an odd part of it.
    """
    generator = torch.Generator().manual_seed(0)
    height, width = size
    pictures = []
    for shape in ((height, width), (width, height), (2 * height // 3 + 1, width)):
        pictures.append(torch.rand(channels, *shape, generator=generator))
        # With noise over all of it: on an even ground anchors score the same, and rounding decides which is best.
        ground, scene = 0.1 * torch.rand(channels, *shape, generator=generator), torch.zeros(channels, *shape)
        for _ in range(8):
            top, left, high, wide = torch.rand(4, generator=generator).mul(torch.tensor([*shape, *shape]) / 2).int()
            colour = torch.rand(channels, 1, 1, generator=generator)
            scene[:, top : top + high + 8, left : left + wide + 8] = 0.9 * colour
        pictures.append(scene + ground)
    return pictures


def noise(size: tuple[int, int], channels: int = 3) -> list[Tensor]:
    """Normalised noise of *size* (height, width)."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(channels, *size, generator=generator) for _ in range(4)]
