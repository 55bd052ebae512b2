"""COCO's AP of any draw of the pictures, from one matching.

pycocotools matches a picture by itself, as VOC does, so what `detkt.evaluation.bootstrap` says of weights holds here
too: a picture drawn w times has w times its hits, misses and objects, at each of the ten IoU thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from detkt.evaluation.coco import coco_matching
from detkt.evaluation.draws import at_hits, envelope, mean_over_classes
from detkt.evaluation.records import Records

HIT, MISS, IGNORED = 1, 0, -1
RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True, eq=False)
class CocoCurve:
    """A class's detections in descending order of score, down to the last hit at the lowest threshold.

    pictures: (n,) where each was found; verdicts: (10, n) int8 `HIT`, `MISS` or `IGNORED` at each IoU threshold.
    """

    pictures: np.ndarray
    verdicts: np.ndarray

    def average_precision(self, present: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """(r,) COCO's AP, the mean over the thresholds, of draws with ``weights`` (pictures, r) and ``present`` (r,)
        objects, 1 or more."""
        total = np.zeros(len(present))
        for verdicts in self.verdicts:
            kept = np.flatnonzero(verdicts != IGNORED)
            hits = np.flatnonzero(verdicts[kept] == HIT)
            if not len(hits):
                continue
            pictures = self.pictures[kept[: hits[-1] + 1]]
            _, found, precision = at_hits(pictures, hits, weights)
            highest = np.vstack([envelope(precision), np.zeros(len(present))])
            recall = found / present
            for column in range(len(present)):
                places = np.searchsorted(recall[:, column], RECALLS, side="left")
                total[column] += highest[places, column].mean()
        return total / len(self.verdicts)


def coco_curves(detections: Records, annotations: Records, classes: Sequence[str]) -> dict[str, CocoCurve]:
    """Class name -> its curve, of detections and objects as `detkt.evaluation.coco.evaluate_coco` matches them."""
    found = coco_matching(detections, annotations, classes)
    curves = {}
    for name, (pictures, scores, hit, ignored) in found.items():
        order = np.argsort(-scores, kind="stable")
        verdicts = np.where(ignored, IGNORED, np.where(hit, HIT, MISS)).astype(np.int8)[:, order]
        hits = np.flatnonzero((verdicts == HIT).any(axis=0))
        end = hits[-1] + 1 if len(hits) else 0
        curves[name] = CocoCurve(pictures[order][:end], verdicts[:, :end])
    return curves


def coco_map(curves: Mapping[str, CocoCurve], objects: Mapping[str, np.ndarray], weights: np.ndarray) -> np.ndarray:
    """(r,) COCO's AP of r data sets that hold picture i ``weights[:, i]`` times; nan where no class has an object.

    objects: class -> (pictures,) how many that are not ignored. weights: (r, pictures) int64.
    """
    return mean_over_classes(curves, objects, weights, CocoCurve.average_precision)
