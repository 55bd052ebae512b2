"""The charts of a comparison draw its numbers: means, ends of intervals, seeds, curves."""

from __future__ import annotations

import pytest

from detkt.engine.comparison import Row
from detkt.engine.differences import compare
from detkt.visualization.comparison_chart import comparison_figure, learning_figure


def row(method, scores, curves=None):
    runs = [{"method": method, "seed": seed, "top1": score} for seed, score in enumerate(scores)]
    for run, curve in zip(runs, curves or [], strict=False):
        run["curve"] = [{"updates": 10 * (i + 1), "top1": score} for i, score in enumerate(curve)]
    return Row(method, runs, [None] * len(runs))


def lines(axes):
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()]


def test_intervals_are_drawn_where_the_comparison_has_them():
    comparison = compare([row("kd", [0.6, 0.7, 0.9]), row("none", [0.5, 0.6, 0.7])], "top1")
    scores, differences = comparison_figure(comparison, "top-1", {"top1": 0.95}).axes
    assert [label.get_text() for label in scores.get_yticklabels()] == ["none", "kd"], "the best above"
    for axes, estimate, place in (
        (scores, comparison.estimates["none"], 0),
        (scores, comparison.estimates["kd"], 1),
        (differences, comparison.differences["kd"], 1),
    ):
        drawn = lines(axes)
        assert (pytest.approx([100 * estimate.low, 100 * estimate.high]), [place, place]) in drawn
        assert (pytest.approx([100 * estimate.value]), [place]) in drawn
    assert (pytest.approx([60, 70, 90]), [0.78] * 3) in lines(scores)
    assert [0, 0] in [xs for xs, _ in lines(differences)]
    for axes in (scores, differences):
        left, right = axes.get_xlim()
        assert all(left <= x <= right for xs, _ in lines(axes) for x in xs), "nothing is cut off"


def test_a_score_that_cannot_be_measured_is_not_drawn():
    rows = [row("kd", [float("nan")] * 2), row("none", [float("nan")] * 2)]
    scores, _ = comparison_figure(compare(rows, "top1"), "top-1", {"top1": None}).axes
    assert "teacher" not in scores.get_legend_handles_labels()[1]


def test_without_a_plain_student_there_are_scores_alone():
    figure = comparison_figure(compare([row("kd", [0.6]), row("at", [0.7])], "top1"), "top-1")
    assert len(figure.axes) == 1


def test_curves_are_means_over_the_seeds_with_the_goal():
    rows = [row("none", [0.5] * 2, [[0.1, 0.5], [0.3, 0.7]]), row("kd", [0.5], [[0.4, 0.8]]), row("at", [0.5])]
    figure = learning_figure(compare(rows, "top1"), "top-1")
    (axes,) = figure.axes
    drawn = lines(axes)
    assert drawn[:2] == [([10, 20], pytest.approx([20, 60])), ([10, 20], pytest.approx([40, 80]))]
    assert drawn[2][1] == pytest.approx([60, 60])
    (band,) = axes.collections
    assert sorted({round(y) for _, y in band.get_paths()[0].vertices}) == [10, 30, 50, 70]
    assert learning_figure(compare([row("none", [0.5])], "top1"), "top-1") is None


def test_the_legend_of_curves_with_long_names_stays_on_the_picture():
    rows = [row(f"a-run-of-fcos-with-method-{i}", [0.5], [[0.1 * i, 0.5]]) for i in range(5)]
    figure = learning_figure(compare(rows, "top1", rows[0].method), "top-1")
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
