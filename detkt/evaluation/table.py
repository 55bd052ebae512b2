"""Scores as a text table."""

from __future__ import annotations

import math
from typing import Any


def metrics_table(metrics: dict[str, Any]) -> str:
    """AP in percent per class and in the mean: VOC07 11-point, area, COCO. A class without objects shows ``-``."""
    names = metrics["per_class"]
    width = max(len("class"), *(len(name) for name in names), len("mean"))
    lines = [f"{'class':<{width}}  VOC07   area   COCO"]
    rows = [(name, values["voc07"], values["area"], values["coco"]) for name, values in names.items()]
    rows.append(("mean", metrics["map_voc07"], metrics["map_area"], metrics["map_coco"]))
    for name, *values in rows:
        lines.append(f"{name:<{width}}  " + "  ".join(percent(value) for value in values))
    return "\n".join(lines)


def percent(value: float | None) -> str:
    """A share as a percentage with one decimal, ``-`` where there is none."""
    return f"{'-':>5}" if value is None or math.isnan(value) else f"{100 * value:5.1f}"
