"""Precision and means of draws of the pictures, for VOC's averages and for COCO's.

A picture drawn w times has w times its hits, misses and objects (`detkt.evaluation.bootstrap`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np

Curve = TypeVar("Curve")


def at_hits(pictures: np.ndarray, hits: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(h, r) each: what every hit adds to the hits, how many there are with it, and the precision there.

    pictures: (n,) where the detections that count were found, in descending order of score, the last one a hit. hits:
    (h,) which of them are hits, 1 or more. weights: (pictures, r) int64.
    """
    gained = weights.take(pictures[hits], axis=0)
    found = np.cumsum(gained, axis=0)
    # From behind one hit to the next, the hit itself included.
    steps = np.add.reduceat(weights.take(pictures, axis=0), np.append(0, hits[:-1] + 1), axis=0)
    return gained, found, found / np.maximum(np.cumsum(steps, axis=0), 1)


def envelope(precision: np.ndarray) -> np.ndarray:
    """(h, r) the highest *precision* at this hit or a later one."""
    return np.maximum.accumulate(precision[::-1], axis=0)[::-1]


def mean_over_classes(
    curves: Mapping[str, Curve],
    objects: Mapping[str, np.ndarray],
    weights: np.ndarray,
    average_precision: Callable[[Curve, np.ndarray, np.ndarray], np.ndarray],
    averages: tuple[int, ...] = (),
) -> np.ndarray:
    """(*averages, r) mAP of r data sets that hold picture i ``weights[:, i]`` times.

    Classes without an object enter no mean; the mAP is nan where no class has one.

    Args:
        curves: of each class.
        objects: (pictures,) of each class, how many that count each picture holds.
        weights: (r, pictures) int64.
        average_precision: of a curve, the objects present (r,), 1 or more, and weights (pictures, r): (*averages, r).
        averages: the shape of what it measures at once.
    """
    weights = np.ascontiguousarray(weights.T)
    total, known = np.zeros((*averages, weights.shape[1])), np.zeros(weights.shape[1])
    for name, curve in curves.items():
        present = objects[name] @ weights
        # Where no object is present none is hit, so that 0 is added.
        total += average_precision(curve, np.maximum(present, 1), weights)
        known += present > 0
    return np.divide(total, known, out=np.full(total.shape, np.nan), where=known > 0)
