"""Counts by class, size and kind on a hand-made comparison."""

from __future__ import annotations

import json

import numpy as np
from comparison_records import found, objects

from detkt.visualization.matching import compare
from detkt.visualization.tables import box_sizes, change_tables, picture_records, tables_text

# A small dog (20 x 20), a large cat (100 x 100), a difficult dog.
TRUTH = {
    "a": objects(("dog", 0, 11, 11, 30, 30), ("cat", 0, 101, 101, 200, 200), ("dog", 1, 11, 61, 30, 80)),
    "b": objects(("dog", 0, 11, 11, 30, 30)),
    "c": objects(("cat", 0, 1, 1, 32, 32)),
}
STUDENT = {
    "a": found(("dog", 0.9, 11, 11, 30, 30), ("dog", 0.7, 11, 11, 30, 29), ("cat", 0.8, 11, 11, 30, 30)),
    "b": found(("cat", 0.8, 101, 1, 150, 50)),
}
DISTILLED = {
    "a": found(("cat", 0.9, 101, 101, 200, 200), ("dog", 0.6, 11, 61, 30, 80), ("cat", 0.7, 101, 101, 200, 145)),
    "b": found(("dog", 0.9, 11, 11, 30, 30)),
}


def tables():
    return change_tables(compare(STUDENT, DISTILLED, TRUTH, teacher=STUDENT))


def test_sizes_are_cocos_areas_of_inclusive_pixels():
    boxes = np.array([[1, 1, 32, 31], [1, 1, 32, 32], [1, 1, 96, 95], [1, 1, 96, 96]])
    assert box_sizes(boxes) == ["small", "medium", "medium", "large"]
    assert box_sizes(np.empty((0, 4))) == []


def test_counts_in_all_and_of_difficult_objects():
    result = tables()
    assert result["total"] == {
        "objects": 4,
        "found": {"student": 1, "distilled": 2, "teacher": 1},
        "gained": 2,
        "lost": 1,
        "errors": {"student": 3, "distilled": 1, "teacher": 3},
        "removed": 3,
        "new": 1,
    }
    found_difficult = {"student": 0, "distilled": 1, "teacher": 0}
    assert result["difficult"] == {"objects": 1, "found": found_difficult, "gained": 1, "lost": 0}


def test_counts_by_class_size_and_kind():
    result = tables()

    def numbers(row):
        return [row[name] for name in ("objects", "gained", "lost", "removed", "new") if name in row]

    assert {name: numbers(row) for name, row in result["per_class"].items()} == {
        "cat": [2, 1, 0, 2, 1],  # removed: the dog taken for a cat, the background
        "dog": [2, 1, 1, 1, 0],  # removed: the duplicate
    }
    assert {size: numbers(row) for size, row in result["per_size"].items()} == {
        "small": [2, 1, 1, 2, 0],  # the cat box on the dog is as small as the dog
        "medium": [1, 0, 0, 1, 1],
        "large": [1, 1, 0, 0, 0],
    }
    assert {kind: numbers(row) for kind, row in result["per_error"].items()} == {
        "duplicate": [1, 0],
        "wrong class": [1, 0],
        "poor location": [0, 1],
        "background": [1, 0],
    }


def test_every_division_adds_up_to_the_total():
    result = tables()
    for name in ("per_class", "per_size", "per_error"):
        for key in ("removed", "new"):
            assert sum(row[key] for row in result[name].values()) == result["total"][key]
    for name in ("per_class", "per_size"):
        for key in ("objects", "gained", "lost"):
            assert sum(row[key] for row in result[name].values()) == result["total"][key]


def test_text_shows_the_numbers():
    text = tables_text(tables())
    lines = {line[:18].strip(): line[18:].split() for line in text.splitlines()}
    assert lines["all"] == ["4", "1", "2", "1", "2", "1", "|", "3", "1", "3", "3", "1"]
    assert lines["difficult (apart)"] == ["1", "0", "1", "0", "1", "0", "|"]
    assert lines["size: large"] == ["1", "0", "1", "0", "1", "0", "|", "0", "0", "0", "0", "0"]
    assert "error: wrong class" in text
    assert len({line.index("|") for line in text.splitlines() if "|" in line}) == 1


def test_records_of_pictures_are_json_and_leave_out_unchanged_ones():
    records = json.loads(json.dumps(picture_records(compare(STUDENT, DISTILLED, TRUTH))))
    assert list(records) == ["a", "b"]
    assert records["b"]["gained"] == [
        {"label": "dog", "box": [11, 11, 30, 30], "size": "small", "score": 0.9},
    ]
    assert [error["kind"] for error in records["a"]["removed"]] == ["wrong class", "duplicate"]
    assert [error["kind"] for error in records["a"]["new"]] == ["poor location"]
    assert records["a"]["new"][0]["iou"] == 0.45
    assert records["a"]["lost"][0]["score"] == 0.9


def test_an_error_that_both_make_is_neither_removed_nor_new():
    kept, new = ("dog", 0.9, 61, 1, 90, 30), ("cat", 0.8, 1, 61, 30, 90)
    gone = ("dog", 0.95, 1, 61, 30, 90)
    comparison = compare({"b": found(gone, kept)}, {"b": found(kept, new)}, {"b": TRUTH["b"]})
    result = change_tables(comparison)["per_class"]
    assert {name: (row["removed"], row["new"]) for name, row in result.items()} == {
        "cat": (0, 1),
        "dog": (1, 0),
    }
    assert [row["errors"] for row in result.values()] == [
        {"student": 0, "distilled": 1},
        {"student": 2, "distilled": 1},
    ]
