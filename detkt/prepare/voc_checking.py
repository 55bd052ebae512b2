"""All flaws of a VOC-format folder of any classes, where its reader stops at the first."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from detkt.data.voc import VOC_CLASSES
from detkt.data.voc_folder import IMAGE_SUFFIXES, PARTS, shorten
from detkt.prepare.annotation_checking import CheckedAnnotation, check_annotation
from detkt.prepare.findings import Findings, count
from detkt.prepare.list_checking import Lists, check_lists, list_pairs, role
from detkt.prepare.picture_checking import (
    PictureFacts,
    check_pictures,
    identical_pictures,
    in_threads,
    similar_pictures,
)

_MOST_PAIRS = 10


def voc_folders(root: Path) -> list[Path]:
    """*root* if it holds any part of the layout, else the year folders in it."""
    if any((root / part).is_dir() for part in PARTS):
        return [root]
    found = (*root.glob("VOCdevkit/VOC*"), *root.glob("VOC[0-9]*"))
    return sorted(folder for folder in found if any((folder / part).is_dir() for part in PARTS))


def check_voc(folder: Path, findings: Findings, required_lists: Sequence[str] = (), quiet: bool = False) -> None:
    """Report all flaws of the folder that holds Annotations, ImageSets/Main and JPEGImages.

    required_lists: those that must be in ImageSets/Main.
    """
    for part in PARTS:
        if not (folder / part).is_dir():
            findings.error(folder, f"holds no folder {part}, which a VOC-format data set must have", missing=True)
    pictures = _index(folder / "JPEGImages", IMAGE_SUFFIXES, findings)
    xml = {name: paths[0] for name, paths in _index(folder / "Annotations", (".xml",), findings).items()}
    _check_double_names(pictures, findings)
    lists = check_lists(folder, xml, pictures, required_lists, findings)

    annotations = _check_annotations(xml, findings, quiet)
    facts = _check_pictures(pictures, xml, annotations, findings, quiet)
    _check_annotations_together(folder, xml, annotations, pictures, findings)
    _check_classes(xml, annotations, lists, findings)
    _check_unlisted(folder, xml, pictures, lists, findings)
    _check_repeats(pictures, facts, lists, findings)
    objects = Counter(name for checked in annotations.values() for name in checked.names)
    findings.summary.append(
        f"{folder}: {count(len(pictures), 'picture')}, {count(len(xml), 'annotation')}, "
        f"{count(objects.total(), 'object')} of {count(len(objects), 'class', 'classes')}, {count(len(lists), 'list')}"
    )


def _index(folder: Path, suffixes: tuple[str, ...], findings: Findings) -> dict[str, list[Path]]:
    """Id -> files, in the order of *suffixes*, which is the reader's; notes what it passes over."""
    found: dict[str, list[Path]] = defaultdict(list)
    others = []
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            continue
        if path.suffix in suffixes and not path.name.startswith("."):
            found[str(path.relative_to(folder).with_suffix(""))].append(path)
        else:
            others.append(str(path.relative_to(folder)))
    if others:
        findings.note(folder, f"{count(len(others), 'file')} whose names no reader looks for: {shorten(others, 3)}")
    for paths in found.values():
        paths.sort(key=lambda path: suffixes.index(path.suffix))
    return dict(found)


def _check_double_names(pictures: dict[str, list[Path]], findings: Findings) -> None:
    for name, paths in pictures.items():
        for path in paths[1:]:
            findings.note(path, f"never read, as {paths[0].name} has the same id '{name}'; remove one of them")


def _check_annotations(xml: dict[str, Path], findings: Findings, quiet: bool) -> dict[str, CheckedAnnotation]:
    def examine(path: Path) -> tuple[CheckedAnnotation | None, Findings]:
        own = Findings(findings.published)
        return check_annotation(path, own), own

    annotations = {}
    with in_threads(examine, list(xml.values()), "annotations", quiet) as results:
        for name, (checked, own) in zip(xml, results, strict=True):
            findings.extend(own)
            if checked is not None:
                annotations[name] = checked
    return annotations


def _check_pictures(
    pictures: dict[str, list[Path]],
    xml: dict[str, Path],
    annotations: dict[str, CheckedAnnotation],
    findings: Findings,
    quiet: bool,
) -> dict[Path, PictureFacts]:
    stated = {pictures[name][0]: checked.size for name, checked in annotations.items() if name in pictures}
    facts = check_pictures([path for paths in pictures.values() for path in paths], findings, stated.get, quiet)
    for name, checked in annotations.items():
        path = pictures[name][0] if name in pictures else None
        if path in facts and checked.size not in (None, facts[path].size):
            found, said = (" x ".join(map(str, size)) for size in (facts[path].size, checked.size))
            findings.error(path, f"the picture is {found} pixels, but {xml[name]} says {said}; its boxes are misplaced")
    return facts


def _check_annotations_together(
    folder: Path,
    xml: dict[str, Path],
    annotations: dict[str, CheckedAnnotation],
    pictures: dict[str, list[Path]],
    findings: Findings,
) -> None:
    place = folder / "Annotations"

    def note(names: list[str], what: str) -> None:
        if names:
            findings.note(place, f"{count(len(names), 'annotation')} {what}: {shorten(names, 3)}")

    renamed = [
        name
        for name, checked in annotations.items()
        if checked.filename
        and checked.filename not in [path.name for path in pictures.get(name, ())]
        and (name in pictures or Path(checked.filename).stem != Path(name).name)
    ]
    note(renamed, "with another picture's name in <filename> (the reader goes by the XML file's own name)")
    origins = Counter(checked.origin for checked in annotations.values())
    if len(origins) > 1:
        usual = origins.most_common(1)[0][0]
        strangers = [name for name, checked in annotations.items() if checked.origin != usual]
        shown = " and ".join(f"'{text}'" for text in annotations[strangers[0]].origin if text)
        note(strangers, f"of another <folder> or <path> than the others, such as {shown or 'none'}")
    note([name for name, checked in annotations.items() if not checked.names], "without an object, which is allowed")
    overshooting = sum(checked.overshooting for checked in annotations.values())
    if overshooting:
        note(
            [name for name, checked in annotations.items() if checked.overshooting],
            f"with {count(overshooting, 'box', 'boxes')} reaching a pixel beyond the picture (counted from 0?), which "
            "are clipped",
        )
    if difficult := sum(checked.difficult for checked in annotations.values()):
        findings.note(place, f"{count(difficult, 'object')} marked difficult, neither learnt nor scored")


def _check_classes(
    xml: dict[str, Path], annotations: dict[str, CheckedAnnotation], lists: Lists, findings: Findings
) -> None:
    counts = Counter(name for checked in annotations.values() for name in checked.names)
    first: dict[str, Path] = {}
    for identifier, checked in annotations.items():
        for name in checked.names:
            first.setdefault(name, xml[identifier])
    foreign = set(counts).difference(VOC_CLASSES)
    near = {name: get_close_matches(name.lower(), VOC_CLASSES, 1, cutoff=0.75) for name in foreign}
    if foreign and foreign != set(counts) and all(near.values()):  # then the reader takes them for slips as well
        for name in sorted(foreign):
            findings.error(
                first[name], f"{count(counts[name], 'object')} of unknown class '{name}': '{near[name][0]}' is meant?"
            )
    else:
        _check_spelling(counts, first, findings)
        _check_split_classes(annotations, lists, first, findings)


def _check_spelling(counts: Counter, first: dict[str, Path], findings: Findings) -> None:
    """Report rare names that another, frequent one may have been meant by."""
    ranked = [name for name, _ in counts.most_common()]
    for place, name in enumerate(ranked):
        for other in ranked[:place]:
            what = f"{count(counts[name], 'object')} of class '{name}', {counts[other]} of class '{other}'"
            if _letters(name) == _letters(other):
                findings.misleading(first[name], f"{what}: one class under two names?")
            elif 100 * counts[name] <= counts[other] and get_close_matches(name, [other], cutoff=0.8):
                findings.note(first[name], f"{what}: a slip?")


def _letters(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())


def _check_split_classes(
    annotations: dict[str, CheckedAnnotation], lists: Lists, first: dict[str, Path], findings: Findings
) -> None:
    """Report classes that are scored and not learnt, for which evaluation stops."""
    found = {
        name: {each for identifier in ids if identifier in annotations for each in annotations[identifier].names}
        for name, ids in lists.items()
    }
    learnt = set().union(*(found[name] for name in lists if role(name) in ("train", "trainval")))
    scored = set().union(*(found[name] for name in lists if role(name) in ("val", "test")))
    if learnt:
        for name in sorted(scored - learnt):
            findings.error(first[name], f"class '{name}' is in the lists to score on, but in none to learn from")


def _check_unlisted(
    folder: Path, xml: dict[str, Path], pictures: dict[str, list[Path]], lists: Lists, findings: Findings
) -> None:
    listed = set().union(*lists.values())
    for part, there, other, missing in (
        ("JPEGImages", pictures, xml, "annotation"),
        ("Annotations", xml, pictures, "picture"),
    ):
        # What a list names is reported there.
        alone = [name for name in there if name not in other and name not in listed]
        if alone:
            findings.note(
                folder / part, f"{count(len(alone), 'file')} without {missing}, and in no list: {shorten(alone, 3)}"
            )
    unlisted = [name for name in xml if name in pictures and name not in listed]
    if unlisted and lists:
        findings.note(folder, f"{count(len(unlisted), 'annotated picture')} in no list: {shorten(unlisted, 3)}")


def _check_repeats(
    pictures: dict[str, list[Path]], facts: dict[Path, PictureFacts], lists: Lists, findings: Findings
) -> None:
    """Report pictures that are there twice, above all among those to learn from and those to be scored on."""
    ids = {path: name for name, paths in pictures.items() for path in paths}
    apart = [(one, other) for one, other, must in list_pairs(lists) if must]
    for group in identical_pictures(facts):
        names = [ids[path] for path in group]
        between = [
            f"{one}.txt and {other}.txt"
            for one, other in apart
            if any(a != b and a in lists[one] and b in lists[other] for a in names for b in names)
        ]
        what = f"the same picture as {shorten(names[1:], 3)}"
        if between:
            findings.misleading(group[0], f"{what}, and so in {between[0]}: what is scored on was learnt")
        else:
            findings.note(group[0], what)
    seen = set()
    for one, other in apart:
        sides = ([pictures[name][0] for name in lists[side] if name in pictures] for side in (one, other))
        pairs = [pair for pair in similar_pictures(facts, *sides) if frozenset(pair[:2]) not in seen]
        seen.update(frozenset(pair[:2]) for pair in pairs)
        where = f"{one}.txt and the other in {other}.txt"
        if len(pairs) > _MOST_PAIRS:
            shown = [f"{ids[a]} and {ids[b]}" for a, b, _ in pairs]
            findings.note(
                pairs[0][0], f"{len(pairs)} pairs of nearly the same pictures, one in {where}: {shorten(shown, 3)}"
            )
            continue
        for path, twin, likeness in pairs:
            findings.note(path, f"nearly the same as '{ids[twin]}' ({likeness:.2f}), one in {where}: one scene?")
