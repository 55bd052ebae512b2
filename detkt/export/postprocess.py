"""What comes before and after the raw graphs of a detector, in NumPy alone, with torchvision's rules.

The file needs nothing else of the package: take it along to a device whose runtime has no non-maximum suppression and
no RoIAlign. *settings* everywhere are those of the ``model.raw.json`` beside the graphs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Settings = Mapping[str, Any]
Outputs = Mapping[str, np.ndarray]
Detections = dict[str, np.ndarray]

_SMALLEST = 1e-2
"""Pixels: shorter boxes of a two-stage detector are dropped."""


class RawDetector:
    """Pictures to detections through raw graphs.

    Args:
        settings: of ``model.raw.json``.
        first: the graph, from a picture (1, 3, H, W) to its outputs by name.
        second: of a two-stage detector the graph of its head, from RoIs (R, C, h, w) to its outputs by name.
    """

    def __init__(
        self,
        settings: Settings,
        first: Callable[[np.ndarray], Outputs],
        second: Callable[[np.ndarray], Outputs] | None = None,
    ) -> None:
        self.settings, self.first, self.second = settings, first, second
        self.anchors = make_anchors(settings["levels"])

    def __call__(self, picture: np.ndarray) -> Detections:
        """Detections in *picture* (3, H, W), RGB in [0, 1].

        Boxes (n, 4), x1 y1 x2 y2 in its pixels; labels (n,), 1 being the first class; and scores (n,), falling.
        """
        canvas, size = prepare(picture, self.settings)
        outputs = self.first(canvas[None])
        if self.second is not None:
            proposals = find_proposals(outputs, self.anchors, size, self.settings)
            maps = [outputs[name][0] for name in self.settings["pool"]["maps"]]
            read = self.second(pool(maps, proposals, self.settings["pool"]))
            found = two_stage(read, proposals, size, self.settings)
        elif self.settings["family"] == "ssd":
            found = ssd(outputs, self.anchors, size, self.settings)
        else:
            found = dense(outputs, self.anchors, size, self.settings)
        height, width = (np.float32(was) / np.float32(now) for was, now in zip(picture.shape[1:], size, strict=True))
        return found | {"boxes": found["boxes"] * np.array([width, height, width, height], np.float32)}


def prepare(picture: np.ndarray, settings: Settings) -> tuple[np.ndarray, tuple[int, int]]:
    """*picture* (3, H, W) resized, in the upper left of a canvas of the graph's size, and its height and width there.

    The rest has the mean colour, which the graph makes zeros. A picture that would not fit is made smaller.
    """
    height, width = settings["input"]
    if "fixed" in settings["resize"]:
        size = tuple(settings["resize"]["fixed"])
    else:
        sides = picture.shape[1:]
        scale = min(settings["resize"]["shorter"] / min(sides), settings["resize"]["longer"] / max(sides))
        scale = min(scale, height / sides[0], width / sides[1])
        size = tuple(max(1, math.floor(side * scale)) for side in sides)
    canvas = np.empty((3, height, width), np.float32)
    canvas[:] = np.array(settings["mean"], np.float32)[:, None, None]
    canvas[:, : size[0], : size[1]] = resize(picture, size)
    return canvas, (size[0], size[1])


def resize(picture: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """*picture* (C, H, W) at *size* (height, width): bilinear, corners not aligned, without antialiasing."""
    rows, columns = (_between(old, new) for old, new in zip(picture.shape[1:], size, strict=True))
    picture = picture.astype(np.float32, copy=False)
    low, high, part = rows
    picture = picture[:, low] * (1 - part)[:, None] + picture[:, high] * part[:, None]
    low, high, part = columns
    return picture[:, :, low] * (1 - part) + picture[:, :, high] * part


def _between(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    place = ((np.arange(new, dtype=np.float32) + np.float32(0.5)) * np.float32(old / new) - np.float32(0.5)).clip(min=0)
    low = np.minimum(place.astype(np.int64), old - 1)
    return low, np.minimum(low + 1, old - 1), place - low.astype(np.float32)


def make_anchors(levels: Sequence[Settings]) -> list[np.ndarray]:
    """Anchors (A, 4) of each level: those of its first cell, moved by its stride."""
    anchors = []
    for level in levels:
        (rows, columns), (down, right) = level["grid"], level["stride"]
        y, x = np.meshgrid(np.arange(rows) * down, np.arange(columns) * right, indexing="ij")
        moved = np.stack([x, y, x, y], -1).reshape(-1, 1, 4) + np.array(level["cells"])
        anchors.append(moved.reshape(-1, 4).astype(np.float32))
    return anchors


def decode(codes: np.ndarray, anchors: np.ndarray, coder: Settings) -> np.ndarray:
    """Boxes (n, 4) of *codes* (n, 4) at *anchors* (n, 4)."""
    sides = anchors[:, 2:] - anchors[:, :2]
    centres = anchors[:, :2] + np.float32(0.5) * sides
    if "weights" not in coder:  # distances from the centre to the four sides, as in FCOS
        codes = codes * np.tile(sides, 2) if coder["by_size"] else codes
        return np.concatenate([centres - codes[:, :2], centres + codes[:, 2:]], 1)
    codes = codes / np.array(coder["weights"], np.float32)
    centres = codes[:, :2] * sides + centres
    half = np.float32(0.5) * np.exp(np.minimum(codes[:, 2:], np.float32(coder["clip"]))) * sides
    return np.concatenate([centres - half, centres + half], 1)


def clip(boxes: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """*boxes* (n, 4) inside a picture of *size* (height, width)."""
    height, width = size
    return np.clip(boxes, 0, np.array([width, height, width, height], boxes.dtype))


def nms(boxes: np.ndarray, scores: np.ndarray, groups: np.ndarray, iou: float) -> np.ndarray:
    """Indices of the boxes (n, 4) that stay, by descending score: each group for itself."""
    order = np.argsort(-scores, kind="stable")
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = []
    while len(order):
        first, order = order[0], order[1:]
        kept.append(first)
        low = np.maximum(boxes[first, :2], boxes[order, :2])
        high = np.minimum(boxes[first, 2:], boxes[order, 2:])
        shared = (high - low).clip(min=0).prod(1)
        union = areas[first] + areas[order] - shared
        order = order[(groups[order] != groups[first]) | ~(shared > np.float32(iou) * union)]
    return np.array(kept, dtype=np.int64)


def find_proposals(
    outputs: Outputs, anchors: Sequence[np.ndarray], size: Sequence[int], settings: Settings
) -> np.ndarray:
    """Proposals (R, 4) in the resized picture, of the outputs objectness (1, A) and codes (1, A, 4)."""
    rules = settings["rpn"]
    boxes, scores, levels = [], [], []
    for level, start, own in _by_level(anchors):
        logits = outputs["objectness"][0, start : start + len(own)]
        best = _best(logits, rules["before"])
        boxes.append(decode(outputs["codes"][0, start + best], own[best], rules["coder"]))
        scores.append(sigmoid(logits[best]))
        levels.append(np.full(len(best), level))
    found, score, group = clip(np.concatenate(boxes), size), np.concatenate(scores), np.concatenate(levels)
    kept = is_at_least(found, rules["smallest"]) & (score >= np.float32(rules["score"]))
    found, score, group = found[kept], score[kept], group[kept]
    return found[nms(found, score, group, rules["iou"])[: rules["after"]]]


def pool(maps: Sequence[np.ndarray], boxes: np.ndarray, settings: Settings) -> np.ndarray:
    """RoIAlign (R, C, h, w) of *boxes* (R, 4), each on the one of *maps* (C, H, W) that is for its size."""
    levels = np.zeros(len(boxes), np.int64)
    if len(maps) > 1:
        sides = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1))
        with np.errstate(divide="ignore"):
            exact = settings["canonical_level"] + np.log2(sides / np.float32(settings["canonical_side"]))
        levels = np.floor(exact + np.float32(1e-6)).clip(settings["first"], settings["last"]).astype(np.int64)
        levels -= settings["first"]
    pooled = np.empty((len(boxes), maps[0].shape[0], *settings["size"]), np.float32)
    for number, (box, level) in enumerate(zip(boxes, levels, strict=True)):
        values = maps[int(level)]
        scaled = box * np.float32(settings["scales"][int(level)])
        # Bilinear samples and their means are weights of rows times weights of columns.
        rows, columns = (
            _sample(scaled[axis], scaled[axis + 2], out, length, settings["samples"])
            for axis, out, length in (
                (1, settings["size"][0], values.shape[1]),
                (0, settings["size"][1], values.shape[2]),
            )
        )
        pooled[number] = rows @ values @ columns.T
    return pooled


def _sample(start: float, end: float, out: int, length: int, samples: int) -> np.ndarray:
    """How much each of *length* places counts in each of *out* bins between *start* and *end*: (out, length)."""
    step = np.maximum(end - start, np.float32(1)) / np.float32(out)
    count = samples if samples > 0 else math.ceil(step)
    places = start + step * np.arange(out)[:, None] + (np.arange(count) + 0.5) * step / count
    weights = np.zeros((out, length), np.float32)
    inside = (places >= -1) & (places <= length)
    places = places.clip(0, length - 1)
    low = np.minimum(places.astype(np.int64), length - 1)
    high = np.minimum(low + 1, length - 1)
    part = places - low
    bins = np.broadcast_to(np.arange(out)[:, None], low.shape)
    np.add.at(weights, (bins, low), np.where(inside, 1 - part, 0) / count)
    np.add.at(weights, (bins, high), np.where(inside, part, 0) / count)
    return weights


def two_stage(outputs: Outputs, proposals: np.ndarray, size: Sequence[int], settings: Settings) -> Detections:
    """Detections in the resized picture, of the head's logits (R, K) and codes (R, 4 K), the background first."""
    scores = softmax(outputs["class_logits"])
    roi, place = np.nonzero(scores[:, 1:] > np.float32(settings["score"]))
    labels = place + 1
    codes = outputs["box_codes"].reshape(len(proposals), -1, 4)[roi, labels]
    boxes = clip(decode(codes, proposals[roi], settings["coder"]), size)
    kept = is_at_least(boxes, _SMALLEST)
    return _final(boxes[kept], labels[kept], scores[roi, labels][kept], settings)


def dense(outputs: Outputs, anchors: Sequence[np.ndarray], size: Sequence[int], settings: Settings) -> Detections:
    """Detections of RetinaNet or FCOS in the resized picture: the best of each level's anchors and classes."""
    boxes, labels, scores = [], [], []
    for _, start, own in _by_level(anchors):
        score = sigmoid(outputs["cls_logits"][0, start : start + len(own)])
        if "bbox_ctrness" in outputs:
            score = np.sqrt(score * sigmoid(outputs["bbox_ctrness"][0, start : start + len(own)]))
        flat = score.reshape(-1)
        best = _best(flat, settings["candidates"])
        best = best[flat[best] > np.float32(settings["score"])]
        place, label = np.divmod(best, score.shape[1])
        boxes.append(decode(outputs["bbox_regression"][0, start + place], own[place], settings["coder"]))
        labels.append(label)
        scores.append(flat[best])
    return _final(clip(np.concatenate(boxes), size), np.concatenate(labels), np.concatenate(scores), settings)


def ssd(outputs: Outputs, anchors: Sequence[np.ndarray], size: Sequence[int], settings: Settings) -> Detections:
    """Detections of SSD or SSDlite in the resized picture: the best of each class."""
    score = softmax(outputs["cls_logits"][0])
    found = clip(decode(outputs["bbox_regression"][0], np.concatenate(anchors), settings["coder"]), size)
    boxes, labels, scores = [], [], []
    for label in range(1, score.shape[1]):
        best = _best(score[:, label], settings["candidates"])
        best = best[score[best, label] > np.float32(settings["score"])]
        boxes.append(found[best])
        labels.append(np.full(len(best), label))
        scores.append(score[best, label])
    return _final(np.concatenate(boxes), np.concatenate(labels), np.concatenate(scores), settings)


def _final(boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, settings: Settings) -> Detections:
    kept = nms(boxes, scores, labels, settings["iou"])[: settings["limit"]]
    return {"boxes": boxes[kept], "labels": labels[kept], "scores": scores[kept]}


def _by_level(anchors: Sequence[np.ndarray]) -> list[tuple[int, int, np.ndarray]]:
    """(level, place of its first anchor among all, its anchors)."""
    starts = np.cumsum([0, *map(len, anchors)])
    return [(level, int(start), own) for level, (start, own) in enumerate(zip(starts, anchors, strict=False))]


def _best(scores: np.ndarray, count: int) -> np.ndarray:
    """Indices of the *count* highest *scores* (n,), descending."""
    return np.argsort(-scores, kind="stable")[:count]


def is_at_least(boxes: np.ndarray, side: float) -> np.ndarray:
    """Whether both sides of *boxes* (n, 4) are *side* long or longer."""
    return ((boxes[:, 2:] - boxes[:, :2]) >= np.float32(side)).all(1)


def sigmoid(values: np.ndarray) -> np.ndarray:
    """The logistic function."""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-values))


def softmax(values: np.ndarray) -> np.ndarray:
    """Along the last axis."""
    powers = np.exp(values - values.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)
