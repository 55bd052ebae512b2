"""Classifiers by name: two parts that agree with the libraries' nets, weights that find their place, clear errors."""

from __future__ import annotations

import copy
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from PIL import Image
from torch import nn

from detkt.base.errors import InputError
from detkt.models.classifier import (
    Classifier,
    available_classifiers,
    build_classifier,
    default_classifier_options,
    load_classifier_weights,
)

DATA = Path(os.environ.get("DETKT_TEST_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


def on_meta(name: str, num_classes: int = 10, **options) -> Classifier:
    with torch.device("meta"):
        return build_classifier(name, num_classes, **options)


def spread_statistics(model: nn.Module) -> None:
    """Batch norms that do something: a net left as it starts hides a missing or doubled one."""
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.uniform_(-0.2, 0.2)
                layer.running_var.uniform_(0.7, 1.5)


def test_description_rebuilds_the_model():
    model = on_meta("cifar_wrn16_1", 7, dropout=0, in_channels=1)
    assert model.detkt == {
        "task": "classification",
        "architecture": "cifar_wrn16_1",
        "num_classes": 7,
        "options": {"dropout": 0.0, "in_channels": 1},
        "input": {"channels": 1},
    }
    described = json.loads(json.dumps(model.detkt))
    again = on_meta(described["architecture"], described["num_classes"], **described["options"])
    assert again.detkt == model.detkt
    assert again.backbone.conv1.in_channels == 1
    assert isinstance(described["options"]["dropout"], float)


def test_default_options_are_a_copy():
    assert default_classifier_options("cifar_resnet20") == {"shortcut": "padding", "in_channels": 3}
    default_classifier_options("googlenet")["transform_input"] = True
    assert default_classifier_options("googlenet") == {"transform_input": False}
    assert default_classifier_options("resnet18") == {}


def test_classifier_is_head_after_backbone():
    torch.manual_seed(0)
    model = build_classifier("cifar_resnet8", 3).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), model.head(model.backbone(images)))


@pytest.mark.parametrize(
    ("name", "size", "shape", "last"),
    [
        ("resnet18", (64, 96), (512, 2, 3), "layer4"),
        ("resnet50", (64, 64), (2048, 2, 2), "layer4"),
        ("googlenet", (64, 96), (1024, 2, 3), "inception5b"),
        ("inception_v3", (96, 128), (2048, 1, 2), "Mixed_7c"),
        ("alexnet", (96, 128), (256, 5, 7), "features"),
        ("mobilenet_v2", (64, 96), (1280, 2, 3), "features"),
        ("mobilenet_v3_small", (64, 96), (576, 2, 3), "features"),
        ("efficientnet_b0", (64, 96), (1280, 2, 3), "features"),
        ("densenet121", (64, 96), (1024, 2, 3), "relu"),
        ("regnet_y_400mf", (64, 96), (440, 2, 3), "trunk_output"),
        ("shufflenet_v2_x0_5", (64, 96), (1024, 2, 3), "conv5"),
        ("mnasnet0_5", (64, 96), (1280, 2, 3), "layers"),
    ],
)
def test_torchvisions_nets_in_two_parts_compute_the_same(name, size, shape, last):
    extra = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name, weights=None, num_classes=5, **extra)
    torch.manual_seed(0)
    ours = build_classifier(name, 5)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        for model in (theirs.eval(), ours.eval()):
            torch.manual_seed(1)
            spread_statistics(model)
        # Under their own names, in the backbone or in the head.
        named = {k.removeprefix("backbone.").removeprefix("head."): v for k, v in ours.state_dict().items()}
        assert named.keys() == theirs.state_dict().keys()
        assert all(torch.equal(named[k], v) for k, v in theirs.state_dict().items())
        feature = ours.backbone(images)
        assert feature.shape == (2, *shape)
        assert list(dict(ours.backbone.named_children()))[-1] == last
        assert torch.equal(ours.head(feature), theirs(images))
    if name.startswith(("resnet", "google", "inception", "alex", "dense", "regnet", "shuffle")):
        assert feature.min() == 0


def test_googlenet_normalises_again_for_its_imagenet_weights():
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(
        "googlenet", weights=None, num_classes=5, aux_logits=False, init_weights=False, transform_input=True
    ).eval()
    ours = build_classifier("googlenet", 5, transform_input=True).eval()
    ours.load_state_dict(
        {f"{'head' if k.startswith('fc') else 'backbone'}.{k}": v for k, v in theirs.state_dict().items()}
    )
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)
    assert ours.detkt["options"] == {"transform_input": True}


@pytest.mark.parametrize("name", ["resnext50_32x4d", "wide_resnet50_2", "vgg16_bn"])
def test_kin_of_these_nets(name):
    model = on_meta(name)
    feature = model.backbone(torch.empty(2, 3, 64, 96, device="meta"))
    # VGG's last pooling, which halves the map, is the head's.
    assert feature.shape[2:] == ((4, 6) if name == "vgg16_bn" else (2, 3))
    assert model.head(feature).shape == (2, 10)
    assert not isinstance(list(model.backbone.modules())[-1], nn.MaxPool2d)


def test_available_names():
    listed = available_classifiers()
    assert {"resnet18", "resnet152", "googlenet", "inception_v3", "cifar_wrn46_4", "cifar_vgg13"} <= set(listed)
    refused = set(torchvision.models.list_models(module=torchvision.models)) - set(listed)
    assert {name.split("_")[0] for name in refused} == {
        "convnext",
        "maxvit",
        "squeezenet1",
        "swin",
        "vit",
    }


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "convnext_atto"])
def test_timms_nets_in_two_parts_compute_the_same(name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=5).eval()
    torch.manual_seed(0)
    ours = build_classifier(f"timm:{name}", 5).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))
        assert ours.backbone(images).shape[2:] == (2, 3)
        twin = copy.deepcopy(ours)
        nn.init.zeros_(next(twin.backbone.parameters()))
        assert not torch.equal(twin(images), ours(images))
    assert ours.state_dict().keys().isdisjoint(theirs.state_dict())
    assert len(ours.state_dict()) == len(theirs.state_dict())


def test_timm_weights_find_their_place(tmp_path):
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("convnext_atto", num_classes=5).eval()
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    ours = build_classifier("timm:convnext_atto", 5, weights=tmp_path / "theirs.safetensors").eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))


@pytest.mark.parametrize(
    ("name", "message"), [("nosuch", "has no model 'nosuch'"), ("vit_tiny_patch16_224", "gives no last map")]
)
def test_timms_other_nets_are_refused(name, message):
    pytest.importorskip("timm")
    with pytest.raises(InputError, match=message):
        build_classifier(f"timm:{name}", 5)


def test_timm_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match="'timm:resnet18' needs the timm package: pip install detkt"):
        build_classifier("timm:resnet18", 5)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cifar_resnt20", "did you mean 'cifar_resnet20'"),
        ("resnet19", "did you mean 'resnet1"),
        ("cifar_vgg16", "did you mean 'cifar_vgg13'"),
        ("cifar_resnet8x", "did you mean 'cifar_resnet8'"),
        ("vit_b_16", "torchvision's nets such as resnet18"),
        ("fasterrcnn_vgg16", "unknown classifier 'fasterrcnn_vgg16'"),
        (None, "unknown classifier 'None'"),
    ],
)
def test_unknown_name(name, hint):
    with pytest.raises(InputError) as error:
        build_classifier(name, 10)
    assert hint in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cifar_resnet8", {"shortcuts": "padding"}, r"no option 'shortcuts' \(did you mean 'shortcut'\?\); it has"),
        ("cifar_resnet8", {"shortcut": "identity"}, "shortcut must be 'padding' or 'projection', got 'identity'"),
        ("cifar_resnet8", {"dropout": 0.1}, "has no option 'dropout'"),
        ("cifar_resnet8", {"in_channels": 0}, "in_channels must be a whole number above 0, got 0"),
        ("cifar_resnet8", {"in_channels": True}, "in_channels must be a whole number"),
        ("cifar_resnet8", {"in_channels": "3"}, "in_channels must be a whole number"),
        ("cifar_wrn16_1", {"dropout": 1.0}, "dropout must be a probability"),
        ("cifar_wrn16_1", {"dropout": "0.3"}, "dropout must be a probability"),
        ("cifar_preact_resnet11", {"checkpoint_activations": 1}, "checkpoint_activations must be true or false, got 1"),
        ("resnet18", {"in_channels": 1}, "resnet18 has no option 'in_channels'; it has none"),
        ("googlenet", {"transform_input": "yes"}, "transform_input must be true or false"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(InputError, match=message):
        build_classifier(name, 10, **options)


@pytest.mark.parametrize("num_classes", [1, 0, "10", 10.0, True])
def test_bad_class_count(num_classes):
    with pytest.raises(InputError, match="cifar_resnet8: num_classes must be a whole number, 2 or more"):
        build_classifier("cifar_resnet8", num_classes)


def small(num_classes: int = 4, name: str = "cifar_resnet14x0.25", **options) -> Classifier:
    return build_classifier(name, num_classes, **options)


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("suffix", [".th", ".safetensors"])
@pytest.mark.parametrize("linear", ["linear", "fc", "classifier"])
def test_public_files_find_their_place(tmp_path, suffix, linear):
    source, model = small(), small()
    theirs = {}
    for name, tensor in source.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            bare = name.removeprefix("backbone.").replace("head.fc", linear)
            theirs[f"module.{bare}"] = torch.rand_like(tensor)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".th":
        torch.save({"state_dict": theirs, "best_prec1": 91.7}, path)
    else:
        safetensors.torch.save_file(theirs, path)
    report = load_classifier_weights(model, path)
    after = model.state_dict()
    for name, tensor in theirs.items():
        bare = name.removeprefix("module.")
        ours = bare.replace(linear, "head.fc") if bare.startswith(linear) else f"backbone.{bare}"
        assert torch.equal(after[ours], tensor), name
    assert set(report.loaded) == {name for name in after if not name.endswith("num_batches_tracked")}
    assert report.missing == report.unexpected == report.mismatched == ()
    assert str(report).startswith(f"{path}: loaded {len(theirs)} of {len(theirs)} tensors (")


@pytest.mark.parametrize("name", ["cifar_preact_resnet11", "cifar_wrn10_1", "cifar_inception_bn", "resnet18"])
def test_own_files_come_back_whole(tmp_path, name):
    torch.manual_seed(0)
    source, model = build_classifier(name, 3), build_classifier(name, 3)
    spread_statistics(source)
    torch.save({f"_orig_mod.{k}": v for k, v in source.state_dict().items()}, tmp_path / "own.pt")
    load_classifier_weights(model, tmp_path / "own.pt")
    assert all(torch.equal(model.state_dict()[k], v) for k, v in source.state_dict().items())


def test_a_folder_is_a_saved_model(tmp_path):
    source = small()
    safetensors.torch.save_file(state_of(source), tmp_path / "model.safetensors")
    model = small(weights=tmp_path)
    assert torch.equal(model.backbone.layer3[1].conv2.weight, source.backbone.layer3[1].conv2.weight)


def test_another_number_of_classes_leaves_the_head_alone(tmp_path):
    source, model = small(num_classes=10), small(num_classes=4)
    before = state_of(model)
    torch.save(source.state_dict(), tmp_path / "ten.pth")
    report = load_classifier_weights(model, tmp_path / "ten.pth")
    assert report.mismatched == (("head.fc.weight", (10, 16), (4, 16)), ("head.fc.bias", (10,), (4,)))
    assert torch.equal(model.head.fc.weight, before["head.fc.weight"])
    assert torch.equal(model.backbone.conv1.weight, source.backbone.conv1.weight)
    assert "of another shape and left as they were: head.fc.weight 10x16 for 4x16" in str(report)


def test_a_file_without_head_is_reported(tmp_path):
    source, model = small(), small()
    before = state_of(model)
    torch.save({k: v for k, v in source.state_dict().items() if k.startswith("backbone.")}, tmp_path / "body.pth")
    report = load_classifier_weights(model, tmp_path / "body.pth")
    assert report.missing == ("head.fc.weight", "head.fc.bias")
    assert torch.equal(model.head.fc.weight, before["head.fc.weight"])


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        # Its layers are all in the file, with the same shapes, and two blocks' more.
        ("cifar_resnet20x0.25", "this net has no backbone.layer1.2.conv1.weight"),
        ("cifar_resnet8x0.25", "backbone.layer1.1.conv1.weight is not in it"),
        ("cifar_resnet14x0.5", "backbone.conv1.weight is 8x3x3x3, needed is 4x3x3x3"),
        ("cifar_wrn10_1", "backbone.conv1.weight is 16x3x3x3"),
    ],
)
def test_weights_of_another_backbone(tmp_path, theirs, message):
    torch.save(build_classifier(theirs, 4).state_dict(), tmp_path / "other.pth")
    model = small()
    before = state_of(model)
    with pytest.raises(InputError, match=message) as error:
        load_classifier_weights(model, tmp_path / "other.pth")
    assert str(tmp_path / "other.pth") in str(error.value)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())


def test_weights_of_projections_are_not_for_padding(tmp_path):
    torch.save(small(shortcut="projection").state_dict(), tmp_path / "b.pth")
    with pytest.raises(InputError, match=r"this net has no backbone.layer2.0.downsample.0.weight"):
        small(weights=tmp_path / "b.pth")


def test_unreadable_weights(tmp_path):
    (tmp_path / "damaged.pth").write_bytes(b"PK\x03\x04 not much")
    with pytest.raises(InputError, match="damaged, truncated or not plain weights"):
        small(weights=tmp_path / "damaged.pth")
    with pytest.raises(InputError, match="cannot read weights"):
        small(weights=tmp_path / "absent.pth")


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty torch hub cache whose files need no right hash."""
    folder = tmp_path / "hub"
    (folder / "checkpoints").mkdir(parents=True)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder))
    return folder / "checkpoints"


def test_imagenet_weights(hub, caplog):
    theirs = torchvision.models.get_model("resnet18", weights=None).eval()
    torch.save(theirs.state_dict(), hub / "resnet18-f37072fd.pth")
    with caplog.at_level("INFO", logger="detkt"):
        ours = build_classifier("resnet18", 1000, weights="imagenet").eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))
    assert "ImageNet weights of resnet18: loaded 102 of 102 tensors" in caplog.text


def test_imagenet_weights_of_googlenet_bring_their_normalisation(hub, caplog):
    theirs = torchvision.models.get_model("googlenet", weights=None, aux_logits=True, init_weights=False)
    torch.save(theirs.state_dict(), hub / "googlenet-1378be20.pth")
    with caplog.at_level("INFO", logger="detkt"):
        ours = build_classifier("googlenet", 20, weights="imagenet")
    assert ours.detkt["options"] == {"transform_input": True}
    assert torch.equal(ours.backbone.inception5b.branch1.conv.weight, theirs.inception5b.branch1.conv.weight)
    assert "head.fc.weight 1000x1024 for 20x1024" in caplog.text
    assert "in the file but not used: aux1.conv" in caplog.text


def test_old_names_of_densenets_layers(tmp_path):
    source, model = build_classifier("densenet121", 5), build_classifier("densenet121", 5)
    old = {}
    for name, tensor in source.state_dict().items():
        bare = name.removeprefix("backbone.").removeprefix("head.")
        for kind in ("norm", "conv"):
            for i in (1, 2):
                if "denselayer" in bare:
                    bare = bare.replace(f".{kind}{i}.", f".{kind}.{i}.")
        old[bare] = tensor
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "densenet.pth")
    report = load_classifier_weights(model, tmp_path / "densenet.pth")
    assert report.unexpected == report.missing == ()
    layer = "features.denseblock4.denselayer16.conv2"
    assert torch.equal(model.backbone.get_submodule(layer).weight, source.backbone.get_submodule(layer).weight)


@pytest.mark.parametrize("name", ["cifar_resnet8", "cifar_vgg13", "regnet_y_128gf"])
def test_no_imagenet_weights(name, monkeypatch):
    monkeypatch.setattr("detkt.models.classifier.torchvision_classifier", lambda *_: (nn.Identity(), nn.Identity()))
    with pytest.raises(InputError, match=f"weights 'imagenet': there are none for {name}"):
        build_classifier(name, 10, weights="imagenet")


@pytest.mark.parametrize(
    ("name", "file"), [("cifar_resnet20", "resnet20-12fca82f.th"), ("cifar_resnet56", "resnet56-4bfd9763.th")]
)
def test_real_weights_classify_real_pictures(name, file):
    path, pictures = DATA / "weights" / "cifar10_resnets" / file, DATA / "cifar10_subset" / "test"
    if not path.is_file() or not pictures.is_dir():
        pytest.skip(f"no {path} or {pictures}")
    model = build_classifier(name, 10).eval()
    report = load_classifier_weights(model, path)
    assert report.missing == report.unexpected == report.mismatched == ()
    mean, spread = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    images, labels = [], []
    for label, folder in enumerate(sorted(pictures.iterdir())):
        for picture in sorted(folder.iterdir())[:10]:
            pixels = torch.from_numpy(np.array(Image.open(picture).convert("RGB"))).permute(2, 0, 1) / 255
            images.append((pixels - mean) / spread)
            labels.append(label)
    with torch.no_grad():
        predicted = model(torch.stack(images)).argmax(1)
    # 0.82 and 0.84: the pictures went through JPEG. With the shortcuts' zeros on the wrong side it is 0.15 and 0.09.
    assert (predicted == torch.tensor(labels)).float().mean() > 0.75
