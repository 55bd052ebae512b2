"""Raw graphs hold plain operators alone, and with NumPy's part they give what torch gives."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torchvision.ops import nms as torch_nms
from torchvision.ops import roi_align

from detkt.base.errors import InputError
from detkt.data.random_pictures import scenes
from detkt.export import raw
from detkt.export.agreement import match_detections
from detkt.export.postprocess import make_anchors, nms, pool, resize
from detkt.export.runtime import open_exported
from detkt.models import build_detector

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

CLASSES = ["disc", "square", "star"]
SMALL = {"min_size": 64, "max_size": 96}
LEVELS = SMALL | {"anchor_sizes": [8, 16, 24, 32, 48]}
NETS = {
    "fasterrcnn_resnet10x0.125_c4": SMALL | {"anchor_sizes": [16, 32], "rpn_post_nms_top_n_test": 30},
    "fasterrcnn_resnet10x0.125_fpn": LEVELS | {"rpn_pre_nms_top_n_test": 100, "rpn_post_nms_top_n_test": 30},
    "fcos_resnet10x0.25_fpn": LEVELS,
    "ssdlite320_mobilenet_v3_large": {},
}


def net(name):
    torch.manual_seed(0)
    model = build_detector(name, len(CLASSES) + 1, **NETS[name])
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None
    with torch.no_grad():
        model.train().backbone(torch.rand(2, 3, 320, 320))
        for key, weight in model.named_parameters():
            if key.endswith(("cls_logits.weight", "cls_score.weight", "bbox_pred.weight")):
                weight.mul_(20)
    return model.eval()


@pytest.mark.parametrize("name", NETS)
def test_with_numpy_it_gives_what_torch_gives(tmp_path, name):
    model = net(name)
    agreement = raw.export_raw(model, tmp_path, CLASSES, scenes((64, 90)))
    assert agreement.pictures == 6
    assert agreement.compared > 50
    assert agreement.box < 0.01
    two_stage = name.startswith("fasterrcnn")
    assert (tmp_path / raw.HEAD_FILE).exists() == two_stage
    for file in tmp_path.glob("*.onnx"):
        graph = onnx.load(file)
        assert raw.operators(graph) <= raw.PLAIN_OPERATORS
        assert not any(
            node.op_type in ("NonMaxSuppression", "RoiAlign", "If", "Loop", "Shape") for node in graph.graph.node
        )
    shape = [one.dim_value for one in onnx.load(tmp_path / raw.RAW_FILE).graph.input[0].type.tensor_type.shape.dim]
    assert shape == [1, 3, *raw.default_canvas(model)]
    # Opened again from its files, on another picture; torch sees it on the same canvas.
    image = torch.rand(3, 50, 80, generator=torch.Generator().manual_seed(3))
    opened, meta = open_exported(tmp_path / raw.RAW_FILE)
    assert meta["classes"] == CLASSES
    with torch.no_grad():
        expected = raw.on_canvas(model, raw.default_canvas(model))([image])[0]
    both = ({key: values.numpy() for key, values in one.items()} for one in (expected, opened([image])[0]))
    assert match_detections(*both, 0.05, 100)[1] is None


def test_a_canvas_that_does_not_fit(tmp_path):
    model = net("fasterrcnn_resnet10x0.125_c4")
    with pytest.raises(InputError, match="--static 70x96: a raw graph's sides are multiples of 32; give 96x96"):
        raw.export_raw(model, tmp_path, CLASSES, scenes((64, 90)), canvas=(70, 96))
    assert not list(tmp_path.iterdir())


def test_an_operator_that_is_not_plain_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(raw, "PLAIN_OPERATORS", raw.PLAIN_OPERATORS - {"MaxPool"})
    with pytest.raises(InputError, match="would hold MaxPool, which is not plain; leave out --raw"):
        raw.export_raw(net("fasterrcnn_resnet10x0.125_c4"), tmp_path, CLASSES, scenes((64, 90)))
    assert not list(tmp_path.iterdir())


def test_missing_head_is_told(tmp_path):
    settings = {"levels": [], "facts": {}, "family": "two-stage"}
    (tmp_path / raw.SETTINGS_FILE).write_text(json.dumps(settings))
    with pytest.raises(InputError, match=r"model.raw.onnx: no such file"):
        raw.open_raw(tmp_path)


@pytest.mark.parametrize("size", [(7, 9), (20, 31), (64, 50)])
def test_numpy_resizes_as_torch_does(size):
    picture = torch.rand(3, 20, 31, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(picture[None], size=size, mode="bilinear", align_corners=False)[0]
    np.testing.assert_allclose(resize(picture.numpy(), size), expected, atol=2e-6)


def test_numpy_suppresses_as_torchvision_does():
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(300, 4, generator=generator)
    boxes = torch.cat([corners[:, :2], corners[:, :2] + corners[:, 2:]], 1)
    scores, groups = torch.rand(300, generator=generator), torch.arange(300) % 3
    expected = torch.cat(
        [(groups == g).nonzero()[:, 0][torch_nms(boxes[groups == g], scores[groups == g], 0.4)] for g in range(3)]
    )
    found = nms(boxes.numpy(), scores.numpy(), groups.numpy(), 0.4)
    assert sorted(found) == sorted(expected.tolist())
    assert (np.diff(scores.numpy()[found]) <= 0).all()
    assert 30 < len(found) < 250


@pytest.mark.parametrize("samples", [2, 0])
def test_numpy_reads_rois_as_torchvision_does(samples):
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(1, 5, 12, 17, generator=generator)
    boxes = torch.tensor([[0, 0, 30, 40], [-20, -9, 300, 200], [100, 50, 101, 52], [260, 180, 290, 230.0]])
    expected = roi_align(values, [boxes], (7, 5), 1 / 16, samples)
    settings = {"scales": [1 / 16], "size": [7, 5], "samples": samples}
    np.testing.assert_allclose(pool([values[0].numpy()], boxes.numpy(), settings), expected, atol=1e-5)


def test_anchors_by_hand():
    level = {"grid": [1, 2], "stride": [8, 16], "cells": [[-4, -2, 4, 2]]}
    assert np.concatenate(make_anchors([level])).tolist() == [[-4, -2, 4, 2], [12, -2, 20, 2]]
