"""Random pictures and targets of a data set's sizes, to time networks where the data set is not there."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from detkt.config import DataConfig
from detkt.data import shapes_config
from detkt.data.base import PictureSet
from detkt.data.classification import CIFAR10_CLASSES, CIFAR100_CLASSES, FASHION_MNIST_CLASSES, MNIST_CLASSES
from detkt.data.voc import VOC_CLASSES

_CLASSES = {
    "cifar10": CIFAR10_CLASSES,
    "cifar100": CIFAR100_CLASSES,
    "tcifar100": CIFAR100_CLASSES,
    "mnist": MNIST_CLASSES,
    "fashion-mnist": FASHION_MNIST_CLASSES,
    "imagenet": tuple(f"class{number}" for number in range(1000)),
    "folder": tuple(f"class{number}" for number in range(10)),
    "voc": VOC_CLASSES,
}
_SIZES = {"mnist": 28, "fashion-mnist": 28, "imagenet": 224, "folder": 224}
# Heights of VOC's pictures 500 pixels wide: most batches hold unequal ones, which are padded.
_VOC_HEIGHTS = (375, 333, 375, 357)


class RandomDetections(Dataset):
    """*length* pictures of noise with one to four boxes each, in the form of `detkt.data.voc.VOCDetection`'s.

    sizes: (width, height), taken in turn. A picture depends on its index alone: nothing is augmented.
    """

    def __init__(self, length: int, sizes: Sequence[tuple[int, int]], classes: Sequence[str]) -> None:
        self.classes = list(classes)
        self.ids = [f"random{number:05d}" for number in range(length)]
        self.picture_sizes = [sizes[number % len(sizes)] for number in range(length)]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, sample: int | tuple[int, int]) -> tuple[Tensor, dict[str, Tensor]]:
        index = sample[0] if isinstance(sample, tuple) else sample
        width, height = self.picture_sizes[index]
        generator = torch.Generator().manual_seed(index)
        image = torch.rand(3, height, width, generator=generator)
        count = int(torch.randint(1, 5, (), generator=generator))
        corner, side = torch.rand(2, count, 2, generator=generator)
        corner, side = 0.5 * corner, 0.15 + 0.35 * side
        boxes = torch.cat([corner, corner + side], dim=1) * torch.tensor([width, height] * 2)
        labels = torch.randint(1, len(self.classes) + 1, (count,), generator=generator)
        flipped = torch.tensor(False)
        return image, {"boxes": boxes, "labels": labels, "image_id": torch.tensor(index), "flipped": flipped}

    def plain(self) -> RandomDetections:
        return self

    @property
    def aspect_groups(self) -> None:
        return None

    def unnormalised(self, image: Tensor) -> Tensor:
        return image

    def fingerprint(self) -> str:
        return hashlib.sha256(repr(self.picture_sizes).encode()).hexdigest()


class RandomClassifications(Dataset):
    """*length* pictures of noise, normalised, with a class each, in the form of `ClassificationSet`'s.

    image_size: (height, width). A picture depends on its index alone: nothing is augmented.
    """

    def __init__(self, length: int, image_size: tuple[int, int], channels: int, classes: Sequence[str]) -> None:
        self.classes, self.image_size = list(classes), image_size
        self.ids = [f"random{number:05d}" for number in range(length)]
        self.picture_sizes = [image_size[::-1]] * length
        generator = torch.Generator().manual_seed(0)
        self._images = torch.randn(length, channels, *image_size, generator=generator)
        self._labels = torch.randint(len(classes), (length,), generator=generator)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitems__(self, samples: Sequence[int | tuple[int, int]]) -> tuple[Tensor, dict[str, Tensor]]:
        numbers = torch.tensor([sample[0] if isinstance(sample, tuple) else sample for sample in samples])
        flipped = torch.zeros(len(numbers), dtype=torch.bool)
        return self._images[numbers], {"labels": self._labels[numbers], "image_id": numbers, "flipped": flipped}

    @staticmethod
    def collate(batch: tuple[Tensor, dict[str, Tensor]]) -> tuple[Tensor, dict[str, Tensor]]:
        return batch

    def plain(self) -> RandomClassifications:
        return self

    @property
    def aspect_groups(self) -> None:
        return None

    def unnormalised(self, image: Tensor) -> Tensor:
        return image

    def fingerprint(self) -> str:
        return hashlib.sha256(repr(tuple(self._images.shape)).encode()).hexdigest()


def random_set(data: DataConfig, task: str, length: int, channels: int = 3) -> PictureSet:
    """*length* random pictures of the sizes and classes that *data* tell; *channels* of a classifier's pictures."""
    if task == "classification":
        side = data.image_size or _SIZES.get(data.format, 32)
        return RandomClassifications(length, (side, side), channels, data.classes or _CLASSES[data.format])
    if data.format == "shapes":
        shapes = shapes_config(data)
        return RandomDetections(length, [(shapes.image_size, shapes.image_size)], data.classes or shapes.classes)
    return RandomDetections(length, [(500, height) for height in _VOC_HEIGHTS], data.classes or _CLASSES["voc"])
