"""All flaws of a data set in COCO's or YOLO's format, where training stops at the first."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np

from detkt.base.errors import InputError
from detkt.config import DataConfig
from detkt.data import reading_of
from detkt.data.annotated import AnnotatedPicture, Contents, shorten
from detkt.data.detection import checked_classes
from detkt.data.images import check_strip
from detkt.data.layouts import reader, split_names
from detkt.data.parts import parse_part
from detkt.data.yolo_folder import labels_without_picture, open_yolo, split_places, yolo_splits
from detkt.prepare.annotation_checking import overlaps
from detkt.prepare.findings import Findings, count
from detkt.prepare.picture_checking import examine_pictures
from detkt.prepare.voc_checking import check_repeats, check_spelling, rehearse, roles

_SAME_OBJECT = 0.9  # overlap (IoU) from which two boxes of one class are taken for one object


def check_splits(data_format: str, root: Path, data: DataConfig, findings: Findings, quiet: bool) -> None:
    """Report all flaws of *root*, which is in *data_format*; the splits that *data* names are the only ones, if any."""
    named = [part for split in (data.train, data.test, data.val) if split for part in split.split("+")]
    try:
        splits = list(dict.fromkeys(parse_part(part)[0] for part in named)) or split_names(data_format, root)
    except InputError as error:
        findings.refused(root, error)
        return
    found: dict[str, Contents] = {}
    for split in splits:
        try:
            found[split] = reader(data_format)(root, split, reading_of(data, data.classes))
        except InputError as error:
            findings.refused(root, error)
    if data_format == "yolo":
        _check_labels(root, findings)
    notes = [note for contents in found.values() for note in contents.notes]
    for note in dict.fromkeys(notes):
        findings.note(root, note.partition(": ")[2], note.partition(": ")[0])
    for flaw in dict.fromkeys(flaw for contents in found.values() for flaw in contents.flaws):
        findings.error(flaw.path, flaw.what, flaw.where)
    pictures = {str(one.image): one for contents in found.values() for one in contents.pictures}
    for split, contents in found.items():
        _check_objects(contents, findings)
        _check_classes(root, split, contents, data, findings)
    facts = examine_pictures(
        [one.image for one in pictures.values() if one.image is not None],
        findings,
        lambda path: pictures[str(path)].size,
        reading_of(data).decoding,
        quiet,
    )
    for path, seen in facts.items():
        one = pictures[str(path)]
        try:
            check_strip(path, *seen.size)
        except InputError as error:
            findings.refused(path, error)
        if one.size != seen.size:
            sizes = [" x ".join(map(str, size)) for size in (seen.size, one.size or ())]
            what = f"the picture is {sizes[0]} pixels, but {one.source} says {sizes[1]}; its boxes are misplaced"
            findings.error(path, what)
    lists = {split: {str(one.image): 0 for one in contents.pictures} for split, contents in found.items()}
    check_repeats({name: [Path(name)] for name in pictures}, facts, lists, findings, "")
    if not findings.stops and not named:
        learnt, scored = roles(lists)
        rehearse(data_format, root, data, findings, learnt, scored)
    counts = Counter(name for one in pictures.values() for name in one.names)
    findings.summary.append(
        f"{root}: {count(len(pictures), 'picture')}, {count(counts.total(), 'object')} of "
        f"{count(len(counts), 'class', 'classes')}, {count(len(found), 'split')} ({', '.join(found)})"
    )


def _check_labels(root: Path, findings: Findings) -> None:
    """Tell label files that no picture belongs to: what they mark is not learnt."""
    try:
        folder = open_yolo(root)
        places = [place for split in yolo_splits(folder) for place in split_places(folder, split, [])]
    except InputError:
        return  # told of already
    if alone := labels_without_picture(places):
        names = [os.path.relpath(path, folder.base) for path in alone]
        what = f"{count(len(alone), 'label file')} without a picture, so not read: {shorten(names, 3)}"
        findings.note(root, f"{what}; add the pictures, or remove the files")


def _check_objects(contents: Contents, findings: Findings) -> None:
    """Report boxes of a single pixel, and those that seem to mark one object twice."""
    for one in contents.pictures:
        sides = one.boxes[:, 2:] - one.boxes[:, :2]
        for index in np.flatnonzero((sides > 0).all(axis=1) & (sides <= 1).all(axis=1)).tolist():
            where = contents.locate(one, index)
            findings.misleading(one.source, "the box is a single pixel: draw it anew, or remove it", where)
        for first, second in _pairs(one):
            where = contents.locate(one, second)
            if (one.boxes[first] == one.boxes[second]).all():
                what = f"the same class and box as {contents.locate(one, first)}: remove one of them"
                findings.misleading(one.source, what, where)
            else:
                findings.note(one.source, f"overlaps {contents.locate(one, first)}: one object twice?", where)


def _pairs(one: AnnotatedPicture) -> list[tuple[int, int]]:
    numbers = np.flatnonzero(one.has_area & ~one.crowd)
    found = np.argwhere(np.triu(overlaps(one.boxes[numbers]), 1) >= _SAME_OBJECT)
    pairs = [(int(numbers[a]), int(numbers[b])) for a, b in found]
    return [(a, b) for a, b in pairs if one.names[a] == one.names[b]]


def _check_classes(root: Path, split: str, contents: Contents, data: DataConfig, findings: Findings) -> None:
    counts = Counter(name for one in contents.pictures for name in one.names)
    first: dict[str, Path] = {}
    for one in contents.pictures:
        for name in one.names:
            first.setdefault(name, one.source)
    check_spelling(counts, first, findings)
    if data.classes is not None:
        for name in sorted({*counts}.difference(checked_classes(data.classes))):
            what = f"{count(counts[name], 'object')} of class '{name}', not one of data.classes"
            findings.error(first[name], what)
    if lacking := [name for name in contents.classes if name not in counts]:
        what = f"no object of {count(len(lacking), 'class', 'classes')}: {shorten(lacking, 3)}"
        findings.note(root, what, f"{root}, {split}")
