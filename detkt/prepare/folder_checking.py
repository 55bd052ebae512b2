"""All flaws of a folder of pictures, ROOT/SPLIT/CLASS/PICTURE, where its reader stops at the first."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from detkt.base.errors import InputError
from detkt.data.annotated import shorten
from detkt.data.image_folder import subfolders, walk_pictures
from detkt.data.images import AS_USUAL, Decoding, picture_suffixes, read_image_size
from detkt.prepare.findings import Findings, count
from detkt.prepare.picture_checking import (
    PictureFacts,
    examine_pictures,
    identical_pictures,
    in_threads,
    similar_pictures,
)

_CLASSES_OF_IMAGENET = 1000
_END = 1024  # bytes in which a JPEG's end marker is looked for

_Classes = dict[str, dict[str, list[Path]]]  # split -> class -> its pictures


def class_folders(root: Path) -> list[Path]:
    """The folders SPLIT/CLASS in *root*, and CLASS alone where pictures lie in it, that hold a picture."""
    places = [root / name for name in subfolders(root)]
    places += [place / name for place in places for name in subfolders(place)]
    return [place for place in places if any(entry.suffix.lower() in picture_suffixes() for entry in place.iterdir())]


def check_image_folder(
    root: Path,
    findings: Findings,
    decoding: Decoding = AS_USUAL,
    expected: Mapping[str, int] | None = None,
    quiet: bool = False,
) -> None:
    """Report all flaws of *root*.

    expected: of ImageNet, splits and their numbers of pictures. It has so many that they are not decoded: only their
    first and last bytes are looked at.
    """
    splits = list(expected) if expected else subfolders(root)
    if not expected and not any(subfolders(root / split) for split in splits):
        findings.error(root, "holds no split: put its class folders into one, as in train/cat/1.jpg and test/cat/2.jpg")
        return
    pictures: _Classes = {}
    for split in splits:
        if not (root / split).is_dir():
            findings.error(root / split, "there is no such folder", missing=True)
            continue
        pictures[split] = _list_classes(root, split, findings)
    _check_classes(root, pictures, findings)
    paths = [path for classes in pictures.values() for found in classes.values() for path in found]
    if expected:
        _check_numbers(root, pictures, expected, findings)
        _check_ends(paths, findings, quiet)
    else:
        facts = examine_pictures(paths, findings, lambda path: None, decoding, quiet)
        _check_repeats(root, pictures, facts, findings)
    counts = ", ".join(f"{sum(map(len, found.values()))} in {split}" for split, found in pictures.items())
    classes = len(set().union(*pictures.values()))
    findings.summary.append(f"{root}: pictures of {count(classes, 'class', 'classes')}, {counts or 'none'}")


def _list_classes(root: Path, split: str, findings: Findings) -> dict[str, list[Path]]:
    folder = root / split
    loose = [
        entry.name
        for entry in sorted(folder.iterdir())
        if entry.suffix.lower() in picture_suffixes() and entry.is_file()
    ]
    if not subfolders(folder):
        findings.error(folder, "holds no class folder: pictures must lie in SPLIT/CLASS/PICTURE, as in train/cat/1.jpg")
        return {}
    if loose:
        findings.note(folder, f"{count(len(loose), 'picture')} in no class folder, not read: {shorten(loose, 3)}")
    classes = {}
    for name in subfolders(folder):
        classes[name] = [root / path for path in sorted(walk_pictures(root, folder / name))]
        if not classes[name]:
            findings.error(folder / name, "a class without a picture; add some, or remove the folder", missing=True)
        others = len([1 for _, _, files in os.walk(folder / name) for _ in files]) - len(classes[name])
        if others:
            findings.note(folder / name, f"{count(others, 'file')} not read, being no picture by the name")
    return classes


def _check_classes(root: Path, pictures: _Classes, findings: Findings) -> None:
    """All splits must have the classes of the one that is learnt from."""
    filled = {split: set(classes) for split, classes in pictures.items() if classes}
    if not filled:
        return
    first = "train" if "train" in filled else next(iter(filled))
    for split, classes in filled.items():
        if lacking := sorted(filled[first] - classes):
            findings.error(root / split, f"lacks classes of {first}: {shorten(lacking, 3)}", missing=True)
        if more := sorted(classes - filled[first]):
            findings.error(root / split, f"has classes that {first} has not: {shorten(more, 3)}")


def _check_repeats(root: Path, pictures: _Classes, facts: dict[Path, PictureFacts], findings: Findings) -> None:
    place = {
        path: (split, name) for split, found in pictures.items() for name, paths in found.items() for path in paths
    }
    across: dict[tuple[str, ...], list[list[Path]]] = defaultdict(list)
    within = []
    for group in identical_pictures(facts):
        splits, classes = ({place[path][part] for path in group} for part in (0, 1))
        if len(classes) > 1:
            names = [str(path.relative_to(root)) for path in group[1:]]
            findings.misleading(group[0], f"the same picture in another class: {shorten(names, 3)}")
        elif len(splits) > 1:
            across[tuple(sorted(splits))].append(group)
        else:
            within.append(group)
    for together, groups in across.items():
        names = [str(group[0].relative_to(root)) for group in groups]
        findings.misleading(
            root,
            f"{count(len(groups), 'picture')} in {' and '.join(together)}: what is scored on was learnt: "
            f"{shorten(names, 3)}",
        )
    if within:
        names = [str(group[0].relative_to(root)) for group in within]
        findings.note(root, f"{count(len(within), 'picture')} more than once in a class: {shorten(names, 3)}")
    if "train" in pictures:
        paths = {split: [path for found in classes.values() for path in found] for split, classes in pictures.items()}
        for split in pictures.keys() - {"train"}:
            pairs = similar_pictures(facts, paths["train"], paths[split])
            if pairs:
                shown = [f"{one.relative_to(root)} and {other.relative_to(root)}" for one, other, _ in pairs]
                findings.note(
                    root,
                    f"{count(len(pairs), 'pair')} of nearly the same picture in {split} and train: {shorten(shown, 3)}",
                )


def _check_numbers(root: Path, pictures: _Classes, expected: Mapping[str, int], findings: Findings) -> None:
    for split, classes in pictures.items():
        found = sum(map(len, classes.values()))
        if classes and (len(classes), found) != (_CLASSES_OF_IMAGENET, expected[split]):
            findings.error(
                root / split,
                f"holds {count(found, 'picture')} of {count(len(classes), 'class', 'classes')} instead of "
                f"{expected[split]} of {_CLASSES_OF_IMAGENET}",
                missing=True,
            )


def _check_ends(paths: list[Path], findings: Findings, quiet: bool) -> None:
    with in_threads(_end_flaw, paths, "pictures", quiet) as flaws:
        for path, flaw in zip(paths, flaws, strict=True):
            if flaw is not None:
                findings.refused(path, flaw)


def _end_flaw(path: Path) -> InputError | None:
    try:
        read_image_size(path)
        with open(path, "rb") as file:
            is_jpeg = file.read(2) == b"\xff\xd8"
            file.seek(max(0, path.stat().st_size - _END))
            # The marker cannot be among the pixels' bytes; other programs' bytes may follow it.
            truncated = is_jpeg and b"\xff\xd9" not in file.read()
    except InputError as error:
        return error
    return InputError(f"{path}: the picture is truncated: it does not end as a JPEG does") if truncated else None
