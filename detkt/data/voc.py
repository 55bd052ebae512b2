"""Data sets in the folder layout of PASCAL VOC: Annotations/ID.xml, JPEGImages/ID.jpg, ImageSets/Main/SPLIT.txt."""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from detkt.base.errors import InputError, suggestion
from detkt.data.annotations import TOLERANCE, Annotation, locate_object, parse_annotation, parse_xml, read_annotation
from detkt.data.boxes import voc_to_corners
from detkt.data.images import AS_USUAL, Decoding, check_strip, inspect_image, read_image, read_image_size
from detkt.data.picture_cache import PictureCache
from detkt.data.voc_folder import Sample, find_samples, shorten

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
        itself (then the year does not matter); or a plain one (`detkt.data.voc_folder.plain_folders`).
    split: the name of a list in ImageSets/Main, or several joined with "+", each with its own year if it has one:
        ``"2012:train+2007:trainval"``. Each line names a picture, with or without the suffix; in lists of one class
        ("000012 -1") the lines with -1, pictures without that class, are left out. Blank lines and comments ("# …")
        are skipped, and what is named twice is kept once. Of a plain folder it is a split's name; of both it may be
        a part: ``"all[:-100]"`` (`detkt.data.parts`).
    classes: the class names, in the order of the labels 1, 2, …. None: see `choose_classes` (so pass the training
        split's `classes` to every other split).
    pictures: False needs none of them to be there, to score detections by `annotations` alone.
    boxes: "clip" cuts boxes that reach beyond their picture; "refuse" raises for them.
    decoding: see `Decoding`.
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
    does not hold, a file that is no picture, a strip (`check_strip`), or a picture of another size than its annotation
    states. A truncated picture raises it when read. What was decided on the way (boxes cut, sizes taken from the
    pictures, orientations, …) is in `notes`, a line each.
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
        boxes: str = "clip",
        decoding: Decoding = AS_USUAL,
        picture_cache: PictureCache | None = None,
    ) -> None:
        self.keep_difficult, self.transforms, self._decoding = keep_difficult, transforms, decoding
        self.picture_cache = picture_cache
        self._samples, self.notes = find_samples(Path(root), split, str(year), pictures)
        self._annotations = [self._read(sample, boxes) for sample in self._samples]
        self.ids = [sample.id for sample in self._samples]
        self.sizes: list[Any] = [annotation.size for annotation in self._annotations]
        if classes is None:
            self.classes, slips = choose_classes(Counter(name for found in self._annotations for name in found.names))
            self._reject(slips, VOC_CLASSES)
            alike = [name for name in self.classes if name not in VOC_CLASSES and near_voc_classes(name)]
            if alike:
                self.notes.append(f"{split}: {shorten(alike)} taken for classes of their own (else see data.classes)")
        else:
            self.classes = checked_classes(classes)
        self._labels = self._label_objects()
        undecided = sum(self._check_picture(index) for index in range(len(self))) if pictures else 0
        self._note(split, undecided)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int | tuple[int, int]) -> tuple[Tensor, dict[str, Tensor]]:
        index, seed = index if isinstance(index, tuple) else (index, None)
        index = range(len(self))[index]  # negative ones count from the end, as in a list
        annotation = self._annotations[index]
        kept = np.full(len(annotation.boxes), True) if self.keep_difficult else ~annotation.difficult
        boxes, labels = voc_to_corners(annotation.boxes[kept]), self._labels[index][kept]
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
        """What `detkt.evaluation.voc.evaluate` compares detections with, difficult objects included.

        Picture id -> "boxes" float64 (n, 4), 1-based inclusive as in the files; "labels" n class names; "difficult"
        bool (n,).
        """
        return {
            sample.id: {"boxes": found.boxes, "labels": list(found.names), "difficult": found.difficult}
            for sample, found in zip(self._samples, self._annotations, strict=True)
        }

    def all_classes(self) -> list[str]:
        """`classes` of all annotations that lie beside those of the split, whether a list names them or not.

        These are the classes of the data set, of which a split may lack some. A file that cannot be read has none.
        """
        names = {name for found in self._annotations for name in found.names}
        if names <= set(VOC_CLASSES):
            return self.classes
        for path in {path for folder in {sample.xml.parent for sample in self._samples} for path in folder.iterdir()}:
            if path.suffix.lower() == ".xml":
                with contextlib.suppress(InputError):
                    names |= {*read_annotation(parse_xml(path))[0].names}
        return sorted(names)

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
        path = self._samples[index].image
        assert path is not None
        return path

    def _read(self, sample: Sample, boxes: str) -> Annotation:
        size = None if sample.image is None else partial(read_image_size, sample.image, None, self._decoding)
        return parse_annotation(sample.xml, boxes, size)

    def _decode(self, index: int) -> np.ndarray:
        image = read_image(self.image_path(index), self.sizes[index], self._decoding)
        self._check_size(index, image.shape[1::-1])
        return image

    def _label_objects(self) -> list[np.ndarray]:
        number = {name: label for label, name in enumerate(self.classes, start=1)}
        self._reject({name for found in self._annotations for name in found.names}.difference(number), self.classes)
        return [np.array([number[n] for n in found.names], dtype=np.int64) for found in self._annotations]

    def _reject(self, unknown: Container[str], classes: Sequence[str]) -> None:
        for sample, found in zip(self._samples, self._annotations, strict=True):
            for row, name in zip(found.rows, found.names, strict=True):
                if name in unknown:
                    raise InputError(
                        f"{locate_object(sample.xml, row)}: unknown class{suggestion(name, classes)}; mend the file, "
                        f"or list it among the classes (data.classes), which are {shorten(classes)}"
                    )

    def _check_picture(self, index: int) -> bool:
        """Whether the settings decide on turning it."""
        path = self.image_path(index)
        found, undecided = inspect_image(path, self.sizes[index], self._decoding)
        check_strip(path, *found)
        self._check_size(index, found)
        return undecided

    def _check_size(self, index: int, found: tuple[int, ...]) -> None:
        if tuple(found) != self.sizes[index]:
            sample, (width, height) = self._samples[index], self.sizes[index]
            raise InputError(
                f"{sample.image}: the picture is {found[0]} x {found[1]} pixels, but {sample.xml} says {width} x "
                f"{height}; its boxes would be misplaced: correct the <size> and the boxes, or restore the picture"
            )

    def _note(self, split: str, undecided: int) -> None:
        annotations = list(zip(self._samples, self._annotations, strict=True))
        cut = [sample.xml for sample, found in annotations if (found.overshoot > TOLERANCE).any()]
        unstated = [sample.xml for sample, found in annotations if not found.stated and found.size is not None]
        as_set = "turned upright" if self._decoding.exif == "apply" else "taken as they are stored"
        for number, what in (
            (
                len(cut),
                f"annotations, such as {min(cut, default='')}: boxes cut to the picture (data.boxes=clip|refuse)",
            ),
            (len(unstated), f"annotations, such as {min(unstated, default='')}: no <size>, the picture's is taken"),
            (undecided, f"pictures whose EXIF orientation <size> does not decide: {as_set} (data.exif=apply|ignore)"),
        ):
            if number:
                self.notes.append(f"{split}: {number} {what}")


def choose_classes(counts: Mapping[str, int]) -> tuple[list[str], dict[str, str]]:
    """The classes of data with so many objects of each name: VOC's 20 where no other is found, else all, sorted.

    Also the names that are slips of the pen for one of VOC's, and no classes: alike, and rare beside it. To be rare is
    to have a hundredth of its objects, or at most two where it has five times as many.
    """
    slips = {}
    for name in set(counts).difference(VOC_CLASSES):
        for other in near_voc_classes(name):
            few, many = counts[name], counts.get(other, 0)
            if 100 * few <= many or (few <= 2 and 5 * few <= many):
                slips[name] = other
    return (list(VOC_CLASSES) if set(counts) <= set(VOC_CLASSES) else sorted(counts)), slips


def near_voc_classes(name: str) -> list[str]:
    """Those of VOC's names that *name* resembles, the nearest first."""
    return get_close_matches(name.lower(), VOC_CLASSES, cutoff=0.75)


def checked_classes(classes: Sequence[str]) -> list[str]:
    """*classes* as a list of names in the form that annotations have; InputError where they are not all different."""
    names = [classes] if isinstance(classes, str) else list(classes)
    if not names or len(set(names)) != len(names) or not all(isinstance(n, str) and n for n in names):
        raise InputError(f"classes must be different names, at least one; they are {names}")
    return [normalize("NFC", name) for name in names]
