"""Records of pictures: what detectors found and what is there, checked and joined for scoring.

Records, here and in the rest of the package, are numpy arrays (lists do as well):

- detections: picture id -> ``{"boxes": (n, 4) x1 y1 x2 y2, 1-based inclusive pixels, "scores": (n,),
  "labels": (n,) class names}``; a picture that is left out has no detections;
- annotations: picture id -> ``{"boxes", "labels", "difficult": (n,) bool}``; without "difficult" no object
  is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

import numpy as np

from detkt.base.errors import InputError, suggestion

Records = Mapping[Any, Mapping[str, Any]]


@dataclass(frozen=True)
class FlatRecords:
    """The boxes of all pictures one after the other, n in all.

    pictures: (n,) index of the picture; rows: (n,) index of the box among its picture's; boxes: (n, 4)
    float64; values: (n,) scores or difficult flags; labels: n class names.
    """

    pictures: np.ndarray
    rows: np.ndarray
    boxes: np.ndarray
    values: np.ndarray
    labels: list[str]


def flatten_detections(detections: Records, annotations: Records) -> FlatRecords:
    """Check *detections* and join them; pictures are numbered in the order of *annotations*.

    Raises InputError for a picture that *annotations* lacks, missing keys, unequal lengths and numbers not
    finite.
    """
    number_of = {picture: number for number, picture in enumerate(annotations)}
    return _flatten("detections", detections, number_of, "scores", np.float64)


def flatten_annotations(annotations: Records) -> FlatRecords:
    """Check *annotations* and join them; raises InputError as `flatten_detections` does."""
    number_of = {picture: number for number, picture in enumerate(annotations)}
    return _flatten("annotations", annotations, number_of, "difficult", np.bool_)


def _flatten(kind: str, records: Records, number_of: Mapping, column: str, dtype: type) -> FlatRecords:
    numbers, boxes, values, labels = [], [], [], []
    for picture, record in records.items():
        if picture not in number_of:
            hint = suggestion(picture, number_of)
            raise InputError(f"{kind} name picture '{picture}', which has no annotation{hint}; leave it out")
        try:
            box, label = np.asarray(record["boxes"], dtype=np.float64), record["labels"]
            label = label.tolist() if isinstance(label, np.ndarray) else list(label)
            # Annotations without the flag are of a data set that does not know it: no object is difficult.
            value = np.zeros(len(label), bool) if column == "difficult" not in record else record[column]
            value = np.asarray(value, dtype=dtype)
        except KeyError as error:
            raise InputError(f"{kind} of picture '{picture}' lack the key {error}") from None
        except (TypeError, ValueError) as error:
            raise InputError(f"{kind} of picture '{picture}' are not numbers: {error}") from None
        if box.size == 0:
            box = box.reshape(0, 4)
        if box.ndim != 2 or box.shape[1] != 4:
            raise InputError(f"{kind} of picture '{picture}': boxes have shape {box.shape}, expected (n, 4)")
        if value.shape != (len(box),) or len(label) != len(box):
            raise InputError(
                f"{kind} of picture '{picture}' hold {len(box)} boxes, {len(label)} labels and {column} of "
                f"shape {value.shape}; give one of each for every box"
            )
        numbers.append(number_of[picture])
        boxes.append(box)
        values.append(value)
        labels.append(label)

    counts = np.array([len(box) for box in boxes], dtype=np.intp)
    flat = FlatRecords(
        pictures=np.repeat(np.array(numbers, dtype=np.intp), counts),
        rows=np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts),
        boxes=np.concatenate([np.empty((0, 4)), *boxes]),
        values=np.concatenate([np.empty(0, dtype), *values]),
        labels=list(chain.from_iterable(labels)),
    )
    for name, array in (("box", flat.boxes), (column, flat.values)):
        finite = np.isfinite(array)
        if not finite.all():
            first = int(np.argwhere(~finite)[0, 0])
            picture = list(number_of)[flat.pictures[first]]
            raise InputError(
                f"{kind} of picture '{picture}', row {flat.rows[first]}: {name} {array[first].tolist()} is not finite"
            )
    return flat


def number_labels(labels: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """(n,) index into *classes* of every label; ``len(classes)`` for a name that is not among them."""
    index = {name: number for number, name in enumerate(classes)}
    # The smallest integer type: numpy sorts 8 and 16 bits by radix, several times faster.
    smallest = np.min_scalar_type(len(classes))
    return np.fromiter(map(index.get, labels, repeat(len(classes))), dtype=smallest, count=len(labels))


def check_labels(flat: FlatRecords, numbers: np.ndarray, classes: Sequence[str], pictures: Sequence) -> None:
    """Raise InputError where a detection of *flat* names a class that is not among *classes*."""
    unknown = np.flatnonzero(numbers == len(classes))
    if len(unknown):
        label, picture = flat.labels[unknown[0]], pictures[flat.pictures[unknown[0]]]
        raise InputError(
            f"detections of picture '{picture}' name class '{label}', which is not among the classes"
            f"{suggestion(label, classes)}; leave its detections out or add the class"
        )
