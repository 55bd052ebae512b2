"""Data sets for classifiers: CIFAR, MNIST, ImageNet and image folders, served in whole batches."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from detkt.base.errors import InputError
from detkt.config import DataConfig
from detkt.data.annotated import shorten
from detkt.data.batch_transforms import crop_and_flip, distort, flips, normalise
from detkt.data.image_folder import PhotoTransforms, check_pictures, list_pictures, read_equal_pictures
from detkt.data.images import Decoding, read_image
from detkt.data.parts import parse_part, part_of
from detkt.data.raw_files import read_cifar, read_mnist

# fmt: off
CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)
CIFAR100_CLASSES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest",
    "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard",
    "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid",
    "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine", "possum",
    "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper",
    "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone",
    "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf",
    "woman", "worm",
)
MNIST_CLASSES = tuple("0123456789")
FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)
# fmt: on


@dataclass(frozen=True)
class _Published:
    """A data set of fixed classes: mean and standard deviation of its training pixels in [0, 1], and its reader."""

    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    read: Callable[..., tuple[np.ndarray, np.ndarray]]


_CIFAR100 = _Published(
    CIFAR100_CLASSES, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), partial(read_cifar, data_format="cifar100")
)
_PUBLISHED = {
    "cifar10": _Published(
        CIFAR10_CLASSES, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), partial(read_cifar, data_format="cifar10")
    ),
    "cifar100": _CIFAR100,
    "tcifar100": _CIFAR100,
    "mnist": _Published(MNIST_CLASSES, (0.1307,), (0.3081,), partial(read_mnist, data_format="mnist")),
    "fashion-mnist": _Published(
        FASHION_MNIST_CLASSES, (0.2860,), (0.3530,), partial(read_mnist, data_format="fashion-mnist")
    ),
}
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Files of a split are told apart by it, so that the first picture's noise is not the same in both.
_DISTORTION_KEYS = {"train": 0, "test": 1}


class PictureStore(Protocol):
    """Where a `ClassificationSet` gets its pictures from: all of one `size` (height, width)."""

    size: tuple[int, int]

    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None) -> Tensor:
        """(N, C, H, W), pixels 0 … 255 of any type; augmented by *seeds*, as they are if None."""
        ...

    def flipped(self, seeds: Sequence[int]) -> Tensor | None:
        """Which pictures of a batch are mirrored, bool (N); None: that is not told."""
        ...


class ClassificationSet(Dataset):
    """Pictures with a class each, served in whole batches.

    ``dataset.__getitems__(samples)``, which torch's DataLoader calls once a batch, is ``(images, targets)``: images
    float32 (N, C, H, W), normalised; targets "labels" int64 (N,) from 0, "image_id" int64 (N,), the indices into `ids`,
    and "flipped" bool (N,), but for photos that are decoded when needed, which are cropped besides. A sample is an
    index or a pair (index, sample seed >= 0). A training set augments each picture as a pure function of its seed,
    whichever batch it comes in (a plain index is its own seed); an evaluation set does not.
    ``dataset[sample]`` is one picture (C, H, W) with scalar targets. A DataLoader needs ``collate_fn=dataset.collate``.

    Attributes: ``ids``, a name a picture; ``classes``; ``labels`` int64 (n,); ``image_size`` (height, width);
    ``mean``, ``std`` float32 (C,), of pixels in [0, 1].
    """

    def __init__(
        self,
        pictures: PictureStore,
        labels: Sequence[int],
        ids: list[str],
        classes: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        train: bool,
    ) -> None:
        self._pictures, self.ids, self.classes, self.train = pictures, ids, list(classes), train
        self.labels = torch.as_tensor(np.asarray(labels, dtype=np.int64))
        self.mean, self.std = torch.tensor(mean), torch.tensor(std)
        self.image_size = pictures.size

    def __len__(self) -> int:
        return len(self.ids)

    def __getitems__(self, samples: Sequence[int | tuple[int, int]]) -> tuple[Tensor, dict[str, Tensor]]:
        pairs = [sample if isinstance(sample, tuple) else (sample, None) for sample in samples]
        indices = [range(len(self))[index] for index, _ in pairs]  # negative ones count from the end, as in a list
        seeds = [index if seed is None else seed for index, (_, seed) in zip(indices, pairs, strict=True)]
        images = self._pictures.batch(indices, seeds if self.train else None)
        numbers = torch.tensor(indices)
        targets = {"labels": self.labels[numbers], "image_id": numbers}
        flipped = self._pictures.flipped(seeds) if self.train else torch.zeros(len(indices), dtype=torch.bool)
        if flipped is not None:
            targets["flipped"] = flipped
        return normalise(images, self.mean, self.std), targets

    def __getitem__(self, sample: int | tuple[int, int]) -> tuple[Tensor, dict[str, Tensor]]:
        images, targets = self.__getitems__([sample])
        return images[0], {name: values[0] for name, values in targets.items()}

    @property
    def picture_sizes(self) -> list[tuple[int, int]]:
        """(width, height) of each picture."""
        return [self.image_size[::-1]] * len(self)

    def plain(self) -> ClassificationSet:
        """The same pictures without augmentation."""
        dataset = copy.copy(self)
        dataset.train = False
        return dataset

    @property
    def aspect_groups(self) -> None:
        """Pictures are of one size."""
        return None

    def unnormalised(self, image: Tensor) -> Tensor:
        """A picture (C, H, W) of this set in [0, 1]."""
        return image * self.std[:, None, None] + self.mean[:, None, None]

    def fingerprint(self) -> str:
        """A hash of the pictures, which must be kept in memory, their names and their normalisation."""
        assert isinstance(self._pictures, MemoryPictures)
        parts = [self._pictures.fingerprint(), *self.ids, str(self.mean.tolist()), str(self.std.tolist())]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @staticmethod
    def collate(batch: tuple[Tensor, dict[str, Tensor]]) -> tuple[Tensor, dict[str, Tensor]]:
        """The batch, which is one already."""
        return batch


class MemoryPictures:
    """Small pictures kept decoded: (n, C, H, W). Training ones are padded, cropped and flipped (`crop_and_flip`)."""

    def __init__(self, pictures: Tensor, padding: int = 0, flip: float = 0.0) -> None:
        self._pictures, self._padding, self._flip = pictures, padding, flip
        height, width = pictures.shape[-2:]
        self.size = height, width

    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None) -> Tensor:
        images = self._pictures[torch.tensor(indices)]
        return images if seeds is None else crop_and_flip(images, seeds, self._padding, self._flip)

    def flipped(self, seeds: Sequence[int]) -> Tensor:
        return flips(seeds, self._flip)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(str((self._pictures.dtype, self._pictures.shape)).encode())
        digest.update(self._pictures.contiguous().numpy().data)
        return digest.hexdigest()


class FilePictures:
    """Photos decoded when asked for, and made *transforms*' size; raises InputError for one that cannot be read."""

    def __init__(self, root: Path, names: Sequence[str], transforms: PhotoTransforms, decoding: Decoding) -> None:
        self._root, self._names, self._transforms, self._decoding = root, names, transforms, decoding
        self.size = (transforms.size, transforms.size)

    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None) -> Tensor:
        found = (read_image(self._root / self._names[index], None, self._decoding) for index in indices)
        photos = (torch.from_numpy(photo).permute(2, 0, 1) for photo in found)
        return torch.stack([self._transforms(*pair) for pair in zip(photos, seeds or indices, strict=True)])

    def flipped(self, seeds: Sequence[int]) -> None:
        return None


def classification_set(
    data: DataConfig, split: str, train: bool, classes: Sequence[str] | None = None
) -> ClassificationSet:
    """The pictures of *split* of ``data.root`` in ``data.format``, augmented if *train*.

    - ``cifar10``, ``cifar100``, ``mnist``, ``fashion-mnist``: the published files (`detkt.data.raw_files`), splits
      ``train`` and ``test``; kept in memory.
    - ``tcifar100``: CIFAR-100 with fixed Gaussian distortion, in both splits (Knowledge Representing, 2019, section
      4.2.4, "from a gaussian distribution (σ = 1)"). The paper does not say of what σ is 1. Our reading: of
      channel-standardised pixels, each picture its own noise, not clipped; in pixels, σ is the channel's standard
      deviation over CIFAR-100. It is a function of the split and the picture's number alone (`distort`).
    - ``imagenet``, ``folder``: ROOT/SPLIT/CLASS/PICTURE (`detkt.data.image_folder`), pictures of any kind, read as RGB.
      With ``data.image_size`` > 0 decoded as they are needed (`PhotoTransforms`); with 0, which ``imagenet`` cannot
      have, they must be of one size and are kept in memory.

    What is kept in memory is augmented by ``data.crop_padding`` and ``data.flip`` alone; ``data.color`` is for photos.

    split: a name, or a part of it as Python slices a list, ``train[:-5000]`` and ``train[-5000:]``, to choose settings
        on pictures that are not the test's. What is sliced is one fixed random order of the split's pictures, the same
        for every split of as many: pictures come sorted by class. The part keeps the pictures' own order.
    classes: those expected, in the order of the labels; None: the data set's.
    ``data.mean``, ``data.std``: of pixels in [0, 1], a channel each; empty: the published data set's, ImageNet's for
        folders.

    Raises InputError, of one line: no root, folder, split or file; damaged files (a photo's pixels are looked at when
    it is needed, its header here but for ``imagenet``, which has too many); labels out of range; other classes than
    *classes*; a part without pictures; settings that do not fit the format.
    """
    name, part = parse_part(split)
    _check_settings(data)
    root = Path(data.root or "")
    if data.format in _PUBLISHED:
        return _published_set(data, root, name, part, train, classes)
    return _folder_set(data, root, name, part, train, classes)


def _published_set(
    data: DataConfig, root: Path, split: str, part: slice, train: bool, classes: Sequence[str] | None
) -> ClassificationSet:
    known = _PUBLISHED[data.format]
    if classes is not None and tuple(classes) != known.classes:
        raise InputError(
            f"the expected classes {shorten(classes, 5)} are not those of {data.format}, {shorten(known.classes, 5)}; "
            "leave data.classes out, or take networks that were trained on it"
        )
    pictures, labels = known.read(root, split=split)
    kept = part_of(len(labels), split, part)
    images = torch.from_numpy(pictures[kept])
    if data.format == "tcifar100":
        images = distort(images, kept.tolist(), _DISTORTION_KEYS[split], [255 * deviation for deviation in known.std])
    mean, std = normalisation(data)
    ids = [f"{split}/{number:05d}" for number in kept]
    source = MemoryPictures(images, data.crop_padding, data.flip)
    return ClassificationSet(source, labels[kept], ids, known.classes, mean, std, train)


def _folder_set(
    data: DataConfig, root: Path, split: str, part: slice, train: bool, classes: Sequence[str] | None
) -> ClassificationSet:
    names, labels, classes = list_pictures(root, split, classes)
    kept = part_of(len(names), split, part)
    names = [names[number] for number in kept]
    mean, std = normalisation(data)
    decoding = Decoding(data.exif, data.max_pixels)
    source: PictureStore
    if data.image_size == 0:
        source = MemoryPictures(read_equal_pictures(root, names, decoding), data.crop_padding, data.flip)
    else:
        if data.format == "folder":
            check_pictures(root, names, decoding)
        source = FilePictures(root, names, PhotoTransforms(data.image_size, train, data.flip, data.color), decoding)
    return ClassificationSet(source, np.array(labels)[kept], names, classes, mean, std, train)


def _check_settings(data: DataConfig) -> None:
    if not data.root:
        raise InputError("data.root is not set: give the data set's folder (--data-root)")
    if data.format in _PUBLISHED and data.image_size:
        raise InputError(f"data.image_size={data.image_size}: pictures of {data.format} are taken as they are; give 0")
    if data.format == "imagenet" and not data.image_size:
        raise InputError("data.image_size=0: ImageNet's pictures are of many sizes; give the crop's side, such as 224")
    if tuple(data.scale) != (1, 1):
        raise InputError("data.scale: the random zoom is for detectors; leave it out")
    if data.color > 0 and not data.image_size:
        raise InputError("data.color: small pictures are cropped and flipped alone; give 0, or data.image_size=N")


def normalisation(data: DataConfig) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation a channel, of pixels in [0, 1]: the config's, the published set's, or ImageNet's."""
    known = _PUBLISHED.get(data.format)
    mean, std = (known.mean, known.std) if known else (_IMAGENET_MEAN, _IMAGENET_STD)
    if not data.mean and not data.std:
        return mean, std
    if len(data.mean) != len(mean) or len(data.std) != len(mean):
        raise InputError(
            f"data.mean={data.mean}, data.std={data.std}: pictures of {data.format} have {len(mean)} channels; give as "
            "many numbers, or [] for the data set's own"
        )
    return data.mean, data.std
