"""All flaws of a VOC annotation file, where its reader stops at the first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

import numpy as np
import torch
from torchvision.ops import box_iou

from detkt.base.errors import InputError
from detkt.data.annotated import shown
from detkt.data.annotations import Annotation, locate_object, parse_xml, read_annotation
from detkt.data.boxes import voc_to_corners
from detkt.prepare.findings import Findings

_SAME_OBJECT = 0.9  # overlap (IoU) from which two boxes of one class are taken for one object

_NAMES = ("filename", "folder", "path")


@dataclass(frozen=True)
class CheckedAnnotation:
    """What is sound in the file, and what only the whole folder can judge.

    filename: as the file says; origin: <folder> and the folder of <path>.
    """

    found: Annotation
    filename: str
    origin: tuple[str, str]


def check_annotation(
    path: Path, findings: Findings, boxes: str, picture_size: Callable[[], tuple[int, int] | None]
) -> CheckedAnnotation | None:
    """Report each flaw of the file; None where it cannot be parsed at all.

    boxes, picture_size: see `parse_annotation`, at whose refusals training stops; misleading are besides objects that
    must be wrong: of a single pixel, or annotated twice.
    """
    try:
        root = parse_xml(path)
    except InputError as error:
        findings.refused(path, error)
        return None
    found, flaws = read_annotation(root, boxes, picture_size)
    for index, what in flaws:
        findings.error(path, what, locate_object(path, index))
    _check_small(path, found, findings)
    _check_pairs(path, found, findings)
    filename, folder, place = (normalize("NFC", (root.findtext(key) or "").strip()) for key in _NAMES)
    return CheckedAnnotation(found, filename, (folder, place.replace("\\", "/").rpartition("/")[0]))


def _check_small(path: Path, found: Annotation, findings: Findings) -> None:
    for row, box in zip(found.rows, found.given.tolist(), strict=True):
        sides = box[2] - box[0] + 1, box[3] - box[1] + 1
        if min(sides) < 2:
            side = f"only {min(sides):g} pixel {'wide' if sides[0] < 2 else 'high'}"
            what = "a single pixel" if max(sides) < 2 else side
            findings.misleading(
                path, f"box ({shown(box)}) is {what}: draw it anew, or remove it", locate_object(path, row)
            )


def _check_pairs(path: Path, found: Annotation, findings: Findings) -> None:
    """Report boxes that seem to mark one object twice."""
    shared = overlaps(voc_to_corners(found.boxes))
    for one, other in np.argwhere(np.triu(shared, 1) >= _SAME_OBJECT):
        where, first = locate_object(path, found.rows[other]), f"object {found.rows[one] + 1}"
        same_class, same_box = found.names[one] == found.names[other], (found.given[one] == found.given[other]).all()
        if same_box and same_class:
            findings.misleading(path, f"the same class and box as {first}: remove one of them", where)
        elif same_box:
            what = f"the same box as {first} ('{found.names[one]}'): one object of two classes?"
            findings.note(path, what, where)
        elif same_class:
            what = f"overlaps {first} ('{found.names[one]}') by {shared[one, other]:.2f} (IoU): one object twice?"
            findings.note(path, what, where)


def overlaps(boxes: np.ndarray) -> np.ndarray:
    """Intersection over union (n, n) of corner boxes (n, 4)."""
    corners = torch.from_numpy(boxes)
    return box_iou(corners, corners).numpy()
