"""Detector or classifier: each format of data has one kind, and a kind knows what a run needs of it."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from detkt.base.errors import InputError
from detkt.config import FORMATS, Config, DataConfig, NetConfig, load_config
from detkt.kinds import KINDS, Classification, CocoDetection, Detection, kind_of, require_kind
from detkt.models import ModelCard, build_classifier, card_of, save_model
from detkt.models.families import FAMILIES


def test_every_format_and_every_family_has_one_kind():
    own = [name for kind in (*KINDS.values(), CocoDetection()) for name in kind.formats]
    assert sorted(own) == sorted(FORMATS)
    assert {task: kind.family for task, kind in KINDS.items()} == FAMILIES
    for name in FORMATS:
        assert name in kind_of(Config(data=DataConfig(format=name))).formats


def test_a_config_of_the_other_tool_names_it():
    require_kind(Config(data=DataConfig(format="voc")), "detection")
    with pytest.raises(InputError, match=r"data.format=mnist is for classification: use .*train.cls.*, or"):
        require_kind(Config(data=DataConfig(format="mnist")), "detection")
    with pytest.raises(InputError, match=r"data.format=voc is for detection: use .*train.det.*, or"):
        require_kind(Config(data=DataConfig(format="voc")), "classification")


def test_a_networks_classes_are_the_names_and_a_detectors_background():
    net = NetConfig("fasterrcnn_resnet10x0.125_c4", options={"min_size": 64, "max_size": 64})
    detector = Detection().build(net, ["disc", "star"])
    assert detector.roi_heads.box_predictor.cls_score.out_features == card_of(detector).num_classes == 3
    classifier = Classification().build(NetConfig("cifar_resnet8"), ["disc", "star"])
    assert classifier.head.fc.out_features == card_of(classifier).num_classes == 2


def test_scores_in_words():
    assert Detection().summary({"map_voc07": 0.5316, "map_area": 0.6, "map_coco": 0.25, "seconds": 3}) == (
        "mAP VOC07 53.2, mAP area 60.0, mAP COCO 25.0"
    )
    assert Classification().summary({"top1": 0.91234, "top5": 1}) == "top-1 91.23 %, top-5 100.00 %"


@pytest.mark.parametrize(
    ("kind", "data", "changing"),
    [
        (Detection(), DataConfig(crop_padding=4, image_size=32), set()),
        (Detection(), DataConfig(color=0.1, scale=[0.8, 1.0]), {"color", "scale"}),
        (Classification(), DataConfig(crop_padding=4), {"crop_padding"}),
        (Classification(), DataConfig(crop_padding=0), set()),
        (Classification(), DataConfig(crop_padding=4, image_size=32), {"image_size"}),
    ],
)
def test_what_changes_pictures_but_flips(kind, data, changing):
    assert {name for name, changes in kind.random_changes(data).items() if changes} == changing


def test_pictures_are_kept_in_the_size_of_the_checkpoint_that_is_trained_on(tiny_file, tiny_student, tmp_path):
    """The checkpoint's options count, not the architecture's defaults (600 and 1000), which would keep them whole."""
    config = load_config(tiny_file, ["student.options={}", f"data.cache={tmp_path}"])
    config.student = replace(config.student, checkpoint=str(tiny_student), options={})
    cache = kind_of(config).training_set(config).picture_cache
    assert (cache.min_size, cache.max_size) == (64, 64)
    config.student = replace(config.student, checkpoint=None, options={"min_size": 48, "max_size": 56})
    cache = kind_of(config).training_set(config).picture_cache
    assert (cache.min_size, cache.max_size) == (48, 56)


def test_a_card_stays_with_copies_and_foreign_networks_have_none(tmp_path):
    model = build_classifier("cifar_resnet8", 3, in_channels=1)
    expected = ModelCard("classification", "cifar_resnet8", 3, {"shortcut": "padding", "in_channels": 1}, channels=1)
    for found in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.to(torch.float64)):
        assert card_of(found) == expected
    assert "detkt_card" not in "".join(model.state_dict())
    for foreign in (resnet18(), nn.Linear(2, 2)):
        with pytest.raises(InputError, match=f"this {type(foreign).__name__} was not built by detkt"):
            save_model(foreign, tmp_path / "foreign", ["a", "b"])
    assert not (tmp_path / "foreign").exists()
