"""CIFAR nets: published parameter counts, maps, shortcuts, and checkpointing that changes nothing but memory."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from detkt.base.errors import InputError
from detkt.models.cifar_resnet import PaddingShortcut
from detkt.models.classifier import Classifier, build_classifier

EVERY_FAMILY = ("cifar_resnet8", "cifar_preact_resnet11", "cifar_wrn10_1", "cifar_vgg13", "cifar_inception_bn")


def on_meta(name: str, num_classes: int = 10, **options) -> Classifier:
    with torch.device("meta"):
        return build_classifier(name, num_classes, **options)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "num_classes", "count"),
    [
        # The counts of He et al.'s nets as public tables list them.
        ("cifar_resnet20", 10, 269_722),
        ("cifar_resnet32", 10, 464_154),
        ("cifar_resnet44", 10, 658_586),
        ("cifar_resnet56", 10, 853_018),
        ("cifar_resnet110", 10, 1_727_962),
        ("cifar_preact_resnet164", 10, 1_703_258),
        # Zagoruyko and Komodakis print 0.6M, 2.2M, 8.9M and 36.5M for the first four, FT 10M, 0.17M and 0.69M.
        ("cifar_wrn40_1", 10, 563_930),
        ("cifar_wrn40_2", 10, 2_243_546),
        ("cifar_wrn40_4", 10, 8_949_210),
        ("cifar_wrn28_10", 10, 36_479_194),
        ("cifar_wrn46_4", 10, 10_499_290),
        ("cifar_wrn16_1", 10, 175_066),
        ("cifar_wrn16_2", 10, 691_674),
        # FT prints 9.4M.
        ("cifar_vgg13", 10, 9_413_066),
        # Zhang et al. count 1,649,402: biases (1,712) instead of scale and shift (2 x 1,712).
        ("cifar_inception_bn", 10, 1_649_402 + 1_712),
    ],
)
def test_published_parameter_counts(name, num_classes, count):
    assert parameters(on_meta(name, num_classes)) == count


def test_wide_resnet_count_by_formula():
    # 16-2: convolutions 16-32, 32-64 and 64-128 wide with two blocks a stage, the shortcuts, and the norms.
    convolutions = 9 * 3 * 16
    norms = 16
    before = 16
    for width in (32, 64, 128):
        convolutions += 9 * (before * width + 3 * width * width) + before * width
        norms += width * 3
        before = width
    norms += before
    # Four norms a stage of two blocks: the first reads the stage before, the last closes the net.
    assert parameters(on_meta("cifar_wrn16_2").backbone) == convolutions + 2 * (norms + 32 + 64)


@pytest.mark.parametrize(
    ("name", "num_classes", "millions"),
    [
        ("cifar_resnet8x1.25", 10, 0.12),
        ("cifar_resnet8x1.1", 10, 0.09),
        ("cifar_resnet14x1.03", 100, 0.19),
        ("cifar_resnet14x0.98", 100, 0.17),
    ],
)
def test_students_of_knowledge_representing_have_their_sizes(name, num_classes, millions):
    assert round(parameters(on_meta(name, num_classes)) / 1e6, 2) == millions


@pytest.mark.parametrize(("name", "millions"), [("cifar_resnet26", 0.36), ("cifar_resnet32", 0.46)])
def test_teachers_of_knowledge_representing_have_their_sizes_in_convolutions(name, millions):
    model = on_meta(name, 100)
    assert round(sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d)) / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("name", "channels", "stride"),
    [
        ("cifar_resnet8", 64, 4),
        ("cifar_resnet8x0.5", 32, 4),
        ("cifar_resnet8x1.25", 80, 4),
        ("cifar_preact_resnet11", 256, 4),
        ("cifar_wrn10_2", 128, 4),
        ("cifar_vgg13", 512, 16),
        ("cifar_inception_bn", 336, 4),
    ],
)
@pytest.mark.parametrize(("size", "in_channels"), [((32, 32), 3), ((28, 28), 1), ((16, 16), 1), ((32, 49), 3)])
def test_map_and_logits(name, channels, stride, size, in_channels):
    model = on_meta(name, 7, in_channels=in_channels)
    feature = model.backbone(torch.empty(2, in_channels, *size, device="meta"))
    # Strided convolutions round up, VGG's pooling down.
    rounded = [side // stride if name == "cifar_vgg13" else -(-side // stride) for side in size]
    assert feature.shape == (2, channels, *rounded)
    assert model.head(feature).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("cifar_resnet20", "conv1 bn1 relu layer1 layer2 layer3"),
        ("cifar_preact_resnet29", "conv1 layer1 layer2 layer3 bn1 relu"),
        ("cifar_wrn16_1", "conv1 layer1 layer2 layer3 bn1 relu"),
        ("cifar_vgg13", "stage1 stage2 stage3 stage4 stage5"),
        ("cifar_inception_bn", "conv1 in3a in3b in3c in4a in4b in4c in4d in4e in5a in5b"),
    ],
)
def test_stages(name, stages):
    model = on_meta(name)
    assert [stage for stage, _ in model.backbone.named_children()] == stages.split()
    assert [layer for layer, _ in model.head.named_children()] == ["pool", "flatten", "fc"]


def test_blocks_a_stage():
    for name, blocks in (("cifar_resnet56", 9), ("cifar_preact_resnet164", 18), ("cifar_wrn46_4", 7)):
        backbone = on_meta(name).backbone
        assert [len(backbone.get_submodule(f"layer{i}")) for i in (1, 2, 3)] == [blocks] * 3


@pytest.mark.parametrize("name", EVERY_FAMILY)
def test_map_ends_with_a_relu_and_every_parameter_learns(name):
    torch.manual_seed(0)
    model = build_classifier(name, 4)
    feature = model.backbone(torch.randn(4, 3, 32, 32))
    assert feature.min() == 0
    assert 0.2 < (feature > 0).float().mean() < 0.8
    F.cross_entropy(model.head(feature), torch.arange(4)).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("name", EVERY_FAMILY)
def test_convolutions_start_as_he_et_al_have_it(name):
    torch.manual_seed(0)
    for layer in build_classifier(name, 4).modules():
        if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 2000:
            fan_out = layer.out_channels * layer.kernel_size[0] ** 2
            assert layer.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


@pytest.mark.parametrize("name", EVERY_FAMILY)
def test_head_is_the_pooled_map_times_a_matrix(name):
    torch.manual_seed(0)
    model = build_classifier(name, 5)
    feature = torch.randn(2, model.head.fc.in_features, 3, 2)
    # VGG's last pooling is a max pool.
    pooled = feature.amax((2, 3)) if name == "cifar_vgg13" else feature.mean((2, 3))
    expected = pooled @ model.head.fc.weight.T + model.head.fc.bias
    torch.testing.assert_close(model.head(feature), expected)


def test_padding_shortcut_takes_every_second_pixel_between_zero_channels():
    feature = torch.arange(2 * 2 * 3 * 5.0).view(2, 2, 3, 5)
    out = PaddingShortcut(2, 5, stride=2)(feature)
    assert out.shape == (2, 5, 2, 3)
    assert not out[:, 0].any()
    assert not out[:, 3:].any()
    assert out[1, 2].tolist() == [[45, 47, 49], [55, 57, 59]]


def test_shortcuts_of_a_resnet():
    padded, projected = on_meta("cifar_resnet20"), on_meta("cifar_resnet20", shortcut="projection")
    # Option B: two 1x1 convolutions and their batch norms.
    assert parameters(projected) - parameters(padded) == 16 * 32 + 32 * 64 + 2 * 32 + 2 * 64
    assert isinstance(padded.backbone.layer2[0].downsample, PaddingShortcut)
    assert padded.backbone.layer1[0].downsample is None


@pytest.mark.parametrize("name", ["cifar_preact_resnet20", "cifar_wrn16_1"])
def test_preactivation_blocks_leave_the_identity_alone(name):
    torch.manual_seed(0)
    block = build_classifier(name, 4).backbone.layer2[1]
    last = block.conv3 if hasattr(block, "conv3") else block.conv2
    nn.init.zeros_(last.weight)
    feature = torch.randn(2, block.conv1.in_channels, 8, 8)
    assert torch.equal(block(feature), feature)


def test_bottleneck_by_hand():
    torch.manual_seed(0)
    block = build_classifier("cifar_preact_resnet11", 4).backbone.layer2[0].eval()
    feature = torch.randn(2, 64, 8, 6)
    activated = block.bn1(feature).clamp(min=0)
    hidden = F.conv2d(activated, block.conv1.weight, stride=2)
    hidden = F.conv2d(block.bn2(hidden).clamp(min=0), block.conv2.weight, padding=1)
    hidden = F.conv2d(block.bn3(hidden).clamp(min=0), block.conv3.weight)
    expected = hidden + F.conv2d(activated, block.downsample.weight, stride=2)
    torch.testing.assert_close(block(feature), expected)
    assert block.conv1.weight.shape == (32, 64, 1, 1)
    assert block.conv3.weight.shape == (128, 32, 1, 1)


def test_dropout_of_a_wide_resnet_is_between_the_convolutions():
    torch.manual_seed(0)
    model = build_classifier("cifar_wrn10_1", 4, dropout=0.3)
    drops = [layer for layer in model.modules() if isinstance(layer, nn.Dropout)]
    assert [layer.p for layer in drops] == [0.3] * 3
    block = model.backbone.layer1[0]
    seen = {}
    block.conv1.register_forward_pre_hook(lambda module, inputs: seen.update(first=inputs[0]))
    block.conv2.register_forward_pre_hook(lambda module, inputs: seen.update(second=inputs[0]))
    block(torch.randn(4, 16, 16, 16))
    # Half is zero by the ReLU, and three tenths of the rest are dropped.
    assert (seen["first"] == 0).float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert (seen["second"] == 0).float().mean().item() == pytest.approx(1 - 0.5 * 0.7, abs=0.03)


def two_steps(model: nn.Module, mode: bool) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Gradients of the second of two SGD steps, and the state after it."""
    model.train(mode)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        optimizer.zero_grad()
        images = torch.randn(4, 3, 16, 16, generator=generator)
        F.cross_entropy(model(images), torch.arange(4)).backward()
        optimizer.step()
    return {name: p.grad.clone() for name, p in model.named_parameters()}, model.state_dict()


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_checkpointing_changes_neither_gradients_nor_running_statistics(mode, momentum):
    torch.manual_seed(0)
    plain = build_classifier("cifar_preact_resnet20", 4)
    saving = build_classifier("cifar_preact_resnet20", 4, checkpoint_activations=True)
    saving.load_state_dict(plain.state_dict())
    for model in (plain, saving):
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = momentum
    gradients, state = two_steps(plain, mode)
    gradients_saving, state_saving = two_steps(saving, mode)
    assert all(torch.equal(gradients[name], gradients_saving[name]) for name in gradients)
    assert state.keys() == state_saving.keys()
    assert all(torch.equal(state[name], state_saving[name]) for name in state)
    assert saving.backbone.layer2[1].bn3.num_batches_tracked == (2 if mode else 0)
    assert saving.backbone.layer2[1].bn3.momentum == momentum


@pytest.mark.parametrize(("checkpointed", "runs"), [(False, 1), (True, 2)])
def test_checkpointing_computes_a_block_again_on_the_way_back(checkpointed, runs):
    torch.manual_seed(0)
    model = build_classifier("cifar_preact_resnet20", 4, checkpoint_activations=checkpointed)
    seen = []
    for stage in ("layer1", "layer2", "layer3"):
        model.backbone.get_submodule(stage)[1].conv2.register_forward_hook(lambda *_, stage=stage: seen.append(stage))
    logits = model(torch.randn(2, 3, 16, 16))
    assert seen == ["layer1", "layer2", "layer3"]
    logits.sum().backward()
    assert sorted(seen) == sorted(["layer1", "layer2", "layer3"] * runs)


def test_checkpointing_bears_two_ways_back():
    torch.manual_seed(0)
    model = build_classifier("cifar_preact_resnet20", 4, checkpoint_activations=True)
    loss = model(torch.randn(2, 3, 16, 16)).square().sum()
    first = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(model.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    counted = {norm.num_batches_tracked.item() for norm in model.modules() if isinstance(norm, nn.BatchNorm2d)}
    assert counted == {1}


def test_checkpointed_stage_without_gradients_is_plain():
    model = build_classifier("cifar_preact_resnet11", 4, checkpoint_activations=True)
    with torch.no_grad():
        assert not model(torch.randn(2, 3, 16, 16)).requires_grad
    assert model.backbone.layer1[0].bn1.num_batches_tracked == 1


def test_resnet_1001():
    torch.manual_seed(0)
    model = build_classifier("cifar_preact_resnet1001", 10, checkpoint_activations=True)
    # As public tables list it; He et al. print 10.2M.
    assert parameters(model) == 10_327_706
    assert sum(isinstance(layer, nn.Conv2d) for layer in model.modules()) == 1 + 3 * 333 + 3  # three shortcuts
    F.cross_entropy(model(torch.randn(2, 3, 16, 16)), torch.tensor([1, 2])).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_a_copy_is_independent():
    model = build_classifier("cifar_preact_resnet11", 4, checkpoint_activations=True)
    twin = copy.deepcopy(model)
    nn.init.zeros_(twin.backbone.conv1.weight)
    assert model.backbone.conv1.weight.any()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar_resnet21", "the depth must be 6 n + 2"),
        ("cifar_resnet2", "the depth must be 6 n + 2"),
        ("cifar_preact_resnet1000", "the depth must be 9 n + 2"),
        ("cifar_wrn40_0", "the widening factor must be 1 or more"),
        ("cifar_wrn20_1", "the depth must be 6 n + 4"),
        ("cifar_resnet20x0", "the width factor must be above 0"),
    ],
)
def test_sizes_that_no_net_has(name, message):
    with pytest.raises(InputError, match=re.escape(message)) as error:
        build_classifier(name, 10)
    assert name.split("x")[0] in str(error.value)
