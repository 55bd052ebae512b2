"""One data set in three formats is one data set: the same batches, losses and scores, bit for bit."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from three_formats import CLASSES, SCENES, WRITE

from detkt.config import load_config
from detkt.data import test_set as open_test_set
from detkt.data import training_set
from detkt.engine.run import train
from detkt.kinds import kind_of


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three")
    return {name: write(folder / name) for name, write in WRITE.items()}


@pytest.fixture
def config(tiny_file, roots, tmp_path):
    """``config("coco", "train.epochs=1")``: the tiny pair on that folder."""

    def load(data_format: str, *overrides: str):
        content = yaml.safe_load(tiny_file.read_text())
        content["data"] = {"format": data_format, "root": str(roots[data_format]), "train": "train", "test": "val"}
        path = tmp_path / f"{data_format}.yaml"
        path.write_text(yaml.safe_dump(content))
        return load_config(path, overrides)

    return load


def test_boxes_classes_and_order_are_those_written(config):
    for data_format in WRITE:
        dataset = open_test_set(config(data_format, "data.test=train").data)
        assert dataset.classes == CLASSES
        assert dataset.ids == ["b", "a", "deep/c", "d"]
        assert dataset.sizes == [one.size for one in SCENES["train"]]
        for (_, target), one in zip(dataset, SCENES["train"], strict=True):
            expected = torch.tensor([box for _, box in one.objects], dtype=torch.float64).reshape(-1, 4).float()
            assert torch.equal(target["boxes"], expected), data_format
            assert target["labels"].tolist() == [CLASSES.index(name) + 1 for name, _ in one.objects]


@pytest.mark.parametrize("changes", [[], ["data.color=0.5", "data.scale=[0.5, 1.5]"]], ids=["flips", "all"])
@pytest.mark.parametrize("other", ["coco", "yolo"])
def test_augmented_pictures_are_bit_equal(config, other, changes):
    ours, theirs = (training_set(config(name, *changes).data) for name in ("voc", other))
    for index in range(len(ours)):
        for seed in range(5):
            (image, target), (image2, target2) = ours[index, seed], theirs[index, seed]
            assert torch.equal(image, image2)
            assert target.keys() == target2.keys()
            assert all(torch.equal(target[key], target2[key]) for key in target)


def test_parts_and_joins_are_alike(config):
    for split, names in (("train[:-1]", ["b", "a", "deep/c"]), ("val+train[1:2]", ["e", "f", "a"])):
        found = {name: open_test_set(config(name, f"data.test='{split}'").data).ids for name in WRITE}
        assert len(found["voc"]) == len(names)
        assert found["voc"] == found["coco"] == found["yolo"]


def test_training_is_bit_equal_and_scores_are_equal(config, tmp_path):
    logs, scores = {}, {}
    for name in WRITE:
        parts = ["data.val='val[1:]'", "data.test='val[:1]'"]
        overrides = ["method=kd", "train.epochs=3", "train.batch_size=2", "train.log_every=1", *parts]
        train(config(name, *overrides), tmp_path / name, quiet=True)
        lines = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        varying = ("seconds", "images_per_second", "images/s", "memory")
        logs[name] = [{k: v for k, v in line.items() if not k.startswith(("val_", "time", *varying))} for line in lines]
        scores[name] = json.loads((tmp_path / name / "metrics.json").read_text())
    assert len(logs["voc"]) >= 6 and any("loss_box_reg" in str(line) or "loss" in str(line) for line in logs["voc"])
    assert logs["voc"] == logs["coco"] == logs["yolo"]
    for key in ("map_voc07", "map_area", "map_coco", "coco", "per_class"):
        assert scores["voc"][key] == scores["coco"][key] == scores["yolo"][key]
    assert {"ap_small", "ap_medium", "ap_large"} <= scores["coco"].keys()
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in WRITE]
    assert weights[0] == weights[1] == weights[2]


def test_cocos_ap_leads_where_data_are_cocos(config, tmp_path):
    kind = kind_of(config("coco"))
    assert list(kind.measures)[:4] == ["map_coco", "ap_small", "ap_medium", "ap_large"]
    assert list(kind_of(config("yolo")).measures)[0] == "map_voc07"
    scores = {"map_coco": 0.25, "ap_small": float("nan"), "ap_medium": 0.1, "ap_large": 0.5}
    text = kind.summary({**scores, "map_voc07": 0.5, "map_area": 0.4})
    assert text == "AP 25.0, AP small nan, AP medium 10.0, AP large 50.0, mAP VOC07 50.0, mAP area 40.0"
    train(config("coco", "train.epochs=1", "data.val='val[1:]'", "data.test='val[:1]'"), tmp_path / "run", quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert next("val_ap_large" in line and "val_map_coco" in line for line in lines if "val_map_voc07" in line)
