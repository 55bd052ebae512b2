"""Annotation files of PASCAL VOC: one XML file a picture."""

from __future__ import annotations

import codecs
import math
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError, TreeBuilder

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser, fromstring

from detkt.base.errors import InputError
from detkt.data.annotated import TOLERANCE, shown

_FLAGS = {
    "1": True,
    "true": True,
    "yes": True,
    "0": False,
    "false": False,
    "no": False,
    "": False,
    "unspecified": False,
}
_COORDINATES = ("xmin", "ymin", "xmax", "ymax")
_DECLARED = re.compile(r"""\s*<\?xml[^>]*?\sencoding\s*=\s*["']([^"'<>]+)["']""")
_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
# What a file without mark begins with, "<?" or "<a", tells how many bytes a letter has (XML 1.0, appendix F).
_FAMILIES = {
    b"<\0\0\0": "utf-32-le",
    b"\0\0\0<": "utf-32-be",
    b"<\0": "utf-16-le",
    b"\0<": "utf-16-be",
    b"\x4c\x6f\xa7\x94": "cp037",
}
# Under these names people save letters that only the wider code of the same family has.
_WIDER = {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "big5": "cp950", "euc_kr": "cp949"}
_NOT_DECODED = "\ufffd"


@dataclass(frozen=True, eq=False)
class Annotation:
    """The objects of one picture.

    size: (width, height) of the picture in pixels, None where it is not known; stated: whether by the file; boxes:
    (n, 4) float64, x1 y1 x2 y2, 1-based inclusive pixels, inside the picture; given: the same as the file has them;
    names: n class names; difficult: (n,) bool; rows: n numbers, from 0, of the file's <object> elements.
    """

    size: tuple[int, int] | None
    stated: bool
    boxes: np.ndarray
    given: np.ndarray
    names: tuple[str, ...]
    difficult: np.ndarray
    rows: tuple[int, ...]

    @property
    def overshoot(self) -> np.ndarray:
        """(n,) pixels by which each box reached beyond the picture."""
        return np.abs(self.given - self.boxes).max(axis=1, initial=0)


def parse_annotation(
    path: str | PathLike[str], boxes: str = "clip", picture_size: Callable[[], tuple[int, int] | None] | None = None
) -> Annotation:
    """Read the annotation file *path*.

    What nothing needs (<truncated>, <pose>, …) is not looked at. The boxes of an object's parts (head, hand, foot in
    VOC's person layout) are left aside.

    boxes: "clip" cuts boxes that reach beyond the picture; "refuse" only those that do so by a pixel at most.
    picture_size: asked for (width, height) where the file states none; None: boxes are then taken as they are.

    Raises InputError, with the file and as far as known the line and the number of the object: no such file,
    malformed XML, XML that declares entities, an object without name or box, a coordinate that is no finite number, a
    box that is inverted, or of which nothing is in the picture.
    """
    found, flaws = read_annotation(parse_xml(path), boxes, picture_size)
    if flaws:
        index, what = flaws[0]
        raise InputError(f"{locate_object(path, index)}: {what}")
    return found


def read_annotation(
    root: Element, boxes: str = "clip", picture_size: Callable[[], tuple[int, int] | None] | None = None
) -> tuple[Annotation, list[tuple[int, str]]]:
    """The objects without flaw of what `parse_xml` gave, and all flaws, with the object's number from 0."""
    stated = _stated_size(root)
    size = stated or (picture_size() if picture_size is not None else None)
    kept: list[tuple[int, str, list[float], list[float], bool]] = []
    flaws: list[tuple[int, str]] = []

    def tried(index: int, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except _Flaw as flaw:
            flaws.append((index, str(flaw)))

    for index, element in enumerate(root.findall("object")):
        known = len(flaws)
        name = tried(index, partial(_read_name, element))
        box = tried(index, partial(_read_given, element))
        inside = box and tried(index, partial(_inside, box, size, boxes == "clip"))
        difficult = tried(index, partial(_read_difficult, element))
        if len(flaws) == known:
            kept.append((index, name, box, inside, difficult))
    rows, names, given, boxed, flagged = zip(*kept, strict=True) if kept else [()] * 5
    shape = (-1, 4)
    return Annotation(
        size=size,
        stated=stated is not None,
        boxes=np.array(boxed, dtype=np.float64).reshape(shape),
        given=np.array(given, dtype=np.float64).reshape(shape),
        names=names,
        difficult=np.array(flagged, dtype=bool),
        rows=rows,
    ), flaws


def locate_object(path: str | PathLike[str], index: int) -> str:
    """``FILE, line L, object N ('name')`` for the object at *index*, which counts from 0 while N counts from 1."""
    # ElementTree forgets the lines, so the file is read once more; this serves error messages only.
    builder = _LineBuilder()
    parser = DefusedXMLParser(target=builder)
    builder.expat = parser.parser
    parser.feed(_decoded(Path(path).read_bytes()))
    element = parser.close().findall("object")[index]
    name = " ".join((element.findtext("name") or "").split())
    return f"{path}, line {builder.lines[element]}, object {index + 1}" + (f" ('{name}')" if name else "")


class _LineBuilder(TreeBuilder):
    """Builds the tree as usual and remembers on which line each element starts."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[Element, int] = {}
        self.expat: Any = None

    def start(self, tag: str, attributes: dict[str, str]) -> Element:
        element = super().start(tag, attributes)
        self.lines[element] = self.expat.CurrentLineNumber
        return element


class _Flaw(Exception):
    """What is wrong, as found by a function that does not know where it is."""


def parse_xml(path: str | PathLike[str]) -> Element:
    """The file's root element, whatever encoding it declares; raises InputError as `parse_annotation` does."""
    try:
        root = fromstring(_decoded(Path(path).read_bytes()))
    except OSError as error:
        raise InputError(f"{path}: cannot read the annotation: {error.strerror}") from error
    except ParseError as error:
        line, column = error.position
        reason = str(error).partition(": line ")[0]
        raise InputError(f"{path}, line {line}, column {column + 1}: malformed XML: {reason}") from error
    except DefusedXmlException as error:
        raise InputError(f"{path}: the XML declares entities, which are refused as unsafe; remove them") from error
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path}: malformed XML: {error}") from error
    if root.tag.lower() != "annotation" and root.find("object") is None and root.find("size") is None:
        raise InputError(f"{path}: no VOC annotation: it holds <{root.tag}> instead of <annotation>")
    return root


def _decoded(content: bytes) -> str:
    """The text of an XML file; letters that are not of its encoding become U+FFFD, which XML allows.

    Expat knows few encodings itself, and those by their official names alone. Raises LookupError, ValueError.
    """
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            return content.removeprefix(mark).decode(encoding, "replace")
    family = next((name for start, name in _FAMILIES.items() if content.startswith(start)), None)
    declared = _DECLARED.match(content[:400].decode(family or "latin-1", "replace"))
    name = declared[1].strip() if declared else "utf-8"
    encoding = codecs.lookup(name).name.replace("-", "_")
    if family is not None and (family != "cp037" or not declared):
        encoding = family  # "utf-16", or an editor's name for it, says nothing of the order of bytes
    if encoding in ("utf_16", "utf_32"):
        encoding = "utf_8"  # declared by a program that then wrote single bytes
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        return content.decode(_WIDER.get(encoding, encoding), "replace")


def _stated_size(root: Element) -> tuple[int, int] | None:
    """(width, height) as <size> states them; None where it does not, or says 0 or a part of a pixel."""
    try:
        values = [_read_number(size, key) for size in root.findall("size")[:1] for key in ("width", "height")]
    except _Flaw:
        return None
    return (int(values[0]), int(values[1])) if values and all(v >= 1 and v.is_integer() for v in values) else None


def _read_name(element: Element) -> str:
    name = unicodedata.normalize("NFC", _read_text(element, "name"))
    if _NOT_DECODED in name:
        raise _Flaw(f"<name> is '{name}', whose bytes are not in the encoding of the file; save the file as UTF-8")
    return name


def _read_given(element: Element) -> list[float]:
    bndbox = element.find("bndbox")
    if bndbox is None:
        raise _Flaw("the object has no <bndbox>")
    box = [_read_number(bndbox, key) for key in _COORDINATES]
    if box[2] < box[0] or box[3] < box[1]:
        raise _Flaw(f"box ({shown(box)}) is inverted or empty: xmax must be at least xmin, and ymax at least ymin")
    return box


def _read_difficult(element: Element) -> bool:
    text = " ".join((element.findtext("difficult") or "").split()).lower()
    flag = _FLAGS.get(text, _FLAGS.get(re.sub(r"\.0*$", "", text)))
    if flag is None:
        raise _Flaw(f"<difficult> is '{text}'; it must be 0 or 1")
    return flag


def _inside(box: list[float], size: tuple[int, int] | None, clip: bool) -> list[float]:
    """The part of *box* in the picture."""
    if size is None:
        return box
    (x1, y1, x2, y2), (width, height) = box, size
    if max(1 - x1, 1 - y1, x2 - width, y2 - height) > TOLERANCE:
        picture = f"the picture of {width} x {height} pixels, counted from 1"
        if x2 < 1 or y2 < 1 or x1 > width or y1 > height:
            raise _Flaw(f"box ({shown(box)}) lies wholly outside {picture}")
        if not clip:
            raise _Flaw(f"box ({shown(box)}) reaches out of {picture}; correct it, or give data.boxes=clip")
    return [min(max(value, 1.0), limit) for value, limit in zip(box, (width, height) * 2, strict=True)]


def _read_text(parent: Element, key: str) -> str:
    text = " ".join((parent.findtext(key) or "").split())
    if not text:
        raise _Flaw(f"<{key}> is missing or empty")
    return text


def _read_number(parent: Element, key: str) -> float:
    text = _read_text(parent, key)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _Flaw(f"<{key}> is '{text}', which is not a finite number")
    return value
