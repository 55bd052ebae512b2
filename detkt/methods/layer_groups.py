"""Groups of neighbouring teacher layers, each merged for one layer of the student by knowledge representing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from detkt.base.errors import InputError
from detkt.methods.base import LayerPair


@dataclass(frozen=True)
class Group:
    """A student's layer and the neighbouring teacher layers, in the order in which the teacher runs them."""

    student: str
    teachers: tuple[str, ...]


def named_groups(method: str, layers: Sequence[str], m: int) -> list[Group]:
    """The groups of a method's ``layers``: STUDENT=TEACHER, or STUDENT=TEACHER+TEACHER+...

    A single TEACHER is the last of *m*, counted back by the number its name ends in.

    Raises:
        InputError: m is below 1, a student's layer is named twice, or the name has no m numbers to count back.
    """
    if m < 1:
        raise InputError(f"methods.{method}.m is {m}: it must be 1 or more")
    pairs = [LayerPair.parse(text) for text in layers]
    if len({pair.student for pair in pairs}) < len(pairs):
        raise InputError(f"methods.{method}.layers names a student's layer twice: {', '.join(layers)}")
    return [Group(pair.student, _neighbours(method, pair.teacher, m)) for pair in pairs]


def output_groups(method: str, pairs: Sequence[LayerPair], m: int) -> list[Group]:
    """For each backbone output the teacher's *m* outputs that end with it; fewer or later ones for the first.

    Raises:
        InputError: there is one output only, and m asks for more.
    """
    outputs = tuple(pair.teacher for pair in pairs)
    if len(outputs) < 2 and m > 1:
        raise InputError(
            f"method '{method}' aggregates {m} neighbouring teacher layers, but the backbones have one output, "
            f"'{outputs[0]}'; name layers with methods.{method}.layers=[STUDENT=TEACHER], e.g. [output=layer3.5] or "
            f"[output=layer3.4+layer3.5], or set methods.{method}.m=1 to aggregate none"
        )
    starts = [max(0, i - m + 1) for i in range(len(pairs))]
    return [Group(pair.student, outputs[start : start + m]) for pair, start in zip(pairs, starts, strict=True)]


def _neighbours(method: str, teacher: str, m: int) -> tuple[str, ...]:
    if "+" in teacher:
        return tuple(name.strip() for name in teacher.split("+"))
    if m == 1:
        return (teacher,)
    numbered = re.fullmatch(r"(.*\.)?(\d+)", teacher)
    last = int(numbered[2]) if numbered else 0
    if numbered is None or last < m - 1:
        raise InputError(
            f"methods.{method}.layers: '{teacher}' is not the last of {m} numbered teacher layers (m={m}); name one "
            "that is, like layer3.5, or all of them, like layer3.0+layer3.1, or set a smaller m"
        )
    return tuple(f"{numbered[1] or ''}{i}" for i in range(last - m + 1, last + 1))
