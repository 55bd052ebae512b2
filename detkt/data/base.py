"""What all else needs of a data set, be it of detectors or of classifiers."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class PictureSet(Protocol):
    """Pictures with their targets, by index or by (index, sample seed), as torch's DataLoader takes them.

    Attributes:
        ids: a name a picture.
        classes: names, in the order of the labels.
    """

    ids: list[str]
    classes: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, sample: int | tuple[int, int], /) -> tuple[Tensor, dict[str, Tensor]]: ...

    @property
    def picture_sizes(self) -> list[tuple[int, int]]:
        """(width, height) of the pictures as they come, before augmentation."""
        ...

    @property
    def aspect_groups(self) -> list[int] | None:
        """A number a picture: those of one number make batches that need less padding; None: no batch needs any."""
        ...

    def plain(self) -> PictureSet:
        """The same pictures without augmentation."""
        ...

    def fingerprint(self) -> str:
        """A hash of the pictures, their names and how they are read."""
        ...

    def unnormalised(self, image: Tensor) -> Tensor:
        """A picture (C, H, W) of this set in [0, 1]."""
        ...
