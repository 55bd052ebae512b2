#!/usr/bin/env python
"""Times `detkt.evaluation.voc.evaluate` against the loop of the usual VOC scripts, on data of VOC2007 test's size.

The loop below visits the classes one after the other and in each class the detections one by one, each with a few
numpy calls on the objects of its picture. It is handed the detections already split by class and the objects as
arrays, as if all files were read; detkt's time includes the checking, splitting and joining of its records.
Processor time of one thread is compared, so that a busy machine makes little difference.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from detkt.evaluation.voc import evaluate, evaluate_both

CLASSES = [f"class{number:02d}" for number in range(20)]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=4952)
    parser.add_argument("--detections", type=int, default=100, help="a picture (default: 100)")
    arguments = parser.parse_args(arguments)
    detections, annotations = random_records(arguments.pictures, arguments.detections)
    by_class = split_by_class(detections)

    ours = []
    for _ in range(3):
        started = time.process_time()
        result = evaluate(detections, annotations, classes=CLASSES)
        ours.append(time.process_time() - started)
    started = time.process_time()
    looped = {name: loop(by_class[name], annotations, name) for name in CLASSES}
    theirs = time.process_time() - started

    eleven, area = evaluate_both(detections, annotations, classes=CLASSES)
    assert eleven.per_class == result.per_class
    differences = [
        abs(found.per_class[name] - looped[name][k]) for name in CLASSES for k, found in enumerate((eleven, area))
    ]
    n_objects = sum(len(record["labels"]) for record in annotations.values())
    print(
        f"{arguments.pictures} pictures x {arguments.detections} detections x {len(CLASSES)} classes, "
        f"{n_objects} objects; mAP {100 * eleven.map:.2f} (VOC07), {100 * area.map:.2f} (area)"
    )
    print(f"loop over single detections  {theirs:8.2f} s")
    print(f"detkt, median of 3           {np.median(ours):8.2f} s")
    print(f"ratio                        {theirs / np.median(ours):8.1f}")
    print(f"largest difference of an AP  {max(differences):8.1e}")


def random_records(n_pictures, n_detections):
    """Pictures of 500 x 375 with 1 to 5 objects, a fifth of them difficult; 3 of 10 detections lie near an object."""
    rng = np.random.default_rng(0)
    detections, annotations = {}, {}
    for number in range(n_pictures):
        n = rng.integers(1, 6)
        boxes, labels = random_boxes(rng, n), rng.choice(CLASSES, n)
        annotations[f"{number:06d}"] = {"boxes": boxes, "labels": labels, "difficult": rng.random(n) < 0.2}
        near, source = rng.random(n_detections) < 0.3, rng.integers(0, n, n_detections)
        moved = boxes[source] + np.rint(rng.normal(0, 12, (n_detections, 4)))
        detections[f"{number:06d}"] = {
            "boxes": np.where(near[:, None], moved, random_boxes(rng, n_detections)),
            "scores": rng.random(n_detections) ** np.where(near, 1, 2),
            "labels": np.where(near, labels[source], rng.choice(CLASSES, n_detections)),
        }
    return detections, annotations


def random_boxes(rng, n):
    corner = rng.integers(1, (400, 275), (n, 2))
    return np.hstack([corner, np.minimum(corner + rng.integers(30, 300, (n, 2)), (500, 375))]).astype(float)


def split_by_class(detections):
    """Class -> (picture ids, scores, boxes), what one result file holds."""
    rows = {name: ([], [], []) for name in CLASSES}
    for picture, record in detections.items():
        for label, value, box in zip(record["labels"], record["scores"], record["boxes"], strict=True):
            for column, entry in zip(rows[label], (picture, value, box), strict=True):
                column.append(entry)
    return {name: (pictures, np.array(values), np.array(boxes)) for name, (pictures, values, boxes) in rows.items()}


def loop(found, annotations, name, threshold=0.5):
    """(11-point AP, area AP) of one class, detection by detection."""
    objects, n_objects = {}, 0
    for picture, record in annotations.items():
        chosen = [i for i, label in enumerate(record["labels"]) if label == name]
        difficult = record["difficult"][chosen]
        objects[picture] = record["boxes"][chosen], difficult, [False] * len(chosen)
        n_objects += int(np.sum(~difficult))
    pictures, scores, boxes = found
    order = np.argsort(-scores, kind="stable")
    hit, miss = np.zeros(len(order)), np.zeros(len(order))
    for rank, i in enumerate(order):
        box, (rivals, difficult, taken) = boxes[i], objects[pictures[i]]
        best = -1.0
        if len(rivals):
            width = np.minimum(rivals[:, 2], box[2]) - np.maximum(rivals[:, 0], box[0]) + 1
            height = np.minimum(rivals[:, 3], box[3]) - np.maximum(rivals[:, 1], box[1]) + 1
            shared = np.maximum(width, 0) * np.maximum(height, 0)
            areas = (rivals[:, 2] - rivals[:, 0] + 1) * (rivals[:, 3] - rivals[:, 1] + 1)
            ious = shared / ((box[2] - box[0] + 1) * (box[3] - box[1] + 1) + areas - shared)
            nearest = np.argmax(ious)
            best = ious[nearest]
        if best < threshold:
            miss[rank] = 1
        elif not difficult[nearest]:
            if taken[nearest]:
                miss[rank] = 1
            else:
                hit[rank], taken[nearest] = 1, True
    hits, misses = np.cumsum(hit), np.cumsum(miss)
    recall, precision = hits / n_objects, hits / np.maximum(hits + misses, np.finfo(float).eps)
    eleven = sum(np.max(precision[recall >= t], initial=0) / 11 for t in np.arange(0, 1.1, 0.1))
    recall, precision = np.concatenate([[0], recall, [1]]), np.concatenate([[0], precision, [0]])
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    steps = np.flatnonzero(recall[1:] != recall[:-1])
    return eleven, np.sum((recall[steps + 1] - recall[steps]) * precision[steps + 1])


if __name__ == "__main__":
    main()
