"""A data set in one format of annotations written anew in another: the same pictures, boxes, classes and order."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from detkt.base.errors import InputError
from detkt.config import DataConfig
from detkt.data import reading_of
from detkt.data.annotated import AnnotatedPicture, Contents, Reading, shorten
from detkt.data.detection import DetectionSet
from detkt.data.images import picture_suffixes
from detkt.data.layouts import found_format, reader, split_names
from detkt.data.voc import choose_classes
from detkt.prepare.findings import count
from detkt.prepare.writing import WRITERS, once

FORMATS = tuple(WRITERS)


@dataclass
class Converted:
    """What `convert` has written.

    Attributes:
        splits: split -> how many pictures.
        objects: how many there are in all pictures.
        lost: what the format cannot hold, a line each.
        notes: what was decided in reading, a line each.
    """

    splits: dict[str, int]
    objects: int
    lost: list[str]
    notes: list[str]


def convert(
    root: Path, target: str, folder: Path, data: DataConfig, lossy: bool = False, quiet: bool = False
) -> Converted:
    """Write the data set in *root* as *target*, "voc", "coco" or "yolo", into the new *folder*.

    All splits are written, or those that *data* names. Pictures are linked (hard links: a file with two names), or
    copied where the disk knows none, and keep their names. Boxes are those that training sees, cut to the picture. What
    is written is read again and compared; then the folder is given its name: it is whole or not there.

    *lossy*: write also what *target* cannot hold all of: YOLO's format leaves difficult objects and crowds out, VOC's
    makes crowds difficult objects, and neither keeps areas of outlines.

    Raises InputError: *folder* is there, *root* is in no format or has a flaw, something would be lost.
    """
    if os.path.lexists(folder):
        raise InputError(f"{folder} is there already; give --output a folder that is not, or remove it")
    source = data.format if data.format != "voc" else found_format(root) or "voc"
    named = [split for split in (data.train, data.val, data.test) if split]
    splits = named or split_names(source, root)
    if not splits:
        raise InputError(f"{root}: no split that could be converted; see what is there with --check")
    reading = reading_of(data, data.classes)
    sets = {_file_name(split): _open(source, root, split, reading, quiet) for split in splits}
    classes = _classes(source, sets, data.classes)
    pictures, lost = _projected(sets, target)
    if lost and not lossy:
        raise InputError(f"{root}: {target} cannot hold {'; '.join(lost)}; give --lossy to write it without")
    temporary = folder.absolute().with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        files = _place_pictures(temporary, target, pictures, quiet)
        WRITERS[target].write(temporary, pictures, files, classes)
        for split, expected in pictures.items():
            _compare(reader(target)(temporary, split, replace(reading, classes=None)), expected, classes, target)
        os.rename(temporary, folder)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}; free space or give another one") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    objects = sum(len(one.names) for one in once(pictures))
    notes = list(dict.fromkeys(note for opened in sets.values() for note in opened.notes))
    return Converted({split: len(own) for split, own in pictures.items()}, objects, lost, notes)


def _open(source: str, root: Path, split: str, reading: Reading, quiet: bool) -> DetectionSet:
    if not quiet:
        print(f"reading {split}", file=sys.stderr)
    return DetectionSet(reader(source), root, split, reading)


def _file_name(split: str) -> str:
    """A name for files of *split*."""
    name = Path(split).stem.removeprefix("instances_") if split.lower().endswith(".json") else split
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name).strip("-.") or "all"


def _classes(source: str, sets: dict[str, DetectionSet], given: Sequence[str] | None) -> list[str]:
    if given is not None:
        return list(next(iter(sets.values())).classes)
    lists = [opened.classes for opened in sets.values()]
    if source in ("voc", "shapes") and any(own != lists[0] for own in lists):
        found = Counter(name for opened in sets.values() for one in opened.pictures for name in one.names)
        return choose_classes(found)[0]
    return list(dict.fromkeys(name for own in lists for name in own))


def _projected(sets: dict[str, DetectionSet], target: str) -> tuple[dict[str, list[AnnotatedPicture]], list[str]]:
    """The pictures of each split as *target* can hold them, and what it cannot."""
    lost: Counter[str] = Counter()
    seen: set[Path | None] = set()
    ids: dict[str, Path | None] = {}
    own: dict[str, list[AnnotatedPicture]] = {}
    for split, opened in sets.items():
        own[split] = []
        for one in opened.pictures:
            name = one.id if ids.setdefault(one.id, one.image) == one.image else f"{split}/{one.id}"
            if ids.setdefault(name, one.image) != one.image:
                raise InputError(f"{one.image}: picture id '{name}' is taken by {ids[name]}; rename one of them")
            kept, missing = WRITERS[target].project(one)
            if one.image not in seen:
                lost.update(missing)
            seen.add(one.image)
            own[split].append(replace(kept, id=name))
    return own, [count(number, *what.split("|")) for what, number in lost.items() if number]


def _place_pictures(
    folder: Path, target: str, pictures: dict[str, list[AnnotatedPicture]], quiet: bool
) -> dict[str, str]:
    """Link or copy the pictures, each once; id -> path in the folder of pictures."""
    files: dict[str, str] = {}
    for one in tqdm(list(once(pictures)), "pictures", disable=quiet):
        assert one.image is not None
        suffix = one.image.suffix
        files[one.id] = one.id + (suffix if suffix.lower() in picture_suffixes() else "")
        path = folder / WRITERS[target].pictures / files[one.id]
        path.parent.mkdir(parents=True, exist_ok=True)
        content = one.image.resolve()
        try:
            os.link(content, path)
        except OSError:
            shutil.copy2(content, path)
    return files


def _compare(found: Contents, expected: Sequence[AnnotatedPicture], classes: list[str], target: str) -> None:
    """InputError where what has been written is not what should have been."""

    def different(what: str) -> InputError:
        return InputError(f"not written: as {target} it would be read otherwise: {what}")

    if found.flaws:
        raise different(str(found.flaws[0].what))
    if [one.id for one in found.pictures] != [one.id for one in expected]:
        odd = next(b.id for a, b in zip([*found.pictures, None], expected, strict=False) if a is None or a.id != b.id)
        raise different(f"the name of picture '{odd}'; rename it")
    if found.classes != classes:
        raise different(f"the classes {shorten(classes)} become {shorten(found.classes)}; rename them")
    for one, other in zip(found.pictures, expected, strict=True):
        if one.size != other.size:
            sizes = " and ".join(" x ".join(map(str, size or ())) for size in (other.size, one.size))
            raise different(f"{other.image}: sizes {sizes}: turn the picture upright, and take its EXIF tag away")
        if tuple(one.names) != tuple(other.names):
            raise different(f"{other.image}: its objects' classes")
        for key in ("boxes", "difficult", "crowd"):
            if not np.array_equal(getattr(one, key), getattr(other, key)):
                raise different(f"{other.image}: '{key}' of its objects")
