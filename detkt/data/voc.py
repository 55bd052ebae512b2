"""Data sets in the folder layout of PASCAL VOC: Annotations/ID.xml, JPEGImages/ID.jpg, ImageSets/Main/SPLIT.txt."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from os import PathLike
from pathlib import Path
from unicodedata import normalize

import numpy as np

from detkt.base.errors import InputError
from detkt.data.annotated import AnnotatedPicture, Contents, Reading, reject_classes, rounded, shorten
from detkt.data.annotations import locate_object, parse_annotation, parse_xml, read_annotation
from detkt.data.boxes import voc_to_corners
from detkt.data.detection import DetectionSet, Transforms
from detkt.data.images import AS_USUAL, Decoding
from detkt.data.picture_cache import PictureCache
from detkt.data.voc_folder import PARTS, Sample, find_samples

# fmt: off
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on

CLASS_FILE = "classes.txt"
"""Beside Annotations: a class a line, in the order of the labels, where that is neither VOC's nor the alphabet's."""


class VOCDetection(DetectionSet):
    """Pictures and objects of one or several split lists of a VOC-format folder.

    root: a folder that holds ``VOCdevkit/VOC<year>`` or ``VOC<year>``, or holds Annotations, ImageSets and JPEGImages
        itself (then the year does not matter); or a plain one (`detkt.data.voc_folder.plain_folders`).
    split: the name of a list in ImageSets/Main, or several joined with "+", each with its own year if it has one:
        ``"2012:train+2007:trainval"``. Each line names a picture, with or without the suffix; in lists of one class
        ("000012 -1") the lines with -1, pictures without that class, are left out. Blank lines and comments ("# …")
        are skipped, and what is named twice is kept once. Of a plain folder it is a split's name; of both it may be
        a part: ``"all[:-100]"`` (`detkt.data.parts`).
    classes: the class names, in the order of the labels 1, 2, …. None: those of `CLASS_FILE` where they are all that
        the split has, else see `choose_classes`.

    For all else see `DetectionSet`.
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
        super().__init__(
            read_voc,
            Path(root),
            split,
            Reading(pictures, boxes, decoding, str(year), classes),
            keep_difficult=keep_difficult,
            transforms=transforms,
            picture_cache=picture_cache,
        )


def read_voc(root: Path, split: str, reading: Reading) -> Contents:
    """The pictures of *split*; raises InputError for the first flaw (see `parse_annotation`)."""
    samples, notes = find_samples(root, split, reading.year, reading.pictures)
    pictures = [_read(sample, reading) for sample in samples]
    counts = Counter(name for picture in pictures for name in picture.names)
    folders = {sample.xml.parents[1 + sample.id.count("/")] for sample in samples}
    classes = stated_classes(folders.pop(), counts) if len(folders) == 1 else []
    every = partial(list, classes) if classes else partial(_all_classes, pictures)
    if not classes:
        classes, slips = choose_classes(counts)
        if reading.classes is None:
            reject_classes(pictures if slips else (), _locate, slips, VOC_CLASSES)
            if alike := [name for name in classes if name not in VOC_CLASSES and near_voc_classes(name)]:
                notes.append(f"{split}: {shorten(alike)} taken for classes of their own (else see data.classes)")
    return Contents(pictures, classes, _locate, every, "<size>", notes)


def _read(sample: Sample, reading: Reading) -> AnnotatedPicture:
    size = None if sample.image is None else partial(reading.size, sample.image)
    found = parse_annotation(sample.xml, reading.boxes, size)
    return AnnotatedPicture(
        id=sample.id,
        image=sample.image,
        source=sample.xml,
        size=found.size,
        stated=found.stated,
        boxes=rounded(voc_to_corners(found.boxes)),
        names=found.names,
        difficult=found.difficult,
        crowd=np.zeros(len(found.names), dtype=bool),
        overshoot=found.overshoot,
        rows=found.rows,
    )


def _locate(picture: AnnotatedPicture, index: int) -> str:
    return locate_object(picture.source, picture.rows[index])


def _all_classes(pictures: Sequence[AnnotatedPicture]) -> list[str]:
    """The classes of all annotations that lie beside those of the split, whether a list names them or not.

    A file that cannot be read has none.
    """
    names = {name for picture in pictures for name in picture.names}
    if names <= set(VOC_CLASSES):
        return list(VOC_CLASSES)
    for path in {path for folder in {picture.source.parent for picture in pictures} for path in folder.iterdir()}:
        if path.suffix.lower() == ".xml":
            with contextlib.suppress(InputError):
                names |= {*read_annotation(parse_xml(path))[0].names}
    return sorted(names)


def stated_classes(folder: Path, counts: Mapping[str, int]) -> list[str]:
    """The names in `CLASS_FILE` of *folder*, in its order, if it is there and has all that are counted; else none.

    Only a folder of VOC's own layout has that file.
    """
    if not (folder / PARTS[1]).is_dir() or not (folder / CLASS_FILE).is_file():
        return []
    try:
        lines = (folder / CLASS_FILE).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    names = list(dict.fromkeys(normalize("NFC", line.strip()) for line in lines if line.strip()))
    return names if set(counts) <= set(names) else []


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
