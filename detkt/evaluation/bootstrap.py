"""How much of a mean average precision is luck of the pictures: bootstrap intervals, of one detector or of two.

Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 13 and 16: the pictures, not the objects,
are drawn with replacement as often as there are pictures, and the mAP of each such resample is taken; the
interval runs between two percentiles of these numbers.

VOC matching looks at one picture at a time, so a picture drawn w times has w times the hits, misses and objects
that it has when drawn once. A resample therefore needs no new matching: it gives every detection the weight of
its picture, and recall and precision are quotients of cumulative sums of these whole numbers along the
detections, which are sorted by score once and for all. The result is exactly what `detkt.evaluation.voc.evaluate`
says of the resampled data set, with the copies of a picture under ids of their own. (Only where scores are equal
does the order decide there; here all copies of a detection stand together, in the order of the detections.)

A class without any object to find in a resample has no AP there and does not enter that resample's mean, just as
it enters no mean of `detkt.evaluation.voc`. A resample without any object at all has no mAP and is left out.

COCO's AP is resampled in the same way, see `detkt.evaluation.coco_curves`; it takes ten times as long.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from detkt.base.errors import InputError
from detkt.evaluation.coco_curves import coco_curves, coco_map
from detkt.evaluation.draws import at_hits, envelope, mean_over_classes
from detkt.evaluation.records import Records, flatten_annotations, number_labels
from detkt.evaluation.voc import ClassMatch, match, score

METRICS = ("map_voc07", "map_area")
COCO_METRIC = "map_coco"
Curve = tuple[np.ndarray, np.ndarray]
# Resamples weighed at once: the weights of all detections of a class take 512 bytes a detection.
_CHUNK = 64


@dataclass(frozen=True, eq=False)
class Interval:
    """value: of the pictures as they are; low, high: ends of the percentile interval; samples: (resamples,) values
    of the resamples, nan for one without any object. All are nan where there is no object to find."""

    value: float
    low: float
    high: float
    samples: np.ndarray

    def numbers(self) -> dict[str, float]:
        """For JSON: all but the samples."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True, eq=False)
class PairedIntervals:
    """Two detectors in the same resamples: *difference* is *first* minus *second*, resample by resample."""

    first: Interval
    second: Interval
    difference: Interval

    @property
    def share_at_most_zero(self) -> float:
        """Share of the resamples in which the first detector is not better than the second (difference <= 0)."""
        return _share(self.difference.samples, np.less_equal)

    @property
    def two_sided_share(self) -> float:
        """Twice the smaller of the shares of resamples with difference <= 0 and >= 0, at most 1.

        It is read as a p-value often is, but is none: the resamples scatter about the difference observed, not
        about a difference of none.
        """
        smaller = min(self.share_at_most_zero, _share(self.difference.samples, np.greater_equal))
        return float(np.minimum(1, 2 * smaller))  # nan stays nan

    def numbers(self) -> dict[str, float]:
        """For JSON: the difference, its interval and the two shares."""
        shares = {"share_at_most_zero": self.share_at_most_zero, "two_sided_share": self.two_sided_share}
        return self.difference.numbers() | shares


def bootstrap_map(
    detections: Records,
    annotations: Records,
    *,
    metrics: Sequence[str] = METRICS,
    classes: Iterable[str] | None = None,
    iou_threshold: float = 0.5,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Percentile intervals of the mAP of one detector, by metric: "map_voc07" (11-point), "map_area", "map_coco".

    The arguments are those of `detkt.evaluation.voc.match`, of whose IoU threshold COCO's knows nothing; *confidence*
    is the share of the resamples that lie within the interval. Equal seeds draw equal resamples for data sets of as
    many pictures. Raises InputError as `match` does, for a data set without pictures, *resamples* below 1 and a
    *confidence* outside (0, 1).
    """
    _check(annotations, resamples, confidence)
    detector = _Detector(detections, annotations, metrics, iou_threshold, classes)
    (samples,) = _resample([detector], len(annotations), resamples, seed)
    return detector.intervals(samples, confidence)


def bootstrap_difference(
    first: Records,
    second: Records,
    annotations: Records,
    *,
    metrics: Sequence[str] = METRICS,
    classes: Iterable[str] | None = None,
    iou_threshold: float = 0.5,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, PairedIntervals]:
    """Percentile intervals of the mAPs of two detectors and of the first's minus the second's, by metric.

    The comparison is paired: both are scored on the same resamples, those of `bootstrap_map` with this seed, so
    that pictures hard for both do not blur the difference. Arguments and errors are those of `bootstrap_map`.
    """
    _check(annotations, resamples, confidence)
    classes = None if classes is None else list(classes)
    detectors = [_Detector(one, annotations, metrics, iou_threshold, classes) for one in (first, second)]
    samples = _resample(detectors, len(annotations), resamples, seed)
    ours, theirs = (one.intervals(maps, confidence) for one, maps in zip(detectors, samples, strict=True))
    return {
        name: PairedIntervals(
            ours[name],
            theirs[name],
            _interval(
                ours[name].value - theirs[name].value,
                ours[name].samples - theirs[name].samples,
                confidence,
            ),
        )
        for name in metrics
    }


class _Detector:
    """One detector's mAPs: of the pictures as they are, and of any draw of them."""

    def __init__(
        self,
        detections: Records,
        annotations: Records,
        metrics: Sequence[str],
        iou_threshold: float,
        classes: Iterable[str] | None,
    ) -> None:
        self.metrics, self._pictures = tuple(metrics), len(annotations)
        self._matching = match(detections, annotations, iou_threshold=iou_threshold, classes=classes)
        names = list(self._matching.per_class)
        self._curves = {name: counted(curve) for name, curve in self._matching.per_class.items()}
        self._objects = objects_per_picture(annotations, names)
        self._coco = coco_curves(detections, annotations, names) if COCO_METRIC in metrics else None

    def maps(self, weights: np.ndarray) -> np.ndarray:
        """(metrics, r) of r data sets that hold picture i ``weights[:, i]`` times."""
        found = dict(zip(METRICS, maps_of_curves(self._curves, self._objects, weights), strict=True))
        if self._coco is not None:
            found[COCO_METRIC] = coco_map(self._coco, self._objects, weights)
        return np.stack([found[metric] for metric in self.metrics])

    def intervals(self, samples: np.ndarray, confidence: float) -> dict[str, Interval]:
        """By metric, of (metrics, resamples)."""
        values = {name: score(self._matching, use_07_metric=name == METRICS[0]).map for name in METRICS}
        if self._coco is not None:
            once = np.ones((1, self._pictures), dtype=np.int64)
            values[COCO_METRIC] = float(coco_map(self._coco, self._objects, once)[0])
        return {name: _interval(values[name], row, confidence) for name, row in zip(self.metrics, samples, strict=True)}


def objects_per_picture(annotations: Records, classes: Sequence[str]) -> dict[str, np.ndarray]:
    """Class name -> (pictures,) how many objects that are not difficult each picture of *annotations* holds."""
    truth = flatten_annotations(annotations)
    numbers = number_labels(truth.labels, classes)
    counts = np.zeros((len(classes), len(annotations)), dtype=np.int64)
    counted = (numbers < len(classes)) & ~truth.values
    np.add.at(counts, (numbers[counted], truth.pictures[counted]), 1)
    return dict(zip(classes, counts, strict=True))


def maps_of_curves(curves: Mapping[str, Curve], objects: Mapping[str, np.ndarray], weights: np.ndarray) -> np.ndarray:
    """(2, r) mAP, 11-point and area, of r data sets that hold picture i ``weights[:, i]`` times.

    curves: of the detections that count, by class. objects: as `objects_per_picture` counts them, for each class.
    weights: (r, pictures) int64. Classes without an object enter no mean; the mAP is nan where no class has one.
    """
    return mean_over_classes(curves, objects, weights, _weighted_ap, (len(METRICS),))


def counted(match: ClassMatch) -> Curve:
    """The detections of a class that count, in descending order of score: (n,) pictures, (n,) whether each is a hit.

    Ignored detections count for nothing. Precision peaks at hits only, and only there does recall grow: what comes
    after the last hit does not matter.
    """
    kept = np.flatnonzero(~match.ignored)
    hits = np.flatnonzero(match.true_positive[kept])
    kept = kept[: hits[-1] + 1 if len(hits) else 0]
    return match.pictures[kept], match.true_positive[kept]


def _weighted_ap(curve: Curve, present: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(2, r) AP, 11-point and area, of one class; weights: (pictures, r); present: (r,) objects, 1 or more."""
    pictures, true_positive = curve
    hits = np.flatnonzero(true_positive)
    if not len(hits):
        return np.zeros((2, len(present)))
    gained, found, precision = at_hits(pictures, hits, weights)
    recall = found / present
    eleven = sum(precision.max(axis=0, where=recall >= t, initial=0.0) for t in np.arange(11) * 0.1) / 11
    return np.stack([eleven, (gained * envelope(precision)).sum(axis=0) / present])


def _resample(detectors: Sequence[_Detector], pictures: int, resamples: int, seed: int) -> list[np.ndarray]:
    """For each detector the (metrics, resamples) mAPs of the same resamples of the pictures."""
    maps = [np.empty((len(one.metrics), resamples)) for one in detectors]
    start = 0
    for weights in draws(pictures, resamples, seed):
        for out, one in zip(maps, detectors, strict=True):
            out[:, start : start + len(weights)] = one.maps(weights)
        start += len(weights)
    return maps


def draws(pictures: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each picture is drawn in each resample: (r, pictures) int64, some resamples at a time.

    The same numbers give the same draws.
    """
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, _CHUNK):
        rows = min(_CHUNK, resamples - start)
        drawn = generator.integers(pictures, size=(rows, pictures)) + pictures * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * pictures).reshape(rows, pictures)


def _interval(value: float, samples: np.ndarray, confidence: float) -> Interval:
    known = samples[~np.isnan(samples)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(known, [tail, 1 - tail]) if len(known) else (np.nan, np.nan)
    return Interval(float(value), float(low), float(high), samples)


def _share(samples: np.ndarray, compare: np.ufunc) -> float:
    known = samples[~np.isnan(samples)]
    return float(np.mean(compare(known, 0))) if len(known) else float("nan")


def _check(annotations: Records, resamples: int, confidence: float) -> None:
    if not len(annotations):
        raise InputError("there are no pictures to resample; give a data set that has some")
    if resamples < 1:
        raise InputError(f"resamples is {resamples}; give 1 or more")
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence}; give a number between 0 and 1, such as 0.95")
