"""What each form of a network is worth: size, time, score, and how many boxes differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from detkt.evaluation.records import Records
from detkt.export.measuring import Latency

EXACT, NEAR = (0.01, 1e-3), (1.0, 0.05)
"""Pixels and score up to which two detections are the same, and about the same."""
_TITLES = {"map_voc07": "VOC07", "map_coco": "COCO"}


@dataclass
class Row:
    """One form of the network.

    name: "torch", "ONNX INT8" …; files: of it; latencies: with 1 and all threads; scores: as in ``metrics.json``, None
    where there was nothing to score on; intervals: of mAP, where there were resamples; differing, moved: of *boxes*
    boxes, torch's and its own, those that the other has not within :data:`EXACT` and :data:`NEAR`; note: how it was
    made.
    """

    name: str
    files: tuple[Path, ...] = ()
    latencies: tuple[Latency, ...] = ()
    scores: dict[str, Any] | None = None
    intervals: dict[str, Any] = field(default_factory=dict)
    differing: int | None = None
    moved: int | None = None
    boxes: int | None = None
    note: str = ""

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.files)


def differing(first: Records, second: Records, within: tuple[float, float]) -> tuple[int, int]:
    """How many boxes of both have no partner in the other's, of one label, place and score; and how many there are.

    within: pixels and score that partners may be apart.
    """
    apart = total = 0
    for picture in first.keys() | second.keys():
        one, other = (found.get(picture, {"boxes": [], "labels": [], "scores": []}) for found in (first, second))
        total += len(one["labels"]) + len(other["labels"])
        apart += _without_partner(one, other, within) + _without_partner(other, one, within)
    return apart, total


def _without_partner(one: Mapping[str, Any], other: Mapping[str, Any], within: tuple[float, float]) -> int:
    if not len(one["labels"]) or not len(other["labels"]):
        return len(one["labels"])
    boxes = np.abs(np.asarray(one["boxes"])[:, None] - np.asarray(other["boxes"])).max(2) <= within[0]
    scores = np.abs(np.asarray(one["scores"])[:, None] - np.asarray(other["scores"])) <= within[1]
    labels = np.asarray(one["labels"])[:, None] == np.asarray(other["labels"])
    return int((~(boxes & scores & labels).any(1)).sum())


def export_table(rows: Sequence[Row], lead: str = "map_voc07") -> str:
    """A line a form: MB, milliseconds a picture, mAP (VOC07, COCO; the one that *lead* names comes first) and what it
    gains or loses of that, boxes that differ."""
    titles = ["form", "MB"]
    titles += [f"ms, {latency.threads} thread{'s' * (latency.threads > 1)}" for latency in rows[0].latencies]
    scored = rows[0].scores is not None
    keys = sorted(_TITLES, key=lambda key: key != lead)
    titles += [*(_TITLES[key] for key in keys), "change", "boxes differ", "by > 1 px"] if scored else []
    lines = [titles]
    for row in rows:
        cells = [row.name, f"{row.size / 1e6:.2f}", *map(str, row.latencies)]
        if scored and row.scores is not None and rows[0].scores is not None:
            loss = row.scores[lead] - rows[0].scores[lead]
            cells += [percent2(row.scores[key]) for key in keys]
            cells.append("-" if row is rows[0] else f"{100 * loss:+.2f}")
            cells += ["-", "-"] if row.differing is None else [f"{row.differing} of {row.boxes}", str(row.moved)]
        lines.append(cells)
    widths = [max(len(line[column]) for line in lines if column < len(line)) for column in range(len(titles))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if not place else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=False))
        )
        for line in lines
    )


def percent2(value: float | None) -> str:
    """A share as a percentage with two decimals."""
    return "-" if value is None or value != value else f"{100 * value:.2f}"


def numbers(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows for JSON."""
    return [
        {
            "form": row.name,
            "files": [path.name for path in row.files],
            "bytes": row.size,
            "milliseconds": [latency.numbers() for latency in row.latencies],
            "scores": row.scores,
            "intervals": row.intervals,
            "boxes_that_differ": row.differing,
            "boxes_that_moved": row.moved,
            "boxes": row.boxes,
            "note": row.note,
        }
        for row in rows
    ]
