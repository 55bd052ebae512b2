"""Classes of two networks, matched by name: a teacher of COCO's classes beside a student of VOC's, say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from detkt.base.errors import InputError, suggestion

SYNONYMS: tuple[frozenset[str], ...] = tuple(
    map(
        frozenset,
        (
            ("aeroplane", "airplane"),
            ("diningtable", "dining table"),
            ("motorbike", "motorcycle"),
            ("pottedplant", "potted plant"),
            ("sofa", "couch"),
            ("tvmonitor", "tv"),
        ),
    )
)
"""The classes that PASCAL VOC and COCO name differently; the other fourteen of VOC's are COCO's by the same name."""


def class_map(
    student: Sequence[str], teacher: Sequence[str], extra: Mapping[str, str | None] | None = None
) -> list[int | None]:
    """For each class of the student, which of the teacher's classes it is.

    A class is what *extra* says; else the teacher's class of the same name; else that of the same name but for case,
    underscores, hyphens and spaces at its ends; else the one that :data:`SYNONYMS` puts beside it.

    Args:
        student: the student's class names, without a background.
        teacher: the teacher's class names, without a background.
        extra: a student's class -> the teacher's class that it is, or None for none, whatever the names say.

    Returns:
        An index into *teacher* for each of *student*; None where the teacher has no such class. A detector's labels
        count the background, so its label is the index plus 1.

    Raises:
        InputError: *extra* names a class that its network does not have, or two of the student's classes are the same
            one of the teacher's.
    """
    extra = {} if extra is None else extra
    for ours, theirs in extra.items():
        for side, name, known in (("student", ours, student), ("teacher", theirs, teacher)):
            if name is not None and name not in known:
                raise InputError(f"teacher.class_map: the {side} has no class '{name}'{suggestion(name, known)}")
    found = [_find(extra[name], teacher) if name in extra else _find(name, teacher) for name in student]
    taken: dict[int, str] = {}
    for name, index in zip(student, found, strict=True):
        if index is None:
            continue
        if index in taken:
            raise InputError(
                f"the student's classes '{taken[index]}' and '{name}' are both the teacher's '{teacher[index]}'; set "
                "one of them in teacher.class_map, to null if the teacher has none such"
            )
        taken[index] = name
    return found


def _find(name: str | None, teacher: Sequence[str]) -> int | None:
    if name is None:
        return None
    if name in teacher:
        return teacher.index(name)
    plain = [_plain(other) for other in teacher]
    wanted = _plain(name)
    if wanted in plain:
        return plain.index(wanted)
    for synonyms in SYNONYMS:
        if wanted in synonyms:
            return next((i for i, other in enumerate(plain) if other in synonyms), None)
    return None


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())
