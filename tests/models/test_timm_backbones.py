"""Faster R-CNN on timm's nets: the same maps as timm's own features, its weights, normalisation, and refusals."""

from __future__ import annotations

import copy
import json
import sys

import pytest
import safetensors.torch
import torch
from torch import nn

import detkt
from detkt.base.errors import InputError
from detkt.models import build_detector, default_options, load_model, load_weights, save_model
from detkt.models.frozen_norm import FrozenBatchNorm2d
from detkt.models.timm_backbones import layers_of

timm = pytest.importorskip("timm")

SMALL = {"min_size": 64, "max_size": 96, "anchor_sizes": [16, 32], "head_features": 16, "rpn_channels": 16}


def build(net: str, kind: str = "c4", num_classes: int = 4, **options) -> nn.Module:
    options = SMALL | {"frozen_stages": 0} | options
    if kind == "fpn":
        options = {**options, "anchor_sizes": [8, 16, 32, 64, 96], "fpn_channels": 8}
    return build_detector(f"fasterrcnn_timm:{net}_{kind}", num_classes, **options)


def on_meta(net: str, kind: str = "c4", **options) -> nn.Module:
    with torch.device("meta"):
        return build_detector(f"fasterrcnn_timm:{net}_{kind}", 4, **options)


def trained(net: str, **options) -> nn.Module:
    """A timm net whose batch norms have statistics and factors of their own, as those of a trained one."""
    torch.manual_seed(0)
    model = timm.create_model(net, **options).eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.3)
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.3)
    return model


def timm_file(model: nn.Module, path) -> str:
    safetensors.torch.save_file(model.state_dict(), path)
    return str(path)


def timm_features(model: nn.Module, net: str, images: torch.Tensor, **options) -> dict[int, torch.Tensor]:
    """The maps of timm's own extractor with the weights of *model*, by stride; the last of each."""
    extractor = timm.create_model(net, features_only=True, **options).eval()
    own = {name.replace(".", "_"): tensor for name, tensor in model.state_dict().items()}
    extractor.load_state_dict({name: own[name.replace(".", "_")] for name in extractor.state_dict()})
    with torch.no_grad():
        return dict(zip(extractor.feature_info.reduction(), extractor(images), strict=True))


@pytest.mark.parametrize(
    ("net", "channels"),
    [
        ("tf_efficientnet_lite0", 112),
        ("tf_efficientnet_lite2", 120),
        ("mobilenetv4_conv_small", 96),
        ("mobilenetv3_small_050", 24),
        ("convnext_atto", 160),
        ("resnet50", 1024),
        ("resnet18.a1_in1k", 256),
        ("vgg11", 512),
    ],
)
def test_map_of_stride_16(net, channels):
    backbone = on_meta(net).backbone
    feature = backbone(torch.empty(1, 3, 608, 800, device="meta"))
    assert feature.shape == (1, channels, 38, 50)
    assert backbone.out_channels == channels


@pytest.mark.parametrize("net", ["tf_efficientnet_lite0", "mobilenetv3_small_050", "convnext_atto", "resnet18"])
def test_pyramid_maps(net):
    model = on_meta(net, "fpn", fpn_channels=48)
    maps = model.backbone(torch.empty(1, 3, 608, 800, device="meta"))
    assert {name: tuple(level.shape[1:]) for name, level in maps.items()} == {
        "0": (48, 152, 200),
        "1": (48, 76, 100),
        "2": (48, 38, 50),
        "3": (48, 19, 25),
        "pool": (48, 10, 13),
    }
    assert model.backbone.out_channels == 48


@pytest.mark.parametrize(
    "net", ["test_efficientnet", "test_resnet", "test_convnext", "mobilenetv3_small_050", "mobilenetv4_conv_small"]
)
@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_map_with_a_file_of_timms_weights_is_timms_own(tmp_path, net, norm):
    theirs = trained(net)
    model = build(net, weights=timm_file(theirs, tmp_path / "w.safetensors"), norm=norm).eval()
    images = torch.randn(2, 3, 96, 128)
    with torch.no_grad():
        ours = model.backbone(images)
    expected = timm_features(theirs, net, images)[16]
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.01


def test_pyramid_reads_timms_own_maps(tmp_path):
    theirs = trained("test_resnet")
    model = build("test_resnet", "fpn", weights=timm_file(theirs, tmp_path / "w.safetensors")).eval()
    read = {}
    model.backbone.fpn.register_forward_pre_hook(lambda module, inputs: read.update(inputs[0]))
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        model.backbone(images)
    expected = timm_features(theirs, "test_resnet", images)
    for level, stride in enumerate((4, 8, 16, 32)):
        torch.testing.assert_close(read[str(level)], expected[stride], rtol=1e-4, atol=1e-4)


def test_cut_at_an_earlier_layer():
    whole = build("tf_efficientnet_lite0")
    cut = build("tf_efficientnet_lite0", last_layer="blocks.3")
    assert [name for name, _ in layers_of(cut.backbone)][-2:] == ["blocks.2", "blocks.3"]
    assert cut.backbone.out_channels == 80
    inner = cut.backbone.state_dict()
    assert inner.keys() < whole.backbone.state_dict().keys()
    whole.backbone.load_state_dict(inner, strict=False)
    images = torch.randn(1, 3, 64, 96)
    seen = []
    whole.backbone.blocks[3].register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        whole.eval().backbone(images)
        assert torch.equal(cut.eval().backbone(images), seen[0])


@pytest.mark.parametrize("net", ["test_resnet", "test_efficientnet", "test_convnext"])
def test_dilated_layers_stay_at_stride_16(tmp_path, net):
    theirs = trained(net)
    model = build(net, weights=timm_file(theirs, tmp_path / "w.safetensors"), dilated=True).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        ours = model.backbone(images)
    assert ours.shape[-2:] == (4, 6)
    torch.testing.assert_close(ours, timm_features(theirs, net, images, output_stride=16)[16], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("net", "kind"),
    [
        ("test_efficientnet", "c4"),
        ("test_efficientnet", "fpn"),
        ("test_convnext", "c4"),
        ("test_convnext", "fpn"),
        ("mobilenetv3_small_050", "fpn"),
        ("vgg11", "c4"),
    ],
)
def test_every_tensor_of_the_backbone_comes_from_the_file(tmp_path, net, kind):
    theirs = trained(net)
    model = build(net, kind)
    report = load_weights(model, timm_file(theirs, tmp_path / "w.safetensors"))
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("backbone.")}
    own = {name: tensor for name, tensor in own.items() if not name.startswith("backbone.fpn.")}
    for name, tensor in own.items():
        bare = name.removeprefix("backbone.").removeprefix("body.")
        assert torch.equal(tensor, theirs.state_dict()[bare]), name
    assert set(report.loaded) == set(own)
    # The rest of the file is named, none of it lost.
    counted = {name for name in theirs.state_dict() if not name.endswith("num_batches_tracked")}
    assert len(report.loaded) + len(report.unexpected) + len(report.mismatched) == len(counted)
    assert "backbone" not in str(report).split("left as they were", 1)[1] or kind == "fpn"


def test_weights_of_another_net_are_refused(tmp_path):
    file = timm_file(timm.create_model("test_resnet"), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="nothing in it fits|weights of another backbone"):
        build("test_efficientnet", weights=file)


@pytest.mark.parametrize(
    ("net", "mean", "std"),
    [
        ("tf_efficientnet_lite0", [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
        ("convnext_tiny", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ("test_resnet", [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
    ],
)
def test_normalisation_is_the_nets_own(net, mean, std):
    options = default_options(f"fasterrcnn_timm:{net}_c4")
    assert (options["image_mean"], options["image_std"]) == (mean, std)
    transform = on_meta(net).transform
    assert (transform.image_mean, transform.image_std) == (mean, std)
    other = build_detector("fasterrcnn_timm:test_resnet_c4", 2, **SMALL, image_mean=[0.1, 0.2, 0.3])
    assert other.transform.image_mean == [0.1, 0.2, 0.3]


@pytest.mark.parametrize(
    ("stages", "frozen"),
    [
        (0, []),
        (1, ["conv_stem", "bn1", "blocks.0"]),
        (2, ["conv_stem", "bn1", "blocks.0", "blocks.1"]),
        (3, ["conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2"]),
        (4, ["conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2", "blocks.3", "blocks.4"]),
    ],
)
def test_frozen_stages_are_those_up_to_a_stride(stages, frozen):
    backbone = on_meta("tf_efficientnet_lite0", frozen_stages=stages).backbone
    still = [name for name, layer in layers_of(backbone) if not any(p.requires_grad for p in layer.parameters())]
    # A frozen batch norm has no parameters at all.
    assert still == (frozen if "bn1" in frozen else [*frozen, "bn1"])


def test_frozen_stages_of_other_nets():
    resnet = on_meta("resnet18", frozen_stages=2).backbone
    assert {n.split(".")[0] for n, p in resnet.named_parameters() if not p.requires_grad} == {"conv1", "layer1"}
    convnext = on_meta("convnext_atto", "fpn", frozen_stages=2).backbone.body
    frozen = {".".join(n.split(".")[:2]) for n, p in convnext.named_parameters() if not p.requires_grad}
    assert frozen == {"stem.0", "stem.1", "stages.0"}
    assert all(p.requires_grad for p in on_meta("convnext_atto", frozen_stages=1).backbone.parameters())


def test_frozen_norms_keep_their_statistics_and_activation(tmp_path):
    file = timm_file(trained("test_efficientnet"), tmp_path / "w.safetensors")
    model = build("test_efficientnet", weights=file).train()
    norms = [layer for layer in model.backbone.modules() if isinstance(layer, FrozenBatchNorm2d)]
    assert len(norms) > 5
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in model.backbone.modules())
    before = copy.deepcopy(model.backbone.state_dict())
    feature = model.backbone(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.backbone.state_dict().items())
    with torch.no_grad():
        twin = build("test_efficientnet", weights=file, norm="batch").eval()
        images = torch.randn(2, 3, 64, 64)
        torch.testing.assert_close(model.backbone(images), twin.backbone(images), rtol=1e-4, atol=1e-4)
        activated = dict(model.backbone.named_children())["bn1"]
        assert activated(torch.full((1, activated.weight.numel(), 1, 1), -100.0)).min() >= -0.3
    assert feature.requires_grad


def test_live_norms_move_but_for_frozen_stages():
    model = build("test_efficientnet", norm="batch", frozen_stages=1).train()
    before = copy.deepcopy(model.backbone.state_dict())
    model.backbone(torch.randn(2, 3, 64, 64))
    moved = {n for n, t in model.backbone.state_dict().items() if not torch.equal(t, before[n])}
    frozen = {name for name in before if name.startswith(("conv_stem", "bn1", "blocks.0"))}
    assert moved and not moved & frozen


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fasterrcnn_timm:tf_eficientnet_lite0_c4", {}, "no model 'tf_eficientnet_lite0'.*did you mean"),
        ("fasterrcnn_timm:resnet18.nosuch_c4", {}, "Invalid pretrained tag"),
        ("fasterrcnn_timm:vit_tiny_patch16_224_c4", {}, "not a chain of layers"),
        ("fasterrcnn_timm:swin_tiny_patch4_window7_224_fpn", {}, "not a chain of layers"),
        ("fasterrcnn_timm:levit_128_c4", {}, "not a chain of layers"),
        ("fasterrcnn_timm:resnet18", {}, "unknown detector"),
        ("fasterrcnn_timm:nest_base_fpn", {}, "not a chain of layers|no map of stride 32"),
        ("fasterrcnn_timm:efficientvit_m0_fpn", {}, "no map of stride 4, only of 16, 32, 64"),
        ("fasterrcnn_timm:tf_efficientnet_lite0_c4", {"last_layer": "blocks.2"}, "no layer of stride 16.*blocks.3"),
        ("fasterrcnn_timm:tf_efficientnet_lite0_c4", {"last_layer": "block.3"}, "did you mean 'blocks.3'"),
        ("fasterrcnn_timm:tf_efficientnet_lite0_c4", {"last_layer": 3}, "must be the name of a layer"),
        ("fasterrcnn_timm:tf_efficientnet_lite0_c4", {"dilated": 1}, "must be true or false"),
        ("fasterrcnn_timm:tf_efficientnet_lite0_c4", {"frozen_stages": 5}, "frozen_stages is 0 to 4"),
        ("fasterrcnn_timm:mobilenetv3_small_050_c4", {"dilated": "yes"}, "must be true or false"),
        ("fasterrcnn_timm:densenet121_c4", {"dilated": True}, "gives no feature maps"),
        ("fasterrcnn_timm:tf_efficientnet_lite0_fpn", {"anchor_sizes": [32]}, "one size for each of 5 levels"),
        ("fasterrcnn_timm:tf_efficientnet_lite0_c4", {"weights": "imagenet"}, "there are none for fasterrcnn_timm"),
    ],
)
def test_what_cannot_be_is_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        build_detector(name, 4, **options)


def test_timm_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"needs the timm package: pip install detkt\[timm\]"):
        build("test_resnet")


@pytest.mark.parametrize(
    ("kind", "options"), [("c4", {"last_layer": "blocks.3"}), ("fpn", {}), ("c4", {"dilated": True})]
)
def test_saved_and_rebuilt(tmp_path, kind, options):
    torch.manual_seed(0)
    model = build("test_efficientnet", kind, **options).eval()
    save_model(model, tmp_path, ["a", "b", "c"])
    again, meta = load_model(tmp_path)
    assert meta["architecture"] == f"fasterrcnn_timm:test_efficientnet_{kind}"
    assert json.loads((tmp_path / "model.json").read_text())["options"]["image_mean"] == [0.485, 0.456, 0.406]
    images = [torch.rand(3, 64, 90)]
    with torch.no_grad():
        expected, got = model(images)[0], again(images)[0]
    assert len(expected["boxes"]) > 0
    assert all(torch.equal(expected[key], got[key]) for key in expected)


PAIR_BOXES = torch.tensor([[5.0, 5, 40, 50], [30, 20, 60, 60]])


@pytest.mark.parametrize(
    ("method", "settings"),
    [("ktan", {"regressor_steps": 1, "warmup_steps": 1}), ("fitnet", {}), ("kd", {})],
)
def test_methods_distil_between_timms_nets(method, settings):
    torch.manual_seed(0)
    student = build("test_efficientnet", last_layer="blocks.3")
    teacher = build("test_efficientnet", head_features=24).eval()
    before = copy.deepcopy(teacher.state_dict())
    distiller = detkt.Distiller(student, teacher, method, settings).train()
    images = [torch.rand(3, 64, 96), torch.rand(3, 64, 80)]
    targets = [{"boxes": PAIR_BOXES, "labels": torch.tensor([1, 3])} for _ in images]
    optimizer = torch.optim.SGD(distiller.trainable_parameters(), lr=0.01)
    distiller.prepare([(images, targets)])
    for _ in range(3):
        losses = distiller(images, targets)
        optimizer.zero_grad()
        total = sum(losses.values())
        assert torch.isfinite(total)
        total.backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.backbone.parameters())
        optimizer.step()
    assert len(losses) > 4
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
