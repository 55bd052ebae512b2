"""VOC result files: what is written, what is read, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from detkt.base.errors import InputError
from detkt.evaluation.voc import evaluate
from detkt.evaluation.voc_results import read_results, write_results

CLASSES = ["car", "red_blood_cell", "cell"]


def detections():
    rng = np.random.default_rng(0)
    records = {}
    for number in range(20):
        n = number % 5
        corner = rng.integers(1, 4000, (n, 2)) / 7
        records[f"2007_{number:06d}"] = {
            "boxes": np.hstack([corner, corner + rng.integers(4, 400, (n, 2)) / 7]),
            "scores": rng.random(n).astype(np.float32),
            "labels": rng.choice(CLASSES, n),
        }
    return records


def by_class(record, name):
    chosen = np.array(record["labels"]) == name
    return record["boxes"][chosen], record["scores"][chosen]


@pytest.mark.parametrize(
    "asked", [{"classes": CLASSES}, {"classes": CLASSES, "split": "have_test"}, {"split": "have_test"}]
)
def test_round_trip(tmp_path, asked):
    records = detections()
    paths = write_results(tmp_path / "new" / "folder", records, CLASSES, split="have_test")
    assert [path.name for path in paths] == [f"comp4_det_have_test_{name}.txt" for name in CLASSES]
    again = read_results(tmp_path / "new" / "folder", **asked)
    assert list(again) == [picture for picture in records if len(records[picture]["labels"])]
    for picture, record in again.items():
        assert len(record["labels"]) == len(records[picture]["labels"])
        for name in CLASSES:
            (boxes, scores), (old_boxes, old_scores) = (
                by_class(record, name),
                by_class(records[picture], name),
            )
            assert np.array_equal(scores, old_scores.astype(float)), "scores come back to the last bit"
            assert np.array_equal(boxes, old_boxes), "boxes come back to the last bit"


def test_lines_are_those_of_the_kit(tmp_path):
    scores = [0.1 + 0.2, 1e-9]
    record = {"boxes": [[1, 2, 30.126, 40], [5, 6, 7, 8]], "scores": scores, "labels": ["car", "car"]}
    car, dog = write_results(tmp_path, {"000004": record}, ["car", "dog"])
    assert car.name == "comp4_det_test_car.txt"
    assert car.read_text() == ("000004 0.30000000000000004 1.0 2.0 30.126 40.0\n000004 1e-09 5.0 6.0 7.0 8.0\n")
    assert dog.read_text() == ""
    assert read_results(tmp_path)["000004"]["labels"].tolist() == ["car", "car"]


def test_the_score_is_that_of_the_detections_written(tmp_path):
    records = detections()
    annotations = {
        picture: {
            "boxes": r["boxes"][::2],
            "labels": r["labels"][::2],
            "difficult": np.zeros(len(r["boxes"][::2])),
        }
        for picture, r in records.items()
    }
    for record in records.values():
        record["scores"] = np.round(record["scores"] * 3) / 3  # many ties
    write_results(tmp_path, records, CLASSES)
    for use_07_metric in (True, False):
        direct = evaluate(records, annotations, use_07_metric=use_07_metric)
        assert 0.1 < direct.map < 1
        again = evaluate(read_results(tmp_path), annotations, use_07_metric=use_07_metric)
        assert {name: again.per_class[name] for name in CLASSES if name == "car"} == {"car": direct.per_class["car"]}
        again = evaluate(read_results(tmp_path, CLASSES), annotations, use_07_metric=use_07_metric)
        assert again.per_class == direct.per_class


def put(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)


def test_official_names_blank_lines_and_foreign_line_ends_are_read(tmp_path):
    put(tmp_path, comp3_det_test_car="a 0.5 1 2 3 4\n\n  b\t.25 1 2 3 4  ", notes="not of ours")
    (tmp_path / "comp4_1f2e_det_test_dog.txt").write_bytes(b"\xef\xbb\xbfa 1 5 6 7 8\r\n")
    records = read_results(tmp_path)
    assert list(records) == ["a", "b"]
    assert records["a"]["labels"].tolist() == ["car", "dog"]
    assert records["a"]["scores"].tolist() == [0.5, 1.0]
    assert records["a"]["boxes"].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert records["b"]["boxes"].shape == (1, 4)


def test_class_and_split_are_told_apart(tmp_path):
    put(tmp_path, comp4_det_my_val_red_blood_cell="a 0.5 1 2 3 4", comp4_det_my_val_cell="a 0.4 1 2 3 4")
    assert read_results(tmp_path, CLASSES)["a"]["labels"].tolist() == ["cell", "red_blood_cell"]
    assert read_results(tmp_path, split="my_val")["a"]["labels"].tolist() == ["cell", "red_blood_cell"]
    put(tmp_path, comp4_det_test_car="b 0.5 1 2 3 4", comp4_det_test_red_blood_cell="b 0.5 1 2 3 4")
    assert list(read_results(tmp_path, split="my_val")) == ["a"]
    assert list(read_results(tmp_path, CLASSES, "test")) == ["b"]
    with pytest.raises(InputError, match="both hold class 'red_blood_cell'.*split"):
        read_results(tmp_path, CLASSES)
    (tmp_path / "comp4_det_test_red_blood_cell.txt").unlink()
    with pytest.raises(InputError, match="is of split '.*', .* of split '.*'; say which split"):
        read_results(tmp_path, CLASSES)


def test_empty_files_are_no_detections(tmp_path):
    put(tmp_path, comp4_det_test_car="", comp4_det_test_cell="\n")
    assert read_results(tmp_path) == {}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a 0.5 1 2 3", "line 2: 5 fields; expected 'image score x1 y1 x2 y2'"),
        ("a 0.5 1 2 3 4 5", "line 2: 7 fields; expected"),
        ("a high 1 2 3 4", "line 2: 'a high 1 2 3 4' holds a word for a number; expected"),
        ("a nan 1 2 3 4", "line 2: 'a nan 1 2 3 4' holds a number not finite"),
        ("a 0.5 1 2 inf 4", "line 2: .* not finite"),
        ("a 0.5 1 2 1e999 4", "line 2: .* not finite"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, message):
    put(tmp_path, comp4_det_test_car=f"a 0.5 1 2 3 4\n{line}\n")
    with pytest.raises(InputError, match=f"comp4_det_test_car.txt, {message}") as caught:
        read_results(tmp_path)
    assert "\n" not in str(caught.value)


def test_bad_folders_and_names_are_told(tmp_path):
    with pytest.raises(InputError, match="no folder .*nowhere"):
        read_results(tmp_path / "nowhere")
    put(tmp_path, results="a 0.5 1 2 3 4")
    with pytest.raises(InputError, match=r"no result file '\*_det_<split>_<class>.txt' in"):
        read_results(tmp_path)
    put(tmp_path, comp4_det_test_carr="a 0.5 1 2 3 4")
    with pytest.raises(InputError, match=r"comp4_det_test_carr.txt: class 'carr' is not .*did you mean 'car'"):
        read_results(tmp_path, CLASSES)
    with pytest.raises(InputError, match=r"class 'carr' is not .*did you mean 'car'"):
        read_results(tmp_path, CLASSES, "test")
    with pytest.raises(InputError, match=r"no result file '\*_det_val_<class>.txt'"):
        read_results(tmp_path, CLASSES, "val")
    (tmp_path / "comp4_det_test_carr.txt").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(InputError, match="comp4_det_test_carr.txt is not a text file"):
        read_results(tmp_path)


def test_what_cannot_be_written_is_told(tmp_path):
    record = {"boxes": [[1, 2, 3, 4]], "scores": [0.5], "labels": ["car"]}
    with pytest.raises(InputError, match="class 'car', which is not among the classes .did you mean 'cart'"):
        write_results(tmp_path, {"a": record}, ["cart"])
    with pytest.raises(InputError, match="picture 'a b': .* without white space"):
        write_results(tmp_path, {"a b": record}, ["car"])
    with pytest.raises(InputError, match="picture 'a', row 0: scores nan is not finite"):
        write_results(tmp_path, {"a": record | {"scores": [np.nan]}}, ["car"])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write result files to .*file"):
        write_results(tmp_path / "file", {"a": record}, ["car"])


def test_names_of_pictures_are_those_of_their_files(tmp_path):
    put(tmp_path, comp4_det_test_car="a.b.jpg 0.5 1 2 3 4\nJPEGImages/c.PNG 0.5 1 2 3 4\ncafe\u0301 0.4 1 2 3 4\n")
    assert list(read_results(tmp_path, pictures=["a.b", "c", "caf\u00e9"])) == ["a.b", "c", "caf\u00e9"]
    with pytest.raises(InputError, match=r"comp4_det_test_car.txt, line 2: picture 'JPEGImages/c.PNG' is not among"):
        read_results(tmp_path, pictures=["a.b", "caf\u00e9"])


def test_other_classes_are_kept_or_left_out(tmp_path):
    put(tmp_path, comp4_det_have_test_car="a 0.5 1 2 3 4", comp4_det_have_test_zebra_foal="a 0.6 1 2 3 4")
    with pytest.raises(InputError, match="class 'zebra_foal' is not among"):
        read_results(tmp_path, ["car"])
    assert read_results(tmp_path, ["car"], others="keep")["a"]["labels"].tolist() == ["car", "zebra_foal"]
    assert read_results(tmp_path, ["car"], others="leave")["a"]["labels"].tolist() == ["car"]


@pytest.mark.parametrize("name", ["and/or", "a\0b", "x" * 250])
def test_classes_that_no_file_can_be_named_by(tmp_path, name):
    record = {"boxes": [[1, 2, 3, 4]], "scores": [0.5], "labels": ["car"]}
    with pytest.raises(InputError, match="no VOC result file can be named by it"):
        write_results(tmp_path / "out", {"a": record}, ["car", name])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_all_files_are_there_or_none(tmp_path, failing, monkeypatch):
    record = {"boxes": [[1, 2, 3, 4]], "scores": [0.5], "labels": ["car"]}
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == failing + 1:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="No space left on device; free space"):
        write_results(tmp_path / "out", {"a": record}, ["bus", "car", "dog"])
    assert list(tmp_path.iterdir()) == []
