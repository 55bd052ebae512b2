"""COCO average precision of VOC-style records, through pycocotools.

Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014: AP is the mean over the IoU thresholds
0.50, 0.55, ..., 0.95 of the 101-point AP of the (at most) 100 highest scores in a picture and class. Boxes
are areas here, not rows of pixels: the VOC box x1 y1 x2 y2 (1-based, both ends included) is x1-1, y1-1,
x2-x1+1, y2-y1+1 as x y w h.

Records of COCO's own data have besides "measured": (n, 5) x, y, width, height and area as in the file, which are
taken as they are (the area is that of the outline), and "crowd": (n,) bool, its ``iscrowd``. Such scores equal those of
pycocotools on the file, to the last digit.

Difficult objects are neither hit nor miss, as in VOC. pycocotools has one switch for that, ``iscrowd`` (its
``_prepare`` overwrites ``ignore`` with it): an ignored object takes in any number of detections. But the
switch also divides the intersection by the detection's area alone, which is meant for regions that hold many
objects. So difficult objects are marked ``iscrowd`` and the evaluator below measures the ordinary IoU with
those of them that are no crowd.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detkt.data.boxes import corners_to_xywh, voc_to_corners
from detkt.evaluation.records import (
    FlatRecords,
    Records,
    check_labels,
    flatten_annotations,
    flatten_detections,
    number_labels,
)


@dataclass(frozen=True)
class CocoResult:
    """AP over IoU 0.50:0.95, at IoU 0.50 and 0.75, for objects below 32², up to 96² and above 96 pixels of
    area, and class name -> AP. All in [0, 1]; nan where there is no object to find, and such classes enter no
    mean."""

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    per_class: dict[str, float]


def evaluate_coco(detections: Records, annotations: Records, classes: Sequence[str]) -> CocoResult:
    """COCO AP of *detections*, records as in `detkt.evaluation.voc`. Objects of other *classes* are left out.

    Raises InputError for a detection in a picture without annotations or of a class not among *classes*, and
    for malformed or non-finite numbers.
    """
    evaluator = _matched(detections, annotations, classes)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.accumulate()
        evaluator.summarize()
    ap, ap50, ap75, small, medium, large = (_nan_for_none(value) for value in evaluator.stats[:6])
    # (thresholds, recalls, classes, areas, detections per picture): all areas, 100 detections.
    precision = evaluator.eval["precision"][:, :, :, 0, -1]
    per_class = {name: _nan_for_none(precision[:, :, k].mean()) for k, name in enumerate(classes)}
    return CocoResult(ap, ap50, ap75, small, medium, large, per_class)


def coco_matching(
    detections: Records, annotations: Records, classes: Sequence[str]
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Class name -> what `evaluate_coco` makes of its n detections, all areas, picture by picture.

    (n,) the picture's number in the order of *annotations*; (n,) scores; (10, n) bool, whether each is a hit at each
    IoU threshold, and (10, n) bool, whether it is ignored.
    """
    evaluator = _matched(detections, annotations, classes)
    count = len(annotations)
    areas = len(evaluator.params.areaRng)
    found = {}
    for k, name in enumerate(classes):
        start = k * areas * count
        # pycocotools goes through the pictures by their ids, which are ours from 1 on.
        parts = [(i, one) for i, one in enumerate(evaluator.evalImgs[start : start + count]) if one is not None]
        numbers = [np.full(len(one["dtScores"]), i) for i, one in parts]
        hits, ignored = (
            np.concatenate([np.zeros((len(evaluator.params.iouThrs), 0)), *(one[key] for _, one in parts)], axis=1)
            for key in ("dtMatches", "dtIgnore")
        )
        scores = np.concatenate([np.zeros(0), *(one["dtScores"] for _, one in parts)])
        pictures = np.concatenate([np.zeros(0, np.int64), *numbers])
        found[str(name)] = pictures, scores, hits > 0, ignored > 0
    return found


def to_coco_json(
    annotations: Records, classes: Sequence[str], sizes: Mapping[Hashable, tuple[int, int]] | None = None
) -> dict:
    """The COCO data set (for ``json.dump``) of *annotations*, with objects of other *classes* left out.

    Pictures, classes and objects are numbered from 1 in their order; the picture's id stands in "file_name".
    *sizes*: picture id -> (width, height) in pixels, written where given. A difficult object has ``iscrowd``
    1, a crowd "crowd" 1 besides.
    """
    truth = flatten_annotations(annotations)
    measured, crowds = _as_measured(annotations, truth)
    numbers = number_labels(truth.labels, classes)
    images: list[dict[str, Any]] = []
    for number, picture in enumerate(annotations, start=1):
        images.append({"id": number, "file_name": str(picture)})
        if sizes is not None and picture in sizes:
            images[-1] |= {"width": int(sizes[picture][0]), "height": int(sizes[picture][1])}
    objects: list[dict[str, Any]] = []
    for i in np.flatnonzero(numbers < len(classes)):
        *box, area = measured[i].tolist()
        objects.append(
            {
                "id": len(objects) + 1,
                "image_id": int(truth.pictures[i]) + 1,
                "category_id": int(numbers[i]) + 1,
                "bbox": box,
                "area": area,
                "iscrowd": int(truth.values[i]),
            }
            | ({"crowd": 1} if crowds[i] else {})
        )
    categories = [{"id": number, "name": str(name)} for number, name in enumerate(classes, start=1)]
    return {"images": images, "annotations": objects, "categories": categories}


def to_coco_results(detections: Records, annotations: Records, classes: Sequence[str]) -> list[dict]:
    """The COCO result list of *detections*, numbered as `to_coco_json` numbers pictures and classes."""
    found = flatten_detections(detections, annotations)
    numbers = number_labels(found.labels, classes)
    check_labels(found, numbers, classes, tuple(annotations))
    return [
        {
            "image_id": int(picture) + 1,
            "category_id": int(number) + 1,
            "bbox": _xywh(box),
            "score": float(score),
        }
        for picture, number, box, score in zip(found.pictures, numbers, found.boxes, found.values, strict=True)
    ]


def _matched(detections: Records, annotations: Records, classes: Sequence[str]) -> _OrdinaryIoU:
    """Matched, not yet accumulated."""
    truth = to_coco_json(annotations, classes)
    results = to_coco_results(detections, annotations, classes)
    found = [
        {**result, "id": number, "area": result["bbox"][2] * result["bbox"][3]}
        for number, result in enumerate(results, start=1)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = _OrdinaryIoU(_index(truth), _index({**truth, "annotations": found}), iouType="bbox")
        evaluator.evaluate()
    return evaluator


class _OrdinaryIoU(COCOeval):
    """COCOeval that measures the ordinary IoU with ignored objects too, but for crowds."""

    def computeIoU(self, imgId, catId):  # noqa: N802, N803 (pycocotools' names)
        key = imgId, catId
        objects = self._gts[key]
        self._gts[key] = [{**item, "iscrowd": item.get("crowd", 0)} for item in objects]
        try:
            return super().computeIoU(imgId, catId)
        finally:
            self._gts[key] = objects


def _as_measured(annotations: Records, truth: FlatRecords) -> tuple[np.ndarray, np.ndarray]:
    """(n, 5) x, y, width, height, area of all objects, and (n,) whether they are crowds."""
    boxes = corners_to_xywh(voc_to_corners(truth.boxes))
    measured = np.column_stack([boxes, boxes[:, 2] * boxes[:, 3]])
    crowds = np.zeros(len(boxes), dtype=bool)
    starts = np.searchsorted(truth.pictures, np.arange(len(annotations)))
    for start, record in zip(starts.tolist(), annotations.values(), strict=True):
        if (own := record.get("measured")) is not None:
            measured[start : start + len(own)] = own
            crowds[start : start + len(own)] = record["crowd"]
    return measured, crowds


def _xywh(box: np.ndarray) -> list[float]:
    return corners_to_xywh(voc_to_corners(box)).tolist()


def _index(dataset: dict) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def _nan_for_none(value: float) -> float:
    """pycocotools says -1 where there is nothing to measure."""
    return float(value) if value > -1 else float("nan")
