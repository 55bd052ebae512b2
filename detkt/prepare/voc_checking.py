"""All flaws of a folder of VOC annotations of any classes, where its reader stops at the first."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from unicodedata import normalize

from detkt.base.errors import InputError
from detkt.config import DataConfig
from detkt.data import reading_of
from detkt.data.annotated import TOLERANCE, shorten
from detkt.data.detection import DetectionSet, checked_classes
from detkt.data.images import Decoding, check_strip, inspect_image, read_image_size
from detkt.data.layouts import reader
from detkt.data.parts import parse_part
from detkt.data.voc import VOC_CLASSES, choose_classes, near_voc_classes, stated_classes
from detkt.data.voc_folder import PARTS, AnnotatedFolder, plain_advice, voc_folder
from detkt.prepare.annotation_checking import CheckedAnnotation, check_annotation
from detkt.prepare.findings import Findings, count
from detkt.prepare.list_checking import Lists, check_lists, check_named, list_pairs, role
from detkt.prepare.picture_checking import (
    PictureFacts,
    examine_pictures,
    identical_pictures,
    in_threads,
    similar_pictures,
)

_MOST_PAIRS = 10


@dataclass
class _Found:
    """The files that are there, by id, and the lists that name them; *lists* of a plain folder are its splits."""

    xml: dict[str, Path] = field(default_factory=dict)
    pictures: dict[str, list[Path]] = field(default_factory=dict)
    lists: Lists = field(default_factory=dict)

    def add(self, folder: AnnotatedFolder, prefix: str = "") -> None:
        self.xml |= {prefix + name: folder.xml.all(name)[0] for name in folder.xml}
        self.pictures |= {prefix + name: folder.pictures.all(name) for name in folder.pictures}

    def unread(self) -> set[Path]:
        """Files that no list leads to; none where there is no list."""
        listed = set().union(*self.lists.values()) if self.lists else {*self.xml, *self.pictures}
        unread = {path for name, path in self.xml.items() if name not in listed}
        return unread | {path for name, paths in self.pictures.items() for path in paths[name in listed :]}


def check_voc(
    folder: Path, data: DataConfig, findings: Findings, required_lists: Sequence[str] = (), quiet: bool = False
) -> None:
    """Report all flaws of the folder that holds Annotations, ImageSets/Main and JPEGImages.

    data: its settings are those that training has; ``train``, ``test`` and ``val`` name the only lists that count,
    unless they are empty. required_lists: those that must be in ImageSets/Main.
    """
    for part in PARTS:
        if not (folder / part).is_dir():
            findings.error(folder, f"holds no folder {part}, which a VOC-format data set must have", missing=True)
    annotated, found = voc_folder(folder), _Found()
    found.add(annotated)
    for files in (annotated.pictures, annotated.xml):
        if files.others:
            others = [str(path.relative_to(files.folder)) for path in files.others]
            what = f"{count(len(others), 'file')} whose names no reader looks for: {shorten(others, 3)}"
            findings.note(files.folder, what)
    found.lists = check_lists(annotated, found.xml, found.pictures, required_lists, findings)
    _check_all(folder, data, found, findings, quiet)


def check_plain(
    root: Path, data: DataConfig, folders: Mapping[str, AnnotatedFolder], findings: Findings, quiet: bool
) -> None:
    """Report all flaws of *folders*, as `plain_folders` found them in *root*."""
    found = _Found()
    for split, folder in folders.items():
        prefix = f"{split}/" if len(folders) > 1 else ""
        found.add(folder, prefix)
        found.lists[split] = {prefix + name: 0 for name in folder.xml}
        there = [name.removeprefix(prefix) for name in found.pictures if name.startswith(prefix)]
        where = str(folder.pictures.folder.relative_to(root))
        check_named(folder.folder, dict.fromkeys(folder.xml, 0), there, where, "picture", findings)
    findings.note(root, f"XML files with their pictures: {plain_advice(folders)}")
    _check_all(root, data, found, findings, quiet)


def _check_all(folder: Path, data: DataConfig, found: _Found, findings: Findings, quiet: bool) -> None:
    named = [
        parse_part(part)[0].rpartition(":")[2]
        for split in (data.train, data.test, data.val)
        for part in (split.split("+") if split else ())
    ]
    lists = {name: ids for name, ids in found.lists.items() if name in named} if named else found.lists
    xml, pictures, found.lists = found.xml, found.pictures, lists
    for name, paths in pictures.items():
        for path in paths[1:]:
            findings.note(path, f"never read, as {paths[0].name} has the same id '{name}'; remove one of them")
    annotations = _check_annotations(found, data, findings, quiet)
    facts = _check_pictures(found, annotations, data, findings, quiet)
    _check_annotations_together(folder, xml, annotations, pictures, findings)
    _check_classes(folder, xml, annotations, lists, data, findings)
    _check_unlisted(folder, xml, pictures, lists, findings)
    check_repeats(pictures, facts, lists, findings)
    findings.excuse(found.unread())
    if not findings.stops and not named:
        rehearse("voc", folder, data, findings, *([name for name in names if lists[name]] for names in roles(lists)))
    objects = Counter(name for checked in annotations.values() for name in checked.found.names)
    findings.summary.append(
        f"{folder}: {count(len(pictures), 'picture')}, {count(len(xml), 'annotation')}, "
        f"{count(objects.total(), 'object')} of {count(len(objects), 'class', 'classes')}, {count(len(lists), 'list')}"
    )


def rehearse(
    data_format: str, root: Path, data: DataConfig, findings: Findings, learnt: Sequence[str], scored: Sequence[str]
) -> None:
    """Open each list as training would: what it refuses and no check has found is an error all the same."""
    classes: set[str] = set()
    for name in [*learnt, *scored]:
        known = data.classes or (sorted(classes) if name in scored and classes else None)
        try:
            opened = DetectionSet(reader(data_format), root, name, reading_of(data, known))
        except InputError as error:
            findings.refused(root, error)
        else:
            classes |= {*opened.classes}


def roles(lists: Lists) -> tuple[list[str], list[str]]:
    """The lists to learn from, and the others; the first where no name tells."""
    learnt = [name for name in lists if role(name) in ("train", "trainval")] or list(lists)[:1]
    return learnt, [name for name in lists if name not in learnt]


def _check_annotations(
    found: _Found, data: DataConfig, findings: Findings, quiet: bool
) -> dict[str, CheckedAnnotation]:
    decoding = Decoding(data.exif, data.max_pixels)

    def examine(name: str) -> tuple[CheckedAnnotation | None, Findings]:
        own = Findings(findings.published)

        def picture_size() -> tuple[int, int] | None:
            try:
                return read_image_size(found.pictures[name][0], None, decoding)
            except (KeyError, InputError):
                return None  # it is missing or damaged, which is reported of the picture

        return check_annotation(found.xml[name], own, data.boxes, picture_size), own

    annotations = {}
    with in_threads(examine, list(found.xml), "annotations", quiet) as results:
        for name, (checked, own) in zip(found.xml, results, strict=True):
            findings.extend(own)
            if checked is not None:
                annotations[name] = checked
    return annotations


def _check_pictures(
    found: _Found, annotations: dict[str, CheckedAnnotation], data: DataConfig, findings: Findings, quiet: bool
) -> dict[Path, PictureFacts]:
    decoding = Decoding(data.exif, data.max_pixels)
    stated = {found.pictures[name][0]: one.found.size for name, one in annotations.items() if name in found.pictures}
    paths = [path for paths in found.pictures.values() for path in paths]
    facts = examine_pictures(paths, findings, stated.get, decoding, quiet)
    undecided = 0
    for path, seen in facts.items():
        try:
            check_strip(path, *seen.size)
            undecided += inspect_image(path, stated.get(path), decoding)[1]
        except InputError as error:
            findings.refused(path, error)
    if undecided:
        done = "they are turned upright" if data.exif == "apply" else "they are taken as stored"
        what = f"{count(undecided, 'picture')} with an EXIF orientation that <size> does not decide"
        findings.note(Path(next(iter(facts))).parent, f"{what}: {done} (data.exif=apply|ignore)")
    for name, checked in annotations.items():
        if name not in found.pictures:
            continue
        path = found.pictures[name][0]
        if path in facts and checked.found.size not in (None, facts[path].size):
            size, said = (" x ".join(map(str, sides)) for sides in (facts[path].size, checked.found.size))
            what = f"the picture is {size} pixels, but {found.xml[name]} says {said}; its boxes are misplaced"
            findings.error(path, what)
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
        and checked.filename not in [normalize("NFC", path.name) for path in pictures.get(name, ())]
        and (name in pictures or Path(checked.filename).stem != Path(name).name)
    ]
    note(renamed, "with another picture's name in <filename> (the reader goes by the XML file's own name)")
    origins = Counter(checked.origin for checked in annotations.values())
    if len(origins) > 1:
        usual = origins.most_common(1)[0][0]
        strangers = [name for name, checked in annotations.items() if checked.origin != usual]
        shown = " and ".join(f"'{text}'" for text in annotations[strangers[0]].origin if text)
        note(strangers, f"of another <folder> or <path> than the others, such as {shown or 'none'}")
    note([name for name, one in annotations.items() if not one.found.names], "without an object, which is allowed")
    unstated = [name for name, one in annotations.items() if not one.found.stated and one.found.size is not None]
    note(unstated, "without <size>, which is taken from the picture")
    beyond = {name: one.found.overshoot for name, one in annotations.items()}
    for what, holds in (
        ("a pixel beyond the picture (counted from 0?)", lambda pixels: (pixels > 0) & (pixels <= TOLERANCE)),
        ("farther beyond the picture (data.boxes=refuse stops at them)", lambda pixels: pixels > TOLERANCE),
    ):
        boxes = {name: int(holds(pixels).sum()) for name, pixels in beyond.items() if holds(pixels).any()}
        note(list(boxes), f"with {count(sum(boxes.values()), 'box', 'boxes')} reaching {what}, which are clipped")
    if difficult := sum(int(checked.found.difficult.sum()) for checked in annotations.values()):
        findings.note(place, f"{count(difficult, 'object')} marked difficult, neither learnt nor scored")


def _check_classes(
    folder: Path,
    xml: dict[str, Path],
    annotations: dict[str, CheckedAnnotation],
    lists: Lists,
    data: DataConfig,
    findings: Findings,
) -> None:
    def count_names(identifiers: Iterable[str]) -> Counter:
        return Counter(name for each in identifiers if each in annotations for name in annotations[each].found.names)

    first: dict[str, Path] = {}
    for identifier, checked in annotations.items():
        for name in checked.found.names:
            first.setdefault(name, xml[identifier])
    learnt, scored = roles(lists)
    counts = count_names(annotations)
    of_list = {name: count_names(ids) for name, ids in lists.items()}
    known = set().union(*(stated_classes(folder, of_list[name]) or choose_classes(of_list[name])[0] for name in learnt))
    if data.classes is not None:
        known = set(checked_classes(data.classes))
        for name in sorted(set().union(*of_list.values()) - known):
            findings.error(first[name], f"{count(counts[name], 'object')} of class '{name}', not one of data.classes")
    elif slips := dict(
        item
        for name in learnt
        if not stated_classes(folder, of_list[name])
        for item in choose_classes(of_list[name])[1].items()
    ):
        for name, other in sorted(slips.items()):
            what = f"{count(counts[name], 'object')} of unknown class '{name}': '{other}' is meant?"
            findings.error(first[name], f"{what} (if not, list all classes in data.classes)")
        return
    else:
        for name in sorted(set(counts).difference(VOC_CLASSES)):
            if near := near_voc_classes(name):
                what = f"class '{name}', {count(counts[name], 'object')}, is taken for another than VOC's '{near[0]}'"
                findings.note(first[name], what)
    check_spelling(counts, first, findings)
    if data.classes is None and known:
        for name in sorted(set().union(*(of_list[name] for name in scored)) - known):
            findings.error(first[name], f"class '{name}' is in the lists to score on, but in none to learn from")


def check_spelling(counts: Counter, first: dict[str, Path], findings: Findings) -> None:
    """Report rare names that another, frequent one may have been meant by."""
    ranked = [name for name, _ in counts.most_common()]
    for place, name in enumerate(ranked):
        for other in ranked[:place]:
            what = f"{count(counts[name], 'object')} of class '{name}', {counts[other]} of class '{other}'"
            if _letters(name) == _letters(other):
                report = findings.note if {name, other} & set(VOC_CLASSES) else findings.misleading
                report(first[name], f"{what}: one class under two names?")
            elif 100 * counts[name] <= counts[other] and get_close_matches(name, [other], cutoff=0.8):
                findings.note(first[name], f"{what}: a slip?")


def _letters(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.casefold())


def _check_unlisted(
    folder: Path, xml: dict[str, Path], pictures: dict[str, list[Path]], lists: Lists, findings: Findings
) -> None:
    listed = set().union(*lists.values())
    for part, there, other, missing in (
        ("JPEGImages", pictures, xml, "annotation"),
        ("Annotations", xml, pictures, "picture"),
    ):
        part = part if (folder / part).is_dir() else ""
        # What a list names is reported there.
        alone = [name for name in there if name not in other and name not in listed]
        if alone:
            findings.note(
                folder / part, f"{count(len(alone), 'file')} without {missing}, and in no list: {shorten(alone, 3)}"
            )
    unlisted = [name for name in xml if name in pictures and name not in listed]
    if unlisted and lists:
        findings.note(folder, f"{count(len(unlisted), 'annotated picture')} in no list: {shorten(unlisted, 3)}")


def check_repeats(
    pictures: dict[str, list[Path]],
    facts: dict[Path, PictureFacts],
    lists: Lists,
    findings: Findings,
    suffix: str = ".txt",
) -> None:
    """Report pictures that are there twice, above all among those to learn from and those to be scored on.

    suffix: of the lists' files.
    """
    ids = {path: name for name, paths in pictures.items() for path in paths}
    apart = [(one, other) for one, other, must in list_pairs(lists) if must]
    for group in identical_pictures(facts):
        names = [ids[path] for path in group]
        between = [
            f"{one}{suffix} and {other}{suffix}"
            for one, other in apart
            if any(a != b and a in lists[one] and b in lists[other] for a in names for b in names)
        ]
        what = f"the same picture as {shorten(names[1:], 3)}"
        if between:
            findings.misleading(group[0], f"{what}, and so in {between[0]}: what is scored on was learnt")
        else:
            findings.note(group[0], what)
    seen = set[frozenset[Path]]()
    for one, other in apart:
        sides = ([pictures[name][0] for name in lists[side] if name in pictures] for side in (one, other))
        pairs = [pair for pair in similar_pictures(facts, *sides) if frozenset(pair[:2]) not in seen]
        seen.update(frozenset(pair[:2]) for pair in pairs)
        where = f"{one}{suffix} and the other in {other}{suffix}"
        if len(pairs) > _MOST_PAIRS:
            shown = [f"{ids[a]} and {ids[b]}" for a, b, _ in pairs]
            findings.note(
                pairs[0][0], f"{len(pairs)} pairs of nearly the same pictures, one in {where}: {shorten(shown, 3)}"
            )
            continue
        for path, twin, likeness in pairs:
            findings.note(path, f"nearly the same as '{ids[twin]}' ({likeness:.2f}), one in {where}: one scene?")
