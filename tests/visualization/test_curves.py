"""What the diagrams hold: lines, bars, shaded stages, scales of maps."""

from __future__ import annotations

import json

import numpy as np
import pytest
from comparison_records import found, objects

from detkt.errors import InputError
from detkt.evaluation.voc import evaluate
from detkt.visualization.curves import (
    per_class_ap_figure,
    precision_recall_figure,
    read_log,
    training_curves_figure,
)
from detkt.visualization.feature_maps import feature_map_figure, mean_response

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


def test_bars_are_the_aps_in_percent(results):
    axes = per_class_ap_figure(results).axes[0]
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
    assert labels == ["student", "distilled", "stage: regressor", "stage: warmup", "stage: adversarial"]
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


def test_mean_response_is_over_channels_of_the_magnitude():
    feature = np.array([[[1.0, -2.0]], [[-3.0, 4.0]]])
    np.testing.assert_array_equal(mean_response(feature), [[2.0, 3.0]])
    for wrong in (np.zeros((3, 3)), np.zeros((0, 2, 2))):
        with pytest.raises(InputError, match="must be"):
            mean_response(wrong)
    with pytest.raises(InputError, match="not finite"):
        mean_response(np.full((1, 2, 2), np.nan))


def test_feature_maps_stand_beside_their_picture_each_in_its_own_scale():
    picture = np.zeros((40, 60, 3), dtype=np.uint8)
    teacher = np.linspace(0, 100, 24).reshape(1, 4, 6)
    figure = feature_map_figure(picture, {"teacher": teacher, "student": np.ones((8, 2, 3))})
    shown = [axes.images[0] for axes in figure.axes]
    assert len(shown) == 3
    assert all(tuple(image.get_extent()) == (0, 60, 40, 0) for image in shown)
    assert shown[1].get_clim() == pytest.approx((1, 99))
    np.testing.assert_array_equal(shown[1].get_array(), teacher[0])
    assert shown[2].get_clim() == (1, 2)
    assert figure.axes[1].get_title().startswith("teacher\n1 x 4 x 6")
