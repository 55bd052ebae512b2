"""Bootstrap intervals: the weights against data sets that do hold pictures repeatedly, and cases known by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from detkt.base.errors import InputError
from detkt.evaluation.bootstrap import (
    bootstrap_difference,
    bootstrap_map,
    counted,
    maps_of_curves,
    objects_per_picture,
)
from detkt.evaluation.coco import evaluate_coco
from detkt.evaluation.coco_curves import coco_curves, coco_map
from detkt.evaluation.voc import evaluate_both, match

CLASSES = ["car", "dog", "cat", "ghost"]
METRICS = ("map_voc07", "map_area")


def random_case(seed, n_pictures=9):
    """Detections with scores of their own and annotations; "cat" is rare, "ghost" never there."""
    rng = np.random.default_rng(seed)
    detections, annotations = {}, {}
    for number in range(n_pictures):
        n, m = rng.integers(0, 6), rng.integers(1, 14)
        corner = rng.integers(1, 60, (n, 2))
        boxes = np.hstack([corner, corner + rng.integers(9, 40, (n, 2))]).astype(float)
        labels = rng.choice(CLASSES[:3], n, p=[0.6, 0.35, 0.05])
        annotations[f"p{number}"] = {"boxes": boxes, "labels": labels, "difficult": rng.random(n) < 0.2}
        if n and rng.random() < 0.9:
            source = rng.integers(0, n, m)
            names = np.where(rng.random(m) < 0.8, labels[source], rng.choice(CLASSES, m))
            detections[f"p{number}"] = {
                "boxes": boxes[source] + rng.integers(-4, 5, (m, 4)),
                "scores": rng.random(m),
                "labels": names,
            }
    return detections, annotations


def repeated(records, weights):
    """The records with every picture as often as its weight says, under new ids, copies side by side."""
    return {f"{name}-{copy}": record for name, record in records.items() for copy in range(weights.get(name, 0))}


@pytest.mark.parametrize("seed", range(12))
def test_weights_say_what_scoring_repeated_pictures_says(seed):
    detections, annotations = random_case(seed)
    rng = np.random.default_rng(100 + seed)
    weights = rng.multinomial(9, np.full(9, 1 / 9), size=8)
    weights[0] = 1
    weights[1] *= 5
    objects = objects_per_picture(annotations, CLASSES)
    matching = match(detections, annotations, classes=CLASSES)
    curves = {name: counted(curve) for name, curve in matching.per_class.items()}
    maps = maps_of_curves(curves, objects, weights)
    assert maps.shape == (2, 8)
    for row, found in zip(weights, maps.T, strict=True):
        times = dict(zip(annotations, row.tolist(), strict=True))
        results = evaluate_both(repeated(detections, times), repeated(annotations, times), classes=CLASSES)
        assert found == pytest.approx([result.map for result in results], abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("seed", range(12))
def test_weights_say_what_pycocotools_says_of_repeated_pictures(seed):
    detections, annotations = random_case(seed, 12)
    annotations["p3"] |= {"crowd": annotations["p3"]["difficult"], "measured": measured(annotations["p3"]["boxes"])}
    rng = np.random.default_rng(100 + seed)
    weights = rng.multinomial(12, np.full(12, 1 / 12), size=8)
    weights[0] = 1
    weights[1] *= 3
    found = coco_map(coco_curves(detections, annotations, CLASSES), objects_per_picture(annotations, CLASSES), weights)
    expected = []
    for row in weights:
        times = dict(zip(annotations, row.tolist(), strict=True))
        expected.append(evaluate_coco(repeated(detections, times), repeated(annotations, times), CLASSES).ap)
    assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert len(set(expected)) > 4


def measured(boxes):
    """x, y, width, height and area, as COCO's file has them."""
    corner, far = boxes[:, :2] - 1, boxes[:, 2:]
    return np.hstack([corner, far - corner, (far - corner).prod(axis=1, keepdims=True)])


def test_the_most_confident_hundred_of_a_picture_and_class_count_for_coco():
    """The hit is the 101st of its picture: COCO's AP does not see it, VOC's does."""
    below = {"boxes": [[50.0, 50, 60, 60]] * 100 + BOX, "scores": [0.9] * 100 + [0.1], "labels": ["car"] * 101}
    found = bootstrap_map({"a": below}, {"a": thing("car")}, resamples=4, metrics=("map_coco", "map_area"))
    assert list(found) == ["map_coco", "map_area"]
    assert (found["map_coco"].value, found["map_area"].value) == (0, pytest.approx(1 / 101))
    below = {"boxes": BOX + [[50.0, 50, 60, 60]], "scores": [0.9, 0.1], "labels": ["car"] * 2}
    found = bootstrap_map({"a": below}, {"a": thing("car")}, resamples=4, metrics=("map_coco",))["map_coco"]
    assert (found.value, found.low, found.high, found.samples.tolist()) == (1, 1, 1, [1] * 4)


def test_objects_are_counted_by_class_and_picture():
    annotations = {
        "a": {"boxes": np.ones((4, 4)), "labels": ["dog", "car", "dog", "bird"], "difficult": [0, 0, 0, 0]},
        "b": {"boxes": np.ones((2, 4)), "labels": ["car", "dog"], "difficult": [1, 0]},
        "c": {"boxes": [], "labels": []},
    }
    counts = objects_per_picture(annotations, ["car", "dog", "cat"])
    expected = {"car": [1, 0, 0], "dog": [2, 1, 0], "cat": [0, 0, 0]}
    assert {name: row.tolist() for name, row in counts.items()} == expected


# --- two pictures: every resample is aa (1/4), ab (1/2) or bb (1/4)


BOX = [[1.0, 1.0, 10.0, 10.0]]


def thing(label):
    return {"boxes": BOX, "labels": [label], "difficult": [False]}


def hit(label):
    return {"boxes": BOX, "scores": [0.5], "labels": [label]}


NOTHING = {"boxes": [], "labels": []}


def shares(samples):
    values, counts = np.unique(samples, return_counts=True)
    return dict(zip(values.tolist(), counts / len(samples), strict=True))


def test_a_class_that_a_resample_lacks_does_not_enter_its_mean():
    annotations = {"a": thing("car"), "b": thing("dog")}
    interval = bootstrap_map({"a": hit("car")}, annotations, resamples=4000)["map_area"]
    # aa: the car is all there is, and found. Were the dog's AP a 0 there, the mAP would be 0.5.
    assert shares(interval.samples) == {
        0.0: pytest.approx(0.25, abs=0.03),
        0.5: pytest.approx(0.5, abs=0.03),
        1.0: pytest.approx(0.25, abs=0.03),
    }
    assert (interval.value, interval.low, interval.high) == (0.5, 0.0, 1.0)
    narrow = bootstrap_map({"a": hit("car")}, annotations, resamples=4000, confidence=0.4)["map_area"]
    assert (narrow.low, narrow.high) == (0.5, 0.5)


def test_resamples_without_objects_are_left_out():
    annotations = {"a": thing("car"), "b": NOTHING}
    for interval in bootstrap_map({"a": hit("car")}, annotations, resamples=400).values():
        assert 0.15 < np.isnan(interval.samples).mean() < 0.35
        assert (interval.value, interval.low, interval.high) == (1.0, 1.0, 1.0)
    paired = bootstrap_difference({"a": hit("car")}, {}, annotations, resamples=400)["map_area"]
    assert paired.numbers() == {
        "value": 1.0,
        "low": 1.0,
        "high": 1.0,
        "share_at_most_zero": 0.0,
        "two_sided_share": 0.0,
    }


def test_nothing_to_find_is_nan():
    for pair in bootstrap_difference({}, {}, {"a": NOTHING}, classes=["car"], resamples=3).values():
        assert all(math.isnan(value) for value in pair.numbers().values())


def test_the_difference_is_taken_resample_by_resample():
    annotations = {"a": thing("car"), "b": thing("car")}
    both, first, second = {"a": hit("car"), "b": hit("car")}, {"a": hit("car")}, {"b": hit("car")}
    # Area AP in aa, ab, bb: 1, 1, 1 (both) against 1, 1/2, 0 (first).
    paired = bootstrap_difference(both, first, annotations, resamples=4000)["map_area"]
    assert set(paired.difference.samples) == {0.0, 0.5, 1.0}
    assert np.array_equal(paired.difference.samples, paired.first.samples - paired.second.samples)
    assert paired.difference.value == 0.5
    assert paired.share_at_most_zero == np.mean(paired.difference.samples == 0) == pytest.approx(0.25, abs=0.03)
    assert paired.two_sided_share == 2 * paired.share_at_most_zero
    # The other way round the first is at most as good always, at least as good in aa: the smaller share counts.
    swapped = bootstrap_difference(first, both, annotations, resamples=4000)["map_area"]
    assert swapped.share_at_most_zero == 1.0
    assert swapped.two_sided_share == paired.two_sided_share
    # One finds what the other does not: 1, 0, -1. Each share is 3/4, and twice that is more than all.
    opposed = bootstrap_difference(first, second, annotations, resamples=4000)["map_area"]
    assert set(opposed.difference.samples) == {-1.0, 0.0, 1.0}
    assert opposed.share_at_most_zero == pytest.approx(0.75, abs=0.03)
    assert (opposed.two_sided_share, opposed.difference.value) == (1.0, 0.0)


# --- properties


def test_a_detector_against_itself_differs_by_nothing():
    detections, annotations = random_case(3, 30)
    for pair in bootstrap_difference(detections, detections, annotations, resamples=200).values():
        assert np.all(pair.difference.samples == 0)
        assert (pair.difference.value, pair.difference.low, pair.difference.high) == (0.0, 0.0, 0.0)
        assert pair.share_at_most_zero == pair.two_sided_share == 1.0
        assert pair.first.low < pair.first.value < pair.first.high


def test_the_seed_decides():
    detections, annotations = random_case(4, 30)
    fewer = {name: record for name, record in detections.items() if name != "p3"}
    one = bootstrap_map(detections, annotations, resamples=150, seed=5)
    again = bootstrap_map(detections, annotations, resamples=150, seed=5)
    other = bootstrap_map(detections, annotations, resamples=150, seed=6)
    shorter = bootstrap_map(detections, annotations, resamples=70, seed=5)
    paired = bootstrap_difference(fewer, detections, annotations, resamples=150, seed=5)
    evaluated = evaluate_both(detections, annotations)
    for name, result in zip(METRICS, evaluated, strict=True):
        assert np.array_equal(one[name].samples, again[name].samples)
        assert not np.array_equal(one[name].samples, other[name].samples)
        assert np.array_equal(one[name].samples, paired[name].second.samples), "the same resamples for both"
        assert len(shorter[name].samples) == 70
        assert np.array_equal(one[name].samples[:64], shorter[name].samples[:64])
        assert one[name].value == result.map
        assert (one[name].low, one[name].high) == pytest.approx(np.quantile(one[name].samples, [0.025, 0.975]))
    assert not np.array_equal(one["map_voc07"].samples, one["map_area"].samples)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    """One object a picture, found with probability 0.7 and without false positives: area AP is the share found."""
    rng, covered, widths = np.random.default_rng(0), 0, []
    annotations = {str(i): thing("car") for i in range(60)}
    for _ in range(200):
        found = {str(i): hit("car") for i in np.flatnonzero(rng.random(60) < 0.7)}
        interval = bootstrap_map(found, annotations, resamples=192, confidence=0.9)["map_area"]
        assert interval.value == pytest.approx(len(found) / 60)
        covered += interval.low <= 0.7 <= interval.high
        widths.append(interval.high - interval.low)
    assert 0.83 <= covered / 200 <= 0.96
    assert np.mean(widths) == pytest.approx(2 * 1.645 * math.sqrt(0.7 * 0.3 / 60), rel=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resamples": 0}, "resamples is 0; give 1 or more"),
        ({"confidence": 1}, "confidence is 1; give a number between 0 and 1"),
        ({"confidence": math.nan}, "confidence is nan"),
        ({"iou_threshold": 0}, "iou_threshold is 0"),
        ({"classes": ["dog"]}, "class 'car', which is not among the classes"),
    ],
)
def test_what_cannot_be_resampled_is_told(options, message):
    with pytest.raises(InputError, match=message):
        bootstrap_map({"a": hit("car")}, {"a": thing("car")}, **options)
    with pytest.raises(InputError, match=message):
        bootstrap_difference({}, {"a": hit("car")}, {"a": thing("car")}, **options)


def test_no_pictures_are_told():
    with pytest.raises(InputError, match="no pictures to resample"):
        bootstrap_map({}, {})


def test_classes_may_be_an_iterator():
    pairs = bootstrap_difference({"a": hit("car")}, {}, {"a": thing("car")}, classes=iter(["car"]), resamples=2)
    assert pairs["map_area"].difference.value == 1.0
