"""tools/visualize_diff.py end to end: on result files with known changes, on tiny detectors, on wrong input."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from comparison_records import found, objects, write_voc_folder
from PIL import Image

from detkt.config import Config, DataConfig, StudentConfig, save_config
from detkt.evaluation.coco_ids import coco_ids
from detkt.evaluation.detection_files import write_detections
from detkt.evaluation.voc_results import write_results
from detkt.models import build_detector, save_model
from detkt.prepare.converting import convert

CLASSES = ["cat", "dog"]
TRUTH = {
    "000001": objects(("dog", 0, 11, 11, 40, 40), ("cat", 0, 51, 11, 80, 40)),
    "000002": objects(("cat", 0, 51, 51, 90, 90)),
    "000003": objects(),
}
CAT = ("cat", 0.8, 51, 11, 80, 40)
STUDENT = {"000001": found(CAT), "000002": found(("dog", 0.7, 1, 1, 30, 30))}
DISTILLED = {"000001": found(CAT, ("dog", 0.9, 11, 11, 40, 40))}


@pytest.fixture
def data(tmp_path):
    return write_voc_folder(tmp_path / "data", TRUTH)


@pytest.fixture
def results(tmp_path):
    """Folders of result files: student, distilled."""
    folders = [tmp_path / "student", tmp_path / "distilled"]
    for folder, detections in zip(folders, (STUDENT, DISTILLED), strict=True):
        write_results(folder, detections, CLASSES)
    return folders


def tiny(folder, seed, classes=CLASSES, method="none"):
    torch.manual_seed(seed)
    model = build_detector(
        "fasterrcnn_resnet10x0.125_c4",
        len(classes) + 1,
        min_size=64,
        max_size=64,
        anchor_sizes=[16, 32],
        rpn_post_nms_top_n_test=20,
    )
    save_model(model, folder, classes, {"method": method, "config": "tiny"})
    return folder


def test_result_files(run, data, results, tmp_path):
    student, distilled = results
    status, output, errors = run(
        "visualize_diff",
        *("--student", student, "--distilled", distilled, "--data-root", data, "--quiet"),
        *("--class", "dog", "--pictures", 2),
    )
    assert (status, errors) == (0, "")
    folder = distilled / "diff"
    names = {path.name for path in folder.iterdir()}
    assert names == {"diff.png", "per_class_ap.png", "precision_recall.png", "changes.json"}
    changes = json.loads((folder / "changes.json").read_text())
    total = changes["tables"]["total"]
    assert (total["gained"], total["lost"], total["removed"], total["new"]) == (1, 0, 1, 0)
    assert list(changes["pictures"]) == ["000001", "000002"]
    assert changes["shown"] == ["000001", "000002"]
    # dog: 0 of 1 found, then 1; cat: 1 of 2, the 11 points of which give 6/11.
    assert changes["models"]["student"]["map_voc07"] == pytest.approx((6 / 11) / 2)
    assert changes["models"]["distilled"]["map_voc07"] == pytest.approx((6 / 11 + 1) / 2)
    assert changes["models"]["student"]["parameters"] is None
    table = {line.split()[0]: line.split()[1:] for line in output.splitlines() if line.strip()}
    assert table["student"] == ["27.3", "-", "-"]
    gain = changes["gain"]["map_voc07"]
    assert (changes["gain"]["resamples"], changes["gain"]["confidence"]) == (1000, 0.95)
    assert gain["value"] == pytest.approx(0.5) and 0 <= gain["low"] <= 0.5 <= gain["high"] <= 1
    low, high = (f"{100 * gain[end]:+.1f}" for end in ("low", "high"))
    assert f"the student: +50.0 mAP VOC07, 95 % interval {low} to {high} (1000 resamples of the pictures)" in output
    assert table["distilled"] == ["77.3", "-", "-"]
    assert table["dog"] == ["1", "0", "1", "1", "0", "|", "1", "0", "1", "0"]
    assert "3 pictures of test, detections with a score of at least 0.5" in output
    pixels = np.asarray(Image.open(folder / "diff.png").convert("RGB")).reshape(-1, 3)
    for color in ((255, 213, 0), (255, 42, 42)):
        assert (pixels == color).all(axis=1).sum() > 500


def test_coco_files_are_models_too(run, data, results, tmp_path):
    """The same detections as a COCO file with the ids of a data set of its own give the same picture of the change."""
    student, distilled = results
    dataset = {
        "images": [{"id": 10 - number, "file_name": f"{name}.png"} for number, name in enumerate(TRUTH)],
        "categories": [{"id": 5, "name": "dog"}, {"id": 4, "name": "cat"}],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(dataset))
    file = tmp_path / "found" / "distilled.json"
    write_detections(file, DISTILLED, coco_ids(list(TRUTH), CLASSES, tmp_path / "dataset.json"), "test")
    base = ["--student", student, "--data-root", data, "--quiet"]
    assert run("visualize_diff", *base, "--distilled", distilled)[0] == 0
    ids = ["--coco-annotations", tmp_path / "dataset.json"]
    status, output, errors = run("visualize_diff", *base, "--distilled", file, *ids)
    assert (status, errors) == (0, "")
    changes = [json.loads((folder / "diff" / "changes.json").read_text()) for folder in (distilled, file.parent)]
    assert changes[0]["tables"] == changes[1]["tables"] and changes[0]["pictures"] == changes[1]["pictures"]
    assert changes[0]["tables"]["total"]["gained"] == 1
    status, _, errors = run("visualize_diff", *base, "--distilled", file)
    assert status == 2 and "image_id 10 is the number of no picture" in errors


def test_a_setting_says_how_data_are_read(run, data, results, tmp_path):
    """Folders of results name no format, and the data are COCO's."""
    convert(data, "coco", tmp_path / "coco", DataConfig(train="test"), quiet=True)
    student, distilled = results
    arguments = ["--student", student, "--distilled", distilled, "--data-root", tmp_path / "coco", "--quiet"]
    status, _, errors = run("visualize_diff", *arguments)
    assert status == 2 and "data.format=coco" in errors
    status, output, errors = run("visualize_diff", *arguments, "data.format=coco")
    assert (status, errors) == (0, "")
    assert "the student: +50.0 mAP COCO, 95 % interval" in output
    status, _, errors = run("visualize_diff", *arguments, "train.epochs=1")
    assert status == 2 and "only settings of the data can be given here" in errors


def test_tiny_detectors_with_data_and_logs_of_the_run(run, data, tmp_path):
    student, distilled, teacher = (tiny(tmp_path / name, seed) for seed, name in enumerate("abc"))
    tiny(distilled, 1, CLASSES[::-1], "ktan")  # its labels are numbered in another order
    nets = StudentConfig("fasterrcnn_resnet10x0.125_c4")
    save_config(Config(name="tiny", data=DataConfig(root=str(data)), student=nets), distilled / "config.yaml")
    (distilled / "log.jsonl").write_text('{"stage": "train", "step": 5, "loss": 1.5}\n')
    settings = ["--teacher", teacher, "--output", tmp_path / "out", "--score", 0.01, "--pictures", 2]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    arguments = ["--student", student, "--distilled", distilled, *settings, "--device", "cpu", "--quiet"]
    status, output, errors = run("visualize_diff", *arguments)
    assert (status, errors) == (0, "")
    expected = {"diff.png", "per_class_ap.png", "precision_recall.png", "training_curves.png", "changes.json"}
    expected |= {"feature_maps.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*expected, "mine.txt"}
    changes = json.loads((tmp_path / "out" / "changes.json").read_text())
    assert changes["models"]["distilled"]["title"] == "distilled (ktan)"
    assert changes["models"]["teacher"]["parameters"] == changes["models"]["student"]["parameters"] > 10_000
    assert all(model["milliseconds_per_picture"] > 0 for model in changes["models"].values())
    assert len(changes["shown"]) == 2
    assert "distilled (ktan)" in output
    # Again, without the log: what the tool wrote is replaced, and the diagram of the old log is gone.
    (distilled / "log.jsonl").unlink()
    assert run("visualize_diff", *arguments)[0] == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*expected, "mine.txt"} - {"training_curves.png"}


def test_pictures_by_list(run, data, results, tmp_path):
    student, distilled = results
    base = ["--student", student, "--distilled", distilled, "--data-root", data, "--output", tmp_path / "out"]
    assert run("visualize_diff", *base, "--images", "000003,000001", "--quiet")[0] == 0
    assert json.loads((tmp_path / "out" / "changes.json").read_text())["shown"] == ["000003", "000001"]


def test_wrong_input_is_one_line_and_status_2(run, data, results, tmp_path):
    student, distilled = results
    model = tiny(tmp_path / "model", 0, ["cat", "cow"])
    other = tiny(tmp_path / "other", 0)
    (tmp_path / "file").write_text("")
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    (stopped / "last.pt").write_bytes(b"")
    base = {"--student": student, "--distilled": distilled, "--data-root": data}
    for changed, message in [
        ({"--student": tmp_path / "none"}, "student: no folder"),
        ({"--student": data}, "does not hold a trained model"),
        ({"--student": stopped}, f"is a run that is not finished and has no model yet; go on with --resume {stopped}"),
        ({"--data-root": None}, "give --data-root DIR"),
        ({"--data-root": tmp_path / "none"}, "no such folder"),
        ({"--split": "tset"}, "did you mean 'test'"),
        ({"--class": "dgo"}, "did you mean 'dog'"),
        ({"--images": "000009"}, "no picture '000009'"),
        ({"--pictures": 0}, "number of pictures is 0"),
        ({"--pictures": "many"}, "invalid int value"),
        ({"--score": "nan"}, "the score threshold is nan"),
        ({"--output": tmp_path / "file"}, "cannot be made"),
        ({"--student": model, "--distilled": other}, "knows the classes cat, cow"),
        ({"--student": model}, "unknown class"),
        ({"--device": "gpu"}, "unknown device"),
    ]:
        arguments = [part for pair in (base | changed).items() if pair[1] is not None for part in pair]
        status, output, errors = run("visualize_diff", *arguments, "--quiet")
        assert (status, output) == (2, ""), changed
        assert errors.startswith("error: "), changed
        assert errors.count("\n") == 1
        assert message in errors
