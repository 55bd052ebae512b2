"""All flaws of the lists of a VOC-format folder, and what they are for by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from detkt.base.errors import InputError
from detkt.data.annotated import shorten
from detkt.data.voc_folder import AnnotatedFolder, is_comment, read_list, without_suffix
from detkt.prepare.findings import Findings, count

# The last word of a list's name, and whether its pictures are learnt from, looked at for choices, or scored.
_ROLES = {
    "train": "train",
    "training": "train",
    "trainval": "trainval",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
# Pairs of roles whose lists must have no picture in common.
_APART = {("train", "val"), ("train", "test"), ("trainval", "test")}

Lists = dict[str, dict[str, int]]  # name of a list -> picture id -> line


def check_lists(
    folder: AnnotatedFolder,
    xml: Mapping[str, Path],
    pictures: Iterable[str],
    required: Sequence[str],
    findings: Findings,
) -> Lists:
    """Report all flaws of the lists in ImageSets/Main, and return them: those of one class if there are no others.

    xml, pictures: the files that are there, by id. required: lists that must be there.
    """
    main = folder.lists
    names = folder.splits()
    for name in required:
        if name not in names:
            findings.error(main / f"{name}.txt", "the list is not there", missing=True)
    if not names and not required and main.is_dir():
        findings.error(main, "holds no list of pictures, such as train.txt", missing=True)
    odd = [path.name for path in sorted(main.glob("*")) if path.suffix != ".txt" or path.name.startswith(".")]
    if odd:
        findings.note(main, f"{count(len(odd), 'file')} whose names no reader looks for: {shorten(odd, 3)}")
    lists: Lists = {}
    for name in names:
        path = main / f"{name}.txt"
        try:
            lists[name], repeated = read_list(path, folder.knows)
        except InputError as error:
            findings.refused(path, error)
            continue
        _note_style(path, lists[name], repeated, findings)
        check_named(path, lists[name], pictures, "JPEGImages", "picture", findings)
        check_named(path, lists[name], xml, "Annotations", "annotation", findings)
    for name in set(folder.list_names()).difference(names):
        path = main / f"{name}.txt"
        found, _ = read_list(path, folder.knows, absent=True)
        if missing := [name for name in found if name not in xml]:
            what = f"{count(len(missing), 'picture')} without annotation: {shorten(missing, 3)}"
            findings.error(path, what, missing=True)
    _check_overlaps(main, lists, findings)
    return lists


def _note_style(path: Path, ids: dict[str, int], repeated: list[str], findings: Findings) -> None:
    """What the reader sees through, but other programs may not."""
    content = path.read_bytes()
    lines = content.decode("utf-8-sig").splitlines()
    stripped = [line.strip() for line in lines]
    comments = sum(map(is_comment, stripped))
    suffixed = [name for name in stripped if without_suffix(name) != name]
    marks = [
        (not ids, "names no picture"),
        (content.startswith(b"\xef\xbb\xbf"), "begins with a byte order mark"),
        (b"\r" in content, "has Windows' line ends"),
        ("" in stripped, f"has {count(stripped.count(''), 'blank line')}"),
        (comments > 0, f"has {count(comments, 'comment')}"),
        (lines != stripped, f"has {count(sum(map(str.__ne__, lines, stripped)), 'line')} with blanks around the name"),
        (bool(suffixed), f"has {count(len(suffixed), 'name')} with a suffix, such as {shorten(suffixed[:1])}"),
        (bool(repeated), f"has {count(len(repeated), 'name')} more than once: {shorten(repeated, 3)}"),
    ]
    if found := [text for holds, text in marks if holds]:
        findings.note(path, ", ".join(found))


def check_named(
    path: Path, ids: dict[str, int], there: Iterable[str], folder: str, what: str, findings: Findings
) -> None:
    """Report those of *ids*, by the line of the list *path* that names them, whose file is not *there*."""
    there = dict.fromkeys(there)
    missing = [name for name in ids if name not in there]
    if not missing:
        return
    first = missing[0]
    hint = ""
    alike = [name for name in there if name.casefold() == first.casefold()]
    if "/" in first and first.rpartition("/")[2] in there:
        hint = f"; the list must say '{first.rpartition('/')[2]}', without the folder"
    elif alike:
        hint = f"; '{alike[0]}' is there, which differs in capitals"
    findings.error(
        path,
        f"{len(missing)} of {count(len(ids), what)} not in {folder}: {shorten(missing, 3)}{hint}",
        f"{path}, line {ids[first]}" if ids[first] else "",
        missing=True,
    )


def _check_overlaps(main: Path, lists: Lists, findings: Findings) -> None:
    for first, second, apart in list_pairs(lists):
        if common := [name for name in lists[first] if name in lists[second]]:
            report = findings.misleading if apart else findings.note
            report(
                main / f"{second}.txt",
                f"has {count(len(common), 'picture')} in common with {first}.txt: {shorten(common, 3)}",
            )
    for name, ids in lists.items():
        if role(name) == "trainval":
            train, val = (lists.get(name.removesuffix("trainval") + part) for part in ("train", "val"))
            if train is not None and val is not None and ids.keys() != train.keys() | val.keys():
                lacking = len((train.keys() | val.keys()) - ids.keys())
                more = len(ids.keys() - train.keys() - val.keys())
                findings.note(
                    main / f"{name}.txt",
                    f"is not train and val together: it lacks {count(lacking, 'picture')} of them, and has {more} "
                    "besides",
                )


def role(name: str) -> str:
    """train, trainval, val or test, by the last word of a list's name; "" for any other."""
    return _ROLES.get(re.split(r"[\W_]+", name.lower())[-1], "")


def list_pairs(lists: Lists) -> list[tuple[str, str, bool]]:
    """Two lists of different roles, the one to learn from first, and whether they must be apart."""
    roles = {name: role(name) for name in lists}
    return [
        (one, other, (roles[one], roles[other]) in _APART)
        for one in roles
        for other in roles
        if (roles[one], roles[other]) in _APART | {("val", "test")}
    ]
