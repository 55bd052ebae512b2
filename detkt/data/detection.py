"""Pictures and their objects for detectors, whatever the format of their annotations."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from detkt.base.errors import InputError
from detkt.data.annotated import TOLERANCE, Contents, Reading, reject_classes
from detkt.data.boxes import corners_to_voc
from detkt.data.images import check_strip, inspect_image, read_image
from detkt.data.picture_cache import PictureCache

# image (H, W, 3) uint8, boxes (n, 4) float64 corners, labels (n,) int64, seed -> the same three, whether flipped
Transforms = Callable[[np.ndarray, np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray, np.ndarray, bool]]


class DetectionSet(Dataset):
    """Pictures and objects of one or several splits.

    read: a reader of one of the formats: (root, split, reading) -> `Contents`.
    root: the data set's folder.
    split: the name of a split, or several joined with "+"; each may be a part: ``"train[:-100]"``
        (`detkt.data.parts`). What is named twice is kept once.
    reading: how annotations and pictures are read. ``classes``: the names, in the order of the labels 1, 2, …; None:
        those of the data set (so pass the training split's `classes` to every other split). ``pictures``: False needs
        none of them to be there, to score detections by `annotations` alone. ``boxes``: "clip" cuts boxes that reach
        beyond their picture; "refuse" raises for them.
    keep_difficult: whether difficult objects are learnt; crowds never are.
    transforms: called with (image uint8 (H, W, 3), boxes float64 (n, 4) corners, labels int64 (n,), seed), returns
        the changed image, boxes and labels, and whether the picture was flipped; see
        `detkt.data.transforms.TrainTransforms`.
    picture_cache: where pictures come from, reduced, with their boxes; None: from their files.

    ``dataset[i]`` is ``(image, target)``: image float32 (3, H, W) in [0, 1], RGB; target "boxes" float32 (n, 4)
    0-based corners, "labels" int64 (n,) from 1, "image_id" int64 scalar, the index into `ids`, "flipped" bool scalar;
    n may be 0. The index may be a pair (i, sample seed); the seed goes to the transforms, which draw from nothing else.
    A plain index is its own seed: then a picture is changed in the same way each time it is read.

    Everything that can be known without decoding is checked here, once: raises InputError, naming the file, for a
    missing folder, list, picture or annotation, a faulty annotation (see the reader), a class that *classes* does not
    hold, a file that is no picture, a strip (`check_strip`), or a picture of another size than its annotation states.
    A truncated picture raises it when read. What was decided on the way (boxes cut, sizes taken from the pictures,
    orientations, …) is in `notes`, a line each.
    """

    def __init__(
        self,
        read: Callable[[Path, str, Reading], Contents],
        root: Path,
        split: str,
        reading: Reading,
        *,
        keep_difficult: bool = False,
        transforms: Transforms | None = None,
        picture_cache: PictureCache | None = None,
    ) -> None:
        self.keep_difficult, self.transforms, self.picture_cache = keep_difficult, transforms, picture_cache
        self._decoding = reading.decoding
        contents = read(root, split, reading)
        if contents.flaws:
            raise InputError(str(contents.flaws[0]))
        self.pictures, self._size_name, self.all_classes = contents.pictures, contents.size_name, contents.all_classes
        self.notes = contents.notes
        self.ids = [picture.id for picture in self.pictures]
        self.picture_files = [os.path.abspath(one.image) if one.image else one.id for one in self.pictures]
        self.sizes: list[Any] = [picture.size for picture in self.pictures]
        self.classes = contents.classes if reading.classes is None else checked_classes(reading.classes)
        number = {name: label for label, name in enumerate(self.classes, start=1)}
        unknown = {name for picture in self.pictures for name in picture.names}.difference(number)
        reject_classes(self.pictures if unknown else (), contents.locate, unknown, self.classes)
        self._labels = [np.array([number[n] for n in picture.names], dtype=np.int64) for picture in self.pictures]
        undecided = sum(self._check_picture(index) for index in range(len(self))) if reading.pictures else 0
        self._note(split, undecided)

    @property
    def annotation_file(self) -> Path | None:
        """The file that all annotations stand in; None where there are several."""
        files = {picture.source for picture in self.pictures}
        return files.pop() if len(files) == 1 else None

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int | tuple[int, int]) -> tuple[Tensor, dict[str, Tensor]]:
        index, seed = index if isinstance(index, tuple) else (index, None)
        index = range(len(self))[index]  # negative ones count from the end, as in a list
        picture = self.pictures[index]
        kept = picture.has_area & ~picture.crowd & (self.keep_difficult | ~picture.difficult)
        boxes, labels = picture.boxes[kept], self._labels[index][kept]
        if self.picture_cache is None:
            image = self._decode(index)
        else:
            decode = partial(self._decode, index)
            image = self.picture_cache.read(self.image_path(index), self.sizes[index], decode, self._decoding.exif)
            reduced: Any = self.picture_cache.size(*self.sizes[index])
            boxes = boxes * (np.array(reduced) / self.sizes[index])[[0, 1, 0, 1]]
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
        """What `detkt.evaluation` compares detections with, difficult objects and crowds included.

        Picture id -> "boxes" float64 (n, 4), 1-based inclusive as in VOC's files; "labels" n class names; "difficult"
        bool (n,), true of crowds as well; for annotations of COCO also "crowd" bool (n,) and "measured" (n, 5), see
        `detkt.data.annotated.AnnotatedPicture`.
        """
        found: dict[str, dict[str, Any]] = {}
        for one in self.pictures:
            difficult = one.difficult | one.crowd
            found[one.id] = {"boxes": corners_to_voc(one.boxes), "labels": list(one.names), "difficult": difficult}
            if one.measured is not None:
                found[one.id] |= {"crowd": one.crowd, "measured": one.measured}
        return found

    @property
    def picture_sizes(self) -> list[tuple[int, int]]:
        """(width, height) of the pictures as they come, before `transforms`: `sizes`, or those of `picture_cache`."""
        return self.sizes if self.picture_cache is None else [self.picture_cache.size(*size) for size in self.sizes]

    def plain(self) -> DetectionSet:
        """The same pictures without `transforms`."""
        dataset = copy.copy(self)
        dataset.transforms = None
        return dataset

    def fingerprint(self) -> str:
        """A hash of the pictures' names, sizes in pixels and bytes, and times of change; of no pixel.

        Raises InputError for a picture that is gone.
        """
        digest = hashlib.sha256()
        for index, (name, size) in enumerate(zip(self.ids, self.picture_sizes, strict=True)):
            path = self.image_path(index)
            try:
                found = path.stat()
            except OSError as error:
                raise InputError(f"{path}: cannot read the picture: {error.strerror}") from None
            turned = () if self._decoding.exif == "apply" else (self._decoding.exif,)
            digest.update(repr((name, size, found.st_size, found.st_mtime_ns, *turned)).encode())
        return digest.hexdigest()

    @property
    def aspect_groups(self) -> list[int]:
        """0 for a wide or square picture, 1 for a tall one: batches of one kind are padded less."""
        return [int(height > width) for width, height in self.sizes]

    def unnormalised(self, image: Tensor) -> Tensor:
        """*image* as it is: detectors normalise pictures themselves."""
        return image

    def image_path(self, index: int) -> Path:
        """The picture's file, of a set that was made with its pictures."""
        path = self.pictures[index].image
        assert path is not None
        return path

    def _decode(self, index: int) -> np.ndarray:
        image = read_image(self.image_path(index), self.sizes[index], self._decoding)
        self._check_size(index, image.shape[1::-1])
        return image

    def _check_picture(self, index: int) -> bool:
        """Whether the settings decide on turning it."""
        path = self.image_path(index)
        found, undecided = inspect_image(path, self.sizes[index], self._decoding)
        check_strip(path, *found)
        self._check_size(index, found)
        return undecided

    def _check_size(self, index: int, found: tuple[int, ...]) -> None:
        if tuple(found) != self.sizes[index]:
            picture, (width, height) = self.pictures[index], self.sizes[index]
            raise InputError(
                f"{picture.image}: the picture is {found[0]} x {found[1]} pixels, but {picture.source} says {width} x "
                f"{height}; its boxes would be misplaced: correct the {self._size_name} and the boxes, or restore the "
                "picture"
            )

    def _note(self, split: str, undecided: int) -> None:
        cut = [picture.source for picture in self.pictures if (picture.overshoot > TOLERANCE).any()]
        unstated = [picture.source for picture in self.pictures if not picture.stated and picture.size is not None]
        empty = [picture.source for picture in self.pictures if not picture.has_area.all()]
        as_set = "turned upright" if self._decoding.exif == "apply" else "taken as they are stored"
        size = self._size_name
        for number, what in (
            (
                len(cut),
                f"annotations, such as {min(cut, default='')}: boxes cut to the picture (data.boxes=clip|refuse)",
            ),
            (len(unstated), f"annotations, such as {min(unstated, default='')}: no {size}, the picture's is taken"),
            (len(empty), f"annotations, such as {min(empty, default='')}: boxes without area, which are not learnt"),
            (undecided, f"pictures whose EXIF orientation {size} does not decide: {as_set} (data.exif=apply|ignore)"),
        ):
            if number:
                self.notes.append(f"{split}: {number} {what}")


def checked_classes(classes: Sequence[str]) -> list[str]:
    """*classes* as a list of names in the form that annotations have; InputError where they are not all different."""
    names = [classes] if isinstance(classes, str) else list(classes)
    if not names or len(set(names)) != len(names) or not all(isinstance(n, str) and n for n in names):
        raise InputError(f"classes must be different names, at least one; they are {names}")
    return [normalize("NFC", name) for name in names]
