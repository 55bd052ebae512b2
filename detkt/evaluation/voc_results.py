"""VOC result files: one text file a class, one detection a line.

The development kit reads ``<competition>_det_<split>_<class>.txt`` (comp3: trained on VOC data alone, comp4:
on any data), each line ``image score x1 y1 x2 y2`` with 1-based inclusive pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from os import PathLike
from pathlib import Path

import numpy as np

from detkt.base.errors import InputError, suggestion
from detkt.evaluation.voc import Records, check_labels, flatten_detections, number_labels

EXPECTED = "expected 'image score x1 y1 x2 y2'"


def write_results(
    folder: str | PathLike,
    detections: Records,
    classes: Iterable[str],
    split: str = "test",
) -> list[Path]:
    """Write ``comp4_det_<split>_<class>.txt`` for every class, an empty one where it has no detection.

    *detections* as in `detkt.evaluation.records`. All numbers are written with all their digits, so that what is
    read again scores the same. Returns the files' paths. Raises InputError for a detection of another class, a
    picture whose id holds white space, and a folder that cannot be written.
    """
    names = [str(name) for name in classes]
    pictures = tuple(detections)
    found = flatten_detections(detections, detections)
    numbers = number_labels(found.labels, names)
    check_labels(found, numbers, names, pictures)
    for picture in pictures:
        if len(str(picture).split()) != 1:
            raise InputError(f"picture '{picture}': a VOC result file needs an id without white space; rename it")
    lines: dict[str, list[str]] = {name: [] for name in names}
    for number, picture, score, box in zip(
        numbers, found.pictures, found.values.tolist(), found.boxes.tolist(), strict=True
    ):
        lines[names[number]].append(" ".join([str(pictures[picture]), *map(repr, (score, *box))]))
    folder = Path(folder)
    paths = [folder / f"comp4_det_{split}_{name}.txt" for name in lines]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, rows in zip(paths, lines.values(), strict=True):
            path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write result files to {folder}: {error.strerror}") from error
    return paths


def read_results(
    folder: str | PathLike, classes: Iterable[str] | None = None, split: str | None = None
) -> dict[str, dict[str, np.ndarray]]:
    """Read every ``*_det_<split>_<class>.txt`` of *folder* into detections: picture id -> boxes (n, 4) x1 y1
    x2 y2 1-based inclusive, scores (n,), labels (n,) class names; in alphabetical order, as VOC's lists are.

    With *split*, files of other splits are passed over; without it all must be of one split. The class is
    what follows the split. If neither *split* nor *classes* is given, the split is taken to be one word
    without underscore; with *classes* alone a class's name is sought at the end of the file's name, the
    longest first. A class without a file has no detections.

    Raises InputError if there is no such file, two files of one class, a class not among *classes*, or a line
    that is not of the form above with finite numbers.
    """
    folder, classes = Path(folder), None if classes is None else [str(name) for name in classes]
    if not folder.is_dir():
        raise InputError(f"no folder {folder}; give the one that holds the result files '*_det_<split>_<class>.txt'")
    rows: dict[str, list[tuple[str, float, list[float]]]] = {}
    for name, path in _result_files(folder, classes, split).items():
        for picture, score, box in _read_lines(path):
            rows.setdefault(picture, []).append((name, score, box))
    return {
        picture: {
            "boxes": np.array([box for _, _, box in rows[picture]]),
            "scores": np.array([score for _, score, _ in rows[picture]]),
            "labels": np.array([name for name, _, _ in rows[picture]]),
        }
        for picture in sorted(rows)
    }


def _result_files(folder: Path, classes: list[str] | None, split: str | None) -> dict[str, Path]:
    """class name -> its file."""
    files: dict[str, Path] = {}
    splits: dict[str, Path] = {}
    wanted = f"*_det_{split or '<split>'}_<class>.txt"
    for path in sorted(folder.glob("*_det_*_*.txt")):
        ending = path.name.partition("_det_")[2].removesuffix(".txt")
        if split is not None:
            if not ending.startswith(f"{split}_"):
                continue
            found, name = split, ending.removeprefix(f"{split}_")
        else:
            named = [name for name in sorted(classes or (), key=len, reverse=True) if ending.endswith(f"_{name}")]
            found, name = (ending[: -len(named[0]) - 1], named[0]) if named else ending.partition("_")[::2]
        if classes is not None and name not in classes:
            raise InputError(
                f"{path}: class '{name}' is not among the classes {', '.join(classes)}"
                f"{suggestion(name, classes)}; rename the file or take it away"
            )
        if name in files:
            raise InputError(f"{files[name]} and {path} both hold class '{name}'; keep one, or give the split")
        files[name] = path
        splits.setdefault(found, path)
    if not files:
        raise InputError(f"no result file '{wanted}' in {folder}; they are named as comp4_det_test_car.txt is")
    if len(splits) > 1:
        (first, one), (second, other), *_ = splits.items()
        raise InputError(f"{one} is of split '{first}', {other} of split '{second}'; say which split to read")
    return files


def _read_lines(path: Path) -> list[tuple[str, float, list[float]]]:
    """(picture, score, box) of every line that is not blank."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a text file (UTF-8); {EXPECTED} in every line") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 6:
            raise InputError(f"{path}, line {number}: {len(fields)} fields; {EXPECTED}")
        try:
            score, *box = map(float, fields[1:])
        except ValueError:
            raise InputError(f"{path}, line {number}: '{line.strip()}' holds a word for a number; {EXPECTED}") from None
        if not all(map(math.isfinite, (score, *box))):
            raise InputError(f"{path}, line {number}: '{line.strip()}' holds a number not finite; {EXPECTED}")
        rows.append((fields[0], score, box))
    return rows
