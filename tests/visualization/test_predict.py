"""tools/predict.py on a tiny detector: files written, boxes, files that are no pictures."""

from __future__ import annotations

import contextlib
import io
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from detkt.base.errors import InputError
from detkt.evaluation.coco_ids import coco_ids
from detkt.evaluation.coco_results import read_coco_results
from detkt.models import build_detector, load_model, save_model
from detkt.visualization.prediction import detect_picture, drawn_paths, find_pictures


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    model = build_detector(
        "fasterrcnn_resnet10x0.125_c4",
        3,
        min_size=64,
        max_size=96,
        anchor_sizes=[16, 32],
        rpn_post_nms_top_n_test=20,
    )
    save_model(model, tmp_path / "model", ["cat", "dog"])
    return tmp_path / "model"


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "below").mkdir(parents=True)
    random = np.random.default_rng(0)
    for name, size in (("a.png", (90, 60)), ("a.jpg", (60, 90)), ("below/c.png", (50, 50))):
        image = Image.fromarray(random.integers(0, 255, (*size[::-1], 3), dtype=np.uint8))
        exif = Image.Exif()
        exif[274] = 6 if name == "a.jpg" else 1  # to be turned by a quarter: upright it is 90 x 60
        image.save(folder / name, exif=exif)
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_folder_is_drawn_and_listed(run, checkpoint, pictures, tmp_path):
    out = tmp_path / "out"
    status, output, errors = run(
        "predict",
        "--checkpoint",
        checkpoint,
        pictures,
        "--output",
        out,
        "--score",
        0.2,
        "--device",
        "cpu",
        "--quiet",
    )
    assert (status, errors) == (0, "")
    assert {path.name for path in out.iterdir()} == {"a.jpg", "a.png", "detections.json", "pictures.json"}
    dataset = json.loads((out / "pictures.json").read_text())
    assert "counted from 0" in dataset["info"]["convention"]
    assert (dataset["info"]["score_threshold"], dataset["info"]["unreadable"]) == (0.2, [])
    assert dataset["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    names = [str(pictures / "a.jpg"), str(pictures / "a.png")]
    assert [image["id"] for image in dataset["images"]] == [image["file_name"] for image in dataset["images"]] == names
    assert [image["drawn"] for image in dataset["images"]] == ["a.jpg", "a.png"]
    assert all((image["width"], image["height"]) == (90, 60) for image in dataset["images"])
    with Image.open(out / "a.png") as drawn:
        assert drawn.size == (640, 427)
    found = json.loads((out / "detections.json").read_text())
    assert len(found) > 0
    assert output.startswith(f"{len(found)} detections in 2 pictures;")
    for name in names:
        scores = [one["score"] for one in found if one["image_id"] == name]
        assert scores == sorted(scores, reverse=True)
    for one in found:
        assert one["image_id"] in names and one["score"] >= 0.2
        assert one["category_name"] == {1: "cat", 2: "dog"}[one["category_id"]]
        x, y, width, height = one["bbox"]
        assert 0 <= x < x + width <= 90
        assert 0 <= y < y + height <= 60
    # As pycocotools and eval_voc.py read them.
    with contextlib.redirect_stdout(io.StringIO()):
        assert len(COCO(str(out / "pictures.json")).loadRes(str(out / "detections.json")).anns) == len(found)
    plain = read_coco_results(out / "detections.json", coco_ids(["a"], ["dog", "cat"]))
    assert plain["a"]["labels"] == [one["category_name"] for one in found], "named classes need no order"


def test_where_nothing_is_found_the_score_is_named(run, checkpoint, pictures, tmp_path):
    call = ["predict", "--checkpoint", checkpoint, pictures / "a.png", "--output", tmp_path / "out"]
    status, output, errors = run(*call, "--score", 1.5, "--device", "cpu", "--quiet")
    assert (status, errors) == (0, "")
    assert output.splitlines()[0].startswith("0 detections in 1 pictures; drawn")
    assert output.splitlines()[1:] == [
        "none has a score of 1.5 or more; a lower --score shows what the model is less sure of"
    ]


def test_detections_are_the_models(checkpoint, pictures):
    model, _ = load_model(checkpoint)
    image = np.array(Image.open(pictures / "a.png").convert("RGB"))
    found = detect_picture(model, image, ["cat", "dog"], torch.device("cpu"), 0.0)
    with torch.inference_mode():
        expected = model([torch.from_numpy(image).permute(2, 0, 1) / 255])[0]
    assert len(found["labels"]) > 5
    assert (found["boxes"] - [1, 1, 0, 0]).tolist() == expected["boxes"].tolist()
    assert [1 + ["cat", "dog"].index(name) for name in found["labels"]] == expected["labels"].tolist()
    threshold = found["scores"][len(found["scores"]) // 2]
    above = detect_picture(model, image, ["cat", "dog"], torch.device("cpu"), threshold)
    assert above["scores"].tolist() == [score for score in found["scores"] if score >= threshold]
    assert above["boxes"].tolist() == found["boxes"][: len(above["boxes"])].tolist()


def test_unreadable_files_are_passed_over_unless_all_are(run, checkpoint, pictures, tmp_path):
    bad = pictures / "bad.png"
    bad.write_bytes((pictures / "a.png").read_bytes()[:200])
    base = ["predict", "--checkpoint", checkpoint, "--output", tmp_path / "out", "--device", "cpu", "--quiet"]
    status, output, errors = run(*base, bad, pictures / "a.png", pictures / "notes.txt")
    assert status == 0
    warnings = errors.splitlines()
    assert [line.split(":")[0] for line in warnings] == ["warning", "warning"]
    assert str(bad) in warnings[0]
    assert "2 passed over" in output
    dataset = json.loads((tmp_path / "out" / "pictures.json").read_text())
    assert dataset["info"]["unreadable"] == [str(bad), str(pictures / "notes.txt")]
    assert [image["file_name"] for image in dataset["images"]] == [str(pictures / "a.png")]
    status, output, errors = run(*base, bad)
    assert (status, output) == (2, "")
    assert errors.splitlines()[-1].startswith("error: none of the 1 files could be read")


def test_one_bad_picture_loses_no_others_predictions(run, checkpoint, pictures, tmp_path, monkeypatch):
    good = pictures / "a.png"
    strip, huge, tall = (pictures / name for name in ("strip.png", "huge.bmp", "tall.JPG"))
    Image.new("RGB", (500, 1)).save(strip)
    Image.new("RGB", (3, 1200)).save(tall)
    Image.new("RGB", (100, 80)).save(huge)
    odd = pictures / os.fsdecode(b"caf\xe9.png")
    odd.write_bytes(good.read_bytes())
    long = pictures / f"{'x' * 250}.png"
    long.write_bytes(good.read_bytes())
    flags = ["--output", tmp_path / "out", "--device", "cpu", "--quiet", "--max-pixels", 7999, "--score", 0]
    status, output, errors = run("predict", "--checkpoint", checkpoint, good, strip, huge, tall, odd, long, *flags)
    assert status == 0
    lines = errors.splitlines()
    assert [line.split(":")[1].strip() for line in lines] == [str(strip), str(huge), str(tall)]
    assert "500 x 1 pixels, a strip" in lines[0] and "has 8,000 pixels, and 7,999 are the most" in lines[1]
    dataset = json.loads((tmp_path / "out" / "pictures.json").read_text())
    names = [image["file_name"] for image in dataset["images"]]
    assert names == [str(good), f"{pictures}/caf\\udce9.png", str(long)]
    assert all((tmp_path / "out" / image["drawn"]).is_file() for image in dataset["images"])
    found = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert {entry["image_id"] for entry in found} == set(names)


def test_a_picture_that_the_detector_fails_on_is_passed_over(run, checkpoint, pictures, tmp_path, monkeypatch):
    def detect(model, image, *rest):
        if image.shape[0] > 60:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")
        return detect_picture(model, image, *rest)

    monkeypatch.setattr("detkt.visualization.prediction.detect_picture", detect)
    Image.new("RGB", (64, 64)).save(pictures / "b.png")
    flags = ["--output", tmp_path / "out", "--device", "cpu", "--quiet"]
    status, output, errors = run("predict", "--checkpoint", checkpoint, pictures, *flags)
    assert status == 0
    assert errors.startswith(f"warning: {pictures / 'b.png'}: the detector fails on it: [enforce fail")
    assert "in 2 pictures, 1 passed over" in output


def test_wrong_input_is_one_line_and_status_2(run, checkpoint, pictures, tmp_path):
    (tmp_path / "empty").mkdir()
    for arguments, message in [
        ([tmp_path / "none.jpg"], "no such picture or folder"),
        ([tmp_path / "empty"], "the folder holds no picture"),
        ([pictures, "--output", pictures], "would be overwritten"),
        ([pictures, "--score", "nan"], "--score is nan"),
        ([pictures, "--checkpoint", tmp_path], "cannot read"),
        ([], "required: PICTURE|FOLDER"),
    ]:
        base = ["--checkpoint", checkpoint, "--output", tmp_path / "out", "--quiet"]
        status, output, errors = run("predict", *base, *arguments)
        assert (status, output) == (2, ""), arguments
        assert errors.startswith("error: ")
        assert errors.count("\n") == 1
        assert message in errors


def test_find_pictures_takes_each_once_and_no_subfolders(pictures):
    found = find_pictures([pictures / "a.png", pictures])
    assert found == [pictures / "a.png", pictures / "a.jpg"]


def test_drawn_pictures_of_one_name_are_numbered(tmp_path):
    names = [tmp_path / name for name in ("x/a.png", "y/a.bmp", "y/A.PNG", "y/a.JPEG")]
    drawn = drawn_paths(names, tmp_path / "out")
    assert [path.name for path in drawn] == ["a.png", "a-2.png", "A-3.png", "a.jpg"]
    with pytest.raises(InputError, match="would be overwritten"):
        drawn_paths(names, tmp_path / "x")


def test_videos_are_drawn_and_every_frame_is_listed(run, checkpoint, tmp_path):
    import cv2

    video, out = tmp_path / "clip.mp4", tmp_path / "out"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"mp4v"), 12, (96, 64))
    random = np.random.default_rng(0)
    for _ in range(4):
        writer.write(random.integers(0, 255, (64, 96, 3), dtype=np.uint8))
    writer.release()
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    files = [video, tmp_path / "broken.mp4"]
    status, output, errors = run("predict", "--checkpoint", checkpoint, *files, "--output", out, "--score", "0")
    assert status == 0, errors
    assert "broken.mp4: not a video that OpenCV can read; passed over" in errors
    listed = json.loads((out / "pictures.json").read_text())["images"]
    assert [one["id"] for one in listed] == [f"{video}#{number}" for number in (1, 2, 3, 4)]
    assert {(one["width"], one["height"], one["drawn"]) for one in listed} == {(96, 64, "clip.mp4")}
    found = {one["image_id"] for one in json.loads((out / "detections.json").read_text())}
    assert found == {one["id"] for one in listed}
    drawn = cv2.VideoCapture(str(out / "clip.mp4"))
    assert (drawn.get(cv2.CAP_PROP_FPS), drawn.get(cv2.CAP_PROP_FRAME_COUNT)) == (12, 4)
    assert sorted(path.name for path in out.iterdir()) == ["clip.mp4", "detections.json", "pictures.json"]
