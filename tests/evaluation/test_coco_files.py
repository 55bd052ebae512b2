"""Scores on data in COCO's format against pycocotools run on the files themselves, to the last digit."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detkt.config import DataConfig
from detkt.data import test_set as open_test_set
from detkt.data.boxes import corners_to_voc
from detkt.evaluation.detector import score

NAMES = {0: "car", 3: "dog", 90: "traffic light"}


def write(root, seed: int, image_ids: list, texts: bool = False) -> dict:
    """A folder with crowds, ids with gaps, category 0, pictures without objects, outlines, boxes over the edge."""
    rng = np.random.default_rng(seed)
    (root / "annotations").mkdir(parents=True)
    (root / "images").mkdir()
    content = {"images": [], "annotations": [], "categories": [{"id": i, "name": n} for i, n in NAMES.items()]}
    for id in image_ids:
        Image.new("RGB", (160, 120)).save(root / f"images/p{id}.png")
        content["images"].append({"id": id, "file_name": f"p{id}.png", "width": 160, "height": 120})
        for _ in range(int(rng.integers(0, 7))):
            x, y = rng.uniform(0, 120, 2) * (1, 0.7)
            width, height = rng.uniform(4, 90, 2)
            # As COCO's: two digits, at most a pixel over the edge.
            box = [round(float(v), 2) for v in (x, y, min(width, 160.4 - x), min(height, 120.4 - y))]
            crowd = int(rng.random() < 0.15)
            content["annotations"].append(
                {
                    "id": 11 + 13 * len(content["annotations"]),
                    "image_id": id,
                    "category_id": int(rng.choice(list(NAMES))),
                    "bbox": box,
                    "area": round(float(rng.uniform(0.3, 1)) * box[2] * box[3], 3),
                    "iscrowd": crowd,
                    "segmentation": {"counts": [1, 2], "size": [120, 160]} if crowd else [[x, y, x + 1, y + 2, x, y]],
                }
            )
    rng.shuffle(content["images"])
    rng.shuffle(content["annotations"])
    written = json.loads(json.dumps(content))
    if texts:  # images by numbers, and annotations that call them by texts
        for annotation in written["annotations"]:
            annotation["image_id"] = str(annotation["image_id"])
    (root / "annotations/instances_val.json").write_text(json.dumps(written))
    return content


def detections(content: dict, seed: int) -> list[dict]:
    """Entries of a COCO result list: objects moved, others doubled, and noise; many scores are equal."""
    rng = np.random.default_rng(seed + 1000)
    found = []
    for annotation in content["annotations"]:
        for _ in range(int(rng.choice([0, 1, 2]))):
            x, y, width, height = annotation["bbox"]
            x1, y1, x2, y2 = np.float32([x, y, x + width, y + height] + rng.normal(0, 4, 4))
            category = annotation["category_id"] if rng.random() < 0.9 else int(rng.choice(list(NAMES)))
            corners = [float(v) for v in (x1, y1, max(x1, x2), max(y1, y2))]
            found.append((annotation["image_id"], category, corners, round(float(rng.random()), 1)))
    rng.shuffle(found)
    order = {image["id"]: [] for image in content["images"]}
    for id, category, (x1, y1, x2, y2), value in found:
        box = [x1, y1, x2 - x1, y2 - y1]
        order[id].append({"image_id": id, "category_id": category, "bbox": box, "score": value, "corners": (x2, y2)})
    return [entry for entries in order.values() for entry in entries]


def direct(content: dict, found: list[dict]) -> tuple[np.ndarray, dict[str, float]]:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = content
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes([{**one} for one in found]), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    values = evaluator.eval["precision"][:, :, :, 0, -1]
    per_class = {}
    for number, category in enumerate(sorted(NAMES)):
        own = values[:, :, number]
        per_class[NAMES[category]] = own[own > -1].mean() if (own > -1).any() else np.nan
    return evaluator.stats, per_class


@pytest.mark.parametrize("texts", [False, True], ids=["", "annotations call images by texts"])
@pytest.mark.parametrize("image_ids", [[1, 2, 3, 4, 5], [900, 7, 31, 32, 5000000001, 10, 8, 77]], ids=["1-5", "gaps"])
@pytest.mark.parametrize("seed", range(4))
def test_scores_are_pycocotools_own(tmp_path, seed, image_ids, texts):
    content = write(tmp_path / "set", seed, image_ids, texts)
    found = detections(content, seed)
    stats, per_class = direct(content, found)
    assert any(one["iscrowd"] for one in content["annotations"]) or seed != 0
    dataset = open_test_set(DataConfig(format="coco", root=str(tmp_path / "set"), test="val"))
    assert dataset.classes == ["car", "dog", "traffic light"]
    assert dataset.ids == [f"p{id}" for id in sorted(image_ids)]
    records = {}
    for id in image_ids:
        own = [one for one in found if one["image_id"] == id]
        corners = np.array([[*one["bbox"][:2], *one["corners"]] for one in own], dtype=float).reshape(-1, 4)
        labels = [NAMES[one["category_id"]] for one in own]
        records[f"p{id}"] = {"boxes": corners_to_voc(corners), "scores": [o["score"] for o in own], "labels": labels}
    ours = score(records, dataset.annotations(), dataset.classes)
    names = ("ap50", "ap75", "small", "medium", "large")
    expected = [np.nan if value == -1 else value for value in stats[:6]]
    np.testing.assert_array_equal([ours["map_coco"], *(ours["coco"][name] for name in names)], expected)
    assert ours["map_coco"] > 0.05
    for name, value in per_class.items():
        np.testing.assert_array_equal(ours["per_class"][name]["coco"], value)


def test_ids_that_are_texts(tmp_path):
    """They are in the order of texts, "10" before "9", as pycocotools has them."""
    content = write(tmp_path / "set", 0, ["9", "10", "a-1"])
    dataset = open_test_set(DataConfig(format="coco", root=str(tmp_path / "set"), test="val"))
    assert dataset.ids == ["p10", "p9", "pa-1"]
    assert sum(len(one["labels"]) for one in dataset.annotations().values()) == len(content["annotations"])
