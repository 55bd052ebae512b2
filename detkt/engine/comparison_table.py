"""A comparison as a table: in Markdown, aligned so that a terminal shows it as well."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from detkt.engine.comparison import Row
from detkt.engine.differences import Comparison, Difference, Reached
from detkt.evaluation.significance import LEVEL


def markdown_table(
    comparison: Comparison,
    measures: Mapping[str, str],
    paper: Mapping[str, float],
    teacher: Mapping[str, Any] | None = None,
) -> str:
    """Mean ± standard deviation in percent, what differs, the budget, the wall time, and the paper's numbers.

    measures: key of ``metrics.json`` -> column title. The wall time is the median run's: one that another process held
    up would move the mean. Columns that would be empty are left out; warnings follow the table. A row that never
    reached the score of the row compared with is told as ``never``, one whose curve is not known as –.
    """
    against = comparison.against
    columns = ["method", "seeds", *measures.values()]
    if comparison.differences:
        columns += [f"Δ {measures[comparison.measure]} to {against} [95 %]", "interval holds", "pairs", "p"]
    if comparison.reached:
        columns.append(f"updates to {against}'s last val score")
    columns += ["updates", "seconds"] + ["paper"] * bool(paper)
    lines = [columns]
    for row in comparison.rows:
        cells = [row.method, str(len(row.runs))]
        cells += [_with_spread(row, measure) for measure in measures]
        if comparison.differences:
            cells += _difference(comparison.differences.get(row.method))
        if comparison.reached:
            cells.append(_reached(comparison.reached.get(row.method)))
        seconds = statistics.median(run["seconds"] for run in row.runs)
        cells += [f"{row.mean('updates'):.0f}", f"{seconds:.0f}"] + [_paper(paper, row.method)] * bool(paper)
        lines.append(cells)
    if teacher is not None:
        scores = [_percent(teacher.get(measure)) for measure in measures]
        cells = ["teacher", "1", *scores]
        cells += ["–"] * (len(columns) - len(cells) - bool(paper)) + [_paper(paper, "teacher")] * bool(paper)
        lines.append(cells)
    return "\n".join([_aligned(lines), *(f"\n{warning}." for warning in comparison.warnings)])


def _aligned(lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    return "\n".join([padded[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *padded[1:]])


def _difference(found: Difference | None) -> list[str]:
    if found is None or not found.pairs:
        return ["–"] * 4
    ends = "" if found.low is None or found.high is None else f" [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    p = f"{found.p:.3f}" if found.p >= 0.001 else f"{found.p:.1g}"  # never 0
    p += " *" if found.p < LEVEL else ""
    return [f"{100 * found.value:+.1f}{ends}", found.holds, str(found.pairs), p]


def _reached(found: Reached | None) -> str:
    if found is None:
        return "–"
    if found.updates is None or found.share is None:
        return "never"
    return f"{found.updates} ({100 * found.share:.0f} %)"


def _paper(paper: Mapping[str, float], method: str) -> str:
    return f"{paper[method]:.1f}" if method in paper and math.isfinite(paper[method]) else "–"


def _with_spread(row: Row, measure: str) -> str:
    mean, spread = _percent(row.mean(measure)), row.spread(measure)
    return mean if spread is None else f"{mean} ± {100 * spread:.1f}"


def _percent(share: float | None) -> str:
    return "–" if share is None or math.isnan(share) else f"{100 * share:.1f}"
