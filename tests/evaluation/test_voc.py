"""VOC scoring against hand-worked numbers and an independent loop over single detections."""

from __future__ import annotations

import math

import numpy as np
import pytest

from detkt.base.errors import InputError
from detkt.evaluation.voc import average_precision, evaluate, evaluate_both, match, score


def found(*rows):
    """Detections of one picture from rows (label, score, x1, y1, x2, y2)."""
    return {
        "boxes": np.array([row[2:] for row in rows], dtype=float).reshape(-1, 4),
        "scores": np.array([row[1] for row in rows], dtype=float),
        "labels": [row[0] for row in rows],
    }


def objects(*rows):
    """Annotations of one picture from rows (label, difficult, x1, y1, x2, y2)."""
    return {
        "boxes": np.array([row[2:] for row in rows], dtype=float).reshape(-1, 4),
        "labels": [row[0] for row in rows],
        "difficult": np.array([row[1] for row in rows], dtype=bool),
    }


# --- the two areas under a curve


def test_average_precision_by_hand():
    # Four objects; hit, miss, hit, hit, miss: precision falls to 2/3 and climbs to 3/4.
    recall = [0.25, 0.25, 0.5, 0.75, 0.75]
    precision = [1, 1 / 2, 2 / 3, 3 / 4, 3 / 5]
    # t = 0, .1, .2 -> 1; t = .3 ... .7 -> 3/4; t = .8, .9, 1 -> 0.
    assert average_precision(recall, precision, True) == pytest.approx((3 * 1 + 5 * 0.75) / 11, abs=1e-15)
    assert average_precision(recall, precision, False) == pytest.approx(0.25 * 1 + 0.5 * 0.75, abs=1e-15)


def test_average_precision_of_a_perfect_and_of_an_empty_curve():
    for metric in (True, False):
        assert average_precision([0.5, 1.0], [1.0, 1.0], metric) == 1.0
        assert average_precision([], [], metric) == 0.0
        assert math.isnan(average_precision([np.nan], [0.0], metric))
    # One of two objects: 6 of 11 thresholds (0 ... 0.5), half the area.
    assert average_precision([0.5], [1.0], True) == pytest.approx(6 / 11)
    assert average_precision([0.5], [1.0], False) == 0.5


def test_eleven_thresholds_are_the_floats_of_public_code():
    # 3 * 0.1 > 3 / 10 in floats, so a recall of 3 / 10 does not reach the fourth threshold.
    assert average_precision([3 / 10], [1.0], True) == pytest.approx(3 / 11)
    assert average_precision([2 / 10], [1.0], True) == pytest.approx(3 / 11)
    assert average_precision([4 / 10], [1.0], True) == pytest.approx(5 / 11)


def test_average_precision_skips_the_kits_zero_by_zero():
    assert average_precision([0.0, 1.0], [np.nan, 1.0], True) == 1.0
    assert average_precision([0.0, 1.0], [np.nan, 1.0], False) == 1.0


def test_average_precision_refuses_what_is_no_curve():
    with pytest.raises(InputError, match="one equal length"):
        average_precision([0.1, 0.2], [1.0], True)
    with pytest.raises(InputError, match="recall falls"):
        average_precision([0.2, 0.1], [1.0, 1.0], False)


# --- the assignment, by hand


def test_iou_counts_both_end_pixels_and_the_threshold_itself_is_a_hit():
    # 10 x 10 pixels and its upper half: IoU is exactly 50 / 100. Without the +1 it would be 36 / 81.
    annotations = {"a": objects(("car", False, 1, 1, 10, 10))}
    half = {"a": found(("car", 0.9, 1, 1, 10, 5))}
    curve = match(half, annotations).per_class["car"]
    assert curve.iou.tolist() == [0.5] and curve.true_positive.tolist() == [True]
    assert evaluate(half, annotations).map == 1.0
    assert evaluate(half, annotations, iou_threshold=0.500001).map == 0.0


def test_single_pixels_match():
    annotations = {"a": objects(("dot", False, 7, 7, 7, 7))}
    assert evaluate({"a": found(("dot", 0.5, 7, 7, 7, 7))}, annotations).map == 1.0
    assert evaluate({"a": found(("dot", 0.5, 8, 7, 8, 7))}, annotations).map == 0.0


def test_second_detection_of_an_object_is_a_false_positive_even_beside_a_free_object():
    annotations = {"a": objects(("car", False, 1, 1, 10, 10), ("car", False, 1, 4, 10, 13))}
    # Both lie nearest to the first object, the second one overlaps the other object with IoU 70 / 130.
    detections = {"a": found(("car", 0.9, 1, 1, 10, 10), ("car", 0.8, 1, 1, 10, 10))}
    curve = match(detections, annotations).per_class["car"]
    assert curve.true_positive.tolist() == [True, False]
    assert curve.false_positive.tolist() == [False, True]
    assert curve.objects.tolist() == [0, 0]
    assert curve.recall.tolist() == [0.5, 0.5] and curve.precision.tolist() == [1.0, 0.5]


def test_first_of_two_equally_near_objects_wins():
    annotations = {"a": objects(("car", True, 1, 1, 10, 10), ("car", False, 1, 1, 10, 10))}
    curve = match({"a": found(("car", 0.9, 1, 1, 10, 10))}, annotations).per_class["car"]
    assert curve.ignored.tolist() == [True] and curve.objects.tolist() == [0]


def test_difficult_objects_are_neither_hit_nor_miss():
    annotations = {"a": objects(("car", True, 1, 1, 10, 10), ("car", False, 101, 1, 110, 10))}
    detections = {"a": found(("car", 0.9, 1, 1, 10, 10), ("car", 0.8, 1, 1, 10, 10), ("car", 0.7, 101, 1, 110, 10))}
    result = evaluate(detections, annotations)
    curve = result.curves["car"]
    assert curve.n_ground_truth == 1 and curve.n_detections == 3
    assert curve.ignored.tolist() == [True, True, False]
    assert curve.recall.tolist() == [0, 0, 1] and curve.precision.tolist() == [0, 0, 1]
    assert result.map == 1.0


def test_equal_scores_keep_the_order_given():
    annotations = {"a": objects(("car", False, 1, 1, 10, 10)), "b": objects()}
    hit, miss = found(("car", 0.5, 1, 1, 10, 10)), found(("car", 0.5, 1, 1, 10, 10))
    first = evaluate({"a": hit, "b": miss}, annotations, use_07_metric=False)
    second = evaluate({"b": miss, "a": hit}, annotations, use_07_metric=False)
    assert (first.map, second.map) == (1.0, 0.5)


def test_match_tells_pictures_rows_and_objects():
    annotations = {
        "a": objects(("dog", False, 1, 1, 10, 10), ("car", False, 1, 1, 10, 10)),
        "b": objects(("car", False, 50, 50, 59, 59)),
    }
    detections = {
        "b": found(("car", 0.3, 50, 50, 59, 59), ("dog", 0.9, 1, 1, 9, 9)),
        "a": found(("car", 0.6, 1, 1, 10, 10)),
    }
    matching = match(detections, annotations)
    assert matching.pictures == ("a", "b") and list(matching.per_class) == ["car", "dog"]
    car, dog = matching.per_class["car"], matching.per_class["dog"]
    assert car.pictures.tolist() == [0, 1] and car.rows.tolist() == [0, 0] and car.objects.tolist() == [1, 0]
    assert dog.pictures.tolist() == [1] and dog.rows.tolist() == [1] and dog.objects.tolist() == [-1]
    assert dog.iou.tolist() == [0.0] and dog.false_positive.tolist() == [True]


# --- classes and emptiness


def test_class_without_objects_has_nan_and_does_not_enter_the_mean():
    annotations = {"a": objects(("car", False, 1, 1, 10, 10), ("cat", True, 1, 1, 10, 10))}
    detections = {"a": found(("car", 0.9, 1, 1, 10, 10), ("dog", 0.9, 1, 1, 5, 5), ("cat", 0.9, 1, 1, 10, 10))}
    result = evaluate(detections, annotations)
    assert result.per_class["car"] == 1.0
    assert math.isnan(result.per_class["dog"]) and math.isnan(result.per_class["cat"])
    assert result.map == 1.0
    assert np.isnan(result.curves["dog"].recall).all()


def test_class_without_detections_has_zero():
    annotations = {"a": objects(("car", False, 1, 1, 10, 10), ("dog", False, 1, 1, 10, 10))}
    result = evaluate({"a": found(("car", 0.9, 1, 1, 10, 10))}, annotations)
    assert result.per_class == {"car": 1.0, "dog": 0.0} and result.map == 0.5


@pytest.mark.parametrize("annotations", [{}, {"a": objects()}, {"a": objects(("car", True, 1, 1, 5, 5))}])
def test_no_object_at_all_has_map_nan(annotations):
    assert math.isnan(evaluate({}, annotations).map)
    assert math.isnan(evaluate({}, annotations, classes=["car", "dog"], use_07_metric=False).map)


def test_classes_given_leave_out_other_objects_and_refuse_other_detections():
    annotations = {"a": objects(("car", False, 1, 1, 10, 10), ("dog", False, 1, 1, 10, 10))}
    result = evaluate({"a": found(("car", 0.9, 1, 1, 10, 10))}, annotations, classes=("dot", "car", "dot"))
    assert list(result.per_class) == ["dot", "car"] and result.map == 1.0
    with pytest.raises(InputError, match=r"picture 'a' name class 'carr'.*did you mean 'car'"):
        evaluate({"a": found(("carr", 0.9, 1, 1, 10, 10))}, annotations, classes=["car"])


def test_lists_float32_and_a_missing_difficult_flag_are_read():
    annotations = {"a": {"boxes": [[1, 1, 10, 10]], "labels": np.array(["car"])}}
    detections = {"a": {"boxes": np.float32([[1, 1, 10, 10]]), "scores": np.float32([0.9]), "labels": ("car",)}}
    assert evaluate(detections, annotations).per_class == {"car": 1.0}


# --- bad input

GOOD = {"boxes": [[1, 1, 10, 10]], "scores": [0.9], "labels": ["car"]}


@pytest.mark.parametrize(
    ("picture", "change", "message"),
    [
        ("000013", {}, "detections name picture '000013', which has no annotation .did you mean '000012'"),
        ("000012", {"scores": [math.nan]}, "picture '000012', row 0: scores nan is not finite"),
        ("000012", {"scores": [-math.inf]}, "scores -inf is not finite"),
        ("000012", {"boxes": [[1, 1, math.inf, 10]]}, "picture '000012', row 0: box .* is not finite"),
        ("000012", {"boxes": [[1, 1, 10]]}, r"boxes have shape \(1, 3\), expected \(n, 4\)"),
        ("000012", {"boxes": [1, 1, 10, 10]}, r"boxes have shape \(4,\)"),
        ("000012", {"boxes": [["x", 1, 1, 1]]}, "picture '000012' are not numbers"),
        ("000012", {"scores": [0.9, 0.8]}, "hold 1 boxes, 1 labels and scores of shape .2,."),
        ("000012", {"labels": []}, "hold 1 boxes, 0 labels"),
        ("000012", {"labels": None}, "picture '000012'"),
    ],
)
def test_bad_detections_are_named(picture, change, message):
    annotations = {"000012": objects(("car", False, 1, 1, 10, 10))}
    with pytest.raises(InputError, match=message) as caught:
        evaluate({picture: GOOD | change}, annotations)
    assert "\n" not in str(caught.value)


def test_bad_annotations_thresholds_and_missing_keys_are_named():
    with pytest.raises(InputError, match="annotations of picture 'a', row 1: box"):
        evaluate({}, {"a": objects(("car", False, 1, 1, 2, 2), ("car", False, 1, math.nan, 2, 2))})
    with pytest.raises(InputError, match="detections of picture 'a' lack the key 'scores'"):
        evaluate({"a": {"boxes": [], "labels": []}}, {"a": objects()})
    for threshold in (0, -0.5, 1.5, math.nan):
        with pytest.raises(InputError, match="iou_threshold"):
            evaluate({}, {}, iou_threshold=threshold)


# --- an independent loop


def looped(detections, annotations, name, threshold):
    """(tp, fp, n objects) of one class, one detection after the other, in plain Python."""
    pool = []
    for picture, record in detections.items():
        for box, value, label in zip(record["boxes"], record["scores"], record["labels"], strict=True):
            if label == name:
                pool.append((float(value), picture, [float(side) for side in box]))
    pool.sort(key=lambda entry: -entry[0])  # list.sort is stable
    rivals, taken, n_objects = {}, set(), 0
    for picture, record in annotations.items():
        rivals[picture] = [
            (row, [float(side) for side in record["boxes"][row]], bool(record["difficult"][row]))
            for row in range(len(record["labels"]))
            if record["labels"][row] == name
        ]
        n_objects += sum(not difficult for _, _, difficult in rivals[picture])
    tp, fp = [], []
    for _, picture, (left, top, right, bottom) in pool:
        best, chosen, easy = -1.0, None, True
        for row, (x1, y1, x2, y2), difficult in rivals[picture]:
            width = min(right, x2) - max(left, x1) + 1
            height = min(bottom, y2) - max(top, y1) + 1
            if width <= 0 or height <= 0:
                continue
            area = (right - left + 1) * (bottom - top + 1) + (x2 - x1 + 1) * (y2 - y1 + 1) - width * height
            if width * height / area > best:
                best, chosen, easy = width * height / area, (picture, row), not difficult
        hit = best >= threshold
        tp.append(hit and easy and chosen not in taken)
        fp.append(not hit or (easy and chosen in taken))
        if hit and easy:
            taken.add(chosen)
    return tp, fp, n_objects


def looped_ap(tp, fp, n_objects, use_07_metric):
    if n_objects == 0:
        return math.nan
    points, hits, misses = [], 0, 0
    for hit, miss in zip(tp, fp, strict=True):
        hits, misses = hits + hit, misses + miss
        points.append((hits / n_objects, hits / (hits + misses) if hits + misses else 0.0))
    if use_07_metric:
        return sum(max((p for r, p in points if r >= k * 0.1), default=0.0) for k in range(11)) / 11
    # Every object found adds 1 / n of recall at the best precision still to come.
    return sum(max(p for _, p in points[place:]) / n_objects for place in range(len(points)) if tp[place])


def random_case(seed):
    """A small crowded data set: few places, few scores, so that ties, duplicates and IoU 0.5 are common."""
    rng = np.random.default_rng(seed)
    classes = ["car", "dog", "red_cell", "ghost"][: rng.integers(1, 5)]
    side, ties = int(rng.integers(2, 30)), bool(rng.integers(2))
    easy = float(rng.choice([0.0, 0.5, 0.8, 1.0]))

    def boxes(n):
        corner = rng.integers(1, side + 1, (n, 2))
        box = np.hstack([corner, np.minimum(corner + rng.integers(0, 8, (n, 2)), side)]).astype(float)
        return box + rng.random((n, 4)) * bool(rng.integers(2)) * 0.9

    annotations, detections = {}, {}
    for number in range(rng.integers(0, 7)):
        n, m = int(rng.integers(0, 7)), int(rng.integers(0, 13))
        annotations[f"p{number}"] = {
            "boxes": boxes(n),
            "labels": list(rng.choice([name for name in classes if name != "ghost"] or ["car"], n)),
            "difficult": rng.random(n) > easy,
        }
        if rng.random() < 0.85:
            copied, source = rng.random(m) < (0.7 if n else 0), rng.integers(0, max(n, 1), m)
            near, same = boxes(m), rng.choice(classes, m).astype(object)
            for i in np.flatnonzero(copied):
                near[i] = annotations[f"p{number}"]["boxes"][source[i]]
                same[i] = annotations[f"p{number}"]["labels"][source[i]]
            shift = rng.integers(-1, 2, (m, 4)) * (rng.random((m, 1)) < 0.6)
            detections[f"p{number}"] = {
                "boxes": near + shift,
                "scores": rng.integers(0, 4, m) / 4 if ties else rng.random(m),
                "labels": same.astype(str) if rng.integers(2) else same.tolist(),
            }
    # The dictionaries need not be in the same order.
    names = list(detections)
    return {names[i]: detections[names[i]] for i in rng.permutation(len(names))}, annotations


@pytest.mark.parametrize("block", range(5))
def test_evaluate_agrees_with_a_loop_over_single_detections(block):
    seen = {"tp": 0, "fp": 0, "ignored": 0, "exact": 0, "nan": 0}
    for seed in range(80 * block, 80 * block + 80):
        detections, annotations = random_case(seed)
        threshold = (0.5, 0.5, 0.3, 0.75, 1.0)[seed % 5]
        matching = match(detections, annotations, iou_threshold=threshold)
        eleven, area = evaluate_both(detections, annotations, iou_threshold=threshold)
        labels = {label for records in (detections, annotations) for r in records.values() for label in r["labels"]}
        assert list(matching.per_class) == sorted(labels)
        for name, curve in matching.per_class.items():
            tp, fp, n_objects = looped(detections, annotations, name, threshold)
            assert curve.true_positive.tolist() == tp and curve.false_positive.tolist() == fp, (seed, name)
            assert curve.n_ground_truth == n_objects
            assert (curve.true_positive ^ curve.false_positive ^ curve.ignored).all()
            for use_07_metric, result in ((True, eleven), (False, area)):
                expected = looped_ap(tp, fp, n_objects, use_07_metric)
                assert result.per_class[name] == pytest.approx(expected, abs=1e-12, nan_ok=True), (seed, name)
            seen["tp"] += sum(tp)
            seen["fp"] += sum(fp)
            seen["ignored"] += int(curve.ignored.sum())
            seen["exact"] += int((curve.iou == threshold).sum())
            seen["nan"] += n_objects == 0
        for use_07_metric, result in ((True, eleven), (False, area)):
            known = [value for value in result.per_class.values() if not math.isnan(value)]
            expected = sum(known) / len(known) if known else math.nan
            assert result.map == pytest.approx(expected, abs=1e-12, nan_ok=True)
            alone = evaluate(detections, annotations, iou_threshold=threshold, use_07_metric=use_07_metric)
            assert alone.map == pytest.approx(result.map, abs=0, nan_ok=True)
            assert score(matching, use_07_metric=use_07_metric).map == pytest.approx(result.map, abs=0, nan_ok=True)
    # The cases do hold what they are drawn for.
    assert min(seen.values()) >= 10, seen


def test_more_than_256_classes_and_wide_ties():
    rng = np.random.default_rng(0)
    classes = [f"c{number:03d}" for number in range(300)]
    annotations = {str(i): objects(*((name, False, 1, 1, 9, 9) for name in classes[i::3])) for i in range(3)}
    detections = {
        str(i): found(*((name, rng.integers(2) / 2, 1, 1, 9, 9) for name in classes for _ in range(3)))
        for i in range(3)
    }
    result = evaluate(detections, annotations, use_07_metric=False)
    for name in classes[::17]:
        assert result.per_class[name] == pytest.approx(looped_ap(*looped(detections, annotations, name, 0.5), False))
