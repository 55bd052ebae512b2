"""Weights from classifiers and other detectors: where they go, what is reported, what is refused."""

from __future__ import annotations

import os
import pickle
import re
import urllib.error
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from detkt.base.errors import InputError
from detkt.models import build_detector, load_weights

DATA = Path(os.environ.get("DETKT_TEST_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
SMALL_HEAD = {"head_features": 8}


def small_resnet(num_classes: int = 4, **options) -> nn.Module:
    return build_detector("fasterrcnn_resnet10x0.25_c4", num_classes, **options)


def as_classifier(model: nn.Module) -> dict[str, torch.Tensor]:
    """Random weights of a small ResNet under the names that torchvision's classifiers have."""
    state = {}
    for name, tensor in model.state_dict().items():
        bare = name.removeprefix("backbone.").removeprefix("roi_heads.box_head.")
        if re.match(r"(conv1|bn1|layer\d)\.", bare):
            state[bare] = torch.rand_like(tensor) if tensor.is_floating_point() else tensor + 7
    return state | {"fc.weight": torch.rand(10, 128), "fc.bias": torch.rand(10)}


def save(content, path: Path) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_resnet_classifier_goes_into_body_and_head(tmp_path, suffix, norm):
    model = small_resnet(norm=norm)
    state = as_classifier(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = load_weights(model, save(state, tmp_path / f"resnet{suffix}"))
    after = model.state_dict()
    for name, tensor in state.items():
        if name.startswith("fc.") or (norm == "frozen" and name.endswith("num_batches_tracked")):
            continue
        place = "roi_heads.box_head." if name.startswith("layer4") else "backbone."
        torch.testing.assert_close(after[place + name], tensor)
    untouched = [name for name in before if name.startswith(("rpn.", "roi_heads.box_predictor."))]
    assert len(untouched) == 10
    assert all(torch.equal(before[name], after[name]) for name in untouched)
    assert sorted(report.missing) == sorted(untouched)
    assert set(report.unexpected) == {"fc.weight", "fc.bias"}
    assert report.mismatched == ()
    assert set(report.loaded) == {n for n in after if "num_batches" not in n} - set(untouched)


@pytest.mark.parametrize(("name", "fc6", "fc7"), [("vgg16", 0, 3), ("alexnet", 1, 4)])
def test_plain_classifier_goes_into_body_fc6_and_fc7(tmp_path, name, fc6, fc7):
    model = build_detector(f"fasterrcnn_{name}", 4, **SMALL_HEAD)
    theirs = {"vgg16": torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])}
    if name == "alexnet":
        with torch.device("meta"):
            meta = torchvision.models.get_model("alexnet").features
        theirs["alexnet"] = meta.to_empty(device="cpu")
        for parameter in meta.parameters():
            nn.init.normal_(parameter, std=0.05)
    features = theirs[name]
    state = {f"features.{k}": v for k, v in features.state_dict().items()}
    inputs = model.roi_heads.box_head.fc6.in_features
    for layer, shape in ((fc6, (8, inputs)), (fc7, (8, 8)), (6, (1000, 8))):
        state |= {
            f"classifier.{layer}.weight": torch.rand(shape),
            f"classifier.{layer}.bias": torch.rand(shape[0]),
        }
    report = load_weights(model, save(state, tmp_path / "classifier.pth"))
    head = model.roi_heads.box_head
    assert torch.equal(head.fc6.weight, state[f"classifier.{fc6}.weight"])
    assert torch.equal(head.fc6.bias, state[f"classifier.{fc6}.bias"])
    assert torch.equal(head.fc7.weight, state[f"classifier.{fc7}.weight"])
    assert report.unexpected == ("classifier.6.weight", "classifier.6.bias")
    image = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        expected = features[:-1](image)  # without the last max pool
        torch.testing.assert_close(model.backbone(image), expected)


def test_head_of_another_shape_is_reported_and_left(tmp_path):
    model = build_detector("fasterrcnn_alexnet", 4, **SMALL_HEAD)
    state = {"features.0.weight": torch.rand(64, 3, 11, 11), "classifier.1.weight": torch.rand(16, 9216)}
    before = model.roi_heads.box_head.fc6.weight.clone()
    report = load_weights(model, save(state, tmp_path / "alexnet.pth"))
    assert report.mismatched == (("roi_heads.box_head.fc6.weight", (16, 9216), (8, 9216)),)
    assert torch.equal(model.roi_heads.box_head.fc6.weight, before)
    assert "roi_heads.box_head.fc6.weight" not in report.missing


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "model_state_dict"])
def test_wrapped_and_prefixed_detector_with_other_classes(tmp_path, wrapper):
    source, model = small_resnet(num_classes=21), small_resnet(num_classes=4)
    state = {f"module.{name}": tensor for name, tensor in source.state_dict().items()}
    path = save({"epoch": 3, wrapper: state}, tmp_path / "run.pt")
    report = load_weights(model, path)
    assert {name for name, _, _ in report.mismatched} == {
        "roi_heads.box_predictor.cls_score.weight",
        "roi_heads.box_predictor.cls_score.bias",
        "roi_heads.box_predictor.bbox_pred.weight",
        "roi_heads.box_predictor.bbox_pred.bias",
    }
    assert report.missing == report.unexpected == ()
    assert torch.equal(model.rpn.head.cls_logits.weight, source.rpn.head.cls_logits.weight)
    assert torch.equal(
        model.roi_heads.box_head.layer4[0].conv1.weight, source.roi_heads.box_head.layer4[0].conv1.weight
    )


def test_torchvisions_fpn_detector_fits_whole():
    with torch.device("meta"):
        theirs = torchvision.models.detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
        ours = build_detector("fasterrcnn_resnet50_fpn", 91)
    shapes = [
        {k: v.shape for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
        for net in (theirs, ours)
    ]
    assert shapes[0] == shapes[1]


def test_old_names_of_torchvisions_detectors(tmp_path):
    model, source = (build_detector("fasterrcnn_resnet10x0.25_fpn", 4) for _ in range(2))
    state = {}
    for name, tensor in source.state_dict().items():
        name = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        state[re.sub(r"(fpn\.\w+_blocks\.\d)\.0\.", r"\1.", name)] = tensor
    assert "backbone.fpn.inner_blocks.0.weight" in state
    report = load_weights(model, save(state, tmp_path / "old.pth"))
    assert report.missing == report.unexpected == report.mismatched == ()
    assert torch.equal(model.rpn.head.conv[0][0].weight, source.rpn.head.conv[0][0].weight)


def test_fpn_detector_gives_its_resnet_to_a_c4_detector(tmp_path):
    source, model = build_detector("fasterrcnn_resnet10x0.25_fpn", 4), small_resnet()
    load_weights(model, save(source.state_dict(), tmp_path / "fpn.pth"))
    assert torch.equal(model.backbone.layer3[0].conv1.weight, source.backbone.body.layer3[0].conv1.weight)
    assert torch.equal(model.roi_heads.box_head.layer4[0].conv1.weight, source.backbone.body.layer4[0].conv1.weight)


def test_report_reads_as_one_paragraph(tmp_path):
    model = small_resnet()
    state = as_classifier(model) | {"roi_heads.box_predictor.cls_score.bias": torch.rand(7)}
    path = save(state, tmp_path / "resnet.pth")
    text = str(load_weights(model, path))
    assert "\n" not in text
    assert text.startswith(f"{path}: loaded 60 of 70 tensors (backbone.conv1 1, backbone.bn1 4, backbone.layer1 10")
    assert "not in the file and left as they were: rpn.head 6, roi_heads.box_predictor.cls_score 1" in text
    assert "of another shape and left as they were: roi_heads.box_predictor.cls_score.bias 7 for 4" in text
    assert text.endswith("in the file but not used: fc.weight 1, fc.bias 1")


def test_frozen_layers_stay_frozen(tmp_path):
    model = small_resnet(frozen_stages=2, norm="frozen")
    load_weights(model, save(as_classifier(model), tmp_path / "r.pth"))
    assert not model.backbone.conv1.weight.requires_grad
    assert model.backbone.layer2[0].conv1.weight.requires_grad


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def bad_file(kind: str, folder: Path) -> Path:
    path = folder / "weights.pth"
    good = save(small_resnet().state_dict(), folder / "good.pth").read_bytes()
    if kind == "pickled payload":
        torch.save({"model": Payload(folder / "executed")}, path)
    elif kind == "plain pickle":
        path.write_bytes(pickle.dumps(Payload(folder / "executed")))
    elif kind == "truncated":
        path.write_bytes(good[: len(good) // 2])
    elif kind == "web page":
        path.write_text("<!DOCTYPE html>\n<html><body>Sign in</body></html>")
    elif kind == "lfs pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n")
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("hello")
    elif kind == "no tensors":
        torch.save({"epoch": 3}, path)
    elif kind == "one tensor":
        torch.save(torch.zeros(3), path)
    elif kind == "folder without a model":
        path.mkdir()
    elif kind == "truncated safetensors":
        path = folder / "weights.safetensors"
        path.write_bytes(safetensors.torch.save(small_resnet().state_dict())[:5000])
    elif kind == "unrelated":
        torch.save({"embedding.weight": torch.zeros(3, 3)}, path)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("pickled payload", "pickled code is never run"),
        ("plain pickle", "pickled code is never run"),
        ("truncated", "damaged, truncated"),
        ("web page", "web page"),
        ("lfs pointer", "git lfs pull"),
        ("empty", "empty"),
        ("text", "damaged, truncated"),
        ("no tensors", "no tensors"),
        ("one tensor", "no tensors"),
        ("folder without a model", "No such file"),
        ("truncated safetensors", "damaged, truncated"),
        ("unrelated", "nothing in it fits this detector.*embedding.weight"),
        ("missing", "No such file"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, kind, message):
    path = bad_file(kind, tmp_path)
    model = small_resnet()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match=message) as error:
        load_weights(model, path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    assert not (tmp_path / "executed").exists()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_another_backbone_is_refused_untouched(tmp_path):
    path = save(build_detector("fasterrcnn_resnet18x0.5_c4", 4).state_dict(), tmp_path / "wide.pth")
    model = small_resnet()
    before = model.backbone.conv1.weight.clone()
    with pytest.raises(InputError, match=r"another backbone: backbone.conv1.weight is 32x3x7x7, needed is 16x3x7x7"):
        load_weights(model, path)
    assert torch.equal(model.backbone.conv1.weight, before)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_imagenet_weights_come_from_the_hub_cache(hub, caplog):
    resnet = torchvision.models.get_model("resnet18")
    torch.save(resnet.state_dict(), hub / "resnet18-f37072fd.pth")
    with caplog.at_level("INFO", logger="detkt"):
        model = build_detector("fasterrcnn_resnet18_c4", 21, weights="imagenet")
    assert torch.equal(model.backbone.layer3[1].conv2.weight, resnet.layer3[1].conv2.weight)
    assert torch.equal(model.roi_heads.box_head.layer4[1].conv2.weight, resnet.layer4[1].conv2.weight)
    assert "ImageNet weights of resnet18: loaded 100 of 110 tensors" in caplog.text


def fake(name: str, path: Path) -> dict[str, torch.Tensor]:
    """ImageNet weights as torchvision names them, each tensor a view of one number, which tells it from all others."""
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in torchvision.models.get_model(name).state_dict().items()}
    state = {key: torch.tensor(float(number)).expand(shape) for number, (key, shape) in enumerate(shapes.items(), 1)}
    torch.save(state, path)
    return state


def test_imagenet_weights_of_ssd_go_through_its_cuts(hub, caplog):
    """VGG-16's features 0 to 22 before the pool of conv4, 23 to 28 in ``extra``; its classifier has no place there.

    They are the ones that torchvision's own SSD starts from, of pictures in 0 to 255 less their mean.
    """
    state = fake("vgg16", hub / "vgg16_features-amdegroot-88682ab5.pth")
    with caplog.at_level("INFO", logger="detkt"):
        model = build_detector("ssd300_vgg16", 4, weights="imagenet")
    backbone = model.backbone
    for layer in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21):
        assert torch.equal(backbone.features[layer].weight, state[f"features.{layer}.weight"])
        assert torch.equal(backbone.features[layer].bias, state[f"features.{layer}.bias"])
    for layer in (24, 26, 28):
        assert torch.equal(backbone.extra[0][layer - 23].weight, state[f"features.{layer}.weight"])
    assert "ImageNet weights of vgg16:IMAGENET1K_FEATURES: loaded 26 of " in caplog.text
    assert model.transform.image_std == pytest.approx([1 / 255] * 3)


def test_imagenet_weights_of_ssdlite_go_through_its_cuts(hub, caplog):
    """Blocks 0 to 12 and the expansion of block 13 come first, then the rest of it; the whole tail has room for all."""
    state = fake("mobilenet_v3_large", hub / "mobilenet_v3_large-8738ca79.pth")
    with caplog.at_level("INFO", logger="detkt"):
        model = build_detector("ssdlite320_mobilenet_v3_large", 4, weights="imagenet", reduced_tail=False)
    first, second = model.backbone.features
    for part, name in (
        (first[0][0], "features.0.0"),
        (first[12].block[0][0], "features.12.block.0.0"),
        (first[13][0], "features.13.block.0.0"),
        (second[0][0][0], "features.13.block.1.0"),
        (second[0][2][0], "features.13.block.3.0"),
        (second[2].block[3][0], "features.15.block.3.0"),
        (second[3][0], "features.16.0"),
    ):
        assert torch.equal(part.weight, state[f"{name}.weight"]), name
    assert torch.equal(first[13][1].running_var, state["features.13.block.0.1.running_var"])
    features = [name for name in state if name.startswith("features.") and not name.endswith("num_batches_tracked")]
    assert f"loaded {len(features)} of " in caplog.text
    assert not [name for name in state if name.startswith("features") and name in caplog.text]


def test_imagenet_weights_without_network(hub, monkeypatch):
    def offline(*args, **kwargs):
        raise urllib.error.URLError("[Errno -3] Temporary failure in name resolution")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(InputError, match="name resolution.*give the file") as error:
        build_detector("fasterrcnn_resnet18_c4", 21, weights="imagenet")
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in str(error.value)
    assert str(hub) in str(error.value)
    assert "\n" not in str(error.value)


def test_imagenet_payload_in_the_cache_is_not_run(hub, tmp_path):
    torch.save({"model": Payload(tmp_path / "executed")}, hub / "resnet18-f37072fd.pth")
    with pytest.raises(InputError, match="cannot get the ImageNet weights"):
        build_detector("fasterrcnn_resnet18_c4", 21, weights="imagenet")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["fasterrcnn_resnet18x0.25_c4", "fasterrcnn_resnet10_c4"])
def test_no_imagenet_weights_for_scaled_nets(name):
    with pytest.raises(InputError, match=f"weights 'imagenet': there are none for {name}"):
        build_detector(name, 21, weights="imagenet")


def test_weights_argument_takes_a_file(tmp_path):
    source = small_resnet()
    model = small_resnet(weights=save(source.state_dict(), tmp_path / "w.pth"))
    assert torch.equal(model.backbone.conv1.weight, source.backbone.conv1.weight)


@pytest.mark.parametrize(("name", "convolutions"), [("vgg16", 13), ("alexnet", 5)])
def test_real_weights_give_edges_and_colours(name, convolutions):
    path = DATA / "weights" / f"{name}_features_torchvision.pth"
    if not path.is_file():
        pytest.skip(f"no {path}")
    model = build_detector(f"fasterrcnn_{name}", 21, **SMALL_HEAD).eval()
    report = load_weights(model, path)
    assert len(report.loaded) == 2 * convolutions
    assert all(loaded.startswith("backbone.") for loaded in report.loaded)
    assert report.unexpected == report.mismatched == ()
    # A picture moves trained maps with its content: a step edge is seen where it is.
    image = torch.zeros(1, 3, 160, 160)
    image[..., 80:] = 1.0
    with torch.no_grad():
        feature = model.backbone((image - 0.45) / 0.225)[0]
    change = (feature[:, :, 1:] - feature[:, :, :-1]).abs().sum((0, 1))
    assert 3 <= change.argmax() <= 5
