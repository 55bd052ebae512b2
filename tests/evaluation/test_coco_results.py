"""COCO result files: ids in both directions, boxes, what is refused; pycocotools reads what is written."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from detkt.base.errors import InputError
from detkt.evaluation.coco_ids import coco_ids
from detkt.evaluation.coco_results import read_coco_results, write_coco_results
from detkt.evaluation.detection_files import read_detections, write_detections
from detkt.evaluation.voc import evaluate_both

PICTURES = ["000004", "000012", "2008_000012", "test_7", "val_7", "holiday"]
CLASSES = ["car", "dog", "cat"]
ENTRY = {"image_id": "000012", "category_id": 2, "bbox": [0, 0, 1, 1], "score": 0.5}


@pytest.fixture
def read(tmp_path):
    """``read(content, dataset=None)``: the detections in a file of this content, a text or what becomes JSON."""

    def call(content, dataset=None):
        path, other = tmp_path / "results.json", tmp_path / "dataset.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        if dataset is not None:
            other.write_text(json.dumps(dataset))
        return read_coco_results(path, coco_ids(PICTURES, CLASSES, None if dataset is None else other))

    return call


def test_boxes_become_inclusive_pixels(read):
    """By hand: the first pixel, and a box of 3 x 5 pixels whose left upper pixel is the 11th and the 21st."""
    found = read([ENTRY, {**ENTRY, "bbox": [10, 20, 3, 5], "score": 1, "category_id": 3, "segmentation": []}])
    assert list(found) == ["000012"]
    record = found["000012"]
    assert record["boxes"].tolist() == [[1, 1, 1, 1], [11, 21, 13, 25]]
    assert record["scores"].tolist() == [0.5, 1.0]
    assert record["labels"] == ["dog", "cat"]


@pytest.mark.parametrize(
    ("image_id", "picture"),
    [
        ("000012", "000012"),
        (12, "000012"),
        ("000012.jpg", "000012"),
        ("JPEGImages/000012.PNG", "000012"),
        ("C:\\data\\000012.jpeg", "000012"),
        (2008000012, "2008_000012"),
        ("holiday", "holiday"),
    ],
)
def test_pictures_by_name_file_and_number(read, image_id, picture):
    assert list(read([{**ENTRY, "image_id": image_id}])) == [picture]


def test_a_class_that_is_named_needs_no_number(read):
    found = read([{**ENTRY, "category_id": 0, "category_name": "cat"}, {**ENTRY, "category_name": "dog"}])
    assert found["000012"]["labels"] == ["cat", "dog"]


DATASET = {
    "images": [{"id": 7, "file_name": "images/000004.jpg"}, {"id": "x", "file_name": "elsewhere.jpg"}],
    "categories": [{"id": 90, "name": "cat"}, {"id": 0, "name": "dog"}, {"id": 3, "name": "plane"}],
}


def test_ids_are_those_of_the_data_set(read):
    found = read(
        [{**ENTRY, "image_id": 7, "category_id": 90}, {**ENTRY, "image_id": 7, "category_id": 0}], dataset=DATASET
    )
    assert list(found) == ["000004"] and found["000004"]["labels"] == ["cat", "dog"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 12}, "image_id 12 is not among the 'images' of"),
        ({"image_id": "x"}, "picture 'elsewhere.jpg' is not among the 6 of the split"),
        ({"category_id": 1}, "category_id 1 is not among the 'categories' of"),
        ({"category_id": [1]}, r"category_id \[1\] is not among the 'categories' of"),
        ({"category_id": 3}, "class 'plane' is not among 'car', 'dog', 'cat'"),
    ],
)
def test_ids_that_the_data_set_lacks(read, change, message):
    with pytest.raises(InputError, match=rf"results.json, entry 0 \(the first is 0\): {message}"):
        read([{**ENTRY, "image_id": 7, "category_id": 0, **change}], dataset=DATASET)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 13}, "image_id 13 is the number of no picture among the 6 of the split; give the JSON"),
        ({"image_id": 7}, "image_id 7 is the number of 'test_7', 'val_7' alike; give the JSON"),
        ({"image_id": "00012"}, r"picture '00012' is not among the 6 of the split \(did you mean '000012'\?\)"),
        ({"image_id": 12.0}, "image_id 12.0 is neither a whole number nor a name"),
        ({"image_id": True}, "image_id true is neither"),
        ({"category_id": 0}, r"category_id 0 is no number from 1 \(car\) to 3 \(cat\); give the JSON of the data set"),
        ({"category_id": 4}, "category_id 4 is no number"),
        ({"category_id": "dog"}, 'category_id "dog" is no number'),
        ({"category_name": "dig"}, r"class 'dig' is not among 'car', 'dog', 'cat' \(did you mean 'dog'\?\)"),
        ({"bbox": [0, 0, -1, 1]}, r"bbox \[0, 0, -1, 1\] has a negative width or height"),
        ({"bbox": [0, 0, 1, -0.5]}, "has a negative width or height"),
        ({"bbox": [0, 0, 1]}, "is not of four finite numbers"),
        ({"bbox": {"x": 0}}, "is not of four finite numbers"),
        ({"bbox": [0, 0, 1, "1"]}, "is not of four finite numbers"),
        ({"bbox": [0, 0, 1, float("inf")]}, "is not of four finite numbers"),
        ({"bbox": [0, 0, 1, 10**400]}, "is not of four finite numbers"),
        ({"score": float("nan")}, "score NaN is not a finite number"),
        ({"score": None}, "score null is not a finite number"),
        ({"score": True}, "score true is not a finite number"),
    ],
)
def test_faulty_entries_are_named_by_their_place(read, change, message):
    with pytest.raises(InputError, match=rf"results.json, entry 2 \(the first is 0\): .*{message}") as caught:
        read([ENTRY, ENTRY, {**ENTRY, **change}])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ENTRY)
def test_keys_must_be_there(read, key):
    with pytest.raises(InputError, match=f"entry 1 .*: it lacks '{key}'"):
        read([ENTRY, {name: value for name, value in ENTRY.items() if name != key}])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1, column 1 is not JSON"),
        ('[{"image_id": 1},\n]', "line 2, column 1 is not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("[" + "1" * 5000 + "]", "holds a number too long"),
        (DATASET, "is a COCO data set without scores, and no results, which are a list"),
        ({"annotations": []}, "is a COCO data set"),
        ({"map": 1}, "holds an object, but results are a list"),
        ("3", "holds a number, but"),
        ("null", "holds null, but"),
        ([[]], "entry 0 .* it is a list, no detection"),
        (["a"], "entry 0 .* it is a text, no detection"),
    ],
)
def test_what_is_no_result_file(read, content, message):
    with pytest.raises(InputError, match=message) as caught:
        read(content)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    ids = coco_ids(PICTURES, CLASSES)
    with pytest.raises(InputError, match="cannot read .*none.json: No such file"):
        read_coco_results(tmp_path / "none.json", ids)
    (tmp_path / "binary.json").write_bytes(b"\x89PNG\xff")
    with pytest.raises(InputError, match="binary.json is not JSON: it is no text"):
        read_coco_results(tmp_path / "binary.json", ids)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ([ENTRY], "is no COCO data set; it must hold lists 'images' and 'categories'"),
        ({"images": [], "categories": {}}, "is no COCO data set"),
        ({"images": [{"id": 1}], "categories": []}, "'images', item 0 .* lacks 'id' or 'file_name'"),
        ({"images": [], "categories": [{"id": None, "name": "a"}]}, "'categories', item 0 .* lacks 'id' or 'name'"),
        ({"images": [{"id": 1, "file_name": "a"}] * 2, "categories": []}, "'images' hold the id 1 twice"),
    ],
)
def test_faulty_data_sets(read, dataset, message):
    with pytest.raises(InputError, match=f"dataset.json.*{message}"):
        read([], dataset=dataset)


def test_no_detections(read, tmp_path):
    assert read([]) == {}
    write_coco_results(tmp_path / "none.json", {}, coco_ids(PICTURES, CLASSES))
    assert json.loads((tmp_path / "none.json").read_text()) == []


def random_records(seed, ties=False):
    """Objects and detections near them, with the odd digits that a network's boxes have."""
    rng = np.random.default_rng(seed)
    annotations, detections = {}, {}
    for picture in PICTURES:
        n = int(rng.integers(1, 7))
        corner = rng.integers(1, 300, (n, 2))
        boxes = np.hstack([corner, corner + rng.integers(30, 90, (n, 2))]).astype(float)
        labels = rng.choice(CLASSES, n)
        annotations[picture] = {"boxes": boxes, "labels": labels, "difficult": rng.random(n) < 0.2}
        near = np.repeat(boxes, 2, axis=0)
        near = (near + rng.normal(0, 4, near.shape)).astype(np.float32).clip(1)
        scores = rng.random(2 * n).astype(np.float32)
        detections[picture] = {
            "boxes": near,
            "scores": np.round(2 * scores) / 2 if ties else scores,
            "labels": np.repeat(labels, 2),
        }
    return detections, annotations


@pytest.mark.parametrize("dataset", [False, True])
@pytest.mark.parametrize("ties", [False, True])
def test_what_is_written_is_read_and_scores_the_same(tmp_path, dataset, ties):
    detections, annotations = random_records(3, ties)
    path = None
    if dataset:
        path = tmp_path / "dataset.json"
        images = [{"id": 10 * k, "file_name": f"{name}.jpg"} for k, name in enumerate(PICTURES)]
        names = [{"id": k + 5, "name": name} for k, name in enumerate(CLASSES[::-1])]
        path.write_text(json.dumps({"images": images, "categories": names}))
    ids = coco_ids(PICTURES, CLASSES, path)
    write_detections(tmp_path / "new" / "results.json", detections, ids, "test")
    entries = json.loads((tmp_path / "new" / "results.json").read_text())
    first = detections["000004"]
    assert entries[0]["image_id"] == (0 if dataset else "000004")
    assert entries[0]["category_name"] == first["labels"][0]
    number = CLASSES.index(first["labels"][0])
    assert entries[0]["category_id"] == (7 - number if dataset else number + 1)
    x1, y1, x2, y2 = first["boxes"][0].astype(float)
    assert entries[0]["bbox"] == pytest.approx([x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1], abs=1e-9)
    again = read_detections(tmp_path / "new" / "results.json", ids)
    assert list(again) == PICTURES
    for picture in PICTURES:
        assert np.array_equal(again[picture]["boxes"], detections[picture]["boxes"].astype(float)), "to the last bit"
        assert np.array_equal(again[picture]["scores"], detections[picture]["scores"].astype(float))
        assert again[picture]["labels"] == detections[picture]["labels"].tolist()
    for before, after in zip(
        evaluate_both(detections, annotations, classes=CLASSES),
        evaluate_both(again, annotations, classes=CLASSES),
        strict=True,
    ):
        assert 0.2 < before.map < 1
        assert after.per_class == before.per_class


@settings(max_examples=300, deadline=None)
@given(
    st.tuples(*[st.floats(-50, 4000)] * 2, *[st.floats(0, 4000)] * 2),
    st.floats(allow_nan=False, allow_infinity=False),
)
def test_any_box_comes_back(tmp_path_factory, box, score):
    """Exact but for the last bit of a corner: half a width less may be rounded away."""
    x, y, width, height = box
    record = {"boxes": [[x, y, x + width, y + height]], "scores": [score], "labels": ["car"]}
    path, ids = tmp_path_factory.getbasetemp() / "any.json", coco_ids(["a"], ["car"])
    write_coco_results(path, {"a": record}, ids)
    again = read_coco_results(path, ids)["a"]
    assert again["boxes"] == pytest.approx(np.array(record["boxes"]), abs=1e-12)
    assert again["scores"].tolist() == [score]


def test_an_inverted_box_becomes_an_empty_one(tmp_path):
    """Somebody's VOC files may hold one; it overlaps nothing, neither before nor after."""
    ids, path = coco_ids(["a"], ["car"]), tmp_path / "inverted.json"
    record = {"boxes": [[10, 10, 5, 20]], "scores": [1], "labels": ["car"]}
    write_coco_results(path, {"a": record}, ids)
    assert json.loads(path.read_text())[0]["bbox"] == [9, 9, 0, 11]
    again = read_coco_results(path, ids)
    assert again["a"]["boxes"].tolist() == [[10, 10, 9, 20]]
    truth = {"a": {"boxes": [[1, 1, 30, 30]], "labels": ["car"], "difficult": [False]}}
    (before, _), (after, _) = evaluate_both({"a": record}, truth), evaluate_both(again, truth)
    assert before.curves["car"].iou.tolist() == after.curves["car"].iou.tolist() == [0]


def test_pycocotools_reads_what_is_written(tmp_path):
    detections, _ = random_records(5)
    dataset = {
        "images": [{"id": 10 + k, "file_name": f"{name}.jpg"} for k, name in enumerate(PICTURES)],
        "annotations": [],
        "categories": [{"id": k, "name": name} for k, name in enumerate(CLASSES)],
        "info": {},
    }
    (tmp_path / "dataset.json").write_text(json.dumps(dataset))
    ids = coco_ids(PICTURES, CLASSES, tmp_path / "dataset.json")
    write_coco_results(tmp_path / "results.json", detections, ids)
    with contextlib.redirect_stdout(io.StringIO()):
        results = COCO(str(tmp_path / "dataset.json")).loadRes(str(tmp_path / "results.json"))
    assert len(results.anns) == sum(len(one["labels"]) for one in detections.values())
    (mine,) = [one for one in results.imgToAnns[11] if one["score"] == max(detections["000012"]["scores"])]
    best = detections["000012"]["scores"].argmax()
    x1, y1, x2, y2 = detections["000012"]["boxes"][best].astype(float)
    assert mine["area"] == pytest.approx((x2 - x1 + 1) * (y2 - y1 + 1))
    assert CLASSES[mine["category_id"]] == detections["000012"]["labels"][best]


def test_what_has_no_id_is_not_written(tmp_path, read):
    (tmp_path / "dataset.json").write_text(json.dumps(DATASET))
    ids = coco_ids(PICTURES, CLASSES, tmp_path / "dataset.json")
    car = {"boxes": [[1, 1, 2, 2]], "scores": [1], "labels": ["car"]}
    for picture, message in {
        "000004": "class 'car' is not among the 'categories' of .*dataset.json",
        "000012": "picture '000012' is not among the 'images' of .*dataset.json",
    }.items():
        with pytest.raises(InputError, match=f"out.json cannot be written: {message}"):
            write_coco_results(tmp_path / "out.json", {picture: car}, ids)
    assert not (tmp_path / "out.json").exists()
    # A picture that the data set lacks does no harm while nothing was found in it.
    write_coco_results(tmp_path / "out.json", {"000012": {"boxes": [], "scores": [], "labels": []}}, ids)


def test_a_file_is_no_folder_of_result_files(tmp_path):
    (tmp_path / "comp4_det_test_car.txt").write_text("000004 0.5 1 1 2 2\n")
    ids = coco_ids(PICTURES, CLASSES)
    with pytest.raises(InputError, match="give a COCO result file .* or the folder of VOC result files"):
        read_detections(tmp_path / "comp4_det_test_car.txt", ids)
    (tmp_path / "odd.json").mkdir()
    (tmp_path / "odd.json" / "comp4_det_test_car.txt").write_text("000004 0.5 1 1 2 2\n")
    assert read_detections(tmp_path / "odd.json", ids)["000004"]["labels"].tolist() == ["car"]
