"""Data sets in the format of YOLO: ``data.yaml`` names classes and splits, each picture has a text file of labels.

A line of it is a class number from 0, then the centre, width and height of the box in parts of the picture's, or the
corners of an outline, around which the box is drawn. A picture without label file has no object. The format knows
neither difficult objects nor crowds.
"""

from __future__ import annotations

import math
import os
from functools import partial
from pathlib import Path

import numpy as np

from detkt.base.errors import InputError, cut, literal
from detkt.data.annotated import AnnotatedPicture, Contents, Flaw, Reading, fit_boxes, name_pictures
from detkt.data.boxes import centres_to_corners
from detkt.data.parts import parse_part, part_of
from detkt.data.yolo_folder import Place, open_yolo, split_places

_SLACK = 1e-3  # beyond 0 and 1: programs round


def read_yolo(root: Path, split: str, reading: Reading) -> Contents:
    """The pictures of *split*, those of a folder in the order of their names; classes by their numbers.

    All faulty lines are told of in ``flaws``: a class that is not named, what is no number or outside 0 to 1, a box
    wholly outside; in lists pictures that are not there. Boxes of no width or height are not learnt.

    Raises InputError: no such split, a faulty ``data.yaml``, a picture that cannot be read: its size is needed.
    """
    folder = open_yolo(root)
    found = Contents([], list(folder.names.values()), _locate, list, "size", list(folder.notes))
    found.all_classes = partial(list, found.classes)
    places: dict[Path, Place] = {}
    splits: dict[str, list[Place]] = {}
    for part in split.split("+"):
        name, bounds = parse_part(part)
        if name not in splits:
            splits[name] = split_places(folder, name, found.flaws)
        if splits[name] and not any(place.label.is_file() for place in splits[name]):
            place = splits[name][0]
            what = f"none of the {len(splits[name])} pictures of '{name}' has a label file, such as {place.label}"
            found.flaws.append(Flaw(folder.file, str(folder.file), f"{what}; put the labels there"))
        if splits[name]:
            for number in part_of(len(splits[name]), name, bounds):
                places.setdefault(splits[name][number].image, splits[name][number])
    without = 0
    # A split keeps its names, whatever it is joined with or cut into.
    every = list({place.image: place for listed in splits.values() for place in listed}.values())
    names = name_pictures([place.short for place in every], [place.long for place in every])
    if len(set(names)) < len(names):  # a.jpg and a.png
        names = [os.path.relpath(place.image, folder.base) for place in every]
    name_of = dict(zip((place.image for place in every), names, strict=True))
    for place in places.values():
        picture = _read(place, name_of[place.image], folder.names, reading, found.flaws)
        without += not place.label.is_file()
        found.pictures.append(picture)
    if without:
        found.notes.append(
            f"{split}: {without} of {len(places)} pictures have no label file, and so no object: backgrounds"
        )
    return found


def _locate(picture: AnnotatedPicture, index: int) -> str:
    return f"{picture.source}:{picture.rows[index]}"


def _read(place: Place, id: str, names: dict[int, str], reading: Reading, flaws: list[Flaw]) -> AnnotatedPicture:
    size = reading.size(place.image)
    rows, labels, boxes = [], [], []
    for number, line in enumerate(_lines(place.label), start=1):
        if not line.strip():
            continue
        try:
            label, box = _parse(line, names)
        except ValueError as flaw:
            flaws.append(Flaw(place.label, f"{place.label}:{number}", str(flaw)))
            continue
        rows.append(number)
        labels.append(label)
        boxes.append(box)
    corners = centres_to_corners(np.array(boxes, dtype=np.float64).reshape(-1, 4), size)
    inside, overshoot, wrong = fit_boxes(corners, np.tile(np.array(size), (len(corners), 1)), reading.boxes == "clip")
    flaws += [Flaw(place.label, f"{place.label}:{rows[index]}", what) for index, what in wrong.items()]
    none = np.zeros(len(rows), dtype=bool)
    return AnnotatedPicture(
        id, place.image, place.label, size, True, inside, tuple(labels), none, none, overshoot, tuple(rows)
    )


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{path}: cannot read the labels: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: cannot read the labels, which must be UTF-8 text") from None


def _parse(line: str, names: dict[int, str]) -> tuple[str, list[float]]:
    """The class and the centre, width and height of a line; ValueError says what is wrong with it."""
    values = []
    for text in line.split():
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            hint = "; put spaces between the numbers" if "," in text or ";" in text else ""
            raise ValueError(f"{literal(text)} is not a finite number{hint}")
        values.append(value)
    label, *numbers = values
    if label not in names:
        raise ValueError(f"class {label:g} is not one of the {len(names)} that data.yaml names, {_ends(names)}")
    if len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2):
        raise ValueError(f"{len(values)} numbers; a class, and 4 of a box, or 3 or more pairs of an outline are needed")
    for value in numbers:
        if not -_SLACK <= value <= 1 + _SLACK:
            raise ValueError(f"{value:g} is not in 0 to 1: boxes are in parts of the picture's width and height")
    if len(numbers) > 4:
        low, high = (np.array(numbers).reshape(-1, 2).min(axis=0), np.array(numbers).reshape(-1, 2).max(axis=0))
        numbers = [*((low + high) / 2).tolist(), *(high - low).tolist()]
    return names[int(label)], numbers


def _ends(names: dict[int, str]) -> str:
    first, last = min(names), max(names)
    return f"{first} ({cut(names[first])}) to {last} ({cut(names[last])})"
