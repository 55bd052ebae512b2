"""Average precision of detections as the PASCAL VOC development kit computes it (VOCevaldet.m), in numpy.

Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010, section 4.2. For each class
the detections of all pictures are visited in descending order of score; each is assigned to the object of its
class in its picture with the highest IoU (the first of equals). With IoU >= threshold (the kit's rule;
py-faster-rcnn asks for ``>``) it is a true positive the first time that object is met and a false positive
after that; on a difficult object it counts as neither. Every other detection is a false positive. Boxes hold
both end pixels, so that widths and heights are x2 - x1 + 1 and y2 - y1 + 1.

Detections and annotations are records as in `detkt.evaluation.records`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from detkt.base.errors import InputError
from detkt.evaluation.records import (
    FlatRecords,
    Records,
    check_labels,
    flatten_annotations,
    flatten_detections,
    number_labels,
)


@dataclass(frozen=True)
class ClassMatch:
    """What became of the n detections of one class, in descending order of score.

    n_ground_truth counts the objects that are not difficult. All arrays are (n,): scores; pictures (index
    into `Matching.pictures`); rows (of the detection in its picture's arrays); true_positive, false_positive,
    ignored (exactly one of them is True: "ignored" lie on a difficult object); objects (row, in its picture's
    annotations, of the object of this class with the highest IoU, -1 if it overlaps none); iou (with that
    object, else 0).
    """

    n_ground_truth: int
    scores: np.ndarray
    pictures: np.ndarray
    rows: np.ndarray
    true_positive: np.ndarray
    false_positive: np.ndarray
    ignored: np.ndarray
    objects: np.ndarray
    iou: np.ndarray

    @property
    def n_detections(self) -> int:
        return len(self.scores)

    @cached_property
    def recall(self) -> np.ndarray:
        """(n,) share of the objects found down to each detection; nan where there is no object to find."""
        found = np.cumsum(self.true_positive, dtype=np.float64)
        return found / self.n_ground_truth if self.n_ground_truth else np.full(len(found), np.nan)

    @cached_property
    def precision(self) -> np.ndarray:
        """(n,) share of true positives down to each detection; 0 while all of them are ignored."""
        found = np.cumsum(self.true_positive, dtype=np.float64)
        return found / np.maximum(found + np.cumsum(self.false_positive), 1)


@dataclass(frozen=True)
class Matching:
    """pictures: the ids, in the order of the annotations; per_class: class name -> `ClassMatch`."""

    pictures: tuple
    per_class: dict[str, ClassMatch]
    iou_threshold: float


@dataclass(frozen=True)
class VocResult:
    """map: mean of the AP of the classes that have objects, nan if none has; per_class: class name -> AP, nan
    for a class without any object that is not difficult; curves: class name -> `ClassMatch`, with recall,
    precision and scores (n,), n_ground_truth and n_detections. All shares lie in [0, 1]."""

    map: float
    per_class: dict[str, float]
    curves: dict[str, ClassMatch]
    iou_threshold: float
    use_07_metric: bool


def average_precision(
    recall: Sequence[float] | np.ndarray, precision: Sequence[float] | np.ndarray, use_07_metric: bool
) -> float:
    """Area under a recall-precision curve (n,), both in [0, 1], recall never falling.

    ``use_07_metric=True``: the mean over the recalls t = 0, 0.1, ..., 1 of the highest precision at a recall
    >= t (VOC2007). The thresholds are the floats k * 0.1 of ``np.arange(0, 1.1, 0.1)``, as in all public
    code; three of them (k = 3, 6, 7) lie one rounding error above k / 10. False: the exact area under the
    curve once precision is made non-increasing (VOC2010 and later).

    An empty curve has AP 0; one whose recall is nan, as when there is nothing to find, has AP nan.
    Raises InputError for curves of unequal length and for a recall that falls.
    """
    recall, precision = np.asarray(recall, dtype=np.float64), np.asarray(precision, dtype=np.float64)
    if recall.ndim != 1 or recall.shape != precision.shape:
        raise InputError(f"recall {recall.shape} and precision {precision.shape} must be of one equal length (n,)")
    if np.isnan(recall).any():
        return float("nan")
    if np.any(recall[1:] < recall[:-1]):
        raise InputError("recall falls; sort the curve by descending score")
    # The kit divides 0 by 0 as long as all detections are ignored, and its max skips the nan.
    precision = np.where(np.isnan(precision), 0.0, precision)
    # The highest precision at this recall or a higher one; the 0 stands for recalls never reached.
    envelope = np.maximum.accumulate(np.append(precision, 0.0)[::-1])[::-1]
    if use_07_metric:
        return float(envelope[np.searchsorted(recall, np.arange(11) * 0.1)].sum() / 11)
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope[:-1]))


def match(
    detections: Records,
    annotations: Records,
    *,
    iou_threshold: float = 0.5,
    classes: Iterable[str] | None = None,
) -> Matching:
    """Assign every detection to an object or to none, as the module's head describes.

    Equal scores keep the order of *detections*. *classes* (default: all names in *annotations* and
    *detections*, sorted) are the classes scored: objects of other classes are left out, detections of other
    classes are an error.

    Raises InputError for a detection in a picture without annotations or of a class not scored, for malformed
    or non-finite numbers, and for an iou_threshold outside (0, 1].
    """
    if not 0 < iou_threshold <= 1:
        raise InputError(f"iou_threshold is {iou_threshold}; give a number above 0 and at most 1")
    found, truth = flatten_detections(detections, annotations), flatten_annotations(annotations)
    classes = sorted({*truth.labels, *found.labels}) if classes is None else list(dict.fromkeys(classes))
    pictures = tuple(annotations)
    found_numbers, truth_numbers = number_labels(found.labels, classes), number_labels(truth.labels, classes)
    check_labels(found, found_numbers, classes, pictures)

    found_of, truth_of = _split(found_numbers, len(classes)), _split(truth_numbers, len(classes))
    per_class = {
        name: _match_class(found, found_of[k], truth, truth_of[k], len(pictures), iou_threshold)
        for k, name in enumerate(classes)
    }
    return Matching(pictures, per_class, iou_threshold)


def _split(numbers: np.ndarray, n_classes: int) -> list[np.ndarray]:
    """For each class the indices, ascending, at which its number stands."""
    order = np.argsort(numbers, kind="stable")
    ends = np.cumsum(np.bincount(numbers, minlength=n_classes))[:n_classes]
    return np.split(order, ends)[:n_classes]


def _match_class(
    found: FlatRecords,
    chosen: np.ndarray,
    truth: FlatRecords,
    objects: np.ndarray,
    n_pictures: int,
    threshold: float,
) -> ClassMatch:
    """Match the detections at *chosen* with the objects at *objects* (of one class, grouped by picture)."""
    chosen = chosen[_descending(found.values[chosen])]
    pictures = found.pictures[chosen]
    per_picture = np.bincount(truth.pictures[objects], minlength=n_pictures)
    start = np.cumsum(per_picture) - per_picture
    n_rivals = per_picture[pictures]

    # One round for every object that the fullest picture holds: the k-th object of every picture at once.
    # `best` is the place in *objects* of the best so far.
    best_iou, best = np.zeros(len(chosen)), np.full(len(chosen), -1, dtype=np.intp)
    active = np.flatnonzero(n_rivals)
    for k in range(per_picture.max(initial=0)):
        active = active[n_rivals[active] > k]
        rival = start[pictures[active]] + k
        iou = _pairwise_iou(found.boxes.take(chosen[active], axis=0), truth.boxes.take(objects[rival], axis=0))
        better = iou > best_iou[active]
        best_iou[active[better]], best[active[better]] = iou[better], rival[better]

    difficult = truth.values[objects]
    assigned = np.flatnonzero(best_iou >= threshold)
    on_difficult = difficult[best[assigned]]
    ignored, true_positive = np.zeros((2, len(chosen)), dtype=bool)
    ignored[assigned[on_difficult]] = True
    claims = assigned[~on_difficult]
    # numpy keeps the value assigned last to a repeated index: backwards, that of the highest score.
    finder = np.full(len(objects), -1, dtype=np.intp)
    finder[best[claims[::-1]]] = claims[::-1]
    true_positive[finder[finder >= 0]] = True
    return ClassMatch(
        n_ground_truth=int(np.count_nonzero(~difficult)),
        scores=found.values[chosen],
        pictures=pictures,
        rows=found.rows[chosen],
        true_positive=true_positive,
        false_positive=~(true_positive | ignored),
        ignored=ignored,
        objects=np.append(truth.rows[objects], -1)[best],
        iou=best_iou,
    )


def _descending(scores: np.ndarray) -> np.ndarray:
    """The stable order that sorts *scores* from the highest to the lowest."""
    # numpy's unstable sort is several times faster than its stable one; only equal scores need mending.
    order = np.argsort(-scores)
    ranked = scores[order]
    equal = ranked[1:] == ranked[:-1]
    if equal.any():
        tied = np.flatnonzero(np.append(equal, False) | np.insert(equal, 0, False))
        order[tied] = order[tied][np.lexsort((order[tied], -ranked[tied]))]
    return order


def _pairwise_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n,) IoU of the n pairs of boxes (n, 4), both end pixels included; 0 where they share no pixel."""
    (left1, top1, right1, bottom1), (left2, top2, right2, bottom2) = first.T, second.T
    width = np.minimum(right1, right2) - np.maximum(left1, left2) + 1
    height = np.minimum(bottom1, bottom2) - np.maximum(top1, top2) + 1
    shared = np.maximum(width, 0) * np.maximum(height, 0)
    area1, area2 = (right1 - left1 + 1) * (bottom1 - top1 + 1), (right2 - left2 + 1) * (bottom2 - top2 + 1)
    # Only an inverted box can have no area, and it shares no pixel with any other.
    return np.divide(shared, area1 + area2 - shared, out=np.zeros(len(shared)), where=shared > 0)


def score(matching: Matching, *, use_07_metric: bool = True) -> VocResult:
    """Average precision of a matching, class by class, and its mean."""
    per_class = {
        name: average_precision(curve.recall, curve.precision, use_07_metric) if curve.n_ground_truth else float("nan")
        for name, curve in matching.per_class.items()
    }
    known = [value for value in per_class.values() if not np.isnan(value)]
    mean = float(np.mean(known)) if known else float("nan")
    return VocResult(mean, per_class, matching.per_class, matching.iou_threshold, use_07_metric)


def evaluate(
    detections: Records,
    annotations: Records,
    *,
    iou_threshold: float = 0.5,
    use_07_metric: bool = True,
    classes: Iterable[str] | None = None,
) -> VocResult:
    """Score *detections* against *annotations* as the VOC development kit does; see `match` for what it
    raises.

    A class without any object that is not difficult has AP nan and does not enter the mean; if no class has
    one, the mean is nan. A class whose objects have no detection has AP 0.
    """
    matching = match(detections, annotations, iou_threshold=iou_threshold, classes=classes)
    return score(matching, use_07_metric=use_07_metric)


def evaluate_both(
    detections: Records,
    annotations: Records,
    *,
    iou_threshold: float = 0.5,
    classes: Iterable[str] | None = None,
) -> tuple[VocResult, VocResult]:
    """(11-point, area) results of one matching; otherwise as `evaluate`."""
    matching = match(detections, annotations, iou_threshold=iou_threshold, classes=classes)
    return score(matching, use_07_metric=True), score(matching, use_07_metric=False)
