"""Bodies and heads: shapes, widths, what is frozen, and agreement with torchvision's classifiers."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from detkt.models import build_detector
from detkt.models.backbones import C4Head, resnet_c4, resnet_stages


def on_meta(name: str, **options) -> nn.Module:
    with torch.device("meta"):
        return build_detector(name, 21, **options)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("resnet18_c4", (256, 38, 50)),
        ("resnet34_c4", (256, 38, 50)),
        ("resnet50_c4", (1024, 38, 50)),
        ("resnet101_c4", (1024, 38, 50)),
        ("resnet152_c4", (1024, 38, 50)),
        ("vgg16", (512, 37, 50)),
        ("alexnet", (256, 36, 49)),
        ("resnet18x0.25_c4", (64, 38, 50)),
        ("resnet18x0.5_c4", (128, 38, 50)),
        ("resnet10x0.25_c4", (64, 38, 50)),
        ("resnet10_c4", (256, 38, 50)),
        ("resnet50x0.5_c4", (512, 38, 50)),
        ("resnet18x1.5_c4", (384, 38, 50)),
    ],
)
def test_map_of_a_600_by_800_image(name, shape):
    backbone = on_meta(f"fasterrcnn_{name}").backbone
    assert backbone(torch.empty(1, 3, 600, 800, device="meta")).shape == (1, *shape)
    assert backbone.out_channels == shape[0]


def test_fpn_maps():
    maps = on_meta("fasterrcnn_resnet34_fpn").backbone(torch.empty(1, 3, 608, 800, device="meta"))
    sizes = {name: tuple(level.shape[1:]) for name, level in maps.items()}
    assert sizes == {
        "0": (256, 152, 200),
        "1": (256, 76, 100),
        "2": (256, 38, 50),
        "3": (256, 19, 25),
        "pool": (256, 10, 13),
    }
    assert on_meta("fasterrcnn_resnet18x0.25_fpn").backbone.out_channels == 64


@pytest.mark.parametrize("name", ["resnet18x0.25_c4", "vgg16", "alexnet"])
def test_map_ends_with_a_relu(name):
    torch.manual_seed(0)
    small_head = {} if name.endswith("c4") else {"head_features": 8}
    backbone = build_detector(f"fasterrcnn_{name}", 2, **small_head).backbone
    with torch.no_grad():
        feature = backbone(torch.randn(1, 3, 96, 96))
    assert feature.min() == 0
    assert feature.max() > 0


def test_every_layer_is_scaled():
    full = dict(on_meta("fasterrcnn_resnet18_c4").named_modules())
    quarter = dict(on_meta("fasterrcnn_resnet18x0.25_c4").named_modules())
    convolutions = [name for name, layer in full.items() if isinstance(layer, nn.Conv2d) and "rpn" not in name]
    assert len(convolutions) == 20
    for name in convolutions:
        assert quarter[name].out_channels * 4 == full[name].out_channels, name
    assert quarter["rpn.head.conv.0.0"].out_channels == 128
    assert quarter["roi_heads.box_predictor.cls_score"].in_features == 128


def test_resnet10_has_one_block_a_stage():
    stages, channels = resnet_stages(10, 0.25, "batch", 0)
    assert [len(stages[f"layer{i}"]) for i in (1, 2, 3, 4)] == [1, 1, 1, 1]
    assert channels == [16, 32, 64, 128]


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_layers_are_torchvisions(depth):
    with torch.device("meta"):
        theirs = torchvision.models.get_model(f"resnet{depth}").state_dict()
        stages, _ = resnet_stages(depth, 1.0, "batch", 0)
        ours = nn.Sequential(stages).state_dict()
    assert {k: v.shape for k, v in theirs.items() if not k.startswith("fc.")} == {k: v.shape for k, v in ours.items()}


@pytest.mark.parametrize("depth", [18, 50])
def test_features_and_head_compute_what_torchvisions_resnet_does(depth):
    torch.manual_seed(0)
    resnet = torchvision.models.get_model(f"resnet{depth}").eval()
    with torch.no_grad():
        for layer in resnet.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.uniform_(-0.5, 0.5)
                layer.running_var.uniform_(0.5, 2.0)
    body, head = resnet_c4(depth, 1.0, "frozen", 2)
    body.load_state_dict(
        {k: v for k, v in resnet.state_dict().items() if k.split(".")[0] in dict(body.named_children())}
    )
    head.load_state_dict({k: v for k, v in resnet.state_dict().items() if k.startswith("layer4")})
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        stem = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(image))))
        expected = resnet.layer3(resnet.layer2(resnet.layer1(stem)))
        feature = body(image)
        torch.testing.assert_close(feature, expected, rtol=1e-4, atol=1e-4)
        pooled = feature[:, :, :4, :4]
        torch.testing.assert_close(head(pooled), resnet.layer4(pooled).mean((2, 3)), rtol=1e-4, atol=1e-4)


def test_roi_head_strides():
    roi = torch.zeros(3, 64, 7, 7)
    for stride, size in ((2, 4), (1, 7)):
        _, head = resnet_c4(18, 0.25, "batch", 0, roi_head_stride=stride)
        assert isinstance(head, C4Head)
        assert head.layer4(roi).shape == (3, 128, size, size)
        assert head(roi).shape == (3, 128)


def test_fully_connected_head_uses_relu_and_dropout():
    torch.manual_seed(0)
    head = build_detector("fasterrcnn_alexnet", 3, head_features=64, head_dropout=0.5).roi_heads.box_head
    pooled = torch.randn(4, 256, 6, 6)
    with torch.no_grad():
        head.eval()
        expected = head.fc7(head.fc6(pooled.flatten(1)).clamp(min=0)).clamp(min=0)
        torch.testing.assert_close(head(pooled), expected)
        head.train()
        assert not torch.equal(head(pooled), head(pooled))


def test_default_freezing_of_full_nets():
    model = on_meta("fasterrcnn_resnet50_c4")
    trained = {name.split(".")[1] for name, p in model.backbone.named_parameters(prefix="b") if p.requires_grad}
    assert trained == {"layer2", "layer3"}
    assert all(p.requires_grad for p in model.roi_heads.parameters())
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())
    vgg = on_meta("fasterrcnn_vgg16").backbone
    frozen = [i for i, layer in enumerate(vgg) for p in layer.parameters() if not p.requires_grad]
    assert sorted(set(frozen)) == [0, 2, 5, 7]
    assert all(p.requires_grad for p in on_meta("fasterrcnn_alexnet").parameters())


def test_scaled_nets_train_everything_with_live_batch_norm():
    for name in ("fasterrcnn_resnet18x0.25_c4", "fasterrcnn_resnet10_c4", "fasterrcnn_resnet18x1_c4"):
        model = on_meta(name)
        assert all(p.requires_grad for p in model.parameters())
        assert not any(isinstance(layer, FrozenBatchNorm2d) for layer in model.modules())


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        (0, set()),
        (1, {"conv1", "bn1"}),
        (2, {"conv1", "bn1", "layer1"}),
        (3, {"conv1", "bn1", "layer1", "layer2"}),
        (4, {"conv1", "bn1", "layer1", "layer2", "layer3"}),
    ],
)
def test_frozen_stages_of_a_resnet_count_from_conv1(stages, expected):
    model = on_meta("fasterrcnn_resnet18x0.25_c4", frozen_stages=stages)
    parts = {name for name, part in model.backbone.named_children() if list(part.state_dict())}
    moving = {name.split(".")[0] for name, p in model.backbone.named_parameters() if p.requires_grad}
    assert parts - moving == expected
    assert all(p.requires_grad for p in model.roi_heads.parameters())


def test_frozen_stages_of_an_fpn_reach_layer4():
    body = on_meta("fasterrcnn_resnet18_fpn", frozen_stages=5).backbone
    assert not any(p.requires_grad for p in body.body.parameters())
    assert all(p.requires_grad for p in body.fpn.parameters())


@pytest.mark.parametrize(("stages", "frozen"), [(0, []), (1, [0]), (3, [0, 3, 6])])
def test_frozen_stages_of_alexnet_count_convolutions(stages, frozen):
    backbone = on_meta("fasterrcnn_alexnet", frozen_stages=stages).backbone
    still = [i for i, layer in enumerate(backbone) for p in layer.parameters() if not p.requires_grad]
    assert sorted(set(still)) == frozen


def test_statistics_of_frozen_stages_never_move():
    torch.manual_seed(0)
    model = build_detector("fasterrcnn_resnet10x0.25_c4", 2, norm="batch", frozen_stages=2)
    model.train()
    before = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    model.backbone(torch.rand(2, 3, 64, 64))
    moved = {k for k, v in model.backbone.state_dict().items() if not torch.equal(v, before[k])}
    assert {name.split(".")[0] for name in moved} == {"layer2", "layer3"}


@pytest.mark.parametrize(
    ("name", "millions"),
    # torchvision's classifier without its last layer and batch norms, the RPN and the predictor.
    [("resnet50_c4", 23.508 - 0.053 + 4.742 + 0.215), ("resnet152_c4", 58.144 - 0.151 + 4.742 + 0.215)],
)
def test_parameter_count(name, millions):
    model = on_meta(f"fasterrcnn_{name}")
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.002)
