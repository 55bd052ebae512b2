"""Every family of detectors through predict, the difference report, the teacher cache and the benchmark."""

from __future__ import annotations

import json
import math

import pytest
import torch
import yaml
from test_torchvision_detectors import SMALL
from tiny import TINY_CLASSES, TINY_TRAINING

from detkt.cli import diff, predict
from detkt.config import Config, load_config
from detkt.engine.run import train
from detkt.models import build_detector, load_model, save_model

FAMILIES = {
    "retinanet": "retinanet_resnet10x0.125_fpn",
    "fcos": "fcos_resnet10x0.125_fpn",
    "ssdlite": "ssdlite320_mobilenet_v3_large",
    "mask-rcnn": "maskrcnn_resnet10x0.125_fpn",
    "timm": "retinanet_timm:test_resnet_fpn",
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, voc_folder, tmp_path_factory):
    """A folder with two saved nets of the family, ``student`` and ``teacher``, and the config of the pair."""
    if request.param == "timm":
        pytest.importorskip("timm")
    folder, name = tmp_path_factory.mktemp(request.param), FAMILIES[request.param]
    options = {key: value for key, value in SMALL[name].items() if key != "score_thresh"} | {"score_thresh": 0.0}
    if name.startswith("mask"):
        options = {**SMALL[name], "box_score_thresh": 0.0}
    for seed, role in enumerate(("student", "teacher")):
        torch.manual_seed(seed)
        save_model(build_detector(name, len(TINY_CLASSES) + 1, **options), folder / role, TINY_CLASSES)
    pair = {
        "data": {"root": str(voc_folder), "train": "trainval[:4]", "test": "test[:2]"},
        "method": "pkd",
        "student": {"architecture": name, "options": options},
        "teacher": {"architecture": name, "options": options, "checkpoint": str(folder / "teacher")},
        "train": {**TINY_TRAINING, "epochs": 1, "batch_size": 2, "log_every": 1, "lr_per_image": 1e-5},
    }
    (folder / "pair.yaml").write_text(yaml.safe_dump(pair))
    return folder


def config(folder, *overrides) -> Config:
    return load_config(folder / "pair.yaml", overrides)


def test_it_predicts(family, voc_folder, tmp_path):
    picture = voc_folder / "JPEGImages"
    (tmp_path / "own").mkdir()
    first = sorted(picture.iterdir())[0]
    (tmp_path / "own" / first.name).write_bytes(first.read_bytes())
    flags = ["--checkpoint", family / "student", tmp_path / "own", "--output", tmp_path / "out", "--score", 0]
    predict.main([str(flag) for flag in [*flags, "--device", "cpu", "--quiet"]])
    found = json.loads((tmp_path / "out/detections.json").read_text())
    assert found and {one["category_name"] for one in found} <= set(TINY_CLASSES)
    assert all(0 <= one["score"] <= 1 and min(one["bbox"][2:]) >= 0 for one in found)
    assert all(-1 <= one["bbox"][0] <= one["bbox"][0] + one["bbox"][2] <= 65 for one in found)
    assert (tmp_path / "out" / f"{first.stem}.png").exists() or any((tmp_path / "out").glob(f"{first.stem}*"))


def test_the_difference_is_reported_with_its_maps(family, voc_folder, tmp_path):
    flags = ["--student", family / "student", "--distilled", family / "teacher", "--data-root", voc_folder]
    flags += ["--split", "test[:2]", "--output", tmp_path / "diff", "--pictures", 1, "--score", 0.01, "--html"]
    diff.main([str(flag) for flag in [*flags, "--device", "cpu", "--quiet"]])
    for name in ("diff.png", "feature_maps.png", "per_class_ap.png", "report/index.html"):
        assert (tmp_path / "diff" / name).stat().st_size > 1000, name
    changes = json.loads((tmp_path / "diff/changes.json").read_text())
    parameters = sum(p.numel() for p in load_model(family / "student")[0].parameters())
    assert changes["models"]["student"]["parameters"] == parameters
    assert all(0 <= one["map_voc07"] <= 1 for one in changes["models"].values())


def test_the_cached_teacher_teaches_the_same(family, tmp_path):
    """Of pictures of one size the maps are the teacher's, rounded to bfloat16."""
    logs = []
    for name, more in (("plain", []), ("cached", [f"train.cache_teacher={tmp_path / 'maps'}"])):
        train(config(family, *more), tmp_path / name, quiet=True)
        lines = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        logs.append([line for line in lines if "pkd" in line])
    assert len(logs[0]) == len(logs[1]) == 2
    for plain, cached in zip(*logs, strict=True):
        assert math.isfinite(plain["pkd"]) and cached["pkd"] == pytest.approx(plain["pkd"], rel=0.02)
    assert (tmp_path / "maps/teacher-maps.bin").stat().st_size > 0


def test_it_is_timed(family, tool, tmp_path):
    """Of two pictures: SSDlite's last map is one cell, of which batch norm needs more than one."""
    flags = ["--config", family / "pair.yaml", "--methods", "pkd", "--random", "--repetitions", 1, "--batch-size", 2]
    tool("benchmark").main([str(flag) for flag in [*flags, "--json", tmp_path / "numbers.json", "--quiet"]])
    report = json.loads((tmp_path / "numbers.json").read_text())
    ratio = report["methods"]["pkd"]["ratio"]["median"]  # to student and teacher apart, whatever else the machine does
    assert math.isfinite(ratio) and ratio > 0
    assert report["batch_size"] == 2
