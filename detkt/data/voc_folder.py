"""Where the files of a VOC-format data set are: year folders, split lists, pictures and annotations."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from detkt.base.errors import InputError, suggestion

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG", ".bmp", ".tif", ".tiff", ".webp", ".gif")

PARTS = ("Annotations", "ImageSets/Main", "JPEGImages")
# A line of a list of one class: the picture holds the class (1), does not (-1), or only difficult objects of it (0).
FLAGGED = re.compile(r"(.*\S)\s+(-1|0|1)")


@dataclass(frozen=True)
class Sample:
    """A picture and its annotation."""

    id: str
    image: Path | None
    xml: Path


def find_samples(root: Path, split: str, year: str, pictures: bool = True) -> list[Sample]:
    """The samples that *split*, one list or several joined with "+", names, each once, in the order of the lists.

    Without *pictures* only the annotations are looked for, and every ``image`` is None.

    Raises InputError: no such folder or list, a picture or an annotation that is not there, one id in two folders.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the one that holds VOCdevkit, or Annotations and JPEGImages")
    samples: dict[str, Sample] = {}
    for part in split.split("+"):
        own_year, colon, name = part.strip().rpartition(":")
        folder = _year_folder(root, own_year if colon else year, named=bool(colon))
        for sample in _list_samples(folder, name.removesuffix(".txt"), pictures):
            first = samples.setdefault(sample.id, sample)
            if first.xml != sample.xml:
                raise InputError(f"{sample.xml}: picture id '{sample.id}' is taken by {first.xml}; rename one of them")
    return list(samples.values())


def shorten(names: Iterable[str], most: int = 12) -> str:
    """``'a', 'b', …`` with *most* names at most."""
    quoted = [f"'{name}'" for name in names]
    return ", ".join(quoted[:most]) + (f", … ({len(quoted)} in all)" if len(quoted) > most else "")


def _year_folder(root: Path, year: str, named: bool) -> Path:
    """The folder of *year* in *root*; *root* itself where it holds the parts, unless another year is *named*."""
    choices = [root / "VOCdevkit" / f"VOC{year}", root / f"VOC{year}"]
    if not named or root.name == f"VOC{year}":
        choices.append(root)
    for folder in choices:
        missing = [part for part in PARTS if not (folder / part).is_dir()]
        if not missing:
            return folder
        if len(missing) < len(PARTS):
            raise InputError(f"{folder}: holds no folder {missing[0]}, which a VOC-format data set must have")
    years = sorted(f.name[3:] for f in (*root.glob("VOCdevkit/VOC*"), *root.glob("VOC[0-9]*")) if f.is_dir())
    there = f"the years that are there: {shorten(years)}" if years else "give the folder that holds them"
    raise InputError(f"{root}: holds no VOC{year} with {', '.join(PARTS)}; {there}")


def _list_samples(folder: Path, split: str, pictures: bool) -> list[Sample]:
    path = folder / "ImageSets" / "Main" / f"{split}.txt"
    # os.path.isfile, unlike Path.is_file, is False for a name too long for the system as well.
    if not os.path.isfile(path):
        splits = _splits(folder)
        there = f"the splits there: {shorten(splits)}" if splits else "there is none"
        raise InputError(f"{path.parent}: no split '{split}'{suggestion(split, splits)}; {there}")
    lines = read_list(path)
    if not lines:
        raise InputError(f"{path}: the list names no picture")
    samples, without_image, without_xml = [], [], []
    for identifier in lines:
        image = _find_image(folder, identifier) if pictures else None
        xml = folder / "Annotations" / f"{identifier}.xml"
        if pictures and image is None:
            without_image.append(identifier)
        elif not os.path.isfile(xml):
            without_xml.append(identifier)
        else:
            samples.append(Sample(identifier, image, xml))
    if without_image:
        first = without_image[0]
        complete = [name for name in _splits(folder) if _is_complete(folder, name)]
        remedy = f"use a split that is all there: {shorten(complete)}" if complete else "add them, or shorten the list"
        raise InputError(
            f"{path}, line {lines[first]}: no picture JPEGImages/{first}.jpg, nor with another suffix "
            f"({len(without_image)} of {len(lines)} pictures of the list are not there); {remedy}"
        )
    if without_xml:
        first = without_xml[0]
        raise InputError(
            f"{path}, line {lines[first]}: no annotation Annotations/{first}.xml "
            f"({len(without_xml)} of {len(lines)} of the list are not there); add them, or shorten the list"
        )
    return samples


def read_list(path: Path) -> dict[str, int]:
    """Picture id -> number of the line that names it first."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read the list, which must be UTF-8 text: {error}") from error
    annotations = path.parent.parent.parent / "Annotations"
    numbers: dict[str, int] = {}
    repeated = 0
    for number, line in enumerate(lines, start=1):
        identifier = _without_suffix(line.strip())
        flagged = FLAGGED.fullmatch(identifier)
        # A picture may be called "scan 1", which must not be taken for "scan" with a flag.
        if flagged and not os.path.isfile(annotations / f"{identifier}.xml"):
            if flagged[2] == "-1":
                continue
            identifier = _without_suffix(flagged[1])
        repeated += identifier in numbers
        if identifier:
            numbers.setdefault(identifier, number)
    if repeated:
        warnings.warn(f"{path}: {repeated} lines name a picture that is in the list already", stacklevel=2)
    return numbers


def _without_suffix(name: str) -> str:
    suffix = Path(name).suffix
    return name.removesuffix(suffix) if suffix.lower() in (*IMAGE_SUFFIXES, ".xml") else name


def _find_image(folder: Path, identifier: str) -> Path | None:
    choices = (folder / "JPEGImages" / f"{identifier}{suffix}" for suffix in IMAGE_SUFFIXES)
    return next((path for path in choices if os.path.isfile(path)), None)


def _splits(folder: Path) -> list[str]:
    """Names of the lists in *folder*, less those of one class, of which VOC has twenty for each split."""
    names = []
    for path in sorted((folder / "ImageSets" / "Main").glob("*.txt")):
        with path.open(encoding="utf-8", errors="replace") as file:
            if not FLAGGED.fullmatch(file.readline().strip()):
                names.append(path.stem)
    return names


def _is_complete(folder: Path, split: str) -> bool:
    names = read_list(folder / "ImageSets" / "Main" / f"{split}.txt")
    return bool(names) and all(_find_image(folder, identifier) for identifier in names)
