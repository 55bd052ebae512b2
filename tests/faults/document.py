"""docs/errors.md, made from the cases: run this file after a case was changed."""

from __future__ import annotations

import html
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(PROJECT))

import data_cases  # noqa: E402
import flag_cases  # noqa: E402
import folder_cases  # noqa: E402
import model_cases  # noqa: E402
import photo_cases  # noqa: E402
import result_cases  # noqa: E402
import setting_cases  # noqa: E402

PAGE = PROJECT / "docs" / "errors.md"
SECTIONS = {
    title: cases
    for module in (flag_cases, setting_cases, folder_cases, data_cases, photo_cases, model_cases, result_cases)
    for title, cases in module.SECTIONS.items()
}
HEAD = """# Errors: what is wrong, and what the tools answer

Every tool ends with status 2 and one line, `error: …`, on stderr for input that it cannot use. It says so before it
makes anything, unless the fault can only be known while it works. 130 is the status after Ctrl-C: a training saves its
checkpoint first, and `--resume` goes on from there as if it had not been stopped.

This page is made from the cases of `tests/faults`, which check every line of it, by
`python tests/faults/document.py`. "…" stands for what differs from one machine or version of a library to another.
"""


def page() -> str:
    """The text of docs/errors.md."""
    parts = [HEAD]
    for title, cases in SECTIONS.items():
        parts.append(f"\n## {title}\n\n| given | tools | `error: …` |\n|---|---|---|\n")
        parts += [f"| {case.given} | {', '.join(case.tools)} | {_cell(case.message)} |\n" for case in cases]
    return "".join(parts)


def _cell(text: str) -> str:
    return f"<code>{html.escape(text, quote=False).replace('|', '&#124;').replace('*', '&#42;')}</code>"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
