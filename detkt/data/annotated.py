"""What the readers of all annotation formats give, and the checks of boxes that they share."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from detkt.base.errors import InputError, cut, suggestion
from detkt.data.images import Decoding, read_image_size

TOLERANCE = 1.0  # pixels: boxes counted from 0, or one pixel too far, are common and harmless
_DIGITS = 9  # of a pixel's fraction: what float64 arithmetic leaves alone in pictures of any size


@dataclass(frozen=True, eq=False, slots=True)
class AnnotatedPicture:
    """One picture and its n objects.

    Attributes:
        id: its name in the data set.
        image: its file; None where none is needed.
        source: the file of its annotation.
        size: (width, height) in pixels, None where it is not known.
        stated: whether by the annotation.
        boxes: (n, 4) float64 0-based corners, inside the picture. One of no area is not learnt.
        names: n class names.
        difficult: (n,) bool, neither learnt nor scored.
        crowd: (n,) bool, regions of many objects: neither learnt nor scored, by COCO's rule.
        overshoot: (n,) pixels by which each box reached beyond the picture.
        rows: n numbers of the objects in the annotation, for messages.
        measured: (n, 5) x, y, width, height and area as a COCO file has them, by which COCO's AP goes; None: as the
            boxes have them.
    """

    id: str
    image: Path | None
    source: Path
    size: tuple[int, int] | None
    stated: bool
    boxes: np.ndarray
    names: Sequence[str]
    difficult: np.ndarray
    crowd: np.ndarray
    overshoot: np.ndarray
    rows: Sequence[int]
    measured: np.ndarray | None = None

    @property
    def has_area(self) -> np.ndarray:
        """(n,) bool."""
        return np.asarray((self.boxes[:, 2:] > self.boxes[:, :2]).all(axis=1))


@dataclass(frozen=True)
class Flaw:
    """*what* is wrong with the file *path*; *where*: all of the message before the colon."""

    path: Path
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass
class Contents:
    """What a reader found of a split.

    Attributes:
        pictures: in the order of the data set.
        classes: names, in the order of the labels.
        locate: (picture, index of an object) -> where that stands, for messages.
        all_classes: the classes of the whole data set, of which a split may show some.
        size_name: what an annotation's size is called there.
        notes: what is odd but read, a line each.
        flaws: what training stops at.
    """

    pictures: list[AnnotatedPicture]
    classes: list[str]
    locate: Callable[[AnnotatedPicture, int], str]
    all_classes: Callable[[], list[str]]
    size_name: str
    notes: list[str] = field(default_factory=list)
    flaws: list[Flaw] = field(default_factory=list)


@dataclass(frozen=True)
class Reading:
    """How a split is read; see `detkt.data.detection.DetectionSet`.

    pictures: whether their files must be there. boxes: "clip" or "refuse". classes: those known already.
    """

    pictures: bool = True
    boxes: str = "clip"
    decoding: Decoding = field(default_factory=Decoding)
    year: str = "2007"
    classes: Sequence[str] | None = None

    def size(self, path: Path) -> tuple[int, int]:
        """(width, height) of the picture *path*, turned as the settings say."""
        return read_image_size(path, None, self.decoding)


def rounded(boxes: np.ndarray) -> np.ndarray:
    """*boxes* to a billionth of a pixel.

    So 12.34 + 56.78 of a COCO file, and what a YOLO file states in parts of the width, are the numbers that they were
    written from, and boxes are the same in all formats.
    """
    return np.round(boxes, _DIGITS) + 0.0  # no -0.0


def fit_boxes(boxes: np.ndarray, sizes: np.ndarray, clip: bool) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Corners in the picture (`rounded`), the pixels by which each box reached beyond, and what is wrong with some.

    Args:
        boxes: (n, 4) 0-based corners.
        sizes: (n, 2) width and height of the picture of each.
        clip: False: those farther beyond the picture than `TOLERANCE`, or without area, are flaws.
    """
    boxes = rounded(boxes)
    inside = np.clip(boxes, 0, np.tile(sizes, 2))
    overshoot = np.abs(boxes - inside).max(axis=1, initial=0)
    inverted = np.asarray((boxes[:, 2:] < boxes[:, :2]).any(axis=1))
    empty = np.asarray((boxes[:, 2:] <= boxes[:, :2]).any(axis=1))
    gone = ((inside[:, 2:] <= inside[:, :2]).any(axis=1) & ~empty) | (empty & (overshoot > TOLERANCE))
    far = (overshoot > TOLERANCE) & ~gone
    flaws: dict[int, str] = {}
    for number in np.flatnonzero(inverted | gone | ((far | empty) & (not clip))).tolist():
        box, picture = shown(boxes[number]), "the picture of {:g} x {:g} pixels".format(*sizes[number])
        if inverted[number]:
            flaws[number] = f"box ({box}) has a negative width or height"
        elif gone[number]:
            flaws[number] = f"box ({box}) lies wholly outside {picture}"
        elif empty[number]:
            flaws[number] = f"box ({box}) is empty; remove it, or give data.boxes=clip"
        else:
            flaws[number] = f"box ({box}) reaches out of {picture}; correct it, or give data.boxes=clip"
    return inside, overshoot, flaws


def shown(box: Iterable[float]) -> str:
    """``x1, y1, x2, y2`` for messages."""
    return ", ".join(f"{value:g}" for value in box)


def shorten(names: Iterable[str], most: int = 12) -> str:
    """``'a', 'b', …`` with *most* names at most."""
    quoted = [f"'{cut(name)}'" for name in names]
    return ", ".join(quoted[:most]) + (f", … ({len(quoted)} in all)" if len(quoted) > most else "")


def reject_classes(
    pictures: Iterable[AnnotatedPicture],
    locate: Callable[[AnnotatedPicture, int], str],
    unknown: Container[str],
    classes: Sequence[str],
) -> None:
    """InputError for the first object of an *unknown* class; *classes* are those there are."""
    for picture in pictures:
        for index, name in enumerate(picture.names):
            if name in unknown:
                raise InputError(
                    f"{locate(picture, index)}: unknown class{suggestion(name, classes)}; mend the file, or list it "
                    f"among the classes (data.classes), which are {shorten(classes)}"
                )


def name_pictures(short: Sequence[str], long: Sequence[str]) -> list[str]:
    """A name a picture: *short*, or *long* where several have the same."""
    seen: dict[str, int] = {}
    for name in short:
        seen[name] = seen.get(name, 0) + 1
    return [one if seen[one] == 1 else other for one, other in zip(short, long, strict=True)]
