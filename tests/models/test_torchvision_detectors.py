"""torchvision's detectors by name are its own: layers, settings and what is frozen; and they train, save and export."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import detection
from torchvision.models.detection import faster_rcnn, fcos, keypoint_rcnn, mask_rcnn, retinanet, ssd, ssdlite

import detkt
from detkt.base.errors import InputError
from detkt.config import DataConfig
from detkt.data import test_set as held_out_set
from detkt.evaluation.detector import detect, score
from detkt.export.onnx_file import export_onnx
from detkt.models import build_detector, default_options, load_model, save_model
from detkt.models.frozen_norm import FrozenBatchNorm2d
from detkt.models.options import numbers

NAMES = torchvision.models.list_models(module=detection)
MODULES = (faster_rcnn, fcos, keypoint_rcnn, mask_rcnn, retinanet, ssd, ssdlite)

# As small as a family goes: of one stage and of two, on ResNets and on timm's nets.
PYRAMID = {"min_size": 64, "max_size": 96, "anchor_sizes": [8, 16, 32, 64, 96]}
ROIS = {
    "rpn_pre_nms_top_n_train": 60,
    "rpn_post_nms_top_n_train": 30,
    "rpn_pre_nms_top_n_test": 60,
    "rpn_post_nms_top_n_test": 30,
    "box_batch_size_per_image": 16,
}
DENSE = {"topk_candidates": 50, "detections_per_img": 20}
SMALL = {
    "fasterrcnn_resnet10x0.125_fpn": PYRAMID | ROIS,
    "maskrcnn_resnet10x0.125_fpn": PYRAMID | ROIS,
    "keypointrcnn_resnet10x0.125_fpn": PYRAMID | ROIS,
    "fasterrcnn_resnet10x0.125_fpn_v2": PYRAMID | ROIS,
    "fasterrcnn_mobilenet_v3_large_fpn": ROIS
    | {"min_size": 64, "max_size": 96, "norm": "batch", "trainable_backbone_layers": 6, "anchor_sizes": [32, 64]},
    "retinanet_resnet10x0.125_fpn": PYRAMID | DENSE,
    "retinanet_resnet10x0.125_fpn_v2": PYRAMID | DENSE | {"fpn_channels": 64},
    "retinanet_timm:test_resnet_fpn": PYRAMID
    | DENSE
    | {"fpn_channels": 32, "norm": "batch", "trainable_backbone_layers": 5},
    "fcos_resnet10x0.125_fpn": PYRAMID | DENSE | {"fpn_channels": 64},
    "fcos_timm:test_efficientnet_fpn": PYRAMID
    | DENSE
    | {"fpn_channels": 64, "norm": "batch", "trainable_backbone_layers": 5},
    "ssd300_vgg16": DENSE | {"trainable_backbone_layers": 5},
    "ssdlite320_mobilenet_v3_large": DENSE,
}


def theirs(name: str, monkeypatch=None, **options) -> nn.Module:
    """torchvision's own on the meta device; with *monkeypatch* frozen as it is where its weights are given."""
    if monkeypatch is not None:
        for module in MODULES:
            monkeypatch.setattr(
                module, "_validate_trainable_layers", lambda trained, value, most, default: value or default
            )
    with torch.device("meta"):
        return getattr(detection, name)(weights=None, weights_backbone=None, num_classes=7, **options)


def on_meta(name: str, **options) -> nn.Module:
    with torch.device("meta"):
        return build_detector(name, 7, **options)


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    state = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    left_out = ("num_batches_tracked", "mask", "keypoint")  # frozen norms do not count; we have no other heads
    return {name: shape for name, shape in state.items() if not any(part in name for part in left_out)}


@pytest.mark.parametrize("name", NAMES)
def test_layers_and_settings_are_torchvisions(name):
    own, original = on_meta(name), theirs(name)
    assert shapes(own) == shapes(original)
    assert type(own) is next(kind for kind in type(original).__mro__ if kind in (type(own), nn.Module))
    for key in ("image_mean", "image_std", "max_size", "size_divisible"):
        assert getattr(own.transform, key) == pytest.approx(getattr(original.transform, key)), key
    assert getattr(own.transform, "fixed_size", None) == getattr(original.transform, "fixed_size", None)
    # Of keypoint R-CNN's several sizes, the one that it scores at.
    assert own.transform.min_size[-1] == original.transform.min_size[-1]
    if hasattr(own, "roi_heads"):
        ours, other = own.roi_heads, original.roi_heads
        pairs = [(ours, other), (own.rpn, original.rpn)]
        assert ours.fg_bg_sampler.batch_size_per_image == other.fg_bg_sampler.batch_size_per_image
        assert own.rpn._post_nms_top_n == original.rpn._post_nms_top_n
        assert own.rpn._pre_nms_top_n == original.rpn._pre_nms_top_n
        anchors = own.rpn.anchor_generator, original.rpn.anchor_generator
    else:
        pairs, anchors = [(own, original)], (own.anchor_generator, original.anchor_generator)
        matchers = [vars(getattr(model, "proposal_matcher", torch.Generator)) for model in (own, original)]
        assert matchers[0] == matchers[1]  # FCOS has none
    for ours, other in pairs:
        for key in ("score_thresh", "nms_thresh", "detections_per_img", "topk_candidates", "neg_to_pos_ratio"):
            assert getattr(ours, key, None) == getattr(other, key, None), key
    for key in ("sizes", "aspect_ratios", "scales", "steps"):
        assert getattr(anchors[0], key, None) == getattr(anchors[1], key, None), key


@pytest.mark.parametrize("name", [name for name in NAMES if "keypoint" not in name])
@pytest.mark.parametrize("layers", [1, 3])
def test_what_is_frozen_is_what_torchvision_freezes(name, layers, monkeypatch):
    own = on_meta(name, trainable_backbone_layers=layers)
    original = theirs(name, monkeypatch, trainable_backbone_layers=layers)
    ours = {key for key, value in own.named_parameters() if value.requires_grad}
    other = {key for key, value in original.named_parameters() if value.requires_grad and "mask" not in key}
    # torchvision's batch norms without weights learn: ours are frozen with weights to come, and have no parameters.
    norms = {f"{part}.{key}" for part, module in original.named_modules() for key in ("weight", "bias")
             if isinstance(module, nn.BatchNorm2d) and part.startswith("backbone.body")}  # fmt: skip
    assert ours - norms == other - norms
    assert any(key.startswith("backbone") for key in own.state_dict().keys() - ours)


@pytest.mark.parametrize("name", [name for name in NAMES if "ssd" not in name])
def test_norms_of_trained_layers_are_frozen_but_for_second_versions(name):
    body = on_meta(name).backbone.body
    norms = [part for part in list(body.children())[-1].modules() if "BatchNorm" in type(part).__name__]
    assert norms
    assert all(isinstance(norm, FrozenBatchNorm2d) != name.endswith("_v2") for norm in norms)


def test_options_by_torchvisions_names():
    assert numbers(detection.FCOS)["center_sampling_radius"] == 1.5
    assert default_options("fcos_resnet101_fpn")["score_thresh"] == 0.2
    model = on_meta("retinanet_resnet34_fpn", score_thresh=0.3, nms_thresh=0.4, detections_per_img=9, topk_candidates=8)
    assert (model.score_thresh, model.nms_thresh, model.detections_per_img, model.topk_candidates) == (0.3, 0.4, 9, 8)
    assert default_options("fasterrcnn_resnet50_fpn")["frozen_stages"] == 2
    with_three = on_meta("fasterrcnn_resnet50_fpn", trainable_backbone_layers=1)
    assert not with_three.backbone.body.layer3[0].conv1.weight.requires_grad
    assert with_three.backbone.body.layer4[0].conv1.weight.requires_grad


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("retinanet_resnet50_fpn", {"bg_iou_thresh": 0.9}, "bg_iou_thresh 0.9 is above fg_iou_thresh 0.5"),
        ("retinanet_resnet50_fpn", {"trainable_backbone_layers": 6}, "trainable_backbone_layers is 0 to 5, got 6"),
        ("fasterrcnn_resnet50_fpn", {"trainable_backbone_layers": 6}, "frozen_stages must be 0 or more"),
        ("fcos_resnet50_fpn", {"fpn_channels": 100}, "fpn_channels must be a multiple of 32"),
        ("fcos_resnet50_fpn", {"anchor_sizes": [8]}, "one size for each of 5 levels"),
        ("ssd300_vgg16", {"min_size": 512}, "has no option 'min_size'"),
        ("ssdlite320_mobilenet_v3_large", {"reduced_tail": 1}, "reduced_tail must be true or false"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(InputError, match=message):
        on_meta(name, **options)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("retinanet_resnet50", "did you mean 'retinanet_resnet50_fpn"),
        ("fcos_resnet50_fpn_v2", "did you mean 'fcos_resnet50_fpn'"),
        ("ssd512_vgg16", "did you mean 'ssd300_vgg16'"),
        ("keypointrcnn_timm:resnet18_fpn", "unknown detector"),
        ("retinanet_timm:resnet18_fpn_v2", "unknown detector"),
        ("retinanet_timm:resnet18_c4", "unknown detector"),
    ],
)
def test_unknown_names(name, hint):
    with pytest.raises(InputError) as refused:
        build_detector(name, 3)
    assert hint in str(refused.value)
    assert "\n" not in str(refused.value)


def test_imagenet_weights_of_mobilenet_need_its_whole_tail():
    with pytest.raises(InputError, match="reduced_tail=false"):
        build_detector("ssdlite320_mobilenet_v3_large", 3, "imagenet")
    whole = on_meta("ssdlite320_mobilenet_v3_large", reduced_tail=False)
    assert whole.backbone.features[1][-1][0].out_channels == 960


@pytest.fixture(scope="class", params=SMALL)
def small(request) -> nn.Module:
    if "timm" in request.param:
        pytest.importorskip("timm")
    torch.manual_seed(0)
    return build_detector(request.param, 4, **SMALL[request.param])


@pytest.fixture(scope="class")
def lively(small) -> nn.Module:
    """A copy whose maps are as large as those of a trained net, with scores that differ from place to place."""
    model = copy.deepcopy(small).train()
    with torch.no_grad():
        for _ in range(3):
            model.backbone(torch.rand(2, 3, 320, 320))
        for name, parameter in model.named_parameters():
            if name.endswith(("cls_score.weight", "cls_logits.weight")):
                parameter.mul_(20)
            elif name.endswith("cls_logits.bias"):
                parameter.zero_()
    sigmoid = isinstance(model, detection.RetinaNet | detection.FCOS)
    getattr(model, "roi_heads", model).score_thresh = 0.3 if sigmoid else 0.1
    return model.eval()


class TestSmall:
    """Every family at its smallest."""

    def test_trains_a_step(self, small, batch):
        losses = small.train()(*batch)
        total = sum(losses.values())
        assert math.isfinite(total.item())
        small.zero_grad()
        total.backward()
        for name, parameter in small.named_parameters():
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name

    def test_learns_from_a_teacher_at_every_level(self, small, batch):
        teacher = copy.deepcopy(small)
        with torch.no_grad():
            for parameter in teacher.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        with detkt.Distiller(small.train(), teacher, "fitnet") as distiller:
            (stage,) = distiller.stages
            (update,) = distiller.updates(stage, *batch)
            seen = distiller.task
            levels = [feature for feature in seen._student.features(torch.rand(2, 3, 320, 320)).values()]
            assert len(distiller.method.pairs()) >= len(levels) - 1  # all but a subsampled last one
            assert math.isfinite(update.total.item())
            assert update.losses["fitnet"].item() > 0
            small.zero_grad()
            update.losses["fitnet"].backward()
        names = [name for name, parameter in small.named_parameters() if name.startswith("backbone")]
        reached = [name for name in names if (grad := small.get_parameter(name).grad) is not None and grad.any()]
        assert names[0] in reached and len(reached) > len(names) / 2  # norms that begin at 0 hide a few

    def test_is_scored(self, lively, voc_folder):
        held_out = held_out_set(DataConfig(root=str(voc_folder)))
        detections, _ = detect(copy.deepcopy(lively), held_out, torch.device("cpu"), batch_size=2, quiet=True)
        found = score(detections, held_out.annotations(), held_out.classes)
        assert 0 <= found["map_coco"] <= 1
        assert sum(len(each["scores"]) for each in detections.values()) > 0

    def test_exports(self, lively, tmp_path):
        pytest.importorskip("onnxruntime")
        pictures = [torch.rand(3, *size, generator=torch.Generator().manual_seed(1)) for size in ((64, 64), (70, 90))]
        found = export_onnx(lively, tmp_path / "model.onnx", ["a", "b", "c"], pictures)
        assert found.compared > 5
        assert found.box < 0.01 and found.score < 1e-3

    def test_saves_and_loads_alike(self, lively, batch, tmp_path):
        save_model(lively, tmp_path / "model", ["a", "b", "c"])
        again, meta = load_model(tmp_path / "model")
        assert meta["options"] == default_options(meta["architecture"]) | SMALL[meta["architecture"]]
        getattr(again, "roi_heads", again).score_thresh = getattr(lively, "roi_heads", lively).score_thresh
        with torch.no_grad():
            expected, found = lively(batch[0]), again(batch[0])
        assert sum(len(each["scores"]) for each in expected) > 5
        for one, two in zip(expected, found, strict=True):
            assert set(one) == {"boxes", "labels", "scores"}
            for key in one:
                torch.testing.assert_close(one[key], two[key], rtol=0, atol=0)
