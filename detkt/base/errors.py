"""Errors a user can mend: the tools print them as one line and exit with status 2."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

LONGEST_VALUE, LONGEST_LINE = 100, 4000  # characters of a message


class InputError(ValueError):
    """Something the user gave (a path, a file, a flag, a setting) cannot be used.

    The message is one line: what is wrong, where (file, line or key), and what to do. Line breaks and other control
    characters, which names in somebody's files may hold, are shown as Python writes them; what is absurdly long is cut.
    """

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) > LONGEST_LINE:
            text = f"{text[: LONGEST_LINE // 2]} … {text[-LONGEST_LINE // 2 :]}"
        return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda found: repr(found[0])[1:-1], text)


def literal(value: object) -> str:
    """*value* as Python writes it, cut."""
    return cut(repr(value))


def cut(value: object, longest: int = LONGEST_VALUE) -> str:
    """*value*, which somebody's file holds, for a message: its beginning where it is absurdly long."""
    text = str(value)
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text)} characters)"


def first_line(error: Exception, longest: int | None = None) -> str:
    """The first line of an exception's message, cut to *longest* characters; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:longest]


def suggestion(name: str, choices: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` with the choice nearest to *name*, or an empty string."""
    if len(str(name)) > LONGEST_VALUE:  # nobody's slip of the pen, and difflib would take long
        return ""
    by_lower = {str(choice).lower(): str(choice) for choice in choices}
    near = difflib.get_close_matches(str(name).lower(), list(by_lower), n=1, cutoff=0.5)
    return f" (did you mean '{cut(by_lower[near[0]])}'?)" if near else ""


def suggestion_or_all(name: str, choices: Iterable[str]) -> str:
    """`suggestion`, or all the choices where none is near."""
    names = list(map(str, choices))
    return suggestion(name, names) or f"; there are: {', '.join(names)}"
