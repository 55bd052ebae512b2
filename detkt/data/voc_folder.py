"""Where the files of a data set of VOC annotations are: folders, split lists, pictures and their XML files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

from detkt.base.errors import InputError, suggestion
from detkt.data.annotated import shorten
from detkt.data.images import picture_suffixes
from detkt.data.parts import parse_part, part_of

PARTS = ("Annotations", "ImageSets/Main", "JPEGImages")
WHOLE = "all"
"""The split of a folder that has none: all of it."""
# A line of a list of one class: the picture holds the class (1), does not (-1), or only difficult objects of it (0).
FLAGGED = re.compile(r"(.*\S)\s+([+-]?1|0)")
_COMMENT = re.compile(r"\s*(#|//|;|%)")
_TRIED = 5  # annotations for which pictures are looked for, to see whether a folder's belong together
_DEEPEST = 8  # folders within folders: links may lead in a circle


@dataclass(frozen=True)
class Sample:
    """A picture and its annotation."""

    id: str
    image: Path | None
    xml: Path


class NamedFiles:
    """The files below *folder* whose suffix is one of *suffixes*, in any case, by id: the path without the suffix.

    Ids are in Unicode's composed form (NFC), whichever the files' names are in. What is hidden is passed over.
    """

    def __init__(self, folder: Path, suffixes: tuple[str, ...], deep: bool = True) -> None:
        self.folder = folder
        self.others: list[Path] = []
        rank = {suffix: number for number, suffix in enumerate(suffixes)}
        found: dict[str, list[tuple[int, bool, Path]]] = {}
        for inner, name in _files(folder, deep):
            stem, suffix = os.path.splitext(name)
            path = folder / inner / name
            if (number := rank.get(suffix.lower())) is None or name.startswith("."):
                self.others.append(path)
            else:
                found.setdefault(normalize("NFC", f"{inner}{stem}"), []).append((number, not suffix.islower(), path))
        self._files = {name: [path for *_, path in sorted(found[name])] for name in sorted(found)}

    def all(self, name: str) -> list[Path]:
        """The files of the id *name*, first the one that is read."""
        return self._files.get(name, [])

    def rename(self, name: str, other: str) -> None:
        self._files[other] = self._files.pop(name)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


@dataclass
class AnnotatedFolder:
    """The XML files and pictures of one folder, paired by name; its lists are where VOC has them, if it has any."""

    folder: Path
    xml: NamedFiles
    pictures: NamedFiles

    def __post_init__(self) -> None:
        for name in list(self.xml):  # some programs call the annotation of a.jpg a.jpg.xml
            stem = without_suffix(name)
            if name not in self.pictures and stem in self.pictures and stem not in self.xml:
                self.xml.rename(name, stem)

    @property
    def lists(self) -> Path:
        return self.folder / PARTS[1]

    def knows(self, name: str) -> bool:
        return name in self.xml or name in self.pictures

    def list_names(self) -> list[str]:
        return sorted(path.stem for path in self.lists.glob("*.txt") if path.is_file())

    def splits(self) -> list[str]:
        """Names of its lists, those of one class, of which VOC has twenty a split, only if there are no others."""
        names = self.list_names()
        return [name for name in names if not names_one_class(self.lists / f"{name}.txt", self.knows)] or names

    def read(self, split: str) -> tuple[dict[str, int], list[str]]:
        """See `read_list`."""
        return read_list(self.lists / f"{split}.txt", self.knows)


def voc_folder(folder: Path) -> AnnotatedFolder:
    """A folder of VOC's own layout, of whose `PARTS` some may be missing."""
    return AnnotatedFolder(
        folder,
        NamedFiles(folder / "Annotations", (".xml",)),
        NamedFiles(folder / "JPEGImages", picture_suffixes()),
    )


def plain_folders(root: Path) -> dict[str, AnnotatedFolder]:
    """Split -> folder, where XML files lie beside their pictures, or in a folder beside that of the pictures.

    The splits are the folders in *root*, and in these, that are such (Roboflow's train, valid, test); "all" is *root*.
    """
    if whole := _plain_folder(root):
        return {WHOLE: whole}
    found = {}
    for place in _subfolders(root):
        own = _plain_folder(place)
        for each, folder in [(place, own)] if own else [(each, _plain_folder(each)) for each in _subfolders(place)]:
            if folder is not None:
                found[each.relative_to(root).as_posix()] = folder
    return found


def _plain_folder(folder: Path) -> AnnotatedFolder | None:
    inner = _subfolders(folder)
    for place in (folder, *inner):
        if not any(next(place.glob(pattern), None) for pattern in ("*.[xX][mM][lL]", "*/*.[xX][mM][lL]")):
            continue
        if xml := NamedFiles(place, (".xml",), deep=place != folder):
            names = list(xml)[:_TRIED]
            if place != folder and any(_holds(place, name) for name in names):
                continue  # a split of its own
            for beside in (folder, *inner):
                if any(_holds(beside, name) for name in names):
                    return AnnotatedFolder(folder, xml, NamedFiles(beside, picture_suffixes(), deep=beside != folder))
            if place == folder and _is_annotation(xml.all(names[0])[0]):
                return AnnotatedFolder(folder, xml, NamedFiles(folder, picture_suffixes(), deep=False))
    return None


def _holds(folder: Path, name: str) -> bool:
    """Whether a picture of the id *name* is in *folder*."""
    inner, _, stem = name.rpartition("/")
    return stem in NamedFiles(folder / inner, picture_suffixes(), deep=False)


def _is_annotation(path: Path) -> bool:
    with path.open("rb") as file:
        return b"<annotation" in file.read(1000).replace(b"\0", b"").lower()


def find_samples(root: Path, split: str, year: str, pictures: bool = True) -> tuple[list[Sample], list[str]]:
    """The samples that *split*, one list or several joined with "+", names, each once, in the order of the lists.

    Also what is odd about them, a line each. Without *pictures* only the annotations are looked for, and every
    ``image`` is None.

    Raises InputError: no such folder or list, a picture or an annotation that is not there, one id in two folders.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the one that holds VOCdevkit, or Annotations and JPEGImages")
    samples: dict[str, Sample] = {}
    notes: list[str] = []
    plain = plain_folders(root) if is_plain(root) else {}
    folders: dict[Path, AnnotatedFolder] = {}
    for part in split.split("+"):
        name, bounds = parse_part(part)
        own_year, colon, name = name.rpartition(":")
        if plain:
            found = _plain_samples(root, plain, name, pictures, notes)
        else:
            place = _year_folder(root, own_year if colon else year, bool(colon), pictures)
            if place not in folders:
                folders[place] = voc_folder(place)
            found = _list_samples(folders[place], name.removesuffix(".txt"), pictures, notes)
        for number in part_of(len(found), name, bounds):
            sample = found[number]
            first = samples.setdefault(sample.id, sample)
            if first.xml != sample.xml:
                raise InputError(f"{sample.xml}: picture id '{sample.id}' is taken by {first.xml}; rename one of them")
    return list(samples.values()), notes


def year_folders(root: Path) -> list[Path]:
    """The folders of VOC's years in *root* that hold any part of the layout; *root* itself if it does."""
    places = [root, *sorted({*root.glob("VOCdevkit/VOC*"), *root.glob("VOC[0-9]*")})]
    found = [place for place in places if any((place / part).is_dir() for part in PARTS)]
    return found[:1] if root in found else found


def is_plain(root: Path) -> bool:
    """Whether *root* is not in VOC's layout, of which the folder of lists is the mark."""
    years = year_folders(root)
    return not years or (years == [root] and not (root / PARTS[1]).is_dir())


def _year_folder(root: Path, year: str, named: bool, pictures: bool) -> Path:
    """The folder of *year* in *root*; *root* itself where it holds the parts, unless another year is *named*."""
    parts = PARTS if pictures else PARTS[:2]
    choices = [root / "VOCdevkit" / f"VOC{year}", root / f"VOC{year}"]
    if not named or root.name == f"VOC{year}":
        choices.append(root)
    for folder in choices:
        missing = [part for part in parts if not (folder / part).is_dir()]
        if not missing:
            return folder
        if len(missing) < len(parts):
            raise InputError(f"{folder}: holds no folder {missing[0]}, which a VOC-format data set must have")
    years = sorted(f.name[3:] for f in (*root.glob("VOCdevkit/VOC*"), *root.glob("VOC[0-9]*")) if f.is_dir())
    there = f"the years that are there: {shorten(years)}" if years else "give the folder that holds them"
    raise InputError(f"{root}: holds no VOC{year} with {', '.join(PARTS)}; {there}")


def _plain_samples(
    root: Path, folders: dict[str, AnnotatedFolder], split: str, pictures: bool, notes: list[str]
) -> list[Sample]:
    if split not in folders:
        raise InputError(f"{root}: no split '{split}'{suggestion(split, folders)}; {plain_advice(folders)}")
    folder = folders[split]
    if pictures and (alone := [name for name in folder.pictures if name not in folder.xml]):
        notes.append(f"{folder.folder}: {len(alone)} pictures without annotation, left out")
    return _samples(folder, dict.fromkeys(folder.xml, 0), pictures, str(folder.folder))


def plain_advice(folders: Mapping[str, AnnotatedFolder]) -> str:
    """How to name the splits of plain *folders*."""
    learn, *others = sorted(folders, key=lambda name: ("train" not in name.lower(), "test" not in name.lower(), name))
    example = f"data.train={learn} data.test={others[0] if others else learn}"
    if not others:
        tenth = -(-len(folders[learn].xml) // 10)
        example = f"data.train='{learn}[:-{tenth}]' data.test='{learn}[-{tenth}:]'"
    return f"it has no lists, its splits are {shorten(folders)}: give {example}"


def _list_samples(folder: AnnotatedFolder, split: str, pictures: bool, notes: list[str]) -> list[Sample]:
    path = folder.lists / f"{split}.txt"
    # os.path.isfile, unlike Path.is_file, is False for a name too long for the system as well.
    if not os.path.isfile(path):
        splits = folder.splits()
        there = f"the splits there: {shorten(splits)}" if splits else "there is none"
        raise InputError(f"{path.parent}: no split '{split}'{suggestion(split, splits)}; {there}")
    lines, repeated = folder.read(split)
    if repeated:
        notes.append(f"{path}: {len(repeated)} pictures are named more than once")
    if not lines:
        raise InputError(f"{path}: the list names no picture")
    return _samples(folder, lines, pictures, str(path))


def _samples(folder: AnnotatedFolder, lines: dict[str, int], pictures: bool, path: str) -> list[Sample]:
    lacking = [name for name in lines if pictures and name not in folder.pictures]
    files, what, end = folder.pictures, "picture", ".jpg, nor with another suffix"
    if not lacking:
        lacking = [name for name in lines if name not in folder.xml]
        files, what, end = folder.xml, "annotation", ".xml"
    if lacking:
        first = lacking[0]
        place = "" if files.folder == folder.folder else f"{files.folder.relative_to(folder.folder)}/"
        line = f", line {lines[first]}" if lines[first] else ""
        whole = [name for name in folder.splits() if what == "picture" and _is_complete(folder, name)]
        raise InputError(
            f"{path}{line}: no {what} {place}{first}{end} ({len(lacking)} of "
            f"{len(lines)} {what}s are not there); add them, or take their names away"
            + (f" (all there: {shorten(whole)})" if whole else "")
        )
    images, xml = folder.pictures.all, folder.xml.all
    return [Sample(name, images(name)[0] if pictures else None, xml(name)[0]) for name in lines]


def read_list(path: Path, knows: Callable[[str], bool], absent: bool = False) -> tuple[dict[str, int], list[str]]:
    """Picture id -> number of the line that names it first, and the ids that are named again.

    A line is a name, with or without suffix, and in a list of one class a flag (see `FLAGGED`): what is meant is told
    by the files that are there, of which *knows* is asked. Blank lines and comments are passed over, and pictures
    flagged -1, unless *absent*.
    """
    try:
        lines = normalize("NFC", path.read_text(encoding="utf-8-sig")).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read the list, which must be UTF-8 text: {error}") from error
    numbers: dict[str, int] = {}
    repeated: dict[str, None] = {}
    for number, line in enumerate(lines, start=1):
        name, flag = _read_line(line.strip(), knows)
        if name and (flag != "-1" or absent):
            if name in numbers:
                repeated[name] = None
            numbers.setdefault(name, number)
    return numbers, list(repeated)


def _read_line(line: str, knows: Callable[[str], bool]) -> tuple[str, str]:
    """The id that a line of a list means, "" for none, and its flag."""
    # A picture may be called "scan 1", which must not be taken for "scan" with a flag, or "#1".
    if not line or knows(line):
        return line, ""
    if is_comment(line):
        return "", ""
    line = re.split(r"\s+(?:#|//)", line)[0]
    flagged = None if knows(line) or knows(without_suffix(line)) else FLAGGED.fullmatch(line)
    name, flag = flagged.groups() if flagged else (line, "")
    return name if knows(name) else without_suffix(name), flag


def is_comment(line: str) -> bool:
    """Whether a line of a list is none of its names."""
    return _COMMENT.match(line) is not None


def names_one_class(path: Path, knows: Callable[[str], bool]) -> bool:
    """Whether the lines of a list are "000012 -1", as in the twenty lists that VOC has besides each of pictures."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        lines = (normalize("NFC", line.strip()) for line in file)
        first = next((line for line in lines if line and not is_comment(line)), "")
    return FLAGGED.fullmatch(first) is not None and not knows(first) and not knows(without_suffix(first))


def without_suffix(name: str) -> str:
    """*name* less the suffix of a picture or an annotation."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in (*picture_suffixes(), ".xml") else name


def _is_complete(folder: AnnotatedFolder, split: str) -> bool:
    try:
        names, _ = folder.read(split)
    except InputError:
        return False
    return bool(names) and all(name in folder.pictures for name in names)


def _files(folder: Path, deep: bool) -> Iterator[tuple[str, str]]:
    """(the folder in *folder*, "" or with "/" at its end, and the name) of all files."""
    for place, inner, names in os.walk(folder, onerror=_unless_missing, followlinks=True):
        path = os.path.relpath(place, folder).replace(os.sep, "/")
        depth = 0 if path == "." else 1 + path.count("/")
        inner[:] = sorted(inner) if deep and depth < _DEEPEST else []
        yield from (("" if depth == 0 else f"{path}/", name) for name in sorted(names))


def _unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))
