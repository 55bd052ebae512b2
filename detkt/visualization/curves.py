"""Diagrams: precision-recall curves, AP per class, and training curves from `log.jsonl`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from detkt.base.errors import InputError, suggestion
from detkt.evaluation.voc import VocResult
from detkt.visualization.panels import DPI
from detkt.visualization.sources import Average

COLORS = ("#d95f02", "#1b6ca8", "#3a3a3a", "#1b9e77", "#7570b3", "#e7298a", "#a6761d")
"""Of the first, second, third ... model, then again; the first three differ for colour-blind eyes and in print."""

AP_LABELS = {
    "map_voc07": "AP in percent, VOC 2007 (11 points)",
    "map_area": "AP in percent (area)",
    "map_coco": "AP in percent, COCO (IoU 0.50 to 0.95)",
}
_STAGE_SHADES = ("#f6ead2", "#dcebf5", "#eadff2", "#e0f0dc")
_RIM = withStroke(linewidth=2, foreground="white")
_NOT_DRAWN = ("stage", "step", "epoch", "images_per_second")

Log = Sequence[Mapping[str, Any]]


def precision_recall_figure(results: Mapping[str, VocResult], classes: Sequence[str] | None = None) -> Figure:
    """Precision over recall: a diagram a class, a line a model, with its AP in percent.

    Between two detections the precision is that of the second, as in the area under the curve: so lines are stairs.

    results: model -> result of `detkt.evaluation.voc.evaluate`; classes: which (default: those of the first).
    """
    names = list(next(iter(results.values())).curves) if classes is None else list(classes)
    figure, panels = _grid(len(names), 2.4, 2.1)
    for axes, name in zip(panels, names, strict=True):
        axes.set(xlim=(-0.01, 1.02), ylim=(0, 1.03))
        axes.set_title(name, fontsize=9, parse_math=False)
        if not any(result.curves[name].n_ground_truth for result in results.values()):
            axes.text(0.5, 0.5, "no objects", ha="center", va="center", size=8, color="#777777")
            continue
        stairs = []
        for number, result in enumerate(results.values()):
            curve = result.curves[name]
            # From recall 0 on, with the precision of the first detection.
            recall = np.concatenate([np.zeros(min(1, curve.n_detections)), curve.recall])
            precision = np.concatenate([curve.precision[:1], curve.precision])
            axes.plot(recall, precision, color=_color(number), linewidth=1.5, alpha=0.9, drawstyle="steps-pre")
            stairs.append((recall, precision))
        left, bottom = _free_corner(stairs, 0.32, 0.11 * len(results))
        for number, result in enumerate(results.values()):
            height = bottom + 0.11 * (len(results) - 1 - number)
            text = f"AP {100 * result.per_class[name]:.1f}"
            axes.text(left, height, text, size=7, color=_color(number), weight="bold", path_effects=[_RIM])
    figure.supxlabel("recall", fontsize=9)
    figure.supylabel("precision", fontsize=9)
    lines = [Line2D([], [], color=_color(number), linewidth=2) for number in range(len(results))]
    draw_legend(figure, lines, [f"{name}, mAP {100 * result.map:.1f}" for name, result in results.items()])
    return figure


def _free_corner(stairs: Sequence[tuple[np.ndarray, np.ndarray]], width: float, height: float) -> tuple[float, float]:
    """Left lower corner, in a diagram of 1 by 1, for a text of *width* and *height* where curves cross it least.

    stairs: recall and precision of each curve. Tried are the corners left below, right above and right below.
    """
    points = np.concatenate([np.empty((2, 0)), *(_along(*stair) for stair in stairs if len(stair[0]))], axis=1)
    corners = [(0.04, 0.05), (0.97 - width, 0.96 - height), (0.97 - width, 0.05)]

    def crossed(corner: tuple[float, float]) -> int:
        (left, bottom), (recall, precision) = corner, points
        inside = (left <= recall) & (recall <= left + width) & (bottom <= precision) & (precision <= bottom + height)
        return int(np.count_nonzero(inside))

    return min(corners, key=crossed)


def _along(recall: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """(2, n) points a hundredth of the diagram apart on the stairs through these points."""
    x, y = np.repeat(recall, 2)[:-1], np.repeat(precision, 2)[1:]
    length = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    places = np.arange(0, length[-1] + 0.01, 0.01)
    return np.stack([np.interp(places, length, x), np.interp(places, length, y)])


def per_class_ap_figure(averages: Mapping[str, Average], metric: str) -> Figure:
    """Bars of AP in percent: a group a class and one for their mean, a bar a model.

    A class without objects to find has no bars. averages: of each model, of which *metric* is the key.
    """
    first = next(iter(averages.values()))
    names = [*first.per_class, "mean"]
    figure = Figure(figsize=(max(6.0, 1.2 + 0.62 * len(names)), 4.2), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(names), dtype=np.float64)
    places[-1] += 0.5  # the mean stands apart
    width = 0.84 / len(averages)
    for number, (model, average) in enumerate(averages.items()):
        values = 100 * np.array([*average.per_class.values(), average.mean])
        at = places + (number - (len(averages) - 1) / 2) * width
        axes.bar(at, np.nan_to_num(values), width * 0.94, color=_color(number), label=model)
        for x, value in zip(at, values, strict=True):
            if math.isfinite(value):
                axes.text(x, value + 1.2, f"{value:.1f}", rotation=90, ha="center", va="bottom", size=6)
    axes.axvline(places[-1] - 0.75, color="#999999", linewidth=0.8)
    axes.set_xticks(places, names, rotation=40, ha="right", rotation_mode="anchor", fontsize=9)
    axes.set(ylim=(0, 112), yticks=range(0, 101, 20), xlim=(-0.7, places[-1] + 0.7))
    axes.set_ylabel(AP_LABELS[metric])
    axes.grid(axis="y", color="#e3e3e3", linewidth=0.7)
    _quiet_frame(axes)
    draw_legend(figure, *axes.get_legend_handles_labels())
    return figure


def read_log(path: str | PathLike) -> list[dict[str, Any]]:
    """The lines of a ``log.jsonl``, in order. A last line that was cut off when the run was killed is left out.

    Raises InputError: cannot be read, or another line is not a JSON object with a number "step".
    """
    path, entries = Path(path), []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"cannot read the log {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file (UTF-8)") from None
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            float(entry["step"])
        except (ValueError, TypeError, KeyError):
            if number == len(lines):
                break
            raise InputError(
                f"{path}, line {number}: expected a JSON object with a 'step'; mend or remove the line"
            ) from None
        entries.append(entry)
    return entries


def training_curves_figure(logs: Mapping[str, Log]) -> Figure:
    """What one or several runs logged, over their steps: a diagram a quantity, a line a run.

    All losses, the discriminator's accuracies where they were logged (with chance, 0.5, as a line), and the
    learning rate. The ground is shaded by the stages of the run that has most of them.

    Raises InputError where no log holds a number to draw.
    """
    keys = _quantities(logs)
    if not keys:
        raise InputError(f"the logs of {', '.join(logs) or 'no run'} hold nothing to draw; train for longer")
    figure, panels = _grid(len(keys), 3.3, 2.0, columns=4)
    staged = max(logs, key=lambda run: len(_stages(logs[run])))
    stages = _stages(logs[staged])
    shades = {name: _STAGE_SHADES[i % len(_STAGE_SHADES)] for i, name in enumerate(dict.fromkeys(s[0] for s in stages))}
    last = max(entry["step"] for log in logs.values() for entry in log)
    for axes, key in zip(panels, keys, strict=True):
        for stage, begin, end in stages if len(stages) > 1 else ():
            axes.axvspan(begin, end, color=shades[stage], linewidth=0, zorder=0)
        everything: list[Any] = []
        for number, log in enumerate(logs.values()):
            points = [(entry["step"], entry[key]) for entry in log if _drawable(entry.get(key))]
            if not points:
                continue
            steps, values = zip(*points, strict=True)
            everything += values
            marker = "." if len(points) < 3 else None
            axes.plot(steps, values, color=_color(number), linewidth=1.2, marker=marker, zorder=3)
        axes.set_title(key, fontsize=8.5, parse_math=False)
        axes.set_xlim(0, last)
        if "accuracy" in key:
            axes.axhline(0.5, color="#888888", linewidth=0.8, linestyle=":", zorder=2)
            axes.set_ylim(-0.03, 1.03)
        else:
            _logarithmic_if_wide(axes, everything)
    figure.supxlabel("step", fontsize=9)
    handles: list = [Line2D([], [], color=_color(number), linewidth=2) for number in range(len(logs))]
    labels = list(logs)
    if len(stages) > 1:
        handles += [Patch(facecolor=shade, edgecolor="#bbbbbb") for shade in shades.values()]
        whose = f" of {staged}" if len(logs) > 1 else ""
        labels += [f"stage{whose}: {name}" for name in shades]
    draw_legend(figure, handles, labels)
    return figure


def student_curve(log: Log, key: str) -> tuple[list[float], list[float]]:
    """The student's updates at which *key* was logged, counted without the stages in which it does not learn, and the
    values."""
    steps, values, before = [], [], 0.0
    for name, begin, end in _stages(log):
        entries = [entry for entry in log if str(entry.get("stage", "")) == name and begin < entry["step"] <= end]
        if not any("loss" in entry for entry in entries):
            before += end - begin
        drawn = [entry for entry in entries if _drawable(entry.get(key))]
        steps += [entry["step"] - before for entry in drawn]
        values += [entry[key] for entry in drawn]
    return steps, values


def mean_curve(logs: Sequence[Log], key: str) -> tuple[np.ndarray, np.ndarray]:
    """What several runs logged of *key* at the same updates of the student: steps (n,) and values (runs, n).

    The steps are those of the first run that all runs have reached; other runs are interpolated to them.

    Raises InputError where a run logged no such number.
    """
    curves = [student_curve(log, key) for log in logs]
    for log, (steps, _) in zip(logs, curves, strict=True):
        if not steps:
            raise InputError(f"the log holds no '{key}'{suggestion(key, _quantities({'': log}))}; choose another --key")
    low, high = max(steps[0] for steps, _ in curves), min(steps[-1] for steps, _ in curves)
    shared = np.array([step for step in curves[0][0] if low <= step <= high])
    return shared, np.stack([np.interp(shared, steps, values) for steps, values in curves])


def convergence_figure(groups: Mapping[str, Sequence[Log]], key: str) -> Figure:
    """*key* over the student's updates: a line a group of runs, their mean, and a band from the least to the greatest.

    groups: title -> the logs of runs that differ by their seed, one at least. The axis is logarithmic where values
    spread over more than a factor of 20. Raises InputError where a run logged no such number.
    """
    figure = Figure(figsize=(7.0, 4.4), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    everything = []
    for number, (title, logs) in enumerate(groups.items()):
        steps, values = mean_curve(logs, key)
        everything += values.ravel().tolist()
        name = title if len(logs) == 1 else f"{title}, mean of {len(logs)}"
        marker = "." if len(steps) < 3 else None
        axes.plot(steps, values.mean(axis=0), color=_color(number), linewidth=1.5, marker=marker, label=name)
        if len(logs) > 1:
            axes.fill_between(
                steps, values.min(axis=0), values.max(axis=0), color=_color(number), alpha=0.18, linewidth=0
            )
    axes.set_xlabel("updates of the student")
    axes.set_ylabel(key, parse_math=False)
    axes.set_xlim(left=0)
    axes.grid(color="#e3e3e3", linewidth=0.6)
    _quiet_frame(axes)
    _logarithmic_if_wide(axes, everything)
    draw_legend(figure, *axes.get_legend_handles_labels())
    return figure


def _logarithmic_if_wide(axes: Axes, values: Sequence[float]) -> None:
    if min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")


def _quantities(logs: Mapping[str, Log]) -> list[str]:
    """What can be drawn: the total loss first, the learning rate last, the rest in the order of the logs."""
    found = dict.fromkeys(
        key
        for log in logs.values()
        for entry in log
        for key, value in entry.items()
        if key not in _NOT_DRAWN and _drawable(value)
    )
    return sorted(found, key=lambda key: {"loss": 0, "lr": 2}.get(key, 1))


def _drawable(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _stages(log: Log) -> list[tuple[str, float, float]]:
    """(stage, first step, last step), in order; steps count from 0 at the start of the run."""
    stages, begin = [], 0.0
    for name, entries in groupby(log, key=lambda entry: str(entry.get("stage", ""))):
        end = float([entry["step"] for entry in entries][-1])
        stages.append((name, begin, end))
        begin = end
    return stages


def _grid(count: int, width: float, height: float, columns: int = 5) -> tuple[Figure, list[Axes]]:
    rows = -(-count // columns)
    columns = -(-count // rows)
    # Wide enough for a legend, however few diagrams there are.
    size = (max(columns * width, 5.5) + 0.4, rows * height + 0.9)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    panels = [figure.add_subplot(rows, columns, number + 1) for number in range(count)]
    for axes in panels:
        axes.tick_params(labelsize=7, which="both")
        axes.grid(color="#e3e3e3", linewidth=0.6)
        _quiet_frame(axes)
    return figure, panels


def _quiet_frame(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)


def draw_legend(figure: Figure, handles: Sequence, labels: Sequence[str]) -> None:
    """Above the diagrams, in as many columns as the longest label leaves room for."""
    inches = max(2.0, 0.6 + 0.075 * max(map(len, labels), default=0))
    columns = max(1, min(len(labels), int(figure.get_figwidth() / inches)))
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False, fontsize=8.5)


def _color(number: int) -> str:
    return COLORS[number % len(COLORS)]
