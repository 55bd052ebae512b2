"""Counts of what distillation changed: gained and lost objects, removed and new errors, by class, size and kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from detkt.visualization.judging import ERRORS, Judged
from detkt.visualization.matching import DISTILLED, STUDENT, Comparison, PictureChanges

SIZES = ("small", "medium", "large")
SIZE_LIMITS = (32**2, 96**2)
"""COCO's areas in pixels: small below the first, large from the second on."""

Row = dict[str, Any]


def box_sizes(boxes: np.ndarray) -> list[str]:
    """ "small", "medium" or "large" for each VOC box (n, 4), both end pixels counted, by COCO's areas."""
    x1, y1, x2, y2 = np.asarray(boxes, dtype=np.float64).reshape(-1, 4).T
    areas = (x2 - x1 + 1) * (y2 - y1 + 1)
    return [SIZES[number] for number in np.searchsorted(SIZE_LIMITS, areas, side="right")]


def change_tables(comparison: Comparison) -> dict[str, Any]:
    """All counts, ready for JSON.

    "total", every row of "per_class" (class -> row) and of "per_size" (size -> row) hold: "objects" (without
    difficult ones), "found" and "errors" (model -> number), "gained", "lost" (objects), "removed", "new" (errors).
    An object has its own size and an error that of its box. "per_error" (kind -> row) holds "errors", "removed" and
    "new". "difficult", apart from all the others: "objects", "found", "gained" and "lost".
    """
    models = comparison.models
    total = _empty(models)
    per_class = {name: _empty(models) for name in comparison.classes}
    per_size = {size: _empty(models) for size in SIZES}
    per_error = {str(kind): _empty(models, objects=False) for kind in ERRORS}
    difficult = _empty(models, errors=False)
    for changes in comparison.pictures.values():
        sizes = box_sizes(changes.boxes)
        _count_objects(changes, sizes, total, per_class, per_size, difficult)
        for role, judged in changes.models.items():
            sizes = box_sizes(judged.boxes)
            gone = {STUDENT: ("removed", changes.removed), DISTILLED: ("new", changes.new)}.get(role)
            for i in judged.errors.tolist():
                rows = (total, per_class[judged.labels[i]], per_size[sizes[i]], per_error[judged.verdicts[i]])
                for row in rows:
                    row["errors"][role] += 1
                    if gone is not None and i in gone[1]:
                        row[gone[0]] += 1
    return {
        "total": total,
        "per_class": per_class,
        "per_size": per_size,
        "per_error": per_error,
        "difficult": difficult,
    }


def _empty(models: Sequence[str], objects: bool = True, errors: bool = True) -> Row:
    row: Row = {}
    if objects:
        row |= {"objects": 0, "found": dict.fromkeys(models, 0), "gained": 0, "lost": 0}
    if errors:
        row |= {"errors": dict.fromkeys(models, 0), "removed": 0, "new": 0}
    return row


def _count_objects(
    changes: PictureChanges, sizes: list[str], total: Row, per_class: dict, per_size: dict, difficult: Row
) -> None:
    for k, name in enumerate(changes.labels):
        apart = bool(changes.difficult[k])
        for row in (difficult,) if apart else (total, per_class[name], per_size[sizes[k]]):
            row["objects"] += 1
            for role, judged in changes.models.items():
                row["found"][role] += int(judged.found[k])
            row["gained"] += int(k in (changes.gained_difficult if apart else changes.gained))
            row["lost"] += int(k in (changes.lost_difficult if apart else changes.lost))


def picture_records(comparison: Comparison) -> dict[str, Any]:
    """Picture id -> what changed in it, ready for JSON; pictures in which nothing did are left out.

    "gained", "lost": objects, each with "label", "box", "size", and "score" of the detection that found it;
    "removed", "new": errors, each with "label", "box", "size", "score", "kind" and "iou" with the object it is about.
    Boxes are VOC's x1 y1 x2 y2, 1-based inclusive pixels. Difficult objects are not among them.
    """
    records = {}
    for picture, changes in comparison.pictures.items():
        before, after = changes.models[STUDENT], changes.models[DISTILLED]
        record = {
            "gained": [_object_record(changes, k, after) for k in changes.gained.tolist()],
            "lost": [_object_record(changes, k, before) for k in changes.lost.tolist()],
            "removed": [_error_record(before, i) for i in changes.removed.tolist()],
            "new": [_error_record(after, i) for i in changes.new.tolist()],
        }
        if any(record.values()):
            records[str(picture)] = record
    return records


def _object_record(changes: PictureChanges, k: int, finder: Judged) -> Row:
    return {
        "label": changes.labels[k],
        "box": changes.boxes[k].tolist(),
        "size": box_sizes(changes.boxes[k])[0],
        "score": float(finder.scores[finder.finder[k]]),
    }


def _error_record(judged: Judged, i: int) -> Row:
    return {
        "label": judged.labels[i],
        "box": judged.boxes[i].tolist(),
        "size": box_sizes(judged.boxes[i])[0],
        "score": float(judged.scores[i]),
        "kind": str(judged.verdicts[i]),
        "iou": float(judged.iou[i]),
    }


def _reader(*keys: str) -> Callable[[Row], int | None]:
    """What reads the number under *keys*, one below the other, of a row; None where there is none."""

    def read(row: Row) -> int | None:
        *above, last = keys
        for key in above:
            row = row.get(key, {})
        return row.get(last)

    return read


def tables_text(tables: dict[str, Any]) -> str:
    """The tables of `change_tables` as text: classes, sizes and their sum, then the kinds of errors."""
    models = list(tables["total"]["found"])
    columns: list[tuple[str, Callable[[Row], int | None]]] = [("objects", _reader("objects"))]
    columns += [(model, _reader("found", model)) for model in models]
    columns += [(name, _reader(name)) for name in ("gained", "lost")]
    n_found = len(columns)
    columns += [(model, _reader("errors", model)) for model in models]
    columns += [(name, _reader(name)) for name in ("removed", "new")]
    groups = [
        [(name, row) for name, row in tables["per_class"].items()],
        [(f"size: {size}", row) for size, row in tables["per_size"].items()],
        [("all", tables["total"]), ("difficult (apart)", tables["difficult"])],
        [(f"error: {kind}", row) for kind, row in tables["per_error"].items()],
    ]
    first = max(len(name) for group in groups for name, _ in group)
    widths = [max(len(title), 7) for title, _ in columns]

    def line(name: str, cells: Sequence[str]) -> str:
        padded = [f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)]
        return f"{name:<{first}}  {' '.join(padded[:n_found])}  | {' '.join(padded[n_found:])}".rstrip()

    found_width = sum(widths[1:n_found]) + n_found - 2
    lines = [
        f"{'':<{first}}  {'':{widths[0]}} {'found by':<{found_width}}  | errors (false detections) of",
        line("", [title for title, _ in columns]),
    ]
    for group in groups:
        lines.append("-" * len(lines[1]))
        for name, row in group:
            values = [value(row) for _, value in columns]
            lines.append(line(name, ["" if v is None else str(v) for v in values]))
    return "\n".join(lines)
