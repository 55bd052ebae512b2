"""VOC and COCO scores of thousands of random small cases against slow, independent computations.

The cases are dense in what is rare in life: equal scores, several detections of one object, difficult objects,
classes without objects or detections, boxes on the border of the picture and of a single pixel, and an IoU equal
to the threshold. Boxes lie on a grid of 5 x 5 cells; here they are sets of cells, and overlaps are fractions of
whole numbers.
"""

from __future__ import annotations

import contextlib
import io
import math
from fractions import Fraction
from itertools import combinations_with_replacement, permutations, product

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detkt.evaluation.coco import evaluate_coco
from detkt.evaluation.voc import evaluate_both

CLASSES = ["car", "dog", "cat"]
SPANS = list(combinations_with_replacement(range(1, 6), 2))
BOXES = [(x1, y1, x2, y2) for (x1, x2), (y1, y2) in product(SPANS, SPANS)]


def cells(box):
    x1, y1, x2, y2 = box
    row = ((1 << (x2 - x1 + 1)) - 1) << x1
    return sum(row << (10 * y) for y in range(y1, y2 + 1))


CELLS = {box: cells(box) for box in BOXES}


def overlap(one, other):
    shared, united = CELLS[one] & CELLS[other], CELLS[one] | CELLS[other]
    return Fraction(shared.bit_count(), united.bit_count())


def decoded(spans, objects, found):
    """(detections, objects): lists of (picture, label, box, score 0 ... 3) and (picture, label, box, difficult).

    One byte makes a row, for hypothesis draws and shrinks bytes many times faster than tuples. All boxes are
    among five, so that many of them are equal or overlap.
    """
    boxes = [(x1, y1, x2, y2) for (x1, x2), (y1, y2) in ((SPANS[a % 15], SPANS[b % 15]) for a, b in spans)]

    def rows(content):
        return [(n % 3, CLASSES[n // 3 % 3], boxes[n // 9 % 5], n // 45) for n in content]

    return rows(n % 180 for n in found), [(*row[:3], row[3] == 1) for row in rows(n % 90 for n in objects)]


def some_bytes(most):
    return st.just(b"") | st.binary(min_size=most // 3, max_size=most)


five_boxes = st.binary(min_size=10, max_size=10).map(
    lambda content: list(zip(content[::2], content[1::2], strict=True))
)
cases = st.builds(decoded, five_boxes, some_bytes(12), some_bytes(24))


def records(rows, column, scale=1, order=(0, 1, 2)):
    """The rows as records of three pictures; every cell is scale x scale pixels."""
    result = {}
    for number in order:
        here = [row for row in rows if row[0] == number]
        boxes = [
            [scale * (x1 - 1) + 1, scale * (y1 - 1) + 1, scale * x2, scale * y2] for _, _, (x1, y1, x2, y2), _ in here
        ]
        result[f"p{number}"] = {
            "boxes": np.array(boxes, dtype=float).reshape(-1, 4),
            "labels": [row[1] for row in here],
            column: np.array([row[3] for row in here], dtype=bool if column == "difficult" else float),
        }
    return result


orders = st.sampled_from(list(permutations(range(3))))
many = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


# --- VOC


def slow_voc(found, objects, name, threshold, order):
    """(11-point AP, area AP) of one class as exact fractions, nan where there is nothing to find."""
    n = sum(label == name and not difficult for _, label, _, difficult in objects)
    if n == 0:
        return math.nan, math.nan
    ranked = [row for number in order for row in found if row[0] == number and row[1] == name]
    ranked.sort(key=lambda row: -row[3])
    taken, hits, misses, curve = set(), 0, 0, []
    for picture, _, box, _ in ranked:
        rivals = [i for i, row in enumerate(objects) if row[0] == picture and row[1] == name]
        best = max(rivals, key=lambda i: overlap(box, objects[i][2]), default=None)  # the first of equals
        if best is not None and overlap(box, objects[best][2]) >= threshold:
            if objects[best][3]:
                continue
            hits, misses = (hits + 1, misses) if best not in taken else (hits, misses + 1)
            taken.add(best)
        else:
            misses += 1
        curve.append((hits, Fraction(hits, hits + misses)))

    def reached(recall_is_enough):
        return max((precision for hits, precision in curve if recall_is_enough(hits)), default=Fraction(0))

    # Recalls are compared as floats, as everywhere: 3 / 10 does not reach 3 * 0.1.
    eleven = sum(reached(lambda hits, k=k: hits / n >= k * 0.1) for k in range(11)) / 11
    area = sum(reached(lambda hits, k=k: hits >= k) for k in range(1, n + 1)) / n
    return float(eleven), float(area)


@settings(many, max_examples=800)
@given(cases, orders, st.sampled_from([1, 7]))
def test_voc_agrees_with_exact_fractions(case, order, scale):
    found, objects = case
    detections, annotations = records(found, "scores", scale, order), records(objects, "difficult", scale)
    for threshold in (Fraction(1, 2), Fraction(1, 3), Fraction(3, 4), Fraction(1)):
        results = evaluate_both(detections, annotations, iou_threshold=float(threshold), classes=CLASSES)
        expected = [slow_voc(found, objects, name, threshold, order) for name in CLASSES]
        for result, values in zip(results, zip(*expected, strict=True), strict=True):
            assert list(result.per_class.values()) == pytest.approx(values, abs=1e-12, nan_ok=True)
            known = [value for value in values if not math.isnan(value)]
            mean = sum(known) / len(known) if known else math.nan
            assert result.map == pytest.approx(mean, abs=1e-12, nan_ok=True)


# --- COCO

IOUS, RECALLS = np.linspace(0.5, 0.95, 10), np.linspace(0, 1, 101)


def slow_coco(found, objects, name, threshold):
    """101-point AP of one class at one IoU, difficult objects neither hit nor miss; nan with nothing to find."""
    n = sum(label == name and not difficult for _, label, _, difficult in objects)
    if n == 0:
        return math.nan
    judged = []
    for picture in range(3):
        free = [row for row in objects if row[:2] == (picture, name) and not row[3]]
        hard = [row for row in objects if row[:2] == (picture, name) and row[3]]
        here = sorted((row for row in found if row[:2] == (picture, name)), key=lambda row: -row[3])
        for _, _, box, value in here:
            # Unlike VOC: the best of the objects still free, the last of equals; if none will do, a difficult one.
            ious = [float(overlap(box, row[2])) for row in free]
            if max(ious, default=0.0) >= threshold:
                free.pop(max(range(len(free)), key=lambda i: (ious[i], i)))
                judged.append((value, True))
            elif not any(float(overlap(box, row[2])) >= threshold for row in hard):
                judged.append((value, False))
    judged.sort(key=lambda entry: -entry[0])
    hits = np.cumsum([hit for _, hit in judged])
    precision = [int(hit) / (rank + 1) for rank, hit in enumerate(hits)]
    return (
        sum(max((p for p, hit in zip(precision, hits, strict=True) if hit / n >= r), default=0) for r in RECALLS) / 101
    )


@settings(many, max_examples=200)
@given(cases, orders)
def test_coco_with_difficult_objects_agrees_with_a_slow_computation(case, order):
    found, objects = case
    result = evaluate_coco(records(found, "scores", 1, order), records(objects, "difficult"), CLASSES)
    table = np.array([[slow_coco(found, objects, name, iou) for iou in IOUS] for name in CLASSES])
    per_class = table.mean(axis=1)
    assert list(result.per_class.values()) == pytest.approx(per_class, abs=1e-12, nan_ok=True)
    known = table[~np.isnan(per_class)]
    expected = [known.mean(), known[:, 0].mean(), known[:, 5].mean()] if len(known) else [math.nan] * 3
    assert [result.ap, result.ap50, result.ap75] == pytest.approx(expected, abs=1e-12, nan_ok=True)


def indexed(images, rows, scale, numbered):
    """A COCO object made here from the rows, box by box."""
    coco, content = COCO(), []
    for number, (picture, label, (x1, y1, x2, y2), value) in enumerate(rows, start=1):
        width, height = scale * (x2 - x1 + 1), scale * (y2 - y1 + 1)
        entry = {"id": number, "image_id": picture, "category_id": CLASSES.index(label), "iscrowd": 0}
        entry |= {"bbox": [scale * (x1 - 1), scale * (y1 - 1), width, height], "area": width * height}
        content.append(entry | ({"score": value} if numbered else {}))
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES)]
    coco.dataset = {"images": images, "annotations": content, "categories": categories}
    coco.createIndex()
    return coco


@settings(many, max_examples=200)
@given(cases, st.sampled_from([1, 12, 30]))
def test_coco_agrees_with_pycocotools(case, scale):
    """Cells of 12 and 30 pixels make medium and large objects of some boxes. No object is difficult: see above."""
    found, objects = case[0], [(*row[:3], False) for row in case[1]]
    result = evaluate_coco(records(found, "scores", scale), records(objects, "difficult", scale), CLASSES)
    images = [{"id": number} for number in range(3)]
    with contextlib.redirect_stdout(io.StringIO()):
        truth, seen = indexed(images, objects, scale, False), indexed(images, found, scale, True)
        direct = COCOeval(truth, seen, "bbox")
        direct.evaluate()
        direct.accumulate()
        direct.summarize()
    numbers = [result.ap, result.ap50, result.ap75, result.ap_small, result.ap_medium, result.ap_large]
    expected = [math.nan if value == -1 else value for value in direct.stats[:6]]
    assert numbers == pytest.approx(expected, abs=1e-12, nan_ok=True)
