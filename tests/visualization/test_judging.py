"""Every verdict on hand-made boxes, and verdicts against VOC scoring."""

from __future__ import annotations

import numpy as np
import pytest
from comparison_records import found, objects

from detkt.base.errors import InputError
from detkt.evaluation import voc
from detkt.visualization.judging import Verdict, box_overlaps, judge

# A dog of 20 x 20 pixels, a cat beside it that does not touch it, a difficult dog below.
TRUTH = objects(("dog", 0, 11, 11, 30, 30), ("cat", 0, 41, 11, 60, 30), ("dog", 1, 11, 61, 30, 80))


def judge_one(*rows, truth=TRUTH, **settings):
    return judge({"a": found(*rows)}, {"a": truth}, **settings)["a"]


def test_overlap_counts_both_end_pixels():
    iou = box_overlaps(np.array([[1.0, 1, 1, 1], [1, 1, 10, 10]]), np.array([[1.0, 1, 10, 10], [10, 10, 19, 19]]))
    # One pixel of a hundred; one shared corner pixel of 199; without the end pixels both would be 0.
    np.testing.assert_allclose(iou, [[1 / 100, 0], [1, 1 / 199]], rtol=1e-12)


@pytest.mark.parametrize(
    ("row", "verdict", "about", "iou"),
    [
        (("dog", 0.9, 11, 11, 30, 30), Verdict.CORRECT, 0, 1.0),
        (("dog", 0.9, 11, 11, 30, 20), Verdict.CORRECT, 0, 0.5),  # exactly the threshold
        (("dog", 0.9, 11, 11, 30, 19), Verdict.POOR_LOCATION, 0, 0.45),
        (("dog", 0.9, 11, 11, 30, 12), Verdict.POOR_LOCATION, 0, 0.1),  # exactly the lower threshold
        (("dog", 0.9, 11, 11, 29, 12), Verdict.BACKGROUND, -1, 0.095),
        (("dog", 0.9, 71, 71, 90, 90), Verdict.BACKGROUND, -1, 0.0),
        (("cat", 0.9, 11, 11, 30, 20), Verdict.WRONG_CLASS, 0, 0.5),
        (("cat", 0.9, 11, 11, 30, 12), Verdict.WRONG_CLASS, 0, 0.1),  # what remains: touches another class
        (("cat", 0.9, 11, 11, 29, 12), Verdict.BACKGROUND, -1, 0.095),
        (("dog", 0.9, 11, 61, 30, 80), Verdict.DIFFICULT, 2, 1.0),
        (("cat", 0.9, 11, 61, 30, 80), Verdict.WRONG_CLASS, 2, 1.0),
    ],
)
def test_verdict_of_a_single_detection(row, verdict, about, iou):
    judged = judge_one(row, classes=["cat", "dog"])
    assert judged.verdicts == [verdict]
    assert judged.objects.tolist() == [about]
    assert judged.iou[0] == pytest.approx(iou, abs=1e-12)
    right = verdict in (Verdict.CORRECT, Verdict.DIFFICULT)
    assert judged.found.tolist() == [right and k == about for k in range(3)]
    assert verdict.is_error is not right


def test_second_detection_of_an_object_is_a_duplicate_whatever_its_iou():
    judged = judge_one(("dog", 0.6, 11, 11, 30, 30), ("dog", 0.9, 11, 11, 30, 22))
    # In descending order of score; `rows` leads back to the order given.
    assert judged.verdicts == [Verdict.CORRECT, Verdict.DUPLICATE]
    assert judged.rows.tolist() == [1, 0]
    assert judged.scores.tolist() == [0.9, 0.6]
    assert judged.boxes[0].tolist() == [11, 11, 30, 22]
    assert judged.finder.tolist() == [0, -1, -1]
    assert judged.errors.tolist() == [1]


def test_second_detection_of_a_difficult_object_is_no_error():
    judged = judge_one(("dog", 0.9, 11, 61, 30, 80), ("dog", 0.8, 11, 61, 30, 79))
    assert judged.verdicts == [Verdict.DIFFICULT, Verdict.DIFFICULT]
    assert judged.finder.tolist() == [-1, -1, 0]


def test_box_that_fits_another_class_and_touches_its_own_is_of_the_wrong_class():
    truth = objects(("dog", 0, 1, 1, 20, 20), ("cat", 0, 11, 1, 30, 20))
    judged = judge_one(("dog", 0.9, 11, 1, 30, 20), truth=truth)  # IoU 1/3 with the dog, 1 with the cat
    assert judged.verdicts == [Verdict.WRONG_CLASS]
    assert (judged.objects[0], judged.iou[0]) == (1, 1.0)


def test_score_threshold_is_inclusive_and_changes_no_verdict_above_it():
    rows = [("dog", 0.9, 11, 11, 30, 30), ("dog", 0.5, 11, 11, 30, 29), ("dog", 0.4999, 1, 1, 9, 9)]
    judged = judge_one(*rows, score_threshold=0.5)
    everything = judge_one(*rows, score_threshold=0.0)
    assert judged.verdicts == [Verdict.CORRECT, Verdict.DUPLICATE] == everything.verdicts[:2]
    assert len(everything.verdicts) == 3
    with pytest.raises(InputError, match="score threshold is nan"):
        judge_one(*rows, score_threshold=float("nan"))


def test_pictures_without_detections_or_objects():
    annotations = {"a": TRUTH, "b": objects(), "c": objects()}
    judged = judge({"c": found(("dog", 0.9, 1, 1, 5, 5))}, annotations)
    assert list(judged) == ["a", "b", "c"]
    assert judged["a"].found.tolist() == [False] * 3
    assert judged["b"].verdicts == []
    assert judged["b"].boxes.shape == (0, 4)
    assert judged["c"].verdicts == [Verdict.BACKGROUND]
    assert judge({}, {}) == {}


def test_unknown_picture_or_class_is_refused():
    with pytest.raises(InputError, match="'b', which has no annotation"):
        judge({"b": found(("dog", 0.9, 1, 1, 5, 5))}, {"a": TRUTH})
    with pytest.raises(InputError, match="'dig'.*did you mean 'dog'"):
        judge_one(("dig", 0.9, 1, 1, 5, 5), classes=["cat", "dog"])


def test_random_pictures_agree_with_voc_scoring():
    random, names = np.random.default_rng(0), ["cat", "cow", "dog"]

    def boxes(n):
        corner, size = random.integers(1, 12, (n, 2)), random.integers(8, 14, (n, 2))
        return np.concatenate([corner, corner + size], axis=1)

    annotations = {
        f"{i}": objects(*((random.choice(names), random.random() < 0.2, *box) for box in boxes(4))) for i in range(60)
    }
    detections = {
        f"{i}": found(*((random.choice(names), round(random.random(), 1), *box) for box in boxes(12)))
        for i in range(60)
    }
    judged = judge(detections, annotations, score_threshold=0.3, classes=names)
    counted = {verdict: 0 for verdict in Verdict}
    for one in judged.values():
        for verdict in one.verdicts:
            counted[verdict] += 1
    matching = voc.match(detections, annotations, classes=names)
    expected = {kind: 0 for kind in ("true_positive", "false_positive", "ignored")}
    for curve in matching.per_class.values():
        for kind in expected:
            expected[kind] += np.count_nonzero(getattr(curve, kind) & (curve.scores >= 0.3))
    assert counted[Verdict.CORRECT] == expected["true_positive"] > 10
    assert counted[Verdict.DIFFICULT] == expected["ignored"] > 5
    assert sum(n for verdict, n in counted.items() if verdict.is_error) == expected["false_positive"]
    assert min(counted.values()) > 0
    difficult = [k for one in annotations.values() for k in one["difficult"]]
    hits = [k for one in judged.values() for k in one.found]
    assert sum(h and not d for h, d in zip(hits, difficult, strict=True)) == counted[Verdict.CORRECT]


def test_inverted_and_empty_boxes_overlap_nothing():
    judged = judge_one(("dog", 0.9, 20, 20, 19, 19), ("dog", 0.8, 30, 30, 11, 11), ("cat", 0.7, 20, 20, 19, 19))
    assert judged.verdicts == [Verdict.BACKGROUND] * 3
    assert judged.iou.tolist() == [0, 0, 0]
