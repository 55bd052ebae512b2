"""What a check of a data set found: flaws, that must be mended, and notes."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path

from detkt.base.errors import InputError


@dataclass(frozen=True)
class Finding:
    """A line that begins with the path of the file, list or folder it is about.

    missing: what is not there. stops: training stops at it; else it goes on, and learns or is scored on what is wrong.
    """

    path: Path
    line: str
    missing: bool = False
    stops: bool = True


@dataclass
class Findings:
    """Filled by the checks, which go on after each flaw.

    errors: what makes training stop, or go wrong in silence; notes: what is odd, but read as it should be.
    published: the data set is somebody else's and cannot be mended, so what only misleads is a note.
    summary: what is there, of each folder that was looked at.
    """

    published: bool = False
    errors: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)
    summary: list[str] = field(default_factory=list)

    def error(self, path: Path, what: str, where: str = "", missing: bool = False) -> None:
        """*what* is wrong with *path*; *where*: all of the line before the colon, if more than the path."""
        self.errors.append(Finding(path, _one_line(f"{where or path}: {what}"), missing))

    def refused(self, path: Path, error: InputError) -> None:
        """A reader refused *path*; its message begins with the place."""
        self.errors.append(Finding(path, _one_line(str(error))))

    def misleading(self, path: Path, what: str, where: str = "") -> None:
        """Training goes on, but learns or is scored on something wrong."""
        found = Finding(path, _one_line(f"{where or path}: {what}"), stops=False)
        (self.notes if self.published else self.errors).append(found)

    def note(self, path: Path, what: str, where: str = "") -> None:
        self.notes.append(Finding(path, _one_line(f"{where or path}: {what}")))

    def extend(self, other: Findings) -> None:
        """Append what *other* holds."""
        self.errors += other.errors
        self.notes += other.notes

    def excuse(self, paths: Container[Path]) -> None:
        """What is wrong with *paths* is only noted: nothing reads them."""
        excused = [finding for finding in self.errors if finding.path in paths]
        self.errors = [finding for finding in self.errors if finding.path not in paths]
        self.notes += [Finding(finding.path, f"{finding.line} (read by no list)") for finding in excused]

    @property
    def complete(self) -> bool:
        """Whether everything is there, whatever its state."""
        return not any(finding.missing for finding in self.errors)

    @property
    def sound(self) -> bool:
        """Whether what is there is in order, though some may be missing."""
        return all(finding.missing for finding in self.errors)

    @property
    def stops(self) -> bool:
        """Whether training would stop."""
        return any(finding.stops for finding in self.errors)

    def verdict(self, folder: Path) -> str:
        """``N flaws in M files of FOLDER``, and whether training stops at them."""
        files = len({finding.path for finding in self.errors})
        what = f"{count(len(self.errors), 'flaw')} in {count(files, 'file')} of {folder}"
        return what if self.stops else f"{what}, at which training does not stop, but of which it learns what is wrong"


def count(number: int, noun: str, plural: str = "") -> str:
    """``1 picture``, ``2 pictures``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def _one_line(text: str) -> str:
    # File names may hold line breaks, and bytes that are no UTF-8.
    return " ".join(str(InputError(text)).encode(errors="backslashreplace").decode().split())
