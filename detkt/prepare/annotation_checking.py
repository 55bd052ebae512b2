"""All flaws of a VOC annotation file, where its reader stops at the first."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from detkt.base.errors import InputError
from detkt.data.annotations import (
    COORDINATES,
    Flaw,
    locate_object,
    parse_xml,
    read_box,
    read_flag,
    read_number,
    read_size,
    read_text,
)
from detkt.prepare.findings import Findings

_SAME_OBJECT = 0.9  # overlap (IoU) from which two boxes of one class are taken for one object


@dataclass
class CheckedAnnotation:
    """What is sound in the file, and what only the whole folder can judge.

    size: (width, height), None where it is not given; names: of the sound objects' classes; filename: as the file
    says; origin: <folder> and the folder of <path>; difficult, overshooting: numbers of objects that are so marked,
    or whose box reaches a pixel beyond the picture.
    """

    size: tuple[int, int] | None = None
    names: list[str] = field(default_factory=list)
    filename: str = ""
    origin: tuple[str, str] = ("", "")
    difficult: int = 0
    overshooting: int = 0


def check_annotation(path: Path, findings: Findings) -> CheckedAnnotation | None:
    """Report each flaw of the file; None where it cannot be parsed at all.

    There is an error if and only if `detkt.data.annotations.parse_annotation` refuses the file, or, for data of one's
    own, an object that must be wrong: of a single pixel, or annotated twice.
    """
    try:
        root = parse_xml(path)
    except InputError as error:
        findings.refused(path, error)
        return None
    folder = (root.findtext("path") or "").strip().replace("\\", "/").rpartition("/")[0]
    checked = CheckedAnnotation(
        filename=(root.findtext("filename") or "").strip(), origin=((root.findtext("folder") or "").strip(), folder)
    )
    try:
        checked.size = read_size(root)
    except Flaw as flaw:
        findings.error(path, str(flaw))
    boxes = []
    for index, element in enumerate(root.findall("object")):
        if (box := _check_object(path, index, element, checked, findings)) is not None:
            boxes.append((index, checked.names[-1], box))
    _check_pairs(path, boxes, findings)
    return checked


def _check_object(
    path: Path, index: int, element: Element, checked: CheckedAnnotation, findings: Findings
) -> list[float] | None:
    """The object's box if all of it is sound, as the reader gives it."""
    # Without a size boxes cannot lie outside; that the size is missing is reported already.
    width, height = checked.size or (np.inf, np.inf)
    values, flaws = [], []
    for read in (
        lambda: read_text(element, "name"),
        lambda: read_box(element, width, height),
        lambda: read_flag(element, "difficult"),
        lambda: read_flag(element, "truncated"),
    ):
        try:
            values.append(read())
        except Flaw as flaw:
            flaws.append(str(flaw))
    for flaw in flaws:
        findings.error(path, flaw, locate_object(path, index))
    if flaws:
        return None
    name, box, difficult, _ = values
    checked.names.append(name)
    checked.difficult += difficult
    bndbox = element.find("bndbox")
    given = [read_number(bndbox, key) for key in COORDINATES]
    checked.overshooting += given != box
    sides = box[2] - box[0] + 1, box[3] - box[1] + 1
    if min(sides) < 2:
        shown = ", ".join(f"{value:g}" for value in given)
        what = "a single pixel" if max(sides) < 2 else f"only {min(sides):g} pixel {'wide' if sides[0] < 2 else 'high'}"
        findings.misleading(path, f"box ({shown}) is {what}: draw it anew, or remove it", locate_object(path, index))
    return box


def _check_pairs(path: Path, objects: list[tuple[int, str, list[float]]], findings: Findings) -> None:
    """Report boxes that seem to mark one object twice."""
    overlaps = _overlaps(np.array([box for _, _, box in objects]).reshape(-1, 4))
    for one, other in np.argwhere(np.triu(overlaps, 1) >= _SAME_OBJECT):
        (index, name, box), (second, second_name, second_box) = objects[one], objects[other]
        where = locate_object(path, second)
        if box == second_box and name == second_name:
            findings.misleading(path, f"the same class and box as object {index + 1}: remove one of them", where)
        elif box == second_box:
            findings.note(path, f"the same box as object {index + 1} ('{name}'): one object of two classes?", where)
        elif name == second_name:
            overlap = overlaps[one, other]
            findings.note(
                path, f"overlaps object {index + 1} ('{name}') by {overlap:.2f} (IoU): one object twice?", where
            )


def _overlaps(boxes: np.ndarray) -> np.ndarray:
    """Intersection over union (n, n) of boxes (n, 4) in inclusive pixels."""
    starts, ends = boxes[:, :2], boxes[:, 2:] + 1
    common = np.minimum(ends[:, None], ends) - np.maximum(starts[:, None], starts)
    intersection = common.clip(min=0).prod(axis=2)
    areas = (ends - starts).prod(axis=1)
    return intersection / (areas[:, None] + areas - intersection)
