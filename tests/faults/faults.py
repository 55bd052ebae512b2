"""A fault: what is given to a tool, and the one line that it answers."""

from __future__ import annotations

import io
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Change = Callable[["Place"], Any]


@dataclass(frozen=True)
class Case:
    """Bad input, for one tool or for several that must answer alike.

    Attributes:
        id: of the test.
        given: what is wrong, for people: the left column of docs/errors.md.
        tools: tool -> its command line, with the names of a `Place` in braces.
        message: the line after ``error: ``, paths relative to the test's folder; "…" stands for anything.
        change: what makes the input bad, in a place where all is well.
        patch: what the machine, not the user, does wrong.
        leaves: patterns of files that the tool may leave or change; nothing else may.
    """

    id: str
    given: str
    tools: Mapping[str, str]
    message: str
    change: Change = lambda place: None
    patch: Callable[[pytest.MonkeyPatch, Place], None] = lambda monkeypatch, place: None
    leaves: tuple[str, ...] = ()

    def pattern(self) -> re.Pattern:
        """What the line must match."""
        return re.compile(re.escape(self.message).replace("…", ".*"))


class Place(dict):
    """Where a case takes place: the names in its command lines, each copied from an original when it is asked for.

    voc, photos: data sets; pair, classifiers: config files; teacher, student, classifier: saved models; run: a finished
    run; results, coco: detections, as VOC's files and as COCO's; picture, pictures: to predict; tmp: the test's folder;
    out: a folder that is not there.
    """

    def __init__(self, tmp: Path, originals: Mapping[str, Path]) -> None:
        super().__init__(tmp=tmp, out=tmp / "out")
        self.tmp, self._originals = tmp, originals

    def __missing__(self, name: str) -> Path:
        original = self._originals[name]
        copied = self[name] = (self.tmp / name).with_suffix(original.suffix)
        if original.is_dir():
            shutil.copytree(original, copied)
        else:
            shutil.copyfile(original, copied)
        config = copied / "config.yaml" if original.is_dir() else copied
        if config.suffix == ".yaml" and config.exists():  # its pictures and its teacher are this place's
            text = config.read_text()
            for other in ("voc", "photos", "teacher", "classifier"):
                if (mark := f"{{{other}}}") in text:
                    text = text.replace(mark, str(self[other]))
            config.write_text(text)
        return copied

    def flags(self, line: str) -> list[str]:
        """The command line *line* with its names filled in."""
        return [word.format_map(self) for word in line.split()]

    def shorten(self, text: str) -> str:
        """*text* without the test's folder before its paths."""
        return text.replace(f"{self.tmp}/", "").replace(str(self.tmp), ".")

    def files(self) -> dict[str, tuple]:
        """Every file and folder, and what tells whether it was changed."""
        return {str(path.relative_to(self.tmp)): _state(path) for path in _walk(self.tmp)}

    # What the cases do with files: each takes the path as it stands in the messages.

    def write(self, path: str, content: str | bytes) -> None:
        target = self._at(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)

    def replace(self, path: str, old: str, new: str) -> None:
        text = self._at(path).read_text()
        assert old in text, (path, old)
        self.write(path, text.replace(old, new))

    def truncate(self, path: str, share: float = 0.5) -> None:
        content = self._at(path).read_bytes()
        self.write(path, content[: int(share * len(content))])

    def remove(self, path: str) -> None:
        target = self._at(path)
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    def full(self, path: str) -> None:
        """From now on there is no space to write *path*."""
        target = self._at(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to("/dev/full")

    def _at(self, path: str) -> Path:
        first = Path(path).parts[0]
        if first in self._originals or Path(first).stem in self._originals:
            self[Path(first).stem]  # copied by now
        return self.tmp / path


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)


def _state(path: Path) -> tuple:
    status = path.lstat()
    return (status.st_mode, 0, 0) if path.is_dir() else (status.st_mode, status.st_size, status.st_mtime_ns)


# Parts of cases: what they write.


SPRUNG = Path(tempfile.gettempdir()) / f"detkt-sprung-{os.getpid()}"


class Shell:
    """Runs a command when it is unpickled: then there is a file SPRUNG."""

    def __reduce__(self):
        return os.system, (f"touch {SPRUNG}",)


def picture(mode: str, size: tuple[int, int], name: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, name)
    return file.getvalue()


def rooted(path: str, change=lambda place: None):
    def prepare(place: Place) -> None:
        change(place)
        place["root"] = place.tmp / path

    return prepare
