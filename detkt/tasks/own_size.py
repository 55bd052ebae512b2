"""The student's pictures at the teacher's own size.

A teacher that learnt at 800 pixels sees little in the pictures of a student at 320. With ``teacher.own_size`` the batch
is laid out anew for it: the student's, padding with it, times one factor an axis, in which each picture is resized from
what it was before the student's transform, so that no detail is lost. Shares of the batch (boxes, what is padding) are
then the same for both nets, and pixels differ by the factors.

What we decided: of a batch whose pictures are enlarged unlike, because a longer side is at its limit, the smallest
factor holds for all; the teacher's batch is rounded to its transform's ``size_divisible``, by stretching, not by more
padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList

from detkt.base.errors import InputError
from detkt.knowledge import scaled
from detkt.tasks.base import evaluating

SETTINGS = ("min_size", "max_size", "fixed_size", "size_divisible")


class OwnSize:
    """What the teacher's *transform* makes of pictures that the student's has made something of.

    Raises:
        InputError: the transform has its own ways.
    """

    def __init__(self, transform: nn.Module) -> None:
        if not all(hasattr(transform, name) for name in (*SETTINGS, "image_mean", "image_std")):
            raise InputError(
                f"own_size: the teacher's transform is a {type(transform).__name__}, not torchvision's, and does not "
                "tell the size it would give to pictures; leave own_size out"
            )
        self._transform: Any = transform

    @property
    def settings(self) -> dict[str, Any]:
        """What the size goes by."""
        return {name: getattr(self._transform, name) for name in SETTINGS}

    def canvas(
        self, height: int, width: int, views: Sequence[tuple[int, int]], originals: Sequence[tuple[int, int]]
    ) -> tuple[int, int]:
        """Height and width of the teacher's batch for a student's of *height* and *width*.

        Args:
            views: (height, width) of each picture in the student's batch.
            originals: of each before the student's transform.
        """
        own = [resized_size(self._transform, *size) for size in originals]
        factors = [min(ours[axis] / view[axis] for ours, view in zip(own, views, strict=True)) for axis in (0, 1)]
        divisor = self._transform.size_divisible
        tall, wide = (
            max(divisor, divisor * round(side * factor / divisor))
            for side, factor in zip((height, width), factors, strict=True)
        )
        return tall, wide

    def frame(self, batch: ImageList, originals: Sequence[tuple[int, int]]) -> ImageList:
        """The teacher's batch without its pictures: its size, and that of each in it."""
        height, width = batch.tensors.shape[-2:]
        tall, wide = self.canvas(height, width, batch.image_sizes, originals)
        sizes = [(round(tall * h / height), round(wide * w / width)) for h, w in batch.image_sizes]
        return ImageList(batch.tensors.new_zeros(1).expand(len(sizes), 3, tall, wide), sizes)

    def fill(self, frame: ImageList, pictures: Sequence[Tensor]) -> Tensor:
        """(N, 3, H, W): *pictures* (3, H, W) in [0, 1], in the teacher's normalisation, in their places."""
        filled = torch.zeros_like(frame.tensors, memory_format=torch.contiguous_format)
        for place, picture, (tall, wide) in zip(filled, pictures, frame.image_sizes, strict=True):
            picture = self._transform.normalize(picture)
            resized = F.interpolate(picture[None], size=(tall, wide), mode="bilinear", align_corners=False)
            place[:, :tall, :wide] = resized[0]
        return filled


def resized_size(transform: Any, height: int, width: int) -> tuple[int, int]:
    """Height and width that *transform* resizes a picture to, outside training."""
    with evaluating(transform):
        resized, _ = transform.resize(torch.empty(1, height, width, device="meta"))
    return int(resized.shape[-2]), int(resized.shape[-1])


def framed(boxes: Tensor, batch: ImageList, frame: ImageList) -> Tensor:
    """*boxes* (n, 4) in pixels of *batch* in those of *frame*."""
    (height, width), (tall, wide) = batch.tensors.shape[-2:], frame.tensors.shape[-2:]
    return scaled(boxes, wide / width, tall / height)
