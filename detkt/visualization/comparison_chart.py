"""Bar chart of methods: mean score with its spread over seeds, between plain student and teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from detkt.engine.comparison import Row


def comparison_figure(rows: Sequence[Row], measure: str, title: str, teacher: dict[str, Any] | None = None) -> Figure:
    """A bar a method (mean of *measure*, percent), a dot a seed, lines at the plain student's and the teacher's."""
    figure = Figure(figsize=(max(5.0, 0.8 * len(rows) + 2), 4.0), layout="constrained")
    axes = figure.add_subplot()
    rows = sorted(rows, key=lambda row: row.mean(measure))
    values = [100 * row.mean(measure) for row in rows]
    spreads = [100 * (row.spread(measure) or 0.0) for row in rows]
    colours = ["#9aa5b1" if row.method == "none" else "#2f6fab" for row in rows]
    axes.bar(range(len(rows)), values, yerr=spreads, capsize=4, color=colours, zorder=2)
    for position, row in enumerate(rows):
        dots = [100 * run[measure] for run in row.runs]
        axes.plot([position] * len(dots), dots, "o", color="#1b2a38", markersize=3, zorder=3)
    levels = list(values)
    for row in rows:
        if row.method == "none":
            axes.axhline(100 * row.mean(measure), color="#9aa5b1", linestyle=":", label="plain student")
    if teacher is not None:
        axes.axhline(100 * teacher[measure], color="#c0392b", linestyle="--", label="teacher")
        levels.append(100 * teacher[measure])
    # Differences of a few points matter here: the axis starts below the lowest bar, and says so.
    lowest = min(value - spread for value, spread in zip(values, spreads, strict=True))
    axes.set_ylim(max(0.0, lowest - 3), max(levels) + 2)
    axes.set_xticks(range(len(rows)), [row.method for row in rows], rotation=30 if len(rows) > 6 else 0)
    axes.set_ylabel(f"{title} (%), axis cut")
    axes.grid(axis="y", alpha=0.3, zorder=0)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure
