"""Bars of a benchmark's step times, with the floor that distillation steps are held to."""

from __future__ import annotations

import statistics
from typing import Any

from matplotlib.figure import Figure

from benchmarking.subjects import STUDENT, TEACHER

ALLOWED = 1.1


def benchmark_figure(report: dict[str, Any]) -> Figure:
    """A bar for the student's step, the teacher's forward, each method's last stage and each other loop.

    report: of `benchmarking.measuring.run_benchmark`. A method's bar bears its ratio to its floor.
    """
    last = {name: method["stage"] for name, method in report["methods"].items()}
    bars = {STUDENT: STUDENT, "teacher's\nbackbone": TEACHER, **last, **{name: name for name in report["against"]}}
    heights = [1000 * statistics.median(report["times"][subject]["seconds"]) for subject in bars.values()]
    colours = [_colour(title, last) for title in bars]
    figure = Figure(figsize=(max(5.0, 1.1 * len(bars) + 1.5), 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.bar(range(len(bars)), heights, color=colours, zorder=2)
    for position, title in enumerate(bars):
        if title in last:
            text = f"{report['methods'][title]['ratio']['median']:.2f} x\nits floor"
            middle = (position, heights[position] / 2)
            axes.annotate(text, middle, ha="center", va="center", fontsize=9, color="white", zorder=4)
    floor = heights[0] + heights[1]
    axes.axhline(floor, color="#c0392b", linestyle="-", linewidth=1.2, label="student + teacher's backbone", zorder=3)
    label = f"{ALLOWED:.2f} x that"
    axes.axhline(ALLOWED * floor, color="#c0392b", linestyle=":", linewidth=1.2, label=label, zorder=3)
    axes.set_ylim(0, 1.12 * max(*heights, ALLOWED * floor))
    axes.set_xticks(range(len(bars)), [title.replace(", ", ",\n") for title in bars], fontsize=9)
    axes.set_ylabel("ms a step (median)")
    config = report["config"]
    axes.set_title(f"{config['name']}, batch {report['batch_size']}, {report['precision']}, {report['device']}")
    axes.grid(axis="y", alpha=0.3, zorder=0)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def _colour(title: str, methods: dict[str, str]) -> str:
    if title in methods:
        return "#2f6fab"
    return "#9aa5b1" if title in (STUDENT, "teacher's\nbackbone") else "#d9a441"
