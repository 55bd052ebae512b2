"""What the diagrams hold: lines, bars, shaded stages."""

from __future__ import annotations

import json

import numpy as np
import pytest
from comparison_records import found, objects

from detkt.base.errors import InputError
from detkt.evaluation.voc import evaluate
from detkt.visualization.curves import (
    convergence_figure,
    mean_curve,
    per_class_ap_figure,
    precision_recall_figure,
    read_log,
    student_curve,
    training_curves_figure,
)
from detkt.visualization.sources import Average

TRUTH = {"a": objects(("dog", 0, 1, 1, 20, 20), ("dog", 0, 31, 1, 50, 20), ("cat", 0, 1, 31, 20, 50))}
CLASSES = ["cat", "cow", "dog"]


@pytest.fixture
def results():
    hit, miss, second = ("dog", 0.9, 1, 1, 20, 20), ("dog", 0.8, 60, 60, 70, 70), ("dog", 0.7, 31, 1, 50, 20)
    student = {"a": found(hit, miss, second)}
    distilled = {"a": found(hit, second, ("cat", 0.9, 1, 31, 20, 50))}
    return {
        name: evaluate(detections, TRUTH, classes=CLASSES)
        for name, detections in {"student": student, "distilled": distilled}.items()
    }


def test_precision_recall_lines_are_the_curves(results):
    figure = precision_recall_figure(results)
    cat, cow, dog = figure.axes
    assert [axes.get_title() for axes in figure.axes] == CLASSES
    student, distilled = dog.lines
    np.testing.assert_allclose(student.get_xydata(), [[0, 1], [0.5, 1], [0.5, 0.5], [1, 2 / 3]])
    np.testing.assert_allclose(distilled.get_xydata(), [[0, 1], [0.5, 1], [1, 1]])
    # (6 * 1 + 5 * 2/3) / 11
    assert [text.get_text() for text in dog.texts] == ["AP 84.8", "AP 100.0"]
    assert len(cat.lines[0].get_xydata()) == 0
    assert [text.get_text() for text in cow.texts] == ["no objects"]
    labels = [text.get_text() for text in figure.legends[0].texts]
    assert labels == ["student, mAP 42.4", "distilled, mAP 100.0"]
    assert len(precision_recall_figure(results, ["dog"]).axes) == 1


def test_numbers_stand_where_no_curve_is():
    """One curve high and long leaves the corner left below, one low and long the one right above."""
    truth = {"a": objects(*[("dog", 0, 100 * k, 1, 100 * k + 50, 50) for k in range(10)])}
    right = [("dog", 0.5 - 0.01 * k, 100 * k, 1, 100 * k + 50, 50) for k in range(10)]
    wrong = [("dog", 0.9, 1, 200 + k, 50, 250 + k) for k in range(20)]
    for rows, (left, bottom) in ((right, (0.04, 0.05)), (wrong + right, (0.65, 0.85))):
        result = evaluate({"a": found(*rows)}, truth)
        (text,) = precision_recall_figure({"student": result}).axes[0].texts
        assert text.get_position() == pytest.approx((left, bottom))


def test_bars_are_the_aps_in_percent(results):
    averages = {name: Average(one.map, one.per_class) for name, one in results.items()}
    axes = per_class_ap_figure(averages, "map_coco").axes[0]
    assert axes.get_ylabel() == "AP in percent, COCO (IoU 0.50 to 0.95)"
    heights = [[bar.get_height() for bar in bars] for bars in axes.containers]
    np.testing.assert_allclose(heights, [[0, 0, 84.848485, 42.424242], [0, 0, 100, 100]][:1] + [[100, 0, 100, 100]])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [*CLASSES, "mean"]
    # The class without objects has no number.
    assert len(axes.texts) == 6


def log(path, entries, end=""):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries) + end)
    return path


PLAIN = [
    {"stage": "train", "step": s, "epoch": s / 10, "lr": 0.01, "loss": 1 / s, "images_per_second": 3.0}
    for s in (10, 20)
]
KTAN = [
    {"stage": "regressor", "step": 10, "regressor_loss": 2.0},
    {"stage": "warmup", "step": 20, "loss": 1.0, "ktan_mse": 0.5},
    {"stage": "warmup", "step": 30, "loss": 0.9, "ktan_mse": 0.4},
    {"stage": "adversarial", "step": 40, "loss": 0.8, "ktan_mse": 0.3, "discriminator_accuracy_teacher": 0.7},
]


def test_log_is_read_and_a_cut_off_last_line_left_out(tmp_path):
    assert read_log(log(tmp_path / "log.jsonl", PLAIN, '{"stage": "tr')) == PLAIN
    assert read_log(log(tmp_path / "empty.jsonl", [])) == []


def test_faulty_logs_are_refused(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\nno json\n{"step": 3}\n')
    with pytest.raises(InputError, match=r"log.jsonl, line 2: expected a JSON object"):
        read_log(path)
    with pytest.raises(InputError, match="cannot read the log"):
        read_log(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="nothing to draw"):
        training_curves_figure({"run": [{"stage": "train", "step": 1}]})


def test_training_curves_have_a_diagram_a_quantity_and_shaded_stages():
    figure = training_curves_figure({"student": PLAIN, "distilled": KTAN})
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["loss", "regressor_loss", "ktan_mse", "discriminator_accuracy_teacher", "lr"]
    loss = figure.axes[0]
    student, distilled = (line.get_xydata().tolist() for line in loss.lines)
    assert student == [[10, 0.1], [20, 0.05]]
    assert distilled == [[20, 1.0], [30, 0.9], [40, 0.8]]
    assert loss.get_yscale() == "linear"
    # Stages reach from the last step of the one before to their own last.
    shaded = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in loss.patches]
    assert shaded == [(0, 10), (10, 30), (30, 40)]
    labels = [text.get_text() for text in figure.legends[0].texts]
    stages = [f"stage of distilled: {name}" for name in ("regressor", "warmup", "adversarial")]
    assert labels == ["student", "distilled", *stages]
    alone = training_curves_figure({"distilled": KTAN}).legends[0].texts
    assert alone[1].get_text() == "stage: regressor"
    accuracy = figure.axes[3]
    assert accuracy.get_ylim() == (-0.03, 1.03)
    assert any(line.get_ydata()[0] == 0.5 for line in accuracy.lines)


def test_one_stage_is_not_shaded_and_wide_ranges_are_logarithmic():
    entries = [{"stage": "train", "step": s, "loss": 100.0 / s**2} for s in (1, 2, 50)]
    entries.append({"stage": "train", "step": 60, "loss": float("nan")})
    axes = training_curves_figure({"run": entries}).axes[0]
    assert not axes.patches
    assert axes.get_yscale() == "log"
    assert len(axes.lines[0].get_xdata()) == 3


def test_the_students_updates_are_counted_without_the_stages_before_them():
    assert student_curve(KTAN, "ktan_mse") == ([10, 20, 30], [0.5, 0.4, 0.3])
    assert student_curve(KTAN, "regressor_loss") == ([0], [2.0])
    assert student_curve(PLAIN, "loss") == ([10, 20], [0.1, 0.05])


def test_mean_curve_takes_the_updates_that_all_runs_reached():
    first = [{"stage": "train", "step": s, "loss": 10.0 - s} for s in (2, 4, 6, 8)]
    second = [{"stage": "train", "step": s, "loss": 2.0 * s} for s in (3, 5, 7)]
    steps, values = mean_curve([first, second], "loss")
    assert steps.tolist() == [4, 6]
    np.testing.assert_allclose(values, [[6, 4], [8, 12]])  # the second's, halfway between its own
    with pytest.raises(InputError, match=r"no 'ktn_mse' \(did you mean 'ktan_mse'\?\); choose another --key"):
        mean_curve([KTAN], "ktn_mse")


def test_convergence_is_a_mean_with_a_band_from_least_to_greatest():
    runs = [[{"stage": "train", "step": s, "loss": scale * s} for s in (1, 2, 3)] for scale in (1.0, 2.0, 6.0)]
    axes = convergence_figure({"three": runs, "one": runs[:1]}, "loss").axes[0]
    three, one = axes.lines
    np.testing.assert_allclose(three.get_xydata(), [[1, 3], [2, 6], [3, 9]])
    np.testing.assert_allclose(one.get_xydata(), [[1, 1], [2, 2], [3, 3]])
    assert [line.get_label() for line in axes.lines] == ["three, mean of 3", "one"]
    (band,) = axes.collections  # a lone run has none
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices.round(6).tolist()}
    assert corners == {(s, scale * s) for s in (1, 2, 3) for scale in (1, 6)}
    assert axes.get_ylabel() == "loss"
    assert axes.get_yscale() == "linear"  # 1 to 18
    wide = [{"stage": "train", "step": s, "loss": 100.0 / s**2} for s in (1, 50)]
    assert convergence_figure({"wide": [wide]}, "loss").axes[0].get_yscale() == "log"
