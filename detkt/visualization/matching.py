"""Who found what: the detections of student, distilled student and teacher against the same ground truth.

`judge` says for every detection of one model what it is, and for every object which detection found it; `compare`
puts the models side by side: objects gained and lost, errors removed and new, picture by picture.

Matching is the VOC development kit's (see `detkt.evaluation.voc`: inclusive pixels, IoU >= 0.5, the highest score
first). What a detection is depends on detections of higher score alone, so judging with a low score threshold and
leaving out what scores less gives the same as judging with the higher threshold.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from torchvision.ops import box_iou

from detkt.data.boxes import voc_to_corners
from detkt.errors import InputError
from detkt.evaluation import voc
from detkt.evaluation.voc import ClassMatch, Records

STUDENT, DISTILLED, TEACHER = "student", "distilled", "teacher"
BACKGROUND_IOU = 0.1


class Verdict(StrEnum):
    """What a detection is. The first two are no errors.

    With t the IoU threshold (0.5), and tried in this order:

    - correct: IoU >= t with an object of its class that no higher score has found;
    - difficult: its best object has its class, IoU >= t, and is marked difficult: neither right nor wrong;
    - duplicate: IoU >= t with an object of its class that a higher score has found already;
    - wrong class: IoU >= t with an object of another class;
    - poor location: 0.1 <= IoU < t with an object of its class;
    - background: IoU < 0.1 with every object.

    What remains touches only objects of other classes, 0.1 <= IoU < t. It counts as *wrong class*, as in Hoiem,
    Chodpathumwan, Dai, "Diagnosing Error in Object Detectors" (ECCV 2012), where any overlap of 0.1 with another
    class is a confusion with it. A box that fits another object and merely touches one of its own class is of the
    wrong class too: it is about the object that it fits. Difficult objects take part like all others.
    """

    CORRECT = "correct"
    DIFFICULT = "difficult"
    DUPLICATE = "duplicate"
    WRONG_CLASS = "wrong class"
    POOR_LOCATION = "poor location"
    BACKGROUND = "background"

    @property
    def is_error(self) -> bool:
        return self not in (Verdict.CORRECT, Verdict.DIFFICULT)


ERRORS = tuple(verdict for verdict in Verdict if verdict.is_error)


@dataclass(frozen=True, eq=False)
class Judged:
    """The n detections of one model in one picture, by descending score, and what they mean for its m objects.

    boxes: (n, 4) float64, VOC's 1-based inclusive pixels; scores: (n,); labels: n class names; verdicts: n of
    `Verdict`; objects: (n,) the object that the verdict is about, -1 for background; iou: (n,) with that object,
    for background the highest with any; rows: (n,) the detection's row in the arrays that were judged;
    finder: (m,) the detection that found each object (for a difficult one the first that lies on it), -1: missed.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: list[str]
    verdicts: list[Verdict]
    objects: np.ndarray
    iou: np.ndarray
    rows: np.ndarray
    finder: np.ndarray

    @property
    def found(self) -> np.ndarray:
        """(m,) bool: which objects the model found."""
        return self.finder >= 0

    @property
    def errors(self) -> np.ndarray:
        """Indices of the detections that are errors, ascending."""
        return np.array([i for i, verdict in enumerate(self.verdicts) if verdict.is_error], dtype=np.intp)


@dataclass(frozen=True, eq=False)
class PictureChanges:
    """One picture: its m objects, each model's detections, and what differs between student and distilled.

    boxes: (m, 4) as in `Judged`; labels: m class names; difficult: (m,) bool; models: "student", "distilled" and,
    where it was given, "teacher". gained, lost: indices of objects that the distilled model finds and the student
    misses, and the reverse; gained_difficult, lost_difficult: the same of difficult objects, which no other count
    holds. removed: indices of the student's errors without a counterpart among the distilled model's; new: indices
    of the distilled model's errors without one among the student's.
    """

    picture: Hashable
    boxes: np.ndarray
    labels: list[str]
    difficult: np.ndarray
    models: dict[str, Judged]
    gained: np.ndarray
    lost: np.ndarray
    gained_difficult: np.ndarray
    lost_difficult: np.ndarray
    removed: np.ndarray
    new: np.ndarray


@dataclass(frozen=True, eq=False)
class Comparison:
    """pictures: id -> `PictureChanges`, in the order of the annotations; classes: all names; models: their roles."""

    pictures: dict[Hashable, PictureChanges]
    classes: list[str]
    models: tuple[str, ...]
    score_threshold: float
    iou_threshold: float


def compare(
    student: Records,
    distilled: Records,
    annotations: Records,
    *,
    teacher: Records | None = None,
    score_threshold: float = 0.5,
    iou_threshold: float = 0.5,
    classes: Iterable[str] | None = None,
) -> Comparison:
    """Judge two or three models' detections on the same *annotations* (records as in `detkt.evaluation.voc`).

    Errors of student and distilled are counterparts if they have the same class and an IoU >= *iou_threshold*,
    one to one, the highest IoU first. So the student's errors, less the removed, plus the new, are the distilled
    model's. A detection that falls just below *score_threshold* is gone: the threshold decides what counts.

    Raises InputError as `judge` does.
    """
    given = {STUDENT: student, DISTILLED: distilled} | ({} if teacher is None else {TEACHER: teacher})
    if classes is None:
        records = [*given.values(), annotations]
        classes = sorted({str(name) for one in records for record in one.values() for name in record["labels"]})
    classes = list(dict.fromkeys(classes))
    judged = {
        role: judge(
            detections,
            annotations,
            score_threshold=score_threshold,
            iou_threshold=iou_threshold,
            classes=classes,
        )
        for role, detections in given.items()
    }
    pictures = {
        picture: _changes(picture, record, {role: judged[role][picture] for role in given}, iou_threshold)
        for picture, record in annotations.items()
    }
    return Comparison(pictures, classes, tuple(given), score_threshold, iou_threshold)


def judge(
    detections: Records,
    annotations: Records,
    *,
    score_threshold: float = 0.5,
    iou_threshold: float = 0.5,
    classes: Iterable[str] | None = None,
) -> dict[Hashable, Judged]:
    """Picture id -> what every detection with a score of at least *score_threshold* is, for all *annotations*.

    Raises InputError for a threshold that is no number, and as `detkt.evaluation.voc.match` does.
    """
    if not math.isfinite(score_threshold):
        raise InputError(f"the score threshold is {score_threshold}; give a number, such as 0.5")
    matching = voc.match(detections, annotations, iou_threshold=iou_threshold, classes=classes)
    names, curves = list(matching.per_class), list(matching.per_class.values())
    above = [curve.scores >= score_threshold for curve in curves]

    def joined(column: str) -> np.ndarray:
        parts = [getattr(curve, column)[kept] for curve, kept in zip(curves, above, strict=True)]
        return np.concatenate(parts) if parts else np.empty(0)

    columns = {name: joined(name) for name in ("scores", "pictures", "rows", *_MATCH_COLUMNS)}
    labels = np.repeat(np.arange(len(names)), [np.count_nonzero(kept) for kept in above])
    order = np.lexsort((columns["rows"], -columns["scores"], columns["pictures"]))
    ends = np.cumsum(np.bincount(columns["pictures"].astype(np.intp), minlength=len(matching.pictures)))
    return {
        picture: _judge_picture(
            {name: column[chosen] for name, column in columns.items()},
            [names[label] for label in labels[chosen]],
            detections.get(picture),
            annotations[picture],
            iou_threshold,
        )
        for picture, chosen in zip(matching.pictures, np.split(order, ends[:-1]), strict=True)
    }


_MATCH_COLUMNS = ("true_positive", "ignored", "objects", "iou")
assert set(_MATCH_COLUMNS) <= set(ClassMatch.__dataclass_fields__)
