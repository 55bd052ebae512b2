"""VOC result files: one text file a class, one detection a line.

The development kit reads ``<competition>_det_<split>_<class>.txt`` (comp3: trained on VOC data alone, comp4:
on any data), each line ``image score x1 y1 x2 y2`` with 1-based inclusive pixels.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from os import PathLike
from pathlib import Path
from unicodedata import normalize

import numpy as np

from detkt.base.errors import InputError, suggestion
from detkt.base.files import write_together
from detkt.evaluation.coco_ids import PlainIds, UnknownId
from detkt.evaluation.records import Records, check_labels, flatten_detections, number_labels

EXPECTED = "expected 'image score x1 y1 x2 y2'"


def write_results(
    folder: str | PathLike,
    detections: Records,
    classes: Iterable[str],
    split: str = "test",
) -> list[Path]:
    """Write ``comp4_det_<split>_<class>.txt`` for every class, an empty one where it has no detection.

    *detections* as in `detkt.evaluation.records`. All numbers are written with all their digits, so that what is
    read again scores the same. All files are there in the end, or none. Returns their paths. Raises InputError for a
    detection of another class, for names as `check_writable_names` does, and for a folder that cannot be written.
    """
    names = [str(name) for name in classes]
    pictures = tuple(detections)
    found = flatten_detections(detections, detections)
    numbers = number_labels(found.labels, names)
    check_labels(found, numbers, names, pictures)
    check_writable_names(pictures, names, split)
    lines: dict[str, list[str]] = {name: [] for name in names}
    for number, picture, score, box in zip(
        numbers, found.pictures, found.values.tolist(), found.boxes.tolist(), strict=True
    ):
        lines[names[number]].append(" ".join([str(pictures[picture]), *map(repr, (score, *box))]))
    folder = Path(folder)
    contents = {folder / _file_name(split, name): "".join(f"{row}\n" for row in rows) for name, rows in lines.items()}
    write_together(folder, contents)
    return list(contents)


def check_writable_names(pictures: Iterable[Hashable], classes: Iterable[str], split: str) -> None:
    """Raises InputError for ids and class names that VOC result files cannot hold."""
    for picture in pictures:
        if len(str(picture).split()) != 1:
            raise InputError(
                f"picture '{picture}': a VOC result file needs an id without white space; rename it, or write a COCO "
                "result file (*.json)"
            )
    for name in classes:
        if "/" in name or "\0" in name or len(_file_name(split, name).encode(errors="replace")) > 255:
            raise InputError(
                f"class '{name}': no VOC result file can be named by it; write a COCO result file (*.json), or rename "
                "the class"
            )


def _file_name(split: str, name: str) -> str:
    return f"comp4_det_{split.replace('/', '-')}_{name}.txt"


def read_results(
    folder: str | PathLike,
    classes: Iterable[str] | None = None,
    split: str | None = None,
    *,
    pictures: Sequence[str] | None = None,
    others: str = "refuse",
) -> dict[str, dict[str, np.ndarray]]:
    """Read every ``*_det_<split>_<class>.txt`` of *folder* into detections: picture id -> boxes (n, 4) x1 y1
    x2 y2 1-based inclusive, scores (n,), labels (n,) class names; in alphabetical order, as VOC's lists are.

    With *split*, files of other splits are passed over; without it all must be of one split. The class is
    what follows the split. If neither *split* nor *classes* is given, the split is taken to be one word
    without underscore; with *classes* alone a class's name is sought at the end of the file's name, the
    longest first. A class without a file has no detections.

    pictures: the ids that there are: the files may name them by their files (000012.jpg); None: all are taken as they
        are.
    others: of files of a class not among *classes*: "refuse", "keep" or "leave" (out).

    Raises InputError if there is no such file, two files of one class, a class not among *classes*, or a line
    that is not of the form above with finite numbers, or not of one of *pictures*.
    """
    folder, classes = Path(folder), None if classes is None else [str(name) for name in classes]
    if not folder.is_dir():
        raise InputError(f"no folder {folder}; give the one that holds the result files '*_det_<split>_<class>.txt'")
    ids = None if pictures is None else PlainIds(pictures, classes or ())
    rows: dict[str, list[tuple[str, float, list[float]]]] = {}
    for name, path in _result_files(folder, classes, split, others).items():
        for picture, score, box in _read_lines(path, ids):
            rows.setdefault(picture, []).append((name, score, box))
    return {
        picture: {
            "boxes": np.array([box for _, _, box in rows[picture]]),
            "scores": np.array([score for _, score, _ in rows[picture]]),
            "labels": np.array([name for name, _, _ in rows[picture]]),
        }
        for picture in sorted(rows)
    }


def _result_files(folder: Path, classes: list[str] | None, split: str | None, others: str) -> dict[str, Path]:
    """class name -> its file."""
    files: dict[str, Path] = {}
    splits: dict[str, Path] = {}
    wanted = f"*_det_{split or '<split>'}_<class>.txt"
    endings = {
        path: normalize("NFC", path.name).partition("_det_")[2].removesuffix(".txt")
        for path in sorted(folder.glob("*_det_*_*.txt"))
    }
    by_length = sorted(classes or (), key=len, reverse=True)
    named = {path: next((c for c in by_length if ending.endswith(f"_{c}")), "") for path, ending in endings.items()}
    # Files of known classes tell what the split is called, of whatever other class a file is.
    known = {ending[: -len(named[path]) - 1] for path, ending in endings.items() if named[path]}
    for path, ending in endings.items():
        if split is not None:
            if not ending.startswith(f"{split}_"):
                continue
            found, name = split, ending.removeprefix(f"{split}_")
        elif named[path]:
            found, name = ending[: -len(named[path]) - 1], named[path]
        else:
            found = next((one for one in sorted(known, key=len, reverse=True) if ending.startswith(f"{one}_")), "")
            found, name = (found, ending[len(found) + 1 :]) if found else ending.partition("_")[::2]
        if classes is not None and name not in classes:
            if others == "refuse":
                raise InputError(
                    f"{path}: class '{name}' is not among the classes {', '.join(classes)}"
                    f"{suggestion(name, classes)}; rename the file or take it away"
                )
            if others == "leave":
                splits.setdefault(found, path)
                continue
        if name in files:
            raise InputError(f"{files[name]} and {path} both hold class '{name}'; keep one, or give the split")
        files[name] = path
        splits.setdefault(found, path)
    if not splits:
        raise InputError(f"no result file '{wanted}' in {folder}; they are named as comp4_det_test_car.txt is")
    if len(splits) > 1:
        (first, one), (second, other), *_ = splits.items()
        raise InputError(f"{one} is of split '{first}', {other} of split '{second}'; say which split to read")
    return files


def _read_lines(path: Path, ids: PlainIds | None) -> list[tuple[str, float, list[float]]]:
    """(picture, score, box) of every line that is not blank; the picture as *ids* has it."""
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
        try:
            picture = fields[0] if ids is None else ids.picture_named(fields[0])
        except UnknownId as flaw:
            raise InputError(f"{path}, line {number}: {flaw}") from None
        rows.append((picture, score, box))
    return rows
