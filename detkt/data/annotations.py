"""Annotation files of PASCAL VOC: one XML file a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError, TreeBuilder

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser, fromstring

from detkt.base.errors import InputError

COORDINATES = ("xmin", "ymin", "xmax", "ymax")
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
_TOLERANCE = 1.0  # pixels: boxes counted from 0, or one pixel too far, are common and harmless


@dataclass(frozen=True, eq=False)
class Annotation:
    """The objects of one picture.

    width, height: of the picture, in pixels; boxes: (n, 4) float64, x1 y1 x2 y2, 1-based inclusive pixels, inside
    the picture; names: n class names; difficult, truncated: (n,) bool.
    """

    filename: str
    width: int
    height: int
    boxes: np.ndarray
    names: tuple[str, ...]
    difficult: np.ndarray
    truncated: np.ndarray


def parse_annotation(path: str | PathLike[str]) -> Annotation:
    """Read the annotation file *path*.

    A box that overshoots the picture by one pixel at most is clipped to it. The boxes of an object's parts (head,
    hand, foot in VOC's person layout) are left aside.

    Raises InputError, with the file and as far as known the line and the number of the object: no such file,
    malformed XML, XML that declares entities, no size, an object without name or box, a coordinate that is no
    finite number, a box that is inverted, or outside the picture.
    """
    root = parse_xml(path)
    try:
        width, height = read_size(root)
    except Flaw as flaw:
        raise InputError(f"{path}: {flaw}") from None
    boxes, names, difficult, truncated = [], [], [], []
    for index, element in enumerate(root.findall("object")):
        try:
            names.append(read_text(element, "name"))
            boxes.append(read_box(element, width, height))
            difficult.append(read_flag(element, "difficult"))
            truncated.append(read_flag(element, "truncated"))
        except Flaw as flaw:
            raise InputError(f"{locate_object(path, index)}: {flaw}") from None
    return Annotation(
        filename=(root.findtext("filename") or "").strip(),
        width=width,
        height=height,
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        names=tuple(names),
        difficult=np.array(difficult, dtype=bool),
        truncated=np.array(truncated, dtype=bool),
    )


def locate_object(path: str | PathLike[str], index: int) -> str:
    """``FILE, line L, object N ('name')`` for the object at *index*, which counts from 0 while N counts from 1."""
    # ElementTree forgets the lines, so the file is read once more; this serves error messages only.
    builder = _LineBuilder()
    parser = DefusedXMLParser(target=builder)
    builder.expat = parser.parser
    parser.feed(Path(path).read_bytes())
    element = parser.close().findall("object")[index]
    name = " ".join((element.findtext("name") or "").split())
    return f"{path}, line {builder.lines[element]}, object {index + 1}" + (f" ('{name}')" if name else "")


class _LineBuilder(TreeBuilder):
    """Builds the tree as usual and remembers on which line each element starts."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[Element, int] = {}
        self.expat = None

    def start(self, tag: str, attributes: dict[str, str]) -> Element:
        element = super().start(tag, attributes)
        self.lines[element] = self.expat.CurrentLineNumber
        return element


class Flaw(Exception):
    """What is wrong, as found by a function that does not know where it is."""


def parse_xml(path: str | PathLike[str]) -> Element:
    try:
        return fromstring(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot read the annotation: {error.strerror}") from error
    except ParseError as error:
        line, column = error.position
        reason = str(error).partition(": line ")[0]
        raise InputError(f"{path}, line {line}, column {column + 1}: malformed XML: {reason}") from error
    except DefusedXmlException as error:
        raise InputError(f"{path}: the XML declares entities, which are refused as unsafe; remove them") from error
    except (ValueError, LookupError) as error:  # expat's answer to an unknown or a multi-byte encoding
        raise InputError(f"{path}: malformed XML: {error}") from error


def read_size(root: Element) -> tuple[int, int]:
    size = root.find("size")
    if size is None:
        raise Flaw("the annotation has no <size>; add <size> with <width> and <height> of the picture")
    values = [read_number(size, key) for key in ("width", "height")]
    if not all(value >= 1 and value.is_integer() for value in values):
        raise Flaw(f"<size> is {values[0]:g} x {values[1]:g}; it must hold the picture's width and height in pixels")
    return int(values[0]), int(values[1])


def read_box(element: Element, width: int, height: int) -> list[float]:
    bndbox = element.find("bndbox")
    if bndbox is None:
        raise Flaw("the object has no <bndbox>")
    x1, y1, x2, y2 = box = [read_number(bndbox, key) for key in COORDINATES]
    shown = ", ".join(f"{value:g}" for value in box)
    if x2 < x1 or y2 < y1:
        raise Flaw(f"box ({shown}) is inverted or empty: xmax must be at least xmin, and ymax at least ymin")
    if min(x1, y1) < 1 - _TOLERANCE or x2 > width + _TOLERANCE or y2 > height + _TOLERANCE:
        raise Flaw(f"box ({shown}) lies outside the picture of {width} x {height} pixels, counted from 1")
    return [min(max(value, 1.0), limit) for value, limit in zip(box, (width, height) * 2, strict=True)]


def read_text(parent: Element, key: str) -> str:
    text = " ".join((parent.findtext(key) or "").split())
    if not text:
        raise Flaw(f"<{key}> is missing or empty")
    return text


def read_number(parent: Element, key: str) -> float:
    text = read_text(parent, key)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise Flaw(f"<{key}> is '{text}', which is not a finite number")
    return value


def read_flag(parent: Element, key: str) -> bool:
    text = " ".join((parent.findtext(key) or "").split()).lower()
    if text not in _FLAGS:
        raise Flaw(f"<{key}> is '{text}'; it must be 0 or 1")
    return _FLAGS[text]
