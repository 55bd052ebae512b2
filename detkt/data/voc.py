"""Data sets in the folder layout of PASCAL VOC: Annotations/ID.xml, JPEGImages/ID.jpg, ImageSets/Main/SPLIT.txt."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from detkt.base.errors import InputError, suggestion
from detkt.data.annotations import locate_object, parse_annotation
from detkt.data.boxes import voc_to_corners
from detkt.data.images import read_image, read_image_size
from detkt.data.picture_cache import PictureCache
from detkt.data.voc_folder import find_samples, shorten

# fmt: off
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on

# image (H, W, 3) uint8, boxes (n, 4) float64 corners, labels (n,) int64, seed -> the same three, whether flipped
Transforms = Callable[[np.ndarray, np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray, np.ndarray, bool]]


class VOCDetection(Dataset):
    """Pictures and objects of one or several split lists of a VOC-format folder.

    root: a folder that holds ``VOCdevkit/VOC<year>`` or ``VOC<year>``, or holds Annotations, ImageSets and JPEGImages
        itself (then the year does not matter).
    split: the name of a list in ImageSets/Main, or several joined with "+", each with its own year if it has one:
        ``"2012:train+2007:trainval"``. Each line names a picture, with or without the suffix; in lists of one class
        ("000012 -1") the lines with -1, pictures without that class, are left out. Blank lines are skipped, and what
        is named twice is kept once.
    keep_difficult: whether targets hold the objects marked difficult; `annotations` always does.
    classes: the class names, in the order of the labels 1, 2, …. None: VOC's 20 where no other name is found in the
        split, else the sorted names that are found (so pass the training split's `classes` to every other split).
        Names found besides VOC's that look like misspellings of them are an error, not new classes.
    pictures: False needs none of them to be there, to score detections by `annotations` alone.
    transforms: called with (image uint8 (H, W, 3), boxes float64 (n, 4) corners, labels int64 (n,), seed), returns
        the changed image, boxes and labels, and whether the picture was flipped; see
        `detkt.data.transforms.TrainTransforms`.
    picture_cache: where pictures come from, reduced, with their boxes; None: from their files.

    ``dataset[i]`` is ``(image, target)``: image float32 (3, H, W) in [0, 1], RGB; target "boxes" float32 (n, 4)
    0-based corners, "labels" int64 (n,) from 1, "image_id" int64 scalar, the index into `ids`, "flipped" bool scalar;
    n may be 0. The index may be a pair (i, sample seed); the seed goes to the transforms, which draw from nothing else.
    A plain index is its own seed: then a picture is changed in the same way each time it is read.

    Everything that can be known without decoding is checked here, once: raises InputError, naming the file, for a
    missing folder, list, picture or annotation, a faulty annotation (see `parse_annotation`), a class that *classes*
    does not hold, a file that is no picture, or one of another size than its annotation states. A truncated picture
    raises it when read.
    """

    def __init__(
        self,
        root: str | PathLike[str],
        split: str,
        year: str = "2007",
        keep_difficult: bool = False,
        classes: Sequence[str] | None = None,
        transforms: Transforms | None = None,
        pictures: bool = True,
        picture_cache: PictureCache | None = None,
    ) -> None:
        self.keep_difficult, self.transforms, self.picture_cache = keep_difficult, transforms, picture_cache
        self._samples = find_samples(Path(root), split, str(year), pictures)
        self._annotations = [parse_annotation(sample.xml) for sample in self._samples]
        self.ids = [sample.id for sample in self._samples]
        self.sizes = [(annotation.width, annotation.height) for annotation in self._annotations]
        self.classes = self._default_classes() if classes is None else _checked_classes(classes)
        self._labels = self._label_objects()
        if pictures:
            self._check_sizes()

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int | tuple[int, int]) -> tuple[Tensor, dict[str, Tensor]]:
        index, seed = index if isinstance(index, tuple) else (index, None)
        index = range(len(self))[index]  # negative ones count from the end, as in a list
        sample, annotation = self._samples[index], self._annotations[index]
        kept = np.full(len(annotation.boxes), True) if self.keep_difficult else ~annotation.difficult
        boxes, labels = voc_to_corners(annotation.boxes[kept]), self._labels[index][kept]
        if self.picture_cache is None:
            image = self._decode(index)
        else:
            image = self.picture_cache.read(sample.image, self.sizes[index], partial(self._decode, index))
            boxes = boxes * (np.array(self.picture_cache.size(*self.sizes[index])) / self.sizes[index])[[0, 1, 0, 1]]
        flipped = False
        if self.transforms is not None:
            image, boxes, labels, flipped = self.transforms(image, boxes, labels, index if seed is None else seed)
        target = {
            "boxes": torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "labels": torch.as_tensor(labels, dtype=torch.int64),
            "image_id": torch.tensor(index),
            "flipped": torch.tensor(bool(flipped)),
        }
        return torch.from_numpy(image).permute(2, 0, 1).contiguous().float().div_(255), target

    def annotations(self) -> dict[str, dict[str, Any]]:
        """What `detkt.evaluation.voc.evaluate` compares detections with, difficult objects included.

        Picture id -> "boxes" float64 (n, 4), 1-based inclusive as in the files; "labels" n class names; "difficult"
        bool (n,).
        """
        return {
            sample.id: {"boxes": found.boxes, "labels": list(found.names), "difficult": found.difficult}
            for sample, found in zip(self._samples, self._annotations, strict=True)
        }

    @property
    def picture_sizes(self) -> list[tuple[int, int]]:
        """(width, height) of the pictures as they come, before `transforms`: `sizes`, or those of `picture_cache`."""
        return self.sizes if self.picture_cache is None else [self.picture_cache.size(*size) for size in self.sizes]

    def plain(self) -> VOCDetection:
        """The same pictures without `transforms`."""
        dataset = copy.copy(self)
        dataset.transforms = None
        return dataset

    def fingerprint(self) -> str:
        """A hash of the pictures' names, sizes in pixels and bytes, and times of change; of no pixel.

        Raises InputError for a picture that is gone.
        """
        digest = hashlib.sha256()
        for sample, size in zip(self._samples, self.picture_sizes, strict=True):
            try:
                found = sample.image.stat()
            except OSError as error:
                raise InputError(f"{sample.image}: cannot read the picture: {error.strerror}") from None
            digest.update(repr((sample.id, size, found.st_size, found.st_mtime_ns)).encode())
        return digest.hexdigest()

    @property
    def aspect_groups(self) -> list[int]:
        """0 for a wide or square picture, 1 for a tall one: batches of one kind are padded less."""
        return [int(height > width) for width, height in self.sizes]

    def unnormalised(self, image: Tensor) -> Tensor:
        """*image* as it is: detectors normalise pictures themselves."""
        return image

    def image_path(self, index: int) -> Path:
        """The picture's file."""
        return self._samples[index].image

    def _decode(self, index: int) -> np.ndarray:
        image = read_image(self._samples[index].image, self.sizes[index])
        self._check_size(index, image.shape[1::-1])
        return image

    def _default_classes(self) -> list[str]:
        found = {name for annotation in self._annotations for name in annotation.names}
        foreign = found.difference(VOC_CLASSES)
        if not foreign:
            return list(VOC_CLASSES)
        # One slip of the pen must not turn VOC's classes into a list of its own.
        if foreign != found and all(get_close_matches(name.lower(), VOC_CLASSES, cutoff=0.75) for name in foreign):
            self._reject(foreign, VOC_CLASSES)
        return sorted(found)

    def _label_objects(self) -> list[np.ndarray]:
        number = {name: label for label, name in enumerate(self.classes, start=1)}
        unknown = {name for annotation in self._annotations for name in annotation.names}.difference(number)
        if unknown:
            self._reject(unknown, self.classes)
        return [np.array([number[n] for n in found.names], dtype=np.int64) for found in self._annotations]

    def _reject(self, unknown: set[str], classes: Sequence[str]) -> None:
        for sample, annotation in zip(self._samples, self._annotations, strict=True):
            for index, name in enumerate(annotation.names):
                if name in unknown:
                    raise InputError(
                        f"{locate_object(sample.xml, index)}: unknown class{suggestion(name, classes)}; mend the file, "
                        f"or list it among the classes, which are {shorten(classes)}"
                    )

    def _check_sizes(self) -> None:
        for index, (sample, size) in enumerate(zip(self._samples, self.sizes, strict=True)):
            self._check_size(index, read_image_size(sample.image, size))

    def _check_size(self, index: int, found: tuple[int, ...]) -> None:
        if tuple(found) != self.sizes[index]:
            sample, (width, height) = self._samples[index], self.sizes[index]
            raise InputError(
                f"{sample.image}: the picture is {found[0]} x {found[1]} pixels, but {sample.xml} says {width} x "
                f"{height}; its boxes would be misplaced: correct the <size> and the boxes, or restore the picture"
            )


def _checked_classes(classes: Sequence[str]) -> list[str]:
    names = [classes] if isinstance(classes, str) else list(classes)
    if not names or len(set(names)) != len(names) or not all(isinstance(n, str) and n for n in names):
        raise InputError(f"classes must be different names, at least one; they are {names}")
    return names
