"""Who found what: the detections of student, distilled student and teacher against the same ground truth.

`compare` puts the verdicts of `detkt.visualization.judging` side by side: objects gained and lost, errors removed
and new, picture by picture. `detkt.visualization.tables` counts them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from detkt.base.errors import InputError, suggestion
from detkt.evaluation.voc import Records
from detkt.visualization.judging import Judged, box_overlaps, judge, record_boxes

STUDENT, DISTILLED, TEACHER = "student", "distilled", "teacher"
_CHANGES = ("gained", "lost", "removed", "new")


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


def choose_pictures(
    comparison: Comparison,
    count: int = 6,
    *,
    class_name: str | None = None,
    images: Sequence[str] | None = None,
    sample: bool = False,
) -> list[Hashable]:
    """Ids of the pictures to show.

    *images*: these, in this order, whatever *count* is. Otherwise the *count* pictures with the largest change, for the
    better or the worse: objects gained and lost, errors removed and new; among equals those with more objects gained
    or lost, then the order of the data set. *class_name*: only objects and errors of this class count. Pictures with
    neither an object nor a detection (of the class) are not taken, unless there is no other.
    *sample*: a fair sample of the pictures with a change instead. They are ordered from the largest net gain (objects
    gained - lost, errors removed - new) to the largest net loss and divided into *count* groups of equal size; the
    middle one of each is taken. With fewer than *count* changes: as without *sample*.

    Raises InputError as `check_choice` does.
    """
    pictures = comparison.pictures
    check_choice(pictures, comparison.classes, count, class_name=class_name, images=images)
    if images is not None:
        by_name = {str(picture): picture for picture in pictures}
        return [by_name[name] for name in dict.fromkeys(images)]

    def counts(changes: PictureChanges) -> tuple[int, int, bool, int]:
        """(changes, objects among them, whether there is anything to see, net gain)."""

        def of_class(labels: Sequence[str], chosen: Iterable[int]) -> int:
            return sum(class_name in (None, labels[i]) for i in chosen)

        before, after = (changes.models[role].labels for role in (STUDENT, DISTILLED))
        gained, lost = of_class(changes.labels, changes.gained), of_class(changes.labels, changes.lost)
        removed, new = of_class(before, changes.removed), of_class(after, changes.new)
        held = any(of_class(labels, range(len(labels))) for labels in (changes.labels, before, after))
        return gained + lost + removed + new, gained + lost, held, gained - lost + removed - new

    counted = {picture: counts(changes) for picture, changes in pictures.items()}
    changed = sorted((one for one in pictures if counted[one][0]), key=lambda one: -counted[one][3])
    if sample and len(changed) >= count:
        return [changed[(2 * number + 1) * len(changed) // (2 * count)] for number in range(count)]
    shown = [picture for picture in pictures if counted[picture][2]] or list(pictures)
    return sorted(shown, key=lambda picture: (-counted[picture][0], -counted[picture][1]))[:count]


def choice_text(
    comparison: Comparison,
    shown: Sequence[Hashable],
    *,
    class_name: str | None,
    images: Sequence[str] | None,
    sample: bool,
) -> str:
    """How *shown* were taken by `choose_pictures` with these settings, and what changed in all pictures."""
    pictures = comparison.pictures.values()
    gained, lost, removed, new = (sum(len(getattr(one, name)) for one in pictures) for name in _CHANGES)
    changed = sum(any(len(getattr(one, name)) for name in _CHANGES) for one in pictures)
    if images is not None:
        how = f"{len(shown)} pictures chosen by name"
    elif sample and len(shown) <= changed:
        how = f"{len(shown)} of {changed} changed pictures, evenly from the largest gain to the largest loss"
    else:
        how = f"the {len(shown)} pictures that changed most"
    about = f" ({class_name})" if class_name is not None and images is None else ""
    return (
        f"{how}{about}. All {len(pictures)}: {gained} objects gained, {lost} lost; {removed} errors removed, {new} new."
    )


def check_choice(
    pictures: Iterable[Hashable],
    classes: Sequence[str],
    count: int = 6,
    *,
    class_name: str | None = None,
    images: Sequence[str] | None = None,
) -> None:
    """What `choose_pictures` needs to be right, before the work of detecting.

    Raises InputError: no picture at all, a picture in *images* or a class that is not there, a count below 1.
    """
    names = [str(picture) for picture in pictures]
    if not names or (images is not None and not images):
        raise InputError("there is no picture to draw; name at least one")
    for name in images or ():
        if name not in names:
            raise InputError(f"no picture '{name}' among the {len(names)} of the split{suggestion(name, names)}")
    if class_name is not None and class_name not in classes:
        raise InputError(
            f"no class '{class_name}'{suggestion(class_name, classes)}; the classes are {', '.join(classes)}"
        )
    if count < 1:
        raise InputError(f"the number of pictures is {count}; give 1 or more")


def _changes(picture: Hashable, truth: Mapping, models: dict[str, Judged], iou_threshold: float) -> PictureChanges:
    labels = [str(name) for name in truth["labels"]]
    difficult = np.asarray(truth.get("difficult", np.zeros(len(labels))), dtype=bool)
    before, after = models[STUDENT], models[DISTILLED]
    gained, lost = after.found & ~before.found, before.found & ~after.found
    removed, new = _without_counterpart(before, after, iou_threshold)
    return PictureChanges(
        picture,
        record_boxes(truth),
        labels,
        difficult,
        models,
        gained=np.flatnonzero(gained & ~difficult),
        lost=np.flatnonzero(lost & ~difficult),
        gained_difficult=np.flatnonzero(gained & difficult),
        lost_difficult=np.flatnonzero(lost & difficult),
        removed=removed,
        new=new,
    )


def error_pairs(student: Judged, distilled: Judged, iou_threshold: float) -> list[list[int]]:
    """All pairs (i, j) of student's error i and distilled model's error j that could be the same error.

    Those of the same class and an IoU >= *iou_threshold*, the highest IoU first, among equals by i, then j.
    """
    ours, theirs = student.errors, distilled.errors
    if not len(ours) or not len(theirs):
        return []
    same = np.array([[student.labels[i] == distilled.labels[j] for j in theirs] for i in ours])
    iou = np.where(same, box_overlaps(student.boxes[ours], distilled.boxes[theirs]), -1.0)
    rows, columns = np.nonzero(iou >= iou_threshold)
    order = np.argsort(-iou[rows, columns], kind="stable")
    return np.column_stack([ours[rows[order]], theirs[columns[order]]]).tolist()


def _without_counterpart(first: Judged, second: Judged, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the errors of *first* that *second* does not make, and the reverse."""
    taken: tuple[list[int], list[int]] = [], []
    for i, j in error_pairs(first, second, threshold):
        if i not in taken[0] and j not in taken[1]:
            taken[0].append(i)
            taken[1].append(j)
    return np.setdiff1d(first.errors, taken[0]), np.setdiff1d(second.errors, taken[1])
