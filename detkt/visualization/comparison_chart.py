"""Charts of a comparison: scores and differences with their intervals, and scores while the students learn."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from detkt.engine.comparison import Row
from detkt.engine.differences import Comparison, Estimate, mean_curve
from detkt.visualization.curves import COLORS, draw_legend

_PLAIN, _OTHER = "#7a8590", "#2f6fab"


def comparison_figure(comparison: Comparison, title: str, teacher: dict[str, Any] | None = None) -> Figure:
    """A line a method, the best above: its mean with a 95 % interval and a dot a seed, lines at the row compared with
    and at the teacher; beside it the differences with theirs.

    title: of the score, which is drawn in percent.
    """
    measure, against = comparison.measure, comparison.against
    rows = sorted(comparison.rows, key=lambda row: row.mean(measure))
    figure = Figure(figsize=(11.0 if against else 6.5, max(2.8, 0.42 * len(rows) + 1.7)), layout="constrained")
    panels = figure.subplots(1, 2 if against else 1, sharey=True, squeeze=False)[0]
    colours = [_PLAIN if row.method == against else _OTHER for row in rows]
    for place, (row, colour) in enumerate(zip(rows, colours, strict=True)):
        seeds = [100 * run[measure] for run in row.runs]
        panels[0].plot(seeds, [place - 0.22] * len(seeds), ".", color=colour, alpha=0.5, markersize=5)
        _whisker(panels[0], comparison.estimates[row.method], place, colour)
        if against and row.method in comparison.differences:
            _whisker(panels[1], comparison.differences[row.method], place, colour)
    if teacher is not None and teacher.get(measure) is not None:
        panels[0].axvline(100 * teacher[measure], color="#c0392b", linestyle="--", label="teacher")
    if against:
        panels[0].axvline(100 * comparison.estimates[against].value, color=_PLAIN, linestyle=":", label=against)
        panels[1].axvline(0, color=_PLAIN, linestyle=":")
        panels[1].set_xlabel(f"difference to {against} in pairs of one seed, points", parse_math=False)
    panels[0].set_yticks(range(len(rows)), [row.method for row in rows], parse_math=False)
    panels[0].set_ylim(-0.7, len(rows) - 0.3)
    panels[0].set_xlabel(f"{title} (%): mean, 95 % interval, seeds")
    for axes in panels:
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    if panels[0].get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def _whisker(axes: Axes, estimate: Estimate, place: int, colour: str) -> None:
    if estimate.low is not None and estimate.high is not None:
        axes.plot([100 * estimate.low, 100 * estimate.high], [place, place], color=colour, linewidth=2)
    axes.plot([100 * estimate.value], [place], "o", color=colour, markersize=6)


def learning_figure(comparison: Comparison, title: str) -> Figure | None:
    """Scores on ``data.val`` over the student's updates: a line a method, the mean over its seeds, and a band from the
    least to the greatest. None where no run was validated while it learnt."""
    drawn = [row for row in comparison.rows if mean_curve(row, comparison.measure)]
    if not drawn:
        return None
    figure = Figure(figsize=(7.0, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for number, row in enumerate(drawn):
        steps, means = zip(*mean_curve(row, comparison.measure), strict=True)
        colour = COLORS[number % len(COLORS)]
        marker = "." if len(steps) < 4 else None
        axes.plot(steps, [100 * mean for mean in means], color=colour, label=row.method, marker=marker)
        if len(row.runs) > 1:
            seeds = [[mean for _, mean in mean_curve(Row(row.method, [run]), comparison.measure)] for run in row.runs]
            if len({len(each) for each in seeds}) == 1 and len(seeds[0]) == len(steps):
                low, high = ([100 * pick(values) for values in zip(*seeds, strict=True)] for pick in (min, max))
                axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    if comparison.against and comparison.reached:
        base = next(row for row in comparison.rows if row.method == comparison.against)
        goal = 100 * mean_curve(base, comparison.measure)[-1][1]
        axes.axhline(goal, color=_PLAIN, linestyle=":", label=f"last of {comparison.against}")
    axes.set_xlabel("updates of the student")
    axes.set_ylabel(f"{title} (%) on data.val")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    draw_legend(figure, *axes.get_legend_handles_labels())
    return figure
