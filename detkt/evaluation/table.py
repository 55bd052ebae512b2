"""Scores as text tables. Columns stand in the order in which the metrics name the means: that which leads first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

# Key of the mean: key of a class's, heading.
COLUMNS = {"map_voc07": ("voc07", "VOC07"), "map_area": ("area", "area"), "map_coco": ("coco", "COCO")}
# Keys of the section "coco" of the metrics, and the names of their rows.
COCO_ROWS = {
    "ap50": "COCO AP50",
    "ap75": "COCO AP75",
    "small": "COCO small",
    "medium": "COCO medium",
    "large": "COCO large",
}


def metrics_table(metrics: dict[str, Any]) -> str:
    """AP in percent per class and in the mean: VOC07 11-point, area and COCO. Without objects it shows ``-``.

    Where *metrics* have a section "coco", rows below the mean show COCO's AP at IoU 0.50 and 0.75 and by size.
    """
    columns = [key for key in metrics if key in COLUMNS]
    rows, coco_rows = _rows(metrics, columns), _coco_rows(metrics)
    width = max(len(name) for name, _ in [("class", None), *rows, *coco_rows])
    before = " " * 7 * columns.index("map_coco")
    lines = [f"{'class':<{width}}" + "".join(f"  {COLUMNS[key][1]:>5}" for key in columns)]
    lines += [f"{name:<{width}}  " + "  ".join(map(percent, values)) for name, values in rows]
    lines += [f"{name:<{width}}  {before}{percent(value)}" for name, value in coco_rows]
    return "\n".join(lines)


def comparison_table(metrics: dict[str, Any], other: dict[str, Any]) -> str:
    """The rows of `metrics_table` for two detectors side by side, and the first's minus the second's.

    *metrics* and *other* have the same classes.
    """
    columns = [key for key in metrics if key in COLUMNS]
    rows, coco_rows = _rows(metrics, columns), _coco_rows(metrics)
    width = max(len(name) for name, _ in [("class", None), *rows, *coco_rows])
    before = " " * 23 * columns.index("map_coco")
    lines = [
        (" " * width + "".join(f"   {COLUMNS[key][1]:^20}" for key in columns)).rstrip(),
        f"{'class':<{width}}" + "    this  other    diff" * len(columns),
    ]
    for (name, ours), (_, theirs) in zip(rows, _rows(other, columns), strict=True):
        cells = map(_side_by_side, ours, theirs)
        lines.append(f"{name:<{width}}" + "".join(cells))
    for (name, our), (_, their) in zip(coco_rows, _coco_rows(other), strict=True):
        lines.append(f"{name:<{width}}{before}" + _side_by_side(our, their))
    return "\n".join(lines)


def intervals_table(metrics: dict[str, Any]) -> str:
    """The bootstrap intervals of mAP in the section "bootstrap" of *metrics*, in percent.

    Where there is a section "compare", also those of the other detector and of the difference, and in how many of
    the resamples this detector was not above the other.
    """
    about = metrics["bootstrap"]
    columns = [key for key in about if key in COLUMNS]
    rows = [("this", about, percent)]
    if "compare" in metrics:
        difference = metrics["compare"]["difference"]
        rows.append(("other", metrics["compare"]["bootstrap"], percent))
        rows.append(("difference", difference, signed))
    lines = [
        f"mAP and its {100 * about['confidence']:g} % interval: {about['resamples']} resamples of the "
        f"{about['pictures']} pictures",
        (" " * 10 + "".join(f"  {COLUMNS[key][1]:^22}" for key in columns)).rstrip(),
    ]
    for name, intervals, written in rows:
        cells = []
        for key in columns:
            value, low, high = (f"{written(intervals[key][end]):>6}" for end in ("value", "low", "high"))
            cells.append(f"{value} [{low}, {high}]")
        lines.append(f"{name:<10}  " + "  ".join(cells))
    if "compare" in metrics:
        shares = [f"{percent(difference[key]['share_at_most_zero']).strip()} % ({COLUMNS[key][1]})" for key in columns]
        told = " and ".join([", ".join(shares[:-1]), shares[-1]])
        lines.append(f"not above the other in {told} of the resamples")
    return "\n".join(lines)


def percent(value: float | None) -> str:
    """A share as a percentage with one decimal, ``-`` where there is none."""
    return f"{'-':>5}" if value is None or math.isnan(value) else f"{100 * value:5.1f}"


def signed(value: float | None) -> str:
    """A difference of shares in points of percent, with its sign."""
    return f"{'-':>6}" if value is None or math.isnan(value) else f"{100 * value:+6.1f}"


def _side_by_side(ours: float | None, theirs: float | None) -> str:
    """Three cells, 23 characters in all."""
    difference = None if ours is None or theirs is None else ours - theirs
    return f"   {percent(ours)}  {percent(theirs)}  {signed(difference)}"


def _rows(metrics: dict[str, Any], columns: Sequence[str]) -> list[tuple[str, list[float | None]]]:
    """(name, its value in each of *columns*) of every class and of the mean."""
    per_class = metrics["per_class"].items()
    rows = [(name, [values[COLUMNS[key][0]] for key in columns]) for name, values in per_class]
    return [*rows, ("mean", [metrics[key] for key in columns])]


def _coco_rows(metrics: dict[str, Any]) -> list[tuple[str, float | None]]:
    coco = metrics.get("coco", {})
    return [(name, coco[key]) for key, name in COCO_ROWS.items() if key in coco]
