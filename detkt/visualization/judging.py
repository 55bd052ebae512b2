"""What a detection is: correct, or which kind of error.

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

from detkt.base.errors import InputError
from detkt.data.boxes import voc_to_corners
from detkt.evaluation import voc
from detkt.evaluation.voc import ClassMatch, Records

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
    names = list(matching.per_class)
    rows = np.concatenate(
        [np.empty(0, _MATCHED)]
        + [_matched_rows(k, curve, score_threshold) for k, curve in enumerate(matching.per_class.values())]
    )
    rows = rows[np.lexsort((rows["row"], -rows["score"], rows["picture"]))]
    starts = np.searchsorted(rows["picture"], np.arange(len(matching.pictures) + 1))
    return {
        picture: _judge_picture(
            rows[starts[number] : starts[number + 1]],
            names,
            detections.get(picture),
            annotations[picture],
            iou_threshold,
        )
        for number, picture in enumerate(matching.pictures)
    }


_MATCHED = np.dtype(
    [
        *((name, np.intp) for name in ("picture", "row", "label", "object")),
        *((name, np.float64) for name in ("score", "iou")),
        *((name, np.bool_) for name in ("correct", "difficult")),
    ]
)


def _matched_rows(label: int, curve: ClassMatch, score_threshold: float) -> np.ndarray:
    """The detections of one class that score enough, as a structured array."""
    kept = curve.scores >= score_threshold
    rows = np.empty(np.count_nonzero(kept), _MATCHED)
    rows["label"] = label
    columns = {"picture": curve.pictures, "row": curve.rows, "object": curve.objects, "score": curve.scores}
    columns |= {"iou": curve.iou, "correct": curve.true_positive, "difficult": curve.ignored}
    for name, values in columns.items():
        rows[name] = values[kept]
    return rows


def _judge_picture(
    rows: np.ndarray, names: list[str], detected: Mapping | None, truth: Mapping, threshold: float
) -> Judged:
    """Verdicts of the detections at *rows* (`_MATCHED`, descending score) of one picture."""
    boxes = np.empty((0, 4)) if detected is None else record_boxes(detected)
    boxes, truth_boxes = boxes[rows["row"]], record_boxes(truth)
    labels, truth_labels = [names[label] for label in rows["label"]], list(truth["labels"])
    others, others_iou = _best_of_other_classes(boxes, labels, truth_boxes, truth_labels)
    objects, iou = rows["object"].copy(), rows["iou"].copy()
    finder = np.full(len(truth_boxes), -1, dtype=np.intp)
    verdicts = []
    for i in range(len(rows)):
        verdict = _verdict(rows["correct"][i], rows["difficult"][i], iou[i], others_iou[i], threshold)
        if not verdict.is_error and finder[objects[i]] < 0:
            finder[objects[i]] = i
        if verdict is Verdict.WRONG_CLASS:
            objects[i], iou[i] = others[i], others_iou[i]
        elif verdict is Verdict.BACKGROUND:
            objects[i], iou[i] = -1, max(iou[i], others_iou[i])
        verdicts.append(verdict)
    return Judged(boxes, rows["score"].copy(), labels, verdicts, objects, iou, rows["row"].copy(), finder)


def _verdict(correct: bool, difficult: bool, own: float, others: float, threshold: float) -> Verdict:
    """*own*, *others*: the highest IoU with an object of the detection's class, and of any other class."""
    if correct:
        return Verdict.CORRECT
    if difficult:
        return Verdict.DIFFICULT
    if own >= threshold:
        return Verdict.DUPLICATE
    if others >= threshold:
        return Verdict.WRONG_CLASS
    if own >= BACKGROUND_IOU:
        return Verdict.POOR_LOCATION
    return Verdict.WRONG_CLASS if others >= BACKGROUND_IOU else Verdict.BACKGROUND


def _best_of_other_classes(
    boxes: np.ndarray, labels: list[str], truth_boxes: np.ndarray, truth_labels: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """(n,) the object of another class with the highest IoU, -1 where there is none, and that IoU."""
    if not len(boxes) or not len(truth_boxes):
        return np.full(len(boxes), -1, dtype=np.intp), np.zeros(len(boxes))
    same = np.array([[name == other for other in truth_labels] for name in labels])
    iou = np.where(same, -1.0, box_overlaps(boxes, truth_boxes))
    best = iou.argmax(axis=1)
    highest = iou.max(axis=1)
    return np.where(highest > 0, best, -1), np.maximum(highest, 0.0)


def record_boxes(record: Mapping) -> np.ndarray:
    """(n, 4) float64 boxes of one picture's detections or objects."""
    return np.asarray(record["boxes"], dtype=np.float64).reshape(-1, 4)


def box_overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n, m) IoU of VOC boxes: as corners their width is x2 - x1 + 1, so this is the development kit's."""
    corners = (torch.from_numpy(voc_to_corners(boxes)) for boxes in (first, second))
    # An inverted box from somebody's result file has no area, and overlaps nothing.
    return np.nan_to_num(box_iou(*corners).numpy(), nan=0.0)
