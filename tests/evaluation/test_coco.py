"""COCO scoring against pycocotools run directly on files, and the treatment of difficult objects by hand."""

from __future__ import annotations

import contextlib
import io
import json
import math

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detkt.base.errors import InputError
from detkt.evaluation.coco import evaluate_coco, to_coco_json, to_coco_results

CLASSES = ["car", "dog", "cat"]


def random_records(seed, n_pictures=12):
    rng = np.random.default_rng(seed)

    def boxes(n):
        corner = rng.integers(1, 200, (n, 2))
        return np.hstack([corner, corner + rng.integers(4, 160, (n, 2))]).astype(float)

    annotations, detections = {}, {}
    for number in range(n_pictures):
        n = int(rng.integers(0, 6))
        labels = rng.choice(CLASSES[:2], n)
        annotations[f"p{number}"] = {"boxes": boxes(n), "labels": labels, "difficult": np.zeros(n, bool)}
        extra = int(rng.integers(0, 5))
        moved = annotations[f"p{number}"]["boxes"] + rng.integers(-6, 7, (n, 4))
        detections[f"p{number}"] = {
            "boxes": np.vstack([moved, boxes(extra)]),
            "scores": rng.random(n + extra),
            "labels": [*labels.tolist(), *rng.choice(CLASSES[:2], extra).tolist()],
        }
    return detections, annotations


def direct(detections, annotations, folder):
    """The twelve numbers of pycocotools on boxes converted here, one by one, and written to files."""
    truth = {
        "images": [],
        "annotations": [],
        "categories": [{"id": k, "name": n} for k, n in enumerate(CLASSES)],
    }
    results = []
    for number, (picture, record) in enumerate(annotations.items()):
        truth["images"].append({"id": number})
        for (x1, y1, x2, y2), label in zip(record["boxes"], record["labels"], strict=True):
            width, height = float(x2 - x1 + 1), float(y2 - y1 + 1)
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": number,
                    "category_id": CLASSES.index(label),
                    "bbox": [float(x1) - 1, float(y1) - 1, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                }
            )
        found = detections[picture]
        for (x1, y1, x2, y2), value, label in zip(found["boxes"], found["scores"], found["labels"], strict=True):
            results.append(
                {
                    "image_id": number,
                    "category_id": CLASSES.index(label),
                    "bbox": [float(x1) - 1, float(y1) - 1, float(x2 - x1) + 1, float(y2 - y1) + 1],
                    "score": float(value),
                }
            )
    for name, content in (("truth", truth), ("results", results)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(folder / "truth.json"))
        evaluator = COCOeval(coco, coco.loadRes(str(folder / "results.json")), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


@pytest.mark.parametrize("seed", range(4))
def test_numbers_are_those_of_pycocotools(seed, tmp_path, capfd):
    detections, annotations = random_records(seed)
    result = evaluate_coco(detections, annotations, CLASSES)
    assert capfd.readouterr() == ("", "")
    evaluator = direct(detections, annotations, tmp_path)
    numbers = [result.ap, result.ap50, result.ap75, result.ap_small, result.ap_medium, result.ap_large]
    expected = [math.nan if value == -1 else value for value in evaluator.stats[:6]]
    assert 0.1 < result.ap < result.ap50 < 1
    np.testing.assert_allclose(numbers, expected, atol=1e-12)
    precision = evaluator.eval["precision"][:, :, :, 0, 2]
    assert result.per_class["car"] == pytest.approx(precision[:, :, 0].mean(), abs=1e-12)
    assert result.per_class["dog"] == pytest.approx(precision[:, :, 1].mean(), abs=1e-12)
    assert math.isnan(result.per_class["cat"])


def one(boxes, difficult=None, scores=None):
    record = {"boxes": np.array(boxes, float), "labels": ["car"] * len(boxes)}
    return record | ({"difficult": difficult} if scores is None else {"scores": scores})


def test_many_detections_of_a_difficult_object_are_neither_hit_nor_miss():
    annotations = {"a": one([[1, 1, 100, 100], [201, 1, 300, 100]], difficult=[True, False])}
    exact = [[1, 1, 100, 100], [1, 1, 100, 100], [201, 1, 300, 100]]
    result = evaluate_coco({"a": one(exact, scores=[0.9, 0.8, 0.7])}, annotations, ["car"])
    assert (result.ap, result.ap50, result.per_class["car"]) == pytest.approx((1.0, 1.0, 1.0))


def test_difficult_objects_are_met_with_the_ordinary_iou():
    # The first detection fills a quarter of the difficult object: a crowd would take it in.
    annotations = {"a": one([[1, 1, 100, 100], [201, 1, 300, 100]], difficult=[True, False])}
    detections = {"a": one([[1, 1, 50, 50], [201, 1, 300, 100]], scores=[0.9, 0.7])}
    assert evaluate_coco(detections, annotations, ["car"]).ap50 == pytest.approx(0.5)
    # At IoU 0.81 it is taken in up to 0.80 (7 of 10 thresholds) and a miss above.
    detections = {"a": one([[1, 1, 90, 90], [201, 1, 300, 100]], scores=[0.9, 0.7])}
    result = evaluate_coco(detections, annotations, ["car"])
    assert (result.ap50, result.ap) == (pytest.approx(1.0), pytest.approx(0.7 * 1 + 0.3 * 0.5))


def test_iou_is_that_of_areas_of_inclusive_boxes():
    # 10 x 10 pixels and 10 x 5 of them: IoU is 0.5, so a hit at 0.50 and at no other threshold.
    detections, annotations = {"a": one([[1, 1, 10, 5]], scores=[0.9])}, {"a": one([[1, 1, 10, 10]], [False])}
    result = evaluate_coco(detections, annotations, ["car"])
    assert result.ap50 == pytest.approx(1.0) and result.ap75 == 0.0 and result.ap == pytest.approx(0.1)
    assert result.ap_small == pytest.approx(0.1)
    assert math.isnan(result.ap_medium) and math.isnan(result.ap_large)


@pytest.mark.parametrize("annotations", [{}, {"a": one(np.empty((0, 4)), [])}, {"a": one([[1, 1, 9, 9]], [True])}])
@pytest.mark.parametrize("classes", [[], ["car", "dog"]])
def test_nothing_to_find_is_nan(annotations, classes):
    result = evaluate_coco({}, annotations, classes)
    assert all(math.isnan(value) for value in (result.ap, result.ap50, result.ap_large))
    assert list(result.per_class) == classes and all(math.isnan(value) for value in result.per_class.values())


def test_objects_without_detections_have_zero():
    result = evaluate_coco({}, {"a": one([[1, 1, 9, 9]], [False])}, ["car"])
    assert result.ap == result.per_class["car"] == 0.0


def test_json_holds_the_data_set():
    annotations = {
        "first": {
            "boxes": [[1, 1, 1, 1], [3, 4, 10, 20]],
            "labels": ["dog", "car"],
            "difficult": [False, True],
        },
        "second": {"boxes": [], "labels": [], "difficult": []},
        "third": {"boxes": [[2, 2, 4, 5]], "labels": ["bird"], "difficult": [False]},
    }
    content = json.loads(json.dumps(to_coco_json(annotations, ["car", "dog"], {"second": (640, 480)})))
    assert content["categories"] == [{"id": 1, "name": "car"}, {"id": 2, "name": "dog"}]
    assert content["images"] == [
        {"id": 1, "file_name": "first"},
        {"id": 2, "file_name": "second", "width": 640, "height": 480},
        {"id": 3, "file_name": "third"},
    ]
    pixel, tall = content["annotations"]
    expected = {"id": 1, "image_id": 1, "category_id": 2, "bbox": [0, 0, 1, 1], "area": 1, "iscrowd": 0}
    assert pixel == expected
    assert tall["bbox"] == [2, 3, 8, 17] and tall["area"] == 136 and tall["iscrowd"] == 1
    detections = {"third": {"boxes": np.float32([[3, 4, 10, 20]]), "scores": np.float32([0.5]), "labels": ["dog"]}}
    results = json.loads(json.dumps(to_coco_results(detections, annotations, ["car", "dog"])))
    assert results == [{"image_id": 3, "category_id": 2, "bbox": [2, 3, 8, 17], "score": 0.5}]


def test_bad_detections_are_named():
    annotations = {"a": one([[1, 1, 9, 9]], [False])}
    with pytest.raises(InputError, match="picture 'b', which has no annotation"):
        evaluate_coco({"b": one([[1, 1, 9, 9]], scores=[0.5])}, annotations, ["car"])
    with pytest.raises(InputError, match="class 'car', which is not among the classes .did you mean 'cart'"):
        evaluate_coco({"a": one([[1, 1, 9, 9]], scores=[0.5])}, annotations, ["cart"])
    with pytest.raises(InputError, match="scores nan is not finite"):
        evaluate_coco({"a": one([[1, 1, 9, 9]], scores=[math.nan])}, annotations, ["car"])
