"""Whether an exported network gives what torch gives, on some pictures."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detkt.base.errors import InputError

BOX_TOLERANCE = 0.1
"""Pixels of the picture."""
SCORE_TOLERANCE = 1e-3

Detections = dict[str, np.ndarray]
Runner = Callable[[np.ndarray], Sequence[np.ndarray]]
"""From pictures (N, C, H, W) to what an exported network gives, in the order of its outputs."""


@dataclass(frozen=True)
class Agreement:
    """How far an exported network and torch are apart on *pictures* pictures.

    compared: detections that both found, or logits.
    score: largest difference of a detection's score; of a logit, relative to the picture's largest if that is above 1.
    box: largest difference of a detection's corner, in pixels of the picture; None for classifiers.
    near_threshold: detections that one of them has and the other has not, because of the score threshold.
    rounded: of the pictures, those whose detections agree with torch's in float64 alone: in float32 torch suppressed
        another of two boxes, or took another of two proposals, that are equal up to rounding.
    """

    pictures: int
    compared: int
    score: float
    box: float | None = None
    near_threshold: int = 0
    rounded: int = 0

    def __str__(self) -> str:
        if self.box is None:
            return f"{self.pictures} pictures: logits differ by {self.score:.1e} at most"
        found = f"{self.pictures} pictures, {self.compared} detections"
        near = f"; {self.near_threshold} at the threshold found by one of them" if self.near_threshold else ""
        rounded = f"; {self.rounded} pictures agree with torch in float64 alone" if self.rounded else ""
        return f"{found}: boxes differ by {self.box:.1e} px at most, scores by {self.score:.1e}{near}{rounded}"


def compare_detectors(model: nn.Module, run: Runner, pictures: Sequence[Tensor], what: str) -> Agreement:
    """Detections of torch's *model* and of its export on each of *pictures*; see :func:`match_detections`.

    Pictures of one size go as one batch. A picture on which they differ is compared with torch's detections in float64,
    before it counts.

    Args:
        model: torchvision's detector.
        run: see :data:`Runner`.
        pictures: (3, H, W) each.
        what: whom to name beside torch in messages.

    Raises:
        InputError: they differ.
    """
    heads: Any = getattr(model, "roi_heads", model)
    threshold, limit = heads.score_thresh, heads.detections_per_img
    compared, near, rounded, boxes, scores = 0, 0, 0, 0.0, 0.0
    for number, (picture, found) in enumerate(zip(pictures, in_batches(run, pictures), strict=True), start=1):
        expected = detect(model, picture)
        pairs, unmatched = match_detections(expected, found, threshold, limit, what)
        if unmatched is not None:
            expected = detect(copy.deepcopy(model).double(), picture.double())
            pairs, still_unmatched = match_detections(expected, found, threshold, limit, what)
            if still_unmatched is not None:
                raise InputError(
                    f"{what} and torch differ on picture {number} of {len(pictures)} ({picture.shape[1]} x "
                    f"{picture.shape[2]}): {unmatched}; the file is not written"
                )
            rounded += 1
        first, second = pairs.T
        compared += len(pairs)
        near += len(expected["scores"]) + len(found["scores"]) - 2 * len(pairs)
        boxes = max(boxes, np.abs(expected["boxes"][first] - found["boxes"][second]).max(initial=0.0).item())
        scores = max(scores, np.abs(expected["scores"][first] - found["scores"][second]).max(initial=0.0).item())
    return Agreement(len(pictures), compared, scores, boxes, near, rounded)


def in_batches(run: Runner, pictures: Sequence[Tensor]) -> list[Detections]:
    """What *run* finds in each of *pictures*, of which those of one size go together."""
    groups = defaultdict(list)
    for number, picture in enumerate(pictures):
        groups[picture.shape].append(number)
    found: dict[int, Detections] = {}
    for numbers in groups.values():
        outputs = run(torch.stack([pictures[number] for number in numbers]).cpu().numpy())
        found |= zip(numbers, split_batch(outputs, len(numbers)), strict=True)
    return [found[number] for number in range(len(pictures))]


def split_batch(outputs: Sequence[np.ndarray], count: int) -> list[Detections]:
    """Boxes, labels, scores and pictures' numbers of a batch as detections of each of its *count* pictures."""
    boxes, labels, scores, pictures = outputs
    parts = [pictures == number for number in range(count)]
    return [{"boxes": boxes[own], "labels": labels[own], "scores": scores[own]} for own in parts]


def detect(model: nn.Module, picture: Tensor) -> Detections:
    """torch's detections in one picture."""
    with torch.no_grad():
        return {key: values.numpy() for key, values in model([picture])[0].items()}


def match_detections(
    expected: Detections, found: Detections, threshold: float, limit: int, what: str = "ONNX Runtime"
) -> tuple[np.ndarray, str | None]:
    """Pairs (k, 2) of indices of detections that are the same: of one label, nearest, and within the tolerances.

    Also says in words which detection has no partner and ought to have one, or None if there is none such. One need not
    have it whose score is at most :data:`SCORE_TOLERANCE` above the least that the other side gives out: *threshold*
    or, where that side has *limit* detections, the score of its last. *what*: the other side's name.
    """
    apart = np.abs(expected["boxes"][:, None] - found["boxes"]).max(axis=2)
    close = (apart <= BOX_TOLERANCE) & (expected["labels"][:, None] == found["labels"])
    close &= np.abs(expected["scores"][:, None] - found["scores"]) <= SCORE_TOLERANCE
    apart[~close] = np.inf
    matched: list[tuple[Any, Any]] = []
    while np.isfinite(apart).any():
        first, second = np.unravel_index(apart.argmin(), apart.shape)
        matched.append((first, second))
        apart[first], apart[:, second] = np.inf, np.inf
    pairs = np.array(matched, dtype=np.int64).reshape(-1, 2)
    for side, name, other in ((0, "torch", what), (1, what, "torch")):
        detections, others = (expected, found)[side], (found, expected)[side]["scores"]
        scores = detections["scores"]
        least = others.min() if len(others) >= limit else threshold
        alone = np.setdiff1d(np.flatnonzero(~(scores <= least + SCORE_TOLERANCE)), pairs[:, side])
        if len(alone):
            label, score = detections["labels"][alone[0]], scores[alone[0]]
            box = ", ".join(f"{corner:.1f}" for corner in detections["boxes"][alone[0]])
            return pairs, f"{name} finds label {label} with score {score:.4f} at ({box}), {other} nothing like it"
    return pairs, None


def compare_classifiers(model: nn.Module, run: Runner, pictures: Sequence[Tensor], what: str) -> Agreement:
    """Logits of torch's *model* and of its export, of the first picture alone and of all as one batch.

    Raises:
        InputError: they differ.
    """
    compared, largest = 0, 0.0
    for images in (torch.stack(list(pictures[:1])), torch.stack(list(pictures))):
        with torch.no_grad():
            expected = model(images).numpy()
        (found,) = run(images.numpy())
        scale = np.abs(expected).max(axis=1, keepdims=True).clip(min=1)
        difference = (np.abs(expected - found) / scale).max().item()
        if not difference <= SCORE_TOLERANCE:  # also where one of them is not a number
            raise InputError(
                f"{what} and torch differ on a batch of {len(images)}: logits by {difference:.2g}; the file is not "
                "written"
            )
        compared, largest = compared + found.size, max(largest, difference)
    return Agreement(len(pictures), compared, largest)
