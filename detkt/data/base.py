"""What all else needs of a data set, be it of detectors or of classifiers."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


def shared_pictures(one: PictureSet, other: PictureSet) -> set[str]:
    """The ids of pictures of *one* that *other* has, too: by their files, where those are known, else by their ids.

    Splits may well number their pictures alike: ``train/1.jpg`` and ``val/1.jpg`` are two.
    """
    files = [getattr(dataset, "picture_files", dataset.ids) for dataset in (one, other)]
    both = set(files[0]) & set(files[1])
    return {id for id, file in zip(one.ids, files[0], strict=True) if file in both}


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
