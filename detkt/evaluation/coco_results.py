"""COCO result files: one JSON list, an entry a detection, as pycocotools' ``loadRes`` reads and most detectors write.

``[{"image_id": 12, "category_id": 3, "bbox": [x, y, width, height], "score": 0.9}, …]``: x and y count from 0, at the
left upper edge of the first pixel, and the width reaches from edge to edge. Other keys are passed over. For what the
ids mean see `detkt.evaluation.coco_ids`.
"""

from __future__ import annotations

import json
import math
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from detkt.base.errors import InputError, cut
from detkt.base.files import load_json, write_atomically
from detkt.data.boxes import corners_to_voc
from detkt.evaluation.coco import to_coco_results
from detkt.evaluation.coco_ids import CocoIds, DatasetIds, OtherClass, UnknownId, is_id
from detkt.evaluation.records import Records

EXPECTED = '[{"image_id": …, "category_id": …, "bbox": [x, y, width, height], "score": …}, …]'


def write_coco_results(path: str | PathLike, detections: Records, ids: CocoIds) -> None:
    """Write *detections* (as in `detkt.evaluation.records`) to the file *path*: it is whole or not there.

    Entries have "category_name", too. Boxes and scores keep all their digits, so that what is read again scores the
    same. An inverted box, as somebody's VOC files may hold, becomes an empty one.

    Raises InputError: a picture or a class without an id in *ids*; the file cannot be written.
    """
    lines = []
    for entry in to_coco_results(detections, {picture: {} for picture in ids.pictures}, ids.classes):
        x, y, width, height = entry["bbox"]
        entry["bbox"] = [x, y, max(0.0, width), max(0.0, height)]
        picture, name = ids.pictures[entry["image_id"] - 1], ids.classes[entry["category_id"] - 1]
        try:
            entry |= {"image_id": ids.image_id(picture), "category_id": ids.category_id(name), "category_name": name}
        except UnknownId as flaw:
            raise InputError(f"{path} cannot be written: {flaw}") from None
        lines.append(json.dumps(entry, ensure_ascii=False))
    content = "[\n" + ",\n".join(lines) + "\n]\n" if lines else "[]\n"
    write_atomically(Path(path), lambda temporary: temporary.write_text(content, encoding="utf-8"))


def read_coco_results(path: str | PathLike, ids: CocoIds) -> dict[str, dict[str, Any]]:
    """Read the file *path* into detections: picture -> boxes (n, 4) x1 y1 x2 y2 1-based inclusive, scores (n,), labels
    n class names; pictures, and the detections in each, in the order of the file.

    The file may also be a COCO data set whose annotations have scores; then it says itself what its ids mean.

    Raises InputError: the file is no list of detections, or an entry (named by its place, which counts from 0) lacks a
    key, holds a number that is not finite or a box of negative size, or is of a picture or class not in *ids*.
    """
    entries = load_json(path)
    if isinstance(entries, dict) and ("images" in entries or "annotations" in entries):
        found = entries.get("annotations")
        if not isinstance(found, list) or not any(isinstance(entry, dict) and "score" in entry for entry in found):
            raise InputError(f"{path} is a COCO data set without scores, and no results, which are a list {EXPECTED}")
        if "images" in entries:  # then it says itself what its ids mean
            ids = DatasetIds(ids.pictures, ids.classes, path, entries, ids.others)
        entries = found
    if not isinstance(entries, list):
        raise InputError(f"{path} holds {_kind(entries)}, but results are a list {EXPECTED}")
    rows: dict[str, list[tuple[list[float], float, str]]] = {}
    for index, entry in enumerate(entries):
        try:
            picture, row = _parse(entry, ids)
        except OtherClass:
            continue
        except (_Flaw, UnknownId) as flaw:
            raise InputError(f"{path}, entry {index} (the first is 0): {flaw}") from None
        rows.setdefault(picture, []).append(row)
    return {picture: _record(found) for picture, found in rows.items()}


class _Flaw(Exception):
    """What is wrong with an entry, as found by a function that does not know where it stands."""


def _parse(entry: Any, ids: CocoIds) -> tuple[str, tuple[list[float], float, str]]:
    """(picture, ([x, y, width, height], score, class)) of an entry."""
    if not isinstance(entry, dict):
        raise _Flaw(f"it is {_kind(entry)}, no detection; expected {EXPECTED}")
    missing = [key for key in ("image_id", "category_id", "bbox", "score") if key not in entry]
    if missing:
        raise _Flaw(f"it lacks '{missing[0]}'; expected {EXPECTED}")
    image_id, box, score = entry["image_id"], entry["bbox"], entry["score"]
    if not is_id(image_id):
        raise _Flaw(f"image_id {cut(json.dumps(image_id))} is neither a whole number nor a name")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
        raise _Flaw(f"bbox {cut(json.dumps(box))} is not of four finite numbers x, y, width, height")
    if min(box[2:]) < 0:
        raise _Flaw(f"bbox {cut(json.dumps(box))} has a negative width or height; expected x, y, width, height")
    if not _is_finite(score):
        raise _Flaw(f"score {cut(json.dumps(score))} is not a finite number")
    return ids.picture(image_id), (box, score, ids.class_name(entry))


def _record(rows: list[tuple[list[float], float, str]]) -> dict[str, Any]:
    boxes = np.array([box for box, _, _ in rows], dtype=np.float64)
    corners = np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])
    return {
        "boxes": corners_to_voc(corners),
        "scores": np.array([score for _, score, _ in rows], dtype=np.float64),
        "labels": [name for _, _, name in rows],
    }


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
