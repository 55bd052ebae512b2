"""Where the files of a YOLO data set are: ``data.yaml``, the pictures of a split, and the label file of each."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import normalize

import yaml

from detkt.base.errors import InputError, cut, first_line, literal, suggestion
from detkt.data.annotated import Flaw, shorten
from detkt.data.images import picture_suffixes

_NO_SPLITS = ("path", "names", "nc", "download", "kpt_shape", "flip_idx", "roboflow", "channels", "yaml_file")


@dataclass(frozen=True)
class YoloFolder:
    """A data set as its ``data.yaml`` describes it.

    Attributes:
        file: that file.
        base: the folder that its paths begin from.
        names: class number -> name.
        splits: split -> folders and lists, as they stand there.
        notes: what is odd about it.
    """

    file: Path
    base: Path
    names: dict[int, str]
    splits: dict[str, list[str]]
    notes: list[str]


@dataclass(frozen=True)
class Place:
    """A picture: its file, its name within the folder that holds it and within the data set, and its label file."""

    image: Path
    short: str
    long: str
    label: Path


def yolo_file(root: Path) -> Path | None:
    """The ``data.yaml`` of the folder *root*, or *root* itself if it is such a file; None: there is none."""
    if root.is_file():
        return root if root.suffix.lower() in (".yaml", ".yml") else None
    usual = [root / name for name in ("data.yaml", "data.yml", "dataset.yaml")]
    others = sorted((*root.glob("*.yaml"), *root.glob("*.yml")))
    return next((path for path in (*usual, *others) if path.is_file() and (path in usual[:2] or _is_yolo(path))), None)


def _is_yolo(path: Path) -> bool:
    try:
        content = _load(path)
    except InputError:
        return False
    return isinstance(content, dict) and ("names" in content or "nc" in content)


def _load(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: no text (UTF-8)") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{line}: {getattr(error, 'problem', None) or first_line(error)}") from None


def open_yolo(root: Path) -> YoloFolder:
    """The data set in *root*, a folder or its ``data.yaml``. Raises InputError: no such folder, no or a faulty file."""
    file = yolo_file(root)
    if file is None:
        what = "holds no data.yaml, which names the classes and the splits" if root.is_dir() else "no such folder"
        raise InputError(f"{root}: {what}; give the folder that holds it")
    content = _load(file)
    if not isinstance(content, dict):
        raise InputError(f"{file}: it must hold 'names' and the splits, as in 'train: images/train'")
    names, notes = _names(file, content)
    base = file.parent
    if isinstance(stated := content.get("path"), str) and stated.strip():
        if (base / stated).is_dir():
            base = base / stated
        else:
            notes.append(f"{file}: 'path' is {stated}, which is not there; its own folder is taken")
    splits = {
        str(key): [value] if isinstance(value, str) else value
        for key, value in content.items()
        if key not in _NO_SPLITS and (isinstance(value, str) or _is_texts(value))
    }
    return YoloFolder(file, base, names, splits, notes)


def yolo_splits(folder: YoloFolder) -> list[str]:
    """The splits of *folder*: of other names than the usual ones those that are there, for a licence is a text, too."""
    usual = ("train", "val", "test")
    splits = folder.splits.items()
    return [key for key, entries in splits if key in usual or any(_resolved(folder, entry) for entry in entries)]


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)


def _names(file: Path, content: dict) -> tuple[dict[int, str], list[str]]:
    names, count, notes = content.get("names"), content.get("nc"), list[str]()
    whole = isinstance(count, int) and not isinstance(count, bool)
    if count is not None and not (whole and count >= 1):
        raise InputError(f"{file}: 'nc' is {literal(count)}; it must be the number of classes")
    if names is None and count is not None:
        names = [f"class_{number}" for number in range(count)]
        notes.append(f"{file}: it names no classes, which are called class_0 and so on")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        raise InputError(f"{file}: 'names' must be a list of the classes, or a table of them by number")
    found: dict[int, str] = {}
    for key, name in names.items():
        number = int(key) if isinstance(key, str) and key.isdecimal() else key
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise InputError(f"{file}: 'names' have the key {literal(key)}, which is no class number")
        # YAML takes the names 1 and 2.5 for numbers; no, which becomes False, cannot be told from others.
        readable = isinstance(name, str | int | float) and not isinstance(name, bool)
        text = normalize("NFC", " ".join(str(name).split())) if readable else ""
        if not text:
            raise InputError(
                f"{file}: the name of class {number} is {literal(name)}, which is no text; put it in quotes"
            )
        found[number] = text
    found = {number: found[number] for number in sorted(found)}
    if len(set(found.values())) < len(found):
        twice = next(name for name in found.values() if list(found.values()).count(name) > 1)
        raise InputError(f"{file}: two classes are called '{cut(twice)}'; rename one of them")
    if count is not None and count != len(found):
        raise InputError(f"{file}: 'nc' is {count}, but {len(found)} classes are named; correct one of them")
    return found, notes


def split_places(folder: YoloFolder, split: str, flaws: list[Flaw]) -> list[Place]:
    """The pictures of *split*; those of a list that are not there become *flaws*.

    Raises InputError: no such split, a folder or list that is not there, or without a picture.
    """
    entries = folder.splits.get(split)
    if entries is None:
        known = yolo_splits(folder)
        there = f"the splits there: {shorten(known)}" if known else "there is none"
        raise InputError(f"{folder.file}: no split '{split}'{suggestion(split, known)}; {there}")
    places: dict[Path, Place] = {}
    for entry in entries:
        path = _resolved(folder, entry)
        if path is None:
            raise InputError(
                f"{folder.file}: '{split}' is {cut(entry)}, but there is no {cut(folder.base / entry)}; correct it"
            )
        for place in _listed(folder, path, flaws) if path.is_file() else _inside(folder, path):
            places.setdefault(place.image, place)
    if not places and not flaws:
        raise InputError(f"{folder.file}: '{split}' is {', '.join(entries)}, where there is no picture")
    return list(places.values())


def _resolved(folder: YoloFolder, entry: str) -> Path | None:
    entry = entry.replace("\\", "/")
    choices = [folder.base / entry, folder.file.parent / entry]
    if entry.startswith("../"):  # Roboflow writes ../train/images for train/images
        choices += [folder.base / entry.removeprefix("../"), folder.file.parent / entry.removeprefix("../")]
    return next((Path(os.path.normpath(path)) for path in choices if os.path.exists(path)), None)


def _inside(folder: YoloFolder, path: Path) -> Iterator[Place]:
    for place, inner, names in os.walk(path, followlinks=True):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in picture_suffixes():
                image = Path(place, name)
                yield _place(folder, image, image.relative_to(path))


def _listed(folder: YoloFolder, path: Path, flaws: list[Flaw]) -> Iterator[Place]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read the list, which must be UTF-8 text: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not (name := line.strip().replace("\\", "/")):
            continue
        names = dict.fromkeys([name, *(normalize(form, name) for form in ("NFC", "NFD"))])
        choices = [place / name for place in dict.fromkeys((path.parent, folder.base)) for name in names]
        image = next((Path(os.path.normpath(choice)) for choice in choices if choice.is_file()), None)
        if image is None:
            flaws.append(
                Flaw(path, f"{path}, line {number}", f"no picture {cut(line.strip())}; add it, or remove the line")
            )
            continue
        relative = Path(os.path.relpath(image, folder.base))
        parts = relative.parts
        inner = len(parts) - 1 - parts[::-1].index("images") if "images" in parts[:-1] else -1
        yield _place(folder, image, Path(*parts[inner + 1 :]))


def _place(folder: YoloFolder, image: Path, inner: Path) -> Place:
    relative = os.path.relpath(image, folder.base)
    label = Path(os.path.normpath(folder.base / _label(Path(relative))))
    choices = [label, *(label.with_name(normalize(form, label.name)) for form in ("NFC", "NFD"))]
    # 'path' may be the folder images itself, or one in it: then labels are beside that.
    choices += [label.with_suffix(".TXT"), _label(Path(os.path.abspath(image)))]
    found = next((path for path in choices if os.path.isfile(path)), label)
    return Place(image, _name(inner), _name(Path(relative)), found)


def labels_without_picture(places: Iterable[Place]) -> list[Path]:
    """Label files, in the folders of those of *places*, of which no picture is there; sorted."""
    places = list(places)
    labelled = {place.label for place in places}
    for folder in {place.image.parent for place in places}:
        pictures = [path for path in folder.iterdir() if path.suffix.lower() in picture_suffixes()]
        labelled |= {path.with_suffix(".txt") for path in pictures} | {_label(path) for path in pictures}
    stems = {path.with_suffix("") for path in labelled}
    found = [path for folder in {place.label.parent for place in places} for path in folder.glob("*.[tT][xX][tT]")]
    return sorted(path for path in found if path.with_suffix("") not in stems and _is_labels(path))


def _is_labels(path: Path) -> bool:
    """Whether a text holds labels: lists of pictures and of classes lie beside them, too."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = file.readline().split()
    except (OSError, UnicodeDecodeError):
        return False
    return len(first) >= 5 and first[0].isdecimal()


def _label(image: Path) -> Path:
    """The label file of *image*, where the last folder called images is labels."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")


def _name(path: Path) -> str:
    inner = Path(path.name) if path.is_absolute() or ".." in path.parts else path
    return normalize("NFC", os.path.splitext(inner.as_posix())[0])
